"""What is measured, with which sizes, and the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from .sides import REFERENCE, Side


@attrs.frozen
class Work:
    """One job.

    Attributes:
        name: What the command line calls it.
        title: What the tables call it.
        job: How it is done.
        sizes: How many of what.
        quick: Other sizes with `--quick`.
        fewer: Other sizes of the reference.
        options: How our servers are configured for it, and
        reference_options: how the reference's is.
        most_rounds: The number of rounds that suffices.
    """

    name: str
    title: str
    job: str
    sizes: Mapping[str, Any]
    quick: Mapping[str, Any]
    fewer: Mapping[str, Any] = attrs.field(factory=dict)
    options: Mapping[str, Any] = attrs.field(factory=dict)
    reference_options: Mapping[str, Any] = attrs.field(factory=dict)
    most_rounds: int = 1000

    def sizes_of(self, side: Side, *, quick: bool) -> dict[str, Any]:
        """Return how many of what there are on a side."""
        other = self.fewer if side is REFERENCE else {}
        return {**self.sizes, **other, **(self.quick if quick else {})}

    def options_of(self, side: Side) -> dict[str, Any]:
        """Return how the server of a side is configured."""
        return dict(self.reference_options if side is REFERENCE else self.options)


def _stream(readers: int, events: int, delay: float = 0.0, most_rounds: int = 1000) -> Work:
    title = f"delivered event, {readers:,} reader{'s' if readers > 1 else ''}"
    name = f"stream-{readers}"
    if delay:
        name, title = f"tokens-{readers}", f"{title}, every {delay * 1e3:.0f} ms"
    sizes = {"readers": readers, "events": events, "delay": delay}
    return Work(name, title, "stream", sizes, {"events": 20}, most_rounds=most_rounds)


WORKS = [
    Work(
        "request",
        "request that does nothing, 20 at once",
        "request",
        {"requests": 2000, "clients": 20},
        {"requests": 40},
    ),
    Work(
        "result-1",
        "run to result, one after the other",
        "result",
        {"runs": 400, "clients": 1},
        {"runs": 20},
    ),
    Work(
        "result-20",
        "run to result, 20 at once",
        "result",
        {"runs": 1000, "clients": 20},
        {"runs": 40},
    ),
    _stream(1, 3000),
    _stream(10, 1000),
    _stream(100, 300),
    _stream(1000, 100, most_rounds=3),
    _stream(1, 500, 0.005),
    _stream(10, 300, 0.005),
    Work("first", "first event", "first", {"runs": 100}, {"runs": 5}),
    Work(
        "idle",
        "run that waits",
        "idle",
        {"runs": 3000, "settle": 0.5},
        {"runs": 20, "settle": 0},
        {"runs": 1000},
        most_rounds=1,
    ),
    Work(
        "released",
        "run that waits, released from memory",
        "idle",
        {"runs": 3000, "settle": 5.0},
        {"runs": 20, "settle": 0.5},
        {"runs": 300},
        {"database": "sqlite:///{folder}/runs.db", "idle_after": 0.2},
        {"database": "{folder}/runs.db", "idle_after": 0.2},
        most_rounds=1,
    ),
    Work(
        "list",
        "page of 50 from a list of 1,000 runs",
        "list",
        {"runs": 1000, "limit": 50, "times": 50},
        {"runs": 60, "times": 2},
        {"times": 10},
    ),
    Work(
        "list-all",
        "all of a list of 1,000 runs",
        "list",
        {"runs": 1000, "limit": 1000, "times": 20},
        {"runs": 60, "times": 2},
        {"times": 10},
    ),
]


@attrs.frozen
class Target:
    """What our servers have to reach.

    Attributes:
        work: The name of the work.
        key: The figure that counts.
        text: What the table calls it.
        share: At most which part of the reference's figure, or
        most: at most how much.
        unit: What the figure is multiplied with for the table, and
        unit_name: what follows it there.
    """

    work: str
    key: str
    text: str
    share: float | None = None
    most: float | None = None
    unit: float = 1.0
    unit_name: str = ""


TARGETS = [
    Target("result-1", "cpu", "run to result, one after the other: 1/5", 1 / 5),
    Target("result-20", "cpu", "run to result, 20 at once: 1/5", 1 / 5),
    Target("stream-1", "cpu", "delivered event, 1 reader: 1/8", 1 / 8),
    Target("stream-10", "cpu", "delivered event, 10 readers: 1/20", 1 / 20),
    Target("stream-100", "cpu", "delivered event, 100 readers: 1/20", 1 / 20),
    Target("first", "seconds", "time to the first event: 1/5", 1 / 5),
    Target("first", "requests", "requests to the first event: 1", most=1),
    Target(
        "idle", "memory", "run that waits: 16 KB", most=16 * 1024, unit=1 / 1024, unit_name=" KB"
    ),
    Target(
        "released",
        "memory",
        "the same, released: nothing",
        most=1024,
        unit=1 / 1024,
        unit_name=" KB",
    ),
    Target("list", "seconds", "page of the list: 10 ms", most=0.01, unit=1e3, unit_name=" ms"),
]
"""The targets; that 1,000 readers get every event is checked, and a server that loses one fails."""
