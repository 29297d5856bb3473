"""The layers that are measured: those of well-known networks, as data.

Sizes are square images; ``count`` says how often a network has the layer.
"""

from __future__ import annotations

from typing import NamedTuple


class ConvLayer(NamedTuple):
    """A 2-D convolution with ``size`` x ``size`` inputs."""

    name: str
    in_channels: int
    out_channels: int
    size: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    count: int = 1

    @property
    def output(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    def flops(self, batch: int) -> int:
        """Floating-point operations of one direction: a multiplication and an addition per product."""
        per_output = self.in_channels // self.groups * self.kernel**2
        return 2 * batch * self.out_channels * self.output**2 * per_output


class PoolLayer(NamedTuple):
    """A 2-D pooling; ``kind`` is "max" (with indices) or "avg"."""

    name: str
    kind: str
    channels: int
    size: int
    kernel: int
    stride: int
    padding: int = 0
    count: int = 1

    @property
    def output(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1


def _conv(
    prefix: str, c: int, k: int, size: int, kernel: int, stride: int = 1, count: int = 1, groups: int = 1
) -> ConvLayer:
    label = f"{prefix} {c}-{k} {kernel}x{kernel}{f' s{stride}' * (stride > 1)}{' dw' * (groups > 1)} @{size}"
    return ConvLayer(label, c, k, size, kernel, stride, (kernel - 1) // 2, groups, count)


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

LENET = [ConvLayer("lenet 1-10 5x5 @28", 1, 10, 28, 5), ConvLayer("lenet 10-20 5x5 @12", 10, 20, 12, 5)]

CONV_LAYERS = {"resnet50": RESNET50, "vgg16": VGG16, "mobilenet_v2": MOBILENET_V2, "lenet": LENET}

POOL_LAYERS = [
    PoolLayer("max 2x2 s2 64 @224", "max", 64, 224, 2, 2),
    PoolLayer("max 2x2 s2 512 @14", "max", 512, 14, 2, 2),
    PoolLayer("max 3x3 s2 p1 64 @112", "max", 64, 112, 3, 2, 1),
    PoolLayer("max 3x3 s1 p1 192 @28", "max", 192, 28, 3, 1, 1),
    PoolLayer("max 2x2 s2 10 @24", "max", 10, 24, 2, 2),
    PoolLayer("avg 2x2 s2 128 @56", "avg", 128, 56, 2, 2),
    PoolLayer("avg 3x3 s1 p1 192 @28", "avg", 192, 28, 3, 1, 1),
    PoolLayer("avg 7x7 2048 @7", "avg", 2048, 7, 7, 7),
]
