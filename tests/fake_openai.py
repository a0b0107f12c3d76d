"""A server on loopback that speaks the part of OpenAI's protocol which the examples use."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import anyio
import attrs
import pytest

uvicorn = pytest.importorskip("uvicorn", reason="the fake server runs on uvicorn")
pytest.importorskip("openai", reason="the examples use OpenAI's client")
pytest.importorskip("starlette", reason="the fake server is a Starlette application")

from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import JSONResponse, Response, StreamingResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

client_generators = pytest.mark.filterwarnings(
    r"ignore:Async generator '(openai|httpx2?|httpcore2?)\.:ResourceWarning"
)
"""For tests that stream: the client leaves generators inside itself to the loop; trio warns of it."""


@attrs.frozen
class Says:
    """The model answers with a text, which is streamed in pieces if the request asks for a stream.

    Attributes:
        pieces: The text.
        then: What happens after the last piece of a stream.
    """

    pieces: tuple[str, ...]
    then: Literal["finish", "overload", "drop", "stall"] = "finish"

    def message(self) -> dict[str, Any]:
        return {"role": "assistant", "content": "".join(self.pieces)}


@attrs.frozen
class Calls:
    """The model answers with calls of tools: pairs of a name and the text of its arguments."""

    tools: tuple[tuple[str, str], ...]

    def message(self) -> dict[str, Any]:
        calls = [
            {"id": f"call-{n}", "type": "function", "function": {"name": name, "arguments": text}}
            for n, (name, text) in enumerate(self.tools, 1)
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}


@attrs.frozen
class Refuses:
    """The server answers with an error."""

    status: int
    message: str = "overloaded"


Answer = Says | Calls | Refuses


def says(*pieces: str) -> Says:
    return Says(pieces)


def calls(*tools: tuple[str, dict[str, Any] | str]) -> Calls:
    return Calls(
        tuple((name, args if isinstance(args, str) else json.dumps(args)) for name, args in tools)
    )


@attrs.define(eq=False)
class FakeOpenAI:
    """Answers chat completions as the test says, and keeps what it was asked.

    Attributes:
        url: The base URL for a client.
        answer: Gives the answer to a request from its body. It is called in the server's thread.
        requests: The bodies of the requests, in the order of their arrival.
        silent: Set when a stream is over; one that stalls only ends when the client hangs up.
    """

    url: str
    answer: Callable[[dict[str, Any]], Answer] = attrs.field(init=False)
    requests: list[dict[str, Any]] = attrs.field(factory=list)
    silent: threading.Event = attrs.field(factory=threading.Event)

    def script(self, answers: Iterable[Answer]) -> None:
        """Give these answers, one after the other, whatever is asked."""
        remaining = iter(answers)
        self.answer = lambda _: next(remaining, Refuses(400, "the script is at its end"))

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        answer = self.answer(body)
        if isinstance(answer, Refuses):
            return JSONResponse({"error": {"message": answer.message}}, answer.status)
        if body.get("stream"):
            return StreamingResponse(self._stream(body, answer), media_type="text/event-stream")
        return JSONResponse(_completion(body, "chat.completion", message=answer.message()))

    async def _stream(self, body: dict[str, Any], answer: Says | Calls) -> AsyncIterator[str]:
        def chunk(**delta: Any) -> str:
            return _sse(_completion(body, "chat.completion.chunk", delta=delta))

        try:
            yield chunk(role="assistant", content=None)
            if isinstance(answer, Calls):
                for index, call in enumerate(answer.message()["tool_calls"]):
                    yield chunk(tool_calls=[{"index": index, **call}])
                yield "data: [DONE]\n\n"
                return
            for piece in answer.pieces:
                yield chunk(content=piece)
                await anyio.sleep(0.005)
            if answer.then == "overload":
                yield _sse({"error": {"message": "overloaded"}})
            elif answer.then == "drop":
                raise ConnectionResetError
            elif answer.then == "stall":
                await anyio.sleep_forever()
            else:
                yield _sse({**_completion(body, "chat.completion.chunk", delta={}), "choices": []})
                yield "data: [DONE]\n\n"
        finally:
            self.silent.set()


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _completion(body: dict[str, Any], kind: str, **choice: Any) -> dict[str, Any]:
    reason = "stop" if "message" in choice else None
    choices = [{"index": 0, "finish_reason": reason, **choice}]
    return {"id": "1", "object": kind, "created": 0, "model": body["model"], "choices": choices}


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    """Run a server, and point OpenAI's client to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = FakeOpenAI(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        app = Starlette(routes=[Route("/v1/chat/completions", server.complete, methods=["POST"])])
        config = uvicorn.Config(app, loop="asyncio", http="h11", lifespan="off", log_config=None)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield server
        finally:
            running.should_exit = True
            thread.join()
