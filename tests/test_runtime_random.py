"""A runtime in memory does what a simple model of it does, whatever is done in whatever order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Runtime,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    step,
)
from anyio_workflows.errors import UnknownRunError, WorkflowCancelledByUser, WorkflowRuntimeError
from anyio_workflows.instrument import EventRecord
from anyio_workflows.runtime import LogReader
from anyio_workflows.runtime._memory import MemoryData, MemoryStore

from .running import on_each_backend, run_virtually
from .samples import Answer, Note, ProviderError

KEEP_ENDED, KEEP_FOR, MAX_RUNS = 2, 100.0, 3


class Obeys(Workflow[str]):
    """One step that does what it is told: it writes, returns, or fails, each failure once."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.failed: set[tuple[str, int]] = set()

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        number = 0
        while True:
            answer = await ctx.wait_for_event(Answer, timeout=None, waiter_id=f"w{number}")
            if answer.text == "return":
                return StopEvent(result="returned")
            if answer.text == "fail" and (ctx.run_id, number) not in self.failed:
                self.failed.add((ctx.run_id, number))
                raise ProviderError("told to")
            ctx.write_event_to_stream(Note(text=answer.text))
            number += 1


@attrs.define
class Model:
    """What is known about a run: what it was told, and the events in its log."""

    life: int
    status: str = "waiting"
    told: list[str] = attrs.field(factory=list)
    log: list[object] = attrs.field(factory=list)
    ended: float = 0.0

    def tell(self, what: str, now: float) -> None:
        self.told.append(what)
        if what == "write":
            self.log.append("write")
        elif what == "return":
            self.end("completed", StopEvent, now)
        else:
            self.end("failed", WorkflowFailedEvent, now)

    def end(self, status: str, event: type[StopEvent], now: float) -> None:
        self.status, self.ended = status, now
        self.log.append(event)

    def retry(self) -> None:
        self.status = "waiting"
        self.log += (
            self.told
        )  # each answer is given again, and what has failed once does not fail again


@attrs.define
class Reading:
    """A reader, and what it has read of which life of which run."""

    reader: LogReader
    of: Model
    read: int


