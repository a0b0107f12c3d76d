"""Several runtimes on one store: what is done to a run from a process that does not execute it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import Context, Runtime, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import (
    ContextSerdeError,
    HostLostError,
    UnknownRunError,
    WorkflowCancelledByUser,
    WorkflowConfigurationError,
    WorkflowRuntimeError,
)
from anyio_workflows.runtime import MemoryData, MemoryStore, RunHandle

from .samples import Answer, Mail, Note, OneStep, Other, ProviderError, Question

pytestmark = pytest.mark.anyio


class Talks(Workflow):
    """Asks twice, and passes on what it is told."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        told = []
        for n in (1, 2):
            question = Question(text=f"question {n}", n=n)
            told.append((await ctx.wait_for_event(Answer, question, waiter_id=f"w{n}")).text)
        return StopEvent(result=told)

    @step
    async def note(self, ctx: Context, ev: Mail) -> None:
        ctx.write_event_to_stream(Note(text="mail"))


SECRET_TYPES = [Answer, Question]


class Secretive(Workflow):
    """Names none of the types in the code of its step that are asked for, so they have to be given."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer, question = SECRET_TYPES
        return StopEvent(result=await ctx.wait_for_event(answer, question()))


def a_store(data: MemoryData) -> MemoryStore:
    return MemoryStore(data, poll=0.05)


@asynccontextmanager
async def processes(
    *workflows: Workflow, data: MemoryData | None = None, **options: Any
) -> AsyncIterator[tuple[Runtime, Runtime]]:
    """Two runtimes on one store. What the first one starts, it executes."""
    data = MemoryData() if data is None else data
    given = workflows or (Talks(timeout=None),)
    options = {"types": [Other], **options}
    async with (
        Runtime(a_store(data), workflows=given, **options) as here,
        Runtime(a_store(data), workflows=given, **options) as there,
    ):
        yield here, there


async def waiting(run: RunHandle[Any], number: int = 1) -> None:
    """Wait until a run waits."""
    for _ in range(1000):
        if len(await run.open_waits()) == number:
            return
        await anyio.sleep(0.01)
    raise AssertionError(f"it does not wait: {run!r}")


def patience() -> Any:
    return anyio.fail_after(1000)


async def test_d3_a_run_is_read_live_in_a_process_that_does_not_execute_it() -> None:
    async with processes() as (here, there):
        run = await here.start(Talks, "one", metadata={"by": "me"})
        far = await there.get("one")
        seen: dict[str, list[Any]] = {"events": [], "records": [], "result": []}

        async def read_events() -> None:
            async for event in far.stream_events():
                seen["events"].append(event)

        async def read_records() -> None:
            async for record in far.records(after=1):
                seen["records"].append(record)

        async def wait() -> None:
            seen["result"].append(await far)

        async with anyio.create_task_group() as tasks:
            for task in (read_events, read_records, wait):
                tasks.start_soon(task)
            await waiting(run)
            await anyio.sleep(1)
            assert [type(event) for event in seen["events"]] == [Question]
            assert far.info.status == "waiting"
            assert far.info.metadata == {"by": "me"}
            assert far.info.created == run.info.created
            [wait_here] = await run.open_waits()
            [wait_there] = await far.open_waits()
            assert (wait_there.id, wait_there.step) == (wait_here.id, wait_here.step)
            await run.send_event(Answer(text="a"))
            await anyio.sleep(1)
            assert [event.text for event in seen["events"]] == ["question 1", "question 2"]
            assert far.info.last_seq == 2
            await run.send_event(Answer(text="b"))
        assert [record.seq for record in seen["records"]] == [2, 3]
        assert [type(event) for event in seen["events"]] == [Question, Question, StopEvent]
        assert seen["result"] == [["a", "b"]]
        assert far.info == run.info
        assert await there.runs() == await here.runs()


async def both_ways(act: Any) -> None:
    """Do the same to a run where it is executed, and elsewhere: with the same results and errors."""
    found = []
    for place in (0, 1):
        async with processes() as runtimes:
            run = await runtimes[0].start(Talks, "one")
            await waiting(run)
            handle = await runtimes[place].get("one")
            with patience():
                try:
                    found.append(await act(handle))
                except WorkflowRuntimeError as error:
                    found.append((type(error), str(error)))
    assert found[0] == found[1]


async def test_k2_waits_of_a_type_that_is_not_known_here_are_an_error_that_names_it() -> None:
    data = MemoryData()
    async with (
        Runtime(a_store(data), workflows=[Secretive(timeout=None)], types=SECRET_TYPES) as here,
        Runtime(a_store(data), workflows=[Secretive(timeout=None)]) as there,
        Runtime(a_store(data), workflows=[Secretive(timeout=None)], types=SECRET_TYPES) as knows,
    ):
        run = await here.start(Secretive, "one")
        await waiting(run)
        await anyio.sleep(1)
        far = await there.get("one")
        why = r"^run one, row v.*unknown type 'tests\.samples:(Answer|Question)'.*types=\[\.\.\.\]"
        with pytest.raises(ContextSerdeError, match=why):
            await far.open_waits()
        assert len(await (await knows.get("one")).open_waits()) == 1
        await run.cancel()
        await anyio.sleep(1)
        assert await (await knows.get("one")).open_waits() == []


async def test_d3_events_of_a_type_that_is_not_known_here_disturb_no_other_run() -> None:
    data = MemoryData()
    workflows: list[Workflow] = [Secretive(timeout=None), Talks(timeout=None)]
    async with (
        Runtime(a_store(data), workflows=workflows, types=SECRET_TYPES) as here,
        Runtime(a_store(data), workflows=workflows) as there,
    ):
        run = await here.start(Secretive, "one")
        far = await there.get("one")
        assert far.info.last_seq == 0
        why = r"^run one, event 1: unknown type 'tests\.samples:Question'.*types=\[\.\.\.\]"
        with patience():
            with pytest.raises(ContextSerdeError, match=why):
                await far
            with pytest.raises(ContextSerdeError, match=why):
                await anext(far.stream_events())
            other = await there.start(Talks, "other")
            await waiting(other)
            await other.send_event(Answer(text="a"))
            await other.send_event(Answer(text="b"))
            assert await other == ["a", "b"]
            await run.send_event(Answer(text="secret"))
            assert await run == Answer(text="secret")


async def test_r3_events_are_sent_from_any_process() -> None:
    async def act(run: RunHandle[Any]) -> Any:
        took = [
            await run.send_event(Mail()),
            await run.send_event(Mail(), step="note"),
            await run.send_event(Other(n=1)),
            await run.send_event(Answer(text="a")),
        ]
        await anyio.sleep(1)
        open_waits = await run.open_waits()
        took.append(await run.send_event(Answer(text="b"), wait=open_waits[0].id))
        return took, await run, [type(event) async for event in run.stream_events()]

    await both_ways(act)


@pytest.mark.parametrize(
    ("event", "options"),
    [
        (Answer(), {"wait": "nonsense"}),
        (Answer(), {"step": "nonsense"}),
        (Answer(), {"step": "note"}),
        (Mail(), {"wait": "first"}),
        (Answer(), {"wait": "first", "step": "note"}),
        ("no event", {}),
        (Answer, {}),
        (Answer(), {"wait": 7}),
    ],
    ids=str,
)
async def test_r3_what_cannot_be_sent_is_refused_alike_in_any_process(
    event: Any, options: dict[str, Any]
) -> None:
    async def act(run: RunHandle[Any]) -> Any:
        [wait] = await run.open_waits()
        wait_id = wait.id if options.get("wait") == "first" else options.get("wait")
        await run.send_event(event, step=options.get("step"), wait=wait_id)

    await both_ways(act)


async def test_t10_a_run_is_cancelled_from_any_process() -> None:
    async def act(run: RunHandle[Any]) -> Any:
        await run.cancel()
        await run.cancel()
        with pytest.raises(WorkflowCancelledByUser):
            await run
        with pytest.raises(WorkflowRuntimeError, match="Answer cannot be sent: the run has ended"):
            await run.send_event(Answer())
        return run.info.status, run.info.error

    await both_ways(act)


async def test_x7_a_run_is_retried_and_deleted_from_any_process() -> None:
    down = True

    async def act(ctx: Context) -> Any:
        if down:
            raise ProviderError("down")
        return "up"

    async with processes(OneStep(act)) as (here, there):
        run = await here.start(OneStep, "one")
        with pytest.raises(ProviderError):
            await run
        far = await there.get("one")
        with pytest.raises(Exception, match="down"):
            await far
        down = False
        again = await there.retry("one")
        with patience():
            assert await again == "up"
            assert await (await here.get("one")) == "up"
            assert (await here.get("one")).info == again.info
        with pytest.raises(WorkflowRuntimeError, match="it was completed"):
            await here.retry("one")
        await there.delete("one")
        for runtime in (here, there):
            with pytest.raises(UnknownRunError):
                await runtime.get("one")
            assert (await runtime.runs()).runs == []


async def test_k1_two_processes_that_start_the_same_run_at_once_have_one() -> None:
    async with processes() as (here, there):
        for n in range(5):
            found: list[RunHandle[Any]] = []

            async def begin(runtime: Runtime, run_id: str, into: list[Any] = found) -> None:
                into.append(await runtime.start(Talks, run_id))

            async with anyio.create_task_group() as tasks:
                for runtime in (here, there, here, there):
                    tasks.start_soon(begin, runtime, f"run-{n}")
            assert len(found) == 4
            with patience():
                for text in ("a", "b"):
                    await waiting(found[0])
                    assert await found[n % 4].send_event(Answer(text=text)) == ("ask",)
                    await anyio.sleep(1)
                for run in found:
                    assert await run == ["a", "b"]
        assert len((await here.runs()).runs) == 5


async def test_k1_two_processes_that_start_runs_of_different_workflows_at_once_with_one_id() -> (
    None
):
    async def act(ctx: Context) -> str:
        return "one step"

    async with processes(Talks(timeout=None), OneStep(act)) as (here, there):
        found: list[Any] = []

        async def begin(runtime: Runtime, workflow: type[Workflow]) -> None:
            try:
                found.append((await runtime.start(workflow, "one")).workflow)
            except WorkflowRuntimeError as error:
                found.append(str(error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begin, here, OneStep)
            tasks.start_soon(begin, there, Talks)
            tasks.start_soon(begin, there, OneStep)
        [info] = (await here.runs()).runs
        problems = [one for one in found if one not in ("one_step", "talks")]
        assert problems
        for problem in problems:
            assert f"there is a run 'one' already, of workflow {info.workflow}" in problem


async def test_k6_a_process_leaves_runs_of_workflows_alone_that_it_does_not_know() -> None:
    async def act(ctx: Context) -> str:
        return "done"

    data = MemoryData()
    async with Runtime(a_store(data), workflows=[OneStep(act)]) as other:
        async with Runtime(a_store(data), workflows=[Talks(timeout=None)]) as here:
            await waiting(await here.start(Talks, "one"))
            await anyio.sleep(1)
            [info] = (await other.runs()).runs
            assert (info.id, info.workflow, info.status) == ("one", "talks", "waiting")
            assert await other.info("one") == info
            with pytest.raises(UnknownRunError):
                await other.info("two")
            with pytest.raises(WorkflowConfigurationError, match="talks, which is not registered"):
                await other.get("one")
            with pytest.raises(WorkflowConfigurationError, match="talks, which is not registered"):
                await other.start(OneStep, "one")
        await anyio.sleep(5)
        assert data.runs["one"].owner is None
        async with Runtime(a_store(data), workflows=[Talks(timeout=None)]) as here:
            run = await here.get("one")
            with patience():
                await waiting(run)


async def test_d7_a_run_that_sleeps_is_woken_by_an_answer_from_another_process() -> None:
    async with processes(idle_after=5.0) as (here, there):
        run = await here.start(Talks, "one")
        reader = aiter(run.stream_events())
        with patience():
            await waiting(run)
            await anyio.sleep(10)
            assert here.statistics().in_progress == 0
            far = await there.get("one")
            assert far.info.status == "waiting"
            assert await far.send_event(Answer(text="a")) == ("ask",)
            await anyio.sleep(10)
            assert there.statistics().in_progress == 0
            assert await run.send_event(Answer(text="b")) == ("ask",)
            assert await run == await far == ["a", "b"]
            assert [type(event) async for event in reader] == [Question, Question, StopEvent]


async def test_d7_a_run_that_sleeps_is_cancelled_from_another_process() -> None:
    async with processes(idle_after=5.0) as (here, there):
        run = await here.start(Talks, "one")
        await waiting(run)
        await anyio.sleep(10)
        with patience():
            await (await there.get("one")).cancel()
            with pytest.raises(WorkflowCancelledByUser):
                await run


async def test_k1_max_runs_counts_in_each_process() -> None:
    async with processes(max_runs=1) as (here, there):
        one = await here.start(Talks, "one")
        two = await there.start(Talks, "two")
        for runtime in (here, there):
            with pytest.raises(WorkflowRuntimeError, match="1 runs are in progress"):
                await runtime.start(Talks, "three")
        await one.cancel()
        await two.cancel()
        await here.start(Talks, "three")


async def finish(runtime: Runtime, run_id: str) -> None:
    """Answer both questions of a run, where it is executed now."""
    run = await runtime.get(run_id)
    with patience():
        for text in ("a", "b"):
            await waiting(run)
            await run.send_event(Answer(text=text))
        assert await run == ["a", "b"]
        assert [record.seq async for record in run.records()] == [1, 2, 3]


@pytest.mark.parametrize("how", ["left", "killed"])
async def test_d8_the_runs_of_a_process_that_ends_are_taken_over_within_about_a_second(
    how: str,
) -> None:
    data = MemoryData()
    store, talks, ids = a_store(data), Talks(timeout=None), ["one", "two", "three"]

    async def live() -> None:
        async with Runtime(store, workflows=[talks]) as here:
            for run_id in ids:
                await waiting(await here.start(Talks, run_id))
            if how == "killed":
                store.kill()
                await anyio.sleep(100)

    async with Runtime(a_store(data), workflows=[talks]) as there:
        if how == "left":
            await live()
        else:
            began = anyio.current_time()
            with pytest.raises(HostLostError, match="the host was killed"):
                await live()
            assert anyio.current_time() - began < 2
        await anyio.sleep(2)
        assert there.statistics().in_progress == 3
        for run_id in ids:
            await finish(there, run_id)


async def test_d2_a_reply_that_nobody_waits_for_any_more_is_not_kept() -> None:
    data = MemoryData()
    async with processes(data=data) as (here, there):
        run = await here.start(Talks, "one")
        await waiting(run)
        far = await there.get("one")
        for _ in range(3):  # before the reply is there
            with anyio.move_on_after(0.001) as scope:
                await far.send_event(Mail())
            assert scope.cancelled_caught
        assert len(data.mail) == 3
        await anyio.sleep(1)
        assert (data.mail, data.replies) == ({}, {})
        assert sum(isinstance(event, Note) for event in await so_far(run)) == 3  # they were sent
        assert await far.send_event(Mail()) == ("note",)
        await far.cancel()
        assert (data.mail, data.replies) == ({}, {})


async def so_far(run: RunHandle[Any]) -> list[Any]:
    events = []
    with anyio.move_on_after(1):
        async for event in run.stream_events():
            events.append(event)
    return events


# --- What is removed, or left, while others look at it ------------------------------------------


async def failing(ctx: Context) -> Any:
    raise ProviderError("down")


async def test_k4_who_waits_for_a_run_that_another_process_removes_is_told() -> None:
    data = MemoryData()
    talks = Talks(timeout=None)
    async with Runtime(a_store(data), workflows=[talks]) as first:
        await waiting(await first.start(Talks, "one"))
    asleep = attrs.evolve(data.runs["one"], asleep_since=0.0)
    data.runs["one"] = asleep
    async with (
        Runtime(a_store(data), workflows=[talks]) as here,
        Runtime(a_store(data), workflows=[talks]) as there,
    ):
        told: list[str] = []

        async def wait(run: RunHandle[Any]) -> None:
            try:
                await run
            except UnknownRunError:
                told.append("result")

        async def read(run: RunHandle[Any]) -> None:
            try:
                async for event in run.stream_events():
                    told.append(type(event).__name__)
            except UnknownRunError:
                told.append("events")

        with patience():
            async with anyio.create_task_group() as tasks:
                for runtime in (here, there):
                    run = await runtime.get("one")
                    assert run.info.status == "waiting"
                    tasks.start_soon(wait, run)
                    tasks.start_soon(read, run)
                await anyio.sleep(1)
                data.remove("one")  # by a third process, as soon as it was parked or had ended
        assert sorted(told) == ["Question", "Question", "events", "events", "result", "result"]
        with pytest.raises(UnknownRunError):
            _ = run.info


async def test_d9_who_waits_for_a_run_that_is_parked_is_told_in_every_process() -> None:
    data = MemoryData()
    talks = Talks(timeout=None)
    async with Runtime(a_store(data), workflows=[talks]) as first:
        await waiting(await first.start(Talks, "one"))
    # Asleep, so that it is not stuck before it has mail.
    data.runs["one"] = attrs.evolve(data.runs["one"], recoveries=11, asleep_since=0.0)
    told: list[str] = []

    async def wait(run: RunHandle[Any]) -> None:
        with pytest.raises(WorkflowRuntimeError, match=r"^run one of talks is stuck: .* 11 times"):
            await run
        told.append("result")

    async def read(run: RunHandle[Any]) -> None:
        events = run.stream_events()
        told.append(type(await anext(events)).__name__)
        with pytest.raises(WorkflowRuntimeError, match=r"is stuck: .*runtime\.retry\('one'\)$"):
            await anext(events)
        told.append("events")

    async with (
        Runtime(a_store(data), workflows=[talks]) as here,
        Runtime(a_store(data), workflows=[talks]) as there,
    ):
        runs = [await here.get("one"), await there.get("one")]
        with patience():
            async with anyio.create_task_group() as tasks:
                for run in runs:
                    tasks.start_soon(wait, run)
                    tasks.start_soon(read, run)
                await anyio.sleep(1)
                assert told == ["Question", "Question"]
                with pytest.raises(WorkflowRuntimeError, match="the run is stuck"):
                    await runs[0].send_event(Answer(text="too soon"))
            assert sorted(told[2:]) == ["events", "events", "result", "result"]
            for run in (*runs, await there.get("one"), await there.start(Talks, "one")):
                await wait(run)
                await read(run)
                with pytest.raises(WorkflowRuntimeError, match="the run is stuck"):
                    await run.cancel()
            assert await there.retry("one") == runs[1]
            await anyio.sleep(2)
            for run in runs:  # also where it was not retried
                assert run.info.status == "waiting"
                assert run.info.error is None
            await runs[0].send_event(Answer(text="a"))
            await runs[1].send_event(Answer(text="b"))
            for run in runs:
                assert await run == ["a", "b"]
                assert [type(event) async for event in run.stream_events(1)] == [
                    Question,
                    StopEvent,
                ]


async def test_k4_a_run_that_is_parked_can_be_removed() -> None:
    data = MemoryData()
    async with Runtime(a_store(data), workflows=[Talks(timeout=None)]) as first:
        await waiting(await first.start(Talks, "one"))
    data.runs["one"] = attrs.evolve(data.runs["one"], status="stuck")
    async with Runtime(a_store(data), workflows=[Talks(timeout=None)]) as here:
        run = await here.get("one")
        with pytest.raises(WorkflowRuntimeError, match=r"^run one of talks is stuck$"):
            await run
        await here.delete("one")
        with pytest.raises(UnknownRunError):
            await run
        with pytest.raises(UnknownRunError):
            _ = run.info


async def test_k4_a_run_that_is_removed_while_it_is_read_is_unknown() -> None:
    """At whichever moment: between any two reads of the store."""
    data = MemoryData()
    for turns in range(12):
        async with processes(OneStep(failing), data=data) as (here, there):
            run_id = f"run-{turns}"
            run = await here.start(OneStep, run_id)
            found: list[str] = []

            async def look(
                run_id: str = run_id, found: list[str] = found, there: Runtime = there
            ) -> None:
                try:
                    far = await there.get(run_id)
                    await far.open_waits()
                    await far
                except UnknownRunError:
                    found.append("unknown")
                except Exception as error:
                    found.append(str(error).splitlines()[0])

            with pytest.raises(ProviderError):
                await run
            with patience():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(look)
                    for _ in range(turns):
                        await checkpoint()
                    await here.delete(run_id)
            assert found in (["unknown"], ["down"])


async def test_k4_a_run_that_is_started_anew_under_the_id_of_a_removed_one_is_another_run() -> None:
    async with processes(OneStep(failing), Talks(timeout=None)) as (here, there):
        await here.start(OneStep, "one")
        old = await there.get("one")
        with pytest.raises(Exception, match="down"):
            await old
        await here.delete("one")
        await waiting(await here.start(Talks, "one"))
        await anyio.sleep(1)
        new = await there.get("one")
        assert (new.workflow, new.info.status, new.info.last_seq) == ("talks", "waiting", 1)
        await finish(there, "one")


async def test_d8_who_waits_for_the_run_of_another_process_is_told_when_the_runtime_is_left() -> (
    None
):
    data = MemoryData()
    talks = Talks(timeout=None)
    told: list[str] = []

    async def ask(act: Any) -> None:
        try:
            await act
        except WorkflowRuntimeError as error:
            told.append(str(error))

    async def read(run: RunHandle[Any]) -> None:
        async for _ in run.records():
            pass

    async def answer(run: RunHandle[Any]) -> None:
        while True:  # the other process is stopped: it takes no mail
            await run.send_event(Mail())

    async def wait(run: RunHandle[Any]) -> None:
        await run

    async with Runtime(MemoryStore(data), workflows=[talks]) as here:
        await waiting(await here.start(Talks, "one"))
        with patience():
            async with (
                anyio.create_task_group() as tasks,
                Runtime(MemoryStore(data), workflows=[talks]) as there,
            ):
                far = await there.get("one")
                for act in (read, answer, wait):
                    tasks.start_soon(ask, act(far))
                tasks.start_soon(ask, far.cancel())
                await anyio.sleep(1)
        assert len(told) == 4
        assert sum("because its runtime was left" in text for text in told) == 2
        assert sum("this runtime has been left" in text for text in told) == 2
        for act in (read(far), wait(far), far.send_event(Mail()), far.cancel()):
            with pytest.raises(WorkflowRuntimeError, match="left"):
                await act
        assert far.info.status == "waiting"
