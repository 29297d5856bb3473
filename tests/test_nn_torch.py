"""Every layer and loss against PyTorch's of the same name, arguments and state, in float64."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from nn_support import import_torch

from fastconv import nn

torch = import_torch()

RTOL, ATOL = 1e-10, 1e-12


class Case(NamedTuple):
    layer: str
    args: tuple[Any, ...]
    shape: tuple[int, ...]
    options: Mapping[str, Any] = MappingProxyType({})

    def __str__(self) -> str:
        options = "".join(f",{key}={value}" for key, value in self.options.items())
        return f"{self.layer}({','.join(map(str, self.args))}{options})-{'x'.join(map(str, self.shape))}"


CASES = [
    Case("Conv1d", (3, 4, 3), (2, 3, 9)),
    Case("Conv1d", (4, 6, 3, 2, 1, 2, 2), (2, 4, 11)),
    Case("Conv1d", (3, 4, 3), (3, 9)),
    Case("Conv2d", (3, 4, 3), (2, 3, 7, 6)),
    Case("Conv2d", (3, 4, (3, 2), (2, 1), (1, 0), (1, 2)), (2, 3, 7, 6)),
    Case("Conv2d", (4, 4, 3, 1, 1, 1, 4), (2, 4, 5, 6), {"bias": False}),
    Case("Conv2d", (3, 4, 3, 1, "same"), (2, 3, 6, 5)),
    Case("Conv2d", (3, 4, 3, 1, 1), (2, 3, 6, 5), {"padding_mode": "reflect"}),
    Case("Conv2d", (3, 4, 3, 2, 2), (2, 3, 6, 5), {"padding_mode": "circular"}),
    Case("Conv2d", (3, 4, 3, 1, 1), (2, 3, 6, 5), {"padding_mode": "replicate"}),
    Case("Conv2d", (3, 4, 1), (3, 5, 5)),
    Case("Conv3d", (2, 4, 3), (2, 2, 5, 4, 6)),
    Case("Conv3d", (2, 4, (1, 2, 3), 2, (0, 1, 1), 1, 2), (2, 2, 5, 4, 6)),
    Case("ConvTranspose1d", (3, 4, 3, 2, 1, 1), (2, 3, 6)),
    Case("ConvTranspose2d", (3, 4, 3), (2, 3, 5, 4)),
    Case("ConvTranspose2d", (4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2, True, (1, 2)), (2, 4, 3, 4)),
    Case("ConvTranspose2d", (4, 6, 3, 2), (4, 3, 4), {"bias": False}),
    Case("ConvTranspose3d", (2, 4, 2, 2), (2, 2, 3, 2, 3)),
    Case("MaxPool1d", (2,), (2, 3, 7)),
    Case("MaxPool1d", (3, 2, 1, 2), (2, 3, 9)),
    Case("MaxPool2d", (2,), (2, 3, 7, 6)),
    Case("MaxPool2d", ((3, 2), (2, 1), (1, 0)), (3, 7, 6), {"ceil_mode": True}),
    Case("MaxPool3d", (2, 1), (2, 3, 4, 3, 5)),
    Case("AvgPool1d", (3, 2, 1), (2, 3, 8)),
    Case("AvgPool2d", (3, 2, 1), (2, 3, 7, 6)),
    Case("AvgPool2d", (3, 2, 1, True, False), (2, 3, 8, 6)),
    Case("AvgPool2d", (2,), (3, 6, 5), {"divisor_override": 3}),
    Case("AvgPool3d", (2, 1), (2, 3, 4, 3, 5)),
    Case("LPPool1d", (2, 3, 2), (2, 3, 8)),
    Case("LPPool2d", (2, 2), (2, 3, 6, 7)),
    Case("LPPool3d", (4, 2), (2, 3, 4, 4, 4)),
    Case("AdaptiveAvgPool1d", (3,), (2, 3, 8)),
    Case("AdaptiveAvgPool2d", ((3, None),), (2, 3, 8, 5)),
    Case("AdaptiveAvgPool2d", (1,), (3, 8, 5)),
    Case("AdaptiveAvgPool3d", (2,), (2, 3, 5, 4, 3)),
    Case("AdaptiveMaxPool1d", (3,), (2, 3, 8)),
    Case("AdaptiveMaxPool2d", ((3, 2),), (2, 3, 8, 5)),
    Case("AdaptiveMaxPool3d", (2,), (3, 5, 4, 3)),
    Case("Linear", (5, 4), (7, 5)),
    Case("Linear", (5, 4), (5,)),
    Case("Linear", (5, 4, False), (2, 3, 5)),
    Case("Flatten", (), (2, 3, 4, 5)),
    Case("Flatten", (1, 2), (2, 3, 4, 5)),
    Case("Flatten", (0,), (3, 4)),
    Case("BatchNorm1d", (4,), (6, 4)),
    Case("BatchNorm1d", (4, 1e-3, 0.3), (3, 4, 5)),
    Case("BatchNorm2d", (4,), (3, 4, 5, 2)),
    Case("BatchNorm2d", (4, 1e-5, None), (3, 4, 5, 2)),
    Case("BatchNorm2d", (4,), (3, 4, 5, 2), {"affine": False}),
    Case("BatchNorm2d", (4,), (3, 4, 5, 2), {"track_running_stats": False}),
    Case("BatchNorm2d", (4, 1e-5, 1.5), (3, 4, 5, 2)),
    Case("BatchNorm2d", (4, 1e-5, -0.25), (3, 4, 5, 2)),
    Case("BatchNorm1d", (4,), (6, 4), {"bias": False}),
    Case("BatchNorm2d", (4,), (3, 4, 5, 2), {"bias": False}),
    Case("BatchNorm2d", (4,), (3, 4, 5, 2), {"bias": False, "affine": False}),
    Case("BatchNorm2d", (4,), (3, 4, 5, 2), {"bias": False, "track_running_stats": False}),
    Case("BatchNorm3d", (2,), (3, 2, 2, 3, 2), {"bias": False}),
    Case("BatchNorm3d", (2,), (3, 2, 2, 3, 2)),
    Case("LocalResponseNorm", (5, 1e-1, 0.75, 2.0), (2, 9, 3, 2)),
    Case("LocalResponseNorm", (4, 0.5), (2, 3, 5)),
    Case("LocalResponseNorm", (7,), (1, 2, 3, 2, 2)),
    Case("ReLU", (), (3, 4)),
    Case("LeakyReLU", (0.2,), (3, 4)),
    Case("PReLU", (), (2, 3, 4)),
    Case("PReLU", (3,), (2, 3, 4, 2)),
    Case("PReLU", (1, 0.1), (5,)),
    Case("ELU", (0.7,), (3, 4)),
    Case("SELU", (), (3, 4)),
    Case("Sigmoid", (), (3, 4)),
    Case("Tanh", (), (3, 4)),
    Case("SiLU", (), (3, 4)),
    Case("Softmax", (1,), (3, 4, 2)),
    Case("Softmax", (-1,), (3, 4)),
    Case("Dropout", (0.0,), (3, 4)),
]


def pair(case: Case) -> tuple[nn.Module, Any]:
    """Our layer and PyTorch's with the same arbitrary state, which ours loads from PyTorch's dictionary."""
    theirs = getattr(torch.nn, case.layer)(*case.args, **case.options).double()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for tensor in theirs.parameters():
            tensor.copy_(torch.from_numpy(rng.uniform(-1, 1, tuple(tensor.shape))))
    ours = getattr(nn, case.layer)(*case.args, **case.options).to(np.float64)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def data(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-2, 2, shape)


def run_both(ours: nn.Module, theirs: Any, x: np.ndarray, seed: int) -> None:
    """One forward and backward of both; outputs, gradients and all state must be equal."""
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    expected = theirs(tensor)
    y = ours(x.copy())
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, expected.detach().numpy(), RTOL, ATOL)
    grad = data(y.shape, seed)
    expected.backward(torch.from_numpy(grad))
    np.testing.assert_allclose(ours.backward(grad), tensor.grad.numpy(), RTOL, ATOL)
    parameters = dict(ours.named_parameters())
    assert list(parameters) == [name for name, _ in theirs.named_parameters()]
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(parameters[name].grad, parameter.grad.numpy(), RTOL, ATOL, err_msg=name)
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], value.numpy(), RTOL, ATOL, err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    ours, theirs = pair(case)
    run_both(ours, theirs, data(case.shape), 2)
    run_both(ours, theirs, data(case.shape, 3), 4)  # gradients add up, running statistics go on
    run_both(ours.eval(), theirs.eval(), data(case.shape, 5), 6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_extra_state_is_named_alike(case: Case) -> None:
    ours, theirs = pair(case)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    for name, value in state.items():
        assert value.shape == tuple(expected[name].shape)
        assert str(value.dtype) == str(expected[name].dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.layer.startswith(("Conv", "Linear", "BatchNorm", "PReLU"))],
    ids=str,
)
def test_dtype_and_size_of_new_layers(case: Case) -> None:
    theirs = getattr(torch.nn, case.layer)(*case.args, **case.options)
    ours = getattr(nn, case.layer)(*case.args, **case.options)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.dtype == np.float32
        assert mine.shape == tuple(other.shape)
        # Same bounds of the uniform distribution; both samples fill most of it.
        limit = other.detach().abs().max().item()
        assert np.abs(mine.data).max() <= max(1.6 * limit, 1e-12) or mine.size < 20


def test_conv_transpose_output_size() -> None:
    ours, theirs = pair(Case("ConvTranspose2d", (2, 3, 3, 2, 1), ()))
    x = data((2, 2, 4, 5))
    tensor = torch.from_numpy(x).requires_grad_()
    expected = theirs(tensor, output_size=(8, 9))
    y = ours(x, output_size=(8, 9))
    np.testing.assert_allclose(y, expected.detach().numpy(), RTOL, ATOL)
    grad = data(y.shape, 2)
    expected.backward(torch.from_numpy(grad))
    np.testing.assert_allclose(ours.backward(grad), tensor.grad.numpy(), RTOL, ATOL)


@pytest.mark.parametrize("layer", ["MaxPool2d", "AdaptiveMaxPool2d"])
def test_pooling_indices(layer: str) -> None:
    ours, theirs = pair(Case(layer, (2,), (), {"return_indices": True}))
    x = data((2, 3, 6, 7))
    values, indices = ours(x)
    expected, expected_indices = theirs(torch.from_numpy(x))
    np.testing.assert_array_equal(values, expected.numpy())
    np.testing.assert_array_equal(indices, expected_indices.numpy())


@pytest.mark.parametrize("name", ["ReLU", "LeakyReLU", "PReLU", "ELU", "SELU"])
def test_kinks_and_specials(name: str) -> None:
    """At 0 the derivative is a convention; NaN and infinity must come through."""
    ours, theirs = pair(Case(name, (), ()))
    x = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e300, -1e300, 5e-324])
    tensor = torch.from_numpy(x).requires_grad_()
    expected = theirs(tensor)
    np.testing.assert_allclose(ours(x), expected.detach().numpy(), RTOL)
    grad = np.arange(1.0, x.size + 1)
    expected.backward(torch.from_numpy(grad))
    mine, other = ours.backward(grad), tensor.grad.numpy()
    if name in ("ELU", "SELU"):  # PyTorch's gradient at NaN depends on the length of the array
        mine, other = np.delete(mine, 2), np.delete(other, 2)
    np.testing.assert_allclose(mine, other, RTOL)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # where both give NaN
@pytest.mark.parametrize("name", ["ReLU", "LeakyReLU", "PReLU", "ELU", "SELU"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_infinite_gradients(name: str, value: float, dtype: Any) -> None:
    ours, theirs = pair(Case(name, (), ()))
    ours, theirs = ours.to(dtype), theirs.to(getattr(torch, np.dtype(dtype).name))
    for x in np.array([-4.0, -1.0, -0.0, 0.0, 0.5, 3.0, np.inf, -np.inf], dtype):
        tensor = torch.tensor([x]).requires_grad_()
        theirs.zero_grad()
        theirs(tensor).backward(torch.tensor([dtype(value)]))
        ours.zero_grad()
        ours(np.array([x]))
        mine = ours.backward(np.array([value], dtype))
        assert mine.dtype == dtype
        np.testing.assert_array_equal(mine, tensor.grad.numpy(), str(x))
        for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            np.testing.assert_array_equal(parameter.grad, other.grad.numpy(), str(x))


def test_infinite_slopes() -> None:
    ours, theirs = pair(Case("PReLU", (2,), ()))
    for slope in (np.inf, np.nan):
        ours.weight.data[:] = slope
        with torch.no_grad():
            theirs.weight.fill_(slope)
        x = np.array([[1.0, -1.0], [2.0, 3.0]])
        tensor = torch.from_numpy(x).requires_grad_()
        np.testing.assert_array_equal(ours(x), theirs(tensor).detach().numpy())
        theirs(tensor).sum().backward()
        np.testing.assert_array_equal(ours.backward(np.ones_like(x)), tensor.grad.numpy())


def test_large_arguments_do_not_overflow() -> None:
    x = np.array([-1e4, -800.0, -100.0, 0.0, 100.0, 800.0, 1e4])
    for name in ("Sigmoid", "Tanh", "SiLU", "ELU", "SELU", "Softmax"):
        ours, theirs = pair(Case(name, (0,) if name == "Softmax" else (), ()))
        tensor = torch.from_numpy(x).requires_grad_()
        expected = theirs(tensor)
        np.testing.assert_allclose(ours(x), expected.detach().numpy(), RTOL, 1e-300)
        expected.sum().backward()
        np.testing.assert_allclose(ours.backward(np.ones_like(x)), tensor.grad.numpy(), RTOL, 1e-40)


# --- losses ---

TARGETS = {
    "batch": ((6, 4), (6,)),
    "one": ((4,), ()),
    "sequence": ((3, 4, 5), (3, 5)),
    "image": ((2, 4, 3, 5), (2, 3, 5)),
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("probabilities", [False, True])
def test_cross_entropy(
    kind: str, weighted: bool, reduction: str, smoothing: float, probabilities: bool
) -> None:
    shape, target_shape = TARGETS[kind]
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, shape)
    if probabilities:
        target = rng.dirichlet(np.ones(4), target_shape or None)
        target = np.moveaxis(target, -1, min(1, len(shape) - 1)).copy()
    else:
        target = np.array(rng.integers(0, 4, target_shape))
        if target.ndim:
            target.reshape(-1)[1] = -1
    weight = rng.uniform(0.1, 2, 4) if weighted else None
    options = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": -1}
    theirs = torch.nn.CrossEntropyLoss(None if weight is None else torch.from_numpy(weight), **options)
    ours = nn.CrossEntropyLoss(weight, **options)
    tensor = torch.from_numpy(logits).requires_grad_()
    expected = theirs(tensor, torch.from_numpy(target))
    loss = ours(logits, target)
    assert (type(loss) is float) == (reduction != "none")
    np.testing.assert_allclose(loss, expected.detach().numpy(), RTOL, ATOL)
    grad = data(expected.shape, 4) if reduction == "none" else np.array(0.75)
    expected.backward(torch.from_numpy(grad))
    np.testing.assert_allclose(ours.backward(grad), tensor.grad.numpy(), RTOL, ATOL)


def test_cross_entropy_of_ignored_targets_only() -> None:
    logits, target = data((3, 4)), np.full(3, -100)
    tensor = torch.from_numpy(logits).requires_grad_()
    expected = torch.nn.CrossEntropyLoss()(tensor, torch.from_numpy(target))
    expected.backward()
    ours = nn.CrossEntropyLoss()
    assert np.isnan(ours(logits, target))
    assert np.isnan(expected.item())
    np.testing.assert_array_equal(ours.backward(), tensor.grad.numpy())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mse(reduction: str) -> None:
    x, target = data((3, 4, 2)), data((3, 4, 2), 7)
    tensor = torch.from_numpy(x).requires_grad_()
    expected = torch.nn.MSELoss(reduction=reduction)(tensor, torch.from_numpy(target))
    ours = nn.MSELoss(reduction=reduction)
    np.testing.assert_allclose(ours(x, target), expected.detach().numpy(), RTOL)
    grad = data(expected.shape, 4)
    expected.backward(torch.from_numpy(np.asarray(grad)))
    np.testing.assert_allclose(ours.backward(grad), tensor.grad.numpy(), RTOL)


# --- initial values ---


def test_calculate_gain() -> None:
    for name in ("linear", "conv2d", "sigmoid", "tanh", "relu", "selu", "leaky_relu"):
        assert nn.init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name), rel=1e-15)
    assert nn.init.calculate_gain("leaky_relu", 0.3) == torch.nn.init.calculate_gain("leaky_relu", 0.3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kaiming_uniform_", {"a": 0.5}),
        ("kaiming_uniform_", {"mode": "fan_out", "nonlinearity": "relu"}),
        ("kaiming_normal_", {"mode": "fan_out", "nonlinearity": "relu"}),
        ("kaiming_normal_", {}),
        ("xavier_uniform_", {"gain": 2.0}),
        ("xavier_normal_", {}),
        ("uniform_", {"a": -3.0, "b": 1.0}),
        ("normal_", {"mean": 1.0, "std": 0.1}),
        ("trunc_normal_", {"std": 0.5, "a": -0.6, "b": 1.0}),
    ],
)
def test_distributions(name: str, options: dict[str, Any]) -> None:
    """The same distribution: quantiles of two large samples agree."""
    shape = (64, 32, 5, 7)
    ours = getattr(nn.init, name)(np.empty(shape), **options, rng=0)
    generator = torch.Generator().manual_seed(0)
    theirs = getattr(torch.nn.init, name)(
        torch.empty(shape, dtype=torch.float64), **options, generator=generator
    )
    quantiles = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]
    spread = theirs.std().item()
    expected = np.quantile(theirs.numpy(), quantiles)
    inner = slice(1, -1)
    np.testing.assert_allclose(np.quantile(ours, quantiles)[inner], expected[inner], atol=0.02 * spread)
    if "uniform" in name or "trunc" in name:
        np.testing.assert_allclose([ours.min(), ours.max()], expected[[0, -1]], atol=1e-3 * spread)
    else:
        assert np.abs(ours).max() < np.abs(expected).max() * 1.3


def test_clip_gradients() -> None:
    rng = np.random.default_rng(0)
    for norm_type in (1.0, 2.0, 3.0, float("inf")):
        for max_norm in (0.5, 1e3):
            grads = [rng.normal(size=(3, 4)), rng.normal(size=5)]
            mine = [nn.Parameter(np.zeros_like(g)) for g in grads]
            others = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads]
            for parameter, other, grad in zip(mine, others, grads, strict=True):
                parameter.grad, other.grad = grad.copy(), torch.from_numpy(grad.copy())
            norm = nn.utils.clip_grad_norm_(mine, max_norm, norm_type)
            expected = torch.nn.utils.clip_grad_norm_(others, max_norm, norm_type)
            assert norm == pytest.approx(expected.item(), rel=1e-12)
            nn.utils.clip_grad_value_(mine[0], 0.1)
            torch.nn.utils.clip_grad_value_(others[0], 0.1)
            for parameter, other in zip(mine, others, strict=True):
                np.testing.assert_allclose(parameter.grad, other.grad.numpy(), RTOL)
