"""What a plan or a run spends, in words and as JSON: what z, q, T, delta, unit, adjacency and accountant mean in it.

Unit and adjacency: the plan's. Released: nothing; texts about public numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fedrec.errors import PrivacyError
from fedrec.privacy import accounting, zcdp
from fedrec.privacy.claims import UNITS
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.privacy.spent import RunSpend
from fedrec.privacy.wording import round_up

ADJACENCIES = {
    "add-or-remove one user": "two worlds are compared, one with all data of a user and one without that user",
    "replace one user": "two worlds are compared, which differ in all data of a user; that the user is there may show",
    "add-or-remove one interaction": "two worlds are compared, with and without one interaction; for k of one user "
    "epsilon is k times as large, and delta larger still",
}
ACCOUNTANTS = {
    "gaussian-exact": "all releases together are one Gaussian mechanism; its closed form, exact (Balle & Wang 2018)",
    "opacus-prv": "numerical composition, an upper bound about 0.5% above the truth (Gopi et al. 2021, by Opacus)",
    "rdp": "Renyi composition, an upper bound about 5 to 20% above the truth (Mironov et al. 2019, by Opacus)",
    "zcdp": "zero-concentrated composition, an upper bound above the closed form (Canonne, Kamath & Steinke 2020)",
}


def explain_plan(plan: PrivacyPlan, accountant: str = "auto") -> str:
    """Describe a plan and say what its numbers mean, one fact a line.

    Args:
        plan: the plan.
        accountant: "auto" for the plan's own, or one that is asked for beside it.

    Raises:
        PrivacyError: where the plan spends an infinite epsilon, or the accountant can't account it.

    Privacy:
        Every epsilon stands with its delta, unit, adjacency, trust model and accountant.
    """
    lines = [plan.describe()]
    if accountant != "auto":
        lines.append(f"asked for  {_epsilon(_account(plan, plan.events, accountant), plan.delta)}; both hold")
    return "\n".join([*lines, *_rho(plan.events), "", *_meaning(plan, accountant)])


def explain_run(run: RunSpend, name: str, accountant: str = "auto") -> str:
    """Say what a run has spent so far, against its plan.

    Raises:
        PrivacyError: where the accountant can't account it.

    Privacy:
        Counts every attempt that was begun and not closed, published or not.
    """
    plan = run.plan
    done, planned = _by_purpose(run.events), _by_purpose(plan.events)
    lines = [
        f"run        {name}",
        f"spent      {_epsilon(_account(plan, run.events, accountant), plan.delta)}",
        f"           for unit {plan.unit}, adjacency {plan.neighboring_relation}, trust model {plan.trust_model}",
        f"planned    {_epsilon(_account(plan, plan.events, accountant), plan.delta)}",
    ]
    for (noise, probability, purpose), count in planned.items():
        spent = done[noise, probability, purpose]
        drawn = f"each {plan.unit} drawn with q = {probability:g}"
        lines.append(f"releases   T = {spent} of {count} for {purpose}: noise multiplier {noise:.6g}, {drawn}")
    if run.num_open:
        lines.append(f"open       {run.num_open} begun and not published, counted as spent")
    return "\n".join([*lines, *_rho(run.events), "", "The plan:", plan.describe(), "", *_meaning(plan, accountant)])


def to_json(plan: PrivacyPlan, events: Sequence[PrivacyEvent], accountant: str = "auto") -> dict[str, Any]:
    """Return what some events of a plan spend, as JSON values.

    Args:
        plan: gives delta, unit, adjacency, trust model and population.
        events: all of the plan's, or those that were spent.
        accountant: as in `accounting.account`.

    Raises:
        PrivacyError: where they spend an infinite epsilon, or the accountant can't account them.

    Privacy:
        Epsilon follows from `events` and `delta` alone.
    """
    spent = _account(plan, events, accountant)
    return {
        "epsilon": spent.epsilon,
        "delta": plan.delta,
        "accountant": spent.accountant,
        "rho": None if _is_sampled(events) else zcdp.zcdp([event.spend for event in events]),
        "unit": plan.unit,
        "neighboring_relation": plan.neighboring_relation,
        "trust_model": plan.trust_model,
        "population_size": plan.population_size,
        "events": [asdict(event) for event in events],
        "warnings": warnings(plan),
    }


def run_to_json(run: RunSpend, accountant: str = "auto") -> dict[str, Any]:
    """Return what a run has spent so far, as `to_json` does, with the whole plan beside it.

    Raises:
        PrivacyError: where the accountant can't account it.

    Privacy:
        See `explain_run`.
    """
    planned = to_json(run.plan, run.plan.events, accountant)
    return {
        **to_json(run.plan, run.events, accountant),
        "run": run.run_id,
        "num_open": run.num_open,
        "planned": {name: planned[name] for name in ("epsilon", "accountant", "rho", "events")},
    }


def warnings(plan: PrivacyPlan) -> list[str]:
    """Return what is allowed and yet no good idea: a delta above 1 / population_size.

    Privacy:
        A mechanism that publishes all data of one user in N, drawn at random, is (0, 1 / N)-differentially private.
    """
    if not plan.delta_is_large:
        return []
    return [
        f"delta={plan.delta:g} is above 1 / population_size = {1 / plan.population_size:.4g}; with such a delta one "
        f"{plan.unit} may be published outright; choose a smaller one"
    ]


def _account(plan: PrivacyPlan, events: Sequence[PrivacyEvent], accountant: str) -> accounting.Spent:
    if accountant == "auto" and events is plan.events:
        spent = accounting.Spent(plan.epsilon, plan.accountant)
    else:
        spent = accounting.account([event.spend for event in events], plan.delta, accountant)
    if math.isinf(spent.epsilon):
        raise PrivacyError(
            f"noise_multiplier={min(event.noise_multiplier for event in events):g} gives an epsilon too large for a "
            "number: that is no privacy; give more noise"
        )
    return spent


def _by_purpose(events: Sequence[PrivacyEvent]) -> Counter[tuple[float, float, str]]:
    """Count releases by noise multiplier, sampling probability and purpose."""
    counts: Counter[tuple[float, float, str]] = Counter()
    for event in events:
        counts[event.noise_multiplier, event.sampling_probability, event.purpose] += event.count
    return counts


def _epsilon(spent: accounting.Spent, delta: float) -> str:
    return f"epsilon {round_up(spent.epsilon)} at delta {delta:g} (accountant: {spent.accountant})"


def _is_sampled(events: Sequence[PrivacyEvent]) -> bool:
    return any(event.sampling_probability < 1 for event in events)


def _rho(events: Sequence[PrivacyEvent]) -> list[str]:
    """Return the line about rho, where there is one."""
    if _is_sampled(events):
        return []
    rho = zcdp.zcdp([event.spend for event in events])
    return [f"zCDP       rho = {round_up(rho)}, the sum of T / (2 z^2); rhos of further releases add to it"]


def _meaning(plan: PrivacyPlan, accountant: str) -> list[str]:
    """Return what the numbers of a plan mean, one a line."""
    spent, unit = _account(plan, plan.events, accountant), plan.unit
    factor = f"exp(epsilon) = {round_up(math.exp(spent.epsilon))}" if spent.epsilon < 20 else "exp(epsilon)"
    least = f"1 / population_size = {1 / plan.population_size:.4g}"
    drawn = f"probability that one {unit} is drawn for a release, each time anew; nobody may learn who was drawn"
    everybody = f"probability that one {unit} is drawn for a release; here each is in all of them, so nothing is gained"
    return [
        "What this means:",
        f"unit       what is protected: one {unit} ({UNITS[unit]})",
        f"adjacency  {ADJACENCIES.get(plan.neighboring_relation, plan.neighboring_relation)}",
        f"epsilon    in no world is anything more than {factor} times as probable as in the other, plus delta",
        f"delta      what that factor leaves out; keep it far below {least}",
        f"z          noise multiplier: std of the noise / the most that one {unit} can change what it is added to",
        f"q          {drawn if _is_sampled(plan.events) else everybody}",
        "T          number of releases; epsilon is spent by all of them together",
        f"accountant {spent.accountant}: {ACCOUNTANTS[spent.accountant]}",
    ]
