"""`anyio-workflows run` in processes of its own: signals, pipes, and terminals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .cli import COMMAND, ROOT, Process, Terminal, here, interruptible, run_command
from .conftest import BACKENDS

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.usefixtures("interruptible"),
]
interruptible = interruptible

in_a_terminal = pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo terminals")


def test_pipes_get_the_result_and_progress_apart(backend: str):
    done = run_command("run", here("Greet"), "name=Ada", "--backend", backend)
    assert (done.status, done.out) == (0, "hello Ada\n")
    assert done.err.splitlines()[-1].startswith("completed after ")


def test_answers_are_read_from_standard_input(backend: str):
    typed = "no\nshorter\n\nmaybe\nyes\nfine\n2\n"
    done = run_command("run", here("Ask"), "--answer", "ask", "--backend", backend, typed=typed)
    assert (done.status, json.loads(done.out)) == (0, ["shorter", "fine"])
    assert "approved (true or false): approved: expected true or false, got 'maybe'" in done.err


def test_answers_are_read_from_a_file(backend: str, tmp_path: Path):
    (tmp_path / "answers").write_text('{"n": 1}')  # without the end of a line
    with (tmp_path / "answers").open() as answers:
        done = subprocess.run(
            [*COMMAND, "run", here("AskFreely"), "--answer", "ask", "--backend", backend, "-q"],
            stdin=answers,
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
    assert json.loads(done.stdout) == {"n": 1}


def test_at_the_end_of_the_input_the_question_stays_open(backend: str):
    done = run_command(
        *("run", here("Ask"), "--answer", "ask", "--backend", backend, "--timeout", "1"),
        typed="yes\n",
    )
    assert (done.status, done.out) == (124, "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of POSIX")
def test_standard_input_that_is_closed_has_no_answers(backend: str):
    command = [*COMMAND, "run", here("Ask"), "--answer", "ask", "--backend", backend]
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" <&-', "sh", *command, "--timeout", "1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (124, "")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_any_text_is_written_in_any_encoding(backend: str, encoding: str):
    """A name that is not UTF-8, such as that of a file, has characters that no encoding knows."""

    def run(*options: str) -> bytes:
        return subprocess.run(
            [*COMMAND, "run", here("Greet"), b"name=Zo\xc3\xab \xe2\x98\x83 \xff", *options],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"},
        ).stdout

    said = "hello Zo\xeb \u2603 \udcff"
    assert run("--backend", backend) == f"{said}\n".encode(encoding, "backslashreplace")
    *_, end = run("--backend", backend, "--json").decode(encoding).splitlines()
    assert json.loads(end)["result"] == said


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_run_and_its_cleanup_is_awaited(backend: str, sign: int):
    process = Process("run", here("Slow"), "--backend", backend, "--json")
    process.line_with("asleep")
    process.send(sign)
    done = process.end()
    assert done.status == 130
    *events, end, run = done.lines
    assert [event["type"] for event in events] == ["Said", "WorkflowCancelledEvent"]
    assert events[0]["data"]["text"] == "tidied up"
    assert end["end"]["status"] == run["status"] == "cancelled"
    assert done.err == ""


def test_a_second_signal_does_not_wait_for_the_cleanup(backend: str):
    process = Process("run", here("stubborn"), "--backend", backend, "--json")
    process.line_with("asleep")
    process.send(signal.SIGINT)
    process.line_with("tidying up")
    process.send(signal.SIGINT)
    done = process.end()
    assert (done.status, done.out, done.err) == (130, "", "the cleanup was not awaited\n")


def test_sigterm_lets_go_of_a_run_that_is_kept(backend: str, tmp_path: Path):
    kept = ("--db", f"sqlite:///{tmp_path / 'runs.db'}", "--run-id", "slow-1", "--backend", backend)
    process = Process("run", here("Ask"), *kept)
    process.line_with("? ask asks", "stderr")
    process.send(signal.SIGTERM)
    done = process.end()
    assert (done.status, done.out) == (143, "")
    assert "run slow-1 is kept in sqlite:///" in done.err
    again = run_command("run", here("Ask"), *kept, "--answer", "approved=true", "comment=at last")
    assert (again.status, json.loads(again.out)) == (0, ["at last"])
    assert again.err.count("ask asks") == 1


def test_a_reader_that_leaves_ends_the_command_quietly(backend: str):
    process = Process("run", here("Greet"), "name=Ada", "times=2", "--json", "--backend", backend)
    assert process.process.stdout is not None
    process.process.stdout.readline()
    process.process.stdout.close()
    assert process.process.stderr is not None
    err = process.process.stderr.read()
    assert process.process.wait() == 141
    assert [line for line in err.splitlines() if not line.startswith("Executing <")] == []
    process.timer.cancel()
    process.process.stderr.close()


# --- Terminals ----------------------------------------------------------------------------------------


@in_a_terminal
@pytest.mark.parametrize("columns", [80, 120])
def test_the_live_view_shows_steps_events_and_a_question(backend: str, columns: int):
    pytest.importorskip("rich")
    terminal = Terminal("run", here("Ask"), "--backend", backend, columns=columns)
    at = terminal.wait_for("approved (true or false):")
    shown = terminal.text
    assert "1 waiting" in shown
    assert "Question  text=" in shown
    assert "? ask asks: good enough, at try 0?" in shown
    terminal.type("nX\x7f\n")
    at = terminal.wait_for('comment (string, default ""):', at)
    terminal.type("zu kürz\x7f\x7f\x7f\x7furz\x17kurz\n")
    at = terminal.wait_for("level (integer, default 1):", at)
    terminal.type("x\n")
    at = terminal.wait_for("expected integer, got 'x'", at)
    terminal.type("2\n")
    at = terminal.wait_for("at try 1?", at)
    at = terminal.wait_for("approved (true or false):", at)
    terminal.type("y\n")
    terminal.wait_for("comment (", at)
    terminal.type("\n")
    terminal.wait_for("level (", at)
    terminal.type("\n")
    assert terminal.end() == 0
    assert max(map(len, shown.split("\n"))) <= columns
    assert "completed" in terminal.text
    result = terminal.text[terminal.text.rindex("[\n") :]
    assert json.loads(result) == ["zu kurz", ""]


@in_a_terminal
def test_ctrl_c_in_the_live_view(backend: str):
    pytest.importorskip("rich")
    terminal = Terminal("run", here("Slow"), "--backend", backend)
    at = terminal.wait_for("asleep")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "tidied up" in terminal.text[at:]
    assert "cancelled after" in terminal.text[at:]
    assert "WorkflowCancelledByUser" not in terminal.text  # said once is enough
    assert "Traceback" not in terminal.text


@in_a_terminal
def test_a_second_ctrl_c_gives_the_terminal_back(backend: str):
    pytest.importorskip("rich")
    import termios

    terminal = Terminal("run", here("stubborn"), "--backend", backend)
    before = termios.tcgetattr(terminal.file)
    terminal.wait_for("asleep")
    assert termios.tcgetattr(terminal.file)[3] != before[3]
    terminal.type("\x03")
    at = terminal.wait_for("tidying up")
    terminal.type("\x03")
    terminal.wait_for("the cleanup was not awaited", at)
    assert termios.tcgetattr(terminal.file)[3] == before[3]
    assert terminal.end() == 130


@in_a_terminal
def test_a_failure_stands_below_the_live_view(backend: str):
    pytest.importorskip("rich")
    terminal = Terminal("run", here("Fail"), "--backend", backend)
    assert terminal.end() == 1
    assert "ValueError: out of stock and out of order" in terminal.text
    assert "in step break_down, attempt 1" in terminal.text


@in_a_terminal
@pytest.mark.parametrize("options", [["--plain"], []])
def test_a_person_is_asked_in_plain_lines_too(backend: str, options: list[str]):
    term = "xterm" if options else "dumb"
    terminal = Terminal("run", here("Ask"), "--backend", backend, *options, term=term)
    at = terminal.wait_for("approved (true or false): ")
    terminal.type("yes\n")
    terminal.wait_for("comment (", at)
    terminal.type("good\n")
    terminal.wait_for("level (", at)
    terminal.type("\n")
    assert terminal.end() == 0
    assert terminal.text.rstrip().endswith('[\n  "good"\n]')


@in_a_terminal
def test_a_question_that_somebody_else_answers_disappears(backend: str, tmp_path: Path):
    pytest.importorskip("rich")
    kept = ("--db", f"sqlite:///{tmp_path / 'runs.db'}", "--run-id", "ask-1", "--backend", backend)
    terminal = Terminal("run", here("Ask"), *kept)
    terminal.wait_for("approved (true or false):")
    terminal.type("y")
    other = run_command("run", here("Ask"), *kept, "--answer", "approved=true", "comment=faster")
    assert other.status == 0
    assert terminal.end() == 0
    assert json.loads(terminal.text[terminal.text.rindex("[\n") :]) == ["faster"]
