"""Search spaces: which config keys a sweep may set, and to what."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fedrec.config import build, describe
from fedrec.errors import ConfigError

_PRIVATE = ("privacy.clipping_norm", "privacy.max_grad_norm", "privacy.sampling_probability")
_SPENDING = ("privacy.sampling_probability", "federated.num_rounds", "federated.local_steps")
_FORM = "write KEY=A,B,C or KEY=LOW..HIGH or KEY=LOW..HIGH:log"


class Range(BaseModel):
    """What one key of a config may be set to: one of `values`, or a number from `low` to `high`, both included.

    Whole numbers are drawn where both ends are whole; `log` draws evenly over magnitudes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    key: str
    values: tuple[Any, ...] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False

    @model_validator(mode="after")
    def _is_a_list_or_an_interval(self) -> Range:
        if "." not in self.key.strip("."):
            raise ValueError(f"key={self.key!r} is not of the form section.key; write for example model.dim")
        if self.values is not None:
            if not self.values or self.low is not None or self.high is not None or self.log:
                raise ValueError(f"{self.key}: give either a list of values (not empty), or low and high")
            return self
        if self.low is None or self.high is None:
            raise ValueError(f"{self.key}: neither values nor both of low and high are given; give one of them")
        if not self.low < self.high or (self.log and self.low <= 0):
            wanted = "0 < low < high" if self.log else "low < high"
            raise ValueError(f"{self.key}: low={self.low} and high={self.high}, allowed is {wanted}")
        return self

    @property
    def first(self) -> Any:
        """Return a value of the range."""
        return self.low if self.values is None else self.values[0]


def load_space(path: Path | None, texts: Sequence[str]) -> tuple[Range, ...]:
    """Read a search space.

    Args:
        path: TOML file with one [[range]] table a key; see `Range`.
        texts: further ranges, "KEY=A,B,C", "KEY=LOW..HIGH" or "KEY=LOW..HIGH:log", values in TOML syntax.

    Raises:
        ConfigError: where the file or a text is malformed, a key comes twice, or there is nothing to search.
    """
    tables = [] if path is None else _read(path)
    tables += [_parse(text) for text in texts]
    found = []
    for table in tables:
        try:
            found.append(Range.model_validate(table))
        except ValidationError as error:
            raise ConfigError(f"search space: {'; '.join(describe(error, Range))}") from error
    keys = [one.key for one in found]
    if not keys:
        raise ConfigError("the search space is empty; give --space FILE.toml, or --set-range KEY=LOW..HIGH")
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"the search space has {twice[0]} twice; keep one of them")
    return tuple(found)


def check_space(table: Mapping[str, Any], space: Sequence[Range], source: str) -> None:
    """Refuse a space whose trials would not answer the same question, or whose keys a config does not have.

    Args:
        table: the config that is searched around, as read from its file.
        space: the ranges.
        source: how errors name the config.

    Raises:
        ConfigError: for a key of data, evaluation, runtime, or of what the privacy claim says; and for an unknown one.
    """
    noise_is_fixed = (table.get("privacy") or {}).get("noise_multiplier") is not None
    for one in space:
        if one.key.split(".")[0] not in ("model", "federated") and one.key not in _PRIVATE:
            raise ConfigError(
                f"{one.key} can't be searched: trials must have the same data, evaluation and privacy claim; allowed "
                f"are keys of model and federated, and {', '.join(_PRIVATE)}"
            )
        if noise_is_fixed and one.key in _SPENDING:
            raise ConfigError(
                f"{one.key} changes epsilon where privacy.noise_multiplier is given; give privacy.target_epsilon"
            )
        if not any(other.key == "model.name" for other in space):
            build(with_values(table, {one.key: one.first}), source)


def with_values(table: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a config table with some keys set.

    Args:
        table: nested, as of a TOML file.
        values: "section.key" -> value.

    Raises:
        ConfigError: where a part of a key is a value and no table.
    """
    found = copy.deepcopy(dict(table))
    for key, value in values.items():
        *parts, last = key.split(".")
        place = found
        for part in parts:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"search space: {key}: {part} is a value, not a table; search {part} itself")
        place[last] = value
    return found


def _read(path: Path) -> list[Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--space {path} can't be read: {error}; give the path of a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--space {path} is not TOML: {error}; write one [[range]] table for each key") from error
    ranges = table.get("range")
    if set(table) - {"range"} or not isinstance(ranges, list):
        raise ConfigError(f"--space {path} holds {', '.join(table) or 'nothing'}; write one [[range]] table a key")
    return ranges


def _parse(text: str) -> dict[str, Any]:
    key, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or not rest:
        raise ConfigError(f"--set-range {text!r} has no values; {_FORM}")
    if ".." not in rest:
        return {"key": key, "values": [_value(part.strip()) for part in rest.split(",")]}
    ends, _, scale = rest.partition(":")
    low, _, high = ends.partition("..")
    if scale not in ("", "log"):
        raise ConfigError(f"--set-range {text!r} ends with :{scale}; {_FORM}")
    return {"key": key, "low": _value(low.strip()), "high": _value(high.strip()), "log": scale == "log"}


def _value(text: str) -> Any:
    """Read a TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
