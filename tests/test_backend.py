"""The lines that differ between asyncio and trio: where a run lives, and how it starts and ends."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from types import ModuleType
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, step
from anyio_workflows._backend import Signal, _background_tasks, find_loop, running_task
from anyio_workflows.testing import VirtualTimeLoop

from .conftest import BACKENDS, HAS_TRIO
from .running import run_virtually
from .samples import Next

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
needs_eager_tasks = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="eager tasks came with Python 3.12"
)


class Nap(Workflow):
    @step
    async def nap(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep(10)
        return StopEvent(result="awake")


def test_no_home_outside_a_loop() -> None:
    assert find_loop() is None


async def test_no_home_in_a_worker_thread() -> None:
    assert await anyio.to_thread.run_sync(find_loop) is None


@on_asyncio
async def test_a_thread_that_imports_trio_meanwhile_is_no_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "trio", ModuleType("trio"))  # which has no attributes yet
    assert find_loop() is not None
    assert running_task() == (asyncio.get_running_loop(), asyncio.current_task())


async def test_loop_is_the_loop_of_this_thread() -> None:
    loop = find_loop()
    assert loop is not None
    assert loop.is_here()
    assert loop.current_time() == anyio.current_time()
    assert not await anyio.to_thread.run_sync(loop.is_here)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("other", BACKENDS)
def test_loop_is_not_another_loop(backend: str, other: str) -> None:
    async def find() -> Any:
        return find_loop()

    async def is_here() -> bool:
        return found.is_here()

    found = run_virtually(backend, find)
    assert run_virtually(other, is_here) is False
    assert found.is_here() is False


@on_asyncio
async def test_loop_in_a_callback_of_the_loop() -> None:
    homes: list[Any] = []
    asyncio.get_running_loop().call_soon(lambda: homes.append(find_loop()))
    await checkpoint()
    assert homes[0].is_here()


if HAS_TRIO:

    def test_loop_under_trio_in_a_guest_of_asyncio() -> None:
        """Both libraries run in one thread; the one whose task it is counts."""
        import trio

        async def trio_main() -> None:
            found.append(type(find_loop()).__name__)
            handler = Nap(timeout=1).run()
            await handler.cancel_run()
            assert handler.is_done()

        async def asyncio_main() -> None:
            loop = asyncio.get_running_loop()
            done = loop.create_future()
            trio.lowlevel.start_guest_run(
                trio_main,
                run_sync_soon_threadsafe=loop.call_soon_threadsafe,
                done_callback=done.set_result,
            )
            (await done).unwrap()
            found.append(type(find_loop()).__name__)

        found: list[str] = []
        asyncio.run(asyncio_main())
        assert found == ["_TrioLoop", "_AsyncioLoop"]


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_end_is_called_once_whenever_the_loop_ends(backend: str, turns: int) -> None:
    async def host() -> None:
        calls.append("begun")
        await anyio.sleep_forever()

    async def main() -> None:
        loop = find_loop()
        assert loop is not None
        loop.start(host, lambda: calls.append("ended"))
        for _ in range(turns):
            await checkpoint()

    calls: list[str] = []
    run_virtually(backend, main)
    assert calls in (["ended"], ["begun", "ended"])


async def test_host_is_not_cancelled_while_the_loop_runs() -> None:
    loop = find_loop()
    assert loop is not None
    seen: list[bool] = []

    async def host() -> None:
        await checkpoint()
        seen.append(loop.host_cancelled())

    ended = anyio.Event()
    loop.start(host, ended.set)
    await ended.wait()
    assert seen == [False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_host_is_cancelled_when_the_loop_ends(backend: str) -> None:
    seen: list[bool] = []

    async def main() -> None:
        loop = find_loop()
        assert loop is not None

        async def host() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                seen.append(loop.host_cancelled())

        loop.start(host, lambda: None)
        await anyio.sleep(1)

    run_virtually(backend, main)
    assert seen == [True]


async def wait_for(signal: Signal) -> None:
    await signal.wait()


async def note(ran: list[bool]) -> None:
    ran.append(True)


async def test_a_wait_for_a_signal_may_be_cancelled_and_repeated() -> None:
    loop = find_loop()
    assert loop is not None
    signal = loop.new_signal()
    with anyio.move_on_after(1) as scope:
        await signal.wait()
    assert scope.cancelled_caught
    assert not signal.is_set()
    async with anyio.create_task_group() as group:
        group.start_soon(wait_for, signal)
        await anyio.wait_all_tasks_blocked()
        signal.set()
    assert signal.is_set()
    signal.set()
    await signal.wait()


async def test_a_wait_for_a_signal_that_is_set_lets_others_run_and_can_be_cancelled() -> None:
    loop = find_loop()
    assert loop is not None
    signal = loop.new_signal()
    signal.set()
    others_ran: list[bool] = []
    async with anyio.create_task_group() as group:
        group.start_soon(note, others_ran)
        for _ in range(2):  # trio runs the tasks of one batch in any order
            await signal.wait()
        assert others_ran
    with anyio.CancelScope() as scope:
        scope.cancel()
        await signal.wait()
    assert scope.cancelled_caught


async def test_background_tasks_are_forgotten_when_they_end() -> None:
    before = len(_background_tasks)
    handlers = [Nap().run() for _ in range(5)]
    for handler in handlers:
        await handler
    await anyio.sleep(1)
    assert len(_background_tasks) == before


@on_asyncio
async def test_run_that_cannot_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no tasks today")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "create_task", refuse)
        with pytest.raises(RuntimeError, match="no tasks today"):
            Nap().run()
    gc.collect()  # an un-awaited coroutine or an unclosed stream would warn


@pytest.mark.parametrize("other", BACKENDS)
async def test_runs_in_two_threads_do_not_meet(other: str) -> None:
    def in_thread() -> None:
        results.append(run_virtually(other, main))

    async def main() -> Any:
        return await workflow.run()

    workflow = Nap()
    results: list[Any] = []
    threads = [threading.Thread(target=in_thread) for _ in range(4)]
    for thread in threads:
        thread.start()
    results.append(await workflow.run())
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert results == ["awake"] * 5


# --- Eager tasks (asyncio, Python 3.12) -------------------------------------------------------


class EagerLoop(VirtualTimeLoop):
    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]


def run_eagerly(main: Any) -> Any:
    return anyio.run(main, backend="asyncio", backend_options={"loop_factory": EagerLoop})


@needs_eager_tasks
def test_eager_tasks_no_step_begins_inside_run_or_send() -> None:
    class Sends(Workflow):
        @step
        async def start(self, ctx: Context, ev: StartEvent) -> Next | None:
            log.append("start")
            ctx.send_event(Next(n=1))
            ctx.send_event(Next(n=2))
            log.append("sent")

        @step(num_workers=2)
        async def take(self, ev: Next) -> StopEvent | None:
            log.append(f"take {ev.n}")
            await anyio.sleep(1)
            return StopEvent() if ev.n == 2 else None

    async def main() -> None:
        handler = Sends().run()
        log.append("run")
        await handler

    log: list[str] = []
    run_eagerly(main)
    assert log == ["run", "start", "sent", "take 1", "take 2"]


@needs_eager_tasks
def test_eager_tasks_many_workers_at_once() -> None:
    class Wide(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
            for n in range(3000):
                ctx.send_event(Next(n=n))
            await anyio.sleep(10)
            return StopEvent(result=len(done))

        @step(num_workers=3000)
        async def work(self, ev: Next) -> None:
            await anyio.sleep(1)
            done.append(ev.n)

    async def main() -> Any:
        return await Wide().run()

    done: list[int] = []
    assert run_eagerly(main) == 3000
    assert sorted(done) == list(range(3000))


@needs_eager_tasks
@pytest.mark.parametrize("how", ["await", "cancel", "timeout", "leave"])
def test_eager_tasks_runs_end_as_ever(how: str) -> None:
    async def main() -> Any:
        handler = Nap(timeout=1 if how == "timeout" else 45).run()
        assert not handler.is_done()
        if how == "await":
            assert await handler == "awake"
        if how == "cancel":
            await handler.cancel_run()
        if how == "timeout":
            await anyio.sleep(2)
        return handler

    handler = run_eagerly(main)
    wanted = {
        "await": "StopEvent",
        "cancel": "WorkflowCancelledEvent",
        "timeout": "WorkflowTimedOutEvent",
        "leave": "WorkflowCancelledEvent",
    }
    assert type(handler.get_stop_event()).__name__ == wanted[how]
