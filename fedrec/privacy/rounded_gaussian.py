"""Rounded Gaussian: x + std G rounded to a grid, for a real-valued normal G, whatever floating point does on the way.

Unit, adjacency and L2 sensitivity: those of the float64 sum x. Released: the whole number n = round(x / spacing + m G)
of each coordinate, m = std / spacing. It is post-processing of the ideal Gaussian mechanism x + std G on real numbers,
so attacks on floating-point noise (Mironov 2012; Haney et al. 2022) do not apply. What follows is computed from n
alone: as a float64, which may round, times the spacing, a power of two, and with 0 for -0.

Definition of G. A pair of coordinates has two endless strings of random bits, the binary digits of U and V:

    G = R cos(2 pi V) and R sin(2 pi V),  R = sqrt(-2 ln U):  two independent standard normals (Box & Muller 1958)

Their first L = 64 digits, the whole numbers a and b, come from ChaCha20; 128 more at a time from keyed BLAKE2b, as long
as n does not follow from those at hand. So n is exact, no tail is cut off, and a key gives the same n on every machine.

Proof. Let eps = 2^-53 be the unit roundoff, log within 32 eps of its value, cos and sin within 32 eps of 1 (16 ulp).

1.  x / spacing = k + f with k whole and |f| <= 1/2, exactly, in float64: the spacing is a power of two, and from 2^52
    on the quotient is whole. (Where it is so small that it underflows, it is off by less than 2^-1074.)
2.  Let r, c, g be R, cos or sin, and G as computed from a and b. They are off by less than

        ln   1/a + eps + 32 eps |ln u|     a stands for all U in [a, a + 1] / 2^L, and is rounded
        r    2 / (a r) + 2.1 eps / r + 34 eps r        for |sqrt p - sqrt q| <= |p - q| / sqrt q, and ln u = -r^2 / 2
        c    2 pi (3.1 eps + 2^-L) + 32 eps <= 58 eps       for 2^-L <= eps
        g    r (error of c) + (1 + 90 eps) (error of r) + eps r <= eps (93 r + 2.2 / r) + 2.1 / (a r)

    and y = f + m g by less than 2.2 eps m r + eps / 2 on top, m >= 1. In all that is below 3/4 of

        bound = m (128 eps (r + 1 / r) + 4 / (a r));    the last quarter covers the rounding of the bound itself.
3.  Where |y - round(y)| + bound < 1/2 (the difference is exact), n is k + round(y). That is computed in float64.
4.  Elsewhere, at about 2 x bound of the coordinates (1 in 10^7 on a grid of 20 bits) and wherever a = 0, steps 2 and 3
    are done in decimal arithmetic, with as small an eps as L digits deserve, and y in fractions: with more and more
    digits, until n is certain. It ends with probability 1.

Assumed: ChaCha20 and keyed BLAKE2b are pseudo-random functions of a secret key that serves one x only; numpy's log, cos
and sin are as said (the tests allow 8 eps); decimal's ln and sqrt are correctly rounded, as specified. Limit: the time
a call takes is not constant: it tells how many coordinates went to step 4. That x has its sensitivity in float64, too,
is for the sum to see to: `fedrec.privacy.clipping`.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from itertools import count

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

from fedrec.errors import PrivacyError
from fedrec.randomness import Key

LARGEST = 2.0**500
MOST_GRID_BITS = 40
_PART = 2**14
_ROUNDOFF = 2.0**-53
_NUM_FIRST, _NUM_MORE = 64, 128


def grid_spacing(std: float, grid_bits: int) -> float:
    """Return the power of two 2^(floor(log2 std) - grid_bits) that noisy sums are multiples of.

    Args:
        std: of the noise, in [2^-500, 2^500].
        grid_bits: 0 to 40; std / spacing lies in [2^grid_bits, 2^(grid_bits + 1)).

    Raises:
        PrivacyError: where one of them is out of range.

    Privacy:
        None: a function of public numbers.

    Example:
        >>> grid_spacing(3.0, 4)
        0.125
    """
    if not 1 / LARGEST <= std <= LARGEST:
        raise PrivacyError(
            f"std={std} is not in [2^-500, 2^500]; it is noise_multiplier x clipping_norm: choose both nearer to 1"
        )
    if not 0 <= grid_bits <= MOST_GRID_BITS:
        raise PrivacyError(f"grid_bits={grid_bits} is not in 0..{MOST_GRID_BITS}; 20 is far finer than any noise needs")
    return math.ldexp(1.0, math.frexp(std)[1] - 1 - grid_bits)


def rounded_noisy(total: Tensor, std: float, key: Key, grid_bits: int = 20) -> Tensor:
    """Return total + std G, correctly rounded to the grid, with an independent real standard normal G a coordinate.

    Args:
        total: (...) float64 on the CPU, below 2^500 in size; left as it is.
        std: of the noise, in [2^-500, 2^500].
        key: secret, and of this total only: two totals with the same noise would tell their difference.
        grid_bits: spacing = 2^(floor(log2 std) - grid_bits), see `grid_spacing`.

    Returns:
        (...) float64 multiples of the spacing; the same on every machine.

    Raises:
        PrivacyError: where the total is not float64, not finite or too large, or another argument out of range.

    Privacy:
        One Gaussian mechanism: noise std `std` on the L2 sensitivity of the total; the proof is at the top.
    """
    spacing = grid_spacing(std, grid_bits)
    if total.dtype != torch.float64:
        raise PrivacyError(f"the total is {total.dtype}; sums of contributions must be torch.float64")
    values = total.detach().contiguous().numpy().reshape(-1)
    if len(values) and not max(values.max(), -values.min()) <= LARGEST:  # NaN is the maximum of what holds one
        raise PrivacyError("the total holds NaN, infinity or values above 2^500; every contribution must be clipped")
    noisy = np.empty_like(values)
    for number, start in enumerate(range(0, len(values), _PART)):
        part = slice(start, start + _PART)
        steps, rest = _round_part(values[part], std / spacing, spacing, key.fold("rounded gaussian", number))
        noisy[part] = (steps + rest) * spacing + 0.0  # k + round(y); + 0.0 for -0, which would tell the sign of y
    return torch.from_numpy(noisy).reshape(total.shape)


def _round_part(values: np.ndarray, scale: float, spacing: float, key: Key) -> tuple[np.ndarray, np.ndarray]:
    """Return the whole numbers k and round(f + scale G), where k + f = values / spacing."""
    words = _first_bits(key, 2 * ((len(values) + 1) // 2))
    radius_bits, angle_bits = words.reshape(2, -1)
    scaled = values / spacing
    whole = np.rint(scaled)
    shift = scaled - whole
    with np.errstate(divide="ignore", invalid="ignore"):  # a = 0 makes NaN and infinity
        normals, bound = _approximate_normals(radius_bits, angle_bits)
        noisy = shift + scale * normals.reshape(-1)[: len(values)]
        rounded = np.rint(noisy)
        bounds = np.concatenate([bound, bound])[: len(values)] * scale
        certain = np.abs(noisy - rounded) + bounds < 0.5  # and NaN is never certain
    for index in np.flatnonzero(~certain):
        pair, is_sine = index % len(radius_bits), bool(index >= len(radius_bits))
        rest = Fraction(float(values[index])) / Fraction(spacing) - Fraction(float(whole[index]))
        first = int(radius_bits[pair]), int(angle_bits[pair])
        rounded[index] = _round_exactly(rest, Fraction(scale), first, is_sine, key.fold("more", int(pair)))
    return whole, rounded


def _first_bits(key: Key, num: int) -> np.ndarray:
    """Draw `num` uint64 from the ChaCha20 key stream of a key."""
    stream = Cipher(ChaCha20(key.secret, b"\0" * 16), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(8 * num)), dtype="<u8")


def _more_bits(key: Key, level: int) -> tuple[int, int]:
    """Draw the next 128 binary digits of U and of V."""
    secret = key.fold(level).secret
    return int.from_bytes(secret[:16], "little"), int.from_bytes(secret[16:], "little")


def _approximate_normals(radius_bits: np.ndarray, angle_bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (2, n) cosine and sine halves of G in float64, and (n,) the bound at the top / m."""
    first = radius_bits.astype(np.float64)
    radius = np.sqrt(2.0 * np.abs(np.log(first * 2.0**-_NUM_FIRST)))  # abs: -0 would make the bound -infinity
    bound = 128 * _ROUNDOFF * radius + (128 * _ROUNDOFF + 4 / first) / radius
    angle = angle_bits * (2 * math.pi * 2.0**-_NUM_FIRST)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)]), bound


