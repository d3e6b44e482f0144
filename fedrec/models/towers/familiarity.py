"""Familiarity: how often the user met an item before, in situations like the one that a list is asked for in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PACE = 5.0
"""Parameters are kept as a fifth of what they stand for: an optimiser that moves all alike lets them keep up."""

_TABLE_FIELDS = 8
"""Categorical fields that share a table of weights, which has a row for each subset of them."""

_NOBODYS = -2
"""A code that no interaction has."""


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
        places = torch.arange(items.shape[1], device=items.device)
        first = (items[:, :, None] == items[:, None, :]).to(torch.uint8).argmax(dim=-1)
        is_first = first == places
        slots = (is_first.cumsum(dim=-1) - 1).gather(1, first)  # an item's number among those of its row
        num_rows, num_slots = len(items), int(slots.max()) + 1 if slots.numel() else 0
        rows = (torch.arange(num_rows, device=items.device)[:, None] * num_slots + slots).flatten()
        weights = self._weights(seen.transpose(1, 2), past, asked).flatten(1, 2)
        counts = weights.new_zeros(len(weights), num_rows * num_slots, weights.shape[2]).index_add(1, rows, weights)
        logs = torch.log1p((_PACE * self.offsets).exp()[..., None] * counts)
        scores = torch.einsum("h,hrt->rt", _PACE * self.amounts[:, 0], logs).index_select(0, rows)
        added = torch.where(is_first[:, :, None], scores.reshape(*items.shape, seen.shape[1]), 0.0)
        return added.transpose(1, 2)

    def _weights(self, seen: Tensor, past: Mapping[str, Tensor], asked: Mapping[str, Tensor]) -> Tensor:
        """Return (H, B, S, T): what an interaction counts at a position; `seen` is (B, S, T)."""
        factors = (_PACE * self.differences).exp()
        columns = [(past.get(name), asked.get(name), factors[:, place]) for place, name in enumerate(self.fields)]
        kinds = [bool(num) for num in self.fields.values()]
        codes, numbers = list(compress(columns, kinds)), list(compress(columns, (not kind for kind in kinds)))
        weights = self._by_table(seen, codes[:_TABLE_FIELDS])
        for start in range(_TABLE_FIELDS, len(codes), _TABLE_FIELDS):
            weights = weights * self._by_table(seen, codes[start : start + _TABLE_FIELDS])
        for before, now, factor in numbers:
            weights = weights * torch.exp(-factor[:, None, None, None] * _distance(before, now, seen))
        return weights

    def _by_table(self, seen: Tensor, columns: Sequence[tuple[Tensor | None, Tensor | None, Tensor]]) -> Tensor:
        """Return (H, B, S, T) weights of a few categorical fields: a table has one for each subset that may differ."""
        ways = torch.zeros(seen.shape, dtype=torch.uint8, device=seen.device)
        total = self.amounts.new_zeros(len(self.amounts), 1)
        for bit, (before, now, factor) in enumerate(columns):
            ways += _differ(before, now, seen).view(torch.uint8).mul_(2**bit)
            total = torch.cat([total, total + factor[:, None]], dim=1)
        table = F.pad(torch.exp(-total), (0, 1))
        index = torch.where(seen, ways.to(torch.int64), total.shape[1])
        return table.gather(1, index.flatten().expand(len(table), -1)).reshape(len(table), *seen.shape)


def _differ(past: Tensor | None, asked: Tensor | None, like: Tensor) -> Tensor:
    """Return (B, S, T) bool, whether codes differ; unknown ones differ from everything."""
    if past is None or asked is None:
        return torch.ones_like(like)
    codes = asked.to(torch.int32)
    return past.to(torch.int32).clamp(min=-1)[:, :, None] != torch.where(codes < 0, _NOBODYS, codes)[:, None, :]


def _distance(past: Tensor | None, asked: Tensor | None, like: Tensor) -> Tensor:
    """Return (B, S, T) numbers from 0 to 1, how far apart values are; 1 where one is unknown."""
    if past is None or asked is None:
        return torch.ones(like.shape, device=like.device)
    return 1.0 - torch.nan_to_num(torch.exp(-(past[:, :, None] - asked[:, None, :]).float().square()))


def begin(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a parameter at the start: heads from nearly all situations alike to one alone, which add nothing yet."""
    if name.endswith("differences"):
        return torch.linspace(-2.0, 2.0, shape[0])[:, None].repeat(1, shape[1]) / _PACE
    return torch.full(shape, 2.0 / _PACE if name.endswith("offsets") else 0.0)
