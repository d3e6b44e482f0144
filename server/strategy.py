"""Rounds as messages: broadcast, wait, check what came back, hand the sums to the coordinator."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedrec import assemble
from fedrec.config import Config
from fedrec.errors import ProtocolError
from fedrec.evaluation.counts import summarise, zero_counts
from fedrec.evaluation.nodes import Phase
from fedrec.federated.codec import Codec, spec_of
from fedrec.federated.codecs.stage import Spec
from fedrec.federated.coordinator import Coordinator
from fedrec.files import replace_file
from fedrec.flower.records import record_to_tensors, tensors_to_record
from fedrec.models.protocol import predicts_ratings
from fedrec.privacy.plan import PrivacyPlan
from fedrec.result import build_result, metrics_of
from fedrec.run_folder import RunFolder
from fedrec.tuning.trials import Order

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.5

REPORTED = ("partition", "cohort_size", "num_clipped", "num_zeroed")


@dataclass(frozen=True, eq=False)
class Reply:
    """A reply that passed all checks: tensors as expected, and the node's numbers."""

    tensors: dict[str, torch.Tensor]
    report: Mapping[str, int]
    num_bytes: int


def run_rounds(grid: Grid, config: Config, out: Path) -> None:
    """Run the rounds that are left of a run, evaluate the final model and write `result.json`.

    Raises:
        FedrecError: where going on would break a promise; whatever is finished by then is on disk.
    """
    start = time.perf_counter()
    with open_session(grid, config, out) as session:
        for _ in session.remaining():
            pass
        data, cut = assemble.dataset(config.to_json()), assemble.cutoffs(config)
        candidates = assemble.whole_split(config.to_json()).candidates
        num_candidates = data.interactions.num_items if candidates is None else int(candidates.sum())
        slices = assemble.slices_of(config.to_json())
        metrics = metrics_of(session.evaluate("validation"), session.evaluate("test"), cut, num_candidates, slices)
        folder, plan = session.folder, session.coordinator.plan
    seconds, dense_bytes = time.perf_counter() - start, assemble.dense_float32_bytes(config.to_json())
    folder.write_result(build_result(config, data, metrics, plan, folder.rounds(), seconds, dense_bytes))


def run_trial(grid: Grid, config: Config, out: Path, order: Order) -> None:
    """Run the rounds of a trial and write `trial.json`: the validation metric that a sweep selects by, and no other.

    Nodes of a trial refuse to rank anything but validation targets, so a sweep cannot look at test data.

    Raises:
        FedrecError: as `run_rounds`; `ConfigError` where validation does not have the metric.
    """
    with open_session(grid, config, out) as session:
        lines: list[Mapping[str, Any]] = [*session.folder.rounds()]
        curve = order.curve(lines)
        if not order.is_hopeless(curve):
            for line in session.remaining():
                lines.append(line)
                curve |= order.curve([line])
                if line["round"] < config.federated.num_rounds and order.is_hopeless(curve):
                    break
        pruned = len(lines) < config.federated.num_rounds
        value = max(curve.values()) if pruned else order.value(session.validate())
    outcome = {"value": value, "pruned": pruned, "rounds": len(lines), "curve": curve}
    replace_file(out / "trial.json", json.dumps(outcome).encode())


@contextmanager
def open_session(grid: Grid, config: Config, out: Path) -> Iterator[Session]:
    """Begin a run in its folder, or go on with the one that is there, once all nodes are online.

    Raises:
        FedrecError: where the folder holds another run or other data, or nodes are missing.
    """
    assemble.device_of(config)
    folder = RunFolder(out)
    folder.create(config)
    data = assemble.dataset(config.to_json())
    folder.check_data(data.interactions.fingerprint())
    coordinator = Coordinator(
        assemble.model_of(config),
        data.catalogue,
        folder.checkpoint,
        assemble.run_id(config),
        assemble.run_key(config),
        assemble.plan_of(config),
        assemble.noise_key(config),
        config.federated.num_nodes,
    )
    try:
        session = Session(grid, config, coordinator, folder)
        session.wait_for_nodes()
        session.finish_log()
        yield session
    finally:
        coordinator.close()


