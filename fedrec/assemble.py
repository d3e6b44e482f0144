"""From a config to what it names: data, split, a node's share of it, model, plan and device."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from fedrec.config import Config, PrivacyConfig
from fedrec.config import load as load_config
from fedrec.data.catalogue import Dataset
from fedrec.data.sources import load
from fedrec.data.splits import Split, split
from fedrec.errors import ConfigError
from fedrec.evaluation.counts import Cutoffs
from fedrec.evaluation.slices import Slices
from fedrec.federated.codec import Codec, spec_of
from fedrec.models.predictions import predictions_of
from fedrec.models.protocol import FederatedModel, grow, grown
from fedrec.models.registry import build_model
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.randomness import Key, user_keys

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class NodeData:
    """What one node of a simulation holds: its own users, and the public catalogue size.

    Args:
        split: the node's users only.
        user_keys: (num_users,) uint64, what each user's random draws follow from.
    """

    split: Split
    user_keys: np.ndarray


def dataset(config_json: str) -> Dataset:
    """Load the data set of a config (given as JSON, so that processes can cache it)."""
    return _dataset(_data_of(config_json, with_seed=False))


def whole_split(config_json: str) -> Split:
    """Split the data set of a config by its protocol."""
    return _whole_split(_data_of(config_json))


def node_data(config_json: str, partition: int, num_partitions: int) -> NodeData:
    """Return the users of one node: a user's own key says which, so that nobody else's data moves a user."""
    return _node_data(_data_of(config_json), partition, num_partitions)


def forget_data() -> None:
    """Forget what was loaded: files may have changed since."""
    for loaded in (_dataset, _fingerprint, _whole_split, _node_data, slices_of, _shared_spec, totals_spec):
        loaded.cache_clear()


def _data_of(config_json: str, with_seed: bool = True) -> str:
    """Return a config that says the same of the data and nothing else: runs of other models then load it once."""
    table = json.loads(config_json)
    found = {"data": table["data"], "evaluation": table.get("evaluation", {}), "model": {"name": "popularity"}}
    if with_seed:
        found["runtime"] = {"seed": table.get("runtime", {}).get("seed", 0)}
    return json.dumps(found, sort_keys=True)


@lru_cache(maxsize=2)
def _dataset(config_json: str) -> Dataset:
    config = Config.from_json(config_json)
    data = config.data
    return load(
        data.name,
        data.path,
        columns=data.columns.model_dump(exclude_unset=True),
        min_rating=data.min_rating,
        repeat=config.evaluation.repeat,
        synthetic=data.synthetic,
        time_context=data.time_context or (),
    )


@lru_cache(maxsize=2)
def _fingerprint(config_json: str) -> str:
    return _dataset(config_json).interactions.fingerprint(with_attributes=False)


@lru_cache(maxsize=2)
def _whole_split(config_json: str) -> Split:
    config = Config.from_json(config_json)
    return split(
        config.evaluation.protocol,
        dataset(config_json).interactions,
        run_key(config).fold("split"),
        share=config.evaluation.holdout_share,
        validation_share=config.evaluation.validation_share,
        test_share=config.evaluation.test_share,
        repeat=config.evaluation.repeat,
    )


@lru_cache(maxsize=2)
def slices_of(config_json: str) -> Slices:
    """Return the groups that final metrics are told apart by."""
    data = dataset(config_json)
    return Slices.of(data.interactions, data.catalogue)


@lru_cache(maxsize=256)
def _node_data(config_json: str, partition: int, num_partitions: int) -> NodeData:
    whole = whole_split(config_json)
    rows = np.flatnonzero(nodes_of(user_keys(whole.train.user_ids.ids), num_partitions) == partition)
    part = replace(
        whole,
        train=whole.train.of_users(rows),
        validation=whole.validation.of_users(rows),
        test=whole.test.of_users(rows),
        served=whole.served.of_users(rows),
    )
    return NodeData(part, user_keys(part.train.user_ids.ids))


def nodes_of(keys: np.ndarray, num_nodes: int) -> np.ndarray:
    """Return (num_users,) int64: the node of each user of a simulation, from the user's (num_users,) uint64 key."""
    return np.asarray(keys % np.uint64(num_nodes)).astype(np.int64)


