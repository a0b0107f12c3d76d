"""What is answered instead of a result: `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .._messages import short_repr, shortened
from ..errors import StoreError, TooManyRunsError, UnknownRunError
from ._frames import dumps

MEDIA_TYPE = "application/problem+json"

RETRY_LATER = {"retry-after": "5"}
"""Headers of what another attempt may get done."""

_LONGEST_DETAIL = 4000

_RENAMED = {413: "Content Too Large", 422: "Unprocessable Content"}
"""What Python says since 3.13, and said otherwise before."""


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
            "title": title_of(self.status),
            "status": self.status,
            "detail": shortened(self.detail, _LONGEST_DETAIL),
            **self.more,
        }
        return Response(dumps(facts), self.status, self.headers, MEDIA_TYPE)


def title_of(status: int) -> str:
    """Return the name of a status, as RFC 9110 has it."""
    if status in _RENAMED:
        return _RENAMED[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # `authorize` made it up
        return "Error"


# --- What the application does with exceptions --------------------------------------------------------


async def answer_problem(request: Request, error: Exception) -> Response:
    """Answer with a problem."""
    assert isinstance(error, ProblemError)
    return error.response()


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Answer with what Starlette found out, no such route or method, or with what `authorize` raised."""
    assert isinstance(error, HTTPException)
    detail = error.detail if isinstance(error.detail, str) else dumps(error.detail).decode()
    if detail == title_of(error.status_code):
        path = short_repr(request.url.path)
        if error.status_code == 404:
            detail = f"there is nothing at {path}; /v1/openapi.json describes what there is"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow")
            detail = f"{request.method} is not possible at {path}; possible: {allowed}"
    return ProblemError(error.status_code, detail, error.headers).response()


async def answer_unknown_run(request: Request, error: Exception) -> Response:
    """Answer that there is no such run: there never was, it was removed meanwhile, or it belongs to others."""
    assert isinstance(error, UnknownRunError)
    return ProblemError(404, str(error)).response()


async def answer_too_many_runs(request: Request, error: Exception) -> Response:
    """Answer that no more runs are taken at the moment."""
    assert isinstance(error, TooManyRunsError)
    return ProblemError(429, str(error), RETRY_LATER).response()


async def answer_store_error(request: Request, error: Exception) -> Response:
    """Answer that nothing can be written, without saying where: the runtime raises the error itself."""
    assert isinstance(error, StoreError)
    detail = "the database of this server cannot be used; its log says why"
    return ProblemError(503, detail, RETRY_LATER).response()


async def answer_nobody(request: Request, error: Exception) -> Response:
    """Answer a client that left before it had sent its whole request."""
    return Response(status_code=400)


async def answer_fault(request: Request, error: Exception) -> Response:
    """Answer that the server is at fault. Starlette raises the error again, so that the ASGI server logs it."""
    return ProblemError(500, "the server failed to answer; its log has the traceback").response()


HANDLERS: Mapping[Any, Any] = {
    ProblemError: answer_problem,
    HTTPException: answer_http_exception,
    ClientDisconnect: answer_nobody,
    UnknownRunError: answer_unknown_run,
    TooManyRunsError: answer_too_many_runs,
    StoreError: answer_store_error,
    Exception: answer_fault,
}
"""What answers instead of the handler of a route, by what that raised."""
