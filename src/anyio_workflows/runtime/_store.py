"""What a runtime asks of the place where its runs are kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import attrs

RunStatus = Literal[
    "queued",
    "running",
    "waiting",
    "completed",
    "failed",
    "timed_out",
    "cancelled",
    "incompatible",
    "stuck",
]
"""How a run stands. The first three have not ended; the last two are parked until a person mends them."""

ACTIVE: frozenset[RunStatus] = frozenset({"queued", "running", "waiting"})
"""The statuses of runs that have to be continued. Only they have an owner."""

ENDED: frozenset[RunStatus] = frozenset({"completed", "failed", "timed_out", "cancelled"})
"""The statuses of runs that have published their terminal event."""

PARKED: frozenset[RunStatus] = frozenset({"incompatible", "stuck"})
"""The statuses of runs that nobody continues until a person has mended them."""

MailKind = Literal["send", "cancel"]

ENOUGH_TEXT = 1_000_000
"""How many characters of the rows of runs are read at once, at least, if there are as many."""


@attrs.frozen
class StoredRun:
    """What a store knows about a run, besides its rows and events. Times are those of the wall clock.

    Attributes:
        id: Identifies the run; unique in the store.
        workflow: The name under which its workflow is registered.
        status: How it stands.
        created: When it was started, in seconds since 1970.
        ended: When its terminal event was written; `None` before that.
        last_seq: The number of the last event that is in the store; 0 if there is none.
        waiting_for: The tags of the event types for which it has open waits.
        open_waits: How many waits can be answered; those of a run that is parked cannot.
        metadata: What the caller said about the run, as JSON.
        error: Why it failed or was parked, as JSON; `None` if it was not.
        fingerprint: That of the graph with which its rows were written.
        deadline: When it times out; `None` if it never does, or has not begun.
        wake_at: While it is asleep, when it is to be woken at the latest; `None` for never.
        asleep_since: When it was released from memory: it owes nothing but waits, and only mail or time can
            make it continue. `None` if it was not, or has been claimed since.
        recoveries: How often it was taken over from a host that died, without progress in between.
        owner: The id of the host that executes it; `None` if there is none, as when it has ended or is
            parked.
    """

    id: str
    workflow: str
    status: RunStatus
    created: float
    ended: float | None = None
    last_seq: int = 0
    waiting_for: tuple[str, ...] = ()
    open_waits: int = 0
    metadata: str = "{}"
    error: str | None = None
    fingerprint: str = ""
    deadline: float | None = None
    wake_at: float | None = None
    asleep_since: float | None = None
    recoveries: int = 0
    owner: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it has published its terminal event."""
        return self.status in ENDED


class StoredEvent(NamedTuple):
    """An event of the public stream: its number, the wall clock's time, and the event as JSON."""

    seq: int
    time: float
    text: str


class Mail(NamedTuple):
    """What another process, or this one while the run slept, has for a run: an event, or a cancellation."""

    id: int
    run_id: str
    kind: MailKind
    data: str


@attrs.define
class RunChange:
    """What one group changes in one run.

    Attributes:
        run_id: The run.
        new: The run, if it is to be inserted, with its owner: the host itself, or `None` to let any
            host claim it. If the store has one of this id already, the whole change is refused.
        columns: Attributes of `StoredRun` with their new values. `owner` is none of them: a host gives
            a run up with `released`. Nor is `last_seq`, which follows from `events`.
        wipe: Whether to delete all rows of the run first.
        rows: The rows to write, by key; `None` deletes one. Keys and values are text.
        events: What is appended to its log, in order.
        replies: Answers to mail, by id, as JSON: applied with the rest of the group, or not at all.
            Those to mail that is gone have no effect; mail of which nobody waits for the reply goes with it.
        released: Whether the host stops executing the run. It does anyway when the status is one of a run
            that has ended or is parked.
    """

    run_id: str
    new: StoredRun | None = None
    columns: dict[str, Any] = attrs.field(factory=dict)
    wipe: bool = False
    rows: dict[str, str | None] = attrs.field(factory=dict)
    events: list[StoredEvent] = attrs.field(factory=list)
    replies: dict[int, str] = attrs.field(factory=dict)
    released: bool = False


@attrs.frozen
class RunQuery:
    """Which runs to list, newest first.

    Attributes:
        status: Only those that stand so.
        workflow: Only those of this workflow.
        waiting_for: Only those with an open wait for one of these tags of event types.
        limit: At most so many.
        before: Only those created before this one, as `(created, id)`.
    """

    status: RunStatus | None = None
    workflow: str | None = None
    waiting_for: Collection[str] = ()
    limit: int = 50
    before: tuple[float, str] | None = None


