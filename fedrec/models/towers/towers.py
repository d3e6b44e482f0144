"""All towers of a model in one module, and where their parameters start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from fedrec.errors import DataError
from fedrec.models.towers.context import ContextTower
from fedrec.models.towers.dropout import Dropout
from fedrec.models.towers.familiarity import Familiarity, begin
from fedrec.models.towers.fusion import FusionName, make_fusion
from fedrec.models.towers.history import HistoryConfig, make_history
from fedrec.models.towers.ratings import RatingTower
from fedrec.models.towers.windows import Windows
from fedrec.randomness import Key

_CONTEXT_STD = 0.2
"""Of tables of context fields at the start: far enough apart for products, whose slopes vanish where factors do."""


class Towers(nn.Module):
    """Item table, history tower, context tower and fusion; made without memory, for parameters that come from outside.

    Called as `functional_call(towers, shared, ("queries", ...))`: the first argument says which part is wanted.

    Args:
        num_items: M.
        dim: d.
        history: settings of the history tower.
        fields: context fields, see `ContextTower`; without any there is no context tower.
        fusion: name of the fusion.
        rated: whether scores are ratings.
        familiarity: heads of `Familiarity`; 0 for none.
    """

    def __init__(
        self,
        num_items: int,
        dim: int,
        history: HistoryConfig,
        fields: Mapping[str, int],
        fusion: FusionName,
        rated: bool = False,
        familiarity: int = 0,
    ) -> None:
        """Make the parts on torch's meta device."""
        super().__init__()
        with torch.device("meta"):
            self.items = nn.Parameter(torch.empty(num_items, dim))
            self.biases = nn.Parameter(torch.empty(num_items, 1))
            self.history = make_history(history, dim)
            gated = history.name != "none"
            self.context = ContextTower(fields, dim, gated) if fields else None
            self.past = ContextTower(fields, dim, True) if fields and gated else None
            self.fusion = make_fusion(fusion, dim)
            self.familiarity = Familiarity(fields, familiarity) if familiarity else None
            self.ratings = RatingTower(dim, gated) if rated else None

    def forward(self, part: str, *arguments: object) -> Tensor:
        """Call a part by name."""
        result: Tensor = getattr(self, part)(*arguments)
        return result

    def queries(self, items: Tensor, windows: Windows, dropout: Dropout) -> Tensor:
        """Return the (..., T, d) vectors that items are scored with at each position.

        Args:
            items: (..., T, d) vectors of `windows.items`.
            windows: of the same users; with (T,) tensors instead of (B, T) for a single one.
            dropout: of the history tower.
        """
        if self.ratings is not None:
            items = self.ratings.read(items, *self._rated(windows))
        if self.past is not None:
            items = self.past(items, windows.past)
        history: Tensor = self.history(items, windows.gaps, dropout)
        if self.context is None:
            return history
        situation: Tensor = self.context(history, windows.context)
        return situation

    def _rated(self, windows: Windows) -> tuple[Tensor, Tensor]:
        if windows.past_ratings is None:
            raise DataError("model.loss.name='squared' fits ratings, and the data has none; choose another loss")
        return windows.past_ratings, self.biases[windows.items][..., 0]

    def levels(self, windows: Windows) -> Tensor:
        """Return (..., T): what all scores at a position have in common, where they are ratings.

        Raises:
            DataError: where the data has no ratings.
        """
        if self.ratings is None:
            return torch.zeros(windows.items.shape, dtype=self.biases.dtype, device=windows.items.device)
        return self.ratings.levels(*self._rated(windows))

    def familiar(self, windows: Windows, seen: Tensor) -> Tensor:
        """Return (B, T, T): what is added to the scores of `windows.items` at each position, see `Familiarity`.

        Args:
            windows: of B users.
            seen: (B, T, T) bool, which items are before a position.
        """
        if self.familiarity is None:
            return torch.zeros(seen.shape, dtype=self.items.dtype, device=seen.device)
        found: Tensor = self.familiarity(windows.items, seen, windows.past, windows.context)
        return found

    def scores(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return the (...) scores of (..., d) queries and item vectors that broadcast, without biases."""
        scores: Tensor = self.fusion(queries, items)
        return scores

    def sampled(self, vectors: tuple[Tensor, Tensor, Tensor], windows: Windows, dropout: Dropout) -> Tensor:
        """Return (..., T, 1 + K): the scores of each position's target, then of the negatives, without biases.

        Args:
            vectors: of the items of the windows (..., T, d), of the targets (..., T, d), of the negatives (..., K, d).
            windows: see `queries`, as the next.
            dropout: of the history tower.
        """
        items, targets, negatives = vectors
        queries = self.queries(items, windows, dropout)
        return torch.cat([self.scores(queries, targets)[..., None], self.fusion.grid(queries, negatives)], dim=-1)

    def all_scores(self, queries: Tensor) -> Tensor:
        """Return (n, M) scores of (n, d) queries with every item, biases included."""
        scores: Tensor = self.fusion.all_items(queries, self.items) + self.biases[:, 0]
        return scores

    def start(self, key: Key, std: float) -> dict[str, Tensor]:
        """Draw every parameter.

        Tables and the weights of attention blocks are normal with standard deviation `std`, vectors of context fields
        with one of their own and 0 where the value is unknown; other layers are Xavier normal, norms start as the
        identity, biases at 0, and decay rates spread over the window.

        Returns:
            Name -> float32 tensor on the CPU.
        """
        layers = {
            f"{name}." for name, module in self.named_modules() if isinstance(module, (nn.Linear, nn.RNNCellBase))
        }
        norms = {f"{name}." for name, module in self.named_modules() if isinstance(module, nn.LayerNorm)}
        found = {}
        for name, parameter in self.named_parameters():
            shape, owner = tuple(parameter.shape), name.rpartition(".")[0] + "."
            draws = torch.randn(shape, generator=key.fold(name).torch_generator())
            if owner in norms:
                found[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
            elif name.endswith("rates"):
                found[name] = -torch.linspace(0.0, math.log(32.0), len(parameter))
            elif owner.endswith((".tables.", ".lines.")):
                found[name] = draws * _CONTEXT_STD
                found[name][0] = 0.0  # a value that nobody ever had says nothing
            elif owner == "familiarity.":
                found[name] = begin(name, shape)
            elif name == "biases" or (owner in layers and len(shape) == 1):
                found[name] = torch.zeros(shape)
            elif owner in layers and not name.startswith("history.blocks."):
                found[name] = draws * math.sqrt(2.0 / sum(shape))
            else:
                found[name] = draws * std
        return found


@lru_cache(maxsize=16)
def make_towers(
    num_items: int,
    dim: int,
    history: HistoryConfig,
    fields: tuple[tuple[str, int], ...],
    fusion: FusionName,
    rated: bool,
    familiarity: int,
    thread: int,
) -> Towers:
    """Make towers, or return those made before: they hold no values, and making them takes as long as a small batch.

    Args:
        num_items: see `Towers`, as the next six.
        dim: d.
        history: settings of the history tower.
        fields: context fields.
        fusion: name of the fusion.
        rated: whether scores are ratings.
        familiarity: heads.
        thread: the calling one; values are lent to a module while it is called, so that no two threads may share one.
    """
    return Towers(num_items, dim, history, dict(fields), fusion, rated, familiarity)
