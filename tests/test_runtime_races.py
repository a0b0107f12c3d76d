"""What happens to a run in two processes, or in two tasks, at the same moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import Context, Runtime, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import UnknownRunError, WorkflowRuntimeError
from anyio_workflows.runtime import MemoryData, MemoryStore, RunHandle

from .samples import Answer, OneStep, ProviderError, Question
from .test_runtime_shared import Talks, failing, finish, patience, processes, waiting

pytestmark = pytest.mark.anyio


def a_store(data: MemoryData) -> MemoryStore:
    return MemoryStore(data, poll=0.05)


Act = Callable[..., Awaitable[Any]]


class HeldStore(MemoryStore):
    """Between a call and its result, something else may happen: as there are threads, and other processes.

    Attributes:
        around: What is called instead of a method, with that and its arguments, by the name of the method.
    """

    def __init__(self, data: MemoryData) -> None:
        super().__init__(data, poll=0.05)
        self.around: dict[str, Act] = {}

    async def _call(self, act: Act, *args: Any) -> Any:
        around = self.around.get(act.__name__)
        return await (act(*args) if around is None else around(act, *args))

    async def find_run(self, *args: Any) -> Any:
        return await self._call(super().find_run, *args)

    async def events(self, *args: Any) -> Any:
        return await self._call(super().events, *args)

    async def claim(self, *args: Any) -> Any:
        return await self._call(super().claim, *args)

    async def requeue(self, *args: Any) -> Any:
        return await self._call(super().requeue, *args)

    async def delete(self, *args: Any) -> Any:
        return await self._call(super().delete, *args)


async def one_thread(act: Act, *args: Any) -> Any:
    """Take long, and do not end early: a caller that is cancelled waits for its thread."""
    with anyio.CancelScope(shield=True):
        found = await act(*args)
        await anyio.sleep(1)
    return found


async def none(act: Act, *args: Any) -> list[Any]:
    return []


async def test_k4_a_process_with_a_handle_of_a_removed_run_takes_over_another_run_of_its_id() -> (
    None
):
    data = MemoryData()
    workflows = [OneStep(failing), Talks(timeout=None)]
    async with Runtime(a_store(data), workflows=workflows) as there:
        async with Runtime(a_store(data), workflows=workflows) as here:
            await here.start(OneStep, "one")
            old = await there.get("one")
            with pytest.raises(Exception, match="down"):
                await old
            await here.delete("one")
            await waiting(await here.start(Talks, "one"))
        await anyio.sleep(2)
        await finish(there, "one")
        with pytest.raises(UnknownRunError):
            await old


class Fragile(Workflow):
    """Fails at the first answer, and is answered again after that."""

    tries = 0

    @step
    async def begin(self, ev: StartEvent) -> Question:
        return Question(text="well?", n=1)

    @step
    async def take(self, ctx: Context, ev: Answer) -> StopEvent:
        self.tries += 1
        if self.tries == 1:
            raise ProviderError("down")
        await anyio.sleep(10)
        return StopEvent(result=ev.text)


@pytest.mark.parametrize("what", ["an event", "a cancellation"])
async def test_x7_what_came_too_late_for_the_end_of_a_run_is_not_done_after_a_retry(
    what: str,
) -> None:
    """Whoever sent it was told that the run has ended."""
    data = MemoryData()
    async with processes(Fragile(timeout=None), data=data) as (here, there):
        run = await here.start(Fragile, "one")
        async for _ in run.stream_events():
            break
        far = await there.get("one")
        told: list[str] = []

        async def send() -> None:
            if what == "a cancellation":
                await far.cancel()
                told.append("ended")
                return
            with pytest.raises(WorkflowRuntimeError, match="the run has ended"):
                await far.send_event(Answer(text="late"))
            told.append("ended")

        with patience():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                while not data.mail:
                    await checkpoint()
                await run.send_event(Answer(text="early"))
            assert told == ["ended"]
            again = await there.retry("one")
            assert await again == "early"
        assert [type(event).__name__ async for event in again.stream_events()][-2:] == [
            "WorkflowFailedEvent",
            "StopEvent",
        ]


async def failed_once(here: Runtime) -> None:
    """Have a run that failed, and that comes to its end when it is tried again."""
    run = await here.start(Fragile, "one")
    async for _ in run.stream_events():
        break
    await run.send_event(Answer(text="early"))
    with pytest.raises(ProviderError):
        await run


@pytest.mark.parametrize("status", ["failed", "stuck"])
async def test_x7_a_sender_that_looks_only_after_the_retry_is_refused_too(status: str) -> None:
    data, fragile = MemoryData(), Fragile(timeout=None)
    store = HeldStore(data)
    there = Runtime(store, workflows=[fragile])
    async with there, Runtime(a_store(data), workflows=[fragile]) as here:
        run = await here.start(Fragile, "one")
        async for _ in run.stream_events():
            break
        far = await there.get("one")
        retried = anyio.Event()

        async def look_later(act: Act, *args: Any) -> Any:
            await retried.wait()
            return await act(*args)

        store.around["find_run"] = look_later
        told: list[str] = []

        async def send() -> None:
            with pytest.raises(WorkflowRuntimeError) as caught:
                await far.send_event(Answer(text="late"))
            told.append(str(caught.value))

        with patience():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                while not data.mail:
                    await checkpoint()
                await run.send_event(Answer(text="early"))
                with pytest.raises(ProviderError):
                    await run
                if status == "stuck":
                    data.runs["one"] = attrs.evolve(data.runs["one"], status="stuck", ended=None)
                again = await here.retry("one")
                retried.set()
            assert await again == "early"
        assert told[0].startswith(
            "Answer cannot be sent: the run has ended"
            if status == "failed"
            else "what was sent cannot be taken: the run is stuck"
        )


async def test_x7_a_task_that_finds_a_run_while_it_is_retried_does_not_bring_its_old_end_back() -> (
    None
):
    data = MemoryData()
    store, fragile = HeldStore(data), Fragile(timeout=None)
    there = Runtime(store, workflows=[fragile])
    store.around["claim"] = none  # the other process executes it
    async with there, Runtime(a_store(data), workflows=[fragile]) as here:
        await failed_once(here)
        reading, is_read = anyio.Lock(), anyio.Event()

        async def read(act: Act, *args: Any) -> Any:
            async with reading:
                found = await act(*args)
                is_read.set()
                for _ in range(10):
                    await checkpoint()
                return found

        async def retry_meanwhile(act: Act, *args: Any) -> Any:
            store.around["find_run"] = read
            tasks.start_soon(there.get, "one")
            await is_read.wait()
            return await act(*args)

        store.around["requeue"] = retry_meanwhile
        with patience():
            async with anyio.create_task_group() as tasks:
                again = await there.retry("one")
                assert again.info.status in ("queued", "running")
                assert await again == "early"


async def test_d3_a_runtime_is_left_while_it_reads_what_another_process_has_written() -> None:
    data = MemoryData()
    store, talks = HeldStore(data), Talks(timeout=None)
    async with Runtime(a_store(data), workflows=[talks]) as here:
        run = await here.start(Talks, "one")
        await waiting(run)
        async with Runtime(store, workflows=[talks]) as there:
            far = await there.get("one")
            began = anyio.Event()

            async def read(act: Act, *args: Any) -> Any:
                began.set()
                return await one_thread(act, *args)

            store.around["events"] = read
            await run.send_event(Answer(text="a"))
            await began.wait()
        assert far.info.last_seq == 1
        await finish_second(run)


async def test_k2_a_run_of_another_process_has_ended_when_its_status_says_so() -> None:
    data = MemoryData()
    store, talks = HeldStore(data), Talks(timeout=None)
    there = Runtime(store, workflows=[talks])
    async with there, Runtime(a_store(data), workflows=[talks]) as here:
        run = await here.start(Talks, "one")
        far = await there.get("one")
        store.around["events"] = one_thread
        await waiting(run)
        await run.send_event(Answer(text="a"))
        await finish_second(run)
        for _ in range(100):
            info = far.info
            assert (info.ended is None) == (info.status != "completed")
            await anyio.sleep(0.1)
        assert info == run.info


async def finish_second(run: RunHandle[Any]) -> None:
    with patience():
        await waiting(run)
        await run.send_event(Answer(text="b"))
        assert await run == ["a", "b"]


async def test_k4_another_run_of_an_id_is_followed_that_was_found_while_the_first_was_removed() -> (
    None
):
    data = MemoryData()
    store, workflows = HeldStore(data), [OneStep(failing), Talks(timeout=None)]
    there = Runtime(store, workflows=workflows)
    async with there, Runtime(a_store(data), workflows=workflows) as here:
        old = await here.start(OneStep, "one")
        with pytest.raises(ProviderError):
            await old
        found: list[RunHandle[Any]] = []

        async def start_anew(act: Act, *args: Any) -> Any:
            is_removed = await act(*args)
            await waiting(await here.start(Talks, "one"))
            found.append(await there.get("one"))
            return is_removed

        store.around["delete"] = start_anew
        await there.delete("one")
        await finish(here, "one")
        with patience():
            assert await found[0] == ["a", "b"]


@pytest.mark.parametrize("anew", [False, True])
async def test_k4_a_run_that_is_removed_while_its_end_is_read_is_unknown(anew: bool) -> None:
    """Also if there is an event of its number again: of another run."""
    data = MemoryData()
    store, workflows = HeldStore(data), [OneStep(failing), Talks(timeout=None)]
    there = Runtime(store, workflows=workflows)
    async with there, Runtime(a_store(data), workflows=workflows) as here:
        old = await here.start(OneStep, "one")
        with pytest.raises(ProviderError):
            await old

        async def remove_before(act: Act, *args: Any) -> Any:
            del store.around["events"]
            await here.delete("one")
            if anew:
                await waiting(await here.start(Talks, "one"))
            return await act(*args)

        store.around["events"] = remove_before
        with pytest.raises(UnknownRunError):
            await there.get("one")
        if anew:
            await finish(there, "one")
