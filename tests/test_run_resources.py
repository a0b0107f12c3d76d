"""Resources in runs: who gets them, how long they live, and what their failures do (P5, T6)."""

import contextvars
import gc
import json
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import anyio
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Event,
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
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import (
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowValidationError,
)
from anyio_workflows.resource import Resource, ResourceConfig
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .conftest import BACKENDS
from .running import Note, check_ending, run_script, run_virtually, texts

pytestmark = pytest.mark.anyio


class Item(Event):
    n: int = 0


class Done(Event):
    n: int = 0


class Flaky(Exception):
    """What the steps here raise."""


class Broken(Exception):
    """What the resources here raise."""


class Store:
    """Makes resources of any name, and keeps what happens to them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.made = 0

    def factory(
        self,
        name: str,
        *,
        opening: float = 0,
        closing: float = 0,
        broken: BaseException | None = None,
    ) -> Callable[[], AsyncIterator[str]]:
        """Return a generator function that takes its time, and may fail to close."""

        async def make() -> AsyncIterator[str]:
            self.log.append(f"opening {name}")
            await anyio.sleep(opening)
            self.made += 1
            self.log.append(f"opened {name}")
            try:
                yield f"{name} {self.made}"
            finally:
                self.log.append(f"closing {name}")
                await anyio.sleep(closing)
                self.log.append(f"closed {name}")
            if broken is not None:
                raise broken

        make.__qualname__ = name
        return make


Act = Callable[[Any], Awaitable[Any]]


async def idle(given: Any) -> Any:
    """Give back what was given."""
    return given


async def hang(given: Any) -> Any:
    await anyio.sleep_forever()


async def fail(given: Any) -> Any:
    raise Flaky


def using(
    factory: Callable[..., Any],
    act: Act = idle,
    *,
    cache: bool = True,
    policy: Any = None,
    step_timeout: float | None = None,
    **kwargs: Any,
) -> Workflow:
    """Return a workflow whose one step is given a resource, and does the act with it."""

    class Uses(Workflow):
        @step(retry_policy=policy, timeout=step_timeout)
        async def work(
            self, ev: StartEvent, it: Annotated[Any, Resource(factory, cache)]
        ) -> StopEvent:
            return StopEvent(result=await act(it))

    return Uses(**{"timeout": None, **kwargs})


def shape(log: list[str]) -> list[str]:
    """Leave out of a log when things began."""
    return [line for line in log if not line.startswith(("opening", "closing"))]


# --- Who gets them --------------------------------------------------------------------------------


class Kinds(Workflow):
    """Asks for the same resources in a step of every kind."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"timeout": None, **kwargs})
        self.seen: list[tuple[str, object, object]] = []
        self.tries = 0


def kinds(kept: Callable[..., Any], fresh: Callable[..., Any]) -> Kinds:
    """Make an instance whose steps ask for one resource that is cached, and one that is not."""
    Kept = Annotated[Any, Resource(kept)]  # noqa: N806
    Fresh = Annotated[Any, Resource(fresh, cache=False)]  # noqa: N806

    class AllKinds(Kinds):
        @step
        async def fork(self, ev: StartEvent, one: Kept, two: Fresh) -> list[Item]:
            self.seen.append(("fork", one, two))
            return [Item()]

        @step
        def thread(self, two: Fresh, ev: Item, *, one: Kept) -> Done:
            self.seen.append(("thread", one, two))
            return Done()

        @step(timeout=100)
        async def join(self, one: Kept, ctx: Context, evs: list[Done], two: Fresh) -> Item | Done:
            self.seen.append(("join", one, two))
            raise Flaky

        @catch_error(for_steps=["join"])
        async def rescue(self, ev: StepFailedEvent, one: Kept, two: Fresh) -> "Last":
            self.seen.append(("rescue", one, two))
            return Last()

        @step(retry_policy=retry_policy(wait=wait_fixed(1)))
        async def last(self, ev: "Last", one: Kept, two: Fresh) -> StopEvent:
            self.seen.append(("last", one, two))
            self.tries += 1
            if self.tries % 3:
                raise Flaky
            return StopEvent()

    return AllKinds()


class Last(Event):
    pass


ALL_STEPS = ["fork", "thread", "join", "rescue", "last", "last", "last"]


