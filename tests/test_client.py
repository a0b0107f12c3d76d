"""The client: what it asks, what it makes of the answers, and when it asks again."""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

pytest.importorskip("httpx2")

import httpx2

from anyio_workflows import HumanResponseEvent, InputRequiredEvent, StartEvent
from anyio_workflows._ledger.work import StepStatistics
from anyio_workflows.client import (
    RemoteEvent,
    RemoteRunError,
    ServerUnreachableError,
    WorkflowClient,
    WorkflowServerError,
    _http,
)
from anyio_workflows.errors import WorkflowConfigurationError, WorkflowRuntimeError
from anyio_workflows.runtime import LogStatistics, RunError

from .remote import (
    RUN,
    URL,
    answer,
    cut,
    problem,
    refused,
    run_document,
    scripted,
)

pytestmark = pytest.mark.anyio

FAILED = run_document(
    "failed",
    error={
        "type": "ValueError",
        "message": "sold out",
        "step": "buy",
        "attempts": 3,
        "notes": ["step 'buy' was given Order(item='tea')"],
    },
)


class Order(StartEvent):
    item: str


class Approval(HumanResponseEvent):
    approved: bool


class Ask(InputRequiredEvent):
    text: str


# --- What is asked and answered -----------------------------------------------------------------------


async def test_a_run_is_started_with_its_input_and_a_key_of_its_own():
    client, server = scripted(answer(RUN, 201))
    async with client:
        run = await client.start("buy", {"item": "tea"}, metadata={"user": "ada"})
        await client.start("buy", Order(item="tea"))
    assert server.asked == ["POST /flows/v1/workflows/buy/runs"] * 2
    assert server.body(0) == {"input": {"item": "tea"}, "metadata": {"user": "ada"}}
    assert server.body(1) == {"input": {"item": "tea"}}
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert len(keys) == 2
    assert run.id == "run-1"
    info = run.known
    assert info is not None
    assert (info.status, info.questions, info.metadata) == ("running", 1, {"user": "ada"})
    assert info.created == datetime(2026, 11, 27, 22, 57, 0, 123000, UTC)
    assert info.log == LogStatistics(1, 2, 2, 300, 0, 1, 0)
    assert info.steps == {"ask": StepStatistics(waiting=1)}
    assert info.document == RUN


async def test_a_run_is_started_with_an_id_or_a_key_of_the_program():
    client, server = scripted(answer(RUN))
    async with client:
        await client.start("buy", run_id="order-17", wait=90)
        await client.start("buy", idempotency_key="click-4")
        with pytest.raises(WorkflowConfigurationError, match="a run_id or an idempotency_key, not"):
            await client.start("buy", run_id="a", idempotency_key="b")
    assert server.body(0) == {"input": {}, "run_id": "order-17"}
    assert "idempotency-key" not in server.requests[0].headers
    assert server.requests[0].url.query == b"wait=60.0"
    assert server.requests[1].headers["idempotency-key"] == "click-4"


