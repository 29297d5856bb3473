"""What is timed: a call that is prepared outside the clock, and the arrays that it works on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastconv.bench.workloads import ConvLayer, Layer, PoolLayer

Array = NDArray[Any]
Call = Callable[[], Array]


class BenchError(Exception):
    """There is nothing to time, or no use in it; the message says why."""


class NotOffered(Exception):  # noqa: N818 - no error: it leaves a row's cell without a time
    """The contender has no time for a layer; the message is what the cell says."""


class Arrays(NamedTuple):
    """Operands of a layer, channels first; pooling has no weight."""

    x: Array
    weight: Array
    grad_y: Array


ConvContender = Callable[[ConvLayer, str, Arrays], Call]
PoolContender = Callable[[PoolLayer, str, Arrays], Call]


def operands(layer: Layer, batch: int, dtype: Any) -> Arrays:
    """Random operands, always the same; the weights are scaled so that results have unit variance."""
    rng = np.random.default_rng(0)
    if isinstance(layer, PoolLayer):
        x = rng.standard_normal((batch, layer.channels, layer.size, layer.size), dtype)
        grad_y = rng.standard_normal((batch, layer.channels, layer.output, layer.output), dtype)
        return Arrays(x, np.empty(0, dtype), grad_y)
    x = rng.standard_normal((batch, layer.in_channels, *layer.size), dtype)
    weight = rng.standard_normal(layer.weight_shape, dtype)
    weight /= np.sqrt(weight[0].size).astype(dtype)
    return Arrays(x, weight, rng.standard_normal((batch, layer.out_channels, *layer.output), dtype))
