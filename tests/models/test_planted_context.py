"""Lists of the two towers follow the taste that is planted in each context."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fedrec.data.batches import make_batch
from fedrec.data.synthetic import SyntheticConfig, generate, planted_preference, user_groups
from fedrec.models.registry import build_model
from fedrec.randomness import Key
from tests.training import train

KEY = Key.from_seed(0)
ASKED = [(daytime, device) for daytime in range(1, 4) for device in range(3)]  # at night hardly anybody is there
TOP = 10


def recall_of_planted(fields: list[str], num_rounds: int, history: str = "none", num_groups: int = 1) -> float:
    """Return the mean share of a group's ten most wanted items of a context that its users' lists for it hold.

    Ten items are of the classes that a context wants on its device; popularity is flat enough for them to come first.
    """
    world = SyntheticConfig(
        num_users=1000,
        num_items=120,
        num_classes=24,
        popularity_exponent=0.3,
        mean_interactions=12,
        activity_spread=0.2,
        num_groups=num_groups,
        context_share=1.0,
        noise_share=0.0,
    )
    data = generate(world, KEY)
    table = {
        "name": "two_tower",
        "dim": 32,
        "history": {"name": history, "window": 12, "dropout": 0.2, "num_blocks": 1},
        "context_fields": fields,
        "loss": {"name": "softmax"},
        "server_optimizer": {"learning_rate": 0.02, "warmup_rounds": 10},
    }
    model = build_model(table, None)
    catalogue = replace(data.catalogue, context_fields=data.interactions.context_fields)
    shared = train(model, catalogue, data.interactions, num_rounds).shared
    truth = planted_preference(world, KEY)
    groups = user_groups(world, KEY, data.interactions.user_ids.ids.astype(np.uint64))
    batch = make_batch(data.interactions, np.arange(300))
    found = []
    for daytime, device in ASKED:
        codes = {"daytime": torch.full((300,), daytime), "device": torch.full((300,), device)}
        asked = replace(batch, query=codes)
        lists = model.score(shared, model.fit_users(shared, asked), asked).topk(TOP).indices.numpy()
        wanted = np.argsort(-truth[groups[:300], daytime, device], axis=1)[:, :TOP]
        found.append((lists[:, :, None] == wanted[:, None, :]).any(axis=2).mean())
    return float(np.mean(found))


def test_lists_in_a_context_recall_what_is_planted_there() -> None:
    assert recall_of_planted(["daytime", "device"], 30) >= 0.9


def test_without_context_they_do_not() -> None:
    assert recall_of_planted([], 20) < 0.3


def test_lists_recall_what_a_users_group_wants_in_a_context() -> None:
    """Which group a user is of shows in what was met in which context, and what it wants in the one asked for."""
    assert recall_of_planted(["daytime", "device"], 50, "attention", num_groups=2) >= 0.9


def test_context_without_history_does_not_tell_groups_apart() -> None:
    assert recall_of_planted(["daytime", "device"], 30, "none", num_groups=2) < 0.6
