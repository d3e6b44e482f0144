"""Local SGD: what is drawn, and that training is the plain loop, in both forms."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from fedrec.compiled import reference
from fedrec.data.batches import UserBatch, make_batch
from fedrec.errors import ConfigError, ProtocolError
from fedrec.models.kernels import local_sgd as kernels
from fedrec.models.local_sgd import Examples, LocalSgd, draw_examples, train_users
from fedrec.randomness import Key, user_keys
from tests.threads import num_threads
from tests.worlds import make

KEY = Key.from_seed(5)
HISTORIES = [[3], [], [0, 1, 2], [5, 5, 5, 2], list(range(9)), [11, 0, 7, 7, 1, 4], list(range(12)), [6, 8]]
NUM_ITEMS = 12


def batch_of(histories: list[list[int]], num_items: int, rows: list[int] | None = None) -> UserBatch:
    """Return the batch of some of the users whose histories these are."""
    pairs = [(user, item) for user, history in enumerate(histories) for item in history]
    interactions = make(pairs, len(histories), num_items)
    chosen = np.arange(len(histories)) if rows is None else np.array(rows, dtype=np.int64)
    return make_batch(interactions, chosen, user_keys(np.arange(len(histories))))


def drawn(examples: Examples, user: int) -> list[list[int]]:
    """Return the items of a user's examples: each positive with its negatives."""
    num, group = int(examples.num_examples[user]), int(examples.groups[user])
    slots = examples.slots[user, :num].to(torch.int64)
    assert num == 0 or int(slots.max()) < int(examples.num_rows[user])
    return examples.rows[user][slots].reshape(-1, group).tolist()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 8), max_size=12), max_size=5),
    st.integers(9, 60),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_each_epoch_has_every_positive_once_and_negatives_that_were_not_met(
    histories: list[list[int]], num_items: int, num_negatives: int, num_epochs: int, seed: int
) -> None:
    batch = batch_of(histories, num_items)
    examples = draw_examples(batch, num_items, num_negatives, num_epochs, Key.from_seed(seed))
    for user, history in enumerate(histories):
        groups = drawn(examples, user)
        assert len(groups) == num_epochs * len(history)
        for epoch in range(num_epochs):
            positives = [group[0] for group in groups[epoch * len(history) : (epoch + 1) * len(history)]]
            assert Counter(positives) == Counter(history)
        met = set(history)
        for group in groups:
            assert len(group) == 1 + (num_negatives if len(met) < num_items else 0)
            assert not met & set(group[1:]) and all(0 <= item < num_items for item in group)
        touched = examples.rows[user, : examples.num_rows[user]].tolist()
        assert len(touched) == len(set(touched)) and set(touched) == {item for group in groups for item in group}


def assert_uniform(counts: np.ndarray, num_cells: int) -> None:
    """Fail where counts over equally likely cells are off by more than one time in a million."""
    expected = counts.sum() / num_cells
    assert len(counts) == num_cells and expected > 50
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-6, num_cells - 1)


@pytest.mark.parametrize(
    ("met", "num_items"), [([0, 4, 9], 12), ([0, 4, 8, 9], 12), ([3], 4), ([3, 1], 5), ([0, 1, 2, 3, 4], 20)], ids=str
)
def test_negatives_are_uniform_over_what_was_not_met_and_independent(met: list[int], num_items: int) -> None:
    """By trying again where at least three of four items are unmet, by a list where fewer are."""
    histories = [met] * 20
    examples = draw_examples(batch_of(histories, num_items), num_items, 8, 100, KEY)
    groups = np.concatenate([drawn(examples, user) for user in range(20)])[:, 1:]
    unmet = [item for item in range(num_items) if item not in met]
    _, counts = np.unique(groups, return_counts=True)
    assert_uniform(counts, len(unmet))
    for left, right in ((0, 1), (2, 7)):
        _, pairs = np.unique(groups[:, left] * num_items + groups[:, right], return_counts=True)
        if len(groups) / len(unmet) ** 2 > 50:
            assert_uniform(pairs, len(unmet) ** 2)


