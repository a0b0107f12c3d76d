"""Cancellation and Ctrl-C where it hurts: while a runtime has something to write."""

from __future__ import annotations

import pytest

from .conftest import HAS_TRIO
from .running import on_each_backend, run_script

WORKFLOW = """
    import anyio, sys
    from anyio.lowlevel import checkpoint
    from anyio_workflows import *
    from anyio_workflows.runtime._memory import MemoryData, MemoryStore

    class Answer(HumanResponseEvent):
        text: str

    class Ask(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            answer = await ctx.wait_for_event(Answer, InputRequiredEvent(), timeout=None)
            return StopEvent(result=answer.text)

    async def begin(runtime, run_id):
        run = await runtime.start(Ask, run_id=run_id)
        while not await run.open_waits():
            await checkpoint()
        return run
"""
# In processes of their own, which can be ended if they hang: nothing else ends what is shielded.

CANCELLED = """
    async def main():
        data = MemoryData()
        for checkpoints in range(12):
            with anyio.CancelScope() as scope:
                async with Runtime(MemoryStore(data), workflows=[Ask(timeout=None)]) as runtime:
                    run = await begin(runtime, f"run-{checkpoints}")
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(run.send_event, Answer(text="kept or not"))
                        for _ in range(checkpoints):
                            await checkpoint()
                        scope.cancel()
            assert scope.cancelled_caught
        async with Runtime(MemoryStore(data), workflows=[Ask(timeout=None)]) as runtime:
            for checkpoints in range(12):
                run = await runtime.get(f"run-{checkpoints}")
                if await run.open_waits():
                    await run.send_event(Answer(text="another one"))
                assert await run in ("kept or not", "another one")
                assert [record.seq async for record in run.records()] == [1, 2]
"""


@on_each_backend
def test_d8_a_block_that_is_cancelled_at_any_moment_lets_its_runs_go(backend: str) -> None:
    ran = run_script(WORKFLOW + CANCELLED + f"\n    anyio.run(main, backend={backend!r})")
    assert (ran.returncode, ran.stderr) == (0, "")


INTERRUPTED = """
    class Interrupted(MemoryStore):
        interrupt = False

        async def commit(self, changes):
            if self.interrupt:
                raise KeyboardInterrupt
            return await super().commit(changes)

    async def main():
        data = MemoryData()
        store = Interrupted(data)
        try:
            async with Runtime(store, workflows=[Ask(timeout=None)]) as runtime:
                run = await begin(runtime, "one")
                store.interrupt = True
                await run.send_event(Answer(text="lost"))
                print("the answer is not kept, so this is not reached")
        finally:
            async with Runtime(MemoryStore(data), workflows=[Ask(timeout=None)]) as runtime:
                run = await runtime.get("one")
                while not await run.open_waits():
                    await checkpoint()
                await run.send_event(Answer(text="kept"))
                print(await run)

    try:
        anyio.run(main, backend="trio")
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.skipif(not HAS_TRIO, reason="no trio, which interrupts a task; asyncio ends its loop")
def test_d8_ctrl_c_in_the_task_that_writes_lets_the_runs_go() -> None:
    ran = run_script(WORKFLOW + INTERRUPTED)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["kept", "interrupted"]
