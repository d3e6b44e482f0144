"""The rounded Gaussian: what comes out is the exactly rounded sum with a real-valued normal, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, kstest, norm, pearsonr

from fedrec.errors import PrivacyError
from fedrec.privacy import rounded_gaussian
from fedrec.privacy.rounded_gaussian import grid_spacing, rounded_noisy
from fedrec.randomness import Key

KEY = Key(bytes(range(32)), from_system=True)  # fixed bytes, so that the tests are the same every time
EPS = Fraction(1, 2**53)
ENDLESS = 8  # times 128 more digits: 1088 binary digits, which the brute force takes for all of them
LARGEST_WORD = 2**64 - 1

MP = mpmath.mp.clone()
MP.dps = 400


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def digits_of(count: int, key: Key) -> list[tuple[int, int]]:
    """Return (U, V) of every coordinate as whole numbers of 1088 binary digits, drawn as the module says."""
    found = []
    for number, start in enumerate(range(0, count, rounded_gaussian._PART)):
        own = key.fold("rounded gaussian", number)
        size = min(rounded_gaussian._PART, count - start)
        words = rounded_gaussian._first_bits(own, 2 * ((size + 1) // 2)).tolist()
        half = len(words) // 2
        for index in range(size):
            pair = index % half
            u, v = words[pair], words[half + pair]
            for level in range(ENDLESS):
                more = rounded_gaussian._more_bits(own.fold("more", pair), 64 + 128 * level)
                u, v = u << 128 | more[0], v << 128 | more[1]
            found.append((u, v))
    return found


def is_sine(index: int, count: int) -> bool:
    size = min(rounded_gaussian._PART, count - index // rounded_gaussian._PART * rounded_gaussian._PART)
    return index % rounded_gaussian._PART >= (size + 1) // 2


def normal_of(u: int, v: int, num_digits: int, sine: bool) -> mpmath.mpf:
    """Return G with 400 decimal digits."""
    radius = MP.sqrt(-2 * MP.log(MP.mpf(u) / 2**num_digits))
    angle = 2 * MP.pi * MP.mpf(v) / 2**num_digits
    return radius * (MP.sin(angle) if sine else MP.cos(angle))


def brute_force(total: torch.Tensor, std: float, key: Key, grid_bits: int, rows: range | None = None) -> list[float]:
    """Return what the release must be, by 400 digits for everything."""
    spacing = Fraction(grid_spacing(std, grid_bits))
    digits = digits_of(len(total), key)
    expected = []
    for index in rows or range(len(total)):
        x = MP.mpf(float(total[index])) / MP.mpf(float(spacing))
        normal = normal_of(*digits[index], 64 + 128 * ENDLESS, is_sine(index, len(total)))
        steps = int(MP.nint(x + MP.mpf(std) / MP.mpf(float(spacing)) * normal))
        expected.append(float(steps) * float(spacing))
    return expected


def force(monkeypatch: pytest.MonkeyPatch, words: list[int], *more: tuple[int, int]) -> list[int]:
    """Make the first digits of all U, then of all V, these words, and the next ones `more`; return levels asked for."""
    asked: list[int] = []
    real = rounded_gaussian._more_bits

    def more_bits(key: Key, level: int) -> tuple[int, int]:
        asked.append(level)
        number = (level - 64) // 128
        return more[number] if number < len(more) else real(key, level)

    monkeypatch.setattr(rounded_gaussian, "_first_bits", lambda key, num: np.array(words, dtype=np.uint64))
    monkeypatch.setattr(rounded_gaussian, "_more_bits", more_bits)
    return asked


def count_refined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by an entry for every coordinate that float64 does not decide."""
    seen: list[int] = []
    real = rounded_gaussian._round_exactly

    def counted(*args: object) -> int:
        seen.append(real(*args))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(rounded_gaussian, "_round_exactly", counted)
    return seen