def test_positives_come_in_a_uniform_order_drawn_anew_in_every_epoch() -> None:
    examples = draw_examples(batch_of([[2, 4, 6]] * 60, 30), 30, 1, 100, KEY)
    orders = np.concatenate([np.array(drawn(examples, user))[:, 0].reshape(-1, 3) for user in range(60)])
    assert_uniform(np.unique(orders @ [1, 10, 100], return_counts=True)[1], 6)
    pairs = orders[:-1:2] @ [1, 10, 100] * 1000 + orders[1::2] @ [1, 10, 100]
    assert_uniform(np.unique(pairs, return_counts=True)[1], 36)


def test_draws_follow_from_the_user_alone() -> None:
    """Not from the others of the batch, their order, the padding, or how many epochs will follow."""
    together = draw_examples(batch_of(HISTORIES, NUM_ITEMS), NUM_ITEMS, 3, 2, KEY)
    expected = [drawn(together, user) for user in range(len(HISTORIES))]
    for rows in ([4, 2, 0], [6], [1, 3], [7, 6, 5, 4, 3, 2, 1, 0], [1]):
        apart = draw_examples(batch_of(HISTORIES, NUM_ITEMS, rows), NUM_ITEMS, 3, 2, KEY)
        assert [drawn(apart, place) for place in range(len(rows))] == [expected[user] for user in rows]
    longer = draw_examples(batch_of(HISTORIES, NUM_ITEMS), NUM_ITEMS, 3, 7, KEY)
    for user, groups in enumerate(expected):
        assert drawn(longer, user)[: len(groups)] == groups


def test_draws_differ_between_rounds_and_users() -> None:
    batch = batch_of([[0, 1, 2, 3]] * 2, 1000)
    one, two = (draw_examples(batch, 1000, 4, 1, KEY.fold("round", number)) for number in (1, 2))
    assert drawn(one, 0) != drawn(two, 0) and drawn(one, 0) != drawn(one, 1)


def test_number_of_threads_does_not_change_a_draw() -> None:
    batch = batch_of(HISTORIES, NUM_ITEMS)
    found = []
    for threads in (1, 2, 3):
        with num_threads(threads):
            found.append(draw_examples(batch, NUM_ITEMS, 3, 2, KEY))
    assert all([drawn(f, u) for u in range(8)] == [drawn(found[0], u) for u in range(8)] for f in found)


def test_user_who_met_everything_has_positives_only() -> None:
    examples = draw_examples(batch_of([[0, 1, 2], [0]], 3), 3, 4, 2, KEY)
    assert examples.groups.tolist() == [1, 5] and examples.num_examples.tolist() == [6, 10]
    only = draw_examples(batch_of([[0, 0], []], 1), 1, 4, 3, KEY)
    assert drawn(only, 0) == [[0]] * 6 and drawn(only, 1) == []


def test_batches_without_users_or_interactions_have_no_examples() -> None:
    for batch in (batch_of([[], []], 4), batch_of([[0], [1]], 4, [])):
        examples = draw_examples(batch, 4, 2, 3, KEY)
        assert not examples.num_examples.any() and not examples.row_mask.any()
        vectors, deltas = train_users(torch.randn(4, 2), torch.ones(batch.num_users, 2), examples, SGD)
        assert torch.equal(vectors, torch.ones(batch.num_users, 2)) and deltas.shape[0] == batch.num_users


@pytest.mark.parametrize("bad", [-1, 12, 2**33])
def test_items_that_do_not_exist_are_refused(bad: int) -> None:
    batch = batch_of(HISTORIES, NUM_ITEMS)
    batch.items[2, 1] = bad
    with pytest.raises(ProtocolError, match="row ids"):
        draw_examples(batch, NUM_ITEMS, 2, 1, KEY)


