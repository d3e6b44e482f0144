"""Apple's pfl: its simulated backend, algorithm, user state and central Gaussian mechanism; sparse item deltas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import FederatedAlgorithm
from pfl.common_types import Population
from pfl.context import CentralContext
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.user_state import InMemoryUserStateStorage
from pfl.hyperparam.base import AlgorithmHyperParams, ModelHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.internal.ops.selector import set_framework_module
from pfl.metrics import Metrics
from pfl.model.base import Model
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism
from pfl.stats import TrainingStatistics
from torch import Tensor
from torch.nn import functional

from simulations.speed_peers.row_loop import local_rows, train_user
from simulations.speed_peers.work import Work


class RowStatistics(TrainingStatistics):  # type: ignore[misc]  # pfl has no types
    """A user's change of the item rows it touched, or, with `rows` None, a sum over users of the whole table.

    Args:
        rows: (n,) distinct item rows; None for the whole table.
        values: (n, dim), or (num_items, dim).
        num_items: length of the table.
    """

    def __init__(self, rows: Tensor | None, values: Tensor, num_items: int) -> None:
        self.rows, self.values, self.num_items = rows, values, num_items

    def __add__(self, other: RowStatistics) -> RowStatistics:
        """Add a user's rows to the sum so far, in place; pfl's aggregator computes `user + sum`."""
        total = other.as_table()
        if self.rows is None:
            total.values += self.values
        else:
            total.values.index_add_(0, self.rows, self.values)
        return total

    def __repr__(self) -> str:
        return f"RowStatistics({len(self.values)} of {self.num_items} rows)"

    def as_table(self) -> RowStatistics:
        """Return the same with the whole table."""
        if self.rows is None:
            return self
        table = torch.zeros(self.num_items, self.values.shape[1])
        return RowStatistics(None, table.index_add_(0, self.rows, self.values), self.num_items)

    @property
    def num_parameters(self) -> int:
        """Count the numbers held."""
        return self.values.numel()

    def get_weights(self) -> tuple[Tensor, list[Tensor]]:
        """Return what is public, and what is clipped and gets noise."""
        return torch.ones(1), [self.values]

    def from_weights(self, metadata: Tensor, weights: list[Tensor]) -> RowStatistics:
        """Return the same rows with other values."""
        return RowStatistics(self.rows, weights[0], self.num_items)


class ItemTable(Model):  # type: ignore[misc]  # pfl has no types
    """The shared item vectors."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = torch.from_numpy(vectors.copy())

    def apply_model_update(self, statistics: RowStatistics) -> tuple[ItemTable, Metrics]:
        """Add the averaged change."""
        self.vectors += statistics.as_table().values
        return self, Metrics()


class MatrixFactorisation(FederatedAlgorithm):  # type: ignore[misc]  # pfl has no types
    """One local epoch on a copy of the touched item rows and on the user's vector, which is user state."""

    def __init__(self, work: Work, train: Callable[[Tensor, Tensor, Tensor, Tensor, Work], Tensor]) -> None:
        super().__init__()
        self._work, self._train = work, train
        self._storage = InMemoryUserStateStorage()
        for user, vector in enumerate(torch.from_numpy(work.user_vectors.copy())):
            self._storage.save_state({"vector": vector}, str(user))

    def get_next_central_contexts(
        self,
        model: ItemTable,
        iteration: int,
        algorithm_params: AlgorithmHyperParams,
        model_train_params: ModelHyperParams,
        model_eval_params: ModelHyperParams | None = None,
    ) -> tuple[tuple[CentralContext, ...], ItemTable, Metrics]:
        """Ask for all users."""
        context = CentralContext(
            current_central_iteration=iteration,
            do_evaluation=False,
            cohort_size=self._work.num_users,
            population=Population.TRAIN,
            algorithm_params=algorithm_params,
            model_train_params=model_train_params,
            seed=int(self._get_seed()),
        )
        return (context,), model, Metrics()

    def simulate_one_user(
        self, model: ItemTable, user_dataset: Dataset, central_context: CentralContext
    ) -> tuple[RowStatistics, Metrics]:
        """Train one user."""
        items, labels = user_dataset.raw_data
        user = self._storage.load_state(user_dataset.user_id)["vector"]
        rows, places = local_rows(items)
        before = model.vectors[rows]
        table = before.clone()
        user = self._train(table, user, places, labels, self._work)
        self._storage.save_state({"vector": user}, user_dataset.user_id)
        return RowStatistics(rows, table - before, self._work.num_items), Metrics()

    def process_aggregated_statistics(
        self, central_context: CentralContext, aggregate_metrics: Metrics, model: ItemTable, statistics: RowStatistics
    ) -> tuple[ItemTable, Metrics]:
        """Average and move the item table."""
        statistics.values /= self._work.num_users
        updated: tuple[ItemTable, Metrics] = model.apply_model_update(statistics)
        return updated


