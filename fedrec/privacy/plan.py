"""The plan: which noisy releases may happen, for which claim, and what they spend.

Unit, adjacency and sensitivity are those of one of the claims in `fedrec.privacy.claims`. A plan holds public numbers
only; its epsilon follows from its events and delta alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from fedrec.errors import PrivacyError
from fedrec.privacy import accounting, calibration, wording
from fedrec.privacy.claims import CLAIMS, Claim

CLIPPING_RANGE = (1e-30, 1e30)


@dataclass(frozen=True)
class PrivacyEvent:
    """A number of equal noisy releases: rounds, or local steps of an example-level plan.

    Args:
        noise_multiplier: noise std / L2 sensitivity, positive.
        sampling_probability: of each unit in each of the releases (Poisson), in (0, 1].
        count: number of releases, at least 1.
        purpose: what the releases serve, for people.

    Privacy:
        `count` releases, each a Gaussian mechanism of the plan's sensitivity on a Poisson sample of the units.
    """

    noise_multiplier: float
    sampling_probability: float
    count: int
    purpose: str = "training"

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < math.inf:
            raise PrivacyError(
                f"noise_multiplier={self.noise_multiplier} is not a positive finite number; it is noise std / "
                "sensitivity (a run without privacy has no plan at all)"
            )
        if not 0 < self.sampling_probability <= 1:
            raise PrivacyError(
                f"sampling_probability={self.sampling_probability} is not in (0, 1]; it is expected_cohort_size / "
                "population_size"
            )
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 1:
            raise PrivacyError(f"count={self.count!r} is not a whole number >= 1; it is the number of rounds")
        if not isinstance(self.purpose, str):
            raise PrivacyError(f"purpose={self.purpose!r} is not a text; say what the releases serve")
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))
        object.__setattr__(self, "sampling_probability", float(self.sampling_probability))

    @property
    def spend(self) -> accounting.Event:
        """Return (noise_multiplier, sampling_probability, count), as the accountants take it."""
        return self.noise_multiplier, self.sampling_probability, self.count


@dataclass(frozen=True)
class PrivacyPlan:
    """Everything the privacy claim of a run follows from, fixed before the first round.

    Args:
        events: releases in order; rounds are numbered from 1 over all events.
        delta: in (0, 1), well below 1 / population_size.
        clipping_norm: L2 bound on what one user adds to a round, over all blocks jointly; `max_grad_norm` of one
            example where the unit is an interaction.
        population_size: public, declared number of users (of interactions, where they are the unit).
        trust_model: "central" or "local".
        unit: "user" or "interaction".
        neighboring_relation: follows from unit and trust model; "" fills it in.
        steps_per_round: releases in one round; more than 1 only in an example-level plan.

    Raises:
        PrivacyError: where a value is out of range or not available in this version.

    Privacy:
        All releases together are (`epsilon`, `delta`)-differentially private for the stated unit and adjacency, if each
        unit is drawn in each release independently with that release's sampling_probability.

    Example:
        >>> plan = PrivacyPlan((PrivacyEvent(5.0, 1.0, 10),), delta=1e-5, clipping_norm=1.0, population_size=6040)
        >>> round(plan.epsilon, 3), plan.accountant
        (2.594, 'gaussian-exact')
    """

    events: tuple[PrivacyEvent, ...]
    delta: float
    clipping_norm: float
    population_size: int
    trust_model: str = "central"
    unit: str = "user"
    neighboring_relation: str = ""
    steps_per_round: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", tuple(self.events))
        if not self.events or not all(isinstance(event, PrivacyEvent) for event in self.events):
            raise PrivacyError(f"events={self.events!r} are not one or more PrivacyEvent; give the rounds of the run")
        if not 0 < self.delta < 1:
            raise PrivacyError(f"delta={self.delta} is not in (0, 1); choose it well below 1 / population_size")
        if not CLIPPING_RANGE[0] <= self.clipping_norm <= CLIPPING_RANGE[1]:
            raise PrivacyError(
                f"clipping_norm={self.clipping_norm} is not in [1e-30, 1e30]; give the L2 bound on what a user adds"
            )
        for name, what in (("population_size", "declare the number of units"), ("steps_per_round", "1 for a user")):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PrivacyError(f"{name}={value!r} is not a whole number >= 1; {what}")
        self._check_claim()
        object.__setattr__(self, "neighboring_relation", self.claim.neighboring_relation)
        object.__setattr__(self, "delta", float(self.delta))
        object.__setattr__(self, "clipping_norm", float(self.clipping_norm))

    def _check_claim(self) -> None:
        """Raise where unit, trust model, adjacency, sampling and steps do not go together."""
        if (self.unit, self.trust_model) not in CLAIMS:
            allowed = "; ".join(f"unit {unit!r} with trust_model {trust!r}" for unit, trust in CLAIMS)
            raise PrivacyError(
                f"unit={self.unit!r} with trust_model={self.trust_model!r} is not available in this version; "
                f"allowed: {allowed}"
            )
        if self.neighboring_relation not in ("", self.claim.neighboring_relation):
            raise PrivacyError(
                f"neighboring_relation={self.neighboring_relation!r} is not what unit {self.unit!r} under trust "
                f"{self.trust_model!r} has; allowed: {self.claim.neighboring_relation!r}"
            )
        if self.claim.sensitivity == 2 and any(event.sampling_probability != 1 for event in self.events):
            found = [event.sampling_probability for event in self.events]
            raise PrivacyError(
                f"sampling_probability={found} under local trust: the server sees who answers, so sampling amplifies "
                "nothing; set it to 1"
            )
        if self.unit == "user" and self.steps_per_round != 1:
            raise PrivacyError(f"steps_per_round={self.steps_per_round} for unit 'user'; allowed is 1: one sum a round")
        if any(event.count % self.steps_per_round for event in self.events):
            raise PrivacyError(
                f"counts {[event.count for event in self.events]} are not multiples of "
                f"steps_per_round={self.steps_per_round}; a round is released as a whole"
            )

    @property
    def claim(self) -> Claim:
        """Return what unit and trust model imply."""
        return CLAIMS[self.unit, self.trust_model]

    @property
    def sensitivity(self) -> float:
        """Return the L2 sensitivity that noise is scaled to: noise std = noise_multiplier x sensitivity."""
        return self.claim.sensitivity * self.clipping_norm

    @classmethod
    def calibrate(
        cls,
        *,
        target_epsilon: float,
        delta: float,
        num_rounds: int,
        sampling_probability: float,
        clipping_norm: float,
        population_size: int,
        purpose: str = "training",
        trust_model: str = "central",
        unit: str = "user",
        steps_per_round: int = 1,
    ) -> PrivacyPlan:
        """Return the plan of equal rounds with the least noise whose epsilon is at most `target_epsilon`.

        Raises:
            PrivacyError: where a value is out of range.

        Privacy:
            The epsilon of the returned plan lies in [0.999 target_epsilon, target_epsilon].
        """
        count = num_rounds * steps_per_round
        noise = calibration.calibrate_noise(target_epsilon, delta, sampling_probability, count)
        event = PrivacyEvent(noise, sampling_probability, count, purpose)
        how = {"trust_model": trust_model, "unit": unit}
        return cls((event,), delta, clipping_norm, population_size, **how, steps_per_round=steps_per_round)

    @classmethod
    def from_dict(cls, plan: Mapping[str, Any]) -> PrivacyPlan:
        """Read what `to_dict` wrote.

        Raises:
            PrivacyError: where a key is missing or unknown, or a value is not allowed.
        """
        try:
            return cls(**{**plan, "events": tuple(PrivacyEvent(**event) for event in plan["events"])})
        except (KeyError, TypeError) as error:
            raise PrivacyError(
                f"a plan with keys {sorted(map(str, plan))} can't be read ({error}); allowed are "
                f"{[field.name for field in fields(cls)]}, and in each event {[f.name for f in fields(PrivacyEvent)]}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values; one step a round goes without saying, as in plans of earlier versions."""
        plan = {**asdict(self), "events": [asdict(event) for event in self.events]}
        return {name: value for name, value in plan.items() if name != "steps_per_round" or value != 1}

    def digest(self) -> str:
        """Return the plan hash that server and nodes compare: 64 hex digits of the canonical JSON."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.blake2b(canonical.encode(), digest_size=32, person=b"fedrec-plan").hexdigest()

    @property
    def num_rounds(self) -> int:
        """Return the number of rounds over all events."""
        return sum(event.count for event in self.events) // self.steps_per_round

    def event_for_round(self, round: int) -> PrivacyEvent:
        """Return the event that a round, numbered from 1, belongs to.

        Raises:
            PrivacyError: where the plan has no such round.
        """
        left = round if isinstance(round, int) and round >= 1 else self.num_rounds + 1
        for event in self.events:
            if left <= event.count // self.steps_per_round:
                return event
            left -= event.count // self.steps_per_round
        raise PrivacyError(f"round {round} is not in this plan; allowed are 1 to {self.num_rounds}: make a larger plan")

    def cohort_size_for_round(self, round: int) -> float:
        """Return the public expected cohort size of a round: sampling_probability x population_size."""
        return self.event_for_round(round).sampling_probability * self.population_size

    @property
    def expected_cohort_size(self) -> float:
        """Return the expected cohort size of every round.

        Raises:
            PrivacyError: where the rounds have different ones; ask `cohort_size_for_round` then.
        """
        sizes = sorted({event.sampling_probability * self.population_size for event in self.events})
        if len(sizes) > 1:
            raise PrivacyError(f"the rounds of this plan have expected cohorts of {sizes}; use cohort_size_for_round")
        return sizes[0]

    @property
    def delta_is_large(self) -> bool:
        """Return whether delta is above 1 / population_size: publishing one random unit's data would be allowed."""
        return self.delta > 1 / self.population_size

    @cached_property
    def _spent(self) -> accounting.Spent:
        return accounting.account([event.spend for event in self.events], self.delta)

    @property
    def epsilon(self) -> float:
        """Return the epsilon of the whole plan: an upper bound, from the events and delta alone."""
        return self._spent.epsilon

    @property
    def accountant(self) -> str:
        """Return the name of the accountant behind `epsilon`."""
        return self._spent.accountant

    @property
    def statement(self) -> str:
        """Return the claim in one sentence, with everything that an epsilon must not be printed without."""
        return wording.statement(self)

    def describe(self) -> str:
        """Return the plan in words, one fact a line."""
        return wording.describe(self)

    @property
    def bound_name(self) -> str:
        """Return how `clipping_norm` is called in configs and results: per user, or per example."""
        return "clipping_norm" if self.unit == "user" else "max_grad_norm"

    def to_result(self) -> dict[str, Any]:
        """Return the `privacy` section of result.json."""
        return {
            "unit": self.unit,
            "neighboring_relation": self.neighboring_relation,
            "trust_model": self.trust_model,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "accountant": self.accountant,
            self.bound_name: self.clipping_norm,
            "population_size": self.population_size,
            "events": [asdict(event) for event in self.events],
            "statement": self.statement,
        }
