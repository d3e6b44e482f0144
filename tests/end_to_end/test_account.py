"""`fedrec account` and `fedrec calibrate`: what a person reads, what a script reads, and every way to ask wrongly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedrec.privacy.accounting import epsilon
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from tests.end_to_end.conftest import Outcome
from tests.end_to_end.test_bad_input import one_line

Fedrec = Callable[..., Outcome]
CLAIM = ("--delta", 1e-6, "--population-size", 6040)
EQUAL = ("account", "--noise-multiplier", 5, "--num-rounds", 10, *CLAIM)


def read(outcome: Outcome) -> dict[str, object]:
    """Return the one line of JSON on stdout."""
    assert outcome.code == 0 and outcome.out.count("\n") == 1, outcome
    found = json.loads(outcome.out)
    assert isinstance(found, dict)
    return found


def says(text: str, *facts: str) -> None:
    """Check that a text holds every fact, whatever the spaces."""
    words = " ".join(text.split())
    for fact in facts:
        assert fact in words, f"{fact!r} is not in:\n{text}"


def test_account_says_the_claim_and_what_its_numbers_mean(fedrec: Fedrec) -> None:
    outcome = fedrec(*EQUAL)
    assert outcome.code == 0 and outcome.err == ""
    says(
        outcome.out,
        "epsilon 2.922 at delta 1e-06 (accountant: gaussian-exact)",
        "rounds T = 10 for training: noise multiplier 5, each user drawn with q = 1",
        "unit user (one person, one enrolment), of a declared population of 6040",
        "adjacency add-or-remove one user",
        "trust central",
        "zCDP rho = 0.2, the sum of T / (2 z^2)",
        "two worlds are compared, one with all data of a user and one without that user",
        "more than exp(epsilon) = 18.58 times as probable",
        "1 / population_size = 0.0001656",
        "accountant gaussian-exact: all releases together are one Gaussian mechanism",
    )


def test_unequal_rounds_compose(fedrec: Fedrec) -> None:
    events = [(4.0, 1.0, 2), (3.0, 0.25, 10)]
    options = [option for z, q, t in events for option in ("--event", f"{z},{q},{t}")]
    found = read(fedrec("account", *options, *CLAIM, "--json"))
    assert found["epsilon"] == epsilon(events, 1e-6) and found["accountant"] == "opacus-prv" and found["rho"] is None
    says(
        fedrec("account", *options, *CLAIM).out,
        "T = 2 for training: noise multiplier 4, each user drawn with q = 1",
        "T = 10 for training: noise multiplier 3, each user drawn with q = 0.25",
        "every user is drawn independently, by Poisson sampling",
        "probability that one user is drawn for a release, each time anew; nobody may learn who was drawn",
        "accountant opacus-prv: numerical composition",
    )


def test_equal_rounds_and_one_event_are_the_same_plan(fedrec: Fedrec) -> None:
    assert fedrec(*EQUAL).out == fedrec("account", "--event", "5,1,10", *CLAIM).out


@pytest.mark.parametrize("accountant", ["rdp", "zcdp"])
def test_another_accountant_stands_beside_the_tightest(fedrec: Fedrec, accountant: str) -> None:
    expected = epsilon([(5.0, 1.0, 10)], 1e-6, accountant)
    assert read(fedrec(*EQUAL, "--accountant", accountant, "--json"))["epsilon"] == expected
    text = fedrec(*EQUAL, "--accountant", accountant).out
    says(text, "epsilon 2.922 at delta 1e-06 (accountant: gaussian-exact)", f"(accountant: {accountant}); both hold")
    says(text, f"accountant {accountant}:")


def test_json_holds_all_that_an_epsilon_must_not_be_printed_without(fedrec: Fedrec) -> None:
    found = read(fedrec(*EQUAL, "--json"))
    assert found == {
        "epsilon": epsilon([(5.0, 1.0, 10)], 1e-6),
        "delta": 1e-6,
        "accountant": "gaussian-exact",
        "rho": pytest.approx(0.2),
        "unit": "user",
        "neighboring_relation": "add-or-remove one user",
        "trust_model": "central",
        "population_size": 6040,
        "events": [{"noise_multiplier": 5.0, "sampling_probability": 1.0, "count": 10, "purpose": "training"}],
        "warnings": [],
    }


@pytest.mark.parametrize(
    ("claim", "relation"),
    [
        (("--trust-model", "local"), "replace one user"),
        (("--unit", "interaction"), "add-or-remove one interaction"),
        (("--unit", "interaction", "--trust-model", "local"), "add-or-remove one interaction"),
    ],
)
def test_other_units_and_trust_models_are_said(fedrec: Fedrec, claim: tuple[str, ...], relation: str) -> None:
    outcome = fedrec(*EQUAL, *claim)
    says(outcome.out, f"adjacency {relation}", "trust local", "two worlds")
    assert read(fedrec(*EQUAL, *claim, "--json"))["neighboring_relation"] == relation
    calibrated = read(fedrec("calibrate", "--target-epsilon", 2, *CLAIM, *claim, "--json"))
    assert calibrated["trust_model"] == "local" and calibrated["neighboring_relation"] == relation


@pytest.mark.parametrize("command", [EQUAL[:-4], ("calibrate", "--target-epsilon", 2)])
def test_delta_above_one_over_population_is_warned_of(fedrec: Fedrec, command: tuple[object, ...]) -> None:
    at_limit = fedrec(*command, "--delta", 0.001, "--population-size", 1000)
    assert at_limit.code == 0 and at_limit.err == "" and "WARNING" not in at_limit.out
    above = fedrec(*command, "--delta", 0.001, "--population-size", 1001)
    assert above.code == 0 and above.err.startswith("warning: delta=0.001 is above 1 / population_size = 0.000999")
    says(above.out, "WARNING delta 0.001 is above 1 / population_size")
    script = fedrec(*command, "--delta", 0.001, "--population-size", 1001, "--json")
    assert len(read(script)["warnings"]) == 1 and script.err == above.err  # type: ignore[arg-type]


@pytest.mark.parametrize("probability", [1.0, 0.1])
def test_calibrate_says_the_noise_and_what_it_spends(fedrec: Fedrec, probability: float) -> None:
    command = ("calibrate", "--target-epsilon", 3, "--num-rounds", 20, "--sampling-probability", probability, *CLAIM)
    found = read(fedrec(*command, "--json"))
    noise, spent = found["noise_multiplier"], found["epsilon"]
    assert isinstance(noise, float) and isinstance(spent, float)
    assert 3 * (1 - 1e-3) <= spent <= 3 and found["target_epsilon"] == 3
    assert spent == epsilon([(noise, probability, 20)], 1e-6)
    text = fedrec(*command).out
    says(
        text, f"answer noise multiplier {noise!r} spends epsilon {spent!r} of the 3 asked for", "adjacency", "at delta"
    )
    again = read(fedrec("account", "--event", f"{noise!r},{probability},20", *CLAIM, "--json"))
    assert again["epsilon"] == spent, "the printed noise can be taken over as it stands"


PLAN = PrivacyPlan(
    (PrivacyEvent(4.0, 1.0, 2, "popularity"), PrivacyEvent(3.0, 1.0, 4)),
    delta=1e-5,
    clipping_norm=1.0,
    population_size=1000,
)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run folder whose ledger has published two rounds, closed an attempt at the third and begun another."""
    (tmp_path / "checkpoint").mkdir()
    with Ledger(tmp_path / "checkpoint" / "ledger.jsonl", PLAN, "some run") as ledger:
        for number in (1, 2):
            ledger.intend(number)
            ledger.published(number, 1, "aa")
        ledger.intend(3)
        ledger.closed(3, 1)
        ledger.intend(3, 2)
    return tmp_path


