"""scikit-learn's handwritten digits: real data that ships in that library's wheel; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastconv.data.dataset import ArrayDataset


def digits(*, size: int = 28, dtype: DTypeLike = np.float32) -> tuple[ArrayDataset, ArrayDataset]:
    """1797 handwritten digits for training and held out: the test part of UCI's "Optical Recognition" data.

    The split is fixed and stratified: of each class, in the order of the file, every fifth image is held out.
    Training and held-out images come from the same writers.

    Parameters
    ----------
    size : int
        Height and width; the 8x8 originals are enlarged bilinearly.
    dtype : dtype
        Of the images.

    Returns
    -------
    train, held_out : ArrayDataset
        1442 and 355 images of shape ``(1, size, size)`` in [0, 1], and int64 labels 0 to 9.

    Raises
    ------
    ImportError
        scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits data come with scikit-learn: pip install 'fastconv[train]'") from error
    data = load_digits()
    images = resize_bilinear(data.images / 16, (size, size))[:, None].astype(dtype)
    labels = data.target.astype(np.int64)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    names = tuple(str(label) for label in range(10))
    return ArrayDataset(images[~held_out], labels[~held_out], names), ArrayDataset(
        images[held_out], labels[held_out], names
    )


def resize_bilinear(images: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Images of another size, by bilinear interpolation between the centres of the pixels.

    Meant for enlarging: it does not smooth before it shrinks. The border's value goes on outwards.

    Parameters
    ----------
    images : ndarray
        Shape ``(..., H, W)``, floating-point.
    size : (int, int)
        New height and width.

    Returns
    -------
    ndarray
        Shape ``(..., *size)``, the dtype of ``images``.
    """
    rows = _interpolation(size[0], images.shape[-2]).astype(images.dtype)
    columns = _interpolation(size[1], images.shape[-1]).astype(images.dtype)
    resized: NDArray[Any] = rows @ images @ columns.T
    return resized


def _interpolation(n_out: int, n_in: int) -> NDArray[np.float64]:
    """The matrix ``(n_out, n_in)`` that interpolates along one axis."""
    centre = ((np.arange(n_out) + 0.5) * n_in / n_out - 0.5).clip(0, n_in - 1)
    left = np.floor(centre).astype(int)
    right = np.minimum(left + 1, n_in - 1)
    matrix = np.zeros((n_out, n_in))
    # Two steps: at the border left and right are one column, which takes both shares.
    matrix[np.arange(n_out), left] += 1 - (centre - left)
    matrix[np.arange(n_out), right] += centre - left
    return matrix
