"""The server: who is let in (H4), and whose run is whose (H5). Each promise about security is a test."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

import anyio
from starlette.exceptions import HTTPException

from anyio_workflows import Context, HumanResponseEvent, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import WorkflowConfigurationError
from anyio_workflows.runtime import MemoryData, MemoryStore, Runtime
from anyio_workflows.runtime._store import StoredRun
from anyio_workflows.server import Action, WorkflowServer, _runs
from anyio_workflows.server._access import Access

from .asking import Asker, asking

pytestmark = pytest.mark.anyio


class Approval(HumanResponseEvent):
    approved: bool


class Echo(Workflow[Any]):
    @step
    async def echo(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("say"))


class Ask(Workflow[bool]):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Approval, timeout=None)
        return StopEvent(result=answer.approved)


START = "/v1/workflows/echo/runs"
EVERYWHERE = ["/", "/page.js", "/healthz", "/readyz", "/v1/runs", "/v1/workflows", "/nowhere"]


# --- H4: Host ---------------------------------------------------------------------------------------------


OWN_HOSTS = [
    "127.0.0.1:8000",
    "127.0.0.1",
    "localhost",
    "LOCALHOST:1234",
    "localhost.",
    "app.localhost:8000",
    "[::1]:8000",
    "127.8.9.1",
]
FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "192.168.1.5:8000",
    "user@localhost",
    "localhost:8000:8000",
    "[::1",
    "",
    "loc\xe4lhost",
]


@pytest.mark.parametrize("host", OWN_HOSTS)
async def test_the_host_may_be_a_name_of_this_machine(host: str):
    async with asking(Echo()) as server:
        for path in ("/", "/v1/runs", "/healthz"):
            assert (await server.ask("GET", path, headers={"host": host})).status == 200


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
async def test_another_host_is_refused_everywhere(host: str):
    async with asking(Echo()) as server:
        for path in EVERYWHERE:
            answered = await server.ask("GET", path, headers={"host": host})
            assert answered.status == 403
            assert "WorkflowServer(hosts=[...])" in answered.detail
        answered = await server.ask("POST", START, {"input": {}}, {"host": host})
        assert answered.status == 403
        assert (await server.get("/v1/runs"))["runs"] == []


async def test_a_request_without_a_host_or_with_two_is_refused():
    async with asking(Echo()) as server:
        bare = Asker(server.app, {})
        assert (await bare.ask("GET", "/v1/runs")).status == 403
        two = Asker(server.app, {"host": "localhost", "Host": "localhost"})
        assert (await two.ask("GET", "/v1/runs")).status == 403


async def test_hosts_lists_more_names():
    async with asking(Echo(), hosts=["Example.org", "*.example.net", "10.0.0.7", "::2"]) as server:
        for host in ("example.org", "example.org:443", "a.b.example.net", "10.0.0.7", "[::2]:80"):
            assert (await server.ask("GET", "/v1/runs", headers={"host": host})).status == 200
        for host in ("www.example.org", "example.net", "xexample.net", "10.0.0.8"):
            assert (await server.ask("GET", "/v1/runs", headers={"host": host})).status == 403
    async with asking(Echo(), hosts=["*"]) as server:
        assert (await server.ask("GET", "/v1/runs", headers={"host": "evil.example"})).status == 200


async def test_the_address_of_the_connection_is_a_host():
    """Whoever has bound the address: a name could be made to stand for it, but no other address."""
    async with asking(Echo()) as server:

        async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
            await server.app({**scope, "server": ("192.168.1.5", 8000)}, receive, send)

        there = Asker(elsewhere, {"host": "192.168.1.5:8000"})
        assert (await there.ask("GET", "/v1/runs")).status == 200
        assert (
            await there.ask("GET", "/v1/runs", headers={"host": "192.168.1.6:8000"})
        ).status == 403


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        ("example.org", "hosts must be a list of str, not 'example.org'"),
        ([1], "hosts must be a list of str, not [1]"),
        (["example.org:80"], "hosts has 'example.org:80'; it lists names"),
        (["http://example.org"], "without a port"),
        (["ex*mple.org"], "'*.example.org'"),
        ([""], "hosts has ''"),
    ],
)
def test_wrong_hosts_are_refused(hosts: Any, text: str):
    with pytest.raises(WorkflowConfigurationError) as caught:
        WorkflowServer(hosts=hosts)
    assert text in str(caught.value)


# --- H4: Pages of other origins -----------------------------------------------------------------------------


SIMPLE = ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "", "x"]
"""What a page of another origin may send without being asked for permission; and what is no media type."""


@pytest.mark.parametrize("media", SIMPLE)
@pytest.mark.parametrize("body", [b"", b'{"input": {}}'])
async def test_only_json_is_taken(media: str, body: bytes):
    async with asking(Echo()) as server:
        run = await server.post(f"{START}?wait=60")
        paths = (START, *(f"/v1/runs/{run['id']}/{what}" for what in ("cancel", "retry", "events")))
        for path in paths:
            answered = await server.ask("POST", path, body, {"content-type": media})
            assert answered.status == 415
            assert "application/json" in answered.detail
        assert len((await server.get("/v1/runs"))["runs"]) == 1


async def test_a_body_of_no_type_is_refused_and_no_body_is_an_empty_object():
    async with asking(Echo()) as server:
        assert (await server.ask("POST", START, b'{"input": {}}')).status == 415
        assert (await server.ask("POST", START, b"")).status == 201


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:9000", "null"])
async def test_pages_of_other_origins_are_refused(origin: str):
    """A simple request without a body bears no content type, but always its origin."""
    async with asking(Echo()) as server:
        for method, path in [("POST", START), ("GET", "/v1/runs"), ("DELETE", "/v1/runs/x")]:
            answered = await server.ask(method, path, headers={"origin": origin})
            assert answered.status == 403
            assert "WorkflowServer(allow_origins=[...])" in answered.detail
            assert "access-control-allow-origin" not in answered.headers
        assert (await server.get("/v1/runs"))["runs"] == []


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("https://example.org", "example.org"),
        ("https://Example.org", "example.org:443"),
        ("http://example.org", "example.org:80"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
async def test_the_own_page_is_served_whatever_the_scheme_in_front(origin: str, host: str):
    async with asking(Echo(), hosts=["example.org"]) as server:
        headers = {"origin": origin, "host": host}
        assert (await server.ask("POST", START, {}, headers)).status == 201


async def test_there_is_no_cors_unless_origins_are_listed():
    preflight = {
        "origin": "https://example.org",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    async with asking(Echo()) as server:
        answered = await server.ask("OPTIONS", START, headers=preflight)
        assert answered.status == 403
        assert not [name for name in answered.headers if name.startswith("access-control")]
    async with asking(Echo(), allow_origins=["https://Example.org"]) as server:
        answered = await server.ask("OPTIONS", START, headers=preflight)
        assert answered.status == 200
        assert answered.headers["access-control-allow-origin"] == "https://example.org"
        allowed = answered.headers["access-control-allow-headers"].lower()
        for name in ("authorization", "content-type", "last-event-id", "idempotency-key"):
            assert name in allowed
        assert {"GET", "POST", "DELETE"} == set(
            answered.headers["access-control-allow-methods"].split(", ")
        )
        assert "access-control-allow-credentials" not in answered.headers
        answered = await server.ask("POST", START, {}, {"origin": "https://example.org"})
        assert answered.status == 201
        assert answered.headers["access-control-allow-origin"] == "https://example.org"
        assert "location" in answered.headers["access-control-expose-headers"]
        answered = await server.ask("POST", START, {}, {"origin": "https://evil.example"})
        assert answered.status == 403


async def test_all_origins_need_a_token():
    with pytest.raises(WorkflowConfigurationError, match="list the origins, or give token="):
        WorkflowServer(allow_origins=["*"])
    async with asking(Echo(), allow_origins=["*"], token="t0ken") as server:
        headers = {"origin": "https://example.org", "authorization": "Bearer t0ken"}
        answered = await server.ask("GET", "/v1/runs", headers=headers)
        assert (answered.status, answered.headers["access-control-allow-origin"]) == (200, "*")


@pytest.mark.parametrize(
    ("origins", "text"),
    [
        ("https://example.org", "allow_origins must be a list of str"),
        (["example.org"], "it lists origins such as 'https://example.org'"),
        (["https://example.org/"], "without a path"),
    ],
)
def test_wrong_origins_are_refused(origins: Any, text: str):
    with pytest.raises(WorkflowConfigurationError, match=text):
        WorkflowServer(allow_origins=origins)


# --- H4: Token ----------------------------------------------------------------------------------------------


async def test_the_data_needs_the_token_and_the_page_and_health_need_none():
    async with asking(Echo(), token="t0ken") as server:
        for path in ("/", "/page.js", "/page.css", "/healthz", "/readyz"):
            assert (await server.ask("GET", path)).status == 200
        wrong = [
            "",
            "Bearer",
            "Bearer wrong",
            "Basic t0ken",
            "t0ken",
            "Bearer t0ken2",
            "Bearer \xe9",
        ]
        for header in [None, *wrong]:
            headers = {} if header is None else {"authorization": header}
            for path in ("/v1/runs", "/v1/workflows", "/v1/runs/x", "/v1/runs/x/events"):
                answered = await server.ask("GET", path, headers=headers)
                assert answered.status == 401
                assert answered.headers["www-authenticate"].startswith("Bearer")
                said = (
                    "this server asks for its token" if header is None else "this is not its token"
                )
                assert answered.detail == f"{said}: send 'Authorization: Bearer TOKEN'"
        for header in ("Bearer t0ken", "bearer  t0ken"):
            answered = await server.ask("GET", "/v1/runs", headers={"authorization": header})
            assert answered.status == 200


@pytest.mark.parametrize("token", ["", "p\xe4ss", "two words", "line\n", 5, b"bytes"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token: Any):
    with pytest.raises(
        WorkflowConfigurationError, match="token must be a str of visible ASCII"
    ) as caught:
        WorkflowServer(token=token)
    assert not token or str(token).strip() not in str(caught.value).replace("str", "")


async def test_the_token_is_in_no_repr():
    access = Access("t0ken", None)
    assert "t0ken" not in repr(access)


# --- H4: Where it is served -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.org"])
async def test_others_than_this_machine_are_not_served_without_a_token(host: str):
    server = WorkflowServer()
    server.add_workflow("echo", Echo())
    with pytest.raises(WorkflowConfigurationError) as caught:
        await server.serve(host, 0)
    assert "others than this machine could start and read runs" in str(caught.value)
    assert "token=" in str(caught.value)
    assert "insecure=True" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"host": 5}, "host must be a str, not 5"),
        ({"port": "8000"}, "port must be an int of 0 or more, not '8000'"),
        ({"port": 70_000}, "port must be at most 65535, not 70000"),
        ({"host": "0.0.0.0", "insecure": 1}, "insecure must be True or False, not 1"),
    ],
)
async def test_wrong_addresses_are_refused(arguments: Any, text: str):
    with pytest.raises(WorkflowConfigurationError) as caught:
        await WorkflowServer().serve(**arguments)
    assert str(caught.value) == text


# --- H5: authorize, and owners ----------------------------------------------------------------------------------


def by_header(request: Any, action: Action) -> str | None:
    return request.headers.get("x-user")


ANN = {"x-user": "ann"}
BOB = {"x-user": "bob"}


async def test_authorize_is_asked_about_each_request():
    actions: list[Action] = []

    async def authorize(request: Any, action: Action) -> str | None:
        await anyio.lowlevel.checkpoint()
        actions.append(action)
        return by_header(request, action)

    async with asking(Ask(timeout=None), authorize=authorize) as server:
        run = await server.post("/v1/workflows/ask/runs", **ANN)
        path = f"/v1/runs/{run['id']}"
        asked = [
            ("GET", "/v1/runs"),
            ("GET", "/v1/workflows"),
            ("GET", "/v1/workflows/ask"),
            ("GET", "/v1/workflows/ask/graph"),
            ("GET", path),
            ("GET", f"{path}/questions"),
            ("POST", f"{path}/events"),
            ("POST", f"{path}/questions/1:1:Approval"),
            ("POST", f"{path}/retry"),
            ("POST", f"{path}/cancel"),
            ("DELETE", path),
            ("GET", f"{path}/events"),
        ]
        for method, one in asked:
            await server.ask(method, one, headers=ANN)
        assert (await server.ask("GET", "/v1/runs")).status == 403
    assert actions == [
        ("start", "ask", None),
        ("list", None, None),
        ("list", None, None),
        ("list", "ask", None),
        ("list", "ask", None),
        ("read", None, run["id"]),
        ("read", None, run["id"]),
        ("send", None, run["id"]),
        ("send", None, run["id"]),
        ("retry", None, run["id"]),
        ("cancel", None, run["id"]),
        ("delete", None, run["id"]),
        ("read", None, run["id"]),
        ("list", None, None),
    ]


async def test_authorize_may_raise_an_http_exception():
    def authorize(request: Any, action: Action) -> str:
        if action.verb == "list":
            raise HTTPException(401, "sign in", {"www-authenticate": "Basic"})
        raise HTTPException(418, {"reason": "tea"})  # type: ignore[arg-type]  # as FastAPI allows

    async with asking(Echo(), authorize=authorize) as server:
        answered = await server.ask("GET", "/v1/runs")
        assert (answered.status, answered.detail) == (401, "sign in")
        assert answered.headers["www-authenticate"] == "Basic"
        answered = await server.ask("GET", "/v1/runs/x")
        assert (answered.status, answered.detail) == (418, '{"reason":"tea"}')


@pytest.mark.parametrize("principal", [True, "", 5, ["ann"]])
async def test_authorize_returns_a_name(principal: Any):
    async with asking(Echo(), authorize=lambda request, action: principal) as server:
        with pytest.raises(ExceptionGroup) as caught:
            await server.ask("GET", "/v1/runs")
        [error] = caught.value.exceptions
        assert isinstance(error, WorkflowConfigurationError)
        assert "authorize must return the name of a principal" in str(error)


async def test_a_run_of_another_owner_is_unknown_in_every_route():
    async with asking(Ask(timeout=None), authorize=by_header) as server:
        run = await server.post("/v1/workflows/ask/runs", {"metadata": {"a": 1}}, **ANN)
        assert run["metadata"] == {"a": 1}
        path = f"/v1/runs/{run['id']}"
        routes = [
            ("GET", path, None),
            ("GET", f"{path}?wait=60", None),
            ("GET", f"{path}/events", None),
            ("POST", f"{path}/events", {"type": "Approval", "data": {"approved": True}}),
            ("GET", f"{path}/questions", None),
            ("POST", f"{path}/questions/1:1:Approval", {"data": {"approved": True}}),
            ("POST", f"{path}/cancel", None),
            ("POST", f"{path}/retry", None),
            ("DELETE", path, None),
        ]
        for method, one, body in routes:
            foreign = await server.ask(method, one, body, BOB)
            unknown = await server.ask(method, one.replace(run["id"], "0" * 32), body, BOB)
            assert foreign.status == unknown.status == 404
            assert foreign.detail.replace(run["id"], "0" * 32) == unknown.detail
        assert (await server.get("/v1/runs", **BOB))["runs"] == []
        [same] = (await server.get("/v1/runs", **ANN))["runs"]
        assert (same["id"], same["status"]) == (run["id"], "waiting")
        assert "ann" not in str(same)


async def test_an_idempotency_key_finds_the_run_of_its_owner_only():
    async with asking(Echo(), authorize=by_header) as server:
        key = {"idempotency-key": "order-17"}
        first = await server.ask("POST", START, {"input": {"say": 1}}, ANN | key)
        again = await server.ask("POST", START, {"input": {"say": 1}}, ANN | key)
        other = await server.ask("POST", START, {"input": {"say": 2}}, BOB | key)
        assert [one.status for one in (first, again, other)] == [201, 200, 201]
        assert first.json()["id"] == again.json()["id"] != other.json()["id"]


async def test_where_there_are_owners_nobody_chooses_the_id_of_a_run():
    """To refuse only those of others would tell that they exist."""
    async with Runtime(workflows=[Echo()]) as runtime:
        await runtime.start("echo", run_id="taken")
        async with asking(runtime, authorize=by_header) as server:
            details = []
            for run_id in ("taken", "free"):
                answered = await server.ask("POST", START, {"run_id": run_id}, ANN)
                assert (answered.status, answered.json()["path"]) == (422, "$.run_id")
                details.append(answered.detail)
            assert details[0] == details[1]
            assert "Idempotency-Key" in details[0]
            assert (await server.ask("GET", "/v1/runs/taken", headers=ANN)).status == 404


async def test_the_list_of_an_owner_is_paged_and_bounded(monkeypatch: pytest.MonkeyPatch):
    """One request looks at so many runs only, and tells no id of the others."""
    monkeypatch.setattr(_runs, "_PAGE", 10)
    monkeypatch.setattr(_runs, "_MOST_READ", 20)
    runtime = Runtime(workflows=[Echo()])
    async with asking(runtime, authorize=by_header) as server:
        mine = []
        for number in range(5):
            mine.append((await server.post(START, **ANN))["id"])
            for n in range(5 if number else 45):
                await runtime.start("echo", run_id=f"foreign-{number}-{n}")
        found: list[str] = []
        pages, before = [], ""
        while before is not None:
            page = await server.get(f"/v1/runs?limit=2{before and f'&before={before}'}", **ANN)
            assert "foreign" not in str(page)
            found += [run["id"] for run in page["runs"]]
            pages.append(len(page["runs"]))
            before = page["next"]
        assert found == mine[::-1]
        assert pages == [2, 2, 0, 1]


@pytest.mark.parametrize("size", [3, 4, 5])
async def test_no_run_is_lost_between_pages_if_several_were_started_at_one_moment(
    monkeypatch: pytest.MonkeyPatch, size: int
):
    """Several processes may start some in the same microsecond."""
    monkeypatch.setattr(_runs, "_PAGE", size)
    monkeypatch.setattr(_runs, "_MOST_READ", size)
    data = MemoryData()
    for number in range(12):
        owner = "ann" if number in (0, 1, 4, 7, 10) else "bob"
        run_id = f"{owner}-{number:02}"
        created = float(number // 2 if number < 10 else 9)
        data.runs[run_id] = StoredRun(
            run_id, "echo", "stuck", created, metadata=json.dumps({"$owner": owner})
        )
    runtime = Runtime(MemoryStore(data), workflows=[Echo()])
    async with asking(runtime, authorize=by_header) as server:
        found, before = [], ""
        while before is not None:
            page = await server.get(f"/v1/runs?limit=9{before and f'&before={before}'}", **ANN)
            assert "bob" not in str(page)
            found += [run["id"] for run in page["runs"]]
            before = page["next"]
    assert found == ["ann-10", "ann-07", "ann-04", "ann-01", "ann-00"]


async def test_metadata_of_the_server_is_neither_taken_nor_shown():
    async with asking(Echo(), authorize=by_header) as server:
        for key in ("$owner", "$", "$x"):
            answered = await server.ask("POST", START, {"metadata": {key: "bob"}}, ANN)
            assert (answered.status, answered.json()["path"]) == (422, "$.metadata")
        run = await server.post(START, {"metadata": {"owner": "bob"}}, **ANN)
        assert run["metadata"] == {"owner": "bob"}


# --- H6: What comes in ------------------------------------------------------------------------------------------


class Elsewhere(HumanResponseEvent):
    """A type that the workflow does not know."""


@pytest.mark.parametrize(
    "name",
    ["Elsewhere", "os:system", "tests.test_server_access:Approval", "StopEvent2", "", None, 7],
)
async def test_types_are_names_that_the_workflow_declares_or_the_run_waits_for(name: Any):
    async with asking(Ask(timeout=None)) as server:
        run = await server.post("/v1/workflows/ask/runs")
        body = {"type": name, "data": {"approved": True}}
        answered = await server.ask("POST", f"/v1/runs/{run['id']}/events", body)
        assert (answered.status, answered.json()["path"]) == (422, "$.type")


async def test_tagged_data_names_no_other_class():
    async with asking(Ask(timeout=None)) as server:
        run = await server.post("/v1/workflows/ask/runs")
        for tag in ("os:system", "tests.test_server_access:Elsewhere"):
            body = {"type": "Approval", "data": {"$": tag, "value": {}}}
            answered = await server.ask("POST", f"/v1/runs/{run['id']}/events", body)
            assert answered.status == 422


async def test_ids_of_runs_from_outside_are_limited():
    wrong = ["", "a" * 129, "a b", "../x", "a/b", "\u00e4", "a\n", "x\ud800", None, 5, ["a"]]
    async with asking(Echo()) as server:
        for run_id in wrong:
            answered = await server.ask("POST", START, {"run_id": run_id})
            assert (answered.status, answered.json()["path"]) == (422, "$.run_id")
        assert (await server.get("/v1/runs"))["runs"] == []


@pytest.mark.parametrize("run_id", ["a" * 129, "a b", "\u00e4", "a;b"])
async def test_no_database_is_asked_for_ids_that_cannot_be(run_id: str):
    async with asking(Echo()) as server:
        assert (await server.ask("GET", f"/v1/runs/{run_id}")).status == 404
