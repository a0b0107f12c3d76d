"""`validate`, `draw`, `--help` and `--version`."""

from __future__ import annotations

from pathlib import Path

import pytest

import anyio_workflows
from anyio_workflows._cli.main import main
from anyio_workflows.drawing import DrawingFormat, draw

from .cli import Greet, here, run_command
from .running import run_script

FAULTY = """
from anyio_workflows import Event, StartEvent, StopEvent, Workflow, step

class Lost(Event):
    pass

class Other(Event):
    pass

class Faulty(Workflow):
    @step
    async def first(self, ev: StartEvent) -> Lost: ...
    @step
    async def second(self, ev: Other) -> StopEvent: ...

class Fine(Workflow):
    @step
    async def first(self, ev: StartEvent) -> StopEvent: ...
"""


def test_validate_names_every_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "validate_me.py"
    file.write_text(FAULTY)
    assert main(["validate", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == f"{file}:Fine: valid\n"
    assert f"{file}:Faulty: Faulty has 2 faults:\n" in err
    assert "Lost" in err
    assert "Other" in err


def test_validate_continues_after_what_is_not_there(capsys: pytest.CaptureFixture[str]):
    assert (
        main(["validate", "nowhere:W", here("Greet"), here("NeedsArguments"), here("parrot")]) == 2
    )
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{here(name)}: valid" for name in ("Greet", "NeedsArguments", "parrot")
    ]
    assert err.startswith("there is no module nowhere")


@pytest.mark.parametrize(
    ("name", "options", "drawn"),
    [
        ("a.svg", [], "svg"),
        ("a.mmd", [], "mermaid"),
        ("a.gv", [], "dot"),
        ("a.txt", [], "text"),
        ("a.md", ["--format", "mermaid"], "mermaid"),
    ],
)
def test_draw_to_a_file(tmp_path: Path, name: str, options: list[str], drawn: DrawingFormat):
    file = tmp_path / name
    assert main(["draw", here("Greet"), "-o", str(file), *options]) == 0
    assert file.read_text("utf-8").rstrip() == draw(Greet, drawn).rstrip()


@pytest.mark.parametrize("options", [[], ["--format", "text"]])
def test_draw_to_standard_output(options: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["draw", here("Greet"), *options]) == 0
    assert capsys.readouterr().out == draw(Greet, "text")


def test_draw_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["draw", here("Greet"), "-o", str(tmp_path / "a.png")]) == 2
    assert "tells no format (.svg, .mmd" in capsys.readouterr().err
    assert main(["draw", here("Greet"), "-o", str(tmp_path / "no" / "a.svg")]) == 1
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"anyio-workflows {anyio_workflows.__version__}\n"
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: anyio-workflows [-h] [--version] COMMAND")


def test_help_imports_no_server_no_client_and_no_rich():
    done = run_script("""
        import sys
        before = set(sys.modules)
        from anyio_workflows._cli.main import main
        main([])
        late = {"starlette", "rich", "httpx", "httpx2", "uvicorn", "sqlite3", "anyio_workflows.runtime"}
        print(sorted(late & (set(sys.modules) - before)), file=sys.stderr)
    """)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_python_m_is_the_same():
    assert run_command("--version").out == f"anyio-workflows {anyio_workflows.__version__}\n"
    assert run_command().out.startswith("usage: python -m anyio_workflows [-h]")
    assert run_command("dance").status == 2