def train_by_autograd(table: Tensor, user: Tensor, places: Tensor, labels: Tensor, work: Work) -> Tensor:
    """Run one local epoch with torch's autograd and SGD; `table` is moved in place, the moved user returned."""
    table.requires_grad_(True)
    user = user.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([table, user], lr=work.learning_rate)
    for start in range(0, len(places), work.batch_size):
        part = slice(start, start + work.batch_size)
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(table[places[part]] @ user, labels[part], reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    table.requires_grad_(False)
    return user.detach()


def train_by_hand(table: Tensor, user: Tensor, places: Tensor, labels: Tensor, work: Work) -> Tensor:
    """Do the same with the gradient by hand."""
    train_user(table, user, places, labels, work.batch_size, work.learning_rate)
    return user


class PflUsers:
    """pfl as its users write it: torch's autograd and SGD on the rows that a user touches.

    In its favour: a lean statistics class of touched rows, added up in place; no metrics; no evaluation.
    """

    train = staticmethod(train_by_autograd)

    def __init__(self, work: Work) -> None:
        """Make datasets, algorithm and backend."""
        set_framework_module(pytorch_ops)
        items, labels = torch.from_numpy(work.items), torch.from_numpy(work.labels)
        parts = [slice(start, stop) for start, stop in zip(work.indptr[:-1], work.indptr[1:], strict=True)]
        datasets = [Dataset([items[part], labels[part]], user_id=str(user)) for user, part in enumerate(parts)]
        self._next_user = 0

        def every_user_in_turn() -> int:
            user, self._next_user = self._next_user, (self._next_user + 1) % work.num_users
            return user

        mechanism = GaussianMechanism(work.clipping_norm, work.noise_multiplier) if work.private else None
        self._backend = SimulatedBackend(
            training_data=FederatedDataset(datasets.__getitem__, every_user_in_turn),
            val_data=None,
            postprocessors=[] if mechanism is None else [CentrallyAppliedPrivacyMechanism(mechanism)],
        )
        self._model = ItemTable(work.item_vectors)
        self._algorithm = MatrixFactorisation(work, self.train)

    def round(self) -> None:
        """Do one round: the steps of pfl's `FederatedAlgorithm.run`."""
        from pfl.algorithm.algorithm_utils import run_train_eval

        contexts, model, _ = self._algorithm.get_next_central_contexts(
            self._model, 0, AlgorithmHyperParams(), ModelHyperParams()
        )
        results: Any = run_train_eval(self._algorithm, self._backend, model, contexts)
        ((statistics, metrics),) = results
        self._algorithm.process_aggregated_statistics_from_all_contexts(
            ((contexts[0], statistics),), metrics, self._model
        )

    def item_vectors(self) -> np.ndarray:
        """Return the item table."""
        return self._model.vectors.numpy()

    def close(self) -> None:
        """Do nothing."""


class PflUsersByHand(PflUsers):
    """pfl with the gradient by hand: the fastest that its machinery leaves room for."""

    train = staticmethod(train_by_hand)
