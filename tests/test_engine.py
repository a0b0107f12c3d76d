"""Termination (T rules) and routing (R rules) of a run."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import time
import traceback
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
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
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import StepStateChanged, UnhandledEvent

from .conftest import BACKENDS
from .running import Note, check_ending, hog, read, run_virtually, texts

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


class Left(Event):
    how: str


class Right(Event):
    how: str


class Next(Event):
    n: int = 0


class Done(StopEvent):
    text: str = ""


class ProviderError(Exception):
    pass


# --- T1-T4: how runs end ----------------------------------------------------------------------


class Race(Workflow):
    """Two steps that both end the run, each in its way, ten seconds after the start."""

    handler: WorkflowHandler[Any]
    cleaned: list[str]

    def begin(self, left: str, right: str) -> WorkflowHandler[Any]:
        self.cleaned = []
        self.handler = self.run(left=left, right=right)
        return self.handler

    @step
    async def fork(self, ctx: Context, ev: StartEvent) -> Left | Right | None:
        ctx.send_event(Left(how=ev.left))
        ctx.send_event(Right(how=ev.right))

    @step
    async def left(self, ctx: Context, ev: Left) -> StopEvent:
        return await self.end("left", ev.how, ctx)

    @step
    async def right(self, ctx: Context, ev: Right) -> StopEvent:
        return await self.end("right", ev.how, ctx)

    async def end(self, name: str, how: str, ctx: Context) -> StopEvent:
        try:
            if how == "outlast":
                await anyio.sleep(100)
            await anyio.sleep(10)
            if how == "raise":
                raise ProviderError(name)
            if how == "send":
                ctx.send_event(StopEvent(result=name))
                await anyio.sleep(100)
            if how == "cancel":
                await self.handler.cancel_run()
            return StopEvent(result=name)
        finally:
            ctx.write_event_to_stream(Note(text=name))
            self.cleaned.append(name)


ENDS_WITH = {
    "return": StopEvent,
    "send": StopEvent,
    "raise": WorkflowFailedEvent,
    "cancel": WorkflowCancelledEvent,
}


@pytest.mark.parametrize(("left", "right"), list(itertools.product(ENDS_WITH, repeat=2)))
async def test_t4_first_of_two_endings_at_the_same_moment_wins(left: str, right: str) -> None:
    race = Race(timeout=20)
    handler = race.begin(left, right)
    events, last = await check_ending(handler)
    assert type(last) in (ENDS_WITH[left], ENDS_WITH[right])
    assert sorted(race.cleaned) == ["left", "right"]
    assert sorted(texts(events)) == ["left", "right"]  # written before the end
    assert {name: s.running for name, s in handler.statistics().steps.items()} == {
        "fork": 0,
        "left": 0,
        "right": 0,
    }


@pytest.mark.parametrize("how", [*ENDS_WITH, "outlast"])
@pytest.mark.parametrize("other", [*ENDS_WITH, "outlast"])
async def test_t4_deadline_at_the_same_moment_wins(how: str, other: str) -> None:
    race = Race(timeout=10)
    _, last = await check_ending(race.begin(how, other))
    assert last == WorkflowTimedOutEvent(timeout=10, active_steps=["left", "right"])
    assert sorted(race.cleaned) == ["left", "right"]


@pytest.mark.parametrize("how", ENDS_WITH)
async def test_t4_cancel_from_outside_at_the_moment_of_another_ending(how: str) -> None:
    race = Race(timeout=20)
    handler = race.begin(how, "outlast")
    await anyio.sleep(10)
    await handler.cancel_run()
    assert handler.is_done()
    _, last = await check_ending(handler)
    assert type(last) in (ENDS_WITH[how], WorkflowCancelledEvent)


async def test_t4_cancel_from_outside_at_the_deadline() -> None:
    handler = Race(timeout=10).begin("outlast", "outlast")
    await anyio.sleep(10)
    await handler.cancel_run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowTimedOutEvent)


class Single(Workflow):
    """One step that ends the run as the start event says."""

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        if ev.how == "return":
            return StopEvent(result=7)
        if ev.how == "subclass":
            return Done(text="bye")
        if ev.how == "send":
            ctx.send_event(StopEvent(result=7))
        if ev.how == "send subclass":
            ctx.send_event(Done(text="bye"))
        if ev.how == "raise":
            raise ProviderError("down")
        await anyio.sleep_forever()
        raise AssertionError


@pytest.mark.parametrize("how", ["return", "subclass", "send", "send subclass", "raise", "wait"])
async def test_t1_one_stop_event_and_it_is_the_last(how: str) -> None:
    handler = Single(timeout=10).run(how=how)
    events, _ = await check_ending(handler)
    assert len(events) == 1


@pytest.mark.parametrize("how", ["return", "send"])
async def test_t2_stop_event_gives_its_result(how: str) -> None:
    handler = Single().run(how=how)
    assert await handler == 7
    assert await handler.stop_event_result() == StopEvent(result=7)
    assert await read(handler) == [StopEvent(result=7)]


@pytest.mark.parametrize("how", ["subclass", "send subclass"])
async def test_t2_subclass_of_stop_event_comes_as_it_is(how: str) -> None:
    handler = Single().run(how=how)
    event = await handler
    assert event == Done(text="bye")
    assert await handler.stop_event_result() is event
    assert handler.get_stop_event() is event


async def test_t2_deadline() -> None:
    start = anyio.current_time()
    handler = Single(timeout=10).run(how="wait")
    with pytest.raises(
        WorkflowTimeoutError, match=r"10 s; at that time:\n  step only: running for 10 s"
    ) as caught:
        await handler
    assert (caught.value.timeout, caught.value.active_steps) == (10, ["only"])
    assert anyio.current_time() - start == 10
    assert await read(handler) == [WorkflowTimedOutEvent(timeout=10, active_steps=["only"])]


async def test_t2_cancel() -> None:
    handler = Single().run(how="wait")
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser, match="cancel_run"):
        await handler
    with pytest.raises(WorkflowCancelledByUser):
        await handler.stop_event_result()
    assert await read(handler) == [WorkflowCancelledEvent()]


async def test_t2_failure() -> None:
    class Slow(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(3)
            raise ProviderError("down")

    handler = Slow().run()
    with pytest.raises(ProviderError, match="down") as caught:
        await handler
    [event] = await read(handler)
    assert event == WorkflowFailedEvent(
        step_name="ask", exception=caught.value, attempts=1, elapsed_seconds=3.0
    )


async def test_t2_active_steps_are_those_in_progress_sorted() -> None:
    class Many(Workflow):
        @step
        async def zeta(self, ctx: Context, ev: StartEvent) -> Left | Right | StopEvent:
            for _ in range(6):
                ctx.send_event(Left(how="wait"))
            ctx.send_event(Right(how="end"))
            await anyio.sleep(100)
            return StopEvent()

        @step
        async def alpha(self, ev: Left) -> None:
            await anyio.sleep(100)

        @step
        async def ended(self, ev: Right) -> None:
            pass

    _, last = await check_ending(Many(timeout=10).run())
    assert last == WorkflowTimedOutEvent(timeout=10, active_steps=["alpha", "zeta"])


async def test_t2_no_active_steps_while_waiting_for_a_person() -> None:
    class Ask(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent()

        @step
        async def take(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent()

    _, last = await check_ending(Ask(timeout=10).run())
    assert last == WorkflowTimedOutEvent(timeout=10, active_steps=[])


@pytest.mark.parametrize("returned", [Next(), None], ids=["event", "none"])
async def test_t2_step_that_hogs_past_the_deadline_is_active(returned: Next | None) -> None:
    class Hog(Workflow):
        @step
        async def burn(self, ev: StartEvent) -> Next | None:
            hog(20)
            return returned

        @step
        async def never(self, ev: Next) -> StopEvent:
            raise AssertionError("started after the deadline")

    _, last = await check_ending(Hog(timeout=10).run())
    assert last == WorkflowTimedOutEvent(timeout=10, active_steps=["burn"])


@pytest.mark.parametrize("returned", [Next(), None], ids=["event", "none"])
async def test_t2_step_that_swallows_the_deadline_is_active(returned: Next | None) -> None:
    class Deaf(Workflow):
        @step
        async def deaf(self, ev: StartEvent) -> Next | None:
            try:
                await anyio.sleep(100)
            except anyio.get_cancelled_exc_class():
                pass
            return returned

        @step
        async def never(self, ev: Next) -> StopEvent:
            raise AssertionError("started after the deadline")

    for _ in range(8):  # trio wakes the tasks of one moment in random order
        _, last = await check_ending(Deaf(timeout=10).run())
        assert last == WorkflowTimedOutEvent(timeout=10, active_steps=["deaf"])


async def test_t2_get_stop_event_is_none_before_the_end() -> None:
    class Clean(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(100)
            finally:
                seen.append((handler.get_stop_event(), handler.is_done()))
            return StopEvent()

    seen: list[Any] = []
    handler = Clean().run()
    assert handler.get_stop_event() is None
    await anyio.sleep(1)
    await handler.cancel_run()
    assert seen == [(None, False)]
    assert handler.get_stop_event() == WorkflowCancelledEvent()


async def test_t2_no_timeout_means_no_deadline() -> None:
    class Day(Workflow):
        @step
        async def sleep(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(24 * 3600)
            return StopEvent(result="morning")

    assert await Day(timeout=None).run() == "morning"


@pytest.mark.parametrize("how", ["return", "raise", "wait"])
async def test_t3_terminal_event_is_readable_before_await_returns(how: str) -> None:
    handler = Single(timeout=10).run(how=how)
    order: list[str] = []

    async def wait() -> None:
        with suppress(ProviderError, WorkflowTimeoutError):
            await handler
        assert handler.is_done()
        assert handler.statistics().unread_events == 1
        order.append("awaited")

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(wait)
    assert order == ["awaited"] * 3
    assert len(await read(handler)) == 1


async def test_t4_second_stop_event_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Twice(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.send_event(StopEvent(result="first"))
            assert not ctx.is_running
            return StopEvent(result="second")

    caplog.set_level(logging.INFO, "anyio_workflows")
    handler = Twice().run()
    assert await read(handler) == [StopEvent(result="first")]
    assert await handler == "first"
    assert "StopEvent" in caplog.text


@pytest.mark.parametrize("ending", ["sibling", "timeout", "cancel"])
async def test_t4_failure_in_finally_changes_nothing_and_is_logged(
    ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Sore(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Left | StopEvent:
            ctx.send_event(Left(how=""))
            await anyio.sleep(5 if ending == "sibling" else 100)
            return StopEvent(result="good")

        @step
        async def sore(self, ev: Left) -> None:
            try:
                await anyio.sleep(1000)
            finally:
                raise ProviderError("while cleaning up")

    handler = Sore(timeout=10).run()
    await anyio.sleep(1)
    if ending == "cancel":
        await handler.cancel_run()
    _, last = await check_ending(handler)
    expected = {
        "sibling": StopEvent(result="good"),
        "timeout": WorkflowTimedOutEvent(timeout=10, active_steps=["fork", "sore"]),
        "cancel": WorkflowCancelledEvent(),
    }
    assert last == expected[ending]
    assert "while cleaning up" in caplog.text
    assert "sore" in caplog.text


async def test_t4_swallowing_the_end_and_returning_a_stop_event_is_too_late() -> None:
    class Stubborn(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(1000)
            except anyio.get_cancelled_exc_class():
                pass
            return StopEvent(result="late")

    for _ in range(5):
        _, last = await check_ending(Stubborn(timeout=10).run())
        assert isinstance(last, WorkflowTimedOutEvent)


@pytest.mark.parametrize("how", ["return", "send", "raise", "stray"])
async def test_t4_step_that_hogged_the_processor_times_out(how: str) -> None:
    class Hog(Workflow):
        @step
        async def burn(self, ctx: Context, ev: StartEvent) -> StopEvent:
            hog(10)
            if how == "send":
                ctx.send_event(StopEvent(result="late"))
            if how == "raise":
                raise ProviderError
            if how == "stray":
                raise await caught_cancellation()
            return StopEvent(result="late")

    _, last = await check_ending(Hog(timeout=10).run())
    assert last == WorkflowTimedOutEvent(timeout=10, active_steps=["burn"])


async def test_t4_hogging_less_than_the_timeout_is_fine() -> None:
    class Hog(Workflow):
        @step
        async def burn(self, ev: StartEvent) -> StopEvent:
            hog(9)
            return StopEvent(result="in time")

    assert await Hog(timeout=10).run() == "in time"


@pytest.mark.parametrize("how", ["raise", "swallow", "stray"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_t4_end_of_the_loop_is_the_first_cause(backend: str, how: str) -> None:
    class Sore(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(1000)
            except anyio.get_cancelled_exc_class():
                if how == "raise":
                    raise ProviderError("in cleanup") from None
                if how == "stray":
                    raise
            return StopEvent(result="late")

    async def main() -> list[WorkflowHandler[Any]]:
        handlers = [Sore().run() for _ in range(8)]
        await anyio.sleep(1)
        return handlers

    endings = [handler.get_stop_event() for handler in run_virtually(backend, main)]
    assert endings == [WorkflowCancelledEvent()] * 8


@pytest.mark.parametrize("how", ["return", "send", "raise", "wait", "cancel"])
async def test_t4_plain_endings_log_nothing(how: str, caplog: pytest.LogCaptureFixture) -> None:
    handler = Single(timeout=10).run(how="wait" if how == "cancel" else how)
    await anyio.sleep(1)
    if how == "cancel":
        await handler.cancel_run()
    await check_ending(handler)
    del handler
    gc.collect()
    assert caplog.text == ""


# --- T5: what is raised -----------------------------------------------------------------------


class Raises(Workflow):
    """Raises what it is given."""

    error: BaseException

    @classmethod
    def start(cls, error: BaseException) -> WorkflowHandler[Any]:
        workflow = cls()
        workflow.error = error
        return workflow.run()

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        ProviderError("down"),
        ExceptionGroup("several", [ProviderError("one"), ValueError("two")]),
        BaseExceptionGroup("mixed", [KeyboardInterrupt(), ValueError("two")]),
        StopAsyncIteration(),
        TimeoutError("the provider's"),
        anyio.EndOfStream(),
        WorkflowTimeoutError(1, []),
        WorkflowCancelledByUser("of another run"),
        GeneratorExit(),
        RuntimeError("no coroutine"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_t5_same_object_and_no_group_of_ours(error: BaseException) -> None:
    handler = Raises.start(error)
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            await handler
        assert caught.value is error
    [event] = await read(handler)
    assert isinstance(event, WorkflowFailedEvent)
    assert event.exception is error
    assert error.__cause__ is None


async def test_t5_group_that_a_step_makes_keeps_its_shape() -> None:
    class Group(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            async with anyio.create_task_group() as group:
                group.start_soon(self.fail, "one")
                group.start_soon(self.fail, "two")
            raise AssertionError

        async def fail(self, text: str) -> None:
            raise ProviderError(text)

    with pytest.raises(ExceptionGroup) as caught:
        await Group().run()
    assert {str(error) for error in caught.value.exceptions} <= {"one", "two"}
    assert all(isinstance(error, ProviderError) for error in caught.value.exceptions)


@pytest.mark.parametrize("how", ["raise", "wait", "cancel"])
async def test_t5_traceback_does_not_grow(how: str) -> None:
    handler = Single(timeout=10).run(how="raise" if how == "raise" else "wait")
    if how == "cancel":
        await handler.cancel_run()
    lengths = []
    for _ in range(4):
        try:
            await handler
        except Exception as error:
            lengths.append(len(traceback.extract_tb(error.__traceback__)))
    assert len(set(lengths)) == 1
    assert len(lengths) == 4


async def test_t5_traceback_shows_the_step() -> None:
    with pytest.raises(ProviderError) as caught:
        await Single().run(how="raise")
    assert "only" in {frame.name for frame in traceback.extract_tb(caught.value.__traceback__)}


async def test_t5_concurrent_awaiters_get_the_same_object() -> None:
    handler = Single().run(how="raise")
    caught: list[BaseException] = []

    async def wait() -> None:
        try:
            await handler
        except ProviderError as error:
            caught.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(wait)
    assert len(caught) == 3
    assert len({id(error) for error in caught}) == 1


@pytest.mark.parametrize("error", [StopIteration("value"), StopIteration()])
async def test_t5_stop_iteration_comes_as_a_cause(error: StopIteration) -> None:
    handler = Raises.start(error)
    with pytest.raises(WorkflowRuntimeError, match="StopIteration") as caught:
        await handler
    assert caught.value.__cause__ is error


async def test_t5_runtime_error_from_a_stop_iteration_is_the_steps_own() -> None:
    error = RuntimeError("no model left")
    error.__cause__ = StopIteration()
    with pytest.raises(RuntimeError, match="no model left") as caught:
        await Raises.start(error)
    assert caught.value is error


# --- T6: nothing is alive at the end ----------------------------------------------------------


@pytest.mark.parametrize("how", ["sibling", "failure", "timeout", "cancel"])
async def test_t6_steps_have_cleaned_up_and_written_before_the_end(how: str) -> None:
    class Tidy(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Left | StopEvent:
            for _ in range(3):
                ctx.send_event(Left(how=""))
            await anyio.sleep(5 if how in ("sibling", "failure") else 100)
            if how == "failure":
                raise ProviderError
            return StopEvent()

        @step
        async def tidy(self, ctx: Context, ev: Left) -> None:
            alive.append(ev)
            try:
                await anyio.sleep(1000)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(2)
                    ctx.write_event_to_stream(Note(text="closed"))
                alive.remove(ev)

    alive: list[Event] = []
    handler = Tidy(timeout=10).run()
    await anyio.sleep(1)
    assert len(alive) == 3
    if how == "cancel":
        await handler.cancel_run()
        assert alive == []
    events = []
    async for event in handler.stream_events():
        if isinstance(event, StopEvent):
            assert alive == []
        events.append(event)
    assert texts(events) == ["closed"] * 3
    assert isinstance(events[-1], StopEvent)


class Immortal(Workflow):
    """A step that goes on for 60 seconds after being cancelled."""

    log: list[str]

    def begin(self, how: str) -> WorkflowHandler[Any]:
        self.log = []
        return self.run(how=how)

    @step
    async def immortal(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
        try:
            if ev.how == "shield":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(70)
            else:
                await self.swallow()
        finally:
            self.log.append("ended")
        for act in (ctx.write_event_to_stream, ctx.send_event):
            try:
                act(Next())
            except WorkflowRuntimeError as refusal:
                self.log.append(str(refusal))
        if ev.how == "shield":
            raise ProviderError("too late to matter")
        return Next()

    async def swallow(self) -> None:
        for _ in range(1000):
            try:
                await anyio.sleep(0.1)
            except anyio.get_cancelled_exc_class():
                hog(0.1)

    @step
    async def never(self, ev: Next) -> StopEvent:
        raise AssertionError("started after the end")


@pytest.mark.parametrize("ending", ["timeout", "cancel"])
@pytest.mark.parametrize("how", ["shield", "swallow"])
async def test_t6_step_that_does_not_end_is_given_up(
    how: str, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    workflow = Immortal(timeout=10, cleanup_timeout=3)
    start = anyio.current_time()
    handler = workflow.begin(how)
    if ending == "cancel":
        await anyio.sleep(5)
        await handler.cancel_run()
    _, last = await check_ending(handler)
    assert type(last) is (WorkflowCancelledEvent if ending == "cancel" else WorkflowTimedOutEvent)
    expected = 8 if ending == "cancel" else 13
    assert expected - 0.1 < anyio.current_time() - start < expected + 1
    assert workflow.log == []
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "gave up" in warning.getMessage()
    assert "immortal" in warning.getMessage()

    await anyio.sleep(150)
    assert workflow.log[0] == "ended"
    assert len(workflow.log) == 3
    how_it_ended = "it was cancelled" if ending == "cancel" else "timed out after 10 s"
    assert all(how_it_ended in refusal for refusal in workflow.log[1:])
    assert handler.get_stop_event() is last


async def test_t6_siblings_of_a_step_that_was_given_up_have_cleaned_up() -> None:
    class Pair(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Left | Right | StopEvent:
            ctx.send_event(Left(how=""))
            ctx.send_event(Right(how=""))
            await anyio.sleep(5)
            return StopEvent(result="good")

        @step
        async def immortal(self, ev: Left) -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(100)

        @step
        async def tidy(self, ctx: Context, ev: Right) -> None:
            try:
                await anyio.sleep(1000)
            finally:
                ctx.write_event_to_stream(Note(text="tidy"))

    handler = Pair(cleanup_timeout=1).run()
    events, last = await check_ending(handler)
    assert texts(events) == ["tidy"]
    assert last == StopEvent(result="good")


@pytest.mark.parametrize("backend", BACKENDS)
def test_t6_loop_closes_when_a_step_that_was_given_up_ends(backend: str) -> None:
    async def main() -> tuple[StopEvent | None, float]:
        start = anyio.current_time()
        handler = workflow.begin("shield")
        await anyio.sleep(1)
        await handler.cancel_run()
        return handler.get_stop_event(), anyio.current_time() - start

    workflow = Immortal(cleanup_timeout=2)
    event, seconds = run_virtually(backend, main)
    assert (event, seconds) == (WorkflowCancelledEvent(), 3)
    assert workflow.log[0] == "ended"  # asyncio interrupts it, trio waits for it


async def test_t6_cleanup_timeout_zero_lets_prompt_steps_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Prompt(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(1000)
            finally:
                ctx.write_event_to_stream(Note(text="closed"))
            return StopEvent()

    for _ in range(5):
        handler = Prompt(timeout=10, cleanup_timeout=0).run()
        events, _ = await check_ending(handler)
        assert texts(events) == ["closed"]
    assert caplog.text == ""


async def test_t6_nothing_is_waited_for_without_a_step_in_progress() -> None:
    start = anyio.current_time()
    assert await Single(cleanup_timeout=100).run(how="return") == 7
    assert anyio.current_time() == start


# --- T7: acts after the end -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "summary"),
    [
        ("return", "it returned StopEvent"),
        ("raise", "step only failed with ProviderError"),
        ("wait", "it timed out after 10 s"),
    ],
)
async def test_t7_acts_after_the_end_raise_and_say_how_it_ended(how: str, summary: str) -> None:
    handler = Single(timeout=10).run(how=how)
    _, last = await check_ending(handler)
    with pytest.raises(WorkflowRuntimeError, match=summary):
        handler.ctx.write_event_to_stream(Note())
    with pytest.raises(WorkflowRuntimeError, match=summary):
        handler.ctx.send_event(StartEvent(how="return"))
    with pytest.raises(WorkflowRuntimeError, match=summary):
        handler.ctx.send_event(StopEvent())
    with pytest.raises(WorkflowRuntimeError, match=summary):
        await handler.send_event(StartEvent(how="return"))
    assert handler.get_stop_event() is last
    assert not handler.ctx.is_running


async def test_t7_acts_after_a_cancellation_raise() -> None:
    handler = Single().run(how="wait")
    await handler.cancel_run()
    with pytest.raises(WorkflowRuntimeError, match="it was cancelled"):
        await handler.send_event(StartEvent(how="return"))


async def test_t7_background_task_that_outlives_its_step_is_refused() -> None:
    class Leaky(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            kept.append(ctx)
            return StopEvent()

    kept: list[Context] = []
    handler = Leaky().run()
    await handler
    with pytest.raises(WorkflowRuntimeError, match="has ended"):
        kept[0].write_event_to_stream(Note())
    assert await read(handler) == [StopEvent()]


async def test_t7_sending_during_cleanup_is_ignored_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Late(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent | Next:
            try:
                await anyio.sleep(1000)
            finally:
                ctx.write_event_to_stream(Note(text="before"))
                ctx.send_event(Next())
                ctx.send_event(StopEvent(result="late"))
                states.append((handler.statistics().state, ctx.is_running))
                ctx.write_event_to_stream(Note(text="after"))
            return StopEvent()

        @step
        async def never(self, ev: Next) -> StopEvent:
            raise AssertionError("started after the decision")

    caplog.set_level(logging.INFO, "anyio_workflows")
    states: list[Any] = []
    handler = Late().run()
    await anyio.sleep(1)
    await handler.cancel_run()
    events, last = await check_ending(handler)
    assert texts(events) == ["before", "after"]
    assert last == WorkflowCancelledEvent()
    assert states == [("ending", False)]
    assert "Next was sent too late" in caplog.text


async def test_t7_event_returned_after_the_decision_starts_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Late(Workflow):
        @step
        async def work(self, ev: StartEvent) -> Next | InputRequiredEvent:
            try:
                await anyio.sleep(1000)
            except anyio.get_cancelled_exc_class():
                pass
            return Next() if ev.what == "next" else InputRequiredEvent()

        @step
        async def never(self, ev: Next | HumanResponseEvent) -> StopEvent:
            raise AssertionError("started after the decision")

    caplog.set_level(logging.INFO, "anyio_workflows")
    returned = {"next": "Next", "input": "InputRequiredEvent"}
    for what, name in returned.items():
        handler = Late().run(what=what)
        await anyio.sleep(1)
        await handler.cancel_run()
        assert await read(handler) == [WorkflowCancelledEvent()]
        assert f"too late, step work returned {name}" in caplog.text


async def test_t7_queued_work_never_starts_after_the_end() -> None:
    class Queue(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Next | None:
            for n in range(5):
                ctx.send_event(Next(n=n))

        @step(num_workers=1)
        async def work(self, ev: Next) -> StopEvent | None:
            started.append(ev.n)
            await checkpoint()
            return StopEvent() if ev.n == 1 else None

    started: list[int] = []
    await check_ending(Queue().run())
    assert started == [0, 1]


# --- T8: stray cancellations and other BaseExceptions ------------------------------------------


async def caught_cancellation() -> BaseException:
    """Return a genuine cancellation exception that has already been dealt with."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class() as exc:
            stray = exc
    return stray


