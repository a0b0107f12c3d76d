"""How many runs of a workflow instance are in progress at once (R7)."""

from __future__ import annotations

from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import attrs


class RunLimiter:
    """The slots for concurrent runs of one workflow instance, in each event loop (R7)."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._queues: WeakKeyDictionary[Any, _Queue] = WeakKeyDictionary()

    def __reduce__(self) -> Any:
        """Have no run in progress as the limiter of a copy of the workflow."""
        return RunLimiter, (self._number,)

    def request(self, loop: object) -> RunSlot:
        """Request a slot in an event loop; first come, first served."""
        queue = self._queues.get(loop)
        if queue is None:
            queue = self._queues[loop] = _Queue(self._number)
        slot = RunSlot(queue)
        queue.waiting.append(slot)
        queue.grant()
        return slot


@attrs.define(eq=False)
class RunSlot:
    """A slot that a run has, or waits for.

    Attributes:
        granted: Whether the run has it.
    """

    _queue: _Queue
    granted: bool = attrs.field(default=False, init=False)
    _grant: anyio.Event | None = attrs.field(default=None, init=False)

    def grant(self) -> None:
        """Give the slot to the run that waits for it."""
        self.granted = True
        if self._grant is not None:
            self._grant.set()

    async def wait(self) -> None:
        """Wait until the slot is granted."""
        if not self.granted:
            self._grant = anyio.Event()
            await self._grant.wait()

    def release(self) -> None:
        """Give the slot back, or give up waiting for it."""
        if self.granted:
            self._queue.free += 1
            self._queue.grant()
        else:
            self._queue.waiting.remove(self)


@attrs.define(eq=False)
class _Queue:
    """The slots of one event loop: none is free while a run waits for one."""

    free: int
    waiting: deque[RunSlot] = attrs.field(factory=deque)

    def grant(self) -> None:
        while self.free and self.waiting:
            self.free -= 1
            self.waiting.popleft().grant()