async def test_p5_steps_of_every_kind_share_what_is_cached_and_have_the_rest_to_themselves() -> (
    None
):
    store = Store()
    workflow = kinds(store.factory("kept"), store.factory("fresh"))
    await check_ending(workflow.run())
    assert [name for name, _, _ in workflow.seen] == ALL_STEPS
    assert [one for _, one, _ in workflow.seen] == ["kept 1"] * 7
    assert [two for _, _, two in workflow.seen] == [f"fresh {n}" for n in range(2, 9)]
    assert shape(store.log) == ["opened kept", *["opened fresh", "closed fresh"] * 7, "closed kept"]


async def test_p5_each_run_makes_its_own() -> None:
    store = Store()
    workflow = using(store.factory("it", opening=1))
    assert await workflow.run() == "it 1"
    one, two = workflow.run(), workflow.run()
    assert {await one, await two} == {"it 2", "it 3"}
    assert store.log.count("closed it") == 3


async def test_p5_what_no_step_that_starts_asks_for_is_not_made() -> None:
    store = Store()

    class Spares(Workflow):
        @step
        async def work(self, ev: StartEvent) -> Item | StopEvent:
            return StopEvent()

        @step
        async def spare(
            self, ev: Item, it: Annotated[Any, Resource(store.factory("it"))]
        ) -> None: ...

    await check_ending(Spares().run())
    assert store.log == []


async def test_p5_a_cached_resource_is_made_once_for_parallel_workers() -> None:
    store = Store()
    factory = store.factory("it", opening=2)

    class Pool(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(9)]

        @step(num_workers=3)
        async def work(self, ev: Item, it: Annotated[str, Resource(factory)]) -> Done:
            seen.add(it)
            return Done()

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    seen: set[str] = set()
    assert await Pool().run() == 9
    assert seen == {"it 1"}


async def test_p5_without_cache_it_is_closed_before_the_next_attempt() -> None:
    async def act(it: str) -> str:
        store.log.append(f"using {it}")
        if store.made < 3:
            raise Flaky
        return it

    store = Store()
    workflow = using(
        store.factory("it", closing=2), act, cache=False, policy=retry_policy(wait=wait_fixed(0))
    )
    assert await workflow.run() == "it 3"
    once = ["opening it", "opened it", "using it {}", "closing it", "closed it"]
    assert store.log == [line.format(n) for n in (1, 2, 3) for line in once]


async def test_p5_closing_counts_as_part_of_the_attempt() -> None:
    store = Store()
    handler = using(store.factory("it", closing=9), cache=False, step_timeout=5).run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert str(last.exception) == "step work took longer than 5 s"


async def test_p5_the_attempt_has_what_is_its_own_while_it_waits() -> None:
    store = Store()

    class Waits(Workflow):
        @step
        async def work(
            self,
            ctx: Context,
            ev: StartEvent,
            it: Annotated[str, Resource(store.factory("it"), cache=False)],
        ) -> StopEvent:
            await ctx.wait_for_event(Item)
            store.log.append("using it")
            return StopEvent()

    handler = Waits(timeout=None).run()
    await anyio.sleep(100)
    await handler.send_event(Item())
    await check_ending(handler)
    assert shape(store.log) == ["opened it", "using it", "closed it"]


async def test_p5_a_branch_that_is_cancelled_closes_what_is_its_own() -> None:
    store = Store()
    factory = store.factory("it")

    class Races(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step
        async def work(self, ev: Item, it: Annotated[Any, Resource(factory, cache=False)]) -> Done:
            await anyio.sleep(1 + ev.n)
            return Done(n=ev.n)

        @step
        async def join(
            self, evs: Annotated[list[Done], Collect(Take(1, cancel=True))]
        ) -> StopEvent:
            await anyio.sleep(1)
            return StopEvent(result=store.log.count("closing it"))

    assert await Races().run() == 3


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    "error",
    [Flaky(), StopAsyncIteration(), ExceptionGroup("of the step", [Flaky()]), KeyboardInterrupt()],
    ids=repr,
)
async def test_t5_what_a_step_raises_passes_its_resources_unchanged(
    error: BaseException, cache: bool
) -> None:
    async def act(it: Any) -> None:
        raise error

    async def factory() -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 1)
            yield

    _, last = await check_ending(using(factory, act, cache=cache).run())
    assert isinstance(last, WorkflowFailedEvent)
    assert last.exception is error


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
            raise Flaky
        return StopEvent()

    async def outside(self, handler: WorkflowHandler[Any]) -> None:
        """End the run, or wait until it ends; not if it is to end with the loop."""
        if self.how == "block":
            with suppress(Flaky):
                async with handler:
                    await anyio.sleep(self.at)
                    raise Flaky
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


