"""What the tests of layers and optimizers share."""

import os
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fastconv import nn
from fastconv.testing import gradcheck


def import_torch() -> ModuleType:
    """PyTorch, or a skipped module where it is not installed (unless FASTCONV_REQUIRE_TORCH=1 demands it)."""
    if os.environ.get("FASTCONV_REQUIRE_TORCH") == "1":
        import torch

        return torch
    return pytest.importorskip("torch", reason="torch is not installed (FASTCONV_REQUIRE_TORCH=1 demands it)")


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and running statistic an arbitrary value: none can be forgotten unnoticed."""
    rng = np.random.default_rng(seed)
    for parameter in module.parameters():
        parameter.data = rng.uniform(0.2, 1.0, parameter.shape) * rng.choice([-1, 1], parameter.shape)
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer[...] = rng.uniform(0.5, 1.5, buffer.shape)
    return module


def check_gradients(module: nn.Module, x: np.ndarray, **tolerances: Any) -> None:
    """`backward` of the input and of every parameter against finite differences; ``module`` is in float64."""
    parameters = list(module.parameters())
    assert all(parameter.dtype == np.float64 for parameter in parameters)

    def load(values: tuple[np.ndarray, ...]) -> None:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value

    def forward(x: np.ndarray, *values: np.ndarray) -> np.ndarray:
        load(values)
        return np.array(module(x))  # a copy: some layers return a view of x, which is about to change

    def backward(grad_output: np.ndarray, x: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
        load(values)
        module.zero_grad()
        module(x)
        grad_input = module.backward(grad_output)
        return [grad_input, *(parameter.grad for parameter in parameters)]

    gradcheck(forward, backward, [x, *(parameter.data.copy() for parameter in parameters)], **tolerances)


def distinct(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Values at least 0.05 apart and as far from 0: no kink or tie lies within a finite difference."""
    size = int(np.prod(shape))
    values = (np.arange(size) - size // 2 + 0.5) * 0.1
    return np.random.default_rng(seed).permutation(values).reshape(shape)
