"""Waiting for events in the middle of a step (W1-W3), and the end of the run meanwhile."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import weakref
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
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

from .running import (
    answer,
    busy,
    check_ending,
    on_asyncio,
    on_each_backend,
    read,
    run_virtually,
    texts,
)
from .samples import Act, Answer, AsksByReturning, Item, Mail, Note, OneStep, Question

pytestmark = pytest.mark.anyio


class PoliteAnswer(Answer):
    thanks: bool = True


# --- W1: suspended where it stands -------------------------------------------------------------


async def test_w1_a_run_that_only_waits_holds_no_streams_of_its_steps() -> None:
    class AsksOnTheWay(Workflow[str]):
        @step
        async def first(self, ev: StartEvent) -> Item:
            return Item()

        @step
        async def ask(self, ctx: Context, ev: Item) -> Note:
            got = await ctx.wait_for_event(Answer)
            return Note(text=got.text)

        @step
        async def last(self, ev: Note | Mail) -> StopEvent | None:
            return StopEvent(result=ev.text) if isinstance(ev, Note) else None

    handler = AsksOnTheWay().run()
    for _ in range(2):
        await anyio.wait_all_tasks_blocked()
        assert not handler._run._inboxes.ends
        await handler.send_event(Mail())  # and so it is not waiting only
        assert handler._run._inboxes.ends
    await anyio.wait_all_tasks_blocked()
    await handler.send_event(Answer(text="yes"))
    assert await handler == "yes"


async def test_w1_code_before_the_wait_runs_once_and_locals_live_on() -> None:
    async def act(ctx: Context) -> Any:
        local = object()
        before.append(local)
        got = await ctx.wait_for_event(Answer)
        return got.text, local is before[0]

    before: list[object] = []
    handler = OneStep(act).run()
    await answer(handler, "yes")
    assert await handler == ("yes", True)
    assert len(before) == 1


async def test_w1_the_very_object_that_was_sent_comes_back() -> None:
    handler = OneStep(lambda ctx: ctx.wait_for_event(Answer)).run()
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

    handler = OneStep(act).run()
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
    handler = OneStep(act).run()
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
    handler = OneStep(act).run()
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

    handler = OneStep(act).run()
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
    handler = OneStep(lambda ctx: ctx.wait_for_event(Answer)).run()
    await answer(handler, "")
    assert [type(event) for event in await read(handler)] == [StopEvent]


@pytest.mark.parametrize("prompt", ["a text", StopEvent(result=1), Answer])
async def test_w2_prompt_is_checked_like_everything_written(prompt: Any) -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(WorkflowRuntimeError, match=r"cannot be written|can be written"):
            await ctx.wait_for_event(Answer, prompt, timeout=1)
        await ctx.wait_for_event(Answer, timeout=10)  # the refused wait is not open

    handler = OneStep(act).run()
    await answer(handler, "")
    assert [type(event) for event in await read(handler)] == [StopEvent]
    await handler


@pytest.mark.parametrize("wrong", [Answer(), "Answer", int, None])
async def test_w2_waiting_for_what_is_no_event_class_raises(wrong: Any) -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(WorkflowRuntimeError, match="event class"):
            await ctx.wait_for_event(wrong, Question())

    assert [type(event) for event in await read(OneStep(act).run())] == [StopEvent]


async def test_w2_requirements_are_attributes_that_must_be_equal() -> None:
    async def act(ctx: Context) -> Answer:
        return await ctx.wait_for_event(Answer, requirements={"text": "b", "n": 2})

    handler = OneStep(act).run()
    for text, n in [("a", 2), ("b", 1), ("b", 2)]:
        await anyio.sleep(1)
        assert not handler.is_done()
        await handler.send_event(Answer(text=text, n=n))
    assert await handler == Answer(text="b", n=2)


async def test_w2_requirement_that_the_event_does_not_have_never_matches() -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, requirements={"nope": None}, timeout=5)

    handler = OneStep(act).run()
    await answer(handler, "x")
    await handler


async def test_w2_requirements_look_at_the_keywords_of_an_open_event() -> None:
    async def act(ctx: Context) -> HumanResponseEvent:
        return await ctx.wait_for_event(HumanResponseEvent, requirements={"user": "ada"})

    handler = OneStep(act).run()
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

    handler = OneStep(act).run()
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

    handler = OneStep(act).run()
    await anyio.sleep(1)
    await handler.send_event(Answer())
    await handler.send_event(PoliteAnswer())
    assert await handler is PoliteAnswer


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

    await OneStep(act).run()


async def test_w2_answer_that_nobody_waits_for_is_unhandled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def act(ctx: Context) -> None:
        await ctx.wait_for_event(Answer, requirements={"n": 1})
        await anyio.sleep(1)

    handler = OneStep(act).run()
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

    handler = OneStep(act).run()
    async for event in handler.stream_events():
        if isinstance(event, Question):
            await handler.send_event(Answer(text=event.text.upper()))
    assert await handler == ["A", "B", "C"]


async def test_w2_two_runs_do_not_answer_each_other() -> None:
    workflow = OneStep(lambda ctx: ctx.wait_for_event(Answer))
    one, two = workflow.run(), workflow.run()
    await answer(one, "one")
    assert (await one).text == "one"
    assert not two.is_done()
    await answer(two, "two")
    assert (await two).text == "two"


async def test_w2_human_in_the_loop_by_two_steps() -> None:
    handler = AsksByReturning().run()
    async for event in handler.stream_events():
        if isinstance(event, Question):
            await anyio.sleep(20)  # people take their time
            await handler.send_event(Answer(text="Ada"))
    assert await handler == "Ada"


# --- W3: timeouts, one after the other ------------------------------------------------------------


async def test_w3_timeout_raises_in_the_step_at_its_time() -> None:
    async def act(ctx: Context) -> float:
        began = anyio.current_time()
        with pytest.raises(TimeoutError, match="Answer"):
            await ctx.wait_for_event(Answer, timeout=7)
        return anyio.current_time() - began

    assert await OneStep(act).run() == pytest.approx(7)


async def test_w3_timeout_is_2000_seconds_unless_told() -> None:
    async def act(ctx: Context) -> float:
        began = anyio.current_time()
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer)
        return anyio.current_time() - began

    assert await OneStep(act).run() == pytest.approx(2000)


async def test_w3_no_timeout_waits_as_long_as_it_takes() -> None:
    handler = OneStep(lambda ctx: ctx.wait_for_event(Answer, timeout=None)).run()
    await anyio.sleep(80_000)
    await answer(handler, "at last")
    assert (await handler).text == "at last"


async def test_w3_timeout_of_zero_asks_and_gives_up_at_once() -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, Question(), timeout=0)

    assert [type(event) for event in await read(OneStep(act).run())] == [Question, StopEvent]


async def test_w3_unhandled_timeout_fails_the_step() -> None:
    handler = OneStep(lambda ctx: ctx.wait_for_event(Answer, timeout=3)).run()
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

    handler = OneStep(act).run()
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

    handler = OneStep(act).run()
    await anyio.sleep(1)
    await answer(handler, "late", "fresh")
    assert await handler == "fresh"


async def test_w3_sequential_equal_waits_each_get_their_own_answer() -> None:
    async def act(ctx: Context) -> list[str]:
        return [(await ctx.wait_for_event(Answer)).text for _ in range(3)]

    handler = OneStep(act).run()
    await answer(handler, "a", "b", "c")
    assert await handler == ["a", "b", "c"]


async def test_w3_loop_of_many_waits() -> None:
    async def act(ctx: Context) -> int:
        total = 0
        while got := (await ctx.wait_for_event(Answer, Question())).n:
            total += got
        return total

    handler = OneStep(act).run()
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
    handler = OneStep(waits_and_cleans(trace), timeout=5).run()
    events, last = await check_ending(handler)
    assert isinstance(last, WorkflowTimedOutEvent)
    assert last.active_steps == ["work"]
    assert texts(events) == ["cleaned up"]
    assert trace == ["finally"]
    assert busy(handler, "work") == (0, 0, 0)


async def test_t2_cancelled_while_waiting() -> None:
    trace: list[str] = []
    handler = OneStep(waits_and_cleans(trace)).run()
    await anyio.sleep(1)
    await handler.cancel_run()
    events, last = await check_ending(handler)
    assert isinstance(last, WorkflowCancelledEvent)
    assert (texts(events), trace) == (["cleaned up"], ["finally"])


async def test_t2_cancelled_right_after_the_answer() -> None:
    trace: list[str] = []
    handler = OneStep(waits_and_cleans(trace)).run()
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
    handler = OneStep(lambda ctx: ctx.wait_for_event(StopEvent)).run()
    await anyio.sleep(1)
    await handler.send_event(StopEvent(result="from outside"))
    assert await handler == "from outside"


@on_each_backend
def test_o2_end_of_the_loop_while_waiting(backend: str) -> None:
    async def main() -> WorkflowHandler[Any]:
        handler = OneStep(waits_and_cleans(trace)).run()
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
    handler = OneStep(act).run()
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

    handler = OneStep(act).run()
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

    assert await OneStep(act).run() == "still here"


async def test_w1_wait_in_a_shielded_scope_does_not_outlive_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def act(ctx: Context) -> None:
        with anyio.CancelScope(shield=True):
            await ctx.wait_for_event(Answer, timeout=100)

    handler = OneStep(act, cleanup_timeout=2).run()
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

    handler = OneStep(act).run()
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

    handler = OneStep(act, timeout=5).run()
    with pytest.raises(WorkflowTimeoutError):
        await handler


async def test_o6_run_that_has_waited_is_collectable() -> None:
    class Gone(OneStep):
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
