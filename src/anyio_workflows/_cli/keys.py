"""What a person types, without blocking the event loop, and without a thread that outlives the question."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import anyio
import attrs
from anyio.lowlevel import checkpoint


@attrs.define
class LineReader:
    """Reads standard input line by line.

    Attributes:
        rest: What was read behind the end of a line.
    """

    rest: bytes = b""

    async def read(self) -> str | None:
        """Return a line, without its end; `None` if there is none any more."""
        if sys.stdin is None:  # it was closed before this process began
            return None
        file = sys.stdin.fileno()
        while b"\n" not in self.rest:
            await _until_readable(file)
            if not (more := os.read(file, 4096)):
                break
            self.rest += more
        line, newline, self.rest = self.rest.partition(b"\n")
        if not (line or newline):
            return None
        return line.decode(errors="replace").rstrip("\r")


async def _until_readable(file: int) -> None:
    try:
        await anyio.wait_readable(file)
    except OSError:  # a regular file can always be read
        await checkpoint()


@attrs.define
class LineEditor:
    """Lines that are typed key by key, in a terminal that neither echoes nor waits for the end of a line.

    Attributes:
        on_change: Called when the line has changed.
        text: What was typed of the line so far.
    """

    on_change: Callable[[], None]
    text: str = ""
    _ahead: list[str] = attrs.field(factory=list)
    """Keys behind the end of the line before."""

    _decoder: codecs.IncrementalDecoder = attrs.field(
        factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    async def read(self, file: int) -> str | None:
        """Return a line when it is complete; `None` for the end of the input."""
        self.text = ""
        while True:
            while self._ahead:
                key = self._ahead.pop(0)
                if key in "\r\n":
                    return self.text
                if key == "\x04" and not self.text:  # Ctrl-D
                    return None
                self._take(key)
            self.on_change()
            await _until_readable(file)
            if not (data := os.read(file, 1024)):
                return None
            keys = self._decoder.decode(data)
            if not keys.startswith("\x1b"):  # an arrow, or another key that has no place here
                self._ahead += keys

    def forget(self, file: int) -> None:
        """Drop what was typed so far, before there was a question."""
        import termios

        self._ahead.clear()
        termios.tcflush(file, termios.TCIFLUSH)

    def _take(self, key: str) -> None:
        match key:
            case "\x7f" | "\b":
                self.text = self.text[:-1]
            case "\x15":  # Ctrl-U
                self.text = ""
            case "\x17":  # Ctrl-W
                head, space, _ = self.text.rstrip().rpartition(" ")
                self.text = head + space
            case _ if key.isprintable():
                self.text += key


def in_foreground(file: int) -> bool:
    """Return whether a file is a terminal that listens to this process, and knows how to be read key by key."""
    try:
        import termios  # noqa: F401
    except ImportError:
        return False
    with suppress(OSError):
        return os.isatty(file) and os.tcgetpgrp(file) == os.getpgrp()
    return False


@contextmanager
def key_by_key(file: int) -> Iterator[None]:
    """Have a terminal give each key at once, and echo none; Ctrl-C stays what it is."""
    import termios
    import tty

    before = termios.tcgetattr(file)
    tty.setcbreak(file)
    try:
        yield
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
