"""Times that survive a process (D7), the key of an execution (D5), and runs that sleep in the store."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import WorkflowRuntimeError, WorkflowTimeoutError
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from anyio_workflows.runtime import Runtime
from anyio_workflows.runtime._durable_manager import DurableRunManager
from anyio_workflows.runtime._memory import MemoryData, MemoryStore

from .running import on_each_backend, run_virtually
from .samples import Answer, Question

DAY = 86_400.0


class World:
    """What outlives a process: the data, a wall clock that goes on with virtual time, and a diary."""

    def __init__(self, backend: str, make_workflow: Callable[[], Workflow[Any]], **options: Any):
        self.backend, self.make_workflow, self.options = backend, make_workflow, options
        self.data = MemoryData()
        self.wall = 1_000_000_000.0
        self.said: list[Any] = []

    def live(self, body: Callable[[Runtime], Awaitable[Any]], then: float = 0.0) -> Any:
        """Let a process live as long as `body` takes, and pass `then` seconds until the next one."""

        async def main() -> Any:
            started, wall = anyio.current_time(), self.wall

            def now() -> float:
                self.wall = wall + anyio.current_time() - started
                return self.wall

            store = MemoryStore(self.data, wall=now)
            async with Runtime(store, workflows=[self.make_workflow()], **self.options) as runtime:
                try:
                    return await body(runtime)
                finally:
                    now()

        result = run_virtually(self.backend, main)
        self.wall += then
        return result


def manager_of(runtime: Runtime) -> DurableRunManager:
    assert runtime._manager is not None
    return runtime._manager


class Asks(Workflow):
    """Asks, with a limit of a day, in a run with a limit of ten."""

    def __init__(self, said: list[Any]) -> None:
        super().__init__(timeout=10 * DAY, workflow_name="asks")
        self.said = said

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.said.append(ctx.idempotency_key)
        try:
            answer = await ctx.wait_for_event(
                Answer, waiter_event=Question(text="well?"), timeout=ev.get("limit", DAY)
            )
        except TimeoutError:
            return StopEvent(result="nobody answered")
        return StopEvent(result=answer.text)


async def until_it_waits(run: Any) -> None:
    async for event in run.stream_events():
        if isinstance(event, Question):
            break


@on_each_backend
def test_d5_an_execution_has_one_key_in_all_processes(backend: str) -> None:
    said: list[Any] = []
    world = World(backend, lambda: Asks(said))

    async def begin(runtime: Runtime) -> None:
        number = len(said)
        await until_it_waits(await runtime.start("asks", run_id="r"))
        while len(said) == number:  # the question may be that of the process before
            await checkpoint()

    async def end(runtime: Runtime) -> Any:
        run = await runtime.get("r")
        await run.send_event(Answer(text="yes"))
        return await run

    world.live(begin)
    world.live(begin)
    assert world.live(end) == "yes"
    assert said == ["r:1", "r:1", "r:1"]


def test_d5_only_a_step_has_a_key() -> None:
    with pytest.raises(WorkflowRuntimeError, match="only a step can ask for its idempotency key"):
        _ = Context(Asks([])).idempotency_key


@on_each_backend
@pytest.mark.parametrize("idle_after", [None, 60.0])
@pytest.mark.parametrize(
    ("down", "left"), [(0.0, DAY * 3 / 4), (DAY / 2, DAY / 4), (2 * DAY, 0.0), (-DAY, DAY)]
)
def test_d7_a_wait_times_out_after_what_was_left(
    backend: str, idle_after: float | None, down: float, left: float
) -> None:
    """Also if the wall clock was set back meanwhile: then never after more than was asked for."""
    world = World(backend, lambda: Asks([]), idle_after=idle_after)

    async def begin(runtime: Runtime) -> None:
        await until_it_waits(await runtime.start("asks", run_id="r"))
        await anyio.sleep(DAY / 4)

    async def end(runtime: Runtime) -> float:
        started = anyio.current_time()
        assert await (await runtime.get("r")) == "nobody answered"
        return anyio.current_time() - started

    world.live(begin, then=down)
    assert world.live(end) == pytest.approx(left, abs=1)


@on_each_backend
@pytest.mark.parametrize("idle_after", [None, 60.0])
def test_d7_the_deadline_survives(backend: str, idle_after: float | None) -> None:
    world = World(backend, lambda: Asks([]), idle_after=idle_after)

    async def begin(runtime: Runtime) -> None:
        await until_it_waits(await runtime.start("asks", run_id="r", limit=20 * DAY))
        await anyio.sleep(2 * DAY)

    async def end(runtime: Runtime) -> float:
        started = anyio.current_time()
        run = await runtime.get("r")
        with pytest.raises(WorkflowTimeoutError, match="864000 s") as caught:
            await run
        assert caught.value.active_steps == ["ask"]
        assert run.info.status == "timed_out"
        return anyio.current_time() - started

    world.live(begin, then=3 * DAY)
    assert world.live(end) == pytest.approx(5 * DAY, abs=1)


class Slow(Workflow):
    """Takes ten seconds of the fifteen it has, one run at a time."""

    def __init__(self) -> None:
        super().__init__(timeout=15, num_concurrent_runs=1)

    @step
    async def sleep(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep(10)
        return StopEvent(result="done")


@on_each_backend
def test_d7_r7_the_time_in_the_queue_does_not_count(backend: str) -> None:
    world = World(backend, Slow)

    async def begin(runtime: Runtime) -> None:
        for run_id in ("a", "b"):
            await runtime.start("slow", run_id=run_id)
        await anyio.sleep(5)
        statuses = {run_id: world.data.runs[run_id].status for run_id in ("a", "b")}
        assert statuses == {"a": "running", "b": "queued"}
        assert world.data.runs["b"].deadline is None
        deadline = world.data.runs["a"].deadline
        assert deadline is not None
        assert deadline - world.wall == pytest.approx(15, abs=5.1)

    async def end(runtime: Runtime) -> None:
        with pytest.raises(WorkflowTimeoutError):
            await (await runtime.get("a"))
        assert await (await runtime.get("b")) == "done"

    world.live(begin, then=60)
    world.live(end)


class Stumbles(Workflow):
    """Fails once, and is tried again an hour later."""

    failed = False

    def __init__(self) -> None:
        super().__init__(timeout=None)

    @step(retry_policy=retry_policy(wait=wait_fixed(3600), stop=stop_after_attempt(3)))
    async def stumble(self, ctx: Context, ev: StartEvent) -> StopEvent:
        info = ctx.retry_info()
        if info.retry_number == 0:
            ctx.write_event_to_stream(Event(text="failed"))
            raise ValueError("first")
        return StopEvent(result=(info.retry_number, str(info.last_exception)))


@on_each_backend
@pytest.mark.parametrize(("down", "left"), [(600.0, 2000.0), (7200.0, 0.0), (-DAY, 3600.0)])
def test_d7_a_retry_comes_after_what_was_left(backend: str, down: float, left: float) -> None:
    world = World(backend, Stumbles)

    async def begin(runtime: Runtime) -> None:
        run = await runtime.start("stumbles", run_id="r")
        async for _ in run.records():
            break
        await anyio.sleep(1000)

    async def end(runtime: Runtime) -> float:
        started = anyio.current_time()
        assert await (await runtime.get("r")) == (1, "first")
        return anyio.current_time() - started

    world.live(begin, then=down)
    assert world.live(end) == pytest.approx(left, abs=1)


# --- Sleep ------------------------------------------------------------------------------------------


@on_each_backend
def test_a_run_that_only_waits_is_released_and_brought_back_by_an_answer(backend: str) -> None:
    said: list[Any] = []
    world = World(backend, lambda: Asks(said), idle_after=60)

    async def body(runtime: Runtime) -> None:
        run = await runtime.start("asks", run_id="r")
        reader = aiter(run.stream_events())
        assert await anext(reader) == Question(text="well?")
        kept = manager_of(runtime).runs.by_id["r"]
        assert kept.live is not None
        engine = weakref.ref(kept.live.run)
        await anyio.sleep(30)
        assert engine() is not None
        await anyio.sleep(60)
        gc.collect()
        assert engine() is None, "the run is still in memory"
        stored = world.data.runs["r"]
        assert (stored.asleep_since is not None, stored.owner, stored.status) == (
            True,
            None,
            "waiting",
        )
        assert run.info.status == "waiting"
        assert [wait.step for wait in await run.open_waits()] == ["ask"]
        assert [info.id for info in (await runtime.runs(waiting_for=Answer)).runs] == ["r"]
        assert said == ["r:1"]
        assert await run.send_event(Answer(text="yes")) == ("ask",)
        assert await run == "yes"
        assert [event async for event in reader] == [StopEvent(result="yes")]
        assert said == ["r:1", "r:1"]

    world.live(body)


@on_each_backend
def test_a_run_that_sleeps_can_be_cancelled(backend: str) -> None:
    world = World(backend, lambda: Asks([]), idle_after=60)

    async def body(runtime: Runtime) -> None:
        run = await runtime.start("asks", run_id="r")
        await anyio.sleep(100)
        assert world.data.runs["r"].asleep_since is not None
        await run.cancel()
        assert run.info.status == "cancelled"

    world.live(body)


@on_each_backend
@pytest.mark.parametrize("moment", [59.99, 60.0, 60.01, 60.02])
def test_an_answer_is_not_lost_while_a_run_falls_asleep(backend: str, moment: float) -> None:
    world = World(backend, lambda: Asks([]), idle_after=60)

    async def body(runtime: Runtime) -> None:
        run = await runtime.start("asks", run_id="r")
        await until_it_waits(run)
        await anyio.sleep(moment)
        assert await run.send_event(Answer(text="yes")) == ("ask",)
        assert await run == "yes"

    world.live(body)


class AsksByReturning(Workflow):
    """Has nothing pending while its question is open."""

    @step
    async def ask(self, ev: StartEvent) -> Question:
        return Question(text="well?")

    @step
    async def end(self, ev: Answer) -> StopEvent:
        return StopEvent(result=ev.text)


@on_each_backend
def test_a_run_that_asked_by_returning_a_question_sleeps_too(backend: str) -> None:
    world = World(backend, lambda: AsksByReturning(timeout=None), idle_after=60)

    async def body(runtime: Runtime) -> None:
        run = await runtime.start("asks_by_returning", run_id="r")
        await anyio.sleep(100)
        assert world.data.runs["r"].asleep_since is not None
        assert await run.send_event(Answer(text="yes")) == ("end",)
        assert await run == "yes"
        assert [type(event) for event in [e async for e in run.stream_events()]] == [
            Question,
            StopEvent,
        ]

    world.live(body)


@on_each_backend
def test_a_run_with_a_retry_ahead_stays(backend: str) -> None:
    world = World(backend, Stumbles, idle_after=60)

    async def body(runtime: Runtime) -> None:
        run = await runtime.start("stumbles", run_id="r")
        await anyio.sleep(200)
        assert world.data.runs["r"].asleep_since is None
        assert await run == (1, "first")

    world.live(body)
