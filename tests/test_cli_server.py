"""`serve`, and the commands that ask the server: a real one, in a process of its own."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_workflows._cli.main import main

from .cli import Done, Process, here, interruptible, run_command
from .conftest import BACKENDS

pytest.importorskip("starlette")
pytest.importorskip("orjson")
pytest.importorskip("uvicorn")
client = pytest.importorskip("httpx2")
interruptible = interruptible

on_each_backend = pytest.mark.parametrize("backend", BACKENDS)


def serve(*argv: str, **options: Any) -> tuple[Process, str]:
    """Start a server at any port; returns it with the address that it printed."""
    process = Process("serve", *argv, "--port", "0", **options)
    return process, process.line_with(" at http").rpartition(" at ")[2]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Return the address of a server with the workflows of these tests."""
    process, url = serve("tests.cli")
    yield url
    process.send(signal.SIGTERM)
    done = process.end()
    assert done.status == 0
    assert "Traceback" not in done.err


class Asking:
    """Runs commands in this process, against the server."""

    def __init__(self, url: str, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.options = ["--url", url, "--backend", backend]
        self.capsys = capsys

    def __call__(self, command: str, *argv: str) -> Done:
        try:
            status = main([command, *argv, *self.options])
        except SystemExit as error:
            status = int(str(error.code))
        return Done(status, *self.capsys.readouterr())

    def start(self, *argv: str) -> str:
        """Start a run, and return its id."""
        done = self("start", *argv)
        assert (done.status, done.err) == (0, "")
        return done.out.strip()

    def wait_for_question(self, run_id: str) -> None:
        """Wait until a run waits."""
        while json.loads(self("result", run_id, "--json").out)["questions"] == 0:
            anyio.run(anyio.sleep, 0.01)


@pytest.fixture
def ask(url: str, backend: str, capsys: pytest.CaptureFixture[str]) -> Asking:
    return Asking(url, backend, capsys)


# --- Commands that ask a server -----------------------------------------------------------------------


@on_each_backend
def test_start_watch_and_result(ask: Asking):
    run_id = ask.start("greet", "name=Ada", "times=1")
    watched = ask("watch", run_id)
    assert (watched.status, watched.out) == (0, "hello Ada\n")
    lines = watched.err.splitlines()
    assert lines[0] == f"greet {run_id} is followed"
    assert [line.split()[0] for line in lines[1:-1]] == ["1", "2", "5"]
    after = ask("watch", run_id, "--after", "4").err.splitlines()
    assert [line.split()[0] for line in after[1:-1]] == ["5"]
    result = ask("result", run_id)
    assert (result.status, result.out, result.err) == (0, "hello Ada\n", "")


@on_each_backend
def test_watch_as_json_is_what_the_server_says(ask: Asking, url: str):
    run_id = ask.start("greet", "name=Ada")
    *events, end, run = ask("watch", run_id, "--json").lines
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5]
    assert end == {"end": {"status": "completed", "last": 5}}
    assert run["result"] == "hello Ada"
    page = client.get(f"{url}v1/runs/{run_id}/events", headers={"accept": "application/json"})
    assert page.json()["events"] == events
    assert ask("result", run_id, "--json").lines == [client.get(f"{url}v1/runs/{run_id}").json()]


@on_each_backend
def test_start_finds_a_run_of_the_same_id(ask: Asking, backend: str):
    run_id = f"again-{backend}"
    assert ask.start("greet", "name=Ada", "--run-id", run_id) == run_id
    assert ask.start("greet", "name=Grace", "--run-id", run_id) == run_id
    assert ask("result", run_id, "--wait").out == "hello Ada\n"


@on_each_backend
def test_answers(ask: Asking):
    run_id = ask.start("ask")
    ask.wait_for_question(run_id)
    refused = ask("answer", run_id, "comment=x")
    assert refused.status == 2
    assert refused.err.startswith("the answer does not fit: ")
    assert "; fields of Answer: approved (true or false), comment" in refused.err
    assert ask("answer", run_id, "approved=perhaps").status == 2
    assert ask("answer", run_id, "--question", "review", "approved=true").err.startswith(
        f"run {run_id} has no open question 'review'; choose one with --question:\n"
    )
    taken = ask("answer", run_id, "--question", "ask", "approved=true", "comment=good")
    assert (taken.status, taken.err) == (0, "taken by ask\n")
    done = ask("result", run_id, "--wait", "60")
    assert (done.status, json.loads(done.out)) == (0, ["good"])
    late = ask("answer", run_id, "approved=true")
    assert (late.status, late.err) == (1, f"run {run_id} has no open question, it is completed\n")


