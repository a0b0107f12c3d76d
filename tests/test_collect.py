"""The markers of joins, and `ctx.collect_events()` (F6)."""

from __future__ import annotations

from typing import Any

import anyio
import attrs
import pytest

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, WorkflowHandler, step
from anyio_workflows.collect import All, Collect, Take
from anyio_workflows.errors import (
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowStalledError,
)

from .running import Note, check_ending, read, texts


class Red(Event):
    n: int = 0


class Green(Event):
    n: int = 0


class Blue(Event):
    n: int = 0


COLOURS: list[type[Event]] = [Red, Green, Blue]


# --- Markers ----------------------------------------------------------------------------------


def test_f4_all_is_the_default() -> None:
    assert Collect() == Collect(All())
    assert Collect().cardinality == All()


def test_f4_take_keeps_what_it_was_told() -> None:
    assert (Take(3).n, Take(3).cancel) == (3, False)
    assert Take(3, cancel=True) == Take(n=3, cancel=True) != Take(3)
    assert repr(Collect(Take(3))) == "Collect(cardinality=Take(n=3, cancel=False))"


@pytest.mark.parametrize("n", [0, -1, 1.0, "2", None, True])
def test_f4_take_refuses_what_is_no_positive_int(n: Any) -> None:
    with pytest.raises(WorkflowConfigurationError, match="takes a positive int, not"):
        Take(n)


@pytest.mark.parametrize("policy", [3, Take, None, "all"])
def test_f4_collect_refuses_what_is_no_policy(policy: Any) -> None:
    with pytest.raises(WorkflowConfigurationError, match=r"takes All\(\) or Take\(n\), not"):
        Collect(policy)


@pytest.mark.parametrize("marker", [All(), Take(1), Collect()], ids=str)
def test_markers_are_frozen_and_hashable(marker: Any) -> None:
    assert hash(marker) == hash(attrs.evolve(marker))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        marker.n = 2


# --- collect_events -----------------------------------------------------------------------------


class Paint(Workflow):
    """Collects what is sent, and says what it has got. Subclasses say what is expected."""

    expected: list[type[Event]] = [Red, Green]

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Red | Green | Blue | None:
        for event in ev.get("events", []):
            ctx.send_event(event)
        return None

    @step(num_workers=8)
    async def collect(self, ctx: Context, ev: Red | Green | Blue) -> None:
        await anyio.sleep(ev.n)
        self.tell(ctx, ctx.collect_events(ev, self.expected))

    @step
    async def end(self, ev: Note) -> StopEvent:
        return StopEvent()

    def tell(self, ctx: Context, found: list[Event] | None) -> None:
        if found is not None:
            ctx.write_event_to_stream(Note(text=[(type(e).__name__, e["n"]) for e in found]))


def start(workflow: type[Workflow], *events: Event, **options: Any) -> WorkflowHandler[Any]:
    skipped: Any = ["reachability", "terminal_event", "dead_end"]
    return workflow(skip_graph_checks=skipped, **options).run(events=list(events))


async def paint(workflow: type[Workflow], *events: Event) -> list[Any]:
    """Send the events, wait until nothing goes on, end the run; return what it told."""
    handler = start(workflow, *events)
    await anyio.sleep(30)
    await handler.send_event(Note())
    return texts(await read(handler))


@pytest.mark.anyio
async def test_f6_nothing_until_all_are_there() -> None:
    assert await paint(Paint, Red(n=1)) == []
    assert await paint(Paint, Red(n=1), Red(n=2), Blue(n=3)) == []


@pytest.mark.anyio
async def test_f6_the_order_is_that_of_expected() -> None:
    assert await paint(Paint, Green(n=1), Red(n=2)) == [[("Red", 2), ("Green", 1)]]


@pytest.mark.anyio
async def test_f6_the_surplus_stays_for_the_next_round() -> None:
    events = [Red(n=1), Red(n=2), Red(n=3), Green(n=4), Green(n=5), Blue(n=6), Green(n=7)]
    assert await paint(Paint, *events) == [
        [("Red", 1), ("Green", 4)],
        [("Red", 2), ("Green", 5)],
        [("Red", 3), ("Green", 7)],
    ]


class Doubles(Paint):
    expected = [Red, Green, Red]


@pytest.mark.anyio
async def test_f6_a_type_may_be_expected_more_than_once() -> None:
    events = [Red(n=1), Green(n=2), Green(n=3), Red(n=4), Red(n=5), Red(n=6)]
    assert await paint(Doubles, *events) == [
        [("Red", 1), ("Green", 2), ("Red", 4)],
        [("Red", 5), ("Green", 3), ("Red", 6)],
    ]


class NothingExpected(Paint):
    expected = []


@pytest.mark.anyio
async def test_f6_nothing_expected_is_nothing_at_once() -> None:
    assert await paint(NothingExpected, Red(), Green()) == [[], []]


class Buffered(Paint):
    @step
    async def collect(self, ctx: Context, ev: Red | Green) -> None:
        buffer_id = f"buffer {ev.n}" if ev.n else None
        self.tell(ctx, ctx.collect_events(ev, [Red, Green], buffer_id=buffer_id))


@pytest.mark.anyio
async def test_f6_buffers_are_told_apart_by_their_id() -> None:
    events = [Red(n=1), Green(n=2), Red(n=0), Green(n=3), Red(n=2), Green(n=0), Green(n=1)]
    assert await paint(Buffered, *events) == [
        [("Red", 2), ("Green", 2)],
        [("Red", 0), ("Green", 0)],
        [("Red", 1), ("Green", 1)],
    ]


