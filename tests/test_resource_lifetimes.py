"""When resources are opened and closed, and what happens if that fails (P5)."""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from inspect import Parameter, Signature
from typing import Annotated, Any

import anyio
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    catch_error,
    step,
)
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.resource import Resource
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .resources import Broken, Store, hang, run_program_that_ends, shape, using
from .running import (
    caught_cancellation,
    check_ending,
    on_each_backend,
    run_virtually,
    texts,
)
from .samples import Item, Note, ProviderError

pytestmark = pytest.mark.anyio

# --- How long they live ---------------------------------------------------------------------------


class Endings:
    """The ways in which a run can end, and what each looks like from outside."""

    last = {
        "stop": StopEvent,
        "failure": WorkflowFailedEvent,
        "deadline": WorkflowTimedOutEvent,
        "cancel": WorkflowCancelledEvent,
        "loop": WorkflowCancelledEvent,
        "block": WorkflowCancelledEvent,
        "stall": WorkflowFailedEvent,
    }

    def __init__(self, how: str, at: float) -> None:
        self.how, self.at = how, at

    @property
    def timeout(self) -> float | None:
        return self.at if self.how == "deadline" else None

    async def in_step(self) -> StopEvent | None:
        """Be the last act of a step, if it is a step that ends the run."""
        if self.how == "stall":
            return None
        await anyio.sleep(self.at if self.how in ("stop", "failure") else 100_000)
        if self.how == "failure":
            raise ProviderError
        return StopEvent()

    async def outside(self, handler: WorkflowHandler[Any]) -> None:
        """End the run, or wait until it ends; not if it is to end with the loop."""
        if self.how == "block":
            with suppress(ProviderError):
                async with handler:
                    await anyio.sleep(self.at)
                    raise ProviderError
        if self.how in ("cancel", "loop"):
            await anyio.sleep(self.at)
        if self.how == "cancel":
            await handler.cancel_run()
        if self.how != "loop":
            await check_ending(handler)

    def check(self, handler: WorkflowHandler[Any]) -> None:
        assert type(handler.get_stop_event()) is self.last[self.how]


@attrs.frozen
class Plan:
    """A resource: how it is made, and which of those before it it needs."""

    scoped: bool
    cache: bool
    opening: float
    closing: float
    needs: frozenset[int]


@st.composite
def plans(draw: st.DrawFn) -> list[Plan]:
    found: list[Plan] = []
    for n in range(draw(st.integers(1, 5))):
        needs = draw(st.frozensets(st.integers(0, n - 1), max_size=3)) if n else frozenset[int]()
        found.append(
            Plan(
                scoped=draw(st.integers(0, 3)) > 0,
                cache=draw(st.integers(0, 3)) > 0,
                opening=draw(st.sampled_from([0, 0, 1, 2])),
                closing=draw(st.sampled_from([0, 1, 3])),
                needs=needs,
            )
        )
    return found


@attrs.define(eq=False)
class Thing:
    """One resource that was made."""

    n: int
    task: int
    needs: list["Thing"]
    alive: bool = True
    had_time: bool = False


