"""What runs under a runtime do wherever they are kept: in memory alone, or in a store too."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from anyio_workflows import (
    Context,
    Runtime,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowFailedEvent,
    step,
)
from anyio_workflows.errors import (
    UnknownRunError,
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowStalledError,
)
from anyio_workflows.events import StepStateChanged
from anyio_workflows.runtime import RunHandle
from anyio_workflows.runtime._memory import MemoryData, MemoryStore

from .samples import Answer, Asks, Item, Loop, Note, ProviderError, Question

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("stored", [False, True], ids=["memory", "store"]),
]


class Purchase(Workflow[str]):
    """Asks, and fails with the answer until `broken` is false."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.calls: list[str] = []
        self.broken = True

    @step
    async def order(self, ctx: Context, ev: StartEvent) -> Item:
        self.calls.append("order")
        ctx.write_event_to_stream(Note(text="ordered"))
        return Item(n=1)

    @step
    async def pay(self, ctx: Context, ev: Item) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, Question(text="card?"), timeout=None)
        self.calls.append("pay")
        if self.broken:
            raise ProviderError("declined")
        return StopEvent(result=answer.text)


class Stalls(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent | None:
        return None


def runtime_of(stored: bool, *workflows: Workflow[Any], **options: Any) -> Runtime:
    database = MemoryStore(MemoryData()) if stored else None
    return Runtime(database, workflows=workflows, **options)


async def numbers(run: RunHandle[Any], after: int = 0) -> list[int]:
    return [record.seq async for record in run.records(after) if hasattr(record, "seq")]


async def test_k1_one_run_is_started_when_many_ask_for_an_id_at_once(stored: bool) -> None:
    started: list[RunHandle[Any]] = []
    async with runtime_of(stored, Loop(), Asks()) as runtime:

        async def start() -> None:
            started.append(await runtime.start(Loop, run_id="one"))

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(start)
        assert len(set(started)) == 1
        assert [await run for run in started] == ["over"] * 10
        assert await (await runtime.start(Loop, run_id="one")) == "over"
        with pytest.raises(
            WorkflowRuntimeError, match="there is a run 'one' already, of workflow loop"
        ):
            await runtime.start(Asks, run_id="one")
        assert await numbers(started[0]) == [1, 2, 3, 4]


async def test_k2_the_list_and_the_handle_say_the_same(stored: bool) -> None:
    async with runtime_of(stored, Loop(), Asks(timeout=None), Stalls()) as runtime:
        runs = {}
        for name, workflow in (("l", Loop), ("a", Asks), ("s", Stalls), ("c", Asks)):
            runs[name] = await runtime.start(workflow, name, metadata={"of": name})
            await anyio.sleep(1)
        await runs["c"].cancel()
        await anyio.sleep(1)
        page = await runtime.runs()
        assert [info.id for info in page.runs] == ["c", "s", "a", "l"]
        assert [info.status for info in page.runs] == [
            "cancelled",
            "failed",
            "waiting",
            "completed",
        ]
        for info in page.runs:
            assert info == (await runtime.get(info.id)).info == runs[info.id].info
        assert [(await runtime.runs(limit=1)).runs[0].id] == ["c"]
        assert [info.id for info in (await runtime.runs(waiting_for=Answer)).runs] == ["a"]
        assert [info.id for info in (await runtime.runs(status="failed")).runs] == ["s"]
        assert [info.id for info in (await runtime.runs(workflow="loop")).runs] == ["l"]


async def test_k5_a_failed_run_continues_with_the_failed_step_in_the_same_log(stored: bool) -> None:
    purchase = Purchase()
    async with runtime_of(stored, purchase) as runtime:
        run = await runtime.start(Purchase, "p", metadata={"n": 1})
        await anyio.sleep(1)
        before = run.info
        await run.send_event(Answer(text="4242"))
        for n in range(3):
            with pytest.raises(ProviderError):
                await run
            assert await numbers(run) == list(range(1, 4 + n))
            with pytest.raises(ProviderError):
                await (await runtime.get("p"))
            if n == 2:
                purchase.broken = False
            assert await runtime.retry("p") == run
            assert run.info.status in ("queued", "running")
            assert (run.info.ended, run.info.error) == (None, None)
        assert await run == "4242"
        assert purchase.calls == ["order", *["pay"] * 4]
        kinds = [type(event) async for event in run.stream_events()]
        assert kinds == [Note, Question, *[WorkflowFailedEvent] * 3, StopEvent]
        assert await numbers(run, 4) == [5, 6]
        info = run.info
        assert (info.status, info.created, info.metadata) == ("completed", before.created, {"n": 1})
        with pytest.raises(WorkflowRuntimeError, match="run p cannot be retried: it was completed"):
            await runtime.retry("p")


async def test_k5_a_cancelled_run_continues_with_what_it_left(stored: bool) -> None:
    purchase = Purchase()
    purchase.broken = False
    async with runtime_of(stored, purchase) as runtime:
        run = await runtime.start(Purchase, "p")
        await anyio.sleep(1)
        await run.cancel()
        with pytest.raises(WorkflowCancelledByUser):
            await run
        assert await run.open_waits() == []
        with pytest.raises(WorkflowRuntimeError, match="cannot be sent: the run has ended"):
            await run.send_event(Answer(text="x"))
        await runtime.retry("p")
        await anyio.sleep(1)
        [wait] = await run.open_waits()
        assert await run.send_event(Answer(text="late"), wait=wait.id) == ("pay",)
        assert await run == "late"
        assert purchase.calls == ["order", "pay"]


async def test_k5_a_run_with_nothing_to_repeat_cannot_be_retried(stored: bool) -> None:
    async with runtime_of(stored, Stalls(), Asks(timeout=None)) as runtime:
        run = await runtime.start(Stalls, "s")
        with pytest.raises(WorkflowStalledError):
            await run
        with pytest.raises(
            WorkflowRuntimeError, match="it has nothing to repeat, as no step failed"
        ):
            await runtime.retry("s")
        assert run.info.status == "failed"
        await runtime.start(Asks, "a")
        await anyio.sleep(1)
        with pytest.raises(WorkflowRuntimeError, match="it has not ended, it is waiting"):
            await runtime.retry("a")
        with pytest.raises(UnknownRunError):
            await runtime.retry("nope")


async def test_s4_internal_events_that_were_asked_for_are_written_in_each_try(stored: bool) -> None:
    purchase = Purchase()
    async with runtime_of(stored, purchase) as runtime:
        run = await runtime.start(Purchase, "p")
        await anyio.sleep(1)
        reader = run.records(internal=True)
        await run.send_event(Answer(text="4242"))
        with pytest.raises(ProviderError):
            await run
        purchase.broken = False
        await runtime.retry("p")
        await run
        states = [
            record.event.outcome
            async for record in reader
            if hasattr(record, "event") and isinstance(record.event, StepStateChanged)
        ]
        assert [outcome for outcome in states if outcome is not None] == ["failed", "returned"]


async def test_k4_an_ended_run_is_deleted_at_once_and_its_id_is_free_again(stored: bool) -> None:
    async with runtime_of(stored, Loop(), Asks(timeout=None)) as runtime:
        run = await runtime.start(Loop, "l")
        assert await run == "over"
        await runtime.start(Asks, "a")
        await anyio.sleep(1)
        with pytest.raises(WorkflowRuntimeError, match="run a cannot be deleted, it is waiting"):
            await runtime.delete("a")
        await runtime.delete("l")
        for call in (runtime.delete, runtime.get):
            with pytest.raises(UnknownRunError):
                await call("l")
        with pytest.raises(UnknownRunError):
            _ = run.info
        again = await runtime.start(Loop, "l", rounds=1)
        assert await again == "over"
        assert await numbers(again) == [1, 2]
