"""The same towers trained in one place, beside a federated run of them.

    python -m simulations.centralised RUN [RUN ...] [--out FILE.json]

For each finished run of `two_tower` or `hybrid` (of the same config and other seeds, for a spread), the model is
trained on everybody's data at once, as it is commonly done: all users in random order, epoch after epoch, in
mini-batches of the expected cohort, by torch's Adam with the same learning rates, for as many steps as the federated
run had rounds. ALS of `hybrid` is trained by its plain loop. Loss, windows, dropout, split and evaluation are the same
code.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedrec import assemble
from fedrec.config import Config
from fedrec.data.batches import make_batch, user_batches
from fedrec.errors import ConfigError, FedrecError
from fedrec.evaluation.counts import summarise
from fedrec.evaluation.nodes import evaluate_users
from fedrec.federated.cohort import sum_contributions
from fedrec.models.hybrid import ROUND, TOWERS, Hybrid
from fedrec.models.protocol import FederatedModel, ServerState
from fedrec.models.two_tower import TwoTower
from fedrec.privacy.mechanism import publish_exact
from fedrec.run_folder import RunFolder

_LOG = logging.getLogger(__name__)
SHOWN = ("ndcg@10", "hr@10")
SIDES = ("federated", "centralised")
_REPORT_EVERY = 500


def train_in_one_place(config: Config) -> tuple[FederatedModel, dict[str, Tensor]]:
    """Train the model of a config on the data of all users.

    Returns:
        The model and its shared parameters.

    Raises:
        ConfigError: for a model that is neither `two_tower` nor `hybrid`, or one under a privacy plan.
    """
    model, federated = assemble.model_of(config), config.federated
    if config.privacy is not None or not isinstance(model, (TwoTower, Hybrid)) or getattr(model, "bounded", False):
        raise ConfigError(f"model {config.model['name']!r} is not compared here; allowed are 'two_tower' and 'hybrid'")
    state = model.init(assemble.dataset(config.to_json()).catalogue, assemble.run_key(config).fold("init"))
    if isinstance(model, TwoTower):
        return model, train_towers(config, model, state.shared, federated.num_rounds)
    first = model.config.als_rounds
    for number in range(1, first + 1):
        state = _sweep(config, model, state, number)
    before = {name.removeprefix(TOWERS): value for name, value in state.shared.items() if name.startswith(TOWERS)}
    num_steps = min(model.config.tower_rounds or federated.num_rounds, federated.num_rounds - first)
    after = train_towers(config, model.towers, before, num_steps)
    done = {ROUND: torch.full_like(state.shared[ROUND], first + num_steps)}
    state = ServerState({**state.shared, **{TOWERS + name: value for name, value in after.items()}, **done})
    if model.slit is not None and federated.num_rounds > first + num_steps:
        state = _sweep(config, model, state, first + num_steps + 1)
    return model, dict(state.shared)


def _sweep(config: Config, model: Hybrid, state: ServerState, number: int) -> ServerState:
    """Do a round of a part in closed form with everybody."""
    node = assemble.node_data(config.to_json(), 0, 1)
    batches = user_batches(node.split.train, max_elements=model.als.batch_cells, keys=node.user_keys)
    total, cohort = sum_contributions(model, state.shared, batches, float("inf"), assemble.run_key(config).fold(number))
    _LOG.info("round %d of closed forms", number)
    return model.update(state, publish_exact(total, float(cohort.cohort_size)))


def train_towers(config: Config, model: TwoTower, start: Mapping[str, Tensor], num_steps: int) -> dict[str, Tensor]:
    """Train by torch's Adam on mini-batches; returns the parameters after `num_steps` steps."""
    settings, key = model.config.server_optimizer, assemble.run_key(config).fold("centralised")
    if settings.name != "adam":
        raise ConfigError(f"server_optimizer.name={settings.name!r} is not compared here; allowed is 'adam'")
    node = assemble.node_data(config.to_json(), 0, 1)
    parameters = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    betas = (settings.momentum, settings.second_momentum)
    optimizer = torch.optim.Adam(
        list(parameters.values()), lr=settings.learning_rate, betas=betas, eps=settings.stability
    )
    size = max(1, round(config.federated.sampling_probability * len(node.user_keys)))
    for step, rows in zip(range(1, num_steps + 1), _mini_batches(len(node.user_keys), size, config), strict=False):
        loss = model.loss(parameters, make_batch(node.split.train, rows, node.user_keys), key.fold(step)) / len(rows)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % _REPORT_EVERY == 0:
            _LOG.info("step %d/%d  loss %.4f", step, num_steps, float(loss.detach()))
    return {name: tensor.detach() for name, tensor in parameters.items()}


def _mini_batches(num_users: int, size: int, config: Config) -> Iterator[np.ndarray]:
    """Go through all users in random order, again and again."""
    generator = assemble.run_key(config).fold("order").numpy_generator()
    while True:
        order = generator.permutation(num_users)
        for start in range(0, num_users - size + 1, size):
            yield order[start : start + size]


def compare(folder: RunFolder) -> dict[str, Any]:
    """Train the config of a run in one place and return both models' test metrics, times, rounds and bytes."""
    config, federated = folder.config(), folder.result()
    assemble.device_of(config)
    start = time.perf_counter()
    model, shared = train_in_one_place(config)
    seconds, cut = time.perf_counter() - start, assemble.cutoffs(config)
    counts = evaluate_users(
        model, shared, assemble.whole_split(config.to_json()), "test", cut, config.evaluation.repeat
    )
    found = summarise(counts, cut, counts["items"].shape[1])
    return {
        "run": str(folder.path),
        "seed": config.runtime.seed,
        "federated": {name: federated["metrics"]["test"][name] for name in SHOWN},
        "centralised": {name: found[name] for name in SHOWN},
        "federated_seconds": federated["timing"]["training_seconds"],
        "centralised_seconds": seconds,
        "communication": federated["communication"],
    }


def table_of(results: Sequence[Mapping[str, Any]]) -> Table:
    """Return two rows a run, and two of the means, with the federated model's share of the centralised NDCG@10."""
    table = Table("seed", "trained", "NDCG@10", "HR@10", "share", "GB down", "GB up", "seconds")
    for one in results:
        sent = one["communication"]
        sizes = [f"{sent[f'{way}_total_bytes'] / 1e9:.1f}" for way in ("download", "upload")]
        for side in SIDES:
            share = one[side]["ndcg@10"] / one["centralised"]["ndcg@10"]
            figures = [*(f"{one[side][name]:.4f}" for name in SHOWN), f"{share:.3f}"]
            trained = f"{side}, {sent['rounds']:,} {'rounds' if side == 'federated' else 'steps'}"
            seconds = f"{one[f'{side}_seconds']:,.0f}"
            table.add_row(str(one["seed"]), trained, *figures, *(sizes if side == "federated" else ["", ""]), seconds)
    means = {side: [statistics.fmean(one[side][name] for one in results) for name in SHOWN] for side in SIDES}
    for side in SIDES:
        share = means[side][0] / means["centralised"][0]
        table.add_row("mean", side, *(f"{mean:.4f}" for mean in means[side]), f"{share:.3f}", "", "", "")
    return table


def main() -> None:
    """Train, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        results = [compare(RunFolder(path)) for path in options.runs]
    except FedrecError as error:
        sys.exit(f"error: {error}")
    Console().print(table_of(results))
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
