"""`ArrayDataset`: inputs and their labels, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class ArrayDataset:
    """Pairs of inputs and labels (or other targets) in two arrays of equal length.

    Parameters
    ----------
    inputs : array_like
        Shape ``(N, ...)``.
    targets : array_like
        Shape ``(N,)`` of integer class labels, or ``(N, ...)``.
    classes : sequence of str, optional
        The classes' names: label ``k`` is ``classes[k]``.

    Raises
    ------
    ValueError
        The lengths differ, or a label names no class.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.data import ArrayDataset
    >>> images = ArrayDataset(np.zeros((3, 1, 2, 2)), [0, 1, 1], classes=("cat", "dog"))
    >>> len(images)
    3
    >>> inputs, labels = images[[0, 2]]
    >>> inputs.shape, labels.tolist()
    ((2, 1, 2, 2), [0, 1])
    """

    def __init__(self, inputs: ArrayLike, targets: ArrayLike, classes: Sequence[str] | None = None) -> None:
        self.inputs: NDArray[Any] = np.asarray(inputs)
        self.targets: NDArray[Any] = np.asarray(targets)
        self.classes = None if classes is None else tuple(classes)
        if self.inputs.ndim < 1 or self.targets.ndim < 1 or len(self.inputs) != len(self.targets):
            raise ValueError(
                "ArrayDataset: inputs and targets must be of equal length, "
                f"got shapes {self.inputs.shape} and {self.targets.shape}"
            )
        if self.classes is not None and len(self):
            low, high = self.targets.min(), self.targets.max()
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"ArrayDataset: labels from {low} to {high}, but there are {len(self.classes)} classes"
                )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.inputs[index], self.targets[index]

    def __repr__(self) -> str:
        return f"ArrayDataset({len(self)} of shape {self.inputs.shape[1:]} {self.inputs.dtype})"
