"""Clipping: whatever users send, adding or removing one moves the sum by at most the clipping norm, in both forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.errors import PrivacyError, ProtocolError
from fedrec.models import blocks, coalescing
from fedrec.models.blocks import Dense, Entries, RowMoments, RowOuter, RowSparse
from fedrec.models.kernels import norms as norm_kernels
from fedrec.models.kernels import rows as kernels
from fedrec.privacy import clipping
from fedrec.privacy.clipping import MOST_USERS, BoundedSum, clip_scales

pytestmark = pytest.mark.usefixtures("form")

ROWS, DIM, SLOTS = 5, 2, 4


@dataclass(frozen=True)
class User:
    """What one user sends: a dense part, rows with values, and rows that are multiples of one vector."""

    dense: list[float]
    sparse: list[tuple[int, list[float]]]
    outer: list[tuple[int, float]]
    vector: list[float]


def contributions(users: list[User], dtype: torch.dtype = torch.float64) -> Mapping[str, blocks.Block]:
    """Stack users into blocks of one row each; what is left over is masked or has weight zero."""

    def tensor(rows: list[object]) -> Tensor:
        return torch.tensor(rows, dtype=dtype)

    garbage = [(0, [math.nan] * DIM), (ROWS + 10**9, [math.inf] * DIM), (-1, [1e300] * DIM), (1, [7.0] * DIM)]
    sparse = [user.sparse + garbage[: SLOTS - len(user.sparse)] for user in users]
    outer = [user.outer + [(0, 0.0)] * (SLOTS - len(user.outer)) for user in users]
    return {
        "dense": Dense(tensor([user.dense for user in users])),
        "sparse": RowSparse(
            torch.tensor([[i for i, _ in rows] for rows in sparse]),
            tensor([[v for _, v in rows] for rows in sparse]),
            torch.tensor([[slot < len(user.sparse) for slot in range(SLOTS)] for user in users]),
        ),
        "outer": RowOuter(
            Entries(
                torch.tensor([[i for i, _ in rows] for rows in outer]), tensor([[w for _, w in rows] for rows in outer])
            ),
            tensor([user.vector for user in users]),
        ),
    }


def empty_sum(clipping_norm: float) -> BoundedSum:
    shapes = {"dense": (3,), "sparse": (ROWS, DIM), "outer": (ROWS, DIM)}
    return BoundedSum({name: torch.zeros(*s, dtype=torch.float64) for name, s in shapes.items()}, clipping_norm)


def sum_of(users: list[User], clipping_norm: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the clipped sum of users, flattened."""
    total = empty_sum(clipping_norm)
    if users:
        total.add(contributions(users, dtype))
    return torch.cat([total.totals[name].flatten() for name in sorted(total.totals)])


def check_sensitivity(users: list[User], clipping_norm: float, dtype: torch.dtype = torch.float64) -> None:
    """Fail if adding or removing any one user moves the sum by more than the clipping norm."""
    whole = sum_of(users, clipping_norm, dtype)
    assert torch.isfinite(whole).all()
    for left_out in range(len(users)):
        rest = sum_of(users[:left_out] + users[left_out + 1 :], clipping_norm, dtype)
        alone = sum_of(users[left_out : left_out + 1], clipping_norm, dtype)
        assert torch.equal(whole - rest, alone), "what one user adds is the same, to the bit, whoever else is there"
        exact = sum(Fraction(value) ** 2 for value in alone.tolist())
        assert exact <= Fraction(clipping_norm) ** 2


ORDINARY = st.floats(-3, 3)
ANYTHING = st.one_of(ORDINARY, st.sampled_from([0.0, 1e-200, 1e18, 1e200, 1.7e308, math.nan, math.inf, -math.inf]))


def user_strategy(value: st.SearchStrategy[float]) -> st.SearchStrategy[User]:
    ids = st.integers(0, ROWS - 1)  # four slots over five rows: duplicates are common
    return st.builds(
        User,
        st.lists(value, min_size=3, max_size=3),
        st.lists(st.tuples(ids, st.lists(value, min_size=DIM, max_size=DIM)), max_size=SLOTS),
        st.lists(st.tuples(ids, value), max_size=SLOTS),
        st.lists(value, min_size=DIM, max_size=DIM),
    )


users_strategy = st.lists(user_strategy(ANYTHING), min_size=1, max_size=4)
ordinary_users = st.lists(user_strategy(ORDINARY), min_size=1, max_size=5)
clipping_norms = st.sampled_from([1e-3, 1.0, 37.5])
dtypes = st.sampled_from([torch.float32, torch.float64])

