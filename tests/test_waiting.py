"""Waiting for events in the middle of a step: W1-W4, and the worker that is given back, R2."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import logging
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import UnhandledEvent

from .conftest import BACKENDS
from .running import Note, check_ending, read, run_virtually, texts

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


class Question(InputRequiredEvent):
    text: str = ""


class Answer(HumanResponseEvent):
    text: str = ""
    n: int = 0


class PoliteAnswer(Answer):
    thanks: bool = True


class Item(Event):
    n: int = 0


class Acts(Workflow):
    """Awaits a function inside its step."""

    def __init__(self, act: Callable[[Context], Awaitable[Any]], **kwargs: Any) -> None:
        super().__init__(**{"timeout": None, **kwargs})
        self.act = act

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.act(ctx))


async def answer(handler: WorkflowHandler[Any], *words: str) -> None:
    """Answer once for each of the words, a virtual second apart."""
    for word in words:
        await anyio.sleep(1)
        await handler.send_event(Answer(text=word))


def busy(handler: WorkflowHandler[Any], name: str) -> tuple[int, int, int]:
    """Return how much of a step is queued, running and waiting."""
    found = handler.statistics().steps[name]
    return found.queued, found.running, found.waiting


# --- W1: suspended where it stands -------------------------------------------------------------


async def test_w1_code_before_the_wait_runs_once_and_locals_live_on() -> None:
    async def act(ctx: Context) -> Any:
        local = object()
        before.append(local)
        got = await ctx.wait_for_event(Answer)
        return got.text, local is before[0]

    before: list[object] = []
    handler = Acts(act).run()
    await answer(handler, "yes")
    assert await handler == ("yes", True)
    assert len(before) == 1


async def test_w1_the_very_object_that_was_sent_comes_back() -> None:
    handler = Acts(lambda ctx: ctx.wait_for_event(Answer)).run()
    sent = Answer(text="this one")
    await anyio.sleep(1)
    await handler.send_event(sent)
    assert await handler is sent


async def test_w1_try_except_around_the_wait_is_harmless() -> None:
    async def act(ctx: Context) -> str:
        try:
            return (await ctx.wait_for_event(Answer)).text
        except Exception as exc:
            return f"caught {exc!r}"

    handler = Acts(act).run()
    await answer(handler, "calm")
    assert await handler == "calm"


async def test_w1_bare_except_and_finally_around_the_wait_are_not_entered_early() -> None:
    async def act(ctx: Context) -> None:
        try:
            await ctx.wait_for_event(Answer)
            trace.append("answered")
        except BaseException as exc:
            trace.append(repr(exc))
            raise
        finally:
            trace.append("finally")

    trace: list[str] = []
    handler = Acts(act).run()
    await anyio.sleep(1)
    assert trace == []
    await answer(handler, "")
    await handler
    assert trace == ["answered", "finally"]


async def test_w1_open_context_managers_stay_open() -> None:
    async def act(ctx: Context) -> list[str]:
        async with anyio.create_task_group() as group:
            group.start_soon(tick, ctx)
            await ctx.wait_for_event(Answer)
            group.cancel_scope.cancel()
        return ticks

    async def tick(ctx: Context) -> None:
        for n in itertools.count():
            ticks.append(str(n))
            await anyio.sleep(1)

    ticks: list[str] = []
    handler = Acts(act).run()
    await anyio.sleep(2.5)
    await handler.send_event(Answer())
    assert await handler == ["0", "1", "2"]


# --- W2: prompts, matches, several waiters -------------------------------------------------------


async def test_w2_waiter_event_is_written_once_when_the_wait_begins() -> None:
    async def act(ctx: Context) -> str:
        ctx.write_event_to_stream(Note(text="before"))
        got = await ctx.wait_for_event(Answer, Question(text="name?"))
        ctx.write_event_to_stream(Note(text="after"))
        return got.text

    handler = Acts(act).run()
    await answer(handler, "Ada")
    events, _ = await check_ending(handler)
    assert [getattr(event, "text", None) for event in events] == ["before", "name?", "after", None]


async def test_w2_any_event_may_be_the_prompt_and_it_starts_no_step() -> None:
    class Prompting(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            await ctx.wait_for_event(Answer, Item(n=1))
            return StopEvent(result="asked")

        @step
        async def work(self, ev: Item) -> StopEvent:
            return StopEvent(result="the prompt was routed")

    handler = Prompting().run()
    await answer(handler, "")
    assert await handler == "asked"
    assert [type(event) for event in await read(handler)] == [Item, StopEvent]


async def test_w2_no_prompt_writes_nothing() -> None:
    handler = Acts(lambda ctx: ctx.wait_for_event(Answer)).run()
    await answer(handler, "")
    assert [type(event) for event in await read(handler)] == [StopEvent]


@pytest.mark.parametrize("prompt", ["a text", StopEvent(result=1), Answer])
async def test_w2_prompt_is_checked_like_everything_written(prompt: Any) -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(WorkflowRuntimeError, match=r"cannot be written|can be written"):
            await ctx.wait_for_event(Answer, prompt, timeout=1)
        await ctx.wait_for_event(Answer, timeout=10)  # the refused wait is not open

    handler = Acts(act).run()
    await answer(handler, "")
    assert [type(event) for event in await read(handler)] == [StopEvent]
    await handler


@pytest.mark.parametrize("wrong", [Answer(), "Answer", int, None])
async def test_w2_waiting_for_what_is_no_event_class_raises(wrong: Any) -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(WorkflowRuntimeError, match="event class"):
            await ctx.wait_for_event(wrong, Question())

    assert [type(event) for event in await read(Acts(act).run())] == [StopEvent]


async def test_w2_requirements_are_attributes_that_must_be_equal() -> None:
    async def act(ctx: Context) -> Answer:
        return await ctx.wait_for_event(Answer, requirements={"text": "b", "n": 2})

    handler = Acts(act).run()
    for text, n in [("a", 2), ("b", 1), ("b", 2)]:
        await anyio.sleep(1)
        assert not handler.is_done()
        await handler.send_event(Answer(text=text, n=n))
    assert await handler == Answer(text="b", n=2)


async def test_w2_requirement_that_the_event_does_not_have_never_matches() -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, requirements={"nope": None}, timeout=5)

    handler = Acts(act).run()
    await answer(handler, "x")
    await handler


async def test_w2_requirements_look_at_the_keywords_of_an_open_event() -> None:
    async def act(ctx: Context) -> HumanResponseEvent:
        return await ctx.wait_for_event(HumanResponseEvent, requirements={"user": "ada"})

    handler = Acts(act).run()
    await anyio.sleep(1)
    await handler.send_event(HumanResponseEvent(user="bob"))
    await handler.send_event(HumanResponseEvent(user="ada", items=3))
    assert (await handler)["items"] == 3


async def test_w2_requirements_may_be_changed_by_the_caller_afterwards() -> None:
    async def act(ctx: Context) -> str:
        wanted = {"text": "a"}
        async with anyio.create_task_group() as group:
            group.start_soon(change, wanted)
            return (await ctx.wait_for_event(Answer, requirements=wanted)).text

    async def change(wanted: dict[str, str]) -> None:
        await anyio.sleep(0.5)
        wanted["text"] = "b"

    handler = Acts(act).run()
    await answer(handler, "b", "a")
    assert await handler == "a"


async def test_w2_comparison_that_raises_is_not_the_senders_fault() -> None:
    class Moody:
        def __eq__(self, other: object) -> bool:
            raise ValueError("do not compare me")

        __hash__ = None  # type: ignore[assignment]

    class Bystander(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item:
            return Item()

        @step
        async def wait(self, ctx: Context, ev: Item) -> StopEvent:
            await ctx.wait_for_event(Answer, requirements={"n": Moody()}, timeout=5)
            return StopEvent()

        @step
        async def tell(self, ev: Item) -> Answer:
            await anyio.sleep(1)
            return Answer()

        @step
        async def take(self, ev: Answer) -> None:
            taken.append(ev)

    taken: list[Event] = []
    handler = Bystander(skip_graph_checks=["dead_end"]).run()
    with pytest.raises((ValueError, TimeoutError)):  # either way it comes out of the wait
        await handler
    stop = handler.get_stop_event()
    assert stop is not None
    assert stop["step_name"] == "wait"


@pytest.mark.parametrize("subclasses", [False, True])
async def test_w2_type_matches_as_in_r1(subclasses: bool) -> None:
    class Waiter(Workflow):
        @step(accept_event_subclasses=subclasses)
        async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=type(await ctx.wait_for_event(Answer)))

    handler = Waiter().run()
    await anyio.sleep(1)
    await handler.send_event(PoliteAnswer())
    await anyio.sleep(1)
    assert handler.is_done() is subclasses
    if not subclasses:
        await handler.send_event(Answer())
    assert await handler is (PoliteAnswer if subclasses else Answer)


async def test_w2_base_class_does_not_answer_a_wait_for_its_subclass() -> None:
    async def act(ctx: Context) -> type:
        return type(await ctx.wait_for_event(PoliteAnswer))

    handler = Acts(act).run()
    await anyio.sleep(1)
    await handler.send_event(Answer())
    await handler.send_event(PoliteAnswer())
    assert await handler is PoliteAnswer


class Crowd(Workflow):
    """`count` executions that wait for an answer each, in a pool of their own size."""

    @step
    async def fork(self, ctx: Context, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(ev["count"])]

    @step(num_workers=100)
    async def wait(self, ctx: Context, ev: Item) -> Note:
        wanted = {"n": ev.n} if ev.n % 2 else {}
        return Note(text=(ev.n, await ctx.wait_for_event(Answer, requirements=wanted)))

    @step
    async def join(self, evs: list[Note]) -> StopEvent:
        return StopEvent(result=sorted((ev.text for ev in evs), key=lambda pair: pair[0]))


async def test_w2_one_event_answers_every_wait_that_it_matches() -> None:
    handler = Crowd().run(count=5)
    await anyio.sleep(1)
    assert busy(handler, "wait") == (0, 0, 5)
    one, three = Answer(n=1), Answer(n=3)
    await handler.send_event(one)
    await anyio.sleep(1)
    assert busy(handler, "wait") == (0, 0, 1)  # the one that wants a 3
    await handler.send_event(three)
    assert await handler == [(0, one), (1, one), (2, one), (3, three), (4, one)]


async def test_w2_waits_in_two_steps_and_a_step_that_accepts_all_get_the_event() -> None:
    class Both(Workflow):
        @step
        async def start(self, ev: StartEvent) -> Item:
            return Item()

        @step
        async def left(self, ctx: Context, ev: Item) -> Note:
            return Note(text=("left", (await ctx.wait_for_event(Answer)).text))

        @step
        async def right(self, ctx: Context, ev: Item) -> Note:
            return Note(text=("right", (await ctx.wait_for_event(Answer)).text))

        @step
        async def third(self, ev: Answer) -> Note:
            return Note(text=("third", ev.text))

        @step
        async def end(self, ctx: Context, ev: Note) -> StopEvent | None:
            got.append(ev.text)
            return StopEvent() if len(got) == 3 else None

    got: list[Any] = []
    handler = Both().run()
    await answer(handler, "x")
    await handler
    assert sorted(got) == [("left", "x"), ("right", "x"), ("third", "x")]


class WaitsAndAccepts(Workflow):
    """One step that accepts answers and also waits for one."""

    @step
    async def work(self, ctx: Context, ev: StartEvent | Answer) -> StopEvent | None:
        if isinstance(ev, Answer):
            ctx.write_event_to_stream(Note(text=f"started by {ev.text}"))
            return StopEvent() if ev.text == "end" else None
        got = await ctx.wait_for_event(Answer, timeout=10)
        ctx.write_event_to_stream(Note(text=f"waited for {got.text}"))
        return None


async def test_w2_step_that_waits_and_accepts_gets_the_event_as_its_wait_only() -> None:
    handler = WaitsAndAccepts().run()
    await answer(handler, "a", "b", "end")
    assert texts(await read(handler)) == ["waited for a", "started by b", "started by end"]


async def test_w2_event_aimed_at_a_step_that_waits_for_it_answers_the_wait() -> None:
    handler = WaitsAndAccepts().run()
    await anyio.sleep(1)
    await handler.send_event(Answer(text="a"), step="work")
    await answer(handler, "end")
    assert texts(await read(handler)) == ["waited for a", "started by end"]


async def test_w2_event_aimed_at_another_step_answers_no_wait() -> None:
    class Aimed(Workflow):
        @step
        async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=(await ctx.wait_for_event(Answer)).text)

        @step
        async def take(self, ev: Answer) -> None:
            taken.append(ev.text)

    taken: list[str] = []
    handler = Aimed().run()
    await anyio.sleep(1)
    await handler.send_event(Answer(text="aimed"), step="take")
    await anyio.sleep(1)
    assert (taken, handler.is_done()) == (["aimed"], False)
    await handler.send_event(Answer(text="all"))
    assert await handler == "all"


async def test_w2_answer_sent_by_another_step() -> None:
    class Dialogue(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.send_event(Item(n=20))
            return StopEvent(result=(await ctx.wait_for_event(Answer)).n)

        @step
        async def reply(self, ctx: Context, ev: Item) -> None:
            ctx.send_event(Answer(n=ev.n + 1))

    assert await Dialogue(skip_graph_checks=["reachability"]).run() == 21


async def test_w2_answer_returned_by_another_step() -> None:
    class Dialogue(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            ctx.send_event(Item(n=20))
            return StopEvent(result=(await ctx.wait_for_event(Answer)).n)

        @step(skip_graph_checks=["terminal_event"])
        async def reply(self, ev: Item) -> Answer:
            return Answer(n=ev.n + 1)

    assert await Dialogue().run() == 21


async def test_w2_answer_sent_before_the_wait_begins_is_gone() -> None:
    async def act(ctx: Context) -> None:
        ctx.send_event(Answer(text="too early"))
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, timeout=1)

    await Acts(act).run()


async def test_w2_answer_that_nobody_waits_for_is_unhandled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def act(ctx: Context) -> None:
        await ctx.wait_for_event(Answer, requirements={"n": 1})
        await anyio.sleep(1)

    handler = Acts(act).run()
    events = handler.stream_events(expose_internal=True)
    await anyio.sleep(1)
    await handler.send_event(Answer(n=2))
    await handler.send_event(Answer(n=1))
    await handler.send_event(Answer(n=1))  # the wait is answered already
    await handler
    unhandled = [event async for event in events if isinstance(event, UnhandledEvent)]
    assert [(event.event_type, event.idle) for event in unhandled] == [
        ("Answer", True),
        ("Answer", False),
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "Answer" in caplog.text


async def test_w2_answer_right_after_its_question_was_read() -> None:
    async def act(ctx: Context) -> list[str]:
        return [(await ctx.wait_for_event(Answer, Question(text=q))).text for q in "abc"]

    handler = Acts(act).run()
    async for event in handler.stream_events():
        if isinstance(event, Question):
            await handler.send_event(Answer(text=event.text.upper()))
    assert await handler == ["A", "B", "C"]


async def test_w2_two_runs_do_not_answer_each_other() -> None:
    workflow = Acts(lambda ctx: ctx.wait_for_event(Answer))
    one, two = workflow.run(), workflow.run()
    await answer(one, "one")
    assert (await one).text == "one"
    assert not two.is_done()
    await answer(two, "two")
    assert (await two).text == "two"


async def test_w2_human_in_the_loop_by_two_steps() -> None:
    class Form(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> Question:
            return Question(text="name?")

        @step
        async def greet(self, ev: Answer) -> StopEvent:
            return StopEvent(result=f"hello {ev.text}")

    handler = Form().run()
    async for event in handler.stream_events():
        if isinstance(event, Question):
            await anyio.sleep(20)  # people take their time
            await handler.send_event(Answer(text="Ada"))
    assert await handler == "hello Ada"


# --- W3: timeouts, one after the other ------------------------------------------------------------


async def test_w3_timeout_raises_in_the_step_at_its_time() -> None:
    async def act(ctx: Context) -> float:
        began = anyio.current_time()
        with pytest.raises(TimeoutError, match="Answer"):
            await ctx.wait_for_event(Answer, timeout=7)
        return anyio.current_time() - began

    assert await Acts(act).run() == pytest.approx(7)


async def test_w3_timeout_is_2000_seconds_unless_told() -> None:
    async def act(ctx: Context) -> float:
        began = anyio.current_time()
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer)
        return anyio.current_time() - began

    assert await Acts(act).run() == pytest.approx(2000)


async def test_w3_no_timeout_waits_as_long_as_it_takes() -> None:
    handler = Acts(lambda ctx: ctx.wait_for_event(Answer, timeout=None)).run()
    await anyio.sleep(80_000)
    await answer(handler, "at last")
    assert (await handler).text == "at last"


async def test_w3_timeout_of_zero_asks_and_gives_up_at_once() -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, Question(), timeout=0)

    assert [type(event) for event in await read(Acts(act).run())] == [Question, StopEvent]


async def test_w3_unhandled_timeout_fails_the_step() -> None:
    handler = Acts(lambda ctx: ctx.wait_for_event(Answer, timeout=3)).run()
    _, last = await check_ending(handler)
    assert isinstance(last["exception"], TimeoutError)
    assert not isinstance(last, WorkflowTimedOutEvent)
    assert (last["step_name"], last["attempts"]) == ("work", 1)
    assert last["elapsed_seconds"] == pytest.approx(3)


async def test_w3_step_may_handle_the_timeout_and_wait_again() -> None:
    async def act(ctx: Context) -> tuple[int, str]:
        attempt = 1
        while True:
            try:
                got = await ctx.wait_for_event(Answer, Question(text=f"{attempt}?"), timeout=2)
            except TimeoutError:
                attempt += 1
            else:
                return attempt, got.text

    handler = Acts(act).run()
    await anyio.sleep(4)
    await answer(handler, "third time lucky")
    assert await handler == (3, "third time lucky")
    asked = [event["text"] for event in await read(handler) if isinstance(event, Question)]
    assert asked == ["1?", "2?", "3?"]


async def test_w3_wait_that_timed_out_takes_no_later_answer() -> None:
    async def act(ctx: Context) -> str:
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, timeout=1)
        await anyio.sleep(2)  # an answer comes in between
        return (await ctx.wait_for_event(Answer)).text

    handler = Acts(act).run()
    await anyio.sleep(1)
    await answer(handler, "late", "fresh")
    assert await handler == "fresh"


async def test_w3_sequential_equal_waits_each_get_their_own_answer() -> None:
    async def act(ctx: Context) -> list[str]:
        return [(await ctx.wait_for_event(Answer)).text for _ in range(3)]

    handler = Acts(act).run()
    await answer(handler, "a", "b", "c")
    assert await handler == ["a", "b", "c"]


async def test_w3_loop_of_many_waits() -> None:
    async def act(ctx: Context) -> int:
        total = 0
        while got := (await ctx.wait_for_event(Answer, Question())).n:
            total += got
        return total

    handler = Acts(act).run()
    left = iter(range(300, -1, -1))
    async for event in handler.stream_events():
        if isinstance(event, Question):
            await handler.send_event(Answer(n=next(left)))
    assert await handler == 45_150


async def test_w3_answer_in_time_counts_though_the_worker_comes_later() -> None:
    class OneWorker(Workflow):
        @step(num_workers=1)
        async def work(self, ctx: Context, ev: StartEvent | Item) -> StopEvent | None:
            if isinstance(ev, Item):
                await anyio.sleep(10)
                return None
            ctx.send_event(Item())
            return StopEvent(result=(await ctx.wait_for_event(Answer, timeout=5)).text)

    handler = OneWorker(skip_graph_checks=["reachability"]).run()
    await answer(handler, "in time")
    began = anyio.current_time()
    assert await handler == "in time"
    assert anyio.current_time() - began == pytest.approx(9)


# --- Parallel waits, W4 ------------------------------------------------------------------------------


async def test_w4_equal_wait_while_one_is_open_raises_and_asks_nobody() -> None:
    async def act(ctx: Context) -> str:
        async with anyio.create_task_group() as group:
            group.start_soon(second, ctx)
            return (await ctx.wait_for_event(Answer, Question(text="first"))).text

    async def second(ctx: Context) -> None:
        await anyio.sleep(0.1)
        with pytest.raises(WorkflowRuntimeError, match="waiter_id"):
            await ctx.wait_for_event(Answer, Question(text="second"))

    handler = Acts(act).run()
    await answer(handler, "fine")
    assert await handler == "fine"
    asked = [event["text"] for event in await read(handler) if isinstance(event, Question)]
    assert asked == ["first"]


async def test_w4_same_waiter_id_while_one_is_open_raises() -> None:
    async def act(ctx: Context) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(ctx.wait_for_event, Answer, waiter_id="a"))
            await anyio.sleep(0.1)
            with pytest.raises(WorkflowRuntimeError, match="'a'"):
                await ctx.wait_for_event(Item, waiter_id="a")

    handler = Acts(act).run()
    await answer(handler, "")
    await handler


@pytest.mark.parametrize(
    "waits",
    [
        [{"waiter_id": "a"}, {"waiter_id": "b"}],
        [{}, {"waiter_id": "b"}],
        [{"waiter_id": "a"}, {}],
        [{"requirements": {"text": "x"}}, {"requirements": {"n": 0}}],
        [{}, {"requirements": {"n": 0}}],
    ],
)
async def test_w4_parallel_waits_that_can_be_told_apart(waits: list[dict[str, Any]]) -> None:
    async def act(ctx: Context) -> list[Answer]:
        async with anyio.create_task_group() as group:
            for wait in waits:
                group.start_soon(one, ctx, wait)
        return got

    async def one(ctx: Context, wait: dict[str, Any]) -> None:
        got.append(await ctx.wait_for_event(Answer, **wait))

    got: list[Answer] = []
    handler = Acts(act).run()
    await anyio.sleep(1)
    assert busy(handler, "work") == (0, 0, 1)  # two waits, one execution
    sent = Answer(text="x")
    await handler.send_event(sent)
    assert [found is sent for found in await handler] == [True, True]
    assert busy(handler, "work") == (0, 0, 0)


async def test_w4_equal_wait_after_the_first_was_cancelled_or_timed_out() -> None:
    async def act(ctx: Context) -> str:
        with anyio.move_on_after(1):
            await ctx.wait_for_event(Answer)
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, timeout=1)
        return (await ctx.wait_for_event(Answer)).text

    handler = Acts(act).run()
    await anyio.sleep(2)
    await answer(handler, "third")
    assert await handler == "third"


async def test_w4_equal_waits_of_different_executions_are_no_trouble() -> None:
    handler = Crowd().run(count=1)  # wait 0 and, in another run, wait 0 again
    other = Crowd().run(count=3)
    await anyio.sleep(1)
    for run in (handler, other):
        await run.send_event(Answer(n=1))
        await run


async def test_w4_one_of_two_parallel_waits_goes_on_while_the_other_waits() -> None:
    async def act(ctx: Context) -> list[str]:
        async with anyio.create_task_group() as group:
            group.start_soon(one, ctx, "left")
            group.start_soon(one, ctx, "right")
        return order

    async def one(ctx: Context, name: str) -> None:
        await ctx.wait_for_event(Answer, requirements={"text": name})
        order.append(name)

    order: list[str] = []
    handler = Acts(act).run()
    await answer(handler, "right")
    await anyio.sleep(1)
    assert order == ["right"]
    await answer(handler, "left")
    assert await handler == ["right", "left"]
    assert busy(handler, "work") == (0, 0, 0)


async def test_w4_first_of_several_waits_wins_and_the_others_are_cancelled() -> None:
    async def act(ctx: Context) -> str:
        async with anyio.create_task_group() as group:
            for name in ("a", "b", "c"):
                group.start_soon(one, ctx, name, group.cancel_scope)
        await ctx.wait_for_event(Answer, requirements={"text": "a"})  # free again
        return won[0]

    async def one(ctx: Context, name: str, scope: anyio.CancelScope) -> None:
        await ctx.wait_for_event(Answer, requirements={"text": name})
        won.append(name)
        scope.cancel()

    won: list[str] = []
    handler = Acts(act).run()
    await answer(handler, "b", "c", "a")
    assert await handler == "b"
    assert busy(handler, "work") == (0, 0, 0)


@pytest.mark.parametrize("where", ["outside", "another step's context"])
async def test_w4_waiting_outside_a_step_raises(where: str) -> None:
    class TwoSteps(Workflow):
        @step
        async def one(self, ctx: Context, ev: StartEvent) -> Item:
            contexts.append(ctx)
            return Item()

        @step
        async def two(self, ctx: Context, ev: Item) -> StopEvent:
            if where != "outside":
                with pytest.raises(WorkflowRuntimeError):
                    await contexts[0].wait_for_event(Answer, timeout=1)
            await anyio.sleep(5)
            return StopEvent(result="done")

    contexts: list[Context] = []
    handler = TwoSteps().run()
    if where == "outside":
        with pytest.raises(WorkflowRuntimeError, match="only a step can"):
            await handler.ctx.wait_for_event(Answer, timeout=1)
    assert await handler == "done"
    assert handler.statistics().steps["one"].done == 1
    assert busy(handler, "one") == (0, 0, 0)


async def test_w4_waiting_after_the_own_execution_has_ended_raises() -> None:
    """A task that the step left behind must not upset the books: none of this is a stall."""

    class Leaves(Workflow):
        @step(num_workers=1)
        async def one(self, ctx: Context, ev: StartEvent | Item) -> Item | StopEvent:
            if isinstance(ev, StartEvent):
                group.start_soon(wait_late, ctx)
                return Item()
            await anyio.sleep(10)
            return StopEvent(result=busy(handler, "one"))

    async def wait_late(ctx: Context) -> None:
        await anyio.sleep(1)
        with pytest.raises(WorkflowRuntimeError):
            await ctx.wait_for_event(Answer, timeout=5)

    async with anyio.create_task_group() as group:
        handler = Leaves().run()
        assert await handler == (0, 1, 0)


async def test_w4_step_that_ends_while_a_task_it_left_behind_waits() -> None:
    class Leaves(Workflow):
        @step(num_workers=1)
        async def one(self, ctx: Context, ev: StartEvent | Item) -> Item | StopEvent:
            if isinstance(ev, StartEvent):
                group.start_soon(wait, ctx)
                await anyio.sleep(1)
                return Item()
            await anyio.sleep(10)
            return StopEvent(result=busy(handler, "one"))

    async def wait(ctx: Context) -> None:
        with pytest.raises((WorkflowRuntimeError, TimeoutError)):
            await ctx.wait_for_event(Answer, timeout=5)

    async with anyio.create_task_group() as group:
        handler = Leaves().run()
        assert await handler == (0, 1, 0)


@pytest.mark.parametrize("how", ["cancel", "time out", "send a stop"])
async def test_w4_waiting_or_collecting_during_cleanup_raises(how: str) -> None:
    async def act(ctx: Context) -> None:
        try:
            await anyio.sleep(1000)
        finally:
            with anyio.CancelScope(shield=True), pytest.raises(WorkflowRuntimeError):
                await ctx.wait_for_event(Answer, Question(), timeout=1)
            with pytest.raises(WorkflowRuntimeError):
                ctx.collect_events(Item(), [Item])
            cleaned.append(ctx.is_running)

    cleaned: list[bool] = []
    handler = Acts(act, timeout=1 if how == "time out" else 50).run()
    await anyio.sleep(1)
    if how == "cancel":
        await handler.cancel_run()
    elif how == "send a stop":
        await handler.send_event(StopEvent())
    events, _ = await check_ending(handler)
    assert len(events) == 1  # no question
    assert cleaned == [False]


async def test_w4_waiting_in_a_run_that_has_ended_raises_and_says_how() -> None:
    async def act(ctx: Context) -> None:
        contexts.append(ctx)

    contexts: list[Context] = []
    await Acts(act).run()
    with pytest.raises(WorkflowRuntimeError, match="it returned StopEvent"):
        await contexts[0].wait_for_event(Answer)


# --- R2: the worker is given back -------------------------------------------------------------------


Act = Callable[[Context], Awaitable[Any]]
Trace = list[tuple[float, str]]


def pool(workers: int, *acts: Act, **kwargs: Any) -> tuple[Workflow, Trace]:
    """Return a workflow that executes the functions in one step, and what is to happen when."""

    class Pool(Workflow):
        left = len(acts)

        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | None:
            began[:] = [anyio.current_time()]
            for n in range(len(acts)):
                ctx.send_event(Item(n=n))

        @step(num_workers=workers)
        async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            note(f"{ev.n} starts")
            try:
                await acts[ev.n](ctx)
                note(f"{ev.n} ends")
            except BaseException as exc:
                note(f"{ev.n} raises {type(exc).__name__}")
                raise
            self.left -= 1
            return None if self.left else StopEvent()

    def note(what: str) -> None:
        trace.append((round(anyio.current_time() - began[0], 3), what))

    began: list[float] = []
    trace: Trace = []
    return Pool(**{"timeout": None, **kwargs}), trace


def sleeps(seconds: float) -> Act:
    return lambda ctx: anyio.sleep(seconds)


def waits(word: str, then: float = 0, **kwargs: Any) -> Act:
    async def act(ctx: Context) -> None:
        await ctx.wait_for_event(Answer, requirements={"text": word}, **kwargs)
        await anyio.sleep(then)

    return act


async def test_r2_other_events_proceed_while_one_waits() -> None:
    workflow, trace = pool(1, waits("go", timeout=None), sleeps(1), sleeps(1), sleeps(1))
    handler = workflow.run()
    await anyio.sleep(10)
    assert trace == [
        (0, "0 starts"),
        (0, "1 starts"),
        (1, "1 ends"),
        (1, "2 starts"),
        (2, "2 ends"),
        (2, "3 starts"),
        (3, "3 ends"),
    ]
    await answer(handler, "go")
    await handler
    assert trace[-1] == (11, "0 ends")


async def test_r2_worker_is_taken_again_ahead_of_queued_events() -> None:
    workflow, trace = pool(1, waits("go", then=3), sleeps(2), sleeps(2), sleeps(2))
    handler = workflow.run()
    await answer(handler, "go")
    await anyio.sleep(0.5)
    assert busy(handler, "work") == (2, 1, 1)
    await handler
    assert trace == [
        (0, "0 starts"),
        (0, "1 starts"),
        (2, "1 ends"),
        (5, "0 ends"),
        (5, "2 starts"),
        (7, "2 ends"),
        (7, "3 starts"),
        (9, "3 ends"),
    ]


async def test_r2_several_that_want_their_worker_back_get_it_in_the_order_of_their_answers() -> (
    None
):
    acts = [waits(word, then=1) for word in "abc"]
    workflow, trace = pool(1, *acts, sleeps(5), sleeps(1))
    handler = workflow.run()
    await answer(handler, "c", "a", "b")
    await handler
    assert [what for _, what in trace[4:]] == [
        "3 ends",
        "2 ends",
        "0 ends",
        "1 ends",
        "4 starts",
        "4 ends",
    ]
    assert trace[-1] == (9, "4 ends")


async def test_r2_one_answer_for_several_wakes_as_many_as_there_are_workers() -> None:
    workflow, trace = pool(2, *[waits("go", then=1) for _ in range(5)])
    handler = workflow.run()
    await anyio.sleep(1)
    assert busy(handler, "work") == (0, 0, 5)
    await handler.send_event(Answer(text="go"))
    assert busy(handler, "work") == (0, 2, 3)
    await handler
    assert [when for when, what in trace if "ends" in what] == [2, 2, 3, 3, 4]


async def test_r2_timeout_is_raised_once_there_is_a_worker() -> None:
    workflow, trace = pool(1, waits("never", timeout=1), sleeps(3), sleeps(1))
    with pytest.raises(TimeoutError):
        await workflow.run()
    assert trace == [
        (0, "0 starts"),
        (0, "1 starts"),
        (3, "1 ends"),
        (3, "0 raises TimeoutError"),
    ]


@pytest.mark.parametrize("answered", [False, True])
async def test_r2_cancelled_wait_goes_on_at_once_over_the_limit(answered: bool) -> None:
    async def gives_up(ctx: Context) -> None:
        with anyio.move_on_after(2) as scope:
            await ctx.wait_for_event(Answer)
        assert scope.cancelled_caught
        over.append(busy(handler, "work"))
        await anyio.sleep(1)

    over: list[tuple[int, int, int]] = []
    workflow, trace = pool(1, gives_up, sleeps(10), sleeps(1))
    handler = workflow.run()
    await anyio.sleep(1)
    if answered:  # it is answered then, but waits for its worker
        await handler.send_event(Answer())
    await handler
    assert over == [(1, 2, 0)]
    assert trace == [
        (0, "0 starts"),
        (0, "1 starts"),
        (3, "0 ends"),
        (10, "1 ends"),
        (10, "2 starts"),
        (11, "2 ends"),
    ]


async def test_r2_cancelled_run_lets_all_waiting_executions_clean_up_at_once() -> None:
    async def cleans(ctx: Context) -> None:
        try:
            await ctx.wait_for_event(Answer)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            cleaned.append(anyio.current_time())

    cleaned: list[float] = []
    workflow, _ = pool(1, *[cleans] * 5)
    handler = workflow.run()
    await anyio.sleep(3)
    began = anyio.current_time()
    await handler.cancel_run()
    assert cleaned == [pytest.approx(began + 1)] * 5
    assert busy(handler, "work") == (0, 0, 0)


async def test_r2_failed_wait_gives_its_worker_to_the_next() -> None:
    async def recovers(ctx: Context) -> None:
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, timeout=1)

    workflow, trace = pool(1, recovers, recovers, recovers)
    await workflow.run()
    assert [when for when, what in trace if "ends" in what] == [1, 1, 1]


async def test_r2_a_hundred_waits_in_a_step_of_one_worker() -> None:
    workflow, trace = pool(1, *[waits("go") for _ in range(100)])
    handler = workflow.run()
    await anyio.sleep(1)
    assert busy(handler, "work") == (0, 0, 100)
    await answer(handler, "go")
    await handler
    ended = [what for _, what in trace if "ends" in what]
    assert ended == [f"{n} ends" for n in range(100)]


# --- The end of the run meets a wait ---------------------------------------------------------------


def waits_and_cleans(trace: list[str]) -> Act:
    async def act(ctx: Context) -> None:
        try:
            await ctx.wait_for_event(Answer, Question())
            trace.append("answered")
        finally:
            trace.append("finally")
            ctx.write_event_to_stream(Note(text="cleaned up"))

    return act


async def test_t2_deadline_while_waiting() -> None:
    trace: list[str] = []
    handler = Acts(waits_and_cleans(trace), timeout=5).run()
    events, last = await check_ending(handler)
    assert isinstance(last, WorkflowTimedOutEvent)
    assert last.active_steps == ["work"]
    assert texts(events) == ["cleaned up"]
    assert trace == ["finally"]
    assert busy(handler, "work") == (0, 0, 0)


async def test_t2_cancelled_while_waiting() -> None:
    trace: list[str] = []
    handler = Acts(waits_and_cleans(trace)).run()
    await anyio.sleep(1)
    await handler.cancel_run()
    events, last = await check_ending(handler)
    assert isinstance(last, WorkflowCancelledEvent)
    assert (texts(events), trace) == (["cleaned up"], ["finally"])


async def test_t2_cancelled_right_after_the_answer() -> None:
    trace: list[str] = []
    handler = Acts(waits_and_cleans(trace)).run()
    await anyio.sleep(1)
    await handler.send_event(Answer())
    await handler.cancel_run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowCancelledEvent)
    assert trace[-1] == "finally"


async def test_t2_other_step_stops_the_run_while_one_waits() -> None:
    class Two(Workflow):
        @step
        async def wait(self, ctx: Context, ev: StartEvent) -> None:
            await waits_and_cleans(trace)(ctx)

        @step
        async def stop(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(3)
            return StopEvent(result="stopped")

    trace: list[str] = []
    handler = Two().run()
    events, _ = await check_ending(handler)
    assert await handler == "stopped"
    assert (texts(events), trace) == (["cleaned up"], ["finally"])


async def test_t2_stop_event_is_no_answer_but_the_end() -> None:
    handler = Acts(lambda ctx: ctx.wait_for_event(StopEvent)).run()
    await anyio.sleep(1)
    await handler.send_event(StopEvent(result="from outside"))
    assert await handler == "from outside"


@pytest.mark.parametrize("backend", BACKENDS)
def test_o2_end_of_the_loop_while_waiting(backend: str) -> None:
    async def main() -> WorkflowHandler[Any]:
        handler = Acts(waits_and_cleans(trace)).run()
        await anyio.sleep(1)
        return handler

    trace: list[str] = []
    handler = run_virtually(backend, main)
    assert isinstance(handler.get_stop_event(), WorkflowCancelledEvent)
    assert trace == ["finally"]


@on_asyncio
async def test_w1_native_cancellation_of_a_waiting_task_of_the_step() -> None:
    async def act(ctx: Context) -> str:
        task = asyncio.ensure_future(ctx.wait_for_event(Answer))
        await anyio.sleep(1)
        counts.append(busy(handler, "work"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        counts.append(busy(handler, "work"))
        return (await ctx.wait_for_event(Answer)).text

    counts: list[Any] = []
    handler = Acts(act).run()
    await anyio.sleep(2)
    await answer(handler, "second")
    assert await handler == "second"
    assert counts == [(0, 0, 1), (0, 1, 0)]


@on_asyncio
async def test_w1_asyncio_wait_for_and_gather_around_waits() -> None:
    async def act(ctx: Context) -> list[str]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ctx.wait_for_event(Answer), 1)
        both = (ctx.wait_for_event(Answer, requirements={"text": word}) for word in "ab")
        return [got.text for got in await asyncio.gather(*both)]

    handler = Acts(act).run()
    await anyio.sleep(1)
    await answer(handler, "b", "a")
    assert await handler == ["a", "b"]
    assert busy(handler, "work") == (0, 0, 0)


async def test_t8_wait_cancelled_by_the_steps_own_scope_is_no_end() -> None:
    async def act(ctx: Context) -> str:
        async with anyio.create_task_group() as group:
            group.start_soon(ctx.wait_for_event, Answer)
            await checkpoint()
            group.cancel_scope.cancel()
        return "still here"

    assert await Acts(act).run() == "still here"


async def test_w1_wait_in_a_shielded_scope_does_not_outlive_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def act(ctx: Context) -> None:
        with anyio.CancelScope(shield=True):
            await ctx.wait_for_event(Answer, timeout=100)

    handler = Acts(act, cleanup_timeout=2).run()
    await anyio.sleep(1)
    began = anyio.current_time()
    await handler.cancel_run()
    assert anyio.current_time() - began <= 2.1
    with pytest.raises(WorkflowCancelledByUser):
        await handler
    with pytest.raises(WorkflowRuntimeError):
        await handler.send_event(Answer())
    assert {record.levelno for record in caplog.records} <= {logging.INFO, logging.WARNING}


async def test_t4_answer_at_the_moment_of_the_timeout_is_one_or_the_other() -> None:
    async def act(ctx: Context) -> str:
        try:
            return (await ctx.wait_for_event(Answer, timeout=1)).text
        except TimeoutError:
            return "timeout"

    handler = Acts(act).run()
    await checkpoint()
    await checkpoint()
    await anyio.sleep(1)
    if not handler.is_done():
        await handler.send_event(Answer(text="answer"))
    assert await handler in ("answer", "timeout")
    assert busy(handler, "work") == (0, 0, 0)


async def test_t4_wait_timeout_at_the_moment_of_the_runs_deadline() -> None:
    async def act(ctx: Context) -> str:
        try:
            await ctx.wait_for_event(Answer, timeout=5)
        except TimeoutError:
            return "too late"
        return "answered"

    handler = Acts(act, timeout=5).run()
    with pytest.raises(WorkflowTimeoutError):
        await handler


async def test_o6_run_that_has_waited_is_collectable() -> None:
    class Gone(Acts):
        pass

    async def act(ctx: Context) -> str:
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, timeout=0.5)
        with anyio.move_on_after(0.1):
            await ctx.wait_for_event(Answer)
        return (await ctx.wait_for_event(Answer)).text

    workflow = Gone(act)
    gone = weakref.ref(workflow)
    handler = workflow.run()
    await answer(handler, "done")
    assert await handler == "done"
    del workflow, handler
    await anyio.sleep(1)  # what the loop still holds goes
    gc.collect()
    assert gone() is None


# --- Random schedules against a model ---------------------------------------------------------------


@attrs.define(eq=False)
class Waiting:
    """One wait, as the test sees it."""

    word: str
    deadline: float
    answer: Answer | None = None
    """The first answer that was sent while the wait was open."""

    @property
    def over(self) -> bool:
        """Whether it is answered or out of time, and only wants a worker."""
        return self.answer is not None or anyio.current_time() >= self.deadline


@attrs.define
class Books:
    """What a naive observer writes down about a pool, to check R2 and W1-W3 against."""

    limit: int
    running: int = 0
    jumped: Counter[float] = attrs.field(factory=Counter)
    started: list[int] = attrs.field(factory=list)
    ended: list[int] = attrs.field(factory=list)
    waiting: dict[int, list[Waiting]] = attrs.field(factory=dict)
    """The open waits of each execution that does nothing but wait."""
    unhandled: int = 0

    def enter(self, *, cancelled: bool = False) -> None:
        """Note that an execution starts or goes on; only what is cancelled may exceed the limit."""
        now = anyio.current_time()
        self.running += 1
        if cancelled:
            self.jumped[now] += 1
        else:
            assert self.running - self.jumped[now] <= self.limit

    def leave(self) -> None:
        self.running -= 1

    def sent(self, event: Answer) -> None:
        """Note who must get an event that is being sent."""
        waits = [wait for waits in self.waiting.values() for wait in waits]
        matching = [wait for wait in waits if not wait.over and wait.word == event.text]
        self.unhandled += not matching
        for wait in matching:
            wait.answer = event

    def check_nobody_starves(self, total: int) -> None:
        """Check, at a quiet moment, that no worker is free while somebody wants one."""
        wanting = any(all(wait.over for wait in waits) for waits in self.waiting.values())
        if wanting or len(self.started) < total:
            assert self.running >= self.limit


@attrs.define
class Script:
    """An execution that sleeps, waits, and gives up waiting, as it is told."""

    books: Books
    item: int
    lines: list[tuple[str, str, int]]

    async def __call__(self, ctx: Context) -> None:
        books = self.books
        books.started.append(self.item)
        books.enter()
        try:
            for what, word, seconds in self.lines:
                if what == "sleep":
                    await anyio.sleep(seconds)
                else:
                    await self.suspend(ctx, what, word, seconds)
        finally:
            books.leave()
        books.ended.append(self.item)

    async def suspend(self, ctx: Context, what: str, word: str, seconds: int) -> None:
        """Wait, in one of several ways, and check when and how the waiting ends."""
        books, item = self.books, self.item
        books.waiting[item] = []
        books.leave()
        cancelled = True
        began = anyio.current_time()
        try:
            if what == "give up":
                with anyio.move_on_after(seconds + 0.25) as scope:
                    await self.wait(ctx, word)
                cancelled = scope.cancelled_caught
                took = anyio.current_time() - began
                assert not cancelled or took == pytest.approx(seconds + 0.25)  # at once
            elif what == "timeout":
                await self.wait(ctx, word, seconds)
                cancelled = False
            else:
                async with anyio.create_task_group() as group:
                    scopes = [group.cancel_scope] * (what == "first")
                    group.start_soon(self.wait, ctx, word, 1000, *scopes)
                    group.start_soon(self.wait, ctx, "w", 1000, *scopes)
                cancelled = group.cancel_scope.cancel_called
        finally:
            del books.waiting[item]
            books.enter(cancelled=cancelled)

    async def wait(
        self,
        ctx: Context,
        word: str,
        timeout: float = 1000,
        winner: anyio.CancelScope | None = None,
    ) -> None:
        mine = Waiting(word, anyio.current_time() + timeout)
        self.books.waiting[self.item].append(mine)
        try:
            got = await ctx.wait_for_event(Answer, None, word, {"text": word}, timeout)
        except TimeoutError:
            assert mine.answer is None
            assert mine.over
        else:
            assert got is mine.answer  # the first one sent, and no other
        finally:
            self.books.waiting[self.item].remove(mine)
        if winner is not None:
            winner.cancel()


words = st.sampled_from("xyz")
waits_and_sleeps = st.sampled_from(["sleep", "timeout", "give up", "both", "first"])
scripts = st.lists(st.tuples(waits_and_sleeps, words, st.integers(1, 6)), max_size=4)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=100, deadline=None)
@given(
    workers=st.integers(1, 3),
    plan=st.lists(scripts, min_size=1, max_size=7),
    answers=st.lists(st.sampled_from("wxyz"), max_size=25),
    cancel_at=st.none() | st.integers(0, 20),
)
def test_r2_w3_random_schedules(
    backend: str,
    workers: int,
    plan: list[list[tuple[str, str, int]]],
    answers: list[str],
    cancel_at: int | None,
) -> None:
    async def main() -> None:
        books = Books(workers)
        workflow, _ = pool(workers, *[Script(books, n, lines) for n, lines in enumerate(plan)])
        handler = workflow.run()
        events = handler.stream_events(expose_internal=True)
        for n, word in enumerate(answers):
            if n == cancel_at:
                await handler.cancel_run()
            await anyio.sleep(0.6 + n * 0.00137)  # never the moment of anything else
            if handler.is_done():
                break
            books.check_nobody_starves(len(plan))
            event = Answer(text=word, n=n)
            books.sent(event)
            await handler.send_event(event)
        with suppress(WorkflowCancelledByUser), anyio.fail_after(50_000):
            await handler
        assert books.running == 0
        assert books.waiting == {}
        assert books.started == list(range(len(books.started)))  # first in, first out
        stop = handler.get_stop_event()
        if cancel_at is None:
            assert type(stop) is StopEvent
        if type(stop) is StopEvent:
            assert sorted(books.ended) == list(range(len(plan)))
        found = [event async for event in events]
        assert found[-1] is stop
        assert sum(isinstance(event, UnhandledEvent) for event in found) == books.unhandled
        assert busy(handler, "work")[1:] == (0, 0)

    logging.disable(logging.WARNING)
    try:
        run_virtually(backend, main)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("timeout", ["x", -1, float("nan"), True])
async def test_w3_a_bad_timeout_is_refused_before_anything_is_asked(timeout: Any) -> None:
    async def act(ctx: Context) -> str:
        with pytest.raises(WorkflowRuntimeError, match="timeout must be a number"):
            await ctx.wait_for_event(Answer, waiter_event=InputRequiredEvent(), timeout=timeout)
        return "refused"

    handler = Acts(act).run()
    assert [type(event) async for event in handler.stream_events()] == [StopEvent]
    assert await handler == "refused"
