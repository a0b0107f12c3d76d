"""Queries and bodies of requests, read and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from .._documents import converter_of
from .._messages import nearest, short_repr, shortened
from ..errors import ContextSerdeError
from ..events import Event
from ..wire import from_data
from ..workflow import Workflow
from ._problems import ProblemError

E = TypeVar("E", bound=Event)

# --- The query ----------------------------------------------------------------------------------------


def check_query(request: Request, known: Collection[str]) -> None:
    """Refuse parameters that nothing reads, or that are given twice: they are mistakes."""
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            raise ProblemError(
                400, f"there is no parameter {short_repr(name)} here; {nearest(name, known)}"
            )
        if name in seen:
            raise ProblemError(400, f"the parameter {name} is given twice")
        seen.add(name)


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
    return one_of(request, name, ("0", "1", "false", "true"), "0") in ("1", "true")


def one_of(request: Request, name: str, known: Collection[str], default: str) -> str:
    """Return a word from the query."""
    text = request.query_params.get(name, default)
    if text not in known:
        raise ProblemError(400, f"{name}={short_repr(text)} is none of {', '.join(known)}")
    return text


# --- The body -----------------------------------------------------------------------------------------


def check_media(request: Request) -> None:
    """Refuse a body that is not `application/json`, an empty one included.

    A page of another origin cannot send that without being asked for permission first.
    """
    media = request.headers.get("content-type")
    if media is not None and media.partition(";")[0].strip().lower() != "application/json":
        raise _wrong_media(short_repr(media))


def _wrong_media(what: str) -> ProblemError:
    detail = f"the body is {what}; send 'Content-Type: application/json'"
    return ProblemError(415, detail, {"accept-post": "application/json"})


async def json_body(request: Request, most: int, known: Collection[str]) -> dict[str, Any]:
    """Return the body, which is a JSON object of at most `most` bytes; an empty one stands for `{}`.

    Raises:
        ProblemError: If it is anything else, or has members that are none of `known`.
    """
    content = await _content(request, most)
    if content and "content-type" not in request.headers:
        raise _wrong_media("of no type")
    try:
        # json.loads() itself would take UTF-16 as well.
        data = _DECODER.decode(content.decode() or "{}")
    except (ValueError, RecursionError) as error:
        raise ProblemError(400, f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ProblemError(400, f"the body must be an object, not {short_repr(data)}")
    for key in data:
        if key not in known:
            hint = nearest(key, known)
            raise ProblemError(422, f"unknown member {short_repr(key)}; {hint}", path=path_of(key))
    return data


async def _content(request: Request, most: int) -> bytes:
    length = request.headers.get("content-length", "")
    chunks: list[bytes] = []
    size = int(length) if length.isdecimal() and len(length) <= 18 else 0
    too_large = ProblemError(413, f"the body is larger than {most} bytes")
    if size > most:
        raise too_large
    size = 0
    try:
        async with aclosing(request.stream()) as stream:
            async for chunk in stream:
                size += len(chunk)
                if size > most:
                    raise too_large
                chunks.append(chunk)
    except ClientDisconnect:
        raise ProblemError(400, "the client left before the end of its request") from None
    return b"".join(chunks)


def _read_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"member {short_repr(key)} is given twice")
        members[key] = value
    return members


def _read_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{short_repr(text)} is too large for a number")
    return number


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON; send null")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_read_members, parse_float=_read_float, parse_constant=_refuse_constant
)
"""Reads what the standard calls JSON, and nothing that others may read in another way."""


def text_member(body: dict[str, Any], name: str) -> str | None:
    """Return a member of the body that is a text; `None` if it is not there."""
    value = body.get(name)
    if name in body and not isinstance(value, str):
        raise ProblemError(
            422, f"{name} must be a string, not {short_repr(value)}", path=path_of(name)
        )
    return value


def read_event(data: Any, workflow: Workflow[Any], cls: type[E], place: str) -> E:
    """Return the event of a workflow that data stands for; `place` is where that is in the body."""
    try:
        return from_data(data, cls, converter=converter_of(workflow))
    except ContextSerdeError as error:
        path = f"$.{place}{error.path.removeprefix('$')}"
        raise ProblemError(422, f"{path}: {error.problem}", path=path) from None


def path_of(*keys: str) -> str:
    """Return the path to a member of the body."""
    return shortened(".".join(("$", *keys)), 300)