class World:
    """Makes what the plans say, and checks that it lives as long as it should."""

    def __init__(self, plans: list[Plan]) -> None:
        self.plans = plans
        self.things: list[Thing] = []
        self.stacks: dict[int, list[Thing]] = {}
        self.faults: list[str] = []
        self.handler: WorkflowHandler[Any] | None = None
        self.marks: list[Any] = []
        for n in range(len(plans)):
            self.marks.append(Annotated[Any, Resource(self.factory(n), plans[n].cache)])

    def signature(self, wanted: frozenset[int], *params: Parameter) -> Signature:
        asked = [
            Parameter(f"x{n}", Parameter.KEYWORD_ONLY, annotation=self.marks[n])
            for n in sorted(wanted)
        ]
        return Signature([*params, *asked], return_annotation=None)

    def expect(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)

    def factory(self, n: int) -> Any:
        plan = self.plans[n]

        async def plain(**given: Thing) -> Thing:
            await anyio.sleep(plan.opening)
            self.expect(all(thing.alive for thing in given.values()), "made of what is closed")
            return Thing(n, 0, list(given.values()))

        async def scoped(**given: Thing) -> AsyncIterator[Thing]:
            await anyio.sleep(plan.opening)
            thing = self.open(n, given)
            try:
                yield thing
            finally:
                self.close(thing)
                await anyio.sleep(plan.closing)
                thing.had_time = True

        make = scoped if plan.scoped else plain
        make.__signature__ = self.signature(plan.needs)  # type: ignore[attr-defined]
        return make

    def open(self, n: int, given: dict[str, Thing]) -> Thing:
        self.expect({thing.n for thing in given.values()} == self.plans[n].needs, "wrong needs")
        self.expect(all(thing.alive for thing in given.values()), "made of what is closed")
        thing = Thing(n, anyio.get_current_task().id, list(given.values()))
        self.things.append(thing)
        self.stacks.setdefault(thing.task, []).append(thing)
        return thing

    def close(self, thing: Thing) -> None:
        assert self.handler is not None
        self.expect(not self.handler.is_done(), "closed after the terminal event")
        self.expect(anyio.get_current_task().id == thing.task, "closed by another task")
        self.expect(self.stacks[thing.task].pop() is thing, "not closed in reverse order")
        users = [user for user in self.things if user.alive and thing in user.needs]
        self.expect(not users, "closed before what needs it")
        thing.alive = False

    def workflow(self, ending: Endings, steps: list[tuple[float, frozenset[int]]]) -> Workflow:
        """Return a workflow with two steps that use resources, and one that may end it."""

        def user(seconds: float, wanted: frozenset[int]) -> Any:
            async def work(self_: Any, ev: StartEvent, **given: Thing) -> None:
                self.expect({thing.n for thing in given.values()} == wanted, "wrong arguments")
                await anyio.sleep(seconds)
                self.expect(all(thing.alive for thing in given.values()), "closed too early")

            params = [
                Parameter("self_", Parameter.POSITIONAL_OR_KEYWORD),
                Parameter("ev", Parameter.POSITIONAL_OR_KEYWORD, annotation=StartEvent),
            ]
            work.__signature__ = self.signature(wanted, *params)  # type: ignore[attr-defined]
            return step(work)

        class Random(Workflow):
            one = user(*steps[0])
            two = user(*steps[1])

            @step
            async def end(self, ev: StartEvent) -> StopEvent | None:
                return await ending.in_step()

        return Random(timeout=ending.timeout, cleanup_timeout=1000)


@on_each_backend
@pytest.mark.parametrize("how", list(Endings.last))
@given(st.data())
@settings(max_examples=30)
def test_p5_whatever_is_opened_is_closed_in_reverse_order_before_the_end(
    backend: str, how: str, data: st.DataObject
) -> None:
    world = World(data.draw(plans()))
    wanted = st.frozensets(st.integers(0, len(world.plans) - 1), min_size=1)
    steps = [(data.draw(st.sampled_from([0, 1, 4])), data.draw(wanted)) for _ in range(2)]
    ending = Endings(how, data.draw(st.sampled_from([0.5, 1, 1.5, 2, 3, 4.5, 6, 20])))

    async def main() -> None:
        world.handler = world.workflow(ending, steps).run()
        await ending.outside(world.handler)

    run_virtually(backend, main)
    assert world.faults == []
    assert world.handler is not None
    ending.check(world.handler)
    assert [thing for thing in world.things if thing.alive] == []
    kept = [thing.n for thing in world.things if world.plans[thing.n].cache]
    assert len(set(kept)) == len(kept), "made once"
    assert len({thing.task for thing in world.things if world.plans[thing.n].cache}) <= 1
    if how != "loop":
        assert all(thing.had_time for thing in world.things if world.plans[thing.n].cache)


