"""What every attempt of a step gets, and what the one before leaves to it (X3, W3, F6)."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import pytest

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, WorkflowHandler, step
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.events import UnhandledEvent
from anyio_workflows.retry_policy import retry_policy, wait_none

from .retrying import Policy, acting, counts, every
from .running import check_ending, on_each_backend, read, texts
from .samples import Answer, Done, Item, Note, ProviderError, Question

pytestmark = pytest.mark.anyio

PATIENCE = 10
"""Real seconds after which a test with threads fails that hangs."""

# --- X3: what every attempt gets, and what stays --------------------------------------------------


async def test_x3_every_attempt_gets_the_same_event() -> None:
    class Same(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> Item:
            return sent

        @step(retry_policy=every(1))
        async def work(self, ctx: Context, ev: Item) -> StopEvent:
            got.append(ev)
            if len(got) < 3:
                raise ProviderError
            return StopEvent()

    sent = Item(n=7)
    got: list[Item] = []
    await Same().run()
    assert len(got) == 3
    assert all(event is sent for event in got)


async def test_x3_what_a_failed_attempt_wrote_and_sent_stays() -> None:
    class Sends(Workflow):
        @step(retry_policy=every(1))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            number = ctx.retry_info().retry_number
            ctx.write_event_to_stream(Note(text=f"attempt {number}"))
            ctx.send_event(Item(n=number))
            await anyio.sleep(1)
            if number < 2:
                raise ProviderError
            return StopEvent()

        @step
        async def tell(self, ctx: Context, ev: Item) -> None:
            ctx.write_event_to_stream(Note(text=f"item {ev.n}"))

    assert texts(await read(Sends(skip_graph_checks=["reachability"]).run())) == [
        *("attempt 0", "item 0"),
        *("attempt 1", "item 1"),
        *("attempt 2", "item 2"),
    ]


async def test_o7_every_attempt_sees_the_context_variables_of_the_caller() -> None:
    async def act(ctx: Context) -> list[str]:
        seen.append(var.get())
        var.set(f"set in attempt {len(seen)}")
        if len(seen) < 3:
            raise ProviderError
        return seen

    var = contextvars.ContextVar[str]("var")
    var.set("caller's")
    seen: list[str] = []
    handler = acting(act, every(1))
    var.set("set later")
    assert await handler == ["caller's"] * 3


async def test_o5_child_of_a_failed_attempt_is_a_child_of_the_run() -> None:
    class Child(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(ev.seconds)
            finally:
                ended.append((ev.seconds, anyio.current_time() - began))
            return StopEvent()

    async def act(ctx: Context) -> None:
        for seconds in (3, 1000):
            children.append(Child(timeout=None).run(seconds=seconds))
        await anyio.sleep(1)
        if len(children) == 2:
            raise ProviderError

    began = anyio.current_time()
    ended: list[tuple[float, float]] = []
    children: list[WorkflowHandler[Any]] = []
    await acting(act, every(10))
    assert ended[0] == (3, 3)
    assert sorted(ended[1:]) == [(3, 12), (1000, 12), (1000, 12)]
    assert all(child.is_done() for child in children)


async def test_x3_retried_join_gets_the_same_events() -> None:
    class Joins(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step(retry_policy=every(1))
        async def join(self, ctx: Context, evs: list[Item]) -> StopEvent:
            got.append([ev.n for ev in evs])
            while evs:  # an attempt may do with its list what it likes
                evs.pop()
            if len(got) < 3:
                raise ProviderError
            return StopEvent()

    got: list[list[int]] = []
    await Joins().run()
    assert got == [[0, 1, 2]] * 3


async def test_x3_retried_step_with_a_set_of_events() -> None:
    class Pairs(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | Done | None:
            for event in (Item(n=1), Item(n=2), Done(n=3), Done(n=4)):
                ctx.send_event(event)
            return None

        @step(num_workers=1, retry_policy=every(1))
        async def pair(self, ctx: Context, one: Item, two: Done) -> StopEvent | None:
            got.append((one.n, two.n))
            if not ctx.retry_info().retry_number:
                raise ProviderError
            return StopEvent() if one.n == 2 else None

    got: list[tuple[int, int]] = []
    await Pairs().run()
    assert got == [(1, 3), (2, 4), (1, 3), (2, 4)]


# --- W3: a retried step that waits ----------------------------------------------------------------


class Person:
    """Answers each question a second after it was read, with its number, and keeps them."""

    def __init__(self, handler: WorkflowHandler[Any]) -> None:
        self.handler = handler
        self.questions: list[str] = []

    async def __call__(self) -> Any:
        async for event in self.handler.stream_events():
            if isinstance(event, Question):
                self.questions.append(event.text)
                await anyio.sleep(1)
                await self.handler.send_event(Answer(text=f"{len(self.questions)}: {event.text}"))
        return await self.handler


async def test_w3_answers_are_given_again_in_order_and_nobody_is_asked_twice() -> None:
    async def act(ctx: Context) -> list[list[str]]:
        attempts.append([])
        for word in ("a", "b", "c"):
            attempts[-1].append((await ctx.wait_for_event(Answer, Question(text=word))).text)
            if len(attempts) <= len(attempts[-1]) < 3:
                raise ProviderError
        return attempts

    attempts: list[list[str]] = []
    person = Person(acting(act, every(10)))
    assert await person() == [["1: a"], ["1: a", "2: b"], ["1: a", "2: b", "3: c"]]
    assert person.questions == ["a", "b", "c"]


async def test_w3_answer_given_again_is_the_same_object_and_takes_no_time() -> None:
    async def act(ctx: Context) -> Any:
        began = anyio.current_time()
        got.append(await ctx.wait_for_event(Answer))
        if len(got) < 3:
            raise ProviderError
        return anyio.current_time() - began

    got: list[Answer] = []
    handler = acting(act, every(10))
    await anyio.sleep(5)
    await handler.send_event(Answer())
    assert await handler == 0
    assert got[0] is got[1] is got[2]


async def test_w3_unanswered_prompt_is_not_written_again() -> None:
    """The first attempt fails while its question is open; the answer goes to the second."""

    async def act(ctx: Context) -> str:
        async with anyio.create_task_group() as group:
            if not ctx.retry_info().retry_number:
                group.start_soon(fail)
            got = await ctx.wait_for_event(Answer, Question(text="name?"))
        return got.text

    async def fail() -> None:
        await anyio.sleep(1)
        raise ProviderError

    handler = acting(act, every(10))
    await anyio.sleep(5)
    assert counts(handler) == {"delayed": 1, "retried": 1}
    await anyio.sleep(10)
    assert counts(handler) == {"waiting": 1, "retried": 1}
    await handler.send_event(Answer(text="Ada"))
    assert await handler == "Ada"
    assert [type(event) for event in await read(handler)] == [Question, StopEvent]


async def test_w3_answer_that_comes_during_the_delay_is_not_lost() -> None:
    async def act(ctx: Context) -> str:
        async with anyio.create_task_group() as group:
            if not ctx.retry_info().retry_number:
                group.start_soon(fail)
            return (await ctx.wait_for_event(Answer, Question(text="name?"))).text

    async def fail() -> None:
        await anyio.sleep(1)
        raise ProviderError

    handler = acting(act, every(10), timeout=1000)
    await anyio.sleep(5)
    await handler.send_event(Answer(text="Ada"))
    events, last = await check_ending(handler)
    assert last.result == "Ada"
    assert [event.text for event in events if isinstance(event, Question)] == ["name?"]


async def test_w3_question_that_the_last_attempt_did_not_come_to_is_closed_with_it() -> None:
    async def act(ctx: Context) -> str:
        if ctx.retry_info().retry_number:
            return "without an answer"
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            await ctx.wait_for_event(Answer, Question(text="name?"))
        return "unreachable"

    async def fail() -> None:
        await anyio.sleep(1)
        raise ProviderError

    class Waits(Workflow):
        @step(retry_policy=every(10))
        async def work(self, ctx: Context, ev: StartEvent) -> Item:
            return Item() if await act(ctx) else Item(n=1)

        @step
        async def end(self, ctx: Context, ev: Item) -> StopEvent:
            await anyio.sleep(100)
            return StopEvent()

    handler = Waits(timeout=None).run()
    stream = handler.stream_events(expose_internal=True)
    await anyio.sleep(20)
    await handler.send_event(Answer(text="late"))
    assert any([isinstance(event, UnhandledEvent) async for event in stream])


async def test_w3_wait_that_timed_out_asks_again() -> None:
    async def act(ctx: Context) -> str:
        return (await ctx.wait_for_event(Answer, Question(text="name?"), timeout=5)).text

    handler = acting(act, every(10))
    await anyio.sleep(16)
    await handler.send_event(Answer(text="Ada"))
    assert await handler == "Ada"
    assert [type(event) for event in await read(handler)] == [Question, Question, StopEvent]


async def test_w3_timeout_of_a_wait_is_an_error_that_the_policy_sees() -> None:
    async def act(ctx: Context) -> str:
        return (await ctx.wait_for_event(Answer, timeout=5)).text

    with pytest.raises(TimeoutError, match="no matching Answer"):
        await acting(act, policy := Policy(lambda attempts: 10 if attempts < 2 else None))
    assert [asked[:2] for asked in policy.asked] == [(5, 1), (20, 2)]


async def test_w3_next_attempt_may_wait_for_something_else() -> None:
    async def act(ctx: Context) -> Any:
        if not ctx.retry_info().retry_number:
            await ctx.wait_for_event(Answer, requirements={"text": "a"})
            raise ProviderError
        got = await ctx.wait_for_event(Answer, requirements={"text": "b"})
        again = await ctx.wait_for_event(Answer, requirements={"text": "a"})
        return got.text, again.text

    handler = acting(act, every(2))
    for word in ("a", "b"):
        await anyio.sleep(5)
        await handler.send_event(Answer(text=word))
    assert await handler == ("b", "a")


async def test_w3_attempt_that_fails_early_loses_no_answer_of_an_earlier_one() -> None:
    async def act(ctx: Context) -> Any:
        number = ctx.retry_info().retry_number
        got = []
        for n in range(2):
            if (number, n) == (1, 1):
                raise ProviderError
            got.append((await ctx.wait_for_event(Answer, Question(text=str(n)))).text)
        if number == 0:
            raise ProviderError
        return got

    person = Person(acting(act, every(10)))
    assert await person() == ["1: 0", "2: 1"]
    assert person.questions == ["0", "1"]


@pytest.mark.parametrize("told_apart_by", ["waiter_id", "requirements"])
async def test_w3_concurrent_waits_get_their_own_answers_again(told_apart_by: str) -> None:
    """The tasks come in another order in each attempt."""

    async def act(ctx: Context) -> dict[str, str]:
        got: dict[str, str] = {}
        number = ctx.retry_info().retry_number
        async with anyio.create_task_group() as group:
            for word in ("abc", "cab", "bca")[number]:
                group.start_soon(ask, ctx, word, got)
        if number < 2:
            raise ProviderError
        return got

    async def ask(ctx: Context, word: str, got: dict[str, str]) -> None:
        asked.append(word)
        if told_apart_by == "waiter_id":
            wait = {"waiter_id": word}
            await anyio.sleep(ord(word) - ord("a"))  # each has its own answer, one after another
        else:
            wait = {"requirements": {"text": word}}
        got[word] = (await ctx.wait_for_event(Answer, Question(text=word), **wait)).text  # type: ignore[arg-type]

    asked: list[str] = []
    handler = acting(act, every(100))
    for word in "abc":
        await anyio.sleep(0.9)
        await handler.send_event(Answer(text=word))
    assert await handler == {"a": "a", "b": "b", "c": "c"}
    assert sorted(asked) == sorted("abc" * 3)
    prompts = [event.text for event in await read(handler) if isinstance(event, Question)]
    assert sorted(prompts) == ["a", "b", "c"]


async def test_w3_only_the_unanswered_of_concurrent_waits_is_open_in_the_next_attempt() -> None:
    async def act(ctx: Context) -> list[str]:
        got: dict[str, str] = {}
        async with anyio.create_task_group() as group:
            for word in "ab":
                group.start_soon(ask, ctx, word, got)
            if not ctx.retry_info().retry_number:
                await anyio.sleep(5)
                raise ProviderError
        return sorted(got.values())

    async def ask(ctx: Context, word: str, got: dict[str, str]) -> None:
        wanted = {"text": word}
        answer = await ctx.wait_for_event(Answer, Question(text=word), requirements=wanted)
        got[word] = answer.text

    handler = acting(act, every(10))
    await anyio.sleep(1)
    await handler.send_event(Answer(text="b"))
    await anyio.sleep(20)
    assert counts(handler) == {"waiting": 1, "retried": 1}
    await handler.send_event(Answer(text="a"))
    assert await handler == ["a", "b"]
    prompts = [event.text for event in await read(handler) if isinstance(event, Question)]
    assert sorted(prompts) == ["a", "b"]


async def test_w3_executions_do_not_get_each_others_answers() -> None:
    class Crowd(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step(retry_policy=every(10))
        async def work(self, ctx: Context, ev: Item) -> Note:
            wanted = {"text": str(ev.n)}
            got = await ctx.wait_for_event(Answer, requirements=wanted)
            if not ctx.retry_info().retry_number:
                raise ProviderError
            return Note(text=(ev.n, got.text))

        @step
        async def join(self, evs: list[Note]) -> StopEvent:
            return StopEvent(result=sorted(ev.text for ev in evs))

    handler = Crowd().run()
    await anyio.sleep(1)
    for n in (2, 0, 1):
        await handler.send_event(Answer(text=str(n)))
    assert await handler == [(0, "0"), (1, "1"), (2, "2")]


async def test_r8_time_spent_waiting_does_not_count_in_any_attempt() -> None:
    async def act(ctx: Context) -> str:
        got = await ctx.wait_for_event(Answer)
        await anyio.sleep(3 if not ctx.retry_info().retry_number else 1)
        return got.text

    handler = acting(act, policy := every(10), step_timeout=2)
    await anyio.sleep(100)
    await handler.send_event(Answer(text="slow"))
    assert await handler == "slow"
    assert [asked[:2] for asked in policy.asked] == [(102, 1)]


# --- F6: a retried step that collects -------------------------------------------------------------


class Collects(Workflow):
    """Collects pairs; an execution fails in its first attempt where `failing` says so."""

    told: list[tuple[int, int, list[int] | None]]

    @step
    async def fork(self, ctx: Context, ev: StartEvent) -> Item | None:
        self.told, self.failing = [], ev.failing
        for n in range(ev.items):
            ctx.send_event(Item(n=n))
        return None

    @step(num_workers=1, retry_policy=every(10))
    async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
        number = ctx.retry_info().retry_number
        found = ctx.collect_events(ev, [Item, Item])
        self.told.append((ev.n, number, found and [item["n"] for item in found]))
        if found:
            found.clear()  # an attempt may do with its list what it likes
        if ev.n in self.failing and number < 2:
            raise ProviderError
        return None

    @step
    async def end(self, ev: Note) -> StopEvent:
        return StopEvent(result=self.told)


async def collected(items: int, *failing: int) -> list[tuple[int, int, list[int] | None]]:
    handler = Collects(skip_graph_checks=["reachability"]).run(items=items, failing=failing)
    await anyio.sleep(40)
    await handler.send_event(Note())
    return await handler  # type: ignore[no-any-return]


async def test_f6_retry_gets_the_same_list_and_the_surplus_stays() -> None:
    assert await collected(4, 1) == [
        (0, 0, None),
        (1, 0, [0, 1]),
        (2, 0, None),
        (3, 0, [2, 3]),
        (1, 1, [0, 1]),
        (1, 2, [0, 1]),
    ]


async def test_f6_retry_gets_the_same_nothing_and_collects_nothing_twice() -> None:
    assert await collected(3, 0) == [
        (0, 0, None),
        (1, 0, [0, 1]),
        (2, 0, None),
        (0, 1, None),
        (0, 2, None),
    ]


async def test_f6_several_questions_are_answered_again_in_order() -> None:
    async def act(ctx: Context) -> Any:
        number = ctx.retry_info().retry_number
        found: list[Any] = []
        for n in range(4):
            found.append(ctx.collect_events(Item(n=n), [Item, Item]))
            if number < 3 and n == (0, 2, 1)[number]:
                raise ProviderError
        found.append(ctx.collect_events(Item(n=9), [Item], buffer_id="other"))
        return [events and [event.n for event in events] for events in found]

    assert await acting(act, every(1)) == [None, [0, 1], None, [2, 3], [9]]


# --- Tasks and threads that an attempt leaves behind ----------------------------------------------


@pytest.mark.parametrize("when", ["delay", "next attempt"])
async def test_w4_context_of_a_failed_attempt_can_neither_wait_nor_collect(when: str) -> None:
    async def act(ctx: Context) -> None:
        contexts.append(ctx)
        if len(contexts) == 1:
            raise ProviderError
        await anyio.sleep(10)

    contexts: list[Context] = []
    handler = acting(act, every(10))
    await anyio.sleep(5 if when == "delay" else 15)
    before = counts(handler)
    with pytest.raises(WorkflowRuntimeError, match="attempt 1 of step work has ended"):
        await contexts[0].wait_for_event(Answer, timeout=1)
    with pytest.raises(WorkflowRuntimeError, match="attempt 1 of step work has ended"):
        contexts[0].collect_events(Item(), [Item])
    assert counts(handler) == before
    await handler


async def test_w4_task_that_is_left_behind_waiting_is_refused_when_its_attempt_fails() -> None:
    async def act(ctx: Context) -> str:
        if not ctx.retry_info().retry_number:
            group.start_soon(wait, ctx)
            await anyio.sleep(1)
            raise ProviderError
        return "fine"

    async def wait(ctx: Context) -> None:
        with pytest.raises(WorkflowRuntimeError, match="step work has ended"):
            await ctx.wait_for_event(Answer)
        refused_at.append(anyio.current_time() - began)

    began = anyio.current_time()
    refused_at: list[float] = []
    async with anyio.create_task_group() as group:
        handler = acting(act, every(10))
        assert await handler == "fine"
    assert refused_at == [1]
    assert counts(handler) == {"done": 1, "retried": 1}


def in_real_time(backend: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` in an event loop with a real clock, but not for ever."""

    async def bounded() -> None:
        with anyio.fail_after(PATIENCE):
            await main()

    anyio.run(bounded, backend=backend)