class Session:
    """One run's conversation with its nodes.

    Privacy:
        Only what `Coordinator` releases leaves the server; a reply is checked before it touches a sum, and a bad or
        missing one costs that node its round and nothing else.
    """

    def __init__(self, grid: Grid, config: Config, coordinator: Coordinator, folder: RunFolder) -> None:
        """Keep who talks to whom."""
        self.grid, self.config, self.coordinator, self.folder = grid, config, coordinator, folder
        self._upload, self._download = assemble.upload_codec(config), assemble.download_codec(config)

    def wait_for_nodes(self) -> None:
        """Wait until all nodes of the config are online.

        Raises:
            ProtocolError: where they are not before the round deadline.
        """
        wanted, deadline = self.config.federated.num_nodes, self.config.federated.round_deadline_seconds
        start = time.monotonic()
        while len(list(self.grid.get_node_ids())) < wanted:
            if time.monotonic() - start > deadline:
                found = len(list(self.grid.get_node_ids()))
                raise ProtocolError(
                    f"{found} nodes are online after {deadline} s, federated.num_nodes={wanted}; start the rest"
                )
            time.sleep(_POLL_SECONDS)

    def remaining(self) -> Iterator[Mapping[str, Any]]:
        """Run the rounds that are left, and give the line of each once it is finished."""
        for round_number in range(self.coordinator.checkpoint.round + 1, self.config.federated.num_rounds + 1):
            self.train(round_number)
            yield self.finish_log()

    def train(self, round_number: int) -> None:
        """Run one training round."""
        start = time.perf_counter()
        coordinator = self.coordinator
        coordinator.begin(round_number)
        spec = spec_of(coordinator.model.totals(coordinator.shared))
        max_norm = math.inf if coordinator.plan is None else largest_norm(coordinator.plan, spec)
        replies, sent = self._exchange("train", round_number, {}, spec, self._upload, max_norm)
        sums = [coordinator.receive(reply.tensors) for reply in replies]
        diagnostics = {name: sum(reply.report[name] for reply in replies) for name in REPORTED if name != "partition"}
        num_nodes = self.config.federated.num_nodes
        present = {reply.report["partition"] for reply in replies}
        absent = [f"{partition} of {num_nodes}" for partition in range(num_nodes) if partition not in present]
        coordinator.aggregate(round_number, sums, diagnostics["cohort_size"], absent)
        ledger = coordinator.ledger
        line = {
            "round": round_number,
            "seconds": time.perf_counter() - start,
            "diagnostics": {**diagnostics, "nodes": len(replies)},
            "communication": {
                "download_bytes": sent,
                "upload_bytes": max((reply.num_bytes for reply in replies), default=0),
                "nodes": {
                    str(reply.report["partition"]): {"download_bytes": sent, "upload_bytes": reply.num_bytes}
                    for reply in replies
                },
            },
            "epsilon_spent": None if ledger is None else ledger.epsilon_spent(),
        }
        self.folder.log_round(line)
        coordinator.commit()

    def finish_log(self) -> Mapping[str, Any]:
        """Finish the line of the last committed round, with its validation metrics where the config asks for them.

        Returns:
            The line; {} where there was nothing to finish.
        """
        line = self.folder.open_round()
        if line is None or line["round"] != self.coordinator.checkpoint.round:
            return {}
        every = self.config.evaluation.every
        validation = self.validate() if every and line["round"] % every == 0 else None
        line["metrics"] = {} if validation is None else {"validation": validation}
        self.folder.finish_round(line)
        found = (validation or {}).items()
        shown = "".join(f"  {name} {value:.4f}" for name, value in found if "@" in name or name == "rmse")
        _LOG.info("round %d/%d  %.2f s%s", line["round"], self.config.federated.num_rounds, line["seconds"], shown)
        return line

    def validate(self) -> dict[str, float]:
        """Return the validation metrics of the model as it is."""
        counts = self.evaluate("validation")
        return summarise(counts, assemble.cutoffs(self.config), counts["items"].shape[1])

    def evaluate(self, phase: Phase) -> dict[str, np.ndarray]:
        """Let all nodes rank their users' held-out items and add up the counts."""
        interactions = assemble.dataset(self.config.to_json()).interactions
        num_groups = assemble.slices_of(self.config.to_json()).num_groups if phase == "test" else 0
        rated = predicts_ratings(assemble.model_of(self.config)) and interactions.ratings is not None
        counts = zero_counts(interactions.num_items, num_groups, rated)
        spec: Spec = {name: (torch.float64, values.shape) for name, values in counts.items()}
        replies, _ = self._exchange("evaluate", self.coordinator.checkpoint.round, {"phase": phase}, spec, Codec())
        for reply in replies:
            for name, values in reply.tensors.items():
                counts[name] += values.numpy()
        return counts

    def _broadcast(self) -> ArrayRecord:
        """Encode the shared parameters; the same bytes whenever the same state is sent."""
        checkpoint = self.coordinator.checkpoint
        shared, key = checkpoint.state.shared, assemble.download_key(self.config, checkpoint.round)
        return tensors_to_record(self._download.encode(shared, spec_of(shared), key))

    def _exchange(
        self,
        kind: str,
        round_number: int,
        extra: Mapping[str, str],
        spec: Spec,
        codec: Codec,
        max_norm: float = math.inf,
    ) -> tuple[list[Reply], int]:
        shared = self._broadcast()
        plan = self.coordinator.plan
        order = ConfigRecord(
            {
                "round": round_number,
                "run-id": self.coordinator.run_id,
                "plan": "" if plan is None else plan.digest(),
                "absences": self.coordinator.checkpoint.absences,
                **extra,
            }
        )
        nodes = sorted(self.grid.get_node_ids())
        messages = [
            Message(RecordDict({"shared": shared, "order": order}), message_type=kind, dst_node_id=node)
            for node in nodes
        ]
        answers = self.grid.send_and_receive(messages, timeout=self.config.federated.round_deadline_seconds)
        good: dict[int, Reply] = {}
        reasons = []
        for answer in sorted(answers, key=lambda message: message.metadata.src_node_id):
            node = answer.metadata.src_node_id
            try:
                if node in good or node not in nodes:
                    raise ProtocolError("a second reply, or one nobody asked for")
                reply = _check(answer, round_number, spec, codec, max_norm)
                if reply.report["partition"] in {known.report["partition"] for known in good.values()}:
                    raise ProtocolError(f"partition {reply.report['partition']} has answered already")
                good[node] = reply
            except ProtocolError as error:
                reasons.append(f"node {node}: {error}")
                _LOG.warning("%s round %d: left out %s", kind, round_number, reasons[-1])
        if len(good) < self.config.federated.min_nodes:
            found = "; ".join(reasons) or f"no reply within {self.config.federated.round_deadline_seconds} s"
            raise ProtocolError(
                f"{len(good)} of {len(nodes)} nodes answered the {kind} message of round {round_number}, "
                f"federated.min_nodes={self.config.federated.min_nodes}: {found}"
            )
        if len(good) < len(nodes):
            _LOG.warning("%s round %d: %d of %d nodes took part", kind, round_number, len(good), len(nodes))
        # Node ids are random in some runtimes; adding up in the order of the partitions makes sums reproducible.
        return sorted(good.values(), key=lambda reply: reply.report["partition"]), _num_bytes(shared)


