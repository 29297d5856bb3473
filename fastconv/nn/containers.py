"""Modules made of modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from fastconv.errors import ShapeError
from fastconv.nn._arrays import Array, as_array, as_axis, as_gradient, namespace
from fastconv.nn.module import Module, check_module


class Identity(Module):
    """Returns its input."""

    def forward(self, x: Any) -> Any:
        """``x`` itself."""
        return x

    def backward(self, grad_output: Any) -> Any:
        """The gradient of the input."""
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
        """Passes ``x`` through all modules."""
        for module in self.children():
            x = module(x)
        return x

    def backward(self, grad_output: Any) -> Any:
        """Passes the gradient back through all modules, last first."""
        for module in reversed(list(self.children())):
            grad_output = module.backward(grad_output)
        return grad_output

    # Only the first module sees the input, so the wish not to have its gradient is passed on to it.
    @property
    def needs_input_grad(self) -> bool:
        return next((module.needs_input_grad for module in self.children()), True)

    @needs_input_grad.setter
    def needs_input_grad(self, value: bool) -> None:
        for module in list(self.children())[:1]:
            module.needs_input_grad = value

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
        """The sum of body and shortcut."""
        branch = self.body(x)
        direct = as_array("Residual", "input", x) if self.shortcut is None else self.shortcut(x)
        if branch.shape != direct.shape:
            raise ShapeError(
                f"Residual: body gives shape {branch.shape}, "
                f"{'the input' if self.shortcut is None else 'shortcut'} has shape {direct.shape}"
            )
        return branch + direct

    def backward(self, grad_output: Any) -> Any:
        """The gradient of the input."""
        # Backward runs in the reverse order of forward, so that both may share a module.
        direct = grad_output if self.shortcut is None else self.shortcut.backward(grad_output)
        branch = self.body.backward(grad_output)
        return None if branch is None or direct is None else branch + direct

    @property
    def needs_input_grad(self) -> bool:
        return self.body.needs_input_grad

    @needs_input_grad.setter
    def needs_input_grad(self, value: bool) -> None:
        self.body.needs_input_grad = value
        if self.shortcut is not None:
            self.shortcut.needs_input_grad = value


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
        """The joined outputs of the branches."""
        outputs = [as_array("Concat", f"branch {name!r}", branch(x)) for name, branch in self.named_children()]
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
        """The gradient of the input."""
        axis, sizes, shape = self.saved_for_backward()
        grad = as_gradient("Concat", grad_output, shape)
        total, end = None, shape[axis]
        skipped = False
        for branch, size in zip(reversed(list(self.children())), reversed(sizes), strict=True):
            part = branch.backward(grad[(slice(None),) * axis + (slice(end - size, end),)])
            end -= size
            skipped = skipped or part is None
            total = part if total is None or part is None else total + part
        return None if skipped else total

    @property
    def needs_input_grad(self) -> bool:
        return all(branch.needs_input_grad for branch in self.children())

    @needs_input_grad.setter
    def needs_input_grad(self, value: bool) -> None:
        for branch in self.children():
            branch.needs_input_grad = value

    def extra_repr(self) -> str:
        """The arguments."""
        return "" if self.dim == 1 else f"dim={self.dim}"
