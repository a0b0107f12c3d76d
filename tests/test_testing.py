"""The toolkit on workflows that are fine: the runner, virtual time, scenarios, and no false alarms."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    catch_error,
    step,
    testing,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import StepFailedEvent, StepStateChanged
from anyio_workflows.resource import Resource
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from anyio_workflows.testing import (
    End,
    Fault,
    InjectedError,
    Moment,
    Pause,
    Read,
    Scenario,
    TerminationViolation,
    WorkflowTestRunner,
    cancel_everywhere,
    check_termination,
    faults,
    replay,
    run_virtually,
    virtual_time,
)

from .conftest import BACKENDS
from .running import PATIENCE
from .samples import Answer, Done, Item, Note, Question

pytestmark = pytest.mark.anyio

on_each_backend = pytest.mark.parametrize("backend", BACKENDS)


# --- Workflows that are fine -------------------------------------------------------------------


class Fan(Workflow[list[int]]):
    """Fans out to two workers that sleep, and joins."""

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> list[Item]:
        ctx.write_event_to_stream(Note(text="splitting"))
        return [Item(n=n) for n in range(3)]

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Done:
        try:
            await anyio.sleep(0.5)
        finally:
            ctx.write_event_to_stream(Note(text=f"worked on {ev.n}"))
        return Done(n=ev.n)

    @step
    async def join(self, done: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(event.n for event in done))


class Asking(Workflow[int]):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        first = await ctx.wait_for_event(Answer, Question(n=1), requirements={"n": 1})
        second = await ctx.wait_for_event(Answer, Question(n=2), requirements={"n": 2})
        return StopEvent(result=first.n + second.n)


def reply(event: Event) -> Event | None:
    return Answer(n=event.n) if isinstance(event, Question) else None


class Threads(Workflow[int]):
    """Its steps are sync, one waits for something in the loop."""

    @step
    def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(2)]

    @step(num_workers=1)
    def work(self, ctx: Context, ev: Item) -> Done:
        anyio.from_thread.run(checkpoint)
        ctx.write_event_to_stream(Note(text="worked"))
        return Done(n=ev.n)

    @step
    def join(self, done: list[Done]) -> StopEvent:
        return StopEvent(result=len(done))


class First(StopEvent):
    n: int


class Race(Workflow[First]):
    """The first wins, the others are cancelled; attempts are bounded; a static step sends."""

    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(3)]

    @step(timeout=30)
    async def work(self, ev: Item) -> Done:
        await anyio.sleep(0.25 * ev.n)
        return Done(n=ev.n)

    @staticmethod
    @step
    async def join(
        ctx: Context, done: Annotated[list[Done], Collect(Take(1, cancel=True))]
    ) -> First:
        ctx.send_event(First(n=done[0].n))
        await checkpoint()
        return First(n=-1)


class Parent(Workflow[Any]):
    """Runs itself, calls a step of its own, and relays what its child says."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Done | Item:
        if ev.get("inner"):
            return await self.leaf(Item(n=1))
        result = await ctx.relay_events(self.run(inner=True))
        return Item(n=result)

    @step
    async def leaf(self, ev: Item) -> Done:
        await anyio.sleep(0.5)
        return Done(n=ev.n + 1)

    @step
    async def end(self, ev: Done) -> StopEvent:
        return StopEvent(result=ev.n)


async def client() -> AsyncIterator[list[int]]:
    await anyio.sleep(0.25)
    try:
        yield []
    finally:
        await anyio.sleep(0.25)


class Sturdy(Workflow[int]):
    """Its workers need resources that take their time, are tried again, and are replaced."""

    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(3)]

    @step(num_workers=2, retry_policy=retry_policy(wait=wait_fixed(1), stop=stop_after_attempt(2)))
    async def work(
        self,
        ctx: Context,
        ev: Item,
        shared: Annotated[list[int], Resource(client)],
        own: Annotated[list[int], Resource(client, cache=False)],
    ) -> Done:
        await anyio.sleep(0.5)
        if ev.n == 2 or (ev.n == 1 and not ctx.retry_info().retry_number):
            raise ValueError("flaky")
        return Done(n=ev.n)

    @catch_error(for_steps=["work"])
    async def replace(self, ev: StepFailedEvent) -> Done:
        return Done(n=-1)

    @step
    async def join(self, done: list[Done]) -> StopEvent:
        return StopEvent(result=len(done))


async def tap() -> AsyncIterator[int]:
    yield 1
    raise OSError("it drips")


class Leaky(Workflow[Any]):
    """Its resource fails to close."""

    @step
    async def only(self, ev: StartEvent, water: Annotated[int, Resource(tap)]) -> StopEvent:
        await anyio.sleep(0.5)
        return StopEvent()


