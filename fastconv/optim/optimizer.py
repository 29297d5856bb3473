"""`Optimizer`: parameter groups, state, and the loop that all update rules share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from fastconv.errors import ShapeError
from fastconv.nn._arrays import Array, as_real, namespace
from fastconv.nn.module import Parameter

# Elements updated at a time. With their state they stay in the cache through all steps of a rule, and the
# temporaries of a rule written as plain expressions are small.
_CHUNK = 1 << 15


class Optimizer:
    """Base of all optimizers. Subclasses write `_check`, `_slots`, `_update` and where needed `_numbers`.

    Parameters
    ----------
    params : iterable of Parameter, or of dicts
        A dict is a group, ``{"params": [...], "lr": ...}``, with options of its own: a smaller learning rate
        for pretrained layers, say.
    defaults : dict
        The options of a group that names no others.

    Attributes
    ----------
    param_groups : list of dict
        The groups with all their options; a changed option takes effect at the next step.
    state : dict
        For each `Parameter` that has been updated its number of steps and its arrays.

    Raises
    ------
    TypeError, ValueError
        No parameters, something that is none, one parameter twice, an option unknown or out of range.
    """

    _known_slots: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, params: Iterable[Parameter] | Iterable[dict[str, Any]], defaults: Mapping[str, Any]
    ) -> None:
        who = type(self).__name__
        if isinstance(params, Parameter | np.ndarray | Mapping):
            raise TypeError(
                f"{who}: params must be an iterable of Parameter or of dicts, got {type(params).__name__}"
            )
        self.defaults = dict(defaults)
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Parameter, dict[str, Any]] = {}
        items: list[Any] = list(params)
        if not items:
            raise ValueError(f"{who}: params is empty")
        if not any(isinstance(item, Mapping) for item in items):
            items = [{"params": items}]
        for group in items:
            self.add_param_group(group)

    # --- what a rule defines --------------------------------------------------------------------------------

    def _check(self, group: dict[str, Any]) -> None:
        """Raises for options out of range."""
        raise NotImplementedError

    def _slots(self, group: dict[str, Any]) -> dict[str, float]:
        """The arrays that the options of ``group`` need beside each parameter, with their first value."""
        raise NotImplementedError

    def _numbers(self, step: int, group: dict[str, Any]) -> dict[str, float]:  # noqa: ARG002
        """What `_update` needs to know of the ``step``-th step of a parameter, counted from 1."""
        return {}

    def _update(
        self, p: Array, grad: Array, slots: dict[str, Array], group: dict[str, Any], numbers: dict[str, float]
    ) -> None:
        """Updates ``p`` and ``slots`` in place, never ``grad``; all are corresponding parts of the whole."""
        raise NotImplementedError

    # --- what all rules share -------------------------------------------------------------------------------

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds a group, for example of layers thawed during training."""
        who = type(self).__name__
        if not _is_group(group):
            raise TypeError(
                f"{who}: a parameter group must be a dict with the key 'params', got {type(group).__name__}"
            )
        params = [group["params"]] if isinstance(group["params"], Parameter) else list(group["params"])
        for item in params:
            if not isinstance(item, Parameter):
                raise TypeError(f"{who}: can optimize Parameter only, got {type(item).__name__}")
        everything = [*self._parameters(), *params]
        if len(set(everything)) < len(everything):
            raise ValueError(f"{who}: a parameter appears more than once")
        options = {name: value for name, value in group.items() if name != "params"}
        self._refuse_unknown(who, options)
        complete = {"params": params, **self.defaults, **options}
        self._check(complete)
        self.param_groups.append(complete)

    def zero_grad(self) -> None:
        """Sets the ``.grad`` of every parameter to ``None``."""
        for parameter in self._parameters():
            parameter.grad = None

    def step(self) -> None:
        """Updates every parameter that has a gradient and is not frozen.

        Raises
        ------
        ShapeError
            A gradient is not of its parameter's shape.
        """
        for group in self.param_groups:
            # A NumPy number among the options would turn float32 expressions into float64 ones.
            plain = {name: v.item() if isinstance(v, np.generic) else v for name, v in group.items()}
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.requires_grad:
                    self._step_one(parameter, parameter.grad, plain)

    def _step_one(self, parameter: Parameter, grad: Array, group: dict[str, Any]) -> None:
        if grad.shape != parameter.shape:
            raise ShapeError(
                f"{type(self).__name__}: the gradient has shape {grad.shape}, "
                f"the parameter has shape {parameter.shape}"
            )
        state = self.state.setdefault(parameter, {"step": 0})
        wanted = self._slots(group)
        missing = wanted.keys() - state.keys()  # at the first step, and where an option has been switched on
        for name in missing:
            state[name] = namespace(parameter.data).full_like(parameter.data, wanted[name], order="C")
        state["step"] += 1
        numbers = {"fresh": bool(missing), **self._numbers(state["step"], group)}
        slots = {name: state[name] for name in wanted}
        for p, g, part in _chunks(parameter.data, grad, slots):
            self._update(p, -g if group["maximize"] else g, part, group, numbers)

    def state_dict(self) -> dict[str, Any]:
        """The state as one flat dict of arrays and numbers, so that a checkpoint holds it without pickle.

        Returns
        -------
        dict
            ``"groups.<g>.<option>"``, with ``"groups.<g>.params"`` the numbers of the group's parameters, and
            ``"state.<parameter number>.<name>"``. The arrays are the live ones: copy them to keep a snapshot.
        """
        flat: dict[str, Any] = {}
        first = 0
        for g, group in enumerate(self.param_groups):
            count = len(group["params"])
            flat[f"groups.{g}.params"] = np.arange(first, first + count, dtype=np.int64)
            first += count
            for option, value in group.items():
                if option != "params":
                    flat[f"groups.{g}.{option}"] = np.array(value) if isinstance(value, tuple) else value
        for number, parameter in enumerate(self._parameters()):
            for name, value in self.state.get(parameter, {}).items():
                flat[f"state.{number}.{name}"] = value
        return flat

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores a copy of what `state_dict` returned; numbers may come back as arrays without dimensions.

        Raises
        ------
        ValueError
            Groups, parameters, names or shapes differ from this optimizer's; nothing has been changed.
        """
        who = f"{type(self).__name__}.load_state_dict"
        parameters = list(self._parameters())
        tables: dict[str, list[dict[str, Any]]] = {
            "groups": [{} for _ in self.param_groups],
            "state": [{} for _ in parameters],
        }
        for key, value in state_dict.items():
            kind, _, rest = key.partition(".")
            index, _, name = rest.partition(".")
            if kind not in tables or not name or not index.isdecimal():
                raise ValueError(f"{who}: unknown key {key!r}")
            if int(index) >= len(tables[kind]):
                there = "parameter groups" if kind == "groups" else "parameters"
                raise ValueError(f"{who}: {key!r}, but there are {len(tables[kind])} {there} here")
            tables[kind][int(index)][name] = value
        groups = [
            self._restored_options(f"{who}: group {g}", saved, own)
            for g, (saved, own) in enumerate(zip(tables["groups"], self.param_groups, strict=True))
        ]
        states = {
            parameter: self._restored_state(f"{who}: parameter {number}", saved, parameter)
            for number, (saved, parameter) in enumerate(zip(tables["state"], parameters, strict=True))
            if saved
        }
        for own, options in zip(self.param_groups, groups, strict=True):
            own.update(options)
        self.state = states

    def _restored_options(self, who: str, saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        options = dict(saved)
        count = len(options.pop("params", ()))
        if count != len(own["params"]):
            raise ValueError(f"{who} has {count} parameters in the state, {len(own['params'])} here")
        self._refuse_unknown(who, options)
        for name, value in options.items():
            plain = np.asarray(value).tolist()
            options[name] = tuple(plain) if isinstance(plain, list) else plain
        self._check({**own, **options})
        return options

    def _restored_state(self, who: str, saved: dict[str, Any], parameter: Parameter) -> dict[str, Any]:
        if unknown := saved.keys() - {"step", *self._known_slots}:
            raise ValueError(f"{who}: unknown name {min(unknown)!r}")
        state: dict[str, Any] = {"step": int(saved.get("step", 0))}
        for name in saved.keys() - {"step"}:
            value = namespace(parameter.data).array(saved[name], dtype=parameter.dtype, order="C")
            if value.shape != parameter.shape:
                raise ValueError(
                    f"{who}: {name} has shape {value.shape}, the parameter has {parameter.shape}"
                )
            state[name] = value
        return state

    def _refuse_unknown(self, who: str, options: Mapping[str, Any]) -> None:
        # "initial_lr" is where schedules remember the learning rate they started from.
        if unknown := options.keys() - self.defaults.keys() - {"initial_lr"}:
            raise ValueError(
                f"{who}: unknown option {min(unknown)!r}, expected some of {', '.join(self.defaults)}"
            )

    def _parameters(self) -> Iterator[Parameter]:
        for group in self.param_groups:
            yield from group["params"]

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for g, group in enumerate(self.param_groups):
            lines.append(f"  group {g} of {len(group['params'])} parameters")
            lines += [f"    {name}: {value}" for name, value in group.items() if name != "params"]
        return "\n".join([*lines, ")"])


def _is_group(item: object) -> bool:
    return isinstance(item, Mapping) and "params" in item


def check_options(who: str, group: dict[str, Any], **bounds: tuple[float, float]) -> None:
    """Raises unless each option named is a finite number within ``(low, high)``, both included."""
    for name, (low, high) in bounds.items():
        as_real(who, name, group[name], low, high)


def _chunks(
    p: Array, grad: Array, slots: dict[str, Array]
) -> Iterator[tuple[Array, Array, dict[str, Array]]]:
    """Corresponding parts of the arrays; the whole at once where one is not contiguous."""
    if p.size <= _CHUNK or not all(a.flags.c_contiguous for a in (p, grad, *slots.values())):
        yield p, grad, slots
        return
    p, grad = p.reshape(-1), grad.reshape(-1)
    slots = {name: array.reshape(-1) for name, array in slots.items()}
    for start in range(0, p.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        yield p[part], grad[part], {name: array[part] for name, array in slots.items()}
