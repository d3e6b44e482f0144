"""Regression on features: what categories an item has, times what the user has met and the context; few parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.errors import ConfigError
from fedrec.models import server_optimizer
from fedrec.models.adaptive_clipping import AdaptiveClippingConfig
from fedrec.models.blocks import Block, Contributions, Dense, RowSparse
from fedrec.models.coalescing import highest_row
from fedrec.models.one_by_one import one_by_one
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.models.server_optimizer import ServerOptimizerConfig
from fedrec.models.towers.negatives import Negatives, draw_negatives
from fedrec.models.towers.windows import Windows, ranking_windows, training_windows
from fedrec.randomness import Key

_FEATURES = "features"


class RegressionOptimizerConfig(ServerOptimizerConfig):
    """Settings of the server optimiser, with the default that the regression needs."""

    learning_rate: Annotated[float, Field(gt=0)] = 0.05


class RegressionConfig(BaseModel):
    """Settings of `logistic`.

    Args:
        loss: `logistic`, or `squared` against targets 1 and 0 (ridge regression, with `regularization`).
        context_fields: context fields of the data that the regression reads.
        window: interactions that a prediction looks at.
        recency_decay: an interaction of age k (0 = the newest) weighs exp(-k / recency_decay) in the recent profile.
        crop_probability: with which a history longer than the window is cut at a random place for training.
        num_negatives: drawn for each user, shared by the user's positions.
        negative_weight: of all negatives of a position together; its target has weight 1.
        regularization: of the ridge on everything that is learned.
        server_optimizer: of all parameters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    loss: Literal["logistic", "squared"] = "logistic"
    context_fields: tuple[str, ...] = ()
    window: Annotated[int, Field(ge=1, le=4096)] = 50
    recency_decay: Annotated[float, Field(gt=0)] = 3.0
    crop_probability: Annotated[float, Field(ge=0, le=1)] = 0.7
    num_negatives: Annotated[int, Field(ge=1, le=65536)] = 64
    negative_weight: Annotated[float, Field(gt=0)] = 4.0
    regularization: Annotated[float, Field(ge=0)] = 0.0
    server_optimizer: RegressionOptimizerConfig = RegressionOptimizerConfig()


class BoundedRegressionConfig(RegressionConfig):
    """Settings of `logistic` under a privacy plan.

    Args:
        adaptive_clipping: lets the clipping norm follow the users' norms.
    """

    adaptive_clipping: AdaptiveClippingConfig | None = None


