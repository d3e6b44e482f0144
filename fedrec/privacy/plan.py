"""The plan: which noisy rounds may happen, and the one sentence that says what they promise.

Unit: a user. Adjacency: add or remove one user. Sensitivity: every round releases one sum whose L2 sensitivity is
`clipping_norm`, with Gaussian noise of std noise_multiplier x clipping_norm on every coordinate. A plan holds public
numbers only; its epsilon follows from its events and delta alone.
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
from fedrec.privacy import accounting, calibration

TRUST_MODELS = {"central": "the server is trusted with each node's sum of clipped contributions"}
UNITS = ("user",)
NEIGHBORING_RELATIONS = ("add-or-remove one user",)
CLIPPING_RANGE = (1e-30, 1e30)


@dataclass(frozen=True)
class PrivacyEvent:
    """A number of equal noisy rounds.

    Args:
        noise_multiplier: noise std / clipping_norm, positive.
        sampling_probability: of each user in each of the rounds (Poisson), in (0, 1].
        count: number of rounds, at least 1.
        purpose: what the releases serve, for people.

    Privacy:
        `count` releases, each a Gaussian mechanism of L2 sensitivity clipping_norm on a Poisson sample of the users.
    """

    noise_multiplier: float
    sampling_probability: float
    count: int
    purpose: str = "training"

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < math.inf:
            raise PrivacyError(
                f"noise_multiplier={self.noise_multiplier} is not a positive finite number; it is noise std / "
                "clipping_norm (a run without privacy has no plan at all)"
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
        events: rounds in order; rounds are numbered from 1 over all events.
        delta: in (0, 1), well below 1 / population_size.
        clipping_norm: L2 bound on what one user adds to a round, over all blocks jointly.
        population_size: public, declared number of users.
        trust_model: "central".
        unit: "user".
        neighboring_relation: "add-or-remove one user".

    Raises:
        PrivacyError: where a value is out of range or not available in this version.

    Privacy:
        All releases together are (`epsilon`, `delta`)-differentially private for the stated unit and adjacency, if each
        user is drawn in each round independently with that round's sampling_probability.

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
    neighboring_relation: str = "add-or-remove one user"

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
        if (
            not isinstance(self.population_size, int)
            or isinstance(self.population_size, bool)
            or self.population_size < 1
        ):
            raise PrivacyError(
                f"population_size={self.population_size!r} is not a whole number >= 1; declare the number of users"
            )
        _check_choice("trust_model", self.trust_model, tuple(TRUST_MODELS))
        _check_choice("unit", self.unit, UNITS)
        _check_choice("neighboring_relation", self.neighboring_relation, NEIGHBORING_RELATIONS)
        object.__setattr__(self, "delta", float(self.delta))
        object.__setattr__(self, "clipping_norm", float(self.clipping_norm))

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
    ) -> PrivacyPlan:
        """Return the plan of equal rounds with the least noise whose epsilon is at most `target_epsilon`.

        Raises:
            PrivacyError: where a value is out of range.

        Privacy:
            The epsilon of the returned plan lies in [0.999 target_epsilon, target_epsilon].
        """
        noise = calibration.calibrate_noise(target_epsilon, delta, sampling_probability, num_rounds)
        event = PrivacyEvent(noise, sampling_probability, num_rounds, purpose)
        return cls((event,), delta, clipping_norm, population_size)

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
        """Return the plan as JSON values."""
        return {**asdict(self), "events": [asdict(event) for event in self.events]}

    def digest(self) -> str:
        """Return the plan hash that server and nodes compare: 64 hex digits of the canonical JSON."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.blake2b(canonical.encode(), digest_size=32, person=b"fedrec-plan").hexdigest()

    @property
    def num_rounds(self) -> int:
        """Return the number of rounds over all events."""
        return sum(event.count for event in self.events)

    def event_for_round(self, round: int) -> PrivacyEvent:
        """Return the event that a round, numbered from 1, belongs to.

        Raises:
            PrivacyError: where the plan has no such round.
        """
        left = round if isinstance(round, int) and round >= 1 else self.num_rounds + 1
        for event in self.events:
            if left <= event.count:
                return event
            left -= event.count
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
        return (
            f"Everything outside a user's own device is (epsilon = {_round_up(self.epsilon)}, delta = {self.delta:g})"
            f"-differentially private (unit: {self.unit}, adjacency: {self.neighboring_relation}, trust model: "
            f"{self.trust_model}, accountant: {self.accountant}), excluding hyper-parameter selection; the list of "
            "items is taken as public; metrics and diagnostics logged by a simulation are not covered, and its noise "
            "holds only against those who do not know its seed."
        )

    def describe(self) -> str:
        """Return the plan in words, one fact a line."""
        lines = [f"epsilon    {_round_up(self.epsilon)} at delta {self.delta:g} (accountant: {self.accountant})"]
        for event in self.events:
            cohort = event.sampling_probability * self.population_size
            lines.append(
                f"rounds     T = {event.count} for {event.purpose}: noise multiplier {event.noise_multiplier:.6g}, "
                f"each user drawn with q = {event.sampling_probability:g} (expected cohort {cohort:g})"
            )
        lines += [
            f"noise      std = noise multiplier x clipping norm {self.clipping_norm:g}, on every coordinate of the sum",
            f"unit       {self.unit} (one person, one enrolment), of a declared population of {self.population_size}",
            f"adjacency  {self.neighboring_relation}",
            f"trust      {self.trust_model}: {TRUST_MODELS[self.trust_model]}",
            "excluded   hyper-parameter selection; metrics and diagnostics logged by a simulation",
        ]
        if any(event.sampling_probability < 1 for event in self.events):
            lines.append("sampling   the claim holds only if every user is drawn independently, by Poisson sampling")
        if self.delta > 1 / self.population_size:
            lines.append(
                f"WARNING    delta {self.delta:g} is above 1 / population_size = {1 / self.population_size:g}: it "
                "would allow publishing one user's data outright; choose a smaller delta"
            )
        return "\n".join(lines)

    def to_result(self) -> dict[str, Any]:
        """Return the `privacy` section of result.json."""
        return {
            "unit": self.unit,
            "neighboring_relation": self.neighboring_relation,
            "trust_model": self.trust_model,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "accountant": self.accountant,
            "clipping_norm": self.clipping_norm,
            "population_size": self.population_size,
            "events": [asdict(event) for event in self.events],
            "statement": self.statement,
        }


def _check_choice(name: str, found: str, allowed: tuple[str, ...]) -> None:
    """Raise where `found` is none of the allowed values."""
    if found not in allowed:
        raise PrivacyError(f"{name}={found!r} is not available in this version; allowed: {', '.join(allowed)}")


def _round_up(epsilon: float) -> str:
    """Print an epsilon with four significant digits, never below its value."""
    if not 0 < epsilon < math.inf:
        return f"{epsilon:g}"
    step = 10.0 ** (math.floor(math.log10(epsilon)) - 3)
    return f"{math.ceil(epsilon / step * (1 - 1e-12)) * step:.4g}"
