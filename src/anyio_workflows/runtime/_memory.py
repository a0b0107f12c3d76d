"""A store in memory, for tests: it outlives the hosts that use it, as a database does."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import anyio.lowlevel
import attrs

from ..errors import HostLostError, StoreError
from ._store import ACTIVE, ENOUGH_TEXT, Mail, MailKind, RunChange, RunQuery, StoredEvent, StoredRun

NAME = "memory"
"""How errors name the store."""

_names = itertools.count(1)


@attrs.define(eq=False)
class MemoryData:
    """What is kept: the counterpart of the file of a database. Each `MemoryStore` on it is a host.

    Attributes:
        runs: The runs, by id.
        rows: The rows of each run, by key.
        events: The events of each run, in order.
        mail: All mail, by id, in order.
        replies: The replies, by the id of the mail, until they are taken.
        senders: The hosts where somebody waits for them, by the id of the mail.
        hosts: The ids of the hosts that are open or died, with whether they are alive. Each `owner` of a
            run is one of them.
        written: How many transactions have written something.
        last_mail: The id that was given to mail last: none is used twice.
    """

    runs: dict[str, StoredRun] = attrs.field(factory=dict)
    rows: dict[str, dict[str, str]] = attrs.field(factory=dict)
    events: dict[str, list[StoredEvent]] = attrs.field(factory=dict)
    mail: dict[int, Mail] = attrs.field(factory=dict)
    replies: dict[int, str] = attrs.field(factory=dict)
    senders: dict[int, str] = attrs.field(factory=dict)
    hosts: dict[str, bool] = attrs.field(factory=dict)
    written: int = 0
    last_mail: int = 0

    def remove(self, run_id: str) -> None:
        """Delete a run with all that belongs to it."""
        del self.runs[run_id], self.rows[run_id], self.events[run_id]
        for mail in [mail for mail in self.mail.values() if mail.run_id == run_id]:
            self.remove_mail(mail.id)

    def remove_mail(self, mail_id: int) -> None:
        """Delete mail with its reply."""
        del self.mail[mail_id]
        self.replies.pop(mail_id, None)
        self.senders.pop(mail_id, None)

    def reply(self, mail_id: int, reply: str) -> None:
        """Keep the reply to mail, if anybody waits for it."""
        if mail_id in self.senders:
            self.replies[mail_id] = reply
        elif mail_id in self.mail:
            self.remove_mail(mail_id)

    def want_no_reply(self, mail_id: int) -> None:
        """Note that nobody waits for the reply to mail."""
        self.senders.pop(mail_id, None)
        if mail_id in self.replies:
            self.remove_mail(mail_id)

    def unanswered(self) -> list[Mail]:
        """Return the mail that has no reply, in order."""
        return [mail for mail in self.mail.values() if mail.id not in self.replies]


class MemoryStore:
    """A store in memory, which survives what its hosts do not (see `Store`).

    Each method lets other tasks run, once, and then does all its work between two turns of the loop:
    there are no threads, so it works under virtual time.

    Args:
        data: What is kept. A process that starts again after a crash is another store on the same data.
        on_commit: Called after each transaction that has written something, before the method returns,
            with its number: 1, 2, 3, ... for each store. It may call `kill()`, or raise.
        wall: Stands for the wall clock.
        poll: Seconds after which a runtime looks for what other hosts have written: to be set if there
            are others at the same time.

    Attributes:
        data: What is kept.
        problem: If it is set, each write fails with a `StoreError` that says this.
    """

    def __init__(
        self,
        data: MemoryData | None = None,
        on_commit: Callable[[int], object] | None = None,
        *,
        wall: Callable[[], float] = time.time,
        poll: float = math.inf,
    ) -> None:
        self.data = MemoryData() if data is None else data
        self.wall = wall
        self.poll = poll
        self.problem: str | None = None
        self._on_commit = on_commit
        self._host = ""
        self._commits = 0
        self._seen = 0  # transactions of other hosts, at the last call of `changed()`

    def kill(self) -> None:
        """Count as dead: others may take over the runs, and this host can write nothing any more."""
        if self._host in self.data.hosts:
            self.data.hosts[self._host] = False

    # --- The host -----------------------------------------------------------------------------

    async def open(self) -> str:
        """Open the store, as a host (see `Store`)."""
        await anyio.lowlevel.checkpoint()
        if self._host:
            raise StoreError(NAME, "this store is open already; make another one on its data")
        self._host = f"host-{next(_names)}"
        self._seen = self.data.written
        self._commits = 0
        self.data.hosts[self._host] = True
        return self._host

    async def close(self) -> None:
        """Give up all runs of the host, unless it is dead, and close the store (see `Store`)."""
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        if self.data.hosts.get(self._host):
            self._give_up_runs(self._host)
            self.data.written += 1
        self._host = ""

    def _give_up_runs(self, host: str, recoveries: int = 0) -> None:
        del self.data.hosts[host]
        for mail_id in [one for one, sender in self.data.senders.items() if sender == host]:
            self.data.want_no_reply(mail_id)
        for run in list(self.data.runs.values()):
            if run.owner == host:
                self._evolve(run, owner=None, recoveries=run.recoveries + recoveries)

    def _evolve(self, run: StoredRun, **columns: Any) -> StoredRun:
        new = self.data.runs[run.id] = attrs.evolve(run, **columns)
        return new

    async def _reading(self) -> None:
        await anyio.lowlevel.checkpoint()
        if not self._host:
            raise StoreError(NAME, "the store is not open")

    async def _writing(self) -> None:
        await self._reading()
        if self.problem is not None:
            raise StoreError(NAME, self.problem)
        if not self.data.hosts.get(self._host):  # D6: the fence
            raise HostLostError(NAME, "the host was killed, and can write nothing any more")

    def _committed(self) -> None:
        self.data.written += 1
        self._commits += 1
        if self._on_commit is not None:
            self._on_commit(self._commits)

    # --- Runs ---------------------------------------------------------------------------------

    async def commit(self, changes: Sequence[RunChange]) -> set[str]:
        """Write a group (see `Store`)."""
        await self._writing()
        refused = {change.run_id for change in changes if not self._make(change)}
        self._committed()
        return refused

    def _make(self, change: RunChange) -> bool:
        """Make a change, unless it is refused; returns whether it was made."""
        data, run_id = self.data, change.run_id
        run = data.runs.get(run_id)
        if change.new is not None:
            if run is not None:
                return False
            run = data.runs[run_id] = change.new
            data.rows[run_id], data.events[run_id] = {}, []
        elif run is None or run.owner != self._host:
            return False
        columns = dict(change.columns)
        if change.events:
            columns["last_seq"] = change.events[-1].seq
        if change.released or columns.get("status", run.status) not in ACTIVE:
            columns["owner"] = None
        self._evolve(run, **columns)
        data.events[run_id] += change.events
        rows = data.rows[run_id]
        if change.wipe:
            rows.clear()
        for key, text in change.rows.items():
            if text is None:
                rows.pop(key, None)
            else:
                rows[key] = text
        for mail_id, reply in change.replies.items():
            data.reply(mail_id, reply)
        return True

    async def find_run(self, run_id: str) -> StoredRun | None:
        """Return a run (see `Store`)."""
        await self._reading()
        return self.data.runs.get(run_id)

    async def find_each(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        """Return the runs of some ids (see `Store`)."""
        await self._reading()
        runs = self.data.runs
        return {run_id: runs[run_id] for run_id in run_ids if run_id in runs}

    async def find_runs(self, query: RunQuery) -> list[StoredRun]:
        """Return the newest runs (see `Store`)."""
        await self._reading()
        tags = set(query.waiting_for)
        found = [
            run
            for run in self.data.runs.values()
            if query.status in (None, run.status)
            and query.workflow in (None, run.workflow)
            and (not tags or tags & set(run.waiting_for))
            and (query.before is None or (run.created, run.id) < query.before)
        ]
        found.sort(key=lambda run: (run.created, run.id), reverse=True)
        return found[: query.limit]

    async def rows(self, run_id: str) -> Mapping[str, str]:
        """Return the rows of a run (see `Store`)."""
        await self._reading()
        return dict(self.data.rows.get(run_id, {}))

    async def rows_of_each(
        self, run_ids: Sequence[str], enough: int = ENOUGH_TEXT
    ) -> list[Mapping[str, str]]:
        """Return the rows of some runs (see `Store`)."""
        await self._reading()
        found: list[Mapping[str, str]] = []
        for run_id in run_ids:
            rows = dict(self.data.rows.get(run_id, {}))
            found.append(rows)
            enough -= sum(map(len, rows.values()))
            if enough <= 0:
                break
        return found

    async def events(self, run_id: str, after: int, limit: int) -> list[StoredEvent]:
        """Return some events of a run (see `Store`)."""
        await self._reading()
        return [event for event in self.data.events.get(run_id, ()) if event.seq > after][:limit]

    async def claim(
        self,
        workflows: Collection[str],
        now: float,
        limit: int = 100,
        also: Collection[str] = (),
    ) -> list[StoredRun]:
        """Become the owner of runs that nobody executes (see `Store`)."""
        await self._writing()
        data = self.data
        dead = [host for host, is_alive in data.hosts.items() if not is_alive]
        for host in dead:
            self._give_up_runs(host, recoveries=1)
        with_mail = {mail.run_id for mail in data.unanswered()}
        due = [
            run
            for run in data.runs.values()
            if run.owner is None and run.status in ACTIVE and run.workflow in workflows
            if run.asleep_since is None
            or run.asleep_since > now
            or run.id in also
            or run.id in with_mail
            or (run.wake_at is not None and run.wake_at <= now)
        ]
        due.sort(key=lambda run: (run.created, run.id))
        claimed = [
            self._evolve(run, owner=self._host, asleep_since=None, wake_at=None)
            for run in due[:limit]
        ]
        if dead or claimed:
            self._committed()
        return claimed

    async def next_wake(self) -> float | None:
        """Return when the first of the sleeping runs is to be woken (see `Store`)."""
        await self._reading()
        times = [
            run.wake_at
            for run in self.data.runs.values()
            if run.owner is None and run.wake_at is not None
        ]
        return min(times, default=None)

    async def requeue(self, run_id: str, late: str) -> bool:
        """Have a run that failed or is parked claimed again (see `Store`)."""
        await self._writing()
        run = self.data.runs.get(run_id)
        if run is None or run.status in ACTIVE or run.status == "completed":
            return False
        self._evolve(run, status="queued", ended=None, error=None, recoveries=0)
        self._evolve(self.data.runs[run_id], asleep_since=None, wake_at=None)
        for mail in self.data.unanswered():
            if mail.run_id == run_id:
                self.data.reply(mail.id, late)
        self._committed()
        return True

    async def purge(self, ended_before: float, limit: int = 1000) -> int:
        """Delete runs that ended long ago (see `Store`)."""
        await self._writing()
        old = [
            run
            for run in self.data.runs.values()
            if run.has_ended and run.ended is not None and run.ended < ended_before
        ]
        old.sort(key=lambda run: run.ended or 0)
        for run in old[:limit]:
            self.data.remove(run.id)
        if old:
            self._committed()
        return len(old[:limit])

    async def delete(self, run_id: str) -> bool:
        """Delete a run that has ended or is parked (see `Store`)."""
        await self._writing()
        run = self.data.runs.get(run_id)
        if run is None or run.status in ACTIVE:
            return False
        self.data.remove(run_id)
        self._committed()
        return True

    # --- Mail ---------------------------------------------------------------------------------

    async def post(self, run_id: str, kind: MailKind, data: str) -> int | None:
        """Leave mail for a run (see `Store`)."""
        await self._writing()
        run = self.data.runs.get(run_id)
        if run is None or run.status not in ACTIVE:
            return None
        self.data.last_mail += 1
        mail = Mail(self.data.last_mail, run_id, kind, data)
        self.data.mail[mail.id] = mail
        self.data.senders[mail.id] = self._host
        self._committed()
        return mail.id

    async def mail(self) -> Sequence[Mail]:
        """Return the mail of the runs of this host (see `Store`)."""
        await self._reading()
        runs = self.data.runs
        return [mail for mail in self.data.unanswered() if runs[mail.run_id].owner == self._host]

    async def take_reply(self, mail_id: int) -> str | None:
        """Return the reply to mail and remove both (see `Store`)."""
        await self._writing()
        if mail_id not in self.data.replies:
            return None
        reply = self.data.replies[mail_id]
        self.data.remove_mail(mail_id)
        self._committed()
        return reply

    async def want_no_reply(self, mail_id: int) -> None:
        """Note that nobody waits for the reply to mail any more (see `Store`)."""
        await self._writing()
        self.data.want_no_reply(mail_id)
        self._committed()

    async def changed(self) -> bool:
        """Return whether another host may have written since the last call (see `Store`)."""
        await self._reading()
        seen, self._seen = self._seen, self.data.written - self._commits
        return self._seen != seen
