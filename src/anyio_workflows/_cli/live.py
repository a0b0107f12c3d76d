"""A run in a part of the terminal that is drawn again and again: steps, the latest events, the open question. It needs rich."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import attrs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .keys import LineEditor, LineReader, in_foreground, key_by_key
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

_STYLES = {
    "running": "blue",
    "waiting": "yellow",
    "completed": "green",
    "failed": "red",
    "timed_out": "red",
    "cancelled": "magenta",
    "stuck": "red",
    "incompatible": "red",
    "queued": "dim",
    "delayed": "yellow",
    "done": "green",
    "retried": "yellow",
}
_OPEN = ("running", "queued", "waiting", "delayed")
_SHOWN = (*_OPEN, "done", "failed", "cancelled", "retried")
_MOST_LINES = 200
_LONGEST_GROUP = 1_000


@attrs.define
class _Line:
    """An event, or several of the same kind that have only a text: tokens.

    Attributes:
        head: Its number and time.
        name: The name of its class.
        text: What is in it.
        style: How it looks.
        group: Whether further texts of such events are appended.
    """

    head: str
    name: str
    text: str
    style: str = ""
    group: bool = False

    def drawn(self, width: int) -> Text:
        """Return the line; a longer group shows its end."""
        line = Text(f"{self.head} ", style="dim", no_wrap=True, overflow="ellipsis")
        line.append(f"{self.name}  " if self.name else "", style="cyan")
        text, room = self.text, width - len(line)
        if self.group and len(text) > room > 1:
            text = f"…{text[1 - room :]}"
        line.append(text, style=self.style)
        return line


@attrs.define
class LiveView:
    """Draws a run on standard error.

    Attributes:
        internal: Whether each change of a step is among the events, not only failures.
        console: The terminal.
        live: The part of it that is drawn again.
        held: Gives the terminal back when it is closed.
    """

    internal: bool
    console: Console
    live: Live = attrs.field(init=False)
    held: ExitStack = attrs.field(factory=ExitStack)
    _run: Data = attrs.field(factory=dict)
    _questions: Sequence[Data] = ()
    _lines: deque[_Line] = attrs.field(factory=lambda: deque(maxlen=_MOST_LINES))
    _prompt: str = ""
    _hint: str = ""
    _asked: str | None = None
    """The id of the question that is being answered."""
    _editor: LineEditor = attrs.field(
        default=attrs.Factory(lambda self: LineEditor(self.refresh), takes_self=True)
    )
    _reader: LineReader = attrs.field(factory=LineReader)

    def begin(self, run: Data, how: str) -> None:
        """Draw a run for the first time."""
        self._run = run
        self.refresh()

    def show(self, item: Data) -> None:
        """Take in an event, or a gap; it is drawn with the next `update()`."""
        if "gap" in item:
            self.note(gap_text(item["gap"]))
            return
        if "internal" in item and not (self.internal or is_trouble(item)):
            return
        number = "" if "internal" in item else str(item["seq"])
        since = duration(seconds_between(self._run["created"], item["time"]))
        head = f"{number:>5} {since:>7}"
        if (state := state_text(item)) is not None:
            style = "yellow" if is_trouble(item) else "dim"
            self._lines.append(_Line(head, "", f"step {item['data']['name']} {state}", style))
        elif (text := only_text(item)) is not None and is_token(text):
            last = self._lines[-1] if self._lines else None
            if last is not None and last.group and last.name == item["type"]:
                last.text = (last.text + printable(text))[-_LONGEST_GROUP:]
            else:
                self._lines.append(_Line(head, item["type"], printable(text), group=True))
        else:
            self._lines.append(_Line(head, item["type"], event_text(item)))

    def update(self, run: Data, questions: Sequence[Data]) -> None:
        """Draw the run as it stands."""
        self._run, self._questions = run, questions
        self.refresh()

    def note(self, text: str) -> None:
        """Show a line among the events."""
        self._lines.append(_Line(" " * 13, "", printable(text), "yellow"))
        self.refresh()

    def end(self, run: Data) -> None:
        """Draw the run as it ended, below which its error is written."""
        self._run, self._questions = run, ()
        self.refresh()

    def close(self) -> None:
        """Leave the terminal as it was, at once."""
        self.held.close()

    def refresh(self) -> None:
        """Draw everything again."""
        self.live.update(self._drawn(), refresh=True)

    def ask(self, question: Data) -> None:
        """Show this one of the open questions; what was typed before does not answer it."""
        self._asked = question["id"]
        if in_foreground(file := sys.stdin.fileno()):
            self._editor.forget(file)

    async def read_line(self, prompt: str, hint: str = "") -> str | None:
        """Let a person type a line below the question; `None` at the end of the input."""
        self._prompt, self._hint, self._editor.text = prompt, hint, ""
        self.refresh()
        try:
            if in_foreground(file := sys.stdin.fileno()):
                return await self._editor.read(file)
            return await self._reader.read()
        finally:
            self._prompt = ""

    # --- Drawing ------------------------------------------------------------------------------------

    def _drawn(self) -> RenderableType:
        width, height = self.console.size
        question = self._drawn_question(width, min(6, height // 4))
        steps = self._drawn_steps(width, max(3, height // 2))
        room = height - len(question) - steps.row_count - 4
        shown = [*self._lines][-max(1, min(room, 12)) :]
        lines = [line.drawn(width) for line in shown]
        return Group(self._drawn_head(), steps, Text(""), *lines, *question)

    def _drawn_head(self) -> Table:
        run = self._run
        until = run["ended"] or datetime.now(UTC).isoformat()
        since = seconds_between(run["created"], until)
        status = Text(str(run["status"]).replace("_", " "), style=f"bold {_STYLES[run['status']]}")
        elapsed = duration(since) if run["ended"] else duration(int(since)).replace(".0", "")
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(no_wrap=True, ratio=1)
        head.add_column(justify="right", no_wrap=True)
        name = Text(run["workflow"], style="bold").append(f" {run['id']}", style="not bold dim")
        head.add_row(name, status.append(f"  {elapsed:>6}", style="not bold default"))
        return head

    def _drawn_steps(self, width: int, most: int) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        steps: dict[str, Data] = self._run["steps"]
        longest = max((len(name) for name in steps), default=0) + 2
        names, bars = min(longest, max(12, width // 4)), min(20, width // 5)
        table.add_column(no_wrap=True, width=names)
        table.add_column(no_wrap=True, width=bars)
        table.add_column(no_wrap=True, width=width - names - bars - 6)
        if len(steps) > most:  # those that do something are worth more
            steps = {
                name: counts
                for name, counts in steps.items()
                if any(counts[key] for key in (*_OPEN, "failed"))
            }
        for name, counts in [*steps.items()][:most]:
            total = counts["done"] + sum(counts[key] for key in _OPEN)
            fine = counts["done"] - counts["failed"] - counts["cancelled"]
            numbers = {**counts, "done": fine}
            words = Text(no_wrap=True, overflow="ellipsis")
            for key in _SHOWN:
                if numbers[key]:
                    words.append(f"{numbers[key]} {key}  ", style=_STYLES[key])
            bar: RenderableType = Text("")
            if total:
                bar = ProgressBar(
                    total,
                    counts["done"],
                    finished_style="green",
                    complete_style="blue",
                )
            table.add_row(Text(f"  {name}", style="" if total else "dim"), bar, words)
        return table

    def _drawn_question(self, width: int, most: int) -> list[Text]:
        if not self._questions:
            return []
        question = next(
            (one for one in self._questions if one["id"] == self._asked), self._questions[0]
        )
        asked = f"{question['step']} asks: {question_text(question)}"
        text = Text(f"? {asked}", style="yellow")
        lines = [Text(""), *text.wrap(self.console, width)[:most]]
        if (more := len(self._questions) - 1) > 0:
            lines.append(Text(f"  and {more} more open question{'s' * (more > 1)}", style="dim"))
        if self._prompt:
            if self._hint:
                lines.append(Text(f"  {printable(self._hint)}", style="dim", no_wrap=True))
            room = max(10, width - len(self._prompt) - 5)
            line = Text(f"  {self._prompt}", style="bold", no_wrap=True)
            line.append(self._editor.text[-room:], style="not bold default").append(
                "▏", style="blink"
            )
            lines.append(line)
        return lines


@contextmanager
def live_view(internal: bool) -> Iterator[LiveView]:
    """Draw a run until the block is left; what is printed meanwhile appears above it."""
    console = Console(stderr=True, highlight=False)
    view = LiveView(internal, console)
    with view.held as stack:
        file = sys.stdin.fileno() if sys.stdin is not None else -1
        if in_foreground(file):
            stack.enter_context(key_by_key(file))
        view.live = Live(
            console=console,
            auto_refresh=False,
            vertical_overflow="crop",
            redirect_stdout=sys.stdout.isatty(),
        )
        stack.enter_context(view.live)
        yield view
    if view._run.get("error") is not None:
        for line in ending_lines(view._run):
            console.print(Text(line, style="red"))
