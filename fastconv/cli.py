"""The command line: ``fastconv train | evaluate | bench | info``."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

import fastconv
from fastconv import backends, data, models, nn, optim, train, viz
from fastconv.bench import plot, report, suite, timing
from fastconv.bench.contender import BenchError
from fastconv.bench.peers import PEERS
from fastconv.bench.workloads import DIRECTIONS, NETWORKS, WORKLOADS
from fastconv.train.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What goes wrong by the user's hand or the machine's is told in one line; anything else is a bug.
USER_ERRORS = (
    ImportError,
    OSError,
    MemoryError,
    BenchError,
    data.DataError,
    train.CheckpointError,
    train.NonFiniteLossError,
)


Number = TypeVar("Number", int, float)


class UsageError(Exception):
    """The command cannot be carried out as given; the message says why."""


class Task(NamedTuple):
    """What can be trained, and how if nothing else is asked for.

    The learning rate decays by ``gamma`` per epoch, whatever the number of epochs: so five epochs, resumed
    for five more, equal ten.
    """

    about: str
    load: Callable[[Path | None, np.dtype[Any]], tuple[data.ArrayDataset, data.ArrayDataset]]
    needs_data: bool
    held_out: str
    epochs: int
    batch_size: int
    lr: float
    gamma: float
    shift: int  # augmentation: pixels


def _fashion_mnist(folder: Path | None, dtype: np.dtype[Any]) -> tuple[data.ArrayDataset, data.ArrayDataset]:
    assert folder is not None
    return data.fashion_mnist(folder, dtype=dtype)


TASKS = {
    "digits": Task(
        about="scikit-learn's handwritten digits, scaled to 28x28",
        load=lambda _, dtype: data.digits(dtype=dtype),
        needs_data=False,
        held_out="held-out digits",
        epochs=20,
        batch_size=32,
        lr=0.005,
        gamma=0.9,
        shift=2,
    ),
    "fashion-mnist": Task(
        about="Fashion-MNIST, or another data set in its files",
        load=_fashion_mnist,
        needs_data=True,
        held_out="test images",
        epochs=5,
        batch_size=32,
        lr=0.004,
        gamma=0.5,
        shift=0,
    ),
}

# The network and the data are NumPy arrays.
_BACKENDS = [name for name, row in backends.BACKENDS.items() if row.library == "numpy"]

# Options that make up a training; a resumed one keeps them. They are stored in the checkpoint.
SETTINGS = ("batch_size", "lr", "seed", "dtype", "backend")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code: 0, 2 for what the user can mend (after one line on standard error), 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    try:
        with _settings(arguments):
            arguments.run(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (
        BrokenPipeError
    ):  # the reader, such as `head`, has had enough; Python must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UsageError, *USER_ERRORS) as error:
        print(f"fastconv: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _settings(arguments: argparse.Namespace) -> Iterator[None]:
    """Backend and threads, for this command only."""
    with contextlib.ExitStack() as stack:
        try:  # what options or the environment (FASTCONV_BACKEND, FASTCONV_NUM_THREADS) ask for
            if getattr(arguments, "threads", None) is not None:
                stack.enter_context(fastconv.config_context(threads=arguments.threads))
            if getattr(arguments, "backend", None) is not None:
                stack.enter_context(fastconv.use_backend(arguments.backend))
            fastconv.get_num_threads()
            if hasattr(arguments, "backend"):
                _where()
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        yield


# --- train ---


def _train(arguments: argparse.Namespace) -> None:
    resumed = _load(arguments.resume, arguments.task) if arguments.resume is not None else None
    settings = _training_settings(arguments, TASKS[arguments.task], resumed)
    with fastconv.use_backend(settings["backend"]):  # the last digits depend on it, so resuming keeps it
        _train_on_backend(arguments, settings, resumed)


def _train_on_backend(
    arguments: argparse.Namespace, settings: dict[str, Any], resumed: dict[str, Any] | None
) -> None:
    task = TASKS[arguments.task]
    folder = arguments.output or (arguments.resume.parent if resumed else Path("runs") / arguments.task)
    suffix = arguments.resume.suffix if resumed else f".{arguments.format}"
    path = folder / f"checkpoint{suffix}"
    _check_libraries(path, arguments.plots)

    learn, held_out = task.load(arguments.data, np.dtype(settings["dtype"]))
    settings.setdefault("mean", float(learn.inputs.mean(dtype=np.float64)))
    settings.setdefault("std", float(learn.inputs.std(dtype=np.float64)))
    settings.setdefault("classes", list(learn.classes or ()))
    _check_images(arguments, learn, settings)

    history_files = _HistoryFiles(folder)
    saving = [train.Checkpoint(path, metadata=settings), history_files]
    trainer, loader = _trainer(learn, settings, saving)
    if resumed is not None:
        try:
            trainer.load_state_dict(resumed)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise train.CheckpointError(
                f"{arguments.resume}: a checkpoint of another model: {error}"
            ) from error
    epochs, before = settings["epochs"], trainer.epoch
    if epochs < before:
        raise UsageError(f"--epochs {epochs}: {arguments.resume} has completed {before} epochs")

    parameters = sum(parameter.size for parameter in trainer.model.parameters())
    print(f"{arguments.task}: {len(learn)} training images, {len(held_out)} {task.held_out}")
    print(f"lenet: {parameters} parameters, {settings['dtype']}, {_where()}")
    try:
        trainer.fit(loader, _plain_loader(held_out, settings), epochs)
    except KeyboardInterrupt:
        if trainer.epoch > before or resumed is not None:
            saved = path if trainer.epoch > before else arguments.resume
            print(f"\nto continue: fastconv {_resume_command(arguments, saved)}", file=sys.stderr)
        raise
    if trainer.epoch == before:  # nothing was left to train, and nothing was written
        trainer.save(path, settings)
        history_files.write(trainer)
    files = [path.name, *_HistoryFiles.names]
    matrix = _report(trainer, held_out, settings, task)
    if arguments.plots:
        files += _draw(folder, arguments.task, trainer, matrix, settings["classes"])
    print(f"\n{folder}: {', '.join(files)}")


def _trainer(
    learn: data.ArrayDataset, settings: dict[str, Any], saving: Sequence[train.Callback]
) -> tuple[train.Trainer, data.DataLoader]:
    """Everything that a training consists of, in its state before the first step."""
    weights_seed, data_seed = np.random.SeedSequence(settings["seed"]).spawn(2)
    model = _model(settings, np.random.default_rng(weights_seed))
    rng = np.random.default_rng(data_seed)
    normalize = data.Normalize(settings["mean"], settings["std"])
    loader = data.DataLoader(
        learn,
        settings["batch_size"],
        shuffle=True,
        transform=data.Compose(data.RandomShift(settings["shift"]), normalize),
        rng=rng,
        prefetch=2,
    )
    optimizer = optim.Adam(model.parameters(), lr=settings["lr"])
    schedule = train.LearningRateSchedule(optim.ExponentialLR(optimizer, settings["gamma"]))
    trainer = train.Trainer(model, nn.CrossEntropyLoss(), optimizer, callbacks=[schedule, *saving], rng=rng)
    return trainer, loader


def _training_settings(
    arguments: argparse.Namespace, task: Task, resumed: dict[str, Any] | None
) -> dict[str, Any]:
    """The settings of a new training, or those of the resumed one, with which given options must agree."""
    if resumed is not None:
        settings = dict(resumed["metadata"])
        for name in SETTINGS:
            given = getattr(arguments, name)
            if given is not None and given != settings[name]:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"{option} {given}: {arguments.resume} was made with {option} {settings[name]}"
                )
    else:
        defaults = {"batch_size": task.batch_size, "lr": task.lr, "seed": 0, "dtype": "float32"}
        defaults["backend"] = _backend()
        settings = {"task": arguments.task, "model": "lenet", "epochs": task.epochs}
        settings |= {"gamma": task.gamma, "shift": task.shift}
        for name in SETTINGS:
            given = getattr(arguments, name)
            settings[name] = defaults[name] if given is None else given
    if arguments.epochs is not None:
        settings["epochs"] = arguments.epochs
    return settings


class _HistoryFiles(train.Callback):
    """Writes the history after each epoch."""

    order = 101
    names = ("history.csv", "history.json")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_epoch_end(self, trainer: train.Trainer, row: train.Row) -> None:  # noqa: ARG002
        self.write(trainer)

    def write(self, trainer: train.Trainer) -> None:
        trainer.history.write_csv(self.folder / self.names[0])
        trainer.history.write_json(self.folder / self.names[1])


def _check_libraries(checkpoint: Path, plots: bool) -> None:
    """What is missing is told before the work, not after it."""
    try:
        train.check_suffix(checkpoint)
    except ImportError as error:
        raise UsageError(f"{error} (--format npz)") from error
    if plots:
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise UsageError("plots need matplotlib: pip install 'fastconv[train]', or --no-plots") from error


def _resume_command(arguments: argparse.Namespace, path: Path) -> str:
    where = ["--data", str(arguments.data)] if arguments.data is not None else []
    return shlex.join(["train", arguments.task, *where, "--resume", str(path)])


# --- evaluate ---


def _evaluate(arguments: argparse.Namespace) -> None:
    state = _load(arguments.checkpoint)
    settings = state["metadata"]
    task = TASKS[settings["task"]]
    if not task.needs_data and arguments.data is not None:
        raise UsageError(f"--data {arguments.data}: {settings['task']} needs none")
    if task.needs_data and arguments.data is None:
        raise UsageError(
            f"{arguments.checkpoint} is of {settings['task']}: say where the files are by --data"
        )
    _, held_out = task.load(arguments.data, np.dtype(settings["dtype"]))
    _check_images(arguments, held_out, settings)
    model = _model(settings, None)
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, TypeError) as error:
        raise train.CheckpointError(
            f"{arguments.checkpoint}: a checkpoint of another model: {error}"
        ) from error
    print(f"{settings['task']}: {len(held_out)} {task.held_out}, after {state['epoch']} epochs, {_where()}")
    trainer = train.Trainer(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters()))
    _report(trainer, held_out, settings, task)


# --- bench ---

_BENCHED = ("resnet50", "vgg16", "mobilenet_v2", "pool")  # unless others are named


def _bench(arguments: argparse.Namespace) -> None:
    if arguments.list:
        for name, layers in WORKLOADS.items():
            print(f"{name} ({'network' if name in NETWORKS else 'class'})")
            print("".join(f"    {layer.name}\n" for layer in layers), end="")
        return
    if arguments.plot is not None:
        plot.require_matplotlib()  # told before the work, not after it
    if arguments.show is not None:
        results, complete = suite.load(arguments.show), True
        print(report.head(results))
        print("".join(f"{report.line(row, results)}\n" for row in results["rows"]), end="")
    else:
        results, complete = _measured(arguments)
    print(report.summary(results))
    if arguments.markdown:
        print(f"\n{report.markdown(results)}")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.json, (json.dumps(results, indent=1) + "\n").encode())
    if arguments.plot is not None:
        plot.draw(results, arguments.plot)
    if not complete:
        raise KeyboardInterrupt


def _measured(arguments: argparse.Namespace) -> tuple[suite.Results, bool]:
    """Results, whose rows are printed as they come, and whether they are complete: Ctrl-C leaves those that were."""
    settings = suite.Settings(
        workloads=tuple(dict.fromkeys(arguments.workloads)) or _BENCHED,
        backends=arguments.backends or (_backend(),),
        peers=arguments.peers,
        directions=arguments.directions,
        batch=arguments.batch,
        threads=fastconv.get_num_threads(),
        dtype=arguments.dtype,
        filter=arguments.filter,
        method=timing.Method(budget=arguments.budget, rounds=arguments.rounds),
    )
    total = len(suite.tasks(settings))
    results = suite.begin(settings)
    print(report.head(results), flush=True)
    progress = report.Progress(total, sys.stderr)
    try:
        progress.show(0)
        for row in suite.measure(settings, results["peers"]):
            results["rows"].append(row)
            progress.clear()
            print(report.line(row, results), flush=True)
            progress.show(len(results["rows"]))
    except KeyboardInterrupt:
        if not results["rows"]:
            raise
    finally:
        progress.clear()
    return results, len(results["rows"]) == total


# --- info ---


def _info(arguments: argparse.Namespace) -> None:  # noqa: ARG001
    fastconv.show_config()


# --- shared by the commands ---


def _number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _count(value: object) -> bool:
    return type(value) is int and value >= 1


# What a checkpoint's metadata hold, and what these may be.
_VALID: dict[str, Callable[[Any], bool]] = {
    "task": lambda value: isinstance(value, str) and value in TASKS,
    "model": lambda value: value == "lenet",
    "epochs": _count,
    "batch_size": _count,
    "lr": lambda value: _number(value) and value > 0,
    "gamma": lambda value: _number(value) and value > 0,
    "shift": lambda value: type(value) is int and 0 <= value <= 28,
    "seed": lambda value: type(value) is int and value >= 0,
    "dtype": lambda value: value in ("float32", "float64"),
    "backend": lambda value: isinstance(value, str) and value in _BACKENDS,
    "mean": _number,
    "std": lambda value: _number(value) and value > 0,
    "classes": lambda value: (
        isinstance(value, list) and len(value) == 10 and all(isinstance(c, str) for c in value)
    ),
}


def _load(path: Path, task: str | None = None) -> dict[str, Any]:
    """The state in a checkpoint of this command line, and of ``task`` if one is named."""
    try:
        state = train.load_checkpoint(path)
    except train.CheckpointError:
        raise
    except ValueError as error:  # the suffix
        raise UsageError(str(error)) from error
    settings = state.get("metadata")
    if (
        not isinstance(settings, dict)
        or not all(name in settings and valid(settings[name]) for name, valid in _VALID.items())
        or not isinstance(state.get("model"), dict)
        or not isinstance(state.get("epoch"), int)
    ):
        raise UsageError(f"{path}: not a checkpoint of 'fastconv train'")
    if task is not None and settings["task"] != task:
        raise UsageError(f"{path}: a checkpoint of {settings['task']}, not of {task}")
    return state


def _model(settings: dict[str, Any], rng: np.random.Generator | None) -> nn.Module:
    return models.lenet(len(settings["classes"]), rng=rng, dtype=settings["dtype"])


def _check_images(arguments: argparse.Namespace, images: data.ArrayDataset, settings: dict[str, Any]) -> None:
    height, width = images.inputs.shape[2:]
    if (height, width) != (28, 28):
        raise UsageError(f"{arguments.data}: the images are {height}x{width}, expected 28x28")
    if not settings["std"] > 0:
        raise UsageError(f"{arguments.data}: the training images are of one colour")


def _plain_loader(images: data.ArrayDataset, settings: dict[str, Any]) -> data.DataLoader:
    """Batches for evaluation: in order, nothing random."""
    transform = data.Normalize(settings["mean"], settings["std"])
    return data.DataLoader(images, 256, transform=transform, rng=np.random.default_rng(0))


def _backend() -> str:
    return backends.resolve("fastconv", None, "numpy")[0]


def _where() -> str:
    threads = fastconv.get_num_threads()
    return f"backend {_backend()}, {threads} thread{'s' if threads != 1 else ''}"


def _report(
    trainer: train.Trainer, images: data.ArrayDataset, settings: dict[str, Any], task: Task
) -> np.ndarray[Any, Any]:
    """Prints loss, accuracy and the confusion matrix; returns the latter."""
    loader = _plain_loader(images, settings)
    loss = trainer.evaluate(loader)["loss"]
    matrix = train.confusion_matrix(
        images.targets, trainer.predict(loader).argmax(axis=1), len(settings["classes"])
    )
    right, total = int(np.trace(matrix)), int(matrix.sum())
    print(f"\n{task.held_out}: loss {loss:.4f}, accuracy {100 * right / total:.2f} % ({right} of {total})\n")
    print(_table(matrix, settings["classes"]))
    return matrix


def _table(matrix: np.ndarray[Any, Any], classes: Sequence[str]) -> str:
    """The confusion matrix as text; columns are numbered where the names are long."""
    heads, names = list(classes), list(classes)
    if max(map(len, classes)) > 5:
        heads = [str(k) for k in range(len(classes))]
        names = [f"{k:>2} {name}" for k, name in enumerate(classes)]
    left = max(map(len, names))
    width = max(map(len, [str(matrix.max()), *heads])) + 2
    lines = [
        "confusion matrix (rows: true class, columns: predicted class)",
        " " * left + "".join(f"{head:>{width}}" for head in heads) + "     right",
    ]
    for k, (name, row) in enumerate(zip(names, matrix, strict=True)):
        counts = "".join(f"{count or '.':>{width}}" for count in row)
        share = f"{100 * row[k] / row.sum():.1f} %" if row.sum() else "-"
        lines.append(f"{name:<{left}}{counts}{share:>10}")
    return "\n".join(lines)


def _draw(
    folder: Path, task: str, trainer: train.Trainer, matrix: np.ndarray[Any, Any], classes: list[str]
) -> list[str]:
    """Writes the plots; returns the files' names."""
    from matplotlib.figure import Figure

    curve = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = curve.subplots(1, 2)
    viz.learning_curve(trainer.history, "loss", left)
    viz.learning_curve(trainer.history, "accuracy", right)
    confusion = Figure(figsize=(6.4, 6), layout="constrained")
    viz.confusion_matrix(matrix, classes, confusion.subplots())
    curve.suptitle(f"{task}: learning curves")
    share = np.trace(matrix) / matrix.sum()
    confusion.suptitle(f"{task}: {100 * share:.2f} % right after {trainer.epoch} epochs")
    figures: dict[str, Figure] = {"curve.png": curve, "confusion.png": confusion}
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        write_atomically(folder / name, buffer.getvalue())
    return list(figures)


