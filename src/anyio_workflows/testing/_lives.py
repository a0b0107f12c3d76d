"""One run and the processes that execute it, one after the other, each in an event loop of its own."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal, TypeVar, get_args

import anyio
import attrs
from anyio.lowlevel import checkpoint

from ..context import Context
from ..errors import HostLostError, WorkflowRuntimeError, WorkflowStalledError, WorkflowTimeoutError
from ..events import Event, StartEvent, StopEvent
from ..handler import OpenWait
from ..instrument import (
    EventRecord,
    ExecutionRecord,
    ExecutionResult,
    Instrument,
    RunRecord,
    SentRecord,
    WaitResult,
)
from ..runtime import Durability, Gap, MemoryData, MemoryStore, RunHandle, RunInfo, Runtime
from ..wire import to_data
from ..workflow import Workflow
from ._checks import outcome_of
from ._clock import TurnCounter, current_clock, virtual_time
from ._harness import MAX_TURNS, RUN_LIMIT
from ._record import Violation, short
from ._scenario import ReprAsCode, one_of

T = TypeVar("T")

RUN_ID = "run"
LOG_EVENTS = 8
"""Events that stay in memory: few, so that readers who begin at 0 have to get some from the store."""

_TEXT_DEPENDS_ON_TIME = {WorkflowTimeoutError.__name__, WorkflowStalledError.__name__}
"""They say what the steps have done so far, in the process that noticed it."""

Fact = tuple[Any, ...]
"""What happened in the run and is to be on the disk: `("ended", id)`, `("retried", id, attempt)`, `("asked",
wait)`, `("sent", what)`."""

EndKind = Literal["kill", "leave"]


@attrs.frozen(repr=False)
class Kill(ReprAsCode):
    """The end of one process that executes a run.

    Args:
        commit: At which of its commits to the store, from 1.
        at: `"after"` the commit, before anything that follows from it is done; or `"before"` it, when all
            that follows from the one before has been done, and what this one would write is lost.
        how: `"kill"`: it does nothing more. `"leave"`: it leaves the block of its `Runtime`.
    """

    commit: int
    at: Literal["after", "before"] = attrs.field(
        default="after", validator=one_of("after", "before")
    )
    how: EndKind = attrs.field(default="kill", validator=one_of(*get_args(EndKind)))


@attrs.frozen
class Setup:
    """How a workflow is run; `kill_everywhere()` describes it."""

    make_workflow: Callable[..., Workflow[Any]]
    backend: str
    start: StartEvent | None
    outside: Sequence[Event]
    answer: Callable[[Event], Event | None] | None
    durability: Durability
    idle_after: float | None
    types: Collection[type]


@attrs.define(eq=False)
class Case:
    """One run, from its start to its end, in all the processes that execute it.

    Attributes:
        setup: How it is run.
        kills: How the processes end, but for the last one.
        data: What outlives them.
        shown: The events that readers were shown so far, in order.
        kept: The facts that are on the disk.
        to_send: The events from outside that the run has to be given, by what they are: the answer to an event
            by its number, the others by their names.
        keys: The idempotency key of each execution, by its id.
        violations: The rules that were seen to be broken.
        lives: The number of the process, from 1.
        commits: How many commits the first of them has made.
        killed: How many of the kills have happened.
        info: How the run has ended.
    """

    setup: Setup
    kills: Sequence[Kill] = ()
    data: MemoryData = attrs.field(factory=MemoryData)
    shown: list[EventRecord] = attrs.field(factory=list)
    kept: set[Fact] = attrs.field(factory=set)
    to_send: dict[int | str, Event] = attrs.field(factory=dict)
    keys: dict[int, str] = attrs.field(factory=dict)
    violations: list[Violation] = attrs.field(factory=list)
    lives: int = 0
    commits: int = 0
    killed: int = 0
    info: RunInfo | None = None
    _trace: list[tuple[int, float, str, Any]] = attrs.field(factory=list)
    _epoch: float = attrs.field(factory=time.time)
    _lived: float = 0.0
    """How long all processes but the one that is alive have lived."""

    @property
    def came_late(self) -> bool:
        """Whether the run had ended before one of the kills."""
        return self.killed < len(self.kills)

    def live(self) -> None:
        """Have processes execute the run, one after the other, until it ends or breaks a rule."""
        self.to_send.update((f"event {n}", one) for n, one in enumerate(self.setup.outside, 1))
        while self.info is None and not self.violations:
            self.lives += 1
            due = self.killed < len(self.kills)
            life = Life(self, self.kills[self.killed] if due else None)
            life.run()
            if self.lives == 1:
                self.commits = life.commits
            self._lived += life.seconds
            if not (self.info or self.violations or life.is_over):
                self.add_violation(life, "T1", f"the run did not end within {RUN_LIMIT:g} seconds")
            self.killed += life.is_over
        if self.info is not None and not self.violations:
            self._check_left_over()

    def wall(self, life: Life) -> float:
        """Return what the wall clock says; virtual time passes for it, too."""
        return self._epoch + self._lived + life.now() - life.began

    # --- What is noted -------------------------------------------------------------------------------

    def add_violation(self, life: Life | None, rule: str, what: str) -> None:
        """Note that a rule was broken."""
        self.violations.append(Violation(rule, what))
        self.add_trace(life, "!", f"{rule}: {what}")

    def add_trace(self, life: Life | None, source: str, what: Any) -> None:
        """Add a line to the trace; what is no text is described when the trace is shown."""
        self._trace.append((self.lives, 0.0 if life is None else life.time, source, what))

    def format_trace(self) -> list[str]:
        """Return what happened, a line each: which process, virtual time, source, event."""
        width = max((len(source) for _, _, source, _ in self._trace), default=0)
        return [
            f"{life}  {at:9.3f}  {source:<{width}}  {what if type(what) is str else short(what)}"
            for life, at, source, what in self._trace
        ]

    # --- What is checked in the end ------------------------------------------------------------------

    def check_log(self, life: Life, records: Sequence[EventRecord | Gap]) -> None:
        """Check all events, as a reader gets them who begins at 0 after the end (D3, D4)."""
        numbers = [record.seq for record in records if not isinstance(record, Gap)]
        if numbers != list(range(1, len(records) + 1)):
            self.add_violation(life, "D3", f"the log has the numbers {numbers}")
            return
        events = [record.event for record in records if not isinstance(record, Gap)]
        terminal = [n for n, event in enumerate(events, 1) if isinstance(event, StopEvent)]
        if terminal != [len(events)]:
            self.add_violation(
                life, "D4", f"of the {len(events)} events, {terminal} are terminal events"
            )
        for before, event in zip(self.shown, events, strict=False):
            if not _same(before.event, event):
                what = f"event {before.seq} was {short(before.event)}, and is now {short(event)}"
                self.add_violation(life, "D3", what)

    def compare(self, undisturbed: Case) -> None:
        """Compare with the run of which no process was ended."""
        mine, theirs = self._end(), undisturbed._end()
        if mine != theirs:
            what = f"the run ended with {mine}, and undisturbed with {theirs}"
            self.add_violation(None, "done", what)

    def _end(self) -> str:
        info = self.info
        assert info is not None
        if info.error is None:
            return short(to_data(self.shown[-1].event), 2000)
        if info.error.type in _TEXT_DEPENDS_ON_TIME:
            return info.error.type
        return f"{info.error.type} in step {info.error.step}: {info.error.message}"

    def _check_left_over(self) -> None:
        """Check that nothing of a run that was completed is left in the store, but for its log."""
        stored, rows = self.data.runs[RUN_ID], self.data.rows[RUN_ID]
        if stored.status == "completed" and rows:
            self.add_violation(None, "D4", f"rows are left after the end: {sorted(rows)}")
        if stored.owner is not None:
            self.add_violation(None, "D8", f"the run belongs to {stored.owner} after its end")


class Life(Instrument):
    """One process: executes the run in an event loop of its own, until the run ends or the process does.

    Attributes:
        case: The run.
        kill: How the process ends; `None` if the run is to end before.
        now: Returns the virtual time.
        began: When it began, in virtual seconds.
        seconds: How long it has lived.
        commits: How many commits it has made.
        is_over: Whether it has been ended: what happens afterwards has no effect, and is not noted.
    """

    def __init__(self, case: Case, kill: Kill | None) -> None:
        self.case, self.kill = case, kill
        self.now: Callable[[], float] = lambda: 0.0
        self.began = self.seconds = 0.0
        self.commits = 0
        self.is_over = False
        self._facts: list[Fact] = []  # those that are in no group yet
        self._sending: int | str = 0
        self._written: Event | None = None
        self._store = _Store(self)
        self._news: anyio.Event
        self._scope: anyio.CancelScope

    @property
    def time(self) -> float:
        """The virtual time, in all processes together."""
        return self.now() - self.began + self.case._lived

    def run(self) -> None:
        """Execute the run in an event loop."""
        name, options = virtual_time(self.case.setup.backend)
        name, options = TurnCounter(MAX_TURNS, self._note_spinning).watch(name, options)
        anyio.run(self._main, backend=name, backend_options=options)

    async def _main(self) -> None:
        self.now = current_clock()
        self.began = self.now()
        self._scope, self._news = anyio.CancelScope(deadline=self.began + RUN_LIMIT), anyio.Event()
        case, setup = self.case, self.case.setup
        workflow = setup.make_workflow()
        try:
            async with AsyncExitStack() as stack:
                if workflow.graph.closed_with_workflow is not None:
                    await stack.enter_async_context(workflow)
                runtime = Runtime(
                    self._store,
                    workflows=[workflow],
                    log_events=LOG_EVENTS,
                    durability=setup.durability,
                    idle_after=setup.idle_after,
                    types=setup.types,
                    instruments=[self],
                )
                await stack.enter_async_context(runtime)
                with self._scope:
                    await self._follow(await runtime.start(workflow, RUN_ID, setup.start))
        except Exception as exc:
            if not self.is_over:
                raise
            if self.kill is not None and self.kill.how == "leave":
                case.add_violation(self, "D8", f"the block of the runtime raised {exc!r}")
        finally:
            if not self.is_over:
                self.seconds = self.now() - self.began

    async def _follow(self, run: RunHandle[Any]) -> None:
        """Read the log from where the process before has stopped, answer, and wait for the end."""
        case = self.case
        async with anyio.create_task_group() as group:
            group.start_soon(self._send_all, run)
            async for record in run.records(after=len(case.shown)):
                if self.is_over:
                    return
                self._show(record)
            await outcome_of(run)
            group.cancel_scope.cancel()
        case.check_log(self, [record async for record in run.records()])
        if not self.is_over:
            case.info = run.info
            case.add_trace(self, "await", "is over")

    def _show(self, record: EventRecord | Gap) -> None:
        case = self.case
        if isinstance(record, Gap) or record.seq != len(case.shown) + 1:
            what = f"a reader that had seen {len(case.shown)} events was shown {record!r}"
            case.add_violation(self, "D3", what)
            self._scope.cancel()
            return
        case.shown.append(record)
        case.add_trace(self, f"event {record.seq}", record.event)
        stored = self._store.data.runs[RUN_ID].last_seq
        if record.seq > stored:
            case.add_violation(
                self, "D3", f"event {record.seq} was shown when {stored} were on the disk"
            )
        answer = None if case.setup.answer is None else case.setup.answer(record.event)
        if answer is not None:
            case.to_send[record.seq] = answer
            self._news.set()

    # --- What comes from outside -----------------------------------------------------------------------

    async def _send_all(self, run: RunHandle[Any]) -> None:
        """Send what is to be sent, one after the other; what was taken before a kill is not sent again."""
        case = self.case
        sent: set[int | str] = set()
        while True:
            for what, event in list(case.to_send.items()):
                if what not in sent and ("sent", what) not in case.kept:
                    await self._send(run, what, event)
                sent.add(what)
            if case.to_send.keys() <= sent:
                self._news = anyio.Event()
                await self._news.wait()

    async def _send(self, run: RunHandle[Any], what: int | str, event: Event) -> None:
        case = self.case
        if case.setup.idle_after is not None:
            await anyio.sleep(case.setup.idle_after + 1)  # the run is asleep by then
        self._sending = what
        case.add_trace(self, "outside", f"sends {short(event)}")
        try:
            taken_by = await run.send_event(event)
        except WorkflowRuntimeError as error:
            if not self.is_over and run.info.ended is None:
                case.add_violation(self, "D2", f"{short(event)} was refused: {error}")
            return
        if self.is_over:
            return
        case.add_trace(self, "outside", f"is told that {', '.join(taken_by) or 'no step'} took it")
        if case.setup.durability == "strict" and ("sent", what) not in case.kept:
            what_is_wrong = f"send_event() returned before {short(event)} was on the disk"
            case.add_violation(self, "D2", what_is_wrong)

    def note_posted(self) -> None:
        """Note that what is being sent is in the store, though the run has not been given it yet."""
        self.case.kept.add(("sent", self._sending))

    # --- Commits -----------------------------------------------------------------------------------------

    async def write(self, act: Callable[[], Awaitable[T]], what: Any) -> T:
        """Make a commit, and end the process before or after it, if it is time for that."""
        facts = len(self._facts)  # the group was taken just before this
        self.commits += 1
        number = self.commits
        self._end_at(number, "before")
        result = await act()
        if not self.is_over or self.kill is None or self.kill.how == "leave":
            self.case.kept.update(self._facts[:facts])
            del self._facts[:facts]
            self.case.add_trace(self, f"commit {number}", what)
        self._end_at(number, "after")
        return result

    def _end_at(self, number: int, at: str) -> None:
        kill = self.kill
        if kill is None or self.is_over or (kill.commit, kill.at) != (number, at):
            return
        self.case.add_trace(self, "process", "is killed" if kill.how == "kill" else "leaves")
        self.is_over = True
        self.seconds = self.now() - self.began
        self._scope.cancel()
        if kill.how == "kill":
            self._store.kill()
            raise HostLostError("memory", "the process was killed")

    def _note_spinning(self) -> None:
        if not self.is_over:
            self.case.add_violation(self, "V2", "something keeps running while no time passes")
        self._scope.cancel()

    # --- What it is told as an instrument ------------------------------------------------------------------

    def _note(self, *fact: Any) -> None:
        self._facts.append(fact)

    def event_sent(self, run: RunRecord, sent: SentRecord) -> None:
        """Note that the run has been given an event."""
        if sent.event is self.case.to_send.get(self._sending):
            self._note("sent", self._sending)

    def execution_started(self, execution: ExecutionRecord, time: float) -> None:
        """Check that an execution may begin (D1), and is known by the same key (D5)."""
        case, kept = self.case, self.case.kept
        if self.is_over:
            return
        name = f"execution {execution.id} of step {execution.step}"
        case.add_trace(self, f"{execution.step} {execution.id}", f"begins: {execution.event_name}")
        if ("ended", execution.id) in kept:
            case.add_violation(self, "D1", f"{name} began again, though its end was on the disk")
        if ("retried", execution.id, execution.attempt) in kept:
            what = f"{name} began attempt {execution.attempt} again, which had failed on the disk"
            case.add_violation(self, "D9", what)
        if case.setup.durability == "strict" and f"w{execution.id}" not in case.data.rows[RUN_ID]:
            case.add_violation(self, "D1", f"{name} began before it was on the disk")
        key = Context.get_step_context().idempotency_key
        if case.keys.setdefault(execution.id, key) != key:
            case.add_violation(
                self, "D5", f"{name} had the key {case.keys[execution.id]}, now {key}"
            )

    def execution_ended(self, execution: ExecutionRecord, result: ExecutionResult) -> None:
        """Note the end of an attempt. When a process ends, it cancels what it executes: that is no end."""
        if result.outcome == "retrying":
            self._note("retried", execution.id, execution.attempt)
        elif result.outcome != "cancelled":
            self._note("ended", execution.id)
        if not self.is_over:
            what = result.returned if result.error is None else result.error
            self.case.add_trace(
                self,
                f"{execution.step} {execution.id}",
                f"{result.outcome}: {short(what)}",
            )

    def event_written(self, run: RunRecord, record: EventRecord) -> None:
        """Note which event was written last: the question of a wait is written right before that begins."""
        self._written = record.event

    def wait_started(self, execution: ExecutionRecord, wait: OpenWait, time: float) -> None:
        """Check that a wait asks only once (D2)."""
        if wait.question is not None and wait.question is self._written:
            if ("asked", wait.id) in self.case.kept and not self.is_over:
                what = f"wait {wait.id} of step {wait.step} asked again: {short(wait.question)}"
                self.case.add_violation(self, "D2", what)
            self._note("asked", wait.id)
        if not self.is_over:
            source = f"{execution.step} {execution.id}"
            self.case.add_trace(self, source, f"waits for {wait.event_type.__name__}")

    def wait_ended(self, execution: ExecutionRecord, wait: OpenWait, result: WaitResult) -> None:
        """Add a line to the trace."""
        if not self.is_over:
            source = f"{execution.step} {execution.id}"
            self.case.add_trace(self, source, f"wait is over: {result.outcome}")


class _Store(MemoryStore):
    """A store whose host can be ended at each of its commits."""

    def __init__(self, life: Life) -> None:
        super().__init__(life.case.data, wall=lambda: life.case.wall(life))
        self._life = life

    async def commit(self, changes: Sequence[Any]) -> set[str]:
        """Write a group."""
        commit = super().commit
        return await self._life.write(lambda: commit(changes), _Changes(changes))

    async def claim(self, *args: Any, **more: Any) -> list[Any]:
        """Take over runs; counts as a commit if there are any."""
        claimed = await super().claim(*args, **more)
        if claimed:
            await self._life.write(checkpoint, "takes over the run")
        return claimed

    async def post(self, run_id: str, kind: Any, data: str) -> int | None:
        """Leave mail: what is in the store will reach the run, in whichever process."""
        mail = await super().post(run_id, kind, data)
        self._life.note_posted()
        await self._life.write(checkpoint, f"mail {mail}")
        return mail


@attrs.frozen
class _Changes:
    """What a group changes, to be shown in few words."""

    changes: Sequence[Any]

    def __repr__(self) -> str:
        return "; ".join(self._words(change) for change in self.changes) or "nothing"

    def _words(self, change: Any) -> str:
        rows = {
            key: text for key, text in change.rows.items() if key != "m"
        }  # but for the counters
        written = [f"+{key}" for key, text in rows.items() if text is not None]
        deleted = [f"-{key}" for key, text in rows.items() if text is None]
        words = [*(["all rows deleted"] if change.wipe else []), " ".join(written + deleted)]
        if change.events:
            numbers = [event.seq for event in change.events]
            words.append(f"events {numbers[0]} to {numbers[-1]}")
        if "status" in change.columns:
            words.append(change.columns["status"])
        return ", ".join(filter(None, words)) or "nothing"


def _same(before: Event, now: Event) -> bool:
    return before == now or to_data(before) == to_data(now)
