"""The node's ledger: what a node answers, refuses, adds up over all its runs and never forgets."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedrec.errors import PrivacyError
from fedrec.privacy import chained_file
from fedrec.privacy.node_ledger import NodeLedger, Tally
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan

PLAN = PrivacyPlan(
    (PrivacyEvent(4.0, 1.0, 2, "popularity"), PrivacyEvent(3.0, 1.0, 3)), delta=1e-5, clipping_norm=1.0,
    population_size=100,
)  # fmt: skip
LOCAL = replace(PLAN, trust_model="local", neighboring_relation="")
BY_EXAMPLE = PrivacyPlan(
    (PrivacyEvent(2.0, 1.0, 12),), 1e-5, 1.0, 1000, trust_model="local", unit="interaction", steps_per_round=4
)
SHARED, OTHER = {"items": torch.zeros(2, 3)}, {"items": torch.ones(2, 3)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def answer(
    ledger: NodeLedger,
    *rounds: int,
    run: str = "run",
    plan: PrivacyPlan | None = PLAN,
    shared: dict[str, torch.Tensor] = SHARED,
    max_rounds: int = 99,
    repeatable: bool = False,
) -> list[int]:
    return [ledger.take_part(run, plan, number, shared, max_rounds, repeatable) for number in rounds]


def num_spent(ledger: NodeLedger, plan: PrivacyPlan = PLAN) -> int:
    return sum(count for _, _, count in ledger.spent().get(Tally.of(plan), ()))


def test_rounds_of_a_run_spend_their_events_and_nothing_is_forgotten(path: Path) -> None:
    with NodeLedger(path) as ledger:
        assert ledger.spent() == {} and ledger.epsilon_spent(Tally.of(PLAN)) == 0
        answer(ledger, 1, 2, 3)
    for _ in range(2):
        with NodeLedger(path) as ledger:
            assert ledger.spent() == {Tally.of(PLAN): ((3.0, 1.0, 1), (4.0, 1.0, 2))}
            assert 0 < ledger.epsilon_spent(Tally.of(PLAN)) < PLAN.epsilon
            assert [ledger.num_answers("run", n) for n in (1, 3, 4)] == [1, 1, 0] == [1, 1, ledger.num_answers("x", 1)]


def test_whole_plan_is_answered_and_spends_exactly_its_epsilon(path: Path) -> None:
    for plan in (PLAN, LOCAL, BY_EXAMPLE, PrivacyPlan((PrivacyEvent(1.1, 0.3, 3),), 1e-6, 1.0, 100)):
        for limit in (None, plan.epsilon):
            with NodeLedger(path, limit) as ledger:
                answer(ledger, *range(1, plan.num_rounds + 1), plan=plan)
                assert ledger.epsilon_spent(Tally.of(plan)) == plan.epsilon
            path.unlink()


def test_a_round_of_an_example_level_plan_spends_all_its_steps(path: Path) -> None:
    with NodeLedger(path) as ledger:
        answer(ledger, 1, 2, plan=BY_EXAMPLE)
        assert ledger.spent() == {Tally("interaction", "add-or-remove one interaction", "local"): ((2.0, 1.0, 8),)}


def test_rounds_outside_the_run_or_its_plan_are_refused(path: Path) -> None:
    with NodeLedger(path) as ledger:
        for number in (0, -1, 3, 10**9):
            with pytest.raises(PrivacyError, match="its plan allows 2 rounds; this node refuses"):
                answer(ledger, number, max_rounds=2)
        with pytest.raises(PrivacyError, match="round 6 is not in this plan"):
            answer(ledger, 6)
        with pytest.raises(PrivacyError, match="its plan allows 2 rounds"):
            answer(ledger, 3, plan=None, max_rounds=2)
        assert ledger.spent() == {}


def test_round_asked_for_again_must_bring_the_same_parameters(path: Path) -> None:
    with NodeLedger(path) as ledger:
        answer(ledger, 1)
        reshaped, whole = {"items": torch.zeros(3, 2)}, {"items": SHARED["items"].int()}
        for changed in (OTHER, {}, {"names": SHARED["items"]}, reshaped, whole):
            with pytest.raises(PrivacyError, match="again with other parameters"):
                answer(ledger, 1, shared=changed)
            with pytest.raises(PrivacyError, match="again with other parameters"):
                answer(ledger, 1, shared=changed, repeatable=True)
        answer(ledger, 2, shared=OTHER)
        assert num_spent(ledger) == 2


def test_first_plan_of_a_run_is_pinned(path: Path) -> None:
    with NodeLedger(path) as ledger:
        answer(ledger, 1)
    with NodeLedger(path) as ledger:
        for other in (replace(PLAN, delta=1e-6), LOCAL):
            with pytest.raises(PrivacyError, match="this node pinned " + PLAN.digest()):
                answer(ledger, 2, plan=other)
        with pytest.raises(PrivacyError, match="has no plan now"):
            answer(ledger, 2, plan=None)
        answer(ledger, 2)


def test_run_without_plan_stays_without_one_and_waits_for_no_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flushed.append)
        for _ in range(3):
            with NodeLedger(path) as ledger:
                answer(ledger, 1, 2, run="free", plan=None)
                assert ledger.spent() == {}
    assert not flushed and not path.exists()
    with NodeLedger(path) as ledger:
        with pytest.raises(PrivacyError, match="this node pinned none; it takes part in one plan a run"):
            answer(ledger, 3, run="free")
        answer(ledger, 1)
        answer(ledger, 3, run="free", plan=None)
        assert num_spent(ledger) == 1


@pytest.mark.parametrize("plan", [PLAN, LOCAL], ids=["central", "local"])
def test_same_answer_again_counts_once(path: Path, plan: PrivacyPlan) -> None:
    with NodeLedger(path) as ledger:
        assert answer(ledger, 1, 1, 2, 1, 1, plan=plan, repeatable=True) == [1] * 5
        size = path.stat().st_size
        assert answer(ledger, *[1] * 20, plan=plan, repeatable=True) == [1] * 20
        assert num_spent(ledger, plan) == 2 and path.stat().st_size == size


@pytest.mark.parametrize("plan", [PLAN, LOCAL], ids=["central", "local"])
def test_each_answer_that_is_not_the_same_counts(path: Path, plan: PrivacyPlan) -> None:
    with NodeLedger(path) as ledger:
        assert answer(ledger, 1, 1, 2, 1, plan=plan) == [1, 2, 1, 3]
        assert answer(ledger, 1, 2, plan=plan, repeatable=True) == [3, 1]
        assert num_spent(ledger, plan) == 4 and ledger.num_answers("run", 1) == 3


@pytest.mark.parametrize("reopen", [False, True])
def test_server_that_asks_over_and_over_gets_no_more_answers_than_the_plan_has(path: Path, reopen: bool) -> None:
    """Each answer might be published, by a server that lost its ledger; its plans differ in nothing that counts."""
    plan, answers = replace(PLAN, events=(PrivacyEvent(2.0, 1.0, 2),)), 0
    ledger = NodeLedger(path)
    for population_size in range(100, 105):
        with pytest.raises(PrivacyError, match="would raise what all runs spent here"):
            for _ in range(100):
                like = replace(plan, population_size=population_size)
                answer(ledger, 1, run=f"run {population_size}", plan=like)
                answers += 1
                if reopen:
                    ledger.close()
                    ledger = NodeLedger(path)
    assert ledger.epsilon_spent(Tally.of(plan)) == plan.epsilon
    ledger.close()
    assert answers == 2


def test_server_that_starts_the_same_anew_gets_one_plan_in_all(path: Path) -> None:
    with NodeLedger(path) as ledger:
        answer(ledger, 1, 2, 3, run="first")
        answer(ledger, 3, 4, run="second")
        for run in ("first", "second", "third"):
            with pytest.raises(PrivacyError, match=r"to epsilon .* allowed is .* that of the first plan here"):
                answer(ledger, 5, run=run)
        answer(ledger, 1, 2, run="first", repeatable=True)
        assert ledger.epsilon_spent(Tally.of(PLAN)) == PLAN.epsilon


def test_plan_without_any_privacy_is_not_spent_twice_and_allows_itself_only(path: Path) -> None:
    """Infinity is not above infinity: the count has to stop it."""
    plan = replace(LOCAL, events=(PrivacyEvent(1e-160, 1.0, 1),))
    with NodeLedger(path) as ledger:
        answer(ledger, 1, plan=plan)
        for run, one in (("run", plan), ("second", LOCAL)):
            with pytest.raises(PrivacyError, match="to epsilon inf"):
                answer(ledger, 1, run=run, plan=one)


def test_later_larger_plan_is_refused_unless_the_owner_allows_it(path: Path) -> None:
    first = replace(LOCAL, events=(PrivacyEvent(8.0, 1.0, 4),))
    larger = replace(LOCAL, events=(PrivacyEvent(8.0, 1.0, 1000),))
    with NodeLedger(path) as ledger:
        answer(ledger, 1, plan=first)
        with pytest.raises(
            PrivacyError, match=r"is of a plan of epsilon .* that of the first plan .* higher max_epsilon"
        ):
            answer(ledger, 1, run="larger", plan=larger)
        answer(ledger, 1, run="other claim", plan=PLAN)
    with NodeLedger(path, larger.epsilon) as ledger:
        answer(ledger, 1, run="larger", plan=larger)
    with NodeLedger(path) as ledger:
        with pytest.raises(PrivacyError, match="that of the first plan here"):
            answer(ledger, 2, run="larger", plan=larger)
        answer(ledger, 2, 3, plan=first)
        with pytest.raises(PrivacyError, match="would raise what all runs spent here"):
            answer(ledger, 4, plan=first)
        assert ledger.epsilon_spent(Tally.of(first)) == first.epsilon


def test_later_smaller_plan_gets_what_the_first_left_and_makes_it_no_larger(path: Path) -> None:
    smaller = replace(PLAN, events=(PrivacyEvent(6.0, 1.0, 3),))
    with NodeLedger(path) as ledger:
        answer(ledger, 1, 2, 3, 4)
        answer(ledger, 1, run="smaller", plan=smaller)
        assert ledger.epsilon_spent(Tally.of(PLAN)) < PLAN.epsilon
        answer(ledger, 2, 3, run="smaller", plan=smaller)
        with pytest.raises(PrivacyError, match="would raise what all runs spent here"):
            answer(ledger, 5)
        assert ledger.epsilon_spent(Tally.of(PLAN)) <= PLAN.epsilon


def test_smaller_delta_of_a_later_plan_counts_for_the_first_one_too(path: Path) -> None:
    """Spend that is part of the first plan is within at the first plan's delta, not at every other."""
    strict = replace(PLAN, delta=1e-9, events=(PrivacyEvent(20.0, 1.0, 1),))
    with NodeLedger(path) as ledger:
        answer(ledger, 1)
        answer(ledger, 1, run="strict", plan=strict)
        with pytest.raises(PrivacyError, match="at delta 1e-09; allowed is"):
            answer(ledger, 2, 3, 4, 5)
        assert ledger.epsilon_spent(Tally.of(PLAN)) <= PLAN.epsilon


