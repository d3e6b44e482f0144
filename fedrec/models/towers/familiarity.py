"""Familiarity: how often the user met an item before, in situations like the one that a list is asked for in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_PACE = 5.0
"""Parameters are kept as a fifth of what they stand for: an optimiser that moves all alike lets them keep up."""


class Familiarity(nn.Module):
    """What the user's own history says of an item, beside vectors, whose d numbers blur thousands of items.

        n_h(i) = sum over interactions with item i before of exp(-sum over fields f of e^(w_hf) [f differs])
        score += sum over heads h of a_h log(1 + e^(b_h) n_h(i))

    A head counts interactions alike (small w), or only those in situations like the one asked for (large w), and makes
    what it counts more wanted (a > 0) or less. A score being the logarithm of a likelihood, a = 1 recommends in
    proportion to the count. Unknown values differ from everything, numbers by 1 - exp(-(x - y)^2); without fields all
    situations are alike.

    Args:
        fields: context fields, see `ContextTower`.
        num_heads: H.

    Source:
        After Ren et al., RepeatNet, 2019 (a mode of its own for items met before).
    """

    def __init__(self, fields: Mapping[str, int], num_heads: int) -> None:
        """Make differences (H, F): w; amounts (H, 1): a; offsets (H, 1): b; all in units of the pace."""
        super().__init__()
        self.fields = dict(fields)
        self.differences = nn.Parameter(torch.empty(num_heads, len(fields)))
        self.amounts, self.offsets = nn.Parameter(torch.empty(num_heads, 1)), nn.Parameter(torch.empty(num_heads, 1))

    def forward(self, items: Tensor, seen: Tensor, past: Mapping[str, Tensor], asked: Mapping[str, Tensor]) -> Tensor:
        """Return (B, T, S): what is added to the score of each item met, at its first place in the row; else 0.

        Args:
            items: (B, S) int64, what was met.
            seen: (B, T, S) bool, what of it is before a position.
            past: name -> (B, S), its context.
            asked: name -> (B, T), the context asked for.
        """
        first = (items[:, :, None] == items[:, None, :]).to(torch.uint8).argmax(dim=-1)
        weights = self._weights(seen, past, asked)
        counts = torch.zeros_like(weights).scatter_add(-1, first[:, None, None].expand(weights.shape), weights)
        logs = torch.log1p((_PACE * self.offsets).exp()[..., None] * counts)
        return (_PACE * self.amounts[..., None] * logs).sum(dim=1)

    def _weights(self, seen: Tensor, past: Mapping[str, Tensor], asked: Mapping[str, Tensor]) -> Tensor:
        """Return (B, H, T, S): what an interaction counts at a position."""
        shape = (len(seen), len(self.amounts), *seen.shape[1:])
        if not self.fields:
            return seen[:, None].to(self.amounts.dtype).expand(shape)
        differ = [_differ(past.get(name), asked.get(name), bool(num), seen) for name, num in self.fields.items()]
        stacked = torch.stack(differ, dim=1).to(self.amounts.dtype)
        total = torch.einsum("hf,bfts->bhts", (_PACE * self.differences).exp(), stacked)
        return torch.where(seen[:, None], torch.exp(-total), 0.0)


def _differ(past: Tensor | None, asked: Tensor | None, categorical: bool, like: Tensor) -> Tensor:
    """Return (B, T, S) numbers from 0 to 1; 1 where a value is unknown."""
    if past is None or asked is None:
        return torch.ones(like.shape, device=like.device)
    one, two = asked[:, :, None], past[:, None, :]
    if categorical:
        return 1.0 - ((one == two) & (one >= 0)).float()
    return 1.0 - torch.nan_to_num(torch.exp(-(one - two).float().square()))


def begin(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a parameter at the start: heads from nearly all situations alike to one alone, which add nothing yet."""
    if name.endswith("differences"):
        return torch.linspace(-2.0, 2.0, shape[0])[:, None].repeat(1, shape[1]) / _PACE
    return torch.full(shape, 2.0 / _PACE if name.endswith("offsets") else 0.0)
