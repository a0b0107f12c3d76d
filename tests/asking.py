"""What tests of the server share: an application asked in process, by a driver that delivers streams as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import attrs
from anyio.streams.memory import MemoryObjectReceiveStream

from anyio_workflows import Workflow
from anyio_workflows.runtime import Runtime
from anyio_workflows.server import WorkflowServer
from anyio_workflows.server._routes import ROUTES


@attrs.define
class Answered:
    """A response: whole, or as far as it has come."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        """What a problem says."""
        assert self.headers["content-type"] == "application/problem+json"
        return self.json()["detail"]


@attrs.define
class Frame:
    """A frame of an event stream."""

    event: str | None = None
    id: str | None = None
    data: Any = None


@attrs.define
class Streamed(Answered):
    """A response that comes in pieces.

    Attributes:
        chunks: The pieces.
        leave: Tells the application that the client has gone.
    """

    chunks: MemoryObjectReceiveStream[bytes] = attrs.field(kw_only=True)
    leave: Any = attrs.field(kw_only=True)

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield the frames of an event stream; comments and `retry` are passed over."""
        rest = b""
        async for chunk in self.chunks:
            *blocks, rest = (rest + chunk).split(b"\n\n")
            for block in blocks:
                fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
                if b"data" in fields:
                    event, id_ = fields.get(b"event"), fields.get(b"id")
                    yield Frame(
                        None if event is None else event.decode(),
                        None if id_ is None else id_.decode(),
                        json.loads(fields[b"data"]),
                    )

    async def rest(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks])


@attrs.define
class Asker:
    """Asks an application.

    Attributes:
        app: The application.
        headers: Sent with each request.
        http_version: By which it is asked.
        buffer: How many pieces of a stream the server can send before it has to wait for the client.
        server: Where the application comes from.
    """

    app: Any
    headers: Mapping[str, str] = {"host": "127.0.0.1:8000"}
    http_version: str = "1.1"
    buffer: int = 1000
    server: Any = None

    def scope(self, method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
        path, _, query = path.partition("?")
        given = {**self.headers, **headers}
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": self.http_version,
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
        }

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answered:
        """Ask, and return the whole answer. A body that is no bytes is sent as JSON."""
        async with self.streaming(method, path, body, headers) as streamed:
            streamed.body = await streamed.rest()
        return streamed

    async def get(self, path: str, **headers: str) -> Any:
        """Return the JSON of an answer that is no problem."""
        answered = await self.ask("GET", path, headers=headers)
        assert answered.status == 200, answered.body
        return answered.json()

    async def post(self, path: str, body: Any = None, **headers: str) -> Any:
        """Return the JSON of an answer that is no problem."""
        answered = await self.ask("POST", path, {} if body is None else body, headers)
        assert answered.status in (200, 201, 202), answered.body
        return answered.json()

    @asynccontextmanager
    async def streaming(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Streamed]:
        """Ask, and give the answer as soon as its head is there; the client goes when the block ends."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("content-type", "application/json")
        messages = [{"type": "http.request", "body": body or b"", "more_body": False}]
        gone, started = anyio.Event(), anyio.Event()
        chunks, parts = anyio.create_memory_object_stream[bytes](self.buffer)
        found: list[Streamed] = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                head = {name.decode(): value.decode() for name, value in message["headers"]}
                found.append(Streamed(message["status"], head, chunks=parts, leave=gone.set))
                started.set()
            elif not gone.is_set():
                if message.get("body"):
                    with suppress(anyio.BrokenResourceError):  # the client has just gone
                        await chunks.send(message["body"])
                if not message.get("more_body"):
                    chunks.close()

        async def run() -> None:
            try:
                await self.app(self.scope(method, path, headers), receive, send)
            finally:
                chunks.close()
                started.set()

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            with parts:
                await started.wait()
                yield found[0]
                gone.set()


@asynccontextmanager
async def asking(*workflows: Workflow[Any] | Runtime, **options: Any) -> AsyncIterator[Asker]:
    """Give what asks a server of these workflows, named as a `Runtime` does, or of a runtime."""
    runtime = workflows[0] if isinstance(workflows[0], Runtime) else Runtime(workflows=workflows)
    server = WorkflowServer(runtime, **options)
    async with server.lifespan():
        yield Asker(server.app, server=server)
    check_described(server)


def check_described(server: WorkflowServer) -> None:
    """Check that the table of routes has each status with which a request was answered."""
    described = {
        (route.method, route.template, status)
        for route in ROUTES
        for status in (*route.answers, *route.all_problems)
    }
    for method, path, status in server._context.requests.counts:
        if path != "other" and status not in (405, 418, 500):  # anywhere, from `authorize`, a fault
            asked = "GET" if method == "HEAD" else method
            assert (asked, path, status) in described
