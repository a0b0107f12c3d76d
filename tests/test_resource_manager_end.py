"""How the resource manager closes: at the end, early when a resource fails, with the loop (P5, O2)."""

import asyncio
import contextvars
import gc
import math
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Annotated, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows._backend import find_loop
from anyio_workflows._engine.resources import ResourceManager
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.resource import Resource

from .conftest import BACKENDS
from .resource_hosting import Hosted, Slow, Thing, dependency_on, warned
from .running import run_script

pytestmark = pytest.mark.anyio


# --- The end ----------------------------------------------------------------------------------------


async def test_p5_no_task_without_need() -> None:
    async with Hosted() as hosted:
        pass
    assert (hosted.started, hosted.errors) == (0, [])


async def test_p5_after_the_end_nothing_can_be_had() -> None:
    for asked in (False, True):
        async with Hosted() as hosted:
            if asked:
                await hosted.get(Thing)
            await hosted.close()
            with pytest.raises(WorkflowRuntimeError) as caught:
                await hosted.get(Thing)
        assert str(caught.value) == "resource Thing cannot be opened: the run is ending"


async def test_p5_closing_again_changes_nothing() -> None:
    def fails() -> Iterator[None]:
        yield
        raise ValueError

    async with Hosted() as hosted:
        await hosted.get(fails)
        await hosted.close()
        first = hosted.errors
        await hosted.close()
        assert hosted.errors == first
        assert [name for name, _ in first] == ["fails"]


async def test_p5_the_manager_outlives_the_cancellation_of_its_group() -> None:
    slow = Slow()
    async with Hosted() as hosted:
        await hosted.get(slow.scoped)
        hosted.group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(3)
            assert slow.log == ["begin"]
            assert await hosted.get(slow.scoped) == 1
            assert await hosted.get(slow.plain) == 2
    assert slow.log == ["begin", "end"]


async def test_p5_asked_for_when_the_group_is_already_cancelled() -> None:
    slow = Slow()
    async with Hosted() as hosted:
        hosted.group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            assert await hosted.get(slow.scoped) == 1
    assert slow.log == ["begin", "end"]


@pytest.mark.parametrize("ticks", range(6))
async def test_p5_closed_just_when_it_begins(ticks: int) -> None:
    slow = Slow()
    async with Hosted() as hosted, anyio.create_task_group() as group:
        group.start_soon(hosted.get, slow.scoped)
        for _ in range(ticks):
            await checkpoint()
        group.cancel_scope.cancel()
    assert slow.log in ([], ["begin", "end"])
    assert hosted.errors == []


async def test_p5_a_hanging_build_is_cancelled() -> None:
    slow = Slow(math.inf)
    other = Slow()
    async with Hosted() as hosted:
        await hosted.get(other.scoped)

        def client(slow: Annotated[int, Resource(slow.scoped)]) -> None: ...

        with anyio.move_on_after(1):
            await hosted.get(client)
        begun = anyio.current_time()
    assert anyio.current_time() - begun < 1
    assert slow.log == other.log == ["begin", "end"]
    assert hosted.errors == []


async def test_t4_what_a_cancelled_build_raises_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails() -> AsyncIterator[None]:
        try:
            await anyio.sleep_forever()
            yield
        finally:
            raise ValueError

    async with Hosted() as hosted:
        with anyio.move_on_after(1):
            await hosted.get(fails)
    assert hosted.errors == []
    assert warned(caplog) == ["run x: resource fails failed after the run had ended"]


async def test_p5_who_still_waits_at_the_end_gets_an_error() -> None:
    slow = Slow(math.inf)
    caught: list[str] = []

    async def ask(factory: Any) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await hosted.get(factory)
            except WorkflowRuntimeError as exc:
                caught.append(str(exc))

    async with Hosted() as hosted:
        hosted.group.start_soon(ask, slow.plain)
        await anyio.sleep(1)
        hosted.group.start_soon(ask, Thing)
        await anyio.sleep(1)
    assert sorted(caught) == [
        "resource Slow.plain cannot be opened: the run is ending",
        "resource Thing cannot be opened: the run is ending",
    ]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()])
