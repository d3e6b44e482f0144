"""Example level: a step is the clipped sum of the drawn examples plus noise on every row, over public numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedrec.errors import PrivacyError
from fedrec.privacy.example_level import ExampleDiagnostics, Mode, NoisySteps, Sample, rows, train
from fedrec.privacy.noise import noisy
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.randomness import Key

KEY = Key.from_seed(0)
LR, EXPECTED, NORM = 0.5, 7.0, 0.8
NUM_USERS, NUM_ITEMS, DIM = 5, 6, 3
MODES: tuple[Mode, ...] = ("ghost", "hooks")
both_modes = pytest.mark.parametrize("mode", MODES)


class Pairs(nn.Module):
    """The loss of an example: a user's scores for some items, which may repeat, against 1, 2, 3 ..."""

    def __init__(self, users: Tensor, items: Tensor, weight: float = 1.0) -> None:
        super().__init__()
        self.users, self.items, self.weight = rows(users), rows(items), weight

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        scores = (self.items(items) * self.users(users)[:, None]).sum(dim=2)
        return self.weight * (scores - torch.arange(1, items.shape[1] + 1)).square().sum(dim=1)


def tables(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((NUM_USERS, DIM), (NUM_ITEMS, DIM))
    users, items = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return users, items


def examples(num: int, seed: int = 0, width: int = 4) -> Sample:
    """Draw examples; with four items of six, nearly every example has one twice."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(NUM_USERS, (num,), generator=generator)
    return users, torch.randint(NUM_ITEMS, (num, width), generator=generator)


def steps_of(count: int = 1, noise: float = 1.0, probability: float = 0.1, norm: float = NORM) -> NoisySteps:
    return NoisySteps(count, noise, probability, norm, EXPECTED)


def trained(
    sample: Callable[[int], Sample],
    steps: NoisySteps,
    start: tuple[Tensor, Tensor] | None = None,
    key: Key = KEY,
    mode: Mode = "ghost",
    max_examples: int = 4096,
    weight: float = 1.0,
) -> tuple[Tensor, Tensor, ExampleDiagnostics]:
    module = Pairs(*(start or tables()), weight)
    diagnostics = train(module, sample, steps, LR, key, max_examples, mode)
    return module.users.weight.detach(), module.items.weight.detach(), diagnostics


def clipped_sum(start: tuple[Tensor, Tensor], sample: Sample, norm: float) -> tuple[Tensor, Tensor]:
    """Sum the clipped gradients by hand: one example after the other, dense, without Opacus."""
    totals = tuple(torch.zeros_like(table) for table in start)
    for user, items in zip(*sample, strict=True):
        own = [table.clone().requires_grad_() for table in start]
        scores = own[1][items] @ own[0][user]
        (scores - torch.arange(1, len(items) + 1)).square().sum().backward()  # type: ignore[no-untyped-call]
        gradients = [table.grad if table.grad is not None else torch.zeros_like(table) for table in own]
        length = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient * min(1.0, norm / (length + 1e-6))  # Opacus' own small constant
    return totals[0], totals[1]


@both_modes
@pytest.mark.parametrize("norm", [0.05, 3.0, 1e6], ids=["all clipped", "some clipped", "none clipped"])
@pytest.mark.parametrize("num", [1, 40])
def test_a_step_is_the_clipped_sum_plus_noise_over_the_expected_batch(mode: Mode, norm: float, num: int) -> None:
    start, sample = tables(), examples(num)
    steps = steps_of(norm=norm)
    *found, _ = trained(lambda step: sample, steps, mode=mode)
    for index, (before, after, total) in enumerate(zip(start, found, clipped_sum(start, sample, norm), strict=True)):
        noise = noisy(total, steps.noise_multiplier * norm, KEY.fold("step", 0, index)) - total
        expected = before - LR / EXPECTED * (total + noise)
        # the noisy sum is rounded to a grid of std / 2^20
        assert torch.allclose(after, expected, rtol=1e-9, atol=2 * LR / EXPECTED * norm / 2**20)


@both_modes
def test_the_divisor_is_not_the_realised_batch(mode: Mode) -> None:
    moves = {}
    for num in (1, 9):
        one = examples(1)
        sample = tuple(column.repeat_interleave(num, dim=0) for column in one)
        *after, _ = trained(lambda step, sample=sample: sample, steps_of(noise=1e-7), mode=mode)
        moves[num] = after[1] - tables()[1]
    assert torch.allclose(moves[9], 9 * moves[1], atol=1e-6)


@both_modes
@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e3, 1e9, 1e50, 1e120])
def test_one_example_moves_all_parameters_jointly_by_at_most_the_norm(mode: Mode, weight: float) -> None:
    """Adversarial: gradients from tiny to astronomical, rows used twice, and all of an example's rows the same."""
    users, items = examples(12)
    items[0] = items[0, 0]
    reached = 0.0
    for out in range(12):
        kept = torch.arange(12) != out
        samples = ((users, items), (users[kept], items[kept]))
        one, other = (
            trained(lambda step, sample=sample: sample, steps_of(noise=1e-6), mode=mode, weight=weight)[:2]
            for sample in samples
        )
        move = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True)))
        reached = max(reached, move * EXPECTED / LR)
    assert reached <= NORM * (1 + 1e-9) + 1e-10  # the noise is the same and rounds to a grid of 1e-12
    assert reached > 0.99 * NORM or weight < 1, "the bound is met, so the test could see it passed"


