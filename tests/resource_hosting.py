"""What the tests of the resource manager share: a place for it as a run gives it, and factories."""

import contextvars
import logging
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Self

import anyio
import pytest

from anyio_workflows._backend import find_loop
from anyio_workflows._dependencies import Dependency, read_dependency
from anyio_workflows._engine.resources import ResourceManager
from anyio_workflows.resource import Resource


def dependency_on(factory: Callable[..., Any], cache: bool = True) -> Dependency:
    """Return what a step asks for that has a parameter with this resource."""
    faults: list[str] = []
    dependency = read_dependency(Annotated[Any, Resource(factory, cache)], faults, faults)
    assert faults == []
    assert dependency is not None
    return dependency


class Hosted:
    """A manager in a task group that is cancelled before the manager is closed, as a run does it."""

    def __init__(self, timeout: float = 5.0) -> None:
        self.timeout = timeout
        self.started = 0
        self.errors: list[tuple[str, BaseException]] = []

    async def __aenter__(self) -> Self:
        loop = find_loop()
        assert loop is not None
        self.group = await anyio.create_task_group().__aenter__()
        create_task = self.group.create_task

        def counting(*args: Any, **kwargs: Any) -> Any:
            self.started += 1
            return create_task(*args, **kwargs)

        self.group.create_task = counting  # type: ignore[method-assign]
        variables = contextvars.copy_context()
        self.manager = ResourceManager("run x", loop, self.group, variables, "resources")
        return self

    async def __aexit__(self, *exc_info: object) -> bool | None:
        self.group.cancel_scope.cancel()
        await self.close()
        return await self.group.__aexit__(*exc_info)  # type: ignore[arg-type]

    async def close(self) -> None:
        self.errors = await self.manager.close(self.timeout)

    async def get(self, factory: Callable[..., Any]) -> Any:
        return await self.manager.get(dependency_on(factory))

    def supply(self, **factories: Any) -> Any:
        return self.manager.supply({name: dependency_on(f, False) for name, f in factories.items()})


class Thing:
    """Also a context manager, which nobody enters."""

    def __init__(self) -> None:
        self.entered = False

    def __enter__(self) -> Self:
        self.entered = True
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    async def make_soon(self) -> "Thing":
        await anyio.sleep(1)
        return self

    def make(self) -> "Thing":
        return self


class Slow:
    """Counts how often it is made."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.made = 0
        self.seconds = seconds
        self.log: list[str] = []

    async def plain(self) -> int:
        self.made += 1
        await anyio.sleep(self.seconds)
        return self.made

    async def scoped(self) -> AsyncIterator[int]:
        self.log.append("begin")
        try:
            yield await self.plain()
        finally:
            self.log.append("end")


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the texts of the warnings and errors in the log."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
