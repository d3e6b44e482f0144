"""Sensitivity of every model that runs under a plan: whoever comes or goes, the sum moves by at most the clipping norm.

All goes through the engine: histories, batches, fit, contributions, clipping, sum. For every user of a world

    |sum(all) - sum(all but the user)|              <= clipping_norm, over all blocks jointly, with no allowance at all
    sum(all) - sum(all but the user) == sum(user)   to the last bit: nobody else's part has changed

though whoever leaves changes the others' batches. The compiled form, which a CPU takes, keeps this without exception;
the plain form of other devices to ROUNDING x clipping_norm x users, and to what is known of it in `LOOSE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.compiled import compiled_for
from fedrec.data.batches import user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.federated.cohort import sum_contributions
from fedrec.models import blocks, coalescing, logistic, mf, two_tower
from fedrec.models.protocol import predicts_ratings
from fedrec.models.registry import build_model, model_names
from fedrec.models.towers.windows import Windows
from fedrec.privacy import clipping
from fedrec.privacy.clipping import BoundedSum, clip_scales
from fedrec.randomness import Key, user_keys

pytestmark = pytest.mark.usefixtures("form")

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "als": [{"dim": 3}],
    "popularity": [{}],
    "mf": [
        {"dim": 3, "num_negatives": 2, "local_learning_rate": 0.05},
        {"dim": 3, "num_negatives": 2, "start": "zero", "loss": "logistic", "local_epochs": 2, "local_batch_size": 4},
        {"dim": 3, "num_negatives": 2, "adaptive_clipping": {"initial_norm": 0.05, "count_share": 0.1}},
    ],
    "logistic": [
        {"window": 3, "num_negatives": 3, "context_fields": ["value"]},
        {"loss": "squared", "num_negatives": 2, "adaptive_clipping": {"initial_norm": 0.5}},
    ],
    "two_tower": [
        {
            "dim": 2,
            "history": {"window": 3, "num_blocks": 1, "num_heads": 1, "dropout": 0.25, "time_gaps": True},
            "context_fields": ["value"],
            "loss": {"name": "sampled_softmax", "num_negatives": 3},
        },
        {
            "dim": 2,
            "history": {"name": "decayed", "window": 4, "dropout": 0.25},
            "fusion": "additive",
            "loss": {"name": "gbce", "num_negatives": 2},
            "local_steps": 2,
        },
        {"dim": 3, "history": {"name": "gru", "window": 3, "num_blocks": 1}, "loss": {"name": "squared", "offset": 3}},
        {
            "dim": 16,
            "history": {"name": "lstm", "window": 20, "num_blocks": 1},
            "fusion": "mlp",
            "loss": {"name": "bpr", "num_negatives": 33},
            "adaptive_clipping": {"initial_norm": 0.5},
        },
    ],
}
"""What each model of the registry is tested with: small, so that batches of a few users reach every branch."""

MODELS = {f"{name}-{n}": {"name": name, **table} for name, tables in SETTINGS.items() for n, table in enumerate(tables)}
MODEL = pytest.mark.parametrize("model", MODELS)

KEY = Key.from_seed(6)
NUM_ITEMS = 8
ROUNDING = 1e-13
LOOSE = {("als-0", "reference", "one huge row"): 1e-3, ("mf-0", "reference", "one huge row"): 1e-3}
"""(model, form, shared) -> how far others' parts may move, in clipping norms: a limit of the form of other devices.