def largest_norm(plan: PrivacyPlan, spec: Spec) -> float:
    """Return a norm that no honest node's sum passes; where it has its noise already, with a probability of 1e-20."""
    if plan.unit == "interaction":
        return math.inf
    largest = plan.population_size * plan.clipping_norm
    if plan.trust_model == "central":
        return largest
    num_values = sum(int(np.prod(shape)) for _, shape in spec.values())
    std = max(event.noise_multiplier for event in plan.events) * plan.sensitivity * math.sqrt(plan.population_size)
    return largest + std * (math.sqrt(num_values) + 10)


def _check(answer: Message, round_number: int, spec: Spec, codec: Codec, max_norm: float) -> Reply:
    """Check a reply in full before anything of it is used."""
    if answer.has_error():
        raise ProtocolError(answer.error.reason)
    content = answer.content
    arrays, report = content.get("values"), content.get("report")
    if not isinstance(arrays, ArrayRecord) or not isinstance(report, MetricRecord):
        raise ProtocolError(f"the reply holds {sorted(content)}, it must hold arrays 'values' and metrics 'report'")
    if report.get("round") != round_number:
        raise ProtocolError(f"the reply is for round {report.get('round')!r}, this is round {round_number}")
    numbers = {name: _count(name, report.get(name, 0)) for name in REPORTED}
    tensors = codec.decode(record_to_tensors(arrays, codec.wire(spec), copy=False), spec)
    broken = [name for name, tensor in tensors.items() if not _all_finite(tensor)]
    if broken:
        raise ProtocolError(f"{', '.join(broken)} hold NaN or infinite values; sums must be finite")
    if math.isinf(max_norm):
        return Reply(tensors, numbers, _num_bytes(arrays))
    norm = math.sqrt(sum(float(tensor.to(torch.float64).square().sum()) for tensor in tensors.values()))
    if norm > max_norm:
        raise ProtocolError(
            f"the sum has norm {norm:.3g}, all users together can reach {max_norm:.3g}; it is not theirs"
        )
    return Reply(tensors, numbers, _num_bytes(arrays))


def _all_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite, in one pass: NaN and infinity come through a minimum and a maximum."""
    return not tensor.numel() or all(math.isfinite(float(end)) for end in torch.aminmax(tensor))


def _count(name: str, value: object) -> int:
    """Check a number that a node reports about itself."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise ProtocolError(f"report {name}={str(value)[:40]} is not a whole number from 0; the peer runs other code")
    return value


def _num_bytes(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())
