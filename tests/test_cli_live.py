"""What the live view draws, and the keys that it takes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

rich_console = pytest.importorskip("rich.console")
from anyio_workflows._cli.keys import LineEditor, LineReader  # noqa: E402
from anyio_workflows._cli.live import LiveView  # noqa: E402

COUNTS = dict.fromkeys(
    ("queued", "running", "waiting", "delayed", "done", "failed", "cancelled", "retried"), 0
)
TIME = "2026-11-28T10:00:0{}.000Z"


def run(**changes: Any) -> dict[str, Any]:
    steps = {
        "plan": {**COUNTS, "done": 1},
        "a_step_with_a_very_long_name_that_does_not_fit": COUNTS,
        "search": {
            **COUNTS,
            "queued": 2,
            "running": 3,
            "delayed": 1,
            "done": 5,
            "failed": 1,
            "retried": 4,
        },
    }
    return {
        "id": "run-1",
        "workflow": "research",
        "status": "running",
        "created": TIME.format(0),
        "ended": None,
        "last_seq": 9,
        "questions": 0,
        "metadata": {},
        "error": None,
        "steps": steps,
        **changes,
    }


def event(seq: int, name: str, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"seq": seq, "time": TIME.format(seq), "type": name, "bases": [], "data": data, **more}


QUESTION = {
    "id": "q1",
    "step": "review",
    "answer_type": "Review",
    "question": {"type": "Ask", "data": {"text": "publish?", "report": "a long text " * 100}},
    "schema": {},
}


@pytest.fixture(params=[(80, 24), (120, 40), (40, 12)], ids=str)
def view(request: pytest.FixtureRequest) -> Iterator[LiveView]:
    from rich.live import Live

    width, height = request.param
    console = rich_console.Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )
    view = LiveView(internal=False, console=console)
    view.live = Live(console=console, auto_refresh=False)
    view.begin(run(), "starts")
    return view


def drawn(view: LiveView) -> list[str]:
    """Return the lines of the picture."""
    lines = view.console.render_lines(view._drawn(), pad=False)
    return ["".join(part.text for part in line) for line in lines]


def test_the_picture_fits_into_the_terminal(view: LiveView):
    for number in range(1, 9):
        view.show(event(number, "Progress", {"message": "x" * 300, "number": number}))
    view.update(run(questions=1), [QUESTION])
    width, height = view.console.size
    lines = drawn(view)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_steps_have_counts_and_a_bar(view: LiveView):
    lines = drawn(view)
    assert lines[0].startswith("research run-1")
    assert "running" in lines[0]
    [line] = [line for line in lines if line.startswith("  search")]
    assert "━" in line
    counts = "3 running  2 queued  1 delayed  4 done  1 failed  4 retried"
    assert counts in line or (view.console.width < 120 and "…" in line)
    assert any(line.startswith("  a_step") for line in lines)


def test_tokens_are_one_line_that_shows_its_end(view: LiveView):
    for number in range(1, 100):
        view.show({**event(1, "Token", {"text": f"word{number} "}), "seq": number})
    view.show(event(9, "Progress", {"message": "done", "n": 1}))
    view.show(event(9, "StopEvent", {"result": "text"}))
    lines = [line for line in drawn(view) if "Token" in line]
    assert len(lines) == 1
    assert "word99" in lines[0]
    assert "Progress  message=done" in "\n".join(drawn(view))


def test_failures_are_shown_and_other_changes_are_not(view: LiveView):
    data = {"name": "search", "step_state": "running", "input_event_name": "Plan", "attempt": 1}
    view.show(event(1, "StepStateChanged", data, internal=True))
    failed = {**data, "step_state": "not_running", "outcome": "retrying", "error": "E: x\x1b[2J"}
    view.show(event(1, "StepStateChanged", failed, internal=True))
    text = "\n".join(drawn(view))
    assert "running on Plan" not in text
    assert "step search failed" in text
    assert "\x1b" not in text


def test_a_gap_is_named(view: LiveView):
    view.show({"gap": {"first": 3, "last": 7, "reason": "trimmed"}})
    assert "events 3 to 7" in "\n".join(drawn(view))


def test_the_question_that_is_being_answered_is_shown(view: LiveView):
    other = {**QUESTION, "id": "q2", "step": "second"}
    view.update(run(questions=2), [QUESTION, other])
    text = "\n".join(drawn(view))
    assert "? review asks: publish?" in text
    assert "and 1 more open question" in text
    view._asked = "q2"
    assert "? second asks: publish?" in "\n".join(drawn(view))


# --- Keys ---------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    out, into = os.pipe()
    yield out, into
    for file in (out, into):
        with suppress(OSError):
            os.close(file)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (b"hello\n", "hello"),
        (b"hellp\x7fo\r", "hello"),
        (b"x\x15hello\n", "hello"),
        (b"hello you\x17\n", "hello "),
        (b"one two  \x17three\n", "one three"),
        (b"\x7f\x7fa\x00\x01b\n", "ab"),
        ("grün €\n".encode(), "grün €"),
        (b"\x04", None),
        (b"a\x04\n", "a"),
        (b"\n", ""),
    ],
)
async def test_keys_edit_a_line(
    anyio_backend: Any, pipe: tuple[int, int], typed: bytes, line: str | None
):
    changes: list[str] = []
    editor = LineEditor(lambda: changes.append(editor.text))
    os.write(pipe[1], typed)
    assert await editor.read(pipe[0]) == line


async def test_keys_behind_the_end_of_a_line_are_for_the_next_one(
    anyio_backend: Any, pipe: tuple[int, int]
):
    editor = LineEditor(lambda: None)
    os.write(pipe[1], b"one\ntwo\nth")
    assert await editor.read(pipe[0]) == "one"
    assert await editor.read(pipe[0]) == "two"
    os.write(pipe[1], b"ree\n")
    assert await editor.read(pipe[0]) == "three"
    os.write(pipe[1], b"\x1b[A")  # an arrow
    os.close(pipe[1])
    assert await editor.read(pipe[0]) is None


async def test_lines_of_standard_input(
    anyio_backend: Any, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    os.write(pipe[1], b"one\r\n\ntwo")
    os.close(pipe[1])
    with os.fdopen(os.dup(pipe[0])) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        reader = LineReader()
        assert [await reader.read() for _ in range(4)] == ["one", "", "two", None]
