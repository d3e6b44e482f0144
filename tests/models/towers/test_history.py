"""History towers: no position sees what comes after it, nobody sees padding, one user is as in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from fedrec.models.towers.dropout import Dropout
from fedrec.models.towers.history import HistoryConfig, HistoryTower, _bucket, make_history
from fedrec.models.towers.towers import Towers
from fedrec.randomness import Key

KEY = Key.from_seed(0)
DIM, WINDOW = 8, 10
NAMES = ["attention", "gru", "lstm", "decayed", "none"]
QUIET = Dropout(None, 0.0)


def config_of(name: str, **settings: Any) -> HistoryConfig:
    return HistoryConfig(name=name, window=WINDOW, **settings)  # type: ignore[arg-type]


def tower_of(name: str, **settings: Any) -> HistoryTower:
    """Return a tower with parameters that are drawn, float64."""
    tower = make_history(config_of(name, **settings), DIM).double()
    for place, parameter in enumerate(tower.parameters()):
        draws = torch.randn(parameter.shape, generator=KEY.fold(place).torch_generator(), dtype=torch.float64)
        parameter.data = 0.5 * draws
    return tower


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, DIM, generator=KEY.fold("vectors", seed).torch_generator(), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_no_position_sees_items_or_gaps_after_it(name: str) -> None:
    gapped = name in ("attention", "gru", "lstm")
    tower, items = tower_of(name, time_gaps=gapped), vectors(3, 9)
    gaps = torch.randint(0, 10**6, (3, 9), generator=KEY.torch_generator())
    before = tower(items, gaps, QUIET)
    for place in range(1, 9):
        other, later = items.clone(), gaps.clone()
        other[:, place], later[:, place] = 100.0, 0
        after = tower(other, later, QUIET)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-12)
        assert name == "none" or (after[:, place:] != before[:, place:]).any(dim=-1).all(), "each position sees it"


@pytest.mark.parametrize("name", NAMES)
def test_position_0_sees_nothing_and_nothing_beyond_the_window_is_needed(name: str) -> None:
    tower, items = tower_of(name), vectors(3, WINDOW + 1)
    assert tower(items, None, QUIET).shape == (3, WINDOW + 1, DIM)
    first = tower(items[:, :1], None, QUIET)
    torch.testing.assert_close(first, tower(vectors(3, 1, seed=1), None, QUIET), rtol=0, atol=0)
    torch.testing.assert_close(first[0], first[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_one_user_is_encoded_as_in_a_batch_and_shorter_as_in_longer(name: str) -> None:
    tower, items = tower_of(name), vectors(4, 7)
    together = tower(items, None, QUIET)
    for user in range(4):
        torch.testing.assert_close(tower(items[user], None, QUIET), together[user])
    torch.testing.assert_close(tower(items[:, :3], None, QUIET), together[:, :3])
    assert tower(items[:0], None, QUIET).shape == (0, 7, DIM)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [{}, {"num_blocks": 1, "num_heads": 4, "feedforward": 3}], ids=["default", "other"])
def test_dropout_takes_as_many_draws_as_announced_and_no_two_alike(name: str, shape: dict[str, int]) -> None:
    tower = tower_of(name, **shape)
    taken = []

    class Counting(Dropout):
        def __call__(self, values: Tensor) -> Tensor:
            taken.append(values.shape[-1])
            return super().__call__(values)

    draws = torch.full((3, 5, tower.num_dropped), 255, dtype=torch.uint8)
    tower(vectors(3, 5), None, Counting(draws, 0.5))
    assert sum(taken) == tower.num_dropped


@pytest.mark.parametrize("name", ["attention", "gru", "lstm", "decayed"])
def test_dropout_reaches_the_encoding_and_its_draws_are_those_of_each_position(name: str) -> None:
    tower, items = tower_of(name), vectors(3, 6)
    draws = torch.randint(0, 256, (3, 6, tower.num_dropped), dtype=torch.uint8, generator=KEY.torch_generator())
    dropped = tower(items, None, Dropout(draws, 0.5))
    assert (dropped != tower(items, None, QUIET)).any(dim=-1)[:, 1:].all()
    torch.testing.assert_close(tower(items[:, :4], None, Dropout(draws[:, :4], 0.5)), dropped[:, :4])
    torch.testing.assert_close(tower(items[1], None, Dropout(draws[1], 0.5)), dropped[1])


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_cells_compute_what_the_networks_of_torch_do(name: str) -> None:
    tower, items = tower_of(name, num_blocks=2), vectors(3, 6)
    whole = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name](DIM, DIM, 2, batch_first=True).double()
    for parameter, own in zip(whole.parameters(), tower.cells.parameters(), strict=True):  # type: ignore[union-attr]
        parameter.data = own.data
    embedded = tower.embed(items, None, QUIET)  # type: ignore[operator]
    packed = pack_padded_sequence(embedded, torch.full((3,), 6), batch_first=True)
    wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(whole(packed)[0], batch_first=True)
    torch.testing.assert_close(tower(items, None, QUIET), tower.norm(wanted))  # type: ignore[operator]


def test_blocks_compute_what_the_encoder_of_torch_does() -> None:
    tower, items = tower_of("attention", num_blocks=2, num_heads=4, feedforward=3), vectors(3, 6)
    values = tower.embed(items, None, QUIET)  # type: ignore[operator]
    causal = torch.nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    for block in tower.blocks:  # type: ignore[union-attr]
        layer = torch.nn.TransformerEncoderLayer(
            DIM, 4, 3 * DIM, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
        )
        own = dict(block.named_parameters())
        names = {"self_attn.in_proj_": "projections.", "self_attn.out_proj.": "output.", "linear1.": "expand."}
        names |= {"linear2.": "contract.", "norm1.": "norm.", "norm2.": "norm_feedforward."}
        filled = {f"{to}{part}": own[f"{of}{part}"] for to, of in names.items() for part in ("weight", "bias")}
        values = functional_call(layer, filled, (values, causal))
    torch.testing.assert_close(tower(items, None, QUIET), tower.norm(values))  # type: ignore[operator]


def test_decayed_is_a_mean_whose_weights_fall_with_age() -> None:
    tower, items = tower_of("decayed", num_heads=2), vectors(6)
    rates = torch.exp(tower.rates)  # type: ignore[arg-type]
    for place in range(6):
        ages = torch.arange(place - 1, -1, -1).double()
        weights = torch.exp(-rates[:, None] * ages)
        means = weights / weights.sum(dim=1, keepdim=True) @ items[1 : place + 1] if place else torch.zeros(2, DIM)
        wanted = tower.mix(means.flatten().double()) + tower.start  # type: ignore[operator]
        torch.testing.assert_close(tower(items, None, QUIET)[place], wanted)


def test_gaps_fall_into_buckets_that_double() -> None:
    items = torch.zeros(1, DIM)
    for power in range(32):
        for gap, bucket in ((2**power, power + 1), (2 ** (power + 1) - 1, power + 1)):
            assert _bucket(torch.tensor([gap]), items).tolist() == [bucket], gap
    assert _bucket(torch.tensor([0, -5, 2**40, 2**63 - 1]), items).tolist() == [0, 0, 33, 33]
    assert _bucket(None, torch.zeros(2, 3, DIM)).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", ["attention", "gru", "lstm"])
def test_gaps_and_places_are_read(name: str) -> None:
    tower = tower_of(name, time_gaps=True)
    same = torch.zeros(4, 5, DIM, dtype=torch.float64)
    gaps = torch.tensor([0, 0, 1, 100, 10**7]).expand(4, 5)
    assert not torch.allclose(tower(same, gaps, QUIET), tower(same, None, QUIET))
    found = tower(same, None, QUIET)[0]
    assert not torch.allclose(found[1], found[2])


@pytest.mark.parametrize("name", NAMES)
def test_all_parameters_of_a_tower_start_finite_and_learn(name: str) -> None:
    towers = Towers(6, DIM, config_of(name), {}, "dot")
    start = towers.start(KEY, 0.02)
    assert all(torch.isfinite(tensor).all() and tensor.dtype == torch.float32 for tensor in start.values())
    leaves = {key: tensor.requires_grad_() for key, tensor in start.items() if key.startswith("history.")}
    parameters = {key.removeprefix("history."): tensor for key, tensor in leaves.items()}
    items = 0.02 * vectors(3, 6).float()
    found = functional_call(make_history(config_of(name), DIM), parameters, (items, None, QUIET))
    target = vectors(3, 6, seed=2).float()
    if leaves:
        slopes = torch.autograd.grad((found * target).sum(), list(leaves.values()))
        assert all(bool(slope.any()) for slope in slopes)


@pytest.mark.parametrize("name", ["decayed", "none"])
def test_gaps_are_refused_where_nothing_reads_them(name: str) -> None:
    with pytest.raises(ValueError, match="time_gaps is for attention, gru and lstm"):
        config_of(name, time_gaps=True)
