"""Local gradient descent of many users side by side, each on parameters of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedrec.models.peers.examples import Examples

Logits = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(parameters name -> (B, ...), item vectors (B, E, d)) -> (B, E) predictions before any sigmoid."""
Loss = Literal["logistic", "squared"]
ITEMS = "items"
"""The name of the item rows among the rates of `descend`."""


@dataclass(frozen=True, eq=False)
class Local:
    """What B users train: parameters of their own, and copies of the item rows that they touch.

    Args:
        parameters: name -> (B, ...).
        rows: (B, m, d) item rows, in the order of `Examples.rows`.
    """

    parameters: Mapping[str, Tensor]
    rows: Tensor


def batches(examples: Examples, size: int) -> Iterator[Examples]:
    """Cut the examples of each user into batches of `size`, one at a time for all users; 0 for a single one."""
    size = size or max(examples.num_examples, 1)
    for start in range(0, examples.num_examples, size):
        part = slice(start, start + size)
        yield replace(
            examples,
            slots=examples.slots[:, part],
            targets=examples.targets[:, part],
            counted=examples.counted[:, part],
        )


def descend(
    local: Local, batch: Examples, logits: Logits, rates: Mapping[str, float], loss: Loss, mean: bool = True
) -> Local:
    """Take one step of gradient descent on a batch of each user's examples.

    A user's gradient has no part of anybody else's loss, so that one backward pass over the sum of all losses gives
    the gradients of all users.

    Args:
        local: where users are; its rows are moved in place.
        batch: of their examples; a user without any in it stays.
        logits: the model's prediction.
        rates: name -> learning rate of what moves, `ITEMS` for the item rows; all else stays.
        loss: cross-entropy of the sigmoid, or half the squared error.
        mean: whether a batch's loss is the mean over its examples, or their sum.

    Returns:
        Where users are then.
    """
    index = batch.slots[:, :, None].expand(-1, -1, local.rows.shape[2])
    vectors = local.rows.gather(1, index)
    moving = {name: local.parameters[name].detach().clone() for name in rates if name != ITEMS}
    leaves = [*moving.values(), *([vectors] if ITEMS in rates else [])]
    with torch.enable_grad():
        for leaf in leaves:
            leaf.requires_grad_()
        found = logits({**local.parameters, **moving}, vectors)
        if loss == "logistic":
            losses = binary_cross_entropy_with_logits(found, batch.targets, reduction="none")
        else:
            losses = (found - batch.targets).square() / 2
        share = batch.counted / batch.counted.sum(dim=1, keepdim=True).clamp(min=1) if mean else batch.counted
        gradients = torch.autograd.grad((losses * share).sum(), leaves)
    steps = dict(zip([*moving, ITEMS], gradients, strict=False))
    parameters = {name: leaf.detach() - rates[name] * steps[name] for name, leaf in moving.items()}
    rows = local.rows
    if ITEMS in rates:
        rows.scatter_add_(1, index, -rates[ITEMS] * steps[ITEMS])
    return Local({**local.parameters, **parameters}, rows)
