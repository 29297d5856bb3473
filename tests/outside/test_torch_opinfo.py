"""PyTorch's own operator samples (OpInfo), passed on verbatim to every CPU backend, forward and backward.

`torch.testing` holds for each operator a generator of sample calls and one of calls that must be refused.
fastconv's signatures follow `torch.nn.functional`, so the samples are passed on as they are: positional
arguments, keywords, shapes, memory layouts and all. What PyTorch computes in float64 is the expected result;
its autograd gives the expected gradients.

The tests are skipped where torch is not installed, unless FASTCONV_REQUIRE_TORCH=1 demands them.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import fastconv

if importlib.util.find_spec("torch") is None and os.environ.get("FASTCONV_REQUIRE_TORCH") != "1":
    pytest.skip("torch is not installed (FASTCONV_REQUIRE_TORCH=1 demands it)", allow_module_level=True)

import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.opinfo.core import ErrorInput, OpInfo, SampleInput

Array = np.ndarray[Any, Any]
Arguments = Mapping[str, Any]

REFUSALS = (ValueError, TypeError, IndexError)  # fastconv.ShapeError is a ValueError

# --- the samples ---


@dataclass(frozen=True)
class Operator:
    """A function of `torch.nn.functional`, with the sample calls that PyTorch tests it on."""

    name: str  # "conv2d": the same in fastconv
    variant: str
    samples: Callable[[torch.dtype], Iterator[SampleInput]]
    error_inputs: Callable[[], Iterator[ErrorInput]] | None

    def __str__(self) -> str:
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def family(self) -> str:
        return re.sub(r"\dd$", "", self.name)

    @property
    def in_torch(self) -> Callable[..., Any]:
        return getattr(F, self.name)

    @property
    def in_fastconv(self) -> Callable[..., Any]:
        return getattr(fastconv, self.name)


def from_op_info(info: OpInfo) -> Operator:
    return Operator(
        info.name.removeprefix("nn.functional."),
        info.variant_test_name,
        lambda dtype: info.sample_inputs("cpu", dtype, requires_grad=True),
        (lambda: info.error_inputs("cpu")) if info.error_inputs_func else None,
    )


def lp_pool_samples(rank: int, dtype: torch.dtype) -> Iterator[SampleInput]:
    """The samples of PyTorch's module tests: there is no OpInfo for lp_pool.

    PyTorch raises its input, not the absolute value, to the power p, which is a norm for input >= 0 only.
    """
    (info,) = (info for info in module_db if info.name == f"nn.LPPool{rank}d")
    for module in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True):
        (x,) = module.forward_input.args
        x = x.detach().abs().requires_grad_()
        yield SampleInput(x, args=module.constructor_input.args, kwargs=module.constructor_input.kwargs)


def fold_samples(dtype: torch.dtype) -> Iterator[SampleInput]:
    """The samples of unfold, run backwards: there is no OpInfo for fold."""
    (unfold,) = (info for info in op_db if info.name == "nn.functional.unfold")
    for sample in unfold.sample_inputs("cpu", dtype, requires_grad=False):
        columns = F.unfold(sample.input, *sample.args, **sample.kwargs).requires_grad_()
        yield SampleInput(columns, args=(tuple(sample.input.shape[2:]), *sample.args), kwargs=sample.kwargs)


RANKED = (
    "conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "max_unpool"
)  # fmt: skip
OP_INFO_NAMES = {
    *(f"nn.functional.{name}{rank}d" for name in RANKED for rank in (1, 2, 3)),
    "nn.functional.unfold",
}
OPERATORS = [
    *(from_op_info(info) for info in op_db if info.name in OP_INFO_NAMES),
    *(Operator(f"lp_pool{rank}d", "", functools.partial(lp_pool_samples, rank), None) for rank in (1, 2, 3)),
    Operator("fold", "", fold_samples, None),
]

# PyTorch has no error inputs for these.
WITHOUT_ERROR_INPUTS = {
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "unfold", "fold",
    "lp_pool1d", "lp_pool2d", "lp_pool3d",
    "max_unpool1d-grad", "max_unpool2d-grad", "max_unpool3d-grad",
}  # fmt: skip


def test_no_operator_is_dropped() -> None:
    names = {f"nn.functional.{operator.name}" for operator in OPERATORS}
    own = {"nn.functional.fold", *(f"nn.functional.lp_pool{rank}d" for rank in (1, 2, 3))}
    assert names == OP_INFO_NAMES | own
    assert not own & {info.name for info in op_db}, "PyTorch has samples of its own now: use them"
    assert {str(operator) for operator in OPERATORS if operator.error_inputs is None} == WITHOUT_ERROR_INPUTS


# --- a call in both libraries ---


def as_numpy(value: Any) -> Any:
    """The same argument for fastconv; tensors become arrays that share their memory and their strides."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    return tuple(value) if isinstance(value, torch.Size) else value


