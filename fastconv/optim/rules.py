"""The update rules; each equals PyTorch's, whose argument names and defaults it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastconv.nn._arrays import Array, namespace
from fastconv.nn.module import Parameter
from fastconv.optim.optimizer import Optimizer, check_options

Params = Iterable[Parameter] | Iterable[dict[str, Any]]
_FROM_0 = (0.0, math.inf)


class SGD(Optimizer):
    """Gradient descent, with momentum on request.

    ``v = momentum * v + (1 - dampening) * g`` (at first ``v = g``), then ``p -= lr * v``; Nesterov's variant
    uses ``g + momentum * v`` instead of ``v``.

    Parameters
    ----------
    params : iterable of Parameter, or of dicts with groups
    lr, momentum, dampening : float
    weight_decay : float
        Times the parameter, added to the gradient.
    nesterov : bool
        Needs a momentum and no dampening.
    maximize : bool
        Go up instead of down.
    """

    _known_slots = ("momentum_buffer",)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    def _check(self, group: dict[str, Any]) -> None:
        anything = (-math.inf, math.inf)
        check_options("SGD", group, lr=_FROM_0, momentum=_FROM_0, dampening=anything, weight_decay=_FROM_0)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "SGD: nesterov needs a momentum and no dampening, "
                f"got momentum={group['momentum']}, dampening={group['dampening']}"
            )

    def _slots(self, group: dict[str, Any]) -> dict[str, float]:
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def _update(
        self, p: Array, grad: Array, slots: dict[str, Array], group: dict[str, Any], numbers: dict[str, float]
    ) -> None:
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * p
        if group["momentum"]:
            velocity = slots["momentum_buffer"]
            if numbers["fresh"]:
                velocity[...] = grad
            else:
                velocity *= group["momentum"]
                velocity += (1 - group["dampening"]) * grad
            grad = grad + group["momentum"] * velocity if group["nesterov"] else velocity
        p -= group["lr"] * grad


class Adagrad(Optimizer):
    """``s += g**2``, then ``p -= lr / (1 + (step - 1) * lr_decay) * g / (sqrt(s) + eps)``.

    Parameters
    ----------
    params : iterable of Parameter, or of dicts with groups
    lr, lr_decay, weight_decay, initial_accumulator_value, eps : float
    maximize : bool
    """

    _known_slots = ("sum",)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "eps": eps,
                "maximize": maximize,
            },
        )

    def _check(self, group: dict[str, Any]) -> None:
        check_options(
            "Adagrad",
            group,
            lr=_FROM_0,
            lr_decay=_FROM_0,
            weight_decay=_FROM_0,
            initial_accumulator_value=_FROM_0,
            eps=_FROM_0,
        )

    def _slots(self, group: dict[str, Any]) -> dict[str, float]:
        return {"sum": group["initial_accumulator_value"]}

    def _numbers(self, step: int, group: dict[str, Any]) -> dict[str, float]:
        return {"rate": group["lr"] / (1 + (step - 1) * group["lr_decay"])}

    def _update(
        self, p: Array, grad: Array, slots: dict[str, Array], group: dict[str, Any], numbers: dict[str, float]
    ) -> None:
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * p
        total = slots["sum"]
        total += grad * grad
        p -= numbers["rate"] * (grad / (_sqrt(total) + group["eps"]))


class RMSprop(Optimizer):
    """``s = alpha * s + (1 - alpha) * g**2``, then ``p -= lr * g / (sqrt(s) + eps)``.

    Parameters
    ----------
    params : iterable of Parameter, or of dicts with groups
    lr, alpha, eps, weight_decay : float
    momentum : float
        Runs the quotient through ``v = momentum * v + quotient`` first.
    centered : bool
        Subtracts the square of the mean gradient from ``s``: its variance instead of its second moment.
    maximize : bool
    """

    _known_slots = ("square_avg", "momentum_buffer", "grad_avg")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "maximize": maximize,
            },
        )

    def _check(self, group: dict[str, Any]) -> None:
        check_options(
            "RMSprop", group, lr=_FROM_0, alpha=_FROM_0, eps=_FROM_0, weight_decay=_FROM_0, momentum=_FROM_0
        )

    def _slots(self, group: dict[str, Any]) -> dict[str, float]:
        return {
            "square_avg": 0.0,
            **({"momentum_buffer": 0.0} if group["momentum"] else {}),
            **({"grad_avg": 0.0} if group["centered"] else {}),
        }

    def _update(
        self,
        p: Array,
        grad: Array,
        slots: dict[str, Array],
        group: dict[str, Any],
        numbers: dict[str, float],  # noqa: ARG002
    ) -> None:
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * p
        square_avg = slots["square_avg"]
        square_avg *= group["alpha"]
        square_avg += (1 - group["alpha"]) * (grad * grad)
        if group["centered"]:
            grad_avg = slots["grad_avg"]
            grad_avg += (1 - group["alpha"]) * (grad - grad_avg)
            scale = _sqrt(square_avg - grad_avg * grad_avg)
        else:
            scale = _sqrt(square_avg)
        scale += group["eps"]
        quotient = grad / scale
        if group["momentum"]:
            velocity = slots["momentum_buffer"]
            velocity *= group["momentum"]
            velocity += quotient
            quotient = velocity
        p -= group["lr"] * quotient


class Adam(Optimizer):
    """Adaptive moments: ``m`` and ``v`` are running means of ``g`` and ``g**2`` without their bias towards 0.

    ``p -= lr * m / (sqrt(v) + eps)``.

    Parameters
    ----------
    params : iterable of Parameter, or of dicts with groups
    lr : float
    betas : pair of float
        How much of ``m`` and of ``v`` a step keeps, in [0, 1).
    eps : float
    weight_decay : float
        Times the parameter, added to the gradient; see `AdamW` for decay apart from it.
    amsgrad : bool
        Use the largest ``v`` so far.
    maximize : bool
    """

    _known_slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    _decoupled = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(map(float, betas)),
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
            },
        )

    def _check(self, group: dict[str, Any]) -> None:
        who = type(self).__name__
        check_options(who, group, lr=_FROM_0, eps=_FROM_0, weight_decay=_FROM_0)
        betas = group["betas"]
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{who}: betas must be two numbers in [0, 1), got {betas}")

    def _slots(self, group: dict[str, Any]) -> dict[str, float]:
        return dict.fromkeys(self._known_slots if group["amsgrad"] else self._known_slots[:2], 0.0)

    def _numbers(self, step: int, group: dict[str, Any]) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        return {"rate": group["lr"] / (1 - beta1**step), "root": math.sqrt(1 - beta2**step)}

    def _update(
        self, p: Array, grad: Array, slots: dict[str, Array], group: dict[str, Any], numbers: dict[str, float]
    ) -> None:
        beta1, beta2 = group["betas"]
        if group["weight_decay"]:
            if self._decoupled:
                p *= 1 - group["lr"] * group["weight_decay"]
            else:
                grad = grad + group["weight_decay"] * p
        mean, square = slots["exp_avg"], slots["exp_avg_sq"]
        mean += (1 - beta1) * (grad - mean)
        square *= beta2
        square += (1 - beta2) * (grad * grad)
        if group["amsgrad"]:
            largest = slots["max_exp_avg_sq"]
            square = namespace(p).maximum(largest, square, out=largest)
        scale = _sqrt(square)
        scale /= numbers["root"]
        scale += group["eps"]
        p -= numbers["rate"] * (mean / scale)


class AdamW(Adam):
    """`Adam` with weight decay apart from the gradient: ``p *= 1 - lr * weight_decay`` before each update.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, maximize
        As in `Adam`; by default a weight decay of 0.01.
    """

    _decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)


def _sqrt(x: Array) -> Array:
    """The square root as a new array."""
    return np.sqrt(x)
