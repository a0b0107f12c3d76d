"""The task that opens and closes the cached resources of a run, or of all runs in a block (P5)."""

# Theory of operation
#
# A resource may hold a task group or a cancel scope open. So the task that opened it must close it, and
# resources nest like `with` blocks: closed in reverse order, none left out. Steps come and go; hence one
# task of the run does both, from the first resource that is asked for until `ResourceManager.close()`.
# What the runs of a workflow share and what has to be closed has a manager of the same kind, which lives
# as long as the `async with workflow:` block and outlives the runs in it.
#
#   the task's shield > scope of A > what A holds open > scope of B > what B holds open > ...
#
# Rules
# =====
#
# 1. The task opens one resource at a time, after its dependencies. The state of the manager changes in
#    this task only, except that `get()` adds to the queue and `close()` says that it is time.
# 2. Each resource has a scope of its own around what it holds open. `close()` cancels the one that is
#    being opened.
# 3. Nothing outside cancels the task before its cleanup timeout: it is shielded from the run's scope,
#    and takes a native cancellation (the loop ends) back, because the steps that are cleaning up still
#    use the resources. So a manager must be closed, whatever happens. When asyncio's loop ends, it also
#    cancels the tasks that resources have in the background, and with them the scopes around; the
#    manager closes nothing for that before its time.
# 4. A resource may be cancelled from within: a background task of its own fails, or its deadline passes.
#    Then it is closed with the cancellation, after everything opened later, since that lies in its
#    scope. `close()` reports what it raised. A `get()` that waits for a build which this interrupts gets
#    an error; a later one gets a new resource.
# 5. Resources of the workflow are not the run's: its manager has none of them open. Inside a block, that
#    of the block makes them all. Without, there is nothing to close, and the manager of the run that asks
#    first makes them; `SharedValues` has the others wait, and keeps what was made. Resources of a run may
#    depend on those of the workflow and never the other way round, so managers wait for each other in
#    one direction only. If a resource of the block is closed before its time (rule 4), one of a run that
#    was made of it stays open until its run ends: it lies in the scopes of another task.

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import Context as ContextVars
from functools import partial
from inspect import isawaitable
from types import TracebackType
from typing import Any

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled

from .._backend import LoopHandle, is_cancellation
from .._dependencies import Dependency
from ..errors import WorkflowRuntimeError

logger = logging.getLogger(__name__)

_GRACE = 50
"""How often a task that has been cancelled is given a chance to run, before it is left behind."""


@attrs.define(eq=False)
class _ResourceEntry:
    """A cached resource, from the first `get()` to its closing.

    Attributes:
        dependency: What was asked for.
        settled: Set when it has been opened, or has failed.
        value: What the steps get.
        error: Why it could not be opened.
        traceback: Where `error` came from; it is raised with this one each time (T5).
        stack: Closes it, if there is something to close.
    """

    dependency: Dependency
    settled: anyio.Event = attrs.field(factory=anyio.Event)
    value: Any = None
    error: BaseException | None = None
    traceback: TracebackType | None = None
    stack: AsyncExitStack | None = None

    def fail(self, error: BaseException) -> None:
        self.error, self.traceback = error, error.__traceback__
        self.settled.set()


@attrs.define(eq=False)
class _SharedBuild:
    """A value of a workflow that is being made in one event loop.

    Attributes:
        builder: The manager whose task makes it.
        over: Set when it has been made, or has failed, or the builder was cut short or given up.
        error: Why it could not be made.
        traceback: Where `error` came from; it is raised with this one each time (T5).
    """

    builder: ResourceManager
    over: anyio.Event = attrs.field(factory=anyio.Event)
    error: Exception | None = None
    traceback: TracebackType | None = None