# --- arguments ---


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastconv", description="Convolutional networks on NumPy arrays: train, evaluate, measure."
    )
    parser.add_argument("--version", action="version", version=f"fastconv {fastconv.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("train", help="train a network and evaluate it")
    tasks = command.add_subparsers(title="data", metavar="DATA", dest="task", required=True)
    for name, task in TASKS.items():
        sub = tasks.add_parser(name, help=task.about, description=f"Train a small network on {task.about}.")
        sub.set_defaults(run=_train, data=None)
        if task.needs_data:
            sub.add_argument(
                "--data", type=Path, required=True, metavar="DIR", help="folder with the IDX files"
            )
        sub.add_argument("--epochs", type=_positive_int, help=f"epochs in all (default {task.epochs})")
        sub.add_argument(
            "--batch-size", type=_positive_int, help=f"images per step (default {task.batch_size})"
        )
        sub.add_argument("--lr", type=_positive_float, help=f"learning rate at the start (default {task.lr})")
        sub.add_argument("--seed", type=_seed, help="of weights, order and augmentation (default 0)")
        sub.add_argument("--dtype", choices=("float32", "float64"), help="of the numbers (default float32)")
        _add_machine(sub)
        sub.add_argument(
            "--resume", type=Path, metavar="PATH", help="continue from this checkpoint, with its settings"
        )
        sub.add_argument(
            "--output",
            type=Path,
            metavar="DIR",
            help=f"where results go, over older ones (default runs/{name})",
        )
        sub.add_argument(
            "--format",
            choices=[suffix[1:] for suffix in train.SUFFIXES],
            default="safetensors",
            help="of the checkpoint (default safetensors; npz needs no library; resumed: as it was)",
        )
        sub.add_argument("--no-plots", dest="plots", action="store_false", help="draw no PNG files")

    command = commands.add_parser("evaluate", help="evaluate a checkpoint on the held-out data")
    command.set_defaults(run=_evaluate)
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="made by 'fastconv train'")
    command.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with the IDX files, where it needs some"
    )
    _add_machine(command)

    command = commands.add_parser(
        "bench",
        help="time the kernels beside other libraries",
        description="Time layers of well-known networks, forward and backward, beside other libraries. "
        "All results are checked first; then the contenders take turns, and medians are compared.",
    )
    command.set_defaults(run=_bench)
    _add_bench(command)

    command = commands.add_parser("info", help="versions, processor, backends: what a bug report needs")
    command.set_defaults(run=_info)
    return parser


