"""The ledger: an append-only record of what has been spent, written before anything happens that spends it.

Unit and adjacency: the plan's. What counts as spent: every intended attempt that was not closed, published or not, each
with the `steps_per_round` of its round. Released: nothing; the ledger holds public numbers and digests of releases.

Records are in a `ChainedFile`: each is on disk before the call returns, so what a crash cut short never began. No times
and no random numbers: a run that was interrupted and resumed has the same bytes as one that was not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from fedrec.errors import PrivacyError
from fedrec.privacy import accounting
from fedrec.privacy.chained_file import ChainedFile
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan

ADVICE = "training stops: restore the ledger from a backup, or start a new run and count this one as fully spent"
_VERSION = 1
Mechanism = tuple[float, float]  # (noise_multiplier, sampling_probability)


def counts(events: Iterable[PrivacyEvent]) -> Counter[Mechanism]:
    """Count the releases of each mechanism, whatever their purpose.

    Privacy:
        What composes to the same epsilon in any order.
    """
    total: Counter[Mechanism] = Counter()
    for event in events:
        noise_multiplier, sampling_probability, count = event.spend
        total[noise_multiplier, sampling_probability] += count
    return total


def epsilon_of(spend: Mapping[Mechanism, int], delta: float) -> float:
    """Return the epsilon of all these releases together; 0 for none.

    Privacy:
        An upper bound, see `accounting.epsilon`.
    """
    return accounting.epsilon([(*mechanism, count) for mechanism, count in spend.items()], delta)


class Ledger:
    """What one server has spent of one plan. One process at a time; a context manager, or closed with `close`.

    Args:
        path: the file; made if it is not there.
        plan: the plan whose events are spent.
        run_id: which run this is.
        at_least: the `position` that a checkpoint remembers, or None.

    Raises:
        PrivacyError: where the file is damaged, in use elsewhere, of another plan or run, or behind `at_least`.

    Privacy:
        Monotone: what was intended stays counted unless it is closed, and never comes back after a crash as unspent.
    """

    def __init__(
        self, path: Path, plan: PrivacyPlan, run_id: str = "", *, at_least: Mapping[str, Any] | None = None
    ) -> None:
        self.plan = plan
        self._attempts: dict[tuple[int, int], str | None] = {}  # (round, attempt) -> digest if published, None if open
        self._closed: set[tuple[int, int]] = set()
        self._spend: Counter[PrivacyEvent] = Counter()  # releases spent of each event of the plan
        header: dict[str, Any] = {"kind": "header", "plan": plan.to_dict(), "plan_digest": plan.digest()}
        header.update(run=run_id, version=_VERSION)
        self._chain = ChainedFile(Path(path), header, ADVICE, must_exist=at_least is not None)
        try:
            self._check_header(header)
            self._chain.replay(self._apply)
            self._check_position(at_least)
        except BaseException:
            self._chain.close()
            raise

    def intend(self, round: int, attempt: int = 1) -> None:
        """Record the spend of an attempt at a round, before anything of it happens; again for the same one: no effect.

        Raises:
            PrivacyError: where it would overspend, the attempt is closed, the plan has no such round, or the disk
                failed (then nothing was recorded and nothing may happen).

        Privacy:
            Spends one round of `plan.event_for_round(round)`. In a simulation a retry of (round, attempt) is the same
            release and counts once; in a deployment every retry is a new attempt.
        """
        event = self.plan.event_for_round(round)
        if (round, attempt) in self._attempts:
            return
        if (round, attempt) in self._closed or not isinstance(attempt, int) or attempt < 1:
            raise self._refusal(
                f"attempt {attempt!r} of round {round} is closed or not a number from 1; use the next one"
            )
        self._check_overspend(event, round, attempt)
        self._chain.append({"kind": "intend", "round": round, "attempt": attempt})

    def published(self, round: int, attempt: int, release_digest: str) -> None:
        """Record that an attempt's release may be seen; call it before anything of the release leaves the server.

        Raises:
            PrivacyError: where the attempt was not intended or is closed, or published another release.

        Privacy:
            Spends nothing more; from here on the attempt can't be closed.
        """
        if (round, attempt) not in self._attempts:
            raise self._refusal(f"attempt {attempt} of round {round} is not open; intend it before it starts")
        known = self._attempts[round, attempt]
        if known is None:
            self._chain.append({"kind": "published", "round": round, "attempt": attempt, "release": release_digest})
        elif known != release_digest:
            raise self._refusal(
                f"attempt {attempt} of round {round} published {known}, now there is {release_digest}; "
                "a second release is a new attempt, which is spent separately"
            )

    def closed(self, round: int, attempt: int) -> None:
        """Give back an attempt that never published (central trust only: nobody saw it); again: no effect.

        Raises:
            PrivacyError: where the attempt published, or was never intended.

        Privacy:
            Takes the attempt off what is spent. Sound only if no release of the attempt left the server.
        """
        if (round, attempt) in self._closed:
            return
        if self._attempts.get((round, attempt), "") is not None:
            raise self._refusal(
                f"attempt {attempt} of round {round} published or never began; only open ones can be closed"
            )
        self._chain.append({"kind": "closed", "round": round, "attempt": attempt})

    def open_attempts(self, round: int) -> tuple[int, ...]:
        """Return the attempts at a round that are intended, and neither published nor closed."""
        return tuple(sorted(a for (r, a), digest in self._attempts.items() if r == round and digest is None))

    def num_attempts(self, round: int) -> int:
        """Return how many attempts at a round were ever intended, closed ones too."""
        return sum(r == round for r, _ in [*self._attempts, *self._closed])

    def spent(self) -> tuple[PrivacyEvent, ...]:
        """Return what has been spent, in the order of the plan."""
        return tuple(
            replace(event, count=self._spend[event]) for event in dict.fromkeys(self.plan.events) if self._spend[event]
        )

    def epsilon_spent(self) -> float:
        """Return the epsilon of what has been spent, at the plan's delta; 0 before the first round."""
        return epsilon_of(counts(self.spent()), self.plan.delta)

    @property
    def position(self) -> dict[str, Any]:
        """The number of records and the last checksum, for the checkpoint to keep."""
        return {"records": len(self._chain.checksums), "checksum": self._chain.checksums[-1]}

    def close(self) -> None:
        """Let go of the file and its lock."""
        self._chain.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, key: tuple[int, int]) -> None:
        self._spend[self.plan.event_for_round(key[0])] += self.plan.steps_per_round
        self._attempts[key] = None

    def _give_back(self, key: tuple[int, int]) -> None:
        self._spend[self.plan.event_for_round(key[0])] -= self.plan.steps_per_round
        del self._attempts[key]
        self._closed.add(key)

    def _refusal(self, message: str) -> PrivacyError:
        return PrivacyError(f"{self._chain.path}: {message}")

    def _check_overspend(self, event: PrivacyEvent, round: int, attempt: int) -> None:
        """Raise unless the spend with one more round of `event` is part of the plan, or has at most its epsilon."""
        spend = counts(self.spent()) + Counter({event.spend[:2]: self.plan.steps_per_round})
        if spend <= counts(self.plan.events):
            return
        epsilon = epsilon_of(spend, self.plan.delta)
        if epsilon > self.plan.epsilon or math.isinf(epsilon):
            raise self._refusal(
                f"attempt {attempt} of round {round} would raise the spend to epsilon {epsilon:.6g}; the plan "
                f"allows {self.plan.epsilon:.6g}; stop here, or plan more rounds before the first one"
            )

    def _check_header(self, header: Mapping[str, Any]) -> None:
        found = self._chain.payloads[0]
        for name, whose in (("plan_digest", "plan"), ("run", "run")):
            if found.get(name) != header[name]:
                raise self._refusal(
                    f"line 1: this ledger belongs to {whose} {found.get(name)}, not to {header[name]}; "
                    "go on with the config it was started with, or use another folder"
                )

    def _apply(self, record: Mapping[str, Any]) -> None:
        """Take in a record, written now or read again."""
        kind, key = record["kind"], (int(record["round"]), int(record["attempt"]))
        if kind == "intend" and key not in self._attempts and key not in self._closed:
            self._open(key)
        elif kind == "published" and self._attempts[key] is None:
            self._attempts[key] = str(record["release"])
        elif kind == "closed" and self._attempts[key] is None:
            self._give_back(key)
        else:
            raise ValueError(f"{kind} does not follow from the lines before")

    def _check_position(self, at_least: Mapping[str, Any] | None) -> None:
        """Raise where the ledger is behind, or beside, what a checkpoint remembers."""
        if at_least is None:
            return
        records, checksums = int(at_least["records"]), self._chain.checksums
        if not 1 <= records <= len(checksums) or checksums[records - 1] != at_least["checksum"]:
            raise self._refusal(
                f"the ledger has {len(checksums)} records, the checkpoint remembers {records} with another end; "
                f"records were lost or replaced: {ADVICE}"
            )
