"""Workflows of all shapes that come to the same end, however often their process is killed meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import attrs

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Opener, Take
from anyio_workflows.resource import Resource
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .samples import (
    Answer,
    Asks,
    AsksByReturning,
    Done,
    FanOut,
    Flaky,
    Item,
    Joined,
    Loop,
    Next,
    Note,
    Numbers,
    Other,
    Part,
    ProviderError,
    Question,
    Total,
)

RETRIED = retry_policy(wait=wait_fixed(2), stop=stop_after_attempt(3))


def reply(event: Event) -> Event | None:
    """Answer each question, with its text and number."""
    return Answer(text=event.text, n=event.n) if isinstance(event, Question) else None


# --- Fan-out ----------------------------------------------------------------------------------


class Nested(Workflow):
    """Batches in batches: some are empty, some branches die, and each join is told what opened its batch."""

    @step
    async def outer(self, ev: Numbers) -> list[Item]:
        return [Item(n=n) for n in ev.items]

    @step(num_workers=2)
    async def inner(self, ctx: Context, ev: Item) -> list[Part] | Done:
        ctx.write_event_to_stream(Note(text=("inner", ev.n)))
        if ev.n == 1:
            return Done(n=1)
        await anyio.sleep(1)
        return [Part(n=n) for n in range(ev.n)]

    @step(num_workers=3)
    async def work(self, ev: Part) -> Part | Other | None:
        if ev.n >= 10:
            return None
        if ev.n % 2:
            return Part(n=ev.n + 9)
        await anyio.sleep(ev.n)
        return Other(n=ev.n)

    @step
    async def gather(self, evs: list[Other], by: Annotated[Item, Opener()]) -> Done:
        return Done(n=100 * by.n + sum(ev.n for ev in evs))

    @step
    async def end(
        self, ctx: Context, evs: list[Done], by: Annotated[Numbers, Opener()]
    ) -> StopEvent:
        return StopEvent(result=(by.items, sorted(ev.n for ev in evs)))


class Race(Workflow):
    """A join that takes the first two, and another one for the rest; how many there are does not depend on time."""

    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(5)]

    @step(num_workers=2)
    async def go(self, ctx: Context, ev: Item) -> Done | Other:
        await anyio.sleep(ev.n)
        return Other(n=ev.n) if ev.n == 0 else Done(n=ev.n)

    @step(skip_graph_checks=["dead_end"])
    async def first(self, evs: Annotated[list[Done], Collect(Take(2))]) -> Joined:
        return Joined(n=len(evs))

    @step
    async def rest(self, evs: list[Other]) -> Total:
        return Total(total=len(evs))

    @step(skip_graph_checks=["dead_end"])
    async def note(self, ctx: Context, ev: Joined) -> None:
        await ctx.store.set("joined", ev.n)


class Knockout(Workflow):
    """A join that cancels the rest of its batch: in a delay, in a wait, in a batch of its own, in progress."""

    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(6)]

    @step(num_workers=6, retry_policy=RETRIED)
    async def go(self, ctx: Context, ev: Item) -> Done | list[Part]:
        match ev.n:
            case 1:
                raise ProviderError("down")
            case 2:
                await ctx.wait_for_event(Other)
            case 3:
                return [Part(n=n) for n in range(3)]
            case 4:
                await anyio.sleep(100)
        await anyio.sleep(1)
        return Done(n=0)

    @step(num_workers=2)
    async def inside(self, ev: Part) -> Other:
        await anyio.sleep(50)
        return Other(n=ev.n)

    @step
    async def gather(self, evs: list[Other]) -> Done:
        raise AssertionError("was cancelled")

    @step
    async def end(self, evs: Annotated[list[Done], Collect(Take(2, cancel=True))]) -> Next:
        return Next(n=len(evs))

    @step
    async def last(self, ev: Next) -> StopEvent:
        await anyio.sleep(5)
        return StopEvent(result=ev.n)


class Pairs(Workflow):
    """Steps with several events, inside and outside of batches."""

    def __init__(self) -> None:
        super().__init__(skip_graph_checks=["reachability"])

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> list[Item]:
        ctx.send_event(Note(text="outside"))
        return [Item(n=n) for n in range(3)]

    @step(num_workers=4)
    async def left(self, ev: Item) -> Part:
        await anyio.sleep(ev.n)
        return Part(n=ev.n)

    @step(num_workers=4)
    async def right(self, ev: Item) -> Other:
        await anyio.sleep(3 - ev.n)
        return Other(n=ev.n)

    @step(num_workers=4)
    async def both(self, a: Part, b: Other) -> Done:
        return Done(n=a.n * 10 + b.n)

    @step
    async def join(self, evs: list[Done]) -> Joined:
        return Joined(n=sum(ev.n for ev in evs))

    @step
    async def end(self, a: Joined, b: Note) -> StopEvent:
        return StopEvent(result=(a.n, b.text))


class Collects(Workflow):
    """Buffers of `collect_events()`, one of them with a name, filled by `send_event()`."""

    def __init__(self) -> None:
        super().__init__(skip_graph_checks=["reachability"])

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> None:
        for n in range(4):
            ctx.send_event(Item(n=n))

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Part | Other:
        await anyio.sleep(1)
        return Part(n=ev.n) if ev.n < 2 else Other(n=ev.n)

    @step(num_workers=4)
    async def pair(self, ctx: Context, ev: Part | Other) -> Done | None:
        found = ctx.collect_events(ev, [Part, Other], buffer_id="pairs")
        return None if found is None else Done(n=1)

    @step
    async def end(self, ctx: Context, ev: Done) -> StopEvent | None:
        found = ctx.collect_events(ev, [Done, Done])
        return None if found is None else StopEvent(result=[one.n for one in found])


# --- Failures ----------------------------------------------------------------------------------


class Retries(Workflow):
    """A fan-out whose branches fail a few times, with delays, and one after it has waited."""

    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(3)]

    @step(num_workers=2, retry_policy=RETRIED)
    async def work(self, ctx: Context, ev: Item) -> Done:
        ctx.write_event_to_stream(Note(text=("work", ev.n)))
        if ev.n == 2:
            await ctx.wait_for_event(Answer, Question(text="again?", n=2), requirements={"n": 2})
        if ctx.retry_info().retry_number < ev.n:
            raise ProviderError(f"{ev.n} is down")
        await anyio.sleep(1)
        return Done(n=ev.n)

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


class Recovers(Workflow):
    """Error handlers: one gives up a branch, one returns to the failing step until it gives up as well."""

    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(4)]

    @step(num_workers=2, retry_policy=retry_policy(wait=wait_fixed(1), stop=stop_after_attempt(2)))
    async def work(self, ev: Item) -> Done:
        if ev.n % 2:
            raise ProviderError(f"{ev.n} is odd")
        return Done(n=ev.n)

    @catch_error(for_steps=["work"], max_recoveries=2)
    async def mend(self, ctx: Context, ev: StepFailedEvent) -> Item | Done | None:
        item = ev.input_event
        ctx.write_event_to_stream(Note(text=("mend", item.n, ev.attempts)))
        return Item(n=5) if item.n == 1 else Done(n=-item.n)

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


class Fails(Workflow):
    """Fails for good, while others are in progress, wait and are delayed."""

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> list[Item]:
        await ctx.store.set("items", [0, 1, 2, 3])
        return [Item(n=n) for n in range(4)]

    @step(num_workers=4, retry_policy=RETRIED)
    async def work(self, ctx: Context, ev: Item) -> Done:
        if ev.n == 0:
            await ctx.wait_for_event(Other)
        if ev.n == 1:
            await anyio.sleep(30)
        if ev.n == 2:
            return Done(n=2)
        raise ProviderError(f"{ev.n} is down")

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent()


class TimesOut(Workflow):
    """Does not come to its end in time."""

    def __init__(self) -> None:
        super().__init__(timeout=10)

    @step
    async def work(self, ctx: Context, ev: StartEvent | Next) -> Next | StopEvent:
        await anyio.sleep(3)
        return Next()


class Stalls(Workflow):
    """Nothing can happen any more: the second event never comes."""

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Item:
        ctx.write_event_to_stream(Note(text="starts"))
        return Item(n=1)

    @step
    async def half(self, ctx: Context, ev: Item) -> StopEvent | None:
        ctx.collect_events(ev, [Item, Item])
        return None


# --- Waits -------------------------------------------------------------------------------------


class Waits(Workflow):
    """One step that asks twice, then three at a time; the last nobody answers in time."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Next:
        await ctx.store.set("begun", True)
        return Next()

    @step
    async def ask(self, ctx: Context, ev: Next) -> StopEvent:
        one = await ctx.wait_for_event(
            Answer, Question(text="first", n=1), requirements={"n": 1}, timeout=1000
        )
        await ctx.store.set("first", one.text)
        found: dict[int, str] = {}

        async def wait(n: int) -> None:
            found[n] = (
                await ctx.wait_for_event(
                    Answer, Question(text=f"q{n}", n=n), requirements={"n": n}, waiter_id=f"w{n}"
                )
            ).text

        async with anyio.create_task_group() as group:
            for n in (2, 3, 4):
                group.start_soon(wait, n)
        try:
            await ctx.wait_for_event(Other, timeout=20)
        except TimeoutError:
            late = True
        assert late
        return StopEvent(result=(one.text, sorted(found.items()), await ctx.store.get("first")))


