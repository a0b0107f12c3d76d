"""Steps that are played by an understudy: the same signature, disturbed as a scenario says.

A workflow is not changed by that, nor is its class: the instance gets a subclass whose steps call
the original ones. What the run calls is disturbed and recorded; what steps call themselves, and
what other runs do, is left alone.
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

__all__ = ["InjectedError", "current_record", "perform_by_understudies"]

current_record: ContextVar[Record] = ContextVar("current_record")
"""Where the steps of the run that is looked at are recorded. Runs inherit it from their caller."""


class InjectedError(Exception):
    """What a step raises because a scenario says so."""


def perform_by_understudies(
    workflow: Workflow[Any], classes: dict[type[Workflow[Any]], type[Workflow[Any]]]
) -> None:
    """Let all steps of a workflow instance be performed by understudies.

    Args:
        workflow: The instance.
        classes: The subclasses made so far, by their base; the new one is added.
    """
    cls = type(workflow)
    if cls not in classes:
        members: dict[str, Any] = {}
        for name, spec in workflow.graph.steps.items():
            wrapped = _wrap_async(spec) if spec.is_async else _wrap_sync(spec)
            members[name] = wrapped if spec.is_method else staticmethod(wrapped)
        members |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        classes[cls] = types.new_class(
            cls.__name__, (cls,), exec_body=lambda ns: ns.update(members)
        )
    workflow.__class__ = classes[cls]


def _enter(spec: StepSpec) -> Execution | None:
    record = current_record.get(None)
    return None if record is None else record.enter(spec)


def _wrap_async(spec: StepSpec) -> Callable[..., Any]:
    function = spec.target

    @functools.wraps(function)
    async def understudy(*args: Any, **kwargs: Any) -> Any:
        execution = _enter(spec)
        if execution is None:
            return await function(*args, **kwargs)
        act = _Act(execution)
        try:
            result = await act.perform(lambda: function(*args, **kwargs))
        except BaseException as exc:
            execution.leave_by(exc, _is_cancellation(exc, anyio.get_cancelled_exc_class()))
            raise
        execution.leave_with(result)
        return result

    return understudy


def _wrap_sync(spec: StepSpec) -> Callable[..., Any]:
    function = spec.target

    @functools.wraps(function)
    def understudy(*args: Any, **kwargs: Any) -> Any:
        record = current_record.get(None)
        if record is not None and record.over.is_set():
            raise InjectedError(f"step {spec.name} was abandoned before it began")
        execution = _enter(spec)
        if execution is None:
            return function(*args, **kwargs)
        act = _Act(execution)
        try:
            result = act.perform_in_thread(lambda: function(*args, **kwargs))
        except BaseException as exc:
            execution.leave_by(exc, exc is execution.injected)
            raise
        execution.leave_with(result)
        return result

    return understudy


class _Act:
    """One execution, with what the scenario says about it."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        scenario = execution.record.scenario
        self._pauses = {pause.at: pause for pause in self._mine(scenario.pauses)}
        self._fault: Fault | None = next(iter(self._mine(scenario.faults)), None)
        self._kind = self._fault.kind if self._fault is not None else None

    def _mine(self, notes: Iterable[Any]) -> list[Any]:
        mine = self._execution.spec.name, self._execution.call
        return [note for note in notes if (note.step, note.call) == mine]

    async def perform(self, body: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Call the body of an async step; returns what it returned."""
        self._execution.write()
        try:
            await self._pause(self._pauses.get(0))
            await self._go_wrong()
            result = await _paced(body, self._pauses, self._execution)
            await self._pause(self._pauses.get(-1))
        except anyio.get_cancelled_exc_class() as exc:
            if self._kind == "swallow cancellation":
                return None
            if self._kind == "raise in cleanup":
                raise self._error() from exc
            raise
        finally:
            if self._kind in ("slow cleanup", "write in cleanup"):
                await self._clean_up()
            self._execution.write()
        if self._kind == "raise after":
            raise self._error()
        return result

    def perform_in_thread(self, body: Callable[[], Any]) -> Any:
        """Call the body of a sync step, in its thread; returns what it returned."""
        self._execution.write()
        try:
            self._pause_in_thread(self._pauses.get(0))
            if self._kind == "raise":
                raise self._error()
            if self._kind == "stray cancellation":
                stray = anyio.from_thread.run(_catch_cancellation)
                self._execution.injected = stray
                raise stray
            if self._kind == "hang":
                self._execution.record.over.wait()
            result = body()
            self._pause_in_thread(self._pauses.get(-1))
        finally:
            self._execution.write()
            if self._kind == "write in cleanup":
                self._execution.write()
        if self._kind == "raise after":
            raise self._error()
        return result

    async def _go_wrong(self) -> None:
        if self._kind == "raise":
            raise self._error()
        if self._kind == "stray cancellation":
            self._execution.injected = await _catch_cancellation()
            raise self._execution.injected
        if self._kind == "hang":
            self._execution.must_wake = True
            await anyio.sleep_forever()

    async def _clean_up(self) -> None:
        assert self._fault is not None
        self._execution.write()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(self._fault.seconds)
            await checkpoint()

    async def _pause(self, pause: Pause | None) -> None:
        if pause is not None:
            self._execution.record.tell(str(self._execution), "is held up")
            if pause.seconds:
                await anyio.sleep(pause.seconds)
                self._execution.expect_undecided()
            for _ in range(pause.checkpoints):
                await checkpoint()

    def _pause_in_thread(self, pause: Pause | None) -> None:
        if pause is not None and not self._execution.record.over.is_set():
            with suppress(RuntimeError, anyio.RunFinishedError):  # the loop has ended meanwhile
                anyio.from_thread.run(self._pause, pause)

    def _error(self) -> InjectedError:
        return InjectedError(f"{self._kind} in step {self._execution}")


@types.coroutine
def _paced(
    start: Callable[[], Coroutine[Any, Any, Any]], pauses: dict[int, Pause], execution: Execution
) -> Generator[Any, Any, Any]:
    """Run a coroutine that is held up after it has waited for something.

    It is held up shielded: what it waited for has come, and a cancellation would lose that.
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
                    yield from _hold(pauses[execution.waits]).__await__()
                except BaseException as exc:  # asyncio's loop ends, which shields do not withstand
                    error = exc
        # It is left where it is, and is gone now: after the loop each of its awaits would fail at once,
        # so that it would spin where nothing can stop it.
        body = None
        yield from checkpoint().__await__()
        raise error or InjectedError(f"step {execution} was left alone")
    finally:
        if body is not None:
            body.close()


async def _hold(pause: Pause) -> None:
    if pause.seconds:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(pause.seconds)
    for _ in range(pause.checkpoints):
        await cancel_shielded_checkpoint()


async def _catch_cancellation() -> BaseException:
    """Return a cancellation that belongs to a scope which is gone."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except anyio.get_cancelled_exc_class() as exc:
            return exc
    raise AssertionError("nothing was cancelled")


def _is_cancellation(error: BaseException, cancelled: type[BaseException]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(cancelled)[1] is None
    return isinstance(error, cancelled)
