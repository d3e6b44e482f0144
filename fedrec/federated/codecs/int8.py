"""Int8: a byte a value, rounded at random so that nothing is lost on average."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedrec.errors import ProtocolError
from fedrec.federated.codecs.stage import Shape, Spec, greatest, length
from fedrec.randomness import Key

GROUP = 64
_NARROW = 8
_AT_ONCE = 2**14  # groups: a million values
# Exponents that an encoder sends: from the spacing of subnormal numbers to what holds half the largest number.
_EXPONENTS = {torch.float32: (-149, 121), torch.float64: (-1074, 1017)}


class Int8:
    """Stochastic rounding to 8 bits, with one power of two for every 64 values.

        codes      int8, the tensor's own shape: x ~ code 2^e, |code| <= 127
        exponents  int16 (n / 64,): the least e with max |x| <= 127 2^e in the group, in the tensor's C order

    A value between two grid points goes up with the probability of its place between them: E[decode(encode(x))] = x,
    and what lies on the grid stays exactly. The scale is a power of two, so that scaling rounds nothing. Draws are
    independent. Tables narrower than 8 columns and vectors (counts, means), which all rows lean on and which cost
    little, get 16-bit codes (|code| <= 32767).

    Privacy:
        Grid and rounding follow from all users at once: adding one can move every coordinate by a grid step. Refused
        for uploads under a privacy plan.

    Source:
        Alistarh et al., QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, 2017, section 3.1.
    """

    name = "int8"
    passed_on = ()

    def applies(self, dtype: torch.dtype, shape: Shape) -> bool:
        """Tell whether it holds floating-point numbers."""
        return dtype in _EXPONENTS

    def parts(self, dtype: torch.dtype, shape: Shape) -> Spec:
        """Return codes and exponents."""
        exact = all(isinstance(side, int) for side in shape)
        most = _num_groups(greatest(shape))
        return {
            "codes": (_code_type(shape), shape),
            "exponents": (torch.int16, (most if exact else range(most + 1),)),
        }

    def encode(self, tensor: Tensor, shape: Shape, key: Key) -> dict[str, Tensor]:
        """Return codes and exponents.

        Raises:
            ProtocolError: where a magnitude is beyond half the largest number of the dtype.
        """
        least, most = _EXPONENTS[tensor.dtype]
        code_type = _code_type(shape)
        largest_code = torch.iinfo(code_type).max
        if tensor.numel() and float(tensor.abs().max()) >= torch.finfo(tensor.dtype).max / 2:
            raise ProtocolError("a value is beyond half the largest number; int8 can't hold it: send it dense")
        groups = np.zeros((_num_groups(tuple(tensor.shape)), GROUP))
        groups.reshape(-1)[: tensor.numel()] = tensor.detach().cpu().contiguous().numpy().reshape(-1)
        exponents = _exponents(np.abs(groups).max(axis=1, initial=0.0), largest_code).clip(least, most)
        for number, start in enumerate(range(0, len(groups), _AT_ONCE)):
            part = slice(start, start + _AT_ONCE)
            uniforms = key.fold(number).uniforms(groups[part].size).reshape(-1, GROUP)
            groups[part] = _rounded(np.ldexp(groups[part], -exponents[part, None]), uniforms)
        codes = torch.from_numpy(groups.reshape(-1)[: tensor.numel()]).to(code_type).reshape(tensor.shape)
        return {"codes": codes, "exponents": torch.from_numpy(exponents.astype(np.int16))}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, shape: Shape) -> Tensor:
        """Return code x 2^exponent, exactly.

        Raises:
            ProtocolError: where there is not one exponent for every 64 codes, or a code or exponent out of range.
        """
        codes, exponents = parts["codes"], parts["exponents"].numpy().astype(np.int32)
        if len(exponents) != _num_groups(tuple(codes.shape)):
            raise ProtocolError(f"{len(exponents)} exponents stand beside {codes.numel()} codes; one for every {GROUP}")
        least, most = _EXPONENTS[dtype]
        if len(exponents) and not (least <= exponents.min() and exponents.max() <= most):
            raise ProtocolError(
                f"exponents reach from {exponents.min()} to {exponents.max()}, allowed is {least}..{most}"
            )
        if bool((codes == torch.iinfo(codes.dtype).min).any()):
            raise ProtocolError(f"a code is {torch.iinfo(codes.dtype).min}; no encoder sends it")
        groups = np.zeros((len(exponents), GROUP))
        groups.reshape(-1)[: codes.numel()] = codes.numpy().reshape(-1)
        values = np.ldexp(groups, exponents[:, None]).reshape(-1)[: codes.numel()]
        return torch.from_numpy(values).to(dtype).reshape(codes.shape)


def _code_type(shape: Shape) -> torch.dtype:
    """Return what a code is sent as; the width of a table is public, the number of its rows may not be."""
    return torch.int8 if len(shape) > 1 and length(shape[-1]) >= _NARROW else torch.int16


def _num_groups(shape: tuple[int, ...]) -> int:
    return -(-int(np.prod(shape, dtype=np.int64)) // GROUP)


def _exponents(largest: np.ndarray, largest_code: int) -> np.ndarray:
    """Return the least e with largest <= largest_code x 2^e; 0 for zero."""
    fraction, exponent = np.frexp(largest)  # largest = fraction 2^exponent, fraction in [.5, 1)
    bits = int(largest_code).bit_length()
    too_small = np.ldexp(fraction, bits) > largest_code
    return np.where(largest > 0, exponent - bits + too_small, 0).astype(np.int32)


def _rounded(values: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Round down, or up with the probability of the fraction; whole numbers stay, whatever was drawn."""
    below = np.floor(values)
    return np.asarray(below + (uniforms < values - below))
