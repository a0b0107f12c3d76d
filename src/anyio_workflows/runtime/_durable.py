"""A run that this process executes, and that is kept in a store."""

from __future__ import annotations

from collections.abc import Callable

from .._engine.outcome import Outcome
from ..errors import ContextSerdeError
from ..instrument import EventRecord, RunRecord, RunResult
from ._journal import Group
from ._live import KeptRun, LiveRun
from ._records import error_text
from ._runs import DurableRun, left_row
from ._store import RunChange


class DurableLive(LiveRun):
    """A run that this process executes, and that is kept in a store.

    What it publishes is in its log, and its end is noted, when that is on the disk (D3, D4).

    Attributes:
        journal: What changed in it since the last group.
        outcome: How the engine's run ended; `None` before that.
        is_kept: Whether the run is in the store: it may be refused before that.
    """

    __slots__ = ("is_kept", "journal", "outcome")
    run: DurableRun

    def __init__(self, kept: KeptRun, run: DurableRun, on_end: Callable[[KeptRun], None]) -> None:
        super().__init__(kept, run, on_end)
        self.journal = run.journal
        self.outcome: Outcome | None = None
        self.is_kept = run.found is not None

    def event_written(self, run: RunRecord, record: EventRecord) -> None:
        """Have an event kept; the log gets it afterwards."""
        self.journal.add_event(record)

    def run_ended(self, run: RunRecord, result: RunResult) -> None:
        """Have the end of the run kept."""
        outcome = self.outcome = self.run.outcome
        assert outcome is not None
        error = error_text(outcome.error, outcome.event)
        self.journal.end(outcome.kind, error, left_row(outcome))

    def take(self) -> tuple[RunChange, Group]:
        """Return what changed since the last group, and what is to be continued once that is kept.

        If something cannot be written that could be when it was accepted, because it was changed since, the run
        fails: its rows stay as they were.
        """
        try:
            return self.journal.take()
        except ContextSerdeError as error:
            step = self.run.ledger.last_finished or "?"
            self.run._decision.decide(Outcome.failed(step, error))
            return self.journal.take()

    def proceed(self, group: Group) -> None:
        """Show what is on the disk now, and let what waited for that continue."""
        self.is_kept = True
        for record, size in group.events:
            self.kept.log.append(record, size)
        if group.ended is None:
            self.run.proceed(group)
        else:
            assert self.outcome is not None
            self.kept.end(self.outcome, None, group.ended)
            self._on_end(self.kept)

    @property
    def only_waits(self) -> bool:
        """Whether nothing but an event from outside, or time, can continue the run."""
        run = self.run
        return run.has_begun and run.outcome is None and run.ledger.is_quiet()

    def next_due(self) -> float:
        """Return when it times out, or one of its waits, on the loop's clock; infinite for never."""
        dues = [wait.due for wait in self.run.ledger.waits.open]
        return min([*dues, self.run._decision.deadline])
