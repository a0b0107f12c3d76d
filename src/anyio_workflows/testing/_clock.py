"""Virtual time: event loops whose clock jumps to the next timer when nothing else is left to do.

trio has such a clock; for asyncio it is a selector that moves the clock instead of sleeping. Two counters
watch a loop: of its turns, to find what spins, and of its task steps, to stop at any of them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import selectors
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import anyio
import attrs

from ..errors import WorkflowConfigurationError

T = TypeVar("T")

# Real seconds that a loop listens to threads and files before its clock jumps.
PATIENCE = 0.1


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for files; instead of sleeping until the next timer it moves the clock there.

    asyncio asks the selector once per turn, and passes the time until the next timer: 0 if a task can
    run, `None` if there is no timer. So the clock moves when, and only when, no task can run.
    """

    def __init__(self, patience: float) -> None:
        super().__init__()
        self.now = 0.0
        self.turns: TurnCounter | None = None
        self._patience = patience
        # Threads that were there before the loop do not work for it.
        self._older_threads = set(threading.enumerate())

    def select(self, timeout: float | None = None) -> list[Any]:
        if self.turns is not None:
            self.turns.turn(self.now)
        if timeout is None:  # no timer: only a file or another thread can wake the loop
            return super().select(None)
        ready = super().select(self._patience if timeout > 0 and self._expects_others() else 0)
        if not ready and timeout > 0:
            self.now += timeout
        return ready

    def _expects_others(self) -> bool:
        """Tell whether a thread or a file, besides the loop's own one, may wake the loop."""
        if len(self.get_map()) > 1:  # one file is the loop's own, by which threads wake it
            return True
        new = (
            set(threading.enumerate()) - self._older_threads if threading.active_count() > 1 else ()
        )
        return any(_may_be_busy(thread) for thread in new)


def _may_be_busy(thread: threading.Thread) -> bool:
    """Tell whether a thread may be at work: AnyIO's worker threads know which of them are idle."""
    return thread not in getattr(thread, "idle_workers", ())


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in which sleeping takes no time; its clock starts at 0.

    Args:
        patience: Real seconds that the loop listens before its clock jumps, while threads that were
            started after it are at work, or it watches files.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._virtual_clock = _JumpingSelector(patience)
        super().__init__(self._virtual_clock)

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._virtual_clock.now

    def count_turns(self, turns: TurnCounter) -> None:
        """Have a counter count the turns of the loop."""
        self._virtual_clock.turns = turns

    def pass_time(self, seconds: float) -> None:
        """Move the clock, as a task does that computes and lets no other task run."""
        self._virtual_clock.now += seconds


def installed_backends() -> list[str]:
    """Return the names of the backends that are installed, `"asyncio"` first."""
    return ["asyncio", *(["trio"] if importlib.util.find_spec("trio") else [])]


def virtual_time(
    backend: str = "asyncio", *, patience: float = PATIENCE
) -> tuple[str, dict[str, Any]]:
    """Return a backend and its options, as `anyio.run()` and AnyIO's pytest plugin take them.

    The clock jumps to the next timer as soon as no task can run. Threads and, on asyncio, sockets
    work in real time: while there are any, the clock waits for them a little before each jump. What
    takes them longer than that seems to take until the next timer. So replace real providers by
    fakes under virtual time.

    Args:
        backend: `"asyncio"` or `"trio"`.
        patience: Real seconds that the clock waits before each jump while a worker thread is at work,
            and on asyncio also while the loop watches a file.

    Raises:
        WorkflowConfigurationError: If there is no such backend, or it is not installed.
    """
    if backend == "asyncio":
        return backend, {"loop_factory": lambda: VirtualTimeLoop(patience)}
    if backend != "trio":
        raise WorkflowConfigurationError(f"backend must be 'asyncio' or 'trio', not {backend!r}")
    try:
        from trio.testing import MockClock
    except ImportError as exc:
        raise WorkflowConfigurationError(
            'trio is not installed; run `pip install "anyio-workflows[trio]"`, or test with the '
            "backend 'asyncio' only"
        ) from exc
    clock = MockClock(autojump_threshold=0)  # real seconds without a runnable task before it jumps
    return backend, {"clock": clock, "instruments": [_watch_threads(clock, patience)]}


def run_virtually(
    backend: str, main: Callable[..., Awaitable[T]], *args: Any, patience: float = PATIENCE
) -> T:
    """Run `main(*args)` in an event loop of its own, under virtual time, and return its result.

    Raises:
        WorkflowConfigurationError: As `virtual_time()` does.
    """
    name, options = virtual_time(backend, patience=patience)
    return anyio.run(main, *args, backend=name, backend_options=options)


def current_clock() -> Callable[[], float]:
    """Return a function that returns the time of the running event loop, in any thread."""
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        import trio

        return trio.lowlevel.current_clock().current_time


