"""What context is worth: the same model with its context fields, without them, and asked in somebody else's context.

    python -m simulations.context frappe [--splits 3] [--set model.dim=32] [--json FILE]

Settings are those of simulations/DATA.toml, whose `model.context_fields` are taken away for "without". "shuffled" is
the model with context, asked at test time in the contexts of the other users' targets. A split is a seed: of the
held-out interactions where the data has no times, and of the model. Test NDCG@10, full ranking, mean over users. The
intervals are 95% percentiles of a paired bootstrap that draws users and splits anew, all variants alike.

Where a data set has each user, item and context once, as surveys do and Frappe does, an item that a user met in exactly
the context asked for is never the target, and a model that reads context can learn so: that says more of how the data
was gathered than of people. A second table ranks without these items, for every variant: what is left is context.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrec import assemble
from fedrec import config as configs
from fedrec.config import Config
from fedrec.data.batches import UserBatch
from fedrec.data.interactions import Interactions
from fedrec.data.queries import Queries, queries_of, turns
from fedrec.errors import ConfigError
from fedrec.evaluation.nodes import score_users
from fedrec.evaluation.ranking import Targets, rank
from fedrec.randomness import Key
from fedrec.recommend import final_state
from fedrec.run_folder import RunFolder
from fedrec.simulation import run_simulation

VARIANTS = ("with", "without", "shuffled")
_HERE = Path(__file__).parent
_REPLICATES = 10_000
_AT_ONCE = 500

Train = Callable[[Config], Mapping[str, Tensor]]
"""From a config to the shared parameters that its run ends with, as nodes decode them."""


@dataclass(frozen=True, eq=False)
class Study:
    """What was measured on one data set.

    Args:
        data: its name.
        fields: the context fields that "with" reads.
        k: length of the lists.
        fresh: whether items that the user met in exactly the target's context were left out of every variant's lists.
        ndcg: (3, num_splits, num_users) NDCG@k of the users that every split evaluates, in the order of `VARIANTS`.
    """

    data: str
    fields: tuple[str, ...]
    k: int
    fresh: bool
    ndcg: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Return the figures of the table."""
        means = self.ndcg.mean(axis=2)
        rows = {
            name: {"mean": float(row.mean()), "sd_of_splits": float(row.std(ddof=1)) if len(row) > 1 else None}
            for name, row in zip(VARIANTS, means, strict=True)
        }
        differences = {}
        for better, worse in (("with", "without"), ("with", "shuffled"), ("shuffled", "without")):
            one, two = (self.ndcg[VARIANTS.index(name)] for name in (better, worse))
            low, high = interval(one - two, Key.from_seed(0))
            differences[f"{better} - {worse}"] = {
                "mean": float((one - two).mean()),
                "low": low,
                "high": high,
                "relative": float(one.mean() / two.mean() - 1) if two.any() else None,
            }
        return {
            "data": self.data,
            "context_fields": list(self.fields),
            "metric": f"ndcg@{self.k}",
            "without_items_met_in_this_context": self.fresh,
            "num_splits": self.ndcg.shape[1],
            "num_users": self.ndcg.shape[2],
            "variants": rows,
            "differences": differences,
        }

    def table(self) -> str:
        """Format what was measured."""
        found = self.to_json()
        lines = [
            f"{self.data}: test NDCG@{self.k}, {found['num_splits']} splits, {found['num_users']} users, "
            f"context {', '.join(self.fields)}" + (", without items met in exactly this context" * self.fresh),
            f"  {'':22}{'NDCG':>8}{'sd of splits':>14}",
        ]
        for name, row in found["variants"].items():
            spread = "-" if row["sd_of_splits"] is None else f"{row['sd_of_splits']:.4f}"
            lines.append(f"  {name + ' context':22}{row['mean']:>8.4f}{spread:>14}")
        lines.append(f"  {'':22}{'gain':>8}{'95% interval':>22}{'relative':>10}")
        for name, row in found["differences"].items():
            span, relative = f"{row['low']:+.4f} to {row['high']:+.4f}", row["relative"]
            shown = "-" if relative is None else f"{relative:+.1%}"
            lines.append(f"  {name:22}{row['mean']:>+8.4f}{span:>22}{shown:>10}")
        return "\n".join(lines)


