"""History towers: what the interactions before each position say of the user there."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from fedrec.models.towers.dropout import Dropout

_GAP_BUCKETS = 34
"""0: no gap, or none known; bucket k: a gap of [2^(k-1), 2^k) seconds, the last one everything above."""

Share = Annotated[float, Field(ge=0, lt=1)]


class HistoryConfig(BaseModel):
    """Settings of the history tower; each name reads those that it has a use for.

    Args:
        name: `attention` (causal self-attention), `gru`, `lstm`, `decayed` (a mean of item vectors whose weights decay
            with age), or `none`.
        window: interactions that a prediction looks at.
        num_blocks: attention blocks, or layers of a recurrent network.
        num_heads: of attention; a divisor of the model's dimension.
        feedforward: width of the hidden layer of a block, in dimensions.
        dropout: share of activations dropped in training.
        crop_probability: with which a long history is cut at a random place for training, not at its end.
        time_gaps: add an embedding of the (logarithmic) time since the interaction before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["attention", "gru", "lstm", "decayed", "none"] = "attention"
    window: Annotated[int, Field(ge=1, le=4096)] = 50
    num_blocks: Annotated[int, Field(ge=1, le=24)] = 2
    num_heads: Annotated[int, Field(ge=1, le=64)] = 2
    feedforward: Annotated[int, Field(ge=1, le=16)] = 2
    dropout: Share = 0.2
    crop_probability: Annotated[float, Field(ge=0, le=1)] = 0.7
    time_gaps: bool = False

    @model_validator(mode="after")
    def _settings_have_a_use(self) -> HistoryConfig:
        if self.name in ("decayed", "none") and self.time_gaps:
            raise ValueError(f"model.history.time_gaps is for attention, gru and lstm, not for {self.name!r}")
        return self


class HistoryTower(nn.Module):
    """From item vectors to one vector a position; position t sees what is before it and nothing else.

    Padding stands behind what counts, so causal towers never look at it.
    """

    num_dropped = 0
    """How many dropout draws a position of a user needs."""

    def forward(self, items: Tensor, gaps: Tensor | None, dropout: Dropout) -> Tensor:
        """Encode.

        Args:
            items: (..., T, d) vectors of the items at each position; position 0, the empty start, is not looked at.
            gaps: (..., T) int64 seconds since the interaction before, or None.
            dropout: what drops activations; for ranking one that drops nothing.

        Returns:
            (..., T, d).
        """
        raise NotImplementedError


class _Embedded(HistoryTower):
    """Adds what is known of a position to its item: place in the window, time since the one before; a learned start."""

    def __init__(self, config: HistoryConfig, dim: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.empty(dim))
        self.positions = nn.Parameter(torch.empty(config.window + 1, dim))
        self.gaps = nn.Parameter(torch.empty(_GAP_BUCKETS, dim)) if config.time_gaps else None
        self._scale = math.sqrt(dim)

    def embed(self, items: Tensor, gaps: Tensor | None, dropout: Dropout) -> Tensor:
        begun = torch.cat([self.start.expand(*items.shape[:-2], 1, -1), items[..., 1:, :]], dim=-2)
        values = begun * self._scale + self.positions[: items.shape[-2]]
        if self.gaps is not None:
            values = values + self.gaps[_bucket(gaps, items)]
        return dropout(values)


def _bucket(gaps: Tensor | None, items: Tensor) -> Tensor:
    """Return the (..., T) int64 bucket of each gap; 0 where none is known."""
    if gaps is None:
        return torch.zeros(items.shape[:-1], dtype=torch.int64, device=items.device)
    logs = torch.log2(gaps.to(torch.float64).clamp(min=1)).to(torch.int64)
    return torch.where(gaps > 0, (1 + logs).clamp(max=_GAP_BUCKETS - 1), torch.zeros_like(logs))


