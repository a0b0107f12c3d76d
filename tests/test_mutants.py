"""The mutants still apply, and the machine that tries them works; trying them is `nox -s mutants`."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from textwrap import dedent, indent

import pytest

from . import mutants
from .mutants import MUTANTS, PACKAGE, ROOT, SLOW, SUITE, Mutant, StaleMutantError

DOOR = """
class Door:
    def open(self) -> None:
        self.turns += 1
        if self.locked:
            self.unlock(self.key, tries=3)
        self.log("open")

    def close(self) -> None:
        self.log("close")
        self.log("closed")
"""


@pytest.fixture
def src(tmp_path: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignore))


def mutate(tmp_path: Path, code: str, mutant: Mutant, module: str = "doors.py") -> str:
    """Apply a mutant to a package that has this code in one of its modules; returns the new code."""
    path = tmp_path / PACKAGE / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    assert mutant.apply(tmp_path) == path
    return path.read_text()


def same(code: str, other: str) -> bool:
    return ast.dump(ast.parse(code)) == ast.dump(ast.parse(other))


def a_mutant(place: str = "Door.open", old: str = "self.locked", new: str = "False") -> Mutant:
    return Mutant("an open door", place, old, new, "doors are never unlocked")


# --- What applies -------------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_python_and_differs(mutant: Mutant, src: Path) -> None:
    changed = mutant.apply(src)
    before = (ROOT / "src" / changed.relative_to(src)).read_text()
    after = changed.read_text()
    compile(after, str(changed), "exec")
    assert not same(before, after)


@pytest.mark.parametrize(
    ("old", "new", "before", "after"),
    [
        ("self.locked", "False", "if self.locked:", "if False:"),
        ("self.key", "None", "self.unlock(self.key, tries=3)", "self.unlock(None, tries=3)"),
        ("3", "self.tries", "tries=3", "tries=self.tries"),
        ("self.turns += 1", "", "        self.turns += 1\n", ""),
        ("self.turns += 1", "self.turns = 1; self.log()", "turns += 1", "turns = 1; self.log()"),
        ("self.unlock(self.key, tries=3)", "", "self.unlock(self.key, tries=3)", "pass"),
        (
            "if self.locked: self.unlock(self.key, tries=3)\nself.log('open')",
            "return",
            'if self.locked:\n            self.unlock(self.key, tries=3)\n        self.log("open")',
            "return",
        ),
    ],
)
def test_expressions_and_statements_are_replaced(
    tmp_path: Path, old: str, new: str, before: str, after: str
) -> None:
    expected = DOOR.replace(before, after)
    assert expected != DOOR
    assert same(mutate(tmp_path, DOOR, a_mutant(old=old, new=new)), expected)


def test_a_mutant_survives_another_layout(tmp_path: Path) -> None:
    code = dedent("""
        class Door:
            def open(self) -> None:
                self.turns += 1  # for the statistics
                if (
                    self.locked
                ): self.unlock(
                    self.key,
                    tries = 3,
                )
                self.log('open')
    """)
    mutant = a_mutant(
        old="""
            if self.locked:
                self.unlock(self.key, tries=3)
            self.log("open")
        """,
        new="",
    )
    expected = "class Door:\n def open(self) -> None:\n  self.turns += 1"
    assert same(mutate(tmp_path, code, mutant), expected)


def test_a_mutant_survives_a_move_to_another_module(tmp_path: Path) -> None:
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "doors.py").write_text("from ._house.rooms import Door\n")
    code = f"if sys.platform:\n{indent(DOOR, '    ')}"
    changed = mutate(tmp_path, code, a_mutant(), module="_house/rooms.py")
    assert same(changed, code.replace("if self.locked", "if False"))


def test_a_place_is_told_from_others_by_the_names_around(tmp_path: Path) -> None:
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "a_car.py").write_text(DOOR)
    with pytest.raises(StaleMutantError, match="2 times"):
        mutate(tmp_path, DOOR, a_mutant())
    changed = mutate(tmp_path, DOOR, a_mutant(place="doors.Door.open"))
    assert same(changed, DOOR.replace("self.locked", "False"))


# --- What does not ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mutant", "found"),
    [
        (a_mutant(place="Gate.open"), "there is no function or class Gate.open;"),
        (a_mutant(place="oor.open"), "there is no function or class oor.open;"),
        (
            a_mutant(old="self.lock"),
            "its code occurs 0 times in anyio_workflows.doors.Door.open, not once;",
        ),
        (
            a_mutant(old="self.log('close')"),
            "its code occurs 0 times in anyio_workflows.doors.Door.open, not once;",
        ),
        (a_mutant(old="self.turns += 1; self.log('open')"), "its code occurs 0 times"),
        (
            a_mutant(place="close", old="self.log", new="print"),
            "its code occurs 2 times in anyio_workflows.doors.Door.close, not once;",
        ),
        (a_mutant(place="Door", old="self.locked", new="pass"), "its code occurs 0 times in "),
    ],
)
def test_a_mutant_whose_code_is_not_there_once_is_stale(
    tmp_path: Path, mutant: Mutant, found: str
) -> None:
    with pytest.raises(StaleMutantError) as caught:
        mutate(tmp_path, DOOR, mutant)
    message = str(caught.value)
    assert "mutant 'an open door'" in message
    assert found in message
    assert message.endswith(f"it still means: doors are never unlocked\n{mutant.old}")
    assert (tmp_path / PACKAGE / "doors.py").read_text() == DOOR


# --- The list, and the machine -----------------------------------------------------------------


def test_names_are_not_used_twice() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names)) >= 15


@pytest.mark.parametrize("name", SUITE + SLOW)
def test_the_tests_of_the_suite_are_there(name: str) -> None:
    file, _, test = name.partition("::")
    assert f"def {test}(" in (ROOT / "tests" / file).read_text() or not test


def test_the_tests_of_a_broken_rule_come_first(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN_RULES", "t99 of_a_broken_rule")
    others = [item for item in request.session.items if item is not request.node]
    items = [*others, request.node]
    mutants.pytest_collection_modifyitems(items)
    assert items == [request.node, *others]


def test_what_is_caught_and_what_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "SUITE", ["test_errors.py"])
    text = "f'the run was cancelled: {self.reason}'"
    broken = Mutant("broken", "WorkflowCancelledByUser.__str__", text, "''", "no text")
    harmless = Mutant("harmless", "EventStream.write", "self.unread += 1", "", "nothing there")
    monkeypatch.setattr(mutants, "MUTANTS", [broken, harmless])
    assert mutants.main([]) == 1
    verdicts = [line for line in capsys.readouterr().out.splitlines() if "caught" in line.lower()]
    assert [line.split("  ")[0] for line in verdicts] == [
        "caught",
        "NOT CAUGHT",
        "1 of 2 mutants caught",
    ]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(SystemExit, match="no such mutants: nobody"):
        mutants.main(["nobody"])
