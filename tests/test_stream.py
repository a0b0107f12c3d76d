"""The public stream of a run and its reader (S rules)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    Event,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.events import (
    InternalDispatchEvent,
    StepState,
    StepStateChanged,
    UnhandledEvent,
    WorkflowIdleEvent,
)

from .conftest import BACKENDS
from .running import hog, read, run_virtually, texts
from .samples import Next, Note, Other, Question

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)

CONSUMED = r"^All the streamed events have already been consumed\.$"


class Counts(Workflow):
    """Writes the numbers from 0, with a pause before each."""

    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(ev.number):
            await anyio.sleep(ev.pause)
            ctx.write_event_to_stream(Note(text=n))
        return StopEvent()


class Writes(Workflow):
    """Calls a function inside its step."""

    def __init__(self, write: Callable[[Context], object]) -> None:
        super().__init__()
        self.write = write

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=self.write(ctx))


# --- S1: writing ------------------------------------------------------------------------------


async def test_s1_same_objects_in_the_order_of_the_writes() -> None:
    def write(ctx: Context) -> None:
        for event in written:
            ctx.write_event_to_stream(event)

    written = [Note(text=n % 3) for n in range(500)]
    events = await read(Writes(write).run())
    assert [id(event) for event in events[:-1]] == [id(event) for event in written]


async def test_s1_order_holds_across_steps() -> None:
    class Chain(Workflow):
        @step
        async def one(self, ctx: Context, ev: StartEvent) -> Next:
            ctx.write_event_to_stream(Note(text=1))
            ctx.send_event(Next())
            ctx.write_event_to_stream(Note(text=2))
            return Next()

        @step(num_workers=1)
        async def two(self, ctx: Context, ev: Next) -> StopEvent | None:
            ctx.write_event_to_stream(Note(text=3))
            await anyio.sleep(1)
            self.times = getattr(self, "times", 0) + 1
            return StopEvent() if self.times == 2 else None

    assert texts(await read(Chain().run())) == [1, 2, 3, 3]


async def test_s1_same_event_written_twice_comes_twice() -> None:
    note = Note()

    def write(ctx: Context) -> None:
        ctx.write_event_to_stream(note)
        ctx.write_event_to_stream(note)

    events = await read(Writes(write).run())
    assert [event is note for event in events] == [True, True, False]


async def test_s1_none_is_ignored() -> None:
    events = await read(Writes(lambda ctx: ctx.write_event_to_stream(None)).run())
    assert events == [StopEvent()]


@pytest.mark.parametrize("wrong", ["text", Note, 0, {"text": "a"}, ValueError("no")])
async def test_s1_what_is_no_event_raises(wrong: Any) -> None:
    with pytest.raises(WorkflowRuntimeError, match="only events"):
        await Writes(lambda ctx: ctx.write_event_to_stream(wrong)).run()


@pytest.mark.parametrize(
    "event",
    [StopEvent(), WorkflowCancelledEvent(), WorkflowTimedOutEvent(timeout=1, active_steps=[])],
)
async def test_s1_stop_event_raises_with_a_hint(event: StopEvent) -> None:
    handler = Writes(lambda ctx: ctx.write_event_to_stream(event)).run()
    with pytest.raises(WorkflowRuntimeError, match=f"{type(event).__name__}.*return it from"):
        await handler
    [last] = await read(handler)
    assert isinstance(last, WorkflowFailedEvent)


async def test_s1_writer_does_not_wait_for_a_reader() -> None:
    start = anyio.current_time()
    handler = Counts().run(number=10_000, pause=0)
    await handler
    assert anyio.current_time() == start
    assert handler.statistics().unread_events == 10_001
    assert texts(await read(handler)) == list(range(10_000))
    assert handler.statistics().unread_events == 0


async def test_s1_events_arrive_while_the_run_is_moving() -> None:
    start = anyio.current_time()
    times = []
    async for _ in Counts().run(number=3, pause=10).stream_events():
        times.append(anyio.current_time() - start)
    assert times == [10, 20, 30, 30]


async def test_s1_write_through_the_handlers_context() -> None:
    handler = Counts().run(number=1, pause=10)
    handler.ctx.write_event_to_stream(Note(text="from outside"))
    assert texts(await read(handler)) == ["from outside", 0]


# --- S2: the iterator -------------------------------------------------------------------------


async def test_s2_is_a_class_based_iterator() -> None:
    handler = Counts().run(number=2, pause=1)
    stream = handler.stream_events()
    assert aiter(stream) is stream
    assert not hasattr(stream, "asend")  # an async generator would have to be closed
    assert await anext(stream) == Note(text=0)
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert texts(await read(handler)) == [1]


async def test_s2_plain_call_without_iterating_takes_nothing() -> None:
    handler = Counts().run(number=2, pause=1)
    for _ in range(3):
        handler.stream_events()
    assert texts(await read(handler)) == [0, 1]


@pytest.mark.parametrize("when", ["late", "after the end"])
async def test_s2_opened_late_yields_everything(when: str) -> None:
    handler = Counts().run(number=4, pause=10)
    await anyio.sleep(25 if when == "late" else 100)
    assert handler.is_done() == (when != "late")
    assert texts(await read(handler)) == [0, 1, 2, 3]


async def test_s2_two_iterators_share_one_cursor() -> None:
    handler = Counts().run(number=4, pause=0)
    await handler
    one, two = handler.stream_events(), handler.stream_events()
    got = [await anext(one), await anext(two), await anext(one), await anext(two)]
    assert texts(got) == [0, 1, 2, 3]
    assert await anext(one) == StopEvent()
    for stream in (one, two):
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@pytest.mark.parametrize("backend", BACKENDS)
def test_s2_read_after_the_loop_has_ended(backend: str) -> None:
    async def main() -> WorkflowHandler[Any]:
        handler = Counts(timeout=None).run(number=200, pause=1)
        await anyio.sleep(150.5)
        return handler

    handler = run_virtually(backend, main)
    for other in BACKENDS:

        async def some() -> list[Event]:
            stream = handler.stream_events()
            return [await anext(stream) for _ in range(50)]

        assert len(texts(run_virtually(other, some))) == 50
    rest = run_virtually(backend, lambda: read(handler))
    assert len(texts(rest)) == 150 - 50 * len(BACKENDS)
    assert rest[-1] == WorkflowCancelledEvent()


# --- S3: consumed once ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 3])
async def test_s3_new_iteration_after_the_end_raises(number: int) -> None:
    handler = Counts().run(number=number, pause=1)
    await read(handler)
    for _ in range(2):
        stream = handler.stream_events()  # misuse raises at the first `__anext__`
        for _ in range(2):
            with pytest.raises(WorkflowRuntimeError, match=CONSUMED):
                await anext(stream)
    assert await handler is None


async def test_s3_exhausted_iterator_stays_exhausted() -> None:
    handler = Counts().run(number=1, pause=1)
    stream = handler.stream_events()
    assert len([event async for event in stream]) == 2
    for _ in range(3):
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert [event async for event in stream] == []


async def test_s3_iterator_made_early_and_begun_after_the_end_raises() -> None:
    handler = Counts().run(number=1, pause=1)
    late = handler.stream_events()
    await read(handler)
    with pytest.raises(WorkflowRuntimeError, match=CONSUMED):
        await anext(late)


async def test_s3_iterator_ends_when_another_read_the_rest() -> None:
    handler = Counts().run(number=2, pause=1)
    stream = handler.stream_events()
    await anext(stream)
    await read(handler)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@pytest.mark.parametrize("same", [True, False], ids=["same iterator", "another"])
async def test_s3_second_reader_raises_while_one_waits(same: bool) -> None:
    handler = Counts().run(number=1, pause=10)
    stream = handler.stream_events()
    got: list[Event] = []

    async def first() -> None:
        got.append(await anext(stream))

    async with anyio.create_task_group() as group:
        group.start_soon(first)
        await anyio.sleep(1)
        other = stream if same else handler.stream_events()
        with pytest.raises(WorkflowRuntimeError, match="one reader"):
            await anext(other)
    assert texts(got) == [0]
    assert await anext(other) == StopEvent()


async def test_s3_second_reader_cannot_take_what_the_first_is_woken_for() -> None:
    handler = Counts().run(number=1, pause=10)
    got: list[Event] = []

    async def first() -> None:
        got.append(await anext(handler.stream_events()))

    async with anyio.create_task_group() as group:
        group.start_soon(first)
        await anyio.sleep(1)
        handler.ctx.write_event_to_stream(Note(text="for the first"))
        with pytest.raises(WorkflowRuntimeError, match="one reader"):
            await anext(handler.stream_events())
    assert texts(got) == ["for the first"]
    assert texts(await read(handler)) == [0]


async def test_s3_two_readers_that_begin_at_once_do_not_both_wait() -> None:
    handler = Counts().run(number=1, pause=10)
    outcomes: list[object] = []

    async def take_one() -> None:
        try:
            outcomes.append(await anext(handler.stream_events()))
        except WorkflowRuntimeError as exc:
            outcomes.append(type(exc))

    async with anyio.create_task_group() as group:
        group.start_soon(take_one)
        group.start_soon(take_one)
    assert outcomes == [WorkflowRuntimeError, Note(text=0)]


async def test_s3_break_and_resume() -> None:
    handler = Counts().run(number=5, pause=1)
    got = []
    for stop in (0, 2, 3):
        async for event in handler.stream_events():
            got.append(event)
            assert isinstance(event, Note)
            if event.text == stop:
                break
        gc.collect()
    got += await read(handler)
    assert texts(got) == [0, 1, 2, 3, 4]


async def test_s3_exception_in_the_loop_loses_nothing_more() -> None:
    handler = Counts().run(number=3, pause=1)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async for _ in handler.stream_events():
            raise ZeroDivisionError
    assert texts(await read(handler)) == [1, 2]


@pytest.mark.parametrize("patience", [0, 1, 3, 7, 10, 10.5])
async def test_s3_reading_with_a_deadline_loses_nothing(patience: float) -> None:
    handler = Counts(timeout=None).run(number=20, pause=10)
    stream = handler.stream_events()
    got: list[Event] = []
    with anyio.fail_after(10_000):
        while not got or not isinstance(got[-1], StopEvent):
            with anyio.move_on_after(patience) as scope:
                got.append(await anext(stream))
            if scope.cancelled_caught and patience == 0:
                await anyio.sleep(1)
    assert texts(got) == list(range(20))


async def test_s3_deadline_around_the_whole_loop_loses_nothing() -> None:
    handler = Counts(timeout=None).run(number=300, pause=0.3)
    got: list[Event] = []
    while not got or not isinstance(got[-1], StopEvent):
        with anyio.move_on_after(1):
            async for event in handler.stream_events():
                got.append(event)
    assert texts(got) == list(range(300))


async def test_s3_cancelled_scope_around_a_full_stream_loses_nothing() -> None:
    handler = Counts().run(number=1000, pause=0)
    await handler
    got: list[Event] = []
    while not got or not isinstance(got[-1], StopEvent):
        with anyio.CancelScope() as scope:
            scope.cancel()
            async for event in handler.stream_events():
                got.append(event)
        await checkpoint()
    assert texts(got) == list(range(1000))


@on_asyncio
@pytest.mark.parametrize("turns", range(4))
async def test_s3_native_cancellation_right_at_a_write_loses_nothing(turns: int) -> None:
    """The reader is cancelled just when, or just after, the event it waits for is written."""
    handler = Counts(timeout=None).run(number=10, pause=10)
    got: list[Event] = []

    async def one() -> None:
        got.append(await anext(handler.stream_events()))

    while not got or not isinstance(got[-1], StopEvent):
        reader = asyncio.create_task(one())
        await anyio.sleep(5)
        for _ in range(turns):
            await checkpoint()
        reader.cancel()
        await asyncio.wait([reader])
    assert texts(got) == list(range(10))


@on_asyncio
@pytest.mark.parametrize("first", ["write", "cancel"])
async def test_s3_native_cancellation_and_write_in_one_turn_lose_nothing(first: str) -> None:
    handler = Counts().run(number=1, pause=10)
    stream = handler.stream_events()
    reader = asyncio.ensure_future(anext(stream))
    await anyio.sleep(1)
    if first == "write":
        handler.ctx.write_event_to_stream(Note(text="written"))
        reader.cancel()
    else:
        reader.cancel()
        handler.ctx.write_event_to_stream(Note(text="written"))
    [result] = await asyncio.gather(reader, return_exceptions=True)
    got = [result] if isinstance(result, Event) else []
    got += await read(handler)
    assert texts(got) == ["written", 0]


@on_asyncio
async def test_s3_wait_for_loses_nothing() -> None:
    handler = Counts(timeout=None).run(number=10, pause=10)
    stream = handler.stream_events()
    got: list[Event] = []
    while not got or not isinstance(got[-1], StopEvent):
        with suppress(TimeoutError):
            got.append(await asyncio.wait_for(anext(stream), 5))
    assert texts(got) == list(range(10))


async def test_s3_cancelled_reader_makes_room_for_another() -> None:
    handler = Counts().run(number=2, pause=10)
    with anyio.move_on_after(1):
        await anext(handler.stream_events())
    assert not handler.statistics().reader_waiting
    assert texts(await read(handler)) == [0, 1]


async def test_s3_reader_of_a_full_stream_lets_others_run() -> None:
    handler = Counts().run(number=1000, pause=0)
    await handler
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        await checkpoint()
        turns = 0
        await read(handler)
        group.cancel_scope.cancel()
    assert turns >= 10


# --- S4, S5: what is in it --------------------------------------------------------------------


class Strays(Workflow):
    """Sends an event that nobody accepts, once a second."""

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(3):
            await anyio.sleep(1)
            ctx.send_event(Other())
            ctx.write_event_to_stream(Note(text=n))
        return StopEvent()


def kinds(events: list[Event]) -> list[type[Event]]:
    return [type(event) for event in events]


async def test_s4_internal_events_are_hidden() -> None:
    assert kinds(await read(Strays().run())) == [Note, Note, Note, StopEvent]


ALL_OF_STRAYS = [
    StepStateChanged,
    StepStateChanged,
    *[UnhandledEvent, Note] * 3,
    StepStateChanged,
    StopEvent,
]


async def test_s4_asking_right_after_run_misses_none() -> None:
    handler = Strays().run()
    events = [event async for event in handler.stream_events(expose_internal=True)]
    assert kinds(events) == ALL_OF_STRAYS
    for event in events:
        assert isinstance(event, InternalDispatchEvent) is (type(event) not in (Note, StopEvent))


async def test_s4_the_states_of_a_step_are_told_in_order() -> None:
    handler = Strays().run()
    events = [event async for event in handler.stream_events(expose_internal=True)]
    queued, started, ended = [event for event in events if isinstance(event, StepStateChanged)]
    assert (queued.name, queued.input_event_name, queued.attempt) == ("work", "StartEvent", 1)
    assert (queued.step_state, queued.output_event_name) == (StepState.PREPARING, None)
    assert started == queued.replace(step_state=StepState.RUNNING)
    assert ended == queued.replace(
        step_state=StepState.NOT_RUNNING, output_event_name="StopEvent", outcome="returned"
    )


async def test_s4_the_call_is_the_asking() -> None:
    handler = Strays().run()
    stream = handler.stream_events(expose_internal=True)
    await handler
    assert kinds([event async for event in stream]) == ALL_OF_STRAYS


async def test_s4_asking_later_gives_them_from_then_on() -> None:
    handler = Strays().run()
    await anyio.sleep(1.5)
    events = [event async for event in handler.stream_events(expose_internal=True)]
    assert kinds(events) == [Note, StepStateChanged, *ALL_OF_STRAYS[4:]]


async def test_s4_asking_after_the_end_gives_none() -> None:
    handler = Strays().run()
    await handler
    events = [event async for event in handler.stream_events(expose_internal=True)]
    assert kinds(events) == [Note, Note, Note, StopEvent]


async def test_s4_they_cost_nothing_while_nobody_has_asked() -> None:
    handler = Strays().run()
    await handler
    assert handler.statistics().unread_events == 4


async def test_s4_plain_iterator_skips_them_beside_one_that_asked() -> None:
    handler = Strays().run()
    handler.stream_events(expose_internal=True)
    assert kinds(await read(handler)) == [Note, Note, Note, StopEvent]


async def test_s5_input_required_event_goes_to_the_stream_and_to_its_takers() -> None:
    class Ask(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent:
            ctx.write_event_to_stream(Note(text="before"))
            return question

        @step
        async def watch(self, ev: InputRequiredEvent) -> StopEvent:
            return StopEvent(result=ev)

    question = InputRequiredEvent(prefix="name?")
    handler = Ask().run()
    events = await read(handler)
    assert events[1] is question
    assert kinds(events) == [Note, InputRequiredEvent, StopEvent]
    assert await handler is question


async def test_s5_input_that_nobody_accepts_is_no_unhandled_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Ask(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> Question | StopEvent:
            return Question(text="name?")

    handler = Ask(timeout=10).run()
    events = [event async for event in handler.stream_events(expose_internal=True)]
    assert kinds(events) == [
        StepStateChanged,
        StepStateChanged,
        StepStateChanged,
        Question,
        WorkflowIdleEvent,
        WorkflowTimedOutEvent,
    ]
    assert "no step accepts" not in caplog.text


async def test_reader_that_hogs_the_processor_still_gets_everything() -> None:
    handler = Counts(timeout=100).run(number=3, pause=1)
    got = []
    async for event in handler.stream_events():
        got.append(event)
        hog(10)
    assert texts(got) == [0, 1, 2]
