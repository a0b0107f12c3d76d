"""Read step functions into `StepSpec`s, and find the faults of their signatures."""

from __future__ import annotations

import functools
import inspect
import itertools
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import attrs

from ._annotations import Unresolved, classes_of, is_record, resolve, strip
from ._dependencies import Dependency, read_dependency
from ._messages import names_of
from .collect import All, Collect, Opener, Take
from .errors import WorkflowValidationError
from .events import Event, StepFailedEvent, StopEvent
from .graph import EventParam, EventType, StepSpec
from .resource import Resource, ResourceConfig
from .state import DictState
from .steps import StepConfig


class _UnresolvedNameError(WorkflowValidationError):
    """An annotation has a name that is not defined, or not yet: later it may be."""


def step_members(cls: type) -> dict[str, Any]:
    """Return the steps of a class, inherited ones first.

    Free functions that were added to a class are kept in its `_free_steps`, as static methods.
    """
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, member in _own_members(base).items():
            if StepConfig.of(member) is not None:
                members[name] = member
            else:
                members.pop(name, None)
    return members


def _own_members(cls: type) -> dict[str, Any]:
    return {**vars(cls), **vars(cls).get("_free_steps", {})}


def _hidden_steps(cls: type) -> Iterator[str]:
    """Find members that hide an inherited step without being a step (V1)."""
    owners: dict[str, list[tuple[type, Any]]] = {}  # of each name, the nearest first
    for base in cls.__mro__:
        for name, member in _own_members(base).items():
            owners.setdefault(name, []).append((base, member))
    for name, ((base, member), *hidden) in owners.items():
        if member is None or StepConfig.of(member) is not None:
            continue
        owner, below = next((one for one in hidden if _is_settled(one[1])), (base, None))
        if below is not None:
            yield (
                f"{base.__name__}.{name} hides the step {name} of {owner.__name__} without being a "
                f"step; mark it with @step, or write '{name} = None' to drop the step"
            )


def _is_settled(member: Any) -> bool:
    """Return whether a member is a step, or drops one."""
    return member is None or StepConfig.of(member) is not None


def read_steps(cls: type, context_type: type) -> tuple[dict[str, StepSpec], list[str]]:
    """Read the signatures of all steps of a class.

    Steps that were read before, kept in the `_specs` of each class, are not read again.

    Args:
        cls: A workflow class.
        context_type: The class that marks the context parameter of a step.

    Returns:
        The steps by name, and the faults of steps whose annotations name something that is not
        defined, or not yet.

    Raises:
        WorkflowValidationError: With every other fault of every signature.
    """
    known: dict[str, StepSpec] = {}
    names: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name in vars(base):
            known.pop(name, None)
        known |= vars(base).get("_specs", {})
        names |= classes_of(base)
    specs: dict[str, StepSpec] = {}
    faults = list(_hidden_steps(cls))
    unresolved: list[str] = []
    for name, member in step_members(cls).items():
        if name in known and known[name].function is _function_of(member):
            specs[name] = known[name]
            continue
        try:
            specs[name] = _read_step(name, member, context_type, names)
        except _UnresolvedNameError as exc:
            unresolved += [f"{exc.where}: {fault}" for fault in exc.faults]
        except WorkflowValidationError as exc:
            faults += [f"{exc.where}: {fault}" for fault in exc.faults]
    if faults:
        raise WorkflowValidationError(cls.__name__, faults)
    return specs, unresolved


def _function_of(member: Any) -> Callable[..., Any]:
    return member.__func__ if isinstance(member, staticmethod) else member


