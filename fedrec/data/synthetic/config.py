"""The knobs of the synthetic world."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

MIN_INTERACTIONS = 5


class SyntheticConfig(BaseModel):
    """What the synthetic world is like.

    Every item has a latent class. At any moment a user is interested in `num_interests` classes; `drift` of them are
    replaced in a year, so what was met recently says more. Context moves a share of the choices, chance another.
    Measured with the defaults under leave-one-out, full ranking, NDCG@10: popularity .05-.06, ALS (d=32) .12,
    ALS with a user solve weighted by recency .15; a tenth of the items holds 36% of the interactions.

    Args:
        num_users: users.
        num_items: items.
        mean_interactions: mean items a user meets; activity is log-normal, at least 5 and at most half the items.
        activity_spread: standard deviation of the logarithm of activity.
        num_classes: latent classes of items.
        popularity_exponent: an item of popularity rank r is met in proportion to r to the power of minus this.
        num_interests: classes a user is interested in at one moment.
        drift: interests replaced in a year; 0 = taste never moves.
        context_share: share of interactions whose class follows the time of day and the device.
        num_groups: groups of users that want different things in the same context, see `planted_preference`.
        noise_share: share of interactions that follow popularity alone.
        category_noise: share of items whose published category is not their class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_users: int = Field(20_000, ge=1, le=2**40)
    num_items: int = Field(1_000, ge=2 * MIN_INTERACTIONS, le=2**22)
    mean_interactions: float = Field(40.0, ge=MIN_INTERACTIONS)
    activity_spread: float = Field(0.8, ge=0, le=2)
    num_classes: int = Field(40, ge=2, le=1_000)
    popularity_exponent: float = Field(0.92, ge=0, le=3)
    num_interests: int = Field(2, ge=1, le=20)
    drift: float = Field(3.0, ge=0, le=50)
    context_share: float = Field(0.15, ge=0, le=1)
    num_groups: int = Field(1, ge=1, le=100)
    noise_share: float = Field(0.1, ge=0, le=1)
    category_noise: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _fits_together(self) -> SyntheticConfig:
        if self.context_share + self.noise_share > 1:
            total = self.context_share + self.noise_share
            raise ValueError(f"context_share + noise_share = {total:g}, it must be at most 1; lower one of them")
        if self.num_classes > self.num_items:
            raise ValueError(f"num_classes={self.num_classes} is more than num_items={self.num_items}; lower it")
        if self.mean_interactions > self.num_items / 4:
            raise ValueError(
                f"mean_interactions={self.mean_interactions:g} is more than num_items / 4 = {self.num_items / 4:g}; "
                "nobody meets an item twice: raise num_items or lower mean_interactions"
            )
        return self

    @property
    def max_interactions(self) -> int:
        """Return the most items a user meets."""
        return min(self.num_items // 2, 2**20 - 1)
