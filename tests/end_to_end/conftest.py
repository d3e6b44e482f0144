"""A small data file, a config over it, and the command line called in-process."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedrec.cli import main

CONFIG = """
[data]
path = "{data}"

[model]
name = "als"
dim = 8
recency_weight = 5

[federated]
num_nodes = 2
num_rounds = 4

[evaluation]
sampled_99 = true

[runtime]
num_threads = 1
"""

PRIVACY = """
[privacy]
target_epsilon = 8.0
population_size = 100
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 users with a taste for one of two halves of 60 items; string ids, so that ids and rows can't be mixed up."""
    path = tmp_path_factory.mktemp("data") / "events.csv"
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "timestamp"])
        for user in range(80):
            length = int(rng.integers(1, 25))
            weights = np.where(np.arange(60) % 2 == user % 2, 10.0, 1.0) / (1 + np.arange(60))
            for step, item in enumerate(rng.choice(60, size=length, replace=False, p=weights / weights.sum())):
                writer.writerow([f"u{user:03d}", f"i{item * 7:04d}", 1_000_000 + 86_400 * step + user])
    return path


@pytest.fixture
def config_file(tmp_path: Path, data_file: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(CONFIG.format(data=data_file))
    return path


@pytest.fixture
def private_config_file(tmp_path: Path, data_file: Path) -> Path:
    path = tmp_path / "private.toml"
    path.write_text(CONFIG.format(data=data_file) + PRIVACY)
    return path


@pytest.fixture
def fedrec(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call the command line in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), captured.out, captured.err)

    return call
