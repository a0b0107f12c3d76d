"""`serve()`: sockets, signals, and the order in which everything ends."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator

import anyio
from anyio.abc import TaskStatus
from starlette.applications import Starlette

from .._backend import running_backend
from ._streams import Streams

GRACE = 1.0
"""Seconds that streams, and then other requests, have to end."""


async def serve(
    app: Starlette, streams: Streams, host: str, port: int, task_status: TaskStatus[str]
) -> None:
    """Serve an application, with uvicorn on asyncio and hypercorn on trio."""
    listener = _bind(host, port)
    url = _url_of(listener)

    async def ended() -> None:
        """Return when the server is to end: after all streams have ended, since servers wait for connections."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                break
        await streams.stop(GRACE)

    run = _run_uvicorn if running_backend() == "asyncio" else _run_hypercorn
    with contextlib.closing(listener):
        await run(app, listener, ended, lambda: task_status.started(url))


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


async def _run_uvicorn(
    app: Starlette,
    listener: socket.socket,
    ended: Callable[[], Awaitable[None]],
    started: Callable[[], None],
) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leave the signals to `serve()`: they end the streams first."""
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started()

    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=1, access_log=False, server_header=False
    )
    server = Server(config)
    async with anyio.create_task_group() as group:

        async def wait_for_end() -> None:
            await ended()
            server.should_exit = True

        group.start_soon(wait_for_end)
        await server.serve(sockets=[listener])
        group.cancel_scope.cancel()


async def _run_hypercorn(
    app: Starlette,
    listener: socket.socket,
    ended: Callable[[], Awaitable[None]],
    started: Callable[[], None],
) -> None:
    from hypercorn.config import Config
    from hypercorn.trio import serve as hypercorn_serve

    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = GRACE
    config.accesslog = None
    config.loglevel = "WARNING"
    config.include_server_header = False

    async def trigger() -> None:
        started()
        await ended()

    await hypercorn_serve(app, config, shutdown_trigger=trigger)  # type: ignore[arg-type]
