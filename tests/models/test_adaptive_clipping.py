"""Adaptive clipping: the bound holds, the norm finds the quantile, and what it costs is in the release."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fedrec.data.batches import make_batch, user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.federated.cohort import sum_contributions
from fedrec.models.adaptive_clipping import BELOW, NORM, AdaptiveClippingConfig, AdaptivelyClipped, Scaled
from fedrec.models.blocks import Dense
from fedrec.models.registry import build_model
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.mechanism import release
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.randomness import Key, user_keys
from tests.worlds import random_world

WORLD = random_world(60, 20)
KEYS = user_keys(WORLD.user_ids.ids)
CATALOGUE = Catalogue(WORLD.item_ids)
MF = {"name": "mf", "dim": 4, "server_optimizer": {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0}}
TOWERS = {"name": "two_tower", "dim": 4, "history": {"name": "decayed"}}
KEY = Key.from_seed(3)


def adaptive(table: dict[str, object], clipping_norm: float = 1.0, **settings: float) -> AdaptivelyClipped:
    model = build_model({**table, "adaptive_clipping": settings}, clipping_norm)
    assert isinstance(model, AdaptivelyClipped)
    return model


def shared_of(model: AdaptivelyClipped) -> dict[str, torch.Tensor]:
    return dict(model.init(CATALOGUE, KEY).shared)


def norms_of(model: AdaptivelyClipped) -> torch.Tensor:
    """The norms of everybody's move, without any clipping."""
    batch, inner = make_batch(WORLD, np.arange(60), KEYS), model.inner
    shared = {name: tensor for name, tensor in shared_of(model).items() if name != NORM}
    blocks = inner.contribute(shared, inner.fit_users(shared, batch, ranking=False), batch, KEY)
    return torch.stack([block.squared_norms() for block in blocks.values()]).sum(dim=0).sqrt()


def run_round(model: AdaptivelyClipped, shared: dict[str, torch.Tensor]) -> BoundedSum:
    batches = user_batches(WORLD, keys=KEYS)
    return sum_contributions(model, shared, batches, model.clipping_norm, KEY)[0]


@pytest.mark.parametrize("table", [MF, TOWERS], ids=["mf", "two_tower"])
@pytest.mark.parametrize("initial_norm", [1e-9, 0.02, 1e6])
@pytest.mark.parametrize("clipping_norm", [0.1, 3.0])
def test_joint_norm_is_bounded_whatever_the_norm_is(
    table: dict[str, object], initial_norm: float, clipping_norm: float
) -> None:
    model = adaptive(table, clipping_norm, initial_norm=initial_norm)
    batch, shared = make_batch(WORLD, np.arange(60), KEYS), shared_of(model)
    blocks = model.contribute(shared, model.fit_users(shared, batch, ranking=False), batch, KEY)
    squares = {name: block.squared_norms() for name, block in blocks.items()}
    total = torch.stack(list(squares.values())).sum(dim=0).sqrt()
    met = torch.from_numpy(WORLD.lengths > 0)
    assert float(total.max()) <= clipping_norm * (1 + 1e-9)
    count = math.sqrt(model.config.count_share) * clipping_norm
    torch.testing.assert_close(squares[BELOW].sqrt()[met], torch.full((int(met.sum()),), count, dtype=torch.float64))
    assert not bool(total[~met].any()), "who has nothing to say says nothing"


def test_side_is_that_of_each_users_norm() -> None:
    norms = norms_of(adaptive(MF))
    middle = float(norms[norms > 0].median())
    model = adaptive(MF, initial_norm=middle)
    below = run_round(model, shared_of(model)).totals[BELOW]
    share = 0.5 + float(below) / (2 * math.sqrt(model.config.count_share)) / int((norms > 0).sum())
    assert share == pytest.approx(float((norms[norms > 0] <= np.float32(middle)).double().mean()), abs=1e-6)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_norm_finds_the_quantile(quantile: float) -> None:
    """Without noise and with moves that stay alike, C ends where the share of users below it is the quantile."""
    norms = norms_of(adaptive(MF))
    model = adaptive(MF, quantile=quantile, initial_norm=5 * float(norms.max()), learning_rate=0.3)
    start = model.init(CATALOGUE, KEY)
    state = start
    num = int((norms > 0).sum())
    for _ in range(60):
        total = run_round(model, {**start.shared, NORM: state.shared[NORM]})
        sums = {name: tensor / num for name, tensor in total.totals.items()}
        state = model.update(state, _Exact(sums, float(num)))
    found = float((norms[norms > 0] <= float(state.shared[NORM])).double().mean())
    assert found == pytest.approx(quantile, abs=0.06)


