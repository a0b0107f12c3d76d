"""`serve()`: sockets, signals, and the order in which everything ends."""

# ASGI servers wait for open connections before they end the lifespan of an application, so streams would hold
# them up. Here the streams end first, then the server, and last the lifespan, in which the runs are kept. The
# lifespan is entered here too, so that an error in it is raised as it is: servers would log it and exit.

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from typing import Any

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus
from starlette.types import ASGIApp, Receive, Scope, Send

from .._backend import running_backend
from .._messages import short_repr
from ..errors import WorkflowConfigurationError, WorkflowRuntimeError
from ._streams import Streams, ungrouped

_GRACE = 0.5
"""Seconds that streams have to end, and other requests after them."""

_BACKLOG = 2048
"""How many connections may wait to be accepted."""

_LONGEST_HEAD = 2**16
"""Bytes of the head of a request, at most: about as many as hypercorn, and uvicorn without httptools, take."""

RunServer = Callable[[ASGIApp, socket.socket, anyio.Event], Awaitable[None]]
"""Runs an ASGI server until the event is set, and for little longer than `_GRACE`; at most so long if cancelled."""


async def serve(
    app: ASGIApp,
    lifespan: AbstractAsyncContextManager[None],
    streams: Streams,
    host: str,
    port: int,
    task_status: TaskStatus[str],
) -> None:
    """Serve an application until a signal comes, or this is cancelled."""
    run_server = _uvicorn() if running_backend() == "asyncio" else _hypercorn()
    with closing(await _bind(host, port)) as listener, ungrouped():
        async with anyio.create_task_group() as group:
            ending = _Ending(group.cancel_scope)
            await group.start(ending.listen)
            async with lifespan:
                await _serve_until(ending, streams, run_server, app, listener, task_status)
            group.cancel_scope.cancel()


@attrs.define(eq=False)
class _Ending:
    """How serving ends: by a signal; at once by a second one, or before it has begun.

    Attributes:
        scope: Around everything.
        asked: Set by the first signal.
        grace: Around what ends in order, even if `scope` is cancelled.
        begun: Whether something is served.
    """

    scope: anyio.CancelScope
    asked: anyio.Event = attrs.field(factory=anyio.Event)
    grace: anyio.CancelScope = attrs.field(factory=lambda: anyio.CancelScope(shield=True))
    begun: bool = False

    async def listen(self, *, task_status: TaskStatus[None]) -> None:
        """Wait for signals: they come to the main thread only. In others, cancellation ends serving."""
        if threading.current_thread() is not threading.main_thread():
            task_status.started()
            return
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if self.asked.is_set() or not self.begun:
                    self.grace.cancel()
                    self.scope.cancel()
                    return  # and have the next ones do what they do by default
                self.asked.set()


async def _serve_until(
    ending: _Ending,
    streams: Streams,
    run_server: RunServer,
    app: ASGIApp,
    listener: socket.socket,
    task_status: TaskStatus[str],
) -> None:
    """Serve until that is to end: then end the streams, and then the server."""
    end_server, server_ended = anyio.Event(), anyio.Event()
    server = anyio.CancelScope(shield=True)

    async def run() -> None:
        try:
            with server:
                await run_server(app, listener, end_server)
        finally:
            server_ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        ending.begun = True
        task_status.started(_url_of(listener))
        try:
            await ending.asked.wait()
        finally:
            with ending.grace:
                await streams.stop(_GRACE)
                end_server.set()
                await server_ended.wait()
            server.cancel()


def check_one_process() -> None:
    """Refuse several processes that would each keep other runs, as far as that can be seen: servers have many options.

    Raises:
        WorkflowConfigurationError: If there are to be several.
    """
    workers = os.environ.get("WEB_CONCURRENCY", "")
    if workers.isdecimal() and int(workers) > 1:
        raise WorkflowConfigurationError(
            f"WEB_CONCURRENCY={workers} asks for several processes, but the runs are in the memory of one: unset it, "
            "or keep them in a database, which the processes share: Runtime('sqlite:///path/to/file.db', ...)"
        )


# --- Sockets ----------------------------------------------------------------------------------------