def test_account_of_a_run_says_what_was_spent_against_the_plan(fedrec: Fedrec, begun: Path) -> None:
    outcome = fedrec("account", begun)
    assert outcome.code == 0 and outcome.err == ""
    says(
        outcome.out,
        "spent epsilon 1.931 at delta 1e-05 (accountant: gaussian-exact)",
        "for unit user, adjacency add-or-remove one user, trust model central",
        "planned epsilon 3.169 at delta 1e-05",
        "T = 2 of 2 for popularity: noise multiplier 4, each user drawn with q = 1",
        "T = 1 of 4 for training: noise multiplier 3",
        "open 1 begun and not published, counted as spent",
        "two worlds are compared",
    )
    found = read(fedrec("account", begun, "--json"))
    assert found["epsilon"] == epsilon([(4.0, 1.0, 2), (3.0, 1.0, 1)], 1e-5)
    assert found["planned"]["epsilon"] == PLAN.epsilon  # type: ignore[index]
    assert found["num_open"] == 1 and found["run"] == "some run" and found["population_size"] == 1000
    assert read(fedrec("account", begun, "--accountant", "zcdp", "--json"))["accountant"] == "zcdp"


def test_account_reads_a_ledger_that_is_in_use_and_changes_nothing(fedrec: Fedrec, begun: Path) -> None:
    path = begun / "checkpoint" / "ledger.jsonl"
    torn = path.read_bytes() + b'{"checksum":"12'
    path.write_bytes(torn)
    assert fedrec("account", begun).code == 0
    assert path.read_bytes() == torn and sorted(path.parent.iterdir()) == [path]
    with Ledger(path, PLAN, "some run") as ledger:
        ledger.intend(4)
        found = read(fedrec("account", begun, "--json"))
        assert found["epsilon"] == ledger.epsilon_spent() and found["num_open"] == 2
        ledger.intend(5)


