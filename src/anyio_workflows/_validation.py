"""Find the faults of a graph: what cannot start, what is lost, what cannot end (V1)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

from ._messages import names_of, namesakes, nearest
from .events import HumanResponseEvent, InputRequiredEvent, StartEvent, StepFailedEvent, StopEvent
from .graph import EventParam, EventType, Graph, StepSpec

_known: WeakKeyDictionary[Graph, dict[frozenset[str], list[str]]] = WeakKeyDictionary()
"""Graph -> skipped checks -> faults: each run validates its graph, which does not change."""


def find_faults(graph: Graph, skip: frozenset[str] = frozenset()) -> list[str]:
    """Return every fault of a graph, each naming step, event and remedy (V1).

    Args:
        graph: The graph.
        skip: Names of checks to leave out for the whole graph.
    """
    known = _known.setdefault(graph, {})
    if skip not in known:
        known[skip] = _find_faults(graph, skip)
    return known[skip]


def _find_faults(graph: Graph, skip: frozenset[str]) -> list[str]:
    if not graph.steps:
        return ["it has no steps; mark its methods with @step"]
    faults = [*_start_and_stop_faults(graph), *_catch_faults(graph), *_state_faults(graph)]
    checks = (  # what `skip_graph_checks` calls it; "" cannot be skipped
        ("reachability", _reachability_faults),
        ("reachability", _meeting_faults),
        ("", _join_faults),
        ("", _opener_faults),
        ("terminal_event", _terminal_faults),
        ("dead_end", _dead_end_faults),
    )
    for check, find in checks:
        if check not in skip:
            faults += [
                fault for spec, fault in find(graph) if check not in spec.config.skip_graph_checks
            ]
    return faults


def _start_and_stop_faults(graph: Graph) -> Iterator[str]:
    if not (starts := graph.start_event_types):
        yield "no step accepts StartEvent; annotate the first step with 'ev: StartEvent'"
    elif len(starts) > 1:
        remedy = namesakes(starts, starts) or "keep one"
        yield f"its steps accept several start events ({names_of(starts)}); {remedy}"
    if not (stops := graph.stop_event_types):
        yield "no step returns StopEvent, so no run could end; let the last step return it"
    elif len(stops) > 1:
        remedy = namesakes(stops, stops) or "keep one"
        yield f"its steps return several stop events ({names_of(stops)}); {remedy}"
    for spec in graph.steps.values():
        for accepted in spec.accepts:
            if issubclass(accepted, StopEvent):
                yield (
                    f"step {spec.name} accepts {accepted.__name__}, but a stop event ends "
                    "the run; return an event of your own to it"
                )


def _state_faults(graph: Graph) -> Iterator[str]:
    named = {s.name: s.state_type for s in graph.steps.values() if s.state_type is not None}
    if named and graph.state_type is None:
        steps = ", ".join(f"step {name}: {cls.__name__}" for name, cls in named.items())
        remedy = namesakes(named.values(), named.values()) or "derive one of them from all others"
        yield f"its steps name classes of the state that are unrelated ({steps}); {remedy}"


def _catch_faults(graph: Graph) -> Iterator[str]:
    taken: dict[str | None, str] = {}  # step, or `None` for all others -> its error handler
    for spec in graph.steps.values():
        for name in (spec.config.catch.for_steps or (None,)) if spec.config.catch else ():
            covered = None if name is None else graph.steps.get(name)
            if name in taken:
                whose = "all other steps" if name is None else f"step {name}"
                yield (
                    f"steps {taken[name]} and {spec.name} both take the failures of {whose}; "
                    "name different steps in their for_steps"
                )
            elif name is not None and covered is None:
                hint = nearest(name, graph.steps)
                yield f"step {spec.name}: for_steps names {name!r}, which is not a step; {hint}"
            elif covered is not None and covered.config.catch is not None:
                yield (
                    f"step {spec.name}: for_steps names {name!r}, a @catch_error step itself; "
                    "what such a step raises fails the run"
                )
            taken.setdefault(name, spec.name)


def _reachability_faults(graph: Graph) -> Iterator[tuple[StepSpec, str]]:
    orphans = set()
    for spec in graph.steps.values():
        wanted = [t for t in spec.accepts if not _arrives(graph, t, spec)]
        for missing in wanted:
            remedy = namesakes([missing], graph.produced) or (
                "return it from a step, or derive it from HumanResponseEvent if it comes from "
                "outside"
            )
            fault = f"step {spec.name} accepts {missing.__name__}, which no step returns; {remedy}"
            yield spec, fault
        if len(wanted) == len(spec.accepts):
            orphans.add(spec.name)
    reached = _reached(graph)
    for spec in graph.steps.values():
        if spec.name not in reached and spec.name not in orphans and spec.config.catch is None:
            yield (
                spec,
                f"step {spec.name} cannot be reached from the start event; return "
                f"{names_of(spec.accepts)} from a step that can",
            )


def _arrives(graph: Graph, event_type: EventType, spec: StepSpec) -> bool:
    if issubclass(event_type, StartEvent | HumanResponseEvent | StopEvent | StepFailedEvent):
        return True
    return graph.is_produced(event_type, spec)


def _reached(graph: Graph) -> set[str]:
    """Return the steps that events from external can lead to."""
    external = (StartEvent, HumanResponseEvent)
    frontier: list[EventType] = [t for t in graph.events if issubclass(t, external)]
    reached: set[str] = set()
    while frontier:
        fresh = list(graph.takers(frontier.pop()))
        for spec in fresh:
            if spec.name not in reached:
                reached.add(spec.name)
                frontier += spec.produces
                fresh += filter(None, [graph.error_handler_of(spec)])
    return reached


def _join_faults(graph: Graph) -> Iterator[tuple[StepSpec, str]]:
    for spec in graph.steps.values():
        if not spec.is_join:
            continue
        producers = [p for p, joins in graph.joins.items() if spec in joins]
        if not producers:
            listed = [t for producer in graph.joins for t in producer.returns_list]
            remedy = (
                namesakes(spec.accepts, listed) or "let a step before it return a list of events"
            )
            yield (
                spec,
                f"step {spec.name} joins a list of {names_of(spec.accepts)}, but no list leads "
                f"to it; {remedy}",
            )
        for outer in producers:
            _, inside = graph.level(outer, graph.joins)
            for inner in producers:
                if inner is not outer and inner in inside:
                    yield (
                        spec,
                        f"step {spec.name} joins the lists of {inner.name} and, one level up, "
                        f"those of {outer.name}; give each level a join and events of its own",
                    )


def _opener_faults(graph: Graph) -> Iterator[tuple[StepSpec, str]]:
    for spec in graph.steps.values():
        if spec.opener_param is not None:
            producers = [p for p, joins in graph.joins.items() if spec in joins]
            # Without a producer, the join has a fault already.
            if producers and (fault := _opener_fault(spec, spec.opener_param, producers)):
                yield spec, fault


def _opener_fault(join: StepSpec, param: EventParam, producers: list[StepSpec]) -> str | None:
    """Return why the batches of a join are not opened by events of the type that it takes."""
    what = f"step {join.name} takes the event that opened its batch as {param.name!r}"
    what += f" ({names_of(param.accepts)})"
    for producer in producers:
        if not producer.is_plain:
            takes = "a list of events" if producer.is_join else "several events at once"
            return (
                f"{what}, but step {producer.name} takes {takes}, so no single event opens its batches; "
                "let it return one event to a new step, which returns the list"
            )
    openers = [t for producer in producers for t in producer.accepts]
    covered = all(issubclass(t, param.accepts) for t in openers)
    if covered and all(_may_open(t, producers) for t in param.accepts):
        return None
    opened = " or ".join(f"{names_of(p.accepts)} (step {p.name})" for p in producers)
    wanted = " | ".join(dict.fromkeys(t.__name__ for t in openers))
    remedy = namesakes(param.accepts, openers) or f"write Annotated[{wanted}, Opener()]"
    return f"{what}, but its batches are opened by {opened}; {remedy}"


def _may_open(event_type: EventType, producers: list[StepSpec]) -> bool:
    """Return whether an event of this type, or of a subclass, may start one of the producers."""
    return any(
        issubclass(t, event_type)
        or (producer.config.accept_event_subclasses and issubclass(event_type, t))
        for producer in producers
        for t in producer.accepts
    )


def _terminal_faults(graph: Graph) -> Iterator[tuple[StepSpec, str]]:
    for spec in graph.steps.values():
        for returned in spec.produces:
            if issubclass(returned, StopEvent | InputRequiredEvent) or graph.takers(returned):
                continue
            remedy = namesakes([returned], graph.events) or (
                "add a step for it, or write it to the stream instead of returning it"
            )
            fault = f"step {spec.name} returns {returned.__name__}, which no step accepts; {remedy}"
            yield spec, fault


def _dead_end_faults(graph: Graph) -> Iterator[tuple[StepSpec, str]]:
    ends: set[str] = set()
    grown = True
    while grown:
        grown = False
        for spec in graph.steps.values():
            if spec.name not in ends and _leads_on(graph, spec, ends):
                ends.add(spec.name)
                grown = True
    for spec in graph.steps.values():
        if spec.produces and spec.name not in ends and any(map(graph.takers, spec.produces)):
            yield (
                spec,
                f"step {spec.name} is a dead end: nothing that follows from "
                f"{names_of(spec.produces)} ends the run; let a step after it return StopEvent",
            )


def _leads_on(graph: Graph, spec: StepSpec, ends: set[str]) -> bool:
    handler = graph.error_handler_of(spec)
    if handler is not None and handler.name in ends:
        return True
    return any(
        issubclass(returned, StopEvent | InputRequiredEvent)
        or any(taker.name in ends for taker in graph.takers(returned))
        for returned in spec.produces
    )


# --- Events that never meet ---------------------------------------------------------------------------
#
# Can a step with several event parameters ever start? That takes counting: two parameters that share a
# type need two events of it in one branch. The counts are upper bounds, so that no working graph is refused.

_MANY = 16
"""More events than these count as any number: a loop may make them."""


def _meeting_faults(graph: Graph) -> Iterator[tuple[StepSpec, str]]:
    """Find steps with several event parameters whose events never meet (F4).

    Parameter buffers hold the events of one branch, or those outside of all lists. Events that are
    sent are outside; a type that a step returns is assumed to come from steps only.
    """
    several = [spec for spec in graph.steps.values() if len(spec.event_params) > 1]
    branches = list(_branches(graph)) if several else []
    for spec in several:
        sources = {
            param: [name for name, counts in branches if _count_for(spec, param, counts)]
            for param in spec.event_params
        }
        if not all(sources.values()) or any(_starts(spec, counts) for _, counts in branches):
            continue
        each = ", ".join(
            f"{param.name!r} ({names_of(param.accepts)}) arrives {' or '.join(dict.fromkeys(names))}"
            for param, names in sources.items()
        )
        yield (
            spec,
            f"step {spec.name} takes events that never meet: {each}. Only events from the same element "
            "of a list meet, or events outside of all lists; join the list first, or take one event "
            "at a time and combine them with ctx.collect_events()",
        )


def _branches(graph: Graph) -> Iterator[tuple[str, Mapping[EventType, float]]]:
    """Yield each kind of branch in which events can meet, and how many of each type it has at most."""
    external = {
        accepted: math.inf
        for spec in graph.steps.values()
        for accepted in spec.accepts
        if issubclass(accepted, StartEvent | HumanResponseEvent)
        or not graph.is_produced(accepted, spec)
    }
    yield "outside of all lists", _event_counts(graph, external)
    for producer in graph.steps.values():
        for element in producer.returns_list:
            yield f"in the list of {producer.name}", _event_counts(graph, {element: 1})


def _event_counts(graph: Graph, first: Mapping[EventType, float]) -> Mapping[EventType, float]:
    """Return how many events of each type a branch has at most that begins with the `first` ones."""
    counts = dict(first)
    executions: dict[StepSpec, float] = {}
    while True:  # the numbers grow, and those above `_MANY` are infinite: a fixed point is reached
        executed = {
            spec: _executions(graph, spec, counts, executions) for spec in graph.steps.values()
        }
        found = dict(first)
        for spec, times in executed.items():
            for returned in spec.returns if times else ():
                found[returned] = _at_most(found.get(returned, 0) + times)
        if (found, executed) == (counts, executions):
            return counts
        counts, executions = found, executed


def _executions(
    graph: Graph,
    spec: StepSpec,
    counts: Mapping[EventType, float],
    executions: Mapping[StepSpec, float],
) -> float:
    """Return how often a step is executed at most, from what is known about the others."""
    if spec.config.catch is not None:
        causes = [step for step in graph.steps.values() if graph.error_handler_of(step) is spec]
    elif spec.is_join:
        causes = [producer for producer, joins in graph.joins.items() if spec in joins]
    else:
        return _starts(spec, counts)
    return _at_most(sum(executions.get(cause, 0) for cause in causes))


def _starts(spec: StepSpec, counts: Mapping[EventType, float]) -> float:
    """Return how often a step that takes single events starts with so many of each type."""
    params = spec.event_params
    sharing = Counter(param.accepts for param in params)  # the others take different types
    shares = (_count_for(spec, param, counts) / sharing[param.accepts] for param in params)
    fewest = min(shares)
    return fewest if fewest == math.inf else math.floor(fewest)


def _count_for(spec: StepSpec, param: EventParam, counts: Mapping[EventType, float]) -> float:
    """Return how many events there are for one parameter of a step."""
    return sum(count for cls, count in counts.items() if spec.fits_type(param, cls))


def _at_most(number: float) -> float:
    return number if number <= _MANY else math.inf
