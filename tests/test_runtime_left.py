"""Blocks of a runtime with a store that are left in odd ways (D8), and calls in odd places."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import Context, Runtime
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.instrument import Instrument
from anyio_workflows.runtime import MemoryData, MemoryStore, RunHandle

from .conftest import BACKENDS
from .running import on_asyncio, on_each_backend, run_script, run_virtually
from .samples import Answer, Asks, OneStep


class OddError(Exception):
    """What the block raises."""


class Slow(MemoryStore):
    """A store whose commits take a second."""

    async def commit(self, changes: Any) -> set[str]:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)
            return await super().commit(changes)


async def waiting(run: RunHandle[Any]) -> None:
    for _ in range(1000):
        if await run.open_waits():
            return
        await anyio.sleep(0.1)
    raise AssertionError(f"it does not wait: {run!r}")


async def finished(data: MemoryData) -> None:
    """Every run that is kept continues in the next runtime, and comes to its end."""
    async with Runtime(MemoryStore(data), workflows=[Asks(timeout=None)]) as runtime:
        with anyio.fail_after(1000):
            for run_id in data.runs:
                run = await runtime.get(run_id)
                await anyio.sleep(1)
                if await run.open_waits():
                    await run.send_event(Answer(text="later"))
                assert await run in ("later", "at once")


@pytest.mark.parametrize("how", ["normally", "exception", "scope"])
@pytest.mark.parametrize("delay", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
@pytest.mark.anyio
async def test_d8_all_who_wait_are_told_while_the_block_is_left(how: str, delay: float) -> None:
    """Tasks that start, answer, read and wait, from outside of the block, while a commit is under way."""
    data = MemoryData()
    told: list[Any] = []

    async def ask(name: str, act: Callable[[], Any]) -> None:
        try:
            found = await act()
        except WorkflowRuntimeError as error:
            found = "refused" if "left" in str(error) or "let go" in str(error) else error
        told.append((name, found))

    async def read(run: RunHandle[Any]) -> str:
        return [event async for event in run.stream_events()][-1].result

    async def start(runtime: Runtime) -> str:
        return (await runtime.start(Asks, "two")).id

    with anyio.fail_after(1000):
        async with anyio.create_task_group() as outside:
            with anyio.CancelScope() as scope:
                try:
                    async with Runtime(Slow(data), workflows=[Asks(timeout=None)]) as runtime:
                        run = await runtime.start(Asks, "one")
                        await waiting(run)
                        await anyio.sleep(5)
                        outside.start_soon(ask, "start", lambda: start(runtime))
                        outside.start_soon(
                            ask, "send", lambda: run.send_event(Answer(text="at once"))
                        )
                        outside.start_soon(ask, "wait", run._result)
                        outside.start_soon(ask, "read", lambda: read(run))
                        await anyio.sleep(delay)
                        outside.start_soon(ask, "late", lambda: runtime.start(Asks, "three"))
                        await checkpoint()
                        if how == "exception":
                            raise OddError
                        if how == "scope":
                            scope.cancel()
                            await checkpoint()
                except OddError:
                    assert how == "exception"
    found = dict(told)
    assert len(told) == 5
    if found["send"] != "refused":
        assert "at once" in str(data.events["one"]) + str(data.rows["one"])
    if found["start"] != "refused":
        assert "two" in data.runs
    if found["late"] != "refused":
        assert "three" in data.runs
    assert found["wait"] == found["read"]
    assert {run.owner for run in data.runs.values()} == {None}
    await finished(data)


@on_asyncio
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("delay", [0.0, 0.5, 1.5])
@pytest.mark.anyio
async def test_d8_a_block_that_is_cancelled_natively_lets_its_runs_go(
    times: int, delay: float
) -> None:
    data = MemoryData()
    tasks = asyncio.all_tasks()

    async def live() -> None:
        async with Runtime(Slow(data), workflows=[Asks(timeout=None)]) as runtime:
            run = await runtime.start(Asks, "one")
            await waiting(run)
            await run.send_event(Answer(text="at once"))

    task = asyncio.create_task(live())
    await anyio.sleep(1.5 + delay)
    for _ in range(times):
        task.cancel()
        await anyio.sleep(0.2)
    with anyio.fail_after(100):
        with pytest.raises(asyncio.CancelledError):
            await task
    await checkpoint()
    assert asyncio.all_tasks() == tasks
    assert {run.owner for run in data.runs.values()} <= {None}
    await finished(data)


@pytest.mark.anyio
async def test_d8_a_step_that_does_not_end_is_given_up_after_its_cleanup_timeout() -> None:
    data = MemoryData()
    release = anyio.Event()

    async def stubborn(ctx: Context) -> str:
        with anyio.CancelScope(shield=not release.is_set()):
            await release.wait()
        return "done"

    began = anyio.current_time()
    async with Runtime(
        MemoryStore(data), workflows=[OneStep(stubborn, cleanup_timeout=5)]
    ) as runtime:
        run = await runtime.start(OneStep, "one")
        await anyio.sleep(1)
    assert anyio.current_time() - began < 10
    assert data.runs["one"].owner is None
    release.set()
    with pytest.raises(WorkflowRuntimeError, match="was let go"):
        await run
    async with Runtime(MemoryStore(data), workflows=[OneStep(stubborn)]) as runtime:
        assert await (await runtime.get("one")) == "done"
    assert len(data.events["one"]) == 1


LEFT_BEHIND = """
    import anyio, gc, asyncio, sys
    from anyio_workflows import *
    from anyio_workflows.runtime import MemoryData, MemoryStore

    class Asks(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(HumanResponseEvent)
            return StopEvent(result=7)

    data = MemoryData()

    async def live(task_status):
        async with Runtime(MemoryStore(data), workflows=[Asks(timeout=None)]) as runtime:
            run = await runtime.start(Asks, run_id="one")
            while data.runs["one"].status != "waiting":
                await anyio.sleep(0.001)
            task_status.set()
            await anyio.sleep_forever()

    async def main():
        began = anyio.Event()
        if sys.argv[-1] == "task":
            task = asyncio.create_task(live(began))
            await began.wait()
        elif sys.argv[-1] == "exit":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(live, began)
                await began.wait()
                raise SystemExit(0)

    async def after():
        async with Runtime(MemoryStore(data), workflows=[Asks(timeout=None)]) as runtime:
            run = await runtime.get("one")
            while not await run.open_waits():
                await anyio.sleep(0.001)
            await run.send_event(HumanResponseEvent())
            print(await run, [record.seq async for record in run.records()])
"""


@pytest.mark.parametrize("how", ["task", "exit"])
def test_d8_a_loop_that_ends_lets_the_runs_go(how: str) -> None:
    for backend in ["asyncio"] if how == "task" else BACKENDS:
        ran = run_script(
            LEFT_BEHIND
            + f"""
    sys.argv.append({how!r})
    try:
        anyio.run(main, backend={backend!r})
    except BaseException as error:
        print("ended with", [type(one).__name__ for one in getattr(error, "exceptions", [error])])
    anyio.run(after, backend={backend!r})
"""
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.splitlines()[-1] == "7 [1]"


# --- Odd places ---------------------------------------------------------------------------------


class Raises(Instrument):
    """Raises whenever it is told something."""

    def run_started(self, *args: Any) -> None:
        raise OddError

    event_written = execution_started = execution_ended = run_ended = run_started  # type: ignore[assignment]


@pytest.mark.anyio
async def test_i1_an_instrument_that_raises_disturbs_no_run_that_is_kept(caplog: Any) -> None:
    data = MemoryData()
    workflows = [Asks(timeout=None)]
    async with Runtime(MemoryStore(data), workflows=workflows, instruments=[Raises()]) as runtime:
        run = await runtime.start(Asks, "one")
        await waiting(run)
        await run.send_event(Answer(text="at once"))
        assert await run == "at once"
    assert "raised OddError" in caplog.text


@pytest.mark.parametrize("durability", ["strict", "eventual"])
@pytest.mark.anyio
async def test_k1_many_runs_are_started_at_once_and_their_handles_dropped(durability: Any) -> None:
    async def act(ctx: Context) -> str:
        await anyio.sleep(1)
        return "done"

    data = MemoryData()

    async def start(runtime: Runtime, run_id: str) -> None:
        await runtime.start(OneStep, run_id)

    async with Runtime(
        MemoryStore(data), workflows=[OneStep(act)], durability=durability
    ) as runtime:
        async with anyio.create_task_group() as tasks:
            for n in range(300):
                tasks.start_soon(start, runtime, f"run-{n}")
        await anyio.sleep(5)
        assert runtime.statistics().in_progress == 0
        page = await runtime.runs(status="completed", limit=1000)
        assert len(page.runs) == 300


@pytest.mark.anyio
async def test_k1_steps_use_their_own_runtime() -> None:
    told: list[Any] = []
    runtimes: list[Runtime] = []

    async def parent(ctx: Context) -> Any:
        [runtime] = runtimes
        own = await runtime.get("parent")
        with pytest.raises(WorkflowRuntimeError, match="cannot wait for the end of its own run"):
            await own
        told.append(await own.send_event(Answer(text="to itself")))
        child = await runtime.start("asks", "child")
        await waiting(child)
        await child.send_event(Answer(text="from the parent"))
        return await child

    data = MemoryData()
    workflows = {"parent": OneStep(parent), "asks": Asks(timeout=None)}
    async with Runtime(MemoryStore(data), workflows=workflows, types=[Answer]) as runtime:
        runtimes.append(runtime)
        with anyio.fail_after(100):
            run = await runtime.start("parent", "parent")
            assert await run == "from the parent"
    assert told == [()]


@on_each_backend
def test_k3_a_run_is_used_from_threads_through_the_loop(backend: str) -> None:
    refused: list[str] = []

    async def main() -> None:
        async with Runtime(MemoryStore(), workflows=[Asks(timeout=None)]) as runtime:
            run = await runtime.start(Asks, "one")
            while not await run.open_waits():
                await checkpoint()

            def in_a_thread() -> Any:
                try:
                    _ = run.info
                except WorkflowRuntimeError as error:
                    refused.append(str(error))
                return anyio.from_thread.run(run.send_event, Answer(text="from a thread"))

            assert await anyio.to_thread.run_sync(in_a_thread) == ("ask",)
            assert await run == "from a thread"

    anyio.run(main, backend=backend)
    assert "event loop and thread of its runtime" in refused[0]


class SlowToRead(MemoryStore):
    """A store whose rows take a second; who is cancelled meanwhile gets them, as from a thread."""

    async def rows_of_each(self, *args: Any, **more: Any) -> Any:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)
            return await super().rows_of_each(*args, **more)


@on_each_backend
def test_d8_a_run_that_is_being_brought_back_is_let_go_whole(backend: str) -> None:
    """Nothing of it is left open: an unclosed stream would be an unraisable warning."""
    data = MemoryData()

    async def begin() -> None:
        async with Runtime(MemoryStore(data), workflows=[Asks(timeout=None)]) as runtime:
            await waiting(await runtime.start("asks", run_id="r"))

    async def leave() -> None:
        async with Runtime(SlowToRead(data), workflows=[Asks(timeout=None)]):
            await anyio.sleep(0.5)

    run_virtually(backend, begin)
    run_virtually(backend, leave)
    gc.collect()
    assert data.runs["r"].owner is None
    run_virtually(backend, finished, data)
