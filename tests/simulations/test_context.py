"""The study of context: what helps is found to help, what is shuffled does not, and intervals are honest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedrec import assemble
from fedrec import config as configs
from fedrec.config import Config
from fedrec.data.synthetic import SyntheticConfig, write_parquet
from fedrec.errors import ConfigError
from fedrec.models import registry
from fedrec.randomness import Key
from simulations import context
from tests.by_context import ByContext, ByContextConfig

WORLD = SyntheticConfig(num_users=400, num_items=200, mean_interactions=12, context_share=0.9, noise_share=0.1)
CONFIG = """
[data]
path = "{data}"
columns = {{ context = ["daytime", "device"] }}

[model]
name = "by_context"
context_fields = {fields}

[federated]
num_rounds = 1

[evaluation]
protocol = "{protocol}"

[runtime]
num_threads = 1
"""


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(registry._EXACT, "by_context", registry._Entry(ByContextConfig, lambda v, _: ByContext(v)))
    write_parquet(WORLD, Key.from_seed(0), tmp_path / "data.parquet")
    path = tmp_path / "run.toml"
    path.write_text(CONFIG.format(data=tmp_path / "data.parquet", fields='["daytime"]', protocol="leave_one_out"))
    return path


@pytest.fixture
def config(config_file: Path) -> Config:
    return configs.load(config_file)


def test_context_that_decides_gains_and_shuffled_it_does_not(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context.main([str(config_file), "--splits", "2", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == found and "daytime" in lines[0]
    assert found["num_splits"] == 2 and found["num_users"] == 400
    assert found["differences"]["with - without"]["low"] > 0
    assert found["differences"]["with - without"]["relative"] > 0.25
    assert found["differences"]["shuffled - without"]["mean"] <= 0
    assert found["variants"]["with"]["mean"] > found["variants"]["without"]["mean"] > 0
    assert not found["without_items_met_in_this_context"] and found["fresh"]["without_items_met_in_this_context"]


@pytest.mark.parametrize("protocol", ["leave_one_out", "temporal"])
def test_mean_over_users_is_the_metric_of_the_run(config: Config, protocol: str, tmp_path: Path) -> None:
    from fedrec.run_folder import RunFolder
    from fedrec.simulation import run_simulation

    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"protocol": protocol})})
    folder = RunFolder(tmp_path / "run")
    folder.create(config)
    run_simulation(folder.path, config)
    ndcg = context.user_ndcg(config, context.train(config))
    assert np.nanmean(ndcg) == pytest.approx(folder.result()["metrics"]["test"]["ndcg@10"])


def test_items_met_in_the_same_context_can_be_left_out_and_others_are_not(config: Config) -> None:
    repeat = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"repeat": True})})
    shared, whole = context.train(repeat), assemble.whole_split(repeat.to_json())
    before, after = context.user_ndcg(repeat, shared), context.user_ndcg(repeat, shared, fresh_in=("daytime", "device"))
    history, test = whole.history, whole.test
    alike = np.ones(len(history), dtype=bool)
    for column, target in ((history.context[name], test.context[name]) for name in ("daytime", "device")):
        alike &= column == target[test.indptr[history.users]]
    some = np.bincount(history.users[alike], minlength=history.num_users) > 0
    assert 0 < some.sum() < len(some)
    assert (after >= before).all() and (after[~some] == before[~some]).all() and (after[some] > before[some]).any()


def test_model_that_reads_no_context_is_refused(config: Config) -> None:
    blind = config.model_copy(update={"model": {"name": "by_context", "context_fields": []}})
    with pytest.raises(ConfigError, match="reads no context"):
        context.measure(blind, 1)


def test_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(200):
        users, splits = rng.normal(size=(1, 60)), rng.normal(size=(10, 1)) / 5
        sample = users + splits + rng.normal(size=(10, 60))
        low, high = context.interval(sample, Key.from_seed(seed), replicates=400)
        covered.append(low <= 0 <= high)
    assert 0.9 <= np.mean(covered) <= 0.99


def test_interval_of_one_split_is_over_users() -> None:
    same = np.full((1, 50), 0.25)
    assert context.interval(same, Key.from_seed(0), 100) == pytest.approx((0.25, 0.25))
