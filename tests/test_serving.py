"""`WorkflowServer.serve()` in this process: where it can be reached, how it ends, and what it refuses (H8)."""

from __future__ import annotations

import http.client
import inspect
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from anyio_workflows import Runtime, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import StoreError, WorkflowConfigurationError, WorkflowRuntimeError
from anyio_workflows.server import WorkflowServer

from .running import PATIENCE, run_script
from .serving import SERVERS

BACKENDS = [
    pytest.param(parameter.values[0]["backend"], id=parameter.id, marks=parameter.marks)
    for parameter in SERVERS
    if "uvloop" not in parameter.values[0]
]

on_each_loop = pytest.mark.parametrize("backend", BACKENDS)


class Wait(Workflow[None]):
    @step
    async def wait(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep_forever()
        raise AssertionError


def a_server(database: str | None = None) -> WorkflowServer:
    return WorkflowServer(Runtime(database, workflows=[Wait(timeout=None)]))


async def serve(server: WorkflowServer, *, task_status: Any, **options: Any) -> None:
    await server.serve(**{"port": 0, **options}, task_status=task_status)


def get(url: str, path: str, method: str = "GET") -> http.client.HTTPResponse:
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    with closing(
        http.client.HTTPConnection(host.strip("[]"), int(port), timeout=PATIENCE)
    ) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        response.read()
        return response


async def asked(url: str, path: str = "/healthz", method: str = "GET") -> int:
    return (await anyio.to_thread.run_sync(get, url, path, method)).status


def run(backend: str, main: Callable[..., Any], *args: Any) -> Any:
    return anyio.run(main, *args, backend=backend)


# --- Where it is --------------------------------------------------------------------------------------


@on_each_loop
@pytest.mark.parametrize(
    ("host", "start"),
    [
        ("127.0.0.1", "http://127.0.0.1:"),
        ("localhost", "http://127.0.0.1:"),
        ("0.0.0.0", "http://127.0.0.1:"),
        ("::1", "http://[::1]:"),
        ("[::1]", "http://[::1]:"),
        ("::", "http://[::1]:"),
    ],
)
def test_it_says_where_it_can_be_reached(backend: str, host: str, start: str):
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")

    async def main() -> None:
        async with anyio.create_task_group() as group:
            url = await group.start(
                lambda *, task_status: serve(
                    a_server(), host=host, insecure=True, task_status=task_status
                )
            )
            assert url.startswith(start)
            assert url.endswith("/")
            assert await asked(url) == 200
            group.cancel_scope.cancel()

    run(backend, main)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@on_each_loop
def test_a_port_that_is_taken_is_refused_before_anything_starts(backend: str):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        runtime = Runtime(workflows=[Wait()])
        with pytest.raises(WorkflowRuntimeError) as caught:
            run(backend, lambda: WorkflowServer(runtime).serve(port=port))
        assert str(caught.value) == (
            f"cannot serve at port {port} of 127.0.0.1: Address already in use; another server, perhaps; give "
            "another port=, or port=0 for any that is free"
        )
        assert runtime.state == "new"


@on_each_loop
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"port": 65536}, "port must be at most 65535, not 65536"),
        ({"port": -1}, "port must be"),
        ({"port": "8000"}, "port must be"),
        ({"host": "no-such-host.invalid"}, "there is no host 'no-such-host.invalid' to serve at: "),
        ({"host": "x" * 300}, "there is no host 'xxx"),
    ],
)
def test_addresses_that_cannot_be_are_refused(backend: str, options: dict[str, Any], why: str):
    with pytest.raises(WorkflowConfigurationError) as caught:
        run(backend, lambda: a_server().serve(**options, insecure=True))
    assert str(caught.value).startswith(why)


@on_each_loop
def test_an_address_of_another_machine_is_refused(backend: str):
    with pytest.raises(WorkflowRuntimeError, match="give host= an address of this machine"):
        run(backend, lambda: a_server().serve("192.0.2.1", 0, insecure=True))


# --- How it ends --------------------------------------------------------------------------------------


