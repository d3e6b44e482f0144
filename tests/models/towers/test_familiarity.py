"""Familiarity: counts of what was met in situations alike, and scores with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedrec.models.losses import softmax_over_all
from fedrec.models.registry import build_model
from fedrec.models.towers.familiarity import Familiarity, begin
from fedrec.models.two_tower import TwoTowerConfig
from fedrec.randomness import Key
from tests.models.towers.worlds import batch_of, catalogue_of, rich_world

KEY = Key.from_seed(0)
FIELDS = {"place": 3, "heat": 0}
NAN = float("nan")
WORLD = rich_world([0, 1, 6, 9], num_items=5)
TABLE = {
    "name": "two_tower",
    "dim": 4,
    "history": {"name": "decayed", "window": 6, "dropout": 0.0, "num_heads": 2, "crop_probability": 0.0},
    "context_fields": ["place", "heat"],
    "familiarity": 2,
}


def drawn(tower: torch.nn.Module) -> None:
    for place, parameter in enumerate(tower.parameters()):
        parameter.requires_grad_(False)
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=KEY.fold(place).torch_generator())


def alike(tower: Familiarity, head: int, one: tuple[int, float], two: tuple[int, float]) -> float:
    """Return what an interaction in one situation counts in another, field by field."""
    differ = [float(one[0] != two[0] or one[0] < 0)]
    differ.append(1.0 if np.isnan(one[1] + two[1]) else 1 - np.exp(-((one[1] - two[1]) ** 2)))
    weights = torch.exp(5 * tower.differences[head]).tolist()
    return float(np.exp(-sum(weight * part for weight, part in zip(weights, differ, strict=True))))


def test_scores_follow_counts_of_what_was_met_in_situations_alike() -> None:
    tower = Familiarity(FIELDS, 2)
    drawn(tower)
    items, places, heats = [9, 7, 8, 7, 7], [0, 1, -1, 2, 1], [0.0, 0.5, 1.0, NAN, 0.25]
    asked = [(1, 0.5), (-1, 1.0), (2, NAN)]
    seen = torch.ones(1, 3, 5, dtype=torch.bool)
    seen[0, :, 0] = False
    seen[0, 0, 4] = False
    past = {"place": torch.tensor([places]), "heat": torch.tensor([heats])}
    wanted = {"place": torch.tensor([[one[0] for one in asked]]), "heat": torch.tensor([[one[1] for one in asked]])}
    found = tower(torch.tensor([items]), seen, past, wanted)[0]
    for row, situation in enumerate(asked):
        for item in (7, 8):
            score = 0.0
            for head in range(2):
                met = [s for s in range(5) if items[s] == item and seen[0, row, s]]
                count = sum(alike(tower, head, (places[s], heats[s]), situation) for s in met)
                amount, offset = float(5 * tower.amounts[head]), float(5 * tower.offsets[head])
                score += amount * np.log1p(np.exp(offset) * count)
            here = torch.tensor([one == item for one in items])
            assert found[row][here].sum().item() == pytest.approx(score, abs=1e-5)
        assert found[row, 0] == 0


def test_more_fields_than_a_table_holds_count_all() -> None:
    tower = Familiarity({f"field{place}": 2 for place in range(11)}, 1)
    drawn(tower)
    past, asked = (torch.randint(2, (11, size), generator=KEY.torch_generator()) for size in (4, 3))
    found = tower(
        torch.tensor([[5, 5, 3, 5]]),
        torch.ones(1, 3, 4, dtype=torch.bool),
        {name: column[None] for name, column in zip(tower.fields, past, strict=True)},
        {name: column[None] for name, column in zip(tower.fields, asked, strict=True)},
    )[0]
    differ = (asked[:, :, None] != past[:, None, :]).float()
    counts = torch.exp(-torch.einsum("f,fts->ts", (5 * tower.differences[0]).exp(), differ))
    offset, amount = float(torch.exp(5 * tower.offsets)), float(5 * tower.amounts)
    torch.testing.assert_close(found[:, 0], amount * torch.log1p(offset * counts[:, [0, 1, 3]].sum(dim=1)))
    torch.testing.assert_close(found[:, 2], amount * torch.log1p(offset * counts[:, 2]))
    assert not found[:, [1, 3]].any()


def test_without_fields_or_with_an_unknown_situation_all_interactions_count_alike() -> None:
    plain, tower = Familiarity({}, 1), Familiarity({"place": 3}, 1)
    drawn(plain)
    drawn(tower)
    items, seen = torch.tensor([[3, 4, 3]]), torch.ones(1, 1, 3, dtype=torch.bool)
    twice, once = plain(items, seen, {}, {})[0, 0, :2].tolist()
    offset, amount = float(torch.exp(5 * plain.offsets)), float(5 * plain.amounts)
    assert twice == pytest.approx(amount * np.log1p(2 * offset), abs=1e-5)
    assert once == pytest.approx(amount * np.log1p(offset), abs=1e-5)
    past = {"place": torch.tensor([[0, 1, 2]])}
    unknown = tower(items, seen, past, {"place": torch.tensor([[-1]])})
    torch.testing.assert_close(unknown, tower(items, seen, past, {}))


def test_nobody_is_fine() -> None:
    tower = Familiarity({"place": 3}, 2)
    drawn(tower)
    items, seen = torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 2, 3, dtype=torch.bool)
    assert tower(items, seen, {"place": items}, {"place": items[:, :2]}).shape == (0, 2, 3)


def test_heads_start_apart_and_add_nothing() -> None:
    assert begin("familiarity.amounts", (3, 1)).count_nonzero() == 0
    steps = begin("familiarity.differences", (3, 2))
    assert (steps[0] < steps[1]).all() and (steps[1] < steps[2]).all()


def test_the_softmax_with_something_added_is_that_of_dense_scores_and_so_are_its_slopes() -> None:
    generator = KEY.torch_generator()
    queries, items, biases = (torch.randn(shape, generator=generator).double() for shape in ((3, 2), (6, 2), (6,)))
    ids, extra = torch.tensor([[0, 5], [2, 2], [1, 3]]), torch.randn(3, 2, generator=generator).double()
    targets, weights = torch.tensor([5, 2, 4]), torch.tensor([1.0, 0.5, 2.0]).double()
    leaves = [tensor.requires_grad_() for tensor in (queries, items, biases, extra)]
    found = softmax_over_all(queries, items, biases, targets, weights, (ids, extra))
    dense = (queries @ items.T + biases).scatter_add(1, ids, extra)
    wanted = -(weights * dense.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]).sum()
    torch.testing.assert_close(found, wanted)
    for one, two in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(one, two)


def test_ranking_scores_are_those_of_the_loss_after_the_same_history() -> None:
    """The loss at a user's last position follows from the scores that the items before it and its context give."""
    model = build_model(TABLE, None)
    shared = dict(model.init(catalogue_of(WORLD), KEY).shared)
    shared = {
        name: 0.4 * torch.randn(value.shape, generator=KEY.fold(name).torch_generator())
        for name, value in shared.items()
    }
    whole, user = batch_of(WORLD, [2]), 2
    total = 0.0
    for length in range(6):
        rows = np.arange(len(WORLD)) - WORLD.indptr[user]
        part = WORLD.take((WORLD.users == user) & (rows < length), check=False)
        at = WORLD.indptr[user] + length
        query = {name: torch.tensor(column[at : at + 1]) for name, column in WORLD.context.items()}
        batch = replace(batch_of(part, [user]), query=query)
        scores = model.score(shared, model.fit_users(shared, batch), batch)
        total -= float(scores.log_softmax(dim=1)[0, WORLD.items[at]])
    assert float(model.loss(shared, whole, KEY)) == pytest.approx(total / 7, rel=1e-4)  # type: ignore[attr-defined]


def test_familiarity_is_for_the_softmax_alone() -> None:
    with pytest.raises(ValidationError, match="use 'softmax'"):
        TwoTowerConfig.model_validate({"familiarity": 1, "loss": {"name": "bce"}})
    with pytest.raises(ValidationError, match="familiarity=0"):
        build_model({"name": "two_tower", "familiarity": 1}, 1.0)
