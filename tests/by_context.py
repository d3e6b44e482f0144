"""A model whose lists depend on the context alone, and a world where that is the whole truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.functional import one_hot

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.models.blocks import Contributions, RowSparse
from fedrec.models.popularity import Popularity, PopularityConfig
from fedrec.models.protocol import ServerState, UserState
from fedrec.randomness import Key


class ByContextConfig(BaseModel):
    """One field, or none: then it is popularity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context_fields: tuple[str, ...] = ()


class ByContext(Popularity):
    """Rank items by how often they were met in the value of a categorical field that is asked for."""

    bounded = False

    def __init__(self, config: ByContextConfig) -> None:
        super().__init__(PopularityConfig())
        self.fields = config.context_fields

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        width = catalogue.context_fields[self.fields[0]] if self.fields else 1
        return ServerState({"counts": torch.zeros(catalogue.num_items, width)})

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        codes = users.context[self.fields[0]] if self.fields else torch.zeros_like(users.items)
        values = one_hot(codes, shared["counts"].shape[1]).to(torch.float32)
        return {"counts": RowSparse(users.items, values, users.mask)}

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        counts = shared["counts"]
        if not self.fields:
            return counts[:, 0].expand(users.num_users, -1)
        query = users.query.get(self.fields[0], torch.full((users.num_users,), -1))
        known = counts.T[query.clamp(min=0)]
        return torch.where((query >= 0)[:, None], known, counts.sum(dim=1))


def contextual_world(num_users: int = 60, num_items: int = 40, length: int = 12, seed: int = 0) -> Interactions:
    """Users are at home or at work by chance, and meet an item of the lower half at home, of the upper half at work."""
    rng = np.random.default_rng(seed)
    place = rng.integers(0, 2, size=(num_users, length))
    half = num_items // 2
    # The square makes some items of each half popular.
    items = (rng.random((num_users, length)) ** 2 * half).astype(np.int64) + half * place
    return Interactions(
        users=np.repeat(np.arange(num_users), length),
        items=items.reshape(-1),
        user_ids=Vocabulary(np.arange(num_users)),
        item_ids=Vocabulary(np.arange(num_items)),
        times=np.tile(np.arange(length), num_users),
        context={"place": place.reshape(-1)},
        context_ids={"place": Vocabulary(np.array(["home", "work"]))},
    )
