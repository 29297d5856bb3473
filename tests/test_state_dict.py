"""`state_dict` and `load_state_dict`: names, layouts and errors; the way to PyTorch and back."""

import copy
import importlib.util
import os
from typing import Any

import numpy as np
import pytest
from nn_support import randomise

from fastconv import nn

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None and os.environ.get("FASTCONV_REQUIRE_TORCH") != "1",
    reason="torch is not installed (FASTCONV_REQUIRE_TORCH=1 demands it)",
)


def lenet(lib: Any) -> Any:
    """The same network from `fastconv.nn` or from `torch.nn`."""
    return lib.Sequential(
        lib.Conv2d(1, 10, 5), lib.ReLU(), lib.MaxPool2d(2),
        lib.Conv2d(10, 20, 5), lib.ReLU(), lib.MaxPool2d(2),
        lib.Flatten(), lib.Linear(320, 10),
    )  # fmt: skip


def normalised(lib: Any) -> Any:
    """Batch normalisation of each kind, transposed convolution, nesting."""
    return lib.Sequential(
        lib.Sequential(lib.Conv2d(3, 4, 3, bias=False), lib.BatchNorm2d(4), lib.PReLU(4)),
        lib.ConvTranspose2d(4, 2, 2, 2, groups=2),
        lib.BatchNorm2d(2, affine=False),
        lib.BatchNorm2d(2, track_running_stats=False),
        lib.Flatten(2),
        lib.BatchNorm1d(2, momentum=None),
    )


@pytest.mark.smoke
def test_names_and_layouts() -> None:
    state = normalised(nn).state_dict()
    assert {name: (array.shape, array.dtype.name) for name, array in state.items()} == {
        "0.0.weight": ((4, 3, 3, 3), "float32"),
        "0.1.weight": ((4,), "float32"),
        "0.1.bias": ((4,), "float32"),
        "0.1.running_mean": ((4,), "float32"),
        "0.1.running_var": ((4,), "float32"),
        "0.1.num_batches_tracked": ((), "int64"),
        "0.2.weight": ((4,), "float32"),
        "1.weight": ((4, 1, 2, 2), "float32"),
        "1.bias": ((2,), "float32"),
        "2.running_mean": ((2,), "float32"),
        "2.running_var": ((2,), "float32"),
        "2.num_batches_tracked": ((), "int64"),
        "3.weight": ((2,), "float32"),
        "3.bias": ((2,), "float32"),
        "5.weight": ((2,), "float32"),
        "5.bias": ((2,), "float32"),
        "5.running_mean": ((2,), "float32"),
        "5.running_var": ((2,), "float32"),
        "5.num_batches_tracked": ((), "int64"),
    }


@pytest.mark.smoke
def test_round_trip() -> None:
    model, other = normalised(nn), normalised(nn)
    model(np.random.default_rng(0).normal(size=(2, 3, 6, 6)))  # running statistics move
    state = model.state_dict()
    assert other.load_state_dict(state) == ([], [])
    for name, array in other.state_dict().items():
        assert array is not state[name]
        np.testing.assert_array_equal(array, state[name])
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 6))
    np.testing.assert_array_equal(model.eval()(x), other.eval()(x))


def test_the_arrays_are_the_live_ones() -> None:
    model = nn.Linear(2, 2)
    model.state_dict()["weight"][...] = 5
    np.testing.assert_array_equal(model.weight.data, 5)


def test_loading_keeps_the_arrays_and_copies_the_values() -> None:
    model = nn.BatchNorm1d(2)
    weight, mean = model.weight.data, model.running_mean
    state = copy.deepcopy(model.state_dict())
    state["weight"][...] = 7
    state["running_mean"][...] = 8
    model.load_state_dict(state)
    state["weight"][...] = 0
    assert model.weight.data is weight
    assert model.running_mean is mean
    np.testing.assert_array_equal(weight, 7)
    np.testing.assert_array_equal(mean, 8)


