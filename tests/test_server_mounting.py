"""The server in another application, and the arguments that it is made with (H1)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from anyio_workflows import Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import (
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowValidationError,
)
from anyio_workflows.runtime import Runtime
from anyio_workflows.server import WorkflowServer

from .asking import Asker
from .test_server import Buy, Count

pytestmark = pytest.mark.anyio


def a_server(**options: Any) -> WorkflowServer:
    server = WorkflowServer(**options)
    server.add_workflow("count", Count())
    return server


# --- Mounting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
async def test_mounted_its_addresses_have_the_path_in_front(root_path: str):
    server = a_server()
    routes = [
        Route("/own", lambda request: PlainTextResponse("mine")),
        Mount("/flows", server.app),
    ]
    outer = Starlette(routes=routes, lifespan=server.lifespan)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        whole = {"root_path": root_path, "path": f"{root_path}{scope['path']}"}
        await outer({**scope, **whole}, receive, send)

    async with outer.router.lifespan_context(outer):
        asker = Asker(app)
        assert (await asker.ask("GET", "/own")).body == b"mine"
        answered = await asker.ask("POST", "/flows/v1/workflows/count/runs?wait=60")
        run_id = answered.json()["id"]
        assert answered.headers["location"] == f"{root_path}/flows/v1/runs/{run_id}"
        assert (await asker.get(f"/flows/v1/runs/{run_id}"))["result"] == 3
        document = await asker.get("/flows/v1/openapi.json")
        assert document["servers"] == [{"url": f"{root_path}/flows"}]
        for path in ("/flows/", "/flows/page.js", "/flows/page.css"):
            assert (await asker.ask("GET", path)).status == 200
        page = (await asker.ask("GET", "/flows/")).body
        assert b'src="/' not in page
        assert b'href="/' not in page
        answered = await asker.ask("GET", "/flows/v1/nowhere")
        assert answered.status == 404
        assert answered.headers["content-type"] == "application/problem+json"
        answered = await asker.ask("GET", "/flows")
        assert answered.status == 307
        assert answered.headers["location"].endswith(f"{root_path}/flows/")


async def test_a_forgotten_lifespan_is_named():
    server = a_server(token="t0ken")
    outer = Starlette(routes=[Mount("/flows", server.app)])
    async with outer.router.lifespan_context(outer):
        asker = Asker(outer)
        for path in ("/flows/v1/runs", "/flows/v1/workflows", "/flows/metrics", "/flows/readyz"):
            answered = await asker.ask("GET", path)
            assert answered.status == 503
            assert "lifespan=server.lifespan" in answered.detail
        assert (await asker.ask("GET", "/flows/healthz")).status == 200


async def test_mounted_in_fastapi_as_the_example_shows(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("fastapi")
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    example = importlib.import_module("fastapi_app")
    example = importlib.reload(example)  # its runtime can be entered once
    async with example.app.router.lifespan_context(example.app):
        asker = Asker(example.app)
        started = await asker.post("/orders/17")
        assert started == {
            "run": "order-17",
            "status": "queued",
            "page": "/workflows/#run/order-17",
        }
        assert (await asker.post("/orders/17"))["run"] == "order-17"
        path = "/workflows/v1/runs/order-17"
        await asker.get(f"{path}/events?wait=60", accept="application/json")
        [question] = (await asker.get(f"{path}/questions"))["questions"]
        assert question["question"]["data"] == {"text": "Approve order 17?"}
        answers = f"{path}/questions/{question['id']}"
        assert (await asker.post(answers, {"data": {"approved": True}}))["taken_by"] == ["confirm"]
        assert (await asker.get(f"{path}?wait=60"))["result"] == "approved"
        assert "/orders/{number}" in (await asker.get("/openapi.json"))["paths"]
        frames = []
        async with asker.streaming("GET", f"{path}/events") as streamed:
            frames = [frame async for frame in streamed.frames()]
        assert [frame.event for frame in frames] == [None, None, "end"]


# --- Lifespan and runtime ---------------------------------------------------------------------------------


async def test_a_server_lives_once_at_a_time_and_again_later():
    server = a_server()
    for _ in range(2):
        async with server.lifespan():
            asker = Asker(server.app)
            run = await asker.post("/v1/workflows/count/runs?wait=60")
            assert run["status"] == "completed"
            assert len((await asker.get("/v1/runs"))["runs"]) == 1
            with pytest.raises(WorkflowRuntimeError, match="has begun already"):
                async with server.lifespan():
                    pass
            assert (await asker.get("/v1/runs"))["runs"]
        assert (await asker.ask("GET", "/v1/runs")).status == 503


async def test_a_runtime_that_is_entered_is_used_as_it_is():
    async with Runtime(workflows=[Count()]) as runtime:
        run = await runtime.start("count", run_id="mine")
        for _ in range(2):
            server = WorkflowServer(runtime)
            async with server.lifespan():
                assert (await Asker(server.app).get("/v1/runs/mine?wait=60"))["result"] == 3
        assert runtime.state == "open"
        assert await run == 3


async def test_a_runtime_that_is_not_entered_lives_as_long_as_the_server():
    runtime = Runtime(workflows=[Count()])
    server = WorkflowServer(runtime)
    async with server.lifespan():
        assert runtime.state == "open"
    assert runtime.state == "left"
    with pytest.raises(WorkflowRuntimeError, match="its block has been left"):
        async with server.lifespan():
            pass


async def test_a_runtime_that_is_left_before_its_server_is_not_there():
    async with AsyncExitStack() as stack:
        async with Runtime(workflows=[Buy(timeout=None)]) as runtime:
            server = WorkflowServer(runtime)
            await stack.enter_async_context(server.lifespan())
            asker = Asker(server.app)
            body = {"input": {"item": "tea"}, "run_id": "one"}
            await asker.post("/v1/workflows/buy/runs", body)
        asked = [
            ("GET", "/v1/runs/one"),
            ("POST", "/v1/workflows/buy/runs"),
            ("POST", "/v1/runs/one/cancel"),
        ]
        for method, path in asked:
            answered = await asker.ask(method, path)
            assert answered.status == 503
            assert "retry-after" in answered.headers


async def test_a_request_that_waits_while_its_runtime_is_left_is_told():
    answers: list[int] = []
    async with anyio.create_task_group() as group, AsyncExitStack() as stack:
        async with Runtime(workflows=[Buy(timeout=None)]) as runtime:
            server = WorkflowServer(runtime)
            await stack.enter_async_context(server.lifespan())
            asker = Asker(server.app)
            body = {"input": {"item": "tea"}, "run_id": "one"}
            await asker.post("/v1/workflows/buy/runs", body)

            async def wait() -> None:
                answered = await asker.ask("GET", "/v1/runs/one?wait=60")
                answers.append(answered.status)

            group.start_soon(wait)
            await anyio.sleep(1)
        await anyio.sleep(1)
        assert answers == [200]  # it was cancelled


# --- Workflows --------------------------------------------------------------------------------------------


class Dead(Event):
    pass


class Faulty(Workflow[Any]):
    @step
    async def begin(self, ev: StartEvent) -> Dead:
        return Dead()


class Named(Workflow[Any]):
    @step
    async def end(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


WRONG: list[tuple[Callable[[WorkflowServer], object], type[Exception], str]] = [
    (lambda server: server.add_workflow("count", Count()), WorkflowConfigurationError, "already"),
    (lambda server: server.add_workflow("a b", Count()), WorkflowConfigurationError, "'a b'"),
    (lambda server: server.add_workflow(5, Count()), WorkflowConfigurationError, "5"),  # type: ignore[arg-type]
    (lambda server: server.add_workflow("x", Count), WorkflowConfigurationError, "Count()"),  # type: ignore[arg-type]
    (lambda server: server.add_workflow("x", Faulty()), WorkflowValidationError, "Dead"),
]


@pytest.mark.parametrize(("add", "error", "text"), WRONG)
def test_wrong_workflows_are_refused_when_they_are_added(
    add: Callable[[WorkflowServer], object], error: type[Exception], text: str
):
    server = a_server()
    with pytest.raises(error) as caught:
        add(server)
    assert text in str(caught.value)
    assert list(server.openapi()["components"]["schemas"]).count("count.input") == 1


async def test_workflows_are_added_before_the_start_and_to_no_runtime():
    server = a_server()
    async with server.lifespan():
        with pytest.raises(WorkflowRuntimeError, match="before the server starts"):
            server.add_workflow("named", Named())
    server.add_workflow("named", Named())
    async with server.lifespan():
        workflows = (await Asker(server.app).get("/v1/workflows"))["workflows"]
        assert [one["name"] for one in workflows] == ["count", "named"]
    given = WorkflowServer(Runtime(workflows=[Count()]))
    with pytest.raises(WorkflowConfigurationError, match=r"Runtime\(workflows=\{'named'"):
        given.add_workflow("named", Named())


async def test_a_server_without_workflows_does_not_start():
    with pytest.raises(WorkflowConfigurationError, match=r"call add_workflow\(name, workflow\)"):
        async with WorkflowServer().lifespan():
            pass


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"runtime": Count()}, "runtime must be a Runtime, not"),
        (
            {"runtime": "sqlite:///runs.db"},
            "not 'sqlite:///runs.db'; for a database, give Runtime('sqlite:///runs.db', workflows=",
        ),
        ({"runtime": Runtime}, "leave it out and call add_workflow()"),
        ({"authorize": "ann"}, "authorize must be a function of a request and an action"),
        ({"page": "yes"}, "page must be True or False, not 'yes'"),
        ({"max_body": 0}, "max_body must be an int of 1 or more, not 0"),
        ({"max_frame": 1.5}, "max_frame must be an int of 1 or more, not 1.5"),
        ({"max_readers": True}, "max_readers must be an int of 1 or more, not True"),
        ({"max_readers_per_run": "5"}, "max_readers_per_run must be an int of 1 or more, not '5'"),
        ({"max_wait": 0}, "max_wait must be a positive number of seconds; not 0"),
        ({"heartbeat": None}, "heartbeat must be a positive number of seconds; not None"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], text: str):
    with pytest.raises(WorkflowConfigurationError) as caught:
        WorkflowServer(**arguments)
    assert text in str(caught.value)


async def test_there_is_no_page_if_it_is_turned_off():
    server = a_server(page=False)
    async with server.lifespan():
        for path in ("/", "/page.js"):
            assert (await Asker(server.app).ask("GET", path)).status == 404
