"""Turn named tensors into Flower array records, and checked records back into tensors.

The payload is what `numpy.save` writes, as in Flower itself, so every runtime carries it. Received bytes are
compared with the only header that is allowed; nothing a peer sent is evaluated or unpickled.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.common.constant import SType

from fedrec.errors import ProtocolError

NUMPY_DTYPES: Mapping[torch.dtype, np.dtype[np.generic]] = {
    torch.float32: np.dtype("<f4"),
    torch.float64: np.dtype("<f8"),
    torch.int64: np.dtype("<i8"),
    torch.int32: np.dtype("<i4"),
    torch.int16: np.dtype("<i2"),
    torch.int8: np.dtype("|i1"),
}
Shape = tuple[int | range, ...]
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER_START = len(_MAGIC) + 2  # two bytes of header length follow the magic


def tensors_to_record(tensors: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Serialise named tensors, with one copy of each tensor's memory.

    Args:
        tensors: name -> tensor of any shape, on any device, of a dtype in `NUMPY_DTYPES`.

    Returns:
        One `Array` per tensor, byte for byte what Flower makes of the same numpy array.

    Raises:
        ProtocolError: a tensor is of another dtype.

    Example:
        >>> record = tensors_to_record({"bias": torch.zeros(3)})
        >>> record_to_tensors(record, {"bias": (torch.float32, (3,))})
        {'bias': tensor([0., 0., 0.])}
    """
    return ArrayRecord({name: _encode(name, tensor) for name, tensor in tensors.items()})


def record_to_tensors(
    record: ArrayRecord | ConfigRecord | MetricRecord,
    expected: Mapping[str, tuple[torch.dtype, Shape]],
    copy: bool = True,
) -> dict[str, torch.Tensor]:
    """Check a received record against what is expected, all of it, and only then decode it.

    Args:
        record: what a peer sent.
        expected: name -> (dtype, shape): exactly these names must be there. A range in a shape holds all lengths that
            are allowed there; the array says which of them it has, and its header and bytes must agree.
        copy: give the tensors memory of their own, aligned as torch aligns: matrix products round by where a matrix
            lies; else they look at the record's immutable bytes and must not be written to.

    Returns:
        name -> tensor on the CPU, in the order of `expected`.

    Raises:
        ProtocolError: not an array record, or a name, dtype, shape, header or length is not as expected.
    """
    if not isinstance(record, ArrayRecord):
        raise ProtocolError(f"found a {type(record).__name__}, allowed is an ArrayRecord; the peer runs other code")
    _check_names(record, expected)
    places = {name: _check(name, record[name], *spec) for name, spec in expected.items()}
    return {name: _decode(record[name], expected[name][0], *place, copy) for name, place in places.items()}


def _encode(name: str, tensor: torch.Tensor) -> Array:
    if tensor.dtype not in NUMPY_DTYPES:
        allowed = ", ".join(map(str, NUMPY_DTYPES))
        raise ProtocolError(f"tensor {name!r} is {tensor.dtype}; allowed are {allowed}; convert it before sending")
    values = tensor.detach().cpu().contiguous().numpy()
    header = _header(values.dtype, values.shape)
    # join reads the array's own memory; numpy.save would fill and grow a buffer piece by piece.
    data = b"".join((header, values.reshape(-1).view(np.uint8).data))
    return Array(str(values.dtype), tuple(values.shape), str(SType.NUMPY), data)


def _check_names(record: ArrayRecord, expected: Mapping[str, object]) -> None:
    missing = sorted(expected.keys() - record.keys())
    unexpected = sorted(record.keys() - expected.keys())
    if missing or unexpected:
        raise ProtocolError(
            f"array names differ: missing {_some(missing)}, unexpected {_some(unexpected)};"
            f" allowed are exactly {_some(sorted(expected))}"
        )


def _check(name: str, array: Array, dtype: torch.dtype, allowed_shape: Shape) -> tuple[int, tuple[int, ...]]:
    """Check one array without decoding it; returns where its values start in `array.data`, and its shape."""
    wanted = NUMPY_DTYPES[dtype]
    if array.stype != SType.NUMPY:
        raise ProtocolError(f"array {name!r} is serialised as {_cut(array.stype)}; allowed is {str(SType.NUMPY)!r}")
    if array.dtype != str(wanted):
        raise ProtocolError(f"array {name!r} has dtype {_cut(array.dtype)}; allowed is {str(wanted)!r}")
    shape = tuple(array.shape)
    if not _fits(shape, allowed_shape):
        raise ProtocolError(f"array {name!r} has shape {_cut(array.shape)}; allowed is {_shown(allowed_shape)}")
    found = _header_text(array.data)
    allowed = _header_text(_header(wanted, shape))
    if found != allowed:
        raise ProtocolError(f"array {name!r} has the numpy header {_cut(found)}; allowed is {allowed!r}")
    offset = _header_end(array.data)
    length, wanted_length = len(array.data) - offset, math.prod(shape) * wanted.itemsize
    if length != wanted_length:
        raise ProtocolError(
            f"array {name!r} holds {length} bytes of values; shape {shape} of {wanted} takes exactly {wanted_length};"
            " the message was cut or padded"
        )
    return offset, shape


def _fits(shape: tuple[int, ...], allowed: Shape) -> bool:
    """Tell whether a shape a peer sent is whole numbers, each the one or one of those allowed."""
    return len(shape) == len(allowed) and all(
        type(side) is int and (side in wanted if isinstance(wanted, range) else side == wanted)
        for side, wanted in zip(shape, allowed, strict=True)
    )


def _shown(allowed: Shape) -> str:
    sides = [f"{side.start}..{side[-1]}" if isinstance(side, range) else str(side) for side in allowed]
    return f"({', '.join(sides)}{',' if len(sides) == 1 else ''})"


def _decode(array: Array, dtype: torch.dtype, offset: int, shape: tuple[int, ...], copy: bool) -> torch.Tensor:
    view: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = np.ndarray(
        shape, NUMPY_DTYPES[dtype], buffer=array.data, offset=offset
    )
    with warnings.catch_warnings():  # torch warns of read-only memory; so does the docstring
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(view)
    return tensor.clone() if copy else tensor


def _header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """Make the header `numpy.save` would write for a C-ordered array."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    )
    return buffer.getvalue()


def _header_end(data: bytes) -> int:
    return _HEADER_START + int.from_bytes(data[_HEADER_START - 2 : _HEADER_START], "little")


def _header_text(data: bytes) -> bytes:
    """Cut the dictionary text out of a header; the padding behind it depends on numpy's version."""
    if not data.startswith(_MAGIC):
        return data[: _HEADER_START + 64]
    return data[_HEADER_START : _header_end(data)].strip()


def _cut(value: object) -> str:
    """Show a value a peer sent, at a length that cannot flood a log."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _some(names: list[str]) -> str:
    shown = ", ".join(_cut(name) for name in names[:5])
    return f"[{shown}, and {len(names) - 5} more]" if len(names) > 5 else f"[{shown}]"
