"""Runs that a runtime keeps in memory: start, await, read, answer, cancel, retry (L rules)."""

from __future__ import annotations

import copy
import pickle
import re
import traceback
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import anyio
import pytest

from anyio_workflows import (
    Context,
    Event,
    Runtime,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    step,
)
from anyio_workflows.errors import (
    UnknownRunError,
    WorkflowCancelledByUser,
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from anyio_workflows.instrument import EventRecord
from anyio_workflows.resource import Resource
from anyio_workflows.runtime import RunError, RunHandle

from .running import texts
from .samples import (
    Answer,
    Asks,
    AsksByReturning,
    Ends,
    Job,
    Loop,
    Note,
    OneStep,
    ProviderError,
    Question,
    Total,
)

pytestmark = pytest.mark.anyio


async def read(run: RunHandle[Any], after: int = 0) -> list[EventRecord]:
    """Read a run to its end; there is no gap."""
    found = []
    async for record in run.records(after):
        assert isinstance(record, EventRecord)
        found.append(record)
    return found


def numbered(records: list[EventRecord]) -> list[tuple[int, Event]]:
    return [(record.seq, record.event) for record in records]


# --- Starting, and how runs end ------------------------------------------------------------------


async def test_a_run_is_started_by_the_name_the_class_or_the_instance_of_its_workflow() -> None:
    loop = Loop()
    async with Runtime(workflows=[loop]) as runtime:
        for workflow in ("loop", Loop, loop):
            run = await runtime.start(workflow, rounds=2)
            assert isinstance(run, RunHandle)
            assert run.workflow == "loop"
            assert await run == "over"


@pytest.mark.parametrize(
    ("how", "status", "result"),
    [
        ("return", "completed", 7),
        ("subclass", "completed", Total(total=3)),
        ("send", "completed", 7),
    ],
)
async def test_awaiting_a_run_gives_what_awaiting_a_handler_gives(
    how: str, status: str, result: object
) -> None:
    async with Runtime(workflows=[Ends()]) as runtime:
        run = await runtime.start(Ends, how=how)
        assert await run == await Ends().run(how=how) == result
        assert run.info.status == status
        assert run.info.error is None


async def test_t5_the_failure_is_the_very_exception_and_its_traceback_does_not_grow() -> None:
    async with Runtime(workflows=[Ends()]) as runtime:
        run = await runtime.start(Ends, how="raise")
        caught, depths = [], []
        for _ in range(3):
            with pytest.raises(ProviderError, match="down") as error:
                await run
            caught.append(error.value)
            depths.append(len(traceback.extract_tb(error.value.__traceback__)))
        assert caught[0] is caught[1] is caught[2]
        assert len(set(depths)) == 1
        terminal = (await read(run))[-1].event
        assert isinstance(terminal, WorkflowFailedEvent)
        assert terminal.exception is caught[0]
        info = run.info
        assert info.status == "failed"
        assert isinstance(info.error, RunError)
        assert (info.error.type, info.error.message) == ("ProviderError", "down")
        assert (info.error.step, info.error.attempts) == ("only", 1)
        assert "step only failed on StartEvent" in info.error.notes[0]


async def test_t2_a_run_times_out_or_is_cancelled_as_any_other() -> None:
    async with Runtime(workflows=[Ends(timeout=3)]) as runtime:
        slow = await runtime.start(Ends, how="hang")
        with pytest.raises(WorkflowTimeoutError):
            await slow
        assert slow.info.status == "timed_out"
        assert slow.info.error is not None
        assert slow.info.error.type == "WorkflowTimeoutError"
        assert slow.info.error.step is None
        cancelled = await runtime.start(Ends, how="hang")
        await anyio.sleep(1)
        await cancelled.cancel()
        with pytest.raises(WorkflowCancelledByUser):
            await cancelled
        assert cancelled.info.status == "cancelled"
        assert isinstance((await read(cancelled))[-1].event, WorkflowCancelledEvent)


async def test_any_number_of_tasks_wait_and_giving_up_affects_nobody_else() -> None:
    results = []

    async def wait(run: RunHandle[Any]) -> None:
        results.append(await run)

    async with Runtime(workflows=[Job()]) as runtime:
        run = await runtime.start(Job)
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(wait, run)
            with anyio.move_on_after(5) as scope:
                await run
        assert scope.cancelled_caught
        assert results == ["done"] * 20


async def test_runs_belong_to_the_runtime_not_to_the_task_that_started_them() -> None:
    async with Runtime(workflows=[Job()]) as runtime:
        with anyio.CancelScope() as scope:
            run = await runtime.start(Job)
            scope.cancel()
        del scope
        assert await run == "done"


# --- Ids and metadata ----------------------------------------------------------------------------


async def test_an_id_that_exists_gives_that_run_of_the_same_workflow() -> None:
    async with Runtime(workflows=[Job(), Loop()]) as runtime:
        run = await runtime.start("job", run_id="order-17", metadata={"n": 1})
        again = await runtime.start("job", run_id="order-17", metadata={"n": 2}, how="raise")
        assert again == run
        assert hash(again) == hash(run)
        assert run.id == "order-17"
        assert (await runtime.get("order-17")) == run
        assert run.info.metadata == {"n": 1}
        assert await again == "done"
        assert await (await runtime.start("job", run_id="order-17")) == "done"
        what = "there is a run 'order-17' already, of workflow job, so none of workflow loop"
        with pytest.raises(WorkflowRuntimeError, match=what):
            await runtime.start("loop", run_id="order-17")
        other = await runtime.start("job", run_id="order-18")
        assert other != run
        assert other != "order-18"


async def test_one_run_is_started_when_many_tasks_ask_for_an_id_at_once() -> None:
    started: list[RunHandle[Any]] = []
    async with Runtime(workflows=[Job()]) as runtime:

        async def start() -> None:
            started.append(await runtime.start(Job, run_id="one"))

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(start)
        assert len(set(started)) == 1
        assert len((await runtime.runs()).runs) == 1


async def test_ids_are_made_up_and_differ() -> None:
    async with Runtime(workflows=[Loop()]) as runtime:
        ids = {(await runtime.start(Loop)).id for _ in range(100)}
        assert len(ids) == 100
        assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,128}", run_id) for run_id in ids)


