"""Promises of the record codecs: exact round trips, and nothing malformed is ever decoded."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord

from fedrec.errors import ProtocolError
from fedrec.flower.records import NUMPY_DTYPES, record_to_tensors, tensors_to_record

EXPECTED = {"items": (torch.float32, (4, 3)), "bias": (torch.float64, (4,)), "ids": (torch.int64, (2,))}


def tensors() -> dict[str, torch.Tensor]:
    """Make what `EXPECTED` describes."""
    return {
        "items": torch.arange(12, dtype=torch.float32).reshape(4, 3),
        "bias": torch.tensor([0.5, -1.0, float("inf"), float("nan")], dtype=torch.float64),
        "ids": torch.tensor([2**40, -1]),
    }


def changed(array: Array, data: bytes | None = None, stype: str | None = None) -> Array:
    """Copy an array with its bytes or codec replaced, as a hostile peer could."""
    return Array(array.dtype, array.shape, stype or array.stype, array.data if data is None else data)


def saved(values: np.ndarray, allow_pickle: bool = False) -> bytes:
    """Serialise as `numpy.save` does."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=allow_pickle)
    return buffer.getvalue()


def test_round_trip_keeps_values_dtypes_and_order() -> None:
    decoded = record_to_tensors(tensors_to_record(tensors()), EXPECTED)

    assert list(decoded) == list(EXPECTED)
    for name, tensor in tensors().items():
        assert decoded[name].dtype == tensor.dtype
        assert torch.equal(decoded[name].nan_to_num(7.0), tensor.nan_to_num(7.0))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_bytes_are_those_flower_writes_itself(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.full(shape, 3, dtype=dtype)

    record = tensors_to_record({"x": tensor})

    assert record["x"] == Array(tensor.numpy())
    assert torch.equal(record_to_tensors(record, {"x": (dtype, shape)})["x"], tensor)


def test_a_record_made_by_flower_is_read() -> None:
    record = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in tensors().items()})

    assert torch.equal(record_to_tensors(record, EXPECTED)["items"], tensors()["items"])


def test_transposed_and_attached_tensors_are_written_in_c_order() -> None:
    tensor = torch.arange(6.0, requires_grad=True).reshape(2, 3).T

    decoded = record_to_tensors(tensors_to_record({"x": tensor}), {"x": (torch.float32, (3, 2))})["x"]

    assert torch.equal(decoded, tensor)
    assert not decoded.requires_grad


def test_decoded_tensors_are_aligned_whatever_the_message_is() -> None:
    """Matrix products round by alignment: with numpy's, lists of two runtimes once differed by one near tie."""
    tensors = {f"t{size}": torch.arange(size, dtype=torch.float32) for size in range(1, 200)}
    expected = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    decoded = record_to_tensors(tensors_to_record(tensors), expected)
    assert {tensor.data_ptr() % 64 for tensor in decoded.values()} == {0}


def test_decoded_tensors_own_their_memory() -> None:
    record = tensors_to_record(tensors())
    first = record_to_tensors(record, EXPECTED)
    first["items"].zero_()

    assert torch.equal(record_to_tensors(record, EXPECTED)["items"], tensors()["items"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.bool])
def test_other_dtypes_are_refused_before_sending(dtype: torch.dtype) -> None:
    with pytest.raises(
        ProtocolError, match=r"'x' is torch\.\w+; allowed are torch.float32, torch.float64, torch.int64"
    ):
        tensors_to_record({"x": torch.zeros(2, dtype=dtype)})


def remove_bias(record: ArrayRecord) -> None:
    """Leave one array out."""
    del record["bias"]


def add_extra(record: ArrayRecord) -> None:
    """Send one array too many."""
    record["extra"] = record["bias"]


def rename_bias(record: ArrayRecord) -> None:
    """Send an array under another name."""
    record["biases"] = record.pop("bias")


def flatten_items(record: ArrayRecord) -> None:
    """Send the right number of values in another shape."""
    record["items"] = Array(np.zeros(12, np.float32))


def double_items(record: ArrayRecord) -> None:
    """Send another dtype."""
    record["items"] = Array(np.zeros((4, 3), np.float64))


def truncate_items(record: ArrayRecord) -> None:
    """Cut the last value."""
    record["items"] = changed(record["items"], data=record["items"].data[:-4])


def pad_items(record: ArrayRecord) -> None:
    """Append bytes."""
    record["items"] = changed(record["items"], data=record["items"].data + b"\0")


def empty_items(record: ArrayRecord) -> None:
    """Send no bytes at all."""
    record["items"] = changed(record["items"], data=b"")


def cut_header(record: ArrayRecord) -> None:
    """Cut inside the header."""
    record["items"] = changed(record["items"], data=record["items"].data[:40])


