"""Optimizers and schedules by themselves: rules by hand, groups, state, errors."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
from fastconv import nn, optim

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, 0.1),
    "SGD-momentum": lambda p: optim.SGD(p, 0.1, 0.9, 0.2, 0.01),
    "SGD-nesterov": lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.01, nesterov=True),
    "Adagrad": lambda p: optim.Adagrad(p, 0.1, 0.02, 0.01, 0.3),
    "RMSprop": lambda p: optim.RMSprop(p, 0.01),
    "RMSprop-all": lambda p: optim.RMSprop(p, 0.01, 0.9, 1e-6, 0.01, 0.8, True),
    "Adam": lambda p: optim.Adam(p, 0.01, weight_decay=0.1),
    "Adam-amsgrad": lambda p: optim.Adam(p, 0.01, (0.8, 0.9), 1e-5, amsgrad=True, maximize=True),
    "AdamW": lambda p: optim.AdamW(p, 0.01),
}


def parameters(seed: int = 0, dtype: Any = np.float64) -> list[nn.Parameter]:
    rng = np.random.default_rng(seed)
    return [nn.Parameter(rng.normal(size=shape).astype(dtype)) for shape in ((3, 4), (5,), ())]


def set_gradients(params: list[nn.Parameter], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for parameter in params:
        parameter.grad = np.asarray(rng.normal(size=parameter.shape).astype(parameter.dtype))


def run(params: list[nn.Parameter], optimizer: optim.Optimizer, first: int, steps: int) -> None:
    for seed in range(first, first + steps):
        set_gradients(params, seed)
        optimizer.step()


def saved(state: dict[str, Any]) -> dict[str, np.ndarray]:
    """What a file would give back: arrays only, numbers as arrays without dimensions."""
    assert all(isinstance(value, np.ndarray | int | float) for value in state.values())
    return {name: np.array(value) for name, value in state.items()}


# --- rules ---


@pytest.mark.smoke
def test_sgd_by_hand() -> None:
    p = nn.Parameter(np.array([1.0, 2.0]))
    optimizer = optim.SGD([p], lr=0.1, momentum=0.5)
    p.grad = np.array([1.0, -2.0])
    optimizer.step()
    np.testing.assert_allclose(p.data, [0.9, 2.2])
    optimizer.step()  # v = 0.5 * g + g
    np.testing.assert_allclose(p.data, [0.75, 2.5])
    np.testing.assert_array_equal(p.grad, [1.0, -2.0])
    optimizer.zero_grad()
    assert p.grad is None


def test_adam_by_hand() -> None:
    """The first step of Adam is lr in the direction of the sign."""
    p = nn.Parameter(np.array([1.0, 2.0]))
    optimizer = optim.Adam([p], lr=0.1, eps=0)
    p.grad = np.array([5.0, -0.01])
    optimizer.step()
    np.testing.assert_allclose(p.data, [0.9, 2.1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_in_place_and_leave_gradients_alone(name: str) -> None:
    params = parameters()
    arrays = [parameter.data for parameter in params]
    optimizer = OPTIMIZERS[name](params)
    for seed in range(3):
        set_gradients(params, seed)
        before = [parameter.grad.copy() for parameter in params]
        values = [parameter.data.copy() for parameter in params]
        optimizer.step()
        for parameter, array, grad, value in zip(params, arrays, before, values, strict=True):
            assert parameter.data is array
            np.testing.assert_array_equal(parameter.grad, grad)
            assert (array != value).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_state_has_the_dtype_of_its_parameter(name: str, dtype: Any) -> None:
    params = parameters(dtype=dtype)
    optimizer = OPTIMIZERS[name](params)
    run(params, optimizer, 0, 2)
    for parameter in params:
        assert parameter.dtype == dtype
        for value in optimizer.state[parameter].values():
            assert isinstance(value, int) or (value.dtype == dtype and value.shape == parameter.shape)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_large_and_strided_parameters(name: str) -> None:
    """Arrays are updated piece by piece where they are contiguous: the pieces must make up the whole."""
    rng = np.random.default_rng(0)
    values, grads = rng.normal(size=(300, 301)), rng.normal(size=(4, 300, 301))
    whole, strided = nn.Parameter(values.copy()), nn.Parameter(values.copy().T)
    parts = [nn.Parameter(row.copy()) for row in values]
    optimizers = [OPTIMIZERS[name](group) for group in ([whole], [strided], parts)]
    for grad in grads:
        whole.grad, strided.grad = grad.copy(), grad.T.copy()
        for part, row in zip(parts, grad, strict=True):
            part.grad = row.copy()
        for optimizer in optimizers:
            optimizer.step()
    np.testing.assert_array_equal(whole.data, strided.data.T)
    np.testing.assert_array_equal(whole.data, np.stack([part.data for part in parts]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_quadratic_is_descended(name: str) -> None:
    p = nn.Parameter(np.array([3.0, -2.0]))
    optimizer = OPTIMIZERS[name]([p])
    sign = -1 if optimizer.param_groups[0]["maximize"] else 1
    start = float(p.data @ p.data)
    for _ in range(100):
        p.grad = sign * 2 * p.data
        optimizer.step()
    assert float(p.data @ p.data) < 0.7 * start


def test_parameters_without_gradient_and_frozen_ones_stay() -> None:
    params = parameters()
    before = [parameter.data.copy() for parameter in params]
    optimizer = optim.AdamW(params)
    set_gradients(params, 0)
    params[0].grad = None
    params[1].requires_grad = False
    optimizer.step()
    for i, (parameter, value) in enumerate(zip(params, before, strict=True)):
        assert np.array_equal(parameter.data, value) == (i < 2)
    assert list(optimizer.state) == [params[2]]


@settings(max_examples=30, deadline=None)
@given(
    st.floats(0, 1),
    st.floats(0, 0.99),
    st.floats(0, 0.5),
    st.booleans(),
    st.lists(st.floats(-10, 10), min_size=1),
)
def test_sgd_is_linear_in_the_gradient(
    lr: float, momentum: float, decay: float, nesterov: bool, grad: list[float]
) -> None:
    """From 0 without decay, doubled gradients double the way; all rules of SGD keep that."""
    ways = []
    for scale in (1.0, 2.0):
        p = nn.Parameter(np.zeros(len(grad)))
        optimizer = optim.SGD([p], lr, momentum, weight_decay=decay, nesterov=nesterov and momentum > 0)
        for _ in range(3):
            p.grad = scale * np.array(grad)
            optimizer.step()
        ways.append(p.data)
    np.testing.assert_allclose(ways[1], 2 * ways[0], rtol=1e-9, atol=1e-12)


def test_options_may_be_numpy_numbers() -> None:
    """They change no bit, so a run resumed from a file (plain numbers) equals the one it continues."""
    results = []
    for kind in (float, np.float64):
        params = parameters(dtype=np.float32)
        optimizer = optim.AdamW(params, kind(0.013), (kind(0.8), kind(0.9)), weight_decay=kind(0.1))
        run(params, optimizer, 0, 3)
        optimizer.param_groups[0]["lr"] = kind(0.007)
        run(params, optimizer, 3, 3)
        results.append([parameter.data for parameter in params])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


# --- groups ---


def test_groups_have_options_of_their_own() -> None:
    a, b, c = parameters()
    optimizer = optim.SGD([{"params": [a], "lr": 1.0}, {"params": b}], lr=0.1, momentum=0.5)
    optimizer.add_param_group({"params": [c], "momentum": 0})
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.1, 0.1]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.5, 0.5, 0]
    before = [parameter.data.copy() for parameter in (a, b, c)]
    set_gradients([a, b, c], 0)
    optimizer.step()
    for parameter, value, lr in zip((a, b, c), before, (1.0, 0.1, 0.1), strict=True):
        np.testing.assert_allclose(parameter.data, value - lr * parameter.grad)
    assert "momentum_buffer" not in optimizer.state[c]
    assert repr(optimizer).startswith("SGD (\n  group 0 of 1 parameters\n    lr: 1.0\n")


def test_a_changed_option_takes_effect() -> None:
    (p,) = parameters()[:1]
    optimizer = optim.SGD([p], 0.1)
    run([p], optimizer, 0, 2)
    optimizer.param_groups[0]["momentum"] = 0.9
    optimizer.param_groups[0]["lr"] = 1.0
    before = p.data.copy()
    set_gradients([p], 5)
    optimizer.step()
    np.testing.assert_allclose(p.data, before - p.grad)
    np.testing.assert_array_equal(optimizer.state[p]["momentum_buffer"], p.grad)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: optim.SGD([]), ValueError, "SGD: params is empty"),
        (lambda p: optim.SGD(p[0]), TypeError, "SGD: params must be an iterable of Parameter"),
        (lambda p: optim.SGD({"params": p}), TypeError, "SGD: params must be an iterable"),
        (lambda p: optim.SGD([np.ones(2)]), TypeError, "SGD: can optimize Parameter only, got ndarray"),
        (lambda p: optim.SGD([p[0], p[0]]), ValueError, "SGD: a parameter appears more than once"),
        (lambda p: optim.SGD([{"params": p}, p[0]]), TypeError, "must be a dict with the key 'params'"),
        (
            lambda p: optim.SGD([{"parameters": p}]),
            TypeError,
            "must be a dict with the key 'params', got dict",
        ),
        (lambda p: optim.SGD([{"params": p, "rate": 1}]), ValueError, "SGD: unknown option 'rate', expected"),
        (lambda p: optim.SGD(p, -1), ValueError, "SGD: lr must be at least 0, got -1"),
        (lambda p: optim.SGD(p, "fast"), TypeError, "SGD: lr must be a number, got 'fast'"),
        (lambda p: optim.SGD(p, math.nan), ValueError, "SGD: lr must be at least 0, got nan"),
        (lambda p: optim.SGD(p, momentum=-0.1), ValueError, "SGD: momentum must be at least 0"),
        (lambda p: optim.SGD(p, nesterov=True), ValueError, "nesterov needs a momentum and no dampening"),
        (lambda p: optim.Adagrad(p, eps=-1), ValueError, "Adagrad: eps must be at least 0"),
        (lambda p: optim.RMSprop(p, alpha=-1), ValueError, "RMSprop: alpha must be at least 0"),
        (lambda p: optim.Adam(p, betas=(0.9, 1.0)), ValueError, "Adam: betas must be two numbers in"),
        (lambda p: optim.AdamW(p, betas=(0.9,)), ValueError, "AdamW: betas must be two numbers"),
        (lambda p: optim.AdamW(p, weight_decay=-1), ValueError, "AdamW: weight_decay must be at least 0"),
    ],
)
def test_bad_arguments(make: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(parameters())


def test_a_gradient_of_another_shape() -> None:
    p = nn.Parameter(np.ones((2, 3)))
    p.grad = np.ones(3)
    with pytest.raises(fc.ShapeError, match=r"SGD: the gradient has shape \(3,\), the parameter has shape"):
        optim.SGD([p]).step()


# --- state ---


@pytest.mark.smoke
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_interrupted_run_continues_bit_for_bit(name: str) -> None:
    straight, first, second = parameters(), parameters(), parameters(1)
    run(straight, OPTIMIZERS[name](straight), 0, 8)
    optimizer = OPTIMIZERS[name](first)
    run(first, optimizer, 0, 4)
    state = saved(optimizer.state_dict())
    for parameter, other in zip(second, first, strict=True):
        parameter.data[...] = other.data
    resumed = OPTIMIZERS[name](second)
    resumed.load_state_dict(state)
    run(second, resumed, 4, 4)
    for parameter, other in zip(second, straight, strict=True):
        np.testing.assert_array_equal(parameter.data, other.data)


def test_the_state_is_flat_and_named() -> None:
    params = parameters()
    optimizer = optim.Adam([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}])
    set_gradients(params[:2], 0)
    optimizer.step()
    state = optimizer.state_dict()
    assert sorted(state) == sorted(
        [f"groups.{g}.{option}" for g in (0, 1) for option in ("params", *optimizer.defaults)]
        + [f"state.{i}.{name}" for i in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")]
    )
    np.testing.assert_array_equal(state["groups.1.params"], [1, 2])
    np.testing.assert_array_equal(state["groups.0.betas"], [0.9, 0.999])
    assert state["groups.0.lr"] == 0.5
    assert state["state.1.step"] == 1
    assert state["state.0.exp_avg"] is optimizer.state[params[0]]["exp_avg"]


def test_options_are_restored_with_their_types() -> None:
    params = parameters()
    optimizer = optim.Adam(params, 0.25, (0.5, 0.75), amsgrad=True)
    other = optim.Adam(parameters())
    other.load_state_dict(saved(optimizer.state_dict()))
    mine = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    restored = {name: value for name, value in other.param_groups[0].items() if name != "params"}
    assert restored == mine
    assert {name: type(value) for name, value in restored.items()} == {
        name: type(value) for name, value in mine.items()
    }


def test_loading_copies() -> None:
    params, others = parameters(), parameters()
    optimizer, other = optim.SGD(params, momentum=0.9), optim.SGD(others, momentum=0.9)
    run(params, optimizer, 0, 1)
    other.load_state_dict(optimizer.state_dict())
    run(params, optimizer, 1, 1)
    run(others, other, 1, 1)
    buffers = [optimizer.state[params[0]], other.state[others[0]]]
    np.testing.assert_array_equal(buffers[0]["momentum_buffer"], buffers[1]["momentum_buffer"])
    assert buffers[0]["momentum_buffer"] is not buffers[1]["momentum_buffer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups.0.params": np.arange(2)}, "group 0 has 2 parameters in the state, 3 here"),
        ({"groups.1.lr": 0.1}, "'groups.1.lr', but there are 1 parameter groups here"),
        ({"state.3.step": 1}, "'state.3.step', but there are 3 parameters here"),
        ({"state.0.exp_avg": np.ones(3)}, "parameter 0: unknown name 'exp_avg'"),
        ({"state.0.momentum_buffer": np.ones(3)}, r"parameter 0: momentum_buffer has shape \(3,\)"),
        ({"groups.0.betas": np.ones(2)}, "group 0: unknown option 'betas'"),
        ({"groups.0.lr": -1.0}, "lr must be at least 0"),
        ({"weights": np.ones(2)}, "unknown key 'weights'"),
        ({"groups.x.lr": 1.0}, "unknown key 'groups.x.lr'"),
    ],
)
def test_states_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    params = parameters()
    optimizer = optim.SGD(params, 0.1, 0.9)
    run(params, optimizer, 0, 2)
    before = {name: np.array(value) for name, value in optimizer.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict({**optimizer.state_dict(), **change})
    after = optimizer.state_dict()
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_a_state_without_parameters() -> None:
    with pytest.raises(ValueError, match="group 0 has 0 parameters in the state, 3 here"):
        optim.SGD(parameters()).load_state_dict({})


# --- schedules ---

SCHEDULES: dict[str, Callable[[optim.Optimizer], optim.LRScheduler]] = {
    "StepLR": lambda o: optim.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: optim.MultiStepLR(o, [2, 5, 5], 0.5),
    "ExponentialLR": lambda o: optim.ExponentialLR(o, 0.9),
    "LinearLR": lambda o: optim.LinearLR(o, 0.1, 0.9, 4),
    "CosineAnnealingLR": lambda o: optim.CosineAnnealingLR(o, 5, 0.01),
    "LambdaLR": lambda o: optim.LambdaLR(o, lambda step: 1 / (1 + step)),
    "OneCycleLR": lambda o: optim.OneCycleLR(o, 1.0, 12),
    "ReduceLROnPlateau": lambda o: optim.ReduceLROnPlateau(o, factor=0.5, patience=1, cooldown=1),
}
METRICS = [5.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0]


def advance(schedule: optim.LRScheduler, first: int, steps: int) -> list[list[float]]:
    rates = []
    for metric in METRICS[first : first + steps]:
        if isinstance(schedule, optim.ReduceLROnPlateau):
            schedule.step(metric)
        else:
            schedule.step()
        rates.append(schedule.get_last_lr())
    return rates


def two_groups() -> optim.SGD:
    a, b, c = parameters()
    return optim.SGD([{"params": [a]}, {"params": [b, c], "lr": 0.5}], 0.1, 0.9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_interrupted_schedule_continues(name: str) -> None:
    straight = advance(SCHEDULES[name](two_groups()), 0, 11)
    optimizer = two_groups()
    schedule = SCHEDULES[name](optimizer)
    assert advance(schedule, 0, 4) == straight[:4]
    resumed_optimizer = two_groups()
    resumed = SCHEDULES[name](resumed_optimizer)
    resumed_optimizer.load_state_dict(saved(optimizer.state_dict()))
    resumed.load_state_dict(saved(schedule.state_dict()))
    assert resumed.get_last_lr() == straight[3]
    assert resumed.last_epoch == 4
    assert advance(resumed, 4, 7) == straight[4:]
    assert [group["lr"] for group in resumed_optimizer.param_groups] == straight[-1]
    assert len({tuple(rates) for rates in straight}) > 2


def test_rates_by_hand() -> None:
    def rates(name: str, steps: int) -> list[float]:
        return [pair[0] for pair in advance(SCHEDULES[name](two_groups()), 0, steps)]

    assert rates("StepLR", 6) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.05, 0.025])
    assert rates("MultiStepLR", 6) == pytest.approx([0.1, 0.05, 0.05, 0.05, 0.0125, 0.0125])
    assert rates("ExponentialLR", 2) == pytest.approx([0.09, 0.081])
    assert rates("LinearLR", 6) == pytest.approx([0.03, 0.05, 0.07, 0.09, 0.09, 0.09])
    assert rates("LambdaLR", 3) == pytest.approx([0.1 / 2, 0.1 / 3, 0.1 / 4])
    assert rates("CosineAnnealingLR", 5)[-1] == pytest.approx(0.01)
    assert max(rates("OneCycleLR", 11)) == pytest.approx(1, rel=0.02)
    # 4.0 is bad twice at step 4; step 5 cools down; bad twice again at step 7
    assert rates("ReduceLROnPlateau", 8) == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.025] * 2)


def test_one_cycle_at_the_edges() -> None:
    for total, start in ((1, 0.3), (2, 0.5), (10, 0.1), (5, 0.0), (5, 1.0)):
        schedule = optim.OneCycleLR(two_groups(), 1.0, total, pct_start=start)
        for _ in range(total):
            schedule.step()
            assert all(math.isfinite(lr) for lr in schedule.get_last_lr())
        with pytest.raises(ValueError, match=f"step {total + 1} is beyond total_steps={total}"):
            schedule.step()


def test_schedules_combine() -> None:
    optimizer = two_groups()
    first, second = optim.LinearLR(optimizer, 0.5, 1.0, 2), optim.ExponentialLR(optimizer, 0.9)
    rates = []
    for _ in range(3):
        first.step()
        second.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert first.base_lrs == second.base_lrs == [0.1, 0.5]
    assert rates == pytest.approx([0.075 * 0.9, 0.1 * 0.81, 0.1 * 0.729])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda o: optim.StepLR("adam", 1), TypeError, "StepLR: optimizer must be an Optimizer, got str"),
        (lambda o: optim.StepLR(o, 0), ValueError, "StepLR: step_size must be at least 1"),
        (lambda o: optim.MultiStepLR(o, [1.5]), TypeError, "MultiStepLR: milestones must be an int"),
        (lambda o: optim.ExponentialLR(o, "x"), TypeError, "ExponentialLR: gamma must be a number"),
        (lambda o: optim.LinearLR(o, 0.0), ValueError, "start_factor must be greater than 0 and at most 1"),
        (lambda o: optim.CosineAnnealingLR(o, 0), ValueError, "T_max must be at least 1"),
        (lambda o: optim.LambdaLR(o, [abs]), ValueError, "LambdaLR: expected one function or 2, got 1"),
        (
            lambda o: optim.OneCycleLR(o, 1.0),
            ValueError,
            "expected total_steps, or epochs and steps_per_epoch",
        ),
        (lambda o: optim.OneCycleLR(o, [1.0], 5), ValueError, "max_lr has 1 values, expected one or 2"),
        (lambda o: optim.OneCycleLR(o, 1.0, 5, anneal_strategy="x"), ValueError, "anneal_strategy must be"),
        (lambda o: optim.ReduceLROnPlateau(o, "least"), ValueError, "mode must be one of 'min', 'max'"),
        (lambda o: optim.ReduceLROnPlateau(o, factor=1.0), ValueError, "factor must be less than 1"),
    ],
)
def test_bad_schedules(make: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(two_groups())


def test_one_cycle_needs_a_momentum() -> None:
    with pytest.raises(ValueError, match="cycle_momentum needs an optimizer with momentum or betas"):
        optim.OneCycleLR(optim.Adagrad(parameters()), 1.0, 5)


def test_schedule_states_that_do_not_fit() -> None:
    schedule = SCHEDULES["StepLR"](two_groups())
    with pytest.raises(ValueError, match=r"StepLR\.load_state_dict: expected last_epoch, base_lrs, last_lrs"):
        schedule.load_state_dict({"last_epoch": 3})
    other = optim.StepLR(optim.SGD(parameters()), 3)
    with pytest.raises(ValueError, match="expected one number per parameter group"):
        schedule.load_state_dict(other.state_dict())
