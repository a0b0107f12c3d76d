"""The failures of steps that misbehave: what is raised instead of what Python or the backend would say."""

from __future__ import annotations

from .._backend import is_cancellation
from .._ledger.work import Work
from ..errors import WorkflowRuntimeError


def stray_cancellation(work: Work, exc: BaseException) -> BaseException:
    """Return the failure for a cancellation that was not requested (T8)."""
    error = WorkflowRuntimeError(
        f"step {work.step} raised a cancellation, although it had not been cancelled; a cancel "
        "scope, task or timeout inside the step leaks its own"
    )
    error.__cause__ = exc
    return error


def scope_left_open(work: Work) -> BaseException:
    """Return the failure of a step after which its task is still in a cancel scope (T8)."""
    return WorkflowRuntimeError(
        f"step {work.step}, or one before it in the same task, left a cancel scope open, as "
        "an async generator does that is not exhausted; close it, with contextlib.aclosing()"
    )


def group_broken(step: str) -> BaseException:
    """Return the failure of a run whose task group a step has broken; `step` is the one that ended last (T8)."""
    return WorkflowRuntimeError(
        f"a step, probably {step}, left a cancel scope or task group open, which broke the run's "
        "task group; leave them where you entered them, with 'with'"
    )


def name_stop_iteration(exc: BaseException) -> BaseException:
    """Name a `StopIteration`, which Python turns into a `RuntimeError` on its own (T5)."""
    if (
        type(exc) is RuntimeError
        and isinstance(exc.__cause__, StopIteration)
        and exc.args == ("coroutine raised StopIteration",)
    ):
        error = WorkflowRuntimeError("the step raised StopIteration")
        error.__cause__ = exc.__cause__
        return error
    return exc


def policy_error(work: Work, raised: BaseException, error: Exception) -> BaseException:
    """Return what a policy raised, with the step's error as its cause."""
    if isinstance(raised, StopIteration) or is_cancellation(raised):  # would be misunderstood (T5)
        what = f"the retry policy of step {work.step} raised {type(raised).__name__}"
        raised = WorkflowRuntimeError(what)
    if raised is not error and raised.__cause__ is None:
        raised.__cause__ = error
    return raised
