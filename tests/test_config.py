"""Configs: what is written is what is read, and the committed ones are sound."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedrec.config import Config, build, load, to_toml
from fedrec.errors import ConfigError

SIMULATIONS = sorted((Path(__file__).parent.parent / "simulations").glob("*.toml"))
MINIMAL = {"data": {"name": "synthetic"}, "model": {"name": "als"}}


@pytest.mark.parametrize("path", SIMULATIONS, ids=lambda path: path.stem)
def test_committed_config_loads_and_survives_the_round_trip(path: Path) -> None:
    config = load(path)
    assert build(tomllib.loads(to_toml(config)), "again") == config
    assert Config.from_json(config.to_json()) == config


def test_resolved_config_names_every_default_of_the_model() -> None:
    assert build(MINIMAL, "c").model["dim"] == 32
    private = build({**MINIMAL, "privacy": {"target_epsilon": 1.0, "population_size": 100}}, "c")
    assert "item_share" in private.model, "a privacy table builds the bounded form"


def test_odd_text_survives_the_round_trip() -> None:
    table = {
        **MINIMAL,
        "data": {"path": 'a "b"\\c\n\tü\x7f.csv', "columns": {"user": "who's", "context": ["a b", "c"]}},
    }
    config = build(table, "c")
    assert build(tomllib.loads(to_toml(config)), "again") == config


def test_settings_override_in_order_and_take_bare_words(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[data]\nname = "synthetic"\n[model]\nname = "als"\ndim = 4\n')
    config = load(tmp_path / "c.toml", ["model.dim=8", "model.dim=16", "data.name=ml-100k", "evaluation.repeat=true"])
    assert (config.model["dim"], config.data.name, config.evaluation.repeat) == (16, "ml-100k", True)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build({**MINIMAL, "federated": {"num_nodes": 0, "rounds": 3}, "runtime": {"seed": -1}}, "c.toml")
    for word in ("c.toml", "federated.num_nodes=0", "unknown key federated.rounds", "runtime.seed=-1"):
        assert word in str(caught.value)


def test_config_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        build(MINIMAL, "c").runtime.seed = 3  # type: ignore[misc]
