"""Runs that are let go and brought back (rules D1 to D9)."""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import Context, Runtime, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import HostLostError, WorkflowRuntimeError
from anyio_workflows.instrument import ExecutionRecord, Instrument
from anyio_workflows.runtime import MemoryData, MemoryStore, RunHandle

from .samples import Answer, Asks, Loop, OneStep, ProviderError, Question
from .stores import MemoryPlace, SqlitePlace, opened

pytestmark = pytest.mark.anyio


class Gathers(Workflow):
    """Ends with the third of the answers that come from outside."""

    @step
    async def ask(self, ev: StartEvent) -> Question:
        return Question()

    @step
    async def gather(self, ctx: Context, ev: Answer) -> StopEvent | None:
        found = ctx.collect_events(ev, [Answer, Answer, Answer])
        return None if found is None else StopEvent(result=[one.n for one in found])


async def test_d1_what_is_in_a_buffer_stays_there_however_often_a_run_is_brought_back() -> None:
    data = MemoryData()
    async with Runtime(MemoryStore(data), workflows=[Gathers(timeout=None)]) as runtime:
        await (await runtime.start(Gathers, "one")).send_event(Answer(n=1))
    for n in (2, 3):
        async with Runtime(MemoryStore(data), workflows=[Gathers(timeout=None)]) as runtime:
            run = await runtime.get("one")
            await run.send_event(Answer(n=n))
            if n == 3:
                with anyio.fail_after(10):
                    assert await run == [1, 2, 3]


async def test_d4_the_error_of_a_run_is_the_same_in_every_process() -> None:
    async def act(ctx: Context) -> None:
        raise ProviderError("down")

    data = MemoryData()
    infos = []
    for _ in range(2):
        async with Runtime(MemoryStore(data), workflows=[OneStep(act)]) as runtime:
            run = await runtime.start(OneStep, "one")
            with pytest.raises(Exception, match="down"):
                await run
            infos.append(run.info)
    assert infos[0].error is not None
    assert infos[0].error.type == "ProviderError"
    assert infos[0].error == infos[1].error


async def test_d9_a_run_that_waits_is_not_stuck_however_often_its_process_dies() -> None:
    data = MemoryData()
    for _ in range(6):
        store = MemoryStore(data)
        async with Runtime(store, workflows=[Asks(timeout=None)], max_recoveries=2) as runtime:
            run = await runtime.start(Asks, "one")
            await anyio.sleep(5)
            assert run.info.status == "waiting"
            store.kill()


