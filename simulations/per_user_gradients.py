"""Speed of per-user gradients: the attention tower's, each user's apart, in every way there is, in one run.

    python -m simulations.per_user_gradients [--users 64] [--repeats 5] [--threads 1]

    one sum                the plain batched backward of `TwoTower`: nobody's gradient stands apart
    one by one, float64    `BoundedTwoTower`, as it is: a backward for each user, with nobody else in sight
    one by one, float32    the same in half the precision
    vmap, float64          `torch.func.vmap` of one user's gradient
    hooks, float64         Opacus' GradSampleModule: a backward over all users, each layer keeps the users apart

Under vmap and hooks a user's numbers round as the batch has it: no bound is proven there, see `one_by_one`.
All do the same: draw windows, dropout and negatives, and take the gradient of every tower parameter and of the item
rows that a user touches; d = 64, two blocks, window 50, 128 negatives, full histories, as many items as ML-1M has. For
the hooks item rows are inputs, so that no gradient of a whole table is ever made. Ways take turns; milliseconds a user,
median over the repeats, after one that does not count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pad_sequence

from fedrec.data.batches import UserBatch, make_batch
from fedrec.data.catalogue import Catalogue
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.models.bounded_two_tower import BoundedTwoTower, BoundedTwoTowerConfig
from fedrec.models.losses import sampled_loss
from fedrec.models.towers.dropout import Dropout
from fedrec.models.towers.history import Attention
from fedrec.models.two_tower import Examples, TwoTower
from fedrec.randomness import Key, user_keys

NUM_ITEMS, DIM, WINDOW, NUM_NEGATIVES = 3706, 64, 50, 128
KEY = Key.from_seed(0)

Gradients = dict[str, Tensor]
Shared = Mapping[str, Tensor]


class Float32(BoundedTwoTower):
    """`BoundedTwoTower` in float32."""

    precision = torch.float32


class Hooked(nn.Module):
    """The attention tower of layers that Opacus knows: what is a bare parameter there is a table here."""

    def __init__(self, config: BoundedTwoTowerConfig) -> None:
        """Make the layers."""
        super().__init__()
        tower = Attention(config.history, config.dim)
        self.start = nn.Embedding(1, config.dim)
        self.positions = nn.Embedding(config.history.window + 1, config.dim)
        self.blocks, self.norm = tower.blocks, tower.norm

    def forward(self, items: Tensor, draws: Tensor, probability: float) -> Tensor:
        """Encode (B, T, d) items; see `Attention.forward`."""
        dropout, width = Dropout(draws, probability), items.shape[1]
        first = self.start(torch.zeros(len(items), 1, dtype=torch.int64))
        places = self.positions(torch.arange(width).expand(len(items), width))
        values = dropout(torch.cat([first, items[:, 1:]], dim=1) * items.shape[2] ** 0.5 + places)
        for block in self.blocks:
            values = block(values, dropout)
        return self.norm(values)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Speed:
    """How fast one way was.

    Args:
        way: its name.
        seconds: of each repeat, for all users.
        num_users: how many.
    """

    way: str
    seconds: tuple[float, ...]
    num_users: int

    @property
    def milliseconds(self) -> float:
        """Return the median time of a user."""
        return 1e3 * statistics.median(self.seconds) / self.num_users


def world(num_users: int, length: int, num_items: int) -> UserBatch:
    """Return users with histories of one length, drawn uniformly."""
    draws = np.random.default_rng(0)
    ids = Vocabulary(np.arange(num_users))
    users = np.repeat(np.arange(num_users), length)
    items = draws.integers(0, num_items, len(users))
    interactions = Interactions(users, items, ids, Vocabulary(np.arange(num_items)), times=np.arange(len(users)))
    return make_batch(interactions, np.arange(num_users), user_keys(ids.ids))


def by_sum(model: BoundedTwoTower, shared: Shared, users: UserBatch) -> Gradients:
    """Return the gradient of all users together."""
    blocks = TwoTower(model.config).contribute(shared, {}, users, KEY)
    return {name: block.total for name, block in blocks.items()}  # type: ignore[attr-defined]


def by_one(model: BoundedTwoTower, shared: Shared, users: UserBatch) -> Gradients:
    """Return name -> (B, ...) minus the gradients of all users; of items and biases for the rows touched."""
    return {name: block.values for name, block in model.contribute(shared, {}, users, KEY).items()}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Inputs:
    """What batched ways work on: examples of B users, and the rows that each touches, padded with row 0.

    Args:
        examples: of all users.
        rows: (B, R) int64.
        items: (B, T) int64, where each input stands in `rows`.
        targets: (B, T) int64, the same of targets.
        negatives: (B, K) int64, the same of negatives.
    """

    examples: Examples
    rows: Tensor
    items: Tensor
    targets: Tensor
    negatives: Tensor


def inputs_of(model: BoundedTwoTower, shared: Shared, users: UserBatch) -> Inputs:
    """Draw what `BoundedTwoTower` draws and find the rows that each user touches."""
    examples = model._examples(users, len(shared["items"]), KEY)
    windows, negatives = examples.windows, examples.negatives
    ids = torch.cat([windows.items, windows.targets, negatives.items], dim=1)
    found = [torch.unique(own, return_inverse=True) for own in ids]
    width = windows.items.shape[1]
    places = torch.stack([place for _, place in found])
    slots = torch.split(places, [width, width, negatives.items.shape[1]], dim=1)
    return Inputs(examples, pad_sequence([rows for rows, _ in found], batch_first=True), *slots)


def by_vmap(model: BoundedTwoTower, shared: Shared, users: UserBatch) -> Gradients:
    """Return the same from `torch.func`."""
    at, config = inputs_of(model, shared, users), model.config
    examples, exact = at.examples, {name: tensor.double() for name, tensor in shared.items()}
    rows = {name: exact.pop(name)[at.rows] for name in ("items", "biases")}
    tower = Attention(config.history, config.dim).to("meta")
    assert examples.draws is not None

    def loss(rows: Gradients, own: Gradients, *given: Tensor) -> Tensor:
        items, targets, negatives, mask, draws, used, num_unmet = given
        table, biases = rows["items"], rows["biases"][:, 0]
        dropout = Dropout(draws, config.history.dropout)
        parameters = {name.removeprefix("history."): tensor for name, tensor in own.items()}
        queries = functional_call(tower, parameters, (table[items], None, dropout))
        positive = (queries * table[targets]).sum(dim=1) + biases[targets]
        negative = queries @ table[negatives].T + biases[negatives]
        losses = sampled_loss(config.loss, positive, negative, used[None], num_unmet)
        return torch.where(mask, losses, 0.0).sum() / (config.history.window + 1)

    slope = vmap(grad(loss, argnums=(0, 1)), in_dims=(0, None, *[0] * 7))
    drawn = (examples.windows.mask, examples.draws, examples.negatives.used, examples.negatives.num_unmet)
    of_rows, of_towers = slope(rows, exact, at.items, at.targets, at.negatives, *drawn)
    return {name: -gradient for name, gradient in {**of_rows, **of_towers}.items()}


def by_hooks(model: BoundedTwoTower, shared: Shared, users: UserBatch, dtype: torch.dtype) -> Gradients:
    """Return the same from the hooks of Opacus."""
    at, config = inputs_of(model, shared, users), model.config
    examples = at.examples
    rows = shared["items"].to(dtype)[at.rows].requires_grad_()
    biases = shared["biases"].to(dtype)[at.rows].requires_grad_()
    hooked = _hooked(config, shared, dtype)
    assert examples.draws is not None

    def of(table: Tensor, slots: Tensor) -> Tensor:
        return table.gather(1, slots[:, :, None].expand(-1, -1, table.shape[2]))

    queries = hooked(of(rows, at.items), examples.draws, config.history.dropout)
    positive = (queries * of(rows, at.targets)).sum(dim=2) + of(biases, at.targets)[:, :, 0]
    negative = queries @ of(rows, at.negatives).mT + of(biases, at.negatives).mT
    drawn = examples.negatives
    losses = sampled_loss(config.loss, positive, negative, drawn.used[:, None], drawn.num_unmet)
    loss = torch.where(examples.windows.mask, losses, 0.0).sum() / (config.history.window + 1)
    with warnings.catch_warnings():  # of its hooks, that no input of the first layer needs a gradient
        warnings.simplefilter("ignore")
        torch.autograd.backward(loss)
    names = {"history.start": "start.weight", "history.positions": "positions.weight"}
    found = {"items": rows.grad, "biases": biases.grad}
    own = dict(hooked._module.named_parameters())
    for name in shared:
        if name not in found:
            gradient = own[names.get(name, name.removeprefix("history."))].grad_sample
            found[name] = gradient[:, 0] if name == "history.start" else gradient
    return {name: -gradient for name, gradient in found.items() if gradient is not None}


def _hooked(config: BoundedTwoTowerConfig, shared: Shared, dtype: torch.dtype) -> GradSampleModule:
    """Return the tower under hooks, with the shared parameters."""
    with torch.device("meta"):
        tower = Hooked(config)
    names = {"start.weight": "history.start", "positions.weight": "history.positions"}
    values = {name: shared[names.get(name, f"history.{name}")].to(dtype) for name, _ in tower.named_parameters()}
    values["start.weight"] = values["start.weight"][None]
    tower.load_state_dict(values, assign=True)
    for parameter in tower.parameters():
        parameter.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GradSampleModule(tower, batch_first=True, loss_reduction="sum")


def ways(model: BoundedTwoTower, shared: Shared, users: UserBatch) -> dict[str, Callable[[], Gradients]]:
    """Return all ways to take the gradients of the same users on the same draws."""
    half = Float32(model.config)
    return {
        "one sum": lambda: by_sum(model, shared, users),
        "one by one, float64": lambda: by_one(model, shared, users),
        "one by one, float32": lambda: by_one(half, shared, users),
        "vmap, float64": lambda: by_vmap(model, shared, users),
        "hooks, float64": lambda: by_hooks(model, shared, users, torch.float64),
    }


def setting(
    num_users: int, window: int = WINDOW, dim: int = DIM, num_items: int = NUM_ITEMS, num_negatives: int = NUM_NEGATIVES
) -> tuple[BoundedTwoTower, Shared, UserBatch]:
    """Return a model, its parameters and users whose histories are longer than the window."""
    config = BoundedTwoTowerConfig.model_validate(
        {"dim": dim, "history": {"window": window}, "loss": {"name": "sampled_softmax", "num_negatives": num_negatives}}
    )
    model = BoundedTwoTower(config)
    shared = model.init(Catalogue(Vocabulary(np.arange(num_items))), KEY).shared
    return model, shared, world(num_users, window + 10, num_items)


def measure(num_users: int = 64, repeats: int = 5, **sizes: int) -> list[Speed]:
    """Time every way; they take turns."""
    found = ways(*setting(num_users, **sizes))
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats + 1):
        for name, take in found.items():
            start = time.perf_counter()
            take()
            seconds[name].append(time.perf_counter() - start)
    return [Speed(name, tuple(times[1:]), num_users) for name, times in seconds.items()]


def table(speeds: Sequence[Speed]) -> str:
    """Format what was measured."""
    first = speeds[0].milliseconds
    lines = [f"{'':22}{'ms a user':>12}{'spread':>10}{'ratio':>8}"]
    for speed in speeds:
        spread = 1e3 * (max(speed.seconds) - min(speed.seconds)) / speed.num_users
        lines.append(f"{speed.way:22}{speed.milliseconds:>12.2f}{spread:>10.2f}{speed.milliseconds / first:>8.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    speeds = measure(options.users, options.repeats)
    sys.stdout.write(f"{options.users} users, {options.threads} thread(s)\n{table(speeds)}\n")


if __name__ == "__main__":
    main()
