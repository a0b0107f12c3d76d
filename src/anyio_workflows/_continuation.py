"""What one run leaves to the next: the state, and what is owed (P2, P3)."""

from __future__ import annotations

from typing import Any, Protocol

import attrs

from ._backend import Home
from ._ledger import Ledger
from ._records import LedgerRecord, take
from ._work import Wait, Work
from .errors import ContextStateError
from .events import Event
from .graph import Graph
from .state import StateStore

__all__ = ["Continuation", "RunPort"]


class RunPort(Protocol):
    """A run, as far as its steps can see it."""

    home: Home
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
    """

    graph: Graph
    types: tuple[type, ...] = ()
    run: RunPort | None = None
    left: LedgerRecord | None = None
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
            return take(run.ledger, run.home.current_time())
        return self.left

    def begin(self, run: RunPort) -> None:
        """Note that a run goes on from here."""
        self.run = run
        self.left = None

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
