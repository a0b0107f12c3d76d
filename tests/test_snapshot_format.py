"""The format of snapshots: what was written once stays readable (rule P4).

The files in `snapshots/` are what `Context.to_dict()` gave at the moments below, those of earlier
versions in `snapshots/version_1` and `version_2`. To add one, add its moment and call `write_missing()`; a file that is there is
never written again. The files know the classes here by their tags: none of them can move.
"""

from __future__ import annotations

import copy
import enum
import json
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import anyio
import attrs
import pytest

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Opener, Take
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .running import run_virtually

pytestmark = pytest.mark.anyio


FILES = Path(__file__).parent / "snapshots"

VERSION = 3
"""What is written today."""


class Item(Event):
    n: int = 0


class Other(Event):
    n: int = 0


class Part(Event):
    n: int = 0


class Scored(Event):
    n: int = 0


class Numbers(StartEvent):
    items: list[int]


class Question(InputRequiredEvent):
    text: str


class Answer(HumanResponseEvent):
    text: str = ""
    n: int = 0


class Mail(HumanResponseEvent):
    n: int = 0


class Parcel(HumanResponseEvent):
    n: int = 0


# --- The workflows ----------------------------------------------------------------------------------


class Row(Workflow[Any]):
    """Two steps in a row, which note in an untyped state that they were there."""

    async def note(self, ctx: Context, name: str) -> list[str]:
        async with ctx.store.edit_state() as state:
            state.seen = [*state.get("seen", []), name]
        await anyio.sleep(10)
        return await ctx.store.get("seen")

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Item:
        await self.note(ctx, f"first {ev.get('of', '')}")
        return Item(n=7)

    @step
    async def second(self, ctx: Context, ev: Item) -> StopEvent:
        return StopEvent(result=await self.note(ctx, f"second {ev.n}"))


class Stubborn(Workflow[Any]):
    """Fails twice."""

    @step(retry_policy=retry_policy(wait=wait_fixed(100), stop=stop_after_attempt(3)))
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await anyio.sleep(10)
        if ctx.retry_info().retry_number < 2:
            raise ValueError("not yet")
        return StopEvent(result=ctx.retry_info().elapsed_seconds)


class Asking(Workflow[Any]):
    """Asks twice."""

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        one = await ctx.wait_for_event(Answer, Question(text="who?"), requirements={"n": 1})
        two = await ctx.wait_for_event(Answer, Question(text="why?"), waiter_id="why")
        return StopEvent(result=[one.text, two.text])


class Forms(Workflow[Any]):
    """Asks twice in two ways, and twice at once."""

    @step
    async def begin(self, ev: StartEvent) -> Question:
        return Question(text="name?")

    @step
    async def begin_too(self, ev: StartEvent) -> Question:
        await anyio.sleep(2)
        return Question(text="age?")

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        async def ask(n: int) -> None:
            await anyio.sleep(n - 0.5)
            question = Question(text=f"{n}?")
            found[n] = await ctx.wait_for_event(Answer, question, requirements={"n": n})

        found: dict[int, Answer] = {}
        async with anyio.create_task_group() as group:
            for n in (1, 2):
                group.start_soon(ask, n)
        return StopEvent(result=[found[n].text for n in (1, 2)])


class Failing(Row):
    """Its second step fails once."""

    @step
    async def second(self, ctx: Context, ev: Item) -> StopEvent:
        seen = await self.note(ctx, f"second {ev.n}")
        if len(seen) < 3:
            raise ValueError(seen)
        return StopEvent(result=seen)


class Fan(Workflow[Any]):
    """Item n takes 10 * n seconds, and has n parts that take 10 seconds each."""

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        return [Item(n=n) for n in ev.items]

    @step
    async def open(self, ev: Item) -> list[Part]:
        await anyio.sleep(10 * ev.n)
        return [Part(n=ev.n)] * ev.n

    @step
    async def work(self, ev: Part) -> Other:
        await anyio.sleep(10)
        return Other(n=ev.n)

    @step
    async def inner(self, events: list[Other]) -> Scored:
        return Scored(n=sum(event.n for event in events))

    @step
    async def outer(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=sorted(event.n for event in events))


class Origins(Fan):
    """The joins ask for what opened their batches."""

    @step
    async def work(self, ev: Part) -> Other:
        await anyio.sleep(15)  # nothing else ends then, or trio would take turns in any order
        return Other(n=ev.n)

    @step
    async def inner(self, events: list[Other], origin: Annotated[Item, Opener()]) -> Scored:
        await anyio.sleep(10)
        return Scored(n=origin.n * len(events))

    @step
    async def outer(self, events: list[Scored], origin: Annotated[Numbers, Opener()]) -> StopEvent:
        return StopEvent(result=[origin.items, sorted(event.n for event in events)])


