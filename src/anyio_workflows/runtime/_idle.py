"""Which runs have been idle for long, and when those that were released are due."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import attrs

from ._durable import DurableLive


@attrs.define(eq=False, repr=False)
class IdleRuns:
    """The runs of a process by the time for which nothing of them was committed. All times are the loop's.

    Attributes:
        idle_after: Seconds after which a run that only waits is released from memory; `None` for never.
        alarms: When the runs that were released here are to be brought back, by their ids.
    """

    idle_after: float | None
    alarms: dict[str, float] = attrs.field(factory=dict, init=False)

    _quiet: OrderedDict[DurableLive, float] = attrs.field(factory=OrderedDict, init=False)
    """The runs that this process executes, with the time of the last commit, longest ago first."""

    def note_commit(self, live: DurableLive, now: float) -> bool:
        """Note that something of a run was committed; returns whether it is the only one to look after."""
        if self.idle_after is None:
            return False
        is_first = not self._quiet
        self._quiet[live] = now
        self._quiet.move_to_end(live)
        return is_first

    def take_idle(self, now: float) -> Iterator[DurableLive]:
        """Yield the runs of which nothing was committed for so long, and that have not ended."""
        while self._quiet and self.idle_after is not None:
            live, since = next(iter(self._quiet.items()))
            if now < since + self.idle_after:
                return
            del self._quiet[live]
            if live.kept.live is live:
                yield live

    def due(self, now: float) -> list[str]:
        """Return the ids of the runs that are to be brought back now, whatever the wall clock was set to (D7)."""
        return [run_id for run_id, alarm in self.alarms.items() if alarm <= now]

    def times(self) -> list[float]:
        """Return when there will be something to release, or to bring back."""
        times = list(self.alarms.values())
        if self._quiet and self.idle_after is not None:
            times.append(next(iter(self._quiet.values())) + self.idle_after)
        return times
