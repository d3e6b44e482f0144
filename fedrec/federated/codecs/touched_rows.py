"""Touched rows: send the rows of a table that hold anything, and which they are; lossless."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedrec.errors import ProtocolError
from fedrec.federated.codecs.stage import Shape, Spec, length
from fedrec.randomness import Key


class TouchedRows:
    """Rows of zeros are left out.

        table (M, d)  ->  rows (R,) int32, strictly ascending;  values (R, d), R <= M

    A gain where a node's users met few of the items: R / M of the bytes and 4 bytes a row.

    Privacy:
        Decoding gives the very sum that was encoded, but the message's *length* tells how many items a node's users
        met, to everybody who sees the traffic: refused for uploads under a privacy plan.
    """

    name = "touched_rows"
    passed_on = ("values",)

    def applies(self, dtype: torch.dtype, shape: Shape) -> bool:
        """Tell whether it is a table of floating-point rows."""
        return dtype.is_floating_point and len(shape) == 2

    def parts(self, dtype: torch.dtype, shape: Shape) -> Spec:
        """Return rows and values, of at most all rows."""
        num_rows, width = shape
        some = range(length(num_rows) + 1)
        return {"rows": (torch.int32, (some,)), "values": (dtype, (some, width))}

    def encode(self, tensor: Tensor, shape: Shape, key: Key) -> dict[str, Tensor]:
        """Return the rows that are not all zero."""
        rows = torch.nonzero(tensor.any(dim=1))[:, 0]
        return {"rows": rows.to(torch.int32), "values": tensor[rows]}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, shape: Shape) -> Tensor:
        """Put the rows back among zeros.

        Raises:
            ProtocolError: where row numbers are not strictly ascending or out of range, or not one a row of values.
        """
        rows, values = parts["rows"].long(), parts["values"]
        if len(rows) != len(values):
            raise ProtocolError(f"{len(rows)} row numbers stand beside {len(values)} rows; there must be one for each")
        num_rows = length(shape[0])
        if len(rows) and (int(rows[0]) < 0 or int(rows[-1]) >= num_rows or bool((rows[1:] <= rows[:-1]).any())):
            raise ProtocolError(f"row numbers must be strictly ascending from 0 and below {num_rows}; they are not")
        table = torch.zeros(num_rows, *values.shape[1:], dtype=dtype)
        table[rows] = values.to(dtype)
        return table