class _Block(nn.Module):
    """One transformer block with the normalisation before each part."""

    def __init__(self, config: HistoryConfig, dim: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm, self.norm_feedforward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.projections, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.expand, self.contract = nn.Linear(dim, config.feedforward * dim), nn.Linear(config.feedforward * dim, dim)

    def forward(self, values: Tensor, dropout: Dropout) -> Tensor:
        parts = self.projections(self.norm(values)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = (part.transpose(-3, -2) for part in parts.unbind(-3))
        met = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        values = values + dropout(self.output(met.transpose(-3, -2).flatten(-2)))
        hidden = dropout(F.gelu(self.expand(self.norm_feedforward(values))))
        return values + dropout(self.contract(hidden))


class Attention(_Embedded):
    """Causal self-attention over the window.

    Source:
        Kang & McAuley, Self-Attentive Sequential Recommendation, 2018, section III; normalisation before each part as
        in Xiong et al., On Layer Normalization in the Transformer Architecture, 2020.
    """

    def __init__(self, config: HistoryConfig, dim: int) -> None:
        """Make the blocks; `dim` must be a multiple of `num_heads`."""
        super().__init__(config, dim)
        self.blocks = nn.ModuleList(_Block(config, dim) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(dim)
        self.num_dropped = dim * (1 + config.num_blocks * (2 + config.feedforward))

    def forward(self, items: Tensor, gaps: Tensor | None, dropout: Dropout) -> Tensor:
        """Encode; see `HistoryTower.forward`."""
        values = self.embed(items, gaps, dropout)
        for block in self.blocks:
            values = block(values, dropout)
        normed: Tensor = self.norm(values)
        return normed


class Recurrent(_Embedded):
    """A recurrent network over the window, one layer on the other.

    Source:
        Hidasi et al., Session-based Recommendations with Recurrent Neural Networks, 2016 (GRU);
        Hochreiter & Schmidhuber, Long Short-Term Memory, 1997.
    """

    def __init__(self, config: HistoryConfig, dim: int) -> None:
        """Make the cells; torch's fused networks are no faster on a CPU and know nothing of this dropout."""
        super().__init__(config, dim)
        make = nn.GRUCell if config.name == "gru" else nn.LSTMCell
        self.cells = nn.ModuleList(make(dim, dim) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(dim)
        self.num_dropped = dim * (1 + config.num_blocks)

    def forward(self, items: Tensor, gaps: Tensor | None, dropout: Dropout) -> Tensor:
        """Encode; see `HistoryTower.forward`."""
        values = self.embed(items, gaps, dropout)
        for cell in self.cells:
            hidden = torch.zeros_like(values[..., 0, :])
            state = hidden
            outputs = []
            for step in values.unbind(-2):
                if isinstance(cell, nn.LSTMCell):
                    hidden, state = cell(step, (hidden, state))
                else:
                    hidden = cell(step, hidden)
                outputs.append(hidden)
            values = dropout(torch.stack(outputs, dim=-2))
        normed: Tensor = self.norm(values)
        return normed


class Decayed(HistoryTower):
    """Means of the items before, whose weights fall with age at learned rates; one mean a head, mixed linearly."""

    def __init__(self, config: HistoryConfig, dim: int) -> None:
        """Make `num_heads` rates: the slowest looks back over about the window, the fastest at the newest item."""
        super().__init__()
        self.rates = nn.Parameter(torch.empty(config.num_heads))
        self.start = nn.Parameter(torch.empty(dim))
        self.mix = nn.Linear(config.num_heads * dim, dim)
        self.num_dropped = config.num_heads * dim

    def forward(self, items: Tensor, gaps: Tensor | None, dropout: Dropout) -> Tensor:
        """Encode; see `HistoryTower.forward`."""
        width = items.shape[-2]
        positions = torch.arange(width, device=items.device)
        ages = positions[:, None] - positions
        seen = (ages >= 0) & (positions > 0)
        logs = -ages.clamp(min=0) * self.rates.exp()[:, None, None]
        weights = torch.where(seen, logs, -torch.inf)[:, 1:].softmax(dim=-1)  # nothing is before position 0
        means = (weights @ items.unsqueeze(-3)).movedim(-3, -2).flatten(-2)
        means = (
            torch.cat([torch.zeros_like(means[..., :1, :]), means], dim=-2)
            if width > 1
            else means.new_zeros(*items.shape[:-2], 1, self.mix.in_features)
        )
        mixed: Tensor = self.mix(dropout(means)) + self.start
        return mixed


class Nothing(HistoryTower):
    """No history: zeros."""

    def forward(self, items: Tensor, gaps: Tensor | None, dropout: Dropout) -> Tensor:
        """Return zeros of the shape of `items`."""
        return torch.zeros_like(items)


def make_history(config: HistoryConfig, dim: int) -> HistoryTower:
    """Make the tower of a config."""
    towers = {"attention": Attention, "gru": Recurrent, "lstm": Recurrent, "decayed": Decayed}
    return towers[config.name](config, dim) if config.name in towers else Nothing()
