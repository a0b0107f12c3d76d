"""What goes wrong: a store that cannot be written (D10), values that cannot be kept, blocks that are left in odd ways (D8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import Context, Event, Runtime, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import (
    ContextSerdeError,
    HostLostError,
    StoreError,
    WorkflowCancelledByUser,
    WorkflowError,
)
from anyio_workflows.runtime import MemoryData, MemoryStore

from .samples import Answer, Asks, Mail, Next, Note, ProviderError, Question

pytestmark = pytest.mark.anyio


class Long(Workflow):
    """Goes through all kinds of writes: steps, a question, its answer, mail, a batch, an end."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Next:
        await ctx.store.set("begun", True)
        return Next(n=1)

    @step
    async def ask(self, ctx: Context, ev: Next) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, Question(text="well?"))
        return StopEvent(result=answer.text)

    @step
    async def note(self, ctx: Context, ev: Mail) -> None:
        ctx.write_event_to_stream(Note(text="mail"))


class Failing(MemoryStore):
    """A store of which the n-th write, and all that follow, fail."""

    def __init__(self, data: MemoryData, at: float, error: type[StoreError] = StoreError) -> None:
        super().__init__(data, poll=1)
        self.at, self.error, self.writes = at, error, 0

    async def _writing(self) -> None:
        self.writes += 1
        if self.writes >= self.at:
            await checkpoint()
            raise self.error("memory", "the disk is full")
        await super()._writing()


async def use(runtime: Runtime, told: list[Any]) -> None:
    """Do all kinds of things with two runs."""
    one = await runtime.start(Long, "one")
    told.append("started one")
    two = await runtime.start(Long, "two")
    told.append("started two")
    async for record in one.records():
        told.append(("shown", record.seq))
        if isinstance(record.event, Question):
            break
    await one.send_event(Mail())
    told.append("sent mail")
    await anyio.sleep(4)  # both fall asleep
    await one.send_event(Answer(text="yes"))
    told.append("answered one")
    assert await one == "yes"
    told.append("one ended")
    await two.cancel()
    told.append("two ended")
    await runtime.delete("two")
    told.append("two deleted")


def check_kept(told: list[Any], data: MemoryData) -> None:
    """What anybody was told is in the store."""
    runs = data.runs
    for what in told:
        if what == "started one":
            assert "one" in runs
        if what == "started two":
            assert "two" in runs or "one ended" in told
        if isinstance(what, tuple):
            assert runs["one"].last_seq >= what[1]
        if what == "sent mail":
            kept = [*data.rows["one"].values(), *(event.text for event in data.events["one"])]
            assert "mail" in str(kept).lower()
        if what == "one ended":
            assert runs["one"].status == "completed"


@pytest.mark.parametrize("error", [StoreError, HostLostError])
async def test_d10_a_write_that_fails_shows_nothing_and_is_raised_by_the_block(
    error: type[StoreError],
) -> None:
    at = 0
    while True:
        at += 1
        data, told, waiters = MemoryData(), [], []
        store = Failing(data, at, error)

        async def wait(run_id: str, runtime: Runtime, waiters: list[Any] = waiters) -> None:
            try:
                await anyio.sleep(1)
                waiters.append(await (await runtime.get(run_id)))
            except (WorkflowError, LookupError) as problem:
                waiters.append(problem)

        failed = None
        with anyio.fail_after(1000):
            async with anyio.create_task_group() as outside:
                try:
                    async with Runtime(
                        store, workflows=[Long(timeout=None)], idle_after=1
                    ) as runtime:
                        outside.start_soon(wait, "one", runtime)
                        outside.start_soon(wait, "two", runtime)
                        await use(runtime, told)
                except BaseException as problem:
                    if not isinstance(problem, StoreError):
                        raise
                    failed = problem
        check_kept(told, data)
        assert len(waiters) == 2
        if failed is None:
            assert told[-1] == "two deleted"
            break
        assert type(failed) is error
        assert failed.problem == "the disk is full"
        async with Runtime(MemoryStore(data), workflows=[Long(timeout=None)]) as runtime:
            with anyio.fail_after(1000):
                for run_id in data.runs:
                    run = await runtime.get(run_id)
                    await anyio.sleep(1)
                    if await run.open_waits():
                        await run.send_event(Answer(text="yes"))
                    try:
                        assert await run == "yes"
                    except WorkflowCancelledByUser:
                        assert run_id == "two"  # it may have been kept that it was cancelled
                    seen = [record.seq async for record in run.records()]
                    assert seen == list(range(1, len(seen) + 1))
    assert at > 15


# --- Values that cannot be kept -----------------------------------------------------------------


class Client:
    """What no database takes."""


class Anything(Event):
    """Takes what it is given."""

    value: Any = None


class AnyAnswer(Answer):
    """As that, from outside."""

    value: Any = None


class Holds(Workflow):
    """One step, which does what the test gives it."""

    def __init__(self, act: Callable[[Context], Any]) -> None:
        super().__init__(timeout=None)
        self.act = act

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> Anything | StopEvent:
        found = await self.act(ctx)
        return found if isinstance(found, Event) else StopEvent(result=found)

    @step
    async def take(self, ev: Anything) -> StopEvent:
        return StopEvent(result="taken")

    @step
    async def listen(self, ev: AnyAnswer) -> None:
        """Accepts answers."""


