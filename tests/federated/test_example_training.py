"""A node's noisy steps: what an interaction can change, what shows, and that asking again tells nothing more."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.data.interactions import Interactions
from fedrec.device.store import DeviceStore
from fedrec.errors import ConfigError, PrivacyError
from fedrec.evaluation.counts import Cutoffs, summarise
from fedrec.evaluation.nodes import evaluate_users
from fedrec.federated.example_training import Answer, Draws, ExampleNode, answer_round, example_keys
from fedrec.models.example_mf import ExampleMatrixFactorization, ExampleMatrixFactorizationConfig
from fedrec.privacy.mechanism import NoisySum, publish_noisy
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.randomness import Key, user_keys
from tests.worlds import checkerboard, make, random_world

KEY, NOISE = Key.from_seed(1), Key.from_seed(2)
NORM, POPULATION = 0.5, 200


def model_of(**settings: object) -> ExampleMatrixFactorization:
    return ExampleMatrixFactorization(
        ExampleMatrixFactorizationConfig.model_validate({"dim": 4, "num_negatives": 5, **settings})
    )


def plan_of(noise: float = 1e-6, probability: float = 0.5, num_rounds: int = 3, steps: int = 1) -> PrivacyPlan:
    event = PrivacyEvent(noise, probability, num_rounds * steps)
    how = {"trust_model": "local", "unit": "interaction"}
    return PrivacyPlan((event,), 1e-6, NORM, POPULATION, **how, steps_per_round=steps)


def node_of(interactions: Interactions, partition: int = 0, num_nodes: int = 1) -> ExampleNode:
    part = interactions.of_users(np.arange(partition, interactions.num_users, num_nodes))
    return ExampleNode(part, user_keys(part.user_ids.ids), partition, num_nodes)


def shared_of(num_items: int, dim: int = 4, scale: float = 1.0, seed: int = 0) -> dict[str, Tensor]:
    return {"items": torch.randn(num_items, dim, generator=torch.Generator().manual_seed(seed)) * scale}


def drawn(interactions: Interactions, step: int = 0, probability: float = 0.5, **settings: object) -> Counter[str]:
    """Return the examples of a step, each as its user's id and its items."""
    node = node_of(interactions)
    users, items = Draws(model_of(**settings), node, probability, KEY).sample(step)
    ids = node.interactions.user_ids.ids[users.numpy()]
    return Counter(f"{user}: {row.tolist()}" for user, row in zip(ids, items.numpy(), strict=True))


def without(interactions: Interactions, row: int) -> Interactions:
    return interactions.take(np.arange(len(interactions)) != row)


def test_removing_an_interaction_takes_away_its_example_and_changes_no_other() -> None:
    whole = random_world(8, 12)
    for step in range(3):
        before, disappeared = drawn(whole, step), 0
        for row in range(len(whole)):
            after = drawn(without(whole, row), step)
            gone = before - after
            assert not after - before and sum(gone.values()) <= 1
            assert all(name.startswith(f"{whole.users[row]}: [{whole.items[row]},") for name in gone)
            disappeared += sum(gone.values())
        assert disappeared == sum(before.values())


def test_of_equal_interactions_each_is_an_example_of_its_own_whichever_is_removed() -> None:
    whole = make([(0, 1), (0, 2), (0, 1), (0, 1), (1, 1), (0, 1)], 2, 9)
    everything = drawn(whole, probability=1.0)
    assert sum(everything.values()) == 6 == len(everything), "negatives differ, so all draws are their own"
    equal = [row for row in range(6) if whole.users[row] == 0 and whole.items[row] == 1]
    assert len(equal) == 4
    rests = [drawn(without(whole, row), probability=1.0) for row in equal]
    assert all(rest == rests[0] for rest in rests) and sum((everything - rests[0]).values()) == 1


def test_draws_do_not_depend_on_who_shares_the_node() -> None:
    whole = random_world(20, 15)
    spread: Counter[str] = Counter()
    for node in range(7):
        spread += drawn(whole.of_users(np.arange(node, 20, 7)))
    assert spread == drawn(whole)


def test_interactions_are_drawn_by_independent_coins_of_the_public_probability() -> None:
    whole = make([(user, item) for user in range(50) for item in range(100)], 50, 100)
    draws = Draws(model_of(num_negatives=1), node_of(whole), 0.2, KEY)
    taken = np.zeros((20, 50, 100))
    for step in range(20):
        users, items = draws.sample(step)
        taken[step, users.numpy(), items.numpy()[:, 0]] += 1
    assert taken.max() == 1
    assert abs(taken.mean() - 0.2) < 5 * math.sqrt(0.2 * 0.8 / taken.size)
    for one, other in ((taken[1:], taken[:-1]), (taken[:, 1:], taken[:, :-1]), (taken[:, :, 1:], taken[:, :, :-1])):
        assert abs((one * other).mean() - 0.04) < 5 * math.sqrt(0.04 * 0.96 / one.size), "pairs are independent"


