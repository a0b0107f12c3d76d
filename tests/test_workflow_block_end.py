"""How `async with workflow:` ends with its event loop, and by cancellations at any moment (O2, P5)."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Workflow,
    WorkflowCancelledEvent,
    WorkflowHandler,
)
from anyio_workflows.errors import WorkflowConfigurationError

from .resource_hosting import warned
from .resources import Broken, Store, hang, idle, nap, run_program_that_ends, shape, sharing, use
from .running import on_asyncio, on_each_backend, run_script, run_virtually

pytestmark = pytest.mark.anyio

# --- The end of the event loop, and native cancellation -----------------------------------------------


@on_each_backend
@pytest.mark.parametrize("busy", [True, False])
def test_o2_the_loop_ends_while_another_task_is_in_the_block(backend: str, busy: bool) -> None:
    async def block() -> None:
        async with workflow:
            handler = workflow.run()
            handlers.append(handler)
            if not busy:
                await handler
            await anyio.sleep_forever()

    async def main() -> None:
        if backend == "asyncio":
            tasks.append(asyncio.create_task(block()))
        else:
            import trio

            trio.lowlevel.spawn_system_task(block)
        await anyio.sleep(3)

    tasks: list[Any] = []
    handlers: list[WorkflowHandler[Any]] = []
    store = Store()
    workflow = sharing(store.factory("it", opening=1, closing=0), nap(100) if busy else idle)
    run_virtually(backend, main)
    assert shape(store.log) == ["opened it", "closed it"]
    assert handlers[0].is_done()
    if busy:
        assert type(handlers[0].get_stop_event()) is WorkflowCancelledEvent
    assert run_virtually(backend, lambda: use(workflow)) == "it 2"


@on_each_backend
@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 5, 8, 13, 21])
def test_o2_the_loop_ends_in_a_block_that_nobody_leaves(backend: str, ticks: int) -> None:
    async def main() -> None:
        await workflow.__aenter__()
        workflow.run()
        for _ in range(ticks):
            await checkpoint()

    store = Store()
    workflow = sharing(store.factory("it"), hang)
    run_virtually(backend, main)
    assert store.log.count("opened it") == store.log.count("closed it")
    assert shape(store.log) in ([], ["opened it", "closed it"])
    run_virtually(backend, main)


@on_each_backend
def test_o2_a_program_that_ends_in_the_block_warns_of_nothing(backend: str) -> None:
    done = run_program_that_ends(backend, scope="workflow")
    assert (done.stdout, done.stderr) == ("opened\nstep ends\nclosed\n", "")
    assert done.returncode == 0


@on_each_backend
def test_p5_a_failure_to_close_is_logged_if_a_keyboard_interrupt_comes_meanwhile(
    backend: str,
) -> None:
    done = run_script(
        f"""
        import _thread
        import time
        from typing import Annotated

        import anyio
        import anyio.to_thread
        from anyio_workflows import StartEvent, StopEvent, Workflow, step
        from anyio_workflows.resource import Resource

        def interrupt():
            time.sleep(0.1)  # the event loop waits for events then, and no task runs
            _thread.interrupt_main()

        async def factory():
            yield "it"
            await anyio.to_thread.run_sync(interrupt)
            for _ in range(9):
                await anyio.sleep(0)
            raise ValueError("not closed")

        class Shares(Workflow):
            @step
            async def work(
                self, ev: StartEvent, it: Annotated[str, Resource(factory, scope="workflow")]
            ) -> StopEvent:
                return StopEvent()

        async def main():
            async with Shares() as workflow:
                await workflow.run()

        try:
            anyio.run(main, backend="{backend}")
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert (done.stdout, done.returncode) == ("interrupted\n", 0)
    assert "block of Shares: resource factory failed" in done.stderr
    assert "ValueError: not closed" in done.stderr