async def test_p5_a_failure_to_close_prevents_no_other(error: BaseException) -> None:
    slow = Slow()

    async def fails(it: Annotated[int, Resource(slow.scoped)]) -> AsyncIterator[None]:
        yield
        raise error

    def fails_too(it: Annotated[None, Resource(fails)]) -> Iterator[None]:
        yield
        raise KeyError

    async with Hosted() as hosted:
        await hosted.get(fails_too)
    assert slow.log == ["begin", "end"]
    assert [(name, type(exc)) for name, exc in hosted.errors] == [
        ("fails_too", KeyError),
        ("fails", type(error)),
    ]
    assert hosted.errors[1][1] is error


async def test_p5_closing_that_hangs_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()

    async def hangs(it: Annotated[int, Resource(slow.scoped)]) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield
            await anyio.sleep_forever()

    async with Hosted(timeout=3) as hosted:
        await hosted.get(hangs)
        begun = anyio.current_time()
        await hosted.close()
        assert anyio.current_time() - begun == pytest.approx(3, abs=0.1)
        assert slow.log == ["begin", "end"]
    assert hosted.errors == []
    assert warned(caplog) == [
        "run x: cancelled its resources, which did not close within 3 seconds: hangs, Slow.scoped"
    ]


async def test_p5_closing_that_cannot_be_cancelled_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def hangs() -> AsyncIterator[None]:
        yield
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
        raise ValueError

    async with Hosted(timeout=3) as hosted:
        await hosted.get(hangs)
        begun = anyio.current_time()
        await hosted.close()
        assert anyio.current_time() - begun == pytest.approx(3, abs=0.1)
        assert hosted.errors == []
    assert anyio.current_time() - begun == pytest.approx(100, abs=0.1)
    first, last = warned(caplog)
    assert first == "run x: cancelled its resources, which did not close within 3 seconds: hangs"
    assert last == "run x: resource hangs failed after the run had ended"


async def test_p5_a_build_that_cannot_be_cancelled_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow = Slow()

    async def hangs(it: Annotated[int, Resource(slow.scoped)]) -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
        return "made"

    async with Hosted(timeout=3) as hosted:
        with anyio.move_on_after(5):
            await hosted.get(hangs)
        begun = anyio.current_time()
        await hosted.close()
        assert anyio.current_time() - begun == pytest.approx(3, abs=0.1)
    assert slow.log == ["begin", "end"]
    assert [text.rpartition(": ")[2] for text in warned(caplog)] == ["hangs, Slow.scoped"]


# --- Resources that are cancelled from within --------------------------------------------------------


