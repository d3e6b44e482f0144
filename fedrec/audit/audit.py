"""A whole audit: every attack on one config, and what they showed beside what it claims, as JSON values."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fedrec import assemble
from fedrec.audit.canaries import Scores, attack_contributions, attack_users
from fedrec.audit.candidates import Attack, draw_candidates
from fedrec.audit.measures import mean_interval
from fedrec.audit.membership import FALSE_POSITIVES, attack_membership
from fedrec.audit.one_shot import estimate_one_shot
from fedrec.audit.reconstruction import attack_items
from fedrec.audit.subject import Subject, subject_of
from fedrec.config import Config
from fedrec.errors import ConfigError
from fedrec.privacy.audit_bounds import (
    GUESS_SHARES,
    MIN_CANARIES,
    area_limit,
    best_lower_bound,
    highest_lower_bound,
)
from fedrec.privacy.plan import PrivacyPlan
from fedrec.randomness import Key

Say = Callable[[str], None]
VERSION = 1
STATEMENT = (
    "An audit looks at private data: its figures are not covered by any epsilon. It runs the functions that nodes and "
    "server run, in one process; what their apps may wire up wrongly it does not see."
)
_CANDIDATE_ROUNDS = 4000
"""Candidates times attacked rounds: where a plan has many rounds, coins are flipped for fewer users."""


@dataclass(frozen=True)
class Settings:
    """How much work an audit does.

    Args:
        num_canaries: of each kind.
        num_runs: runs that membership inference attacks.
        num_shadows: further runs that it learns from.
        confidence: of the lower bounds together, and of every interval.
        num_candidates: users to flip coins for, at most; fewer where many rounds are attacked.
        num_reconstructed: users whose items are searched for, at most.

    Raises:
        ConfigError: where a number is too small, or the confidence is no probability.
    """

    num_canaries: int = 1000
    num_runs: int = 5
    num_shadows: int = 16
    confidence: float = 0.95
    num_candidates: int = 1000
    num_reconstructed: int = 50

    def __post_init__(self) -> None:
        least = {"num_canaries": MIN_CANARIES, "num_runs": 1, "num_shadows": 0, "num_candidates": 2}
        for name, low in least.items():
            if getattr(self, name) < low:
                option = name.removeprefix("num_")
                raise ConfigError(f"--{option} {getattr(self, name)} is too few; give at least {low}")
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"--confidence {self.confidence} is not in [0.5, 1); 0.95 is usual")


def run_audit(config: Config, settings: Settings, say: Say = lambda text: None) -> dict[str, Any]:
    """Attack a config in every way there is.

    Returns:
        The content of audit.json.

    Raises:
        FedrecError: where the config can't be run, or claims what can't be audited yet.
    """
    start = time.perf_counter()
    subject = subject_of(config)
    key = assemble.run_key(config).fold("audit")
    bounds = one_shot = None
    if subject.plan is not None:
        bounds = _lower_bounds(subject, subject.plan, settings, key.fold("canaries"), say)
        say("one-shot estimate")
        estimates = estimate_one_shot(subject, settings.num_canaries, settings.confidence, key.fold("one-shot"))
        one_shot = [
            {**asdict(one), "estimate": one.estimate._asdict(), "delta": subject.plan.delta} for one in estimates
        ]
    membership = _membership(subject, settings, key.fold("membership"), say)
    say("reconstruction")
    items = attack_items(subject, settings.num_reconstructed, settings.confidence, key.fold("reconstruction"))
    data = assemble.dataset(config.to_json())
    found = {
        "version": VERSION,
        "data": {
            "name": data.name,
            "num_users": data.interactions.num_users,
            "num_items": data.interactions.num_items,
            "num_interactions": len(data.interactions),
            "fingerprint": data.interactions.fingerprint(),
        },
        "config": config.model_dump(mode="json", exclude_none=True),
        "settings": asdict(settings),
        "claim": None if subject.plan is None else subject.plan.to_result(),
        "lower_bounds": bounds,
        "one_shot": one_shot,
        "membership": membership,
        "reconstruction": [asdict(one) for one in items],
        "statement": STATEMENT,
        "seconds": time.perf_counter() - start,
    }
    return dict(json.loads(json.dumps(found, allow_nan=False)))


def _lower_bounds(subject: Subject, plan: PrivacyPlan, settings: Settings, key: Key, say: Say) -> dict[str, Any]:
    """Return the bound of every audit with canaries; all hold together with the stated confidence."""
    say("lower bound: made-up contributions")
    audits = attack_contributions(subject, settings.num_canaries, key.fold("contributions"))
    say("lower bound: made-up users")
    audits += attack_users(subject, settings.num_canaries, key.fold("users"))
    bounds = [_bound(audit, plan.delta, settings.confidence, len(audits)) for audit in audits]
    best = max(float(bound["epsilon"]) for bound in bounds)
    return {
        "confidence": settings.confidence,
        "delta": plan.delta,
        "bounds": bounds,
        "num_audits": len(audits),
        "guess_shares": [list(shares) for shares in GUESS_SHARES],
        "correction": "Bonferroni over audits and guess_shares",
        "best": best,
        "refuted": best > plan.epsilon,
    }


def _bound(audit: Scores, delta: float, confidence: float, num_audits: int) -> dict[str, Any]:
    bound = best_lower_bound(audit.scores, audit.included, delta, confidence, num_audits)
    highest = highest_lower_bound(len(audit.scores), delta, confidence, num_audits)
    return {"kind": audit.kind, "block": audit.block, **bound._asdict(), "highest": highest}


def _membership(subject: Subject, settings: Settings, key: Key, say: Say) -> list[dict[str, Any]]:
    """Return AUC and true positive rate of every attack on users and on interactions."""
    rows = []
    attacked_rounds = 1 if subject.plan is None else subject.num_rounds
    most = min(settings.num_candidates, max(_CANDIDATE_ROUNDS // attacked_rounds, 100))
    for what in ("users", "interactions"):
        candidates = draw_candidates(subject.train, what, most, key)
        found = attack_membership(subject, candidates, settings.num_runs, settings.num_shadows, key, say)
        for attack, results in found.items():
            row = _row(subject.plan, attack, results, settings.confidence)
            rows.append({**row, "num_candidates": len(candidates.rows)})
    views = ("final model", "releases", "node sums")
    return sorted(rows, key=lambda row: (row["what"] != "users", views.index(row["view"]), row["strongest"]))


def _row(
    plan: PrivacyPlan | None, attack: Attack, results: list[tuple[float, float]], confidence: float
) -> dict[str, Any]:
    areas, rates = ([float(result[place]) for result in results] for place in (0, 1))
    return {
        **asdict(attack),
        "auc": _interval(areas, confidence),
        "true_positive_rate": _interval(rates, confidence),
        "false_positive_rate": FALSE_POSITIVES,
        "limit": _limit(plan, attack),
    }


def _interval(values: list[float], confidence: float) -> dict[str, Any]:
    mean, low, high = mean_interval(values, confidence)
    return {"mean": mean, "low": low, "high": high, "runs": values}


def _limit(plan: PrivacyPlan | None, attack: Attack) -> float | None:
    """Return the AUC that the claim allows at most; None where it claims nothing, as of sums that the server sees.

    One interaction more is a user replaced by another: one removed and one added, (2 epsilon, (1 + e^epsilon) delta).
    """
    if plan is None or attack.view == "node sums":
        return None
    if attack.what == "users":
        return area_limit(plan.epsilon, plan.delta)
    delta = (1 + math.exp(min(plan.epsilon, 700.0))) * plan.delta
    return area_limit(2 * plan.epsilon, min(delta, 1.0))
