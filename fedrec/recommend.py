"""Recommendation lists of a finished run, for every user, as a Parquet file in the data's own ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fedrec import assemble
from fedrec.config import Config
from fedrec.data.queries import Queries, parse_query
from fedrec.device.store import DeviceStore
from fedrec.errors import ConfigError
from fedrec.evaluation.nodes import score_users
from fedrec.evaluation.ranking import Targets, rank
from fedrec.federated.checkpoint import read_checkpoint
from fedrec.models.protocol import ServerState
from fedrec.run_folder import RunFolder

_ROW_GROUP = 2**18


def write_recommendations(
    run: Path, to: Path, top: int, users: Sequence[str] | None, context: Mapping[str, str] | None = None
) -> int:
    """Write the best `top` items of users as at test time: history with the validation interaction, met items left out.

    Args:
        run: a run folder with at least one finished round.
        to: Parquet file with columns user, item (the data's own ids), rank (1 = best) and score.
        top: length of a list; shorter where a user has met more items.
        users: ids of the users wanted; all where None.
        context: field -> value of the context that all lists are for; a field that is not there is unknown.

    Returns:
        Rows written.

    Raises:
        ConfigError: for a user or a context field that the data does not know, or a path that can't be written.
    """
    folder = RunFolder(run)
    config = folder.config()
    config_json = config.to_json()
    wanted = _wanted(config_json, users)
    query = parse_query(assemble.dataset(config_json).interactions, context or {})
    shared = assemble.as_broadcast(config, final_state(run, config).shared, config.federated.num_rounds)
    num_nodes = config.federated.num_nodes
    written = 0
    try:
        with pq.ParquetWriter(to, _schema(config_json)) as writer:
            for node in range(num_nodes):
                state = _kept_on(folder, config, node)
                for table in _gathered(_tables(config_json, node, num_nodes, shared, top, wanted, query, state)):
                    writer.write_table(table)
                    written += table.num_rows
    except OSError as error:
        raise ConfigError(f"--to {to} can't be written ({error}); give a path in a folder you may write") from error
    return written


def read_context(options: Sequence[str]) -> dict[str, str]:
    """Read `field=value` options.

    Raises:
        ConfigError: for an option of another form, or a field that is given twice.
    """
    context: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise ConfigError(
                f"--context {option!r} is not of the form field=value; write for example --context daytime=evening"
            )
        if name.strip() in context:
            raise ConfigError(f"--context gives {name.strip()!r} twice; a list is for one context: leave one out")
        context[name.strip()] = value.strip()
    return context


def final_state(run: Path, config: Config) -> ServerState:
    """Read the final state of a finished run.

    Raises:
        ConfigError: where rounds are missing, or the config was changed after the run.
    """
    checkpoint = read_checkpoint(RunFolder(run).checkpoint / "server.safetensors")
    if checkpoint.run_id != assemble.run_id(config):
        raise ConfigError(f"{run}/config.toml is not what the run was made with; restore it, or simulate again")
    if checkpoint.round < config.federated.num_rounds:
        raise ConfigError(
            f"{run} has finished {checkpoint.round} of {config.federated.num_rounds} rounds; "
            f"go on with: fedrec resume {run}"
        )
    return checkpoint.state


def _gathered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join tables to row groups of at least `_ROW_GROUP` rows, so that neither they nor their number grow large."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= _ROW_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _kept_on(folder: RunFolder, config: Config, node: int) -> dict[str, torch.Tensor]:
    """Return the private state that a node of a simulation kept of its users; empty where it lies elsewhere."""
    store = folder.path / "nodes" / str(node)
    if not store.exists():
        return {}
    num_users = len(assemble.node_data(config.to_json(), node, config.federated.num_nodes).user_keys)
    return DeviceStore(store).load_round(assemble.run_id(config), config.federated.num_rounds, num_users)


def _tables(
    config_json: str,
    node: int,
    num_nodes: int,
    shared: Mapping[str, torch.Tensor],
    top: int,
    wanted: np.ndarray | None,
    query: Mapping[str, np.ndarray],
    state: Mapping[str, torch.Tensor],
) -> Iterator[pa.Table]:
    config = Config.from_json(config_json)
    model, device = assemble.model_of(config), assemble.device_of(config)
    shared = {name: tensor.to(device) for name, tensor in shared.items()}
    data = assemble.node_data(config_json, node, num_nodes).split
    history = data.history
    allowed = None if data.candidates is None else torch.from_numpy(data.candidates).to(device)
    user_ids, item_ids = history.user_ids.ids, history.item_ids.ids
    # Batches as in the evaluation: first the evaluated users, then the rest, so that scores agree with it to the bit.
    schema, asked = _schema(config_json), None if wanted is None else np.isin(user_ids, wanted)
    evaluated = data.test.lengths > 0
    queries: Queries = {name: np.broadcast_to(value, len(user_ids)) for name, value in query.items()}
    for rows in (np.flatnonzero(evaluated), np.flatnonzero(~evaluated)):
        for batch, scores in score_users(model, shared, history, rows, device, asked, queries, state):
            seen = torch.zeros_like(batch.mask) if config.evaluation.repeat else batch.mask
            found = rank(scores, batch.items, seen, Targets.none(batch.num_users), min(top, history.num_items), allowed)
            items = found.items.numpy()
            shown = items >= 0
            if asked is not None:
                shown &= asked[batch.rows, None]
            columns = {
                "user": np.repeat(user_ids[batch.rows], items.shape[1]).reshape(items.shape)[shown],
                "item": item_ids[items[shown]],
                "rank": np.broadcast_to(np.arange(1, items.shape[1] + 1, dtype=np.int32), items.shape)[shown],
                "score": found.scores.numpy()[shown].astype(np.float32),
            }
            yield pa.table(columns, schema=schema)


def _schema(config_json: str) -> pa.Schema:
    interactions = assemble.dataset(config_json).interactions
    types = [
        pa.int64() if np.issubdtype(vocabulary.ids.dtype, np.integer) else pa.string()
        for vocabulary in (interactions.user_ids, interactions.item_ids)
    ]
    return pa.schema([("user", types[0]), ("item", types[1]), ("rank", pa.int32()), ("score", pa.float32())])


def _wanted(config_json: str, users: Sequence[str] | None) -> np.ndarray | None:
    if users is None:
        return None
    ids = assemble.dataset(config_json).interactions.user_ids.ids
    known = {str(user): user for user in ids.tolist()}
    unknown = [user for user in users if user not in known]
    if unknown:
        raise ConfigError(f"user {unknown[0]!r} is not in the data; give an id of the data set, or --all")
    return np.array([known[user] for user in users], dtype=ids.dtype)
