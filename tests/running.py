"""What the tests of running workflows share."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

import anyio
import pytest

from anyio_workflows import (
    Event,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
)
from anyio_workflows.errors import WorkflowCancelledByUser, WorkflowTimeoutError
from anyio_workflows.events import UnhandledEvent
from anyio_workflows.testing import run_virtually as run_virtually

from .conftest import BACKENDS
from .samples import Answer
from .samples import Note as Note


def hog(seconds: float) -> None:
    """Keep the processor for some virtual time: the clock goes on, no other task runs."""
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        trio.lowlevel.current_clock().jump(seconds)
    else:
        loop.pass_time(seconds)


async def caught_cancellation() -> BaseException:
    """Return a genuine cancellation exception that has already been dealt with."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class() as exc:
            stray = exc
    return stray


on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
"""Marks an async test that uses what only asyncio has."""

on_each_backend = pytest.mark.parametrize("backend", BACKENDS)
"""Marks a test that starts the event loops itself."""

PATIENCE = 600
"""Real seconds to wait for what comes at once, unless a test fails. A slow machine fails no test."""

_DEAF_TO_SLOWNESS = """
import logging
logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))
"""
"""In development mode asyncio logs what takes longer than 0.1 s: on a slow machine anything does."""


def run_script(source: str) -> subprocess.CompletedProcess[str]:
    """Run a program in development mode, where every warning is an error."""
    program = _DEAF_TO_SLOWNESS + textwrap.dedent(source)
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


async def read(handler: WorkflowHandler[Any]) -> list[Event]:
    """Read the rest of a stream."""
    return [event async for event in handler.stream_events()]


async def read_all(handler: WorkflowHandler[Any]) -> list[Event]:
    """Read the rest of a stream, internal events included."""
    return [event async for event in handler.stream_events(expose_internal=True)]


async def answer(handler: WorkflowHandler[Any], *words: str) -> None:
    """Answer once for each of the words, a virtual second apart."""
    for word in words:
        await anyio.sleep(1)
        await handler.send_event(Answer(text=word))


def busy(handler: WorkflowHandler[Any], name: str) -> tuple[int, int, int]:
    """Return how many executions of a step are queued, running and waiting."""
    found = handler.statistics().steps[name]
    return found.queued, found.running, found.waiting


def texts(events: list[Event]) -> list[Any]:
    """Return what the notes among `events` say."""
    return [event.text for event in events if isinstance(event, Note)]


def numbers(events: Iterable[Any]) -> list[int]:
    """Return the numbers of events that have one."""
    return [event.n for event in events]


def unhandled(events: list[Event]) -> list[str]:
    """Return the types of the events that no step took."""
    return [event.event_type for event in events if isinstance(event, UnhandledEvent)]


async def check_ending(handler: WorkflowHandler[Any]) -> tuple[list[Event], StopEvent]:
    """Read a run to its end and assert T1-T3; return all its events and the terminal one."""
    events = await read(handler)
    last = events[-1]
    assert isinstance(last, StopEvent)
    assert [event for event in events if isinstance(event, StopEvent)] == [last]
    assert handler.is_done()
    assert handler.get_stop_event() is last
    if isinstance(last, WorkflowTimedOutEvent):
        with pytest.raises(WorkflowTimeoutError):
            await handler
    elif isinstance(last, WorkflowCancelledEvent):
        with pytest.raises(WorkflowCancelledByUser):
            await handler
    elif isinstance(last, WorkflowFailedEvent):
        with pytest.raises(type(last.exception)) as caught:
            await handler
        assert caught.value is last.exception
    elif type(last) is StopEvent:
        assert await handler == last.result
    else:
        assert await handler is last
    return events, last
