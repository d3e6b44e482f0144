"""The payload codec: fewer bytes for what nodes upload and download, as a chain of stages.

    dense          nothing is changed: today's bytes
    touched_rows   rows of zeros are left out; lossless
    low_rank       a large table, less what its model predicts of it from other blocks, as two thin factors; biased
    int8           a byte a value, stochastic rounding; unbiased

A chain such as ("low_rank", "int8") passes what one stage makes on to the next. Where the codec works:

    upload         on a node's sum, after clipping and adding up, before it is sent; the server adds up what it decodes
    download       on the shared parameters that are broadcast; nodes train with what they decode, and metrics are of
                   it. The checkpoint keeps the parameters as they were before

Prediction: exact ALS sends K_i = sum p p' for every item, and b_i = sum p and c_i beside it; K_i is b_i b_i' / c_i and
a scatter around it, and the scatter alone is nearly of low rank. `low_rank` therefore codes a block less the prediction
that its model makes from the *decoded* other blocks, which both sides know, so an error there is not counted twice.

Draws (rounding, start of the iteration) follow from the key, stage and block: a repeated round sends the same bytes.

What arrives is checked before use: names, dtypes and greatest shapes are public (`wire`), a range stands where a length
depends on data; each stage then refuses parts that contradict each other. Finiteness and norm of the decoded sum are
checked where sums are checked.

Privacy:
    Unit user, add-or-remove. Under a plan the noise fits the sensitivity of *what the server adds up*. Decoding an
    encoded sum has no known sensitivity: scales, rounding and factors follow from all users at once, so adding one user
    can move every coordinate, and the length of `touched_rows` tells how many items were met. Uploads under a plan are
    therefore dense, and `chains.check_private_upload` refuses everything else. Downloads are computed from releases
    alone: post-processing, free under every plan. They change what nodes train on, so the noise key follows from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedrec.errors import ProtocolError
from fedrec.federated.chains import check_chain
from fedrec.federated.codecs.int8 import Int8
from fedrec.federated.codecs.low_rank import LowRank
from fedrec.federated.codecs.stage import Shape, Spec, Stage
from fedrec.federated.codecs.touched_rows import TouchedRows
from fedrec.randomness import Key

Prediction = Callable[[Mapping[str, Tensor]], Tensor]
"""What a model knows of one block from its other blocks."""


def spec_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return name -> dtype and shape."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


class Codec:
    """A chain of stages over named tensors, the same on both sides.

    Args:
        chain: names of stages, or ("dense",).
        rank: of `low_rank`.
        predictions: block name -> its prediction from blocks that have none; used where `low_rank` is in the chain.

    Example:
        >>> codec = Codec(("int8",))
        >>> spec = {"items": (torch.float32, (2, 64))}
        >>> parts = codec.encode({"items": torch.ones(2, 64)}, spec, Key.from_seed(0))
        >>> {name: tuple(part.shape) for name, part in parts.items()}
        {'items.codes': (2, 64), 'items.exponents': (2,)}
        >>> bool((codec.decode(parts, spec)["items"] == 1).all())
        True
    """

    def __init__(
        self, chain: Sequence[str] = ("dense",), rank: int = 16, predictions: Mapping[str, Prediction] | None = None
    ) -> None:
        """Keep the chain.

        Raises:
            ConfigError: for a chain that `check_chain` refuses.
        """
        check_chain(chain)
        made: dict[str, Stage] = {"touched_rows": TouchedRows(), "low_rank": LowRank(rank), "int8": Int8()}
        self.chain = tuple(chain)
        self._stages = tuple(made[name] for name in chain if name != "dense")
        self._predictions = predictions or {} if "low_rank" in chain else {}

    def wire(self, spec: Spec) -> dict[str, tuple[torch.dtype, Shape]]:
        """Return names, dtypes and allowed shapes of what is sent for tensors of `spec`; public."""
        sent: dict[str, tuple[torch.dtype, Shape]] = {}
        for name, (dtype, shape) in spec.items():
            sent |= _wire(self._stages_for(name), name, dtype, shape)
        return sent

    def encode(self, tensors: Mapping[str, Tensor], spec: Spec, key: Key) -> dict[str, Tensor]:
        """Return what is sent.

        Args:
            tensors: finite, of the names, dtypes and shapes of `spec`.
            spec: name -> dtype and shape.
            key: of the round and of who sends.

        Raises:
            ProtocolError: where a tensor is not as the spec says, holds NaN or infinity, or a stage can't hold it.

        Privacy:
            Not a release: under a plan, encode only what is public or released already, or with ("dense",).
        """
        if not self._stages:
            return dict(tensors)
        _check(tensors, spec)
        sent: dict[str, Tensor] = {}
        known: dict[str, Tensor] = {}
        for name in self._order(spec):
            (dtype, shape), stages = spec[name], self._stages_for(name)
            tensor = tensors[name]
            if name in self._predictions:
                tensor = tensor - self._predictions[name](known).to(dtype)
                _check_finite({name: tensor})
            parts = _encode(stages, name, tensor, shape, key)
            sent |= parts
            if self._predictions and name not in self._predictions:
                known[name] = _decode(stages, name, parts, dtype, shape)
        return sent

    def decode(self, parts: Mapping[str, Tensor], spec: Spec) -> dict[str, Tensor]:
        """Return the tensors that were encoded, as nearly as the chain keeps them.

        Args:
            parts: what arrived, of the names, dtypes and allowed shapes of `wire(spec)`.
            spec: as given to `encode`.

        Raises:
            ProtocolError: where parts contradict each other or hold values that no encoder sends.

        Privacy:
            Post-processing of what was sent. Values may still be infinite: the sum they become is checked, not they.
        """
        tensors: dict[str, Tensor] = {}
        for name in self._order(spec):
            dtype, shape = spec[name]
            tensor = _decode(self._stages_for(name), name, parts, dtype, shape)
            if name in self._predictions:
                tensor = tensor + self._predictions[name](tensors).to(dtype)
            tensors[name] = tensor
        return {name: tensors[name] for name in spec}

    def _order(self, spec: Spec) -> Iterator[str]:
        """Blocks that others are predicted from come first."""
        yield from (name for name in spec if name not in self._predictions)
        yield from (name for name in spec if name in self._predictions)

    def _stages_for(self, name: str) -> tuple[Stage, ...]:
        """Where there are predictions, their sources keep their rank: everything else leans on them."""
        if self._predictions and name not in self._predictions:
            return tuple(stage for stage in self._stages if stage.name != "low_rank")
        return self._stages


def _wire(stages: Sequence[Stage], name: str, dtype: torch.dtype, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
    if not stages:
        return {name: (dtype, shape)}
    stage, rest = stages[0], stages[1:]
    if not stage.applies(dtype, shape):
        return _wire(rest, name, dtype, shape)
    sent: dict[str, tuple[torch.dtype, Shape]] = {}
    for part, (part_dtype, part_shape) in stage.parts(dtype, shape).items():
        sent |= _wire(rest if part in stage.passed_on else (), f"{name}.{part}", part_dtype, part_shape)
    return sent


def _encode(stages: Sequence[Stage], name: str, tensor: Tensor, shape: Shape, key: Key) -> dict[str, Tensor]:
    if not stages:
        return {name: tensor}
    stage, rest = stages[0], stages[1:]
    if not stage.applies(tensor.dtype, shape):
        return _encode(rest, name, tensor, shape, key)
    sent: dict[str, Tensor] = {}
    kinds = stage.parts(tensor.dtype, shape)
    for part, values in stage.encode(tensor, shape, key.fold(stage.name, name)).items():
        sent |= _encode(rest if part in stage.passed_on else (), f"{name}.{part}", values, kinds[part][1], key)
    return sent


def _decode(
    stages: Sequence[Stage], name: str, parts: Mapping[str, Tensor], dtype: torch.dtype, shape: Shape
) -> Tensor:
    if not stages:
        return parts[name]
    stage, rest = stages[0], stages[1:]
    if not stage.applies(dtype, shape):
        return _decode(rest, name, parts, dtype, shape)
    own = {
        part: _decode(rest if part in stage.passed_on else (), f"{name}.{part}", parts, part_dtype, part_shape)
        for part, (part_dtype, part_shape) in stage.parts(dtype, shape).items()
    }
    try:
        return stage.decode(own, dtype, shape)
    except ProtocolError as error:
        raise ProtocolError(f"block {name!r}: {error}") from error


def _check(tensors: Mapping[str, Tensor], spec: Spec) -> None:
    found = spec_of(tensors)
    if found != dict(spec):
        raise ProtocolError(f"tensors are {found}, they must be {dict(spec)}; they come from another model")
    _check_finite(tensors)


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ProtocolError(f"{', '.join(broken)} hold NaN or infinite values; sums must be finite")
