"""Two towers in all their forms, and what each user's loss is when written out for that user alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from fedrec.data.batches import make_batch
from fedrec.data.interactions import Interactions
from fedrec.models.blocks import Contributions
from fedrec.models.bounded_two_tower import BoundedTwoTower, BoundedTwoTowerConfig
from fedrec.models.losses import LossConfig
from fedrec.models.towers.dropout import Dropout
from fedrec.models.towers.windows import Windows
from fedrec.models.two_tower import Examples, TwoTower, TwoTowerConfig
from fedrec.randomness import Key, user_keys

KEY = Key.from_seed(0)
WINDOW = 5
HISTORIES: dict[str, dict[str, Any]] = {
    "attention": {"name": "attention", "num_blocks": 2, "time_gaps": True},
    "gru": {"name": "gru", "num_blocks": 2, "time_gaps": True},
    "lstm": {"name": "lstm", "num_blocks": 1},
    "decayed": {"name": "decayed"},
    "none": {"name": "none"},
}
LOSSES = ("sampled_softmax", "gbce", "bce", "bpr", "squared")


def settings_of(history: str = "attention", fusion: str = "dot", loss: str = "sampled_softmax", **other: Any) -> Any:
    """Return settings of a small model with everything switched on."""
    return {
        "dim": 4,
        "history": {"window": WINDOW, "dropout": 0.25, "crop_probability": 0.5, **HISTORIES[history]},
        "context_fields": ["place", "heat"],
        "fusion": fusion,
        "loss": {"name": loss, "num_negatives": 6},
        **other,
    }


def exact(*arguments: Any, **options: Any) -> TwoTower:
    return TwoTower(TwoTowerConfig.model_validate(settings_of(*arguments, **options)))


def bounded(*arguments: Any, **options: Any) -> BoundedTwoTower:
    return BoundedTwoTower(BoundedTwoTowerConfig.model_validate(settings_of(*arguments, **options)))


def drawn(shared: dict[str, Tensor], size: float = 0.3) -> dict[str, Tensor]:
    """Return parameters of these shapes that have all grown away from where they start."""
    found = {}
    for name, tensor in shared.items():
        found[name] = size * torch.randn(tensor.shape, generator=KEY.fold("drawn", name).torch_generator())
    return found


def plain_loss(model: TwoTower, shared: dict[str, Tensor], examples: Examples, user: int) -> Tensor:
    """Return the loss of one user, position by position, without padding and without anything batched."""
    config, windows = model.config, examples.windows
    towers, num = model._towers(shared), int(windows.mask[user].sum())
    one = Windows(
        windows.items[user, :num],
        windows.lengths[user],
        windows.targets[user, :num],
        windows.mask[user, :num],
        None if windows.gaps is None else windows.gaps[user, :num],
        {name: column[user, :num] for name, column in windows.context.items()},
        {name: column[user, :num] for name, column in windows.past.items()},
        None,
        None if windows.past_ratings is None else windows.past_ratings[user, :num],
    )
    dropout = Dropout(None if examples.draws is None else examples.draws[user, :num], config.history.dropout)
    total = torch.zeros((), dtype=shared["items"].dtype)
    if not num:
        return total
    items, biases = shared["items"], shared["biases"][:, 0]
    queries = functional_call(towers, shared, ("queries", items[one.items], one, dropout))
    negatives = examples.negatives.items[user][examples.negatives.used[user]]

    def score(query: Tensor, item: Tensor) -> Tensor:
        found: Tensor = functional_call(towers, shared, ("scores", query, items[item])) + biases[item]
        return found

    for place in range(num):
        query, target = queries[place], one.targets[place]
        if config.loss.name == "softmax":
            total = total - torch.log_softmax(items @ query + biases, dim=0)[target]
        elif config.loss.name == "squared":
            assert windows.ratings is not None
            rating = score(query, target) + level_of(shared, windows, user, place)
            total = total + (rating - windows.ratings[user, place]) ** 2 / 2
        else:
            others = [score(query, item) for item in negatives]
            total = total + _against(
                config.loss, score(query, target), others, float(examples.negatives.num_unmet[user])
            )
    return total / (config.history.window + 1)


def level_of(shared: dict[str, Tensor], windows: Windows, user: int, place: int) -> Tensor:
    """Return the mean rating and the bias of a user, from the ratings before a position, one by one."""
    assert windows.past_ratings is not None
    offset, bias = shared["ratings.offset"][0, 0], torch.zeros((), dtype=shared["items"].dtype)
    for before in range(1, place + 1):
        item = windows.items[user, before]
        bias = bias + windows.past_ratings[user, before] - offset - shared["biases"][item, 0]
    return offset + bias / (place + 5 * torch.exp(shared["ratings.shrinkage"][0, 0]))


def _against(config: LossConfig, positive: Tensor, negative: list[Tensor], num_unmet: float) -> Tensor:
    num = max(len(negative), 1)
    if config.name == "bpr":
        return sum((-torch.log(torch.sigmoid(positive - one)) for one in negative), torch.zeros_like(positive)) / num
    if config.name == "sampled_softmax":
        others = sum((torch.exp(one) * num_unmet / num for one in negative), torch.zeros_like(positive))
        return -torch.log(torch.exp(positive) / (torch.exp(positive) + others))
    share = len(negative) / max(num_unmet, 1)
    power = 1 - (config.calibration if config.name == "gbce" else 0.0) * (1 - share)
    losses = sum((-torch.log(1 - torch.sigmoid(one)) for one in negative), torch.zeros_like(positive))
    return losses - power * torch.log(torch.sigmoid(positive))


def plain_gradient(model: TwoTower, shared: dict[str, Tensor], examples: Examples, user: int) -> dict[str, Tensor]:
    """Return the gradient of one user's loss, zeros where it does not depend on a parameter."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in shared.items()}
    loss = plain_loss(model, leaves, examples, user)
    if not loss.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if slope is None else slope
        for (name, leaf), slope in zip(leaves.items(), slopes, strict=True)
    }


def written_out(blocks: Contributions, shared: dict[str, Tensor], user: int) -> dict[str, Tensor]:
    """Return what one user of a batch adds, as whole tensors."""
    found = {}
    for name, block in blocks.items():
        total = torch.zeros(shared[name].shape, dtype=torch.float64)
        scale = torch.zeros(len(block.finite()), dtype=torch.float64)
        scale[user] = 1.0
        block.add_to(total, scale)
        found[name] = total
    return found


def norm_of(tensors: dict[str, Tensor]) -> float:
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors.values()]).sum().sqrt())


def far_apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the norm of the difference over the norm."""
    assert one.keys() == other.keys()
    return norm_of({name: one[name].double() - other[name].double() for name in one}) / max(norm_of(other), 1e-12)


def whole_batch(interactions: Interactions) -> Any:
    return make_batch(interactions, np.arange(interactions.num_users), user_keys(interactions.user_ids.ids))
