"""Windows: the part of each history that a sequence model looks at, as inputs and the items that come next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.errors import ConfigError
from fedrec.randomness import Key

_WORDS_A_CROP = 2


@dataclass(frozen=True, eq=False)
class Windows:
    """Parts of B histories, oldest first, each read from an empty start: position t follows t interactions.

    Args:
        items: (B, T) int64, what was met at position t - 1 of the window; anything at position 0.
        lengths: (B,) int64 positions that count, at least 1; T is the largest. What is behind them repeats the last
            one, so that padding has nothing to do with items, or values of context, that the user never met.
        targets: (B, T) int64, the item met after position t; anything where there is none.
        mask: (B, T) bool, True where there is a target.
        gaps: (B, T) int64 seconds between the items of positions t and t - 1; None where times are unknown.
        context: name -> (B, T), the context of what comes after position t.
        past: name -> (B, T), the context of the item at position t.
        ratings: (B, T) float32 of the targets, or None.
        past_ratings: (B, T) float32 of the item at each position, or None.
    """

    items: Tensor
    lengths: Tensor
    targets: Tensor
    mask: Tensor
    gaps: Tensor | None = None
    context: Mapping[str, Tensor] = field(default_factory=dict)
    past: Mapping[str, Tensor] = field(default_factory=dict)
    ratings: Tensor | None = None
    past_ratings: Tensor | None = None

    def of(self, users: Tensor) -> Windows:
        """Return the windows of some users; (B,) bool."""
        return Windows(
            self.items[users],
            self.lengths[users],
            self.targets[users],
            self.mask[users],
            None if self.gaps is None else self.gaps[users],
            {name: column[users] for name, column in self.context.items()},
            {name: column[users] for name, column in self.past.items()},
            None if self.ratings is None else self.ratings[users],
            None if self.past_ratings is None else self.past_ratings[users],
        )

    def alone(self, user: int) -> Windows:
        """Return the windows of one user, without padding, in memory of their own: nothing tells of the others."""
        one, width = slice(user, user + 1), int(self.lengths[user])

        def cut(column: Tensor) -> Tensor:
            return own_copy(column[one, :width])

        return Windows(
            cut(self.items),
            own_copy(self.lengths[one]),
            cut(self.targets),
            cut(self.mask),
            None if self.gaps is None else cut(self.gaps),
            {name: cut(column) for name, column in self.context.items()},
            {name: cut(column) for name, column in self.past.items()},
            None if self.ratings is None else cut(self.ratings),
            None if self.past_ratings is None else cut(self.past_ratings),
        )


def own_copy(values: Tensor) -> Tensor:
    """Return a copy whose place in memory and strides tell nothing of the tensor that it was a part of."""
    return values.clone(memory_format=torch.contiguous_format)


def training_windows(users: UserBatch, window: int, crop_probability: float, key: Key) -> Windows:
    """Cut a segment of at most `window` + 1 interactions out of each history: each is a target, all but one are inputs.

    A history that is longer ends, with `crop_probability`, at a uniformly drawn interaction; else at its last one.

    Args:
        users: B users, with keys where `crop_probability` is positive.
        window: interactions that a prediction may look at, at least 1.
        crop_probability: in [0, 1].
        key: of the round; draws follow from it and from the user's own key.

    Raises:
        ConfigError: where draws are needed and the batch was made without user keys.
    """
    lengths = users.lengths
    ends = lengths
    if crop_probability:
        if users.keys is None:
            raise ConfigError("windows are drawn, but the batch has no user keys; pass keys to user_batches")
        words = key.fold("windows").user_words(users.keys, _WORDS_A_CROP)[:, :_WORDS_A_CROP].astype(np.float64)
        draws = torch.from_numpy(words / 2**32).to(lengths.device)
        spare = (lengths - window).clamp(min=1)  # possible ends, the last one among them
        cropped = lengths - (draws[:, 1] * spare).to(torch.int64)
        ends = torch.where(draws[:, 0] < crop_probability, cropped, lengths)
    num = ends.clamp(max=window + 1)
    return _cut(users, ends - num, num, num)


def ranking_windows(users: UserBatch, window: int) -> Windows:
    """Return the last `window` interactions of each history; the position after them is the one to rank at.

    Args:
        users: B users; their `query` is the context that a list is wanted in.
        window: at least 1.
    """
    num = users.lengths.clamp(max=window)
    return _cut(users, users.lengths - num, num, None)


def _cut(users: UserBatch, starts: Tensor, num: Tensor, num_targets: Tensor | None) -> Windows:
    """Gather `num` interactions of each history from `starts` on; targets are the first `num_targets` of them."""
    lengths = num + 1 if num_targets is None else num.clamp(min=1)
    width = int(lengths.max()) if len(lengths) else 1
    positions = torch.arange(width, device=users.items.device)
    after = starts[:, None] + torch.minimum(positions, lengths[:, None] - 1)
    before = (after - 1).clamp(min=0)

    def take(column: Tensor, index: Tensor) -> Tensor:
        last = column.shape[1] - 1
        return column.gather(1, index.clamp(max=last)) if last >= 0 else column.new_zeros(index.shape)

    items, mask = take(users.items, before), positions < (num if num_targets is None else num_targets)[:, None]
    gaps = None
    if users.times is not None:
        times = take(users.times, before)
        gaps = torch.zeros_like(times)
        gaps[:, 2:] = (times[:, 2:] - times[:, 1:-1]).clamp(min=0)
    past = {name: take(column, before) for name, column in users.context.items()}
    known = None if users.ratings is None else take(users.ratings, before)
    if num_targets is None:
        asked = {name: column[:, None].expand(-1, width) for name, column in users.query.items()}
        return Windows(items, lengths, torch.zeros_like(items), torch.zeros_like(mask), gaps, asked, past, None, known)
    context = {name: take(column, after) for name, column in users.context.items()}
    ratings = None if users.ratings is None else take(users.ratings, after)
    return Windows(items, lengths, take(users.items, after), mask, gaps, context, past, ratings, known)
