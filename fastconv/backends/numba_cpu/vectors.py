"""Vector operations that Numba has no words for, written in LLVM's language.

Each is generated from a description of its shape, for the element type of its arrays and the vector length of
the processor that Numba compiles for. They check nothing: callers give them ranges inside the arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba.core.cgutils
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic as numba_intrinsic
from numba.np import arrayobj

cgutils: Any = numba.core.cgutils
make_array: Any = arrayobj.make_array


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's decorator, of which type checkers see the arguments that compiled code passes."""
    return numba_intrinsic(function)


def _vector_registers() -> tuple[int, int]:
    """Bytes and number of the vector registers of the processor that Numba compiles for."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    if "+avx512f" in features:
        return 64, 32
    if "+avx" in features:
        return 32, 16
    return 16, 32 if triple.startswith(("aarch64", "arm64")) else 16


VECTOR_BYTES, _REGISTERS = _vector_registers()

# Rows and vectors of the tile of sums that stays in registers, and how deep a packed block is at most.
TILE_ROWS, TILE_VECTORS = (8, 3) if _REGISTERS == 32 else (4, 3)
GRAD_ROWS, GRAD_VECTORS = (12, 2) if _REGISTERS == 32 else (6, 2)
DEPTH = 256
PATCH_STRIDE = DEPTH + 16  # not a power of two: rows must not compete for the same cache lines
SHIFTED_VECTORS = 4  # that the plane-wise functions compute at once


def _element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(make_array(array_type)(context, builder, array).data, [index])


def _load_vector(builder: Any, pointer: Any, vector: Any, size: int) -> Any:
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=size)


def _store_vector(builder: Any, value: Any, pointer: Any, size: int) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=size)


def _arithmetic(builder: Any, dtype: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Addition and multiplication, which may become one instruction where they follow each other."""
    if isinstance(dtype, types.Float):
        return partial(builder.fadd, flags=["contract"]), partial(builder.fmul, flags=["contract"])
    return builder.add, builder.mul


