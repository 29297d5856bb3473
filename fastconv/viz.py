"""Plots, by matplotlib: each function draws into an Axes and returns it.

Without ``ax`` they open a figure of `matplotlib.pyplot`, which works without a display too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["confusion_matrix", "feature_maps", "filters", "image_grid", "learning_curve"]


def learning_curve(
    history: Any,
    column: str = "loss",
    ax: Axes | None = None,
    *,
    labels: tuple[str, str] = ("training", "validation"),
) -> Axes:
    """A column of a training's history and its ``val_`` counterpart over the epochs.

    Parameters
    ----------
    history : train.History, or a sequence of dicts with ``"epoch"``
    column : str
        ``"loss"``, ``"accuracy"``, ``"lr"``, ...
    ax : matplotlib.axes.Axes, optional
    labels : (str, str)
        Names of the two lines.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    KeyError
        No row has the column.
    """
    rows = list(history)
    drawn = [
        (name, label)
        for name, label in zip((column, f"val_{column}"), labels, strict=True)
        if _any(rows, name)
    ]
    if not drawn:
        raise KeyError(f"learning_curve: the history has no column {column!r}")
    ax = _axes(ax)
    for name, label in drawn:
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        ax.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    ax.set_xlabel("epoch")
    ax.set_ylabel(column)
    ax.locator_params(axis="x", integer=True, min_n_ticks=1)
    ax.grid(alpha=0.3)
    if len(drawn) > 1:
        ax.legend()
    return ax


def _any(rows: Sequence[Any], name: str) -> bool:
    return any(name in row for row in rows)


def confusion_matrix(matrix: ArrayLike, classes: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """A confusion matrix: counts as numbers, the share of each true class as colour.

    Parameters
    ----------
    matrix : array_like (C, C)
        Rows: true class; columns: predicted class; see `fastconv.train.confusion_matrix`.
    classes : sequence of str, optional
        Their names; numbers by default.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        The matrix is not square, or the names are not as many as the classes.
    """
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"confusion_matrix: expected a square matrix, got shape {counts.shape}")
    names = [str(k) for k in range(len(counts))] if classes is None else list(classes)
    if len(names) != len(counts):
        raise ValueError(f"confusion_matrix: {len(names)} names for {len(counts)} classes")
    ax = _axes(ax)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            ax.text(column, row, str(count), ha="center", va="center", color=colour, fontsize="small")
    ax.set_xticks(range(len(names)), names)
    if max(map(len, names)) > 3:
        ax.tick_params(axis="x", labelrotation=45)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    return ax


def filters(weight: ArrayLike, ax: Axes | None = None, *, columns: int | None = None) -> Axes:
    """The kernels of a 2-D convolution side by side, in one range of grey values around zero.

    Parameters
    ----------
    weight : array_like (C_out, C_in, kH, kW)
        Three input channels are shown as colours, otherwise each kernel by itself, those of one output
        channel in a row.
    ax : matplotlib.axes.Axes, optional
    columns : int, optional
        Kernels per row.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        The weight is no 2-D convolution's.
    """
    kernels = np.asarray(weight, np.float64)
    if kernels.ndim != 4 or kernels.size == 0:
        raise ValueError(f"filters: expected a weight (C_out, C_in, kH, kW), got shape {kernels.shape}")
    limit = np.abs(kernels).max() or 1.0
    if kernels.shape[1] == 3:
        return image_grid(np.moveaxis(kernels / limit / 2 + 0.5, 1, -1), ax, columns=columns)
    if columns is None and kernels.shape[1] > 1:
        columns = kernels.shape[1]
    return image_grid(kernels.reshape(-1, *kernels.shape[2:]) / limit / 2 + 0.5, ax, columns=columns)


def feature_maps(maps: ArrayLike, ax: Axes | None = None, *, columns: int | None = None) -> Axes:
    """The channels of a layer's output for one image, side by side, each scaled to its own range.

    Parameters
    ----------
    maps : array_like (C, H, W)
    ax : matplotlib.axes.Axes, optional
    columns : int, optional
        Channels per row.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        Another number of axes, or nothing to show.
    """
    images = np.asarray(maps, np.float64)
    if images.ndim != 3 or images.size == 0:
        raise ValueError(f"feature_maps: expected the maps (C, H, W) of one image, got shape {images.shape}")
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    return image_grid((images - low) / np.where(high > low, high - low, 1), ax, columns=columns)


def image_grid(images: NDArray[Any], ax: Axes | None = None, *, columns: int | None = None) -> Axes:
    """Images in rows, as one picture with gaps between them.

    Parameters
    ----------
    images : ndarray (N, H, W) grey or (N, H, W, 3) colour, in [0, 1]
    ax : matplotlib.axes.Axes, optional
    columns : int, optional
        Images per row; by default about as many as there are rows.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        Another number of axes, or nothing to show.
    """
    if images.ndim not in (3, 4) or images.size == 0:
        raise ValueError(
            f"image_grid: expected images (N, H, W) or (N, H, W, 3), at least one, got shape {images.shape}"
        )
    n, height, width = images.shape[:3]
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3))
    for k, image in enumerate(images):
        top, left = k // columns * (height + 1), k % columns * (width + 1)
        canvas[top : top + height, left : left + width] = image if image.ndim == 3 else image[..., None]
    ax = _axes(ax)
    ax.imshow(canvas.clip(0, 1), interpolation="nearest")
    ax.set_axis_off()
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'fastconv[train]'") from error
    return pyplot.subplots(layout="constrained")[1]
