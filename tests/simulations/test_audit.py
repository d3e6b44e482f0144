"""The experiment that holds claims against attacks: one folder an audit, one figure over all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedrec.config import to_toml
from simulations.audit import main
from tests.audit.subjects import config


def test_every_claim_has_its_audit_and_the_figure_has_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without, under = tmp_path / "without.toml", tmp_path / "under.toml"
    without.write_text(to_toml(config("popularity")))
    under.write_text(to_toml(config("popularity", 8.0)))
    little = ["--canaries", "50", "--runs", "2", "--shadows", "2"]
    main(["--out", str(tmp_path / "out"), "--without", str(without), "--under", str(under), "--epsilon", "4", *little])
    claims = {
        path.parent.name: json.loads(path.read_text())["claim"] for path in (tmp_path / "out").glob("*/audit.json")
    }
    assert claims["no-privacy"] is None and claims["epsilon-4"]["epsilon"] == pytest.approx(4.0, rel=1e-3)
    assert (tmp_path / "out" / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("audit of synthetic") == 2