@both_modes
def test_an_empty_sample_is_a_noisy_step_and_noise_goes_on_every_row(mode: Mode) -> None:
    start = (torch.zeros(400, 20, dtype=torch.float64), torch.ones(300, 20, dtype=torch.float64))
    *after, diagnostics = trained(lambda step: examples(0), steps_of(count=2, noise=1.5), start, mode=mode)
    assert diagnostics.num_examples == 0
    for before, table in zip(start, after, strict=True):
        noise = (table - before) * EXPECTED / LR
        std = 1.5 * NORM * math.sqrt(2)
        assert float(noise.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * noise.numel()))
        assert abs(float(noise.mean())) < 5 * std / math.sqrt(noise.numel())
        assert (noise.abs().sum(dim=1) > 0).all()


@both_modes
@pytest.mark.parametrize("poison", [1e200, 1e308])
def test_examples_without_a_finite_gradient_add_nothing(mode: Mode, poison: float) -> None:
    users, items = examples(30)
    start = tables()
    start[0][2] = poison
    bad = users == 2
    assert 0 < int(bad.sum()) < 30
    *found, diagnostics = trained(lambda step: (users, items), steps_of(), start, mode=mode)
    *expected, _ = trained(lambda step: (users[~bad], items[~bad]), steps_of(), start, mode=mode)
    assert diagnostics.num_zeroed == int(bad.sum()) and diagnostics.num_examples == 30
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all() and torch.allclose(one, other, rtol=0, atol=1e-12)


@both_modes
def test_a_sample_of_nothing_but_broken_examples_is_an_empty_one(mode: Mode) -> None:
    start = tables()
    start[0][:] = 1e300
    *found, diagnostics = trained(lambda step: examples(10), steps_of(), start, mode=mode)
    *expected, _ = trained(lambda step: examples(0), steps_of(), start, mode=mode)
    assert diagnostics.num_zeroed == 10
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@both_modes
@pytest.mark.parametrize("max_examples", [1, 4, 7])
def test_a_sample_taken_in_parts_is_the_same_step_with_the_same_noise(mode: Mode, max_examples: int) -> None:
    def sample(step: int) -> Sample:
        return examples(21, seed=step)

    *whole, counts = trained(sample, steps_of(count=3), mode=mode)
    *parts, others = trained(sample, steps_of(count=3), mode=mode, max_examples=max_examples)
    assert counts == others and counts.num_examples == 63
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)  # a sum that rounds otherwise may fall into another cell


def test_ghost_clipping_and_hooks_are_the_same_training() -> None:
    ghost, hooks = (trained(lambda step: examples(25, seed=step), steps_of(count=4), mode=mode) for mode in MODES)
    assert ghost[2] == hooks[2] and 0 < ghost[2].num_clipped <= 100
    for one, other in zip(ghost[:2], hooks[:2], strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5)


