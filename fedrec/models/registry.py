"""Model names: which class and which settings stand behind `model.name` of a config."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from fedrec.errors import ConfigError
from fedrec.models.adaptive_clipping import AdaptiveClippingConfig, AdaptivelyClipped
from fedrec.models.als import Als, AlsConfig
from fedrec.models.bounded_als import BoundedAls, BoundedAlsConfig
from fedrec.models.bounded_two_tower import BoundedTwoTower, BoundedTwoTowerConfig
from fedrec.models.content import Content, ContentConfig
from fedrec.models.ease import Ease, EaseConfig
from fedrec.models.example_mf import ExampleMatrixFactorization, ExampleMatrixFactorizationConfig
from fedrec.models.fm import FactorizationMachine, FactorizationMachineConfig
from fedrec.models.hybrid import Hybrid, HybridConfig
from fedrec.models.item_knn import ItemKnn, ItemKnnConfig
from fedrec.models.logistic import BoundedRegressionConfig, Regression, RegressionConfig
from fedrec.models.mf import BoundedMatrixFactorizationConfig, MatrixFactorization, MatrixFactorizationConfig
from fedrec.models.peers.fcf import Fcf, FcfConfig
from fedrec.models.peers.fedmf import FedMf, FedMfConfig
from fedrec.models.peers.fedncf import FedNcf, FedNcfConfig
from fedrec.models.peers.fedrecon import FedRecon, FedReconConfig
from fedrec.models.peers.pfedrec import PFedRec, PFedRecConfig
from fedrec.models.popularity import Popularity, PopularityConfig
from fedrec.models.protocol import FederatedModel
from fedrec.models.slit import Slit, SlitConfig
from fedrec.models.two_tower import TwoTower, TwoTowerConfig


@dataclass(frozen=True)
class _Entry:
    """A form of a model: the class of its settings, and how it is made of them and of the bound on a unit, if any."""

    settings: type[BaseModel]
    build: Callable[[Any, float | None], FederatedModel]


def _two_tower(values: TwoTowerConfig) -> FederatedModel:
    """Add gradients up as they are made, unless users take steps of their own."""
    if values.local_steps == 1:
        return TwoTower(values)
    return BoundedTwoTower(BoundedTwoTowerConfig.model_validate(values.model_dump()))


def _clipped(model: BoundedTwoTower | MatrixFactorization | Regression, clipping_norm: float | None) -> FederatedModel:
    """Let the clipping norm adapt, where the settings say so."""
    adaptive: AdaptiveClippingConfig | None = getattr(model.config, "adaptive_clipping", None)
    return model if adaptive is None or clipping_norm is None else AdaptivelyClipped(model, adaptive, clipping_norm)


_EXACT: dict[str, _Entry] = {
    "als": _Entry(AlsConfig, lambda values, _: Als(values)),
    "content": _Entry(ContentConfig, lambda values, _: Content(values)),
    "ease": _Entry(EaseConfig, lambda values, _: Ease(values)),
    "fcf": _Entry(FcfConfig, lambda values, _: Fcf(values)),
    "fedmf": _Entry(FedMfConfig, lambda values, _: FedMf(values)),
    "fedncf": _Entry(FedNcfConfig, lambda values, _: FedNcf(values)),
    "fedrecon": _Entry(FedReconConfig, lambda values, _: FedRecon(values)),
    "fm": _Entry(FactorizationMachineConfig, lambda values, _: FactorizationMachine(values)),
    "hybrid": _Entry(HybridConfig, lambda values, _: Hybrid(values)),
    "item_knn": _Entry(ItemKnnConfig, lambda values, _: ItemKnn(values)),
    "logistic": _Entry(RegressionConfig, lambda values, _: Regression(values)),
    "mf": _Entry(MatrixFactorizationConfig, lambda values, _: MatrixFactorization(values)),
    "pfedrec": _Entry(PFedRecConfig, lambda values, _: PFedRec(values)),
    "popularity": _Entry(PopularityConfig, Popularity),
    "slit": _Entry(SlitConfig, lambda values, _: Slit(values)),
    "two_tower": _Entry(TwoTowerConfig, lambda values, _: _two_tower(values)),
}
_BOUNDED: dict[str, _Entry] = {
    "als": _Entry(BoundedAlsConfig, lambda values, norm: BoundedAls(values, norm or 1.0)),
    "logistic": _Entry(BoundedRegressionConfig, lambda values, norm: _clipped(Regression(values), norm)),
    "mf": _Entry(BoundedMatrixFactorizationConfig, lambda values, norm: _clipped(MatrixFactorization(values), norm)),
    "popularity": _Entry(PopularityConfig, Popularity),
    "two_tower": _Entry(BoundedTwoTowerConfig, lambda values, norm: _clipped(BoundedTwoTower(values), norm)),
}
_BY_EXAMPLE: dict[str, _Entry] = {
    "mf": _Entry(ExampleMatrixFactorizationConfig, lambda values, _: ExampleMatrixFactorization(values)),
}


def settings_type(name: str, unit: str | None) -> type[BaseModel]:
    """Return the class of a model's settings.

    Args:
        name: of the model.
        unit: the privacy unit of the run's plan; None without privacy.

    Raises:
        ConfigError: for a name that is unknown, or that has no form with bounded users (or examples) under such a plan.
    """
    return _entry(name, unit).settings


def build_model(table: Mapping[str, Any], clipping_norm: float | None, unit: str = "user") -> FederatedModel:
    """Make the model of a checked [model] table.

    Args:
        table: `name` and the model's own settings.
        clipping_norm: the plan's bound on a user's contribution, or on an example's gradient; None without privacy.
        unit: the plan's privacy unit.
    """
    entry = _entry(table["name"], None if clipping_norm is None else unit)
    settings = {key: value for key, value in table.items() if key != "name"}
    return entry.build(entry.settings.model_validate(settings), clipping_norm)


def model_names(unit: str | None) -> tuple[str, ...]:
    """Return the names of the models that run without privacy (None), or under a plan of a unit."""
    return tuple(_entries(unit))


def _entries(unit: str | None) -> dict[str, _Entry]:
    return {None: _EXACT, "interaction": _BY_EXAMPLE}.get(unit, _BOUNDED)


def _entry(name: str, unit: str | None) -> _Entry:
    known = _entries(unit)
    if name in known:
        return known[name]
    if name in _EXACT:
        raise ConfigError(
            f"model.name={name!r} does not run under a privacy plan of unit {unit!r}; allowed are {', '.join(known)}: "
            "choose one of them or leave [privacy] out"
        )
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(known)}"
    raise ConfigError(f"model.name={name!r} is unknown; {hint}")