class Race(Workflow[Any]):
    """The first of its items wins; the others are slow to go."""

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        return [Item(n=n) for n in ev.items]

    @step(num_workers=2)
    async def work(self, ev: Item) -> Scored:
        try:
            await anyio.sleep(10 * ev.n)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
        return Scored(n=ev.n)

    @step
    async def join(
        self, events: Annotated[list[Scored], Collect(Take(1, cancel=True))]
    ) -> StopEvent:
        await anyio.sleep(10)
        return StopEvent(result=[event.n for event in events])


class Early(Race):
    """The first of its items is enough, and the others are waited for."""

    @step
    async def join(self, events: Annotated[list[Scored], Collect(Take(1))]) -> None: ...

    @step
    async def late(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=[event.n for event in events])


class Sets(Workflow[Any]):
    """Pairs what comes from outside."""

    @step
    async def begin(self, ev: StartEvent) -> None: ...

    @step
    async def pair(self, a: Mail, b: Parcel) -> StopEvent | None:
        return StopEvent(result=[a.n, b.n]) if b.n == 2 else None


class BranchSets(Workflow[Any]):
    """Pairs what comes from one branch."""

    @step
    async def split(self, ev: Numbers) -> list[Part]:
        return [Part(n=n) for n in ev.items]

    @step
    async def left(self, ev: Part) -> Item:
        return Item(n=ev.n)

    @step
    async def right(self, ev: Part) -> Other:
        await anyio.sleep(10)
        return Other(n=ev.n)

    @step
    async def pair(self, a: Item, b: Other) -> Scored:
        assert a.n == b.n, "events of different branches were paired"
        return Scored(n=a.n)

    @step
    async def join(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=sorted(event.n for event in events))


class Pairs(Workflow[Any]):
    """Collects two letters at a time, then works on them for ten seconds."""

    @step
    async def begin(self, ev: StartEvent) -> None: ...

    @step
    async def work(self, ctx: Context, ev: Mail) -> StopEvent | None:
        found = ctx.collect_events(ev, [Mail, Mail], buffer_id="odd" if ev.n % 2 else None)
        if found is None:
            return None
        await anyio.sleep(10)
        pair = [event.n for event in found if isinstance(event, Mail)]
        async with ctx.store.edit_state() as state:
            state.pairs = [*state.get("pairs", []), pair]
        return StopEvent(result=state.pairs) if len(state.pairs) == 2 else None


