"""Servers in processes of their own, on real sockets: streams (H2), limits (H7), and how they end (H8)."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from .serving import Served, frames, on_each_server, patiently, serving

PAGE = {"accept": "application/json"}
LINES = {"accept": "application/x-ndjson"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")


def numbers(lines: bytes) -> list[int]:
    """Return the numbers of the events among the lines of a stream."""
    found = [json.loads(line) for line in lines.splitlines() if line]
    return [line["seq"] for line in found if "seq" in line]


# --- Streams ------------------------------------------------------------------------------------------


@on_each_server
def test_a_run_is_started_and_followed_in_one_request(options: dict[str, Any]):
    with serving(options) as server:
        with server.request(
            "POST",
            "/v1/workflows/count/runs",
            {"input": {"to": 3}},
            accept="text/event-stream",
        ) as response:
            assert response.status == 201
            found = list(frames(response))
        assert [frame.get("id") for frame in found] == [None, "1", "2", "3", "4", None]
        assert json.loads(found[-1]["data"]) == {"status": "completed", "last": 4}
        with server.request("GET", f"{response.headers['location']}/events?after=4") as response:
            assert response.status == 204
        server.end()


@on_each_server
def test_a_request_may_come_in_pieces_of_one_byte(options: dict[str, Any]):
    with serving(options) as server:
        body = json.dumps({"input": {"to": 2}})
        lines = [
            "POST /v1/workflows/count/runs?wait=60 HTTP/1.1",
            f"Host: {server.host}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "",
            body,
        ]
        with socket.create_connection(server.address) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in "\r\n".join(lines).encode():
                connection.send(bytes([byte]))
            with connection.makefile("rb") as answer:
                head, _, rest = answer.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 201 ")
        assert json.loads(rest)["result"] == 2
        server.end()


@on_each_server
@pytest.mark.parametrize("line", ["x-{number}: a\r\n", "a"], ids=["lines", "one-line"])
def test_a_head_that_has_no_end_is_refused(options: dict[str, Any], line: str):
    with serving(options) as server:
        head = f"GET /healthz HTTP/1.1\r\nHost: {server.host}\r\nx: ".encode()
        with socket.create_connection(server.address) as connection:
            answer = b""
            with suppress(ConnectionError):  # it is cut off while the client still sends
                connection.sendall(head)
                for number in range(1000):
                    connection.sendall(line.format(number=number).encode() * 1000)
                connection.sendall(b"\r\n\r\n")
                answer = connection.recv(1000)
        assert b" 200 " not in answer
        server.end()


@on_each_server
def test_large_bodies_are_read_beside_small_ones(options: dict[str, Any]):
    """The limit for heads is none for bodies, and not for many requests over one connection."""
    with serving(options) as server, closing(http.client.HTTPConnection(*server.address)) as client:
        for number in range(100):
            body = json.dumps(
                {"input": {"to": 1}, "metadata": {"text": "x" * (5000 * (number % 10))}}
            )
            headers = {"content-type": "application/json", "x": "y" * 1000}
            client.request("POST", "/v1/workflows/count/runs", body, headers)
            response = client.getresponse()
            assert response.status == 201
            response.read()
        body = json.dumps({"input": {"to": 1}, "metadata": {"text": "x" * 1_000_000}})
        client.request("POST", "/v1/workflows/count/runs", body, headers)
        assert client.getresponse().status == 201
        server.end()


@on_each_server
def test_a_client_that_leaves_frees_its_place(options: dict[str, Any]):
    with serving(options) as server:
        path = server.start("ask")
        for accept in ("text/event-stream", "application/x-ndjson", "application/json"):
            with server.connect(f"GET {path}/events?wait=60 HTTP/1.1\nAccept: {accept}"):
                patiently(lambda: readers_of(server, path) == 1)
            patiently(lambda: readers_of(server, path) == 0)
        server.end()


def readers_of(server: Served, path: str) -> int:
    return server.ask("GET", path)["log"]["readers"]


@on_each_server
def test_a_run_is_cancelled_with_its_client(options: dict[str, Any]):
    with serving(options) as server:
        query = "on_disconnect=cancel"
        with server.request(
            "POST", f"/v1/workflows/ask/runs?{query}", {}, accept="text/event-stream"
        ) as response:
            path = response.headers["location"]
            assert server.ask("GET", path)["status"] == "waiting"
        patiently(lambda: server.ask("GET", path)["status"] == "cancelled")
        server.end()


@on_each_server
def test_a_silent_stream_has_heartbeats(options: dict[str, Any]):
    with serving(options, heartbeat=0.2) as server:
        path = server.start("ask")
        with server.request("GET", f"{path}/events") as response:
            found = frames(response)
            assert "retry" in next(found)
            assert [next(found) for _ in range(3)] == [{"": ""}] * 3
        with server.request("GET", f"{path}/events", **LINES) as response:
            assert [response.readline() for _ in range(3)] == [b"\n"] * 3
        server.end()


@on_each_server
def test_a_client_that_reads_slowly_gets_all_that_was_sent_before_the_connection_was_closed(
    options: dict[str, Any],
):
    with serving(options) as server:
        run = server.ask(
            "POST",
            "/v1/workflows/count/runs?wait=60",
            {"input": {"to": 300, "padding": 10_000}},
        )
        assert run["status"] == "completed"
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(server.address)
            request = f"GET /v1/runs/{run['id']}/events HTTP/1.1\r\nHost: {server.host}\r\n"
            connection.sendall(f"{request}Accept: application/x-ndjson\r\n\r\n".encode())
            with connection.makefile("rb") as answer:
                head = answer.readline()
                for _ in range(20):  # while the server sends, or has sent all
                    server.ask("GET", "/healthz")
                _, _, body = (head + answer.read()).partition(b"\r\n\r\n")
        assert body.endswith(b"\r\n0\r\n\r\n")
        assert body.count(b'"type":"Counted"') == 300
        server.end()


# --- The end ----------------------------------------------------------------------------------------


@on_each_server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_h8_a_signal_ends_streams_cleanly_and_answers_what_waits(
    options: dict[str, Any], number: int
):
    with serving(options) as server:
        path = server.start("count", to=10**9, pause=0.01, padding=1000)
        waiting = server.start("ask")
        answers: dict[str, Any] = {}

        def ask(name: str, method: str, path: str, body: Any, headers: dict[str, str]) -> None:
            answers[name] = server.ask(method, path, body, **headers)

        requests = [
            ("poll", "GET", f"{waiting}/events?wait=60", None, PAGE),
            ("run", "GET", f"{waiting}?wait=60", None, {}),
            ("start", "POST", "/v1/workflows/ask/runs?wait=60", {}, {}),
        ]
        threads = [threading.Thread(target=ask, args=request) for request in requests]
        for thread in threads:
            thread.start()
        patiently(lambda: readers_of(server, waiting) == 1)
        patiently(lambda: len(server.ask("GET", "/v1/runs")["runs"]) == 3)
        idle = socket.create_connection(server.address)
        half = server.connect("POST /v1/workflows/ask/runs HTTP/1.1\nContent-Length: 9")
        with closing(idle), closing(half), server.request("GET", f"{path}/events") as response:
            found = frames(response)
            for _ in range(5):
                next(found)
            server.end(number)
            rest = list(found)  # fails unless the end of the body has come
        assert not [frame for frame in rest if "event" in frame]
        for thread in threads:
            thread.join()
        assert answers["poll"] == {"events": [], "next": 0, "done": False, "gap": None}
        assert answers["run"]["status"] == answers["start"]["status"] == "waiting"


@on_each_server
@pytest.mark.parametrize("signals", [1, 2])
def test_a_client_that_does_not_read_does_not_hold_up_the_end(
    options: dict[str, Any], signals: int
):
    with serving(options) as server:
        path = server.start("count", to=10**9, pause=0.001, padding=50_000)
        with server.connect(f"GET {path}/events HTTP/1.1"):
            patiently(lambda: server.ask("GET", path)["log"]["max_lag"] > 100)
            for _ in range(signals - 1):
                server.process.send_signal(signal.SIGINT)
            server.end(signal.SIGINT)


@on_each_server
def test_errors_in_a_handler_are_logged_once(options: dict[str, Any]):
    with serving(options, authorize=True) as server:
        with server.request("GET", "/v1/runs/fault") as response:
            assert response.status == 500
            assert json.loads(response.read())["title"] == "Internal Server Error"
        server.process.terminate()
        _, err = server.process.communicate()
        assert server.process.returncode == 0
        assert err.count("Traceback") == 1
        assert err.count("ValueError: a fault in the program") == 1


# --- With a database ----------------------------------------------------------------------------------


@on_each_server
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_h2_a_reader_continues_with_its_cursor_after_the_server_was_ended(
    options: dict[str, Any], number: int, tmp_path: Path
):
    database = f"sqlite:///{tmp_path}/runs.db"
    with serving(options, database=database) as server:
        path = server.start("count", to=30, pause=0.05)
        with server.request("GET", f"{path}/events", **LINES) as response:
            before = b"".join(response.readline() for _ in range(5))
            if number == signal.SIGTERM:
                server.end()
                before += response.read()
            else:
                server.process.kill()
                server.process.wait()
    cursor = numbers(before)[-1]
    with serving(options, database=database) as server:
        with server.request("GET", f"{path}/events?after={cursor}", **LINES) as response:
            after = response.read()
        with server.request("GET", f"{path}/events", **LINES) as response:
            assert response.read() == before + after
        run = server.ask("GET", path)
        assert (run["status"], run["result"]) == ("completed", 30)
        assert numbers(before + after) == list(range(1, run["last_seq"] + 1))
        server.end()


@on_each_server
def test_two_servers_share_a_database(options: dict[str, Any], tmp_path: Path):
    database = f"sqlite:///{tmp_path}/runs.db"
    with (
        serving(options, database=database) as one,
        serving(options, database=database) as other,
    ):
        path = one.start("ask")
        with other.request("GET", f"{path}/events") as response:
            patiently(lambda: other.ask("GET", f"{path}/questions")["questions"])
            [question] = other.ask("GET", f"{path}/questions")["questions"]
            other.ask("POST", f"{path}/questions/{question['id']}", {"data": {"text": "yes"}})
            found = list(frames(response))
        assert [frame["id"] for frame in found if "id" in frame] == ["1"]
        assert one.ask("GET", path)["result"] == "yes"
        assert {run["id"] for run in one.ask("GET", "/v1/runs")["runs"]} == {path[9:]}
        one.end()
        other.end()
