"""The communication experiment: what its table and plot are made of, and that finished runs are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrec.run_folder import RunFolder
from simulations import communication
from simulations.communication import draw, measure, settings_of, table
from tests.end_to_end.conftest import *  # noqa: F403 - the same small data file and config


def test_codec_is_named_in_one_word() -> None:
    assert settings_of("dense") == ['federated.upload_codec=["dense"]']
    assert settings_of("low_rank+int8:4") == ['federated.upload_codec=["low_rank", "int8"]', "federated.codec_rank=4"]


def test_outcome_is_that_of_its_runs_and_finished_runs_are_not_run_again(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(config_file, "low_rank+int8:1", 2, tmp_path)
    results = [RunFolder(tmp_path / f"low_rank-int8-1-seed-{seed}").result() for seed in (0, 1)]
    assert first.ndcg == tuple(result["metrics"]["test"]["ndcg@10"] for result in results)
    assert first.ratio == results[0]["communication"]["upload_ratio"]
    monkeypatch.delattr(communication, "run_simulation")
    assert measure(config_file, "low_rank+int8:1", 2, tmp_path) == first


def test_loss_is_relative_to_the_first_row_and_the_plot_is_drawn(tmp_path: Path) -> None:
    outcomes = [
        communication.Outcome("dense", 32e6, 1.0, (0.11, 0.13)),
        communication.Outcome("low_rank+int8:4", 3e5, 100.0, (0.108, 0.12)),
    ]
    lines = table(outcomes).splitlines()
    assert "0.1200 ± 0.0141" in lines[1] and "5.0%" in lines[2] and "100.0x" in lines[2]
    draw(outcomes, "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
