"""What published peers have in common: an item table that users copy, train and send the moves of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models.blocks import RowSparse
from fedrec.models.peers.examples import Examples, HeldOut, draw_examples
from fedrec.models.protocol import ReleasedBlocks, ServerState
from fedrec.randomness import Key

Rate = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(ge=1, le=1024)]
Times = Annotated[int, Field(ge=1, le=1000)]


class PeerConfig(BaseModel):
    """What all peers that train on drawn negatives can be told.

    `local_batch_size` 0 is one batch of all examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dim: Size = 32
    init_std: Annotated[float, Field(gt=0)] = 0.1
    num_negatives: Annotated[int, Field(ge=1, le=100)] = 4
    local_epochs: Times = 1
    local_batch_size: Annotated[int, Field(ge=0)] = 256


class Peer:
    """An item table that is broadcast, trained by each user on the rows touched, and moved by the mean of their moves.

    Privacy:
        None is claimed: peers run without a plan, as published.

    Source:
        McMahan et al., Communication-Efficient Learning of Deep Networks, 2017, algorithm 1 (the mean of the moves).
    """

    bounded = False
    batch_cells = 2**12
    batches_side_by_side = True

    def __init__(self, settings: PeerConfig, held_out: HeldOut | None = None) -> None:
        """Keep the settings.

        Args:
            settings: of all peers.
            held_out: THE LEAK, for `simulations.leak` only.
        """
        self._settings, self._held_out = settings, held_out

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Draw the item vectors from a normal distribution; shared: items (num_items, dim) float32."""
        generator = key.fold("items").torch_generator()
        items = torch.randn(catalogue.num_items, self._settings.dim, generator=generator)
        return ServerState({"items": items * self._settings.init_std})

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros: items (M, d) float64."""
        return {"items": torch.zeros_like(shared["items"], dtype=torch.float64)}

    def prepare(self, shared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the shared parameters: there is nothing to prepare."""
        return shared

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Move each shared parameter by the mean of what users moved it."""
        moved = {
            name: (server.shared[name] + move).to(server.shared[name].dtype) for name, move in release.blocks.items()
        }
        return ServerState({**server.shared, **moved}, server.memory)

    def _draw(self, shared: Mapping[str, Tensor], users: UserBatch, key: Key) -> Examples:
        num_items = len(shared["items"])
        return draw_examples(users, num_items, self._settings.num_negatives, key, self._held_out)


def moves_of(shared: Mapping[str, Tensor], rows: Tensor, examples: Examples) -> RowSparse:
    """Return how far each of the users' (B, m, d) item rows moved."""
    return RowSparse(examples.rows, rows - shared["items"][examples.rows], examples.row_mask)