class Interview(Workflow):
    """Questions that one step returns and another takes the answers of, with state in between."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent | Next) -> Question | StopEvent:
        said = await ctx.store.get("said", [])
        if len(said) == 3:
            return StopEvent(result=said)
        return Question(text=f"question {len(said)}", n=len(said))

    @step
    async def take(self, ctx: Context, ev: Answer) -> Next:
        said = await ctx.store.get("said", [])
        await ctx.store.set("said", [*said, ev.text])
        return Next()


class TimedWait(Workflow):
    """A wait that times out, in a loop, and a deadline that is not reached."""

    @step
    async def work(self, ctx: Context, ev: StartEvent | Next) -> Next | StopEvent:
        n = ev.n if isinstance(ev, Next) else 0
        try:
            await ctx.wait_for_event(Other, timeout=10, waiter_id=f"w{n}")
        except TimeoutError:
            ctx.write_event_to_stream(Note(text=n))
        return StopEvent(result=n) if n == 2 else Next(n=n + 1)


# --- State, sending, children, resources ------------------------------------------------------


@attrs.define
class Books:
    """A state with a class."""

    pages: dict[str, int] = attrs.field(factory=dict)
    owner: str = ""


class Keeps(Workflow):
    """A state with a class: set, edited, and changed inside."""

    @step
    async def split(self, ctx: Context[Books], ev: StartEvent) -> list[Item]:
        async with ctx.store.edit_state() as state:
            state.owner = "ada"
        return [Item(n=n) for n in range(4)]

    @step(num_workers=2)
    async def work(self, ctx: Context[Books], ev: Item) -> Done:
        async with ctx.store.edit_state() as state:
            state.pages[f"p{ev.n}"] = ev.n
            await anyio.sleep(1)
        return Done(n=ev.n)

    @step
    async def join(self, ctx: Context[Books], evs: list[Done]) -> Next:
        (await ctx.store.get("pages"))["inside"] = len(evs)
        return Next()

    @step
    async def end(self, ctx: Context[Books], ev: Next) -> StopEvent:
        state = await ctx.store.get_state()
        return StopEvent(result=(state.owner, sorted(state.pages.items())))


class Nests(Workflow):
    """A dict as the state: keys come and go, lists grow inside."""

    @step
    async def work(self, ctx: Context, ev: StartEvent | Next) -> Next | StopEvent:
        n = ev.n if isinstance(ev, Next) else 0
        if n == 0:
            await ctx.store.set("deep", {"list": [], "n": 0})
        deep = await ctx.store.get("deep")
        del deep["list"][n:]
        deep["list"].append(n)
        async with ctx.store.edit_state() as state:
            state.pop(f"k{n - 1}", None)
            state[f"k{n}"] = n
        if n == 4:
            state = await ctx.store.get_state()
            return StopEvent(result=dict(state))
        return Next(n=n + 1)


class Sends(Workflow):
    """Steps that send events to others, to one step by its name, and to a wait."""

    def __init__(self) -> None:
        super().__init__(skip_graph_checks=["reachability"])

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> None:
        ctx.send_event(Item(n=1))
        ctx.send_event(Part(n=2), step="two")
        ctx.send_event(Next(n=0))

    @step
    async def one(self, ctx: Context, ev: Item | Part) -> None:
        await anyio.sleep(2)
        ctx.send_event(Other(n=ev.n))

    @step
    async def two(self, ctx: Context, ev: Part) -> None:
        await anyio.sleep(4)
        ctx.send_event(Answer(text="two", n=ev.n))

    @step
    async def wait(self, ctx: Context, ev: Next) -> StopEvent:
        async with anyio.create_task_group() as group:
            group.start_soon(self.wait_for, ctx, Other)
            group.start_soon(self.wait_for, ctx, Answer)
        return StopEvent(result=sorted((await ctx.store.get_state()).items()))

    async def wait_for(self, ctx: Context, event_type: type[Event]) -> None:
        event: Any = await ctx.wait_for_event(event_type)
        await ctx.store.set(event_type.__name__, event.n)


class Child(Workflow):
    """Asks a question."""

    @step
    async def ask(self, ctx: Context, ev: Numbers) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, Question(text="child?", n=9))
        return StopEvent(result=[answer.text, *ev.items])


class Parent(Workflow):
    """A step that runs another workflow, which starts over with it."""

    @step
    async def first(self, ev: StartEvent) -> Next:
        return Next()

    @step
    async def work(self, ctx: Context, ev: Next) -> Done:
        found = await Loop().run(rounds=2)
        await ctx.store.set("found", found)
        return Done(n=len(found))

    @step
    async def end(self, ctx: Context, ev: Done) -> StopEvent:
        return StopEvent(result=(ev.n, await ctx.store.get("found")))


@asynccontextmanager
async def connection() -> AsyncIterator[list[int]]:
    yield [1, 2, 3]
    await anyio.sleep(1)


class Connects(Workflow):
    """Steps with resources that are shared, and with one of their own."""

    @step
    async def split(
        self, ev: StartEvent, it: Annotated[list[int], Resource(connection)]
    ) -> list[Item]:
        return [Item(n=n) for n in it]

    @step(num_workers=2)
    async def work(
        self, ev: Item, it: Annotated[list[int], Resource(connection, cache=False)]
    ) -> Done:
        return Done(n=ev.n * len(it))

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


class Threads(Workflow):
    """Plain functions as steps. Without a limit: on a slow machine the clock may jump while a thread is at work."""

    def __init__(self) -> None:
        super().__init__(timeout=None)

    @step
    def split(self, ctx: Context, ev: StartEvent) -> list[Item]:
        ctx.write_event_to_stream(Note(text="in a thread"))
        return [Item(n=n) for n in range(2)]

    @step
    def work(self, ev: Item) -> Done:
        return Done(n=ev.n)

    @step
    def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


SHAPES: dict[str, tuple[Callable[..., Workflow[Any]], StartEvent | None]] = {
    "loop": (Loop, None),
    "fan-out": (FanOut, Numbers(items=[3, 1, -2, 2])),
    "empty fan-out": (FanOut, Numbers(items=[])),
    "asks": (Asks, None),
    "asks by returning": (AsksByReturning, None),
    "flaky": (Flaky, None),
    "nested": (Nested, Numbers(items=[0, 1, 3, 4])),
    "race": (Race, None),
    "knockout": (Knockout, None),
    "pairs": (Pairs, None),
    "collects": (Collects, None),
    "retries": (Retries, None),
    "recovers": (Recovers, None),
    "fails": (Fails, None),
    "times out": (TimesOut, None),
    "stalls": (Stalls, None),
    "waits": (Waits, None),
    "interview": (Interview, None),
    "timed wait": (TimedWait, None),
    "keeps": (Keeps, None),
    "nests": (Nests, None),
    "sends": (Sends, None),
    "parent": (Parent, None),
    "connects": (Connects, None),
    "threads": (Threads, None),
}