async def test_every_request_shows_the_token():
    client, server = scripted(answer({"workflows": []}), token="s3cret")
    async with client:
        assert await client.workflows() == []
    assert server.requests[0].headers["authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr(client) + repr(client.run) + str(vars(server))


async def test_workflows_are_listed_and_described():
    listed = {"name": "buy", "doc": "Buy it.", "steps": ["ask"]}
    whole = {
        **listed,
        "input": {"type": "object"},
        "output": {},
        "events": {"Ask": {}},
        "steps": [{"name": "ask", "num_workers": 4}],
    }
    client, server = scripted(answer({"workflows": [listed]}), answer(whole))
    async with client:
        [one] = await client.workflows()
        assert (one.name, one.doc, one.steps, one.input) == ("buy", "Buy it.", ("ask",), None)
        one = await client.workflow("buy")
    assert (one.steps, one.input, one.events) == (("ask",), {"type": "object"}, {"Ask": {}})
    assert one.document == whole
    assert server.asked == ["GET /flows/v1/workflows", "GET /flows/v1/workflows/buy"]


async def test_runs_are_listed_by_the_page():
    brief = {name: RUN[name] for name in RUN if name not in ("result", "log", "steps")}
    client, server = scripted(answer({"runs": [brief], "next": "1.5~run-1"}))
    async with client:
        page = await client.runs(status="running", workflow="buy", limit=1)
        await client.runs(before=page.next)
    assert [(info.id, info.log, info.steps) for info in page.runs] == [("run-1", None, None)]
    assert server.asked == [
        "GET /flows/v1/runs?status=running&workflow=buy&limit=1",
        "GET /flows/v1/runs?limit=50&before=1.5~run-1",
    ]


QUESTION = {
    "id": "1/2:Approval",
    "step": "ask",
    "answer_type": "Approval",
    "question": {"type": "Ask", "data": {"text": "Buy?"}},
    "requirements": {"user": "ada"},
    "waiter_id": None,
    "since": "2026-11-27T22:57:00.123Z",
    "schema": {"type": "object"},
}


async def test_a_question_is_read_and_answered_in_any_form():
    client, server = scripted(
        answer({"questions": [QUESTION, QUESTION | {"question": None}]}),
        answer({"taken_by": ["ask"]}),
        types=[Ask],
    )
    async with client:
        run = client.run("run-1")
        question, bare = await run.questions()
        assert (question.question, bare.question) == (Ask(text="Buy?"), None)
        assert (question.step, question.requirements) == ("ask", {"user": "ada"})
        assert await run.answer(question, approved=True) == ("ask",)
        await run.answer(question, {"approved": True})
        await run.answer("1/2:Approval", Approval(approved=True))
        with pytest.raises(
            WorkflowConfigurationError, match="answered by a Approval, not by a Ask"
        ):
            await run.answer(question, Ask(text="?"))
        with pytest.raises(WorkflowConfigurationError, match="not both"):
            await run.answer(question, Approval(approved=True), approved=False)
    assert server.asked[0] == "GET /flows/v1/runs/run-1/questions"
    assert set(server.asked[1:]) == {"POST /flows/v1/runs/run-1/questions/1%2F2%3AApproval"}
    assert [server.body(n) for n in (1, 2, 3)] == [{"data": {"approved": True}}] * 3


async def test_an_event_of_an_unknown_class_is_data():
    client, _ = scripted(answer({"questions": [QUESTION]}))
    async with client:
        [question] = await client.run("run-1").questions()
    assert question.question == RemoteEvent("Ask", (), {"text": "Buy?"})


async def test_an_event_is_sent_as_such_or_by_its_name():
    client, server = scripted(answer({"taken_by": ["ask", "log"]}, 202))
    async with client:
        run = client.run("run-1")
        assert await run.send(Approval(approved=True), step="ask") == ("ask", "log")
        await run.send("Approval", approved=False)
        await run.send("Move", {"step": 3})
        for given in ({"approved": True}, {"step": "a", "approved": True}):
            with pytest.raises(
                WorkflowConfigurationError, match="an event or its fields, not both"
            ):
                await run.send(Approval(approved=True), **given)
        with pytest.raises(WorkflowConfigurationError, match="or the name of its class"):
            await run.send(Approval)  # type: ignore[arg-type]
    assert server.body(0) == {"type": "Approval", "data": {"approved": True}, "step": "ask"}
    assert server.body(1) == {"type": "Approval", "data": {"approved": False}}
    assert server.body(2) == {"type": "Move", "data": {"step": 3}}
    assert len(server.requests) == 3


async def test_a_run_is_cancelled_retried_and_deleted():
    client, server = scripted(answer(run_document("cancelled")), answer(RUN), httpx2.Response(204))
    async with client:
        run = client.run("run-1")
        assert (await run.cancel(wait=300)).status == "cancelled"
        assert (await run.retry()).status == "running"
        assert run.known is not None
        await run.delete()
        assert run.known is None
    assert server.asked == [
        "POST /flows/v1/runs/run-1/cancel?wait=60.0",
        "POST /flows/v1/runs/run-1/retry",
        "DELETE /flows/v1/runs/run-1",
    ]


@pytest.mark.parametrize(
    ("run_id", "path"),
    [
        ("order-17", "order-17"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("...", "..."),
        ("a/b?c#d", "a%2Fb%3Fc%23d"),
        ("é", "%C3%A9"),
    ],
)
async def test_an_id_stays_one_part_of_the_path(run_id: str, path: str):
    client, server = scripted(answer(RUN))
    async with client:
        await client.run(run_id).info()
    assert server.asked == [f"GET /flows/v1/runs/{path}"]


# --- Results --------------------------------------------------------------------------------------------


async def test_a_result_is_waited_for_in_long_polls():
    client, server = scripted(
        answer(RUN), answer(RUN | {"status": "waiting"}), answer(run_document())
    )
    async with client:
        run = client.run("run-1")
        assert await run.result() == "tea"
        assert await run.result() == "tea"  # without another request
    assert server.asked == ["GET /flows/v1/runs/run-1?wait=60.0"] * 3
    assert server.requests[0].extensions["timeout"]["read"] == 90


async def test_a_run_that_was_waited_for_at_its_start_needs_no_other_request():
    client, server = scripted(answer(run_document(), 201))
    async with client:
        run = await client.start("buy", wait=5)
        assert await run.result() == "tea"
    assert len(server.requests) == 1


async def test_a_failed_run_raises_what_is_known_of_its_failure():
    client, _ = scripted(answer(FAILED))
    async with client:
        with pytest.raises(RemoteRunError) as caught:
            await client.run("run-1").result()
    error = caught.value
    assert str(error) == "run 'run-1' failed in step buy: ValueError: sold out"
    assert (error.step, error.attempts, error.status) == ("buy", 3, "failed")
    assert error.__notes__ == ["step 'buy' was given Order(item='tea')"]


@pytest.mark.parametrize("status", ["timed_out", "cancelled", "stuck", "incompatible"])
async def test_any_other_run_without_a_result_raises_too(status: str):
    error = {"type": "WorkflowError", "message": "it", "step": None, "attempts": None, "notes": []}
    client, _ = scripted(answer(run_document(status, error=error)))
    async with client:
        run = client.run("run-1")
        with pytest.raises(RemoteRunError) as caught:
            await run.result(timeout=5)
        assert caught.value.status == status
        assert run.known is not None
        assert run.known.error == RunError("WorkflowError", "it")


async def test_a_retried_run_is_waited_for_again():
    client, _ = scripted(answer(FAILED), answer(RUN), answer(run_document()))
    async with client:
        run = client.run("run-1")
        with pytest.raises(RemoteRunError):
            await run.result()
        await run.retry()
        assert await run.result() == "tea"


async def test_a_result_that_does_not_come_in_time_is_a_timeout():
    def wait_as_asked(request: Any) -> Any:
        return answer(RUN | {"status": "waiting"})

    client, server = scripted(wait_as_asked)
    async with client:
        with pytest.raises(TimeoutError, match="has not ended within 0 s; it is waiting"):
            await client.run("run-1").result(timeout=0)
        assert server.asked == ["GET /flows/v1/runs/run-1?wait=0.0"]
        with pytest.raises(WorkflowConfigurationError, match="timeout must be a number of seconds"):
            await client.run("run-1").result(timeout=-1)


async def test_a_timeout_is_spent_by_waiting_on_the_server():
    waits: list[float] = []

    class Waiting(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: Any) -> Any:
            waits.append(float(request.url.params["wait"]))
            await anyio.sleep(waits[-1])
            return answer(RUN)

    client = WorkflowClient(URL, http=httpx2.AsyncClient(transport=Waiting()))
    async with client:
        start = anyio.current_time()
        with pytest.raises(TimeoutError, match="within 150 s"):
            await client.run("run-1").result(timeout=150)
        assert anyio.current_time() - start == pytest.approx(150)
    assert waits == pytest.approx([60, 60, 30, 0])


async def test_a_server_that_is_away_is_not_waited_for_longer_than_that():
    client, _ = scripted(refused())
    async with client:
        start = anyio.current_time()
        with pytest.raises(ServerUnreachableError):
            await client.run("run-1").result(timeout=5)
        assert anyio.current_time() - start == pytest.approx(5)


# --- Again, or not ----------------------------------------------------------------------------------------


async def test_a_start_whose_answer_was_lost_is_repeated_with_the_same_key():
    client, server = scripted(cut(), refused(), answer(RUN, 200))
    async with client:
        await client.start("buy", {"item": "tea"})
    assert len(server.requests) == 3
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    assert len({request.content for request in server.requests}) == 1


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_server_that_is_away_for_a_moment_is_asked_again(status: int):
    client, server = scripted(problem(status, "it stops"), answer(RUN))
    async with client:
        assert (await client.run("run-1").info()).status == "running"
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 429, 500])
async def test_a_refusal_is_raised_at_once(status: int):
    client, server = scripted(problem(status, "no $.input.n", "Refused", path="$.input.n"))
    async with client:
        with pytest.raises(WorkflowServerError) as caught:
            await client.start("buy")
    assert len(server.requests) == 1
    error = caught.value
    assert (error.status, error.title, error.detail) == (status, "Refused", "no $.input.n")
    assert error.path == "$.input.n"
    assert error.request == "POST /v1/workflows/buy/runs"


