"""The format of snapshots: what was written once stays readable, and what is damaged is refused (P4).

The files in `snapshots/` are what `Context.to_dict()` gave at the moments below, those of version 1
in `snapshots/version_1`. To add one, add its moment and call `write_missing()`; a file that is there is
never written again.
"""

from __future__ import annotations

import copy
import enum
import json
import logging
import math
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import anyio
import attrs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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
    WorkflowTimedOutEvent,
    catch_error,
    step,
)
from anyio_workflows._engine import workers as dispatch_module
from anyio_workflows._ledger import work as work_module
from anyio_workflows._snapshot import VERSION
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import ContextSerdeError
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .conftest import BACKENDS
from .running import run_virtually

pytestmark = pytest.mark.anyio

FILES = Path(__file__).parent / "snapshots"


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
    "cancelled_batch": Moment(Race, 11.5, [1], {"items": [3, 1, 2]}),
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
    """The wall clock stands still."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime(2024, 5, 1, 12, tzinfo=tz)


@pytest.fixture(autouse=True)
def _fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dispatch_module, work_module):
        monkeypatch.setattr(module, "datetime", FixedClock)


def golden(name: str) -> Any:
    return read_file(FILES / f"{name}.json")


def read_file(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


OLD_FILES = sorted((FILES / "version_1").iterdir())


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
    for module in (dispatch_module, work_module):
        module.datetime = FixedClock  # type: ignore[attr-defined]
    for name, moment in MOMENTS.items():
        if (FILES / f"{name}.json").exists():
            continue
        data = run_virtually("asyncio", lambda moment=moment: take(moment))
        with (FILES / f"{name}.json").open("x", encoding="utf-8") as file:
            json.dump(data, file, indent=2)
            file.write("\n")


def test_p4_every_file_has_its_moment() -> None:
    assert sorted(file.stem for file in FILES.glob("*.json")) == sorted(MOMENTS)
    assert all(golden(name)["version"] == VERSION for name in MOMENTS)
    assert {read_file(file)["version"] for file in OLD_FILES} == {1}


@pytest.mark.parametrize("name", MOMENTS)
async def test_p4_a_file_is_read_and_goes_on(name: str) -> None:
    moment = MOMENTS[name]
    handler = moment.load(golden(name))
    await send_all(handler, moment.to_send)
    assert await handler == moment.result


@pytest.mark.parametrize("file", OLD_FILES, ids=lambda file: file.stem)
async def test_p4_a_file_of_version_1_is_read_and_goes_on(file: Path) -> None:
    moment = MOMENTS[file.stem]
    handler = moment.load(read_file(file))
    await send_all(handler, moment.to_send)
    assert await handler == moment.result
    events = [event async for event in handler.stream_events()]
    assert not [event for event in events if isinstance(event, InputRequiredEvent)]


@pytest.mark.parametrize("name", MOMENTS)
async def test_p4_version_2_is_written_as_it_was(name: str) -> None:
    assert await take(MOMENTS[name]) == golden(name)


def without_new_fields(data: Any) -> Any:
    """Return what version 1 has of a snapshot."""
    data = copy.deepcopy(data)
    del data["version"], data["failed"]
    if data["work"]:
        del data["work"]["questions"], data["work"]["events_read"]
        for work in data["work"]["work"]:
            for wait in work["waits"]:
                del wait["question"], wait["question_number"], wait["number"], wait["since"]
    return data


@pytest.mark.parametrize("file", OLD_FILES, ids=lambda file: file.stem)
async def test_p4_version_1_is_written_again_as_version_2(file: Path) -> None:
    data, workflow = read_file(file), MOMENTS[file.stem].make()
    again = Context.from_dict(workflow, data, [Answer]).to_dict()
    assert again["version"] == VERSION
    del data["version"]
    assert without_new_fields(again) == data
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
    """Change what is owed as a new run does, whose stream has but the questions to ask again."""
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


# --- What is refused --------------------------------------------------------------------------------


def part(name: str) -> str:
    return f"{__name__}:{name}"


def changed(name: str, path: str, value: Any) -> Any:
    """Return a file with another value at a path like `work.work.0.id`; `...` deletes it."""
    data = golden(name)
    *keys, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
    holder = data
    for key in keys:
        holder = holder[key]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return data


def item(name: str, **fields: Any) -> Any:
    return {"$": part(name), "value": fields}


def refusal(name: str, data: Any, types: Sequence[type] = (Answer,)) -> ContextSerdeError:
    before = {*sys.modules}
    with pytest.raises(ContextSerdeError) as caught:
        Context.from_dict(MOMENTS[name].make(), data, types)
    assert {*sys.modules} == before
    return caught.value


@pytest.mark.parametrize(
    "data", [None, {}, [], "", 1, "{}", [["version", 1]], object(), {"version"}]
)
def test_p4_what_is_no_snapshot_is_refused(data: Any) -> None:
    assert refusal("start", data).path == ("$.version" if data == {} else "$")


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, [1], math.nan])
def test_p4_a_version_that_never_was_is_refused(version: Any) -> None:
    error = refusal("start", changed("start", "version", version))
    assert (error.path, error.problem[:8]) == ("$.version", "expected")


def test_p4_a_newer_version_is_refused_before_anything_else_is_looked_at() -> None:
    error = refusal("start", {"version": VERSION + 1, "whatever": object()})
    assert error.path == "$.version"
    assert f"version {VERSION + 1}, known is {VERSION}" in error.problem


CALLABLES = [
    "os:system",
    "builtins:eval",
    "subprocess:Popen",
    "antigravity:fly",
    "this:s",
    "anyio_workflows.workflow:Workflow",
    "tests.test_snapshot_format:write_missing",
    "tests.test_snapshot_format:Row.first",
    "tests.test_snapshot_format:MOMENTS",
    "python/object/apply:os.system",
    "type",
    "object",
    "",
    ":",
]


@pytest.mark.parametrize("tag", CALLABLES)
@pytest.mark.parametrize("value", [{}, [], "echo", {"args": ["echo"]}, None])
@pytest.mark.parametrize("path", ["state", "work.work.0.events.0", "work.work.0.last_error"])
def test_p4_names_of_code_are_unknown_names(tag: str, value: Any, path: str) -> None:
    error = refusal("running", changed("running", path, {"$": tag, "value": value}))
    assert error.path.startswith("$." + path.replace(".0", "[0]"))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("tag", CALLABLES)
def test_p4_names_of_exceptions_are_no_code_either(tag: str) -> None:
    value = {"type": tag, "text": "?", "args": ["echo"]}
    data = changed("retry_delay", "work.work.0.last_error", {"$": "exception", "value": value})
    context = Context.from_dict(MOMENTS["retry_delay"].make(), data)
    assert context.to_dict()["work"]["work"][0]["last_error"]["value"]["type"] == tag
    assert "antigravity" not in sys.modules


EMPTY_BATCH = {"outer": 1, "branches": [], "arrived": {}, "recoveries": {}, "cancelled": False}
"""Nothing would ever end it, nor the batch around it."""


@attrs.frozen
class Damage:
    """What stands where in a file, the problem that is found, and its path if it is another one."""

    name: str
    where: str
    value: Any
    problem: str
    path: str = attrs.Factory(lambda self: place(self.where), takes_self=True)


def place(where: str) -> str:
    """Return the path to a place as errors have it."""
    keys = [key for key in where.split(".") if key not in ("$", "value")]
    return "$" + "".join(f"[{key}]" if key.isdecimal() else f".{key}" for key in keys)


DAMAGE = [
    # what is missing, and what is too much
    Damage("start", "workflow", ..., "missing"),
    Damage("start", "state", ..., "missing"),
    Damage("start", "work", ..., "missing"),
    Damage("start", "extra", 1, "no such field"),
    Damage("start", "work.work.0.attempt", ..., "missing"),
    Damage("start", "work.work.0.attemps", 1, "did you mean 'attempt'"),
    # unknown names, with hints
    Damage("start", "work.work.0.step", "frist", "did you mean 'first'"),
    Damage("start", "work.work.0.step", "run", "Row has no step 'run'"),
    Damage("start", "work.work.0.events.0.$", part("Itme"), f"did you mean '{part('Item')}'"),
    Damage("sets", "work.sets.0.step", "piar", "did you mean 'pair'"),
    Damage(
        "sets_of_branches", "work.batches.0.branches.0.sets.0.step", "piar", "did you mean 'pair'"
    ),
    Damage("collected", "work.buffers.0.step", "wrok", "did you mean 'work'"),
    Damage("batches", "work.batches.0.arrived", {"ouetr": []}, "did you mean 'outer'"),
    Damage("batches", "work.batches.0.arrived", {"work": []}, "joins no batch"),
    # wrong shapes
    Damage("start", "work", [], "expected"),
    Damage("start", "work.work", {}, "expected"),
    Damage("start", "work.work.0", None, "expected"),
    Damage("start", "work.work.0.id", "1", "expected int"),
    Damage("start", "work.work.0.id", True, "expected int"),
    Damage("start", "work.work.0.id", 1.0, "expected int"),
    Damage("start", "work.work.0.events", {}, "expected"),
    Damage("start", "work.work.0.events.0", {"of": "a"}, "does not take Event"),
    Damage(
        "start",
        "work.work.0.recoveries",
        {"first": "1"},
        "expected int",
        path="$.work.work[0].recoveries.first",
    ),
    Damage("start", "work.input_asked", 1, "expected bool"),
    Damage("retry_delay", "work.work.0.last_error", "ValueError", "expected"),
    Damage("retry_delay", "work.work.0.last_failed_at", "yesterday", "datetime"),
    Damage(
        "retry_delay",
        "work.work.0.last_error",
        {"$": "exception", "value": {"type": "SystemExit", "text": "", "args": []}},
        "expected",
    ),
    Damage("batches", "work.work.0.events.0.value.n", "2", "expected int"),
    Damage("typed_state", "state", {}, "expected Basket"),
    Damage("typed_state", "state.value.color", "blue", "expected one of 'red'"),
    Damage("typed_state", "state.value.items", "apple", "expected"),
    Damage("running", "state", [], "expected dict"),
    Damage("running", "state", item("Item", n=1), "expected dict"),
    # events where they do not fit
    Damage("start", "work.work.0.events", [], "takes 1, got 0"),
    Damage("start", "work.work.0.events.0", item("Item", n=1), "does not take Item"),
    Damage(
        "waits",
        "work.work.0.waits.0.event_type",
        {"$": "type", "value": "anyio_workflows._snapshot:Snapshot"},
        "event class",
    ),
    Damage(
        "waits", "work.work.0.waits.0.event_type", {"$": "type", "value": "os:system"}, "unknown"
    ),
    Damage(
        "waits",
        "work.work.0.waits.0.answer",
        {"$": "anyio_workflows.events:StartEvent", "value": {}},
        "StartEvent",
    ),
    Damage(
        "batches",
        "work.batches.0.arrived",
        {"outer": [item("Item", n=1)]},
        "does not take Item",
        path="$.work.batches[0].arrived.outer[0]",
    ),
    Damage(
        "sets",
        "work.sets.0.queues.1",
        [{"event": item("Mail", n=1), "recoveries": {}}],
        "does not take Mail",
        path="$.work.sets[0].queues[1][0].event",
    ),
    Damage("sets", "work.sets.0.queues", [[]], "step pair takes 2"),
    Damage(
        "sets",
        "work.sets.0",
        {"step": "begin", "queues": [[]]},
        "begin",
        path="$.work.sets[0].step",
    ),
    Damage("collected", "work.buffers.0.kept.0.event", 5, "expected"),
    # ids that clash, branches that are not there
    Damage("batches", "work.work.1.id", 3, "3 is taken"),
    Damage("batches", "work.next_id", 4, "next_id", path="$.work.work[1].id"),
    Damage("batches", "work.work.0.branch", 9, "no branch 9"),
    Damage("batches", "work.batches.1.outer", 9, "no branch 9"),
    Damage("batches", "work.batches.1.outer", 2, "no branch 2"),
    Damage("batches", "work.batches.0.branches.1.id", 0, "a branch 0 already"),
    Damage(
        "batches",
        "work.batches",
        [*golden("batches")["work"]["batches"], EMPTY_BATCH],
        "has a branch",
        path="$.work.batches[2].branches",
    ),
    # counts and times out of range
    Damage("start", "work.work.0.attempt", 0, "count from 1"),
    Damage("start", "work.work.0.id", 0, "0 is"),
    Damage(
        "finished",
        "work",
        {**golden("sets")["work"], "next_id": 0, "sets": []},
        "count from 1",
        path="$.work.next_id",
    ),
    Damage("recovered", "work.work.0.recoveries.recover", -1, "got -1"),
    Damage("retry_delay", "work.work.0.elapsed", math.nan, "expected"),
    Damage("retry_delay", "work.work.0.due_in", math.inf, "expected"),
    Damage(
        "retry_delay", "work.work.0.due_in", {"$": "float", "value": "nan"}, "number of seconds"
    ),
    Damage(
        "retry_delay", "work.work.0.elapsed", {"$": "float", "value": "inf"}, "number of seconds"
    ),
    Damage("retry_delay", "work.work.0.elapsed", -1, "got -1"),
    Damage("running", "state.seen", [math.nan], "no JSON value", path="$.state.seen[0]"),
    Damage("questions", "work.events_read", -1, "got -1"),
    Damage("questions", "work.events_read", None, "expected int"),
    Damage("questions", "work.questions.0.number", 0, "count from 1"),
    Damage("questions", "work.questions.0.event", item("Answer"), "InputRequiredEvent"),
    Damage("questions", "work.work.0.waits.0.question_number", -1, "got -1"),
    Damage("questions", "work.work.0.waits.0.number", -1, "below 1"),
    Damage("questions", "work.work.0.waits.1.number", 0, "below 1"),
    Damage("questions", "work.work.0.waits.1.number", 1, "1 is taken"),
    Damage("questions", "work.work.0.waits.0.number", True, "expected int"),
    Damage("questions", "work.work.0.waits.0.since", "2024-05-01T12:00:00", "UTC offset"),
    Damage("questions", "work.work.0.waits.0.since", "today", "datetime"),
    Damage(
        "questions",
        "work.work.0.waits.0.question",
        {"$": "anyio_workflows.events:StopEvent", "value": {}},
        "cannot ask with StopEvent",
    ),
    Damage("failed", "failed.next_id", 0, "count from 1"),
    Damage("failed", "failed.work.0.step", "secnd", "did you mean 'second'"),
    Damage("failed", "failed.work.0.events", [], "takes 1, got 0"),
    Damage("failed", "work", golden("start")["work"], "there is work left", path="$.failed"),
    # two of what there is one of
    Damage(
        "sets",
        "work.sets",
        golden("sets")["work"]["sets"] * 2,
        "there already",
        path="$.work.sets[1].step",
    ),
    Damage(
        "collected",
        "work.buffers",
        golden("collected")["work"]["buffers"] * 2,
        "there is a buffer None already",
        path="$.work.buffers[1]",
    ),
]


@pytest.mark.parametrize(
    "damage", DAMAGE, ids=[f"{n}-{one.name}-{one.where}" for n, one in enumerate(DAMAGE)]
)
def test_p4_damage_is_refused_with_its_place(damage: Damage) -> None:
    error = refusal(damage.name, changed(damage.name, damage.where, damage.value))
    assert error.path == damage.path
    assert damage.problem in error.problem


def test_p4_an_unknown_type_hints_at_types() -> None:
    stranger = {"$": "type", "value": part("Answr")}
    error = refusal("waits", changed("waits", "work.work.0.waits.0.event_type", stranger), types=())
    assert error.path == "$.work.work[0].waits[0].event_type"
    assert f"did you mean {part('Answer')!r}?" in error.problem
    assert "types=[...]" in error.problem


@pytest.mark.parametrize("depth", [200, 5_000, 200_000])
@pytest.mark.parametrize("wrap", [lambda data: [data], lambda data: {"a": data}])
def test_p4_huge_nesting_is_refused(depth: int, wrap: Callable[[Any], Any]) -> None:
    deep: Any = 1
    for _ in range(depth):
        deep = wrap(deep)
    for path in ("state", "work.work.0.events.0.value.of", "work.work.0.recoveries"):
        error = refusal("start", changed("start", path, deep))
        assert "nested" in error.problem
    while deep != 1:  # taken apart here, not by a destructor that recurses
        (deep,) = deep if isinstance(deep, list) else deep.values()


# --- Whatever it is: read and run to an end, or refused ---------------------------------------------


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in some data, with each of its keys."""
    if isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield data, key
            yield from places(data[key])


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-2, 12)
    | st.sampled_from([10**400, -(10**20), 1e308, -1e308, math.nan, math.inf, 0.5, -0.0])
    | st.sampled_from(["", "$", "value", "os:system", "work", "pair", "join", "0", "\ud800"])
    | st.sampled_from([part("Item"), part("Mail"), part("Answer"), "type", "exception", "dict"])
)
junk = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$", "value", "n", "id", "step"]), inner, max_size=3)
        | st.builds(lambda tag, value: {"$": tag, "value": value}, leaves, inner)
    ),
    max_leaves=6,
)