def _round_exactly(shift: Fraction, scale: Fraction, first: tuple[int, int], is_sine: bool, key: Key) -> int:
    """Return round(shift + scale G) from as many digits of U and V as it takes, beginning with the first ones."""
    (radius_bits, angle_bits), num_bits = first, _NUM_FIRST
    while True:
        if radius_bits:
            normal, bound = _decimal_normal(radius_bits, angle_bits, num_bits, is_sine)
            middle = shift + scale * normal + Fraction(1, 2)
            low, high = math.floor(middle - scale * bound), math.floor(middle + scale * bound)
            if low == high:
                return low
        more = _more_bits(key, num_bits)
        radius_bits, angle_bits = radius_bits << _NUM_MORE | more[0], angle_bits << _NUM_MORE | more[1]
        num_bits += _NUM_MORE


def _decimal_normal(radius_bits: int, angle_bits: int, num_bits: int, is_sine: bool) -> tuple[Fraction, Fraction]:
    """Return G from the first `num_bits` digits of U and V, and how far off it may be, by the bound at the top.

    There eps = 10^-digits, at least 2^-num_bits. Ten more digits leave room for every rounding in between.
    """
    digits = int(0.301 * num_bits)
    with localcontext(Context(prec=digits + 10)):
        one = Decimal(2**num_bits)
        radius = (-2 * (radius_bits / one).ln()).sqrt()
        normal = radius * _cosine(_pi() * (2 * angle_bits / one - (Decimal("0.5") if is_sine else 0)))
        bound = 128 * Decimal(10) ** -digits * (radius + 1 / radius) + 4 / (radius_bits * radius)
        return Fraction(normal), Fraction(bound)


def _cosine(angle: Decimal) -> Decimal:
    """Return cos(angle), |angle| < 7, by its power series."""
    total = term = Decimal(1)
    for k in count(1, 2):
        term *= -angle * angle / (k * (k + 1))
        if total + term == total:
            break
        total += term
    return total


def _pi() -> Decimal:
    """Return pi = 6 arcsin(1/2) by its power series."""
    total = term = Decimal(3)
    for k in count():
        term *= Decimal((2 * k + 1) ** 2) / (8 * (k + 1) * (2 * k + 3))
        if total + term == total:
            break
        total += term
    return total
