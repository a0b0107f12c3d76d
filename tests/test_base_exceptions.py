"""Stray cancellations, and what else a step raises that is no `Exception` (T8)."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import anyio
import pytest

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import WorkflowRuntimeError

from .running import caught_cancellation, check_ending, on_asyncio, read, texts
from .samples import Next, Note, OneStep, Other, ProviderError

pytestmark = pytest.mark.anyio


class Left(Event):
    how: str


class Stray(Workflow):
    """A step that raises a cancellation which nobody asked for, among two that are fine."""

    @step
    async def fork(self, ctx: Context, ev: StartEvent) -> Left | Other | None:
        ctx.send_event(Other())
        ctx.send_event(Left(how=ev.how))

    @step
    async def stray(self, ev: Left) -> StopEvent:
        await anyio.sleep(1)
        if ev.how == "group":
            raise BaseExceptionGroup("stray", [await caught_cancellation()])
        raise await caught_cancellation()

    @step
    async def bystander(self, ctx: Context, ev: Other) -> None:
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
    async def act(ctx: Context) -> None:
        raise error

    with anyio.fail_after(10):
        handler = OneStep(act).run()
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