def test_owner_may_allow_more_or_less(path: Path) -> None:
    with NodeLedger(path, PLAN.epsilon * 0.7) as ledger:
        answer(ledger, 1, 2)
        with pytest.raises(PrivacyError, match="this node's max_epsilon"):
            answer(ledger, 3, 4, 5)
        assert ledger.epsilon_spent(Tally.of(PLAN)) <= PLAN.epsilon * 0.7
    with NodeLedger(path, 3 * PLAN.epsilon) as ledger:
        answer(ledger, 1, 2, 3, 4, 5, run="second")
        assert PLAN.epsilon < ledger.epsilon_spent(Tally.of(PLAN)) <= 3 * PLAN.epsilon
    for wrong in (0, -1, float("nan")):
        with pytest.raises(PrivacyError, match="not positive"):
            NodeLedger(path, wrong)


def test_total_is_taken_at_the_smallest_delta(path: Path) -> None:
    """What is (epsilon, delta)-private is so at every larger delta; the other way round it is not."""
    strict = replace(PLAN, delta=1e-9, events=(PrivacyEvent(3.0, 1.0, 1),))
    with NodeLedger(path) as ledger:
        answer(ledger, 1, 2, 3, 4)
        with pytest.raises(PrivacyError, match="at delta 1e-09; allowed is"):
            answer(ledger, 1, run="strict", plan=strict)
        assert ledger.epsilon_spent(Tally.of(PLAN)) < PLAN.epsilon, "what was refused is not pinned"
        answer(ledger, 1, run="other", plan=replace(strict, delta=1e-4))  # with the last round of PLAN it would be all
        with pytest.raises(PrivacyError, match="at delta 1e-05; allowed is"):
            answer(ledger, 5)
    with NodeLedger(path, 100) as ledger:
        answer(ledger, 1, run="strict", plan=strict)
        everything = (PrivacyEvent(4.0, 1.0, 2), PrivacyEvent(3.0, 1.0, 4))
        assert ledger.epsilon_spent(Tally.of(PLAN)) == replace(PLAN, delta=1e-9, events=everything).epsilon


