"""`async with workflow:` owns runs, and closes the resources that they share (P5)."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Annotated, Any

import anyio
import pytest

from anyio_workflows import (
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowHandler,
    step,
)
from anyio_workflows._engine.block import WorkflowBlock
from anyio_workflows.checkpoint import checkpointed
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from anyio_workflows.resource import Resource
from anyio_workflows.testing import cancel_everywhere, check_termination

from .bare import BARE_RUNNERS, call_in_loop, run_bare
from .resource_hosting import warned
from .resources import Broken, Store, hang, nap, shape, sharing, use
from .running import PATIENCE, check_ending, on_each_backend, run_virtually
from .samples import Item, ProviderError

pytestmark = pytest.mark.anyio

# --- Where runs are refused -------------------------------------------------------------------------


async def test_p5_what_has_to_be_closed_needs_the_block() -> None:
    def connect(it: Annotated[str, Resource(store.factory("it"), scope="workflow")]) -> str:
        return it

    def session(it: Annotated[str, Resource(connect, scope="workflow")]) -> str:
        return it

    class Shares(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Item:
            return Item()

        @step
        async def query(self, ev: Item, it: Annotated[str, Resource(session)]) -> StopEvent:
            return StopEvent(result=it)

    store = Store()
    for workflow in (sharing(store.factory("it")), Shares()):
        with pytest.raises(WorkflowConfigurationError) as caught:
            workflow.run()
        async with workflow:
            assert await workflow.run() == f"it {store.made}"
        with pytest.raises(WorkflowConfigurationError):
            workflow.run()
    assert str(caught.value) == (
        "Shares: resource connect of step query is closed with its workflow; use 'async with workflow:', "
        "and start its runs inside that block"
    )
    assert shape(store.log) == ["opened it", "closed it"] * 2


async def test_p5_no_state_is_touched_by_a_run_that_is_refused() -> None:
    store = Store()
    workflow = sharing(store.factory("it"))
    with suppress(WorkflowConfigurationError):
        workflow.run()
    async with workflow:
        pass
    assert store.log == []


async def test_p5_what_is_made_for_a_shared_resource_alone_is_closed_with_it() -> None:
    def plain(own: Annotated[str, Resource(store.factory("own"), cache=False)]) -> str:
        return f"of {own}"

    store = Store()
    workflow = sharing(plain)
    with pytest.raises(WorkflowConfigurationError, match="resource plain of step work is closed"):
        workflow.run()
    async with workflow:
        assert await workflow.run() == await workflow.run() == "of own 1"
        assert shape(store.log) == ["opened own"]
    assert shape(store.log) == ["opened own", "closed own"]


# --- Opening and closing ----------------------------------------------------------------------------


async def test_p5_the_runs_in_the_block_share_it_until_the_block_is_left() -> None:
    store = Store()
    async with sharing(store.factory("it", opening=1, closing=1)) as workflow:
        assert isinstance(workflow, Workflow)
        assert store.log == []
        assert await workflow.run() == "it 1"
        one, two = workflow.run(), workflow.run()
        assert (await one, await two) == ("it 1", "it 1")
        assert shape(store.log) == ["opened it"]
    assert store.log == ["opening it", "opened it", "closing it", "closed it"]


async def test_p5_each_block_opens_its_own() -> None:
    store = Store()
    workflow = sharing(store.factory("it"))
    for number in (1, 2, 3):
        async with workflow:
            assert await workflow.run() == f"it {number}"
    assert shape(store.log) == ["opened it", "closed it"] * 3


async def test_p5_what_nobody_has_to_close_is_kept_beyond_the_block() -> None:
    class Shares(Workflow):
        @step
        async def work(
            self,
            ev: StartEvent,
            plain: Annotated[object, Resource(object, scope="workflow")],
            closed: Annotated[str, Resource(store.factory("it"), scope="workflow")],
        ) -> StopEvent:
            return StopEvent(result=(plain, closed))

    store = Store()
    workflow = Shares()
    async with workflow:
        one, _ = await workflow.run()
    async with workflow:
        two, closed = await workflow.run()
    assert one is two
    assert closed == "it 2"


async def test_p5_last_opened_first_across_both_scopes() -> None:
    pool, cache = store_of("pool"), store_of("cache")
    log = pool.log
    cache.log = log

    async def session(
        it: Annotated[str, Resource(pool.make, scope="workflow")],
    ) -> AsyncIterator[str]:
        log.append("opened session")
        yield it
        log.append("closed session")

    class Shares(Workflow):
        @step
        async def work(
            self,
            ev: StartEvent,
            session: Annotated[str, Resource(session)],
            cache: Annotated[str, Resource(cache.make, scope="workflow")],
        ) -> StopEvent:
            return StopEvent()

    async with Shares() as workflow:
        await workflow.run()
        await workflow.run()
    assert shape(log) == [
        "opened pool",
        "opened session",
        "opened cache",
        "closed session",
        "opened session",
        "closed session",
        "closed cache",
        "closed pool",
    ]


class store_of(Store):  # noqa: N801
    """A store with one factory, `make`."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__()
        self.make = self.factory(name, **kwargs)


