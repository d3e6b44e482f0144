"""The plan: what it refuses, what it says, and that its epsilon follows from its events alone."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from fedrec.errors import PrivacyError
from fedrec.privacy.accounting import epsilon
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.privacy.wording import round_up

EVENTS = (PrivacyEvent(4.0, 1.0, 2, "popularity"), PrivacyEvent(2.0, 0.25, 5))
PLAN = PrivacyPlan(EVENTS, delta=1e-6, clipping_norm=1.5, population_size=1000)


def test_epsilon_follows_from_events_and_delta_alone() -> None:
    assert PLAN.epsilon == epsilon([(4.0, 1.0, 2), (2.0, 0.25, 5)], 1e-6)
    assert replace(PLAN, clipping_norm=7.0, population_size=5).epsilon == PLAN.epsilon
    assert PLAN.accountant == "opacus-prv" and replace(PLAN, events=EVENTS[:1]).accountant == "gaussian-exact"
    result = PLAN.to_result()
    events = [(e["noise_multiplier"], e["sampling_probability"], e["count"]) for e in result["events"]]
    assert result["epsilon"] == epsilon(events, result["delta"])


def test_rounds_are_numbered_from_one_over_all_events() -> None:
    assert PLAN.num_rounds == 7
    assert [PLAN.event_for_round(r) for r in range(1, 8)] == [EVENTS[0]] * 2 + [EVENTS[1]] * 5
    for outside in (0, 8, -1, 1.5):
        with pytest.raises(PrivacyError, match="allowed are 1 to 7"):
            PLAN.event_for_round(outside)  # type: ignore[arg-type]


def test_expected_cohort_is_probability_times_population() -> None:
    assert PLAN.cohort_size_for_round(1) == 1000 and PLAN.cohort_size_for_round(3) == 250
    assert replace(PLAN, events=EVENTS[1:]).expected_cohort_size == 250
    with pytest.raises(PrivacyError, match="use cohort_size_for_round"):
        _ = PLAN.expected_cohort_size


def test_json_and_back_is_the_same_plan_with_the_same_digest() -> None:
    again = PrivacyPlan.from_dict(json.loads(json.dumps(PLAN.to_dict())))
    assert again == PLAN and again.digest() == PLAN.digest() and again.epsilon == PLAN.epsilon


def test_digest_is_stable_and_tells_plans_apart() -> None:
    whole = PrivacyPlan((PrivacyEvent(1, 1, 3),), delta=1e-5, clipping_norm=1, population_size=10)
    same = PrivacyPlan((PrivacyEvent(1.0, 1.0, 3),), delta=1e-5, clipping_norm=1.0, population_size=10)
    assert whole.digest() == same.digest() == "128f560fff3fcfd729a4b16eb8181380a49d8a587d0f7d9a2205eb8704822991"
    others = [
        replace(whole, delta=1e-6),
        replace(whole, clipping_norm=2.0),
        replace(whole, population_size=11),
        replace(whole, events=(PrivacyEvent(1.0, 1.0, 4),)),
        replace(whole, events=(PrivacyEvent(1.0, 1.0, 3, "other"),)),
    ]
    assert len({plan.digest() for plan in [whole, *others]}) == 6


def test_statement_carries_everything_an_epsilon_needs() -> None:
    for part in (
        f"epsilon = {round_up(PLAN.epsilon)}",
        "delta = 1e-06",
        "unit: user",
        "adjacency: add-or-remove one user",
        "trust model: central",
        "accountant: opacus-prv",
        "excluding hyper-parameter selection",
        "metrics and diagnostics logged by a simulation are not covered",
    ):
        assert part in PLAN.statement
    assert PLAN.statement.count(". ") == 0 and PLAN.statement.endswith("."), "one sentence"


def test_description_says_sampling_and_warns_of_a_large_delta() -> None:
    text = PLAN.describe()
    for part in ("q = 0.25", "T = 5", "1e-06", "user", "add-or-remove one user", "central", "opacus-prv", "Poisson"):
        assert part in text
    assert "WARNING" not in text
    assert "above 1 / population_size = 0.001" in replace(PLAN, delta=0.01).describe()


@pytest.mark.parametrize("value", [7.99951, 8.0, 0.012345, 99999.0, 1e-7 / 3, 2.5000001])
def test_printed_epsilon_is_never_below_the_epsilon(value: float) -> None:
    assert value * (1 - 1e-11) <= float(round_up(value)) <= value * 1.0011


@pytest.mark.parametrize("probability", [1.0, 0.1])
def test_calibrated_plan_is_just_within_the_target(probability: float) -> None:
    plan = PrivacyPlan.calibrate(
        target_epsilon=2.0,
        delta=1e-5,
        num_rounds=4,
        sampling_probability=probability,
        clipping_norm=1.0,
        population_size=500,
    )
    assert 0.999 * 2 <= plan.epsilon <= 2 and plan.num_rounds == 4
    assert plan.expected_cohort_size == 500 * probability


LOCAL = PrivacyPlan((PrivacyEvent(4.0, 1.0, 3),), 1e-6, 1.5, 1000, trust_model="local")
EXAMPLES = PrivacyPlan((PrivacyEvent(1.0, 0.01, 60),), 1e-6, 0.5, 9000, "local", "interaction", steps_per_round=20)


def test_local_trust_replaces_a_user_at_twice_the_norm_and_says_that_nothing_is_amplified() -> None:
    assert (LOCAL.neighboring_relation, LOCAL.sensitivity) == ("replace one user", 3.0)
    assert LOCAL.epsilon == epsilon([(4.0, 1.0, 3)], 1e-6)
    for text in (LOCAL.statement, LOCAL.describe()):
        assert "replace one user" in text and "no amplification by sampling is claimed" in text
    assert "2 x clipping norm 1.5" in LOCAL.describe() and "Everything that leaves a user's node" in LOCAL.statement
    assert PrivacyPlan.from_dict(LOCAL.to_dict()) == LOCAL


def test_example_level_plan_counts_local_steps_and_says_that_histories_are_not_covered() -> None:
    assert (EXAMPLES.neighboring_relation, EXAMPLES.sensitivity) == ("add-or-remove one interaction", 0.5)
    assert EXAMPLES.num_rounds == 3 and EXAMPLES.epsilon == epsilon([(1.0, 0.01, 60)], 1e-6)
    assert [EXAMPLES.event_for_round(r) for r in (1, 3)] == [EXAMPLES.events[0]] * 2
    with pytest.raises(PrivacyError, match="allowed are 1 to 3"):
        EXAMPLES.event_for_round(4)
    assert "not a user's whole history" in EXAMPLES.statement and "(3 rounds of 20 local steps)" in EXAMPLES.describe()
    assert EXAMPLES.to_result()["max_grad_norm"] == 0.5 and "clipping_norm" not in EXAMPLES.to_result()
    assert PrivacyPlan.from_dict(json.loads(json.dumps(EXAMPLES.to_dict()))) == EXAMPLES
    assert len({replace(EXAMPLES, steps_per_round=n).digest() for n in (20, 30, 1)}) == 3


def test_plan_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAN.delta = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": 0.0}, "delta=0.0"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"delta": math.nan}, "delta=nan"),
        ({"clipping_norm": 0.0}, "clipping_norm=0.0"),
        ({"clipping_norm": math.inf}, "clipping_norm=inf"),
        ({"clipping_norm": math.nan}, "clipping_norm=nan"),
        ({"population_size": 0}, "population_size=0"),
        ({"population_size": 10.5}, "population_size=10.5"),
        (
            {"trust_model": "distributed"},
            "unit='user' with trust_model='distributed' is not available in this version; allowed: unit 'user'",
        ),
        ({"trust_model": "local"}, "allowed: 'replace one user'"),
        ({"trust_model": "local", "neighboring_relation": ""}, "sampling amplifies nothing; set it to 1"),
        ({"unit": "interaction"}, "unit='interaction' with trust_model='central' is not available"),
        ({"steps_per_round": 2}, "allowed is 1: one sum a round"),
        ({"steps_per_round": 0}, "steps_per_round=0"),
        (
            {"unit": "interaction", "trust_model": "local", "neighboring_relation": "", "steps_per_round": 2},
            r"counts \[2, 5\] are not multiples of steps_per_round=2",
        ),
        ({"unit": "example"}, "unit='example'"),
        ({"neighboring_relation": "replace one user"}, "neighboring_relation"),
        ({"events": ()}, "one or more PrivacyEvent"),
        ({"events": ((1.0, 1.0, 1),)}, "one or more PrivacyEvent"),
    ],
)
def test_plan_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        replace(PLAN, **changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0, 1.0, 1), "noise_multiplier=0.0"),
        ((math.inf, 1.0, 1), "noise_multiplier=inf"),
        ((1.0, 1.4, 1), r"sampling_probability=1.4 is not in \(0, 1\]; it is expected_cohort_size / population_size"),
        ((1.0, 0.0, 1), "sampling_probability=0.0"),
        ((1.0, 1.0, 0), "count=0"),
        ((1.0, 1.0, 1.5), "count=1.5"),
        ((1.0, 1.0, True), "count=True"),
    ],
)
def test_event_out_of_range_is_refused(values: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        PrivacyEvent(*values)


@pytest.mark.parametrize("change", [{"surprise": 1}, {"events": [{"noise": 1.0}]}, {"events": None}])
def test_unreadable_plan_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match="can't be read"):
        PrivacyPlan.from_dict({**PLAN.to_dict(), **change})
    with pytest.raises(PrivacyError, match="can't be read"):
        PrivacyPlan.from_dict({"delta": 1e-5})
