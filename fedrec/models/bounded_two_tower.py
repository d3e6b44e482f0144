"""Two towers whose users stand apart: per-user gradients for clipping, and several local steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import model_validator
from torch import Tensor
from torch.func import functional_call, grad, vmap

from fedrec.data.batches import UserBatch
from fedrec.models.adaptive_clipping import AdaptiveClippingConfig
from fedrec.models.blocks import Contributions, Dense, RowSparse
from fedrec.models.losses import LossConfig, LossName, sampled_loss, squared_loss
from fedrec.models.protocol import UserState
from fedrec.models.towers.dropout import Dropout
from fedrec.models.towers.windows import Windows
from fedrec.models.two_tower import Examples, TwoTower, TwoTowerConfig, all_finite
from fedrec.randomness import Key

_USERS_AT_ONCE = 64
_SCORED = 2**24
"""Numbers that the scores of users side by side may take, or the hidden layers behind them."""

_TABLES = ("items", "biases")

Tensors = dict[str, Tensor]


class SampledLossConfig(LossConfig):
    """Settings of a loss that touches few items, which `softmax` does not."""

    name: LossName = "sampled_softmax"


class BoundedTwoTowerConfig(TwoTowerConfig):
    """Settings of `two_tower` where every user's move is known: under a privacy plan, or with several local steps.

    Args:
        adaptive_clipping: lets the clipping norm follow the users' norms; under a plan only.
    """

    loss: SampledLossConfig = SampledLossConfig()
    adaptive_clipping: AdaptiveClippingConfig | None = None

    @model_validator(mode="after")
    def _loss_touches_few_items(self) -> BoundedTwoTowerConfig:
        if self.loss.name == "softmax":
            raise ValueError(
                "model.loss.name='softmax' moves every item for every user, which no bounded contribution can hold; "
                "use 'sampled_softmax', 'gbce', 'bce' or 'bpr'"
            )
        return self


class BoundedTwoTower(TwoTower):
    """`TwoTower` with each user's own move of all parameters.

    A user takes `local_steps` steps from the shared parameters, on a copy of the towers and of the item rows that it
    touches, and adds how far each parameter moved, divided by the local learning rate.

    Privacy:
        Unit user, add-or-remove. All moves of a user are clipped jointly by the engine; what the user draws follows
        from its own key and history. Users are computed side by side in float64: how a user's numbers round depends on
        who else is in the batch, and has to stay far below the noise.

    Source:
        McMahan et al., Communication-Efficient Learning of Deep Networks, 2017, algorithm 1; per-user gradients by
        `torch.func.vmap`.
    """

    bounded = True
    precision = torch.float64
    config: BoundedTwoTowerConfig

    def __init__(self, config: BoundedTwoTowerConfig) -> None:
        """Keep the settings."""
        super().__init__(config)
        self.batch_cells = 2**14

    def totals(self, shared: Mapping[str, Tensor]) -> Tensors:
        """Return float64 zeros of the names and shapes of the shared parameters."""
        return {name: tensor.new_zeros(tensor.shape, dtype=torch.float64) for name, tensor in shared.items()}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Train each user's copy and return how far it moved."""
        config, num_items = self.config, len(shared["items"])
        keys = [key.fold("step", number) if number else key for number in range(config.local_steps)]
        steps = [self._examples(users, num_items, one) for one in keys]
        touched = _touched_rows([_ids(examples) for examples in steps])
        start = {name: tensor.to(self.precision) for name, tensor in shared.items()}
        rows = {name: start.pop(name)[touched.rows] for name in _TABLES}
        moves = {name: tensor.new_zeros(users.num_users, *tensor.shape) for name, tensor in start.items()}
        moves |= {name: torch.zeros_like(values) for name, values in rows.items()}
        if not all_finite(start):  # nobody counts then, or how far a batch is padded would decide who does
            moves = {name: torch.full_like(move, torch.nan) for name, move in moves.items()}
        at_once = _SCORED // (config.numbers_a_position * max(examples.windows.items.shape[1] for examples in steps))
        slopes = vmap(grad(self._loss_of_one(shared)), (0, None, 0, 0), chunk_size=max(1, min(_USERS_AT_ONCE, at_once)))
        for examples, slots in zip(steps, touched.slots, strict=True):
            if not users.num_users:  # nothing that vmap would take
                break
            slope = slopes(moves, start, rows, _as_tensors(examples, slots))
            moves = {name: move - slope[name] / config.local_learning_rate for name, move in moves.items()}
        return {
            name: RowSparse(touched.rows, moves[name], touched.mask) if name in _TABLES else Dense(moves[name])
            for name in shared
        }

    def _loss_of_one(self, shared: Mapping[str, Tensor]) -> Callable[..., Tensor]:
        """Return a user's loss as a function of its moves (in learning rates), shared parameters, rows and examples."""
        config, towers = self.config, self._towers(shared)
        rate, share = config.local_learning_rate, 1.0 / (config.history.window + 1)

        def loss(moves: Tensors, start: Tensors, rows: Tensors, examples: Tensors) -> Tensor:
            parameters = {name: value + rate * moves[name] for name, value in {**start, **rows}.items()}
            items, biases = parameters["items"], parameters["biases"][:, 0]
            windows, negatives = _windows_of(examples), examples["negatives"]
            dropout = Dropout(examples.get("draws"), config.history.dropout)
            queries = functional_call(towers, parameters, ("queries", items[windows.items], windows, dropout))
            positive = functional_call(towers, parameters, ("scores", queries, items[windows.targets]))
            positive = positive + biases[windows.targets]
            if config.loss.name == "squared":
                levels = functional_call(towers, parameters, ("levels", windows))
                losses = squared_loss(positive + levels, windows.ratings)
            else:
                negative = functional_call(towers, parameters, ("grid", queries, items[negatives])) + biases[negatives]
                losses = sampled_loss(config.loss, positive, negative, examples["used"][None], examples["num_unmet"])
            return share * torch.where(windows.mask, losses, 0.0).sum()

        return loss


