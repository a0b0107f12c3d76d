"""What is refused before the first step, because it would be ignored or never work (V1)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import new_class
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, catch_error, step
from anyio_workflows.collect import All, Collect, Take
from anyio_workflows.errors import WorkflowTimeoutError, WorkflowValidationError
from anyio_workflows.events import StepFailedEvent
from anyio_workflows.resource import Resource

from .conftest import BACKENDS
from .running import run_virtually
from .samples import A, Answer, B, C, Item


class SubA(A):
    pass


def node(takes: Any, gives: Any, **options: Any) -> Any:
    async def probe(self: Any, ev: Any) -> Any: ...

    probe.__annotations__ = {"ev": takes, "return": gives}
    return step(**options)(probe)


def pair(one: Any, two: Any, gives: Any = None, **options: Any) -> Any:
    async def probe(self: Any, one: Any, two: Any) -> Any: ...

    probe.__annotations__ = {"one": one, "two": two, "return": gives}
    return step(**options)(probe)


def refused(define: Callable[[], object]) -> str:
    """Return what is said about a class that cannot be defined."""
    with pytest.raises(WorkflowValidationError) as caught:
        define()
    return str(caught.value)


# --- A step that is hidden --------------------------------------------------------------------------


class Parent(Workflow):
    @step
    async def first(self, ev: StartEvent) -> Item: ...

    @step
    async def audit(self, ev: Item) -> None: ...

    @step
    async def second(self, ev: Item) -> StopEvent: ...


def plain() -> Any:
    async def plain(self: Any, ev: Item) -> None: ...

    return plain


def traced(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def defined(bases: tuple[type, ...], **members: Any) -> type[Workflow]:
    return new_class("Child", bases, exec_body=lambda namespace: namespace.update(members))


HIDERS: dict[str, Callable[[], Any]] = {
    "method": plain,
    "sync method": lambda: lambda self, ev: None,
    "static method": lambda: staticmethod(plain()),
    "class method": lambda: classmethod(plain()),
    "property": lambda: property(plain()),
    "cached property": lambda: functools.cached_property(plain()),
    "partial method": lambda: functools.partialmethod(plain()),
    "traced method": lambda: traced(plain()),
    "value": lambda: 7,
    "class": lambda: Item,
}


@pytest.mark.parametrize("make_member", HIDERS.values(), ids=HIDERS)
@pytest.mark.parametrize("name", ["audit", "second"])
def test_v1_a_step_is_not_hidden_by_what_is_none(make_member: Callable[[], Any], name: str) -> None:
    assert refused(lambda: defined((Parent,), **{name: make_member()})) == (
        f"Child: Child.{name} hides the step {name} of Parent without being a step; mark it with "
        f"@step, or write '{name} = None' to drop the step"
    )


def names(cls: type[Workflow]) -> list[str]:
    return sorted(cls().graph.steps)


def test_v1_a_step_may_be_dropped_and_redefined() -> None:
    without = defined((Parent,), audit=None)
    assert names(without) == ["first", "second"]
    assert names(defined((Parent,), audit=step(plain()))) == ["audit", "first", "second"]
    assert names(defined((without,), audit=plain())) == ["first", "second"]  # hides nothing
    assert names(defined((without,), audit=step(plain()))) == ["audit", "first", "second"]
    annotated = defined((Parent,), __annotations__={"audit": int})
    assert names(annotated) == ["audit", "first", "second"]


def test_v1_a_decorated_step_is_one() -> None:
    """`functools.wraps` takes the mark along."""
    outside = traced(step(plain()))
    inside = step(traced(plain()))
    for member in (outside, inside, traced(Parent.audit)):
        assert names(defined((Parent,), audit=member)) == ["audit", "first", "second"]


class Mixin:
    async def audit(self, ev: Item) -> None: ...


class StepMixin:
    @step
    async def audit(self, ev: Item) -> None: ...


def test_v1_mixins_hide_what_comes_after_them() -> None:
    assert "Mixin.audit hides the step audit of Parent" in refused(lambda: defined((Mixin, Parent)))
    assert "audit" in names(defined((Parent, Mixin)))
    assert "audit" in names(defined((StepMixin, Parent)))
    assert "audit" in names(defined((StepMixin, Mixin, Parent)))
    assert "audit" in names(defined((Mixin, Parent), audit=step(plain())))
    assert "audit" not in names(defined((Mixin, Parent), audit=None))


def test_v1_diamonds_follow_pythons_order() -> None:
    one, dropped = defined((Parent,)), defined((Parent,), audit=None)
    again = defined((Parent,), audit=step(plain()))
    assert "audit" not in names(defined((one, dropped)))
    assert "audit" in names(defined((again, dropped)))
    assert "audit" not in names(defined((dropped, again)))
    assert "Mixin.audit hides the step audit of Child" in refused(lambda: defined((Mixin, again)))


def test_v1_a_free_step_is_hidden_likewise() -> None:
    base = defined((Parent,))
    child = defined((base,), extra=plain())

    @step(workflow=base)
    async def extra(ev: Item) -> None: ...

    assert "extra" in names(base)
    assert "Child.extra hides the step extra of Child" in refused(child)


def test_v1_what_a_workflow_needs_is_not_taken_for_a_hidden_step() -> None:
    class Bad:
        @step
        async def validate(self, ev: Item) -> None: ...

    fault = "a step cannot be called 'validate', Workflow needs it"
    assert fault in refused(lambda: defined((Bad, Workflow)))
    assert fault in refused(lambda: defined((Workflow, Bad)))


@pytest.mark.parametrize("wrap", [property, functools.cached_property, functools.partialmethod])
def test_v1_a_step_is_not_lost_in_a_descriptor(wrap: Any) -> None:
    assert f"step audit: it is a {wrap.__name__}; steps are methods" in refused(
        lambda: defined((Workflow,), audit=wrap(step(plain())))
    )


# --- Markers that nothing comes of -------------------------------------------------------------------


def make() -> int:
    return 1


ON_A_LIST = "it belongs on a list of events: Annotated[list[...], Collect(...)]"
IDLE = {
    "one event": (Annotated[A, Collect(Take(2))], f"Collect(...) has no effect on X; {ON_A_LIST}"),
    "an optional event": (
        Annotated[A, Collect()] | None,
        f"Collect(...) has no effect on X; {ON_A_LIST}",
    ),
    "inside the list": (
        list[Annotated[A, Collect()]],
        f"Collect(...) has no effect on X; {ON_A_LIST}",
    ),
    "twice": (
        Annotated[list[A], Collect(Take(2)), Collect()],
        "Collect(...) has no effect on X; it has such a marker already; keep one",
    ),
    "bare Take": (
        Annotated[list[A], Take(2)],
        "Take(...) has no effect on X; write Annotated[list[...], Collect(Take(n))]",
    ),
    "bare All": (
        Annotated[list[A], All()],
        "All(...) has no effect on X; write Annotated[list[...], Collect(Take(n))]",
    ),
    "a class": (Annotated[list[A], Collect], "Collect has no effect on X; write Collect(...)"),
}


@pytest.mark.parametrize(("annotation", "fault"), IDLE.values(), ids=IDLE)
def test_v1_collect_belongs_on_a_list(annotation: Any, fault: str) -> None:
    before, after = fault.split("X")
    text = refused(lambda: defined((Workflow,), both=node(annotation, None)))
    assert text.startswith(f"Child: step both: parameter 'ev': {before}")
    assert text.endswith(after)
    assert "A" in text


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (
            Annotated[Context, Resource(make)],
            "Resource(...) has no effect on anyio_workflows.context.C",
        ),
        (Annotated[Context, Collect()], "Collect(...) has no effect on"),
        (Annotated[int, Resource(make), Resource(make)], "it has such a marker already; keep one"),
        (Annotated[list[B], Collect(), Resource(make)], "Collect(...) has no effect on list["),
        (Annotated[int, Resource], "Resource has no effect on int; write Resource(...)"),
        (list[Annotated[int, Resource(make)]], "Resource(...) has no effect on list["),
    ],
)
def test_v1_markers_that_are_ignored_are_named(other: Any, fault: str) -> None:
    text = refused(lambda: defined((Workflow,), both=pair(A, other)))
    assert "step both: parameter 'two'" in text
    assert fault in text


def test_v1_markers_in_what_is_returned() -> None:
    text = refused(lambda: defined((Workflow,), one=node(A, Annotated[list[B], Collect()])))
    assert "step one: the return annotation: Collect(...) has no effect on list[" in text


def test_v1_a_resource_in_the_place_of_the_event() -> None:
    text = refused(lambda: defined((Workflow,), one=node(Annotated[A, Resource(make)], B)))
    assert text == (
        "Child: step one: no parameter takes an event: the resource fills 'ev'; remove the marker"
    )


def test_v1_markers_in_their_place_are_fine() -> None:
    fine = pair(Annotated[list[A], "doc", Collect(Take(1))], Annotated[int, Resource(make)])
    cls = defined((Workflow,), join=fine)
    assert cls._specs["join"].batch_size == 1


# --- Sets that are never full -------------------------------------------------------------------------


def faults_of(cls: type[Workflow]) -> list[str]:
    """Return the faults of a workflow whose runs need not come to an end."""
    try:
        cls(skip_graph_checks=["terminal_event", "dead_end"]).validate()
    except WorkflowValidationError as error:
        return [*error.faults]
    return []


def never_meet(**steps: Any) -> list[str]:
    """Return what is said about sets of a workflow that is fine otherwise, save for dead ends."""
    cls = defined((Workflow,), **steps)
    faults = faults_of(cls)
    assert all("never meet" in fault for fault in faults), faults
    return [fault.partition("never meet: ")[2].partition(". ")[0] for fault in faults]


END = {"end": node(Answer, StopEvent)}
START = {"fan": node(StartEvent, list[A]), **END}

NEVER = {
    "one outside": (
        {**START, "top": node(StartEvent, B), "both": pair(A, B)},
        "'one' (A) arrives in the list of fan, 'two' (B) arrives outside of all lists",
    ),
    "two lists": (
        {**START, "fan2": node(StartEvent, list[B]), "both": pair(A, B)},
        "'one' (A) arrives in the list of fan, 'two' (B) arrives in the list of fan2",
    ),
    "two elements of a list": (
        {"fan": node(StartEvent, list[A | B]), **END, "both": pair(A, B)},
        "'one' (A) arrives in the list of fan, 'two' (B) arrives in the list of fan",
    ),
    "two elements of one type": (
        {**START, "both": pair(A, A)},
        "'one' (A) arrives in the list of fan, 'two' (A) arrives in the list of fan",
    ),
    "from outside": (
        {**START, "both": pair(A, Answer)},
        "'one' (A) arrives in the list of fan, 'two' (Answer) arrives outside of all lists",
    ),
    "one level down": (
        {**START, "inner": node(A, list[B]), "both": pair(A, B)},
        "'one' (A) arrives in the list of fan, 'two' (B) arrives in the list of inner",
    ),
    "after the join": (
        {**START, "join": node(list[A], B), "both": pair(A, B)},
        "'one' (A) arrives in the list of fan, 'two' (B) arrives outside of all lists",
    ),
}


@pytest.mark.parametrize(("steps", "why"), NEVER.values(), ids=NEVER)
def test_v1_a_set_whose_events_never_meet(steps: dict[str, Any], why: str) -> None:
    assert never_meet(**steps) == [why]


def test_v1_a_set_that_never_gets_full_names_step_events_and_remedy() -> None:
    cls = defined((Workflow,), **NEVER["one outside"][0])
    text = refused(lambda: cls(skip_graph_checks=["dead_end"]).validate())
    assert text == (
        "Child: step both takes events that never meet: 'one' (A) arrives in the list of fan, 'two' (B) "
        "arrives outside of all lists. Only events from the same element of a list meet, or events "
        "outside of all lists; join the list first, or take one event at a time and combine them "
        "with ctx.collect_events()"
    )


class Rescue:
    @catch_error(for_steps=["work"])
    async def rescue(self, ev: StepFailedEvent) -> B: ...


MEET = {
    "outside": {"a": node(StartEvent, A), "b": node(StartEvent, B), "both": pair(A, B)},
    "one branch": {
        "fan": node(StartEvent, list[C]),
        "a": node(C, A),
        "b": node(C, B),
        "both": pair(A, B),
    },
    "the element and what follows": {
        "fan": node(StartEvent, list[A]),
        "b": node(A, B),
        "both": pair(A, B),
    },
    "two from one branch": {
        "fan": node(StartEvent, list[C]),
        "a": node(C, A),
        "again": node(C, A),
        "both": pair(A, A),
    },
    "a loop": {"fan": node(StartEvent, list[A]), "again": node(A, A), "both": pair(A, A)},
    "after an inner join": {
        "fan": node(StartEvent, list[A]),
        "inner": node(A, list[C]),
        "join": node(list[C], B),
        "both": pair(A, B),
    },
    "after an inner join, and outside": {
        "fan": node(StartEvent, list[A]),
        "inner": node(A, list[C]),
        "join": node(list[C], B),
        "top": node(StartEvent, B),
        "both": pair(A, B),
    },
    "after both joins": {
        "fan": node(StartEvent, list[C]),
        "a": node(list[C], A),
        "b": node(list[C], B),
        "both": pair(A, B),
    },
    "two outside, sent perhaps": {"a": node(StartEvent, A), "both": pair(A, A)},
    "an answer and an event outside": {"a": node(StartEvent, A), "both": pair(A, Answer)},
    "from inside and from outside": {
        "fan": node(StartEvent, list[A]),
        "a": node(StartEvent, A),
        "b": node(StartEvent, B),
        "both": pair(A, B),
    },
    "subclasses": {
        "fan": node(StartEvent, list[SubA]),
        "b": node(SubA, B),
        "both": pair(A, B, accept_event_subclasses=True),
    },
    "by a recovery": {
        "fan": node(StartEvent, list[A]),
        "work": node(A, None),
        "rescue": Rescue.rescue,
        "both": pair(A, B),
    },
    "a set of a set": {
        "fan": node(StartEvent, list[C]),
        "a": node(C, A),
        "half": pair(C, A, B),
        "both": pair(C, B),
    },
}


@pytest.mark.parametrize("steps", MEET.values(), ids=MEET)
def test_v1_a_set_whose_events_may_meet_is_fine(steps: dict[str, Any]) -> None:
    assert never_meet(**steps, **END) == []


def test_v1_whoever_sends_the_events_skips_reachability() -> None:
    steps = NEVER["one outside"][0]
    cls = defined((Workflow,), **steps)
    cls(skip_graph_checks=["reachability", "dead_end"]).validate()
    sent = {**steps, "both": pair(A, B, skip_graph_checks=["reachability"])}
    assert never_meet(**sent) == []


E_TYPES: list[Any] = [new_class(f"E{n}", (Event,)) for n in range(5)]


@st.composite
def workflows(draw: st.DrawFn) -> tuple[type[Workflow], list[Any]]:
    """Draw a workflow without loops, whose steps return what they declare, and a set of two."""
    started: list[Any] = []
    last = len(E_TYPES) - 1

    def make_step(takes: Any, gives: Any, many: bool) -> Any:
        async def probe(self: Any, ev: Any) -> Any:
            return [gives(), gives(), gives()] if many else gives()

        probe.__annotations__ = {"ev": takes, "return": list[gives] if many else gives}
        return step(probe)

    members: dict[str, Any] = dict(END)
    for n in range(draw(st.integers(1, 6))):
        number = draw(st.integers(-1, last - 1)) if n else -1
        takes: Any = StartEvent if number < 0 else E_TYPES[number]
        if number >= 0 and draw(st.integers(0, 3)) == 0:
            takes = list[takes]
        gives = E_TYPES[draw(st.integers(number + 1, last))]
        members[f"step{n}"] = make_step(takes, gives, draw(st.booleans()))

    async def both(self: Any, one: Any, two: Any) -> None:
        started.append((one, two))

    used = st.sampled_from(E_TYPES)
    both.__annotations__ = {"one": draw(used), "two": draw(used), "return": None}
    members["both"] = step(both)
    return defined((Workflow,), **members), started


@pytest.mark.parametrize("backend", BACKENDS)
@given(workflows())
def test_v1_what_is_refused_never_starts_and_what_is_accepted_does(
    backend: str, drawn: tuple[type[Workflow], list[Any]]
) -> None:
    cls, started = drawn
    started.clear()
    faults = faults_of(cls)

    async def main() -> None:
        with pytest.raises(WorkflowTimeoutError):
            await cls(disable_validation=True, timeout=1).run()

    run_virtually(backend, main)
    if any("never meet" in fault for fault in faults):
        assert started == []
    if not faults and len(cls._specs["both"].accepts) == 2:
        assert started != []