PLAIN = User([0.1, 0.2, 0.3], [(0, [0.1, 0.1])], [(1, 0.5)], [0.3, 0.4])
NOTHING = User([0.0] * 3, [], [], [0.0] * DIM)
DUPLICATES = User([0.0] * 3, [(2, [0.5, 0.0])] * 4, [], [0.0] * DIM)
DUPLICATE_WEIGHTS = User([0.0] * 3, [], [(2, 0.5)] * 4, [1.0, 0.0])
FULL_IN_EVERY_BLOCK = User([1.0, 0.0, 0.0], [(1, [1.0, 0.0])], [(2, 1.0)], [0.0, 1.0])
NOT_A_NUMBER = User([math.nan, 0.0, 0.0], [], [], [0.0] * DIM)
NOT_A_NUMBER_IN_A_ROW = User([0.0] * 3, [(1, [math.nan, 0.0])], [], [0.0] * DIM)
NOT_A_NUMBER_IN_A_WEIGHT = User([0.0] * 3, [], [(1, math.nan)], [1.0, 0.0])
JUST_ABOVE_THE_NORM = User([0.0] * 3, [(3, [1.0, 0.02])], [], [0.0] * DIM)
LARGE_ROW = User([0.0] * 3, [(3, [3.0, 4.0])], [], [0.0] * DIM)
LARGE_WEIGHT = User([0.0] * 3, [], [(3, 5.0)], [1.0, 1.0])
EXAMPLES = [
    *(PLAIN, NOTHING, DUPLICATES, DUPLICATE_WEIGHTS, FULL_IN_EVERY_BLOCK, NOT_A_NUMBER, NOT_A_NUMBER_IN_A_ROW),
    *(NOT_A_NUMBER_IN_A_WEIGHT, JUST_ABOVE_THE_NORM, LARGE_ROW, LARGE_WEIGHT),
]


@settings(deadline=None, max_examples=200)
@given(users_strategy, clipping_norms, dtypes)
def test_adding_or_removing_any_user_moves_the_sum_by_at_most_the_clipping_norm(
    users: list[User], clipping_norm: float, dtype: torch.dtype
) -> None:
    check_sensitivity(users, clipping_norm, dtype)


@pytest.mark.parametrize("clipping_norm", [1e-30, 1e-3, 1.0, math.nextafter(2.0, 1.0), 2.0, 1e30])
def test_sums_are_exact_up_to_the_most_users_and_multiples_of_the_quantum(clipping_norm: float) -> None:
    total = empty_sum(clipping_norm)
    assert 2.0**-27 < total.quantum / clipping_norm <= 2.0**-26 and math.frexp(total.quantum)[0] == 0.5
    assert MOST_USERS * clipping_norm <= total.quantum * 2.0**53, "whole numbers of quanta that float64 has"
    total.add(contributions([PLAIN, FULL_IN_EVERY_BLOCK, LARGE_ROW, LARGE_WEIGHT]))
    for block in total.totals.values():
        assert torch.equal(block / total.quantum, (block / total.quantum).round())


def test_rounding_that_would_lift_the_norm_has_room() -> None:
    """Every number is rounded up by half a quantum or so: without the room, the norm would be above the bound."""
    clipping_norm, num = 1.0, 10_000
    total = BoundedSum({"dense": torch.zeros(num, dtype=torch.float64)}, clipping_norm)
    value = (math.floor(clipping_norm / math.sqrt(num) / total.quantum) + 0.51) * total.quantum
    total.add({"dense": Dense(torch.full((1, num), value, dtype=torch.float64))})
    assert sum(Fraction(one) ** 2 for one in total.totals["dense"].tolist()) <= 1
    assert num * Fraction(math.ceil(value / total.quantum) * total.quantum) ** 2 > 1


def test_a_huge_vector_with_weights_that_underflow_when_squared_is_bounded_by_the_smallest_norms() -> None:
    for weight, length in ((2.7e-162, 1e154), (1e154, 2.7e-162)):
        user = User([0.0] * 3, [], [(1, weight)], [length, 0.0])
        for clipping_norm in (1e-30, 1e-10):
            assert torch.linalg.vector_norm(sum_of([user], clipping_norm)) <= clipping_norm


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1e-3])
def test_the_norm_of_very_many_rows_is_exact_far_below_the_margin_of_clipping(value: float) -> None:
    num = 300_000
    block = RowSparse(torch.arange(num)[None], torch.full((1, num, 2), value, dtype=torch.float64))
    exact = 2 * num * Fraction(value) ** 2
    assert abs(Fraction(float(block.squared_norms()[0])) / exact - 1) < Fraction(1, 10**13)


@pytest.mark.parametrize("user", EXAMPLES, ids=str)
def test_the_examples_that_the_mutations_below_are_caught_with(user: User) -> None:
    check_sensitivity([PLAIN, user, PLAIN], 1.0)


