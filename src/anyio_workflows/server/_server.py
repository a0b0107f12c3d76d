"""`WorkflowServer`: what is served, and the ASGI application of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskStatus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from .._messages import short_repr
from ..errors import WorkflowConfigurationError, WorkflowRuntimeError
from ..runtime import Runtime
from ..workflow import Workflow
from ._access import Access, Authorize
from ._context import Limits, ServerContext
from ._problems import ProblemError, answer_fault, answer_http_exception, answer_problem
from ._routes import starlette_routes
from ._serving import serve
from ._streams import Streams


class WorkflowServer:
    """Serves the runs of a runtime over HTTP, with a page in the browser.

        server = WorkflowServer()
        server.add_workflow("research", Research())
        anyio.run(server.serve)

    Args:
        runtime: What keeps the runs, with its workflows. If it has not been entered, that is done when the
            application starts, and it is left when it ends. `None` to keep the runs of the workflows that
            `add_workflow()` names in the memory of this process.
        token: What each request has to show: `Authorization: Bearer TOKEN`.
        authorize: Called with each request and an `Action`; returns the principal who owns the runs
            that are started and sees only those, or `None` to refuse. It may be async.
        allow_origins: Origins whose pages may use the server, such as `"https://example.org"`.
        hosts: Names under which the server may be asked, besides those it is bound to.
        page: Whether there is a page at `/`.
        max_body: Bytes of a request, at most.
        max_frame: Bytes of the data of an event, at most; larger data is `{"$too_large": bytes}`.
        max_readers: How many streams there may be at once, and
        max_readers_per_run: how many of one run.
        max_wait: Seconds for which a request may wait.
        heartbeat: Seconds after which a comment is sent on silent streams.

    Raises:
        WorkflowConfigurationError: If an argument has an invalid value.
    """

    def __init__(
        self,
        runtime: Runtime | None = None,
        *,
        token: str | None = None,
        authorize: Authorize | None = None,
        allow_origins: Iterable[str] = (),
        hosts: Iterable[str] = (),
        page: bool = True,
        max_body: int = 2**20,
        max_frame: int = 256 * 2**10,
        max_readers: int = 5_000,
        max_readers_per_run: int = 1_000,
        max_wait: float = 60.0,
        heartbeat: float = 15.0,
    ) -> None:
        if runtime is not None and not isinstance(runtime, Runtime):
            raise WorkflowConfigurationError(
                f"runtime must be a Runtime, not {short_repr(runtime)}; workflows are added with add_workflow()"
            )
        self._given = runtime
        self._workflows: dict[str, Workflow[Any]] = {}
        self._context = ServerContext(
            Access(token, authorize),
            Streams(heartbeat, max_readers, max_readers_per_run),
            Limits(max_body, max_wait),
            page,
        )
        self.app = Starlette(
            routes=starlette_routes(self._context),
            middleware=[
                Middleware(CORSMiddleware, allow_origins=list(allow_origins)),
            ],
            exception_handlers={
                ProblemError: answer_problem,
                HTTPException: answer_http_exception,
                Exception: answer_fault,
            },
            lifespan=self.lifespan,
        )

    def add_workflow(self, name: str, workflow: Workflow[Any]) -> None:
        """Serve a workflow under a name.

        Raises:
            WorkflowConfigurationError: If the server was given a runtime, which has its workflows; or the name
                is taken.
            WorkflowRuntimeError: If the server has started.
        """
        if self._given is not None:
            raise WorkflowConfigurationError(
                "this server serves the workflows of the runtime that it was given: add the workflow there, "
                f"Runtime(workflows={{{name!r}: ...}})"
            )
        if self._context.current_runtime is not None:
            raise WorkflowRuntimeError("workflows are added before the server starts")
        if name in self._workflows:
            raise WorkflowConfigurationError(f"there is a workflow {name!r} already")
        self._workflows[name] = workflow

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Keep runs while the application lives. An application that mounts `app` is given this as its lifespan."""
        runtime = self._given
        if runtime is None:
            runtime = Runtime(workflows=self._workflows)
        async with AsyncExitStack() as stack:
            if runtime._state == "new":
                await stack.enter_async_context(runtime)
            self._context.current_runtime = runtime
            async with anyio.create_task_group() as group:
                group.start_soon(self._context.streams.beat)
                try:
                    yield
                finally:
                    group.cancel_scope.cancel()
                    self._context.current_runtime = None

    async def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        insecure: bool = False,
        task_status: TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until SIGINT or SIGTERM, or until it is cancelled: then end all streams, and the server.

        Args:
            host: The address to bind to.
            port: The port; 0 for any that is free.
            insecure: Whether others than this machine may be served without `token` or `authorize`.
            task_status: Told the URL once connections are taken: `await group.start(server.serve)`.
        """
        await serve(self.app, self._context.streams, host, port, task_status)
