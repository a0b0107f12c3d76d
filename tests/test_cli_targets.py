"""Workflows named on the command line: found, or missed with a message that says what there is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anyio_workflows import Workflow
from anyio_workflows._cli.problems import CommandError
from anyio_workflows._cli.targets import load, load_one

from .cli import Greet, here, parrot

APP = '''
from anyio_workflows import StartEvent, StopEvent, Workflow, step

class Base(Workflow):
    """Has no steps."""

class One(Base):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent()

class Two(One):
    pass

two = Two(timeout=3)
_hidden = One()
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty folder, the current one, from which modules are imported and forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def problem(text: str) -> str:
    """Return why a text names no workflow."""
    with pytest.raises(CommandError) as caught:
        load_one(text)
    return str(caught.value)


def test_a_class_or_an_instance():
    assert load_one(here("Greet")).thing is Greet
    assert load_one(here("parrot")).thing is parrot
    assert load_one(here("parrot")).instance() is parrot
    assert type(load_one(here("Greet")).instance()) is Greet


def test_the_current_folder_is_on_the_path(folder: Path):
    (folder / "app.py").write_text(APP)
    assert load_one("app:One").name == "app:One"
    (folder / "pack").mkdir()
    (folder / "pack" / "app.py").write_text(APP)
    assert load_one("pack.app:One").name == "pack.app:One"


@pytest.mark.parametrize("place", ["app.py", "./app.py", "sub/app.py"])
def test_a_file(folder: Path, place: str):
    file = folder / place
    file.parent.mkdir(exist_ok=True)
    (file.parent / "neighbour.py").write_text("number = 1")
    file.write_text(f"import neighbour\n{APP}")
    target = load_one(f"{place}:One")
    assert issubclass(target.thing, Workflow)
    assert target.name == f"{place}:One"


def test_a_module_stands_for_all_that_it_defines(folder: Path):
    (folder / "app.py").write_text(APP)
    found = {target.name: target.thing for target in load("app")}
    assert found.keys() == {"app:two", "app:One"}  # an instance stands for its class
    assert problem("app") == "module app defines 2 workflows; choose one: app:One, app:two"
    (folder / "single.py").write_text("from app import two\nfrom app import One")
    assert [target.name for target in load("single")] == ["single:two"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "nowhere:W",
            "there is no module nowhere in {cwd} or among the installed ones; give package.module:Workflow",
        ),
        (
            "ap:One",
            "there is no module ap in {cwd} or among the installed ones; did you mean 'app'?",
        ),
        ("pack.ap:One", "there is no module pack.ap; did you mean 'pack.app'?"),
        ("pack/ap.py:One", "there is no file pack/ap.py; did you mean 'app.py'?"),
        ("other/ap.py:One", "there is no file other/ap.py; give package.module:Workflow"),
        ("app:Tow", "module app has no Tow; did you mean 'Two'?"),
        ("app:One.two", "module app has no One.two; did you mean 'two'?"),
        ("app:StopEvent", "app:StopEvent is no workflow, but a type; known: One, Two, two"),
        ("app:", "'app:' names no workflow; give package.module:Workflow"),
        (":One", "':One' names no workflow"),
        ("", "'' names no workflow"),
        ("app:Workflow", "app:Workflow is no workflow, but a type"),
        ("empty", "module empty defines no workflow"),
    ],
)
def test_what_is_not_there(folder: Path, text: str, said: str):
    (folder / "pack").mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "pack" / "app.py").write_text(APP)
    (folder / "empty.py").write_text("")
    assert problem(text).startswith(said.format(cwd=folder))


@pytest.mark.parametrize("text", ["app:One", "app.py:One"])
@pytest.mark.parametrize(
    ("source", "line", "last"),
    [
        ("\n1 / 0", 2, "ZeroDivisionError: division by zero"),
        ("def f():\n    return 1 / 0\n\nf()", 2, "ZeroDivisionError: division by zero"),
        ("import no_such_module", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys\nsys.exit(3)", 2, "SystemExit: 3"),
        ("x = (", 1, "SyntaxError: '(' was never closed"),
    ],
)
def test_a_module_that_raises(folder: Path, text: str, source: str, line: int, last: str):
    (folder / "app.py").write_text(source)
    said = problem(text)
    first, second = said.splitlines()
    assert first == f"{text.partition(':')[0]} cannot be imported"
    assert second.startswith(f"  {folder / 'app.py'}, line {line}: {last}")


def test_a_faulty_workflow_is_found_in_its_own_line(folder: Path):
    (folder / "app.py").write_text(
        "from anyio_workflows import Workflow, step\n\n"
        "class Bad(Workflow):\n    @step\n    async def run_it(self, ev):\n        pass\n"
    )
    said = problem("app:Bad")
    assert f"{folder / 'app.py'}, line 3: WorkflowValidationError: " in said


def test_a_class_that_needs_arguments():
    with pytest.raises(CommandError) as caught:
        load_one(here("NeedsArguments")).instance()
    said = str(caught.value)
    assert said.startswith("NeedsArguments() cannot be made: TypeError: ")
    assert said.endswith(
        "make an instance in the module, workflow = NeedsArguments(...), and give tests.cli:workflow"
    )
