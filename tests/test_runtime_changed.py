"""Changed code: runs continue if all fits, and are parked, whole, if something is gone (P8)."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import anyio
import attrs
import pytest

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows.errors import (
    ContextSerdeError,
    WorkflowConfigurationError,
    WorkflowError,
    WorkflowRuntimeError,
)
from anyio_workflows.runtime import Runtime
from anyio_workflows.runtime._memory import MemoryData, MemoryStore

from .running import on_each_backend, run_virtually


class Reply(HumanResponseEvent):
    text: str


class Item(Event):
    n: int


class Done(Event):
    n: int


class Pair(HumanResponseEvent):
    n: int = 0


@attrs.define
class Notes:
    seen: list[int] = attrs.Factory(list)


class Before(Workflow):
    """Has work, waits, a batch with arrivals, a set of events and a collect buffer under way."""

    @step
    async def fan(self, ctx: Context[Notes], ev: StartEvent) -> list[Item]:
        async with ctx.store.edit_state() as state:
            state.seen = [0]
        ctx.send_event(Pair())
        return [Item(n=n) for n in range(3)]

    @step(num_workers=1)
    async def ask(self, ctx: Context[Notes], ev: Item) -> Done:
        if ev.n:
            await ctx.wait_for_event(Reply, requirements={"text": "go"}, waiter_id=f"w{ev.n}")
        (await ctx.store.get("seen")).append(ev.n)
        return Done(n=ev.n)

    @step
    async def both(self, ctx: Context[Notes], a: Pair, b: Reply) -> None:
        """Never complete."""

    @step
    async def join(self, ctx: Context[Notes], found: list[Done]) -> StopEvent:
        seen = await ctx.store.get("seen")
        return StopEvent(result=(sorted(ev.n for ev in found), sorted(seen)))


class Answer(HumanResponseEvent):
    words: str


class Part(Event):
    n: int


class After(Workflow):
    """The same, after half of it has got another name."""

    @step
    async def fan(self, ctx: Context[Notes], ev: StartEvent) -> list[Part]:
        raise AssertionError

    @step(num_workers=1)
    async def question(self, ctx: Context[Notes], ev: Part) -> Done:
        if ev.n:
            await ctx.wait_for_event(Answer, requirements={"words": "go"}, waiter_id=f"w{ev.n}")
        (await ctx.store.get("seen")).append(ev.n)
        return Done(n=ev.n)

    @step
    async def pairs(self, ctx: Context[Notes], a: Pair, b: Answer) -> None:
        """Never complete."""

    @step
    async def gather(self, ctx: Context[Notes], found: list[Done]) -> StopEvent:
        seen = await ctx.store.get("seen")
        return StopEvent(result=(sorted(ev.n for ev in found), sorted(seen)))


HERE = __name__
RENAMED: dict[str, str | None] = {
    "ask": "question",
    "both": "pairs",
    "join": "gather",
    f"{HERE}:Item": f"{HERE}:Part",
    f"{HERE}:Reply": f"{HERE}:Answer",
}


def live(backend: str, data: MemoryData, body: Any, workflow: Workflow[Any], **options: Any) -> Any:
    async def main() -> Any:
        async with Runtime(MemoryStore(data), workflows={"w": workflow}, **options) as runtime:
            return await body(runtime)

    return run_virtually(backend, main)


async def begin(runtime: Runtime) -> None:
    run = await runtime.start("w", run_id="r")
    await anyio.sleep(1)
    assert [wait.waiter_id for wait in await run.open_waits()] == ["w1", "w2"]


def started(backend: str) -> MemoryData:
    data = MemoryData()
    live(backend, data, begin, Before(timeout=None))
    return data


@on_each_backend
def test_a_run_whose_step_is_gone_is_parked_with_all_it_has(backend: str) -> None:
    data = started(backend)
    rows = dict(data.rows["r"])

    async def look(runtime: Runtime) -> None:
        run = await runtime.get("r")
        with suppress(ContextSerdeError):  # if it is not parked yet
            assert await run.open_waits() == []
        await anyio.sleep(1)
        info = (await runtime.runs(status="incompatible")).runs[0]
        assert (info.id, info.error) == ("r", run.info.error)
        assert run.info.status == "incompatible"
        assert run.info.error is not None
        assert "no step 'join'" in run.info.error.message
        assert "renamed={'join': " in run.info.error.message
        assert (await run.open_waits(), run.info.open_waits, info.open_waits) == ([], 0, 0)
        with pytest.raises(WorkflowRuntimeError, match="the run is incompatible"):
            await run.send_event(Answer(words="go"))
        why = r"(?s)^run r of \w+ is incompatible: .*renamed=.* call runtime\.retry\('r'\)$"
        with pytest.raises(WorkflowRuntimeError, match=why):
            await run
        with pytest.raises(WorkflowRuntimeError, match=why):
            _ = [event async for event in run.stream_events()]

    live(backend, data, look, After(timeout=None), types=[Item, Reply])
    assert data.rows["r"] == rows


@pytest.mark.parametrize("seconds", [0, 1])
@on_each_backend
def test_what_a_parked_run_refused_is_not_done_later(backend: str, seconds: float) -> None:
    data = started(backend)

    async def refused(runtime: Runtime) -> None:
        run = await runtime.get("r")
        await anyio.sleep(seconds)  # before it is parked, or afterwards
        for act in (run.send_event(Answer(words="go")), run.cancel()):
            with pytest.raises(WorkflowRuntimeError, match="cannot be taken: the run is incompat"):
                await act

    async def again(runtime: Runtime) -> None:
        run = await runtime.retry("r")
        await anyio.sleep(1)
        assert (run.info.status, len(await run.open_waits())) == ("waiting", 2)

    live(backend, data, refused, After(timeout=None))
    live(backend, data, again, After(timeout=None), renamed=RENAMED)


@on_each_backend
def test_renamed_brings_it_back_under_its_new_names(backend: str) -> None:
    data = started(backend)

    async def nothing(runtime: Runtime) -> None:
        await anyio.sleep(1)

    async def again(runtime: Runtime) -> None:
        await runtime.retry("r")
        await anyio.sleep(1)
        rows = " ".join([*data.rows["r"], *data.rows["r"].values()])
        names = set(re.findall(r"\w+", rows))
        assert names >= {"question", "pairs", "gather", "Part", "Answer"}
        assert not names & {"ask", "both", "join", "Item", "Reply"}

    async def end(runtime: Runtime) -> Any:
        run = await runtime.get("r")
        await run.send_event(Answer(words="go"))
        return await run, [event async for event in run.stream_events()]

    live(backend, data, nothing, After(timeout=None))
    live(backend, data, again, After(timeout=None), renamed=RENAMED)
    result, events = live(backend, data, end, After(timeout=None))
    assert result == ([0, 1, 2], [0, 0, 1, 2])
    assert events == [StopEvent(result=result)]


@on_each_backend
def test_a_run_continues_in_a_graph_with_another_step(backend: str) -> None:
    data = started(backend)
    before = data.runs["r"].fingerprint

    class More(Before):
        @step
        async def extra(self, ev: Pair) -> None:
            pass

    async def end(runtime: Runtime) -> Any:
        run = await runtime.get("r")
        await run.send_event(Reply(text="go"))
        return await run

    assert live(backend, data, end, More(timeout=None))[0] == [0, 1, 2]
    assert data.runs["r"].fingerprint == More().graph.fingerprint() != before
    assert before == Before().graph.fingerprint()


@on_each_backend
def test_a_damaged_row_parks_its_run_alone_and_is_named(backend: str) -> None:
    data = started(backend)
    key = next(key for key in data.rows["r"] if key.startswith("v"))
    data.rows["r"][key] = data.rows["r"][key][:-9]

    async def look(runtime: Runtime) -> None:
        other = await runtime.start("w", run_id="other")
        run = await runtime.get("r")
        await anyio.sleep(1)
        assert (run.info.status, other.info.status) == ("incompatible", "waiting")
        assert run.info.error is not None
        assert key in run.info.error.message

    live(backend, data, look, Before(timeout=None))


def test_a_new_name_that_no_workflow_has_is_refused_at_once() -> None:
    with pytest.raises(WorkflowConfigurationError, match="there is no step 'nowhere'"):
        Runtime(MemoryStore(), workflows=[After()], renamed={"ask": "nowhere"})


def test_names_of_one_workflow_are_not_those_of_another() -> None:
    class Other(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    Runtime(MemoryStore(), workflows=[After(), Other()], renamed=RENAMED)
    with pytest.raises(WorkflowError, match="still in use"):
        Runtime(MemoryStore(), workflows=[Other()], renamed={"ask": "question"})
