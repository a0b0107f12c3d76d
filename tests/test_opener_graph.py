"""What is refused where a join asks for the event that opened its batch (V1, F8)."""

from __future__ import annotations

from typing import Annotated, Any

import pytest

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Opener, Take
from anyio_workflows.errors import WorkflowValidationError
from anyio_workflows.resource import Resource

from .samples import A, B, C


class SubA(A): ...


def by(cls: Any) -> Any:
    return Annotated[cls, Opener()]


def a_step(gives: Any, *takes: Any, mark: Any = step, **options: Any) -> Any:
    """Return a step with parameters `a`, `b`, ..., of these types."""

    async def one(self: Any, a: Any) -> Any: ...
    async def two(self: Any, a: Any, b: Any) -> Any: ...
    async def three(self: Any, a: Any, b: Any, c: Any) -> Any: ...

    probe = (one, two, three)[len(takes) - 1]
    probe.__annotations__ = {**dict(zip("abc", takes, strict=False)), "return": gives}
    return mark(**options)(probe) if options else mark(probe)


def flow(**steps: Any) -> Workflow:
    return type("Flow", (Workflow,), steps)()


def faults(**steps: Any) -> list[str]:
    try:
        flow(**steps).validate()
    except WorkflowValidationError as exc:
        return list(exc.faults)
    return []


# --- Signatures -------------------------------------------------------------------------------------


def no_join(name: str, shown: str) -> str:
    return (
        f"parameter {name!r}: Opener() has no effect on {shown}, since the step joins no batch; let it "
        "take a list of events, or remove the marker"
    )


def gives_one(shown: str) -> str:
    return (
        f"parameter 'b': Opener() gives one event, not {shown}; annotate it with the event class that "
        "the step which returns the list takes"
    )


def idle(mark: str, shown: str, remedy: str, where: str = "parameter 'b'") -> str:
    return f"{where}: {mark} has no effect on {shown}; {remedy}"


SECOND = "it belongs on a second parameter of a step that takes a list of events"
ON_A_LIST = "it belongs on a list of events: Annotated[list[...], Collect(...)]"

SIGNATURES: dict[str, tuple[list[Any], list[str]]] = {
    "no join": ([A, by(B)], [no_join("b", "B")]),
    "a set": ([A, B, by(B | C)], [no_join("c", "B, C")]),
    "alone": ([by(A)], [no_join("a", "A")]),
    "several": (
        [list[A], by(B), by(C)],
        ["more than one parameter takes the event that opened the batch: b, c; keep one"],
    ),
    "several, of no batch": (
        [by(B), by(C), A],
        [
            "more than one parameter takes the event that opened the batch: a, b; keep one",
            no_join("a", "B"),
            no_join("b", "C"),
        ],
    ),
    "no event": ([list[A], by(int)], [gives_one("int")]),
    "no event and no join": ([A, by(int)], [gives_one("int")]),
    "a list": ([list[A], by(list[B])], [gives_one("list[tests.samples.B]")]),
    "in a list": (
        [list[A], list[by(B)]],
        [gives_one("list[typing.Annotated[tests.samples.B, Opener()]]")],
    ),
    "events and others": ([list[A], by(B | str)], [gives_one("tests.samples.B | str")]),
    "nothing": ([list[A], by(None)], [gives_one("NoneType")]),
    "a class": (
        [list[A], Annotated[B, Opener]],
        [idle("Opener", "tests.samples.B", "write Opener()")],
    ),
    "twice": (
        [list[A], Annotated[B, Opener(), Opener()]],
        [idle("Opener()", "tests.samples.B", "it has such a marker already; keep one")],
    ),
    "the context": (
        [list[A], by(Context)],
        [idle("Opener()", "anyio_workflows.context.Context", SECOND)],
    ),
    "with Collect": (
        [list[A], Annotated[B, Opener(), Collect(Take(2))]],
        [idle("Collect(...)", "tests.samples.B", ON_A_LIST)],
    ),
    "on a resource": (
        [list[A], Annotated[B, Resource(lambda: 1), Opener()]],
        [idle("Opener()", "tests.samples.B", SECOND)],
    ),
}


