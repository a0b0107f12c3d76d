"""The runtime: starts runs, finds them again, and keeps what they publish."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, get_args, overload

from anyio.lowlevel import checkpoint

from .._arguments import check_seconds_or_none, check_whole
from .._backend import find_loop
from .._messages import namesakes, nearest, short_repr
from ..errors import UnknownRunError, WorkflowConfigurationError, WorkflowRuntimeError
from ..events import Event, StartEvent
from ..handler import ResultT
from ..instrument import Instrument
from ..workflow import Workflow, _check_instruments
from ._durable_manager import DurableRunManager
from ._handle import RunHandle
from ._idle import IdleRuns
from ._kept import KeptRuns
from ._live import KeptRun
from ._memory import MemoryStore
from ._memory_manager import MemoryRunManager
from ._records import (
    NAME_RULE,
    RunInfo,
    RunPage,
    RuntimeStatistics,
    check_run_id,
    check_status,
    is_name,
    metadata_text,
    read_cursor,
)
from ._registered import register
from ._sqlite import SqliteStore
from ._store import RunStatus, Store

Durability = Literal["strict", "eventual"]

RuntimeState = Literal["new", "open", "leaving", "left"]

Workflows = Iterable[Workflow[Any]] | Mapping[str, Workflow[Any]]

_DAY = 24 * 3600.0


class Runtime:
    """Keeps runs: each has an id, a numbered log for any number of readers, and a place in a list.

        async with Runtime(workflows=[Research(), Review()]) as runtime:
            run = await runtime.start("research", topic="tea")
            async for record in run.records():
                ...
            result = await run

    Runs live in the event loop, not in the task that started them. Leaving the block cancels those that have
    not ended, since without a database nothing else could continue them. With a database they are let go: they
    continue in another process, or at the next start.

    Args:
        database: Where runs are kept: `"sqlite:///path/to/file.db"`, or `None` for the memory of this process. A
            `MemoryStore` is for tests.
        workflows: The instances whose runs it starts. Each is registered under the `workflow_name` it was
            given, or else under the name of its class: `ResearchAgent` as `"research_agent"`. A dict gives
            other names.
        log_events: How many events of each run stay in memory, at most.
        log_bytes: How many bytes the events of each run may take there, at most.
        max_runs: How many runs may be in progress at once, in this process.
        keep_ended: How many ended runs are kept in memory, at most; the oldest are removed first.
        keep_ended_for: Seconds for which an ended run is kept; by default 24 hours in memory, 30 days in a
            database.
        idle_after: Seconds after which a run that only waits is released from memory; `None` for never. It
            has no effect without a database.
        max_recoveries: How often a run is taken over from a process that died, without progress, before it
            counts as stuck. It has no effect without a database.
        durability: `"strict"`, or `"eventual"` to begin work before it is on the disk. It has no effect
            without a database.
        renamed: Names that have changed since runs were written to the database, with the new ones, as in
            `Context.from_dict()`.
        types: Types that events and states may hold, besides those that the workflows name.
        instruments: Told what happens in each run that this process executes, after those of its workflow
            (I1).

    Raises:
        WorkflowConfigurationError: If an argument has an invalid value.
        WorkflowValidationError: If the graph of a workflow is faulty.
    """

    def __init__(
        self,
        database: str | MemoryStore | None = None,
        *,
        workflows: Workflows,
        log_events: int = 10_000,
        log_bytes: int = 8 * 2**20,
        max_runs: int = 10_000,
        keep_ended: int = 1_000,
        keep_ended_for: float | None = None,
        idle_after: float | None = None,
        max_recoveries: int = 10,
        durability: Durability = "strict",
        renamed: Mapping[str, str | None] | None = None,
        types: Collection[type] = (),
        instruments: Iterable[Instrument] = (),
    ) -> None:
        self._store = _store_of(database)
        self._workflows = _named(workflows)
        self._log_events = check_whole("log_events", log_events, 1)
        self._log_bytes = check_whole("log_bytes", log_bytes, 1)
        self._max_runs = check_whole("max_runs", max_runs, 1)
        self._keep_ended = check_whole("keep_ended", keep_ended, 0)
        default = _DAY if self._store is None else 30 * _DAY
        self._keep_ended_for = check_seconds_or_none("keep_ended_for", keep_ended_for) or default
        self._idle_after = check_seconds_or_none("idle_after", idle_after)
        self._max_recoveries = check_whole("max_recoveries", max_recoveries, 0)
        if durability not in get_args(Durability):
            raise WorkflowConfigurationError(
                f"durability must be 'strict' or 'eventual', not {short_repr(durability)}"
            )
        _check_types(types)
        _check_renamed(renamed)
        self._durability = durability
        self._registered = {}
        if self._store is not None:  # else nothing is written, or read
            self._registered = register(self._workflows, tuple(types), renamed)
        self._instruments = _check_instruments(instruments)
        self._manager: DurableRunManager | MemoryRunManager | None = None
        self._state: RuntimeState = "new"

    async def __aenter__(self) -> Self:
        """Take runs from now on, in this event loop.

        Raises:
            WorkflowRuntimeError: If it has been entered before, or there is no running asyncio or trio event
                loop.
        """
        if self._state != "new":
            raise WorkflowRuntimeError(
                "this Runtime has been entered already; a Runtime is entered once: make another one"
            )
        if (loop := find_loop()) is None:
            raise WorkflowRuntimeError(
                "a Runtime can be entered in a running event loop only, of asyncio or trio"
            )
        runs = KeptRuns(loop, self._max_runs, self._keep_ended, self._keep_ended_for)
        if self._store is None:
            self._manager = MemoryRunManager(
                runs,
                self._workflows,
                self._instruments,
                self._log_events,
                self._log_bytes,
            )
        else:
            self._manager = DurableRunManager(
                self._store,
                runs,
                self._registered,
                self._durability == "strict",
                self._max_recoveries,
                self._keep_ended_for,
                self._log_events,
                self._log_bytes,
                IdleRuns(self._idle_after),
                self._instruments,
            )
            await self._manager.open()
        self._state = "open"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel the runs that have not ended, and wait for their ends, each within its `cleanup_timeout`.

        With a database, let them go instead: they continue elsewhere, or at the next start (D8). What is in
        memory can be read afterwards: handles of runs that have ended still work.

        Raises:
            StoreError: If the database could not be written (D10).
        """
        assert self._manager is not None
        self._state = "leaving"
        try:
            await self._manager.leave(exc)
        finally:
            self._state = "left"

    # --- Runs ---------------------------------------------------------------------------------------

    @overload
    async def start(
        self,
        workflow: str,
        /,
        run_id: str | None = ...,
        start_event: StartEvent | None = ...,
        metadata: Mapping[str, Any] | None = ...,
        **fields: Any,
    ) -> RunHandle[Any]: ...

    @overload
    async def start(
        self,
        workflow: Workflow[ResultT] | type[Workflow[ResultT]],
        /,
        run_id: str | None = ...,
        start_event: StartEvent | None = ...,
        metadata: Mapping[str, Any] | None = ...,
        **fields: Any,
    ) -> RunHandle[ResultT]: ...

    async def start(
        self,
        workflow: str | Workflow[Any] | type[Workflow[Any]],
        /,
        run_id: str | None = None,
        start_event: StartEvent | None = None,
        metadata: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> RunHandle[Any]:
        """Start a run, or find the one that was started with this id.

        A run that a step starts in this way is independent: it belongs to the runtime, not to that step.

        Args:
            workflow: The name of the workflow, its class if one instance of that is registered, or the
                instance.
            run_id: Identifies the run; made up if not given. If there is a run of this id and workflow, that
                run is returned, whatever else is given here.
            start_event: The event to start with, instead of its fields. Needed if a field of it is called
                `run_id`, `start_event` or `metadata`.
            metadata: Whatever is worth knowing about the run, as a dict of values for JSON.
            **fields: The fields of the start event.

        Raises:
            WorkflowConfigurationError: If there is no such workflow, or an argument has an invalid value;
                also as `Workflow.run()` does.
            EventValidationError: If the fields do not fit the start event.
            ContextSerdeError: If the start event cannot be written to the database.
            TooManyRunsError: If `max_runs` runs are in progress.
            WorkflowRuntimeError: If the run of this id is of another workflow, or this is not inside `async with runtime:`.
        """
        return await self._start(workflow, run_id, start_event, metadata, fields)

    async def _start(
        self,
        workflow: str | Workflow[Any] | type[Workflow[Any]],
        run_id: str | None,
        start_event: StartEvent | None,
        metadata: Mapping[str, Any] | None,
        fields: dict[str, Any],
        internal: bool = False,
    ) -> RunHandle[Any]:
        """Start a run as `start()` does; with `internal`, its internal events are in the log from the first one on."""
        manager = await self._checked("start()")
        name = self._name_of(workflow)
        known: KeptRun | None = None
        if run_id is not None:
            check_run_id(run_id)
            known = await manager.find(run_id)
        if known is None:
            text = metadata_text(metadata)
            manager.runs.check_room()
            known = await manager.start(name, run_id, start_event, fields, text, internal)
        if known.workflow != name:
            raise WorkflowRuntimeError(
                f"there is a run {known.id!r} already, of workflow {known.workflow}, so none of workflow {name} "
                "can have this id"
            )
        return self._handle(known)

    async def get(self, run_id: str) -> RunHandle[Any]:
        """Return the handle of a run, in progress or ended.

        Raises:
            UnknownRunError: If there is no such run, or it has been removed.
            WorkflowRuntimeError: If this is not inside `async with runtime:`.
        """
        manager = await self._checked("get()")
        _check_given_id("get()", run_id)
        if (kept := await manager.find(run_id)) is None:
            raise UnknownRunError(run_id)
        return self._handle(kept)

    async def info(self, run_id: str) -> RunInfo:
        """Return how a run stands, also one that this program cannot read, as its workflow or a type is not known here.

        Raises:
            UnknownRunError: If there is no such run, or it has been removed.
            WorkflowRuntimeError: If this is not inside `async with runtime:`.
        """
        manager = await self._checked("info()")
        _check_given_id("info()", run_id)
        if (info := await manager.info(run_id)) is None:
            raise UnknownRunError(run_id)
        return info

    async def runs(
        self,
        status: RunStatus | None = None,
        workflow: str | Workflow[Any] | type[Workflow[Any]] | None = None,
        waiting_for: type[Event] | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> RunPage:
        """Return a page of the list of runs, newest first.

        Args:
            status: Only runs that stand so.
            workflow: Only runs of this workflow.
            waiting_for: Only runs with an open wait for an event of this type, or of a subclass of it.
            limit: How many runs, at most.
            before: The `next` of the page before; `None` for the first page.

        Raises:
            WorkflowConfigurationError: If an argument has an invalid value.
            WorkflowRuntimeError: If this is not inside `async with runtime:`.
        """
        manager = await self._checked("runs()")
        check_status(status)
        name = None if workflow is None else self._name_of(workflow)
        if waiting_for is not None and not (
            isinstance(waiting_for, type) and issubclass(waiting_for, Event)
        ):
            raise WorkflowConfigurationError(
                f"waiting_for must be an event class, not {short_repr(waiting_for)}"
            )
        check_whole("limit", limit, 1)
        return await manager.page(status, name, waiting_for, limit, read_cursor(before))

    async def retry(self, run_id: str) -> RunHandle[Any]:
        """Continue a run that failed with the failed step, or one that timed out or was cancelled (X7).

        It keeps its id and its log, whose numbers continue, and has its whole timeout again. No finished step
        is repeated.

        Raises:
            UnknownRunError: If there is no such run.
            TooManyRunsError: If `max_runs` runs are in progress.
            WorkflowRuntimeError: If it is in progress, was completed, or has nothing to repeat; or this is not
                inside `async with runtime:`.
        """
        manager = await self._checked("retry()")
        _check_given_id("retry()", run_id)
        return self._handle(await manager.retry(run_id))

    async def delete(self, run_id: str) -> None:
        """Remove a run that has ended, with its log.

        Raises:
            UnknownRunError: If there is no such run.
            WorkflowRuntimeError: If it is in progress, or this is not inside `async with runtime:`.
        """
        manager = await self._checked("delete()")
        _check_given_id("delete()", run_id)
        await manager.delete(run_id)

    def statistics(self) -> RuntimeStatistics:
        """Return counts of the runs, and of what their logs hold: with a database, of those in this process.

        Raises:
            WorkflowRuntimeError: If this is not inside `async with runtime:`.
        """
        return self._check_here("statistics()").runs.statistics()

    @property
    def state(self) -> RuntimeState:
        """`"new"` until its block is entered, `"open"` in it, `"leaving"` at its end, and `"left"` behind it."""
        return self._state

    @property
    def workflows(self) -> Mapping[str, Workflow[Any]]:
        """The registered workflows, by name."""
        return dict(self._workflows)

    # --- Inside -------------------------------------------------------------------------------------

    def _handle(self, kept: KeptRun) -> RunHandle[Any]:
        assert self._manager is not None
        return RunHandle(self._manager, kept)

    async def _checked(self, what: str) -> DurableRunManager | MemoryRunManager:
        """Let other tasks run, and return what keeps the runs, if the call is allowed here."""
        self._check_here(what)
        await checkpoint()
        return self._check_here(what)

    def _check_here(self, what: str) -> DurableRunManager | MemoryRunManager:
        """Refuse calls outside the block, and in other event loops."""
        if self._state == "open":
            assert self._manager is not None
            if self._manager.runs.loop.is_here():
                return self._manager
            why = "it was entered in another event loop or thread"
        elif self._state == "new":
            why = "it has not been entered; use 'async with Runtime(...) as runtime:'"
        else:
            why = (
                "its block is being left" if self._state == "leaving" else "its block has been left"
            )
        raise WorkflowRuntimeError(f"{what} cannot be called on this Runtime: {why}")

    def _name_of(self, workflow: object) -> str:
        """Return the name of a registered workflow."""
        if isinstance(workflow, str):
            if workflow in self._workflows:
                return workflow
            hint = nearest(workflow, self._workflows)
            raise WorkflowConfigurationError(
                f"this Runtime has no workflow {short_repr(workflow)}; {hint}"
            )
        if isinstance(workflow, Workflow):
            found = [name for name, one in self._workflows.items() if one is workflow]
            what = f"this instance of {type(workflow).__name__} is not registered"
        elif isinstance(workflow, type) and issubclass(workflow, Workflow):
            found = [name for name, one in self._workflows.items() if type(one) is workflow]
            what = f"no instance of {workflow.__name__} is registered"
        else:
            raise WorkflowConfigurationError(
                "a workflow is given by its name, its class, or its registered instance; not as "
                f"{short_repr(workflow)}"
            )
        if len(found) == 1:
            return found[0]
        if found:
            raise WorkflowConfigurationError(
                f"{len(found)} workflows of this Runtime are instances of the class; say which one: "
                f"{', '.join(found)}"
            )
        cls = workflow if isinstance(workflow, type) else type(workflow)
        remark = namesakes([cls], map(type, self._workflows.values()))
        raise WorkflowConfigurationError(
            f"{what} in this Runtime; {remark or nearest('', self._workflows)}"
        )

    def __repr__(self) -> str:
        names = ", ".join(self._workflows)
        if self._manager is None:
            return f"<Runtime of {names}: not entered>"
        counts = self._manager.runs.statistics().runs
        runs = ", ".join(f"{number} {status}" for status, number in counts.items()) or "no runs"
        return f"<Runtime of {names}: {self._state}, {runs}>"


# --- Arguments ---------------------------------------------------------------------------------------


def _store_of(database: object) -> Store | None:
    """Return the store that a URL names; `None` for the memory of this process."""
    if database is None or isinstance(database, MemoryStore):
        return database
    file = os.fspath(database) if isinstance(database, os.PathLike) else database
    if not (isinstance(file, str) and file) or ":" in file:
        file = "path/to/file.db"
    known = f"leave it out for the memory of this process, or write 'sqlite:///{file}'"
    if not isinstance(database, str):
        raise WorkflowConfigurationError(
            f"database must be a URL in a str, not {short_repr(database)}; {known}"
        )
    scheme, separator, path = database.partition("://")
    if not separator:
        raise WorkflowConfigurationError(
            f"database must be a URL, not {short_repr(database)}; {known}"
        )
    if scheme != "sqlite":
        raise WorkflowConfigurationError(
            f"there is no database {short_repr(scheme + separator)} here; {known}"
        )
    if path in ("", "/", "/:memory:"):
        raise WorkflowConfigurationError(f"database {short_repr(database)} names no file; {known}")
    if not path.startswith("/"):
        raise WorkflowConfigurationError(
            f"database {short_repr(database)} names a host, and SQLite has none; write 'sqlite:///{path}'"
        )
    if "?" in path:
        raise WorkflowConfigurationError(
            f"database {short_repr(database)} has options behind '?', and there are none here; leave them out"
        )
    return SqliteStore(path[1:])


def _named(given: object) -> dict[str, Workflow[Any]]:
    """Return the workflows by their names, checked."""
    if isinstance(given, Workflow) or not isinstance(given, Iterable) or isinstance(given, str):
        raise WorkflowConfigurationError(
            "workflows must be a list of instances of workflows, or a dict of them by name; not "
            f"{short_repr(given)}"
        )
    if isinstance(given, Mapping):
        pairs: list[tuple[Any, Any]] = list(given.items())
    else:
        pairs = [(None, one) for one in given]
    if not pairs:
        raise WorkflowConfigurationError("workflows is empty; give the workflows to be run")
    named: dict[str, Workflow[Any]] = {}
    for given_name, workflow in pairs:
        if not isinstance(workflow, Workflow):
            remedy = "give instances of workflows"
            if isinstance(workflow, type) and issubclass(workflow, Workflow):
                remedy = f"give an instance, {workflow.__name__}()"
            raise WorkflowConfigurationError(
                f"{short_repr(workflow)} in workflows is no workflow; {remedy}"
            )
        name = _default_name(workflow) if given_name is None else given_name
        if not is_name(name):
            raise WorkflowConfigurationError(
                f"the name of a workflow in a Runtime must be {NAME_RULE}; not {short_repr(name)}: give "
                "workflows={name: instance}, or the instance another workflow_name"
            )
        if name in named:
            raise WorkflowConfigurationError(
                f"two workflows are named {name!r}; give one of them a workflow_name, or give "
                "workflows={name: instance}"
            )
        if not workflow._config.disable_validation:
            workflow.validate()
        named[name] = workflow
    return named


def _default_name(workflow: Workflow[Any]) -> str:
    """Return the name that a workflow was given, or else its class's in snake case."""
    if workflow._config.name is not None:
        return workflow._config.name
    words = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
    return re.sub(words, "_", type(workflow).__name__).lower()


def _check_types(types: object) -> None:
    wrong = [types]
    if isinstance(types, Collection) and not isinstance(types, str):
        wrong = [one for one in types if not isinstance(one, type)]
    if wrong:
        raise WorkflowConfigurationError(
            f"types must be a list of classes; not {short_repr(wrong[0])}"
        )


def _check_renamed(renamed: object) -> None:
    pairs = renamed.items() if isinstance(renamed, Mapping) else ()
    right = all(isinstance(old, str) and isinstance(new, str | None) for old, new in pairs)
    if renamed is not None and not (right and isinstance(renamed, Mapping)):
        raise WorkflowConfigurationError(
            f"renamed must be a dict of old names with new ones, not {short_repr(renamed)}"
        )


def _check_given_id(function: str, run_id: object) -> None:
    if not isinstance(run_id, str):
        remedy = "give run.id" if isinstance(run_id, RunHandle) else "it is a str"
        raise WorkflowConfigurationError(
            f"{function} takes the id of a run, not {short_repr(run_id)}; {remedy}"
        )
