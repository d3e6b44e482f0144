"""Example level: DP-SGD of any module on its node, through Opacus' `PrivacyEngine`.

Unit: an interaction, one training row of the node. Adjacency: add or remove one. Trust: the node is trusted with its
own rows, nobody else is: noise is added here, in every step.

    sample    every row by itself with the public sampling_probability (Poisson)
    clip      each row's gradient over all trained parameters jointly, to L2 norm max_grad_norm
    noise     the sum + a Gaussian of std noise_multiplier x max_grad_norm on every coordinate, touched or not
    step      learning_rate x noisy sum / expected_batch_size, all public

Sensitivity: max_grad_norm, if the loss of a row follows from that row, the parameters and draws of its own alone; who
makes the module and the samples answers for that. A gradient with a non-finite entry adds nothing; an empty sample is
a step like any other. Released: all parameters after every step, whoever sees them, so they may be trained on. Epsilon
comes from the plan, never from Opacus: its accountant is only checked to have counted the steps of the plan.

Opacus clips in one of two ways, with the same result up to rounding: "ghost" takes norms without per-example gradients,
"hooks" makes a (examples, rows, dim) gradient of every table (`python -m simulations.example_level` times both).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from opacus import PrivacyEngine
from opacus.grad_sample import register_grad_sampler, register_norm_sampler
from opacus.grad_sample.embedding import compute_embedding_grad_sample
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fedrec.errors import PrivacyError
from fedrec.privacy.accounting import Event
from fedrec.privacy.noise import noisy
from fedrec.privacy.plan import PrivacyPlan
from fedrec.randomness import Key

Sample = tuple[Tensor, ...]
Mode = Literal["ghost", "hooks"]


@dataclass(frozen=True)
class NoisySteps:
    """The steps of one round at one node: public numbers only.

    Args:
        count: how many.
        noise_multiplier: noise std / max_grad_norm.
        sampling_probability: of each row in each step, in (0, 1].
        max_grad_norm: L2 bound on a row's gradient.
        expected_batch_size: what sums are divided by.

    Privacy:
        `count` Gaussian mechanisms of sensitivity max_grad_norm on Poisson samples of the rows.
    """

    count: int
    noise_multiplier: float
    sampling_probability: float
    max_grad_norm: float
    expected_batch_size: float

    @classmethod
    def of_round(cls, plan: PrivacyPlan, round: int, num_nodes: int) -> NoisySteps:
        """Take the steps of a round from the plan; a node expects its equal share of the declared interactions.

        Raises:
            PrivacyError: where the plan's unit is not an interaction, or the round is not in it.

        Privacy:
            Neither how many rows the node has nor how many were drawn is looked at.
        """
        if plan.unit != "interaction":
            raise PrivacyError(
                f"the plan's unit is {plan.unit!r}, steps over examples are for unit 'interaction'; clip whole users, "
                'or set privacy.unit = "interaction"'
            )
        event = plan.event_for_round(round)
        expected = plan.cohort_size_for_round(round) / num_nodes
        return cls(plan.steps_per_round, event.noise_multiplier, event.sampling_probability, plan.sensitivity, expected)


@dataclass
class ExampleDiagnostics:
    """What a simulation may log of a round at a node. Private: not covered by epsilon.

    Args:
        num_examples: rows drawn, over all steps.
        num_clipped: of these, gradients that were scaled down.
        num_zeroed: of these, gradients dropped for a non-finite entry.
        counted: the steps as Opacus' accountant counted them; public, unlike the rest.
    """

    num_examples: int = 0
    num_clipped: int = 0
    num_zeroed: int = 0
    counted: tuple[Event, ...] = ()


def rows(table: Tensor) -> nn.Embedding:
    """Make a trainable (num_rows, dim) table whose per-example gradient norms are cheap.

    Privacy:
        None of its own: it is an `nn.Embedding`, clipped and given noise as a whole.
    """
    return _Rows(table.shape[0], table.shape[1], _weight=table.clone())


def train(
    module: nn.Module,
    sample: Callable[[int], Sample],
    steps: NoisySteps,
    learning_rate: float,
    key: Key,
    max_examples: int = 4096,
    mode: Mode = "ghost",
) -> ExampleDiagnostics:
    """Train a module by noisy steps, in place.

    Args:
        module: float64; called with a sample, it returns the (examples,) loss of each row.
        sample: gives the Poisson sample of a step, from 0: tensors whose first dimension are the rows drawn.
        steps: how many, and how noisy.
        learning_rate: of the mean over the expected batch size.
        key: of noise alone, for this node and round; never used for two trainings that differ in anything.
        max_examples: rows whose gradients are taken at once; bounds memory, and changes nothing but rounding.
        mode: how Opacus clips.

    Returns:
        Private counts, for simulations.

    Raises:
        PrivacyError: where parameters are not float64 and finite, or Opacus did not do the planned steps.

    Privacy:
        See the top. Everything that follows from the module's parameters afterwards is covered; the samples, losses,
        gradients and counts are not.
    """
    _check(module)
    loader = DataLoader(_Samples(sample, steps.count), batch_size=None, generator=torch.Generator())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG turned off")  # noise is drawn by `noisy`
        warnings.filterwarnings("ignore", message="Full backward hook is firing")  # row numbers have no gradient
        private = _Private(module, loader, steps, learning_rate, key, mode)
        for batch in private.loader:
            private.step(batch, max_examples)
    private.check_steps(steps)
    return private.diagnostics


def _check(module: nn.Module) -> None:
    """Raise where training could not keep its promise, by what everybody may know."""
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float64:
            raise PrivacyError(f"parameter {name} is {parameter.dtype}; norms and sums of examples must be float64")
        if not bool(torch.isfinite(parameter).all()):
            raise PrivacyError(f"parameter {name} is not finite; training can't start there: see where it comes from")


class _Samples(Dataset[Sample]):
    """Step number -> Poisson sample, for the loader."""

    def __init__(self, sample: Callable[[int], Sample], count: int) -> None:
        self._sample, self._count = sample, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, step: int) -> Sample:
        return self._sample(step)


class _Reduced(nn.Module):
    """A criterion as Opacus wants it: the (examples,) losses as they are, or their sum."""

    reduction = "sum"

    def forward(self, losses: Tensor) -> Tensor:
        return losses if self.reduction == "none" else losses.sum()


class _Private:
    """What `PrivacyEngine.make_private` makes of a module, and how a step of it goes."""

    def __init__(
        self, module: nn.Module, loader: DataLoader[Sample], steps: NoisySteps, rate: float, key: Key, mode: Mode
    ) -> None:
        self._engine = PrivacyEngine(accountant="prv")
        self._module, self._optimizer, *criterion, self.loader = self._engine.make_private(
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=rate / steps.expected_batch_size),
            criterion=_Reduced(),
            data_loader=loader,
            noise_multiplier=steps.noise_multiplier,
            max_grad_norm=steps.max_grad_norm,
            loss_reduction="sum",  # Opacus divides by nothing: the learning rate does, and by public numbers
            poisson_sampling=False,  # the samples are Poisson samples already
            grad_sample_mode=mode,
        )
        self._ghost, self._loss = bool(criterion), criterion[0] if criterion else _Reduced()
        self._module.train()
        self._module.forbid_grad_accumulation()
        # of itself, Opacus would take 1 / len(loader) for the sampling probability
        count = self._engine.accountant.get_optimizer_hook_fn(sample_rate=steps.sampling_probability)
        self._optimizer.attach_step_hook(count)
        self._optimizer.add_noise = self._add_noise
        self._key, self._num_noisy = key, 0
        self.diagnostics = ExampleDiagnostics()

    def step(self, batch: Sample, max_examples: int) -> None:
        """Do one step; where the sample is taken in parts, noise goes on the sum of all."""
        device = self._optimizer.params[0].device
        parts = list(zip(*(torch.split(column.to(device), max_examples) for column in batch), strict=True))
        for index, part in enumerate(parts):
            self._accumulate(part)
            self._optimizer.signal_skip_step(index + 1 < len(parts))
            self._optimizer.step()
            self._optimizer.zero_grad()

    def check_steps(self, steps: NoisySteps) -> None:
        """Raise unless Opacus did what the plan says."""
        planned = ((steps.noise_multiplier, steps.sampling_probability, steps.count),)
        counted = tuple(self._engine.accountant.history)
        if self._num_noisy != steps.count or counted != planned:
            raise PrivacyError(
                f"Opacus counted {counted} and asked for noise {self._num_noisy} times, the plan has {planned}: "
                "nothing of this round may leave; fedrec needs opacus>=1.6,<1.7"
            )
        self.diagnostics.counted = counted

    def _accumulate(self, part: Sample) -> None:
        """Add the clipped gradients of some examples to the sum of the step, without those that are not finite."""
        if not len(part[0]):
            for parameter in self._optimizer.params:
                parameter.grad = torch.zeros_like(parameter)
                parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
            return
        self._loss(self._module(*part)).backward()
        norms = self._module.per_sample_gradient_norms if self._ghost else self._norms()
        finite = torch.isfinite(norms)
        if not bool(finite.all()):
            self.diagnostics.num_examples += int((~finite).sum())
            self.diagnostics.num_zeroed += int((~finite).sum())
            self._optimizer.zero_grad()
            self._accumulate(tuple(column[finite] for column in part))
            return
        self.diagnostics.num_examples += len(norms)
        self.diagnostics.num_clipped += int((norms > self._optimizer.max_grad_norm).sum())

    def _norms(self) -> Tensor:
        """Return the (examples,) joint norms of per-example gradients."""
        each = [torch.linalg.vector_norm(part.flatten(1), dim=1) for part in self._optimizer.grad_samples]
        joint: Tensor = torch.linalg.vector_norm(torch.stack(each), dim=0)
        return joint

    def _add_noise(self) -> None:
        """Stand in for Opacus' own: same std, but drawn as everywhere here, for simulations and deployments."""
        std = self._optimizer.noise_multiplier * self._optimizer.max_grad_norm
        for index, parameter in enumerate(self._optimizer.params):
            key = self._key.fold("step", self._num_noisy, index)
            total = parameter.summed_grad
            parameter.grad = noisy(total.detach().cpu(), std, key).to(total.device)
        self._num_noisy += 1