def test_negatives_are_uniform_over_all_items_but_the_own_one_and_do_not_avoid_the_users_others() -> None:
    whole = make([(user, item) for user in range(300) for item in (0, 2, 4)], 300, 6)
    _, items = Draws(model_of(num_negatives=10), node_of(whole), 1.0, KEY).sample(0)
    for own in (0, 2, 4):
        negatives = items[items[:, 0] == own, 1:]
        counts = torch.bincount(negatives.flatten(), minlength=6).tolist()
        assert counts.pop(own) == 0
        assert max(abs(count - 600) for count in counts) < 5 * math.sqrt(600)


def test_a_lone_item_has_no_negatives() -> None:
    whole = make([(0, 0), (1, 0)], 2, 1)
    sum_, _ = answer_round(model_of(), shared_of(1), node_of(whole), plan_of(probability=1.0), 1, KEY, NOISE)
    assert sum_.totals["items"].shape == (1, 4)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize(("scale", "round_number"), [(1.0, 1), (1.0, 2), (1e3, 2), (1e30, 2)])
def test_an_interaction_moves_items_and_users_jointly_by_at_most_the_norm(
    loss: str, scale: float, round_number: int
) -> None:
    """Adversarial: a server that broadcasts a table to blow gradients up, and users with one or with many rows.

    Were user vectors fitted to histories, or negatives chosen around them, an interaction would change the gradients
    of all the others of its user, and the bound would be passed many times over.
    """
    whole = make([(0, item) for item in range(25)] + [(1, 3), (2, 3), (2, 7)], 4, 30)
    shared, plan = shared_of(30, scale=scale), plan_of(probability=0.9)
    model = model_of(loss=loss, local_learning_rate=1.0)
    vectors = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    last = Answer(1, vectors, torch.zeros(30, 4, dtype=torch.float64)) if round_number == 2 else None

    def after(interactions: Interactions) -> tuple[Tensor, Tensor]:
        sum_, answer = answer_round(model, shared, node_of(interactions), plan, round_number, KEY, NOISE, last)
        return sum_.totals["items"], answer.vectors

    one, reached = after(whole), 0.0
    scaled = plan.cohort_size_for_round(round_number)
    for row in range(len(whole)):
        other = after(without(whole, row))
        move = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True))) * scaled
        assert move <= NORM * (1 + 1e-6) + 1e-15 * scale * scaled  # tables of that size round
        reached = max(reached, move)
    assert scale > 1e3 or reached > 0.9 * NORM


def test_a_node_without_interactions_answers_with_noise_of_the_planned_size() -> None:
    nobody = make([], 40, 300)
    plan = plan_of(noise=2.0, probability=0.25, steps=4)
    model = model_of(local_learning_rate=3.0)
    for num_nodes in (1, 5):
        node = ExampleNode(nobody, user_keys(nobody.user_ids.ids), 0, num_nodes)
        sum_, answer = answer_round(model, shared_of(300), node, plan, 1, KEY, NOISE)
        std = 3.0 / (0.25 * POPULATION / num_nodes) * 2.0 * NORM * math.sqrt(4)
        for table in (sum_.totals["items"], answer.vectors):
            assert float(table.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * table.numel()))


