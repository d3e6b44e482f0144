"""What stands in the table of published peers: models, where their search starts, its space, and published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedrec.errors import ConfigError
from fedrec.tuning.space import Range

ZHANG = "Zhang et al., Dual Personalization on Federated Recommendation, IJCAI 2023, table 2"


@dataclass(frozen=True)
class Contender:
    """A row before it is run.

    Args:
        label: its name.
        model: the [model] table of the first setting tried.
        rounds: most rounds it trains.
        space: what else is tried.
        leaks: whether it draws negatives, so that the leak can be shown.
        draws: whether seeds make a difference.
        published: data set -> sampled_99 figures.
        source: where they were published.
    """

    label: str
    model: Mapping[str, Any]
    rounds: int
    space: tuple[Range, ...] = ()
    leaks: bool = False
    draws: bool = True
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = ""


def _log(key: str, low: float, high: float) -> Range:
    return Range(key=f"model.{key}", low=low, high=high, log=True)


def _one_of(key: str, *values: Any) -> Range:
    return Range(key=f"model.{key}", values=values)


def _figures(small: tuple[float, float], large: tuple[float, float]) -> dict[str, dict[str, float]]:
    """Return NDCG@10 and HR@10 on ML-100K and ML-1M."""
    pairs = {"ml-100k": small, "ml-1m": large}
    return {data: {"ndcg@10": ndcg, "hr@10": hr} for data, (ndcg, hr) in pairs.items()}


_ALS = {"name": "als", "dim": 32, "unobserved_weight": 1.0, "regularization": 0.008}
_ALS_SPACE = (
    _log("unobserved_weight", 0.1, 3.0),
    _log("regularization", 0.002, 0.05),
    _one_of("dim", 16, 32, 64),
)
_RECENCY = (
    _log("recency_weight", 5.0, 100.0),
    _log("recency_decay", 1.0, 10.0),
    _one_of("norm_discount", 0.0, 0.2, 0.3),
)

CONTENDERS = (
    Contender("popularity", {"name": "popularity"}, 1, draws=False),
    Contender("als", _ALS, 16, _ALS_SPACE),
    Contender(
        "als-recency",
        {**_ALS, "recency_weight": 50.0, "recency_decay": 4.0, "norm_discount": 0.3},
        16,
        (*_ALS_SPACE, *_RECENCY),
    ),
    Contender(
        "fcf",
        {"name": "fcf", "learning_rate": 0.05},
        100,
        (
            _log("learning_rate", 0.01, 0.2),
            _log("confidence", 0.3, 10.0),
            _log("regularization", 0.1, 30.0),
            _one_of("dim", 16, 32, 64),
        ),
    ),
    Contender(
        "fedmf",
        {"name": "fedmf"},
        100,
        (
            _one_of("loss", "squared", "logistic"),
            _log("learning_rate", 0.5, 10.0),
            _log("item_learning_rate", 0.1, 5.0),
            _one_of("local_epochs", 1, 3),
            _one_of("init_std", 0.05, 0.1, 0.2),
        ),
        leaks=True,
        published=_figures((0.3938, 0.6515), (0.4090, 0.6772)),
        source=ZHANG,
    ),
    Contender(
        "fedncf",
        {"name": "fedncf"},
        100,
        (
            _one_of("form", "gmf", "mlp", "neumf"),
            _log("learning_rate", 0.1, 2.0),
            _log("item_step", 0.1, 2.0),
            _one_of("init_std", 0.05, 0.1, 0.3),
        ),
        leaks=True,
        published=_figures((0.3325, 0.6062), (0.3417, 0.6054)),
        source=ZHANG,
    ),
    Contender(
        "fedrecon",
        {"name": "fedrecon", "learning_rate": 20.0, "item_learning_rate": 500.0},
        100,
        (
            _log("learning_rate", 1.0, 50.0),
            _log("item_learning_rate", 50.0, 5000.0),
            _one_of("reconstruction_steps", 5, 10),
            _one_of("init_std", 0.1, 0.3),
        ),
        leaks=True,
        published=_figures((0.3778, 0.6445), (0.3659, 0.6328)),
        source=ZHANG,
    ),
    Contender(
        "pfedrec",
        {"name": "pfedrec"},
        100,
        (
            _log("learning_rate", 0.03, 0.3),
            _log("item_rate", 10.0, 100.0),
            _one_of("init_std", 0.1, 0.3, 1.0),
            _one_of("num_negatives", 2, 4),
        ),
        leaks=True,
        published=_figures((0.4344, 0.7162), (0.4436, 0.7326)),
        source=ZHANG,
    ),
)


def contenders(labels: str | None) -> list[Contender]:
    """Return the contenders named, or all.

    Raises:
        ConfigError: for an unknown label.
    """
    known = {one.label: one for one in CONTENDERS}
    wanted = list(known) if labels is None else labels.split(",")
    unknown = [label for label in wanted if label not in known]
    if unknown:
        raise ConfigError(f"--only {unknown[0]!r} is unknown; allowed are {', '.join(known)}")
    return [known[label] for label in wanted]
