"""Fusions: how a user's vector and an item's become a score."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

FusionName = Literal["dot", "additive", "mlp"]

_CELLS = 2**24
"""Numbers that the hidden layers of all pairs may take at once."""


class Fusion(nn.Module):
    """Scores of pairs of query and item vectors; item biases are added elsewhere."""

    def grid(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return the (..., T, K) scores of (..., T, d) queries with each of (..., K, d) items."""
        scores: Tensor = self(queries.unsqueeze(-2), items.unsqueeze(-3))
        return scores

    def all_items(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return the (n, M) scores of (n, d) queries with each of (M, d) items."""
        step = max(1, _CELLS // max(1, len(items) * items.shape[1]))
        parts = [self.grid(queries[start : start + step], items) for start in range(0, len(queries), step)]
        return torch.cat(parts) if parts else queries.new_zeros(0, len(items))


class Dot(Fusion):
    """<q, f>."""

    def forward(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return the (...) scores of (..., d) queries and items that broadcast."""
        return (queries * items).sum(dim=-1)

    def grid(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return the (..., T, K) scores of (..., T, d) queries with each of (..., K, d) items."""
        return queries @ items.mT

    def all_items(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return the (n, M) scores of (n, d) queries with each of (M, d) items."""
        return queries @ items.mT


class Additive(Fusion):
    """<w, sigma(W (q + f) + b)>; sigma works on each coordinate, as one of a sum would rank alike for everybody."""

    def __init__(self, dim: int) -> None:
        """Make the two layers."""
        super().__init__()
        self.hidden, self.output = nn.Linear(dim, dim), nn.Linear(dim, 1, bias=False)

    def forward(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return the (...) scores of (..., d) queries and items that broadcast."""
        scores: Tensor = self.output(torch.sigmoid(self.hidden(queries) + items @ self.hidden.weight.T))[..., 0]
        return scores


class Mlp(Fusion):
    """<w, relu(W [q, f, q * f] + b)>.

    Source:
        He et al., Neural Collaborative Filtering, 2017, eq. 10-12: both paths, with shared embeddings.
    """

    def __init__(self, dim: int) -> None:
        """Make the two layers."""
        super().__init__()
        self.queries, self.items = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.products, self.output = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 1, bias=False)

    def forward(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return the (...) scores of (..., d) queries and items that broadcast."""
        hidden = self.queries(queries) + self.items(items) + self.products(queries * items)
        scores: Tensor = self.output(torch.relu(hidden))[..., 0]
        return scores


def make_fusion(name: FusionName, dim: int) -> Fusion:
    """Make the fusion of a name."""
    return {"dot": lambda _: Dot(), "additive": Additive, "mlp": Mlp}[name](dim)