@dataclass(frozen=True, eq=False)
class _Touched:
    """The item rows that each of B users touches in a round.

    Args:
        rows: (B, R) int64 distinct rows; 0 where padded.
        mask: (B, R) bool.
        slots: of every step, (B, n) int64: where each id of the step stands in `rows`.
    """

    rows: Tensor
    mask: Tensor
    slots: Sequence[Tensor]


def _touched_rows(ids: Sequence[Tensor]) -> _Touched:
    """Find the distinct ids of each user; one (B, n) int64 a step."""
    together = torch.cat(list(ids), dim=1)
    ordered, order = torch.sort(together, dim=1, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    number = torch.cumsum(first, dim=1) - 1
    num_rows = int(number.max()) + 1 if number.numel() else 1
    rows = together.new_zeros(len(together), num_rows).scatter_(1, number, ordered)
    mask = torch.arange(num_rows, device=rows.device) <= number[:, -1:]
    slots = torch.zeros_like(number).scatter_(1, order, number)
    return _Touched(rows, mask, torch.split(slots, [part.shape[1] for part in ids], dim=1))


def _ids(examples: Examples) -> Tensor:
    """Return (B, T + T + K) ids: inputs, targets and negatives; where padded, rows that get a move of zero."""
    return torch.cat([examples.windows.items, examples.windows.targets, examples.negatives.items], dim=1)


def _as_tensors(examples: Examples, slots: Tensor) -> Tensors:
    """Flatten examples, their ids replaced by slots (B, T + T + K), to what `vmap` takes: name -> (B, ...)."""
    windows, negatives = examples.windows, examples.negatives
    width = windows.items.shape[1]
    found = {
        "items": slots[:, :width],
        "targets": slots[:, width : 2 * width],
        "negatives": slots[:, 2 * width :],
        "used": negatives.used,
        "num_unmet": negatives.num_unmet,
        "lengths": windows.lengths,
        "mask": windows.mask,
    }
    optional = {"gaps": windows.gaps, "draws": examples.draws}
    optional |= {"ratings": windows.ratings, "past_ratings": windows.past_ratings}
    found |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    found |= {f"context/{name}": column for name, column in windows.context.items()}
    return found | {f"past/{name}": column for name, column in windows.past.items()}


def _windows_of(examples: Tensors) -> Windows:
    """Put the windows of a single user together again."""

    def below(prefix: str) -> Tensors:
        return {name.removeprefix(prefix): column for name, column in examples.items() if name.startswith(prefix)}

    parts = (examples["items"], examples["lengths"], examples["targets"], examples["mask"], examples.get("gaps"))
    ratings = (examples.get("ratings"), examples.get("past_ratings"))
    return Windows(*parts, below("context/"), below("past/"), *ratings)
