"""Two towers whose users stand apart: per-user gradients for clipping, and several local steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from pydantic import model_validator
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.models.adaptive_clipping import AdaptiveClippingConfig
from fedrec.models.blocks import Contributions, Dense, RowSparse
from fedrec.models.losses import LossConfig, LossName
from fedrec.models.one_by_one import one_by_one
from fedrec.models.protocol import UserState
from fedrec.models.two_tower import Examples, TwoTower, TwoTowerConfig
from fedrec.randomness import Key

_CELLS = 2**12
_NUMBERS = 2**25
"""Numbers of all users' moves that are held until they are summed: 256 MiB."""

_TABLES = ("items", "biases")


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
        from its own key and history, and is whole numbers. All that rounds is computed for one user after the other, in
        float64, see `one_by_one`.

    Source:
        McMahan et al., Communication-Efficient Learning of Deep Networks, 2017, algorithm 1.
    """

    bounded = True
    batches_side_by_side = True
    precision = torch.float64
    config: BoundedTwoTowerConfig

    def __init__(self, config: BoundedTwoTowerConfig) -> None:
        """Keep the settings."""
        super().__init__(config)
        self.batch_cells = _CELLS

    def most_users(self, shared: Mapping[str, Tensor]) -> int:
        """Return how many users' moves, of all towers and touched rows, may be held at once: those of 256 MiB."""
        config = self.config
        rows = config.local_steps * (2 * (config.history.window + 1) + config.loss.num_drawn)
        touched = min(rows, len(shared["items"])) * (config.dim + 1)
        towers = sum(tensor.numel() for name, tensor in shared.items() if name not in _TABLES)
        return max(1, _NUMBERS // (towers + touched))

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return float64 zeros of the names and shapes of the shared parameters."""
        return {name: tensor.new_zeros(tensor.shape, dtype=torch.float64) for name, tensor in shared.items()}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Train each user's copy and return how far it moved."""
        if not users.num_users:
            return {name: Dense(total[None][:0]) for name, total in self.totals(shared).items()}
        config, num_items = self.config, len(shared["items"])
        keys = [key.fold("step", number) if number else key for number in range(config.local_steps)]
        steps = [self._examples(users, num_items, one) for one in keys]
        start = {name: tensor if name in _TABLES else tensor.to(self.precision) for name, tensor in shared.items()}
        return one_by_one(users.num_users, lambda user: self._moves(start, [step.alone(user) for step in steps]))

    def _moves(self, shared: Mapping[str, Tensor], steps: Sequence[Examples]) -> Contributions:
        """Return how far the copy of one user moved; `steps` are that user's examples of each step."""
        ids = [torch.cat([one.windows.items, one.windows.targets, one.negatives.items], dim=1) for one in steps]
        touched, places = torch.unique(torch.cat(ids, dim=1), return_inverse=True)
        start = {**shared, **{name: shared[name][touched].to(self.precision) for name in _TABLES}}
        copy, moves = start, dict[str, Tensor]()
        for examples, slots in zip(steps, torch.split(places, [one.shape[1] for one in ids], dim=1), strict=True):
            if moves:
                copy = {name: start[name] + self.config.local_learning_rate * move for name, move in moves.items()}
            slopes = self._gradient(copy, _renumbered(examples, slots))
            moves = {name: moves[name] - slope if moves else -slope for name, slope in slopes.items()}
        return {
            name: RowSparse(touched[None], move[None]) if name in _TABLES else Dense(move[None])
            for name, move in moves.items()
        }


def _renumbered(examples: Examples, slots: Tensor) -> Examples:
    """Return examples whose ids are rows of a table of touched items: `slots` (1, T + T + K)."""
    windows, negatives = examples.windows, examples.negatives
    width = windows.items.shape[1]
    items, targets, others = torch.split(slots, [width, width, negatives.items.shape[1]], dim=1)
    return replace(
        examples,
        windows=replace(windows, items=items, targets=targets),
        negatives=replace(negatives, items=others),
    )