def test_claims_have_tallies_of_their_own(path: Path) -> None:
    with NodeLedger(path) as ledger:
        for plan in (PLAN, LOCAL, BY_EXAMPLE):
            answer(ledger, *range(1, plan.num_rounds + 1), run=plan.unit + plan.trust_model, plan=plan)
        for plan in (PLAN, LOCAL, BY_EXAMPLE):
            assert ledger.epsilon_spent(Tally.of(plan)) == plan.epsilon
            with pytest.raises(PrivacyError, match="would raise what all runs spent here .*" + plan.trust_model):
                answer(ledger, 1, run="again", plan=plan)


def test_plan_stands_in_the_ledger_once(path: Path) -> None:
    with NodeLedger(path) as ledger:
        answer(ledger, 1, 2)
        answer(ledger, 3, run="second")
    assert path.read_text().count('"population_size"') == 1
    assert path.stat().st_mode & 0o077 == 0


def test_change_of_any_byte_is_refused_or_counts_in_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with NodeLedger(path) as ledger:
        answer(ledger, 1, 2)
    whole = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # speed only: nothing crashes here
    for place, wrong in itertools.product(range(len(whole)), (0, 1)):
        wrong = whole[place] ^ 1 if wrong else 0
        path.write_bytes(whole[:place] + bytes([wrong]) + whole[place + 1 :])
        if place == len(whole) - 1 and wrong == 0:  # the newline that a crash may leave unwritten
            with NodeLedger(path) as ledger:
                assert num_spent(ledger) == 2
            assert path.read_bytes() == whole
            continue
        with pytest.raises(PrivacyError, match=r"ledger\.jsonl, line [123]: .*this node takes no part"):
            NodeLedger(path)