@pytest.mark.parametrize(
    ("size", "std", "grid_bits"),
    [(1.0, 1.0, 20), (1e3, 0.3, 20), (1e-9, 7.0, 0), (1e-300, 1e30, 30), (1e12, 1e-5, 20), (1e100, 1e70, 12)],
)
def test_release_is_the_brute_force_rounding_of_the_real_sum(size: float, std: float, grid_bits: int) -> None:
    total = torch.from_numpy(np.random.default_rng(1).standard_normal(151) * size)
    found = rounded_noisy(total, std, KEY, grid_bits)
    assert found.tolist() == brute_force(total, std, KEY, grid_bits)


def test_parts_have_draws_of_their_own_and_meet_without_a_seam() -> None:
    part = rounded_gaussian._PART
    total = torch.zeros(part + 3, dtype=torch.float64)
    found = rounded_noisy(total, 2.0, KEY)
    rows = range(part - 4, part + 3)
    assert [found[i].item() for i in rows] == brute_force(total, 2.0, KEY, 20, rows)
    two = rounded_noisy(torch.zeros(2 * part, dtype=torch.float64), 2.0, KEY)
    assert (two[:part] == two[part:]).sum() < 10 and len(two.unique()) > 2 * part - 300


@pytest.mark.parametrize("far", [0, 1, 2, -1, -2])
def test_sums_within_1e_12_of_a_boundary_are_rounded_right(far: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each x is made from the known noise: the float64 next to a boundary minus the noise, or a few floats from it."""
    num, std, grid_bits = 150, 1.3, 8
    spacing, seen = grid_spacing(std, grid_bits), count_refined(monkeypatch)
    values = []
    for index, (u, v) in enumerate(digits_of(num, KEY)):
        noise = MP.mpf(std) * normal_of(u, v, 64 + 128 * ENDLESS, is_sine(index, num))
        x = float((MP.nint(noise / spacing) + (index % 7 - 3) + MP.mpf(1) / 2) * spacing - noise)
        for _ in range(abs(far)):
            x = math.nextafter(x, math.copysign(math.inf, far))
        values.append(x)
    found = rounded_noisy(tensor(*values), std, KEY, grid_bits)
    assert found.tolist() == brute_force(tensor(*values), std, KEY, grid_bits)
    assert len(seen) == num, "float64 is certain of none of them"


def test_digits_are_drawn_until_the_rounding_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """V = 1/4 + 2^-448 (...): the cosine is about -1e-134 and says on which side of the boundary 1/2 the sum lies."""
    quarter, spacing = 2**62, grid_spacing(1.0, 20)
    asked = force(monkeypatch, [2**63, quarter], (0, 0), (0, 0), (0, 0))
    assert rounded_noisy(tensor(0.5 * spacing, 0.0), 1.0, KEY)[0] == 0 and max(asked) > 64 + 3 * 128 - 1
    asked = force(monkeypatch, [2**63, quarter - 1], *[(0, 2**128 - 1)] * 3)
    assert rounded_noisy(tensor(0.5 * spacing, 0.0), 1.0, KEY)[0] == spacing and max(asked) > 64 + 3 * 128 - 1


@pytest.mark.parametrize("zeros", [0, 1, 5])
def test_tails_have_no_end(zeros: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """U below 2^-64 and far smaller: the noise is as large as it has to be, and right to the last bit."""
    more = [(0, 0)] * zeros + [(2**127 + 12345, 99)]
    for angle in (0, 2**61, 2**63 + 1):
        force(monkeypatch, [0, angle], *more)
        total = tensor(0.3, -17.0)
        found = rounded_noisy(total, 1.7, KEY)
        assert found.tolist() == brute_force(total, 1.7, KEY, 20)
        assert found.sub(total).norm() / 1.7 == pytest.approx(math.sqrt(2 * math.log(2) * (65 + 128 * zeros)), abs=0.01)
        monkeypatch.undo()


@pytest.mark.parametrize("word", [LARGEST_WORD, LARGEST_WORD - 1, LARGEST_WORD - 1500, 1, 2, 2**11])
def test_first_digits_at_either_end_are_rounded_right(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for angle in (1, 2**62 - 1, 2**63, 3 * 2**62, LARGEST_WORD):
        for x in (0.0, 0.5, 2.0**-30):
            force(monkeypatch, [word, angle])
            total = tensor(x * grid_spacing(1.0, 20), x)
            assert rounded_noisy(total, 1.0, KEY).tolist() == brute_force(total, 1.0, KEY, 20)
            monkeypatch.undo()


def test_elementary_functions_are_four_times_better_than_the_proof_needs() -> None:
    rng = np.random.default_rng(2)
    logs = np.concatenate([rng.random(2000), 1 - rng.random(500) * 2.0 ** -rng.integers(1, 53, 500), [1.0, 2.0**-64]])
    logs = np.concatenate([logs, 2.0 ** -rng.uniform(0, 64, 2000)])
    for u, found in zip(logs.tolist(), np.log(logs).tolist(), strict=True):
        assert abs(MP.log(u) - found) <= 8 * 2.0**-53 * abs(MP.log(u))
    angles = np.concatenate([rng.random(3000) * 2 * math.pi, np.arange(5) * math.pi / 2, rng.random(500) * 1e-9])
    near = np.arange(5)[:, None] * math.pi / 2 + rng.standard_normal((5, 200)) * 2.0 ** -rng.integers(1, 50, (5, 200))
    angles = np.concatenate([angles, np.abs(near).ravel()])
    for name in ("cos", "sin"):
        for angle, found in zip(angles.tolist(), getattr(np, name)(angles).tolist(), strict=True):
            assert abs(getattr(MP, name)(angle) - found) <= 8 * 2.0**-53


def worst_use_of_the_bound(radius_bits: np.ndarray, angle_bits: np.ndarray) -> float:
    """Return the largest |g - G| / bound over both ends of what the first digits leave open."""
    normals, bound = rounded_gaussian._approximate_normals(radius_bits, angle_bits)
    worst = 0.0
    for k, (a, b) in enumerate(zip(radius_bits.tolist(), angle_bits.tolist(), strict=True)):
        for sine in (False, True):
            for u in (a, a + 1):
                exact = normal_of(u, b + 1, 64, sine) if u < 2**64 else MP.mpf(0)
                worst = max(worst, float(abs(exact - normals[int(sine), k]) / bound[k]))
    return worst


def test_approximation_stays_within_three_quarters_of_its_bound() -> None:
    rng = np.random.default_rng(3)
    words = rng.integers(0, LARGEST_WORD, (2, 800), dtype=np.uint64, endpoint=True)
    assert worst_use_of_the_bound(*words) < 0.1, "slack is generous where everything is ordinary"
    small = (words[0] >> rng.integers(1, 63, 800).astype(np.uint64)) + np.uint64(1)
    assert worst_use_of_the_bound(small, words[1]) < 0.75
    near_one = np.uint64(LARGEST_WORD) - (words[0] >> rng.integers(12, 63, 800).astype(np.uint64)) - np.uint64(1)
    near_one = np.minimum(near_one, np.uint64(2**64 - 2**11))  # what rounds to U = 1 has an infinite bound
    assert worst_use_of_the_bound(near_one, words[1]) < 0.75


def test_decimal_arithmetic_stays_within_three_quarters_of_its_bound() -> None:
    rng = np.random.default_rng(4)
    for num_bits in (64, 192, 448):
        for _ in range(60):
            a = int.from_bytes(rng.bytes(num_bits // 8), "little") >> int(rng.integers(0, num_bits - 2))
            b = int.from_bytes(rng.bytes(num_bits // 8), "little")
            for sine in (False, True):
                found, bound = rounded_gaussian._decimal_normal(max(a, 1), b, num_bits, sine)
                for u in (max(a, 1), max(a, 1) + 1):
                    exact = normal_of(u, b + 1, num_bits, sine)
                    found_mp = MP.mpf(found.numerator) / found.denominator
                    assert abs(exact - found_mp) <= MP.mpf(bound.numerator) / bound.denominator * 3 / 4


def test_refinement_is_entered_as_often_as_the_bound_predicts_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """E(r + 1/r) = sqrt(2 pi): undecided are 2 x 128 eps m sqrt(2 pi) of the coordinates; here eps is coarse."""
    num, grid_bits, coarse = 40_000, 10, 2.0**-23 / 128
    total = torch.from_numpy(np.random.default_rng(5).standard_normal(num))
    expected = rounded_noisy(total, 1.0, KEY, grid_bits)
    seen = count_refined(monkeypatch)
    assert torch.equal(rounded_noisy(total, 1.0, KEY, grid_bits), expected) and len(seen) <= 1
    monkeypatch.setattr(rounded_gaussian, "_ROUNDOFF", coarse)
    assert torch.equal(rounded_noisy(total, 1.0, KEY, grid_bits), expected)
    rate = 2 * 128 * coarse * 2**grid_bits * math.sqrt(2 * math.pi)
    assert abs(len(seen) - rate * num) < 6 * math.sqrt(rate * num), f"{len(seen)} against {rate * num:.0f}"
    assert rate * num > 20


def test_noise_is_standard_normal_and_halves_of_a_pair_are_independent() -> None:
    """Four tests at level 1e-6 each: with another key, a right sampler fails them four times in a million."""
    part = rounded_gaussian._PART
    noise = rounded_noisy(torch.zeros(20 * part, dtype=torch.float64), 3.0, KEY).numpy() / 3.0
    assert kstest(noise, "norm").pvalue > 1e-6
    cosines, sines = noise.reshape(20, 2, part // 2).transpose(1, 0, 2).reshape(2, -1)
    cells = np.floor(norm.cdf([cosines, sines]) * 12).astype(int)
    table = np.zeros((12, 12), dtype=int)
    np.add.at(table, tuple(cells), 1)
    assert chi2_contingency(table).pvalue > 1e-6
    assert kstest((cosines + sines) / math.sqrt(2), "norm").pvalue > 1e-6, "a rotation of the pair, too"
    lags = [1, 2, part // 2 - 1, part // 2 + 1, part]
    correlations = [pearsonr(noise[:-lag], noise[lag:]).pvalue for lag in lags]
    assert min(correlations) > 1e-6 / len(lags)


def test_tail_beyond_five_is_as_heavy_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw U below exp(-12.5), where the radius is above 5: beyond 5 are 2 Phi(-5) / exp(-12.5) of the coordinates."""
    real, num = rounded_gaussian._first_bits, rounded_gaussian._PART

    def beyond_five(key: Key, count: int) -> np.ndarray:
        words = real(key, count).copy()
        words[: count // 2] = (words[: count // 2] * math.exp(-12.5)).astype(np.uint64)
        return words

    monkeypatch.setattr(rounded_gaussian, "_first_bits", beyond_five)
    noise = rounded_noisy(torch.zeros(4 * num, dtype=torch.float64), 1.0, KEY).abs().numpy()
    beyond, expected = noise[noise > 5], 2 * norm.sf(5) / math.exp(-12.5)
    assert abs(len(beyond) / len(noise) - expected) < 5 * math.sqrt(expected / len(noise))
    assert kstest(beyond, lambda x: 1 - norm.sf(x) / norm.sf(5)).pvalue > 1e-6


def test_a_key_gives_the_same_release_on_every_machine() -> None:
    found = rounded_noisy(tensor(0.0, 1.0, -1.0, 1e6, 0.1), 1.0, Key.from_seed(3), grid_bits=20) * 2**20
    assert found.tolist() == [-122803.0, 1971374.0, -181189.0, 1048575626853.0, 717502.0]
    again, other = (rounded_noisy(torch.zeros(50, dtype=torch.float64), 1.0, Key.from_seed(seed)) for seed in (3, 4))
    assert torch.equal(again, rounded_noisy(torch.zeros(50, dtype=torch.float64), 1.0, Key.from_seed(3)))
    assert not (again == other).any()


@pytest.mark.parametrize("exponent", [0, 30, 33, 52, 60, 100, 450])
def test_a_total_far_coarser_than_the_grid_is_rounded_as_a_whole_number(exponent: int) -> None:
    """Beyond 2^53 steps the exact whole number is rounded once more, to float64: post-processing."""
    values = [sign * math.nextafter(2.0**exponent, to) for sign in (1, -1) for to in (0, math.inf, 2.0**exponent)]
    found = rounded_noisy(tensor(*values), 3.0, KEY)
    assert found.tolist() == brute_force(tensor(*values), 3.0, KEY, 20)


def test_a_total_of_1e30_times_the_noise_comes_out_as_it_is_up_to_rounding() -> None:
    total = tensor(1e30, -1e30, 3e29)
    assert (rounded_noisy(total, 1.0, KEY) / total - 1).abs().max() < 2.0**-52


@pytest.mark.parametrize("std", [2.0**-500, 1e-100, 0.1, math.nextafter(4.0, 0), 1e100, 2.0**500])
def test_releases_are_multiples_of_a_power_of_two_near_the_std(std: float) -> None:
    spacing = grid_spacing(std, 20)
    assert math.frexp(spacing)[0] == 0.5 and 2**20 <= std / spacing < 2**21
    for total in (torch.zeros(50, dtype=torch.float64), torch.full((50,), std / 3, dtype=torch.float64)):
        steps = rounded_noisy(total, std, KEY) / spacing
        assert torch.equal(steps, steps.round()) and steps.abs().max() < 2**24 and steps.unique().numel() == 50


def test_zero_has_no_sign() -> None:
    """The sign of -0 would tell on which side of 0 the noisy sum was."""
    for x in (0.0, -0.0, 1e-300, -1e-300, 0.3, -0.3):
        found = rounded_noisy(torch.full((400,), x, dtype=torch.float64), 1.0, KEY, grid_bits=0)
        assert (found == 0).any() and not torch.signbit(found[found == 0]).any()


def test_shape_is_kept_and_the_total_left_as_it_is() -> None:
    total = torch.arange(12, dtype=torch.float64).reshape(3, 4).T
    before = total.clone()
    found = rounded_noisy(total, 1.0, KEY)
    assert found.shape == (4, 3) and torch.equal(total, before)
    assert torch.equal(found.reshape(-1), rounded_noisy(total.reshape(-1), 1.0, KEY))
    assert rounded_noisy(torch.zeros(0, 3, dtype=torch.float64), 1.0, KEY).shape == (0, 3)
    assert rounded_noisy(torch.tensor(1.0, dtype=torch.float64), 1.0, KEY).shape == ()


REFUSED: list[tuple[Callable[[], object], str]] = [
    *((lambda x=x: rounded_noisy(tensor(0.0, x), 1.0, KEY), "NaN, infinity") for x in (math.nan, math.inf, -math.inf)),
    *((lambda x=x: rounded_noisy(tensor(x, 0.0), 1.0, KEY), "above 2") for x in (1e200, -1e200)),
    *(
        (lambda std=std: rounded_noisy(tensor(0.0), std, KEY), "is not in .2.-500")
        for std in (0.0, -1.0, math.nan, math.inf, 5e-324, 2.0**-501, 2.0**501)
    ),
    (lambda: rounded_noisy(torch.zeros(2), 1.0, KEY), "must be torch.float64"),
    (lambda: rounded_noisy(tensor(0.0), 1.0, KEY, grid_bits=-1), "grid_bits=-1 is not in 0..40"),
    (lambda: rounded_noisy(tensor(0.0), 1.0, KEY, grid_bits=41), "grid_bits=41 is not in 0..40"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be_rounded_exactly_is_refused(number: int) -> None:
    call, message = REFUSED[number]
    with pytest.raises(PrivacyError, match=message):
        call()
