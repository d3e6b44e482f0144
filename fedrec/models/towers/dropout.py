"""Dropout whose draws follow from each user's own key, so that they do not depend on batches, nodes or devices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedrec.errors import ConfigError
from fedrec.randomness import Key

_STEPS = 256  # a draw is one byte


class Dropout:
    """Zeroes activations by the next bytes of each position, and scales up what is left.

    Bytes belong to positions, so that what is drawn for one does not depend on how many are padded to.

    Args:
        draws: (..., T, n) uint8 with the leading dimensions of what is dropped; None to drop nothing.
        probability: in [0, 1), rounded to a multiple of 1/256, at most 255/256.
    """

    def __init__(self, draws: Tensor | None, probability: float) -> None:
        """Start at the first byte."""
        self._draws, self._used = draws, 0
        self._dropped = min(round(probability * _STEPS), _STEPS - 1)

    def __call__(self, values: Tensor) -> Tensor:
        """Return (..., T, k) values with some of them dropped; every call uses draws of its own."""
        if self._draws is None or not self._dropped:
            return values
        draws = self._draws.narrow(-1, self._used, values.shape[-1])
        self._used += values.shape[-1]
        kept = (draws >= self._dropped).to(values.dtype) * (_STEPS / (_STEPS - self._dropped))
        return values * kept


def dropout_draws(user_keys: np.ndarray | None, num_draws: int, key: Key) -> Tensor:
    """Draw (num_users, num_draws) uint8, on the CPU; the first draws of a user are the same whatever `num_draws` is.

    Args:
        user_keys: (num_users,) uint64.
        num_draws: for each user.
        key: of the round and purpose.

    Raises:
        ConfigError: where the batch was made without user keys.
    """
    if user_keys is None:
        raise ConfigError("dropout is drawn by user, but the batch has no user keys; pass keys to user_batches")
    words = key.fold("dropout").user_words(user_keys, (num_draws + 3) // 4)
    return torch.from_numpy(np.ascontiguousarray(words).view(np.uint8)[:, :num_draws].copy())
