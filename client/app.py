"""The ClientApp: `client.app:app`; one node with its own users, the same in every runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedrec import assemble
from fedrec.config import Config
from fedrec.data.batches import user_batches
from fedrec.device.store import DeviceStore, PrivateState
from fedrec.errors import ConfigError, PrivacyError, ProtocolError
from fedrec.evaluation.nodes import evaluate_users
from fedrec.federated.codec import spec_of
from fedrec.federated.cohort import CohortDiagnostics, draw_cohort, sum_contributions
from fedrec.flower.records import record_to_tensors, tensors_to_record
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.mechanism import NoisySum, add_noise_to_users
from fedrec.privacy.node_ledger import NodeLedger
from fedrec.privacy.plan import PrivacyPlan
from fedrec.randomness import Key

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this node's users and answer with what may leave.

    Privacy:
        Unit user: one sum over the drawn users, each clipped to the plan's norm; under central trust the server is
        trusted with it, under local trust every user in it has noise of their own. Unit interaction: how far noisy
        steps moved the shared parameters. Under a plan it leaves as it was added up: a config with another upload codec
        is refused. The diagnostics beside it (cohort size, clipping counts) are not covered by epsilon: simulations
        only.
    """
    node = _Node(message, context)
    config, round_number = node.config, node.round
    plan = assemble.plan_of(config)
    node.check_plan("" if plan is None else plan.digest())
    by_example = plan is not None and plan.unit == "interaction"
    total, diagnostics = _train_by_example(node, plan) if plan is not None and by_example else _train_users(node, plan)
    key = assemble.run_key(config).fold("round", round_number)
    payload = assemble.upload_codec(config).encode(
        total.totals, spec_of(total.totals), key.fold("codec", "upload", node.partition)
    )
    return node.reply(payload, vars(diagnostics))


def _train_users(node: _Node, plan: PrivacyPlan | None) -> tuple[BoundedSum, CohortDiagnostics]:
    """Draw this node's users, fit them, and return the sum of their clipped contributions."""
    config, round_number = node.config, node.round
    key = assemble.run_key(config).fold("round", round_number)
    node.take_part(plan, repeatable=not key.from_system)
    own = config.federated.sampling(round_number)
    sampling = own if plan is None else plan.event_for_round(round_number).sampling_probability
    cohort = draw_cohort(node.data.user_keys, sampling, assemble.draws_key(config).fold("round", round_number))
    kept = node.state_after(round_number - 1)
    state = PrivateState(len(node.data.user_keys), kept)
    model = assemble.model_of(config)
    micro_batch = config.runtime.micro_batch or model.batch_cells
    total, diagnostics = sum_contributions(
        model,
        node.shared,
        user_batches(node.data.split.train, cohort, micro_batch, keys=node.data.user_keys, state=kept),
        float("inf") if plan is None else plan.clipping_norm,
        key,
        assemble.device_of(config),
        keep=state.put,
    )
    if plan is not None and plan.trust_model == "local":
        total = add_noise_to_users(total, plan, round_number, node.data.user_keys[cohort], node.noise_key)
    node.store.save_round(node.run_id, round_number, state.tensors)
    return total, diagnostics


