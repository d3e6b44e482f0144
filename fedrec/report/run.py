"""A run folder as data: `config.toml`, `rounds.jsonl` and `result.json` read into one frozen `Run`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedrec.errors import DataError
from fedrec.report.fields import as_list, as_number, as_numbers, as_table, as_text, flattened


@dataclass(frozen=True)
class PrivacyEvent:
    """One kind of noisy release and how often it happened; None and "" where the file does not say."""

    purpose: str
    noise_multiplier: float | None
    sampling_probability: float | None
    count: float | None


@dataclass(frozen=True)
class Privacy:
    """The guarantee of a run as its result states it; None and "" where the file does not say."""

    epsilon: float | None
    delta: float | None
    unit: str
    neighboring_relation: str
    trust_model: str
    accountant: str
    clipping_norm: float | None
    max_grad_norm: float | None
    population_size: float | None
    statement: str
    events: tuple[PrivacyEvent, ...]

    @property
    def claim(self) -> str:
        """Return unit and trust model in words: epsilons of different claims are not comparable."""
        return f"unit {self.unit or 'not stated'}, {self.trust_model or 'unknown'} trust"


@dataclass(frozen=True)
class Group:
    """Metrics of one group of users or items, such as "5-10" or "top 1%"."""

    name: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Slice:
    """Metrics of the groups of one slice.

    Args:
        kind: "history_length", "category", "context" or "user".
        name: the context field or user attribute; "" for the other kinds.
        groups: in the order of the result.
    """

    kind: str
    name: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Gap:
    """How far apart one metric is over the large groups of users of one slice; None and "" where it is not known."""

    metric: str
    gap: float | None
    ratio: float | None
    lowest: str
    highest: str
    by_chance: float | None


@dataclass(frozen=True)
class Gaps:
    """The gaps of one slice; `gaps` is empty where fewer than two groups have `min_users` users."""

    name: str
    min_users: float | None
    num_groups: float | None
    gaps: tuple[Gap, ...]


@dataclass(frozen=True)
class Round:
    """One line of `rounds.jsonl`."""

    number: int
    seconds: float | None
    validation: Mapping[str, float]
    diagnostics: Mapping[str, float]
    communication: Mapping[str, float]
    epsilon_spent: float | None


@dataclass(frozen=True)
class Result:
    """What `result.json` says; `metrics` is split -> metric -> value, `environment` is flat ("versions.torch")."""

    data: Mapping[str, Any]
    model: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    activity: tuple[Group, ...]
    item_popularity: tuple[Group, ...]
    slices: tuple[Slice, ...]
    gaps: tuple[Gaps, ...]
    privacy: Privacy | None
    timing: Mapping[str, float]
    communication: Mapping[str, float]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """One run folder.

    Args:
        folder: where it lies.
        config: the resolved config, {} where there is none.
        config_text: the same as it stands in the file.
        rounds: by round number; of a retried round the last line counts.
        result: None while the run is unfinished.
        torn: the last line of `rounds.jsonl` is incomplete and was left out.
    """

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    rounds: tuple[Round, ...] = ()
    result: Result | None = None
    torn: bool = False

    @property
    def data_name(self) -> str:
        """Return the name of the data, else the path the config reads it from."""
        result = self.result.data if self.result else {}
        config = self.config_table("data")
        return str(result.get("name") or config.get("path") or config.get("name") or "unnamed data")

    @property
    def model_name(self) -> str:
        """Return the name of the model."""
        result = self.result.model if self.result else {}
        return str(result.get("name") or self.config_table("model").get("name") or "unnamed model")

    @property
    def seed(self) -> str | None:
        """Return the seed as text, None where it is not recorded."""
        recorded = self.result.environment.get("seed") if self.result else None
        configured = self.config_table("runtime").get("seed")
        return recorded or (None if configured is None else str(configured))

    def config_table(self, name: str) -> Mapping[str, Any]:
        """Return one table of the config, {} where there is none."""
        table = self.config.get(name)
        return table if isinstance(table, dict) else {}


def read_run(folder: Path) -> Run:
    """Read a run folder; unknown fields are ignored.

    Raises:
        DataError: where the folder is no run, or one of its files is damaged (names file, and line or field).
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the run folder that `fedrec simulate --out` wrote")
    if not any((folder / name).is_file() for name in ("rounds.jsonl", "result.json")):
        raise DataError(
            f"{folder} is not a run folder (or no round has finished yet): it holds neither rounds.jsonl nor "
            "result.json; give the folder that `fedrec simulate --out` wrote"
        )
    config, config_text = _read_config(folder / "config.toml")
    result_path = folder / "result.json"
    result = parse_result(_read_json(result_path), str(result_path)) if result_path.is_file() else None
    rounds, torn = _read_rounds(folder / "rounds.jsonl", finished=result is not None)
    return Run(folder, config, config_text, rounds, result, torn)


def parse_result(raw: object, source: str) -> Result:
    """Turn the content of a `result.json` into a `Result`.

    Args:
        raw: the parsed JSON.
        source: how errors name it, usually its path.

    Raises:
        DataError: where a known field has the wrong type.
    """
    result = as_table(raw, source)
    metrics = as_table(result.get("metrics"), f"{source}: metrics")
    slices = as_table(metrics.get("slices"), f"{source}: metrics.slices")
    privacy = result.get("privacy")
    return Result(
        data=as_table(result.get("data"), f"{source}: data"),
        model=as_table(result.get("model"), f"{source}: model"),
        metrics={
            split: as_numbers(metrics[split], f"{source}: metrics.{split}")
            for split in ("validation", "test", "test_sampled_99")
            if metrics.get(split) is not None
        },
        activity=_groups(slices.get("activity"), f"{source}: metrics.slices.activity"),
        item_popularity=_groups(slices.get("item_popularity"), f"{source}: metrics.slices.item_popularity"),
        slices=_slices(slices, f"{source}: metrics.slices"),
        gaps=_gaps(slices.get("gaps"), f"{source}: metrics.slices.gaps"),
        privacy=None if privacy is None else _privacy(privacy, f"{source}: privacy"),
        timing=as_numbers(result.get("timing"), f"{source}: timing"),
        communication=as_numbers(result.get("communication"), f"{source}: communication"),
        environment=flattened(as_table(result.get("environment"), f"{source}: environment")),
    )