async def test_p5_a_task_group_may_be_held_open_for_all_runs() -> None:
    async def ticker() -> AsyncIterator[list[int]]:
        async def tick() -> None:
            while True:
                await anyio.sleep(1)
                ticks.append(len(ticks))

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            yield ticks
            group.cancel_scope.cancel()

    ticks: list[int] = []
    async with sharing(ticker, nap(1.5)) as workflow:
        await workflow.run()
        await workflow.run()
    assert ticks == [0, 1, 2]
    await anyio.sleep(5)
    assert len(ticks) == 3


colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


async def test_o7_factories_see_the_variables_at_the_beginning_of_the_block() -> None:
    async def look() -> AsyncIterator[str]:
        yield colour.get()
        seen.append(colour.get())

    seen: list[str] = []
    colour.set("red")
    async with sharing(look) as workflow:
        colour.set("blue")
        assert await workflow.run() == "red"
    assert seen == ["red"]


async def test_p5_a_failed_build_is_raised_in_all_runs_that_wait_and_tried_again() -> None:
    async def fails() -> AsyncIterator[str]:
        await anyio.sleep(1)
        tries.append(True)
        if len(tries) == 1:
            raise Broken
        yield "it"

    tries: list[bool] = []
    async with sharing(fails) as workflow:
        for handler in [workflow.run() for _ in range(3)]:
            with pytest.raises(Broken):
                await handler
        assert await workflow.run() == "it"
    assert len(tries) == 2


@pytest.mark.parametrize("scoped", [True, False])
async def test_p5_a_build_outlives_the_run_that_asked_for_it(scoped: bool) -> None:
    async def slow() -> AsyncIterator[str]:
        yield await plain()

    async def plain() -> str:
        await anyio.sleep(60)
        made.append(True)
        return "it"

    made: list[bool] = []
    workflow = sharing(slow if scoped else plain, timeout=45)
    began = anyio.current_time()
    async with workflow:
        with pytest.raises(WorkflowTimeoutError):
            await workflow.run()
        assert anyio.current_time() - began == 45
        assert await workflow.run() == "it"
        assert anyio.current_time() - began == 60
    assert made == [True]


async def test_p5_a_resource_that_fails_while_it_is_open_is_made_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fragile() -> AsyncIterator[int]:
        nonlocal crash_it

        async def crash() -> None:
            raise Broken

        made.append(True)
        async with anyio.create_task_group() as group:
            crash_it = functools.partial(group.start_soon, crash)
            yield len(made)

    made: list[bool] = []
    crash_it: Any = None

    async def block() -> None:
        async with sharing(fragile) as workflow:
            assert await workflow.run() == 1
            crash_it()
            await anyio.sleep(1)
            assert await workflow.run() == 2

    with pytest.raises(ExceptionGroup) as caught:
        await block()
    assert [type(exc) for exc in caught.value.exceptions] == [Broken]
    assert warned(caplog) == [
        "block of Shares: resource fragile failed while it was open; closed because of that: fragile"
    ]