There users are solved in batches, so how a user rounds depends on the others, and a Gram matrix of condition number c
turns 1e-16 into c x 1e-16 (1e-4 was seen at c = 1e24). The compiled form solves one user after the other: no exception.
"""


def scaled(size: float) -> Callable[[Tensor], Tensor]:
    return lambda values: values * size


def with_row(row: int, size: float) -> Callable[[Tensor], Tensor]:
    return lambda values: values.index_fill(0, torch.tensor([min(row, len(values) - 1)]), size)


def with_item(item: int, size: float) -> Callable[[Tensor], Tensor]:
    return lambda values: with_row(item, size)(values) if len(values) == NUM_ITEMS else values


def with_huge_row(values: Tensor) -> Tensor:
    return torch.cat([values[:3], values[3:4] * 1e12, values[4:]])


SHARED: dict[str, Callable[[Tensor], Tensor]] = {
    "ordinary": scaled(1.0),
    "huge": scaled(1e18),
    "near the end of float32": scaled(1e30),
    "tiny": scaled(1e-30),
    "zero": scaled(0.0),
    "one huge row": with_huge_row,
    "one row of nan": with_row(3, math.nan),
    "one row of infinity": with_row(3, math.inf),
    "first row of infinity": with_row(0, math.inf),
    "nan for the item that padding has": with_item(0, math.nan),
    "all nan": scaled(math.nan),
}
COLUMNS: dict[str, Callable[[int], dict[str, Any]]] = {
    "none": lambda num: {},
    "ordinary": lambda num: {"times": np.arange(num), "ratings": np.full(num, 4, dtype=np.float32)},
    "not a number": lambda num: {
        "times": np.full(num, np.iinfo(np.int64).min),
        "ratings": np.full(num, np.nan, dtype=np.float32),
        "context": {"value": np.full(num, np.inf, dtype=np.float32)},
    },
    "huge": lambda num: {
        "times": np.full(num, np.iinfo(np.int64).max),
        "ratings": np.full(num, 3e38, dtype=np.float32),
        "context": {"value": np.full(num, -3e38, dtype=np.float32)},
    },
}


@dataclass(frozen=True)
class World:
    """Users with their histories, and everything else that a round depends on.

    `overshoot` is how many times the clipping norm a model that scales its own contributions believes it may add.
    """

    histories: list[list[int]]
    shared: str = "ordinary"
    columns: str = "none"
    clipping_norm: float = 1.0
    overshoot: float = 1.0
    max_elements: int = 2**17

    def interactions(self, rated: bool) -> Interactions:
        columns = "ordinary" if rated and self.columns == "none" else self.columns
        users = np.repeat(np.arange(len(self.histories)), [len(history) for history in self.histories])
        items = np.array([item for history in self.histories for item in history], dtype=np.int64)
        ids = Vocabulary(np.arange(len(self.histories)) + 100)
        return Interactions(users, items, ids, Vocabulary(np.arange(NUM_ITEMS)), **COLUMNS[columns](len(users)))


class Round:
    """A round of one model in one world, with any of the users in it."""

    def __init__(self, model: str, world: World) -> None:
        self.world, self.model = world, build_model(MODELS[model], world.clipping_norm * world.overshoot)
        self.interactions = world.interactions(rated=predicts_ratings(self.model))
        categories = np.arange(NUM_ITEMS)[:, None] % 3 == np.arange(3)
        catalogue = Catalogue(self.interactions.item_ids, categories=categories, context_fields={"value": 0})
        shared = self.model.init(catalogue, KEY).shared
        generator = KEY.fold("shared").torch_generator()
        drawn = {name: torch.randn(values.shape, generator=generator) for name, values in shared.items()}
        self.shared = {name: SHARED[world.shared](values).to(shared[name]) for name, values in drawn.items()}

    def sum(self, rows: list[int]) -> Tensor:
        """Return the bounded sum over some users, all blocks in one vector."""
        users = self.interactions.of_users(np.array(rows, dtype=np.int64))
        batches = user_batches(users, max_elements=self.world.max_elements, keys=user_keys(users.user_ids.ids))
        total, _ = sum_contributions(self.model, self.shared, batches, self.world.clipping_norm, KEY)
        return torch.cat([total.totals[name].flatten() for name in sorted(total.totals)])


def current_form() -> str:
    return "compiled" if compiled_for(torch.zeros(1)) else "reference"


def check_sensitivity(model: str, world: World) -> None:
    """Fail if adding or removing any one user moves the sum by more than the clipping norm, or anybody else's part."""
    one_round, num_users = Round(model, world), len(world.histories)
    loose = LOOSE.get((model, current_form(), world.shared), 0.0)
    whole = one_round.sum(list(range(num_users)))
    assert torch.isfinite(whole).all()
    for left_out in range(num_users):
        rest = one_round.sum([user for user in range(num_users) if user != left_out])
        alone = one_round.sum([left_out])
        assert sum(Fraction(value) ** 2 for value in alone.tolist()) <= Fraction(world.clipping_norm) ** 2
        assert torch.linalg.vector_norm(whole - rest) <= world.clipping_norm * (1 + loose)
        others = torch.linalg.vector_norm(whole - rest - alone)
        allowed = 0.0 if current_form() == "compiled" else world.clipping_norm * max(ROUNDING * num_users, loose)
        assert others <= allowed, "somebody else's part has changed"


