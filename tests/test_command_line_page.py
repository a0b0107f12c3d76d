"""The page about the command line says what is true: its commands print what it shows."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anyio_workflows._cli import problems
from anyio_workflows._cli.main import main
from anyio_workflows._cli.parser import _parser

from .cli import COMMAND, ROOT, Process, without_slowness
from .running import PATIENCE

PAGE = (ROOT / "docs" / "command-line.md").read_text("utf-8")
SECTIONS = {section.partition("\n")[0]: section for section in PAGE.split("\n## ")}
SHOWN = {
    heading: [
        (command, shown)
        for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL)
        for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n|\n)*)", block, re.MULTILINE)
    ]
    for heading, section in SECTIONS.items()
    if "```console" in section
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the program of the page."""
    folder = tmp_path_factory.mktemp("shop")
    [program] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (folder / "shop.py").write_text(program)
    return folder


@pytest.fixture
def url(shop: Path) -> Iterator[str]:
    for name in ("starlette", "uvicorn", "orjson", "httpx2"):
        pytest.importorskip(name)
    process = Process("serve", str(shop / "shop.py"), "--port", "0")
    yield process.line_with(" at http").rpartition(" at ")[2]
    process.send(signal.SIGTERM)
    assert process.end().status == 0


def printed(command: str, folder: Path, **environment: str) -> str:
    """Return what a command of the page prints: progress and problems first, then the result."""
    name, *argv = shlex.split(command)
    assert name == "anyio-workflows"
    done = subprocess.run(
        [*COMMAND, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
    )
    return without_slowness(done.stderr) + done.stdout


def settled(text: str) -> list[str]:
    """Return lines without what is different each time: ids, times, and the spaces around them."""
    text = re.sub(r"\b[0-9a-f]{32}\b|5f1c…", "ID", text)
    text = re.sub(r"\b[\d.]+(?:e-\d+)? m?s\b|(?<=\s)\d+:\d\d\b", "TIME", text)
    text = re.sub(r'"time":"[^"]*"', '"time":"TIME"', text)
    text = re.sub(r'("status":"completed"),(?!"last").*', r"\1,...}", text)
    # A question is seen by the reader of events and by the look at the run: either may be first.
    lines = [re.sub(r" +", " ", line).rstrip() for line in text.splitlines()]
    return sorted(lines, key=lambda line: "? buy asks" in line)


@pytest.mark.parametrize("heading", [name for name in SHOWN if name != "Runs on a server"])
def test_the_commands_print_what_the_page_shows(heading: str, shop: Path):
    for command, shown in SHOWN[heading]:
        assert settled(printed(command, shop)) == settled(shown), command


def test_the_commands_for_a_server_print_what_the_page_shows(shop: Path, url: str):
    for command, shown in SHOWN["Runs on a server"]:
        found = settled(printed(command, shop, ANYIO_WORKFLOWS_URL=url))
        assert found == settled(shown), command


def test_the_page_has_every_command_and_option():
    parser = _parser("anyio-workflows")
    [commands] = [one for one in parser._actions if isinstance(one.choices, dict)]
    text = PAGE.replace("\\|", "|")
    for name, command in dict[str, Any](commands.choices or {}).items():
        if name == "demo":
            continue
        assert re.search(rf"`{name}\b|anyio-workflows {name}\b", text), name
        for action in command._actions:
            names = set(action.option_strings) - {"-h", "--help"}
            if names:
                assert any(one in text for one in names), f"{name} {names}"


def test_the_exit_statuses_are_those_of_the_code():
    rows = re.findall(r"^\| (\d+) \| (\w+)", SECTIONS["Run a workflow"], re.MULTILINE)
    known = {
        problems.COMPLETED: "completed",
        problems.FAILED: "failed",
        problems.USAGE: "not",
        problems.TIMED_OUT: "timed",
        problems.CANCELLED: "cancelled",
        problems.LET_GO: "ended",
    }
    assert {int(number): word for number, word in rows} == known
    assert f"or {problems.NOT_ENDED} if the run has not ended" in PAGE


def test_the_readme_serves_an_example_that_can_be_served(capsys: pytest.CaptureFixture[str]):
    readme = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(r"anyio-workflows (\w+) (examples\S+)", readme)
    assert ("serve", "examples.research:Research") in commands
    for _, target in commands:
        assert main(["validate", target]) == 0
        assert capsys.readouterr().out == f"{target}: valid\n"