def per_block_scales(parts: Mapping[str, blocks.Block], clipping_norm: float) -> Tensor:
    return torch.stack([clip_scales({name: block}, clipping_norm) for name, block in parts.items()]).amin(dim=0)


def norms_in_float16(start: int, stop: int, values: np.ndarray, mask: np.ndarray, norms: np.ndarray) -> None:
    counted = np.where(mask[:, :, None], values, 0).astype(np.float16)
    norms[start:stop] = np.square(counted).sum(axis=(1, 2))[start:stop]


def norms_of_the_first_rows(start: int, stop: int, values: np.ndarray, mask: np.ndarray, norms: np.ndarray) -> None:
    norms[start:stop] = np.where(mask[:, :1], np.square(values[:, 0]), 0).sum(axis=1)[start:stop] / 2


ADD_ROWS, ADD_MULTIPLES = kernels.add_rows, kernels.add_multiples


def add_rows_unscaled(start: int, stop: int, *arrays: np.ndarray) -> None:
    ids, values, mask, scale, *rest = arrays
    ADD_ROWS(start, stop, ids, values, mask, np.ones_like(scale), *rest)


def add_rows_of_everybody(start: int, stop: int, *arrays: np.ndarray) -> None:
    ids, values, mask, scale, total, _ = arrays
    for user, k in zip(*np.nonzero(mask), strict=True):
        if start <= ids[user, k] < stop:
            total[ids[user, k]] += scale[user] * values[user, k]


def add_multiples_unscaled(start: int, stop: int, *arrays: np.ndarray) -> None:
    indptr, users, weights, scale, *rest = arrays
    ADD_MULTIPLES(start, stop, indptr, users, weights, np.ones_like(scale), *rest)


MUTATIONS: dict[str, tuple[object, str, Callable[..., object], User]] = {
    "no coalescing of rows": (blocks, "coalesce", lambda ids, values, mask: (ids, values), DUPLICATES),
    "no coalescing of weights": (blocks, "coalesce", lambda ids, values, mask: (ids, values), DUPLICATE_WEIGHTS),
    "each block clipped alone": (clipping, "clip_scales", per_block_scales, FULL_IN_EVERY_BLOCK),
    "no clipping": (clipping, "clip_scales", lambda parts, norm: clip_scales(parts, math.inf), FULL_IN_EVERY_BLOCK),
    "not-a-number times zero": (blocks, "_zero_unused", lambda values, scale: values, NOT_A_NUMBER),
    "not-a-number passes": (
        clipping,
        "clip_scales",
        lambda parts, norm: torch.ones(len(parts["dense"].finite()), dtype=torch.float64),
        NOT_A_NUMBER,
    ),
}