@pytest.mark.parametrize("backend", BACKENDS)
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_o2_resources_are_closed_when_the_loop_ends(backend: str) -> None:
    async def main() -> WorkflowHandler[Any]:
        handler = using(store.factory("it"), hang).run()
        await anyio.sleep(1)
        return handler

    store = Store()
    handler = run_virtually(backend, main)
    assert shape(store.log) == ["opened it", "closed it"]
    assert type(handler.get_stop_event()) is WorkflowCancelledEvent


@pytest.mark.parametrize("backend", BACKENDS)
def test_o2_a_program_that_ends_closes_its_resources_and_warns_of_nothing(backend: str) -> None:
    done = run_script(
        f"""
        from typing import Annotated

        import anyio
        from anyio_workflows import StartEvent, StopEvent, Workflow, step
        from anyio_workflows.resource import Resource

        async def factory():
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                print("opened")
                try:
                    yield "it"
                finally:
                    print("closed")
                    group.cancel_scope.cancel()

        class Hangs(Workflow):
            @step
            async def work(
                self, ev: StartEvent, it: Annotated[str, Resource(factory)]
            ) -> StopEvent:
                started.set()
                await anyio.sleep_forever()

        async def main():
            global started
            started = anyio.Event()
            Hangs().run()
            await started.wait()

        anyio.run(main, backend="{backend}")
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("opened\nclosed\n", "", 0)


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


async def caught_cancellation() -> BaseException:
    """Return a genuine cancellation exception that has already been dealt with."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class() as exc:
            stray = exc
    return stray


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


# --- What factories may do ------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False])
async def test_p5_a_generator_may_hold_a_task_group(cache: bool) -> None:
    async def ticker() -> AsyncIterator[list[int]]:
        async def tick() -> None:
            while True:
                await anyio.sleep(1)
                ticks.append(len(ticks))

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            yield ticks
            group.cancel_scope.cancel()

    async def act(ticks: list[int]) -> list[int]:
        await anyio.sleep(3.5)
        return list(ticks)

    ticks: list[int] = []
    handler = using(ticker, act, cache=cache).run()
    await check_ending(handler)
    assert await handler == [0, 1, 2]
    await anyio.sleep(10)
    assert ticks == [0, 1, 2]


async def test_p5_a_background_task_of_a_resource_that_fails_fails_the_run_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fragile() -> AsyncIterator[str]:
        async def crash() -> None:
            await anyio.sleep(1)
            raise Broken

        async with anyio.create_task_group() as group:
            group.start_soon(crash)
            yield "it"

    async def act(it: str) -> None:
        await anyio.sleep(3)

    handler = using(fragile, act).run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert last.step_name == "fragile"
    assert isinstance(last.exception, ExceptionGroup)
    assert [type(exc) for exc in last.exception.exceptions] == [Broken]
    assert [record.getMessage() for record in caplog.records] == [
        f"run {handler.run_id} of Uses: resource fragile failed while it was open; closed because "
        "of that: fragile"
    ]


colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@pytest.mark.parametrize("cache", [True, False])
async def test_o7_factories_see_the_values_of_the_caller_and_leak_nothing(cache: bool) -> None:
    def factory() -> str:
        found = colour.get()
        colour.set("of the factory")
        return found

    async def act(it: str) -> tuple[str, str]:
        if cache:
            return it, colour.get()
        return it, "of the caller"

    token = colour.set("of the caller")
    handler = using(factory, act, cache=cache).run()
    colour.reset(token)
    assert await handler == ("of the caller", "of the caller")
    assert colour.get() == "none"


async def test_o7_what_a_factory_of_an_attempt_sets_does_not_reach_other_steps() -> None:
    def factory() -> str:
        colour.set("of the factory")
        return "it"

    class Two(Workflow):
        @step
        async def first(
            self, ev: StartEvent, it: Annotated[str, Resource(factory, cache=False)]
        ) -> Item:
            return Item()

        @step
        async def second(self, ev: Item) -> StopEvent:
            return StopEvent(result=colour.get())

    assert await Two().run() == "none"


async def test_p5_a_cached_resource_has_a_context_that_is_no_steps() -> None:
    async def factory() -> Any:
        ctx = Context.get_step_context()
        await ctx.store.set("by", "factory")
        for ask in (ctx.retry_info, lambda: ctx.collect_events(Item(), [Item])):
            with pytest.raises(WorkflowRuntimeError, match="only a step can"):
                ask()
        with pytest.raises(WorkflowRuntimeError, match="only a step can wait"):
            await ctx.wait_for_event(Item)
        return await ctx.running_steps()

    handler = using(factory).run()
    assert await handler == ["work"]
    assert await handler.ctx.store.get("by") == "factory"


async def test_p5_a_resource_of_an_attempt_has_the_context_of_its_step() -> None:
    async def factory() -> Any:
        ctx = Context.get_step_context()
        return ctx.retry_info().retry_number, ctx

    async def act(it: Any) -> Any:
        assert it[1] is Context.get_step_context()
        if it[0] == 0:
            raise Flaky
        return it[0]

    workflow = using(factory, act, cache=False, policy=retry_policy(wait=wait_fixed(1)))
    assert await workflow.run() == 1


async def test_p5_a_resource_may_send_events() -> None:
    async def factory() -> str:
        Context.get_step_context().send_event(Item(n=7))
        return "it"

    class Takes(Workflow):
        @step
        async def work(self, ev: StartEvent, it: Annotated[str, Resource(factory)]) -> None:
            await anyio.sleep_forever()

        @step
        async def take(self, ev: Item) -> StopEvent:
            return StopEvent(result=ev.n)

    assert await Takes(skip_graph_checks=["reachability"]).run() == 7


@pytest.mark.parametrize("cache", [True, False])
async def test_o5_a_run_started_in_a_factory_is_a_child(cache: bool) -> None:
    async def factory() -> WorkflowHandler[Any]:
        return inner.run()

    store = Store()
    inner = using(store.factory("of the child", closing=2), hang)

    async def act(child: WorkflowHandler[Any]) -> WorkflowHandler[Any]:
        await anyio.sleep(1)
        return child

    handler = using(factory, act, cache=cache).run()
    await check_ending(handler)
    child = await handler
    assert store.log[-1] == "closed of the child"
    _, last = await check_ending(child)
    assert isinstance(last, WorkflowCancelledEvent)


@pytest.mark.parametrize("cache", [True, False])
async def test_o5_a_factory_may_use_the_result_of_a_child_run(cache: bool) -> None:
    async def factory() -> str:
        return f"from {await using(store.factory('inner')).run()}"

    store = Store()
    assert await using(factory, cache=cache).run() == "from inner 1"
    assert store.log[-1] == "closed inner"


async def test_o5_no_run_is_started_while_resources_close() -> None:
    async def factory() -> AsyncIterator[str]:
        yield "it"
        using(Store().factory("late")).run()

    handler = using(factory).run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert str(last.exception) == (
        "a step cannot start a run: the run is ending, it returned StopEvent"
    )


async def test_t10_a_factory_may_cancel_its_run_and_cannot_wait_for_it() -> None:
    async def factory() -> None:
        with pytest.raises(WorkflowRuntimeError, match="a step cannot wait for the end of its own"):
            await handler
        await handler.cancel_run()
        reached.append("after the end")

    reached: list[str] = []
    handler = using(factory).run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowCancelledEvent)
    assert reached == []