@on_asyncio
async def test_p5_a_failure_to_close_is_logged_if_a_native_cancellation_comes_meanwhile(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store()
    workflow = sharing(store.factory("it", closing=2, broken=Broken()))
    task = asyncio.create_task(use(workflow))
    await asyncio.sleep(2)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert warned(caplog) == ["block of Shares: resource it failed"]


def test_p5_a_program_that_cancels_all_other_tasks_ends_the_block() -> None:
    async def main() -> None:
        async with workflow:
            await workflow.run()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.wait(others)
            assert shape(store.log) == ["opened it", "closed it"]
            with pytest.raises(WorkflowConfigurationError) as caught:
                workflow.run()
        assert str(caught.value) == (
            "Shares: resource it of step work is closed with its workflow; its 'async with' block takes "
            "no run here, because it has ended: its task was cancelled"
        )
        async with workflow:
            assert await workflow.run() == "it 2"

    store = Store()
    workflow = sharing(store.factory("it"))
    asyncio.run(main())


@on_asyncio
async def test_p5_a_block_that_cannot_be_started_leaves_the_instance_free() -> None:
    def refuse(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
        coroutine.close()
        raise Broken

    workflow = sharing(object)
    asyncio.get_running_loop().set_task_factory(refuse)
    try:
        with pytest.raises(Broken):
            await workflow.__aenter__()
    finally:
        asyncio.get_running_loop().set_task_factory(None)
    async with workflow:
        await workflow.run()


@on_asyncio
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("moment", [0.5, 2, 3.5, 4.5])
async def test_p5_native_cancellations_of_the_task_in_the_block(moment: float, times: int) -> None:
    async def block() -> None:
        async with workflow:
            handlers.append(workflow.run())
            await anyio.sleep(1)
        # it waits for the run until 3, and closes until 5

    handlers: list[WorkflowHandler[Any]] = []
    store = Store()
    workflow = sharing(store.factory("it", closing=2), nap(3))
    task = asyncio.create_task(block())
    await asyncio.sleep(moment)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.1)
    await asyncio.wait([task])
    assert task.cancelled()
    assert handlers[0].is_done()
    assert shape(store.log) == ["opened it", "closed it"]
    async with workflow:
        assert await workflow.run() == "it 2"


@on_each_backend
def test_p5_the_block_is_cancelled_at_every_checkpoint(backend: str) -> None:
    async def factory() -> AsyncIterator[str]:
        await checkpoint()
        log.append("opened")
        await checkpoint()
        try:
            yield "it"
        finally:
            with anyio.CancelScope(shield=True):
                await checkpoint()
            log.append("closed")

    async def act(it: str) -> None:
        assert log[-1] == "opened"
        for _ in range(3):
            await checkpoint()

    async def block(workflow: Workflow, handlers: list[WorkflowHandler[Any]]) -> bool:
        async with workflow:
            handlers.append(workflow.run())
            await handlers[0]
            handlers.append(workflow.run())
        return True

    async def main(ticks: int) -> bool:
        async def cancel() -> None:
            for _ in range(ticks):
                await checkpoint()
            group.cancel_scope.cancel()

        workflow = sharing(factory, act)
        handlers: list[WorkflowHandler[Any]] = []
        completed: list[bool] = []
        async with anyio.create_task_group() as group:
            group.start_soon(cancel)
            completed.append(await block(workflow, handlers))
            group.cancel_scope.cancel()
        assert all(handler.is_done() for handler in handlers)
        assert log.count("opened") == log.count("closed") <= 1
        async with workflow:
            await workflow.run()
        return completed == [True]

    for ticks in range(200):
        log: list[str] = []
        if run_virtually(backend, lambda ticks=ticks: main(ticks)):
            break
    else:
        pytest.fail("the block never ended by itself")
    assert ticks > 10


# --- Nothing is pinned ------------------------------------------------------------------------------


async def test_o6_a_block_that_was_left_pins_nothing() -> None:
    class Connection:
        pass

    async def connect() -> AsyncIterator[Connection]:
        connection = Connection()
        refs.append(weakref.ref(connection))
        yield connection

    async def use() -> None:
        async with sharing(connect) as workflow:
            refs.append(weakref.ref(workflow))
            handler = workflow.run()
            refs.append(weakref.ref(handler._run))
            await handler

    refs: list[weakref.ref[Any]] = []
    await use()
    for _ in range(5):
        await checkpoint()
    gc.collect()
    assert len(refs) == 3
    assert [ref() for ref in refs] == [None] * 3


async def test_o6_an_ended_run_is_freed_while_the_block_is_open() -> None:
    store = Store()
    async with sharing(store.factory("it")) as workflow:
        handler = workflow.run()
        await handler
        run = weakref.ref(handler._run)
        del handler
        for _ in range(5):
            await checkpoint()
        gc.collect()
        assert run() is None
