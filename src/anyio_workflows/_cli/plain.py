"""A run line by line: for pipes, files, and terminals that can do nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

import attrs

from .keys import LineReader
from .texts import (
    Data,
    duration,
    ending_lines,
    event_text,
    gap_text,
    is_token,
    is_trouble,
    only_text,
    printable,
    question_text,
    seconds_between,
    state_text,
)

WIDTH = 100
_INDENT = " " * 15


@attrs.define
class PlainView:
    """Writes a line for each event to standard error; tokens are joined to lines of text.

    Attributes:
        internal: Whether each change of a step is written too, not only failures.
        quiet: Whether nothing is written but what a person has to know: a question to be answered, a failure.
    """

    internal: bool = False
    quiet: bool = False
    _out: TextIO = attrs.field(factory=lambda: sys.stderr)
    _lines: LineReader = attrs.field(factory=LineReader)
    _created: str | None = None
    _asked: set[str] = attrs.field(factory=set)
    _token: str = ""
    """The name of the events whose texts are being joined."""
    _text: str = ""
    """Those that are not written yet."""

    def begin(self, run: Data, how: str) -> None:
        """Say which run it is."""
        self._created = run["created"]
        if not self.quiet:
            self._write(f"{run['workflow']} {run['id']} {how}")

    def show(self, item: Data) -> None:
        """Write an event, or a gap."""
        if self.quiet:
            return
        if "gap" in item:
            self._flush()
            self._write(gap_text(item["gap"]))
        elif "internal" in item:
            if self.internal or is_trouble(item):
                self._flush()
                self._write_event(item, "-")
        elif (text := only_text(item)) is not None and is_token(text) and not self.internal:
            self._join(item, text)
        else:
            self._flush()
            self._write_event(item, str(item["seq"]))

    def update(self, run: Data, questions: Sequence[Data]) -> None:
        """Write the questions that are new."""
        if not self.quiet:
            self._write_questions(questions)

    def note(self, text: str) -> None:
        """Write a line."""
        self._flush()
        self._write(text)

    def ask(self, question: Data) -> None:
        """Write the question that is to be answered now, if that is not done."""
        self._write_questions([question])

    async def read_line(self, prompt: str, hint: str = "") -> str | None:
        """Ask for a line of standard input; `None` at its end."""
        self._flush()
        if hint:
            self._write(hint)
        print(prompt, end="", file=self._out, flush=True)
        return await self._lines.read()

    def end(self, run: Data) -> None:
        """Write how the run has ended."""
        self._flush()
        if not self.quiet or run["status"] != "completed":
            for line in ending_lines(run):
                self._write(line)

    def _write_questions(self, questions: Sequence[Data]) -> None:
        for question in questions:
            if question["id"] not in self._asked:
                self._asked.add(question["id"])
                self._flush()
                self._write(f"{_INDENT}? {question['step']} asks: {question_text(question)}")

    def close(self) -> None:
        """Write what was joined."""
        self._flush()

    def _write_event(self, event: Data, number: str) -> None:
        if (state := state_text(event)) is not None:
            said = f"step {event['data']['name']} {state}"
        else:
            said = f"{event['type']}  {event_text(event)}".rstrip()
        self._write(f"{self._head(event, number)}{said}")

    def _head(self, event: Data, number: str) -> str:
        since = duration(seconds_between(self._created, event["time"]))
        return f"{number:>5} {since:>8} "

    def _join(self, event: Data, text: str) -> None:
        if self._token != event["type"]:
            self._flush()
            self._token = event["type"]
            self._text = f"{self._head(event, str(event['seq']))}{self._token}  "
        self._text += printable(text)
        while len(self._text) > WIDTH:
            cut = self._text.rfind(" ", len(_INDENT) + 20, WIDTH)
            cut = WIDTH if cut < 0 else cut
            self._write(self._text[:cut])
            self._text = _INDENT + self._text[cut:].lstrip()

    def _flush(self) -> None:
        """Write the texts that were joined."""
        if self._text.strip():
            self._write(self._text.rstrip())
        self._token = self._text = ""

    def _write(self, line: str) -> None:
        print(line, file=self._out, flush=True)