def _watch_threads(clock: Any, patience: float) -> Any:
    """Return an instrument that lets trio's clock wait a little while worker threads are at work."""
    import trio
    from trio.testing import active_thread_count

    class Watch(trio.abc.Instrument):
        def after_task_step(self, task: Any) -> None:
            wanted = patience if active_thread_count() else 0
            if clock.autojump_threshold != wanted:
                clock.autojump_threshold = wanted

    return Watch()


# --- Counting turns and task steps ------------------------------------------------------------------


@attrs.define(eq=False)
class TurnCounter:
    """Calls back each time that the event loop has made `limit` turns while its clock stood still.

    In real time, time passes while a task spins, and deadlines come. In virtual time they do not.
    """

    limit: int
    callback: Callable[[], None]
    _instant: float = -1.0
    _count: int = 0

    def turn(self, now: float) -> None:
        """Count a turn at the virtual time `now`."""
        if now != self._instant:
            self._instant, self._count = now, 0
        self._count += 1
        if self._count % self.limit == 0:
            self.callback()

    def watch(self, name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Count the turns of a backend under virtual time; return it as `anyio.run()` takes it."""
        if name == "trio":
            return name, _with_instrument(options, _turn_instrument(self, options["clock"]))

        def make_loop() -> asyncio.AbstractEventLoop:
            loop: VirtualTimeLoop = options["loop_factory"]()
            loop.count_turns(self)
            return loop

        return name, {**options, "loop_factory": make_loop}


@attrs.define(eq=False)
class StepCounter:
    """Calls back once: after `limit` task steps since `begin()`, or when it is over before.

    A task step is what a task does from one of its checkpoints to the next.

    Attributes:
        limit: After which task step; `None` to count only.
        count: The number of task steps since `begin()`.
        holding: While true, only the task that called `begin()` makes steps. Works on asyncio only:
            trio runs the tasks of one batch in random order anyway.
    """

    limit: int | None = None
    count: int = 0
    holding: bool = False
    _exempt: asyncio.Task[Any] | None = None
    _callback: Callable[[], None] | None = None
    _is_over: Callable[[], bool] = lambda: False

    def begin(self, callback: Callable[[], None], is_over: Callable[[], bool]) -> None:
        """Begin to count."""
        self._callback, self._is_over = callback, is_over
        with suppress(RuntimeError):  # on trio
            self._exempt = asyncio.current_task()

    def tick(self) -> None:
        """Count one task step."""
        if self._callback is not None:
            self.count += 1
            if self.count == self.limit or self._is_over():
                callback, self._callback = self._callback, None
                callback()

    def holds_current_task(self) -> bool:
        """Tell whether the current task, of asyncio, has to wait."""
        return self.holding and asyncio.current_task() is not self._exempt

    def watch(self, name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Count the task steps of a backend; return it as `anyio.run()` takes it."""
        if name == "trio":
            return name, _with_instrument(options, _step_instrument(self))

        def make_loop() -> asyncio.AbstractEventLoop:
            loop: asyncio.AbstractEventLoop = options["loop_factory"]()
            loop.set_task_factory(self._make_task)
            return loop

        return name, {**options, "loop_factory": make_loop}

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any
    ) -> asyncio.Task[Any]:
        return asyncio.Task(_CountedCoroutine(coroutine, self), loop=loop, **kwargs)


class _CountedCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine that reports each step of its task, and can be held.

    asyncio has no instruments: its tasks call `send()` or `throw()` once per step.
    """

    def __init__(self, coroutine: Any, counter: StepCounter) -> None:
        self._coroutine = coroutine
        self._counter = counter
        self._held_error: BaseException | None = None

    def send(self, value: Any) -> Any:
        return self._step(None)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        return self._step(typ)

    def _step(self, error: BaseException | None) -> Any:
        error = error or self._held_error
        if self._counter.holds_current_task():
            # What is thrown while the task is held, a cancellation, is kept: asyncio throws it once.
            self._held_error = error
            return None  # a bare yield: the loop calls the task again in its next turn
        self._held_error = None
        try:
            return self._coroutine.send(None) if error is None else self._coroutine.throw(error)
        finally:
            self._counter.tick()

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        raise AssertionError("only tasks run this")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)


# trio's base class of instruments is imported with trio, so these classes are made where they are used.


def _with_instrument(options: dict[str, Any], instrument: Any) -> dict[str, Any]:
    return {**options, "instruments": [*options.get("instruments", ()), instrument]}


def _turn_instrument(counter: TurnCounter, clock: Any) -> Any:
    import trio

    class Instrument(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            counter.turn(clock.current_time())

    return Instrument()


def _step_instrument(counter: StepCounter) -> Any:
    import trio

    class Instrument(trio.abc.Instrument):
        def after_task_step(self, task: Any) -> None:
            counter.tick()

    return Instrument()
