"""Threads that outlive their step or their run: T7. Real threads, so in real time."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.state import DictState

from .conftest import BACKENDS
from .running import read
from .samples import Answer, Done, Item

PATIENCE = 10
"""Real seconds after which a test that hangs fails."""

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

Act = Callable[[Context, WorkflowHandler[Any]], Any]
"""What a thread does with its context, and with a child run of its step."""


class Child(Workflow):
    """Waits for an answer that does not come, and says nothing."""

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.wait_for_event(Answer)
        return StopEvent()


async def edit(ctx: Context) -> None:
    async with ctx.store.edit_state() as state:
        state.late = True
        await checkpoint()


WRITES: dict[str, Act] = {
    "set": lambda ctx, child: anyio.from_thread.run(ctx.store.set, "late", True),
    "set_state": lambda ctx, child: anyio.from_thread.run(ctx.store.set_state, DictState(late=1)),
    "clear": lambda ctx, child: anyio.from_thread.run(ctx.store.clear),
    "edit_state": lambda ctx, child: anyio.from_thread.run(edit, ctx),
}
WAITS: dict[str, Act] = {
    "wait_for_event": lambda ctx, child: anyio.from_thread.run(ctx.wait_for_event, Answer),
    "relay_events": lambda ctx, child: anyio.from_thread.run(ctx.relay_events, child),
}
READS: dict[str, Act] = {
    "drain": lambda ctx, child: anyio.from_thread.run(ctx.drain),
    "get": lambda ctx, child: anyio.from_thread.run(ctx.store.get, "n", None),
    "get_state": lambda ctx, child: anyio.from_thread.run(ctx.store.get_state),
    "running_steps": lambda ctx, child: anyio.from_thread.run(ctx.running_steps),
}
ALL = WRITES | WAITS | READS


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something is true that another thread brings about."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(0.001)


def run(backend: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` in an event loop with a real clock, but not for ever."""

    async def bounded() -> None:
        with anyio.fail_after(PATIENCE):
            await main()

    anyio.run(bounded, backend=backend)


class Late:
    """The thread of a sync step: begins when it is let go, and notes how each act ends."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.entered, self.release, self.calling, self.over = (threading.Event() for _ in range(4))
        self.outcomes: dict[str, Any] = {}

    def __call__(self, ctx: Context) -> None:
        child = anyio.from_thread.run_sync(Child().run)
        store = ctx.store
        self.entered.set()
        assert self.release.wait(PATIENCE)
        self.calling.set()
        for name in self.names:
            try:
                self.outcomes[name] = ALL[name](ctx, child)
            except BaseException as exc:
                self.outcomes[name] = exc
        try:
            self.outcomes["kept"] = anyio.from_thread.run(store.set, "late", True)
        except BaseException as exc:
            self.outcomes["kept"] = exc
        self.over.set()

    async def until_over(self) -> None:
        """Wait until all its calls have ended, and see that none has left the loop spinning."""
        await until(self.over.is_set)
        began = time.process_time()
        await anyio.sleep(0.1)
        assert time.process_time() - began < 0.08

    def errors(self) -> dict[str, str]:
        """Return the messages of the errors, all of which are of the library's own type."""
        assert set(self.outcomes) == {*self.names, "kept"}
        types = {name: type(outcome) for name, outcome in self.outcomes.items()}
        assert set(types.values()) == {WorkflowRuntimeError}, types
        return {name: str(outcome) for name, outcome in self.outcomes.items()}


RUN_ENDS = ["stop", "failure", "cancel", "timeout"]
"""How the run ends of which the thread is left over."""

GIVEN_UP = ["batch", "step timeout"]
"""Why its step alone is cancelled, in a run that goes on."""

SAYS = {
    "stop": "it returned StopEvent",
    "failure": "LookupError",
    "cancel": "cancel_run() was called",
    "timeout": "timed out",
}


