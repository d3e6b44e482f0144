"""Run configs: TOML in, one frozen, fully checked object out; unknown keys fail and name the nearest known one."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fedrec.errors import ConfigError
from fedrec.federated.chains import check_chain, check_private_upload
from fedrec.privacy.claims import CLAIMS

Probability = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Chain = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(_Table):
    """Names of the columns of a data file; a timestamp or rating of None is looked up by its usual name."""

    user: str = "user"
    item: str = "item"
    timestamp: str | None = None
    rating: str | None = None
    context: tuple[str, ...] = ()


class DataConfig(_Table):
    """[data]: a named data set, or a file by path (which overrides the name).

    `time_context` adds context fields that follow from the time in UTC: "hour", "weekday".
    """

    name: str | None = None
    path: str | None = None
    columns: Columns = Columns()
    min_rating: float | None = None
    synthetic: dict[str, Any] = Field(default_factory=dict)
    time_context: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _something_to_load(self) -> DataConfig:
        if self.name is None and self.path is None:
            raise ValueError("neither data.name nor data.path is given; name a data set or a file")
        return self


class FederatedConfig(_Table):
    """[federated]: how many nodes and rounds, how long a round may take, and how many nodes have to answer in time.

    `sampling_probability` is that of a user in a round without privacy (under a plan the plan's own counts); in the
    first `full_rounds` and in the `last_full_rounds` everybody takes part.
    `local_steps` is the number of noisy steps a node takes in a round of an example-level plan. `upload_codec` and
    `download_codec` are "dense" or chains of stages, `codec_rank` is the rank of `low_rank`; see
    `fedrec.federated.codec`.
    """

    num_nodes: Count = 2
    num_rounds: Count = 10
    sampling_probability: Probability = 1.0
    full_rounds: Annotated[int, Field(ge=0)] = 0
    last_full_rounds: Annotated[int, Field(ge=0)] = 0
    local_steps: Count | None = None
    min_nodes: Count = 1
    round_deadline_seconds: Positive = 3600.0
    upload_codec: Chain = ("dense",)
    download_codec: Chain = ("dense",)
    codec_rank: Annotated[int, Field(ge=1, le=1024)] = 16

    def sampling(self, round_number: int) -> float:
        """Return the probability with which a user takes part in a round without privacy."""
        sampled = self.full_rounds < round_number <= self.num_rounds - self.last_full_rounds
        return self.sampling_probability if sampled else 1.0

    @model_validator(mode="after")
    def _chains_make_sense(self) -> FederatedConfig:
        for name in ("upload_codec", "download_codec"):
            try:
                check_chain(getattr(self, name))
            except ConfigError as error:
                raise ValueError(f"federated.{name}: {error}") from error
        return self


class PrivacyConfig(_Table):
    """[privacy]: the plan to calibrate; no such table means no privacy.

    `clipping_norm` is the bound on a user, `max_grad_norm` that on an example where `unit` is "interaction"; then
    `population_size` counts interactions.
    """

    target_epsilon: Positive | None = None
    noise_multiplier: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    target_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    clipping_norm: Positive | None = None
    max_grad_norm: Positive | None = None
    sampling_probability: Probability = 1.0
    population_size: Count
    trust_model: Literal["central", "distributed", "local"] = "central"
    unit: Literal["user", "interaction"] = "user"
    min_users_per_node: Count = 10

    @model_validator(mode="before")
    @classmethod
    def _fill_in_what_the_unit_implies(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        if table.get("unit") == "interaction":
            return {"trust_model": "local", "max_grad_norm": 1.0, **table}
        return {"clipping_norm": 1.0, **table}

    @property
    def bound(self) -> float:
        """Return the L2 bound on one unit."""
        return float(self.clipping_norm or self.max_grad_norm or 0.0)

    @model_validator(mode="after")
    def _one_of_target_and_noise(self) -> PrivacyConfig:
        given = [name for name in ("target_epsilon", "noise_multiplier") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "neither"
            raise ValueError(
                f"[privacy] has {found}; give exactly one of privacy.target_epsilon and privacy.noise_multiplier"
            )
        return self

    @model_validator(mode="after")
    def _claim_is_available(self) -> PrivacyConfig:
        if (self.unit, self.trust_model) not in CLAIMS:
            allowed = " and ".join(repr(trust) for unit, trust in CLAIMS if unit == self.unit)
            raise ValueError(
                f"privacy.trust_model={self.trust_model!r} is not available for privacy.unit={self.unit!r}; "
                f"allowed: {allowed}"
            )
        foreign = "max_grad_norm" if self.unit == "user" else "clipping_norm"
        if getattr(self, foreign) is not None:
            other = "clipping_norm" if self.unit == "user" else "max_grad_norm"
            raise ValueError(f"privacy.{foreign} is not for privacy.unit={self.unit!r}; give privacy.{other}")
        if self.unit == "user" and self.trust_model == "local" and self.sampling_probability != 1:
            raise ValueError(
                f"privacy.sampling_probability={self.sampling_probability} under local trust: the server sees who "
                "answers, so sampling amplifies nothing; set it to 1"
            )
        return self


class EvaluationConfig(_Table):
    """[evaluation]: protocol and metrics.

    `holdout_share` is of cold_items and cold_users, the other shares of temporal; `every` is the number of rounds
    between two validations (0: only at the end).
    """

    protocol: Literal["leave_one_out", "temporal", "cold_items", "cold_users"] = "leave_one_out"
    k: Annotated[int, Field(ge=1, le=1000)] = 10
    recall_k: Annotated[int, Field(ge=1, le=1000)] = 20
    every: Annotated[int, Field(ge=0)] = 1
    repeat: bool = False
    sampled_99: bool = False
    holdout_share: OpenShare = 0.1
    validation_share: OpenShare = 0.1
    test_share: OpenShare = 0.1


class RuntimeConfig(_Table):
    """[runtime]: knobs that never change privacy, and results only by rounding (the seed changes the draws).

    `micro_batch` is how many padded history cells a node holds at once, 0 for what suits the model.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "cpu"
    num_threads: Annotated[int, Field(ge=0)] = 0
    micro_batch: Annotated[int, Field(ge=0)] = 0


class Config(_Table):
    """A whole run."""

    data: DataConfig
    model: dict[str, Any]
    federated: FederatedConfig = FederatedConfig()
    privacy: PrivacyConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _nodes_hold_enough_users(self) -> Config:
        """Refuse small nodes by public numbers: a refusal that looked at real users would itself tell who is there."""
        if self.federated.min_nodes > self.federated.num_nodes:
            raise ValueError(f"federated.min_nodes={self.federated.min_nodes} is more than num_nodes; lower it")
        if self.privacy is not None:
            if self.federated.sampling_probability != 1:
                raise ValueError(
                    f"federated.sampling_probability={self.federated.sampling_probability} is for runs without "
                    "privacy; under a plan give privacy.sampling_probability, which is accounted"
                )
            try:
                check_private_upload(self.federated.upload_codec)
            except ConfigError as error:
                raise ValueError(str(error)) from error
            declared = self.privacy.population_size // self.federated.num_nodes
            if self.privacy.trust_model == "central" and declared < self.privacy.min_users_per_node:
                raise ValueError(
                    f"privacy.population_size / federated.num_nodes = {declared} users a node, "
                    f"privacy.min_users_per_node={self.privacy.min_users_per_node}: a sum over fewer would show the "
                    "server too much; put more users on each node"
                )
        return self

    @model_validator(mode="after")
    def _local_steps_belong_to_an_example_level_plan(self) -> Config:
        by_example = self.privacy is not None and self.privacy.unit == "interaction"
        if by_example and self.federated.local_steps is None:
            raise ValueError(
                "privacy.unit='interaction' needs federated.local_steps, the noisy steps of a round; give it"
            )
        if not by_example and self.federated.local_steps is not None:
            raise ValueError(
                f"federated.local_steps={self.federated.local_steps} is for privacy.unit='interaction' only; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _model_has_a_name(self) -> Config:
        if not isinstance(self.model.get("name"), str):
            raise ValueError('model.name is missing; name a model, for example name = "als"')
        return self

    def to_json(self) -> str:
        """Return the config as canonical JSON, the form in which it travels to the apps."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Read what `to_json` wrote."""
        return build(json.loads(text), "config")


def load(path: Path, settings: Iterable[str] = ()) -> Config:
    """Read a TOML file and apply `section.key=value` settings over it.

    Args:
        path: the file; a relative `data.path` in it is taken from the current directory.
        settings: overrides, values in TOML syntax (a bare word is a string).

    Raises:
        ConfigError: where the file or a setting is malformed, or a key or value is not allowed.
    """
    return build(read_table(path, settings), str(path))


def read_table(path: Path, settings: Iterable[str] = ()) -> dict[str, Any]:
    """Read a TOML file with settings over it, unchecked; raise a `ConfigError` where either is malformed."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} can't be read: {error}; give the path of a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"config {path} is not TOML: {error}; see simulations/synthetic.toml for an example"
        ) from error
    for setting in settings:
        _apply(table, setting)
    return table


def build(table: Mapping[str, Any], source: str) -> Config:
    """Check a nested mapping and make the config of it.

    Raises:
        ConfigError: with every problem found, one after the other, on one line.
    """
    table = dict(table)
    _check_tables(table, source)
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(describe(error, Config))}") from error
    return config.model_copy(update={"model": _resolve_model(config, source)})


def _check_tables(table: Mapping[str, Any], source: str) -> None:
    for name, value in table.items():
        if name in Config.model_fields and not isinstance(value, Mapping):
            raise ConfigError(f"{source}: {name}={value!r} is not a table; write [{name}] and its keys below it")


def _resolve_model(config: Config, source: str) -> dict[str, Any]:
    from fedrec.models.registry import settings_type

    table = dict(config.model)
    name = table.pop("name")
    settings = settings_type(name, None if config.privacy is None else config.privacy.unit)
    try:
        return {"name": name, **settings.model_validate(table).model_dump(mode="json", exclude_none=True)}
    except ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(describe(error, settings, 'model.'))}") from error


def describe(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Turn pydantic's findings into our sentences: what was found, what is allowed, what to do."""
    sentences = []
    for finding in error.errors():
        place = prefix + ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            known = _keys_at(model, finding["loc"][:-1])
            near = difflib.get_close_matches(str(finding["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(known)}"
            sentences.append(f"unknown key {place}; {hint}")
        elif finding["type"] == "missing":
            sentences.append(f"{place} is missing; {_advice(place)}")
        elif finding["type"] == "value_error":
            sentences.append(finding["msg"].removeprefix("Value error, "))
        else:
            wanted = finding["msg"].replace("Input should be", "it should be")
            sentences.append(f"{place}={finding['input']!r} is not allowed: {wanted[0].lower()}{wanted[1:]}")
    return sentences


def _advice(place: str) -> str:
    advice = {
        "privacy.population_size": "declare the public number of users the plan is made for "
        "(add-or-remove adjacency hides the real one)",
        "data": "add a [data] table with a name or a path",
        "model": "add a [model] table with a name",
    }
    return advice.get(place, "add it")


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return list(model.model_fields)


def _apply(table: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise ConfigError(
            f"--set {setting!r} is not of the form section.key=value; write for example --set model.dim=64"
        )
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {setting!r}: {part} is a value, not a table; set {part} itself")
    table[parts[-1]] = value


def to_toml(config: Config) -> str:
    """Write a config as TOML, every default resolved."""
    lines: list[str] = []
    for section, values in config.model_dump(mode="json", exclude_none=True).items():
        _write_table(lines, section, values)
    return "\n".join(lines) + "\n"


def _write_table(lines: list[str], name: str, values: Mapping[str, Any]) -> None:
    lines.append(f"[{name}]")
    nested = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines.extend(f"{_toml_key(key)} = {_toml(value)}" for key, value in values.items() if key not in nested)
    lines.append("")
    for key, value in nested.items():
        if value:
            _write_table(lines, f"{name}.{_toml_key(key)}", value)


def _toml_key(key: str) -> str:
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else json.dumps(key)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
