"""The context tower: what the situation in which a list is asked for says - time of day, place, device, companion."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTH = 2
"""Width of the hidden layer, in dimensions."""


class ContextTower(nn.Module):
    """A vector for each context, and how it meets what else is known: an item of the history, or the history's vector.

    Categorical fields hold codes from 0; -1, or any code that the field does not have, is an unknown value, which has a
    vector of its own. Numeric fields hold float32 values, NaN where unknown. With h what the context meets:

        s = sum over fields of (vector of the code, or value x direction + offset, or the field's vector of unknown)
        c = s + V gelu(U s + a) + b                                     fields together say more than one by one
        g = z * h * (1 + W c) + (1 - z) * c,   z = sigmoid(Z [h, c])    gated; else g = c

    A sum alone would move all users alike. The product lets a context mean different things for different histories.

    Args:
        fields: name -> number of values of a categorical field, 0 for a numeric one.
        dim: d.
        gated: whether there is something to meet.

    Source:
        Beutel et al., Latent Cross: Making Use of Context in Recurrent Recommender Systems, 2018, section 5 (the
        factor 1 + W c, before and after the history tower); Cheng et al., Wide & Deep Learning, 2016 (a hidden layer
        on the sum of fields). The gate is our own.
    """

    def __init__(self, fields: Mapping[str, int], dim: int, gated: bool) -> None:
        """Make one parameter a field, named by its place: tables (row 0 is the unknown value), or lines of numbers."""
        super().__init__()
        self.fields = dict(fields)
        places = {str(place): num for place, num in enumerate(self.fields.values())}
        self.tables = nn.ParameterDict({place: torch.empty(1 + num, dim) for place, num in places.items() if num})
        self.lines = nn.ParameterDict({place: torch.empty(3, dim) for place, num in places.items() if not num})
        self.expand, self.contract = nn.Linear(dim, _WIDTH * dim), nn.Linear(_WIDTH * dim, dim)
        self.gate = nn.Linear(2 * dim, dim) if gated else None
        self.factor = nn.Linear(dim, dim, bias=False) if gated else None

    def add_up(self, context: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Return the (..., T, d) sum of the fields' vectors; a field that is not given is unknown.

        Args:
            context: name -> (..., T) codes or values.
            like: (..., T, d), for the shape where there is no field.
        """
        total = torch.zeros_like(like)
        for place, (name, num) in enumerate(self.fields.items()):
            table, values = (self.tables if num else self.lines)[str(place)], context.get(name)
            if values is None:
                total = total + table[0]
            elif num:
                codes = values.to(torch.int64)
                total = total + table[torch.where((codes >= 0) & (codes < num), codes + 1, 0)]
            else:
                known = ~torch.isnan(values)
                line = torch.nan_to_num(values.to(table.dtype))[..., None] * table[1] + table[2]
                total = total + torch.where(known[..., None], line, table[0])
        return total

    def embed(self, context: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Return (..., T, d): the vector of all fields together; arguments as of `add_up`."""
        total = self.add_up(context, like)
        found: Tensor = total + self.contract(F.gelu(self.expand(total)))
        return found

    def forward(self, met: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Let the context meet what else is known.

        Args:
            met: (..., T, d): items of the history, or the history up to each position.
            context: name -> (..., T) of the same items, or of what comes after each position.

        Returns:
            (..., T, d).
        """
        situation = self.embed(context, met)
        if self.gate is None or self.factor is None:
            return situation
        gate = torch.sigmoid(self.gate(torch.cat([met, situation], dim=-1)))
        meeting: Tensor = gate * met * (1 + self.factor(situation)) + (1 - gate) * situation
        return meeting
