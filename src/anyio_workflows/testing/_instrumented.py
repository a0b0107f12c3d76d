"""Instrumented steps: they call the original ones, disturb them as the scenario says, and record what happens.

Neither the workflow nor its class is changed: the instance gets a subclass of its own. Only what the
run calls is disturbed and recorded. A step that is called by another step, and the steps of other
runs, are left alone.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.from_thread
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint

from ..graph import StepSpec
from ..workflow import Workflow
from ._record import Execution, Record
from ._scenario import Fault, Pause

# The record of the run under test. Its steps inherit the variable from the caller of `run()`; so do
# those of its child runs, which `Record.begin_execution()` tells apart.
current_record: ContextVar[Record] = ContextVar("current_record")


class InjectedError(Exception):
    """What a step raises because a scenario says so."""


def instrument_steps(
    workflow: Workflow[Any], classes: dict[type[Workflow[Any]], type[Workflow[Any]]]
) -> None:
    """Replace the steps of a workflow instance by instrumented ones.

    Args:
        workflow: The instance.
        classes: The instrumented subclasses made so far, by their base; a new one is added.
    """
    cls = type(workflow)
    if cls not in classes:
        members: dict[str, Any] = {}
        for name, spec in workflow.graph.steps.items():
            wrapped = _wrap_async(spec) if spec.is_async else _wrap_sync(spec)
            members[name] = wrapped if spec.is_method else staticmethod(wrapped)
        # The names of the original class: they are in reprs, logs and error messages.
        members |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        classes[cls] = types.new_class(
            cls.__name__, (cls,), exec_body=lambda ns: ns.update(members)
        )
    workflow.__class__ = classes[cls]


def _wrap_async(spec: StepSpec) -> Callable[..., Any]:
    function = spec.target

    @functools.wraps(function)
    async def instrumented(*args: Any, **kwargs: Any) -> Any:
        record = current_record.get(None)
        execution = None if record is None else record.begin_execution(spec)
        if execution is None:
            return await function(*args, **kwargs)
        call = _DisturbedCall(execution)
        try:
            result = await call.run(functools.partial(function, *args, **kwargs))
        except BaseException as exc:
            execution.end_with_error(exc, _is_cancellation(exc, anyio.get_cancelled_exc_class()))
            raise
        execution.end_with_result(result)
        return result

    return instrumented


def _wrap_sync(spec: StepSpec) -> Callable[..., Any]:
    function = spec.target

    @functools.wraps(function)
    def instrumented(*args: Any, **kwargs: Any) -> Any:
        record = current_record.get(None)
        # A thread may start after its run was examined: then its loop may be gone, too.
        if record is not None and record.closed.is_set():
            raise InjectedError(f"step {spec.name} was abandoned before it began")
        execution = None if record is None else record.begin_execution(spec)
        if execution is None:
            return function(*args, **kwargs)
        call = _DisturbedCall(execution)
        try:
            result = call.run_in_thread(functools.partial(function, *args, **kwargs))
        except BaseException as exc:
            # Nothing cancels a thread: the only cancellation that counts as one was injected.
            execution.end_with_error(exc, exc is execution.stray)
            raise
        execution.end_with_result(result)
        return result

    return instrumented


class _DisturbedCall:
    """One execution, with the pauses and the fault that the scenario has for it."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        scenario = execution.record.scenario
        self._pauses = {pause.at: pause for pause in self._for_this_call(scenario.pauses)}
        self._fault: Fault | None = next(iter(self._for_this_call(scenario.faults)), None)
        self._kind = self._fault.kind if self._fault is not None else None

    def _for_this_call(self, disturbances: Iterable[Any]) -> list[Any]:
        this_call = self._execution.spec.name, self._execution.call
        return [each for each in disturbances if (each.step, each.call) == this_call]

    async def run(self, body: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Call the body of an async step and return its result."""
        self._execution.write_marker()
        try:
            await self._pause(self._pauses.get(0))
            await self._inject_fault()
            result = await _run_with_pauses(body, self._pauses, self._execution)
            await self._pause(self._pauses.get(-1))
        except anyio.get_cancelled_exc_class() as exc:
            if self._kind == "swallow cancellation":
                return None
            if self._kind == "raise in cleanup":
                raise self._error() from exc
            raise
        finally:
            if self._kind in ("slow cleanup", "write in cleanup"):
                await self._clean_up_slowly()
            self._execution.write_marker()
        if self._kind == "raise after":
            raise self._error()
        return result

    def run_in_thread(self, body: Callable[[], Any]) -> Any:
        """Call the body of a sync step, in its thread, and return its result."""
        self._execution.write_marker()
        try:
            self._pause_in_thread(self._pauses.get(0))
            if self._kind == "raise":
                raise self._error()
            if self._kind == "stray cancellation":
                stray = anyio.from_thread.run(_catch_cancellation)
                self._execution.stray = stray
                raise stray
            if self._kind == "hang":
                self._execution.record.closed.wait()
            result = body()
            self._pause_in_thread(self._pauses.get(-1))
        finally:
            self._execution.write_marker()
            if self._kind == "write in cleanup":
                self._execution.write_marker()
        if self._kind == "raise after":
            raise self._error()
        return result

    async def _inject_fault(self) -> None:
        if self._kind == "raise":
            raise self._error()
        if self._kind == "stray cancellation":
            self._execution.stray = await _catch_cancellation()
            raise self._execution.stray
        if self._kind == "hang":
            # Nothing shields this wait, so the run's end has to cancel it at that very instant (T6).
            self._execution.hangs = True
            await anyio.sleep_forever()

    async def _clean_up_slowly(self) -> None:
        assert self._fault is not None
        self._execution.write_marker()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(self._fault.seconds)
            await checkpoint()

    async def _pause(self, pause: Pause | None) -> None:
        if pause is not None:
            self._execution.record.add_trace(str(self._execution), "is paused")
            if pause.seconds:
                await anyio.sleep(pause.seconds)
                # Unshielded: an end of the run in the meantime would have cancelled this sleep.
                self._execution.check_undecided()
            for _ in range(pause.checkpoints):
                await checkpoint()

    def _pause_in_thread(self, pause: Pause | None) -> None:
        if pause is not None and not self._execution.record.closed.is_set():
            with suppress(RuntimeError, anyio.RunFinishedError):  # the loop has ended meanwhile
                anyio.from_thread.run(self._pause, pause)

    def _error(self) -> InjectedError:
        return InjectedError(f"{self._kind} in step {self._execution}")


@types.coroutine
def _run_with_pauses(
    start: Callable[[], Coroutine[Any, Any, Any]], pauses: dict[int, Pause], execution: Execution
) -> Generator[Any, Any, Any]:
    """Drive the body of a step by hand, to pause it after the n-th time that it has waited.

    What the body yields goes to the event loop, and what the loop sends or throws goes to the body, a
    pause later. The pause is shielded: what the body waited for has happened already, and a
    cancellation in between would lose it.
    """
    cancelled = anyio.get_cancelled_exc_class()
    body: Coroutine[Any, Any, Any] | None = start()
    value: Any = None
    error: BaseException | None = None
    try:
        while body is not None and not execution.record.spinning:
            try:
                trap = body.send(value) if error is None else body.throw(error)
            except StopIteration as stop:
                return stop.value
            value = error = None
            execution.resumed += 1
            try:
                value = yield trap
            except BaseException as exc:
                error = exc
            # trio does not throw a cancellation, it sends an outcome.
            if isinstance(error or getattr(value, "error", None), cancelled):
                execution.note_cancellation()
            if error is not None:
                continue
            execution.waits += 1
            if execution.waits in pauses:
                try:
                    yield from _pause_shielded(pauses[execution.waits]).__await__()
                except BaseException as exc:  # asyncio's loop ends, which shields do not withstand
                    error = exc
        # Something spins. The body is dropped here, while the loop runs: it gets a GeneratorExit, and
        # stops at its next `await`. After the loop each `await` would fail at once, and it would spin
        # where nothing can stop it. (`close()` would raise if the body swallows the GeneratorExit.)
        body = None
        yield from checkpoint().__await__()
        raise error or InjectedError(f"step {execution} was left alone")
    finally:
        if body is not None:
            body.close()


async def _pause_shielded(pause: Pause) -> None:
    if pause.seconds:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(pause.seconds)
    for _ in range(pause.checkpoints):
        await cancel_shielded_checkpoint()


async def _catch_cancellation() -> BaseException:
    """Return a cancellation whose scope is gone, so that nothing will catch it."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except anyio.get_cancelled_exc_class() as exc:
            return exc
    raise AssertionError("nothing was cancelled")


def _is_cancellation(error: BaseException, cancelled: type[BaseException]) -> bool:
    """Tell whether an error is a cancellation, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(cancelled)[1] is None
    return isinstance(error, cancelled)
