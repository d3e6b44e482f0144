"""Each stage of the payload codec against what its docstring promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.errors import ProtocolError
from fedrec.federated.codecs.int8 import GROUP, Int8
from fedrec.federated.codecs.low_rank import LowRank
from fedrec.federated.codecs.stage import Stage
from fedrec.federated.codecs.touched_rows import TouchedRows
from fedrec.randomness import Key

KEY = Key.from_seed(5)
FLOATS = [torch.float32, torch.float64]


def through(stage: Stage, tensor: torch.Tensor, key: Key = KEY) -> torch.Tensor:
    shape = tuple(tensor.shape)
    return stage.decode(stage.encode(tensor, shape, key), tensor.dtype, shape)


def table(num_rows: int = 40, width: int = 64, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("exponent", [-100, -3, 0, 100])
def test_grid_points_stay_exactly_whatever_is_drawn(dtype: torch.dtype, exponent: int) -> None:
    codes = torch.arange(-127, 129, dtype=dtype).clamp(max=127).reshape(4, 64)
    codes[:, 0] = 127  # so that the group's scale is the grid's
    values = codes * 2.0**exponent
    for seed in range(20):
        assert torch.equal(through(Int8(), values, Key.from_seed(seed)), values)


def test_rounding_is_right_on_average() -> None:
    values = table(4, 64)
    repeats = 3000
    draws = torch.stack([through(Int8(), values, Key.from_seed(seed)) for seed in range(repeats)])
    step = 2.0 ** Int8().encode(values, (4, 64), KEY)["exponents"].to(torch.float64)[:, None]
    place = (values / step).frac() % 1
    spread = (place * (1 - place)).sqrt() * step
    deviation = (draws.mean(dim=0) - values) / (spread / repeats**0.5)
    assert float(deviation.abs().max()) < 5, "256 means within five standard errors"
    assert 0.8 < float(deviation.std()) < 1.2, "and as far off as independent draws are"
    assert float((draws - values).abs().max()) < float(step.max()), "never a grid step away"


def test_draws_of_two_values_are_independent() -> None:
    values = torch.full((1, 64), 0.5)
    values[0, 0] = 127.0
    up = torch.stack([through(Int8(), values, Key.from_seed(seed))[0, 1:] for seed in range(2000)]).to(torch.float64)
    correlation = torch.corrcoef(up.T).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 5 / 2000**0.5


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-1e300, 1e300, allow_nan=False), min_size=1, max_size=150),
    st.sampled_from([1, 8]),
    st.integers(0, 10),
)
def test_every_value_lands_on_one_of_its_two_neighbours_on_the_grid(
    numbers: list[float], width: int, seed: int
) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)
    values = values.repeat_interleave(width).reshape(-1, width)
    parts = Int8().encode(values, tuple(values.shape), Key.from_seed(seed))
    largest = torch.iinfo(parts["codes"].dtype).max
    decoded = Int8().decode(parts, torch.float64, tuple(values.shape))
    exponents = parts["exponents"].numpy().astype(int).repeat(GROUP)[: values.numel()].reshape(values.shape)
    steps = np.ldexp(1.0, exponents)
    assert (np.abs(decoded.numpy() - values.numpy()) <= steps).all()
    groups = np.zeros(-(-values.numel() // GROUP) * GROUP)
    groups[: values.numel()] = np.abs(values.numpy().reshape(-1))
    top, least = groups.reshape(-1, GROUP).max(axis=1), np.ldexp(1.0, parts["exponents"].numpy().astype(int))
    assert (top <= largest * least).all(), "no value is cut off"
    tight = (top > largest * (least / 2)) | (top == 0) | (parts["exponents"].numpy() == -1074)
    assert tight.all(), "and the grid is as fine as it can be"


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float64, 1e300),
        (torch.float64, 8.9e307),
        (torch.float64, 5e-324),
        (torch.float64, 3e-310),
        (torch.float32, 1.7e38),
        (torch.float32, 1e-45),
        (torch.float32, -3e-40),
    ],
)
def test_huge_and_subnormal_values_survive(dtype: torch.dtype, value: float) -> None:
    values = torch.full((2, 64), value, dtype=dtype)
    decoded = through(Int8(), values)
    assert torch.isfinite(decoded).all()
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(decoded, values, rtol=1 / 63, atol=float(smallest))


def test_constant_rows_of_any_size_keep_their_scale_beside_each_other() -> None:
    values = torch.tensor([1e-12, 1.0, 1e12, 0.0], dtype=torch.float64)[:, None].expand(4, 64).contiguous()
    torch.testing.assert_close(through(Int8(), values), values, rtol=1 / 63, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_beyond_half_the_largest_number_are_refused(dtype: torch.dtype) -> None:
    values = torch.full((1, 8), torch.finfo(dtype).max, dtype=dtype)
    with pytest.raises(ProtocolError, match="half the largest number"):
        Int8().encode(values, (1, 8), KEY)


def test_vectors_and_narrow_tables_get_sixteen_bits() -> None:
    for shape, dtype in {(100,): torch.int16, (100, 7): torch.int16, (100, 8): torch.int8, (): torch.int16}.items():
        values = torch.rand(shape, dtype=torch.float64)
        assert Int8().encode(values, shape, KEY)["codes"].dtype == dtype
        torch.testing.assert_close(through(Int8(), values), values, rtol=0, atol=1 / 64)
    counts = torch.arange(1.0, 1720.0, dtype=torch.float64)[:, None]
    assert float((through(Int8(), counts) - counts).abs().max()) < 0.07


def test_a_byte_a_value_and_two_for_every_64() -> None:
    parts = Int8().encode(table(100, 64), (100, 64), KEY)
    assert sum(part.numel() * part.element_size() for part in parts.values()) == 100 * 64 + 100 * 2


def test_many_values_are_rounded_in_parts_with_draws_of_their_own() -> None:
    values = torch.full((2**14 + 1, 64), 0.5)
    values[:, 0] = 127.0
    parts = Int8().encode(values, tuple(values.shape), KEY)
    assert not torch.equal(parts["codes"][0], parts["codes"][2**14])
    mean = float(parts["codes"][:, 1:].to(torch.float64).mean())
    assert mean == pytest.approx(0.5, abs=0.003)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"exponents": torch.zeros(39, dtype=torch.int16)}, "39 exponents stand beside 2560 codes"),
        ({"exponents": torch.full((40,), 1018, dtype=torch.int16)}, "1018"),
        ({"exponents": torch.full((40,), -1075, dtype=torch.int16)}, "-1075"),
        ({"codes": torch.full((40, 64), -128, dtype=torch.int8)}, "-128"),
    ],
)
def test_codes_that_no_encoder_sends_are_refused(change: dict[str, torch.Tensor], reason: str) -> None:
    parts = Int8().encode(table(), (40, 64), KEY)
    with pytest.raises(ProtocolError, match=reason):
        Int8().decode({**parts, **change}, torch.float64, (40, 64))


@pytest.mark.parametrize("dtype", FLOATS)
def test_largest_codes_and_exponents_decode_to_finite_numbers(dtype: torch.dtype) -> None:
    most = 121 if dtype == torch.float32 else 1017
    parts = {
        "codes": torch.full((1, 64), -127, dtype=torch.int8),
        "exponents": torch.full((1,), most, dtype=torch.int16),
    }
    assert torch.isfinite(Int8().decode(parts, dtype, (1, 64))).all()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([0, 2, 2], "strictly ascending"),
        ([2, 1, 0], "strictly ascending"),
        ([-1, 0, 1], "from 0"),
        ([0, 1, 4], "below 4"),
        ([0, 1], "2 row numbers stand beside 3 rows"),
    ],
)
def test_row_numbers_that_are_not_in_order_are_refused(rows: list[int], reason: str) -> None:
    parts = {"rows": torch.tensor(rows, dtype=torch.int32), "values": torch.ones(3, 2)}
    with pytest.raises(ProtocolError, match=reason):
        TouchedRows().decode(parts, torch.float32, (4, 2))


def test_only_touched_rows_are_sent() -> None:
    values = torch.zeros(1000, 8)
    values[[7, 900]] = 1.0
    parts = TouchedRows().encode(values, (1000, 8), KEY)
    assert parts["rows"].tolist() == [7, 900] and parts["values"].shape == (2, 8)
    assert torch.equal(through(TouchedRows(), values), values)
    assert TouchedRows().encode(0 * values, (1000, 8), KEY)["values"].shape == (0, 8)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1e-35, 1.0, 1e35])
def test_table_of_that_rank_comes_back(dtype: torch.dtype, scale: float) -> None:
    values = (table(300, 5, dtype) @ table(5, 200, dtype)) * scale
    decoded = through(LowRank(5), values)
    assert float((decoded - values).abs().max()) < 1e-4 * float(values.abs().max())


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_scale_does_not_matter(scale: float) -> None:
    values = (table(300, 5) @ table(5, 200)) / 100
    plain, scaled = through(LowRank(5), values), through(LowRank(5), values * scale)
    torch.testing.assert_close(scaled / scale, plain, rtol=1e-6, atol=1e-9)


def test_approximation_is_nearly_the_best_of_its_rank() -> None:
    values = table(300, 200) * torch.linspace(0, 5, 200, dtype=torch.float64).neg().exp()
    best = float(torch.linalg.svdvals(values)[8:].norm())
    for seed in range(5):
        assert float((through(LowRank(8), values, Key.from_seed(seed)) - values).norm()) < 1.02 * best


def test_components_carry_the_singular_value_evenly_and_the_largest_first() -> None:
    parts = LowRank(4).encode(table(100, 100), (100, 100), KEY)
    left, right = parts["left"].norm(dim=1), parts["right"].norm(dim=1)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=0)
    assert (left[1:] <= left[:-1]).all()


def test_factors_of_a_table_smaller_than_its_rank_are_padded_with_zeros() -> None:
    values = table(2, 100)
    parts = LowRank(5).encode(values, (2, 100), KEY)
    assert parts["left"].shape == (5, 2) and not bool(parts["left"][2:].any())
    torch.testing.assert_close(through(LowRank(5), values), values)
    assert LowRank(5).encode(table(0, 100), (0, 100), KEY)["left"].shape == (5, 0)


@pytest.mark.parametrize(
    ("shape", "applies"), [((3706, 2080), True), ((3706, 64), False), ((100,), False), ((range(3707), 2080), True)]
)
def test_small_tables_keep_their_rank(shape: tuple[int | range, ...], applies: bool) -> None:
    assert LowRank(16).applies(torch.float32, shape) is applies
    assert not LowRank(16).applies(torch.int64, shape)
