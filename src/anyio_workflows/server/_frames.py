"""Events as bytes: frames of an event stream, lines, and items of a page."""

from __future__ import annotations

import json
from typing import Any

import orjson

from .._documents import describe_gap, describe_record
from ..instrument import EventRecord
from ..runtime import Gap


def dumps(data: Any) -> bytes:
    """Return data as JSON. What orjson refuses, very large integers and lone surrogates, takes longer."""
    try:
        return orjson.dumps(data)
    except (orjson.JSONEncodeError, RecursionError):
        return json.dumps(data, separators=(",", ":")).encode()


def sse_frame(record: EventRecord) -> bytes:
    """Return an event as a frame of an event stream. Only public events have an id: the cursor to come back with."""
    facts = describe_record(record)
    text = dumps(facts)
    if "internal" in facts:
        return b"data: %b\n\n" % text
    return b"id: %d\ndata: %b\n\n" % (record.seq, text)


def json_of(frame: bytes) -> bytes:
    """Return the JSON in a frame that `sse_frame()` made."""
    return frame[frame.index(b"{") : -2]


def control_frame(event: str, data: Any) -> bytes:
    """Return a frame that is no event of the run, and has no id."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), dumps(data))


def gap_data(gap: Gap) -> Any:
    """Return what is said about events that are gone."""
    return describe_gap(gap)
