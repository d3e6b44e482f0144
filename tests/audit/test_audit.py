"""A whole audit: everything it says, with the terms an epsilon must stand with, and what it refuses."""

from __future__ import annotations

import json

import pytest

from fedrec.audit.audit import Settings, run_audit
from fedrec.config import Config, build
from fedrec.errors import ConfigError
from fedrec.privacy import clipping
from tests.audit.subjects import config
from tests.audit.test_canaries import no_clipping

SMALL = Settings(num_canaries=200, num_runs=2, num_shadows=3, num_candidates=150, num_reconstructed=10)


def test_audit_of_a_private_config_says_everything() -> None:
    said: list[str] = []
    audit = run_audit(config("als", 1.0), SMALL, said.append)
    assert json.loads(json.dumps(audit, allow_nan=False)) == audit
    claim, bounds = audit["claim"], audit["lower_bounds"]
    assert claim["epsilon"] == pytest.approx(1.0, rel=1e-3) and claim["trust_model"] == "central"
    assert {"delta", "unit", "neighboring_relation", "accountant"} <= claim.keys()
    assert audit["settings"]["num_canaries"] == 200 and audit["config"]["model"]["name"] == "als"
    assert bounds["confidence"] == 0.95 and bounds["delta"] == 1e-5 and bounds["refuted"] is False
    assert {(one["kind"], one["block"]) for one in bounds["bounds"]} == {
        ("contributions", ""),
        ("contributions", "items"),
        ("contributions", "counts"),
        ("contributions", "gram"),
        ("users", ""),
    }
    assert bounds["best"] == max(one["epsilon"] for one in bounds["bounds"]) <= claim["epsilon"]
    assert all(one["epsilon"] <= one["highest"] for one in bounds["bounds"])
    assert [one["knows_others"] for one in audit["one_shot"]] == [True, False]
    assert {(one["what"], one["view"]) for one in audit["membership"]} == {
        (what, view) for what in ("users", "interactions") for view in ("final model", "releases", "node sums")
    }
    for one in audit["membership"]:
        assert len(one["auc"]["runs"]) == 2 and 0 <= one["auc"]["mean"] <= 1
        assert (one["limit"] is None) == (one["view"] == "node sums")
        if one["limit"] is not None:
            assert one["limit"] == pytest.approx(0.731 if one["what"] == "users" else 0.881, abs=2e-3)
    assert [one["source"] for one in audit["reconstruction"]] == ["clear update", "release"]
    assert any("lower bound" in line for line in said) and any("membership" in line for line in said)


def test_audit_without_privacy_claims_nothing() -> None:
    audit = run_audit(config("als"), SMALL)
    assert audit["claim"] is audit["lower_bounds"] is audit["one_shot"] is None
    assert {one["view"] for one in audit["membership"]} == {"final model", "node sums"}
    assert all(one["limit"] is None for one in audit["membership"])


@pytest.mark.parametrize("model", ["item_knn", "content"])
def test_models_whose_sums_have_no_rows_to_decode_are_audited_too(model: str) -> None:
    table = config("popularity", num_rounds=1).model_dump(exclude_none=True)
    audit = run_audit(build({**table, "model": {"name": model}}, "test"), SMALL)
    areas = {(one["what"], one["view"]): one["auc"]["mean"] for one in audit["membership"] if one["strongest"]}
    if model == "content":  # learns from nobody
        assert all(area == pytest.approx(0.5, abs=0.03) for area in areas.values())
    else:
        assert areas.keys() == {("users", "final model"), ("interactions", "final model")}
        assert audit["reconstruction"][0]["recall"][0] == 1.0


def test_audits_of_one_seed_are_equal_and_of_another_differ() -> None:
    first, again, other = (run_audit(config("popularity", 2.0, seed=seed), SMALL) for seed in (0, 0, 1))
    assert first["lower_bounds"] == again["lower_bounds"] and first["membership"] == again["membership"]
    assert first["membership"] != other["membership"]


def test_broken_mechanism_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipping, "clip_scales", no_clipping)
    bounds = run_audit(config("popularity", 1.0), SMALL)["lower_bounds"]
    assert bounds["refuted"] is True and bounds["best"] > 1.0


def test_local_trust_is_refused_for_now() -> None:
    table = config("als", 8.0).model_dump(exclude_none=True)
    table["privacy"]["trust_model"] = "local"
    with pytest.raises(ConfigError, match="local") as refused:
        run_audit(Config.model_validate(table), SMALL)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong", [{"num_canaries": 5}, {"num_runs": 0}, {"num_shadows": -1}, {"confidence": 1.0}, {"confidence": 0.2}]
)
def test_settings_that_show_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--"):
        Settings(**wrong)  # type: ignore[arg-type]
