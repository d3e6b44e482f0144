"""Implicit ALS from bounded contributions: the form that runs under a privacy plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedrec.data.batches import UserBatch
from fedrec.models.als import Als, AlsConfig
from fedrec.models.blocks import Contributions, Entries, RowOuter, SecondMoments, from_moments
from fedrec.models.coalescing import distinct_items
from fedrec.models.norms import squared_norms
from fedrec.models.protocol import ReleasedBlocks, ServerState, UserState
from fedrec.randomness import Key


class BoundedAlsConfig(AlsConfig):
    """Settings of `als` under a privacy plan: how a user's unit of norm is split, and how sums are rescaled."""

    item_share: Annotated[float, Field(gt=0, lt=1)] = 0.85
    gram_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    history_scale: Annotated[float, Field(gt=0)] = 10.0
    min_gram_eigenvalue: Annotated[float, Field(gt=0)] = 1e-3
    shrinkage: bool = True

    @model_validator(mode="after")
    def _shares_leave_room(self) -> BoundedAlsConfig:
        if self.item_share + self.gram_share >= 1:
            total = self.item_share + self.gram_share
            raise ValueError(
                f"model.item_share + model.gram_share = {total:g} leaves nothing for the counts; keep it below 1"
            )
        return self


class BoundedAls(Als):
    """Implicit ALS with contributions of norm exactly `clipping_norm`, in three jointly bounded blocks.

    With p^ = p_u / |p_u|, S_u the distinct items of the user and omega_ui = 1 / sqrt(|S_u|), a user adds

        items   beta  omega_ui p^              for i in S_u      norm beta
        gram    gamma (p^_i p^_i, sqrt(2) p^_i p^_j for i < j)   norm gamma
        counts  kappa omega_ui                 for i in S_u      norm kappa

    with beta^2 = item_share, gamma^2 = gram_share, kappa^2 = the rest. The server divides each block by its scale,
    multiplies items and counts by the public `history_scale`, floors counts at 0 and Gram eigenvalues, and solves

        q_i = ((a0 + c_i) G + lam (a0 + c_i) I)^-1 v_i

    where v, c, G are means over users. `shrinkage` multiplies v_i by the empirical Bayes factor signal / (signal +
    noise), with the known noise power: post-processing, free of privacy cost.

    Privacy:
        Unit user, add-or-remove; the L2 norm over all blocks is exactly clipping_norm (0 for a user without
        interactions or with p_u = 0), and the engine clips to it again whatever happens here. Training solves in
        float64, compiled for one user after the other: a user's numbers round the same whoever else is there. On other
        devices users are solved in batches, and how one rounds depends on the others.

    Source:
        Chien et al., Private Alternating Least Squares, 2021, algorithm 2, with one shared Gram matrix.
    """

    bounded = True
    config: BoundedAlsConfig

    def __init__(self, config: BoundedAlsConfig, clipping_norm: float = 1.0) -> None:
        """Keep the settings; contributions are made to have norm `clipping_norm`."""
        super().__init__(config)
        self.clipping_norm = clipping_norm

    @property
    def _scales(self) -> dict[str, float]:
        shares = {"items": self.config.item_share, "gram": self.config.gram_share}
        shares["counts"] = 1.0 - sum(shares.values())
        return {name: self.clipping_norm * share**0.5 for name, share in shares.items()}

    def totals(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return float64 zeros: items (M, d), gram (d (d+1)/2,) and counts (M, 1)."""
        totals = super().totals(shared)
        return {name: totals[name] for name in ("items", "gram", "counts")}

    def _training_dtype(self, items: Tensor) -> torch.dtype:
        return torch.float64

    def contribute(self, shared: Mapping[str, Tensor], state: UserState, users: UserBatch, key: Key) -> Contributions:
        """Return the three blocks of each user."""
        scales = self._scales
        vectors = state["vectors"].to(torch.float64)
        norms = squared_norms(vectors).sqrt()[:, None]
        unit = torch.where(norms > 0, vectors / norms.clamp(min=1e-300), 0.0 * vectors)
        present = (norms > 0).to(torch.float64)
        items, met = distinct_items(users.items, users.mask)
        entries = Entries(items, met / met.sum(dim=1, keepdim=True).clamp(min=1).sqrt())
        return {
            "items": RowOuter(entries, scales["items"] * unit),
            "gram": SecondMoments(scales["gram"] ** 0.5 * unit),
            "counts": RowOuter(entries, scales["counts"] * present),
        }

    def update(self, server: ServerState, release: ReleasedBlocks) -> ServerState:
        """Solve for all item vectors from the released means."""
        config, scales = self.config, self._scales
        dim = release.blocks["items"].shape[1]
        gram = from_moments(release.blocks["gram"] / scales["gram"], dim)
        values, basis = torch.linalg.eigh(gram)
        values = values.clamp(min=config.min_gram_eigenvalue)
        sums = release.blocks["items"]
        if config.shrinkage:
            noise = dim * release.noise_std["items"] ** 2
            signal = (sums.square().sum(dim=1, keepdim=True) - noise).clamp(min=0)
            sums = sums * (signal / (signal + noise + 1e-300))
        sums = sums * (config.history_scale / scales["items"])
        counts = (release.blocks["counts"] * (config.history_scale / scales["counts"])).clamp(min=0)
        items = (sums @ basis) / (values + config.regularization) @ basis.T / (config.unobserved_weight + counts)
        return ServerState({**server.shared, "items": items.to(server.shared["items"])}, server.memory)
