"""Server optimisers: how the mean of the users' moves becomes the next shared parameters; post-processing, so free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Decay = Annotated[float, Field(ge=0, lt=1)]
_SECOND_MOMENTS = ("adam", "yogi")


class ServerOptimizerConfig(BaseModel):
    """Settings of the server optimiser.

    `sgd` with rate 1 and momentum 0 is federated averaging; `adam` is FedAdam with the bias correction of Adam; `yogi`
    is FedYogi, corrected alike. The learning rate rises linearly over `warmup_rounds`, and, where `decay_rounds` is not
    0, falls to 0 at that round along half a cosine.

    Source:
        Reddi et al., Adaptive Federated Optimization, 2021, algorithm 2;
        Loshchilov & Hutter, SGDR, 2017, eq. 5 (without restarts).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["sgd", "adam", "yogi"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 0.2
    momentum: Decay = 0.9
    second_momentum: Decay = 0.99
    stability: Annotated[float, Field(gt=0)] = 1e-5
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    decay_rounds: Annotated[int, Field(ge=0)] = 0

    def rate(self, round_number: int) -> float:
        """Return the learning rate of a round.

        Example:
            >>> config = ServerOptimizerConfig(learning_rate=1.0, warmup_rounds=2, decay_rounds=100)
            >>> [round(config.rate(number), 3) for number in (1, 2, 51, 101)]
            [0.5, 1.0, 0.5, 0.0]
        """
        rate = self.learning_rate * min(1.0, round_number / max(self.warmup_rounds, 1))
        if not self.decay_rounds:
            return rate
        return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (round_number - 1) / self.decay_rounds)))


def begin(parameters: Mapping[str, Tensor], config: ServerOptimizerConfig) -> dict[str, Tensor]:
    """Return the memory before the first step.

    Returns:
        step (1,) int64, and mean/NAME and, where the optimiser has second moments, square/NAME, float64 of the
        parameters' shapes.
    """
    memory = {"step": torch.zeros(1, dtype=torch.int64)}
    for name, tensor in parameters.items():
        memory[f"mean/{name}"] = torch.zeros_like(tensor, dtype=torch.float64)
        if config.name in _SECOND_MOMENTS:
            memory[f"square/{name}"] = torch.zeros_like(tensor, dtype=torch.float64)
    return memory


def step(
    parameters: Mapping[str, Tensor],
    moves: Mapping[str, Tensor],
    memory: Mapping[str, Tensor],
    config: ServerOptimizerConfig,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Move the parameters along the mean move of the users.

    Args:
        parameters: name -> tensor of any shape.
        moves: name -> float64 of the same names and shapes: where the users want to go (minus a gradient).
        memory: from `begin` or from the step before.
        config: the optimiser.

    Returns:
        New parameters, of the same dtypes, and the new memory.

    Example:
        >>> plain = ServerOptimizerConfig(name="sgd", learning_rate=1.0, momentum=0.0)
        >>> zeros = {"items": torch.zeros(2)}
        >>> step(zeros, {"items": torch.tensor([1.0, -2.0])}, begin(zeros, plain), plain)[0]["items"]
        tensor([ 1., -2.])
    """
    count = memory["step"] + 1
    rate, steps = config.rate(int(count)), int(count)
    moved, kept = {}, {"step": count}
    for name, tensor in parameters.items():
        move = moves[name].to(torch.float64)
        if config.name == "sgd":
            mean = config.momentum * memory[f"mean/{name}"] + move
            change = mean
        else:
            mean = config.momentum * memory[f"mean/{name}"] + (1 - config.momentum) * move
            square = kept[f"square/{name}"] = _second_moment(memory[f"square/{name}"], move, config)
            unbiased = mean / (1 - config.momentum**steps)
            change = unbiased / ((square / (1 - config.second_momentum**steps)).sqrt() + config.stability)
        kept[f"mean/{name}"] = mean
        moved[name] = (tensor + rate * change).to(tensor.dtype)
    return moved, kept


def _second_moment(square: Tensor, move: Tensor, config: ServerOptimizerConfig) -> Tensor:
    """Return the next second moment: a mean that decays (adam), or steps of the size of the new square (yogi)."""
    new, share = move.square(), 1 - config.second_momentum
    if config.name == "yogi":
        return square - share * new * torch.sign(square - new)
    return config.second_momentum * square + share * new
