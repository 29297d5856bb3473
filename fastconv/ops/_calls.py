"""What a call settles, and the memory of it: calls that look alike are settled once.

An operation validates its arguments and returns what is to be done, as `Settled`; `operation` makes the public
function of it, which does that. What the operation settled depends on how its arguments look: numbers, names, and the
arrays' shapes, dtypes and layouts; and on the settings. So where the arrays can go to the kernel as they are, `run` is
remembered under these looks, and the next call that looks the same is `run` alone. Everything else, errors too, takes
the whole way each time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Hashable, Mapping
from functools import partial, wraps
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar

import numpy as np

from fastconv import config
from fastconv.geometry import Shape
from fastconv.ops._arrays import (
    Array,
    Call,
    Precision,
    as_kernel_input,
    check_out,
    check_overlap,
    is_plain,
)

P = ParamSpec("P")
R = TypeVar("R")
Run = Callable[..., R]

CAPACITY = 256  # remembered calls of each operation
_LAYOUT = 0x0001 | 0x0100 | 0x0400  # NumPy's flags: C-contiguous, aligned, writeable
_ATOMS = frozenset({int, bool, float, str, type(None)})
_LONGEST = 5  # sequence of parameters: a whole shape
_SETTLED_DTYPES = ("indices",)  # inputs that are no operands

_memories: list[dict[Hashable, Run[Any]]] = []


def quiet(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` without NumPy's warnings: infinities and NaN propagate silently on every backend."""

    @wraps(function)
    def silenced(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return silenced


class Settled(NamedTuple, Generic[R]):
    """What remains to be done once all arguments are known to be sound.

    ``run(*inputs.values())`` takes arrays in the dtype that the kernel computes in, C-contiguous and aligned, and
    returns new ones of that dtype in the shapes that the user expects. One argument more is an array to write the
    only result to. It holds no array of the call, and depends on them in nothing but their looks.
    """

    call: Call
    run: Run[R]
    inputs: dict[str, Array | None]  # by the names of the operation's parameters
    precision: Precision
    out: Array | None

    def deliver(self) -> R:
        """The result, in the dtype and where it was promised."""
        inputs, out = self.inputs.values(), self.out
        if out is None:
            result: R = self._in_result_dtype(self.run(*inputs))
            return result
        if self._writes_directly():
            return self.run(*inputs, out)
        out[...] = self.run(*inputs)
        return out  # type: ignore[no-any-return]

    def _in_result_dtype(self, result: Any) -> Any:
        compute, dtype = self.precision.compute, self.precision.result
        if isinstance(result, tuple):
            return tuple(map(self._in_result_dtype, result))
        if result is None or compute == dtype or result.dtype != compute:
            return result
        return result.astype(dtype)

    def _writes_directly(self) -> bool:
        return self.out.dtype == self.precision.compute and is_plain(self.out)  # type: ignore[union-attr]

    def again(self, arrays: Mapping[str, Array]) -> Run[R] | None:
        """``deliver`` for other arrays in place of these, if nothing but `run` is needed for that.

        ``arrays`` are all that the call was given, by the names of their parameters; the result takes as many, in
        their order.
        """
        used = {name: array for name, array in self.inputs.items() if array is not None}
        if self.out is not None:
            used["out"] = self.out
        if (
            used.keys() != arrays.keys()
            or any(used[name] is not array for name, array in arrays.items())
            or self.precision.result != self.precision.compute
            or not (self.out is None or self._writes_directly())
        ):
            return None
        call, run = self.call, self.run if self.call.backend.SILENT else quiet(self.run)
        names = list(arrays)
        order = [names.index(name) if name in names else None for name in self.inputs]
        if self.out is not None:
            target = names.index("out")

            def into(*arrays: Array) -> R:
                inputs = [None if i is None else arrays[i] for i in order]
                check_overlap(call, arrays[target], inputs)
                return run(*inputs, arrays[target])

            return into
        if order[: len(names)] == list(range(len(names))):  # what is missing are optional ones behind
            return run
        return lambda *arrays: run(*[None if i is None else arrays[i] for i in order])


def settled(
    call: Call,
    run: Run[R],
    precision: Precision,
    shape: Shape,
    out: Array | None = None,
    *,
    unread: Collection[str] = (),
    **inputs: Array | None,
) -> Settled[R]:
    """See `Settled`; ``shape`` is that of the only result, which may have to go to ``out``.

    Inputs that `run` does not read, as where there is nothing to compute, stay as they are: copies might not fit.

    Raises
    ------
    ShapeError, ValueError, TypeError
        If ``out`` is no array, or has another shape or dtype, is read-only, or overlaps an input or itself.
    """
    if out is not None:
        check_out(call, out, shape, precision.result, inputs.values())
    for name, array in inputs.items():
        if array is not None and name not in _SETTLED_DTYPES and name not in unread:
            inputs[name] = as_kernel_input(call, array, precision.compute)
    return Settled(call, run, inputs, precision, out)


def operation(settle: Callable[P, Settled[R]]) -> Callable[P, R]:
    """The function that does what ``settle`` says, and remembers it for calls that look the same."""
    name = settle.__name__
    signature = inspect.signature(settle)
    returned = str(signature.return_annotation).removeprefix("Settled[").removesuffix("]")
    signature = signature.replace(return_annotation=returned)
    names = tuple(signature.parameters)
    memory: dict[Hashable, Run[R]] = {}
    _memories.append(memory)

    @quiet
    def whole_way(*args: P.args, **kwargs: P.kwargs) -> tuple[R, Settled[R]]:
        call = settle(*args, **kwargs)
        return call.deliver(), call

    def operate(*args: P.args, **kwargs: P.kwargs) -> R:
        looks, arrays = _looks(args, kwargs)
        again = memory.get(looks)
        if again is not None:
            return again(*arrays)
        try:
            result, call = whole_way(*args, **kwargs)
        except TypeError:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:  # Python's own words may name another function
                raise TypeError(f"{name}: {error}") from None
            raise
        if looks is not None:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            again = call.again({n: value for n, value in given.items() if type(value) is np.ndarray})
            if again is not None:
                if len(memory) >= CAPACITY:
                    memory.clear()
                memory[looks] = again
        return result

    operate.__name__ = operate.__qualname__ = name
    operate.__module__ = settle.__module__
    operate.__doc__ = settle.__doc__
    operate.__signature__ = signature  # type: ignore[attr-defined]
    operate.__wrapped__ = settle  # type: ignore[attr-defined]
    return operate


def per_dimension(
    function: Callable[Concatenate[int, P], R],
) -> tuple[Callable[P, R], Callable[P, R], Callable[P, R]]:
    """The one-, two- and three-dimensional operation of one whose first parameter is that number.

    ``_nd`` in its name and ``Nd`` in its docstring become ``1d``, ``2d`` and ``3d``.
    """
    general: Callable[Concatenate[int, P], Settled[R]] = function.__wrapped__  # type: ignore[attr-defined]

    def make(ndim: int) -> Callable[P, R]:
        settle = partial(general, ndim)
        settle.__name__ = general.__name__.replace("_nd", f"{ndim}d")  # type: ignore[attr-defined]
        settle.__module__ = general.__module__
        settle.__doc__ = (general.__doc__ or "").replace("Nd", f"{ndim}d")
        return operation(settle)

    return make(1), make(2), make(3)


def forget() -> None:
    """Settle every call anew: for who changes what nobody changes, such as the table of backends."""
    for memory in _memories:
        memory.clear()


def _looks(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Hashable, list[Array]]:
    """All that a call's validation depends on, or ``None`` where that cannot be told quickly, and its arrays.

    Of arrays that is shape, dtype and layout; of everything else the value and its type, since 1, 1.0 and True are
    equal and not equally welcome.
    """
    key = [config.snapshot(), len(args), *kwargs]
    arrays = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind is np.ndarray:
            arrays.append(value)
            key.append((value.shape, value.dtype, value.flags.num & _LAYOUT))
        elif kind is int or kind is str or value is None:
            key.append(value)
        else:
            token = _token(kind, value)
            if token is None:
                return None, arrays
            key.append(token)
    return tuple(key), arrays


def _token(kind: type, value: Any, depth: int = 2) -> Hashable:
    """``value`` with its type and those of its parts; ``None`` where it is no parameter of a common kind."""
    if kind in _ATOMS:
        return kind, value
    if kind not in (tuple, list) or len(value) > _LONGEST or depth == 0:
        return None
    types = tuple(map(type, value))
    if _ATOMS.issuperset(types):
        return kind, types, tuple(value)
    parts = tuple(_token(type(part), part, depth - 1) for part in value)
    return None if None in parts else (kind, parts)
