"""Graphs for the tests of the ledger, and ways to have it route and start work."""

from __future__ import annotations

from collections.abc import Collection
from functools import reduce
from operator import or_
from typing import Annotated, Any

from hypothesis import strategies as st

from anyio_workflows import Event, HumanResponseEvent, Workflow, step
from anyio_workflows._ledger.ledger import Ledger
from anyio_workflows._ledger.work import StepQueue, Work
from anyio_workflows.collect import All, Collect, Opener, Take
from anyio_workflows.graph import Graph


class Fruit(Event):
    pass


class Apple(Fruit):
    pass


class Braeburn(Apple):
    pass


class Stone(Event):
    pass


# --- Two levels of batches --------------------------------------------------------------------


class Order(Event):
    n: int = 0


class Box(Order):
    """Of the outer level, as `Sealed` and `Bowl` are."""


class Sealed(Order):
    pass


class Bowl(Order):
    pass


class Berry(Order):
    """Of the inner level, as `Slice` and `Pit` are."""


class Slice(Order):
    pass


class Pit(Order):
    pass


class Reply(HumanResponseEvent):
    n: int = 0


TAKES: dict[str, list[tuple[type[Event], ...]]] = {
    "pack": [(Order,)],
    "open": [(Box,)],
    "peel": [(Berry,)],
    "weigh": [(Berry,)],
    "glue": [(Slice,), (Slice,), (Pit,)],
    "taste": [(Bowl,), (Sealed,)],
    "mix": [(Slice,)],
    "count": [(Slice, Pit)],
    "serve": [(Bowl, Sealed)],
}
"""The types that each parameter takes; the last three steps take lists of them."""

GIVES: dict[str, Any] = {
    "pack": list[Box] | None,
    "open": list[Berry | Slice] | Sealed | None,
    "peel": Slice | Pit | Berry | None,
    "weigh": Pit | None,
    "glue": Slice | None,
    "taste": None,
    "mix": Bowl | None,
    "count": Bowl | Box | None,
    "serve": Order | None,
}
JOINS = {"pack": ["serve"], "open": ["mix", "count"]}
OPENERS: dict[str, type[Event]] = {"mix": Box, "count": Box, "serve": Order}
TYPES = [Order, Box, Sealed, Bowl, Berry, Slice, Pit, Reply]
POLICIES = st.just(All()) | st.builds(Take, st.integers(1, 3), cancel=st.booleans())


def kitchen(
    limits: dict[str, int], policies: dict[str, All | Take], asking: Collection[str] = ()
) -> Graph:
    """Make a graph of two levels of batches, with sets at both; joins may ask for their opener."""
    members = {}
    for name, slots in TAKES.items():

        async def one(self: Any, a: Any) -> Any: ...
        async def two(self: Any, a: Any, b: Any) -> Any: ...
        async def three(self: Any, a: Any, b: Any, c: Any) -> Any: ...

        body = (one, two, three)[len(slots) - 1]
        takes: list[Any] = [reduce(or_, types) for types in slots]
        if name in policies:
            takes = [Annotated[list[takes[0]], Collect(policies[name])]]
        if name in asking:
            body = two
            takes.append(Annotated[OPENERS[name], Opener()])
        body.__annotations__ = {**dict(zip("abc", takes, strict=False)), "return": GIVES[name]}
        members[name] = step(num_workers=limits[name])(body)
    return type("Kitchen", (Workflow,), members)().graph


def one_at_a_time(policy: All | Take) -> Ledger:
    """Make a ledger in which one execution of `peel` has room, and which ends `mix` like this."""
    limits = {**dict.fromkeys(TAKES, 4), "peel": 1}
    return Ledger(kitchen(limits, {"mix": policy, "count": All(), "serve": All()}))


# --- Work -------------------------------------------------------------------------------------


def start_next(ledger: Ledger, *expected: Work) -> list[Work]:
    """Start work, which is to be next in this order."""
    for work in expected:
        assert ledger.queues.take_slot() is work.queue
        work.started = 0.0
    return list(expected)


def granted(ledger: Ledger) -> list[StepQueue]:
    """Return a queue for each granted slot, in the order in which they were granted."""
    queues = ledger.queues
    if queues.first_granted is None:
        assert not queues.more_granted
        return []
    return [queues.first_granted, *queues.more_granted]


def routed(ledger: Ledger, *args: Any) -> list[Work]:
    """Route an event that somebody takes."""
    work = ledger.route(*args)
    assert work is not None
    return work
