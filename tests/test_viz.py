"""Plots: what is drawn, and that it can be drawn without a display."""

import io
import subprocess
import sys

import numpy as np
import pytest

from fastconv import viz
from fastconv.train import History

matplotlib = pytest.importorskip("matplotlib")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def pixels(ax):
    """The figure as it is drawn, (H, W, 4)."""
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="raw")
    width, height = (round(side) for side in ax.figure.get_size_inches() * ax.figure.dpi)
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)


HISTORY = History(
    [
        {"epoch": 1, "loss": 1.0, "val_loss": 1.5, "lr": 0.1},
        {"epoch": 2, "loss": 0.5, "lr": 0.1},
        {"epoch": 3, "loss": 0.25, "val_loss": 0.75, "lr": 0.05},
    ]
)


def test_learning_curve(ax):
    assert viz.learning_curve(HISTORY, ax=ax) is ax
    train, val = ax.get_lines()
    assert np.array_equal(train.get_xydata(), [(1, 1.0), (2, 0.5), (3, 0.25)])
    assert np.array_equal(val.get_xydata(), [(1, 1.5), (3, 0.75)])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training", "validation"]
    assert all(tick == round(tick) for tick in ax.get_xticks())
    one = viz.learning_curve(HISTORY.rows[:1], ax=Figure().subplots())
    assert [tick for tick in one.get_xticks() if 0.5 < tick < 1.5] == [1]


def test_learning_curve_without_validation(ax):
    viz.learning_curve(HISTORY.rows, "lr", ax)
    assert len(ax.get_lines()) == 1
    assert ax.get_legend() is None
    for history in (HISTORY, []):
        with pytest.raises(KeyError, match="no column 'accuracy'"):
            viz.learning_curve(history, "accuracy", ax)


def test_confusion_matrix(ax):
    matrix = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    viz.confusion_matrix(matrix, ["cat", "dog", "hedgehog"], ax)
    assert {text.get_position(): text.get_text() for text in ax.texts} == {
        (0, 0): "8",
        (1, 0): "2",
        (0, 2): "1",
        (2, 2): "3",
    }
    assert np.allclose(ax.get_images()[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["cat", "dog", "hedgehog"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    drawn = pixels(ax)
    assert len(np.unique(drawn.reshape(-1, 4), axis=0)) > 10


def test_confusion_matrix_refuses(ax):
    with pytest.raises(ValueError, match=r"square matrix, got shape \(2, 3\)"):
        viz.confusion_matrix(np.zeros((2, 3)), ax=ax)
    with pytest.raises(ValueError, match="1 names for 2 classes"):
        viz.confusion_matrix(np.zeros((2, 2)), ["a"], ax)


def canvas(ax):
    return ax.get_images()[0].get_array()


def test_filters_of_grey_images(ax):
    weight = np.linspace(-2, 1, 5 * 1 * 2 * 3).reshape(5, 1, 2, 3)
    viz.filters(weight, ax)
    shown = canvas(ax)
    assert shown.shape == (2 * 3 - 1, 3 * 4 - 1, 3)  # 2 rows of 3, a gap between each
    for k in range(5):
        top, left = k // 3 * 3, k % 3 * 4
        tile = shown[top : top + 2, left : left + 3]
        assert np.allclose(tile, weight[k, 0, :, :, None] / 4 + 0.5)  # grey, -2 black, 0 in the middle
    assert (shown[2] == 1).all()
    assert (shown[:, 3] == 1).all()


def test_filters_of_colours_and_of_many_channels(ax):
    weight = np.random.default_rng(0).standard_normal((4, 3, 5, 5))
    shown = canvas(viz.filters(weight, ax))
    assert shown.shape == (11, 11, 3)
    assert np.allclose(shown[:5, 6:], np.moveaxis(weight[1], 0, -1) / np.abs(weight).max() / 2 + 0.5)
    shown = canvas(viz.filters(np.ones((3, 8, 5, 5)), Figure().subplots()))
    assert shown.shape == (3 * 6 - 1, 8 * 6 - 1, 3)  # a row for each output channel
    shown = canvas(viz.filters(np.zeros((2, 1, 5, 5)), Figure().subplots(), columns=1))
    assert shown.shape == (11, 5, 3)
    assert np.isfinite(shown).all()
    for shape in ((4, 5, 5), (0, 1, 5, 5)):
        with pytest.raises(ValueError, match=r"C_out, C_in, kH, kW"):
            viz.filters(np.zeros(shape), ax)


def test_image_grid_refuses(ax):
    for shape in ((0, 4, 4), (2, 0, 4), (4, 4)):
        with pytest.raises(ValueError, match=r"image_grid: expected images \(N, H, W\).*got shape \("):
            viz.image_grid(np.zeros(shape), ax)


def test_feature_maps(ax):
    maps = np.stack([np.full((4, 6), 7.0), np.arange(24.0).reshape(4, 6)])
    shown = canvas(viz.feature_maps(maps, ax))
    assert shown.shape == (4, 13, 3)
    assert (shown[:, :6] == 0).all()  # constant
    assert np.allclose(shown[:, 7:, 0], maps[1] / 23)
    for shape in ((2, 4, 6, 1), (0, 4, 4), (3, 3)):
        with pytest.raises(ValueError, match="maps"):
            viz.feature_maps(np.zeros(shape), ax)


def test_without_axes_a_figure_is_opened():
    first = viz.learning_curve(HISTORY)
    second = viz.feature_maps(np.zeros((1, 2, 2)))
    assert isinstance(first, Axes)
    assert first.figure is not second.figure
    assert len(pyplot.get_fignums()) == 2


@pytest.mark.smoke
def test_no_display_and_no_early_import(tmp_path):
    code = (
        "import sys; from fastconv import viz; assert 'matplotlib' not in sys.modules\n"
        "ax = viz.learning_curve([{'epoch': 1, 'loss': 2.0}, {'epoch': 2, 'loss': 1.0}])\n"
        "ax.figure.savefig(sys.argv[1])"
    )
    environment = {"PATH": "", "HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "mpl")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "x.png")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'fastconv\[train\]'"):
        viz.feature_maps(np.zeros((1, 2, 2)))