@pytest.mark.parametrize("how", ["stop", "failure", "deadline", "cancel", "block", "stall"])
async def test_p5_closing_takes_its_time_however_the_run_ends(how: str) -> None:
    store = Store()
    ending = Endings(how, 2)

    class Ends(Workflow):
        @step
        async def work(
            self, ev: StartEvent, it: Annotated[Any, Resource(store.factory("it", closing=4))]
        ) -> StopEvent | None:
            return await ending.in_step()

    handler = Ends(timeout=ending.timeout).run()
    began = anyio.current_time()
    await ending.outside(handler)
    ending.check(handler)
    assert store.log == ["opening it", "opened it", "closing it", "closed it"]
    assert anyio.current_time() - began == (4 if how == "stall" else 6)


async def test_t6_the_stream_gets_what_resources_write_before_the_terminal_event() -> None:
    async def factory() -> AsyncIterator[str]:
        ctx = Context.get_step_context()
        ctx.write_event_to_stream(Note(text="opened"))
        try:
            yield "it"
        finally:
            await anyio.sleep(1)
            ctx.write_event_to_stream(Note(text="closed"))
            done.append(handler.is_done())

    done: list[bool] = []
    handler = using(factory).run()
    events, last = await check_ending(handler)
    assert texts(events) == ["opened", "closed"]
    assert last is events[-1]
    assert done == [False]


async def test_t4_nothing_that_comes_while_resources_close_changes_the_outcome() -> None:
    store = Store()
    handler = using(store.factory("it", closing=4), timeout=3).run()
    await anyio.sleep(1)
    assert (handler.statistics().state, handler.is_done()) == ("ending", False)
    await handler.cancel_run(timeout=1)
    _, last = await check_ending(handler)  # the deadline has passed meanwhile
    assert type(last) is StopEvent
    assert store.log[-1] == "closed it"


@pytest.mark.parametrize("how", ["stop", "failure", "deadline", "cancel"])
async def test_p5_closing_is_bounded(how: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    ending = Endings(how, 2)

    class Ends(Workflow):
        @step
        async def work(
            self,
            ev: StartEvent,
            quick: Annotated[Any, Resource(store.factory("quick"))],
            slow: Annotated[Any, Resource(store.factory("slow", closing=1000))],
        ) -> StopEvent | None:
            return await ending.in_step()

    handler = Ends(timeout=ending.timeout, cleanup_timeout=7).run()
    began = anyio.current_time()
    await ending.outside(handler)
    ending.check(handler)
    assert anyio.current_time() - began == 9
    assert [line for line in store.log if line.startswith("closing")] == [
        "closing slow",
        "closing quick",
    ]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        f"run {handler.run_id} of Ends: cancelled its resources, which did not close within 7 "
        "seconds: slow, quick"
    ]


async def test_p5_no_time_for_cleanup_is_enough_for_what_closes_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def factory() -> Iterator[str]:
        yield "it"
        log.append("closed")

    log: list[str] = []
    workflow = using(factory, cleanup_timeout=0)
    for _ in range(20):
        await workflow.run()
    assert log == ["closed"] * 20
    assert [record.getMessage() for record in caplog.records] == []


@on_each_backend
def test_o2_resources_are_closed_when_the_loop_ends(backend: str) -> None:
    async def main() -> WorkflowHandler[Any]:
        handler = using(store.factory("it"), hang).run()
        await anyio.sleep(1)
        return handler

    store = Store()
    handler = run_virtually(backend, main)
    assert shape(store.log) == ["opened it", "closed it"]
    assert type(handler.get_stop_event()) is WorkflowCancelledEvent


@on_each_backend
def test_o2_a_program_that_ends_closes_its_resources_and_warns_of_nothing(backend: str) -> None:
    done = run_program_that_ends(backend, scope="run")
    assert (done.stdout, done.stderr) == ("opened\nstep ends\nclosed\n", "")
    assert done.returncode == 0


async def test_r7_a_place_is_free_when_the_resources_are_closed() -> None:
    store = Store()
    workflow = using(store.factory("it", opening=1, closing=2), num_concurrent_runs=1)
    began = anyio.current_time()
    for handler in [workflow.run() for _ in range(3)]:
        await handler
    assert anyio.current_time() - began == 9
    assert shape(store.log) == ["opened it", "closed it"] * 3