class TwoSteps(Paint):
    expected = [Red, Red]

    @step
    async def other(self, ctx: Context, ev: Red) -> None:
        await anyio.sleep(ev.n + 0.5)
        self.tell(ctx, ctx.collect_events(ev, [Red, Red, Red]))


@pytest.mark.anyio
async def test_f6_each_step_has_buffers_of_its_own() -> None:
    assert await paint(TwoSteps, Red(n=1), Red(n=2), Red(n=3)) == [
        [("Red", 1), ("Red", 2)],
        [("Red", 1), ("Red", 2), ("Red", 3)],
    ]


class Changing(Paint):
    """Expects more each time."""

    @step
    async def collect(self, ctx: Context, ev: Red) -> None:
        self.tell(ctx, ctx.collect_events(ev, [Red] * ev.n))


@pytest.mark.anyio
async def test_f6_what_is_expected_may_change() -> None:
    assert await paint(Changing, Red(n=2), Red(n=3), Red(n=1), Red(n=2)) == [
        [("Red", 2)],
        [("Red", 3), ("Red", 1)],
    ]


class Counting(Paint):
    bodies = 0

    @step(num_workers=8)
    async def collect(self, ctx: Context, ev: Red | Green | Blue) -> StopEvent | None:
        self.bodies += 1
        await anyio.sleep(ev.n * 7 % 11)
        found = ctx.collect_events(ev, [Red, Green, Blue] * 100)
        return None if found is None else StopEvent(result=(self.bodies, found))


@pytest.mark.anyio
async def test_f6_many_workers_collect_exactly_once() -> None:
    events = [colour(n=n) for n in range(100) for colour in COLOURS]
    bodies, found = await start(Counting, *events, timeout=None)
    assert bodies == 300, "a body was run again"
    assert [type(event) for event in found] == COLOURS * 100
    assert len({id(event) for event in found}) == 300
    assert all(any(event is other for other in events) for event in found)


class InBranches(Workflow):
    """Branches of a batch share the buffer of their step."""

    @step
    async def begin(self, ev: StartEvent) -> list[Red | Green]:
        return [Red(n=1), Red(n=2), Green(n=3), Green(n=4)]

    @step(num_workers=1)
    async def collect(self, ctx: Context, ev: Red | Green) -> Blue | None:
        found = ctx.collect_events(ev, [Green, Red])
        return found and Blue(n=found[0].n * 10 + found[1].n)  # type: ignore[return-value]

    @step
    async def join(self, events: list[Blue]) -> StopEvent:
        return StopEvent(result=[event.n for event in events])


@pytest.mark.anyio
async def test_f6_a_buffer_spans_the_branches_of_a_batch() -> None:
    assert await InBranches().run() == [31, 42]


class InThreads(Paint):
    @step
    def collect(self, ctx: Context, ev: Red | Green) -> StopEvent | None:
        found = ctx.collect_events(ev, [Green, Red])
        return None if found is None else StopEvent(result=found)


@pytest.mark.anyio
async def test_f6_a_sync_step_collects_too() -> None:
    assert await start(InThreads, Red(), Green(), timeout=None) == [Green(), Red()]


@pytest.mark.anyio
@pytest.mark.parametrize("value", [None, "red", Red], ids=repr)
async def test_f6_only_events_are_collected(value: Any) -> None:
    class Wrong(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.collect_events(value, [Red])
            return StopEvent()

    with pytest.raises(WorkflowRuntimeError, match="only events can be collected, not"):
        await Wrong().run()


@pytest.mark.anyio
async def test_f6_outside_a_step_nothing_is_collected() -> None:
    handler = start(Paint, Red())
    with pytest.raises(WorkflowRuntimeError, match="only a step can collect events"):
        handler.ctx.collect_events(Red(), [Red])
    await handler.cancel_run()


class TooLate(Workflow):
    """Collects while it is being cancelled, and again when the run has ended."""

    errors: list[str]
    ctx: Context

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Red:
        self.errors, self.ctx = [], ctx
        return Red()

    @step
    async def collect(self, ctx: Context, ev: Red) -> StopEvent:
        try:
            await anyio.sleep(100)
        finally:
            self.collect_again(ctx)
        return StopEvent()

    def collect_again(self, ctx: Context) -> None:
        try:
            ctx.collect_events(Red(), [Red])
        except WorkflowRuntimeError as exc:
            self.errors.append(str(exc))


@pytest.mark.anyio
async def test_t7_after_the_decision_nothing_is_collected() -> None:
    workflow = TooLate(timeout=5)
    await check_ending(workflow.run())
    workflow.collect_again(workflow.ctx)
    assert workflow.errors == [
        "Red cannot be collected: the run is ending, it timed out after 5 s",
        "a step cannot collect events: the run has ended, it timed out after 5 s",
    ]


class Stalled(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> list[Red]:
        return [Red(), Red()]

    @step
    async def collect(self, ctx: Context, ev: Red) -> Green | None:
        return Green() if ctx.collect_events(ev, [Red, Green, Blue, Blue, Red]) else None

    @step
    async def end(self, ev: Green) -> StopEvent:
        return StopEvent()


@pytest.mark.anyio
async def test_t9_what_a_collector_lacks_is_told() -> None:
    with pytest.raises(WorkflowStalledError) as caught:
        await Stalled().run()
    assert caught.value.missing == (("collect", "Green, Blue, Blue"),)
    assert "step collect waits for Green, Blue, Blue" in str(caught.value)
