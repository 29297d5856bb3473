"""Convolutions whose weights stay: what can be done before the inputs come is done once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastconv.geometry import IntOrInts, Padding, Shape, check_shape, show, split_shape, whole_shape
from fastconv.ops._arrays import (
    Array,
    ArrayLike,
    Call,
    DType,
    Precision,
    begin,
    check_out,
    conv_precision,
    is_plain,
    plain_array,
)
from fastconv.ops._calls import Run, Settled, operation, per_dimension, quiet, settled
from fastconv.ops.conv import (
    Layer,
    check_activation,
    conv_layer,
    conv_transpose_layer,
    fill_with_bias,
    of_padded_input,
    settled_kernel,
)


class Plan:
    """A convolution with weights that stay, for inputs of one shape; `fastconv.plan_conv2d` and its like make it.

    ``plan(input)`` returns what the operation returns for this input and the weights as they were; ``plan(input,
    out=y)`` writes it to ``y`` and allocates no arrays. Threads may share a plan. The number of threads is that of
    each call.

    Attributes
    ----------
    op, backend : str
    algorithm : str or None
        What the backend runs, if it has a choice; settled with the settings there were when the plan was made.
    input_shape, output_shape : tuple of int
    dtype : numpy.dtype
        Of the results.
    nbytes : int
        Memory that is kept for it: weights, in the form that the algorithm reads.
    """

    __slots__ = (
        "_call",
        "_operands",
        "_precision",
        "_run",
        "algorithm",
        "backend",
        "dtype",
        "input_shape",
        "nbytes",
        "op",
        "output_shape",
    )

    def __init__(
        self,
        call: Call,
        run: Run[Array],
        precision: Precision,
        operands: Mapping[str, Array | None],
        input_shape: Shape,
        output_shape: Shape,
        algorithm: str | None,
        nbytes: int,
    ) -> None:
        self._call = call
        self._run = run if call.backend.SILENT else quiet(run)
        self._precision = precision
        self._operands = operands
        self.op, self.backend = call.op.removeprefix("plan_"), call.backend_name
        self.input_shape, self.output_shape = input_shape, output_shape
        self.dtype: DType = precision.result
        self.algorithm, self.nbytes = algorithm, nbytes

    def __call__(self, input: ArrayLike, out: Array | None = None) -> Array:
        """The convolution of ``input``, in ``out`` if that is given.

        Raises
        ------
        ShapeError
            If ``input`` or ``out`` has another shape than the plan.
        TypeError
            If with ``input`` the result has another dtype than the plan's.
        ValueError
            For an unusable ``out``.
        """
        call, precision = self._call, self._precision
        if (
            type(input) is call.xp.ndarray
            and input.dtype is precision.compute
            and precision.result is precision.compute
            and input.shape == self.input_shape
            and is_plain(input)
        ):
            if out is None:
                return self._run(input)
            check_out(call, out, self.output_shape, precision.result, (input,))
            if is_plain(out):
                return self._run(input, out)
        return self._whole_way(input, out)

    @quiet
    def _whole_way(self, input: ArrayLike, out: Array | None) -> Array:
        call = self._call
        x = plain_array(call.op, "input", input, call.xp)
        check_shape(call.op, "input", x.shape, self.input_shape)
        with_this = conv_precision(call.op, **{**self._operands, "input": x})
        if with_this != self._precision:
            raise TypeError(
                f"{call.op}: with an input of dtype {x.dtype} the result has dtype {with_this.result}, "
                f"the plan is for {self._precision.result}"
            )
        return settled(call, self._run, self._precision, self.output_shape, out, input=x).deliver()

    def __repr__(self) -> str:
        by = f" by {self.algorithm}" if self.algorithm else ""
        return f"<{self.op} {self.input_shape} -> {self.output_shape} {self.dtype}{by} on {self.backend}>"


@operation
def plan_conv_nd(
    ndim: int,
    weight: ArrayLike,
    bias: ArrayLike | None,
    input_shape: Sequence[int],
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    dtype: Any = None,
    backend: str | None = None,
) -> Settled[Plan]:
    """`convNd` with weights that stay, as in inference: they are brought into the form that kernels read once.

    Parameters
    ----------
    weight, bias
        As of `convNd`. They are copied: later changes do not count.
    input_shape : sequence of ints
        The whole shape of the inputs to come.
    stride, padding, dilation, groups, padding_mode, activation, backend
        As of `convNd`.
    dtype : dtype-like, optional
        Of the inputs to come; by default that of ``weight``.

    Returns
    -------
    Plan
        ``plan(input)`` and ``plan(input, out=y)`` give what `convNd` gives. The algorithm is chosen here, with the
        settings there are now (see `config_context`), and tried once on zeros, so that no call allocates temporary
        memory that lasts.

    Raises
    ------
    ShapeError, TypeError, ValueError, MemoryError, BackendUnavailableError
        As `convNd` does.

    Examples
    --------
    >>> import fastconv, numpy as np
    >>> plan = fastconv.plan_conv2d(np.ones((2, 1, 3, 3)), None, (1, 1, 4, 4), padding=1)
    >>> y = np.empty(plan.output_shape, plan.dtype)
    >>> plan(np.ones((1, 1, 4, 4)), out=y)[0, 0, 0]
    array([4., 6., 6., 4.])
    """
    op = f"plan_conv{ndim}d"

    def layer_of(shape: Shape, w: Array, b: Array | None) -> Layer:
        return conv_layer(op, ndim, shape, w, b, stride, padding, dilation, groups, padding_mode)

    return _settled(op, ndim, weight, bias, input_shape, activation, dtype, backend, layer_of)


@operation
def plan_conv_transpose_nd(
    ndim: int,
    weight: ArrayLike,
    bias: ArrayLike | None,
    input_shape: Sequence[int],
    stride: IntOrInts = 1,
    padding: Padding = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
    *,
    output_size: IntOrInts | None = None,
    activation: str | None = None,
    dtype: Any = None,
    backend: str | None = None,
) -> Settled[Plan]:
    """`conv_transposeNd` with weights that stay; see `plan_convNd`.

    Parameters
    ----------
    weight, bias
        As of `conv_transposeNd`. They are copied: later changes do not count.
    input_shape : sequence of ints
        The whole shape of the inputs to come.
    stride, padding, output_padding, groups, dilation, output_size, activation, backend
        As of `conv_transposeNd`.
    dtype : dtype-like, optional
        Of the inputs to come; by default that of ``weight``.

    Returns
    -------
    Plan

    Raises
    ------
    ShapeError, TypeError, ValueError, MemoryError, BackendUnavailableError
        As `conv_transposeNd` does.
    """
    op = f"plan_conv_transpose{ndim}d"

    def layer_of(shape: Shape, w: Array, b: Array | None) -> Layer:
        return conv_transpose_layer(
            op, ndim, shape, w, b, stride, padding, output_padding, groups, dilation, output_size
        )

    return _settled(op, ndim, weight, bias, input_shape, activation, dtype, backend, layer_of)


def _input_shape(op: str, ndim: int, input_shape: Sequence[int]) -> Shape:
    shape = whole_shape(op, "input_shape", input_shape)
    split_shape(op, "input_shape", shape, ndim)
    return shape


def _operands(call: Call, weight: Array, bias: Array | None, dtype: Any) -> dict[str, Array | None]:
    """An empty array for each operand, by its name: what the dtype of a result depends on."""
    try:
        kind = weight.dtype if dtype is None else np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{call.op}: dtype must be a dtype, got {show(dtype)}") from None
    kinds = {"input": kind, "weight": weight.dtype, "bias": None if bias is None else bias.dtype}
    return {name: None if kind is None else np.empty(0, kind) for name, kind in kinds.items()}


def _settled(
    op: str,
    ndim: int,
    weight: ArrayLike,
    bias: ArrayLike | None,
    input_shape: Sequence[int],
    activation: str | None,
    dtype: Any,
    backend: str | None,
    layer_of: Callable[[Shape, Array, Array | None], Layer],
) -> Settled[Plan]:
    """The making of the plan, which needs the weights in the dtype that the kernel computes in."""
    call, (w, b) = begin(op, backend, weight=weight, bias=bias)
    shape, operands = _input_shape(op, ndim, input_shape), _operands(call, w, b, dtype)
    precision = conv_precision(op, **operands)
    check_activation(op, activation, precision)
    layer = layer_of(shape, w, b)

    def make(weight: Array, bias: Array | None = None) -> Plan:
        run, algorithm, nbytes = _run(call, layer, activation, precision, weight, bias)
        if layer.pads:
            run = of_padded_input(run, call.op, layer.pads, layer.padding_mode)
        return Plan(call, run, precision, operands, shape, layer.shape, algorithm, nbytes)

    unread = ("weight",) * layer.geometry.is_empty
    return settled(call, make, precision, (), unread=unread, weight=w, bias=b)


def _run(
    call: Call,
    layer: Layer,
    activation: str | None,
    precision: Precision,
    weight: Array,
    bias: Array | None,
) -> tuple[Run[Array], str | None, int]:
    """What a call does with an input, the algorithm, and the bytes that are kept."""
    geometry, dtype = layer.geometry, precision.compute
    sides = geometry.x_shape, geometry.y_shape
    source_shape, result_shape = sides if layer.kernel == "conv_forward" else sides[::-1]
    algorithm, nbytes = None, 0
    if geometry.is_empty:
        constant = None if bias is None else bias.copy()

        def apply(_source: Array, result: Array) -> None:
            fill_with_bias(result, constant, activation)
    else:
        make = settled_kernel(call, "conv_plan")
        apply, algorithm, nbytes = make(
            layer.kernel, weight.reshape(geometry.weight_shape), bias, activation, geometry
        )

    def run(source: Array, out: Array | None = None) -> Array:
        result = call.empty(layer.shape, dtype) if out is None else out
        apply(source.reshape(source_shape), result.reshape(result_shape))
        return result

    return run, algorithm, nbytes


plan_conv1d, plan_conv2d, plan_conv3d = per_dimension(plan_conv_nd)
plan_conv_transpose1d, plan_conv_transpose2d, plan_conv_transpose3d = per_dimension(plan_conv_transpose_nd)