def _broadcast(builder: Any, scalar: Any, vector: Any) -> Any:
    first = builder.insert_element(vector(ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(
        first, vector(ir.Undefined), ir.VectorType(ir.IntType(32), vector.count)(None)
    )


def _halves(builder: Any, values: Any, lanes: int) -> tuple[Any, Any]:
    """The lower and the upper ``lanes`` of twice as many."""
    mask = ir.VectorType(ir.IntType(32), lanes)
    low, high = (mask(list(range(first, first + lanes))) for first in (0, lanes))
    return builder.shuffle_vector(values, values, low), builder.shuffle_vector(values, values, high)


def _tile_product(rows: int, vectors: int, a_row: int, a_depth: int) -> Callable[..., None]:
    """A compiled function for ``c[i, j] (+)= sum over k of a[i, k] * b[k, j]``, a tile of ``rows`` x
    ``vectors``.

    Element ``a[i, k]`` is at ``a[a_start + i*a_row + k*a_depth]``; ``b`` is packed, so its rows follow each
    other; row ``i`` of ``c`` starts at ``c_start + i*c_row``. LLVM keeps the sums in registers.
    """

    @intrinsic
    def multiply(
        typing_context: Any,
        a: Any,
        a_start: Any,
        b: Any,
        b_start: Any,
        depth: Any,
        c: Any,
        c_start: Any,
        c_row: Any,
        add: Any,
    ) -> Any:
        del typing_context, a_start, b_start, depth, c_start, c_row, add
        size = c.dtype.bitwidth // 8
        width = VECTOR_BYTES // size

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, a_start, b, b_start, depth, c, c_start, c_row, add = args
            a = _element_pointer(context, builder, signature.args[0], a, a_start)
            b = _element_pointer(context, builder, signature.args[2], b, b_start)
            c = _element_pointer(context, builder, signature.args[5], c, c_start)
            vector = ir.VectorType(context.get_value_type(signature.args[5].dtype), width)
            plus, times = _arithmetic(builder, signature.args[5].dtype)
            index = depth.type
            sums = [
                [cgutils.alloca_once_value(builder, vector(None)) for _ in range(vectors)]
                for _ in range(rows)
            ]
            with cgutils.for_range(builder, depth) as loop:
                a_column = builder.gep(a, [builder.mul(loop.index, index(a_depth))])
                b_row = builder.gep(b, [builder.mul(loop.index, index(vectors * width))])
                factors = [
                    _load_vector(builder, builder.gep(b_row, [index(j * width)]), vector, size)
                    for j in range(vectors)
                ]
                for i in range(rows):
                    factor = _broadcast(
                        builder, builder.load(builder.gep(a_column, [index(i * a_row)])), vector
                    )
                    for j in range(vectors):
                        builder.store(plus(times(factor, factors[j]), builder.load(sums[i][j])), sums[i][j])
            with builder.if_else(add) as branches:
                for branch, adds in zip(branches, (True, False), strict=True):
                    with branch:
                        for i in range(rows):
                            row = builder.gep(c, [builder.mul(c_row, index(i))])
                            for j in range(vectors):
                                target = builder.gep(row, [index(j * width)])
                                total = builder.load(sums[i][j])
                                if adds:
                                    total = plus(_load_vector(builder, target, vector, size), total)
                                _store_vector(builder, total, target, size)
            return context.get_dummy_value()

        start = types.intp
        return types.void(a, start, b, start, start, c, start, start, types.boolean), generate

    return multiply


# Both operands packed: depth by depth, the rows of a next to each other, as the columns of b.
multiply_columns = _tile_product(TILE_ROWS, TILE_VECTORS, 1, TILE_ROWS)
# a is a block of patches, row by row.
multiply_rows = _tile_product(GRAD_ROWS, GRAD_VECTORS, PATCH_STRIDE, 1)


def _shifted_product(vectors: int) -> Callable[..., None]:
    """A compiled function for ``sums[j] = sum over k of weight[k] * x[x_start + offsets[k] + j]``.

    ``j`` runs over ``vectors`` vectors.
    """

    @intrinsic
    def multiply(
        typing_context: Any,
        weight: Any,
        weight_start: Any,
        offsets: Any,
        count: Any,
        x: Any,
        x_start: Any,
        sums: Any,
        sums_start: Any,
    ) -> Any:
        del typing_context, weight_start, count, x_start, sums_start
        size = sums.dtype.bitwidth // 8
        width = VECTOR_BYTES // size

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            weight, weight_start, offsets, count, x, x_start, sums, sums_start = args
            weight = _element_pointer(context, builder, signature.args[0], weight, weight_start)
            offsets = _element_pointer(context, builder, signature.args[2], offsets, count.type(0))
            x = _element_pointer(context, builder, signature.args[4], x, x_start)
            sums = _element_pointer(context, builder, signature.args[6], sums, sums_start)
            vector = ir.VectorType(context.get_value_type(signature.args[6].dtype), width)
            plus, times = _arithmetic(builder, signature.args[6].dtype)
            places = [count.type(j * width) for j in range(vectors)]
            totals = [cgutils.alloca_once_value(builder, vector(None)) for _ in places]
            with cgutils.for_range(builder, count) as loop:
                factor = _broadcast(builder, builder.load(builder.gep(weight, [loop.index])), vector)
                begin = builder.gep(x, [builder.load(builder.gep(offsets, [loop.index]))])
                for total, place in zip(totals, places, strict=True):
                    values = _load_vector(builder, builder.gep(begin, [place]), vector, size)
                    builder.store(plus(times(factor, values), builder.load(total)), total)
            for total, place in zip(totals, places, strict=True):
                _store_vector(builder, builder.load(total), builder.gep(sums, [place]), size)
            return context.get_dummy_value()

        start = types.intp
        return types.void(weight, start, offsets, start, x, start, sums, start), generate

    return multiply


multiply_shifted = _shifted_product(SHIFTED_VECTORS)


@intrinsic
def add_shifted(
    typing_context: Any,
    weight: Any,
    weight_start: Any,
    offsets: Any,
    count: Any,
    flat: Any,
    flat_start: Any,
    length: Any,
    x: Any,
    x_start: Any,
) -> Any:
    """For each ``k`` in turn ``x[x_start + offsets[k] + j] += weight[k] * flat[j]``, ``length`` being whole vectors."""
    del typing_context, weight_start, count, flat_start, length, x_start
    size = x.dtype.bitwidth // 8
    width = VECTOR_BYTES // size

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        weight, weight_start, offsets, count, flat, flat_start, length, x, x_start = args
        weight = _element_pointer(context, builder, signature.args[0], weight, weight_start)
        offsets = _element_pointer(context, builder, signature.args[2], offsets, count.type(0))
        flat = _element_pointer(context, builder, signature.args[4], flat, flat_start)
        x = _element_pointer(context, builder, signature.args[7], x, x_start)
        vector = ir.VectorType(context.get_value_type(signature.args[7].dtype), width)
        plus, times = _arithmetic(builder, signature.args[7].dtype)
        zero, step = count.type(0), count.type(width)
        with cgutils.for_range(builder, count) as loop:
            factor = _broadcast(builder, builder.load(builder.gep(weight, [loop.index])), vector)
            begin = builder.gep(x, [builder.load(builder.gep(offsets, [loop.index]))])
            with cgutils.for_range_slice(builder, zero, length, step, count.type) as (place, _):
                target = builder.gep(begin, [place])
                values = _load_vector(builder, builder.gep(flat, [place]), vector, size)
                total = plus(times(factor, values), _load_vector(builder, target, vector, size))
                _store_vector(builder, total, target, size)
        return context.get_dummy_value()

    at = types.intp
    return types.void(weight, at, offsets, at, flat, at, at, x, at), generate


@intrinsic
def dot_shifted(
    typing_context: Any,
    flat: Any,
    flat_start: Any,
    length: Any,
    x: Any,
    x_start: Any,
    offsets: Any,
    count: Any,
    sums: Any,
    sums_start: Any,
) -> Any:
    """``sums[k] += sum over j of flat[j] * x[x_start + offsets[k] + j]``.

    ``length`` is a multiple of `SHIFTED_VECTORS` vectors; ``sums`` may be of a wider type.
    """
    del typing_context, flat_start, length, x_start, count, sums_start
    size = x.dtype.bitwidth // 8
    width = VECTOR_BYTES // size

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        flat, flat_start, length, x, x_start, offsets, count, sums, sums_start = args
        flat = _element_pointer(context, builder, signature.args[0], flat, flat_start)
        x = _element_pointer(context, builder, signature.args[3], x, x_start)
        offsets = _element_pointer(context, builder, signature.args[5], offsets, count.type(0))
        sums = _element_pointer(context, builder, signature.args[7], sums, sums_start)
        dtype, sum_type = signature.args[3].dtype, signature.args[7].dtype
        vector = ir.VectorType(context.get_value_type(dtype), width)
        plus, times = _arithmetic(builder, dtype)
        zero, step = count.type(0), count.type(SHIFTED_VECTORS * width)
        totals = [cgutils.alloca_once(builder, vector) for _ in range(SHIFTED_VECTORS)]
        with cgutils.for_range(builder, count) as loop:
            begin = builder.gep(x, [builder.load(builder.gep(offsets, [loop.index]))])
            for total in totals:
                builder.store(vector(None), total)
            with cgutils.for_range_slice(builder, zero, length, step, count.type) as (place, _):
                for i, total in enumerate(totals):
                    at = builder.add(place, count.type(i * width))
                    a = _load_vector(builder, builder.gep(flat, [at]), vector, size)
                    b = _load_vector(builder, builder.gep(begin, [at]), vector, size)
                    builder.store(plus(times(a, b), builder.load(total)), total)
            parts = [builder.load(total) for total in totals]
            while len(parts) > 1:
                parts = [plus(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
            lanes, values = width, parts[0]
            while lanes > 1:
                lanes //= 2
                low, high = _halves(builder, values, lanes)
                values = plus(low, high)
            value = builder.extract_element(values, ir.IntType(32)(0))
            target = builder.gep(sums, [loop.index])
            value = context.cast(builder, value, dtype, sum_type)
            builder.store(_arithmetic(builder, sum_type)[0](builder.load(target), value), target)
        return context.get_dummy_value()

    start = types.intp
    return types.void(flat, start, start, x, start, offsets, start, sums, start), generate


def _largest(vectors: int) -> Callable[..., None]:
    """A compiled function for the largest of ``x[x_start + offsets[k] + j]`` over ``k``.

    ``j`` runs over ``vectors`` vectors. ``best[j]`` becomes the value and ``winner[j]``, an integer of the
    same size, the first ``k`` that has it. NaN is larger than anything, even than NaN before it. Where
    nothing is larger than ``lowest``, the winner is -1.
    """

    @intrinsic
    def largest(
        typing_context: Any,
        x: Any,
        x_start: Any,
        offsets: Any,
        count: Any,
        lowest: Any,
        best: Any,
        winner: Any,
        start: Any,
    ) -> Any:
        del typing_context, x_start, count, start
        size = best.dtype.bitwidth // 8
        width = VECTOR_BYTES // size

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, x_start, offsets, count, lowest, best, winner, start = args
            x = _element_pointer(context, builder, signature.args[0], x, x_start)
            offsets = _element_pointer(context, builder, signature.args[2], offsets, count.type(0))
            best = _element_pointer(context, builder, signature.args[5], best, start)
            winner = _element_pointer(context, builder, signature.args[6], winner, start)
            dtype = signature.args[5].dtype
            vector = ir.VectorType(context.get_value_type(dtype), width)
            number = ir.VectorType(ir.IntType(8 * size), width)

            def larger(a: Any, b: Any) -> Any:
                if isinstance(dtype, types.Float):
                    return builder.or_(builder.fcmp_ordered(">", a, b), builder.fcmp_unordered("uno", a, a))
                return builder.icmp_signed(">", a, b) if dtype.signed else builder.icmp_unsigned(">", a, b)

            places = [count.type(j * width) for j in range(vectors)]
            none = number([-1] * width)
            values = [cgutils.alloca_once_value(builder, _broadcast(builder, lowest, vector)) for _ in places]
            numbers = [cgutils.alloca_once_value(builder, none) for _ in places]
            with cgutils.for_range(builder, count) as loop:
                begin = builder.gep(x, [builder.load(builder.gep(offsets, [loop.index]))])
                k = builder.trunc(loop.index, number.element) if size < 8 else loop.index
                k = _broadcast(builder, k, number)
                for value, winners, place in zip(values, numbers, places, strict=True):
                    candidate = _load_vector(builder, builder.gep(begin, [place]), vector, size)
                    wins = larger(candidate, builder.load(value))
                    builder.store(builder.select(wins, candidate, builder.load(value)), value)
                    builder.store(builder.select(wins, k, builder.load(winners)), winners)
            for value, winners, place in zip(values, numbers, places, strict=True):
                _store_vector(builder, builder.load(value), builder.gep(best, [place]), size)
                _store_vector(builder, builder.load(winners), builder.gep(winner, [place]), size)
            return context.get_dummy_value()

        at = types.intp
        return types.void(x, at, offsets, at, lowest, best, winner, at), generate

    return largest


largest_of_shifted = _largest(SHIFTED_VECTORS)
largest_of_run = _largest(1)
MOST_NUMBERS = 127  # that the narrowest integers count


def _interleaving(rows: int) -> Callable[..., None]:
    """A compiled function for ``target[j * rows + i] = source[i * source_row + j]``, for one vector of ``j``.

    ``rows`` is a power of two. The target is written one vector at a time, ``target_row`` elements apart.
    """

    @intrinsic
    def interleave(
        typing_context: Any,
        source: Any,
        source_start: Any,
        source_row: Any,
        target: Any,
        target_start: Any,
        target_row: Any,
    ) -> Any:
        del typing_context, source_start, source_row, target_start, target_row
        size = source.dtype.bitwidth // 8
        width = VECTOR_BYTES // size
        count = rows or width

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, source_start, source_row, target, target_start, target_row = args
            source = _element_pointer(context, builder, signature.args[0], source, source_start)
            target = _element_pointer(context, builder, signature.args[3], target, target_start)
            vector = ir.VectorType(context.get_value_type(signature.args[0].dtype), width)
            mask = ir.VectorType(ir.IntType(32), width)
            index = source_row.type
            found = [
                _load_vector(builder, builder.gep(source, [builder.mul(source_row, index(i))]), vector, size)
                for i in range(count)
            ]
            # An element's place is the bits of its row, then those of its column. Interleaving the lower half
            # of the rows with the upper half moves the first bit to the end: once for each bit of the row.
            low = mask([i // 2 + (i % 2) * width for i in range(width)])
            high = mask([width // 2 + i // 2 + (i % 2) * width for i in range(width)])
            for _ in range(count.bit_length() - 1):
                pairs = list(zip(found[: count // 2], found[count // 2 :], strict=True))
                found = [builder.shuffle_vector(a, b, part) for a, b in pairs for part in (low, high)]
            for i, row in enumerate(found):
                _store_vector(builder, row, builder.gep(target, [builder.mul(target_row, index(i))]), size)
            return context.get_dummy_value()

        start = types.intp
        return types.void(source, start, start, target, start, start), generate

    return interleave


interleave_tile = _interleaving(TILE_ROWS)
transpose_square = _interleaving(0)  # as many rows as a vector is wide


def _copying(step: int, target_step: int) -> Callable[..., None]:
    """A compiled function for ``target[i * target_step] = source[i * step]``, for small counts and steps of 1 or 2.

    With a ``target_step`` of 2 the elements between, and the one behind the last, become zero.
    """

    @intrinsic
    def copy(
        typing_context: Any, source: Any, source_start: Any, target: Any, target_start: Any, count: Any
    ) -> Any:
        del typing_context, source_start, target_start, count
        size = source.dtype.bitwidth // 8
        widest = VECTOR_BYTES // size

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, source_start, target, target_start, count = args
            source = _element_pointer(context, builder, signature.args[0], source, source_start)
            target = _element_pointer(context, builder, signature.args[2], target, target_start)
            element = context.get_value_type(signature.args[0].dtype)
            index = count.type

            def move(width: int, at: Any) -> None:
                vector = ir.VectorType(element, width)
                begin = builder.gep(source, [builder.mul(at, index(step))])
                value = _load_vector(builder, begin, vector, size)
                if step == 2 and width > 1:
                    # The second half ends with the last element needed: nothing beyond it may be read.
                    rest = _load_vector(builder, builder.gep(begin, [index(width - 1)]), vector, size)
                    even = [2 * i if i < width // 2 else 2 * i + 1 for i in range(width)]
                    value = builder.shuffle_vector(value, rest, ir.VectorType(ir.IntType(32), width)(even))
                if target_step == 2:
                    between = [i // 2 + i % 2 * width for i in range(2 * width)]
                    value = builder.shuffle_vector(
                        value, vector(None), ir.VectorType(ir.IntType(32), 2 * width)(between)
                    )
                place = builder.mul(at, index(target_step))
                _store_vector(builder, value, builder.gep(target, [place]), size)

            def copy_by(width: int) -> None:
                """Whole vectors, the last overlapping the one before; narrower ones for fewer elements."""
                with builder.if_else(builder.icmp_signed(">=", count, index(width))) as (enough, few):
                    with enough:
                        last = builder.sub(count, index(width))
                        if width == widest:
                            with cgutils.for_range_slice(builder, index(0), last, index(width), index) as (
                                at,
                                _,
                            ):
                                move(width, at)
                        elif width > 1:
                            move(width, index(0))
                        move(width, last)
                    with few:
                        if width > 1:
                            copy_by(width // 2)

            copy_by(widest)
            return context.get_dummy_value()

        start = types.intp
        return types.void(source, start, target, start, start), generate

    return copy


copy_each = _copying(1, 1)
copy_every_second = _copying(2, 1)
copy_to_every_second = _copying(1, 2)


@intrinsic
def sum_of_run(typing_context: Any, x: Any, x_start: Any, count: Any) -> Any:
    """The sum of ``count`` elements in double precision: by vectors, then by ever narrower ones."""
    del typing_context, x_start, count
    size = x.dtype.bitwidth // 8
    widest = VECTOR_BYTES // 8

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, x_start, count = args
        x = _element_pointer(context, builder, signature.args[0], x, x_start)
        element, double, index = context.get_value_type(signature.args[0].dtype), ir.DoubleType(), count.type

        def load(width: int, at: Any) -> Any:
            values = _load_vector(builder, builder.gep(x, [at]), ir.VectorType(element, width), size)
            return builder.fpext(values, ir.VectorType(double, width)) if size < 8 else values

        total = cgutils.alloca_once_value(builder, ir.VectorType(double, widest)(None))
        done = cgutils.alloca_once_value(builder, index(0))
        full = builder.sub(count, index(widest - 1))
        with cgutils.for_range_slice(builder, index(0), full, index(widest), index) as (at, _):
            builder.store(builder.fadd(builder.load(total), load(widest, at)), total)
            builder.store(builder.add(at, index(widest)), done)
        sums, width = builder.load(total), widest
        while (
            width > 1
        ):  # add the upper half of the lanes to the lower half, and so many elements if there are
            width //= 2
            low, high = _halves(builder, sums, width)
            half = cgutils.alloca_once_value(builder, builder.fadd(low, high))
            at = builder.load(done)
            with builder.if_then(builder.icmp_signed(">=", builder.sub(count, at), index(width))):
                builder.store(builder.fadd(builder.load(half), load(width, at)), half)
                builder.store(builder.add(at, index(width)), done)
            sums = builder.load(half)
        return builder.extract_element(sums, ir.IntType(32)(0))

    return types.float64(x, types.intp, types.intp), generate
