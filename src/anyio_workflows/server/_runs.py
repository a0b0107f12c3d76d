"""Runs: start, list, look at, cancel, retry, delete."""

from __future__ import annotations

import hashlib
import json
from typing import Any, get_args

import attrs
from starlette.requests import Request
from starlette.responses import Response

from .._documents import HIDDEN, describe_run, describe_unread_run
from .._messages import nearest, short_repr
from ..errors import (
    ContextSerdeError,
    UnknownRunError,
    WorkflowConfigurationError,
)
from ..events import StartEvent
from ..runtime import RunHandle, RunInfo, RunStatus
from ..runtime._records import NAME_RULE, is_name
from ._access import OWNER, UnreadableRunError
from ._context import ServerContext
from ._frames import EventStreamFormat, dumps
from ._problems import ProblemError
from ._requests import flag, json_body, one_of, read_event, seconds, text_member, whole
from ._streams import EventStream, Feed

JSON = "application/json"

Answer = Response | EventStream

_PAGE = 200
"""How many runs are read at once, of which some may belong to others."""

_MOST_READ = 2000
"""How many runs are looked at for one page of a list: the next page begins behind them."""


async def start_run(server: ServerContext, request: Request) -> Answer:
    """Start a run, or find the one that was started by the same request before."""
    name, workflow = server.workflow_of(request)
    wait = seconds(request, "wait", server.limits.max_wait)
    cancels = one_of(request, "on_disconnect", ("continue", "cancel"), "continue") == "cancel"
    internal = flag(request, "internal")
    streamed = "text/event-stream" in request.headers.get("accept", "").lower()
    if cancels and not streamed:
        raise ProblemError(
            400, "on_disconnect=cancel is for streams: send 'Accept: text/event-stream'"
        )
    body = await json_body(request, server.limits.max_body, ("input", "metadata", "run_id"))
    event = read_event(body.get("input", {}), workflow, workflow.start_event_class, "input")
    metadata = _metadata_of(body, request.state.principal)
    run_id = _run_id_of(request, name, body)
    run = None if run_id is None else await _existing(server, request, run_id)
    if streamed:
        server.streams.check_room(None if run is None else run.id)
    status = 201 if run is None else 200
    if run is None:
        run = await _start(server, name, run_id, event, metadata, internal)
    elif run.workflow != name:
        raise ProblemError(409, f"run {run_id} is of workflow {run.workflow}")
    # Not by url_for(): in a mounted application that asks the outer one for the route.
    headers = {"location": f"{request.scope.get('root_path', '')}/v1/runs/{run.id}"}
    if streamed:
        feed = Feed(run, run.records(internal=internal), server.encoder_of(run))
        return EventStream(
            server.streams,
            feed,
            EventStreamFormat(),
            status_code=status,
            headers=headers,
            cancels_run=cancels,
        )
    await server.wait_for_end(request, run, wait)
    return Response(dumps(await server.describe(run)), status, headers, JSON)


async def _start(
    server: ServerContext,
    name: str,
    run_id: str | None,
    event: Any,
    metadata: dict[str, Any],
    internal: bool,
) -> RunHandle[Any]:
    assert isinstance(event, StartEvent)
    try:
        with (
            server.conflicts()
        ):  # another request may have started one of this id, of another workflow
            return await server.runtime._start(name, run_id, event, metadata, {}, internal)
    except ContextSerdeError as error:  # it cannot be written to the database
        raise ProblemError(422, str(error), path="$.input") from None


def _run_id_of(request: Request, name: str, body: dict[str, Any]) -> str | None:
    """Return the id of the run to be: the one that was asked for, or one that the same request always gets.

    Where there are principals, an id that one of them chose could be that of another one's run: to refuse it then
    would tell that there is such a run. So there are none to choose.
    """
    key, run_id = request.headers.get("idempotency-key"), text_member(body, "run_id")
    principal = request.state.principal
    if key == "":  # a variable without a value, perhaps: all requests with it would find one run
        raise ProblemError(400, "the Idempotency-Key is empty; give one, or leave the header out")
    if key is not None and run_id is not None:
        raise ProblemError(400, "give a run_id or an Idempotency-Key, not both")
    if run_id is not None and principal is not None:
        raise ProblemError(
            422,
            "this server makes up the ids of runs, since several users share it; an Idempotency-Key has the same "
            "request find the same run",
            path="$.run_id",
        )
    if key is None:
        return run_id
    return hashlib.sha256(repr((principal, name, key)).encode()).hexdigest()[:32]