def fastconv_call(operator: Operator, sample: SampleInput) -> inspect.BoundArguments:
    args = [as_numpy(value) for value in (sample.input, *sample.args)]
    kwargs = {name: as_numpy(value) for name, value in sample.kwargs.items()}
    bound = inspect.signature(operator.in_fastconv).bind(*args, **kwargs)
    if bound.arguments.get("stride") == ():  # PyTorch's inner spelling of "not given"
        bound.arguments["stride"] = None
    return bound


@dataclass(frozen=True)
class Results:
    """The outputs of a call and the gradients of its tensors, for a given gradient of the first output."""

    outputs: list[torch.Tensor]
    grad_output: torch.Tensor
    gradients: list[torch.Tensor]


def torch_call(operator: Operator, sample: SampleInput) -> Results:
    """Call PyTorch in float64, with a random gradient that `sample`'s own dtype can represent."""

    def random(y: torch.Tensor) -> torch.Tensor:
        return torch.testing.make_tensor(y.shape, dtype=sample.input.dtype, device="cpu").double()

    return _torch_call(operator, sample, random, torch.clone)


def magnitude(operator: Operator, sample: SampleInput, expected: Results) -> Results:
    """Return the sum of the absolute values of the terms that make up each element of `expected`."""
    grad_output = expected.grad_output.abs()
    if "max" in operator.name:  # a maximum is no sum, so it must be exact; its gradient adds up what overlaps
        results = _torch_call(operator, sample, lambda y: grad_output, torch.clone)
        return Results([torch.zeros_like(y) for y in results.outputs], grad_output, results.gradients)
    results = _torch_call(operator, sample, lambda y: grad_output, torch.abs)
    return Results([y.abs() for y in results.outputs], grad_output, [g.abs() for g in results.gradients])