@on_each_backend
def test_send(ask: Asking):
    run_id = ask.start("ask")
    ask.wait_for_question(run_id)
    wrong = ask("send", run_id, "Anser", "approved=true")
    assert wrong.status == 2
    assert "takes no events of type 'Anser'" in wrong.err
    assert ask("send", run_id, "Answer", "approved=true").err == "taken by ask\n"
    assert ask("result", run_id, "--wait").status == 0


@on_each_backend
def test_watch_answers(ask: Asking):
    run_id = ask.start("ask")
    done = ask("watch", run_id, "--answer", "approved=true", "comment=seen")
    assert (done.status, json.loads(done.out)) == (0, ["seen"])
    assert "? ask asks: good enough, at try 0?" in done.err


@on_each_backend
def test_cancel_and_retry(ask: Asking):
    run_id = ask.start("slow")
    open_result = ask("result", run_id)
    assert (open_result.status, open_result.out) == (75, "")
    assert ask("result", run_id, "--wait", "0.1").status == 75
    assert ask("cancel", run_id).err == f"run {run_id} is cancelled\n"
    assert ask("watch", run_id, "-q").status == 130
    assert ask("result", run_id).status == 130
    retried = ask("retry", run_id, "--json")
    assert json.loads(retried.out)["status"] in ("queued", "running")
    assert json.loads(ask("cancel", run_id, "--json").out)["status"] == "cancelled"


@on_each_backend
def test_a_failed_run(ask: Asking):
    run_id = ask.start("fail")
    done = ask("result", run_id, "--wait")
    assert (done.status, done.out) == (1, "")
    assert "ValueError: out of stock and out of order" in done.err
    assert ask("watch", run_id, "-q").status == 1


@on_each_backend
def test_ps(ask: Asking):
    ids = [ask.start("fail"), ask.start("fail")]
    for run_id in ids:
        ask("result", run_id, "--wait")
    listed = ask("ps", "--workflow", "fail", "--status", "failed")
    head, *rows = listed.out.splitlines()
    assert head.split() == ["id", "workflow", "status", "age", "took", "events", "questions"]
    assert [row.split()[:3] for row in rows[:2]] == [[one, "fail", "failed"] for one in ids[::-1]]
    assert [run["id"] for run in ask("ps", "--json", "-n", "2", "--workflow", "fail").lines] == ids[
        ::-1
    ]
    wrong = ask("ps", "--status", "fine")
    assert wrong.status == 1
    assert "400 Bad Request" in wrong.err


@on_each_backend
@pytest.mark.parametrize(
    ("argv", "status", "complaint"),
    [
        (["result", "nope"], 1, "404 Not Found: there is no run 'nope'"),
        (["watch", "nope"], 1, "404 Not Found"),
        (["start", "gret"], 2, "has no workflow 'gret'; did you mean 'greet'?"),
        (["start", "greet"], 2, "the input does not fit: $.input.name: missing, Greeting needs it"),
        (["start", "greet", "nam=x"], 2, "Greeting has no field 'nam', did you mean 'name'?"),
        (["start", "open", "--run-id", "a/b"], 2, "--run-id: run_id must be 1 to 128 of the "),
        (["watch", "x", "--after", "-1"], 2, ""),
        (["retry", "nope"], 1, "404 Not Found"),
    ],
)
def test_what_the_server_refuses(ask: Asking, argv: list[str], status: int, complaint: str):
    done = ask(*argv)
    assert (done.status, done.out) == (status, "")
    assert complaint in done.err
    assert "Traceback" not in done.err


