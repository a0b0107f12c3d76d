"""The events of a run: read, and sent."""

from __future__ import annotations

from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from .._messages import nearest, short_repr
from ..errors import ContextSerdeError, WorkflowError, WorkflowRuntimeError
from ..events import Event
from ..handler import OpenWait
from ..instrument import EventRecord
from ..runtime import Gap, LogReader, RunHandle
from ..workflow import Workflow
from ._context import ServerContext
from ._frames import dumps, gap_data, json_of
from ._problems import ProblemError, conflicts
from ._requests import (
    flag,
    json_body,
    read_event,
    read_whole,
    seconds,
    text_member,
    whole,
)
from ._runs import JSON, Answer
from ._streams import EventStreamResponse, StreamFormat, frame_of, is_of


async def read_events(server: ServerContext, request: Request) -> Answer:
    """Answer with the events that follow a cursor: as a stream, or a page of them."""
    run = await server.run_of(request)
    accept = request.headers.get("accept", "")
    after = _cursor_of(request)
    types = request.query_params.get("types")
    names = None if types is None else frozenset(types.split(","))
    try:
        reader = run.records(after, flag(request, "internal"))
    except WorkflowRuntimeError as error:
        raise ProblemError(400, str(error)) from None
    info = run.info
    if info.ended is not None and after >= info.last_seq and JSON not in accept:
        return Response(status_code=204)  # tells an EventSource to stay away
    server.streams.check_room(run.id)
    if JSON in accept:
        return await _page(server, request, run, reader, names)
    format_: StreamFormat = "ndjson" if "application/x-ndjson" in accept else "sse"
    return EventStreamResponse(server.streams, run, reader, format_, names, {})


def _cursor_of(request: Request) -> int:
    """Return the number of the last event that was seen; what an EventSource says itself is newer."""
    text = request.headers.get("last-event-id") or request.query_params.get("after", "0")
    return read_whole("after", text, 0)


async def _page(
    server: ServerContext,
    request: Request,
    run: RunHandle[Any],
    reader: LogReader,
    names: frozenset[str] | None,
) -> Response:
    """Answer with what there is, after waiting for at least one event if that was asked for."""
    wait = seconds(request, "wait", server.limits.max_wait)
    limit = whole(request, "limit", 100, 1, server.limits.max_page)
    found: list[EventRecord | Gap] = []
    if wait is not None or run.info.last_seq > reader.cursor:
        found = await _batch(reader, limit, wait or 0.0)
    events = [
        json_of(frame_of(reader, one))
        for one in found
        if not isinstance(one, Gap) and (names is None or is_of(type(one.event), names))
    ]
    gap = next((gap_data(one) for one in found if isinstance(one, Gap)), None)
    info = run.info
    done = info.ended is not None and reader.cursor >= info.last_seq
    rest = dumps({"next": reader.cursor, "done": done, "gap": gap})
    return Response(b'{"events":[%b],%b' % (b",".join(events), rest[1:]), media_type=JSON)


async def _batch(reader: LogReader, limit: int, wait: float) -> list[EventRecord | Gap]:
    try:
        with anyio.move_on_after(wait):
            return await reader.batch(max_records=limit)
    except WorkflowError:
        pass
    return []


async def send_event(server: ServerContext, request: Request) -> Response:
    """Send an event to a run: one of the types that its workflow declares, or that it waits for."""
    run = await server.run_of(request)
    body = await json_body(request, server.limits.max_body, ("type", "data", "step"))
    name, step = text_member(body, "type"), text_member(body, "step")
    workflow = server.workflows[run.workflow]
    if run.info.ended is not None:
        raise ProblemError(409, f"run {run.id} has ended: it is {run.info.status}")
    waits = await open_waits(run)
    known = {cls.__name__: cls for cls in workflow.events}
    known |= {wait.event_type.__name__: wait.event_type for wait in waits}
    if name is None or name not in known:
        hint = nearest(name or "", known)
        raise ProblemError(
            422, f"this run takes no events of type {short_repr(name)}; {hint}", path="$.type"
        )
    event = read_event(body.get("data", {}), workflow, known[name], "data")
    if step is not None:
        _check_step(workflow, step, event, waits)
    with conflicts():
        taken_by = await run.send_event(event, step)
    if not taken_by:
        raise ProblemError(422, f"no step takes {name} now", path="$.type")
    return Response(dumps({"taken_by": taken_by}), 202, media_type=JSON)


def _check_step(workflow: Workflow[Any], step: str, event: Event, waits: list[OpenWait]) -> None:
    """Refuse an event for a step that never takes it."""
    spec = workflow.graph.steps.get(step)
    if spec is None:
        hint = nearest(step, workflow.graph.steps)
        raise ProblemError(422, f"there is no step {short_repr(step)}; {hint}", path="$.step")
    if spec.takes(type(event)) and not spec.is_join:
        return
    mine = (wait for wait in waits if wait.step == step and isinstance(event, wait.event_type))
    if all(wait.unmet(event) is not None for wait in mine):
        detail = f"step {step} does not take this {type(event).__name__}"
        raise ProblemError(422, detail, path="$.step")


async def open_waits(run: RunHandle[Any]) -> list[OpenWait]:
    """Return the open waits of a run.

    Raises:
        ProblemError: If another program executes it, and what it waits for is not known here.
    """
    try:
        return await run.open_waits()
    except ContextSerdeError as error:
        raise ProblemError(409, f"{error}; ask the program that executes it") from None
