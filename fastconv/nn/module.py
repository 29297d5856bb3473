"""`Parameter` and `Module`: what every layer, container and loss is made of.

A layer is a forward and its reverse, written side by side. There is no graph: ``forward`` keeps what its
``backward`` needs (`Module.save_for_backward`), and ``backward`` takes it up again, last kept first. So one
layer may serve several times within one pass, as long as the backward calls run in the reverse order of the
forward calls, which is what containers do.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from fastconv.backends import load
from fastconv.errors import ShapeError
from fastconv.nn._arrays import Array, as_array, floating_dtype, namespace
from fastconv.ops._arrays import is_floating

# The outermost call under way: what layers keep within one belongs together, and the next one replaces it.
_outermost_call: ContextVar[object | None] = ContextVar("fastconv_nn_call", default=None)
_keeping: ContextVar[bool] = ContextVar("fastconv_nn_keeping", default=True)


@contextmanager
def no_grad() -> Iterator[None]:
    """Within it, layers keep nothing for ``backward``: for evaluation and prediction.

    Saves the memory of the activations and leaves every module in evaluation mode untouched by a call, so
    that several threads may use one model at once. Also works as a decorator.
    """
    token = _keeping.set(False)
    try:
        yield
    finally:
        _keeping.reset(token)


def is_grad_enabled() -> bool:
    """Whether layers keep what ``backward`` needs: true except within `no_grad`."""
    return _keeping.get()


class Parameter:
    """An array that is trained, and its gradient.

    Parameters
    ----------
    data : array_like of a floating-point type
        The value; an array is held, not copied.
    requires_grad : bool
        False freezes it: ``backward`` computes no gradient for it and optimizers pass over it.

    Attributes
    ----------
    data, grad
        The value, and the gradient or ``None``. ``backward`` adds to ``grad``.
    """

    def __init__(self, data: object, requires_grad: bool = True) -> None:
        self.data = as_array("Parameter", "data", data)
        floating_dtype("Parameter", self.data.dtype)
        self.grad: Array | None = None
        self.requires_grad = bool(requires_grad)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        shape: tuple[int, ...] = self.data.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the value."""
        dtype: np.dtype[Any] = self.data.dtype
        return dtype

    @property
    def size(self) -> int:
        """The number of elements."""
        size: int = self.data.size
        return size

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        ndim: int = self.data.ndim
        return ndim

    def accumulate(self, grad: Array) -> None:
        """Adds ``grad``, which the parameter may keep, to ``.grad`` in its own dtype; nothing if frozen."""
        if not self.requires_grad:
            return
        if grad.shape != self.shape:
            raise ShapeError(
                f"Parameter: the gradient has shape {grad.shape}, the parameter has shape {self.shape}"
            )
        if self.grad is None:
            self.grad = namespace(self.data).asarray(grad.astype(self.dtype, copy=False))
        else:
            self.grad += grad

    def zero_grad(self) -> None:
        """Sets ``.grad`` to ``None``."""
        self.grad = None

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        if namespace(self.data) is not np:
            raise TypeError("this Parameter is on a GPU; move its module first with .to('numpy')")
        if copy is False and dtype is not None and np.dtype(dtype) != self.dtype:
            raise ValueError(
                f"a Parameter of dtype {self.dtype} cannot become {np.dtype(dtype)} without a copy"
            )
        return np.array(self.data, dtype) if copy else self.data.astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        frozen = "" if self.requires_grad else ", requires_grad=False"
        return f"Parameter(shape={self.shape}, dtype={self.dtype}{frozen})"