ITEM = st.integers(0, NUM_ITEMS - 1)
HISTORY = st.one_of(
    st.just([]),
    st.lists(ITEM, max_size=6),
    st.lists(ITEM, min_size=20, max_size=60),
    st.builds(lambda item, times: [item] * times, ITEM, st.sampled_from([2, 9, 100])),
    st.sampled_from([list(range(NUM_ITEMS)), 2 * list(range(NUM_ITEMS)), 100 * list(range(NUM_ITEMS))]),
)
HISTORIES = st.one_of(
    st.lists(HISTORY, min_size=1, max_size=5),
    st.builds(lambda history, num: [history] * num, HISTORY, st.integers(2, 5)),
)
WORLDS = st.builds(
    World,
    HISTORIES,
    st.sampled_from(sorted(SHARED)),
    st.sampled_from(sorted(COLUMNS)),
    st.sampled_from([1e-3, 1.0, 37.5]),
    st.sampled_from([1.0, 1.0, 10.0, 0.3]),
    st.sampled_from([1, 30, 2**17]),
)

ORDINARY = World([[0, 1, 2], [3], [1, 5, 6, 7]], clipping_norm=1e-3)
EXAMPLES = {
    "ordinary users": ORDINARY,
    "one user": World([[0, 4]]),
    "a user without interactions": World([[], [0, 1], []]),
    "all users the same": World([[1, 2, 5]] * 5, max_elements=6),
    "a user who met everything": World([list(range(NUM_ITEMS)), [0], []], overshoot=10.0),
    "duplicates": World([[2] * 16, [0, 1], [3, 3, 0]]),
    "a very long history": World([[k * k % NUM_ITEMS for k in range(3000)], [0, 1], [2]], max_elements=50),
    "contributions above the norm": replace(ORDINARY, overshoot=10.0),
    "not a number in a row of the table": World([[3, 1], [0], [5, 6]], shared="one row of nan"),
    "infinity beside a longer history": World([[], [], [4], [0, 0]], shared="one row of infinity", max_elements=30),
    "not a number everywhere": replace(ORDINARY, shared="all nan"),
    "not a number where padding reads": World([[3], [5, 6], [1, 2, 7, 4]], shared="nan for the item that padding has"),
    "ratings that are no numbers": replace(ORDINARY, columns="not a number"),
    "scores that are nothing but rounding": World([[0, 0], [0]], shared="huge", clipping_norm=1e-3, max_elements=30),
}


def test_every_model_that_runs_under_a_plan_has_settings_here() -> None:
    assert SETTINGS.keys() == set(model_names("user")), (
        "a new private model: add its settings, and what it is immune to"
    )


@MODEL
@settings(deadline=None, max_examples=60)
@given(WORLDS)
def test_adding_or_removing_any_user_moves_the_sum_by_at_most_the_clipping_norm(model: str, world: World) -> None:
    if current_form() == "reference" and MODELS[model]["name"] == "two_tower":
        pytest.skip("has no kernels of its own; the examples below go through both forms")
    check_sensitivity(model, world)


@MODEL
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_that_the_mutations_below_are_caught_with(model: str, name: str) -> None:
    check_sensitivity(model, EXAMPLES[name])


@MODEL
@pytest.mark.parametrize("spoilt", ["one row of nan", "one row of infinity", "all nan"])
def test_a_user_who_depends_on_spoilt_parameters_adds_exactly_nothing(model: str, spoilt: str) -> None:
    clean = World([[3, 1], [0], [5, 6], [1, 2, 3], [], [7] * 9])
    before, after = Round(model, clean), Round(model, replace(clean, shared=spoilt))
    everybody = list(range(len(clean.histories)))
    parts = [after.sum([user]) for user in everybody]
    for user, part in zip(everybody, parts, strict=True):
        assert not part.any() or torch.equal(part, before.sum([user])), "nothing, or as if nothing were spoilt"
    if MODELS[model]["name"] != "popularity":
        assert not parts[0].any() and not parts[3].any(), "they met the spoilt item"
    torch.testing.assert_close(after.sum(everybody), sum(parts), rtol=1e-12, atol=1e-12)


def without_coalescing(patch: pytest.MonkeyPatch) -> None:
    for owner in (blocks, coalescing):
        patch.setattr(owner, "coalesce", lambda ids, values, mask=None: (ids, values))