class SharedValues:
    """What the runs of one workflow instance share and nobody has to close (P5).

    The values outlive event loops, and the instance may be used in several at once. So what waits for
    a build is of one loop: two loops that ask at the same time both make a value, and the one that is
    ready first is the value for both.
    """

    def __init__(self) -> None:
        self._values: dict[Dependency, Any] = {}
        self._builds: dict[tuple[object, Dependency], _SharedBuild] = {}

    def __contains__(self, dependency: object) -> bool:
        return dependency in self._values

    def __getitem__(self, dependency: Dependency) -> Any:
        return self._values[dependency]

    async def get(
        self,
        dependency: Dependency,
        loop: object,
        builder: ResourceManager,
        make: Callable[[], Awaitable[Any]],
    ) -> Any:
        """Return the value. It is made here, unless it is being made in this loop.

        If the one that makes it is cancelled, one of those that wait makes it anew.

        Raises:
            BaseException: What `make` raised, and in those that wait the same, if it is an `Exception`.
                It is not remembered.
        """
        key = loop, dependency
        while dependency not in self._values:
            build = self._builds.get(key)
            if build is None or build.over.is_set():
                return await self._make(key, _SharedBuild(builder), make)
            await build.over.wait()
            if build.error is not None:
                raise build.error.with_traceback(build.traceback)
        return self._values[dependency]

    async def _make(
        self,
        key: tuple[object, Dependency],
        build: _SharedBuild,
        make: Callable[[], Awaitable[Any]],
    ) -> Any:
        self._builds[key] = build
        try:
            value = await make()
            return self._values.setdefault(key[1], value)  # atomic: threads get the same
        except Exception as exc:
            build.error, build.traceback = exc, exc.__traceback__
            raise
        finally:
            if self._builds.get(key) is build:
                del self._builds[key]
            build.over.set()

    def give_up(self, builder: ResourceManager) -> None:
        """Let others make what a manager is making that cannot be stopped."""
        for build in list(self._builds.values()):  # other threads add to them
            if build.builder is builder:
                build.over.set()


