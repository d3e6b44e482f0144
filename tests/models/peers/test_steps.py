"""What peers do for all users at once equals the paper's formulas, user by user."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from fedrec.data.batches import make_batch, user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.federated.cohort import sum_contributions
from fedrec.models.peers.examples import draw_examples
from fedrec.models.peers.fcf import Fcf, FcfConfig
from fedrec.models.peers.fedncf import FedNcf, FedNcfConfig
from fedrec.models.peers.pfedrec import PFedRec, PFedRecConfig
from fedrec.models.protocol import Trained
from fedrec.privacy.mechanism import publish_exact
from fedrec.randomness import Key, user_keys
from tests.worlds import random_world

INTERACTIONS = random_world(10, 25, seed=1)
CATALOGUE = Catalogue(INTERACTIONS.item_ids)
KEYS = user_keys(INTERACTIONS.user_ids.ids)
KEY = Key.from_seed(1)


def test_pfedrec_equals_a_plain_loop_over_users_with_torch_modules() -> None:
    config = PFedRecConfig(dim=4, learning_rate=0.5, item_rate=1.6, local_batch_size=8, local_epochs=2)
    model = PFedRec(config)
    shared = model.init(CATALOGUE, KEY).shared
    batch = make_batch(INTERACTIONS, np.arange(10), KEYS)
    made = model.contribute(shared, model.fit_users(shared, batch, ranking=False), batch, KEY)
    assert isinstance(made, Trained)
    total = torch.zeros(25, 4, dtype=torch.float64)
    examples = draw_examples(batch, 25, config.num_negatives, KEY)
    for user in range(10):
        items, scoring = nn.Embedding.from_pretrained(shared["items"].clone(), freeze=False), nn.Linear(4, 1)
        with torch.no_grad():
            scoring.weight.copy_(shared["start"][None, :4])
            scoring.bias.copy_(shared["start"][4:])
        optimisers = [torch.optim.SGD(scoring.parameters(), 0.5), torch.optim.SGD(items.parameters(), 20.0)]
        num = int(examples.counted[user].sum())
        ids, targets = examples.rows[user][examples.slots[user, :num]], examples.targets[user, :num]
        for first in [*range(0, num, 8)] * 2:
            part = slice(first, first + 8)
            for optimiser in optimisers:
                optimiser.zero_grad()
                found = torch.sigmoid(scoring(items(ids[part])))[:, 0]
                nn.functional.binary_cross_entropy(found, targets[part]).backward()
                optimiser.step()
        total += (items.weight - shared["items"]).detach()
        torch.testing.assert_close(
            made.state["scores"][user], scoring(items.weight)[:, 0].detach(), rtol=1e-4, atol=1e-5
        )
    summed = torch.zeros_like(total)
    made["items"].add_to(summed, torch.ones(10, dtype=torch.float64))
    torch.testing.assert_close(summed, total, rtol=1e-4, atol=1e-5)


def test_fcf_sums_are_the_gradient_of_the_whole_objective() -> None:
    config = FcfConfig(dim=3, confidence=2.0, regularization=0.5, init_std=1.0)
    model = Fcf(config)
    server = model.init(CATALOGUE, KEY)
    batches = user_batches(INTERACTIONS, keys=KEYS)
    total, _ = sum_contributions(model, server.shared, batches, math.inf, KEY)
    batch = make_batch(INTERACTIONS, np.arange(10))
    vectors = model.fit_users(server.shared, batch)["vectors"].to(torch.float64)
    met = torch.zeros(10, 25, dtype=torch.float64)
    met[torch.from_numpy(INTERACTIONS.users), torch.from_numpy(INTERACTIONS.items)] = 1
    items = server.shared["items"].to(torch.float64).requires_grad_()

    def objective(users: torch.Tensor) -> torch.Tensor:
        errors = (1 + 2.0 * met) * (met - users @ items.T).square()
        return errors.sum() + 0.5 * (users.square().sum() + items.square().sum())

    (gradient,) = torch.autograd.grad(objective(vectors), items)
    first = model.update(server, publish_exact(total, 10.0)).memory["mean/items"] * 10 / 0.1
    torch.testing.assert_close(first, -gradient, rtol=1e-4, atol=1e-4)
    users = vectors.clone().requires_grad_()
    (left,) = torch.autograd.grad(objective(users), users)
    assert left.abs().max() < 1e-3, "users are at their optimum"


def test_fedncf_scores_are_those_of_the_network_of_the_paper() -> None:
    model = FedNcf(FedNcfConfig(dim=4, form="mlp"))
    shared = dict(model.init(CATALOGUE, KEY).shared)
    shared["bias_0"], shared["bias_1"] = torch.linspace(-1, 1, 4), torch.tensor([0.5, -0.1])
    batch, vectors = make_batch(INTERACTIONS, np.arange(3)), torch.randn(3, 4, generator=KEY.torch_generator())
    found = model.score(shared, {"vectors": vectors}, batch)
    for user in range(3):
        pairs = torch.cat([vectors[user].expand(25, 4), shared["items"]], dim=1)
        hidden = torch.relu(
            torch.relu(pairs @ shared["hidden_0"] + shared["bias_0"]) @ shared["hidden_1"] + shared["bias_1"]
        )
        torch.testing.assert_close(found[user], (hidden @ shared["output"])[:, 0] + shared["offset"])
