"""The server: whatever is asked, it answers; and what it refuses is a problem (H3), with a status that the table names (H7)."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from anyio_workflows.server._routes import ROUTES

from .asking import asking
from .conftest import BACKENDS
from .running import run_virtually
from .test_server_requests import TALK, Double, Echo, Fails

TEXT = st.text(max_size=6) | st.sampled_from(["run-1", "run-2", "double", "talk", "0", "1", "60"])
HEADER = st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MEMBERS = st.sampled_from(["input", "metadata", "run_id", "type", "data", "step", "n", "text"])
NAMES = st.sampled_from(["Said", "Reply", "StopEvent", "StartEvent", "Number"])
BODY = st.dictionaries(MEMBERS | TEXT, JSON | NAMES | st.dictionaries(MEMBERS, JSON), max_size=4)
PARAMETERS = sorted({name for route in ROUTES for name in route.query})
VALUE = TEXT | st.sampled_from(
    ["json", "svg", "running", "cancel", "Said,Reply", "1e9", "nan", "-1"]
)
QUERY = st.lists(st.tuples(st.sampled_from(PARAMETERS) | TEXT, VALUE), max_size=1)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "accept",
            "content-type",
            "content-length",
            "idempotency-key",
            "last-event-id",
            "authorization",
            "origin",
        ]
    ),
    HEADER
    | st.sampled_from(["application/json", "text/event-stream", "5", "http://127.0.0.1:8000"]),
    max_size=1,
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, Any, dict[str, str]]:
    route = draw(st.sampled_from([route for route in ROUTES if not route.is_page]))
    method = draw(st.sampled_from([*[route.method] * 6, "GET", "POST", "DELETE", "HEAD", "PUT"]))
    path = route.template
    path = path.format(
        id=draw(st.sampled_from(["run-1", "run-2"]) | TEXT),
        name=draw(st.sampled_from(["echo", "talk", "double"]) | TEXT),
        question=draw(st.just("1:1:a/b c?") | TEXT),
    )
    path = path.replace("?", "") + "?" + "&".join(f"{a}={b}" for a, b in draw(QUERY))
    body = draw(st.none() | st.binary(max_size=20) | BODY)
    headers = draw(HEADERS)
    if isinstance(body, dict):
        body = json.dumps(body).encode()
        headers.setdefault("content-type", "application/json")
    return method, path.encode("utf-8", "replace").decode(), body, headers


async def ask_all(asked: list[tuple[str, str, Any, dict[str, str]]]) -> None:
    async with asking(Echo(), TALK, Double(), Fails(), max_wait=1.0) as server:
        for number, name in enumerate(("talk", "fails"), 1):
            await server.post(f"/v1/workflows/{name}/runs", {"run_id": f"run-{number}"})
        await anyio.sleep(1)
        for method, path, body, headers in asked:
            with anyio.move_on_after(5):  # a stream may be endless
                answered = await server.ask(method, path, body, headers)
                assert answered.status < 500
                if answered.status >= 400:
                    facts = answered.json()
                    assert answered.headers["content-type"] == "application/problem+json"
                    assert facts["status"] == answered.status
                    assert facts["detail"]
                    assert len(answered.body) < 20_000
        for number in (1, 2):  # it still works
            answered = await server.ask("GET", f"/v1/runs/run-{number}")
            assert answered.status in (200, 404)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(asked=st.lists(requests(), min_size=1, max_size=8))
def test_whatever_is_asked_is_answered(
    backend: str, asked: list[tuple[str, str, Any, dict[str, str]]]
) -> None:
    run_virtually(backend, ask_all, asked)
