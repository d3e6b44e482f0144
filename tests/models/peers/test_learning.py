"""Every published peer learns a world whose answer is known, and goes on from what its devices kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrec.data.batches import make_batch
from fedrec.models.registry import build_model
from tests.models.peers.worlds import hit_rate, train_keeping
from tests.worlds import checkerboard

SETTINGS = {
    "fcf": {"learning_rate": 0.1},
    "fedmf": {"learning_rate": 1.0, "item_learning_rate": 0.5, "init_std": 0.3},
    "fedncf": {"learning_rate": 1.0, "item_step": 0.3, "init_std": 0.3},
    "fedrecon": {},
    "pfedrec": {"learning_rate": 1.0, "item_rate": 0.25, "init_std": 0.3},
}
KEEPING = ["fedmf", "fedncf", "pfedrec"]
SPLIT, CATALOGUE = checkerboard(80, 40)


@pytest.mark.parametrize("name", SETTINGS)
def test_held_out_items_of_the_users_colour_come_before_all_others(name: str) -> None:
    model = build_model({"name": name, "dim": 8, **SETTINGS[name]}, None)
    assert hit_rate(model, *train_keeping(model, CATALOGUE, SPLIT, 30), SPLIT) >= 0.97


@pytest.mark.parametrize("form", ["gmf", "mlp"])
def test_each_network_of_fedncf_learns(form: str) -> None:
    settings = {"learning_rate": 0.5, "item_step": 0.3, "init_std": 0.5, "local_batch_size": 16, "form": form}
    model = build_model({"name": "fedncf", "dim": 8, **settings}, None)
    assert hit_rate(model, *train_keeping(model, CATALOGUE, SPLIT, 20), SPLIT) >= 0.97


@pytest.mark.parametrize("name", SETTINGS)
def test_a_node_that_lost_what_it_kept_goes_on(name: str) -> None:
    model = build_model({"name": name, "dim": 8, **SETTINGS[name]}, None)
    server, kept = train_keeping(model, CATALOGUE, SPLIT, 5)
    assert bool(kept) == (name in [*KEEPING, "fcf"]), "models that fit users anew may keep what was fitted"
    batch = make_batch(SPLIT.train, np.arange(3))
    anew = model.score(server.shared, model.fit_users(server.shared, batch), batch)
    assert torch.isfinite(anew).all()
    with_state = make_batch(SPLIT.train, np.arange(3), state=kept)
    found = model.score(server.shared, model.fit_users(server.shared, with_state), with_state)
    assert torch.equal(found, anew) == (name not in KEEPING)


@pytest.mark.parametrize("name", KEEPING)
def test_how_users_are_batched_does_not_change_what_is_learned_and_kept(name: str) -> None:
    model = build_model({"name": name, "dim": 8, **SETTINGS[name]}, None)
    one, kept_one = train_keeping(model, CATALOGUE, SPLIT, 3)
    many, kept_many = train_keeping(model, CATALOGUE, SPLIT, 3, micro_batch=60)
    for found, wanted in ((many.shared, one.shared), (kept_many, kept_one)):
        assert found.keys() == wanted.keys()
        for part in wanted:
            torch.testing.assert_close(found[part], wanted[part], rtol=1e-4, atol=1e-5)