@on_each_backend
def test_r5_sync_step_is_retried(backend: str) -> None:
    class Sync(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none()))
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            info = ctx.retry_info()
            threads.append(threading.get_ident())
            if info.retry_number < 2:
                raise ProviderError(info.retry_number)
            return StopEvent(result=(info.retry_number, repr(info.last_exception)))

    async def main() -> None:
        assert await Sync().run() == (2, "ProviderError(1)")

    threads: list[int] = []
    in_real_time(backend, main)
    assert len(threads) == 3
    assert threading.get_ident() not in threads


@on_each_backend
def test_r5_retried_sync_step_gets_its_answers_again(backend: str) -> None:
    class Sync(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none()))
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ask = functools.partial(ctx.wait_for_event, Answer)
            got = [anyio.from_thread.run(ask, Question(text=word)).text for word in "ab"]
            if not ctx.retry_info().retry_number:
                raise ProviderError
            return StopEvent(result=got)

    async def main() -> None:
        handler = Sync().run()
        async for event in handler.stream_events():
            if isinstance(event, Question):
                questions.append(event.text)
                await handler.send_event(Answer(text=event.text.upper()))
        assert await handler == ["A", "B"]

    questions: list[str] = []
    in_real_time(backend, main)
    assert questions == ["a", "b"]


