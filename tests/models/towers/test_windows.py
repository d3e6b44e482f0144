"""Windows against plain lists: what is read, what is predicted, and what padding may show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrec.errors import ConfigError
from fedrec.models.towers.windows import Windows, ranking_windows, training_windows
from fedrec.randomness import Key
from tests.models.towers.worlds import batch_of, rich_world

KEY = Key.from_seed(0)
LENGTHS = [0, 1, 2, 3, 4, 5, 6, 9, 9, 30]
WORLD = rich_world(LENGTHS)
COLUMNS = {"items": WORLD.items, "times": WORLD.times, "ratings": WORLD.ratings, **WORLD.context}


def history(user: int, column: str) -> list[float]:
    return COLUMNS[column][WORLD.indptr[user] : WORLD.indptr[user + 1]].tolist()


def same(found: torch.Tensor, wanted: list[float]) -> bool:
    return bool(np.array_equal(found.numpy(), np.array(wanted), equal_nan=True))


def check_window(windows: Windows, user: int, start: int, num_targets: int) -> None:
    """Compare one user's window with the segment of its history that starts at `start`."""
    items, times = history(user, "items"), history(user, "times")
    length = max(num_targets, 1)
    assert windows.lengths[user] == length
    assert same(windows.targets[user, :num_targets], items[start : start + num_targets])
    assert windows.mask[user].tolist() == [place < num_targets for place in range(windows.mask.shape[1])]
    assert same(windows.items[user, 1:length], items[start : start + length - 1])
    gaps = [0.0, 0.0, *np.diff(times[start : start + length - 1])][:length]
    assert windows.gaps is not None and same(windows.gaps[user, :length], gaps)
    assert windows.ratings is not None
    assert same(windows.ratings[user, :num_targets], history(user, "ratings")[start : start + num_targets])
    for name in ("place", "heat"):
        column = history(user, name)
        assert same(windows.context[name][user, :num_targets], column[start : start + num_targets])
        assert same(windows.past[name][user, 1:length], column[start : start + length - 1])


@pytest.mark.parametrize("window", [1, 2, 3, 8, 29, 30, 60])
def test_training_windows_are_the_newest_interactions_each_after_those_before_it(window: int) -> None:
    windows = training_windows(batch_of(WORLD), window, 0.0, KEY)
    assert windows.items.shape[1] == min(window + 1, 30)
    for user, length in enumerate(LENGTHS):
        num = min(length, window + 1)
        check_window(windows, user, length - num, num)


@pytest.mark.parametrize("window", [1, 2, 3, 8, 29, 30, 60])
def test_cropped_windows_are_full_ones_from_anywhere_in_the_history(window: int) -> None:
    starts = set()
    for number in range(60):
        windows = training_windows(batch_of(WORLD), window, 1.0, KEY.fold(number))
        for user, length in enumerate(LENGTHS):
            num = min(length, window + 1)
            possible = [
                start
                for start in range(length - num + 1)
                if same(windows.targets[user, :num], history(user, "items")[start : start + num])
                and same(windows.ratings[user, :num], history(user, "ratings")[start : start + num])
                and same(windows.context["heat"][user, :num], history(user, "heat")[start : start + num])
            ]
            assert possible
            check_window(windows, user, possible[0], num)
            if user == len(LENGTHS) - 1 and len(possible) == 1:
                starts.add(possible[0])
    if window > 1:
        assert len(starts) > min(20, 29 - window) * 0.7


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_crops_end_at_every_place_alike_and_as_often_as_they_should(probability: float) -> None:
    num, length, window = 4000, 12, 4
    items = np.arange(length)
    many = rich_world([length] * num, length)
    batch = batch_of(replace(many, items=np.tile(items, num), times=None))
    windows = training_windows(batch, window, probability, KEY)
    last = windows.targets.gather(1, windows.lengths[:, None] - 1)[:, 0]
    assert (windows.lengths == window + 1).all()
    counts = torch.bincount(last, minlength=length).double() / num
    expected = torch.zeros(length, dtype=torch.float64)
    expected[window:] = probability / (length - window)
    expected[-1] += 1 - probability
    assert (counts - expected).abs().max() < 5 * (0.25 / num) ** 0.5
    assert not counts[:window].any()


@pytest.mark.parametrize("window", [1, 2, 3, 8, 30, 60])
def test_ranking_windows_read_the_last_interactions_of_everybody_in_the_context_asked_for(window: int) -> None:
    batch = batch_of(WORLD)
    query = {"place": torch.arange(len(LENGTHS)) % 3, "heat": torch.linspace(0.0, 1.0, len(LENGTHS))}
    windows = ranking_windows(replace(batch, query=query), window)
    for user, length in enumerate(LENGTHS):
        num = min(length, window)
        items, times = history(user, "items"), history(user, "times")
        assert windows.lengths[user] == num + 1
        assert same(windows.items[user, 1 : num + 1], items[length - num :])
        assert same(windows.gaps[user, : num + 1], [0.0, 0.0, *np.diff(times[length - num :])][: num + 1])
        assert same(windows.past["place"][user, 1 : num + 1], history(user, "place")[length - num :])
        assert (windows.context["place"][user] == user % 3).all()
        assert (windows.context["heat"][user] == query["heat"][user]).all()


