"""Awaiting, cancelling and owning a run (O rules, T10)."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
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
    step,
)
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)

from .conftest import BACKENDS
from .running import PATIENCE, Note, check_ending, read, run_script, run_virtually, texts

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
on_each_backend = pytest.mark.parametrize("backend", BACKENDS)


class Next(Event):
    n: int = 0


class ProviderError(Exception):
    pass


class Job(Workflow):
    """Works for ten seconds, then returns or raises; takes two seconds to clean up."""

    handler: WorkflowHandler[Any]
    begun = cleaned = False

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.begun = True
        try:
            await anyio.sleep(10)
            if ev.get("how") == "raise":
                raise ProviderError("down")
            return StopEvent(result="done")
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
                ctx.write_event_to_stream(Note(text="closed"))
                self.cleaned = True
            raise


class Asks(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix="name?")

    @step
    async def take(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


class Acts(Workflow):
    """Calls a function inside its step."""

    def __init__(self, act: Any, **options: Any) -> None:
        super().__init__(**options)
        self.act = act

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.act(ctx))


# --- T10: cancel_run --------------------------------------------------------------------------


async def test_t10_returns_when_the_run_has_ended() -> None:
    job = Job()
    handler = job.run()
    await anyio.sleep(1)
    start = anyio.current_time()
    await handler.cancel_run()
    assert anyio.current_time() - start == 2
    assert job.cleaned
    assert handler.is_done()
    assert await read(handler) == [Note(text="closed"), WorkflowCancelledEvent()]


async def test_t10_is_idempotent() -> None:
    handler = Job().run()
    await anyio.sleep(1)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(handler.cancel_run)
    await handler.cancel_run()
    _, last = await check_ending(handler)
    assert last == WorkflowCancelledEvent()


@pytest.mark.parametrize("turns", range(8))
async def test_t10_right_after_the_start(turns: int) -> None:
    job = Job()
    handler = job.run()
    for _ in range(turns):
        await checkpoint()
    await handler.cancel_run()
    assert handler.is_done()
    _, last = await check_ending(handler)
    assert last == WorkflowCancelledEvent()
    assert job.cleaned == job.begun


@pytest.mark.parametrize("timeout", [0, 1])
async def test_t10_timeout_limits_the_waiting_alone(timeout: float) -> None:
    job = Job()
    handler = job.run()
    await anyio.sleep(1)
    start = anyio.current_time()
    await handler.cancel_run(timeout=timeout)
    assert anyio.current_time() - start == timeout
    assert not handler.is_done()
    with pytest.raises(WorkflowCancelledByUser):
        await handler
    assert job.cleaned
    assert anyio.current_time() - start == 2


async def test_t10_ample_timeout_returns_at_the_end() -> None:
    handler = Job().run()
    await anyio.sleep(1)
    start = anyio.current_time()
    await handler.cancel_run(timeout=100)
    assert anyio.current_time() - start == 2


@pytest.mark.parametrize("how", ["return", "raise"])
async def test_t10_changes_nothing_after_the_end(how: str) -> None:
    handler = Job().run(how=how)
    _, last = await check_ending(handler)
    await handler.cancel_run()
    await handler.cancel_run(timeout=0)
    assert handler.get_stop_event() is last
    assert type(last) is (StopEvent if how == "return" else WorkflowFailedEvent)


async def test_t10_changes_nothing_after_the_decision() -> None:
    class Slow(Job):
        @step
        async def stop(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent(result="decided")

    handler = Slow().run()
    await anyio.sleep(1)
    await handler.send_event(HumanResponseEvent())
    await anyio.sleep(1)
    assert handler.statistics().state == "ending"
    await handler.cancel_run()
    assert await handler == "decided"


async def test_t10_while_nothing_is_in_progress() -> None:
    handler = Asks().run()
    await anyio.sleep(1)
    await handler.cancel_run()
    _, last = await check_ending(handler)
    assert last == WorkflowCancelledEvent()


async def test_t10_wakes_everybody_who_waits() -> None:
    async def wait() -> None:
        with pytest.raises(WorkflowCancelledByUser):
            await handler
        woken.append("waiter")

    async def follow() -> None:
        assert await read(handler) == [Note(text="closed"), WorkflowCancelledEvent()]
        woken.append("reader")

    woken: list[str] = []
    handler = Job().run()
    async with anyio.create_task_group() as group:
        for act in (wait, wait, follow):
            group.start_soon(act)
        await anyio.sleep(1)
        await handler.cancel_run()
    assert sorted(woken) == ["reader", "waiter", "waiter"]


async def test_t10_in_its_own_step_is_where_the_step_is_cancelled() -> None:
    async def act(ctx: Context) -> None:
        try:
            await handler.cancel_run()
        except anyio.get_cancelled_exc_class():
            ctx.write_event_to_stream(Note(text="cancelled"))
            raise
        raise AssertionError("went on")

    handler = Acts(act).run()
    with anyio.fail_after(100):
        events, last = await check_ending(handler)
    assert texts(events) == ["cancelled"]
    assert last == WorkflowCancelledEvent()


async def test_t10_in_a_task_of_its_own_step() -> None:
    async def act(ctx: Context) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(handler.cancel_run)
            await anyio.sleep(1000)

    handler = Acts(act).run()
    with anyio.fail_after(100):
        _, last = await check_ending(handler)
    assert last == WorkflowCancelledEvent()


async def test_t10_in_its_own_step_with_a_timeout_of_zero() -> None:
    async def act(ctx: Context) -> str:
        await handler.cancel_run(timeout=0)
        return "too late"

    handler = Acts(act).run()
    with anyio.fail_after(100):
        _, last = await check_ending(handler)
    assert last == WorkflowCancelledEvent()


async def test_t10_in_a_step_of_another_run() -> None:
    async def act(ctx: Context) -> bool:
        await handler.cancel_run()
        return handler.is_done()

    handler = Job().run()
    assert await Acts(act).run() is True


async def test_t10_giving_up_cancel_run_does_not_undo_it() -> None:
    job = Job()
    handler = job.run()
    await anyio.sleep(1)
    with anyio.move_on_after(1) as scope:
        await handler.cancel_run()
    assert scope.cancelled_caught
    _, last = await check_ending(handler)
    assert last == WorkflowCancelledEvent()
    assert job.cleaned


@pytest.mark.parametrize("what", ["await", "stop_event_result", "async with"])
async def test_t10_waiting_for_itself_raises(what: str) -> None:
    async def act(ctx: Context) -> Any:
        if what == "await":
            return await handler
        if what == "stop_event_result":
            return await handler.stop_event_result()
        async with handler:
            return None

    handler = Acts(act, timeout=None).run()
    with anyio.fail_after(100), pytest.raises(WorkflowRuntimeError, match="its own run"):
        await handler
    event = handler.get_stop_event()
    assert isinstance(event, WorkflowFailedEvent)
    assert event.step_name == "work"


# --- O1: where runs start and handlers are used -------------------------------------------------


async def test_o1_no_step_begins_inside_run() -> None:
    job = Job()
    handler = job.run()
    assert not job.begun
    assert not handler.is_done()
    await handler.cancel_run()


def test_o1_outside_a_loop_raises() -> None:
    with pytest.raises(WorkflowRuntimeError, match="running event loop"):
        Job().run()
    gc.collect()  # nothing un-awaited or unclosed is left to warn


async def test_o1_from_a_worker_thread_raises() -> None:
    with pytest.raises(WorkflowRuntimeError, match="running event loop"):
        await anyio.to_thread.run_sync(Job().run)


async def test_o1_from_a_worker_thread_through_anyio_works() -> None:
    def start() -> WorkflowHandler[Any]:
        return anyio.from_thread.run_sync(Job().run)

    handler = await anyio.to_thread.run_sync(start)
    assert await handler == "done"


@on_asyncio
async def test_o1_from_a_callback_of_the_loop() -> None:
    handlers: list[WorkflowHandler[Any]] = []
    asyncio.get_running_loop().call_soon(lambda: handlers.append(Job().run()))
    await anyio.sleep(1)
    assert await handlers[0] == "done"


async def test_o1_from_a_task_that_ends_at_once() -> None:
    handlers: list[WorkflowHandler[Any]] = []

    async def start() -> None:
        handlers.append(Job().run())

    async with anyio.create_task_group() as group:
        group.start_soon(start)
    assert await handlers[0] == "done"


@pytest.mark.parametrize("event", [HumanResponseEvent(response="Ann"), StopEvent(result="Ann")])
async def test_o1_send_event_right_after_run(event: Event) -> None:
    handler = Asks().run()
    await handler.send_event(event)
    assert await handler == "Ann"


async def test_o1_event_sent_at_once_comes_after_the_start_event() -> None:
    class Order(Workflow):
        @step(num_workers=1)
        async def take(self, ev: StartEvent | HumanResponseEvent) -> StopEvent | None:
            taken.append(type(ev))
            return StopEvent() if len(taken) == 2 else None

    taken: list[type[Event]] = []
    handler = Order().run()
    await handler.send_event(HumanResponseEvent())
    await handler
    assert taken == [StartEvent, HumanResponseEvent]


async def test_o1_sending_what_is_no_event_raises() -> None:
    handler = Asks().run()
    for wrong in ("text", StopEvent, None):
        with pytest.raises(WorkflowRuntimeError, match="only events"):
            await handler.send_event(wrong)  # type: ignore[arg-type]
    with pytest.raises(WorkflowRuntimeError, match="no such step"):
        await handler.send_event(HumanResponseEvent(), step="nobody")
    with pytest.raises(WorkflowRuntimeError, match="accepts HumanResponseEvent only"):
        await handler.send_event(Next(), step="take")
    await handler.send_event(HumanResponseEvent(response="Ann"), step="take")
    assert await handler == "Ann"


async def _await(handler: WorkflowHandler[Any]) -> object:
    return await handler


async def _enter(handler: WorkflowHandler[Any]) -> object:
    async with handler:
        return None


async def _next(handler: WorkflowHandler[Any]) -> object:
    return await handler.stream_events().__anext__()


async def test_o1_send_event_is_a_checkpoint() -> None:
    handler = Asks().run()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await handler.send_event(HumanResponseEvent(response="never sent"))
    assert scope.cancelled_caught
    await handler.send_event(HumanResponseEvent(response="Ann"))
    assert await handler == "Ann"


FOREIGN_ACTS: dict[str, Any] = {
    "await": _await,
    "stop_event_result": lambda handler: handler.stop_event_result(),
    "send_event": lambda handler: handler.send_event(HumanResponseEvent(response="thief")),
    "cancel_run": lambda handler: handler.cancel_run(),
    "enter": _enter,
    "read": _next,
}


@pytest.mark.parametrize("name", FOREIGN_ACTS)
async def test_o1_handler_raises_in_another_loop(name: str) -> None:
    """With an event in the stream, so that nobody has to wait for it."""

    def in_thread() -> None:
        async def main() -> None:
            with pytest.raises(WorkflowRuntimeError, match="was started"):
                await FOREIGN_ACTS[name](handler)

        asyncio.run(main())

    handler = Asks(timeout=None).run()  # virtual time goes on while the thread runs
    await anyio.sleep(1)
    await anyio.to_thread.run_sync(in_thread)
    await handler.send_event(HumanResponseEvent(response="Ann"))
    assert await read(handler) == [
        InputRequiredEvent(prefix="name?"),
        StopEvent(result="Ann"),
    ]
    assert await handler == "Ann"


@on_each_backend
@pytest.mark.parametrize("elsewhere", BACKENDS)
def test_o1_what_has_ended_is_read_in_another_loop(backend: str, elsewhere: str) -> None:
    async def main() -> WorkflowHandler[Any]:
        handler = Job().run(how="raise")
        with pytest.raises(ProviderError):
            await handler
        return handler

    async def later() -> None:
        with pytest.raises(ProviderError):
            await handler
        with pytest.raises(ProviderError):
            await handler.stop_event_result()
        await handler.cancel_run()
        with pytest.raises(WorkflowRuntimeError, match="has ended"):
            await handler.send_event(HumanResponseEvent())
        assert await read(handler) == [handler.get_stop_event()]

    handler = run_virtually(backend, main)
    assert handler.is_done()
    thread = threading.Thread(target=run_virtually, args=(elsewhere, later))
    thread.start()
    thread.join(PATIENCE)
    with pytest.raises(WorkflowRuntimeError, match="already been consumed"):
        run_virtually(elsewhere, lambda: read(handler))


# --- O2: the run belongs to the loop ------------------------------------------------------------


async def test_o2_leaving_the_callers_scopes_does_not_touch_the_run() -> None:
    with anyio.CancelScope() as scope:
        handler = Job().run()
        scope.cancel()
        await checkpoint()
    with anyio.move_on_after(1):
        await handler
    async with anyio.create_task_group() as group:
        group.cancel_scope.cancel()
    assert await handler == "done"


async def test_o2_callers_deadline_is_not_the_runs() -> None:
    with anyio.move_on_after(5):
        handler = Job().run()
        await anyio.sleep(100)
    assert not handler.is_done()
    assert await handler == "done"


async def test_o2_callers_shield_is_not_the_runs() -> None:
    with anyio.CancelScope(shield=True):  # noqa: ASYNC100
        handler = Job(timeout=1).run()
    with pytest.raises(WorkflowTimeoutError):
        await handler


@on_each_backend
@pytest.mark.parametrize("turns", range(8))
def test_o2_loop_ends_right_after_the_start(
    backend: str, turns: int, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio throws tasks away that are cancelled before their first step."""

    async def main() -> WorkflowHandler[Any]:
        handler = job.run()
        for _ in range(turns):
            await checkpoint()
        return handler

    job = Job()
    handler = run_virtually(backend, main)
    assert handler.is_done()
    assert handler.get_stop_event() == WorkflowCancelledEvent()
    assert job.cleaned == job.begun
    gc.collect()
    assert caplog.text == ""
    assert all(counts.running == 0 for counts in handler.statistics().steps.values())