def test_batch_without_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="no user keys"):
        draw_examples(replace(batch_of(HISTORIES, NUM_ITEMS), keys=None), NUM_ITEMS, 2, 1, KEY)


@pytest.mark.parametrize("word", [394561851, 430463294, 0, 2**32 - 1])
def test_no_word_tries_the_same_item_for_ever(word: int) -> None:
    """The first two words are those that the finaliser after one step leaves as they are."""
    tries = {int(kernels._other_word(np.uint32(word), number)) for number in range(5000)}
    assert len(tries) == 5000
    num_items = 100
    met = (word * num_items) >> 32
    batch = batch_of([[met]], num_items)
    words = np.full((1, 4), word, dtype=np.uint32)
    rows, slots, counts = np.zeros((1, 3), np.int64), np.zeros((1, 3), np.int32), np.zeros((3, 1), np.int64)
    kernels.draw_examples(
        *(0, 1, batch.items.numpy(), batch.lengths.numpy(), words, num_items, 2, 1),
        *(rows, counts[0], slots, counts[1], counts[2]),
    )
    assert rows[0, 0] == met and met not in rows[0, 1 : counts[0, 0]]


SGD = LocalSgd(batch_size=7, learning_rate=0.05, negative_weight=0.6, logistic=False)


def start(dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    items = torch.randn(NUM_ITEMS, dim, generator=generator)
    return items, torch.randn(len(HISTORIES), dim, generator=generator)


def by_hand(
    items: np.ndarray, vector: np.ndarray, groups: list[list[int]], sgd: LocalSgd
) -> tuple[np.ndarray, np.ndarray]:
    """Train one user by a loop over examples, float64; return the vector and the moves of all items."""
    own, vector = items.copy(), vector.copy()
    examples = [(item, place == 0) for group in groups for place, item in enumerate(group)]
    for first in range(0, len(examples), sgd.batch_size):
        item_steps, vector_step = np.zeros_like(own), np.zeros_like(vector)
        for item, positive in examples[first : first + sgd.batch_size]:
            score = own[item] @ vector
            guess = 1 / (1 + np.exp(-score)) if sgd.logistic else score
            error = guess - 1 if positive else sgd.negative_weight * guess
            item_steps[item] += error * vector
            vector_step += error * own[item]
        own -= sgd.learning_rate * item_steps
        vector -= sgd.learning_rate * vector_step
    return vector, own - items


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("batch_size", [1, 7, 256, 10**15])
@pytest.mark.parametrize("logistic", [False, True], ids=["squared", "logistic"])
@pytest.mark.parametrize("dim", [1, 5, 16])
def test_training_is_the_plain_loop(batch_size: int, logistic: bool, dim: int) -> None:
    items, vectors = start(dim)
    examples = draw_examples(batch_of(HISTORIES, NUM_ITEMS), NUM_ITEMS, 3, 3, KEY)
    sgd = replace(SGD, batch_size=batch_size, logistic=logistic, learning_rate=0.01 if batch_size > 7 else 0.05)
    kept = items.clone(), vectors.clone()
    found, moves = train_users(items, vectors, examples, sgd)
    assert torch.equal(items, kept[0]) and torch.equal(vectors, kept[1]), "arguments stay as they are"
    for user in range(len(HISTORIES)):
        vector, expected = by_hand(items.double().numpy(), vectors[user].double().numpy(), drawn(examples, user), sgd)
        np.testing.assert_allclose(found[user].numpy(), vector, rtol=2e-4, atol=2e-5)
        own = torch.zeros(NUM_ITEMS, dim, dtype=moves.dtype)
        counted = examples.row_mask[user]
        own[examples.rows[user][counted]] = moves[user][counted]
        np.testing.assert_allclose(own.numpy(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("logistic", [False, True], ids=["squared", "logistic"])
@pytest.mark.parametrize("batch_size", [1, 6, 10**6])
def test_compiled_training_equals_torch(logistic: bool, batch_size: int) -> None:
    items, vectors = start(33)
    examples = draw_examples(batch_of(HISTORIES, NUM_ITEMS), NUM_ITEMS, 4, 2, KEY)
    sgd = LocalSgd(batch_size, 0.005, 1.5, logistic)
    found, moves = train_users(items, vectors, examples, sgd)
    with reference():
        plain, plain_moves = train_users(items, vectors, examples, sgd)
    torch.testing.assert_close(found.double(), plain, rtol=1e-4, atol=1e-5)
    counted = examples.row_mask
    torch.testing.assert_close(moves[counted].double(), plain_moves[counted], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("logistic", [False, True], ids=["squared", "logistic"])
def test_one_step_over_all_examples_goes_down_the_gradient_of_the_loss(logistic: bool) -> None:
    items, vectors = start()
    examples = draw_examples(batch_of(HISTORIES, NUM_ITEMS), NUM_ITEMS, 3, 1, KEY)
    found, moves = train_users(items, vectors, examples, LocalSgd(10**6, 0.01, 0.6, logistic))
    for user in range(len(HISTORIES)):
        own, vector = items.double().requires_grad_(), vectors[user].double().requires_grad_()
        groups = drawn(examples, user)
        if not groups:
            assert torch.equal(found[user].float(), vectors[user])
            continue
        scores = own[torch.tensor(groups)] @ vector
        targets = torch.zeros_like(scores).index_fill(1, torch.tensor([0]), 1.0)
        weights = torch.where(targets == 1, 1.0, 0.6).double()
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
        losses = cross_entropy(scores, targets, reduction="none") if logistic else (scores - targets).square() / 2
        slopes = torch.autograd.grad((weights * losses).sum(), (own, vector))
        torch.testing.assert_close((found[user] - vectors[user]).double(), -0.01 * slopes[1], rtol=1e-4, atol=1e-6)
        counted = examples.row_mask[user]
        expected = -0.01 * slopes[0][examples.rows[user][counted]]
        torch.testing.assert_close(moves[user][counted].double(), expected, rtol=1e-4, atol=1e-6)


def test_threads_and_company_do_not_change_a_bit_of_the_training() -> None:
    items, vectors = start(16)
    sgd = replace(SGD, learning_rate=0.01)
    examples = draw_examples(batch_of(HISTORIES, NUM_ITEMS), NUM_ITEMS, 3, 2, KEY)
    counted = examples.row_mask
    with num_threads(1):
        expected, moves = train_users(items, vectors, examples, sgd)
    for threads in (2, 3):
        with num_threads(threads):
            found, other_moves = train_users(items, vectors, examples, sgd)
            assert torch.equal(found, expected) and torch.equal(other_moves[counted], moves[counted])
    for user in range(len(HISTORIES)):
        alone = draw_examples(batch_of(HISTORIES, NUM_ITEMS, [user]), NUM_ITEMS, 3, 2, KEY)
        found, own_moves = train_users(items, vectors[user : user + 1], alone, sgd)
        assert torch.equal(found[0], expected[user])
        assert torch.equal(own_moves[alone.row_mask], moves[user][counted[user]])


@pytest.mark.usefixtures("form")
def test_user_whose_training_breaks_down_spoils_nobody_else() -> None:
    items, vectors = start()
    examples = draw_examples(batch_of(HISTORIES, NUM_ITEMS), NUM_ITEMS, 3, 2, KEY)
    expected, moves = train_users(items, vectors, examples, SGD)
    vectors[4] = torch.nan
    found, spoiled = train_users(items, vectors, examples, SGD)
    others = torch.arange(len(HISTORIES)) != 4
    assert torch.equal(found[others], expected[others]) and found[4].isnan().all()
    counted = examples.row_mask & others[:, None]
    assert torch.equal(spoiled[counted], moves[counted])
