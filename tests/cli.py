"""What the tests of the command line share: workflows to run, and the command in this process or in one of its own."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows._cli.main import main
from anyio_workflows.testing import virtual_time

from .locks import with_locks as with_locks
from .running import PATIENCE

ROOT = Path(__file__).parent.parent


class Greeting(StartEvent):
    """Whom to greet."""

    name: str
    times: int = 1
    loud: bool = False


class Word(Event):
    text: str


class Said(Event):
    text: str
    number: int


class Greet(Workflow[str]):
    """Says hello."""

    @step
    async def greet(self, ctx: Context, ev: Greeting) -> StopEvent:
        for number in range(ev.times):
            await anyio.sleep(1)
            ctx.write_event_to_stream(Said(text="hello", number=number))
        for word in ["how ", "are ", "you"]:
            ctx.write_event_to_stream(Word(text=word))
        name = ev.name.upper() if ev.loud else ev.name
        return StopEvent(result=f"hello {name}")


class Messages(Workflow):
    @step
    async def speak(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for text in ["first step", "second step", "one", "two", " three"]:
            ctx.write_event_to_stream(Word(text=text))
        return StopEvent(result=1)


class Open(Workflow):
    """Takes any fields."""

    @step
    async def give_back(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=dict(ev))


class Question(InputRequiredEvent):
    text: str
    why: str = "nobody else knows"


class Answer(HumanResponseEvent):
    approved: bool
    comment: str = ""
    level: int = 1


class Ask(Workflow):
    """Asks until somebody approves."""

    def __init__(self) -> None:
        super().__init__(timeout=None)

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        said = []
        for number in range(10):
            question = Question(text=f"good enough, at try {number}?")
            answer = await ctx.wait_for_event(Answer, question, timeout=None)
            said.append(answer.comment)
            if answer.approved:
                break
        return StopEvent(result=said)


class AskFreely(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent, timeout=None)
        return StopEvent(result=dict(answer))


class Fail(Workflow):
    @step
    async def break_down(self, ev: StartEvent) -> StopEvent:
        raise ValueError("out of stock\nand out of order")


class Slow(Workflow):
    def __init__(self) -> None:
        super().__init__(timeout=60)

    @step
    async def sleep(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Said(text="asleep", number=0))
        try:
            await anyio.sleep(100)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.1)
                ctx.write_event_to_stream(Said(text="tidied up", number=1))
        return StopEvent()


class Stubborn(Workflow):
    @step
    async def sleep(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Said(text="asleep", number=0))
        try:
            await anyio.sleep(1000)
        finally:
            with anyio.CancelScope(shield=True):
                ctx.write_event_to_stream(Said(text="tidying up", number=1))
                await anyio.sleep(1000)
        return StopEvent()


stubborn = Stubborn(cleanup_timeout=1000)


class NeedsArguments(Workflow):
    def __init__(self, model: str) -> None:
        super().__init__(workflow_name="with-model")
        self.model = model

    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=self.model)


parrot = NeedsArguments("parrot-1")
not_a_workflow = 17


@attrs.frozen
class Done:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """The lines of JSON in its output."""
        return [json.loads(line) for line in self.out.splitlines()]


@attrs.define
class Cli:
    """Runs commands in this process, under virtual time."""

    backend: str
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *argv: str) -> Done:
        """Run a command that runs a workflow."""
        _, options = virtual_time(self.backend)
        try:
            status = main([*argv, "--backend", self.backend], options)
        except SystemExit as error:
            status = int(str(error.code))
        out, err = self.capsys.readouterr()
        return Done(status, out, err)


def here(name: str) -> str:
    """Return how the command line names a workflow of this module."""
    return f"{__name__}:{name}"


COMMAND = [sys.executable, "-X", "dev", "-W", "error", "-m", "anyio_workflows"]


def run_command(*argv: str, typed: str | None = None, cwd: Path = ROOT) -> Done:
    """Run a command in a process of its own, with pipes around it."""
    done = subprocess.run(
        [*COMMAND, *argv],
        input=typed,
        stdin=subprocess.DEVNULL if typed is None else None,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=cwd,
    )
    return Done(done.returncode, done.stdout, without_slowness(done.stderr))


def without_slowness(err: str) -> str:
    """Leave out what asyncio's debug mode says on a slow machine."""
    return "".join(line for line in err.splitlines(True) if not line.startswith("Executing <"))


class Process:
    """A command in a process of its own, read while it runs. It is killed if it hangs.

    Args:
        argv: The arguments.
        environment: Variables besides those of this process.
    """

    def __init__(self, *argv: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        self.timer = threading.Timer(PATIENCE, self.process.kill)
        self.timer.daemon = True
        self.timer.start()
        self.read = ""

    def line_with(self, wanted: str, stream: str = "stdout") -> str:
        """Read lines until one of them has this in it."""
        file = getattr(self.process, stream)
        for line in file:
            if wanted in line:
                return str(line.rstrip("\n"))
        raise AssertionError(f"it ended before {wanted!r}: {self.end()}")

    def send(self, sign: int) -> None:
        """Send a signal."""
        self.process.send_signal(sign)

    def end(self) -> Done:
        """Wait for the end; returns what else it printed."""
        out, err = self.process.communicate()
        self.timer.cancel()
        return Done(self.process.returncode, out, without_slowness(err))


_IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """A command in a terminal of its own: what it shows, and keys.

    Attributes:
        text: All that it has shown so far, without what moves the cursor and colours.
    """

    def __init__(self, *argv: str, columns: int = 100, rows: int = 40, term: str = "xterm") -> None:
        import fcntl
        import pty
        import struct
        import termios

        self.file, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, *COMMAND[1:], *argv],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            cwd=ROOT,
            env={**os.environ, "TERM": term, "COLUMNS": "", "LINES": ""},
            start_new_session=True,
        )
        os.close(inside)
        self.timer = threading.Timer(PATIENCE, self.process.kill)
        self.timer.daemon = True
        self.timer.start()
        self.text = ""

    def wait_for(self, wanted: str, after: int = 0) -> int:
        """Read until it shows this, behind a position; returns the position behind it."""
        while wanted not in self.text[after:]:
            assert self._read(), f"it ended before {wanted!r}: {self.text[-2000:]}"
        return self.text.index(wanted, after) + len(wanted)

    def type(self, keys: str) -> None:
        """Type keys."""
        os.write(self.file, keys.encode())

    def end(self) -> int:
        """Read to the end; returns the exit status."""
        while self._read():
            pass
        status = self.process.wait()
        self.timer.cancel()
        os.close(self.file)
        return status

    def _read(self) -> bool:
        select.select([self.file], [], [], PATIENCE)
        data = b""
        with suppress(OSError):  # Linux says EIO at the end
            data = os.read(self.file, 65536)
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))
        self.text += shown.replace("\r\n", "\n").replace("\r", "\n")
        return bool(data)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let the processes of a test take SIGINT, which a shell has its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
