"""A store in a file: SQLite, shared by the processes of one machine."""

# Theory of operation
#
# Each host has two connections: one that writes, and one that only reads, so that readers never wait for a
# disk. All calls are made in worker threads, one at a time for each connection, except `changed()`. A third one
# makes checkpoints, in the thread that writes (`_sqlite_file.checkpoint()` says why).
#
# A write is one transaction in WAL mode with `synchronous=FULL`: one fsync, after which the group is on the
# disk as a whole, or not at all. It begins with the fence: if others took this host for dead, its row in
# `hosts` is gone, and nothing is written (D6). Taking over is one transaction as well: it removes the row of
# the dead host and takes its runs. `_sqlite_file` says how hosts find out who is dead.
#
# A caller that is cancelled waits for its thread: the transaction is done or failed when the call returns. Only
# asyncio's native cancellation does not wait; the thread then ends by itself, and the next call waits for it.
#
# The file does not shrink by itself (`auto_vacuum` is off): pages that become free are used again, and keeping
# track of them costs a write for each page that moves. `VACUUM` makes the file smaller while nobody uses it.

from __future__ import annotations

import ctypes
import json
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from operator import itemgetter
from typing import Any, TypeVar

import anyio.lowlevel
import anyio.to_thread
import attrs

from ..errors import HostLostError, StoreError
from . import _sqlite_file as files
from . import _sqlite_tables as sql
from ._store import ACTIVE, ENOUGH_TEXT, Mail, MailKind, RunChange, RunQuery, StoredEvent, StoredRun

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PAGES_PER_CHECKPOINT = 1000
"""After so many pages that were written ahead, a checkpoint is made, as SQLite does it by itself."""

_PAGES_PER_WRITE = 6
"""How many pages a transaction writes, if it writes little."""

_TEXT_PER_PAGE = 1200
"""How many characters of text, with all that belongs to them, take another page, if it writes much."""

# --- The store ----------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Connections:
    """What an open store has.

    Attributes:
        writer: The connection that writes, in a thread that holds `writing`.
        reader: The connection that reads, in a thread that holds `reading`.
        checkpointer: The connection that makes checkpoints, in a thread that holds `writing`.
        lock: Shows that this host is alive, as long as the store is open.
        version: `PRAGMA data_version` of the writer: it changes when other connections have written.
        numbers: The numbers of the runs that this host executes, by id. As long as the host is not fenced
            off, nobody else changes who owns them.
        ahead: How many pages this host has written ahead since its last checkpoint, about.
        foreign: Whether it has changed since the last call of `changed()`.
        pid: The process that opened the store: a child that was forked must not use it.
    """

    writer: sqlite3.Connection
    reader: sqlite3.Connection
    checkpointer: sqlite3.Connection
    lock: files.HostLock
    version: int
    numbers: dict[str, int] = attrs.field(factory=dict)
    ahead: int = 0
    foreign: bool = False
    pid: int = attrs.field(factory=os.getpid)
    writing: threading.Lock = attrs.field(factory=threading.Lock)
    reading: threading.Lock = attrs.field(factory=threading.Lock)
    # Limiters of their own: the default one has 40 threads, which steps may occupy for ever.
    writers: anyio.CapacityLimiter = attrs.field(factory=lambda: anyio.CapacityLimiter(1))
    readers: anyio.CapacityLimiter = attrs.field(factory=lambda: anyio.CapacityLimiter(1))


