"""A gate at which all runs wait together."""

from __future__ import annotations

import anyio


class Gate:
    """Holds everybody that arrives until it is opened, and signals when all have arrived.

    It is part of the measurement, the same for every side. `anyio.wait_all_tasks_blocked()` would not
    do: on asyncio it polls, and takes up to 0.1 s.
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.crowded = anyio.Event()
        self._arrived = 0
        self._opened = anyio.Event()

    async def wait(self) -> None:
        """Arrive, and wait until the gate is opened."""
        self._arrived += 1
        if self._arrived == self.expected:
            self.crowded.set()
        await self._opened.wait()

    def open(self) -> None:
        """Let all waiters pass."""
        self._opened.set()
