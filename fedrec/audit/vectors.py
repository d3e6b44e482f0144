"""Contributions as the rows of a sparse matrix: what an attacker who knows a history expects its user to send."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrec.audit.subject import Subject
from fedrec.data.batches import user_batches
from fedrec.data.interactions import Interactions
from fedrec.models.blocks import Block, Dense, PairCounts, RowMoments, RowOuter, RowSparse, SecondMoments
from fedrec.models.two_tower import TwoTower
from fedrec.privacy.clipping import clip_scales
from fedrec.randomness import Key

_LEFT_OUT = (RowMoments, PairCounts)
"""Second moments of whole tables; the blocks beside them identify a user just as well."""

_CELLS, _USERS = 2**13, 2**16
"""Padded history cells and users of a batch: what is worked on at once is many times larger."""

Triples = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(user in the batch, coordinate of the block, value); equal places add up."""


class Layout:
    """Where each block stands in a vector of all coordinates.

    Args:
        contributions: the blocks of some users.
        totals: block name -> sum, for the shapes.
    """

    def __init__(self, contributions: Mapping[str, Block], totals: Mapping[str, Tensor]) -> None:
        self.names = [name for name, block in contributions.items() if not isinstance(block, _LEFT_OUT)]
        self.sizes = [totals[name].numel() for name in self.names]
        self.size = sum(self.sizes)

    def starts(self) -> Iterator[tuple[str, int]]:
        """Go through (block name, first coordinate)."""
        return zip(self.names, np.cumsum([0, *self.sizes])[:-1].tolist(), strict=True)

    def flatten(self, totals: Mapping[str, Tensor]) -> np.ndarray:
        """Return the (size,) float64 coordinates of a sum or a release."""
        parts = [totals[name].to(torch.float64).cpu().reshape(-1).numpy() for name in self.names]
        return np.concatenate([np.zeros(0), *parts])


def contribution_rows(
    subject: Subject, shared: Mapping[str, Tensor], users: Interactions, rows: np.ndarray, keys: np.ndarray, key: Key
) -> tuple[Any, Layout]:
    """Compute the clipped contribution of each of some users.

    Args:
        subject: what is audited.
        shared: parameters as broadcast.
        users: histories.
        rows: (n,) rows of the users wanted.
        keys: (users.num_users,) uint64 of all users.
        key: of the round.

    Returns:
        A (n, layout.size) scipy CSR matrix in the order of `rows`, and the layout of its columns.
    """
    from scipy.sparse import csr_matrix, vstack

    model = subject.model
    shared = model.prepare({name: tensor.to(subject.device) for name, tensor in shared.items()})
    totals = model.totals(shared)
    layout, parts, order = Layout({}, totals), [], []
    at_once = 1 if isinstance(model, TwoTower) and not model.bounded else _USERS  # it adds up the users of a batch
    for batch in user_batches(users, rows, _CELLS, at_once, keys):
        batch = batch.to(subject.device)
        contributions = model.contribute(shared, model.fit_users(shared, batch, ranking=False), batch, key)
        layout = Layout(contributions, totals)
        scales = clip_scales(contributions, subject.clipping_norm).cpu().numpy()
        triples: list[Triples] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
        for name, start in layout.starts():
            members, columns, values = _triples(contributions[name], totals[name])
            kept = (values != 0) & (scales[members] != 0)
            triples.append((members[kept], start + columns[kept], values[kept] * scales[members[kept]]))
        members, columns, values = (np.concatenate(column) for column in zip(*triples, strict=True))
        parts.append(csr_matrix((values, (members, columns)), shape=(batch.num_users, layout.size)))
        order.append(batch.rows)
    if not parts:
        return csr_matrix((0, layout.size)), layout
    place = {user: number for number, user in enumerate(np.concatenate(order).tolist())}
    return vstack(parts, format="csr")[[place[user] for user in rows.tolist()]], layout


def _triples(block: Block, total: Tensor) -> Triples:
    """Return the entries of a block of B users."""
    if isinstance(block, RowOuter):
        values = block.entries.weights[:, :, None].to(torch.float64) * block.vectors[:, None].to(torch.float64)
        return _of_rows(block.entries.ids, values)
    if isinstance(block, RowSparse):
        mask = torch.ones_like(block.ids, dtype=torch.bool) if block.mask is None else block.mask
        return _of_rows(block.ids.masked_fill(~mask, 0), block.values.masked_fill(~mask[:, :, None], 0.0))
    if isinstance(block, SecondMoments):
        dim = block.vectors.shape[1]
        upper = torch.triu_indices(dim, dim)
        vectors = block.vectors.to(torch.float64).cpu()
        moments = vectors[:, upper[0]] * vectors[:, upper[1]]
        return _of_all(moments * torch.where(upper[0] == upper[1], 1.0, 2.0**0.5))
    if isinstance(block, Dense):
        return _of_all(block.values)
    return _by_adding(block, total)


def _of_rows(ids: Tensor, values: Tensor) -> Triples:
    """Return the entries of (B, m) rows with (B, m, d) values."""
    width = values.shape[2]
    columns = ids[:, :, None] * width + torch.arange(width, device=ids.device)
    members = torch.arange(len(ids), device=ids.device)[:, None, None].expand(values.shape)
    return _arrays(members, columns, values)


def _of_all(values: Tensor) -> Triples:
    """Return the entries of dense (B, ...) values."""
    values = values.flatten(start_dim=1)
    columns = torch.arange(values.shape[1], device=values.device).expand(values.shape)
    return _arrays(torch.arange(len(values), device=values.device)[:, None].expand(values.shape), columns, values)


def _by_adding(block: Block, total: Tensor) -> Triples:
    """Return the entries of a block of any kind, by letting it add one user after the other to zeros."""
    rows = []
    for scale in torch.eye(len(block.finite()), dtype=torch.float64, device=total.device):
        alone = torch.zeros_like(total)
        block.add_to(alone, scale)
        rows.append(alone.reshape(-1))
    return _of_all(torch.stack(rows))


def _arrays(members: Tensor, columns: Tensor, values: Tensor) -> Triples:
    flat = (part.reshape(-1).cpu() for part in (members, columns, values.to(torch.float64)))
    first, second, third = (part.numpy() for part in flat)
    return first, second, third
