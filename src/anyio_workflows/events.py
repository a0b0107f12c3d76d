"""What travels: events are frozen attrs classes, checked when they are made.

An event class needs no decorator: `class Found(Event): url: str`. A class that declares fields is
*closed*, it takes those fields and no other keyword. A class that declares none is *open*: it
takes any keyword, and what it was given reads as attributes.
"""

from __future__ import annotations

import copy
import enum
import inspect
import reprlib
import typing
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform

import attrs

from ._annotations import local_names, resolve
from ._constructors import stores_only, write_constructor
from ._kinds import kind_of
from .errors import EventValidationError, nearest

__all__ = [
    "Event",
    "HumanResponseEvent",
    "InputRequiredEvent",
    "InternalDispatchEvent",
    "StartEvent",
    "StepFailedEvent",
    "StepState",
    "StepStateChanged",
    "StopEvent",
    "UnhandledEvent",
    "WorkflowCancelledEvent",
    "WorkflowFailedEvent",
    "WorkflowIdleEvent",
    "WorkflowTimedOutEvent",
]


def _own_fields(cls: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """Keep each field's name as its keyword, and give each instance its own mutable default."""
    return [_own_field(field) for field in fields]


def _own_field(field: attrs.Attribute[Any]) -> attrs.Attribute[Any]:
    stripped = field.name.lstrip("_")  # what attrs makes of a private name
    if getattr(field, "alias_is_default", field.alias in (None, stripped)):
        field = field.evolve(alias=field.name)
    if isinstance(field.default, list | dict | set | bytearray):
        field = field.evolve(default=attrs.Factory(_copier(field.default)))
    return field


def _keyword(field: attrs.Attribute[Any]) -> str:
    return field.alias or field.name


def _copier(value: Any) -> Any:
    return lambda: copy.deepcopy(value)


def _fields(cls: type[Event]) -> tuple[attrs.Attribute[Any], ...]:
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(cls)  # type: ignore[arg-type]
    return fields


_TAKEN = "Event itself uses this name; choose another"

_define = attrs.define(
    slots=False,
    kw_only=True,
    frozen=True,
    auto_attribs=True,
    init=False,  # `Event.__init__` checks the values, then calls `__attrs_init__`
    repr=False,
    unsafe_hash=False,
    field_transformer=_own_fields,
)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(attrs.field,))
@_define
class Event:
    """Base of all events.

    Events are immutable, compared by value, always true, and not hashable. They read like a
    mapping over their fields as well: `ev["url"]`, `ev.get("url")`, `"url" in ev`, `dict(ev)`. A
    field may be called `get`, `keys`, `values` or `items`; it then takes that method's place.

    Raises:
        EventValidationError: On construction, if a field is missing, unknown or of a type that
            its annotation does not admit. Nothing is converted.
    """

    _extra: Mapping[str, Any] = attrs.field(factory=dict)

    _open_fields: ClassVar[Collection[str]] = ("_extra",)
    """Fields that an open class may have."""

    _open: ClassVar[bool] = True
    _local_names: ClassVar[dict[str, Any]] = {}
    _kinds: ClassVar[dict[str, Any] | None] = None
    """Field -> what `isinstance` takes for it; made when the first instance is."""
    _constructor: ClassVar[Any] = None
    """The `__init__` that was written for the class, or for the one it is derived from."""

    __hash__ = None  # type: ignore[assignment]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in inspect.get_annotations(cls):
            if name in _OWN_NAMES and name not in vars(cls):
                raise EventValidationError(cls.__name__, name, _TAKEN)
        _define(cls)
        fields = _fields(cls)
        cls._open = all(field.name in cls._open_fields for field in fields)
        cls._kinds = None
        cls._local_names = {}
        for annotation in inspect.get_annotations(cls).values():
            cls._local_names.update(local_names(annotation, cls.__module__, cls.__qualname__))

    def __init__(self, /, **values: Any) -> None:
        cls = type(self)
        kinds = cls._kinds
        if kinds is None:
            kinds = _compile_kinds(cls)
        for name, value in values.items():
            if not isinstance(value, kinds.get(name, ())):
                values = self._sort_out(kinds, values)
                break
        try:
            self.__attrs_init__(**values)  # type: ignore[attr-defined]
        except TypeError:
            for field in _fields(cls):
                if field.init and field.default is attrs.NOTHING and _keyword(field) not in values:
                    problem = f"missing, {cls.__name__}() needs it"
                    raise EventValidationError(cls.__name__, _keyword(field), problem) from None
            raise

    def _sort_out(self, kinds: Mapping[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """Refuse values of a wrong type, and those without a field unless the class is open (E2).

        Returns:
            The values of the fields, with the extra ones under `_extra`.
        """
        cls = type(self)
        declared: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for name, value in values.items():
            if name == "_extra":  # `attrs.evolve` hands it over
                if not isinstance(value, dict):
                    raise EventValidationError(cls.__name__, name, _TAKEN)
                extra = {**value, **extra}
            elif name not in kinds:
                extra[name] = value
            elif isinstance(value, kinds[name]):
                declared[name] = value
            else:
                raise _wrong_type(cls, name, value)
        if extra and not cls._open:
            name = next(iter(extra))
            problem = f"no such field, {nearest(name, kinds)}"
            raise EventValidationError(cls.__name__, name, problem)
        for name in extra.keys() & _METHODS:
            self.__dict__[name] = extra[name]  # hides the method, as a field would
        return {**declared, "_extra": extra}

    def _values(self) -> dict[str, Any]:
        """Return all fields and extra values, in the order of their declaration."""
        fields = _fields(type(self))
        values = {f.name: getattr(self, f.name) for f in fields if f.name != "_extra"}
        return {**values, **self._extra}

    def replace(self, /, **changes: Any) -> Self:
        """Return a copy with some keywords of the constructor changed; checked as they are there.

        Raises:
            EventValidationError: As construction does.
        """
        return attrs.evolve(self, **changes)  # type: ignore[misc]

    def __repr__(self) -> str:
        hidden = {f.name for f in _fields(type(self)) if not f.repr}
        shown = [f"{k}={v!r}" for k, v in self._values().items() if k not in hidden]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getitem__(self, name: str) -> Any:
        return self._values()[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def __bool__(self) -> bool:
        return True

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._extra]  # Python asks it what a misspelt name may mean

    if TYPE_CHECKING:
        # Untyped on purpose: an event may declare fields with these names.
        get: Any
        keys: Any
        values: Any
        items: Any
    else:

        def __getattr__(self, name: str) -> Any:
            try:
                return self._extra[name]
            except KeyError:
                message = f"{type(self).__name__!r} has no field {name!r}"
                raise AttributeError(message, name=name, obj=self) from None

        def get(self, name: str, default: Any = None) -> Any:
            """Return the value of a field, or `default` if there is no such field."""
            return self._values().get(name, default)

        def keys(self) -> typing.KeysView[str]:
            """Return the names of the fields."""
            return self._values().keys()

        def values(self) -> typing.ValuesView[Any]:
            """Return the values of the fields."""
            return self._values().values()

        def items(self) -> typing.ItemsView[str, Any]:
            """Return the names and values of the fields."""
            return self._values().items()


Event._extra = {}  # what an instance has whose constructor was written for its class
_METHODS = frozenset({"get", "keys", "values", "items", "replace"})
_OWN_NAMES = {name for name in vars(Event) if name[0] == "_" != name[1]} | {"_extra"}


class _OpenEvent(Event):
    """The typing of events whose extra values are read as attributes."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class StartEvent(_OpenEvent):
    """Starts a run; its fields are the keywords of `Workflow.run()`."""

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...


class StopEvent(_OpenEvent):
    """Ends a run. `await handler` gives `result`, or the event itself if it is of a subclass."""

    _open_fields: ClassVar[Collection[str]] = ("_extra", "result")

    result: Any = None

    if TYPE_CHECKING:

        def __init__(self, *, result: Any = None, **values: Any) -> None: ...


class InputRequiredEvent(_OpenEvent):
    """Asks somebody outside the run for input; goes to the stream when a step returns it."""

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...


class HumanResponseEvent(_OpenEvent):
    """Answers an `InputRequiredEvent`; sent from outside with `handler.send_event()`."""

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...


class WorkflowTimedOutEvent(StopEvent):
    """The last event of a run that did not end before its deadline.

    Attributes:
        timeout: The time the run had, in seconds.
        active_steps: Sorted names of the steps that were in progress at the deadline.
    """

    timeout: float
    active_steps: list[str]


class WorkflowCancelledEvent(StopEvent):
    """The last event of a run that was cancelled."""


class WorkflowFailedEvent(StopEvent):
    """The last event of a run in which a step failed for good.

    Attributes:
        step_name: Name of the step, or of the resource that failed to close.
        exception: The exception it raised, the one that `await handler` raises.
        attempts: How often the step was tried; `None` if no single step is to blame.
        elapsed_seconds: Seconds from the first start of the step to its failure, or `None`.
    """

    step_name: str
    exception: BaseException
    attempts: int | None = None
    elapsed_seconds: float | None = None


class StepFailedEvent(Event):
    """A step failed for good; starts the `@catch_error` step that takes its failures.

    Attributes:
        step_name: Name of the step that failed.
        input_event: The event that started it, or the list or set of events.
        exception: What its last attempt raised.
        attempts: How often it was tried.
        elapsed_seconds: Seconds from its first start to its failure.
        failed_at: When it failed, in UTC.
    """

    step_name: str
    input_event: Event | list[Event] | tuple[Event, ...]
    exception: Exception
    attempts: int
    elapsed_seconds: float
    failed_at: datetime


class InternalDispatchEvent(Event):
    """Base of the events about the run itself, seen with `stream_events(expose_internal=True)`."""


class UnhandledEvent(InternalDispatchEvent):
    """An event was sent or returned that no step takes; it is gone.

    Attributes:
        event_type: Name of its class.
        qualified_name: Module and qualified name of its class.
        step_name: The step it was aimed at, if any.
        idle: Whether nothing was queued or running in the run at that moment.
    """

    event_type: str
    qualified_name: str
    step_name: str | None = None
    idle: bool


class StepState(enum.Enum):
    """What happens to one execution of a step."""

    PREPARING = "preparing"
    """It is queued: all workers of the step are busy."""

    RUNNING = "running"
    """It begins."""

    NOT_RUNNING = "not_running"
    """It is over."""


class StepStateChanged(InternalDispatchEvent):
    """An execution of a step was queued, begins, or is over.

    Attributes:
        name: Name of the step.
        step_state: What happens to the execution.
        worker_id: Tells the executions of one run apart.
        input_event_name: Name of the class of the event that starts the step.
        output_event_name: Name of the class of the event that it returned, if it did.
    """

    name: str
    step_state: StepState
    worker_id: str
    input_event_name: str
    output_event_name: str | None = None


class WorkflowIdleEvent(InternalDispatchEvent):
    """The run does nothing but wait for an event from outside."""


def _compile_kinds(cls: type[Event]) -> dict[str, Any]:
    """Make and keep what `isinstance` takes for each field of `cls`."""
    kinds: dict[str, Any] = {}
    for base in reversed(cls.__mro__[1:]):
        if issubclass(base, Event) and base is not Event:
            kinds |= base.__dict__["_kinds"] or _compile_kinds(base)
    own = inspect.get_annotations(cls)
    for field in _fields(cls):
        if field.init and field.name in own and field.name != "_extra":
            kinds[_keyword(field)] = object if field.converter else kind_of(_field_type(cls, field))
    cls._kinds = kinds
    if cls.__init__ in (Event.__init__, cls._constructor) and stores_only(cls):
        cls._constructor = write_constructor(cls, kinds, Event.__init__)
        cls.__init__ = cls._constructor  # type: ignore[method-assign]
    return kinds


def _field_type(cls: type[Event], field: attrs.Attribute[Any]) -> Any:
    try:
        names = local_names(field.type, cls.__module__, cls.__qualname__) | cls._local_names
        names |= {name: value for name, value in vars(cls).items() if isinstance(value, type)}
        return resolve(field.type, cls.__module__, names)
    except Exception:  # a name that only type checkers see: nothing to check against
        return object


def _wrong_type(cls: type[Event], name: str, value: object) -> EventValidationError:
    field = next(f for f in _fields(cls) if _keyword(f) == name)
    written = field.type
    expected = written if isinstance(written, str) else inspect.formatannotation(written)
    problem = f"expected {expected}, got {reprlib.repr(value)} ({type(value).__qualname__})"
    if hasattr(type(value), "__await__"):
        problem += "; is an 'await' missing?"
    return EventValidationError(cls.__name__, name, problem)