def _train_by_example(node: _Node, plan: PrivacyPlan) -> tuple[NoisySum, CohortDiagnostics]:
    """Do the noisy steps of a round, or send again what was answered before."""
    from fedrec.federated.example_training import Answer, ExampleNode, answer_round
    from fedrec.models.example_mf import ExampleMatrixFactorization

    config, model = node.config, assemble.model_of(node.config)
    if not isinstance(model, ExampleMatrixFactorization):
        raise ConfigError(f"model {config.model['name']!r} has no form that learns by example; use 'mf'")
    last = Answer.from_tensors(node.store.load_state(), node.run_id)
    last_round = 0 if last is None else last.round
    key, noise_key = assemble.draws_key(config), node.noise_key
    # The same answer, bit for bit: the one that was kept, or what a simulation makes of the state that it was made of.
    node.take_part(plan, last_round == node.round or (not noise_key.from_system and last_round == node.round - 1))
    total, answer = answer_round(
        model,
        node.shared,
        ExampleNode(node.data.split.train, node.data.user_keys, node.partition, config.federated.num_nodes),
        plan,
        node.round,
        key,
        noise_key,
        last,
        config.runtime.micro_batch,
        assemble.device_of(config),
    )
    node.store.save_state(answer.to_tensors(node.run_id), durable=True)
    return total, answer.diagnostics


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Rank this node's held-out items and answer with counts.

    Privacy:
        Metrics are computed on private data and not covered by epsilon: simulations only.
    """
    node = _Node(message, context)
    config = node.config
    phase = str(node.order["phase"])
    if phase not in ("validation", "test"):
        raise ProtocolError(f"phase {phase!r} is unknown; allowed are 'validation' and 'test'")
    if phase != "validation" and context.run_config.get("trial"):
        raise ProtocolError(f"this is a trial of a sweep: it looks at validation data only; {phase!r} is refused")
    sampled = config.evaluation.sampled_99 and phase == "test"
    counts = evaluate_users(
        assemble.model_of(config),
        node.shared,
        node.data.split,
        "test" if phase == "test" else "validation",
        assemble.cutoffs(config),
        config.evaluation.repeat,
        (assemble.run_key(config), node.data.user_keys) if sampled else None,
        assemble.device_of(config),
        node.state_after(node.round),
        assemble.slices_of(config.to_json()) if phase == "test" else None,
    )
    return node.reply({name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in counts.items()}, {})


class _Node:
    """One message at one node: what was ordered, checked, and what the node has to answer it with."""

    def __init__(self, message: Message, context: Context) -> None:
        content = message.content
        order, shared = content.get("order"), content.get("shared")
        if not isinstance(order, ConfigRecord) or not isinstance(shared, ArrayRecord):
            raise ProtocolError(f"the message holds {sorted(content)}, it must hold config 'order' and arrays 'shared'")
        self._message = message
        self.order = order
        self.config: Config = assemble.config_of_run(context.run_config)
        self.round, self.run_id = int(str(order["round"])), str(order["run-id"])
        own = assemble.run_id(self.config)
        if self.run_id != own:
            raise PrivacyError(f"the server announced run {self.run_id!r}, this node's config is run {own!r}: refused")
        self.plan_digest, self._absences = str(self.order["plan"]), str(self.order.get("absences", ""))
        self.partition = int(context.node_config["partition-id"])
        self.data = assemble.node_data(
            self.config.to_json(), self.partition, int(context.node_config["num-partitions"])
        )
        folder = Path(str(context.run_config["out"])).absolute() / "nodes" / str(self.partition)
        self.store = DeviceStore(Path(str(context.node_config.get("state-path", folder))))
        self.max_epsilon = _max_epsilon(context.node_config.get("max-epsilon"))
        done = self.round - 1 if message.metadata.message_type.startswith("train") else self.round
        codec, spec = assemble.download_codec(self.config), assemble.shared_spec(self.config.to_json(), done)
        self.shared = codec.decode(record_to_tensors(shared, codec.wire(spec)), spec)

    @property
    def noise_key(self) -> Key:
        """Return what noise of this node is drawn from; whoever was absent before has changed the parameters."""
        key = assemble.noise_key(self.config)
        return key.fold("absences", self._absences) if self._absences else key

    def state_after(self, round_number: int) -> dict[str, torch.Tensor]:
        """Return what this node kept of its users after a round, so that a round asked for again is the same round."""
        return self.store.load_round(self.run_id, round_number, len(self.data.user_keys))

    def take_part(self, plan: PrivacyPlan | None, repeatable: bool) -> None:
        """Record that this node answers the round, or refuse; see `NodeLedger.take_part`."""
        absences = torch.tensor(list(self._absences.encode()), dtype=torch.uint8)  # noise follows from them, too
        asked = {**self.shared, "absences": absences}
        with NodeLedger(self.store.folder / "ledger.jsonl", self.max_epsilon) as ledger:
            ledger.take_part(self.run_id, plan, self.round, asked, self.config.federated.num_rounds, repeatable)

    def check_plan(self, own_digest: str) -> None:
        """Refuse to take part under another plan than the one that follows from this node's own config."""
        if self.plan_digest != own_digest:
            raise PrivacyError(
                f"the server announced plan {self.plan_digest!r}, this node's own is {own_digest!r}: refused"
            )

    def reply(self, tensors: dict[str, torch.Tensor], numbers: dict[str, int]) -> Message:
        """Answer the message."""
        report = MetricRecord({"round": self.round, "partition": self.partition, **numbers})
        return Message(RecordDict({"values": tensors_to_record(tensors), "report": report}), reply_to=self._message)


def _max_epsilon(found: object) -> float | None:
    """Read how much the owner of a node lets it spend; None for one plan's worth."""
    try:
        return None if found is None else float(str(found))
    except ValueError as error:
        raise ConfigError(
            f"node config max-epsilon={found!r} is not a number; give a positive epsilon, or leave it out"
        ) from error
