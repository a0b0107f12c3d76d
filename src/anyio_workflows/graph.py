"""`StepSpec`, a step as read from its signature, and `Graph`: which step takes which event."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from types import AsyncGeneratorType
from typing import Any

import attrs

from ._dependencies import Dependency
from ._messages import await_missing, namesakes, shortened
from .collect import All, Take
from .events import Event, StartEvent, StepFailedEvent, StopEvent
from .steps import StepConfig

__all__ = ["EventParam", "Graph", "StepSpec"]

EventType = type[Event]

_NO_RESOURCES: Mapping[str, Any] = {}


@attrs.frozen
class EventParam:
    """One parameter of a step that takes events.

    Attributes:
        name: Name of the parameter.
        accepts: The event types that it takes, at least one.
        policy: When the join fires, if it takes a list of events; `None` if it takes one event.
    """

    name: str
    accepts: tuple[EventType, ...]
    policy: All | Take | None = None

    @property
    def declared(self) -> str:
        """The types that it takes, as they are shown in messages."""
        declared = " | ".join(t.__name__ for t in self.accepts)
        return declared if self.policy is None else f"list[{declared}]"


Slot = EventParam
"""The former name of `EventParam`; will be removed in the next release."""


_LONGEST_REPR = 300


def _derived(find: Callable[[StepSpec], Any]) -> Any:
    """Return an attribute that follows from the others.

    A `cached_property` would cost 0.05 us more each time, and some are read several times a step.
    """
    return attrs.field(init=False, default=attrs.Factory(find, takes_self=True))


def _size_of(param: EventParam) -> float:
    return param.policy.n if isinstance(param.policy, Take) else math.inf


def _cancels(param: EventParam) -> bool:
    return isinstance(param.policy, Take) and param.policy.cancel


@attrs.frozen(eq=False, slots=False, repr=False)
class StepSpec:
    """One step, read from its signature.

    Attributes:
        name: The name of the step in its workflow.
        function: The step function as it was written.
        is_method: Whether its first argument is the workflow.
        is_async: Whether it is an `async def`, or wraps one; otherwise it runs in a thread.
        event_params: The parameters that take events, at least one; exactly one if that takes a list.
            Two of them have the same types, or none in common.
        opener_param: The parameter of a join that takes the event which opened the batch, if there is
            one; it does not start the step.
        returns: The event types it may return.
        returns_list: The event types it may return in a list; a `StopEvent` is none of them.
        returns_none: Whether its annotation says that it may return `None`.
        context_param: Name of the parameter that takes the context, if there is one.
        state_type: The class of the state, if the annotation of the context has one.
        dependencies: The resources that other parameters ask for, by parameter.
        config: The arguments of `@step` or `@catch_error`.
        is_join: Whether it takes the events of a batch, in a list.
        is_plain: Whether one event is enough to start it.
        is_simple: Whether an execution is only a call with its events and context: no thread, no
            timeout, no other arguments.
        target: The function to call: the step function, or a coroutine function that wraps it.
        batch_size: How many events start it, if it is a join that does not wait for all.
        cancels_batch: Whether it is a join that cancels what is left of its batch.
        invoke: Calls the function as `call()` does, with the workflow, the context and the event;
            for steps that take nothing else.
    """

    name: str
    function: Callable[..., Any]
    is_method: bool
    is_async: bool
    event_params: tuple[EventParam, ...]
    opener_param: EventParam | None
    returns: tuple[EventType, ...]
    returns_list: tuple[EventType, ...]
    returns_none: bool
    context_param: str | None
    state_type: type | None
    dependencies: Mapping[str, Dependency]
    config: StepConfig
    # Derived from the fields above, once per spec.
    is_join: bool = _derived(
        lambda spec: any(param.policy is not None for param in spec.event_params)
    )
    is_plain: bool = _derived(lambda spec: len(spec.event_params) == 1 and not spec.is_join)
    is_simple: bool = _derived(
        lambda spec: (
            spec.is_async
            and spec.config.timeout is None
            and not spec.dependencies
            and spec.opener_param is None
        )
    )
    target: Callable[..., Any] = _derived(  # noqa: RUF009 - it makes a field
        lambda spec: _awaiting(spec.function) if spec.is_async else spec.function
    )
    batch_size: float = _derived(
        lambda spec: min(map(_size_of, spec.event_params), default=math.inf)
    )
    cancels_batch: bool = _derived(lambda spec: any(map(_cancels, spec.event_params)))
    invoke: Callable[[object, object, Any], Any] = _derived(  # noqa: RUF009 - it makes a field
        lambda spec: spec._find_invocation()
    )

    @functools.cached_property
    def accepts(self) -> tuple[EventType, ...]:
        """The event types that start it."""
        return tuple(dict.fromkeys(t for param in self.event_params for t in param.accepts))

    @functools.cached_property
    def produces(self) -> tuple[EventType, ...]:
        """The event types that it may return, in a list or not."""
        return tuple(dict.fromkeys((*self.returns, *self.returns_list)))

    @property
    def declared(self) -> str:
        """The result types as they are shown in messages."""
        declared = [t.__name__ for t in self.returns]
        if self.returns_list:
            declared.append(f"list[{' | '.join(t.__name__ for t in self.returns_list)}]")
        if self.returns_none:
            declared.append("None")
        return " | ".join(declared) or "NoReturn"

    def takes(self, event_type: EventType) -> bool:
        """Return whether events of exactly this type start the step (R1)."""
        return self._matches(event_type, self.accepts)

    def fits(self, param: EventParam, event: Event) -> bool:
        """Return whether one of the step's parameters takes this event."""
        return self.fits_type(param, type(event))

    def fits_type(self, param: EventParam, event_type: EventType) -> bool:
        """Return whether one of the step's parameters takes events of exactly this type."""
        return self._matches(event_type, param.accepts)

    def _matches(self, event_type: EventType, accepted: tuple[EventType, ...]) -> bool:
        if self.config.accept_event_subclasses:
            return issubclass(event_type, accepted)
        return event_type in accepted

    def _find_invocation(self) -> Callable[[object, object, Any], Any]:
        """Call by position if the first parameters are the context, if any, and one event.

        That takes 0.2 us instead of 0.5.
        """
        function = self.target
        event_param = self.event_params[0].name
        first = [name for name in (self.context_param, event_param) if name is not None]
        if not self.is_plain or not _takes_by_position(self.function, self.is_method, first):
            return self.call
        if self.context_param is None:
            if self.is_method:
                return lambda workflow, context, event: function(workflow, event)
            return lambda workflow, context, event: function(event)
        if self.is_method:
            return function
        return lambda workflow, context, event: function(context, event)

    def call(
        self,
        workflow: object,
        context: object,
        payload: Any,
        opener: Event | None = None,
        resources: Mapping[str, Any] = _NO_RESOURCES,
    ) -> Any:
        """Call the step function with its event, its list of events, or one event per parameter.

        Args:
            workflow: The first argument of a method.
            context: For the parameter that takes it, if there is one.
            payload: The event or events.
            opener: The event that opened the batch of a join, for the parameter that takes it.
            resources: By parameter.
        """
        if type(payload) is list:
            payload = payload.copy()  # each attempt gets the same (X3)
        if len(self.event_params) == 1:
            arguments: dict[str, Any] = {self.event_params[0].name: payload}
        else:
            arguments = dict(zip((param.name for param in self.event_params), payload, strict=True))
        if self.context_param is not None:
            arguments[self.context_param] = context
        if self.opener_param is not None:
            arguments[self.opener_param.name] = opener
        if resources:
            arguments.update(resources)
        if self.is_method:
            return self.target(workflow, **arguments)
        return self.target(**arguments)

    def result_fault(self, result: object) -> str | None:
        """Return what is wrong with something that the step returned; `None` if nothing is (R4)."""
        if result is None:
            return None
        if self.returns_list and isinstance(result, list):
            fits = all(issubclass(type(event), self.returns_list) for event in result)
        else:
            fits = issubclass(type(result), self.returns)
        if fits:
            return None
        got = f"{reprlib.repr(result)} ({type(result).__qualname__})"
        remedy = "return one of those"
        if hasattr(type(result), "__await__"):
            remedy = await_missing(result, not self.is_async)
        elif issubclass(type(result), AsyncGeneratorType):
            remedy = "it yields; return one event, and use ctx.send_event() for more"
        items: Any = result if issubclass(type(result), list) else [result]
        remedy = namesakes(map(type, items), self.produces) or remedy
        return f"step {self.name} returned {got}, but declares {self.declared}; {remedy}"

    def __repr__(self) -> str:
        params = ", ".join(f"{param.name}: {param.declared}" for param in self.event_params)
        text = f"{self.name}({params}) -> {self.declared}"
        return f"<StepSpec {shortened(text, _LONGEST_REPR)}>"


