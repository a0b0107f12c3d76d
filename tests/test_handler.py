"""The handle of a run: awaiting it, cancelling it, leaving its block, giving it up (T10, O3, O4)."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    HumanResponseEvent,
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

from .running import check_ending, on_asyncio, on_each_backend, read, run_virtually, texts
from .samples import Answer, AsksByReturning, Job, Next, Note, OneStep, ProviderError, Question

pytestmark = pytest.mark.anyio

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
    handler = AsksByReturning().run()
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

    handler = OneStep(act).run()
    with anyio.fail_after(100):
        events, last = await check_ending(handler)
    assert texts(events) == ["cancelled"]
    assert last == WorkflowCancelledEvent()


async def test_t10_in_a_task_of_its_own_step() -> None:
    async def act(ctx: Context) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(handler.cancel_run)
            await anyio.sleep(1000)

    handler = OneStep(act).run()
    with anyio.fail_after(100):
        _, last = await check_ending(handler)
    assert last == WorkflowCancelledEvent()


async def test_t10_in_its_own_step_with_a_timeout_of_zero() -> None:
    async def act(ctx: Context) -> str:
        await handler.cancel_run(timeout=0)
        return "too late"

    handler = OneStep(act).run()
    with anyio.fail_after(100):
        _, last = await check_ending(handler)
    assert last == WorkflowCancelledEvent()


async def test_t10_in_a_step_of_another_run() -> None:
    async def act(ctx: Context) -> bool:
        await handler.cancel_run()
        return handler.is_done()

    handler = Job().run()
    assert await OneStep(act).run() is True


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

    handler = OneStep(act, timeout=None).run()
    with anyio.fail_after(100), pytest.raises(WorkflowRuntimeError, match="its own run"):
        await handler
    event = handler.get_stop_event()
    assert isinstance(event, WorkflowFailedEvent)
    assert event.step_name == "work"


async def _await(handler: WorkflowHandler[Any]) -> object:
    return await handler


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
    assert (
        "running, 1 unread events; fork: 1 done; work: 3 queued, 2 running; await it for "
        in repr(handler)
    )
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
    handler = AsksByReturning().run()
    async for event in handler.stream_events():
        if isinstance(event, Question):
            await handler.send_event(Answer(text=event.text + " Ann"))
    assert await handler == "well? Ann"


async def test_one_workflow_has_many_runs_at_a_time() -> None:
    workflow = AsksByReturning()
    handlers = [workflow.run() for _ in range(10)]
    for n, handler in enumerate(handlers):
        await handler.send_event(Answer(text=str(n)))
    assert [await handler for handler in handlers] == [str(n) for n in range(10)]
    assert len({handler.run_id for handler in handlers}) == 10


@on_each_backend
def test_one_workflow_works_in_one_loop_after_the_other(backend: str) -> None:
    async def main() -> Any:
        return await workflow.run()

    workflow = Job()
    assert [run_virtually(backend, main) for _ in range(3)] == ["done"] * 3