class SqliteStore:
    """A store in an SQLite database, for the processes of one machine (see `Store`).

    Args:
        path: The file. It is made if there is none; its directory has to exist.
        patience: How many seconds to wait for another process that keeps the database locked. A caller that
            is cancelled in the meantime waits as well.
    """

    def __init__(self, path: str | os.PathLike[str], patience: float = 30.0) -> None:
        self._name = os.fspath(path)
        self._path = ""
        self._patience = patience
        self._open: _Connections | None = None

    poll = 0.05

    def wall(self) -> float:
        """Return the time of the machine (see `Store`)."""
        return time.time()

    # --- The host -----------------------------------------------------------------------------

    async def open(self) -> str:
        """Open the store, as a host (see `Store`).

        Raises:
            StoreError: If there is no such directory, or it is on a network file system or not writable; if
                the file is no database, or that of another program, or of a newer version.
        """
        if self._open is not None:
            raise StoreError(
                self._name, "this store is open already; make another one for its file"
            )
        limiter = anyio.CapacityLimiter(1)
        opened = await anyio.to_thread.run_sync(self._open_now, limiter=limiter)
        self._open = opened
        return opened.lock.host

    def _open_now(self) -> _Connections:
        with _opening, self._explained():
            self._path = os.path.realpath(self._name)  # the files beside it are those of the target
            files.check_place(self._name, self._path)
            with ExitStack() as stack:
                writer, reader, checkpointer = (
                    stack.enter_context(closing(files.connect(self._path, self._patience)))
                    for _ in range(3)
                )
                files.prepare(writer, self._name, self._path, self._patience, sql.MIGRATIONS)
                for other in (reader, checkpointer):
                    other.execute("PRAGMA query_only = ON")
                version = _data_version(writer)
                lock = self._register(writer)
                opened = _Connections(writer, reader, checkpointer, lock, version)
                stack.pop_all()
            _connected.add(opened)
        return opened

    def _register(self, db: sqlite3.Connection) -> files.HostLock:
        lock = None
        try:
            with files.transaction(db):
                hosts = {host for (host,) in db.execute(sql.HOSTS)}
                files.remove_left_over(self._path, hosts)
                lock = files.HostLock(self._path)
                db.execute(sql.ADD_HOST, (lock.host, time.time()))
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return lock

    async def close(self) -> None:
        """Give up all runs of the host, unless it was lost, and close the store (see `Store`).

        If that cannot be written, it is logged: the host then counts as dead, and its runs are taken over.
        """
        opened, self._open = self._open, None
        if opened is not None and opened.pid == os.getpid():
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._close_now, opened, limiter=opened.writers)

    def _close_now(self, opened: _Connections) -> None:
        with opened.writing, opened.reading:
            try:
                with self._explained(), self._transaction(opened) as db:
                    db.execute(sql.GIVE_UP, (0, opened.lock.host))
                    db.execute(sql.DELETE_HOST, (opened.lock.host,))
            except HostLostError:
                pass
            except StoreError as error:
                logger.warning(
                    "runs could not be given up, and count as those of a crash: %s", error
                )
            finally:
                for connection in (opened.reader, opened.checkpointer, opened.writer):
                    connection.close()
                opened.lock.release()

    # --- Threads, transactions, the fence -----------------------------------------------------

    def _connections(self) -> _Connections:
        if self._open is None:
            raise StoreError(self._name, "the store is not open")
        if self._open.pid != os.getpid():
            problem = (
                f"the store was opened in process {self._open.pid}, before this one was forked"
            )
            raise StoreError(self._name, f"{problem}: open another one here")
        return self._open

    def _explained(self) -> Any:
        return files.explained(self._name, self._patience)

    async def _write(self, act: Callable[..., T], *args: Any) -> T:
        opened = self._connections()

        def call() -> T:
            with opened.writing, self._explained():
                result = act(opened, *args)
                if opened.ahead >= _PAGES_PER_CHECKPOINT:
                    opened.ahead = 0
                    files.checkpoint(opened.writer, opened.checkpointer)
                return result

        return await anyio.to_thread.run_sync(call, limiter=opened.writers)

    async def _read(self, act: Callable[..., T], *args: Any) -> T:
        opened = self._connections()

        def call() -> T:
            with opened.reading, self._explained():
                return act(opened.reader, *args)

        return await anyio.to_thread.run_sync(call, limiter=opened.readers)

    @contextmanager
    def _transaction(self, opened: _Connections) -> Iterator[sqlite3.Connection]:
        """Commit what the block writes, unless it raises or this host is lost."""
        with files.transaction(opened.writer):
            self._check_fence(opened)
            _note_version(opened)
            yield opened.writer
        opened.ahead += _PAGES_PER_WRITE

    def _check_fence(self, opened: _Connections) -> None:
        """Raise if others took this host for dead (D6)."""
        if opened.writer.execute(sql.FIND_HOST, (opened.lock.host,)).fetchone() is None:
            problem = "this process was taken for dead, and its runs are executed by others now"
            raise HostLostError(self._name, f"{problem}: was its file {opened.lock.path} removed?")

    # --- Groups -------------------------------------------------------------------------------

    async def commit(self, changes: Sequence[RunChange]) -> set[str]:
        """Write a group, with one fsync (see `Store`)."""
        return await self._write(self._commit, changes)

    def _commit(self, opened: _Connections, changes: Sequence[RunChange]) -> set[str]:
        group = _Group(opened.lock.host, opened.numbers)
        with self._transaction(opened) as db:
            for change in changes:
                group.add(db, change)
            group.write(db)
        opened.ahead += group.size // _TEXT_PER_PAGE
        opened.numbers.update(group.started)
        for run_id in group.released:
            opened.numbers.pop(run_id, None)
        return group.refused

    # --- Runs ---------------------------------------------------------------------------------

    async def find_run(self, run_id: str) -> StoredRun | None:
        """Return a run (see `Store`)."""
        found = await self._read(_runs, sql.FIND_RUN, (run_id,))
        return found[0] if found else None

    async def find_each(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        """Return the runs of some ids (see `Store`)."""
        found = await self._read(_runs, sql.FIND_EACH, (json.dumps(list(run_ids)),))
        return {run.id: run for run in found}

    async def find_runs(self, query: RunQuery) -> list[StoredRun]:
        """Return the newest runs (see `Store`)."""
        return await self._read(_runs, *sql.page_of(query))

    async def rows(self, run_id: str) -> Mapping[str, str]:
        """Return the rows of a run (see `Store`)."""
        return dict(await self._read(_select, sql.ROWS, (run_id,)))

    async def rows_of_each(
        self, run_ids: Sequence[str], enough: int = ENOUGH_TEXT
    ) -> list[Mapping[str, str]]:
        """Return the rows of some runs (see `Store`)."""
        return await self._read(_rows_of_each, run_ids, enough)

    async def events(self, run_id: str, after: int, limit: int) -> list[StoredEvent]:
        """Return some events of a run (see `Store`)."""
        found = await self._read(_select, sql.EVENTS, (run_id, after, limit))
        return [StoredEvent(*row) for row in found]

    async def claim(
        self,
        workflows: Collection[str],
        now: float,
        limit: int = 100,
        also: Collection[str] = (),
    ) -> list[StoredRun]:
        """Become the owner of runs that nobody executes (see `Store`)."""
        wanted = {
            "workflows": json.dumps(list(workflows)),
            "now": now,
            "limit": limit,
            "also": json.dumps(list(also)),
        }
        return await self._write(self._claim, wanted)

    def _claim(self, opened: _Connections, wanted: dict[str, Any]) -> list[StoredRun]:
        self._check_fence(opened)
        db, host = opened.writer, opened.lock.host
        others = [other for (other,) in db.execute(sql.HOSTS) if other != host]
        dead = [other for other in others if files.is_dead(self._path, other)]
        if not dead and db.execute(sql.DUE, wanted).fetchone() is None:
            return []  # as nearly always: nobody has to be kept from writing
        with self._transaction(opened):
            for other in dead:
                db.execute(sql.GIVE_UP, (1, other))
                db.execute(sql.DELETE_HOST, (other,))
            numbers = [no for no, *_ in db.execute(sql.DUE, wanted).fetchall()]
            db.executemany(sql.OWN, [(host, no) for no in numbers])
            claimed = [_runs(db, sql.FIND_NUMBER, (no,))[0] for no in numbers]
        opened.numbers.update((run.id, no) for run, no in zip(claimed, numbers, strict=True))
        for other in dead:
            files.remove_dead(self._path, other)
        return claimed

    async def next_wake(self) -> float | None:
        """Return when the first of the sleeping runs is to be woken (see `Store`)."""
        [(found,)] = await self._read(_select, sql.NEXT_WAKE, ())
        return None if found is None else float(found)

    async def requeue(self, run_id: str, late: str) -> bool:
        """Have a run that failed or is parked claimed again (see `Store`)."""
        return await self._write(self._requeue, run_id, late)

    def _requeue(self, opened: _Connections, run_id: str, late: str) -> bool:
        with self._transaction(opened) as db:
            if db.execute(sql.REQUEUE, (run_id,)).rowcount == 0:
                return False
            db.execute(sql.REPLY_LATE, (late, run_id))
        return True

    async def purge(self, ended_before: float, limit: int = 1000) -> int:
        """Delete runs that ended long ago (see `Store`)."""
        return await self._write(self._change, sql.PURGE, (ended_before, limit))

    async def delete(self, run_id: str) -> bool:
        """Delete a run that has ended or is parked (see `Store`)."""
        return await self._write(self._change, sql.DELETE, (run_id,)) > 0

    def _change(self, opened: _Connections, statement: str, arguments: Sequence[Any]) -> int:
        """Execute one statement; returns how many rows it has changed."""
        with self._transaction(opened) as db:
            return db.execute(statement, arguments).rowcount

    # --- Mail ---------------------------------------------------------------------------------

    async def post(self, run_id: str, kind: MailKind, data: str) -> int | None:
        """Leave mail for a run (see `Store`)."""
        host = self._connections().lock.host
        return await self._write(self._post, (kind, data, host, run_id))

    def _post(self, opened: _Connections, arguments: Sequence[str]) -> int | None:
        with self._transaction(opened) as db:
            posted = db.execute(sql.POST, arguments)
            return posted.lastrowid if posted.rowcount else None

    async def mail(self) -> Sequence[Mail]:
        """Return the mail of the runs of this host (see `Store`)."""
        host = self._connections().lock.host
        return [Mail(*row) for row in await self._read(_select, sql.MAIL, (host,))]

    async def take_reply(self, mail_id: int) -> str | None:
        """Return the reply to mail and remove both (see `Store`)."""
        return await self._write(self._take_reply, mail_id)

    def _take_reply(self, opened: _Connections, mail_id: int) -> str | None:
        self._check_fence(opened)
        found = opened.writer.execute(sql.FIND_REPLY, (mail_id,)).fetchone()
        if found is None:
            return None
        self._change(opened, sql.DELETE_MAIL, (mail_id,))
        return str(found[0])

    async def want_no_reply(self, mail_id: int) -> None:
        """Note that nobody waits for the reply to mail any more (see `Store`)."""
        await self._write(self._change, sql.WANT_NO_REPLY, (mail_id,))

    async def changed(self) -> bool:
        """Return whether another host may have written since the last call (see `Store`).

        This takes 4 us, and no thread. While this host writes, what it found at the beginning counts.
        """
        await anyio.lowlevel.checkpoint()
        opened = self._connections()
        if opened.writing.acquire(blocking=False):
            try:
                with self._explained():
                    _note_version(opened)
            finally:
                opened.writing.release()
        if changed := opened.foreign:
            # Only what is returned is forgotten: the writing thread may note something at this moment.
            opened.foreign = False
        return changed


def _select(db: sqlite3.Connection, statement: str, arguments: Sequence[Any]) -> list[Any]:
    return db.execute(statement, arguments).fetchall()


def _rows_of_each(
    db: sqlite3.Connection, run_ids: Sequence[str], enough: int
) -> list[Mapping[str, str]]:
    found: list[Mapping[str, str]] = []
    for run_id in run_ids:
        rows = dict(db.execute(sql.ROWS, (run_id,)).fetchall())
        found.append(rows)
        enough -= sum(map(len, rows.values()))
        if enough <= 0:
            break
    return found


def _runs(db: sqlite3.Connection, statement: str, arguments: Sequence[Any]) -> list[StoredRun]:
    return [sql.run_of(row) for row in db.execute(statement, arguments)]


def _data_version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA data_version").fetchone()[0]
    return version


def _note_version(opened: _Connections) -> None:
    version = _data_version(opened.writer)
    if version != opened.version:
        opened.version, opened.foreign = version, True


class _Group:
    """What a group changes, by statement: each is prepared once, and executed in one call.

    That is most of what a change costs, so it is done for all runs of the group at once.

    Attributes:
        refused: The ids of the runs whose changes are left out.
        started: The numbers of the new runs that the host executes, by id.
        released: The ids of the runs that it executes no more; one may be in `started`, too.
        size: How many characters of text it writes.
    """

    def __init__(self, host: str, numbers: Mapping[str, int]) -> None:
        self._host = host
        self._numbers = numbers
        self.refused: set[str] = set()
        self.started: dict[str, int] = {}
        self.released: list[str] = []
        self.size = 0
        self._wiped: list[tuple[int]] = []
        self._gone: list[tuple[int, str]] = []
        self._put: list[tuple[int, str, str]] = []
        self._events: list[tuple[int, int, float, str]] = []
        self._columns: dict[tuple[str, ...], list[list[Any]]] = {}
        self._replies: list[tuple[str, int]] = []

    def add(self, db: sqlite3.Connection, change: RunChange) -> None:
        """Add what a run changes. A new run is inserted at once, because it needs a number."""
        run_id, new = change.run_id, change.new
        number = self._numbers.get(run_id) if new is None else self._insert(db, new)
        if number is None:
            self.refused.add(run_id)
            return
        columns = dict(change.columns)
        if change.events:
            columns["last_seq"] = change.events[-1].seq
            self._events += [(number, seq, at, text) for seq, at, text in change.events]
            self.size += sum(len(text) for _, _, text in change.events)
        if change.released or columns.get("status", "running") not in ACTIVE:
            columns["owner"] = None
            self.released.append(run_id)
        if columns:
            self._columns.setdefault(tuple(columns), []).append([*sql.stored(columns), number])
        if change.wipe:
            self._wiped.append((number,))
        for key, text in change.rows.items():
            if text is not None:
                self._put.append((number, key, text))
                self.size += len(text)
            elif not change.wipe:
                self._gone.append((number, key))
        self._replies += [(reply, mail) for mail, reply in change.replies.items()]

    def _insert(self, db: sqlite3.Connection, run: StoredRun) -> int | None:
        """Insert a run; returns its number, or `None` if there is one of its id."""
        facts = {name: getattr(run, name) for name in sql.COLUMNS}
        if run.status not in ACTIVE:
            facts["owner"] = None
        inserted = db.execute(sql.INSERT_RUN, sql.stored(facts))
        if not inserted.rowcount:
            return None
        number = inserted.lastrowid
        assert number is not None
        if facts["owner"] == self._host:
            self.started[run.id] = number
        return number

    def write(self, db: sqlite3.Connection) -> None:
        """Execute the statements, in the order of the trees that they change: their pages get fuller so."""
        self._put.sort()
        for values in self._columns.values():
            values.sort(key=itemgetter(-1))
        statements: list[tuple[str, list[Any]]] = [
            (sql.WIPE, self._wiped),
            (sql.DELETE_ROW, self._gone),
            (sql.PUT_ROW, self._put),
            (sql.ADD_EVENT, self._events),
            (sql.REPLY, self._replies),
        ]
        for names, values in self._columns.items():
            statements.append((sql.update(names), values))
        for statement, values in statements:
            if values:
                db.executemany(statement, values)


# --- Forking ------------------------------------------------------------------------------------

# A fork waits until no thread is within SQLite: else the child had half of a transaction to undo, and locks within
# SQLite that nobody there would ever release.

_opening = threading.Lock()
"""Held while a store is opened, and while the process forks."""

_connected: weakref.WeakSet[_Connections] = weakref.WeakSet()
"""All that was opened, and may be open still. It grows in a thread that holds `_opening`."""

_held: list[threading.Lock] = []


def _hold() -> None:
    _opening.acquire()
    for opened in list(_connected):
        for lock in (opened.writing, opened.reading):
            lock.acquire()
            _held.append(lock)


def _let_go() -> None:
    while _held:
        _held.pop().release()
    _opening.release()


def _leave_to_the_parent() -> None:
    """Have the child never close its copies of the connections, not even when the interpreter ends.

    The locks stay with the parent. Once that has ended, SQLite would take the child for the last process that uses
    the database, and delete what is written ahead: by then, what others have committed.
    """
    for opened in _connected:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened))
    _let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_leave_to_the_parent)
