"""`WorkflowClient`: starts runs on a server, finds and lists them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self
from uuid import uuid4

from .._arguments import check_seconds, check_token
from .._messages import short_repr
from ..errors import WorkflowConfigurationError, WorkflowRuntimeError
from ..events import Event, StartEvent
from ..runtime import RunStatus
from ._http import (
    AsyncClient,
    Http,
    base_url,
    check_client,
    new_client,
    quoted,
    understanding,
)
from ._records import (
    KnownTypes,
    RemoteRunPage,
    RemoteWorkflow,
    read_run,
    read_workflow,
)
from ._run import RemoteRun, _data_of


class WorkflowClient:
    """Uses the runs of a `WorkflowServer`, on asyncio or trio.

        async with WorkflowClient("http://127.0.0.1:8000", types=[Progress]) as client:
            run = await client.start("research", {"topic": "tea"})
            async for record in run.events():
                print(record.seq, record.event)
            print(await run.result())

    When the server is away for a moment, requests that are safe to repeat are repeated, and streams of events
    continue where they were: a restart of a server that keeps its runs in a database is not noticed. A
    request that is not safe to repeat, such as an answer, is repeated only if it was not sent.

    All methods raise a `WorkflowServerError` if the server refuses, a `ServerUnreachableError` if there is no answer, and
    a `WorkflowRuntimeError` outside of the `async with` block.

    Args:
        url: The address of the server, with the path under which it is mounted, if any.
        token: What the server asks for; it is sent in the header `Authorization`.
        types: The event classes that are to be recognised, besides those of the library. Events of other
            classes are a `RemoteEvent`, with their data.
        timeout: Seconds that the server may take to answer, in addition to those for which it is asked to wait.
        give_up_after: Seconds for which a server that is away is tried again; `None` for ever, 0 for not at all.
        longest_delay: Seconds between two attempts, at most. The first delay is the one that the server
            asks for, or half a second; each one after that is twice as long, with some jitter.
        http: An `httpx2.AsyncClient` to use: for a proxy, certificates, or more headers. It is not closed.

    Raises:
        WorkflowConfigurationError: If an argument has an invalid value.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        types: Iterable[type[Event]] = (),
        timeout: float = 30.0,
        give_up_after: float | None = 60.0,
        longest_delay: float = 10.0,
        http: AsyncClient | None = None,
    ) -> None:
        self._url = base_url(url)
        self._headers = {} if token is None else {"authorization": f"Bearer {check_token(token)}"}
        self._types = KnownTypes.of(types)
        check_seconds("timeout", timeout)
        check_seconds("give_up_after", give_up_after, "for ever", or_zero=True)
        check_seconds("longest_delay", longest_delay)
        self._seconds = (give_up_after, longest_delay, timeout)
        if http is not None:
            check_client(http)
        self._given = http
        self._made: AsyncClient | None = None
        self._http: Http | None = None
        self._state: Literal["new", "open", "closed"] = "new"

    async def __aenter__(self) -> Self:
        """Take requests from now on. No connection is made before the first one.

        Raises:
            WorkflowRuntimeError: If it has been entered before.
        """
        if self._state != "new":
            raise WorkflowRuntimeError(
                "this WorkflowClient has been entered already; a client is entered once: make another one"
            )
        client = self._given
        if client is None:
            client = self._made = new_client(self._url)
        give_up_after, longest_delay, timeout = self._seconds
        self._http = Http(self._url, client, self._headers, give_up_after, longest_delay, timeout)
        self._state = "open"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close all connections. Runs continue."""
        assert self._http is not None
        self._state = "closed"
        await self._http.aclose()
        if self._made is not None:
            await self._made.aclose()

    async def workflows(self) -> list[RemoteWorkflow]:
        """Return the workflows of the server: their names, steps, and what they are for."""
        found = await self._opened.call("GET", "/v1/workflows")
        with understanding("GET /v1/workflows"):
            return [read_workflow(one) for one in found["workflows"]]

    async def workflow(self, name: str) -> RemoteWorkflow:
        """Return a workflow with the JSON Schemas of its input, its output and its events.

        Raises:
            WorkflowServerError: With status 404 if there is no such workflow.
        """
        path = f"/v1/workflows/{quoted(_checked_name('name', name))}"
        found = await self._opened.call("GET", path)
        with understanding(f"GET {path}"):
            return read_workflow(found)

    async def start(
        self,
        name: str,
        input: StartEvent | Mapping[str, Any] | None = None,  # noqa: A002
        *,
        wait: float | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> RemoteRun:
        """Start a run, or find the one that was started with this id or key.

        If the connection breaks, the request is repeated with the same key, so that there is one run.

        Args:
            name: The name of the workflow.
            input: The start event, or its fields as data.
            wait: Seconds to wait for the end of the run, at most 60. `run.known` is then the run as it
                stands after that, and `run.result()` needs no request if it is completed.
            run_id: Identifies the run; made up if not given. If there is a run of this id and workflow, that run is
                returned, whatever else is given here.
            metadata: Whatever is worth knowing about the run, as a dict of values for JSON.
            idempotency_key: Stands for this request: requests with the same key find the same run. Made up if
                not given.

        Raises:
            WorkflowServerError: With status 404 if there is no such workflow, 409 if the run of this id is of another
                workflow, 422 if the input does not fit (`path` says where), 429 if too many runs are in
                progress.
            WorkflowConfigurationError: If an argument has an invalid value.
        """
        http, path = self._opened, f"/v1/workflows/{quoted(_checked_name('name', name))}/runs"
        if wait is not None:
            check_seconds("wait", wait, or_zero=True)
            wait = min(wait, 60.0)
        body: dict[str, Any] = {"input": _data_of("start()", input, {})}
        headers = {}
        if metadata is not None:
            if not isinstance(metadata, Mapping):
                raise WorkflowConfigurationError(
                    f"metadata must be a dict with values for JSON, not {short_repr(metadata)}"
                )
            body["metadata"] = dict(metadata)
        if run_id is None:
            headers["idempotency-key"] = idempotency_key or uuid4().hex
        elif idempotency_key is None:
            body["run_id"] = run_id
        else:
            raise WorkflowConfigurationError(
                "start() takes a run_id or an idempotency_key, not both: each of them stands for one run"
            )
        found = await http.call(
            "POST", path, query={"wait": wait}, body=body, headers=headers, wait=wait or 0.0
        )
        with understanding(f"POST {path}"):
            info = read_run(found)
        return RemoteRun(info.id, http, self._types, info)

    def run(self, run_id: str) -> RemoteRun:
        """Return a run by its id. The server is not asked whether there is one."""
        return RemoteRun(_checked_name("run_id", run_id), self._opened, self._types)

    async def runs(
        self,
        status: RunStatus | None = None,
        workflow: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> RemoteRunPage:
        """Return a page of the list of runs, newest first.

        Args:
            status: Only runs that stand so.
            workflow: Only runs of this workflow.
            limit: How many runs, at most.
            before: The `next` of the page before; `None` for the first page.

        Raises:
            WorkflowServerError: With status 400 if an argument has an invalid value.
        """
        query = {"status": status, "workflow": workflow, "limit": limit, "before": before}
        found = await self._opened.call("GET", "/v1/runs", query=query)
        with understanding("GET /v1/runs"):
            return RemoteRunPage([read_run(one) for one in found["runs"]], found["next"])

    @property
    def _opened(self) -> Http:
        """The connections, if the block has been entered; whether it has been left is asked there."""
        if self._http is None:
            raise WorkflowRuntimeError(
                "this WorkflowClient has not been entered; use 'async with WorkflowClient(...) as client:'"
            )
        return self._http

    def __repr__(self) -> str:
        state = "not entered" if self._state == "new" else self._state
        return f"<WorkflowClient of {self._url}: {state}>"


def _checked_name(argument: str, name: object) -> str:
    if not isinstance(name, str) or not name:
        raise WorkflowConfigurationError(
            f"{argument} must be a str that is not empty, not {short_repr(name)}"
        )
    return name
