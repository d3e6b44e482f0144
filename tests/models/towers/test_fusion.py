"""Fusions against their formulas, and every way of asking for the same scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedrec.models.towers import fusion as fusions
from fedrec.models.towers.fusion import Fusion, FusionName, make_fusion
from fedrec.randomness import Key

KEY = Key.from_seed(0)
DIM = 5
NAMES: tuple[FusionName, ...] = ("dot", "additive", "mlp")


def fusion_of(name: FusionName) -> Fusion:
    fusion = make_fusion(name, DIM).double()
    for place, parameter in enumerate(fusion.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=KEY.fold(place).torch_generator(), dtype=torch.float64)
    return fusion


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, DIM, generator=KEY.fold("vectors", seed).torch_generator(), dtype=torch.float64)


def by_formula(name: FusionName, fusion: Fusion, query: Tensor, item: Tensor) -> Tensor:
    own = {key: value.detach() for key, value in fusion.named_parameters()}
    if name == "dot":
        return query @ item
    if name == "additive":
        hidden = torch.sigmoid(own["hidden.weight"] @ (query + item) + own["hidden.bias"])
        return own["output.weight"][0] @ hidden
    weights = torch.cat([own["queries.weight"], own["items.weight"], own["products.weight"]], dim=1)
    hidden = torch.relu(weights @ torch.cat([query, item, query * item]) + own["queries.bias"])
    return own["output.weight"][0] @ hidden


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_pairs_grids_and_all_items_are_the_formula(name: FusionName, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion, queries, items = fusion_of(name), vectors(3), vectors(7, seed=1)
    wanted = torch.stack([torch.stack([by_formula(name, fusion, q, i) for i in items]) for q in queries])
    torch.testing.assert_close(fusion(queries, items[:3]), wanted.diagonal())
    torch.testing.assert_close(fusion.grid(queries, items), wanted)
    torch.testing.assert_close(fusion.grid(queries.expand(2, 3, DIM), items.expand(2, 7, DIM)), wanted.expand(2, 3, 7))
    torch.testing.assert_close(fusion.all_items(queries, items), wanted)
    monkeypatch.setattr(fusions, "_CELLS", 2 * items.numel())
    torch.testing.assert_close(fusion.all_items(queries, items), wanted)
    assert fusion.all_items(queries[:0], items).shape == (0, 7)