def test_well_chained_nonsense_is_damage(path: Path) -> None:
    with NodeLedger(path) as ledger:
        answer(ledger, 1)
    good = {"kind": "answer", "run": "run", "round": 2, "attempt": 1, "plan": PLAN.digest(), "shared": "aa"}
    before = path.read_bytes()
    for change in (
        {"kind": "other"}, {"plan": "unknown"}, {"plan": PLAN.digest(), "round": 6}, {"attempt": 2},
        {"round": 1}, {"round": 1, "attempt": 2}, {"round": None}, {"pinned": {"events": []}},
        {"plan": LOCAL.digest(), "pinned": LOCAL.to_dict()},
    ):  # fmt: skip
        chain = chained_file.ChainedFile(path, {"kind": "node ledger", "version": 1}, "")
        chain.append({**good, **change})
        chain.close()
        with pytest.raises(PrivacyError, match=r"line 3: the record makes no sense here .*this node takes no part"):
            NodeLedger(path)
        path.write_bytes(before)


def test_file_of_another_kind_or_version_is_refused(path: Path) -> None:
    from fedrec.privacy.ledger import Ledger

    Ledger(path, PLAN, "run").close()
    with pytest.raises(
        PrivacyError, match=r"line 1: it is no first line of such a ledger .kind 'node ledger', version 1"
    ):
        NodeLedger(path)
    path.unlink()
    chained_file.ChainedFile(path, {"kind": "node ledger", "version": 2}, "").close()
    with pytest.raises(PrivacyError, match="line 1: it is no first line of such a ledger"):
        NodeLedger(path)


def test_second_process_is_locked_out_and_nothing_is_recorded(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.privacy.test_node_ledger import *\n"
        "try: answer(NodeLedger(Path(sys.argv[1])), 2)\n"
        "except PrivacyError as error: sys.exit('in use by another process' in str(error) and 7)"
    )
    command = [sys.executable, "-c", code, str(path)]
    with NodeLedger(path) as ledger:
        answer(ledger, 1)
        assert subprocess.run(command, check=False).returncode == 7
    with NodeLedger(path) as ledger:
        assert num_spent(ledger) == 1


@pytest.mark.parametrize("failing", ["pwrite", "fsync"])
def test_full_disk_records_nothing_and_the_ledger_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    real: Callable[..., int] = getattr(os, failing)
    with NodeLedger(path) as ledger:
        answer(ledger, 1)
        before, calls = path.read_bytes(), 0

        def fail_once(*arguments: object) -> int:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(chained_file.os, failing, fail_once)
            with pytest.raises(
                PrivacyError, match=r"ledger\.jsonl can't be written .*No space left.*nothing may happen"
            ):
                answer(ledger, 2)
        assert path.read_bytes() == before and num_spent(ledger) == 1 and ledger.num_answers("run", 2) == 0
        assert answer(ledger, 2) == [1]
    with NodeLedger(path) as ledger:
        assert num_spent(ledger) == 2


def test_disk_that_cannot_be_written_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(name: Path, flags: int, mode: int = 0o777) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    with NodeLedger(path) as ledger:
        answer(ledger, 1)
    with monkeypatch.context() as patch:
        patch.setattr(chained_file.os, "open", read_only)
        with pytest.raises(PrivacyError, match=r"ledger\.jsonl can't be written .*Read-only file system"):
            NodeLedger(path)
    path.with_name("file").touch()
    with (
        pytest.raises(PrivacyError, match=r"can't be written .*nothing may happen"),
        NodeLedger(path.with_name("file") / "ledger.jsonl") as ledger,
    ):
        answer(ledger, 1)
    with (
        pytest.raises(PrivacyError, match="can't be written"),
        NodeLedger(path.with_name("file") / "ledger.jsonl") as ledger,
    ):
        answer(ledger, 1, plan=None)
    with NodeLedger(path) as ledger:
        assert num_spent(ledger) == 1