MUTATED_KERNELS: dict[str, tuple[object, str, Callable[..., object], User]] = {
    "duplicate rows overlooked": (blocks, "any_twice", lambda ids, mask: False, DUPLICATES),
    "duplicate weights overlooked": (coalescing, "any_twice", lambda ids, mask: False, DUPLICATE_WEIGHTS),
    "norms in float16": (norm_kernels, "sums_of_squares", norms_in_float16, JUST_ABOVE_THE_NORM),
    "norms of some rows": (norm_kernels, "sums_of_squares", norms_of_the_first_rows, LARGE_ROW),
    "rows added unscaled": (kernels, "add_rows", add_rows_unscaled, LARGE_ROW),
    "rows of users of scale zero": (kernels, "add_rows", add_rows_of_everybody, NOT_A_NUMBER_IN_A_ROW),
    "multiples added unscaled": (kernels, "add_multiples", add_multiples_unscaled, LARGE_WEIGHT),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_sensitivity_check_sees_a_broken_clipping(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, broken, user = MUTATIONS[mutation]
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(AssertionError):
        check_sensitivity([PLAIN, user, PLAIN], 1.0)


@pytest.mark.parametrize("mutation", MUTATED_KERNELS)
def test_the_sensitivity_check_sees_a_broken_kernel(mutation: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, broken, user = MUTATED_KERNELS[mutation]
    monkeypatch.setattr(owner, name, broken)
    if form == "reference":
        check_sensitivity([PLAIN, user, PLAIN], 1.0)
        return
    with pytest.raises(AssertionError):
        check_sensitivity([PLAIN, user, PLAIN], 1.0)


CANCELLING = {
    "rows": lambda huge: User([0.0] * 3, [(0, [huge, huge]), (0, [-huge, -huge])], [], [0.0] * DIM),
    "weights": lambda huge: User([0.0] * 3, [], [(1, huge), (1, -huge)], [1.0, 1.0]),
}


@pytest.mark.parametrize("huge", [1e18, 1e150])
@pytest.mark.parametrize("kind", CANCELLING)
@pytest.mark.parametrize("place", [15, 30], ids=["between", "last"])
def test_duplicates_that_cancel_leave_the_others_alone(kind: str, huge: float, place: int) -> None:
    users = [User([0.0] * 3, [(0, [1.0, 1.0])], [(1, 1.0)], [1.0, 1.0])] * 30
    users.insert(place, CANCELLING[kind](huge))
    whole, others = sum_of(users, 1.0), sum_of(users[:place] + users[place + 1 :], 1.0)
    assert torch.linalg.vector_norm(whole - others) <= 1.0


@settings(deadline=None)
@given(ordinary_users)
def test_infinite_clip_is_the_plain_sum(users: list[User]) -> None:
    expected = {"dense": torch.zeros(3), "sparse": torch.zeros(ROWS, DIM), "outer": torch.zeros(ROWS, DIM)}
    expected = {name: total.to(torch.float64) for name, total in expected.items()}
    for user in users:
        expected["dense"] += torch.tensor(user.dense, dtype=torch.float64)
        for row, values in user.sparse:
            expected["sparse"][row] += torch.tensor(values, dtype=torch.float64)
        for row, weight in user.outer:
            expected["outer"][row] += weight * torch.tensor(user.vector, dtype=torch.float64)
    flat = torch.cat([expected[name].flatten() for name in sorted(expected)])
    torch.testing.assert_close(sum_of(users, math.inf), flat, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(st.lists(user_strategy(ANYTHING), min_size=2, max_size=5), st.integers(1, 4), clipping_norms)
def test_split_into_batches_and_nodes_does_not_change_the_sum(
    users: list[User], cut: int, clipping_norm: float
) -> None:
    cut = min(cut, len(users) - 1)
    batches, left, right = empty_sum(clipping_norm), empty_sum(clipping_norm), empty_sum(clipping_norm)
    batches.add(contributions(users[:cut]))
    batches.add(contributions(users[cut:]))
    left.add(contributions(users[:cut]))
    right.add(contributions(users[cut:]))
    left.merge(right)
    together = empty_sum(clipping_norm)
    together.add(contributions(users))
    for name, total in together.totals.items():
        for other in (batches, left):
            assert torch.equal(other.totals[name], total)


def test_scales_leave_small_users_alone_and_zero_the_unusable() -> None:
    scales = clip_scales(contributions([PLAIN, NOTHING, FULL_IN_EVERY_BLOCK, NOT_A_NUMBER]), 1.0)
    assert scales[:2].tolist() == [1.0, 1.0] and scales[3] == 0
    assert scales[2].item() == pytest.approx(1 / math.sqrt(3), rel=1e-9)
    assert clip_scales(contributions([NOT_A_NUMBER, PLAIN]), math.inf).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_entry_anywhere_zeroes_the_whole_user(bad: float) -> None:
    spoiled = [
        User([bad, 1.0, 1.0], PLAIN.sparse, PLAIN.outer, PLAIN.vector),
        User(PLAIN.dense, [(0, [1.0, bad])], PLAIN.outer, PLAIN.vector),
        User(PLAIN.dense, [(0, [1.0, bad]), (0, [1.0, 1.0])], PLAIN.outer, PLAIN.vector),
        User(PLAIN.dense, PLAIN.sparse, [(1, bad)], PLAIN.vector),
        User(PLAIN.dense, PLAIN.sparse, PLAIN.outer, [bad, 1.0]),
    ]
    for clipping_norm in (1.0, math.inf):
        for user in spoiled:
            assert torch.equal(sum_of([PLAIN, user], clipping_norm), sum_of([PLAIN], clipping_norm))


def test_sums_of_other_norms_or_blocks_are_refused() -> None:
    with pytest.raises(PrivacyError, match="clipped to 2"):
        empty_sum(1.0).merge(empty_sum(2.0))
    with pytest.raises(ProtocolError, match="must agree"):
        empty_sum(1.0).add({"dense": Dense(torch.zeros(1, 3))})
    for norm in (0.0, -1.0, math.nan):
        with pytest.raises(PrivacyError, match="is not positive"):
            clip_scales(contributions([PLAIN]), norm)


def test_a_block_without_a_bound_is_refused_under_a_clipping_norm() -> None:
    block = RowMoments(Entries(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2)), torch.ones(1, 3))
    total = torch.zeros(2, 6, dtype=torch.float64)
    with pytest.raises(PrivacyError, match="no bounded form"):
        BoundedSum({"moments": total}, 1.0).add({"moments": block})
    BoundedSum({"moments": total}, math.inf).add({"moments": block})
    assert torch.equal(total[0], torch.full((6,), 2.0, dtype=torch.float64))