async def test_d9_a_run_that_kills_its_process_in_a_step_is_stuck_in_the_end() -> None:
    async def act(ctx: Context) -> None:
        await anyio.sleep(100)

    data, statuses = MemoryData(), []
    for _ in range(6):
        store = MemoryStore(data)
        async with Runtime(store, workflows=[OneStep(act)], max_recoveries=2) as runtime:
            run = await runtime.start(OneStep, "one")
            await anyio.sleep(5)
            statuses.append(run.info.status)
            store.kill()
    assert statuses == ["running"] * 3 + ["stuck"] * 3


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_d9_a_run_that_is_stuck_says_how_often_its_process_died_and_what_to_do(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    is_mended, begun = False, 0

    async def act(ctx: Context) -> str:
        nonlocal begun
        begun += 1
        while not is_mended:  # noqa: ASYNC110 - virtual time
            await anyio.sleep(0.01)
        return "mended"

    path = tmp_path / "runs.db"
    place: Any = MemoryPlace() if kind == "memory" else SqlitePlace(path)

    def process() -> Runtime:
        in_memory = kind == "memory"
        database = MemoryStore(place.data, poll=0.05) if in_memory else f"sqlite:///{path}"
        return Runtime(database, workflows=[OneStep(act)], max_recoveries=2)

    for n in range(3):
        with suppress(HostLostError):
            async with process() as runtime:
                await runtime.start(OneStep, "one")
                while begun == n:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
                place.kill(runtime._store)
                async with opened(other := place.store()):
                    await other.claim([], 0)  # notices that it is dead
    assert not caplog.records
    async with process() as runtime:
        run = await runtime.get("one")
        while run.info.status != "stuck":  # noqa: ASYNC110
            await anyio.sleep(0.01)
        [info] = (await runtime.runs(status="stuck")).runs
        assert info == run.info
        assert info.error is not None
        assert "died 3 times in a row" in info.error.message
        assert "runtime.retry('one')" in info.error.message
        [record] = caplog.records
        assert record.levelname == "WARNING"
        assert "run one of one_step is stuck: " in record.getMessage()
        assert info.error.message in record.getMessage()
        is_mended = True
        await runtime.retry("one")
        assert await run == "mended"
        assert run.info.error is None


async def test_d9_what_a_stuck_run_was_sent_is_refused_and_not_done_after_a_retry() -> None:
    async def act(ctx: Context) -> str:
        with suppress(TimeoutError):
            return (await ctx.wait_for_event(Answer, Question(), timeout=50)).text
        return "nobody answered"

    def process() -> Runtime:
        return Runtime(
            MemoryStore(data), workflows=[OneStep(act, timeout=None)], types=[Answer, Question]
        )

    data = MemoryData()
    async with process() as runtime:
        await runtime.start(OneStep, "one")
        await anyio.sleep(1)
    # Asleep, so that it is not stuck before it has mail.
    data.runs["one"] = attrs.evolve(data.runs["one"], recoveries=11, asleep_since=0.0)
    async with process() as runtime:
        run = await runtime.get("one")
        with pytest.raises(WorkflowRuntimeError, match="cannot be taken: the run is stuck"):
            await run.send_event(Answer(text="yes"))
        await runtime.retry("one")
        assert await run == "nobody answered"


async def test_k2_open_waits_of_a_run_are_counted_in_every_process() -> None:
    """Each of them, and not each type that is waited for."""

    async def act(ctx: Context) -> None:
        async with anyio.create_task_group() as group:
            for n in (1, 2):
                group.start_soon(ctx.wait_for_event, Answer, Question(n=n), f"w{n}", None, None)

    data, asks = MemoryData(), OneStep(act, timeout=None)
    async with (
        Runtime(MemoryStore(data), workflows=[asks], types=[Question, Answer]) as runtime,
        Runtime(MemoryStore(data), workflows=[asks], types=[Question, Answer]) as other,
    ):
        run = await runtime.start(OneStep, "one")
        await anyio.sleep(1)  # the questions, and so the waits, are in the store
        there = await other.get("one")
        assert (run.info.open_waits, there.info.open_waits) == (2, 2)
        assert len(await there.open_waits()) == 2
        [listed] = (await other.runs(waiting_for=Answer)).runs
        assert listed.open_waits == 2


async def test_d3_nothing_is_shown_before_it_is_on_the_disk() -> None:
    class Slow(MemoryStore):
        async def commit(self, changes: Any) -> set[str]:
            await anyio.sleep(10)
            return await super().commit(changes)

    async def act(ctx: Context) -> str:
        ctx.write_event_to_stream(Question(n=1))
        return "done"

    seen: list[tuple[float, str, int]] = []

    async def read(run: RunHandle[Any]) -> None:
        async for event in run.stream_events():
            kept = len(data.events["one"])
            seen.append((anyio.current_time() - started, type(event).__name__, kept))

    data, started = MemoryData(), anyio.current_time()
    async with Runtime(Slow(data), workflows=[OneStep(act)], types=[Question]) as runtime:
        run = await runtime.start(OneStep, "one")  # after the first commit
        async with anyio.create_task_group() as group:
            group.start_soon(read, run)
            await anyio.sleep(5)
            assert (seen, run.info.last_seq, run.info.status) == ([], 0, "running")
            assert await run == "done"
    # Both events are in the group of the end of the step, or the second one in the next.
    assert [name for _, name, _ in seen] == ["Question", "StopEvent"]
    assert all(at >= 19 and kept >= n for n, (at, _, kept) in enumerate(seen, start=1))


async def test_d2_a_reply_that_comes_with_the_end_of_the_run_is_a_reply() -> None:
    class Slow(MemoryStore):
        async def take_reply(self, mail_id: int) -> str | None:
            found = await super().take_reply(mail_id)
            await anyio.sleep(1)
            return found

    data = MemoryData()
    here = Runtime(MemoryStore(data, poll=0.1), workflows=[Asks()])
    there = Runtime(Slow(data, poll=0.1), workflows=[Asks()])
    async with here, there:
        run = await here.start(Asks, "one")
        assert await (await there.get("one")).send_event(Answer(text="well")) == ("ask",)
        assert await run == "well"
    assert not data.mail


# --- Many at once -------------------------------------------------------------------------------


class Counting(MemoryStore):
    """Counts what it is asked, and reads the rows of `most` runs at once."""

    def __init__(self, data: MemoryData, most: int = 1000, poll: float = math.inf) -> None:
        super().__init__(data, poll=poll)
        self.calls: Counter[str] = Counter()
        self.most = most

    async def claim(self, *args: Any, **more: Any) -> Any:
        self.calls["claim"] += 1
        return await super().claim(*args, **more)

    async def rows_of_each(self, run_ids: Any, enough: int = 0) -> Any:
        self.calls["rows"] += 1
        return await super().rows_of_each(run_ids[: self.most])

    async def find_run(self, *args: Any) -> Any:
        self.calls["find"] += 1
        return await super().find_run(*args)

    async def find_each(self, *args: Any) -> Any:
        self.calls["find"] += 1
        return await super().find_each(*args)


async def asked(number: int) -> MemoryData:
    """Return the data of some runs that wait for an answer, and that nobody executes."""
    data = MemoryData()
    async with Runtime(MemoryStore(data), workflows=[Asks(timeout=None)]) as runtime:
        for n in range(number):
            await runtime.start(Asks, f"run-{n}")
        await anyio.sleep(5)
    return data


async def answer_all(runtime: Runtime, number: int) -> None:
    for n in range(number):
        run = await runtime.get(f"run-{n}")
        assert await run.send_event(Answer(text=f"{n}")) == ("ask",)
        assert await run == f"{n}"


async def test_d8_many_runs_are_brought_back_with_few_calls() -> None:
    store = Counting(await asked(250))
    async with Runtime(store, workflows=[Asks(timeout=None)]) as runtime:
        await anyio.sleep(1)
        assert runtime.statistics().in_progress == 250
        assert store.calls["claim"] <= 5
        assert store.calls["rows"] == 3
        await answer_all(runtime, 250)


async def test_d8_others_run_while_many_runs_are_brought_back() -> None:
    seen = [0]
    async with Runtime(MemoryStore(await asked(50)), workflows=[Asks(timeout=None)]) as runtime:
        while seen[-1] < 50:
            await checkpoint()
            seen.append(runtime.statistics().in_progress)
    assert max(after - before for before, after in pairwise(seen)) <= 2


async def test_d8_runs_whose_rows_are_large_are_brought_back_one_after_the_other() -> None:
    store = Counting(await asked(7), most=1)
    async with Runtime(store, workflows=[Asks(timeout=None)]) as runtime:
        await answer_all(runtime, 7)
        assert store.calls["rows"] == 7


@pytest.mark.parametrize("damaged", ["run-0", "run-2", "run-4"])
async def test_d1_a_damaged_row_parks_none_of_the_runs_that_are_read_with_it(damaged: str) -> None:
    data = await asked(5)
    data.rows[damaged]["w1"] = "{"
    async with Runtime(MemoryStore(data), workflows=[Asks(timeout=None)]) as runtime:
        await anyio.sleep(1)
        statuses = {run.id: run.status for run in (await runtime.runs()).runs}
    assert statuses.pop(damaged) == "incompatible"
    assert list(statuses.values()) == ["waiting"] * 4


# --- Runs that somebody has a handle of ----------------------------------------------------------


async def test_d7_the_answer_of_a_released_run_waits_for_nothing_however_many_are_released() -> (
    None
):
    store = Counting(MemoryData(), poll=0.05)
    async with Runtime(store, workflows=[Asks(timeout=None)], idle_after=1) as runtime:
        runs = [await runtime.start(Asks) for _ in range(50)]
        await anyio.sleep(5)
        assert runtime.statistics().in_progress == 0
        for run in runs[:3]:
            before, calls = anyio.current_time(), store.calls["find"]
            assert await run.send_event(Answer(text="well")) == ("ask",)
            assert await run == "well"
            assert anyio.current_time() == before
            assert store.calls["find"] - calls < 10


async def test_d3_runs_of_another_process_are_followed_together() -> None:
    data = MemoryData()
    store, asks = Counting(data, poll=0.05), Asks(timeout=None)
    async with (
        Runtime(MemoryStore(data, poll=0.05), workflows=[asks]) as here,
        Runtime(store, workflows=[asks]) as there,
    ):
        for n in range(50):
            await here.start(Asks, f"{n}")
        far = [await there.get(f"{n}") for n in range(50)]
        await anyio.sleep(5)
        assert {run.info.status for run in far} == {"waiting"}
        calls = store.calls["find"]
        await (await here.get("7")).send_event(Answer(text="well"))
        assert await far[7] == "well"
        await anyio.sleep(0.5)
        assert store.calls["find"] - calls < 25


@pytest.mark.parametrize("fate", ["stuck", "incompatible", "completed"])
async def test_k2_a_handle_tells_what_became_of_a_run_that_was_claimed_and_not_executed(
    fate: str,
) -> None:
    """Nobody else has written, and no time passes after which this process would look by itself."""

    class Slow(MemoryStore):
        async def claim(self, *args: Any, **more: Any) -> Any:
            await anyio.sleep(1)
            return await super().claim(*args, **more)

    data = await asked(1)
    if fate == "stuck":
        data.runs["run-0"] = attrs.evolve(data.runs["run-0"], recoveries=99)
    elif fate == "incompatible":
        data.rows["run-0"]["w1"] = "{"
    else:  # its process died between the decision and the terminal event
        event = {"$": "anyio_workflows.events:StopEvent", "value": {"result": "well"}}
        row = {"kind": "completed", "summary": "", "error": None, "left": None, "event": event}
        data.rows["run-0"]["d"] = json.dumps(row)
    async with Runtime(Slow(data), workflows=[Asks(timeout=None)]) as runtime:
        run = await runtime.get("run-0")
        assert run.info.status == "waiting"
        await anyio.sleep(5)
        assert run.info.status == fate
        if fate == "completed":
            assert await run == "well"


# --- Instruments of a runtime -------------------------------------------------------------------


class Starts(Instrument):
    """Notes which steps begin."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def execution_started(self, execution: ExecutionRecord, time: float) -> None:
        self.steps.append(f"{execution.run.run_id} {execution.step}")


@pytest.mark.parametrize("store", [None, MemoryStore])
async def test_i1_instruments_of_a_runtime_are_told_about_all_of_its_runs(store: Any) -> None:
    starts = Starts()
    workflows = [Loop(), Asks()]
    database = None if store is None else store()
    async with Runtime(database, workflows=workflows, instruments=[starts]) as runtime:
        assert await (await runtime.start(Loop, "a", rounds=0)) == "over"
        run = await runtime.start(Asks, "b")
        async for _ in run.stream_events():
            break
        await run.send_event(Answer(text="well"))
        assert await run == "well"
    assert starts.steps == ["a start", "a turn", "b ask"]
