"""ALS, two towers and SLIT in one run: what users like in the long run, and what they want next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models.als import Als, AlsConfig
from fedrec.models.blocks import Contributions
from fedrec.models.ease import square_table
from fedrec.models.protocol import FederatedModel, ReleasedBlocks, ServerState, UserState
from fedrec.models.slit import Slit, SlitConfig
from fedrec.models.two_tower import TwoTower, TwoTowerConfig
from fedrec.randomness import Key

ROUND = "round"
ALS, TOWERS, SLIT = "als/", "two_tower/", "slit/"
Value = TypeVar("Value")


class HybridConfig(BaseModel):
    """Settings of `hybrid`.

    Args:
        als: settings of the first part.
        two_tower: settings of the second part.
        slit: settings of a third part; None for none.
        als_rounds: rounds that ALS takes first; everybody should take part in them (`federated.full_rounds`).
        tower_rounds: rounds that the towers take then; all that are left where None. With `slit` a number: SLIT takes
            the round after them, in which everybody should take part (`federated.last_full_rounds`).
        als_weight: what the scores of ALS are multiplied with before they are added to those of the towers.
        slit_weight: the same of SLIT.
        start_from_als: let the towers' item table start at the item vectors of ALS, scaled to the standard deviation
            `two_tower.init_std`; both need the same dimension.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    als: AlsConfig = AlsConfig()
    two_tower: TwoTowerConfig = TwoTowerConfig()
    slit: SlitConfig | None = None
    als_rounds: Annotated[int, Field(ge=1, le=1000)] = 10
    tower_rounds: Annotated[int, Field(ge=1)] | None = None
    als_weight: Annotated[float, Field(ge=0)] = 3.0
    slit_weight: Annotated[float, Field(ge=0)] = 30.0
    start_from_als: bool = False

    @model_validator(mode="after")
    def _parts_fit(self) -> HybridConfig:
        if self.start_from_als and self.als.dim != self.two_tower.dim:
            raise ValueError(
                f"model.start_from_als needs item vectors of one dimension; model.als.dim={self.als.dim}, "
                f"model.two_tower.dim={self.two_tower.dim}"
            )
        if self.two_tower.local_steps > 1:
            raise ValueError(
                f"model.two_tower.local_steps={self.two_tower.local_steps} is not for 'hybrid'; leave it 1"
            )
        if (self.slit is None) != (self.tower_rounds is None):
            found = "model.slit" if self.tower_rounds is None else "model.tower_rounds"
            raise ValueError(f"{found} is given alone; SLIT takes the round after model.tower_rounds: give both")
        return self


class Hybrid:
    """Federated ALS first, then the towers, then SLIT, and at ranking the sum of all.

        score(u, i, c) = towers(u, i, c) + als_weight <p_u, q_i> + slit_weight x_u' B_i

    p_u is solved on the device from the whole history, with recency weights; the towers read its end, and x_u weighs
    it by age. Which part a round is for follows from the number of rounds before it, which is public and among the
    shared parameters; B is among them from its round on, for all rounds before would carry it in vain. Without privacy
    only: ALS and SLIT send exact statistics.

    Source:
        The parts are their own (`Als`, `TwoTower`, `Slit`); their sum is an ensemble of log-linear models.
    """

    bounded = False
    batches_side_by_side = False

    def __init__(self, config: HybridConfig) -> None:
        """Make the parts."""
        self.config, self.als, self.towers = config, Als(config.als), TwoTower(config.two_tower)
        self.slit = None if config.slit is None else Slit(config.slit)
        self.batch_cells = self.towers.batch_cells

    def _part(self, shared: Mapping[str, Tensor]) -> tuple[str, FederatedModel]:
        """Return prefix and model of the part that the round after `shared` is for."""
        done = int(shared[ROUND])
        if done < self.config.als_rounds:
            return ALS, self.als
        if self.slit is None or done + 1 < self.grows_after:
            return TOWERS, self.towers
        return SLIT, self.slit

    @property
    def grows_after(self) -> float:
        """Rounds after which the shared parameters are those of `grow`; never without SLIT."""
        return math.inf if self.slit is None else self.config.als_rounds + (self.config.tower_rounds or 0) + 1

    def grow(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return shared parameters with those of SLIT, zeros where there are none yet."""
        if self.slit is None or f"{SLIT}weights" in shared:
            return dict(shared)
        return {**shared, f"{SLIT}weights": square_table("hybrid", len(shared[f"{TOWERS}items"]))}

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Draw the parts; shared: those of ALS and the towers, prefixed, and round (1,) int64.

        Raises:
            ConfigError: where a part can't be made for the catalogue.
        """
        als, towers = self.als.init(catalogue, key.fold("als")), self.towers.init(catalogue, key.fold("two_tower"))
        shared = {**_prefixed(ALS, als.shared), **_prefixed(TOWERS, towers.shared)}
        memory = {**_prefixed(ALS, als.memory), **_prefixed(TOWERS, towers.memory)}
        self.grow(shared)  # a catalogue that is too large is found before the first round
        return ServerState({**shared, ROUND: torch.zeros(1, dtype=torch.int64)}, memory)

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the totals of the part that is being trained, prefixed."""
        prefix, part = self._part(shared)
        return _prefixed(prefix, part.totals(self._below(prefix, shared)))

    def _below(self, prefix: str, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the shared parameters of a part."""
        return _below(prefix, self.grow(shared) if prefix == SLIT else shared)

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return what the parts make of theirs."""
        return {**shared, **_prefixed(ALS, self.als.prepare(_below(ALS, shared)))}

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Fit users for ranking with all parts, for training with the one that is being trained."""
        if not ranking:
            prefix, part = self._part(shared)
            return _prefixed(prefix, part.fit_users(self._below(prefix, shared), users, ranking=False))
        als = self.als.fit_users(_below(ALS, shared), users)
        return {**_prefixed(ALS, als), **_prefixed(TOWERS, self.towers.fit_users(_below(TOWERS, shared), users))}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return what the part that is being trained adds."""
        prefix, part = self._part(shared)
        blocks = part.contribute(self._below(prefix, shared), _below(prefix, state), users, key)
        return _prefixed(prefix, blocks)

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Move the part that is being trained."""
        prefix, part = self._part(server.shared)
        before = ServerState(self._below(prefix, server.shared), _below(prefix, server.memory))
        after = part.update(before, _Part(release, prefix))
        shared = {**server.shared, **_prefixed(prefix, after.shared), ROUND: server.shared[ROUND] + 1}
        if self.config.start_from_als and int(shared[ROUND]) == self.config.als_rounds:
            items = shared[f"{ALS}items"]
            shared[f"{TOWERS}items"] = items * (self.config.two_tower.init_std / items.std().clamp(min=1e-12))
        return ServerState(shared, {**server.memory, **_prefixed(prefix, after.memory)})

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) weighted sums of the parts' scores."""
        scores = self.towers.score(_below(TOWERS, shared), _below(TOWERS, state), users)
        als = self.als.score(_below(ALS, shared), _below(ALS, state), users)
        scores = scores.add_(als, alpha=self.config.als_weight)
        if self.slit is None or f"{SLIT}weights" not in shared:
            return scores
        return scores.add_(self.slit.score(_below(SLIT, shared), {}, users), alpha=self.config.slit_weight)


def _prefixed(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    return {prefix + name: value for name, value in values.items()}


def _below(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


class _Part:
    """A release as one part sees it."""

    def __init__(self, release: ReleasedBlocks, prefix: str) -> None:
        self.blocks = _below(prefix, release.blocks)
        self.noise_std = _below(prefix, release.noise_std)
        self.divisor = release.divisor