async def test_a_refusal_says_when_to_come_back():
    client, _ = scripted(
        httpx2.Response(429, headers={"retry-after": "5"}, json={"title": "Full", "detail": "many"})
    )
    async with client:
        with pytest.raises(WorkflowServerError, match="429 Full: many") as caught:
            await client.start("buy")
    assert caught.value.retry_after == 5.0


POSTS = {
    "answer": (lambda run: run.answer("1", ok=True), r"run\.questions\(\) tells"),
    "send": (lambda run: run.send("Note"), r"whether the event was sent is not known"),
    "retry": (lambda run: run.retry(), r"whether the run continues is not known"),
}


@pytest.mark.parametrize("name", POSTS)
async def test_what_must_not_come_twice_is_repeated_only_if_it_was_not_sent(name: str):
    call, unknown = POSTS[name]
    answered = answer(RUN | {"taken_by": []})
    client, server = scripted(refused(), httpx2.ConnectTimeout(""), answered)
    async with client:
        await call(client.run("run-1"))
    assert len(server.requests) == 3
    for failure in (cut(), httpx2.ReadTimeout(""), httpx2.RemoteProtocolError("no answer")):
        client, server = scripted(failure, answered)
        async with client:
            with pytest.raises(ServerUnreachableError, match=unknown) as caught:
                await call(client.run("run-1"))
        assert len(server.requests) == 1
        assert caught.value.unknown is not None
        assert caught.value.__cause__ is failure
    client, server = scripted(problem(503, "it stops"), answered)
    async with client:
        with pytest.raises(WorkflowServerError, match="503"):
            await call(client.run("run-1"))