async def returns(ctx: Context) -> Any:
    return Client()


async def returns_an_event(ctx: Context) -> Any:
    return Anything(value=[Client()])


async def returns_itself(ctx: Context) -> Any:
    found: list[Any] = []
    found.append(found)
    return found


async def writes(ctx: Context) -> None:
    ctx.write_event_to_stream(Anything(value=Client()))


async def sends(ctx: Context) -> None:
    ctx.send_event(Anything(value=Client()))


async def requires(ctx: Context) -> None:
    await ctx.wait_for_event(AnyAnswer, requirements={"value": Client()})


async def asks(ctx: Context) -> None:
    await ctx.wait_for_event(AnyAnswer, Anything(value=Client()))


async def sets(ctx: Context) -> None:
    await ctx.store.set("client", Client())


async def sets_and_waits(ctx: Context) -> None:
    await ctx.store.set("client", Client())
    await ctx.wait_for_event(AnyAnswer)


async def puts_inside(ctx: Context) -> None:
    await ctx.store.set("kept", {})
    (await ctx.store.get("kept"))["client"] = Client()


async def sets_and_raises(ctx: Context) -> None:
    await ctx.store.set("client", Client())
    raise ProviderError("down")


@pytest.mark.parametrize(
    "act",
    [
        returns,
        returns_an_event,
        returns_itself,
        writes,
        sends,
        requires,
        asks,
        sets,
        sets_and_waits,
        puts_inside,
        sets_and_raises,
    ],
)
async def test_d1_a_value_that_cannot_be_kept_fails_the_step_and_nothing_else(act: Any) -> None:
    data = MemoryData()
    workflows = {"holds": Holds(act), "asks": Asks(timeout=None)}
    async with Runtime(MemoryStore(data), workflows=workflows) as runtime:
        other = await runtime.start("asks")
        run = await runtime.start("holds", "one")
        with anyio.fail_after(10), pytest.raises(ContextSerdeError):
            await run
        assert run.info.status == "failed"
        assert run.info.error is not None
        assert run.info.error.step == "work"
        await other.send_event(Answer(text="yes"))
        assert await other == "yes"
    async with Runtime(MemoryStore(data), workflows=workflows) as runtime:
        again = await runtime.get("one")
        assert again.info.error == run.info.error
        with pytest.raises(Exception, match=r"cannot be written|contains itself"):
            await again


async def test_d1_what_is_given_and_cannot_be_kept_is_refused_at_once() -> None:
    async def waits(ctx: Context) -> Any:
        return (await ctx.wait_for_event(AnyAnswer)).text

    data = MemoryData()
    async with Runtime(MemoryStore(data), workflows=[Holds(waits)]) as runtime:
        run = await runtime.start(Holds, "one")
        while not (found := await run.open_waits()):
            await checkpoint()
        answer = AnyAnswer(value=Client())
        with pytest.raises(ContextSerdeError, match="AnyAnswer"):
            await run.send_event(answer)
        with pytest.raises(ContextSerdeError, match="AnyAnswer"):
            await run.send_event(answer, wait=found[0].id)
        with pytest.raises(ContextSerdeError, match="StartEvent"):
            await runtime.start(Holds, "two", x=Client())
        with pytest.raises(ContextSerdeError, match="StartEvent"):
            await runtime.start(Holds, "two", start_event=StartEvent(x=Client()))
        with pytest.raises(WorkflowError, match="metadata"):
            await runtime.start(Holds, "two", metadata={"x": Client()})
        assert list(data.runs) == ["one"]
        assert runtime.statistics().in_progress == 1
        await run.send_event(AnyAnswer(text="yes"))
        assert await run == "yes"


async def test_d1_what_is_changed_after_it_was_taken_is_kept_as_it_was_or_fails_the_run() -> None:
    async def act(ctx: Context) -> None:
        for put in (ctx.send_event, ctx.write_event_to_stream):
            event = Anything(value=[])
            put(event)
            event.value.append(Client())
        await anyio.sleep(1)

    data = MemoryData()
    async with Runtime(MemoryStore(data), workflows=[Holds(act), Asks(timeout=None)]) as runtime:
        other = await runtime.start(Asks)
        run = await runtime.start(Holds, "one")
        with anyio.fail_after(10):
            try:
                assert await run == "taken"
            except ContextSerdeError:
                assert run.info.status == "failed"
            await other.send_event(Answer(text="yes"))
            assert await other == "yes"


async def test_d4_an_exception_that_cannot_be_written_is_described() -> None:
    class Wild(Exception):
        def __init__(self) -> None:
            self.client = Client()
            super().__init__(self.client)

        def __str__(self) -> str:
            raise RuntimeError("no text")

    async def act(ctx: Context) -> None:
        raise Wild

    data = MemoryData()
    async with Runtime(MemoryStore(data), workflows=[Holds(act)]) as runtime:
        run = await runtime.start(Holds, "one")
        with pytest.raises(Wild):
            await run
        described = run.info.error
        assert described is not None
        assert described.type == "Wild"
    async with Runtime(MemoryStore(data), workflows=[Holds(act)]) as runtime:
        assert (await runtime.get("one")).info.error == described
