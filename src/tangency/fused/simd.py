"""Vectors of a fixed number of lanes as Numba values, so that generated programs say what runs in the SIMD units.

LLVM maps a vector to whatever the machine has: AVX or AVX-512 registers, several of NEON. Nothing is reordered or
contracted but where `fma` asks for it: the same text rounds in the same way wherever it is put, so that equal inputs
give equal numbers.
"""

from __future__ import annotations

import operator
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir as ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

BITS = {"float32": 32, "float64": 64}


@lru_cache
def register_bits() -> int:
    """The width of this processor's vector registers, 512 or 256 (narrower ones hold a vector in several)."""
    try:
        return 512 if llvm.get_host_cpu_features().get("avx512f", False) else 256
    except RuntimeError:  # LLVM does not know this processor's features.
        return 256


def vector_lanes(dtype: str, *, least: int = 256) -> int:
    """How many numbers of this type fill a vector register, or `least` bits if that is more."""
    return max(register_bits(), least) // BITS[dtype]


_ARITHMETIC = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"}


class Vector(types.Type):
    """`lanes` floating-point numbers of type `dtype`."""

    def __init__(self, dtype: Any, lanes: int):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")

    @property
    def llvm(self) -> Any:
        return ir.VectorType(ir.FloatType() if self.dtype == types.float32 else ir.DoubleType(), self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector):
        super().__init__(dmm, fe_type, fe_type.llvm)


def _define(operation: Any, instruction: str) -> None:
    @infer_global(operation)  # pyright: ignore[reportOptionalCall]
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)

    lower_builtin(operation, Vector, Vector)(lower)


for _operation, _instruction in _ARITHMETIC.items():
    _define(_operation, _instruction)


def _call(builder: Any, name: str, vector: Vector, args: Any) -> Any:
    function_type = ir.FunctionType(vector.llvm, [vector.llvm] * len(args))
    full = f"llvm.{name}.v{vector.lanes}f{vector.dtype.bitwidth}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, full), args)


def _function(name: str, arity: int) -> Any:
    def generate(vector: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _call(builder, name, vector, args)

        return vector(*[vector] * arity), lower

    if arity == 1:
        return intrinsic(lambda typing_context, x: generate(x))
    if arity == 2:
        return intrinsic(lambda typing_context, x, y: generate(x))
    return intrinsic(lambda typing_context, x, y, z: generate(x))


sqrt = _function("sqrt", 1)
absolute = _function("fabs", 1)
copysign = _function("copysign", 2)
fma = _function("fmuladd", 3)


@intrinsic
def power_of_two(typing_context: Any, x: Any) -> Any:
    """2^n for n = x − 1.5 · 2^m, m being the bits of the mantissa: n is what the lowest bits of x hold."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits, mantissa, bias = (32, 23, 127) if x.dtype == types.float32 else (64, 52, 1023)
        integers = ir.VectorType(ir.IntType(bits), x.lanes)
        shift, one = (ir.Constant(integers, [number] * x.lanes) for number in (mantissa, bias << mantissa))
        power = builder.add(builder.shl(builder.bitcast(args[0], integers), shift), one)
        return builder.bitcast(power, x.llvm)

    return x(x), lower


def _selection(predicate: str) -> Any:
    @intrinsic
    def select(typing_context: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(predicate, args[0], args[1]), args[2], args[3])

        return a(a, a, a, a), lower

    return select


where_less = _selection("<")
"""where_less(a, b, x, y): x where a < b, else y (y also where a or b is NaN)."""

where_less_equal = _selection("<=")
where_equal = _selection("==")


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _broadcast(builder: Any, number: Any, vector: Vector) -> Any:
    undefined = ir.Constant(vector.llvm, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), None))


def vectors(lanes: int) -> tuple[Any, Any, Any]:
    """(load, store, spread) for vectors of this many lanes.

    `load(array, i)` and `store(array, i, v)` take the lanes from index i on; `spread(array, i)` repeats one entry.
    Indices are not checked.
    """

    @intrinsic
    def load(typing_context: Any, array: Any, index: Any) -> Any:
        vector = Vector(array.dtype, lanes)

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            place = _pointer(context, builder, sig.args[0], *args)
            value = builder.load(builder.bitcast(place, vector.llvm.as_pointer()))
            value.align = array.dtype.bitwidth // 8
            return value

        return vector(array, types.int64), lower

    @intrinsic
    def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            place = _pointer(context, builder, sig.args[0], *args[:2])
            builder.store(args[2], builder.bitcast(place, value.llvm.as_pointer())).align = array.dtype.bitwidth // 8
            return context.get_dummy_value()

        return types.void(array, types.int64, value), lower

    @intrinsic
    def spread(typing_context: Any, array: Any, index: Any) -> Any:
        vector = Vector(array.dtype, lanes)

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _broadcast(builder, builder.load(_pointer(context, builder, sig.args[0], *args)), vector)

        return vector(array, types.int64), lower

    return load, store, spread
