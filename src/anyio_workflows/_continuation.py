"""What one run leaves to the next: the state, and what is owed (P2, P3)."""

from __future__ import annotations

from typing import Any, Protocol

import attrs

from ._backend import Home
from ._ledger import Ledger
from ._records import LedgerRecord, restore, take
from ._stream import EventStream
from ._work import OpenWait, Wait, Work
from .errors import ContextStateError
from .events import Event
from .graph import Graph
from .state import StateStore

__all__ = ["Continuation", "RunPort"]


class RunPort(Protocol):
    """A run, as far as its steps can see it."""

    home: Home
    stream: EventStream
    ledger: Ledger
    continuation: Continuation
    parent: RunPort | None
    ended: bool

    @property
    def run_id(self) -> str:
        """Identifies the run in logs."""
        ...

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open."""
        ...

    def notice_cancellation(self) -> None:
        """Settle the outcome if the run is being cancelled and nobody has noticed."""
        ...

    def write(self, event: Event) -> None:
        """Write to the public stream."""
        ...

    def send(self, event: Event, step: str | None, sender: Work | None) -> tuple[str, ...]:
        """Route an event; returns the names of the steps that took it."""
        ...

    def check_open(self, what: str) -> None:
        """Raise if the outcome is decided."""
        ...

    def note_wait(self, wait: Wait) -> None:
        """Take note that an execution waits."""
        ...

    def adopt(self, child: RunPort) -> None:
        """Take charge of a run that one of the steps starts."""
        ...


@attrs.define(eq=False, repr=False)
class Continuation:
    """What goes on from one run to the next.

    Attributes:
        graph: The steps that it is for.
        types: Types that the state may hold, besides those that the workflow declares.
        run: The run in progress, or the last one.
        left: What the last run left to do; `None` if it ended with a stop event or a failure.
        failed: What the last run owed when it failed, for `retry_failed()`.
    """

    graph: Graph
    types: tuple[type, ...] = ()
    run: RunPort | None = None
    left: LedgerRecord | None = None
    failed: LedgerRecord | None = None
    _store: StateStore[Any] | None = None

    @property
    def store(self) -> StateStore[Any]:
        """The state."""
        if self._store is None:
            state_type = self.graph.state_type
            self._store = StateStore() if state_type is None else StateStore(state_type)
        return self._store

    def state(self) -> Any:
        """Return the state, which is not to be changed; `None` if nobody has used it."""
        return None if self._store is None else self._store._snapshot()

    def drop_dead_writers(self) -> None:
        """Let nobody write the state, or wait to, who was given up or whose run has ended."""
        if self._store is not None:
            self._store._drop_dead_writers()

    def owed(self) -> LedgerRecord | None:
        """Record what is owed now; `None` if nothing is, and a new run has to start anew."""
        run = self.run
        if run is not None and run.is_running:
            return take(run.ledger, run.home.current_time(), run.stream.delivered)
        return self._up_to_date(self.left)

    def owed_at_failure(self) -> LedgerRecord | None:
        """Record what `retry_failed()` makes owed; `None` if no step failed."""
        return self._up_to_date(self.failed)

    def _up_to_date(self, record: LedgerRecord | None) -> LedgerRecord | None:
        """Add to the record of a run that was decided what has been read since then (W4)."""
        if record is None or self.run is None:
            return record
        return attrs.evolve(record, events_read=self.run.stream.delivered)

    def open_waits(self) -> list[OpenWait]:
        """Describe the waits that are open now, in the order in which they began."""
        run = self.run
        if run is not None and run.is_running:
            ledger = run.ledger
        elif self.left is None:
            return []
        else:
            ledger, _ = restore(self.left, self.graph, 0.0)
        return [wait.as_open() for wait in ledger.waits.open]

    def begin(self, run: RunPort) -> None:
        """Note that a run goes on from here."""
        self.run = run
        self.left = self.failed = None

    def discard(self) -> None:
        """Drop what the last run left to do, or to repeat.

        Raises:
            ContextStateError: If a run is going on.
        """
        self.check_free()
        self.left = self.failed = None

    def retry_failed(self) -> None:
        """Owe again what the last run owed when it failed (X7).

        Raises:
            ContextStateError: If a run is going on, or there is nothing to repeat.
        """
        self.check_free()
        if self.failed is None:
            why = "no step of its last run has failed for good"
            if self.left is not None:
                why = "it has work left already, with which run(ctx=...) goes on"
            raise ContextStateError(f"this context has no failed step to repeat: {why}")
        self.left, self.failed = self.failed, None

    def check_free(self) -> None:
        """Refuse what makes no sense while a run goes on.

        Raises:
            ContextStateError: If one does.
        """
        if self.run is not None and not self.run.ended:
            raise ContextStateError(
                "the run of this context is still going on; await its handler first, or use another "
                "context"
            )
