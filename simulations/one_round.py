"""One training round on stored histories, measured in a process of its own; `simulations.scale` starts it.

    python -m simulations.one_round FOLDER MODEL DIM THREADS

prints one JSON line. A round is what the engine does between a broadcast and the next one: every user of the folder is
fitted, contributes and is summed, and the model is updated. Fitted vectors of the users are not kept: a round fits
them from the shared parameters alone.

Imports, the compilation of kernels and a round on a tiny world come before the clock starts. Memory is that of the
whole process, from its start to the end of the round:

    peak_rss_bytes        VmHWM: the most that was resident at one moment, mapped files included. The pages of the data
                          that were read count, although the system could drop them at any time.
    peak_anonymous_bytes  the most RssAnon seen, sampled every 5 ms: what the process allocated, that is memory beyond
                          the data itself (and beyond shared libraries, which are mapped files, too). Linux only.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedrec.data.batches import user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.data.columnar import StoredHistories, open_columnar
from fedrec.data.columnar_writer import store_interactions
from fedrec.data.interactions import Vocabulary
from fedrec.data.synthetic import SyntheticConfig, generate
from fedrec.federated.cohort import sum_contributions
from fedrec.models.protocol import FederatedModel, ServerState
from fedrec.models.registry import build_model
from fedrec.privacy.mechanism import publish_exact
from fedrec.randomness import Key, user_keys

SAMPLE_SECONDS = 0.005
_STATUS = Path("/proc/self/status")
_TINY = {"num_users": 300, "num_items": 200, "mean_interactions": 10}


class AnonymousPeak:
    """Samples how much memory the process has allocated while a block runs; `bytes` is the peak, None off Linux."""

    def __init__(self) -> None:
        self.bytes = _status("RssAnon")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> AnonymousPeak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while self.bytes is not None:
            self.bytes = max(self.bytes, _status("RssAnon") or 0)
            if self._done.wait(SAMPLE_SECONDS):
                return


def _status(name: str) -> int | None:
    """Return a memory figure of this process in bytes, None where the system does not tell."""
    if not _STATUS.exists():
        return None
    lines = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(lines[0].split()[1]) * 1024 if lines else None


def peak_rss() -> int:
    """Return the peak resident memory of this process in bytes.

    VmHWM starts anew with the program; `ru_maxrss`, the fallback, may be that of the process that started it.
    """
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_round(
    model: FederatedModel, server: ServerState, histories: StoredHistories, keys: np.ndarray, key: Key
) -> tuple[ServerState, dict[str, float]]:
    """Run one round without privacy over all users, in batches of the size that suits the model.

    Args:
        model: the model.
        server: its state before the round.
        histories: of all users.
        keys: (num_users,) uint64, what the users' draws follow from.
        key: key of the round.

    Returns:
        The new state, and seconds: in all, of the sum over users, of the update, and of all processors together.

    Raises:
        RuntimeError: where a user's contribution or the new model is not finite; a figure of such a round is worthless.
    """
    start, cpu = time.perf_counter(), time.process_time()
    batches = user_batches(histories, max_elements=model.batch_cells, keys=keys)
    total, seen = sum_contributions(model, server.shared, batches, math.inf, key)
    summed = time.perf_counter()
    server = model.update(server, publish_exact(total, float(histories.num_users)))
    end, cpu = time.perf_counter(), time.process_time() - cpu
    if seen.cohort_size != histories.num_users or seen.num_zeroed:
        raise RuntimeError(f"{seen} of {histories.num_users} users: not every user was summed")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in server.shared.values()):
        raise RuntimeError("the updated model is not finite")
    seconds = {"seconds": end - start, "sum_seconds": summed - start, "update_seconds": end - summed}
    return server, {**seconds, "cpu_seconds": cpu}


def warm_up(model: FederatedModel, key: Key) -> None:
    """Run a round on a tiny world that is stored in the same form, so that every kernel is compiled."""
    interactions = replace(generate(SyntheticConfig.model_validate(_TINY), key).interactions, context={})
    with tempfile.TemporaryDirectory() as folder:
        stored = store_interactions(Path(folder) / "tiny", interactions)
        keys = user_keys(stored.user_ids.ids)
        run_round(model, model.init(Catalogue(stored.item_ids), key), stored, keys, key)


def measure(folder: Path, name: str, dim: int, num_threads: int) -> dict[str, Any]:
    """Measure one round of a model on the histories of a folder.

    Args:
        folder: columnar files.
        name: name of the model.
        dim: length of its vectors.
        num_threads: threads of torch and of the kernels.

    Returns:
        What was measured, see the head of this file. `prepare_seconds` are spent once a run, for checking the files
        and hashing the users' ids to keys; they are not part of `seconds`.
    """
    torch.set_num_threads(num_threads)
    key = Key.from_seed(0)
    model = build_model({"name": name, "dim": dim}, None)
    warm_up(model, key.fold("warm up"))
    with AnonymousPeak() as anonymous:
        before = anonymous.bytes
        start = time.perf_counter()
        stored = open_columnar(folder)
        keys = user_keys(stored.user_ids.ids)
        prepared = time.perf_counter() - start
        server = model.init(Catalogue(Vocabulary(np.arange(stored.num_items))), key.fold("init"))
        _, seconds = run_round(model, server, stored, keys, key.fold("round", 1))
    return {
        "model": name,
        "num_users": stored.num_users,
        "num_items": stored.num_items,
        "num_interactions": len(stored),
        "dim": dim,
        "num_threads": num_threads,
        **seconds,
        "users_per_second": stored.num_users / seconds["seconds"],
        "prepare_seconds": prepared,
        "peak_rss_bytes": peak_rss(),
        "peak_anonymous_bytes": anonymous.bytes,
        "start_anonymous_bytes": before,
        "data_bytes": stored.num_bytes,
        "data_fingerprint": stored.header.fingerprint,
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
