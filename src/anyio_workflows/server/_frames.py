"""Events as bytes: frames of an event stream, lines, and items of a page."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import attrs
import orjson

from .._documents import describe_record_without_data
from ..instrument import EventRecord
from ..wire import to_data

if TYPE_CHECKING:
    from cattrs import BaseConverter


def dumps(data: Any) -> bytes:
    """Return data as JSON. What orjson refuses, very large integers and lone surrogates, takes longer."""
    try:
        return orjson.dumps(data)
    except (orjson.JSONEncodeError, RecursionError):
        return json.dumps(data, separators=(",", ":")).encode()


@attrs.frozen
class Encoder:
    """Encodes the events of one workflow: a log remembers what the `encode` of one of them made.

    Attributes:
        max_frame: Bytes of the data of an event, at most. In the place of larger data is its size.
        converter: Writes values of foreign classes (P7).
    """

    max_frame: int
    converter: BaseConverter | None = None

    def encode(self, record: EventRecord) -> bytes:
        """Return an event as a frame of an event stream: the other formats are cut out of it.

        Only public events have an id, the cursor to come back with.
        """
        data = dumps(to_data(record.event, converter=self.converter))
        if len(data) > self.max_frame:
            data = dumps({"$too_large": len(data)})
        facts = describe_record_without_data(record)
        text = b'%b,"data":%b}\n\n' % (dumps(facts)[:-1], data)
        if "internal" in facts:
            return b"data: " + text
        return b"id: %d\ndata: %b" % (record.seq, text)


def json_of(frame: bytes) -> bytes:
    """Return the JSON in a frame that an `Encoder` made."""
    return frame[frame.index(b"{") : -2]


class EventStreamFormat:
    """`text/event-stream`, by the HTML standard."""

    media_type = "text/event-stream; charset=utf-8"
    heartbeat = b":\n\n"

    def start(self) -> bytes:
        """Return what a stream begins with: when to come back, not all at the same moment."""
        return b"retry: %d\n\n" % (500 + secrets.randbelow(1501))

    def event(self, frame: bytes) -> bytes:
        """Return an event."""
        return frame

    def control(self, name: str, data: Any) -> bytes:
        """Return what is no event of the run, and has no id."""
        return b"event: %b\ndata: %b\n\n" % (name.encode(), dumps(data))

    def cursor(self, number: int) -> bytes:
        """Return a heartbeat that moves the cursor of the client: an id without data is no event."""
        return b"id: %d\n\n" % number


class LinesFormat:
    """`application/x-ndjson`: one JSON value a line."""

    media_type = "application/x-ndjson"
    heartbeat = b"\n"

    def start(self) -> bytes:
        """Return what a stream begins with."""
        return b""

    def event(self, frame: bytes) -> bytes:
        """Return an event."""
        return json_of(frame) + b"\n"

    def control(self, name: str, data: Any) -> bytes:
        """Return what is no event of the run."""
        return dumps({name: data}) + b"\n"

    def cursor(self, number: int) -> bytes:
        """Return a heartbeat: only the numbers of events, and of the last one at the end, are told here."""
        return self.heartbeat


StreamFormat = EventStreamFormat | LinesFormat