class Machine:
    """A runtime and the model of its runs, to which the same things are done."""

    def __init__(self, runtime: Runtime, stored: bool) -> None:
        self.runtime, self.stored = runtime, stored
        self.runs: dict[str, Model] = {}
        self.readings: list[Reading] = []
        self.lives = 0

    # --- What can be done -----------------------------------------------------------------------

    async def start(self, name: str) -> None:
        busy = sum(run.status == "waiting" for run in self.runs.values())
        if name not in self.runs and busy == MAX_RUNS:
            with pytest.raises(WorkflowRuntimeError, match="runs are in progress"):
                await self.runtime.start(Obeys, name)
            return
        run = await self.runtime.start(Obeys, name)
        assert run.id == name
        if name not in self.runs:
            self.lives += 1
            self.workflow.failed -= {one for one in self.workflow.failed if one[0] == name}
            self.runs[name] = Model(self.lives)

    async def tell(self, name: str, what: str) -> None:
        run, model = await self.runtime.get(name), self.runs[name]
        if model.status == "waiting":
            assert await run.send_event(Answer(text=what)) == ("only",)
            model.tell(what, anyio.current_time())
        else:
            with pytest.raises(WorkflowRuntimeError, match="cannot be sent: the run has ended"):
                await run.send_event(Answer(text=what))

    async def cancel(self, name: str) -> None:
        await (await self.runtime.get(name)).cancel()
        if self.runs[name].status == "waiting":
            self.runs[name].end("cancelled", WorkflowCancelledEvent, anyio.current_time())

    async def retry(self, name: str) -> None:
        busy = sum(run.status == "waiting" for run in self.runs.values())
        model = self.runs[name]
        if model.status in ("waiting", "completed") or busy == MAX_RUNS:
            with pytest.raises(WorkflowRuntimeError, match=r"cannot be retried|are in progress"):
                await self.runtime.retry(name)
        else:
            await self.runtime.retry(name)
            model.retry()

    async def delete(self, name: str) -> None:
        if self.runs[name].status == "waiting":
            with pytest.raises(WorkflowRuntimeError, match="cannot be deleted"):
                await self.runtime.delete(name)
        else:
            await self.runtime.delete(name)
            del self.runs[name]

    async def wait_for(self, name: str) -> None:
        run, status = await self.runtime.get(name), self.runs[name].status
        if status == "completed":
            assert await run == "returned"
        elif status == "waiting":
            with anyio.move_on_after(0) as scope:
                await run
            assert scope.cancelled_caught
        elif status == "cancelled":
            with pytest.raises(WorkflowCancelledByUser):
                await run
        else:  # the exception itself, or what was read from the store, if nobody had a handle
            with pytest.raises(ProviderError if not self.stored else Exception, match="told to"):
                await run

    async def open_reader(self, name: str, share: float) -> None:
        model, run = self.runs[name], await self.runtime.get(name)
        after = int(share * len(model.log))
        self.readings.append(Reading(run.records(after), model, after))

    async def read(self, which: int, number: int) -> None:
        if not self.readings:
            return
        reading = self.readings[which % len(self.readings)]
        model = reading.of
        for _ in range(number):
            with anyio.move_on_after(0.5) as scope:
                record = await anext(reading.reader, None)
            if scope.cancelled_caught:
                assert (reading.read, model.status) == (len(model.log), "waiting")
                return
            if record is None:
                assert reading.read == len(model.log) or model.status == "waiting"
                self.readings.remove(reading)
                return
            assert isinstance(record, EventRecord)
            expected = model.log[reading.read]
            reading.read += 1
            assert record.seq == reading.read
            told = record.event.text if isinstance(record.event, Note) else type(record.event)
            assert told == expected

    # --- What is true after each of them ----------------------------------------------------------

    def remove_old(self) -> None:
        if self.stored:
            return
        ended = [name for name, run in self.runs.items() if run.status != "waiting"]
        ended.sort(key=lambda name: self.runs[name].ended)
        now = anyio.current_time()
        for n, name in enumerate(ended):
            if len(ended) - n > KEEP_ENDED or self.runs[name].ended + KEEP_FOR <= now:
                del self.runs[name]

    async def check(self) -> None:
        page = await self.runtime.runs()
        assert {info.id: info.status for info in page.runs} == {
            name: run.status for name, run in self.runs.items()
        }
        newest_first = sorted(self.runs, key=lambda name: -self.runs[name].life)
        assert [info.id for info in page.runs] == newest_first
        for info in page.runs:
            run = self.runs[info.id]
            assert info.last_seq == len(run.log)
            assert info.open_waits == (run.status == "waiting")
            assert (info.ended is None) == (run.status == "waiting")
            assert (info.error is None) == (run.status in ("waiting", "completed"))
        counts = self.runtime.statistics()
        assert counts.in_progress == sum(run.status == "waiting" for run in self.runs.values())

    @property
    def workflow(self) -> Any:
        return self.runtime.workflows["obeys"]


names = st.sampled_from(["a", "b", "c", "d", "e"])
acts = st.one_of(
    st.tuples(st.just("start"), names),
    st.tuples(
        st.just("tell"), names, st.sampled_from(["write", "write", "return", "fail", "fail"])
    ),
    st.tuples(st.sampled_from(["cancel", "retry", "retry", "delete", "wait_for"]), names),
    st.tuples(st.just("open_reader"), names, st.floats(0, 1)),
    st.tuples(st.just("read"), st.integers(0, 20), st.integers(1, 20)),
    st.tuples(st.just("sleep"), st.sampled_from([1.0, 30.0, 99.0])),
)


async def play(script: list[tuple[Any, ...]], stored: bool = False) -> None:
    limits: dict[str, Any] = {"keep_ended": KEEP_ENDED, "keep_ended_for": KEEP_FOR}
    database = None
    if stored:  # which keeps all runs for long, by the wall clock
        limits, database = {}, MemoryStore(MemoryData())
    async with Runtime(database, workflows=[Obeys()], max_runs=MAX_RUNS, **limits) as runtime:
        machine = Machine(runtime, stored)
        for name, *args in script:
            if name == "sleep":
                await anyio.sleep(args[0])
            elif name in ("start", "read") or args[0] in machine.runs:
                act: Callable[..., Any] = getattr(machine, name)
                await act(*args)
            else:
                with pytest.raises(UnknownRunError):
                    await runtime.get(args[0])
            await anyio.sleep(1)
            machine.remove_old()
            await machine.check()


@on_each_backend
@settings(max_examples=150)
@given(script=st.lists(acts, min_size=5, max_size=60))
def test_a_runtime_does_what_its_model_does(backend: str, script: list[tuple[Any, ...]]) -> None:
    run_virtually(backend, lambda: play(script))


@on_each_backend
@settings(max_examples=40)
@given(script=st.lists(acts, min_size=5, max_size=60))
def test_so_does_a_runtime_with_a_store(backend: str, script: list[tuple[Any, ...]]) -> None:
    run_virtually(backend, lambda: play(script, stored=True))