class Race:
    """Runs a workflow with a late thread, and cuts that off in one of the ways.

    Attributes:
        late: The thread.
        handler: Of the run.
        cut: Set when the step of the thread has been cancelled.
        may_end: Set to let the run end after that.
    """

    def __init__(self, late: Late, how: str) -> None:
        self.late, self.how = late, how
        self.trigger = threading.Event()
        self.cut, self.may_end = anyio.Event(), anyio.Event()
        self.handler: WorkflowHandler[Any] = self.workflow().run()

    def workflow(self) -> Workflow:
        race, how = self, self.how

        class Raced(Workflow):
            @step
            async def fork(self, ev: StartEvent) -> list[Item]:
                return [Item(n=n) for n in range(2 if how == "batch" else 1)]

            @step(timeout=0.5 if how == "step timeout" else None)
            def work(self, ctx: Context, ev: Item) -> Done:
                if ev.n == 0:
                    race.late(ctx)
                else:
                    assert race.trigger.wait(PATIENCE)
                return Done()

            @step
            async def join(
                self, evs: Annotated[list[Done], Collect(Take(1, cancel=True))]
            ) -> StopEvent:
                return await race.go_on()

            @catch_error(for_steps=["work"])
            async def rescue(self, ev: StepFailedEvent) -> StopEvent:
                return await race.go_on()

            @step
            async def end(self, ev: StartEvent) -> StopEvent | None:
                await until(race.trigger.is_set)
                if how == "failure":
                    raise LookupError
                return StopEvent() if how == "stop" else None

            @step
            async def clean_up(self, ev: StartEvent) -> None:
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await checkpoint()  # on trio the others may not have been cancelled yet
                        await race.go_on()

        return Raced(timeout=0.5 if how == "timeout" else None)

    async def go_on(self) -> StopEvent:
        """Say that the thread is cut off, and keep the run from its end."""
        self.cut.set()
        with anyio.move_on_after(PATIENCE):
            await self.may_end.wait()
        return StopEvent()

    async def cut_off(self) -> None:
        """Have the step of the thread cancelled, and wait until it is."""
        self.trigger.set()
        if self.how == "cancel":
            await self.handler.cancel_run(timeout=0)
        await self.cut.wait()

    async def end(self) -> None:
        """Let the run end, and wait for that."""
        self.may_end.set()
        await read(self.handler)


@pytest.mark.parametrize("how", RUN_ENDS)
def test_t7_calls_of_a_late_thread_are_refused_while_the_run_is_cleaning_up(
    backend: str, how: str
) -> None:
    async def main() -> None:
        race = Race(late, how)
        await until(late.entered.is_set)
        await race.cut_off()
        late.release.set()
        await late.until_over()
        await race.end()
        for message in late.errors().values():
            assert "the run is ending, " in message
            assert SAYS[how] in message
        assert await race.handler.ctx.store.get_state() == {}

    late = Late(*ALL)
    run(backend, main)


@pytest.mark.parametrize("how", RUN_ENDS)
def test_t7_calls_of_a_late_thread_are_refused_after_the_run(backend: str, how: str) -> None:
    async def main() -> None:
        race = Race(late, how)
        await until(late.entered.is_set)
        await race.cut_off()
        await race.end()
        late.release.set()
        await late.until_over()
        for message in late.errors().values():
            assert "the run has ended, " in message
            assert SAYS[how] in message
        assert await race.handler.ctx.store.get_state() == {}

    late = Late(*ALL)
    run(backend, main)


@pytest.mark.parametrize("how", GIVEN_UP)
def test_t7_calls_of_a_late_thread_are_refused_when_its_step_was_given_up(
    backend: str, how: str
) -> None:
    async def main() -> None:
        race = Race(late, how)
        await until(late.entered.is_set)
        await race.cut_off()
        late.release.set()
        await late.until_over()
        assert race.handler.ctx.is_running
        await race.end()
        reason = "with its batch" if how == "batch" else "at its timeout"
        messages = late.errors()
        assert messages.pop("wait_for_event") == (
            "attempt 1 of step work has ended; it can no longer wait for an event"
        )
        assert set(messages.values()) == {f"step work was cancelled {reason} and has ended"}
        assert await race.handler.ctx.store.get_state() == {}

    late = Late(*ALL)
    run(backend, main)


