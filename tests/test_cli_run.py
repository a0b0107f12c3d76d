"""`anyio-workflows run`: what it prints, and its exit status, on both backends."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from .cli import Cli, here
from .conftest import BACKENDS

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def cli(backend: str, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(backend, capsys)


# --- What is printed ----------------------------------------------------------------------------------


def test_the_result_is_the_output_and_progress_is_not(cli: Cli):
    done = cli("run", here("Greet"), "name=Ada Lovelace", "times=2")
    assert (done.status, done.out) == (0, "hello Ada Lovelace\n")
    lines = done.err.splitlines()
    assert lines[0].startswith("greet ")
    assert lines[0].endswith(" starts")
    assert [line.split(maxsplit=3)[0] for line in lines[1:-1]] == ["1", "2", "3", "6"]
    assert lines[1].endswith(" Said  text=hello  number=0")
    assert lines[3].endswith(" Word  how are you")  # tokens are joined
    assert lines[4].endswith(' StopEvent  result="hello Ada Lovelace"')
    assert lines[5].startswith("completed after ")


def test_events_shows_each_change_and_each_token(cli: Cli):
    done = cli("run", here("Greet"), "name=Ada", "--events")
    lines = [line[15:] for line in done.err.splitlines()[1:-1]]
    assert "step greet running on Greeting" in lines
    assert lines[-2:] == ["step greet returned StopEvent", 'StopEvent  result="hello Ada"']
    assert [line for line in lines if line.startswith("Word")] == [
        "Word  how",
        "Word  are",
        "Word  you",
    ]


def test_a_message_is_no_token(cli: Cli):
    done = cli("run", here("Messages"))
    lines = [line[15:] for line in done.err.splitlines()[1:-2]]
    assert lines == ["Word  first step", "Word  second step", "Word  onetwo three"]


def test_p7_values_of_foreign_classes_come_in_and_go_out_by_the_hooks_of_the_workflow(cli: Cli):
    done = cli("run", here("with_locks"), "lock=a", "--answer", "lock=b", "--json")
    assert done.status == 0
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["data"] for line in lines[:2]] == [{"lock": "a"}, {"result": "b"}]
    assert lines[-1]["result"] == "b"


def test_quiet_prints_the_result_only(cli: Cli):
    done = cli("run", here("Greet"), "name=Ada", "-q")
    assert (done.status, done.out, done.err) == (0, "hello Ada\n", "")
    assert cli("run", here("Fail"), "--quiet").err.startswith("failed after ")


def test_json_is_what_the_wire_says(cli: Cli):
    done = cli("run", here("Greet"), "name=Ada", "--json", "--run-id", "hello-1")
    *events, end, run = done.lines
    assert [event["type"] for event in events] == ["Said", "Word", "Word", "Word", "StopEvent"]
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5]
    assert events[0]["data"] == {"text": "hello", "number": 0}
    assert end == {"end": {"status": "completed", "last": 5}}
    assert (run["id"], run["status"], run["result"]) == ("hello-1", "completed", "hello Ada")
    assert run["steps"]["greet"]["done"] == 1
    assert (done.status, done.err) == (0, "")


def test_json_with_events_has_the_internal_ones(cli: Cli):
    done = cli("run", here("Greet"), "name=Ada", "--json", "--events")
    internal = [line for line in done.lines if line.get("internal")]
    assert {line["type"] for line in internal} == {"StepStateChanged"}


@pytest.mark.parametrize(
    ("given", "result"),
    [
        (
            ["n=5", "s=plain text", 'o={"a": [1]}', 'q="5"', "b=true", "e="],
            {"n": 5, "s": "plain text", "o": {"a": [1]}, "q": "5", "b": True, "e": ""},
        ),
        ([], {}),
        (["a=b=c"], {"a": "b=c"}),
    ],
)
def test_an_open_start_event_takes_json_or_text(cli: Cli, given: list[str], result: object):
    done = cli("run", here("Open"), *given)
    assert (done.status, json.loads(done.out)) == (0, result)


def test_fields_may_stand_behind_options(cli: Cli):
    done = cli("run", here("Greet"), "--plain", "name=Ada", "--events", "loud=true")
    assert done.out == "hello ADA\n"


def test_input_comes_from_a_file_or_from_standard_input(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "input.json"
    file.write_text('{"name": "Ada", "loud": true}')
    assert cli("run", here("Greet"), "--input", str(file), "name=Grace").out == "hello GRACE\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"name": "Ada"}'))
    assert cli("run", here("Greet"), "--input", "-").out == "hello Ada\n"


def test_what_a_run_says_cannot_steer_the_terminal(cli: Cli):
    done = cli("run", here("Open"), "s=\x1b[2Jgone\nnext")
    assert "\x1b" not in done.err
    assert "�[2Jgone next" in done.err or "\\u001b[2Jgone\\nnext" in done.err


# --- How it ends --------------------------------------------------------------------------------------


def test_a_failure_is_status_1_and_says_where(cli: Cli):
    done = cli("run", here("Fail"))
    assert (done.status, done.out) == (1, "")
    said = r"failed after \d+\.\d s: ValueError: out of stock and out of order"
    assert re.search(said, done.err)
    assert "  in step break_down, attempt 1" in done.err
    assert "Traceback" not in done.err


def test_the_traceback_on_request(cli: Cli):
    done = cli("run", here("Fail"), "--traceback")
    assert done.status == 1
    assert "Traceback" in done.err
    assert 'raise ValueError("out of stock' in done.err


@pytest.mark.parametrize("given", [[], ["--timeout", "3"]])
def test_out_of_time_is_status_124(cli: Cli, given: list[str]):
    done = cli("run", here("Slow"), *given)
    assert (done.status, done.out) == (124, "")
    assert "tidied up" in done.err


def test_a_failure_as_json(cli: Cli):
    done = cli("run", here("Fail"), "--json")
    assert done.status == 1
    assert done.lines[-1]["error"]["type"] == "ValueError"
    assert done.lines[-1]["result"] is None
    assert done.err == ""


# --- Questions ----------------------------------------------------------------------------------------


def test_answers_are_given_in_turn(cli: Cli):
    done = cli(
        *("run", here("Ask"), "--answer", "approved=false", "comment=no, shorter"),
        *("--answer", "Answer", "approved=true", "comment=yes"),
    )
    assert (done.status, json.loads(done.out)) == (0, ["no, shorter", "yes"])
    assert "? ask asks: good enough, at try 1?  why: nobody else knows" in done.err


def test_the_last_answer_is_used_again(cli: Cli):
    done = cli("run", here("Ask"), "--answer", "approved=false", "comment=no")
    assert json.loads(done.out) == ["no"] * 10


def test_a_free_answer(cli: Cli):
    done = cli("run", here("AskFreely"), "--answer", "response=yes", "n=1")
    assert json.loads(done.out) == {"response": "yes", "n": 1}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["comment=x"], "--answer lacks approved; fields of Answer: approved (true or false), "),
        (["approved=maybe"], "approved: expected true or false, got 'maybe'"),
        (["approved=true", "coment=x"], "Answer has no field 'coment', did you mean 'comment'?"),
    ],
)
def test_an_answer_that_does_not_fit_is_a_usage_error(cli: Cli, given: list[str], complaint: str):
    done = cli("run", here("Ask"), "--answer", *given)
    assert done.status == 2
    assert complaint in done.err


def test_answers_cannot_be_asked_for_where_only_json_is_written(cli: Cli):
    done = cli("run", here("Ask"), "--json", "--answer", "ask")
    assert (done.status, done.out) == (2, "")
    assert "--answer ask needs a person" in done.err


def test_a_question_without_an_answer_stays_open(cli: Cli):
    done = cli("run", here("Ask"), "--answer", "Other", "x=1", "--timeout", "60")
    assert done.status == 124
    assert "? ask asks: good enough" in done.err
    said = "nothing here answers ask: Ctrl-C cancels the run; to answer, give --answer field=value ..., or"
    assert done.err.count(said) == 1
    assert "fields of Answer: approved (true or false), " in done.err


@pytest.mark.parametrize("how", ["-q", "--json", "--plain"])
def test_a_question_that_nothing_answers_is_not_waited_for_in_silence(cli: Cli, how: str):
    done = cli("run", here("Ask"), how, "--timeout", "60")
    assert done.status == 124
    assert done.err.count("nothing here answers ask: Ctrl-C cancels the run; to answer") == 1


# --- Runs that are kept -------------------------------------------------------------------------------


def test_a_run_in_a_database_is_continued(cli: Cli, tmp_path: Path, no_threads: None):
    kept = ["run", here("Greet"), "--db", f"sqlite:///{tmp_path / 'runs.db'}", "--run-id", "hello"]
    first = cli(*kept, "name=Ada")
    assert (first.status, first.out) == (0, "hello Ada\n")
    again = cli(*kept)  # the input counts for the first start only
    assert (again.status, again.out) == (0, "hello Ada\n")
    assert again.err.splitlines()[0] == "greet hello continues"
    assert again.err.splitlines()[1:-1] == first.err.splitlines()[1:-1]


def test_a_run_of_another_workflow_is_not_continued(cli: Cli, tmp_path: Path, no_threads: None):
    kept = ("--db", f"sqlite:///{tmp_path / 'runs.db'}", "--run-id", "hello")
    assert cli("run", here("Greet"), *kept, "name=Ada").status == 0
    other = cli("run", here("Open"), *kept)
    assert (other.status, other.out) == (2, "")
    assert other.err.startswith("run hello is of workflow greet, which is not registered")


# --- What cannot be started ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            [],
            "the input does not fit: $.name: missing, Greeting needs it; fields of Greeting: name (string), times (integer, default 1), loud (true or false, default false)",
        ),
        (
            ["nam=Ada"],
            "Greeting has no field 'nam', did you mean 'name'?; fields of Greeting: name",
        ),
        (["name=Ada", "times=two"], "times: expected integer, got 'two'"),
        (
            ["name=Ada", "times=1.5"],
            "the input does not fit: $.times: expected int, got 1.5 (float)",
        ),
        (["name=Ada", "loud=yes"], "loud: expected true or false, got 'yes'"),
        (["name"], "'name' is no field=value; fields of Greeting: "),
        (["name=Ada", "name=Grace"], "name is given twice"),
        (["name=Ada", "--run-id", "a/b"], "run_id must be a str of 1 to 128 of the characters"),
        (["name=Ada", "--db", "mysql://x"], "there is no database 'mysql://' here"),
        (["--input", "/nowhere.json"], "/nowhere.json cannot be read: No such file or directory"),
    ],
)
def test_usage_errors(cli: Cli, given: list[str], complaint: str):
    done = cli("run", here("Greet"), *given)
    assert (done.status, done.out) == (2, "")
    assert complaint in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1]", "has to be a JSON object, not '[1]'"),
        ("{", "is no JSON: "),
        ('{"a": NaN}', "NaN is no JSON"),
    ],
)
def test_input_files_are_read_strictly(cli: Cli, tmp_path: Path, text: str, complaint: str):
    file = tmp_path / "input.json"
    file.write_text(text)
    done = cli("run", here("Open"), "--input", str(file))
    assert done.status == 2
    assert complaint in done.err


@pytest.mark.parametrize("option", [["--bogus"], ["--timeout", "0"], ["--timeout", "soon"]])
def test_options_that_do_not_exist_or_fit(cli: Cli, option: list[str]):
    assert cli("run", here("Open"), *option).status == 2