async def _bind(host: str, port: int) -> socket.socket:
    """Return a socket to which clients can connect.

    Raises:
        WorkflowConfigurationError: If there is no such address.
        WorkflowRuntimeError: If it cannot be had.
    """
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise WorkflowConfigurationError(
            f"there is no host {short_repr(host)} to serve at: {error}"
        ) from error
    # A name may have addresses of both families: all clients have IPv4.
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    try:
        listener = socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        remedy = {
            errno.EADDRINUSE: "another server, perhaps; give another port=, or port=0 for any that is free",
            errno.EACCES: "give a port= above 1023",
            errno.EADDRNOTAVAIL: "give host= an address of this machine",
        }.get(error.errno or 0, "give another host= or port=")
        raise WorkflowRuntimeError(
            f"cannot serve at port {port} of {host}: {os.strerror(error.errno or 0)}; {remedy}"
        ) from error
    # Connections inherit it. asyncio only sets it where a socket names its protocol, which these do not: the body of
    # an answer would wait for the acknowledgement of its head, 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url_of(listener: socket.socket) -> str:
    """Return where this machine reaches the server."""
    host, port = listener.getsockname()[:2]
    if ":" in host:
        return f"http://[{'::1' if host == '::' else host}]:{port}/"
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/"


# --- Servers ----------------------------------------------------------------------------------------


def _missing(name: str, backend: str, error: ImportError) -> WorkflowConfigurationError:
    return WorkflowConfigurationError(
        f"serving on {backend} needs {name}, which cannot be imported ({error}): pip install "
        '"anyio-workflows[server]"'
    )


def _uvicorn() -> RunServer:
    """Return what runs uvicorn."""
    try:
        import uvicorn
    except ImportError as error:
        raise _missing("uvicorn", "asyncio", error) from error

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leave the signals to `serve()`: they end the streams first."""
            yield

    async def run(app: ASGIApp, listener: socket.socket, end: anyio.Event) -> None:
        config = uvicorn.Config(
            app,
            http=_http_protocol(),
            lifespan="off",
            ws="none",
            log_config=None,  # how to log is for the program to say
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        server = Server(config)

        async def end_server() -> None:
            try:
                await end.wait()
                server.should_exit = True
                await anyio.sleep(_GRACE)
            finally:  # cancelled or not
                server.should_exit = True
                server.force_exit = not end.is_set()
                for connection in list(server.server_state.connections):
                    connection.transport.abort()  # its client does not read, or it would have ended

        async with anyio.create_task_group() as group:
            group.start_soon(end_server)
            with anyio.CancelScope(shield=True):  # if it is cancelled it closes nothing
                await server.serve(sockets=[listener])
            group.cancel_scope.cancel()

    return run


def _http_protocol() -> Any:
    """Return what uvicorn reads requests with: the faster of its parsers, if it is there, with a limit as the other has."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class Protocol(HttpToolsProtocol):
        """Refuses a request whose head has no end: it would be kept in memory."""

        unread = 0
        """Bytes since the end of a head, or a part of a body."""

        def data_received(self, data: bytes) -> None:
            self.unread += len(data)
            super().data_received(data)
            if self.unread > _LONGEST_HEAD and not self.transport.is_closing():
                self.send_400_response("The head of this request is too large.")

        def on_headers_complete(self) -> None:
            self.unread = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.unread = 0
            super().on_body(body)

    return Protocol


def _hypercorn() -> RunServer:
    """Return what runs hypercorn."""
    try:
        from hypercorn.config import Config
        from hypercorn.trio import serve as serve_with_hypercorn
    except ImportError as error:
        raise _missing("hypercorn", "trio", error) from error

    async def run(app: ASGIApp, listener: socket.socket, end: anyio.Event) -> None:
        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.backlog = _BACKLOG
        config.graceful_timeout = _GRACE
        config.include_server_header = False
        config.accesslog = None
        config.errorlog = logging.getLogger("hypercorn.error")
        config.errorlog.setLevel(logging.WARNING)
        async with anyio.create_task_group() as requests:
            served: Any = _detached(app, requests)
            await serve_with_hypercorn(served, config, shutdown_trigger=end.wait)

    return run


def _detached(app: ASGIApp, requests: TaskGroup) -> ASGIApp:
    """Return an application without lifespan, whose requests run in tasks that the server does not wait for.

    Hypercorn shields its sending on trio from cancellation. Where a client does not read, it would wait for the
    request, and so for the client, before it closes the connection, which is what ends the sending.
    """

    async def detached(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        ended = anyio.Event()
        request = anyio.CancelScope()
        errors: list[Exception] = []

        async def run() -> None:
            try:
                with request:
                    await app(scope, receive, send)
            except Exception as error:
                errors.append(error)
            finally:
                ended.set()

        requests.start_soon(run)
        try:
            await ended.wait()
        finally:
            request.cancel()
        if errors:
            raise errors[0]  # the server logs it

    return detached
