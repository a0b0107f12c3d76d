"""`@catch_error`: a step takes over where another has failed for good (X4)."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowTimedOutEvent,
    catch_error,
    step,
)
from anyio_workflows.errors import WorkflowRuntimeError, WorkflowStalledError
from anyio_workflows.events import StepFailedEvent, UnhandledEvent, WorkflowIdleEvent
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .recovering import ended_well, fail, failed, line, tell
from .running import check_ending, hog, texts
from .samples import Answer, Item, Note, Other, Part, ProviderError, Question

pytestmark = pytest.mark.anyio

# --- Who takes a failure ------------------------------------------------------------------------


class Covered(Workflow):
    """Two steps have a handler of their own, the others share one, which is written first."""

    def __init__(self, failing: str = "") -> None:
        super().__init__()
        self.failing = failing

    def _maybe(self, name: str) -> None:
        if name == self.failing:
            raise ProviderError

    @catch_error
    async def others(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=("others", ev.step_name))

    @catch_error(for_steps=["a", "b"])
    async def scoped(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=("scoped", ev.step_name))

    @step
    async def begin(self, ev: StartEvent) -> Item:
        self._maybe("begin")
        return Item()

    @step
    async def a(self, ev: Item) -> Other:
        self._maybe("a")
        return Other()

    @step
    async def b(self, ev: Other) -> Part:
        self._maybe("b")
        return Part()

    @step
    async def c(self, ev: Part) -> StopEvent:
        self._maybe("c")
        return StopEvent()


@pytest.mark.parametrize(
    ("failing", "handler"),
    [("begin", "others"), ("a", "scoped"), ("b", "scoped"), ("c", "others")],
)
async def test_x4_scoped_handlers_come_before_the_wildcard(failing: str, handler: str) -> None:
    assert await ended_well(Covered(failing).run()) == (handler, failing)


async def test_x4_a_run_without_failures_starts_no_handler() -> None:
    run = Covered().run()
    assert await ended_well(run) is None
    steps = run.statistics().steps
    assert (steps["others"].done, steps["scoped"].done) == (0, 0)


async def test_x4_a_step_that_no_handler_names_fails_the_run() -> None:
    class Partly(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item()

        @step
        async def work(self, ev: Item) -> StopEvent:
            raise error

        @catch_error(for_steps=["begin"])
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            raise AssertionError("started for a step that it does not name")

    error = ProviderError()
    assert await failed(Partly().run(), "work", ProviderError) is error


# --- What it is told ----------------------------------------------------------------------------


async def test_x4_the_failure_is_told_in_full() -> None:
    async def work(ctx: Context, ev: StartEvent | Item) -> Any:
        if isinstance(ev, StartEvent):
            return item
        await anyio.sleep(2)
        raise error

    item, error = Item(n=4), ProviderError("broken")
    before = datetime.now(UTC)
    told = await ended_well(line(work, tell).run())
    assert type(told) is StepFailedEvent
    assert told.step_name == "work"
    assert told.input_event is item
    assert told.exception is error
    assert (told.attempts, told.elapsed_seconds) == (1, 2)
    assert told.failed_at.utcoffset() == timedelta(0)
    assert before <= told.failed_at <= datetime.now(UTC)


async def test_x4_retries_come_first_then_recovery_once() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        await anyio.sleep(1)
        errors.append(ProviderError(len(errors)))
        raise errors[-1]

    async def rescue(ctx: Context, ev: StepFailedEvent) -> StopEvent:
        assert len(errors) == 3
        return StopEvent(result=ev)

    errors: list[ProviderError] = []
    policy = retry_policy(wait=wait_fixed(3), stop=stop_after_attempt(3))
    run = line(work, rescue, retry_policy=policy).run()
    told = await ended_well(run)
    assert told.exception is errors[2]
    assert (told.attempts, told.elapsed_seconds) == (3, 9)
    assert run.statistics().steps["rescue"].done == 1


async def test_x4_a_retry_that_succeeds_costs_no_recovery() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        calls.append(ctx.retry_info().retry_number)
        if len(calls) == 1:
            raise ProviderError
        return StopEvent(result=calls)

    async def rescue(ctx: Context, ev: StepFailedEvent) -> StopEvent:
        raise AssertionError("nothing failed for good")

    calls: list[int] = []
    assert await ended_well(line(work, rescue, retry_policy=retry_policy()).run()) == [0, 1]


async def test_x4_queueing_is_no_part_of_the_elapsed_time() -> None:
    async def work(ctx: Context, ev: StartEvent | Item) -> Any:
        if isinstance(ev, StartEvent):
            ctx.send_event(Item())
            await anyio.sleep(10)
            return Item()
        raise ProviderError

    told = await ended_well(line(work, tell, num_workers=1).run())
    assert told.elapsed_seconds == 0


async def test_x4_failures_of_joins_and_sets_tell_all_their_events() -> None:
    class Gathers(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=1), Item(n=2)]

        @step
        async def join(self, evs: list[Item]) -> Other:
            raise ProviderError

        @step
        async def pair(self, one: Other, two: Part) -> StopEvent:
            raise ProviderError

        @catch_error(for_steps=["join"])
        async def rescue_join(self, ctx: Context, ev: StepFailedEvent) -> Other:
            told.append(ev.input_event)
            ctx.send_event(Part(n=4))
            return Other(n=3)

        @catch_error(for_steps=["pair"])
        async def rescue_pair(self, ev: StepFailedEvent) -> StopEvent:
            told.append(ev.input_event)
            return StopEvent()

    told: list[Any] = []
    await ended_well(Gathers(skip_graph_checks=["reachability"]).run())
    assert told == [[Item(n=1), Item(n=2)], (Other(n=3), Part(n=4))]


# --- What can be recovered ------------------------------------------------------------------------


async def test_x4_r4_a_wrong_return_value_can_be_recovered() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        return {"n": 1}

    told = await ended_well(line(work, tell, retry_policy=retry_policy()).run())
    assert type(told.exception) is WorkflowRuntimeError
    assert str(told.exception).startswith("step work returned {'n': 1} (dict)")
    assert told.attempts == 1


async def test_x4_t8_a_stray_cancellation_can_be_recovered() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.sleep(1)
            except anyio.get_cancelled_exc_class() as exc:
                stray = exc
        raise stray

    told = await ended_well(line(work, tell).run())
    assert type(told.exception) is WorkflowRuntimeError
    assert isinstance(told.exception.__cause__, anyio.get_cancelled_exc_class())


async def test_x4_r8_a_step_that_took_too_long_can_be_recovered() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        await anyio.sleep(100)

    told = await ended_well(line(work, tell, timeout=5).run())
    assert type(told.exception) is TimeoutError
    assert told.elapsed_seconds == 5


async def test_x4_a_group_that_a_step_raised_is_told_unchanged() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        raise group

    group = ExceptionGroup("two", [ProviderError(1), ProviderError(2)])
    assert (await ended_well(line(work, tell).run())).exception is group


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_x4_t8_other_base_exceptions_are_never_recovered(error: type[BaseException]) -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        raise error

    run = line(work, tell).run()
    await failed(run, "work", error)
    assert run.statistics().steps["rescue"].done == 0


class BadPolicy:
    """Raises what it is made with, or answers it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def next(self, elapsed_time: float, attempts: int, error: Exception, /) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "error"), [(LookupError("policy"), LookupError), (-1, WorkflowRuntimeError)]
)
async def test_x4_a_failing_policy_is_never_recovered(answer: Any, error: Any) -> None:
    run = line(fail, tell, retry_policy=BadPolicy(answer)).run()
    raised = await failed(run, "work", error)
    assert type(raised.__cause__) is ProviderError
    assert run.statistics().steps["rescue"].done == 0


