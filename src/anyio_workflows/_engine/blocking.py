"""Which steps held an event loop, and for how long (I4)."""

from __future__ import annotations

import inspect
import logging
import math
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import attrs

from .._backend import LoopHandle
from .._ledger.pending import RunPort
from .._messages import add_note, format_seconds, held_by
from ..context import _current_context, _StepContext
from ..errors import _NOTICEABLE

logger = logging.getLogger(__name__)

_SHORTEST = 0.001
"""Seconds of a task step that are worth a look."""

_RECENT = 64


@attrs.frozen(eq=False)
class Hold:
    """A time in which an execution of a step let nothing else run in its event loop.

    Attributes:
        step: The name of the step.
        run: The run, as logs name it; a text, so that the run is not kept alive.
        start: When it began, or resumed, on the loop's clock.
        end: When it ended, suspended, or was last seen to go on.
    """

    step: str
    run: str
    start: float
    end: float


@attrs.define(eq=False)
class LoopHolds:
    """The holds of one event loop: those of all runs, since one run can make another late.

    Attributes:
        since: When the worker that is running now was resumed; `None` exactly while none is that is watched.
        recent: The last holds, in the order of their ends.
    """

    since: float | None = None
    recent: deque[Hold] = attrs.field(factory=lambda: deque(maxlen=_RECENT))

    def look(self, now: float, bound: float = math.inf) -> None:
        """Note for how long the step of the current task has held the loop by now, if that is noticeable.

        Args:
            now: The present time of the loop.
            bound: The seconds from which on the step is warned of.
        """
        if self.since is None or (context := _current_context.get()()) is None:
            return
        work = context._work
        # Between two executions, the work of the context has ended.
        if work is None or work.started is None or not work.spec.is_async:
            return
        # Not always since the worker resumed: it may have executed other steps before this one.
        start = max(self.since, work.started)
        seconds = now - start
        if seconds >= _NOTICEABLE:
            if self.recent and self.recent[-1].start == start:  # seen before it was over
                self.recent.pop()
            self.recent.append(Hold(work.step, str(context._run), start, now))
        if seconds >= bound:
            _warn(context, seconds)

    def seen(self, since: float, now: float, run: RunPort) -> dict[str, float]:
        """Return which steps held the loop at some time since then, and for how many seconds.

        They are the longest three; those of other runs than `run` are named with their run.
        """
        self.look(now)
        held: dict[str, float] = {}
        for hold in self.recent:
            if hold.end > since:
                name = hold.step if hold.run == str(run) else f"{hold.step} of {hold.run}"
                held[name] = max(held.get(name, 0.0), hold.end - hold.start)
        return dict(sorted(held.items(), key=lambda item: -item[1])[:3])

    def reasons(self, deadline: float, now: float, run: RunPort) -> dict[str, float]:
        """Return the same if these steps are the reason why a deadline is noticed only now.

        They are if they explain most of the delay.
        """
        if now - deadline < _NOTICEABLE:
            return {}
        held = self.seen(deadline, now, run)
        explained = (hold.end - max(hold.start, deadline) for hold in self.recent)
        return held if 2 * sum(part for part in explained if part > 0) >= now - deadline else {}


_holds: weakref.WeakKeyDictionary[Any, LoopHolds] = weakref.WeakKeyDictionary()
"""Per event loop; nothing in the values may refer to the loop, or it would live for ever."""


_latest: tuple[Callable[[], object], LoopHolds] = (lambda: None, LoopHolds())
"""What was asked for last, with a reference to its loop: most programs have a single one."""


def holds_of(loop: LoopHandle) -> LoopHolds:
    """Return the holds of an event loop."""
    global _latest
    ref, holds = _latest
    if ref() is not loop.token:
        holds = _holds.setdefault(loop.token, LoopHolds())
        _latest = weakref.ref(loop.token), holds
    return holds


class _Watched(Generator[Any, Any, None]):
    """An awaitable that runs the coroutine of a worker, and looks whether one of its steps took long.

    It stands around the whole worker. So a step that does not suspend costs nothing, and one that does
    costs 0.3 us each time.
    """

    __slots__ = ("_bound", "_coroutine", "_current_time", "_holds")

    def __init__(
        self, coroutine: Coroutine[Any, Any, None], loop: LoopHandle, holds: LoopHolds, bound: float
    ) -> None:
        self._coroutine = coroutine
        self._current_time = loop.current_time
        self._holds = holds
        self._bound = bound

    def __await__(self) -> _Watched:
        return self

    def send(self, value: Any = None, resume: Callable[[Any], Any] | None = None) -> Any:
        """Resume the coroutine, until it suspends again."""
        holds, current_time = self._holds, self._current_time
        start = holds.since = current_time()
        try:
            return self._coroutine.send(value) if resume is None else resume(value)
        finally:
            now = current_time()
            if now - start >= _SHORTEST:
                holds.look(now, self._bound)
            holds.since = None

    __next__ = send  # what asyncio calls

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        """Resume the coroutine with an exception, until it suspends again."""
        return self.send(typ if val is None else val, self._coroutine.throw)

    def __getattr__(self, name: str) -> Any:
        """Look like the coroutine (`cr_frame`, `cr_await`) to what prints the stacks of tasks."""
        return getattr(self._coroutine, name)


def watched(
    steps: Coroutine[Any, Any, None], loop: LoopHandle, bound: float | None
) -> Awaitable[None]:
    """Return the coroutine of a worker, watched unless that is turned off."""
    return steps if bound is None else _Watched(steps, loop, holds_of(loop), bound)


def look_at(loop: LoopHandle, now: float, bound: float | None) -> None:
    """See whether the step of the current task, which is over, held the loop at its end."""
    if bound is not None:
        holds_of(loop).look(now, bound)


def excuse_step(loop: LoopHandle) -> None:
    """Accuse no step of what was done until now: the library itself took the time."""
    holds = holds_of(loop)
    if holds.since is not None:
        holds.since = loop.current_time()


def overdue(step: str, timeout: float, deadline: float, run: RunPort) -> TimeoutError:
    """Return the failure for a step's own timeout; a note says why it comes late, if it does (R8)."""
    error = TimeoutError(f"step {step} took longer than {timeout:g} s")
    now = run.loop.current_time()
    if held := holds_of(run.loop).reasons(deadline, now, run):
        add_note(error, f"noticed {format_seconds(now - deadline)} late, because {held_by(held)}")
    return error


_warned: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
"""The functions of the steps that have been warned of in this process."""


def _warn(context: _StepContext, seconds: float) -> None:
    """Warn, once per step and process, that a step held the event loop.

    It would say the same each time; and what comes late because of it names the step again.
    """
    work = context._work
    assert work is not None
    function = inspect.unwrap(work.spec.function)  # a step that a test has wrapped is no other
    if function not in _warned:
        _warned.add(function)
        logger.warning(
            "%s: %s; nothing else could run in that time, not even a timeout or a cancellation. Let it "
            "await something in between, make it a plain 'def' step, which runs in a thread, or use "
            "anyio.to_thread.run_sync() (logged once)",
            context._run,
            held_by({work.step: seconds}),
        )
