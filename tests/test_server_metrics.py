"""The server: what it tells those who watch it (H7)."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from anyio_workflows.server import Action

from .asking import Asker, asking
from .test_server import Buy, Count

pytestmark = pytest.mark.anyio


async def metrics(server: Asker) -> dict[str, int]:
    answered = await server.ask("GET", "/metrics")
    assert answered.status == 200
    assert answered.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = answered.body.decode()
    assert text.endswith("\n")
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: int(value) for name, value in (line.rsplit(" ", 1) for line in samples)}


async def test_the_metrics_have_the_text_format_of_prometheus():
    async with asking(Count()) as server:
        await metrics(server)
        text = (await server.ask("GET", "/metrics")).body.decode()
    described: set[str] = set()
    kind = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            kind = line.split(" ")[2]
            assert kind not in described
            described.add(kind)
        elif line.startswith("# TYPE "):
            _, _, name, what = line.split(" ")
            assert name == kind
            assert what == ("counter" if name.endswith("_total") else "gauge")
        else:
            label = r'[a-z]+="[^"\\]*"'
            match = re.fullmatch(rf"([a-z_]+)(\{{{label}(,{label})*\}})? \d+", line)
            assert match is not None, line
            assert match[1] == kind
    assert {"anyio_workflows_runs", "anyio_workflows_http_requests_total"} <= described


async def test_the_metrics_count_runs_events_and_requests():
    async with asking(Buy(timeout=None), Count()) as server:
        done = await server.post("/v1/workflows/count/runs?wait=60")
        await server.post("/v1/workflows/buy/runs", {"input": {"item": "tea"}})
        found = await metrics(server)
        assert found['anyio_workflows_runs{status="completed"}'] == 1
        assert found['anyio_workflows_runs{status="failed"}'] == 0
        assert found["anyio_workflows_runs_in_progress"] == 1
        assert found["anyio_workflows_log_events"] >= 4
        assert found["anyio_workflows_log_bytes"] > 0
        assert found["anyio_workflows_runs_removed_total"] == 0
        assert found["anyio_workflows_readers"] == 0
        assert found["anyio_workflows_events_sent_total"] == 0

        path = f"/v1/runs/{done['id']}"
        async with server.streaming("GET", f"{path}/events") as streamed:
            assert [frame.event for frame in [one async for one in streamed.frames()]][-1]
        await server.get(f"{path}/events", accept="application/json")
        await server.ask("POST", f"{path}/questions/1", {})
        await server.ask("DELETE", path)
        found = await metrics(server)
        route = 'method="POST",route="/v1/runs/{id}/questions/{question}",status="409"'
        assert found[f"anyio_workflows_http_requests_total{{{route}}}"] == 1
        assert found["anyio_workflows_events_sent_total"] == 8
        assert found["anyio_workflows_runs_removed_total"] == 1

        running = (await server.get("/v1/runs"))["runs"][0]["id"]
        async with server.streaming("GET", f"/v1/runs/{running}/events"):
            assert (await metrics(server))["anyio_workflows_readers"] == 1


async def test_requests_are_counted_by_route_and_status_and_nothing_that_a_client_makes_up():
    async with asking(Count()) as server:
        for number in range(3):
            await server.ask("GET", f"/v1/runs/{number}")
            await server.ask("GET", f"/made-up/{number}")
            await server.ask(f"MADE{number}", "/v1/runs")
        await server.ask("GET", "/v1/runs", headers={"host": "evil.example"})
        await server.ask("GET", "/")
        found = await metrics(server)
        counted = {
            name.partition("{")[2]: number for name, number in found.items() if "route=" in name
        }
        assert counted == {
            'method="GET",route="/v1/runs/{id}",status="404"}': 3,
            'method="GET",route="other",status="404"}': 3,
            'method="other",route="/v1/runs",status="405"}': 3,
            'method="GET",route="other",status="403"}': 1,
            'method="GET",route="/",status="200"}': 1,
        }


async def test_faults_are_counted():
    def authorize(request: object, action: Action) -> object:
        return "ann" if action.verb == "metrics" else 5

    async with asking(Count(), authorize=authorize) as server:
        with pytest.raises(ExceptionGroup):
            await server.ask("GET", "/v1/runs")
        found = await metrics(server)
    faults = 'anyio_workflows_http_requests_total{method="GET",route="/v1/runs",status="500"}'
    assert found[faults] == 1


async def test_the_metrics_need_the_token_and_health_does_not():
    async with asking(Count(), token="t0ken") as server:
        assert (await server.ask("GET", "/metrics")).status == 401
        assert (await server.get("/healthz")) == {"status": "ok"}
        assert (await server.get("/readyz")) == {"status": "ok"}


async def test_a_server_that_does_not_live_is_healthy_and_not_ready():
    async with asking(Count()) as server:
        pass
    assert (await server.get("/healthz")) == {"status": "ok"}
    answered = await server.ask("GET", "/readyz")
    assert answered.status == 503
    assert "lifespan" in answered.detail
