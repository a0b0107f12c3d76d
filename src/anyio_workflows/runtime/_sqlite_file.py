"""The file of an SQLite database: where it may be, whose it is, its format, and which hosts are alive."""

# Theory of operation
#
#     runs.db              the database, with runs.db-wal and runs.db-shm while it is open
#     runs.db.host-ID      for each host: an empty file, in which the host holds an open transaction
#
# Alive is who holds that lock. The operating system releases it when the process dies, however it dies, and
# not before: a process that is stopped, or whose clock is wrong, is alive. Nobody has to send a sign of life.
#
# A host creates and locks its file, and adds its row to `hosts`, within one transaction of the database, so
# who sees the row finds the lock held, unless the host is dead. A file without a row is left over from
# a host that was killed at that moment; the next host that registers removes it.
#
# SQLite locks with `fcntl()` on POSIX. Such locks are those of a process: a child that is forked does not
# hold them, and they end with the parent even if the child lives on.
#
# Everything here blocks, and is called in worker threads.

from __future__ import annotations

import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StoreError

OLDEST_SQLITE = (3, 38, 0)
"""Strict tables came with 3.37, `json_each()` in every build with 3.38. Debian 12 has 3.40."""

APPLICATION_ID = 0x616E7977
"""Marks the file as ours: "anyw"."""

NETWORK = re.compile(
    r"(nfs\d?|cifs|smb\d?|smbfs|ncpfs|afs|coda|ceph|lustre|gpfs|beegfs|orangefs|pvfs2|glusterfs|davfs"
    r"|ocfs2|gfs2|fuse\.(sshfs|s3fs|rclone|goofys|gcsfuse|blobfuse2?|davfs2?|ceph|glusterfs|juicefs|mount\.davfs))"
)
"""File systems that several machines can share: neither locks nor shared memory can be trusted there.

Not `9p` and `virtiofs`: a sandbox or virtual machine may have nothing else, and within it they work.
"""

# --- Errors -------------------------------------------------------------------------------------

_REMEDIES = {
    sqlite3.SQLITE_FULL: "the disk is full: make room. What was committed before is kept",
    sqlite3.SQLITE_IOERR: "the file system failed to read or write: check the disk. What was committed before is kept",
    sqlite3.SQLITE_BUSY: "another process has kept it locked for {patience:g} s: end that process, or let it continue",
    sqlite3.SQLITE_PROTOCOL: "other processes have kept it locked for too long: end them, or let them continue",
    sqlite3.SQLITE_CORRUPT: "the database is damaged: restore a copy, or what `sqlite3 FILE .recover` can read of it",
    sqlite3.SQLITE_NOTADB: "this file is no SQLite database: give another path, or move it away",
    sqlite3.SQLITE_READONLY: "it cannot be written: check the permissions of the file and of its directory",
    sqlite3.SQLITE_PERM: "it cannot be written: check the permissions of the file and of its directory",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: check the permissions of its directory, in which SQLite creates files, and the number of open files",
    sqlite3.SQLITE_TOOBIG: "a text is too long for SQLite, which takes 1 GB",
    sqlite3.SQLITE_NOMEM: "there was not enough memory",
}
"""What to say about the primary result codes of SQLite."""


@contextmanager
def explained(store: str, patience: float) -> Iterator[None]:
    """Raise what SQLite and the operating system raise in the block as a `StoreError`."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:  # raised by the module itself
            raise StoreError(store, f"SQLite cannot do that: {error}") from error
        text = _REMEDIES.get(code & 0xFF, "SQLite failed").format(patience=patience)
        raise StoreError(store, f"{text} ({error.sqlite_errorname}: {error})") from error
    except OSError as error:
        raise StoreError(store, f"{error.strerror}: {error.filename}") from error
    except (ValueError, OverflowError) as error:
        raise StoreError(store, f"a value cannot be kept or read: {error}") from error


# --- Where it is --------------------------------------------------------------------------------


def check_place(store: str, path: str) -> None:
    """Raise a `StoreError` if there can be no database at `path`, an absolute one without links."""
    folder = os.path.dirname(path)
    if sqlite3.sqlite_version_info < OLDEST_SQLITE or not sqlite3.threadsafety:
        needed = ".".join(map(str, OLDEST_SQLITE[:2]))
        found = f"this Python has {sqlite3.sqlite_version}"
        raise StoreError(store, f"SQLite {needed} or later, built for threads, is needed; {found}")
    try:
        os.stat(os.path.join(folder, ""))
    except (FileNotFoundError, NotADirectoryError):
        problem = f"there is no directory {folder}: create it, or give another path"
        raise StoreError(store, problem) from None
    if os.path.exists(path) and not os.path.isfile(path):
        raise StoreError(store, "this is no regular file: give the path of a file in a directory")
    kind = file_system(folder)
    if kind is not None and NETWORK.fullmatch(kind):
        problem = f"{folder} is on a network file system ({kind}), where locks cannot be trusted"
        raise StoreError(store, f"{problem}: use a disk of this machine, or PostgreSQL")
    if not _may(folder, os.W_OK | os.X_OK):
        problem = f"the directory {folder} is not writable, and SQLite creates files there"
        raise StoreError(store, f"{problem}: change its permissions, or give another path")
    if os.path.exists(path) and not _may(path, os.R_OK | os.W_OK):
        raise StoreError(
            store, "the file is read-only: change its permissions, or give another path"
        )


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def file_system(folder: str, mounts: str = "/proc/self/mountinfo") -> str | None:
    """Return the type of the file system that a directory is on; `None` if that is not known."""
    try:
        lines = Path(mounts).read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # no Linux
        return None
    best, found = "", None
    for line in lines:
        before, _, after = line.partition(" - ")
        if len(fields := before.split(" ")) < 5 or not after:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        is_above = folder == point or folder.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= len(
            best
        ):  # of two on the same directory, the later one counts
            best, found = point, after.split(" ")[0]
    return found


# --- What it is ---------------------------------------------------------------------------------

Migration = Callable[[sqlite3.Connection], None]


def connect(path: str, patience: float) -> sqlite3.Connection:
    """Return a connection that begins transactions only when it is told to."""
    db = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    db.text_factory = _text
    return db


def _text(data: bytes) -> str:
    """Return a text; for one that is damaged, a text that is no JSON, so that it parks its run alone."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return repr(data)


