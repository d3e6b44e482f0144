"""The item side of the synthetic world: classes, popularity, and the catalogue that tells of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Vocabulary
from fedrec.data.synthetic.config import SyntheticConfig
from fedrec.data.synthetic.words import COMMON, theme
from fedrec.randomness import Key

_TITLE_WORDS, _TEXT_WORDS = 3, 14


@dataclass(frozen=True, eq=False)
class Items:
    """Items as the users choose among them.

    Args:
        classes: (num_items,) int64 latent class of each item.
        by_class: (num_items,) int64 items, class after class.
        within_class: (num_items,) float64 increasing; class k + share of its popularity up to an item of `by_class`.
        overall: (num_items,) float64 increasing to 1; share of all popularity up to an item, in item order.
        class_popularity: (num_classes,) float64 increasing to 1; how often classes are an interest.
    """

    classes: np.ndarray
    by_class: np.ndarray
    within_class: np.ndarray
    overall: np.ndarray
    class_popularity: np.ndarray

    def of_class(self, classes: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Return (n,) items drawn by popularity within the classes given."""
        position = np.searchsorted(self.within_class, classes + uniforms, side="right")
        return np.asarray(self.by_class[np.minimum(position, len(self.by_class) - 1)])

    def of_all(self, uniforms: np.ndarray) -> np.ndarray:
        """Return (n,) items drawn by popularity."""
        return np.minimum(np.searchsorted(self.overall, uniforms, side="right"), len(self.overall) - 1)


def make_items(config: SyntheticConfig, key: Key) -> Items:
    """Draw classes (of equal size) and popularity of the items."""
    key = key.fold("items")
    classes = np.argsort(key.fold("classes").uniforms(config.num_items)) % config.num_classes
    ranks = np.argsort(key.fold("popularity").uniforms(config.num_items))
    weights = (ranks + 1.0) ** -config.popularity_exponent
    by_class = np.argsort(classes, kind="stable")
    within = np.concatenate(
        [k + np.cumsum(w := weights[by_class[classes[by_class] == k]]) / w.sum() for k in range(config.num_classes)]
    )
    class_weights = np.arange(1, config.num_classes + 1) ** -0.5
    return Items(
        classes=classes,
        by_class=by_class,
        within_class=within,
        overall=np.cumsum(weights) / weights.sum(),
        class_popularity=np.cumsum(class_weights) / class_weights.sum(),
    )


def make_catalogue(config: SyntheticConfig, key: Key, items: Items) -> Catalogue:
    """Write titles and descriptions that tell of the class, and categories that mostly are the class."""
    key = key.fold("catalogue")
    numbers = np.arange(config.num_items, dtype=np.uint64)
    draws = key.fold("words").user_uniforms(numbers, 2 * (_TITLE_WORDS + _TEXT_WORDS))
    themes = [theme(number) for number in range(config.num_classes)]
    titles, texts = [], []
    for item_class, of_item in zip(items.classes.tolist(), draws, strict=True):
        words = _words(themes[item_class][1], of_item)
        titles.append(" ".join(words[:_TITLE_WORDS]).title())
        texts.append(f"{titles[-1]}. {' '.join(words[_TITLE_WORDS:]).capitalize()}.")
    shown = _published(config, key, items.classes)
    return Catalogue(
        item_ids=Vocabulary(np.arange(config.num_items)),
        titles=titles,
        texts=texts,
        categories=np.eye(config.num_classes, dtype=bool)[shown],
        category_names=tuple(name for name, _ in themes),
    )


def _words(of_theme: list[str], draws: np.ndarray) -> list[str]:
    """Draw words, every second on average from the theme, and the first always."""
    chosen = []
    for position, (which, where) in enumerate(draws.reshape(-1, 2).tolist()):
        source = of_theme if which < 0.55 or position == 0 else COMMON
        chosen.append(source[int(where * len(source))])
    return chosen


def _published(config: SyntheticConfig, key: Key, classes: np.ndarray) -> np.ndarray:
    """Return (num_items,) the class that the catalogue shows: another one for a `category_noise` of the items."""
    draws = key.fold("categories").user_uniforms(np.arange(config.num_items, dtype=np.uint64), 2)
    other = (classes + 1 + (draws[:, 1] * (config.num_classes - 1)).astype(np.int64)) % config.num_classes
    return np.where(draws[:, 0] < config.category_noise, other, classes)
