"""The context tower: one vector a value, one for what is unknown, and a product and a gate with the history."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedrec.models.towers.context import ContextTower
from fedrec.randomness import Key

KEY = Key.from_seed(0)
DIM = 4
NAN = float("nan")


def tower_of(fields: Mapping[str, int], gated: bool = False) -> ContextTower:
    tower = ContextTower(fields, DIM, gated).double()
    for place, parameter in enumerate(tower.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=KEY.fold(place).torch_generator(), dtype=torch.float64)
    return tower


def embedded(tower: ContextTower, context: Mapping[str, Tensor], width: int) -> Tensor:
    return tower.add_up(context, torch.zeros(1, width, DIM, dtype=torch.float64))[0]


def test_a_category_has_the_vector_of_its_code_and_what_is_unknown_one_of_its_own() -> None:
    tower = tower_of({"place": 3})
    table = tower.tables["0"]
    found = embedded(tower, {"place": torch.tensor([[-1, 0, 1, 2, 3, 99, -7]])}, 7)
    torch.testing.assert_close(found, table[[0, 1, 2, 3, 0, 0, 0]])
    torch.testing.assert_close(embedded(tower, {}, 2), table[[0, 0]])


def test_a_number_is_a_point_on_a_line_and_not_a_number_has_a_vector_of_its_own() -> None:
    tower = tower_of({"heat": 0})
    unknown, direction, offset = tower.lines["0"]
    found = embedded(tower, {"heat": torch.tensor([[NAN, 0.0, 2.5, -1.0]])}, 4)
    wanted = torch.stack([unknown, offset, 2.5 * direction + offset, offset - direction])
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(embedded(tower, {}, 1), unknown[None])


def test_fields_add_up_in_their_order_and_others_are_not_read() -> None:
    tower = tower_of({"heat": 0, "place": 2, "day": 7})
    context = {"day": torch.tensor([[3]]), "place": torch.tensor([[1]]), "heat": torch.tensor([[0.5]]), "x": KEY}
    wanted = 0.5 * tower.lines["0"][1] + tower.lines["0"][2] + tower.tables["1"][2] + tower.tables["2"][4]
    torch.testing.assert_close(embedded(tower, context, 1)[0], wanted)  # type: ignore[arg-type]
    assert set(tower.tables) == {"1", "2"} and set(tower.lines) == {"0"}


def test_fields_together_say_more_than_their_sum() -> None:
    tower, like = tower_of({"place": 2, "day": 2}), torch.zeros(4, DIM, dtype=torch.float64)
    context = {"place": torch.tensor([0, 0, 1, 1]), "day": torch.tensor([0, 1, 0, 1])}
    total = tower.add_up(context, like)
    hidden = F.gelu(total @ tower.expand.weight.T + tower.expand.bias)
    found = tower(like, context)
    torch.testing.assert_close(found, total + hidden @ tower.contract.weight.T + tower.contract.bias)
    torch.testing.assert_close(total[0] + total[3], total[1] + total[2])
    assert (found[0] + found[3] - found[1] - found[2]).abs().max() > 0.1


def test_history_and_situation_meet_in_a_product_and_a_gate() -> None:
    tower, history = tower_of({"place": 2}, gated=True), torch.randn(2, 3, DIM, dtype=torch.float64)
    context = {"place": torch.tensor([[0, 1, -1], [1, 1, 0]])}
    situation = tower.embed(context, history)
    assert tower.gate is not None and tower.factor is not None
    share = torch.sigmoid(torch.cat([history, situation], dim=-1) @ tower.gate.weight.T + tower.gate.bias)
    crossed = history * (1 + situation @ tower.factor.weight.T)
    torch.testing.assert_close(tower(history, context), share * crossed + (1 - share) * situation)
    alone = tower(history[1], {"place": context["place"][1]})
    torch.testing.assert_close(alone, tower(history, context)[1])


@pytest.mark.parametrize("value", [NAN, 1.0])
def test_a_number_that_is_unknown_spoils_no_gradient(value: float) -> None:
    tower = tower_of({"heat": 0}, gated=True)
    tower(torch.randn(1, 2, DIM, dtype=torch.float64), {"heat": torch.tensor([[value, NAN]])}).sum().backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in tower.parameters())
