"""`nn.summary`: shapes, counts and the receptive field, which is also measured."""

from typing import Any

import numpy as np
import pytest

from fastconv import nn


class Block(nn.Module):
    """A graph written by hand: branches, a sum, a NumPy concatenation, a pooled mean."""

    def __init__(self) -> None:
        self.wide = nn.Conv1d(1, 2, 5, padding=2, rng=0)
        self.narrow = nn.Conv1d(1, 2, 1, rng=1)
        self.pool = nn.AvgPool1d(2)
        self.late = nn.Conv1d(4, 1, 3, padding=1, rng=2)

    def forward(self, x: np.ndarray) -> np.ndarray:
        wide, narrow = self.wide(x), self.narrow(x)
        return self.late(self.pool(np.concatenate([wide + narrow, 2 * narrow], axis=1)))


NETS: dict[str, Any] = {
    "conv": lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Conv1d(2, 1, 3, dilation=2)),
    "strided": lambda: nn.Sequential(nn.Conv1d(1, 2, 4, 2), nn.AvgPool1d(3, 2), nn.Conv1d(2, 1, 2)),
    "transposed": lambda: nn.Sequential(
        nn.AvgPool1d(2), nn.ConvTranspose1d(1, 1, 3, 1, 1), nn.Conv1d(1, 1, 2, padding="same")
    ),
    "residual": lambda: nn.Sequential(
        nn.AvgPool1d(2), nn.Residual(nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Tanh()))
    ),
    "concat": lambda: nn.Sequential(
        nn.Concat(nn.Identity(), nn.Conv1d(1, 1, 5, padding=2)), nn.Conv1d(2, 1, 3)
    ),
    "by hand": Block,
    "adaptive": lambda: nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.AdaptiveAvgPool1d(10)),
}


@pytest.mark.parametrize("name", NETS)
def test_receptive_field_is_the_measured_one(name: str) -> None:
    """The inputs whose change moves an output in the middle span exactly the field."""
    model = NETS[name]().to(np.float64)
    (*_, last) = nn.summary(model, (1, 1, 40), dtype=np.float64).rows
    x = np.random.default_rng(0).normal(size=(1, 1, 40))
    base = model(x)
    middle = base.shape[2] // 2
    moved = []
    for i in range(40):
        changed = x.copy()
        changed[0, 0, i] += 1
        if np.abs(model(changed) - base)[0, :, middle].max() > 1e-9:
            moved.append(i)
    assert last.receptive_field == (moved[-1] - moved[0] + 1,)


def test_lenet() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(320, 10),
    )  # fmt: skip
    model[0].requires_grad_(False)
    model.train()
    result = nn.summary(model, (1, 1, 28, 28))
    assert model.training
    assert [row.output_shape for row in result.rows] == [
        (1, 10, 24, 24), (1, 10, 24, 24), (1, 10, 12, 12), (1, 20, 8, 8), (1, 20, 8, 8), (1, 20, 4, 4),
        (1, 320), (1, 10),
    ]  # fmt: skip
    assert [row.receptive_field for row in result.rows] == [
        (5, 5), (5, 5), (6, 6), (14, 14), (14, 14), (16, 16), (28, 28), (28, 28),
    ]  # fmt: skip
    assert [row.parameters for row in result.rows] == [260, 0, 0, 5020, 0, 0, 0, 3210]
    macs = [24 * 24 * 10 * 25, 0, 0, 8 * 8 * 20 * 250, 0, 0, 0, 3200]
    assert [row.macs for row in result.rows] == macs
    assert result.macs == sum(macs)
    assert (result.parameters, result.trainable_parameters) == (8490, 8230)
    assert result.parameter_bytes == 8490 * 4
    assert result.activation_bytes == sum(4 * int(np.prod(row.output_shape)) for row in result.rows)
    text = str(result)
    assert "8,490, of which 260 frozen" in text
    assert "3      Conv2d     1 x 20 x 8 x 8         5,020  320,000  14 x 14" in text
    with pytest.raises(RuntimeError):
        model.backward(np.ones((1, 10)))


def test_vgg16_reaches_212() -> None:
    """The published receptive field behind the last pooling of VGG-16."""
    layers: list[nn.Module] = []
    for convs in (2, 2, 3, 3, 3):
        layers += [nn.Conv2d(1, 1, 3, padding=1) for _ in range(convs)]
        layers.append(nn.MaxPool2d(2))
    assert nn.summary(nn.Sequential(*layers), (1, 1, 64, 64)).rows[-1].receptive_field == (212, 212)


def test_shared_layers_and_shapes_with_other_ends() -> None:
    shared = nn.Linear(4, 4)
    result = nn.summary(nn.Sequential(shared, nn.Softmax(), shared), (3, 4))
    assert [row.name for row in result.rows] == ["0", "1", "0"]
    assert [row.parameters for row in result.rows] == [20, 0, 0]
    assert result.parameters == 20
    assert [row.receptive_field for row in result.rows] == [(), (), ()]
    mixed = nn.summary(nn.Sequential(nn.Linear(6, 2), nn.Softmax(2)), (1, 1, 5, 6))
    assert [row.receptive_field for row in mixed.rows] == [(1, 6), (5, 6)]


def test_pooling_with_indices() -> None:
    result = nn.summary(nn.Sequential(nn.MaxPool1d(3, return_indices=True)), (1, 1, 9))
    assert result.rows[0].output_shape == (1, 1, 3)
    assert result.rows[0].receptive_field == (3,)


class MeanOverSpace(nn.Module):
    def forward(self, x: np.ndarray) -> np.ndarray:
        return x.mean(axis=(2, 3))


class Opaque(nn.Module):
    def forward(self, x: np.ndarray) -> np.ndarray:
        return np.array(x.tolist())


def test_layers_of_ones_own() -> None:
    """What NumPy computes is followed; what hides from it is unknown from there on."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), MeanOverSpace(), nn.Linear(2, 2))
    assert [row.receptive_field for row in nn.summary(net, (1, 1, 8, 9)).rows][-1] == (8, 9)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), Opaque(), nn.Conv2d(2, 2, 3).to(np.float64))
    result = nn.summary(net, (1, 1, 8, 9))
    assert [row.receptive_field for row in result.rows] == [(3, 3), None, None]
    assert str(result).splitlines()[3].endswith("?")
    assert type(net(np.ones((1, 1, 8, 9)))) is np.ndarray
    assert "forward" not in vars(net[0])