LATE_ACTS: list[Callable[[Context], Any]] = [
    lambda ctx: ctx.write_event_to_stream(Note(text="late")),
    lambda ctx: ctx.send_event(StopEvent(result="late")),
    lambda ctx: ctx.collect_events(Item(), [Item]),
    lambda ctx: anyio.from_thread.run(ctx.wait_for_event, Answer),
]


@on_each_backend
def test_r8_thread_of_a_timed_out_attempt_is_refused_while_the_next_one_runs(backend: str) -> None:
    class Slow(Workflow):
        @step(num_workers=1, timeout=0.5, retry_policy=retry_policy(wait=wait_none()))
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ctx.retry_info().retry_number:
                release.set()
                assert over.wait(PATIENCE)
                return StopEvent(result="attempt 2")
            assert release.wait(PATIENCE)
            for act in LATE_ACTS:
                try:
                    outcomes.append(act(ctx))
                except Exception as exc:
                    outcomes.append(exc)
            over.set()
            return StopEvent(result="attempt 1")

    async def main() -> None:
        handler = Slow().run()
        events, _ = await check_ending(handler)
        assert texts(events) == []
        assert await handler == "attempt 2"
        assert counts(handler) == {"done": 1, "retried": 1}

    release, over = threading.Event(), threading.Event()
    outcomes: list[Any] = []
    in_real_time(backend, main)
    assert [type(outcome) for outcome in outcomes] == [WorkflowRuntimeError] * 4
    assert all("ended" in str(outcome) for outcome in outcomes)
