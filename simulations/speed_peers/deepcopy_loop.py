"""The plain loop as it is usually written: deepcopy the model for each user, SGD by autograd, average."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from simulations.speed_peers.work import Work, clip_factor


class _Factors(nn.Module):
    """One user's vector and the whole item table."""

    def __init__(self, items: np.ndarray) -> None:
        super().__init__()
        self.items = nn.Embedding(items.shape[0], items.shape[1], _weight=torch.from_numpy(items.copy()))
        self.user = nn.Parameter(torch.zeros(items.shape[1]))

    def forward(self, items: Tensor) -> Tensor:
        scores: Tensor = self.items(items) @ self.user
        return scores


class DeepcopyLoop:
    """Users one after the other, each with a full copy of the model and torch's own optimiser."""

    def __init__(self, work: Work) -> None:
        """Make the model and turn the work into tensors."""
        self._work = work
        self._model = _Factors(work.item_vectors)
        self._users = torch.from_numpy(work.user_vectors.copy())
        self._items, self._labels = torch.from_numpy(work.items), torch.from_numpy(work.labels)
        self._generator = torch.Generator().manual_seed(0)

    def round(self) -> None:
        """Do one round."""
        work = self._work
        table = self._model.items.weight.detach()
        total = torch.zeros_like(table)
        bounds = work.indptr.tolist()
        for index in range(work.num_users):
            part = slice(bounds[index], bounds[index + 1])
            delta = self._train(index, self._items[part], self._labels[part]) - table
            if work.private:
                delta *= clip_factor(float(delta.norm()), work.clipping_norm)
            total += delta
        if work.noise_std:
            total += torch.normal(0.0, work.noise_std, total.shape, generator=self._generator)
        table += total / work.num_users

    def _train(self, index: int, items: Tensor, labels: Tensor) -> Tensor:
        """Return the user's item table after one local epoch."""
        work, model = self._work, copy.deepcopy(self._model)
        model.user.data.copy_(self._users[index])
        optimizer = torch.optim.SGD(model.parameters(), lr=work.learning_rate)
        for start in range(0, len(items), work.batch_size):
            part = slice(start, start + work.batch_size)
            optimizer.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(model(items[part]), labels[part], reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self._users[index] = model.user.detach()
        trained: Tensor = model.items.weight.detach()
        return trained

    def item_vectors(self) -> np.ndarray:
        """Return the item table."""
        table: np.ndarray = self._model.items.weight.detach().numpy()
        return table

    def close(self) -> None:
        """Do nothing."""
