"""`python -m benchmarks`: measure, and print one table."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
from importlib.metadata import version

import anyio

from . import growth, imports
from .measuring import Result, measure
from .rows import make_rows

_TITLES = ("row", "backend", "ours", "by hand", "ratio", "spread", "target", "")
_LAYOUT = "{:20}{:9}{:>11}{:>11}{:>8}{:>13}{:>8}  {}"


def main() -> None:
    """Measure what the command line asks for."""
    arguments = parse_arguments()
    names = ["anyio-workflows", "anyio", "attrs"]
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    print(f"Python {platform.python_version()}, {versions}; medians, one item of each job\n")
    print(_LAYOUT.format(*_TITLES))
    for backend in arguments.backends:
        for row in make_rows(quick=arguments.quick):
            if arguments.only in (None, row.name):
                result = anyio.run(measure, row, arguments.rounds, backend=backend)
                print_result(row.name, backend, row.unit, row.target, result)
    if arguments.only in (None, growth.NAME):
        print("\nThe cost of one item, as their number grows:")
        for backend in arguments.backends:
            growth.report_growth(backend, min(arguments.rounds, 3), quick=arguments.quick)
    if arguments.only in (None, imports.NAME):
        report_import(arguments.rounds)


def parse_arguments() -> argparse.Namespace:
    """Return the command line as a namespace with `backends`, `rounds`, `quick` and `only`."""
    names = [row.name for row in make_rows(quick=True)] + [growth.NAME, imports.NAME]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--backend", choices=["asyncio", "trio", "both"], default="both")
    parser.add_argument("--rounds", type=int, help="rounds that count (7, or 3 with --quick)")
    parser.add_argument("--quick", action="store_true", help="fewer items and rounds")
    parser.add_argument("--only", choices=names, metavar="ROW", help=", ".join(names))
    arguments = parser.parse_args()
    if arguments.rounds is None:
        arguments.rounds = 3 if arguments.quick else 7
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    both = ["asyncio", "trio"] if importlib.util.find_spec("trio") else ["asyncio"]
    arguments.backends = both if arguments.backend == "both" else [arguments.backend]
    return arguments


def print_result(name: str, backend: str, unit: str, target: float | None, result: Result) -> None:
    """Print one line of the table."""
    ours, by_hand = statistics.median(result.ours), statistics.median(result.by_hand)
    aim, verdict = "-", ""
    if target is not None:
        aim, verdict = f"{target:.1f}", "met" if round(result.ratio, 2) <= target else "NOT MET"
    print(
        _LAYOUT.format(
            name,
            backend,
            f"{ours:.2f} {unit}",
            f"{by_hand:.2f} {unit}",
            f"{result.ratio:.2f}",
            f"{min(result.ratios):.2f}-{max(result.ratios):.2f}",
            aim,
            verdict,
        ),
        flush=True,
    )


def report_import(rounds: int) -> None:
    """Print the line about the import, and what it consists of."""
    print_result(imports.NAME, "-", "ms", None, anyio.run(imports.measure_import, rounds))
    print(f"\n{imports.OURS!r} against {imports.BASELINE!r}, in fresh interpreters;")
    print(f"an interpreter alone takes {imports.interpreter_alone(rounds):.1f} ms.")
    print("Imported beyond the baseline, in ms (and the number of modules):")
    for milliseconds, package in imports.extra_modules()[:12]:
        print(f"{milliseconds:8.1f}  {package}")


if __name__ == "__main__":
    main()
