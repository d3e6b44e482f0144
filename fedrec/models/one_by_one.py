"""Users one by one: what a user adds to a sum is worked out with nobody else in sight."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedrec.models.blocks import Block, Contributions, Dense, RowSparse


def one_by_one(num_users: int, contribute: Callable[[int], Contributions]) -> Contributions:
    """Return the contributions of B users, each computed alone and without padding.

    A matrix product, or a reduction, rounds as its shapes and strides have it: in a batch, and padded, a user's numbers
    would round as the others' number and lengths have it. Where parameters are huge, a difference of two scores can be
    nothing but rounding, and a user's clipped part anything. Alone, it is a function of the user.

    Args:
        num_users: B, at least one.
        contribute: from a user's place in the batch to blocks of that user alone, `Dense` or `RowSparse`, of the same
            names for all. It must not read what others, or padding, have a part in: see `Windows.alone`.

    Privacy:
        On a CPU a user's part depends on that user's data and key and on the shared parameters alone, to the last bit.
    """
    parts = [contribute(user) for user in range(num_users)]
    return {name: _together([part[name] for part in parts]) for name in parts[0]}


def _together(blocks: Sequence[Block]) -> Block:
    """Put blocks of one user each into one; rows that others have more of are padded and do not count."""
    dense = [block.values for block in blocks if isinstance(block, Dense)]
    if dense:
        return Dense(torch.cat(dense))
    sparse = [block for block in blocks if isinstance(block, RowSparse)]
    masks = [torch.ones_like(block.ids, dtype=torch.bool) if block.mask is None else block.mask for block in sparse]
    return RowSparse(
        _padded([block.ids for block in sparse]),
        _padded([block.values for block in sparse]),
        _padded(masks),
    )


def _padded(parts: Sequence[Tensor]) -> Tensor:
    return pad_sequence([part[0] for part in parts], batch_first=True)
