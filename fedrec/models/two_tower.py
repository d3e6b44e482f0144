"""Two towers trained by federated gradients: history and context on one side, items on the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.func import functional_call

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.errors import ConfigError
from fedrec.models import server_optimizer
from fedrec.models.blocks import Contributions
from fedrec.models.coalescing import highest_row
from fedrec.models.losses import LossConfig, sampled_loss, softmax_over_all, squared_loss
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.models.server_optimizer import Decay, ServerOptimizerConfig
from fedrec.models.summed import Summed
from fedrec.models.towers.dropout import Dropout, dropout_draws
from fedrec.models.towers.fusion import FusionName
from fedrec.models.towers.history import HistoryConfig
from fedrec.models.towers.negatives import Negatives, draw_negatives
from fedrec.models.towers.towers import Towers, make_towers
from fedrec.models.towers.windows import Windows, own_copy, ranking_windows, training_windows
from fedrec.randomness import Key

_SCORED = 2**25
"""Numbers that the scores of a batch with its negatives may take, or the hidden layers behind them."""


class TowerOptimizerConfig(ServerOptimizerConfig):
    """Settings of the server optimiser, with the defaults that towers need."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    second_momentum: Decay = 0.98
    stability: Annotated[float, Field(gt=0)] = 1e-8
    warmup_rounds: Annotated[int, Field(ge=0)] = 100


