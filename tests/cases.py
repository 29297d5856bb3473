"""Named geometries: real layers at reduced size, and the corners of the parameters' space.

No extent is zero here (kernels never see that; `test_rules.py` does), and nothing is square that need not be.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastconv.backends import load
from fastconv.config import config_context
from fastconv.geometry import (
    ConvGeometry,
    PoolGeometry,
    adaptive_pool_geometry,
    conv_geometry,
    conv_transpose_geometry,
    pool_geometry,
)
from fastconv.testing import Problem, check_kernel, make_problem

# Expected results serve every backend and instruction set.
problem = functools.cache(make_problem)


def check_direct(backend: str, found: Problem) -> None:
    """`check_kernel` by direct summation, whose bound is the narrowest, also where others would be faster."""
    with config_context(algorithm="direct"):
        check_kernel(load(backend), found)


Shape = tuple[int, ...]


class Conv(NamedTuple):
    """Arguments of `fastconv.convNd`; the number of axes follows from the shapes."""

    name: str
    x: Shape
    weight: Shape
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    smoke: bool = False

    @property
    def ndim(self) -> int:
        return len(self.x) - 2

    @property
    def op(self) -> str:
        return f"conv{self.ndim}d"

    @property
    def window(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def geometry(self) -> ConvGeometry:
        return conv_geometry(self.op, self.ndim, self.x, self.weight, **self.window)


class Transposed(NamedTuple):
    """Arguments of `fastconv.conv_transposeNd`."""

    name: str
    x: Shape
    weight: Shape
    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    groups: int = 1
    dilation: Any = 1
    output_size: Any = None
    smoke: bool = False

    @property
    def ndim(self) -> int:
        return len(self.x) - 2

    @property
    def op(self) -> str:
        return f"conv_transpose{self.ndim}d"

    @property
    def window(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "groups": self.groups,
            "dilation": self.dilation,
            "output_size": self.output_size,
        }

    @property
    def geometry(self) -> ConvGeometry:
        return conv_transpose_geometry(self.op, self.ndim, self.x, self.weight, **self.window)


class Pool(NamedTuple):
    """Arguments of `fastconv.max_poolNd` and, without the last two, `fastconv.avg_poolNd`."""

    name: str
    x: Shape
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None
    smoke: bool = False

    @property
    def ndim(self) -> int:
        return len(self.x) - 2

    @property
    def window(self) -> dict[str, Any]:
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
        }

    @property
    def divisor(self) -> dict[str, Any]:
        return {"count_include_pad": self.count_include_pad, "divisor_override": self.divisor_override}

    @property
    def geometry(self) -> PoolGeometry:
        return pool_geometry(f"pool{self.ndim}d", self.ndim, self.x, **self.window, **self.divisor)


class Adaptive(NamedTuple):
    """Arguments of `fastconv.adaptive_avg_poolNd` and `fastconv.adaptive_max_poolNd`."""

    name: str
    x: Shape
    output_size: Any
    smoke: bool = False

    @property
    def ndim(self) -> int:
        return len(self.x) - 2

    @property
    def geometry(self) -> PoolGeometry:
        return adaptive_pool_geometry(f"adaptive_pool{self.ndim}d", self.ndim, self.x, self.output_size)


def params(cases: tuple[Any, ...]) -> list[Any]:
    """The cases as pytest parameters, with their names and marks."""
    assert len({case.name for case in cases}) == len(cases)
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.smoke] if case.smoke else []) for case in cases
    ]


# fmt: off
CONVS = (
    # real layers, reduced
    Conv("lenet-1", (2, 1, 28, 28), (10, 1, 5, 5), smoke=True),
    Conv("lenet-2", (2, 10, 12, 12), (20, 10, 5, 5)),
    Conv("alexnet-1", (1, 3, 63, 51), (16, 3, 11, 11), 4, 2),
    Conv("alexnet-2", (1, 12, 13, 11), (24, 12, 5, 5), 1, 2),
    Conv("vgg-early", (1, 16, 14, 18), (16, 16, 3, 3), 1, 1, smoke=True),
    Conv("vgg-late", (2, 96, 4, 5), (40, 96, 3, 3), 1, 1),
    Conv("resnet-stem", (1, 3, 48, 56), (16, 3, 7, 7), 2, 3, smoke=True),
    Conv("resnet-bottleneck", (2, 72, 7, 9), (64, 72, 1, 1), smoke=True),
    Conv("resnet-strided", (2, 24, 14, 15), (40, 24, 3, 3), 2, 1),
    Conv("resnet-downsample", (2, 24, 14, 15), (48, 24, 1, 1), 2),
    Conv("resnext-grouped", (2, 32, 7, 8), (48, 4, 3, 3), 1, 1, 1, 8, smoke=True),
    Conv("inception-1x7", (1, 20, 9, 17), (24, 20, 1, 7), 1, (0, 3)),
    Conv("inception-7x1", (1, 20, 17, 9), (24, 20, 7, 1), 1, (3, 0)),
    Conv("mobilenet-depthwise", (2, 35, 14, 17), (35, 1, 3, 3), 1, 1, 1, 35, smoke=True),
    Conv("mobilenet-depthwise-strided", (2, 19, 15, 14), (19, 1, 3, 3), 2, 1, 1, 19),
    Conv("efficientnet-depthwise-5x5", (1, 21, 13, 19), (21, 1, 5, 5), 2, 2, 1, 21),
    Conv("densenet-growth", (1, 44, 7, 6), (12, 44, 3, 3), 1, 1),
    Conv("deeplab-atrous", (1, 9, 19, 17), (13, 9, 3, 3), 1, 6, 6),
    Conv("speech-1d", (2, 1, 403), (16, 1, 80), 4),
    Conv("text-1d", (3, 30, 11), (20, 30, 3)),
    Conv("wavenet-1d", (2, 8, 61), (12, 8, 2), 1, "causal", 4, smoke=True),
    Conv("video-3d", (1, 3, 4, 12, 11), (8, 3, 3, 3, 3), 1, 1, smoke=True),
    Conv("video-3d-strided", (1, 5, 6, 9, 10), (7, 5, 2, 3, 4), (1, 2, 3), (1, 0, 2)),
    Conv("segmentation-far-windows", (2, 6, 23, 61), (7, 6, 4, 9), (3, 5), (2, 6)),
    Conv("speech-1d-strided", (1, 5, 203), (6, 5, 15), 4, 7),
    # corners
    Conv("one-element", (1, 1, 1, 1), (1, 1, 1, 1), smoke=True),
    Conv("one-element-1d", (1, 1, 1), (1, 1, 1)),
    Conv("one-element-3d", (1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    Conv("nothing-is-square", (3, 6, 11, 13), (9, 2, 4, 3), (2, 3), ((1, 2), (3, 0)), (2, 1), 3, smoke=True),
    Conv("nothing-is-square-1d", (3, 4, 29), (6, 2, 5), 3, ((2, 5),), 2, 2),
    Conv("nothing-is-square-3d", (2, 4, 5, 6, 7), (6, 2, 2, 3, 1), (2, 1, 3), ((1, 0), (0, 2), (2, 1)),
         (1, 2, 3), 2, smoke=True),
    Conv("kernel-is-input", (2, 5, 6, 7), (9, 5, 6, 7), smoke=True),
    Conv("kernel-is-padded-input", (1, 3, 2, 3), (4, 3, 4, 6), 1, ((1, 1), (1, 2))),
    Conv("kernel-exceeds-input", (1, 2, 2, 1), (3, 2, 5, 4), 1, (2, 3)),
    Conv("windows-in-padding", (1, 2, 3, 2), (3, 2, 2, 3), 1, (5, 4), smoke=True),
    Conv("windows-in-low-padding", (1, 2, 3, 4), (3, 2, 2, 2), 2, ((7, 0), (6, 0))),
    Conv("windows-in-high-padding", (1, 2, 3, 4), (3, 2, 2, 2), 2, ((0, 7), (0, 6))),
    Conv("stride-exceeds-kernel", (2, 3, 16, 19), (5, 3, 2, 3), (5, 4), smoke=True),
    Conv("stride-exceeds-input", (2, 3, 5, 6), (4, 3, 2, 2), (100, 2**40)),
    Conv("unread-end", (1, 2, 10, 12), (3, 2, 3, 3), 4),
    Conv("dilation-exceeds-input", (1, 2, 3, 4), (3, 2, 2, 2), 1, (5, 6), (6, 7)),
    Conv("dilation-and-stride", (1, 4, 23, 19), (6, 4, 3, 3), (3, 2), (2, 4), (2, 3)),
    Conv("stride-divides-dilation", (1, 3, 17, 15), (4, 3, 3, 3), 2, 4, 4),
    Conv("one-output-channel", (2, 17, 7, 9), (1, 17, 3, 3), 1, 1, smoke=True),
    Conv("one-input-channel", (2, 1, 9, 33), (18, 1, 3, 3), 1, 1),
    Conv("channels-beyond-vectors", (1, 33, 5, 6), (67, 33, 3, 2)),
    Conv("groups-beyond-vectors", (1, 51, 5, 6), (34, 3, 3, 3), 1, 1, 1, 17),
    Conv("depthwise-multiplier", (2, 7, 9, 10), (21, 1, 3, 2), (1, 2), 1, 1, 7, smoke=True),
    Conv("depthwise-dilated", (1, 10, 15, 16), (10, 1, 3, 3), 1, 2, 2, 10),
    Conv("depthwise-1d", (2, 9, 40), (9, 1, 7), 1, "same", 1, 9),
    Conv("depthwise-3d", (1, 6, 5, 6, 7), (6, 1, 3, 3, 3), (1, 2, 1), 1, 1, 6),
    Conv("depthwise-strided", (2, 5, 15, 29), (5, 1, 3, 3), 2, 1, 1, 5, smoke=True),
    Conv("depthwise-convnext", (1, 3, 14, 28), (3, 1, 7, 7), 1, 3, 1, 3, smoke=True),
    Conv("depthwise-5x5-strided", (1, 4, 13, 33), (4, 1, 5, 5), 2, 2, 1, 4),
    Conv("depthwise-nothing-is-square", (2, 3, 11, 18), (3, 1, 4, 5), (1, 2), ((0, 3), (4, 1)), (3, 1), 3),
    Conv("depthwise-rows-far-apart", (1, 3, 23, 17), (3, 1, 3, 3), (3, 1), (2, 1), (2, 1), 3),
    Conv("depthwise-dilated-strided", (1, 3, 21, 20), (3, 1, 3, 3), 2, 4, (2, 3), 3),
    Conv("depthwise-padding-exceeds-kernel", (1, 2, 5, 6), (2, 1, 3, 2), 1, ((5, 4), (3, 6)), 1, 2),
    Conv("depthwise-windows-in-padding", (1, 2, 4, 3), (2, 1, 2, 2), (3, 2), (4, 5), 1, 2),
    Conv("depthwise-one-row", (2, 3, 1, 37), (3, 1, 3, 3), 1, 1, 1, 3),
    Conv("depthwise-one-column", (2, 3, 37, 1), (3, 1, 3, 3), 1, 1, 1, 3),
    Conv("depthwise-tall-kernel", (1, 3, 19, 9), (3, 1, 17, 1), 1, (8, 0), 1, 3),
    Conv("depthwise-wide-kernel", (1, 3, 9, 40), (3, 1, 1, 17), 1, (0, 8), 1, 3),
    Conv("depthwise-wide", (1, 2, 9, 203), (2, 1, 3, 3), 2, 1, 1, 2),
    Conv("depthwise-3d-strided", (1, 2, 7, 8, 17), (2, 1, 3, 2, 3), 2, 1, (1, 2, 1), 2, smoke=True),
    Conv("pointwise-strided", (3, 5, 9, 10), (11, 5, 1, 1), (2, 3)),
    Conv("pointwise-padded", (2, 5, 4, 6), (7, 5, 1, 1), 1, (2, 1)),
    Conv("pointwise-on-one-pixel", (4, 70, 1, 1), (50, 70, 1, 1)),
    Conv("pointwise-images-share-vectors", (3, 20, 9, 13), (9, 20, 1, 1), smoke=True),
    Conv("pointwise-sums-in-parts", (2, 300, 7, 7), (70, 300, 1, 1)),
    Conv("strided-sums-in-parts", (1, 70, 9, 9), (70, 70, 3, 3), 2, 1),
    Conv("valid", (1, 3, 8, 9), (4, 3, 3, 2), 2, "valid"),
    Conv("same", (1, 3, 8, 9), (4, 3, 4, 3), 1, "same"),
    Conv("same-strided", (1, 3, 11, 14), (4, 3, 4, 3), (3, 5), "same"),
    Conv("same-lower", (1, 3, 11, 14), (4, 3, 4, 2), (2, 3), "same_lower", (1, 2)),
    Conv("wide-image", (1, 2, 2, 301), (3, 2, 2, 5), 1, (0, 2)),
    Conv("tall-image", (1, 2, 301, 2), (3, 2, 5, 2), 1, (2, 0)),
    Conv("large-batch", (37, 2, 4, 3), (3, 2, 2, 2)),
    Conv("many-taps", (1, 2, 20, 21), (3, 2, 13, 12), 1, 6),
)

TRANSPOSED = (
    Transposed("unet-up", (1, 24, 6, 7), (24, 12, 2, 2), 2, smoke=True),
    Transposed("dcgan", (2, 16, 4, 5), (16, 9, 4, 4), 2, 1),
    Transposed("fcn-bilinear", (1, 5, 4, 6), (5, 1, 8, 8), 4, 2, 0, 5),
    Transposed("decoder-1d", (2, 6, 13), (6, 4, 5), 3, 1, 2),
    Transposed("decoder-3d", (1, 4, 2, 3, 4), (4, 3, 3, 2, 3), (2, 3, 1), (1, 0, 1), (1, 2, 0), smoke=True),
    Transposed("nothing-is-square", (2, 6, 5, 4), (6, 5, 4, 3), (2, 3), ((1, 2), (0, 1)), (1, 2), 3, (1, 2),
               smoke=True),
    Transposed("output-size", (1, 3, 4, 5), (3, 2, 3, 3), 3, 1, 0, 1, 1, (12, 14)),
    Transposed("output-padding-up-to-dilation", (1, 2, 4, 3), (2, 3, 2, 2), 1, 0, (2, 3), 1, (3, 4)),
    Transposed("same", (1, 3, 4, 5), (3, 4, 3, 4), (2, 3), "same"),
    Transposed("same-lower", (1, 3, 4, 5), (3, 4, 3, 4), (2, 3), "same_lower"),
    Transposed("same-stride-exceeds-kernel", (1, 3, 4, 5), (3, 4, 1, 2), (3, 4), "same"),
    Transposed("causal", (1, 3, 9), (3, 2, 3), 1, "causal", 0, 1, 2),
    Transposed("gaps", (1, 3, 3, 4), (3, 2, 2, 2), 4, smoke=True),
    Transposed("all-padding-removed", (1, 2, 3, 3), (2, 3, 3, 3), 1, 2),
    Transposed("one-output-channel", (1, 9, 5, 6), (9, 1, 3, 3), 2, 1, 1),
    Transposed("pointwise", (1, 17, 5, 6), (17, 18, 1, 1)),
)

POOLS = (
    Pool("halve", (2, 3, 8, 34), 2, smoke=True),
    Pool("halve-odd", (2, 3, 9, 33), 2),
    Pool("resnet", (1, 5, 17, 22), 3, 2, 1, smoke=True),
    Pool("alexnet", (1, 4, 13, 15), 3, 2),
    Pool("inception", (1, 4, 9, 35), 3, 1, 1),
    Pool("googlenet-ceil", (1, 4, 14, 12), 3, 2, 0, 1, True),
    Pool("audio-1d", (2, 5, 67), 4, 3, 1, smoke=True),
    Pool("video-3d", (1, 3, 4, 6, 8), 2, 2, smoke=True),
    Pool("one-element", (1, 1, 1, 1), 1),
    Pool("nothing-is-square", (2, 3, 11, 13), (3, 4), (2, 3), ((2, 1), (0, 3)), (1, 2), True, smoke=True),
    Pool("nothing-is-square-3d", (1, 2, 5, 6, 7), (2, 3, 1), (1, 2, 3), ((1, 0), (2, 1), (0, 0)), (2, 1, 1),
         True),
    Pool("most-padding", (1, 2, 5, 6), (4, 3), 1, (3, 2), smoke=True),
    Pool("most-padding-dilated", (1, 2, 6, 5), (3, 2), 2, (4, 3), (2, 3)),
    Pool("ceil-overhang", (1, 2, 8, 11), 3, 3, 0, 1, True, smoke=True),
    Pool("ceil-window-dropped", (1, 2, 5, 7), 2, 3, 1, 1, True),
    Pool("ceil-padded", (1, 2, 8, 9), (3, 4), (3, 2), (1, 2), 1, True),
    Pool("ceil-stride-exceeds-kernel", (1, 2, 9, 10), (2, 1), (4, 3), 0, 1, True),
    Pool("stride-exceeds-kernel", (1, 3, 16, 19), 2, (5, 4)),
    Pool("stride-exceeds-input", (1, 2, 5, 6), 2, (100, 2**40)),
    Pool("global", (2, 3, 7, 9), (7, 9), smoke=True),
    Pool("pointwise", (1, 3, 5, 18), 1),
    Pool("pointwise-strided", (1, 3, 5, 18), 1, (2, 3)),
    Pool("no-element-in-window", (1, 2, 1, 2), 2, 1, 2, 2, smoke=True),
    Pool("no-element-in-some-windows", (1, 2, 3, 5), (2, 3), 1, (4, 3), (4, 2)),
    Pool("large-window", (1, 2, 31, 17), (29, 15), 1, 7),
    Pool("vast-window", (1, 2, 5, 4), 2**40, 2**39, 2**40 - 1),
    Pool("vast-dilation", (1, 2, 5, 4), 2, 2**38, 2**40, 2**40),
    Pool("vast-dilation-reaching", (1, 1, 2), (3,), (1,), ((2**40, 2**40 - 1),), (2**40,)),
    Pool("same", (1, 3, 11, 14), (4, 3), (3, 5), "same"),
    Pool("same-lower", (1, 3, 11, 14), (4, 3), (3, 2), "same_lower"),
    Pool("causal", (1, 3, 20), 4, 1, "causal", 2),
    Pool("wide", (1, 1, 3, 203), 3, 1, 1),
    Pool("tall", (1, 1, 203, 3), 3, 1, 1),
    Pool("many-planes", (19, 7, 3, 4), 2, 1),
    # divisors
    Pool("exclude-padding", (1, 2, 9, 11), 3, 2, 1, 1, False, False, smoke=True),
    Pool("exclude-padding-ceil", (1, 2, 9, 11), (3, 4), (2, 3), (1, 2), 1, True, False),
    Pool("exclude-padding-asymmetric", (1, 2, 7, 9), (4, 5), 2, ((3, 1), (0, 4)), 1, True, False),
    Pool("exclude-padding-dilated", (1, 2, 9, 11), 3, 2, 3, 2, True, False),
    Pool("exclude-padding-empty-window", (1, 2, 1, 2), 2, 1, 2, 2, False, False),
    Pool("divisor", (1, 2, 9, 10), (3, 2), 2, 1, 1, True, True, 7),
    Pool("divisor-negative", (1, 2, 9, 10), (3, 2), 2, 1, 1, True, False, -3),
)

ADAPTIVE = (
    Adaptive("global", (2, 5, 7, 9), 1, smoke=True),
    Adaptive("even", (2, 3, 8, 12), (4, 3)),
    Adaptive("uneven", (1, 3, 7, 10), (3, 4), smoke=True),
    Adaptive("enlarging", (1, 2, 3, 4), (7, 5)),
    Adaptive("kept", (1, 2, 6, 7), (None, 3)),
    Adaptive("alexnet", (1, 4, 13, 11), 6),
    Adaptive("one-dimension", (2, 3, 23), 5),
    Adaptive("three-dimensions", (1, 2, 5, 6, 7), (2, 4, 3)),
)
# fmt: on

# --- Winograd's algorithm ---

WINOGRAD_UNITS = 64 / 8  # of its bound, in those of direct summation, which `make_problem` gives

# Sizes that leave rows, columns and panels of tiles unfinished; every padding; several images to a panel.
WINOGRAD = {
    "whole-tiles": (2, (2, 16, 8, 8), (16, 16, 3, 3), 1, 1),
    "odd": (2, (3, 17, 13, 19), (21, 17, 3, 3), 1, 1),
    "one-tile": (2, (1, 16, 3, 3), (16, 16, 3, 3), 1, 1),
    "one-result": (2, (1, 16, 3, 3), (16, 16, 3, 3), 1, 0),
    "no-padding": (2, (2, 19, 21, 6), (16, 19, 3, 3), 1, 0),
    "much-padding": (2, (1, 16, 7, 5), (18, 16, 3, 3), 1, 2),
    "uneven-padding": (2, (2, 16, 9, 11), (16, 16, 3, 3), 1, ((2, 0), (0, 2))),
    "far-padding": (2, (1, 16, 4, 5), (16, 16, 3, 3), 1, ((9, 0), (0, 11))),
    "wide": (2, (1, 16, 5, 150), (16, 16, 3, 3), 1, 1),
    "deep": (2, (1, 600, 7, 9), (40, 600, 3, 3), 1, 1),
    "many-results": (2, (1, 24, 6, 6), (333, 24, 3, 3), 1, 1),
    "groups": (2, (2, 48, 10, 9), (51, 16, 3, 3), 3, 1),
    "three-slices": (3, (2, 17, 5, 9, 7), (18, 17, 3, 3, 3), 1, 1),
    "slices-of-padding": (3, (1, 16, 2, 6, 5), (16, 16, 2, 3, 3), 1, ((1, 2), (0, 1), (1, 1))),
    "two-by-two": (2, (2, 18, 9, 11), (17, 18, 2, 2), 1, 1),
    "four-by-two": (2, (1, 16, 9, 11), (16, 16, 4, 2), 1, (2, 1)),
    "five-by-five": (2, (2, 17, 12, 13), (20, 17, 5, 5), 1, 2),
    "three-by-seven": (2, (1, 16, 9, 15), (33, 16, 3, 7), 1, ((1, 0), (2, 4))),
    "five-by-five-by-two": (3, (1, 16, 3, 9, 8), (16, 16, 2, 5, 5), 1, ((0, 1), (2, 2), (2, 2))),
    "many-images": (2, (90, 16, 7, 9), (16, 16, 3, 3), 1, 1),
    "large-weights": (2, (2, 130, 9, 9), (300, 130, 3, 3), 1, 1),
    "three-dimensional": (3, (2, 16, 4, 9, 7), (16, 16, 1, 3, 3), 1, ((0, 0), (1, 1), (1, 1))),
}


# The same with the dilation at the end.
WINOGRAD_DILATED = {
    "dilated": (2, (2, 16, 14, 17), (18, 16, 3, 3), 1, 2, 2),
    "dilated-by-more-than-there-is": (2, (1, 16, 5, 3), (16, 16, 3, 3), 1, 4, 4),
    "dilated-unevenly": (2, (2, 17, 13, 20), (16, 17, 3, 3), 1, ((2, 4), (3, 0)), (2, 3)),
    "dilated-on-one-axis": (2, (1, 16, 9, 16), (16, 16, 3, 5), 1, (1, 6), (1, 3)),
    "dilated-groups": (2, (2, 32, 11, 10), (34, 16, 3, 3), 2, 2, 2),
}


def winograd_problem(name: str, kernel: str, dtype: str, **options: Any) -> Problem:
    """With the bounds of Winograd's algorithm."""
    ndim, x_shape, weight_shape, groups, padding, dilation = (
        (*WINOGRAD[name], 1) if name in WINOGRAD else WINOGRAD_DILATED[name]
    )
    geometry = conv_geometry(f"conv{ndim}d", ndim, x_shape, weight_shape, 1, padding, dilation, groups)
    found = make_problem(kernel, geometry, dtype, **options)
    bounds = [WINOGRAD_UNITS * bound for bound in found.bounds]
    if kernel == "conv_grad_weight":  # a filter's gradients come from the same products: so do their errors
        bounds = [np.broadcast_to(bound.max((-2, -1), keepdims=True), bound.shape) for bound in bounds]
    return found._replace(bounds=tuple(bounds))