async def test_metadata_are_copied_in_and_out() -> None:
    given = {"user": "ada", "tags": ["a", {"b": None}], "x": 1.5, "ok": True}
    kept = copy.deepcopy(given)
    async with Runtime(workflows=[Loop()]) as runtime:
        run = await runtime.start(Loop, metadata=given)
        given["user"] = "eve"
        run.info.metadata["tags"].append("changed")
        assert run.info.metadata == kept
        assert (await runtime.start(Loop)).info.metadata == {}


async def test_fields_with_the_names_of_arguments_go_through_the_start_event() -> None:
    class Begin(StartEvent):
        workflow: str
        run_id: str = ""

    class Echo(Workflow[str]):
        @step
        async def only(self, ev: Begin) -> StopEvent:
            return StopEvent(result=ev.workflow + ev.run_id)

    async with Runtime(workflows=[Echo()]) as runtime:
        assert await (await runtime.start(Echo, workflow="own")) == "own"
        event = Begin(workflow="w", run_id="r")
        run = await runtime.start(Echo, "given", event)
        assert (await run, run.id) == ("wr", "given")


# --- How runs stand --------------------------------------------------------------------------------


async def test_info_says_how_a_run_stands() -> None:
    before = datetime.now(UTC)
    async with Runtime(workflows=[Asks(num_concurrent_runs=1)]) as runtime:
        run = await runtime.start(Asks)
        assert run.info.status == "queued"
        await anyio.sleep(1)
        second = await runtime.start(Asks)
        await anyio.sleep(1)
        assert second.info.status == "queued"
        info = run.info
        assert (info.id, info.workflow, info.status) == (run.id, "asks", "waiting")
        assert (info.last_seq, info.open_waits, info.ended, info.error) == (1, 1, None, None)
        assert before <= info.created <= datetime.now(UTC)
        assert info.created.utcoffset() == timedelta(0)
        await run.send_event(Answer(text="yes"))
        assert run.info.status == "running"
        assert await run == "yes"
        info = run.info
        assert (info.status, info.last_seq, info.open_waits) == ("completed", 2, 0)
        assert info.ended is not None
        assert info.created <= info.ended <= datetime.now(UTC)
        assert info.ended.utcoffset() == timedelta(0)


async def test_a_run_between_two_attempts_or_in_its_cleanup_is_running() -> None:
    async def act(ctx: Context) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)

    async with Runtime(workflows=[OneStep(act)]) as runtime:
        run = await runtime.start(OneStep)
        await anyio.sleep(1)
        assert run.info.status == "running"
        await run.cancel(timeout=1)
        assert run.info.status == "running"
        await run.cancel()
        assert run.info.status == "cancelled"