class Fragile:
    """Holds a task group in which something fails when told to, or a scope that is cancelled."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.log: list[str] = []
        self.error = ValueError("in the background")
        self.trigger: Any = None

    async def fail(self) -> None:
        raise self.error

    async def make(self) -> AsyncIterator[int]:
        self.log.append("begin")
        try:
            if self.how == "fails":
                async with anyio.create_task_group() as group:
                    self.trigger = lambda: group.start_soon(self.fail)
                    yield len(self.log)
            else:
                with anyio.CancelScope() as scope:
                    self.trigger = scope.cancel
                    yield len(self.log)
        finally:
            self.log.append("end")


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_p5_a_resource_that_is_cancelled_from_within(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, fragile, after = Slow(), Fragile(how), Slow()

    def client(it: Annotated[int, Resource(fragile.make)]) -> int:
        return it

    async with Hosted() as hosted:
        await hosted.get(before.scoped)
        assert await hosted.get(client) == 1
        await hosted.get(after.scoped)
        fragile.trigger()
        await anyio.sleep(1)
        assert fragile.log == after.log == ["begin", "end"]
        assert before.log == ["begin"]
        assert await hosted.get(client) == 3, "made again, with a new one"
    assert before.log == ["begin", "end"]
    assert fragile.log == ["begin", "end"] * 2
    ((name, error),) = hosted.errors
    assert name == "Fragile.make"
    if how == "fails":
        assert isinstance(error, ExceptionGroup)
        assert error.exceptions == (fragile.error,)
    else:
        assert isinstance(error, WorkflowRuntimeError)
        assert "was cancelled while it was open" in str(error)
    assert warned(caplog) == [
        "run x: resource Fragile.make failed while it was open; closed because of that: "
        "Slow.scoped, client, Fragile.make"
    ]


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_p5_builds_that_it_interrupts_fail(how: str) -> None:
    fragile, slow = Fragile(how), Slow(10)
    caught: list[BaseException] = []

    def client(it: Annotated[int, Resource(slow.scoped)]) -> int:
        return it

    async def ask(factory: Any) -> None:
        try:
            await hosted.get(factory)
        except WorkflowRuntimeError as exc:
            caught.append(exc)

    async with Hosted() as hosted:
        await hosted.get(fragile.make)
        async with anyio.create_task_group() as group:
            group.start_soon(ask, slow.scoped)
            group.start_soon(ask, client)
            await anyio.sleep(1)
            fragile.trigger()
        (_, error), *_ = hosted.manager._errors
        assert {exc.__cause__ for exc in caught} == {error}
        assert "could not be opened: resource Fragile.make failed meanwhile" in str(caught[0])
        assert await hosted.get(client) == 2
    assert slow.log == ["begin", "end"] * 2
    assert len(hosted.errors) == 1


async def test_p5_a_resource_that_fails_at_the_end() -> None:
    fragile = Fragile("fails")
    async with Hosted() as hosted:
        await hosted.get(fragile.make)
        fragile.trigger()
    ((_, error),) = hosted.errors
    assert isinstance(error, ExceptionGroup)
    assert fragile.log == ["begin", "end"]


async def test_p5_a_resource_may_be_bounded_in_time(caplog: pytest.LogCaptureFixture) -> None:
    async def bounded() -> AsyncIterator[None]:
        with anyio.move_on_after(3):
            yield

    async with Hosted() as hosted:
        await hosted.get(bounded)
        await anyio.sleep(5)
        assert len(warned(caplog)) == 1
    assert [type(error) for _, error in hosted.errors] == [WorkflowRuntimeError]


async def test_p5_a_plain_factory_that_leaves_a_scope_open_fails() -> None:
    async def leaves_open() -> Any:
        scope = anyio.CancelScope()
        scope.__enter__()
        return scope

    with suppress(ExceptionGroup):  # AnyIO's task group notices as well, on asyncio
        async with Hosted() as hosted:
            with pytest.raises(WorkflowRuntimeError) as caught:
                await hosted.get(leaves_open)
            assert str(caught.value) == (
                "resource leaves_open left a cancel scope or task group open; make it a generator "
                "function that yields inside of it"
            )


# --- The event loop ends ------------------------------------------------------------------------------


LOOP_ENDS = """
    import anyio
    from contextvars import copy_context
    from typing import Annotated, Any
    from anyio_workflows._backend import find_loop
    from anyio_workflows._dependencies import read_dependency
    from anyio_workflows._engine.resources import ResourceManager
    from anyio_workflows.resource import Resource

    async def inner():
        with anyio.move_on_after(1000):
            print("open inner")
            yield "inner"
            await anyio.sleep(0.01)
            print("close inner")

    async def outer(inner: Annotated[Any, Resource(inner)]):
        async with anyio.create_task_group() as group:
            if {child}:
                group.start_soon(anyio.sleep_forever)
            print("open outer")
            yield "outer"
            group.cancel_scope.cancel()
        print("close outer")

    dependency = read_dependency(Annotated[Any, Resource(outer)], [], [])

    async def host():
        async with anyio.create_task_group() as group:
            manager = ResourceManager("run x", loop, group, copy_context(), "resources")
            async def step():
                try:
                    print("got", await manager.get(dependency))
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(0.01)
                    print("step ends")
            task = group.create_task(step())
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                group.cancel_scope.cancel()
                with anyio.move_on_after(10, shield=True):
                    await task.wait()
                print("errors", await manager.close(1))
                raise

    async def main():
        global loop
        loop = find_loop()
        loop.start(host, lambda: print("over"))
        for _ in range({ticks}):
            await anyio.lowlevel.checkpoint()

    anyio.run(main, backend={backend!r})
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_o2_the_loop_ends(backend: str) -> None:
    done = run_script(LOOP_ENDS.format(backend=backend, ticks=30, child=True))
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "open inner",
        "open outer",
        "got outer",
        "step ends",
        "close outer",
        "close inner",
        "errors []",
        "over",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ticks", range(8))
