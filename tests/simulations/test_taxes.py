"""The taxes: ratios of medians, rounds in turns, and what was not measured is said."""

from __future__ import annotations

import pytest

from simulations.speed_peers.work import make_work
from simulations.taxes import WARM_UP_ROUNDS, Tax, Taxes, privacy, take_turns
from tests.simulations.test_speed_peers import interactions


def test_a_tax_is_the_ratio_of_medians_with_the_range_over_turns() -> None:
    tax = Tax("privacy", (1.0, 2.0, 9.0), (1.0, 1.0, 3.0))
    assert tax.ratio == 2.0
    assert tax.spread == (1.0, 3.0)


def test_rounds_take_turns_after_warm_up() -> None:
    calls = []
    seconds = take_turns([lambda: calls.append("a"), lambda: calls.append("b")], repeats=3)
    assert calls == ["a", "b"] * (WARM_UP_ROUNDS + 3)
    assert [len(times) for times in seconds] == [3, 3]


def test_the_table_says_what_misses_its_target_and_what_was_not_measured() -> None:
    missed, met = Tax("federation", (3.0,), (1.0,), 2.0), Tax("privacy", (1.1,), (1.0,), 1.15)
    text = Taxes("ml-1m", 2, (missed, met)).table()
    assert text.count("MISSED") == 1 and "not measured: runtime, real processes" in text
    assert Taxes("ml-1m", 2, (missed,)).as_json()["taxes"][0]["ratio"] == pytest.approx(3)


def test_privacy_taxes_are_measured_on_both_models() -> None:
    taxes = privacy(make_work(interactions(), dim=8), repeats=1)
    assert ["mf" in taxes[0].name, "bounded ALS" in taxes[1].name] == [True, True]
    assert all(tax.ratio > 0 for tax in taxes)