def _awaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a coroutine function that awaits what a wrapper of an async function returns (R5).

    A wrapper may know the answer itself, from a cache for instance: what is not awaitable is taken
    as it is.
    """
    if inspect.iscoroutinefunction(function):
        return function

    @functools.wraps(function)
    async def await_result(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    return await_result


def _takes_by_position(function: Callable[..., Any], is_method: bool, names: list[str]) -> bool:
    """Tell whether a function declares these parameters first, and can be given them unnamed.

    A wrapper declares those of the function it wraps, but may call its own otherwise.
    """
    parameters = list(inspect.signature(function).parameters.values())[is_method:][: len(names)]
    if [param.name for param in parameters] != names:
        return False
    if any(param.kind is param.KEYWORD_ONLY for param in parameters):
        return False
    try:
        inspect.signature(function, follow_wrapped=False).bind(*range(is_method + len(names)))
    except TypeError:
        return False
    return True


def _tags(types: Iterable[type]) -> list[str]:
    return sorted(f"{cls.__module__}:{cls.__qualname__}" for cls in types)


@attrs.frozen(eq=False, slots=False, repr=False)
class Graph:
    """The steps of a workflow, and the routes of events between them. It never changes.

    Attributes:
        name: Name of the workflow class.
        steps: The steps by name, in the order of their definition.
        owner: The workflow class, if there is one.
        unread: The names of steps whose annotations cannot be resolved; only graphs for pictures lack steps.
        _routes: The steps that were found for each event type so far, in the order of `steps`.
    """

    name: str
    steps: Mapping[str, StepSpec]
    owner: type | None = None
    unread: tuple[str, ...] = ()
    _routes: dict[EventType, tuple[StepSpec, ...]] = attrs.field(factory=dict, init=False)

    def fingerprint(self) -> str:
        """Return a text that is another one when steps, or the events that they take and return, are others."""
        steps = [
            (
                spec.name,
                [(_tags(param.accepts), repr(param.policy)) for param in spec.event_params],
                _tags(spec.returns),
                _tags(spec.returns_list),
            )
            for spec in self.steps.values()
        ]
        return hashlib.sha256(repr(sorted(steps)).encode()).hexdigest()[:32]

    @functools.cached_property
    def joins(self) -> dict[StepSpec, set[StepSpec]]:
        """Find the joins of each step that returns a list; they depend on each other if nested."""
        joins: dict[StepSpec, set[StepSpec]] = {
            spec: set() for spec in self.steps.values() if spec.returns_list
        }
        grown = True
        while grown:
            grown = False
            for producer, known in joins.items():
                found, _ = self.level(producer, joins)
                grown = grown or not found <= known
                known |= found
        return joins

    def level(
        self, producer: StepSpec, joins: Mapping[StepSpec, set[StepSpec]]
    ) -> tuple[set[StepSpec], set[StepSpec]]:
        """Return the joins and the other steps that a list of `producer` leads to."""
        found: set[StepSpec] = set()
        inside: set[StepSpec] = set()
        frontier = list(producer.returns_list)
        while frontier:
            for spec in self.takers(frontier.pop()):
                if spec.is_join:
                    found.add(spec)
                    continue
                fresh = [spec]
                for step in fresh:
                    if step not in inside:
                        inside.add(step)
                        frontier += step.returns
                        fresh += joins.get(step, ())  # what they return is on this level
                        fresh += filter(None, [self.error_handler_of(step)])
        return found, inside

    def joins_of(self, producer: StepSpec) -> list[StepSpec]:
        """Return the steps that join the batches which `producer` opens (F2)."""
        joins = self.joins.get(producer, set())
        return [spec for spec in self.steps.values() if spec in joins]

    @functools.cached_property
    def takes_outside_events(self) -> bool:
        """Whether a step accepts a type that none produces, start events aside (T9)."""
        return any(
            not issubclass(accepted, StartEvent | StepFailedEvent)
            and not self.is_produced(accepted, spec)
            for spec in self.steps.values()
            for accepted in spec.accepts
        )

    @functools.cached_property
    def _error_handlers(self) -> dict[str | None, StepSpec]:
        """The `@catch_error` steps, by the names of the steps they are for; `None`: all others."""
        found: dict[str | None, StepSpec] = {}
        for spec in self.steps.values():
            if spec.config.catch is not None:
                for name in spec.config.catch.for_steps or (None,):
                    found.setdefault(name, spec)
        return found

    def error_handler_of(self, spec: StepSpec) -> StepSpec | None:
        """Return the `@catch_error` step for the failures of a step; it has none itself (X4)."""
        if spec.config.catch is not None:
            return None
        return self._error_handlers.get(spec.name, self._error_handlers.get(None))

    @functools.cached_property
    def cancels_branches(self) -> bool:
        """Whether a join cancels what is left of its batch: `Take(n, cancel=True)`."""
        return any(spec.cancels_batch for spec in self.steps.values())

    def takers(self, event_type: EventType) -> tuple[StepSpec, ...]:
        """Return the steps that events of exactly this type start (R1)."""
        try:
            return self._routes[event_type]
        except KeyError:
            found = tuple(
                spec
                for spec in self.steps.values()
                if spec.takes(event_type) and spec.config.catch is None
            )
            self._routes[event_type] = found
            return found

    @functools.cached_property
    def state_type(self) -> type | None:
        """The class of the state: the most derived one that a step names; `None`: untyped."""
        named = dict.fromkeys(s.state_type for s in self.steps.values() if s.state_type is not None)
        fitting = (one for one in named if all(issubclass(one, other) for other in named))
        return next(fitting, None)

    @functools.cached_property
    def uses_resources(self) -> bool:
        """Whether a step asks for a resource."""
        return any(spec.dependencies for spec in self.steps.values())

    @functools.cached_property
    def workflow_resources(self) -> tuple[tuple[str, Dependency], ...]:
        """The resources that the runs of an instance share, each with a step that uses it (P5)."""
        found: dict[Dependency, str] = {}
        seen: set[Dependency] = set()
        for spec in self.steps.values():
            below = list(spec.dependencies.values())
            while below:
                dependency = below.pop()
                if dependency in seen:
                    continue
                seen.add(dependency)
                below.extend(dependency.dependencies.values())
                if dependency.cache and dependency.scope == "workflow":
                    found[dependency] = spec.name
        return tuple((step, dependency) for dependency, step in found.items())

    @functools.cached_property
    def closed_with_workflow(self) -> tuple[str, str] | None:
        """A step and a resource of the workflow that it uses and that has to be closed, if any."""
        closing = (one for one in self.workflow_resources if one[1].closes_with_block)
        return next(((step, dependency.name) for step, dependency in closing), None)

    @functools.cached_property
    def start_event_types(self) -> list[EventType]:
        """The start event types that steps accept; a valid graph has one."""
        accepted = (t for spec in self.steps.values() for t in spec.accepts)
        return list(dict.fromkeys(t for t in accepted if issubclass(t, StartEvent)))

    @functools.cached_property
    def stop_event_types(self) -> list[EventType]:
        """The stop event types that steps return; a valid graph has one."""
        returned = (t for spec in self.steps.values() for t in spec.produces)
        return list(dict.fromkeys(t for t in returned if issubclass(t, StopEvent)))

    @property
    def events(self) -> list[EventType]:
        """All event types that steps accept or return."""
        specs = self.steps.values()
        return list(dict.fromkeys(t for spec in specs for t in (*spec.accepts, *spec.produces)))

    @functools.cached_property
    def produced(self) -> frozenset[EventType]:
        """The event types that steps return, in a list or not."""
        return frozenset(t for spec in self.steps.values() for t in spec.produces)

    def is_produced(self, event_type: EventType, spec: StepSpec) -> bool:
        """Return whether a step returns events that `spec` takes as this type."""
        if spec.config.accept_event_subclasses:
            return any(issubclass(t, event_type) for t in self.produced)
        return event_type in self.produced

    def __repr__(self) -> str:
        steps = f"{len(self.steps)} step{'' if len(self.steps) == 1 else 's'}"
        start, stop = (
            " | ".join(t.__name__ for t in types) or "none"
            for types in (self.start_event_types, self.stop_event_types)
        )
        text = f"{self.name}: {steps}, start {start}, stop {stop}"
        return f"<Graph of {shortened(text, _LONGEST_REPR)}>"
