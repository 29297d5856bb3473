"""The examples run as a user runs them, and do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TESTED

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(params=TESTED)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def run_example(name: str, *arguments: str) -> str:
    """Run an example in a process of its own; return what it prints."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_from_scratch_learns(backend: str) -> None:
    lines = run_example("from_scratch.py", backend, "--epochs", "5").splitlines()
    assert len(lines) == 5
    losses = [float(re.search(r"loss ([\d.]+)", line)[1]) for line in lines]
    accuracies = [float(re.search(r"digits ([\d.]+)%", line)[1]) for line in lines]
    assert losses[-1] < losses[0] / 4
    assert accuracies[-1] > 95


def test_with_autograd_has_right_derivatives(backend: str) -> None:
    output = run_example("with_autograd.py", backend)
    assert "derivatives up to the third order agree" in output
    assert float(re.search(r"largest error of the learned filter: (\S+)", output)[1]) < 1e-6


def test_filters_do_what_they_are_called(backend: str, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="the filters example needs Pillow")
    saved = tmp_path / "filters.png"
    assert str(saved) in run_example("filters.py", str(saved), "--backend", backend)
    with image_module.open(saved) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (1280, 926))
        sheet = np.asarray(image, float)
    labels_above = sheet[:36], sheet[463:499]
    assert all(label.min() < 100 for row in labels_above for label in np.split(row, 2, axis=1)), (
        "a label is missing"
    )
    original, edges = sheet[36:463, :640], sheet[36:463, 640:]
    blurred, sharp = sheet[499:, :640], sheet[499:, 640:]

    def detail(picture: np.ndarray) -> float:
        return float(np.abs(np.diff(picture, axis=0)).mean() + np.abs(np.diff(picture, axis=1)).mean())

    assert detail(blurred) < detail(original) / 2
    assert detail(sharp) > 1.3 * detail(original)
    np.testing.assert_allclose(
        blurred.mean((0, 1)), original.mean((0, 1)), atol=1
    )  # brightness and colour stay
    # Edges are grey, dark where the picture is even (the sky, top left), and bright where it changes most.
    assert np.ptp(edges, axis=2).max() == 0
    change = (
        np.abs(np.diff(original.mean(2), axis=0))[:, :-1] + np.abs(np.diff(original.mean(2), axis=1))[:-1]
    )
    assert np.corrcoef(change.ravel(), edges[:-1, :-1, 0].ravel())[0, 1] > 0.7
    assert edges[:100, :100].mean() < 10 < edges.mean()
