"""Contributions as rows of a matrix: one a user, whatever the model adds up as it goes."""

from __future__ import annotations

import numpy as np
import pytest

from fedrec.audit.vectors import contribution_rows
from fedrec.randomness import Key
from tests.audit.subjects import MODELS, subject

KEY = Key.from_seed(0)


@pytest.mark.parametrize("model", MODELS)
def test_rows_of_users_who_are_asked_for_alone_are_those_of_all(model: str) -> None:
    audited = subject(model)
    shared = audited.model.init(audited.catalogue, KEY).shared
    rows = np.array([7, 3, 200])
    whole, layout = contribution_rows(audited, shared, audited.train, rows, audited.user_keys, KEY)
    assert whole.shape == (3, layout.size) and whole.nnz
    for place, user in enumerate(rows):
        alone, _ = contribution_rows(audited, shared, audited.train, rows[place : place + 1], audited.user_keys, KEY)
        found, wanted = alone.toarray()[0], whole[place].toarray()[0]
        assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted), user


def test_users_of_two_tower_are_the_same_with_and_without_a_plan_but_for_clipping() -> None:
    exact, private = subject("two_tower"), subject("two_tower", 8.0)
    shared = exact.model.init(exact.catalogue, KEY).shared
    rows = np.arange(0, 240, 40)
    free, _ = contribution_rows(exact, shared, exact.train, rows, exact.user_keys, KEY)
    clipped, _ = contribution_rows(private, shared, private.train, rows, private.user_keys, KEY)
    for one, other in zip(free.toarray(), clipped.toarray(), strict=True):
        scale = min(1.0, private.clipping_norm / np.linalg.norm(one))
        assert np.linalg.norm(scale * one - other) <= 1e-5 * np.linalg.norm(other)