def test_account_of_a_ledger_before_the_first_round(fedrec: Fedrec, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    Ledger(tmp_path / "checkpoint" / "ledger.jsonl", PLAN).close()
    says(fedrec("account", tmp_path).out, "spent epsilon 0 at delta 1e-05", "T = 0 of 2 for popularity")
    assert read(fedrec("account", tmp_path, "--json"))["events"] == []


def test_account_of_a_finished_run_is_its_result(fedrec: Fedrec, private_config_file: Path, tmp_path: Path) -> None:
    result = json.loads(fedrec("simulate", private_config_file, "--out", tmp_path / "run", "--json").out)
    found = read(fedrec("account", tmp_path / "run", "--json"))
    for name in ("epsilon", "delta", "accountant", "unit", "neighboring_relation", "trust_model", "events"):
        assert found[name] == result["privacy"][name], name
    assert found["planned"]["epsilon"] == found["epsilon"] and found["num_open"] == 0  # type: ignore[index]

    ledger = tmp_path / "run" / "checkpoint" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:3]))
    one_line(fedrec("account", tmp_path / "run"), "ledger.jsonl", "records were lost")
    ledger.unlink()
    one_line(fedrec("account", tmp_path / "run"), "ledger.jsonl")


def test_account_of_a_run_without_privacy_or_without_rounds(
    fedrec: Fedrec, config_file: Path, private_config_file: Path, tmp_path: Path
) -> None:
    assert fedrec("simulate", config_file, "--out", tmp_path / "exact").code == 0
    says(fedrec("account", tmp_path / "exact").out, "no privacy plan", "no epsilon is spent and none may be stated")
    assert read(fedrec("account", tmp_path / "exact", "--json"))["epsilon"] is None
    assert fedrec("simulate", private_config_file, "--out", tmp_path / "run").code == 0
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    one_line(fedrec("account", tmp_path / "run"), "no ledger", "fedrec resume")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:40],
        lambda content: b"nonsense\n",
        lambda content: b"[]\n",
        lambda content: content.replace(b'"delta":1e-05', b'"delta":1e-04'),
        lambda content: content.replace(b'"round":2', b'"round":1', 1),
        lambda content: content + b"garbage",
        lambda content: bytes(1000),
    ],
)
def test_damaged_ledger_is_not_accounted(fedrec: Fedrec, begun: Path, damage: Callable[[bytes], bytes]) -> None:
    path = begun / "checkpoint" / "ledger.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    outcome = fedrec("account", begun)
    one_line(outcome, str(path))
    assert "/tmp" not in outcome.err.replace(str(path), ""), "the copy that was read is nobody's business"


WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "nothing": ((), "--noise-multiplier Z (or --event Z,Q,T, repeated)"),
    "no-noise": (CLAIM, "found no noise"),
    "no-delta": (("--noise-multiplier", 1, "--population-size", 10), "found no --delta"),
    "no-population": (("--noise-multiplier", 1, "--delta", 1e-5), "found no --population-size"),
    "zero-noise": (("--noise-multiplier", 0, *CLAIM), "noise_multiplier=0.0"),
    "nan-noise": (("--noise-multiplier", "nan", *CLAIM), "noise_multiplier=nan"),
    "infinite-noise": (("--noise-multiplier", "inf", *CLAIM), "noise_multiplier=inf"),
    "hardly-any-noise": (("--noise-multiplier", 1e-300, *CLAIM), "give more noise"),
    "hardly-any-noise-sampled": (("--event", "1e-300,.5,1", *CLAIM), "give more noise"),
    "text-for-noise": (("--noise-multiplier", "much", *CLAIM), "'much'"),
    "sampling-above-one": (("--event", "1,1.5,1", *CLAIM), "sampling_probability=1.5"),
    "no-rounds": (("--event", "1,1,0", *CLAIM), "count=0"),
    "too-many-rounds": (("--event", f"1,1,{10**30}", *CLAIM), "count=1000"),
    "half-a-round": (("--event", "1,1,2.5", *CLAIM), "'1,1,2.5' is not Z,Q,T"),
    "short-event": (("--event", "1,1", *CLAIM), "'1,1' is not Z,Q,T"),
    "nonsense-event": (("--event", "a,b,c", *CLAIM), "for instance --event 4.5,0.1,20"),
    "event-and-noise": (("--event", "1,1,2", "--noise-multiplier", 1, *CLAIM), "leave out --noise-multiplier"),
    "event-and-rounds": (("--event", "1,1,2", "--num-rounds", 1, *CLAIM), "leave out --num-rounds"),
    "event-and-sampling": (("--event", "1,1,2", "--sampling-probability", 1, *CLAIM), "--sampling-probability"),
    "delta-of-two": (("--noise-multiplier", 1, "--delta", 2, "--population-size", 9), "delta=2.0"),
    "unknown-accountant": (("--noise-multiplier", 1, *CLAIM, "--accountant", "gdp"), "accountant='gdp'"),
    "sampled-zcdp": (("--event", "1,.1,1", *CLAIM, "--accountant", "zcdp"), "sampling_probability=0.1"),
    "unknown-unit": (("--noise-multiplier", 1, *CLAIM, "--unit", "household"), "unit='household'"),
    "unknown-trust": (("--noise-multiplier", 1, *CLAIM, "--trust-model", "none"), "trust_model='none'"),
    "sampled-local": (("--event", "1,.1,1", *CLAIM, "--trust-model", "local"), "under local trust"),
    "no-run": (("nowhere",), "nowhere holds no run"),
    "run-and-plan": (("nowhere", "--delta", 1e-3), "a run has its own"),
    "run-and-unit": (("nowhere", "--unit", "interaction"), "a run has its own"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_question_to_account(fedrec: Fedrec, kind: str) -> None:
    arguments, word = WRONG[kind]
    outcome = fedrec("account", *arguments)
    assert outcome.code == 2 and word in outcome.err and "Traceback" not in outcome.err and outcome.out == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--target-epsilon", 0, *CLAIM), "target_epsilon=0 is not in [1e-06, 1e+06]"),
        (("--target-epsilon", "nan", *CLAIM), "target_epsilon=nan"),
        (("--target-epsilon", "inf", *CLAIM), "target_epsilon=inf"),
        (("--target-epsilon", 1e-30, *CLAIM), "target_epsilon=1e-30"),
        (("--target-epsilon", 1, "--delta", 0, "--population-size", 9), "delta=0.0"),
        (("--target-epsilon", 1, *CLAIM, "--sampling-probability", 0), "sampling_probability=0.0"),
        (("--target-epsilon", 1, *CLAIM, "--sampling-probability", 1e-7), "every noise would do"),
        (("--target-epsilon", 1, *CLAIM, "--unit", "user", "--trust-model", "x"), "trust_model='x'"),
        (("--target-epsilon", 1, "--delta", 1e-6), "--population-size"),
        (CLAIM, "--target-epsilon"),
    ],
)
def test_wrong_question_to_calibrate(fedrec: Fedrec, arguments: tuple[object, ...], word: str) -> None:
    outcome = fedrec("calibrate", *arguments)
    assert outcome.code == 2 and word in outcome.err and "Traceback" not in outcome.err and outcome.out == ""
