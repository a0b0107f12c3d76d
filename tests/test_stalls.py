"""Runs that cannot go on (T9), the internal events (S4), and timeouts of steps (R8)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import WorkflowRuntimeError, WorkflowStalledError, WorkflowTimeoutError
from anyio_workflows.events import (
    InternalDispatchEvent,
    StepState,
    StepStateChanged,
    UnhandledEvent,
    WorkflowIdleEvent,
)

from .running import check_ending, hog, read, read_all, texts
from .samples import Answer, Item, Note, Other, Part, Question

pytestmark = pytest.mark.anyio


async def stalled(workflow: Workflow, **start: Any) -> WorkflowStalledError:
    """Run a workflow that stalls at once; return the error after a look at all there is to see."""
    began = anyio.current_time()
    handler = workflow.run(**start)
    _, last = await check_ending(handler)
    assert anyio.current_time() == began
    assert type(last) is WorkflowFailedEvent
    assert isinstance(last.exception, WorkflowStalledError)
    assert (last.attempts, last.elapsed_seconds) == (None, None)
    assert last.step_name in workflow.graph.steps
    return last.exception


# --- T9: what stalls --------------------------------------------------------------------------------


class Forgets(Workflow):
    """Its second step forgets to return anything that goes on."""

    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item()

    @step
    async def forget(self, ev: Item) -> StopEvent | None:
        return None

    @step(skip_graph_checks=["reachability"])
    async def never(self, ev: Part) -> Part | StopEvent | None:
        return StopEvent()


async def test_t9_fails_at_once_and_says_what_each_step_last_did() -> None:
    handler = Forgets(timeout=None).run()
    _, last = await check_ending(handler)
    assert last["step_name"] == "forget"
    lines = str(last["exception"]).splitlines()
    assert [line.strip() for line in lines[1:]] == [
        "step begin returned Item",
        "step forget returned None",
        "step never has not run",
    ]
    assert lines[0].startswith("The run has stalled: no step is queued")


async def test_t9_error_keeps_the_facts() -> None:
    error = await stalled(Forgets())
    assert error.last_acts == {
        "begin": "returned Item",
        "forget": "returned None",
        "never": "has not run",
    }
    assert error.missing == ()


async def test_t9_names_the_step_that_ended_last() -> None:
    class Two(Workflow):
        @step
        async def quick(self, ev: StartEvent) -> StopEvent | None:
            await anyio.sleep(1)
            return None

        @step
        async def slow(self, ev: StartEvent) -> StopEvent | None:
            await anyio.sleep(ev.seconds)
            return None

    for seconds, name in [(0.5, "quick"), (2, "slow")]:
        began = anyio.current_time()
        _, last = await check_ending(Two().run(seconds=seconds))
        assert last["step_name"] == name
        assert anyio.current_time() - began == pytest.approx(max(1, seconds))


async def test_t9_set_that_is_never_full_says_what_it_lacks() -> None:
    class Pairs(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Part | Other | None:
            for n in range(ev.halves):
                ctx.send_event(Part(n=n))
            return Other() if ev.other else None

        @step
        async def pair(self, a: Part, b: Other) -> StopEvent | None:
            return None

    error = await stalled(Pairs(), halves=1, other=False)
    assert error.missing == (("pair", "b"),)
    assert "step pair waits for b" in str(error)
    assert error.last_acts["pair"] == "has not run"
    error = await stalled(Pairs(), halves=2, other=True)  # one pair, and one half too many
    assert error.missing == (("pair", "b"),)
    assert error.last_acts["pair"] == "returned None"
    error = await stalled(Pairs(), halves=1, other=True)
    assert error.missing == ()


@pytest.mark.parametrize(
    ("got", "missing"),
    [
        ([Part], "Part, Other"),
        ([Part, Part], "Other"),
        ([Other], "Part, Part"),
    ],
)
async def test_t9_collect_buffer_says_what_it_lacks(got: list[type[Event]], missing: str) -> None:
    class Collects(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Part | Other | None:
            for cls in got:
                ctx.send_event(cls())
            return None

        @step
        async def gather(self, ctx: Context, ev: Part | Other) -> StopEvent | None:
            if ctx.collect_events(ev, [Part, Part, Other]) is None:
                return None
            return StopEvent()

    error = await stalled(Collects())
    assert error.missing == (("gather", missing),)
    assert f"step gather waits for {missing}" in str(error)


async def test_t9_each_buffer_is_told_apart() -> None:
    class Collects(Workflow):
        @step
        async def gather(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
            ctx.collect_events(ev, [StartEvent, Part], buffer_id="a")
            ctx.collect_events(ev, [StartEvent, Other], buffer_id="b")
            assert ctx.collect_events(ev, [StartEvent], buffer_id="full") == [ev]
            return None

    error = await stalled(Collects())
    assert error.missing == (("gather", "Part"), ("gather", "Other"))


async def test_t9_collecting_nothing_keeps_nothing() -> None:
    class Collects(Workflow):
        @step
        async def gather(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
            assert ctx.collect_events(ev, []) == []
            return None

    assert (await stalled(Collects())).missing == ()


async def test_t9_list_without_a_join() -> None:
    class Lists(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item()] * 3

        @step
        async def work(self, ev: Item) -> StopEvent | None:
            return None

    error = await stalled(Lists())
    assert error.last_acts["work"] == "returned None"
    assert "events" in error.last_acts["fork"]


async def test_t9_unhandled_event_then_stalled(caplog: pytest.LogCaptureFixture) -> None:
    class Returns(Workflow):
        @step(skip_graph_checks=["terminal_event"])
        async def begin(self, ev: StartEvent) -> Item | StopEvent:
            return Item()

    handler = Returns().run()
    events = await read_all(handler)
    unhandled = [event for event in events if isinstance(event, UnhandledEvent)]
    assert [(event.event_type, event.idle) for event in unhandled] == [("Item", True)]
    assert events.index(unhandled[0]) < len(events) - 1
    with pytest.raises(WorkflowStalledError):
        await handler
    assert "no step accepts Item" in caplog.text


async def test_t9_waiting_step_is_no_stall_but_one_that_gave_up_waiting_is() -> None:
    class Waits(Workflow):
        @step
        async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
            try:
                await ctx.wait_for_event(Item, timeout=5)
            except TimeoutError:
                return None
            return StopEvent(result="answered")

    workflow = Waits(timeout=None)
    handler = workflow.run()
    await anyio.sleep(4)
    await handler.send_event(Item())
    assert await handler == "answered"
    handler = workflow.run()
    began = anyio.current_time()
    with pytest.raises(WorkflowStalledError):
        await handler
    assert anyio.current_time() - began == pytest.approx(5)


async def test_t9_step_in_progress_or_queued_is_no_stall() -> None:
    class Slow(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(3):
                ctx.send_event(Item(n=n))
            return None

        @step(num_workers=1)
        async def work(self, ev: Item) -> StopEvent | None:
            await anyio.sleep(10)
            return StopEvent(result="end") if ev.n == 2 else None

    assert await Slow().run() == "end"


async def test_t9_step_that_waits_for_a_child_is_no_stall() -> None:
    class Child(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await anyio.sleep(20)
            return StopEvent(result="child")

    class Parent(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await Child().run())

    assert await Parent().run() == "child"


async def test_t9_a_real_failure_is_not_hidden_by_the_stall() -> None:
    class Fails(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent | None:
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await Fails().run()


async def test_t9_stalled_child_fails_for_itself() -> None:
    class Parent(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            with pytest.raises(WorkflowStalledError):
                await Forgets().run()
            return StopEvent(result="went on")

    assert await Parent().run() == "went on"


# --- T9: what idles instead -----------------------------------------------------------------------------


async def test_t9_stall_check_false_waits_for_the_deadline() -> None:
    handler = Forgets(timeout=7, stall_check=False).run()
    began = anyio.current_time()
    events = await read_all(handler)
    assert anyio.current_time() - began == pytest.approx(7)
    assert isinstance(events[-1], WorkflowTimedOutEvent)
    assert events[-1].active_steps == []
    with pytest.raises(WorkflowTimeoutError):
        await handler


async def test_t9_stall_check_false_goes_on_when_an_event_is_sent() -> None:
    handler = Forgets(timeout=None, stall_check=False).run()
    await anyio.sleep(100)
    await handler.send_event(Part())
    assert await handler is None


class TakesAnswers(Workflow):
    """Idles until somebody outside sends an answer."""

    @step
    async def begin(self, ev: StartEvent) -> None:
        return None

    @step
    async def end(self, ev: Answer) -> StopEvent | None:
        return StopEvent(result=ev.text) if ev.text else None


async def test_t9_graph_that_takes_outside_events_idles_and_goes_on() -> None:
    handler = TakesAnswers(timeout=None).run()
    idle = 0
    async for event in handler.stream_events(expose_internal=True):
        if isinstance(event, WorkflowIdleEvent):
            idle += 1
            assert handler.statistics().steps["end"].done == idle - 1
            await anyio.sleep(50)
            await handler.send_event(Answer(text="" if idle < 3 else "third"))
    assert await handler == "third"
    assert idle == 3


async def test_t9_any_type_that_no_step_produces_is_an_outside_event() -> None:
    class TakesItems(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> None:
            return None

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent(result=ev.n)

    handler = TakesItems(skip_graph_checks=["reachability"]).run()
    await anyio.sleep(10)
    await handler.send_event(Item(n=3))
    assert await handler == 3


@pytest.mark.parametrize("how", ["returned", "written", "waited with"])
async def test_t9_run_that_has_asked_for_input_idles(how: str) -> None:
    class Asks(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> Question | StopEvent | None:
            if how == "returned":
                return Question()
            if how == "written":
                ctx.write_event_to_stream(Question())
                return None
            with pytest.raises(TimeoutError):
                await ctx.wait_for_event(Answer, Question(), timeout=1)
            return None

    handler = Asks(timeout=9).run()
    events = await read_all(handler)
    assert isinstance(events[-1], WorkflowTimedOutEvent)
    kinds = [type(event) for event in events]
    assert kinds.count(Question) == 1
    assert WorkflowIdleEvent in kinds[kinds.index(Question) :]


async def test_t9_idle_event_comes_when_all_steps_wait() -> None:
    class Waits(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=1), Item(n=2)]

        @step
        async def wait(self, ctx: Context, ev: Item) -> Note:
            await anyio.sleep(ev.n)
            return Note(text=await ctx.wait_for_event(Answer))

        @step
        async def join(self, evs: list[Note]) -> StopEvent:
            return StopEvent(result=len(evs))

    handler = Waits().run()
    began = anyio.current_time()
    async for event in handler.stream_events(expose_internal=True):
        if isinstance(event, WorkflowIdleEvent):
            assert anyio.current_time() - began == pytest.approx(2)  # not while the second works
            await handler.send_event(Answer())
    assert await handler == 2


async def test_t9_idle_event_is_internal() -> None:
    handler = TakesAnswers().run()
    await anyio.sleep(1)
    await handler.send_event(Answer(text="x"))
    assert [type(event) for event in await read(handler)] == [StopEvent]


# --- S4: the internal events ---------------------------------------------------------------------------


class Chain(Workflow):
    """Three steps; the middle one has a single worker and is given three events."""

    @step
    async def fork(self, ctx: Context, ev: StartEvent) -> Item | None:
        for n in range(3):
            ctx.send_event(Item(n=n))
        return None

    @step(num_workers=1)
    async def work(self, ev: Item) -> Part:
        await anyio.sleep(1)
        return Part(n=ev.n)

    @step
    async def end(self, ev: Part) -> StopEvent | None:
        return StopEvent() if ev.n == 2 else None


def states(events: list[Event], name: str) -> list[StepStateChanged]:
    return [event for event in events if isinstance(event, StepStateChanged) and event.name == name]


async def test_s4_states_of_a_step_with_their_names() -> None:
    handler = Chain().run()
    events = await read_all(handler)
    assert [
        (event.step_state, event.input_event_name, event.output_event_name)
        for event in states(events, "fork")
    ] == [
        (StepState.PREPARING, "StartEvent", None),
        (StepState.RUNNING, "StartEvent", None),
        (StepState.NOT_RUNNING, "StartEvent", None),
    ]
    assert [event.step_state for event in states(events, "work")] == [
        StepState.PREPARING,
        StepState.PREPARING,
        StepState.PREPARING,
        StepState.RUNNING,
        StepState.NOT_RUNNING,
        StepState.RUNNING,
        StepState.NOT_RUNNING,
        StepState.RUNNING,
        StepState.NOT_RUNNING,
    ]
    outputs = [
        event.output_event_name
        for event in states(events, "work")
        if event.step_state is StepState.NOT_RUNNING
    ]
    assert outputs == ["Part"] * 3
    last = states(events, "end")[-1]
    assert (last.step_state, last.output_event_name) == (StepState.NOT_RUNNING, "StopEvent")
    assert type(events[-1]) is StopEvent  # internal ones precede it


async def test_s4_worker_id_follows_one_execution() -> None:
    handler = Chain().run()
    events = await read_all(handler)
    lives: dict[str, list[StepState]] = {}
    for event in events:
        if isinstance(event, StepStateChanged):
            lives.setdefault(f"{event.name} {event.worker_id}", []).append(event.step_state)
    life = [StepState.PREPARING, StepState.RUNNING, StepState.NOT_RUNNING]
    assert list(lives.values()) == [life] * 7
    assert len({event.worker_id for event in events if isinstance(event, StepStateChanged)}) == 7


@pytest.mark.parametrize("how", ["fail", "cancel", "time out"])
async def test_s4_execution_that_does_not_return_is_over_all_the_same(how: str) -> None:
    class Ends(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            if how == "fail":
                raise ValueError
            await anyio.sleep(1000)
            return StopEvent()

    handler = Ends(timeout=2).run()
    events = handler.stream_events(expose_internal=True)
    await anyio.sleep(1)
    if how == "cancel":
        await handler.cancel_run()
    found = [event async for event in events]
    assert [event.step_state for event in states(found, "work")] == [
        StepState.PREPARING,
        StepState.RUNNING,
        StepState.NOT_RUNNING,
    ]
    last = states(found, "work")[-1]
    assert last.output_event_name is None
    told = ("failed", "ValueError") if how == "fail" else ("cancelled", None)
    assert (last.outcome, last.error) == told
    assert isinstance(found[-1], StopEvent)
    assert handler.get_stop_event() is found[-1]


async def test_s4_step_that_takes_several_events_names_them() -> None:
    class Pairs(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Part | Other:
            ctx.send_event(Part())
            return Other()

        @step
        async def pair(self, a: Part, b: Other) -> StopEvent:
            return StopEvent()

    events = await read_all(Pairs().run())
    assert [event.input_event_name for event in states(events, "pair")] == ["Part, Other"] * 3


async def test_s4_public_events_keep_their_place_among_the_internal_ones() -> None:
    class Writes(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Note(text="in between"))
            return StopEvent()

    events = await read_all(Writes().run())
    assert [type(event) for event in events] == [
        StepStateChanged,
        StepStateChanged,
        Note,
        StepStateChanged,
        StopEvent,
    ]


async def test_s4_i3_asking_later_tells_first_what_is_going_on() -> None:
    handler = Chain().run()
    await anyio.sleep(1.5)
    events = await read_all(handler)
    found = [(event.worker_id, event.step_state) for event in states(events, "work")]
    second, third = found[0][0], found[1][0]
    assert found == [
        (second, StepState.RUNNING),
        (third, StepState.PREPARING),
        (second, StepState.NOT_RUNNING),
        (third, StepState.RUNNING),
        (third, StepState.NOT_RUNNING),
    ]


async def test_s4_calling_is_asking_and_reading_without_skips_them() -> None:
    handler = Chain().run()
    internal = handler.stream_events(expose_internal=True)  # asked for, read by another iterator
    events = await read(handler)
    assert not [event for event in events if isinstance(event, InternalDispatchEvent)]
    with pytest.raises(WorkflowRuntimeError, match="already been consumed"):
        await anext(internal)


async def test_i3_a_step_that_waits_is_told() -> None:
    class Waits(Workflow):
        @step
        async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Answer, Question())
            return StopEvent()

    handler = Waits().run()
    kinds = []
    async for event in handler.stream_events(expose_internal=True):
        changed = isinstance(event, StepStateChanged)
        kinds.append(event.step_state.name if changed else type(event).__name__)
        if isinstance(event, WorkflowIdleEvent):
            await handler.send_event(Answer())
    assert kinds == [
        "PREPARING",
        "RUNNING",
        "WAITING",
        "Question",
        "WorkflowIdleEvent",
        "RUNNING",
        "NOT_RUNNING",
        "StopEvent",
    ]


# --- R8: timeouts of steps --------------------------------------------------------------------------------


def timed(act: Callable[[Context], Awaitable[Any]], seconds: float = 2, **kwargs: Any) -> Workflow:
    """Return a workflow whose only step has a timeout."""

    class Timed(Workflow):
        @step(timeout=seconds)
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await act(ctx))

    return Timed(**{"timeout": None, **kwargs})


async def test_r8_fails_the_attempt_with_a_timeout_error() -> None:
    began = anyio.current_time()
    handler = timed(lambda ctx: anyio.sleep(100)).run()
    _, last = await check_ending(handler)
    assert anyio.current_time() - began == pytest.approx(2)
    assert type(last) is WorkflowFailedEvent
    assert type(last.exception) is TimeoutError
    assert str(last.exception) == "step work took longer than 2 s"
    assert (last.step_name, last.attempts) == ("work", 1)
    assert last.elapsed_seconds == pytest.approx(2)


async def test_r8_step_within_its_timeout_is_fine() -> None:
    async def act(ctx: Context) -> str:
        await anyio.sleep(1.9)
        return "in time"

    assert await timed(act).run() == "in time"


async def test_r8_step_cleans_up() -> None:
    async def act(ctx: Context) -> None:
        try:
            await anyio.sleep(100)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)
            ctx.write_event_to_stream(Note(text="cleaned up"))

    began = anyio.current_time()
    handler = timed(act).run()
    assert texts(await read(handler)) == ["cleaned up"]
    assert anyio.current_time() - began == pytest.approx(5)
    with pytest.raises(TimeoutError):
        await handler


async def test_r8_waiting_does_not_count() -> None:
    async def act(ctx: Context) -> str:
        words = []
        for _ in range(3):
            await anyio.sleep(0.5)
            words.append((await ctx.wait_for_event(Answer, Question(), timeout=100)).text)
        await anyio.sleep(0.4)
        return "".join(words)

    handler = timed(act).run()
    async for event in handler.stream_events():
        if isinstance(event, Question):
            await anyio.sleep(30)
            await handler.send_event(Answer(text="x"))
    assert await handler == "xxx"


async def test_r8_what_is_left_counts_on_after_a_wait() -> None:
    async def act(ctx: Context) -> None:
        await anyio.sleep(1.5)
        await ctx.wait_for_event(Answer)
        times.append(anyio.current_time())
        try:
            await anyio.sleep(100)
        finally:
            times.append(anyio.current_time())

    times: list[float] = []
    handler = timed(act).run()
    await anyio.sleep(50)
    await handler.send_event(Answer())
    with pytest.raises(TimeoutError, match="step work took longer"):
        await handler
    assert times[1] - times[0] == pytest.approx(0.5)


async def test_r8_waiting_for_a_worker_after_the_answer_does_not_count() -> None:
    class OneWorker(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.send_event(Item(n=1))
            ctx.send_event(Item(n=2))
            return None

        @step(num_workers=1, timeout=3)
        async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            if ev.n == 1:
                await anyio.sleep(2)
                await ctx.wait_for_event(Answer)  # answered at once, and then no worker is free
                await anyio.sleep(0.5)
                return StopEvent(result="fine")
            ctx.send_event(Answer())
            await anyio.sleep(2.5)
            return None

    assert await OneWorker(skip_graph_checks=["reachability"]).run() == "fine"


async def test_r8_parallel_waits_stop_the_clock_once() -> None:
    async def act(ctx: Context) -> str:
        await anyio.sleep(1)
        async with anyio.create_task_group() as group:
            for word in ("a", "b"):
                wait = {"requirements": {"text": word}, "timeout": None}
                group.start_soon(lambda wait=wait: ctx.wait_for_event(Answer, **wait))
        await anyio.sleep(0.5)
        return "fine"

    handler = timed(act).run()
    for word in ("b", "a"):
        await anyio.sleep(40)
        await handler.send_event(Answer(text=word))
    assert await handler == "fine"


async def test_r8_wait_that_times_out_or_is_given_up_starts_the_clock_again() -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, timeout=10)
        with anyio.move_on_after(10):
            await ctx.wait_for_event(Answer)
        await anyio.sleep(100)

    began = anyio.current_time()
    with pytest.raises(TimeoutError, match="step work took longer than 2 s"):
        await timed(act).run()
    assert anyio.current_time() - began == pytest.approx(22)


async def test_r8_steps_own_timeout_error_is_not_the_runs_deadline() -> None:
    error = TimeoutError("mine")

    async def act(ctx: Context) -> None:
        raise error

    handler = timed(act, timeout=5).run()
    with pytest.raises(TimeoutError, match="mine") as caught:
        await handler
    assert caught.value is error
    assert type(handler.get_stop_event()) is WorkflowFailedEvent


async def test_r8_steps_own_deadline_inside_is_its_own_business() -> None:
    async def act(ctx: Context) -> str:
        with anyio.move_on_after(1):
            await anyio.sleep(10)
        try:
            with anyio.fail_after(0.5):
                await anyio.sleep(10)
        except TimeoutError:
            return "handled"
        return "not raised"

    assert await timed(act).run() == "handled"


@pytest.mark.parametrize("lead", [-0.5, 0, 0.5])
async def test_r8_run_deadline_against_step_timeout(lead: float) -> None:
    """At the same instant it is the run's deadline, on both backends: the clock decides (T4)."""
    handler = timed(lambda ctx: anyio.sleep(100), timeout=2 + lead).run()
    _, last = await check_ending(handler)
    assert type(last) is (WorkflowFailedEvent if lead > 0 else WorkflowTimedOutEvent)
    if lead <= 0:
        assert last["active_steps"] == ["work"]


