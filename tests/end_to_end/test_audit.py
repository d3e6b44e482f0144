"""`fedrec audit`: of a config and of a run, its files, its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedrec.federated import cohort
from tests.end_to_end.conftest import Outcome
from tests.end_to_end.test_bad_input import one_line

Fedrec = Callable[..., Outcome]
LITTLE = ("--canaries", 100, "--runs", 2, "--shadows", 2)


def test_audit_of_a_private_config(fedrec: Fedrec, private_config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    outcome = fedrec("audit", private_config_file, "--out", out, "--json", *LITTLE)
    assert outcome.code == 0, outcome.err
    written = json.loads((out / "audit.json").read_text())
    assert json.loads(outcome.out.splitlines()[-1]) == written
    assert (out / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert written["claim"]["epsilon"] <= 8.0 and written["settings"]["num_shadows"] == 2
    assert "membership of users: run 1 of 4" in outcome.err


def test_audit_of_a_run_lies_in_its_folder_and_prints_a_table(
    fedrec: Fedrec, config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert fedrec("simulate", config_file, "--out", run).code == 0
    outcome = fedrec("audit", run, *LITTLE)
    assert outcome.code == 0, outcome.err
    assert "claim    none (no privacy)" in outcome.out and "membership inference" in outcome.out
    assert (run / "audit" / "audit.json").exists() and fedrec("report", run).code == 0
    (run / "data_fingerprint").write_text("of other data")
    one_line(fedrec("audit", run, *LITTLE), "fingerprint")


def test_refuted_claim_has_exit_code_1_and_leaves_its_files(
    fedrec: Fedrec, private_config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "draw_cohort", lambda user_keys, probability, key: np.arange(len(user_keys)))
    settings = ("--set", "privacy.target_epsilon=0.5", "--set", "privacy.sampling_probability=0.1")
    outcome = fedrec("audit", private_config_file, "--out", tmp_path / "a", *settings, "--canaries", 1000, *LITTLE[2:])
    assert outcome.code == 1, outcome.err
    assert "CLAIM REFUTED" in outcome.out and "error: the claim is refuted" in outcome.err
    assert json.loads((tmp_path / "a" / "audit.json").read_text())["lower_bounds"]["refuted"] is True


def test_bad_input_is_one_line_and_leaves_no_folder(fedrec: Fedrec, private_config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    one_line(fedrec("audit", tmp_path, "--out", out), "holds no run")
    one_line(fedrec("audit", tmp_path / "nowhere.toml", "--out", out), "nowhere.toml")
    one_line(fedrec("audit", private_config_file, "--out", out, "--canaries", 3), "--canaries 3")
    one_line(fedrec("audit", private_config_file, "--out", out, "--confidence", 2), "--confidence 2")
    one_line(fedrec("audit", private_config_file, "--out", out, "--set", "model.name=alz"), "als")
    one_line(fedrec("audit", private_config_file, "--out", out, "--set", "privacy.trust_model=local"), "local")
    assert not out.exists()
    (tmp_path / "file").write_text("")
    one_line(fedrec("audit", private_config_file, "--out", tmp_path / "file", *LITTLE), "--out")
