"""The page about the server says what is true: its program and its commands give what it shows."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from anyio_workflows.server import Verb, WorkflowServer
from anyio_workflows.server._routes import ROUTES

from .conftest import BACKENDS
from .running import PATIENCE

PAGE = (Path(__file__).parent.parent / "docs" / "server.md").read_text("utf-8")
SECTIONS = {section.partition("\n")[0]: section for section in PAGE.split("\n## ")}
[PROGRAM] = [
    code
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    if 'if __name__ == "__main__":' in code
]
SERVE = "    await server.serve()\n"
START = """    async with anyio.create_task_group() as group:
        print(await group.start(server.serve, "127.0.0.1", 0), flush=True)
"""


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Serve the program of the page, at a port that is free; give where."""
    pytest.importorskip("uvicorn" if request.param == "asyncio" else "hypercorn")
    assert SERVE in PROGRAM
    program = PROGRAM.replace(SERVE, START)
    program = program.replace("anyio.run(main)", f"anyio.run(main, backend={request.param!r})")
    command = [sys.executable, "-X", "dev", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().removeprefix("http://").strip().rstrip("/")
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


COMMANDS = [
    (command, answer)
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for command, answer in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_give_what_the_page_shows(place: str):
    assert len(COMMANDS) == 8
    for command, answer in COMMANDS:
        assert "localhost:8000" in command
        ran = subprocess.run(
            command.replace("localhost:8000", place),
            shell=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        shown = ".*?".join(map(re.escape, answer.strip().split("...")))
        assert re.fullmatch(shown, ran.stdout.strip(), re.DOTALL), (command, ran.stdout)


def test_h7_the_description_is_where_the_command_of_the_page_asks_for_it(place: str):
    [url] = re.findall(r"^    openapi-python-client .* --url (\S+)$", PAGE, re.MULTILINE)
    with urllib.request.urlopen(url.replace("127.0.0.1:8000", place), timeout=PATIENCE) as answer:
        described = json.load(answer)
    assert "order.input" in described["components"]["schemas"]


def test_the_table_of_routes_is_that_of_the_code():
    rows = re.findall(r"^\| (`(?:GET|POST|DELETE) .*?) \|", SECTIONS["Routes"], re.MULTILINE)
    shown = {route for row in rows for route in re.findall(r"`(.*?)`", row)}
    routes = {
        f"{route.method} {route.template}"
        for route in ROUTES
        if not route.is_page or route.path == "/"
    }
    assert shown == routes


def test_h7_the_defaults_of_the_limits_are_those_of_the_code():
    given = inspect.signature(WorkflowServer).parameters
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", SECTIONS["Limits"], re.MULTILINE))
    units = {"MiB": 2**20, "KiB": 2**10, "s": 1}
    for name, text in rows.items():
        number, _, unit = text.partition(" ")
        assert given[name].default == int(number.replace(",", "")) * units.get(unit, 1)
    assert set(rows) == {name for name in given if name.startswith("max_") or name == "heartbeat"}


def test_every_verb_and_every_status_is_named():
    for verb in get_args(Verb):
        assert f"`{verb}`" in SECTIONS["Security"]
    numbers = re.findall(r"^\| ([\d, ]+) \|", SECTIONS["Errors"], re.MULTILINE)
    shown = {int(number) for row in numbers for number in row.split(",")}
    assert shown >= {status for route in ROUTES for status in route.problems}
    assert shown >= {400, 401, 403, 405, 413, 415, 503}
