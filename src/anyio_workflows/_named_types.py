"""The types that a workflow class declares or names in its code, for its snapshots (P4).

A step that calls `wait_for_event(Approval)` says so in its code only, and a snapshot of it has to
know `Approval`. So the names in the code of the methods are looked up where Python would look them
up: in the globals, the closure and the defaults of the method, in the modules and classes that these
name (`events.Approval`), and in the workflow class itself (`self.Approval`). Nothing is imported, and
only dictionaries are read: no property and no `__getattr__` of anything is executed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .events import Event

__all__ = ["declared_types", "named_event_classes"]


def declared_types(workflow_class: type) -> list[type]:
    """Return what the `types` attributes of a workflow class and its bases list."""
    lists = [vars(cls).get("types", ()) for cls in workflow_class.__mro__]
    return list(dict.fromkeys(one for types in lists for one in types))


def named_event_classes(workflow_class: type, free_steps: Iterable[Any] = ()) -> list[type[Event]]:
    """Return the event classes that the code of a workflow class and its bases names.

    Args:
        workflow_class: The class; all its methods count, not only the steps.
        free_steps: Functions that are steps of it, though no attributes of the class.
    """
    members = [value for space in _namespaces(workflow_class) for value in space.values()]
    found: dict[type[Event], None] = {}
    for function in _functions([*members, *free_steps]):
        names = _names_in(function.__code__)
        ahead = [workflow_class, *_values_of(function, names)]
        seen: set[int] = set()
        while ahead:
            value = ahead.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if issubclass(type(value), type) and issubclass(value, Event):
                found[value] = None
            for space in _namespaces(value):
                ahead += [space[name] for name in names & space.keys()]
    return list(found)


def _namespaces(value: Any) -> list[Mapping[str, Any]]:
    """Return the dictionaries in which an attribute of a module or class is looked up."""
    if issubclass(type(value), ModuleType):  # `isinstance` would ask a proxy for its `__class__`
        return [object.__getattribute__(value, "__dict__")]
    if issubclass(type(value), type):
        return [vars(cls) for cls in type.__getattribute__(value, "__mro__")]
    return []


def _functions(members: list[Any]) -> Iterator[FunctionType]:
    """Yield the functions in some members of a class, with those that they wrap."""
    ahead, seen = members, set()
    while ahead:
        value = ahead.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        cls = type(value)
        if cls is FunctionType:
            yield value
            ahead += [vars(value).get("__wrapped__"), *_cells(value)]
        elif cls in (staticmethod, classmethod, MethodType):
            ahead.append(value.__func__)
        elif cls is property:
            ahead += [value.fget, value.fset, value.fdel]
        elif cls in (functools.partial, functools.partialmethod, functools.cached_property):
            ahead.append(value.func)


def _cells(function: FunctionType) -> list[Any]:
    """Return the values in the closure of a function."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    return found


def _values_of(function: FunctionType, names: set[str]) -> list[Any]:
    """Return the values that the names in the code of a function stand for."""
    space = function.__globals__
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*(space[name] for name in names & space.keys()), *_cells(function), *defaults]


def _names_in(code: CodeType) -> set[str]:
    """Return the names in some code, and in that of the functions and classes inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if type(constant) is CodeType:
            names |= _names_in(constant)
    return names
