"""The store: a state that the steps of a run share, by reference (P1).

A value is handed over as it is, as a dict would: what is changed inside it is changed for everybody.
The state itself, the object that holds the values, never leaves the store: those who ask get a
shallow copy, so that assigning to a copy changes nothing until it is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar, cast, overload

import attrs

from ._state_values import (
    MISSING,
    field_names,
    get_path,
    has_fields,
    set_part,
    set_path,
    shallow_copy,
    split,
)
from ._write_lock import WriteLock, Writer
from .errors import ContextStateError, namesakes, nearest

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


@attrs.define(eq=False)
class _Shared:
    """What all who use a state have in common."""

    state: Any
    lock: WriteLock = attrs.field(factory=WriteLock)


class _Edit(AbstractAsyncContextManager[Any]):
    """One edit. No async generator: one that is left open would want to be closed in its task."""

    __slots__ = ("_state", "_store", "_writer")

    def __init__(self, store: StateStore[Any]) -> None:
        self._store = store

    async def __aenter__(self) -> Any:
        store = self._store
        store._check()
        lock = store._shared.lock
        writer = self._writer = Writer(store._check)
        if lock.holder is None:
            lock.holder = writer
        else:
            await lock.acquire(writer, "edit_state()")
        try:
            self._state = shallow_copy(store._shared.state)
        except BaseException:
            lock.release(writer)
            raise
        return self._state

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        shared = self._store._shared
        try:
            if kind is None:
                self._store._check()
                if shared.lock.holder is not self._writer:
                    raise ContextStateError(
                        "this edit comes too late, its event loop has ended; it is dropped"
                    )
                # Another copy: what is still written to the edit's own is for nobody.
                shared.state = shallow_copy(self._state)
        finally:
            shared.lock.release(self._writer)


class StateStore(Generic[StateT]):
    """What the steps of a run share: `ctx.store`.

    Values are shared, as in a dict: `get()` returns the very object that `set()` was given. Change a
    list, a chat memory or a client where you like: everybody who has it sees the change at once. Only
    the state as a whole is copied, and not its values: by `get_state()`, `set_state()`, and for the
    block of `edit_state()`.

    Writers wait for their turn, first come, first served; readers do not wait. A write that need
    not wait is no checkpoint.

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

    def _guarded(self, check: Callable[[], None]) -> StateStore[StateT]:
        """Return the same store for somebody who may not always use it.

        Args:
            check: Called before everything that is done with the store; raises if it may not be.
        """
        store: StateStore[StateT] = StateStore.__new__(StateStore)
        store._state_type, store._shared, store._check = self._state_type, self._shared, check
        return store

    def _drop_dead_writers(self) -> None:
        """Drop the edit in progress, and the waits, of those who may no longer use the store."""
        self._shared.lock.drop_dead()

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
        """Return a part of the state: the value itself, not a copy.

        Args:
            path: Keys, attributes and indexes, joined by dots: `"user.addresses.0.city"`.
            default: What to return if there is no such part.

        Raises:
            ValueError: If there is no such part and no default, or the path has an empty part.
        """
        self._check()
        parts = split(path)
        try:
            return get_path(self._shared.state, parts)
        except ValueError:
            if default is MISSING:
                raise
            return default

    async def set(self, path: str, value: Any) -> None:
        """Set a part of the state to `value` itself, not to a copy.

        A longer path reaches into the values: `set("user.name", "ada")` sets the name of the very
        object that `get("user")` returns. Mappings that are missing on the way are made. A tuple or
        a frozen object on the way is replaced by a changed copy of it.

        Args:
            path: Keys, attributes and indexes, joined by dots.
            value: Its new value.

        Raises:
            ValueError: If the path leads to an unknown field, beyond the end of a list, or into
                something that cannot be changed, or if it has an empty part.
            ContextStateError: Inside an edit by the same task.
        """
        parts = split(path)
        await self._write("set()", lambda state: set_path(state, parts, value))

    async def get_state(self) -> StateT:
        """Return a shallow copy of the state: an object of your own with the values themselves."""
        self._check()
        return cast(StateT, shallow_copy(self._shared.state))

    async def set_state(self, state: StateT) -> None:
        """Replace the state by a shallow copy of `state`.

        If `state` is of a base class of the state's type, as in a step with `Context[Base]` where
        another one has `Context[Derived]`, its fields are set and the others stay as they are.

        Raises:
            ContextStateError: If it is of another type, or inside an edit by the same task.
        """
        wanted, given = self._state_type, type(state)
        if wanted is DictState and isinstance(state, Mapping):
            new: Any = DictState(state)
            await self._write("set_state()", lambda _: new)
        elif isinstance(state, wanted):
            new = shallow_copy(state)
            await self._write("set_state()", lambda _: new)
        elif has_fields(given) and issubclass(wanted, given):
            fields = {name: getattr(state, name) for name in field_names(given)}
            await self._write("set_state()", lambda old: _merged(old, fields))
        else:
            remark = namesakes([given], [wanted])
            raise ContextStateError(
                f"this state is a {wanted.__name__}, and set_state() got a {given.__name__}"
                f"{remark and f'; {remark}'}"
            )

    async def clear(self) -> None:
        """Set everything back to how it was when the store was new.

        Raises:
            ContextStateError: Inside an edit by the same task.
        """
        await self._write("clear()", lambda _: self._blank())

    def edit_state(self) -> AbstractAsyncContextManager[StateT]:
        """Change the state in a block; nobody else writes meanwhile.

        The block gets a shallow copy of the state. What it *assigns* is committed when it ends, all at
        once, and dropped if it raises or is cancelled. What it changes *inside* a value is changed at
        once, for everybody, and stays:

            async with ctx.store.edit_state() as state:
                state.count += 1  # seen by others when the block has ended; undone if it raises
                state.pages = [*state.pages, page]  # likewise
                state.pages.append(page)  # seen at once, stays

        Raises:
            ContextStateError: On entering, inside an edit by the same task.
        """
        return _Edit(self)

    async def _write(self, what: str, change: Callable[[Any], Any]) -> None:
        """Commit what `change` makes of the state, when the turn has come."""
        self._check()
        shared = self._shared
        if shared.lock.holder is None:  # and will be until this is done: nothing here waits
            shared.state = change(shared.state)
            return
        writer = Writer(self._check)
        await shared.lock.acquire(writer, what)
        try:
            shared.state = change(shared.state)
        finally:
            shared.lock.release(writer)

    def _snapshot(self) -> StateT:
        """Return the state itself, which nobody may change or keep."""
        return cast(StateT, self._shared.state)

    def _restore(self, state: StateT) -> None:
        """Make `state` the state, as it is and at once."""
        self._shared.state = state

    def statistics(self) -> StateStoreStatistics:
        """Return who is writing and waiting."""
        writing, waiting = self._shared.lock.statistics()
        return StateStoreStatistics(writing, waiting)

    def __repr__(self) -> str:
        now = self.statistics()
        doing = f"writing, {now.writers_waiting} waiting" if now.writing else "idle"
        return f"<StateStore of {self._state_type.__name__}: {doing}>"


def _merged(state: Any, fields: Mapping[str, Any]) -> Any:
    """Return a copy of `state` with some of its fields changed."""
    state = shallow_copy(state)
    for name, value in fields.items():
        state = set_part(state, name, value)
    return state
