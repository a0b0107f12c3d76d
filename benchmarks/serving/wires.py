"""What is asked, in the words of each server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import attrs


class Asked(NamedTuple):
    """A request.

    Attributes:
        method: The method of HTTP.
        target: The path with its query.
        body: What is sent as JSON; `None` for nothing.
        accept: The media type of the answer.
    """

    method: str
    target: str
    body: Any = None
    accept: str = "*/*"

    def encoded(self) -> bytes:
        """Return its bytes."""
        body = b"" if self.body is None else json.dumps(self.body).encode()
        head = (
            f"{self.method} {self.target} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: {self.accept}\r\n"
        )
        if self.body is not None:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body


@attrs.frozen
class Wire:
    """How a server is asked.

    Attributes:
        result: Starts a run and is answered with its end.
        start: Starts a run.
        stream: Starts a run and is answered with its events; `None` if that takes two requests.
        events: Reads the events of a run, all of them, as they come.
        send: Sends an event to a run.
        health: Is answered with next to nothing.
        page: Lists so many runs, or however many the server lists.
        id_of: Finds the id of a run in the answer to its start.
        value_of: Finds the result of a run in the answer to `result`.
    """

    result: Callable[[str, int], Asked]
    start: Callable[[str, int], Asked]
    stream: Callable[[str, int], Asked] | None
    events: Callable[[str], Asked]
    send: Callable[[str, str, Mapping[str, Any]], Asked]
    health: Asked
    page: Callable[[int], Asked]
    id_of: Callable[[Any], str]
    value_of: Callable[[Any], Any]


def _start(name: str, number: int, query: str = "", accept: str = "*/*") -> Asked:
    return Asked("POST", f"/v1/workflows/{name}/runs{query}", {"input": {"number": number}}, accept)


OUR_WIRE = Wire(
    result=lambda name, number: _start(name, number, "?wait=60"),
    start=_start,
    stream=lambda name, number: _start(name, number, accept="text/event-stream"),
    events=lambda run: Asked("GET", f"/v1/runs/{run}/events", accept="text/event-stream"),
    send=lambda run, name, data: Asked(
        "POST", f"/v1/runs/{run}/events", {"type": name, "data": data}
    ),
    health=Asked("GET", "/healthz"),
    page=lambda limit: Asked("GET", f"/v1/runs?limit={limit}"),
    id_of=lambda answer: answer["id"],
    value_of=lambda answer: answer["result"],
)

REFERENCE_WIRE = Wire(
    result=lambda name, number: Asked(
        "POST", f"/workflows/{name}/run", {"start_event": {"number": number}}
    ),
    start=lambda name, number: Asked(
        "POST", f"/workflows/{name}/run-nowait", {"start_event": {"number": number}}
    ),
    stream=None,
    events=lambda run: Asked("GET", f"/events/{run}?after_sequence=-1"),
    send=lambda run, name, data: Asked(
        "POST", f"/events/{run}", {"event": {"type": name, "value": data}}
    ),
    health=Asked("GET", "/health"),
    page=lambda limit: Asked("GET", "/handlers"),
    id_of=lambda answer: answer["handler_id"],
    value_of=lambda answer: answer["result"]["value"]["result"],
)
