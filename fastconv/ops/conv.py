"""Convolution and transposed convolution, forward and backward.

A transposed convolution is the input gradient of a convolution, so three kernels serve both: what the one calls
``forward`` is ``conv_forward``, ``conv_grad_input`` or ``conv_grad_weight`` to the other. Cross-correlation is meant
throughout: no kernel is flipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastconv import config
from fastconv.activations import ACTIVATIONS, INTEGER_ACTIVATIONS
from fastconv.errors import ShapeError
from fastconv.geometry import (
    PADDING_MODES,
    ConvGeometry,
    IntOrInts,
    Padding,
    Pairs,
    Shape,
    check_shape,
    conv_geometry,
    conv_transpose_geometry,
    is_sequence,
    one_bool,
    padding_spec,
    resolve_padding,
    show,
    split_shape,
    three,
    whole_shape,
)
from fastconv.ops import _padding
from fastconv.ops._arrays import (
    Array,
    ArrayLike,
    Call,
    Precision,
    begin,
    conv_precision,
    for_kernel,
    sum_dtype,
)
from fastconv.ops._calls import Run, Settled, operation, per_dimension, quiet, settled

Gradients = tuple[Any, Any, Any]


@operation
def conv_nd(
    ndim: int,
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Convolution (cross-correlation) with arguments in the order of ``torch.nn.functional.convNd``.

    Parameters
    ----------
    input : array_like, shape (N, C_in, *spatial) or (C_in, *spatial)
        Floating types promote as in NumPy; float16 and bfloat16 are accumulated in float32. If input, weight and bias
        are all integers the sum is exact, in int32 for types of 8 and 16 bits and in int64 otherwise.
    weight : array_like, shape (C_out, C_in / groups, *kernel)
    bias : array_like, shape (C_out,), optional
    stride, dilation : int or one int per axis
    padding : int, one int per axis, one (low, high) pair per axis, or a name
        ``"valid"``; ``"same"``, with ``out = ceil(in / stride)`` and an odd element at the end; ``"same_lower"``, with
        it at the start; ``"causal"`` (1-D only).
    groups : int
        Divides both channel counts; each group of input channels makes its own output channels.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
    activation : {"relu", "relu6", "leaky_relu", "elu", "sigmoid", "tanh", "silu"}, optional
        Applied as the result is stored. ``leaky_relu`` has slope 0.01.
    out : ndarray, optional
        Where to put the result: exact shape and dtype, writeable, not overlapping an input.
    backend : str, optional
        See `fastconv.available_backends`.

    Returns
    -------
    ndarray, shape (N, C_out, *out) or (C_out, *out)
        ``out = (in + low + high - dilation * (kernel - 1) - 1) // stride + 1`` on each axis.

    Raises
    ------
    ShapeError
        If shapes and window parameters do not fit together.
    TypeError
        For complex, object and masked arrays, or parameters that are no ints.
    ValueError
        For an unusable ``out`` or an unknown name.
    BackendUnavailableError
        If the named backend cannot run here.
    """
    op = f"conv{ndim}d"
    call, (x, w, b) = begin(op, backend, input=input, weight=weight, bias=bias)
    precision = conv_precision(op, input=x, weight=w, bias=b)
    check_activation(op, activation, precision)
    layer = conv_layer(op, ndim, x.shape, w, b, stride, padding, dilation, groups, padding_mode)
    precision = _for_kernel(call, precision, layer.geometry, layer.pads)
    run = _gather(call, layer.kernel, activation, layer.shape, precision, layer.geometry)
    unread = ("input", "weight") * layer.geometry.is_empty
    if layer.pads:
        run = of_padded_input(run, op, layer.pads, padding_mode)
    return settled(call, run, precision, layer.shape, out, unread=unread, input=x, weight=w, bias=b)