async def test_a_run_that_closes_what_it_used_is_running_and_takes_no_answers() -> None:
    async def slow_to_close() -> AsyncIterator[str]:
        yield "pool"
        await anyio.sleep(2)

    class Uses(Workflow[str]):
        @step
        async def only(
            self, ev: StartEvent, pool: Annotated[str, Resource(slow_to_close)]
        ) -> StopEvent:
            return StopEvent(result=pool)

    async with Runtime(workflows=[Uses()]) as runtime:
        run = await runtime.start(Uses)
        await anyio.sleep(1)
        assert (run.info.status, run.info.ended, run.info.last_seq) == ("running", None, 0)
        assert await run.open_waits() == []
        assert await run.send_event(Note()) == ()
        assert await run == "pool"


async def test_a_run_that_returned_a_question_waits() -> None:
    async with Runtime(workflows=[AsksByReturning()]) as runtime:
        run = await runtime.start("asks_by_returning")
        await anyio.sleep(1)
        assert (run.info.status, run.info.open_waits) == ("waiting", 0)
        assert await run.send_event(Answer(text="fine")) == ("take",)
        assert await run == "fine"


async def test_statistics_count_steps_events_and_readers() -> None:
    async with Runtime(workflows=[Loop(), Asks()]) as runtime:
        run = await runtime.start(Loop, rounds=3)
        reader = run.records()
        await anyio.sleep(1)
        found = run.statistics()
        assert found.status == "completed"
        assert (found.steps["start"].done, found.steps["turn"].done) == (1, 4)
        assert (found.log.last, found.log.kept, found.log.readers) == (4, 4, 1)
        del reader
        asks = await runtime.start(Asks)
        await anyio.sleep(1)
        assert asks.statistics().steps["ask"].waiting == 1
        counts = runtime.statistics()
        assert counts.runs == {"completed": 1, "waiting": 1}
        assert (counts.in_progress, counts.removed, counts.log_events) == (1, 0, 5)
        assert counts.log_bytes > 0


# --- Answers ---------------------------------------------------------------------------------------


async def test_w5_waits_are_listed_and_answered_one_by_one() -> None:
    async def act(ctx: Context) -> list[str]:
        found = []
        async with anyio.create_task_group() as group:

            async def ask(name: str) -> None:
                answer = await ctx.wait_for_event(
                    Answer, Question(text=name), waiter_id=name, requirements={}
                )
                found.append(f"{name}={answer.text}")

            group.start_soon(ask, "a")
            group.start_soon(ask, "b")
        return sorted(found)

    async with Runtime(workflows=[OneStep(act)]) as runtime:
        run = await runtime.start(OneStep)
        await anyio.sleep(1)
        waits = {wait.waiter_id: wait for wait in await run.open_waits()}
        assert sorted(filter(None, waits)) == ["a", "b"]
        assert waits["a"].question == Question(text="a")
        with pytest.raises(WorkflowRuntimeError, match="no step in progress has such a wait"):
            await run.send_event(Answer(text="x"), wait="9:1:z")
        assert await run.send_event(Answer(text="1"), wait=waits["a"].id) == ("work",)
        with pytest.raises(WorkflowRuntimeError, match="it has been answered already"):
            await run.send_event(Answer(text="2"), wait=waits["a"].id)
        assert [wait.waiter_id for wait in await run.open_waits()] == ["b"]
        await run.send_event(Answer(text="2"))
        assert await run == ["a=1", "b=2"]
        assert await run.open_waits() == []


async def test_t7_what_is_sent_after_the_end_is_refused_with_the_reason() -> None:
    async with Runtime(workflows=[Loop()]) as runtime:
        run = await runtime.start(Loop)
        await run
        what = "Note cannot be sent: the run has ended, it returned StopEvent"
        with pytest.raises(WorkflowRuntimeError, match=what):
            await run.send_event(Note())
        with pytest.raises(WorkflowRuntimeError, match="only events can be sent"):
            await run.send_event("note")  # type: ignore[arg-type]
        await run.cancel()
        assert run.info.status == "completed"


# --- Cancelling, in steps too ----------------------------------------------------------------------


async def test_t10_cancel_waits_for_the_end_and_may_be_repeated() -> None:
    job = Job()
    async with Runtime(workflows=[job]) as runtime:
        run = await runtime.start(Job)
        await anyio.sleep(1)
        start = anyio.current_time()
        await run.cancel(timeout=0.5)
        assert anyio.current_time() - start == pytest.approx(0.5)
        assert not job.cleaned
        async with anyio.create_task_group() as group:
            group.start_soon(run.cancel)
            group.start_soon(run.cancel)
        assert job.cleaned
        assert anyio.current_time() - start == pytest.approx(2)
        assert [record.seq for record in await read(run)] == [1, 2]
        with pytest.raises(WorkflowCancelledByUser, match=r"cancel\(\) was called"):
            await run


