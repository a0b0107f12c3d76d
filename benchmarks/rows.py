"""Which job is measured how, and the ratio it should have."""

from __future__ import annotations

from . import by_hand, ours
from .measuring import Job, Row, kilobytes_each, microseconds_each


def make_rows(*, quick: bool) -> list[Row]:
    """Return all rows that run in an event loop; with `quick` there are fewer items.

    The rows without a target are for information: another shape of the job, or hand-written code
    that is tuned further than most people would.
    """
    events = 10_000 if quick else 100_000
    runs = 200 if quick else 1000
    times = 1 if quick else 5  # a loop of 3000 steps takes but a few milliseconds

    def timed(
        name: str, our: Job, hand: Job, items: int, times: int = 1, target: float | None = None
    ) -> Row:
        sides = microseconds_each(our, items, times), microseconds_each(hand, items, times)
        return Row(name, "us", *sides, target)

    return [
        timed("loop", ours.loop, by_hand.loop, 3000, times, target=1.0),
        timed("ping-pong", ours.ping_pong, by_hand.ping_pong, 3000, times, target=1.0),
        timed("tuned loop", ours.loop, by_hand.tuned_loop, 3000, times),
        timed("stream", ours.stream, by_hand.stream, events, target=1.0),
        timed("tuned stream", ours.stream, by_hand.tuned_stream, events),
        timed("live stream", ours.live_stream, by_hand.live_stream, events // 5),
        timed("trivial run", ours.trivial, by_hand.trivial, runs, target=2.0),
        timed("tuned trivial run", ours.trivial, by_hand.tuned_trivial, runs),
        timed("fan-out", ours.fan_out, by_hand.fan_out, 1000, times, target=1.3),
        timed("live fan-out", ours.live_fan_out, by_hand.live_fan_out, 1000, times),
        timed("tuned fan-out", ours.fan_out, by_hand.tuned_fan_out, 1000, times),
        timed("nested fan-out", ours.nested_fan_out, by_hand.nested_fan_out, 1000, times),
        timed("answered waits", ours.answered, by_hand.answered, 1000),
        idle_row(1000 if quick else 10_000),
    ]


def idle_row(runs: int) -> Row:
    """Return the row about memory; it hardly varies, so a few rounds do."""
    return Row(
        "idle run memory",
        "KB",
        kilobytes_each(ours.IdleRuns, runs),
        kilobytes_each(by_hand.IdleRuns, runs),
        target=1.5,
        most_rounds=3,
    )