@pytest.mark.parametrize("window", [1, 3, 8])
def test_what_is_ranked_with_is_what_the_last_position_was_trained_with(window: int) -> None:
    """The ranking window of a history without its last interaction is the training window of the whole."""
    rows = [user for user, length in enumerate(LENGTHS) if length > 1]
    keep = np.ones(len(WORLD), dtype=bool)
    keep[WORLD.indptr[1:][WORLD.lengths > 0] - 1] = False
    shorter, whole = batch_of(WORLD.take(keep), rows), batch_of(WORLD, rows)
    context = {name: column.gather(1, whole.lengths[:, None] - 1)[:, 0] for name, column in whole.context.items()}
    ranked = ranking_windows(replace(shorter, query=context), window)
    trained = training_windows(whole, window, 0.0, KEY)
    assert torch.equal(ranked.lengths, trained.lengths)
    for user, length in enumerate(trained.lengths.tolist()):
        assert torch.equal(ranked.items[user, 1:length], trained.items[user, 1:length])
        assert torch.equal(ranked.gaps[user, :length], trained.gaps[user, :length])
        assert torch.equal(ranked.past["place"][user, 1:length], trained.past["place"][user, 1:length])
        assert ranked.context["place"][user, length - 1] == trained.context["place"][user, length - 1]


@pytest.mark.parametrize("crop_probability", [0.0, 0.5])
def test_windows_of_a_user_do_not_depend_on_the_batch_and_padding_shows_nothing_of_anybody_else(
    crop_probability: float,
) -> None:
    together = training_windows(batch_of(WORLD), 4, crop_probability, KEY)
    for user, length in enumerate(LENGTHS):
        alone = training_windows(batch_of(WORLD, [user]), 4, crop_probability, KEY)
        width = alone.items.shape[1]
        for name in ("items", "targets", "mask", "gaps", "ratings"):
            assert torch.equal(getattr(together, name)[user, :width], getattr(alone, name)[0]), name
        for name in ("place", "heat"):
            assert same(together.context[name][user, :width], alone.context[name][0].tolist())
            assert same(together.past[name][user, :width], alone.past[name][0].tolist())
        if length:
            assert set(together.items[user].tolist()) <= set(history(user, "items"))
            assert set(together.targets[user].tolist()) <= set(history(user, "items"))
            assert set(together.past["place"][user].tolist()) <= set(history(user, "place"))


def test_nobody_and_nothing_have_windows_too() -> None:
    nobody = training_windows(batch_of(WORLD, []), 4, 0.5, KEY)
    assert nobody.items.shape[0] == 0 and nobody.mask.shape == nobody.items.shape
    assert ranking_windows(batch_of(WORLD, []), 4).items.shape[0] == 0
    empty = batch_of(WORLD, [0])
    trained, ranked = training_windows(empty, 4, 0.5, KEY), ranking_windows(empty, 4)
    assert trained.items.shape == ranked.items.shape == (1, 1)
    assert trained.lengths.tolist() == ranked.lengths.tolist() == [1] and not trained.mask.any()


def test_some_of_the_users_keep_their_windows() -> None:
    windows = training_windows(batch_of(WORLD), 4, 0.5, KEY)
    some = torch.arange(len(LENGTHS)) % 2 == 1
    part = windows.of(some)
    for name in ("items", "lengths", "targets", "mask", "gaps", "ratings"):
        assert torch.equal(getattr(part, name), getattr(windows, name)[some]), name
    assert torch.equal(part.context["place"], windows.context["place"][some])
    assert torch.equal(part.past["place"], windows.past["place"][some])


def test_times_that_are_unknown_or_run_backwards_are_no_gap() -> None:
    times = np.full(len(WORLD), np.iinfo(np.int64).min)
    times[WORLD.indptr[-1] - 1] = 10**9
    gaps = ranking_windows(batch_of(replace(WORLD, times=times)), 40).gaps
    assert gaps is not None and not gaps.any()
    assert ranking_windows(batch_of(replace(WORLD, times=None)), 40).gaps is None


def test_crops_without_user_keys_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="no user keys; pass keys to user_batches"):
        training_windows(replace(batch_of(WORLD), keys=None), 4, 0.5, KEY)
    training_windows(replace(batch_of(WORLD), keys=None), 4, 0.0, KEY)