# --- Files ----------------------------------------------------------------------------------------


@attrs.define
class Limits:
    size: int
    names: list[str] = attrs.field(factory=list)


def configured(file: Path, selector: str | None = None, kind: Any = Limits) -> Workflow:
    """Return a workflow that gives the contents of a file."""

    class Reads(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(1)))
        async def work(
            self, ev: StartEvent, limits: Annotated[kind, ResourceConfig(str(file), selector)]
        ) -> StopEvent:
            return StopEvent(result=limits)

        @step
        def again(
            self, ev: StartEvent, limits: Annotated[kind, ResourceConfig(str(file), selector)]
        ) -> None: ...

    return Reads(timeout=None)


@pytest.mark.parametrize("kind", ["json", "toml"])
async def test_p5_a_step_is_given_the_contents_of_a_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"settings.{kind}"
    text = '[server.limits]\nsize = 3\nnames = ["a"]\n'
    if kind == "json":
        text = json.dumps({"server": {"limits": {"size": 3, "names": ["a"]}}})
    file.write_text(text)
    assert await configured(file, "server.limits").run() == Limits(3, ["a"])
    assert await configured(file, "server.limits.size", int).run() == 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "cannot be read: No such file or directory"),
        ("size = ", "no valid TOML: "),
        ("size = '5'", "$.size: expected int, got '5' (str)"),
    ],
)
async def test_p5_a_file_that_does_not_fit_fails_the_attempts(
    text: str | None, fault: str, tmp_path: Path
) -> None:
    file = tmp_path / "limits.toml"
    if text is not None:
        file.write_text(text)
    _, last = await check_ending(configured(file).run())
    assert isinstance(last, WorkflowFailedEvent)
    assert isinstance(last.exception, WorkflowConfigurationError)
    assert str(last.exception).startswith(f"{file}: {fault}")


