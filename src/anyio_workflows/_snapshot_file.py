"""The file of a checkpoint: replaced as a whole, by one run at a time (C1, C2)."""

# Theory of operation
#
# A snapshot is written to a temporary file in the same folder, which replaces the file once it is on
# the disk: there is a complete snapshot under the name at any moment.
#
#     job.json                        the snapshot
#     .job.json.checkpoint-lock       locked by the run that saves here; removed when it ends
#     .job.json.checkpoint-PID-N      a snapshot that is being written by the process PID
#
# The lock is that of the operating system on an open file: it ends with the process, however that
# ends, and excludes two runs of one process as well. It is on a separate file, because a lock on
# `job.json` would stay with the file that is replaced.
#
# Everything here blocks, and is called in worker threads.

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from .errors import CheckpointInUseError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

logger = logging.getLogger(__name__)

_numbers = itertools.count(1)
_being_written: set[str] = set()
"""The temporary files of this process."""

_locks: set[int] = set()
"""The descriptors of the lock files that are held."""


class SnapshotFile:
    """The file that one run saves its snapshots in.

    Args:
        path: Its path; a symbolic link is followed, and stays.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.realpath(path))
        self._lock_path = self.path.with_name(f".{self.path.name}.checkpoint-lock")
        self._lock: int | None = None
        self._turn = threading.Lock()
        self._closed = False
        self._written = 0

    def open(self) -> None:
        """Lock the file, and remove the temporary files that dead processes left beside it.

        Raises:
            CheckpointInUseError: If another run saves there.
            OSError: If the folder is not writable.
        """
        with self._turn:
            if self._closed:
                return
            self._lock = _take_lock(self._lock_path, self.path)
            _remove_left_over(self.path)

    def write(self, number: int, text: str) -> None:
        """Replace the snapshot, unless a later one has been written.

        Args:
            number: Number of the snapshot, from 1; a write that was abandoned may arrive late.
            text: The snapshot.
        """
        with self._turn:
            if number > self._written and not self._closed:
                replace(self.path, text)
                self._written = number

    def close(self) -> None:
        """Release the file, after a write in progress."""
        with self._turn:
            self._closed = True
            if self._lock is not None:
                _release_lock(self._lock, self._lock_path)
                self._lock = None


# --- Writing ------------------------------------------------------------------------------------


def replace(path: Path, text: str) -> None:
    """Write a file beside `path`, and let it replace `path` once it is on the disk.

    Raises:
        OSError: If that fails; the file is then unchanged.
    """
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".{path.name}.checkpoint-{os.getpid()}-{next(_numbers)}")
    _being_written.add(beside.name)
    try:
        with beside.open("x", encoding="utf-8") as file:
            with suppress(FileNotFoundError):
                beside.chmod(path.stat().st_mode & 0o7777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _rename(beside, path)
    finally:
        beside.unlink(missing_ok=True)
        _being_written.discard(beside.name)
    if os.name == "posix":  # the new name has to be on the disk as well
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _rename(beside: Path, path: Path) -> None:
    for seconds in (0.01, 0.1, 0.5) if os.name == "nt" else ():
        try:
            beside.replace(path)
        except PermissionError:  # the file is being read at this moment
            time.sleep(seconds)
        else:
            return
    beside.replace(path)


def _remove_left_over(path: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    ours = re.compile(re.escape(f".{path.name}.checkpoint-") + r"([1-9]\d{0,18})-[1-9]\d{0,18}")
    with os.scandir(path.parent) as entries:
        for entry in entries:
            found = ours.fullmatch(entry.name)
            if found and entry.name not in _being_written and _is_dead(int(found[1])):
                with suppress(OSError):  # it is gone, or open in another process
                    os.unlink(entry.path)


def _is_dead(pid: int) -> bool:
    """Return whether the temporary files of a process can be removed."""
    if os.name != "posix":
        return True  # an open file cannot be removed there
    if pid == os.getpid():
        return True  # it is from an earlier process with this id, as in a container
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


# --- The lock -----------------------------------------------------------------------------------


def _take_lock(lock_path: Path, path: Path) -> int:
    while True:
        try:
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            problem = f"no checkpoint can be saved beside {path}: {error.strerror}"
            raise type(error)(error.errno, problem, str(lock_path)) from error
        try:
            if not _lock(lock):
                raise CheckpointInUseError(str(path), _holder(lock))
            if not _is_at(lock, lock_path):
                os.close(lock)  # its holder has removed it in the meantime
                continue
            os.truncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
        except BaseException:
            with suppress(OSError):
                os.close(lock)
            raise
        _locks.add(lock)
        return lock


def _lock(lock: int) -> bool:
    """Lock an open file; return `False` if it is locked already."""
    try:
        if sys.platform == "win32":
            os.lseek(lock, 1000, os.SEEK_SET)  # on Windows locked bytes cannot be read
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
            os.lseek(lock, 0, os.SEEK_SET)
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLOCK):
            return False
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK):
            raise
        logger.warning("checkpoints are not locked against other processes: %s", error)
    return True


def _holder(lock: int) -> int | None:
    """Return the id of the process that holds the lock, if it is in the file."""
    try:
        return int(os.pread(lock, 20, 0)) if hasattr(os, "pread") else int(os.read(lock, 20))
    except (OSError, ValueError):
        return None


def _is_at(lock: int, lock_path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(lock_path))
    except FileNotFoundError:
        return False


def _release_lock(lock: int, lock_path: Path) -> None:
    _locks.discard(lock)
    if os.name == "posix":
        lock_path.unlink(missing_ok=True)  # while it is still locked, so that no other run uses it
        os.close(lock)
    else:
        os.close(lock)
        with suppress(OSError):  # another run has opened it
            lock_path.unlink()


def _let_go() -> None:
    """Close the locks in a forked child, because they have to end with this process."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
