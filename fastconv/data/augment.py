"""Augmentation: transforms of a batch ``(N, C, H, W)``, each drawing from the generator it is given.

A transform is any callable ``transform(inputs, rng) -> inputs``. It holds no state and changes no input, so
what comes out depends on the batch and the generator alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Transform = Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]


class Compose:
    """One transform after another.

    Parameters
    ----------
    *transforms : callables ``(inputs, rng) -> inputs``
    """

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = transforms

    def __call__(self, inputs: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        for transform in self.transforms:
            inputs = transform(inputs, rng)
        return inputs


class RandomCrop:
    """A window of ``size``, anywhere within the image padded by ``padding``; drawn for each image on its own.

    Parameters
    ----------
    size : int or (int, int), optional
        Height and width of the window; the image's own by default.
    padding : int
        Pixels added on every side before the cut.
    fill : float
        Their value.

    Raises
    ------
    ValueError
        The window is larger than the padded image, or the input is not a batch.
    """

    def __init__(
        self, size: int | tuple[int, int] | None = None, padding: int = 0, fill: float = 0.0
    ) -> None:
        if padding < 0:
            raise ValueError(f"RandomCrop: padding must not be negative, got {padding}")
        self.size = (size, size) if isinstance(size, int) else size
        self.padding = padding
        self.fill = fill

    def __call__(self, inputs: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        _check_batch(self, inputs)
        size, p = self.size or inputs.shape[-2:], self.padding
        padded = np.pad(inputs, ((0, 0), (0, 0), (p, p), (p, p)), constant_values=self.fill)
        if size[0] > padded.shape[-2] or size[1] > padded.shape[-1]:
            raise ValueError(
                f"RandomCrop: a window of {size} does not fit into {padded.shape[-2:]} (padding included)"
            )
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, size, axis=(-2, -1)
        )  # (N, C, tops, lefts, *size)
        n = np.arange(len(inputs))
        top = rng.integers(0, windows.shape[2], len(inputs))
        left = rng.integers(0, windows.shape[3], len(inputs))
        return windows[n, :, top, left]


class RandomShift(RandomCrop):
    """Moves each image by up to ``pixels`` up, down, left and right; what comes in is ``fill``.

    Parameters
    ----------
    pixels : int
    fill : float
    """

    def __init__(self, pixels: int, fill: float = 0.0) -> None:
        super().__init__(padding=pixels, fill=fill)


class RandomHorizontalFlip:
    """Mirrors each image with probability ``p``.

    Parameters
    ----------
    p : float
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"RandomHorizontalFlip: p must be between 0 and 1, got {p}")
        self.p = p

    def __call__(self, inputs: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        _check_batch(self, inputs)
        flip = rng.random(len(inputs)) < self.p
        return np.where(flip[:, None, None, None], inputs[..., ::-1], inputs)


class Normalize:
    """``(inputs - mean) / std``, per channel; random in nothing, it ignores the generator.

    Parameters
    ----------
    mean, std : float or one per channel
        Usually those of the training set.

    Raises
    ------
    ValueError
        A standard deviation is not above zero.
    TypeError
        The inputs are integers: scale them first.
    """

    def __init__(self, mean: ArrayLike, std: ArrayLike) -> None:
        self.mean = np.asarray(mean, np.float64).reshape(-1, 1, 1)
        self.std = np.asarray(std, np.float64).reshape(-1, 1, 1)
        if not (self.std > 0).all():
            raise ValueError(f"Normalize: std must be above 0, got {std!r}")

    def __call__(self, inputs: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:  # noqa: ARG002 - a transform's signature
        _check_batch(self, inputs)
        if not np.issubdtype(inputs.dtype, np.floating):
            raise TypeError(f"Normalize: inputs must be floating-point, got {inputs.dtype}")
        normal: NDArray[Any] = (inputs - self.mean.astype(inputs.dtype)) / self.std.astype(inputs.dtype)
        return normal


def _check_batch(transform: object, inputs: NDArray[Any]) -> None:
    if inputs.ndim != 4:
        raise ValueError(
            f"{type(transform).__name__}: expected a batch (N, C, H, W), got shape {inputs.shape}"
        )
