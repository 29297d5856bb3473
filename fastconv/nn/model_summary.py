"""`summary`: what a model does to an input of a given shape, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import DTypeLike

from fastconv.nn.activation import Softmax
from fastconv.nn.conv import ConvNd, ConvTransposeNd
from fastconv.nn.linear import Flatten, Linear
from fastconv.nn.module import Module, no_grad
from fastconv.nn.pooling import AdaptiveAvgPoolNd, AdaptiveMaxPoolNd, AvgPoolNd, LPPoolNd, MaxPoolNd


class Reach(NamedTuple):
    """Along one axis: how many input elements an element depends on, and how far neighbours are apart."""

    size: int
    step: Fraction


class Field(NamedTuple):
    """What an array's elements depend on: along each spatial axis of the model's input.

    ``space`` holds the array's own spatial sizes; it is empty where it has no spatial axes any more.
    """

    axes: tuple[Reach, ...]
    space: tuple[int, ...]

    def of_everything(self) -> Field:
        """What all elements together depend on."""
        sizes = self.space or (1,) * len(self.axes)
        return Field(
            tuple(Reach(_wider(r, n - 1), r.step) for r, n in zip(self.axes, sizes, strict=True)), ()
        )


class Row(NamedTuple):
    """One call of a layer.

    Attributes
    ----------
    name, kind : str
        Dotted name and class.
    input_shape, output_shape : tuple of int
        Of the first input and output.
    parameters : int
        Elements of the layer's own parameters; 0 at its second call.
    macs : int
        Multiplications of inputs by weights.
    output_bytes : int
    receptive_field : tuple of int, or None
        How many elements of the model's input, along each spatial axis, an element of the output depends on,
        input borders aside; ``None`` behind a layer of a kind that is not known here.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    output_bytes: int
    receptive_field: tuple[int, ...] | None


