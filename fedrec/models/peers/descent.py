"""Local gradient descent of many users side by side, each on parameters and item rows of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedrec.models.peers.examples import Examples

Logits = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(parameters name -> (B, ...), item vectors (B, E, d)) -> (B, E) predictions before any sigmoid."""
Loss = Literal["logistic", "squared"]
ITEMS = "items"
"""The name of the item table among the shared parameters and the blocks."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of the examples of B users, with the item vectors as they are.

    Args:
        index: (B, E, d) int64 positions in the users' rows.
        vectors: (B, E, d) item vectors.
        targets: (B, E) float32.
        counted: (B, E) bool.
    """

    index: Tensor
    vectors: Tensor
    targets: Tensor
    counted: Tensor

    @classmethod
    def of(cls, examples: Examples, rows: Tensor) -> Batch:
        """Look up the vectors of examples in the users' (B, m, d) rows."""
        index = examples.slots[:, :, None].expand(-1, -1, rows.shape[2])
        return cls(index, rows.gather(1, index), examples.targets, examples.counted)

    def errors(self, logits: Tensor, loss: Loss = "logistic") -> Tensor:
        """Return the derivative of each user's mean loss over the examples of the batch by the predictions.

        Args:
            logits: (B, E) predictions before any sigmoid.
            loss: cross-entropy of the sigmoid, or half the squared error of the prediction itself.

        Returns:
            (B, E); 0 where an example does not count.
        """
        errors = (torch.sigmoid(logits) if loss == "logistic" else logits) - self.targets
        return torch.where(self.counted, errors, 0.0) / self.counted.sum(dim=1, keepdim=True).clamp(min=1)

    def weighted(self, errors: Tensor) -> Tensor:
        """Return (B, d): the sum of a user's item vectors, weighted by (B, E) errors."""
        return (errors[:, None] @ self.vectors)[:, 0]

    def move(self, rows: Tensor, steps: Tensor) -> None:
        """Add (B, E, d) steps to the users' (B, m, d) rows, in place."""
        rows.scatter_add_(1, self.index, steps)


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


def inner_products(vectors: Tensor, items: Tensor) -> Tensor:
    """Return (B, E): the products of each user's (B, d) vector with (B, E, d) items."""
    return (items @ vectors[:, :, None])[:, :, 0]


def descend(
    parameters: Mapping[str, Tensor], rows: Tensor, examples: Examples, logits: Logits, rate: float
) -> dict[str, Tensor]:
    """Take one step of gradient descent on the mean logistic loss of each user's examples, by automatic derivatives.

    A user's loss has no part of anybody else's parameters, so that one backward pass over the sum of all losses gives
    the gradients of all users.

    Args:
        parameters: name -> (B, ...).
        rows: (B, m, d) item rows, moved in place.
        examples: a batch of them; a user without any in it stays.
        logits: the model's prediction.
        rate: learning rate of parameters and rows.

    Returns:
        The parameters after the step.
    """
    batch = Batch.of(examples, rows)
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}
    vectors = batch.vectors.requires_grad_()
    with torch.enable_grad():
        found = logits(leaves, vectors)
    (*gradients, steps) = torch.autograd.grad(found, [*leaves.values(), vectors], batch.errors(found.detach()))
    batch.move(rows, -rate * steps)
    return {name: leaf.detach() - rate * step for (name, leaf), step in zip(leaves.items(), gradients, strict=True)}
