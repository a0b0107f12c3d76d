"""The block of a runtime in memory: entering, leaving, event loops and threads."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from anyio_workflows import (
    Context,
    Runtime,
    StopEvent,
    WorkflowCancelledEvent,
)
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from anyio_workflows.runtime import RunHandle

from .bare import BARE_RUNNERS, run_bare
from .running import on_asyncio, on_each_backend, run_virtually, texts
from .samples import Answer, Asks, Ends, Job, Loop, OneStep, ProviderError

pytestmark = pytest.mark.anyio


async def events(run: RunHandle[Any]) -> list[Any]:
    return [event async for event in run.stream_events()]


# --- Outside of the block ------------------------------------------------------------------------


def calls(runtime: Runtime) -> dict[str, Callable[[], Any]]:
    """Return each method that needs the block."""
    return {
        "start": lambda: runtime.start(Loop),
        "get": lambda: runtime.get("x"),
        "runs": lambda: runtime.runs(),
        "retry": lambda: runtime.retry("x"),
        "delete": lambda: runtime.delete("x"),
    }


async def check_refused(runtime: Runtime, why: str) -> None:
    for name, call in calls(runtime).items():
        with pytest.raises(WorkflowRuntimeError, match=rf"{name}\(\) cannot be called .*{why}"):
            await call()
    with pytest.raises(WorkflowRuntimeError, match=rf"statistics\(\) cannot be called .*{why}"):
        runtime.statistics()


async def test_outside_of_the_block_each_method_raises() -> None:
    runtime = Runtime(workflows=[Loop()])
    await check_refused(runtime, "use 'async with Runtime")
    async with runtime:
        with pytest.raises(WorkflowRuntimeError, match="has been entered already"):
            await runtime.__aenter__()
    await check_refused(runtime, "its block has been left")
    with pytest.raises(WorkflowRuntimeError, match="a Runtime is entered once: make another one"):
        await runtime.__aenter__()


async def test_while_the_block_is_left_nothing_is_started() -> None:
    refused = []

    async def act(ctx: Context) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                with pytest.raises(WorkflowRuntimeError, match="is being left") as error:
                    await runtime.start(Loop)
                refused.append(error)

    async with Runtime(workflows=[OneStep(act), Loop()]) as runtime:
        await runtime.start(OneStep)
        await anyio.sleep(1)
    assert len(refused) == 1


def test_there_is_no_runtime_without_an_event_loop() -> None:
    runtime = Runtime(workflows=[Loop()])
    entering = runtime.__aenter__()
    with pytest.raises(WorkflowRuntimeError, match="in a running event loop only"):
        entering.send(None)


@on_each_backend
def test_a_runtime_belongs_to_one_event_loop(backend: str) -> None:
    runtime = Runtime(workflows=[Asks(), Loop()])
    other: dict[str, Any] = {}

    async def elsewhere() -> None:
        await check_refused(runtime, "another event loop or thread")
        run = other["asks"]
        for use in (lambda: run.info, lambda: run.records(), lambda: run.statistics()):
            with pytest.raises(WorkflowRuntimeError, match="in the event loop and thread of its"):
                use()
        for call in (lambda: run, lambda: run.send_event(Answer()), run.cancel, run.open_waits):
            with pytest.raises(WorkflowRuntimeError, match="in the event loop and thread of its"):
                await call()
        ended = other["loop"]
        assert await ended == "over"
        assert texts(await events(ended)) == [3, 2, 1]
        assert ended.info.status == "completed"

    async def main() -> None:
        async with runtime:
            other["asks"] = await runtime.start(Asks)
            other["loop"] = await runtime.start(Loop)
            await other["loop"]
            await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend=backend))

    anyio.run(main, backend=backend)


async def test_threads_call_a_runtime_through_anyio() -> None:
    def in_thread() -> str:
        run = anyio.from_thread.run(runtime.start, Loop)
        return anyio.from_thread.run(lambda: wait(run))

    async def wait(run: RunHandle[str]) -> str:
        return await run

    async with Runtime(workflows=[Loop()]) as runtime:
        assert await anyio.to_thread.run_sync(in_thread) == "over"


# --- Leaving -------------------------------------------------------------------------------------


async def test_leaving_cancels_the_runs_and_their_ends_are_in_the_log() -> None:
    job = Job()
    async with Runtime(workflows=[job, Asks(num_concurrent_runs=1)]) as runtime:
        runs = [await runtime.start(Job), await runtime.start(Asks), await runtime.start(Asks)]
        await anyio.sleep(1)
        start = anyio.current_time()
    assert anyio.current_time() - start == pytest.approx(2)
    assert job.cleaned
    for run in runs:
        assert run.info.status == "cancelled"
        assert isinstance((await events(run))[-1], WorkflowCancelledEvent)
        with pytest.raises(WorkflowCancelledByUser, match="the block of its runtime was left"):
            await run
        await run.cancel()
        assert await run.open_waits() == []
        with pytest.raises(WorkflowRuntimeError, match="cannot be sent: the run has ended"):
            await run.send_event(Answer())


async def test_leaving_is_bounded_by_the_cleanup_timeout_of_stubborn_steps() -> None:
    async def act(ctx: Context) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1000)

    async with Runtime(workflows=[OneStep(act, cleanup_timeout=3)]) as runtime:
        runs = [await runtime.start(OneStep) for _ in range(5)]
        await anyio.sleep(1)
        start = anyio.current_time()
    assert anyio.current_time() - start == pytest.approx(3)
    assert {run.info.status for run in runs} == {"cancelled"}


async def test_an_exception_of_the_block_comes_through_as_it_is() -> None:
    error = ProviderError("own")
    runs = []

    async def fail() -> None:
        async with Runtime(workflows=[Job()]) as runtime:
            runs.append(await runtime.start(Job))
            await anyio.sleep(1)
            raise error

    with pytest.raises(ProviderError) as caught:
        await fail()
    assert caught.value is error
    assert error.__context__ is None
    assert runs[0].info.status == "cancelled"


async def test_a_failing_run_disturbs_neither_the_block_nor_other_runs() -> None:
    async with Runtime(workflows=[Ends(), Job()]) as runtime:
        failing = await runtime.start(Ends, how="raise")
        job = await runtime.start(Job)
        assert await job == "done"
        assert failing.info.status == "failed"


async def test_a_cancelled_block_is_left_when_the_runs_have_ended() -> None:
    job = Job()
    with anyio.move_on_after(1) as scope:
        async with Runtime(workflows=[job]) as runtime:
            run = await runtime.start(Job)
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert job.cleaned
    assert run.info.status == "cancelled"


@on_asyncio
async def test_a_native_cancellation_while_the_block_is_left_comes_after_the_runs() -> None:
    job = Job()
    run: RunHandle[Any] | None = None

    async def main() -> None:
        nonlocal run
        async with Runtime(workflows=[job]) as runtime:
            run = await runtime.start(Job)
            await anyio.sleep_forever()

    task = asyncio.ensure_future(main())
    await anyio.sleep(1)
    for _ in range(2):
        task.cancel()
        await anyio.sleep(0.5)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert job.cleaned
    assert run is not None
    assert run.info.status == "cancelled"


async def test_readers_and_waiting_tasks_are_told_of_the_end() -> None:
    told: list[Any] = []

    async def follow(run: RunHandle[Any]) -> None:
        told.append(type((await events(run))[-1]))

    async def wait(run: RunHandle[Any]) -> None:
        with suppress(WorkflowCancelledByUser):
            await run
        told.append("ended")

    async with anyio.create_task_group() as group, Runtime(workflows=[Asks()]) as runtime:
        run = await runtime.start(Asks)
        for function in (follow, wait, follow, wait):
            group.start_soon(function, run)
        await anyio.sleep(1)
    assert sorted(map(str, told)) == sorted(map(str, [WorkflowCancelledEvent, "ended"] * 2))


@on_each_backend
def test_when_the_loop_ends_the_runs_are_cancelled(backend: str) -> None:
    job = Job()
    kept: list[RunHandle[Any]] = []

    async def main() -> None:
        runtime = await Runtime(workflows=[job]).__aenter__()
        kept.append(await runtime.start(Job))
        await anyio.sleep(1)

    run_virtually(backend, main)
    assert kept[0].info.status == "cancelled"
    assert job.begun


# --- Whatever runs the loop ------------------------------------------------------------------------


@pytest.mark.parametrize("runner", BARE_RUNNERS)
def test_a_runtime_needs_no_runner_of_anyio(runner: Callable[..., Any]) -> None:
    async def main() -> tuple[str, list[Any]]:
        async with Runtime(workflows=[Asks(), Loop()]) as runtime:
            run = await runtime.start(Asks, run_id="r")
            async for event in run.stream_events():
                if not isinstance(event, StopEvent):
                    await run.send_event(Answer(text="yes"))
            loops = [await runtime.start(Loop) for _ in range(3)]
            left = await runtime.start(Asks)
            assert [await loop for loop in loops] == ["over"] * 3
            result = await (await runtime.get("r"))
        return result, await events(left)

    result, last = run_bare(runner, main)
    assert result == "yes"
    assert isinstance(last[-1], WorkflowCancelledEvent)


# --- What remains --------------------------------------------------------------------------------


async def test_o6_failures_are_kept_and_not_logged_as_never_retrieved(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        async with Runtime(workflows=[Ends()]) as runtime:
            await runtime.start(Ends, how="raise")
            await anyio.sleep(1)
            gc.collect()
        del runtime
        gc.collect()
    assert not caplog.records


@pytest.mark.parametrize("seconds", [0, 100])
async def test_o6_an_ended_run_holds_no_context_and_no_run_of_the_engine(seconds: int) -> None:
    found: list[weakref.ref[Any]] = []

    async def act(ctx: Context) -> str:
        found.extend([weakref.ref(ctx), weakref.ref(ctx._run)])
        await anyio.sleep(seconds)
        return "done"

    async with Runtime(workflows=[OneStep(act, timeout=5)]) as runtime:
        run = await runtime.start(OneStep)
        with suppress(WorkflowTimeoutError):
            assert await run == "done"
        await anyio.sleep(1)
        gc.collect()
        assert [ref() for ref in found] == [None, None]  # also if it left something for a retry
        assert run.info.status in ("completed", "timed_out")


async def test_o7_a_step_sees_the_context_variables_of_whoever_started_its_run() -> None:
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable", default="none")

    async def act(ctx: Context) -> str:
        return variable.get()

    async with Runtime(workflows=[OneStep(act)]) as runtime:
        variable.set("caller")
        assert await (await runtime.start(OneStep)) == "caller"


async def test_several_runtimes_and_plain_runs_share_a_workflow() -> None:
    loop = Loop()
    async with Runtime(workflows=[loop]) as one, Runtime(workflows=[loop]) as other:
        first = await one.start(loop, run_id="same")
        second = await other.start(loop, run_id="same", rounds=1)
        assert first != second
        assert [await first, await second, await loop.run()] == ["over"] * 3
        assert (first.info.last_seq, second.info.last_seq) == (4, 2)
