"""Queries and bodies of requests, read and checked."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.requests import Request

from .._messages import short_repr
from ..errors import ContextSerdeError
from ._problems import ProblemError


def seconds(request: Request, name: str, most: float) -> float | None:
    """Return a number of seconds from the query; `None` if it is not there. More than `most` means `most`."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ProblemError(400, f"{name}={short_repr(text)} is not a number of seconds")
    return min(number, most)


def whole(request: Request, name: str, default: int, least: int, most: int) -> int:
    """Return a whole number from the query. More than `most` means `most`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    return min(read_whole(name, text, least), most)


def read_whole(name: str, text: str, least: int) -> int:
    """Return the whole number that a text stands for."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) >= least):
        raise ProblemError(400, f"{name}={short_repr(text)} is not a whole number from {least} on")
    return int(text)


def flag(request: Request, name: str) -> bool:
    """Return whether the query asks for something."""
    text = request.query_params.get(name, "0")
    if text not in ("0", "1", "false", "true"):
        raise ProblemError(400, f"{name}={short_repr(text)} is neither 1 nor 0")
    return text in ("1", "true")


async def json_body(request: Request, most: int) -> dict[str, Any]:
    """Return the body, which is a JSON object of at most `most` bytes; an empty one stands for `{}`.

    Only `application/json` is taken: a page of another origin cannot send that without being asked for
    permission first.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise ProblemError(413, f"the body is larger than {most} bytes")
        chunks.append(chunk)
    if media != "application/json" and (size or media):
        raise ProblemError(
            415,
            f"the body is {short_repr(media)}; send application/json",
            accept="application/json",
        )
    try:
        data = json.loads(b"".join(chunks) or b"{}")
    except (ValueError, RecursionError) as error:
        raise ProblemError(400, f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ProblemError(400, f"the body must be an object, not {short_repr(data)}")
    return data


def check_keys(body: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuse members that nothing reads: they are mistakes."""
    for key in body:
        if key not in known:
            raise ProblemError(
                422,
                f"unknown member {short_repr(key)}; known: {', '.join(known)}",
                path=f"$.{key}"[:300],
            )


def invalid_data(error: ContextSerdeError, place: str) -> ProblemError:
    """Return the answer to data that cannot be read as an event; `place` is where that was in the body."""
    path = f"$.{place}{error.path.removeprefix('$')}"
    return ProblemError(422, f"{path}: {error.problem}", path=path)
