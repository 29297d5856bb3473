"""`Trainer`: the training loop with what one needs around it, and exact resume."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import UnionType
from typing import Any

import numpy as np

from fastconv import nn
from fastconv.data.dataset import ArrayDataset
from fastconv.data.loader import Batch, DataLoader, load_generator
from fastconv.geometry import one_int
from fastconv.nn._arrays import Rng, as_generator
from fastconv.optim import Optimizer
from fastconv.train.callbacks import Callback
from fastconv.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from fastconv.train.history import History, Row, table_header, table_line

Batches = Iterable[Batch]


# What a trainer's state consists of.
_STATE: dict[str, type | UnionType] = {
    "model": dict,
    "model_rng": dict,
    "optimizer": dict,
    "epoch": int,
    "step": int,
    "sums": dict | None,
    "stop_reason": str | None,
    "history": list,
    "rng": dict,
    "callbacks": list,
    "loaders": dict,
}


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the message names epoch and step, the parameters are those before."""


class Trainer:
    """Trains a model, and continues an interrupted training bit for bit.

    Parameters
    ----------
    model : nn.Module
    criterion : nn.Module
        A loss with ``reduction="mean"``: ``criterion(outputs, targets)`` is a float, ``criterion.backward()``
        its gradient.
    optimizer : optim.Optimizer
        Of the model's parameters.
    callbacks : sequence of Callback
        See `fastconv.train`: `Checkpoint`, `EarlyStopping`, `LearningRateSchedule`, or your own.
    rng : numpy.random.Generator, int or None
        Shuffles data sets that are no loaders; from the operating system's entropy by default.
    batch_size : int
        Of data that come as a data set or as arrays.
    clip_grad_norm : float, optional
        Scale the gradients of each step down to this norm if theirs is larger.
    progress : bool, optional
        A progress bar per epoch, by tqdm. By default there is one where standard error is a terminal and tqdm
        is installed.
    verbose : bool
        Print a table, a line per epoch.

    Attributes
    ----------
    history : History
        A row per epoch: ``epoch, loss, accuracy, val_loss, val_accuracy, lr, seconds``; accuracies where the
        targets are classes, ``val_...`` where there is validation. ``loss`` and ``accuracy`` are means over
        the epoch's batches as they were trained.
    epoch, step : int
        Epochs completed and steps taken.
    stop_reason : str or None
        Set by a callback to end the training after the epoch; it then stays ended until set to ``None``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn, optim
    >>> from fastconv.data import ArrayDataset
    >>> from fastconv.train import Trainer
    >>> rng = np.random.default_rng(0)
    >>> images = rng.standard_normal((64, 1, 6, 6))
    >>> data = ArrayDataset(images, (images.mean(axis=(1, 2, 3)) > 0).astype(int))
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2, rng=rng, dtype=np.float64))
    >>> optimizer = optim.SGD(model.parameters(), lr=0.5)
    >>> trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=rng, verbose=False)
    >>> history = trainer.fit(data, epochs=40)
    >>> trainer.evaluate(data)["accuracy"] > 0.95
    True
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Any,
        optimizer: Optimizer,
        *,
        callbacks: Sequence[Callback] = (),
        rng: Rng = None,
        batch_size: int = 64,
        clip_grad_norm: float | None = None,
        progress: bool | None = None,
        verbose: bool = True,
    ) -> None:
        if clip_grad_norm is not None and not clip_grad_norm > 0:
            raise ValueError(f"Trainer: clip_grad_norm must be above 0, got {clip_grad_norm}")
        if getattr(criterion, "reduction", "mean") != "mean":
            raise ValueError("Trainer: the criterion must have reduction='mean'")
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.callbacks = tuple(callbacks)
        self.rng = as_generator("Trainer", rng)
        self.batch_size = batch_size
        self.clip_grad_norm = clip_grad_norm
        self.progress = progress
        self.verbose = verbose
        self.history = History()
        self.epoch = 0
        self.step = 0
        self.stop_reason: str | None = None
        self._epochs = 0  # what the present fit trains up to
        self._sums: _Sums | None = None  # of the epoch under way
        self._loaders: dict[str, Batches] = {}  # of the present fit
        self._loader_states: Mapping[str, Any] = {}  # loaded, for the loaders of the next fit

    # --- training ---

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to train, or a callback has ended the training."""
        return self.epoch >= self._epochs or self.stop_reason is not None

    def fit(self, train: Any, val: Any = None, epochs: int = 1) -> History:
        """Trains until ``epochs`` epochs are complete.

        Parameters
        ----------
        train : DataLoader, data set, ``(inputs, targets)``, or iterable of batches
            A data set or pair of arrays is shuffled each epoch by the trainer's generator. A plain iterable
            of batches must be iterable again and again. For exact resume it must have ``state_dict()`` and
            ``load_state_dict()`` as `DataLoader` has, or yield the same batches each time.
        val : the same, optional
            For validation after each epoch; not shuffled.
        epochs : int
            The length of the whole training: epochs that earlier calls or a loaded checkpoint completed
            count.

        Returns
        -------
        History
            The trainer's ``history``.

        Raises
        ------
        NonFiniteLossError
            The loss became NaN or infinite.
        CheckpointError
            A loaded state is of other loaders.
        ValueError
            More epochs than ``epochs`` are complete, or there is no batch.
        TypeError
            ``epochs`` is no int, or the data are none of the above.
        """
        epochs = one_int("Trainer.fit", "epochs", epochs)
        if epochs < self.epoch:
            raise ValueError(
                f"Trainer.fit: {self.epoch} epochs are complete, which is more than epochs={epochs}"
            )
        self._epochs = epochs
        self._loaders = {"train": self._batches(train, shuffle=True)}
        if val is not None:
            self._loaders["val"] = self._batches(val)
        self._restore_loaders()
        with self._fitting():
            self._call("on_fit_begin")
            if self.finished:
                self._say(
                    "nothing to train:", self.stop_reason or f"{epochs} of {epochs} epochs are complete"
                )
            header = True
            while not self.finished:
                row = self._train_epoch()
                if header:
                    self._say(table_header(row))
                    header = False
                self._say(table_line(row))
                if self.stop_reason is not None:
                    self._say("stopped:", self.stop_reason)
            self._call("on_fit_end")
        return self.history

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Training mode; the model's input is data, whose gradient nobody needs."""
        training, needs_input_grad = self.model.training, self.model.needs_input_grad
        self.model.needs_input_grad = False
        try:
            yield
        finally:
            self.model.needs_input_grad = needs_input_grad
            self.model.train(training)

    def _train_epoch(self) -> Row:
        train = self._loaders["train"]
        batches = iter(train)
        sums = self._sums
        if sums is None:
            sums = self._sums = _Sums(lr=self.learning_rate)
        elif not hasattr(train, "load_state_dict"):  # which yields the same batches each time
            batches = islice(batches, sums.batches, None)
        started = time.perf_counter() - sums.seconds
        try:
            row = self._train_batches(batches, sums, started)
            if "val" in self._loaders:
                row.update({f"val_{k}": value for k, value in self._evaluate(self._loaders["val"]).items()})
                if not math.isfinite(row["val_loss"]):
                    raise NonFiniteLossError(
                        f"epoch {row['epoch']}: the validation loss is {row['val_loss']}"
                    )
        finally:  # also of an epoch that broke off: the next fit begins it anew
            self._sums = None
            if isinstance(batches, Generator):
                batches.close()
        row.update(lr=sums.lr, seconds=time.perf_counter() - started)
        self.epoch += 1
        self.history.append(row)
        self._call("on_epoch_end", row)
        return row

    def _train_batches(self, batches: Iterator[Batch], sums: _Sums, started: float) -> Row:
        self.model.train()
        with self._progress_bar(self._loaders["train"], sums.batches) as bar:
            for inputs, targets in batches:
                outputs, loss = self._train_step(inputs, targets)
                self.step += 1
                sums.add(outputs, targets, loss)
                sums.seconds = time.perf_counter() - started
                self._call("on_step_end")
                if bar is not None:
                    bar.set_postfix(loss=f"{sums.means()['loss']:.4f}", refresh=False)
                    bar.update()
        if not sums.samples:
            raise ValueError("Trainer.fit: the training data hold no batch")
        return {"epoch": self.epoch + 1, **sums.means()}

    def _train_step(self, inputs: Any, targets: Any) -> tuple[Any, float]:
        """Outputs and loss of one batch, after which the parameters are updated."""
        outputs = self.model(inputs)
        loss = float(self.criterion(outputs, targets))
        where = f"epoch {self.epoch + 1}, step {self.step + 1}"
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"{where}: the loss is {loss}; a smaller learning rate may help")
        self.optimizer.zero_grad()
        self.model.backward(self.criterion.backward())
        if self.clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            if not math.isfinite(norm):
                raise NonFiniteLossError(f"{where}: the loss is {loss}, the norm of its gradients {norm}")
        self.optimizer.step()
        return outputs, loss

    @property
    def learning_rate(self) -> float:
        """That of the optimizer's first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def dry_run(self, train: Any, val: Any = None) -> dict[str, float]:
        """One step on the first batch, an evaluation of one batch of ``val``; afterwards all is as before.

        Shows in a moment whether model, data and loss fit together.

        Returns
        -------
        dict
            The training ``loss`` of the batch and, with ``val``, ``val_loss``.
        """
        train, val = self._batches(train, shuffle=True), self._batches(val) if val is not None else None
        loaders, loader_states = self._loaders, self._loader_states
        self._loaders, self._loader_states = {"train": train, **({} if val is None else {"val": val})}, {}
        saved = copy.deepcopy(self.state_dict())
        with self._fitting():
            try:
                self.model.train()
                batch = next(iter(train), None)
                if batch is None:
                    raise ValueError("Trainer.dry_run: the training data hold no batch")
                result = {"loss": self._train_step(*batch)[1]}
                if val is not None:
                    result["val_loss"] = self._evaluate(islice(val, 1))["loss"]
            finally:
                self.optimizer.zero_grad()
                self.load_state_dict(saved)
                self._restore_loaders()
                self._loaders, self._loader_states = loaders, loader_states
        return result

    # --- using the model ---

    def evaluate(self, data: Any) -> dict[str, float]:
        """Mean loss and, where the targets are classes, accuracy; the model is in evaluation mode for it.

        Parameters
        ----------
        data : DataLoader, data set, ``(inputs, targets)``, or iterable of batches

        Returns
        -------
        dict
            ``"loss"`` and ``"accuracy"``.

        Raises
        ------
        ValueError
            There is no batch.
        """
        return self._evaluate(self._batches(data))

    def _evaluate(self, batches: Batches) -> dict[str, float]:
        sums = _Sums()
        with self._evaluating():
            for inputs, targets in batches:
                outputs = self.model(inputs)
                sums.add(outputs, targets, float(self.criterion(outputs, targets)))
        if not sums.samples:
            raise ValueError("Trainer.evaluate: the data hold no batch")
        return sums.means()

    def predict(self, data: Any) -> Any:
        """The model's outputs, in evaluation mode.

        Parameters
        ----------
        data : array, DataLoader, data set, ``(inputs, targets)``, or iterable of batches
            Inputs ``(N, ...)``; targets are not looked at.

        Returns
        -------
        array (N, ...)

        Raises
        ------
        ValueError
            There is no batch.
        """
        if hasattr(data, "shape"):
            data = ArrayDataset(data, np.empty(len(data)))
        with self._evaluating():
            outputs = [self.model(inputs) for inputs, _ in self._batches(data)]
        if not outputs:
            raise ValueError("Trainer.predict: the data hold no batch")
        return np.concatenate(outputs)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            with nn.no_grad():
                yield
        finally:
            self.model.train(training)

    # --- saving and resuming ---

    def state_dict(self) -> dict[str, Any]:
        """Everything on which the further training depends; the arrays are the live ones."""
        return {
            "model": self.model.state_dict(),
            "model_rng": self.model.rng_state(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": None if self._sums is None else vars(self._sums),
            "stop_reason": self.stop_reason,
            "history": self.history.rows,
            "rng": self.rng.bit_generator.state,
            "callbacks": [[type(callback).__name__, callback.state_dict()] for callback in self.callbacks],
            "loaders": dict(self._loader_states)
            or {
                name: loader.state_dict()
                for name, loader in self._loaders.items()
                if hasattr(loader, "state_dict")
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned. The next `fit` continues there, given the same data.

        Raises
        ------
        RuntimeError, ValueError
            The state is of another model, optimizer or list of callbacks.
        """
        for key, kind in _STATE.items():
            if not isinstance(state.get(key), kind):
                raise ValueError(f"no state of a trainer: {key} is {type(state.get(key)).__name__}")
        names = [type(callback).__name__ for callback in self.callbacks]
        if [name for name, _ in state["callbacks"]] != names:
            raise ValueError(
                f"the state is of callbacks {[n for n, _ in state['callbacks']]}, this trainer has {names}"
            )
        own = self.model.state_dict()
        for name, array in state["model"].items():
            if name in own and own[name].dtype != array.dtype:
                raise ValueError(f"the state has {name} in {array.dtype}, the model has {own[name].dtype}")
        self.model.load_state_dict(state["model"])
        self.model.load_rng_state(state["model_rng"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_generator(self.rng, state["rng"])
        for callback, (_, callback_state) in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(callback_state)
        self.epoch, self.step = state["epoch"], state["step"]
        self._sums = None if state["sums"] is None else _Sums(**state["sums"])
        self.stop_reason = state["stop_reason"]
        self.history = History(state["history"])
        self._loader_states = state["loaders"]

    def save(self, path: str | os.PathLike[str], metadata: dict[str, Any] | None = None) -> None:
        """Writes `state_dict` to a checkpoint; see `save_checkpoint` for formats and errors.

        Parameters
        ----------
        path : path
            Ends in ``.safetensors`` or ``.npz``.
        metadata : dict, optional
            Kept beside the state, for whoever reads it.
        """
        save_checkpoint(path, {**self.state_dict(), "metadata": metadata or {}})

    def load(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Takes up the state in a checkpoint, for `fit` to continue; returns the metadata.

        Raises
        ------
        CheckpointError
            The file is damaged, or of another model, optimizer or list of callbacks. After the latter the
            trainer may hold a part of the state.
        OSError, ImportError, ValueError
            As `load_checkpoint` does.
        """
        state = load_checkpoint(path)
        try:
            self.load_state_dict(state)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path}: a checkpoint of another training: {error}") from error
        metadata: dict[str, Any] = state.get("metadata", {})
        return metadata

    def _restore_loaders(self) -> None:
        for name, state in self._loader_states.items():
            loader: Any = self._loaders.get(name)
            if loader is None:  # no validation this time
                continue
            if not hasattr(loader, "load_state_dict"):
                raise CheckpointError(
                    f"the loaded state is of a {name} loader with a state, this one has none"
                )
            try:
                loader.load_state_dict(state)
            except (ValueError, LookupError, TypeError) as error:
                raise CheckpointError(f"the loaded state is of another {name} loader: {error}") from error
        self._loader_states = {}

    # --- around it ---

    def _batches(self, data: Any, shuffle: bool = False) -> Batches:
        """``data`` as an iterable of batches."""
        if isinstance(data, tuple) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
            data = ArrayDataset(*data)
        if isinstance(data, ArrayDataset):
            # Where nothing is shuffled nothing is drawn, and any generator will do.
            rng = self.rng if shuffle else np.random.default_rng(0)
            return DataLoader(data, self.batch_size, shuffle=shuffle, rng=rng)
        if hasattr(data, "shape"):
            raise TypeError(
                f"Trainer: the data must be a pair (inputs, targets), got one array of shape {data.shape}"
            )
        if isinstance(data, list | tuple) and not all(map(_is_batch, data)):
            raise TypeError(
                "Trainer: the data must be a pair of arrays or a sequence of batches (inputs, targets), got "
                f"{type(data).__name__} of {', '.join(type(part).__name__ for part in data[:3])}"
            )
        if isinstance(data, Iterator):
            raise TypeError(f"Trainer: the data must be iterable more than once, got a {type(data).__name__}")
        if not isinstance(data, Iterable):
            raise TypeError(
                "Trainer: the data must be a DataLoader, a data set, a pair of arrays or an iterable of "
                f"batches, got {type(data).__name__}"
            )
        return data

    def _say(self, *words: str) -> None:
        if self.verbose:
            print(*words, flush=True)

    def _call(self, event: str, *args: Any) -> None:
        for callback in sorted(self.callbacks, key=lambda callback: callback.order):
            getattr(callback, event)(self, *args)

    @contextmanager
    def _progress_bar(self, batches: Batches, done: int) -> Iterator[Any]:
        """A tqdm bar, or ``None`` where none is wanted."""
        wanted = sys.stderr.isatty() if self.progress is None else self.progress
        if not wanted:
            yield None
            return
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            if self.progress is None:  # the bar was not asked for
                yield None
                return
            raise ImportError("the progress bar needs tqdm: pip install 'fastconv[train]'") from error
        total = len(batches) if isinstance(batches, Sized) else None
        title = f"epoch {self.epoch + 1}/{self._epochs}"
        with tqdm(total=total, initial=done, desc=title, unit="batch", leave=False) as bar:
            yield bar


def _is_batch(part: object) -> bool:
    """Whether ``part`` can be ``(inputs, targets)``; a row of inputs or a label cannot."""
    return isinstance(part, list | tuple) and len(part) == 2 and bool(getattr(part[1], "shape", ()))


@dataclass
class _Sums:
    """Sums over the batches of an epoch, for its means."""

    batches: int = 0
    samples: int = 0
    loss: float = 0.0
    labels: int = 0
    right: int = 0
    lr: float = 0.0  # at the start of the epoch
    seconds: float = 0.0

    def add(self, outputs: Any, targets: Any, loss: float) -> None:
        self.batches += 1
        self.samples += len(targets)
        self.loss += loss * len(targets)
        if targets.dtype.kind in "iu" and outputs.ndim == targets.ndim + 1:
            self.labels += targets.size
            self.right += int((outputs.argmax(axis=1) == targets).sum())

    def means(self) -> dict[str, float]:
        means = {"loss": self.loss / self.samples}
        if self.labels:
            means["accuracy"] = self.right / self.labels
        return means
