"""Membership inference and reconstruction: attacks that work where they must, and fail where they must."""

from __future__ import annotations

import numpy as np
import pytest

from fedrec.audit import membership
from fedrec.audit.candidates import Attack, Candidates, draw_candidates
from fedrec.audit.membership import attack_membership
from fedrec.audit.reconstruction import attack_items
from fedrec.audit.subject import Subject, rounds
from fedrec.data.interactions import Interactions
from fedrec.errors import DataError
from fedrec.randomness import Key
from tests.audit.subjects import subject
from tests.worlds import make

WORLD = make([(0, 1), (0, 2), (0, 3), (1, 1), (2, 0), (2, 3), (3, 2), (3, 0)], 5, 4)


def areas(target: Subject, what: str, num_runs: int = 2, num_shadows: int = 8) -> dict[tuple[str, bool], float]:
    """Return the mean AUC of the attacks on each view: the strongest (True), and the best of the others (False)."""
    candidates = draw_candidates(target.train, what, 10_000, Key.from_seed(2))
    found = attack_membership(target, candidates, num_runs, num_shadows, Key.from_seed(3))
    best: dict[tuple[str, bool], float] = {}
    for attack, results in found.items():
        assert isinstance(attack, Attack) and attack.what == what and len(results) == num_runs
        place = (attack.view, attack.strongest)
        best[place] = max(best.get(place, 0.0), float(np.mean([area for area, _ in results])))
    return best


def test_users_whose_coin_says_out_do_not_exist() -> None:
    candidates = Candidates("users", np.array([0, 2, 3]), None)
    train, rows = candidates.world(WORLD, np.array([True, False, True]))
    assert train is WORLD and rows.tolist() == [0, 1, 3, 4]
    assert candidates.without(WORLD) is WORLD and candidates.targets(WORLD) is None


def test_interactions_whose_coin_says_out_are_gone_and_nothing_else_is() -> None:
    candidates = Candidates("interactions", np.array([0, 2]), np.array([1, 5]))
    train, rows = candidates.world(WORLD, np.array([False, True]))
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert list(zip(train.users, train.items, strict=True)) == [
        pair for pair in zip(WORLD.users, WORLD.items, strict=True) if pair != (0, 2)
    ]
    assert len(candidates.without(WORLD)) == len(WORLD) - 2
    targets = candidates.targets(WORLD)
    assert targets is not None and targets.tolist() == [2, 3]


def test_candidates_have_something_to_lose() -> None:
    assert draw_candidates(WORLD, "users", 10, Key.from_seed(0)).rows.tolist() == [0, 1, 2, 3]
    drawn = draw_candidates(WORLD, "interactions", 10, Key.from_seed(0))
    assert drawn.rows.tolist() == [0, 2, 3] and drawn.held is not None
    assert (WORLD.users[drawn.held] == drawn.rows).all()
    assert len(draw_candidates(WORLD, "users", 2, Key.from_seed(0)).rows) == 2
    with pytest.raises(DataError, match="nobody to tell apart"):
        draw_candidates(make([(0, 1)], 1, 2), "users", 10, Key.from_seed(0))


def test_training_never_sees_who_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every run of the attack, the users that take part are exactly those whose coin says in."""
    target, seen = subject("popularity", 1.0, sampling=0.5), []

    def spy(subject: Subject, key: Key, train: Interactions, rows: np.ndarray):  # type: ignore[no-untyped-def]
        for done in rounds(subject, key, train, rows):
            seen.append((set(rows.tolist()), set(done.drawn.tolist())))
            yield done

    monkeypatch.setattr(membership, "rounds", spy)
    candidates = draw_candidates(target.train, "users", 10_000, Key.from_seed(2))
    attack_membership(target, candidates, 1, 2, Key.from_seed(3))
    assert len(seen) == 3 * target.num_rounds
    for exist, drawn in seen:
        assert drawn < exist and 80 < len(exist) < 160


def test_without_privacy_everything_is_found() -> None:
    target = subject("als", num_rounds=6)
    users, interactions = areas(target, "users"), areas(target, "interactions")
    assert users["final model", True] > 0.8
    assert interactions["final model", True] > 0.8
    for found in (users, interactions):
        assert found["node sums", True] == 1.0
        assert found["final model", False] < found["final model", True]


def test_under_a_small_epsilon_nothing_is_found_but_in_clear_node_sums() -> None:
    target = subject("als", 0.1)
    for what in ("users", "interactions"):
        found = areas(target, what, num_runs=3)
        assert found["node sums", True] > 0.99
        assert abs(found["final model", True] - 0.5) < 0.08
        assert abs(found["releases", True] - 0.5) < 0.08


def test_releases_of_a_large_epsilon_are_decoded() -> None:
    """Noise a hundredth of the sensitivity hides nobody; the same attack that fails under a small epsilon works."""
    target = subject("popularity", 1000.0)
    assert areas(target, "users")["releases", True] > 0.95


@pytest.mark.parametrize("model", ["mf", "popularity"])
def test_attacks_run_on_every_private_model_with_sampling(model: str) -> None:
    found = areas(subject(model, 8.0, sampling=0.5), "users")
    assert found.keys() >= {("final model", True), ("releases", True), ("node sums", True)}
    assert all(0.3 < area <= 1 for area in found.values())


def test_fewer_users_a_node_tell_the_server_more() -> None:
    target = subject("als", 1.0)
    found = attack_membership(
        target, draw_candidates(target.train, "users", 10_000, Key.from_seed(2)), 3, 0, Key.from_seed(3)
    )
    simple = {
        attack.name: np.mean([a for a, _ in results]) for attack, results in found.items() if not attack.strongest
    }
    assert simple["inner product, 10 users a node"] > simple["inner product, 120 users a node"] + 0.05


def test_clear_update_of_one_user_gives_away_items_and_taste() -> None:
    for model, epsilon in (("als", None), ("als", 8.0), ("popularity", 1.0)):
        clear = attack_items(subject(model, epsilon), 20, 0.95, Key.from_seed(4))[0]
        assert clear.source == "clear update" and clear.num_users == 20
        assert clear.precision[0] == clear.recall[0] == 1.0
        assert clear.direction is None if model == "popularity" else clear.direction == pytest.approx(1.0, abs=1e-6)
    clear = attack_items(subject("mf", 8.0), 20, 0.95, Key.from_seed(4))[0]
    assert clear.precision[0] > 0.6 and clear.recall[0] > 0.6  # negatives are among the rows
    assert clear.direction is not None and clear.direction > 0.99


@pytest.mark.parametrize("model", ["als", "mf", "popularity"])
def test_private_release_hides_the_items_and_a_nearly_clear_one_does_not(model: str) -> None:
    private = attack_items(subject(model, 0.5), 40, 0.95, Key.from_seed(5))[1]
    clear = attack_items(subject(model, 1e5), 40, 0.95, Key.from_seed(5))[1]
    assert private.source == clear.source == "release"
    assert private.precision[0] < private.chance + 0.08
    assert clear.precision[0] > 0.9 and clear.recall == clear.precision


def test_a_run_without_privacy_has_no_release_to_attack() -> None:
    assert [one.source for one in attack_items(subject("als"), 5, 0.95, Key.from_seed(6))] == ["clear update"]
