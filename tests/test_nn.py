"""Layers and containers by themselves: gradients, modes, errors, randomness, and use in one's own loop."""

import copy
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_support import check_gradients, distinct, randomise

import fastconv as fc
from fastconv import nn

F64 = {"dtype": np.float64}

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3, 2, 1, **F64), (2, 2, 7)),
    "Conv1d-causal": (lambda: nn.Conv1d(2, 2, 3, padding="causal", **F64), (2, 2, 5)),
    "Conv2d": (lambda: nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 0), (1, 2), 2, **F64), (2, 2, 5, 6)),
    "Conv2d-pairs": (lambda: nn.Conv2d(1, 2, 3, 2, ((1, 0), (0, 2)), **F64), (1, 1, 5, 4)),
    "Conv2d-unbatched": (lambda: nn.Conv2d(2, 2, 2, bias=False, **F64), (2, 3, 4)),
    "Conv2d-circular": (lambda: nn.Conv2d(1, 2, 3, 1, 1, padding_mode="circular", **F64), (1, 1, 3, 4)),
    "Conv3d": (lambda: nn.Conv3d(1, 2, 2, 1, "same", **F64), (1, 1, 3, 2, 3)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 2, 3, 2, 1, 1, **F64), (2, 2, 4)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 4, 2, 2, groups=2, **F64), (1, 2, 2, 3)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(1, 1, 2, 2, "same", **F64), (1, 1, 2, 1, 2)),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), (2, 2, 5)),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 1, 6, 5)),
    "MaxPool3d": (lambda: nn.MaxPool3d(2, 1), (1, 1, 3, 2, 3)),
    "AvgPool1d": (lambda: nn.AvgPool1d(3, 2, ((2, 0),)), (2, 2, 6)),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1, True, False, dilation=(1, 2)), (1, 2, 6, 7)),
    "AvgPool3d": (lambda: nn.AvgPool3d(2, divisor_override=3), (1, 1, 3, 2, 4)),
    "LPPool1d": (lambda: nn.LPPool1d(3, 2, padding=1), (2, 2, 5)),
    "LPPool2d": (lambda: nn.LPPool2d(1.5, 2), (1, 2, 4, 5)),
    "LPPool3d": (lambda: nn.LPPool3d(2, 2, 1), (1, 1, 2, 3, 2)),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(3), (2, 2, 5)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((2, None)), (1, 2, 5, 3)),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(1), (2, 2, 2, 2, 2)),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(3), (2, 2, 5)),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), (1, 2, 5, 3)),
    "AdaptiveMaxPool3d": (lambda: nn.AdaptiveMaxPool3d((1, 2, 2)), (1, 1, 2, 3, 2)),
    "Linear": (lambda: nn.Linear(4, 3, **F64), (5, 4)),
    "Linear-unbatched": (lambda: nn.Linear(4, 3, **F64), (4,)),
    "Flatten": (lambda: nn.Flatten(), (2, 2, 3)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3, **F64), (4, 3)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(2, **F64), (2, 2, 2, 3)),
    "BatchNorm2d-eval": (lambda: nn.BatchNorm2d(2, **F64).eval(), (2, 2, 2, 3)),
    "BatchNorm3d-plain": (lambda: nn.BatchNorm3d(2, affine=False, **F64), (2, 2, 2, 1, 2)),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(4, 0.3, 0.6, 1.5), (2, 6, 3)),
    "Dropout-eval": (lambda: nn.Dropout(0.5).eval(), (3, 4)),
    "ReLU": (nn.ReLU, (3, 4)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.3), (3, 4)),
    "PReLU": (lambda: nn.PReLU(3, **F64), (2, 3, 2)),
    "ELU": (lambda: nn.ELU(0.7), (3, 4)),
    "SELU": (nn.SELU, (3, 4)),
    "Sigmoid": (nn.Sigmoid, (3, 4)),
    "Tanh": (nn.Tanh, (3, 4)),
    "SiLU": (nn.SiLU, (3, 4)),
    "Maxout": (lambda: nn.Maxout(3), (2, 6, 4)),
    "Maxout-last": (lambda: nn.Maxout(2, -1), (3, 4)),
    "Softmax": (lambda: nn.Softmax(1), (3, 4)),
    "Identity": (nn.Identity, (3, 4)),
    "Sequential": (
        lambda: nn.Sequential(nn.Conv1d(1, 2, 2, **F64), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3, **F64)),
        (2, 1, 5),
    ),
    "Residual": (lambda: nn.Residual(nn.Sequential(nn.Linear(4, 4, **F64), nn.Tanh())), (3, 4)),
    "Residual-shortcut": (lambda: nn.Residual(nn.Linear(4, 2, **F64), nn.Linear(4, 2, **F64)), (3, 4)),
    "Concat": (
        lambda: nn.Concat(nn.Conv1d(2, 1, 1, **F64), nn.Identity(), nn.Conv1d(2, 3, 3, 1, 1, **F64)),
        (2, 2, 4),
    ),
}  # fmt: skip

KEEPERS = [name for name in LAYERS if not name.startswith(("Identity", "Residual", "Sequential"))]

