"""The example-level benchmark: all ways do a step, and the table names the library's first."""

from __future__ import annotations

import pytest

from simulations.example_level import measure_node
from tests.worlds import random_world


def test_every_way_is_timed_on_the_same_sample() -> None:
    speeds = measure_node("a small world", 1, 2, random_world(30, 40), probability=0.5)
    assert [way.name for way in speeds.ways] == ["ghost", "ghost, own norm", "hooks"]
    assert all(len(way.seconds) == 2 and min(way.seconds) > 0 for way in speeds.ways)
    ghost, _, hooks = speeds.ways
    each = [way.megabytes / min(way.at_once, speeds.num_examples) for way in (hooks, ghost)]
    assert each[0] / each[1] == pytest.approx(7)  # 70 rows in two tables, and 10 that an example touches
    lines = speeds.table().splitlines()
    assert lines[2].split()[0] == "ghost" and lines[2].split()[3] == "1.0"
