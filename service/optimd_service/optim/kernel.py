"""How an element-wise optimizer becomes one pass over memory.

Each optimizer has its mathematics in two functions: an ``@element`` is the formula for a single parameter, in plain
scalars; a ``@loop`` walks a block with it, and sums what the receipt's norms are made of on the way, so that nothing is
read twice. numba compiles both into one loop of vector instructions, the first time a dtype is met, and keeps the
result on disk.

Formulas are compiled strictly: the same numbers give the same bits wherever a block begins. Only the loops' own sums
may be reordered, by their length alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])


class Sums(NamedTuple):
    """Sums of squares, in float64: of new weights − old weights, and of the new weights."""

    change: float
    size: float


def element(function: F) -> F:
    """Compile a formula for one parameter; to be called from a loop, into which it disappears."""
    compiled: Any = numba.njit(nogil=True, fastmath=False, error_model="numpy")(function)
    return cast("F", compiled)


def loop(function: F) -> F:
    """Compile a loop over a block; it runs without the GIL."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc"}, "error_model": "numpy"}
    try:
        compiled: Any = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that numba may write to: every process compiles for itself
        compiled = numba.njit(**options)(function)
    return cast("F", compiled)


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a call into instructions: ``function`` gives its type and what generates them."""
    compiled: Callable[..., Any] = intrinsic(function)
    return compiled


@instruction
def fma(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """``a·b + c`` rounded once, as torch's own kernels compute it."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = args[0].type
        function = builder.module.declare_intrinsic("llvm.fma", [kind], ir.FunctionType(kind, [kind] * 3))
        return builder.call(function, args)

    return a(a, b, c), generate


@instruction
def widen(_context: Any, grad: Any) -> Any:
    """A gradient as the arithmetic wants it: bfloat16, which comes as its 16 bits, becomes float32."""
    if grad != types.uint16:
        return grad(grad), lambda _context, _builder, _signature, args: args[0]

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide = builder.zext(args[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(grad), generate


@instruction
def narrow(_context: Any, value: Any, like: Any) -> Any:
    """A result as a gradient's array holds it: rounded to the dtype of ``like``, for bfloat16 (16 bits) to the even."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        if like != types.uint16:
            return context.cast(builder, args[0], value, like)
        wide = context.cast(builder, args[0], value, types.float32)
        bits, word = builder.bitcast(wide, ir.IntType(32)), ir.IntType(32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
        rounded = builder.add(builder.add(bits, ir.Constant(word, 0x7FFF)), odd)
        # Rounding could carry a NaN's bits into those of an infinity or a zero.
        nan = builder.fcmp_unordered("uno", wide, wide)
        kept = builder.select(nan, ir.Constant(word, 0x7FC00000), rounded)
        return builder.trunc(builder.lshr(kept, ir.Constant(word, 16)), ir.IntType(16))

    return like(value, like), generate


@instruction
def square(_context: Any, value: Any) -> Any:
    """``value²`` in float64, in which no square of a float32 overflows."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide = args[0] if value == types.float64 else builder.fpext(args[0], ir.DoubleType())
        return builder.fmul(wide, wide)

    return types.float64(value), generate


@loop
def sums_between(new: Any, old: Any) -> Any:
    """The sums of squares, in float64, of ``new − old`` and of ``new``; both of shape [n] and one dtype."""
    change = size = 0.0
    for i in range(new.size):
        change += square(new[i] - old[i])
        size += square(new[i])
    return change, size


@element
def mean(so_far: Any, value: Any, new: Any) -> Any:
    """A running mean: ``so_far + new·(value − so_far)``, as torch's ``lerp_`` rounds it."""
    return fma(new, value - so_far, so_far)


@instruction
def finite(_context: Any, value: Any) -> Any:
    """``value``, but no more than the largest number of its dtype."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        largest = ir.Constant(args[0].type, float(np.finfo(str(value)).max))
        return builder.select(builder.fcmp_ordered(">", args[0], largest), largest, args[0])

    return value(value), generate


@element
def mean_of_squares(so_far: Any, value: Any, kept: Any, new: Any) -> Any:
    """A running mean of squares: ``kept·so_far + new·value²``, as torch's ``mul_`` and ``addcmul_`` round it.

    Where the squares leave the dtype it stays at the largest number. Infinity, which is what torch keeps, would never
    decay: the parameter would not move again, or with a ``kept`` of 0 become NaN.
    """
    return finite(fma(new * value, value, so_far * kept))