def shared_spec(config_json: str, num_rounds: int = 0) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return name -> (dtype, shape) of the shared parameters, known from the config and the public catalogue.

    Args:
        config_json: the config.
        num_rounds: finished rounds; a model may add parameters on the way.
    """
    return _shared_spec(config_json, grown(model_of(Config.from_json(config_json)), num_rounds))


@lru_cache(maxsize=8)
def _shared_spec(config_json: str, grown_up: bool) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    model = model_of(Config.from_json(config_json))
    shared = model.init(dataset(config_json).catalogue, Key.from_seed(0)).shared
    return spec_of(grow(model, shared) if grown_up else shared)


@lru_cache(maxsize=8)
def totals_spec(config_json: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return name -> (dtype, shape) of the blocks of the first round's sum, known as the shared parameters are."""
    shared = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in shared_spec(config_json).items()}
    return spec_of(model_of(Config.from_json(config_json)).totals(shared))


def dense_float32_bytes(config_json: str) -> dict[str, int]:
    """Return the bytes of a download and of an upload whose every number is a float32: what codecs are measured by."""
    specs = {"download": shared_spec(config_json), "upload": totals_spec(config_json)}
    return {way: sum(4 * math.prod(shape) for _, shape in spec.values()) for way, spec in specs.items()}


def check(config: Config) -> None:
    """Load and make everything that a config names, so that bad input is found before a run folder exists.

    Raises:
        FedrecError: for the first thing that is not as it has to be.
    """
    device_of(config)
    plan = plan_of(config)
    if plan is not None and plan.delta_is_large:
        _LOG.warning(
            "delta %g is above 1 / population_size = %g: it would allow publishing one user's data outright; "
            "choose a smaller privacy.target_delta",
            plan.delta,
            1 / plan.population_size,
        )
    _check_rounds(config)
    whole_split(config.to_json())
    shared_spec(config.to_json())


def _check_rounds(config: Config) -> None:
    """Refuse too few rounds for a model that adds parameters on the way, or a sample of users in the round of it."""
    adding, federated = getattr(model_of(config), "grows_after", math.inf), config.federated
    if adding < math.inf and (federated.num_rounds < adding or federated.sampling(int(adding)) < 1):
        raise ConfigError(
            f"model.slit takes round {adding} (model.als_rounds + model.tower_rounds + 1), from everybody, but "
            f"federated.num_rounds={federated.num_rounds} and federated.last_full_rounds={federated.last_full_rounds}; "
            f"set them to {adding} and 1, or change model.tower_rounds"
        )


def config_of_run(run_config: Mapping[str, object]) -> Config:
    """Read the config that a Flower run was started with.

    Args:
        run_config: `config-json` (a resolved config), or `config` (path of a TOML file: absolute, or relative to the
            current directory or to the app).

    Raises:
        ConfigError: where neither is given or readable, or the run does not say that it is a simulation.
    """
    if run_config.get("simulation") is not True:
        raise ConfigError(
            "the run config does not say simulation = true; this version runs simulations only: they send metrics and "
            "diagnostics that a deployment must not, and derive their noise from the seed"
        )
    if run_config.get("config-json"):
        return Config.from_json(str(run_config["config-json"]))
    if not run_config.get("config"):
        raise ConfigError("the run names no config; pass --run-config 'config=\"FILE.toml\"'")
    path = Path(str(run_config["config"]))
    beside_app = Path(__file__).resolve().parent.parent / path
    return load_config(path if path.exists() or not beside_app.exists() else beside_app)


def model_of(config: Config) -> FederatedModel:
    """Build the model, in its bounded form where there is a privacy plan, or the one that learns by example."""
    privacy = config.privacy
    return (
        build_model(config.model, None) if privacy is None else build_model(config.model, privacy.bound, privacy.unit)
    )


def plan_of(config: Config) -> PrivacyPlan | None:
    """Return the privacy plan of a config; see `_plan`."""
    if config.privacy is None:
        return None
    return _plan(config.privacy, config.federated.num_rounds, config.federated.local_steps or 1)


