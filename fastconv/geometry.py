"""The only validation of shapes and the only output-size arithmetic in the project.

Every public operation turns its shapes and window parameters into one immutable geometry here, once; backends
receive a geometry that is known to be sound and never look at user input. One- and two-dimensional operations
are three-dimensional ones with extents of one in front, so a backend writes each kernel once.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastconv.errors import ShapeError

Size3 = tuple[int, int, int]
Shape = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]
IntOrInts = int | Sequence[int]
T = TypeVar("T")
Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]

# Sums and products of two legal sizes stay inside 64 signed bits, so kernels may add and subtract freely.
SIZE_LIMIT = 2**61
SAME_PADDINGS = ("same", "same_lower", "causal")
PADDING_NAMES = ("valid", *SAME_PADDINGS)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class ConvGeometry(NamedTuple):
    """A convolution: ``y[n,k,o] = sum over c, t of weight[k,c,t] * x[n,c, o*stride - pad_low + t*dilation]``.

    A transposed convolution has the geometry of the convolution whose input gradient it is.
    Every size is spatial and has three axes; ``pad_high`` follows from the output size and is not needed.
    """

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    input_size: Size3
    output_size: Size3
    kernel_size: Size3
    stride: Size3
    dilation: Size3
    pad_low: Size3

    @property
    def x_shape(self) -> Shape:
        return (self.batch, self.in_channels, *self.input_size)

    @property
    def y_shape(self) -> Shape:
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def weight_shape(self) -> Shape:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def is_empty(self) -> bool:
        """Nothing to multiply: some extent is zero, so every sum is."""
        return 0 in self.x_shape or 0 in self.y_shape


class PoolGeometry(NamedTuple):
    """Windows over ``planes`` independent images; a plane is one channel of one batch element.

    Where ``adaptive`` is set, window ``i`` of an axis covers ``floor(i*L/o) .. ceil((i+1)*L/o)`` and kernel size,
    stride, dilation and padding are ones and zeros. ``divisor_override`` is 0 where there is none.
    """

    planes: int
    input_size: Size3
    output_size: Size3
    kernel_size: Size3
    stride: Size3
    dilation: Size3
    pad_low: Size3
    pad_high: Size3
    adaptive: bool = False
    count_include_pad: bool = True
    divisor_override: int = 0

    @property
    def x_shape(self) -> Shape:
        return (self.planes, *self.input_size)

    @property
    def y_shape(self) -> Shape:
        return (self.planes, *self.output_size)

    @property
    def is_empty(self) -> bool:
        """Nothing to read or nothing to write."""
        return 0 in self.x_shape or 0 in self.y_shape


class AxisWindows(NamedTuple):
    """For each window of one axis: its first tap inside the input, how many taps lie inside, and its divisor length."""

    first: NDArray[np.int64]
    inside: NDArray[np.int64]
    length: NDArray[np.int64]


class Tap(NamedTuple):
    """One kernel position: ``y[outputs]`` and ``x[inputs]`` (three slices each) are what it connects."""

    position: Size3
    outputs: tuple[slice, slice, slice]
    inputs: tuple[slice, slice, slice]


def taps(geometry: ConvGeometry) -> Iterator[Tap]:
    """Every kernel position in row-major order with the part of input and output that it connects.

    Output ``o`` of an axis reads input ``o*stride - pad_low + t*dilation``; the outputs for which that lies inside
    the input form a range, so padding needs neither a padded copy nor a test per element.
    """
    yield from (
        Tap((t[0][0], t[1][0], t[2][0]), (t[0][1], t[1][1], t[2][1]), (t[0][2], t[1][2], t[2][2]))
        for t in product(*(list(_axis_taps(geometry, axis)) for axis in range(3)))
    )


def _axis_taps(geometry: ConvGeometry, axis: int) -> Iterator[tuple[int, slice, slice]]:
    size, outputs = geometry.input_size[axis], geometry.output_size[axis]
    stride, dilation, pad = geometry.stride[axis], geometry.dilation[axis], geometry.pad_low[axis]
    for t in range(geometry.kernel_size[axis]):
        offset = t * dilation - pad
        first = max(0, -(offset // stride))
        last = min(outputs - 1, (size - 1 - offset) // stride)
        if first <= last:
            start = first * stride + offset
            yield t, slice(first, last + 1), slice(start, last * stride + offset + 1, stride)


def pool_windows(geometry: PoolGeometry) -> tuple[AxisWindows, AxisWindows, AxisWindows]:
    """The windows of each axis, clipped to the input by arithmetic (a window may be far larger than its input)."""
    d, h, w = (_axis_windows(geometry, axis) for axis in range(3))
    return d, h, w


def _axis_windows(geometry: PoolGeometry, axis: int) -> AxisWindows:
    size, outputs = geometry.input_size[axis], geometry.output_size[axis]
    index = np.arange(outputs, dtype=np.int64)
    if geometry.adaptive:
        first = index * size // max(outputs, 1)
        count = -(-(index + 1) * size // max(outputs, 1)) - first
        return AxisWindows(first, count, count)
    stride, dilation, kernel = geometry.stride[axis], geometry.dilation[axis], geometry.kernel_size[axis]
    low, high = geometry.pad_low[axis], geometry.pad_high[axis]
    start = index * stride - low
    skipped = np.maximum(0, -(start // dilation))  # taps left of the input
    inside = np.minimum(kernel, -((start - size) // dilation))  # taps left of its end
    length = np.minimum(kernel, -((start - size - high) // dilation))
    return AxisWindows(start + skipped * dilation, np.maximum(0, inside - skipped), length)


# --- building geometries ---------------------------------------------------------------------------------------------


def conv_geometry(
    op: str,
    ndim: int,
    input_shape: Shape,
    weight_shape: Shape,
    stride: IntOrInts,
    padding: Padding,
    dilation: IntOrInts,
    groups: int,
    *,
    weight_name: str = "weight",
) -> ConvGeometry:
    """The geometry of ``op`` (its name, for messages) with ``ndim`` spatial axes; raises `ShapeError`, `TypeError`."""
    return _conv_geometry(
        op,
        ndim,
        input_shape,
        weight_shape,
        axis_ints(op, "stride", stride, ndim, low=1),
        padding_spec(op, padding, ndim),
        axis_ints(op, "dilation", dilation, ndim, low=1),
        one_int(op, "groups", groups, low=1),
        weight_name,
    )


@lru_cache(maxsize=1024)
def _conv_geometry(
    op: str,
    ndim: int,
    input_shape: Shape,
    weight_shape: Shape,
    stride: Shape,
    padding: str | Pairs,
    dilation: Shape,
    groups: int,
    weight_name: str,
) -> ConvGeometry:
    batch, channels, size = split_shape(op, "input", input_shape, ndim)
    out_channels, kernel = _split_weight(op, weight_name, weight_shape, ndim, "C_out, C_in / groups")
    per_group = weight_shape[1]
    check_groups(op, f"{weight_name} has {out_channels} output channels", out_channels, groups)
    if channels != per_group * groups:
        raise ShapeError(
            f"{op}: {weight_name} has {per_group} input channels per group, "
            f"input has {channels} channels in {groups} group{'s' * (groups != 1)}"
        )
    pads = resolve_padding(padding, size, kernel, stride, dilation)
    output = tuple(
        _window_count(op, axis, *parameters)
        for axis, parameters in enumerate(zip(size, kernel, stride, dilation, pads, strict=True))
    )
    return ConvGeometry(
        batch,
        channels,
        out_channels,
        groups,
        three(size),
        three(output),
        three(kernel),
        three(stride),
        three(dilation),
        three(tuple(low for low, _ in pads), 0),
    )


def conv_transpose_geometry(
    op: str,
    ndim: int,
    input_shape: Shape,
    weight_shape: Shape,
    stride: IntOrInts,
    padding: Padding,
    output_padding: IntOrInts,
    groups: int,
    dilation: IntOrInts,
    output_size: IntOrInts | None,
) -> ConvGeometry:
    """The geometry of the convolution whose input gradient the transposed convolution ``op`` is."""
    return _conv_transpose_geometry(
        op,
        ndim,
        input_shape,
        weight_shape,
        axis_ints(op, "stride", stride, ndim, low=1),
        padding_spec(op, padding, ndim),
        axis_ints(op, "output_padding", output_padding, ndim, low=0),
        one_int(op, "groups", groups, low=1),
        axis_ints(op, "dilation", dilation, ndim, low=1),
        None if output_size is None else given_size(op, "output_size", output_size, ndim),
    )


@lru_cache(maxsize=1024)
def _conv_transpose_geometry(
    op: str,
    ndim: int,
    input_shape: Shape,
    weight_shape: Shape,
    stride: Shape,
    padding: str | Pairs,
    output_padding: Shape,
    groups: int,
    dilation: Shape,
    output_size: Shape | None,
) -> ConvGeometry:
    batch, channels, size = split_shape(op, "input", input_shape, ndim)
    in_channels, kernel = _split_weight(op, "weight", weight_shape, ndim, "C_in, C_out / groups")
    out_channels = weight_shape[1] * groups
    if in_channels != channels:
        raise ShapeError(f"{op}: weight has {in_channels} input channels, input has {channels} channels")
    if channels:  # without any, every sum is 0
        check_groups(op, f"input has {channels} channels", channels, groups)
    if out_channels == 0:
        raise ShapeError(f"{op}: weight of shape {weight_shape} has no output channels")
    if output_size is not None:
        lead = (*input_shape[: -ndim - 1], out_channels)
        output_size = spatial_size(op, "output_size", output_size, ndim, lead)
    if any(extra and output_size is not None for extra in output_padding):
        raise ShapeError(
            f"{op}: output_padding={output_padding} and output_size={output_size} exclude each other"
        )
    check_output_padding(op, output_padding, stride, dilation)
    if isinstance(padding, str) and padding in SAME_PADDINGS:
        if any(output_padding):
            raise ShapeError(
                f"{op}: padding={padding!r} sets the output size, so output_padding must be 0, got {output_padding}"
            )
        outputs = output_size or tuple(length * s for length, s in zip(size, stride, strict=True))
        for o in outputs:
            _check_size(op, "output", o)
        pads = resolve_padding(padding, outputs, kernel, stride, dilation)
        possible = tuple(((length - 1) * s + 1, length * s) for length, s in zip(size, stride, strict=True))
    else:
        pads = resolve_padding(padding, size, kernel, stride, dilation)
        smallest = tuple(
            (length - 1) * s - low - high + d * (k - 1) + 1
            for length, s, (low, high), d, k in zip(size, stride, pads, dilation, kernel, strict=True)
        )
        outputs = output_size or tuple(o + extra for o, extra in zip(smallest, output_padding, strict=True))
        possible = tuple((o, o + max(s, d) - 1) for o, s, d in zip(smallest, stride, dilation, strict=True))
    if 0 in size:
        raise ShapeError(f"{op}: input has an empty spatial axis, shape {input_shape}")
    for o, (low, high), pad, d, k in zip(outputs, possible, pads, dilation, kernel, strict=True):
        _check_size(op, "output", o)
        _check_size(op, "padded output", o + sum(pad))
        _check_size(op, "dilated kernel", d * (k - 1) + 1)
        if o < 1:
            raise ShapeError(
                f"{op}: output size {outputs} is not positive (input size {size}, kernel size {kernel}, padding {pads})"
            )
        if not low <= o <= high:
            raise ShapeError(f"{op}: output_size={outputs} is out of reach, expected {_ranges(possible)}")
    return ConvGeometry(
        batch,
        out_channels,
        channels,
        groups,
        three(outputs),
        three(size),
        three(kernel),
        three(stride),
        three(dilation),
        three(tuple(low for low, _ in pads), 0),
    )


def pool_geometry(
    op: str,
    ndim: int,
    input_shape: Shape,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: Padding,
    dilation: IntOrInts,
    ceil_mode: bool,
    *,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> PoolGeometry:
    """The geometry of pooling ``op`` over ``ndim`` spatial axes."""
    kernel = axis_ints(op, "kernel_size", kernel_size, ndim, low=1)
    return _pool_geometry(
        op,
        ndim,
        input_shape,
        kernel,
        kernel if stride is None else axis_ints(op, "stride", stride, ndim, low=1),
        padding_spec(op, padding, ndim),
        axis_ints(op, "dilation", dilation, ndim, low=1),
        one_bool(op, "ceil_mode", ceil_mode),
        one_bool(op, "count_include_pad", count_include_pad),
        pool_divisor(op, divisor_override),
    )


@lru_cache(maxsize=1024)
def _pool_geometry(
    op: str,
    ndim: int,
    input_shape: Shape,
    kernel: Shape,
    stride: Shape,
    padding: str | Pairs,
    dilation: Shape,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
) -> PoolGeometry:
    batch, channels, size = split_shape(op, "input", input_shape, ndim)
    pads = resolve_padding(padding, size, kernel, stride, dilation)
    check_pool_padding(op, pads, kernel, dilation)
    output = tuple(
        _window_count(op, axis, *parameters, ceil_mode=ceil_mode)
        for axis, parameters in enumerate(zip(size, kernel, stride, dilation, pads, strict=True))
    )
    return PoolGeometry(
        batch * channels,
        three(size),
        three(output),
        three(kernel),
        three(stride),
        three(dilation),
        three(tuple(low for low, _ in pads), 0),
        three(tuple(high for _, high in pads), 0),
        False,
        count_include_pad,
        divisor_override,
    )


def adaptive_pool_geometry(
    op: str, ndim: int, input_shape: Shape, output_size: int | Sequence[int | None] | None
) -> PoolGeometry:
    """The geometry of adaptive pooling; ``None`` keeps an axis. Even divisions become ordinary windows."""
    batch, channels, size = split_shape(op, "input", input_shape, ndim)
    wanted = output_size if is_sequence(output_size) else (output_size,)
    _check_count(op, "output_size", wanted, ndim)
    output = tuple(
        length if o is None else one_int(op, "output_size", o, low=0)
        for o, length in zip(_one_per_axis(wanted, ndim), size, strict=True)
    )
    if 0 in size:
        raise ShapeError(f"{op}: input has an empty spatial axis, shape {input_shape}")
    ones, zeros = (1, 1, 1), (0, 0, 0)
    if all(o and length % o == 0 for o, length in zip(output, size, strict=True)):
        kernel = three(tuple(length // o for o, length in zip(output, size, strict=True)), 1)
        return PoolGeometry(batch * channels, three(size), three(output), kernel, kernel, ones, zeros, zeros)
    for o, length in zip(output, size, strict=True):
        _check_size(op, "input size times output", o * length)
    return PoolGeometry(
        batch * channels, three(size), three(output), ones, ones, ones, zeros, zeros, adaptive=True
    )


def unpool_size(
    op: str,
    ndim: int,
    input_shape: Shape,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: Padding,
    output_size: IntOrInts | None,
) -> Shape:
    """The spatial size that `max_unpool` restores: by default the smallest that pools to its input."""
    kernel = axis_ints(op, "kernel_size", kernel_size, ndim, low=1)
    steps = kernel if stride is None else axis_ints(op, "stride", stride, ndim, low=1)
    spec = padding_spec(op, padding, ndim)
    size = split_shape(op, "input", input_shape, ndim)[2]
    if isinstance(spec, str) and spec in SAME_PADDINGS:
        default = tuple(length * s for length, s in zip(size, steps, strict=True))
    else:
        pads = resolve_padding(spec, size, kernel, steps, (1,) * ndim)
        default = tuple(
            (length - 1) * s - low - high + k
            for length, s, (low, high), k in zip(size, steps, pads, kernel, strict=True)
        )
    chosen = default
    if output_size is not None:
        given = given_size(op, "output_size", output_size, ndim)
        chosen = spatial_size(op, "output_size", given, ndim, input_shape[:-ndim])
    possible = tuple((max(1, o - s + 1), o + s - 1) for o, s in zip(default, steps, strict=True))
    for o, (low, high) in zip(chosen, possible, strict=True):
        _check_size(op, "output", o)
        if not low <= o <= high:
            raise ShapeError(f"{op}: output size {chosen} is out of reach, expected {_ranges(possible)}")
    return chosen


# --- reading parameters ----------------------------------------------------------------------------------------------


def one_int(op: str, name: str, value: object, *, low: int | None = None) -> int:
    """``value`` as an int of at least ``low``; booleans and floats are refused."""
    if type(value) is not int:
        try:
            if isinstance(value, bool | np.bool_):
                raise TypeError
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{op}: {name} must be an int, got {show(value)}") from None
    if low is not None and value < low:
        raise ShapeError(f"{op}: {name} must be at least {low}, got {show(value)}")
    if abs(value) > SIZE_LIMIT:
        raise ShapeError(f"{op}: {name} must not exceed 2**61, got {show(value)}")
    return value


def one_bool(op: str, name: str, value: object) -> bool:
    """``value`` as a bool: Python's, NumPy's, or the ints 0 and 1; truth of anything else would hide a mistake."""
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_) or (isinstance(value, int | np.integer) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{op}: {name} must be True or False, got {show(value)}")


def axis_ints(op: str, name: str, value: IntOrInts, ndim: int, *, low: int) -> Shape:
    """One int for each spatial axis; a single int stands for all of them."""
    if type(value) is int and low <= value <= SIZE_LIMIT:
        return (value,) * ndim
    if not is_sequence(value):
        return (one_int(op, name, value, low=low),) * ndim
    _check_count(op, name, value, ndim)
    return _one_per_axis(tuple(one_int(op, name, item, low=low) for item in value), ndim)


def given_size(op: str, name: str, value: IntOrInts, ndim: int) -> Shape:
    """A spatial size, with or without batch and channels in front."""
    if is_sequence(value) and len(value) in (ndim + 1, ndim + 2):
        return whole_shape(op, name, value)
    return axis_ints(op, name, value, ndim, low=0)


def spatial_size(op: str, name: str, size: Shape, ndim: int, lead: Shape) -> Shape:
    """The spatial part of what `given_size` returned; what is in front of it must agree with ``lead``, the result's."""
    given = size[:-ndim]
    if given and given != lead[-len(given) :]:
        raise ShapeError(f"{op}: {name}={size} does not fit, the result has shape {(*lead, *size[-ndim:])}")
    return size[-ndim:]


