"""The node's ledger: what a node has answered in all its runs, written before it does what an answer takes.

Unit, adjacency and trust model: those of each plan. Plans that differ in them make different claims, so each kind has a
tally of its own, and nothing is claimed for two tallies together: releases that protect single interactions, for one,
have no part in what is claimed for a user. Released: nothing.

What an answer spends is its round's `steps_per_round` releases of `plan.event_for_round(round)`, from when it is
intended, sent or not. Of a round that is asked for again, with the same parameters (with others: refused):

    the same answer, bit for bit    nothing: in a simulation, or where a node sends again what it kept
    any other answer                all of it, whatever the trust model

Under central and distributed trust a release spends, not an answer, but a node does not see which answers led to one: a
server that forgot its own ledger, or lies, may release each. So a node that keeps no answer pays for every retry, and
such a plan is used up before its last round.

A tally may reach `max_epsilon` at the smallest delta of its plans: what is (epsilon, delta)-private there is so at all
their deltas. By default this is the epsilon of the first plan in it, and a later, larger plan is refused. So without a
`max_epsilon` a node spends at most one plan's worth of each claim (tally), that of the first plan, whatever servers
start anew; how large it is, the server that came first decided. Spend that is part of the first plan, release by
release, is within without any arithmetic, unless a later plan has a smaller delta. A run without a plan is not refused:
nothing is claimed for it, and nothing here bounds what it tells. Plans are taken as chosen without looking at releases;
for Gaussian releases of all users the bound holds even if they are (Smith & Thakurta, Fully Adaptive Composition for
Gaussian Differential Privacy, 2022).

Opening reads all records again. An answer waits for one `fsync`; one that is not part
of the first plan composes all spend anew.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor

from fedrec.errors import PrivacyError
from fedrec.privacy.accounting import Event
from fedrec.privacy.chained_file import ChainedFile
from fedrec.privacy.ledger import Mechanism, counts, epsilon_of
from fedrec.privacy.plan import PrivacyPlan

ADVICE = "this node takes no part: restore its ledger from a backup, without it nobody knows what was spent"
_HEADER = {"kind": "node ledger", "version": 1}


class Tally(NamedTuple):
    """Whose spend is added up: plans that make the same claim.

    Args:
        unit: as in the plan.
        neighboring_relation: as in the plan.
        trust_model: as in the plan.
    """

    unit: str
    neighboring_relation: str
    trust_model: str

    @classmethod
    def of(cls, plan: PrivacyPlan) -> Tally:
        """Return the tally that a plan spends from."""
        return cls(plan.unit, plan.neighboring_relation, plan.trust_model)


@dataclass
class _Run:
    """What a node knows of a run: its plan, and round -> (digest of the parameters, answers)."""

    plan: str
    rounds: dict[int, tuple[str, int]] = field(default_factory=dict)


class NodeLedger:
    """What one node has spent, of all plans. One process at a time; a context manager, or closed with `close`.

    A node that never met a plan has no ledger file: of runs without one it keeps an empty file each, not synced.

    Args:
        path: the file; made with the first round under a plan.
        max_epsilon: what each tally may reach; None for the epsilon of the first plan in it.

    Raises:
        PrivacyError: where the file is damaged, in use elsewhere or of another version, or `max_epsilon` out of range.

    Privacy:
        Monotone: nothing that was spent is ever forgotten or given back. Holds public numbers and digests only.
    """

    def __init__(self, path: Path, max_epsilon: float | None = None) -> None:
        if max_epsilon is not None and not max_epsilon > 0:
            raise PrivacyError(
                f"max_epsilon={max_epsilon} is not positive; leave it out to spend at most the first plan"
            )
        self._path, self._max_epsilon = Path(path), max_epsilon
        self._plans: dict[str, PrivacyPlan] = {}
        self._runs: dict[str, _Run] = {}
        self._spend: dict[Tally, Counter[Mechanism]] = {}
        self._chain = self._open() if self._path.exists() else None

    def take_part(
        self,
        run_id: str,
        plan: PrivacyPlan | None,
        round: int,
        shared: Mapping[str, Tensor],
        max_rounds: int,
        repeatable: bool,
    ) -> int:
        """Record that this node answers a round, before it does anything for it, or refuse.

        Args:
            run_id: the run; its first plan, or that it has none, is pinned.
            plan: this node's own plan for the run; None without privacy.
            round: from 1.
            shared: the shared parameters as broadcast.
            max_rounds: how many rounds the run has.
            repeatable: whether the answer is the same, bit for bit, whenever this round is asked for.

        Returns:
            The number of this answer to this round, from 1; 1 without a plan, where answers are not counted.

        Raises:
            PrivacyError: where the run has another plan or no such round, brings other parameters for a round that was
                answered, or its plan is larger, or it would spend more, than this node allows; or the disk failed. Then
                nothing was recorded and nothing may happen.

        Privacy:
            Spends the round once, and again for each answer that is not `repeatable`; see the top of the file.
        """
        if not 1 <= round <= max_rounds:
            raise self._refusal(f"run {run_id} asks for round {round}, its plan allows {max_rounds} rounds")
        if plan is None:
            self._take_part_without_plan(run_id)
            return 1
        event = plan.event_for_round(round)
        chain = self._chain = self._chain or self._open()
        run = self._pinned(run_id, plan.digest())
        asked = _digest(shared)
        known, answers = run.rounds.get(round, (asked, 0))
        if known != asked:
            raise self._refusal(
                f"run {run_id} asks for round {round} again with other parameters; a second answer would tell more "
                "than the plan covers"
            )
        if answers and repeatable:
            return answers
        self._check_total(plan, event.spend[:2], f"round {round} of run {run_id}")
        record = {"kind": "answer", "run": run_id, "round": round, "attempt": answers + 1}
        record |= {"plan": run.plan, "shared": asked}
        if run.plan not in self._plans:
            record["pinned"] = plan.to_dict()
        chain.append(record)
        return answers + 1

    def num_answers(self, run_id: str, round: int) -> int:
        """Return how many answers to a round are recorded."""
        return self._runs[run_id].rounds.get(round, ("", 0))[1] if run_id in self._runs else 0

    def spent(self) -> dict[Tally, tuple[Event, ...]]:
        """Return the releases that were spent, a tally each: (noise_multiplier, sampling_probability, count)."""
        return {
            tally: tuple((*mechanism, count) for mechanism, count in sorted(spend.items()))
            for tally, spend in self._spend.items()
        }

    def epsilon_spent(self, tally: Tally) -> float:
        """Return the epsilon of a tally at the smallest delta of its plans; 0 where nothing was spent."""
        plans = self._plans_of(tally)
        return epsilon_of(self._spend[tally], min(plan.delta for plan in plans)) if plans else 0.0

    def close(self) -> None:
        """Let go of the file and its lock."""
        if self._chain is not None:
            self._chain.close()

    def __enter__(self) -> NodeLedger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> ChainedFile:
        chain = ChainedFile(self._path, _HEADER, ADVICE)
        chain.replay(self._apply)
        return chain

    def _refusal(self, message: str) -> PrivacyError:
        return PrivacyError(f"{message}; this node refuses ({self._path})")

    def _mark(self, run_id: str) -> Path:
        """Return the file that says, by being there, that a run has no plan."""
        name = hashlib.blake2b(run_id.encode(), digest_size=16).hexdigest()
        return self._path.with_suffix(".without_plan") / name

    def _take_part_without_plan(self, run_id: str) -> None:
        """Remember that a run has no plan; nothing is spent, so no disk is waited for."""
        if run_id in self._runs:
            raise self._refusal(f"run {run_id} has no plan now, this node pinned {self._runs[run_id].plan}")
        mark = self._mark(run_id)
        try:
            if not mark.exists():
                mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                mark.touch(0o600)
        except OSError as error:
            raise PrivacyError(f"{mark} can't be written ({error}); make room, or make it writable") from error

    def _pinned(self, run_id: str, digest: str) -> _Run:
        """Return what is known of a run, which must be of this plan."""
        run = self._runs.get(run_id, _Run("none" if self._mark(run_id).exists() else digest))
        if run.plan != digest:
            raise self._refusal(
                f"run {run_id} announced plan {digest}, this node pinned {run.plan}; it takes part in one plan a run"
            )
        return run

    def _plans_of(self, tally: Tally) -> list[PrivacyPlan]:
        return [plan for plan in self._plans.values() if Tally.of(plan) == tally]

    def _check_total(self, plan: PrivacyPlan, mechanism: Mechanism, what: str) -> None:
        """Raise where a round more would take the plan's tally above what this node allows."""
        tally = Tally.of(plan)
        plans = [*self._plans_of(tally), plan]
        first, delta = plans[0], min(one.delta for one in plans)
        spend = self._spend.get(tally, Counter()) + Counter({mechanism: plan.steps_per_round})
        part_of = [one for one in plans if one.delta == delta and spend <= counts(one.events)]
        if self._max_epsilon is None and plan == first and first in part_of:
            return
        limit = first.epsilon if self._max_epsilon is None else self._max_epsilon
        whose = "that of the first plan here" if self._max_epsilon is None else "this node's max_epsilon"
        allowed = f"allowed is {limit:.6g}, {whose}: whoever owns the data may set a higher max_epsilon"
        if self._max_epsilon is None and plan.epsilon > limit:
            raise self._refusal(f"{what} is of a plan of epsilon {plan.epsilon:.6g} ({', '.join(tally)}); {allowed}")
        if any(one.epsilon <= limit for one in part_of):
            return
        epsilon = epsilon_of(spend, delta)
        if epsilon > limit or math.isinf(epsilon):
            raise self._refusal(
                f"{what} would raise what all runs spent here ({', '.join(tally)}) to epsilon {epsilon:.6g} at delta "
                f"{delta:g}; {allowed}"
            )

    def _apply(self, record: Mapping[str, Any]) -> None:
        """Take in a record, written now or read again."""
        digest, round = str(record["plan"]), int(record["round"])
        if "pinned" in record:
            self._plans[digest] = PrivacyPlan.from_dict(record["pinned"])
        plan = self._plans[digest]
        event = plan.event_for_round(round)
        run = self._runs.setdefault(str(record["run"]), _Run(digest))
        known, answers = run.rounds.get(round, (record["shared"], 0))
        found = (record["kind"], digest, record["shared"], record["attempt"])
        if found != ("answer", run.plan, known, answers + 1):
            raise ValueError("it does not follow from the lines before")
        run.rounds[round] = (known, answers + 1)
        self._spend.setdefault(Tally.of(plan), Counter())[event.spend[:2]] += plan.steps_per_round


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 64 hex digits over names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=32, person=b"fedrec-shared")
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{len(name)}:{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