class ResourceManager:
    """Supplies the steps of a run with resources, or the runs in a block with those of the workflow.

    Args:
        owner: The run or block, to be named in logs.
        loop: Its event loop.
        group: Its task group, in which the one task runs, from the first resource that is asked for.
        variables: The context variables that the factories see.
        name: The name of the task.
        shared: What the runs of the workflow share; needed for resources of the workflow.
        above: The manager of the block that the run was started in, if it is in one.
        lifetime: What its end ends the resources, in words.
    """

    def __init__(
        self,
        owner: object,
        loop: LoopHandle,
        group: TaskGroup,
        variables: ContextVars,
        name: str,
        shared: SharedValues | None = None,
        above: ResourceManager | None = None,
        lifetime: str = "the run",
    ) -> None:
        self._owner, self._loop, self._lifetime = owner, loop, lifetime
        self._group, self._variables, self._name = group, variables, name
        self._shared = SharedValues() if shared is None else shared
        self._above = above
        self._uncancelled = False
        self._entries: dict[Dependency, _ResourceEntry] = {}
        self._queue: deque[_ResourceEntry] = deque()
        self._interrupted: list[_ResourceEntry] = []
        self._open: list[_ResourceEntry] = []
        self._errors: list[tuple[str, BaseException]] = []
        self._coroutine: Coroutine[Any, Any, None] | None = None
        self._shield: anyio.CancelScope | None = None
        self._building: anyio.CancelScope | None = None
        self._busy_with: str | None = None
        self._wake: anyio.Event | None = None
        self._gone: anyio.Event | None = None
        self._closing = self._given_up = False

    # --- Called by workers and the host -------------------------------------------------------------

    async def get(self, dependency: Dependency) -> Any:
        """Return a cached resource; the first call has it opened, even if it is cancelled meanwhile.

        Raises:
            BaseException: What the factory raised, the same in all calls that wait for that build. It
                is not remembered: the next call tries again.
            WorkflowRuntimeError: If the factory raised a cancellation that was not requested, a
                resource that was open failed meanwhile, or the run is ending.
        """
        if dependency.scope == "workflow":
            if dependency in self._shared:
                return self._shared[dependency]
            if self._above is not None:
                return await self._above.get(dependency)
        entry = self._entries.get(dependency)
        if entry is None:
            entry = self._request(dependency)
        if not entry.settled.is_set():
            await entry.settled.wait()
        try:
            if entry.error is not None:
                raise entry.error.with_traceback(entry.traceback)
            return entry.value
        finally:
            del entry

    @asynccontextmanager
    async def supply(self, dependencies: Mapping[str, Dependency]) -> AsyncIterator[dict[str, Any]]:
        """Supply all that an attempt of a step needs, as its keyword arguments.

        What is not cached is opened in the current task, and closed when the block is left. It sees
        what the block raises, but changes nothing about it: it cannot swallow it, nor wrap it in an
        exception group.
        """
        stack = AsyncExitStack()
        error: BaseException | None = None
        try:
            yield await ResourceScope(stack, self).arguments(dependencies)
        except BaseException as exc:
            error = exc
        error = await _close_stack(stack, error)
        try:
            if error is not None:
                raise error
        finally:
            del error

    async def close(self, timeout: float) -> list[tuple[str, BaseException]]:
        """Close everything, last opened first, after all steps have ended. Never raises.

        Args:
            timeout: After so many seconds the task is cancelled, and what still does not end is left
                behind with a WARNING that names it.

        Returns:
            The names of the resources that failed to close, or failed while they were open, each
            with the error.
        """
        self._closing = True
        if self._gone is None or self._given_up:
            return list(self._errors)
        if self._wake is not None:
            self._wake.set()
        if self._building is not None:
            self._building.cancel()
        await self._settle_start()
        await self._wait_until_gone(timeout)
        return list(self._errors)

    def _request(self, dependency: Dependency) -> _ResourceEntry:
        if self._closing:
            raise self._too_late(dependency)
        if self._gone is None:
            self._coroutine = self._keep()
            self._group.create_task(self._coroutine, name=self._name, context=self._variables)
            self._gone = anyio.Event()
        entry = self._entries[dependency] = _ResourceEntry(dependency)
        self._queue.append(entry)
        if self._wake is not None:
            self._wake.set()
        return entry

    async def _settle_start(self) -> None:
        """See whether the task has begun, or never will."""
        if self._coroutine is None:
            return
        await self._let_task_run()
        if self._coroutine is not None:
            # It would have begun by now: asyncio threw its task away, cancelled before the start.
            self._coroutine.close()
            self._end()

    async def _wait_until_gone(self, timeout: float) -> None:
        assert self._gone is not None
        await self._let_task_run()  # what closes at once needs no timeout
        with anyio.move_on_after(timeout, shield=True) as timeout_scope:
            while not self._gone.is_set():
                # Besides the timeout, a native cancellation arrives here if the loop ends now.
                with suppress(anyio.get_cancelled_exc_class()):
                    await self._gone.wait()
                if timeout_scope.cancel_called:
                    break
        if self._gone.is_set():
            return
        open_ones = (entry.dependency.name for entry in reversed(self._open) if entry.stack)
        logger.warning(
            "%s: cancelled its resources, which did not close within %g seconds: %s",
            self._owner,
            timeout,
            ", ".join(filter(None, (self._busy_with, *open_ones))),
        )
        assert self._shield is not None
        self._shield.cancel()
        for _ in range(_GRACE):
            if self._gone.is_set():
                return
            await self._let_task_run()
        self._given_up = True
        self._shared.give_up(self)

    async def _let_task_run(self) -> None:
        """Let the task run, whatever may be cancelled here."""
        for _ in range(2):  # trio runs the tasks of one batch in any order
            with suppress(anyio.get_cancelled_exc_class()):
                await cancel_shielded_checkpoint()

    # --- The task ------------------------------------------------------------------------

    async def _keep(self) -> None:
        self._coroutine = None
        try:
            with anyio.CancelScope(shield=True) as self._shield:
                await self._run_task()
                while self._open:
                    await self._shut(self._open.pop())
        except BaseException as exc:
            if not is_cancellation(exc):
                self._note("the task of the resources", exc)
        finally:
            self._end()

    def _end(self) -> None:
        self._coroutine = None
        self._closing = True
        for entry in self._entries.values():
            if not entry.settled.is_set():
                entry.fail(self._too_late(entry.dependency))
        for rest in (self._entries, self._queue, self._interrupted, self._open):
            rest.clear()
        assert self._gone is not None
        self._gone.set()

    async def _run_task(self) -> None:
        """Open what is asked for, until it is time to close."""
        while not self._closing:
            try:
                if self._queue:
                    await checkpoint_if_cancelled()
                    await self._build(self._queue.popleft())
                else:
                    self._wake = anyio.Event()
                    with anyio.CancelScope(shield=self._uncancelled):
                        await self._wake.wait()
            except anyio.get_cancelled_exc_class() as exc:
                if _scope_is_cancelled():
                    await self._unwind(exc)
                else:
                    self._uncancelled = True
                    await self._loop.uncancel_current_task()

    async def _build(self, entry: _ResourceEntry) -> None:
        """Open a resource, after its dependencies. What it raises goes to the calls that wait for it."""
        if entry.settled.is_set():
            return
        for dependency in entry.dependency.cached_dependencies():
            if self._is_elsewhere(dependency):
                continue
            below = self._entries.get(dependency)
            if below is None:
                below = self._entries[dependency] = _ResourceEntry(dependency)
            await self._build(below)
            if not below.settled.is_set():
                self._interrupted.append(entry)
                return
            if below.error is not None:
                self._fail(entry, below.error)
                return
        if self._closing:
            self._fail(entry, self._too_late(entry.dependency))
        else:
            await self._open_one(entry)

    def _is_elsewhere(self, dependency: Dependency) -> bool:
        """Tell whether `get()` takes it from the workflow or its block, and not from this manager."""
        if dependency.scope == "run":
            return False
        return self._above is not None or dependency in self._shared

    async def _open_one(self, entry: _ResourceEntry) -> None:
        dependency, stack = entry.dependency, AsyncExitStack()
        self._busy_with = dependency.name
        self._building = scope = stack.enter_context(anyio.CancelScope())
        error: BaseException | None = None
        try:
            make = partial(self._make, dependency, stack)
            if dependency.scope == "run" or dependency.closes_with_block:
                entry.value = await make()
            else:
                entry.value = await self._shared.get(dependency, self._loop.token, self, make)
        except BaseException as exc:
            error = exc
        self._building = None
        if error is not None or not dependency.needs_closing:
            error = await _close_stack(stack, error)
        else:
            entry.stack = stack
        self._busy_with = None
        if error is None:
            self._open.append(entry)
            entry.settled.set()
        elif not is_cancellation(error):
            self._fail(entry, error)
            if self._closing:  # no call waits for it any more
                self._log_late(dependency.name, error)
        elif scope.cancel_called:
            self._fail(entry, self._too_late(dependency))
        elif _scope_is_cancelled():
            self._interrupted.append(entry)
        else:
            self._fail(entry, _error(dependency, _STRAY, error))
            await self._loop.uncancel_current_task()

    async def _make(self, dependency: Dependency, stack: AsyncExitStack) -> Any:
        value = await ResourceScope(stack, self).make(dependency)
        # Here already, since others get at once what is shared.
        if not dependency.needs_closing and (error := await _close_stack(stack, None)) is not None:
            raise _error(dependency, _LEFT_OPEN, error)
        return value

    def _fail(self, entry: _ResourceEntry, error: BaseException) -> None:
        del self._entries[entry.dependency]
        entry.fail(error)

    async def _unwind(self, cancellation: BaseException) -> None:
        """Close a resource that has been cancelled from within, and what lies in it (rule 4)."""
        lost: list[str] = []
        while self._open and _scope_is_cancelled():
            entry = self._open.pop()
            lost.append(entry.dependency.name)
            await self._shut(entry, cancellation)
        if _scope_is_cancelled() or not lost:
            self._closing = True  # the task itself was cancelled, or its scopes are broken
            return
        logger.warning(
            "%s: resource %s failed while it was open; closed because of that: %s",
            self._owner,
            lost[-1],
            ", ".join(lost),
        )
        for entry in self._interrupted:
            what = f"could not be opened: resource {lost[-1]} failed meanwhile"
            self._fail(entry, _error(entry.dependency, what, self._errors[-1][1]))
        self._interrupted.clear()

    async def _shut(self, entry: _ResourceEntry, cancellation: BaseException | None = None) -> None:
        """Close a resource; with a cancellation that it, or one opened before it, is to catch."""
        dependency = entry.dependency
        del self._entries[dependency]
        if entry.stack is None:
            return
        self._busy_with = dependency.name
        error = await _close_stack(entry.stack, cancellation)
        self._busy_with = None
        if error is None or (is_cancellation(error) and _scope_is_cancelled()):
            return
        if is_cancellation(error) and self._loop.host_cancelled():
            return  # it cancels the closing as well, which is no failure of the resource
        if is_cancellation(error):
            error = _error(dependency, _STRAY if cancellation is None else _FROM_WITHIN, error)
            await self._loop.uncancel_current_task()
        self._note(dependency.name, error)

    def _note(self, name: str, error: BaseException) -> None:
        self._errors.append((name, error))
        if self._given_up:
            self._log_late(name, error)

    def _log_late(self, name: str, error: BaseException) -> None:
        text = "%s: resource %s failed after %s had ended"
        logger.warning(text, self._owner, name, self._lifetime, exc_info=error)

    def _too_late(self, dependency: Dependency) -> WorkflowRuntimeError:
        return _error(dependency, f"cannot be opened: {self._lifetime} is ending")