def test_float_widths_are_converted() -> None:
    model = nn.Linear(2, 1)
    model.load_state_dict({"weight": [[1.5, 2]], "bias": np.array([3], np.int16)})
    assert model.weight.dtype == np.float32
    np.testing.assert_array_equal(model.weight.data, [[1.5, 2]])
    np.testing.assert_array_equal(model.bias.data, [3])


def test_every_error_is_named_at_once_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    before = copy.deepcopy(model.state_dict())
    state = {name: array + 1 for name, array in before.items() if name not in ("0.bias", "1.running_var")}
    state["2.weight"] = np.zeros((1, 4))
    state["extra"] = state["another.extra"] = np.zeros(1)
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    assert str(error.value) == (
        "Error(s) in loading state_dict for Sequential:\n"
        '\tMissing key(s) in state_dict: "0.bias", "1.running_var".\n'
        '\tUnexpected key(s) in state_dict: "extra", "another.extra".\n'
        "\tsize mismatch for 2.weight: the state_dict has shape (1, 4), the model has (1, 3)."
    )
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_not_strict() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    keys = model.load_state_dict({"0.weight": np.full((3, 2), 4.0), "x": np.ones(1)}, strict=False)
    assert keys.missing_keys == ["0.bias", "1.weight", "1.bias"]
    assert keys.unexpected_keys == ["x"]
    np.testing.assert_array_equal(model[0].weight.data, 4)
    with pytest.raises(RuntimeError, match=r"size mismatch for 0.weight: .* \(3,\), the model has \(3, 2\)"):
        model.load_state_dict({"0.weight": np.ones(3)}, strict=False)


def test_weights_from_before_num_batches_tracked() -> None:
    model = nn.BatchNorm2d(2)
    state = {name: array for name, array in model.state_dict().items() if name != "num_batches_tracked"}
    assert model.load_state_dict(state).missing_keys == []


def test_what_cannot_be_loaded() -> None:
    model = nn.BatchNorm1d(2)
    with pytest.raises(TypeError, match=r"load_state_dict: state_dict must be a mapping, got list"):
        model.load_state_dict([("weight", np.ones(2))])
    for value in (np.ones(2, complex), np.array(["a", "b"]), np.array([None, None])):
        with pytest.raises(TypeError, match=r"BatchNorm1d\.load_state_dict: weight has dtype"):
            model.load_state_dict({**model.state_dict(), "weight": value})
    with pytest.raises(TypeError, match="num_batches_tracked has dtype float64, expected int64"):
        model.load_state_dict({**model.state_dict(), "num_batches_tracked": np.array(1.5)})
    np.testing.assert_array_equal(model.weight.data, 1)


def test_a_shared_module_stands_under_both_names() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, shared)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert len(list(model.parameters())) == 2


@needs_torch
@pytest.mark.parametrize("build", [lenet, normalised])
def test_names_are_those_of_torch(build: Any) -> None:
    import torch

    ours, theirs = build(nn).state_dict(), build(torch.nn).state_dict()
    assert [(name, array.shape, array.dtype.name) for name, array in ours.items()] == [
        (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in theirs.items()
    ]


@needs_torch
@pytest.mark.parametrize(("build", "shape"), [(lenet, (3, 1, 28, 28)), (normalised, (3, 3, 6, 6))])
def test_round_trip_through_torch(build: Any, shape: tuple[int, ...]) -> None:
    import torch

    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours, theirs = build(nn), build(torch.nn)
    randomise(ours).to(np.float32)
    theirs.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in ours.state_dict().items()})
    with torch.no_grad():
        theirs(torch.from_numpy(x))  # moves the running statistics
        expected = theirs.eval()(torch.from_numpy(x)).numpy()
    back = build(nn).eval()
    assert back.load_state_dict(theirs.state_dict()) == ([], [])
    np.testing.assert_allclose(back(x), expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())
    ours(x)
    for name, array in ours.state_dict().items():
        np.testing.assert_allclose(array, back.state_dict()[name], rtol=1e-4, atol=1e-5, err_msg=name)