class TwoTowerConfig(BaseModel):
    """Settings of `two_tower`.

    Args:
        dim: d of all vectors.
        history: the history tower.
        context_fields: context fields of the data that the context tower reads, of the position to predict and of the
            history.
        fusion: how a user's vector and an item's become a score.
        loss: of each position.
        local_steps: gradient steps a user takes in a round, each on draws of its own.
        local_learning_rate: of several local steps; moves are divided by it, so that one step is minus the gradient.
        server_optimizer: of all parameters.
        init_std: standard deviation of tables at the start.
        familiarity: heads that score an item by how often the user met it within the window, in situations like the
            one asked for, see `Familiarity`; 0 for none. For items that are met again (`evaluation.repeat`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dim: Annotated[int, Field(ge=1, le=1024)] = 64
    history: HistoryConfig = HistoryConfig()
    context_fields: tuple[str, ...] = ()
    fusion: FusionName = "dot"
    loss: LossConfig = LossConfig()
    local_steps: Annotated[int, Field(ge=1, le=100)] = 1
    local_learning_rate: Annotated[float, Field(gt=0)] = 0.1
    server_optimizer: TowerOptimizerConfig = TowerOptimizerConfig()
    init_std: Annotated[float, Field(gt=0)] = 0.02
    familiarity: Annotated[int, Field(ge=0, le=16)] = 0

    @model_validator(mode="after")
    def _parts_fit(self) -> TwoTowerConfig:
        if self.history.name == "attention" and self.dim % self.history.num_heads:
            raise ValueError(
                f"model.dim={self.dim} is no multiple of model.history.num_heads={self.history.num_heads}; change one"
            )
        if self.fusion != "dot" and self.loss.name == "softmax":
            raise ValueError(
                f"model.fusion={self.fusion!r} with the softmax over all items would score every item at every "
                "position; use a sampled loss, for example model.loss.name='sampled_softmax'"
            )
        if self.local_steps > 1 and self.loss.name == "softmax":
            raise ValueError(
                f"model.local_steps={self.local_steps} with the softmax over all items would keep a copy of every item "
                "for every user; use a sampled loss, for example model.loss.name='sampled_softmax'"
            )
        if self.familiarity and self.loss.name != "softmax":
            raise ValueError(
                f"model.familiarity={self.familiarity} with model.loss.name={self.loss.name!r}: negatives are items "
                "that a user never met, so that it would learn nothing of those met; use 'softmax', or familiarity=0"
            )
        twice = {name for name in self.context_fields if self.context_fields.count(name) > 1}
        if twice:
            raise ValueError(f"model.context_fields names {min(twice)!r} twice; name it once")
        return self

    @property
    def numbers_a_position(self) -> int:
        """How many numbers scoring a position against its negatives takes: one each, or one hidden layer each."""
        scored = (1 + self.loss.num_drawn) * (1 if self.fusion == "dot" else self.dim)
        kinds = 4 * self.familiarity + (len(self.context_fields) if self.familiarity else 0)
        return scored + kinds * (self.history.window + 1)


class TwoTower:
    """Next-item prediction with shared towers.

        score(u, i, c) = fusion(g(h_u, c), f(i)) + b_i

    With the loss `squared` a score is a rating, and has the level of the user's own ratings added, see `RatingTower`.

    The user is what the device knows: g reads the last `window` interactions and the context that the list is wanted
    in. f(i) is the item's row of a shared table, which the history tower reads, too. In a round every drawn user adds
    minus the gradient of

        sum over the positions of a window of its history of loss(position) / (window + 1)

    to the sum, and the server moves all parameters along the mean by its optimiser: a round is a step on a mini-batch
    of users, as in central training.

    Without privacy, gradients of a batch are added up as they are made and nobody's stands apart.

    Source:
        Kang & McAuley, Self-Attentive Sequential Recommendation, 2018; Klenitskiy & Vasilev, Turning Dross Into Gold
        Loss, 2023 (cross-entropy over all items); McMahan et al., Communication-Efficient Learning, 2017 (FedSGD).
    """

    bounded = False
    batches_side_by_side = False

    def __init__(self, config: TwoTowerConfig) -> None:
        """Keep the settings."""
        self.config = config
        self.batch_cells = max(1, min(2**18, _SCORED // config.numbers_a_position))

    @property
    def predicts_ratings(self) -> bool:
        """Return whether scores are ratings."""
        return self.config.loss.name == "squared"

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Draw all parameters; shared: items (M, d), biases (M, 1) and what the towers have, float32.

        Raises:
            ConfigError: for a context field that the data does not have.
        """
        known = catalogue.context_fields
        unknown = [name for name in self.config.context_fields if name not in known]
        if unknown:
            allowed = ", ".join(known) or "none: the data has no context"
            raise ConfigError(
                f"model.context_fields has {unknown[0]!r}, which the data does not; allowed are {allowed}"
            )
        fields = {name: known[name] for name in self.config.context_fields}
        towers = self._make(catalogue.num_items, fields)
        shared = towers.start(key, self.config.init_std)
        if self.predicts_ratings:
            shared["ratings.offset"] = torch.full_like(shared["ratings.offset"], self.config.loss.offset)
        return ServerState(shared, server_optimizer.begin(shared, self.config.server_optimizer))

    def _make(self, num_items: int, fields: Mapping[str, int]) -> Towers:
        config = self.config
        parts = (config.history, tuple(fields.items()), config.fusion, self.predicts_ratings, config.familiarity)
        return make_towers(num_items, config.dim, *parts, get_ident())

    def _towers(self, shared: Mapping[str, Tensor]) -> Towers:
        """Make the module that the shared parameters are of; the sizes of context fields are those of their tables."""
        names = self.config.context_fields
        tables = (shared.get(f"context.tables.{place}") for place in range(len(names)))
        sizes = (0 if table is None else len(table) - 1 for table in tables)
        return self._make(len(shared["items"]), dict(zip(names, sizes, strict=True)))

    def _call(self, shared: Mapping[str, Tensor], part: str, *arguments: object) -> Tensor:
        """Call a part of the towers with the shared parameters, no two of which are one."""
        result: Tensor = functional_call(self._towers(shared), dict(shared), (part, *arguments), tie_weights=False)
        return result

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return float32 zeros of the names and shapes of the shared parameters."""
        return {name: tensor.new_zeros(tensor.shape, dtype=torch.float32) for name, tensor in shared.items()}

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the shared parameters: there is nothing to prepare."""
        return shared

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Encode what the device knows; nothing is needed for training.

        Returns:
            {"vectors": (B, d)} of the position after the last interaction; where scores are ratings also
            {"levels": (B, 1)}, what they all have in common there.
        """
        if not ranking:
            return {}
        windows = ranking_windows(users, self.config.history.window)
        with torch.no_grad():
            found = self._queries(shared, windows, Dropout(None, 0.0))
        last = (windows.lengths - 1)[:, None, None].expand(-1, 1, found.shape[2])
        state = {"vectors": found.gather(1, last)[:, 0]}
        if self.predicts_ratings:
            with torch.no_grad():
                levels = self._call(shared, "levels", windows)
            state["levels"] = levels.gather(1, last[:, :, 0])
        return state

    def _queries(self, shared: Mapping[str, Tensor], windows: Windows, dropout: Dropout) -> Tensor:
        highest_row(windows.items, len(shared["items"]))
        return self._call(shared, "queries", shared["items"][windows.items], windows, dropout)

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return minus the gradient of the users' losses, added up over those whose gradient is finite."""
        examples = self._examples(users, len(shared["items"]), key)
        counted = torch.ones(users.num_users, dtype=torch.bool, device=users.items.device)
        gradient = self._gradient(shared, examples)
        if not all_finite(gradient):
            alone = torch.eye(len(counted), dtype=torch.bool, device=counted.device)
            found = [all_finite(self._gradient(shared, examples.of(one))) for one in alone]
            counted = torch.tensor(found, device=counted.device)
            gradient = self._gradient(shared, examples.of(counted))
        return {name: Summed(-part, counted) for name, part in gradient.items()}

    def loss(self, shared: Mapping[str, Tensor], users: UserBatch, key: Key) -> Tensor:
        """Return the sum of the users' losses, for training in one place; it may be differentiated once.

        Args:
            shared: parameters, of which those that require it get gradients.
            users: B users with keys.
            key: what windows, dropout and negatives follow from.
        """
        return self._loss(shared, self._examples(users, len(shared["items"]), key))

    def _examples(self, users: UserBatch, num_items: int, key: Key) -> Examples:
        """Draw what each user trains on in a round."""
        config, device = self.config, users.items.device
        highest_row(users.items, num_items)
        windows = training_windows(users, config.history.window, config.history.crop_probability, key)
        width, num_dropped = windows.items.shape[1], self._make(1, {}).history.num_dropped
        draws = None
        if config.history.dropout and num_dropped:
            draws = dropout_draws(users.keys, width * num_dropped, key).to(device).reshape(-1, width, num_dropped)
        return Examples(windows, draws, draw_negatives(users, num_items, config.loss.num_drawn, key))

    def _gradient(self, shared: Mapping[str, Tensor], examples: Examples) -> dict[str, Tensor]:
        """Return the gradient of the sum of the users' losses."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in shared.items()}
        loss = self._loss(leaves, examples)
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        }

    def _loss(self, shared: Mapping[str, Tensor], examples: Examples) -> Tensor:
        """Return the sum over users of the mean loss of their positions, a full window's number of them."""
        config, windows, mask = self.config, examples.windows, examples.windows.mask
        dropout, share = Dropout(examples.draws, config.history.dropout), 1.0 / (config.history.window + 1)
        items, biases = shared["items"], shared["biases"][:, 0]
        if config.loss.name == "softmax":
            queries, targets = self._queries(shared, windows, dropout), windows.targets[mask]
            weights = torch.full(targets.shape, share, dtype=queries.dtype, device=queries.device)
            added = self._familiar(shared, windows, mask) if config.familiarity else None
            return softmax_over_all(queries[mask], items, biases, targets, weights, added)
        highest_row(windows.items, len(items))
        drawn = examples.negatives
        vectors = (items[windows.items], items[windows.targets], items[drawn.items])
        scores = self._call(shared, "sampled", vectors, windows, dropout)
        positive, negative = scores[..., 0] + biases[windows.targets], scores[..., 1:] + biases[drawn.items][:, None]
        if config.loss.name == "squared":
            losses = squared_loss(positive + self._call(shared, "levels", windows), windows.ratings)
        else:
            losses = sampled_loss(config.loss, positive, negative, drawn.used[:, None], drawn.num_unmet)
        return share * torch.where(mask, losses, 0.0).sum()

    def _familiar(self, shared: Mapping[str, Tensor], windows: Windows, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return (n, S) items met and what is added to their scores, at the n positions of (B, T) wanted ones.

        T are the last positions of the windows, or all.
        """
        places = torch.arange(windows.items.shape[1], device=wanted.device)
        ends = windows.lengths[:, None] - 1 if wanted.shape[1] == 1 else places[None]
        seen = (places > 0) & (places <= ends[:, :, None])
        added = self._call(shared, "familiar", windows, seen.expand(len(wanted), -1, -1))
        return windows.items[:, None].expand(-1, wanted.shape[1], -1)[wanted], added[wanted]

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Move all parameters by the mean of what users sent."""
        config = self.config.server_optimizer
        return ServerState(*server_optimizer.step(server.shared, release.blocks, server.memory, config))

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) scores in the context of the users' queries."""
        with torch.no_grad():
            found = self._call(shared, "all_scores", state["vectors"])
        if self.config.familiarity:
            windows = ranking_windows(users, self.config.history.window)
            windows = replace(windows, context={name: column[:, :1] for name, column in windows.context.items()})
            with torch.no_grad():
                found.scatter_add_(1, *self._familiar(shared, windows, torch.ones_like(windows.mask[:, :1])))
        return found + state["levels"] if "levels" in state else found


@dataclass(frozen=True, eq=False)
class Examples:
    """What B users train on in a round.

    Args:
        windows: of their histories.
        draws: (B, T, n) uint8 of dropout, or None.
        negatives: of sampled losses; none of them for other losses.
    """

    windows: Windows
    draws: Tensor | None
    negatives: Negatives

    def of(self, users: Tensor) -> Examples:
        """Return the examples of some users; (B,) bool."""
        return Examples(
            self.windows.of(users),
            None if self.draws is None else self.draws[users],
            self.negatives.of(users),
        )

    def alone(self, user: int) -> Examples:
        """Return the examples of one user, without padding, in memory of their own."""
        windows = self.windows.alone(user)
        draws = None if self.draws is None else own_copy(self.draws[user : user + 1, : windows.items.shape[1]])
        return Examples(windows, draws, self.negatives.alone(user))


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether every number of every tensor is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
