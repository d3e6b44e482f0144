"""The server's side of a round: the order of ledger, release and checkpoint, with keys of a deployment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedrec.data.catalogue import Catalogue
from fedrec.errors import PrivacyError, ProtocolError
from fedrec.federated.checkpoint import read_checkpoint
from fedrec.federated.coordinator import Coordinator
from fedrec.models.registry import build_model
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.mechanism import release
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.randomness import Key
from tests.worlds import random_world

PLAN = PrivacyPlan((PrivacyEvent(1.0, 1.0, 2),), delta=1e-5, clipping_norm=1.0, population_size=50)
CATALOGUE = Catalogue(random_world(3, 12).item_ids)


def coordinator(folder: Path, key: Key, run_id: str = "run", plan: PrivacyPlan | None = PLAN) -> Coordinator:
    model = build_model({"name": "als", "dim": 3}, None if plan is None else plan.clipping_norm)
    return Coordinator(model, CATALOGUE, folder, run_id, key, plan)


def zeros(server: Coordinator) -> BoundedSum:
    return BoundedSum(server.model.totals(server.shared), server.clipping_norm)


def kinds(folder: Path) -> list[tuple[str, int, int]]:
    lines = [json.loads(line)["payload"] for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [(line["kind"], line["round"], line["attempt"]) for line in lines[1:]]


def test_spend_is_recorded_before_the_release_and_publication_after_the_checkpoint(tmp_path: Path) -> None:
    server = coordinator(tmp_path, Key.from_seed(0))
    server.begin(1)
    assert kinds(tmp_path) == [("intend", 1, 1)] and not (tmp_path / "server.safetensors").exists()
    before = server.shared["items"].clone()
    server.aggregate(1, [zeros(server)], 0)
    assert kinds(tmp_path) == [("intend", 1, 1)] and torch.equal(server.shared["items"], before), (
        "nothing to broadcast yet"
    )
    server.commit()
    assert kinds(tmp_path) == [("intend", 1, 1), ("published", 1, 1)] and (tmp_path / "server.safetensors").exists()
    assert not torch.equal(server.shared["items"], before), (
        "an empty cohort is a release, too: it moves the model by noise"
    )
    server.close()


def test_deployment_closes_the_attempt_that_never_published_and_draws_new_noise(tmp_path: Path) -> None:
    server = coordinator(tmp_path, Key.from_system_entropy())
    server.begin(1)
    server.close()
    again = coordinator(tmp_path, Key.from_system_entropy())
    again.begin(1)
    again.aggregate(1, [zeros(again)], 0)
    again.commit()
    assert kinds(tmp_path) == [("intend", 1, 1), ("closed", 1, 1), ("intend", 1, 2), ("published", 1, 2)]
    assert again.ledger is not None and sum(event.count for event in again.ledger.spent()) == 1
    again.close()


def test_crash_between_checkpoint_and_ledger_is_put_right_on_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (Key.from_seed(0), Key.from_system_entropy()):
        folder = tmp_path / str(key.from_system)
        server = coordinator(folder, key)
        server.begin(1)
        server.aggregate(1, [zeros(server)], 0)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Coordinator, "_record_published", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
            server.commit()
        server.close()
        assert kinds(folder) == [("intend", 1, 1)]
        again = coordinator(folder, key)
        assert kinds(folder) == [("intend", 1, 1), ("published", 1, 1)] and again.checkpoint.round == 1
        again.close()


def test_checkpoint_remembers_how_far_the_ledger_was(tmp_path: Path) -> None:
    server = coordinator(tmp_path, Key.from_seed(0))
    server.begin(1)
    assert server.ledger is not None
    intended = server.ledger.position
    server.aggregate(1, [zeros(server)], 0)
    server.commit()
    server.close()
    assert intended["records"] == 2 and read_checkpoint(tmp_path / "server.safetensors").ledger_position == intended


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_sum_of_another_model_is_refused(tmp_path: Path, change: str) -> None:
    server = coordinator(tmp_path, Key.from_seed(0))
    totals = zeros(server).totals
    blocks = {
        "missing": {"gram": totals["gram"], "items": totals["items"]},
        "extra": {**totals, "more": totals["gram"]},
        "shape": {**totals, "items": totals["items"][:1]},
    }[change]
    with pytest.raises(ProtocolError, match="comes from another model"):
        server.aggregate(1, [BoundedSum(blocks, 1.0)], 0)
    server.close()


def test_round_beyond_the_plan_is_refused(tmp_path: Path) -> None:
    server = coordinator(tmp_path, Key.from_seed(0))
    for number in (1, 2):
        server.begin(number)
        server.aggregate(number, [zeros(server)], 0)
        server.commit()
    with pytest.raises(PrivacyError, match="round 3"):
        server.begin(3)
    server.close()


def test_folder_of_another_run_or_plan_is_refused(tmp_path: Path) -> None:
    server = coordinator(tmp_path, Key.from_seed(0))
    server.begin(1)
    server.aggregate(1, [zeros(server)], 0)
    server.commit()
    server.close()
    with pytest.raises(ProtocolError, match="belongs to run"):
        coordinator(tmp_path, Key.from_seed(0), run_id="other")
    other = PrivacyPlan((PrivacyEvent(2.0, 1.0, 2),), delta=1e-5, clipping_norm=1.0, population_size=50)
    with pytest.raises(PrivacyError, match="plan"):
        coordinator(tmp_path, Key.from_seed(0), plan=other)


def test_divisor_is_the_declared_population_and_never_the_cohort(tmp_path: Path) -> None:
    server = coordinator(tmp_path, Key.from_seed(0))
    released, _ = server._release(zeros(server), 1, num_users=7, absences="")
    assert released.divisor == 50.0
    server.close()


def test_without_a_plan_there_is_no_ledger_and_the_mean_is_over_those_who_came(tmp_path: Path) -> None:
    server = coordinator(tmp_path, Key.from_seed(0), plan=None)
    released, digest = server._release(zeros(server), 1, num_users=7, absences="")
    assert released.divisor == 7.0 and digest == "" and set(released.noise_std.values()) == {0.0}
    server.begin(1)
    assert not (tmp_path / "ledger.jsonl").exists()


def test_model_is_moved_by_the_release_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = coordinator(tmp_path, Key.from_seed(0))
    expected = release(zeros(server), PLAN, 1, Key.from_seed(0))
    seen = []
    original = server.model.update
    monkeypatch.setattr(
        server.model, "update", lambda state, released: (seen.append(released), original(state, released))[1]
    )
    server.begin(1)
    server.aggregate(1, [zeros(server)], num_users=7)
    assert seen[0].digest() == expected.digest()
    server.close()