class _Rows(nn.Embedding):
    """An embedding with a norm of its own in Opacus: the registered one sorts all ids of a batch."""


@register_norm_sampler(_Rows)  # type: ignore[untyped-decorator]
def _norms_of_rows(layer: _Rows, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Return the norm of each example's gradient: rows that an example uses twice are added up first.

    Args:
        layer: the table.
        activations: [(B,) or (B, K) row numbers].
        backprops: (B,) or (B, K) + (dim,) gradients.
    """
    ids = activations[0].reshape(len(activations[0]), -1)
    gradients = backprops.reshape(*ids.shape, -1)
    squares = gradients.square().sum(dim=(1, 2))
    first = (ids[:, :, None] == ids[:, None, :]).to(torch.uint8).argmax(dim=2)  # where the same row comes first
    twice = (first != torch.arange(ids.shape[1], device=ids.device)).any(dim=1)
    if bool(twice.any()):
        index = first[twice][:, :, None].expand(-1, -1, gradients.shape[2])
        added = torch.zeros_like(gradients[twice]).scatter_add_(1, index, gradients[twice])
        squares[twice] = added.square().sum(dim=(1, 2))
    return {layer.weight: squares.sqrt() * (1 + 1e-12)}  # up: rounding may not hide that a gradient is too long


register_grad_sampler(_Rows)(compute_embedding_grad_sample)