class IncompatibleKeys(NamedTuple):
    """What `Module.load_state_dict` did not find in the dictionary, and what it found beyond its needs."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class HookHandle:
    """Takes a hook away again: by ``remove()``, or at the end of a ``with`` block."""

    def __init__(self, hooks: dict[int, Any], key: int) -> None:
        self._hooks, self._key = hooks, key

    def remove(self) -> None:
        """Ends the calls; once more does nothing."""
        self._hooks.pop(self._key, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Module:
    """Base of all layers. Subclasses write ``forward`` and ``backward``.

    Attributes that are `Parameter`, `Module` or registered buffers are found by themselves, in the order in
    which they were first assigned; their names make the keys of `state_dict`.

    Attributes
    ----------
    training : bool
        Set by `train` and `eval`; batch normalisation and dropout look at it.
    needs_input_grad : bool
        Set it to False on a model whose input is data: ``backward`` may then return ``None`` instead of the
        gradient of the input, which saves the first layer that work.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> class Scale(nn.Module):
    ...     def __init__(self, factor):
    ...         self.factor = nn.Parameter(np.array(factor))
    ...     def forward(self, x):
    ...         self.save_for_backward(x)
    ...         return x * self.factor.data
    ...     def backward(self, grad_output):
    ...         (x,) = self.saved_for_backward()
    ...         self.factor.accumulate(np.sum(grad_output * x))
    ...         return grad_output * self.factor.data
    >>> layer = Scale(3.0)
    >>> layer(np.array([1.0, 2.0]))
    array([3., 6.])
    >>> layer.backward(np.array([1.0, 1.0]))
    array([3., 3.])
    >>> layer.factor.grad
    array(3.)
    """

    # These stand in until an instance has its own, so that a subclass need not call super().__init__().
    training: bool = True
    needs_input_grad: bool = True
    _buffers: dict[str, bool] | None = None  # name -> whether state_dict holds it
    _hooks: dict[int, Callable[..., object]] | None = None
    _saved: tuple[object, list[tuple[Any, ...]]] | None = None
    _optional_keys: frozenset[str] = frozenset()  # what load_state_dict may miss, as files of old versions do

    # --- computing ------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _outermost_call.get() is not None:
            return self._call(*args, **kwargs)
        token = _outermost_call.set(object())
        try:
            return self._call(*args, **kwargs)
        finally:
            _outermost_call.reset(token)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        if self._hooks:
            for hook in tuple(self._hooks.values()):
                hook(self, args, output)
        return output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the layer; keeps what ``backward`` needs."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def backward(self, grad_output: Any) -> Any:
        """The gradient of the input from that of the output; adds to the parameters' ``.grad``."""
        raise NotImplementedError(f"{type(self).__name__} defines no backward()")

    def save_for_backward(self, *values: Any) -> None:
        """Keeps ``values`` for the `saved_for_backward` of this forward pass; nothing within `no_grad`.

        Arrays are held, not copied: do not change them before ``backward``.
        """
        if not _keeping.get():
            return
        call = _outermost_call.get()
        if self._saved is None or call is None or self._saved[0] is not call:
            self._saved = (call or object(), [])
        self._saved[1].append(values)

    def saved_for_backward(self) -> tuple[Any, ...]:
        """What the latest forward kept that no backward has taken yet; it is handed out once."""
        if self._saved is None or not self._saved[1]:
            raise RuntimeError(
                f"{type(self).__name__}.backward() needs a forward() before it: "
                "each forward serves one backward, and none within nn.no_grad()"
            )
        return self._saved[1].pop()

    def register_forward_hook(self, hook: Callable[[Module, tuple[Any, ...], Any], object]) -> HookHandle:
        """Calls ``hook(module, inputs, output)`` after each call of this module, to look on.

        What the hook returns is ignored.
        """
        if self._hooks is None:
            self._hooks = {}
        key = max(self._hooks, default=-1) + 1
        self._hooks[key] = hook
        return HookHandle(self._hooks, key)

    # --- looking around -------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Direct submodules with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """Direct submodules."""
        for _, child in self.named_children():
            yield child

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """The module and all below it, each once, with dotted names; its own name is ``prefix``."""
        seen: set[int] = set()
        pending = [(prefix, self)]
        while pending:
            name, module = pending.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield name, module
            pending.extend(
                (_join(name, key), child) for key, child in reversed(list(module.named_children()))
            )

    def modules(self) -> Iterator[Module]:
        """The module and all below it, each once."""
        for _, module in self.named_modules():
            yield module

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        """Parameters with dotted names, each once even where modules share it."""
        seen: set[int] = set()
        for path, module in self.named_modules(prefix) if recurse else [(prefix, self)]:
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield _join(path, name), value

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Parameters, each once."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Array]]:
        """Buffers (arrays that are state but not trained) with dotted names."""
        for path, module in self.named_modules(prefix) if recurse else [(prefix, self)]:
            for name in module._buffers or ():
                if (value := getattr(module, name)) is not None:
                    yield _join(path, name), value

    def buffers(self, recurse: bool = True) -> Iterator[Array]:
        """Buffers."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def register_buffer(self, name: str, value: Array | None, persistent: bool = True) -> None:
        """Makes ``value`` the attribute ``name`` that `state_dict` holds (if persistent) and `to` moves."""
        _check_name(self, name)
        self._buffers = {**(self._buffers or {}), name: persistent}
        setattr(self, name, value)

    def add_module(self, name: str, module: Module) -> None:
        """Makes ``module`` the submodule ``name``."""
        _check_name(self, name)
        setattr(self, name, check_module(type(self).__name__, name, module))

    def apply(self, function: Callable[[Module], object]) -> Self:
        """Calls ``function`` on every module, children before parents; returns ``self``."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # --- setting up -----------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Puts this module and all below it into training mode; returns ``self``."""
        if not isinstance(mode, bool):
            raise TypeError(f"{type(self).__name__}.train: mode must be a bool, got {mode!r}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Puts this module and all below it into evaluation mode; returns ``self``."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freezes (False) or thaws every parameter; returns ``self``."""
        for parameter in self.parameters():
            parameter.requires_grad = bool(requires_grad)
        return self

    def zero_grad(self) -> None:
        """Sets the ``.grad`` of every parameter to ``None``."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, target: DTypeLike) -> Self:
        """Moves parameters, gradients and buffers to an array library, or converts them to another dtype.

        Parameters
        ----------
        target : ``"numpy"``, ``"cupy"`` or a floating-point dtype
            Integer buffers keep their dtype.

        Returns
        -------
        ``self``

        Raises
        ------
        BackendUnavailableError
            ``"cupy"`` cannot be used here; the message says why.
        """
        convert = _conversion(type(self).__name__, target)
        for module in self.modules():
            module._saved = None
            for parameter in module.parameters(recurse=False):
                parameter.data = convert(parameter.data)
                if parameter.grad is not None:
                    parameter.grad = convert(parameter.grad)
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, convert(buffer))
        return self

    # --- saving and restoring -------------------------------------------------------------------------------

    def _named_state(self, prefix: str = "") -> Iterator[tuple[str, Array, bool]]:
        """Name, array and whether a dictionary may miss it, in PyTorch's order."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value.data, name in self._optional_keys
        for name, persistent in (self._buffers or {}).items():
            buffer = getattr(self, name)
            if persistent and buffer is not None:
                yield prefix + name, buffer, name in self._optional_keys
        for name, child in self.named_children():
            yield from child._named_state(f"{prefix}{name}.")

    def state_dict(self, *, prefix: str = "") -> dict[str, Array]:
        """Parameters and buffers by name, with PyTorch's names, order and layouts.

        The arrays are the live ones, which training goes on changing: copy them to keep a snapshot
        (``{name: array.copy() for name, array in model.state_dict().items()}``).
        """
        return {name: array for name, array, _ in self._named_state(prefix)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copies arrays into the parameters and buffers of the same names, casting between float widths.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            What `state_dict` returned; PyTorch's own dictionaries of CPU tensors serve as they are.
        strict : bool
            False allows missing and unexpected keys (not other shapes).

        Returns
        -------
        IncompatibleKeys
            The missing and the unexpected keys.

        Raises
        ------
        RuntimeError
            Keys or shapes do not fit; the message names every one, and nothing has been changed.
        TypeError
            Not a mapping, or an array whose kind of number the parameter cannot hold.
        """
        who = type(self).__name__
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"{who}.load_state_dict: state_dict must be a mapping, got {type(state_dict).__name__}"
            )
        missing: list[str] = []
        wrong: list[str] = []
        copies: list[tuple[Array, Array]] = []
        known: set[str] = set()
        for name, target, optional in self._named_state():
            known.add(name)
            if name not in state_dict:
                if not optional:
                    missing.append(name)
                continue
            value = namespace(target).asarray(state_dict[name])
            if value.shape != target.shape:
                wrong.append(
                    f"size mismatch for {name}: the state_dict has shape {value.shape}, "
                    f"the model has {target.shape}."
                )
            elif not np.can_cast(value.dtype, target.dtype, "same_kind"):
                raise TypeError(
                    f"{who}.load_state_dict: {name} has dtype {value.dtype}, expected {target.dtype}"
                )
            copies.append((target, value))
        unexpected = [name for name in state_dict if name not in known]
        if strict and unexpected:
            wrong.insert(0, f"Unexpected key(s) in state_dict: {_quoted(unexpected)}.")
        if strict and missing:
            wrong.insert(0, f"Missing key(s) in state_dict: {_quoted(missing)}.")
        if wrong:
            raise RuntimeError(f"Error(s) in loading state_dict for {who}:\n\t" + "\n\t".join(wrong))
        for target, value in copies:
            namespace(target).copyto(target, value, casting="same_kind")
        return IncompatibleKeys(missing, unexpected)

    def _generators(self) -> dict[str, np.random.Generator]:
        found = ((name, vars(module).get("rng")) for name, module in self.named_modules())
        return {name: generator for name, generator in found if isinstance(generator, np.random.Generator)}

    def rng_state(self) -> dict[str, dict[str, Any]]:
        """The state of every random generator below (dropout has one), by module name.

        Together with `state_dict` and the optimizer's state it makes an interrupted run continue exactly. It
        holds only dicts, lists, ints and strings: ``json.dumps`` stores it.
        """
        return {
            name: json.loads(json.dumps(generator.bit_generator.state, default=np.ndarray.tolist))
            for name, generator in self._generators().items()
        }

    def load_rng_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restores what `rng_state` returned, on a model of the same structure.

        Raises
        ------
        RuntimeError
            The names of the modules differ, or a generator is of another kind.
        """
        generators = self._generators()
        if generators.keys() != state.keys():
            raise RuntimeError(
                f"{type(self).__name__}.load_rng_state: the state is for the modules {sorted(state)}, "
                f"the model has generators in {sorted(generators)}"
            )
        for name, generator in generators.items():
            kind = type(generator.bit_generator).__name__
            if state[name].get("bit_generator") != kind:
                raise RuntimeError(
                    f"{type(self).__name__}.load_rng_state: {name!r} has a {kind} generator, "
                    f"the state is of {state[name].get('bit_generator')!r}"
                )
            generator.bit_generator.state = state[name]

    def __getstate__(self) -> dict[str, Any]:
        # Copies hold no activations.
        return {key: value for key, value in vars(self).items() if key != "_saved"}

    # --- printing -------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands between the parentheses when the module is printed."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        return "\n  ".join([f"{type(self).__name__}({extra}", *lines]) + "\n)"


Class = TypeVar("Class", bound=type)


def with_base_docs(cls: Class) -> Class:
    """Class decorator: appends what the base class says of parameters and shapes to the docstring."""
    if cls.__doc__ and cls.__base__ and cls.__base__.__doc__:  # there are none under python -OO
        cls.__doc__ += "\n\n" + inspect.cleandoc(cls.__base__.__doc__).partition("\n\n")[2]
    return cls


def backward_without_input(module: Module, grad_output: Any) -> None:
    """``module.backward(grad_output)`` for the sake of the parameters only."""
    needed = module.needs_input_grad
    module.needs_input_grad = False
    try:
        module.backward(grad_output)
    finally:
        module.needs_input_grad = needed


def check_module(who: str, name: str, value: object) -> Module:
    """``value`` if it is a module; otherwise a `TypeError` that knows the usual slip."""
    if isinstance(value, Module):
        return value
    if isinstance(value, type) and issubclass(value, Module):
        raise TypeError(
            f"{who}: {name} is the class {value.__name__}, expected an instance: write {value.__name__}(...)"
        )
    raise TypeError(f"{who}: {name} must be a Module, got {type(value).__name__}")


def _check_name(module: Module, name: str) -> None:
    if not name or "." in name:
        raise ValueError(
            f"{type(module).__name__}: a name must be a non-empty string without dots, got {name!r}"
        )
    if hasattr(type(module), name):
        raise ValueError(f"{type(module).__name__}: {name!r} is taken by an attribute of the class")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _conversion(who: str, target: object) -> Callable[[Array], Array]:
    if target == "numpy":
        return lambda array: array if namespace(array) is np else array.get()
    if target == "cupy":
        load("cupy")  # imports CuPy, or says why it cannot be used
        asarray: Callable[[Array], Array] = sys.modules["cupy"].asarray
        return asarray
    dtype = floating_dtype(f"{who}.to", target)  # type: ignore[arg-type]
    return lambda array: array.astype(dtype, copy=False) if is_floating(array.dtype) else array