async def test_r8_cancelled_run_is_not_taken_for_a_step_timeout() -> None:
    handler = timed(lambda ctx: anyio.sleep(100)).run()
    await anyio.sleep(1)
    await handler.cancel_run()
    assert type(handler.get_stop_event()) is WorkflowCancelledEvent


async def test_r8_step_timeouts_are_per_execution() -> None:
    class Queue(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(5):
                ctx.send_event(Item(n=n))
            return None

        @step(num_workers=1, timeout=2)
        async def work(self, ev: Item) -> StopEvent | None:
            await anyio.sleep(1.5)
            return StopEvent() if ev.n == 4 else None

    assert await Queue(timeout=None).run() is None


@pytest.mark.parametrize("then", ["returns", "checkpoints", "waits"])
async def test_r8_step_that_hogged_past_its_timeout_fails_on_both_backends(then: str) -> None:
    """As with the run's deadline (T4), the clock counts, not who noticed it first."""

    async def act(ctx: Context) -> None:
        hog(3)
        if then == "checkpoints":
            await checkpoint()
        elif then == "waits":
            await ctx.wait_for_event(Answer, timeout=50)

    began = anyio.current_time()
    with pytest.raises(TimeoutError, match="step work took longer than 2 s"):
        await timed(act).run()
    assert anyio.current_time() - began == pytest.approx(3)


async def test_r8_step_that_swallows_its_timeout_fails_all_the_same() -> None:
    async def act(ctx: Context) -> str:
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep(100)
        return "swallowed"

    with pytest.raises(TimeoutError, match="step work took longer than 2 s"):
        await timed(act).run()


async def test_r8_own_stop_event_at_the_last_moment_counts() -> None:
    async def act(ctx: Context) -> str:
        hog(1.9)
        return "just in time"

    assert await timed(act).run() == "just in time"