async def _existing(server: ServerContext, request: Request, run_id: str) -> RunHandle[Any] | None:
    if not is_name(run_id):
        raise ProblemError(
            422, f"run_id must be {NAME_RULE}; not {short_repr(run_id)}", path="$.run_id"
        )
    try:
        return await server.access.find(server.runtime, run_id, request.state.principal)
    except UnknownRunError:
        return None


def _metadata_of(body: dict[str, Any], principal: str | None) -> dict[str, Any]:
    metadata = body.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ProblemError(
            422, f"metadata must be an object, not {short_repr(metadata)}", path="$.metadata"
        )
    for key in metadata:
        if key[:1] == HIDDEN:
            raise ProblemError(
                422,
                f"keys of metadata that begin with {HIDDEN} are the server's",
                path="$.metadata",
            )
    try:
        json.dumps(metadata)
    except RecursionError:
        raise ProblemError(422, "metadata is nested too deeply", path="$.metadata") from None
    return metadata if principal is None else {**metadata, OWNER: principal}


async def list_runs(server: ServerContext, request: Request) -> Response:
    """Answer with a page of the list of runs, newest first."""
    query = request.query_params
    status, workflow = query.get("status"), query.get("workflow")
    limit = whole(request, "limit", 50, 1, server.limits.max_page)
    if status is not None and status not in get_args(RunStatus):
        raise ProblemError(
            400, f"status={short_repr(status)}; {nearest(status, get_args(RunStatus))}"
        )
    try:
        found, before = await _page(
            server,
            request.state.principal,
            status,  # type: ignore[arg-type]
            workflow,
            limit,
            query.get("before"),
        )
    except WorkflowConfigurationError as error:
        raise ProblemError(400, str(error)) from None
    runs = [describe_run(info) for info in found]
    return Response(dumps({"runs": runs, "next": before}), media_type=JSON)


async def _page(
    server: ServerContext,
    principal: str | None,
    status: RunStatus | None,
    workflow: str | None,
    limit: int,
    before: str | None,
) -> tuple[list[RunInfo], str | None]:
    """Return the newest runs of a principal, and where the next page begins; `None` if this is the last one.

    It may have fewer than `limit` runs, or none, before the end: one request looks at so many runs only.
    """
    runs = server.runtime.runs
    if principal is None:
        page = await runs(status, workflow, limit=limit, before=before)
        return page.runs, page.next
    found: list[RunInfo] = []
    last: RunInfo | None = None
    for _ in range(_MOST_READ // _PAGE):
        page = await runs(status, workflow, limit=_PAGE, before=before)
        for info in page.runs:
            if not server.access.may_see(info, principal):
                continue
            if len(found) == limit:
                return found, found[-1].cursor
            found.append(info)
        if page.next is None:
            return found, None
        before, last = page.next, page.runs[-1]
    assert last is not None
    # The last run may belong to others, and its id is not to be told: the next page begins with all runs of its
    # moment, since no id comes behind this one.
    found = [info for info in found if info.created != last.created]
    return found, attrs.evolve(last, id="z" * 128).cursor


async def get_run(server: ServerContext, request: Request) -> Response:
    """Answer with a run: at once, or when it has ended or so many seconds have passed."""
    wait = seconds(request, "wait", server.limits.max_wait)
    try:
        run = await server.run_of(request)
        await server.wait_for_end(request, run, wait)
        facts = await server.describe(run)
    except (
        UnreadableRunError,
        ContextSerdeError,
    ):  # only another program knows its workflow or types
        run_id, principal = request.path_params["id"], request.state.principal
        facts = describe_unread_run(
            await server.access.find_info(server.runtime, run_id, principal)
        )
    return Response(dumps(facts), media_type=JSON)


async def cancel_run(server: ServerContext, request: Request) -> Response:
    """Cancel a run, wait for its end, and answer with it. One that has ended stays as it is."""
    wait = seconds(request, "wait", server.limits.max_wait)
    run = await server.run_of(request)
    with (
        server.conflicts(),
        server.streams.waiting(10.0 if wait is None else wait, request.receive),
    ):
        await run.cancel()
    return Response(dumps(await server.describe(run)), media_type=JSON)


async def retry_run(server: ServerContext, request: Request) -> Response:
    """Continue a run that failed, timed out or was cancelled (X7)."""
    run = await server.run_of(request)
    with server.conflicts():
        run = await server.runtime.retry(run.id)
    return Response(dumps(await server.describe(run)), media_type=JSON)


async def delete_run(server: ServerContext, request: Request) -> Response:
    """Remove a run that has ended, with its events."""
    run = await server.run_of(request)
    with server.conflicts():
        await server.runtime.delete(run.id)
    return Response(status_code=204)
