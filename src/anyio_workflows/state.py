"""The store: a state that the steps of a run share, by reference (P1).

Values are shared, as in a dict: a change inside a value is a change for every step. The state itself,
the object that holds the values, never leaves the store: callers get a shallow copy, so that assigning
to it changes nothing until it is committed.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

import anyio
import attrs

from ._absent import Absent, absent_names
from ._annotations import is_record
from ._backend import running_task
from ._messages import namesakes, nearest
from ._pydantic import (
    extras_of,
    first_problem,
    is_frozen_model,
    is_model,
    keeps_extras,
)
from .errors import ContextStateError, WorkflowError

__all__ = ["DictState", "StateStore", "StateStoreStatistics"]

if not TYPE_CHECKING:
    __getattr__ = absent_names(__name__)

T = TypeVar("T")
StateT = TypeVar("StateT")

_MISSING: Any = object()
"""Stands for a missing value."""


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
        as_dict = "dict(state) gives a dict" if name == "to_dict" else None
        message = f"the state has no {name!r}, {as_dict or nearest(name, map(str, self))}"
        return AttributeError(message, name=name, obj=self)

    def __repr__(self) -> str:
        return f"DictState({self._data!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return DictState, (dict(self.items()),)

    def __copy__(self) -> DictState:
        return DictState(self._data)


# --- Writing in turn ----------------------------------------------------------------------------
#
# Why not `anyio.Lock`:
#
# - This one can be taken away from a holder that is gone: a step that was given up, a task whose event
#   loop ended in the middle of an edit.
# - A wait for it ends when the attempt that waits is over, although its thread is not (T7). For the same
#   reason nothing here asks AnyIO whether the task is cancelled: in a call from a thread that has
#   outlived its cancel scope, asyncio would look for the answer forever.
# - Taking it when it is free costs 1 us less, and is not a checkpoint.


class _Writer:
    """A task that writes, or waits to.

    Attributes:
        check: Raises if the task may no longer use the store.
        granted: Set when its wait is over: it has the lock, or will not get it; `None` if it never waited.
    """

    __slots__ = ("check", "granted", "loop", "task")

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check
        self.granted: anyio.Event | None = None
        self.loop, self.task = running_task()

    def is_dead(self) -> bool:
        """Return whether the task may no longer use the store."""
        try:
            self.check()
        except WorkflowError:
            return True
        return False


class _WriteLock:
    """Lets one task at a time write: first come, first served.

    Attributes:
        holder: The writer that has the lock; while it is `None`, no writer waits.
    """

    __slots__ = ("_waiting", "holder")

    def __init__(self) -> None:
        self.holder: _Writer | None = None
        self._waiting: deque[_Writer] = deque()

    async def acquire(self, writer: _Writer, what: str) -> None:
        """Wait for the lock, and hold it.

        Args:
            writer: The current task.
            what: What it wants to do, for the message.

        Raises:
            ContextStateError: If the current task holds it already, in an edit.
            WorkflowRuntimeError: If the waiting step or its run has ended.
        """
        if self.holder is not None and self.holder.loop is not writer.loop:
            self.holder = None  # its loop ended during the edit, and with it all that waited
            self._waiting.clear()
        if self.holder is None:
            self.holder = writer
            return
        if self.holder.task is writer.task:
            raise ContextStateError(
                f"{what} inside an edit of the same task would wait for itself; use the state "
                "that `async with store.edit_state() as state:` gives"
            )
        writer.granted = anyio.Event()
        self._waiting.append(writer)
        try:
            await writer.granted.wait()
            writer.check()
        except BaseException:
            if writer in self._waiting:
                self._waiting.remove(writer)
            self.release(writer)
            raise

    def release(self, writer: _Writer) -> None:
        """Pass the lock to the next writer, unless it was taken away."""
        if self.holder is not writer:
            return
        self.holder = self._waiting.popleft() if self._waiting else None
        if self.holder is not None and self.holder.granted is not None:
            self.holder.granted.set()

    def drop_dead(self) -> None:
        """End the waits of writers that may no longer use the store; take the lock from such a holder."""
        for writer in [writer for writer in self._waiting if writer.is_dead()]:
            self._waiting.remove(writer)
            if writer.granted is not None:
                writer.granted.set()
        if self.holder is not None and self.holder.is_dead():
            self.release(self.holder)

    def statistics(self) -> tuple[bool, int]:
        """Return whether the lock is held, and how many writers wait for it."""
        return self.holder is not None, len(self._waiting)


# --- The store --------------------------------------------------------------------------------


@attrs.frozen
class StateStoreStatistics:
    """A store at one moment.

    Attributes:
        writing: Whether a task is writing or editing.
        writers_waiting: How many tasks wait to write.
    """

    writing: bool
    writers_waiting: int


@attrs.define(eq=False)
class _Shared:
    """The state and its lock, shared by all stores that `_guarded()` returns."""

    state: Any
    lock: _WriteLock = attrs.field(factory=_WriteLock)


class _Edit(AbstractAsyncContextManager[Any]):
    """One edit. Not an async generator: an unfinished one would have to be closed in its task."""

    __slots__ = ("_state", "_store", "_writer")

    def __init__(self, store: StateStore[Any]) -> None:
        self._store = store

    async def __aenter__(self) -> Any:
        store = self._store
        store._check()
        lock = store._shared.lock
        writer = self._writer = _Writer(store._check)
        if lock.holder is None:
            lock.holder = writer
        else:
            await lock.acquire(writer, "edit_state()")
        try:
            self._state = _shallow_copy(store._shared.state)
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
                        "this edit is dropped, because the event loop in which it began has ended"
                    )
                # Another copy, so that later writes to the copy of the edit have no effect.
                shared.state = _shallow_copy(self._state)
        finally:
            shared.lock.release(self._writer)


class StateStore(Generic[StateT]):
    """The state that the steps of a run share: `ctx.store`.

    Values are shared, as in a dict: `get()` returns the very object that was passed to `set()`. Change
    a list, a chat memory or a client anywhere: every step sees the change at once. Only the state as a
    whole is copied, without its values, by `get_state()`, `set_state()` and `edit_state()`.

    Writers take turns, first come, first served; readers do not wait. A write that does not have to
    wait is not a checkpoint.

    Args:
        state_type: `DictState` (any keys, any values), or an attrs class, a dataclass or a pydantic
            model that can be made without arguments.

    Raises:
        ContextStateError: If `state_type` is another kind of class.
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
        """Return the same store for an execution that may be given up.

        Args:
            check: Called before each use of the store; raises if the execution may not use it.
        """
        store: StateStore[StateT] = StateStore.__new__(StateStore)
        store._state_type, store._shared, store._check = self._state_type, self._shared, check
        return store

    def _drop_dead_writers(self) -> None:
        """Drop the edit and the waits of executions that may no longer use the store."""
        self._shared.lock.drop_dead()

    def _blank(self) -> StateT:
        cls = self._state_type
        if not isinstance(cls, type) or not (cls is DictState or is_record(cls)):
            raise ContextStateError(
                f"the type of a state is an attrs class, a dataclass or a pydantic model, not {cls!r}"
            )
        try:
            return cast(StateT, cls())
        except Exception as error:
            where, problem = first_problem(error, cls)
            problem = ": ".join([*map(str, where), problem])
            raise ContextStateError(
                f"{cls.__name__}() failed ({problem}); the type of a state has defaults for all its "
                "fields"
            ) from error

    async def get(self, path: str, default: Any = _MISSING) -> Any:
        """Return a part of the state: the value itself, not a copy.

        Args:
            path: Keys, attributes and indexes, joined by dots: `"user.addresses.0.city"`.
            default: Returned if there is no such part.

        Raises:
            ValueError: If there is no such part and no default, or the path has an empty part.
        """
        self._check()
        parts = _split(path)
        try:
            return _get_path(self._shared.state, parts)
        except ValueError:
            if default is _MISSING:
                raise
            return default

    async def set(self, path: str, value: Any) -> None:
        """Set a part of the state to `value` itself, not to a copy.

        A longer path reaches into the values: `set("user.name", "ada")` sets the name of the very
        object that `get("user")` returns. Missing mappings on the way are created. A tuple or a frozen
        object on the way is replaced by a changed copy.

        Args:
            path: Keys, attributes and indexes, joined by dots.
            value: Its new value.

        Raises:
            ValueError: If the path leads to an unknown field, beyond the end of a list, or into
                something that cannot be changed, or if it has an empty part.
            ContextStateError: Inside an edit by the same task.
        """
        parts = _split(path)
        await self._write("set()", lambda state: _set_path(state, parts, value))

    async def get_state(self) -> StateT:
        """Return a shallow copy of the state: an object of your own with the values themselves."""
        self._check()
        return cast(StateT, _shallow_copy(self._shared.state))

    async def set_state(self, state: StateT) -> None:
        """Replace the state by a shallow copy of `state`.

        If `state` is an instance of a base class of the state's type, as in a step with
        `Context[Base]` where another one has `Context[Derived]`, only the fields of that class are set.

        Raises:
            ContextStateError: If it is of another type, or inside an edit by the same task.
        """
        wanted, given = self._state_type, type(state)
        if wanted is DictState and isinstance(state, Mapping):
            new: Any = DictState(state)
            await self._write("set_state()", lambda _: new)
        elif isinstance(state, wanted):
            new = _shallow_copy(state)
            await self._write("set_state()", lambda _: new)
        elif is_record(given) and issubclass(wanted, given):
            fields = {name: getattr(state, name) for name in _field_names(given)}
            await self._write("set_state()", lambda old: _merged(old, fields))
        else:
            remark = namesakes([given], [wanted])
            raise ContextStateError(
                f"this state is a {wanted.__name__}, and set_state() got a {given.__name__}"
                f"{remark and f'; {remark}'}"
            )

    async def clear(self) -> None:
        """Reset the state to that of a new store.

        Raises:
            ContextStateError: Inside an edit by the same task.
        """
        await self._write("clear()", lambda _: self._blank())

    def edit_state(self) -> AbstractAsyncContextManager[StateT]:
        """Change the state in a block, while all other writers wait.

        The block gets a shallow copy of the state. Assignments are committed together when the block
        ends, and dropped if it raises or is cancelled. Changes *inside* a value are visible to every
        step at once, and stay:

            async with ctx.store.edit_state() as state:
                state.count += 1  # visible to others when the block has ended; undone if it raises
                state.pages = [*state.pages, page]  # likewise
                state.pages.append(page)  # visible at once, stays

        Raises:
            ContextStateError: On entering, inside an edit by the same task.
        """
        return _Edit(self)

    async def _write(self, what: str, change: Callable[[Any], Any]) -> None:
        """Replace the state by `change(state)`, once the lock is free."""
        self._check()
        shared = self._shared
        if (
            shared.lock.holder is None
        ):  # and it stays free: there is no `await` before the state is set
            shared.state = change(shared.state)
            return
        writer = _Writer(self._check)
        await shared.lock.acquire(writer, what)
        try:
            shared.state = change(shared.state)
        finally:
            shared.lock.release(writer)

    def _snapshot(self) -> StateT:
        """Return the state itself; the caller must not change or keep it."""
        return cast(StateT, self._shared.state)

    def _restore(self, state: StateT) -> None:
        """Replace the state by `state` itself, without the lock."""
        self._shared.state = state

    def statistics(self) -> StateStoreStatistics:
        """Return whether a task writes, and how many wait to write."""
        writing, waiting = self._shared.lock.statistics()
        return StateStoreStatistics(writing, waiting)

    def __repr__(self) -> str:
        now = self.statistics()
        doing = f"writing, {now.writers_waiting} waiting" if now.writing else "idle"
        return f"<StateStore of {self._state_type.__name__}: {doing}>"


