"""A factorisation machine over the item, its categories and the recent items of the user; for runs without privacy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models import server_optimizer
from fedrec.models.blocks import Contributions
from fedrec.models.coalescing import highest_row
from fedrec.models.losses import softmax_over_all
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.models.server_optimizer import Decay, ServerOptimizerConfig
from fedrec.models.summed import Summed
from fedrec.models.towers.windows import Windows, ranking_windows, training_windows
from fedrec.randomness import Key


class FmOptimizerConfig(ServerOptimizerConfig):
    """Settings of the server optimiser, with the defaults that the machine needs."""

    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    second_momentum: Decay = 0.98
    stability: Annotated[float, Field(gt=0)] = 1e-8
    warmup_rounds: Annotated[int, Field(ge=0)] = 50


_LEARNED = ("items", "recent", "biases", "categories", "category_biases")


class FactorizationMachineConfig(BaseModel):
    """Settings of `fm`.

    Args:
        dim: d of all vectors.
        window: recent items that a prediction looks at.
        recency_decay: a recent item of age k (0 = the newest) weighs exp(-k / recency_decay).
        crop_probability: with which a history longer than the window is cut at a random place for training.
        server_optimizer: of all parameters.
        init_std: standard deviation of the vectors at the start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dim: Annotated[int, Field(ge=1, le=1024)] = 64
    window: Annotated[int, Field(ge=1, le=1024)] = 50
    recency_decay: Annotated[float, Field(gt=0)] = 3.0
    crop_probability: Annotated[float, Field(ge=0, le=1)] = 0.7
    server_optimizer: FmOptimizerConfig = FmOptimizerConfig()
    init_std: Annotated[float, Field(gt=0)] = 0.02


class FactorizationMachine:
    """Second-order interactions of what is known of a pair, without a feature that names the user.

    Active for item i after history h: the item itself (weight 1), its categories c (weights x_ic, a unit vector) and
    the recent items j (weights a_j, adding up to 1). Of the sum over pairs of features only what depends on i matters:

        score(i | h) = w_i + sum_c x_ic w_c + <v_i, z_i> + (|z_i|^2 - sum_c x_ic^2 |v_c|^2) / 2 + <v_i + z_i, r_h>
        z_i = sum_c x_ic v_c,    r_h = sum_j a_j u_j

    In a round every drawn user adds minus the gradient of the mean cross-entropy over all items of the positions of a
    window of its history; the server moves all parameters along the mean. Without categories those terms are not there.

    Source:
        Rendle, Factorization Machines, 2010, eq. 1 and lemma 3.1; Rendle et al., Factorizing Personalized Markov Chains
        for Next-Basket Recommendation, 2010 (recent items as features).
    """

    bounded = False
    batches_side_by_side = False
    batch_cells = 2**15

    def __init__(self, config: FactorizationMachineConfig) -> None:
        """Keep the settings."""
        self.config = config

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Draw the vectors; shared, float32: items, recent (M, d) and biases (M, 1).

        Where the catalogue has categories also categories (C, d), category_biases (C, 1) and features (M, C), which
        stay as they are and are broadcast with the rest.
        """
        shapes = {"items": catalogue.num_items, "recent": catalogue.num_items}
        shared = {"biases": torch.zeros(catalogue.num_items, 1)}
        if catalogue.categories is not None:
            features = torch.from_numpy(catalogue.categories).to(torch.float32)
            shared["features"] = features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)
            shared["category_biases"] = torch.zeros(features.shape[1], 1)
            shapes["categories"] = features.shape[1]
        for name, rows in shapes.items():
            draws = torch.randn(rows, self.config.dim, generator=key.fold(name).torch_generator())
            shared[name] = draws * self.config.init_std
        return ServerState(shared, server_optimizer.begin(learned(shared), self.config.server_optimizer))

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return float32 zeros of the names and shapes of what is learned."""
        return {name: torch.zeros_like(tensor) for name, tensor in learned(shared).items()}

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the shared parameters: there is nothing to prepare."""
        return shared

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Return {"vectors": (B, d)}, r_h after the whole history; nothing is needed for training."""
        if not ranking:
            return {}
        windows = ranking_windows(users, self.config.window)
        last = (windows.lengths - 1)[:, None, None].expand(-1, 1, self.config.dim)
        return {"vectors": self._recent(shared, windows).gather(1, last)[:, 0]}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return minus the gradient of the users' losses, added up; all is finite or nothing counts."""
        windows = training_windows(users, self.config.window, self.config.crop_probability, key)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in learned(shared).items()}
        vectors, biases = item_side({**shared, **leaves})
        queries = self._recent(leaves, windows)[windows.mask]
        lengths = windows.mask.sum(dim=1, keepdim=True).clamp(min=1)
        weights = (windows.mask / lengths)[windows.mask].to(queries.dtype)
        loss = softmax_over_all(queries, vectors, biases, windows.targets[windows.mask], weights)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
        counted = torch.full((users.num_users,), finite, device=users.items.device)
        moves = {name: -gradient if finite else torch.zeros_like(gradient) for name, gradient in gradients.items()}
        return {name: Summed(move, counted) for name, move in moves.items()}

    def _recent(self, shared: Mapping[str, Tensor], windows: Windows) -> Tensor:
        """Return (B, T, d): r_h at each position, 0 where nothing was met before."""
        highest_row(windows.items, len(shared["recent"]))
        positions = torch.arange(windows.items.shape[1], device=windows.items.device)
        ages = (positions[:, None] - positions).to(shared["recent"].dtype)
        weights = torch.where((ages >= 0) & (positions > 0), torch.exp(-ages / self.config.recency_decay), 0.0)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
        return weights @ shared["recent"][windows.items]

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Move what is learned by the mean of what users sent."""
        config = self.config.server_optimizer
        moved, memory = server_optimizer.step(learned(server.shared), release.blocks, server.memory, config)
        return ServerState({**server.shared, **moved}, memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) scores."""
        vectors, biases = item_side(shared)
        return state["vectors"] @ vectors.T + biases


def learned(shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters that are learned; the categories of items are not."""
    return {name: shared[name] for name in _LEARNED if name in shared}


def item_side(shared: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what recent items meet, v_i + z_i (M, d), and all other terms of an item, (M,)."""
    items, biases = shared["items"], shared["biases"][:, 0]
    if "features" not in shared:
        return items, biases
    features, categories = shared["features"], shared["categories"]
    of_categories = features @ categories
    pairs = (of_categories.square() - features.square() @ categories.square()).sum(dim=1) / 2
    own = (items * of_categories).sum(dim=1) + (features @ shared["category_biases"])[:, 0]
    return items + of_categories, biases + own + pairs
