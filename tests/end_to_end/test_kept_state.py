"""Models whose users go on from round to round: stops, retries, nodes and lost state."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fedrec import assemble
from fedrec.device.store import DeviceStore
from fedrec.federated import coordinator
from fedrec.federated.checkpoint import read_checkpoint
from fedrec.run_folder import RunFolder
from tests.end_to_end.conftest import Outcome
from tests.end_to_end.test_resume import Stop, stop_at

Fedrec = Callable[..., Outcome]


@pytest.fixture
def keeping_file(config_file: Path) -> Path:
    """A run of a model whose users keep their vectors."""
    text = config_file.read_text()
    start, end = text.index("[model]"), text.index("[federated]")
    model = '[model]\nname = "fedncf"\ndim = 4\nlearning_rate = 0.5\nitem_step = 0.3\n\n'
    config_file.write_text(text[:start] + model + text[end:])
    return config_file


def items_of(folder: Path) -> torch.Tensor:
    return read_checkpoint(folder / "checkpoint" / "server.safetensors").state.shared["items"]


@pytest.mark.parametrize(
    ("owner", "name", "call", "before"),
    [
        (DeviceStore, "save_state", 3, True),  # the first node, in the second round: the old state was put aside
        (DeviceStore, "save_state", 3, False),
        (DeviceStore, "save_state", 6, False),  # the second node, in the third round
        (coordinator, "write_checkpoint", 2, True),  # all nodes are a round ahead of the server
        (coordinator, "write_checkpoint", 2, False),
    ],
)
def test_stop_anywhere_then_resume_trains_each_round_once(
    fedrec: Fedrec,
    keeping_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    call: int,
    before: bool,
) -> None:
    from fedrec.cli import main

    assert fedrec("simulate", keeping_file, "--out", tmp_path / "whole").code == 0
    with pytest.raises(Stop), monkeypatch.context() as stopping:
        stop_at(stopping, owner, name, call, before)
        main(["simulate", str(keeping_file), "--out", str(tmp_path / "stopped")])
    outcome = fedrec("resume", tmp_path / "stopped")
    assert outcome.code == 0, outcome.err
    assert torch.equal(items_of(tmp_path / "stopped"), items_of(tmp_path / "whole"))
    stopped, whole = (RunFolder(tmp_path / name).result()["metrics"] for name in ("stopped", "whole"))
    assert stopped == whole


def test_spread_over_nodes_does_not_change_the_model(fedrec: Fedrec, keeping_file: Path, tmp_path: Path) -> None:
    for num_nodes in (1, 3):
        settings = ("--set", f"federated.num_nodes={num_nodes}")
        assert fedrec("simulate", keeping_file, "--out", tmp_path / str(num_nodes), *settings).code == 0
    torch.testing.assert_close(items_of(tmp_path / "3"), items_of(tmp_path / "1"), rtol=1e-3, atol=1e-5)


def test_lists_are_made_with_what_the_nodes_kept(fedrec: Fedrec, keeping_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fedrec("simulate", keeping_file, "--out", run, "--set", "federated.num_rounds=20").code == 0

    def lists() -> set[tuple[str, str]]:
        fedrec("recommend", "--run", run, "--all", "--top", 10, "--to", tmp_path / "lists.parquet")
        rows = pq.read_table(tmp_path / "lists.parquet").to_pydict()
        return set(zip(rows["user"], rows["item"], strict=True))

    with_state = lists()
    test = assemble.whole_split(RunFolder(run).config().to_json()).test
    wanted = set(zip(test.user_ids.ids[test.users], test.item_ids.ids[test.items], strict=True))
    reported = RunFolder(run).result()["metrics"]["test"]["hr@10"]
    assert len(wanted & with_state) / len(wanted) == pytest.approx(reported)
    shutil.rmtree(run / "nodes")
    assert lists() != with_state, "users of whom nothing is kept start anew"


def test_a_node_that_loses_its_state_goes_on(
    fedrec: Fedrec, keeping_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedrec.cli import main

    run = tmp_path / "run"
    with pytest.raises(Stop), monkeypatch.context() as stopping:
        stop_at(stopping, coordinator, "write_checkpoint", 2, False)
        main(["simulate", str(keeping_file), "--out", str(run)])
    for file in (run / "nodes" / "0").glob("private_state*"):
        file.unlink()
    assert fedrec("resume", run).code == 0
    assert torch.isfinite(items_of(run)).all()
