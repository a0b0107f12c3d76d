# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What type checkers make of the runtime: checked by mypy and pyright, never executed."""

from __future__ import annotations

from typing import Any, assert_type

from anyio_workflows import (
    Event,
    HumanResponseEvent,
    Runtime,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows.handler import OpenWait
from anyio_workflows.instrument import EventRecord
from anyio_workflows.runtime import Gap, RunHandle, RunInfo, RunPage, RunStatus


class Total(StopEvent):
    total: int


class Sum(Workflow[Total]):
    @step
    async def only(self, ev: StartEvent) -> Total:
        return Total(total=1)


class Untyped(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


async def runs_know_their_results(workflow: Sum) -> None:
    async with Runtime(workflows=[workflow, Untyped()], keep_ended_for=60) as runtime:
        assert_type(runtime, Runtime)
        run = await runtime.start(workflow, run_id="a", metadata={"n": 1}, left=1)
        assert_type(run, RunHandle[Total])
        assert_type(await run, Total)
        assert_type(await (await runtime.start(Sum)), Total)
        assert_type(await (await runtime.start(Untyped)), Any)
        assert_type(await (await runtime.start("sum")), Any)
        assert_type(await runtime.get("a"), RunHandle[Any])
        assert_type(await runtime.retry("a"), RunHandle[Any])
        await runtime.delete("a")
    Runtime(workflows={"sum": workflow})
    Runtime(workflows=[Sum])  # type: ignore[list-item]
    Runtime()  # type: ignore[call-arg]


async def what_a_run_tells(runtime: Runtime, run: RunHandle[int]) -> None:
    async for record in run.records(after=3, internal=True):
        if isinstance(record, Gap):
            assert_type(record.first, int)
        else:
            assert_type(record, EventRecord)
    async for event in run.stream_events():
        assert_type(event, Event)
    assert_type(await run, int)
    assert_type(run.info, RunInfo)
    assert_type(run.info.status, RunStatus)
    assert_type(await run.open_waits(), list[OpenWait])
    assert_type(await run.send_event(Event(), wait="1:1:Answer"), tuple[str, ...])
    page = await runtime.runs(status="waiting", workflow=Sum, waiting_for=HumanResponseEvent)
    assert_type(page, RunPage)
    assert_type(page.next, str | None)
    await runtime.runs(status="waitin")  # type: ignore[arg-type]
    run.result()  # type: ignore[attr-defined]
