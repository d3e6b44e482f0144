"""Synthetic data: the same for every chunk size, no item twice, and as hard and as learnable as real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from fedrec.data.interactions import Interactions
from fedrec.data.sources import load
from fedrec.data.splits import Split, leave_one_out
from fedrec.data.synthetic import Chunk, SyntheticConfig, generate, stream, write_parquet
from fedrec.data.synthetic.people import DAYTIMES, FIRST_SECOND, SECONDS
from fedrec.data.synthetic.words import THEMES, theme
from fedrec.randomness import Key

KEY = Key.from_seed(0)
SMALL = SyntheticConfig(num_users=301, num_items=200, mean_interactions=20)


@pytest.fixture(scope="module")
def world() -> Interactions:
    """Generate a world large enough to have statistics."""
    return generate(SyntheticConfig(num_users=4000), KEY).interactions


def joined(chunks: list[Chunk]) -> list[np.ndarray]:
    columns = [[c.users, c.items, c.times, c.context["daytime"], c.context["device"]] for c in chunks]
    return [np.concatenate(column) for column in zip(*columns, strict=True)]


@pytest.mark.parametrize("chunk_users", [1, 7, 100, 300, 301, 1000])
def test_chunks_of_any_size_make_the_same_data(chunk_users: int) -> None:
    whole = generate(SMALL, KEY).interactions
    parts = list(stream(SMALL, KEY, chunk_users))
    assert len(parts) == -(-301 // chunk_users)
    expected = [whole.users, whole.items, whole.times, whole.context["daytime"], whole.context["device"]]
    for found, wanted in zip(joined(parts), expected, strict=True):
        assert np.array_equal(found, wanted)


def test_more_users_do_not_change_those_that_were_there() -> None:
    fewer = next(stream(SMALL.model_copy(update={"num_users": 50}), KEY))
    first = next(stream(SMALL, KEY, 50))
    assert np.array_equal(fewer.items, first.items) and np.array_equal(fewer.times, first.times)


def test_the_key_decides() -> None:
    one, two = (generate(SMALL, Key.from_seed(seed)).interactions.fingerprint() for seed in (0, 1))
    assert one != two and one == generate(SMALL, KEY).interactions.fingerprint()


@pytest.mark.parametrize("mean", [5, 20, 50])
def test_no_user_meets_an_item_twice_and_all_are_active(mean: float) -> None:
    found = generate(SMALL.model_copy(update={"mean_interactions": mean}), KEY).interactions
    assert len(np.unique(found.users * found.num_items + found.items)) == len(found)
    assert found.lengths.min() >= 5 and found.lengths.max() <= 100


def test_hardly_any_items_still_end() -> None:
    config = SyntheticConfig(num_users=50, num_items=20, mean_interactions=5, num_classes=2, activity_spread=2)
    found = generate(config, KEY).interactions
    assert found.lengths.max() <= 10
    assert len(np.unique(found.users * 20 + found.items)) == len(found)


def test_activity_and_popularity_are_skewed_like_real_data(world: Interactions) -> None:
    assert world.lengths.mean() == pytest.approx(40, rel=0.05)
    assert np.median(world.lengths) < 0.85 * world.lengths.mean()
    counts = np.sort(np.bincount(world.items, minlength=world.num_items))[::-1]
    assert 0.3 < counts[:100].sum() / counts.sum() < 0.6


def test_times_are_of_two_years_in_sessions_and_tell_the_time_of_day(world: Interactions) -> None:
    assert world.times is not None
    assert world.times.min() >= FIRST_SECOND and world.times.max() <= FIRST_SECOND + SECONDS + 86_400
    gaps = np.diff(world.times)[world.users[1:] == world.users[:-1]]
    assert 0.6 < (gaps < 3600).mean() < 0.9
    assert np.array_equal(world.context["daytime"], world.times % 86_400 // 21_600)
    assert world.context_ids["daytime"].ids.tolist() == list(DAYTIMES)


def test_context_moves_what_is_met(world: Interactions) -> None:
    context = world.context["daytime"] * 3 + world.context["device"]
    table = np.zeros((12, world.num_items))
    np.add.at(table, (context, world.items), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    statistic = ((table - expected) ** 2 / expected).sum() / (11 * (world.num_items - 1))
    shuffled = np.zeros_like(table)
    np.add.at(shuffled, (np.random.default_rng(0).permutation(context), world.items), 1)
    by_chance = ((shuffled - expected) ** 2 / expected).sum() / (11 * (world.num_items - 1))
    assert by_chance < 1.1 and statistic > 1.4


def test_titles_and_categories_tell_of_the_class() -> None:
    data = generate(SMALL, KEY)
    catalogue = data.catalogue
    assert catalogue.titles is not None and catalogue.texts is not None and catalogue.categories is not None
    assert (catalogue.categories.sum(axis=1) == 1).all()
    shown = catalogue.categories.argmax(axis=1)
    hits = [
        any(word in text.lower().split() for word in THEMES[catalogue.category_names[c]].split())
        for text, c in zip(catalogue.titles, shown, strict=True)
    ]
    assert 0.8 < np.mean(hits) < 1.0  # a tenth of the categories is wrong on purpose
    assert min(len(text.split()) for text in catalogue.texts) >= 10


def test_themes_beyond_the_english_ones_are_distinct() -> None:
    names = [theme(number)[0] for number in range(300)]
    assert len(set(names)) == 300 and all(len(theme(number)[1]) == 12 for number in range(300))


def test_parquet_holds_the_same_data(tmp_path: Path) -> None:
    path = tmp_path / "synthetic.parquet"
    write_parquet(SMALL, KEY, path)
    whole = generate(SMALL, KEY).interactions
    assert pyarrow.parquet.read_metadata(path).num_rows == len(whole)
    found = load(path=path, columns={"context": ["daytime", "device"]}, repeat=True).interactions
    assert found.user_ids.ids.tolist() == whole.user_ids.ids.tolist()
    assert np.array_equal(found.item_ids.ids[found.items], whole.items)
    assert np.array_equal(found.times, whole.times)
    for name, ids in whole.context_ids.items():
        assert np.array_equal(found.context_ids[name].ids[found.context[name]], ids.ids[whole.context[name]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_items": 5}, "greater than or equal to 10"),
        ({"num_items": 100}, "raise num_items or lower mean_interactions"),
        ({"num_items": 30, "mean_interactions": 5}, "num_classes=40 is more than num_items=30"),
        ({"noise_share": 0.9}, "at most 1"),
        ({"drif": 1}, "Extra inputs"),
    ],
)
def test_worlds_that_cannot_be_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SyntheticConfig.model_validate(options)


def ndcg(split: Split, scores: np.ndarray) -> float:
    """Return NDCG@10 of (num_users, num_items) scores, ranking what a user has not met."""
    scores = scores.copy()
    scores[split.history.users, split.history.items] = -np.inf
    users, items = split.test.users, split.test.items
    ranks = (scores[users] >= scores[users, items][:, None]).sum(axis=1) - 1
    return float(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean())


def als_scores(split: Split, recency: float, dim: int = 16, sweeps: int = 4) -> np.ndarray:
    """Fit implicit ALS (Hu et al. 2008) on train, then users once more on their history with recency weights."""
    rng = np.random.default_rng(0)
    shape = (split.train.num_users, split.train.num_items)
    train, history = np.zeros(shape), np.zeros(shape)
    train[split.train.users, split.train.items] = 1
    ages = split.history.indptr[1:][split.history.users] - 1 - np.arange(len(split.history))
    history[split.history.users, split.history.items] = 1 + recency * np.exp(-ages / 5)
    items = rng.normal(size=(shape[1], dim)) * 0.1

    def solve(weights: np.ndarray, other: np.ndarray) -> np.ndarray:
        outer = (other[:, :, None] * other[:, None, :]).reshape(len(other), -1)
        gram = 0.1 * other.T @ other + np.eye(dim)
        left = (weights @ outer).reshape(-1, dim, dim) + gram
        return np.linalg.solve(left, (weights @ other)[:, :, None])[:, :, 0]

    for _ in range(sweeps):
        users = solve(train, items)
        items = solve(train.T, users)
    return solve(history, items) @ items.T


def test_taste_can_be_learned_and_recency_says_more(world: Interactions) -> None:
    split = leave_one_out(world, KEY)
    counts = np.bincount(split.train.items, minlength=world.num_items).astype(float)
    popularity = ndcg(split, np.tile(counts, (world.num_users, 1)))
    plain, recent = ndcg(split, als_scores(split, 0)), ndcg(split, als_scores(split, 5))
    assert 0.02 < popularity < 0.065
    assert plain > 1.7 * popularity
    assert recent > 1.05 * plain
