"""Suspending a step until an event comes."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext

import anyio
import attrs
from anyio.lowlevel import checkpoint

from ._ledger.pending import RunPort
from ._ledger.work import Wait
from .errors import WorkflowRuntimeError
from .events import Event

__all__ = ["AttemptClock", "suspend"]


@attrs.define(eq=False, repr=False)
class AttemptClock:
    """The clock of an attempt that is bounded by a timeout (R8).

    Attributes:
        scope: The scope that bounds it.
        current_time: The clock.
    """

    scope: anyio.CancelScope
    current_time: Callable[[], float]
    _suspensions: int = 0
    _remaining: float = math.inf

    @contextmanager
    def suspended(self) -> Generator[None]:
        """Stop the clock while the step waits for an event, unless it has run out."""
        if not self._suspensions:
            self._remaining = self.scope.deadline - self.current_time()
        if self._remaining <= 0:
            yield
            return
        self.scope.deadline = math.inf
        self._suspensions += 1
        try:
            yield
        finally:
            self._suspensions -= 1
            if not self._suspensions:
                self.scope.deadline = self.current_time() + self._remaining


async def suspend(run: RunPort, wait: Wait, prompt: Event | None, timeout: float | None) -> None:
    """Suspend an execution until its wait is over, and it has a place to go on (W1-W3).

    Args:
        run: The run.
        wait: What is waited for; its `answer` is there afterwards, unless the time is over.
        prompt: Written to the stream, unless that was done before: by an earlier attempt, or in an
            earlier run, if somebody read it there (W4).
        timeout: Seconds to wait; `None` for no limit.

    Raises:
        WorkflowRuntimeError: If an equal wait is open in this execution, or the end of the run is
            decided.
    """
    what = f"{wait.event_type.__name__} cannot be waited for"
    run.check_open(what)
    signal = anyio.Event()
    wait.wake = signal.set
    waits = run.ledger.waits
    waits.begin(wait)
    if wait.over:
        await checkpoint()
        return
    clock = wait.work.clock
    try:
        if prompt is not None and not wait.asked:
            wait.question, wait.question_number = prompt, run.ask(prompt)
            wait.asked = True
        run.note_wait(wait)
        with clock.suspended() if clock is not None else nullcontext():
            with anyio.move_on_after(timeout):
                await signal.wait()
            if not signal.is_set():
                waits.end(wait)  # without an answer; a place is wanted to go on
                await signal.wait()
    finally:
        run.notice_cancellation()  # while the ledger still knows that the step was waiting
        waits.abandon(wait)  # if it was cancelled; else it is over
    if wait.refused:
        run.check_open(what)
        raise WorkflowRuntimeError(f"{what}: step {wait.work.post.spec.name} has ended")
