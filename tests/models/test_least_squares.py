"""Least squares: the compiled solves against plain torch, and what becomes of systems that have no solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.compiled import reference
from fedrec.errors import ProtocolError
from fedrec.models.least_squares import from_triangle, solve_triangles, solve_users
from tests.threads import num_threads

TOLERANCE = {torch.float32: {"rtol": 2e-3, "atol": 2e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-11}}


def users(dim: int, dtype: torch.dtype, num_users: int = 9, length: int = 13) -> list[Tensor]:
    """Return items, common, ids, weights and ridge; users have lengths from 0, and some a weight 0 in the middle."""
    generator = torch.Generator().manual_seed(dim)
    items = torch.randn(40, dim, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 40, (num_users, length), generator=generator)
    weights = 0.5 + torch.rand(num_users, length, generator=generator, dtype=torch.float64)
    lengths = torch.arange(num_users) * length // (num_users - 1)
    weights[torch.arange(length) >= lengths[:, None]] = 0
    weights[::2, 3] = 0
    ids[weights == 0] = 0
    ridge = 0.5 + torch.rand(num_users, generator=generator, dtype=torch.float64)
    common = 0.3 * items.T @ items
    return [items.to(dtype), common.to(dtype), ids, weights.to(dtype), ridge.to(dtype)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [1, 3, 16, 33, 64])
def test_compiled_user_solve_equals_torch_and_a_dense_loop(dim: int, dtype: torch.dtype) -> None:
    items, common, ids, weights, ridge = arguments = users(dim, dtype)
    found = solve_users(*arguments)
    with reference():
        plain = solve_users(*arguments)
    assert found.dtype == plain.dtype == dtype
    torch.testing.assert_close(found, plain, **TOLERANCE[dtype])
    for user in range(len(ids)):
        own = items[ids[user]].double().numpy() * weights[user].double().numpy()[:, None]
        matrix = common.double().numpy() + own.T @ items[ids[user]].double().numpy() + ridge[user].item() * np.eye(dim)
        expected = np.linalg.solve(matrix, own.sum(axis=0))
        np.testing.assert_allclose(found[user].numpy(), expected, **TOLERANCE[dtype])
    assert not found[0].any(), "a user without interactions is at zero"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [1, 3, 16, 33, 64])
def test_compiled_triangle_solve_equals_torch_and_a_dense_loop(dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(dim)
    half = torch.randn(7, dim, dim, generator=generator, dtype=torch.float64)
    upper = torch.triu_indices(dim, dim)
    triangles = (half @ half.transpose(1, 2))[:, upper[0], upper[1]].to(dtype)
    common, ridge = torch.eye(dim, dtype=torch.float64), torch.rand(7, generator=generator, dtype=torch.float64)
    right = torch.randn(7, dim, generator=generator, dtype=torch.float64)
    found = solve_triangles(triangles, common, ridge, right)
    with reference():
        plain = solve_triangles(triangles, common, ridge, right)
    assert found.dtype == plain.dtype == torch.float64
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-11)
    matrix = from_triangle(triangles.double(), dim) + common + ridge[:, None, None] * torch.eye(dim)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right), rtol=1e-9, atol=1e-11)
    assert torch.equal(matrix, matrix.transpose(1, 2))


@pytest.mark.usefixtures("form")
def test_a_system_without_a_solution_spoils_its_own_user_only() -> None:
    arguments = users(5, torch.float64)
    alone = solve_users(*arguments)
    ridge = arguments[4].clone()
    for bad in (-1e4, float("nan"), float("-inf")):
        ridge[3] = bad
        found = solve_users(*arguments[:4], ridge)
        assert found[3].isnan().all()
        others = torch.arange(len(found)) != 3
        torch.testing.assert_close(found[others], alone[others], rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_an_item_that_is_not_finite_spoils_the_users_who_met_it_only(dim: int, bad: float) -> None:
    items, common, ids, weights, ridge = users(dim, torch.float64)
    ids[ids == 17] = 18
    ids[5, 1] = 17
    assert weights[5, 1] != 0
    items[17, dim - 1] = bad
    found = solve_users(items, common, ids, weights, ridge)
    assert not found[5].isfinite().any()
    assert found[torch.arange(len(found)) != 5].isfinite().all()


@pytest.mark.usefixtures("form")
def test_a_row_without_a_solution_spoils_itself_only() -> None:
    triangles = torch.tensor([[1.0, 0.0, 1.0], [-5.0, 0.0, 1.0], [float("nan"), 0.0, 1.0], [1.0, float("inf"), 1.0]])
    found = solve_triangles(triangles, torch.eye(2), torch.zeros(4), torch.ones(4, 2))
    torch.testing.assert_close(found[0], torch.full((2,), 0.5, dtype=torch.float64))
    assert found[1:].isnan().all()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("bad", [-1, 40, 2**40, -(2**62)])
def test_items_that_the_table_does_not_have_are_refused(bad: int) -> None:
    items, common, ids, weights, ridge = users(4, torch.float32)
    ids[2, 0] = bad
    with pytest.raises(ProtocolError, match="row ids"):
        solve_users(items, common, ids, weights, ridge)


@pytest.mark.usefixtures("form")
def test_no_users_and_no_interactions() -> None:
    items, common = torch.randn(4, 3), torch.eye(3)
    assert solve_users(
        items, common, torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, 5), torch.zeros(0)
    ).shape == (
        0,
        3,
    )
    nothing = solve_users(items, common, torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0), torch.ones(2))
    assert torch.equal(nothing, torch.zeros(2, 3))
    assert solve_triangles(torch.zeros(0, 6), common, torch.zeros(0), torch.zeros(0, 3)).shape == (0, 3)


def test_padding_company_and_threads_do_not_change_a_bit() -> None:
    items, common, ids, weights, ridge = users(16, torch.float32)
    with num_threads(1):
        one = solve_users(items, common, ids, weights, ridge)
    wide_ids, wide_weights = torch.nn.functional.pad(ids, (0, 9)), torch.nn.functional.pad(weights, (0, 9))
    for threads in (2, 3):
        with num_threads(threads):
            assert torch.equal(solve_users(items, common, ids, weights, ridge), one)
            assert torch.equal(solve_users(items, common, wide_ids, wide_weights, ridge), one)
    for user in range(len(ids)):
        own = slice(user, user + 1)
        assert torch.equal(solve_users(items, common, ids[own], weights[own], ridge[own])[0], one[user])


@pytest.mark.usefixtures("form")
def test_layout_of_the_arguments_does_not_matter_and_they_stay_as_they_are() -> None:
    arguments = users(6, torch.float64)
    kept = [argument.clone() for argument in arguments]
    expected = solve_users(*arguments)
    turned = [argument.T.contiguous().T if argument.ndim == 2 else argument for argument in arguments]
    torch.testing.assert_close(solve_users(*turned), expected, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(argument, before) for argument, before in zip(arguments, kept, strict=True))