def prepare(
    db: sqlite3.Connection, store: str, path: str, patience: float, migrations: list[Migration]
) -> None:
    """Check whose file it is before anything is changed, then bring it to the newest format."""
    # Another process may be making it: what is read is of one moment only within a transaction.
    with transaction(db, "DEFERRED"):
        _version(db, store, len(migrations))
    _use_wal(db, store, patience)
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA wal_autocheckpoint=0")  # see `checkpoint()`
    with transaction(db):
        version = _version(db, store, len(migrations))  # others may have done it in the meantime
        if version < len(migrations):
            if version:
                _refuse_hosts(db, store, path)
            for migrate in migrations[version:]:
                migrate(db)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {len(migrations)}")


@contextmanager
def transaction(db: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """Commit what the block writes, unless it raises."""
    db.execute(f"BEGIN {kind}")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite may have undone it already, after an error
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


def checkpoint(writer: sqlite3.Connection, other: sqlite3.Connection) -> None:
    """Copy what was written ahead into the database, while nobody can write.

    A checkpoint that SQLite makes by itself, after a commit, may lose pages in the versions 3.7.0 to 3.51.2 (3.44.6 and
    3.50.7 are mended), if another process commits at that moment and begins the log anew: the *WAL-reset bug*.
    So `writer` keeps everybody from that, and `other` makes the checkpoint, as a connection cannot do it
    within its own transaction. Readers are neither waited for nor kept waiting.
    """
    # If it fails, what was committed stays in the log, and the next one copies it.
    with suppress(sqlite3.Error), transaction(writer):
        other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _version(db: sqlite3.Connection, store: str, newest: int) -> int:
    """Return the format of the database, 0 for one that is empty."""
    application: int = db.execute("PRAGMA application_id").fetchone()[0]
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        problem = "this is the database of another program: give another path, or move it away"
        raise StoreError(store, problem)
    if version > newest:
        problem = f"a newer version of anyio-workflows has written it (format {version}; this one knows {newest})"
        raise StoreError(store, f"{problem}: upgrade anyio-workflows")
    return version


def _use_wal(db: sqlite3.Connection, store: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            # SQLite does not wait here for others that do the same.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            break
    if mode != "wal":
        problem = "its file system has no shared memory, which SQLite needs to write ahead"
        raise StoreError(store, f"{problem}: use a disk of this machine")


def _refuse_hosts(db: sqlite3.Connection, store: str, path: str) -> None:
    for (host,) in db.execute("SELECT id FROM hosts").fetchall():
        if not is_dead(path, host):
            problem = (
                f"an older version of anyio-workflows uses it (process {host.partition('-')[0]})"
            )
            raise StoreError(store, f"{problem}: end that process first")


# --- The hosts ----------------------------------------------------------------------------------


class HostLock:
    """The lock that shows others that a host is alive.

    Args:
        path: The path of the database.

    Attributes:
        host: The id of the host, new for each.
        path: The path of its file.
    """

    def __init__(self, path: str) -> None:
        self.host = f"{os.getpid()}-{secrets.token_hex(6)}"
        self.path = _lock_path(path, self.host)
        self._db = connect(self.path, 0)
        try:
            _lock(self._db)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Stop being alive, and remove the file."""
        self._db.close()
        remove_lock(self.path)


def _lock(db: sqlite3.Connection) -> None:
    db.execute(
        "PRAGMA journal_mode=OFF"
    )  # nothing is written: there shall be no journal beside the file
    db.execute("BEGIN EXCLUSIVE")


def _lock_path(path: str, host: str) -> str:
    return f"{path}.host-{host}"


def remove_lock(path: str) -> None:
    """Remove the file of a host that is dead."""
    with suppress(OSError):  # another process does it, too; or Windows, where somebody looks at it
        os.unlink(path)


def remove_dead(path: str, host: str) -> None:
    """Remove the file of a host that is dead and has no row any more."""
    remove_lock(_lock_path(path, host))


def is_dead(path: str, host: str) -> bool:
    """Return whether a host that has a row in the database is dead: whether its lock can be taken."""
    try:
        db = connect(_lock_path(path, host), 0)  # a file that is gone is made anew: nobody holds it
    except sqlite3.Error:  # as without permission: nobody knows
        return False
    try:
        _lock(db)
    except sqlite3.Error:
        return False
    else:
        return True
    finally:
        db.close()


def remove_left_over(path: str, hosts: set[str]) -> None:
    """Remove the lock files that belong to none of the hosts; call it within a transaction."""
    folder, name = os.path.split(path)
    ours = re.compile(re.escape(f"{name}.host-") + r"(\d+-[0-9a-f]{12})")
    for entry in os.listdir(folder):
        found = ours.fullmatch(entry)
        if found and found[1] not in hosts:
            remove_dead(path, found[1])
