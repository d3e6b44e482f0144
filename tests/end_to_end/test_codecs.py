"""Codecs from the command line: lists agree with metrics, runs resume, bad chains are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from fedrec.federated import coordinator
from fedrec.run_folder import RunFolder
from tests.end_to_end.conftest import Outcome
from tests.end_to_end.test_resume import Stop, stop_at
from tests.end_to_end.test_simulate import leave_one_out_metrics, simulate

Fedrec = Callable[..., Outcome]
SMALL = ('federated.upload_codec=["low_rank", "int8"]', "federated.codec_rank=2", 'federated.download_codec="int8"')


@pytest.mark.parametrize("private", [False, True])
def test_lists_are_made_with_what_nodes_decode_and_agree_with_the_metrics(
    fedrec: Fedrec, config_file: Path, private_config_file: Path, data_file: Path, tmp_path: Path, private: bool
) -> None:
    config, settings = (private_config_file, SMALL[2:]) if private else (config_file, SMALL)
    result = simulate(fedrec, config, tmp_path / "run", *settings)
    fedrec("recommend", "--run", tmp_path / "run", "--all", "--top", 100, "--to", tmp_path / "lists.parquet")
    found = leave_one_out_metrics(pd.read_parquet(tmp_path / "lists.parquet"), pd.read_csv(data_file))
    assert found == pytest.approx({name: result["metrics"]["test"][name] for name in found}, abs=1e-6)


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_compressed_run_that_is_stopped_resumes_to_the_same_model(
    fedrec: Fedrec, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, before: bool
) -> None:
    simulate(fedrec, config_file, tmp_path / "whole", *SMALL)
    settings = [part for setting in SMALL for part in ("--set", setting)]
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, coordinator, "write_checkpoint", call, before)
        fedrec("simulate", config_file, "--out", tmp_path / "stopped", *settings)
    assert fedrec("resume", tmp_path / "stopped").code == 0
    whole, stopped = (RunFolder(tmp_path / name) for name in ("whole", "stopped"))
    assert whole.result()["metrics"] == stopped.result()["metrics"]
    file = "server.safetensors"
    assert (whole.checkpoint / file).read_bytes() == (stopped.checkpoint / file).read_bytes()
    sent = [[line["communication"] for line in folder.rounds()] for folder in (whole, stopped)]
    assert sent[0] == sent[1]


def test_report_shows_a_compressed_run(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    simulate(fedrec, config_file, tmp_path / "run", *SMALL)
    outcome = fedrec("report", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "Upload, per node and round" in Path(outcome.out.strip()).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("federated.upload_codec=zip", "federated.upload_codec: codec ['zip'] is unknown; allowed are 'dense' or"),
        ('federated.download_codec=["int8", "low_rank"]', "out of order"),
        ('federated.upload_codec=["dense", "int8"]', "give 'dense' alone"),
        ("federated.upload_codec=[]", "unknown"),
        ("federated.upload_codec=8", "federated.upload_codec=8 is not allowed"),
        ("federated.codec_rank=0", "federated.codec_rank=0"),
        ("federated.upload_codecs=int8", "did you mean 'upload_codec'?"),
    ],
)
def test_bad_chain_is_told_in_one_line(
    fedrec: Fedrec, config_file: Path, tmp_path: Path, setting: str, reason: str
) -> None:
    outcome = fedrec("simulate", config_file, "--set", setting, "--out", tmp_path / "run")
    assert outcome.code == 2 and reason in outcome.err and len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_written_config_keeps_the_chain(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    simulate(fedrec, config_file, tmp_path / "run", *SMALL)
    text = (tmp_path / "run" / "config.toml").read_text()
    assert 'upload_codec = ["low_rank", "int8"]' in text and 'download_codec = ["int8"]' in text
    assert json.loads(RunFolder(tmp_path / "run").config().to_json())["federated"]["codec_rank"] == 2
