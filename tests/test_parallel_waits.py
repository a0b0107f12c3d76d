"""Several waits at once, and the slot of a step that waits (W3, W4, R2)."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from contextlib import suppress
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import Context, InputRequiredEvent, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import WorkflowCancelledByUser, WorkflowRuntimeError
from anyio_workflows.events import UnhandledEvent
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .running import answer, busy, check_ending, on_each_backend, read, run_virtually
from .samples import Act, Answer, Item, Note, OneStep, Question

pytestmark = pytest.mark.anyio


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

    handler = OneStep(act).run()
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

    handler = OneStep(act).run()
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
    handler = OneStep(act).run()
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

    handler = OneStep(act).run()
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
    handler = OneStep(act).run()
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
    handler = OneStep(act).run()
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


async def test_w3_the_time_of_an_open_wait_runs_since_it_first_began() -> None:
    """Not since the attempt that begins it again."""
    ended: list[float] = []

    class Asks(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(20), stop=stop_after_attempt(2)))
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ctx.retry_info().retry_number:
                with pytest.raises(TimeoutError):
                    await ctx.wait_for_event(Answer, timeout=100)
                ended.append(anyio.current_time())
                return StopEvent()
            with anyio.move_on_after(30):
                await ctx.wait_for_event(Answer, timeout=100)
            raise ValueError("no")

    started = anyio.current_time()
    await Asks(timeout=None).run()
    assert [round(end - started) for end in ended] == [100]


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
    handler = OneStep(act, timeout=1 if how == "time out" else 50).run()
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
    await OneStep(act).run()
    with pytest.raises(WorkflowRuntimeError, match="it returned StopEvent"):
        await contexts[0].wait_for_event(Answer)


# --- R2: the slot is given back -------------------------------------------------------------------


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


@on_each_backend
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

    handler = OneStep(act).run()
    assert [type(event) async for event in handler.stream_events()] == [StopEvent]
    assert await handler == "refused"