def with_scales(scales: Callable[[Mapping[str, blocks.Block], float], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(clipping, "clip_scales", scales)


def scales_of_each_block_alone(parts: Mapping[str, blocks.Block], clipping_norm: float) -> Tensor:
    return torch.stack([clip_scales({name: block}, clipping_norm) for name, block in parts.items()]).amin(dim=0)


def scales_where_nan_passes(parts: Mapping[str, blocks.Block], clipping_norm: float) -> Tensor:
    scales = clip_scales(parts, clipping_norm)
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def without_zeroing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(blocks, "_zero_unused", lambda values, scale: values)


def counting_everybody_twice(patch: pytest.MonkeyPatch) -> None:
    add = BoundedSum.add
    patch.setattr(BoundedSum, "add", lambda self, parts: [add(self, parts), add(self, parts)][0])


def drawing_by_place_in_the_batch(patch: pytest.MonkeyPatch) -> None:
    def by_place(draw: Callable[..., Any]) -> Callable[..., Any]:
        return lambda users, *rest: draw(replace(users, keys=np.arange(users.num_users, dtype=np.uint64)), *rest)

    patch.setattr(mf, "draw_examples", by_place(mf.draw_examples))
    for module in (logistic, two_tower):
        for name in ("training_windows", "draw_negatives"):
            patch.setattr(module, name, by_place(getattr(module, name)))


def drawing_by_how_far_is_padded(patch: pytest.MonkeyPatch) -> None:
    draw = two_tower.dropout_draws
    patch.setattr(two_tower, "dropout_draws", lambda *arguments: draw(*arguments).flip(1))


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no coalescing": without_coalescing,
    "each block clipped alone": with_scales(scales_of_each_block_alone),
    "no clipping": with_scales(lambda parts, norm: clip_scales(parts, math.inf)),
    "weight slightly above 1": with_scales(lambda parts, norm: clip_scales(parts, norm) * (1 + 1e-5)),
    "not-a-number passes": with_scales(scales_where_nan_passes),
    "not-a-number times zero": without_zeroing,
    "everybody counted twice": counting_everybody_twice,
    "draws by place in the batch": drawing_by_place_in_the_batch,
    "draws by how far is padded": drawing_by_how_far_is_padded,
}

IMMUNE = {
    ("no coalescing", "mf"): "local training keeps one copy of every row it touches, so no row is sent twice",
    ("no coalescing", "two_tower"): "as above",
    ("each block clipped alone", "popularity"): "has one block",
    ("each block clipped alone", "mf"): "has one block, but for the count of adaptive clipping",
    ("not-a-number passes", "popularity"): "computes from histories alone: no number it reads can be spoilt",
    ("not-a-number times zero", "popularity"): "as above",
    ("not-a-number times zero", "mf", "compiled"): "kernels leave out users of scale 0, they do not multiply",
    ("not-a-number times zero", "als", "compiled"): "as above",
    ("draws by place in the batch", "als"): "draws nothing",
    ("draws by place in the batch", "popularity"): "draws nothing",
    ("draws by how far is padded", "als"): "draws nothing",
    ("draws by how far is padded", "popularity"): "draws nothing",
    ("draws by how far is padded", "mf"): "drops nothing",
    ("draws by how far is padded", "logistic"): "drops nothing",
}
"""(mutation, model) or (mutation, model, form) -> why this model keeps its bound even so."""


@MODEL
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_sensitivity_check_sees_every_broken_part(
    mutation: str, model: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTATIONS[mutation](monkeypatch)
    name = MODELS[model]["name"]
    one_block = mutation != "each block clipped alone" or "adaptive_clipping" not in MODELS[model]
    if one_block and ((mutation, name) in IMMUNE or (mutation, name, form) in IMMUNE):
        for world in EXAMPLES.values():
            check_sensitivity(model, world)
        return
    with pytest.raises(AssertionError):
        for world in EXAMPLES.values():
            check_sensitivity(model, world)


def test_the_sensitivity_check_sees_users_computed_with_the_padding_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def padded(windows: Windows, user: int) -> Windows:
        return windows.of(torch.arange(len(windows.items)) == user)

    monkeypatch.setattr(Windows, "alone", padded)
    with pytest.raises(AssertionError, match="somebody else's part"):
        check_sensitivity("two_tower-1", EXAMPLES["scores that are nothing but rounding"])
