"""The `async with workflow:` block, which owns runs and closes what they share (P5)."""

# Theory of operation
#
# A block has a *host*, a background task of the event loop, as a run has. It holds the manager of the
# resources that have to be closed, so it does not matter which tasks enter and leave the block, and what
# does not end in time can be left behind.
#
#   enter()   start the host
#   run()     each run that is started meanwhile is one of the block's until it has ended
#   leave()   wait for the runs, or cancel them -> no more runs -> the host closes the resources
#
# Rules
# =====
#
# 1. The resources are closed after the last run has ended, since steps use them until then. So the runs
#    are cancelled and waited for, and never left behind: each ends within its cleanup timeout (T6).
# 2. When the loop ends, the host does the same on its own, whether the block is ever left or not.

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from contextvars import Context as ContextVars
from contextvars import copy_context
from typing import Any

import anyio
import attrs

from .._backend import LoopHandle, is_cancellation
from .._ledger.pending import RunPort
from .._messages import add_note
from ..context import _current_step
from ..errors import WorkflowRuntimeError
from .resources import ResourceManager, SharedValues

logger = logging.getLogger(__name__)


@attrs.define(eq=False)
class SharedResources:
    """What the runs of one workflow instance share.

    Attributes:
        values: The resources of the workflow that nobody has to close.
        block: The block that is open, or was open when its event loop ended.
    """

    values: SharedValues = attrs.field(factory=SharedValues)
    block: WorkflowBlock | None = None

    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    """Held while `block` changes: event loops in several threads may enter the workflow at the same time."""

    def __reduce__(self) -> Any:
        """Share nothing with a copy of the workflow, whose class may say itself what is copied."""
        return SharedResources, ()

    async def enter(self, workflow: str, loop: LoopHandle, cleanup_timeout: float) -> None:
        """Open a block.

        Raises:
            WorkflowRuntimeError: If one is open.
        """
        block = WorkflowBlock(workflow, loop, self.values, cleanup_timeout)
        with self._lock:
            if self.block is not None and not self.block.ended:
                where = "" if self.block.loop.is_here() else ", in another event loop"
                raise WorkflowRuntimeError(
                    f"{workflow} is already in use in an 'async with' block{where}; an instance can be "
                    "entered once at a time: start runs in that block, or make another instance"
                )
            self.block = block
        try:
            await block.open()
        except BaseException:
            self._forget(block)
            raise

    async def leave(self, workflow: str, raised: bool) -> None:
        """Leave the block that is open; `raised` says whether an exception leaves it.

        Raises:
            WorkflowRuntimeError: If none is open, the caller is in another event loop, or it is a step
                whose run would be waited for.
            BaseException: The first failure of a resource in the block, unless `raised`.
        """
        block = self.block
        if block is None or not block.loop.is_here():
            where = "was not entered" if block is None else "was entered in another event loop"
            raise WorkflowRuntimeError(f"{workflow} cannot be left, it {where}")
        context = _current_step()
        if not raised and context is not None and any(map(context._belongs_to, block.runs)):
            raise WorkflowRuntimeError(
                f"a step cannot leave the block of {workflow} that its own run is in; return an event "
                "instead"
            )
        try:
            await block.leave(raised)
        finally:
            self._forget(block)

    def _forget(self, block: WorkflowBlock) -> None:
        with self._lock:
            if self.block is block:
                self.block = None


