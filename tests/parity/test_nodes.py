"""How users are spread over nodes does not change the model; federated equals centralised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedrec import assemble
from fedrec.federated.checkpoint import read_checkpoint
from fedrec.run_folder import RunFolder
from tests.end_to_end.conftest import Outcome
from tests.training import train

Fedrec = Callable[..., Outcome]


def final_items(folder: Path) -> torch.Tensor:
    return read_checkpoint(folder / "checkpoint" / "server.safetensors").state.shared["items"]


SETTINGS = {
    "exact": (),
    "bounded": ("--set", "privacy.sampling_probability=0.7"),
    "local": ("--set", "privacy.trust_model=local"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_one_two_and_seven_nodes_give_the_same_model(
    fedrec: Fedrec, config_file: Path, private_config_file: Path, tmp_path: Path, kind: str
) -> None:
    config = config_file if kind == "exact" else private_config_file
    found = {}
    for num_nodes in (1, 2, 7):
        out = tmp_path / str(num_nodes)
        settings = ("--set", f"federated.num_nodes={num_nodes}", *SETTINGS[kind])
        assert fedrec("simulate", config, "--out", out, *settings).code == 0
        found[num_nodes] = (final_items(out), RunFolder(out).result()["metrics"]["test"]["ndcg@10"])
    for num_nodes in (2, 7):
        torch.testing.assert_close(found[num_nodes][0], found[1][0], rtol=1e-3, atol=1e-5)
        if kind != "exact":
            assert torch.equal(found[num_nodes][0], found[1][0]), "sums and noise are exact, whoever adds them up"
        assert found[num_nodes][1] == pytest.approx(found[1][1], abs=1e-6)


def test_federated_equals_the_plain_loop(fedrec: Fedrec, config_file: Path, tmp_path: Path) -> None:
    assert fedrec("simulate", config_file, "--out", tmp_path / "run").code == 0
    config = RunFolder(tmp_path / "run").config()
    data, split = assemble.dataset(config.to_json()), assemble.whole_split(config.to_json())
    centralised = train(assemble.model_of(config), data.catalogue, split.train, config.federated.num_rounds)
    torch.testing.assert_close(final_items(tmp_path / "run"), centralised.shared["items"], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_ray_and_in_process_give_the_same_result(fedrec: Fedrec, private_config_file: Path, tmp_path: Path) -> None:
    settings = ("--set", "runtime.num_threads=1")
    for runtime in ("local", "ray"):
        outcome = fedrec("simulate", private_config_file, "--out", tmp_path / runtime, "--runtime", runtime, *settings)
        assert outcome.code == 0, outcome.err
    local, ray = (RunFolder(tmp_path / runtime).result() for runtime in ("local", "ray"))
    assert local["metrics"] == ray["metrics"]
    torch.testing.assert_close(final_items(tmp_path / "ray"), final_items(tmp_path / "local"), rtol=0, atol=0)