class Summary(NamedTuple):
    """What `summary` returns; ``print`` shows it as a table.

    Attributes
    ----------
    rows : list of Row
        Every call of a layer, in order.
    parameters, trainable_parameters : int
        Elements of all parameters of the model, each counted once.
    parameter_bytes : int
        Their memory, buffers included.
    macs : int
        Multiplications of inputs by weights in one pass.
    activation_bytes : int
        All outputs together, which a training step keeps for the backward pass.
    """

    rows: list[Row]
    parameters: int
    trainable_parameters: int
    parameter_bytes: int
    macs: int
    activation_bytes: int

    def __str__(self) -> str:
        head = ("layer", "kind", "output", "parameters", "MACs", "receptive field")
        cells = [
            (
                row.name or "(model)",
                row.kind,
                _by(row.output_shape),
                f"{row.parameters:,}",
                f"{row.macs:,}",
                "?" if row.receptive_field is None else _by(row.receptive_field),
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        lines = [
            "  ".join(
                text.rjust(width) if i in (3, 4) else text.ljust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in (head, tuple("-" * width for width in widths), *cells)
        ]
        frozen = self.parameters - self.trainable_parameters
        return "\n".join(
            [
                *lines,
                "",
                f"parameters   {self.parameters:,}" + (f", of which {frozen:,} frozen" if frozen else ""),
                f"MACs         {self.macs:,}",
                (
                    f"memory       {_size(self.parameter_bytes)} parameters and buffers, "
                    f"{_size(self.activation_bytes)} activations"
                ),
            ]
        )


def summary(model: Module, input_shape: Sequence[int], *, dtype: DTypeLike = np.float32) -> Summary:
    """Shapes, parameters, multiplications, memory and receptive field of every layer.

    Runs the model once on zeros, in evaluation mode; afterwards it is as before. The receptive field is
    followed through any graph of the layers of `fastconv.nn`, NumPy functions and arithmetic.

    Parameters
    ----------
    model : Module
    input_shape : sequence of int
        With the batch axis, as the model takes it: ``(1, 3, 224, 224)``. From the third on, axes are spatial.
    dtype : dtype
        Of the input.

    Returns
    -------
    Summary

    Examples
    --------
    >>> from fastconv import nn
    >>> layers = nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1440, 10)
    >>> print(nn.summary(nn.Sequential(*layers), (1, 1, 28, 28)))
    layer  kind       output            parameters     MACs  receptive field
    -----  ---------  ----------------  ----------  -------  ---------------
    0      Conv2d     1 x 10 x 24 x 24         260  144,000  5 x 5
    1      MaxPool2d  1 x 10 x 12 x 12           0        0  6 x 6
    2      Flatten    1 x 1440                   0        0  28 x 28
    3      Linear     1 x 10                14,410   14,400  28 x 28
    <BLANKLINE>
    parameters   14,670
    MACs         158,400
    memory       57.3 KiB parameters and buffers, 33.8 KiB activations
    """
    shape = tuple(input_shape)
    start = Field((Reach(1, Fraction(1)),) * len(shape[2:]), shape[2:])
    rows: list[Row] = []
    counted: set[int] = set()

    def record(name: str, layer: Module, x: Any, y: Any) -> Field | None:
        field = _through(layer, x, y)
        own = [parameter for parameter in layer.parameters() if id(parameter) not in counted]
        counted.update(map(id, own))
        rows.append(
            Row(
                name,
                type(layer).__name__,
                np.shape(x),
                np.shape(y),
                sum(parameter.size for parameter in own),
                _macs(layer, x, y),
                y.nbytes,
                None if field is None else tuple(reach.size for reach in field.axes),
            )
        )
        return field

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with no_grad(), _traced(model, record):
            model(_Followed.of(np.zeros(shape, dtype), start))
    finally:
        for module, mode in modes.items():
            module.training = mode
    parameters = list(model.parameters())
    return Summary(
        rows,
        sum(parameter.size for parameter in parameters),
        sum(parameter.size for parameter in parameters if parameter.requires_grad),
        sum(parameter.data.nbytes for parameter in parameters) + sum(b.nbytes for b in model.buffers()),
        sum(row.macs for row in rows),
        sum(row.output_bytes for row in rows),
    )


class _Followed(np.ndarray[Any, Any]):
    """An array that knows its receptive field and hands it on: in views, arithmetic and NumPy functions."""

    field: Field | None = None

    @classmethod
    def of(cls, array: Any, field: Field | None) -> _Followed:
        followed = np.asarray(array).view(cls)
        followed.field = field
        return followed

    def __array_finalize__(self, source: Any) -> None:
        self.field = getattr(source, "field", None)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        field = _joined(inputs)
        plain = {name: _plain(value) for name, value in kwargs.items()}
        return _follow(getattr(ufunc, method)(*_plain(inputs), **plain), field)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        field = _joined((args, tuple(kwargs.values())))
        plain = {name: _plain(value) for name, value in kwargs.items()}
        return _follow(function(*_plain(args), **plain), field)


def _plain(value: Any) -> Any:
    if isinstance(value, _Followed):
        return value.view(np.ndarray)
    if type(value) in (tuple, list):
        return type(value)(_plain(item) for item in value)
    return value


def _follow(value: Any, field: Field | None) -> Any:
    if isinstance(value, np.ndarray):
        return _Followed.of(value, field)
    if type(value) in (tuple, list):
        return type(value)(_follow(item, field) for item in value)
    return value


def _joined(values: Sequence[Any]) -> Field | None:
    """The field of what is computed from ``values``, taken as centred on each other; unknown if one's is."""
    fields: list[Field | None] = []

    def collect(value: Any) -> None:
        if isinstance(value, _Followed):
            fields.append(value.field)
        elif type(value) in (tuple, list):
            for item in value:
                collect(item)

    collect(tuple(values))
    if not fields or None in fields:
        return None
    known = cast("list[Field]", fields)
    axes = tuple(
        Reach(max(reach.size for reach in axis), max(reach.step for reach in axis))
        for axis in zip(*(field.axes for field in known), strict=True)
    )
    return Field(axes, known[0].space)


@contextmanager
def _traced(model: Module, record: Callable[[str, Module, Any, Any], Field | None]) -> Iterator[None]:
    """Has ``record`` called with input and output of every layer; its result is the field of the output."""

    def wrapped(name: str, layer: Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Any, *args: Any, **kwargs: Any) -> Any:
            ours = type(layer).__module__.startswith("fastconv.nn.")
            y = forward(_plain(x) if ours else x, *args, **kwargs)
            field = record(name, layer, x, y[0] if isinstance(y, tuple) else y)
            return _follow(y, field)

        return call

    layers = [(name, m) for name, m in model.named_modules() if next(m.children(), None) is None]
    for name, layer in layers:
        vars(layer)["forward"] = wrapped(name, layer, layer.forward)
    try:
        yield
    finally:
        for _, layer in layers:
            del vars(layer)["forward"]


# --- what each kind of layer does ---


def _macs(layer: Module, x: Any, y: Any) -> int:
    if isinstance(layer, ConvNd):
        return int(y.size * layer.weight.data[0].size)
    if isinstance(layer, ConvTransposeNd):
        return int(np.size(x) * layer.weight.data[0].size)
    if isinstance(layer, Linear):
        return int(y.size) * layer.in_features
    return 0


def _through(layer: Module, x: Any, y: Any) -> Field | None:
    """The field of ``y``, the output of ``layer`` for ``x``."""
    field: Field | None = getattr(x, "field", None)
    if field is None:
        return None
    axes = len(field.axes)
    if field.space and np.shape(x)[-axes:] != field.space:  # reshaped or reduced on the way
        field = field.of_everything()
    if not field.space:
        return field
    if isinstance(layer, ConvNd | MaxPoolNd | AvgPoolNd | LPPoolNd):
        reaches = [
            Reach(_wider(reach, d * (k - 1)), reach.step * s)
            for reach, k, s, d in zip(
                field.axes, layer.kernel_size, layer.stride, layer.dilation, strict=True
            )
        ]
    elif isinstance(layer, ConvTransposeNd):
        reaches = [
            Reach(_wider(reach, -(-(d * (k - 1) + 1) // s) - 1), reach.step / s)
            for reach, k, s, d in zip(
                field.axes, layer.kernel_size, layer.stride, layer.dilation, strict=True
            )
        ]
    elif isinstance(layer, AdaptiveAvgPoolNd | AdaptiveMaxPoolNd):
        reaches = [
            Reach(_wider(reach, _widest_window(size, out) - 1), reach.step * Fraction(size, out))
            for reach, size, out in zip(field.axes, field.space, y.shape[-axes:], strict=True)
        ]
    elif isinstance(layer, Flatten):
        return field.of_everything()
    elif isinstance(layer, Linear | Softmax):
        dim = -1 if isinstance(layer, Linear) else layer.axis(np.ndim(x)) - np.ndim(x)
        reaches = [
            Reach(_wider(reach, size - 1), reach.step) if i == axes + dim else reach
            for i, (reach, size) in enumerate(zip(field.axes, field.space, strict=True))
        ]
    elif type(layer).__module__.startswith("fastconv.nn."):  # all others work on each position alone
        reaches = list(field.axes)
    else:
        return getattr(y, "field", None)
    return Field(tuple(reaches), y.shape[-axes:])


def _windows(field: Field, layer: Any) -> Iterator[tuple[Reach, int, int, int]]:
    """Reach, kernel, stride and dilation of each axis."""
    return zip(field.axes, layer.kernel_size, layer.stride, layer.dilation, strict=True)


def _wider(reach: Reach, neighbours: int) -> int:
    """The size of a reach and those of its next ``neighbours`` together."""
    return reach.size + math.ceil(neighbours * reach.step)


def _widest_window(size: int, out: int) -> int:
    return max(-(-(i + 1) * size // out) - i * size // out for i in range(out))


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes)) or "-"


def _size(count: int) -> str:
    """Bytes in the largest binary unit that leaves a whole number before the point."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
