"""Gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fastconv.nn._arrays import Array, as_real, namespace
from fastconv.nn.module import Parameter


def clip_grad_norm_(
    parameters: Parameter | Iterable[Parameter],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    """Scales all gradients together so that their norm, taken as of one vector, is at most ``max_norm``.

    Parameters
    ----------
    parameters : Parameter or iterable of them
        Those without a gradient are passed over.
    max_norm : float
    norm_type : float
        The exponent; ``math.inf`` is the largest absolute value.
    error_if_nonfinite : bool
        Raise `RuntimeError` where the norm is NaN or infinite, instead of scaling by it.

    Returns
    -------
    float
        The norm before clipping.
    """
    max_norm = as_real("clip_grad_norm_", "max_norm", max_norm, 0.0)
    if norm_type != math.inf:
        norm_type = as_real("clip_grad_norm_", "norm_type", norm_type, above=0.0)
    grads = _gradients(parameters)
    norms = [
        float(namespace(g).linalg.norm(g.reshape(-1).astype(_wide(g), copy=False), norm_type)) for g in grads
    ]
    if norm_type == math.inf:
        total = max(norms, default=0.0) if not any(map(math.isnan, norms)) else math.nan
    else:
        total = sum(norm**norm_type for norm in norms) ** (1 / norm_type)
    if error_if_nonfinite and not math.isfinite(total):
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {total}")
    factor = max_norm / (total + 1e-6)
    if not factor >= 1:  # NaN scales too, so that it is seen
        for grad in grads:
            grad *= factor
    return total


def clip_grad_value_(parameters: Parameter | Iterable[Parameter], clip_value: float) -> None:
    """Limits every element of every gradient to ``[-clip_value, clip_value]``."""
    limit = as_real("clip_grad_value_", "clip_value", clip_value, 0.0)
    for grad in _gradients(parameters):
        namespace(grad).clip(grad, -limit, limit, out=grad)


def _gradients(parameters: Parameter | Iterable[Parameter]) -> list[Array]:
    chosen = [parameters] if isinstance(parameters, Parameter) else parameters
    return [parameter.grad for parameter in chosen if parameter.grad is not None]


def _wide(array: Array) -> str:
    return "float64" if array.dtype == "float64" else "float32"
