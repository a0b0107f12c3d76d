"""What surrounds the library agrees with itself: pins, and what the source distribution contains."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_pre_commit_uses_the_pinned_ruff() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    [version] = re.findall(r"ruff-pre-commit\n +rev: v(\S+)", hooks)
    assert PROJECT["dependency-groups"]["lint"] == [f"ruff=={version}"]


def test_ci_runs_every_session_that_nox_runs_by_default() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    noxfile = (ROOT / "noxfile.py").read_text("utf-8")
    [sessions] = re.findall(r"nox\.options\.sessions = \[(.*?)\]", noxfile, re.DOTALL)
    [checks] = re.findall(r"session: \[(.*)\]", workflow)
    assert set(re.findall(r"\w+", sessions)) - {"tests"} <= set(re.findall(r"\w+", checks))
    [pythons] = re.findall(r"^ +python: \[(.*)\]", workflow, re.MULTILINE)
    assert f"PYTHONS = [{pythons}]" in noxfile


def test_the_source_distribution_includes_only_what_exists() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [name for name in included if not (ROOT / name.lstrip("/")).exists()] == []


def test_the_readme_names_the_python_version_before_the_first_command() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    needed = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"Python {needed}+" in readme.partition("    python3 -m venv")[0]
