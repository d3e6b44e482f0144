"""A plan in words: the sentence that stands with every epsilon, and the facts behind it, one a line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedrec.privacy.claims import UNITS

if TYPE_CHECKING:
    from fedrec.privacy.plan import PrivacyPlan


def statement(plan: PrivacyPlan) -> str:
    """Return the claim in one sentence, with everything that an epsilon must not be printed without."""
    limit = f"{plan.claim.limit}; " if plan.claim.limit else ""
    return (
        f"{plan.claim.covers} is (epsilon = {round_up(plan.epsilon)}, delta = {plan.delta:g})"
        f"-differentially private (unit: {plan.unit}, adjacency: {plan.neighboring_relation}, trust model: "
        f"{plan.trust_model}, accountant: {plan.accountant}), excluding hyper-parameter selection; "
        f"{limit}{_warning(plan)}the list of items and the evaluation split are taken as given; metrics and "
        "diagnostics logged by a simulation are not covered, and its noise hides nothing from who knows or guesses its "
        "seed."
    )


def _warning(plan: PrivacyPlan) -> str:
    """Return what must be said of a delta that is too large, or ""."""
    if not plan.delta_is_large:
        return ""
    return f"delta is above 1 / population_size, which allows publishing one {plan.unit}'s data outright; "


def describe(plan: PrivacyPlan) -> str:
    """Return the plan in words, one fact a line."""
    lines = [f"epsilon    {round_up(plan.epsilon)} at delta {plan.delta:g} (accountant: {plan.accountant})"]
    steps = "" if plan.steps_per_round == 1 else f" ({plan.num_rounds} rounds of {plan.steps_per_round} local steps)"
    for event in plan.events:
        cohort = event.sampling_probability * plan.population_size
        lines.append(
            f"rounds     T = {event.count} for {event.purpose}{steps}: noise multiplier {event.noise_multiplier:.6g}, "
            f"each {plan.unit} drawn with q = {event.sampling_probability:g} (expected cohort {cohort:g})"
        )
    bound = f"{plan.bound_name.replace('_', ' ')} {plan.clipping_norm:g}"
    times = "" if plan.claim.sensitivity == 1 else f"{plan.claim.sensitivity:g} x "
    lines += [
        f"noise      std = noise multiplier x {times}{bound}, on every coordinate",
        f"unit       {plan.unit} ({UNITS[plan.unit]}), of a declared population of {plan.population_size}",
        f"adjacency  {plan.neighboring_relation}",
        f"trust      {plan.trust_model}: {plan.claim.trust}",
        "excluded   hyper-parameter selection; metrics and diagnostics logged by a simulation",
    ]
    if plan.claim.limit:
        lines.append(f"limit      {plan.claim.limit}")
    if any(event.sampling_probability < 1 for event in plan.events):
        lines.append(
            f"sampling   the claim holds only if every {plan.unit} is drawn independently, by Poisson sampling"
        )
    if plan.delta_is_large:
        lines.append(
            f"WARNING    delta {plan.delta:g} is above 1 / population_size = {1 / plan.population_size:g}: it "
            f"would allow publishing one {plan.unit}'s data outright; choose a smaller delta"
        )
    return "\n".join(lines)


def round_up(epsilon: float) -> str:
    """Print an epsilon with four significant digits, never below its value."""
    if not 0 < epsilon < math.inf:
        return f"{epsilon:g}"
    step = 10.0 ** (math.floor(math.log10(epsilon)) - 3)
    return f"{math.ceil(epsilon / step * (1 - 1e-12)) * step:.4g}"
