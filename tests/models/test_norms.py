"""Squared norms: right to far below the margin of clipping, and the same whatever else is there."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.compiled import reference
from fedrec.models.norms import squared_norms

NUMBERS = st.lists(
    st.builds(
        math.ldexp, st.floats(-1, 1), st.one_of(st.integers(-30, 30), st.sampled_from([-1000, -400, -140, 400, 508]))
    ),
    min_size=1,
    max_size=150,
)


@settings(deadline=None, max_examples=200)
@given(NUMBERS)
def test_the_sum_is_that_of_exact_fractions(numbers: list[float]) -> None:
    exact = sum(Fraction(number) ** 2 for number in numbers)
    found = float(squared_norms(torch.tensor([numbers], dtype=torch.float64))[0])
    if exact < Fraction(2) ** 1023:
        assert abs(Fraction(found) - exact) <= exact / 2**50 + Fraction(2) ** -1000


@settings(deadline=None, max_examples=200)
@given(NUMBERS, st.randoms(use_true_random=False), st.integers(0, 200), st.integers(1, 9))
def test_neither_order_nor_padding_nor_shape_nor_others_change_a_bit(
    numbers: list[float], random: object, padding: int, width: int
) -> None:
    alone = squared_norms(torch.tensor([numbers], dtype=torch.float64))[0]
    random.shuffle(numbers)  # type: ignore[attr-defined]
    padded = torch.tensor([numbers + [0.0] * padding] * 3, dtype=torch.float64)
    padded[0], padded[2] = 1e100, 1e-3
    assert squared_norms(padded)[1] == alone
    rows = math.ceil(len(numbers) / width)
    table = torch.full((2, rows + 2, width), torch.nan, dtype=torch.float64)
    filled = np.array(numbers + [0.0] * (rows * width - len(numbers)))
    table[0, 1 : rows + 1] = torch.from_numpy(filled).reshape(rows, width)
    mask = torch.zeros(2, rows + 2, dtype=torch.bool)
    mask[0, 1 : rows + 1] = True
    assert squared_norms(table, mask).tolist() == [alone, 0.0]


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 129])
def test_a_number_that_is_not_finite_makes_its_user_alone_so(spoilt: float, place: int) -> None:
    values = torch.ones(3, 130)
    values[1, place] = spoilt
    found = squared_norms(values)
    assert found[[0, 2]].tolist() == [130.0, 130.0] and not found[1].isfinite()


def test_nobody_and_nothing() -> None:
    assert squared_norms(torch.zeros(0, 3)).shape == (0,)
    assert squared_norms(torch.zeros(2, 0, 3)).tolist() == [0.0, 0.0]
    assert squared_norms(torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.bool)).tolist() == [0.0, 0.0]


@settings(deadline=None, max_examples=200)
@given(NUMBERS)
def test_the_plain_form_of_other_devices_has_the_same_bits(numbers: list[float]) -> None:
    values = torch.tensor([numbers, [1.0] * len(numbers)], dtype=torch.float64)
    with reference():
        plain = squared_norms(values)
    found = squared_norms(values)
    assert torch.equal(plain, found) or float((plain - found).abs().max()) <= 2.0**-1000
    spoilt = torch.cat([values, torch.full_like(values[:, :1], math.nan)], dim=1)
    with reference():
        assert not squared_norms(spoilt).isfinite().any()


def test_the_plain_form_looks_at_no_row_that_does_not_count() -> None:
    values = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([[7], [0], [3], [1], [6]])
    values[~mask] = math.nan
    with reference():
        plain = squared_norms(values, mask)
    assert torch.equal(squared_norms(values, mask), plain) and plain[1] == 0