class Endless(Workflow[Any]):
    """It never ends."""

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep_forever()
        return StopEvent()


# --- The runner --------------------------------------------------------------------------------


async def test_v2_the_runner_collects_what_a_run_publishes(anyio_backend: Any) -> None:
    result = await WorkflowTestRunner(Fan()).run()
    assert result.result == [0, 1, 2]
    assert result.exception is None
    assert result.terminal_event is result.collected[-1]
    assert result.event_types[Note] == 4
    assert result.event_types[StepStateChanged] == 3 * 5
    assert result.event_types[Question] == 0
    assert not result.ctx.is_running


async def test_v2_the_runner_leaves_out_what_is_not_wanted(anyio_backend: Any) -> None:
    runner = WorkflowTestRunner(Fan())
    result = await runner.run(StartEvent(), expose_internal=False, exclude_events=[Note])
    assert result.collected == [StopEvent(result=[0, 1, 2])]


async def test_v2_the_runner_raises_what_the_run_raised(anyio_backend: Any) -> None:
    runner = WorkflowTestRunner(Fan(timeout=0.25))
    with pytest.raises(WorkflowTimeoutError):
        await runner.run()
    result = await runner.run(check=False, expose_internal=False)
    assert result.result is None
    assert type(result.exception) is WorkflowTimeoutError
    assert type(result.terminal_event) is WorkflowTimedOutEvent
    assert result.collected[-1] is result.terminal_event


async def test_v2_the_runner_cancels_its_run_when_it_is_cancelled(anyio_backend: Any) -> None:
    said: list[str] = []

    class Slow(Workflow[Any]):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(10)
            finally:
                said.append("cancelled")
            return StopEvent()

    with anyio.move_on_after(1):
        await WorkflowTestRunner(Slow()).run()
    assert said == ["cancelled"]


async def test_v2_a_context_is_passed_on(anyio_backend: Any) -> None:
    class Odd(Workflow[Any]):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=1)

        def run(self, **kwargs: Any) -> Any:
            given.append(kwargs.pop("ctx", None))
            return super().run(**kwargs)

    given: list[Any] = []
    first = await WorkflowTestRunner(Odd()).run()
    await WorkflowTestRunner(Odd()).run(ctx=first.ctx)
    assert given == [None, first.ctx]


# --- Virtual time ------------------------------------------------------------------------------


@on_each_backend
def test_v2_hours_pass_at_once(backend: str) -> None:
    async def main(hours: float) -> float:
        begun = anyio.current_time()
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(anyio.sleep, hours * 3600)
        return anyio.current_time() - begun

    begun = time.monotonic()
    assert run_virtually(backend, main, 100.0) == 360_000
    assert time.monotonic() - begun < 360_000 / 100


@on_each_backend
def test_v2_the_clock_waits_for_threads(backend: str) -> None:
    async def main() -> bool:
        with anyio.move_on_after(3600) as scope:
            await anyio.to_thread.run_sync(time.sleep, 0.05)
        return scope.cancelled_caught

    assert not run_virtually(backend, main, patience=PATIENCE)


@on_each_backend
def test_v2_the_clock_does_not_wait_for_threads_that_are_gone(backend: str) -> None:
    async def main() -> float:
        await anyio.to_thread.run_sync(time.sleep, 0)
        await anyio.sleep(3600)
        return anyio.current_time()

    begun = time.monotonic()
    assert run_virtually(backend, main) >= 3600
    assert time.monotonic() - begun < 3600 / 2


def test_v2_the_clock_of_asyncio_waits_for_sockets() -> None:
    ours, theirs = socket.socketpair()
    program = "import socket, sys, time; time.sleep(0.2); socket.socket(fileno=0).send(b'x')"

    async def main() -> bool:
        with anyio.move_on_after(3600) as scope:
            await anyio.wait_readable(ours)
        return scope.cancelled_caught

    with ours, theirs, subprocess.Popen([sys.executable, "-c", program], stdin=theirs):
        assert not run_virtually("asyncio", main, patience=PATIENCE)


def test_v2_an_unknown_backend_is_refused() -> None:
    with pytest.raises(
        WorkflowConfigurationError, match="must be 'asyncio' or 'trio', not 'curio'"
    ):
        virtual_time("curio")


