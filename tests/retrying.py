"""What the tests of retries share: policies and steps of which the test knows what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import attrs

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, WorkflowHandler, step
from anyio_workflows.steps import RetryInfo

from .samples import Act, ProviderError


@attrs.define
class Policy:
    """A policy of one's own: keeps the questions, and gives what a function answers."""

    decide: Callable[[int], Any]
    asked: list[tuple[float, int, Exception]] = attrs.field(factory=list)

    def next(self, elapsed_time: float, attempts: int, error: Exception, /) -> float | None:
        self.asked.append((elapsed_time, attempts, error))
        return self.decide(attempts)  # type: ignore[no-any-return]


def every(seconds: float) -> Policy:
    """Return a policy that never gives up."""
    return Policy(lambda attempts: seconds)


def acting(
    act: Act, policy: Any, *, then: Act | None = None, **kwargs: Any
) -> WorkflowHandler[Any]:
    """Run a workflow whose one step does the act; `then` ends the run in a second step."""

    class Acts(Workflow):
        @step(retry_policy=policy, timeout=kwargs.pop("step_timeout", None))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await act(ctx))

    class Both(Acts):
        @step
        async def other(self, ctx: Context, ev: StartEvent) -> StopEvent:
            assert then is not None
            return StopEvent(result=await then(ctx))

    return (Both if then else Acts)(**{"timeout": None, **kwargs}).run()


class Tries:
    """An act that fails `failures` times, and keeps when it was done."""

    def __init__(self, failures: float, seconds: float = 0) -> None:
        self.failures, self.seconds = failures, seconds
        self.starts: list[float] = []
        self.infos: list[RetryInfo] = []
        self.errors: list[Exception] = []
        self.began = anyio.current_time()

    async def __call__(self, ctx: Context) -> str:
        self.starts.append(anyio.current_time() - self.began)
        self.infos.append(ctx.retry_info())
        await anyio.sleep(self.seconds)
        if len(self.starts) <= self.failures:
            self.errors.append(ProviderError(len(self.starts)))
            raise self.errors[-1]
        return f"attempt {len(self.starts)}"


def counts(handler: WorkflowHandler[Any], name: str = "work") -> dict[str, int]:
    """Return the counts of a step that are not 0."""
    return handler.statistics().steps[name].counts()
