"""Pooling as layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv.geometry import (
    IntOrInts,
    Padding,
    axis_ints,
    check_pool_padding,
    padding_spec,
    pool_divisor,
)
from fastconv.nn._arrays import Array, as_array, as_real
from fastconv.nn.conv import plain_padding
from fastconv.nn.module import Module, is_grad_enabled, with_base_docs
from fastconv.ops.pool import (
    adaptive_avg_pool_nd,
    adaptive_avg_pool_nd_backward,
    adaptive_max_pool_nd,
    avg_pool_nd,
    avg_pool_nd_backward,
    lp_pool_nd,
    lp_pool_nd_backward,
    max_pool_nd,
    max_pool_nd_backward,
)


class _WindowPool(Module):
    """Arguments and printing of the pooling layers with a kernel."""

    _ndim: int

    def _set(
        self,
        kernel_size: IntOrInts,
        stride: IntOrInts | None,
        padding: Padding,
        dilation: IntOrInts,
        ceil_mode: bool,
    ) -> None:
        who = type(self).__name__
        self.kernel_size = axis_ints(who, "kernel_size", kernel_size, self._ndim, low=1)
        self.stride = (
            self.kernel_size if stride is None else axis_ints(who, "stride", stride, self._ndim, low=1)
        )
        self.dilation = axis_ints(who, "dilation", dilation, self._ndim, low=1)
        pads = padding_spec(who, padding, self._ndim)
        self.padding = plain_padding(pads)
        self.ceil_mode = bool(ceil_mode)
        if not isinstance(pads, str):
            check_pool_padding(who, pads, self.kernel_size, self.dilation)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding!r}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPoolNd(_WindowPool):
    """Maximum pooling: what its classes for one, two and three dimensions share.

    Parameters
    ----------
    kernel_size : int or one int per axis
    stride : int or one int per axis, optional
        By default the kernel size.
    padding : int, one int per axis, one ``(low, high)`` pair per axis, or a name
        Smaller than the dilated kernel on each side; never read.
    dilation : int or one int per axis
    return_indices : bool
        Whether ``forward`` returns ``(values, indices)``.
    ceil_mode : bool
        Keep windows that overhang the end.

    Notes
    -----
    Input ``(N, C, *spatial)`` or unbatched ``(C, *spatial)``. Of equal elements the first takes the whole
    gradient.
    """

    def __init__(
        self,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self._set(kernel_size, stride, padding, dilation, ceil_mode)
        self.return_indices = bool(return_indices)

    def forward(self, x: Any) -> Any:
        """The maximum of each window, and where it was if ``return_indices`` is set."""
        x = as_array(type(self).__name__, "input", x)
        window = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        if not (self.return_indices or is_grad_enabled()):
            return max_pool_nd(self._ndim, x, *window)
        values, indices = max_pool_nd(self._ndim, x, *window, return_indices=True)
        self.save_for_backward(indices, x.shape)
        return (values, indices) if self.return_indices else values

    def backward(self, grad_output: Any) -> Array:
        indices, shape = self.saved_for_backward()
        return max_pool_nd_backward(self._ndim, grad_output, indices, shape)


class AvgPoolNd(_WindowPool):
    """Average pooling: what its classes for one, two and three dimensions share.

    Parameters
    ----------
    kernel_size : int or one int per axis
    stride : int or one int per axis, optional
        By default the kernel size.
    padding : int, one int per axis, one ``(low, high)`` pair per axis, or a name
        Smaller than the dilated kernel on each side.
    ceil_mode : bool
        Keep windows that overhang the end.
    count_include_pad : bool
        Whether padding counts in the divisor.
    divisor_override : int, optional
        Divide by this instead.
    dilation : int or one int per axis

    Notes
    -----
    Input ``(N, C, *spatial)`` or unbatched ``(C, *spatial)``.
    """

    def __init__(
        self,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        dilation: IntOrInts = 1,
    ) -> None:
        self._set(kernel_size, stride, padding, dilation, ceil_mode)
        self.count_include_pad = bool(count_include_pad)
        self.divisor_override = divisor_override
        pool_divisor(type(self).__name__, divisor_override)

    def _window(self) -> dict[str, Any]:
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
            "count_include_pad": self.count_include_pad,
            "divisor_override": self.divisor_override,
            "dilation": self.dilation,
        }

    def forward(self, x: Any) -> Array:
        x = as_array(type(self).__name__, "input", x)
        y: Array = avg_pool_nd(self._ndim, x, **self._window())
        self.save_for_backward(x.shape)
        return y

    def backward(self, grad_output: Any) -> Array:
        (shape,) = self.saved_for_backward()
        return avg_pool_nd_backward(self._ndim, grad_output, shape, **self._window())


class LPPoolNd(_WindowPool):
    """Power-average pooling: what its classes for one, two and three dimensions share.

    ``sum(|x|**p)**(1/p)`` of each window.

    Parameters
    ----------
    norm_type : float
        The exponent ``p``, positive.
    kernel_size : int or one int per axis
    stride : int or one int per axis, optional
        By default the kernel size.
    ceil_mode : bool
        Keep windows that overhang the end.
    padding : int, one int per axis, one ``(low, high)`` pair per axis, or a name
    dilation : int or one int per axis

    Notes
    -----
    Input ``(N, C, *spatial)`` or unbatched ``(C, *spatial)``. A norm of absolute values, where PyTorch sums
    signed powers.
    """

    def __init__(
        self,
        norm_type: float,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        ceil_mode: bool = False,
        *,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
    ) -> None:
        self.norm_type = as_real(type(self).__name__, "norm_type", norm_type, above=0.0)
        self._set(kernel_size, stride, padding, dilation, ceil_mode)

    def _window(self) -> dict[str, Any]:
        return {
            "norm_type": self.norm_type,
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "ceil_mode": self.ceil_mode,
            "padding": self.padding,
            "dilation": self.dilation,
        }

    def forward(self, x: Any) -> Array:
        x = as_array(type(self).__name__, "input", x)
        y: Array = lp_pool_nd(self._ndim, x, **self._window())
        self.save_for_backward(x)
        return y

    def backward(self, grad_output: Any) -> Array:
        """The gradient of the input; windows whose norm is 0 contribute 0."""
        (x,) = self.saved_for_backward()
        return lp_pool_nd_backward(self._ndim, grad_output, x, **self._window())

    def extra_repr(self) -> str:
        return f"norm_type={self.norm_type}, {super().extra_repr()}"


class _AdaptivePool(Module):
    """Argument and printing of the adaptive pooling layers."""

    _ndim: int

    def _set(self, output_size: int | Sequence[int | None] | None) -> None:
        known = output_size
        if isinstance(output_size, list | tuple):
            known = [0 if size is None else size for size in output_size]
        if known is not None:
            axis_ints(type(self).__name__, "output_size", known, self._ndim, low=0)  # type: ignore[arg-type]
        self.output_size = output_size

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveAvgPoolNd(_AdaptivePool):
    """Means of windows that divide the input: what its classes for one, two and three dimensions share.

    Parameters
    ----------
    output_size : int, None, or one of them per axis
        ``None`` keeps the size of an axis; 1 is global pooling.

    Notes
    -----
    Input ``(N, C, *spatial)`` or unbatched ``(C, *spatial)``. Window ``i`` covers ``floor(i*L/o)`` to
    ``ceil((i+1)*L/o)``.
    """

    def __init__(self, output_size: int | Sequence[int | None] | None) -> None:
        self._set(output_size)

    def forward(self, x: Any) -> Array:
        x = as_array(type(self).__name__, "input", x)
        y: Array = adaptive_avg_pool_nd(self._ndim, x, self.output_size)
        self.save_for_backward(x.shape)
        return y

    def backward(self, grad_output: Any) -> Array:
        (shape,) = self.saved_for_backward()
        return adaptive_avg_pool_nd_backward(self._ndim, grad_output, shape)


class AdaptiveMaxPoolNd(_AdaptivePool):
    """Maxima of windows that divide the input: what its classes for one, two and three dimensions share.

    Parameters
    ----------
    output_size : int, None, or one of them per axis
        ``None`` keeps the size of an axis; 1 is global pooling.
    return_indices : bool
        Whether ``forward`` returns ``(values, indices)``.

    Notes
    -----
    Input ``(N, C, *spatial)`` or unbatched ``(C, *spatial)``. Window ``i`` covers ``floor(i*L/o)`` to
    ``ceil((i+1)*L/o)``.
    """

    def __init__(self, output_size: int | Sequence[int | None] | None, return_indices: bool = False) -> None:
        self._set(output_size)
        self.return_indices = bool(return_indices)

    def forward(self, x: Any) -> Any:
        """The maximum of each window, and where it was if ``return_indices`` is set."""
        x = as_array(type(self).__name__, "input", x)
        if not (self.return_indices or is_grad_enabled()):
            return adaptive_max_pool_nd(self._ndim, x, self.output_size)
        values, indices = adaptive_max_pool_nd(self._ndim, x, self.output_size, return_indices=True)
        self.save_for_backward(indices, x.shape)
        return (values, indices) if self.return_indices else values

    def backward(self, grad_output: Any) -> Array:
        indices, shape = self.saved_for_backward()
        return max_pool_nd_backward(self._ndim, grad_output, indices, shape)


@with_base_docs
class MaxPool1d(MaxPoolNd):
    """Maximum pooling of ``(N, C, L)`` or ``(C, L)``."""

    _ndim = 1


@with_base_docs
class MaxPool2d(MaxPoolNd):
    """Maximum pooling of ``(N, C, H, W)`` or ``(C, H, W)``."""

    _ndim = 2


@with_base_docs
class MaxPool3d(MaxPoolNd):
    """Maximum pooling of ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""

    _ndim = 3


