"""Group commit: the changes of all runs of a process are written together, and then take effect."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import anyio
import attrs
from anyio.lowlevel import checkpoint

from ..errors import StoreError
from ._durable import DurableLive
from ._journal import Group, Journal
from ._store import RunChange, Store

_SECONDS_PER_CHECKPOINT = 0.001
"""To write the rows of many runs takes a while: so often others may run meanwhile."""


@attrs.define(eq=False, repr=False)
class _Turn:
    """One group: the journals with changes, and whether these are on the disk."""

    journals: dict[Journal, bool] = attrs.field(factory=dict)
    done: anyio.Event = attrs.field(factory=anyio.Event)


@attrs.define(eq=False, repr=False)
class Committer:
    """Writes what the journals of a runtime mark, in groups, one after the other.

    While a group is being written, the next one collects what changes meanwhile: the more runs there are, the
    fewer writes each of them needs.

    Attributes:
        store: Where groups go.
        on_commit: Called for each run of a group, after the commit, with what waited for it.
        on_refusal: Called for a run that is new, if the store had one of its id already; and for one that this
            host does not own any more.
        commits: How many have been written.
        problem: Why nothing is written any more; `None` as long as all is well (D10).
    """

    store: Store
    on_commit: Callable[[DurableLive, Group], None]
    on_refusal: Callable[[DurableLive], None]
    commits: int = attrs.field(default=0, init=False)
    problem: StoreError | None = attrs.field(default=None, init=False)
    _lives: dict[Journal, DurableLive] = attrs.field(factory=dict, init=False)
    """The runs whose changes are written, by their journals."""

    _next: _Turn = attrs.field(factory=_Turn, init=False)
    _current: _Turn | None = attrs.field(default=None, init=False)
    _wakeup: anyio.Event | None = attrs.field(default=None, init=False)
    _closing: bool = attrs.field(default=False, init=False)

    def add(self, live: DurableLive) -> None:
        """Write the changes of a run from now on; its journal calls `touch()`."""
        self._lives[live.journal] = live

    def remove(self, live: DurableLive) -> None:
        """Write no changes of a run any more: it has been let go, or has ended."""
        live.journal.detached = True
        self._lives.pop(live.journal, None)

    def touch(self, journal: Journal) -> None:
        """Note that a journal has changes."""
        if journal not in self._next.journals:
            self._next.journals[journal] = False
            self._wake()

    def has(self, journal: Journal) -> bool:
        """Return whether something of it is not on the disk yet."""
        turns = (self._current, self._next)
        return any(turn is not None and journal in turn.journals for turn in turns)

    def _wake(self) -> None:
        if self._wakeup is not None:
            self._wakeup.set()

    async def wait(self, journal: Journal) -> bool:
        """Wait until all that has been marked so far is on the disk.

        Returns:
            Whether it is: the run may have been let go, or refused, before that.

        Raises:
            StoreError: If it cannot be written.
        """
        turn: _Turn | None = self._next
        if journal not in self._next.journals:
            turn = self._current
        if turn is None or journal not in turn.journals:
            await checkpoint()
            written = True
        else:
            await turn.done.wait()
            written = turn.journals[journal]
        if (problem := self.problem) is not None:
            raise type(problem)(problem.store, problem.problem) from problem
        return written

    async def flush(self) -> None:
        """Wait until all that any journal has marked so far is on the disk, or cannot be written."""
        for turn in (self._current, self._next):
            if turn is not None and turn.journals:
                await turn.done.wait()

    async def run(self) -> None:
        """Write groups until `close()`, even if the block of the runtime is cancelled.

        Raises:
            StoreError: If one cannot be written. Nothing of it has taken effect, and nothing will.
        """
        try:
            with anyio.CancelScope(shield=True):
                await self._commit_groups()
        except StoreError as problem:
            self._fail(problem)
            raise
        except (
            BaseException
        ):  # a native cancellation, or trio's KeyboardInterrupt in this of all tasks
            self._fail(StoreError("the store of a runtime", "writing to it was interrupted"))
            raise

    async def _commit_groups(self) -> None:
        while not (self._closing and not self._next.journals):
            if not self._next.journals:
                self._wakeup = anyio.Event()
                await self._wakeup.wait()
                self._wakeup = None
            await checkpoint()  # whatever else runs now joins the group
            await self._commit_next()

    def close(self) -> None:
        """Have `run()` return when everything has been written."""
        self._closing = True
        self._wake()

    def _fail(self, problem: StoreError) -> None:
        self.problem = problem
        for turn in (self._current, self._next):
            if turn is not None:
                turn.done.set()

    async def _commit_next(self) -> None:
        turn, self._next = self._next, _Turn()
        self._current = turn
        changes: list[RunChange] = []
        groups: list[tuple[DurableLive, Group]] = []
        rested = perf_counter()
        for journal in list(turn.journals):
            if perf_counter() - rested > _SECONDS_PER_CHECKPOINT:
                await checkpoint()
                rested = perf_counter()
            live = self._lives.get(journal)
            if live is not None:
                change, group = live.take()
                changes.append(change)
                groups.append((live, group))
        refused: set[str] = set()
        if changes:
            refused = await self.store.commit(changes)
            self.commits += 1
        self._current = None
        for live, group in groups:
            if live.journal.detached:
                continue
            if live.journal.run_id in refused:
                self.on_refusal(live)
            else:
                turn.journals[live.journal] = True
                self.on_commit(live, group)
        turn.done.set()
