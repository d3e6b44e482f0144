"""A peer in a process of its own, bound to its cores, that does a round when asked and answers how long it took.

    python -m simulations.speed_peers.worker PEER DATA THREADS CORES

reads a line from stdin for each round and answers in JSON lines on stdout; `Worker` starts it and talks to it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

_WARM_UP_ROUNDS = 2
_CLOSING_SECONDS = 60


class Worker:
    """A process that holds one peer, ready and warmed up.

    A process of its own keeps frameworks apart: threads, settings read at import, start methods. Idle workers wait for
    a line and take no time from the one that runs.
    """

    def __init__(self, name: str, data: str, threads: int) -> None:
        """Start the process, and wait until the peer has done its first rounds: imports and compilation are over.

        Args:
            name: of the peer.
            data: name of the data set.
            threads: threads, and cores that the process is bound to.

        Raises:
            RuntimeError: where the peer failed, with the end of what it wrote to stderr.
        """
        from simulations.speed_peers import PEERS

        cores = os.cpu_count() or 1 if PEERS[name].whole_machine else threads
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "simulations.speed_peers.worker", name, data, str(threads), str(cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            env={**os.environ, **_environment(threads)},
        )
        ready = self._answer()
        self.num_users, self.num_examples = int(ready["num_users"]), int(ready["num_examples"])

    def round(self) -> float:
        """Do one round and return its seconds."""
        if self._process.stdin is None:
            raise RuntimeError(f"{self.name} was started without stdin")
        self._process.stdin.write("round\n")
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            self._process.wait(_CLOSING_SECONDS)
            self._errors.seek(0)
            raise RuntimeError(f"{self.name} failed:\n{self._errors.read()[-4000:]}")
        return dict(json.loads(line))


def _environment(threads: int) -> dict[str, str]:
    """Return what libraries read when they are imported."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} intra_op_parallelism_threads={threads}",
        "JAX_PLATFORMS": "cpu",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
    }


def main(arguments: Sequence[str]) -> None:
    """Make the peer, then do a round for every line until there are no more."""
    name, data, threads, cores = arguments[0], arguments[1], int(arguments[2]), int(arguments[3])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not end up among the answers
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import torch

    from simulations.speed_peers import PEERS, make_peer
    from simulations.speed_peers.work import load_work

    torch.set_num_threads(threads)
    work = load_work(data, PEERS[name].max_users)
    peer = make_peer(name, work)
    for _ in range(_WARM_UP_ROUNDS):
        peer.round()
    print(json.dumps({"num_users": work.num_users, "num_examples": len(work.items)}), file=answers)
    for _ in sys.stdin:
        start = time.perf_counter()
        peer.round()
        print(json.dumps({"seconds": time.perf_counter() - start}), file=answers)
    peer.close()


if __name__ == "__main__":
    main(sys.argv[1:])
