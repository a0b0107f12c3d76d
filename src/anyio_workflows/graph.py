"""Read the signatures of steps, compile them to a `Graph`, and find the faults of a graph."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from ._annotations import local_names, resolve, strip
from .errors import WorkflowValidationError
from .events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from .steps import StepConfig, step_config

__all__ = ["Graph", "StepSpec", "read_steps", "step_members"]

EventType = type[Event]


class _UnresolvedNameError(WorkflowValidationError):
    """An annotation names something that does not exist, or not yet."""


@attrs.frozen(eq=False)
class StepSpec:
    """One step, read from its signature.

    Attributes:
        name: The name of the step in its workflow.
        function: The step function as it was written.
        is_method: Whether its first argument is the workflow.
        accepts: The event types that start it.
        returns: The event types it may return.
        returns_none: Whether it may return `None`.
        event_param: Name of the parameter that takes the event.
        context_param: Name of the parameter that takes the context, if there is one.
        config: What `@step` was told.
    """

    name: str
    function: Callable[..., Any] = attrs.field(repr=False)
    is_method: bool
    accepts: tuple[EventType, ...]
    returns: tuple[EventType, ...]
    returns_none: bool
    event_param: str
    context_param: str | None
    config: StepConfig

    def takes(self, event_type: EventType) -> bool:
        """Return whether events of exactly this type start the step (R1)."""
        if self.config.accept_event_subclasses:
            return issubclass(event_type, self.accepts)
        return event_type in self.accepts

    def call(self, workflow: object, context: object, event: Event) -> Any:
        """Call the step function; returns its coroutine."""
        arguments: dict[str, Any] = {self.event_param: event}
        if self.context_param is not None:
            arguments[self.context_param] = context
        if self.is_method:
            return self.function(workflow, **arguments)
        return self.function(**arguments)


# --- Reading signatures ------------------------------------------------------------------------


def step_members(cls: type) -> dict[str, Any]:
    """Return the steps of a class, those of its bases first, as Python's inheritance has it.

    Free functions that were added to a class are kept in its `_free_steps`, as static methods.
    """
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, member in {**vars(base), **vars(base).get("_free_steps", {})}.items():
            if step_config(member) is not None:
                members[name] = member
            else:
                members.pop(name, None)
    return members


def read_steps(cls: type, context_type: type) -> tuple[dict[str, StepSpec], list[str]]:
    """Read the signatures of all steps of a class.

    What has been read once is kept in the `_specs` of each class, and not read again.

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
        names |= {name: value for name, value in vars(base).items() if isinstance(value, type)}
    specs: dict[str, StepSpec] = {}
    faults: list[str] = []
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
    config = step_config(member)
    assert config is not None
    if not inspect.isfunction(function):
        remedy = f"it is a {type(function).__name__}; steps are methods, static or free functions"
        raise WorkflowValidationError(where, [remedy])
    if inspect.isasyncgenfunction(function):
        remedy = "it yields; return one event, and use ctx.send_event() for more"
        raise WorkflowValidationError(where, [remedy])
    if not inspect.iscoroutinefunction(function):
        raise WorkflowValidationError(where, ["declare it with 'async def'"])
    signature = inspect.signature(function)
    params = list(signature.parameters.values())
    is_method = not isinstance(member, staticmethod)
    if is_method:
        if not params or params[0].kind is inspect.Parameter.KEYWORD_ONLY:
            raise WorkflowValidationError(where, ["it is a method and lacks 'self'"])
        params = params[1:]
    hints = _hints(where, function, params, signature.return_annotation, names)
    context_param, event_params, faults = _sort_params(params, hints, context_type)
    if len(event_params) > 1:
        faults.append(f"more than one parameter takes an event: {', '.join(event_params)}")
    elif not event_params and not faults:
        faults.append("no parameter takes an event; annotate one, as in 'ev: StartEvent'")
    returns: tuple[EventType, ...] = ()
    returns_none = False
    if "return" in hints:
        returns, returns_none, fault = _outputs(hints["return"])
        faults += fault
    else:
        faults.append("no return annotation; say which events it returns, or '-> None'")
    if faults:
        raise WorkflowValidationError(where, faults)
    event_param = event_params[0]
    accepts, _ = _event_types(hints[event_param])
    return StepSpec(
        name=name,
        function=function,
        is_method=is_method,
        accepts=accepts,
        returns=returns,
        returns_none=returns_none,
        event_param=event_param,
        context_param=context_param,
        config=config,
    )


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
        names = {
            **local_names(annotation, function.__module__, function.__qualname__),
            **class_names,
        }
        try:
            hints[name] = resolve(annotation, function.__module__, names)
        except NameError as exc:
            faults.append(f"the annotation of {name!r} names {exc.name!r}, which is not defined")
        except Exception as exc:
            raise WorkflowValidationError(
                where, [f"the annotation {annotation!r} of {name!r} is no type: {exc}"]
            ) from exc
    if faults:
        raise _UnresolvedNameError(where, faults)
    return hints


