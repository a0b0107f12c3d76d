"""The graph of a workflow: its steps, the ways of events between them, and its faults."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping

import attrs

from ._specs import EventType, Slot, StepSpec, names_of
from .errors import namesakes, nearest
from .events import (
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
)

__all__ = ["Graph", "Slot", "StepSpec"]


@attrs.frozen(eq=False, slots=False)
class Graph:
    """The steps of a workflow and the ways of events between them.

    Attributes:
        name: Name of the workflow class.
        steps: The steps by name, in the order of their definition.
        owner: The workflow class, if there is one.
    """

    name: str
    steps: Mapping[str, StepSpec]
    owner: type | None = attrs.field(default=None, repr=False)
    _routes: dict[EventType, tuple[StepSpec, ...]] = attrs.field(
        factory=dict, init=False, repr=False
    )
    _faults: dict[frozenset[str], list[str]] = attrs.field(factory=dict, init=False, repr=False)

    @functools.cached_property
    def _joins(self) -> dict[StepSpec, set[StepSpec]]:
        """Find the joins of each step that returns a list; they depend on each other if nested."""
        joins: dict[StepSpec, set[StepSpec]] = {
            spec: set() for spec in self.steps.values() if spec.returns_list
        }
        grown = True
        while grown:
            grown = False
            for producer, known in joins.items():
                found, _ = self._level(producer, joins)
                grown = grown or not found <= known
                known |= found
        return joins

    def _level(
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
                        fresh += self._rescuers(step)
        return found, inside

    def joins_of(self, producer: StepSpec) -> list[StepSpec]:
        """Return the steps that join the batches which `producer` opens (F2)."""
        joins = self._joins.get(producer, set())
        return [spec for spec in self.steps.values() if spec in joins]

    @functools.cached_property
    def takes_outside_events(self) -> bool:
        """Whether a step accepts a type that none produces, start events aside (T9)."""
        produced = {t for spec in self.steps.values() for t in spec.produces}
        return any(
            not issubclass(accepted, StartEvent | StepFailedEvent)
            and not self._produced(accepted, spec, produced)
            for spec in self.steps.values()
            for accepted in spec.accepts
        )

    @functools.cached_property
    def _catchers(self) -> dict[str | None, StepSpec]:
        """The `@catch_error` steps, by the names of the steps they are for; `None`: all others."""
        found: dict[str | None, StepSpec] = {}
        for spec in self.steps.values():
            if spec.config.catch is not None:
                for name in spec.config.catch.for_steps or (None,):
                    found.setdefault(name, spec)
        return found

    def catcher_of(self, spec: StepSpec) -> StepSpec | None:
        """Return the `@catch_error` step that takes the failures of a step, if there is one (X4)."""
        if spec.config.catch is not None:
            return None
        return self._catchers.get(spec.name, self._catchers.get(None))

    def _rescuers(self, spec: StepSpec) -> list[StepSpec]:
        catcher = self.catcher_of(spec)
        return [] if catcher is None else [catcher]

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
        return any(spec.needs for spec in self.steps.values())

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
        faults = [*self._start_and_stop_faults(), *self._catch_faults(), *self._state_faults()]
        checks = (
            ("reachability", self._reachability_faults),
            ("reachability", self._set_faults),
            ("", self._join_faults),
            ("terminal_event", self._terminal_faults),
            ("dead_end", self._dead_end_faults),
        )
        for check, find in checks:
            if check not in skip:
                faults += [
                    fault for spec, fault in find() if check not in spec.config.skip_graph_checks
                ]
        return faults

    def _start_and_stop_faults(self) -> Iterator[str]:
        if not (starts := self.start_event_types):
            yield "no step accepts StartEvent; annotate the first step with 'ev: StartEvent'"
        elif len(starts) > 1:
            remedy = namesakes(starts, starts) or "keep one"
            yield f"its steps accept several start events ({names_of(starts)}); {remedy}"
        if not (stops := self.stop_event_types):
            yield "no step returns StopEvent, so no run could end; let the last step return it"
        elif len(stops) > 1:
            remedy = namesakes(stops, stops) or "keep one"
            yield f"its steps return several stop events ({names_of(stops)}); {remedy}"
        for spec in self.steps.values():
            for accepted in spec.accepts:
                if issubclass(accepted, StopEvent):
                    yield (
                        f"step {spec.name} accepts {accepted.__name__}, but a stop event ends "
                        "the run; return an event of your own to it"
                    )

    def _state_faults(self) -> Iterator[str]:
        named = {s.name: s.state_type for s in self.steps.values() if s.state_type is not None}
        if named and self.state_type is None:
            steps = ", ".join(f"step {name}: {cls.__name__}" for name, cls in named.items())
            remedy = (
                namesakes(named.values(), named.values())
                or "let one of them derive from all others"
            )
            yield f"its steps name classes of the state that are unrelated ({steps}); {remedy}"

    def _catch_faults(self) -> Iterator[str]:
        taken: dict[str | None, str] = {}
        for spec in self.steps.values():
            for name in (spec.config.catch.for_steps or (None,)) if spec.config.catch else ():
                covered = None if name is None else self.steps.get(name)
                if name in taken:
                    whose = "all other steps" if name is None else f"step {name}"
                    yield (
                        f"steps {taken[name]} and {spec.name} both take the failures of {whose}; "
                        "name different steps in their for_steps"
                    )
                elif name is not None and covered is None:
                    hint = nearest(name, self.steps)
                    yield f"step {spec.name}: for_steps names {name!r}, which is no step; {hint}"
                elif covered is not None and covered.config.catch is not None:
                    yield (
                        f"step {spec.name}: for_steps names {name!r}, a @catch_error step itself; "
                        "what such a step raises fails the run"
                    )
                taken.setdefault(name, spec.name)

    def _reachability_faults(self) -> Iterator[tuple[StepSpec, str]]:
        produced = {t for spec in self.steps.values() for t in spec.produces}
        orphans = set()
        for spec in self.steps.values():
            wanted = [t for t in spec.accepts if not self._arrives(t, spec, produced)]
            for missing in wanted:
                remedy = namesakes([missing], produced) or (
                    "return it from a step, or derive it from HumanResponseEvent if it comes from "
                    "outside"
                )
                fault = (
                    f"step {spec.name} accepts {missing.__name__}, which no step returns; {remedy}"
                )
                yield spec, fault
            if len(wanted) == len(spec.accepts):
                orphans.add(spec.name)
        reached = self._reached()
        for spec in self.steps.values():
            if spec.name not in reached and spec.name not in orphans and spec.config.catch is None:
                yield (
                    spec,
                    f"step {spec.name} cannot be reached from the start event; return "
                    f"{names_of(spec.accepts)} from a step that can",
                )

    def _arrives(self, event_type: EventType, spec: StepSpec, produced: set[EventType]) -> bool:
        if issubclass(event_type, StartEvent | HumanResponseEvent | StopEvent | StepFailedEvent):
            return True
        return self._produced(event_type, spec, produced)

    def _produced(self, event_type: EventType, spec: StepSpec, produced: set[EventType]) -> bool:
        if spec.config.accept_event_subclasses:
            return any(issubclass(t, event_type) for t in produced)
        return event_type in produced

    def _join_faults(self) -> Iterator[tuple[StepSpec, str]]:
        for spec in self.steps.values():
            if not spec.is_join:
                continue
            producers = [p for p, joins in self._joins.items() if spec in joins]
            if not producers:
                listed = [t for producer in self._joins for t in producer.returns_list]
                remedy = (
                    namesakes(spec.accepts, listed)
                    or "let a step before it return a list of events"
                )
                yield (
                    spec,
                    f"step {spec.name} joins a list of {names_of(spec.accepts)}, but no list leads "
                    f"to it; {remedy}",
                )
            for outer in producers:
                _, inside = self._level(outer, self._joins)
                for inner in producers:
                    if inner is not outer and inner in inside:
                        yield (
                            spec,
                            f"step {spec.name} joins the lists of {inner.name} and, one level up, "
                            f"those of {outer.name}; give each level a join and events of its own",
                        )

    def _set_faults(self) -> Iterator[tuple[StepSpec, str]]:
        """Find sets whose events never meet: a set is made in one branch, or outside of all (F4).

        What is sent comes outside. A type that a step returns is taken to come from there only.
        """
        sets = [spec for spec in self.steps.values() if len(spec.slots) > 1]
        places = list(self._places()) if sets else []
        for spec in sets:
            came = {
                slot: [where for where, counts in places if _number_for(spec, slot, counts)]
                for slot in spec.slots
            }
            if all(came.values()) and not any(_sets_of(spec, counts) for _, counts in places):
                each = ", ".join(
                    f"{slot.param!r} ({names_of(slot.accepts)}) comes "
                    f"{' or '.join(dict.fromkeys(where))}"
                    for slot, where in came.items()
                )
                yield (
                    spec,
                    f"step {spec.name} takes events that never meet: {each}. Each element of a list "
                    "makes sets of its own, and so does what is outside of all lists; join the list "
                    "first, or take one event at a time and gather them with ctx.collect_events()",
                )

    def _places(self) -> Iterator[tuple[str, Mapping[EventType, float]]]:
        """Yield where events can meet, and how many of each type at most."""
        produced = {t for spec in self.steps.values() for t in spec.produces}
        outside = {
            accepted: math.inf
            for spec in self.steps.values()
            for accepted in spec.accepts
            if issubclass(accepted, StartEvent | HumanResponseEvent)
            or not self._produced(accepted, spec, produced)
        }
        yield "outside of all lists", self._numbers(outside)
        for producer in self.steps.values():
            for element in producer.returns_list:
                yield f"in the list of {producer.name}", self._numbers({element: 1})

    def _numbers(self, first: Mapping[EventType, float]) -> Mapping[EventType, float]:
        """Say how many events of each type there are at most where the `first` ones are there."""
        numbers = dict(first)
        executions: dict[StepSpec, float] = {}
        while True:
            executed = {
                spec: self._executions(spec, numbers, executions) for spec in self.steps.values()
            }
            found = dict(first)
            for spec, times in executed.items():
                for returned in spec.returns if times else ():
                    found[returned] = _at_most(found.get(returned, 0) + times)
            if (found, executed) == (numbers, executions):
                return numbers
            numbers, executions = found, executed

    def _executions(
        self,
        spec: StepSpec,
        numbers: Mapping[EventType, float],
        executions: Mapping[StepSpec, float],
    ) -> float:
        """Say how often a step is executed at most, from what is known about the others."""
        if spec.config.catch is not None:
            causes = [step for step in self.steps.values() if self.catcher_of(step) is spec]
        elif spec.is_join:
            causes = [producer for producer, joins in self._joins.items() if spec in joins]
        else:
            return _sets_of(spec, numbers)
        return _at_most(sum(executions.get(cause, 0) for cause in causes))

    def _reached(self) -> set[str]:
        """Return the steps that events from outside can lead to."""
        outside = (StartEvent, HumanResponseEvent)
        frontier: list[EventType] = [t for t in self.events if issubclass(t, outside)]
        reached: set[str] = set()
        while frontier:
            fresh = list(self.takers(frontier.pop()))
            for spec in fresh:
                if spec.name not in reached:
                    reached.add(spec.name)
                    frontier += spec.produces
                    fresh += self._rescuers(spec)
        return reached

    def _terminal_faults(self) -> Iterator[tuple[StepSpec, str]]:
        for spec in self.steps.values():
            for returned in spec.produces:
                if issubclass(returned, StopEvent | InputRequiredEvent) or self.takers(returned):
                    continue
                remedy = namesakes([returned], self.events) or (
                    "add a step for it, or write it to the stream instead of returning it"
                )
                fault = (
                    f"step {spec.name} returns {returned.__name__}, which no step accepts; {remedy}"
                )
                yield spec, fault

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
            if spec.produces and spec.name not in ends and any(map(self.takers, spec.produces)):
                yield (
                    spec,
                    f"step {spec.name} is a dead end: nothing that follows from "
                    f"{names_of(spec.produces)} ends the run; let a step after it return StopEvent",
                )

    def _leads_on(self, spec: StepSpec, ends: set[str]) -> bool:
        return any(
            issubclass(returned, StopEvent | InputRequiredEvent)
            or any(taker.name in ends for taker in self.takers(returned))
            for returned in spec.produces
        ) or any(rescuer.name in ends for rescuer in self._rescuers(spec))


_MANY = 16
"""More events than these count as any number: a loop may make them."""


def _at_most(number: float) -> float:
    return number if number <= _MANY else math.inf


def _number_for(spec: StepSpec, slot: Slot, numbers: Mapping[EventType, float]) -> float:
    """Return how many events there are for one parameter of a step."""
    return sum(number for cls, number in numbers.items() if spec.fits_type(slot, cls))


def _sets_of(spec: StepSpec, numbers: Mapping[EventType, float]) -> float:
    """Return how often a step that takes single events starts with so many of each type."""
    sharing = Counter(slot.accepts for slot in spec.slots)  # the others take different types
    shares = (_number_for(spec, s, numbers) / sharing[s.accepts] for s in spec.slots)
    fewest = min(shares)
    return fewest if fewest == math.inf else math.floor(fewest)
