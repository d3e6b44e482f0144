"""Opacus: `GradSampleModule` with users as rows, so that its per-sample gradients are per-user gradients."""

from __future__ import annotations

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from simulations.speed_peers.work import Work

_BATCH_FLOATS = 2**21


class _ItemTable(nn.Module):
    """The shared item table; a row of the input is one user with padded examples."""

    def __init__(self, items: np.ndarray) -> None:
        super().__init__()
        self.items = nn.Embedding(items.shape[0], items.shape[1], _weight=torch.from_numpy(items.copy()))

    def forward(self, items: Tensor, users: Tensor) -> Tensor:
        """Score (B, L) items for (B, dim) users."""
        scores: Tensor = torch.einsum("bld,bd->bl", self.items(items), users)
        return scores


class OpacusRows:
    """Per-user gradients by hooks, clipped, summed and given noise by `DPOptimizer`.

    Opacus gives one gradient a user at the shared table, so a user makes one step over all its examples instead of a
    step a batch: less work than the other systems do. Users come sorted by length, so that little is padded; as many
    are rows of one batch as keep the (users, items, dim) gradients at 8 MiB, the fastest size tried. Always private.
    """

    def __init__(self, work: Work) -> None:
        """Pad the batches; make module and optimiser."""
        if not work.private:
            raise ValueError("Opacus is there for clipping and noise; give it a work with privacy")
        self._work = work
        self._module = GradSampleModule(_ItemTable(work.item_vectors), loss_reduction="sum")
        self._users = torch.from_numpy(work.user_vectors.copy())
        order = np.argsort(work.lengths, kind="stable")
        size = max(1, _BATCH_FLOATS // work.item_vectors.size)
        self._batches = [_padded(work, order[start : start + size]) for start in range(0, len(order), size)]
        # The user's change is -lr x gradient; bounding it by C is bounding the gradient by C / lr.
        self._optimizer = DPOptimizer(
            torch.optim.SGD(self._module.parameters(), lr=work.learning_rate),
            noise_multiplier=work.noise_multiplier,
            max_grad_norm=work.clipping_norm / work.learning_rate,
            expected_batch_size=work.num_users,
            loss_reduction="mean",
            generator=torch.Generator().manual_seed(0),
        )

    def round(self) -> None:
        """Do one round."""
        for index, (rows, items, labels, weights) in enumerate(self._batches):
            users = self._users[rows].requires_grad_(True)
            scores = self._module(items, users)
            loss = functional.binary_cross_entropy_with_logits(scores, labels, weights, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            if users.grad is not None:
                self._users[rows] = users.detach() - self._work.learning_rate * users.grad
            self._optimizer.signal_skip_step(do_skip=index + 1 < len(self._batches))
            self._optimizer.step()
            self._optimizer.zero_grad()

    def item_vectors(self) -> np.ndarray:
        """Return the item table."""
        table: np.ndarray = next(self._module.parameters()).detach().numpy()
        return table

    def close(self) -> None:
        """Do nothing."""


def _padded(work: Work, users: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows (B,), and items, labels and weights (B, L); the weight is 0 where padded."""
    lengths = work.lengths[users]
    mask = np.arange(lengths.max()) < lengths[:, None]
    index = np.where(mask, work.indptr[users][:, None] + np.arange(mask.shape[1]), 0)
    return (
        torch.from_numpy(users),
        torch.from_numpy(work.items[index]),
        torch.from_numpy(work.labels[index]),
        torch.from_numpy(mask.astype(np.float32)),
    )
