"""One run of a runtime: what is known about it, and the engine's run while this process executes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import anyio
import attrs

from .._engine.outcome import Outcome
from .._ledger.pending import SavedState
from .._ledger.work import OpenWait, StepStatistics, utc_now
from ..errors import UnknownRunError, WorkflowError, WorkflowRuntimeError
from ..events import Event
from ..instrument import EventRecord, Instrument, RunRecord, RunResult
from ._log import EventLog
from ._records import (
    RunError,
    RunInfo,
    describe_error,
    number_of_waits,
    read_error,
    read_metadata,
)
from ._runs import LoggedRun
from ._store import PARKED, RunStatus, StoredRun


@attrs.define(eq=False, repr=False)
class Ending:
    """The end that a run comes to, for any number of tasks. A retry of the run comes to another one.

    Attributes:
        outcome: How the run ended; `None` before that.
        lost: Why nobody will be told of the end; `None` unless the run is parked or cannot be read here, or the
            runtime has let it go.
    """

    outcome: Outcome | None = None
    lost: WorkflowError | None = None
    _signal: anyio.Event | None = None
    """Set with the outcome, once a task waits for that."""

    async def wait(self) -> Outcome:
        """Wait for the end; returns how the run ended.

        Raises:
            WorkflowError: If that will not be known here.
        """
        if self.outcome is None and self.lost is None:
            if self._signal is None:
                self._signal = anyio.Event()
            await self._signal.wait()
        if self.outcome is None:
            assert self.lost is not None
            raise self.lost.with_traceback(None)
        return self.outcome

    def settle(self, outcome: Outcome) -> None:
        """Note how the run ended."""
        self.outcome = outcome
        self._wake()

    def lose(self, why: WorkflowError) -> None:
        """Note that nobody will be told of the end."""
        self.lost = why
        self._wake()

    def _wake(self) -> None:
        if self._signal is not None:
            self._signal.set()


_NO_STEPS: Mapping[str, StepStatistics] = {}

_NO_LOG = EventLog(1, 1)
"""The log of a run that has been removed."""

_NO_LOG.close()


@attrs.define(eq=False, repr=False)
class KeptRun:
    """What a runtime knows about one of its runs, in whichever process it is executed.

    Attributes:
        id: Identifies the run in the runtime.
        workflow: The name under which its workflow is registered.
        created: When it was started; later than what was created before it.
        metadata: What the caller said about it, as JSON.
        log: Its numbered events. Closed exactly while it has ended, or nobody will be told of its end.
        ending: The end that it comes to, or has come to.
        live: The run of the engine; there exactly while this process executes it.
        stored: What the store says about it, if this process does not execute it.
        ended: When it ended; set together with the outcome of `ending`.
        saved: What a retry continues with; there exactly while it has ended and left something.
        steps: The counts of its steps at the end; empty before that.
        internal_wanted: Whether its internal events are written to the log, also those of later tries.
        removed: Whether the runtime has forgotten it; its log and its end are gone then.
    """

    id: str
    workflow: str
    created: datetime
    metadata: str
    log: EventLog
    ending: Ending = attrs.field(factory=Ending)
    live: LiveRun | None = None
    stored: StoredRun | None = None
    ended: datetime | None = None
    saved: SavedState | None = None
    steps: Mapping[str, StepStatistics] = _NO_STEPS
    internal_wanted: bool = False
    removed: bool = False

    @property
    def status(self) -> RunStatus:
        """How it stands."""
        if self.ending.outcome is not None:
            return self.ending.outcome.kind
        if self.live is not None:
            return self.live.status
        return "queued" if self.stored is None else self.stored.status

    @property
    def in_progress(self) -> bool:
        """Whether it has not ended."""
        return self.ending.outcome is None

    @property
    def is_followed(self) -> bool:
        """Whether what becomes of it elsewhere is noted: it is neither executed here, nor has it ended or been let go."""
        return self.live is None and not self.log.closed

    @property
    def is_parked(self) -> bool:
        """Whether those who wait for it have been told that nobody continues it until a person has mended it."""
        return (
            self.ending.lost is not None
            and self.stored is not None
            and self.stored.status in PARKED
        )

    def info(self) -> RunInfo:
        """Describe it, as it stands."""
        return RunInfo(
            id=self.id,
            workflow=self.workflow,
            status=self.status,
            created=self.created,
            ended=self.ended,
            last_seq=self.log.last,
            open_waits=self._number_of_waits(),
            metadata=read_metadata(self.metadata),
            error=self._error(),
        )

    def _number_of_waits(self) -> int:
        if self.live is not None:
            return self.live.number_of_waits
        return 0 if self.stored is None else number_of_waits(self.stored)

    def _error(self) -> RunError | None:
        if self.stored is not None:  # the exception may have come back as another one
            return read_error(self.stored.error)
        outcome = self.ending.outcome
        if outcome is None or outcome.error is None:
            return None
        return describe_error(outcome.error, outcome.event)

    def step_statistics(self) -> Mapping[str, StepStatistics]:
        """Return the counts of each step."""
        return self.steps if self.live is None else self.live.run.ledger.statistics()

    def end(self, outcome: Outcome, saved: SavedState | None, ended: float | None = None) -> None:
        """Note that its terminal event is in the log."""
        self.steps = self.step_statistics()
        self.live, self.saved = None, saved
        self.ended = utc_now() if ended is None else datetime.fromtimestamp(ended, UTC)
        self.log.close()
        self.ending.settle(outcome)

    def abandon(self) -> None:
        """Note that the runtime has let the run go, before its end."""
        why = WorkflowRuntimeError(
            f"{self!r} was let go, because its runtime was left; it continues in a runtime on the same database"
        )
        if self.stored is None:
            self.stored = self._as_stored()
        self.steps, self.live = self.step_statistics(), None
        self.lose(why)

    def park(self) -> None:
        """Tell those who wait for it that it is parked: it may take a person days to mend it, or for ever."""
        error = self._error()
        why = "" if error is None else f": {error.message}"
        if self.status == "incompatible":
            why += f"; when that is mended, call runtime.retry({self.id!r})"
        self.lose(WorkflowRuntimeError(f"{self!r} is {self.status}{why}"))

    def lose(self, why: WorkflowError) -> None:
        """Tell those who wait for it or read it why they get no more of it here."""
        self.log.close(why)
        self.ending.lose(why)

    def fall_asleep(self) -> None:
        """Note that the runtime releases the run from memory, as it only waits."""
        self.stored = self._as_stored()
        self.steps, self.live = self.step_statistics(), None

    def _as_stored(self) -> StoredRun:
        """Return how it stands as a store would."""
        created, waits = self.created.timestamp(), self._number_of_waits()
        return StoredRun(self.id, self.workflow, self.status, created, open_waits=waits)

    def begin_again(self) -> None:
        """Prepare for a retry, which continues the log."""
        self.saved, self.ended, self.steps = None, None, _NO_STEPS
        self.log.reopen()
        self.ending = Ending()

    def listen(self) -> None:
        """Have the internal events written to the log as well, from now on (S4)."""
        self.internal_wanted = True
        if self.live is not None:
            self.live.listen()

    def forget(self) -> None:
        """Let go of everything, because the runtime does not keep it any more."""
        if self.in_progress:
            self.lose(UnknownRunError(self.id))
        self.removed, self.saved, self.steps = True, None, _NO_STEPS
        self.ending, self.log = Ending(), _NO_LOG

    def __repr__(self) -> str:
        return f"run {self.id} of {self.workflow}"


class LiveRun(Instrument):
    """A run that this process executes. What it publishes is written to its log (L5).

    Attributes:
        kept: What is known about it.
        run: The run of the engine.
    """

    __slots__ = ("_on_end", "kept", "run")

    def __init__(self, kept: KeptRun, run: LoggedRun, on_end: Callable[[KeptRun], None]) -> None:
        self.kept, self.run, self._on_end = kept, run, on_end

    @property
    def status(self) -> RunStatus:
        """How it stands."""
        return self.run.status

    @property
    def number_of_waits(self) -> int:
        """How many waits can be answered now."""
        return len(self.run.ledger.waits.open) if self.run.is_running else 0

    def open_waits(self) -> list[OpenWait]:
        """Describe the waits that can be answered now, in the order in which they began."""
        if not self.run.is_running:
            return []
        return [wait.as_open() for wait in self.run.ledger.waits.open]

    def waits_for(self, event_type: type[Event]) -> bool:
        """Return whether a wait for events of this type, or of a subclass of it, can be answered now."""
        waits = self.run.ledger.waits.open if self.run.is_running else ()
        return any(issubclass(wait.event_type, event_type) for wait in waits)

    def send(self, event: Event, step: str | None, wait: str | None) -> tuple[str, ...]:
        """Send an event; returns the names of the steps that took it."""
        run = self.run
        return run.send(event, step) if wait is None else run.answer(event, wait, step)

    def listen(self) -> None:
        """Write the internal events to the log as well."""
        self.run.listen(self._write_internal)

    def _write_internal(self, event: Event) -> None:
        self.kept.log.append_internal(event, time.time())

    # --- What it is told --------------------------------------------------------------------------

    def event_written(self, run: RunRecord, record: EventRecord) -> None:
        """Write an event to the log. Its number follows those of earlier tries (L1)."""
        log = self.kept.log
        log.append(EventRecord(log.last + 1, time.time(), record.event))

    def run_ended(self, run: RunRecord, result: RunResult) -> None:
        """Note the end of the run. The terminal event has been written."""
        outcome = self.run.outcome
        assert outcome is not None
        self.kept.end(outcome, _what_is_left(self.run.saved))
        self._on_end(self.kept)


def _what_is_left(saved: SavedState) -> SavedState | None:
    """Return what a retry continues with, without the run that left it; `None` if that is nothing."""
    pending, failed = saved.pending_work(), saved.failed_work()
    if pending is None and failed is None:
        return None
    changes: dict[str, Any] = {"run": None, "pending": pending, "failed": failed}
    return attrs.evolve(saved, **changes)
