"""The demo: three steps stream a text like a slow provider, and the run ends as requested."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Self

import anyio

from .context import Context
from .events import (
    Event,
    StartEvent,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from .handler import WorkflowHandler
from .steps import step
from .workflow import Workflow

ENDINGS: Mapping[str, type[StopEvent]] = {
    "stop": StopEvent,
    "timeout": WorkflowTimedOutEvent,
    "cancel": WorkflowCancelledEvent,
    "fail": WorkflowFailedEvent,
}
"""Each ending that can be asked for, and the terminal event it shows."""

_SECONDS_PER_WORD = 0.03
_AMPLE_TIMEOUT = 30.0
_SHORT_TIMEOUT = 1.2
_WORDS_UNTIL_CANCEL = 12
_WORDS_UNTIL_FAILURE = 30
_COLUMNS = 80


class FirstEvent(Event):
    """Step one is done."""

    first_output: str


class SecondEvent(Event):
    """Step two is done."""

    second_output: str
    response: str


class ProgressEvent(Event):
    """Progress to show during the run: a message, or a word with the space after it."""

    msg: str


class ProviderError(ConnectionError):
    """The provider went away in the middle of its answer."""


class SlowText:
    """Yield the words of a text one at a time, each with a space after it.

    Args:
        text: The text.
        fails_after: How many words come before the provider goes away; `None` for all of them.
    """

    def __init__(self, text: str, fails_after: int | None = None) -> None:
        self._words = iter(text.split()[:fails_after])
        self._fails_after = fails_after

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """Return the next word.

        Raises:
            ProviderError: After `fails_after` words.
        """
        await anyio.sleep(_SECONDS_PER_WORD)
        for word in self._words:
            return f"{word} "
        if self._fails_after is not None:
            raise ProviderError(f"the provider hung up after {self._fails_after} words")
        raise StopAsyncIteration


class DemoWorkflow(Workflow[str]):
    """Three steps; the second streams the answer of a provider."""

    def __init__(self, provider: SlowText, timeout: float) -> None:
        super().__init__(timeout=timeout)
        self.provider = provider

    @step
    async def step_one(self, ctx: Context, ev: StartEvent) -> FirstEvent:
        """Announce the work."""
        ctx.write_event_to_stream(ProgressEvent(msg="Step one is happening"))
        return FirstEvent(first_output="First step complete.")

    @step
    async def step_two(self, ctx: Context, ev: FirstEvent) -> SecondEvent:
        """Pass the provider's words on, one by one."""
        response = ""
        async for word in self.provider:
            ctx.write_event_to_stream(ProgressEvent(msg=word))
            response += word
        return SecondEvent(
            second_output="Second step complete, full response attached", response=response
        )

    @step
    async def step_three(self, ctx: Context, ev: SecondEvent) -> StopEvent:
        """End the run."""
        ctx.write_event_to_stream(ProgressEvent(msg="Step three is happening"))
        return StopEvent(result="Workflow complete.")


class Page:
    """Prints words as they arrive, wrapped to the width of the page.

    Attributes:
        words: How many words have been printed.
    """

    def __init__(self) -> None:
        self.words = 0
        self._column = 0

    def print_word(self, word: str) -> None:
        """Print a word on the current line if it fits there, else on the next."""
        if self._column + 1 + len(word) > _COLUMNS:
            self.end_line()
        shown = f" {word}" if self._column else word
        print(shown, end="", flush=True)
        self._column += len(shown)
        self.words += 1

    def print_line(self, line: str) -> None:
        """Print a line of its own."""
        self.end_line()
        print(line, flush=True)

    def end_line(self) -> None:
        """Begin a new line, unless the current one is empty."""
        if self._column:
            print(flush=True)
            self._column = 0


def run_demo(
    backend: str, end: str, timeout: float | None, backend_options: dict[str, Any] | None = None
) -> int:
    """Run the demo; return 0 if the run ended as requested or in the given timeout, else 1.

    Args:
        backend: `"asyncio"` or `"trio"`.
        end: A key of `ENDINGS`.
        timeout: Seconds that the run may take; `None` for a time that suits `end`.
        backend_options: For `anyio.run()`.
    """
    text = files("anyio_workflows").joinpath("demo_text.txt").read_text("utf-8")
    provider = SlowText(text, _WORDS_UNTIL_FAILURE if end == "fail" else None)
    expected = {ENDINGS[end]}
    if timeout is not None:
        expected.add(WorkflowTimedOutEvent)
    else:
        timeout = _SHORT_TIMEOUT if end == "timeout" else _AMPLE_TIMEOUT
    workflow = DemoWorkflow(provider, timeout)
    words_until_cancel = _WORDS_UNTIL_CANCEL if end == "cancel" else None
    ending = anyio.run(
        _show, workflow, words_until_cancel, backend=backend, backend_options=backend_options
    )
    if ending in expected:
        return 0
    print(f"expected {ENDINGS[end].__name__}, but got {ending.__name__}", file=sys.stderr)
    return 1


async def _show(workflow: DemoWorkflow, words_until_cancel: int | None) -> type[Any]:
    """Run the workflow, print its stream, and return the type of its terminal event."""
    handler = workflow.run(first_input="Start the workflow.")
    page = Page()
    async for event in handler.stream_events():
        match event:
            case ProgressEvent(msg=msg) if msg.endswith(" "):
                page.print_word(msg.rstrip())
                if page.words == words_until_cancel:
                    await handler.cancel_run()
            case ProgressEvent(msg=msg):
                page.print_line(msg)
            case StopEvent():
                page.end_line()
                print(f"\nThe last event of the stream:\n  {_describe(event)}")
    print(f"What `await handler` did:\n  {await _outcome(handler)}")
    return type(handler.get_stop_event())


def _describe(event: StopEvent) -> str:
    """Describe a terminal event in words."""
    match event:
        case WorkflowTimedOutEvent(timeout=timeout, active_steps=steps):
            active = ", ".join(steps) or "none"
            said = f"the run had {timeout:g} s; active steps: {active}"
        case WorkflowCancelledEvent():
            said = "the run was cancelled"
        case WorkflowFailedEvent(step_name=name, attempts=attempts, exception=error):
            said = f"{name} failed at attempt {attempts}: {error!r}"
        case _:
            said = f"the run is complete; its result is {event.result!r}"
    return f"{type(event).__name__}: {said}"


async def _outcome(handler: WorkflowHandler[str]) -> str:
    """Await the run and describe its result or exception in words."""
    try:
        return f"returned {await handler!r}"
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