@pytest.mark.parametrize(("takes", "expected"), SIGNATURES.values(), ids=SIGNATURES)
def test_v1_signatures_that_are_refused(takes: list[Any], expected: list[str]) -> None:
    with pytest.raises(WorkflowValidationError) as caught:
        flow(join=a_step(None, *takes))
    shown = [fault.removeprefix("step join: ") for fault in caught.value.faults]
    assert shown == expected


def test_v1_in_what_is_returned() -> None:
    with pytest.raises(WorkflowValidationError) as caught:
        flow(join=a_step(by(A), A))
    where = "step join: the return annotation"
    assert caught.value.faults == (idle("Opener()", "tests.samples.A", SECOND, where),)


def test_v1_an_error_handler_joins_nothing() -> None:
    with pytest.raises(WorkflowValidationError) as caught:
        flow(rescue=a_step(None, StepFailedEvent, by(A), mark=catch_error))
    assert caught.value.faults == (f"step rescue: {no_join('b', 'A')}",)


def test_v1_it_is_neither_accepted_nor_part_of_a_set() -> None:
    spec = flow(join=a_step(None, by(B), list[A])).graph.steps["join"]
    assert (spec.accepts, spec.is_join, spec.is_plain) == ((A,), True, False)
    assert [param.name for param in spec.event_params] == ["b"]
    assert spec.opener_param is not None
    assert (spec.opener_param.name, spec.opener_param.accepts) == ("a", (B,))


# --- Graphs -----------------------------------------------------------------------------------------


def opened(join: str, takes: str, producers: str, remedy: str) -> str:
    return (
        f"step {join} takes the event that opened its batch as 'b' ({takes}), but its batches are "
        f"opened by {producers}; {remedy}"
    )


def no_single(takes: str, producer: str, several: str) -> str:
    return (
        f"step join takes the event that opened its batch as 'b' ({takes}), but step {producer} takes "
        f"{several}, so no single event opens its batches; let it return one event to a new step, which "
        "returns the list"
    )


class Seed(StartEvent):
    n: int = 0


class D(Event):
    pass


NESTED = {
    "one": a_step(list[A], StartEvent),
    "two": a_step(list[B], A),
}

GRAPHS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the other level": (
        {
            **NESTED,
            "three": a_step(C, list[B], by(StartEvent)),
            "four": a_step(StopEvent, list[C], by(A)),
        },
        [
            opened("three", "StartEvent", "A (step two)", "write Annotated[A, Opener()]"),
            opened("four", "A", "StartEvent (step one)", "write Annotated[StartEvent, Opener()]"),
        ],
    ),
    "one of two lists": (
        {
            "one": a_step(A | B, Seed),
            "two": a_step(list[C], A),
            "three": a_step(list[C], B | Seed),
            "join": a_step(StopEvent, list[C], by(A | B)),
        },
        [
            opened(
                "join",
                "A, B",
                "A (step two) or B, Seed (step three)",
                "write Annotated[A | B | Seed, Opener()]",
            )
        ],
    ),
    "more than there is": (
        {
            **NESTED,
            "three": a_step(C, list[B], by(A | D)),
            "four": a_step(StopEvent, list[C]),
        },
        [opened("three", "A, D", "A (step two)", "write Annotated[A, Opener()]")],
    ),
    "a subclass of what opens it": (
        {
            "one": a_step(list[A], Seed),
            "two": a_step(list[B], A, accept_event_subclasses=True),
            "three": a_step(C, list[B], by(SubA)),
            "four": a_step(StopEvent, list[C]),
        },
        [opened("three", "SubA", "A (step two)", "write Annotated[A, Opener()]")],
    ),
    "a base that opens nothing beside it": (
        {
            "one": a_step(list[A], Seed),
            "join": a_step(StopEvent, list[A], by(Seed | A)),
        },
        [opened("join", "Seed, A", "Seed (step one)", "write Annotated[Seed, Opener()]")],
    ),
    "a list of a join": (
        {
            "one": a_step(list[A], Seed),
            "two": a_step(list[B], list[A]),
            "join": a_step(StopEvent, list[B], by(A)),
        },
        [no_single("A", "two", "a list of events")],
    ),
    "a list of a set": (
        {
            "one": a_step(A, Seed),
            "two": a_step(B, Seed),
            "three": a_step(list[C], A, B),
            "join": a_step(StopEvent, list[C], by(A | B)),
        },
        [no_single("A, B", "three", "several events at once")],
    ),
    "a list of an error handler": (
        {
            "one": a_step(list[A], Seed),
            "rescue": a_step(list[A], StepFailedEvent, mark=catch_error),
            "join": a_step(StopEvent, list[A], by(Seed)),
        },
        [
            opened(
                "join",
                "Seed",
                "Seed (step one) or StepFailedEvent (step rescue)",
                "write Annotated[Seed | StepFailedEvent, Opener()]",
            )
        ],
    ),
    "no list": (
        {"one": a_step(A, Seed), "join": a_step(StopEvent, list[A], by(Seed))},
        [
            "step join joins a list of A, but no list leads to it; let a step before it return a list "
            "of events"
        ],
    ),
}