class Stray(Workflow):
    """A step that raises a cancellation which nobody asked for, among two that are fine."""

    @step
    async def fork(self, ctx: Context, ev: StartEvent) -> Left | Right | None:
        ctx.send_event(Right(how=""))
        ctx.send_event(Left(how=ev.how))

    @step
    async def stray(self, ev: Left) -> StopEvent:
        await anyio.sleep(1)
        if ev.how == "group":
            raise BaseExceptionGroup("stray", [await caught_cancellation()])
        raise await caught_cancellation()

    @step
    async def bystander(self, ctx: Context, ev: Right) -> None:
        try:
            await anyio.sleep(1000)
        finally:
            ctx.write_event_to_stream(Note(text="tidy"))


@pytest.mark.parametrize("how", ["plain", "group"])
async def test_t8_stray_cancellation_fails_its_step(how: str) -> None:
    with anyio.fail_after(10):
        events, last = await check_ending(Stray(timeout=None).run(how=how))
    assert isinstance(last, WorkflowFailedEvent)
    assert last.step_name == "stray"
    assert type(last.exception) is WorkflowRuntimeError
    cause = last.exception.__cause__
    wanted = BaseExceptionGroup if how == "group" else anyio.get_cancelled_exc_class()
    assert isinstance(cause, wanted)
    assert texts(events) == ["tidy"]


