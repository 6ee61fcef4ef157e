"""What kernels need beyond Python: typed pointers from addresses, calls by address, atomics, bits."""

# numba and llvmlite have no stubs.
# mypy: disable-error-code="untyped-decorator,import-untyped"

from __future__ import annotations

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
# What writes results: (source, partner's source or 0, info, target, partner's target, work, channels, height, width)
# -> 0
FINISH = types.int64(u8, u8, f64, types.int64, types.int64, types.int64, types.int64, types.int64, types.int64)
# The driver: (context, scratch) -> 0
RUN = types.int64(types.int64, types.int64)
# Sharing it among threads, see `kernels.crew`: (mailbox, context, scratch, most helpers) and (mailbox, scratch, its
# bytes)
LEAD = types.int64(types.int64, types.int64, types.int64, types.int64)
CLOSE = types.int64(types.int64)
SERVE = types.int64(types.int64, types.int64, types.int64)

# Features are those of this machine, so a build for another one (NUMBA_CPU_NAME) uses none of them.
_NATIVE = config.CPU_NAME is None and config.CPU_FEATURES is None
_FEATURES = binding.get_host_cpu_features() if _NATIVE else {}
HAS_VBMI = bool(_FEATURES.get("avx512vbmi") and _FEATURES.get("avx512bw"))
HAS_FMA = bool(_FEATURES.get("fma") or "x86" not in binding.get_process_triple())


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
    """The address of a pointer as int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(pointer), codegen


def _call(count: int) -> Any:
    word = ir.IntType(64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(word, [word] * count)
        return builder.call(builder.inttoptr(args[0], function.as_pointer()), args[1:])

    return codegen


@intrinsic
def call2(typingctx: Any, address: Any, a: Any, b: Any) -> Any:
    """Call the function at an address with two int64."""
    return types.int64(*[types.int64] * 3), _call(2)


@intrinsic
def call6(typingctx: Any, address: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """Call the function at an address with six int64."""
    return types.int64(*[types.int64] * 7), _call(6)


@intrinsic
def call7(typingctx: Any, address: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> Any:
    """Call the function at an address with seven int64."""
    return types.int64(*[types.int64] * 8), _call(7)


@intrinsic
def call9(typingctx: Any, address: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any, i: Any) -> Any:
    """Call the function at an address with nine int64."""
    return types.int64(*[types.int64] * 10), _call(9)


def _word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def fetch_add(typingctx: Any, address: Any, amount: Any) -> Any:
    """Atomically add to the int64 at an address; what it was before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, args[0]), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def exchange(typingctx: Any, address: Any, old: Any, new: Any) -> Any:
    """Atomically put `new` where `old` is; whether it was."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pair = builder.cmpxchg(_word(builder, args[0]), args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def fetch(typingctx: Any, address: Any) -> Any:
    """The int64 at an address, which another thread may write."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_word(builder, args[0]), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def put(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the int64 at an address, which another thread may read."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _word(builder, args[0]), "release", 8)
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def rest(typingctx: Any) -> Any:
    """Pause for a moment while waiting for another thread."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if "x86" in binding.get_process_triple():
            function = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, "llvm.x86.sse2.pause"), [])
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(), codegen


@intrinsic
def fma32(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float32, rounded once where the machine can (as torch's vectorised kernels), else twice."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if HAS_FMA:
            return builder.fma(*args)
        return builder.fadd(builder.fmul(args[0], args[1]), args[2])

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def bits32(typingctx: Any, x: Any) -> Any:
    """The bits of a float32 as uint32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


def _binary(kind: Any, name: str) -> Any:
    """Integer arithmetic in one width: numba widens every operation to 64 bits, which is an eighth of the lanes."""

    def define(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, name)(*args)

        return kind(kind, kind), codegen

    return intrinsic(define)


add_i32 = _binary(types.int32, "add")
mul_i32 = _binary(types.int32, "mul")
sar_i32 = _binary(types.int32, "ashr")
add_u32 = _binary(types.uint32, "add")
mul_u32 = _binary(types.uint32, "mul")
xor_u32 = _binary(types.uint32, "xor")
shr_u32 = _binary(types.uint32, "lshr")
shl_u32 = _binary(types.uint32, "shl")
or_u32 = _binary(types.uint32, "or_")
and_u32 = _binary(types.uint32, "and_")
add_u16 = _binary(types.uint16, "add")
sub_u16 = _binary(types.uint16, "sub")
mul_u16 = _binary(types.uint16, "mul")
shl_u16 = _binary(types.uint16, "shl")


@intrinsic
def less_u16(typingctx: Any, a: Any, b: Any) -> Any:
    """a - b, or 0 where that is negative."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.IntType(16)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind, kind]), "llvm.usub.sat.i16"
        )
        return builder.call(function, args)

    return types.uint16(types.uint16, types.uint16), codegen


@intrinsic
def mulhi_u16(typingctx: Any, a: Any, b: Any) -> Any:
    """The upper 16 bits of a product of two uint16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(32)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 16)), ir.IntType(16))

    return types.uint16(types.uint16, types.uint16), codegen


