"""Whether the server works, and what it does, for the programs that watch it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ._context import ServerContext
from ._frames import dumps
from ._runs import JSON


async def get_health(server: ServerContext, request: Request) -> Response:
    """Answer that the process works."""
    return Response(dumps({"status": "ok"}), media_type=JSON)


async def get_readiness(server: ServerContext, request: Request) -> Response:
    """Answer whether requests are taken."""
    server.runtime.statistics()  # or 503
    return Response(dumps({"status": "ok"}), media_type=JSON)