def _read_step(name: str, member: object, context_type: type, names: Mapping[str, Any]) -> StepSpec:
    where = f"step {name}"
    function = _function_of(member)
    config = StepConfig.of(member)
    assert config is not None
    if not inspect.isfunction(function):
        remedy = f"it is a {type(function).__name__}; steps are methods, static or free functions"
        raise WorkflowValidationError(where, [remedy])
    if inspect.isasyncgenfunction(function):
        remedy = "it yields; return one event, and use ctx.send_event() for more"
        raise WorkflowValidationError(where, [remedy])
    if inspect.isgeneratorfunction(function):
        remedy = "it yields; return one event, or a list of events"
        raise WorkflowValidationError(where, [remedy])
    signature = inspect.signature(function)
    params = list(signature.parameters.values())
    is_method = not isinstance(member, staticmethod)
    if is_method:
        if not params or params[0].kind is inspect.Parameter.KEYWORD_ONLY:
            raise WorkflowValidationError(where, ["it is a method, but has no 'self' parameter"])
        params = params[1:]
    hints = _hints(where, function, params, signature.return_annotation, names)
    parameters, faults = _sort_params(where, params, hints, context_type)
    event_params = parameters.event_params
    if not (event_params or parameters.openers or faults):
        filled = [name for name in parameters.dependencies if _event_types(hints[name])[0]]
        why = f": the resource fills {filled[0]!r}; remove the marker" if filled else ""
        remedy = why or "; annotate one, as in 'ev: StartEvent'"
        faults.append(f"no parameter takes an event{remedy}")
    if len(event_params) > 1 and any(param.policy is not None for param in event_params):
        faults.append("a step that joins a list of events takes no other events; split it")
    faults += _opener_faults(parameters)
    faults += _catch_faults(event_params, config)
    faults += _overlaps(event_params, config)
    outputs = _Outputs((), (), False)
    if "return" in hints:
        outputs, fault = _read_outputs(hints["return"])
        faults += [*fault, *_idle_marks("the return annotation", hints["return"])]
    else:
        faults.append("no return annotation; say which events it returns, or '-> None'")
    if faults:
        raise WorkflowValidationError(where, faults)
    return StepSpec(
        name=name,
        function=function,
        is_method=is_method,
        is_async=_is_async(function),
        event_params=tuple(event_params),
        opener_param=next(iter(parameters.openers), None),
        context_param=parameters.context,
        state_type=parameters.state_type,
        dependencies=parameters.dependencies,
        returns=outputs.one,
        returns_list=outputs.many,
        returns_none=outputs.none,
        config=config,
    )


def _is_async(function: Any) -> bool:
    """Return whether a function is async, or wraps one that is, as decorators do (R5)."""
    while function is not None:
        for called in (function, getattr(type(function), "__call__", None)):  # noqa: B004
            if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
                return True
        is_partial = isinstance(function, functools.partial)
        function = function.func if is_partial else getattr(function, "__wrapped__", None)
    return False


def _hints(
    where: str,
    function: Any,
    params: Iterable[inspect.Parameter],
    returns: object,
    class_names: Mapping[str, Any],
) -> dict[str, Any]:
    """Resolve the annotations of a function, each on its own so that all faults are found."""
    function = inspect.unwrap(function)
    annotations = {param.name: param.annotation for param in params} | {"return": returns}
    hints: dict[str, Any] = {}
    faults: list[str] = []
    for name, annotation in annotations.items():
        if annotation is inspect.Parameter.empty:
            continue
        hint = resolve(annotation, function, class_names)
        if not isinstance(hint, Unresolved):
            hints[name] = hint
        elif hint.name is not None:
            faults.append(f"the annotation of {name!r} names {hint.name!r}, which is not defined")
        else:
            fault = f"{name!r} is annotated with {annotation!r}: {hint.reason}"
            raise WorkflowValidationError(where, [fault])
    if faults:
        raise _UnresolvedNameError(where, faults)
    return hints


@attrs.define
class _Parameters:
    """The parameters of a step, sorted."""

    context: str | None = None
    state_type: type | None = None
    event_params: list[EventParam] = attrs.field(factory=list)
    openers: list[EventParam] = attrs.field(factory=list)
    dependencies: dict[str, Dependency] = attrs.field(factory=dict)


def _sort_params(
    where: str, params: Iterable[inspect.Parameter], hints: Mapping[str, Any], context_type: type
) -> tuple[_Parameters, list[str]]:
    """Sort the parameters of a step; returns them with the faults."""
    found = _Parameters()
    context_params: list[str] = []
    faults: list[str] = []
    unresolved: list[str] = []
    for param in params:
        name = param.name
        by_name = param.kind in (param.POSITIONAL_OR_KEYWORD, param.KEYWORD_ONLY)
        used: object = None
        if name not in hints:
            if param.default is param.empty:
                remedy = "say what it takes, as in 'ev: StartEvent'"
                if name in ("ctx", "context"):
                    remedy = f"annotate it with Context, as in '{name}: Context'"
                faults.append(f"parameter {name!r} has no annotation; {remedy}")
        elif by_name and any(_is_class(m, context_type) for m in _members(hints[name])):
            context_params.append(name)
            found.context, found.state_type = name, _state_type(hints[name], faults)
        elif (
            by_name and (dependency := read_dependency(hints[name], faults, unresolved)) is not None
        ):
            found.dependencies[name] = dependency
            used = next(m for m in _marks(hints[name]) if isinstance(m, Resource | ResourceConfig))
        elif by_name and (mark := _opener_mark(hints[name])) is not None:
            found.openers.append(_read_opener(name, hints[name], faults))
            used = mark if isinstance(mark, Opener) else None
        elif by_name and (event_param := _read_event_param(name, hints[name], faults)) is not None:
            found.event_params.append(event_param)
            used = _collect_mark(hints[name])
        elif param.default is param.empty:
            shown = inspect.formatannotation(hints[name])
            way = "" if by_name else ", or cannot be given by name"
            faults.append(
                f"parameter {name!r} is neither an event nor the context but {shown}{way}"
            )
        if name in hints:
            faults += _idle_marks(f"parameter {name!r}", hints[name], used)
    if len(context_params) > 1:
        faults.append(f"more than one parameter takes the context: {', '.join(context_params)}")
    if unresolved:
        raise _UnresolvedNameError(where, unresolved)
    return found, faults


