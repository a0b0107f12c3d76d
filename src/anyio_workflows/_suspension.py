"""Suspending a step until an event arrives, and the clock of its attempt meanwhile."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager, nullcontext

import anyio
import attrs
from anyio.lowlevel import checkpoint

from ._backend import LoopHandle
from ._ledger.pending import RunPort
from ._ledger.work import Wait
from .errors import WorkflowRuntimeError
from .events import Event


@attrs.define(eq=False, repr=False)
class AttemptClock:
    """The clock of an attempt with a timeout (R8).

    Attributes:
        scope: The cancel scope around the attempt; it has no deadline while the clock stands still.
        loop: The event loop of the run.
        _suspensions: How many waits of the attempt are open; it may have several at once.
        _remaining: Seconds that were left when the first of them began.
    """

    scope: anyio.CancelScope
    loop: LoopHandle
    _suspensions: int = 0
    _remaining: float = math.inf

    @contextmanager
    def suspended(self) -> Generator[None]:
        """Stop the clock while the step waits for an event, unless its time is up."""
        if not self._suspensions:
            self._remaining = self.scope.deadline - self.loop.current_time()
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
                self.scope.deadline = self.loop.current_time() + self._remaining


async def suspend(
    run: RunPort,
    clock: AttemptClock | None,
    wait: Wait,
    question: Event | None,
    timeout: float | None,
) -> None:
    """Suspend an execution until its wait is over and it has a slot to continue (W1-W3).

    Args:
        run: The run of the execution.
        clock: The clock of the attempt, which stands still during the wait; `None` without a timeout.
        wait: The wait; it has an `answer` afterwards, unless it timed out.
        question: Published, unless an earlier attempt has published it, or it was read in an earlier
            run (W4).
        timeout: Seconds to wait; `None` for no limit. If an earlier attempt began the wait, its time runs
            since then (W3).

    Raises:
        WorkflowRuntimeError: If an equal wait is open in this execution, or the outcome of the run is
            decided.
    """
    what = f"{wait.event_type.__name__} cannot be waited for"
    run.check_open(what)
    signal = run.loop.new_signal()
    wait.wake = signal.set
    if timeout is not None:
        wait.due = run.loop.current_time() + timeout
    waits = run.ledger.waits
    waits.begin(wait)
    if wait.over:
        await checkpoint()
        return
    try:
        if question is not None and not wait.asked:
            wait.question, wait.question_number = question, run.ask(question)
            wait.asked = True
        run.note_wait(wait)
        with clock.suspended() if clock is not None else nullcontext():
            if wait.due == math.inf:  # a scope takes 0.6 KB
                await signal.wait()
            else:
                with anyio.CancelScope(deadline=wait.due):
                    await signal.wait()
            if not signal.is_set():
                waits.end(wait)  # without an answer; the execution now queues for a slot
                await signal.wait()
    finally:
        run.check_cancellation()  # while the ledger still knows that the step was waiting
        waits.abandon(wait)  # has an effect only if the wait was cancelled
    if wait.refused:
        run.check_open(what)
        raise WorkflowRuntimeError(f"{what}: step {wait.work.step} has ended")
