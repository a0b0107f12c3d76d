"""The handle of a run that a runtime keeps: await, read, answer, cancel, inspect."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, Generic

import anyio
import attrs
from anyio.lowlevel import checkpoint

from .._engine.stream import ReadByAsyncFor
from .._ledger.work import OpenWait, StepStatistics, counts_text
from .._messages import closest
from ..context import _check_event, _current_step
from ..errors import UnknownRunError, WorkflowRuntimeError
from ..events import Event
from ..handler import ResultT
from ._durable_manager import DurableRunManager
from ._live import KeptRun
from ._log import Gap, LogReader, LogStatistics
from ._memory_manager import MemoryRunManager
from ._records import RunInfo
from ._store import RunStatus

logger = logging.getLogger(__name__)

_READ = "read its events with 'async for event in run.stream_events()'"
_INFO = "run.info says how it stands"
_ELSEWHERE = {
    **dict.fromkeys(("cancel_run", "stop", "abort", "close", "aclose"), "use await run.cancel()"),
    **dict.fromkeys(("events", "stream", "iter_events", "astream", "log"), _READ),
    **dict.fromkeys(("result", "stop_event_result"), "'await run' returns the result"),
    **dict.fromkeys(("exception", "error"), "'await run' raises it, run.info.error describes it"),
    **dict.fromkeys(
        ("done", "is_done", "cancelled", "status", "metadata", "get_stop_event"), _INFO
    ),
    **dict.fromkeys(("send", "emit", "answer"), "use await run.send_event(ev)"),
    **dict.fromkeys(("retry", "delete"), "the runtime does that: await runtime.retry(run.id)"),
    **dict.fromkeys(
        ("ctx", "context", "store", "state", "to_dict", "snapshot"),
        "the state of a run is for its steps; the runtime keeps it",
    ),
    "run_id": "use run.id",
}
"""Attribute of handlers, tasks and streams -> what to use here."""


@attrs.frozen
class KeptRunStatistics:
    """Counts of one run.

    Attributes:
        status: How it stands, as in `RunInfo`.
        steps: Counts per step; those of the last try, if it was retried.
        log: Counts of its events and of their readers.
    """

    status: RunStatus
    steps: Mapping[str, StepStatistics]
    log: LogStatistics


class RunHandle(Generic[ResultT]):
    """The handle of a run: await it for the result, read its events, answer and cancel it.

    `Runtime.start()` and `Runtime.get()` return one. Handles of the same run are equal; a run does not need
    one, and continues when it is dropped. Use them in the event loop of the runtime; a run that has ended can
    be read anywhere.
    """

    __slots__ = ("__weakref__", "_kept", "_manager")

    def __init__(self, manager: MemoryRunManager | DurableRunManager, kept: KeptRun) -> None:
        self._manager, self._kept = manager, kept

    @property
    def id(self) -> str:
        """Identifies the run in its runtime."""
        return self._kept.id

    @property
    def workflow(self) -> str:
        """The name under which its workflow is registered."""
        return self._kept.workflow

    @property
    def info(self) -> RunInfo:
        """The run as it stands now.

        Raises:
            UnknownRunError: If the run has been removed.
        """
        return self._found("looked at").info()

    def __await__(self) -> Generator[Any, Any, ResultT]:
        """Wait for the end of the run.

        Any number of tasks may wait, any number of times; cancelling a wait does not affect the run.

        Returns:
            The result of the `StopEvent`, or the event itself if it is of a subclass.

        Raises:
            WorkflowTimeoutError: If the run did not end before its deadline.
            WorkflowCancelledByUser: If it was cancelled.
            WorkflowRuntimeError: In one of the run's own steps, or in another event loop; if the run is parked
                (`"incompatible"`, `"stuck"`), with the reason; or when its runtime is left before its end.
            UnknownRunError: If the run has been removed.
            BaseException: The exception of the failing step; always the same object.
        """
        return self._result().__await__()

    async def _result(self) -> Any:
        kept = self._found("waited for")
        self._check_not_own_step(kept)
        outcome = await kept.ending.wait()
        outcome.raise_failure()
        return outcome.value

    async def wait(self, timeout: float | None = None) -> RunInfo:
        """Wait until the run has ended or is parked; return how it stands then. It raises no failure of the run.

        Args:
            timeout: Seconds to wait at most; `None` for no limit. What is returned tells whether it has ended.

        Raises:
            WorkflowRuntimeError: In one of the run's own steps, or in another event loop; or when its runtime
                is left before its end.
            UnknownRunError: If the run has been removed.
        """
        kept = self._found("waited for")
        self._check_not_own_step(kept)
        with anyio.move_on_after(timeout):
            try:
                await kept.ending.wait()
            except WorkflowRuntimeError:
                if not kept.is_parked:
                    raise
        return self._found("looked at").info()

    def records(self, after: int = 0, internal: bool = False) -> LogReader:
        """Return an async iterator over the numbered events, from a cursor on; it ends after the last one.

        Any number of readers may follow a run, each from where it likes. It yields `EventRecord(seq, time,
        event)`, where `time` is in seconds since 1970, by the clock on the wall; and a `Gap(first, last,
        reason)` in the place of events that have left the memory (`log_events`, `log_bytes`). If the run is
        parked, or its runtime is left, it raises what `await run` does, behind the last event.

        Args:
            after: The number of the last event that was seen; 0 for all events.
            internal: Also return the events about the run itself, from now on. They have no numbers of their
                own: `seq` is that of the event before.

        Raises:
            WorkflowRuntimeError: If `after` is not the number of an event of this run, or in another event
                loop.
            UnknownRunError: If the run has been removed.
        """
        kept = self._found("read")
        reader = kept.log.reader(after, internal)
        if internal:
            kept.listen()
        return reader

    def stream_events(self, after: int = 0, internal: bool = False) -> RunEvents:
        """Return an async iterator over the events alone; it ends after the terminal event.

        A run that was retried has the terminal event of each try among its events. Events that have left the
        memory are skipped, with a WARNING in the log; `records()` tells where.

        Args:
            after: The number of the last event that was seen; 0 for all events.
            internal: Also return the events about the run itself, from now on.

        Raises:
            WorkflowRuntimeError: As `records()` does.
            UnknownRunError: If the run has been removed.
        """
        return RunEvents(self.records(after, internal), repr(self._kept))

    async def open_waits(self) -> list[OpenWait]:
        """Return the waits that can be answered now, in the order in which they began.

        Raises:
            ContextSerdeError: If another process executes the run, and what it owes cannot be read here: because
                of a type that is not known here, for example, which the error names.
            UnknownRunError: If the run has been removed.
        """
        self._found("looked at")
        await checkpoint()
        kept = self._found("looked at")
        if kept.live is not None:
            return kept.live.open_waits()
        return await self._manager.open_waits(kept)

    async def send_event(
        self, event: Event, step: str | None = None, wait: str | None = None
    ) -> tuple[str, ...]:
        """Send an event to every step that accepts it, or only to `step`.

        Args:
            event: The event.
            step: The only step to send it to.
            wait: The id of an open wait, from `open_waits()`. The event then answers only this wait.

        Returns:
            The names of the steps that took it, as from `ctx.send_event()`; `()` if none did.

        Raises:
            WorkflowRuntimeError: If `event` is not an event, `step` does not exist or does not accept
                it, or the run has ended or is in another event loop. With `wait` also if there is no such
                open wait, it belongs to another step, it does not accept the event, or the outcome of
                the run is decided; the wait then stays open.
            UnknownRunError: If the run has been removed.
        """
        self._found("sent events")
        await checkpoint()
        kept = self._found("sent events")
        _check_event(event, "sent")
        if (outcome := kept.ending.outcome) is not None:
            raise WorkflowRuntimeError(
                f"{type(event).__name__} cannot be sent: the run has ended, {outcome.summary}"
            )
        return await self._manager.send(kept, event, step, wait)

    async def cancel(self, timeout: float | None = None) -> None:
        """Cancel the run and wait until it has ended. A decided outcome does not change.

        If a step of the run calls it, the step is cancelled at this call.

        Args:
            timeout: Seconds to wait at most; `None` for no limit. The run ends in any case.

        Raises:
            WorkflowRuntimeError: In another event loop.
            UnknownRunError: If the run has been removed.
        """
        kept = self._found("cancelled")
        ending = kept.ending
        if not kept.in_progress:
            return
        with anyio.move_on_after(timeout):
            await self._manager.cancel(kept)
            await ending.wait()

    def statistics(self) -> KeptRunStatistics:
        """Return counts of the executions of each step, and of the events and their readers.

        Raises:
            UnknownRunError: If the run has been removed.
        """
        kept = self._found("looked at")
        return KeptRunStatistics(kept.status, kept.step_statistics(), kept.log.statistics())

    def _found(self, done: str) -> KeptRun:
        """Return what is known about the run, which is to be used in a way that `done` names."""
        kept, here = self._kept, self._manager.runs.loop.is_here()
        if here:
            self._manager.runs.remove_old()
        if kept.removed:
            raise UnknownRunError(kept.id)
        if kept.in_progress and not here:
            raise WorkflowRuntimeError(
                f"a run can only be {done} in the event loop and thread of its runtime"
            )
        return kept

    def _check_not_own_step(self, kept: KeptRun) -> None:
        context = _current_step()
        if kept.live is not None and context is not None and context._belongs_to(kept.live.run):
            raise WorkflowRuntimeError(
                "a step cannot wait for the end of its own run; return an event instead"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RunHandle):
            return NotImplemented
        return self._manager is other._manager and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            what = f"{type(self).__name__!r} object has no attribute {name!r}"
            public = [known for known in dir(type(self)) if known[0] != "_"]
            remedy = _ELSEWHERE.get(name) or closest(name, public)
            remedy = remedy or "await it for the result of the run"
            raise AttributeError(f"{what}; {remedy}", name=name, obj=self)

        def __aiter__(self) -> Any:
            raise TypeError("a run is not a stream; use 'async for event in run.stream_events()'")

        def __aenter__(self) -> Any:
            raise TypeError(
                "a run belongs to its runtime, not to a block; 'await run' waits for it, 'await "
                "run.cancel()' ends it"
            )

        async def __aexit__(self, *exc_info: object) -> None:
            """There, so that Python asks `__aenter__`."""

        def __reduce_ex__(self, protocol: object) -> Any:
            raise TypeError(
                "the handle of a run can be neither pickled nor copied; pass run.id on, and use "
                "await runtime.get(run_id)"
            )

    def __repr__(self) -> str:
        kept = self._kept
        if kept.removed:
            return f"<RunHandle of {kept!r}: removed>"
        steps = counts_text(kept.step_statistics())
        hint = "; await it for the result, no task is needed" if kept.in_progress else ""
        return f"<RunHandle of {kept!r}: {kept.status}, {kept.log.last} events{steps}{hint}>"


@attrs.define(eq=False, repr=False)
class RunEvents(ReadByAsyncFor):
    """Yields the events of a run, from a cursor on: `async for event in events`.

    It ends after the terminal event. It can be left at any moment, by `break`, deadline or cancellation, and
    continued later; it needs no closing.
    """

    _reader: LogReader
    _name: str

    @property
    def cursor(self) -> int:
        """The number of the last event that it has yielded: give it as `after=` to continue from here."""
        return self._reader.cursor

    async def __anext__(self) -> Event:
        """Return the next event; wait until there is one.

        Raises:
            StopAsyncIteration: After the terminal event.
        """
        while isinstance(record := await anext(self._reader), Gap):
            what = (
                f"events {record.first} to {record.last} had left the memory before they were read"
            )
            logger.warning("%s: %s", self._name, what)
        return record.event

    async def aclose(self) -> None:
        """End reading. What others read is not affected."""
        await self._reader.aclose()