def test_what_leaves_depends_on_declared_sizes_and_not_on_how_much_a_node_has() -> None:
    """Twice the interactions, of users who are zero vectors, change neither noise nor divisor: the moves are equal."""
    few, many = make([(0, 1)], 3, 30), make([(0, 1)] + [(1, item) for item in range(20)], 3, 30)
    zeros = {"items": torch.zeros(30, 4)}
    first, second = (
        answer_round(model_of(), zeros, node_of(world), plan_of(noise=1.0, steps=1), 1, KEY, NOISE)[0].totals["items"]
        for world in (few, many)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("num_nodes", [2, 7])
def test_spread_of_users_over_nodes_does_not_change_one_step(num_nodes: int) -> None:
    whole, plan, model = random_world(30, 20), plan_of(noise=1e-6), model_of(local_learning_rate=5.0)
    shared = shared_of(20)

    def mean_move(num: int) -> tuple[Tensor, Tensor]:
        total, vectors = NoisySum({"items": torch.zeros(20, 4, dtype=torch.float64)}, NORM), torch.zeros(30, 4)
        for partition in range(num):
            node = node_of(whole, partition, num)
            sum_, answer = answer_round(model, shared, node, plan, 1, KEY, NOISE)
            total.merge(sum_)
            vectors[partition::num] = answer.vectors.float() / num  # its own users' mean is over a smaller batch
        return publish_noisy(total, plan, 1, num).blocks["items"], vectors

    one, many = mean_move(1), mean_move(num_nodes)
    assert float(one[0].norm()) > 1e-3 or float(one[1].norm()) > 1e-3
    for alone, spread in zip(one, many, strict=True):
        assert torch.allclose(alone, spread, atol=1e-5)


def test_user_vectors_go_on_from_round_to_round_and_noise_never_repeats() -> None:
    whole, plan, model = make([], 6, 10), plan_of(noise=1.0), model_of()
    shared = shared_of(10)
    first, one = answer_round(model, shared, node_of(whole), plan, 1, KEY, NOISE)
    second, two = answer_round(model, shared, node_of(whole), plan, 2, KEY, NOISE, one)
    places = [(0, 2), (1, 2), (0, 3)]
    elsewhere = [
        answer_round(model, shared, ExampleNode(whole, user_keys(np.arange(6)), *place), plan, 1, KEY, NOISE)[0]
        for place in places
    ]
    other_start, _ = answer_round(model, {"items": shared["items"] + 1}, node_of(whole), plan, 1, KEY, NOISE)
    moves = [sum_.totals["items"] for sum_ in (first, second, other_start)]
    moves += [sum_.totals["items"] / num for sum_, (_, num) in zip(elsewhere, places, strict=True)]  # noise of one size
    for index, move in enumerate(moves):
        assert all(not torch.allclose(move, other) for other in moves[index + 1 :])
    assert not torch.equal(two.vectors, one.vectors)
    steps = (two.vectors - one.vectors).abs().sum(dim=1)
    assert (steps > 0).all(), "users without interactions have noise, too"


def test_a_round_asked_for_again_has_the_same_answer_also_with_noise_of_the_system(tmp_path: Path) -> None:
    whole, plan, model, system = random_world(9, 11), plan_of(noise=1.0), model_of(), Key.from_system_entropy()
    first, answer = answer_round(model, shared_of(11), node_of(whole), plan, 1, KEY, system)
    DeviceStore(tmp_path / "node").save_state(answer.to_tensors("run"))
    kept = Answer.from_tensors(DeviceStore(tmp_path / "node").load_state(), "run")
    assert kept is not None
    again, same = answer_round(model, shared_of(11), node_of(whole), plan, 1, KEY, system, kept)
    assert torch.equal(again.totals["items"], first.totals["items"])
    assert torch.equal(same.vectors, answer.vectors) and same.diagnostics == answer.diagnostics
    other_key = Key.from_system_entropy()
    fresh, _ = answer_round(model, shared_of(11), node_of(whole), plan, 1, KEY, other_key)
    assert not torch.equal(fresh.totals["items"], first.totals["items"])


def test_the_same_round_of_the_same_run_is_the_same_in_a_simulation() -> None:
    whole, plan = random_world(9, 11), plan_of(noise=1.0, steps=3)
    one, two = (answer_round(model_of(), shared_of(11), node_of(whole), plan, 1, KEY, NOISE) for _ in range(2))
    assert torch.equal(one[0].totals["items"], two[0].totals["items"])
    assert torch.equal(one[1].vectors, two[1].vectors)


def test_an_earlier_round_is_refused_and_answers_of_other_runs_are_not_used() -> None:
    whole, plan, model = random_world(9, 11), plan_of(), model_of()
    last = Answer(2, torch.zeros(9, 4, dtype=torch.float64), torch.zeros(11, 4, dtype=torch.float64))
    with pytest.raises(PrivacyError, match="this node refuses"):
        answer_round(model, shared_of(11), node_of(whole), plan, 1, KEY, NOISE, last)
    assert Answer.from_tensors(last.to_tensors("one run"), "another") is None
    assert Answer.from_tensors({"vectors": torch.zeros(9, 4)}, "one run") is None


def test_tables_that_are_not_finite_and_plans_over_users_are_refused() -> None:
    whole, broken = random_world(9, 11), shared_of(11)
    broken["items"][3, 2] = math.inf
    with pytest.raises(PrivacyError, match="not finite"):
        answer_round(model_of(), broken, node_of(whole), plan_of(), 1, KEY, NOISE)
    users = PrivacyPlan((PrivacyEvent(1.0, 1.0, 1),), 1e-5, 1.0, 100)
    with pytest.raises(PrivacyError, match="unit is 'user'"):
        answer_round(model_of(), shared_of(11), node_of(whole), users, 1, KEY, NOISE)


def test_the_model_has_no_contributions_of_users() -> None:
    model = model_of()
    with pytest.raises(ConfigError, match="single interactions"):
        model.contribute({}, {}, None, KEY)  # type: ignore[arg-type]


def test_names_of_interactions_are_unique() -> None:
    whole = make([(user, item) for user in range(100) for item in range(100)] * 2, 100, 100)
    names = example_keys(whole, user_keys(np.arange(100)), KEY)
    assert names.dtype == np.uint64 and len(np.unique(names)) == 20_000


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_checkerboard_is_learnt(loss: str) -> None:
    split, catalogue = checkerboard()
    plan = plan_of(noise=0.2, probability=0.5, num_rounds=10, steps=10)
    model = model_of(dim=8, loss=loss, local_learning_rate=20.0 if loss == "squared" else 40.0, num_negatives=4)
    node = node_of(split.train)
    server, last = model.init(catalogue, KEY), None
    for number in range(1, 11):
        sum_, last = answer_round(model, server.shared, node, plan, number, KEY, NOISE, last)
        server = model.update(server, publish_noisy(sum_, plan, number, 1))
    counts = evaluate_users(model, server.shared, split, "test", Cutoffs(2, 2))
    assert summarise(counts, Cutoffs(2, 2), 20)["hr@2"] > 0.9
