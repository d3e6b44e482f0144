"""The ledger: never under-counted, whatever crashes; refused, whatever is damaged."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedrec.errors import PrivacyError
from fedrec.privacy import chained_file
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan

PLAN = PrivacyPlan(
    (PrivacyEvent(4.0, 1.0, 2, "popularity"), PrivacyEvent(3.0, 1.0, 3)),
    delta=1e-5,
    clipping_norm=1.0,
    population_size=100,
)
Step = Callable[[Ledger], None]
STEPS: list[Step] = [
    lambda ledger: ledger.intend(1),
    lambda ledger: ledger.published(1, 1, "aa"),
    lambda ledger: ledger.intend(2),
    lambda ledger: ledger.closed(2, 1),
    lambda ledger: ledger.intend(2, 2),
    lambda ledger: ledger.published(2, 2, "bb"),
    lambda ledger: ledger.intend(3),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def write(path: Path, steps: list[Step] = STEPS) -> list[tuple[int, int]]:
    """Run the steps; return (size of the file, rounds spent) after the header and after each of them."""
    with Ledger(path, PLAN, "run") as ledger:
        sizes = [(path.stat().st_size, 0)]
        for step in steps:
            step(ledger)
            sizes.append((path.stat().st_size, rounds_spent(ledger)))
    return sizes


def rounds_spent(ledger: Ledger) -> int:
    return sum(event.count for event in ledger.spent())


def test_spent_follows_the_records_and_survives_reopening(path: Path) -> None:
    write(path)
    with Ledger(path, PLAN, "run") as ledger:
        assert ledger.spent() == (PrivacyEvent(4.0, 1.0, 2, "popularity"), PrivacyEvent(3.0, 1.0, 1))
        assert 0 < ledger.epsilon_spent() < PLAN.epsilon
        assert ledger.open_attempts(3) == (1,) and ledger.open_attempts(2) == ()
        assert [ledger.num_attempts(r) for r in (1, 2, 3, 4)] == [1, 2, 1, 0]


def test_whole_plan_spends_its_epsilon_and_nothing_before_the_first_round(path: Path) -> None:
    with Ledger(path, PLAN) as ledger:
        assert ledger.spent() == () and ledger.epsilon_spent() == 0
        for number in range(1, 6):
            ledger.intend(number)
        assert ledger.spent() == PLAN.events and ledger.epsilon_spent() == PLAN.epsilon


def test_truncation_at_every_byte_never_forgets_a_completed_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, undisturbed = write(path), path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # speed only: nothing crashes here
    for cut in range(len(undisturbed) + 1):
        path.write_bytes(undisturbed[:cut])
        done = sum(size <= cut for size, _ in sizes) - 1  # steps whose record had reached the disk
        only_newline_is_missing = any(size == cut + 1 for size, _ in sizes[1:])
        with Ledger(path, PLAN, "run") as ledger:
            assert rounds_spent(ledger) == sizes[max(done, 0) + only_newline_is_missing][1]
            for step in STEPS[max(done, 0) + (only_newline_is_missing and cut > 0) :]:
                step(ledger)
        assert path.read_bytes() == undisturbed, "an interrupted and resumed ledger has the same bytes"


def test_change_of_any_byte_stops_training_or_counts_in_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, STEPS[:2])
    whole = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # speed only: nothing crashes here
    for place, byte in enumerate(whole):
        for wrong in {0, byte ^ 1}:
            path.write_bytes(whole[:place] + bytes([wrong]) + whole[place + 1 :])
            if place == len(whole) - 1 and wrong == 0:  # the newline that a crash may leave unwritten
                with Ledger(path, PLAN, "run") as ledger:
                    assert rounds_spent(ledger) == 1
                assert path.read_bytes() == whole
                continue
            with pytest.raises(PrivacyError, match=r"ledger\.jsonl, line [123]: .*training stops"):
                Ledger(path, PLAN, "run")


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_pieces_of_a_record_that_was_not_synced_are_dropped(path: Path, step: int) -> None:
    """A power cut may leave zeros for any bytes; such a record has no newline yet, and nothing was done for it."""
    before = write(path, STEPS[:step])[-1]
    start = path.read_bytes()
    with Ledger(path, PLAN, "run") as ledger:
        STEPS[step](ledger)
    record = path.read_bytes()[len(start) : -1]
    for first, last in [
        (0, len(record)),
        (0, 1),
        (0, 50),
        (40, 60),
        (90, 91),
        (100, len(record)),
        (len(record) - 1, None),
    ]:
        for end in (b"", b"\0", bytes(500)):
            path.write_bytes(start + record[:first] + bytes(len(record[first:last])) + record[last:] + end)
            with Ledger(path, PLAN, "run") as ledger:
                assert rounds_spent(ledger) == before[1]
            assert path.read_bytes() == start
            path.write_bytes(start[:-1] + b"\0" + record[:first] + bytes(len(record[first:last])) + end)
            with Ledger(path, PLAN, "run") as ledger:  # the newline before it was not on disk either
                assert rounds_spent(ledger) == before[1]
            assert path.read_bytes() == start
    path.write_bytes(start + record + b"\0")
    with Ledger(path, PLAN, "run") as ledger:
        assert path.read_bytes() == start + record + b"\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[1:],
        lambda lines: lines[:1] + lines[2:],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:2], lines[1], *lines[2:]],
        lambda lines: [*lines, b"{}\n"],
        lambda lines: [*lines, b"\n"],
        lambda lines: [*lines, b"\0\0\0\0\n"],
        lambda lines: [*lines, b"{\0\0\0x"],
        lambda lines: [*lines, lines[-1][:99] + b"\x7f"],
        lambda lines: [*lines[:-1], lines[-1].replace(b"3", b"4", 1)[:-1]],
        lambda lines: [*lines, b"garbage"],
        lambda lines: [*lines, b"{}"],
        lambda lines: [b"not a ledger"],
        lambda lines: [lines[0].replace(b'"', b"'")],
    ],
)
def test_missing_moved_doubled_or_foreign_lines_stop_training(
    path: Path, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    write(path)
    before = b"".join(damage(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(before)
    with pytest.raises(PrivacyError, match=r"ledger\.jsonl, line \d+: .*training stops"):
        Ledger(path, PLAN, "run")
    assert path.read_bytes() == before, "what is refused is left as it is"


def test_well_chained_nonsense_stops_training(path: Path) -> None:
    for record in (
        {"kind": "published", "round": 1, "attempt": 1, "release": "aa"},
        {"kind": "closed", "round": 1, "attempt": 1},
        {"kind": "intend", "round": 99, "attempt": 1},
        {"kind": "other", "round": 1, "attempt": 1},
        {"round": 1},
    ):
        Ledger(path, PLAN, "run").close()
        chain = chained_file.ChainedFile(path, {"kind": "header", "version": 1}, "")
        chain.append(record)
        chain.close()
        with pytest.raises(PrivacyError, match="line 2: the record makes no sense here"):
            Ledger(path, PLAN, "run")
        path.unlink()


def test_ledger_of_another_plan_or_run_is_refused(path: Path) -> None:
    write(path)
    with pytest.raises(PrivacyError, match=r"ledger\.jsonl: line 1: .*belongs to plan"):
        Ledger(path, replace(PLAN, delta=1e-6), "run")
    with pytest.raises(PrivacyError, match="belongs to run run, not to other"):
        Ledger(path, PLAN, "other")


def test_position_finds_records_missing_at_the_end(path: Path, tmp_path: Path) -> None:
    write(path, STEPS[:3])
    with Ledger(path, PLAN, "run") as ledger:
        position = json.loads(json.dumps(ledger.position))
        for step in STEPS[3:]:
            step(ledger)
    Ledger(path, PLAN, "run", at_least=position).close()
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in (4, len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        Ledger(path, PLAN, "run", at_least=position).close()
    for kept in (1, 2, 3):
        path.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(PrivacyError, match="the checkpoint remembers 4"):
            Ledger(path, PLAN, "run", at_least=position)
    other = tmp_path / "other.jsonl"
    write(other, [lambda ledger: ledger.intend(3), *STEPS])
    with pytest.raises(PrivacyError, match="lost or replaced"):
        Ledger(other, PLAN, "run", at_least=position)
    missing = tmp_path / "missing.jsonl"
    with pytest.raises(PrivacyError, match="is missing, but the checkpoint remembers it"):
        Ledger(missing, PLAN, "run", at_least=position)
    assert not missing.exists()


def test_round_that_would_overspend_is_refused_before_it_begins(path: Path) -> None:
    with Ledger(path, PLAN) as ledger:
        for number in range(1, 6):
            ledger.intend(number)
        for number, attempt in ((5, 2), (1, 2)):
            with pytest.raises(PrivacyError, match="would raise the spend to epsilon"):
                ledger.intend(number, attempt)
        with pytest.raises(PrivacyError, match="allowed are 1 to 5"):
            ledger.intend(6)
        assert ledger.spent() == PLAN.events
    assert path.read_bytes().count(b"\n") == 6


def test_other_events_than_planned_are_allowed_up_to_the_plans_epsilon(path: Path) -> None:
    plan = replace(PLAN, events=(PrivacyEvent(4.0, 1.0, 1), PrivacyEvent(2.0, 1.0, 1)))
    with Ledger(path, plan) as ledger:
        for attempt in range(1, 6):  # 5 / 4^2 = 1 / 4^2 + 1 / 2^2
            ledger.intend(1, attempt)
        assert ledger.epsilon_spent() == pytest.approx(plan.epsilon, rel=1e-9)
        with pytest.raises(PrivacyError, match="would raise the spend"):
            ledger.intend(1, 6)


def test_closed_attempt_is_given_back_and_its_number_is_used_up(path: Path) -> None:
    with Ledger(path, PLAN) as ledger:
        for number in range(1, 6):
            ledger.intend(number)
        ledger.closed(5, 1)
        ledger.closed(5, 1)
        with pytest.raises(PrivacyError, match="use the next one"):
            ledger.intend(5, 1)
        ledger.intend(5, 2)
        assert ledger.spent() == PLAN.events


def test_published_attempt_stays_spent(path: Path) -> None:
    with Ledger(path, PLAN) as ledger:
        ledger.intend(1)
        ledger.published(1, 1, "aa")
        for number in (1, 2):
            with pytest.raises(PrivacyError, match="published or never began"):
                ledger.closed(number, 1)
        assert rounds_spent(ledger) == 1


def test_retry_of_a_simulated_round_counts_once(path: Path) -> None:
    with Ledger(path, PLAN) as ledger:
        for _ in range(3):
            ledger.intend(1)
            ledger.published(1, 1, "aa")
        assert rounds_spent(ledger) == 1 and ledger.position["records"] == 3
        with pytest.raises(PrivacyError, match="a second release is a new attempt"):
            ledger.published(1, 1, "bb")


@pytest.mark.parametrize("attempt", [0, -1, 1.5])
def test_attempts_are_numbered_from_one(path: Path, attempt: int) -> None:
    with Ledger(path, PLAN) as ledger, pytest.raises(PrivacyError, match="not a number from 1"):
        ledger.intend(1, attempt)


def test_nothing_is_published_that_was_not_intended(path: Path) -> None:
    with Ledger(path, PLAN) as ledger:
        with pytest.raises(PrivacyError, match="intend it before"):
            ledger.published(1, 1, "aa")
        ledger.intend(1)
        ledger.closed(1, 1)
        with pytest.raises(PrivacyError, match="intend it before"):
            ledger.published(1, 1, "aa")


def test_second_process_is_locked_out(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.privacy.test_ledger import PLAN, Ledger, PrivacyError\n"
        "try: Ledger(Path(sys.argv[1]), PLAN, 'run')\n"
        "except PrivacyError as error: sys.exit('in use by another process' in str(error) and 7)"
    )
    command = [sys.executable, "-c", code, str(path)]
    with Ledger(path, PLAN, "run"):
        assert subprocess.run(command, check=False).returncode == 7
    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("failing", ["pwrite", "fsync"])
@pytest.mark.parametrize("written", [0, 20])
def test_full_disk_records_nothing_and_the_ledger_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, written: int
) -> None:
    with Ledger(path, PLAN, "run") as ledger:
        ledger.intend(1)
        before, calls = path.read_bytes(), 0

        def fail(descriptor: int, *rest: object) -> int:
            nonlocal calls
            calls += 1
            if calls > 1 + (failing == "pwrite"):  # undoing may succeed
                return 0 if failing == "pwrite" else None  # type: ignore[return-value]
            if failing == "pwrite" and calls == 1 and written:
                return real(descriptor, rest[0][:written], rest[1])  # type: ignore[index]
            raise OSError(errno.ENOSPC, "No space left on device")

        real = os.pwrite
        with monkeypatch.context() as patch:
            patch.setattr(chained_file.os, failing, fail)
            with pytest.raises(PrivacyError, match=r"ledger\.jsonl can't be written .*No space left"):
                ledger.intend(2)
        assert path.read_bytes() == before and rounds_spent(ledger) == 1
        ledger.intend(2)
    with Ledger(path, PLAN, "run") as ledger:
        assert rounds_spent(ledger) == 2


def test_ledger_that_cannot_even_undo_is_used_no_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Ledger(path, PLAN, "run") as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(chained_file.os, "fsync", fail)
            with pytest.raises(PrivacyError, match="Input/output error"):
                ledger.intend(1)
        with pytest.raises(PrivacyError, match="open it again"):
            ledger.intend(1)


def test_no_times_and_nothing_random_in_the_file(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("interrupted", ["_write", "_keep", "_apply"])
@pytest.mark.parametrize("after", [False, True])
def test_interrupt_anywhere_in_a_call_leaves_the_file_to_the_next_reader(
    path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str, after: bool
) -> None:
    """Ctrl-C is no crash: who catches it holds a ledger that does not know whether its last call was recorded."""
    with Ledger(path, PLAN, "run") as ledger:
        ledger.intend(1)
        real = getattr(ledger._chain, interrupted)

        def interrupt(*arguments: object) -> None:
            if after:
                real(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ledger._chain, interrupted, interrupt)
            ledger.intend(2)
        if interrupted != "_write":  # there, what was written is taken back
            with pytest.raises(PrivacyError, match="open it again"):
                ledger.intend(3)
    with Ledger(path, PLAN, "run") as ledger:
        assert rounds_spent(ledger) == 1 + (interrupted != "_write")
        ledger.intend(2)
        ledger.intend(3)


def test_plan_without_any_privacy_is_not_spent_twice(path: Path) -> None:
    """Infinity is not above infinity: the count has to stop it."""
    plan = replace(PLAN, events=(PrivacyEvent(1e-160, 1.0, 1),))
    with Ledger(path, plan) as ledger:
        ledger.intend(1)
        with pytest.raises(PrivacyError, match="would raise the spend to epsilon inf"):
            ledger.intend(1, 2)
