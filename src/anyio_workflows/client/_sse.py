"""The parser of event streams: bytes in any pieces to events, by the rules of the HTML standard.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import codecs
import re

import attrs

_MILLISECONDS = re.compile("[0-9]{1,15}")
"""More digits, of many thousand years, are ignored."""


@attrs.frozen
class ServerSentEvent:
    """One event of a stream.

    Attributes:
        type: The value of its `event:` field; `"message"` if it had none.
        data: The values of its `data:` fields, one a line.
        id: The last id of the stream so far, its own included; empty if there was none, or an empty one.
    """

    type: str
    data: str
    id: str


@attrs.define(eq=False)
class EventStreamParser:
    """Reads one stream: `feed()` it what comes, in order. What is incomplete when the stream ends is no event.

    Attributes:
        retry: Milliseconds to wait before the stream is opened again, as the stream said last; `None` if it
            did not.
    """

    retry: int | None = None

    _decoder: codecs.IncrementalDecoder = attrs.field(
        init=False, factory=lambda: codecs.getincrementaldecoder("utf-8-sig")("replace")
    )
    """Takes characters that are split, and removes one byte order mark at the beginning."""

    _after_cr: bool = attrs.field(default=False, init=False)
    """Whether the last character was CR: it has ended a line already, so a LF that follows belongs to it."""

    _line: list[str] = attrs.field(factory=list, init=False)
    """The pieces of the line that has not ended: joined once, so that a long line takes linear time."""

    _type: str = attrs.field(default="", init=False)
    _data: list[str] = attrs.field(factory=list, init=False)
    _id: str = attrs.field(default="", init=False)

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the events that are complete with these bytes."""
        text = self._decoder.decode(chunk)
        if not text:
            return []
        follows_cr, self._after_cr = self._after_cr, text.endswith("\r")
        return self._take(text.removeprefix("\n") if follows_cr else text)

    def _take(self, text: str) -> list[ServerSentEvent]:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        # Not splitlines(), which knows more ends of lines.
        end, *lines = text.split("\n")
        self._line.append(end)
        if not lines:
            return []
        first, self._line = "".join(self._line), [lines.pop()]
        found: list[ServerSentEvent] = []
        for line in (first, *lines):
            if line:
                self._read_field(line)
            elif (event := self._dispatch()) is not None:
                found.append(event)
        return found

    def _read_field(self, line: str) -> None:
        name, _, value = line.partition(":")  # the name of a comment is empty
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id":
            if "\0" not in value:
                self._id = value
        elif name == "retry" and _MILLISECONDS.fullmatch(value):
            self.retry = int(value)

    def _dispatch(self) -> ServerSentEvent | None:
        """Return the event that an empty line ends; `None` if it has no data."""
        kind, data = self._type, self._data
        self._type, self._data = "", []
        return ServerSentEvent(kind or "message", "\n".join(data), self._id) if data else None
