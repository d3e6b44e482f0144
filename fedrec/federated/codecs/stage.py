"""What a stage of the payload codec is, and how the shapes of what it sends are written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from fedrec.randomness import Key

Shape = tuple[int | range, ...]
"""A shape; a range stands for a dimension that depends on the data, and holds every length that is allowed."""

Spec = Mapping[str, tuple[torch.dtype, Shape]]
"""Name -> dtype and shape."""


class Stage(Protocol):
    """One way to say a tensor in fewer bytes.

    Which tensors a stage applies to, and what it makes of them, follows from public numbers (dtype and greatest shape)
    alone, so that sender and receiver agree on every name, dtype and greatest length before anything is sent.
    """

    @property
    def name(self) -> str:
        """The stage's name in a config."""
        ...

    @property
    def passed_on(self) -> tuple[str, ...]:
        """Names of the parts that later stages may say in fewer bytes still."""
        ...

    def applies(self, dtype: torch.dtype, shape: Shape) -> bool:
        """Tell whether tensors of this kind are changed at all."""
        ...

    def parts(self, dtype: torch.dtype, shape: Shape) -> Spec:
        """Return the parts that a tensor of this kind becomes."""
        ...

    def encode(self, tensor: Tensor, shape: Shape, key: Key) -> dict[str, Tensor]:
        """Return the parts of a finite tensor of an allowed shape; whatever is drawn follows from the key."""
        ...

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, shape: Shape) -> Tensor:
        """Return the tensor that parts of the right names, dtypes and greatest shapes stand for.

        Raises:
            ProtocolError: where the parts contradict each other or hold a value that no encoder sends.
        """
        ...


def length(side: int | range) -> int:
    """Return the greatest length of one dimension."""
    return side if isinstance(side, int) else side[-1]


def greatest(shape: Shape) -> tuple[int, ...]:
    """Return the greatest allowed shape."""
    return tuple(length(side) for side in shape)
