"""The table of published peers: equally tuned on validation, and a leak that nothing but this switches on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fedrec import assemble
from fedrec import config as configs
from fedrec.errors import ConfigError
from fedrec.models.registry import model_names, settings_type
from fedrec.randomness import user_keys
from fedrec.tuning.space import Range
from simulations import peers
from simulations.contenders import CONTENDERS, Contender, contenders
from simulations.leak import LEAKING, held_out_of, leaking
from tests.worlds import checkerboard

WORLD = {"num_users": 150, "num_items": 100, "mean_interactions": 10.0, "num_classes": 8}
SETTINGS = {f"data.synthetic.{name}": value for name, value in WORLD.items()}
SMALL = {
    "data": {"name": "synthetic", "synthetic": WORLD},
    "model": {"name": "pfedrec", "dim": 4},
    "federated": {"num_rounds": 2},
}


def test_every_contender_starts_and_searches_among_settings_of_its_model() -> None:
    for one in CONTENDERS:
        fields = settings_type(one.model["name"], None).model_fields
        assert {*one.model} - {"name"} <= {*fields}
        assert {axis.key.removeprefix("model.") for axis in one.space} <= {*fields}
        assert one.leaks == (one.model["name"] in {"fedmf", "fedncf", "fedrecon", "pfedrec"})
    with pytest.raises(ConfigError, match="--only 'fcc' is unknown; allowed are popularity"):
        contenders("fcc")


def test_leak_knows_the_held_out_items_of_every_user() -> None:
    split, _ = checkerboard()
    found = held_out_of(split)
    assert (np.diff(found.keys.astype(object)) > 0).all()
    keys = user_keys(split.train.user_ids.ids)
    for user in range(split.train.num_users):
        own = {int(part.items[part.users == user][0]) for part in (split.validation, split.test)}
        assert {*found.items[np.flatnonzero(found.keys == keys[user])[0]].tolist()} == own


def test_no_setting_of_any_model_switches_the_leak_on() -> None:
    for name in model_names(None):
        assert not {"held_out", "leak", "negatives_exclude"} & {*settings_type(name, None).model_fields}
    with pytest.raises(ConfigError, match=r"unknown key model\.held_out"):
        configs.build({**SMALL, "model": {"name": "pfedrec", "held_out": True}}, "test")
    library = Path(assemble.__file__).parent
    importing = [path for path in library.rglob("*.py") if re.search(r"import.*leak", path.read_text(encoding="utf-8"))]
    assert not importing


def test_leak_ends_with_its_block() -> None:
    config = configs.build(SMALL, "test")
    kind = LEAKING[3]
    honest = assemble.model_of(config)
    with leaking(config):
        inside = assemble.model_of(config)
    outside = assemble.model_of(config)
    assert isinstance(honest, kind) and isinstance(inside, kind) and isinstance(outside, kind)
    assert honest._held_out is None and inside._held_out is not None and outside._held_out is None
    als = configs.build({**SMALL, "model": {"name": "als"}}, "test")
    with pytest.raises(ConfigError, match="model 'als' has no leak to show; allowed are fedmf"), leaking(als):
        pass
    assert assemble.model_of(als) is not None


def test_rows_are_tuned_by_validation_and_show_the_leak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = peers.Plan("synthetic", num_trials=3, num_seeds=2, out=tmp_path, max_rounds=3, settings=SETTINGS)
    [fedmf] = contenders("fedmf")
    row = peers.measure(plan, fedmf)
    assert len(row.choice.trials) == 3 and row.choice.trials[0]["params"] == {}
    best = max(max(trial["curve"].values()) for trial in row.choice.trials)
    assert row.choice.validation == best and 1 <= row.choice.rounds <= 3
    assert all(len(values) == 2 for values in row.test.values())
    assert row.leak is not None and row.leak["rounds"] == 3
    assert "leak" in json.loads((tmp_path / "fedmf" / "leak" / "result.json").read_text())
    assert "leak" not in json.loads((tmp_path / "fedmf" / "seed-0" / "result.json").read_text())
    assert not (tmp_path / "fedmf" / "trial-0" / "result.json").exists(), "trials rank no test item"
    capsys.readouterr()
    assert peers.measure(plan, fedmf) == row, "what is finished is read, not run again"
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        peers.measure(peers.Plan("synthetic", 3, 2, tmp_path, 2, SETTINGS), fedmf)
    popularity = peers.measure(plan, Contender("popularity", {"name": "popularity"}, 1, draws=False))
    found = json.loads(peers.as_json([row, popularity], plan))
    assert [one["label"] for one in found["rows"]] == ["fedmf", "popularity"]
    assert peers.table([row, popularity], plan).row_count == 2


def test_settings_that_fail_are_recorded_and_not_chosen(tmp_path: Path) -> None:
    plan = peers.Plan("synthetic", 3, 1, tmp_path, max_rounds=1, settings=SETTINGS)
    space = (Range(key="model.loss", values=("logistic", "absolute")),)
    choice = peers.tune(plan, Contender("some", {"name": "fedmf"}, 4, space))
    failed = [trial for trial in choice.trials if "reason" in trial]
    assert failed and all("model.loss" in trial["reason"] for trial in failed)
    assert choice.params.get("model.loss") != "absolute"
    with pytest.raises(ConfigError, match="none of 1 settings of wrong finished; the first"):
        peers.tune(plan, Contender("wrong", {"name": "fedmf", "loss": "absolute"}, 4))


def test_committed_configs_run_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    table = {**SMALL, "model": {"name": "als", "dim": 4}}
    file.write_text(configs.to_toml(configs.build(table, "test")))
    row = peers.measure_ours(peers.Plan("synthetic", 1, 2, tmp_path / "out"), file)
    assert row.label == "ours" and row.choice.rounds == 2 and len(row.test["ndcg@10"]) == 2
