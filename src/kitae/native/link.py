"""What kernels need beyond Python: typed pointers from addresses, calls by address, atomics, bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any

from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

u8 = types.CPointer(types.uint8)
f32 = types.CPointer(types.float32)
f64 = types.CPointer(types.float64)
i64 = types.CPointer(types.int64)
u64 = types.CPointer(types.uint64)

# What runs an op: (source, target, work, args, channels, height, width) -> 0
OP = types.int64(u8, u8, types.int64, f64, types.int64, types.int64, types.int64)
# What plans an op: (key, numbers, codes, args, height, width) -> nothing
PLAN = types.void(u64, f64, i64, f64, types.int64, types.int64)
# Crops of a part of a batch: (context, scratch) -> 0, see `crops.crop_samples`
RUN = types.int64(types.int64, types.int64)
# A window of decoded pixels, resized: see `crops.cut_window`
WINDOW = types.int64(*[types.int64] * 10)
# A part of a job, and taking one part after the other, see `native.threads`
PART = types.int64(*[types.int64] * 7)
TAKE = types.int64(types.int64)

# Features are those of this machine, so a build for another one (NUMBA_CPU_NAME) uses none of them.
_NATIVE = config.CPU_NAME is None and config.CPU_FEATURES is None
_FEATURES = binding.get_host_cpu_features() if _NATIVE else {}
HAS_VBMI = bool(_FEATURES.get("avx512vbmi") and _FEATURES.get("avx512bw"))
HAS_FMA = bool(_FEATURES.get("fma") or "x86" not in binding.get_process_triple())


_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))
_LEVELS = ir.VectorType(ir.IntType(8), 16)
_FLOATS = ir.VectorType(ir.FloatType(), 16)


def _pointer(kind: Any) -> Any:
    def define(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(kind))

        return kind(types.int64), codegen

    return intrinsic(define)


as_u8 = _pointer(u8)
as_f32 = _pointer(f32)
as_f64 = _pointer(f64)
as_i64 = _pointer(i64)
as_u64 = _pointer(u64)
as_u32 = _pointer(types.CPointer(types.uint32))
as_i32 = _pointer(types.CPointer(types.int32))
as_i16 = _pointer(types.CPointer(types.int16))
as_u16 = _pointer(types.CPointer(types.uint16))


@intrinsic
def address_of(typingctx: Any, pointer: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], _I64)

    return types.int64(pointer), codegen


def _intrinsic(returns: Any, *takes: Any) -> Callable[[Callable[..., Any]], Any]:
    """Turns a function that emits code, from a builder and values of these types, into one that kernels call.

    Where it returns nothing, the result is the int64 0.
    """

    def wrap(emit: Callable[..., Any]) -> Any:
        def define(*_: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                value = emit(builder, *args)
                return ir.Constant(_I64, 0) if value is None else value

            return returns(*takes), codegen

        names = ["typingctx", *(f"value{i}" for i in range(len(takes)))]
        define.__name__ = emit.__name__
        define.__signature__ = Signature(  # type: ignore[attr-defined]
            [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        return intrinsic(define)

    return wrap


def _call(count: int) -> Any:
    @_intrinsic(types.int64, *[types.int64] * (count + 1))
    def call(builder: Any, address: Any, *words: Any) -> Any:
        function = ir.FunctionType(_I64, [_I64] * count)
        return builder.call(builder.inttoptr(address, function.as_pointer()), words)

    return call


call6, call7 = map(_call, (6, 7))  # the function at an address, taking n int64


@_intrinsic(types.int64, types.int64, types.int64)
def fetch_add(builder: Any, address: Any, amount: Any) -> Any:
    """Atomically add to the int64 at an address; what it was before."""
    return builder.atomic_rmw("add", builder.inttoptr(address, _I64.as_pointer()), amount, "acq_rel")


@_intrinsic(types.int64)
def fence(builder: Any) -> None:
    """Make everything written so far, past the caches too, visible to other threads."""
    builder.fence("seq_cst")


def _library(builder: Any, name: str, returns: Any, *takes: Any) -> Any:
    """A function that LLVM has."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(returns, takes), name)


