"""Server optimisers against those of torch, and federated averaging as the plain case."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from fedrec.models.server_optimizer import ServerOptimizerConfig, begin, step

SHAPE = (4, 3)


def moves(num: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(num)]


def start(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linspace(-1, 1, 12, dtype=dtype).reshape(SHAPE)


def ours(config: ServerOptimizerConfig, num: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    parameters = {"items": start(dtype)}
    memory = begin(parameters, config)
    for move in moves(num):
        parameters, memory = step(parameters, {"items": move}, memory, config)
    assert memory["step"].tolist() == [num]
    return parameters["items"]


def of_torch(optimizer: torch.optim.Optimizer, parameters: torch.Tensor, num: int) -> torch.Tensor:
    for move in moves(num):
        parameters.grad = -move
        optimizer.step()
    return parameters.detach()


@pytest.mark.parametrize("num", [1, 2, 25])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.0, 0.9), (0.5, 0.0)])
def test_adam_is_that_of_torch_with_the_mean_move_as_minus_the_gradient(num: int, betas: tuple[float, float]) -> None:
    config = ServerOptimizerConfig(
        name="adam", learning_rate=0.07, momentum=betas[0], second_momentum=betas[1], stability=1e-3
    )
    parameters = start().requires_grad_()
    expected = of_torch(torch.optim.Adam([parameters], lr=0.07, betas=betas, eps=1e-3), parameters, num)
    torch.testing.assert_close(ours(config, num), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sgd_is_that_of_torch(momentum: float) -> None:
    config = ServerOptimizerConfig(name="sgd", learning_rate=0.3, momentum=momentum)
    parameters = start().requires_grad_()
    expected = of_torch(torch.optim.SGD([parameters], lr=0.3, momentum=momentum), parameters, 9)
    torch.testing.assert_close(ours(config, 9), expected, rtol=1e-12, atol=1e-12)


def test_rate_one_without_momentum_is_plain_averaging() -> None:
    plain = ServerOptimizerConfig(name="sgd", learning_rate=1.0, momentum=0.0)
    assert torch.equal(ours(plain, 3), start() + moves(3)[0] + moves(3)[1] + moves(3)[2])


@pytest.mark.parametrize("name", ["sgd", "adam", "yogi"])
def test_parameters_keep_their_type_and_arguments_stay_as_they_are(name: str) -> None:
    config = ServerOptimizerConfig(name=name)
    parameters = {"items": start(torch.float32)}
    memory = begin(parameters, config)
    found, after = step(parameters, {"items": moves(1)[0]}, memory, config)
    moved = found["items"]
    assert moved.dtype == torch.float32 and after.keys() == memory.keys()
    assert {key: (value.shape, value.dtype) for key, value in after.items()} == {
        key: (value.shape, value.dtype) for key, value in memory.items()
    }
    assert torch.equal(parameters["items"], start(torch.float32)) and not any(
        bool(value.any()) for value in memory.values()
    )


@pytest.mark.parametrize("name", ["sgd", "adam", "yogi"])
def test_no_move_is_no_step_from_rest(name: str) -> None:
    config = ServerOptimizerConfig(name=name)
    parameters, still = {"items": start()}, {"items": torch.zeros(SHAPE, dtype=torch.float64)}
    moved, _ = step(parameters, still, begin(parameters, config), config)
    assert torch.equal(moved["items"], start())


def test_several_parameters_move_as_each_would_alone() -> None:
    config = ServerOptimizerConfig(name="adam")
    both = {"items": start(), "bias": start() * 3}
    moved, _ = step(both, {"items": moves(2)[0], "bias": moves(2)[1]}, begin(both, config), config)
    for name, move in zip(both, moves(2), strict=True):
        alone, _ = step({name: both[name]}, {name: move}, begin({name: both[name]}, config), config)
        assert torch.equal(moved[name], alone[name])


def test_yogi_follows_the_paper() -> None:
    """Algorithm 2: v moves towards the square of the move by a share of that square, whatever their distance."""
    config = ServerOptimizerConfig(name="yogi", learning_rate=0.1, momentum=0.9, second_momentum=0.9, stability=1e-3)
    mean, square, expected = torch.zeros(SHAPE), torch.zeros(SHAPE), start()
    for number, move in enumerate(moves(7), start=1):
        mean = 0.9 * mean + 0.1 * move
        square = square - 0.1 * move.square() * torch.sign(square - move.square())
        expected += 0.1 * mean / (1 - 0.9**number) / ((square / (1 - 0.9**number)).sqrt() + 1e-3)
    torch.testing.assert_close(ours(config, 7), expected, rtol=1e-10, atol=1e-12)


def test_rate_rises_over_the_warm_up_and_falls_to_nothing() -> None:
    config = ServerOptimizerConfig(learning_rate=2.0, warmup_rounds=10, decay_rounds=100)
    rates = [config.rate(number) for number in range(1, 121)]
    assert rates[0] == pytest.approx(0.2) and max(rates) < 2.0
    assert all(a < b for a, b in pairwise(rates[:10])), "it rises"
    assert all(a > b for a, b in pairwise(rates[10:100])), "it falls"
    assert rates[100:] == [0.0] * 20


@pytest.mark.parametrize(
    "setting",
    [{"momentum": 1.0}, {"learning_rate": 0.0}, {"stability": 0.0}, {"rate": 1.0}, {"momentum": -0.1}],
    ids=str,
)
def test_impossible_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ServerOptimizerConfig.model_validate(setting)
