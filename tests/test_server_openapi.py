"""The server: its description as OpenAPI, which is made from the table of routes, is complete and true (H7)."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")


from anyio_workflows import Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.server import WorkflowServer
from anyio_workflows.server._routes import ROUTES

from .asking import Answered, Asker
from .test_server import Buy, Count

pytestmark = pytest.mark.anyio


class Inner(Event):
    n: int


class Nested(StartEvent):
    inner: Inner
    more: list[Inner] = []


class Sum(Workflow[int]):
    """Adds up."""

    @step
    async def add(self, ev: Nested) -> StopEvent:
        return StopEvent(result=sum(one.n for one in [ev.inner, *ev.more]))


class Fails(Workflow[Any]):
    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        raise ValueError("no")


def a_server(**options: Any) -> WorkflowServer:
    server = WorkflowServer(**options)
    for workflow in (Buy(timeout=None), Count(), Sum(), Fails()):
        server.add_workflow(type(workflow).__name__.lower(), workflow)
    return server


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key == "$ref":
                yield one
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


@pytest.mark.parametrize("token", [None, "t0ken"])
def test_the_description_is_valid(token: str | None):
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(a_server(token=token).openapi())


def test_the_description_has_every_route_that_is_no_part_of_the_page():
    document = a_server().openapi()
    described = {
        (method.upper(), path) for path, one in document["paths"].items() for method in one
    }
    routes = {(route.method, route.template) for route in ROUTES if not route.is_page}
    assert described == routes
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    assert all(one["summary"] and one["responses"] for one in operations)


def test_every_reference_leads_somewhere_and_every_schema_is_used():
    document = a_server().openapi()
    schemas = document["components"]["schemas"]
    used = {one.removeprefix("#/components/schemas/") for one in references(document)}
    assert used <= set(schemas)
    assert {name for name in schemas if "." not in name} <= used
    assert schemas["sum.input"]["properties"]["inner"] == {
        "$ref": "#/components/schemas/sum.input.Inner"
    }
    assert "$defs" not in str(document)


def test_the_token_is_described_if_there_is_one():
    document = a_server().openapi()
    assert "securitySchemes" not in document["components"]
    assert "401" not in document["paths"]["/v1/runs"]["get"]["responses"]
    document = a_server(token="t0ken").openapi()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert document["paths"]["/v1/runs"]["get"]["security"] == [{"token": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]
    assert "t0ken" not in str(document)


async def test_the_server_answers_with_its_description():
    server = a_server()
    async with server.lifespan():
        asker = Asker(server.app)
        document = await asker.get("/v1/openapi.json")
        assert document == json.loads(json.dumps(server.openapi()))

        async def mounted(scope: Any, receive: Any, send: Any) -> None:
            path = f"/flows{scope['path']}"
            await server.app({**scope, "root_path": "/flows", "path": path}, receive, send)

        document = await Asker(mounted).get("/v1/openapi.json")
        assert document["servers"] == [{"url": "/flows"}]


class Checked:
    """Asks a server, and compares each answer with the description."""

    def __init__(self, asker: Asker, document: dict[str, Any]) -> None:
        self.asker, self.document = asker, document
        self.seen: set[tuple[str, str, int]] = set()

    async def ask(self, method: str, template: str, body: Any = None, **options: Any) -> Answered:
        jsonschema = pytest.importorskip("jsonschema")
        query, headers = options.pop("query", ""), options.pop("headers", {})
        answered = await self.asker.ask(method, template.format(**options) + query, body, headers)
        operation = self.document["paths"][template][method.lower()]
        self.seen.add((method, template, answered.status))
        described = operation["responses"][str(answered.status)]
        if "content" not in described:
            assert answered.body == b""
            return answered
        media = answered.headers["content-type"]
        schema = described["content"][media]["schema"]
        if "json" in media:
            whole = {**schema, "components": self.document["components"]}
            checker = jsonschema.Draft202012Validator(whole)
            checker.validate(answered.json())
        for name in described.get("headers", {}):
            assert answered.headers[name]
        if body is not None and answered.status < 300:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            whole = {**schema, "components": self.document["components"]}
            jsonschema.Draft202012Validator(whole).validate(body)
        return answered


async def test_what_is_answered_is_what_is_described():
    server = a_server(token="t0ken")
    async with server.lifespan():
        asker = Asker(server.app, {"host": "localhost", "authorization": "Bearer t0ken"})
        checked = Checked(asker, server.openapi())
        starts, run_path = "/v1/workflows/{name}/runs", "/v1/runs/{id}"
        tea = {"item": "tea"}
        run = await checked.ask("POST", starts, {"input": tea, "run_id": "r"}, name="buy")
        assert run.status == 201
        await checked.ask("POST", starts, {"run_id": "r", "input": tea}, name="buy")
        await checked.ask("POST", starts, {"input": {"item": 5}}, name="buy")
        await checked.ask("POST", starts, {}, name="nowhere")
        await checked.ask("POST", starts, {"run_id": "r"}, name="count")
        failed = await checked.ask("POST", starts, {}, name="fails", query="?wait=60")
        assert failed.json()["error"]["step"] == "fail"
        done = await checked.ask("POST", starts, {}, name="count", query="?wait=60")
        done_id = done.json()["id"]
        await checked.ask("GET", "/v1/runs")
        await checked.ask("GET", "/v1/runs", query="?limit=1")
        await checked.ask("GET", "/v1/runs", query="?limit=x")
        await checked.ask("GET", run_path, id="r")
        await checked.ask("GET", run_path, id="nowhere")
        events = f"{run_path}/events"
        as_json = {"accept": "application/json"}
        page = await checked.ask("GET", events, id="r", headers=as_json, query="?wait=60")
        assert page.json()["events"]
        await checked.ask("GET", events, id=done_id, query="?after=4")
        await checked.ask("POST", events, {"type": "Progress"}, id="r")
        await checked.ask("POST", events, {"type": "Progress"}, id=done_id)
        questions = await checked.ask("GET", f"{run_path}/questions", id="r")
        [question] = questions.json()["questions"]
        answers = f"{run_path}/questions/{{question}}"
        here = {"id": "r", "question": question["id"]}
        await checked.ask("POST", answers, {"data": {}}, **here)
        await checked.ask("DELETE", run_path, id="r")
        body = {"type": "Decision", "data": {"approved": False}}
        assert (await checked.ask("POST", events, body, id="r")).status == 202
        await checked.ask("POST", answers, {"data": {"approved": True}}, **here)
        await checked.ask("GET", run_path, id="r", query="?wait=60")
        assert (await checked.ask("POST", f"{run_path}/retry", id="r")).status == 200
        again = await checked.ask("GET", f"{run_path}/questions", id="r")
        assert again.status == 200
        assert (await checked.ask("POST", f"{run_path}/cancel", id="r")).status == 200
        assert (await checked.ask("POST", f"{run_path}/retry", id=done_id)).status == 409
        assert (await checked.ask("DELETE", run_path, id="r")).status == 204
        await checked.ask("GET", "/v1/workflows")
        for name in ("buy", "sum", "nowhere"):
            await checked.ask("GET", "/v1/workflows/{name}", name=name)
            await checked.ask("GET", "/v1/workflows/{name}/graph", name=name)
        await checked.ask("GET", "/v1/openapi.json")
        await checked.ask("GET", "/healthz")
        await checked.ask("GET", "/readyz")
        asker.headers = {"host": "localhost"}
        await checked.ask("GET", "/v1/runs")
        asker.headers = {"host": "evil.example"}
        await checked.ask("GET", "/v1/runs")
    described = {
        (method.upper(), path, int(status))
        for path, operations in checked.document["paths"].items()
        for method, one in operations.items()
        for status in one["responses"]
        if int(status) < 300
    }
    missing = described - checked.seen
    assert {path for _, path, _ in missing} <= {"/metrics", "/v1/runs/{id}/questions/{question}"}


def the_generator() -> str:
    """Return the program that generates clients, or skip the test: what it needs may be missing, too."""
    here = str(Path(sys.executable).parent)
    found = shutil.which("openapi-python-client", path=f"{here}{os.pathsep}{os.environ['PATH']}")
    if found is None or subprocess.run([found, "--version"], capture_output=True).returncode:
        pytest.skip("openapi-python-client is not installed")
    return found


SERVE = """
import anyio
from anyio_workflows.server import WorkflowServer
from tests.test_server import Buy, Count