def test_o2_the_loop_ends_while_the_manager_begins(backend: str, ticks: int) -> None:
    done = run_script(LOOP_ENDS.format(backend=backend, ticks=ticks, child=False))
    assert "Warning" not in done.stderr
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[-1] == "over"
    for name in ("inner", "outer"):
        assert lines.count(f"open {name}") == lines.count(f"close {name}")


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_o2_a_manager_that_asyncio_throws_away_is_not_waited_for() -> None:
    tasks: list[asyncio.Task[None]] = []

    class Group:
        def create_task(self, coroutine: Any, **kwargs: Any) -> None:
            tasks.append(asyncio.create_task(coroutine))
            tasks[-1].cancel()

    loop = find_loop()
    assert loop is not None
    group: Any = Group()
    manager = ResourceManager("run x", loop, group, contextvars.copy_context(), "resources")
    dependency = dependency_on(Thing)
    asker = asyncio.create_task(manager.get(dependency))
    await asyncio.sleep(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert await manager.close(5) == []
        gc.collect()
    with pytest.raises(WorkflowRuntimeError, match="the run is ending"):
        await asker
    assert tasks[0].cancelled()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_o2_closing_is_interrupted_natively_once() -> None:
    tasks: list[Any] = []
    slow = Slow()

    async def interrupted(it: Annotated[int, Resource(slow.scoped)]) -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        yield
        await anyio.sleep(3)

    async with Hosted() as hosted:
        await hosted.get(interrupted)
        asyncio.get_running_loop().call_later(1, lambda: tasks[0].cancel())
    assert slow.log == ["begin", "end"]
    ((name, error),) = hosted.errors
    assert name == "interrupted"
    assert isinstance(error.__cause__, asyncio.CancelledError)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_o2_a_native_cancellation_of_who_closes_is_taken_in() -> None:
    slow = Slow()

    async def closes_slowly() -> AsyncIterator[None]:
        yield
        await anyio.sleep(3)
        slow.log.append("closed")

    async def host() -> None:
        async with Hosted() as hosted:
            await hosted.get(closes_slowly)

    task = asyncio.create_task(host())
    await anyio.sleep(1)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.1)
    await asyncio.wait([task])
    assert slow.log == ["closed"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_o2_after_a_native_cancellation_resources_close_as_ever() -> None:
    """A scope that is left with a native cancellation pending does not catch its own."""
    tasks: list[Any] = []

    async def linger() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)

    async def group() -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        async with anyio.create_task_group() as group:
            yield
            group.start_soon(linger)
            await checkpoint()
            group.cancel_scope.cancel()

    async with Hosted() as hosted:
        await hosted.get(group)
        tasks[0].cancel()
        await anyio.sleep(1)
        assert tasks[0].cancelling() == 0
    assert hosted.errors == []