# --- Runs of the block ------------------------------------------------------------------------------


async def test_p5_leaving_waits_for_the_runs() -> None:
    async def others() -> None:
        handlers.append(workflow.run())

    store = Store()
    workflow = sharing(store.factory("it"), nap(3), num_concurrent_runs=1)
    handlers: list[WorkflowHandler[Any]] = []
    began = anyio.current_time()
    async with anyio.create_task_group() as group, workflow:
        handlers += [workflow.run(), workflow.run()]
        group.start_soon(others)
        await anyio.sleep(1)
    assert [handler.is_done() for handler in handlers] == [True] * 3
    assert [await handler for handler in handlers] == ["it 1"] * 3
    assert anyio.current_time() - began == 9
    assert store.log[-1] == "closed it"


async def test_p5_a_run_that_is_started_while_the_block_waits_is_waited_for_as_well() -> None:
    async def later() -> None:
        await anyio.sleep(2)
        assert await workflow.run() == "it 1"
        done.append(store.log[-1])

    store = Store()
    done: list[str] = []
    async with anyio.create_task_group() as group:
        async with sharing(store.factory("it"), nap(3)) as workflow:
            workflow.run()
            group.start_soon(later)
            await anyio.sleep(1)
        assert store.log[-1] == "closed it"
        with pytest.raises(WorkflowConfigurationError):
            workflow.run()
    assert done[0] != "closed it"


async def test_p5_runs_of_other_instances_and_earlier_ones_are_not_its() -> None:
    async def act(it: object) -> object:
        await anyio.sleep(10)
        return it

    workflow = sharing(object, act)
    earlier, other = workflow.run(), type(workflow)(timeout=None).run()
    inside: list[WorkflowHandler[Any]] = []
    with suppress(ProviderError):
        async with workflow:
            inside.append(workflow.run())
            await anyio.sleep(1)
            raise ProviderError
    assert type(inside[0].get_stop_event()) is WorkflowCancelledEvent
    assert not earlier.is_done()
    assert await earlier is not await other
    assert await workflow.run() is await earlier