def alike(data: Any, holder: Any, key: Any) -> st.SearchStrategy[Any]:
    """Return values that could be in this place, or are in one of the same name or type."""
    value = holder[key]
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int | float):
        return st.integers(-1, 9)
    return st.sampled_from(
        [
            copy.deepcopy(other[where])
            for other, where in places(data)
            if type(other[where]) is type(value)
            and (where == key or type(where) is int is type(key))
        ]
    )


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, Any]:
    """Return the name of a file, and what a few accidents made of it; in half of them, gentle ones."""
    name, gentle = draw(st.sampled_from([*MOMENTS])), draw(st.booleans())
    data = golden(name)
    for _ in range(draw(st.integers(1, 4))):
        found = [
            (holder, key)
            for holder, key in places(data)
            if not gentle
            or isinstance(holder, list)
            or key not in ("version", "step", "$", "value")
        ]
        if not found:
            break
        holder, key = draw(st.sampled_from(found))
        accidents = ["alike"]
        if isinstance(holder, list):
            accidents += ["delete", "copy", "truncate"]
        if not gentle:
            accidents += ["replace", "delete", "insert" if isinstance(holder, list) else "add"]
        match draw(st.sampled_from(accidents)):
            case "alike":
                holder[key] = draw(alike(data, holder, key))
            case "replace":
                holder[key] = draw(junk)
            case "delete":
                del holder[key]
            case "copy":
                holder.append(copy.deepcopy(holder[key]))
            case "truncate":
                del holder[key:]
            case "insert":
                holder.insert(key, draw(junk))
            case "add":
                holder[draw(st.sampled_from(["$", "value", "n", "id", "extra"]))] = draw(junk)
    assume(data != golden(name))
    return name, data


