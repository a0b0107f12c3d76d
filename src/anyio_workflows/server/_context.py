"""What the handlers of the routes work with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
from starlette.requests import Request

from .._documents import converter_of, describe_whole_run
from .._messages import nearest, short_repr
from ..errors import TooManyRunsError, WorkflowRuntimeError
from ..runtime import RunHandle, Runtime
from ..workflow import Workflow
from ._access import Access
from ._counts import RequestCounts
from ._frames import Encoder
from ._problems import RETRY_LATER, ProblemError
from ._streams import Streams


@attrs.frozen
class Limits:
    """What a request may ask for.

    Attributes:
        max_body: Bytes of a body.
        max_wait: Seconds for which a request may wait.
        max_frame: Bytes of the data of an event in an answer.
        max_page: Items of a page.
    """

    max_body: int
    max_wait: float
    max_frame: int
    max_page: int = 1000


@attrs.define(eq=False)
class ServerContext:
    """What the handlers of the routes work with.

    Attributes:
        access: Which requests are let in.
        streams: What is open for long.
        limits: What a request may ask for.
        page: Whether there is a page.
        requests: How many requests were answered.
        current_runtime: Keeps the runs; `None` while the lifespan of the application has not begun.
    """

    access: Access
    streams: Streams
    limits: Limits
    page: bool
    requests: RequestCounts = attrs.field(factory=RequestCounts)
    current_runtime: Runtime | None = None

    _encoders: dict[str, Encoder] = attrs.field(factory=dict, init=False)
    """By workflow. Equal ones would not do: what one of them made is remembered for itself only."""

    @property
    def runtime(self) -> Runtime:
        """What keeps the runs.

        Raises:
            ProblemError: If it cannot be used: it has not been entered, or is being left.
        """
        if self.current_runtime is None:
            raise ProblemError(
                503,
                "the lifespan of this application has not begun, or is over: an application that mounts it must be "
                "given lifespan=server.lifespan",
            )
        if self.streams.stopping or self.current_runtime.state != "open":
            raise ProblemError(503, "the server stops; come back later", RETRY_LATER)
        return self.current_runtime

    @property
    def workflows(self) -> Mapping[str, Workflow[Any]]:
        """The workflows, by name."""
        return self.runtime.workflows

    def workflow_of(self, request: Request) -> tuple[str, Workflow[Any]]:
        """Return the workflow that the path names, and its name.

        Raises:
            ProblemError: If there is none of this name.
        """
        name = request.path_params["name"]
        workflow = self.workflows.get(name)
        if workflow is None:
            hint = nearest(name, self.workflows)
            raise ProblemError(404, f"there is no workflow {short_repr(name)}; {hint}")
        return name, workflow

    @contextmanager
    def conflicts(self) -> Iterator[None]:
        """Have this block fail with a 409 if what it asks for does not fit how the run stands."""
        runtime = self.runtime
        try:
            yield
        except TooManyRunsError:
            raise
        except WorkflowRuntimeError as error:
            if runtime.state != "open":  # it was left meanwhile, which is no fault of the request
                raise
            raise ProblemError(409, str(error)) from None

    def encoder_of(self, run: RunHandle[Any]) -> Encoder:
        """Return what encodes the events of a run."""
        encoder = self._encoders.get(run.workflow)
        if encoder is None:
            encoder = Encoder(self.limits.max_frame, converter_of(self.workflows[run.workflow]))
            self._encoders[run.workflow] = encoder
        return encoder

    async def describe(self, run: RunHandle[Any]) -> dict[str, Any]:
        """Return what is said about a run."""
        return await describe_whole_run(run, self.encoder_of(run).converter)

    async def wait_for_end(
        self, request: Request, run: RunHandle[Any], seconds: float | None
    ) -> None:
        """Wait until a run has ended, or so many seconds have passed: fewer if the client leaves or the server stops."""
        if seconds is not None:
            with self.streams.waiting(seconds, request.receive):
                await run.wait()

    async def run_of(self, request: Request) -> RunHandle[Any]:
        """Return the run that the path names.

        Raises:
            UnknownRunError: If there is no such run, or it belongs to others.
            ProblemError: If this program cannot work with it.
        """
        run_id, principal = request.path_params["id"], request.state.principal
        return await self.access.find(self.runtime, run_id, principal)