def _state_type(annotation: Any, faults: list[str]) -> type | None:
    """Return the class in `Context[...]`; `None` if it says none, or `dict`."""
    given = [arg for member in _alternatives(annotation) for arg in typing.get_args(strip(member))]
    wanted: Any = next((arg for arg in given if not isinstance(arg, typing.TypeVar)), Any)
    cls: Any = typing.get_origin(wanted) or wanted
    if cls is Any or cls is DictState or wanted is dict:
        return None
    if is_record(cls):
        return cast(type, cls)
    shown = inspect.formatannotation(wanted)
    faults.append(
        f"Context[{shown}]: the state is an attrs class, a dataclass or a pydantic model, or untyped"
    )
    return None


def _read_event_param(name: str, annotation: Any, faults: list[str]) -> EventParam | None:
    """Read a parameter that takes events; `None` if it takes none."""
    element = _element(annotation)
    if element is None:
        if any(_element(member) is not None for member in _alternatives(annotation)):
            faults.append(
                f"parameter {name!r} takes events one by one and in lists; split the step"
            )
            return EventParam(name, (), None)
        events, others = _event_types(annotation)
        policy: All | Take | None = None
    else:
        events, others = _event_types(element)
        mark = _collect_mark(annotation)
        policy = All() if mark is None else mark.cardinality
    if not events:
        return None
    faults += [f"parameter {name!r} mixes events with {other}" for other in others]
    return EventParam(name, events, policy)


def _opener_mark(annotation: Any) -> Any:
    """Return the marker that asks for what opened the batch: an instance or, by mistake, the class."""
    return next((m for m in _marks(annotation) if m is Opener or isinstance(m, Opener)), None)


def _read_opener(name: str, annotation: Any, faults: list[str]) -> EventParam:
    """Read the parameter of a join that takes what opened its batch."""
    events, others = _event_types(annotation)
    if others or not events:
        shown = inspect.formatannotation(strip(annotation))
        faults.append(
            f"parameter {name!r}: Opener() gives one event, not {shown}; annotate it with the event class "
            "that the step which returns the list takes"
        )
    return EventParam(name, events)


def _opener_faults(parameters: _Parameters) -> Iterator[str]:
    openers = parameters.openers
    if len(openers) > 1:
        names = ", ".join(param.name for param in openers)
        yield f"more than one parameter takes the event that opened the batch: {names}; keep one"
    if any(param.policy is not None for param in parameters.event_params):
        return
    for param in (param for param in openers if param.accepts):
        yield (
            f"parameter {param.name!r}: Opener() has no effect on {names_of(param.accepts)}, since the "
            "step joins no batch; let it take a list of events, or remove the marker"
        )


def _catch_faults(params: list[EventParam], config: StepConfig) -> Iterator[str]:
    taken = [(param.accepts, param.policy) for param in params]
    if config.catch is not None and taken not in ([], [((StepFailedEvent,), None)]):
        yield "a step marked with @catch_error takes one StepFailedEvent, and nothing else"
    if config.catch is None and any(StepFailedEvent in param.accepts for param in params):
        yield "it takes StepFailedEvent; mark it with @catch_error instead of @step"


