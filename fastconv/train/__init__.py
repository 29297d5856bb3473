"""Training: `Trainer`, its callbacks and history, checkpoints with exact resume, and a few metrics."""

from fastconv.train.callbacks import Callback, Checkpoint, EarlyStopping, LearningRateSchedule
from fastconv.train.checkpoint import (
    SUFFIXES,
    CheckpointError,
    check_suffix,
    load_checkpoint,
    save_checkpoint,
)
from fastconv.train.history import History, Row
from fastconv.train.metrics import accuracy, confusion_matrix, top_k_accuracy
from fastconv.train.trainer import NonFiniteLossError, Trainer

__all__ = [
    "SUFFIXES",
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "EarlyStopping",
    "History",
    "LearningRateSchedule",
    "NonFiniteLossError",
    "Row",
    "Trainer",
    "accuracy",
    "check_suffix",
    "confusion_matrix",
    "load_checkpoint",
    "save_checkpoint",
    "top_k_accuracy",
]