def _move(count: int, reverse: bool) -> Any:
    def define(typingctx: Any, source: Any, target: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(ir.IntType(8), count)
            value = builder.load(builder.inttoptr(args[0], vector.as_pointer()))
            value.align = 1
            if reverse:
                lane = ir.IntType(32)
                mask = ir.Constant(ir.VectorType(lane, count), [ir.Constant(lane, count - 1 - i) for i in range(count)])
                value = builder.shuffle_vector(value, ir.Constant(vector, ir.Undefined), mask)
            builder.store(value, builder.inttoptr(args[1], vector.as_pointer()), align=1)
            return ir.Constant(ir.IntType(64), 0)

        return types.int64(types.int64, types.int64), codegen

    return intrinsic(define)


move64, move32, move16 = (_move(n, False) for n in (64, 32, 16))  # so many bytes from one address to another
turn64, turn32, turn16 = (_move(n, True) for n in (64, 32, 16))  # the same, the last byte first


_LANE = ir.IntType(32)
_LEVELS = ir.VectorType(ir.IntType(8), 16)
_FLOATS = ir.VectorType(ir.FloatType(), 16)


def _splat(builder: Any, value: Any) -> Any:
    """Sixteen times the same float."""
    nothing = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_LANE, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_LANE, 16), None))


def _scaled(builder: Any, source: Any, scale: Any, shift: Any) -> Any:
    """Sixteen levels times scale plus shift."""
    load = builder.load(builder.inttoptr(source, _LEVELS.as_pointer()))
    load.align = 1
    value = builder.sitofp(builder.zext(load, ir.VectorType(_LANE, 16)), _FLOATS)
    return builder.fadd(builder.fmul(value, _splat(builder, scale)), _splat(builder, shift))


def _stream(builder: Any, value: Any, address: Any) -> None:
    store = builder.store(value, builder.inttoptr(address, _FLOATS.as_pointer()), align=64)
    store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_LANE, 1)]))


@intrinsic
def stream_levels(typingctx: Any, source: Any, target: Any, scale: Any, shift: Any) -> Any:
    """Sixteen levels times scale plus shift, as float32 to a 64-byte line, past the caches."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _stream(builder, _scaled(builder, args[0], args[2], args[3]), args[1])
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.int64, types.int64, types.float32, types.float32), codegen


@intrinsic
def stream_mixed(
    typingctx: Any, source: Any, other: Any, target: Any, scale: Any, shift: Any, share: Any, rest: Any
) -> Any:
    """The same of two images, times share and times rest, summed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        own = _scaled(builder, args[0], args[3], args[4])
        theirs = _scaled(builder, args[1], args[3], args[4])
        own = builder.fmul(own, _splat(builder, args[5]))
        _stream(builder, builder.fadd(own, builder.fmul(theirs, _splat(builder, args[6]))), args[2])
        return ir.Constant(ir.IntType(64), 0)

    floats = [types.float32] * 4
    return types.int64(types.int64, types.int64, types.int64, *floats), codegen


@intrinsic
def stream_line(typingctx: Any, source: Any, target: Any) -> Any:
    """64 bytes from any address to a 64-byte line, past the caches."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        load = builder.load(builder.inttoptr(args[0], _FLOATS.as_pointer()))
        load.align = 1
        _stream(builder, load, args[1])
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """Make everything written so far, past the caches too, visible to other threads."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(), codegen


@intrinsic
def transpose16(typingctx: Any, source: Any, source_stride: Any, target: Any, target_stride: Any) -> Any:
    """16 x 16 bytes at one address, transposed to another. Four rounds of interleaving rows."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), 16)
        lane = ir.IntType(32)

        def mask(first: int) -> Any:
            return ir.Constant(
                ir.VectorType(lane, 16), [ir.Constant(lane, v) for i in range(8) for v in (first + i, 16 + first + i)]
            )

        def place(base: Any, stride: Any, row: int) -> Any:
            at = builder.add(base, builder.mul(stride, ir.Constant(ir.IntType(64), row)))
            return builder.inttoptr(at, vector.as_pointer())

        rows = []
        for r in range(16):
            load = builder.load(place(args[0], args[1], r))
            load.align = 1
            rows.append(load)
        low, high = mask(0), mask(8)
        for _ in range(4):
            mixed = []
            for r in range(8):
                mixed.append(builder.shuffle_vector(rows[r], rows[r + 8], low))
                mixed.append(builder.shuffle_vector(rows[r], rows[r + 8], high))
            rows = mixed
        for r in range(16):
            builder.store(rows[r], place(args[2], args[3], r), align=1)
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64), codegen


def _look_up(blocks: int) -> Any:
    """Blocks of 64 bytes through a table of 256, which four registers hold. AVX-512 VBMI only."""

    def define(typingctx: Any, source: Any, target: Any, table: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(ir.IntType(8), 64)

            def place(address: Any, block: int) -> Any:
                at = builder.add(address, ir.Constant(ir.IntType(64), 64 * block))
                return builder.inttoptr(at, vector.as_pointer())

            def load(address: Any, block: int) -> Any:
                value = builder.load(place(address, block))
                value.align = 1
                return value

            kind = ir.FunctionType(vector, [vector, vector, vector])
            permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.qi.512")
            t = [load(args[2], k) for k in range(4)]
            for index, block in [(load(args[0], k), k) for k in range(blocks)]:
                low = builder.call(permute, [t[0], index, t[1]])
                high = builder.call(permute, [t[2], index, t[3]])
                upper = builder.icmp_signed("<", index, ir.Constant(vector, None))
                builder.store(builder.select(upper, high, low), place(args[1], block), align=1)
            return ir.Constant(ir.IntType(64), 0)

        return types.int64(types.int64, types.int64, types.int64), codegen

    return intrinsic(define)


look_up64, look_up512 = _look_up(1), _look_up(8)  # source, target, table: addresses