# --- What fails to close --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Broken("it"), ExceptionGroup("all", [Broken()])], ids=repr)
async def test_p5_a_failure_to_close_fails_a_run_that_went_well(error: Exception) -> None:
    store = Store()
    handler = using(store.factory("database", broken=error)).run()
    events, last = await check_ending(handler)
    assert events == [last]
    assert isinstance(last, WorkflowFailedEvent)
    assert (last.step_name, last.attempts, last.elapsed_seconds) == ("database", None, None)
    assert last.exception is error
    assert handler.get_stop_event() is last
    with pytest.raises(WorkflowRuntimeError) as caught:
        await handler.send_event(Item())
    assert str(caught.value) == (
        f"Item cannot be sent: the run has ended, resource database failed with "
        f"{type(error).__name__}"
    )


async def test_p3_after_a_failure_to_close_the_context_owes_nothing() -> None:
    store = Store()
    errors: list[BaseException | None] = [Broken(), None]

    async def factory() -> AsyncIterator[str]:
        await Context.get_step_context().store.set("opened", True)
        yield "it"
        if error := errors.pop(0):
            raise error

    async def act(it: str) -> Any:
        store.log.append(it)
        return await Context.get_step_context().store.get("opened")

    workflow = using(factory, act)
    handler = workflow.run()
    await check_ending(handler)
    assert handler.ctx.to_dict()["work"] is None
    assert await workflow.run(ctx=handler.ctx, again=True) is True
    assert store.log == ["it", "it"]


async def test_p5_a_child_run_that_fails_to_close_fails_the_step_that_awaits_it() -> None:
    store = Store()
    broken = Broken()
    inner = using(store.factory("of the child", broken=broken))

    async def act(it: Any) -> Any:
        with pytest.raises(Broken) as caught:
            await inner.run()
        raise caught.value

    _, last = await check_ending(using(store.factory("of the parent"), act).run())
    assert isinstance(last, WorkflowFailedEvent)
    assert (last.step_name, last.exception) == ("work", broken)
    assert shape(store.log)[2:] == ["closed of the child", "closed of the parent"]


async def test_p5_the_first_failure_to_close_counts_and_all_are_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store()
    errors = [Broken("first"), Broken("second"), Broken("third")]

    class Three(Workflow):
        @step
        async def work(
            self,
            ev: StartEvent,
            first: Annotated[Any, Resource(store.factory("first", broken=errors[0]))],
            second: Annotated[Any, Resource(store.factory("second", broken=errors[1]))],
            third: Annotated[Any, Resource(store.factory("third", broken=errors[2]))],
        ) -> StopEvent:
            return StopEvent()

    handler = Three().run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert (last.step_name, last.exception) == ("third", errors[2])
    assert shape(store.log)[3:] == ["closed third", "closed second", "closed first"]
    assert [record.getMessage() for record in caplog.records] == [
        f"run {handler.run_id} of Three: resource second failed to close",
        f"run {handler.run_id} of Three: resource first failed to close",
    ]


@pytest.mark.parametrize("how", ["failure", "deadline", "cancel", "block", "stall"])
async def test_p5_a_failure_to_close_is_only_logged_when_the_run_failed(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    ending = Endings(how, 2)

    class Ends(Workflow):
        @step
        async def work(
            self, ev: StartEvent, it: Annotated[Any, Resource(store.factory("it", broken=Broken()))]
        ) -> StopEvent | None:
            return await ending.in_step()

    handler = Ends(timeout=ending.timeout).run()
    await ending.outside(handler)
    ending.check(handler)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"run {handler.run_id} of Ends: resource it failed to close")
    ]


async def test_p5_an_attempt_fails_with_what_is_its_own_and_does_not_close() -> None:
    store = Store()
    broken = Broken()
    workflow = using(
        store.factory("it", broken=broken),
        cache=False,
        policy=retry_policy(wait=wait_fixed(1), stop=stop_after_attempt(2)),
    )
    _, last = await check_ending(workflow.run())
    assert isinstance(last, WorkflowFailedEvent)
    assert (last.step_name, last.attempts, last.exception) == ("work", 2, broken)


# --- What cannot be made --------------------------------------------------------------------------