def whole_shape(op: str, name: str, value: Sequence[int]) -> Shape:
    """A shape given by the user: a sequence of ints that are not negative."""
    if not is_sequence(value):
        raise TypeError(f"{op}: {name} must be a sequence of ints, got {show(value)}")
    return tuple(one_int(op, name, item, low=0) for item in value)


def full_shape(op: str, name: str, value: Sequence[int], like: Shape, ndim: int) -> Shape:
    """A whole shape; one that gives the spatial axes only takes batch and channels from ``like``."""
    shape = whole_shape(op, name, value)
    if len(shape) == ndim:
        return (*like[:-ndim], *shape)
    if len(shape) != len(like):
        raise ShapeError(
            f"{op}: {name} has {len(shape)} values, expected {len(like)} (a whole shape) or {ndim}, got {shape}"
        )
    return shape


def padding_spec(op: str, padding: Padding, ndim: int) -> str | Pairs:
    """Padding as one of its names or as one ``(low, high)`` pair for each axis."""
    if type(padding) is int and 0 <= padding <= SIZE_LIMIT:
        return ((padding, padding),) * ndim
    if isinstance(padding, str):
        if padding not in PADDING_NAMES:
            raise ShapeError(
                f"{op}: padding must be numbers or one of {', '.join(PADDING_NAMES)}, got {show(padding)}"
            )
        if padding == "causal" and ndim != 1:
            raise ShapeError(f"{op}: padding='causal' needs one spatial axis, this operation has {ndim}")
        return padding
    if is_sequence(padding):
        items = list(padding)
        if any(is_sequence(item) for item in items):
            if len(items) != ndim or not all(is_sequence(item) and len(item) == 2 for item in items):
                raise ShapeError(
                    f"{op}: padding must give one (low, high) pair for each of {ndim} axes, got {show(padding)}"
                )
            pairs = [tuple(one_int(op, "padding", side, low=0) for side in item) for item in items]
            return tuple((low, high) for low, high in pairs)
        if len(items) == 2 * ndim:
            sides = [one_int(op, "padding", item, low=0) for item in items]
            example = ", ".join(f"({sides[2 * i]}, {sides[2 * i + 1]})" for i in range(ndim))
            raise ShapeError(
                f"{op}: a flat padding of {2 * ndim} ints is ambiguous; give one (low, high) pair for each axis, "
                f"such as padding=({example}{',' * (ndim == 1)}), got {show(padding)}"
            )
    return tuple((p, p) for p in axis_ints(op, "padding", padding, ndim, low=0))  # type: ignore[arg-type]