def pickled_items(record: ArrayRecord) -> None:
    """Send a pickled object array that calls itself float32."""
    record["items"] = changed(record["items"], data=saved(np.full((4, 3), object()), allow_pickle=True))


def raw_pickle(record: ArrayRecord) -> None:
    """Send something that is no numpy file."""
    record["items"] = changed(record["items"], data=b"\x80\x04\x95" + b"x" * 200)


def lie_about_shape(record: ArrayRecord) -> None:
    """Announce the right shape over a header with another, larger one."""
    record["items"] = changed(record["items"], data=saved(np.zeros((4000, 3), np.float32)))


def fortran_order(record: ArrayRecord) -> None:
    """Send the values column by column."""
    record["items"] = changed(record["items"], data=saved(np.asfortranarray(np.ones((4, 3), np.float32))))


def big_endian(record: ArrayRecord) -> None:
    """Send the bytes of each value the other way round."""
    record["items"] = changed(record["items"], data=saved(np.ones((4, 3), ">f4")))


def other_codec(record: ArrayRecord) -> None:
    """Announce another way of serialising."""
    record["items"] = changed(record["items"], stype="pickle")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_bias, r"missing \['bias'\], unexpected \[\]; allowed are exactly \['bias', 'ids', 'items'\]"),
        (add_extra, r"missing \[\], unexpected \['extra'\]"),
        (rename_bias, r"missing \['bias'\], unexpected \['biases'\]"),
        (flatten_items, r"'items' has shape \(12,\); allowed is \(4, 3\)"),
        (double_items, r"'items' has dtype 'float64'; allowed is 'float32'"),
        (truncate_items, r"'items' holds 44 bytes of values; shape \(4, 3\) of float32 takes exactly 48"),
        (pad_items, r"'items' holds 49 bytes"),
        (empty_items, r"'items' has the numpy header b''; allowed is"),
        (cut_header, r"'items' has the numpy header"),
        (pickled_items, r"'items' has the numpy header b\"\{'descr': '\|O'.*; allowed is .*<f4"),
        (raw_pickle, r"'items' has the numpy header b'\\x80"),
        (lie_about_shape, r"'items' has the numpy header .*\(4000, 3\)"),
        (fortran_order, r"'items' has the numpy header .*'fortran_order': True"),
        (big_endian, r"'items' has the numpy header .*>f4"),
        (other_codec, r"'items' is serialised as 'pickle'; allowed is 'numpy.ndarray'"),
    ],
)
def test_malformed_records_are_refused_with_what_was_found_and_what_is_allowed(
    damage: Callable[[ArrayRecord], None], message: str
) -> None:
    record = tensors_to_record(tensors())
    damage(record)

    with pytest.raises(ProtocolError, match=message):
        record_to_tensors(record, EXPECTED)


def test_another_kind_of_record_is_refused() -> None:
    with pytest.raises(ProtocolError, match="found a ConfigRecord"):
        record_to_tensors(ConfigRecord({"items": 1}), EXPECTED)


def test_messages_stay_short_whatever_a_peer_sends() -> None:
    record = ArrayRecord({f"{'x' * 10_000}{i}": Array(np.zeros(1)) for i in range(100)})

    with pytest.raises(ProtocolError) as caught:
        record_to_tensors(record, {})

    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_length_that_depends_on_data_may_be_any_that_is_allowed(num_rows: int) -> None:
    rows = torch.ones(num_rows, 3, dtype=torch.int8)
    decoded = record_to_tensors(tensors_to_record({"x": rows}), {"x": (torch.int8, (range(6), 3))})
    assert torch.equal(decoded["x"], rows)


@pytest.mark.parametrize("shape", [(6, 3), (2, 4), (6,), (), (1, 1, 3)])
def test_length_beyond_what_is_allowed_is_refused(shape: tuple[int, ...]) -> None:
    record = tensors_to_record({"x": torch.zeros(shape, dtype=torch.int8)})
    with pytest.raises(ProtocolError, match=r"allowed is \(0\.\.5, 3\)"):
        record_to_tensors(record, {"x": (torch.int8, (range(6), 3))})


@pytest.mark.parametrize("shape", [(4, 3), (-1, 3), (True, 3)])
def test_announced_shape_that_its_own_bytes_deny_is_refused(shape: tuple[int, ...]) -> None:
    record = tensors_to_record({"x": torch.zeros(2, 3, dtype=torch.int8)})
    record["x"] = Array(record["x"].dtype, shape, record["x"].stype, record["x"].data)
    with pytest.raises(ProtocolError, match="allowed is"):
        record_to_tensors(record, {"x": (torch.int8, (range(6), 3))})