def _privacy(raw: object, where: str) -> Privacy:
    table = as_table(raw, where)
    return Privacy(
        epsilon=as_number(table.get("epsilon"), f"{where}.epsilon"),
        delta=as_number(table.get("delta"), f"{where}.delta"),
        unit=as_text(table.get("unit")),
        neighboring_relation=as_text(table.get("neighboring_relation")),
        trust_model=as_text(table.get("trust_model")),
        accountant=as_text(table.get("accountant")),
        clipping_norm=as_number(table.get("clipping_norm"), f"{where}.clipping_norm"),
        max_grad_norm=as_number(table.get("max_grad_norm"), f"{where}.max_grad_norm"),
        population_size=as_number(table.get("population_size"), f"{where}.population_size"),
        statement=as_text(table.get("statement")),
        events=tuple(
            _event(event, f"{where}.events[{position}]")
            for position, event in enumerate(as_list(table.get("events"), f"{where}.events"))
        ),
    )


def _event(raw: object, where: str) -> PrivacyEvent:
    table = as_table(raw, where)
    return PrivacyEvent(
        purpose=as_text(table.get("purpose")),
        noise_multiplier=as_number(table.get("noise_multiplier"), f"{where}.noise_multiplier"),
        sampling_probability=as_number(table.get("sampling_probability"), f"{where}.sampling_probability"),
        count=as_number(table.get("count"), f"{where}.count"),
    )


def _read_config(path: Path) -> tuple[Mapping[str, Any], str]:
    if not path.is_file():
        return {}, ""
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except ValueError as error:  # tomllib names the line
        raise DataError(f"{path} is not valid TOML: {error}; write it again with `fedrec simulate`") from error


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); delete the file to report on the rounds only"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not UTF-8 text; delete the file to report on the rounds only") from error


def _read_rounds(path: Path, finished: bool) -> tuple[tuple[Round, ...], bool]:
    """Read all rounds; a last line without its end is the mark of a running or killed run, not of damage."""
    if not path.is_file():
        return (), False
    rounds: dict[int, Round] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            raw = json.loads(line)
        except ValueError as error:
            if number == len(lines) and not finished:
                return _in_order(rounds), True
            raise DataError(f"{where}: not valid JSON ({error}); repair or delete the line") from error
        entry = _round(raw, where)
        rounds[entry.number] = entry
    return _in_order(rounds), False


def _in_order(rounds: Mapping[int, Round]) -> tuple[Round, ...]:
    return tuple(rounds[number] for number in sorted(rounds))


def _round(raw: object, where: str) -> Round:
    line = as_table(raw, where)
    number = line.get("round")
    if not isinstance(number, int) or isinstance(number, bool):
        raise DataError(f"{where}: round is {number!r}; it must be a whole number; repair or delete the line")
    metrics = as_table(line.get("metrics"), f"{where}: metrics")
    return Round(
        number=number,
        seconds=as_number(line.get("seconds"), f"{where}: seconds"),
        validation=as_numbers(metrics.get("validation"), f"{where}: metrics.validation"),
        diagnostics=as_numbers(line.get("diagnostics"), f"{where}: diagnostics"),
        communication=as_numbers(line.get("communication"), f"{where}: communication"),
        epsilon_spent=as_number(line.get("epsilon_spent"), f"{where}: epsilon_spent"),
    )


def _slices(raw: Mapping[str, Any], where: str) -> tuple[Slice, ...]:
    found = [
        Slice(kind, name, _groups(groups, f"{where}.{kind}.{name}"))
        for kind in ("user", "context")
        for name, groups in as_table(raw.get(kind), f"{where}.{kind}").items()
    ]
    found += [Slice(kind, "", _groups(raw.get(kind), f"{where}.{kind}")) for kind in ("history_length", "category")]
    return tuple(one for one in found if one.groups)


def _gaps(raw: object, where: str) -> tuple[Gaps, ...]:
    found = []
    for name, one in as_table(raw, where).items():
        table = as_table(one, f"{where}.{name}")
        numbers = as_numbers({key: table.get(key) for key in ("min_users", "num_groups")}, f"{where}.{name}")
        metrics = sorted((key for key in table if "@" in key), reverse=True)  # NDCG before HR
        gaps = tuple(_gap(key, table[key], f"{where}.{name}.{key}") for key in metrics)
        found.append(Gaps(name.removeprefix("user."), numbers.get("min_users"), numbers.get("num_groups"), gaps))
    return tuple(found)


def _gap(metric: str, raw: object, where: str) -> Gap:
    table = as_table(raw, where)
    gap, ratio, chance = (as_number(table.get(key), f"{where}.{key}") for key in ("gap", "ratio", "gap_by_chance"))
    return Gap(metric, gap, ratio, as_text(table.get("lowest")), as_text(table.get("highest")), chance)


def _groups(raw: object, where: str) -> tuple[Group, ...]:
    groups = []
    for position, entry in enumerate(as_list(raw, where)):
        table = as_table(entry, f"{where}[{position}]")
        groups.append(Group(str(table.get("group", "?")), as_numbers(table, f"{where}[{position}]")))
    return tuple(groups)
