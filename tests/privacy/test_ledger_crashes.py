"""1,000 lives of each ledger full of crashes: spend is never lost, never under-counted, and never more than was begun.

A life is a random sequence of calls. Every few calls the process is killed or the power is cut, before, inside or after
one of the calls that the ledger makes to the operating system; `tests.fake_disk` draws what is left. Then the ledger is
opened again (which may crash, too) and must hold exactly the calls that returned, with the one under way or without it.
What `MUTATIONS` do to the code must not survive this.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Protocol

import pytest
import torch

from fedrec.errors import PrivacyError
from fedrec.privacy import chained_file
from fedrec.privacy.chained_file import ChainedFile
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.node_ledger import NodeLedger, Tally
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from tests.fake_disk import Crash, Disk

LIVES, CRASHES = 1000, 6
CENTRAL = PrivacyPlan((PrivacyEvent(40.0, 1.0, 900), PrivacyEvent(30.0, 1.0, 900)), 1e-5, 1.0, 100)
LOCAL = replace(CENTRAL, trust_model="local", neighboring_relation="", delta=1e-6)
BY_EXAMPLE = PrivacyPlan(
    (PrivacyEvent(50.0, 1.0, 2700),), 1e-5, 1.0, 1000, trust_model="local", unit="interaction", steps_per_round=3
)
Done = tuple[Any, ...]
Call = Callable[[Any], object]


class Subject(Protocol):
    """A ledger, and an account of its own of what the ledger must hold: a tuple of what was done."""

    def open(self, path: Path) -> Any:
        """Open the ledger."""

    def step(self, done: Done, rng: Random) -> tuple[Call, Done]:
        """Return a call, and what is done once it has returned."""

    def says(self, ledger: Any) -> object:
        """Return everything that the ledger says."""

    def owes(self, done: Done) -> object:
        """Return everything that it must say."""


class ServerSubject:
    """What is done: (round, attempt, "open", "closed" or the digest of a release), in the order of the intentions."""

    rounds = (1, 2, 901, 902)

    def __init__(self) -> None:
        self.position: Mapping[str, Any] | None = None

    def open(self, path: Path) -> Ledger:
        return Ledger(path, CENTRAL, "run", at_least=self.position)

    def step(self, done: Done, rng: Random) -> tuple[Call, Done]:
        begun = [entry for entry in done if entry[2] == "open"]
        if rng.random() < 0.1 and (kept := [entry for entry in done if entry[2] != "closed"]):
            number, attempt, _ = rng.choice(kept)
            return lambda ledger: ledger.intend(number, attempt), done
        if rng.random() < 0.5 and begun:
            entry = rng.choice(begun)
            place, (number, attempt, _) = done.index(entry), entry
            end, name = rng.choice([("closed", ()), ("published", (f"{rng.getrandbits(256):064x}",))])
            after = (*done[:place], (number, attempt, *(name or (end,))), *done[place + 1 :])
            return lambda ledger: getattr(ledger, end)(number, attempt, *name), after
        number = rng.choice(self.rounds)
        attempt = sum(entry[0] == number for entry in done) + 1
        return lambda ledger: ledger.intend(number, attempt), (*done, (number, attempt, "open"))

    def says(self, ledger: Ledger) -> object:
        self.position = ledger.position
        open_attempts = [ledger.open_attempts(number) for number in self.rounds]
        return ledger.spent(), open_attempts, [ledger.num_attempts(number) for number in self.rounds]

    def owes(self, done: Done) -> object:
        spent = Counter(CENTRAL.events[number > 900] for number, _, state in done if state != "closed")
        return (
            tuple(replace(event, count=spent[event]) for event in CENTRAL.events if spent[event]),
            [tuple(a for n, a, state in sorted(done) if n == number and state == "open") for number in self.rounds],
            [sum(entry[0] == number for entry in done) for number in self.rounds],
        )


class NodeSubject:
    """What is done: (run, round) of each answer that spends, in order."""

    plans = {"a": CENTRAL, "b": CENTRAL, "c": LOCAL, "d": BY_EXAMPLE}  # noqa: RUF012
    rounds = (1, 2, 899)
    shared = ({"items": torch.zeros(3)}, {"items": torch.ones(3)})

    def open(self, path: Path) -> NodeLedger:
        return NodeLedger(path)

    def step(self, done: Done, rng: Random) -> tuple[Call, Done]:
        run, number, repeatable = rng.choice("abcd"), rng.choice(self.rounds), rng.random() < 0.3
        after = done if repeatable and (run, number) in done else (*done, (run, number))
        shared = self.shared[number % 2]
        return lambda ledger: ledger.take_part(run, self.plans[run], number, shared, 900, repeatable), after

    def says(self, ledger: NodeLedger) -> object:
        return ledger.spent(), [ledger.num_answers(run, number) for run in self.plans for number in self.rounds]

    def owes(self, done: Done) -> object:
        spent = Counter(self.plans[run] for run, _ in done)
        return (
            {Tally.of(p): ((*p.events[0].spend[:2], n * p.steps_per_round),) for p, n in spent.items()},
            [done.count((run, number)) for run in self.plans for number in self.rounds],
        )


def live(subject: Subject, path: Path, seed: int, crashes: int = CRASHES, ignored: frozenset[str] = frozenset()) -> int:
    """Live one life; return the number of its crashes. Without any, no call fails either."""
    rng = Random(seed)
    path.unlink(missing_ok=True)
    disk, before, after = Disk(path, rng, ignored), (), ()  # type: Disk, Done, Done
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chained_file, "os", disk)
        patch.setattr(chained_file, "sync_folder", disk.sync_folder)
        for left in range(crashes, -1, -1):
            disk.crash_after(rng.randrange(60) if left else None)
            try:
                while True:
                    ledger = subject.open(path)
                    said = subject.says(ledger)
                    assert said in (subject.owes(before), subject.owes(after))
                    before = after = after if said == subject.owes(after) else before
                    for _ in range(rng.randrange(8)):
                        call, after = subject.step(before, rng)
                        disk.fail_next(rng.choice(("pwrite", "fsync")) if crashes and rng.random() < 0.1 else "")
                        try:
                            call(ledger)
                        except PrivacyError as error:
                            assert "nothing was recorded" in str(error)
                            after = before
                        before = after
                        assert subject.says(ledger) == subject.owes(before)
                    disk.fail_next("")
                    ledger.close()
                    if not left:
                        return crashes
            except Crash:
                disk.restart(power_cut=rng.random() < 0.5)
    raise AssertionError("the last crash is not followed by anything")


SUBJECTS: dict[str, Callable[[], Subject]] = {"server": ServerSubject, "node": NodeSubject}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_random_crashes_never_lose_or_under_count_spend(subject: str, tmp_path: Path) -> None:
    crashes = sum(live(SUBJECTS[subject](), tmp_path / "ledger.jsonl", seed) for seed in range(LIVES))
    assert crashes == LIVES * CRASHES


def one_step(self: ChainedFile, record: bytes) -> None:
    self._put(record + b"\n", self._size)
    chained_file.os.fsync(self._file)


def no_sync(self: ChainedFile, record: bytes) -> None:
    self._put(record + b"\0", self._size)
    self._put(b"\n", self._size + len(record))


def act_first(self: ChainedFile, payload: Mapping[str, Any]) -> None:
    """Return before the record is written: it is, with the next one."""
    waiting = vars(self).setdefault("waiting", [])
    if not self.payloads:
        return append(self, payload)
    apply, self._apply = self._apply, lambda late: None
    for late in waiting:
        append(self, late)
    waiting[:], self._apply = [payload], apply
    apply(payload)


def call_pieces_whole(self: ChainedFile, tail: bytes) -> None:
    if tail and not self._take(tail.rstrip(b"\0")):
        self._put(b"\n", self._size + len(tail))


def take_as_next(self: ChainedFile, record: bytes) -> bool:
    """Believe that whatever is at the end of the file is a record, and that it is the one before once more."""
    if not take(self, record) and record:
        self._keep(record, self._checksum(record), self.payloads[-1] if self.payloads else {})
    return bool(record)


def drop_every_tail(self: ChainedFile, tail: bytes) -> None:
    chained_file.os.ftruncate(self._file, self._size)


def finish_unsynced(self: ChainedFile, tail: bytes) -> None:
    whole = self._take(tail.partition(b"\0")[0])
    chained_file.os.ftruncate(self._file, self._size)
    if whole:
        self._put(b"\n", self._size - 1)


def trust_newlines(self: ChainedFile, record: bytes, place: int) -> None:
    self._put(record + b"\0", place)


def undo_nothing(self: ChainedFile) -> None:
    self._usable = True


append, take = ChainedFile.append, ChainedFile._take
MUTATIONS: dict[str, dict[str, Callable[..., object]]] = {
    "newline written with its record": {"_write": one_step},
    "no fsync of records": {"_write": no_sync},
    "acts before it records": {"append": act_first},
    "torn tail called a line": {"_repair": call_pieces_whole},
    "torn tail read as a record": {"_take": take_as_next},
    "tail always dropped": {"_repair": drop_every_tail},
    "what a killed process left is not synced": {"_repair": finish_unsynced},
    "newline that a failed fsync lost is not written again": {"_put_text": trust_newlines},
    "failed write is left there": {"_undo": undo_nothing},
}


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("mutation", [*MUTATIONS, "fsync", "sync_folder"])
def test_crashes_find_what_is_wrong_with(
    mutation: str, subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, wrong in MUTATIONS.get(mutation, {}).items():
        monkeypatch.setattr(ChainedFile, name, wrong)
    ignored = frozenset() if mutation in MUTATIONS else frozenset({mutation})
    live(SUBJECTS[subject](), tmp_path / "ledger.jsonl", 0, 0, ignored)  # without crashes, all is well
    with pytest.raises((AssertionError, PrivacyError)):
        for seed in range(LIVES):
            live(SUBJECTS[subject](), tmp_path / "ledger.jsonl", seed, ignored=ignored)


LONG = replace(CENTRAL, events=(PrivacyEvent(100.0, 1.0, 10**6),))
SHARED = {"items": torch.zeros(3)}
IMPORTS = "import resource, sys; from tests.privacy.test_ledger_crashes import *; path = Path(sys.argv[1])\n"
SPEND = {
    "server": """
