"""A whole run with an interaction as the privacy unit: its claim stands alone, and a stop anywhere changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedrec import assemble
from fedrec.device.store import DeviceStore
from fedrec.federated import coordinator
from fedrec.federated.checkpoint import read_checkpoint
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.plan import PrivacyPlan
from fedrec.run_folder import RunFolder
from tests.end_to_end.conftest import Outcome
from tests.end_to_end.test_resume import check_stop_and_resume

Fedrec = Callable[..., Outcome]

CONFIG = """
[data]
path = "{data}"

[model]
name = "mf"
dim = 4
local_learning_rate = 20.0

[federated]
num_nodes = 2
num_rounds = 3
local_steps = 5

[privacy]
unit = "interaction"
target_epsilon = 8.0
target_delta = 1e-4
max_grad_norm = 0.5
sampling_probability = 0.2
population_size = 1000

[runtime]
num_threads = 1
"""


@pytest.fixture
def example_config(tmp_path: Path, data_file: Path) -> Path:
    path = tmp_path / "example-level.toml"
    path.write_text(CONFIG.format(data=data_file))
    return path


def test_the_claim_is_that_of_single_interactions_and_says_so(
    fedrec: Fedrec, example_config: Path, tmp_path: Path
) -> None:
    outcome = fedrec("simulate", example_config, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    folder = RunFolder(tmp_path / "run")
    privacy = folder.result()["privacy"]
    assert (privacy["unit"], privacy["trust_model"]) == ("interaction", "local")
    assert privacy["neighboring_relation"] == "add-or-remove one interaction"
    assert privacy["max_grad_norm"] == 0.5 and "clipping_norm" not in privacy
    assert [event["count"] for event in privacy["events"]] == [15]
    assert 7.9 < privacy["epsilon"] <= 8.0
    assert "unit: interaction" in privacy["statement"] and "not a user's whole history" in privacy["statement"]
    spent = [line["epsilon_spent"] for line in folder.rounds()]
    assert spent == sorted(spent) and spent[-1] == pytest.approx(privacy["epsilon"], rel=1e-9)


def test_user_vectors_stay_on_their_node_and_only_the_item_table_is_shared(
    fedrec: Fedrec, example_config: Path, tmp_path: Path
) -> None:
    assert fedrec("simulate", example_config, "--out", tmp_path / "run").code == 0
    config = RunFolder(tmp_path / "run").config()
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoint" / "server.safetensors")
    assert set(checkpoint.state.shared) == {"items"}
    moves = []
    for partition in range(2):
        kept = DeviceStore(tmp_path / "run" / "nodes" / str(partition)).load_state()
        num_users = assemble.node_data(config.to_json(), partition, 2).split.train.num_users
        assert kept["example_vectors"].shape == (num_users, 4)
        moves.append(kept["example_moves"])
    assert not torch.equal(moves[0], moves[1])


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Ledger, "intend", 2),
        (DeviceStore, "save_state", 4),  # the second node, in the second round
        (coordinator, "publish_noisy", 2),
        (coordinator, "write_checkpoint", 2),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rsplit(".", 1)[-1],
)
def test_stop_at_any_step_then_resume(
    fedrec: Fedrec,
    example_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    call: int,
    before: bool,
) -> None:
    check_stop_and_resume(fedrec, example_config, tmp_path, monkeypatch, (owner, name, call, before))
    whole, stopped = (RunFolder(tmp_path / name) for name in ("whole", "stopped"))
    assert stopped.result()["metrics"] == whole.result()["metrics"]
    diagnostics = [[line["diagnostics"] for line in folder.rounds()] for folder in (whole, stopped)]
    assert diagnostics[0] == diagnostics[1]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.name=als", "does not run under a privacy plan"),
        ("model.start=solve", "model.start"),
        ("model.local_epochs=2", "model.local_epochs"),
        ("privacy.clipping_norm=1.0", "privacy.clipping_norm"),
    ],
)
def test_settings_of_other_claims_are_refused(
    fedrec: Fedrec, example_config: Path, tmp_path: Path, setting: str, words: str
) -> None:
    outcome = fedrec("simulate", example_config, "--out", tmp_path / "run", "--set", setting)
    assert outcome.code == 2 and words in outcome.err


def test_the_delivered_config_has_its_steps_and_a_delta_below_one_interaction() -> None:
    from fedrec.config import load

    config = load(Path("simulations/ml-100k-mf-example-level.toml"))
    plan = assemble.plan_of(config)
    assert isinstance(plan, PrivacyPlan) and plan.unit == "interaction"
    assert plan.delta < 1 / plan.population_size and 7.9 < plan.epsilon <= 8
    assert plan.steps_per_round == config.federated.local_steps
