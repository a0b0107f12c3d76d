"""What is answered instead of a result: `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ._frames import dumps

MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """Ends a request with a status and an explanation.

    Args:
        status: The status of HTTP.
        detail: What is wrong, and what to do about it.
        headers: Headers to send with it.
        **more: Further members of the problem, such as `path`.
    """

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        self.status, self.detail, self.headers, self.more = status, detail, headers, more
        super().__init__(status, detail)

    def response(self) -> Response:
        """Return what is sent."""
        facts = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return Response(dumps(facts), self.status, self.headers, MEDIA_TYPE)


async def answer_problem(request: Request, error: Exception) -> Response:
    """Answer with a problem."""
    assert isinstance(error, ProblemError)
    return error.response()


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Answer with what Starlette found out: no such route, or no such method there."""
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path}: {error.detail}"
    return ProblemError(error.status_code, detail, error.headers).response()


async def answer_fault(request: Request, error: Exception) -> Response:
    """Answer that the server is at fault. Starlette raises the error again, so that the ASGI server logs it."""
    return ProblemError(500, "the server failed to answer; its log has the traceback").response()