class Recovering(Workflow[Any]):
    """Its step always fails, and is recovered once."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        raise ValueError("no")

    @catch_error
    async def recover(self, ev: StepFailedEvent) -> StopEvent:
        await anyio.sleep(10)
        return StopEvent(result=[ev.step_name, repr(ev.exception), ev.attempts])


class Color(enum.Enum):
    RED = "red"


@attrs.define
class Basket:
    items: list[str] = attrs.Factory(list)
    color: Color = Color.RED


class Shop(Workflow[Any]):
    """Its state has a type."""

    @step
    async def fill(self, ctx: Context[Basket], ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state() as basket:
            basket.items.append("apple")
        await anyio.sleep(10)
        return StopEvent(result=attrs.astuple(await ctx.store.get_state()))


class Values(StartEvent):
    when: date
    price: Decimal
    name: UUID
    raw: bytes
    several: tuple[int, ...]
    anything: Any


VALUES = {
    "when": date(2024, 5, 1),
    "price": Decimal("1.50"),
    "name": UUID(int=7),
    "raw": b"\x00\xff",
    "several": (1, 2),
    "anything": [{"a": None}, {1: "one"}, {2, 3}, (4,), datetime(2024, 5, 1, tzinfo=UTC), Item],
}


class Carrying(Workflow[Any]):
    @step
    async def work(self, ev: Values) -> StopEvent | Item:
        await anyio.sleep(10)
        return StopEvent(result=dict(ev))

    @step
    async def unused(self, ev: Item) -> None: ...


# --- The moments ------------------------------------------------------------------------------------


@attrs.frozen
class Moment:
    """When a snapshot was taken, and what comes of it."""

    workflow: type[Workflow[Any]]
    seconds: float
    result: Any
    start: dict[str, Any] = attrs.Factory(dict)
    sent: Sequence[Event] = ()
    """Before the snapshot, from the first second on."""
    to_send: Sequence[Event] = ()
    """After it."""
    reads: int = 0
    """How many events are read before the snapshot."""
    ends_by: type[Exception] | None = None
    """How the run ends before the snapshot, if it does."""

    def make(self, **config: Any) -> Workflow[Any]:
        return self.workflow(timeout=1000, **config)

    def load(self, data: Any, **config: Any) -> WorkflowHandler[Any]:
        workflow = self.make(**config)
        context = Context.from_dict(workflow, data, [Answer])
        if data.get("failed"):
            context.retry_failed()
        return workflow.run(ctx=context, **({} if context.has_work_left else self.start))

    async def reach(self) -> WorkflowHandler[Any]:
        handler = self.make().run(**self.start)
        await send_all(handler, self.sent)
        await anyio.sleep(self.seconds)
        events = handler.stream_events()
        for _ in range(self.reads):
            await anext(events)
        return handler


async def send_all(handler: WorkflowHandler[Any], events: Sequence[Event]) -> None:
    for event in events:
        await anyio.sleep(1)
        await handler.send_event(event)


MOMENTS = {
    "start": Moment(Row, 0, ["first a", "second 7"], {"of": "a"}),
    "running": Moment(Row, 15, ["first a", "second 7", "second 7"], {"of": "a"}),
    "retry_delay": Moment(Stubborn, 50, 220.0),
    "waits": Moment(
        Asking, 5, ["me", "so"], sent=[Answer(text="me", n=1)], to_send=[Answer(text="so")]
    ),
    "batches": Moment(Fan, 15, [1, 4], {"items": [1, 2]}),
    "openers": Moment(Origins, 30, [[1, 2], [1, 4]], {"items": [1, 2]}),
    "cancelled_batch": Moment(Race, 11.5, [1], {"items": [3, 1, 2]}),
    "fired": Moment(Early, 15, [1, 2], {"items": [2, 1]}),
    "sets": Moment(
        Sets, 5, [2, 2], sent=[Mail(n=1), Mail(n=2), Parcel(n=1), Mail(n=3)], to_send=[Parcel(n=2)]
    ),
    "sets_of_branches": Moment(BranchSets, 5, [1, 2, 3], {"items": [1, 2, 3]}),
    "collected": Moment(
        Pairs, 5, [[1, 3], [2, 4]], sent=[Mail(n=n) for n in (1, 2, 3)], to_send=[Mail(n=4)]
    ),
    "recovered": Moment(Recovering, 5, ["work", "ValueError('no')", 1]),
    "typed_state": Moment(Shop, 5, (["apple", "apple"], Color.RED)),
    "values": Moment(Carrying, 5, VALUES, VALUES),
    "questions": Moment(
        Forms, 5, ["me", "so"], reads=2, to_send=[Answer(text="so", n=2), Answer(text="me", n=1)]
    ),
    "failed": Moment(
        Failing, 25, ["first a", "second 7", "second 7"], {"of": "a"}, ends_by=ValueError
    ),
    "finished": Moment(Row, 25, ["first a", "second 7", "first a", "second 7"], {"of": "a"}),
}


class FixedClock(datetime):
    """A wall clock that stands still."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime(2024, 5, 1, 12, tzinfo=tz)


