"""`WorkflowServer`: what is served, and the ASGI application of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskStatus
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from .._arguments import check_bool, check_seconds, check_whole
from .._messages import short_repr
from ..errors import WorkflowConfigurationError, WorkflowRuntimeError
from ..runtime import Runtime
from ..workflow import Workflow
from ._access import Access, Authorize
from ._context import Limits, ServerContext
from ._counts import CountRequests
from ._hosts import HostGate, is_loopback, read_hosts
from ._openapi import describe_api
from ._problems import HANDLERS
from ._routes import ROUTES, starlette_routes
from ._serving import check_one_process, serve
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
        authorize: Called with each request and an `Action`; returns the name of the principal, who owns the runs
            that are started and sees only those, or `None` to refuse the request. It may be async, and raise a
            `starlette.exceptions.HTTPException`.
        allow_origins: Origins whose pages may use the server, such as `"https://example.org"`; `"*"` for all.
        hosts: Names under which the server may be asked, such as `"example.org"` or `"*.example.org"`, besides
            `localhost` and the address it is bound to; `"*"` for all.
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
                f"runtime must be a Runtime, not {short_repr(runtime)}; for a database, give "
                "Runtime('sqlite:///runs.db', workflows={...}), and for runs in memory, leave it out and call add_workflow()"
            )
        self._given = runtime
        self._workflows: dict[str, Workflow[Any]] = {}
        self._hosts = read_hosts(hosts, allow_origins)
        self._context = ServerContext(
            Access(token, authorize),
            Streams(
                check_seconds("heartbeat", heartbeat),
                check_whole("max_readers", max_readers, 1),
                check_whole("max_readers_per_run", max_readers_per_run, 1),
            ),
            Limits(
                check_whole("max_body", max_body, 1),
                check_seconds("max_wait", max_wait),
                check_whole("max_frame", max_frame, 1),
            ),
            check_bool("page", page),
        )
        if "*" in self._hosts.origins and self._context.access.is_open:
            raise WorkflowConfigurationError(
                "allow_origins=['*'] lets any page that somebody opens use this server; list the origins, or give "
                "token= or authorize="
            )
        self.app = self._new_app()

    def _new_app(self) -> Starlette:
        middleware = [
            Middleware(CountRequests, self._context.requests),
            Middleware(HostGate, self._hosts),
        ]
        if self._hosts.origins:
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=sorted(self._hosts.origins),
                    allow_methods=["GET", "POST", "DELETE"],
                    allow_headers=[
                        "authorization",
                        "content-type",
                        "idempotency-key",
                        "last-event-id",
                    ],
                    expose_headers=["location", "retry-after"],
                )
            )
        app = Starlette(
            routes=starlette_routes(self._context),
            middleware=middleware,
            exception_handlers=HANDLERS,
            lifespan=self.lifespan,
        )
        app.router.redirect_slashes = False
        return app

    def add_workflow(self, name: str, workflow: Workflow[Any]) -> None:
        """Serve a workflow under a name.

        Raises:
            WorkflowConfigurationError: If the server was given a runtime, which has its workflows; the name is
                taken, or an invalid one; or `workflow` is no instance of a workflow.
            WorkflowValidationError: If its graph is faulty.
            WorkflowRuntimeError: If the server has started.
        """
        if self._given is not None:
            raise WorkflowConfigurationError(
                "this server serves the workflows of the runtime that it was given: add the workflow there, "
                f"Runtime(workflows={{{short_repr(name)}: ...}})"
            )
        if self._context.current_runtime is not None:
            raise WorkflowRuntimeError("workflows are added before the server starts")
        if name in self._workflows:
            raise WorkflowConfigurationError(f"there is a workflow {name!r} already")
        Runtime(workflows={name: workflow})  # refuses what it cannot run
        self._workflows[name] = workflow

    def openapi(self) -> dict[str, Any]:
        """Return the description of the server as OpenAPI 3.1: what it answers at `/v1/openapi.json`."""
        workflows = self._workflows if self._given is None else self._given.workflows
        return describe_api(ROUTES, workflows, self._context.access.token is not None)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Keep runs while the application lives. An application that mounts `app` is given this as its lifespan.

        Raises:
            WorkflowConfigurationError: If there is no workflow to be served, or several processes are to serve
                runs that are kept in memory.
            WorkflowRuntimeError: If it has begun already, or the runtime that was given has been left.
        """
        context = self._context
        if context.current_runtime is not None:
            raise WorkflowRuntimeError(
                "the lifespan of this server has begun already; it is given to one application: the outermost"
            )
        async with AsyncExitStack() as stack:
            runtime = self._runtime()
            if runtime._store is None:
                check_one_process()
            if runtime.state == "new":
                await stack.enter_async_context(runtime)
            runtime.statistics()  # raises if it has been left, or belongs to another event loop
            await stack.enter_async_context(context.streams.running())
            context.current_runtime = runtime
            try:
                yield
            finally:
                context.current_runtime = None

    def _runtime(self) -> Runtime:
        """Return what keeps the runs from now on."""
        if self._given is not None:
            return self._given
        if not self._workflows:
            raise WorkflowConfigurationError(
                "this server has no workflow; call add_workflow(name, workflow), or give it a Runtime"
            )
        return Runtime(workflows=self._workflows)

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

        Raises:
            WorkflowConfigurationError: If an argument has an invalid value, or others than this machine would be
                served without `token` or `authorize`.
        """
        if not isinstance(host, str):
            raise WorkflowConfigurationError(f"host must be a str, not {short_repr(host)}")
        if check_whole("port", port, 0) > 65535:
            raise WorkflowConfigurationError(f"port must be at most 65535, not {port}")
        host = host.strip("[]")
        is_open = self._context.access.is_open and not is_loopback(host)
        if is_open and not check_bool("insecure", insecure):
            raise WorkflowConfigurationError(
                f"on {short_repr(host)} others than this machine could start and read runs; give "
                "WorkflowServer(token=...) or authorize=, or call serve(insecure=True)"
            )
        self._hosts.bound = host
        await serve(self.app, self.lifespan(), self._context.streams, host, port, task_status)