class Fails:
    """Factories that fail a number of times."""

    def __init__(self, times: int, error: Callable[[], BaseException] = Broken) -> None:
        self.left, self.error = times, error
        self.raised: list[BaseException] = []

    def sync(self) -> str:
        if self.left:
            self.left -= 1
            self.raised.append(self.error())
            raise self.raised[-1]
        return "made"

    async def generator(self) -> AsyncIterator[str]:
        await anyio.sleep(1)
        yield self.sync()


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", ["sync", "generator"])
async def test_x1_a_factory_that_fails_fails_the_attempt(kind: str, cache: bool) -> None:
    fails = Fails(2)
    workflow = using(getattr(fails, kind), cache=cache, policy=retry_policy(wait=wait_fixed(1)))
    assert await workflow.run() == "made"
    fails.left = 3
    _, last = await check_ending(workflow.run())
    assert isinstance(last, WorkflowFailedEvent)
    assert (last.step_name, last.attempts) == ("work", 3)
    assert last.exception is fails.raised[-1]


@pytest.mark.parametrize("cache", [True, False])
async def test_x4_a_factory_that_fails_is_recovered(cache: bool) -> None:
    fails = Fails(1)

    class Recovers(Workflow):
        @step
        async def work(
            self, ev: StartEvent, it: Annotated[str, Resource(fails.generator, cache)]
        ) -> StopEvent:
            return StopEvent()

        @catch_error
        async def rescue(
            self, ev: StepFailedEvent, it: Annotated[str, Resource(fails.generator, cache)]
        ) -> StopEvent:
            return StopEvent(result=(ev.step_name, ev.exception, it))

    assert await Recovers().run() == ("work", *fails.raised, "made")


@pytest.mark.parametrize("cache", [True, False])
async def test_t8_a_factory_that_raises_a_cancellation_fails_the_attempt(cache: bool) -> None:
    async def factory() -> str:
        if not strays:
            strays.append(await caught_cancellation())
            raise strays[0]
        return "made"

    strays: list[BaseException] = []
    policy = retry_policy(wait=wait_fixed(1))
    assert await using(factory, cache=cache, policy=policy).run() == "made"
    strays.clear()
    _, last = await check_ending(using(factory, cache=cache).run())
    assert isinstance(last, WorkflowFailedEvent)
    assert isinstance(last.exception, WorkflowRuntimeError)
    assert last.exception.__cause__ is strays[0]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_t8_a_factory_that_raises_no_exception_fails_the_run_at_once(
    error: type[BaseException], cache: bool
) -> None:
    fails = Fails(1, error)
    _, last = await check_ending(using(fails.sync, cache=cache, policy=retry_policy()).run())
    assert isinstance(last, WorkflowFailedEvent)
    assert (last.step_name, last.attempts) == ("work", 1)
    assert last.exception is fails.raised[0]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("how", ["deadline", "cancel", "block"])
async def test_p5_a_factory_that_hangs_is_cancelled_with_the_run(how: str, cache: bool) -> None:
    store = Store()
    ending = Endings(how, 2)
    workflow = using(store.factory("it", opening=1000), cache=cache, timeout=ending.timeout)
    handler = workflow.run()
    began = anyio.current_time()
    await ending.outside(handler)
    ending.check(handler)
    assert anyio.current_time() - began == 2
    assert store.log == ["opening it"]


async def test_r8_a_factory_that_hangs_fails_the_attempt_at_its_timeout() -> None:
    store = Store()
    workflow = using(store.factory("it", opening=1000), cache=False, step_timeout=3)
    began = anyio.current_time()
    _, last = await check_ending(workflow.run())
    assert isinstance(last, WorkflowFailedEvent)
    assert str(last.exception) == "step work took longer than 3 s"
    assert anyio.current_time() - began == 3


async def test_r8_a_build_goes_on_after_the_timeout_of_who_asked() -> None:
    store = Store()
    policy = retry_policy(wait=wait_fixed(0))
    workflow = using(store.factory("it", opening=7), step_timeout=3, policy=policy)
    began = anyio.current_time()
    assert await workflow.run() == "it 1"
    assert anyio.current_time() - began == 7
