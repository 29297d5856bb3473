"""What a backend is: a module with these functions, and with ``ALGORITHMS``, ``SILENT`` and ``TAKES_NARROW``.

``ops`` calls them with arrays that are known to be sound: C-contiguous, aligned, native byte order, of one dtype,
shaped as the geometry says (``geometry.x_shape`` and so on; always three spatial axes), not overlapping the output,
and with no extent of zero anywhere. Kernels overwrite their output completely and read nothing from it.

dtypes: the convolution kernels take float32, float64, int32 and int64; where ``TAKES_NARROW``, they but for
``conv_plan`` also take float16 and bfloat16, which they sum in float32. ``max_pool`` takes every integer type of 8 to
64 bits, float32 and float64; the other pooling kernels float32 and float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastconv.geometry import ConvGeometry, PoolGeometry

Array = Any  # numpy.ndarray or cupy.ndarray

KERNELS = (
    "conv_forward",
    "conv_grad_input",
    "conv_grad_weight",
    "max_pool",
    "max_pool_grad_input",
    "avg_pool",
    "avg_pool_grad_input",
)


class Candidate(NamedTuple):
    """An algorithm that could serve a convolution, and what a model says that it takes."""

    time: float  # in multiply-adds of a large matrix product that take as long
    multiplications: float
    workspace: float  # bytes
    threads: int  # at most so many are started
    fits: bool  # the limit of workspace


class Choice(NamedTuple):
    """What a kernel runs with the present settings."""

    threads: int  # at most so many are started
    isa: str | None = None  # the instruction set, where the backend chooses one
    algorithm: str | None = None  # of a convolution
    candidates: Mapping[str, Candidate] = MappingProxyType({})  # by name, where the backend has several
    seconds: Mapping[str, float] | None = None  # of each, where that was measured and decides


class Planned(NamedTuple):
    """A forward convolution or input gradient with weights that stay."""

    run: Callable[[Array, Array], None]  # of source and result
    algorithm: str | None = None
    bytes: int = 0  # that are kept for it


def planned(
    kernel: Callable[..., None],
    weight: Array,
    bias: Array | None,
    activation: str | None,
    geometry: ConvGeometry,
) -> Planned:
    """The plan of a backend that makes nothing of weights beforehand: the kernel with copies of them."""
    kept, kept_bias = weight.copy(), None if bias is None else bias.copy()
    return Planned(
        lambda source, result: kernel(source, kept, kept_bias, activation, result, geometry),
        bytes=kept.nbytes + (0 if kept_bias is None else kept_bias.nbytes),
    )


class Backend(Protocol):
    """The module's face; see the kernels of `fastconv.backends.reference` for the definitions."""

    ALGORITHMS: tuple[str, ...]  # of convolution, which `fastconv.config.algorithm` chooses from
    TAKES_NARROW: bool  # whether convolution kernels take float16 and bfloat16
    SILENT: bool  # whether no kernel computes with NumPy, which warns of infinities and NaN

    def conv_forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        activation: str | None,
        y: Array,
        geometry: ConvGeometry,
        /,
    ) -> None:
        """``y = activation(weight * x + bias)``."""

    def conv_grad_input(
        self,
        grad_y: Array,
        weight: Array,
        bias: Array | None,
        activation: str | None,
        grad_x: Array,
        geometry: ConvGeometry,
        /,
    ) -> None:
        """``grad_x = activation(adjoint of the convolution applied to grad_y + bias)``; transposed convolution too."""

    def conv_grad_weight(
        self, x: Array, grad_y: Array, grad_weight: Array, geometry: ConvGeometry, /
    ) -> None:
        """``grad_weight[k,c,t] = sum over n, o of grad_y[n,k,o] * x[n,c,o*stride - pad_low + t*dilation]``."""

    def conv_plan(
        self,
        kernel: str,
        weight: Array,
        bias: Array | None,
        activation: str | None,
        geometry: ConvGeometry,
        /,
    ) -> Planned:
        """``conv_forward`` or ``conv_grad_input`` with copies of weights and bias."""

    def max_pool(self, x: Array, y: Array, indices: Array | None, geometry: PoolGeometry, /) -> None:
        """Maximum of each window and, where ``indices`` (int64) is given, its flat position in the plane."""

    def max_pool_grad_input(self, grad_y: Array, indices: Array, grad_x: Array, /) -> int:
        """Add each ``grad_y[p, i]`` to ``grad_x[p, indices[p, i]]`` (both flat per plane); index -1 adds nothing.

        Returns -1, or the flat position of an index outside the plane (``grad_x`` is then unspecified).
        """

    def avg_pool(self, x: Array, y: Array, geometry: PoolGeometry, /) -> None:
        """Sum of each window divided by its divisor."""

    def avg_pool_grad_input(self, grad_y: Array, grad_x: Array, geometry: PoolGeometry, /) -> None:
        """The adjoint of `avg_pool`."""

    def choice(self, kernel: str, dtype: np.dtype[Any], geometry: ConvGeometry | None, /) -> Choice:
        """What ``kernel`` runs of this geometry with the present settings; a pooling kernel's geometry is ``None``.

        Raises
        ------
        ValueError, MemoryError
            As the kernel does.
        """

    def describe(self) -> dict[str, str]:
        """Versions, instruction set and threading of the backend, for `fastconv.show_config`."""