class Regression:
    """Generalised linear regression on pairs of an item feature and a feature of user or context.

        score(u, i, c) = <x_i, W' [m_u, r_u, 1] + sum over fields of w(c)> + b_i

    x_i is the unit vector of the item's categories, m_u and r_u are the mean of those of the user's last items and the
    same mean weighted by recency; w(c) is a vector a value of a categorical field, or a line in a numeric one, and one
    where it is unknown. Both profiles are made on the device, at each position from what was met before it. In a round
    every drawn user adds minus the gradient of the mean over the positions of a window of

        l(score of the target, 1) + negative_weight x mean over negatives of l(score, 0)

    and the server moves W, w and b along the mean, less `regularization` times what they are.

    Privacy:
        Unit user, add-or-remove. All blocks of a user are clipped jointly by the engine; negatives depend on nothing
        but the user's own history and draws. Gradients are taken for one user after the other, in float64, see
        `one_by_one`.

    Source:
        McMahan et al., Ad Click Prediction, 2013, section 3 (logistic regression on crossed features); McMahan et al.,
        Communication-Efficient Learning of Deep Networks, 2017 (FedSGD).
    """

    bounded = True
    batches_side_by_side = True
    batch_cells = 2**13

    def __init__(self, config: RegressionConfig) -> None:
        """Keep the settings."""
        self.config = config

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Start at zero; shared, float32: weights (2 C + 1, C), biases (M, 1), and features (M, C), which stay.

        Of the k-th context field also codes.k (1 + values, C), row 0 the unknown value, or values.k (3, C): unknown,
        slope and level of a numeric field.

        Raises:
            ConfigError: where the catalogue has no categories, or the data no such context field.
        """
        if catalogue.categories is None:
            raise ConfigError("model 'logistic' needs item categories and this data set has none; choose another model")
        features = torch.from_numpy(catalogue.categories).to(torch.float32)
        num_items, num = features.shape
        learned = {"weights": torch.zeros(2 * num + 1, num), "biases": torch.zeros(num_items, 1)}
        known = catalogue.context_fields
        for place, name in enumerate(self.config.context_fields):
            if name not in known:
                allowed = ", ".join(known) or "none: the data has no context"
                raise ConfigError(f"model.context_fields has {name!r}, which the data does not; allowed are {allowed}")
            rows = 1 + known[name] if known[name] else 3
            learned[f"{'codes' if known[name] else 'values'}.{place}"] = torch.zeros(rows, num)
        memory = server_optimizer.begin(learned, self.config.server_optimizer)
        units = features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return ServerState({**learned, _FEATURES: units}, memory)

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return float64 zeros of the names and shapes of what is learned."""
        return {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in _learned(shared).items()}

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the shared parameters: there is nothing to prepare."""
        return shared

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Return {"vectors": (B, C)}: what items' features are weighed with; nothing is needed for training."""
        if not ranking:
            return {}
        windows = ranking_windows(users, self.config.window)
        vectors = self._vectors(shared, self._profiles(shared[_FEATURES], windows), windows)
        last = (windows.lengths - 1)[:, None, None].expand(-1, 1, vectors.shape[2])
        return {"vectors": vectors.gather(1, last)[:, 0]}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return minus the gradient of each user's loss."""
        config, num_items = self.config, len(shared["biases"])
        if not users.num_users:
            return {name: Dense(total[None][:0]) for name, total in self.totals(shared).items()}
        highest_row(users.items, num_items)
        windows = training_windows(users, config.window, config.crop_probability, key)
        negatives = draw_negatives(users, num_items, config.num_negatives, key)
        exact = {name: tensor.to(torch.float64) for name, tensor in shared.items()}
        return one_by_one(users.num_users, lambda user: self._part(exact, windows.alone(user), negatives.alone(user)))

    def _part(self, exact: Mapping[str, Tensor], windows: Windows, negatives: Negatives) -> Contributions:
        """Return minus the gradient of one user's loss; parameters float64."""
        config, features, biases, mask = self.config, exact[_FEATURES], exact["biases"][:, 0], windows.mask
        # what does not count is set to 0 before anything is multiplied: 0 times infinity is NaN
        profiles = torch.where(mask[..., None], self._profiles(features, windows), 0.0)
        vectors = torch.where(mask[..., None], self._vectors(exact, profiles, windows), 0.0)
        wanted = torch.where(mask[..., None], features[windows.targets], 0.0)
        others = torch.where(negatives.used[..., None], features[negatives.items], 0.0)
        scores = (vectors * wanted).sum(dim=2) + torch.where(mask, biases[windows.targets], 0.0)
        against = vectors @ others.mT + torch.where(negatives.used, biases[negatives.items], 0.0)[:, None]
        share = 1 / mask.sum(dim=1, keepdim=True).clamp(min=1)
        weight = share * config.negative_weight / negatives.used.sum(dim=1, keepdim=True).clamp(min=1)
        up = torch.where(mask, share * (1 - self._expected(scores)), 0.0)
        counted = mask[..., None] & negatives.used[:, None]
        down = torch.where(counted, -weight[..., None] * self._expected(against), 0.0)
        moves = up[..., None] * wanted + down @ others
        ids = torch.cat([windows.targets, negatives.items], dim=1)
        values = torch.cat([up, down.sum(dim=1)], dim=1)[..., None]
        return {
            "weights": Dense(profiles.mT @ moves),
            "biases": RowSparse(ids, values, torch.cat([mask, negatives.used], dim=1)),
            **self._context_blocks(exact, moves, windows),
        }

    def _expected(self, scores: Tensor) -> Tensor:
        """Return what the model expects a target to be, given its score."""
        return torch.sigmoid(scores) if self.config.loss == "logistic" else scores

    def _profiles(self, features: Tensor, windows: Windows) -> Tensor:
        """Return (B, T, 2 C + 1): mean and recent mean of the features met before each position, and 1."""
        highest_row(windows.items, len(features))
        places = torch.arange(windows.items.shape[1], device=windows.items.device)
        met = torch.where((places > 0)[:, None], features[windows.items], 0.0)
        mean = met.cumsum(dim=1) / places.clamp(min=1)[:, None]
        ages = (places[:, None] - places).to(features.dtype)
        weights = torch.where((ages >= 0) & (places > 0), torch.exp(-ages / self.config.recency_decay), 0.0)
        recent = (weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)) @ met
        return torch.cat([mean, recent, torch.ones_like(mean[..., :1])], dim=2)

    def _vectors(self, shared: Mapping[str, Tensor], profiles: Tensor, windows: Windows) -> Tensor:
        """Return (B, T, C): what the features of items are weighed with at each position."""
        vectors = profiles @ shared["weights"]
        for name, given in self._fields(shared, windows):
            if name.startswith("codes."):
                vectors = vectors + shared[name][given]
            else:
                vectors = vectors + _line(given).to(vectors.dtype) @ shared[name]
        return vectors

    def _fields(self, shared: Mapping[str, Tensor], windows: Windows) -> list[tuple[str, Tensor]]:
        """Return, of each context field, the name of its parameter, and (B, T) its rows or its values."""
        found = []
        for place, field in enumerate(self.config.context_fields):
            values, codes = windows.context.get(field), f"codes.{place}"
            if codes in shared:
                asked = torch.full_like(windows.items, -1) if values is None else values.to(torch.int64)
                known = (asked >= 0) & (asked < len(shared[codes]) - 1)
                found.append((codes, torch.where(known, asked + 1, 0)))
            else:
                unknown = torch.full(windows.items.shape, torch.nan, device=windows.items.device)
                found.append((f"values.{place}", unknown if values is None else values))
        return found

    def _context_blocks(self, shared: Mapping[str, Tensor], moves: Tensor, windows: Windows) -> dict[str, Block]:
        """Return the blocks of the context fields; `moves` (B, T, C) are those of the vectors."""
        return {
            name: RowSparse(given, moves, windows.mask)
            if name.startswith("codes.")
            else Dense(torch.where(windows.mask[..., None], _line(given).to(moves.dtype), 0.0).mT @ moves)
            for name, given in self._fields(shared, windows)
        }

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Move what is learned by the mean of what users sent, less the ridge."""
        learned, ridge = _learned(server.shared), self.config.regularization
        moves = {name: release.blocks[name] - ridge * tensor.to(torch.float64) for name, tensor in learned.items()}
        moved, memory = server_optimizer.step(learned, moves, server.memory, self.config.server_optimizer)
        return ServerState({**server.shared, **moved}, memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) scores in the context of the users' queries."""
        return state["vectors"] @ shared[_FEATURES].T + shared["biases"][:, 0]


def _learned(shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in shared.items() if name != _FEATURES}


def _line(values: Tensor) -> Tensor:
    """Return (..., 3): 1 where unknown, else the value and 1."""
    known = ~torch.isnan(values)
    return torch.stack([(~known).to(values.dtype), torch.nan_to_num(values), known.to(values.dtype)], dim=-1)
