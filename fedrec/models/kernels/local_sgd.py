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
    groups: np.ndarray,
) -> None:
    """Lay out the examples of users start..stop: per epoch the positives in random order, each with its negatives.

    A negative is uniform over the items that the user has not met: drawn from all and drawn again where met, or drawn
    from a list of the unmet where they are few.

    Args:
        start: first user.
        stop: one past the last.
        items: (B, L) histories.
        lengths: (B,) their lengths n.
        words: (B, >= epochs x n x (1 + num_negatives)) uint32 random words; a user uses the first of them.
        num_items: M.
        num_negatives: negatives for each positive; none for a user who has met all items.
        num_epochs: epochs.
        rows: (B, m) result: the distinct items touched, the user's own first.
        num_rows: (B,) result: how many.
        slots: (B, E) int32 result: for each example the position of its item in `rows`.
        num_examples: (B,) result: how many.
        groups: (B,) result: every `groups[user]`-th example is a positive.
    """
    seen = np.full(num_items, -1, np.int64)  # user x 2^32 + slot of whoever met the item last
    order = np.empty(items.shape[1], np.int64)
    for user in range(start, stop):
        num, mark = lengths[user], np.int64(user) << 32
        num_met = 0
        for k in range(num):
            item = items[user, k]
            if seen[item] < mark:
                seen[item] = mark + num_met
                rows[user, num_met] = item
                num_met += 1
        groups[user] = 1 + (num_negatives if num_met < num_items else 0)
        num_examples[user] = num_epochs * num * groups[user]
        num_rows[user] = _lay_out(
            items[user, :num],
            words[user],
            groups[user],
            mark,
            num_met,
            seen,
            order,
            rows[user],
            slots[user, : num_examples[user]],
        )


@njit(**OPTIONS)
def _lay_out(
    items: np.ndarray,
    words: np.ndarray,
    group: int,
    mark: int,
    num_met: int,
    seen: np.ndarray,
    order: np.ndarray,
    rows: np.ndarray,
    slots: np.ndarray,
) -> int:
    """Fill the slots of one user, whose own items have the first `num_met`; return how many rows are touched."""
    num, num_items = len(items), len(seen)
    unmet = np.arange(0)
    if num_items < 4 * num_met:  # too few are unmet to find them by trying
        unmet = np.flatnonzero(seen < mark)
    touched, example, word = num_met, 0, 0
    while example < len(slots):
        _shuffle(order, num, words[word : word + num])
        word += num
        for k in range(num):
            slots[example] = seen[items[order[k]]] - mark
            example += 1
            for _ in range(group - 1):
                draw = words[word]
                word += 1
                if len(unmet):
                    item = unmet[_scaled(draw, len(unmet))]
                else:
                    item, tries = _scaled(draw, num_items), 0
                    while mark <= seen[item] < mark + num_met:
                        tries += 1
                        item = _scaled(_other_word(draw, tries), num_items)
                if seen[item] < mark:
                    seen[item] = mark + touched
                    rows[touched] = item
                    touched += 1
                slots[example] = seen[item] - mark
                example += 1
    return touched


@njit(**OPTIONS)
def _shuffle(order: np.ndarray, num: int, words: np.ndarray) -> None:
    """Fill the first `num` of `order` with a random permutation (Fisher and Yates)."""
    for k in range(num):
        order[k] = k
    for k in range(num - 1, 0, -1):
        other = _scaled(words[k], k + 1)
        order[k], order[other] = order[other], order[k]


@njit(**OPTIONS)
def _scaled(word: int, num: int) -> np.int64:
    """Turn a random uint32 into a whole number in 0..num - 1, by multiply and shift."""
    return np.int64((np.uint64(word) * np.uint64(num)) >> np.uint64(32))