def resolve_padding(
    padding: str | Pairs, size: Shape, kernel: Shape, stride: Shape, dilation: Shape
) -> Pairs:
    """Named padding as pairs. ``"same"`` is what makes ``out = ceil(in / stride)``, an odd element at the end."""
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return ((0, 0),) * len(size)
    pairs = []
    for length, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        if padding == "causal":
            pairs.append((d * (k - 1), 0))
            continue
        total = max(0, (-(-length // s) - 1) * s + d * (k - 1) + 1 - length)
        small, large = total // 2, total - total // 2
        pairs.append((small, large) if padding == "same" else (large, small))
    return tuple(pairs)


def check_groups(op: str, what: str, channels: int, groups: int) -> None:
    """Raises `ShapeError` unless each group has equally many ``channels``, at least one; ``what`` has them."""
    if channels < groups or channels % groups:
        raise ShapeError(f"{op}: {what}, expected a multiple of groups={groups}")


def check_output_padding(op: str, output_padding: Shape, stride: Shape, dilation: Shape) -> None:
    """Raises `ShapeError` where the output padding reaches the next output size of the same input."""
    if any(o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise ShapeError(
            f"{op}: output_padding={output_padding} must be smaller than stride={stride} or dilation={dilation} "
            "on each axis"
        )


def check_pool_padding(op: str, pads: Pairs, kernel: Shape, dilation: Shape) -> None:
    """Raises `ShapeError` where a pooling window could lie in the padding alone."""
    if any(max(pair) > d * (k - 1) for pair, k, d in zip(pads, kernel, dilation, strict=True)):
        raise ShapeError(
            f"{op}: padding {pads} must be smaller than the dilated kernel on each side "
            f"(kernel_size={kernel}, dilation={dilation})"
        )


def pool_divisor(op: str, divisor_override: int | None) -> int:
    """The divisor that replaces the number of elements, 0 where there is none."""
    if divisor_override is None:
        return 0
    divisor = one_int(op, "divisor_override", divisor_override)
    if divisor == 0:
        raise ShapeError(f"{op}: divisor_override must not be 0")
    return divisor


def split_shape(op: str, name: str, shape: Shape, ndim: int) -> tuple[int, int, Shape]:
    """``(batch, channels, spatial)`` of a batched or unbatched shape."""
    axes = ("D", "H", "W")[3 - ndim :]
    if len(shape) == ndim + 2:
        return shape[0], shape[1], shape[2:]
    if len(shape) == ndim + 1:
        return 1, shape[0], shape[1:]
    batched = ", ".join(("N", "C", *axes))
    raise ShapeError(
        f"{op}: {name} has {len(shape)} dimensions, shape {shape}, "
        f"expected ({batched}) or ({batched.removeprefix('N, ')})"
    )


def check_shape(op: str, name: str, shape: Shape, expected: Shape) -> None:
    """Raises `ShapeError` unless the shapes are equal."""
    if shape != expected:
        raise ShapeError(f"{op}: {name} has shape {shape}, expected {expected}")


def _split_weight(op: str, name: str, shape: Shape, ndim: int, channels: str) -> tuple[int, Shape]:
    """The first axis and the kernel size; ``channels`` names the two axes in front of the kernel, for messages."""
    if len(shape) != ndim + 2:
        kernel = ", ".join(("kD", "kH", "kW")[3 - ndim :])
        raise ShapeError(
            f"{op}: {name} has {len(shape)} dimensions, shape {shape}, expected {ndim + 2}: ({channels}, {kernel})"
        )
    if 0 in shape[2:]:
        raise ShapeError(f"{op}: {name} of shape {shape} has an empty kernel axis")
    return shape[0], shape[2:]


def _window_count(
    op: str,
    axis: int,
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    pads: tuple[int, int],
    *,
    ceil_mode: bool = False,
) -> int:
    """``(L + p_lo + p_hi - d(k-1) - 1 [+ s-1]) // s + 1``; a ceil_mode window may not start beyond the input's end."""
    padded, extent = size + sum(pads), dilation * (kernel - 1) + 1
    _check_size(op, "padded input", padded)
    _check_size(op, "dilated kernel", extent)
    if padded < extent:
        raise ShapeError(
            f"{op}: the kernel spans {extent} elements on spatial axis {axis}, the padded input has {padded} "
            f"(input {size}, padding {pads})"
        )
    count = (padded - extent + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + pads[0]:
        count -= 1
    return count


def _check_count(op: str, name: str, values: Sequence[Any], ndim: int) -> None:
    if len(values) not in (1, ndim):
        expected = "one int" if ndim == 1 else f"one int or {ndim}"
        raise ShapeError(f"{op}: {name} has {len(values)} values, expected {expected}, got {show(values)}")


def _one_per_axis(values: Sequence[T], ndim: int) -> tuple[T, ...]:
    return (values[0],) * ndim if len(values) == 1 else tuple(values)


def _check_size(op: str, what: str, value: int) -> None:
    if value > SIZE_LIMIT:
        raise ShapeError(f"{op}: {what} size must not exceed 2**61, got {value}")


def three(values: Shape, filler: int = 1) -> Size3:
    """``values`` as three axes, with ``filler`` in front."""
    a, b, c = (filler,) * (3 - len(values)) + tuple(values)
    return a, b, c


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether ``value`` gives one value per axis: a list, a tuple or an array that is not a scalar."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _ranges(possible: Pairs) -> str:
    return " x ".join(f"{low}..{high}" for low, high in possible)


class _Short(reprlib.Repr):
    """``repr`` within bounds of length and depth, whatever the object."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80
        self.maxlist = self.maxtuple = 10

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to print the largest ints."""
        return super().repr_int(x, level) if x.bit_length() <= 256 else f"<int of {x.bit_length()} bits>"


show = _Short().repr
