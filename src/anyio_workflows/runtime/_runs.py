"""Runs as a runtime makes them: what they publish is in a log, which any number of readers may follow."""

from __future__ import annotations

import attrs

from .._engine.run import Run
from .._engine.stream import EventStream, LoggedStream


@attrs.define(eq=False, repr=False)
class LoggedRun(Run):
    """A run whose public events a log keeps; it belongs to its runtime, and to no run whose step started it."""

    def __attrs_post_init__(self) -> None:
        self.parent = None
        self.observed = True  # the runtime keeps the failure, for anybody who asks (O6)
        super().__attrs_post_init__()

    def _new_stream(self) -> EventStream:
        return LoggedStream(self.loop)
