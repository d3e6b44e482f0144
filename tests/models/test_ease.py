"""EASE against ridge regressions written out, item by item."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrec.data.batches import make_batch
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions
from fedrec.errors import ConfigError
from fedrec.models import ease
from fedrec.models.registry import build_model
from fedrec.randomness import Key
from tests.training import train
from tests.worlds import make, random_world

LAM = 2.5
TABLE = {"name": "ease", "regularization": LAM}


def met(interactions: Interactions) -> np.ndarray:
    """Return (num_users, num_items): 1 where a user met an item."""
    found = np.zeros((interactions.num_users, interactions.num_items))
    found[interactions.users, interactions.items] = 1.0
    return found


def weights_of(interactions: Interactions, num_rounds: int = 1, micro_batch: int = 2**17) -> np.ndarray:
    catalogue = Catalogue(interactions.item_ids)
    state = train(build_model(TABLE, None), catalogue, interactions, num_rounds, micro_batch=micro_batch)
    return state.shared["weights"].double().numpy()


def test_each_item_is_a_ridge_regression_on_all_others() -> None:
    interactions = random_world(40, 12)
    table = met(interactions)
    found = weights_of(interactions)
    for item in range(12):
        others = np.delete(np.arange(12), item)
        rest = table[:, others]
        solved = np.linalg.solve(rest.T @ rest + LAM * np.eye(11), rest.T @ table[:, item])
        np.testing.assert_allclose(found[others, item], solved, atol=1e-6)
        assert found[item, item] == 0.0


def test_batches_and_further_rounds_change_nothing_and_repeats_count_once() -> None:
    interactions = random_world(30, 10)
    first = weights_of(interactions)
    np.testing.assert_array_equal(weights_of(interactions, num_rounds=3), first)
    np.testing.assert_allclose(weights_of(interactions, micro_batch=7), first, atol=1e-7)
    pairs = list(zip(interactions.users.tolist(), interactions.items.tolist(), strict=True))
    twice = make([pair for pair in pairs for _ in range(2)], 30, 10)
    np.testing.assert_allclose(weights_of(twice), first, atol=1e-7)


@pytest.mark.parametrize("times", [True, False])
def test_score_sums_the_weights_of_the_history_and_recent_ones_weigh_more(times: bool) -> None:
    interactions = make([(0, 3), (0, 1), (0, 3), (0, 4)], 1, 5, times=times)
    weights = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    batch = make_batch(interactions, np.array([0]))
    plain, recent = (build_model({**TABLE, "recency_weight": a, "recency_decay": 2.0}, None) for a in (0.0, 9.0))
    shared = {"weights": weights}
    expected = weights[3] + weights[1] + weights[4]
    torch.testing.assert_close(plain.score(shared, {}, batch)[0], expected)
    if times:  # item 3 was met twice: its newer interaction, of age 1, counts
        ages = {4: 0.0, 3: 1.0, 1: 2.0}
        expected = sum(((1 + 9 * np.exp(-age / 2)) * weights[item] for item, age in ages.items()), torch.zeros(5))
    torch.testing.assert_close(recent.score(shared, {}, batch)[0], expected)


def test_large_catalogue_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "MAX_ITEMS", 9)
    with pytest.raises(ConfigError, match="10 x 10 items, allowed are 9"):
        build_model(TABLE, None).init(Catalogue(make([], 1, 10).item_ids), Key.from_seed(0))


def test_privacy_plan_is_refused() -> None:
    with pytest.raises(ConfigError, match="'ease' does not run under a privacy plan"):
        build_model(TABLE, 1.0)
