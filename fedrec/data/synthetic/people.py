"""The user side of the synthetic world: how active users are, when they come, and what they are interested in."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from fedrec.data.synthetic.config import MIN_INTERACTIONS, SyntheticConfig
from fedrec.data.synthetic.items import Items
from fedrec.randomness import Key

FIRST_SECOND = 1_672_531_200  # 2023-01-01
SECONDS = 731 * 86_400  # two years
YEAR = 365.25 * 86_400
DAYTIMES = ("night", "morning", "afternoon", "evening")
DEVICES = ("phone", "tablet", "desktop")

_DAYTIME_ENDS = (0.0, 0.08, 0.30, 0.60, 1.0)  # shares of the sessions up to 0, 6, 12, 18 and 24 hours
_NEW_SESSION = 0.25
_MAIN_DEVICE = 0.7
_NEIGHBOUR = 0.5
_SLOT_BITS = 20


@dataclass(frozen=True, eq=False)
class Visits:
    """When B users meet their n items, before it is known which.

    Args:
        starts: (B + 1,) int64 row at which each user's slots start.
        users: (n,) int64 position of the user among the B.
        keys: (n,) uint64 what the randomness of each slot follows from.
        times: (n,) int64 unix seconds.
        daytimes: (n,) int64 code into `DAYTIMES`.
        devices: (n,) int64 code into `DEVICES`.
    """

    starts: np.ndarray
    users: np.ndarray
    keys: np.ndarray
    times: np.ndarray
    daytimes: np.ndarray
    devices: np.ndarray


def num_interactions(config: SyntheticConfig, key: Key, users: np.ndarray) -> np.ndarray:
    """Return (B,) int64: how many items each user meets."""
    draws = key.fold("activity").user_uniforms(users, 2)
    normal = np.sqrt(-2.0 * np.log1p(-draws[:, 0])) * np.cos(2.0 * np.pi * draws[:, 1])
    return _activity(config, _activity_location(config), normal)


def _activity(config: SyntheticConfig, location: float, normal: np.ndarray) -> np.ndarray:
    counts = np.rint(np.exp(location + config.activity_spread * normal))
    return np.clip(counts, MIN_INTERACTIONS, config.max_interactions).astype(np.int64)


def _activity_location(config: SyntheticConfig) -> float:
    """Find the location of the log-normal whose clipped mean is `mean_interactions`, by bisection on its quantiles."""
    normal = np.array([NormalDist().inv_cdf((i + 0.5) / 2000) for i in range(2000)])
    low, high = -5.0, float(np.log(config.max_interactions)) + 5.0
    for _ in range(50):
        middle = (low + high) / 2
        too_few = _activity(config, middle, normal).mean() < config.mean_interactions
        low, high = (middle, high) if too_few else (low, middle)
    return high


def make_visits(config: SyntheticConfig, key: Key, users: np.ndarray) -> Visits:
    """Draw the sessions of users: when they come, with which device, and how many items they meet each time.

    Args:
        config: the world.
        key: its randomness.
        users: (B,) uint64 user numbers.
    """
    counts = num_interactions(config, key, users)
    starts = np.concatenate([[0], np.cumsum(counts)])
    position = np.repeat(np.arange(len(users)), counts)
    slots = np.arange(starts[-1]) - starts[position]
    keys = (users[position] << np.uint64(_SLOT_BITS)) + slots.astype(np.uint64)
    draws = key.fold("slots").user_uniforms(keys, 2)
    first = (slots == 0) | (draws[:, 0] < _NEW_SESSION)
    opening = np.flatnonzero(first)
    session = np.cumsum(first) - 1
    session_times, devices = _sessions(key, users, position[opening], keys[opening])
    within = np.arange(len(slots)) - opening[session]
    times = session_times[session] + (within * 180.0 + draws[:, 1] * 120.0).astype(np.int64)
    return Visits(starts, position, keys, times, times % 86_400 // 21_600, devices[session])


def _sessions(key: Key, users: np.ndarray, position: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (S,) start in unix seconds and (S,) device of the sessions of all users, in order.

    Args:
        key: randomness.
        users: (B,) uint64 user numbers.
        position: (S,) the user of each session, ascending.
        keys: (S,) uint64 what the randomness of each session follows from.
    """
    of_user = key.fold("users").user_uniforms(users, 3)
    of_session = key.fold("sessions").user_uniforms(keys, 3)
    gaps = -np.log1p(-of_session[:, 0])
    first = np.searchsorted(position, np.arange(len(users)))
    total = np.add.reduceat(gaps, first)
    passed = _cumulative(gaps, first, position) / total[position]
    arrival = of_user[:, 0] * 0.6
    span = (1.0 - arrival) * (0.3 + 0.7 * of_user[:, 1])
    days = (arrival[position] + span[position] * passed) * (SECONDS / 86_400)
    hours = np.interp(days % 1.0, _DAYTIME_ENDS, (0, 6, 12, 18, 24))
    times = FIRST_SECOND + np.floor(days).astype(np.int64) * 86_400 + (hours * 3600).astype(np.int64)
    main = (of_user[:, 2] * len(DEVICES)).astype(np.int64)
    other = (of_session[:, 2] * len(DEVICES)).astype(np.int64)
    return times, np.where(of_session[:, 1] < _MAIN_DEVICE, main[position], other)


def _cumulative(values: np.ndarray, first: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return running sums that restart at each user, added up in an order that does not depend on the other users."""
    counts = np.diff([*first, len(values)])
    width = int(counts.max(initial=0))
    padded = np.zeros((len(first), width))
    column = np.arange(len(values)) - first[position]
    padded[position, column] = values
    return np.asarray(np.cumsum(padded, axis=1)[position, column])


def interests(config: SyntheticConfig, key: Key, items: Items, users: np.ndarray) -> np.ndarray:
    """Return (B, J) int64 classes: the interests that a user goes through, one after the other.

    Each is either a neighbour of the one before (classes stand in a ring) or drawn by how popular classes are.
    """
    num = int(np.ceil(1 + config.drift * SECONDS / YEAR)) + config.num_interests + 1
    draws = key.fold("interests").user_uniforms(users, 2 * num)
    fresh = np.searchsorted(items.class_popularity, draws[:, :num], side="right")
    fresh = np.minimum(fresh, config.num_classes - 1)
    chosen = fresh.copy()
    for j in range(1, num):
        which = draws[:, num + j]
        step = np.where(which < _NEIGHBOUR / 2, 1, -1)
        chosen[:, j] = np.where(which < _NEIGHBOUR, (chosen[:, j - 1] + step) % config.num_classes, fresh[:, j])
    return chosen