@pytest.mark.parametrize("name", [*WRITES, *WAITS])
@pytest.mark.parametrize("how", [*RUN_ENDS, *GIVEN_UP])
def test_t7_calls_that_wait_in_a_late_thread_end(backend: str, how: str, name: str) -> None:
    """For the lock of the store, for an event, for a child run."""
    if (how, name) == ("step timeout", "wait_for_event"):
        pytest.skip("a timeout does not count what is waited")

    def is_waiting(handler: WorkflowHandler[Any]) -> bool:
        if name in WRITES:
            return handler.ctx.store.statistics().writers_waiting > 0
        return name == "relay_events" or handler.statistics().steps["work"].waiting > 0

    async def main() -> None:
        race = Race(late, how)
        await until(late.entered.is_set)
        async with race.handler.ctx.store.edit_state() as state:
            late.release.set()
            await until(lambda: is_waiting(race.handler) or late.over.is_set())
            await race.cut_off()
            await late.until_over()
            await race.end()
            state.n = 1
        assert isinstance(late.outcomes[name], BaseException)
        assert isinstance(late.outcomes["kept"], WorkflowRuntimeError)
        assert await race.handler.ctx.store.get_state() == {"n": 1}

    late = Late(name)
    run(backend, main)


@pytest.mark.parametrize("turns", range(5))
@pytest.mark.parametrize("name", ["set", *WAITS])
@pytest.mark.parametrize("how", ["stop", "batch"])
def test_t7_calls_that_begin_while_the_step_is_being_cancelled_end(
    backend: str, how: str, name: str, turns: int
) -> None:
    """The task of such a call may begin before or after its cancel scope is left."""

    async def main() -> None:
        race = Race(late, how)
        await until(late.entered.is_set)
        async with race.handler.ctx.store.edit_state():
            late.release.set()
            assert late.calling.wait(PATIENCE)
            late.over.wait(0.01)  # the loop stands still, and the call is waiting for it
            for _ in range(turns):
                await checkpoint()
            await race.cut_off()
            await late.until_over()
            await race.end()
        assert isinstance(late.outcomes[name], BaseException)
        assert isinstance(late.outcomes["kept"], WorkflowRuntimeError)

    late = Late(name)
    run(backend, main)


def test_t7_a_thread_that_an_async_step_leaves_behind_is_refused_too(backend: str) -> None:
    def in_thread(ctx: Context) -> None:
        late.entered.set()
        assert late.release.wait(PATIENCE)
        for name in names:
            try:
                late.outcomes[name] = ALL[name](ctx, child[0])
            except BaseException as exc:
                late.outcomes[name] = exc
        late.over.set()

    class Async(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            child.append(Child().run())
            await anyio.to_thread.run_sync(
                functools.partial(in_thread, ctx), abandon_on_cancel=True
            )
            return StopEvent()

    async def main() -> None:
        handler = Async().run()
        await until(late.entered.is_set)
        await handler.cancel_run()
        late.release.set()
        await late.until_over()
        assert {name: type(outcome) for name, outcome in late.outcomes.items()} == dict.fromkeys(
            names, WorkflowRuntimeError
        )

    names = list(ALL)
    child: list[Any] = []
    late = Late()
    run(backend, main)


def test_t7_a_call_that_has_all_it_needs_is_not_cut_short(backend: str) -> None:
    """While its step is in progress a thread waits as long as it takes."""

    async def main() -> None:
        race = Race(late, "batch")
        await until(late.entered.is_set)
        async with race.handler.ctx.store.edit_state() as state:
            late.release.set()
            await until(lambda: race.handler.ctx.store.statistics().writers_waiting)
            state.n = 1
        await until(late.over.is_set)
        assert late.outcomes == {"set": None, "kept": None}
        race.trigger.set()
        await race.end()
        assert await race.handler.ctx.store.get_state() == {"n": 1, "late": True}

    late = Late("set")
    run(backend, main)


@pytest.mark.parametrize("how", GIVEN_UP)
def test_t7_a_late_thread_does_not_wait_for_a_slow_reader(
    backend: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall_behind(ctx: Context, child: WorkflowHandler[Any]) -> None:
        ctx.write_event_to_stream(Item())
        ctx.write_event_to_stream(Item())
        assert reading.wait(PATIENCE)
        anyio.from_thread.run(ctx.drain)

    async def main() -> None:
        race = Race(late, how)
        await until(late.entered.is_set)
        late.release.set()
        events = race.handler.stream_events()
        await anext(events)
        reading.set()
        await race.cut_off()
        await late.until_over()
        assert race.handler.ctx.is_running
        assert isinstance(late.outcomes["fall behind"], BaseException)
        race.may_end.set()
        assert isinstance([event async for event in events][-1], StopEvent)

    monkeypatch.setitem(ALL, "fall behind", fall_behind)
    reading = threading.Event()
    late = Late("fall behind")
    run(backend, main)
