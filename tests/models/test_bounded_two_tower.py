"""Users who stand apart: each one's move is what a plain loop over users finds, whoever else is in the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.data.batches import user_batches
from fedrec.federated.cohort import sum_contributions
from fedrec.models import bounded_two_tower
from fedrec.models.bounded_two_tower import BoundedTwoTower
from fedrec.models.registry import build_model
from fedrec.randomness import user_keys
from tests.models.towers.worlds import batch_of, catalogue_of, rich_world
from tests.models.two_towers import (
    HISTORIES,
    KEY,
    LOSSES,
    WINDOW,
    bounded,
    drawn,
    exact,
    far_apart,
    norm_of,
    plain_gradient,
    settings_of,
    written_out,
)

LENGTHS = [0, 1, 3, 6, 7, 12]
WORLD = rich_world(LENGTHS)
BATCH = batch_of(WORLD)


def shared_of(model: BoundedTwoTower) -> dict[str, Tensor]:
    return drawn(dict(model.init(catalogue_of(WORLD), KEY).shared))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fusion", ["dot", "additive", "mlp"])
@pytest.mark.parametrize("history", HISTORIES)
def test_gradients_of_users_are_those_of_a_plain_loop_and_add_up_to_the_sum(
    history: str, fusion: str, loss: str
) -> None:
    model, whole = bounded(history, fusion, loss), exact(history, fusion, loss)
    shared = shared_of(model)
    doubles = {name: tensor.double() for name, tensor in shared.items()}
    examples = model._examples(BATCH, WORLD.num_items, KEY)
    blocks = model.contribute(shared, {}, BATCH, KEY)
    total = {name: torch.zeros_like(tensor) for name, tensor in doubles.items()}
    for user, length in enumerate(LENGTHS):
        wanted = plain_gradient(model, doubles, examples, user)
        found = written_out(blocks, shared, user)
        assert (norm_of(found) > 0) == (length > 0)
        assert far_apart(found, {name: -slope for name, slope in wanted.items()}) < 1e-10
        total = {name: total[name] + found[name] for name in total}
    summed = whole.totals(shared)
    for name, block in whole.contribute(shared, {}, BATCH, KEY).items():
        block.add_to(summed[name], torch.ones(len(LENGTHS), dtype=torch.float64))
    assert far_apart(summed, total) < 1e-5


@pytest.mark.parametrize("fusion", ["dot", "mlp"])
@pytest.mark.parametrize("history", ["attention", "gru", "decayed"])
def test_several_local_steps_are_those_of_plain_gradient_descent(history: str, fusion: str) -> None:
    model = bounded(history, fusion, local_steps=3, local_learning_rate=0.5)
    shared = shared_of(model)
    blocks = model.contribute(shared, {}, BATCH, KEY)
    start = {name: tensor.double() for name, tensor in shared.items()}
    for user in range(len(LENGTHS)):
        copy = start
        for key in (KEY, KEY.fold("step", 1), KEY.fold("step", 2)):
            slopes = plain_gradient(model, copy, model._examples(BATCH, WORLD.num_items, key), user)
            copy = {name: value - 0.5 * slopes[name] for name, value in copy.items()}
        moved = {name: (copy[name] - start[name]) / 0.5 for name in start}
        assert far_apart(written_out(blocks, shared, user), moved) < 1e-10


def test_draws_of_a_first_step_are_those_of_a_single_step_and_later_ones_are_others() -> None:
    one, three = bounded(), bounded(local_steps=3, local_learning_rate=1e-9)
    shared = shared_of(one)
    single, triple = (model.contribute(shared, {}, BATCH, KEY) for model in (one, three))
    first = written_out(single, shared, 5)
    twice_more = {name: part - first[name] for name, part in written_out(triple, shared, 5).items()}
    assert far_apart({name: 3 * part for name, part in first.items()}, written_out(triple, shared, 5)) > 0.1
    again = [
        plain_gradient(three, {n: t.double() for n, t in shared.items()}, examples, 5)
        for examples in (three._examples(BATCH, WORLD.num_items, KEY.fold("step", number)) for number in (1, 2))
    ]
    wanted = {name: -again[0][name] - again[1][name] for name in shared}
    assert far_apart(twice_more, wanted) < 1e-5


@pytest.mark.parametrize("size", [0.3, 1e18])
@pytest.mark.parametrize("fusion", ["dot", "additive", "mlp"])
@pytest.mark.parametrize("history", HISTORIES)
def test_a_users_move_is_the_same_to_the_last_bit_whoever_is_in_the_batch(
    history: str, fusion: str, size: float
) -> None:
    model = bounded(history, fusion, local_steps=2)
    shared = drawn(dict(model.init(catalogue_of(WORLD), KEY).shared), size)
    together = model.contribute(shared, {}, BATCH, KEY)
    for user in range(len(LENGTHS)):
        for others in ([], [0, 1], [4]):
            rows = sorted({user, *others})
            found = written_out(model.contribute(shared, {}, batch_of(WORLD, rows), KEY), shared, rows.index(user))
            for name, part in written_out(together, shared, user).items():
                assert torch.equal(found[name], part) or not part.isfinite().all()


def test_moves_are_float64_and_few_rows_of_items() -> None:
    model = bounded()
    shared = shared_of(model)
    blocks = model.contribute(shared, {}, BATCH, KEY)
    assert blocks.keys() == shared.keys() == model.totals(shared).keys()
    for name, block in blocks.items():
        assert block.values.dtype == torch.float64, name  # type: ignore[attr-defined]
        assert model.totals(shared)[name].dtype == torch.float64
    large = rich_world([3, 4], num_items=5000)
    model = bounded()
    shared = drawn(dict(model.init(catalogue_of(large), KEY).shared))
    items = model.contribute(shared, {}, batch_of(large), KEY)["items"]
    assert items.values.shape[1] <= 2 * 6 + 6  # type: ignore[attr-defined]


def test_rows_that_are_touched_stand_once_for_each_user() -> None:
    model = bounded(local_steps=2)
    items = model.contribute(shared_of(model), {}, BATCH, KEY)["items"]
    for ids, mask in zip(items.ids, items.mask, strict=True):  # type: ignore[attr-defined]
        assert len(set(ids[mask].tolist())) == int(mask.sum()) > 0


@pytest.mark.parametrize("local_steps", [1, 2])
def test_spoilt_items_cost_those_who_touch_them_and_nobody_else(local_steps: int) -> None:
    model = bounded(local_steps=local_steps)
    shared = shared_of(model)
    clean = model.contribute(shared, {}, BATCH, KEY)
    for item in range(WORLD.num_items):
        items = shared["items"].clone()
        items[item] = torch.nan
        spoilt = model.contribute({**shared, "items": items}, {}, BATCH, KEY)
        finite = torch.stack([block.finite() for block in spoilt.values()]).all(dim=0)
        for user in range(1, len(LENGTHS)):
            history = WORLD.items[WORLD.users == user]
            draws = [model._examples(BATCH, WORLD.num_items, key) for key in (KEY, KEY.fold("step", 1))[:local_steps]]
            touched = {
                row
                for one in draws
                for part in (one.windows.items[user], one.windows.targets[user], one.negatives.items[user])
                for row in part.tolist()
            }
            assert touched <= set(history.tolist()) | {
                row for one in draws for row in one.negatives.items[user].tolist()
            }
            if item not in touched:
                assert finite[user]
                assert far_apart(written_out(spoilt, shared, user), written_out(clean, shared, user)) == 0
        assert not finite.all() or item not in WORLD.items


@pytest.mark.parametrize("name", ["history.positions", "history.norm.weight", "context.tables.0", "past.lines.1"])
def test_spoilt_towers_cost_a_user_the_same_whoever_is_in_the_batch(name: str) -> None:
    model = bounded()
    shared = shared_of(model)
    spoilt = {**shared, name: shared[name].index_fill(0, torch.tensor([len(shared[name]) - 1]), torch.inf)}
    blocks = model.contribute(spoilt, {}, BATCH, KEY)
    together = torch.stack([block.finite() for block in blocks.values()]).all(dim=0)
    for user in range(len(LENGTHS)):
        alone = model.contribute(spoilt, {}, batch_of(WORLD, [user]), KEY)
        assert all(bool(block.finite()) for block in alone.values()) == bool(together[user])
    assert not together.all()


def test_a_rating_that_is_no_number_costs_its_user_alone() -> None:
    for model in (bounded(loss="squared"), exact(loss="squared")):
        shared, world = shared_of(bounded(loss="squared")), rich_world(LENGTHS)
        assert world.ratings is not None
        before = sum_contributions(model, shared, batches(world, [0, 1, 2, 4, 5]), np.inf, KEY)[0].totals
        world.ratings[world.users == 3] = np.nan
        after, diagnostics = sum_contributions(model, shared, batches(world), np.inf, KEY)
        assert diagnostics.num_zeroed == 1
        assert far_apart(after.totals, before) < 1e-6


def batches(world, rows=None, max_elements: int = 2**17):  # type: ignore[no-untyped-def]
    wanted = None if rows is None else np.array(rows)
    return user_batches(world, wanted, max_elements=max_elements, keys=user_keys(world.user_ids.ids))


def test_nobody_adds_nothing() -> None:
    model = bounded()
    shared = shared_of(model)
    for block in model.contribute(shared, {}, batch_of(WORLD, []), KEY).values():
        assert block.finite().shape == (0,) and block.squared_norms().shape == (0,)


def test_registry_takes_the_bounded_form_for_local_steps_and_under_a_plan() -> None:
    table = {"name": "two_tower", "loss": {"name": "bce"}}
    assert not build_model(table, None).bounded
    assert build_model({**table, "local_steps": 2}, None).bounded
    assert build_model(table, 1.0).bounded


def test_no_more_users_are_held_at_once_than_their_towers_leave_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same bits, and the norm of adaptive clipping makes no difference to how many."""
    towers = sum(tensor.numel() for name, tensor in shared_of(bounded()).items() if name not in ("items", "biases"))
    numbers = towers + min(2 * (WINDOW + 1) + 6, WORLD.num_items) * (4 + 1)
    for adaptive in ({}, {"adaptive_clipping": {"initial_norm": 0.5}}):
        model = build_model({"name": "two_tower", **settings_of(), **adaptive}, 1.0)
        shared = dict(model.init(catalogue_of(WORLD), KEY).shared)
        whole, _ = sum_contributions(model, shared, batches(WORLD), 1.0, KEY)
        held, one_by_one = list[int](), bounded_two_tower.one_by_one

        def counted(num_users: int, contribute: Any) -> Any:
            held.append(num_users)  # noqa: B023 - of this turn
            return one_by_one(num_users, contribute)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(bounded_two_tower, "_NUMBERS", 2 * numbers + 1)
            patch.setattr(bounded_two_tower, "one_by_one", counted)
            found, diagnostics = sum_contributions(model, shared, batches(WORLD), 1.0, KEY)
        assert max(held) == 2 and sum(held) == diagnostics.cohort_size == len(LENGTHS)
        assert all(torch.equal(found.totals[name], total) for name, total in whole.totals.items())
