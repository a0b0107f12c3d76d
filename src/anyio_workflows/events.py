"""Event classes: frozen attrs classes whose values are checked on construction.

An event class needs no decorator: `class Found(Event): url: str`. A class that declares fields is
*closed*: it takes those fields and no other keyword. A class that declares none is *open*: it takes
any keyword, and the values are read as attributes.
"""

from __future__ import annotations

import copy
import enum
import inspect
import reprlib
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, dataclass_transform

import attrs

from ._absent import CLASS_METHODS, MODEL_METHODS, Absent, absent_names
from ._annotations import ANYTHING, Unresolved, check_for, classes_in, local_names, resolve_field
from ._foreign import check_keywords, check_marks, translated
from ._messages import await_missing, classes_held, namesakes, nearest
from ._pydantic import first_problem, is_model
from .errors import EventValidationError

__all__ = [
    "Event",
    "ExecutionOutcome",
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

if not TYPE_CHECKING:
    __getattr__ = absent_names(__name__)


def _own_field(field: attrs.Attribute[Any]) -> attrs.Attribute[Any]:
    """Let a field keep its name as keyword, and copy a mutable default for each instance."""
    stripped = field.name.lstrip("_")  # the keyword that attrs gives to a private name
    if getattr(field, "alias_is_default", field.alias in (None, stripped)):
        field = field.evolve(alias=field.name)
    if isinstance(field.default, list | dict | set | bytearray) or is_model(type(field.default)):
        field = field.evolve(default=attrs.Factory(_Copies(field.default)))
    return field


def _keyword(field: attrs.Attribute[Any]) -> str:
    return field.alias or field.name


def _fields(cls: type[Event]) -> tuple[attrs.Attribute[Any], ...]:
    return attrs.fields(cls)  # type: ignore[arg-type,no-any-return]


class _MadeEachTime:
    """Shown in a signature for a default that a factory makes."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY: Any = attrs.Factory
_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)


class _Signature:
    """The signature of an event class for help() and notebooks: its fields (E8)."""

    def __get__(self, event: Event | None, cls: type[Event]) -> inspect.Signature:
        if (
            cls.__init__ is not cls._constructor
        ):  # a subclass has its own, which `inspect` then shows
            raise AttributeError("__signature__", name="__signature__", obj=cls)
        return _signature(cls, _types(cls))


def _signature(
    cls: type[Event], types: Mapping[str, Any], *first: inspect.Parameter
) -> inspect.Signature:
    new = inspect.Parameter
    kind = new.POSITIONAL_OR_KEYWORD if cls._open else new.KEYWORD_ONLY
    parameters = [*first]
    for field in _fields(cls):
        if field.init and field.name != "_extra":
            default = _default_of(field)
            if default is attrs.NOTHING:
                default = new.empty
            elif isinstance(default, _FACTORY):
                default = _MadeEachTime()
            annotation = types[field.name]
            parameters.append(new(_keyword(field), kind, default=default, annotation=annotation))
    if cls._open:
        parameters.append(new("values", new.VAR_KEYWORD))
    return inspect.Signature(parameters)


_TAKEN = "Event itself uses this name; choose another"

# slots=False: open classes keep values in `__dict__`, and generated constructors store there.
_define = attrs.define(
    slots=False,
    kw_only=True,
    frozen=True,
    auto_attribs=True,
    init=False,  # `Event.__init__` checks the values, then calls `__attrs_init__`
    repr=False,
    unsafe_hash=False,
    field_transformer=lambda cls, fields: [_own_field(field) for field in translated(cls, fields)],
)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(attrs.field,))
@_define
class Event:
    """Base of all events.

    Events are immutable, compared by value, always true, and not hashable. They can also be read
    like a mapping of their fields: `ev["url"]`, `ev.get("url")`, `"url" in ev`, `dict(ev)`. A field
    may be called `get`, `keys`, `values` or `items`, and then hides that method.

    Raises:
        EventValidationError: On construction, if a field is missing, unknown or of a type that
            its annotation does not admit. Nothing is converted.
    """

    if TYPE_CHECKING:
        _extra: Mapping[str, Any] = attrs.field(init=False)
    else:
        _extra: Mapping[str, Any] = attrs.field(factory=dict)
        __signature__ = _Signature()

    _open_fields: ClassVar[Collection[str]] = ("_extra",)
    """Fields that an open class may have."""

    _open: ClassVar[bool] = True
    """Whether the class takes any keyword (E2)."""
    _local_names: ClassVar[dict[str, Any]] = {}
    """Names in the annotations that are local to functions, kept while these run: `resolve()`."""
    _checks: ClassVar[Mapping[str, Any] | None] = None
    """Keyword -> the run-time check for it; `None` until the first instance is made."""
    _factories: ClassVar[Mapping[str, tuple[str, Any]]] = {}
    """Keyword -> field and its run-time check, of those whose default is made for each instance."""
    _constructor: ClassVar[Any] = None
    """Our `__init__` for the class: `Event.__init__`, or the one generated with the first instance."""

    __hash__ = None  # type: ignore[assignment]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        check_keywords(cls, kwargs)
        super().__init_subclass__(**kwargs)
        for name in inspect.get_annotations(cls):
            if name in _OWN_NAMES and name not in vars(cls):
                raise EventValidationError(cls.__name__, name, _TAKEN)
        _define(cls)
        # The errors of attrs do not say what to do instead.
        cls.__setattr__, cls.__delattr__ = _refuse_setting, _refuse_deleting  # type: ignore[assignment,method-assign]
        fields = _fields(cls)
        cls._open = all(field.name in cls._open_fields for field in fields)
        cls._checks, cls._local_names = None, {}
        for annotation in inspect.get_annotations(cls).values():
            cls._local_names.update(local_names(annotation, cls.__module__, cls.__qualname__))

    def __init__(self, /, *given: Any, **values: Any) -> None:
        cls = type(self)
        checks = cls._checks
        if checks is None:
            checks = _prepare(cls)
        if given:
            values |= _by_position(cls, given, values)
        for name, value in values.items():
            if not isinstance(value, checks.get(name, ())) or type(value) is CoroutineType:
                values = self._sort_out(checks, values)
                break
        try:
            self.__attrs_init__(**values)  # type: ignore[attr-defined]
        except (TypeError, ValueError) as exc:
            for field in _fields(cls):
                if field.init and field.default is attrs.NOTHING and _keyword(field) not in values:
                    problem = f"missing, {cls.__name__}() needs it"
                    raise EventValidationError(cls.__name__, _keyword(field), problem) from None
            # Some validators of attrs have their own objects in the error, and so in its text.
            where, problem = first_problem(exc, cls)
            if where and type(exc) in (TypeError, ValueError):
                raise EventValidationError(cls.__name__, str(where[0]), problem) from exc
            raise
        for keyword, (name, check) in cls._factories.items():
            if keyword not in values and not isinstance(getattr(self, name), check):
                raise _wrong_type(cls, keyword, getattr(self, name), "the default ")

    def _sort_out(self, checks: Mapping[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """Refuse values of a wrong type, and those without a field unless the class is open (E2).

        Returns:
            The values of the fields, with the extra ones under `_extra`.
        """
        cls = type(self)
        declared: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for name, value in values.items():
            if name == "_extra":  # from `attrs.evolve`
                if not isinstance(value, dict):
                    raise EventValidationError(cls.__name__, name, _TAKEN)
                extra = {**value, **extra}
            elif type(value) is CoroutineType and checks.get(name, ANYTHING) is ANYTHING:
                raise _wrong_type(cls, name, value)
            elif name not in checks:
                extra[name] = value
            elif isinstance(value, checks[name]):
                declared[name] = value
            else:
                raise _wrong_type(cls, name, value)
        if extra and not cls._open:
            name = next(iter(extra))
            problem = f"no such field, {nearest(name, checks)}"
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
        """Return a copy with some keywords of the constructor changed, and checked again.

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
        """Return the names that Python may suggest for a misspelt one."""
        return [*(name for name in super().__dir__() if name not in MODEL_METHODS), *self._extra]

    if TYPE_CHECKING:
        # Untyped on purpose: an event may declare fields with these names.
        get: Any = attrs.field(init=False)
        keys: Any = attrs.field(init=False)
        values: Any = attrs.field(init=False)
        items: Any = attrs.field(init=False)
    else:

        def __getattr__(self, name: str) -> Any:
            try:
                return self._extra[name]
            except KeyError:
                message = f"{type(self).__name__!r} has no field {name!r}"
                if name in MODEL_METHODS:
                    message += f"; {MODEL_METHODS[name]}"
                raise AttributeError(message, name=name, obj=self) from None

        def __setitem__(self, name: str, value: Any) -> None:
            raise TypeError(_refusal(self, name, "set", reprlib.repr(value)))

        def __delitem__(self, name: str) -> None:
            raise TypeError(_refusal(self, name, "deleted"))

        def get(self, key: str, default: Any = None) -> Any:
            """Return the value of a field, or `default` if there is no such field."""
            return self._values().get(key, default)

        def keys(self) -> typing.KeysView[str]:
            """Return the names of the fields."""
            return self._values().keys()

        def values(self) -> typing.ValuesView[Any]:
            """Return the values of the fields."""
            return self._values().values()

        def items(self) -> typing.ItemsView[str, Any]:
            """Return the names and values of the fields."""
            return self._values().items()


class _FrozenInstanceError(attrs.exceptions.FrozenInstanceError):
    """The error that attrs raises for setting an attribute, with a message of ours."""

    def __init__(self, text: str) -> None:
        AttributeError.__init__(self, text)


def _refusal(event: Event, name: str, done: str, new: str = "...") -> str:
    cls = type(event)
    text = f"{cls.__name__}.{name} cannot be {done}, because events do not change"
    if name.startswith("__"):  # Python itself tries that at each `Box[int](...)`
        return text
    keywords = {field.name: _keyword(field) for field in _fields(cls) if field.init}
    if name in keywords or cls._open:
        return f"{text}; ev.replace({keywords.get(name, name)}={new}) makes a changed copy"
    hint = nearest(name, keywords.keys() - Event._open_fields)
    return f"{text}; and {cls.__name__} has no such field, {hint}"


def _refuse_setting(self: Event, name: str, value: Any) -> None:
    raise _FrozenInstanceError(_refusal(self, name, "set", reprlib.repr(value)))


def _refuse_deleting(self: Event, name: str) -> None:
    raise _FrozenInstanceError(_refusal(self, name, "deleted"))


for _name in CLASS_METHODS:  # asked of classes, not of instances
    setattr(Event, _name, Absent(_name, MODEL_METHODS[_name]))
_GENERAL = Event._constructor = Event.__init__
Event._extra = {}  # instances made by a generated constructor have none of their own
_METHODS = frozenset({"get", "keys", "values", "items", "replace"})
_OWN_NAMES = {name for name in vars(Event) if name[0] == "_" != name[1]} | {"_extra"}


class _OpenEvent(Event):
    """Tells type checkers that extra values are read as attributes."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class StartEvent(_OpenEvent):
    """Starts a run; its fields are the keywords of `Workflow.run()`."""

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...


class StopEvent(_OpenEvent):
    """Ends a run. `await handler` returns `result`, or the event itself if it is of a subclass.

    `StopEvent(result="done")` may be written `StopEvent("done")`, also for a subclass that declares
    no other field.
    """

    _open_fields: ClassVar[Collection[str]] = ("_extra", "result")

    result: Any = None

    if TYPE_CHECKING:

        def __init__(self, result: Any = None, **values: Any) -> None: ...


class InputRequiredEvent(_OpenEvent):
    """Asks for input from outside the run; written to the stream when a step returns it."""

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
        exception: The exception that it raised, and that `await handler` raises.
        attempts: How often the step was tried; `None` if the failure is not that of a single step.
        elapsed_seconds: Seconds from the first start of the step to its failure, or `None`.
    """

    step_name: str
    exception: BaseException
    attempts: int | None = None
    elapsed_seconds: float | None = None


class StepFailedEvent(Event):
    """A step failed for good. It starts the `@catch_error` step for that step.

    Attributes:
        step_name: Name of the step that failed.
        input_event: The event that started it: one, a list for a join, a tuple with one per parameter.
        exception: The exception of its last attempt.
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
    """An event was sent or returned that no step takes; it is dropped.

    Attributes:
        event_type: Name of its class.
        qualified_name: Module and qualified name of its class.
        step_name: The step that it was sent to, if one was named.
        idle: Whether nothing was queued or running in the run at that moment.
    """

    event_type: str
    qualified_name: str
    step_name: str | None = None
    idle: bool


class StepState(enum.Enum):
    """The states of an execution of a step."""

    PREPARING = "preparing"
    """It is queued."""

    RUNNING = "running"
    """It begins, or continues after a wait."""

    WAITING = "waiting"
    """It waits for an event, or for a worker to continue."""

    NOT_RUNNING = "not_running"
    """It is over. If it is tried again, it is `PREPARING` again after the delay."""


ExecutionOutcome = Literal["returned", "failed", "retrying", "cancelled", "recovered"]
"""How an execution of a step ended.

`"failed"` and `"recovered"` are final: with `"recovered"`, a `@catch_error` step takes over. After
`"retrying"`, another attempt follows. Executions that never began are `"cancelled"` too.
"""


class StepStateChanged(InternalDispatchEvent):
    """The state of an execution of a step has changed.

    A new listener gets the present states first. So the executions that entered a state, less those that
    left it, are those in it: the count in `handler.statistics()`, and 0 when the run has ended.

    Attributes:
        name: Name of the step.
        step_state: The state from now on.
        worker_id: Identifies the execution in its run; the same for all of its attempts.
        input_event_name: Name of the class of the event that starts the step, several separated by
            commas.
        output_event_name: Name of the class of the event that it returned; for a list
            `list[Item | Extra]`, or `[]`.
        attempt: Number of the attempt, from 1.
        outcome: How the attempt ended, if the state is `NOT_RUNNING`.
        error: Type and message of its exception, as in `ValueError: no such city`.
    """

    name: str
    step_state: StepState
    worker_id: str
    input_event_name: str
    output_event_name: str | None = None
    attempt: int = 1
    outcome: ExecutionOutcome | None = None
    error: str | None = None


class WorkflowIdleEvent(InternalDispatchEvent):
    """No step is queued or running; the run waits for an event from outside."""


def _prepare(cls: type[Event]) -> Mapping[str, Any]:
    """Work out the run-time checks of a class, and check its literal defaults, once.

    Returns:
        The run-time check for each keyword.

    Raises:
        EventValidationError: If a literal default is of a wrong type. The next instance raises it again.
    """
    types = _types(cls)
    checks: dict[str, Any] = {}
    factories: dict[str, tuple[str, Any]] = {}
    for field in _fields(cls):
        if field.name == "_extra":
            continue
        wanted = types[field.name]
        check_marks(cls, field.name, wanted)  # its names may not have been defined until now
        unchecked = field.converter or isinstance(wanted, Unresolved)
        check = object if unchecked else check_for(wanted)
        if field.init:
            checks[_keyword(field)] = check
        default = _default_of(field)
        if isinstance(default, _FACTORY):
            factories[_keyword(field)] = field.name, check
        elif default is not attrs.NOTHING and not isinstance(default, check):
            raise _wrong_type(cls, _keyword(field), default, "the default ")
    cls._checks, cls._factories = checks, factories
    if cls.__init__ is cls._constructor and _stores_only(cls):
        cls._constructor = _generate_init(cls, checks, _GENERAL)
        cls._constructor.__signature__ = _signature(cls, types, _SELF)
        cls.__init__ = cls._constructor  # type: ignore[method-assign]
    return checks


def _by_position(
    cls: type[Event], given: tuple[Any, ...], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the positional values by keyword, as for `StopEvent("done")` (E2)."""
    declared = [_keyword(f) for f in _fields(cls) if f.init and f.name not in Event._open_fields]
    allowed = declared if cls._open else []
    if len(given) <= len(allowed) and not values.keys() & set(allowed[: len(given)]):
        return dict(zip(allowed, given, strict=False))
    declared.sort(key=cls._open_fields.__contains__)  # those that the class adds come first
    name = "" if cls._open else declared[0]
    if len(given) == 1 and isinstance(given[0], Mapping | Event):
        call = "**values"
    else:
        named = zip(declared or ["name"], given, strict=False)
        call = ", ".join(f"{keyword}={reprlib.repr(value)}" for keyword, value in named)
    problem = f"events take their fields by keyword, {cls.__name__}({call})"
    if allowed:
        problem = f"takes only {allowed[0]} by position, and only once"
    raise EventValidationError(cls.__name__, name, problem)


def _types(cls: type[Event]) -> dict[str, Any]:
    """Return the types of the fields; `Unresolved` for those that are not checked."""
    fields = (field for field in _fields(cls) if field.name != "_extra")
    return {field.name: resolve_field(cls, field.name, field.type) for field in fields}


def _wrong_type(
    cls: type[Event], keyword: str, value: object, what: str = ""
) -> EventValidationError:
    field = next((f for f in _fields(cls) if _keyword(f) == keyword), None)
    written = Any if field is None else field.type
    expected = written if isinstance(written, str) else inspect.formatannotation(written)
    problem = f"expected {expected}, got {what}{reprlib.repr(value)} ({type(value).__qualname__})"
    if field is None or hasattr(type(value), "__await__"):
        problem += f"; {await_missing(value)}"
    elif what and value is None:
        problem += f"; annotate it with '{expected} | None'"
    elif remark := namesakes(classes_held(value), classes_in(_types(cls).get(field.name))):
        problem += f"; {remark}"
    return EventValidationError(cls.__name__, keyword, problem)


# --- Generated constructors -----------------------------------------------------------------------
#
# `Event.__init__` takes any keyword and looks up its check: 0.5 us for one field, 0.7 for three; one
# generated for a class, with its fields as parameters, 0.35 and 0.5. That one has the fast path only,
# and leaves doubtful cases and errors to `Event.__init__`.

_MISSING = object()


class _Copies:
    """Copies the default that is written in the class, for each instance."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return copy.deepcopy(self.value)


def _default_of(field: attrs.Attribute[Any]) -> Any:
    """Return the default as it was written: a value, an `attrs.Factory`, or `attrs.NOTHING`."""
    factory = getattr(field.default, "factory", None)
    return factory.value if isinstance(factory, _Copies) else field.default


def _stores_only(cls: type) -> bool:
    """Return whether attrs only stores the fields of an instance: no converter, hook or alias."""
    hooks = hasattr(cls, "__attrs_pre_init__") or hasattr(cls, "__attrs_post_init__")
    return not hooks and all(
        field.init
        and field.converter is None
        and field.validator is None
        and field.alias in (None, field.name)
        and not hasattr(getattr(cls, field.name, None), "__set__")  # a slot of a base
        for field in attrs.fields(cls)
    )


def _generate_init(
    cls: type, checks: Mapping[str, Any], general: Callable[..., None]
) -> Callable[..., None]:
    """Return an `__init__` for instances of exactly `cls`, a class that `_stores_only()`.

    Args:
        cls: The class.
        checks: The run-time check for each field that the constructor takes, by name.
        general: The constructor for everything else: missing and unknown keywords, values of a wrong
            type or by position, instances of subclasses.
    """
    fields = {field.name: field for field in attrs.fields(cls)}
    names: dict[str, Any] = {
        "__name__": __name__,
        "__missing": _MISSING,
        "__Coroutine": CoroutineType,
        "__isinstance": isinstance,  # a field may be called as a builtin is
        "__type": type,
        "__cls": cls,
        "__general": general,
    }
    parameters = ["__self", "/", "*__given"]
    doubts = ["__given", "__others", "__self.__class__ is not __cls"]
    stores = ["__stored = __self.__dict__"]
    for name, check in checks.items():
        parameters.append(f"{name}=__missing")
        names[f"__{name}_check"] = check
        # `Any` does not accept a coroutine: an 'await' was forgotten (E3).
        wrong = f"not __isinstance({name}, __{name}_check)"
        if check is ANYTHING:
            wrong = f"__type({name}) is __Coroutine"
        default = fields[name].default
        copies = isinstance(getattr(default, "factory", None), _Copies)
        if default is attrs.NOTHING or (isinstance(default, _FACTORY) and not copies):
            doubts.append(f"{name} is __missing or {wrong}")
            stores.append(f"__stored[{name!r}] = {name}")
        else:
            names[f"__{name}_default"] = default.factory if copies else default
            value = f"__{name}_default()" if copies else f"__{name}_default"
            doubts.append(f"{name} is not __missing and {wrong}")
            stores.append(f"__stored[{name!r}] = {value} if {name} is __missing else {name}")
    source = [
        f"def __init__({', '.join(parameters)}, **__others):",
        f"    if {' or '.join(doubts)}:",
        *(f"        if {name} is not __missing: __others[{name!r}] = {name}" for name in checks),
        "        return __general(__self, *__given, **__others)",
        *("    " + store for store in stores),
    ]
    code = compile("\n".join(source), f"<constructor of {cls.__qualname__}>", "exec")
    exec(code, names)  # only the names of the fields come from outside
    constructor: Callable[..., None] = names["__init__"]
    constructor.__qualname__ = f"{cls.__qualname__}.__init__"
    constructor.__module__ = cls.__module__
    return constructor
