"""One run, from a cursor to its end: shown to a person or a program, and its questions answered."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import anyio
import attrs

from .texts import Data
from .values import Record

AT_LEAST_EVERY = 1.0
"""Seconds between two looks while no event tells of a change: events about steps come from this process only."""


class QuestionClosed(Exception):
    """Somebody else has answered, or the run has ended."""


class AnswerRefused(Exception):
    """An answer does not fit; the question stays open."""


class FollowedRun(Protocol):
    """A run to follow: in a `Runtime` here, or in one behind a server. Both speak as the wire does.

    Attributes:
        pause: Seconds between two looks at the run while something happens, at least.
    """

    @property
    def pause(self) -> float: ...

    def items(self, after: int) -> AsyncIterator[Data]:
        """Return the events from a cursor to the end, internal ones too; and gaps, as `{"gap": {...}}`."""
        ...

    async def whole(self) -> Data:
        """Return the run with its result and counts."""
        ...

    async def questions(self) -> list[Data]:
        """Return the open questions."""
        ...

    async def answer(self, question_id: str, data: Data) -> None:
        """Answer one.

        Raises:
            AnswerRefused: If the data do not fit.
            QuestionClosed: If it is not open any more.
        """
        ...

    async def cancel(self) -> None:
        """Cancel the run, and wait for its end."""
        ...


class View(Protocol):
    """Shows a run."""

    def begin(self, run: Data, how: str) -> None:
        """Say which run it is, and whether it starts or continues."""
        ...

    def show(self, item: Data) -> None:
        """Take in an event, or a gap."""
        ...

    def update(self, run: Data, questions: Sequence[Data]) -> None:
        """Take in how the run stands, and which questions are open."""
        ...

    def note(self, text: str) -> None:
        """Tell the person something."""
        ...

    def end(self, run: Data) -> None:
        """Show how the run has ended."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was, at once."""
        ...


class Answerer(Protocol):
    """Answers questions: a person, or arguments of the command."""

    async def answer_to(self, question: Data) -> Data | None:
        """Return the data of an answer; `None` if there is none. Cancelled when the question is closed."""
        ...


@attrs.define
class JsonView:
    """Writes one JSON object per line, as the wire does: events, gaps, the end, and then the run.

    Attributes:
        internal: Whether events about the run itself are written.
    """

    internal: bool

    def begin(self, run: Data, how: str) -> None:
        """Write nothing: the run is written at its end."""

    def show(self, item: Data) -> None:
        if self.internal or "internal" not in item:
            write_json(item)

    def update(self, run: Data, questions: Sequence[Data]) -> None:
        pass

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def end(self, run: Data) -> None:
        write_json({"end": {"status": run["status"], "last": run["last_seq"]}})
        write_json(run)

    def close(self) -> None:
        """Do nothing: the terminal is as it was."""


def write_json(data: object) -> None:
    """Write one line of JSON to standard output; where that is not in UTF-8, with its escapes for all other characters."""
    ascii_only = sys.stdout.encoding not in ("utf-8", None)
    print(json.dumps(data, ensure_ascii=ascii_only, separators=(",", ":")), flush=True)


@attrs.define
class _Following:
    """What `follow()` knows."""

    run: FollowedRun
    view: View
    answerer: Answerer | None
    advice: str

    changed: anyio.Event = attrs.field(factory=anyio.Event)
    asked: str | None = None
    """The id of the question that is being answered, and the scope of that."""
    asking: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)

    unanswered: set[str] = attrs.field(factory=set)
    """Questions for which there was no answer."""
    advised: set[str] = attrs.field(factory=set)
    """Those that stay open if nobody else answers, of which this was said."""

    async def read(self, after: int) -> None:
        """Show all events."""
        async for item in self.run.items(after):
            self.view.show(item)
            self.changed.set()

    async def look(self) -> None:
        """Look at the run whenever something has happened, and see to its questions."""
        async with anyio.create_task_group() as group:
            while True:
                self.changed = anyio.Event()
                run = await self.run.whole()
                questions = await self.run.questions() if run["questions"] else []
                self.view.update(run, questions)
                self.see_to(questions, group)
                await anyio.sleep(self.run.pause)
                with anyio.move_on_after(AT_LEAST_EVERY):
                    await self.changed.wait()

    def see_to(self, questions: Sequence[Data], group: Any) -> None:
        """Stop asking what is closed, and ask the oldest of what is open."""
        still_open = [question["id"] for question in questions]
        if self.asked is not None and self.asked not in still_open:
            self.asking.cancel()
        if self.asked is None and self.answerer is not None:
            ahead = (one for one in questions if one["id"] not in self.unanswered)
            if (question := next(ahead, None)) is not None:
                self.asked, self.asking = question["id"], anyio.CancelScope()
                group.start_soon(self.ask, self.answerer, question)
        for question in questions:
            key = question["id"]
            stays_open = self.answerer is None or key in self.unanswered
            if self.advice and stays_open and key not in self.advised:
                self.advised.add(key)
                usage = Record.of(question["schema"]).usage
                self.view.note(f"nothing here answers {question['step']}: {self.advice}; {usage}")

    async def ask(self, answerer: Answerer, question: Data) -> None:
        """Ask until there is an answer that fits, or the question is closed."""
        try:
            with self.asking:
                while True:
                    data = await answerer.answer_to(question)
                    if data is None:
                        self.unanswered.add(question["id"])
                        return
                    try:
                        await self.run.answer(question["id"], data)
                        return
                    except AnswerRefused as error:
                        self.view.note(str(error))
                    except QuestionClosed as error:
                        self.view.note(str(error))
                        return
        finally:
            self.asked = None
            self.changed.set()


async def follow(
    run: FollowedRun,
    view: View,
    after: int = 0,
    answerer: Answerer | None = None,
    advice: str = "",
) -> Data:
    """Show a run until it has ended, and have its questions answered.

    Args:
        run: The run.
        view: Where it is shown.
        after: The number of the last event that is not shown.
        answerer: What answers its questions; `None` if others do.
        advice: How an answer can be given, to be said once of each question that has none from here; empty to say nothing.

    Returns:
        The run as it ended.
    """
    following = _Following(run, view, answerer, advice)
    async with anyio.create_task_group() as group:
        group.start_soon(following.look)
        await following.read(after)
        group.cancel_scope.cancel()
    ended = await run.whole()
    view.end(ended)
    return ended
