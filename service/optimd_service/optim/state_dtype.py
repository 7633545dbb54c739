"""Which buffers of an optimizer's state are kept in which format, what they cost, and the tensors they lie in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from optimd_service.errors import InvalidField
from optimd_service.optim import bfloat16_buffer, eight_bit_buffer
from optimd_service.optim.bfloat16_buffer import BFloat16Buffer
from optimd_service.optim.catalogue import FLOAT32_BYTES
from optimd_service.optim.eight_bit_buffer import EightBitBuffer, scales_of
from optimd_service.optim.hyperparameters import LONGEST_NAME_SHOWN, Hyperparameters
from optimd_service.optim.optimizer import Optimizer
from optimd_service.optim.state_buffer import CompressedBuffer

StateDtype = Literal["f32", "bf16", "8bit"]

NON_NEGATIVE = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "exp_inf"})
"""Buffers that hold no negative number: eight bits have no sign there."""

MEANS = NON_NEGATIVE | {"exp_avg", "exp_avg_diff", "momentum_buffer", "grad_avg"}
"""Buffers that ``8bit`` keeps in eight bits."""

IN_TWO_BYTES_AT_LEAST = frozenset({"exp_avg_slow", "neg_pre_grad"})
"""Buffers that ``8bit`` keeps in bfloat16.

In a mean over 10⁴ steps, what eight bits round off at every step would outgrow what each step brings; a difference of
gradients is smaller than what eight bits get wrong of each.
"""

_BYTES: Mapping[StateDtype, float] = {
    "f32": FLOAT32_BYTES,
    "bf16": bfloat16_buffer.BYTES,
    "8bit": eight_bit_buffer.BYTES,
}


class Stored(NamedTuple):
    """A tensor that a buffer lies in: [length], dtype. It begins zeroed."""

    length: int
    dtype: torch.dtype


def format_of(name: str, state_dtype: StateDtype) -> StateDtype:
    """The format of the buffer of this name; what is not a running mean stays in float32.

    Copies of weights (``z``, ``p0``, ``ax``) and step sizes lose in two bytes what weights would lose.
    """
    if name in MEANS:
        return state_dtype
    return "bf16" if name in IN_TWO_BYTES_AT_LEAST and state_dtype != "f32" else "f32"


def bytes_per_parameter(optimizer: Optimizer[Any], hyper: Hyperparameters, state_dtype: StateDtype) -> float:
    """Bytes of state for every parameter of an element-wise optimizer.

    AdamW: 8 in f32, 4 in bf16, 2.03125 in 8bit. At most one more scale a group and buffer comes on top.
    """
    return sum(_BYTES[format_of(name, state_dtype)] for name in optimizer.state(hyper))


def require_state_dtype(optimizer: Optimizer[Any], state_dtype: str, dtype: torch.dtype) -> StateDtype:
    """``state_dtype`` of a session that is to be created, once it is known to go with optimizer and weights.

    Args:
      dtype: of the weights.

    Raises: InvalidField, naming ``state_dtype`` and what to send instead.
    """
    for known in get_args(StateDtype):
        if state_dtype == known:
            _require_compressible(optimizer, known, dtype)
            return known  # type: ignore[no-any-return]  # get_args forgets that these are the Literal's own
    shown = state_dtype[:LONGEST_NAME_SHOWN]
    raise InvalidField(f"There is no state_dtype '{shown}'; there are f32, bf16, 8bit.", field="state_dtype")


def _require_compressible(optimizer: Optimizer[Any], state_dtype: StateDtype, dtype: torch.dtype) -> None:
    if state_dtype == "f32":
        return
    if dtype is not torch.float32:
        raise InvalidField("State in fewer bytes goes with F32 tensors; send state_dtype f32.", field="state_dtype")
    if not compressible(optimizer):
        detail = f"{optimizer.name} does not take each parameter by itself, and keeps its state in float32: send f32."
        raise InvalidField(detail, field="state_dtype")


def compressible(optimizer: Optimizer[Any]) -> bool:
    """Whether the optimizer goes over a group once, element by element, as compressed state asks for."""
    return optimizer.shapes is None and optimizer.survey_ is None


def tensors_of(name: str, lengths: Sequence[int], state_dtype: StateDtype) -> dict[str, Stored]:
    """The flat tensors that one buffer of a session lies in, all groups behind one another.

    Args:
      name: of the buffer.   lengths: elements of each group, in layout order.

    Returns: name → tensor; of the buffer's own name where one is enough, else of ``name.codes`` and ``name.scales``.
    """
    total = sum(lengths)
    match format_of(name, state_dtype):
        case "8bit":
            scales = sum(map(scales_of, lengths))
            return {f"{name}.codes": Stored(total, torch.uint8), f"{name}.scales": Stored(scales, torch.float32)}
        case "bf16":
            return {name: Stored(total, torch.bfloat16)}
        case _:
            return {name: Stored(total, torch.float32)}


def buffers_of(
    name: str, lengths: Sequence[int], state_dtype: StateDtype, tensors: Mapping[str, Tensor]
) -> Iterator[CompressedBuffer | Tensor]:
    """One buffer of a session, group by group, as views of the tensors that ``tensors_of`` describes.

    A plain tensor, [elements of the group], where the buffer stays in float32. Units of 256 are counted from the start
    of each group, so that a group's state depends on nothing outside it.
    """
    at = scale = 0
    for length in lengths:
        stop, last = at + length, scale + scales_of(length)
        match format_of(name, state_dtype):
            case "8bit":
                codes, scales = tensors[f"{name}.codes"], tensors[f"{name}.scales"]
                yield EightBitBuffer(codes[at:stop], scales[scale:last], signed=name not in NON_NEGATIVE)
            case "bf16":
                yield BFloat16Buffer(tensors[name][at:stop])
            case _:
                yield tensors[name][at:stop]
        at, scale = stop, last