@attrs.define(eq=False, repr=False)
class WorkflowBlock:
    """One block: its runs, and the manager of its resources.

    Attributes:
        loop: The event loop it is in.
        runs: The runs that were started in it and have not ended.
        manager: Makes the resources of the workflow for these runs; there as long as it is open.
        ended: Whether its resources are closed.
    """

    _workflow: str
    loop: LoopHandle
    _values: SharedValues
    _cleanup_timeout: float
    runs: dict[RunPort, None] = attrs.field(factory=dict, init=False)
    manager: ResourceManager | None = attrs.field(default=None, init=False)
    ended: bool = attrs.field(default=False, init=False)

    _is_open: bool = attrs.field(default=False, init=False)
    """Whether runs can be started in it."""

    _variables: ContextVars = attrs.field(factory=copy_context, init=False)
    """The context variables that the factories see: those at the beginning of the block."""

    _errors: list[tuple[str, BaseException]] = attrs.field(factory=list, init=False)
    """What failed in its resources, each with the name of the resource."""

    _awaited: bool = attrs.field(default=False, init=False)
    """Whether a call of `leave()` waits for the end, and raises or logs the errors then."""

    _begun: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    _left: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    _over: anyio.Event = attrs.field(factory=anyio.Event, init=False)

    @property
    def takes_runs(self) -> bool:
        """Whether runs that are started here belong to it."""
        return self._is_open and self.loop.is_here()

    async def open(self) -> None:
        """Start the host."""
        self.loop.start(self._host, self._end)
        try:
            await self._begun.wait()
        except BaseException:
            await self.leave(raised=True)
            raise

    async def leave(self, raised: bool) -> None:
        """Wait for the runs, or cancel them if the block is left by an exception, and close."""
        try:
            while self.runs and not raised:
                await next(iter(self.runs)).wait_until_ended()
        except BaseException:
            raised = True
            raise
        finally:
            self._cancel_runs()
            self._left.set()
            interruption = await self._wait_until_over()
            self._raise_failure(raised or interruption is not None)
            if interruption is not None:
                raise interruption

    def _cancel_runs(self) -> None:
        self._is_open = False
        for run in tuple(self.runs):
            run.cancel("the 'async with' block of its workflow was left")

    async def _wait_until_over(self) -> BaseException | None:
        """Wait for the host, which takes a bounded time; return a cancellation that came meanwhile."""
        interruption: BaseException | None = None
        self._awaited = True
        try:
            while not self._over.is_set():
                try:
                    with anyio.CancelScope(shield=True):
                        await self._over.wait()
                except anyio.get_cancelled_exc_class() as exc:  # a native one
                    interruption = exc
        finally:
            self._awaited = False  # a KeyboardInterrupt, which trio raises here
        return interruption

    def _raise_failure(self, raised: bool) -> None:
        """Raise what failed first, unless an exception is on its way; log the rest."""
        wanted = (exc for _, exc in self._errors if not raised or not isinstance(exc, Exception))
        first = next(wanted, None)
        self._log_failures(besides=first)
        if first is not None:
            try:
                raise first
            finally:
                del first

    def _log_failures(self, besides: BaseException | None = None) -> None:
        errors, self._errors = self._errors, []
        for name, error in errors:
            if error is besides:
                add_note(error, f"in resource {name} of {self._workflow}, closed with its workflow")
            else:
                logger.warning("%s: resource %s failed", self, name, exc_info=error)

    # --- The host -----------------------------------------------------------------------------------

    async def _host(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                name = f"{self._workflow} resources"
                self.manager = ResourceManager(
                    self, self.loop, group, self._variables, name, self._values, None, "the block"
                )
                self._is_open = True
                self._begun.set()
                with suppress(anyio.get_cancelled_exc_class()):  # the loop ends
                    await self._left.wait()
                self._cancel_runs()
                while self.runs:
                    with anyio.CancelScope(shield=True), suppress(anyio.get_cancelled_exc_class()):
                        await next(iter(self.runs)).wait_until_ended()
                self._errors = await self.manager.close(self._cleanup_timeout)
                self._end()
        except BaseException as exc:
            if not is_cancellation(exc):
                logger.error("%s: its task group broke", self, exc_info=exc)

    def _end(self) -> None:
        """End the block, also if asyncio threw the host away before it began."""
        if self.ended:
            return
        self.ended, self._is_open, self.manager = True, False, None
        self._begun.set()
        self._over.set()
        if not self._awaited:  # there may be nobody to raise it to
            self._log_failures()

    def __repr__(self) -> str:
        return f"block of {self._workflow}"