# --- What a handler does ---------------------------------------------------------------------------


async def test_x4_another_event_goes_on_in_the_place_of_what_failed() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> Event:
        ctx.write_event_to_stream(Note(text="recovered"))
        return Other(n=7)

    events, last = await check_ending(line(fail, rescue).run())
    assert texts(events) == ["recovered"]
    assert last["result"] == Other(n=7)


async def test_x4_a_list_goes_to_the_steps_that_take_its_events() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> list[Part]:
        return [Part(n=1), Part(n=2)]

    assert await ended_well(line(fail, rescue).run()) == Part(n=1)


async def test_x4_none_can_stall_the_run() -> None:
    class Silent(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            raise ProviderError

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> None:
            return None

    error = await failed(Silent().run(), "rescue", WorkflowStalledError)
    assert error.last_acts == {"work": "failed with ProviderError", "rescue": "returned None"}


async def test_x4_none_leaves_a_run_idle_that_takes_events_from_outside() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> None:
        return None

    handler = line(fail, rescue).run()
    async for event in handler.stream_events(expose_internal=True):
        if isinstance(event, WorkflowIdleEvent):
            assert handler.statistics().steps["rescue"].done == 1
            await handler.send_event(Answer())
    assert await handler == Answer()


async def test_x4_a_question_goes_to_the_stream_and_the_answer_goes_on() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> Event:
        return Question()

    handler = line(fail, rescue).run()
    await anyio.sleep(1)
    assert not handler.is_done()
    await handler.send_event(Answer())
    events, _ = await check_ending(handler)
    assert events == [Question(), StopEvent(result=Answer())]


async def test_x4_a_handler_may_wait_like_any_step() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=await ctx.wait_for_event(Answer, Question()))

    handler = line(fail, rescue).run()
    await anyio.sleep(1)
    assert handler.statistics().steps["rescue"].waiting == 1
    await handler.send_event(Answer())
    assert await ended_well(handler) == Answer()