class Complaints(logging.Handler):
    """Gathers what the library logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


async def go_on(name: str, data: Any) -> None:
    """Refuse it, or go on from it to an end."""
    moment = MOMENTS[name]
    refused = None
    try:
        handler = moment.load(data)
    except ContextSerdeError as error:
        refused = error
    if refused is not None:
        assert refused.path.startswith("$")
        return
    again = json.loads(json.dumps(handler.ctx.to_dict(), allow_nan=False))
    Context.from_dict(moment.make(), again, [Answer])
    await send_all_left(handler, moment.to_send)
    with anyio.fail_after(5000):
        events = [event async for event in handler.stream_events()]
    assert [event for event in events if isinstance(event, StopEvent)] == events[-1:]
    if isinstance(events[-1], WorkflowTimedOutEvent):
        again = json.loads(json.dumps(handler.ctx.to_dict(), allow_nan=False))
        Context.from_dict(moment.make(), again, [Answer])


async def send_all_left(handler: WorkflowHandler[Any], events: Sequence[Event]) -> None:
    for event in events:
        await anyio.sleep(1)
        if not handler.is_done():
            await handler.send_event(event)


def watched(backend: str, act: Callable[[], Awaitable[None]]) -> None:
    """Run it; nothing may break inside, and nothing be imported that data has named."""
    complaints, log = Complaints(), logging.getLogger("anyio_workflows")
    log.addHandler(complaints)
    try:
        run_virtually(backend, act)
    finally:
        log.removeHandler(complaints)
    assert [text for text in complaints.found if "nobody saw" not in text] == []


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=300)
@given(damaged())
def test_p4_damaged_snapshots_are_refused_or_run_to_an_end(
    backend: str, found: tuple[str, Any]
) -> None:
    watched(backend, lambda: go_on(*found))


@settings(max_examples=200)
@given(st.sampled_from([*MOMENTS]), junk, st.booleans())
def test_p4_random_json_is_refused(name: str, data: Any, versioned: bool) -> None:
    if isinstance(data, dict) and versioned:
        data["version"] = VERSION
    assert refusal(name, data).path.startswith("$")


# --- Hostile values in every place ------------------------------------------------------------------

HOSTILE: list[Any] = [
    16**6000,
    -(10**400),
    "a" * 5000,
    {"$": "c" * 5000, "value": 1},
    {"$": "set", "value": [n * sys.hash_info.modulus for n in range(1100)]},
]


@pytest.mark.parametrize("name", MOMENTS)
def test_p4_hostile_values_in_any_place_load_or_are_refused_in_few_words(name: str) -> None:
    moment, data = MOMENTS[name], golden(name)
    for holder, key in list(places(data)):
        good = holder[key]
        for value in HOSTILE:
            holder[key] = value
            try:
                context = Context.from_dict(moment.make(), data, [Answer])
            except ContextSerdeError as error:
                assert len(str(error)) <= 1000  # noqa: PT017
            else:
                json.dumps(context.to_dict())
        holder[key] = good
