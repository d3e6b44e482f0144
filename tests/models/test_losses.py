"""Losses against plain formulas and torch's own, values and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedrec.errors import DataError
from fedrec.models import losses
from fedrec.models.losses import LossConfig, sampled_loss, softmax_over_all, squared_loss
from fedrec.randomness import Key

KEY = Key.from_seed(0)


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=KEY.fold(seed).torch_generator(), dtype=dtype)


def config_of(name: str, **settings: Any) -> LossConfig:
    return LossConfig(name=name, **settings)  # type: ignore[arg-type]


def full_softmax(queries: Tensor, items: Tensor, biases: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (weights * F.cross_entropy(queries @ items.T + biases, targets, reduction="none")).sum()


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_over_all_is_weighted_cross_entropy(
    rows_at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_CELLS", rows_at_once * 7)
    targets, weights = torch.arange(11) % 7, draws(11, seed=3, dtype=dtype).abs()
    weights[2] = 0.0
    found, wanted = [
        [tensor.requires_grad_() for tensor in (draws(11, 4, dtype=dtype), 3 * draws(7, 4, seed=1, dtype=dtype))]
        + [draws(7, seed=2, dtype=dtype).requires_grad_()]
        for _ in range(2)
    ]
    loss = softmax_over_all(*found, targets, weights)
    expected = full_softmax(*wanted, targets, weights)
    torch.testing.assert_close(loss, expected)
    for slope, other in zip(
        torch.autograd.grad(2.5 * loss, found), torch.autograd.grad(2.5 * expected, wanted), strict=True
    ):
        torch.testing.assert_close(slope, other)


def test_softmax_over_all_passes_gradcheck_and_refuses_to_be_differentiated_twice() -> None:
    tensors = [draws(3, 2).requires_grad_(), draws(5, 2, seed=1).requires_grad_(), draws(5, seed=2).requires_grad_()]
    targets, weights = torch.tensor([0, 4, 4]), torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *leaves: softmax_over_all(*leaves, targets, weights), tensors)
    (slope,) = torch.autograd.grad(softmax_over_all(*tensors, targets, weights), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        slope.sum().backward()


def test_softmax_over_all_survives_large_scores_and_no_rows() -> None:
    queries, items = torch.full((2, 3), 1e4).requires_grad_(), torch.eye(3).requires_grad_()
    biases, targets = torch.zeros(3).requires_grad_(), torch.tensor([0, 1])
    loss = softmax_over_all(queries, items, biases, targets, torch.ones(2))
    assert float(loss.detach()) == pytest.approx(2 * math.log(3), rel=1e-5)
    assert all(torch.isfinite(slope).all() for slope in torch.autograd.grad(loss, (queries, items, biases)))
    nothing = softmax_over_all(queries[:0], items, biases, targets[:0], torch.ones(0))
    assert float(nothing.detach()) == 0
    assert not any(slope.any() for slope in torch.autograd.grad(nothing, (items, biases)))


def negatives_of(num_users: int, width: int, num: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scores of targets and negatives, which of them are used, and items they are drawn from."""
    used = draws(num_users, 1, num, seed=5) > -0.5
    return (
        draws(num_users, width),
        draws(num_users, width, num, seed=1),
        used,
        torch.full((num_users, 1), 50.0).double(),
    )