@pytest.mark.parametrize(
    ("missing", "use", "remedy"),
    [
        ("trio", "testing.virtual_time('trio')", 'pip install "anyio-workflows[trio]"'),
        ("hypothesis", "testing.check_termination(W)", 'pip install "anyio-workflows[testing]"'),
    ],
)
def test_v2_what_is_not_installed_is_named(missing: str, use: str, remedy: str) -> None:
    """And the package can be imported without it."""
    source = f"""
import sys
sys.modules["{missing}"] = None
from anyio_workflows import *
from anyio_workflows import testing
class W(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent()
testing.cancel_everywhere(W, backends=["asyncio"])
{use}
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "WorkflowConfigurationError" in last
    assert remedy in last


def test_v2_the_package_imports_neither_hypothesis_nor_trio() -> None:
    source = "import anyio_workflows.testing, sys; print({'hypothesis', 'trio'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# --- Old names ---------------------------------------------------------------------------------


def test_v2_old_names_are_the_new_things() -> None:
    assert testing.Script is testing.Scenario
    assert testing.Probe is testing.Marker
    assert not {"Script", "Probe"} & set(testing.__all__)


def test_v2_a_violation_knows_its_scenario_by_the_old_name() -> None:
    with pytest.raises(TerminationViolation) as caught:
        replay(lambda: Endless(timeout=None), testing.Script())
    assert caught.value.script is caught.value.scenario


# --- Scenarios -----------------------------------------------------------------------------------


def test_v2_a_scenario_is_shown_as_the_code_that_makes_it() -> None:
    scenario = Scenario(
        pauses=(Pause("work", call=2, at=-1, seconds=0.5),),
        faults=(Fault("join", "raise"),),
        end=End("cancel", at=Moment(1.5, 2)),
        reads=(Read(limit=2),),
    )
    assert repr(scenario) == (
        "Scenario(pauses=(Pause('work', call=2, at=-1, seconds=0.5),), "
        "faults=(Fault('join', 'raise'),), end=End('cancel', at=Moment(seconds=1.5, checkpoints=2)), "
        "reads=(Read(limit=2),))"
    )
    assert eval(repr(scenario)) == scenario
    assert repr(Scenario()) == "Scenario()"


def test_v2_a_fault_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(WorkflowConfigurationError, match=r"Fault.kind must be one of 'raise', "):
        Fault("work", "explode")  # type: ignore[arg-type]


@on_each_backend
def test_v2_a_pause_holds_up_one_call(backend: str) -> None:
    pauses = (
        Pause("work", call=1, seconds=1),
        Pause("work", call=2, at=1, seconds=2),
        Pause("work", call=3, at=-1, seconds=4),
    )
    trace = replay(Fan, Scenario(pauses=pauses), backend=backend)
    ends = {line[11:18]: float(line[:9]) for line in trace if "returns Done" in line}
    # Two workers: the third begins at 1.5, when the first is done.
    assert ends == {"work #1": 1.5, "work #2": 2.5, "work #3": 6.0}


@on_each_backend
def test_v2_a_scenario_runs_the_same_each_time(backend: str) -> None:
    scenario = Scenario(
        pauses=(Pause("work", call=2, seconds=0.25),),
        faults=(Fault("work", "slow cleanup", call=1, seconds=1),),
        end=End("cancel", at=Moment(0.75)),
    )
    traces = [replay(Fan, scenario, backend=backend) for _ in range(3)]
    assert sorted(traces[0]) == sorted(traces[1]) == sorted(traces[2])


@on_each_backend
@pytest.mark.parametrize("make", [Fan, Threads])
@pytest.mark.parametrize(
    ("kind", "error", "cause"),
    [
        ("raise", InjectedError, None),
        ("raise after", InjectedError, None),
        ("stray cancellation", WorkflowRuntimeError, "Cancel"),
    ],
)
def test_v2_a_fault_fails_the_run(
    make: Any, kind: Any, error: type, cause: str | None, backend: str
) -> None:
    made: list[Workflow[Any]] = []

    def make_one(**config: Any) -> Workflow[Any]:
        made.append(make(**config))
        return made[-1]

    scenario = Scenario(faults=(Fault("work", kind, call=2),))
    trace = "\n".join(replay(make_one, scenario, backend=backend))
    assert f"WorkflowFailedEvent(result=None, step_name='work', exception={error.__name__}" in trace
    assert cause is None or f"raises {cause}" in trace
    assert type(made[0]) is not make
    assert type(made[0]).__name__ == make.__name__
    assert isinstance(made[0], make)


@on_each_backend
@pytest.mark.parametrize("kind", ["raise in cleanup", "slow cleanup", "swallow cancellation"])
def test_v2_a_fault_comes_when_the_call_is_cancelled(kind: Any, backend: str) -> None:
    scenario = Scenario(
        faults=(Fault("work", kind, seconds=2),), end=End("cancel", at=Moment(0.25))
    )
    trace = replay(Fan, scenario, backend=backend)
    how = {"raise in cleanup": "raises", "slow cleanup": "is cancelled"}.get(kind, "returns None")
    [left] = [line for line in trace if "work #1" in line and how in line]
    assert float(left[:9]) == (2.25 if kind == "slow cleanup" else 0.25)
    assert "WorkflowCancelledEvent" in trace[-1] or "WorkflowCancelledEvent" in trace[-2]


@on_each_backend
@pytest.mark.parametrize("make", [Fan, Threads])
def test_v2_a_hanging_call_lasts_until_the_deadline(make: Any, backend: str) -> None:
    scenario = Scenario(faults=(Fault("work", "hang"),), timeout=3)
    trace = replay(make, scenario, backend=backend)
    assert "    3.000  stream" in "\n".join(trace)
    assert "WorkflowTimedOutEvent" in "\n".join(trace)


@given(data=st.data())
def test_v2_faults_are_drawn_for_the_steps_of_a_workflow(data: st.DataObject) -> None:
    fault = data.draw(faults(Threads(), calls={"work": 2}))
    assert fault.step in ("split", "work", "join")
    assert 1 <= fault.call <= (2 if fault.step == "work" else 3)
    assert fault.kind not in ("slow cleanup", "swallow cancellation", "raise in cleanup")


def test_v2_the_class_of_a_workflow_is_not_changed() -> None:
    before = dict(vars(Fan))
    replay(Fan, Scenario())
    assert dict(vars(Fan)) == before


# --- The checks pass where nothing is wrong ----------------------------------------------------

FINE: dict[str, dict[str, Any]] = {
    "fan": {"make_workflow": Fan},
    "asking": {"make_workflow": Asking, "answer": reply},
    "threads": {"make_workflow": Threads, "max_examples": 10},
    "race": {"make_workflow": Race},
    "parent": {"make_workflow": Parent},
    "sturdy": {"make_workflow": Sturdy},
    "leaky": {"make_workflow": Leaky, "completes": False},
}


@on_each_backend
@pytest.mark.parametrize("name", FINE)
def test_v2_no_false_alarms(name: str, backend: str) -> None:
    check_termination(**{"max_examples": 60, **FINE[name]}, backends=[backend])


@on_each_backend
@pytest.mark.parametrize("name", FINE)
def test_v2_every_place_is_found(name: str, backend: str) -> None:
    left_out = ("max_examples", "completes")
    options = {key: value for key, value in FINE[name].items() if key not in left_out}
    # How many places there are depends on the order in which trio runs tasks, which is random.
    assert cancel_everywhere(**options, backends=[backend]) > 5


@on_each_backend
def test_v2_events_from_outside_come_at_moments_of_their_own(backend: str) -> None:
    check_termination(
        Asking,
        outside=[Answer(n=1), Answer(n=2)],
        answer=reply,
        backends=[backend],
        max_examples=60,
    )


def test_v2_start_events_with_fields() -> None:
    class Begin(StartEvent):
        n: int

    class Counting(Workflow[int]):
        @step
        async def only(self, ev: Begin) -> StopEvent:
            return StopEvent(result=ev.n)

    check_termination(Counting, start=Begin(n=3), max_examples=20)
    assert cancel_everywhere(Counting, start=Begin(n=3)) > 4
    assert "StopEvent(result=3)" in "".join(replay(Counting, Scenario(), start=Begin(n=3)))


def test_v2_a_factory_is_asked_for() -> None:
    with pytest.raises(WorkflowConfigurationError, match="give the class, or a function"):
        check_termination(Fan())  # type: ignore[arg-type]


def test_v2_a_seed_repeats_the_choice() -> None:
    chosen: list[list[str]] = []
    for _ in range(2):
        timeouts: list[str] = []

        def make(timeout: float = 45, seen: list[str] = timeouts) -> Fan:
            seen.append(repr(timeout))
            return Fan(timeout=timeout)

        check_termination(make, backends=["asyncio"], max_examples=20, seed=5)
        chosen.append(timeouts)
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) > 1


@pytest.mark.parametrize("terminal", [WorkflowCancelledEvent, WorkflowFailedEvent])
def test_v2_completion_can_be_left_open(terminal: type[StopEvent]) -> None:
    class Unsure(Workflow[Any]):
        @step
        async def only(self, ev: StartEvent) -> StopEvent | Item:
            raise ValueError if terminal is WorkflowFailedEvent else WorkflowCancelledByUser("no")

        @step
        async def never(self, ev: Item) -> StopEvent:
            return StopEvent()

    check_termination(Unsure, completes=False, max_examples=10)
    with pytest.raises(
        TerminationViolation, match="done: the run was at most slowed down"
    ) as caught:
        check_termination(Unsure, max_examples=10)
    assert caught.value.scenario == Scenario()
