"""Events and workflows that many tests use, so that none of them declares its own.

A test about a particular shape declares that shape itself. Of these nothing is special: the events
have a number or a text to be told apart by, and each workflow is the plainest of its kind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

# --- Events -----------------------------------------------------------------------------------


class Numbers(StartEvent):
    """Starts a fan-out: one branch per number."""

    items: list[int] = []


class Item(Event):
    """An element of a batch, or any piece of work."""

    n: int = 0


class Part(Event):
    """An element of an inner batch, or the second step of a line."""

    n: int = 0


class Done(Event):
    """What a step makes of an item, and a join collects."""

    n: int = 0


class Joined(Event):
    """What a join makes of a batch."""

    n: int = 0


class Other(Event):
    """An event of another type, for another step."""

    n: int = 0


class Next(Event):
    """Leads to the next step, or to the next round of a loop."""

    n: int = 0


class Note(Event):
    """What steps write to the stream."""

    text: Any = None


class Question(InputRequiredEvent):
    """Written to the stream when a step begins to wait."""

    text: str = ""
    n: int = 0


class Answer(HumanResponseEvent):
    """Comes from outside and ends a wait."""

    text: str = ""
    n: int = 0


class Mail(HumanResponseEvent):
    """Comes from outside and starts a step."""

    n: int = 0


class Total(StopEvent):
    """Ends a run and is its result, as every stop event with fields is."""

    total: int


class A(Event):
    """An open event, for graphs of which only the shape counts."""


class B(Event):
    """Another open event."""


class C(Event):
    """A third open event."""


# --- Workflows --------------------------------------------------------------------------------


class ProviderError(Exception):
    """What steps raise: a failure of something outside of the program."""


Act = Callable[[Context], Awaitable[Any]]
"""What a step does: it is given its context, and awaited."""


class OneStep(Workflow[Any]):
    """A straight line: one step, which awaits the function that a test gives it."""

    def __init__(self, act: Act, **options: Any) -> None:
        super().__init__(**{"timeout": None, **options})
        self.act = act

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.act(ctx))


class Ends(Workflow[Any]):
    """One step that ends its run, or does not, as `run(how=)` says."""

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        if ev.how == "return":
            return StopEvent(result=7)
        if ev.how == "subclass":
            return Total(total=3)
        if ev.how == "send":
            ctx.send_event(StopEvent(result=7))
        if ev.how == "send subclass":
            ctx.send_event(Total(total=3))
        if ev.how == "raise":
            raise ProviderError("down")
        await anyio.sleep_forever()
        raise AssertionError


class Job(Workflow[str]):
    """Works for ten seconds, then returns or raises; takes two seconds to clean up."""

    begun = cleaned = False

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.begun = True
        try:
            await anyio.sleep(10)
            if ev.get("how") == "raise":
                raise ProviderError("down")
            return StopEvent(result="done")
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
                ctx.write_event_to_stream(Note(text="closed"))
                self.cleaned = True
            raise


class Loop(Workflow[str]):
    """A loop: a step that returns to itself, three times or as often as `run(rounds=)` says."""

    @step
    async def start(self, ev: StartEvent) -> Next:
        return Next(n=ev.get("rounds", 3))

    @step
    async def turn(self, ctx: Context, ev: Next) -> Next | StopEvent:
        if ev.n == 0:
            return StopEvent(result="over")
        ctx.write_event_to_stream(Note(text=ev.n))
        return Next(n=ev.n - 1)


class FanOut(Workflow[list[int]]):
    """A fan-out with a join: a branch takes `n` seconds, and dies if its number is negative."""

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        return [Item(n=n) for n in ev.items]

    @step(num_workers=100)
    async def work(self, ev: Item) -> Done | None:
        await anyio.sleep(abs(ev.n))
        return Done(n=ev.n) if ev.n >= 0 else None

    @step
    async def join(self, ctx: Context, events: list[Done]) -> StopEvent:
        numbers = [event.n for event in events]
        ctx.write_event_to_stream(Note(text=("joined", numbers)))
        return StopEvent(result=numbers)


class Asks(Workflow[str]):
    """A question and its answer, in the middle of the only step."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, Question(text="well?"))
        return StopEvent(result=answer.text)


class AsksByReturning(Workflow[str]):
    """A question that one step returns, and whose answer another step takes."""

    @step
    async def ask(self, ev: StartEvent) -> Question:
        return Question(text="well?")

    @step
    async def take(self, ev: Answer) -> StopEvent:
        return StopEvent(result=ev.text)


class Flaky(Workflow[int]):
    """A step that fails `failures` times, one second apart, and then returns how often it failed."""

    def __init__(self, failures: int = 2, **options: Any) -> None:
        super().__init__(**options)
        self.failures = failures

    @step(retry_policy=retry_policy(wait=wait_fixed(1), stop=stop_after_attempt(10)))
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        failed = ctx.retry_info().retry_number
        if failed < self.failures:
            raise ProviderError(f"attempt {failed + 1}")
        return StopEvent(result=failed)