@on_asyncio
@pytest.mark.parametrize("how", ["raise", "cancel", "scope", "twice"])
async def test_t8_native_cancellation_of_its_own_fails_the_step(how: str) -> None:
    class Native(Workflow):
        @step
        async def stray(self, ev: StartEvent) -> StopEvent:
            task = asyncio.current_task()
            assert task is not None
            if how == "raise":
                raise asyncio.CancelledError
            task.cancel()
            if how == "twice":
                task.cancel()
            with anyio.move_on_after(5 if how == "scope" else None):
                await anyio.sleep(1)
            return StopEvent()

    with anyio.fail_after(10):
        _, last = await check_ending(Native(timeout=None).run())
    assert isinstance(last, WorkflowFailedEvent)
    assert isinstance(last.exception, WorkflowRuntimeError)
    assert isinstance(last.exception.__cause__, asyncio.CancelledError)


@on_asyncio
@pytest.mark.parametrize("times", [1, 2])
async def test_t8_native_cancellation_that_is_not_delivered_hits_no_other_step(times: int) -> None:
    class Native(Workflow):
        @step
        async def stray(self, ev: StartEvent) -> Next:
            task = asyncio.current_task()
            assert task is not None
            for _ in range(times):
                task.cancel()
            return Next()

        @step
        async def innocent(self, ev: Next) -> StopEvent:
            task = asyncio.current_task()
            assert task is not None
            await anyio.sleep(1)
            with anyio.move_on_after(1) as scope:
                await anyio.sleep(10)
            return StopEvent(result=(task.cancelling(), scope.cancelled_caught))

    assert await Native().run() == (0, True)


