"""Local SGD of matrix factorisation: draw every user's examples, and train on them, one user after the other."""

from __future__ import annotations

import numpy as np
from numba import njit

from fedrec.compiled import OPTIONS


@njit(**OPTIONS)
def draw_examples(
    start: int,
    stop: int,
    items: np.ndarray,
    lengths: np.ndarray,
    words: np.ndarray,
    num_items: int,
    num_negatives: int,
    num_epochs: int,
    rows: np.ndarray,
    num_rows: np.ndarray,
    slots: np.ndarray,
    num_examples: np.ndarray,
) -> None:
    """Lay out the examples of users start..stop: per epoch the positives in random order, each with its negatives.

    A negative is uniform over the items that the user has not met: the r-th of them, r drawn by multiply and shift.

    Args:
        start: first user.
        stop: one past the last.
        items: (B, L) histories.
        lengths: (B,) their lengths n.
        words: (B, >= epochs x n x (1 + num_negatives)) uint32 random words; a user uses the first of them.
        num_items: M.
        num_negatives: negatives for each positive; none for a user who has met all items.
        num_epochs: epochs.
        rows: (B, m) result: the distinct items touched, in the order they are met.
        num_rows: (B,) result: how many.
        slots: (B, E) int32 result: for each example the position of its item in `rows`.
        num_examples: (B,) result: how many.
    """
    owner = np.full(num_items, -1, np.int64)
    slot_of = np.empty(num_items, np.int32)
    sorted_items = np.empty(items.shape[1], np.int64)
    order = np.empty(items.shape[1], np.int64)
    for user in range(start, stop):
        num = lengths[user]
        known = _distinct(items[user, :num], sorted_items)
        free = num_items - known
        touched, example, word = 0, 0, 0
        for _ in range(num_epochs):
            _shuffle(order, num, words[user, word : word + num])
            word += num
            for k in range(num):
                item = items[user, order[k]]
                for negative in range(1 + (num_negatives if free > 0 else 0)):
                    if negative > 0:
                        drawn = (np.uint64(words[user, word]) * np.uint64(free)) >> np.uint64(32)
                        item = _unmet(np.int64(drawn), sorted_items, known)
                        word += 1
                    if owner[item] != user:
                        owner[item] = user
                        slot_of[item] = touched
                        rows[user, touched] = item
                        touched += 1
                    slots[user, example] = slot_of[item]
                    example += 1
        num_rows[user] = touched
        num_examples[user] = example


@njit(**OPTIONS)
def _distinct(items: np.ndarray, out: np.ndarray) -> int:
    """Write the distinct items in ascending order to `out`; return how many."""
    ordered = np.sort(items)
    num = 0
    for k in range(len(ordered)):
        if k == 0 or ordered[k] != ordered[k - 1]:
            out[num] = ordered[k]
            num += 1
    return num


@njit(**OPTIONS)
def _shuffle(order: np.ndarray, num: int, words: np.ndarray) -> None:
    """Fill the first `num` of `order` with a random permutation (Fisher and Yates)."""
    for k in range(num):
        order[k] = k
    for k in range(num - 1, 0, -1):
        other = np.int64((np.uint64(words[k]) * np.uint64(k + 1)) >> np.uint64(32))
        order[k], order[other] = order[other], order[k]


@njit(**OPTIONS)
def _unmet(number: int, met: np.ndarray, num_met: int) -> int:
    """Return the `number`-th item, from 0, that is not among the ascending `met[:num_met]`."""
    low, high = 0, num_met
    while low < high:
        middle = (low + high) >> 1
        if met[middle] - middle <= number:
            low = middle + 1
        else:
            high = middle
    return number + low


@njit(**OPTIONS)
def train_users(
    start: int,
    stop: int,
    items: np.ndarray,
    rows: np.ndarray,
    num_rows: np.ndarray,
    slots: np.ndarray,
    num_examples: np.ndarray,
    group: int,
    batch_size: int,
    learning_rate: float,
    negative_weight: float,
    logistic: bool,
    vectors: np.ndarray,
    deltas: np.ndarray,
) -> None:
    """Run SGD on the vector of each user and on copies of the item rows it touches, for users start..stop.

    Within a batch all gradients are taken at the batch's start, and summed.

    Args:
        start: first user.
        stop: one past the last.
        items: (M, d) float32 item vectors; left as they are.
        rows: (B, m) from `draw_examples`.
        num_rows: (B,).
        slots: (B, E).
        num_examples: (B,).
        group: every `group`-th example is a positive, the others are negatives.
        batch_size: examples of a step.
        learning_rate: float32.
        negative_weight: float32 weight of a negative example.
        logistic: logistic loss, else half the squared error against targets 1 and 0.
        vectors: (B, d) float32 user vectors, changed in place.
        deltas: (B, m, d) float32 result: how far each touched row moved; not written beyond `num_rows`.
    """
    dim = items.shape[1]
    one = np.float32(1)
    errors = np.empty(batch_size, np.float32)
    gradient = np.empty(dim, np.float32)
    for user in range(start, stop):
        vector, delta, row, slot = vectors[user], deltas[user], rows[user], slots[user]
        for k in range(num_rows[user]):
            moved = delta[k]
            for j in range(dim):
                moved[j] = 0
        for first in range(0, num_examples[user], batch_size):
            size = min(batch_size, num_examples[user] - first)
            gradient[:] = 0
            for k in range(size):
                item, moved = items[row[slot[first + k]]], delta[slot[first + k]]
                score = np.float32(0)
                for j in range(dim):
                    score += vector[j] * (item[j] + moved[j])
                if logistic:
                    score = one / (one + np.exp(-score))
                error = score - one if (first + k) % group == 0 else negative_weight * score
                errors[k] = error
                for j in range(dim):
                    gradient[j] += error * (item[j] + moved[j])
            for k in range(size):
                moved, step = delta[slot[first + k]], learning_rate * errors[k]
                for j in range(dim):
                    moved[j] -= step * vector[j]
            for j in range(dim):
                vector[j] -= learning_rate * gradient[j]
