"""The layers that are measured, as data: those of well-known networks, and classes of layers that are alike.

`WORKLOADS` is the one list. ``repeats`` says how often a network has the layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fastconv.geometry import ConvGeometry, conv_geometry, conv_transpose_geometry

Sizes = tuple[int, ...]

DIRECTIONS = ("forward", "grad_input", "grad_weight")


class ConvLayer(NamedTuple):
    """A convolution, or a transposed one, of as many dimensions as ``size`` has axes.

    The sizes have one value per axis; ``size`` is the input's. ``batch`` is that of layers which are always measured
    with the same; otherwise it is the user's choice.
    """

    name: str
    in_channels: int
    out_channels: int
    size: Sizes
    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    groups: int = 1
    transposed: bool = False
    output_padding: Sizes = ()
    batch: int | None = None
    repeats: int = 1

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions that exist."""
        return DIRECTIONS

    @property
    def ndim(self) -> int:
        """The number of spatial axes."""
        return len(self.size)

    @property
    def weight_shape(self) -> Sizes:
        """``(C_out, C_in / groups, *kernel)``; transposed ``(C_in, C_out / groups, *kernel)``."""
        c, k = self.in_channels, self.out_channels
        first, second = (c, k) if self.transposed else (k, c)
        return (first, second // self.groups, *self.kernel)

    @property
    def geometry(self) -> ConvGeometry:
        """For one image; a transposed layer has that of the convolution whose input gradient it is."""
        shape, window = (1, self.in_channels, *self.size), (self.stride, self.padding)
        if self.transposed:
            return conv_transpose_geometry(
                self.name,
                self.ndim,
                shape,
                self.weight_shape,
                *window,
                self.output_padding,
                self.groups,
                self.dilation,
                None,
            )
        return conv_geometry(
            self.name, self.ndim, shape, self.weight_shape, *window, self.dilation, self.groups
        )

    @property
    def output(self) -> Sizes:
        """The size of the output."""
        geometry = self.geometry
        size = geometry.input_size if self.transposed else geometry.output_size
        return size[-self.ndim :]

    def convolution(self) -> ConvLayer:
        """Of a transposed layer, the convolution whose input gradient it is."""
        return self._replace(
            in_channels=self.out_channels,
            out_channels=self.in_channels,
            size=self.output,
            transposed=False,
            output_padding=(),
        )

    def flops(self, batch: int) -> int:
        """Floating-point operations of one direction: a multiplication and an addition per product."""
        return 2 * batch * math.prod(self.geometry.output_size) * math.prod(self.weight_shape)


class PoolLayer(NamedTuple):
    """A 2-D pooling of ``size`` x ``size`` inputs; ``kind`` is "max" (with indices) or "avg".

    Where ``adaptive`` is given, that is the output's size; there are no windows then.
    """

    name: str
    kind: str
    channels: int
    size: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    adaptive: int | None = None
    batch: int | None = None
    repeats: int = 1

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions that exist."""
        return DIRECTIONS[:2]

    @property
    def output(self) -> int:
        """The size of the output."""
        if self.adaptive is not None:
            return self.adaptive
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    def flops(self, batch: int) -> int:  # noqa: ARG002
        """None that count: pooling is bound by memory."""
        return 0


Layer = ConvLayer | PoolLayer


def _conv(
    prefix: str,
    in_channels: int,
    out_channels: int,
    size: int | Sizes,
    kernel: int | Sizes,
    stride: int | Sizes = 1,
    repeats: int = 1,
    groups: int = 1,
    *,
    ndim: int = 2,
    padding: int | Sizes | None = None,
    dilation: int = 1,
    transposed: bool = False,
    output_padding: int = 0,
) -> ConvLayer:
    """A layer, named by its extents; padded to keep the size (at stride 1) unless told otherwise."""

    def axes(value: int | Sizes) -> Sizes:
        return (value,) * ndim if isinstance(value, int) else value

    sizes, kernels, strides = axes(size), axes(kernel), axes(stride)
    parts = [prefix, f"{in_channels}-{out_channels}"]
    parts.append("x".join(map(str, kernels)) if ndim > 1 else f"k{kernels[0]}")
    if max(strides) > 1:
        parts.append(f"s{strides[0]}" if len(set(strides)) == 1 else "s" + "x".join(map(str, strides)))
    if dilation > 1:
        parts.append(f"d{dilation}")
    if groups > 1:
        parts.append("dw" if groups == in_channels else f"g{groups}")
    parts.append("@" + ("x".join(map(str, sizes)) if len(set(sizes)) > 1 else str(sizes[0])))
    if padding is None:
        padding = tuple(dilation * (k - 1) // 2 for k in kernels)
    return ConvLayer(
        " ".join(parts),
        in_channels,
        out_channels,
        sizes,
        kernels,
        strides,
        axes(padding),
        axes(dilation),
        groups,
        transposed,
        axes(output_padding) if transposed else (),
        repeats=repeats,
    )


# --- networks: channels in and out, size, kernel, stride, repeats ------------------------------------------

RESNET50 = [
    _conv("resnet50", *row)
    for row in [
        (3, 64, 224, 7, 2, 1),
        (64, 64, 56, 1, 1, 1),
        (64, 64, 56, 3, 1, 3),
        (64, 256, 56, 1, 1, 4),
        (256, 64, 56, 1, 1, 2),
        (256, 128, 56, 1, 1, 1),
        (128, 128, 56, 3, 2, 1),
        (128, 512, 28, 1, 1, 4),
        (256, 512, 56, 1, 2, 1),
        (512, 128, 28, 1, 1, 3),
        (128, 128, 28, 3, 1, 3),
        (512, 256, 28, 1, 1, 1),
        (256, 256, 28, 3, 2, 1),
        (256, 1024, 14, 1, 1, 6),
        (512, 1024, 28, 1, 2, 1),
        (1024, 256, 14, 1, 1, 5),
        (256, 256, 14, 3, 1, 5),
        (1024, 512, 14, 1, 1, 1),
        (512, 512, 14, 3, 2, 1),
        (512, 2048, 7, 1, 1, 3),
        (1024, 2048, 14, 1, 2, 1),
        (2048, 512, 7, 1, 1, 2),
        (512, 512, 7, 3, 1, 2),
    ]
]

VGG16 = [
    _conv("vgg16", *row)
    for row in [
        (3, 64, 224, 3, 1, 1),
        (64, 64, 224, 3, 1, 1),
        (64, 128, 112, 3, 1, 1),
        (128, 128, 112, 3, 1, 1),
        (128, 256, 56, 3, 1, 1),
        (256, 256, 56, 3, 1, 2),
        (256, 512, 28, 3, 1, 1),
        (512, 512, 28, 3, 1, 2),
        (512, 512, 14, 3, 1, 3),
    ]
]

_MOBILENET_DEPTHWISE = [
    (32, 112, 1, 1),
    (96, 112, 2, 1),
    (144, 56, 1, 1),
    (144, 56, 2, 1),
    (192, 28, 1, 2),
    (192, 28, 2, 1),
    (384, 14, 1, 4),
    (576, 14, 1, 2),
    (576, 14, 2, 1),
    (960, 7, 1, 3),
]
_MOBILENET_POINTWISE = [
    (32, 16, 112, 1),
    (16, 96, 112, 1),
    (96, 24, 56, 1),
    (24, 144, 56, 2),
    (144, 24, 56, 1),
    (144, 32, 28, 1),
    (32, 192, 28, 3),
    (192, 32, 28, 2),
    (192, 64, 14, 1),
    (64, 384, 14, 4),
    (384, 64, 14, 3),
    (384, 96, 14, 1),
    (96, 576, 14, 3),
    (576, 96, 14, 2),
    (576, 160, 7, 1),
    (160, 960, 7, 3),
    (960, 160, 7, 2),
    (960, 320, 7, 1),
    (320, 1280, 7, 1),
]
MOBILENET_V2 = [
    _conv("mobilenet_v2", 3, 32, 224, 3, 2),
    *(_conv("mobilenet_v2", c, c, size, 3, s, n, c) for c, size, s, n in _MOBILENET_DEPTHWISE),
    *(_conv("mobilenet_v2", c, k, size, 1, 1, n) for c, k, size, n in _MOBILENET_POINTWISE),
]

LENET = [_conv("lenet", 1, 10, 28, 5, padding=0), _conv("lenet", 10, 20, 12, 5, padding=0)]

# --- classes of layers -----------------------------------------------------------------------------------

THREE_BY_THREE = [
    _conv("3x3", c, k, size, 3)
    for c, k, size in [
        (64, 64, 56),
        (128, 128, 28),
        (256, 256, 14),
        (512, 512, 7),
        (64, 128, 112),
        (32, 32, 32),
    ]
]

POINTWISE = [
    _conv("1x1", c, k, size, 1)
    for c, k, size in [(64, 256, 56), (256, 64, 56), (512, 128, 28), (1024, 256, 14), (512, 2048, 7)]
]

STRIDED = [
    _conv("strided", c, k, size, kernel, 2)
    for c, k, size, kernel in [
        (64, 64, 56, 3),
        (128, 128, 56, 3),
        (256, 256, 28, 3),
        (512, 512, 14, 3),
        (256, 512, 56, 1),
        (512, 1024, 28, 1),
        (1024, 2048, 14, 1),
    ]
]

DEPTHWISE = [
    _conv("depthwise", c, c, size, kernel, stride, groups=c)
    for c, size, kernel, stride in [
        (32, 112, 3, 1),
        (192, 28, 3, 1),
        (576, 14, 3, 1),
        (96, 112, 3, 2),
        (576, 14, 3, 2),
        (240, 28, 5, 1),  # EfficientNet
        (672, 14, 5, 1),
        (144, 56, 5, 2),
        (96, 56, 7, 1),  # ConvNeXt
        (384, 14, 7, 1),
    ]
]

FIRST_LAYERS = [
    _conv("first", 3, 64, 224, 7, 2),
    _conv("first", 3, 64, 224, 3),
    _conv("first", 3, 32, 224, 3, 2),
    _conv("first", 1, 32, 28, 5),
    _conv("first", 3, 64, 224, 11, 4, padding=2),  # AlexNet
]

LARGE_KERNELS = [
    _conv("large", 64, 64, 28, 5),
    _conv("large", 64, 192, 27, 5),  # AlexNet
    _conv("large", 32, 64, 28, 5),
    _conv("large", 64, 64, 28, 7),
    _conv("large", 128, 128, 17, (1, 7)),  # Inception
    _conv("large", 128, 192, 17, (7, 1)),
]

GROUPED = [
    _conv("grouped", c, k, size, kernel, stride, groups=groups)
    for c, k, size, kernel, stride, groups in [
        (128, 128, 56, 3, 1, 32),  # ResNeXt-50 32x4d
        (256, 256, 56, 3, 2, 32),
        (256, 256, 28, 3, 1, 32),
        (512, 512, 14, 3, 1, 32),
        (1024, 1024, 7, 3, 1, 32),
        (240, 60, 28, 1, 1, 3),  # ShuffleNet
        (60, 240, 28, 1, 1, 3),
        (480, 120, 14, 1, 1, 3),
    ]
]

TRANSPOSED = [
    _conv("transposed", c, k, size, kernel, stride, padding=padding, transposed=True, output_padding=extra)
    for c, k, size, kernel, stride, padding, extra in [
        (512, 256, 8, 4, 2, 1, 0),  # DCGAN
        (256, 128, 16, 4, 2, 1, 0),
        (128, 3, 32, 4, 2, 1, 0),
        (512, 256, 28, 2, 2, 0, 0),  # U-Net
        (128, 64, 112, 2, 2, 0, 0),
        (21, 21, 28, 16, 8, 4, 0),  # FCN-8s
        (21, 21, 7, 64, 32, 16, 0),  # FCN-32s
        (128, 64, 56, 3, 2, 1, 1),  # CycleGAN
    ]
]

DILATED = [
    _conv("dilated", c, k, size, 3, dilation=dilation)
    for c, k, size, dilation in [(256, 256, 28, 2), (512, 512, 28, 4), (256, 256, 33, 2), (512, 512, 33, 4)]
]

ONE_DIMENSIONAL = [
    _conv("1-D", c, k, size, kernel, stride, ndim=1, dilation=dilation)
    for c, k, size, kernel, stride, dilation in [
        (64, 64, 4096, 3, 1, 1),
        (64, 64, 4096, 3, 1, 4),  # WaveNet
        (64, 64, 4096, 3, 1, 64),
        (64, 128, 4096, 1, 1, 1),
        (32, 64, 8192, 9, 1, 1),
        (1, 64, 16384, 15, 1, 1),
        (64, 64, 8192, 15, 4, 1),
    ]
]

THREE_DIMENSIONAL = [
    _conv("3-D", c, k, size, kernel, stride, ndim=3)
    for c, k, size, kernel, stride in [
        (3, 64, (8, 56, 56), (3, 3, 3), 1),  # C3D
        (64, 128, (8, 28, 28), (3, 3, 3), 1),
        (256, 256, (4, 14, 14), (3, 3, 3), 1),
        (64, 64, (8, 28, 28), (1, 3, 3), 1),  # R(2+1)D
        (64, 64, (8, 28, 28), (3, 1, 1), 1),
        (64, 128, (8, 28, 28), (3, 3, 3), 2),
    ]
]

SINGLE_IMAGE = [
    layer._replace(name=f"{layer.name} n1", batch=1)
    for layer in (*LENET, RESNET50[0], RESNET50[2], RESNET50[16], RESNET50[19], MOBILENET_V2[3], VGG16[5])
]

POOL = [
    PoolLayer("max 2x2 s2 64 @224", "max", 64, 224, 2, 2),
    PoolLayer("max 2x2 s2 512 @14", "max", 512, 14, 2, 2),
    PoolLayer("max 3x3 s2 p1 64 @112", "max", 64, 112, 3, 2, 1),
    PoolLayer("max 3x3 s1 p1 192 @28", "max", 192, 28, 3, 1, 1),
    PoolLayer("max 2x2 s2 10 @24", "max", 10, 24, 2, 2),
    PoolLayer("avg 2x2 s2 128 @56", "avg", 128, 56, 2, 2),
    PoolLayer("avg 3x3 s1 p1 192 @28", "avg", 192, 28, 3, 1, 1),
    PoolLayer("avg 7x7 2048 @7", "avg", 2048, 7, 7, 7),
]

ADAPTIVE_POOL = [
    PoolLayer(f"{kind} {channels} @{size} to {output}", kind, channels, size, adaptive=output)
    for kind, channels, size, output in [
        ("avg", 2048, 7, 1),  # global
        ("avg", 1280, 7, 1),
        ("max", 512, 28, 1),
        ("avg", 512, 14, 7),
        ("avg", 256, 13, 6),  # windows of unequal size
        ("max", 256, 13, 6),
    ]
]

# So small that the way to the kernel and back takes most of the time.
TINY: list[Layer] = [
    _conv("tiny", 1, 1, 6, 3, padding=0)._replace(batch=1),
    _conv("tiny", 3, 8, 8, 3, padding=0)._replace(batch=1),
    PoolLayer("tiny max 2x2 @6", "max", 1, 6, 2, 2, batch=1),
    PoolLayer("tiny avg 2x2 @6", "avg", 1, 6, 2, 2, batch=1),
]

NETWORKS: dict[str, Sequence[Layer]] = {
    "resnet50": RESNET50,
    "vgg16": VGG16,
    "mobilenet_v2": MOBILENET_V2,
    "lenet": LENET,
}
CLASSES: dict[str, Sequence[Layer]] = {
    "3x3": THREE_BY_THREE,
    "1x1": POINTWISE,
    "strided": STRIDED,
    "depthwise": DEPTHWISE,
    "first_layers": FIRST_LAYERS,
    "large_kernels": LARGE_KERNELS,
    "grouped": GROUPED,
    "transposed": TRANSPOSED,
    "dilated": DILATED,
    "1d": ONE_DIMENSIONAL,
    "3d": THREE_DIMENSIONAL,
    "single_image": SINGLE_IMAGE,
    "tiny": TINY,
    "pool": POOL,
    "adaptive_pool": ADAPTIVE_POOL,
}
WORKLOADS: dict[str, Sequence[Layer]] = {**NETWORKS, **CLASSES}
