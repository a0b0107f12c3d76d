"""The parser of event streams against the rules of the HTML standard, read one after the other (9.2.6)."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_workflows.client._sse import EventStreamParser, ServerSentEvent


def by_the_standard(stream: bytes) -> tuple[list[ServerSentEvent], int | None]:
    """Return the events of a whole stream, and its reconnection time: the standard's algorithm, word by word."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, _incomplete = re.split("\r\n|\n|\r", text)
    data, event_type, last_id_buffer, last_id = "", "", "", ""
    events: list[ServerSentEvent] = []
    retry = None
    for line in lines:
        if line == "":
            last_id = last_id_buffer
            if data == "":
                event_type = ""
                continue
            if data[-1] == "\n":
                data = data[:-1]
            events.append(ServerSentEvent(event_type or "message", data, last_id))
            data, event_type = "", ""
            continue
        if line[0] == ":":
            continue
        if ":" in line:
            field, value = line.split(":", 1)
            if value[:1] == " ":
                value = value[1:]
        else:
            field, value = line, ""
        if field == "event":
            event_type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            last_id_buffer = value
        elif field == "retry" and re.fullmatch("[0-9]{1,15}", value):
            retry = int(value)
    return events, retry


def parse(*chunks: bytes) -> tuple[list[ServerSentEvent], int | None]:
    parser = EventStreamParser()
    return [event for chunk in chunks for event in parser.feed(chunk)], parser.retry


def message(data: str, last_id: str = "") -> ServerSentEvent:
    return ServerSentEvent("message", data, last_id)


PIECES = [
    *(
        "data",
        "event",
        "id",
        "retry",
        "dat",
        "Data",
        ":",
        ": ",
        " ",
        "x",
        "gap",
        "end",
        "7",
        "1500",
    ),
    *("\r", "\n", "\r\n", "\n\n", "\0", "\ufeff", "é", "日本", "😀", "\u2028", "\x85", "\x0b"),
    *("٣", "9" * 16, "-1"),
]
STREAMS = st.lists(
    st.sampled_from([piece.encode() for piece in PIECES]) | st.binary(max_size=3), max_size=40
).map(b"".join)


@st.composite
def split_streams(draw: st.DrawFn) -> list[bytes]:
    stream = draw(STREAMS)
    places = draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    return [stream[start:end] for start, end in pairwise([0, *places, len(stream)])]


@given(split_streams())
@example([b"data: \xf0\x9f", b"\x98\x80\r", b"", b"\n\r", b"\n"])
@example([b"\xef\xbb", b"\xbfdata: x\n\n"])
@example([b"data: 1\r", b"\n", b"\n"])
def test_any_split_of_any_bytes_gives_what_the_standard_says(chunks: list[bytes]):
    assert parse(*chunks) == by_the_standard(b"".join(chunks))


@given(STREAMS)
def test_byte_by_byte_gives_the_same(stream: bytes):
    assert parse(*(bytes([byte]) for byte in stream)) == by_the_standard(stream)


EXAMPLES = {
    "three of the standard": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [message("first event", "1"), message("second event"), message(" third event")],
    ),
    "empty data": (b"data\n\ndata\ndata\n\ndata:", [message(""), message("\n")]),
    "one space is removed": (b"data:test\n\ndata: test\n\n", [message("test")] * 2),
    "several lines": (b"data: YHOO\ndata: +2\ndata: 10\n\n", [message("YHOO\n+2\n10")]),
    "CR": (b"id: 4\rdata: a\r\rdata: b\r\r", [message("a", "4"), message("b", "4")]),
    "CRLF": (b"data: a\r\ndata: b\r\n\r\n", [message("a\nb")]),
    "a type lasts for one event": (
        b"event: gap\ndata: {}\n\ndata: 1\n\n",
        [ServerSentEvent("gap", "{}", ""), message("1")],
    ),
    "a type without data is dropped": (b"event: gap\n\ndata: 1\n\n", [message("1")]),
    "an id with NUL is ignored": (
        b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n",
        [message("a", "1"), message("b", "1")],
    ),
    "an id alone": (b"id: 9\n\ndata: a\n\n", [message("a", "9")]),
    "a mark of the byte order": (b"\xef\xbb\xbfdata: a\n\n", [message("a")]),
    "only the first mark": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    "other ends of lines are text": (
        "data: a\u2028b\x85c\x0cd\n\n".encode(),
        [message("a\u2028b\x85c\x0cd")],
    ),
    "bytes that are no text": (b"data: \xff\n\n", [message("\ufffd")]),
    "what is incomplete": (b"data: a\n\ndata: b\n", [message("a")]),
    "heartbeats": (b":\n\n: still here\n\n", []),
    "nothing": (b"", []),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name: str):
    stream, events = EXAMPLES[name]
    assert parse(stream)[0] == events == by_the_standard(stream)[0]


@pytest.mark.parametrize(
    ("line", "retry"),
    [
        (b"retry: 1500", 1500),
        (b"retry:0", 0),
        (b"retry: 007", 7),
        (b"retry", None),
        (b"retry: ", None),
        (b"retry: -1", None),
        (b"retry: 1.5", None),
        (b"retry: 1 ", None),
        (b"retry: " + "\u0663".encode(), None),
        (b"retry: " + b"9" * 10_000, None),
    ],
)
def test_the_time_until_the_next_attempt_is_digits(line: bytes, retry: int | None):
    assert parse(line + b"\n") == ([], retry)


def test_a_line_of_many_pieces_takes_linear_time():
    """Quadratic time would be 20 GB copied."""
    parser = EventStreamParser()
    parser.feed(b"data: ")
    for _ in range(200_000):
        assert parser.feed(b"x") == []
    assert parser.feed(b"\n\n") == [message("x" * 200_000)]
