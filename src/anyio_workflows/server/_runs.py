"""Runs: start, list, look at, cancel, retry, delete."""

from __future__ import annotations

import hashlib
from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import Response

from .._documents import HIDDEN, describe_run, describe_whole_run
from .._messages import nearest, short_repr
from ..errors import (
    ContextSerdeError,
    EventValidationError,
    WorkflowConfigurationError,
    WorkflowRuntimeError,
)
from ..events import StartEvent
from ..runtime import RunHandle, RunInfo, RunPage, RunStatus
from ..wire import from_data
from ..workflow import Workflow
from ._access import OWNER
from ._context import ServerContext
from ._frames import dumps
from ._problems import ProblemError
from ._requests import check_keys, flag, invalid_data, json_body, seconds, whole
from ._streams import EventStreamResponse

JSON = "application/json"

Answer = Response | EventStreamResponse


async def start_run(server: ServerContext, request: Request) -> Answer:
    """Start a run, or find the one that was started by the same request before."""
    name, workflow = server.workflow_of(request)
    wait = seconds(request, "wait", server.limits.max_wait)
    streamed = "text/event-stream" in request.headers.get("accept", "")
    body = await json_body(request, server.limits.max_body)
    check_keys(body, ("input", "metadata", "run_id"))
    event = _start_event(workflow, body.get("input", {}))
    run_id = _run_id_of(request, name, body)
    run = None if run_id is None else await _existing(server, request, run_id, name)
    status = 201 if run is None else 200
    if run is None:
        metadata = _metadata_of(body, request.state.principal)
        try:
            run = await server.runtime.start(
                name, run_id=run_id, start_event=event, metadata=metadata
            )
        except (WorkflowConfigurationError, ContextSerdeError) as error:
            raise ProblemError(422, str(error), path="$") from None
        except WorkflowRuntimeError as error:
            raise ProblemError(429, str(error), {"retry-after": "5"}) from None
    location = str(request.url_for("get_run", id=run.id).path)
    headers = {"location": location}
    if streamed:
        server.streams.check_room(run.id)
        cancel = request.query_params.get("on_disconnect") == "cancel"
        return EventStreamResponse(
            server.streams,
            run,
            run.records(internal=flag(request, "internal")),
            "sse",
            None,
            headers,
            status,
            run.cancel if cancel else None,
        )
    if wait is not None:
        await run.wait(wait)
    return Response(dumps(await describe_whole_run(run)), status, headers, JSON)


def _start_event(workflow: Workflow[Any], data: Any) -> StartEvent:
    try:
        event = from_data(data, workflow.start_event_class)
    except ContextSerdeError as error:
        raise invalid_data(error, "input") from None
    except EventValidationError as error:
        raise ProblemError(422, str(error), path="$.input") from None
    assert isinstance(event, StartEvent)
    return event


def _run_id_of(request: Request, name: str, body: dict[str, Any]) -> str | None:
    """Return the id of the run to be: the one that was asked for, or one that the same request always gets."""
    key = request.headers.get("idempotency-key")
    if key is not None and "run_id" in body:
        raise ProblemError(400, "give a run_id or an Idempotency-Key, not both")
    if key is None:
        return body.get("run_id")
    owner = request.state.principal
    return hashlib.sha256(repr((owner, name, key)).encode()).hexdigest()[:32]


async def _existing(
    server: ServerContext, request: Request, run_id: Any, name: str
) -> RunHandle[Any] | None:
    try:
        run = await server.access.find(server.runtime, run_id, request.state.principal)
    except ProblemError:
        return None
    except WorkflowConfigurationError as error:
        raise ProblemError(422, str(error), path="$.run_id") from None
    if run.workflow != name:
        raise ProblemError(409, f"run {run_id} is of workflow {run.workflow}")
    return run


def _metadata_of(body: dict[str, Any], principal: str | None) -> dict[str, Any]:
    metadata = body.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ProblemError(422, "metadata must be an object", path="$.metadata")
    for key in metadata:
        if key[:1] == HIDDEN:
            raise ProblemError(
                422,
                f"keys of metadata that begin with {HIDDEN} are the server's",
                path="$.metadata",
            )
    return metadata if principal is None else {**metadata, OWNER: principal}


async def list_runs(server: ServerContext, request: Request) -> Response:
    """Answer with a page of the list of runs, newest first."""
    query = request.query_params
    status, workflow, before = query.get("status"), query.get("workflow"), query.get("before")
    limit = whole(request, "limit", 50, 1, server.limits.max_page)
    if status is not None and status not in get_args(RunStatus):
        raise ProblemError(
            400, f"status={short_repr(status)}; {nearest(status, get_args(RunStatus))}"
        )
    principal = request.state.principal
    found: list[RunInfo] = []
    try:
        while True:
            page: RunPage = await server.runtime.runs(
                status,  # type: ignore[arg-type]
                workflow,
                limit=limit - len(found),
                before=before,
            )
            found += [info for info in page.runs if server.access.may_see(info, principal)]
            before = page.next
            if before is None or len(found) == limit:
                break
    except WorkflowConfigurationError as error:
        raise ProblemError(400, str(error)) from None
    runs = [describe_run(info) for info in found]
    return Response(dumps({"runs": runs, "next": before}), media_type=JSON)


async def get_run(server: ServerContext, request: Request) -> Response:
    """Answer with a run, after it has ended or so many seconds have passed."""
    wait = seconds(request, "wait", server.limits.max_wait)
    run = await server.run_of(request)
    if wait is not None:
        await run.wait(wait)
    return Response(dumps(await describe_whole_run(run)), media_type=JSON)


async def cancel_run(server: ServerContext, request: Request) -> Response:
    """Cancel a run, wait for its end, and answer with it. One that has ended stays as it is."""
    wait = seconds(request, "wait", server.limits.max_wait)
    run = await server.run_of(request)
    await run.cancel(10.0 if wait is None else wait)
    return Response(dumps(await describe_whole_run(run)), media_type=JSON)


async def retry_run(server: ServerContext, request: Request) -> Response:
    """Continue a run that failed, timed out or was cancelled (X7)."""
    run = await server.run_of(request)
    try:
        run = await server.runtime.retry(run.id)
    except WorkflowRuntimeError as error:
        raise ProblemError(409, str(error)) from None
    return Response(dumps(await describe_whole_run(run)), media_type=JSON)


async def delete_run(server: ServerContext, request: Request) -> Response:
    """Remove a run that has ended."""
    run = await server.run_of(request)
    try:
        await server.runtime.delete(run.id)
    except WorkflowRuntimeError as error:
        raise ProblemError(409, str(error)) from None
    return Response(status_code=204)
