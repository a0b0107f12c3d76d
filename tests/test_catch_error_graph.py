"""Where handlers of errors come from, and the faults of graphs with them (X4, V1)."""

from __future__ import annotations

from typing import Any

import pytest

from anyio_workflows import Event, StartEvent, StopEvent, Workflow, catch_error, step
from anyio_workflows.errors import WorkflowValidationError
from anyio_workflows.events import StepFailedEvent

from .recovering import ended_well, failed
from .samples import Item, Part, ProviderError

pytestmark = pytest.mark.anyio

# --- Where handlers come from -------------------------------------------------------------------------


class Base(Workflow):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        raise ProviderError

    @catch_error
    async def rescue(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result="base")


async def test_x4_handlers_are_inherited() -> None:
    class Derived(Base):
        pass

    assert await ended_well(Derived().run()) == "base"


async def test_x4_an_overriding_handler_takes_the_place_of_the_inherited_one() -> None:
    class Derived(Base):
        @catch_error(for_steps=["work"])
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="derived")

    assert await ended_well(Derived().run()) == "derived"


async def test_x4_a_handler_overridden_by_something_else_is_gone() -> None:
    class Derived(Base):
        rescue = None  # type: ignore[assignment]

    await failed(Derived().run(), "work", ProviderError)


async def test_x4_free_functions_can_be_handlers() -> None:
    class Open(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            raise ProviderError

    @catch_error(for_steps=["work"])
    async def rescue(ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result="free")

    await failed(Open().run(), "work", ProviderError)
    Open.add_step(rescue)
    assert await ended_well(Open().run()) == "free"


async def test_x4_static_methods_can_be_handlers() -> None:
    class Static(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            raise ProviderError

        @catch_error
        @staticmethod
        async def rescue(ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="static")

    assert await ended_well(Static().run()) == "static"


# --- Static faults ------------------------------------------------------------------------------------


def handler(gives: Any = StopEvent, **options: Any) -> Any:
    async def probe(self: Any, ev: Any) -> Any: ...

    probe.__annotations__ = {"ev": StepFailedEvent, "return": gives}
    return catch_error(**options)(probe)


def node(takes: Any, gives: Any, **options: Any) -> Any:
    async def probe(self: Any, ev: Any) -> Any: ...

    probe.__annotations__ = {"ev": takes, "return": gives}
    return step(**options)(probe)


def faults(**steps: Any) -> list[str]:
    """Return the faults of the graph of a workflow with these steps, `work` besides."""
    cls = type("Flow", (Workflow,), {"work": node(StartEvent, StopEvent), **steps})
    try:
        cls().validate()
    except WorkflowValidationError as exc:
        return list(exc.faults)
    return []


def test_v1_unknown_names_get_the_nearest_one():
    assert faults(rescue=handler(for_steps=["worc"])) == [
        "step rescue: for_steps names 'worc', which is not a step; did you mean 'work'?"
    ]
    assert faults(rescue=handler(for_steps=["work", "42"])) == [
        "step rescue: for_steps names '42', which is not a step; known: rescue, work"
    ]


def test_v1_two_handlers_for_one_step():
    assert faults(a=handler(for_steps=["work"]), b=handler(for_steps=["work"])) == [
        "steps a and b both take the failures of step work; name different steps in their for_steps"
    ]


def test_v1_two_wildcards():
    assert faults(a=handler(), b=handler()) == [
        "steps a and b both take the failures of all other steps; name different steps in their "
        "for_steps"
    ]


@pytest.mark.parametrize("covered", ["rescue", "other"])
def test_v1_handlers_cover_no_handlers(covered: str):
    steps = {"rescue": handler(for_steps=["work", covered])}
    if covered == "other":
        steps["other"] = handler()
        steps["work"] = node(StartEvent, Item)
        steps["next"] = node(Item, StopEvent)
    assert faults(**steps) == [
        f"step rescue: for_steps names '{covered}', a @catch_error step itself; what such a step "
        "raises fails the run"
    ]


def test_v1_a_name_given_twice_counts_once():
    assert faults(rescue=handler(for_steps=["work", "work"])) == []


@pytest.mark.parametrize("names", ["work", [], [1], ["work", None], 7, b"work"])
def test_v1_for_steps_is_a_list_of_names(names: Any):
    with pytest.raises(WorkflowValidationError) as caught:
        handler(for_steps=names)
    assert str(caught.value) == (
        f"step probe: for_steps must be a list of names of steps, or None, not {names!r}"
    )


@pytest.mark.parametrize("number", [0, -1, 1.0, "2", True, None])
def test_v1_max_recoveries_is_a_positive_int(number: Any):
    with pytest.raises(WorkflowValidationError) as caught:
        handler(max_recoveries=number)
    assert str(caught.value) == (
        f"step probe: max_recoveries must be a positive int, not {number!r}"
    )


@pytest.mark.parametrize("takes", [Item, StepFailedEvent | Item, list[StepFailedEvent], Event])
def test_v1_a_handler_takes_a_failure_and_nothing_else(takes: Any):
    async def rescue(self: Any, ev: Any) -> StopEvent: ...

    rescue.__annotations__["ev"] = takes
    with pytest.raises(WorkflowValidationError) as caught:
        type("Flow", (Workflow,), {"rescue": catch_error(rescue)})
    assert str(caught.value) == (
        "Flow: step rescue: a step marked with @catch_error takes one StepFailedEvent, and nothing "
        "else"
    )


@pytest.mark.parametrize("takes", [StepFailedEvent, StepFailedEvent | Item, list[StepFailedEvent]])
def test_v1_a_plain_step_takes_no_failures(takes: Any):
    with pytest.raises(WorkflowValidationError) as caught:
        type("Flow", (Workflow,), {"rescue": node(takes, StopEvent)})
    assert str(caught.value) == (
        "Flow: step rescue: it takes StepFailedEvent; mark it with @catch_error instead of @step"
    )


def test_v1_catch_error_goes_on_a_function():
    with pytest.raises(WorkflowValidationError) as caught:
        catch_error(type("Rescue", (), {}))
    assert str(caught.value) == "step Rescue: @catch_error marks a function, not a type"


# --- The other checks of the graph --------------------------------------------------------------------


def test_v1_what_a_handler_returns_is_reached_and_produced():
    assert faults(rescue=handler(Item), next=node(Item, StopEvent)) == []


def test_v1_what_a_handler_returns_must_be_accepted():
    assert faults(rescue=handler(Item | StopEvent)) == [
        "step rescue returns Item, which no step accepts; add a step for it, or write it to the "
        "stream instead of returning it"
    ]


def test_v1_a_handler_can_be_a_dead_end():
    assert faults(rescue=handler(Item), loop=node(Item, Item)) == [
        f"step {name} is a dead end: nothing that follows from Item ends the run; let a step after "
        "it return StopEvent"
        for name in ("rescue", "loop")
    ]


def test_v1_a_wildcard_that_nothing_is_left_for_is_no_fault():
    assert faults(rescue=handler(for_steps=["work"]), others=handler()) == []


def test_v1_a_handler_of_steps_that_cannot_be_reached_cannot_be_reached_either():
    steps = {"a": node(Item, Item | StopEvent), "rescue": handler(for_steps=["a"])}
    assert faults(**steps) == [
        "step a cannot be reached from the start event; return Item from a step that can"
    ]


def test_v1_a_handler_may_be_the_only_step_that_stops():
    assert faults(work=node(StartEvent, None), rescue=handler()) == []


def test_v1_a_loop_that_only_a_failure_ends_is_no_dead_end():
    steps = {"work": node(StartEvent, Item), "poll": node(Item, Item)}
    assert faults(**steps, rescue=handler(for_steps=["poll"])) == []


def test_v1_t9_handlers_take_no_events_from_outside():
    cls = type("Flow", (Workflow,), {"work": node(StartEvent, StopEvent), "rescue": handler()})
    assert cls().graph.takes_outside_events is False


def test_v1_no_step_produces_a_failure():
    assert faults(work=node(StartEvent, StepFailedEvent | StopEvent), rescue=handler()) == [
        "step work returns StepFailedEvent, which no step accepts; add a step for it, or write it "
        "to the stream instead of returning it"
    ]


def test_f2_the_way_to_a_join_may_lead_through_handlers_alone():
    steps = {
        "work": node(StartEvent, list[Item]),
        "part": node(Item, None),
        "join": node(list[Part], StopEvent),
        "rescue": handler(Part, for_steps=["part"]),
    }
    assert faults(**steps) == []
    steps["rescue"] = handler(Part, for_steps=["work"])
    assert faults(**steps) == [
        "step join joins a list of Part, but no list leads to it; let a step before it return a "
        "list of events"
    ]


def test_f2_a_handler_can_open_the_batch_of_a_join():
    steps = {"rescue": handler(list[Part]), "join": node(list[Part], StopEvent)}
    cls = type("Flow", (Workflow,), {"work": node(StartEvent, StopEvent), **steps})
    graph = cls().graph
    assert faults(**steps) == []
    assert [spec.name for spec in graph.joins_of(graph.steps["rescue"])] == ["join"]
