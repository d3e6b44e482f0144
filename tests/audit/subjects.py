"""Small worlds to audit: the synthetic data set with a few hundred users, any model, with or without a plan."""

from __future__ import annotations

from typing import Any

from fedrec.audit.subject import Subject, subject_of
from fedrec.config import Config, build

NUM_USERS, NUM_ITEMS = 240, 160
MODELS: dict[str, dict[str, Any]] = {
    "als": {"name": "als", "dim": 8, "regularization": 0.001},
    "mf": {"name": "mf", "dim": 8},
    "popularity": {"name": "popularity"},
    "two_tower": {
        "name": "two_tower",
        "dim": 4,
        "history": {"name": "decayed", "window": 10, "dropout": 0.0},
        "loss": {"name": "sampled_softmax", "num_negatives": 8},
    },
}


def config(
    model: str = "als", epsilon: float | None = None, sampling: float = 1.0, num_rounds: int = 2, seed: int = 0
) -> Config:
    """Return a config; without privacy where epsilon is None."""
    tables: dict[str, Any] = {
        "data": {
            "name": "synthetic",
            "synthetic": {"num_users": NUM_USERS, "num_items": NUM_ITEMS, "mean_interactions": 20.0},
        },
        "model": MODELS[model],
        "federated": {"num_rounds": num_rounds, "num_nodes": 2},
        "runtime": {"seed": seed},
    }
    if epsilon is not None:
        tables["privacy"] = {
            "target_epsilon": epsilon,
            "population_size": NUM_USERS,
            "sampling_probability": sampling,
            "clipping_norm": 0.01 if model == "mf" else 1.0,
        }
    return build(tables, "test")


def subject(*arguments: Any, **options: Any) -> Subject:
    """Return what `config` of the same arguments names."""
    return subject_of(config(*arguments, **options))
