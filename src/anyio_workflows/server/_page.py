"""The page: its files, as they are sent."""

from __future__ import annotations

import functools
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from ._context import ServerContext
from ._problems import ProblemError

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page runs its own script and nothing else, and talks to its own server only."""

_MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript"}

FILES = (
    "page.css",
    "page.js",
    "api.js",
    "dom.js",
    "forms.js",
    "graph.js",
    "log.js",
    "run.js",
    "runs.js",
    "timeline.js",
)
"""What the page needs besides itself, beside it."""


async def get_page(server: ServerContext, request: Request) -> Response:
    """Answer with the page."""
    return _file(server, "index.html")


async def get_file(server: ServerContext, request: Request) -> Response:
    """Answer with a file that the page needs."""
    return _file(server, request.url.path.rpartition("/")[2])


def _file(server: ServerContext, name: str) -> Response:
    if not server.page:
        raise ProblemError(404, "this server has no page")
    headers = {
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(_read(name), headers=headers, media_type=_MEDIA[name.rpartition(".")[2]])


@functools.cache
def _read(name: str) -> bytes:
    return (files("anyio_workflows.server") / "page" / name).read_bytes()