@pytest.mark.parametrize(("steps", "expected"), GRAPHS.values(), ids=GRAPHS)
def test_v1_graphs_that_are_refused_whatever_is_skipped(
    steps: dict[str, Any], expected: list[str]
) -> None:
    assert faults(**steps) == expected
    workflow = type("Flow", (Workflow,), steps)(
        skip_graph_checks=["reachability", "terminal_event", "dead_end"]
    )
    with pytest.raises(WorkflowValidationError) as caught:
        workflow.validate()
    assert [*caught.value.faults] == expected


def test_v1_two_classes_of_one_name_are_told_apart() -> None:
    other = type("A", (Event,), {})
    [fault] = faults(
        **NESTED,
        three=a_step(C, list[B], by(other)),
        four=a_step(StopEvent, list[C]),
    )
    assert "A (step two); two classes are named A:" in fault


SOUND: dict[str, dict[str, Any]] = {
    "each level": {
        **NESTED,
        "three": a_step(C, list[B], by(A)),
        "four": a_step(StopEvent, list[C], by(StartEvent)),
    },
    "a base": {
        "one": a_step(list[SubA], Seed),
        "two": a_step(list[B], SubA),
        "three": a_step(C, list[B], by(A)),
        "four": a_step(StopEvent, list[C], by(Event)),
    },
    "a subclass beside its base": {
        "one": a_step(list[A], Seed),
        "two": a_step(list[B], A, accept_event_subclasses=True),
        "three": a_step(C, list[B], by(A | SubA)),
        "four": a_step(StopEvent, list[C]),
    },
    "all of two lists, and None": {
        "one": a_step(A | B, Seed),
        "two": a_step(list[C], A),
        "three": a_step(list[C], B),
        "join": a_step(StopEvent, list[C], by(A | B) | None),
    },
    "with an error handler": {
        "one": a_step(list[A], Seed),
        "rescue": a_step(list[A], StepFailedEvent, mark=catch_error),
        "join": a_step(StopEvent, list[A], by(Seed | StepFailedEvent)),
    },
    "a handler of another list": {
        **NESTED,
        "rescue": a_step(list[B], StepFailedEvent, mark=catch_error, for_steps=["two"]),
        "three": a_step(C, list[B], by(A | StepFailedEvent)),
        "four": a_step(StopEvent, list[C], by(StartEvent)),
    },
    "a join of a few": {
        "one": a_step(list[A], Seed),
        "join": a_step(StopEvent, Annotated[list[A], Collect(Take(1))], by(Seed)),
    },
    "with a context and a resource": {
        "one": a_step(list[A], Seed),
        "join": a_step(StopEvent, Context, by(Seed), list[A]),
    },
}


@pytest.mark.parametrize("steps", SOUND.values(), ids=SOUND)
def test_v1_graphs_that_are_sound(steps: dict[str, Any]) -> None:
    assert faults(**steps) == []
