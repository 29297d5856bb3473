"""Kernels compiled by Numba: the same names and results as the others, parallel, cached on disk.

`launch` knows threads and caching, `vectors` what Numba cannot say; the algorithms are in `dense`, `narrow`,
`direct` and `pool`. Here is what surrounds them: which algorithm serves a geometry, how its work is cut,
temporary memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastconv.activations import ACTIVATION_CODES
from fastconv.backends.numba_cpu import common, dense, direct, launch, narrow, pool, spread, vectors
from fastconv.backends.protocol import Choice, Planned, planned
from fastconv.config import get_num_threads
from fastconv.geometry import ConvGeometry, PoolGeometry, Size3, pool_windows

Array = NDArray[Any]

ALGORITHMS = ("auto", "direct")
TAKES_NARROW = False
SILENT = False
CACHE_LINE = 64  # bytes
NARROW = 32  # most products of input and output channels in a group that is computed plane by plane
BLOCK_PANELS = 10  # most column panels packed at once: half a usual second-level cache
SCATTERED_ROWS = 1024  # rows of products that an input gradient adds at once
WEIGHT_ROWS, WEIGHT_PANELS = 12, 8  # most row and column panels in a block of a weight gradient
MAX_POOL_BLOCK = 1024  # elements of a maximum that are computed at once
MANY_OUTPUTS = 8  # of a plane, that are worth computing side by side
MOST_SUMMED = 64  # taps of a window that is summed in its own precision
ENOUGH_TASKS = 16  # where the number of tasks must not depend on that of the workers


# --- convolution --------------------------------------------------------------------------------------------


def conv_forward(
    x: Array, weight: Array, bias: Array | None, activation: str | None, y: Array, geometry: ConvGeometry
) -> None:
    """See `fastconv.backends.protocol`."""
    plan = _plan(geometry)
    g, workers = plan.geometry, plan.workers()
    rest = (_bias(bias, x), ACTIVATION_CODES[activation], _flat(y))
    if plan.narrow:
        finite = bool(np.isfinite(weight).all())
        if finite:
            _forward_narrow(plan, workers, _flat(x), _flat(weight), *rest)
    else:
        rows, depth = g.out_channels // g.groups, math.prod(g.weight_shape[1:])
        packed, finite = _pack_weights(weight, g.groups, rows, depth, (depth, 1), workers)
        finite = finite or not plan.padded
        if finite:
            _forward_dense(g, workers, _flat(x), packed, *rest)
    if not finite:
        direct.forward_direct.run(workers, _flat(x), _flat(weight), *rest, plan.sizes)


def conv_grad_input(
    grad_y: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None,
    grad_x: Array,
    geometry: ConvGeometry,
) -> None:
    """See `fastconv.backends.protocol`."""
    plan = _plan(geometry)
    g, workers = plan.geometry, plan.workers()
    rest = (_bias(bias, grad_y), ACTIVATION_CODES[activation], _flat(grad_x))
    if plan.narrow and np.isfinite(weight).all():
        memory = _narrow_memory(plan, workers, grad_y)
        narrow.grad_input_narrow.run(workers, _flat(grad_y), _flat(weight), *rest, plan.sizes, *memory)
        return
    rows, depth = math.prod(g.weight_shape[1:]), g.out_channels // g.groups
    packed, _ = _pack_weights(weight, g.groups, rows, depth, (1, rows), workers)
    if plan.pointwise:  # the transposed weights are those of a convolution from outputs to inputs
        reverse = g._replace(in_channels=g.out_channels, out_channels=g.in_channels)
        _forward_dense(reverse, workers, _flat(grad_y), packed, *rest)
    else:
        _grad_input_dense(g, workers, _flat(grad_y), packed, *rest)


def conv_grad_weight(x: Array, grad_y: Array, grad_weight: Array, geometry: ConvGeometry) -> None:
    """See `fastconv.backends.protocol`."""
    plan = _plan(geometry)
    workers = plan.workers()
    if plan.narrow:
        finite = _grad_weight_narrow(plan, workers, _flat(x), _flat(grad_y), grad_weight)
    else:
        finite = _grad_weight_dense(plan.geometry, workers, _flat(x), _flat(grad_y), _flat(grad_weight))
        finite = finite or not plan.padded
    if not finite:
        arguments = (_flat(x), _flat(grad_y), plan.sizes, _flat(grad_weight))
        direct.repair_grad_weight.run(workers, *arguments)


def conv_plan(
    kernel: str, weight: Array, bias: Array | None, activation: str | None, geometry: ConvGeometry
) -> Planned:
    """A kernel with copies of the weights."""
    kernels = {"conv_forward": conv_forward, "conv_grad_input": conv_grad_input}
    return planned(kernels[kernel], weight, bias, activation, geometry)


class Plan(NamedTuple):
    """What a geometry settles: how it is computed, and what its kernels are told of it."""

    geometry: ConvGeometry
    sizes: common.Sizes
    pointwise: bool
    narrow: bool
    padded: bool
    nanoseconds: float
    spread: int

    def workers(self) -> int:
        """How many take part now."""
        return launch.worker_count(self.nanoseconds)


@lru_cache(maxsize=1024)
def _plan(g: ConvGeometry) -> Plan:
    ones = (1, 1, 1)
    pointwise = g.kernel_size == ones == g.stride and not any(g.pad_low) and g.input_size == g.output_size
    if pointwise:  # rows do not matter: planes become one row
        row = (1, 1, math.prod(g.input_size))
        g = g._replace(input_size=row, output_size=row)
    axes = zip(g.input_size, g.output_size, g.kernel_size, g.stride, g.dilation, g.pad_low, strict=True)
    padded = any(low > 0 or (o - 1) * s - low + (k - 1) * d >= size for size, o, k, s, d, low in axes)
    channels = (g.in_channels // g.groups) * (g.out_channels // g.groups)
    spreads_well = _spread_size(g) <= _largest_spread(g.input_size)
    is_narrow = channels <= NARROW and g.stride[2] <= 2 and spreads_well
    products = math.prod(g.y_shape) * math.prod(g.weight_shape[1:])
    nanoseconds = products / (8 if is_narrow else 32)
    return Plan(g, common.sizes_of(g), pointwise, is_narrow, padded, nanoseconds, _spread_size(g))


def _spread_size(g: ConvGeometry) -> int:
    """Elements of a plane that is spread."""
    axes = (spread.spread_axis(g, axis) for axis in range(3))
    return math.prod(phases * length for phases, _, length in axes)


def _largest_spread(size: Size3) -> int:
    """A spread plane may not be much larger than the plane."""
    return 4 * math.prod(size) + 4096


def _pack_weights(
    weight: Array, matrices: int, rows: int, depth: int, strides: tuple[int, int], workers: int
) -> tuple[Array, bool]:
    """Packed panels of each group's matrix, and whether its elements are finite."""
    padded = _ceil(rows, vectors.TILE_ROWS)
    packed = _aligned(np.empty, matrices * padded * depth, weight)
    finite = np.empty(workers, np.bool_)
    all_strides = np.array((rows * depth, *strides))
    arguments = (_flat(weight), matrices, rows, depth, all_strides, _depth_block(depth), packed, finite)
    dense.pack_weights.run(workers, *arguments)
    return packed, bool(finite.all())


