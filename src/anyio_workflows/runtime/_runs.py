"""Runs as a runtime makes them: what they publish is in a log, and what they owe may be in a store."""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar

import attrs
from anyio.abc import TaskGroup

from .._backend import Signal
from .._engine.outcome import Decision, Outcome
from .._engine.run import Run
from .._engine.stream import LoggedStream
from .._engine.workers import Dispatch, WorkerPool
from .._json.fields import tag_of
from .._ledger.ledger import Ledger
from .._ledger.pending import LedgerRecord, RunPort, SavedState
from .._ledger.work import Work
from ..context import _current_step
from ..errors import ContextSerdeError
from ..events import Event
from ..state import StateStore
from ._books import DurableLedger
from ._journal import Group, Journal, Standing
from ._records import error_text
from ._rows import RunRecord
from ._store import RunStatus


@attrs.define(eq=False, repr=False)
class LoggedRun(Run):
    """A run whose public events a log keeps; it belongs to its runtime, and to no run whose step started it."""

    def __attrs_post_init__(self) -> None:
        self.parent: RunPort | None = None
        self.observed = True  # the runtime keeps the failure, for anybody who asks (O6)
        super().__attrs_post_init__()

    def _new_stream(self) -> LoggedStream:
        return LoggedStream()

    @property
    def status(self) -> RunStatus:
        """How it stands, before its end: it is `"running"` while its steps clean up."""
        if not self.has_begun:
            return "queued"
        return "waiting" if self.ledger.is_quiet() and self.outcome is None else "running"


@attrs.define(eq=False, repr=False)
class DurableState(SavedState):
    """What one run leaves to the next, if it is kept: it notes which executions use the state."""

    journal: Journal = attrs.field(kw_only=True)

    @property
    def store(self) -> StateStore[Any]:
        """The state."""
        context = _current_step()
        if context is not None and context._work is not None and context._run is self.run:
            self.journal.touched[context._work.id] = None
        return super().store


@attrs.define(eq=False, repr=False)
class DurableDecision(Decision):
    """A decision that is kept together with what led to it.

    Attributes:
        journal: Where it is kept.
        seconds_left: What is left of the timeout, if the run was brought back; `None` for all of it (D7).
    """

    journal: Journal = attrs.field(kw_only=True)
    seconds_left: float | None = attrs.field(default=None, kw_only=True)

    def start_clock(self, group: TaskGroup) -> None:
        """Note that the task group is open; from now on the deadline counts."""
        super().start_clock(group)
        if self.deadline < math.inf:
            now = self.run.loop.current_time()
            if self.seconds_left is not None:
                self.deadline = group.cancel_scope.deadline = now + self.seconds_left
            # Only now: the time that it waits for a slot does not count (R7).
            self.journal.columns["deadline"] = self.journal.writer.wall() + self.deadline - now
        self.journal.change()  # it is not queued any more

    def _settle(self, outcome: Outcome) -> None:
        super()._settle(outcome)
        self.journal.decide(decision_row(outcome, self.journal))


def decision_row(outcome: Outcome, journal: Journal) -> str:
    """Return the row that says how a run ends."""
    facts = {
        "kind": outcome.kind,
        "summary": outcome.summary,
        "error": error_text(outcome.error, outcome.event),
        "left": left_row(outcome),
    }
    return f'{json.dumps(facts)[:-1]}, "event": {journal.writer.event(outcome.event)}}}'


def left_row(outcome: Outcome) -> str | None:
    """Return the row that says what a retry needs to know; `None` if there is nothing to continue with."""
    if outcome.leaves is None:
        return None
    return json.dumps({"failed": outcome.failed_work})


@attrs.define(eq=False, repr=False)
class DurableDispatch(Dispatch):
    """Refuses what a step returns if it cannot be kept, and writes the state when an execution ends."""

    journal: Journal = attrs.field(kw_only=True)

    def settle_result(self, work: Work, result: Any, now: float) -> None:
        """Route what a step returned, or fail the step for it."""
        if not work.dropped:
            try:
                self.journal.check(*(result if isinstance(result, list) else [result]))
                self.journal.write_state(work)
            except ContextSerdeError as error:
                self._recover_or_fail(work, error, now)
                return
        super().settle_result(work, result, now)

    def settle_error(self, work: Work, error: BaseException, now: float) -> None:
        """Retry a step that raised, let an error handler take over, or fail the run."""
        try:
            self.journal.write_state(work)
        except ContextSerdeError as problem:
            problem.__cause__ = error
            self.fail(work, problem, now)
            return
        super().settle_error(work, error, now)

    def settle_cancellation(self, work: Work, now: float) -> None:
        """End an execution that was cancelled, with the run or with its batch."""
        try:
            self.journal.write_state(work)
        except ContextSerdeError as problem:
            self.decision.decide(Outcome.failed(work.step, problem))
        super().settle_cancellation(work, now)


