"""What tests of the client share: a server that answers by a script, in process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import attrs
import httpx2
from anyio.lowlevel import checkpoint

from anyio_workflows.client import WorkflowClient

URL = "http://server.example/flows"


def answer(data: Any = None, status: int = 200, **headers: str) -> httpx2.Response:
    """Return an answer of a server, with an object."""
    content = b"" if data is None else json.dumps(data).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(
        status, headers={"content-type": "application/json"} | named, content=content
    )


def problem(status: int, detail: str, title: str = "No", **more: Any) -> httpx2.Response:
    """Return a refusal."""
    facts = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return answer(facts, status, content_type="application/problem+json")


def cut() -> httpx2.ReadError:
    """Return what happens if the connection breaks after the request was sent."""
    return httpx2.ReadError("the connection was cut")


def refused() -> httpx2.ConnectError:
    """Return what happens if there is no connection."""
    return httpx2.ConnectError("connection refused")


@attrs.define(eq=False)
class Streamed(httpx2.AsyncByteStream):
    """A body that comes in pieces.

    Attributes:
        pieces: Bytes; an exception to raise; or a number of seconds to wait.
        closed: Whether the client has begun to close it, or has read it to its end.
        finished: Whether it has closed it: that takes a moment.
    """

    pieces: tuple[Any, ...]
    closed: bool = False
    finished: bool = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if self.closed:
                raise httpx2.ReadError("it is closed")
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, bytes):
                await checkpoint()
                yield piece
            else:
                await anyio.sleep(piece)
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True
        await checkpoint()
        self.finished = True


def streamed(*pieces: Any) -> httpx2.Response:
    """Return an event stream."""
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    return httpx2.Response(200, headers=headers, stream=Streamed(pieces))


Answer = httpx2.Response | Exception | Callable[[httpx2.Request], httpx2.Response]


@attrs.define(eq=False)
class ScriptedServer(httpx2.AsyncBaseTransport):
    """Gives one answer after the other; the last one for ever.

    Attributes:
        answers: What is left of them.
        requests: What was asked.
        times: When that was, in seconds.
    """

    answers: list[Answer]
    requests: list[httpx2.Request] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await checkpoint()
        self.requests.append(request)
        self.times.append(anyio.current_time())
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(given, Exception):
            raise given
        return given(request) if callable(given) else given

    @property
    def asked(self) -> list[str]:
        """The methods and the paths with their queries that were asked."""
        return [f"{one.method} {one.url.raw_path.decode()}" for one in self.requests]

    @property
    def delays(self) -> list[float]:
        """Seconds from each request to the next one."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    def body(self, number: int = -1) -> Any:
        """Return the JSON of a request."""
        request = self.requests[number]
        assert request.headers["content-type"] == "application/json"
        return json.loads(request.content)


def scripted(*answers: Answer, **options: Any) -> tuple[WorkflowClient, ScriptedServer]:
    """Return a client, and the server that it asks."""
    server = ScriptedServer(list(answers))
    return WorkflowClient(URL, http=httpx2.AsyncClient(transport=server), **options), server


# --- What servers say -------------------------------------------------------------------------------

RUN = {
    "id": "run-1",
    "workflow": "buy",
    "status": "running",
    "created": "2026-11-27T22:57:00.123Z",
    "ended": None,
    "last_seq": 2,
    "questions": 1,
    "metadata": {"user": "ada"},
    "error": None,
    "result": None,
    "log": {
        "first": 1,
        "last": 2,
        "kept": 2,
        "bytes": 300,
        "trimmed": 0,
        "readers": 1,
        "max_lag": 0,
        "new_in_a_later_version": 1,
    },
    "steps": {"ask": {"queued": 0, "running": 0, "waiting": 1, "seconds": 1.5}},
}


def run_document(status: str = "completed", **changed: Any) -> dict[str, Any]:
    """Return a run that has ended."""
    ended = {"status": status, "ended": "2026-11-27T22:58:00.000Z", "questions": 0}
    return {**RUN, **ended, "result": "tea" if status == "completed" else None, **changed}


def event_document(seq: int, type: str = "Note", bases: Any = (), **data: Any) -> dict[str, Any]:  # noqa: A002
    """Return an event."""
    time = "2026-11-27T22:57:00.500Z"
    return {"seq": seq, "time": time, "type": type, "bases": list(bases), "data": data}


def frame(seq: int, type: str = "Note", **data: Any) -> bytes:  # noqa: A002
    """Return an event as it is in a stream."""
    return f"id: {seq}\ndata: {json.dumps(event_document(seq, type, **data))}\n\n".encode()


def frames(first: int, last: int) -> bytes:
    """Return some events as they are in a stream."""
    return b"".join(frame(seq, n=seq) for seq in range(first, last + 1))


def end(last: int, status: str = "completed") -> bytes:
    """Return the frame at the end of a stream."""
    return b"event: end\ndata: %b\n\n" % json.dumps({"status": status, "last": last}).encode()
