"""Batch normalisation and local response normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastconv.errors import ShapeError
from fastconv.geometry import one_int
from fastconv.nn._arrays import (
    Array,
    as_array,
    as_float,
    as_gradient,
    as_real,
    compute_dtype,
    floating_dtype,
    namespace,
)
from fastconv.nn.module import Module, Parameter, with_base_docs


class BatchNormNd(Module):
    """Batch normalisation: what its classes for one, two and three dimensions share.

    Each channel is normalised over batch and space, then scaled and shifted:
    ``(x - mean) / sqrt(var + eps) * weight + bias``.

    Parameters
    ----------
    num_features : int
        Channels ``C``.
    eps : float
    momentum : float or None
        Weight of a new batch in the running statistics, usually in [0, 1]; ``None`` averages all batches
        equally.
    affine : bool
        Whether there are ``weight`` and ``bias``, of shape ``(C,)``.
    track_running_stats : bool
        Whether evaluation uses running statistics (buffers ``running_mean``, ``running_var``,
        ``num_batches_tracked``); without them every batch is normalised by its own.
    bias : bool
        False leaves out ``bias`` and keeps ``weight``.
    dtype : floating-point dtype

    Notes
    -----
    Input and output ``(N, C, ...)``. Training normalises by the batch's biased variance and puts the unbiased
    one into ``running_var``, as PyTorch does. Sums over batch and space are taken in float64.

    Raises
    ------
    ShapeError
        From ``forward``: another number of dimensions or channels, or a training batch with one value per
        channel.
    """

    _dimensions: tuple[int, ...]
    _optional_keys = frozenset({"num_batches_tracked"})  # weights saved before it existed lack it

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        who = type(self).__name__
        self.num_features = one_int(who, "num_features", num_features, low=1)
        self.eps = as_real(who, "eps", eps, 0.0)
        self.momentum = None if momentum is None else as_real(who, "momentum", momentum)
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        dtype = floating_dtype(who, dtype)
        self.weight = Parameter(np.ones(self.num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(self.num_features, dtype)) if affine and bias else None
        self.running_mean: Array | None
        self.running_var: Array | None
        self.num_batches_tracked: Array | None
        self.register_buffer(
            "running_mean", np.zeros(self.num_features, dtype) if track_running_stats else None
        )
        self.register_buffer(
            "running_var", np.ones(self.num_features, dtype) if track_running_stats else None
        )
        self.register_buffer("num_batches_tracked", np.zeros((), np.int64) if track_running_stats else None)

    def reset_running_stats(self) -> None:
        """Forgets all batches seen."""
        if (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        ):
            self.running_mean[...] = 0
            self.running_var[...] = 1
            self.num_batches_tracked[...] = 0

    def forward(self, x: Any) -> Array:
        """The normalised input; in training mode also updates the running statistics."""
        who = type(self).__name__
        x = as_array(who, "input", x)
        if x.ndim not in self._dimensions:
            expected = " or ".join(map(str, self._dimensions))
            raise ShapeError(f"{who}: input has {x.ndim} dimensions, shape {x.shape}, expected {expected}")
        if x.shape[1] != self.num_features:
            raise ShapeError(
                f"{who}: input of shape {x.shape} has {x.shape[1]} channels, expected {self.num_features}"
            )
        held = (None if self.weight is None else self.weight.data, self.running_mean)
        state = [array.dtype for array in held if array is not None]
        result = np.result_type(*state, x.dtype) if state else as_float(x).dtype
        planes = x.reshape(*x.shape[:2], math.prod(x.shape[2:])).astype(compute_dtype(result), copy=False)
        if self.training or self.running_mean is None or self.running_var is None:
            y = self._normalise_by_batch(planes, x.shape)
        else:
            y = self._normalise_by_history(planes, x.shape, self.running_mean, self.running_var)
        return y.reshape(x.shape).astype(result, copy=False)

    def _normalise_by_batch(self, planes: Array, shape: tuple[int, ...]) -> Array:
        count = planes.shape[0] * planes.shape[2]
        if count < 2:
            raise ShapeError(
                f"{type(self).__name__}: expected more than 1 value per channel when training, "
                f"got input of shape {shape}"
            )
        mean = _channel_sum(planes) / count
        normal = planes - _per_channel(mean, planes.dtype)
        var = _channel_dot(normal, normal) / count
        if self.training:
            self._update_history(mean, var * (count / (count - 1)))
        inverse_std = 1 / np.sqrt(var + self.eps)
        normal *= _per_channel(inverse_std, planes.dtype)
        self.save_for_backward(normal, inverse_std, None, shape)
        if self.weight is None:
            return normal
        y = normal * _per_channel(self.weight.data, planes.dtype)
        if self.bias is not None:
            y += _per_channel(self.bias.data, planes.dtype)
        return y

    def _normalise_by_history(self, planes: Array, shape: tuple[int, ...], mean: Array, var: Array) -> Array:
        inverse_std = 1 / np.sqrt(var.astype(np.float64) + self.eps)
        scale = inverse_std if self.weight is None else inverse_std * self.weight.data
        shift = -mean * scale if self.bias is None else self.bias.data - mean * scale
        y = planes * _per_channel(scale, planes.dtype)
        y += _per_channel(shift, planes.dtype)
        self.save_for_backward(planes, inverse_std, mean.copy(), shape)
        return y

    def _update_history(self, mean: Array, unbiased_var: Array) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked[...] += 1
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean[...] = (1 - factor) * self.running_mean + factor * mean
        self.running_var[...] = (1 - factor) * self.running_var + factor * unbiased_var

    def backward(self, grad_output: Any) -> Array | None:
        """The gradient of the input; adds to those of ``weight`` and ``bias``."""
        kept, inverse_std, history_mean, shape = self.saved_for_backward()
        grad = as_gradient(type(self).__name__, grad_output, shape)
        planes = grad.reshape(kept.shape).astype(kept.dtype, copy=False)
        by_batch = history_mean is None
        train_weight = self.weight is not None and self.weight.requires_grad
        train_bias = self.bias is not None and self.bias.requires_grad
        scale = inverse_std if self.weight is None else inverse_std * self.weight.data

        grad_bias = _channel_sum(planes) if by_batch or train_bias else None
        grad_weight = None
        if by_batch:
            grad_weight = _channel_dot(planes, kept)
        elif train_weight:
            grad_weight = _channel_dot(planes, kept - _per_channel(history_mean, kept.dtype)) * inverse_std
        if self.weight is not None and grad_weight is not None:
            self.weight.accumulate(grad_weight)
        if self.bias is not None and grad_bias is not None:
            self.bias.accumulate(grad_bias)
        if not self.needs_input_grad:
            return None
        if grad_weight is not None and grad_bias is not None and by_batch:
            # The mean and the variance depend on x too: what g has of a constant and of x itself drops out.
            count = planes.shape[0] * planes.shape[2]
            result = kept * _per_channel(-grad_weight / count, kept.dtype)
            result += planes
            result -= _per_channel(grad_bias / count, kept.dtype)
            result *= _per_channel(scale, kept.dtype)
        else:
            result = planes * _per_channel(scale, kept.dtype)
        return result.reshape(shape).astype(grad.dtype, copy=False)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


@with_base_docs
class BatchNorm1d(BatchNormNd):
    """Batch normalisation of ``(N, C)`` or ``(N, C, L)``."""

    _dimensions = (2, 3)


@with_base_docs
class BatchNorm2d(BatchNormNd):
    """Batch normalisation of ``(N, C, H, W)``."""

    _dimensions = (4,)


@with_base_docs
class BatchNorm3d(BatchNormNd):
    """Batch normalisation of ``(N, C, D, H, W)``."""

    _dimensions = (5,)


class LocalResponseNorm(Module):
    """Each value divided by the energy of its neighbours across channels (Krizhevsky et al., 2012).

    ``y = x / (k + alpha / size * sum of x**2 over the window)**beta``; the window of channel ``c`` runs from
    ``c - size // 2`` to ``c + (size - 1) // 2``, less what lies outside.

    Parameters
    ----------
    size : int
        Channels in the window.
    alpha, beta, k : float

    Notes
    -----
    Input and output ``(N, C, ...)`` with at least one spatial axis.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size = one_int("LocalResponseNorm", "size", size, low=1)
        self.alpha = as_real("LocalResponseNorm", "alpha", alpha)
        self.beta = as_real("LocalResponseNorm", "beta", beta)
        self.k = as_real("LocalResponseNorm", "k", k)

    def forward(self, x: Any) -> Array:
        x = as_float(as_array("LocalResponseNorm", "input", x))
        if x.ndim < 3:
            raise ShapeError(
                f"LocalResponseNorm: input has {x.ndim} dimensions, shape {x.shape}, expected at least 3"
            )
        wide = x.astype(compute_dtype(x.dtype), copy=False)
        energy = _window_sum(wide * wide, self.size // 2, (self.size - 1) // 2)
        energy *= self.alpha / self.size
        energy += self.k
        factor = energy**-self.beta
        self.save_for_backward(wide, energy, factor)
        return (wide * factor).astype(x.dtype, copy=False)

    def backward(self, grad_output: Any) -> Array:
        x, energy, factor = self.saved_for_backward()
        grad = as_gradient("LocalResponseNorm", grad_output, x.shape)
        wide = grad.astype(x.dtype, copy=False)
        # x[c] is in the window of every channel whose window reaches c: the mirrored window.
        spread = _window_sum(wide * x * factor / energy, (self.size - 1) // 2, self.size // 2)
        result = wide * factor - (2 * self.alpha * self.beta / self.size) * x * spread
        return result.astype(grad.dtype, copy=False)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


def _channel_sum(planes: Array) -> Array:
    """Sum over batch and space, ``(C,)`` in float64."""
    return planes.sum(axis=2).sum(axis=0, dtype=np.float64)


def _channel_dot(a: Array, b: Array) -> Array:
    """Sum of ``a * b`` over batch and space, ``(C,)`` in float64."""
    return namespace(a).einsum("ncl,ncl->nc", a, b).sum(axis=0, dtype=np.float64)


def _per_channel(values: Array, dtype: np.dtype[Any]) -> Array:
    return values.astype(dtype, copy=False)[:, np.newaxis]


def _window_sum(x: Array, before: int, after: int) -> Array:
    """For each channel the sum over channels ``c - before .. c + after``."""
    total = x.copy()
    channels = x.shape[1]
    for shift in range(1, min(max(before, after), channels - 1) + 1):
        if shift <= before:
            total[:, shift:] += x[:, :-shift]
        if shift <= after:
            total[:, :-shift] += x[:, shift:]
    return total