@functools.cache
def expectations(operator: Operator, dtype: torch.dtype) -> list[tuple[SampleInput, Results, Results]]:
    """Return the samples with what PyTorch computes and its magnitude; computed once for all backends."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the arrays are tiny
    try:
        samples = list(operator.samples(dtype))
        results = [torch_call(operator, sample) for sample in samples]
        sizes = [magnitude(operator, *pair) for pair in zip(samples, results, strict=True)]
    finally:
        torch.set_num_threads(threads)
    assert samples
    return list(zip(samples, results, sizes, strict=True))


def _torch_call(
    operator: Operator,
    sample: SampleInput,
    make_grad_output: Callable[[torch.Tensor], torch.Tensor],
    convert: Callable[[torch.Tensor], torch.Tensor],
) -> Results:
    def in_float64(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return convert(value.detach().double()).requires_grad_()
        return value

    args = [in_float64(value) for value in (sample.input, *sample.args)]
    kwargs = {name: in_float64(value) for name, value in sample.kwargs.items()}
    result = operator.in_torch(*args, **kwargs)
    outputs = list(result) if isinstance(result, tuple) else [result]
    grad_output = make_grad_output(outputs[0])
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.requires_grad]
    gradients = torch.autograd.grad(outputs[0], tensors, grad_output)
    return Results([output.detach() for output in outputs], grad_output, list(gradients))


# --- the gradients, by fastconv ---


def conv_gradients(operator: Operator, arguments: Arguments, grad: Array, backend: str) -> list[Array]:
    window = {name: value for name, value in arguments.items() if name not in ("input", "weight", "bias")}
    x, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
    backward = getattr(fastconv, f"{operator.name}_backward")
    mask = (True, True, bias is not None)
    gradients = list(backward(grad, x, weight, **window, output_mask=mask, backend=backend))
    assert (gradients[2] is None) == (bias is None)
    if "transpose" not in operator.name:  # the same kernels under the names of torch.nn.grad
        window["backend"] = backend
        of_input = getattr(fastconv.grad, f"{operator.name}_input")(x.shape, weight, grad, **window)
        of_weight = getattr(fastconv.grad, f"{operator.name}_weight")(x, weight.shape, grad, **window)
        np.testing.assert_array_equal(of_input, gradients[0])
        np.testing.assert_array_equal(of_weight, gradients[1])
    return [gradient for gradient in gradients if gradient is not None]


def max_pool_gradients(operator: Operator, arguments: Arguments, grad: Array, backend: str) -> list[Array]:
    _, indices = operator.in_fastconv(**{**arguments, "return_indices": True}, backend=backend)
    backward = getattr(fastconv, f"{operator.name.removeprefix('adaptive_')}_backward")
    return [backward(grad, indices, arguments["input"].shape, backend=backend)]


def avg_pool_gradients(operator: Operator, arguments: Arguments, grad: Array, backend: str) -> list[Array]:
    of_shapes = ("input", "output_size")  # the backward functions see them in the shapes of their arrays
    window = {name: value for name, value in arguments.items() if name not in of_shapes}
    backward = getattr(fastconv, f"{operator.name}_backward")
    return [backward(grad, arguments["input"].shape, **window, backend=backend)]


def lp_pool_gradients(operator: Operator, arguments: Arguments, grad: Array, backend: str) -> list[Array]:
    return [getattr(fastconv, f"{operator.name}_backward")(grad, **arguments, backend=backend)]


def fold_gradients(operator: Operator, arguments: Arguments, grad: Array, backend: str) -> list[Array]:
    window = {name: value for name, value in arguments.items() if name not in ("input", "output_size")}
    if operator.name == "fold":
        return [fastconv.unfold(grad, **window, backend=backend)]
    return [fastconv.fold(grad, arguments["input"].shape[2:], **window, backend=backend)]


GRADIENTS = {
    "conv": conv_gradients,
    "conv_transpose": conv_gradients,
    "max_pool": max_pool_gradients,
    "adaptive_max_pool": max_pool_gradients,
    "avg_pool": avg_pool_gradients,
    "adaptive_avg_pool": avg_pool_gradients,
    "lp_pool": lp_pool_gradients,
    "fold": fold_gradients,
    "unfold": fold_gradients,
}


# --- the tests ---


def check(actual: Array, expected: torch.Tensor, size: torch.Tensor, dtype: torch.dtype, what: str) -> None:
    """Compare within the error of a direct sum whose terms have the absolute values `size` altogether."""
    reference = expected.numpy()
    assert actual.shape == reference.shape, f"{what}: shape {actual.shape}, expected {reference.shape}"
    if not expected.is_floating_point():
        assert actual.dtype == reference.dtype, what
        np.testing.assert_array_equal(actual, reference, err_msg=what)
        return
    assert actual.dtype == np.dtype(str(dtype).removeprefix("torch.")), what
    # Eight units of rounding for ours, and as many for PyTorch's result where it is no more precise.
    units = 8 if dtype == torch.float32 else 16
    bound = units * torch.finfo(dtype).eps * size.numpy()
    np.testing.assert_array_less(np.abs(actual - reference) - bound, np.finfo(np.float64).tiny, err_msg=what)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_samples(operator: Operator, dtype: torch.dtype, backend: str) -> None:
    for number, (sample, expected, size) in enumerate(expectations(operator, dtype)):
        what = f"{operator} sample {number}: {sample.summary()}"
        call = fastconv_call(operator, sample)
        result = operator.in_fastconv(*call.args, **call.kwargs, backend=backend)
        outputs = result if isinstance(result, tuple) else (result,)
        for actual, *reference in zip(outputs, expected.outputs, size.outputs, strict=True):
            check(actual, *reference, dtype, what)
        if operator.family == "max_unpool":
            continue  # its gradient is an indexing expression; the next test has its transpose
        grad_output = as_numpy(expected.grad_output.to(dtype))
        gradients = GRADIENTS[operator.family](operator, call.arguments, grad_output, backend)
        for actual, *reference in zip(gradients, expected.gradients, size.gradients, strict=True):
            check(actual, *reference, dtype, f"{what}, backward")


@pytest.mark.parametrize("operator", [o for o in OPERATORS if str(o).endswith("d-grad")], ids=str)
def test_max_unpool_is_transposed(operator: Operator, backend: str) -> None:
    """Unpooling has the inner products that PyTorch's gradient demands, and is max pooling's gradient."""
    for sample, expected, _ in expectations(operator, torch.float64):  # these have no index twice
        call = fastconv_call(operator, sample)
        x, indices = call.arguments["input"], call.arguments["indices"]
        unpooled = operator.in_fastconv(*call.args, **call.kwargs, backend=backend)
        np.testing.assert_allclose(
            np.sum(unpooled * expected.grad_output.numpy()),
            np.sum(x * expected.gradients[0].numpy()),
            rtol=1e-12,
        )
        max_pool_backward = getattr(fastconv, operator.name.replace("unpool", "pool") + "_backward")
        scattered = max_pool_backward(x, indices, unpooled.shape, backend=backend)
        np.testing.assert_array_equal(scattered, unpooled)


@dataclass(frozen=True)
class Accepted:
    """Calls that PyTorch refuses with words that match `pattern`, while fastconv deliberately serves them."""

    reason: str
    pattern: str
    applies: Callable[[Arguments], bool] = lambda arguments: True


# Everything else that PyTorch refuses must be refused.
ACCEPTED = (
    Accepted(
        "integers beside a floating bias are promoted, as everywhere in NumPy",
        "should be the same",
        lambda arguments: arguments["bias"].dtype == np.float64,
    ),
    Accepted(
        '"same" padding works with any stride',
        "padding='same' is not supported for strided convolutions",
    ),
    Accepted(
        "pool padding may be anything smaller than the dilated kernel, not only half of it",
        "pad should be at most half",
        lambda arguments: (
            arguments["padding"] <= arguments.get("dilation", 1) * (np.min(arguments["kernel_size"]) - 1)
        ),
    ),
    Accepted(
        "an unbatched input without channels gives an empty result, as a batch without elements does",
        "Expected 2D or 3D|Expected input.*non-batch dimensions to have positive length",
        lambda arguments: arguments["input"].shape in ((0, 10), (0, 1, 2, 10)),
    ),
)


def test_error_inputs(backend: str) -> None:
    operators_seen, reasons_seen = set(), set()
    for operator in OPERATORS:
        for error in operator.error_inputs() if operator.error_inputs else ():
            operators_seen.add(str(operator))
            call = fastconv_call(operator, error.sample_input)
            compute = functools.partial(operator.in_fastconv, *call.args, **call.kwargs, backend=backend)
            reasons = {
                accepted.reason
                for accepted in ACCEPTED
                if re.search(accepted.pattern, error.error_regex) and accepted.applies(call.arguments)
            }
            reasons_seen |= reasons
            if reasons:
                compute()
            else:
                refused(compute, f"{operator}({error.sample_input.summary()}), {error.error_regex!r}")
    assert operators_seen == {str(operator) for operator in OPERATORS} - WITHOUT_ERROR_INPUTS
    assert reasons_seen == {accepted.reason for accepted in ACCEPTED}, "an exception that nothing needs"


def refused(compute: functools.partial[Any], what: str) -> None:
    """Assert that a call is refused, in words that begin with the name of the function."""
    try:
        compute()
    except REFUSALS as refusal:
        words = str(refusal)
    else:
        pytest.fail(f"accepted: {what}")
    assert words.startswith(f"{compute.func.__name__}: "), f"{words!r} for {what}"