def _scope_is_cancelled() -> bool:
    """Tell whether a cancel scope around the current task is cancelled."""
    return anyio.current_effective_deadline() == -math.inf


def _error(
    dependency: Dependency, what: str, cause: BaseException | None = None
) -> WorkflowRuntimeError:
    error = WorkflowRuntimeError(f"resource {dependency.name} {what}")
    error.__cause__ = cause
    return error


_STRAY = (
    "raised a cancellation, although it had not been cancelled; a cancel scope, task or timeout inside it "
    "leaks its own, or the event loop is ending"
)
_FROM_WITHIN = (
    "was cancelled while it was open, by a cancel scope or task group of its own; do not cancel, or "
    "bound in time, what is around its 'yield'"
)
_LEFT_OPEN = (
    "left a cancel scope or task group open; make it a generator function that yields inside of it"
)


# --- Opening and closing in one task ---------------------------------------------------------------


@attrs.frozen(eq=False)
class ResourceScope:
    """What is made for one attempt of a step, or for one cached resource, and ends with it.

    Attributes:
        stack: Closes it, last opened first.
        manager: Has the cached resources, which outlive it.
    """

    stack: AsyncExitStack
    manager: ResourceManager

    _values: dict[Dependency, Any] = attrs.field(factory=dict, init=False)
    """What was made here: once for each dependency, however often it is asked for."""

    async def arguments(self, dependencies: Mapping[str, Dependency]) -> dict[str, Any]:
        """Return the values of `dependencies`, by parameter."""
        return {
            param: await self._value_of(dependency) for param, dependency in dependencies.items()
        }

    async def _value_of(self, dependency: Dependency) -> Any:
        if dependency.cache:
            return await self.manager.get(dependency)
        if dependency not in self._values:
            self._values[dependency] = await self.make(dependency)
        return self._values[dependency]

    async def make(self, dependency: Dependency) -> Any:
        """Make a resource, after its dependencies."""
        value = dependency.make(**await self.arguments(dependency.dependencies))
        if dependency.is_context_manager and hasattr(type(value), "__aenter__"):
            return await self.stack.enter_async_context(value)
        if dependency.is_context_manager and hasattr(type(value), "__enter__"):
            return self.stack.enter_context(value)
        return await value if isawaitable(value) else value


async def _close_stack(stack: AsyncExitStack, error: BaseException | None) -> BaseException | None:
    """Close what is on the stack because of `error`; return what is to be raised then, if anything.

    That is `error` itself, also where something on the stack swallowed it, or a task group there
    wrapped it.
    """
    try:
        if error is None:
            await stack.aclose()
        else:
            await stack.__aexit__(type(error), error, error.__traceback__)
    except BaseException as exc:
        # AnyIO rebuilds the groups that pass a task group on trio, so it is their leaves that count.
        return error if error is not None and _leaves(exc) <= _leaves(error) else exc
    return error


def _leaves(exc: BaseException) -> set[int]:
    if isinstance(exc, BaseExceptionGroup):
        return set().union(*map(_leaves, exc.exceptions))
    return {id(exc)}
