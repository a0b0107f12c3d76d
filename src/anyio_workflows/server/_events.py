"""The events of a run: read, and sent."""

from __future__ import annotations

from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response

from .._documents import describe_gap
from .._messages import nearest, short_repr
from ..errors import ContextSerdeError, WorkflowRuntimeError
from ..events import Event
from ..graph import StepSpec
from ..handler import OpenWait
from ..runtime import Gap, RunHandle
from ..workflow import Workflow
from ._context import ServerContext
from ._frames import EventStreamFormat, LinesFormat, dumps, json_of
from ._problems import ProblemError
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
from ._streams import EventStream, Feed


async def read_events(server: ServerContext, request: Request) -> Answer:
    """Answer with the events that follow a cursor: as a stream, or a page of them."""
    run = await server.run_of(request)
    accept = request.headers.get("accept", "").lower()
    after = _cursor_of(request)
    try:
        feed = Feed(
            run,
            run.records(after, flag(request, "internal")),
            server.encoder_of(run),
            _types_of(request),
        )
        if JSON in accept:
            return await _page(server, request, feed)
        first = await feed.batch(wait=False)
    except WorkflowRuntimeError as error:
        if after <= run.info.last_seq:
            raise
        raise ProblemError(400, str(error)) from None
    if not first and feed.ended:
        return Response(status_code=204)  # tells an EventSource to stay away
    server.streams.check_room(run.id)
    format_ = LinesFormat() if "application/x-ndjson" in accept else EventStreamFormat()
    return EventStream(server.streams, feed, format_, first)


def _cursor_of(request: Request) -> int:
    """Return the number of the last event that was seen; what an EventSource says itself is newer."""
    text = request.headers.get("last-event-id") or request.query_params.get("after", "0")
    return read_whole("after", text, 0)


def _types_of(request: Request) -> frozenset[str] | None:
    """Return the names of the classes of events that are asked for; `None` for all."""
    text = request.query_params.get("types")
    return None if text is None else frozenset(text.split(",")) - {""}


async def _page(server: ServerContext, request: Request, feed: Feed) -> Response:
    """Answer with what there is, after waiting for at least one event if that was asked for."""
    wait = seconds(request, "wait", server.limits.max_wait)
    limit = whole(request, "limit", 100, 1, server.limits.max_page)
    page = _Page(feed, limit)
    try:
        await page.read(wait=False)
        if wait and page.is_empty and not feed.ended and request.method != "HEAD":
            server.streams.check_room(feed.run.id)
            with (
                server.streams.reading(feed.run.id),
                server.streams.waiting(wait, request.receive),
            ):
                while page.is_empty and not feed.ended:
                    await page.read(wait=True)
    finally:
        await feed.reader.aclose()
    server.streams.events_sent += len(page.events)
    rest = {"next": page.next, "done": page.done, "gap": page.gap}
    body = b'{"events":[%b],%b' % (b",".join(page.events), dumps(rest)[1:])
    return Response(body, headers={"cache-control": "no-store"}, media_type=JSON)


_PAGE_BYTES = 2**20
"""A page that has reached this size is full."""

_PAGE_SCANNED = 10_000
"""So many events are looked at for one page, whether or not they were asked for."""


@attrs.define
class _Page:
    """A page of events.

    Attributes:
        feed: Where they come from.
        limit: How many it has, at most.
        next: The cursor with which the following page begins.
        events: As JSON.
        gap: What is missing before the first of them.
    """

    feed: Feed
    limit: int
    next: int = attrs.field(init=False)
    events: list[bytes] = attrs.field(factory=list)
    gap: dict[str, Any] | None = None

    def __attrs_post_init__(self) -> None:
        self.next = self.feed.reader.cursor

    @property
    def is_empty(self) -> bool:
        """Whether nothing is there that was asked for."""
        return not self.events and self.gap is None

    @property
    def done(self) -> bool:
        """Whether nothing follows."""
        info = self.feed.run.info
        has_ended = info.ended is not None or self.feed.parked
        return has_ended and self.next >= info.last_seq

    async def read(self, wait: bool) -> None:
        """Read on until it is full, or nothing more is there; first wait for something if that is asked for."""
        size = scanned = 0
        while len(self.events) < self.limit and size < _PAGE_BYTES and scanned < _PAGE_SCANNED:
            found = await self.feed.batch(wait and not scanned, self.limit - len(self.events))
            if not found:
                break
            if any(isinstance(one, Gap) for one in found) and not self.is_empty:
                break  # a page has room for one gap, at its beginning: this one begins the next page
            for one in found:
                if isinstance(one, Gap):
                    self.gap = describe_gap(one)
                elif (frame := self.feed.frame(one)) is not None:
                    self.events.append(json_of(frame))
                    size += len(frame)
            scanned += len(found)
            self.next = self.feed.reader.cursor


async def send_event(server: ServerContext, request: Request) -> Response:
    """Send an event to a run: one of the types that its workflow declares, or that it waits for."""
    run = await server.run_of(request)
    body = await json_body(request, server.limits.max_body, ("type", "data", "step"))
    name, step = text_member(body, "type"), text_member(body, "step")
    workflow = server.workflows[run.workflow]
    if run.info.ended is not None:
        raise ProblemError(409, f"run {run.id} has ended: it is {run.info.status}")
    waits = await open_waits(run)
    # Not a StopEvent, for example: it would end the run with whatever result its sender likes.
    steps = workflow.graph.steps.values()
    known = {
        cls.__name__: cls for cls in workflow.events if any(_takes(spec, cls) for spec in steps)
    }
    known |= {wait.event_type.__name__: wait.event_type for wait in waits}
    if name is None or name not in known:
        hint = nearest(name or "", known)
        raise ProblemError(
            422, f"this run takes no events of type {short_repr(name)}; {hint}", path="$.type"
        )
    event = read_event(body.get("data", {}), workflow, known[name], "data")
    if step is not None:
        _check_step(workflow, step, event, waits)
    with server.conflicts():
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
    if _takes(spec, type(event)):
        return
    mine = (wait for wait in waits if wait.step == step and isinstance(event, wait.event_type))
    if all(wait.unmet(event) is not None for wait in mine):
        detail = f"step {step} does not take this {type(event).__name__}"
        raise ProblemError(422, detail, path="$.step")


def _takes(spec: StepSpec, event_type: type[Event]) -> bool:
    """Return whether a step takes events of a type from outside."""
    return spec.takes(event_type) and not spec.is_join


async def open_waits(run: RunHandle[Any]) -> list[OpenWait]:
    """Return the open waits of a run.

    Raises:
        ProblemError: If another program executes it, and what it waits for is not known here.
    """
    try:
        return await run.open_waits()
    except ContextSerdeError as error:
        raise ProblemError(409, f"{error}; ask the program that executes it") from None
