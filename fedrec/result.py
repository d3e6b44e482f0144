"""`result.json`: what a finished run says of its data, metrics, privacy, time, bytes and environment."""

from __future__ import annotations

import platform
import resource
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedrec.config import Config
from fedrec.data.catalogue import Dataset
from fedrec.evaluation.counts import Cutoffs, summarise, summarise_sampled, summarise_slices
from fedrec.evaluation.slices import Slices, summarise_groups
from fedrec.privacy.plan import PrivacyPlan


def metrics_of(
    validation: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    cut: Cutoffs,
    num_candidates: int,
    slices: Slices | None = None,
) -> dict[str, Any]:
    """Return the `metrics` of a result from the summed counts of both phases.

    Args:
        validation: counts of the validation targets.
        test: counts of the test targets.
        cut: list lengths.
        num_candidates: items that may be recommended at test time.
        slices: the groups that the test counts are by, None where they are by none.
    """
    metrics: dict[str, Any] = {
        "validation": summarise(validation, cut, test["items"].shape[1]),
        "test": summarise(test, cut, num_candidates),
        "slices": summarise_slices(test, cut),
    }
    if slices is not None:
        metrics["slices"] |= summarise_groups(slices, test["slices"], cut)
    if test["sampled"][0]:
        metrics["test_sampled_99"] = summarise_sampled(test, cut)
    return metrics


def build_result(
    config: Config,
    data: Dataset,
    metrics: Mapping[str, Any],
    plan: PrivacyPlan | None,
    rounds: Sequence[Mapping[str, Any]],
    total_seconds: float,
    dense_bytes: Mapping[str, int],
) -> dict[str, Any]:
    """Put a result together; `rounds` are the lines of rounds.jsonl, `dense_bytes` both ways as dense float32."""
    seconds = [line["seconds"] for line in rounds]
    users = sum(line["diagnostics"].get("cohort_size", 0) for line in rounds)
    interactions = data.interactions
    return {
        "data": {
            "name": data.name,
            "num_users": interactions.num_users,
            "num_items": interactions.num_items,
            "num_interactions": len(interactions),
            "fingerprint": interactions.fingerprint(),
        },
        "model": dict(config.model),
        "protocol": config.evaluation.protocol,
        "metrics": dict(metrics),
        "privacy": None if plan is None else plan.to_result(),
        "timing": {
            "total_seconds": total_seconds,
            "training_seconds": sum(seconds),
            "seconds_per_round": statistics.median(seconds) if seconds else 0.0,
            "users_per_second": users / sum(seconds) if sum(seconds) else 0.0,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        },
        "communication": _communication(config, rounds, dense_bytes),
        "environment": _environment(config),
    }


def _communication(
    config: Config, rounds: Sequence[Mapping[str, Any]], dense_bytes: Mapping[str, int]
) -> dict[str, Any]:
    """Return the greatest bytes of a node in a round, how they compare with dense float32, and the sum of all."""
    lines = [line["communication"] for line in rounds]
    most = {way: max((line[f"{way}_bytes"] for line in lines), default=0) for way in ("download", "upload")}
    table: dict[str, Any] = {"rounds": len(rounds)}
    for way, codec in (("download", config.federated.download_codec), ("upload", config.federated.upload_codec)):
        table[f"{way}_bytes"] = most[way]
        table[f"{way}_total_bytes"] = sum(node[f"{way}_bytes"] for line in lines for node in line["nodes"].values())
        table[f"{way}_codec"] = list(codec)
        table[f"{way}_dense_float32_bytes"] = dense_bytes[way]
        table[f"{way}_ratio"] = dense_bytes[way] / most[way] if most[way] else 0.0
    return table


def _environment(config: Config) -> dict[str, Any]:
    packages = ("fedrec", "flwr", "torch", "opacus", "numpy", "pandas")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": _commit(),
        "seed": config.runtime.seed,
        "device": config.runtime.device,
        "num_threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """Return the commit of the checkout that this package is part of; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
