"""The few lines that differ between asyncio and trio.

AnyIO starts tasks in task groups only, and `Workflow.run()` is a plain function that starts a task
in the background: each library has its own way of doing that. AnyIO also has no API for asyncio's
native cancellation.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    import asyncio

_background_tasks: dict[asyncio.Task[None], Callable[[], None]] = {}
"""What to call when each of them has ended. It keeps the tasks alive: asyncio has only weak references to them."""


def _end(task: asyncio.Task[None]) -> None:
    _background_tasks.pop(task)()


class Signal(Protocol):
    """Lets one task wait until it is set, once: the part of `anyio.Event` that is needed here.

    An `anyio.Event` takes 1 KB on asyncio and 0.6 KB on trio, most of it for any number of tasks that wait. A run
    that waits for an answer would have two of them.
    """

    def set(self) -> None:
        """Let the task continue."""
        ...

    def is_set(self) -> bool:
        """Return whether it was set."""
        ...

    def wait(self) -> Awaitable[None]:
        """Wait until it is set, if that is awaited. A wait that was cancelled may be repeated."""
        ...


class LoopHandle(Protocol):
    """The event loop that one run lives in, and the task that hosts the run there.

    Attributes:
        token: Stands for the loop: asyncio's loop object, trio's token.
        current_time: Returns what `anyio.current_time()` does, in seconds; a little faster.
    """

    token: Any
    current_time: Callable[[], float]

    def is_here(self) -> bool:
        """Return whether the caller is in this loop and its thread."""
        ...

    def start(
        self, host: Callable[[], Coroutine[Any, Any, None]], on_end: Callable[[], None]
    ) -> None:
        """Run `host` in a background task that belongs to the loop alone, not to the caller.

        `on_end` is called when that task has ended, even if its body never ran: asyncio drops a task
        that is cancelled before its first step.
        """
        ...

    def call_soon(self, func: Callable[[], object]) -> None:
        """Call `func` in the loop soon; from any thread, signal handlers and finalizers included.

        After the end of the loop, this does nothing.
        """
        ...

    def new_signal(self) -> Signal:
        """Return a signal for a task of this loop."""
        ...

    def host_cancelled(self) -> bool:
        """Return whether the host is being cancelled by the end of its loop, or natively."""
        ...

    def cancellation_counter(self) -> Callable[[], int]:
        """Return a function that counts the native cancellations pending on the current task."""
        ...

    async def uncancel_current_task(self) -> None:
        """Take back the native cancellations pending on the current task."""
        ...


class _AsyncioSignal:
    __slots__ = ("_is_set", "_loop", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def is_set(self) -> bool:
        return self._is_set

    def wait(self) -> Awaitable[None]:
        if self._is_set:
            return checkpoint()
        self._waiter = self._loop.create_future()
        return self._waiter


class _AsyncioLoop:
    __slots__ = ("_asyncio", "_host", "current_time", "token")

    def __init__(self, asyncio: Any) -> None:
        self._asyncio = asyncio
        self.token: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._host: asyncio.Task[None] | None = None
        self.current_time = self.token.time

    def is_here(self) -> bool:
        try:
            return self._asyncio.get_running_loop() is self.token
        except RuntimeError:
            return False

    def start(
        self, host: Callable[[], Coroutine[Any, Any, None]], on_end: Callable[[], None]
    ) -> None:
        coroutine = host()
        try:
            self._host = self.token.create_task(coroutine)
        except BaseException:
            coroutine.close()
            raise
        _background_tasks[self._host] = on_end
        self._host.add_done_callback(_end)

    def call_soon(self, func: Callable[[], object]) -> None:
        with suppress(RuntimeError):
            self.token.call_soon_threadsafe(func)

    def new_signal(self) -> Signal:
        return _AsyncioSignal(self.token)

    def host_cancelled(self) -> bool:
        return self._host is not None and self._host.cancelling() > 0

    def cancellation_counter(self) -> Callable[[], int]:
        task: asyncio.Task[Any] = self._asyncio.current_task()
        return task.cancelling

    async def uncancel_current_task(self) -> None:
        task: asyncio.Task[Any] = self._asyncio.current_task()
        with suppress(self._asyncio.CancelledError):
            await self._asyncio.sleep(0)  # a requested one that is still undelivered arrives here
        while task.cancelling():
            task.uncancel()


class _TrioSignal:
    __slots__ = ("_is_set", "_lowlevel", "_task")

    def __init__(self, lowlevel: Any) -> None:
        self._lowlevel = lowlevel
        self._is_set = False
        self._task: Any = None

    def set(self) -> None:
        self._is_set = True
        if self._task is not None:
            self._lowlevel.reschedule(self._task)
            self._task = None

    def is_set(self) -> bool:
        return self._is_set

    def wait(self) -> Awaitable[None]:
        if self._is_set:
            return checkpoint()
        self._task = self._lowlevel.current_task()
        waiting: Awaitable[None] = self._lowlevel.wait_task_rescheduled(self._abort)
        return waiting

    def _abort(self, raise_cancel: object) -> Any:
        self._task = None
        return self._lowlevel.Abort.SUCCEEDED


class _TrioLoop:
    def __init__(self, trio: Any) -> None:
        self._lowlevel = trio.lowlevel
        self.token = trio.lowlevel.current_trio_token()
        self._host: Any = None
        self.current_time: Callable[[], float] = trio.lowlevel.current_clock().current_time

    def is_here(self) -> bool:
        lowlevel = self._lowlevel
        return lowlevel.in_trio_run() and lowlevel.current_trio_token() is self.token

    def start(
        self, host: Callable[[], Coroutine[Any, Any, None]], on_end: Callable[[], None]
    ) -> None:
        async def run_host() -> None:
            try:
                await host()
            finally:
                on_end()

        # A system task would get the loop's context variables, not the caller's.
        self._host = self._lowlevel.spawn_system_task(run_host, context=copy_context())

    def call_soon(self, func: Callable[[], object]) -> None:
        with suppress(RuntimeError):
            self.token.run_sync_soon(func)

    def new_signal(self) -> Signal:
        return _TrioSignal(self._lowlevel)

    def host_cancelled(self) -> bool:
        nursery = self._host.parent_nursery if self._host is not None else None
        return nursery is not None and nursery.cancel_scope.cancel_called

    def cancellation_counter(self) -> Callable[[], int]:
        return _none_pending

    async def uncancel_current_task(self) -> None:
        """Nothing to do: trio cancels through scopes only."""


def _none_pending() -> int:
    return 0


def find_loop() -> LoopHandle | None:
    """Return the event loop that is running in this thread, or `None`.

    Also finds asyncio's loop from within one of its callbacks, where there is no task and AnyIO
    sees no loop.
    """
    if (trio := _trio_of_this_task()) is not None:
        return _TrioLoop(trio)
    asyncio = sys.modules.get("asyncio")  # there is no loop without
    try:
        return None if asyncio is None else _AsyncioLoop(asyncio)
    except RuntimeError:
        return None


def running_backend() -> Literal["asyncio", "trio"]:
    """Return the name of the event loop that the caller runs in."""
    return "asyncio" if _trio_of_this_task() is None else "trio"


def _trio_of_this_task() -> Any:
    """Return the module trio if the caller is in one of its tasks, else `None`."""
    trio = sys.modules.get("trio")
    lowlevel = getattr(trio, "lowlevel", None)  # not there while another thread imports trio
    return trio if lowlevel is not None and lowlevel.in_trio_task() else None


def running_task() -> tuple[object, object]:
    """Return the event loop that is running, and its current task.

    Compare them by identity. AnyIO's `current_token()` and `get_current_task()` take 4 us, this 0.5.
    """
    if (trio := _trio_of_this_task()) is not None:
        return trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()
    asyncio = sys.modules["asyncio"]
    loop = asyncio.get_running_loop()
    return loop, asyncio.current_task(loop)


def is_cancellation(exc: BaseException) -> bool:
    """Return whether an exception is only a cancellation, or a group of cancellations."""
    cancelled_class = anyio.get_cancelled_exc_class()
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(cancelled_class)[1] is None
    return isinstance(exc, cancelled_class)