for _name, _instead in {
    "from_dict": "Context.from_dict() restores it with the rest of a run",
    "state_type": "use type(await ctx.store.get_state())",
    "to_dict": "ctx.to_dict() has it with the rest of a run; dict(await ctx.store.get_state()) has the values",
}.items():
    setattr(StateStore, _name, Absent(_name, _instead))


def _merged(state: Any, fields: Mapping[str, Any]) -> Any:
    """Return a copy of `state` with some of its fields changed."""
    state = _shallow_copy(state)
    for name, value in fields.items():
        state = _set_item(state, name, value)
    return state


# --- Shallow copies -----------------------------------------------------------------------------


def _field_names(cls: Any) -> list[str]:
    """Return the names of the fields of an attrs class, dataclass or model; of another class, none."""
    if attrs.has(cls):
        return [field.name for field in attrs.fields(cls)]
    if is_model(cls):
        return list(cls.model_fields)
    return (
        [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    )


def _shallow_copy(value: T) -> T:
    """Return a copy that shares with `value` whatever is in its fields.

    It has exactly what is stored in `value`: no code of the class runs, unless it has a `__copy__`. This
    takes a third of the time of `copy.copy()`, which uses the pickle protocol.
    """
    cls: Any = type(value)
    layout = _layout(cls)
    if layout is None:
        return copy.copy(value)
    slots, has_dict = layout
    twin: T = object.__new__(cls)
    for read, write in slots:
        try:
            write(twin, read(value))
        except AttributeError:  # never set, or deleted
            continue
    if has_dict:
        twin.__dict__.update(value.__dict__)
    return twin


@functools.lru_cache(maxsize=64)
def _layout(cls: Any) -> tuple[list[tuple[Callable[..., Any], Callable[..., None]]], bool] | None:
    """Return how to read and write each slot of a class, and whether there is a `__dict__` as well.

    `None` if its instances are not copied by their attributes.
    """
    if hasattr(cls, "__copy__") or cls.__new__ is not object.__new__:
        return None
    return [(slot.__get__, slot.__set__) for slot in _slots(cls)], bool(cls.__dictoffset__)


def _slots(cls: type) -> tuple[MemberDescriptorType, ...]:
    return tuple(
        found
        for base in cls.__mro__
        for found in vars(base).values()
        if isinstance(found, MemberDescriptorType)
    )


# --- Paths ------------------------------------------------------------------------------------


def _split(path: str) -> list[str]:
    """Return the parts of a dotted path.

    Raises:
        ValueError: If one of them is empty.
    """
    parts = path.split(".")
    if not all(parts):
        raise ValueError(
            f"the path {path!r} has an empty part; paths look like 'user.name', and get_state() "
            "and set_state() are for the whole state"
        )
    return parts


def _get_path(state: Any, parts: list[str]) -> Any:
    """Return the part of `state` that a path leads to.

    Raises:
        ValueError: If there is none.
    """
    for depth, part in enumerate(parts):
        found = _part_of(state, part)
        if found is _MISSING:
            raise _no_part(parts, depth, state)
        state = found
    return state


def _set_path(holder: Any, parts: list[str], value: Any, depth: int = 0) -> Any:
    """Set the part of `holder` that a path leads to.

    Missing mappings on the way are created. There is only one assignment, to the last holder on the path
    that can be changed: a failure changes nothing.

    Returns:
        `holder`; a changed copy of it if it is a tuple, or frozen.

    Raises:
        ValueError: If the path leads to an unknown field, beyond the end of a list, or into
            something that cannot be changed.
    """
    part = parts[depth]
    _check_takes(holder, parts, depth)
    if depth + 1 < len(parts):
        below = _part_of(holder, part)
        if below is _MISSING:
            for name in reversed(parts[depth + 1 :]):
                value = {name: value}
        elif (value := _set_path(below, parts, value, depth + 1)) is below:
            return holder
    return _set_item(holder, part, value)


def _set_item(holder: Any, part: str, value: Any) -> Any:
    """Set an item or attribute of `holder`; return it, or a changed copy as `_set_path()` does."""
    if isinstance(holder, MutableMapping):
        holder[part] = value
    elif isinstance(holder, MutableSequence):
        holder[int(part)] = value
    elif isinstance(holder, tuple):
        items: list[Any] = list(holder)
        items[_index(holder, part)] = value
        return tuple.__new__(type(holder), items)
    elif is_frozen_model(type(holder)):
        return holder.model_copy(update={part: value})
    else:
        try:
            setattr(holder, part, value)
        except (attrs.exceptions.FrozenInstanceError, dataclasses.FrozenInstanceError):
            return _evolved(holder, part, value)
    return holder


def _evolved(holder: Any, name: str, value: Any) -> Any:
    cls = type(holder)
    if not attrs.has(cls):
        return dataclasses.replace(holder, **{name: value})
    field = attrs.fields_dict(cls).get(name)
    if field is None or not field.init:
        raise ValueError(f"{name!r} of {cls.__name__}, which is frozen, is not for its constructor")
    return attrs.evolve(holder, **{field.alias or name: value})


def _part_of(holder: Any, part: str) -> Any:
    """Return an item or attribute of `holder`, or `_MISSING`."""
    if isinstance(holder, Mapping):
        return holder.get(part, _MISSING)
    if _has_items(holder) and part.isdecimal():
        return holder[int(part)] if int(part) < len(holder) else _MISSING
    if part.startswith("__"):
        return _MISSING
    return getattr(holder, part, _MISSING)


def _has_items(holder: Any) -> bool:
    return isinstance(holder, Sequence) and not isinstance(holder, str | bytes | bytearray)


def _index(holder: tuple[Any, ...], part: str) -> int:
    """Return the index of an item of a tuple, which may be named; -1 if there is none."""
    if part.isdecimal():
        return int(part) if int(part) < len(holder) else -1
    names = getattr(holder, "_fields", ())
    return names.index(part) if part in names else -1


def _check_takes(holder: Any, parts: list[str], depth: int) -> None:
    part = parts[depth]
    if isinstance(holder, MutableMapping):
        return
    if isinstance(holder, tuple):
        known = _index(holder, part) >= 0
    elif isinstance(holder, MutableSequence):
        known = part.isdecimal() and int(part) < len(holder)
    elif isinstance(holder, Mapping | Sequence | AbstractSet) and not isinstance(
        holder, str | bytes
    ):
        raise _unchangeable(holder, parts, depth)
    else:
        known = part in _names_in(holder) or _is_class_default(type(holder), part)
        known = known or (keeps_extras(type(holder)) and part[0] != "_")
    if not known:
        raise _no_part(parts, depth, holder)


def _is_class_default(cls: Any, name: str) -> bool:
    """Return whether a class has a value, or a property, that its instances may overwrite."""
    found = getattr(cls, name, _MISSING)
    if found is _MISSING or name.startswith("__"):
        return False
    is_value = not is_record(cls) and not hasattr(found, "__get__")
    return is_value or hasattr(found, "__set__")


def _names_in(holder: Any) -> set[str]:
    if isinstance(holder, Mapping):
        return {name for name in holder if isinstance(name, str)}
    cls = type(holder)
    if is_model(cls):  # its slots are pydantic's
        return {*_field_names(cls), *extras_of(holder)}
    names = {slot.__name__ for slot in _slots(cls)} | set(_field_names(cls))
    return names | set(getattr(holder, "__dict__", ()))


def _no_part(parts: list[str], depth: int, holder: Any) -> ValueError:
    path, part, at = ".".join(parts), parts[depth], ".".join(parts[:depth])
    where = f": {at!r} ({type(holder).__name__}) has no {part!r}" if at else ""
    if _has_items(holder):
        known = f"its length is {len(holder)}"
    else:
        known = nearest(part, {name for name in _names_in(holder) if name[:1] != "_"})
    return ValueError(f"the state has no {path!r}{where}, {known}")


def _unchangeable(holder: Any, parts: list[str], depth: int) -> ValueError:
    path, at = ".".join(parts), ".".join(parts[:depth])
    return ValueError(
        f"{path!r} cannot be set: {at!r} is a {type(holder).__name__}, which cannot be changed; set "
        f"{at!r} to another one"
    )