async def test_a_run_whose_deletion_was_not_confirmed_is_deleted():
    client, server = scripted(cut(), problem(404, "there is no such run"))
    async with client:
        await client.run("run-1").delete()
    assert len(server.requests) == 2
    client, _ = scripted(refused(), problem(404, "there is no such run"))
    async with client:
        with pytest.raises(WorkflowServerError, match="404"):
            await client.run("run-1").delete()


async def test_it_gives_up_after_a_while():
    client, server = scripted(refused(), give_up_after=20)
    async with client:
        start = anyio.current_time()
        with pytest.raises(ServerUnreachableError) as caught:
            await client.run("run-1").info()
        assert anyio.current_time() - start == pytest.approx(20)
    assert str(caught.value) == (
        f"{URL}: GET /v1/runs/run-1: cannot connect (connection refused); is the server running, and the "
        "address right?"
    )
    assert caught.value.__notes__ == [f"tried {len(server.requests)} times in 20 s"]
    assert caught.value.unknown is None


async def test_it_may_be_told_not_to_try_again():
    client, server = scripted(refused(), give_up_after=0)
    async with client:
        with pytest.raises(ServerUnreachableError):
            await client.start("buy")
    assert len(server.requests) == 1


async def test_it_may_be_told_to_try_for_ever():
    client, server = scripted(*[refused()] * 200, answer(RUN), give_up_after=None)
    async with client:
        await client.run("run-1").info()
    assert server.times[-1] - server.times[0] > 1000


