"""The server: what a request may ask for, and what is answered to those that ask for something else (H3, H6)."""

from __future__ import annotations

import json
import threading
from typing import Any

import anyio
import attrs
import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from anyio_workflows import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows.errors import StoreError
from anyio_workflows.runtime import MemoryData, MemoryStore, Runtime

from .asking import Answered, Asker, asking
from .locks import with_locks

pytestmark = pytest.mark.anyio


class Number(StartEvent):
    n: int = attrs.field(validator=attrs.validators.ge(0))
    of: list[int] = []


class Said(HumanResponseEvent):
    text: str


class Reply(HumanResponseEvent):
    text: str


class Double(Workflow[int]):
    @step
    async def double(self, ev: Number) -> StopEvent:
        return StopEvent(result=2 * ev.n)


class Echo(Workflow[Any]):
    @step
    async def echo(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=dict(ev))


class Talk(Workflow[str]):
    """Waits for a reply, and takes what is said meanwhile."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        question = InputRequiredEvent(text="Well?")
        wait = {"waiter_id": "a/b c?", "requirements": {"text": ev.get("only")}}
        options = wait if "only" in ev else {"waiter_id": "a/b c?"}
        reply = await ctx.wait_for_event(Reply, question, timeout=None, **options)
        return StopEvent(result=reply.text)

    @step
    async def hear(self, ev: Said) -> None:
        pass


class Fails(Workflow[Any]):
    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        raise ValueError("no")


TALK = Talk(timeout=None)
ECHO, DOUBLE = "/v1/workflows/echo/runs", "/v1/workflows/double/runs"


def check(answered: Answered, status: int, *texts: str, path: str | None = None) -> None:
    """Check that an answer is a problem as RFC 9457 has it, which says these things."""
    facts = answered.json()
    assert answered.status == status, facts
    assert answered.headers["content-type"] == "application/problem+json"
    assert (facts["type"], facts["status"]) == ("about:blank", status)
    assert facts["title"]
    assert facts.get("path") == path
    for text in texts:
        assert text in facts["detail"]


async def a_talk(server: Asker, **fields: Any) -> str:
    """Start a run that waits; return its path."""
    run = await server.post("/v1/workflows/talk/runs", {"input": fields})
    path = f"/v1/runs/{run['id']}"
    await server.get(f"{path}/events?wait=60", accept="application/json")
    return path


# --- H3: Addresses and queries --------------------------------------------------------------------------------


async def test_what_is_not_there_says_so():
    async with asking(Echo(), Double()) as server:
        for path in ("/nowhere", "/v1", "/v1/runs/", "/v1/runs/a/b", "/v1/workflows/echo/run"):
            check(await server.ask("GET", path), 404, path, "openapi.json")
        check(await server.ask("POST", "/v1/workflows/ecko/runs", {}), 404, "did you mean 'echo'?")
        check(await server.ask("GET", "/v1/workflows/nothing/graph"), 404, "known: double, echo")
        check(await server.ask("GET", "/v1/runs/nothing"), 404, "'nothing'")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/runs", {"GET", "HEAD"}),
        ("POST", "/v1/runs/x", {"GET", "HEAD", "DELETE"}),
        ("PATCH", "/v1/runs/x/events", {"GET", "HEAD", "POST"}),
        ("GET", "/v1/runs/x/cancel", {"POST"}),
        ("OPTIONS", "/v1/runs", {"GET", "HEAD"}),
        ("POST", "/", {"GET", "HEAD"}),
        ("BREW", "/healthz", {"GET", "HEAD"}),
    ],
)
async def test_other_methods_are_refused_with_those_there_are(
    method: str, path: str, allowed: set[str]
):
    async with asking(Echo()) as server:
        answered = await server.ask(method, path)
        check(answered, 405, method)
        assert set(answered.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("/v1/runs?limt=5", ["'limt'", "did you mean 'limit'?"]),
        ("/v1/runs?limit=5&limit=6", ["limit is given twice"]),
        ("/v1/runs?limit=0", ["limit='0'", "from 1 on"]),
        ("/v1/runs?limit=-1", ["limit='-1'"]),
        ("/v1/runs?limit=1.5", ["limit='1.5'"]),
        ("/v1/runs?limit=", ["limit=''"]),
        ("/v1/runs?limit=99999999999999999999", ["limit="]),
        ("/v1/runs?limit=%D9%A3", ["limit="]),
        ("/v1/runs?status=complete", ["status='complete'", "did you mean 'completed'?"]),
        ("/v1/runs?workflow=ecko", ["did you mean 'echo'?"]),
        ("/v1/runs?before=yesterday", ["before must be the 'next' of an earlier page"]),
        ("/v1/runs/{id}?wait=soon", ["wait='soon'", "seconds"]),
        ("/v1/runs/{id}?wait=-1", ["wait='-1'"]),
        ("/v1/runs/{id}?wait=nan", ["wait='nan'"]),
        ("/v1/runs/{id}?wait=inf", ["wait='inf'"]),
        ("/v1/runs/{id}?wait=1&extra=1", ["'extra'", "wait"]),
        ("/v1/runs/{id}/events?after=-1", ["after='-1'"]),
        ("/v1/runs/{id}/events?after=x", ["after='x'"]),
        ("/v1/runs/{id}/events?after=99", ["99"]),
        ("/v1/runs/{id}/events?internal=yes", ["internal='yes'"]),
        ("/v1/runs/{id}/questions?x", ["'x'"]),
        ("/v1/workflows?x=1", ["'x'", "there are none"]),
        ("/v1/workflows/echo/graph?format=png", ["format", "svg"]),
        ("/metrics?x=1", ["'x'"]),
    ],
)
async def test_queries_that_make_no_sense_are_refused(path: str, texts: list[str]):
    async with asking(Echo()) as server:
        run = await server.post(f"{ECHO}?wait=60")
        check(await server.ask("GET", path.format(id=run["id"])), 400, *texts)


async def test_a_stream_says_what_becomes_of_its_run():
    async with asking(Echo()) as server:
        stream = {"accept": "text/event-stream"}
        check(
            await server.ask("POST", f"{ECHO}?on_disconnect=stop", {}, stream),
            400,
            "on_disconnect='stop' is none of continue, cancel",
        )
        check(await server.ask("POST", f"{ECHO}?on_disconnect=cancel", {}), 400, "Accept")
        assert (await server.get("/v1/runs"))["runs"] == []


async def test_what_only_shows_is_asked_with_head_too():
    async with asking(Echo()) as server:
        run = await server.post(f"{ECHO}?wait=60")
        for path in ("/", "/healthz", "/v1/runs", f"/v1/runs/{run['id']}"):
            assert (await server.ask("HEAD", path)).status == 200
        check(await server.ask("HEAD", "/v1/runs/x"), 404)


# --- Waiting ----------------------------------------------------------------------------------------------


async def test_wait_is_for_the_end_and_for_so_long_at_most():
    async with asking(TALK, Echo(), max_wait=30.0) as server:
        run = await server.post(f"{ECHO}?wait=60")
        assert run["status"] == "completed"
        path = await a_talk(server)
        for method, one, longest in [
            ("GET", f"{path}?wait=0", 0),
            ("GET", f"{path}?wait=2.5", 2.5),
            ("GET", f"{path}?wait=1000", 30),
            ("POST", "/v1/workflows/talk/runs?wait=7", 7),
            ("GET", f"{path}/events?after=1&wait=4", 4),
        ]:
            began = anyio.current_time()
            answered = await server.ask(method, one, headers={"accept": "application/json"})
            assert answered.status in (200, 201)
            assert anyio.current_time() - began == pytest.approx(longest, abs=0.5)


async def test_a_run_is_read_whatever_its_outcome():
    async with asking(Fails()) as server:
        answered = await server.ask("POST", "/v1/workflows/fails/runs?wait=60")
        assert answered.status == 201
        run = await server.get(answered.headers["location"])
        assert (run["status"], run["result"]) == ("failed", None)
        assert (run["error"]["type"], run["error"]["step"]) == ("ValueError", "fail")


# --- H3: Bodies -------------------------------------------------------------------------------------------------


BAD_JSON = [
    (b"{", "not JSON"),
    (b"nothing", "not JSON"),
    (b'{"input": {"n": NaN}}', "NaN is not JSON"),
    (b'{"input": {"n": -Infinity}}', "-Infinity is not JSON"),
    (b'{"input": {"n": 1e999}}', "'1e999' is too large"),
    (b'{"input": {"n": ' + b"1" * 5000 + b"}}", "not JSON"),
    (b'{"input": {"n": 1}, "input": {"n": 2}}', "'input' is given twice"),
    (b'{"input": {"n": 1, "n": 2}}', "'n' is given twice"),
    (b'{"input": {"n": 1}} {}', "not JSON"),
    (b'{"input": "\xff"}', "not JSON"),
    ('{"input": {}}'.encode("utf-16"), "not JSON"),
    (b'\xef\xbb\xbf{"input": {}}', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"[]", "must be an object, not []"),
    (b'"text"', "must be an object"),
    (b"null", "must be an object"),
]


@pytest.mark.parametrize(("body", "text"), BAD_JSON, ids=range(len(BAD_JSON)))
async def test_what_is_no_json_object_is_refused(body: bytes, text: str):
    async with asking(Echo()) as server:
        answered = await server.ask("POST", ECHO, body, {"content-type": "application/json"})
        check(answered, 400, text)
        assert (await server.get("/v1/runs"))["runs"] == []


async def test_members_that_nothing_reads_are_refused():
    async with asking(TALK) as server:
        path = await a_talk(server)
        for one, member, hint in [
            ("/v1/workflows/talk/runs", "inputs", "'input'"),
            (f"{path}/events", "typ", "'type'"),
            (f"{path}/questions/1", "answer", "known: data"),
        ]:
            answered = await server.ask("POST", one, {member: 1})
            check(answered, 422, repr(member), hint, path=f"$.{member}")


async def ask_in_parts(
    server: Asker, parts: list[Any], **headers: str
) -> tuple[int, dict[str, Any]]:
    """Send a body in parts, of which an exception means that the client has gone; return what is answered."""
    sent: list[Any] = []
    messages = [
        {"type": "http.disconnect"}
        if part is None
        else {"type": "http.request", "body": part, "more_body": part is not parts[-1]}
        for part in parts
    ]

    async def receive() -> Any:
        await anyio.lowlevel.checkpoint()
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"content-type": "application/json", **headers}
    await server.app(server.scope("POST", ECHO, headers), receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(body) if body else {}


async def test_a_body_that_is_too_large_is_not_read():
    async with asking(Echo(), max_body=1000) as server:
        fits = json.dumps({"input": {"text": "x" * 950}}).encode()
        assert (await ask_in_parts(server, [fits[:500], fits[500:]]))[0] == 201
        status, facts = await ask_in_parts(server, [b" " * 600, b" " * 600, b"never read"])
        assert status == 413
        assert "1000 bytes" in facts["detail"]
        status, _ = await ask_in_parts(server, [], **{"content-length": "1001"})
        assert status == 413
        assert len((await server.get("/v1/runs"))["runs"]) == 1


async def test_a_body_that_is_cut_off_starts_nothing():
    async with asking(Echo()) as server:
        status, _ = await ask_in_parts(server, [b'{"input"', None])
        assert status == 400
        assert (await server.get("/v1/runs"))["runs"] == []


# --- H3, H6: Starting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "path", "text"),
    [
        ({}, "$.input.n", "n"),
        ({"input": {"n": "1"}}, "$.input.n", "expected int"),
        ({"input": {"n": 1, "of": [1, "x"]}}, "$.input.of[1]", "expected int"),
        ({"input": {"n": -1}}, "$.input", "'n' must be >= 0"),
        ({"input": {"n": 1, "m": 2}}, "$.input.m", "m"),
        ({"input": [1]}, "$.input", "expected"),
        ({"input": None}, "$.input", "expected"),
        ({"input": {"n": 1}, "metadata": []}, "$.metadata", "must be an object, not []"),
        ({"input": {"n": 1}, "metadata": None}, "$.metadata", "must be an object, not None"),
        ({"input": {"n": 1}, "run_id": 5}, "$.run_id", "must be a string, not 5"),
    ],
)
async def test_input_that_does_not_fit_is_refused_with_its_path(body: Any, path: str, text: str):
    async with asking(Double()) as server:
        check(await server.ask("POST", DOUBLE, body), 422, text, path=path)
        assert (await server.get("/v1/runs"))["runs"] == []


async def test_input_may_be_deep_but_not_too_deep():
    deep: Any = 1
    for _ in range(90):
        deep = [deep]
    async with asking(Echo()) as server:
        run = await server.post(f"{ECHO}?wait=60", {"input": {"x": deep}})
        assert run["result"] == {"x": deep}
        for _ in range(300):
            deep = [deep]
        answered = await server.ask("POST", ECHO, {"input": {"x": deep}})
        assert answered.status == 422
        answered = await server.ask("POST", ECHO, {"metadata": {"x": deep}})
        assert answered.status in (201, 422)


class Named(StartEvent):
    run_id: str
    metadata: dict[str, int]
    start_event: bool = False


class Names(Workflow[Any]):
    @step
    async def name(self, ev: Named) -> StopEvent:
        return StopEvent(result=dict(ev))


async def test_fields_may_have_the_names_of_arguments():
    async with asking(Names(), Echo()) as server:
        fields = {"run_id": "a/b", "metadata": {"x": 1}, "start_event": True}
        body = {"input": fields, "run_id": "mine", "metadata": {"y": "z"}}
        for name in ("names", "echo"):
            run = await server.post(f"/v1/workflows/{name}/runs?wait=60", body)
            assert (run["id"], run["result"], run["metadata"]) == ("mine", fields, {"y": "z"})
            await server.ask("DELETE", "/v1/runs/mine")


async def test_an_open_start_event_takes_any_keyword():
    async with asking(Echo()) as server:
        fields = {"self": 1, "a b": None, "_x": {"y": [1.5]}, "\ud800": "\ud800", "": 2**70}
        run = await server.post(f"{ECHO}?wait=60", {"input": fields})
        assert run["result"] == fields


@attrs.frozen
class Point:
    x: int
    y: int


async def test_p7_values_of_foreign_classes_come_in_and_go_out_by_the_hooks_of_the_workflow():
    async with asking(with_locks) as server:
        run = await server.post("/v1/workflows/with_locks/runs", {"input": {"lock": "a"}})
        path = f"/v1/runs/{run['id']}"
        page = await server.get(f"{path}/events?wait=60", accept="application/json")
        assert page["events"][0]["data"] == {"lock": "a"}
        sent = {"type": "OtherLock", "data": {"lock": "b"}}
        assert (await server.post(f"{path}/events", sent))["taken_by"] == ["use"]
        assert (await server.get(f"{path}?wait=60"))["result"] == "b"


class Returns(Workflow[Any]):
    @step
    async def give(self, ev: StartEvent) -> StopEvent:
        results = {
            "lock": threading.Lock(),
            "point": Point(1, 2),
            "nan": [float("nan")],
            "bytes": b"x",
            "set": {1},
        }
        return StopEvent(result=results[ev.what])


@pytest.mark.parametrize("what", ["lock", "point", "nan", "bytes", "set"])
async def test_a_result_of_any_kind_can_be_read(what: str):
    async with asking(Returns()) as server:
        body = {"input": {"what": what}}
        run = await server.post("/v1/workflows/returns/runs?wait=60", body)
        assert run["status"] == "completed"
        assert run["result"] is not None
        assert (what == "lock") == ("$repr" in str(run["result"])) or what == "nan"


async def test_the_same_id_finds_the_run_again_and_only_of_its_workflow():
    async with asking(Echo(), Double()) as server:
        body = {"input": {"n": 1}, "run_id": "one", "metadata": {"a": 1}}
        first = await server.ask("POST", f"{ECHO}?wait=60", body)
        again = await server.ask("POST", ECHO, {"run_id": "one", "input": {"n": 2}})
        assert (first.status, again.status) == (201, 200)
        assert again.json()["result"] == {"n": 1}
        assert again.headers["location"] == first.headers["location"] == "/v1/runs/one"
        check(await server.ask("POST", DOUBLE, body), 409, "one", "echo")
        stream = await server.ask("POST", ECHO, {"run_id": "one"}, {"accept": "text/event-stream"})
        assert stream.status == 200


async def test_an_idempotency_key_belongs_to_one_workflow():
    async with asking(Echo(), Double()) as server:
        key = {"idempotency-key": "k\xe9y"}
        body = {"input": {"n": 1}}
        answers = [await server.ask("POST", path, body, key) for path in (ECHO, ECHO, DOUBLE)]
        assert [one.status for one in answers] == [201, 200, 201]
        both = await server.ask("POST", ECHO, {"run_id": "one"}, key)
        check(both, 400, "not both")


async def test_an_idempotency_key_that_is_empty_stands_for_no_request():
    async with asking(Echo()) as server:
        answered = await server.ask("POST", ECHO, {"input": {"n": 1}}, {"idempotency-key": ""})
        check(answered, 400, "Idempotency-Key is empty")
        assert (await server.get("/v1/runs"))["runs"] == []


@pytest.mark.parametrize("run_id", [".", ".."])
async def test_no_run_has_an_id_that_is_lost_in_a_path(run_id: str):
    """Browsers take these parts out of a path, also if they are written as `%2E`."""
    async with asking(Echo()) as server:
        answered = await server.ask("POST", ECHO, {"input": {"n": 1}, "run_id": run_id})
        check(answered, 422, "not . or ..", path="$.run_id")


async def test_more_runs_than_there_may_be_are_to_come_back_later():
    async with asking(Runtime(workflows=[TALK, Fails()], max_runs=2)) as server:
        failed = await server.post("/v1/workflows/fails/runs?wait=60")
        first = await a_talk(server)
        await a_talk(server)
        answered = await server.ask("POST", "/v1/workflows/talk/runs", {})
        check(answered, 429, "2 runs are in progress")
        assert int(answered.headers["retry-after"]) > 0
        answered = await server.ask("POST", f"/v1/runs/{failed['id']}/retry")
        check(answered, 429, "2 runs are in progress")
        await server.post(f"{first}/cancel")
        assert (await server.ask("POST", "/v1/workflows/talk/runs", {})).status == 201


async def test_no_run_is_started_for_a_reader_for_whom_there_is_no_room():
    async with asking(TALK, max_readers=1) as server:
        path = await a_talk(server)
        async with server.streaming("GET", f"{path}/events"):
            stream = {"accept": "text/event-stream"}
            answered = await server.ask("POST", "/v1/workflows/talk/runs", {}, stream)
            check(answered, 429)
            assert int(answered.headers["retry-after"]) > 0
            assert len((await server.get("/v1/runs"))["runs"]) == 1


# --- H3, H6: Sending and answering ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "path", "text"),
    [
        ({}, "$.type", "Reply"),
        ({"type": "Sayd"}, "$.type", "did you mean 'Said'?"),
        ({"type": "Said", "data": {"text": 5}}, "$.data.text", "expected str"),
        ({"type": "Said"}, "$.data.text", "text"),
        ({"type": "Said", "data": {"text": "x"}, "step": "here"}, "$.step", "did you mean 'hear'?"),
        ({"type": "Said", "data": {"text": "x"}, "step": "ask"}, "$.step", "does not take"),
        ({"type": "Said", "data": {"text": "x"}, "step": 5}, "$.step", "must be a string"),
        ({"type": "StopEvent", "data": {}}, "$.type", "takes no events of type 'StopEvent'"),
        ({"type": "InputRequiredEvent", "data": {}}, "$.type", "known: Reply, Said, StartEvent"),
    ],
)
async def test_events_that_nothing_takes_are_refused(body: Any, path: str, text: str):
    async with asking(TALK) as server:
        run = await a_talk(server)
        check(await server.ask("POST", f"{run}/events", body), 422, text, path=path)
        assert (await server.get(run))["status"] == "waiting"


async def test_events_are_taken_by_steps_and_by_waits():
    async with asking(TALK) as server:
        path = await a_talk(server)
        said = {"type": "Said", "data": {"text": "x"}}
        answered = await server.ask("POST", f"{path}/events", {**said, "step": "hear"})
        assert (answered.status, answered.json()) == (202, {"taken_by": ["hear"]})
        reply = {"type": "Reply", "data": {"text": "yes"}, "step": "ask"}
        assert (await server.post(f"{path}/events", reply)) == {"taken_by": ["ask"]}
        assert (await server.get(f"{path}?wait=60"))["result"] == "yes"
        for body in (said, reply):
            check(await server.ask("POST", f"{path}/events", body), 409, "has ended")


async def test_of_two_answers_one_is_too_late():
    async with asking(TALK) as server:
        path = await a_talk(server)
        [question] = (await server.get(f"{path}/questions"))["questions"]
        assert question["id"].endswith(":a/b c?")
        quoted = question["id"]  # servers decode what was quoted
        scope_path = f"{path}/questions/{quoted}".replace("?", "\0")

        async def asked(scope: Any, receive: Any, send: Any) -> None:
            scope["path"] = scope["path"].replace("\0", "?")
            await server.app(scope, receive, send)

        asker = Asker(asked)
        wrong = await asker.ask("POST", scope_path, {"data": {"txt": "x"}})
        check(wrong, 422, "txt", path="$.data.txt")
        assert len((await server.get(f"{path}/questions"))["questions"]) == 1
        answers: list[Answered] = []

        async def answer(text: str) -> None:
            answers.append(await asker.ask("POST", scope_path, {"data": {"text": text}}))

        async with anyio.create_task_group() as group:
            for text in "abc":
                group.start_soon(answer, text)
        assert sorted(one.status for one in answers) == [200, 409, 409]
        [taken] = [one.json() for one in answers if one.status == 200]
        assert taken == {"taken_by": ["ask"]}
        assert (await server.get(f"{path}?wait=60"))["result"] in "abc"
        check(await asker.ask("POST", scope_path, {"data": {"text": "d"}}), 409, "is not open")
        assert (await server.get(f"{path}/questions"))["questions"] == []


async def test_an_answer_that_does_not_meet_the_requirements_leaves_the_question_open():
    async with asking(TALK) as server:
        path = await a_talk(server, only="yes")
        [question] = (await server.get(f"{path}/questions"))["questions"]
        assert question["requirements"] == {"text": "yes"}
        answers = f"{path}/questions/{question['id'].removesuffix('?')}%3F"

        async def asked(scope: Any, receive: Any, send: Any) -> None:
            scope["path"] = scope["path"].replace("%3F", "?")
            await server.app(scope, receive, send)

        asker = Asker(asked)
        answered = await asker.ask("POST", answers, {"data": {"text": "no"}})
        check(answered, 422, "requires text = 'yes'", path="$.data.text")
        assert (await server.get(path))["questions"] == 1
        assert (await asker.ask("POST", answers, {"data": {"text": "yes"}})).status == 200


async def test_nobody_takes_an_event_without_its_wait():
    async with asking(TALK) as server:
        path = await a_talk(server, only="yes")
        body = {"type": "Reply", "data": {"text": "no"}}
        check(await server.ask("POST", f"{path}/events", body), 422, "no step", path="$.type")


# --- Cancelling, retrying, deleting -------------------------------------------------------------------------------


async def test_to_cancel_again_changes_nothing():
    async with asking(TALK, Echo()) as server:
        path = await a_talk(server)
        for _ in range(3):
            assert (await server.post(f"{path}/cancel"))["status"] == "cancelled"
        done = await server.post(f"{ECHO}?wait=60")
        assert (await server.post(f"/v1/runs/{done['id']}/cancel"))["status"] == "completed"
        check(await server.ask("POST", "/v1/runs/nothing/cancel"), 404)


class Slow(Workflow[Any]):
    @step
    async def end(self, ev: StartEvent) -> StopEvent:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)
        return StopEvent()


async def test_a_run_that_takes_long_to_end_is_shown_as_it_stands():
    async with asking(Slow(timeout=None, cleanup_timeout=20)) as server:
        run = await server.post("/v1/workflows/slow/runs")
        path = f"/v1/runs/{run['id']}"
        await anyio.sleep(1)
        assert (await server.post(f"{path}/cancel?wait=1"))["status"] == "running"
        assert (await server.post(f"{path}/cancel"))["status"] == "cancelled"


async def test_what_cannot_be_retried_or_deleted_is_a_conflict():
    async with asking(TALK, Echo(), Fails()) as server:
        path = await a_talk(server)
        check(await server.ask("POST", f"{path}/retry"), 409, "has not ended")
        check(await server.ask("DELETE", path), 409, "is waiting")
        done = await server.post(f"{ECHO}?wait=60")
        check(await server.ask("POST", f"/v1/runs/{done['id']}/retry"), 409, "was completed")
        failed = await server.post("/v1/workflows/fails/runs?wait=60")
        path = f"/v1/runs/{failed['id']}"
        assert (await server.post(f"{path}/retry"))["ended"] is None
        assert (await server.get(f"{path}?wait=60"))["status"] == "failed"
        answered = await server.ask("DELETE", path)
        assert (answered.status, answered.body) == (204, b"")
        for method, one in [("DELETE", path), ("GET", path), ("POST", f"{path}/retry")]:
            check(await server.ask(method, one), 404, failed["id"])


# --- A database that is shared --------------------------------------------------------------------------------------


async def test_a_run_of_another_program_can_be_listed_and_read():
    data = MemoryData()
    async with Runtime(MemoryStore(data, poll=0.05), workflows=[TALK]) as other:
        run = await other.start("talk", run_id="theirs", metadata={"a": 1, "$owner": "ann"})
        await anyio.sleep(1)
        async with asking(Runtime(MemoryStore(data, poll=0.05), workflows=[Echo()])) as server:
            [listed] = (await server.get("/v1/runs"))["runs"]
            assert (listed["id"], listed["workflow"]) == ("theirs", "talk")
            found = await server.get("/v1/runs/theirs?wait=60")
            assert found | listed == found
            assert (found["status"], found["questions"], found["result"]) == ("waiting", 1, None)
            assert (found["metadata"], found["steps"]) == ({"a": 1}, {})
            path = "/v1/runs/theirs"
            for method, one, body in [
                ("GET", f"{path}/events", None),
                ("POST", f"{path}/events", {"type": "Reply"}),
                ("GET", f"{path}/questions", None),
                ("POST", f"{path}/cancel", None),
                ("POST", f"{path}/retry", None),
                ("DELETE", path, None),
                ("POST", ECHO, {"run_id": "theirs"}),
            ]:
                check(await server.ask(method, one, body), 409, "talk, which is not registered")

        def by_header(request: Any, action: Any) -> str | None:
            return request.headers.get("x-user")

        runtime = Runtime(MemoryStore(data, poll=0.05), workflows=[Echo()])
        async with asking(runtime, authorize=by_header) as server:
            assert (await server.get(path, **{"x-user": "ann"}))["id"] == "theirs"
            for method, one in [("GET", path), ("GET", f"{path}/events"), ("DELETE", path)]:
                check(await server.ask(method, one, headers={"x-user": "bob"}), 404)
        await run.cancel()


async def test_what_is_asked_while_a_runtime_is_left_is_to_come_back_later():
    """It is no conflict with how the run stands."""
    data = MemoryData()
    runtime = Runtime(MemoryStore(data), workflows=[TALK])
    opened, left = anyio.Event(), anyio.Event()
    answers: list[Answered] = []

    async def host() -> None:
        async with runtime:
            opened.set()
            await left.wait()

    async def send(server: Asker) -> None:
        body = {"type": "Said", "data": {"text": "x"}}
        answers.append(await server.ask("POST", "/v1/runs/theirs/events", body))

    async with (
        Runtime(MemoryStore(data), workflows=[TALK]) as other,
        anyio.create_task_group() as group,
    ):
        run = await other.start("talk", run_id="theirs")
        await anyio.sleep(1)
        group.start_soon(host)
        await opened.wait()
        async with asking(runtime) as server:
            group.start_soon(send, server)
            await anyio.sleep(1)
            assert not answers  # the other process would have to be woken
            left.set()
            await anyio.sleep(1)
        await run.cancel()
    check(answers[0], 503)
    assert "retry-after" in answers[0].headers


async def test_a_drawing_runs_nothing_in_a_browser():
    async with asking(TALK) as server:
        for format_, media in [
            ("json", "application/json"),
            ("svg", "image/svg+xml"),
            ("mermaid", "text/plain; charset=utf-8"),
            ("dot", "text/vnd.graphviz; charset=utf-8"),
        ]:
            answered = await server.ask("GET", f"/v1/workflows/talk/graph?format={format_}")
            assert answered.headers["content-type"] == media
            assert b"hear" in answered.body
            if format_ != "json":
                assert "default-src 'none'" in answered.headers["content-security-policy"]
                assert answered.headers["x-content-type-options"] == "nosniff"


async def test_a_database_that_cannot_be_written_is_a_fault_for_a_while():
    store = MemoryStore()

    async def serve() -> None:
        async with asking(Runtime(store, workflows=[Echo()])) as server:
            store.problem = "the disk is full"
            answered = await server.ask("POST", ECHO, {})
            check(answered, 503, "its log says why")
            assert "retry-after" in answered.headers
            assert "disk" not in answered.detail

    with pytest.raises(StoreError, match="the disk is full"):
        await serve()
