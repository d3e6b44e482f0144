"""Training in one place: with everybody in every round and nothing drawn, it is the federated run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from fedrec.config import Config, load
from fedrec.errors import ConfigError
from fedrec.federated.checkpoint import read_checkpoint
from fedrec.run_folder import RunFolder
from fedrec.simulation import run_simulation
from simulations import centralised

CONFIG = """
[data]
name = "synthetic"
synthetic = {{ num_users = 60, num_items = 80, mean_interactions = 12 }}

[model]
name = "{name}"
{settings}

[federated]
num_rounds = 6
full_rounds = {full_rounds}
last_full_rounds = {last_full_rounds}
sampling_probability = {probability}

[runtime]
num_threads = 1
"""
TOWERS = "dim = 8\nhistory = { num_blocks = 1, window = 6, dropout = 0.0, crop_probability = 0.0 }"
HYBRID = "als_rounds = 2\nals = { dim = 4 }\n[model.two_tower]\n" + TOWERS
WITH_SLIT = "tower_rounds = 3\nslit = { regularization = 2.0 }\n" + HYBRID


def finished(
    tmp_path: Path, name: str, settings: str, probability: float = 1.0, full: tuple[int, int] = (0, 0)
) -> RunFolder:
    path = tmp_path / "config.toml"
    rounds = {"full_rounds": full[0], "last_full_rounds": full[1]}
    path.write_text(CONFIG.format(name=name, settings=settings, probability=probability, **rounds))
    config: Config = load(path)
    folder = RunFolder(tmp_path / "run")
    folder.create(config)
    run_simulation(folder.path, config)
    return folder


@pytest.mark.parametrize("name, settings", [("two_tower", TOWERS), ("hybrid", HYBRID), ("hybrid", WITH_SLIT)])
def test_everybody_in_every_round_is_training_in_one_place(tmp_path: Path, name: str, settings: str) -> None:
    folder = finished(tmp_path, name, settings)
    _, shared = centralised.train_in_one_place(folder.config())
    federated = read_checkpoint(folder.checkpoint / "server.safetensors").state.shared
    assert shared.keys() == federated.keys()
    for parameter, tensor in shared.items():
        if parameter == "round":
            continue
        torch.testing.assert_close(federated[parameter], tensor, rtol=1e-3, atol=2e-5, msg=parameter)


def test_table_has_both_sides_and_what_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path, "hybrid", WITH_SLIT, probability=0.3, full=(2, 1))
    sizes = [line["diagnostics"]["cohort_size"] for line in folder.rounds()]
    assert sizes[:2] == [60, 60] and max(sizes[2:5]) < 40 and sizes[5] == 60, "full rounds come first and last"
    sent = [line["communication"]["download_bytes"] for line in folder.rounds()]
    assert max(sent) - min(sent) < 4 * 80 * 80, "the table of SLIT is not sent before it is there"
    monkeypatch.setattr(sys, "argv", ["centralised", str(folder.path), "--out", str(tmp_path / "found.json")])
    centralised.main()
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["federated"]["ndcg@10"] == folder.result()["metrics"]["test"]["ndcg@10"]
    assert 0 <= found["centralised"]["ndcg@10"] <= 1 and found["communication"]["rounds"] == 6
    sent = [node["upload_bytes"] for line in folder.rounds() for node in line["communication"]["nodes"].values()]
    assert found["communication"]["upload_total_bytes"] == sum(sent)
    assert "mean" in capsys.readouterr().out


def test_other_models_are_refused(tmp_path: Path) -> None:
    folder = finished(tmp_path, "popularity", "")
    with pytest.raises(ConfigError, match="'popularity' is not compared here"):
        centralised.compare(folder)
