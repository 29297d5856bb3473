"""MNIST and its look-alikes: a folder with four IDX files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from fastconv.data.dataset import ArrayDataset
from fastconv.data.idx import DataError, read_idx

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
MNIST_CLASSES = tuple("0123456789")


def mnist(
    folder: str | os.PathLike[str], *, classes: tuple[str, ...] = MNIST_CLASSES, dtype: DTypeLike = np.float32
) -> tuple[ArrayDataset, ArrayDataset]:
    """The two parts of a data set laid out like MNIST.

    Parameters
    ----------
    folder : path
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, each plain or with ``.gz`` (the plain one if there are both).
    classes : tuple of str
        The names of the classes; labels must be smaller than their number.
    dtype : dtype
        Of the images.

    Returns
    -------
    train, test : ArrayDataset
        Images ``(N, 1, H, W)`` in [0, 1], labels int64.

    Raises
    ------
    DataError
        A file is missing, damaged, or does not fit the others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    train, test = (_part(folder, part, classes, dtype) for part in ("train", "t10k"))
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise DataError(
            f"{folder}: training images are {train.inputs.shape[2:]}, test images {test.inputs.shape[2:]}"
        )
    return train, test


def fashion_mnist(
    folder: str | os.PathLike[str], *, dtype: DTypeLike = np.float32
) -> tuple[ArrayDataset, ArrayDataset]:
    """Fashion-MNIST: 60000 + 10000 grey images, 28x28, of ten kinds of clothing.

    See `mnist` for files and result. Debian's package ``dataset-fashion-mnist`` brings the files
    (``dpkg -L dataset-fashion-mnist`` says where).
    """
    return mnist(folder, classes=FASHION_MNIST_CLASSES, dtype=dtype)


def _part(folder: Path, part: str, classes: tuple[str, ...], dtype: DTypeLike) -> ArrayDataset:
    images_path = _find(folder, f"{part}-images-idx3-ubyte")
    labels_path = _find(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise DataError(
            f"{images_path}: expected uint8 images in 3 axes, got {images.dtype} in {images.ndim}"
        )
    if labels.ndim != 1 or labels.dtype != np.uint8:
        raise DataError(
            f"{labels_path}: expected uint8 labels in 1 axis, got {labels.dtype} in {labels.ndim}"
        )
    if images.size == 0:
        raise DataError(f"{images_path}: holds no pixels (shape {images.shape})")
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: {images_path.name} has {len(images)} images, {labels_path.name} {len(labels)} labels"
        )
    if labels.max() >= len(classes):
        first = int(np.argmax(labels >= len(classes)))
        raise DataError(
            f"{labels_path}: label {labels[first]} at position {first} is not in 0..{len(classes) - 1}"
        )
    scaled = images[:, None].astype(dtype)
    scaled /= 255
    return ArrayDataset(scaled, labels.astype(np.int64), classes)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder}: neither {name} nor {name}.gz is there")