async def test_p5_a_file_is_read_again_when_the_step_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "limits.json"
    workflow = configured(file)
    workflow_run = workflow.run()
    await anyio.sleep(0.5)
    file.write_text('{"size": 3}')
    with pytest.raises(WorkflowConfigurationError):
        await workflow_run  # the other step is not tried again
    assert await workflow.run() == Limits(3)


# --- Faults of the graph --------------------------------------------------------------------------


def chicken(egg: "Annotated[str, Resource(lay)]") -> str:
    return "chicken"


def lay(chicken: "Annotated[str, Resource(chicken)]") -> str:
    return "egg"


def greedy(more) -> str:  # type: ignore[no-untyped-def]
    return "more"


def test_v1_faults_of_resources_are_reported_where_the_class_is_defined() -> None:
    with pytest.raises(WorkflowValidationError) as caught:

        class Faulty(Workflow):
            @step
            async def first(self, ev: StartEvent, it: Annotated[str, Resource(chicken)]) -> Item:
                return Item()

            @step
            async def second(self, ev: Item, it: Annotated[str, Resource(greedy)]) -> StopEvent:
                return StopEvent()

    assert str(caught.value) == (
        "Faulty has 2 faults:\n"
        "  1. step first: resources depend on each other: chicken -> lay -> chicken; let one of them "
        "do without the next\n"
        "  2. step second: resource greedy: parameter 'more' is no resource and has no default; "
        "annotate it, as in 'more: Annotated[T, Resource(make_more)]'"
    )


def undefined(it: "Annotated[str, Resource(never_defined)]") -> str:  # type: ignore[name-defined] # noqa: F821
    return it


def test_v1_names_that_are_not_defined_are_reported_at_the_latest_when_it_is_instantiated() -> None:
    class Undefined(Workflow):
        @step
        async def work(self, ev: StartEvent, it: Annotated[str, Resource(undefined)]) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowValidationError) as caught:
        Undefined()
    assert str(caught.value) == (
        "Undefined: step work: resource undefined: parameter 'it' is annotated with "
        "'never_defined', which is not defined"
    )


async def test_p5_inherited_steps_ask_for_what_they_asked_for() -> None:
    store = Store()
    base = type(using(store.factory("of the base")))

    class Inherits(base):  # type: ignore[misc,valid-type]
        @step
        async def other(
            self, ev: StartEvent, it: Annotated[Any, Resource(store.factory("of the other"))]
        ) -> None:
            await anyio.sleep_forever()

    assert await Inherits().run() == "of the base 1"


# --- Memory and snapshots -------------------------------------------------------------------------


class Heavy:
    """What a weak reference can tell about."""


@pytest.mark.parametrize("cache", [True, False])
async def test_o6_nothing_of_a_resource_is_kept_after_the_run(cache: bool) -> None:
    async def factory() -> AsyncIterator[Heavy]:
        heavy = Heavy()
        alive.append(weakref.ref(heavy))
        yield heavy

    async def act(heavy: Heavy) -> None:
        assert alive[0]() is heavy

    alive: list[weakref.ref[Heavy]] = []
    workflow = using(factory, act, cache=cache)
    handler = workflow.run()
    await handler
    await anyio.sleep(1)
    gc.collect()
    assert alive[0]() is None, "not even by the handler of the run"
    refs = [weakref.ref(handler), weakref.ref(handler.ctx)]
    del handler
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


async def test_p3_a_run_that_goes_on_from_a_snapshot_makes_its_own() -> None:
    async def act(it: str) -> str:
        if it == "it 1":
            await anyio.sleep_forever()
        return it

    store = Store()
    workflow = using(store.factory("it"), act)
    first = workflow.run()
    await anyio.sleep(1)
    data = json.loads(json.dumps(first.ctx.to_dict()))
    await first.cancel_run()
    assert "it 1" not in json.dumps(data)
    assert await workflow.run(ctx=Context.from_dict(workflow, data)) == "it 2"
    assert await workflow.run(ctx=first.ctx) == "it 3"
    assert shape(store.log) == ["opened it", "closed it"] * 3
