"""All checks: `nox` runs the default sessions, `nox -s NAME` one of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = [
    "lint",
    "types",
    "tests",
    "tests_bare",
    "reference",
    "demo",
    "bench_quick",
]

PYTHONS = ["3.11", "3.12", "3.13"]
PROJECT = nox.project.load_toml("pyproject.toml")

# Interpreters built by pyenv are used even if they are not on the path.
_pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
for _version in PYTHONS:
    for _bin in sorted(_pyenv.glob(f"{_version}.*/bin")):
        os.environ["PATH"] += os.pathsep + str(_bin)


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install the project and the dependency groups that the session needs."""
    wanted = [req for group in groups for req in nox.project.dependency_groups(PROJECT, group)]
    session.install("--quiet", f".{extras}", *wanted)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the test suite on both backends; arguments go to pytest."""
    install(session, "test", extras="[trio]")
    session.run("python", "-X", "dev", "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session(python=PYTHONS[0])
def tests_bare(session: nox.Session) -> None:
    """Run the test suite with what the library needs: without trio, pydantic and what depends on it."""
    install(session, "test")
    session.run("pip", "uninstall", "--quiet", "--yes", "trio", "pydantic", "openai", "selenium")
    session.run("python", "-X", "dev", "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session(python=PYTHONS[0])
def reference(session: nox.Session) -> None:
    """Compare with llama-index-workflows: the public names, and what programs written for it do."""
    install(session, "test", "bench", extras="[trio]")
    tests = [f"tests/test_reference_{what}.py" for what in ("names", "programs", "differences")]
    session.run("python", "-X", "dev", "-m", "pytest", *tests, *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the test suite under coverage; `fail_under` in pyproject.toml is the floor."""
    install(session, "coverage", extras="[trio]")
    session.run(
        "python", "-m", "pytest", "-n", "auto", "--cov", "--cov-report=term", *session.posargs
    )


@nox.session
def sdist(session: nox.Session) -> None:
    """Build the source distribution, and run the test suite that it contains."""
    session.install("--quiet", "build")
    folder = Path(session.create_tmp())
    shutil.rmtree(folder)
    session.run("python", "-m", "build", "--sdist", "--outdir", str(folder))
    [archive] = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    with session.chdir(folder / archive.name.removesuffix(".tar.gz")):
        install(session, "test", extras="[trio]")
        session.run("python", "-X", "dev", "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the format and the lint rules."""
    session.install("--quiet", *nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types with mypy and pyright, and what users write with ty and pyrefly too."""
    install(session, "types", extras="[trio]")
    session.run("mypy")
    session.run("pyright", "--warnings", env={"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"})
    session.run("ty", "check", "tests/typing/programs.py")
    session.run("pyrefly", "check", "--preset", "default", "tests/typing/programs.py")


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demo with every ending on both backends."""
    install(session, extras="[trio]")
    for backend in ("asyncio", "trio"):
        for end in ("stop", "timeout", "cancel", "fail"):
            command = ["python", "-W", "error", "-m", "anyio_workflows", "demo"]
            session.run(*command, "--backend", backend, "--end", end)


@nox.session
def mutants(session: nox.Session) -> None:
    """Break the library on purpose, in many ways, and check that the suite notices each."""
    install(session, "test", extras="[trio]")
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session
def kill(session: nox.Session) -> None:
    """Kill processes that execute runs, a thousand times in each set-up; takes half an hour."""
    install(session, "test", extras="[trio]")
    mixed = ["--processes", "3", "--backends", "asyncio", "trio"]
    for setup in ([], mixed, [*mixed, "--idle-after", "0.05"]):
        session.run("python", "-m", "tests.kill", *setup, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against hand-written AnyIO and llama-index-workflows; takes five minutes."""
    install(session, "bench", extras="[trio]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def bench_durable(session: nox.Session) -> None:
    """Measure runs that are kept beside DBOS, LangGraph and the reference; takes half an hour."""
    install(session, "bench", extras="[trio]")
    session.run("python", "-m", "benchmarks.durable", *session.posargs)


@nox.session
def bench_serving(session: nox.Session) -> None:
    """Measure servers beside the reference's, and put a load on them; takes ten minutes."""
    install(session, "bench", extras="[trio,server,client,cli]")
    session.run("python", "-m", "benchmarks.serving", *session.posargs)


@nox.session
def bench_quick(session: nox.Session) -> None:
    """Check that the benchmarks work, whatever they measure."""
    install(session, "bench", extras="[trio,server,client,cli]")
    session.run("python", "-m", "benchmarks", "--quick", "--output", session.create_tmp())
    session.run("python", "-m", "benchmarks.durable", "--quick")
    session.run("python", "-m", "benchmarks.serving", "--quick")
