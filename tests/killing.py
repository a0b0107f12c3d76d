"""Kill processes with SIGKILL at random moments, and check afterwards that every rule held.

Processes execute runs that are kept in one SQLite database. Each step writes a line to a file when it begins,
which no crash takes back. Another process only watches: it reads some runs, with cursors, answers their questions,
kills one of the others again and again, and starts it anew. In the end the database, the file and what was read
have to agree.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
from anyio.abc import TaskGroup

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    Runtime,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows.errors import UnknownRunError, WorkflowRuntimeError
from anyio_workflows.instrument import EventRecord
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from anyio_workflows.wire import to_data

# --- The workflow ------------------------------------------------------------------------------

TICKS, ITEMS = 3, 6
PAUSE = 0.01
"""Seconds that a step takes."""


class Tick(Event):
    n: int


class Split(Event):
    pass


class Piece(Event):
    i: int


class Rough(Event):
    i: int


class Fine(Event):
    i: int


class Sum(Event):
    total: int


class Said(Event):
    words: list[str]


class Note(Event):
    text: str


class Ask(InputRequiredEvent):
    about: str


class Say(HumanResponseEvent):
    about: str
    text: str


class Journey(Workflow[str]):
    """A loop, a fan-out with retries and two steps for each piece, a join, two questions, and state."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Tick:
        effect(ctx, "begin")
        return Tick(n=TICKS)

    @step
    async def tick(self, ctx: Context, ev: Tick) -> Tick | Split:
        effect(ctx, f"tick {ev.n}")
        await anyio.sleep(PAUSE)
        ctx.write_event_to_stream(Note(text=f"tick {ev.n}"))
        async with ctx.store.edit_state() as state:
            state[f"tick {ev.n}"] = ev.n
        return Tick(n=ev.n - 1) if ev.n > 1 else Split()

    @step
    async def split(self, ctx: Context, ev: Split) -> list[Piece]:
        effect(ctx, "split")
        return [Piece(i=i) for i in range(ITEMS)]

    @step(
        num_workers=3, retry_policy=retry_policy(wait=wait_fixed(PAUSE), stop=stop_after_attempt(3))
    )
    async def work(self, ctx: Context, ev: Piece) -> Rough:
        effect(ctx, f"work {ev.i}")
        await anyio.sleep(PAUSE)
        ctx.write_event_to_stream(Note(text=f"work {ev.i}"))
        if ev.i % 3 == 0 and ctx.retry_info().retry_number == 0:
            raise OSError("the first time")
        return Rough(i=ev.i)

    @step(num_workers=3)
    async def polish(self, ctx: Context, ev: Rough) -> Fine:
        effect(ctx, f"polish {ev.i}")
        await anyio.sleep(PAUSE)
        return Fine(i=ev.i)

    @step
    async def join(self, ctx: Context, found: list[Fine]) -> Sum:
        effect(ctx, "join")
        return Sum(total=sum(one.i for one in found))

    @step
    async def ask(self, ctx: Context, ev: Sum) -> Said:
        effect(ctx, "ask")
        words = []
        for about in ("name", "place"):
            said = await ctx.wait_for_event(
                Say, Ask(about=about), requirements={"about": about}, timeout=None
            )
            words.append(said.text)
        await ctx.store.set("words", words)
        return Said(words=[*words, str(ev.total)])

    @step
    async def end(self, ctx: Context, ev: Said) -> StopEvent:
        effect(ctx, "end")
        state = await ctx.store.get_state()
        ticks = sum(state[f"tick {n}"] for n in range(1, TICKS + 1))
        return StopEvent(result="-".join([*ev.words, *state["words"], str(ticks)]))


RESULT = "NAME-PLACE-15-NAME-PLACE-6"

PIECES = range(ITEMS)
ORDER: list[list[str]] = [
    ["begin"],
    *[[f"tick {n}"] for n in range(TICKS, 0, -1)],
    ["split"],
    [f"work {i}" for i in PIECES],
    [f"polish {i}" for i in PIECES],
    ["join"],
    ["ask"],
    ["end"],
]
"""The steps in the order of a run. Those of one line are beside each other, one for each piece."""

RANK = {what: rank for rank, line in enumerate(ORDER) for what in line}