async def test_each_delay_is_twice_as_long_with_some_jitter():
    client, server = scripted(refused(), give_up_after=60, longest_delay=6)
    async with client:
        with pytest.raises(ServerUnreachableError):
            await client.run("run-1").info()
    *delays, _ = server.delays
    for delay, least in zip(delays, [0.5, 1, 2, 4, *[6] * 20], strict=False):
        assert least <= delay <= 1.5 * least + 1e-6
    assert len(set(delays)) == len(delays)


async def test_the_server_may_ask_for_a_longer_delay():
    client, server = scripted(answer({}, 503, retry_after="7"), answer(RUN))
    async with client:
        await client.run("run-1").info()
    assert server.delays == pytest.approx([7])


async def test_an_outage_is_logged_once(caplog: pytest.LogCaptureFixture):
    client, _ = scripted(cut(), answer(RUN), *[refused()] * 5, answer(RUN))
    with caplog.at_level(logging.WARNING, "anyio_workflows.client"):
        async with client:
            await client.run("run-1").info()
            assert caplog.messages == []  # one broken connection is nothing special
            await client.run("run-1").info()
    [message] = caplog.messages
    assert "cannot connect (connection refused)" in message
    assert message.endswith("; trying again")


@pytest.mark.parametrize(
    "failure",
    [
        httpx2.UnsupportedProtocol("no"),
        httpx2.LocalProtocolError("a header has a line break"),
        httpx2.DecodingError("this is no gzip"),
    ],
)
async def test_what_another_attempt_cannot_mend_is_raised_at_once(failure: Exception):
    client, server = scripted(failure)
    async with client:
        with pytest.raises(ServerUnreachableError, match=str(failure)):
            await client.run("run-1").info()
    assert len(server.requests) == 1


async def test_a_wrong_certificate_is_raised_at_once():
    failure = refused()
    failure.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
    client, server = scripted(failure)
    async with client:
        with pytest.raises(ServerUnreachableError):
            await client.run("run-1").info()
    assert len(server.requests) == 1


# --- Other servers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (
            httpx2.Response(200, html="<p>Hello</p>"),
            "no answer of a workflow server, but text/html",
        ),
        (httpx2.Response(200, json=[1, 2]), "no answer of a workflow server"),
        (httpx2.Response(200, content=b"{"), "something without a type"),
        (httpx2.Response(404, html="<p>Lost</p>"), "404 Not Found: this is no answer"),
        (httpx2.Response(404, text="no such page"), "404 Not Found: no such page"),
        (httpx2.Response(404, json={"title": 5, "detail": None}), "404 Not Found"),
        (httpx2.Response(404, json="no"), "404 Not Found"),
        (
            httpx2.Response(308, headers={"location": "https://server.example/"}),
            "sends its clients to https://server.example/: give that address",
        ),
        (httpx2.Response(200, json={"id": "run-1"}), "Unexpected answer: it has not the form"),
        (httpx2.Response(200, json=RUN | {"created": 5}), "Unexpected answer: it has not the form"),
    ],
)
async def test_an_answer_of_something_else_is_named(response: Any, said: str):
    client, server = scripted(response)
    async with client:
        with pytest.raises(WorkflowServerError, match=said):
            await client.run("run-1").info()
    assert len(server.requests) == 1


async def test_a_long_explanation_is_shortened():
    client, _ = scripted(problem(404, "x" * 100_000, "y" * 100_000))
    async with client:
        with pytest.raises(WorkflowServerError) as caught:
            await client.run("run-1").info()
    assert len(str(caught.value)) < 3000