class Blocks(NamedTuple):
    """How a kernel's work is cut: two of its arguments, and elements of each worker's buffer and table."""

    sizes: common.Sizes
    blocks: common.Sizes
    buffer: int
    table: int


def _forward_dense(
    g: ConvGeometry, workers: int, x: Array, packed: Array, bias: Array, activation: int, y: Array
) -> None:
    cut = _forward_blocks(g, x.itemsize, workers)
    buffers, tables = _buffers(workers, cut.buffer, x), np.empty((workers, cut.table), np.int64)
    dense.forward_dense.run(workers, x, packed, bias, activation, y, cut.sizes, cut.blocks, buffers, tables)


@lru_cache(maxsize=1024)
def _forward_blocks(g: ConvGeometry, itemsize: int, workers: int) -> Blocks:
    """Blocks such that the workers finish together and no more is packed twice than that needs."""
    width = _tile_width(vectors.TILE_VECTORS, itemsize)
    whole_depth = math.prod(g.weight_shape[1:])
    depth = _depth_block(whole_depth)
    plane = math.prod(g.output_size)
    rows = -(-(g.out_channels // g.groups) // vectors.TILE_ROWS)
    columns = -(-g.batch * plane // width)
    packing = 24  # packing a column costs as much as multiplying it by about so many rows

    def cost(row_blocks: int, column_blocks: int) -> int:
        row_panels, column_panels = -(-rows // row_blocks), -(-columns // column_blocks)
        tasks = g.groups * -(-rows // row_panels) * -(-columns // column_panels)
        return -(-tasks // workers) * column_panels * (row_panels * vectors.TILE_ROWS + packing)

    fewest = -(-columns // BLOCK_PANELS)
    choices = [
        (cost(r, c), r, c)
        for r in range(1, min(workers, rows) + 1)
        for c in range(fewest, min(fewest + workers, columns) + 1)
    ]
    _, row_blocks, column_blocks = min(choices)
    row_panels, column_panels = -(-rows // row_blocks), -(-columns // column_blocks)
    cut_often = plane < 4 * width and depth < whole_depth
    sum_panels = row_panels * column_panels if cut_often else 0
    return Blocks(
        common.sizes_of(g),
        np.array([depth, row_panels, column_panels, sum_panels]),
        width * (vectors.TILE_ROWS * max(1, sum_panels) + column_panels * depth),
        common.RUN * width,
    )


def _grad_input_dense(
    g: ConvGeometry, workers: int, grad_y: Array, packed: Array, bias: Array, activation: int, grad_x: Array
) -> None:
    cut = _grad_input_blocks(g, grad_y.itemsize)
    buffers, tables = _buffers(workers, cut.buffer, grad_y), np.empty((workers, cut.table), np.int64)
    arguments = (grad_y, packed, bias, activation, grad_x, cut.sizes, cut.blocks, buffers, tables)
    dense.grad_input_dense.run(workers, *arguments)


@lru_cache(maxsize=1024)
def _grad_input_blocks(g: ConvGeometry, itemsize: int) -> Blocks:
    """Blocks that follow from shapes alone, because an element's sum is made in the order of the blocks."""
    width = _tile_width(vectors.TILE_VECTORS, itemsize)
    depth = _depth_block(g.out_channels // g.groups)
    taps = math.prod(g.kernel_size)
    plane = math.prod(g.output_size)
    channels = g.in_channels // g.groups
    images = min(g.batch, -(-BLOCK_PANELS * width // plane))
    column_panels = min(2, -(-images * plane // width))
    block = min(channels, _ceil(max(1, SCATTERED_ROWS // taps), vectors.TILE_ROWS))
    others = -(-g.batch // images) * g.groups
    while block > vectors.TILE_ROWS and others * -(-channels // block) < ENOUGH_TASKS:
        block = _ceil(-(-block // 2), vectors.TILE_ROWS)
    row_panels = -(-min(block * taps, SCATTERED_ROWS) // vectors.TILE_ROWS)
    return Blocks(
        common.sizes_of(g),
        np.array([depth, column_panels, row_panels, images, block]),
        width * column_panels * (row_panels * vectors.TILE_ROWS + depth),
        common.RUN * width * column_panels,
    )


def _grad_weight_dense(g: ConvGeometry, workers: int, x: Array, grad_y: Array, grad_weight: Array) -> bool:
    """Returns whether the result is finite."""
    cut = _grad_weight_blocks(g, x.itemsize)
    slices = int(cut.blocks[0])
    rows = _ceil(math.prod(g.weight_shape[1:]), vectors.GRAD_ROWS)
    columns = _ceil(g.out_channels // g.groups, _tile_width(vectors.GRAD_VECTORS, x.itemsize))
    sums = _aligned(np.empty, slices * g.groups * rows * columns, x)
    buffers, tables = _buffers(workers, cut.buffer, x), np.empty((workers, cut.table), np.int64)
    dense.grad_weight_dense.run(workers, x, grad_y, cut.sizes, cut.blocks, sums, buffers, tables)
    finite = np.empty(workers, np.bool_)
    dense.add_slices.run(workers, sums, cut.sizes, slices, grad_weight, finite)
    return bool(finite.all())


@lru_cache(maxsize=1024)
def _grad_weight_blocks(g: ConvGeometry, itemsize: int) -> Blocks:
    """Blocks of the weight, and as many slices of the columns as make enough tasks: by shape alone."""
    width = _tile_width(vectors.GRAD_VECTORS, itemsize)
    rows, channels = math.prod(g.weight_shape[1:]), g.out_channels // g.groups
    row_block = min(_ceil(rows, vectors.GRAD_ROWS), WEIGHT_ROWS * vectors.GRAD_ROWS)
    channel_block = min(_ceil(channels, width), WEIGHT_PANELS * width)
    tasks = g.groups * -(-rows // row_block) * -(-channels // channel_block)
    blocks = -(-g.batch * math.prod(g.output_size) // vectors.DEPTH)
    slices = max(1, min(-(-ENOUGH_TASKS // tasks), blocks // 4))
    slices = -(-blocks // -(-blocks // slices))  # none is empty
    return Blocks(
        common.sizes_of(g),
        np.array([slices, row_block, channel_block]),
        row_block * vectors.PATCH_STRIDE + channel_block * vectors.DEPTH,
        common.RUN * vectors.DEPTH,
    )


def _forward_narrow(
    plan: Plan, workers: int, x: Array, weight: Array, bias: Array, activation: int, y: Array
) -> None:
    g = plan.geometry
    channels = g.out_channels // g.groups
    blocks = min(channels, -(-4 * workers // (g.batch * g.groups)))
    arguments = (x, weight, bias, activation, y, plan.sizes, plan.spread, -(-channels // blocks))
    narrow.forward_narrow.run(workers, *arguments, *_narrow_memory(plan, workers, x))


def _grad_weight_narrow(plan: Plan, workers: int, x: Array, grad_y: Array, grad_weight: Array) -> bool:
    """Returns whether the result is finite. The number of slices of the batch follows from shapes alone."""
    g = plan.geometry
    slices = min(g.batch, -(-ENOUGH_TASKS // g.groups))
    channels = g.out_channels // g.groups
    blocks = min(channels, -(-4 * workers // (slices * g.groups)))
    sums = np.zeros((slices, grad_weight.size), _sum_type(x))
    arguments = (x, grad_y, plan.sizes, plan.spread, -(-channels // blocks), slices, _flat(sums))
    narrow.grad_weight_narrow.run(workers, *arguments, *_narrow_memory(plan, workers, x))
    grad_weight[...] = sums.sum(axis=0).reshape(grad_weight.shape)
    return bool(np.isfinite(grad_weight).all())


def _narrow_memory(plan: Plan, workers: int, like: Array) -> tuple[Array, common.Sizes]:
    """Buffers for a flat output plane and the spread inputs of a group, and tables of what reads where.

    Each of the two is followed by a step of elements that vectors may touch beyond its end.
    """
    flat, channels, table = _narrow_sizes(plan.geometry)
    step = _tile_width(vectors.SHIFTED_VECTORS, like.itemsize)
    buffers = _buffers(workers, _ceil(flat, step) + step + channels * plan.spread + step, like)
    return buffers, np.empty((workers, table), np.int64)


@lru_cache(maxsize=1024)
def _narrow_sizes(g: ConvGeometry) -> tuple[int, int, int]:
    """Elements of a flat output plane, input channels of a group, and elements of a table."""
    lengths = [spread.spread_axis(g, axis)[2] for axis in range(3)]
    depth, height, width = g.output_size
    flat = ((depth - 1) * lengths[1] + height - 1) * lengths[2] + (width - 1) * g.stride[2] + 1
    channels = g.in_channels // g.groups
    return flat, channels, channels * math.prod(g.kernel_size) + g.input_size[0] * g.input_size[1]


# --- pooling ------------------------------------------------------------------------------------------------


def max_pool(x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
    """See `fastconv.backends.protocol`."""
    places = np.empty(0, np.int64) if indices is None else _flat(indices)
    lowest = x.dtype.type(-np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min)
    workers = _pool_workers(geometry)
    arrays = (_flat(x), _flat(y), places, lowest)
    lanes = vectors.VECTOR_BYTES // x.itemsize
    number = np.dtype(f"i{x.itemsize}")
    small = _small_windows(geometry)
    if small is not None:
        step = vectors.SHIFTED_VECTORS * lanes
        length = _ceil(max(MAX_POOL_BLOCK, small.row), step)
        segments = min(small.rows, -(-4 * workers // geometry.planes))
        buffers = _buffers(workers, length + small.spread + step, x)
        numbers = np.empty((workers, length), number)
        tables = np.empty((workers, small.table), np.int64)
        pool.max_pool_small.run(workers, *arrays, small.sizes, segments, length, buffers, numbers, tables)
    else:
        buffers = np.empty((workers, lanes), x.dtype)
        numbers = np.empty((workers, lanes), number)
        tables = np.empty((workers, vectors.MOST_NUMBERS), np.int64)
        pool.max_pool_large.run(workers, *arrays, _pool_table(geometry), buffers, numbers, tables)


def max_pool_grad_input(grad_y: Array, indices: Array, grad_x: Array) -> int:
    """See `fastconv.backends.protocol`."""
    planes = grad_x.shape[0]
    workers = min(planes, launch.worker_count((grad_y.size + grad_x.size) / 2))
    wrong = np.full(workers, grad_y.size)
    pool.max_pool_grad_input.run(workers, _flat(grad_y), _flat(indices), _flat(grad_x), planes, wrong)
    first = int(wrong.min())
    return first if first < grad_y.size else -1


def avg_pool(x: Array, y: Array, geometry: PoolGeometry) -> None:
    """See `fastconv.backends.protocol`."""
    as_convolution = _average_as_convolution(geometry)
    if as_convolution is not None:
        ones = np.ones(as_convolution.weight_shape, x.dtype)
        conv_forward(x, ones, None, None, y, as_convolution)
        y /= _divisors(geometry, y.dtype)
        return
    workers = _pool_workers(geometry)
    pool.avg_pool.run(workers, _flat(x), _flat(y), _pool_table(geometry), _row_buffers(geometry, workers))


def avg_pool_grad_input(grad_y: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """See `fastconv.backends.protocol`."""
    as_convolution = _average_as_convolution(geometry)
    if as_convolution is not None:
        ones = np.ones(as_convolution.weight_shape, grad_y.dtype)
        shares = grad_y / _divisors(geometry, grad_y.dtype)
        conv_grad_input(shares, ones, None, None, grad_x, as_convolution)
        return
    workers = min(geometry.planes, _pool_workers(geometry))
    buffers = _row_buffers(geometry, workers)
    pool.avg_pool_grad_input.run(workers, _flat(grad_y), _flat(grad_x), _pool_table(geometry), buffers)


@lru_cache(maxsize=1024)
def _average_as_convolution(g: PoolGeometry) -> ConvGeometry | None:
    """Many small windows are summed by a convolution with ones; few taps, or the sums would need float64."""
    if g.adaptive or math.prod(g.kernel_size) > MOST_SUMMED or math.prod(g.output_size) < MANY_OUTPUTS:
        return None
    as_convolution = _of_planes(g)
    return as_convolution if _plan(as_convolution).narrow else None


def _divisors(g: PoolGeometry, dtype: np.dtype[Any]) -> Array:
    """The divisor of each window of a plane, 1 where it holds nothing."""
    if g.divisor_override:
        return np.asarray(g.divisor_override, dtype)
    axes = pool_windows(g)
    depth, height, width = (axis.length if g.count_include_pad else axis.inside for axis in axes)
    product: Array = depth[:, None, None] * height[:, None] * width
    return np.maximum(product, 1, dtype=dtype, casting="same_kind")


def _of_planes(g: PoolGeometry) -> ConvGeometry:
    """The convolution of each plane alone that has the same windows."""
    return ConvGeometry(
        g.planes, 1, 1, 1, g.input_size, g.output_size, g.kernel_size, g.stride, g.dilation, g.pad_low
    )


@lru_cache(maxsize=1024)
def _pool_table(g: PoolGeometry) -> common.Sizes:
    return pool.table_of(g)


class SmallWindows(NamedTuple):
    """Max pooling of many small windows: the geometry, output rows and the length of one, a spread plane, a table."""

    sizes: common.Sizes
    rows: int
    row: int
    spread: int
    table: int


@lru_cache(maxsize=1024)
def _small_windows(g: PoolGeometry) -> SmallWindows | None:
    """Unless windows have too many taps, or planes too few of them, to compute many side by side."""
    taps = math.prod(g.kernel_size)
    if g.adaptive or taps > vectors.MOST_NUMBERS or math.prod(g.output_size) < MANY_OUTPUTS:
        return None
    as_convolution = _of_planes(g)
    spread_size = _spread_size(as_convolution)
    if spread_size > _largest_spread(g.input_size):
        return None
    return SmallWindows(
        common.sizes_of(as_convolution),
        math.prod(g.output_size[:2]),
        (g.output_size[2] - 1) * g.stride[2] + 1,
        spread_size,
        2 * taps + math.prod(g.input_size[:2]),
    )


@lru_cache(maxsize=1024)
def _pool_operations(g: PoolGeometry) -> int:
    taps = math.prod(int(axis.inside.max()) for axis in pool_windows(g))
    return math.prod(g.x_shape) + math.prod(g.y_shape) * taps


def _pool_workers(g: PoolGeometry) -> int:
    return launch.worker_count(_pool_operations(g) / 2)


def _row_buffers(g: PoolGeometry, workers: int) -> Array:
    """Divisors and values of an output row, and an input row."""
    return np.empty((workers, 2 * g.output_size[2] + g.input_size[2]))


# --- memory -------------------------------------------------------------------------------------------------


def _flat(array: Array) -> Array:
    """All elements in a row, in an array that Numba takes for writeable: others it would compile for anew."""
    if array.flags.writeable:
        return array.reshape(-1)
    return np.asarray(_Writeable(array))


class _Writeable:
    """A view of a read-only array that says it is not; kernels write to outputs only."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.__array_interface__ = {
            "version": 3,
            "shape": (array.size,),
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
        }


def _bias(bias: Array | None, like: Array) -> Array:
    return np.empty(0, like.dtype) if bias is None else _flat(bias)


def _buffers(count: int, size: int, like: Array) -> Array:
    """Zeros for ``count`` workers, each starting at a cache line.

    Vectors may read elements that nobody wrote. What comes of them is not used, but it should be a number,
    because some processors are slow at others.
    """
    size = _ceil(size, CACHE_LINE // like.itemsize)
    return _aligned(np.zeros, count * size, like).reshape(count, size)


def _aligned(allocate: Callable[..., Array], size: int, like: Array) -> Array:
    memory = allocate(size + CACHE_LINE // like.itemsize, like.dtype)
    start = -memory.ctypes.data % CACHE_LINE // like.itemsize
    return memory[start : start + size]


def _sum_type(array: Array) -> np.dtype[Any]:
    return np.dtype(np.float64) if array.dtype.kind == "f" else array.dtype


def _tile_width(count: int, itemsize: int) -> int:
    return count * vectors.VECTOR_BYTES // itemsize


def _depth_block(depth: int) -> int:
    """The depth in equal parts of at most `vectors.DEPTH`."""
    return -(-depth // -(-depth // vectors.DEPTH))


def _ceil(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def choice(_kernel: str, _dtype: np.dtype[Any], geometry: ConvGeometry | None) -> Choice:
    """One algorithm has a name; it may be computed plane by plane or by panels."""
    if geometry is None:
        return Choice(get_num_threads())
    return Choice(_plan(geometry).workers(), algorithm="direct")


def describe() -> dict[str, str]:
    """What `fastconv.show_config` prints of this backend."""
    return {**launch.describe(), "vectors": f"{vectors.VECTOR_BYTES} bytes"}
