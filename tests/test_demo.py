from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from typing import Any

import anyio
import pytest

from anyio_workflows import StopEvent
from anyio_workflows.__main__ import main
from anyio_workflows._demo import DemoWorkflow, ProgressEvent, SlowText
from anyio_workflows.testing import virtual_time

from .conftest import BACKENDS
from .running import PATIENCE

TEXT = files("anyio_workflows").joinpath("demo_text.txt").read_text("utf-8").split()

on_each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [r for r in caplog.records if r.name.startswith("anyio_workflows")] == []


def demo(backend: str, *argv: str) -> int:
    _, options = virtual_time(backend)
    return main(["demo", "--backend", backend, *argv], backend_options=options)


def paragraphs(output: str) -> tuple[list[str], str]:
    """Return the lines of the stream, and what is said about the end."""
    streamed, end = output.split("\n\n")
    return streamed.splitlines(), end


@on_each_backend
@pytest.mark.parametrize("argv", [[], ["--end", "stop"], ["--timeout", "3.5"]])
def test_stop(backend: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(backend, *argv) == 0
    lines, end = paragraphs(capsys.readouterr().out)
    assert lines[0] == "Step one is happening"
    assert " ".join(lines[1:-1]).split() == TEXT
    assert lines[-1] == "Step three is happening"
    assert end == (
        "The last event of the stream:\n"
        "  StopEvent: the run is complete; its result is 'Workflow complete.'\n"
        "What `await handler` did:\n"
        "  returned 'Workflow complete.'\n"
    )


@on_each_backend
@pytest.mark.parametrize(("argv", "given"), [([], "1.2"), (["--timeout", "0.5"], "0.5")])
def test_timeout(
    backend: str, argv: list[str], given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(backend, "--end", "timeout", *argv) == 0
    lines, end = paragraphs(capsys.readouterr().out)
    words = " ".join(lines[1:]).split()
    assert 10 < len(words) < len(TEXT)
    assert words == TEXT[: len(words)]
    assert f"WorkflowTimedOutEvent: the run had {given} s; active steps: step_two\n" in end
    assert f"raised WorkflowTimeoutError: the run did not end within {given} s" in end


@on_each_backend
def test_cancel(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(backend, "--end", "cancel") == 0
    lines, end = paragraphs(capsys.readouterr().out)
    assert lines == ["Step one is happening", " ".join(TEXT[:12])]
    assert "WorkflowCancelledEvent: the run was cancelled\n" in end
    assert "raised WorkflowCancelledByUser: the run was cancelled: cancel_run() was called" in end


@on_each_backend
def test_fail(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(backend, "--end", "fail") == 0
    lines, end = paragraphs(capsys.readouterr().out)
    assert " ".join(lines[1:]).split() == TEXT[:30]
    assert "WorkflowFailedEvent: step_two failed at attempt 1: ProviderError(" in end
    assert "raised ProviderError: the provider hung up after 30 words\n" in end


@on_each_backend
@pytest.mark.parametrize(
    ("argv", "asked", "came"),
    [
        (["--end", "timeout", "--timeout", "60"], "WorkflowTimedOutEvent", "StopEvent"),
    ],
)
def test_another_end_than_asked_for(
    backend: str, argv: list[str], asked: str, came: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(backend, *argv) == 1
    out, err = capsys.readouterr()
    assert f"  {came}: " in out
    assert err == f"expected {asked}, but got {came}\n"


@on_each_backend
def test_the_text_fills_lines_of_80_columns(
    backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    demo(backend)
    lines, _ = paragraphs(capsys.readouterr().out)
    for line, following in pairwise(lines[1:-1]):
        assert line == line.strip()
        assert len(line) <= 80 < len(f"{line} {following.split()[0]}")


@on_each_backend
def test_each_word_is_flushed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def flush(self) -> None:
            seen.add(self.getvalue().rstrip("\n"))

    seen: set[str] = set()
    monkeypatch.setattr(sys, "stdout", Screen())
    demo(backend)
    for count in range(1, len(TEXT) + 1):
        shown = " ".join(["Step one is happening", *TEXT[:count]])
        assert shown in {text.replace("\n", " ") for text in seen}


async def test_words_arrive_while_the_run_goes_on(anyio_backend: tuple[str, Any]) -> None:
    handler = DemoWorkflow(SlowText(" ".join(TEXT)), timeout=30).run()
    begin = anyio.current_time()
    words = []
    async for event in handler.stream_events():
        if isinstance(event, ProgressEvent) and event.msg.endswith(" "):
            words.append(event.msg)
            assert anyio.current_time() - begin == pytest.approx(0.03 * len(words), abs=0.001)
    assert words == [f"{word} " for word in TEXT]
    assert type(event) is StopEvent
    assert anyio.current_time() - begin < 4


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: python -m anyio_workflows")
    assert "demo" in out
    assert not err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", ""])
def test_timeout_must_be_a_positive_number(
    seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", f"--timeout={seconds}"])
    assert caught.value.code == 2
    assert f"not a positive number of seconds: '{seconds}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["demo", "--end", "never"], "'never'"),
        (["demo", "--backend", "curio"], "'curio'"),
        (["dance"], "'dance'"),
    ],
)
def test_unknown_choices(argv: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert f"invalid choice: {shown}" in capsys.readouterr().err


def test_trio_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trio", None)
    assert main(["demo", "--backend", "trio"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert 'pip install "anyio-workflows[trio]"' in err


@on_each_backend
def test_in_a_process_of_its_own(backend: str) -> None:
    command = [sys.executable, "-W", "error", "-m", "anyio_workflows", "demo", "--end", "cancel"]
    done = subprocess.run(
        [*command, "--backend", backend],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert "WorkflowCancelledEvent" in done.stdout
