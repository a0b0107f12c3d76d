"""Keeps the runs of a runtime in the memory of its process, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import attrs

from .._ledger.work import OpenWait
from ..context import Context, _context_of
from ..events import Event, StartEvent
from ..instrument import Instrument
from ..workflow import Workflow
from ._kept import KeptRuns, cannot_delete, cannot_retry
from ._live import KeptRun, LiveRun
from ._log import EventLog
from ._records import RunInfo, RunPage
from ._runs import LoggedRun
from ._store import RunStatus


@attrs.define(eq=False, repr=False)
class MemoryRunManager:
    """The runs of one runtime without a store: what `DurableRunManager` does for one that has a store.

    Attributes:
        runs: All of them.
        workflows: The workflows by the names under which they are registered.
        instruments: Told about all runs, as those of their workflows are.
        log_events: How many events of each run stay in memory, at most.
        log_bytes: How many bytes these may take.
    """

    runs: KeptRuns
    workflows: Mapping[str, Workflow[Any]]
    instruments: list[Instrument]
    log_events: int
    log_bytes: int

    async def start(
        self,
        name: str,
        run_id: str | None,
        start_event: StartEvent | None,
        fields: dict[str, Any],
        metadata: str,
        internal: bool,
    ) -> KeptRun:
        """Start a run; there is none of this id."""
        run, event = self.workflows[name]._new_run(LoggedRun, None, start_event, fields, run_id)
        log = EventLog(self.log_events, self.log_bytes)
        created = self.runs.next_created()
        kept = KeptRun(run.run_id, name, created, metadata, log, internal_wanted=internal)
        self._begin(kept, run, event)
        return kept

    def _begin(self, kept: KeptRun, run: LoggedRun, event: Event | None) -> None:
        """Start a run of the engine, whose events are written to the log."""
        kept.live = live = LiveRun(kept, run, self.runs.note_end)
        limiter = self.workflows[kept.workflow]._config.limiter
        run.start(event, limiter, [live, *self.instruments])
        if kept.internal_wanted:
            kept.listen()
        self.runs.add(kept)

    async def find(self, run_id: str) -> KeptRun | None:
        """Return a run; `None` if there is none of this id."""
        return self.runs.find(run_id)

    async def info(self, run_id: str) -> RunInfo | None:
        """Return how a run stands; `None` if there is none of this id."""
        kept = self.runs.find(run_id)
        return None if kept is None else kept.info()

    async def page(
        self,
        status: RunStatus | None,
        workflow: str | None,
        waiting_for: type[Event] | None,
        limit: int,
        before: tuple[float, str] | None,
    ) -> RunPage:
        """Return the newest runs of which all of this is true; `Runtime.runs()` describes it."""
        return self.runs.page(status, workflow, waiting_for, limit, before)

    async def retry(self, run_id: str) -> KeptRun:
        """Continue a run that has ended without a result (X7)."""
        kept = self.runs.get(run_id)
        if kept.in_progress or kept.saved is None:
            raise cannot_retry(kept)
        self.runs.check_room()
        if kept.saved.pending is None:
            kept.saved.retry_failed()
        ctx: Context[Any] = _context_of(kept.saved)
        run, _ = self.workflows[kept.workflow]._new_run(LoggedRun, ctx, None, {}, run_id)
        kept.begin_again()
        self.runs.note_retry(kept)
        self._begin(kept, run, None)
        return kept

    async def open_waits(self, kept: KeptRun) -> list[OpenWait]:
        """Return the open waits of a run that has ended: none."""
        return []

    async def send(
        self, kept: KeptRun, event: Event, step: str | None, wait: str | None
    ) -> tuple[str, ...]:
        """Send an event to a run that is in progress; returns the steps that took it."""
        assert kept.live is not None
        return kept.live.send(event, step, wait)

    async def cancel(self, kept: KeptRun) -> None:
        """Cancel a run that is in progress."""
        assert kept.live is not None
        kept.live.run.cancel("cancel() was called")

    async def delete(self, run_id: str) -> None:
        """Remove a run that has ended."""
        kept = self.runs.get(run_id)
        if kept.in_progress:
            raise cannot_delete(kept)
        self.runs.remove(kept)

    async def leave(self, error: BaseException | None) -> None:
        """Cancel the runs that have not ended, which nothing else could continue, and wait for their ends."""
        in_progress = self.runs.in_progress()
        for kept in in_progress:
            if kept.live is not None:
                kept.live.run.cancel("the block of its runtime was left")
        interruption: BaseException | None = None
        endings = [kept.ending for kept in in_progress]  # a run may be removed at its end
        for ending in endings:
            while ending.outcome is None:
                try:
                    with anyio.CancelScope(shield=True):
                        await ending.wait()
                except anyio.get_cancelled_exc_class() as cancellation:  # a native one
                    interruption = cancellation
        if interruption is not None:
            raise interruption