@with_base_docs
class AvgPool1d(AvgPoolNd):
    """Average pooling of ``(N, C, L)`` or ``(C, L)``."""

    _ndim = 1


@with_base_docs
class AvgPool2d(AvgPoolNd):
    """Average pooling of ``(N, C, H, W)`` or ``(C, H, W)``."""

    _ndim = 2


@with_base_docs
class AvgPool3d(AvgPoolNd):
    """Average pooling of ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""

    _ndim = 3


@with_base_docs
class LPPool1d(LPPoolNd):
    """Power-average pooling of ``(N, C, L)`` or ``(C, L)``."""

    _ndim = 1


@with_base_docs
class LPPool2d(LPPoolNd):
    """Power-average pooling of ``(N, C, H, W)`` or ``(C, H, W)``."""

    _ndim = 2


@with_base_docs
class LPPool3d(LPPoolNd):
    """Power-average pooling of ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""

    _ndim = 3


@with_base_docs
class AdaptiveAvgPool1d(AdaptiveAvgPoolNd):
    """Adaptive average pooling of ``(N, C, L)`` or ``(C, L)``."""

    _ndim = 1


@with_base_docs
class AdaptiveAvgPool2d(AdaptiveAvgPoolNd):
    """Adaptive average pooling of ``(N, C, H, W)`` or ``(C, H, W)``."""

    _ndim = 2


@with_base_docs
class AdaptiveAvgPool3d(AdaptiveAvgPoolNd):
    """Adaptive average pooling of ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""

    _ndim = 3


@with_base_docs
class AdaptiveMaxPool1d(AdaptiveMaxPoolNd):
    """Adaptive maximum pooling of ``(N, C, L)`` or ``(C, L)``."""

    _ndim = 1


@with_base_docs
class AdaptiveMaxPool2d(AdaptiveMaxPoolNd):
    """Adaptive maximum pooling of ``(N, C, H, W)`` or ``(C, H, W)``."""

    _ndim = 2


@with_base_docs
class AdaptiveMaxPool3d(AdaptiveMaxPoolNd):
    """Adaptive maximum pooling of ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""

    _ndim = 3