def test_where_nobody_is_clipped_the_move_is_that_of_the_model() -> None:
    model = adaptive(MF, initial_norm=1e3)
    state = model.init(CATALOGUE, KEY)
    total = run_round(model, dict(state.shared))
    moved = model.update(state, _Exact({name: tensor / 60 for name, tensor in total.totals.items()}, 60.0))
    plain = build_model(MF, None)
    alone, _ = sum_contributions(
        plain, plain.init(CATALOGUE, KEY).shared, user_batches(WORLD, keys=KEYS), math.inf, KEY
    )
    expected = plain.update(plain.init(CATALOGUE, KEY), _Exact({"items": alone.totals["items"] / 60}, 60.0))
    torch.testing.assert_close(moved.shared["items"], expected.shared["items"], rtol=1e-4, atol=1e-4)


def test_noise_on_the_moves_is_known_in_their_own_units() -> None:
    """The inner model is told the noise that its blocks really have: the plan's, times C / (a S)."""
    model = adaptive(MF, 2.0, initial_norm=0.5, count_share=0.19)
    seen: dict[str, float] = {}
    inner_update = model.inner.update

    def spy(server: object, released: object) -> object:
        seen.update(released.noise_std)  # type: ignore[attr-defined]
        return inner_update(server, released)  # type: ignore[arg-type]

    model.inner.update = spy  # type: ignore[method-assign, assignment]
    plan = PrivacyPlan((PrivacyEvent(1.5, 1.0, 1),), 1e-5, 2.0, 60)
    state = model.init(CATALOGUE, KEY)
    released = release(run_round(model, dict(state.shared)), plan, 1, KEY)
    model.update(state, released)
    assert seen.keys() == {"items"}
    assert seen["items"] == pytest.approx(released.noise_std["items"] * 0.5 / (2.0 * 0.9), rel=1e-6)


class _Exact:
    """A release without noise."""

    def __init__(self, blocks: dict[str, torch.Tensor], divisor: float) -> None:
        self.blocks, self.divisor = blocks, divisor
        self.noise_std = dict.fromkeys(blocks, 0.0)


def test_settings_are_checked() -> None:
    for wrong in ({"quantile": 1.0}, {"count_share": 0.0}, {"initial_norm": -1.0}, {"rate": 1.0}):
        with pytest.raises(ValueError):
            AdaptiveClippingConfig.model_validate(wrong)


@pytest.mark.parametrize("clipping_norm", [1e-30, 1e-10, 1.0])
@pytest.mark.parametrize("size", [1e-3, 1e130, 1e140, 1e150])
def test_huge_moves_under_a_tiny_norm_leave_room_for_rounding(clipping_norm: float, size: float) -> None:
    """A factor whose square is nothing must not make the move measure as nothing."""
    for seed in range(20):
        drawn = torch.rand(1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        move = Dense((0.5 + drawn / 2) * size)
        share, norms = clipping_norm * 0.99**0.5, move.squared_norms().sqrt()
        below = torch.full((1, 1), clipping_norm * 0.01**0.5, dtype=torch.float64)
        total = BoundedSum({"move": torch.zeros(3).double(), "below": torch.zeros(1).double()}, clipping_norm)
        total.add({"move": Scaled(move, share / norms.clamp(min=1.0)), "below": Dense(below)})
        added = torch.cat(list(total.totals.values())).tolist()
        assert sum(Fraction(value) ** 2 for value in added) <= Fraction(clipping_norm) ** 2
