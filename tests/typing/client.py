# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What type checkers make of the client: checked by mypy and pyright, never executed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

import httpx2

from anyio_workflows import Event, HumanResponseEvent, StartEvent
from anyio_workflows.client import (
    Gap,
    RemoteEvent,
    RemoteQuestion,
    RemoteRecord,
    RemoteRun,
    RemoteRunError,
    RemoteRunInfo,
    RemoteRunPage,
    RemoteWorkflow,
    ServerUnreachableError,
    WorkflowClient,
    WorkflowServerError,
)
from anyio_workflows.runtime import RunError, RunStatus


class Order(StartEvent):
    item: str


class Approval(HumanResponseEvent):
    approved: bool


async def a_client(http: httpx2.AsyncClient) -> None:
    WorkflowClient("http://127.0.0.1:8000", "token", types=[Order], http=http, give_up_after=None)
    WorkflowClient("http://127.0.0.1:8000", types=[int])  # type: ignore[list-item]
    WorkflowClient()  # type: ignore[call-arg]
    async with WorkflowClient("http://127.0.0.1:8000") as client:
        assert_type(client, WorkflowClient)
        assert_type(await client.start("buy", {"item": "tea"}, wait=5, run_id="a"), RemoteRun)
        assert_type(await client.start("buy", Order(item="tea"), metadata={"n": 1}), RemoteRun)
        await client.start("buy", "tea")  # type: ignore[arg-type]
        assert_type(client.run("a"), RemoteRun)
        assert_type(await client.runs("failed", workflow="buy", limit=5), RemoteRunPage)
        await client.runs("broken")  # type: ignore[arg-type]
        assert_type(await client.workflows(), list[RemoteWorkflow])
        assert_type(await client.workflow("buy"), RemoteWorkflow)


async def what_a_run_tells(run: RemoteRun) -> None:
    events = run.events(after=3, internal=True, types=[Order, "Approval"], give_up_after=5)
    async for record in events:
        if isinstance(record, Gap):
            assert_type(record.first, int)
            continue
        assert_type(record, RemoteRecord)
        assert_type(record.event, Event | RemoteEvent)
        if isinstance(record.event, RemoteEvent):
            assert_type(record.event.data, Mapping[str, Any])
    assert_type(events.cursor, int)
    assert_type(events.status, RunStatus | None)
    info = await run.info()
    assert_type(info, RemoteRunInfo)
    assert_type(info.error, RunError | None)
    assert_type(run.known, RemoteRunInfo | None)
    assert_type(await run.result(timeout=5), Any)


async def what_is_done_to_a_run(run: RemoteRun) -> None:
    [question] = await run.questions()
    assert_type(question, RemoteQuestion)
    assert_type(await run.answer(question, Approval(approved=True)), tuple[str, ...])
    await run.answer(question, {"approved": True})
    await run.answer(question.id, approved=True)
    assert_type(await run.send(Approval(approved=True), step="buy"), tuple[str, ...])
    await run.send("Approval", approved=True)
    await run.send(Approval)  # type: ignore[arg-type]
    assert_type(await run.cancel(wait=5), RemoteRunInfo)
    assert_type(await run.retry(), RemoteRunInfo)
    await run.delete()


def what_errors_tell(
    refused: WorkflowServerError, away: ServerUnreachableError, failed: RemoteRunError
) -> None:
    assert_type(refused.status, int)
    assert_type(refused.path, str | None)
    assert_type(away.unknown, str | None)
    assert_type(failed.step, str | None)
    assert_type(failed.notes, tuple[str, ...])
