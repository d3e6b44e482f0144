"""The peers of the speed comparison do the same work: equal item tables from equal examples."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrec.data.batches import user_batches
from fedrec.data.interactions import Interactions
from fedrec.errors import ConfigError
from fedrec.models.local_sgd import draw_examples
from fedrec.randomness import Key, user_keys
from simulations import speed_peers as peers
from simulations.speed_peers.engine import EngineSgd
from simulations.speed_peers.row_loop import RowLoop
from simulations.speed_peers.work import Work, make_work
from tests import worlds

SGD = [name for name, peer in peers.PEERS.items() if not peer.closed_form]
ON_GIVEN_EXAMPLES = [name for name in SGD if not peers.PEERS[name].is_ours and name != "flower"]


def interactions(num_users: int = 12, num_items: int = 90, most: int = 40) -> Interactions:
    generator = np.random.default_rng(5)
    pairs = []
    for user in range(num_users):
        met = generator.choice(num_items, generator.integers(1, most), replace=False)
        pairs += [(user, int(item)) for item in met]
    return worlds.make(pairs, num_users, num_items)


def by_definition(work: Work) -> np.ndarray:
    """Return the item table after a round, in float64 and example by example, as the docstring of `Work` has it."""
    total = np.zeros(work.item_vectors.shape)
    for user in range(work.num_users):
        table, vector = work.item_vectors.astype(np.float64), work.user_vectors[user].astype(np.float64)
        stop = int(work.indptr[user + 1])
        for start in range(int(work.indptr[user]), stop, work.batch_size):
            rows = work.items[start : min(start + work.batch_size, stop)]
            errors = 1 / (1 + np.exp(-table[rows] @ vector)) - work.labels[start : start + len(rows)]
            change = errors @ table[rows]
            np.add.at(table, rows, -work.learning_rate * errors[:, None] * vector)
            vector -= work.learning_rate * change
        delta = table - work.item_vectors
        total += delta * min(1.0, work.clipping_norm / np.linalg.norm(delta))
    return work.item_vectors + total / work.num_users


@pytest.mark.parametrize("name", ON_GIVEN_EXAMPLES)
def test_every_peer_gives_the_table_that_follows_from_the_definition(name: str) -> None:
    if importlib.util.find_spec(peers.PEERS[name].library) is None:
        pytest.skip(f"{peers.PEERS[name].library} is not installed")
    batch_size = 256 if name == "opacus" else 16  # Opacus makes one step a user
    work = replace(make_work(interactions(), dim=8), batch_size=batch_size)
    if peers.PEERS[name].private:
        work = work.with_privacy(clipping_norm=0.1, noise_multiplier=0.0)
    module, _, class_name = peers.PEERS[name].place.partition(":")
    peer = getattr(importlib.import_module(f"simulations.speed_peers.{module}"), class_name)(work)
    peer.round()
    found = peer.item_vectors() - work.item_vectors
    wanted = by_definition(work) - work.item_vectors
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-7)


@pytest.mark.parametrize("clipping_norm", [np.inf, 0.1])
def test_our_engine_does_the_same_work_as_the_loop_on_the_negatives_it_draws(clipping_norm: float) -> None:
    train = interactions()
    work = replace(make_work(train, dim=8), clipping_norm=clipping_norm, batch_size=16)
    key = Key.from_seed(0).fold("round", 1)
    drawn = []
    for user in range(train.num_users):
        (batch,) = user_batches(train, np.array([user]), keys=user_keys(train.user_ids.ids))
        examples = draw_examples(batch, train.num_items, 4, 1, key)
        slots = examples.slots[0, : int(examples.num_examples[0])].long()
        drawn.append(examples.rows[0][slots].numpy())
    work = replace(
        work,
        indptr=np.concatenate([[0], np.cumsum([len(items) for items in drawn])]),
        items=np.concatenate(drawn),
        labels=np.concatenate([np.arange(len(items)) % 5 == 0 for items in drawn]).astype(np.float32),
        user_vectors=np.zeros_like(work.user_vectors),
    )
    loop = RowLoop(work)
    loop.round()
    ours = EngineSgd(replace(work, noise_multiplier=1e-12))
    ours.round()
    np.testing.assert_allclose(ours.item_vectors(), loop.item_vectors(), rtol=1e-4, atol=1e-6)
    assert np.abs(loop.item_vectors() - work.item_vectors).max() > 1e-3


@pytest.mark.parametrize("name", [name for name, peer in peers.PEERS.items() if peer.private])
def test_noise_of_private_peers_has_the_std_of_the_work(name: str) -> None:
    if importlib.util.find_spec(peers.PEERS[name].library) is None:
        pytest.skip(f"{peers.PEERS[name].library} is not installed")
    work = make_work(interactions(num_users=5, num_items=400), dim=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = peers.make_peer(name, work)
        peer.round()
    change = (peer.item_vectors() - work.item_vectors) * work.num_users
    assert np.std(change) == pytest.approx(work.with_privacy().noise_std, rel=0.03)


def test_users_go_on_from_their_own_vectors_in_the_next_round() -> None:
    work = make_work(interactions(), dim=8)
    loop = RowLoop(work)
    loop.round()
    loop.round()
    fresh = RowLoop(replace(work, item_vectors=_after_one_round(work)))
    fresh.round()
    assert not np.allclose(loop.item_vectors(), fresh.item_vectors(), atol=1e-6)


def _after_one_round(work: Work) -> np.ndarray:
    loop = RowLoop(work)
    loop.round()
    return loop.item_vectors().copy()


def test_negatives_are_items_that_the_user_has_not_met() -> None:
    train = interactions()
    work = make_work(train)
    for user in range(work.num_users):
        part = slice(work.indptr[user], work.indptr[user + 1])
        met = set(train.items[train.users == user].tolist())
        assert sorted(work.items[part][work.labels[part] == 1].tolist()) == sorted(met)
        negatives = work.items[part][work.labels[part] == 0].tolist()
        assert len(negatives) == 4 * len(met) and not met & set(negatives)


def test_an_unknown_peer_and_an_absent_library_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'jaxfed' is unknown; allowed are fedrec"):
        peers.check_installed("jaxfed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs pfl, .* pip install 'fedrec\[peers\]'"):
        peers.check_installed("pfl")
