"""Dropout: the stated share, the mean kept, and draws that follow from user, round and position alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrec.errors import ConfigError
from fedrec.models.towers.dropout import Dropout, dropout_draws
from fedrec.randomness import Key, user_keys

KEY = Key.from_seed(0)
KEYS = user_keys(np.arange(200))


@pytest.mark.parametrize("probability", [0.1, 0.2, 0.5, 0.9, 0.999])
def test_share_of_zeroes_is_the_probability_and_the_mean_is_kept(probability: float) -> None:
    draws = dropout_draws(KEYS, 20 * 100, KEY).reshape(200, 20, 100)
    dropped = Dropout(draws, probability)(torch.ones(200, 20, 100, dtype=torch.float64))
    stated = min(round(256 * probability), 255) / 256
    spread = (stated * (1 - stated) / dropped.numel()) ** 0.5
    assert abs(float((dropped == 0).double().mean()) - stated) < 5 * spread
    assert abs(stated - probability) <= 1 / 256
    assert float(dropped[dropped != 0].unique()) == pytest.approx(1 / (1 - stated), rel=1e-12)


def test_draws_are_uniform_bytes_that_differ_between_users_positions_rounds() -> None:
    draws = dropout_draws(KEYS, 1000, KEY)
    counts = torch.bincount(draws.flatten().long(), minlength=256).double()
    expected = draws.numel() / 256
    assert float(((counts - expected) ** 2 / expected).sum()) < 255 + 6 * (2 * 255) ** 0.5
    for other in (draws.roll(1, 0), draws.roll(1, 1), dropout_draws(KEYS, 1000, KEY.fold(1))):
        assert abs(float((draws == other).double().mean()) - 1 / 256) < 1e-3


def test_every_call_uses_draws_of_its_own_and_positions_do_not_depend_on_how_many_there_are() -> None:
    def dropped(width: int, users: slice) -> tuple[torch.Tensor, torch.Tensor]:
        draws = dropout_draws(KEYS[users], width * 12, KEY).reshape(-1, width, 12)
        dropout, ones = Dropout(draws, 0.5), torch.ones(len(draws), width, 6)
        return dropout(ones), dropout(ones)

    first, second = dropped(9, slice(0, 50))
    assert 0.4 < float((first == second).double().mean()) < 0.6
    for found, whole in zip(dropped(4, slice(3, 20)), (first, second), strict=True):
        assert torch.equal(found, whole[3:20, :4])


def test_nothing_is_dropped_without_draws_or_probability() -> None:
    values = torch.randn(2, 3, 4)
    assert Dropout(None, 0.5)(values) is values
    assert Dropout(torch.zeros(2, 3, 4, dtype=torch.uint8), 0.0)(values) is values


def test_draws_that_run_out_are_an_error() -> None:
    dropout = Dropout(torch.zeros(2, 3, 5, dtype=torch.uint8), 0.5)
    dropout(torch.ones(2, 3, 4))
    with pytest.raises(RuntimeError):
        dropout(torch.ones(2, 3, 4))


def test_batches_without_user_keys_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="no user keys; pass keys to user_batches"):
        dropout_draws(None, 5, KEY)
