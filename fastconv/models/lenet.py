"""A small convolutional network for small grey images, in the manner of LeNet-5."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from fastconv import nn


def lenet(
    classes: int = 10, *, rng: np.random.Generator | int | None = None, dtype: DTypeLike = np.float32
) -> nn.Sequential:
    """Two convolutions with pooling and a linear layer, for images ``(N, 1, 28, 28)``; 8490 parameters.

    ============================  ==================
    layers                        output
    ============================  ==================
    ``Conv2d(1, 10, 5)``, ReLU    ``(N, 10, 24, 24)``
    ``MaxPool2d(2)``              ``(N, 10, 12, 12)``
    ``Conv2d(10, 20, 5)``, ReLU   ``(N, 20, 8, 8)``
    ``MaxPool2d(2)``              ``(N, 20, 4, 4)``
    ``Flatten``, ``Linear``       ``(N, classes)``
    ============================  ==================

    Parameters
    ----------
    classes : int
    rng : numpy.random.Generator, int or None
        Draws the weights.
    dtype : dtype
        Of the parameters.

    Returns
    -------
    nn.Sequential
        Its outputs are logits.
    """
    generator = np.random.default_rng(rng)
    return nn.Sequential(
        nn.Conv2d(1, 10, 5, rng=generator, dtype=dtype),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(10, 20, 5, rng=generator, dtype=dtype),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(20 * 4 * 4, classes, rng=generator, dtype=dtype),
    )
