"""Learning-rate schedules; each equals PyTorch's, whose argument names and defaults it takes.

A schedule is made after its optimizer and stepped once per epoch (or batch, where so stated), after the
optimizer. It changes ``lr`` in every parameter group and remembers the first one there as ``initial_lr``.
Several may be combined on one optimizer: most change the learning rate that they find.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastconv.geometry import one_int
from fastconv.nn._arrays import as_choice, as_real
from fastconv.optim.optimizer import Optimizer


class LRScheduler:
    """Base of the schedules. Subclasses write `get_lr`.

    Parameters
    ----------
    optimizer : Optimizer

    Attributes
    ----------
    base_lrs : list of float
        The learning rate that each group started from.
    last_epoch : int
        Steps taken.

    Notes
    -----
    To resume, make optimizer and schedule as at the start, then load the states of both.
    """

    _state: ClassVar[tuple[str, ...]] = ("last_epoch", "base_lrs", "last_lrs")

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = _checked(type(self).__name__, optimizer)
        self.last_epoch = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self._set(self.get_lr())

    def get_lr(self) -> list[float]:
        """The learning rate of each group at step ``last_epoch``, from those of the step before."""
        raise NotImplementedError

    def get_last_lr(self) -> list[float]:
        """The learning rates that the latest step set."""
        return list(self.last_lrs)

    def step(self) -> None:
        """Counts one step and sets the learning rates."""
        self.last_epoch += 1
        self._set(self.get_lr())

    def _set(self, lrs: list[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        self.last_lrs = lrs

    def _present(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _scaled(self, factor: float) -> list[float]:
        return [lr * factor for lr in self._present()]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold, numbers and arrays by name; the optimizer's state has the rates."""
        values = {name: getattr(self, name) for name in self._state}
        return {name: np.array(v) if isinstance(v, list) else v for name, v in values.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; arguments of the constructor are not part of it.

        Raises
        ------
        ValueError
            The names, or the number of groups, are not those of this schedule; nothing has been changed.
        """
        who = f"{type(self).__name__}.load_state_dict"
        if set(state_dict) != set(self._state):
            raise ValueError(f"{who}: expected {', '.join(self._state)}, got {', '.join(state_dict)}")
        values = {name: np.asarray(state_dict[name]).tolist() for name in self._state}
        for name, value in values.items():
            if np.shape(value) != np.shape(getattr(self, name)):
                raise ValueError(f"{who}: {name} is {value}, expected one number per parameter group")
        vars(self).update(values)


class StepLR(LRScheduler):
    """Times ``gamma`` every ``step_size`` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = one_int("StepLR", "step_size", step_size, low=1)
        self.gamma = as_real("StepLR", "gamma", gamma)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        due = self.last_epoch > 0 and self.last_epoch % self.step_size == 0
        return self._scaled(self.gamma if due else 1.0)


class MultiStepLR(LRScheduler):
    """Times ``gamma`` at each of the steps ``milestones``."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones = Counter(one_int("MultiStepLR", "milestones", m, low=0) for m in milestones)
        self.gamma = as_real("MultiStepLR", "gamma", gamma)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return self._scaled(self.gamma ** self.milestones[self.last_epoch])


class ExponentialLR(LRScheduler):
    """Times ``gamma`` at each step."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = as_real("ExponentialLR", "gamma", gamma)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return self._scaled(self.gamma if self.last_epoch > 0 else 1.0)


class LinearLR(LRScheduler):
    """Warm-up: from ``start_factor`` to ``end_factor`` times the learning rate in ``total_iters`` steps."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:
        self.start_factor = as_real("LinearLR", "start_factor", start_factor, high=1.0, above=0.0)
        self.end_factor = as_real("LinearLR", "end_factor", end_factor, 0.0, 1.0)
        self.total_iters = one_int("LinearLR", "total_iters", total_iters, low=1)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        if self.last_epoch == 0:
            return self._scaled(self.start_factor)
        if self.last_epoch > self.total_iters:
            return self._present()
        return self._scaled(self._factor(self.last_epoch) / self._factor(self.last_epoch - 1))

    def _factor(self, step: int) -> float:
        return self.start_factor + (self.end_factor - self.start_factor) * step / self.total_iters


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the first learning rate down to ``eta_min`` in ``T_max`` steps, then up again."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = one_int("CosineAnnealingLR", "T_max", T_max, low=1)
        self.eta_min = as_real("CosineAnnealingLR", "eta_min", eta_min)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        step = self.last_epoch
        if step == 0:
            return self._present()
        if (step - 1 - self.T_max) % (2 * self.T_max) == 0:  # past the bottom: the quotient below is 0/0
            rise = (1 - math.cos(math.pi / self.T_max)) / 2
            return [
                lr + (base - self.eta_min) * rise
                for base, lr in zip(self.base_lrs, self._present(), strict=True)
            ]
        quotient = (1 + math.cos(math.pi * step / self.T_max)) / (
            1 + math.cos(math.pi * (step - 1) / self.T_max)
        )
        return [quotient * (lr - self.eta_min) + self.eta_min for lr in self._present()]


class LambdaLR(LRScheduler):
    """The first learning rate times ``lr_lambda(step)``: one function, or one for each group.

    The functions are not part of the state.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
    ) -> None:
        groups = len(_checked("LambdaLR", optimizer).param_groups)
        self.lr_lambdas = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != groups:
            raise ValueError(f"LambdaLR: expected one function or {groups}, got {len(self.lr_lambdas)}")
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [
            base * function(self.last_epoch)
            for function, base in zip(self.lr_lambdas, self.base_lrs, strict=True)
        ]