def by_hand(name: str, positive: float, negative: list[float], num_unmet: float, calibration: float) -> float:
    """Return the loss of one position, as papers write it."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    num = len(negative)
    if name == "bpr":
        return -sum(math.log(sigmoid(positive - score)) for score in negative) / max(num, 1)
    if name == "sampled_softmax":
        weights = [math.exp(score) / (num / num_unmet) for score in negative]  # each stands for that many items
        return -math.log(math.exp(positive) / (math.exp(positive) + sum(weights)))
    power = 1.0
    if name == "gbce":  # Petrov & Macdonald 2023, eq. 9
        alpha = num / num_unmet
        power = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    return -power * math.log(sigmoid(positive)) - sum(math.log(1 - sigmoid(score)) for score in negative)


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("name", ["sampled_softmax", "bce", "gbce", "bpr"])
def test_sampled_losses_are_the_formulas_of_the_papers(name: str, calibration: float) -> None:
    positive, negative, used, num_unmet = negatives_of(4, 3, 6)
    found = sampled_loss(config_of(name, calibration=calibration), positive, negative, used, num_unmet)
    assert found.shape == (4, 3)
    for user in range(4):
        for place in range(3):
            kept = negative[user, place][used[user, 0]].tolist()
            wanted = by_hand(name, float(positive[user, place]), kept, 50.0, calibration)
            assert float(found[user, place]) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("name", ["sampled_softmax", "bce", "gbce", "bpr"])
def test_sampled_losses_pass_gradcheck_also_for_who_has_no_negatives(name: str) -> None:
    positive, negative, used, num_unmet = negatives_of(3, 2, 4)
    used[1] = False
    num_unmet[1] = 0
    leaves = (positive.requires_grad_(), negative.requires_grad_())
    assert torch.autograd.gradcheck(lambda *two: sampled_loss(config_of(name), *two, used, num_unmet), leaves)
    slopes = torch.autograd.grad(sampled_loss(config_of(name), *leaves, used, num_unmet).sum(), leaves[1])[0]
    assert not slopes.where(used, 0.0).eq(0).where(used, False).any() and not slopes.where(~used, 0.0).any()


@pytest.mark.parametrize("name", ["sampled_softmax", "bce", "gbce", "bpr"])
def test_one_user_alone_is_as_in_a_batch(name: str) -> None:
    positive, negative, used, num_unmet = negatives_of(3, 2, 4)
    together = sampled_loss(config_of(name), positive, negative, used, num_unmet)
    for user in range(3):
        alone = sampled_loss(config_of(name), positive[user], negative[user], used[user], num_unmet[user])
        torch.testing.assert_close(alone, together[user])


def test_sampled_softmax_with_every_other_item_is_the_full_softmax() -> None:
    queries, items, biases = draws(2, 3, 4), draws(9, 4, seed=1), draws(9, seed=2)
    target = torch.tensor([2, 7])
    scores = queries @ items.T + biases
    others = torch.stack([torch.tensor([i for i in range(9) if i != one]) for one in target.tolist()])
    positive = scores[torch.arange(2), :, target]
    negative = scores.gather(2, others[:, None].expand(2, 3, 8))
    used, num_unmet = torch.ones(2, 1, 8, dtype=torch.bool), torch.full((2, 1), 8.0)
    found = sampled_loss(config_of("sampled_softmax"), positive, negative, used, num_unmet)
    wanted = F.cross_entropy(scores.flatten(0, 1), target.repeat_interleave(3), reduction="none").reshape(2, 3)
    torch.testing.assert_close(found, wanted)


def test_gbce_without_calibration_or_with_every_negative_is_bce() -> None:
    positive, negative, used, num_unmet = negatives_of(4, 3, 6)
    bce = sampled_loss(config_of("bce"), positive, negative, used, num_unmet)
    assert torch.equal(sampled_loss(config_of("gbce", calibration=0.0), positive, negative, used, num_unmet), bce)
    all_used = torch.ones_like(used)
    torch.testing.assert_close(
        sampled_loss(config_of("gbce", calibration=1.0), positive, negative, all_used, 6 * torch.ones(4, 1)),
        sampled_loss(config_of("bce"), positive, negative, all_used, num_unmet),
    )


def test_calibrated_gbce_weighs_a_target_exactly_even_with_few_of_very_many_items() -> None:
    used, num_unmet = torch.ones(1, 1, 1, dtype=torch.bool), torch.tensor([[1e7]])
    scores = torch.tensor([[-5.0]]), torch.full((1, 1, 1), -90.0)
    loss = sampled_loss(config_of("gbce", calibration=1.0), *scores, used, num_unmet)
    assert float(loss) == pytest.approx(1e-7 * math.log1p(math.exp(5)), rel=1e-5)


def test_squared_loss_is_half_the_squared_error() -> None:
    scores, ratings = draws(2, 3), draws(2, 3, seed=1)
    torch.testing.assert_close(squared_loss(scores, ratings).sum(), 0.5 * F.mse_loss(scores, ratings, reduction="sum"))
    with pytest.raises(DataError, match="fits ratings, and the data has none; choose another loss"):
        squared_loss(scores, None)


def test_losses_over_all_items_or_of_ratings_draw_nothing() -> None:
    assert config_of("softmax").num_drawn == config_of("squared").num_drawn == 0
    assert config_of("bpr", num_negatives=7).num_drawn == 7
