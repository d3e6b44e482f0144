"""The hybrid: ALS first, then the towers, then SLIT, and one score of them all."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from fedrec import assemble
from fedrec.config import build
from fedrec.data.batches import user_batches
from fedrec.errors import ConfigError
from fedrec.federated.cohort import sum_contributions
from fedrec.models.hybrid import Hybrid, HybridConfig
from fedrec.models.protocol import ServerState, grow, grown
from fedrec.privacy.mechanism import publish_exact
from fedrec.randomness import user_keys
from tests.models.towers.worlds import batch_of, catalogue_of, rich_world
from tests.models.two_towers import KEY

WORLD = rich_world([0, 1, 3, 6, 7, 12, 2, 5, 9])
BATCH = batch_of(WORLD)
SETTINGS = {
    "als": {"dim": 4},
    "als_rounds": 2,
    "two_tower": {"dim": 8, "history": {"name": "gru", "num_blocks": 1, "window": 5, "dropout": 0.25}},
    "tower_rounds": 3,
    "slit": {"regularization": 2.0},
}
WITHOUT_SLIT = {"tower_rounds": None, "slit": None}


def hybrid(**settings: Any) -> Hybrid:
    return Hybrid(HybridConfig.model_validate({**SETTINGS, **settings}))


def below(prefix: str, values: Any) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def states_of(model: Hybrid, num_rounds: int) -> list[ServerState]:
    """Return the states before and after each round with everybody."""
    keys, states = user_keys(WORLD.user_ids.ids), [model.init(catalogue_of(WORLD), KEY)]
    for number in range(num_rounds):
        batches = user_batches(WORLD, keys=keys)
        total, _ = sum_contributions(model, states[-1].shared, batches, np.inf, KEY.fold(number))
        states.append(model.update(states[-1], publish_exact(total, WORLD.num_users)))
    return states


def moved(before: ServerState, after: ServerState) -> set[str]:
    names = [name for name in after.shared if name != "round"]
    changed = [name for name in names if not torch.equal(after.shared[name], before.shared.get(name, torch.zeros(0)))]
    return {name.partition("/")[0] for name in changed}


def test_every_round_is_for_one_part_and_the_parts_take_turns() -> None:
    states = states_of(hybrid(), 6)
    assert [moved(*pair) for pair in pairwise(states)] == 2 * [{"als"}] + 3 * [{"two_tower"}] + [{"slit"}]
    assert [int(state.shared["round"]) for state in states] == list(range(7))


def test_table_of_slit_is_shared_from_its_round_on() -> None:
    model = hybrid()
    *before, after = states_of(model, 6)
    assert not any(below("slit/", state.shared) for state in before)
    for number, state in enumerate([*before, after]):
        start = before[0].shared
        announced = grow(model, start) if grown(model, number) else start
        assert {name: value.shape for name, value in announced.items()} == {
            name: value.shape for name, value in state.shared.items()
        }


def test_score_is_the_weighted_sum_of_the_parts() -> None:
    model = hybrid(als_weight=2.5, slit_weight=7.0)
    for state in states_of(model, 6)[-2:]:
        shared = state.shared
        found = model.score(shared, model.fit_users(shared, BATCH), BATCH)
        parts = {"two_tower/": (model.towers, 1.0), "als/": (model.als, 2.5)}
        if int(shared["round"]) == 6:
            assert model.slit is not None
            parts["slit/"] = (model.slit, 7.0)
        wanted = torch.zeros_like(found)
        for prefix, (part, weight) in parts.items():
            own = below(prefix, shared)
            wanted += weight * part.score(own, part.fit_users(own, BATCH), BATCH)
        torch.testing.assert_close(found, wanted)


def test_slit_leaves_the_other_parts_as_they_are_without_it() -> None:
    alone, together = states_of(hybrid(**WITHOUT_SLIT), 5)[-1], states_of(hybrid(), 6)[-1]
    assert alone.shared.keys() < together.shared.keys()
    for name, tensor in alone.shared.items():
        assert name == "round" or torch.equal(together.shared[name], tensor)


def test_towers_may_start_from_the_item_vectors_of_als() -> None:
    model = hybrid(als={"dim": 8}, start_from_als=True)
    shared = states_of(model, 2)[-1].shared
    ratio = shared["two_tower/items"] / shared["als/items"]
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-4, atol=1e-6)
    assert shared["two_tower/items"].std().item() == pytest.approx(model.config.two_tower.init_std)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"start_from_als": True}, "model.als.dim=4, model.two_tower.dim=8"),
        ({"two_tower": {"local_steps": 2, "loss": {"name": "bce"}}}, "model.two_tower.local_steps=2"),
        ({"tower_rounds": None}, "model.slit is given alone"),
        ({"slit": None}, "model.tower_rounds is given alone"),
        ({"slit": {"decya": 8}}, "unknown key model.slit.decya; did you mean 'decay'?"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    table = {name: value for name, value in {"name": "hybrid", **SETTINGS, **settings}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        build({"data": {"name": "synthetic"}, "model": table}, "here")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "federated", [{"num_rounds": 5, "last_full_rounds": 1}, {"num_rounds": 6}, {"num_rounds": 7, "last_full_rounds": 1}]
)
def test_a_run_that_never_comes_to_slit_or_gives_it_a_sample_is_refused(federated: dict[str, int]) -> None:
    """ALS takes two rounds here, the towers three."""
    table = {
        "data": {"name": "synthetic", "synthetic": {"num_users": 30, "num_items": 40, "mean_interactions": 8}},
        "model": {"name": "hybrid", **SETTINGS},
        "federated": {"sampling_probability": 0.5, **federated},
    }
    with pytest.raises(ConfigError, match=r"model\.slit takes round 6 .* from everybody"):
        assemble.check(build(table, "test"))
    fitting = {**table, "federated": {"sampling_probability": 0.5, "num_rounds": 6, "last_full_rounds": 1}}
    assemble.check(build(fitting, "test"))