@on_each_loop
@pytest.mark.parametrize("in_thread", [False, True])
def test_h8_it_is_ended_by_cancellation_also_where_no_signals_come(backend: str, in_thread: bool):
    """Streams end cleanly then, and the port is free."""

    async def main() -> None:
        bodies: list[bytes] = []

        def follow(url: str, path: str) -> None:
            host, _, port = url[7:-1].partition(":")
            with closing(http.client.HTTPConnection(host, int(port), timeout=PATIENCE)) as client:
                client.request("GET", f"{path}/events")
                response = client.getresponse()
                following.set()
                bodies.append(response.read())  # fails unless its end has come

        following = threading.Event()
        server = a_server()
        async with anyio.create_task_group() as clients, anyio.create_task_group() as group:
            url = await group.start(lambda *, task_status: serve(server, task_status=task_status))
            response = await anyio.to_thread.run_sync(get, url, "/v1/workflows/wait/runs", "POST")
            clients.start_soon(anyio.to_thread.run_sync, follow, url, response.headers["location"])
            await anyio.to_thread.run_sync(following.wait)
            group.cancel_scope.cancel()
        assert len(bodies) == 1
        assert bodies[0].startswith(b"retry: ")
        with socket.create_server(("127.0.0.1", int(url[7:-1].partition(":")[2]))):
            pass

    if not in_thread:
        run(backend, main)
        return
    errors: list[BaseException] = []

    def in_other_thread() -> None:
        try:
            run(backend, main)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=in_other_thread)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert errors == []


def test_a_native_cancellation_ends_it_too():
    pytest.importorskip("uvicorn")

    async def main() -> None:
        import asyncio

        server, urls = a_server(), asyncio.Queue[str]()

        class Status:
            def started(self, url: str) -> None:
                urls.put_nowait(url)

        task = asyncio.create_task(server.serve(port=0, task_status=Status()))  # type: ignore[arg-type]
        url = await urls.get()
        assert await asked(url) == 200
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ConnectionRefusedError):
            await asked(url)

    run("asyncio", main)


@on_each_loop
def test_a_database_that_cannot_be_used_is_raised_as_it_is(backend: str, tmp_path: Path):
    file = tmp_path / "runs.db"
    file.write_text("this is no database" * 100)
    with pytest.raises(StoreError, match=r"runs\.db"):
        run(backend, a_server(f"sqlite:///{file}").serve, "127.0.0.1", 0)
    with pytest.raises(StoreError):
        run(backend, a_server(f"sqlite:///{tmp_path}/missing/runs.db").serve, "127.0.0.1", 0)


@on_each_loop
def test_what_is_wrong_with_the_server_itself_is_raised_as_it_is(backend: str):
    with pytest.raises(WorkflowConfigurationError, match="this server has no workflow"):
        run(backend, lambda: WorkflowServer().serve(port=0))


@on_each_loop
def test_several_processes_are_refused_unless_they_share_a_database(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def begin(server: WorkflowServer) -> None:
        async with server.lifespan():
            pass

    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    with pytest.raises(WorkflowConfigurationError, match="WEB_CONCURRENCY=4 asks for several"):
        run(backend, begin, a_server())
    run(backend, begin, a_server(f"sqlite:///{tmp_path}/runs.db"))
    for one in ("1", "", "auto"):
        monkeypatch.setenv("WEB_CONCURRENCY", one)
        run(backend, begin, a_server())


# --- What it stands on --------------------------------------------------------------------------------


def test_the_signals_of_uvicorn_are_replaced_where_it_asks_for_them():
    """`serve()` overrides a public method, `capture_signals()`: without it, uvicorn would handle the signals."""
    uvicorn = pytest.importorskip("uvicorn")
    remedy = "uvicorn.Server handles signals in another way now: change server/_serving.py"
    assert "capture_signals" in vars(uvicorn.Server), remedy
    assert "self.capture_signals()" in inspect.getsource(uvicorn.Server.serve), remedy
    assert "signal.signal(" not in inspect.getsource(uvicorn.Server.serve), remedy


@pytest.mark.parametrize(
    ("backend", "module"), [("asyncio", "uvicorn"), ("trio", "hypercorn.trio")]
)
def test_a_server_that_is_not_installed_is_named(backend: str, module: str):
    pytest.importorskip(backend)
    script = f"""
    import sys
    sys.modules[{module!r}] = None
    import anyio
    from anyio_workflows import *
    from anyio_workflows.server import WorkflowServer
    class Nothing(Workflow):
        @step
        async def do(self, ev: StartEvent) -> StopEvent: return StopEvent()
    server = WorkflowServer()
    server.add_workflow("nothing", Nothing())
    try:
        anyio.run(server.serve, backend={backend!r})
    except Exception as error:
        print(type(error).__name__, error)
    """
    done = run_script(script)
    name = module.partition(".")[0]
    assert done.stdout.startswith(f"WorkflowConfigurationError serving on {backend} needs {name}, ")
    assert done.stdout.endswith(': pip install "anyio-workflows[server]"\n')


@pytest.mark.parametrize("name", ["starlette", "orjson"])
def test_what_the_server_needs_is_named_where_it_is_missing(name: str):
    done = run_script(f"""
    import sys
    sys.modules[{name!r}] = None
    import anyio_workflows.server
    """)
    last = done.stderr.strip().splitlines()[-1]
    assert (
        last
        == "anyio_workflows.server needs starlette and orjson: pip install 'anyio-workflows[server]'"
    )
