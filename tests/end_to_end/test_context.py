"""Context through all of it: data file, simulation, and lists for the context that is asked for."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrec.models import registry
from tests.by_context import ByContext, ByContextConfig, contextual_world
from tests.end_to_end.conftest import Outcome

Fedrec = Callable[..., Outcome]

CONFIG = """
[data]
path = "{data}"
columns = {{ context = ["place"] }}

[model]
name = "by_context"
context_fields = ["{field}"]

[federated]
num_rounds = 1

[evaluation]
repeat = true

[runtime]
num_threads = 1
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    entry = registry._Entry(ByContextConfig, lambda values, _: ByContext(values))
    monkeypatch.setitem(registry._EXACT, "by_context", entry)
    world, data = contextual_world(), tmp_path / "visits.csv"
    places = world.context_ids["place"].ids[world.context["place"]]
    with data.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "timestamp", "place"])
        for user, item, time, place in zip(world.users, world.items, world.times, places, strict=True):
            writer.writerow([f"u{user}", f"i{item:02}", 1_700_000_000 + 3600 * time, place])
    path = tmp_path / "run.toml"
    path.write_text(CONFIG.format(data=data, field="place"))
    return path


def lists(fedrec: Fedrec, run: Path, to: Path, *options: str) -> dict[str, list[int]]:
    outcome = fedrec("recommend", "--run", run, "--all", "--top", 10, "--to", to, *options)
    assert outcome.code == 0, outcome.err
    table = pd.read_parquet(to).sort_values(["user", "rank"])
    return {user: [int(item[1:]) for item in items] for user, items in table.groupby("user")["item"]}


def test_same_user_gets_different_lists_in_different_contexts(fedrec: Fedrec, config: Path, tmp_path: Path) -> None:
    assert fedrec("simulate", config, "--out", tmp_path / "run").code == 0
    found = {
        place: lists(fedrec, tmp_path / "run", tmp_path / "lists.parquet", "--context", f"place={place}")
        for place in ("home", "work")
    }
    assert len(found["home"]) == 60
    assert all(item < 20 for items in found["home"].values() for item in items)
    assert all(item >= 20 for items in found["work"].values() for item in items)


def test_without_a_context_or_in_one_nobody_knows_it_is_unknown(
    fedrec: Fedrec, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, to = tmp_path / "run", tmp_path / "lists.parquet"
    assert fedrec("simulate", config, "--out", run).code == 0
    unknown = lists(fedrec, run, to)
    halves = {item >= 20 for item in unknown["u0"]}
    assert halves == {False, True}
    assert lists(fedrec, run, to, "--context", "place=moon") == unknown
    assert "'moon' is not a value of that field and counts as unknown" in caplog.text


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("plaice=home", "context field 'plaice' is unknown; allowed are place; did you mean place?"),
        ("home", "--context 'home' is not of the form field=value"),
    ],
)
def test_context_that_cannot_be_is_one_clear_line(
    fedrec: Fedrec, config: Path, tmp_path: Path, option: str, words: str
) -> None:
    assert fedrec("simulate", config, "--out", tmp_path / "run").code == 0
    arguments = ("recommend", "--run", tmp_path / "run", "--all", "--to", tmp_path / "x.parquet", "--context", option)
    outcome = fedrec(*arguments)
    assert outcome.code == 2 and words in outcome.err and len(outcome.err.strip().splitlines()) == 1


def test_time_of_an_interaction_is_a_context_too(fedrec: Fedrec, config: Path, tmp_path: Path) -> None:
    text = config.read_text().replace("[model]", 'time_context = ["hour"]\n\n[model]', 1)
    config.write_text(text.replace('["place"]\n\n[fed', '["hour"]\n\n[fed'))
    assert fedrec("simulate", config, "--out", tmp_path / "run").code == 0
    # The world has no hours of taste, but at each of its twelve hours other items were met most.
    found = [
        lists(fedrec, tmp_path / "run", tmp_path / "lists.parquet", "--context", f"hour={hour}")["u0"]
        for hour in (np.arange(2) + 1_700_000_000 // 3600) % 24
    ]
    assert found[0] != found[1]
