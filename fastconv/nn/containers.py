"""Modules made of modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from fastconv.errors import ShapeError
from fastconv.nn._arrays import Array, as_array, as_axis, as_gradient, namespace
from fastconv.nn.module import Module, backward_without_input, check_module


class Identity(Module):
    """Returns its input."""

    def forward(self, x: Any) -> Any:
        return x

    def backward(self, grad_output: Any) -> Any:
        return grad_output


class _Children(Module):
    """Submodules in order, named ``"0"``, ``"1"``, ... or by the keys of a mapping."""

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.add_module(name, module)
            return
        for index, item in enumerate(modules):
            self.add_module(str(index), cast("Module", item))  # add_module checks

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def _name(self, index: int) -> str:
        names = [name for name, _ in self.named_children()]
        try:
            return names[index]
        except IndexError:
            raise IndexError(
                f"{type(self).__name__}: index {index} is out of range for {len(names)} modules"
            ) from None


class Sequential(_Children):
    """Modules one after the other.

    Parameters
    ----------
    *modules : Module, or one mapping of names to modules

    Notes
    -----
    Supports ``len``, iteration, indexing (a slice gives another `Sequential` that shares the modules),
    assignment by index and `append`.
    """

    def forward(self, x: Any) -> Any:
        for module in self.children():
            x = module(x)
        return x

    def backward(self, grad_output: Any) -> Any:
        """Passes the gradient back through all modules, last first.

        Where the gradient of the input is not needed, it ends at the first module that is trained.
        """
        modules = list(self.children())
        if self.needs_input_grad:
            for module in reversed(modules):
                grad_output = module.backward(grad_output)
            return grad_output
        trained = [any(parameter.requires_grad for parameter in module.parameters()) for module in modules]
        if any(trained):
            first = trained.index(True)
            for module in reversed(modules[first + 1 :]):
                grad_output = module.backward(grad_output)
            backward_without_input(modules[first], grad_output)
        return None

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Sequential(dict(list(self.named_children())[index]))
        return getattr(self, self._name(index))

    def __setitem__(self, index: int, module: Module) -> None:
        self.add_module(self._name(index), module)

    def append(self, module: Module) -> Sequential:
        """Adds a module at the end; returns ``self``."""
        names = dict(self.named_children())
        index = len(names)
        while str(index) in names:  # slices and mappings leave gaps in the numbering
            index += 1
        self.add_module(str(index), module)
        return self


class Residual(Module):
    """``body(x) + shortcut(x)``.

    Parameters
    ----------
    body : Module
    shortcut : Module, optional
        ``None`` adds ``x`` itself.

    Raises
    ------
    ShapeError
        From ``forward``, where the two terms differ in shape.
    """

    def __init__(self, body: Module, shortcut: Module | None = None) -> None:
        self.body = check_module("Residual", "body", body)
        self.shortcut = None if shortcut is None else check_module("Residual", "shortcut", shortcut)

    def forward(self, x: Any) -> Any:
        x = _with_shape("Residual", x)
        branch = self.body(x)
        direct = x if self.shortcut is None else self.shortcut(x)
        if branch.shape != direct.shape:
            raise ShapeError(
                f"Residual: body gives shape {branch.shape}, "
                f"{'the input' if self.shortcut is None else 'shortcut'} has shape {direct.shape}"
            )
        return branch + direct

    def backward(self, grad_output: Any) -> Any:
        # Backward runs in the reverse order of forward, so that both may share a module.
        if not self.needs_input_grad:
            for part in (self.shortcut, self.body):
                if part is not None:
                    backward_without_input(part, grad_output)
            return None
        direct = grad_output if self.shortcut is None else self.shortcut.backward(grad_output)
        return self.body.backward(grad_output) + direct


class Concat(_Children):
    """The outputs of all branches, each applied to the same input, side by side along ``dim``.

    Parameters
    ----------
    *branches : Module, or one mapping of names to modules
        At least one. `Identity` passes the input itself.
    dim : int
        The axis to join, by default that of the channels of a batch (use ``dim=0`` for unbatched input).
    """

    def __init__(self, *branches: Module | Mapping[str, Module], dim: int = 1) -> None:
        super().__init__(*branches)
        if not len(self):
            raise ValueError("Concat: expected at least one branch")
        self.dim = dim

    def forward(self, x: Any) -> Any:
        x = _with_shape("Concat", x)
        outputs = [branch(x) for branch in self.children()]
        first = outputs[0].shape
        axis = as_axis("Concat", "dim", self.dim, len(first))
        for name, output in zip(dict(self.named_children()), outputs, strict=True):
            if output.ndim != len(first) or any(
                have != want
                for i, (have, want) in enumerate(zip(output.shape, first, strict=True))
                if i != axis
            ):
                raise ShapeError(
                    f"Concat: branch {name!r} gives shape {output.shape}, the first branch {first}; "
                    f"they may differ on axis {axis} only"
                )
        joined: Array = namespace(outputs[0]).concatenate(outputs, axis=axis)
        self.save_for_backward(axis, [output.shape[axis] for output in outputs], joined.shape)
        return joined

    def backward(self, grad_output: Any) -> Any:
        axis, sizes, shape = self.saved_for_backward()
        grad = as_gradient("Concat", grad_output, shape)
        total, end = None, shape[axis]
        for branch, size in zip(reversed(list(self.children())), reversed(sizes), strict=True):
            part = grad[(slice(None),) * axis + (slice(end - size, end),)]
            end -= size
            if self.needs_input_grad:
                part = branch.backward(part)
                total = part if total is None else total + part
            else:
                backward_without_input(branch, part)
        return total

    def extra_repr(self) -> str:
        return "" if self.dim == 1 else f"dim={self.dim}"


def _with_shape(who: str, x: Any) -> Any:
    """``x`` with the attributes of an array: lists become one, anything else is left to the parts."""
    return x if hasattr(x, "shape") else as_array(who, "input", x)
