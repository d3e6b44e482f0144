"""FedNCF: neural collaborative filtering, a private user vector, shared items and a shared network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.data.catalogue import Catalogue
from fedrec.models.blocks import Contributions, Dense
from fedrec.models.peers.descent import ITEMS, batches, descend
from fedrec.models.peers.examples import HeldOut
from fedrec.models.peers.peer import Peer, PeerConfig, Rate, moves_of
from fedrec.models.protocol import ReleasedBlocks, ServerState, Trained, UserState
from fedrec.randomness import Key

_CELLS = 2**17
"""Scores that are computed at once: the hidden layers of each take a hundred floats."""
Form = Literal["gmf", "mlp", "neumf"]


class FedNcfConfig(PeerConfig):
    """Settings of `fedncf`: `form` is which of the three networks of NCF; `learning_rate` is of mean losses.

    Items move by the sum of all users' moves times `item_step`, the network by their mean.
    """

    form: Form = "neumf"
    learning_rate: Rate = 0.5
    item_step: Rate = 1.0


class FedNcf(Peer):
    """NCF trained by federated averaging, with the user vectors kept on the devices.

        gmf     y_ui = sigmoid(h' (p_u * q_i) + c)
        mlp     y_ui = sigmoid(h' relu(B relu(A [p_u, q_i] + a) + b) + c)
        neumf   both side by side on vectors of their own, their last layers added

    In a round a device trains p_u, the items it touches and the network on its met and drawn items, and sends how far
    items and network moved. Items move by the sum of what users moved them, as in matrix factorisation: a mean over all
    users would divide by the many who never touched an item. The network moves by the mean.

    Source:
        Perifanis & Efraimidis, Federated Neural Collaborative Filtering, Knowledge-Based Systems 2022 (items and
        network are aggregated apart; its secure aggregation would hide each user's part);
        He et al., Neural Collaborative Filtering, WWW 2017, eq. 8-12 (the networks).
    """

    config: FedNcfConfig

    def __init__(self, config: FedNcfConfig, held_out: HeldOut | None = None) -> None:
        """Keep the settings; see `Peer`."""
        super().__init__(config, held_out)
        self.config = config

    def init(self, catalogue: Catalogue, key: Key) -> ServerState:
        """Draw items, network and the common start of users.

        Returns:
            Shared, float32: items (M, w) and start (w,), w = d or 2 d (neumf); output (d + k, 1), k = d / 2 hidden
            units, or one of both parts; hidden_0 (2 d, d), bias_0 (d,), hidden_1 (d, k), bias_1 (k,) but for gmf;
            offset (1,).
        """
        config, dim = self.config, self.config.dim
        generator = key.fold("items").torch_generator()
        width = dim * (2 if config.form == "neumf" else 1)
        shared = {
            "items": torch.randn(catalogue.num_items, width, generator=generator) * config.init_std,
            "start": torch.randn(width, generator=generator) * config.init_std,
            "offset": torch.zeros(1),
        }
        top = max(dim // 2, 1)
        if config.form != "gmf":
            shared |= {"hidden_0": _layer(2 * dim, dim, generator), "bias_0": torch.zeros(dim)}
            shared |= {"hidden_1": _layer(dim, top, generator), "bias_1": torch.zeros(top)}
        inputs = {"gmf": dim, "mlp": top, "neumf": dim + top}[config.form]
        return ServerState({**shared, "output": _layer(inputs, 1, generator)})

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros, float64, of the shapes of the items and of the network."""
        names = (ITEMS, *_network(shared))
        return {name: torch.zeros_like(shared[name], dtype=torch.float64) for name in names}

    def fit_users(self, shared: Mapping[str, Tensor], users: UserBatch, ranking: bool = True) -> UserState:
        """Take up the vectors that the devices kept: {"vectors": (B, w)}."""
        return {"vectors": users.kept("vectors", shared["start"])}

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Train user vector, items and network, and return how far items and network moved."""
        config, examples = self.config, self._draw(shared, users, key)
        network = {name: shared[name].expand(users.num_users, *shared[name].shape) for name in _network(shared)}
        own, rows = {**state, **network}, shared[ITEMS][examples.rows]
        for _ in range(config.local_epochs):
            for batch in batches(examples, config.local_batch_size):
                own = descend(own, rows, batch, self._logits, config.learning_rate)
        blocks = {name: Dense(own[name] - shared[name]) for name in network}
        return Trained({ITEMS: moves_of(shared, rows, examples), **blocks}, {"vectors": own["vectors"]})

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Move items by the sum of users' moves, and the network by their mean."""
        state = super().update(server, release)
        items = server.shared[ITEMS]
        moved = items + self.config.item_step * release.divisor * release.blocks[ITEMS]
        return ServerState({**state.shared, ITEMS: moved.to(items.dtype)}, state.memory)

    def score(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch) -> Tensor:
        """Return (B, num_items) predictions before the sigmoid."""
        network = {name: shared[name][None] for name in _network(shared)}
        items = shared[ITEMS][None]
        step = max(1, _CELLS // len(shared[ITEMS]))
        parts = [state["vectors"][first : first + step] for first in range(0, users.num_users, step)]
        scores = [self._logits({**network, "vectors": part}, items) for part in parts]
        return torch.cat(scores) if scores else items.new_zeros(0, items.shape[1])

    def _logits(self, parameters: Mapping[str, Tensor], items: Tensor) -> Tensor:
        """Return (B, E) for (B, E, w) items; the network is (B, ...), or (1, ...) for all."""
        dim = self.config.dim
        parts: list[Tensor] = []
        users = parameters["vectors"][:, None, :]
        if self.config.form != "mlp":
            parts.append(users[..., :dim] * items[..., :dim])
        if self.config.form != "gmf":
            # The first layer on [p_u, q_i] is the sum of its halves: that of the user is the same for all items.
            upper, lower = parameters["hidden_0"][:, :dim], parameters["hidden_0"][:, dim:]
            hidden = users[..., -dim:] @ upper + items[..., -dim:] @ lower + parameters["bias_0"][:, None]
            parts.append(torch.relu(torch.relu(hidden) @ parameters["hidden_1"] + parameters["bias_1"][:, None]))
        found: Tensor = (torch.cat(parts, dim=2) @ parameters["output"])[:, :, 0] + parameters["offset"]
        return found


def _network(shared: Mapping[str, Tensor]) -> list[str]:
    return [name for name in shared if name not in (ITEMS, "start")]


def _layer(inputs: int, outputs: int, generator: torch.Generator) -> Tensor:
    """Return (inputs, outputs) uniform weights of variance 2 / (inputs + outputs) (Glorot & Bengio, 2010)."""
    bound = math.sqrt(6 / (inputs + outputs))
    return (2 * torch.rand(inputs, outputs, generator=generator) - 1) * bound
