"""Callbacks: what happens beside the steps of training. Each may have a state, which checkpoints keep."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastconv.train.checkpoint import check_suffix

if TYPE_CHECKING:
    from fastconv.train.history import Row
    from fastconv.train.trainer import Trainer


class Callback:
    """Base of callbacks; each method does nothing.

    Attributes
    ----------
    order : int
        Callbacks run by ascending ``order``, equal ones as listed. Those that save come last (100), so that
        what they save is complete.
    """

    order = 0

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Before the first step of `Trainer.fit`."""

    def on_step_end(self, trainer: Trainer) -> None:
        """After each step of the optimizer."""

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """After each epoch, validation included; ``row`` is its row of the history."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch; not if an exception ended the training."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs of this callback."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""


class Monitor:
    """Watches one column of the history for a new best value.

    Parameters
    ----------
    column : str
        Such as ``"val_loss"``.
    mode : {"min", "max"}
        Whether smaller or larger is better.
    min_delta : float
        What is better by no more than this is not better.
    """

    def __init__(self, column: str, mode: str = "min", min_delta: float = 0.0) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        self.column = column
        self.mode = mode
        self.min_delta = min_delta
        self.best: float | None = None

    def improved(self, row: Row) -> bool:
        """Whether ``row`` has a new best value, which is then kept."""
        if self.column not in row:
            raise KeyError(f"the history has no column {self.column!r}; there are {', '.join(row)}")
        value = row[self.column]
        gain = 0.0 if self.best is None else (self.best - value if self.mode == "min" else value - self.best)
        if self.best is not None and not gain > self.min_delta:
            return False
        self.best = value
        return True


class EarlyStopping(Callback):
    """Ends the training when a column of the history has not improved for some epochs.

    Parameters
    ----------
    monitor : str
        The column.
    patience : int
        Epochs without improvement after which to stop.
    min_delta : float
        What counts as improvement: better by more than this.
    mode : {"min", "max"}
        Whether smaller or larger is better.
    """

    def __init__(
        self, monitor: str = "val_loss", patience: int = 5, min_delta: float = 0.0, mode: str = "min"
    ) -> None:
        if patience < 1:
            raise ValueError(f"EarlyStopping: patience must be at least 1, got {patience}")
        self.monitor = Monitor(monitor, mode, min_delta)
        self.patience = patience
        self.waited = 0

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """Counts epochs without improvement."""
        self.waited = 0 if self.monitor.improved(row) else self.waited + 1
        if self.waited >= self.patience:
            trainer.stop_reason = (
                f"{self.monitor.column} has not improved on {self.monitor.best:.6g} for {self.waited} epochs"
            )

    def state_dict(self) -> dict[str, Any]:
        """The best value, and the epochs since."""
        return {"best": self.monitor.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self.monitor.best, self.waited = state["best"], state["waited"]


class Schedule(Protocol):
    """What `fastconv.optim`'s schedules have in common."""

    def step(self) -> None:
        """Sets the learning rates of the next epoch or step."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""


class LearningRateSchedule(Callback):
    """Moves a schedule of `fastconv.optim` on, after each epoch or each step.

    Parameters
    ----------
    schedule : object with ``step()``, ``state_dict()`` and ``load_state_dict(state)``
    every : {"epoch", "step"}
    """

    def __init__(self, schedule: Schedule, every: str = "epoch") -> None:
        if every not in ("epoch", "step"):
            raise ValueError(f"LearningRateSchedule: every must be 'epoch' or 'step', got {every!r}")
        self.schedule = schedule
        self.every = every

    def on_step_end(self, trainer: Trainer) -> None:  # noqa: ARG002
        """Moves on, if that is per step."""
        if self.every == "step":
            self.schedule.step()

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:  # noqa: ARG002
        """Moves on, if that is per epoch."""
        if self.every == "epoch":
            self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state."""
        return self.schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self.schedule.load_state_dict(state)


class Checkpoint(Callback):
    """Saves the trainer's state, from which `Trainer.load` continues exactly.

    Parameters
    ----------
    path : path
        Ends in ``.safetensors`` or ``.npz``; overwritten each time, whole at any moment. Its folder is made.
    every_epochs : int
        Save after every so many epochs, and after the last.
    every_steps : int, optional
        Also save after every so many steps, within epochs.
    monitor : str, optional
        Save after those epochs only in which this column of the history is the best so far.
    mode : {"min", "max"}
        Whether smaller or larger is better.
    metadata : dict, optional
        Kept in the file beside the state, for whoever reads it; `Trainer.load` returns it.

    Raises
    ------
    ValueError
        Another suffix, or a number below 1.
    ImportError
        ``.safetensors`` without that library.
    """

    order = 100

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every_epochs: int = 1,
        every_steps: int | None = None,
        monitor: str | None = None,
        mode: str = "min",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        check_suffix(path)
        if every_epochs < 1 or (every_steps is not None and every_steps < 1):
            raise ValueError("Checkpoint: every_epochs and every_steps must be at least 1")
        self.path = Path(path)
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.monitor = Monitor(monitor, mode) if monitor is not None else None
        self.metadata = metadata or {}

    def on_fit_begin(self, trainer: Trainer) -> None:  # noqa: ARG002
        """Makes the folder, so that a wrong path fails before the work."""
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_step_end(self, trainer: Trainer) -> None:
        """Saves, if that is wanted within epochs."""
        if self.every_steps is not None and trainer.step % self.every_steps == 0:
            self._save(trainer)

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """Saves, if it is time for it or the epoch was the best."""
        if self.monitor is not None:
            if self.monitor.improved(row):
                self._save(trainer)
        elif trainer.epoch % self.every_epochs == 0 or trainer.finished:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save(self.path, self.metadata)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.monitor.best if self.monitor is not None else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        if self.monitor is not None:
            self.monitor.best = state["best"]