def _add_bench(parser: argparse.ArgumentParser) -> None:
    def names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
        return lambda text: tuple(dict.fromkeys(_one_of(known, name) for name in text.split(",") if name))

    everyone = tuple(PEERS)
    parser.add_argument(
        "workloads",
        nargs="*",
        type=lambda text: _one_of(tuple(WORKLOADS), text),
        metavar="WORKLOAD",
        help=f"networks and classes of layers, see --list (default {' '.join(_BENCHED)})",
    )
    parser.add_argument("--list", action="store_true", help="list the workloads and their layers, and end")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only layers whose name contains this")
    parser.add_argument(
        "--directions", type=names(DIRECTIONS), default=DIRECTIONS, help=f"(default {','.join(DIRECTIONS)})"
    )
    parser.add_argument(
        "--backends", type=names(_BACKENDS), help="ours; the first is compared (default: the fastest)"
    )
    parser.add_argument(
        "--peers", type=names(everyone), default=everyone, help=f"'' for none (default {','.join(everyone)})"
    )
    parser.add_argument("--batch", type=_positive_int, default=8, help="images (default 8)")
    parser.add_argument("--threads", type=_positive_int, help="(default: the processors of this process)")
    parser.add_argument(
        "--dtype", choices=tuple(suite.TOLERANCE), default="float32", help="of the numbers (default float32)"
    )
    method = timing.Method()
    parser.add_argument(
        "--budget",
        type=_positive_float,
        default=method.budget,
        metavar="SECONDS",
        help=f"for each row (default {method.budget:g})",
    )
    parser.add_argument(
        "--rounds",
        type=_positive_int,
        default=method.rounds,
        help=f"turns that each contender takes at least, whatever the budget (default {method.rounds})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and machine here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a bar chart (PNG) here")
    parser.add_argument("--markdown", action="store_true", help="print the means as a Markdown table, too")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing: show what --json wrote")


def _one_of(known: Sequence[str], name: str) -> str:
    if name not in known:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(known)}, got {name!r}")
    return name


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", choices=_BACKENDS, help="(default: the fastest available; resumed: as it was)"
    )
    parser.add_argument("--threads", type=_positive_int, help="(default: the processors of this process)")


def _positive_int(text: str) -> int:
    return _parsed(int, text, lambda value: value >= 1, "an int of at least 1")


def _seed(text: str) -> int:
    return _parsed(int, text, lambda value: value >= 0, "an int of at least 0")


def _positive_float(text: str) -> float:
    return _parsed(float, text, lambda value: 0 < value < math.inf, "a number above 0")


def _parsed(
    kind: Callable[[str], Number], text: str, valid: Callable[[Number], bool], expected: str
) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not valid(value):
        raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
    return value