@on_each_backend
@pytest.mark.parametrize("number", [1, 20])
def test_o2_loop_ends_in_the_middle_of_runs(
    backend: str, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> list[WorkflowHandler[Any]]:
        handlers = [job.run() for job in jobs]
        await anyio.sleep(1)
        return handlers

    jobs = [Job() for _ in range(number)]
    for handler in run_virtually(backend, main):
        assert handler.get_stop_event() == WorkflowCancelledEvent()
        assert handler.is_done()
    assert all(job.cleaned for job in jobs)
    assert caplog.text == ""


@on_each_backend
def test_o2_loop_ends_with_an_exception(backend: str) -> None:
    async def main() -> None:
        handlers.append(job.run())
        await anyio.sleep(1)
        raise ProviderError("of main")

    handlers: list[WorkflowHandler[Any]] = []
    job = Job()
    with pytest.raises(ProviderError, match="of main"):
        run_virtually(backend, main)
    assert handlers[0].get_stop_event() == WorkflowCancelledEvent()
    assert job.cleaned


def test_o2_every_task_is_cancelled_natively_and_the_loop_goes_on() -> None:
    async def main() -> list[Event]:
        handler = job.run()
        await asyncio.sleep(1)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        with anyio.fail_after(10):
            return await read(handler)

    job = Job()
    assert run_virtually("asyncio", main)[-1] == WorkflowCancelledEvent()


def test_o2_runner_ends_between_two_main_functions() -> None:
    async def start() -> WorkflowHandler[Any]:
        handler = job.run()
        await asyncio.sleep(0)
        return handler

    async def go_on() -> None:
        await asyncio.sleep(0.001)
        assert not handler.is_done()

    job = Job(cleanup_timeout=0)
    with asyncio.Runner() as runner:
        handler = runner.run(start())
        runner.run(go_on())
    assert handler.get_stop_event() == WorkflowCancelledEvent()


PROGRAM = """
import sys
import anyio
from anyio_workflows import *

class Tidy(Workflow):
    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            await anyio.sleep(1000)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.001)
            print("tidy", flush=True)
        return StopEvent()

async def main():
    handler = Tidy().run()
    for _ in range({turns}):
        await anyio.lowlevel.checkpoint()
    {then}

anyio.run(main, backend={backend!r})
print("over")
"""


@on_each_backend
@pytest.mark.parametrize(
    ("turns", "then", "said"),
    [
        (0, "pass", None),  # on trio the step has begun, or it has not
        (1, "pass", None),
        (20, "pass", "tidy over"),
        (20, "del handler", "tidy over"),
        (20, "sys.exit(0)", "tidy"),
        (20, "await handler.cancel_run()", "tidy over"),
    ],
)
def test_o2_end_of_the_program_warns_of_nothing(
    backend: str, turns: int, then: str, said: str | None
) -> None:
    done = run_script(PROGRAM.format(turns=turns, then=then, backend=backend))
    assert done.stderr == ""
    assert done.stdout.split() in ([said.split()] if said else [["over"], ["tidy", "over"]])
    assert done.returncode == 0


@on_each_backend
def test_o2_keyboard_interrupt_of_a_step_reaches_the_program(backend: str) -> None:
    async def main() -> None:
        async def act(ctx: Context) -> None:
            raise KeyboardInterrupt

        await Acts(act).run()

    with pytest.raises(KeyboardInterrupt):
        run_virtually(backend, main)


# --- O3: async with ---------------------------------------------------------------------------


async def test_o3_leaving_normally_waits_for_the_run() -> None:
    start = anyio.current_time()
    async with Job().run() as handler:
        assert isinstance(handler, WorkflowHandler)
    assert handler.is_done()
    assert anyio.current_time() - start == 10
    assert await handler == "done"


async def test_o3_leaving_normally_raises_the_failure() -> None:
    with pytest.raises(ProviderError, match="down") as caught:
        async with Job().run(how="raise"):
            pass
    assert type(caught.value) is ProviderError


async def test_o3_failing_run_does_not_cancel_the_block() -> None:
    went_on = False
    with pytest.raises(ProviderError):  # noqa: PT012
        async with Job().run(how="raise"):
            await anyio.sleep(100)
            went_on = True
    assert went_on


async def test_o3_timeout_is_raised() -> None:
    with pytest.raises(WorkflowTimeoutError):
        async with Job(timeout=1).run():
            pass


@pytest.mark.parametrize("how", ["await", "stop_event_result"])
async def test_o3_failure_that_the_block_saw_is_not_raised_again(how: str) -> None:
    async with Job().run(how="raise") as handler:
        with pytest.raises(ProviderError):
            await (handler if how == "await" else handler.stop_event_result())
    assert handler.is_done()


@pytest.mark.parametrize("how", ["get_stop_event", "stream", "repr"])
async def test_o3_looking_at_a_failure_is_not_raising_it(how: str) -> None:
    with pytest.raises(ProviderError):  # noqa: PT012
        async with Job().run(how="raise") as handler:
            await anyio.sleep(20)
            if how == "get_stop_event":
                assert handler.get_stop_event() is not None
            if how == "stream":
                assert len(await read(handler)) == 1
            if how == "repr":
                assert "ended" in repr(handler)


async def test_o3_cancellation_that_the_block_asked_for_is_not_raised() -> None:
    async with Job().run() as handler:
        await anyio.sleep(1)
        await handler.cancel_run()
    async with Job().run() as handler:
        await anyio.sleep(1)
        await handler.cancel_run(timeout=0)
    assert handler.get_stop_event() == WorkflowCancelledEvent()


async def test_o3_failure_before_the_blocks_cancel_run_is_raised() -> None:
    with pytest.raises(ProviderError):  # noqa: PT012
        async with Job().run(how="raise") as handler:
            await anyio.sleep(20)
            await handler.cancel_run()


async def test_o3_leaving_by_exception_cancels_the_run_and_waits() -> None:
    job = Job()
    start = anyio.current_time()
    with pytest.raises(ValueError, match="of the block") as caught:  # noqa: PT012
        async with job.run() as handler:
            await anyio.sleep(1)
            raise ValueError("of the block")
    assert type(caught.value) is ValueError
    assert job.cleaned
    assert anyio.current_time() - start == 3
    assert handler.get_stop_event() == WorkflowCancelledEvent()


async def test_o3_leaving_at_once_by_exception() -> None:
    job = Job()
    with pytest.raises(ValueError, match="at once"):
        async with job.run() as handler:
            raise ValueError("at once")
    assert handler.get_stop_event() == WorkflowCancelledEvent()
    assert not job.begun


async def test_o3_leaving_by_exception_after_the_run_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ValueError, match="of the block"):  # noqa: PT012
        async with Job().run(how="raise") as handler:
            await anyio.sleep(20)
            raise ValueError("of the block")
    assert isinstance(handler.get_stop_event(), WorkflowFailedEvent)


