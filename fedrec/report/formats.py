"""How names, numbers and units are written in tables, figures and pages."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal

METRIC_NAMES = {
    "ndcg": "NDCG",
    "hr": "HR",
    "recall": "Recall",
    "mrr": "MRR",
    "rmse": "RMSE of ratings",
    "mae": "MAE of ratings",
    "coverage": "Coverage",
    "novelty": "Novelty",
    "popularity_lift": "Popularity lift",
    "num_users": "Users evaluated",
}
"""Metric key up to the "@" -> the name it is printed under; in the order of the tables."""

MISSING = "-"
"""What stands where a number is not known."""


def metric_name(key: str) -> str:
    """Return the printed name of a metric.

    Example:
        >>> metric_name("ndcg@10"), metric_name("popularity_lift")
        ('NDCG@10', 'Popularity lift')
    """
    stem, at, cutoff = key.partition("@")
    return METRIC_NAMES.get(stem, stem) + at + cutoff


def metric_text(key: str, value: float | None) -> str:
    """Return a metric in the digits that fit it: four decimals for scores, none for counts, two for ratios and bits.

    Example:
        >>> metric_text("hr@10", 0.12345), metric_text("num_users", 6040.0), metric_text("novelty@10", 8.123)
        ('0.1235', '6,040', '8.12')
    """
    stem = key.partition("@")[0]
    if stem == "num_users":
        return count_text(value)
    return number_text(value, decimals=2 if stem in ("novelty", "popularity_lift") else 4)


def number_text(value: float | None, decimals: int) -> str:
    """Return a number with fixed decimals and thousands separators, "-" where it is unknown or not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.{decimals}f}"


def count_text(value: float | None) -> str:
    """Return a whole number with thousands separators."""
    return number_text(value, decimals=0)


def percent_text(share: float | None) -> str:
    """Return a share as per cent, to a tenth."""
    text = number_text(None if share is None else 100 * share, decimals=1)
    return text if text == MISSING else f"{text} %"


def exact_text(value: float | None) -> str:
    """Return a parameter to eight significant digits, so that epsilon can be recomputed from it."""
    return MISSING if value is None else f"{value:.8g}"


def epsilon_text(epsilon: float | None) -> str:
    """Return an epsilon to three decimals, rounded **up**: a printed guarantee is never better than the real one.

    Example:
        >>> epsilon_text(7.99912), epsilon_text(8.0), epsilon_text(0.5)
        ('8', '8', '0.5')
    """
    if epsilon is None or math.isnan(epsilon):
        return MISSING
    if math.isinf(epsilon):
        return "infinite"
    rounded = Decimal(repr(float(epsilon))).quantize(Decimal("0.001"), rounding=ROUND_CEILING)
    return f"{rounded.normalize():f}"


def seconds_text(seconds: float | None) -> str:
    """Return a time in seconds, with more digits where it is short.

    Example:
        >>> seconds_text(0.0421), seconds_text(12.34), seconds_text(4321.0)
        ('0.042', '12.3', '4,321')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    return number_text(seconds, decimals=3 if seconds < 1 else 1 if seconds < 1000 else 0)


def bytes_text(size: float | None) -> str:
    """Return a size in decimal units.

    Example:
        >>> bytes_text(512), bytes_text(1_234_567)
        ('512 B', '1.23 MB')
    """
    if size is None or not math.isfinite(size):
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def plural(number: int, noun: str) -> str:
    """Return a number of things.

    Example:
        >>> plural(1, "round"), plural(1200, "round")
        ('1 round', '1,200 rounds')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened(text: str, width: int) -> str:
    """Return text of at most `width` printable characters, the middle left out: labels differ at their ends.

    Example:
        >>> shortened("als-with-text-epsilon-8", 15)
        'als-wi...ilon-8'
    """
    text = "".join(character if character.isprintable() else "?" for character in text)
    if len(text) <= width:
        return text
    tail = (width - 3) // 2
    return f"{text[: width - 3 - tail]}...{text[len(text) - tail :]}"
