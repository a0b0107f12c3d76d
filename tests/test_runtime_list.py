"""The list of the runs of a runtime, how long they are kept, and how they are continued."""

from __future__ import annotations

import gc
import math
import weakref
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    Runtime,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import UnknownRunError, WorkflowRuntimeError, WorkflowStalledError
from anyio_workflows.events import StepStateChanged
from anyio_workflows.instrument import EventRecord
from anyio_workflows.runtime import RunHandle, _kept

from .running import texts
from .samples import Answer, Asks, Ends, Flaky, Item, Job, Loop, Mail, Note, OneStep, ProviderError

pytestmark = pytest.mark.anyio


async def ids(runtime: Runtime, **which: Any) -> list[str]:
    """Return the ids of the runs of all pages."""
    found: list[str] = []
    before = None
    while True:
        page = await runtime.runs(before=before, **which)
        found += [info.id for info in page.runs]
        if (before := page.next) is None:
            return found


async def records(run: RunHandle[Any], after: int = 0) -> list[Any]:
    return [record async for record in run.records(after)]


# --- The list --------------------------------------------------------------------------------------


class Shout(Answer):
    pass


class AsksForSubclass(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.wait_for_event(Shout)
        return StopEvent()


async def test_runs_are_listed_newest_first_by_status_workflow_and_what_they_wait_for() -> None:
    async with Runtime(workflows=[Asks(), Ends(), AsksForSubclass()]) as runtime:
        await runtime.start(Asks, "a1")
        await runtime.start(Ends, "e1", how="return")
        await runtime.start(AsksForSubclass, "s1")
        await runtime.start(Ends, "e2", how="raise")
        await runtime.start(Asks, "a2")
        await anyio.sleep(1)
        for limit in (1, 2, 3, 50):
            assert await ids(runtime, limit=limit) == ["a2", "e2", "s1", "e1", "a1"]
        assert await ids(runtime, status="waiting") == ["a2", "s1", "a1"]
        assert await ids(runtime, status="completed") == ["e1"]
        assert await ids(runtime, status="failed", workflow=Ends) == ["e2"]
        assert await ids(runtime, status="stuck") == []
        assert await ids(runtime, workflow="asks", limit=1) == ["a2", "a1"]
        assert await ids(runtime, waiting_for=Answer) == ["a2", "s1", "a1"]
        assert await ids(runtime, waiting_for=HumanResponseEvent, workflow="asks") == ["a2", "a1"]
        assert await ids(runtime, waiting_for=Shout) == ["s1"]
        assert await ids(runtime, waiting_for=Mail) == []
        await (await runtime.get("a2")).send_event(Answer())
        assert await ids(runtime, waiting_for=Answer) == ["s1", "a1"]
        page = await runtime.runs(limit=5)
        assert (len(page.runs), page.next) == (5, None)
        assert page.runs[1] == (await runtime.get("e2")).info


async def test_a_page_begins_behind_the_one_before_whatever_was_started_or_removed() -> None:
    async with Runtime(workflows=[Loop()]) as runtime:
        for n in range(6):
            await (await runtime.start(Loop, f"r{n}"))
        page = await runtime.runs(limit=2)
        assert [info.id for info in page.runs] == ["r5", "r4"]
        await runtime.start(Loop, "r6")
        await runtime.delete("r4")
        await runtime.delete("r3")
        page = await runtime.runs(limit=2, before=page.next)
        assert [info.id for info in page.runs] == ["r2", "r1"]


async def test_r9_a_wall_clock_that_is_set_back_does_not_change_the_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Runtime(workflows=[Loop()]) as runtime:
        await runtime.start(Loop, "first")
        past = datetime.now(UTC) - timedelta(days=1)
        monkeypatch.setattr(_kept, "utc_now", lambda: past)
        for name in ("second", "third"):
            await runtime.start(Loop, name)
        assert await ids(runtime, limit=1) == ["third", "second", "first"]
        created = [info.created for info in (await runtime.runs()).runs]
        assert created == sorted(set(created), reverse=True)


# --- How long runs are kept ------------------------------------------------------------------------


async def test_the_oldest_ended_runs_are_removed_when_there_are_too_many() -> None:
    async with Runtime(workflows=[Loop(), Job()], keep_ended=2) as runtime:
        job = await runtime.start(Job, "job")
        first = await runtime.start(Loop, "l1")
        assert await first == "over"
        for name in ("l2", "l3"):
            await (await runtime.start(Loop, name))
        assert await ids(runtime) == ["l3", "l2", "job"]
        with pytest.raises(UnknownRunError, match="there is no run 'l1'"):
            await runtime.get("l1")
        for use in (first.records, first.stream_events, first.statistics, lambda: first.info):
            with pytest.raises(UnknownRunError):
                use()
        for call in (
            lambda: first,
            first.cancel,
            first.open_waits,
            lambda: first.send_event(Note()),
        ):
            with pytest.raises(UnknownRunError):
                await call()
        again = await runtime.start(Loop, "l1", rounds=1)
        await again
        assert again.info.last_seq == 2
        assert await job == "done"
        assert runtime.statistics().removed == 3


async def test_ended_runs_are_removed_when_their_time_is_over() -> None:
    ends = Ends(timeout=7000)
    async with Runtime(workflows=[Loop(), ends], keep_ended_for=3600) as runtime:
        waits = await runtime.start(Ends, "waits", how="hang")
        run = await runtime.start(Loop, "l1")
        await run
        await anyio.sleep(1800)
        await (await runtime.start(Loop, "l2"))
        await anyio.sleep(1799)
        assert run.info.status == "completed"
        await anyio.sleep(1)
        with pytest.raises(UnknownRunError):
            _ = run.info
        assert await ids(runtime) == ["l2", "waits"]
        await anyio.sleep(3600)
        assert await ids(runtime) == ["waits"]
        assert runtime.statistics().runs == {"timed_out": 1}
        await anyio.sleep(3600)
        assert (await runtime.runs()).runs == []
        with pytest.raises(UnknownRunError):
            await waits


async def test_by_default_ended_runs_are_kept_for_a_day() -> None:
    async with Runtime(workflows=[Loop()]) as runtime:
        run = await runtime.start(Loop)
        await run
        await anyio.sleep(24 * 3600 - 1)
        assert await run == "over"
        await anyio.sleep(2)
        with pytest.raises(UnknownRunError):
            await run


async def test_those_who_wait_for_a_run_that_is_not_kept_are_told_of_its_end() -> None:
    async with Runtime(workflows=[Job()], keep_ended=0) as runtime:
        run = await runtime.start(Job)
        reader = run.records()
        assert await run == "done"
        assert [record.event.result async for record in reader] == ["done"]
        with pytest.raises(UnknownRunError):
            await run


async def test_a_removed_run_holds_nothing_even_if_its_handle_is_kept() -> None:
    class Large(Event):
        pass

    found: list[weakref.ref[Event]] = []

    async def act(ctx: Context) -> Event:
        event, result = Large(text="x"), Large()
        found.extend([weakref.ref(event), weakref.ref(result)])
        ctx.write_event_to_stream(event)
        return result

    async with Runtime(workflows=[OneStep(act)]) as runtime:
        run = await runtime.start(OneStep)
        await run
        await anyio.sleep(1)
        assert all(ref() is not None for ref in found)
        await runtime.delete(run.id)
        gc.collect()
        assert [ref() for ref in found] == [None, None]
        assert "removed" in repr(run)


async def test_only_ended_runs_can_be_deleted() -> None:
    async with Runtime(workflows=[Job()]) as runtime:
        run = await runtime.start(Job, "one")
        await anyio.sleep(1)
        what = r"run one cannot be deleted, it is running; 'await run\.cancel\(\)' ends it"
        with pytest.raises(WorkflowRuntimeError, match=what):
            await runtime.delete("one")
        await run.cancel()
        await runtime.delete("one")
        with pytest.raises(UnknownRunError):
            await runtime.delete("one")
        assert await ids(runtime) == []


# --- Retrying --------------------------------------------------------------------------------------


class Purchase(Workflow[str]):
    """Three steps; the second one asks, and fails until it is told not to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls: list[str] = []
        self.broken = True

    @step
    async def order(self, ctx: Context, ev: StartEvent) -> Item:
        self.calls.append("order")
        ctx.write_event_to_stream(Note(text="ordered"))
        return Item(n=1)

    @step
    async def pay(self, ctx: Context, ev: Item) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, Note(text="card?"))
        self.calls.append("pay")
        if self.broken:
            raise ProviderError("declined")
        return StopEvent(result=answer.text)


async def test_x7_a_failed_run_continues_with_the_failed_step_in_the_same_log() -> None:
    purchase = Purchase()
    async with Runtime(workflows=[purchase]) as runtime:
        run = await runtime.start(Purchase, "p", metadata={"n": 1})
        created = run.info.created
        await anyio.sleep(1)
        await run.send_event(Answer(text="4242"))
        with pytest.raises(ProviderError):
            await run
        first = await records(run)
        assert [record.seq for record in first] == [1, 2, 3]
        purchase.broken = False
        assert await runtime.retry("p") == run
        assert run.info.status == "queued"
        assert (run.info.ended, run.info.error) == (None, None)
        assert await run == "4242"
        assert purchase.calls == ["order", "pay", "pay"]
        found = await records(run)
        assert found[:3] == first
        assert [record.seq for record in found] == [1, 2, 3, 4]
        assert isinstance(found[2].event, WorkflowFailedEvent)
        assert await records(run, 3) == found[3:]
        info = run.info
        assert (info.status, info.created, info.metadata) == ("completed", created, {"n": 1})
        assert run.statistics().steps["pay"].done == 1
        with pytest.raises(WorkflowRuntimeError, match="run p cannot be retried: it was completed"):
            await runtime.retry("p")


async def test_x7_a_run_may_be_retried_again_and_again() -> None:
    purchase = Purchase()
    async with Runtime(workflows=[purchase]) as runtime:
        run = await runtime.start(Purchase, "p")
        await anyio.sleep(1)
        await run.send_event(Answer(text="4242"))
        for n in range(5):
            with pytest.raises(ProviderError):
                await run
            assert run.info.last_seq == 3 + n
            await runtime.retry("p")
            with pytest.raises(
                WorkflowRuntimeError, match="run p cannot be retried: it has not ended"
            ):
                await runtime.retry("p")
        purchase.broken = False
        assert await run == "4242"
        assert [record.seq for record in await records(run)] == list(range(1, 9))


@pytest.mark.parametrize("how", ["timed_out", "cancelled"])
async def test_x7_a_run_that_timed_out_or_was_cancelled_continues(how: str) -> None:
    purchase = Purchase(timeout=5)
    purchase.broken = False
    async with Runtime(workflows=[purchase]) as runtime:
        run = await runtime.start(Purchase)
        await anyio.sleep(1 if how == "cancelled" else 10)
        await run.cancel()
        assert run.info.status == how
        assert await run.open_waits() == []
        await runtime.retry(run.id)
        await anyio.sleep(1)
        assert [wait.step for wait in await run.open_waits()] == ["pay"]
        await run.send_event(Answer(text="late"))
        assert await run == "late"
        assert purchase.calls == ["order", "pay"]
        terminal = WorkflowCancelledEvent if how == "cancelled" else WorkflowTimedOutEvent
        kinds = [type(record.event) for record in await records(run)]
        assert kinds == [Note, Note, terminal, StopEvent]  # and the question is not asked again


async def test_x7_those_who_wait_for_one_try_get_its_end() -> None:
    purchase = Purchase()
    caught: list[BaseException] = []

    async def wait(run: RunHandle[str]) -> None:
        with pytest.raises(ProviderError) as error:
            await run
        caught.append(error.value)

    async with Runtime(workflows=[purchase]) as runtime:
        run = await runtime.start(Purchase, "p")
        async with anyio.create_task_group() as group:
            group.start_soon(wait, run)
            await anyio.sleep(1)
            await run.send_event(Answer(text="4242"))
            async for event in run.stream_events():
                if isinstance(event, WorkflowFailedEvent):
                    purchase.broken = False
                    await runtime.retry("p")  # maybe before the task that waits has been woken
                    break
        assert len(caught) == 1
        assert await run == "4242"


async def test_s4_internal_events_that_were_asked_for_are_written_in_each_try() -> None:
    purchase = Purchase()
    async with Runtime(workflows=[purchase]) as runtime:
        run = await runtime.start(Purchase)
        reader = run.records(internal=True)
        await anyio.sleep(1)
        await run.send_event(Answer(text="4242"))
        with pytest.raises(ProviderError):
            await run
        purchase.broken = False
        await runtime.retry(run.id)
        await run
        found = [record async for record in reader]
        public = [r for r in found if not isinstance(r, EventRecord) or not _is_internal(r)]
        assert [record.seq for record in public] == [1, 2, 3, 4]
        states = [
            record.event
            for record in found
            if isinstance(record, EventRecord) and isinstance(record.event, StepStateChanged)
        ]
        assert [event.outcome for event in states if event.outcome is not None] == [
            "returned",
            "failed",
            "returned",
        ]


def _is_internal(record: EventRecord) -> bool:
    return isinstance(record.event, StepStateChanged) or "Idle" in type(record.event).__name__


class Stalls(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent | None:
        return None


async def test_x7_a_run_with_nothing_to_repeat_cannot_be_retried() -> None:
    async with Runtime(workflows=[Stalls(), Job()]) as runtime:
        run = await runtime.start(Stalls, "s")
        with pytest.raises(WorkflowStalledError):
            await run
        with pytest.raises(
            WorkflowRuntimeError, match="it has nothing to repeat, as no step failed"
        ):
            await runtime.retry("s")
        await runtime.start(Job, "j")
        await anyio.sleep(1)
        with pytest.raises(WorkflowRuntimeError, match="it has not ended, it is running"):
            await runtime.retry("j")


async def test_a_retried_run_is_kept_as_any_run_in_progress() -> None:
    async def act(ctx: Context) -> None:
        if not tries:
            tries.append("first")
            raise ProviderError("down")
        await anyio.sleep(10)

    tries: list[str] = []
    async with Runtime(workflows=[OneStep(act), Loop()], keep_ended=1) as runtime:
        run = await runtime.start(OneStep, "r")
        with pytest.raises(ProviderError):
            await run
        await runtime.retry("r")
        for name in ("l1", "l2", "l3"):
            await (await runtime.start(Loop, name))
        assert run.info.status == "running"
        assert await ids(runtime) == ["l3", "r"]
        assert await run is None
        assert await ids(runtime) == ["r"]


async def test_x7_the_state_of_a_failed_run_is_kept_for_its_retry() -> None:
    class Counts(Workflow[int]):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            times = await ctx.store.get("times", 0)
            await ctx.store.set("times", times + 1)
            if times < 2:
                raise ProviderError("again")
            return StopEvent(result=times)

    async with Runtime(workflows=[Counts()]) as runtime:
        run = await runtime.start(Counts)
        for _ in range(2):
            with pytest.raises(ProviderError):
                await run
            await runtime.retry(run.id)
        assert await run == 2


async def test_a_step_retries_as_its_policy_says_under_a_runtime_too() -> None:
    async with Runtime(workflows=[Flaky(), Ends()]) as runtime:
        run = await runtime.start(Flaky)
        await anyio.sleep(0.5)
        assert run.info.status == "running"
        assert run.statistics().steps["work"].delayed == 1
        assert await run == 2
        assert math.isclose(run.statistics().steps["work"].retried, 2)
        assert texts([event async for event in run.stream_events()]) == []
