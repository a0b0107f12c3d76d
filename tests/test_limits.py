"""How many runs of one workflow instance go on at once: `num_concurrent_runs`, R7."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
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
    WorkflowConfigurationError,
    WorkflowTimeoutError,
)

from .conftest import BACKENDS
from .running import PATIENCE, check_ending, run_script, run_virtually
from .samples import Answer

pytestmark = pytest.mark.anyio


class Job(Workflow):
    """Takes some time, and writes down when it starts and ends."""

    def __init__(self, number: int | None = 1, **kwargs: Any) -> None:
        super().__init__(num_concurrent_runs=number, **kwargs)
        self.trace: list[str] = []
        self.busy = self.most = 0

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        name = ev.get("name", "?")
        self.trace.append(f"{name} starts")
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            await anyio.sleep(ev.get("seconds", 1))
            if ev.get("fails"):
                raise ValueError(name)
        finally:
            self.busy -= 1
            self.trace.append(f"{name} ends")
        return StopEvent(result=name)


class Nested(Workflow):
    """Runs what it is told, inside its step."""

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await ev["act"](ctx))


async def settle(handler: WorkflowHandler[Any]) -> None:
    """Wait for the end of a run, whatever it is."""
    try:
        await handler
    except (ValueError, WorkflowCancelledByUser, WorkflowTimeoutError):
        assert handler.is_done()


async def in_turn(workflow: Workflow, *starts: dict[str, Any]) -> list[WorkflowHandler[Any]]:
    """Start runs of which each has come to queue before the next is started."""
    handlers = []
    for start in starts:
        handlers.append(workflow.run(**start))
        for _ in range(4):
            await checkpoint()
    return handlers


# --- The bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 5])
async def test_r7_bounds_the_runs_in_progress_first_come_first_served(number: int) -> None:
    job = Job(number)
    began = anyio.current_time()
    handlers = [job.run(name=str(n)) for n in range(10)]
    assert [await handler for handler in handlers] == [str(n) for n in range(10)]
    assert job.most == number
    assert anyio.current_time() - began == pytest.approx(10 / number)
    if number == 1:
        starts = [what for what in job.trace if what.endswith("starts")]
        assert starts == [f"{n} starts" for n in range(10)]


async def test_r7_no_number_is_no_bound() -> None:
    job = Job(None)
    for handler in [job.run() for _ in range(50)]:
        await handler
    assert job.most == 50


async def test_r7_instances_do_not_share_their_places() -> None:
    one, two = Job(1), Job(1)
    began = anyio.current_time()
    handlers = [one.run(), two.run()]
    for handler in handlers:
        await handler
    assert anyio.current_time() - began == pytest.approx(1)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda job: pickle.loads(pickle.dumps(job))], ids=["copy", "pickle"]
)
async def test_r7_a_copy_has_places_of_its_own(copied: Any) -> None:
    one = Job(1)
    began = anyio.current_time()
    handlers = [one.run()]
    await anyio.sleep(0.5)
    handlers.append(copied(one).run())
    with anyio.fail_after(PATIENCE):
        for handler in handlers:
            await handler
    assert anyio.current_time() - began == pytest.approx(1.5)


@pytest.mark.parametrize("bad", [0, -1, True, False, 1.0, 2.5, "2", [], float("nan")])
def test_r7_bad_numbers_raise_at_once(bad: Any) -> None:
    with pytest.raises(WorkflowConfigurationError, match="num_concurrent_runs"):
        Job(bad)


async def test_r7_queued_run_has_not_begun() -> None:
    job = Job()
    first, queued = await in_turn(job, {"name": "a", "seconds": 10}, {"name": "b"})
    await anyio.sleep(5)
    assert job.trace == ["a starts"]
    assert not queued.is_done()
    assert queued.statistics().steps["work"].queued == 1
    assert await queued == "b"
    assert first.is_done()


async def test_r7_place_is_free_only_when_the_cleanup_is_over() -> None:
    class Untidy(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            started.append(anyio.current_time())
            try:
                await anyio.sleep(100)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(3)
            return StopEvent()

    started: list[float] = []
    workflow = Untidy(num_concurrent_runs=1)
    one, two = await in_turn(workflow, {}, {})
    await anyio.sleep(1)
    await one.cancel_run()
    await anyio.sleep(1)
    await two.cancel_run()
    assert started[1] - started[0] == pytest.approx(4)


# --- Queued runs ------------------------------------------------------------------------------------


async def test_r7_timeout_starts_at_admission() -> None:
    job = Job(timeout=2)
    handlers = [job.run(seconds=1.5) for _ in range(5)]
    for handler in handlers:
        await handler
    late = await in_turn(job, {"seconds": 1.5}, {"seconds": 2.5})
    await late[0]
    began = anyio.current_time()
    _, last = await check_ending(late[1])
    assert isinstance(last, WorkflowTimedOutEvent)
    assert anyio.current_time() - began == pytest.approx(2)


async def test_r7_queued_run_is_cancelled_at_once() -> None:
    job = Job()
    first, queued, third = await in_turn(
        job, {"name": "a", "seconds": 10}, {"name": "b"}, {"name": "c"}
    )
    await anyio.sleep(1)
    began = anyio.current_time()
    await queued.cancel_run()
    assert anyio.current_time() == began
    events, last = await check_ending(queued)
    assert isinstance(last, WorkflowCancelledEvent)
    assert events == [last]
    assert await third == "c"
    assert job.trace == ["a starts", "a ends", "c starts", "c ends"]
    assert await first == "a"


async def test_r7_run_cancelled_before_it_came_to_queue() -> None:
    job = Job()
    [first] = await in_turn(job, {"name": "a"})
    second = job.run(name="b")
    await second.cancel_run()
    third = job.run(name="c")
    assert await third == "c"
    assert await first == "a"
    assert job.trace == ["a starts", "a ends", "c starts", "c ends"]


async def test_r7_leaving_the_block_of_a_queued_run_by_exception() -> None:
    job = Job()
    first, queued = await in_turn(job, {"seconds": 10}, {})
    with pytest.raises(KeyError):
        async with queued:
            raise KeyError
    assert queued.is_done()
    assert not first.is_done()
    await first


async def test_r7_stop_event_sent_to_a_queued_run_ends_it_at_once() -> None:
    job = Job()
    first, queued = await in_turn(job, {"name": "a", "seconds": 10}, {"name": "b"})
    await anyio.sleep(1)
    await queued.send_event(StopEvent(result="never begun"))
    assert await queued == "never begun"
    assert not first.is_done()
    await first
    assert job.trace == ["a starts", "a ends"]


async def test_r7_events_sent_to_a_queued_run_are_held_until_it_begins() -> None:
    class Waits(Workflow):
        @step
        async def start(self, ctx: Context, ev: StartEvent) -> None:
            order.append("start")
            await anyio.sleep(ev.seconds)

        @step
        async def work(self, ev: Answer) -> StopEvent:
            order.append("answer")
            return StopEvent(result=ev.text)

    order: list[str] = []
    workflow = Waits(num_concurrent_runs=1)
    first, queued = await in_turn(workflow, {"seconds": 0}, {"seconds": 0})
    await anyio.sleep(1)
    await queued.send_event(Answer(text="early"))
    await anyio.sleep(1)
    assert order == ["start"]
    await first.send_event(Answer(text="first"))
    assert await queued == "early"
    assert order == ["start", "answer", "start", "answer"]


async def test_r7_giving_up_waiting_for_a_queued_run_leaves_it_in_the_queue() -> None:
    job = Job()
    _, queued = await in_turn(job, {"seconds": 10}, {"name": "b"})
    with anyio.move_on_after(1):
        await queued
    assert not queued.is_done()
    assert await queued == "b"


@pytest.mark.parametrize("turns", range(8))
async def test_r7_place_granted_and_the_run_cancelled_at_the_same_moment(turns: int) -> None:
    job = Job()
    first, queued = await in_turn(job, {"name": "a"}, {"name": "b"})
    await first
    for _ in range(turns):
        await checkpoint()
    await queued.cancel_run()
    await settle(queued)
    assert await job.run(name="c") == "c"  # the place is not lost
    assert job.most == 1


# --- The place comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "fail", "time out", "cancel", "send a stop", "stall"])
async def test_r7_place_comes_back_however_the_run_ends(how: str) -> None:
    class Ends(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
            if ev.how == "fail":
                raise ValueError("on purpose")
            if ev.how == "stall":
                return None
            await anyio.sleep(1 if ev.how == "stop" else 1000)
            return StopEvent()

    workflow = Ends(num_concurrent_runs=1, timeout=5)
    one, two = await in_turn(workflow, {"how": how}, {"how": "stop"})
    await anyio.sleep(0.5)
    if how == "cancel":
        await one.cancel_run()
    elif how == "send a stop":
        await one.send_event(StopEvent())
    assert await two is None
    assert one.is_done()
    await workflow.run(how="stop")
    one.get_stop_event()


lives = st.tuples(
    st.sampled_from(["runs", "fails", "cancelled", "times out"]),
    st.integers(1, 5),
    st.integers(0, 12),
)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(number=st.integers(1, 3), plan=st.lists(lives, min_size=1, max_size=8))
def test_r7_places_come_back_in_any_order(
    backend: str, number: int, plan: list[tuple[str, int, int]]
) -> None:
    async def one(job: Job, how: str, seconds: int, cancel_after: int) -> None:
        handler = job.run(seconds=100 if how == "times out" else seconds, fails=how == "fails")
        if how == "cancelled":
            await anyio.sleep(cancel_after)
            await handler.cancel_run()
        await settle(handler)

    async def main() -> None:
        job = Job(number, timeout=7)
        with anyio.fail_after(500):
            async with anyio.create_task_group() as group:
                for life in plan:
                    group.start_soon(one, job, *life)
        assert job.most <= number
        job.most = 0
        handlers = [job.run() for _ in range(number + 1)]
        for handler in handlers:
            await handler
        assert job.most == number  # every place is there again, and no more

    run_virtually(backend, main)


# --- Loops and threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", BACKENDS)
@pytest.mark.parametrize("second", BACKENDS)
def test_r7_several_loops_one_after_the_other(first: str, second: str) -> None:
    async def main() -> None:
        for handler in [job.run() for _ in range(4)]:
            await handler

    job = Job(2)
    for backend in (first, second, first):
        run_virtually(backend, main)
    assert job.most == 2
    assert len(job.trace) == 24


@pytest.mark.parametrize("backend", BACKENDS)
def test_r7_loop_ends_with_queued_runs(backend: str) -> None:
    async def main() -> list[WorkflowHandler[Any]]:
        return await in_turn(job, *[{"name": str(n), "seconds": 100} for n in range(4)])

    async def again() -> str:
        return await job.run(name="again")

    job = Job()
    handlers = run_virtually(backend, main)
    assert [type(handler.get_stop_event()) for handler in handlers] == [WorkflowCancelledEvent] * 4
    assert job.trace == ["0 starts", "0 ends"]
    assert run_virtually(backend, again) == "again"  # no place stayed behind in the old loop


@pytest.mark.parametrize("backend", BACKENDS)
def test_r7_loop_ends_right_after_the_runs_were_started(backend: str) -> None:
    async def main() -> list[WorkflowHandler[Any]]:
        return [job.run() for _ in range(3)]

    job = Job()
    handlers = run_virtually(backend, main)
    assert [type(handler.get_stop_event()) for handler in handlers] == [WorkflowCancelledEvent] * 3


def test_r7_several_threads_at_once_each_loop_with_places_of_its_own() -> None:
    class Meeting(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            with lock:
                here[ev.loop] = here.get(ev.loop, 0) + 1
                most.append(here[ev.loop])
            if ev.n == 0:  # one run of each loop is in progress at this moment
                await anyio.to_thread.run_sync(barrier.wait, 10)
            await checkpoint()
            with lock:
                here[ev.loop] -= 1
            return StopEvent(result=ev.loop)

    def body(loop: int, backend: str) -> None:
        async def main() -> None:
            for handler in [workflow.run(loop=loop, n=n) for n in range(5)]:
                results.append(await handler)

        try:
            anyio.run(main, backend=backend)
        except BaseException as exc:
            results.append(exc)

    loops = [*enumerate(BACKENDS * 2)]
    barrier = threading.Barrier(len(loops))
    lock = threading.Lock()
    here: dict[int, int] = {}
    most: list[int] = []
    results: list[Any] = []
    workflow = Meeting(num_concurrent_runs=1)
    threads = [threading.Thread(target=body, args=loop) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(results) == sorted([loop for loop, _ in loops] * 5)
    assert set(most) == {1}


# --- Recursion --------------------------------------------------------------------------------------------


async def test_r7_run_inside_a_run_of_the_same_instance_takes_no_place() -> None:
    async def countdown(depth: int) -> int:
        if not depth:
            return 0
        return 1 + await workflow.run(act=lambda ctx: countdown(depth - 1))

    workflow = Nested(num_concurrent_runs=1)
    with anyio.fail_after(10):
        assert await workflow.run(act=lambda ctx: countdown(20)) == 20


async def test_r7_ancestor_at_any_depth_counts() -> None:
    async def back(ctx: Context) -> Any:
        return await outer.run(act=end)

    async def through(ctx: Context) -> Any:
        return await inner.run(act=back)

    async def end(ctx: Context) -> str:
        return "end"

    outer, inner = Nested(num_concurrent_runs=1), Nested(num_concurrent_runs=1)
    with anyio.fail_after(10):
        assert await outer.run(act=through) == "end"


async def test_r7_children_that_take_no_place_are_not_bounded() -> None:
    """And do not give back a place that they have not taken."""

    async def child(ctx: Context) -> None:
        busy.append(1)
        most.append(len(busy))
        await anyio.sleep(1)
        busy.pop()

    async def parent(ctx: Context) -> None:
        for handler in [workflow.run(act=child) for _ in range(5)]:
            await handler
        busy_parents.append(1)
        assert len(busy_parents) == 1
        await anyio.sleep(1)
        busy_parents.pop()

    busy: list[int] = []
    most: list[int] = []
    busy_parents: list[int] = []
    workflow = Nested(num_concurrent_runs=1)
    for handler in [workflow.run(act=parent) for _ in range(3)]:
        await handler
    assert max(most) == 5


async def test_r7_child_of_another_instance_takes_a_place_of_that_instance() -> None:
    async def parent(ctx: Context) -> None:
        await job.run()

    job = Job(1)
    nested = Nested()
    began = anyio.current_time()
    for handler in [nested.run(act=parent) for _ in range(4)]:
        await handler
    assert job.most == 1
    assert anyio.current_time() - began == pytest.approx(4)


async def test_r7_run_started_after_its_ancestor_ended_takes_a_place() -> None:
    async def leaves(ctx: Context) -> None:
        group.start_soon(later)

    async def later() -> None:
        await anyio.sleep(1)
        began = anyio.current_time()
        await job.run()
        took.append(anyio.current_time() - began)

    class Leaves(Job):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ev.get("act"):
                await ev["act"](ctx)
                return StopEvent()
            return await super().work(ctx, ev)

    took: list[float] = []
    job = Leaves(1)
    async with anyio.create_task_group() as group:
        await job.run(act=leaves)
        await anyio.sleep(0.5)
        job.run(seconds=5)
    assert took == [pytest.approx(5.5)]


async def test_o5_queued_child_is_cancelled_with_its_parent() -> None:
    async def parent(ctx: Context) -> None:
        await job.run(name="child")

    job = Job(1)
    [first] = await in_turn(job, {"name": "first", "seconds": 10})
    handler = Nested().run(act=parent)
    await anyio.sleep(1)
    began = anyio.current_time()
    await handler.cancel_run()
    assert anyio.current_time() == began
    await first
    assert job.trace == ["first starts", "first ends"]
    assert await job.run(name="next") == "next"


@pytest.mark.parametrize("backend", BACKENDS)
def test_o2_program_that_ends_with_queued_runs_warns_of_nothing(backend: str) -> None:
    done = run_script(f"""
        import anyio
        from anyio_workflows import *

        class Slow(Workflow):
            @step
            async def work(self, ev: StartEvent) -> StopEvent:
                await anyio.sleep(100)
                return StopEvent()

        async def main():
            slow = Slow(num_concurrent_runs=1)
            handlers = [slow.run() for _ in range(3)]
            await anyio.sleep(0.01)
            handlers += [slow.run()]
            return handlers

        handlers = anyio.run(main, backend={backend!r})
        print([type(handler.get_stop_event()).__name__ for handler in handlers])
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(["WorkflowCancelledEvent"] * 4)
