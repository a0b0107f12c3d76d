"""Random programs, a workflow that executes them, and runs of it that are interrupted by snapshots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.instrument import Instrument
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed


class Job(Event):
    """A token that carries its own program: what to do now, what afterwards, what around it.

    The label is the path to it, so each piece of work has one of its own, in every run.
    """

    label: str
    op: list[Any] = []
    todo: list[Any] = []
    frames: list[Any] = []
    value: int = 0


class Rest(Job): ...


class Flaky(Job): ...


class Broken(Job): ...


class Fork(Job): ...


class Halves(Job): ...


class Left(Job): ...


class Right(Job): ...


class Ask(Job): ...


class Meet(Job): ...


class EndAll(Job): ...


class EndTwo(Job): ...


class EndFirst(Job): ...


class Program(StartEvent):
    todo: list[Any]


class Prompt(InputRequiredEvent):
    label: str


class Reply(HumanResponseEvent):
    label: str
    n: int


InBatch = Rest | Flaky | Broken | Fork | Halves | Ask | Meet | EndAll | EndTwo | EndFirst
Next = InBatch | StopEvent

JOBS: dict[str, type[Job]] = {
    "rest": Rest,
    "flaky": Flaky,
    "broken": Broken,
    "halves": Halves,
    "ask": Ask,
    "meet": Meet,
    "all": Fork,
    "two": Fork,
    "first": Fork,
}
ENDS: dict[str, type[Job]] = {"all": EndAll, "two": EndTwo, "first": EndFirst}


def advance(job: Job, label: str, gain: int) -> Any:
    """Return the event for what comes next in a program."""
    value = job.value + gain
    if job.todo:
        (op, *todo), name = job.todo, f"{label}.{job.todo[0][0]}"
        return JOBS[op[0]](label=name, op=op, todo=todo, frames=job.frames, value=value)
    if job.frames:
        return ENDS[job.frames[-1][0]](label=label, frames=job.frames, value=value)
    return StopEvent(result=value)


def after_fork(events: Sequence[Job], gain: int) -> Any:
    """Return the event for what comes after a fork; each of the events knows its way back."""
    if not events:
        return None  # the batch belongs to another join
    *frames, (_, label, todo, value) = events[0].frames
    return advance(Job(label=label, todo=todo, frames=frames, value=value), f"{label}+", gain)


class Machine(Workflow[int]):
    """Executes programs; each step notes its label in the statement before it ends.

    What is sent before a snapshot stays sent, so its steps send nothing.
    """

    def __init__(self, finished: list[str], **config: Any) -> None:
        super().__init__(**{"timeout": None, **config})
        self.finished = finished

    @step
    async def start(self, ev: Program) -> Next:
        self.finished.append("start")
        return advance(Job(label="", todo=ev.todo), "", 0)

    @step(num_workers=2)
    async def rest(self, ev: Rest) -> Next:
        try:
            await anyio.sleep(ev.op[1])
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5)  # what was cancelled with its batch is slow to go
            raise
        self.finished.append(ev.label)
        return advance(ev, ev.label, 1)

    @step(retry_policy=retry_policy(stop=stop_after_attempt(4), wait=wait_fixed(0.75)))
    async def flaky(self, ctx: Context, ev: Flaky) -> Next:
        await anyio.sleep(ev.op[1])
        number = ctx.retry_info().retry_number
        self.finished.append(f"{ev.label} attempt {number}")
        if number < ev.op[2]:
            raise ValueError(ev.label)
        return advance(ev, ev.label, 1)

    @step(num_workers=3)
    async def broken(self, ev: Broken) -> Next:
        await anyio.sleep(ev.op[1])
        self.finished.append(ev.label)
        raise ValueError(ev.label)

    @catch_error(for_steps=["broken"], max_recoveries=1000)
    async def recover(self, ev: StepFailedEvent) -> Next:
        job = ev.input_event
        assert isinstance(job, Broken)
        assert ev.exception.args == (job.label,)
        await anyio.sleep(job.op[1])
        self.finished.append(f"{job.label} recovered")
        return advance(job, job.label, 1)

    @step
    async def left(self, ev: Halves) -> Left:
        await anyio.sleep(ev.op[1])
        self.finished.append(f"{ev.label} left")
        return Left(**ev)

    @step
    async def right(self, ev: Halves) -> Right:
        await anyio.sleep(ev.op[2])
        self.finished.append(f"{ev.label} right")
        return Right(**ev)

    @step
    async def pair(self, left: Left, right: Right) -> Next:
        assert left.label == right.label
        await anyio.sleep(left.op[1])
        self.finished.append(f"{left.label} pair")
        return advance(left, left.label, 1)

    @step(num_workers=1)
    async def ask(self, ctx: Context, ev: Ask) -> Next:
        wanted = {"label": ev.label}
        reply = await ctx.wait_for_event(Reply, Prompt(label=ev.label), requirements=wanted)
        await anyio.sleep(ev.op[1])
        self.finished.append(ev.label)
        return advance(ev, ev.label, reply.n)

    @step
    async def meet(self, ctx: Context, ev: Meet) -> InBatch | None:
        _, seconds, number = ev.op
        place = ev.frames[-1][1]
        found = ctx.collect_events(ev, [Meet] * number, buffer_id=place)
        await anyio.sleep(seconds)
        self.finished.append(ev.label)
        if found is None:
            return None
        total = sum(one.value for one in found if isinstance(one, Meet))
        return advance(ev, f"{place} met", total - ev.value)

    @step
    async def fork(self, ev: Fork) -> list[InBatch]:
        kind, programs = ev.op
        await anyio.sleep(0.25)
        self.finished.append(ev.label)
        frames = [*ev.frames, [kind, ev.label, ev.todo, ev.value]]
        jobs = [Job(label="", todo=program, frames=frames) for program in programs]
        return [advance(job, f"{ev.label} {n}", 0) for n, job in enumerate(jobs)]

    @step
    async def join_all(self, events: list[EndAll]) -> Next | None:
        return self.joined(events, sum(event.value for event in events))

    @step
    async def join_two(self, events: Annotated[list[EndTwo], Collect(Take(2))]) -> Next | None:
        return self.joined(events, len(events))

    @step
    async def join_first(
        self, events: Annotated[list[EndFirst], Collect(Take(1, cancel=True))]
    ) -> Next | None:
        return self.joined(events, len(events))

    def joined(self, events: Sequence[Job], gain: int) -> Any:
        if events:
            self.finished.append(f"{events[0].frames[-1][1]} joined")
        return after_fork(events, gain)


@attrs.define
class Moment:
    """When to snapshot a run, and how to go on."""

    seconds: float
    checkpoints: int
    in_process: bool
    delay: float
    """Of the replies, after it has gone on."""


@attrs.define
class Line:
    """What has been done in a line of runs, each of which goes on from the one before."""

    finished: list[str] = attrs.field(factory=list)
    asked: list[str] = attrs.field(factory=list)
    replied: list[str] = attrs.field(factory=list)
    result: int | None = None
    instruments: Sequence[Instrument] = ()
    """Told about each of the runs."""

    def copy(self) -> Line:
        done = [*self.finished], [*self.asked], [*self.replied]
        return Line(*done, self.result, self.instruments)


class Leg:
    """One run, whose prompts are answered, those of earlier runs too."""

    def __init__(self, line: Line, context: Any, delay: float, todo: list[Any]) -> None:
        self.line, self.delay = line, delay
        self.killed = False
        self.workflow = Machine(line.finished, instruments=line.instruments)
        if context is None:
            self.handler = self.workflow.run(todo=todo)
        elif isinstance(context, Context):
            self.handler = self.workflow.run(ctx=context)
        else:
            context = Context.from_dict(self.workflow, context, types=[Reply])
            self.handler = self.workflow.run(ctx=context)

    async def play(self, moment: Moment | None) -> Any:
        """Play it up to a moment, or to its end; return what to go on from, if there is."""
        left: Any = None
        async with anyio.create_task_group() as replies:
            for label in self.line.asked:
                if label not in self.line.replied:
                    replies.start_soon(self.reply, label)
            async with anyio.create_task_group() as reader:
                reader.start_soon(self.read, replies)
                if moment is not None:
                    with anyio.move_on_after(moment.seconds):
                        await self.handler
                    for _ in range(moment.checkpoints):
                        await checkpoint()
                    left = await self.stop(moment)
            replies.cancel_scope.cancel()
        if left is None:
            self.line.result = await self.handler
        return left

    async def stop(self, moment: Moment) -> Any:
        running = self.handler.ctx.is_running
        data = json.loads(json.dumps(self.handler.ctx.to_dict([Reply]), allow_nan=False))
        assert running == (data["work"] is not None)
        if not running:
            return None
        self.workflow.finished = []  # what comes from now on does not count
        self.killed = not moment.in_process
        await self.handler.cancel_run()
        return self.handler.ctx if moment.in_process else data

    async def read(self, replies: TaskGroup) -> None:
        async for event in self.handler.stream_events():
            if isinstance(event, Prompt) and not self.killed:
                self.line.asked.append(event.label)
                replies.start_soon(self.reply, event.label)

    async def reply(self, label: str) -> None:
        await anyio.sleep(self.delay)
        with suppress(WorkflowRuntimeError):  # the run has ended
            await self.handler.send_event(Reply(label=label, n=2))
            if self.handler.ctx.is_running:
                self.line.replied.append(label)


async def play(
    todo: list[Any],
    moments: Sequence[Moment],
    twice: bool,
    instruments: Sequence[Instrument] = (),
) -> list[Line]:
    """Play a program, interrupted at these moments; `twice` also plays on without the others."""
    line, left, others = Line(instruments=instruments), None, []
    for n, moment in enumerate([*moments, None]):
        delay = moments[n - 1].delay if n else 0.5
        leg = Leg(line, left, delay, todo)
        left = await leg.play(moment)
        if left is None:
            break
        if twice and isinstance(left, dict):
            other = line.copy()
            await Leg(other, left, 0.25, todo).play(None)
            others.append(other)
    return [line, *others]


times = st.sampled_from([0.0, 0.25, 0.5, 1.0])
simple_ops = (
    st.tuples(st.just("rest"), times)
    | st.tuples(st.just("flaky"), times, st.integers(0, 2))
    | st.tuples(st.just("broken"), times)
    | st.tuples(st.just("halves"), times, times)
    | st.tuples(st.just("ask"), times)
).map(list)


def forks(programs: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[list[Any]]:
    several = st.lists(programs, min_size=1, max_size=4)
    plain = st.tuples(st.sampled_from(["all", "two", "first"]), several).map(list)
    return plain | st.builds(_gathering, several, times)


def _gathering(programs: list[list[Any]], seconds: float) -> list[Any]:
    meet = ["meet", seconds, len(programs)]
    return ["all", [[*program, meet] for program in programs]]


programs = st.recursive(
    st.lists(simple_ops, max_size=3),
    lambda inner: st.lists(simple_ops | forks(inner), min_size=1, max_size=3),
    max_leaves=8,
)
whole_programs = st.builds(
    lambda first, fork: [*first, fork], st.lists(simple_ops, max_size=2), forks(programs)
).map(lambda todo: [["all", [todo]]] if todo[-1][0] != "all" else todo)
moments = st.builds(
    Moment,
    seconds=st.integers(0, 24).map(lambda quarters: quarters / 4),
    checkpoints=st.integers(0, 12),
    in_process=st.booleans(),
    delay=st.sampled_from([0.0, 0.5]),
)