@on_each_backend
def test_no_server(backend: str, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main(["ps", "--url", f"http://127.0.0.1:{port}", "--backend", backend]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"http://127.0.0.1:{port}: GET /v1/runs: cannot connect")
    assert err.endswith("; --url, or ANYIO_WORKFLOWS_URL, says where it is\n")


@pytest.mark.parametrize("url", ["ftp://x", "localhost:8000", ""])
def test_a_bad_url(url: str, capsys: pytest.CaptureFixture[str]):
    assert main(["ps", "--url", url]) == 2
    assert "url must begin with http:// or https://" in capsys.readouterr().err


def test_the_url_and_the_token_come_from_the_environment(url: str):
    process, address = serve(here("Greet"), environment={"ANYIO_WORKFLOWS_TOKEN": "s3cret/x"})
    url, _, token = address.partition("#token=")
    assert token == "s3cret%2Fx"
    try:
        for given, status in (({"ANYIO_WORKFLOWS_TOKEN": "s3cret/x"}, 0), ({}, 1)):
            asking = Process("ps", environment={"ANYIO_WORKFLOWS_URL": url, **given})
            done = asking.end()
            assert done.status == status
            if status:
                assert "401 Unauthorized" in done.err
                assert "; give the right --token, or set ANYIO_WORKFLOWS_TOKEN" in done.err
    finally:
        process.send(signal.SIGTERM)
        assert process.end().status == 0


@on_each_backend
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_the_run_alone(ask: Asking, url: str, backend: str):
    run_id = ask.start("slow")
    process = Process("watch", run_id, "--url", url, "--json", "--backend", backend)
    process.line_with("asleep")
    process.send(signal.SIGINT)
    done = process.end()
    assert (done.status, done.err.strip()) == (130, "")
    assert ask("result", run_id).status == 75
    assert ask("cancel", run_id).status == 0


# --- The server ---------------------------------------------------------------------------------------


@on_each_backend
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("interruptible")
def test_serve_ends_with_a_signal(backend: str, sign: int):
    if backend == "trio":
        pytest.importorskip("hypercorn")
    process, url = serve("examples.research:Research", "--backend", backend)
    assert client.get(f"{url}v1/workflows").json()["workflows"][0]["name"] == "research"
    process.send(sign)
    done = process.end()
    assert done.status == 0
    assert done.err.splitlines() == [
        "runs are kept in memory, and end with the server; Ctrl-C ends it"
    ]


def test_watch_survives_a_server_that_is_killed(tmp_path: Path):
    kept = ("--db", f"sqlite:///{tmp_path / 'runs.db'}")
    process, url = serve(here("Ask"), *kept)
    port = url.rpartition(":")[2].rstrip("/")
    run_id = run_command("start", "ask", "--url", url).out.strip()
    watching = Process(
        "watch", run_id, "--url", url, "--answer", "Answer", "approved=true", "--json"
    )
    watching.line_with("at try 0")
    watching.end()
    run_id = run_command("start", "ask", "--url", url).out.strip()
    watching = Process("watch", run_id, "--url", url, "--json")
    watching.line_with("at try 0")
    process.send(signal.SIGKILL)
    process.end()
    again = Process("serve", here("Ask"), *kept, "--port", port)
    again.line_with(" at http")
    assert run_command("answer", run_id, "approved=true", "--url", url).status == 0
    done = watching.end()
    assert done.status == 0
    assert [line.get("seq") for line in done.lines] == [2, None, None]
    again.send(signal.SIGTERM)
    assert again.end().status == 0


@pytest.mark.parametrize(
    ("argv", "status", "complaint"),
    [
        (
            [here("Greet"), here("Greet")],
            2,
            "two workflows are named 'greet': tests.cli:Greet and tests.cli:Greet; give one of them another name, as in other_name=tests.cli:Greet",
        ),
        (["x=tests.cli"], 2, "tests.cli defines "),
        (["nowhere"], 2, "there is no module nowhere"),
        ([here("NeedsArguments")], 2, "NeedsArguments() cannot be made: TypeError"),
        ([here("Greet"), "--host", "0.0.0.0"], 2, "; here: --token TOKEN, or --insecure"),
        ([here("Greet"), "--db", "nonsense"], 2, "database must be a URL"),
        ([here("Greet"), "--port", "70000"], 2, "not the number of a port"),
        (["a/b=tests.cli:Greet"], 2, "the name of a workflow in a Runtime must be"),
    ],
)
def test_what_cannot_be_served(
    argv: list[str], status: int, complaint: str, capsys: pytest.CaptureFixture[str]
):
    try:
        found = main(["serve", *argv])
    except SystemExit as error:
        found = int(str(error.code))
    out, err = capsys.readouterr()
    assert (found, out) == (status, "")
    assert complaint in err


@on_each_backend
def test_a_port_that_is_taken(backend: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_command("serve", here("Greet"), "--port", str(port), "--backend", backend)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"cannot serve at port {port} of 127.0.0.1: ")
    assert "Traceback" not in done.err
