"""Metrics of classification. scikit-learn has the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(outputs: ArrayLike, labels: ArrayLike) -> float:
    """The share of samples whose largest output is the right class.

    Parameters
    ----------
    outputs : array_like (N, C, ...)
        Logits or probabilities.
    labels : array_like (N, ...)

    Returns
    -------
    float
        NaN for no samples.
    """
    return top_k_accuracy(outputs, labels, k=1)


def top_k_accuracy(outputs: ArrayLike, labels: ArrayLike, k: int = 5) -> float:
    """The share of samples whose right class is among the ``k`` largest outputs (ties: lower classes first).

    Parameters
    ----------
    outputs : array_like (N, C, ...)
        Logits or probabilities.
    labels : array_like (N, ...)
    k : int

    Returns
    -------
    float
        NaN for no samples.

    Raises
    ------
    ValueError
        The shapes do not fit, or ``k`` is not in 1..C.
    """
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    if outputs.ndim < 2 or labels.shape != outputs.shape[:1] + outputs.shape[2:]:
        raise ValueError(f"labels have shape {labels.shape}, outputs have shape {outputs.shape}")
    if not 1 <= k <= outputs.shape[1]:
        raise ValueError(f"k must be in 1..{outputs.shape[1]}, got {k}")
    best = np.argsort(-outputs, axis=1, kind="stable")[:, :k]
    hits = (best == labels[:, None]).any(axis=1)
    return float(hits.mean()) if hits.size else float("nan")


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """How often each class was taken for each.

    Parameters
    ----------
    labels, predicted : array_like of int, equal shapes
        True and predicted classes, each in 0..classes-1.
    classes : int
        Their number.

    Returns
    -------
    ndarray (classes, classes) of int64
        Rows: true class; columns: predicted class.

    Raises
    ------
    ValueError
        The shapes differ, or a class is out of range.
    """
    true, guess = np.asarray(labels), np.asarray(predicted)
    if true.shape != guess.shape:
        raise ValueError(f"labels have shape {true.shape}, predicted has shape {guess.shape}")
    pairs: NDArray[Any] = np.stack([true.ravel(), guess.ravel()]).astype(np.int64)
    if pairs.size and (pairs.min() < 0 or pairs.max() >= classes):
        raise ValueError(f"classes run from {pairs.min()} to {pairs.max()}, expected 0..{classes - 1}")
    counts = np.bincount(pairs[0] * classes + pairs[1], minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)
