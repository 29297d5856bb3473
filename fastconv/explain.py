"""What a call would do and why: which algorithm, with how many threads, and how near to what the machine can do."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, cast

import numpy as np

from fastconv import backends, config
from fastconv.backends.protocol import KERNELS, Backend, Candidate, Choice
from fastconv.errors import BackendUnavailableError
from fastconv.geometry import ConvGeometry, PoolGeometry, Shape, pool_windows, show, whole_shape
from fastconv.ops import conv, fold, pool
from fastconv.ops._calls import Settled, quiet
from fastconv.tuning import median

RUNS = 5
ENOUGH = 1.0  # seconds of measuring
ARRAYS = ("input", "weight", "bias", "grad_output", "indices")  # parameters for which a shape is given
# FLOP for which a byte of memory may be moved: a core loads some 4 bytes per cycle, and makes two multiply-adds of
# vectors of 32 bytes. A rule of thumb.
BALANCE = 32  # by bytes of an element

OPERATIONS: dict[str, Callable[..., Any]] = {
    name: function
    for module in (conv, pool, fold)
    for name, function in vars(module).items()
    if hasattr(function, "__signature__")
    and getattr(function, "__module__", None) == module.__name__
    and "nd" not in name.split("_")
    and not name.startswith("_")
}


class Measurement(NamedTuple):
    """A call on random numbers."""

    seconds: float
    """The median of some runs."""
    gflops: float
    """``flops`` in ``seconds``, which for an algorithm that takes fewer may lie above the ceiling."""
    ceiling: float | None
    """What multiply-adds alone reach with as many threads, measured; ``None`` without a compiled backend."""
    fraction: float | None
    """Of the ceiling."""


class Explanation(NamedTuple):
    """What `explain` returns; its text has a line for each part."""

    op: str
    kernel: str
    """What the backend is asked for: a transposed convolution is ``conv_grad_input``."""
    backend: str
    algorithm: str | None
    """``None`` for pooling."""
    isa: str | None
    """The instruction set, where the backend chooses one."""
    threads: int
    """At most so many start."""
    workspace: int | None
    """Bytes of temporary memory, by the model; ``None`` where the backend does not say."""
    flops: int
    """Of the definition: two for each product of a convolution, those with padding too; one for each element of a
    window."""
    multiplications: int | None
    """That the algorithm makes, transforms not counted; ``None`` for pooling."""
    bytes: int
    """At least read and written: each array once."""
    intensity: float
    """FLOP per byte."""
    bound: str
    """``"compute"`` or ``"memory"``: what a call so intense is probably limited by."""
    why: str
    candidates: Mapping[str, Candidate]
    """The algorithms that could serve the call, by name, with what the model says of them."""
    measured: Measurement | None

    def __str__(self) -> str:
        first = " ".join(filter(None, (self.op, "by", self.algorithm, "on", self.backend)))
        first = first if self.algorithm else f"{self.op} on {self.backend}"
        isa = f" ({self.isa})" if self.isa else ""
        made = (
            "" if self.multiplications is None else f", {_scaled(self.multiplications)} multiplications made"
        )
        lines = {
            "runs": f"{self.kernel}, at most {self.threads} thread{'s' * (self.threads > 1)}",
            "why": self.why,
            "work": f"{_scaled(self.flops)}FLOP by the definition{made}",
            "memory": f"at least {_scaled(self.bytes)}B, {self.intensity:.3g} FLOP per byte: probably bound by "
            f"{self.bound}",
        }
        if self.workspace is not None:
            lines["workspace"] = f"{_scaled(self.workspace)}B"
        if self.measured is not None:
            seconds, gflops, ceiling, fraction = self.measured
            part = "" if fraction is None else f", {fraction:.2g} of the ceiling of {ceiling:.0f} GFLOP/s"
            lines["measured"] = f"{1e3 * seconds:.3g} ms, {gflops:.3g} GFLOP/s{part}"
        return "\n".join([first + isa, *(f"  {name + ':':11}{text}" for name, text in lines.items())])


def explain(
    op: str,
    *arguments: Any,
    dtype: Any = "float32",
    backend: str | None = None,
    measure: bool = False,
    **parameters: Any,
) -> Explanation:
    """What an operation would do with arrays of these shapes, and why, with the present settings.

    Parameters
    ----------
    op : str
        An operation of one kernel: ``"conv2d"``, ``"conv_transpose1d"``, ``"max_pool2d_backward"``, ... The parts of
        ``conv2d_backward`` are ``"conv2d_input"`` and ``"conv2d_weight"``, as in `fastconv.grad`.
    *arguments, **parameters
        Those of the operation, with a shape in the place of each array.
    dtype : dtype-like
        Of all arrays, save indices.
    backend : str, optional
        As of the operation.
    measure : bool
        Also run it some times on random numbers.

    Returns
    -------
    Explanation
        A named tuple; ``print`` it for a text. The algorithm, threads and workspace come from the code that decides
        when the operation runs.

    Raises
    ------
    ValueError
        If there is no such operation, it runs several kernels or none, or the algorithm that the settings name
        cannot serve it.
    MemoryError
        If arrays of these shapes do not fit, or no algorithm keeps to ``workspace_limit``.
    ShapeError, TypeError, BackendUnavailableError
        As the operation does.

    Examples
    --------
    >>> import fastconv
    >>> with fastconv.config_context(threads=2):
    ...     told = fastconv.explain("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1, backend="cpp")
    >>> told.algorithm, told.threads, told.bound
    ('winograd', 2, 'compute')
    >>> told.flops, told.multiplications
    (1849688064, 231211008)
    >>> fastconv.explain("max_pool2d", (8, 64, 56, 56), 2, backend="cpp").bound
    'memory'
    """
    if op not in OPERATIONS:
        raise ValueError(f"explain: there is no operation {show(op)}; there are {', '.join(OPERATIONS)}")
    function = OPERATIONS[op]
    name, module, calls = _dry_run(
        function, _with_arrays(function, arguments, parameters, dtype, np.zeros), backend
    )
    if len(calls) != 1:
        raise ValueError(f"explain: {op} runs {_told(op, calls)}")
    (call,) = calls
    try:
        choice = module.choice(call.kernel, call.dtype, call.conv)
    except (ValueError, MemoryError) as error:
        raise type(error)(f"{op}: {error}") from error
    mine = choice.candidates.get(choice.algorithm or "")
    flops, products = call.flops(), None
    if call.conv is not None:
        products = int(mine.multiplications) if mine else flops // 2
    made = flops if products is None else 2 * products
    measured = None
    if measure:
        given = _with_arrays(function, arguments, parameters, dtype, _random)
        measured = _measure(
            partial(function, *given.args, **given.kwargs, backend=backend), flops, call.dtype, choice
        )
    return Explanation(
        op=op,
        kernel=call.kernel,
        backend=name,
        algorithm=choice.algorithm,
        isa=choice.isa,
        threads=choice.threads,
        workspace=math.ceil(mine.workspace) if mine else None,
        flops=flops,
        multiplications=products,
        bytes=call.bytes,
        intensity=flops / call.bytes,
        bound="compute" if made / call.bytes * call.dtype.itemsize >= BALANCE else "memory",
        why=_why(name, choice),
        candidates=choice.candidates,
        measured=measured,
    )


class _KernelCall(NamedTuple):
    kernel: str
    dtype: np.dtype[Any]
    bytes: int
    outputs: int
    geometry: ConvGeometry | PoolGeometry | None

    @property
    def conv(self) -> ConvGeometry | None:
        return self.geometry if isinstance(self.geometry, ConvGeometry) else None

    def flops(self) -> int:
        g = self.geometry
        if isinstance(g, ConvGeometry):
            return 2 * math.prod(g.y_shape) * math.prod(g.weight_shape[1:])
        if isinstance(g, PoolGeometry):
            return g.planes * math.prod(int(windows.inside.sum()) for windows in pool_windows(g))
        return self.outputs  # gradients of a maximum, each to one place


class _Recorder:
    """A backend whose kernels are noted instead of run."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.calls: list[_KernelCall] = []

    def __getattr__(self, name: str) -> Any:
        return partial(self._note, name) if name in KERNELS else getattr(self._backend, name)

    def _note(self, kernel: str, *arguments: Any) -> int:
        arrays = [value for value in arguments if isinstance(value, np.ndarray)]
        geometry = next(
            (value for value in arguments if isinstance(value, ConvGeometry | PoolGeometry)), None
        )
        size = sum(array.nbytes for array in arrays)
        self.calls.append(_KernelCall(kernel, arrays[0].dtype, size, arrays[0].size, geometry))
        return -1  # no index was bad


def _dry_run(
    function: Callable[..., Any], given: inspect.BoundArguments, backend: str | None
) -> tuple[str, Backend, list[_KernelCall]]:
    """The backend's name, the backend, and the kernels that the operation would run."""
    settle: Callable[..., Settled[Any]] = function.__wrapped__  # type: ignore[attr-defined]
    recorders: list[_Recorder] = []

    def record(module: Backend) -> Backend:
        recorders.append(_Recorder(module))
        return cast("Backend", recorders[-1])

    @quiet
    def run() -> str:
        with backends.replaced(record):
            settled = settle(*given.args, **given.kwargs, backend=backend)
        settled.run(*settled.inputs.values())
        return settled.call.backend_name

    name = run()
    (recorder,) = recorders
    return name, recorder._backend, recorder.calls


def _with_arrays(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    parameters: dict[str, Any],
    dtype: Any,
    make: Callable[[Shape, np.dtype[Any]], Any],
) -> inspect.BoundArguments:
    """The arguments of an operation, with an array for each shape."""
    op = function.__name__
    try:
        given = inspect.signature(function).bind(*arguments, **parameters)
    except TypeError as error:
        raise TypeError(f"explain: {op}: {error}") from None
    for name, value in given.arguments.items():
        if name in ARRAYS and value is not None:
            kind = np.dtype(np.int64) if name == "indices" else np.dtype(dtype)
            shape = whole_shape(op, name, value)
            given.arguments[name] = np.zeros(shape, kind) if name == "indices" else make(shape, kind)
    return given


def _random(shape: Shape, dtype: np.dtype[Any]) -> Any:
    numbers = np.random.default_rng(0).standard_normal(shape, np.float32)
    return (8 * numbers if dtype.kind in "iu" else numbers).astype(dtype)


def _measure(call: Callable[[], Any], flops: int, dtype: np.dtype[Any], choice: Choice) -> Measurement:
    taken: list[float] = []
    begin = perf_counter()
    for count in range(1 + RUNS):  # the first touches new memory, and measures where algorithms are tuned
        if count > 1 and perf_counter() - begin > ENOUGH:
            break
        start = perf_counter()
        call()
        taken.append(perf_counter() - start)
    seconds = median(taken[1:])
    gflops = flops / seconds / 1e9
    ceiling = _ceiling(dtype, choice.threads)
    return Measurement(seconds, gflops, ceiling, None if ceiling is None else gflops / ceiling)


def _ceiling(dtype: np.dtype[Any], threads: int) -> float | None:
    """GFLOP/s of multiply-adds alone; ``None`` where nobody can say."""
    if dtype.kind != "f":
        return None
    try:
        cpp: Any = backends.load("cpp")
    except BackendUnavailableError:
        return None
    return float(cpp.fma_peak(dtype.name, threads)) / 1e9


def _told(op: str, calls: list[_KernelCall]) -> str:
    if not calls:
        return "no kernel with these arguments: there is nothing to compute, or NumPy does it"
    kernels = f"{len(calls)} kernels ({', '.join(call.kernel for call in calls)})"
    if op.startswith("conv_transpose"):
        forward = op.removesuffix("_backward").replace("_transpose", "")
        return f"{kernels}: explain {forward} and {forward}_weight, which are its parts, with exchanged roles"
    if op.startswith("conv"):
        forward = op.removesuffix("_backward")
        return f"{kernels}: explain its parts, {forward}_input and {forward}_weight"
    return f"{kernels}: explain them one by one"


def _why(backend: str, choice: Choice) -> str:
    if choice.algorithm is None:
        return "pooling has one algorithm"
    candidates, asked = choice.candidates, config.algorithm()
    if not candidates:
        return f"backend {backend!r} has one algorithm"
    expected = ", ".join(f"{name} {_scaled(c.time)}" for name, c in candidates.items())
    model = f"multiply-adds that would take as long by the model: {expected}"
    if choice.seconds is not None:
        times = ", ".join(f"{name} {1e3 * taken:.3g} ms" for name, taken in choice.seconds.items())
        reason = (
            f"measured as the quickest ({times})"
            if len(choice.seconds) > 1
            else "the only one that serves the call"
        )
    elif asked == "tune":
        reason = "the model's choice, until the first call measures"
    elif asked not in ("auto", "direct"):
        reason = "asked for by name"
    elif len(candidates) == 1:
        reason = "the only one that serves the call"
    else:
        reason = "the quickest by the model" + " of direct summation" * (asked == "direct")
    left_out = [f"{name} ({_scaled(c.workspace)}B)" for name, c in candidates.items() if not c.fits]
    if left_out:
        reason += f"; its workspace rules out {' and '.join(left_out)}"
    return f"{reason}; {model}"


def _scaled(value: float) -> str:
    """With a decimal prefix, to be followed by a unit."""
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} T"