# --- gradients ---


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name: str) -> None:
    make, shape = LAYERS[name]
    check_gradients(randomise(make()), distinct(shape))


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "MaxPool2d", "BatchNorm2d", "Sequential"])
def test_gradients_of_the_usual_layers(name: str) -> None:
    test_gradients(name)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_add_up(name: str) -> None:
    make, shape = LAYERS[name]
    layer, x = randomise(make()), distinct(shape)
    grad = distinct(layer(x).shape, 1)
    layer.backward(grad)
    once = [parameter.grad.copy() for parameter in layer.parameters()]
    layer(x)
    layer.backward(grad)
    for parameter, first in zip(layer.parameters(), once, strict=True):
        np.testing.assert_allclose(parameter.grad, 2 * first, rtol=1e-12)
    layer.zero_grad()
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_are_left_alone(name: str) -> None:
    make, shape = LAYERS[name]
    layer, x = make(), distinct(shape)
    x.flags.writeable = False
    y = layer(x)
    grad = distinct(y.shape, 1)
    grad.flags.writeable = False
    layer.backward(grad)
    np.testing.assert_array_equal(x, distinct(shape))
    np.testing.assert_array_equal(grad, distinct(y.shape, 1))


@pytest.mark.parametrize("name", LAYERS)
def test_float32_stays_float32(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make().to(np.float32)
    y = layer(distinct(shape).astype(np.float32))
    assert y.dtype == np.float32
    assert layer.backward(np.ones_like(y)).dtype == np.float32
    assert all(parameter.grad.dtype == np.float32 for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_narrow_types_stay_narrow(name: str, dtype: str) -> None:
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    make, shape = LAYERS[name]
    layer, wide = randomise(make()).to(dtype), randomise(make())
    x = distinct(shape)
    y = layer(x.astype(dtype))
    assert y.dtype == dtype
    grad_input = layer.backward(np.ones_like(y))
    assert grad_input.dtype == dtype
    assert all(parameter.grad.dtype == dtype for parameter in layer.parameters())
    unit = 2.0**-10 if dtype == "float16" else 2.0**-7
    expected = wide(x)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), expected, rtol=16 * unit, atol=16 * unit * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", LAYERS)
def test_lists_are_accepted(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make()
    expected = layer(distinct(shape))
    state = copy.deepcopy(layer)
    np.testing.assert_array_equal(state(distinct(shape).tolist()), expected)


@pytest.mark.parametrize("name", KEEPERS)
def test_backward_needs_a_forward(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make()
    kind = type(layer).__name__
    with pytest.raises(RuntimeError, match=rf"{kind}.backward\(\) needs a forward\(\) before it"):
        layer.backward(np.ones(1))
    grad = np.ones_like(layer(distinct(shape)))
    layer.backward(grad)
    with pytest.raises(RuntimeError, match="each forward serves one backward"):
        layer.backward(grad)
    with nn.no_grad():
        layer(distinct(shape))
    with pytest.raises(RuntimeError, match="no_grad"):
        layer.backward(grad)


@pytest.mark.parametrize("name", KEEPERS)
def test_wrong_gradient_shape(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make()
    y = layer(distinct(shape))
    with pytest.raises(fc.ShapeError, match="grad_output"):
        layer.backward(np.ones((*y.shape, 2)))


def test_frozen_parameters_get_no_gradient() -> None:
    for name in ("Conv2d", "ConvTranspose2d", "Linear", "BatchNorm2d", "BatchNorm2d-eval", "PReLU"):
        make, shape = LAYERS[name]
        layer, free = randomise(make()), randomise(make())
        assert layer.requires_grad_(False) is layer
        grad = np.ones_like(layer(distinct(shape)))
        free(distinct(shape))
        np.testing.assert_array_equal(layer.backward(grad), free.backward(grad))
        assert all(parameter.grad is None for parameter in layer.parameters())
        assert all(parameter.grad is not None for parameter in free.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_input_gradient_can_be_skipped(name: str) -> None:
    make, shape = LAYERS[name]
    module, full, x = randomise(make()), randomise(make()), distinct(shape)
    module.needs_input_grad = False
    grad = distinct(module(x).shape, 1)
    full(x)
    result = module.backward(grad)
    assert result is None or not list(module.parameters())  # where there is nothing to save it may come
    full.backward(grad)
    for a, b in zip(module.parameters(), full.parameters(), strict=True):
        np.testing.assert_array_equal(a.grad, b.grad)
    assert all(m.needs_input_grad for m in module.modules() if m is not module)


def test_a_shared_first_layer_still_passes_gradients_on() -> None:
    shared, act = nn.Linear(3, 3, **F64), nn.Tanh()
    model, x = nn.Sequential(nn.Sequential(shared), act, shared, act), distinct((2, 3))
    model.backward(np.ones_like(model(x)))
    expected = shared.weight.grad.copy()
    model.zero_grad()
    model.needs_input_grad = False
    model(x)
    assert model.backward(np.ones((2, 3))) is None
    np.testing.assert_array_equal(shared.weight.grad, expected)


def test_backward_ends_at_the_first_trained_layer() -> None:
    """Transfer learning: a frozen trunk costs no backward pass."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh())
    model[0].requires_grad_(False)
    model.needs_input_grad = False
    model(np.ones((2, 3)))
    model.backward(np.ones((2, 2)))
    assert model[2].weight.grad is not None
    model[0].backward(np.ones((2, 3)))  # what it kept is still there: nobody asked for it
    model(np.ones((2, 3)))
    model[2].requires_grad_(False)
    model.zero_grad()
    assert model.backward(np.ones((2, 2))) is None
    assert all(parameter.grad is None for parameter in model.parameters())


# --- one layer several times ---


def test_a_layer_may_serve_twice_in_one_pass() -> None:
    """Weight sharing: gradients of both uses add up, each with its own activations."""
    shared = nn.Linear(3, 3, **F64)
    act = nn.Tanh()
    check_gradients(nn.Sequential(shared, act, shared, act), distinct((2, 3)))
    check_gradients(nn.Residual(nn.Sequential(shared, act), shared), distinct((2, 3)))
    check_gradients(nn.Concat(shared, nn.Sequential(shared, act, shared)), distinct((2, 3)))


def test_only_the_latest_pass_is_kept() -> None:
    layer = nn.Linear(2, 1)
    layer(np.ones((1000, 2)))
    layer(np.full((1, 2), 3.0))
    layer.backward(np.ones((1, 1)))
    np.testing.assert_array_equal(layer.weight.grad, [[3, 3]])
    with pytest.raises(RuntimeError):
        layer.backward(np.ones((1000, 1)))


def test_forward_in_no_grad_leaves_the_training_pass_alone() -> None:
    layer = nn.Linear(2, 1)
    layer(np.full((1, 2), 3.0))
    with nn.no_grad():
        assert not nn.is_grad_enabled()
        layer(np.full((5, 2), 7.0))
    assert nn.is_grad_enabled()
    layer.backward(np.ones((1, 1)))
    np.testing.assert_array_equal(layer.weight.grad, [[3, 3]])


def test_no_grad_serves_several_threads() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, rng=0), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten()
    ).eval()
    inputs = [np.random.default_rng(i).normal(size=(3, 1, 8, 8)) for i in range(4)]
    with nn.no_grad():
        expected = [model(x) for x in inputs]
    results: list[Any] = [None] * len(inputs)

    def work(i: int) -> None:
        with nn.no_grad():
            for _ in range(5):
                results[i] = model(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, want in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, want)


# --- containers ---


def test_sequential_is_a_sequence() -> None:
    a, b, c = nn.ReLU(), nn.Tanh(), nn.Linear(2, 2)
    model = nn.Sequential(a, b, c)
    assert len(model) == 3
    assert list(model) == [a, b, c]
    assert model[0] is a
    assert model[-1] is c
    assert list(model[1:]) == [b, c]
    assert list(model[::2].state_dict()) == ["2.weight", "2.bias"]
    assert list(model[::2].append(a).named_children()) == [("0", a), ("2", c), ("3", a)]
    model[1] = nn.Sigmoid()
    assert [type(m) for m in model] == [nn.ReLU, nn.Sigmoid, nn.Linear]
    named = nn.Sequential({"conv": nn.Conv1d(1, 1, 1), "act": nn.ReLU()})
    assert list(named.state_dict()) == ["conv.weight", "conv.bias"]
    with pytest.raises(IndexError, match="index 3 is out of range for 3 modules"):
        model[3]
    assert nn.Sequential()(5) == 5


def test_container_errors() -> None:
    with pytest.raises(TypeError, match=r"1 is the class ReLU, expected an instance: write ReLU\(...\)"):
        nn.Sequential(nn.Tanh(), nn.ReLU)
    with pytest.raises(TypeError, match="0 must be a Module, got function"):
        nn.Sequential(lambda x: x)
    with pytest.raises(TypeError, match="body must be a Module, got None"):
        nn.Residual(None)
    with pytest.raises(ValueError, match="without dots"):
        nn.Sequential({"a.b": nn.ReLU()})
    with pytest.raises(ValueError, match="'forward' is taken"):
        nn.Sequential({"forward": nn.ReLU()})
    with pytest.raises(ValueError, match="at least one branch"):
        nn.Concat()
    with pytest.raises(fc.ShapeError, match=r"body gives shape \(2, 1\), the input has shape \(2, 3\)"):
        nn.Residual(nn.Linear(3, 1))(np.ones((2, 3)))
    with pytest.raises(fc.ShapeError, match=r"branch '1' gives shape \(2, 3\), the first branch \(1, 2, 3\)"):
        nn.Concat(nn.Identity(), nn.Flatten(0, 1))(np.ones((1, 2, 3)))
    with pytest.raises(fc.ShapeError, match="dim=1 is out of range for an input with 1 dimensions"):
        nn.Concat(nn.Identity())(np.ones(2))


def test_concat_joins_channels_without_sharing_memory() -> None:
    model = nn.Concat(nn.Identity(), nn.Identity(), dim=0)
    x = distinct((2, 3))
    np.testing.assert_array_equal(model(x), np.concatenate([x, x]))
    grad = distinct((4, 3), 1)
    result = model.backward(grad)
    np.testing.assert_array_equal(result, grad[:2] + grad[2:])
    np.testing.assert_array_equal(grad, distinct((4, 3), 1))


# --- Module ---


class Outer(nn.Module):
    """Everything that may be registered, and what must not be."""

    def __init__(self) -> None:
        self.scale = nn.Parameter(np.ones(2))
        self.first = nn.Linear(2, 2)
        self.register_buffer("seen", np.zeros(1))
        self.register_buffer("cache", np.zeros(1), persistent=False)
        self.register_buffer("absent", None)
        self.again = self.first
        self.shift = nn.Parameter(np.zeros(2))
        self.plain = np.ones(3)

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.again(self.first(x)) * self.scale.data


def test_what_a_module_holds() -> None:
    module = Outer()
    assert [name for name, _ in module.named_parameters()] == ["scale", "shift", "first.weight", "first.bias"]
    assert [name for name, _ in module.named_parameters("m", recurse=False)] == ["m.scale", "m.shift"]
    assert [name for name, _ in module.named_buffers()] == ["seen", "cache"]
    assert [name for name, _ in module.named_modules()] == ["", "first"]
    assert [name for name, _ in module.named_children()] == ["first", "again"]
    assert list(module.state_dict()) == [
        "scale", "shift", "seen", "first.weight", "first.bias", "again.weight", "again.bias",
    ]  # fmt: skip
    assert next(iter(module.state_dict(prefix="m."))) == "m.scale"
    assert len(list(module.buffers())) == 2
    visited: list[str] = []
    assert module.apply(lambda m: visited.append(type(m).__name__)) is module
    assert visited == ["Linear", "Linear", "Outer"]


def test_train_and_eval() -> None:
    model = nn.Sequential(nn.Sequential(nn.Dropout()), nn.BatchNorm1d(2))
    assert model.training
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    assert all(module.training for module in model.modules())
    assert not model.train(False)[1].training
    with pytest.raises(TypeError, match="mode must be a bool"):
        model.train("yes")


def test_a_module_without_code() -> None:
    with pytest.raises(NotImplementedError, match=r"Outer defines no backward\(\)"):
        Outer().backward(np.ones(2))
    with pytest.raises(NotImplementedError, match=r"Module defines no forward\(\)"):
        nn.Module()(1)


def test_forward_hooks_look_on() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    seen: list[tuple[str, tuple[int, ...]]] = []
    with model[1].register_forward_hook(lambda m, inputs, y: seen.append((type(m).__name__, y.shape))):
        handle = model.register_forward_hook(lambda m, inputs, y: seen.append(("all", inputs[0].shape)))
        model(np.ones((4, 2)))
        assert seen == [("ReLU", (4, 3)), ("all", (4, 2))]
    model(np.ones((4, 2)))
    assert len(seen) == 3
    handle.remove()
    handle.remove()
    model(np.ones((4, 2)))
    assert len(seen) == 3


def test_to_another_dtype() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.backward(np.ones_like(model(np.ones((3, 2), np.float32))))
    assert model.to("float64") is model
    assert {parameter.dtype for parameter in model.parameters()} == {np.dtype(np.float64)}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {np.dtype(np.float64)}
    assert [str(buffer.dtype) for buffer in model.buffers()] == ["float64", "float64", "int64"]
    assert model.to("numpy")[0].weight.dtype == np.float64
    for target in ("int32", "cuda", np.complex64, "longdouble"):
        with pytest.raises(TypeError, match=r"Sequential.to: dtype must be one of float16, bfloat16"):
            model.to(target)


def test_to_cupy_says_why_not() -> None:
    model = nn.Linear(2, 2)
    if fc.available_backends()["cupy"] is True:
        assert type(model.to("cupy").weight.data).__module__.startswith("cupy")
        assert type(model.to("numpy").weight.data) is np.ndarray
    else:
        with pytest.raises(fc.BackendUnavailableError, match=r"backend 'cupy' is not available: .+"):
            model.to("cupy")


def test_copies_hold_no_activations() -> None:
    layer = nn.Linear(2, 2)
    layer(np.ones((3, 2)))
    twin = copy.deepcopy(layer)
    twin.weight.data += 1
    assert not np.array_equal(twin.weight.data, layer.weight.data)
    with pytest.raises(RuntimeError):
        twin.backward(np.ones((3, 2)))
    layer.backward(np.ones((3, 2)))


def test_printing() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, 2, (1, 0), bias=False), nn.Residual(nn.Sequential(nn.ReLU(), nn.Dropout(0.1)))
    )
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(2, 2), padding=(1, 0), bias=False)\n"
        "  (1): Residual(\n"
        "    (body): Sequential(\n"
        "      (0): ReLU()\n"
        "      (1): Dropout(p=0.1)\n"
        "    )\n"
        "  )\n"
        ")"
    )
    for make, _ in LAYERS.values():
        assert repr(make()).startswith(type(make()).__name__ + "(")
    assert repr(nn.CrossEntropyLoss()).startswith("CrossEntropyLoss(reduction='mean', ignore_index=-100")


# --- Parameter ---


def test_parameter() -> None:
    data = np.ones((2, 3), np.float32)
    parameter = nn.Parameter(data)
    assert parameter.data is data
    assert (parameter.shape, parameter.dtype, parameter.size, parameter.ndim) == ((2, 3), np.float32, 6, 2)
    assert parameter.grad is None
    parameter.accumulate(np.ones((2, 3)))
    parameter.accumulate(np.ones((2, 3)))
    assert parameter.grad.dtype == np.float32
    np.testing.assert_array_equal(parameter.grad, 2 * data)
    with pytest.raises(fc.ShapeError, match=r"gradient has shape \(3,\), the parameter has shape \(2, 3\)"):
        parameter.accumulate(np.ones(3))
    parameter.zero_grad()
    assert parameter.grad is None
    np.testing.assert_array_equal(np.asarray(parameter) + parameter, 2 * data)
    assert np.asarray(parameter, np.float64).dtype == np.float64
    assert np.array(parameter) is not data
    assert repr(parameter) == "Parameter(shape=(2, 3), dtype=float32)"
    frozen = nn.Parameter([1.0], requires_grad=False)
    frozen.accumulate(np.ones(1))
    assert frozen.grad is None
    assert "requires_grad=False" in repr(frozen)


@pytest.mark.parametrize("data", [[1, 2], np.ones(2, complex), ["a"], np.ma.array([1.0], mask=[True]), None])
def test_parameter_of_something_else(data: Any) -> None:
    with pytest.raises(TypeError, match="Parameter: "):
        nn.Parameter(data)


# --- constructors ---


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Conv2d(0, 1, 3), ValueError, "Conv2d: in_channels must be at least 1, got 0"),
        (lambda: nn.Conv2d(1, 2.0, 3), TypeError, "Conv2d: out_channels must be an int, got 2.0"),
        (lambda: nn.Conv2d(1, 1, (3, 3, 3)), ValueError, "Conv2d: kernel_size has 3 values"),
        (lambda: nn.Conv2d(1, 1, 0), ValueError, "Conv2d: kernel_size must be at least 1"),
        (lambda: nn.Conv2d(1, 1, 3, 0), ValueError, "Conv2d: stride must be at least 1"),
        (lambda: nn.Conv2d(1, 1, 3, padding=-1), ValueError, "Conv2d: padding must be at least 0"),
        (lambda: nn.Conv2d(1, 1, 3, padding="full"), ValueError, "Conv2d: padding must be numbers or one of"),
        (lambda: nn.Conv2d(1, 1, 3, padding=(1, 1, 2, 2)), ValueError, "Conv2d: a flat padding of 4 ints"),
        (lambda: nn.Conv2d(1, 1, 3, dilation=0), ValueError, "Conv2d: dilation must be at least 1"),
        (lambda: nn.Conv2d(4, 3, 3, groups=2), ValueError, "out_channels=3, expected a multiple of groups=2"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "in_channels=3, expected a multiple of groups=2"),
        (lambda: nn.Conv2d(1, 1, 3, padding_mode="wrap"), ValueError, "padding_mode must be one of"),
        (lambda: nn.Conv2d(1, 1, 3, rng="seed"), TypeError, "Conv2d: rng must be a numpy.random.Generator"),
        (lambda: nn.Conv2d(1, 1, 3, rng=-1), ValueError, "seed rng must not be negative"),
        (lambda: nn.Conv2d(1, 1, 3, dtype=int), TypeError, "Conv2d: dtype must be one of"),
        (lambda: nn.ConvTranspose2d(1, 1, 3, padding_mode="reflect"), ValueError, "must be 'zeros'"),
        (lambda: nn.ConvTranspose2d(1, 1, 3, 2, 1, 2), ValueError, "output_padding=.2, 2. must be smaller"),
        (
            lambda: nn.MaxPool2d(2, padding=2),
            ValueError,
            r"MaxPool2d: padding \(\(2, 2\), \(2, 2\)\) must be",
        ),
        (lambda: nn.MaxPool2d("2"), TypeError, "MaxPool2d: kernel_size must be an int"),
        (lambda: nn.AvgPool2d(2, divisor_override=0), ValueError, "divisor_override must not be 0"),
        (lambda: nn.LPPool2d(0, 2), ValueError, "LPPool2d: norm_type must be greater than 0, got 0"),
        (lambda: nn.AdaptiveAvgPool2d((1, 2, 3)), ValueError, "AdaptiveAvgPool2d: output_size has 3 values"),
        (lambda: nn.Linear(-1, 2), ValueError, "Linear: in_features must be at least 0"),
        (lambda: nn.BatchNorm2d(0), ValueError, "BatchNorm2d: num_features must be at least 1"),
        (lambda: nn.BatchNorm2d(3, momentum=np.inf), ValueError, "BatchNorm2d: momentum must be finite, got"),
        (lambda: nn.BatchNorm2d(3, eps=-1), ValueError, "BatchNorm2d: eps must be at least 0, got -1"),
        (lambda: nn.LocalResponseNorm(0), ValueError, "size must be at least 1"),
        (lambda: nn.Dropout(1.5), ValueError, "Dropout: p must be at least 0 and at most 1, got 1.5"),
        (lambda: nn.Dropout("half"), TypeError, "Dropout: p must be a number, got 'half'"),
        (lambda: nn.Dropout(float("nan")), ValueError, "Dropout: p must be"),
        (lambda: nn.ELU(None), TypeError, "ELU: alpha must be a number"),
        (lambda: nn.Maxout(0), ValueError, "Maxout: pool_size must be at least 1"),
        (lambda: nn.PReLU(0), ValueError, "PReLU: num_parameters must be at least 1"),
        (lambda: nn.MSELoss(reduction="avg"), ValueError, "reduction must be one of 'mean', 'sum', 'none'"),
        (lambda: nn.CrossEntropyLoss(label_smoothing=2), ValueError, "label_smoothing must be"),
        (lambda: nn.CrossEntropyLoss(np.ones((2, 2))), ValueError, "weight has shape .2, 2."),
        (lambda: nn.init.calculate_gain("gelu"), ValueError, "nonlinearity must be one of"),
        (lambda: nn.init.kaiming_normal_(np.ones(3)), ValueError, "need weights of at least 2 dimensions"),
        (lambda: nn.init.kaiming_normal_(np.ones((3, 3)), mode="fan"), ValueError, "mode must be one of"),
        (lambda: nn.init.trunc_normal_(np.ones(3), a=9, b=10), ValueError, "no room between a=9 and b=10"),
        (lambda: nn.utils.clip_grad_norm_([], -1), ValueError, "max_norm must be at least 0"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.Conv2d(3, 4, 3), (2, 4, 5, 5), "conv2d: weight has 3 input channels per group, input has 4"),
        (nn.Conv2d(3, 4, 3), (5, 5), "conv2d: input has 2 dimensions"),
        (nn.Linear(3, 4), (2, 5), r"Linear: input has shape \(2, 5\), expected \(..., 3\)"),
        (nn.Linear(3, 4), (), r"Linear: input has shape \(\)"),
        (nn.BatchNorm2d(3), (2, 3, 4), "BatchNorm2d: input has 3 dimensions, shape .*, expected 4"),
        (nn.BatchNorm1d(3), (3,), "BatchNorm1d: input has 1 dimensions, shape .*, expected 2 or 3"),
        (nn.BatchNorm2d(3), (2, 4, 5, 5), "BatchNorm2d: input of shape .* has 4 channels, expected 3"),
        (nn.BatchNorm1d(3), (1, 3), "expected more than 1 value per channel when training"),
        (nn.LocalResponseNorm(3), (2, 3), "LocalResponseNorm: input has 2 dimensions"),
        (nn.Maxout(2), (2, 3), "Maxout: axis 1 of shape .* has size 3, expected a multiple of 2"),
        (nn.Softmax(2), (2, 3), "Softmax: dim=2 is out of range for an input with 2 dimensions"),
        (nn.PReLU(3), (2, 4), "PReLU: input of shape .* has 4 channels, expected 3"),
        (nn.Flatten(2, 1), (2, 3, 4), "Flatten: start_dim=2 lies behind end_dim=1"),
        (nn.Flatten(3), (2, 3, 4), "Flatten: start_dim=3 is out of range"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_bad_shapes(layer: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(fc.ShapeError, match=message):
        layer(np.ones(shape))


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)])
def test_not_numbers(layer: nn.Module) -> None:
    for value in (np.ones((2, 2), complex), np.full((2, 2), "a"), np.ma.ones((2, 2)), np.full((2, 2), None)):
        with pytest.raises(TypeError, match="input"):
            layer(value)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.MaxPool1d(1)])
def test_layers_refuse_what_operations_refuse(layer: nn.Module) -> None:
    who = type(layer).__name__
    for value, error, message in (
        (np.ma.ones((2, 2)), TypeError, "input is a masked array, whose mask would be lost"),
        ([np.ma.ones(2), np.ma.ones(2)], TypeError, "input holds a masked array, whose mask would be lost"),
        (np.asmatrix(np.ones((2, 2))), TypeError, r"input is a numpy\.matrix"),
        ([[1.0, 2.0], [3.0]], fc.ShapeError, "input is not a regular array"),
        (None, TypeError, "input must be an array, got None"),
    ):
        with pytest.raises(error, match=f"^{who}: {message}"):
            layer(value)
    layer(np.ones((2, 2)))
    with pytest.raises(TypeError, match="grad_output is a masked array"):
        layer.backward(np.ma.ones((2, 2)))


@pytest.mark.parametrize(
    ("layer", "operation", "message"),
    [
        (
            lambda: nn.ConvTranspose1d(1, 1, 3, 2, output_padding=2),
            lambda: fc.conv_transpose1d(np.ones((1, 4)), np.ones((1, 1, 3)), stride=2, output_padding=2),
            "output_padding=(2,) must be smaller than stride=(2,) or dilation=(1,) on each axis",
        ),
        (
            lambda: nn.AvgPool1d(2, padding=2),
            lambda: fc.avg_pool1d(np.ones((1, 4)), 2, padding=2),
            "padding ((2, 2),) must be smaller than the dilated kernel on each side (kernel_size=(2,), dilation",
        ),
        (
            lambda: nn.AvgPool1d(2, divisor_override=0),
            lambda: fc.avg_pool1d(np.ones((1, 4)), 2, divisor_override=0),
            "divisor_override must not be 0",
        ),
        (
            lambda: nn.Conv1d(2, 3, 1, groups=2),
            lambda: fc.conv1d(np.ones((2, 4)), np.ones((3, 1, 1)), groups=2),
            ", expected a multiple of groups=2",
        ),
    ],
)
def test_layers_and_operations_say_the_same(
    layer: Callable[[], Any], operation: Callable[[], Any], message: str
) -> None:
    for call in (layer, operation):
        with pytest.raises(fc.ShapeError) as caught:
            call()
        assert message in str(caught.value)


# --- randomness ---


def test_weights_are_drawn_from_rng() -> None:
    for make in (
        lambda rng, dtype: nn.Conv2d(3, 8, 3, rng=rng, dtype=dtype),
        lambda rng, dtype: nn.ConvTranspose1d(3, 8, 3, rng=rng, dtype=dtype),
        lambda rng, dtype: nn.Linear(9, 8, rng=rng, dtype=dtype),
    ):
        one, same, other = make(7, np.float64), make(7, np.float64), make(8, np.float64)
        np.testing.assert_array_equal(one.weight.data, same.weight.data)
        np.testing.assert_array_equal(one.bias.data, same.bias.data)
        assert not np.array_equal(one.weight.data, other.weight.data)
        assert not np.array_equal(make(None, np.float64).weight.data, make(None, np.float64).weight.data)
        generator = np.random.default_rng(7)
        np.testing.assert_array_equal(make(generator, np.float64).weight.data, one.weight.data)
        assert not np.array_equal(make(generator, np.float64).weight.data, one.weight.data)
        np.testing.assert_array_equal(make(7, np.float32).weight.data, one.weight.data.astype(np.float32))
        fan_in = one.weight.data[0].size
        assert np.abs(one.weight.data).max() <= 1 / np.sqrt(fan_in)


def test_no_global_seed_is_touched() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    nn.Sequential(nn.Linear(3, 3), nn.Dropout())(np.ones((2, 3)))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_dropout() -> None:
    layer = nn.Dropout(0.3, rng=0)
    x = np.ones((200, 300), np.float32)
    y = layer(x)
    kept = y != 0
    assert y.dtype == np.float32
    assert kept.mean() == pytest.approx(0.7, abs=0.01)
    np.testing.assert_allclose(y[kept], 1 / 0.7, rtol=1e-6)
    grad = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    np.testing.assert_allclose(layer.backward(grad), grad * y, rtol=1e-6)
    assert not np.array_equal(layer(x) != 0, kept)
    assert layer.eval()(x) is x
    assert np.array_equal(nn.Dropout(1.0)(x), np.zeros_like(x))
    assert np.array_equal(nn.Dropout(0.0)(x), x)
    assert np.array_equal(nn.Dropout(0.3, rng=0)(x) != 0, kept)


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "SFC64", "PCG64DXSM"])
def test_random_state_is_saved_and_restored(kind: str) -> None:
    def model() -> nn.Sequential:
        generator = np.random.Generator(getattr(np.random, kind)(3))
        return nn.Sequential(nn.Dropout(rng=generator), nn.Sequential(nn.Dropout(rng=generator)))

    first, second, x = model(), model(), np.ones((5, 6))
    first(x)
    state = json.loads(json.dumps(first.rng_state()))
    assert list(state) == ["0", "1.0"]
    expected = [first(x) for _ in range(3)]
    second.load_rng_state(state)
    for want in expected:
        np.testing.assert_array_equal(second(x), want)


def test_random_state_of_another_model() -> None:
    state = nn.Sequential(nn.Dropout()).rng_state()
    with pytest.raises(RuntimeError, match=r"for the modules \['0'\], the model has generators in \['1'\]"):
        nn.Sequential(nn.ReLU(), nn.Dropout()).load_rng_state(state)
    other = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(RuntimeError, match="'0' has a MT19937 generator, the state is of 'PCG64'"):
        nn.Sequential(nn.Dropout(rng=other)).load_rng_state(state)


# --- batch normalisation ---


def test_batch_norm_by_definition() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (4, 3, 5, 6))
    layer = nn.BatchNorm2d(3, momentum=0.25, dtype=np.float64)
    y = layer(x)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    shape = (1, 3, 1, 1)
    np.testing.assert_allclose(y, (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + 1e-5), rtol=1e-12)
    np.testing.assert_allclose(layer.running_mean, 0.25 * mean)
    np.testing.assert_allclose(layer.running_var, 0.75 + 0.25 * x.var((0, 2, 3), ddof=1))
    assert layer.num_batches_tracked == 1
    assert layer.num_batches_tracked.dtype == np.int64
    assert layer.num_batches_tracked.shape == ()
    layer.reset_running_stats()
    np.testing.assert_array_equal(layer.running_mean, 0)
    np.testing.assert_array_equal(layer.running_var, 1)
    assert layer.num_batches_tracked == 0


def test_batch_norm_of_float32_far_from_zero() -> None:
    """Two passes: the variance does not drown in the square of the mean."""
    x = (np.random.default_rng(0).normal(0, 1, (64, 2, 16, 16)) + 3000).astype(np.float32)
    layer = nn.BatchNorm2d(2)
    y = layer(x)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean((0, 2, 3), keepdims=True)) / exact.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(y, expected, atol=2e-3)
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * exact.var((0, 2, 3), ddof=1), rtol=1e-4)


def test_batch_norm_in_float16() -> None:
    """Stored narrow, computed in float32: a sum of squares beyond 65504 is no obstacle."""
    x = np.random.default_rng(0).normal(0, 30, (8, 2, 16, 16)).astype(np.float16)
    layer = nn.BatchNorm2d(2).to(np.float16)
    y = layer(x)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.std((0, 2, 3), dtype=np.float64), 1, rtol=1e-3)
    assert layer.backward(np.ones_like(y)).dtype == np.float16


# --- other layers by definition ---


def test_maxout_ties_and_nan() -> None:
    layer = nn.Maxout(2)
    np.testing.assert_array_equal(layer(np.array([[1.0, 1.0, np.nan, 5.0]])), [[1.0, np.nan]])
    np.testing.assert_array_equal(layer.backward(np.array([[2.0, 3.0]])), [[2.0, 0, 3.0, 0]])


def test_local_response_norm_by_definition() -> None:
    x = np.random.default_rng(0).normal(size=(2, 7, 3, 4))
    y = nn.LocalResponseNorm(4, 0.5, 0.6, 1.7)(x)
    for c in range(7):
        energy = sum(x[:, i] ** 2 for i in range(max(0, c - 2), min(7, c + 2)))
        np.testing.assert_allclose(y[:, c], x[:, c] / (1.7 + 0.5 / 4 * energy) ** 0.6, rtol=1e-12)


def test_swish_is_silu() -> None:
    assert nn.Swish is nn.SiLU


def test_softmax_without_dim_follows_pytorch() -> None:
    for shape, axis in (((4,), 0), ((3, 4), 1), ((2, 3, 4), 0), ((2, 3, 4, 5), 1)):
        np.testing.assert_allclose(nn.Softmax()(distinct(shape)).sum(axis=axis), 1)
    layer = nn.Softmax()
    assert layer(np.float64(3)).shape == ()
    assert layer.backward(np.float64(2)) == 0


def test_relu_keeps_integers() -> None:
    assert nn.ReLU()(np.array([-3, 4], np.int8)).dtype == np.int8


def test_scalars_pass_through_elementwise_layers() -> None:
    for layer in (nn.ReLU(), nn.LeakyReLU(), nn.ELU(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.Dropout(0.0)):
        y = layer(np.float64(0.5))
        assert np.shape(y) == ()
        assert np.shape(layer.backward(1.0)) == ()


# --- the whole ---


@pytest.mark.smoke
def test_a_loop_of_ones_own() -> None:
    """Layers alone in a NumPy loop, plain gradient descent: the loss falls and the classes are told apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(32) % 2
    x = rng.normal(0, 0.3, (32, 1, 6, 6)).astype(np.float32)
    x[labels == 1, :, :, 2] += 1  # a vertical line, against a horizontal one
    x[labels == 0, :, 3] += 1
    conv, relu, pool = nn.Conv2d(1, 4, 3, rng=rng), nn.ReLU(), nn.MaxPool2d(2)
    flat, linear, criterion = nn.Flatten(), nn.Linear(16, 2, rng=rng), nn.CrossEntropyLoss()
    layers = [conv, relu, pool, flat, linear]
    losses = []
    for _ in range(30):
        y = x
        for layer in layers:
            y = layer(y)
        losses.append(criterion(y, labels))
        grad = criterion.backward()
        for layer in reversed(layers):
            grad = layer.backward(grad)
        assert grad.shape == x.shape
        for parameter in (*conv.parameters(), *linear.parameters()):
            parameter.data -= 0.3 * parameter.grad
            parameter.zero_grad()
    assert losses[-1] < 0.1 * losses[0]
    assert (y.argmax(1) == labels).all()


# --- shapes at random ---


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1),
    st.integers(0, 6), st.integers(0, 6), st.booleans(), st.integers(0, 100),
)  # fmt: skip
def test_random_convolutions(
    batch: int, groups: int, kernel: int, stride: int, padding: int, h: int, w: int, bias: bool, seed: int
) -> None:
    layer = nn.Conv2d(
        2 * groups, groups, kernel, stride, padding, 1, groups, bias, rng=seed, dtype=np.float64
    )
    x = np.random.default_rng(seed).normal(size=(batch, 2 * groups, h + kernel, w + kernel))
    y = layer(x)
    grad = np.random.default_rng(seed + 1).normal(size=y.shape)
    grad_input = layer.backward(grad)
    # The layer is linear in x and in the weight: both inner products equal <y - bias, grad>.
    plain = y - (layer.bias.data.reshape(-1, 1, 1) if bias else 0)
    assert np.vdot(grad_input, x) == pytest.approx(np.vdot(plain, grad), rel=1e-9, abs=1e-9)
    assert np.vdot(layer.weight.grad, layer.weight.data) == pytest.approx(
        np.vdot(plain, grad), rel=1e-9, abs=1e-9
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 100),
)
def test_random_batch_norms(space: list[int], batch: int, channels: int, seed: int) -> None:
    """Adding a constant to a channel changes nothing, so the gradients of the input sum to zero."""
    layer = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(space)](channels, dtype=np.float64)
    x = np.random.default_rng(seed).normal(size=(batch + 1, channels, *space))
    y = layer(x)
    grad = layer.backward(np.random.default_rng(seed + 1).normal(size=y.shape))
    axes = (0, *range(2, x.ndim))
    np.testing.assert_allclose(y.mean(axes), 0, atol=1e-10)
    np.testing.assert_allclose(grad.sum(axes), 0, atol=1e-8 * (1 + np.abs(grad).max()))