@operation
def conv_transpose_nd(
    ndim: int,
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
    *,
    output_size: IntOrInts | None = None,
    activation: str | None = None,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Transposed convolution with arguments in the order of ``torch.nn.functional.conv_transposeNd``.

    It is the gradient of `convNd` with respect to its input, so it undoes the change of size, not the values.

    Parameters
    ----------
    input : array_like, shape (N, C_in, *spatial) or (C_in, *spatial)
        Types of input, weight and bias promote to that of the result as in `convNd`.
    weight : array_like, shape (C_in, C_out / groups, *kernel)
    bias : array_like, shape (C_out,), optional
    stride, dilation : int or one int per axis
    padding : int, one int per axis, one (low, high) pair per axis, or a name
        As in `convNd`; it shrinks the output. ``"same"`` gives ``out = in * stride``.
    output_padding : int or one int per axis
        Added to the output size at its end; smaller than stride or dilation.
    groups : int
    output_size : int, one int per axis, or a whole shape, optional
        The wanted size instead of ``output_padding``.
    activation, out, backend
        As in `convNd`.

    Returns
    -------
    ndarray, shape (N, C_out, *out) or (C_out, *out)
        ``out = (in - 1) * stride - low - high + dilation * (kernel - 1) + output_padding + 1`` on each axis.

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"conv_transpose{ndim}d"
    call, (x, w, b) = begin(op, backend, input=input, weight=weight, bias=bias)
    precision = conv_precision(op, input=x, weight=w, bias=b)
    check_activation(op, activation, precision)
    layer = conv_transpose_layer(
        op, ndim, x.shape, w, b, stride, padding, output_padding, groups, dilation, output_size
    )
    precision = _for_kernel(call, precision, layer.geometry, layer.pads)
    run = _gather(call, layer.kernel, activation, layer.shape, precision, layer.geometry)
    unread = ("input", "weight") * layer.geometry.is_empty
    return settled(call, run, precision, layer.shape, out, unread=unread, input=x, weight=w, bias=b)


@operation
def conv_nd_backward(
    ndim: int,
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: ArrayLike,
    *,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    output_mask: Sequence[bool] = (True, True, True),
    backend: str | None = None,
) -> Settled[Gradients]:
    """Gradients of `convNd` with respect to its input, weight and bias.

    Parameters
    ----------
    grad_output : array_like, shape of the convolution's result
        Types of grad_output, input and weight promote to that of every gradient as in `convNd`.
    input, weight, stride, padding, dilation, groups, padding_mode
        As they were given to `convNd`.
    output_mask : three bools
        Which of the gradients to compute.
    backend : str, optional

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray or None
        ``None`` where the mask is false.

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"conv{ndim}d_backward"
    wants = _mask(op, output_mask)
    call, (gy, x, w) = begin(op, backend, grad_output=grad_output, input=input, weight=weight)
    precision = conv_precision(op, grad_output=gy, input=x, weight=w)
    geometry = conv_geometry(op, ndim, x.shape, w.shape, stride, padding, dilation, groups)
    pads = _copied_padding(op, ndim, x.shape, geometry, padding, padding_mode)
    check_shape(
        op, "grad_output", gy.shape, _user_shape(x, ndim, geometry.out_channels, geometry.output_size)
    )
    inner = _padded(geometry, pads)
    operands = _for_kernel(call, precision, inner, pads)
    grad_input = grad_weight = None
    if wants[0]:
        shape = _user_shape(x, ndim, geometry.in_channels, inner.input_size)
        grad_input = _gather(call, "conv_grad_input", None, shape, operands, inner)
        if pads:
            grad_input = _without_padding(call, grad_input, x.shape, precision, pads, padding_mode)
    if wants[1]:
        grad_weight = _grad_weight(call, w.shape, operands, inner)
        if pads:
            grad_weight = of_padded_input(grad_weight, op, pads, padding_mode)

    def run(gy: Array, x: Array, w: Array) -> Gradients:
        return (
            None if grad_input is None else grad_input(gy, w),
            None if grad_weight is None else grad_weight(x, gy),
            _bias_gradient(call, gy, geometry.y_shape, precision) if wants[2] else None,
        )

    unread = _unread(wants, inner)
    return settled(call, run, operands, (), unread=unread, grad_output=gy, input=x, weight=w)


@operation
def conv_transpose_nd_backward(
    ndim: int,
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: ArrayLike,
    *,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
    output_size: IntOrInts | None = None,
    output_mask: Sequence[bool] = (True, True, True),
    backend: str | None = None,
) -> Settled[Gradients]:
    """Gradients of `conv_transposeNd` with respect to its input, weight and bias.

    The input gradient is a convolution and the weight gradient that of a convolution with its two arrays exchanged.

    Parameters
    ----------
    grad_output : array_like, shape of the transposed convolution's result
        Types of grad_output, input and weight promote to that of every gradient as in `convNd`.
    input, weight, stride, padding, output_padding, groups, dilation, output_size
        As they were given to `conv_transposeNd`.
    output_mask : three bools
        Which of the gradients to compute.
    backend : str, optional

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray or None
        ``None`` where the mask is false.

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"conv_transpose{ndim}d_backward"
    wants = _mask(op, output_mask)
    call, (gy, x, w) = begin(op, backend, grad_output=grad_output, input=input, weight=weight)
    precision = conv_precision(op, grad_output=gy, input=x, weight=w)
    geometry = conv_transpose_geometry(
        op, ndim, x.shape, w.shape, stride, padding, output_padding, groups, dilation, output_size
    )
    check_shape(op, "grad_output", gy.shape, _user_shape(x, ndim, geometry.in_channels, geometry.input_size))
    operands = _for_kernel(call, precision, geometry)
    grad_input = _gather(call, "conv_forward", None, x.shape, operands, geometry) if wants[0] else None
    grad_weight = _grad_weight(call, w.shape, operands, geometry) if wants[1] else None

    def run(gy: Array, x: Array, w: Array) -> Gradients:
        return (
            None if grad_input is None else grad_input(gy, w),
            None if grad_weight is None else grad_weight(gy, x),
            _bias_gradient(call, gy, geometry.x_shape, precision) if wants[2] else None,
        )

    unread = _unread(wants, geometry)
    return settled(call, run, operands, (), unread=unread, grad_output=gy, input=x, weight=w)


@operation
def conv_nd_input(
    ndim: int,
    input_size: Sequence[int],
    weight: ArrayLike,
    grad_output: ArrayLike,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Gradient of `convNd` with respect to an input of shape ``input_size``, as ``torch.nn.grad.convNd_input``.

    Parameters
    ----------
    input_size : sequence of ints
        The input's whole shape.
    weight, stride, padding, dilation, groups
        As they were given to `convNd`.
    grad_output : array_like, shape of the convolution's result
        Types of weight and grad_output promote to that of the result as in `convNd`.
    out, backend
        As in `convNd`.

    Returns
    -------
    ndarray of shape ``input_size``

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"conv{ndim}d_input"
    call, (w, gy) = begin(op, backend, weight=weight, grad_output=grad_output)
    precision = conv_precision(op, weight=w, grad_output=gy)
    shape = whole_shape(op, "input_size", input_size)
    split_shape(op, "input_size", shape, ndim)
    geometry = conv_geometry(op, ndim, shape, w.shape, stride, padding, dilation, groups)
    check_shape(op, "grad_output", gy.shape, _like(shape, ndim, geometry.out_channels, geometry.output_size))
    precision = _for_kernel(call, precision, geometry)
    gradient = _gather(call, "conv_grad_input", None, shape, precision, geometry)

    def run(w: Array, gy: Array, grad_x: Array | None = None) -> Array:
        return gradient(gy, w, None, grad_x)

    unread = ("weight", "grad_output") * geometry.is_empty
    return settled(call, run, precision, shape, out, unread=unread, weight=w, grad_output=gy)


@operation
def conv_nd_weight(
    ndim: int,
    input: ArrayLike,
    weight_size: Sequence[int],
    grad_output: ArrayLike,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Gradient of `convNd` with respect to a weight of shape ``weight_size``, as ``torch.nn.grad.convNd_weight``.

    Parameters
    ----------
    input, stride, padding, dilation, groups
        As they were given to `convNd`.
    weight_size : sequence of ints
        The weight's whole shape.
    grad_output : array_like, shape of the convolution's result
        Types of input and grad_output promote to that of the result as in `convNd`.
    out, backend
        As in `convNd`.

    Returns
    -------
    ndarray of shape ``weight_size``

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"conv{ndim}d_weight"
    call, (x, gy) = begin(op, backend, input=input, grad_output=grad_output)
    precision = conv_precision(op, input=x, grad_output=gy)
    shape = whole_shape(op, "weight_size", weight_size)
    geometry = conv_geometry(
        op, ndim, x.shape, shape, stride, padding, dilation, groups, weight_name="weight_size"
    )
    check_shape(
        op, "grad_output", gy.shape, _user_shape(x, ndim, geometry.out_channels, geometry.output_size)
    )
    precision = _for_kernel(call, precision, geometry)
    run = _grad_weight(call, shape, precision, geometry)
    unread = ("input", "grad_output") * geometry.is_empty
    return settled(call, run, precision, shape, out, unread=unread, input=x, grad_output=gy)


# --- layers ----------------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A forward pass as kernels see it, and its result as the user does."""

    kernel: str
    geometry: ConvGeometry
    shape: Shape
    pads: Pairs | None = None
    """Of the input, made by copying values as ``padding_mode`` says; the geometry is that of the padded input."""
    padding_mode: str = "zeros"


def conv_layer(
    op: str,
    ndim: int,
    input_shape: Shape,
    weight: Array,
    bias: Array | None,
    stride: IntOrInts,
    padding: Padding,
    dilation: IntOrInts,
    groups: int,
    padding_mode: str,
) -> Layer:
    """The convolution of an input of this shape."""
    geometry = conv_geometry(op, ndim, input_shape, weight.shape, stride, padding, dilation, groups)
    pads = _copied_padding(op, ndim, input_shape, geometry, padding, padding_mode)
    _check_bias(op, bias, geometry.out_channels)
    shape = _like(input_shape, ndim, geometry.out_channels, geometry.output_size)
    return Layer("conv_forward", _padded(geometry, pads), shape, pads, padding_mode)


def conv_transpose_layer(
    op: str,
    ndim: int,
    input_shape: Shape,
    weight: Array,
    bias: Array | None,
    stride: IntOrInts,
    padding: Padding,
    output_padding: IntOrInts,
    groups: int,
    dilation: IntOrInts,
    output_size: IntOrInts | None,
) -> Layer:
    """The transposed convolution of an input of this shape."""
    geometry = conv_transpose_geometry(
        op, ndim, input_shape, weight.shape, stride, padding, output_padding, groups, dilation, output_size
    )
    _check_bias(op, bias, geometry.in_channels)
    shape = _like(input_shape, ndim, geometry.in_channels, geometry.input_size)
    return Layer("conv_grad_input", geometry, shape)


# --- the way to the kernels ------------------------------------------------------------------------------------------


def _for_kernel(
    call: Call, precision: Precision, geometry: ConvGeometry, pads: Pairs | None = None
) -> Precision:
    """What the kernel is given: narrow numbers as they are, unless something else than the kernel computes, too."""
    return precision if pads or geometry.is_empty else for_kernel(precision, call.backend)


def _gather(
    call: Call,
    kernel: str,
    activation: str | None,
    shape: Shape,
    precision: Precision,
    geometry: ConvGeometry,
) -> Run[Array]:
    """`conv_forward` or `conv_grad_input`, of what the user passes to what the user expects."""
    sides = geometry.x_shape, geometry.y_shape
    source_shape, result_shape = sides if kernel == "conv_forward" else sides[::-1]
    weight_shape, dtype = geometry.weight_shape, precision.compute
    if geometry.is_empty:

        def fill(
            _source: Array, _weight: Array, bias: Array | None = None, out: Array | None = None
        ) -> Array:
            result = call.empty(shape, dtype) if out is None else out
            fill_with_bias(result.reshape(result_shape), bias, activation)
            return result

        return fill
    apply = settled_kernel(call, kernel)

    def run(source: Array, weight: Array, bias: Array | None = None, out: Array | None = None) -> Array:
        result = call.empty(shape, dtype) if out is None else out
        apply(
            source.reshape(source_shape),
            weight.reshape(weight_shape),
            bias,
            activation,
            result.reshape(result_shape),
            geometry,
        )
        return result

    return run


def _grad_weight(call: Call, shape: Shape, precision: Precision, geometry: ConvGeometry) -> Run[Array]:
    """`conv_grad_weight`, of what the user passes to what the user expects."""
    x_shape, y_shape, weight_shape = geometry.x_shape, geometry.y_shape, geometry.weight_shape
    if geometry.is_empty:
        return lambda _x, _grad_y, out=None: call.full(shape, 0, precision.compute, out)
    apply = settled_kernel(call, "conv_grad_weight")

    def run(x: Array, grad_y: Array, out: Array | None = None) -> Array:
        gradient = call.empty(shape, precision.compute) if out is None else out
        apply(x.reshape(x_shape), grad_y.reshape(y_shape), gradient.reshape(weight_shape), geometry)
        return gradient

    return run


def of_padded_input(run: Run[Array], op: str, pads: Pairs, padding_mode: str) -> Run[Array]:
    """``run`` with its first array padded by copying."""
    return lambda x, *others: run(_padding.pad(op, x, pads, padding_mode), *others)


def _without_padding(
    call: Call, run: Run[Array], shape: Shape, precision: Precision, pads: Pairs, padding_mode: str
) -> Run[Array]:
    """``run``, the gradient of a padded input, up to the gradient of the input before."""

    @quiet
    def back(*arrays: Array) -> Array:
        gradient = call.empty(shape, precision.compute)
        gradient[...] = _padding.pad_backward(run(*arrays), shape, pads, padding_mode)
        return gradient

    return back


def settled_kernel(call: Call, name: str) -> Callable[..., Any]:
    """A kernel with the algorithm that the context names."""
    chosen, known = config.algorithm(), call.backend.ALGORITHMS
    if chosen not in known:
        raise ValueError(
            f"{call.op}: backend {call.backend_name!r} has no algorithm {chosen!r}, expected one of {', '.join(known)}"
        )
    kernel: Callable[..., Any] = getattr(call.backend, name)
    if chosen == "auto" and config.workspace_limit() is None:  # serves every geometry
        return kernel

    def run(*arguments: Any) -> Any:
        try:
            return kernel(*arguments)
        except (
            ValueError,
            MemoryError,
        ) as error:  # one that cannot serve this geometry, or not within the limit
            raise type(error)(f"{call.op}: {error}") from error

    return run


@quiet
def fill_with_bias(y: Array, bias: Array | None, activation: str | None) -> None:
    """The convolution of nothing: the bias alone."""
    y[...] = 0 if bias is None else bias.reshape(-1, 1, 1, 1)
    if activation is not None:
        y[...] = ACTIVATIONS[activation](y)


@quiet
def _bias_gradient(call: Call, grad_y: Array, shape: Shape, precision: Precision) -> Array:
    """A sum over space, which NumPy adds pairwise, and then over the batch, which it does not."""
    if not grad_y.size:
        return call.full((shape[1],), 0, precision.result)
    planes = grad_y.astype(precision.compute, copy=False).reshape(shape[0], shape[1], -1)
    spatial = planes.sum(axis=2, dtype=precision.compute)
    return spatial.sum(axis=0, dtype=sum_dtype(precision.compute)).astype(precision.result)


def _copied_padding(
    op: str, ndim: int, shape: Shape, geometry: ConvGeometry, padding: Padding, padding_mode: object
) -> Pairs | None:
    """The padding of an input of ``shape`` that is made by copying values; ``None`` where there is none."""
    if not isinstance(padding_mode, str) or padding_mode not in PADDING_MODES:
        raise ValueError(
            f"{op}: padding_mode must be one of {', '.join(PADDING_MODES)}, got {show(padding_mode)}"
        )
    if padding_mode == "zeros":
        return None
    windows = (geometry.input_size, geometry.kernel_size, geometry.stride, geometry.dilation)
    pads = resolve_padding(padding_spec(op, padding, ndim), *(sizes[3 - ndim :] for sizes in windows))
    _padding.check_padding(op, shape, pads, padding_mode)
    return pads if any(low or high for low, high in pads) else None


def _padded(geometry: ConvGeometry, pads: Pairs | None) -> ConvGeometry:
    """The same convolution of an input that contains what padding there is."""
    if pads is None:
        return geometry
    added = three(tuple(low + high for low, high in pads), 0)
    depth, height, width = (size + extra for size, extra in zip(geometry.input_size, added, strict=True))
    return geometry._replace(input_size=(depth, height, width), pad_low=(0, 0, 0))


def _user_shape(x: Array, ndim: int, channels: int, size: Shape) -> Shape:
    return _like(x.shape, ndim, channels, size)


def _like(shape: Shape, ndim: int, channels: int, size: Shape) -> Shape:
    """The shape of a result: batched if ``shape`` is, with these channels and the last ``ndim`` of these sizes."""
    return (*shape[: -ndim - 1], channels, *size[3 - ndim :])


def _check_bias(op: str, bias: Array | None, channels: int) -> None:
    if bias is not None:
        check_shape(op, "bias", bias.shape, (channels,))


def check_activation(op: str, activation: object, precision: Precision) -> None:
    """Raises `ValueError` for unknown names and `TypeError` for those that integers do not have."""
    if activation is None:
        return
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"{op}: activation must be None or one of {', '.join(ACTIVATIONS)}, got {show(activation)}"
        )
    if precision.compute.kind == "i" and activation not in INTEGER_ACTIVATIONS:
        raise TypeError(f"{op}: activation {activation!r} needs a floating dtype, got {precision.result}")


def _mask(op: str, output_mask: Sequence[bool]) -> tuple[bool, bool, bool]:
    if not is_sequence(output_mask):
        raise TypeError(f"{op}: output_mask must be three bools, got {show(output_mask)}")
    if len(output_mask) != 3:
        raise ShapeError(f"{op}: output_mask has {len(output_mask)} values, expected 3 (input, weight, bias)")
    try:
        first, second, third = (one_bool(op, "output_mask", want) for want in output_mask)
    except TypeError:
        raise TypeError(f"{op}: output_mask must be three bools, got {show(output_mask)}") from None
    return first, second, third


def _unread(wants: tuple[bool, bool, bool], geometry: ConvGeometry) -> list[str]:
    """The arrays of a backward pass that no wanted gradient depends on."""
    products = not geometry.is_empty
    read = {
        "grad_output": wants[2] or (products and (wants[0] or wants[1])),
        "input": products and wants[1],
        "weight": products and wants[0],
    }
    return [name for name, needed in read.items() if not needed]


conv1d, conv2d, conv3d = per_dimension(conv_nd)
conv_transpose1d, conv_transpose2d, conv_transpose3d = per_dimension(conv_transpose_nd)
conv1d_backward, conv2d_backward, conv3d_backward = per_dimension(conv_nd_backward)
conv_transpose1d_backward, conv_transpose2d_backward, conv_transpose3d_backward = per_dimension(
    conv_transpose_nd_backward
)
conv1d_input, conv2d_input, conv3d_input = per_dimension(conv_nd_input)
conv1d_weight, conv2d_weight, conv3d_weight = per_dimension(conv_nd_weight)
