"""Taking turns to write, in an event loop, and when that has ended in another (P1)."""

from __future__ import annotations

from collections import deque

import anyio
import anyio.lowlevel
import attrs

from .errors import ContextStateError

__all__ = ["Turn", "Turns"]


@attrs.define(eq=False)
class Turn:
    """A turn to write, or the wait for it."""

    _granted: anyio.Event | None = None

    def grant(self) -> None:
        """Note that it has come."""
        if self._granted is not None:
            self._granted.set()

    async def wait(self) -> None:
        """Wait until it comes."""
        self._granted = anyio.Event()
        await self._granted.wait()


class Turns:
    """Whose turn it is to write: first come, first served.

    A lock, but one that can be taken away from a task that is given up, and from one whose event loop
    is gone.

    Attributes:
        editor: The task whose turn it is, if that is an edit.
    """

    def __init__(self) -> None:
        self.editor: int | None = None
        self._holder: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self._loop: anyio.lowlevel.EventLoopToken | None = None

    async def take(self, what: str) -> Turn:
        """Wait for the turn of the current task.

        Raises:
            ContextStateError: If it is in an edit already.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        loop = anyio.lowlevel.current_token()
        if self._loop != loop:  # nobody writes, or somebody was in the middle when a loop ended
            self._holder = self.editor = None
            self._waiting.clear()
            self._loop = loop
        elif self.editor == anyio.get_current_task().id:
            raise ContextStateError(
                f"{what} inside an edit of the same task would wait for itself; use the state "
                "that `async with store.edit_state() as state:` gives"
            )
        turn = Turn()
        if self._holder is None:
            self._holder = turn
            return turn
        self._waiting.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            self.give(turn)
            raise
        return turn

    def holds(self, turn: Turn) -> bool:
        """Return whether it is still that turn."""
        return self._holder is turn

    def give(self, turn: Turn) -> None:
        """Let the next one write, unless the turn was taken away."""
        if self._holder is not turn:
            return
        self.editor = None
        self._holder = self._waiting.popleft() if self._waiting else None
        if self._holder is not None:
            self._holder.grant()
        else:
            self._loop = None  # so that no loop is kept alive

    def statistics(self) -> tuple[bool, int]:
        """Return whether somebody has a turn, and how many wait for theirs."""
        return self._holder is not None, len(self._waiting)
