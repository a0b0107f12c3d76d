"""The examples, against a server of their protocol: real sockets, real time."""

from __future__ import annotations

import importlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import openai
import pytest
import uvicorn
from openai import AsyncOpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from anyio_workflows import (
    Event,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
)

from .conftest import BACKENDS
from .running import PATIENCE

TOKENS = ["Call", " me", " Ish", "mael", ".", "\nSome years ago"]
MODEL = "parrot-1"

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    # The client leaves generators inside itself to the loop, which trio warns of.
    pytest.mark.filterwarnings(
        r"ignore:Async generator '(openai|httpx2?|httpcore2?)\.:ResourceWarning"
    ),
]


@attrs.define(eq=False)
class Provider:
    """Answers every chat completion with the same tokens, then does what the path says.

    Attributes:
        url: Where it listens.
        requests: The bodies it was sent.
        silent: Set when an answer is over; one that stalls only ends when the client hangs up.
    """

    url: str
    requests: list[dict[str, Any]] = attrs.field(factory=list)
    silent: threading.Event = attrs.field(factory=threading.Event)

    async def complete(self, request: Request) -> Response:
        self.requests.append(await request.json())
        then = request.path_params["then"]
        if then == "refuse":
            return JSONResponse({"error": {"message": "no such key"}}, 401)
        return StreamingResponse(self._answer(then), media_type="text/event-stream")

    async def _answer(self, then: str) -> AsyncIterator[str]:
        try:
            yield sse(chunk(None))
            for token in TOKENS:
                yield sse(chunk(token))
                await anyio.sleep(0.005)
            if then == "overload":
                yield sse({"error": {"message": "overloaded"}})
            elif then == "drop":
                raise ConnectionResetError
            elif then == "stall":
                await anyio.sleep_forever()
            else:
                yield sse({**chunk(None), "choices": []})
                yield "data: [DONE]\n\n"
        finally:
            self.silent.set()


def sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def chunk(token: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": token}, "finish_reason": None}
    kind = "chat.completion.chunk"
    return {"id": "1", "object": kind, "created": 0, "model": MODEL, "choices": [choice]}


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        provider = Provider(f"http://127.0.0.1:{listener.getsockname()[1]}")
        path = "/{then}/chat/completions"
        app = Starlette(routes=[Route(path, provider.complete, methods=["POST"])])
        config = uvicorn.Config(app, loop="asyncio", http="h11", lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield provider
        server.should_exit = True
        thread.join()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples")
    return importlib.import_module("streaming_llm")


def read(backend: str, example: Any, url: str, cancel_at: str | None = None) -> tuple[Any, ...]:
    """Return all the events of a run, and what `await handler` returned or raised."""

    async def main() -> tuple[list[Event], Any]:
        events = []
        async with AsyncOpenAI(base_url=url, api_key="none") as llm:
            handler = example.MyWorkflow(llm, MODEL, timeout=20).run()
            async for event in handler.stream_events():
                events.append(event)
                if isinstance(event, example.ProgressEvent) and event.msg == cancel_at:
                    await handler.cancel_run()
            try:
                return events, await handler
            except Exception as exc:
                return events, exc

    return anyio.run(main, backend=backend)


def test_tokens_are_streamed(backend: str, example: Any, provider: Provider) -> None:
    events, result = read(backend, example, f"{provider.url}/finish")
    expected = ["Step one is happening\n", *TOKENS, "\nStep three is happening\n"]
    assert events == [
        *[example.ProgressEvent(msg=msg) for msg in expected],
        StopEvent(result="Workflow complete."),
    ]
    assert result == "Workflow complete."
    [request] = provider.requests
    assert request["model"] == MODEL
    assert request["stream"] is True


@pytest.mark.parametrize(
    ("then", "error", "message"),
    [
        ("overload", openai.APIError, "overloaded"),
        ("drop", openai.APIConnectionError, "Connection error"),
    ],
)
def test_provider_fails_midway(
    backend: str,
    then: str,
    error: type[Exception],
    message: str,
    example: Any,
    provider: Provider,
) -> None:
    events, raised = read(backend, example, f"{provider.url}/{then}")
    assert [ev.msg for ev in events[1:-1]] == TOKENS
    failure = events[-1]
    assert type(failure) is WorkflowFailedEvent
    assert (failure.step_name, failure.attempts) == ("step_two", 1)
    assert type(raised) is error
    assert failure.exception is raised
    assert message in str(raised)


def test_provider_refuses_the_key(backend: str, example: Any, provider: Provider) -> None:
    events, raised = read(backend, example, f"{provider.url}/refuse")
    first, failure = events
    assert first == example.ProgressEvent(msg="Step one is happening\n")
    assert type(failure) is WorkflowFailedEvent
    assert failure.step_name == "step_two"
    assert type(raised) is openai.AuthenticationError
    assert failure.exception is raised


def test_cancelling_hangs_up(backend: str, example: Any, provider: Provider) -> None:
    url = f"{provider.url}/stall"
    events, raised = read(backend, example, url, cancel_at=TOKENS[-1])
    assert [ev.msg for ev in events[1:-1]] == TOKENS
    assert events[-1] == WorkflowCancelledEvent()
    assert str(raised) == "the run was cancelled: cancel_run() was called"
    assert provider.silent.wait(PATIENCE)


def test_command_line(
    backend: str, example: Any, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(["--base-url", f"{provider.url}/finish", "--backend", backend, "--model", MODEL])
    answer = "".join(TOKENS)
    assert capsys.readouterr().out == (
        f"Step one is happening\n{answer}\nStep three is happening\n"
        "Final result: Workflow complete.\n"
    )


@pytest.mark.parametrize(
    ("then", "last_line"),
    [
        ("overload", "Step 'step_two' failed after 1 attempts: overloaded"),
        ("refuse", "Step 'step_two' failed after 1 attempts: Error code: 401 - no such key"),
        ("stall", "Workflow timed out after 3.0s"),
    ],
)
def test_command_line_tells_of_a_bad_end(
    backend: str,
    then: str,
    last_line: str,
    example: Any,
    provider: Provider,
    capsys: pytest.CaptureFixture[str],
) -> None:
    timeout = "3" if then == "stall" else "600"
    argv = ["--base-url", f"{provider.url}/{then}", "--backend", backend, "--timeout", timeout]
    with pytest.raises(SystemExit) as caught:
        example.main(argv)
    assert caught.value.code == 1
    assert capsys.readouterr().out.splitlines()[-1] == last_line
    assert then != "stall" or provider.silent.wait(PATIENCE)