def test_noise_differs_between_steps_tables_and_keys() -> None:
    def noise_of(key: Key, count: int) -> list[Tensor]:
        start = (torch.zeros(8, DIM, dtype=torch.float64), torch.zeros(8, DIM, dtype=torch.float64))
        *after, _ = trained(lambda step: examples(0), steps_of(count=count), start, key)
        return after

    (users, items), (users_2, _), (other, _) = noise_of(KEY, 1), noise_of(KEY, 2), noise_of(KEY.fold(1), 1)
    second = users_2 - users
    every = [users, items, second, other]
    for index, one in enumerate(every):
        assert all(not torch.allclose(one, another) for another in every[index + 1 :])
    again = noise_of(KEY, 1)
    assert torch.equal(again[0], users) and torch.equal(again[1], items)


def test_a_key_of_the_system_draws_noise_of_the_same_size_that_nobody_can_repeat() -> None:
    start = (torch.zeros(40, 10, dtype=torch.float64), torch.zeros(40, 10, dtype=torch.float64))
    keys = (Key.from_system_entropy(), Key.from_system_entropy())
    (one, *_), (other, *_) = (trained(lambda step: examples(0), steps_of(), start, key) for key in keys)
    assert not torch.equal(one, other)
    for table in (one, other):
        assert float(table.std()) * EXPECTED / LR == pytest.approx(NORM, rel=5 / math.sqrt(800))


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    trained(lambda step: examples(3), steps_of(count=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # type: ignore[index]


def plan_of(noise: float, probability: float, num_rounds: int, steps: int, delta: float = 1e-6) -> PrivacyPlan:
    events = (PrivacyEvent(noise, probability, num_rounds * steps),)
    claim = {"trust_model": "local", "unit": "interaction"}
    return PrivacyPlan(events, delta, NORM, 10_000, **claim, steps_per_round=steps)


@pytest.mark.parametrize(("noise", "probability"), [(1.0, 0.1), (3.0, 1.0)])
def test_the_accountant_that_opacus_attached_agrees_with_the_plan(noise: float, probability: float) -> None:
    from opacus.accountants import PRVAccountant

    plan = plan_of(noise, probability, num_rounds=5, steps=4)
    accountant = PRVAccountant()
    for round_number in range(1, 6):
        steps = NoisySteps.of_round(plan, round_number, num_nodes=3)
        diagnostics = trained(lambda step: examples(2, seed=step), steps)[2]
        for counted in diagnostics.counted:
            accountant.history.append(counted)
    found = accountant.get_epsilon(plan.delta, eps_error=0.05)
    assert found == pytest.approx(plan.epsilon, rel=0.01, abs=0.05)


def test_the_steps_of_a_round_follow_from_public_numbers() -> None:
    steps = NoisySteps.of_round(plan_of(1.2, 0.05, num_rounds=2, steps=9), 2, num_nodes=4)
    assert steps == NoisySteps(9, 1.2, 0.05, NORM, 0.05 * 10_000 / 4)


def test_a_plan_over_users_is_refused() -> None:
    plan = PrivacyPlan((PrivacyEvent(1.0, 1.0, 2),), 1e-5, 1.0, 100)
    with pytest.raises(PrivacyError, match="unit is 'user'"):
        NoisySteps.of_round(plan, 1, 1)


def test_tables_that_are_not_finite_or_not_float64_are_refused() -> None:
    users, items = tables()
    with pytest.raises(PrivacyError, match="float64"):
        trained(lambda step: examples(1), steps_of(), (users.float(), items))
    items[0, 0] = math.nan
    with pytest.raises(PrivacyError, match="not finite"):
        trained(lambda step: examples(1), steps_of(), (users, items))


@pytest.mark.parametrize("fault", ["noise", "count"])
def test_nothing_is_returned_where_opacus_did_other_steps(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of Opacus that drew its noise elsewhere, or forgot to count a step, must not go unnoticed."""
    from opacus.optimizers import DPOptimizerFastGradientClipping as Optimizer

    def other_step(optimizer: Optimizer, closure: None = None) -> bool:
        optimizer.accumulate()
        if fault == "noise":
            for parameter in optimizer.params:
                parameter.grad = parameter.summed_grad
            optimizer.step_hook(optimizer)
        else:
            optimizer.add_noise()
        return True

    monkeypatch.setattr(Optimizer, "pre_step", other_step)
    with pytest.raises(PrivacyError, match="nothing of this round may leave"):
        trained(lambda step: examples(3), steps_of())
