"""Taste that depends on the context: which classes and items a group of users wants at a time of day, on a device."""

from __future__ import annotations

import numpy as np

from fedrec.data.synthetic.config import SyntheticConfig
from fedrec.data.synthetic.items import make_items
from fedrec.data.synthetic.people import DAYTIMES, DEVICES
from fedrec.randomness import Key

NUM_CONTEXTS = len(DAYTIMES) * len(DEVICES)


def user_groups(config: SyntheticConfig, key: Key, users: np.ndarray) -> np.ndarray:
    """Return (B,) int64: the group of each user, drawn uniformly; groups differ in what they want in a context.

    Args:
        config: the world.
        key: its randomness.
        users: (B,) uint64 user numbers.
    """
    if config.num_groups == 1:
        return np.zeros(len(users), dtype=np.int64)
    draws = key.fold("groups").user_uniforms(users)[:, 0]
    return np.asarray((draws * config.num_groups).astype(np.int64))


def class_weights(config: SyntheticConfig, key: Key) -> np.ndarray:
    """Return (groups, daytimes, devices, num_classes) float64: how much each class is wanted, not yet adding up to 1.

    For each group a class belongs to one time of day and one device; a context wants the classes of its time of day,
    those of its device four times as often.
    """
    weights = np.zeros((config.num_groups, len(DAYTIMES), len(DEVICES), config.num_classes))
    for group in range(config.num_groups):
        purpose = key.fold("context-classes", group) if group else key.fold("context-classes")
        order = np.argsort(purpose.uniforms(config.num_classes))
        daytime, device = order % len(DAYTIMES), order // len(DAYTIMES) % len(DEVICES)
        weights[group] += daytime == np.arange(len(DAYTIMES))[:, None, None]
        weights[group] *= 1.0 + 3.0 * (device == np.arange(len(DEVICES))[:, None])
    weights += (weights.sum(axis=-1, keepdims=True) == 0) * 1.0
    return weights


def planted_preference(config: SyntheticConfig, key: Key) -> np.ndarray:
    """Return the truth of how context moves taste.

    Returns:
        (groups, daytimes, devices, num_items) float64: how likely a choice that follows the context is each item, for
        users who have not met any; adds up to 1. `context_share` of all choices are such ones.
    """
    items = make_items(config, key)
    popularity = np.empty(config.num_items)
    popularity[items.by_class] = np.diff(items.within_class, prepend=0.0)  # 1 a class
    weights = class_weights(config, key)
    shares = weights / weights.sum(axis=-1, keepdims=True)
    return np.asarray(shares[..., items.classes] * popularity)
