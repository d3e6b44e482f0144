"""The rating tower: what a device's own ratings say of its user, where scores are ratings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SHRINKAGE = 5.0
"""Where the number of ratings that a user's bias is worth as much as starts; it is learned."""


class RatingTower(nn.Module):
    """Surprises: how much higher than others the user rated each item, s_j = r_j - offset - b_j.

        level at position t   = offset + sum_{j before t} s_j / (t + shrinkage)       mean rating, and the user's bias
        history tower reads   e_j + s_j (v + w * e_j)                                 instead of e_j

    The bias is solved on the device, from the ratings before each position and nothing else.

    Source:
        Koren, Factorization Meets the Neighborhood, 2008, eq. 1-3 (baselines) and 6 (ratings of the history).
    """

    def __init__(self, dim: int, reads: bool) -> None:
        """Make offset and shrinkage, and, where there is a history tower to read it, what a surprise does."""
        super().__init__()
        self.offset, self.shrinkage = nn.Parameter(torch.empty(1, 1)), nn.Parameter(torch.empty(1, 1))
        self.lines = nn.Parameter(torch.empty(2, dim)) if reads else None

    def surprises(self, ratings: Tensor, biases: Tensor) -> Tensor:
        """Return the (..., T) surprises of items met; 0 at position 0, the empty start.

        Args:
            ratings: (..., T) of the item at each position; anything at position 0.
            biases: (..., T) of these items.
        """
        found = ratings - self.offset[0] - biases  # (1,), not (), which would leave it in the type of the ratings
        return torch.cat([torch.zeros_like(found[..., :1]), found[..., 1:]], dim=-1)

    def levels(self, ratings: Tensor, biases: Tensor) -> Tensor:
        """Return (..., T): what all scores at a position have in common; arguments as of `surprises`."""
        known = torch.arange(ratings.shape[-1], device=ratings.device)
        shrinkage = _SHRINKAGE * torch.exp(self.shrinkage[0])
        return self.offset[0] + self.surprises(ratings, biases).cumsum(dim=-1) / (known + shrinkage)

    def read(self, items: Tensor, ratings: Tensor, biases: Tensor) -> Tensor:
        """Return (..., T, d) item vectors that say how they were liked; further arguments as of `surprises`."""
        if self.lines is None:
            return items
        return items + self.surprises(ratings, biases)[..., None] * (self.lines[0] + self.lines[1] * items)
