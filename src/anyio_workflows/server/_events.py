"""The events of a run: read, and sent."""

from __future__ import annotations

from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from .._messages import nearest, short_repr
from ..errors import ContextSerdeError, EventValidationError, WorkflowError, WorkflowRuntimeError
from ..events import Event
from ..instrument import EventRecord
from ..runtime import Gap, LogReader, RunHandle
from ..wire import from_data
from ._context import ServerContext
from ._frames import dumps, gap_data, json_of
from ._problems import ProblemError
from ._requests import check_keys, flag, invalid_data, json_body, read_whole, seconds, whole
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
    """Send an event to a run."""
    run = await server.run_of(request)
    body = await json_body(request, server.limits.max_body)
    check_keys(body, ("type", "data", "step"))
    known = {cls.__name__: cls for cls in server.workflows[run.workflow].events}
    known |= {wait.event_type.__name__: wait.event_type for wait in await run.open_waits()}
    name = body.get("type")
    if not isinstance(name, str) or name not in known:
        hint = nearest(name, known) if isinstance(name, str) else f"known: {', '.join(known)}"
        raise ProblemError(
            422, f"this run takes no events of type {short_repr(name)}; {hint}", path="$.type"
        )
    event = read_event(body.get("data", {}), known[name])
    try:
        taken_by = await run.send_event(event, body.get("step"))
    except WorkflowRuntimeError as error:
        raise ProblemError(409 if run.info.ended else 422, str(error)) from None
    if not taken_by:
        raise ProblemError(422, f"no step takes {name} now")
    return Response(dumps({"taken_by": taken_by}), 202, media_type=JSON)


def read_event(data: Any, cls: type[Event]) -> Event:
    """Return the event that data in a body stands for."""
    try:
        return from_data(data, cls)
    except ContextSerdeError as error:
        raise invalid_data(error, "data") from None
    except EventValidationError as error:
        raise ProblemError(422, str(error), path="$.data") from None