with Ledger(path, LONG, "run") as ledger:
    for number in range(num_spent("server", ledger) + 1, 10**6):
        ledger.intend(number)
        print(number, flush=True)
""",
    "node": """
for number in range(reopened("node", path) + 1, 10**6):
    with NodeLedger(path) as ledger:  # as a node does: open, record, close
        ledger.take_part("run", LONG, number, SHARED, 10**6, False)
    print(number, flush=True)
""",
}


def num_spent(subject: str, ledger: Any) -> int:
    spent = [event.spend for event in ledger.spent()] if subject == "server" else sum(ledger.spent().values(), ())
    return sum(count for _, _, count in spent)


def reopened(subject: str, path: Path) -> int:
    with Ledger(path, LONG, "run") if subject == "server" else NodeLedger(path) as ledger:
        return num_spent(subject, ledger)


@pytest.mark.parametrize("subject", SPEND)
def test_killed_process_loses_no_call_that_returned(subject: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for lines in (2, 11):
        command = [sys.executable, "-c", IMPORTS + SPEND[subject], str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        process.wait()
        numbers = [*map(int, first), *map(int, process.stdout.read().split())]
        assert reopened(subject, path) in (numbers[-1], numbers[-1] + 1)


@pytest.mark.parametrize("subject", SPEND)
def test_disk_that_is_really_full_loses_nothing(subject: str, tmp_path: Path) -> None:
    """The limit on a file's size is the one full disk that every machine has: writes stop in the middle of a record."""
    path = tmp_path / "ledger.jsonl"
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
    command = [sys.executable, "-c", IMPORTS + limit + SPEND[subject], str(path)]
    outcome = subprocess.run(command, check=False, capture_output=True, text=True)
    assert outcome.returncode == 1 and "File too large" in outcome.stderr and "nothing was recorded" in outcome.stderr
    assert reopened(subject, path) == int(outcome.stdout.split()[-1]) > 3
