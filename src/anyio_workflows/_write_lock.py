"""The lock of a store: who writes the state comes in turn (P1).

# Why not `anyio.Lock`
#
# - It can be taken away from a holder that is gone: a step that was given up, a task whose event loop
#   has ended in the middle of an edit.
# - A wait for it ends when the attempt that waits is over, though its thread is not (T7). For the same
#   reason nothing here asks AnyIO whether the task is cancelled: in a thread's call that has outlived
#   its cancel scope, asyncio would look for the answer for ever.
# - To take it when it is free costs 1 us less, and is no checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio

from ._backend import running_task
from .errors import ContextStateError, WorkflowError

__all__ = ["WriteLock", "Writer"]


class Writer:
    """A task that writes, or waits to.

    Attributes:
        check: Raises if it may no longer use the store.
        granted: Set when its wait is over: it has the lock, or is not to get it any more.
    """

    __slots__ = ("check", "granted", "loop", "task")

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check
        self.granted: anyio.Event | None = None
        self.loop, self.task = running_task()

    def is_dead(self) -> bool:
        """Return whether it may no longer use the store."""
        try:
            self.check()
        except WorkflowError:
            return True
        return False


class WriteLock:
    """Lets one task at a time write: first come, first served.

    Attributes:
        holder: Who has the lock; nobody waits as long as that is `None`.
    """

    __slots__ = ("_waiting", "holder")

    def __init__(self) -> None:
        self.holder: Writer | None = None
        self._waiting: deque[Writer] = deque()

    async def acquire(self, writer: Writer, what: str) -> None:
        """Wait for the lock, and hold it.

        Args:
            writer: The current task.
            what: What it wants to do, for the message.

        Raises:
            ContextStateError: If the current task holds it already, in an edit.
            WorkflowRuntimeError: If the step that waits has ended, or its run.
        """
        if self.holder is not None and self.holder.loop is not writer.loop:
            self.holder = None  # its loop ended in the middle, and with it those who waited
            self._waiting.clear()
        if self.holder is None:
            self.holder = writer
            return
        if self.holder.task is writer.task:
            raise ContextStateError(
                f"{what} inside an edit of the same task would wait for itself; use the state "
                "that `async with store.edit_state() as state:` gives"
            )
        writer.granted = anyio.Event()
        self._waiting.append(writer)
        try:
            await writer.granted.wait()
            writer.check()
        except BaseException:
            if writer in self._waiting:
                self._waiting.remove(writer)
            self.release(writer)
            raise

    def release(self, writer: Writer) -> None:
        """Let the next one write, unless the lock was taken away."""
        if self.holder is not writer:
            return
        self.holder = self._waiting.popleft() if self._waiting else None
        if self.holder is not None and self.holder.granted is not None:
            self.holder.granted.set()

    def drop_dead(self) -> None:
        """Take the lock away from a holder that may no longer use the store, and end such waits."""
        for writer in [writer for writer in self._waiting if writer.is_dead()]:
            self._waiting.remove(writer)
            if writer.granted is not None:
                writer.granted.set()
        if self.holder is not None and self.holder.is_dead():
            self.release(self.holder)

    def statistics(self) -> tuple[bool, int]:
        """Return whether somebody holds it, and how many wait."""
        return self.holder is not None, len(self._waiting)
