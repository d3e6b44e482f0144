"""The context tower: what the situation in which a list is asked for says - time of day, place, device, companion."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ContextTower(nn.Module):
    """A vector for each context: the sum of one vector a field, through a gate with the history.

    Categorical fields hold codes from 0; -1, or any code that the field does not have, is an unknown value, which has a
    vector of its own. Numeric fields hold float32 values, NaN where unknown.

        c = sum over fields of (vector of the code, or value x direction + offset, or the field's vector of unknown)
        g = z * h + (1 - z) * c,   z = sigmoid(W [h, c] + b)     where there is a history tower; else g = c

    Args:
        fields: name -> number of values of a categorical field, 0 for a numeric one.
        dim: d.
        gated: whether there is a history to meet.
    """

    def __init__(self, fields: Mapping[str, int], dim: int, gated: bool) -> None:
        """Make one parameter a field, named by its place: tables (row 0 is the unknown value), or lines of numbers."""
        super().__init__()
        self.fields = dict(fields)
        places = {str(place): num for place, num in enumerate(self.fields.values())}
        self.tables = nn.ParameterDict({place: torch.empty(1 + num, dim) for place, num in places.items() if num})
        self.lines = nn.ParameterDict({place: torch.empty(3, dim) for place, num in places.items() if not num})
        self.gate = nn.Linear(2 * dim, dim) if gated else None

    def embed(self, context: Mapping[str, Tensor], like: Tensor) -> Tensor:
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

    def forward(self, history: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Let history and context meet.

        Args:
            history: (..., T, d).
            context: name -> (..., T) of what comes after each position.

        Returns:
            (..., T, d).
        """
        situation = self.embed(context, history)
        if self.gate is None:
            return situation
        gate = torch.sigmoid(self.gate(torch.cat([history, situation], dim=-1)))
        return gate * history + (1 - gate) * situation
