"""What the tests of the command line share: workflows to run, and the command in this process or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
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