@attrs.define(eq=False, repr=False)
class DurablePool(WorkerPool):
    """Workers of which one waits for the commit of what its step returned.

    To wake it takes 10 us, to begin another task 35: with strict durability that is one for each step of a chain.
    """

    _parked: Signal | None = attrs.field(default=None, init=False)
    """Set to have the worker that waits look for a slot; `None` if none waits."""

    def spawn_worker(self) -> None:
        """Have the worker that waits look for a slot, or start one for the granted slots."""
        if self._parked is None:
            super().spawn_worker()
        else:
            self._parked.set()

    async def _wait_for_slot(self) -> bool:
        ledger = self._run.ledger
        assert isinstance(ledger, DurableLedger)
        if self._parked is not None or not ledger.queues.held:
            return False
        self._parked = self._run.loop.new_signal()
        try:
            await self._parked.wait()
        finally:
            self._parked = None
        return True


@attrs.define(eq=False, repr=False)
class DurableRun(LoggedRun):
    """A run whose pending work is kept.

    Attributes:
        journal: Where it marks what changes.
        found: What was read from its rows, if it is brought back.
        seconds_left: What is left of its timeout; `None` for all of it.
    """

    _pool_class: ClassVar[type[WorkerPool]] = DurablePool

    journal: Journal = attrs.field(kw_only=True)
    found: RunRecord | None = attrs.field(default=None, kw_only=True)
    seconds_left: float | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        self.journal.state = self.saved.state
        self.journal.status = self._standing
        super().__attrs_post_init__()

    def _new_ledger(self) -> Ledger:
        return DurableLedger(self.saved.graph, journal=self.journal)

    def _new_decision(self) -> Decision:
        return DurableDecision(
            self, self._settings.timeout, journal=self.journal, seconds_left=self.seconds_left
        )

    def _new_dispatch(self) -> Dispatch:
        stall_check = self._settings.stall_check
        return DurableDispatch(
            self,
            self._decision,
            self._inboxes,
            self._instruments,
            stall_check,
            journal=self.journal,
        )

    @property
    def _books(self) -> DurableLedger:
        assert isinstance(self.ledger, DurableLedger)
        return self.ledger

    def _restore(self, pending: LedgerRecord) -> list[Work]:
        self._books.begin_restore(pending.next_id)
        return super()._restore(pending)

    def _seal(self, branches: Any) -> list[Work]:
        assert self.found is not None
        self._books.number_parts(branches, self.found.batches)
        self._books.set_dues(self.found.wait_dues, self.loop.current_time())
        return super()._seal(branches)

    def _standing(self) -> Standing:
        waits = self.ledger.waits.open
        tags = tuple(sorted(map(tag_of, waits.types()))) if len(waits) else ()
        return self.status, tags, len(waits)

    def rewrite(self) -> None:
        """Write all that it owes anew: it was read under names that have changed since."""
        self._books.mark_all()

    def proceed(self, group: Group) -> None:
        """Let what waited for a commit continue."""
        if not self.ended:
            self._inboxes.deliver(self._books.release(group))
            self._pool.spawn_worker()

    # What cannot be kept is refused before anything is done with it.

    def write(self, event: Event) -> None:
        """Write to the public stream, also while steps are cleaning up (T7)."""
        self.journal.check(event)
        super().write(event)

    def send(
        self, event: Event, step: str | None = None, sender: Work | None = None
    ) -> tuple[str, ...]:
        """Route an event that is sent; returns the names of the steps that took it (R3)."""
        self.journal.check(event)
        return super().send(event, step, sender)

    def answer(self, event: Event, wait_id: str, step: str | None) -> tuple[str, ...]:
        """Answer one open wait; returns the name of the step that waits (W5)."""
        self.journal.check(event)
        return super().answer(event, wait_id, step)