@on_asyncio
async def test_t8_native_cancellation_that_a_step_swallows_hits_no_other_step() -> None:
    class Native(Workflow):
        @step
        async def stray(self, ev: StartEvent) -> Next:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await anyio.sleep(1)
            return Next()

        @step
        async def innocent(self, ev: Next) -> StopEvent:
            await anyio.sleep(1)
            return StopEvent(result="fine")

    assert await Native().run() == "fine"


@on_asyncio
async def test_t8_stop_event_returned_with_a_native_cancellation_pending_counts() -> None:
    class Native(Workflow):
        @step
        async def stray(self, ev: StartEvent) -> StopEvent:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return StopEvent(result="fine")

    assert await Native().run() == "fine"


@on_asyncio
async def test_t8_awaiting_a_cancelled_task_fails_the_step() -> None:
    class Await(Workflow):
        @step
        async def stray(self, ev: StartEvent) -> StopEvent:
            task = asyncio.create_task(asyncio.sleep(1000))
            asyncio.get_running_loop().call_later(1, task.cancel)
            await task
            return StopEvent()

    with anyio.fail_after(10):
        _, last = await check_ending(Await(timeout=None).run())
    assert isinstance(last, WorkflowFailedEvent)
    assert isinstance(last.exception.__cause__, asyncio.CancelledError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), BaseException("odd")])