class Store(Protocol):
    """Where runs are kept: rows, events and mail, by run.

    A store knows nothing about workflows: all that it keeps is text. Each method is one transaction. A method
    that fails has changed nothing, and raises a `StoreError`. Cancelling a method may leave its
    transaction done or undone, but never done by half.
    """

    def wall(self) -> float:
        """Return the wall clock's time, in seconds since 1970: all hosts of a store go by the same clock."""
        ...

    @property
    def poll(self) -> float:
        """Seconds after which to ask `changed()` again; infinite if no other process writes."""
        ...

    async def open(self) -> str:
        """Open the store, as a host; returns the id of the host."""
        ...

    async def close(self) -> None:
        """Give up all runs that the host executes, without ending them, and close the store."""
        ...

    async def commit(self, changes: Sequence[RunChange]) -> set[str]:
        """Write a group, durably, all of it or nothing: at most one change for each run.

        Returns:
            The ids of the runs whose changes were refused: those that were new and existed already, and
            those that this host does not execute (D6).

        Raises:
            HostLostError: If this host was declared dead, and its runs belong to others now (D6).
            StoreError: If it cannot be written (D10).
        """
        ...

    async def find_run(self, run_id: str) -> StoredRun | None:
        """Return a run; `None` if there is none of this id."""
        ...

    async def find_each(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        """Return the runs of these ids, as far as there are any, by id."""
        ...

    async def find_runs(self, query: RunQuery) -> list[StoredRun]:
        """Return the newest runs, by `created` and then by id, in falling order."""
        ...

    async def rows(self, run_id: str) -> Mapping[str, str]:
        """Return the rows of a run, by key."""
        ...

    async def rows_of_each(
        self, run_ids: Sequence[str], enough: int = ENOUGH_TEXT
    ) -> list[Mapping[str, str]]:
        """Return the rows of some runs, in the same order, by key.

        It stops behind the first run with which there are `enough` characters of text, so that what is read at
        once takes little memory, whatever runs owe. The caller asks for the others later.
        """
        ...

    async def events(self, run_id: str, after: int, limit: int) -> list[StoredEvent]:
        """Return the events of a run whose numbers are above `after`, in order; at most `limit`."""
        ...

    async def claim(
        self,
        workflows: Collection[str],
        now: float,
        limit: int = 100,
        also: Collection[str] = (),
    ) -> list[StoredRun]:
        """Become the owner of runs that have to be continued, and that nobody executes.

        First, hosts that have died are removed: their runs get one more recovery, and no owner. Then runs
        without an owner are taken, which have not ended and are not parked, and are not asleep, or have mail, or were
        to be woken by `now`, or fell asleep after `now`, as the clock was set back since; the oldest first. They
        are not asleep any more.

        Args:
            workflows: The names of the workflows that this host can execute.
            now: The wall clock's time.
            limit: At most so many runs.
            also: The ids of runs that are taken even if they are asleep.
        """
        ...

    async def post(self, run_id: str, kind: MailKind, data: str) -> int | None:
        """Leave mail for a run; returns its id, or `None` if the run has ended or is parked, or there is none.

        Its reply is kept until it is taken, or this host is closed or dies: then it is for nobody.
        """
        ...

    async def next_wake(self) -> float | None:
        """Return when the first of the runs that are asleep is to be woken; `None` for never."""
        ...

    async def requeue(self, run_id: str, late: str) -> bool:
        """Have a run that has ended or is parked claimed: `"queued"`, without `ended`, `error`, recoveries.

        Args:
            run_id: The run.
            late: The reply to its mail that has none: it has come too late.

        Returns:
            Whether there was such a run, in one of these statuses but `"completed"`.
        """
        ...

    async def mail(self) -> Sequence[Mail]:
        """Return the mail of the runs of this host that has not been replied to, in order."""
        ...

    async def take_reply(self, mail_id: int) -> str | None:
        """Return the reply to mail and remove both; `None` if there is no reply yet."""
        ...

    async def want_no_reply(self, mail_id: int) -> None:
        """Note that nobody waits for the reply to mail any more: it is removed with it, or once it has one."""
        ...

    async def changed(self) -> bool:
        """Return whether another process may have written since the last call; cheap."""
        ...

    async def purge(self, ended_before: float, limit: int = 1000) -> int:
        """Delete runs that ended before a time, with all that belongs to them; returns how many."""
        ...

    async def delete(self, run_id: str) -> bool:
        """Delete a run that has ended or is parked; returns whether there was one."""
        ...