def _sort_params(
    params: Iterable[inspect.Parameter], hints: Mapping[str, Any], context_type: type
) -> tuple[str | None, list[str], list[str]]:
    """Return the context parameter, the event parameters and the faults."""
    context_params: list[str] = []
    event_params: list[str] = []
    faults: list[str] = []
    for param in params:
        name = param.name
        by_name = param.kind in (param.POSITIONAL_OR_KEYWORD, param.KEYWORD_ONLY)
        if name not in hints:
            if param.default is param.empty:
                faults.append(f"parameter {name!r} has no annotation")
        elif by_name and any(_is_class(m, context_type) for m in _members(hints[name])):
            context_params.append(name)
        elif by_name and _event_types(hints[name])[0]:
            event_params.append(name)
            _, others = _event_types(hints[name])
            faults += [f"parameter {name!r} mixes events with {other}" for other in others]
        elif param.default is param.empty:
            shown = inspect.formatannotation(hints[name])
            way = "" if by_name else ", or cannot be given by name"
            faults.append(
                f"parameter {name!r} is neither an event nor the context but {shown}{way}"
            )
    if len(context_params) > 1:
        faults.append(f"more than one parameter takes the context: {', '.join(context_params)}")
    return context_params[0] if context_params else None, event_params, faults


def _is_class(annotation: Any, cls: type) -> bool:
    annotation = strip(annotation)
    plain = typing.get_origin(annotation) or annotation
    return isinstance(plain, type) and issubclass(plain, cls)


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of a union; anything else is its own only one."""
    annotation = strip(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for arg in typing.get_args(annotation):
            yield from _members(arg)
    else:
        yield typing.get_origin(annotation) or annotation


def _event_types(annotation: Any) -> tuple[tuple[EventType, ...], list[str]]:
    """Return the event types in an annotation and what else is in it, `None` left out."""
    events: list[EventType] = []
    others: list[str] = []
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, Event):
            events.append(member)
        elif member not in (None, types.NoneType):
            others.append(inspect.formatannotation(member))
    return tuple(events), others


def _outputs(annotation: Any) -> tuple[tuple[EventType, ...], bool, list[str]]:
    """Return the event types of a return annotation, whether it has `None`, and the faults."""
    if strip(annotation) in (typing.NoReturn, typing.Never):
        return (), False, []
    events, others = _event_types(annotation)
    faults = [f"it returns {other}, which is no event" for other in others]
    optional = any(member in (None, types.NoneType) for member in _members(annotation))
    return events, optional, faults


# --- The graph --------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Graph:
    """The steps of a workflow and the ways of events between them.

    Attributes:
        name: Name of the workflow class.
        steps: The steps by name, in the order of their definition.
    """

    name: str
    steps: Mapping[str, StepSpec]
    _routes: dict[EventType, tuple[StepSpec, ...]] = attrs.field(
        factory=dict, init=False, repr=False
    )
    _faults: dict[frozenset[str], list[str]] = attrs.field(factory=dict, init=False, repr=False)

    def takers(self, event_type: EventType) -> tuple[StepSpec, ...]:
        """Return the steps that events of exactly this type start (R1)."""
        try:
            return self._routes[event_type]
        except KeyError:
            found = tuple(spec for spec in self.steps.values() if spec.takes(event_type))
            self._routes[event_type] = found
            return found

    @property
    def start_event_types(self) -> list[EventType]:
        """The start event types that steps accept; a valid graph has one."""
        accepted = (t for spec in self.steps.values() for t in spec.accepts)
        return list(dict.fromkeys(t for t in accepted if issubclass(t, StartEvent)))

    @property
    def stop_event_types(self) -> list[EventType]:
        """The stop event types that steps return; a valid graph has one."""
        returned = (t for spec in self.steps.values() for t in spec.returns)
        return list(dict.fromkeys(t for t in returned if issubclass(t, StopEvent)))

    @property
    def events(self) -> list[EventType]:
        """All event types that steps accept or return."""
        specs = self.steps.values()
        return list(dict.fromkeys(t for spec in specs for t in (*spec.accepts, *spec.returns)))

    def faults(self, skip: frozenset[str] = frozenset()) -> list[str]:
        """Return every fault of the graph, each naming step, event and remedy (V1).

        Args:
            skip: Names of checks to leave out for the whole graph.
        """
        if skip not in self._faults:
            self._faults[skip] = self._find_faults(skip)
        return self._faults[skip]

    def _find_faults(self, skip: frozenset[str]) -> list[str]:
        if not self.steps:
            return ["it has no steps; mark its methods with @step"]
        faults = [*self._start_and_stop_faults()]
        checks = {
            "reachability": self._reachability_faults,
            "terminal_event": self._terminal_faults,
            "dead_end": self._dead_end_faults,
        }
        for check, find in checks.items():
            if check not in skip:
                faults += [
                    fault for spec, fault in find() if check not in spec.config.skip_graph_checks
                ]
        return faults

    def _start_and_stop_faults(self) -> Iterator[str]:
        if not (starts := self.start_event_types):
            yield "no step accepts StartEvent; annotate the first step with 'ev: StartEvent'"
        elif len(starts) > 1:
            yield f"its steps accept several start events ({_names(starts)}); keep one"
        if not (stops := self.stop_event_types):
            yield "no step returns StopEvent, so no run could end; let the last step return it"
        elif len(stops) > 1:
            yield f"its steps return several stop events ({_names(stops)}); keep one"
        for spec in self.steps.values():
            for accepted in spec.accepts:
                if issubclass(accepted, StopEvent):
                    yield (
                        f"step {spec.name} accepts {accepted.__name__}, but a stop event ends "
                        "the run; return an event of your own to it"
                    )

    def _reachability_faults(self) -> Iterator[tuple[StepSpec, str]]:
        produced = {t for spec in self.steps.values() for t in spec.returns}
        orphans = set()
        for spec in self.steps.values():
            wanted = [t for t in spec.accepts if not self._arrives(t, spec, produced)]
            for missing in wanted:
                yield (
                    spec,
                    f"step {spec.name} accepts {missing.__name__}, which no step returns; return "
                    "it from a step, or derive it from HumanResponseEvent if it comes from outside",
                )
            if len(wanted) == len(spec.accepts):
                orphans.add(spec.name)
        reached = self._reached()
        for spec in self.steps.values():
            if spec.name not in reached and spec.name not in orphans:
                yield (
                    spec,
                    f"step {spec.name} cannot be reached from the start event; return "
                    f"{_names(spec.accepts)} from a step that can",
                )

    def _arrives(self, event_type: EventType, spec: StepSpec, produced: set[EventType]) -> bool:
        if issubclass(event_type, StartEvent | HumanResponseEvent | StopEvent):
            return True
        if spec.config.accept_event_subclasses:
            return any(issubclass(t, event_type) for t in produced)
        return event_type in produced

    def _reached(self) -> set[str]:
        """Return the steps that events from outside can lead to."""
        outside = (StartEvent, HumanResponseEvent)
        frontier: list[EventType] = [t for t in self.events if issubclass(t, outside)]
        reached: dict[str, StepSpec] = {}
        while frontier:
            for spec in self.takers(frontier.pop()):
                if spec.name not in reached:
                    reached[spec.name] = spec
                    frontier += spec.returns
        return set(reached)

    def _terminal_faults(self) -> Iterator[tuple[StepSpec, str]]:
        for spec in self.steps.values():
            for returned in spec.returns:
                if issubclass(returned, StopEvent | InputRequiredEvent) or self.takers(returned):
                    continue
                yield (
                    spec,
                    f"step {spec.name} returns {returned.__name__}, which no step accepts; add a "
                    "step for it, or write it to the stream instead of returning it",
                )

    def _dead_end_faults(self) -> Iterator[tuple[StepSpec, str]]:
        ends: set[str] = set()
        grown = True
        while grown:
            grown = False
            for spec in self.steps.values():
                if spec.name not in ends and self._leads_on(spec, ends):
                    ends.add(spec.name)
                    grown = True
        for spec in self.steps.values():
            if spec.returns and spec.name not in ends and any(map(self.takers, spec.returns)):
                yield (
                    spec,
                    f"step {spec.name} is a dead end: nothing that follows from "
                    f"{_names(spec.returns)} ends the run; let a step after it return StopEvent",
                )

    def _leads_on(self, spec: StepSpec, ends: set[str]) -> bool:
        return any(
            issubclass(returned, StopEvent | InputRequiredEvent)
            or any(taker.name in ends for taker in self.takers(returned))
            for returned in spec.returns
        )


def _names(event_types: Iterable[EventType]) -> str:
    return ", ".join(t.__name__ for t in event_types)
