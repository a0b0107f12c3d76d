"""A run that this process executes, and that is kept in a store."""

from __future__ import annotations

from collections.abc import Callable

from .._engine.outcome import Outcome
from ..errors import ContextSerdeError, WorkflowRuntimeError
from ..events import Event
from ..instrument import EventRecord, RunRecord, RunResult
from ._committer import Committer
from ._journal import Group
from ._live import KeptRun, LiveRun
from ._records import error_text
from ._runs import DurableRun, left_row


class DurableLive(LiveRun):
    """A run that this process executes, and that is kept in a store.

    What it publishes is in its log, and its end is noted, when that is on the disk (D3, D4).

    Attributes:
        journal: What changed in it since the last group.
        outcome: How the engine's run ended; `None` before that.
        is_kept: Whether the run is in the store: it may be refused before that.
    """

    __slots__ = ("_committer", "_on_commit", "is_kept", "journal", "outcome", "run")
    run: DurableRun

    def __init__(
        self,
        kept: KeptRun,
        run: DurableRun,
        committer: Committer,
        on_end: Callable[[KeptRun], None],
        on_commit: Callable[[DurableLive, Group], None],
    ) -> None:
        super().__init__(kept, run, on_end)
        self.journal, self._committer, self._on_commit = run.journal, committer, on_commit
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

    def proceed(self, group: Group) -> None:
        """Show what is on the disk now, and let what waited for that continue."""
        self.is_kept = True
        for record, size in group.events:
            self.kept.log.append(record, size)
        if group.ended is not None:
            assert self.outcome is not None
            self._committer.remove(self.journal)
            self.kept.end(self.outcome, None, group.ended)
            self._on_end(self.kept)
        else:
            self.run.proceed(group)
        self._on_commit(self, group)

    @property
    def only_waits(self) -> bool:
        """Whether nothing but an event from outside, or time, can continue the run."""
        run = self.run
        return run.has_begun and run.outcome is None and run.ledger.is_quiet()

    def next_due(self) -> float:
        """Return when it times out, or one of its waits, on the loop's clock; infinite for never."""
        dues = [wait.due for wait in self.run.ledger.waits.open]
        return min([*dues, self.run._decision.deadline])

    async def send(self, event: Event, step: str | None, wait: str | None) -> tuple[str, ...]:
        """Send an event, and return when it is on the disk, with the names of the steps that took it."""
        if self.journal.detached:
            raise self._not_kept(event)
        taken_by = await super().send(event, step, wait)
        if self.journal.strict and not await self._committer.wait(self.journal):
            raise self._not_kept(event)
        return taken_by

    def _not_kept(self, event: Event) -> WorkflowRuntimeError:
        return WorkflowRuntimeError(
            f"{type(event).__name__} was not kept: {self.kept!r} was let go before that; send it again, "
            "in a runtime on the same database"
        )

    def fail(self, error: ContextSerdeError) -> None:
        """End the run with what cannot be written: it was changed after it had been accepted."""
        self.run._decision.decide(Outcome.failed(self.run.ledger.last_finished or "?", error))

    def let_go(self) -> None:
        """Stop recording, and cancel the engine's run: the run itself continues elsewhere, or later (D8)."""
        self._committer.remove(self.journal)
        self.run.cancel("its runtime has let it go")
