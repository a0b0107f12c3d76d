"""The mutants still apply, and the machine that tries them works; trying them is `nox -s mutants`."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from . import mutants
from .mutants import MUTANTS, PACKAGE, ROOT, Mutant, StaleMutantError


@pytest.fixture
def src(tmp_path: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignore))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_python_and_differs(mutant: Mutant, src: Path) -> None:
    before = (src / PACKAGE / mutant.file).read_text()
    mutant.apply(src)
    after = (src / PACKAGE / mutant.file).read_text()
    assert ast.dump(ast.parse(before)) != ast.dump(ast.parse(after))


def test_a_mutant_whose_text_is_gone_is_an_error(src: Path) -> None:
    stale = Mutant("stale", "_engine/run.py", "no such text", "", "nothing")
    with pytest.raises(StaleMutantError, match=r"occurs 0 times in _engine/run\.py, not once"):
        stale.apply(src)
    twice = Mutant("vague", "_engine/run.py", "self", "", "nothing")
    with pytest.raises(StaleMutantError, match="not once"):
        twice.apply(src)


def test_names_are_not_used_twice() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names)) >= 15


def test_what_is_caught_and_what_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "SUITE", ["test_errors.py"])
    broken = Mutant("broken", "errors.py", "; at that time:", "; then:", "another message")
    harmless = Mutant("harmless", "_version.py", "__version__", "\n__version__", "nothing")
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