@pytest.mark.parametrize("how", ["exception", "cancellation", "while it waits"])
async def test_p5_leaving_by_an_exception_cancels_the_runs_and_waits_for_their_cleanup(
    how: str,
) -> None:
    async def act(it: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
                store.log.append(f"cleaned up with {it}")

    store = Store()
    workflow = sharing(store.factory("it", closing=1), act, num_concurrent_runs=1)
    handlers: list[WorkflowHandler[Any]] = []
    began = anyio.current_time()
    with suppress(ProviderError), anyio.move_on_after(4):
        async with workflow:
            handlers += [workflow.run(), workflow.run()]
            await anyio.sleep(3)
            if how == "exception":
                raise ProviderError
            if how == "cancellation":
                await anyio.sleep_forever()
    left = 3 if how == "exception" else 4
    assert anyio.current_time() - began == left + 3
    assert store.log[2:] == ["cleaned up with it 1", "closing it", "closed it"]
    for handler in handlers:
        _, last = await check_ending(handler)
        assert type(last) is WorkflowCancelledEvent
        with pytest.raises(WorkflowCancelledByUser, match="block of its workflow was left"):
            await handler


async def test_p5_a_failing_run_leaves_the_block_alone() -> None:
    async def fail(it: str) -> None:
        raise ProviderError

    store = Store()
    async with sharing(store.factory("it"), fail) as workflow:
        handler = workflow.run()
        await anyio.sleep(1)
        assert handler.is_done()
        again = workflow.run()
    for failed in (handler, again):
        with pytest.raises(ProviderError):
            await failed
    assert shape(store.log) == ["opened it", "closed it"]


async def test_o5_child_runs_are_of_the_block_too() -> None:
    class Nests(Workflow):
        @step
        async def work(
            self,
            ev: StartEvent,
            it: Annotated[str, Resource(store.factory("it"), scope="workflow")],
        ) -> StopEvent:
            if not ev.depth:
                await anyio.sleep_forever()
            handlers.append(self.run(depth=ev.depth - 1))
            await handlers[-1]
            return StopEvent()

    store = Store()
    handlers: list[WorkflowHandler[Any]] = []
    workflow = Nests(timeout=None)
    with pytest.raises(ProviderError):
        await use(workflow, 1, ProviderError(), depth=3)
    assert len(handlers) == 3
    assert [handler.is_done() for handler in handlers] == [True] * 3
    assert shape(store.log) == ["opened it", "closed it"]


async def test_o5_a_step_may_own_the_block_of_another_workflow() -> None:
    class Parent(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            async with inner:
                results.append(await inner.run())
                inner.run()
                await anyio.sleep_forever()
            return StopEvent()

    store = Store()
    results: list[Any] = []
    inner = sharing(store.factory("it"), nap(1))
    handler = Parent(timeout=5).run()
    await check_ending(handler)
    assert results == ["it 1"]
    assert shape(store.log) == ["opened it", "closed it"]


async def test_t6_a_run_that_does_not_end_in_time_holds_up_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stubborn(it: str) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)

    store = Store()
    workflow = sharing(store.factory("it"), stubborn, cleanup_timeout=4)
    began = anyio.current_time()
    with pytest.raises(ProviderError):
        await use(workflow, 1, ProviderError())
    assert anyio.current_time() - began == pytest.approx(5, abs=0.1)
    assert store.log[-1] == "closed it"
    await anyio.sleep(200)


@pytest.mark.parametrize("shield", [True, False])
async def test_t6_closing_is_bounded(shield: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def slow() -> AsyncIterator[str]:
        yield "it"
        with anyio.CancelScope(shield=shield):
            await anyio.sleep(100)

    began = anyio.current_time()
    async with sharing(slow, cleanup_timeout=4) as workflow:
        await workflow.run()
    assert anyio.current_time() - began == pytest.approx(4, abs=0.1)
    assert warned(caplog) == [
        "block of Shares: cancelled its resources, which did not close within 4 seconds: slow"
    ]
    async with workflow:
        assert await workflow.run() == "it"
    await anyio.sleep(200)


async def test_c2_a_run_with_checkpoints_may_be_in_the_block(tmp_path: Any) -> None:
    store = Store()
    workflow = sharing(store.factory("it"))
    async with workflow, checkpointed(workflow, tmp_path / "a.json") as handler:
        assert await handler == "it 1"


# --- What fails to close ----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Broken("it"), KeyboardInterrupt()], ids=repr)
async def test_p5_a_failure_to_close_is_raised_from_the_block(error: BaseException) -> None:
    store = Store()
    workflow = sharing(store.factory("it", broken=error))
    with pytest.raises(type(error)) as caught:
        async with workflow:
            assert await workflow.run() == "it 1"
    assert caught.value is error
    assert error.__notes__ == ["in resource it of Shares, closed with its workflow"]
    with suppress(type(error)):
        async with workflow:
            assert await workflow.run() == "it 2"


async def test_p5_the_first_of_several_failures_is_raised_and_the_others_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Shares(Workflow):
        @step
        async def work(
            self,
            ev: StartEvent,
            one: Annotated[str, Resource(store.factory("one", broken=error), scope="workflow")],
            two: Annotated[str, Resource(store.factory("two", broken=first), scope="workflow")],
        ) -> StopEvent:
            return StopEvent()

    store, error, first = Store(), Broken("one"), Broken("two")
    with pytest.raises(Broken) as caught:
        async with Shares() as workflow:
            await workflow.run()
    assert caught.value is first
    assert warned(caplog) == ["block of Shares: resource one failed"]
    assert caplog.records[-1].exc_info is not None
    assert caplog.records[-1].exc_info[1] is error


async def test_p5_a_failure_to_close_hides_no_exception_of_the_block(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store()
    workflow = sharing(store.factory("it", broken=Broken()))
    with pytest.raises(ProviderError):
        await use(workflow, 1, ProviderError())
    assert warned(caplog) == ["block of Shares: resource it failed"]


async def test_p5_what_ends_the_program_is_raised_in_any_case() -> None:
    store = Store()
    workflow = sharing(store.factory("it", broken=SystemExit(3)))
    with pytest.raises(SystemExit) as caught:
        await use(workflow, 1, ProviderError())
    assert isinstance(caught.value.__context__, ProviderError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
async def test_p5_whatever_leaves_the_block_closes_it(error: BaseException) -> None:
    store = Store()
    workflow = sharing(store.factory("it"), hang)
    with pytest.raises(type(error)) as caught:
        await use(workflow, 1, error)
    assert caught.value is error
    assert shape(store.log) == ["opened it", "closed it"]


# --- Entering and leaving ---------------------------------------------------------------------------


async def test_p5_an_instance_is_entered_once_at_a_time() -> None:
    workflow = sharing(object)
    message = (
        "Shares is already in use in an 'async with' block; an instance can be entered once at a time: "
        "start runs in that block, or make another instance"
    )
    async with workflow:
        for _ in range(2):
            with pytest.raises(WorkflowRuntimeError) as caught:
                async with workflow:
                    pytest.fail("entered twice")
            assert str(caught.value) == message
        async with type(workflow)() as other:
            await other.run()
        await workflow.run()
    async with workflow:
        await workflow.run()


async def test_p5_what_was_not_entered_cannot_be_left() -> None:
    workflow = sharing(object)
    with pytest.raises(WorkflowRuntimeError, match="Shares cannot be left, it was not entered"):
        await workflow.__aexit__(None, None, None)
    async with workflow:
        pass
    with pytest.raises(WorkflowRuntimeError, match="it was not entered"):
        await workflow.__aexit__(None, None, None)


def test_p5_without_an_event_loop_it_cannot_be_entered() -> None:
    entering = sharing(object).__aenter__()
    with pytest.raises(WorkflowRuntimeError) as caught:
        entering.send(None)  # type: ignore[attr-defined]
    message = "Shares can be entered in a running event loop only, of asyncio or trio"
    assert str(caught.value) == message


async def test_p5_a_step_cannot_leave_the_block_of_its_own_run() -> None:
    async def act(it: str) -> None:
        await workflow.__aexit__(None, None, None)

    store = Store()
    async with sharing(store.factory("it"), act) as workflow:
        with pytest.raises(WorkflowRuntimeError, match="a step cannot leave the block of Shares"):
            await workflow.run()
        assert shape(store.log) == ["opened it"]
    assert shape(store.log) == ["opened it", "closed it"]


async def test_p5_another_task_may_leave_it() -> None:
    """As a fixture does whose set-up and tear-down are in different tasks."""
    store = Store()
    workflow = sharing(store.factory("it"))
    stack = AsyncExitStack()

    async def enter() -> None:
        await stack.enter_async_context(workflow)

    for act in (enter, workflow.run, stack.aclose):
        async with anyio.create_task_group() as group:

            async def call(act: Any = act) -> None:
                await act()

            group.start_soon(call)
    assert shape(store.log) == ["opened it", "closed it"]


async def test_p5_entering_that_is_cancelled_leaves_it_free() -> None:
    workflow = sharing(object)
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with workflow:
            pytest.fail("entered although cancelled")
    async with workflow:
        await workflow.run()


@on_each_backend
def test_p5_a_block_belongs_to_its_event_loop(backend: str) -> None:
    async def elsewhere() -> None:
        with pytest.raises(WorkflowConfigurationError) as caught:
            workflow.run()
        assert str(caught.value) == (
            "Shares: resource it of step work is closed with its workflow; its 'async with' block takes "
            "no run here, because it belongs to another event loop"
        )
        with pytest.raises(WorkflowRuntimeError, match="block, in another event loop; an instance"):
            async with workflow:
                pytest.fail("entered twice")
        with pytest.raises(
            WorkflowRuntimeError, match="left, it was entered in another event loop"
        ):
            await workflow.__aexit__(None, None, None)

    def run_loop() -> None:
        try:
            anyio.run(elsewhere, backend=backend)
        except BaseException as exc:
            failed.append(exc)

    async def main() -> None:
        async with workflow:
            thread = threading.Thread(target=run_loop)
            thread.start()
            thread.join(PATIENCE)
            assert await workflow.run() == "it 1"

    failed: list[BaseException] = []
    store = Store()
    workflow = sharing(store.factory("it"))
    run_virtually(backend, main)
    assert failed == []
    assert shape(store.log) == ["opened it", "closed it"]


@on_each_backend
def test_p5_loops_of_two_threads_that_enter_at_once(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_block(*args: Any) -> WorkflowBlock:
        ready.wait(PATIENCE)
        return WorkflowBlock(*args)

    async def enter() -> None:
        try:
            async with workflow:
                note("entered")
                both.wait(PATIENCE)
        except WorkflowRuntimeError:
            note("refused")

    def note(outcome: str) -> None:
        outcomes.append(outcome)
        if len(outcomes) > 1:
            both.set()

    ready, both = threading.Barrier(2), threading.Event()
    monkeypatch.setattr("anyio_workflows._engine.block.WorkflowBlock", make_block)
    outcomes: list[str] = []
    workflow = sharing(object)
    threads = [
        threading.Thread(target=anyio.run, args=(enter,), kwargs={"backend": backend})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(outcomes) == ["entered", "refused"]


async def test_o1_a_run_may_be_started_in_a_callback_or_by_a_thread() -> None:
    def start() -> None:
        handlers.append(workflow.run())

    handlers: list[WorkflowHandler[Any]] = []
    store = Store()
    async with sharing(store.factory("it")) as workflow:
        call_in_loop(start)
        await anyio.to_thread.run_sync(lambda: anyio.from_thread.run_sync(start))
        await anyio.sleep(1)
    assert [await handler for handler in handlers] == ["it 1"] * 2


@pytest.mark.parametrize("runner", BARE_RUNNERS)
def test_p5_in_loops_that_nobody_announced(runner: Any) -> None:
    async def main() -> list[Any]:
        async with workflow:
            return [await workflow.run(), await workflow.run()]

    store = Store()
    workflow = sharing(store.factory("it"))
    assert run_bare(runner, main) == ["it 1"] * 2
    assert run_bare(runner, main) == ["it 2"] * 2
    assert shape(store.log) == ["opened it", "closed it"] * 2


# --- The toolkit for tests --------------------------------------------------------------------------


def tap() -> Iterator[int]:
    yield 1


async def pool() -> AsyncIterator[int]:
    await anyio.sleep(0.5)
    try:
        yield 1
    finally:
        await anyio.sleep(0.5)


class ForTheToolkit(Workflow):
    @step
    async def first(
        self, ev: StartEvent, it: Annotated[int, Resource(pool, scope="workflow")]
    ) -> Item:
        return Item(n=it)

    @step
    async def second(
        self, ev: Item, it: Annotated[int, Resource(tap, scope="workflow")]
    ) -> StopEvent:
        await anyio.sleep(1)
        return StopEvent()


@on_each_backend
def test_v2_the_toolkit_enters_the_workflow(backend: str) -> None:
    check_termination(ForTheToolkit, backends=[backend], max_examples=15)
    cancel_everywhere(ForTheToolkit, backends=[backend])
