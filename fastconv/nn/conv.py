"""Convolution and transposed convolution as layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastconv.geometry import (
    PADDING_MODES,
    IntOrInts,
    Padding,
    Pairs,
    axis_ints,
    check_groups,
    check_output_padding,
    one_int,
    padding_spec,
)
from fastconv.nn._arrays import Array, Rng, as_array, as_choice, as_generator, floating_dtype
from fastconv.nn.linear import draw_weights
from fastconv.nn.module import Module, Parameter, with_base_docs
from fastconv.ops.conv import conv_nd, conv_nd_backward, conv_transpose_nd, conv_transpose_nd_backward


class _Convolution(Module):
    """Arguments, parameters and printing of both kinds of convolution."""

    _ndim: int

    def _set(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts,
        padding: Padding,
        dilation: IntOrInts,
        groups: int,
        padding_mode: str,
    ) -> None:
        who = type(self).__name__
        self.in_channels = one_int(who, "in_channels", in_channels, low=1)
        self.out_channels = one_int(who, "out_channels", out_channels, low=1)
        self.kernel_size = axis_ints(who, "kernel_size", kernel_size, self._ndim, low=1)
        self.stride = axis_ints(who, "stride", stride, self._ndim, low=1)
        self.padding = plain_padding(padding_spec(who, padding, self._ndim))
        self.dilation = axis_ints(who, "dilation", dilation, self._ndim, low=1)
        self.groups = one_int(who, "groups", groups, low=1)
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            check_groups(who, f"{name}={channels}", channels, self.groups)
        self.padding_mode = as_choice(who, "padding_mode", padding_mode, PADDING_MODES)

    def _draw(self, first: int, second: int, bias: bool, rng: Rng, dtype: DTypeLike) -> None:
        who = type(self).__name__
        dtype = floating_dtype(who, dtype)
        generator = as_generator(who, rng)
        self.weight = Parameter(np.empty((first, second, *self.kernel_size), dtype))
        self.bias = Parameter(np.empty(self.out_channels, dtype)) if bias else None
        draw_weights(self.weight, self.bias, generator)

    def _output_mask(self) -> tuple[bool, bool, bool]:
        """Which gradients `backward` needs."""
        return (
            self.needs_input_grad,
            self.weight.requires_grad,
            self.bias is not None and self.bias.requires_grad,
        )

    def _accumulate(self, grad_weight: Array | None, grad_bias: Array | None) -> None:
        if grad_weight is not None:
            self.weight.accumulate(grad_weight)
        if self.bias is not None and grad_bias is not None:
            self.bias.accumulate(grad_bias)

    def extra_repr(self) -> str:
        """Arguments that differ from their defaults."""
        zeros, ones = (0,) * self._ndim, (1,) * self._ndim
        defaults = {
            "padding": zeros,
            "output_padding": zeros,
            "dilation": ones,
            "groups": 1,
            "padding_mode": "zeros",
        }
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ]
        parts += [
            f"{name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name, default) != default
        ]
        return ", ".join(parts + ["bias=False"] * (self.bias is None))


class ConvNd(_Convolution):
    """Convolution: what its classes for one, two and three dimensions share.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or one int per axis
    stride : int or one int per axis
    padding : int, one int per axis, one ``(low, high)`` pair per axis, or a name
        As in `fastconv.conv2d`: ``"same"`` works with every stride.
    dilation : int or one int per axis
    groups : int
        Must divide both channel counts.
    bias : bool
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
    rng : numpy.random.Generator, int or None
        Draws the initial weights, uniform on ``±1/sqrt(fan_in)`` as in PyTorch.
    dtype : floating-point dtype

    Notes
    -----
    ``weight`` is ``(out_channels, in_channels / groups, *kernel_size)``, ``bias`` ``(out_channels,)`` or
    ``None``. Input ``(N, in_channels, *spatial)`` or unbatched ``(in_channels, *spatial)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        rng: Rng = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self._set(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        self._draw(self.out_channels, self.in_channels // self.groups, bias, rng, dtype)

    def _window(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }

    def forward(self, x: Any) -> Array:
        """Convolution of ``x`` with ``weight``, plus ``bias``."""
        x = as_array(type(self).__name__, "input", x)
        bias = None if self.bias is None else self.bias.data
        y = conv_nd(self._ndim, x, self.weight.data, bias, **self._window())
        self.save_for_backward(x)
        return y

    def backward(self, grad_output: Any) -> Array | None:
        """The gradient of the input; adds to those of ``weight`` and ``bias``."""
        (x,) = self.saved_for_backward()
        grad_input, grad_weight, grad_bias = conv_nd_backward(
            self._ndim, grad_output, x, self.weight.data, output_mask=self._output_mask(), **self._window()
        )
        self._accumulate(grad_weight, grad_bias)
        return grad_input


@with_base_docs
class Conv1d(ConvNd):
    """Convolution along one axis: ``(N, C, L)`` or ``(C, L)``."""

    _ndim = 1


@with_base_docs
class Conv2d(ConvNd):
    """Convolution of images: ``(N, C, H, W)`` or ``(C, H, W)``."""

    _ndim = 2


@with_base_docs
class Conv3d(ConvNd):
    """Convolution of volumes: ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""

    _ndim = 3


class ConvTransposeNd(_Convolution):
    """Transposed convolution: what its classes for one, two and three dimensions share.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or one int per axis
    stride : int or one int per axis
    padding : int, one int per axis, one ``(low, high)`` pair per axis, or a name
        Shrinks the output; ``"same"`` gives ``out = in * stride``.
    output_padding : int or one int per axis
        Added to the output size at its end; smaller than stride or dilation.
    groups : int
        Must divide both channel counts.
    bias : bool
    dilation : int or one int per axis
    padding_mode : {"zeros"}
    rng : numpy.random.Generator, int or None
        Draws the initial weights as PyTorch does.
    dtype : floating-point dtype

    Notes
    -----
    ``weight`` is ``(in_channels, out_channels / groups, *kernel_size)``, ``bias`` ``(out_channels,)`` or
    ``None``. Input ``(N, in_channels, *spatial)`` or unbatched ``(in_channels, *spatial)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        output_padding: IntOrInts = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrInts = 1,
        padding_mode: str = "zeros",
        *,
        rng: Rng = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        who = type(self).__name__
        if padding_mode != "zeros":
            raise ValueError(
                f"{who}: padding_mode must be 'zeros' for a transposed convolution, got {padding_mode!r}"
            )
        self._set(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        self.output_padding = axis_ints(who, "output_padding", output_padding, self._ndim, low=0)
        check_output_padding(who, self.output_padding, self.stride, self.dilation)
        self._draw(self.in_channels, self.out_channels // self.groups, bias, rng, dtype)

    def _window(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "groups": self.groups,
            "dilation": self.dilation,
        }

    def forward(self, x: Any, output_size: IntOrInts | None = None) -> Array:
        """Transposed convolution of ``x``; ``output_size`` replaces ``output_padding`` for this call."""
        x = as_array(type(self).__name__, "input", x)
        bias = None if self.bias is None else self.bias.data
        extra = (
            {"output_padding": self.output_padding} if output_size is None else {"output_size": output_size}
        )
        y = conv_transpose_nd(self._ndim, x, self.weight.data, bias, **extra, **self._window())
        self.save_for_backward(x, extra)
        return y

    def backward(self, grad_output: Any) -> Array | None:
        """The gradient of the input; adds to those of ``weight`` and ``bias``."""
        x, extra = self.saved_for_backward()
        grad_input, grad_weight, grad_bias = conv_transpose_nd_backward(
            self._ndim,
            grad_output,
            x,
            self.weight.data,
            output_mask=self._output_mask(),
            **extra,
            **self._window(),
        )
        self._accumulate(grad_weight, grad_bias)
        return grad_input


@with_base_docs
class ConvTranspose1d(ConvTransposeNd):
    """Transposed convolution along one axis: ``(N, C, L)`` or ``(C, L)``."""

    _ndim = 1


@with_base_docs
class ConvTranspose2d(ConvTransposeNd):
    """Transposed convolution of images: ``(N, C, H, W)`` or ``(C, H, W)``."""

    _ndim = 2


@with_base_docs
class ConvTranspose3d(ConvTransposeNd):
    """Transposed convolution of volumes: ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""

    _ndim = 3


def plain_padding(padding: str | Pairs) -> str | tuple[int, ...] | Pairs:
    """Padding as a name, one int per axis where both sides are equal, or pairs."""
    if isinstance(padding, str) or any(low != high for low, high in padding):
        return padding
    return tuple(low for low, _ in padding)