async def test_a_step_may_cancel_its_run_and_not_wait_for_it() -> None:
    handle: dict[str, RunHandle[Any]] = {}

    async def act(ctx: Context) -> str:
        run = await runtime.get(ctx.run_id)
        assert run == handle["run"]
        with pytest.raises(
            WorkflowRuntimeError, match="a step cannot wait for the end of its own run"
        ):
            await run
        await run.cancel()
        return "too late"

    async with Runtime(workflows=[OneStep(act)]) as runtime:
        run = handle["run"] = await runtime.start(OneStep)
        with pytest.raises(WorkflowCancelledByUser):
            await run


async def test_a_run_that_a_step_starts_is_independent_and_may_be_awaited_there() -> None:
    async def act(ctx: Context) -> Any:
        run = await runtime.start(Job, run_id="inner")
        return await run if waits else None

    async with Runtime(workflows=[OneStep(act), Job()]) as runtime:
        waits = False
        outer = await runtime.start(OneStep)
        assert await outer is None
        inner = await runtime.get("inner")
        assert inner.info.status == "running"
        waits = True
        assert await (await runtime.start(OneStep)) == "done"
        assert await inner == "done"
        assert not [record for record in await read(outer) if texts([record.event])]


# --- Helpful errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cancel_run", r"use await run\.cancel\(\)"),
        ("run_id", r"use run\.id"),
        ("status", r"run\.info"),
        ("result", "'await run'"),
        ("exception", "'await run'"),
        ("stream", r"run\.stream_events\(\)"),
        ("store", "the state of a run is for its steps"),
        ("retry", r"runtime\.retry\(run\.id\)"),
        ("record", "did you mean 'records'?"),
        ("qwertz", "await it"),
    ],
)
async def test_e8_what_a_handle_does_not_have_is_refused_with_what_to_use(
    name: str, hint: str
) -> None:
    async with Runtime(workflows=[Loop()]) as runtime:
        run = await runtime.start(Loop)
        with pytest.raises(AttributeError, match=f"'RunHandle' object has no .*{name}.*{hint}"):
            getattr(run, name)


async def test_e8_a_handle_is_no_stream_and_no_block_and_is_not_pickled() -> None:
    async with Runtime(workflows=[Loop()]) as runtime:
        run: Any = await runtime.start(Loop)
        with pytest.raises(TypeError, match=r"use 'async for event in run\.stream_events\(\)'"):
            async for _ in run:
                pass
        with pytest.raises(TypeError, match="belongs to its runtime"):
            async with run:
                pass
        for function in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"neither pickled nor copied; pass run\.id on"):
                function(run)
        with pytest.raises(TypeError, match="is read with 'async for', not with 'for'"):
            for _ in run.stream_events():
                pass
        with pytest.raises(TypeError, match="is not awaited; read it with 'async for'"):
            await run.stream_events()


async def test_the_repr_of_a_handle_and_of_a_runtime_show_counts() -> None:
    runtime = Runtime(workflows=[Asks()])
    assert repr(runtime) == "<Runtime of asks: not entered>"
    async with runtime:
        assert repr(runtime) == "<Runtime of asks: open, no runs>"
        run = await runtime.start(Asks, run_id="r1")
        await anyio.sleep(1)
        hint = "await it for the result, no task is needed"
        expected = f"<RunHandle of run r1 of asks: waiting, 1 events; ask: 1 waiting; {hint}>"
        assert repr(run) == expected
        assert repr(runtime) == "<Runtime of asks: open, 1 waiting>"
        await run.send_event(Answer(text="yes"))
        await run
        assert repr(run) == "<RunHandle of run r1 of asks: completed, 2 events; ask: 1 done>"
        await runtime.delete("r1")
        assert repr(run) == "<RunHandle of run r1 of asks: removed>"
    assert repr(runtime) == "<Runtime of asks: left, no runs>"


async def test_unknown_runs_and_ids_that_are_none() -> None:
    async with Runtime(workflows=[Loop()]) as runtime:
        run = await runtime.start(Loop)
        for function in (runtime.get, runtime.retry, runtime.delete):
            with pytest.raises(UnknownRunError, match="there is no run 'nope'"):
                await function("nope")
            with pytest.raises(
                WorkflowConfigurationError, match=r"takes the id of a run.*give run\.id"
            ):
                await function(run)  # type: ignore[arg-type]
