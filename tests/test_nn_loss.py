"""Losses, initial values and gradient clipping by themselves."""

from typing import Any

import numpy as np
import pytest
from nn_support import distinct

import fastconv as fc
from fastconv import nn

# --- losses ---


@pytest.mark.smoke
@pytest.mark.parametrize(("shape", "target"), [((4, 3), (4,)), ((2, 3, 5), (2, 5)), ((3,), ())])
def test_gradient_of_cross_entropy(shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    criterion = nn.CrossEntropyLoss([0.5, 2.0, 1.0], label_smoothing=0.1)
    labels = np.random.default_rng(0).integers(0, 3, target)
    logits = distinct(shape)
    criterion(logits, labels)
    grad = criterion.backward()
    for index in np.ndindex(shape):
        step = np.zeros(shape)
        step[index] = 1e-6
        measured = (criterion(logits + step, labels) - criterion(logits - step, labels)) / 2e-6
        assert grad[index] == pytest.approx(measured, abs=1e-8)


def test_cross_entropy_stays_exact_for_extreme_logits() -> None:
    criterion = nn.CrossEntropyLoss()
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    loss = criterion(logits, np.array([1, 1]))
    assert type(loss) is float
    assert loss == pytest.approx(5000)
    grad = criterion.backward()
    assert grad.dtype == np.float32
    np.testing.assert_allclose(grad, [[0.5, -0.5], [0, 0]])


def test_losses_keep_the_dtype_of_their_input() -> None:
    """A float64 target must not turn the whole backward pass into float64."""
    x = np.ones((2, 3), np.float32)
    for criterion, target in (
        (nn.MSELoss(), np.zeros((2, 3))),
        (nn.CrossEntropyLoss(np.ones(3)), np.array([0, 1])),
        (nn.CrossEntropyLoss(), np.full((2, 3), 1 / 3)),
    ):
        criterion(x, target)
        assert criterion.backward().dtype == np.float32


def test_gradient_is_scaled_by_its_argument() -> None:
    criterion = nn.MSELoss()
    x, target = distinct((2, 3)), distinct((2, 3), 1)
    criterion(x, target)
    whole = criterion.backward()
    criterion(x, target)
    np.testing.assert_allclose(criterion.backward(0.25), whole / 4)


@pytest.mark.parametrize("labels", [np.array([0, 2], np.uint8), np.array([0, 2], np.uint64), [0, 2]])
def test_labels_of_any_integer_type(labels: Any) -> None:
    x = distinct((2, 3))
    assert nn.CrossEntropyLoss()(x, labels) == nn.CrossEntropyLoss()(x, np.array([0, 2]))


@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        ((2, 3), np.array([0, 3]), IndexError, "target 3 is out of range for 3 classes"),
        ((2, 3), np.array([0, -1]), IndexError, "target -1 is out of range for 3 classes"),
        ((2, 3), np.array([0, 1, 2]), ValueError, r"target has shape \(3,\), expected \(2,\)"),
        ((2, 3), np.array([0.0, 1.0]), TypeError, "expected class numbers"),
        ((2, 3), np.array([True, False]), TypeError, "target has dtype bool"),
        ((2, 3), np.ones((2, 3), int), ValueError, r"target has shape \(2, 3\), expected \(2,\)"),
        ((2, 0), np.array([0, 0]), ValueError, "has 0 classes, expected at least one class"),
        ((), np.array(0), ValueError, "input is a scalar"),
    ],
)
def test_bad_targets(logits: tuple[int, ...], target: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nn.CrossEntropyLoss()(np.ones(logits), target)


def test_other_bad_losses() -> None:
    with pytest.raises(fc.ShapeError, match="has 3 classes, expected 2, the number of class weights"):
        nn.CrossEntropyLoss(np.ones(2))(np.ones((2, 3)), [0, 1])
    with pytest.raises(fc.ShapeError, match=r"MSELoss: target has shape \(2,\), expected \(2, 1\)"):
        nn.MSELoss()(np.ones((2, 1)), np.ones(2))
    criterion = nn.MSELoss(reduction="none")
    criterion(np.ones(2), np.ones(2))
    with pytest.raises(fc.ShapeError, match=r"grad_output has shape \(\), expected \(2,\)"):
        criterion.backward()
    with pytest.raises(RuntimeError, match="needs a forward"):
        nn.CrossEntropyLoss().backward()


def test_empty_batch() -> None:
    for criterion, x, target in (
        (nn.CrossEntropyLoss(), np.ones((0, 3)), np.ones(0, int)),
        (nn.MSELoss(), np.ones((0, 3)), np.ones((0, 3))),
    ):
        assert np.isnan(criterion(x, target))
        assert criterion.backward().shape == (0, 3)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4))
    y = model(np.ones((0, 1, 8, 8), np.float32))
    assert y.shape == (0, 4)
    assert model.backward(y).shape == (0, 1, 8, 8)
    assert all(not parameter.grad.any() for parameter in model.parameters())


# --- initial values ---


def test_constants() -> None:
    parameter = nn.Parameter(np.empty((2, 3), np.float32))
    assert nn.init.constant_(parameter, 1.5) is parameter
    np.testing.assert_array_equal(parameter.data, 1.5)
    array = np.empty(3)
    assert nn.init.ones_(array) is array
    np.testing.assert_array_equal(nn.init.zeros_(array), 0)
    assert nn.init.fan_in_and_out(np.empty((4, 3, 2, 5))) == (30, 40)


def test_clip_nonfinite() -> None:
    parameter = nn.Parameter(np.zeros(2))
    parameter.grad = np.array([np.nan, 1.0])
    assert np.isnan(nn.utils.clip_grad_norm_(parameter, 1.0))
    with pytest.raises(RuntimeError, match="the norm of the gradients is nan"):
        nn.utils.clip_grad_norm_([parameter], 1.0, error_if_nonfinite=True)
    assert nn.utils.clip_grad_norm_([nn.Parameter(np.zeros(2))], 1.0) == 0