@pytest.mark.parametrize("when", [1, 5])
@pytest.mark.parametrize("where", ["in the block", "while leaving"])
async def test_o3_cancelling_the_block_cancels_the_run_and_waits(where: str, when: int) -> None:
    job = Job()
    start = anyio.current_time()
    with anyio.move_on_after(when) as scope:
        async with job.run() as handler:
            if where == "in the block":
                await anyio.sleep(100)
    assert scope.cancelled_caught
    assert job.cleaned
    assert anyio.current_time() - start == when + 2
    assert handler.get_stop_event() == WorkflowCancelledEvent()


@on_asyncio
@pytest.mark.parametrize("where", ["in the block", "while leaving"])
async def test_o3_native_cancellation_of_the_block(where: str) -> None:
    job = Job()

    async def own() -> None:
        async with job.run():
            if where == "in the block":
                await asyncio.sleep(100)

    task = asyncio.create_task(own())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert job.cleaned


async def test_o3_leaving_by_return_or_break() -> None:
    async def own() -> Any:
        async with Job().run() as handler:
            return handler

    handler = await own()
    assert handler.is_done()
    assert await handler == "done"


async def test_o3_entering_after_the_end() -> None:
    handler = Job().run()
    await handler
    async with handler:
        pass
    failed = Job().run(how="raise")
    await anyio.sleep(20)
    with pytest.raises(ProviderError):
        async with failed:
            pass


