"""How runs end, and what is raised (T1-T5)."""

from __future__ import annotations

import gc
import itertools
import logging
import traceback
from contextlib import suppress
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

from .running import (
    caught_cancellation,
    check_ending,
    hog,
    on_each_backend,
    read,
    run_virtually,
    texts,
)
from .samples import AsksByReturning, Ends, Next, Note, ProviderError, Total

pytestmark = pytest.mark.anyio


class Left(Event):
    how: str


class Right(Event):
    how: str


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


@pytest.mark.parametrize("how", ["return", "subclass", "send", "send subclass", "raise", "wait"])
async def test_t1_one_stop_event_and_it_is_the_last(how: str) -> None:
    handler = Ends(timeout=10).run(how=how)
    events, _ = await check_ending(handler)
    assert len(events) == 1


@pytest.mark.parametrize("how", ["return", "send"])
async def test_t2_stop_event_gives_its_result(how: str) -> None:
    handler = Ends().run(how=how)
    assert await handler == 7
    assert await handler.stop_event_result() == StopEvent(result=7)
    assert await read(handler) == [StopEvent(result=7)]


@pytest.mark.parametrize("how", ["subclass", "send subclass"])
async def test_t2_subclass_of_stop_event_comes_as_it_is(how: str) -> None:
    handler = Ends().run(how=how)
    event = await handler
    assert event == Total(total=3)
    assert await handler.stop_event_result() is event
    assert handler.get_stop_event() is event


async def test_t2_deadline() -> None:
    start = anyio.current_time()
    handler = Ends(timeout=10).run(how="wait")
    with pytest.raises(
        WorkflowTimeoutError, match=r"10 s; at that time:\n  step only: running for 10 s"
    ) as caught:
        await handler
    assert (caught.value.timeout, caught.value.active_steps) == (10, ["only"])
    assert anyio.current_time() - start == 10
    assert await read(handler) == [WorkflowTimedOutEvent(timeout=10, active_steps=["only"])]


async def test_t2_cancel() -> None:
    handler = Ends().run(how="wait")
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
    _, last = await check_ending(AsksByReturning(timeout=10).run())
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
    handler = Ends(timeout=10).run(how=how)
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
@on_each_backend
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
    handler = Ends(timeout=10).run(how="wait" if how == "cancel" else how)
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
    handler = Ends(timeout=10).run(how="raise" if how == "raise" else "wait")
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
        await Ends().run(how="raise")
    assert "only" in {frame.name for frame in traceback.extract_tb(caught.value.__traceback__)}


async def test_t5_concurrent_awaiters_get_the_same_object() -> None:
    handler = Ends().run(how="raise")
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
