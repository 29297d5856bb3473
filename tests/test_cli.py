"""The command line, run as users run it: in this process where that shows as much, otherwise in its own."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import cli
from fastconv.data import write_idx
from fastconv.train import load_checkpoint, save_checkpoint

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
ROOT = str(Path(fastconv.__file__).parent.parent)
AVAILABLE = [name for name, state in fastconv.available_backends().items() if state is True]
needs_train = pytest.mark.skipif(
    not all(
        __import__("importlib.util").util.find_spec(name) for name in ("safetensors", "matplotlib", "sklearn")
    ),
    reason="needs fastconv[train]",
)


def write_images(folder, n=(60, 30), size=(28, 28)):
    """Ten classes of pictures, each with its own bright rows, in the four files of MNIST."""
    rng = np.random.default_rng(7)
    folder.mkdir(exist_ok=True)
    for part, count in zip(("train", "t10k"), n, strict=True):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 60, (count, *size), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 4] += 180
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty folder; returns exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTCONV_BACKEND", raising=False)

    def run(*arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def train(run, images):
    """Trains on a few images; small and quick unless told otherwise."""

    def train(*arguments):
        return run("train", "fashion-mnist", "--data", images, "--batch-size", 10, "--no-plots", *arguments)

    return train


def states_equal(a, b):
    """Bitwise equality, but for the seconds in the history."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(states_equal, a, b))
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return a == b


def assert_refused(result, words):
    """One clear line, exit code 2, no traceback."""
    code, _, err = result
    assert code == 2
    assert re.search(words, err), err
    assert err.startswith("fastconv: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


# --- training ---


@needs_train
def test_train_and_evaluate(run, images, tmp_path):
    train = ["train", "fashion-mnist", "--data", images, "--epochs", 12, "--batch-size", 10, "--seed", 3]
    code, out, err = run(*train)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "fashion-mnist"
    names = {"checkpoint.safetensors", "history.csv", "history.json", "curve.png", "confusion.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert "60 training images, 30 test images" in out
    assert len(re.findall(r"^ +\d+ +\d\.\d{4} +[\d.]+ % ", out, re.MULTILINE)) == 12

    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 13))
    assert json.loads((folder / "history.json").read_text())[-1]["loss"] == float(rows[-1]["loss"])
    assert float(rows[-1]["val_accuracy"]) == 1  # the rows are easy to tell apart

    assert "test images: loss " in out
    assert "accuracy 100.00 % (30 of 30)" in out
    table = out[out.index("confusion matrix") :].splitlines()
    assert table[2].split() == ["0", "T-shirt/top", "3", *"." * 9, "100.0", "%"]
    assert len({len(line) for line in table[1:12]}) == 1

    code, again, err = run("evaluate", folder / "checkpoint.safetensors", "--data", images)
    assert (code, err) == (0, "")
    assert again[again.index("test images: loss") :].strip() in out


