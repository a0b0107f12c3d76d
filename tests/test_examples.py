"""The examples, against a server of their protocol: real sockets, real time."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_workflows import (
    Event,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
)

from .conftest import BACKENDS
from .fake_openai import Answer, FakeOpenAI, Refuses, Says, client_generators, serving
from .running import PATIENCE

openai = pytest.importorskip("openai")

TOKENS = ("Call", " me", " Ish", "mael", ".", "\nSome years ago")
MODEL = "parrot-1"
ANSWERS: dict[str, Answer] = {
    "finish": Says(TOKENS),
    "overload": Says(TOKENS, "overload"),
    "drop": Says(TOKENS, "drop"),
    "stall": Says(TOKENS, "stall"),
    "refuse": Refuses(401, "no such key"),
}

pytestmark = [pytest.mark.parametrize("backend", BACKENDS), client_generators]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    with serving(monkeypatch) as server:
        server.script([ANSWERS["finish"]])
        yield server


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples")
    return importlib.import_module("streaming_llm")


def read(backend: str, example: Any, cancel_at: str | None = None) -> tuple[Any, ...]:
    """Return all the events of a run, and what `await handler` returned or raised."""

    async def main() -> tuple[list[Event], Any]:
        events = []
        async with openai.AsyncOpenAI() as llm:
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


def test_tokens_are_streamed(backend: str, example: Any, provider: FakeOpenAI) -> None:
    events, result = read(backend, example)
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
    provider: FakeOpenAI,
) -> None:
    provider.script([ANSWERS[then]])
    events, raised = read(backend, example)
    assert [ev.msg for ev in events[1:-1]] == list(TOKENS)
    failure = events[-1]
    assert type(failure) is WorkflowFailedEvent
    assert (failure.step_name, failure.attempts) == ("step_two", 1)
    assert type(raised) is error
    assert failure.exception is raised
    assert message in str(raised)


def test_provider_refuses_the_key(backend: str, example: Any, provider: FakeOpenAI) -> None:
    provider.script([ANSWERS["refuse"]])
    events, raised = read(backend, example)
    first, failure = events
    assert first == example.ProgressEvent(msg="Step one is happening\n")
    assert type(failure) is WorkflowFailedEvent
    assert failure.step_name == "step_two"
    assert type(raised) is openai.AuthenticationError
    assert failure.exception is raised


def test_cancelling_hangs_up(backend: str, example: Any, provider: FakeOpenAI) -> None:
    provider.script([ANSWERS["stall"]])
    events, raised = read(backend, example, cancel_at=TOKENS[-1])
    assert [ev.msg for ev in events[1:-1]] == list(TOKENS)
    assert events[-1] == WorkflowCancelledEvent()
    assert str(raised) == "the run was cancelled: cancel_run() was called"
    assert provider.silent.wait(PATIENCE)


def test_command_line(
    backend: str, example: Any, provider: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(["--base-url", provider.url, "--backend", backend, "--model", MODEL])
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
    provider: FakeOpenAI,
    capsys: pytest.CaptureFixture[str],
) -> None:
    provider.script([ANSWERS[then]])
    timeout = "3" if then == "stall" else "600"
    argv = ["--base-url", provider.url, "--backend", backend, "--timeout", timeout]
    with pytest.raises(SystemExit) as caught:
        example.main(argv)
    assert caught.value.code == 1
    assert capsys.readouterr().out.splitlines()[-1] == last_line
    assert then != "stall" or provider.silent.wait(PATIENCE)
