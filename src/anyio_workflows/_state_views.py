"""Typed state in an edit: a view of it that copies a field when it is first touched (P1)."""

from __future__ import annotations

import functools
from typing import Any

import attrs

from ._state_values import EDIT, MISSING, attributes, copied, made
from .errors import ContextStateError

__all__ = ["ENDED", "Edit", "View", "view_class"]

ENDED = (
    "this edit has ended, and what is written to its state now is lost; write inside "
    "`async with store.edit_state() as state:`"
)


@attrs.define(eq=False)
class Edit:
    """What a view of typed state knows.

    Attributes:
        state_type: The class that it passes for.
        base: What the committed state stores.
        lazy: Whether what is read gets copied; off while the view itself is looked into.
        over: Whether the edit has ended.
    """

    state_type: type
    base: dict[str, Any]
    lazy: bool = True
    over: bool = False


class View:
    """Typed state in an edit; copies a field when it is first asked for."""

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Do not tell the state type: it has no new subclass that anybody wants to know of."""

    def __getattribute__(self, name: str) -> Any:
        edit: Edit = object.__getattribute__(self, EDIT)
        if name == "__class__":
            return edit.state_type
        if name == "__dict__" and edit.lazy:
            for field in edit.base:
                getattr(self, field, None)
        value = super().__getattribute__(name)
        if edit.lazy and value is edit.base.get(name, MISSING):
            value = copied(value)
            object.__setattr__(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self._check_open()
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._check_open()
        super().__delattr__(name)

    def _check_open(self) -> None:
        if object.__getattribute__(self, EDIT).over:
            raise ContextStateError(ENDED)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return made(self.__class__, attributes(self)).__reduce_ex__(protocol)


@functools.lru_cache(maxsize=64)
def view_class(state_type: type) -> type:
    body = {"__slots__": (EDIT,), "__module__": state_type.__module__}
    return type(state_type.__name__, (View, state_type), body)