async def main():
    server = WorkflowServer(token="t0ken")
    server.add_workflow("buy", Buy(timeout=None))
    server.add_workflow("count", Count())
    async with anyio.create_task_group() as group:
        print(await group.start(server.serve, "127.0.0.1", 0), flush=True)

anyio.run(main)
"""


def test_a_generated_client_starts_a_run_and_reads_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    (tmp_path / "api.json").write_text(json.dumps(a_server(token="t0ken").openapi()))
    made = subprocess.run(
        [
            the_generator(),
            "generate",
            "--path",
            "api.json",
            "--meta",
            "none",
            "--output-path",
            "made",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "Unable to parse" not in made.stdout + made.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    made_client = importlib.import_module("made")
    api, models = (importlib.import_module(f"made.{name}") for name in ("api.default", "models"))
    start_run = importlib.import_module("made.api.default.start_run")
    get_run = importlib.import_module("made.api.default.get_run")
    assert api is not None

    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip().rstrip("/")
            with made_client.AuthenticatedClient(base_url=url, token="t0ken") as client:
                body = models.StartRun.from_dict({"input": {"to": 5}})
                run = start_run.sync("count", client=client, body=body)
                run = get_run.sync(run.id, client=client, wait=60)
                assert (run.status, run.result, run.last_seq) == ("completed", 5, 6)
                wrong = models.StartRun.from_dict({"input": {"item": 5}})
                problem = start_run.sync("buy", client=client, body=wrong)
                assert (problem.status, problem.path) == (422, "$.input.item")
        finally:
            process.kill()