# Numbers --------------------------------------------------------------------------------------------------------------


@_intrinsic(types.float32, types.float32, types.float32, types.float32)
def fma32(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float32, rounded once where the machine can (as torch's vectorised kernels), else twice."""
    return builder.fma(a, b, c) if HAS_FMA else builder.fadd(builder.fmul(a, b), c)


@_intrinsic(types.uint32, types.float32)
def bits32(builder: Any, x: Any) -> Any:
    """The bits of a float32 as uint32."""
    return builder.bitcast(x, _I32)


@_intrinsic(types.float32, types.uint16)
def from_bf16(builder: Any, x: Any) -> Any:
    """The bfloat16 with these bits, as float32."""
    return builder.bitcast(builder.shl(builder.zext(x, _I32), ir.Constant(_I32, 16)), ir.FloatType())


@_intrinsic(types.uint16, types.float32)
def to_bf16(builder: Any, x: Any) -> Any:
    """The bits of the nearest bfloat16, the even one of two, as torch rounds; NaN stays NaN."""
    word = builder.bitcast(x, _I32)
    odd = builder.and_(builder.lshr(word, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
    rounded = builder.lshr(builder.add(builder.add(word, ir.Constant(_I32, 0x7FFF)), odd), ir.Constant(_I32, 16))
    nan = builder.fcmp_unordered("uno", x, x)
    return builder.trunc(builder.select(nan, ir.Constant(_I32, 0x7FC0), rounded), _I16)


def _binary(kind: Any, name: str) -> Any:
    """Integer arithmetic in one width: numba widens every operation to 64 bits, which is an eighth of the lanes."""

    @_intrinsic(kind, kind, kind)
    def binary(builder: Any, a: Any, b: Any) -> Any:
        return getattr(builder, name)(a, b)

    return binary


add_i32, mul_i32, sar_i32 = (_binary(types.int32, name) for name in ("add", "mul", "ashr"))
add_u32, mul_u32, xor_u32 = (_binary(types.uint32, name) for name in ("add", "mul", "xor"))
shr_u32, shl_u32, or_u32, and_u32 = (_binary(types.uint32, name) for name in ("lshr", "shl", "or_", "and_"))
add_u16, sub_u16, mul_u16, shl_u16 = (_binary(types.uint16, name) for name in ("add", "sub", "mul", "shl"))


@_intrinsic(types.uint16, types.uint16, types.uint16)
def less_u16(builder: Any, a: Any, b: Any) -> Any:
    """a - b, or 0 where that is negative."""
    return builder.call(_library(builder, "llvm.usub.sat.i16", _I16, _I16, _I16), [a, b])


@_intrinsic(types.uint16, types.uint16, types.uint16)
def mulhi_u16(builder: Any, a: Any, b: Any) -> Any:
    """The upper 16 bits of a product of two uint16."""
    product = builder.mul(builder.zext(a, _I32), builder.zext(b, _I32))
    return builder.trunc(builder.lshr(product, ir.Constant(_I32, 16)), _I16)


# Vectors --------------------------------------------------------------------------------------------------------------


def _load(builder: Any, address: Any, kind: Any) -> Any:
    """A vector from any address."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def _order(lanes: Sequence[int]) -> Any:
    """Which lanes of its operands a shuffle takes."""
    return ir.Constant(ir.VectorType(_I32, len(lanes)), [ir.Constant(_I32, lane) for lane in lanes])


def _move(count: int, reverse: bool) -> Any:
    @_intrinsic(types.int64, types.int64, types.int64)
    def move(builder: Any, source: Any, target: Any) -> None:
        value = _load(builder, source, ir.VectorType(ir.IntType(8), count))
        if reverse:
            value = builder.shuffle_vector(value, value, _order(range(count)[::-1]))
        _store(builder, value, target)

    return move


move64, move32, move16 = (_move(n, False) for n in (64, 32, 16))  # n bytes from one address to another
turn64, turn32, turn16 = (_move(n, True) for n in (64, 32, 16))  # the same, the last byte first


@_intrinsic(types.int64, types.int64, types.int64, types.int64, types.int64)
def transpose16(builder: Any, source: Any, source_stride: Any, target: Any, target_stride: Any) -> None:
    """16 x 16 bytes at one address, transposed to another. Four rounds of interleaving rows."""

    def row(base: Any, stride: Any, number: int) -> Any:
        return builder.add(base, builder.mul(stride, ir.Constant(_I64, number)))

    rows = [_load(builder, row(source, source_stride, r), _LEVELS) for r in range(16)]
    halves = [_order([v for i in range(8) for v in (first + i, 16 + first + i)]) for first in (0, 8)]
    for _ in range(4):
        rows = [builder.shuffle_vector(rows[r], rows[r + 8], half) for r in range(8) for half in halves]
    for r in range(16):
        _store(builder, rows[r], row(target, target_stride, r))


def _splat(builder: Any, value: Any) -> Any:
    """Sixteen times the same float."""
    nothing = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, nothing, _order([0] * 16))


def _scaled(builder: Any, source: Any, scale: Any, shift: Any) -> Any:
    """Sixteen levels times scale plus shift."""
    levels = builder.zext(_load(builder, source, _LEVELS), ir.VectorType(_I32, 16))
    value = builder.sitofp(levels, _FLOATS)
    return builder.fadd(builder.fmul(value, _splat(builder, scale)), _splat(builder, shift))


def _stream(builder: Any, value: Any, address: Any) -> None:
    store = builder.store(value, builder.inttoptr(address, _FLOATS.as_pointer()), align=64)
    store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))


@_intrinsic(types.int64, types.int64, types.int64, types.float32, types.float32)
def stream_levels(builder: Any, source: Any, target: Any, scale: Any, shift: Any) -> None:
    """Sixteen levels times scale plus shift, as float32 to a 64-byte line, past the caches."""
    _stream(builder, _scaled(builder, source, scale, shift), target)


@_intrinsic(types.int64, types.int64, types.int64, types.int64, *[types.float32] * 4)
def stream_mixed(
    builder: Any, own: Any, other: Any, target: Any, scale: Any, shift: Any, share: Any, rest: Any
) -> None:
    """The same of two images, times share and times rest, summed."""
    mine = builder.fmul(_scaled(builder, own, scale, shift), _splat(builder, share))
    theirs = builder.fmul(_scaled(builder, other, scale, shift), _splat(builder, rest))
    _stream(builder, builder.fadd(mine, theirs), target)


@_intrinsic(types.int64, types.int64, types.int64)
def stream_line(builder: Any, source: Any, target: Any) -> None:
    """64 bytes from any address to a 64-byte line, past the caches."""
    _stream(builder, _load(builder, source, _FLOATS), target)


def _look_up(blocks: int) -> Any:
    """Blocks of 64 bytes through a table of 256, which four registers hold. AVX-512 VBMI only."""

    @_intrinsic(types.int64, types.int64, types.int64, types.int64)
    def look_up(builder: Any, source: Any, target: Any, table: Any) -> None:
        vector = ir.VectorType(ir.IntType(8), 64)

        def at(address: Any, block: int) -> Any:
            return builder.add(address, ir.Constant(_I64, 64 * block))

        permute = _library(builder, "llvm.x86.avx512.vpermi2var.qi.512", vector, vector, vector, vector)
        t = [_load(builder, at(table, k), vector) for k in range(4)]
        for block, index in enumerate([_load(builder, at(source, k), vector) for k in range(blocks)]):
            low = builder.call(permute, [t[0], index, t[1]])
            high = builder.call(permute, [t[2], index, t[3]])
            upper = builder.icmp_signed("<", index, ir.Constant(vector, None))
            _store(builder, builder.select(upper, high, low), at(target, block))

    return look_up


look_up64, look_up512 = _look_up(1), _look_up(8)  # source, target, table: addresses
