"""`implicit`: centralised alternating least squares, the library to compare the closed form with."""

from __future__ import annotations

import numpy as np
import torch
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from simulations.speed_peers.work import ALS_DIM, ALS_REGULARIZATION, ALS_UNOBSERVED_WEIGHT, Work


class ImplicitExact:
    """One iteration over users and items with `implicit`'s exact (Cholesky) solver.

    Its objective has weight 1 on unobserved pairs; an observed pair gets 1 + 1 / unobserved_weight, which is ours up
    to a factor. Its regularisation does not grow with frequency; that makes no difference to the time. In its favour:
    the transposed matrix is ready before the clock starts, and its solver is called directly, with BLAS on one thread
    as it asks for.
    """

    use_cg = False

    def __init__(self, work: Work) -> None:
        """Make both matrices and the first factors."""
        train = work.train
        weights = np.full(len(train), 1 + 1 / ALS_UNOBSERVED_WEIGHT, dtype=np.float32)
        shape = (train.num_users, train.num_items)
        self._by_user = csr_matrix((weights, train.items.astype(np.int32), train.indptr.astype(np.int32)), shape)
        self._by_item = self._by_user.T.tocsr()
        with threadpool_limits(1, "blas"):
            self._model = AlternatingLeastSquares(
                factors=ALS_DIM,
                regularization=ALS_REGULARIZATION,
                use_cg=self.use_cg,
                num_threads=torch.get_num_threads(),
            )
        generator = np.random.default_rng(0)
        self._users = generator.normal(0, 0.1, (shape[0], ALS_DIM)).astype(np.float32)
        self._items = generator.normal(0, 0.1, (shape[1], ALS_DIM)).astype(np.float32)

    def round(self) -> None:
        """Do one iteration."""
        model, options = self._model, {"num_threads": self._model.num_threads}
        with threadpool_limits(1, "blas"):
            model.solver(self._by_user, self._users, self._items, model.regularization, **options)
            model.solver(self._by_item, self._items, self._users, model.regularization, **options)

    def item_vectors(self) -> np.ndarray:
        """Return the item table."""
        return self._items

    def close(self) -> None:
        """Do nothing."""


class ImplicitApproximate(ImplicitExact):
    """The same with its default solver, three conjugate-gradient steps from where it was: not an exact solve."""

    use_cg = True
