"""Where runs wait together."""

from __future__ import annotations

import anyio


class Gate:
    """Holds all who come until it is opened, and tells when everybody has come.

    It is part of the measurement, the same for every side. An event loop that is asked whether all
    of its tasks wait, as `anyio.wait_all_tasks_blocked` does, answers within 0.1 s on asyncio.
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
        """Let everybody pass."""
        self._opened.set()