def stop_the_clock(patch: pytest.MonkeyPatch) -> None:
    """Have the modules of the library that read the clock, which they do in UTC, read this one."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("anyio_workflows") and hasattr(module, "UTC"):
            patch.setattr(module, "datetime", FixedClock)


@pytest.fixture(autouse=True)
def _fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_the_clock(monkeypatch)


def golden(name: str) -> Any:
    return read_file(FILES / f"{name}.json")


def read_file(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


OLD_FILES = sorted(FILES.glob("version_*/*.json"))

each_old_file = pytest.mark.parametrize(
    "file", OLD_FILES, ids=lambda file: f"{file.parent.name}-{file.stem}"
)


async def take(moment: Moment) -> Any:
    handler = await moment.reach()
    if moment.ends_by is not None:
        with pytest.raises(moment.ends_by):
            await handler
    data = handler.ctx.to_dict([Answer])
    await handler.cancel_run()
    return json.loads(json.dumps(data, allow_nan=False))


def write_missing() -> None:
    """Write the files of new moments."""
    for name, moment in MOMENTS.items():
        if (FILES / f"{name}.json").exists():
            continue
        with pytest.MonkeyPatch.context() as patch:
            stop_the_clock(patch)
            data = run_virtually("asyncio", lambda moment=moment: take(moment))
        with (FILES / f"{name}.json").open("x", encoding="utf-8") as file:
            json.dump(data, file, indent=2)
            file.write("\n")


def test_p4_every_file_has_its_moment() -> None:
    assert sorted(file.stem for file in FILES.glob("*.json")) == sorted(MOMENTS)
    assert all(golden(name)["version"] == VERSION for name in MOMENTS)
    for file in OLD_FILES:
        assert file.parent.name == f"version_{read_file(file)['version']}"


@pytest.mark.parametrize("name", MOMENTS)
async def test_p4_a_file_is_read_and_goes_on(name: str) -> None:
    moment = MOMENTS[name]
    handler = moment.load(golden(name))
    await send_all(handler, moment.to_send)
    assert await handler == moment.result


@each_old_file
async def test_p4_a_file_of_an_earlier_version_is_read_and_goes_on(file: Path) -> None:
    moment, data = MOMENTS[file.stem], read_file(file)
    handler = moment.load(data)
    await send_all(handler, moment.to_send)
    assert await handler == moment.result
    events = [event async for event in handler.stream_events()]
    asked = [event for event in events if isinstance(event, InputRequiredEvent)]
    assert data["version"] > 1 or not asked


@pytest.mark.parametrize("name", MOMENTS)
async def test_p4_version_3_is_written_as_it_was(name: str) -> None:
    assert await take(MOMENTS[name]) == golden(name)


def without_new_fields(data: Any, version: int) -> Any:
    """Return what an earlier version has of a snapshot."""
    data = {**copy.deepcopy(data), "version": version}
    for part in (data["work"], data["failed"]):
        for one in (*part["work"], *part["batches"]) if part else ():
            del one["opener"]
    if version > 1:
        return data
    del data["failed"]
    if data["work"]:
        del data["work"]["questions"], data["work"]["events_read"]
        for work in data["work"]["work"]:
            for wait in work["waits"]:
                del wait["question"], wait["question_number"], wait["number"], wait["since"]
    return data


@each_old_file
async def test_p4_an_earlier_version_is_written_again_as_version_3(file: Path) -> None:
    data, workflow = read_file(file), MOMENTS[file.stem].make()
    again = Context.from_dict(workflow, data, [Answer]).to_dict()
    assert again["version"] == VERSION
    assert without_new_fields(again, data["version"]) == data
    assert Context.from_dict(workflow, again, [Answer]).to_dict() == again


async def test_p4_w5_the_waits_of_version_1_have_ids_and_count_as_read() -> None:
    data = read_file(FILES / "version_1" / "waits.json")
    context = Context.from_dict(MOMENTS["waits"].make(), data, [Answer])
    (wait,) = context.open_waits()
    assert (wait.id, wait.step, wait.event_type) == ("1:1:why", "work", Answer)
    assert (wait.question, wait.since) == (None, FixedClock.now(UTC))


@pytest.mark.parametrize("name", MOMENTS)
async def test_p4_what_was_read_is_written_again_as_it_was(name: str) -> None:
    moment, data = MOMENTS[name], golden(name)
    assert Context.from_dict(moment.make(), data, [Answer]).to_dict() == data


@pytest.mark.parametrize("name", MOMENTS)
async def test_p4_what_goes_on_is_written_as_it_was(name: str) -> None:
    data = golden(name)
    handler = MOMENTS[name].load(data)
    again = handler.ctx.to_dict()
    await handler.cancel_run()
    if name == "failed":
        data["work"], data["failed"] = data["failed"], None
    if data["work"]:
        begin_a_stream(data["work"])
    if name == "finished":
        data["work"] = golden("start")["work"]  # it starts anew
    if name == "cancelled_batch":
        data["work"]["batches"] = []  # nothing is left of it
    assert again == data


def begin_a_stream(work: Any) -> None:
    """Change the pending work as a new run does, whose stream has only the questions to ask again."""
    read, work["events_read"] = work["events_read"], 0
    unread = [one for one in work["questions"] if one["number"] > read]
    work["questions"] = [one | {"number": n} for n, one in enumerate(unread, start=1)]
    for wait in (wait for one in work["work"] for wait in one["waits"]):
        wait["asked"] = wait["asked"] and wait["question_number"] <= read
        wait["question_number"] = 0


async def test_p4_branches_are_numbered_in_the_order_of_their_list() -> None:
    moment = Moment(BranchSets, 5, None, {"items": [*range(30)]})
    for _ in range(3):  # each time in other places of the memory
        data = await take(moment)
        assert [branch["id"] for branch in data["work"]["batches"][0]["branches"]] == [*range(30)]
        for work in data["work"]["work"]:
            assert work["branch"] == work["events"][0]["value"]["n"]
