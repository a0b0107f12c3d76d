"""The runs that a runtime keeps in memory: found by id, listed, and removed when they are old."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from datetime import datetime, timedelta

import attrs

from .._backend import LoopHandle
from .._ledger.work import utc_now
from ..errors import TooManyRunsError, UnknownRunError, WorkflowRuntimeError
from ..events import Event
from ._live import KeptRun
from ._records import RunPage, RuntimeStatistics, cursor_behind
from ._store import RunStatus

_TICK = timedelta(microseconds=1)


@attrs.define(eq=False, repr=False)
class KeptRuns:
    """The runs of one runtime.

    Runs that have ended are removed when there are more than `keep_ended`, or after `keep_ended_for` seconds
    by the loop's clock. That is looked after whenever runs are asked for, or end: no task is needed for it.

    Attributes:
        loop: The event loop of the runtime.
        max_runs: How many may be in progress at once.
        keep_ended: How many ended runs are kept, at most.
        keep_ended_for: How many seconds an ended run is kept, at most.
        by_id: All of them, in the order in which they were created.
        removed: How many have been removed so far.
    """

    loop: LoopHandle
    max_runs: int
    keep_ended: int
    keep_ended_for: float
    by_id: dict[str, KeptRun] = attrs.field(factory=dict, init=False)
    removed: int = attrs.field(default=0, init=False)

    _ended: OrderedDict[KeptRun, float] = attrs.field(factory=OrderedDict, init=False)
    """Those that have ended, in the order in which they did, each with the time on the loop's clock."""

    _last_created: datetime = attrs.field(factory=utc_now, init=False)

    def room(self) -> int:
        """Return how many more runs may be in progress at once."""
        return self.max_runs - self.number_in_progress

    def check_room(self) -> None:
        """Refuse another run if too many are in progress.

        Raises:
            TooManyRunsError: Which says how many.
        """
        if self.room() <= 0:
            raise TooManyRunsError(self.number_in_progress)

    @property
    def number_in_progress(self) -> int:
        """How many have not ended."""
        return len(self.by_id) - len(self._ended)

    def in_progress(self) -> list[KeptRun]:
        """Return those that have not ended, oldest first."""
        return [kept for kept in self.by_id.values() if kept not in self._ended]

    def find(self, run_id: str) -> KeptRun | None:
        """Return a run; `None` if there is none of this id."""
        self.remove_old()
        return self.by_id.get(run_id)

    def get(self, run_id: str) -> KeptRun:
        """Return a run.

        Raises:
            UnknownRunError: If there is none of this id.
        """
        if (kept := self.find(run_id)) is None:
            raise UnknownRunError(run_id)
        return kept

    # --- What becomes of them -----------------------------------------------------------------------

    def next_created(self) -> datetime:
        """Return when a run is created that is created now: later than all others, whatever the wall clock says."""
        self._last_created = max(utc_now(), self._last_created + _TICK)
        return self._last_created

    def add(self, kept: KeptRun) -> None:
        """Keep a run, which has not ended."""
        self.by_id[kept.id] = kept

    def note_end(self, kept: KeptRun) -> None:
        """Note that a run has ended."""
        if self.by_id.get(kept.id) is not kept:  # it could not be started
            return
        self._ended[kept] = self.loop.current_time()
        self.remove_old()

    def note_retry(self, kept: KeptRun) -> None:
        """Note that a run that had ended is in progress again."""
        del self._ended[kept]

    def remove_old(self) -> None:
        """Remove the runs that are not to be kept any longer."""
        ended = self._ended
        while ended:
            kept, time = next(iter(ended.items()))
            due = time + self.keep_ended_for
            if len(ended) <= self.keep_ended and self.loop.current_time() < due:
                break
            self.remove(kept)

    def remove(self, kept: KeptRun) -> None:
        """Remove a run that has ended."""
        del self._ended[kept], self.by_id[kept.id]
        self.removed += 1
        kept.forget()

    # --- Listing ------------------------------------------------------------------------------------

    def page(
        self,
        status: RunStatus | None,
        workflow: str | None,
        waiting_for: type[Event] | None,
        limit: int,
        before: tuple[float, str] | None,
    ) -> RunPage:
        """Return the newest runs of which all of this is true; `Runtime.runs()` describes it."""
        self.remove_old()
        page: list[KeptRun] = []
        for kept in self._newest_first(before):
            if workflow not in (None, kept.workflow) or status not in (None, kept.status):
                continue
            if waiting_for is not None and (
                kept.live is None or not kept.live.waits_for(waiting_for)
            ):
                continue
            if len(page) == limit:
                return RunPage([one.info() for one in page], cursor_behind(page[-1]))
            page.append(kept)
        return RunPage([one.info() for one in page], None)

    def _newest_first(self, before: tuple[float, str] | None) -> Iterator[KeptRun]:
        newest_first = reversed(self.by_id.values())
        if before is None:
            return newest_first
        return (kept for kept in newest_first if (kept.created.timestamp(), kept.id) < before)

    def statistics(self) -> RuntimeStatistics:
        """Return counts of the runs."""
        self.remove_old()
        logs = [kept.log.statistics() for kept in self.by_id.values()]
        return RuntimeStatistics(
            runs=dict(Counter(kept.status for kept in self.by_id.values())),
            in_progress=self.number_in_progress,
            removed=self.removed,
            log_events=sum(log.kept for log in logs),
            log_bytes=sum(log.bytes for log in logs),
        )


def cannot_retry(kept: KeptRun) -> WorkflowRuntimeError:
    """Say why a run cannot be retried."""
    why = "it has nothing to repeat, as no step failed"
    if kept.in_progress:
        why = f"it has not ended, it is {kept.status}"
    elif kept.status == "completed":
        why = "it was completed"
    return WorkflowRuntimeError(f"run {kept.id} cannot be retried: {why}")


def cannot_delete(kept: KeptRun) -> WorkflowRuntimeError:
    """Say why a run cannot be deleted."""
    return WorkflowRuntimeError(
        f"run {kept.id} cannot be deleted, it is {kept.status}; 'await run.cancel()' ends it"
    )