@needs_train
def test_plots_show_something(run, images, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    run("train", "fashion-mnist", "--data", images, "--epochs", 3, "--output", tmp_path / "out")
    for name, size in (("curve.png", (1080, 432)), ("confusion.png", (768, 720))):
        picture = pyplot.imread(tmp_path / "out" / name)
        assert picture.shape[:2] == size[::-1]
        assert picture[..., :3].std() > 0.05
        assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50
    assert not pyplot.get_fignums()  # no figure is left open


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backends_and_dtypes(train, tmp_path, backend, dtype):
    code, out, err = train(
        "--epochs", 1, "--backend", backend, "--dtype", dtype, "--threads", 1, "--format", "npz"
    )
    assert (code, err) == (0, "")
    assert f"{dtype}, backend {backend}, 1 thread\n" in out
    state = load_checkpoint(tmp_path / "runs/fashion-mnist/checkpoint.npz")
    assert {array.dtype for array in state["model"].values()} == {np.dtype(dtype)}
    assert fastconv.config.backend_name() is None  # for that command only


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_resume_is_exact(train, tmp_path, suffix):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    train("--epochs", 4, "--output", tmp_path / "whole", "--format", suffix)
    train("--epochs", 2, "--output", tmp_path / "part", "--format", suffix)
    path = tmp_path / "part" / f"checkpoint.{suffix}"
    code, out, err = train("--resume", path, "--epochs", 4)
    assert (code, err) == (0, "")
    assert re.findall(r"^ {4}(\d)  ", out, re.MULTILINE) == ["3", "4"]
    whole = load_checkpoint(tmp_path / "whole" / f"checkpoint.{suffix}")
    assert states_equal(load_checkpoint(path), whole)
    # Again: nothing is left to train, but the results are written where one wants them.
    code, out, err = train("--resume", path, "--output", tmp_path / "copy")
    assert (code, err) == (0, "")
    assert "nothing to train: 4 of 4 epochs are complete" in out
    assert states_equal(load_checkpoint(tmp_path / "copy" / f"checkpoint.{suffix}"), whole)
    assert (tmp_path / "copy/history.csv").read_text() == (tmp_path / "part/history.csv").read_text()


def test_seeds(train, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train("--epochs", 1, "--seed", seed, "--format", "npz", "--output", tmp_path / name)
    a, b, c = (load_checkpoint(tmp_path / name / "checkpoint.npz") for name in "abc")
    assert states_equal(a, b)
    assert not states_equal(a["model"], c["model"])


# --- real data ---


@needs_train
def test_digits_reach_98_percent(run, tmp_path):
    began = time.perf_counter()
    code, out, _ = run("train", "digits")
    assert code == 0
    assert time.perf_counter() - began < 60
    share = re.search(r"held-out digits: loss [\d.]+, accuracy ([\d.]+) % \(\d+ of 355\)", out)
    assert float(share[1]) >= 98
    files = {path.name for path in (tmp_path / "runs" / "digits").iterdir()}
    assert files == {"checkpoint.safetensors", "history.csv", "history.json", "curve.png", "confusion.png"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fashion_mnist_reaches_89_percent(run):
    if not FASHION.is_dir() and os.environ.get("FASTCONV_REQUIRE_DATA", "0") in ("", "0"):
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    code, out, _ = run("train", "fashion-mnist", "--data", FASHION, "--format", "npz", "--no-plots")
    assert code == 0
    share = re.search(r"test images: loss [\d.]+, accuracy ([\d.]+) % \(\d+ of 10000\)", out)
    assert float(share[1]) >= 89
    assert len(re.findall(r"^ {4}\d  ", out, re.MULTILINE)) == 5


# --- what users get wrong ---


@pytest.mark.smoke
def test_wrong_folders(run, images, tmp_path):
    def train(folder):
        return run("train", "fashion-mnist", "--data", folder, "--format", "npz", "--no-plots")

    assert_refused(train(tmp_path / "nowhere"), "nowhere: no such folder")
    assert_refused(train(tmp_path), "neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz")
    path = images / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert_refused(train(images), "train-images-idx3-ubyte: truncated")
    path.write_bytes(b"<html>")
    assert_refused(train(images), "not an IDX file")
    write_idx(path, np.zeros((60, 32, 32), np.uint8))
    assert_refused(train(images), r"\(32, 32\)")
    write_idx(path, np.zeros((60, 28, 28), np.uint8))
    assert_refused(train(images), "of one colour")
    path.write_bytes(whole)
    labels = images / "train-labels-idx1-ubyte.gz"
    packed = labels.read_bytes()
    labels.write_bytes(packed[:-4])
    assert_refused(train(images), "labels-idx1-ubyte.gz: truncated")
    write_idx(labels, np.full(60, 10, np.uint8))
    assert_refused(train(images), r"label 10 at position 0 is not in 0\.\.9")
    write_images(images, size=(32, 32))
    assert_refused(train(images), "the images are 32x32, expected 28x28")
    assert not (tmp_path / "runs").exists()


def test_wrong_arguments(run):
    for arguments, words in (
        ([], "required"),
        (["train"], "required"),
        (["train", "cifar"], "invalid choice"),
        (["train", "fashion-mnist"], "--data"),
        (["train", "digits", "--epochs", "0"], "at least 1"),
        (["train", "digits", "--epochs", "many"], "must be an int of at least 1, got 'many'"),
        (["train", "digits", "--lr", "nan"], "above 0"),
        (["train", "digits", "--seed", "-1"], "at least 0"),
        (["train", "digits", "--backend", "cuda"], "invalid choice"),
        (["train", "digits", "--dtype", "int8"], "invalid choice"),
        (["evaluate"], "CHECKPOINT"),
    ):
        code, out, err = run(*arguments)
        assert code == 2
        assert out == ""
        assert words in err
        assert "Traceback" not in err


def test_too_many_threads(run):
    assert_refused(run("train", "digits", "--threads", 100_000), "threads must be at most 1024, got 100000")


def test_unavailable_backends(train, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_BACKEND", "quantum")
    assert_refused(train("--format", "npz"), "FASTCONV_BACKEND: backend must be one of .*'quantum'")
    monkeypatch.setenv("FASTCONV_BACKEND", "cupy")
    assert_refused(train("--format", "npz"), "cupy")
    without_numba = "import sys; sys.modules['numba'] = None; from fastconv.cli import main; sys.exit(main())"
    for asked in ("option", "environment"):
        environment = {**os.environ, "PYTHONPATH": ROOT, "FASTCONV_BACKEND": "numba"}
        if asked == "option":
            del environment["FASTCONV_BACKEND"]
        arguments = ["train", "digits", *(("--backend", "numba") if asked == "option" else ())]
        done = subprocess.run(
            [sys.executable, "-c", without_numba, *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=120,
        )
        assert_refused(
            (done.returncode, done.stdout, done.stderr), "backend 'numba' is not available: .*numba"
        )
    assert not (tmp_path / "runs").exists()


def test_missing_libraries(run, train, monkeypatch, tmp_path):
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_refused(train(), r"pip install 'fastconv\[train\]', or use \.npz \(--format npz\)")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_refused(
        run("train", "digits", "--format", "npz"), r"pip install 'fastconv\[train\]', or --no-plots"
    )
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_refused(run("train", "digits", "--format", "npz", "--no-plots"), "scikit-learn")
    assert not (tmp_path / "runs").exists()
    assert train("--epochs", 1, "--format", "npz")[0] == 0  # needs none of them


def test_wrong_checkpoints(run, train, images, tmp_path):
    train("--epochs", 2, "--format", "npz")
    path = tmp_path / "runs/fashion-mnist/checkpoint.npz"
    state, whole = load_checkpoint(path), path.read_bytes()

    def refuse(words, *options):
        assert_refused(train("--resume", path, *options), words)

    def refuse_both(words):
        refuse(words)
        assert_refused(run("evaluate", path, "--data", images), words)

    refuse("--lr 0.5: .*checkpoint.npz was made with --lr 0.004", "--lr", 0.5)
    refuse("--dtype float64: .* --dtype float32", "--dtype", "float64")
    refuse("--seed 1: .* --seed 0", "--seed", 1)
    refuse("--backend reference: .* --backend cpp", "--backend", "reference")
    refuse("--epochs 1: .* has completed 2 epochs", "--epochs", 1)
    assert_refused(run("train", "digits", "--resume", path), "a checkpoint of fashion-mnist, not of digits")
    assert_refused(run("evaluate", path), "say where the files are by --data")
    assert_refused(run("evaluate", tmp_path / "no.npz"), "no.npz: No such file or directory")
    assert_refused(run("evaluate", tmp_path / "images"), r"must end in \.safetensors or \.npz")

    path.write_bytes(whole[:-100])
    refuse_both("checkpoint.npz: not a fastconv checkpoint, or damaged")
    path.write_bytes(b"")
    refuse_both("not a fastconv checkpoint, or damaged")
    np.savez(path, weight=np.zeros(3))
    refuse_both("not a fastconv checkpoint")
    save_checkpoint(path, {"model": state["model"]})
    refuse_both("not a checkpoint of 'fastconv train'")
    for name, value in (
        *(("batch_size", value) for value in (0, -1, 1.5, "8")),
        *(("lr", value) for value in (0.0, -1.0, float("nan"), None)),
        *(("task", value) for value in ("cifar", ["digits"], {"a": 1})),
        *(("classes", value) for value in ([], [1] * 10, ["a"] * 9)),
        *(("std", value) for value in (0.0, "1", float("inf"))),
        *(("shift", value) for value in (-1, 1.0, 10**9)),
        ("gamma", 0.0),
        ("seed", -1),
        ("epochs", True),
        ("dtype", "object"),
        ("model", "resnet"),
    ):
        save_checkpoint(path, {**state, "metadata": {**state["metadata"], name: value}})
        refuse_both("not a checkpoint of 'fastconv train'")
    save_checkpoint(
        path, {**state, "model": {**state["model"], "0.weight": np.zeros((3, 1, 5, 5), np.float32)}}
    )
    refuse_both("checkpoint of another model: .*0.weight")
    save_checkpoint(path, {**state, "model": {"0.weight": state["model"]["0.weight"]}})
    refuse_both("checkpoint of another model: .*Missing key")
    save_checkpoint(path, {**state, "optimizer": {"state.99.step": 1}})
    refuse("checkpoint of another model")
    save_checkpoint(path, {**state, "loaders": {"train": {**state["loaders"]["train"], "batches": 7}}})
    refuse("batches 7, this loader has 6")
    save_checkpoint(path, {**state, "loaders": {"train": 3}})
    refuse("another train loader")


def test_diverging(train):
    with np.errstate(all="ignore"):
        result = train("--lr", 1e30, "--epochs", 3, "--format", "npz")
    assert_refused(result, r"epoch 1, step \d: the loss is (nan|inf); a smaller learning rate may help")


def test_output_that_cannot_be_written(train, tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(
        train("--format", "npz", "--output", tmp_path / "file" / "under"), "file/under: Not a directory"
    )


def test_full_disk(train, tmp_path, monkeypatch):
    train("--epochs", 1, "--format", "npz")
    path = tmp_path / "runs/fashion-mnist/checkpoint.npz"
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert_refused(train("--resume", path, "--epochs", 2), "checkpoint.npz: No space left on device")
    assert path.read_bytes() == before


# --- processes ---


def start(*arguments, **kwargs):
    environment = {
        **os.environ,
        "PYTHONPATH": ROOT,
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "fastconv", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **{**pipes, **kwargs})


def test_resumed_trainings_keep_their_backend(train, run, images, tmp_path):
    """The last digits depend on it."""
    train("--epochs", 1, "--format", "npz", "--backend", "reference", "--output", tmp_path / "whole")
    train("--epochs", 2, "--format", "npz", "--backend", "reference", "--output", tmp_path / "parts")
    code, out, _ = train("--epochs", 2, "--resume", tmp_path / "whole" / "checkpoint.npz")
    assert code == 0
    assert "backend reference" in out
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoint.npz") for name in ("whole", "parts"))
    for name, value in whole["model"].items():
        np.testing.assert_array_equal(value, parts["model"][name])


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c(train, images, tmp_path):
    """Ctrl-C amid the training: exit code 130, the last checkpoint whole, from which it continues exactly."""
    options = ["--data", images, "--batch-size", 10, "--no-plots", "--format", "npz", "--epochs", 500]
    process = start("train", "fashion-mnist", *options, cwd=tmp_path)
    for line in process.stdout:
        if re.match(r" +3 ", line):
            time.sleep(0.03)
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    path = Path("runs/fashion-mnist/checkpoint.npz")
    assert f"to continue: fastconv train fashion-mnist --data {images} --resume {path}" in err
    assert {file.name for file in (tmp_path / path.parent).iterdir()} == {
        path.name,
        "history.csv",
        "history.json",
    }
    epochs = load_checkpoint(tmp_path / path)["epoch"] + 2
    assert 5 <= epochs < 500
    assert train("--resume", path, "--epochs", epochs)[0] == 0
    train("--epochs", epochs, "--format", "npz", "--output", tmp_path / "whole")
    assert states_equal(load_checkpoint(tmp_path / path), load_checkpoint(tmp_path / "whole/checkpoint.npz"))


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_progress_bar_on_a_terminal(images, tmp_path):
    pytest.importorskip("tqdm")
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    options = ["--data", images, "--epochs", 2, "--no-plots", "--format", "npz"]
    process = start("train", "fashion-mnist", *options, cwd=tmp_path, stderr=theirs)
    os.close(theirs)
    out, _ = process.communicate(timeout=120)
    seen = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert process.returncode == 0
    assert "epoch 2/2:" in seen
    assert re.search(r"\b0/\d+ \[", seen)
    assert "epoch 2/2" not in out
    assert "\r" not in out


@pytest.mark.smoke
def test_info_version_and_help():
    for arguments, words in (
        (["info"], "backend"),
        (["--version"], f"fastconv {fastconv.__version__}"),
        (["--help"], "evaluate"),
        (["train", "digits", "--help"], "--resume"),
    ):
        process = start(*arguments)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert words in out


def test_a_reader_that_has_had_enough():
    process = start("info")
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 141
    assert err == ""
