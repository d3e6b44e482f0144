"""The subject of an audit: what a config names, and the rounds that its nodes and server would run, in one process.

The rounds use the functions that nodes and server use: `draw_cohort`, `sum_contributions`, `release`, `update`. There
is no ledger and no checkpoint: an audited run is thrown away. What the apps themselves may wire up wrongly - keys, plan
hash, messages - an audit does not see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec import assemble
from fedrec.config import Config
from fedrec.data.batches import user_batches
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions
from fedrec.errors import ConfigError
from fedrec.federated import cohort
from fedrec.models.protocol import FederatedModel, ServerState
from fedrec.privacy import mechanism
from fedrec.privacy.clipping import BoundedSum
from fedrec.privacy.mechanism import Release
from fedrec.privacy.plan import PrivacyPlan
from fedrec.randomness import Key, user_keys

Join = Callable[[BoundedSum, Mapping[str, Tensor], Key, float], None]
"""Adds canaries to a round: (sum so far, broadcast parameters, key of the round, sampling probability)."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is audited.

    Args:
        config: the run's config.
        model: its model, in the bounded form under a plan.
        catalogue: public items.
        train: what the run would train on.
        user_keys: (num_users,) uint64, what each user's draws follow from.
        plan: None without privacy.
        device: where to compute.
    """

    config: Config
    model: FederatedModel
    catalogue: Catalogue
    train: Interactions
    user_keys: np.ndarray
    plan: PrivacyPlan | None
    device: torch.device

    @property
    def num_rounds(self) -> int:
        """Return the number of rounds."""
        return self.config.federated.num_rounds

    @property
    def clipping_norm(self) -> float:
        """Return the bound on a user's contribution; `math.inf` without privacy."""
        return math.inf if self.plan is None else self.plan.clipping_norm

    def noise_multiplier(self, number: int) -> float:
        """Return noise std / clipping norm of a round; 0 without privacy."""
        return 0.0 if self.plan is None else self.plan.event_for_round(number).noise_multiplier

    def sampling_probability(self, number: int) -> float:
        """Return the probability that a user is drawn in a round."""
        return 1.0 if self.plan is None else self.plan.event_for_round(number).sampling_probability


@dataclass(frozen=True, eq=False)
class Round:
    """One finished round, with all that an attacker may be told of it.

    Args:
        number: from 1.
        key: the round's key.
        shared: parameters as they were broadcast.
        drawn: rows of the real users that took part.
        others: sum over them, before canaries joined; None where it was not kept.
        release: what was published; divided by `release.divisor`.
        server: the server's state after it.
    """

    number: int
    key: Key
    shared: Mapping[str, Tensor]
    drawn: np.ndarray
    others: BoundedSum | None
    release: Release
    server: ServerState


def subject_of(config: Config) -> Subject:
    """Load what a config names.

    Raises:
        ConfigError: for a claim whose attacks are not written yet.
        FedrecError: where the config's data can't be had.
    """
    plan = assemble.plan_of(config)
    if plan is not None and (plan.unit, plan.trust_model) != ("user", "central"):
        raise ConfigError(
            f"the config claims privacy for unit {plan.unit!r} under trust model {plan.trust_model!r}; this version "
            "audits unit 'user' under 'central' trust, and runs without privacy: set privacy.trust_model and "
            "privacy.unit, or leave [privacy] out"
        )
    train = assemble.whole_split(config.to_json()).train
    return Subject(
        config,
        assemble.model_of(config),
        assemble.dataset(config.to_json()).catalogue,
        train,
        user_keys(train.user_ids.ids),
        plan,
        assemble.device_of(config),
    )


def rounds(
    subject: Subject,
    key: Key,
    train: Interactions | None = None,
    rows: np.ndarray | None = None,
    join: Join | None = None,
    keep_sums: bool = False,
) -> Iterator[Round]:
    """Run the rounds of a config, one after the other.

    The initial model is the run's own, which everybody is told; everything else is drawn from `key`.

    Args:
        subject: what is audited.
        key: of this repetition: draws of users, negatives, noise.
        train: histories in place of the run's own, with the same users.
        rows: the users that exist in this repetition; all where None.
        join: adds canaries to a round's sum.
        keep_sums: whether `Round.others` is wanted.
    """
    model, plan = subject.model, subject.plan
    train = subject.train if train is None else train
    rows = np.arange(train.num_users) if rows is None else rows
    server = model.init(subject.catalogue, assemble.run_key(subject.config).fold("init"))
    for number in range(1, subject.num_rounds + 1):
        shared, round_key = assemble.as_broadcast(subject.config, server.shared, number - 1), key.fold("round", number)
        sampling = subject.sampling_probability(number)
        drawn = rows[cohort.draw_cohort(subject.user_keys[rows], sampling, round_key)]
        total = sum_over(subject, shared, train, drawn, round_key)
        others = None
        if keep_sums:
            others = BoundedSum({name: block.clone() for name, block in total.totals.items()}, total.clipping_norm)
        if join is not None:
            join(total, shared, round_key, sampling)
        if plan is None:
            released = mechanism.publish_exact(total, float(max(len(drawn), 1)))
        else:
            released = mechanism.release(total, plan, number, key)
        server = model.update(server, released)
        yield Round(number, round_key, shared, drawn, others, released, server)


def sum_over(
    subject: Subject, shared: Mapping[str, Tensor], train: Interactions, rows: np.ndarray, key: Key
) -> BoundedSum:
    """Return the sum of the clipped contributions of some users, as their node would send it."""
    batches = user_batches(train, rows, subject.model.batch_cells, keys=subject.user_keys)
    return cohort.sum_contributions(subject.model, shared, batches, subject.clipping_norm, key, subject.device)[0]


def generator_of(key: Key) -> np.random.Generator:
    """Return a numpy generator seeded by a key."""
    return np.random.default_rng(np.frombuffer(key.secret, dtype=np.uint32))
