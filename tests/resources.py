"""What the tests of resources share: factories that keep a log, and steps that use what they make."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import anyio

from anyio_workflows import StartEvent, StopEvent, Workflow, step
from anyio_workflows.resource import Resource

from .running import run_script
from .samples import ProviderError


class Broken(Exception):
    """What the resources here raise."""


class Store:
    """Makes resources of any name, and keeps what happens to them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.made = 0

    def factory(
        self,
        name: str,
        *,
        opening: float = 0,
        closing: float = 0,
        broken: BaseException | None = None,
    ) -> Callable[[], AsyncIterator[str]]:
        """Return a generator function that takes its time, and may fail to close."""

        async def make() -> AsyncIterator[str]:
            self.log.append(f"opening {name}")
            await anyio.sleep(opening)
            self.made += 1
            self.log.append(f"opened {name}")
            try:
                yield f"{name} {self.made}"
            finally:
                self.log.append(f"closing {name}")
                await anyio.sleep(closing)
                self.log.append(f"closed {name}")
            if broken is not None:
                raise broken

        make.__qualname__ = name
        return make


Act = Callable[[Any], Awaitable[Any]]


async def idle(given: Any) -> Any:
    """Give back what was given."""
    return given


async def hang(given: Any) -> Any:
    await anyio.sleep_forever()


async def fail(given: Any) -> Any:
    raise ProviderError


def using(
    factory: Callable[..., Any],
    act: Act = idle,
    *,
    cache: bool = True,
    policy: Any = None,
    step_timeout: float | None = None,
    **kwargs: Any,
) -> Workflow:
    """Return a workflow whose one step is given a resource, and does the act with it."""

    class Uses(Workflow):
        @step(retry_policy=policy, timeout=step_timeout)
        async def work(
            self, ev: StartEvent, it: Annotated[Any, Resource(factory, cache)]
        ) -> StopEvent:
            return StopEvent(result=await act(it))

    return Uses(**{"timeout": None, **kwargs})


def nap(seconds: float) -> Act:
    async def act(given: Any) -> Any:
        await anyio.sleep(seconds)
        return given

    return act


def sharing(factory: Callable[..., Any], act: Act = idle, **kwargs: Any) -> Workflow:
    """Return a workflow whose one step is given a resource of the workflow, and acts with it."""

    class Shares(Workflow):
        @step
        async def work(
            self, ev: StartEvent, it: Annotated[Any, Resource(factory, scope="workflow")]
        ) -> StopEvent:
            return StopEvent(result=await act(it))

    return Shares(**{"timeout": None, **kwargs})


async def use(
    workflow: Workflow, seconds: float = 1, error: BaseException | None = None, **fields: Any
) -> Any:
    """Start a run in the block of a workflow; leave it later, by an exception if one is given."""
    async with workflow:
        handler = workflow.run(**fields)
        await anyio.sleep(seconds)
        if error is not None:
            raise error
    return await handler


def shape(log: list[str]) -> list[str]:
    """Leave out of a log when things began."""
    return [line for line in log if not line.startswith(("opening", "closing"))]


def run_program_that_ends(backend: str, scope: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose event loop ends in the middle of a step, with a resource that holds a task group.

    With the scope "workflow", it ends inside the block of the workflow.
    """
    enter = "await workflow.__aenter__()" if scope == "workflow" else "pass"
    return run_script(
        f"""
        from typing import Annotated

        import anyio
        from anyio_workflows import StartEvent, StopEvent, Workflow, step
        from anyio_workflows.resource import Resource

        async def factory():
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                print("opened")
                try:
                    yield "it"
                finally:
                    print("closed")
                    group.cancel_scope.cancel()

        class Hangs(Workflow):
            @step
            async def work(
                self, ev: StartEvent, it: Annotated[str, Resource(factory, scope="{scope}")]
            ) -> StopEvent:
                started.set()
                try:
                    await anyio.sleep_forever()
                finally:
                    print("step ends")

        async def main():
            global started
            started = anyio.Event()
            workflow = Hangs()
            {enter}
            workflow.run()
            await started.wait()

        anyio.run(main, backend="{backend}")
        """
    )
