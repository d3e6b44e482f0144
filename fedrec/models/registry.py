"""Model names: which class and which settings stand behind `model.name` of a config."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from fedrec.errors import ConfigError
from fedrec.models.als import Als, AlsConfig
from fedrec.models.bounded_als import BoundedAls, BoundedAlsConfig
from fedrec.models.content import Content, ContentConfig
from fedrec.models.example_two_tower import ExampleTwoTower, ExampleTwoTowerConfig
from fedrec.models.item_knn import ItemKnn, ItemKnnConfig
from fedrec.models.popularity import Popularity, PopularityConfig
from fedrec.models.protocol import FederatedModel
from fedrec.models.two_tower import TwoTower, TwoTowerConfig

_SETTINGS: dict[str, type[BaseModel]] = {
    "als": AlsConfig,
    "content": ContentConfig,
    "item_knn": ItemKnnConfig,
    "popularity": PopularityConfig,
    "two_tower": TwoTowerConfig,
}
_PRIVATE_SETTINGS: dict[str, type[BaseModel]] = {
    "als": BoundedAlsConfig,
    "popularity": PopularityConfig,
    "two_tower": TwoTowerConfig,
}
_EXAMPLE_LEVEL_SETTINGS: dict[str, type[BaseModel]] = {"two_tower": ExampleTwoTowerConfig}


def settings_type(name: str, unit: str | None) -> type[BaseModel]:
    """Return the class of a model's settings.

    Args:
        name: of the model.
        unit: the privacy unit of the run's plan; None without privacy.

    Raises:
        ConfigError: for a name that is unknown, or that has no form with bounded users (or examples) under such a plan.
    """
    known = {None: _SETTINGS, "interaction": _EXAMPLE_LEVEL_SETTINGS}.get(unit, _PRIVATE_SETTINGS)
    if name in known:
        return known[name]
    if name in _SETTINGS:
        raise ConfigError(
            f"model.name={name!r} does not run under a privacy plan of unit {unit!r}; allowed are {', '.join(known)}: "
            "choose one of them or leave [privacy] out"
        )
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(known)}"
    raise ConfigError(f"model.name={name!r} is unknown; {hint}")


def build_model(table: Mapping[str, Any], clipping_norm: float | None, unit: str = "user") -> FederatedModel:
    """Make the model of a checked [model] table.

    Args:
        table: `name` and the model's own settings.
        clipping_norm: the plan's bound on a user's contribution, or on an example's gradient; None without privacy.
        unit: the plan's privacy unit.
    """
    name = table["name"]
    settings = settings_type(name, None if clipping_norm is None else unit)
    values = settings.model_validate({key: value for key, value in table.items() if key != "name"})
    if isinstance(values, BoundedAlsConfig) and clipping_norm is not None:
        return BoundedAls(values, clipping_norm)
    if isinstance(values, ExampleTwoTowerConfig):
        return ExampleTwoTower(values)
    if isinstance(values, TwoTowerConfig):
        return TwoTower(values)
    if isinstance(values, AlsConfig):
        return Als(values)
    if isinstance(values, PopularityConfig):
        return Popularity(values, clipping_norm)
    if isinstance(values, ItemKnnConfig):
        return ItemKnn(values)
    if isinstance(values, ContentConfig):
        return Content(values)
    raise ConfigError(f"model.name={name!r} has settings but no class; this is a fault of the library: report it")
