"""Every optimizer and schedule against PyTorch's of the same name and arguments, step by step in float64."""

from typing import Any

import numpy as np
import pytest
from nn_support import import_torch

from fastconv import nn, optim

torch = import_torch()

STEPS = 15
RTOL = 1e-11

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.5, "maximize": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.05, "initial_accumulator_value": 0.2}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-4, "weight_decay": 0.05, "momentum": 0.9}),
    ("RMSprop", {"centered": True, "momentum": 0.5, "maximize": True}),
    ("RMSprop", {"centered": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.05, "betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "maximize": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.2, "amsgrad": True}),
]


def pair(name: str, options: dict[str, Any]) -> tuple[list[nn.Parameter], Any, list[Any], Any]:
    """Two groups of the same parameters, ours and PyTorch's, with their optimizers."""
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape) for shape in ((3, 4), (5,), ())]
    ours = [nn.Parameter(np.array(value)) for value in values]
    theirs = [torch.nn.Parameter(torch.from_numpy(np.array(value))) for value in values]
    groups = [[{"params": [a]}, {"params": [b, c], "lr": 0.003}] for a, b, c in (ours, theirs)]
    return (
        ours,
        getattr(optim, name)(groups[0], **options),
        theirs,
        getattr(torch.optim, name)(groups[1], **options),
    )


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_optimizer(name: str, options: dict[str, Any]) -> None:
    ours, optimizer, theirs, expected = pair(name, options)
    rng = np.random.default_rng(1)
    for step in range(STEPS):
        for parameter, other in zip(ours, theirs, strict=True):
            if step == 3 and parameter.ndim == 1:  # one without a gradient now and then
                parameter.grad = other.grad = None
                continue
            grad = np.asarray(rng.normal(size=parameter.shape) * 10.0 ** rng.integers(-3, 2))
            parameter.grad, other.grad = grad.copy(), torch.from_numpy(grad.copy())
        optimizer.step()
        expected.step()
        for parameter, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(parameter.data, other.detach().numpy(), RTOL, 1e-14)
    for parameter, other in zip(ours, theirs, strict=True):
        for key, value in expected.state[other].items():
            if key != "step" and value is not None:
                np.testing.assert_allclose(optimizer.state[parameter][key], value.numpy(), RTOL, err_msg=key)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "Adam", "AdamW"])
def test_defaults(name: str) -> None:
    _, optimizer, _, expected = pair(name, {})
    for key, value in optimizer.defaults.items():
        assert value == expected.defaults[key], key


SCHEDULES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("StepLR", (4,), {}),
    ("StepLR", (1, 0.7), {}),
    ("MultiStepLR", ([2, 5, 5, 9],), {"gamma": 0.5}),
    ("ExponentialLR", (0.8,), {}),
    ("LinearLR", (), {}),
    ("LinearLR", (0.01, 0.5, 7), {}),
    ("CosineAnnealingLR", (6,), {}),
    ("CosineAnnealingLR", (4, 0.0005), {}),
    ("CosineAnnealingLR", (1,), {}),
    ("LambdaLR", (lambda step: 0.95**step,), {}),
    ("LambdaLR", ([lambda step: 1 / (step + 1), lambda step: step],), {}),
    ("OneCycleLR", (0.5, 30), {}),
    ("OneCycleLR", ([0.5, 0.1],), {"epochs": 5, "steps_per_epoch": 6, "anneal_strategy": "linear"}),
    ("OneCycleLR", (0.5, 33), {"three_phase": True, "pct_start": 0.25, "div_factor": 10.0}),
    ("OneCycleLR", (0.5, 30), {"base_momentum": [0.1, 0.2], "max_momentum": 0.7, "final_div_factor": 5.0}),
    ("OneCycleLR", (0.5, 30), {"cycle_momentum": False}),
]


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize(("name", "args", "options"), SCHEDULES, ids=lambda value: str(value)[:30])
def test_schedule(name: str, args: tuple[Any, ...], options: dict[str, Any], optimizer: str) -> None:
    _, ours, _, theirs = pair(optimizer, {"lr": 0.02})
    schedule = getattr(optim, name)(ours, *args, **options)
    expected = getattr(torch.optim.lr_scheduler, name)(theirs, *args, **options)
    for _ in range(30):
        for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            for key in ("lr", "initial_lr", "momentum", "betas"):
                if key in other:
                    assert group[key] == pytest.approx(other[key], rel=1e-9, abs=1e-15), key
        assert schedule.get_last_lr() == pytest.approx(expected.get_last_lr(), rel=1e-9, abs=1e-15)
        assert schedule.last_epoch == expected.last_epoch
        schedule.step()
        expected.step()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patience": 1, "factor": 0.5},
        {"patience": 0, "cooldown": 2, "min_lr": [0.001, 0.0005]},
        {"mode": "max", "patience": 1, "threshold": 0.1},
        {"mode": "max", "patience": 1, "threshold": 0.3, "threshold_mode": "abs"},
        {"patience": 1, "threshold": 0.2, "threshold_mode": "abs", "eps": 1e-3},
    ],
    ids=str,
)
def test_plateau(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    for metrics in (rng.uniform(0, 1, 60), -rng.uniform(0, 1, 60), np.linspace(2, 1, 60), [np.nan] * 10):
        _, ours, _, theirs = pair("SGD", {"lr": 0.02})
        schedule = optim.ReduceLROnPlateau(ours, **options)
        expected = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
        for metric in metrics:
            schedule.step(metric)
            expected.step(metric)
            assert schedule.get_last_lr() == pytest.approx(expected.get_last_lr(), rel=1e-12)
            assert schedule.num_bad_epochs == expected.num_bad_epochs
            assert schedule.cooldown_counter == expected.cooldown_counter


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_training_run(name: str) -> None:
    """Layers, loss, clipping, optimizer and schedule together: ten steps give the same losses and weights."""

    def build(lib: Any) -> Any:
        return lib.Sequential(
            lib.Conv2d(1, 4, 3), lib.BatchNorm2d(4), lib.ReLU(), lib.MaxPool2d(2),
            lib.Conv2d(4, 6, 3, 1, "same"), lib.PReLU(6), lib.AvgPool2d(2), lib.Flatten(), lib.Linear(54, 5),
        )  # fmt: skip

    theirs = build(torch.nn).double()
    ours = build(nn).to(np.float64)
    ours.load_state_dict(theirs.state_dict())
    options = {"lr": 0.05, "weight_decay": 0.01}
    optimizer = getattr(optim, name)(ours.parameters(), **options)
    expected = getattr(torch.optim, name)(theirs.parameters(), **options)
    schedule = optim.CosineAnnealingLR(optimizer, 10)
    expected_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(expected, 10)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    expected_criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    rng = np.random.default_rng(0)
    for _ in range(10):
        x, labels = rng.normal(size=(8, 1, 14, 14)), rng.integers(0, 5, 8)
        loss = criterion(ours(x), labels)
        optimizer.zero_grad()
        ours.backward(criterion.backward())
        norm = optim.clip_grad_norm_(ours.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        expected_loss = expected_criterion(theirs(torch.from_numpy(x)), torch.from_numpy(labels))
        expected.zero_grad()
        expected_loss.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        expected.step()
        expected_schedule.step()
        assert loss == pytest.approx(expected_loss.item(), rel=1e-8)
        assert norm == pytest.approx(expected_norm.item(), rel=1e-7)
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[key], value.numpy(), 1e-6, 1e-8, err_msg=key)