def _overlaps(params: list[EventParam], config: StepConfig) -> Iterator[str]:
    """Find parameters that share some, but not all, of their types: an event would fit both."""
    for one, other in itertools.combinations(params, 2):
        shared = bool(set(one.accepts) & set(other.accepts))
        if config.accept_event_subclasses:
            pairs = itertools.product(one.accepts, other.accepts)
            shared = any(issubclass(a, b) or issubclass(b, a) for a, b in pairs)
        if shared and set(one.accepts) != set(other.accepts):
            yield (
                f"parameters {one.name!r} and {other.name!r} share some types; let them take the "
                "same types, or different ones"
            )


_MARKS = (Collect, All, Take, Opener, Resource, ResourceConfig)


def _marks(annotation: Any, outermost: bool = False) -> Iterator[Any]:
    """Yield the markers of this library in an annotation: instances or, by mistake, classes."""
    while hasattr(annotation, "__value__"):  # `type X = ...`, Python 3.12
        annotation = annotation.__value__
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        for mark in args[1:]:
            if isinstance(mark, _MARKS) or (isinstance(mark, type) and issubclass(mark, _MARKS)):
                yield mark
        args = args[:1]
    elif outermost:
        return
    for arg in args:
        yield from _marks(arg, outermost)


def _collect_mark(annotation: Any) -> Collect | None:
    """Return the marker that says when a list of events is joined."""
    if _element(annotation) is None:
        return None
    return next((m for m in _marks(annotation, outermost=True) if isinstance(m, Collect)), None)


def _idle_marks(where: str, annotation: Any, used: object = None) -> Iterator[str]:
    """Find the markers in an annotation that have no effect."""
    shown = inspect.formatannotation(strip(annotation))
    for mark in _marks(annotation):
        if mark is used:
            continue
        kind = mark if isinstance(mark, type) else type(mark)
        call = "Opener()" if kind is Opener else f"{kind.__name__}(...)"
        name = mark.__name__ if isinstance(mark, type) else call
        if isinstance(used, kind):
            remedy = "it has such a marker already; keep one"
        elif isinstance(mark, type):
            remedy = f"write {call}"
        elif kind in (All, Take):
            remedy = "write Annotated[list[...], Collect(Take(n))]"
        elif kind is Opener:
            remedy = "it belongs on a second parameter of a step that takes a list of events"
        elif kind is Collect:
            remedy = "it belongs on a list of events: Annotated[list[...], Collect(...)]"
        else:
            remedy = "a parameter takes an event, the context, or a resource"
        yield f"{where}: {name} has no effect on {shown}; {remedy}"


def _element(annotation: Any) -> Any:
    """Return what a `list[...]` annotation holds; `None` if it is no list."""
    plain = strip(annotation)
    return typing.get_args(plain)[0] if typing.get_origin(plain) is list else None


def _is_class(annotation: Any, cls: type) -> bool:
    annotation = strip(annotation)
    plain = typing.get_origin(annotation) or annotation
    return isinstance(plain, type) and issubclass(plain, cls)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union; anything else is its own only member."""
    annotation = strip(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for arg in typing.get_args(annotation):
            yield from _alternatives(arg)
    else:
        yield annotation


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union, generic ones as their plain classes."""
    for member in _alternatives(annotation):
        yield typing.get_origin(member) or member


def _event_types(annotation: Any) -> tuple[tuple[EventType, ...], list[str]]:
    """Return the event types in an annotation, and the names of other types but `None`."""
    events: list[EventType] = []
    others: list[str] = []
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, Event):
            events.append(member)
        elif member not in (None, types.NoneType):
            others.append(inspect.formatannotation(member))
    return tuple(events), others


@attrs.frozen
class _Outputs:
    """The result types of a return annotation: single events, events in a list, `None`."""

    one: tuple[EventType, ...]
    many: tuple[EventType, ...]
    none: bool


def _read_outputs(annotation: Any) -> tuple[_Outputs, list[str]]:
    """Read a return annotation; returns it with its faults."""
    if strip(annotation) in (typing.NoReturn, typing.Never):
        return _Outputs((), (), False), []
    one: list[EventType] = []
    many: list[EventType] = []
    faults: list[str] = []
    none = False
    for member in _alternatives(annotation):
        element = _element(member)
        events, others = _event_types(member if element is None else element)
        faults += [f"it returns {other}, which is not an event" for other in others]
        none = none or member in (None, types.NoneType)
        (one if element is None else many).extend(events)
    if stops := [t for t in many if issubclass(t, StopEvent)]:
        faults.append(f"it returns {names_of(stops)} in a list; one stop event ends the run")
    return _Outputs(tuple(one), tuple(many), none), faults
