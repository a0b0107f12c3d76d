"""Keeps the runs of a runtime in a store: starts them, brings them back, and lets them go."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from .._backend import LoopHandle
from .._json.fields import tag_of
from .._ledger.ledger import Ledger
from .._ledger.pending import restore
from .._ledger.work import OpenWait
from ..context import Context, _context_of
from ..errors import (
    ContextSerdeError,
    StoreError,
    UnknownRunError,
    WorkflowConfigurationError,
    WorkflowError,
    WorkflowRuntimeError,
)
from ..events import Event, StartEvent
from ..instrument import Instrument
from ._committer import Committer
from ._durable import DurableLive
from ._followed import FollowedRuns
from ._idle import IdleRuns
from ._journal import Group, Journal, ending_columns
from ._kept import KeptRuns, cannot_delete, cannot_retry
from ._live import KeptRun
from ._mail import Mailbox, late_reply
from ._records import RunInfo, RunPage, cursor_behind, error_text, info_of
from ._registered import NOT_RENAMED, Registered
from ._rows import RunRecord as RowRecord
from ._runs import DurableRun, DurableState
from ._store import (
    ACTIVE,
    RunChange,
    RunQuery,
    RunStatus,
    Store,
    StoredEvent,
    StoredRun,
)

logger = logging.getLogger(__name__)

_MOST_CLAIMED = 100
"""How many runs are claimed, and their rows read, at once."""

_SECONDS_BETWEEN_CLAIMS = 1.0
"""So often it is looked whether another process has died."""

_SECONDS_BETWEEN_PURGES = 3600.0


@attrs.define(eq=False, repr=False)
class DurableRunManager:
    """The runs of one runtime in its store.

    Attributes:
        store: Where they are.
        runs: Those that this process executes or has executed.
        registered: The workflows by the names under which they are registered.
        strict: Whether nothing begins before it is on the disk.
        max_recoveries: Recoveries without progress until a run counts as stuck.
        log_events: How many events of each run stay in memory, at most.
        log_bytes: How many bytes they may take, at most.
        idle: Which of its runs have been idle for long.
        instruments: Told what happens in each run that this process executes.
        committer: Writes the groups.
        mailbox: What is sent to runs that another process executes, and comes from there.
        followed: Runs that somebody has a handle of, and that this process does not execute.
        host: The id of this host.
    """

    store: Store
    runs: KeptRuns
    registered: Mapping[str, Registered]
    strict: bool
    max_recoveries: int
    keep_ended_for: float
    log_events: int
    log_bytes: int
    idle: IdleRuns
    instruments: Sequence[Instrument] = ()
    committer: Committer = attrs.field(init=False)
    mailbox: Mailbox = attrs.field(init=False)
    followed: FollowedRuns = attrs.field(init=False)
    host: str = attrs.field(default="", init=False)

    _wakeup: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    """Set to have the attendant look at once."""

    _next_purge: float = attrs.field(default=-math.inf, init=False)
    """When to remove old runs again, on the loop's clock."""

    _attendance: anyio.CancelScope = attrs.field(factory=anyio.CancelScope, init=False)
    """Around the attendant."""

    _tasks: TaskGroup = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.committer = Committer(self.store, self._note_commit, self._forget)
        self.mailbox = Mailbox(self.store, self.registered, self.runs, self.wake)
        self.followed = FollowedRuns(
            self.store, self.registered, self.mailbox, self.log_events, self.log_bytes
        )

    @property
    def loop(self) -> LoopHandle:
        """The event loop of the runtime."""
        return self.runs.loop

    # --- Starting -----------------------------------------------------------------------------------

    async def start(
        self,
        name: str,
        run_id: str | None,
        start_event: StartEvent | None,
        fields: dict[str, Any],
        metadata: str,
        internal: bool,
    ) -> KeptRun:
        """Start a run; returns when it is on the disk.

        If another process starts one of this id at the same moment, returns that, of whichever workflow.

        Raises:
            ContextSerdeError: If the start event cannot be written.
        """
        self.mailbox.check_not_left("start() cannot be called on this Runtime")
        registered = self.registered[name]
        created = self.runs.next_created()
        journal = self._journal(run_id or "", registered)
        run, event = self._new_run(registered, journal, None, start_event, fields, run_id)
        journal.check(event)
        journal.run_id = run.run_id
        journal.new = StoredRun(
            id=run.run_id,
            workflow=name,
            status="queued",
            created=created.timestamp(),
            metadata=metadata,
            fingerprint=registered.fingerprint,
            owner=self.host,
        )
        log = self.followed.new_log(run.run_id, name, 0)
        kept = KeptRun(run.run_id, name, created, metadata, log, internal_wanted=internal)
        live = self._begin(kept, run, event)
        try:
            if await self.committer.wait(journal):
                return kept
        except BaseException:
            if journal.new is not None:  # it is in no group yet: nobody will ever know of it
                self._forget(live)
            raise
        self.mailbox.check_not_left(f"run {kept.id} could not be started")
        return await self.find(kept.id) or kept

    def _journal(self, run_id: str, registered: Registered, last_seq: int = 0) -> Journal:
        writer = registered.writer(self.store.wall)
        return Journal(run_id, writer, self.loop, self.strict, self.committer.touch, last_seq)

    def _new_run(
        self,
        registered: Registered,
        journal: Journal,
        found: RowRecord | None,
        start_event: StartEvent | None,
        fields: dict[str, Any],
        run_id: str | None,
        seconds_left: float | None = None,
    ) -> tuple[DurableRun, Event | None]:
        saved = DurableState(registered.graph, registered.types, registered.hooks, journal=journal)
        if found is not None:
            saved.pending = found.ledger
            if found.state is not None:
                saved.store._restore(found.state)
        kind = partial(DurableRun, journal=journal, found=found, seconds_left=seconds_left)
        ctx: Context[Any] = _context_of(saved)
        return registered.workflow._new_run(kind, ctx, start_event, fields, run_id)

    def _begin(self, kept: KeptRun, run: DurableRun, event: Event | None) -> DurableLive:
        kept.live = live = DurableLive(kept, run, self._note_end)
        kept.stored = None
        self.followed.by_id.pop(kept.id, None)
        self.committer.add(live)
        try:
            limiter = self.registered[kept.workflow].workflow._config.limiter
            run.start(event, limiter, [live, *self.instruments])
        except BaseException:
            self.committer.remove(live)
            raise
        if kept.internal_wanted:
            kept.listen()
        self.runs.add(kept)
        self.committer.touch(run.journal)
        return live

    def _check_registered(self, stored: StoredRun) -> None:
        if stored.workflow not in self.registered:
            raise WorkflowConfigurationError(
                f"run {stored.id} is of workflow {stored.workflow}, which is not registered in this Runtime; add "
                "it to workflows=[...]"
            )

    def _forget(self, live: DurableLive) -> None:
        """Let go of a run that the store does not let this host write: there is another one of its id."""
        self._let_go_of(live)
        live.kept.live = None
        self.runs.by_id.pop(live.kept.id, None)

    def _let_go_of(self, live: DurableLive) -> None:
        """Record nothing more of a run, and cancel it: the run itself continues elsewhere, or later (D8)."""
        self.committer.remove(live)
        live.run.cancel("its runtime has let it go")

    # --- Finding ------------------------------------------------------------------------------------

    async def find(self, run_id: str) -> KeptRun | None:
        """Return a run, in whichever process it is executed; `None` if there is none of this id.

        Raises:
            WorkflowConfigurationError: If its workflow is not registered here.
        """
        while True:
            if (here := self.runs.by_id.get(run_id)) is None:
                stored = await self.store.find_run(run_id)
                if run_id not in self.runs.by_id:
                    break
            elif not isinstance(here.live, DurableLive) or here.live.is_kept:
                return here
            else:  # it is being started, and may be refused
                await self.committer.wait(here.live.journal)
        if stored is None:
            if (kept := self.followed.by_id.get(run_id)) is not None:
                self.followed.remove(kept)
            return None
        self._check_registered(stored)
        kept = self.followed.follow(stored)
        await self.followed.catch_up(kept, stored)
        return None if kept.removed else kept

    async def info(self, run_id: str) -> RunInfo | None:
        """Return how a run stands, also one that cannot be read here; `None` if there is none of this id."""
        try:
            kept = await self.find(run_id)
        except (WorkflowConfigurationError, ContextSerdeError):
            stored = await self.store.find_run(run_id)
            return None if stored is None else info_of(stored)
        return None if kept is None else kept.info()

    async def open_waits(self, kept: KeptRun) -> list[OpenWait]:
        """Return the open waits of a run that this process does not execute.

        Raises:
            ContextSerdeError: If what it owes cannot be read here.
        """
        stored = await self.store.find_run(kept.id)
        if stored is None or stored.status not in ACTIVE:  # one that is parked takes no answers
            return []
        registered = self.registered[kept.workflow]
        try:
            found = registered.read_run(await self.store.rows(kept.id), self.store.wall())
        except ContextSerdeError as error:  # there may be waits, which others know how to read
            raise ContextSerdeError(f"run {kept.id}, {error.path}", error.problem) from None
        ledger = Ledger(registered.graph)
        restore(found.ledger, ledger, 0.0)
        return [wait.as_open() for wait in ledger.waits.open]

    # --- Sending ------------------------------------------------------------------------------------

    async def send(
        self, kept: KeptRun, event: Event, step: str | None, wait: str | None
    ) -> tuple[str, ...]:
        """Send an event to a run; returns the steps that took it, when that is on the disk."""
        live = kept.live
        if not isinstance(live, DurableLive):
            return await self.mailbox.send(kept, event, step, wait)
        if not live.journal.detached:
            taken_by = live.send(event, step, wait)
            if not self.strict or await self.committer.wait(live.journal):
                return taken_by
        raise WorkflowRuntimeError(
            f"{type(event).__name__} was not kept: {kept!r} was let go before that; send it again, in a runtime "
            "on the same database"
        )

    async def cancel(self, kept: KeptRun) -> None:
        """Begin to cancel a run."""
        if kept.live is not None:
            kept.live.run.cancel("cancel() was called")
        else:
            await self.mailbox.cancel(kept)

    # --- Bringing back --------------------------------------------------------------------------------

    async def claim(self) -> None:
        """Bring back the runs that nobody executes and that have something to do."""
        due = self.idle.due(self.loop.current_time())
        more = True
        while more and (room := self.runs.room()) > 0:
            limit = min(room, _MOST_CLAIMED)
            claimed = await self.store.claim(list(self.registered), self.store.wall(), limit, due)
            more = len(claimed) == limit
            for stored in claimed:
                self.idle.alarms.pop(stored.id, None)
                if stored.recoveries > self.max_recoveries:
                    await self._park_stuck(stored)  # to read its rows may be what kills the process
            claimed = [run for run in claimed if run.recoveries <= self.max_recoveries]
            while claimed:
                rows = await self.store.rows_of_each([stored.id for stored in claimed])
                for stored, rows_of_it in zip(claimed, rows, strict=False):
                    await self._bring_back(stored, rows_of_it)
                del claimed[: len(rows)]

    async def _bring_back(self, stored: StoredRun, rows: Mapping[str, str]) -> None:
        registered = self.registered[stored.workflow]
        await checkpoint()  # many may be brought back at once, and the others run meanwhile
        try:
            found = registered.read_run(rows, self.store.wall())
            if found.decision is not None:
                await self._end(stored, found.decision)
            else:
                await self._continue(stored, registered, rows, found)
        except StoreError:
            raise
        except WorkflowError as error:
            await self._park_incompatible(stored, error)

    async def _continue(
        self,
        stored: StoredRun,
        registered: Registered,
        rows: Mapping[str, str],
        found: RowRecord,
    ) -> None:
        """Execute a run again that was read from its rows."""
        kept = self.followed.follow(stored)
        await self.followed.catch_up(kept, attrs.evolve(stored, ended=None, status="running"))
        if not kept.in_progress:
            kept.begin_again()
        journal = self._journal(stored.id, registered, stored.last_seq)
        journal.recoveries = stored.recoveries
        failed: int | None = None
        if found.left is not None:  # it is retried (X7)
            failed = found.left["failed"]
            found = found._replace(ledger=found.ledger.repeating(failed))
        left = None if stored.deadline is None else stored.deadline - self.store.wall()
        journal.restore(rows, found.next_part)  # first: the run numbers what it buffers
        run, _ = self._new_run(registered, journal, found, None, {}, stored.id, left)
        if stored.fingerprint != registered.fingerprint:
            journal.columns["fingerprint"] = registered.fingerprint
        if registered.renamed != NOT_RENAMED:
            run.rewrite()
        if found.left is not None:
            journal.forget("f")
            if failed in run.ledger.pending:
                journal.mark_work(run.ledger.pending[failed])
        if self.mailbox.left:  # all runs have been let go, and this one with them
            journal.detached = True
            run.cancel("its runtime was left")
            run.close()
        else:
            self._begin(kept, run, None)

    async def _park_stuck(self, stored: StoredRun) -> None:
        """Leave a run alone that does not get any further before its process dies (D9)."""
        error = WorkflowRuntimeError(
            f"the process that executed it died {stored.recoveries} times in a row, without an execution that "
            "ended or a moment in which the run only waited; find out what kills the processes, then call "
            f"runtime.retry({stored.id!r})"
        )
        logger.warning("run %s of %s is stuck: %s", stored.id, stored.workflow, error)
        await self._park(stored, "stuck", error)

    async def _park_incompatible(self, stored: StoredRun, error: WorkflowError) -> None:
        """Leave a run alone that this program cannot continue."""
        changed = stored.fingerprint != self.registered[stored.workflow].fingerprint
        why = "its workflow is another one now" if changed else "something of it is damaged"
        logger.error(
            "run %s of %s cannot be continued, %s: %s", stored.id, stored.workflow, why, error
        )
        await self._park(stored, "incompatible", error)

    async def _park(self, stored: StoredRun, status: RunStatus, error: WorkflowError) -> None:
        """Leave a run alone until a person has mended it: nothing of it is dropped."""
        columns = {"status": status, "error": error_text(error, None)}
        await self._commit_for(RunChange(stored.id, columns=columns))

    async def _end(self, stored: StoredRun, row: Mapping[str, Any]) -> None:
        """Publish the terminal event of a run whose end was decided by a process that died then (D4)."""
        now = self.store.wall()
        event = StoredEvent(stored.last_seq + 1, now, json.dumps(row["event"]))
        rows: dict[str, str | None] = {} if row["left"] is None else {"d": None, "f": row["left"]}
        columns = ending_columns(row["kind"], now, row["error"])
        wipe = row["left"] is None
        await self._commit_for(RunChange(stored.id, None, columns, wipe, rows, [event]))

    async def _commit_for(self, change: RunChange) -> None:
        """Write what becomes of a run that was claimed and is not executed, and tell those who have a handle."""
        await self.store.commit([change])
        if (kept := self.followed.by_id.get(change.run_id)) is not None:
            await self.followed.look_at(kept)

    # --- The attendant --------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have the attendant look at once."""
        self._wakeup.set()

    def _note_end(self, kept: KeptRun) -> None:
        """Note that a run has ended: the store keeps it, and this process only what somebody has a handle of."""
        if self.runs.room() <= 0:
            self.wake()  # to bring back another one, for which there was no room
        self.runs.by_id.pop(kept.id, None)
        self.followed.by_id[kept.id] = kept

    async def attend(self) -> None:
        """Do what there is to do, whenever something may have changed."""
        await self.look()
        while True:
            await self.look(follow=await self._wait())

    async def _wait(self) -> bool:
        """Wait until there may be something to do; returns whether runs elsewhere may have changed.

        They have not if this process has woken the attendant: then nobody else is looked after.
        """
        due = await self._next_look()
        woken = False
        while not (changed := await self.store.changed()):
            if woken or self.loop.current_time() >= due:
                break
            with anyio.move_on_at(min(due, self.loop.current_time() + self.store.poll)):
                await self._wakeup.wait()
                woken = True
        self._wakeup = anyio.Event()
        return changed or not woken

    async def _next_look(self) -> float:
        """Return when to look again, on the loop's clock, if nothing happens before."""
        now = self.loop.current_time()
        times = [self._next_purge, *self.idle.times()]
        if self.store.poll < math.inf:  # a host may die, which changes nothing in the store
            times.append(now + _SECONDS_BETWEEN_CLAIMS)
        if (wake_at := await self.store.next_wake()) is not None:
            times.append(now + wake_at - self.store.wall())
        return min(times)

    async def look(self, follow: bool = False) -> None:
        """Bring runs back, deliver mail, release those that only wait, and maybe follow those elsewhere."""
        await self.claim()
        await self.mailbox.deliver()
        self._release_idle()
        if self.loop.current_time() >= self._next_purge:
            self._next_purge = self.loop.current_time() + _SECONDS_BETWEEN_PURGES
            await self.store.purge(self.store.wall() - self.keep_ended_for)
        if follow:
            await self.followed.look_at_all()
        self.mailbox.wake_senders()

    async def open(self) -> None:
        """Open the store, and begin to write, and to bring back what there is to do."""
        self.host = await self.store.open()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self.committer.run)
        self._tasks.start_soon(self._attend)

    # --- Releasing ------------------------------------------------------------------------------------

    def _note_commit(self, live: DurableLive, group: Group) -> None:
        """Let a run continue, a group of which was committed."""
        live.proceed(group)
        if group.replied:
            self.mailbox.wake_senders()
        if group.ended is not None:
            self.committer.remove(live)
        elif self.idle.note_commit(live, self.loop.current_time()):
            self.wake()  # the attendant has no time yet at which to look

    def _release_idle(self) -> None:
        """Begin to release the runs of which nothing was committed for so long, and that only wait."""
        now = self.loop.current_time()
        for live in list(self.idle.take_idle(now)):
            if live.only_waits and not self.committer.has(live.journal):
                self._tasks.start_soon(self._release, live, live.next_due())
                live.kept.fall_asleep()
                self.runs.by_id.pop(live.kept.id, None)
                self.followed.by_id[live.kept.id] = live.kept
            else:  # a step takes long
                self.idle.note_commit(live, now)

    async def _release(self, live: DurableLive, due: float) -> None:
        """Let a run go that owes nothing but waits: an answer, a timeout or the deadline brings it back.

        Everything it owes is on the disk, since nothing was marked after the last commit. From here on it takes
        nothing any more: answers are mail, and so are found when it is brought back.
        """
        self._let_go_of(live)
        await live.run.wait_until_ended()  # its steps clean up before they can start over
        wall = self.store.wall()
        left = due - self.loop.current_time()
        columns = {
            "status": "waiting",
            "asleep_since": wall,
            "wake_at": None if math.isinf(due) else wall + left,
        }
        await self.store.commit([RunChange(live.kept.id, columns=columns, released=True)])
        if not math.isinf(due):
            self.idle.alarms[live.kept.id] = due
        self.wake()

    async def _attend(self) -> None:
        with self._attendance:
            await self.attend()

    async def leave(self, error: BaseException | None) -> None:
        """Let all runs go: they continue elsewhere, or at the next start (D8).

        Raises:
            StoreError: If the store could not be written (D10).
            BaseException: What the block raised, `error`, in a group with what else went wrong.
        """
        self._attendance.cancel()
        self.mailbox.leave()
        interruption: BaseException | None = None
        has_left = False
        try:
            while not has_left:
                try:
                    with anyio.CancelScope(shield=True):
                        await self._finish()
                        has_left = True
                except anyio.get_cancelled_exc_class() as cancellation:  # a native one
                    interruption = cancellation
            await self._leave_tasks(interruption if error is None else error)
            if interruption is not None:
                raise interruption
        finally:
            await self.store.close()

    async def _leave_tasks(self, error: BaseException | None) -> None:
        try:
            trace = None if error is None else error.__traceback__
            await self._tasks.__aexit__(None if error is None else type(error), error, trace)
        except BaseExceptionGroup as group:
            # The tasks are the runtime's own: nobody expects a group because of them. What else failed
            # because the store did, in the tasks or in the block, says nothing more.
            failures = list(dict.fromkeys(group.exceptions))
            if (
                self.committer.problem is not None
                and error is not None
                and _says_store_error(error)
            ):
                # The block was told because of another one.
                failures = [one for one in failures if one is not error] or [error]
            if len(failures) > 1 and not all(map(_says_store_error, failures)):
                raise
            failure = next((one for one in failures if isinstance(one, StoreError)), failures[0])
        else:
            return
        if failure is not error:
            raise failure

    async def _finish(self) -> None:
        """Write what there is to write, and let all runs go. Can be called again if it was interrupted."""
        if self.committer.problem is None:
            await self.committer.flush()
        await self._let_go()
        self.committer.close()

    async def _let_go(self) -> None:
        lives = [kept.live for kept in self.runs.in_progress()]
        durable = [live for live in lives if isinstance(live, DurableLive)]
        for live in durable:
            self._let_go_of(live)
        for live in durable:
            await live.run.wait_until_ended()
            live.kept.abandon()
        for kept in list(self.followed.by_id.values()):
            if kept.in_progress:
                kept.abandon()

    # --- The list ---------------------------------------------------------------------------------------

    async def page(
        self,
        status: RunStatus | None,
        workflow: str | None,
        waiting_for: type[Event] | None,
        limit: int,
        before: tuple[float, str] | None,
    ) -> RunPage:
        """Return the newest runs of which all of this is true; `Runtime.runs()` describes it."""
        tags = () if waiting_for is None else self._tags(waiting_for)
        if waiting_for is not None and not tags:
            return RunPage([], None)
        query = RunQuery(status, workflow, tags, limit + 1, before)
        found = await self.store.find_runs(query)
        page = [info_of(stored) for stored in found[:limit]]
        return RunPage(page, cursor_behind(page[-1]) if len(found) > limit else None)

    def _tags(self, event_type: type[Event]) -> tuple[str, ...]:
        """Return the tags of the types that are this one or a subclass of it, as far as they are known here."""
        known: set[type] = {event_type}
        for registered in self.registered.values():
            known.update(registered.codec.types)
        return tuple(sorted(tag_of(cls) for cls in known if issubclass(cls, event_type)))

    async def retry(self, run_id: str) -> KeptRun:
        """Have a run continued that has ended without a result, or is parked (X7)."""
        kept = await self.find(run_id)
        if kept is None:
            raise UnknownRunError(run_id)
        if kept.live is not None or kept.stored is None or kept.status in ACTIVE:
            raise cannot_retry(kept)
        if kept.stored.has_ended and "f" not in await self.store.rows(run_id):
            raise cannot_retry(kept)
        self.runs.check_room()
        if not await self.store.requeue(run_id, late_reply(kept.stored.status)):
            raise cannot_retry(kept)
        self.wake()
        # What was read before is noted before: a task that has found the run as it stood does not undo this.
        return await self.find(run_id) or kept

    async def delete(self, run_id: str) -> None:
        """Remove a run that has ended or is parked."""
        kept = await self.find(run_id)
        if kept is None:
            raise UnknownRunError(run_id)
        if not await self.store.delete(run_id):
            raise cannot_delete(kept)
        self.followed.remove(kept)


def _says_store_error(error: BaseException) -> bool:
    """Return whether an exception is a `StoreError`, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(StoreError)[1] is None
    return isinstance(error, StoreError)
