"""The coordinator: the server's side of a round, from the ledger check to the checkpoint, in every runtime."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fedrec.data.catalogue import Catalogue
from fedrec.errors import ProtocolError
from fedrec.federated.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fedrec.models.protocol import FederatedModel
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.mechanism import NoisySum, Release, publish_exact, publish_noisy, release
from fedrec.privacy.plan import PrivacyPlan
from fedrec.randomness import Key


class Coordinator:
    """Opens and closes rounds, in an order that a crash at any instruction cannot turn into unrecorded spend.

        begin       ledger: intended spend      (refused if it would overspend)
        aggregate   release -> update           (in memory)
        commit      checkpoint -> ledger: published

    Nothing of a round leaves the server before its checkpoint is on disk and the ledger says so. A round that crashed
    earlier is run again: in a simulation it is the same release, in a deployment the unpublished attempt is closed and
    a new one is intended.

    Privacy:
        Unit, adjacency and trust model are the plan's. Each finished round spends one round of the plan; all else is
        post-processing. Under central trust the noise is added here; under local trust it came with the sums.
    """

    def __init__(
        self,
        model: FederatedModel,
        catalogue: Catalogue,
        folder: Path,
        run_id: str,
        key: Key,
        plan: PrivacyPlan | None,
        noise_key: Key | None = None,
        num_nodes: int = 1,
    ) -> None:
        """Start a run in `folder`, or go on with the one that is there.

        Args:
            model: the model.
            catalogue: public items.
            folder: of checkpoint and ledger.
            run_id: which run this is.
            key: what the initial state is drawn from.
            plan: None without privacy.
            noise_key: what noise is drawn from; no two runs whose sums differ may share it. `key` where None.
            num_nodes: public number of nodes that an example-level plan averages over.

        Raises:
            ProtocolError: where the checkpoint is damaged or of another run.
            PrivacyError: where the ledger is damaged, shorter than the checkpoint knows it, or of another plan.
        """
        self.model, self.plan, self.run_id, self._num_nodes = model, plan, run_id, num_nodes
        self._noise_key = key if noise_key is None else noise_key
        self._path = folder / "server.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self.checkpoint = read_checkpoint(self._path)
            if self.checkpoint.run_id != run_id:
                raise ProtocolError(
                    f"{self._path} belongs to run {self.checkpoint.run_id}, this is {run_id}; use another folder"
                )
        else:
            self.checkpoint = Checkpoint(model.init(catalogue, key.fold("init")), 0, run_id)
        self._next = self.checkpoint
        self.ledger = None
        if plan is not None:
            position = self.checkpoint.ledger_position
            self.ledger = Ledger(folder / "ledger.jsonl", plan, run_id, at_least=position)
            try:
                self._record_published()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let go of the ledger, so that another coordinator can go on."""
        if self.ledger is not None:
            self.ledger.close()

    @property
    def shared(self) -> Mapping[str, torch.Tensor]:
        """The shared parameters to broadcast."""
        return self.checkpoint.state.shared

    @property
    def clipping_norm(self) -> float:
        """The plan's bound on a user's contribution; `math.inf` without privacy."""
        return math.inf if self.plan is None else self.plan.clipping_norm

    def begin(self, round_number: int) -> None:
        """Record the intended spend of a round before anything of it happens.

        Raises:
            PrivacyError: where the round would overspend.
        """
        if self.ledger is not None:
            self.ledger.intend(round_number, self._attempt(round_number))

    def aggregate(
        self, round_number: int, sums: Sequence[BoundedSum], num_users: int, absent: Sequence[str] = ()
    ) -> None:
        """Add up the nodes' sums, release and move the model; nothing lasts or leaves before `commit`.

        Args:
            round_number: the round that `begin` opened.
            sums: one sum a node, of disjoint users, as `receive` made them; left as they are.
            num_users: users behind the sums; only used without privacy, where it is the divisor.
            absent: names of the nodes whose sum is missing, each with the number of nodes in it.

        Raises:
            ProtocolError: where the new model is not finite.

        Privacy:
            Noise follows from who was absent in this round and in all before, too: else the releases of a run in which
            a node dropped out, and of the same run undisturbed, would differ by clear sums, then and ever after.
        """
        total = self._add_up(sums)
        absences = self._absences(round_number, absent)
        released, digest = self._release(total, round_number, num_users, absences)
        state = self.model.update(self.checkpoint.state, released)
        broken = [name for name, tensor in state.shared.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise ProtocolError(
                f"round {round_number} made {', '.join(broken)} non-finite; "
                "raise model.regularization or lower the noise"
            )
        position = None if self.ledger is None else self.ledger.position
        self._next = Checkpoint(state, round_number, self.run_id, digest, position, absences)

    def _absences(self, round_number: int, absent: Sequence[str]) -> str:
        """Return the digest of all absences up to this round; "" where nobody ever was absent."""
        if not absent:
            return self.checkpoint.absences
        history = [self.checkpoint.absences, round_number, *sorted(absent)]
        return hashlib.blake2b(json.dumps(history).encode(), digest_size=16).hexdigest()

    def receive(self, totals: dict[str, torch.Tensor]) -> BoundedSum:
        """Say what the tensors of a node are: a bounded sum, or, under local trust, one that has its noise already.

        Privacy:
            Takes the node's word for it, as the plan's trust model does.
        """
        local = self.plan is not None and self.plan.trust_model == "local"
        return (NoisySum if local else BoundedSum)(totals, self.clipping_norm)

    def _add_up(self, sums: Sequence[BoundedSum]) -> BoundedSum:
        if not sums:
            return self.receive(self.model.totals(self.shared))
        self.receive(self.model.totals(self.shared)).check_same_kind(sums[0])
        total = self.receive({name: tensor.clone() for name, tensor in sums[0].totals.items()})
        for one in sums[1:]:
            total.merge(one)
        return total

    def commit(self) -> None:
        """Make the aggregated round last: checkpoint first, then the ledger's record that it was published."""
        write_checkpoint(self._path, self._next)
        self.checkpoint = self._next
        self._record_published()

    def _release(self, total: BoundedSum, round_number: int, num_users: int, absences: str) -> tuple[Release, str]:
        if self.plan is None:
            return publish_exact(total, float(max(num_users, 1))), ""
        if isinstance(total, NoisySum):
            published = publish_noisy(total, self.plan, round_number, self._num_nodes)
            return published, published.digest()
        key = self._noise_key.fold("absences", absences) if absences else self._noise_key
        released = release(total, self.plan, round_number, key)
        return released, released.digest()

    def _attempt(self, round_number: int) -> int:
        """Number the attempt: a simulation repeats the same one, a deployment closes what never published.

        What nodes sent with their noise was out when it left them: under local trust nothing is closed.
        """
        if self.plan is None or self.ledger is None or not self._noise_key.from_system:
            return 1
        if self.plan.trust_model == "central":
            for attempt in self.ledger.open_attempts(round_number):
                self.ledger.closed(round_number, attempt)
        return self.ledger.num_attempts(round_number) + 1

    def _record_published(self) -> None:
        if self.ledger is not None and self.checkpoint.round:
            round_number = self.checkpoint.round
            attempt = max(self.ledger.num_attempts(round_number), 1)
            self.ledger.published(round_number, attempt, self.checkpoint.release_digest)
