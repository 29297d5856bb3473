"""Convolutions on a device: from the geometry to launches. Nothing here depends on the device, results neither."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from fastconv.activations import ACTIVATION_CODES
from fastconv.backends.cupy import registry
from fastconv.backends.cupy.launch import Array, Device, DType, Launch, blocks_of, index_type, packed
from fastconv.backends.cupy.registry import Tile
from fastconv.geometry import ConvGeometry, Size3

FEW = 4  # results of a group: fewer are computed one by one
PHASES = 16  # of strides that get a pass each
BUSY = 512  # blocks that keep every device busy: a constant, since results are not to depend on the device
PART = 1024  # terms of a sum that are worth a block


class Pass(NamedTuple):
    """The fields of the struct Convolution in convolution.cuh, in its order."""

    batch: int
    groups: int
    sources: int
    results: int
    source_size: Size3
    result_size: Size3
    outputs: Size3
    out_start: Size3
    out_step: Size3
    step: Size3
    offset: Size3
    taps: Size3
    tap_step: Size3
    kernel_start: Size3
    kernel_step: Size3
    divisor: Size3
    weight_group: int
    weight_result: int
    weight_source: int
    parts: int
    part_length: int
    activation: int

    @property
    def pixels(self) -> int:
        return self.batch * math.prod(self.outputs)

    @property
    def window(self) -> int:
        """Terms of the sum of a result."""
        return self.sources * math.prod(self.taps)

    @property
    def weights(self) -> int:
        return self.groups * self.weight_group

    def index_type(self) -> DType:
        """What holds every size, place and offset of the pass."""
        reach, stride = 0, 1
        places = []
        for axis in (2, 1, 0):
            last = self.offset[axis] + (self.outputs[axis] - 1) * self.step[axis]
            taps = abs((self.taps[axis] - 1) * self.tap_step[axis])
            places.append(max(abs(self.offset[axis]), abs(last)) + taps)
            reach += places[-1] * stride
            stride *= self.source_size[axis]
        channels = self.batch * self.groups
        return index_type(
            (
                *self.out_step,
                *self.divisor,
                *places,
                reach + channels * self.sources * math.prod(self.source_size),
                channels * self.results * math.prod(self.result_size),
                self.parts * max(self.weights, self.part_length),
                self.pixels,
                self.window,
            )
        )


class _Axis(NamedTuple):
    """One axis of a pass; `position` and `every` say which taps of the kernel it has."""

    outputs: int
    out_start: int
    out_step: int
    step: int
    offset: int
    taps: int
    tap_step: int
    position: int
    every: int
    divisor: int = 1


# --- passes ---


def forward_pass(geometry: ConvGeometry, activation: str | None = None) -> Pass:
    """The convolution itself, and what the gradient of its weights sums over."""
    axes = [
        _Axis(outputs, 0, 1, stride, -pad, taps, dilation, 0, 1)
        for outputs, stride, pad, taps, dilation in zip(
            geometry.output_size,
            geometry.stride,
            geometry.pad_low,
            geometry.kernel_size,
            geometry.dilation,
            strict=True,
        )
    ]
    return _pass(geometry, axes, activation, forward=True)


def grad_input_passes(geometry: ConvGeometry, activation: str | None = None) -> list[Pass]:
    """A pass for each phase of the strides."""
    phases = product(*(_phases(geometry, axis) for axis in range(3)))
    return [_pass(geometry, axes, activation, forward=False) for axes in phases]


def grad_input_pass(geometry: ConvGeometry, activation: str | None = None) -> Pass:
    """All phases at once: input i takes part in output (i + pad - t*dilation) / stride where that is whole."""
    axes = [
        _Axis(size, 0, 1, 1, pad, taps, -dilation, 0, 1, stride)
        for size, pad, taps, dilation, stride in zip(
            geometry.input_size,
            geometry.pad_low,
            geometry.kernel_size,
            geometry.dilation,
            geometry.stride,
            strict=True,
        )
    ]
    return _pass(geometry, axes, activation, forward=False)


def _phases(geometry: ConvGeometry, axis: int) -> list[_Axis]:
    """Inputs phase, phase + stride, ...: taps t for which phase + pad - t*dilation is a multiple of the stride.

    They recur every stride / gcd(stride, dilation) taps, where the output that they read is dilation / gcd less.
    """
    size, taps, pad = geometry.input_size[axis], geometry.kernel_size[axis], geometry.pad_low[axis]
    stride, dilation = geometry.stride[axis], geometry.dilation[axis]
    common = math.gcd(stride, dilation)
    every = stride // common
    found = []
    for phase in range(min(stride, size)):
        outputs = -(-(size - phase) // stride)
        first = next((t for t in range(min(every, taps)) if (phase + pad - t * dilation) % stride == 0), None)
        if first is None:  # nothing but the bias
            found.append(_Axis(outputs, phase, stride, 1, 0, 0, 0, 0, 0))
        else:
            offset = (phase + pad - first * dilation) // stride
            count = (taps - 1 - first) // every + 1
            found.append(_Axis(outputs, phase, stride, 1, offset, count, -dilation // common, first, every))
    return found


def _pass(
    geometry: ConvGeometry, axes: list[_Axis] | tuple[_Axis, ...], activation: str | None, *, forward: bool
) -> Pass:
    inputs, outputs = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    window = math.prod(geometry.kernel_size)
    strides = (geometry.kernel_size[1] * geometry.kernel_size[2], geometry.kernel_size[2], 1)

    def three(name: str) -> Size3:
        a, b, c = (getattr(axis, name) for axis in axes)
        return a, b, c

    def steps(name: str, counts: str) -> Size3:
        """Distances, which may be vast, of things of which there may be one."""
        a, b, c = (getattr(axis, name) if getattr(axis, counts) > 1 else 0 for axis in axes)
        return a, b, c

    start, every = three("position"), steps("every", "taps")
    return Pass(
        geometry.batch,
        geometry.groups,
        inputs if forward else outputs,
        outputs if forward else inputs,
        geometry.input_size if forward else geometry.output_size,
        geometry.output_size if forward else geometry.input_size,
        three("outputs"),
        three("out_start"),
        steps("out_step", "outputs"),
        steps("step", "outputs"),
        three("offset"),
        three("taps"),
        steps("tap_step", "taps"),
        (start[0] * strides[0], start[1] * strides[1], start[2] * strides[2]),
        (every[0] * strides[0], every[1] * strides[1], every[2] * strides[2]),
        three("divisor"),
        inputs * outputs * window,
        inputs * window if forward else window,
        window if forward else inputs * window,
        1,
        0,
        ACTIVATION_CODES[activation],
    )


# --- plans ---


def _tile(dtype: DType, rows: int, columns: int, groups: int) -> Tile:
    """The smallest one that holds all rows, or else the largest one of which there are enough."""
    tiles = registry.TILES[dtype.name]
    if rows <= tiles[-1].rows:
        return tiles[-1]
    return next(
        (
            tile
            for tile in tiles[:-1]
            if rows > tile.rows // 2 and _tiles(tile, rows, columns) * groups >= BUSY
        ),
        tiles[min(1, len(tiles) - 1)],
    )


def _tiles(tile: Tile, rows: int, columns: int) -> int:
    return -(-rows // tile.rows) * -(-columns // tile.columns)


@lru_cache(maxsize=1024)
def gather_plan(
    geometry: ConvGeometry,
    dtype: DType,
    activation: str | None,
    forward: bool,
    tile: Tile | None = None,
) -> tuple[Launch, ...]:
    """The launches of ``conv_forward`` or ``conv_grad_input``; without a tile, the one that seems best, or none."""
    phases = 1 if forward else math.prod(map(min, geometry.stride, geometry.input_size))
    channels = geometry.out_channels if forward else geometry.in_channels
    if tile is None and (channels // geometry.groups < FEW or phases > PHASES):
        p = forward_pass(geometry, activation) if forward else grad_input_pass(geometry, activation)
        index = p.index_type()
        kernel = registry.simple("conv_direct", "conv_direct.cuh", dtype, index)
        blocks = blocks_of(p.pixels * p.groups * p.results, kernel)
        return (Launch(kernel, blocks, packed(p, index)),)
    passes = [forward_pass(geometry, activation)] if forward else grad_input_passes(geometry, activation)
    launches = []
    for p in passes:
        chosen = tile or _tile(dtype, p.results, p.pixels, p.groups)
        p = p._replace(part_length=p.window)
        index = p.index_type()
        kernel = registry.conv_gemm(dtype, index, chosen, False)
        blocks = _tiles(chosen, p.results, p.pixels) * p.groups
        launches.append(Launch(kernel, blocks, packed(p, index)))
    return tuple(launches)


class GradWeightPlan(NamedTuple):
    """The launch that makes the parts of the sums, how many elements these have, and the launch that adds them."""

    make: Launch
    partial: int  # 0: there is one part, the gradient itself
    add: Launch


@lru_cache(maxsize=1024)
def grad_weight_plan(
    geometry: ConvGeometry, dtype: DType, tile: Tile | None = None, parts: int | None = None
) -> GradWeightPlan:
    """The launches of ``conv_grad_weight``; tile and number of parts as seem best where they are not given."""
    p = forward_pass(geometry)
    direct = tile is None and p.results < FEW
    chosen = tile or _tile(dtype, p.results, p.window, p.groups)
    blocks = p.weights if direct else _tiles(chosen, p.results, p.window) * p.groups
    if parts is None:
        parts = max(1, min(BUSY // blocks, p.pixels // PART))
    length = -(-p.pixels // parts)
    parts = -(-p.pixels // length)
    p = p._replace(parts=parts, part_length=length)
    index = p.index_type()
    if direct:
        kernel = registry.simple("conv_direct_grad_weight", "conv_direct.cuh", dtype, index)
    else:
        kernel = registry.conv_gemm(dtype, index, chosen, True)
    parameters = packed(p, index)
    add = registry.simple("conv_add_parts", "conv_gemm.cuh", dtype, index)
    return GradWeightPlan(
        Launch(kernel, blocks * parts, parameters),
        parts * p.weights if parts > 1 else 0,
        Launch(add, blocks_of(p.weights, add), parameters),
    )


# --- kernels ---


def conv_forward(
    device: Device,
    x: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None,
    y: Array,
    geometry: ConvGeometry,
) -> None:
    """``y = activation(weight * x + bias)``."""
    run_gather(device, gather_plan(geometry, x.dtype, activation, True), x, weight, bias, y)


def conv_grad_input(
    device: Device,
    grad_y: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None,
    grad_x: Array,
    geometry: ConvGeometry,
) -> None:
    """``grad_x = activation(adjoint of the convolution applied to grad_y + bias)``."""
    run_gather(device, gather_plan(geometry, grad_y.dtype, activation, False), grad_y, weight, bias, grad_x)


def conv_grad_weight(
    device: Device, x: Array, grad_y: Array, grad_weight: Array, geometry: ConvGeometry
) -> None:
    """The derivative by the weights."""
    run_grad_weight(device, grad_weight_plan(geometry, x.dtype), x, grad_y, grad_weight)


def run_gather(
    device: Device, plan: tuple[Launch, ...], source: Array, weight: Array, bias: Array | None, result: Array
) -> None:
    """Launch what `gather_plan` says."""
    for kernel, blocks, parameters in plan:
        unused = (None,) if kernel.template == "conv_gemm" else ()  # partial sums
        device.launch(kernel, blocks, parameters, source, weight, bias, result, *unused)


def run_grad_weight(
    device: Device, plan: GradWeightPlan, x: Array, grad_y: Array, grad_weight: Array
) -> None:
    """Launch what `grad_weight_plan` says."""
    make, size, add = plan
    partial = device.empty(size, x.dtype) if size else None
    if make.kernel.template == "conv_gemm":
        device.launch(make.kernel, make.blocks, make.parameters, x, grad_y, None, grad_weight, partial)
    else:
        target = grad_weight if partial is None else partial
        device.launch(make.kernel, make.blocks, make.parameters, x, grad_y, target)
    if partial is not None:
        device.launch(add.kernel, add.blocks, add.parameters, x, grad_y, partial, grad_weight)