async def test_t8_base_exceptions_fail_the_run_at_once(error: BaseException) -> None:
    with anyio.fail_after(10):
        handler = Raises.start(error)
        with pytest.raises(type(error)) as caught:
            await handler
    assert caught.value is error
    [event] = await read(handler)
    assert isinstance(event, WorkflowFailedEvent)


async def test_t8_own_deadlines_are_not_the_runs() -> None:
    class Own(Workflow):
        @step
        async def patient(self, ev: StartEvent) -> Next:
            with anyio.move_on_after(1) as scope:
                await anyio.sleep(1000)
            assert scope.cancelled_caught
            try:
                with anyio.fail_after(1):
                    await anyio.sleep(1000)
            except TimeoutError:
                return Next(n=int(anyio.current_time()))
            raise AssertionError

        @step
        async def impatient(self, ev: Next) -> StopEvent:
            with anyio.fail_after(1):
                await anyio.sleep(1000)
            return StopEvent()

    handler = Own(timeout=10).run()
    with pytest.raises(TimeoutError):
        await handler
    event = handler.get_stop_event()
    assert isinstance(event, WorkflowFailedEvent)
    assert event.step_name == "impatient"


async def test_t8_own_deadline_at_the_moment_of_the_runs() -> None:
    class Own(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            with anyio.fail_after(10):
                await anyio.sleep(1000)
            return StopEvent()

    for _ in range(5):
        _, last = await check_ending(Own(timeout=10).run())
        assert last == WorkflowTimedOutEvent(timeout=10, active_steps=["work"])


async def test_t8_mixed_group_in_cleanup_changes_nothing() -> None:
    class Group(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            async with anyio.create_task_group() as group:
                group.start_soon(self.fail_in_cleanup)
                await anyio.sleep(1000)
            return StopEvent()

        async def fail_in_cleanup(self) -> None:
            try:
                await anyio.sleep(1000)
            finally:
                raise ProviderError

    for _ in range(5):
        _, last = await check_ending(Group(timeout=10).run())
        assert isinstance(last, WorkflowTimedOutEvent)


class Broken(Workflow):
    """A step that leaves a cancel scope or a task group open; another one follows."""

    left_open: list[Any]

    @step
    async def breaks(self, ev: StartEvent) -> Next | InputRequiredEvent:
        self.left_open = []
        await anyio.sleep(1)
        if ev.what == "group":
            group = anyio.create_task_group()
            await group.__aenter__()
            self.left_open.append(group)
        elif ev.what == "generator":
            self.left_open.append(self.numbers())
            async for _ in self.left_open[0]:
                break
        elif ev.what == "dropped":
            async for _ in self.numbers():
                break
        else:
            shield = ev.what == "shield"
            deadline = anyio.current_time() + (3 if ev.what == "deadline" else 1e6)
            self.left_open.append(anyio.CancelScope(shield=shield, deadline=deadline).__enter__())
        return InputRequiredEvent() if ev.then == "person" else Next()

    async def numbers(self) -> Any:
        with anyio.fail_after(3):
            for n in range(10):
                yield n

    @step
    async def innocent(self, ev: Next | HumanResponseEvent) -> StopEvent:
        await anyio.sleep(10)
        return StopEvent(result="fine")


BREAKS = ["scope", "shield", "deadline", "group", "generator"]


@pytest.mark.parametrize("then", ["step", "person"])
@pytest.mark.parametrize("what", BREAKS)
async def test_t6_broken_cancel_scope_does_not_hang_the_run(what: str, then: str) -> None:
    with anyio.fail_after(100):
        async with Broken(timeout=30).run(what=what, then=then) as handler:
            await anyio.sleep(2)
            try:
                await handler.send_event(HumanResponseEvent())
            except WorkflowRuntimeError:
                assert handler.is_done()
            _, last = await check_ending(handler)
            # Either the step that broke its scope is blamed, or it did no harm.
            assert last.result == "fine" or (
                isinstance(last, WorkflowFailedEvent) and last.step_name == "breaks"
            )


@pytest.mark.parametrize("what", ["shield", "generator"])
async def test_t6_broken_cancel_scope_leaves_the_next_step_cancellable(what: str) -> None:
    start = anyio.current_time()
    with anyio.fail_after(100):
        await check_ending(Broken(timeout=3, cleanup_timeout=20).run(what=what, then="step"))
    assert anyio.current_time() - start <= 3


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's, about the step
@pytest.mark.filterwarnings("ignore:.*async_generator:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", [*BREAKS, "dropped"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_t6_broken_cancel_scope_does_not_break_the_loop(backend: str, what: str) -> None:
    async def main() -> int:
        handler = Broken(timeout=30).run(what=what, then="step")
        await anyio.sleep(1)
        other = await Single().run(how="return")
        last = (await read(handler))[-1]
        assert isinstance(last, StopEvent)
        assert last.result == "fine" or isinstance(last, WorkflowFailedEvent)
        return other

    assert run_virtually(backend, main) == 7


class Unspeakable(Event):
    def __repr__(self) -> str:
        raise ProviderError("no words")


class Untouchable:
    @property
    def __class__(self) -> Any:
        raise ProviderError("no class")


@pytest.mark.parametrize("odd", [Unspeakable, Untouchable])
async def test_r4_result_that_cannot_be_shown_fails_the_step(odd: Any) -> None:
    class Odd(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            return odd()

    _, last = await check_ending(Odd().run())
    assert isinstance(last, WorkflowFailedEvent)
    assert last.step_name == "work"


# --- R1-R4: routing ---------------------------------------------------------------------------


class Base(Event):
    pass


class Derived(Base):
    pass


class Routes(Workflow):
    @step
    async def start(self, ctx: Context, ev: StartEvent) -> Base | Derived | StopEvent:
        ctx.send_event(ev.event)
        await anyio.sleep(1)
        return StopEvent(result=sorted(self.taken))

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []

    @step
    async def exact(self, ev: Base) -> None:
        self.taken.append("exact")

    @step
    async def exact_too(self, ev: Base) -> None:
        self.taken.append("exact_too")

    @step(accept_event_subclasses=True)
    async def family(self, ev: Base) -> None:
        self.taken.append("family")

    @step
    async def special(self, ev: Derived) -> None:
        self.taken.append("special")


async def test_r1_event_goes_to_every_step_that_accepts_exactly_its_type() -> None:
    assert await Routes().run(event=Base()) == ["exact", "exact_too", "family"]


async def test_r1_subclass_goes_to_its_own_takers_and_where_subclasses_are_accepted() -> None:
    assert await Routes().run(event=Derived()) == ["family", "special"]


async def test_r1_union_of_types_is_one_step() -> None:
    class Either(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Left | Right | None:
            ctx.send_event(Left(how="left"))
            ctx.send_event(Right(how="right"))

        @step
        async def take(self, ev: Left | Right) -> StopEvent | None:
            taken.append(ev.how)
            return StopEvent() if len(taken) == 2 else None

    taken: list[str] = []
    await Either().run()
    assert taken == ["left", "right"]


@pytest.mark.parametrize("workers", [1, 2, 4, 50])
async def test_r2_at_most_num_workers_in_progress_first_in_first_out(workers: int) -> None:
    class Pool(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
            for n in range(20):
                ctx.send_event(Next(n=n))
            await anyio.sleep(100)
            return StopEvent()

        @step(num_workers=workers)
        async def work(self, ev: Next) -> None:
            nonlocal running, most
            order.append(ev.n)
            running += 1
            most = max(most, running)
            await anyio.sleep(1 + ev.n % 3)
            running -= 1

    order: list[int] = []
    running = most = 0
    await Pool(timeout=None).run()
    assert order == list(range(20))
    assert most == min(workers, 20)


async def test_r2_default_is_four_workers_and_all_are_used() -> None:
    class Pool(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
            for n in range(8):
                ctx.send_event(Next(n=n))
            await anyio.sleep(19.5)
            return StopEvent(result=ended)

        @step
        async def work(self, ev: Next) -> None:
            nonlocal ended
            await anyio.sleep(10)
            ended += 1

    ended = 0
    assert await Pool().run() == 4


async def test_r2_busy_step_does_not_hold_up_another() -> None:
    class Pool(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Left | Right | None:
            for _ in range(10):
                ctx.send_event(Left(how="slow"))
            ctx.send_event(Right(how="quick"))

        @step(num_workers=1)
        async def slow(self, ev: Left) -> None:
            await anyio.sleep(100)

        @step
        async def quick(self, ev: Right) -> StopEvent:
            return StopEvent(result="quick")

    assert await Pool(timeout=10).run() == "quick"


async def test_r2_place_of_an_ended_execution_is_free_at_once() -> None:
    class Chain(Workflow):
        @step(num_workers=1)
        async def loop(self, ev: StartEvent | Next) -> Next | StopEvent:
            n = ev.n if isinstance(ev, Next) else 0
            return StopEvent(result=n) if n == 500 else Next(n=n + 1)

    assert await Chain().run() == 500


async def test_r2_workers_started_by_events_from_outside() -> None:
    class Inbox(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent()

        @step(num_workers=2)
        async def take(self, ev: HumanResponseEvent) -> StopEvent | None:
            order.append(ev.n)
            await anyio.sleep(1)
            return StopEvent() if ev.n == 5 else None

    order: list[int] = []
    handler = Inbox().run()
    for n in range(6):
        await handler.send_event(HumanResponseEvent(n=n))
        if n == 2:
            await anyio.sleep(10)  # everything has been done: the run sleeps
    await check_ending(handler)
    assert order == [0, 1, 2, 3, 4, 5]


class Sends(Workflow):
    @step
    async def start(self, ctx: Context, ev: StartEvent) -> Next | StopEvent | None:
        ctx.send_event(ev.event, step=ev.get("step"))
        assert ctx.is_running is not isinstance(ev.event, StopEvent)
        return None

    @step
    async def taker(self, ev: Next) -> StopEvent:
        return StopEvent(result="taker")

    @step
    async def other_taker(self, ev: Next) -> None:
        await anyio.sleep(100)


async def test_r3_event_aimed_at_a_step() -> None:
    handler = Sends().run(event=Next(), step="taker")
    assert await handler == "taker"
    assert handler.statistics().steps["other_taker"].done == 0


@pytest.mark.parametrize(
    ("event", "target", "message"),
    [
        (Next(), "takre", r"'takre': no such step, did you mean 'taker'"),
        (Left(how=""), "taker", r"Left.*'taker'.*accepts Next only"),
        ("text", None, r"only events.*'text' \(str\)"),
        (Next, None, "only events"),
    ],
)
async def test_r3_wrong_sends_raise(event: Any, target: str | None, message: str) -> None:
    with pytest.raises(WorkflowRuntimeError, match=message):
        await Sends().run(event=event, step=target)


async def test_r3_unhandled_event_is_logged_and_gone(caplog: pytest.LogCaptureFixture) -> None:
    handler = Single(timeout=1).run(how="wait")
    await handler.send_event(Left(how=""))
    assert "no step accepts Left" in caplog.text
    events, last = await check_ending(handler)
    assert len(events) == 1
    assert isinstance(last, WorkflowTimedOutEvent)


async def test_r3_unhandled_event_is_told_to_those_who_ask() -> None:
    handler = Single(timeout=1).run(how="wait")
    stream = handler.stream_events(expose_internal=True)
    await handler.send_event(Left(how=""))
    events = [event async for event in stream]
    assert events[1] == UnhandledEvent(
        event_type="Left", qualified_name=f"{__name__}.Left", idle=False
    )
    assert [type(event) for event in [events[0], *events[2:]]] == [
        StepStateChanged,
        StepStateChanged,
        StepStateChanged,
        WorkflowTimedOutEvent,
    ]


async def test_r3_unhandled_event_of_an_idle_run() -> None:
    class Ask(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent()

        @step
        async def take(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent()

    handler = Ask(timeout=10).run()
    stream = handler.stream_events(expose_internal=True)
    await anyio.sleep(1)
    await handler.send_event(Left(how=""))
    unhandled = [event async for event in stream if isinstance(event, UnhandledEvent)]
    assert [event.idle for event in unhandled] == [True]


async def test_r3_send_takes_effect_at_once() -> None:
    class Prompt(Workflow):
        @step
        async def start(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
            ctx.send_event(Next())
            queued.append(handler.statistics().steps["work"].queued)
            await anyio.sleep(1)
            ctx.send_event(StopEvent(result="sent"))
            queued.append(ctx.is_running)
            return StopEvent(result="returned")

        @step
        async def work(self, ev: Next) -> None:
            pass

    queued: list[Any] = []
    handler = Prompt().run()
    assert await handler == "sent"
    assert queued == [1, False]


@pytest.mark.parametrize("timing", ["at once", "later"])
async def test_r3_stop_event_from_outside_ends_the_run(timing: str) -> None:
    handler = Single().run(how="wait")
    if timing == "later":
        await anyio.sleep(1)
    await handler.send_event(StopEvent(result="outside"))
    assert await handler == "outside"


class Returns(Workflow):
    result: Any

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    @step
    async def work(self, ev: StartEvent) -> Base | StopEvent:
        return self.result

    @step(accept_event_subclasses=True)
    async def take(self, ev: Base) -> StopEvent | None:
        return StopEvent(result=type(ev)) if isinstance(ev, Derived) else None


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("text", r"work returned 'text' \(str\).*Base \| StopEvent"),
        (Next(), r"work returned Next\(n=0\)"),
        (StopEvent, "work returned <class"),
        ([Base()], "work returned "),
        (Event(), "work returned Event"),
    ],
)
async def test_r4_undeclared_result_fails_the_step(result: Any, message: str) -> None:
    handler = Returns(result).run()
    with pytest.raises(WorkflowRuntimeError, match=message):
        await handler
    event = handler.get_stop_event()
    assert isinstance(event, WorkflowFailedEvent)
    assert (event.step_name, event.attempts) == ("work", 1)


async def test_r4_subclass_of_a_declared_type_is_fine() -> None:
    assert await Returns(Derived()).run() is Derived


async def test_r4_none_where_declared_starts_nothing() -> None:
    class Quiet(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent | None:
            return None

    _, last = await check_ending(Quiet(timeout=1, stall_check=False).run())
    assert last == WorkflowTimedOutEvent(timeout=1, active_steps=[])


# --- R6, R9: fairness and time ----------------------------------------------------------------


class Spin(Workflow):
    """A step that calls itself for ever and never awaits."""

    turns = 0

    @step
    async def spin(self, ctx: Context, ev: StartEvent | Next) -> Next | StopEvent:
        self.turns += 1
        if self.turns > 1_000_000:
            raise AssertionError("nobody else came to turn")
        if self.turns % 100 == 0:
            ctx.write_event_to_stream(Note(text=self.turns))
        hog(0.0001)
        return Next()


async def test_r6_step_that_never_awaits_lets_others_run() -> None:
    workflow = Spin()
    handler = workflow.run()
    for _ in range(20):
        await checkpoint()
    assert 0 < workflow.turns < 20_000
    await handler.cancel_run()
    assert workflow.turns < 20_000


async def test_r6_step_that_never_awaits_times_out() -> None:
    workflow = Spin(timeout=1)
    _, last = await check_ending(workflow.run())
    assert last == WorkflowTimedOutEvent(timeout=1, active_steps=["spin"])
    assert workflow.turns < 10_100


async def test_r6_step_that_never_awaits_lets_the_reader_read() -> None:
    workflow = Spin()
    handler = workflow.run()
    async for event in handler.stream_events():
        assert isinstance(event, Note)
        if event.text >= 1000:
            break
    assert workflow.turns < 20_000
    await handler.cancel_run()


async def test_r6_runs_that_never_await_go_on_side_by_side() -> None:
    spins = [Spin(), Spin()]
    handlers = [spin.run() for spin in spins]
    assert await Single().run(how="return") == 7
    while min(spin.turns for spin in spins) < 300:
        await checkpoint()
    assert max(spin.turns for spin in spins) < 20_000
    for handler in handlers:
        await handler.cancel_run()


async def test_r6_stop_between_steps_that_never_await() -> None:
    spin = Spin()
    handler = spin.run()
    await handler.send_event(StopEvent(result="enough"))
    assert await handler == "enough"


async def test_r9_wall_clock_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = itertools.count(2e9, -1e6)
    monkeypatch.setattr(time, "time", lambda: next(wall))
    start = anyio.current_time()
    _, last = await check_ending(Single(timeout=3600).run(how="wait"))
    assert isinstance(last, WorkflowTimedOutEvent)
    assert anyio.current_time() - start == 3600


async def test_r9_virtual_hours_take_no_time() -> None:
    began = time.perf_counter()
    await check_ending(Single(timeout=36_000).run(how="wait"))
    assert time.perf_counter() - began < 36_000 / 10