@lru_cache(maxsize=32)
def _plan(privacy: PrivacyConfig, num_rounds: int, steps_per_round: int) -> PrivacyPlan:
    """Calibrate the privacy plan of a run, or take the noise that the config gives.

    Privacy:
        Unit and trust model of the config; one Gaussian release a round, all blocks jointly, or `steps_per_round`
        noisy steps where the unit is an interaction.
    """
    claim = {"trust_model": privacy.trust_model, "unit": privacy.unit}
    if privacy.noise_multiplier is not None:
        event = PrivacyEvent(privacy.noise_multiplier, privacy.sampling_probability, num_rounds * steps_per_round)
        size = privacy.population_size
        return PrivacyPlan(
            (event,), privacy.target_delta, privacy.bound, size, **claim, steps_per_round=steps_per_round
        )
    if privacy.target_epsilon is None:
        raise ConfigError("neither privacy.target_epsilon nor privacy.noise_multiplier is given; give one of them")
    return PrivacyPlan.calibrate(
        target_epsilon=privacy.target_epsilon,
        delta=privacy.target_delta,
        num_rounds=num_rounds,
        sampling_probability=privacy.sampling_probability,
        clipping_norm=privacy.bound,
        population_size=privacy.population_size,
        steps_per_round=steps_per_round,
        **claim,
    )


def upload_codec(config: Config) -> Codec:
    """Return how nodes send their sums."""
    return Codec(config.federated.upload_codec, config.federated.codec_rank, predictions_of(model_of(config)))


def download_codec(config: Config) -> Codec:
    """Return how the server broadcasts the shared parameters."""
    return Codec(config.federated.download_codec, config.federated.codec_rank)


def download_key(config: Config, finished_round: int) -> Key:
    """Return the key that the broadcast of a state follows from, so that it is the same whenever it is sent."""
    return run_key(config).fold("codec", "download", finished_round)


def as_broadcast(config: Config, shared: Mapping[str, torch.Tensor], finished_round: int) -> dict[str, torch.Tensor]:
    """Return the shared parameters as nodes decode them: what lists and metrics are made with."""
    codec, spec = download_codec(config), spec_of(shared)
    return codec.decode(codec.encode(shared, spec, download_key(config, finished_round)), spec)


def run_key(config: Config) -> Key:
    """Return the key of a simulation: everything random follows from the seed."""
    return Key.from_seed(config.runtime.seed)


def noise_key(config: Config) -> Key:
    """Return the key that a simulation's noise is drawn from.

    Privacy:
        Two runs of one seed whose sums differ must not share their noise: it would cancel in the difference of their
        releases. So the key follows from everything the sums follow from - data, split, model, plan, and the download
        codec, for nodes train on what they decode - and from nothing else, so that nodes and runtime do not change a
        release. `Coordinator.aggregate` adds who dropped out.
    """
    plan = plan_of(config)
    table = config.model_dump(mode="json", include={"data", "model", "evaluation"})
    if config.data.time_context is None:  # runs without are what they were before there was the key
        del table["data"]["time_context"]
    fingerprint = _fingerprint(_data_of(config.to_json(), with_seed=False))
    key = run_key(config).fold("noise", "" if plan is None else plan.digest(), json.dumps(table), fingerprint)
    federated = config.federated
    if federated.download_codec == ("dense",):
        return key
    return key.fold("download", *federated.download_codec, federated.codec_rank)


def draws_key(config: Config) -> Key:
    """Return the key that a simulation draws cohorts and examples from.

    Privacy:
        Amplification by sampling needs coins that are independent of those of other published runs, so they follow from
        all that noise follows from, and not from the seed alone.
    """
    return noise_key(config).fold("draws")


def run_id(config: Config) -> str:
    """Name a run by its config, so that the same run has the same ledger."""
    return hashlib.blake2b(config.to_json().encode(), digest_size=8).hexdigest()


def cutoffs(config: Config) -> Cutoffs:
    """Return the list lengths of the metrics."""
    return Cutoffs(config.evaluation.k, config.evaluation.recall_k)


def device_of(config: Config) -> torch.device:
    """Return the device to compute on, and set the number of threads.

    Raises:
        ConfigError: for a device that this machine does not have.
    """
    if config.runtime.num_threads:
        torch.set_num_threads(config.runtime.num_threads)
    name = config.runtime.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"runtime.device={name!r} is not here; allowed are 'auto', 'cpu', 'cuda', 'cuda:N'"
        ) from error
    return device