def interval(differences: np.ndarray, key: Key, replicates: int = _REPLICATES) -> tuple[float, float]:
    """Return the 95% interval of a mean by the percentile bootstrap, drawing users and splits independently.

    Args:
        differences: (num_splits, num_users) of two variants, split by split and user by user.
        key: randomness of the draws.
        replicates: of the bootstrap.

    Source:
        Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3; both factors of a crossed design
        drawn anew: Owen, The Pigeonhole Bootstrap, 2007, section 3.
    """
    generator = key.fold("bootstrap").numpy_generator()
    num_splits, num_users = differences.shape
    means = []
    for start in range(0, replicates, _AT_ONCE):
        size = min(_AT_ONCE, replicates - start)
        users = generator.multinomial(num_users, np.full(num_users, 1 / num_users), size=size) / num_users
        splits = generator.multinomial(num_splits, np.full(num_splits, 1 / num_splits), size=size) / num_splits
        means.append(((users @ differences.T) * splits).sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def user_ndcg(
    config: Config, shared: Mapping[str, Tensor], shuffle: Key | None = None, fresh_in: Sequence[str] = ()
) -> np.ndarray:
    """Rank every user's test targets in their contexts.

    Args:
        config: of the run.
        shared: what it ended with.
        shuffle: ask in contexts dealt out anew among the users, all fields of one together; None for the true ones.
        fresh_in: context fields; other items than the target that the user met where all of them were as they are for
            the target are not ranked. None of them: everything is.

    Returns:
        (num_users,) float64 NDCG@k, the mean over a user's targets; NaN for users without any.
    """
    model, device, whole = assemble.model_of(config), assemble.device_of(config), assemble.whole_split(config.to_json())
    prepared = model.prepare({name: tensor.to(device) for name, tensor in shared.items()})
    candidates = None if whole.candidates is None else torch.from_numpy(whole.candidates).to(device)
    k, held_out = config.evaluation.k, whole.test
    total = np.zeros(held_out.num_users)
    for turn, aims in enumerate(turns(held_out)):
        queries = queries_of(aims if shuffle is None else _dealt(aims, shuffle.fold(turn)))
        rows = np.flatnonzero(aims.lengths)
        for batch, scores in score_users(model, prepared, whole.history, rows, device, queries=queries):
            targets = Targets.of(aims, batch.rows)
            seen = torch.zeros_like(batch.mask) if config.evaluation.repeat else batch.mask
            if fresh_in:
                seen = seen | (
                    _met_in_the_same(batch, queries_of(aims), fresh_in) & (batch.items != targets.items[:, :1])
                )
            ranks = rank(scores, batch.items, seen, targets, k, candidates).ranks[:, 0].numpy()
            total[batch.rows] += np.where(ranks <= k, 1 / np.log2(ranks + 1.0), 0.0)
    return np.where(held_out.lengths > 0, total / held_out.lengths.clip(min=1), np.nan)


def _met_in_the_same(batch: UserBatch, queries: Queries, fields: Sequence[str]) -> Tensor:
    """Return (B, L) bool: what each user met in the context that is asked for."""
    same = batch.mask
    for name in fields:
        past, asked = batch.context[name], torch.from_numpy(queries[name][batch.rows])[:, None].to(batch.mask.device)
        same = same & ((past == asked) | (past.isnan() & asked.isnan()))
    return same


def _dealt(targets: Interactions, key: Key) -> Interactions:
    """Return the targets with each other's contexts."""
    order = np.argsort(key.fold("contexts").uniforms(len(targets)))
    return Interactions(
        targets.users,
        targets.items,
        targets.user_ids,
        targets.item_ids,
        context={name: column[order] for name, column in targets.context.items()},
        context_ids=targets.context_ids,
    )


def train(config: Config) -> Mapping[str, Tensor]:
    """Simulate a run and return what it ended with."""
    with tempfile.TemporaryDirectory(prefix="context-") as folder:
        run = RunFolder(Path(folder) / "run")
        run.create(config)
        run_simulation(run.path, config)
        return assemble.as_broadcast(config, final_state(run.path, config).shared, config.federated.num_rounds)


def measure(config: Config, num_splits: int, trained: Train = train) -> tuple[Study, Study]:
    """Train both models on every split and rank: everything, and all but what was met in exactly the same context.

    Args:
        config: with `model.context_fields`; its seed is that of the first split.
        num_splits: how many.
        trained: how to train.

    Raises:
        ConfigError: where the model reads no context.
    """
    fields = tuple(config.model.get("context_fields") or ())
    if not fields:
        raise ConfigError(f"model {config.model['name']!r} reads no context; name some in model.context_fields")
    ndcg = []
    for split in range(num_splits):
        seeded = config.model_copy(
            update={"runtime": config.runtime.model_copy(update={"seed": config.runtime.seed + split})}
        )
        blind = seeded.model_copy(update={"model": {**seeded.model, "context_fields": []}})
        shared, unread, deal = trained(seeded), trained(blind), assemble.run_key(seeded).fold("shuffled")
        ndcg.append(
            [
                [
                    user_ndcg(seeded, shared, None, fresh_in),
                    user_ndcg(blind, unread, None, fresh_in),
                    user_ndcg(seeded, shared, deal, fresh_in),
                ]
                for fresh_in in ((), fields)
            ]
        )
        told = ", ".join(f"{name} {np.nanmean(row):.4f}" for name, row in zip(VARIANTS, ndcg[-1][0], strict=True))
        sys.stderr.write(f"split {split + 1} of {num_splits}: {told}\n")
    table = np.array(ndcg).transpose(1, 2, 0, 3)
    table = table[..., ~np.isnan(table).any((0, 1, 2))]
    name, k = str(config.data.path or config.data.name), config.evaluation.k
    return Study(name, fields, k, False, table[0]), Study(name, fields, k, True, table[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a data set that has a simulations/DATA.toml with context, or a config file")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    path = Path(options.data) if options.data.endswith(".toml") else _HERE / f"{options.data}.toml"
    study, fresh = measure(configs.load(path, ["evaluation.every=0", *options.settings]), options.splits)
    found = {**study.to_json(), "fresh": fresh.to_json()}
    sys.stdout.write(study.table() + "\n" + fresh.table() + "\n" + json.dumps(found) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