class Watching(Workflow):
    """The run of the process that only watches: it leaves no room for others."""

    @step
    async def watch(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep_forever()
        raise AssertionError


_effects = -1


def effect(ctx: Context, what: str) -> None:
    """Write a line that no crash takes back."""
    line = f"{ctx.run_id}\t{what}\t{ctx.idempotency_key}\t{os.getpid()}\n"
    os.write(_effects, line.encode())


# --- The processes that are killed -------------------------------------------------------------------


@attrs.frozen
class Setup:
    """What all processes know.

    Attributes:
        folder: Where the files are.
        processes: How many processes execute runs.
        backends: Those of the processes, in turn.
        width: How many runs each of them has in progress.
        idle_after: As for `Runtime`.
    """

    folder: Path
    processes: int = 1
    backends: tuple[str, ...] = ("asyncio",)
    width: int = 8
    idle_after: float | None = None

    @property
    def database(self) -> Path:
        return self.folder / "runs.db"

    @property
    def effects(self) -> Path:
        return self.folder / "effects"

    @property
    def last_call(self) -> Path:
        """Once this file is there, no run is started any more."""
        return self.folder / "last-call"

    def ids(self, number: int, first: int = 0) -> Iterator[str]:
        """Yield the ids of the runs that a process starts, from the one with this number on."""
        for n in range(first, sys.maxsize):
            yield f"run-{number}-{n}"


def execute(setup: Setup, number: int, first: int) -> None:
    """Execute runs until it is killed, or told that the last one is started."""
    global _effects
    _effects = os.open(setup.effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    backend = setup.backends[number % len(setup.backends)]
    anyio.run(_execute, setup, setup.ids(number, first), backend=backend)


async def _execute(setup: Setup, ids: Iterator[str]) -> None:
    async with Runtime(
        f"sqlite:///{setup.database}",
        workflows=[Journey(timeout=None)],
        idle_after=setup.idle_after,
        max_recoveries=1_000_000,
    ) as runtime:

        async def execute_some() -> None:
            while not setup.last_call.exists():
                run = await runtime.start(Journey, next(ids))
                await run

        async with anyio.create_task_group() as group:
            for _ in range(setup.width):
                group.start_soon(execute_some)
        while await _some_are_left(runtime):  # noqa: ASYNC110 - others may have started them
            await anyio.sleep(PAUSE)


async def _some_are_left(runtime: Runtime) -> bool:
    # All in one look: between two, a run may change from what the second asks for to what the first asked for.
    found = await runtime.runs(workflow=Journey, limit=1_000_000)
    return any(info.status in ("queued", "running", "waiting") for info in found.runs)


# --- The process that watches ------------------------------------------------------------------------


@attrs.define
class Report:
    """What happened.

    Attributes:
        kills: How often a process was killed.
        runs: How many runs were executed.
        executions: How often a step began.
        again: How many of those were executions that had begun before, and had been cut off.
        events: How many events were written.
        read: How many of them were read while all this happened.
        seconds: How long it took.
        faults: What was wrong.
    """

    kills: int = 0
    runs: int = 0
    executions: int = 0
    again: int = 0
    events: int = 0
    read: int = 0
    seconds: float = 0.0
    faults: list[str] = attrs.field(factory=list)

    def summary(self) -> str:
        """Say it in a few lines."""
        return "\n".join(
            [
                f"{self.kills} kills in {self.seconds:.0f} s: {self.runs} runs with {self.executions} executions, of "
                f"which {self.again} were cut off and began again; {self.events} events, {self.read} of them read "
                f"meanwhile; {len(self.faults)} faults",
                *self.faults[:20],
            ]
        )


@attrs.define
class Driver:
    """Starts processes, kills them, and watches the runs.

    Attributes:
        setup: What all processes know.
        kills: How often to kill.
        random: For the moments.
        report: What happened.
        seen: What was read of some runs, by their ids.
        answered: The waits that were answered, each with its run.
    """

    setup: Setup
    kills: int
    random: random.Random
    report: Report = attrs.field(factory=Report)
    seen: dict[str, list[EventRecord]] = attrs.field(factory=lambda: defaultdict(list))
    answered: set[tuple[str, str]] = attrs.field(factory=set)
    _processes: list[Any] = attrs.field(factory=list)
    _started: Counter[int] = attrs.field(factory=Counter)
    _over: bool = False

    def run(self) -> Report:
        """Do it all."""
        began = time.monotonic()
        anyio.run(self._watch)
        self.report.seconds = time.monotonic() - began
        check(self.setup, self.seen, self.report)
        return self.report

    async def _watch(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        try:
            await self._watch_processes(context)
        finally:
            for process in self._processes:
                process.kill()

    async def _watch_processes(self, context: Any) -> None:
        runtime = Runtime(
            f"sqlite:///{self.setup.database}",
            workflows=[Journey(timeout=None), Watching(timeout=None)],
            max_runs=1,
        )
        async with runtime:
            watching = await runtime.start(Watching)
            self._processes = [self._start(context, n) for n in range(self.setup.processes)]
            async with anyio.create_task_group() as readers:
                for number in range(self.setup.processes):
                    readers.start_soon(self._follow_some, runtime, number)
                async with anyio.create_task_group() as people:
                    people.start_soon(self._answer, runtime, people)
                    await self._kill(context)
                    self.setup.last_call.touch()
                    await self._join()
                    self._over = True
                readers.cancel_scope.cancel()
            await watching.cancel()
            await runtime.delete(watching.id)

    def _start(self, context: Any, number: int) -> Any:
        process = context.Process(target=execute, args=(self.setup, number, self._first(number)))
        process.start()
        return process

    def _first(self, number: int) -> int:
        """Return the number of the first run of a process that is not known to have ended."""
        with sqlite3.connect(self.setup.database) as db:
            ended = {run for (run,) in db.execute("SELECT id FROM runs WHERE status = 'completed'")}
        db.close()
        while f"run-{number}-{self._started[number]}" in ended:
            self._started[number] += 1
        return self._started[number]

    async def _kill(self, context: Any) -> None:
        """Kill one of the processes at random moments, when it has begun to do something."""
        while self.report.kills < self.kills and not self.report.faults:
            number = self.random.randrange(self.setup.processes)
            before = self._size()
            while self._size() == before:
                self._check_alive()
                await anyio.sleep(0.002)
            await anyio.sleep(self.random.random() * 0.25)
            process = self._processes[number]
            process.kill()
            await anyio.to_thread.run_sync(process.join)
            self.report.kills += 1
            self._processes[number] = self._start(context, number)

    def _size(self) -> int:
        return self.setup.effects.stat().st_size if self.setup.effects.exists() else 0

    def _check_alive(self) -> None:
        """Note processes that have ended by themselves."""
        for number, process in enumerate(self._processes):
            if not process.is_alive():
                self.report.faults.append(f"process {number} ended with {process.exitcode}")
                raise SystemExit(1)

    async def _join(self) -> None:
        for number, process in enumerate(self._processes):
            await anyio.to_thread.run_sync(process.join)
            if process.exitcode:
                self.report.faults.append(f"process {number} ended with {process.exitcode}")

    # --- What people do ---

    async def _answer(self, runtime: Runtime, people: TaskGroup) -> None:
        """Answer each wait once, a moment after it was seen."""
        while not self._over:
            for info in (await runtime.runs(waiting_for=Say, limit=1000)).runs:
                run = await runtime.get(info.id)
                for wait in await run.open_waits():
                    if (info.id, wait.id) not in self.answered:
                        self.answered.add((info.id, wait.id))
                        people.start_soon(self._say, run, wait)
            await anyio.sleep(PAUSE)

    async def _say(self, run: Any, wait: Any) -> None:
        await anyio.sleep(self.random.random() * 0.05)
        about = wait.question.about
        try:
            taken_by = await run.send_event(Say(about=about, text=about.upper()), wait=wait.id)
        except WorkflowRuntimeError as error:
            self.report.faults.append(f"{run.id}: the answer to {wait.id} was refused: {error}")
            return
        if taken_by != ("ask",):
            self.report.faults.append(f"{run.id}: the answer to {wait.id} went to {taken_by}")

    async def _follow_some(self, runtime: Runtime, number: int) -> None:
        """Read every third run of a process, one after the other, a few events at a time."""
        for n in range(0, sys.maxsize, 3):
            run_id = f"run-{number}-{n}"
            while not (self.seen[run_id] and isinstance(self.seen[run_id][-1].event, StopEvent)):
                try:
                    run = await runtime.get(run_id)
                except UnknownRunError:
                    await anyio.sleep(PAUSE)
                    continue
                left = self.random.randint(1, 10)
                async for record in run.records(after=len(self.seen[run_id])):
                    assert isinstance(record, EventRecord)
                    self.seen[run_id].append(record)
                    self.report.read += 1
                    left -= 1
                    if not left:
                        break


# --- What has to be true in the end ------------------------------------------------------------------


def check(setup: Setup, seen: dict[str, list[EventRecord]], report: Report) -> None:
    """Compare the database, what the steps did, and what was read."""
    note = report.faults.append
    db = sqlite3.connect(setup.database)
    [(integrity,)] = db.execute("PRAGMA integrity_check").fetchall()
    if integrity != "ok":
        note(f"the database is damaged: {integrity}")
    for table in ("rows", "inbox", "waits", "hosts"):
        [(left,)] = db.execute(f"SELECT count(*) FROM {table}").fetchall()
        if left:
            note(f"{left} lines are left in table {table}")
    runs = db.execute("SELECT no, id, status, last_seq, owner FROM runs WHERE id LIKE 'run-%'")
    for no, run_id, status, last_seq, owner in runs.fetchall():
        report.runs += 1
        if status != "completed" or owner is not None:
            note(f"{run_id} is {status}, and belongs to {owner}")
        events = db.execute("SELECT seq, text FROM events WHERE run = ? ORDER BY seq", (no,))
        check_log(run_id, last_seq, events.fetchall(), seen.get(run_id, ()), report)
    db.close()
    check_effects(setup.effects.read_text().splitlines(), report)
    if left_over := sorted(path.name for path in setup.folder.glob("runs.db-*")) + sorted(
        path.name for path in setup.folder.glob("runs.db.*")
    ):
        note(f"files are left: {left_over}")


def check_log(
    run_id: str,
    last_seq: int,
    events: list[tuple[int, str]],
    seen: Iterable[EventRecord],
    report: Report,
) -> None:
    """Check the events of one run."""
    note = report.faults.append
    report.events += len(events)
    numbers = [seq for seq, _ in events]
    if numbers != list(range(1, last_seq + 1)):
        note(f"{run_id} has the numbers {numbers}, and the last is {last_seq}")
    written = [json.loads(text) for _, text in events]
    kinds = [one["$"].rpartition(":")[2] for one in written]
    if kinds.count("StopEvent") != 1 or kinds[-1] != "StopEvent":
        note(f"{run_id} has the events {kinds}")
    elif written[-1]["value"]["result"] != RESULT:
        note(f"{run_id} ended with {written[-1]}")
    if kinds.count("Ask") != 2:
        note(f"{run_id} has asked {kinds.count('Ask')} times")
    for place, record in enumerate(seen, 1):
        if record.seq != place or kinds[place - 1] != type(record.event).__name__:
            note(f"{run_id}: a reader has seen {record}, as number {place}")
        elif to_data(record.event) != written[place - 1]["value"]:
            note(f"{run_id}: a reader has seen {record}, which is now {written[place - 1]}")


def check_effects(lines: list[str], report: Report) -> None:
    """Check that no step began when one that follows from it had begun: its end was on the disk then."""
    note = report.faults.append
    began: dict[str, set[str]] = defaultdict(set)
    keys: dict[tuple[str, str], str] = {}
    for line in lines:
        run_id, what, key, _ = line.split("\t")
        report.executions += 1
        report.again += what in began[run_id]
        for later in began[run_id]:
            beside = what[-1].isdigit() and later[-1].isdigit() and len(ORDER[RANK[what]]) > 1
            if RANK[later] > RANK[what] and not (
                beside and len(ORDER[RANK[later]]) > 1 and what.split()[1] != later.split()[1]
            ):
                note(f"{run_id}: {what} began after {later}")
        began[run_id].add(what)
        if keys.setdefault((run_id, what), key) != key:
            note(f"{run_id}: {what} had the key {keys[run_id, what]}, and then {key}")
    owners: dict[tuple[str, str], str] = {}
    for (run_id, what), key in keys.items():
        if owners.setdefault((run_id, key), what) != what:
            note(f"{run_id}: {what} has the key of {owners[run_id, key]}")


def kill(
    kills: int,
    processes: int = 1,
    backends: tuple[str, ...] = ("asyncio",),
    idle_after: float | None = None,
    seed: int | None = None,
) -> Report:
    """Kill processes so often, and return what happened."""
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder), processes, backends, idle_after=idle_after)
        return Driver(setup, kills, random.Random(seed)).run()


def main() -> None:
    """Kill as often as the arguments say, and print what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--backends", nargs="+", default=["asyncio"])
    parser.add_argument("--idle-after", type=float)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    report = kill(given.kills, given.processes, tuple(given.backends), given.idle_after, given.seed)
    print(report.summary())
    sys.exit(bool(report.faults))
