"""What the tests of stores share: places where stores can be opened, and short ways to say what changes."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from anyio_workflows.runtime._memory import MemoryData, MemoryStore
from anyio_workflows.runtime._sqlite import SqliteStore
from anyio_workflows.runtime._store import RunChange, Store, StoredEvent, StoredRun


class MemoryPlace:
    """Data in memory."""

    def __init__(self) -> None:
        self.data = MemoryData()

    def store(self) -> Store:
        return MemoryStore(self.data)

    def kill(self, store: Any) -> None:
        store.kill()

    def mail(self) -> list[int]:
        return list(self.data.mail)


class SqlitePlace:
    """A database."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def store(self) -> Store:
        return SqliteStore(self.path)

    def kill(self, store: Any) -> None:
        """Let a host look dead: its lock can be taken, as after a kill."""
        store._open.lock.release()

    def mail(self) -> list[int]:
        with closing(sqlite3.connect(self.path)) as db:
            return [number for (number,) in db.execute("SELECT id FROM inbox ORDER BY id")]


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[str]:
    """Open a store for a block; gives the id of the host."""
    host = await store.open()
    try:
        yield host
    finally:
        await store.close()


def new_run(run_id: str, owner: str | None = None, **columns: Any) -> RunChange:
    """Return the change that starts a run."""
    facts = {"workflow": "review", "status": "running", "created": 1.0, **columns}
    return RunChange(run_id, new=StoredRun(run_id, owner=owner, **facts))


def ended_run(run_id: str, **columns: Any) -> RunChange:
    """Return the change that adds a run which has ended already."""
    return new_run(run_id, **{"status": "completed", "ended": 2.0, **columns})


def event(seq: int, text: str = "{}") -> StoredEvent:
    """Return an event."""
    return StoredEvent(seq, float(seq), text)
