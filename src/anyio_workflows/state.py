"""The store: a state that the steps of a run share, read and written as a value (P1).

The committed state is never changed in place: a write makes a new one that shares with the old
one whatever it does not touch. So reading takes no lock, an edit that fails leaves nothing to
undo, and a write costs what it writes. What goes in and what comes out is copied; objects that
cannot be copied, and those that are opened and closed, are kept by reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar, cast, overload

import anyio
import attrs

from ._state_turns import Turn, Turns
from ._state_values import (
    EDIT,
    MISSING,
    attributes,
    copied,
    copy_within,
    has_fields,
    look_up,
    made,
    split,
    with_part,
)
from ._state_views import ENDED, Edit, view_class
from .errors import ContextStateError, WorkflowError, nearest

__all__ = ["DictState", "StateStore", "StateStoreStatistics"]

StateT = TypeVar("StateT")


class DictState(MutableMapping[str, Any]):
    """Untyped state: a mapping whose keys also read, write and delete as attributes.

    A key that is also the name of a method is for item access only: `state["items"]`.
    """

    __slots__ = ("__weakref__", "_data")
    _data: dict[str, Any]

    def __init__(self, /, *args: Any, **values: Any) -> None:
        object.__setattr__(self, "_data", dict(*args, **values))

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._data[key] = value

    def __delitem__(self, key: str) -> None:
        del self._data[key]

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise self._unknown(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name):
            message = f"{name!r} is a method of the state; write `state[{name!r}] = ...` instead"
            raise AttributeError(message, name=name, obj=self)
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise self._unknown(name)
        del self[name]

    def _unknown(self, name: str) -> AttributeError:
        message = f"the state has no {name!r}, {nearest(name, map(str, self))}"
        return AttributeError(message, name=name, obj=self)

    def __repr__(self) -> str:
        return f"DictState({self._data!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return DictState, (dict(self.items()),)

    def __copy__(self) -> DictState:
        return DictState(self._data)

    def __deepcopy__(self, memo: dict[int, Any]) -> DictState:
        return DictState(copy_within(self._data, memo))


# --- Edits: views that copy what is touched ---------------------------------------------------


class _DictView(DictState):
    """Untyped state in an edit; copies an item when it is first asked for."""

    __slots__ = ("_base", "_over")
    _base: dict[str, Any]
    _over: bool

    def __init__(self, committed: DictState) -> None:
        super().__init__(committed._data)
        object.__setattr__(self, "_base", committed._data)
        object.__setattr__(self, "_over", False)

    def __getitem__(self, key: str) -> Any:
        value = self._data[key]
        if value is self._base.get(key, MISSING):
            self._data[key] = value = copied(value)
        return value

    def __copy__(self) -> DictState:
        return DictState(self)

    def __setitem__(self, key: str, value: Any) -> None:
        if self._over:
            raise ContextStateError(ENDED)
        self._data[key] = value

    def __delitem__(self, key: str) -> None:
        if self._over:
            raise ContextStateError(ENDED)
        del self._data[key]


def _open_view(committed: Any) -> Any:
    if isinstance(committed, DictState):
        return _DictView(committed)
    cls: Any = type(committed)
    base = attributes(committed)
    return made(view_class(cls), {EDIT: Edit(cls, base), **base})


def _result(view: Any) -> Any:
    """Return the state that an edit leaves behind; it shares what was not touched."""
    if isinstance(view, _DictView):
        return DictState(_kept(view._data, view._base))
    edit: Edit = object.__getattribute__(view, EDIT)
    edit.lazy = False
    try:
        return made(edit.state_type, _kept(attributes(view), edit.base))
    finally:
        edit.lazy = True


def _kept(contents: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if value is base.get(name, MISSING) else copied(value)
        for name, value in contents.items()
    }


def _close_view(view: Any) -> None:
    if isinstance(view, _DictView):
        object.__setattr__(view, "_over", True)
    else:
        object.__getattribute__(view, EDIT).over = True


# --- The store --------------------------------------------------------------------------------


@attrs.frozen
class StateStoreStatistics:
    """A store at one moment.

    Attributes:
        writing: Whether somebody is writing or editing.
        writers_waiting: How many wait for their turn to write.
    """

    writing: bool
    writers_waiting: int


class _EditBlock(AbstractAsyncContextManager[Any]):
    """One edit. No async generator: one that is left open would want to be closed in its task."""

    def __init__(self, store: StateStore[Any]) -> None:
        self._store = store

    async def __aenter__(self) -> Any:
        self._store._check()
        shared = self._store._shared
        self._turn = await shared.turns.take("edit_state()")
        try:
            self._view = _open_view(shared.state)
        except BaseException:
            shared.turns.give(self._turn)
            raise
        shared.turns.editor = anyio.get_current_task().id
        shared.edit = self
        return self._view

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._store._commit(self._turn, lambda: _result(self._view))
        finally:
            _close_view(self._view)
            self.give_up_turn()

    def give_up_turn(self) -> None:
        """Let the next one write; what this edit writes is lost from now on."""
        shared = self._store._shared
        if shared.edit is self:
            shared.edit = None
        shared.turns.give(self._turn)

    def is_allowed(self) -> bool:
        """Return whether who is in the edit may still use the store."""
        try:
            self._store._check()
        except WorkflowError:
            return False
        return True


@attrs.define(eq=False)
class _Shared:
    """What all who use a state have in common: the committed state, and whose turn it is."""

    state: Any
    turns: Turns = attrs.field(factory=Turns)
    edit: _EditBlock | None = None


class StateStore(Generic[StateT]):
    """What the steps of a run share: `ctx.store`.

    Whoever reads sees what was committed last, at once. Whoever writes waits for its turn, first
    come, first served. What goes in and what comes out is copied; clients, locks and other objects
    that cannot be copied are kept by reference. Two fields of a state share no object: each is a
    value of its own.

    Args:
        state_type: `DictState` (any keys, any values), or an attrs class or dataclass that can be
            made without arguments.

    Raises:
        ContextStateError: If `state_type` is no such class.
    """

    @overload
    def __init__(self: StateStore[DictState]) -> None: ...

    @overload
    def __init__(self, state_type: type[StateT]) -> None: ...

    def __init__(self, state_type: type[Any] = DictState) -> None:
        self._state_type = state_type
        self._shared = _Shared(self._blank())
        self._check: Callable[[], None] = lambda: None

    def guarded(self, check: Callable[[], None]) -> StateStore[StateT]:
        """Return the same store for somebody who may not always use it.

        Args:
            check: Called before everything that is done with the store; raises if it may not be.
        """
        store: StateStore[StateT] = StateStore.__new__(StateStore)
        store._state_type, store._shared, store._check = self._state_type, self._shared, check
        return store

    def drop_dead_edit(self) -> None:
        """Drop the edit that is going on, if who is in it may no longer use the store."""
        while (edit := self._shared.edit) is not None and not edit.is_allowed():
            edit.give_up_turn()

    def _commit(self, turn: Turn, make: Callable[[], Any]) -> None:
        self._check()
        if not self._shared.turns.holds(turn):
            raise ContextStateError("this edit comes too late, its run has ended; it is dropped")
        self._shared.state = make()

    def _blank(self) -> StateT:
        cls = self._state_type
        if not isinstance(cls, type) or not (cls is DictState or has_fields(cls)):
            raise ContextStateError(
                f"the type of a state is an attrs class or dataclass, not {cls!r}"
            )
        try:
            return cast(StateT, cls())
        except Exception as error:
            raise ContextStateError(
                f"{cls.__name__}() failed ({error}); the type of a state has defaults for all its "
                "fields"
            ) from error

    async def get(self, path: str, default: Any = MISSING) -> Any:
        """Return a copy of a part of the state.

        Args:
            path: Keys, attributes and indexes, joined by dots: `"user.addresses.0.city"`.
            default: What to return if there is no such part.

        Raises:
            ValueError: If there is no such part and no default, or the path has an empty part.
        """
        self._check()
        parts = split(path)
        try:
            return copied(look_up(self._shared.state, parts))
        except ValueError:
            if default is MISSING:
                raise
            return default

    async def set(self, path: str, value: Any) -> None:
        """Set a part of the state to a copy of `value`.

        Mappings that are missing on the way to it are made. What is set inside an object that
        cannot be copied is set in the object itself.

        Args:
            path: Keys, attributes and indexes, joined by dots.
            value: Its new value.

        Raises:
            ValueError: If the path leads to an unknown field, or has an empty part.
            ContextStateError: Inside an edit by the same task.
        """
        parts = split(path)
        await self._replace("set()", lambda: with_part(self._shared.state, parts, copied(value)))

    async def get_state(self) -> StateT:
        """Return a copy of the whole state."""
        self._check()
        return cast(StateT, copied(self._shared.state))

    async def set_state(self, state: StateT) -> None:
        """Replace the whole state by a copy of `state`.

        Raises:
            ContextStateError: If it is not of the state's type, or inside an edit by the same task.
        """
        new: Any = state
        if self._state_type is DictState and isinstance(new, Mapping):
            new = DictState(new)
        if not isinstance(new, self._state_type):
            raise ContextStateError(
                f"this state is a {self._state_type.__name__}, and set_state() got a "
                f"{type(new).__name__}"
            )
        await self._replace("set_state()", lambda: copied(new))

    async def clear(self) -> None:
        """Set everything back to how it was when the store was new.

        Raises:
            ContextStateError: Inside an edit by the same task.
        """
        await self._replace("clear()", self._blank)

    def edit_state(self) -> AbstractAsyncContextManager[StateT]:
        """Change the state in a block: `async with ctx.store.edit_state() as state:`.

        Others see all the changes once the block has ended, and none if it raises or is cancelled.
        Meanwhile they read the state as it was, and wait with what they want to write.

        Raises:
            ContextStateError: On entering, inside an edit by the same task.
        """
        return _EditBlock(self)

    async def _replace(self, what: str, make: Callable[[], Any]) -> None:
        self._check()
        turns = self._shared.turns
        turn = await turns.take(what)
        try:
            self._commit(turn, make)
        finally:
            turns.give(turn)

    def snapshot(self) -> StateT:
        """Return the committed state itself, which nobody may change."""
        return cast(StateT, self._shared.state)

    def restore(self, state: StateT) -> None:
        """Make `state` the committed state, as it is and at once."""
        self._shared.state = state

    def statistics(self) -> StateStoreStatistics:
        """Return who is writing and waiting."""
        writing, waiting = self._shared.turns.statistics()
        return StateStoreStatistics(writing, waiting)

    def __repr__(self) -> str:
        now = self.statistics()
        doing = f"writing, {now.writers_waiting} waiting" if now.writing else "idle"
        return f"<StateStore of {self._state_type.__name__}: {doing}>"
