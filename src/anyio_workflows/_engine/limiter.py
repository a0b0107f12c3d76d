"""How many runs of a workflow instance are in progress at once (R7)."""

from __future__ import annotations

from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import attrs


class RunLimiter:
    """The places for concurrent runs of one workflow instance, in each event loop (R7)."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._lines: WeakKeyDictionary[Any, _Line] = WeakKeyDictionary()

    def ask(self, loop: object) -> RunSlot:
        """Ask for a slot in an event loop; first come, first served."""
        line = self._lines.get(loop)
        if line is None:
            line = self._lines[loop] = _Line(self._number)
        slot = RunSlot(line)
        line.waiting.append(slot)
        line.move_up()
        return slot


@attrs.define(eq=False)
class RunSlot:
    """A slot that a run has, or waits for.

    Attributes:
        taken: Whether it has it.
    """

    _line: _Line
    taken: bool = attrs.field(default=False, init=False)
    _turn: anyio.Event | None = attrs.field(default=None, init=False)

    def take(self) -> None:
        """Note that the turn has come."""
        self.taken = True
        if self._turn is not None:
            self._turn.set()

    async def wait(self) -> None:
        """Wait until the turn has come."""
        if not self.taken:
            self._turn = anyio.Event()
            await self._turn.wait()

    def leave(self) -> None:
        """Give the slot back, or give up waiting for it."""
        if self.taken:
            self._line.free += 1
            self._line.move_up()
        else:
            self._line.waiting.remove(self)


@attrs.define(eq=False)
class _Line:
    free: int
    waiting: deque[RunSlot] = attrs.field(factory=deque)

    def move_up(self) -> None:
        while self.free and self.waiting:
            self.free -= 1
            self.waiting.popleft().take()
