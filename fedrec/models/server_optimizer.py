"""Server optimisers: how the mean of the users' moves becomes the next shared parameters; post-processing, so free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Decay = Annotated[float, Field(ge=0, lt=1)]


class ServerOptimizerConfig(BaseModel):
    """Settings of the server optimiser.

    `sgd` with rate 1 and momentum 0 is federated averaging; `adam` is FedAdam with the bias correction of Adam.

    Source:
        Reddi et al., Adaptive Federated Optimization, 2021, algorithm 2.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["sgd", "adam"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 0.2
    momentum: Decay = 0.9
    second_momentum: Decay = 0.99
    stability: Annotated[float, Field(gt=0)] = 1e-5


def begin(parameters: Tensor, config: ServerOptimizerConfig) -> dict[str, Tensor]:
    """Return the memory before the first step: name -> tensor of the parameters' shape, or (1,) for the step count."""
    memory = {"step": torch.zeros(1, dtype=torch.int64), "mean": torch.zeros_like(parameters, dtype=torch.float64)}
    if config.name == "adam":
        memory["square"] = torch.zeros_like(parameters, dtype=torch.float64)
    return memory


def step(
    parameters: Tensor, move: Tensor, memory: Mapping[str, Tensor], config: ServerOptimizerConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Move the parameters along the mean move of the users.

    Args:
        parameters: of any shape.
        move: float64 of that shape: where the users want to go (minus a gradient).
        memory: from `begin` or from the step before.
        config: the optimiser.

    Returns:
        New parameters, of the same dtype, and the new memory.

    Example:
        >>> plain = ServerOptimizerConfig(name="sgd", learning_rate=1.0, momentum=0.0)
        >>> zeros = torch.zeros(2)
        >>> step(zeros, torch.tensor([1.0, -2.0]), begin(zeros, plain), plain)[0]
        tensor([ 1., -2.])
    """
    count = memory["step"] + 1
    if config.name == "sgd":
        mean = config.momentum * memory["mean"] + move
        change = config.learning_rate * mean
        return (parameters + change).to(parameters.dtype), {"step": count, "mean": mean}
    mean = config.momentum * memory["mean"] + (1 - config.momentum) * move
    square = config.second_momentum * memory["square"] + (1 - config.second_momentum) * move.square()
    steps = int(count)
    unbiased_mean = mean / (1 - config.momentum**steps)
    unbiased_square = square / (1 - config.second_momentum**steps)
    change = config.learning_rate * unbiased_mean / (unbiased_square.sqrt() + config.stability)
    return (parameters + change).to(parameters.dtype), {"step": count, "mean": mean, "square": square}