@pytest.mark.parametrize("again", [False, True], ids=["its own error", "the error it was given"])
async def test_x4_what_a_handler_raises_fails_the_run(again: bool) -> None:
    class Rethrows(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item()

        @step
        async def work(self, ev: Item) -> StopEvent:
            raise first

        @catch_error(for_steps=["work"])
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            raise ev.exception if again else second

        @catch_error
        async def others(self, ev: StepFailedEvent) -> StopEvent:
            raise AssertionError("a handler is no step to be recovered")

    first, second = ProviderError("first"), ProviderError("second")
    raised = await failed(Rethrows().run(), "rescue", ProviderError)
    assert raised is (first if again else second)


async def test_x4_r4_a_handler_must_return_what_it_declares() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> Any:
        return "fine"

    raised = await failed(line(fail, rescue).run(), "rescue", WorkflowRuntimeError)
    assert str(raised) == (
        "step rescue returned 'fine' (str), but declares "
        "Item | Other | Question | StopEvent | list[Part] | None; return one of those"
    )


async def test_r5_sync_steps_and_sync_handlers() -> None:
    class Threads(Workflow):
        @step
        def work(self, ev: StartEvent) -> StopEvent:
            raise ProviderError

        @catch_error
        def rescue(self, ctx: Context, ev: StepFailedEvent) -> StopEvent:
            ctx.write_event_to_stream(Note(text=ev.step_name))
            return StopEvent(result=type(ev.exception))

    events, last = await check_ending(Threads(timeout=None).run())
    assert texts(events) == ["work"]
    assert last["result"] is ProviderError


# --- After the decision -----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["cancel", "deadline", "stop"])
async def test_x2_recovery_never_begins_when_the_run_ends(ending: str) -> None:
    class Ends(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(1000)
            except anyio.get_cancelled_exc_class():
                raise ProviderError from None
            return StopEvent()

        @step
        async def other(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(1 if ending == "stop" else 1000)
            return StopEvent()

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            raise AssertionError("began after the decision")

    handler = Ends(timeout=10).run()
    await anyio.sleep(5)
    if ending == "cancel":
        await handler.cancel_run()
    _, last = await check_ending(handler)
    kinds = {
        "cancel": WorkflowCancelledEvent,
        "deadline": WorkflowTimedOutEvent,
        "stop": StopEvent,
    }
    assert type(last) is kinds[ending]
    assert handler.statistics().steps["rescue"].done == 0


async def test_x2_recovery_never_begins_after_a_stop_event_was_sent() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        ctx.send_event(StopEvent(result="sent"))
        raise ProviderError

    handler = line(work, tell).run()
    assert await ended_well(handler) == "sent"
    assert handler.statistics().steps["rescue"].queued == 0


async def test_x2_recovery_never_begins_after_a_deadline_that_nobody_has_noticed() -> None:
    class Hogs(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            hog(20)
            raise ProviderError

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            raise AssertionError("began after the deadline")

    _, last = await check_ending(Hogs(timeout=10).run())
    assert last == WorkflowTimedOutEvent(timeout=10, active_steps=["work"])


async def test_x2_a_handler_that_is_queued_at_the_end_never_starts() -> None:
    class Queue(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
            for n in range(6):
                ctx.send_event(Item(n=n))
            await anyio.sleep(1)
            return StopEvent()

        @step(num_workers=6)
        async def fails(self, ev: Item) -> None:
            raise ProviderError

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> None:
            started.append(ev)
            await anyio.sleep(10)

    started: list[Event] = []
    handler = Queue(skip_graph_checks=["reachability"]).run()
    await anyio.sleep(0.5)
    assert handler.statistics().steps["rescue"].queued == 2
    await ended_well(handler)
    assert len(started) == 4


async def test_t6_a_handler_at_work_is_cancelled_with_the_run() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> None:
        try:
            await anyio.sleep(1000)
        finally:
            ctx.write_event_to_stream(Note(text="tidied"))

    handler = line(fail, rescue).run()
    await anyio.sleep(1)
    await handler.cancel_run()
    events, last = await check_ending(handler)
    assert texts(events) == ["tidied"]
    assert type(last) is WorkflowCancelledEvent


# --- Events of this kind that nobody's failure made ---------------------------------------------------


@pytest.mark.parametrize("how", ["send", "return", "from outside"])
async def test_x4_a_failure_event_of_ones_own_starts_nothing(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Makes(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StepFailedEvent | StopEvent | None:
            if how == "send":
                ctx.send_event(made)
            return made if how == "return" else None

        @step
        async def end(self, ev: Answer) -> StopEvent:
            return StopEvent()

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            raise AssertionError("nothing has failed")

    made = StepFailedEvent(
        step_name="work",
        input_event=StartEvent(),
        exception=ProviderError(),
        attempts=1,
        elapsed_seconds=0,
        failed_at=datetime.now(UTC),
    )
    caplog.set_level(logging.WARNING, "anyio_workflows")
    handler = Makes(skip_graph_checks=["terminal_event"]).run()
    stream = handler.stream_events(expose_internal=True)
    await anyio.sleep(1)
    if how == "from outside":
        await handler.send_event(made)
    await handler.send_event(Answer())
    unhandled = [event async for event in stream if isinstance(event, UnhandledEvent)]
    assert [event.event_type for event in unhandled] == ["StepFailedEvent"]
    assert handler.statistics().steps["rescue"].done == 0
    assert "no step accepts StepFailedEvent" in caplog.text
