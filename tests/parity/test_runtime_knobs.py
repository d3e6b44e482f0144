"""Runtime knobs change results only by rounding, and the same knobs give the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrec.cli import main
from fedrec.data.batches import user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.federated.checkpoint import read_checkpoint
from fedrec.federated.cohort import sum_contributions
from fedrec.models.registry import build_model
from fedrec.randomness import Key, user_keys
from fedrec.run_folder import RunFolder
from tests.end_to_end.conftest import Outcome
from tests.end_to_end.test_resume import Stop, stop_at
from tests.threads import num_threads
from tests.worlds import random_world

Fedrec = Callable[..., Outcome]

MF = {"name": "mf", "dim": 8, "local_epochs": 2, "local_batch_size": 16}
CASES: dict[str, tuple[dict[str, Any], float | None]] = {
    "als": ({"name": "als", "dim": 8}, None),
    "bounded-als": ({"name": "als", "dim": 8}, 1.0),
    "mf": (MF, None),
    "bounded-mf": (MF, 0.02),
}


def sums(name: str, threads: int = 1, micro_batch: int = 2**17) -> dict[str, torch.Tensor]:
    """Return the sums of a round of 80 users."""
    table, clipping_norm = CASES[name]
    interactions, key = random_world(80, 60, max_length=25), Key.from_seed(3)
    model = build_model(table, clipping_norm)
    shared = model.init(Catalogue(interactions.item_ids), key).shared
    batches = user_batches(interactions, max_elements=micro_batch, keys=user_keys(interactions.user_ids.ids))
    with num_threads(threads):
        total, _ = sum_contributions(model, shared, batches, clipping_norm or math.inf, key)
    return total.totals


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("threads", "micro_batch"), [(1, 2**17), (2, 2**17), (3, 100), (1, 7)])
def test_sums_repeat_to_the_bit_and_do_not_depend_on_threads_or_batches(
    name: str, threads: int, micro_batch: int
) -> None:
    found, again, plain = sums(name, threads, micro_batch), sums(name, threads, micro_batch), sums(name)
    for block, total in plain.items():
        assert torch.equal(found[block], again[block]), block
        torch.testing.assert_close(found[block], total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bounded-als", "bounded-mf"])
@pytest.mark.parametrize("form", ["compiled"], indirect=True)
def test_bounded_sums_depend_on_threads_and_batches_far_below_any_noise(name: str, form: str) -> None:
    """A noise multiplier of .5 on a clipping norm of .02 would be 1e-2: rounding is ten orders below it."""
    plain = sums(name)
    for threads, micro_batch in ((3, 2**17), (1, 7), (2, 50)):
        for block, total in sums(name, threads, micro_batch).items():
            torch.testing.assert_close(total, plain[block], rtol=1e-12, atol=1e-12)


def final_state(fedrec: Fedrec, config: Path, out: Path, *settings: str) -> tuple[dict[str, torch.Tensor], Any]:
    """Run a simulation; return what the server holds at its end, and the metrics."""
    arguments = [part for setting in settings for part in ("--set", setting)]
    with num_threads(torch.get_num_threads()):
        outcome = fedrec("simulate", config, "--out", out, *arguments)
    assert outcome.code == 0, outcome.err
    state = read_checkpoint(out / "checkpoint" / "server.safetensors").state
    return {**state.shared, **{f"memory of {name}": tensor for name, tensor in state.memory.items()}}, (
        RunFolder(out).result()["metrics"]
    )


@pytest.mark.parametrize("name", CASES)
def test_whole_runs_repeat_to_the_bit_and_do_not_depend_on_nodes_threads_or_batches(
    fedrec: Fedrec, config_file: Path, private_config_file: Path, tmp_path: Path, name: str
) -> None:
    table, clipping_norm = CASES[name]
    config = config_file if clipping_norm is None else private_config_file
    settings = [f'model.{key}="{value}"' if key == "name" else f"model.{key}={value}" for key, value in table.items()]
    settings += ["federated.num_rounds=2", "evaluation.sampled_99=false"]
    if clipping_norm is not None:
        settings += [f"privacy.clipping_norm={clipping_norm}", "privacy.sampling_probability=0.7"]
    one = (*settings, "federated.num_nodes=1")
    first, metrics = final_state(fedrec, config, tmp_path / "first", *one)
    again, metrics_again = final_state(fedrec, config, tmp_path / "again", *one)
    assert metrics == metrics_again and first.keys() == again.keys()
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    other = (*settings, "federated.num_nodes=5", "runtime.micro_batch=40", "runtime.num_threads=2")
    spread, _ = final_state(fedrec, config, tmp_path / "spread", *other)
    for key, tensor in first.items():
        torch.testing.assert_close(spread[key], tensor, rtol=1e-3, atol=1e-5)


def test_gradient_run_that_was_stopped_goes_on_with_the_memory_of_its_optimiser(
    fedrec: Fedrec, private_config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ('model.name="mf"', "federated.num_rounds=3", "evaluation.sampled_99=false")
    whole, metrics = final_state(fedrec, private_config_file, tmp_path / "whole", *settings)
    arguments = [part for setting in settings for part in ("--set", setting)]
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, RunFolder, "log_round", 2, before=False)
        main(["simulate", str(private_config_file), "--out", str(tmp_path / "stopped"), *arguments])
    assert fedrec("resume", tmp_path / "stopped").code == 0
    resumed = read_checkpoint(tmp_path / "stopped" / "checkpoint" / "server.safetensors").state
    assert {"items", "mean/items", "square/items", "step"} == resumed.shared.keys() | resumed.memory.keys()
    assert torch.equal(resumed.shared["items"], whole["items"]) and resumed.memory["step"].tolist() == [3]
    assert all(torch.equal(tensor, whole[f"memory of {name}"]) for name, tensor in resumed.memory.items())
    assert RunFolder(tmp_path / "stopped").result()["metrics"] == metrics
