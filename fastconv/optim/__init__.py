"""Optimizers and learning-rate schedules; their update rules equal PyTorch's."""

from fastconv.nn.utils import clip_grad_norm_, clip_grad_value_
from fastconv.optim.optimizer import Optimizer
from fastconv.optim.rules import SGD, Adagrad, Adam, AdamW, RMSprop
from fastconv.optim.schedules import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "RMSprop",
    "ReduceLROnPlateau",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
]
