"""Blocks: what is measured is what is added, the same in both forms, for any number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.compiled import reference
from fedrec.errors import PrivacyError, ProtocolError
from fedrec.models.blocks import (
    Block,
    Dense,
    Entries,
    PairCounts,
    RowMoments,
    RowOuter,
    RowSparse,
    SecondMoments,
    from_moments,
)
from fedrec.models.coalescing import coalesce
from tests.threads import num_threads

ROWS = 6
GARBAGE = [math.nan, math.inf, -math.inf, 1e300]


@dataclass(frozen=True)
class Users:
    """Random users: rows, values, a mask with garbage behind it, a vector, and the scale of each."""

    ids: Tensor
    values: Tensor
    mask: Tensor
    weights: Tensor
    vectors: Tensor
    scale: Tensor


NUMBERS = st.one_of(st.floats(-3, 3), st.sampled_from([0.0, 1e12, -1e12, 1e-150]))


@st.composite
def users(draw: st.DrawFn) -> Users:
    """Draw users; those with a NaN have scale 0, as the clipping would have it."""
    num_users, slots, dim = draw(st.integers(0, 5)), draw(st.integers(0, 5)), draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))

    def table(values: st.SearchStrategy[float], *shape: int) -> Tensor:
        size = math.prod(shape)
        return torch.tensor(draw(st.lists(values, min_size=size, max_size=size))).to(torch.float64).reshape(shape)

    ids = table(st.integers(0, ROWS - 1), num_users, slots).to(torch.int64)
    mask = table(st.booleans(), num_users, slots).bool()
    values, weights = table(NUMBERS, num_users, slots, dim), table(NUMBERS, num_users, slots)
    values = torch.where(mask[:, :, None], values, draw(st.sampled_from(GARBAGE)))
    ids = torch.where(mask, ids, draw(st.sampled_from([0, -7, ROWS, 2**40])))
    scale = table(st.sampled_from([0.0, 1.0, 0.3]), num_users)
    spoiled = table(st.booleans(), num_users).bool() & (scale == 0)
    values[spoiled & mask.any(dim=1)] = math.nan
    vectors = torch.where(spoiled[:, None], math.nan, table(NUMBERS, num_users, dim))
    weights = torch.where(spoiled[:, None], math.nan, weights)
    return Users(ids, values.to(dtype), mask, weights.to(dtype), vectors.to(dtype), scale)


def entries(users: Users) -> Entries:
    return Entries(users.ids.where(users.mask, 0), users.weights.where(users.mask, 0.0))


BLOCKS: dict[str, Callable[[Users], Block]] = {
    "dense": lambda users: Dense(users.vectors),
    "moments": lambda users: SecondMoments(users.vectors),
    "sparse": lambda users: RowSparse(users.ids, users.values, users.mask),
    "outer": lambda users: RowOuter(entries(users), users.vectors),
    "row-moments": lambda users: RowMoments(entries(users), users.vectors),
}
BOUNDED = ["dense", "moments", "sparse", "outer"]


def shape_of(name: str, dim: int) -> tuple[int, ...]:
    triangle = dim * (dim + 1) // 2
    shapes = {"dense": (dim,), "moments": (triangle,), "sparse": (ROWS, dim), "outer": (ROWS, dim)}
    return shapes.get(name, (ROWS, triangle))


def flat_moments(vector: Tensor, factor: float) -> Tensor:
    upper = torch.triu_indices(len(vector), len(vector))
    moments = vector[upper[0]] * vector[upper[1]]
    return torch.where(upper[0] == upper[1], moments, factor * moments)


def parts(name: str, users: Users) -> Tensor:
    """Write out what each user adds: (B, size of the total), float64."""
    dim = users.vectors.shape[1]
    found = torch.zeros(len(users.ids), *shape_of(name, dim), dtype=torch.float64)
    for user, part in enumerate(found):
        vector = users.vectors[user].double()
        if name == "dense":
            part += vector
        elif name == "moments":
            part += flat_moments(vector, 2**0.5)
        for k in users.mask[user].nonzero()[:, 0].tolist():
            row, weight = int(users.ids[user, k]), users.weights[user, k].double()
            if name == "sparse":
                part[row] += users.values[user, k].double()
            elif name == "outer":
                part[row] += weight * vector
            elif name == "row-moments":
                part[row] += weight * flat_moments(vector, 1.0)
    return found.flatten(start_dim=1)


def summed(name: str, users: Users) -> Tensor:
    total = torch.zeros(shape_of(name, users.vectors.shape[1]), dtype=torch.float64)
    BLOCKS[name](users).add_to(total, users.scale)
    return total


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", BLOCKS)
@settings(deadline=None, max_examples=60)
@given(users())
def test_sum_is_what_the_scaled_users_add_one_by_one(name: str, users: Users) -> None:
    expected = parts(name, users)
    used = users.scale != 0
    expected = (users.scale[used, None] * expected[used]).sum(dim=0)
    largest = float(users.values[users.mask].nan_to_num().abs().amax()) if users.mask.any() else 1.0
    size = max(1.0, largest, float(users.vectors.nan_to_num().abs().amax() if users.vectors.numel() else 1.0))
    weight = max(1.0, float(users.weights.nan_to_num().abs().amax() if users.weights.numel() else 1.0))
    torch.testing.assert_close(summed(name, users).flatten(), expected, rtol=1e-9, atol=1e-12 * weight * size**2)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", BOUNDED)
@settings(deadline=None, max_examples=60)
@given(users())
def test_squared_norm_is_that_of_what_the_user_adds(name: str, users: Users) -> None:
    block, norms = BLOCKS[name](users), parts(name, users).square().sum(dim=1)
    finite, found = block.finite(), block.squared_norms()
    assert found.dtype == torch.float64
    assert not (finite & ~norms.isfinite()).any(), "what is not finite can't pass for finite"
    torch.testing.assert_close(found[finite], norms[finite], rtol=1e-7, atol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
@settings(deadline=None, max_examples=60)
@given(users())
def test_compiled_equals_reference(name: str, users: Users) -> None:
    found, block = summed(name, users), BLOCKS[name](users)
    with reference():
        plain, plain_block = summed(name, users), BLOCKS[name](users)
        finite = plain_block.finite()
        norms = plain_block.squared_norms() if name in BOUNDED else torch.zeros(0)
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12 * max(1.0, float(plain.abs().max())))
    assert torch.equal(block.finite(), finite)
    if name in BOUNDED:
        torch.testing.assert_close(block.squared_norms()[finite], norms[finite], rtol=1e-12, atol=0)
        assert not block.squared_norms()[~finite].isfinite().any()


@settings(deadline=None, max_examples=40)
@given(users())
def test_a_block_measured_in_one_form_may_be_added_in_the_other(users: Users) -> None:
    expected, total = summed("sparse", users), torch.zeros(ROWS, users.vectors.shape[1], dtype=torch.float64)
    block = BLOCKS["sparse"](users)
    block.squared_norms()
    with reference():
        block.add_to(total, users.scale)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-3)


def many_users(dim: int = 5, num_users: int = 70, slots: int = 9) -> Users:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, ROWS, (num_users, slots), generator=generator)
    mask = torch.rand(num_users, slots, generator=generator) < 0.8
    values = torch.randn(num_users, slots, dim, generator=generator)
    scale = torch.rand(num_users, generator=generator, dtype=torch.float64)
    scale[::7] = 0
    return Users(ids, values, mask, values[:, :, 0], values[:, 0] * 1.1, scale)


@pytest.mark.parametrize("name", ["sparse", "outer", "row-moments"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_are_summed_to_the_same_bits_by_any_number_of_threads(name: str, dtype: torch.dtype) -> None:
    users = many_users()
    found = []
    for threads in (1, 2, 3, 8):
        with num_threads(threads):
            total = torch.zeros(shape_of(name, 5), dtype=dtype)
            block = BLOCKS[name](users)
            if name in BOUNDED:
                found.append(block.squared_norms())
            block.add_to(total, users.scale)
            found.append(total)
    step = 2 if name in BOUNDED else 1
    assert all(torch.equal(other, first) for k, first in enumerate(found[:step]) for other in found[k::step])


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", ["sparse", "outer"])
@pytest.mark.parametrize("huge", [1e18, 1e140])
def test_duplicates_that_cancel_add_exactly_what_was_measured(name: str, huge: float) -> None:
    ids = torch.tensor([[0, 1, 2, 2], [2, 2, 0, 1]])
    signed = torch.tensor([[1.0, 1.0, huge, -huge], [huge, -huge, 1.0, 1.0]], dtype=torch.float64)
    ones = torch.ones(2, 1, dtype=torch.float64)
    block = RowSparse(ids, signed[:, :, None]) if name == "sparse" else RowOuter(Entries(ids, signed), ones)
    total = torch.zeros(3, 1, dtype=torch.float64)
    block.add_to(total, torch.ones(2, dtype=torch.float64))
    assert block.squared_norms().tolist() == [2.0, 2.0] and total[:, 0].tolist() == [2.0, 2.0, 0.0]


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("row", [2, 2**24 + 1, 2**40], ids=["", "of-a-large-table", "of-no-table"])
def test_duplicate_of_any_one_user_is_summed_before_it_is_measured(threads: int, row: int) -> None:
    for user in range(7):
        ids = torch.arange(4).repeat(7, 1)
        ids[user, 1:3] = row
        ones = torch.ones(7, 4, dtype=torch.float64)
        expected = torch.full((7,), 4.0, dtype=torch.float64)
        expected[user] = 1 + 2**2 + 1
        with num_threads(threads):
            for block in (RowSparse(ids, ones[:, :, None]), RowOuter(Entries(ids, ones), ones[:, :1])):
                assert torch.equal(block.squared_norms(), expected)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("spoil", [math.nan, math.inf, -math.inf])
def test_users_of_scale_zero_add_exactly_nothing_whatever_they_hold(name: str, spoil: float) -> None:
    users = many_users()
    unused = users.scale == 0
    expected = summed(name, users)
    for tensor in (users.values, users.weights, users.vectors):
        tensor[unused] = spoil
    assert torch.equal(summed(name, users), expected)
    nobody = Users(users.ids, users.values, users.mask, users.weights, users.vectors, torch.zeros_like(users.scale))
    assert not summed(name, nobody).any()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", BLOCKS)
def test_no_users_and_no_rows_add_nothing(name: str) -> None:
    for num_users, slots in ((0, 0), (0, 4), (3, 0)):
        nothing = many_users(num_users=num_users, slots=max(slots, 1))
        ids, values, mask = (tensor[:, :slots] for tensor in (nothing.ids, nothing.values, nothing.mask))
        nothing = Users(ids, values, mask, nothing.weights[:, :slots], 0 * nothing.vectors, nothing.scale)
        block = BLOCKS[name](nothing)
        assert block.finite().tolist() == [True] * num_users
        assert name not in BOUNDED or block.squared_norms().tolist() == pytest.approx([0.0] * num_users)
        assert not summed(name, nothing).any()


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_from_moments_turns_a_sum_of_second_moments_back_into_a_matrix(dim: int) -> None:
    vectors = torch.randn(20, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.linspace(0, 1, 20, dtype=torch.float64)
    total = torch.zeros(dim * (dim + 1) // 2, dtype=torch.float64)
    SecondMoments(vectors).add_to(total, scale)
    matrix = from_moments(total, dim)
    torch.testing.assert_close(matrix, vectors.T @ (vectors * scale[:, None]), rtol=1e-12, atol=1e-12)
    assert torch.equal(matrix, matrix.T)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("bad", [-1, ROWS, 2**35])
@pytest.mark.parametrize("name", ["sparse", "outer", "row-moments"])
@pytest.mark.parametrize("twice", [False, True], ids=["", "beside-a-duplicate"])
def test_rows_that_the_sum_does_not_have_never_reach_it(name: str, bad: int, twice: bool) -> None:
    users = many_users(num_users=2, slots=3)
    users.ids[:] = torch.tensor([[0, 1, 2], [3, 4, 4 if twice else 5]])
    users.mask[:] = True
    users.ids[0, 1] = bad
    memory = torch.zeros(3 * ROWS, shape_of(name, 5)[1], dtype=torch.float64)
    with pytest.raises(ProtocolError, match="row ids"):
        BLOCKS[name](users).add_to(memory[ROWS : 2 * ROWS], users.scale)
    assert not memory.any()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", ["sparse", "outer", "row-moments"])
def test_shapes_that_do_not_agree_are_refused(name: str) -> None:
    users = many_users()
    with pytest.raises(ProtocolError, match="width"):
        BLOCKS[name](users).add_to(torch.zeros(ROWS, 40, dtype=torch.float64), users.scale)
    ids = torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(ProtocolError, match="shapes"):
        RowSparse(ids, torch.zeros(4, 3, 2))
    with pytest.raises(ProtocolError, match="shapes"):
        RowSparse(ids, torch.zeros(4, 2, 2), torch.ones(4, 1, dtype=torch.bool))
    with pytest.raises(ProtocolError, match="shapes"):
        Entries(ids, torch.zeros(4, 1))
    for block in (RowOuter, RowMoments):
        with pytest.raises(ProtocolError, match="shapes"):
            block(Entries(ids, torch.zeros(4, 2)), torch.zeros(1, 3))


@pytest.mark.usefixtures("form")
def test_float32_rows_of_any_finite_size_are_finite() -> None:
    huge = torch.full((1, 3, 2), torch.finfo(torch.float32).max)
    block = RowSparse(torch.tensor([[1, 1, 1]]), huge)
    assert block.finite().tolist() == [True] and math.isfinite(block.squared_norms().item())
    assert block.squared_norms().item() == pytest.approx(2 * (3 * huge[0, 0, 0].item()) ** 2)


def test_statistics_without_a_bound_have_no_norm() -> None:
    users = many_users()
    for block in (RowMoments(entries(users), users.vectors), PairCounts(users.ids, users.weights)):
        with pytest.raises(PrivacyError, match="no bounded form"):
            block.squared_norms()


@pytest.mark.usefixtures("form")
@settings(deadline=None)
@given(users())
def test_coalescing_keeps_sums_and_leaves_no_id_twice(users: Users) -> None:
    ids, values = users.ids.where(users.mask, 0), users.weights.nan_to_num().where(users.mask, 0.0)
    new_ids, new_values = coalesce(ids, values, users.mask)
    for user in range(len(ids)):
        expected = torch.zeros(ROWS, dtype=torch.float64).index_add_(0, ids[user], values[user].double())
        found = torch.zeros(ROWS, dtype=torch.float64).index_add_(0, new_ids[user], new_values[user].double())
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-3)
        left = new_ids[user][new_values[user] != 0].tolist()
        assert len(left) == len(set(left))
