"""The table, the ratios and the chart of the speed comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrec.data.sources import available
from simulations.speed import Measurement, as_json, measure, ratio, speedup, table
from simulations.speed_chart import draw
from simulations.speed_peers import PEERS
from simulations.speed_peers.worker import Worker

FAST = Measurement("fedrec", "ml-100k", 1, 1000, 500_000, (0.1, 0.2, 0.1))
TWO_THREADS = Measurement("fedrec", "ml-100k", 2, 1000, 500_000, (0.05,))
PRIVATE = Measurement("fedrec-dp", "ml-100k", 1, 1000, 500_000, (0.2,))
SLOW = Measurement("pfl", "ml-100k", 1, 1000, 500_000, (1.0, 1.5, 4.0))
SLOW_PRIVATE = Measurement("pfl-dp", "ml-100k", 1, 1000, 500_000, (4.0,))
ALL = [FAST, PRIVATE, SLOW, SLOW_PRIVATE, TWO_THREADS]


def test_figures_are_medians_with_the_slowest_and_the_fastest_repeat() -> None:
    assert SLOW.users_per_second == pytest.approx(1000 / 1.5)
    assert SLOW.spread == (250.0, 1000.0)


def test_ratios_compare_the_same_work_on_the_same_threads() -> None:
    assert ratio(ALL, SLOW) == pytest.approx(15)
    assert ratio(ALL, SLOW_PRIVATE) == pytest.approx(20)
    assert ratio([SLOW], SLOW) is None
    assert speedup(ALL, TWO_THREADS) == pytest.approx(2)
    assert speedup(ALL, SLOW) is None


def test_table_and_record_show_every_system() -> None:
    text = table(ALL)
    for one in ALL:
        assert PEERS[one.system].label in text
    assert "15.0x" in text and "2.00x its one thread" in text
    assert [entry["fedrec_is_faster_by"] for entry in as_json(ALL)] == [1, 1, pytest.approx(15), pytest.approx(20), 1]


def test_chart_is_written(tmp_path: Path) -> None:
    draw(ALL, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_every_private_system_is_compared_with_a_private_one() -> None:
    for system in PEERS.values():
        against = PEERS[system.against]
        assert against.is_ours and against.private == system.private and against.closed_form == system.closed_form


def test_a_peer_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no-such-data"):
        Worker("rows", "no-such-data", 1)


@pytest.mark.skipif(available()["ml-100k"] is None, reason="ml-100k is not on this machine")
def test_workers_answer_with_seconds() -> None:
    first, second = measure("ml-100k", ["fedrec", "rows"], 1, repeats=2)
    assert (first.system, second.system) == ("fedrec", "rows")
    assert first.num_users == second.num_users == 943
    assert len(first.seconds) == 2 and all(seconds > 0 for seconds in first.seconds)