class _Phase(NamedTuple):
    """A part of the cycle: its last step, the factors of the peak that it runs between, and the momenta."""

    end: float
    factors: tuple[float, float]
    momenta: tuple[int, int]  # 0 the high one, 1 the low one


class OneCycleLR(LRScheduler):
    """One rise to ``max_lr`` and one long fall, stepped once per batch (Smith and Topin, 2017).

    Parameters
    ----------
    optimizer : Optimizer
    max_lr : float, or one per group
    total_steps : int, optional
        Otherwise ``epochs * steps_per_epoch``.
    epochs, steps_per_epoch : int, optional
    pct_start : float
        The part of the cycle that rises.
    anneal_strategy : {"cos", "linear"}
    cycle_momentum : bool
        Move the momentum (or the first of ``betas``) against the learning rate.
    base_momentum, max_momentum : float, or one per group
    div_factor : float
        Starts from ``max_lr / div_factor``,
    final_div_factor : float
        and ends at that divided by this.
    three_phase : bool
        Fall to the start first as fast as it rose, then to the end.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        who = "OneCycleLR"
        groups = _checked(who, optimizer).param_groups
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError(f"{who}: expected total_steps, or epochs and steps_per_epoch")
            total_steps = one_int(who, "epochs", epochs, low=1) * one_int(
                who, "steps_per_epoch", steps_per_epoch, low=1
            )
        self.total_steps = one_int(who, "total_steps", total_steps, low=1)
        pct_start = as_real(who, "pct_start", pct_start, 0.0, 1.0)
        self._interpolate = {"cos": _cosine, "linear": _line}[
            as_choice(who, "anneal_strategy", anneal_strategy, ("cos", "linear"))
        ]
        div_factor = as_real(who, "div_factor", div_factor, above=0.0)
        final_div_factor = as_real(who, "final_div_factor", final_div_factor, above=0.0)
        start, end = 1 / div_factor, 1 / (div_factor * final_div_factor)
        rise, last = pct_start * self.total_steps - 1, self.total_steps - 1.0
        self._phases = (
            [
                _Phase(rise, (start, 1.0), (0, 1)),
                _Phase(2 * rise, (1.0, start), (1, 0)),
                _Phase(last, (start, end), (0, 0)),
            ]
            if three_phase
            else [_Phase(rise, (start, 1.0), (0, 1)), _Phase(last, (1.0, end), (1, 0))]
        )
        self._peaks = _per_group(who, "max_lr", max_lr, len(groups))
        self._momenta = list(
            zip(
                _per_group(who, "max_momentum", max_momentum, len(groups)),
                _per_group(who, "base_momentum", base_momentum, len(groups)),
                strict=True,
            )
        )
        self.cycle_momentum = bool(cycle_momentum)
        if self.cycle_momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            raise ValueError(f"{who}: cycle_momentum needs an optimizer with momentum or betas")
        for group, peak in zip(groups, self._peaks, strict=True):
            group["initial_lr"] = peak * start
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """As in `LRScheduler`; sets the momenta, too."""
        if self.last_epoch > self.total_steps:
            raise ValueError(f"OneCycleLR: step {self.last_epoch} is beyond total_steps={self.total_steps}")
        last = len(self._phases) - 1
        index = next((i for i in range(last) if self.last_epoch <= self._phases[i].end), last)
        phase, begin = self._phases[index], self._phases[index - 1].end if index else 0.0
        part = (self.last_epoch - begin) / (phase.end - begin) if phase.end != begin else 1.0
        if self.cycle_momentum:
            for group, momenta in zip(self.optimizer.param_groups, self._momenta, strict=True):
                momentum = self._interpolate(momenta[phase.momenta[0]], momenta[phase.momenta[1]], part)
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum
        start, stop = phase.factors
        return [self._interpolate(peak * start, peak * stop, part) for peak in self._peaks]


class ReduceLROnPlateau(LRScheduler):
    """Times ``factor`` where a metric has not improved for more than ``patience`` steps.

    Parameters
    ----------
    optimizer : Optimizer
    mode : {"min", "max"}
        Whether the metric should fall or rise.
    factor : float
        In [0, 1).
    patience : int
        Steps without improvement that are let pass.
    threshold : float
        How much better counts as better,
    threshold_mode : {"rel", "abs"}
        relative to the best so far, or absolutely.
    cooldown : int
        Steps after a reduction in which nothing is counted.
    min_lr : float, or one per group
    eps : float
        Smaller reductions are left out.

    Notes
    -----
    ``step(metrics)`` takes the metric. A NaN never counts as an improvement.
    """

    _state = (*LRScheduler._state, "best", "num_bad_epochs", "cooldown_counter")

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        who = "ReduceLROnPlateau"
        self.mode = as_choice(who, "mode", mode, ("min", "max"))
        self.factor = as_real(who, "factor", factor, 0.0)
        if self.factor >= 1:
            raise ValueError(f"{who}: factor must be less than 1, got {factor}")
        self.patience = one_int(who, "patience", patience, low=0)
        self.threshold = as_real(who, "threshold", threshold)
        self.threshold_mode = as_choice(who, "threshold_mode", threshold_mode, ("rel", "abs"))
        self.cooldown = one_int(who, "cooldown", cooldown, low=0)
        self.min_lrs = _per_group(who, "min_lr", min_lr, len(_checked(who, optimizer).param_groups))
        self.eps = as_real(who, "eps", eps, 0.0)
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = 0
        self.cooldown_counter = 0
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """The present learning rates, or the reduced ones where the patience is exhausted."""
        present = self._present()
        if self.num_bad_epochs <= self.patience:
            return present
        reduced = [max(lr * self.factor, low) for lr, low in zip(present, self.min_lrs, strict=True)]
        return [new if old - new > self.eps else old for old, new in zip(present, reduced, strict=True)]

    def step(self, metrics: float) -> None:  # type: ignore[override]
        """Takes the metric of this step; reduces the learning rates where it is time."""
        current = float(metrics)
        if self._is_better(current):
            self.best, self.num_bad_epochs = current, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        super().step()
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _is_better(self, value: float) -> bool:
        sign = 1 if self.mode == "min" else -1
        if self.threshold_mode == "rel":
            return sign * value < sign * (self.best * (1 - sign * self.threshold))
        return sign * value < sign * self.best - self.threshold


def _checked(who: str, optimizer: object) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{who}: optimizer must be an Optimizer, got {type(optimizer).__name__}")
    return optimizer


def _per_group(who: str, name: str, value: float | Sequence[float], groups: int) -> list[float]:
    values = list(value) if isinstance(value, list | tuple) else [value] * groups
    if len(values) != groups:
        raise ValueError(f"{who}: {name} has {len(values)} values, expected one or {groups}")
    return [as_real(who, name, item) for item in values]


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def _line(start: float, end: float, part: float) -> float:
    return start + (end - start) * part