@njit(**OPTIONS)
def _other_word(word: int, tries: int) -> np.uint32:
    """Return the uint32 of the next try: a Weyl sequence from `word`, through the finaliser of MurmurHash3.

    The sequence visits every uint32 before one comes again, and the finaliser is one to one: no word tries the same
    few items for ever.
    """
    mixed = (np.uint64(word) + np.uint64(tries) * np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF)
    mixed = ((mixed ^ (mixed >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & np.uint64(0xFFFFFFFF)
    mixed = ((mixed ^ (mixed >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & np.uint64(0xFFFFFFFF)
    return np.uint32(mixed ^ (mixed >> np.uint64(16)))


@njit(**OPTIONS)
def train_users(
    start: int,
    stop: int,
    items: np.ndarray,
    rows: np.ndarray,
    num_rows: np.ndarray,
    slots: np.ndarray,
    num_examples: np.ndarray,
    groups: np.ndarray,
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
        groups: (B,) every `groups[user]`-th example is a positive, the others are negatives.
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
        vector, delta, row, group = vectors[user], deltas[user], rows[user], groups[user]
        delta[: num_rows[user]] = 0
        for first in range(0, num_examples[user], batch_size):
            slot = slots[user, first : min(first + batch_size, num_examples[user])]
            error = errors[: len(slot)]
            _score(vector, items, row, delta, slot, error)
            for k in range(len(slot)):
                score = error[k]
                if logistic:
                    score = one / (one + np.exp(-score))
                error[k] = score - one if (first + k) % group == 0 else negative_weight * score
            gradient[:] = 0
            _add_gradient(error, items, row, delta, slot, gradient)
            for k in range(len(slot)):
                moved, step = delta[slot[k]], learning_rate * error[k]
                for j in range(dim):
                    moved[j] -= step * vector[j]
            for j in range(dim):
                vector[j] -= learning_rate * gradient[j]


@njit(**OPTIONS)
def _score(
    vector: np.ndarray, items: np.ndarray, row: np.ndarray, delta: np.ndarray, slot: np.ndarray, out: np.ndarray
) -> None:
    """Write <vector, item + delta> of every example of a batch, four at a time: that fills the registers."""
    dim, k = len(vector), 0
    while k + 4 <= len(slot):
        s0, s1, s2, s3 = slot[k], slot[k + 1], slot[k + 2], slot[k + 3]
        a, b, c, e = items[row[s0]], items[row[s1]], items[row[s2]], items[row[s3]]
        da, db, dc, de = delta[s0], delta[s1], delta[s2], delta[s3]
        ta, tb, tc, te = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for j in range(dim):
            v = vector[j]
            ta += v * (a[j] + da[j])
            tb += v * (b[j] + db[j])
            tc += v * (c[j] + dc[j])
            te += v * (e[j] + de[j])
        out[k], out[k + 1], out[k + 2], out[k + 3] = ta, tb, tc, te
        k += 4
    while k < len(slot):
        a, da, ta = items[row[slot[k]]], delta[slot[k]], np.float32(0)
        for j in range(dim):
            ta += vector[j] * (a[j] + da[j])
        out[k] = ta
        k += 1


@njit(**OPTIONS)
def _add_gradient(
    error: np.ndarray, items: np.ndarray, row: np.ndarray, delta: np.ndarray, slot: np.ndarray, gradient: np.ndarray
) -> None:
    """Add sum of error x (item + delta) over the examples of a batch to `gradient`, four at a time."""
    dim, k = len(gradient), 0
    while k + 4 <= len(slot):
        s0, s1, s2, s3 = slot[k], slot[k + 1], slot[k + 2], slot[k + 3]
        a, b, c, e = items[row[s0]], items[row[s1]], items[row[s2]], items[row[s3]]
        da, db, dc, de = delta[s0], delta[s1], delta[s2], delta[s3]
        fa, fb, fc, fe = error[k], error[k + 1], error[k + 2], error[k + 3]
        for j in range(dim):
            gradient[j] += fa * (a[j] + da[j]) + fb * (b[j] + db[j]) + fc * (c[j] + dc[j]) + fe * (e[j] + de[j])
        k += 4
    while k < len(slot):
        a, da, fa = items[row[slot[k]]], delta[slot[k]], error[k]
        for j in range(dim):
            gradient[j] += fa * (a[j] + da[j])
        k += 1
