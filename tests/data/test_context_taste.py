"""Taste that depends on the context: the truth that is told is the truth that users follow."""

from __future__ import annotations

import numpy as np
import pytest

from fedrec.data.synthetic import SyntheticConfig, generate, planted_preference, user_groups
from fedrec.data.synthetic.items import make_items
from fedrec.randomness import Key

KEY = Key.from_seed(0)
CONTEXTUAL = SyntheticConfig(
    num_users=6000, num_items=200, mean_interactions=15, num_groups=2, context_share=0.9, noise_share=0.1
)


def test_preference_is_a_distribution_over_items_that_differs_by_group_and_context() -> None:
    truth = planted_preference(CONTEXTUAL, KEY)
    assert truth.shape == (2, 4, 3, 200) and (truth >= 0).all()
    assert truth.sum(axis=-1) == pytest.approx(np.ones((2, 4, 3)))
    top = np.argsort(-truth, axis=-1)[..., :10].reshape(24, 10)
    shared = [len(set(one.tolist()) & set(two.tolist())) for n, one in enumerate(top) for two in top[:n]]
    assert np.mean(shared) < 3


def test_first_choices_are_drawn_from_the_planted_preference() -> None:
    data = generate(CONTEXTUAL, KEY).interactions
    group = user_groups(CONTEXTUAL, KEY, data.user_ids.ids.astype(np.uint64))
    first = data.indptr[:-1]  # later choices leave out what was met before
    met = np.zeros((2, 4, 3, 200))
    np.add.at(met, (group, data.context["daytime"][first], data.context["device"][first], data.items[first]), 1)
    popularity = np.diff(make_items(CONTEXTUAL, KEY).overall, prepend=0.0)
    wanted = 0.9 * planted_preference(CONTEXTUAL, KEY) + 0.1 * popularity
    expected = (met.sum(axis=-1, keepdims=True) * wanted).reshape(24, 200)
    statistic = ((met.reshape(24, 200) - expected) ** 2 / expected).sum() / (24 * 199)
    assert 0.9 < statistic < 1.1
    best, truth = (np.argsort(-table.reshape(24, 200), axis=1)[:, :20] for table in (met, wanted))
    recall = [len(set(one.tolist()) & set(two.tolist())) / 20 for one, two in zip(best, truth, strict=True)]
    others = [len(set(one.tolist()) & set(two.tolist())) / 20 for one, two in zip(best, truth[::-1], strict=True)]
    assert np.mean(recall) > 2 * np.mean(others)


def test_one_group_is_the_world_without_groups() -> None:
    users = np.arange(100, dtype=np.uint64)
    assert not user_groups(SyntheticConfig(), KEY, users).any()
    found = user_groups(CONTEXTUAL, KEY, users)
    assert set(found.tolist()) == {0, 1}
    assert np.array_equal(user_groups(CONTEXTUAL, KEY, users[40:]), found[40:])