# --- What is given --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "'http://localhost:8000', for example"),
        ("server.example/flows", "must begin with http:// or https://"),
        ("ftp://server.example", "'http://server.example', for example"),
        ("http://", "must begin with http:// or https://, and name a host"),
        ("", "'http://127.0.0.1:8000', for example"),
        ("http://[::1", "is invalid"),
        pytest.param("http://server.example/\ud800", "is invalid", id="half"),
        ("http://server.example:65536", "is invalid: ports end with 65535"),
        ("http://ada:pw@server.example", "must not have a name or a password"),
        ("http://server.example/?a=1", "without '\\?' and '#'"),
        ("http://server.example/#token=abc", "is given as token="),
        (8000, "such as 'http://127.0.0.1:8000'; not 8000"),
        (None, "such as 'http://127.0.0.1:8000'; not None"),
    ],
)
def test_an_address_that_is_none_is_refused(url: Any, said: str):
    with pytest.raises(WorkflowConfigurationError, match=said) as caught:
        WorkflowClient(url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://server.example:80/", "http://server.example"])
async def test_a_slash_at_the_end_does_not_matter(url: str):
    _, server = scripted(answer(RUN))
    async with WorkflowClient(url, http=httpx2.AsyncClient(transport=server)) as client:
        await client.run("run-1").info()
    assert str(server.requests[0].url) == "http://server.example/v1/runs/run-1"


@pytest.mark.parametrize("given", ["\ud800", "x" * 100_000], ids=["half", "long"])
async def test_what_http_has_no_form_for_is_refused(given: str):
    _, server = scripted()
    async with WorkflowClient(
        "http://server.example", http=httpx2.AsyncClient(transport=server)
    ) as client:
        with pytest.raises(WorkflowConfigurationError, match=r"^GET /v1/runs cannot be sent"):
            await client.runs(before=given)
        with pytest.raises(WorkflowConfigurationError, match=r"events cannot be sent"):
            await anext(client.run("run-1").events(types=[given]))
    assert not server.requests


async def test_an_idempotency_key_that_is_not_ascii_is_refused():
    _, server = scripted()
    async with WorkflowClient(
        "http://server.example", http=httpx2.AsyncClient(transport=server)
    ) as client:
        with pytest.raises(WorkflowConfigurationError, match=r"runs cannot be sent.*'ascii'"):
            await client.start("order", idempotency_key="für Ada")


async def test_an_id_that_no_run_can_have_is_asked_for_all_the_same():
    _, server = scripted(answer(RUN))
    async with WorkflowClient(
        "http://server.example", http=httpx2.AsyncClient(transport=server)
    ) as client:
        await client.run("a\ud800/b").info()
    assert str(server.requests[0].url) == "http://server.example/v1/runs/a%3F%2Fb"


class Twin:
    class Order(StartEvent):
        pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token": ""}, "token must be a str of visible ASCII"),
        ({"token": "geheim\n"}, "token must be a str of visible ASCII"),
        ({"token": 5}, "token must be a str of visible ASCII"),
        ({"types": Order}, "types must be a list of event classes"),
        ({"types": "Order"}, "types must be a list of event classes"),
        ({"types": [int]}, "<class 'int'> is none"),
        ({"types": [Order, Order, Twin.Order]}, "two classes in types are named Order"),
        ({"timeout": 0}, "timeout must be a positive number of seconds"),
        ({"give_up_after": -1}, "a number of seconds, or None for ever; not -1"),
        ({"longest_delay": "1"}, "longest_delay must be a positive number of seconds"),
        ({"http": object()}, "http must be an httpx2.AsyncClient"),
    ],
)
def test_an_argument_that_cannot_work_is_refused(options: dict[str, Any], said: str):
    with pytest.raises(WorkflowConfigurationError, match=said) as caught:
        WorkflowClient(URL, **options)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda client: client.start(Order), "name must be a str"),
        (lambda client: client.start(""), "name must be a str that is not empty"),
        (
            lambda client: client.start("buy", [1]),
            "takes an event, or its fields as data; not \\[1\\]",
        ),
        (lambda client: client.start("buy", {"at": datetime}), "cannot be written as JSON"),
        (lambda client: client.start("buy", {"n": float("nan")}), "cannot be written as JSON"),
        (lambda client: client.start("buy", metadata=[1]), "metadata must be a dict"),
        (lambda client: client.start("buy", wait=-1), "wait must be a number of seconds"),
        (lambda client: client.run("a").cancel(wait="1"), "wait must be a number of seconds"),
        (lambda client: client.workflow(None), "name must be a str"),
    ],
)
async def test_a_call_that_cannot_work_asks_nothing(call: Any, said: str):
    client, server = scripted(answer(RUN))
    async with client:
        with pytest.raises(WorkflowConfigurationError, match=said):
            await call(client)
    assert server.requests == []


