"""`Dropout`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.nn._arrays import Array, Rng, as_array, as_float, as_generator, as_gradient, as_real, namespace
from fastconv.nn.module import Module


class Dropout(Module):
    """In training, sets each value to 0 with probability ``p`` and divides the others by ``1 - p``.

    Parameters
    ----------
    p : float
    inplace : bool
        Accepted as in PyTorch; changes nothing, a layer never writes into its input.
    rng : numpy.random.Generator, int or None
        Draws the masks. `Module.rng_state` saves its state.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, rng: Rng = None) -> None:
        self.p = as_real("Dropout", "p", p, 0.0, 1.0)
        self.inplace = inplace
        self.rng = as_generator("Dropout", rng)

    def forward(self, x: Any) -> Array:
        """The masked and scaled input in training mode, otherwise the input itself."""
        x = as_array("Dropout", "input", x)
        if not self.training or self.p == 0:
            self.save_for_backward(None, x.shape)
            return x
        x = as_float(x)
        keep = namespace(x).asarray(self.rng.random(x.shape, dtype=np.float32) >= self.p)
        self.save_for_backward(keep, x.shape)
        return self._apply(x, keep)

    def backward(self, grad_output: Any) -> Array:
        keep, shape = self.saved_for_backward()
        grad = as_gradient("Dropout", grad_output, shape)
        return grad if keep is None else self._apply(grad, keep)

    def _apply(self, x: Array, keep: Array) -> Array:
        y: Array = x * keep
        if self.p < 1:
            y *= 1 / (1 - self.p)
        return y

    def extra_repr(self) -> str:
        return f"p={self.p}"
