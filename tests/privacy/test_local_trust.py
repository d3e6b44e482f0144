"""Local trust: every user's vector has noise of its own before it leaves the node, and nothing is amplified."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedrec.data.catalogue import Catalogue
from fedrec.errors import PrivacyError
from fedrec.federated.coordinator import Coordinator
from fedrec.models.registry import build_model
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.mechanism import NoisySum, add_noise_to_users, publish_exact, publish_noisy, release
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.randomness import Key, user_keys
from tests.worlds import random_world

PLAN = PrivacyPlan((PrivacyEvent(3.0, 1.0, 2),), 1e-5, clipping_norm=0.5, population_size=8, trust_model="local")
CENTRAL = PrivacyPlan((PrivacyEvent(3.0, 1.0, 2),), 1e-5, clipping_norm=0.5, population_size=8)
EXAMPLES = replace(PLAN, unit="interaction", neighboring_relation="")
STD = 3.0 * 2 * 0.5
USERS = user_keys(np.arange(8))
SIMULATION, DEPLOYMENT = Key.from_seed(5), Key(bytes(range(32)), from_system=True)
KEYS = pytest.mark.parametrize("key", [SIMULATION, DEPLOYMENT], ids=["simulation", "deployment"])


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def noised(users: np.ndarray, key: Key, round_number: int = 1, **totals: torch.Tensor) -> dict[str, torch.Tensor]:
    return add_noise_to_users(BoundedSum(dict(totals), 0.5), PLAN, round_number, users, key).totals


@KEYS
def test_each_user_alone_has_noise_of_twice_the_norm_on_every_coordinate(key: Key) -> None:
    """Kolmogorov-Smirnov at level 1e-6 each: with another key, a right sampler fails one of the 16 once in 60,000."""
    for user in range(8):
        found = noised(USERS[user : user + 1], key, items=zeros(50, 40), gram=zeros(2_000))
        for block in found.values():
            assert kstest(block.flatten().numpy() / STD, "norm").pvalue > 1e-6


@KEYS
def test_users_have_independent_noise_that_adds_up(key: Key) -> None:
    alone = torch.stack([noised(USERS[u : u + 1], key, a=zeros(4_000))["a"] for u in range(8)]).numpy()
    assert np.abs(np.corrcoef(alone) - np.eye(8)).max() < 5 / math.sqrt(4_000)
    together = noised(USERS, key, a=zeros(4_000))["a"].numpy()
    assert kstest(together / (STD * math.sqrt(8)), "norm").pvalue > 1e-6


@KEYS
def test_rounds_and_blocks_have_noise_of_their_own(key: Key) -> None:
    first, second = (noised(USERS[:1], key, r, a=zeros(4_000), b=zeros(4_000)) for r in (1, 2))
    columns = torch.stack([first["a"], first["b"], second["a"], second["b"]]).numpy()
    assert np.abs(np.corrcoef(columns) - np.eye(4)).max() < 5 / math.sqrt(4_000)


def test_in_a_simulation_users_bring_the_same_noise_to_whatever_node() -> None:
    total = torch.linspace(-1, 1, 300, dtype=torch.float64)
    together = noised(USERS, SIMULATION, a=total)["a"]
    spread = sum(noised(USERS[node::3], SIMULATION, a=total / 3)["a"] for node in range(3))
    torch.testing.assert_close(spread, together, rtol=0, atol=4 * STD * 2.0**-20)


def test_a_user_who_sends_nothing_has_noise_all_the_same_and_a_node_without_users_has_none() -> None:
    assert (noised(USERS[:1], SIMULATION, a=zeros(50))["a"] != 0).all()
    assert torch.equal(noised(USERS[:0], SIMULATION, a=zeros(50))["a"], zeros(50))


def test_the_sum_is_left_as_it_is() -> None:
    total = zeros(5)
    noised(USERS, SIMULATION, a=total)
    assert torch.equal(total, zeros(5))


def test_noise_is_drawn_where_the_plan_says_and_nowhere_else() -> None:
    bounded = BoundedSum({"a": zeros(3)}, 0.5)
    with pytest.raises(PrivacyError, match="noise is drawn where the plan says"):
        release(bounded, PLAN, 1, SIMULATION)
    for plan in (CENTRAL, EXAMPLES):
        with pytest.raises(PrivacyError, match="noise is drawn where the plan says"):
            add_noise_to_users(bounded, plan, 1, USERS, SIMULATION)
    with pytest.raises(PrivacyError, match="can't be published as it is"):
        publish_noisy(bounded, PLAN, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="can't be published as it is"):
        publish_noisy(NoisySum({"a": zeros(3)}, 0.5), CENTRAL, 1, 1)
    for wrong in (BoundedSum({"a": zeros(3)}, 1.0), BoundedSum({"a": zeros(3) * math.nan}, 0.5)):
        with pytest.raises(PrivacyError):
            add_noise_to_users(wrong, PLAN, 1, USERS, SIMULATION)


def test_sums_with_and_without_noise_are_never_added_up() -> None:
    with pytest.raises(PrivacyError, match="only one of them has its noise already"):
        NoisySum({"a": zeros(3)}, 0.5).merge(BoundedSum({"a": zeros(3)}, 0.5))
    with pytest.raises(PrivacyError, match="only one of them has its noise already"):
        BoundedSum({"a": zeros(3)}, 0.5).merge(NoisySum({"a": zeros(3)}, 0.5))


def test_publication_divides_by_public_numbers_and_states_the_noise_of_the_declared_population() -> None:
    published = publish_noisy(NoisySum({"a": zeros(3) + 16}, 0.5), PLAN, 1, num_nodes=5)
    assert torch.equal(published.blocks["a"], zeros(3) + 2) and published.divisor == 8
    assert published.noise_std == {"a": STD * math.sqrt(8) / 8}
    moves = publish_noisy(NoisySum({"a": zeros(3) + 15}, 0.5), EXAMPLES, 1, num_nodes=5)
    assert torch.equal(moves.blocks["a"], zeros(3) + 3) and math.isnan(moves.noise_std["a"])
    assert publish_exact(BoundedSum({"a": zeros(1)}, 0.5), 1.0).noise_std == {"a": 0.0}


def test_server_adds_nothing_and_an_attempt_that_nodes_answered_is_never_given_back(tmp_path: Path) -> None:
    catalogue = Catalogue(random_world(3, 12).item_ids)
    for attempt in (1, 2):
        model = build_model({"name": "als", "dim": 3}, 0.5)
        server = Coordinator(model, catalogue, tmp_path, "run", Key.from_system_entropy(), PLAN)
        total = server.receive(model.totals(server.shared))
        assert isinstance(total, NoisySum) and server.ledger is not None
        server.begin(1)
        assert sum(event.count for event in server.ledger.spent()) == attempt
        server.aggregate(1, [total], 0)
        assert not torch.equal(server._next.state.shared["items"], server.shared["items"])
        assert float(server._next.state.shared["items"].abs().max()) == 0, "zeros arrived, and no noise was added"
        server.close()
    third = Coordinator(model, catalogue, tmp_path, "run", Key.from_system_entropy(), PLAN)
    with pytest.raises(PrivacyError, match="would raise the spend"):
        third.begin(1)
    third.close()
