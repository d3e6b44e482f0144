"""The scale experiment: what it reports, and that stored histories train the very model that interactions do."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedrec.data.batches import Histories, user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.data.columnar_writer import store_interactions
from fedrec.data.synthetic import SyntheticConfig, generate
from fedrec.errors import ConfigError, DataError
from fedrec.federated.cohort import sum_contributions
from fedrec.models.registry import build_model
from fedrec.privacy.clipping import BoundedSum
from fedrec.randomness import Key, user_keys
from simulations import scale
from simulations.one_round import AnonymousPeak, peak_rss

ROOT = Path(__file__).parent.parent.parent
FIELDS = {
    "model": str,
    "num_users": int,
    "num_items": int,
    "num_interactions": int,
    "dim": int,
    "num_threads": int,
    "seconds": float,
    "sum_seconds": float,
    "update_seconds": float,
    "cpu_seconds": float,
    "prepare_seconds": float,
    "users_per_second": float,
    "peak_rss_bytes": int,
    "peak_anonymous_bytes": int,
    "start_anonymous_bytes": int,
    "data_bytes": int,
    "data_fingerprint": str,
}


def run_scale(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    sizes = ("--users", "40", "400", "--items", "400", "--dim", "4", "--threads", "1")
    paths = ("--data", str(folder / "data"), "--out", str(folder / "out"))
    command = [sys.executable, "-m", "simulations.scale", *sizes, *paths, "--json", *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_tiny_run_reports_every_field_and_uses_its_data_again(tmp_path: Path) -> None:
    done = run_scale(tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results == json.loads((tmp_path / "out" / "scale.json").read_text())
    assert [(found["model"], found["num_users"]) for found in results["rounds"]] == [
        ("als", 40),
        ("mf", 40),
        ("als", 400),
        ("mf", 400),
    ]
    for found in results["rounds"]:
        assert {name: type(value) for name, value in found.items()} == FIELDS
        assert found["seconds"] == pytest.approx(found["sum_seconds"] + found["update_seconds"])
        assert found["peak_rss_bytes"] > found["peak_anonymous_bytes"] >= found["start_anonymous_bytes"] > 0
        assert found["num_interactions"] * 12 < found["data_bytes"]
    for model in ("als", "mf"):
        assert all(math.isfinite(value) for value in results["growth"][model].values())
        assert f"{model}: seconds ~ users^" in done.stdout
    assert (tmp_path / "out" / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert done.stderr.count("wrote ") == 2
    again = run_scale(tmp_path, "--models", "als", "--users", "40")
    assert again.returncode == 0 and "wrote " not in again.stderr
    one_size = json.loads(again.stdout.splitlines()[-1])
    assert one_size["rounds"][0]["data_fingerprint"] == results["rounds"][0]["data_fingerprint"]
    assert one_size["growth"]["als"]["exponent_seconds"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "alss"], "did you mean 'als'"),
        (["--items", "20"], "--items 20 is too small"),
        (["--users", "0"], "--users 0 is too small"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        scale.main([*arguments, "--data", str(tmp_path), "--out", str(tmp_path)])


def test_another_world_under_the_name_is_refused(tmp_path: Path) -> None:
    scale.stored_world(tmp_path, 40, 400).folder.rename(tmp_path / "users-50-items-400")
    with pytest.raises(DataError, match="holds 40 users"):
        scale.stored_world(tmp_path, 50, 400)


def test_growth_is_the_slope_in_logarithms() -> None:
    rounds = [{"num_users": n, "seconds": 3.0 * n**1.5, "peak": 7, "missing": None} for n in (10, 100, 1000)]
    assert scale.growth(rounds, "seconds") == pytest.approx(1.5)
    assert scale.growth(rounds, "peak") == pytest.approx(0.0)
    assert scale.growth(rounds, "missing") is None and scale.growth(rounds[:1], "seconds") is None


def test_memory_that_is_allocated_is_seen() -> None:
    with AnonymousPeak() as peak:
        before = peak.bytes
        np.ones(2**23).sum()
    if before is not None and peak.bytes is not None:
        assert peak.bytes - before > 2**25
    assert peak_rss() >= (peak.bytes or 0)


@pytest.mark.parametrize("name", ["als", "mf", "popularity"])
def test_sums_over_stored_histories_are_those_over_interactions(name: str, tmp_path: Path) -> None:
    world = {"num_users": 300, "num_items": 200, "mean_interactions": 10}
    data = generate(SyntheticConfig.model_validate(world), Key.from_seed(1))
    key = Key.from_seed(0)
    model = build_model({"name": name}, None)
    shared = model.init(Catalogue(data.interactions.item_ids), key).shared
    keys = user_keys(data.interactions.user_ids.ids)

    def summed(histories: Histories) -> BoundedSum:
        batches = user_batches(histories, max_elements=1000, keys=keys)
        return sum_contributions(model, shared, batches, math.inf, key)[0]

    ordinary, stored = summed(data.interactions), summed(store_interactions(tmp_path / "data", data.interactions))
    assert ordinary.totals.keys() == stored.totals.keys()
    for block, total in ordinary.totals.items():
        assert torch.equal(total, stored.totals[block]), block
