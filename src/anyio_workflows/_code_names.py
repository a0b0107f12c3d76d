"""The types that a workflow class declares in `types`, and the event classes that its code names (P4)."""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import attrs

from .events import Event, InputRequiredEvent
from .steps import StepConfig

# That a step calls `wait_for_event(Approval)` can be seen in its code only: a snapshot of the wait has to know
# `Approval`, and a picture of the workflow shows it. So the names in the code of the methods are looked up
# where Python would look them up: in the globals, the closure and the defaults of the method, in the modules
# and classes that these name (`events.Approval`), and in the workflow class itself (`self.Approval`). Nothing
# is imported, and only dictionaries are read, so that no property and no `__getattr__` is executed.


def declared_types(workflow_class: type) -> list[type]:
    """Return the types in the `types` attributes of a workflow class and its bases."""
    lists = [vars(cls).get("types", ()) for cls in workflow_class.__mro__]
    return list(dict.fromkeys(one for types in lists for one in types))


def named_event_classes(workflow_class: type, free_steps: Iterable[Any] = ()) -> list[type[Event]]:
    """Return the event classes that the code of a workflow class and its bases names.

    Args:
        workflow_class: The class. All its methods count, not only steps.
        free_steps: Functions that are steps of the workflow but not attributes of the class.
    """
    members = [value for space in _namespaces(workflow_class) for value in space.values()]
    found: dict[type[Event], None] = {}
    for function in _functions([*members, *free_steps]):
        names = _names_in(function.__code__)
        values = [workflow_class, *_values_of(function, names), *_closure(function).values()]
        found |= dict.fromkeys(_event_classes([*values, *_defaults(function)], names))
    return list(found)


@attrs.frozen
class WaitsInCode:
    """The event classes that a step names where it calls `ctx.wait_for_event()`.

    Attributes:
        awaited: The types that it waits for.
        asked: The questions that it passes along, `InputRequiredEvent`s.
    """

    awaited: tuple[type[Event], ...] = ()
    asked: tuple[type[Event], ...] = ()


def waits_in_code(function: Callable[..., Any], workflow_class: type) -> WaitsInCode:
    """Find what a step waits for in its body, as far as its code shows.

    Of each call, only the arguments count: what else the code names may be for anything. The code of a
    step is also that of the methods of the workflow, and of the functions of its module, that it names.

    Args:
        function: The step function.
        workflow_class: The class where methods are looked up.
    """
    awaited: dict[type[Event], None] = {}
    asked: dict[type[Event], None] = {}
    ahead: list[Any] = [function]
    seen: set[FunctionType] = set()
    while ahead:
        for body in _functions([ahead.pop()]):
            if body in seen:
                continue
            seen.add(body)
            for names in _arguments_of_waits(body.__code__):
                classes = _classes_in_order(body, workflow_class, names)
                questions = [cls for cls in classes if issubclass(cls, InputRequiredEvent)]
                others = [cls for cls in classes if cls not in questions]
                asked |= dict.fromkeys(questions)
                awaited |= dict.fromkeys(others[:1])
            ahead += _helpers(body, workflow_class)
    return WaitsInCode(tuple(awaited), tuple(asked))


def _helpers(function: FunctionType, workflow_class: type) -> Iterator[FunctionType]:
    """Yield the methods of the workflow, and the functions of its module, that a function names."""
    names = _names_in(function.__code__)
    for space in _namespaces(workflow_class):
        members = [space[name] for name in names & space.keys()]
        yield from (one for one in _functions(members) if StepConfig.of(one) is None)
    for value in _values_of(function, names):
        if type(value) is FunctionType and value.__module__ == function.__module__:
            yield value


def _arguments_of_waits(code: CodeType) -> Iterator[list[str]]:
    """Yield, for each call of `wait_for_event()`, the names that are loaded from there to the `await`."""
    if "wait_for_event" in code.co_names:
        names: list[str] | None = None
        for instruction in dis.get_instructions(code):
            name, operation = instruction.argval, instruction.opname
            if operation == "GET_AWAITABLE":
                yield from filter(None, [names])
                names = None
            elif type(name) is str and operation.startswith("LOAD_") and operation != "LOAD_CONST":
                if name == "wait_for_event":
                    yield from filter(None, [names])
                    names = []
                elif names is not None:
                    names.append(name)
        yield from filter(None, [names])
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from _arguments_of_waits(constant)


def _classes_in_order(
    function: FunctionType, workflow_class: type, names: list[str]
) -> list[type[Event]]:
    """Return the event classes that some names stand for, in the order of the names."""
    found: dict[type[Event], None] = {}
    for end in range(1, len(names) + 1):
        known = set(names[:end])
        values = [workflow_class, *_values_of(function, known)]
        found |= dict.fromkeys(_event_classes(values, known))
    return list(found)


def _event_classes(values: list[Any], names: Collection[str]) -> Iterator[type[Event]]:
    """Yield the event classes among some values, and those that the names lead to from there."""
    seen: set[int] = set()
    while values:
        value = values.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if issubclass(type(value), type) and issubclass(value, Event):
            yield value
        for space in _namespaces(value):
            values += [space[name] for name in names if name in space]


def _namespaces(value: Any) -> list[Mapping[str, Any]]:
    """Return the dictionaries in which an attribute of a module or class is looked up."""
    if issubclass(type(value), ModuleType):  # `isinstance` would ask a proxy for its `__class__`
        return [object.__getattribute__(value, "__dict__")]
    if issubclass(type(value), type):
        return [vars(cls) for cls in type.__getattribute__(value, "__mro__")]
    return []


def _functions(members: list[Any]) -> Iterator[FunctionType]:
    """Yield the functions among the members of a class, and those that they wrap."""
    ahead, seen = members, set()
    while ahead:
        value = ahead.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        cls = type(value)
        if cls is FunctionType:
            yield value
            ahead += [vars(value).get("__wrapped__"), *_closure(value).values()]
        elif cls in (staticmethod, classmethod, MethodType):
            ahead.append(value.__func__)
        elif cls is property:
            ahead += [value.fget, value.fset, value.fdel]
        elif cls in (functools.partial, functools.partialmethod, functools.cached_property):
            ahead.append(value.func)


def _closure(function: FunctionType) -> dict[str, Any]:
    """Return the variables in the closure of a function, with their values."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # the variable is not assigned yet
            found[name] = cell.cell_contents
    return found


def _values_of(function: FunctionType, names: Collection[str]) -> list[Any]:
    """Return the values that the names in the code of a function stand for."""
    spaces = (_closure(function), function.__globals__)
    return [space[name] for name in names for space in spaces if name in space]


def _defaults(function: FunctionType) -> list[Any]:
    return [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _names_in(code: CodeType) -> set[str]:
    """Return the names in some code, and in that of the functions and classes inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if type(constant) is CodeType:
            names |= _names_in(constant)
    return names
