"""Fill parameters with initial values, as ``torch.nn.init`` does.

Every function takes an array or a `Parameter`, fills it in place and returns it; those that draw take
``rng``: a `numpy.random.Generator`, an int seed, or ``None`` for a fresh generator. Numbers are drawn in
float64 and then rounded, so the same seed gives the same weights in every dtype.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

from fastconv.errors import ShapeError
from fastconv.nn._arrays import Array, Rng, as_choice, as_generator, as_real, namespace
from fastconv.nn.module import Parameter

Target = TypeVar("Target", Array, Parameter)

_GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "conv_transpose1d": 1.0,
    "conv_transpose2d": 1.0,
    "conv_transpose3d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 0.75,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which the standard deviation of weights before ``nonlinearity`` is scaled.

    ``param`` is the negative slope of ``"leaky_relu"`` (default 0.01).
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else as_real("calculate_gain", "param", param)
        return math.sqrt(2.0 / (1.0 + slope * slope))
    return _GAINS[as_choice("calculate_gain", "nonlinearity", nonlinearity, (*_GAINS, "leaky_relu"))]


def fan_in_and_out(tensor: Array | Parameter) -> tuple[int, int]:
    """How many inputs reach an output and how many outputs an input, for weights ``(out, in, *kernel)``."""
    shape = tensor.shape
    if len(shape) < 2:
        raise ShapeError(
            f"nn.init: fan in and fan out need weights of at least 2 dimensions, got shape {shape}"
        )
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


def constant_(tensor: Target, val: float) -> Target:
    """Fills with ``val``."""
    _array(tensor)[...] = val
    return tensor


def zeros_(tensor: Target) -> Target:
    """Fills with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Target) -> Target:
    """Fills with 1."""
    return constant_(tensor, 1.0)


def uniform_(tensor: Target, a: float = 0.0, b: float = 1.0, *, rng: Rng = None) -> Target:
    """Draws from the uniform distribution on ``[a, b)``."""
    _fill(tensor, as_generator("uniform_", rng).uniform(a, b, tensor.shape))
    return tensor


def normal_(tensor: Target, mean: float = 0.0, std: float = 1.0, *, rng: Rng = None) -> Target:
    """Draws from the normal distribution."""
    _fill(tensor, as_generator("normal_", rng).normal(mean, std, tensor.shape))
    return tensor


def trunc_normal_(
    tensor: Target, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0, *, rng: Rng = None
) -> Target:
    """Draws from the normal distribution within ``[a, b]``, redrawing what falls outside."""
    generator = as_generator("trunc_normal_", rng)
    if not a < b or mean + 6 * std < a or mean - 6 * std > b:
        raise ValueError(f"trunc_normal_: no room between a={a} and b={b} for mean={mean}, std={std}")
    values = np.asarray(generator.normal(mean, std, tensor.shape))
    while (outside := np.flatnonzero((values < a) | (values > b))).size:
        values.flat[outside] = generator.normal(mean, std, outside.size)
    _fill(tensor, values)
    return tensor


def xavier_uniform_(tensor: Target, gain: float = 1.0, *, rng: Rng = None) -> Target:
    """Glorot's uniform distribution: standard deviation ``gain * sqrt(2 / (fan_in + fan_out))``."""
    bound = math.sqrt(3.0) * _xavier_std(tensor, gain)
    return uniform_(tensor, -bound, bound, rng=rng)


def xavier_normal_(tensor: Target, gain: float = 1.0, *, rng: Rng = None) -> Target:
    """Glorot's normal distribution: standard deviation ``gain * sqrt(2 / (fan_in + fan_out))``."""
    return normal_(tensor, 0.0, _xavier_std(tensor, gain), rng=rng)


def kaiming_uniform_(
    tensor: Target, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", *, rng: Rng = None
) -> Target:
    """He's uniform distribution: standard deviation ``gain / sqrt(fan)``.

    ``a`` is the slope of ``"leaky_relu"``.
    """
    bound = math.sqrt(3.0) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, rng=rng)


def kaiming_normal_(
    tensor: Target, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", *, rng: Rng = None
) -> Target:
    """He's normal distribution: standard deviation ``gain / sqrt(fan)``.

    ``a`` is the slope of ``"leaky_relu"``.
    """
    return normal_(tensor, 0.0, _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity), rng=rng)


def _xavier_std(tensor: Array | Parameter, gain: float) -> float:
    return gain * math.sqrt(2.0 / max(1, sum(fan_in_and_out(tensor))))


def _kaiming_std(who: str, tensor: Array | Parameter, a: float, mode: str, nonlinearity: str) -> float:
    fan_in, fan_out = fan_in_and_out(tensor)
    fan = fan_in if as_choice(who, "mode", mode, ("fan_in", "fan_out")) == "fan_in" else fan_out
    return calculate_gain(nonlinearity, a) / math.sqrt(max(1, fan))


def _array(tensor: Array | Parameter) -> Array:
    return tensor.data if isinstance(tensor, Parameter) else tensor


def _fill(tensor: Array | Parameter, values: Array) -> None:
    array = _array(tensor)
    array[...] = namespace(array).asarray(values)
