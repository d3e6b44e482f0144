"""FedJAX: `for_each_client` with its jit backend, one compiled init, step and final for all users."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulations.speed_peers.work import Work

_SMALLEST_BATCH = 8


class JaxClients:
    """FedJAX as its users write it: the gradient of the loss by `jax.grad`, over the whole item table.

    In its favour: batches are padded to powers of two, so that a handful of shapes is compiled once; they lie on
    JAX's device before the clock starts; users come ordered by length; sums are added up by a donating jit function.
    """

    by_hand = False

    def __init__(self, work: Work) -> None:
        """Pad the batches, put them on the device and make the transformed functions."""
        import fedjax
        import jax
        import jax.numpy as jnp

        self._work = work
        order = [int(user) for user in np.argsort(work.lengths, kind="stable")]
        self._batches = [(user, [jax.device_put(batch) for batch in _batches(work, user)]) for user in order]
        self._users: dict[int, Any] = {user: jnp.asarray(work.user_vectors[user]) for user in order}
        self._table = jnp.asarray(work.item_vectors)
        step = _step_by_hand if self.by_hand else _step
        with fedjax.for_each_client_backend("jit"):
            self._clients = fedjax.for_each_client(
                lambda table, user: {"items": table, "user": user},
                lambda state, batch: step(state, batch, work.learning_rate),
                lambda table, state: _final(table, state, work),
            )
        self._add = jax.jit(lambda total, delta: total + delta, donate_argnums=0)
        self._noise_key = jax.random.key(0)

    def round(self) -> None:
        """Do one round."""
        import jax
        import jax.numpy as jnp

        total = jnp.zeros_like(self._table)
        clients = ((user, batches, self._users[user]) for user, batches in self._batches)
        for user, output in self._clients(self._table, clients):
            self._users[user] = output["user"]
            total = self._add(total, output["delta"])
        if self._work.noise_std:
            self._noise_key, key = jax.random.split(self._noise_key)
            total = total + self._work.noise_std * jax.random.normal(key, total.shape)
        self._table = (self._table + total / self._work.num_users).block_until_ready()

    def item_vectors(self) -> np.ndarray:
        """Return the item table."""
        return np.asarray(self._table)

    def close(self) -> None:
        """Do nothing."""


class JaxClientsByHand(JaxClients):
    """FedJAX with the gradient by hand: only touched rows move, in place, as the step donates its state.

    Faster than `jax.grad`, which fills and adds a gradient of the whole table at each step.
    """

    by_hand = True


def _batches(work: Work, user: int) -> list[dict[str, np.ndarray]]:
    """Return a user's batches, the last one padded to a power of two."""
    found = []
    first, last = int(work.indptr[user]), int(work.indptr[user + 1])
    for start in range(first, last, work.batch_size):
        num = min(work.batch_size, last - start)
        width = min(work.batch_size, max(_SMALLEST_BATCH, 1 << (num - 1).bit_length()))
        batch = {
            "items": np.zeros(width, np.int32),
            "labels": np.zeros(width, np.float32),
            "mask": (np.arange(width) < num).astype(np.float32),
        }
        batch["items"][:num] = work.items[start : start + num]
        batch["labels"][:num] = work.labels[start : start + num]
        found.append(batch)
    return found


def _step(state: dict[str, Any], batch: dict[str, Any], learning_rate: float) -> dict[str, Any]:
    import jax

    def loss(state: dict[str, Any]) -> Any:
        scores = state["items"][batch["items"]] @ state["user"]
        return (batch["mask"] * (jax.nn.softplus(scores) - batch["labels"] * scores)).sum()

    moved: dict[str, Any] = jax.tree_util.tree_map(lambda p, g: p - learning_rate * g, state, jax.grad(loss)(state))
    return moved


def _step_by_hand(state: dict[str, Any], batch: dict[str, Any], learning_rate: float) -> dict[str, Any]:
    import jax

    vectors, user = state["items"][batch["items"]], state["user"]
    change = -learning_rate * batch["mask"] * (jax.nn.sigmoid(vectors @ user) - batch["labels"])
    return {"items": state["items"].at[batch["items"]].add(change[:, None] * user), "user": user + change @ vectors}


def _final(table: Any, state: dict[str, Any], work: Work) -> dict[str, Any]:
    import jax.numpy as jnp

    delta = state["items"] - table
    if work.private:
        norm = jnp.sqrt((delta * delta).sum())
        delta = delta * jnp.minimum(1.0, work.clipping_norm / jnp.maximum(norm, 1e-12))
    return {"delta": delta, "user": state["user"]}
