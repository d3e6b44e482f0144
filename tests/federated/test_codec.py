"""The payload codec as a chain: both sides agree, what arrives is checked, chains that make no sense are refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from fedrec.errors import ConfigError, ProtocolError
from fedrec.federated.chains import STAGES, check_chain, check_private_upload
from fedrec.federated.codec import Codec, spec_of
from fedrec.randomness import Key

KEY = Key.from_seed(3)
CHAINS = [chain for size in (1, 2, 3) for chain in itertools.combinations(STAGES, size)]
Tensors = dict[str, torch.Tensor]


def blocks(num_rows: int = 200, width: int = 130, dtype: torch.dtype = torch.float64) -> Tensors:
    """A sum as nodes send it: a table with empty rows, a narrow one, a vector, a single number and whole numbers."""
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(num_rows, width, generator=draw, dtype=dtype)
    table[::3] = 0.0
    return {
        "table": table,
        "counts": torch.rand(num_rows, 1, generator=draw, dtype=dtype) * 50,
        "mean": torch.randn(width, generator=draw, dtype=dtype),
        "users": torch.full((1,), 37.0, dtype=dtype),
        "whole": torch.arange(5),
    }


def fits(found: tuple[int, ...], allowed: tuple[int | range, ...]) -> bool:
    return len(found) == len(allowed) and all(
        side in wanted if isinstance(wanted, range) else side == wanted
        for side, wanted in zip(found, allowed, strict=True)
    )


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(200, 130), (0, 130), (1, 1), (200, 3), (3, 200)])
def test_what_is_sent_is_what_was_announced_and_decodes_to_the_same_kind(
    chain: tuple[str, ...], dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    tensors = blocks(*shape, dtype=dtype)
    codec, spec = Codec(chain, rank=4), spec_of(tensors)
    parts, wire = codec.encode(tensors, spec, KEY), codec.wire(spec)
    assert parts.keys() == wire.keys()
    for name, (part_dtype, allowed) in wire.items():
        assert parts[name].dtype == part_dtype and fits(tuple(parts[name].shape), allowed), name
    decoded = codec.decode(parts, spec)
    assert list(decoded) == list(tensors) and spec_of(decoded) == spec
    assert torch.equal(decoded["whole"], tensors["whole"]), "whole numbers are left alone"


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_zeros_stay_zeros(chain: tuple[str, ...]) -> None:
    tensors = {name: torch.zeros_like(tensor) for name, tensor in blocks().items()}
    codec, spec = Codec(chain, rank=4), spec_of(tensors)
    decoded = codec.decode(codec.encode(tensors, spec, KEY), spec)
    assert not any(bool(tensor.any()) for tensor in decoded.values())


@pytest.mark.parametrize("chain", [("dense",), ("touched_rows",)])
def test_lossless_chains_give_back_every_bit(chain: tuple[str, ...]) -> None:
    tensors = blocks()
    tensors["table"][1, :3] = torch.tensor([1e300, -5e-324, 1.7e308], dtype=torch.float64)
    spec = spec_of(tensors)
    parts = Codec(chain).encode(tensors, spec, KEY)
    decoded = Codec(chain).decode(parts, spec)
    assert all(torch.equal(decoded[name], tensor) for name, tensor in tensors.items())
    if chain == ("dense",):
        assert parts.keys() == tensors.keys() and all(parts[name] is tensors[name] for name in tensors)


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_same_key_gives_the_same_bytes(chain: tuple[str, ...]) -> None:
    tensors = blocks()
    one, two = (Codec(chain, rank=4).encode(tensors, spec_of(tensors), KEY) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_before_sending(chain: tuple[str, ...], value: float) -> None:
    tensors = blocks()
    tensors["mean"][3] = value
    with pytest.raises(ProtocolError, match="mean hold NaN or infinite"):
        Codec(chain, rank=4).encode(tensors, spec_of(tensors), KEY)


def test_tensors_of_another_model_are_refused() -> None:
    tensors = blocks()
    with pytest.raises(ProtocolError, match="another model"):
        Codec(("int8",)).encode(tensors, {**spec_of(tensors), "mean": (torch.float64, (7,))}, KEY)


def test_parts_that_contradict_each_other_name_their_block() -> None:
    codec, spec = Codec(("touched_rows", "int8")), spec_of(blocks())
    parts = codec.encode(blocks(), spec, KEY)
    with pytest.raises(ProtocolError, match=r"block 'table': .*row numbers stand beside"):
        codec.decode({**parts, "table.rows": parts["table.rows"][:-1]}, spec)
    with pytest.raises(ProtocolError, match=r"block 'table.values': .*exponents stand beside"):
        codec.decode({**parts, "table.values.exponents": parts["table.values.exponents"][:-1]}, spec)


def moments(num_users: int = 40, num_items: int = 64, dim: int = 16) -> Tensors:
    """Second moments, sums and counts of users who met some items, as exact ALS sends them."""
    draw = torch.Generator().manual_seed(1)
    users = torch.randn(num_users, dim, generator=draw, dtype=torch.float64) + 1
    met = (torch.rand(num_items, num_users, generator=draw) < 0.3).to(torch.float64)
    upper = torch.triu_indices(dim, dim)
    return {
        "item_grams": (met @ (users[:, upper[0]] * users[:, upper[1]])).to(torch.float32),
        "items": met @ users,
        "counts": met.sum(dim=1, keepdim=True),
    }


def from_sums(known: Tensors) -> torch.Tensor:
    sums, counts = known["items"], known["counts"].clamp(min=1)
    upper = torch.triu_indices(sums.shape[1], sums.shape[1])
    return sums[:, upper[0]] * sums[:, upper[1]] / counts


def test_prediction_leaves_the_low_rank_less_to_say() -> None:
    tensors = moments()
    spec = spec_of(tensors)

    def error(codec: Codec) -> float:
        decoded = codec.decode(codec.encode(tensors, spec, KEY), spec)
        return float((decoded["item_grams"] - tensors["item_grams"]).norm() / tensors["item_grams"].norm())

    plain, predicted = (error(Codec(("low_rank", "int8"), 4, p)) for p in ({}, {"item_grams": from_sums}))
    assert predicted < 0.7 * plain


def test_prediction_is_made_from_what_the_receiver_knows_so_that_its_errors_do_not_add() -> None:
    tensors = moments()
    tensors["item_grams"] = from_sums(tensors).to(torch.float32)
    spec = spec_of(tensors)
    seen: list[torch.Tensor] = []

    def predict(known: Tensors) -> torch.Tensor:
        seen.append(from_sums(known))
        return seen[-1]

    codec = Codec(("low_rank", "int8"), 1, {"item_grams": predict})
    codec.decode(codec.encode(tensors, spec, KEY), spec)
    assert torch.equal(seen[0], seen[1]), "sender and receiver predict the same, to the bit"
    assert not torch.equal(seen[0], from_sums(tensors)), "from the rounded sums"


def test_blocks_that_others_are_predicted_from_keep_their_rank() -> None:
    tensors = moments(num_items=64, dim=64)
    wire = Codec(("low_rank",), 1, {"item_grams": from_sums}).wire(spec_of(tensors))
    assert "items" in wire and "item_grams.left" in wire
    assert "items.left" in Codec(("low_rank",), 1).wire(spec_of(tensors))


def test_prediction_that_overflows_is_refused_before_sending() -> None:
    tensors = moments()
    tensors["items"][0] = 1e300
    with pytest.raises(ProtocolError, match="item_grams hold NaN or infinite"):
        Codec(("low_rank", "int8"), 1, {"item_grams": from_sums}).encode(tensors, spec_of(tensors), KEY)


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_every_order_of_the_stages_is_accepted_once(chain: tuple[str, ...]) -> None:
    check_chain(chain)
    if len(chain) > 1:
        with pytest.raises(ConfigError, match="out of order"):
            check_chain(chain[::-1])


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        ((), "unknown"),
        (("int4",), r"\['int4'\] is unknown; allowed are 'dense' or a chain of touched_rows, low_rank, int8"),
        (("dense", "int8"), "'dense' beside other stages"),
        (("dense", "dense"), "'dense' beside other stages"),
        (("int8", "int8"), "repeats"),
    ],
)
def test_chains_that_make_no_sense_are_refused(chain: tuple[str, ...], reason: str) -> None:
    for refuse in (check_chain, Codec):
        with pytest.raises(ConfigError, match=reason):
            refuse(chain)  # type: ignore[operator]


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_no_compressed_upload_passes_a_plan(chain: tuple[str, ...]) -> None:
    check_private_upload(("dense",))
    with pytest.raises(ConfigError, match=r"no known sensitivity.*federated.download_codec"):
        check_private_upload(chain)


def neighbour(tensors: Tensors) -> Tensors:
    """The same sum with one more user, who adds a vector of norm 1."""
    more = {name: tensor.clone() for name, tensor in tensors.items()}
    more["table"][5, :4] += 0.5
    return more


ENCODED: dict[str, Callable[[], Codec]] = {
    "int8": lambda: Codec(("int8",)),
    "low_rank+int8": lambda: Codec(("low_rank", "int8"), 4),
}


@pytest.mark.parametrize("name", ENCODED)
def test_one_user_moves_a_decoded_sum_by_more_than_the_clipping_norm(name: str) -> None:
    """Why plans refuse these uploads: noise for a clipping norm of 1 would not cover what one user does."""
    tensors, spec = blocks(), spec_of(blocks())
    tensors["table"] *= 100
    codec = ENCODED[name]()
    one, two = (codec.decode(codec.encode(t, spec, KEY), spec)["table"] for t in (tensors, neighbour(tensors)))
    assert float((one - two).norm()) > 1.0


def test_one_user_changes_the_length_of_a_touched_rows_message() -> None:
    """Why plans refuse it although it is lossless: lengths are seen by everybody on the way."""
    tensors, spec = blocks(), spec_of(blocks())
    more = {name: tensor.clone() for name, tensor in tensors.items()}
    more["table"][0, 0] = 1.0
    codec = Codec(("touched_rows",))
    lengths = [len(codec.encode(t, spec, KEY)["table.rows"]) for t in (tensors, more)]
    assert lengths[1] == lengths[0] + 1
