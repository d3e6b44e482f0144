"""Table and figure of an audit: nothing but its JSON is needed, and no epsilon stands without its terms."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fedrec.errors import DataError
from fedrec.report.audit import Audit, audit_table, parse_audit
from fedrec.report.audit_plot import audit_plot
from fedrec.report.plots import DARK, LIGHT, png


def attack(what: str, view: str, name: str, strongest: bool, mean: float, limit: float | None) -> dict[str, Any]:
    return {
        "what": what,
        "view": view,
        "name": name,
        "strongest": strongest,
        "auc": {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "runs": [mean]},
        "true_positive_rate": {"mean": 0.03, "low": 0.02, "high": 0.04, "runs": [0.03]},
        "false_positive_rate": 0.01,
        "limit": limit,
    }


PRIVATE: dict[str, Any] = {
    "version": 1,
    "statement": "An audit looks at private data.",
    "data": {"name": "ml-100k", "num_users": 943},
    "config": {"model": {"name": "als"}, "federated": {"num_rounds": 2}, "runtime": {"seed": 0}},
    "settings": {"num_runs": 5, "confidence": 0.95},
    "claim": {
        "epsilon": 0.99951,
        "delta": 1e-5,
        "unit": "user",
        "neighboring_relation": "add-or-remove one user",
        "trust_model": "central",
        "accountant": "gaussian-exact",
    },
    "lower_bounds": {
        "refuted": False,
        "bounds": [
            {"kind": kind, "block": block, "epsilon": epsilon, "num_guesses": 250, "num_correct": 180, "highest": 4.2}
            for kind, block, epsilon in (("contributions", "", 0.31), ("contributions", "gram", 0.05), ("users", "", 0))
        ],
    },
    "one_shot": [
        {"knows_others": knows, "estimate": {"epsilon": 0.9, "low": 0.7, "high": 1.4}} for knows in (True, False)
    ],
    "membership": [
        attack("users", "final model", "fit, calibrated by 20 shadow runs", True, 0.52, 0.731),
        attack("users", "releases", "inner product", False, 0.53, 0.731),
        attack("users", "releases", "joint decoding", True, 0.55, 0.731),
        attack("interactions", "node sums", "joint decoding, 471 users a node", True, 0.97, None),
    ],
    "reconstruction": [
        {
            "source": source,
            "num_users": 50,
            "precision": [share, 0.0, 1.0],
            "recall": [share, None, None],
            "chance": 0.05,
            "direction": direction,
        }
        for source, share, direction in (("clear update", 1.0, 0.9999), ("release", 0.06, None))
    ],
}


def audit(**changes: Any) -> Audit:
    return parse_audit({**copy.deepcopy(PRIVATE), **changes}, "audit.json")


def refuted() -> Audit:
    bounds = copy.deepcopy(PRIVATE["lower_bounds"])
    bounds["refuted"], bounds["bounds"][1]["epsilon"] = True, 3.5
    return audit(lower_bounds=bounds)


NO_PRIVACY: dict[str, Any] = {"claim": None, "lower_bounds": None, "one_shot": None}


def test_table_states_the_claim_with_all_its_terms_and_names_bounds_and_estimates() -> None:
    table = audit_table(audit())
    assert all(len(line) <= 100 for line in table.splitlines())
    flat = " ".join(table.split())
    for words in (
        "epsilon 1 (delta 1e-05, unit user, neighbouring relation add-or-remove one user, trust model central",
        "accountant gaussian-exact",
        "what an attacker could show, at 95% confidence, is epsilon >= 0.31",
        "The claim stands",
        "an estimate, not a bound",
        "180 of 250 guesses right",
        "0.500-0.540",
        "AUC: mean of 5 runs with its 95% interval",
        "An audit looks at private data.",
    ):
        assert words in flat, words


def test_a_claimed_epsilon_is_never_printed_below_its_value() -> None:
    assert "epsilon 1 (" in audit_table(audit())  # 0.99951, rounded up


def test_refuted_claim_is_loud_and_says_which_canaries_showed_it() -> None:
    table = audit_table(refuted())
    assert "CLAIM REFUTED" in table
    assert "epsilon >= 3.50 (made-up contributions, block gram)" in " ".join(table.split())
    assert "probability of at most 0.05" in " ".join(table.split())
    assert "The claim stands" not in table


def test_table_without_privacy_says_so_and_shows_no_epsilon() -> None:
    table = audit_table(audit(**NO_PRIVACY))
    assert "claim    none (no privacy)" in table
    assert "epsilon" not in table and "lower bound" not in table


def test_missing_intervals_are_dashes() -> None:
    single = copy.deepcopy(PRIVATE["membership"])
    single[0]["auc"].update(low=None, high=None)
    line = next(line for line in audit_table(audit(membership=single)).splitlines() if "20 shadow runs" in line)
    assert line.split()[-5:] == ["0.520", "-", "3.0", "%", "0.731"]


def test_bounds_are_rounded_down() -> None:
    bounds = copy.deepcopy(PRIVATE["lower_bounds"])
    bounds["bounds"][0]["epsilon"] = 0.31999
    assert ">= 0.31" in audit_table(audit(lower_bounds=bounds))


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_figure_is_drawn_for_one_and_for_several_audits(theme: Any) -> None:
    several = {"epsilon 1": audit(), "broken": refuted(), "no privacy": audit(**NO_PRIVACY)}
    for audits in ({"one": audit()}, several, {"none": audit(**NO_PRIVACY)}):
        assert png(lambda chosen, audits=audits: audit_plot(audits, chosen), theme).startswith(b"\x89PNG")


def test_figure_says_what_is_claimed_and_under_which_terms() -> None:
    figure = audit_plot({"one": audit()}, LIGHT)
    upper, lower = figure.axes
    written = {text.get_text() for text in upper.texts}
    assert {"claimed: 1", "\u2265 0.31", "\u2248 0.90"} <= written
    for term in ("delta 1e-05", "unit user", "add-or-remove one user", "gaussian-exact"):
        assert term in " ".join(upper.get_xlabel().split())
    assert [label.get_text() for label in lower.get_yticklabels()] == [
        "users, final model",
        "users, noisy releases",
        "interactions, clear node sums",
    ]


def test_damaged_audit_is_named() -> None:
    with pytest.raises(DataError, match=r"audit\.json: membership"):
        audit(membership=[{"auc": 3}])
    with pytest.raises(DataError, match="list"):
        audit(one_shot={})
