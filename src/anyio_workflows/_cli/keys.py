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
    """A line that is being typed, key by key, in a terminal that neither echoes nor waits for the end of a line.

    Attributes:
        text: What was typed so far.
        on_change: Called after each key.
    """

    on_change: Callable[[], None]
    text: str = ""

    async def read(self, file: int) -> str | None:
        """Return the line when it is complete; `None` for the end of the input."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while True:
            await _until_readable(file)
            data = os.read(file, 1024)
            if not data:
                return None
            keys = decoder.decode(data)
            if keys.startswith("\x1b"):
                continue  # an arrow, or another key that has no place here
            for key in keys:
                match key:
                    case "\r" | "\n":
                        return self.text
                    case "\x04" if not self.text:  # Ctrl-D
                        return None
                    case "\x7f" | "\b":
                        self.text = self.text[:-1]
                    case "\x15":  # Ctrl-U
                        self.text = ""
                    case "\x17":  # Ctrl-W
                        self.text = self.text.rstrip().rpartition(" ")[0]
                    case _ if key.isprintable():
                        self.text += key
            self.on_change()


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


def forget_typed(file: int) -> None:
    """Drop what was typed before the question was there."""
    import termios

    termios.tcflush(file, termios.TCIFLUSH)
