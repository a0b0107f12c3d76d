"""A workflow whose events hold values that only the hooks of its converter can write and read (P7)."""

from __future__ import annotations

import cattrs

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)


class Lock:
    """Has no form in JSON."""

    def __init__(self, name: str) -> None:
        self.name = name


class Locks(StartEvent):
    lock: Lock


class Locked(Event):
    lock: Lock


class OtherLock(HumanResponseEvent):
    lock: Lock


class WithLocks(Workflow[str]):
    """Writes values by the hooks of a converter."""

    @step
    async def use(self, ctx: Context, ev: Locks) -> StopEvent:
        ctx.write_event_to_stream(Locked(lock=ev.lock))
        answer = await ctx.wait_for_event(OtherLock, timeout=None)
        return StopEvent(result=answer.lock.name)


_converter = cattrs.Converter()
_converter.register_unstructure_hook(Lock, lambda lock: lock.name)
_converter.register_structure_hook(Lock, lambda data, cls: Lock(data))

with_locks = WithLocks(timeout=None, converter=_converter)
