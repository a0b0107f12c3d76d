"""The runs that somebody has a handle of, and that this process does not execute."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from weakref import WeakValueDictionary

import attrs

from ..errors import ContextSerdeError, StoreError
from ..events import StopEvent
from ..instrument import EventRecord
from ._live import KeptRun
from ._log import EventLog
from ._mail import Mailbox
from ._records import outcome_of
from ._registered import Registered
from ._store import PARKED, Store, StoredRun

_PAGE = 128
"""How many events are read from the store at once."""

_MOST_RUNS = 1000
"""How many runs are looked at at once."""


@attrs.define(eq=False, repr=False)
class FollowedRuns:
    """The runs that another process executes, or nobody: what becomes of them is read from the store.

    Attributes:
        store: Where they are.
        registered: The workflows by the names under which they are registered.
        mailbox: Knows whether the runtime is being left.
        log_events: How many events of each run stay in memory, at most.
        log_bytes: How many bytes they may take, at most.
        by_id: All of them, as long as anybody has a handle.
    """

    store: Store
    registered: Mapping[str, Registered]
    mailbox: Mailbox
    log_events: int
    log_bytes: int
    by_id: WeakValueDictionary[str, KeptRun] = attrs.field(factory=WeakValueDictionary, init=False)

    def new_log(self, run_id: str, workflow: str, last: int) -> EventLog:
        """Return the log of a run, whose events up to `last` are in the store only."""
        archive = partial(self.read_events, run_id, workflow)
        return EventLog(self.log_events, self.log_bytes, last, archive)

    async def read_events(
        self, run_id: str, workflow: str, after: int, limit: int
    ) -> list[EventRecord]:
        """Read events of a run from the store (L3)."""
        try:
            events = await self.store.events(run_id, after, limit)
        except StoreError:
            self.mailbox.check_not_left(
                f"events of run {run_id} that are not in memory cannot be read"
            )
            raise
        reader = self.registered[workflow].reader()
        return [
            EventRecord(seq, time, reader.event(text, f"run {run_id}, event {seq}"))
            for seq, time, text in events
        ]

    def follow(self, stored: StoredRun) -> KeptRun:
        """Return what is known about a run: for all who have a handle of it the same."""
        kept = self.by_id.get(stored.id)
        if kept is not None and _is_of(kept, stored):
            return kept
        if kept is not None:  # it was removed, and another one started under its id
            self.remove(kept)
        created = datetime.fromtimestamp(stored.created, UTC)
        log = self.new_log(stored.id, stored.workflow, stored.last_seq)
        kept = KeptRun(stored.id, stored.workflow, created, stored.metadata, log, stored=stored)
        self.by_id[stored.id] = kept
        return kept

    def remove(self, kept: KeptRun) -> None:
        """Forget a run that the store does not keep any more."""
        if self.by_id.get(kept.id) is kept:  # else there is another one of its id by now
            del self.by_id[kept.id]
        kept.forget()

    async def catch_up(self, kept: KeptRun, stored: StoredRun) -> None:
        """Note how a run stands.

        While events are read, it may be brought back, removed or let go, or another task may note its end.
        """
        is_newer = (stored.last_seq, not stored.has_ended) > (kept.log.last, False)
        is_mended = kept.is_parked and stored.status not in PARKED
        if kept.live is None and (is_mended or (is_newer and not kept.in_progress)):
            kept.begin_again()  # it was retried
        while kept.is_followed and kept.log.last < stored.last_seq:
            records = await self.read_events(kept.id, kept.workflow, kept.log.last, _PAGE)
            if not kept.is_followed:
                return
            if not records:
                await self._note_removal(kept)
                return
            for record in records:
                if record.seq == kept.log.last + 1:  # another task may have appended some
                    kept.log.append(record)
        if kept.live is not None:
            return
        if stored.has_ended and kept.is_followed:
            last = await self.read_events(kept.id, kept.workflow, stored.last_seq - 1, 1)
            if not kept.is_followed:
                return
            if not (last and isinstance(event := last[0].event, StopEvent)):
                await self._note_removal(kept)
                return
            kept.end(outcome_of(event, stored.error), None, stored.ended)
        kept.stored = stored  # not before: its status says what is known of it
        if stored.status in PARKED and kept.is_followed:
            kept.park()

    async def _note_removal(self, kept: KeptRun) -> None:
        """Forget a run if it was removed: an event that it had is not there any more, or is that of another run."""
        stored = await self.store.find_run(kept.id)
        if kept.live is None and (stored is None or not _is_of(kept, stored)):
            self.remove(kept)

    async def look_at(self, kept: KeptRun) -> None:
        """Note how one of them stands, if it is still one of them."""
        if not (kept.is_followed or kept.is_parked):
            return
        stored = await self.store.find_run(kept.id)
        if stored is not None and _is_of(kept, stored):
            try:
                await self.catch_up(kept, stored)
            except ContextSerdeError as error:  # of one run: the others are followed
                if kept.is_followed:
                    kept.lose(error)
        elif kept.live is None:
            self.remove(kept)

    async def look_at_all(self) -> None:
        """Note how all of them stand. Those of which nothing has changed take a share of one read."""
        known = list(self.by_id.values())
        followed = [kept for kept in known if kept.is_followed or kept.is_parked]
        for first in range(0, len(followed), _MOST_RUNS):
            some = followed[first : first + _MOST_RUNS]
            found = await self.store.find_each([kept.id for kept in some])
            for kept in some:
                stored = found.get(kept.id)
                # One that has ended may have been found by a task that was cancelled before it noted that.
                if stored is None or stored.has_ended or stored != kept.stored:
                    await self.look_at(kept)


def _is_of(kept: KeptRun, stored: StoredRun) -> bool:
    """Return whether they are the same run: one of its id may have been removed, and another one started."""
    return datetime.fromtimestamp(stored.created, UTC) == kept.created
