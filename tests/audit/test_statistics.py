"""The attacker's tools: contributions as rows, joint decoding, shadow calibration, measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from fedrec.audit.decoding import decode, inner_products
from fedrec.audit.measures import area_under_curve, mean_interval, true_positive_rate
from fedrec.audit.shadows import calibrated_scores
from fedrec.audit.subject import rounds, sum_over
from fedrec.audit.vectors import _by_adding, _triples, contribution_rows
from fedrec.errors import DataError
from fedrec.models.blocks import Dense, Entries, RowOuter, RowSparse, SecondMoments
from fedrec.randomness import Key
from tests.audit.subjects import subject


@pytest.mark.parametrize("model, epsilon", [("als", None), ("als", 8.0), ("mf", 8.0), ("popularity", 1.0)])
def test_rows_are_what_nodes_of_one_user_send(model: str, epsilon: float | None) -> None:
    target = subject(model, epsilon)
    done = list(rounds(target, Key.from_seed(1)))[-1]
    users = np.array([7, 3, 101, 55])
    found, layout = contribution_rows(target, done.shared, target.train, users, target.user_keys, done.key)
    for row, user in zip(found.toarray(), users, strict=True):
        alone = sum_over(target, done.shared, target.train, np.array([user]), done.key)
        assert row == pytest.approx(layout.flatten(alone.totals), rel=1e-5, abs=1e-7)
        assert np.linalg.norm(row) > 0
        if epsilon is not None:
            assert np.linalg.norm(row) <= target.clipping_norm * (1 + 1e-9)


def test_rows_of_every_kind_of_block_are_what_the_block_adds() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[0, 2, 2], [4, 1, 0]])
    weights = torch.tensor([[1.0, 0.5, 0.25], [2.0, -1.0, 0.0]], dtype=torch.float64)
    values, vectors = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    blocks = [
        (RowOuter(Entries(ids, weights), vectors), torch.zeros(5, 4, dtype=torch.float64)),
        (RowSparse(ids, values, mask), torch.zeros(5, 4, dtype=torch.float64)),
        (SecondMoments(vectors), torch.zeros(10, dtype=torch.float64)),
        (Dense(values), torch.zeros(3, 4, dtype=torch.float64)),
    ]
    for block, total in blocks:
        tables = []
        for members, columns, entries in (_triples(block, total), _by_adding(block, total)):
            tables.append(csr_matrix((entries, (members, columns)), shape=(2, total.numel())).toarray())
        assert tables[0] == pytest.approx(tables[1])


def test_decoding_an_exact_sum_names_everybody() -> None:
    rng = np.random.default_rng(0)
    rows = 1.0 + rng.normal(size=(60, 200))  # far from orthogonal
    present = rng.random(60) < 0.5
    residual = rows[present].sum(axis=0) - 0.5 * rows.sum(axis=0)
    found = decode(csr_matrix(rows), residual, 0.0, 0.25)
    assert found == pytest.approx(np.where(present, 0.5, -0.5), abs=1e-4)
    assert area_under_curve(inner_products(csr_matrix(rows), residual), present) < 0.99


def test_decoding_a_noisy_sum_is_the_best_linear_estimate() -> None:
    rng = np.random.default_rng(1)
    rows, noise, variance = rng.normal(size=(30, 80)), 3.0, 0.1
    residual = rng.normal(size=80)
    matrix = rows @ rows.T + noise**2 / variance * np.eye(30)
    expected = np.linalg.solve(matrix, rows @ residual)
    assert decode(csr_matrix(rows), residual, noise, variance) == pytest.approx(expected, abs=1e-6)


def test_somebody_who_sends_nothing_scores_zero() -> None:
    rows = csr_matrix(np.array([[0.0, 0.0], [1.0, 2.0]]))
    assert decode(rows, np.array([1.0, 1.0]), 1.0, 0.25)[0] == 0.0
    assert inner_products(rows, np.array([1.0, 1.0]))[0] == 0.0


def test_shadow_runs_bring_out_a_shift_that_users_differ_more_than() -> None:
    """Users' own means spread over 10, membership shifts by 1, noise is 0.5: raw .53, calibrated as good as can be."""
    rng, num = np.random.default_rng(2), 600
    base, coins = rng.normal(size=num) * 10, rng.random((17, num)) < 0.5
    values = base + coins + 0.5 * rng.normal(size=(17, num))
    raw = area_under_curve(values[0], coins[0])
    calibrated = area_under_curve(calibrated_scores(values[0], values[1:], coins[1:]), coins[0])
    assert raw < 0.6
    assert 0.87 < calibrated < 0.96  # known means: Phi(2 / sqrt 2) = .921


def test_shadow_runs_find_nothing_where_there_is_nothing() -> None:
    rng, num = np.random.default_rng(3), 2000
    coins, values = rng.random((9, num)) < 0.5, rng.normal(size=(9, num))
    assert abs(area_under_curve(calibrated_scores(values[0], values[1:], coins[1:]), coins[0]) - 0.5) < 0.05


def test_a_user_who_was_never_out_in_a_shadow_run_is_still_scored() -> None:
    coins = np.array([[True, False], [True, True], [True, False]])
    scores = calibrated_scores(np.array([1.0, 1.0]), np.array([[1.0, 0.0], [1.1, 1.0], [0.9, 0.1]]), coins)
    assert np.isfinite(scores).all()


def test_area_and_true_positives_by_hand() -> None:
    scores, included = np.array([5.0, 4.0, 4.0, 1.0, 0.0]), np.array([True, True, False, False, True])
    assert area_under_curve(scores, included) == pytest.approx((2 + 1.5 + 0) / 6)
    assert true_positive_rate(scores, included, 0.01) == pytest.approx(1 / 3)  # only 5.0 is above every other
    assert true_positive_rate(scores, included, 0.5) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="members"):
        area_under_curve(scores, np.ones(5, dtype=bool))


def test_interval_is_the_t_interval_and_stays_within_shares() -> None:
    mean, low, high = mean_interval([0.5, 0.6, 0.7], 0.95)
    assert (mean, low, high) == pytest.approx((0.6, 0.6 - 0.24841, 0.6 + 0.24841), abs=1e-4)
    assert mean_interval([1.0, 0.9, 1.0], 0.95)[2] == 1.0
    assert mean_interval([0.7], 0.95) == (0.7, None, None)