@on_each_backend
def test_o3_loop_is_left_while_the_block_cleans_up(backend: str) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(own)
            await anyio.sleep(1)
            raise ProviderError("of main")

    async def own() -> None:
        async with job.run():
            await anyio.sleep(100)

    job = Job()
    with pytest.raises(ExceptionGroup):
        run_virtually(backend, main)
    assert job.cleaned


# --- O4: giving up ----------------------------------------------------------------------------


async def test_o4_giving_up_waiting_touches_nobody_else() -> None:
    results: list[Any] = []

    async def wait() -> None:
        results.append(await handler)

    handler = Job().run()
    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        group.start_soon(wait)
        await anyio.sleep(1)
        for _ in range(3):
            with anyio.move_on_after(1) as scope:
                await handler
            assert scope.cancelled_caught
        with pytest.raises(TimeoutError), anyio.fail_after(1):
            await handler.stop_event_result()
    assert results == ["done", "done"]
    assert await handler == "done"


@on_asyncio
async def test_o4_asyncio_ways_of_giving_up() -> None:
    handler = Job().run()
    others = [asyncio.create_task(_await(handler)) for _ in range(3)]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(handler, 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await handler
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(handler), 1)
    others[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await others[0]
    assert await asyncio.gather(*others[1:], handler) == ["done"] * 3


async def test_o4_giving_up_at_the_moment_of_the_end() -> None:
    handler = Job().run()
    with anyio.move_on_after(10):
        await handler
    assert await handler == "done"


@on_asyncio
async def test_o4_native_cancellation_at_the_moment_of_the_end() -> None:
    handler = Job().run()
    task = asyncio.create_task(_await(handler))
    asyncio.get_running_loop().call_later(10, task.cancel)
    with suppress(asyncio.CancelledError):
        await task
    assert await handler == "done"


async def test_o4_await_is_repeatable() -> None:
    handler = Job().run()
    assert [await handler, await handler] == ["done", "done"]


# --- O6: nothing is pinned, nothing is silent ---------------------------------------------------


def _collected(*refs: weakref.ref[Any]) -> bool:
    for _ in range(3):
        gc.collect()
    return not any(ref() for ref in refs)


@pytest.mark.parametrize("how", ["return", "raise", "cancel", "timeout"])
@pytest.mark.parametrize("read_it", [True, False])
async def test_o6_everything_is_collectable_after_the_end(how: str, read_it: bool) -> None:
    async def use() -> list[weakref.ref[Any]]:
        workflow = Job(timeout=5 if how == "timeout" else 45)
        handler = workflow.run(how=how)
        await anyio.sleep(1)
        if how == "cancel":
            await handler.cancel_run()
        with suppress(ProviderError, WorkflowCancelledByUser, WorkflowTimeoutError):
            await handler
        if read_it:
            await read(handler)
        referents = [workflow, handler, handler.ctx, handler._run, handler._run.ledger]
        return [weakref.ref(referent) for referent in referents]

    refs = await use()
    await anyio.sleep(1)
    assert _collected(*refs)


@pytest.mark.parametrize("how", ["return", "cancel", "timeout"])
async def test_o6_a_run_that_has_ended_is_freed_with_its_handler(how: str) -> None:
    """At once, with all events in it; it does not wait for the garbage collector."""
    handler = Job(timeout=5 if how == "timeout" else 45).run(how=how)
    await anyio.sleep(1)
    if how == "cancel":
        await handler.cancel_run()
    await read(handler)
    await anyio.sleep(1)
    refs = [weakref.ref(handler._run), weakref.ref(handler._run.ledger)]
    assert handler.get_stop_event() is not None
    gc.collect()
    gc.disable()
    try:
        del handler
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


async def test_o6_running_run_survives_its_handler() -> None:
    class Survivor(Workflow):
        @step
        async def work(self, ev: StartEvent) -> Next:
            await anyio.sleep(10)
            return Next()

        @step
        async def more(self, ev: Next) -> StopEvent:
            ended.append(True)
            return StopEvent()

    ended: list[bool] = []
    Survivor().run()
    for _ in range(4):
        gc.collect()
        await anyio.sleep(5)
    assert ended == [True]


async def test_o6_idle_run_survives_its_handler() -> None:
    """Nothing else refers to it: no deadline, no step in progress."""
    handler = Asks(timeout=None).run()
    await anyio.sleep(1)
    run = weakref.ref(handler._run)
    del handler
    assert not _collected(run)


async def test_o6_stream_keeps_the_handler_alive() -> None:
    events = [event async for event in Job().run().stream_events()]
    assert events == [StopEvent(result="done")]


def _complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    gc.collect()
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_o6_failure_that_nobody_saw_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    Job().run(how="raise")
    await anyio.sleep(20)
    [complaint] = _complaints(caplog)
    assert "Job" in complaint
    assert "ProviderError: down" in caplog.text


async def test_o6_failure_is_logged_when_the_handler_goes(caplog: pytest.LogCaptureFixture) -> None:
    handler = Job().run(how="raise")
    await anyio.sleep(20)
    assert _complaints(caplog) == []
    del handler
    assert len(_complaints(caplog)) == 1
    gc.collect()
    assert len(_complaints(caplog)) == 1


async def test_o6_timeout_that_nobody_saw_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    Job(timeout=1).run()
    await anyio.sleep(20)
    assert len(_complaints(caplog)) == 1
    assert "WorkflowTimeoutError" in caplog.text


async def test_o6_failure_that_an_unfinished_reader_did_not_reach_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Notes(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Note(text="one"))
            raise ProviderError("down")

    async for _ in Notes().run().stream_events():
        break
    await anyio.sleep(1)
    assert len(_complaints(caplog)) == 1


@pytest.mark.parametrize("how", ["await", "get_stop_event", "stream", "async with"])
async def test_o6_failure_that_was_seen_is_not_logged(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Job().run(how="raise")
    if how == "await":
        with pytest.raises(ProviderError):
            await handler
    elif how == "stream":
        await read(handler)
    elif how == "async with":
        with pytest.raises(ProviderError):
            async with handler:
                pass
    else:
        await anyio.sleep(20)
        assert isinstance(handler.get_stop_event(), WorkflowFailedEvent)
    del handler
    assert _complaints(caplog) == []


async def test_o6_cancellation_and_success_that_nobody_saw_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = Job().run()
    await anyio.sleep(1)
    await handler.cancel_run()
    del handler
    Job().run()
    await anyio.sleep(20)
    assert _complaints(caplog) == []


@on_each_backend
def test_o6_failure_seen_by_nobody_before_the_loop_ended(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        handler = Job().run(how="raise")
        await anyio.sleep(20)
        assert handler.is_done()

    run_virtually(backend, main)
    assert len(_complaints(caplog)) == 1


# --- O7: context variables --------------------------------------------------------------------

user: ContextVar[Any] = ContextVar("user")


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise ProviderError("not comparable")

    __hash__ = None  # type: ignore[assignment]


class Sets(Workflow):
    """Each step notes the value it finds and sets another."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__()
        self.values = values
        self.found: list[Any] = []

    @step
    async def loop(self, ev: StartEvent | Next) -> Next | StopEvent:
        self.found.append(user.get("unset"))
        n = ev.n if isinstance(ev, Next) else 0
        if n == len(self.values):
            return StopEvent()
        user.set(self.values[n])
        return Next(n=n + 1)


async def test_o7_steps_see_the_callers_values_at_run() -> None:
    user.set("Ann")
    workflow = Sets([])
    handler = workflow.run()
    user.set("Bob")
    await handler
    assert workflow.found == ["Ann"]


async def test_o7_what_a_step_sets_leaks_nowhere() -> None:
    user.set("Ann")
    workflow = Sets(["x", "y", None, "Ann", 0])
    await workflow.run()
    assert workflow.found == ["Ann"] * 6
    assert user.get() == "Ann"


async def test_o7_variable_that_the_caller_has_not_set() -> None:
    workflow = Sets(["x", "y"])
    await workflow.run()
    assert workflow.found == ["unset"] * 3


async def test_o7_values_that_cannot_be_compared() -> None:
    mine = Incomparable()
    user.set(mine)
    workflow = Sets([Incomparable(), Incomparable()])
    await workflow.run()
    assert all(found is mine for found in workflow.found)
    assert user.get() is mine


@pytest.mark.parametrize(("mine", "equal"), [(1, True), ([], []), ({}, {})])
async def test_o7_equal_value_is_another_value(mine: Any, equal: Any) -> None:
    user.set(mine)
    workflow = Sets([equal, equal])
    await workflow.run()
    assert all(found is mine for found in workflow.found)


async def test_o7_concurrent_executions_have_their_own() -> None:
    class Side(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
            for n in range(4):
                ctx.send_event(Next(n=n))
            await anyio.sleep(10)
            return StopEvent(result=user.get())

        @step
        async def set_it(self, ev: Next) -> None:
            before = user.get()
            user.set(ev.n)
            await anyio.sleep(1)
            seen.append((before, user.get() == ev.n))

    seen: list[Any] = []
    user.set("Ann")
    assert await Side().run() == "Ann"
    assert seen == [("Ann", True)] * 4


async def test_o7_step_started_from_outside_sees_the_values_at_run() -> None:
    class Later(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent()

        @step
        async def take(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent(result=user.get())

    user.set("Ann")
    handler = Later().run()
    await anyio.sleep(1)
    user.set("Bob")
    await handler.send_event(HumanResponseEvent())
    assert await handler == "Ann"


async def test_o7_failing_step_leaks_nothing_to_the_caller() -> None:
    async def act(ctx: Context) -> None:
        user.set("leak")
        raise ProviderError

    user.set("Ann")
    with pytest.raises(ProviderError):
        await Acts(act).run()
    assert user.get() == "Ann"


# --- The handler itself -----------------------------------------------------------------------


async def test_statistics_count_what_happens() -> None:
    class Pool(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Next | None:
            for n in range(5):
                ctx.send_event(Next(n=n))
            ctx.write_event_to_stream(Note())

        @step(num_workers=2)
        async def work(self, ev: Next) -> StopEvent | None:
            await anyio.sleep(10)
            return StopEvent() if ev.n == 4 else None

    handler = Pool().run()
    found = handler.statistics()
    assert (found.state, found.steps["fork"].queued, found.unread_events) == ("running", 1, 0)

    await anyio.sleep(1)
    found = handler.statistics()
    work = found.steps["work"]
    assert (work.queued, work.running, work.done) == (3, 2, 0)
    assert (found.steps["fork"].done, found.unread_events) == (1, 1)
    assert not found.reader_waiting
    assert "running" in repr(handler)
    assert "running, 1 unread events; fork: 1 done; work: 3 queued, 2 running>" in repr(handler)
    assert handler.run_id in repr(handler)
    assert "Pool" in repr(handler)

    async with anyio.create_task_group() as group:
        group.start_soon(read, handler)
        await anyio.sleep(1)
        assert handler.statistics().reader_waiting
    found = handler.statistics()
    assert (found.state, found.unread_events, found.reader_waiting) == ("ended", 0, False)
    assert found.steps["work"].done == 5
    assert "ended, 0 unread events; fork: 1 done; work: 5 done>" in repr(handler)


async def test_run_id_is_given_or_made_up() -> None:
    handlers = [Job().run(run_id="mine"), Job().run(), Job().run()]
    assert handlers[0].run_id == "mine"
    assert len({handler.run_id for handler in handlers}) == 3
    for handler in handlers:
        await handler.cancel_run()


async def test_verbose_prints_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert await Job(verbose=True).run() == "done"
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Running step work",
        "Step work returned StopEvent",
        "Run ended: it returned StopEvent",
    ]
    with pytest.raises(ProviderError):
        await Job(verbose=True).run(how="raise")
    out = capsys.readouterr().out
    assert "Step work failed with ProviderError" in out
    assert "Run ended: step work failed with ProviderError" in out


async def test_verbose_uses_the_logger_where_it_is_enabled(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "anyio_workflows.verbose")
    await Job(verbose=True).run()
    assert "Running step work" in caplog.text
    assert capsys.readouterr().out == ""


async def test_not_verbose_says_nothing(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await Job().run()
    assert capsys.readouterr().out == ""
    assert "Running step" not in caplog.text


async def test_verbose_survives_a_standard_output_that_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Closed:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with anyio.fail_after(100):
        assert await Job(verbose=True).run() == "done"


async def test_input_is_asked_for_in_the_stream_and_answered_through_the_handler() -> None:
    handler = Asks().run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            await handler.send_event(HumanResponseEvent(response=event.prefix + " Ann"))
    assert await handler == "name? Ann"


async def test_one_workflow_has_many_runs_at_a_time() -> None:
    workflow = Asks()
    handlers = [workflow.run() for _ in range(10)]
    for n, handler in enumerate(handlers):
        await handler.send_event(HumanResponseEvent(response=n))
    assert [await handler for handler in handlers] == list(range(10))
    assert len({handler.run_id for handler in handlers}) == 10


@on_each_backend
def test_one_workflow_works_in_one_loop_after_the_other(backend: str) -> None:
    async def main() -> Any:
        return await workflow.run()

    workflow = Job()
    assert [run_virtually(backend, main) for _ in range(3)] == ["done"] * 3