@pytest.mark.parametrize("run_id", ["", None, 5])
async def test_a_run_has_an_id(run_id: Any):
    client, _ = scripted(answer(RUN))
    async with client:
        with pytest.raises(WorkflowConfigurationError, match="run_id must be a str"):
            client.run(run_id)


async def test_a_client_is_used_in_its_block_only():
    client, server = scripted(answer(RUN))
    with pytest.raises(WorkflowRuntimeError, match="has not been entered; use 'async with"):
        await client.workflows()
    with pytest.raises(WorkflowRuntimeError, match="has not been entered; use 'async with"):
        client.run("run-1")
    assert repr(client) == f"<WorkflowClient of {URL}: not entered>"
    async with client:
        run = client.run("run-1")
        assert repr(run) == f"<RemoteRun 'run-1' of {URL}>"
        await run.info()
        assert repr(run) == f"<RemoteRun 'run-1' of {URL}: buy, running>"
        with pytest.raises(WorkflowRuntimeError, match="entered already"):
            await client.__aenter__()
    for call in (client.workflows, run.info, lambda: run.result(timeout=1)):
        with pytest.raises(WorkflowRuntimeError, match="its 'async with' block has been left"):
            await call()
    with pytest.raises(WorkflowRuntimeError, match="its 'async with' block has been left"):
        await anext(run.events())
    assert len(server.requests) == 1


async def test_leaving_the_client_ends_a_request_that_is_tried_again():
    client, server = scripted(refused(), give_up_after=None)

    async def ask() -> None:
        with pytest.raises(WorkflowRuntimeError, match="its 'async with' block has been left"):
            await client.workflows()

    async with anyio.create_task_group() as group, client:
        group.start_soon(ask)
        await anyio.sleep(20)
        asked = len(server.requests)
    assert len(server.requests) == asked


async def test_a_client_that_was_given_stays_open():
    client, server = scripted(answer(RUN))
    async with client:
        pass
    http = httpx2.AsyncClient(transport=server)
    for _ in range(2):
        async with WorkflowClient(URL, http=http) as client:
            await client.run("run-1").info()
    assert not http.is_closed
    await http.aclose()


@pytest.mark.parametrize(
    ("url", "proxies", "loaded"),
    [
        ("http://127.0.0.1", {}, False),
        ("https://server.example", {}, True),
        ("http://server.example", {"HTTP_PROXY": "https://proxy.example"}, True),
    ],
)
async def test_certificates_are_loaded_where_they_are_needed(
    url: str, proxies: dict[str, str], loaded: bool, monkeypatch: pytest.MonkeyPatch
):
    contexts: list[Any] = []

    class Seen(httpx2.AsyncClient):
        def __init__(self, *, verify: Any, **options: Any) -> None:
            contexts.append(verify)
            super().__init__(**options)

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_http, "AsyncClient", Seen)
    async with WorkflowClient(url):
        pass
    [verify] = contexts
    assert (verify is True) == loaded
    if not loaded:
        assert verify.verify_mode is ssl.CERT_REQUIRED
        assert verify.get_ca_certs() == []


async def test_a_request_that_is_cancelled_ends_at_once():
    client, _ = scripted(refused(), give_up_after=None)
    async with client:
        with anyio.move_on_after(100) as scope:
            await client.run("run-1").info()
        assert scope.cancelled_caught
