"""`python -m benchmarks`: measure, print tables, and write them."""

from __future__ import annotations

import argparse
import gc
import sys
from importlib.util import find_spec
from pathlib import Path

import anyio

from . import backends, drawing, fairness, growth, imports, instruments, machine, memory, report
from .measuring import Result, measure
from .rows import make_rows
from .tables import Table

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure what the command line asks for."""
    arguments = parse_arguments()
    tables = [machine.describe()]
    print(tables[0].as_text())
    # Later garbage collections skip everything imported so far: the modules of one side must not slow
    # the others down.
    gc.collect()
    gc.freeze()
    results = measure_rows(arguments)
    if results:
        tables.insert(0, report.main_table(results))
        print(tables[0].as_text(), flush=True)
    for table in measure_more(arguments):
        tables.append(table)
        print(table.as_text(), flush=True)
    if arguments.output is not None:
        write(arguments.output, tables, results)


def parse_arguments() -> argparse.Namespace:
    """Return the command line as a namespace with `backends`, `rounds`, `quick` and `only`."""
    rows = [row.name for row in make_rows(backends.ASYNCIO, quick=True)]
    names = [
        *rows,
        imports.NAME,
        growth.NAME,
        memory.NAME,
        fairness.NAME,
        drawing.NAME,
        instruments.NAME,
    ]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    found = backends.installed()
    parser.add_argument(
        "--backend", choices=found, help="only this one (default: all installed ones)"
    )
    parser.add_argument(
        "--rounds", type=int, help="rounds to count (default: 5, or 1 with --quick)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer items and rounds")
    parser.add_argument("--only", choices=names, metavar="PART", help=", ".join(names))
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write the tables and the chart (default: benchmarks/results if everything is "
        "measured in full, otherwise nowhere)",
    )
    arguments = parser.parse_args()
    if arguments.rounds is None:
        arguments.rounds = 1 if arguments.quick else 5
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if not (arguments.output or arguments.quick or arguments.only or arguments.backend):
        arguments.output = RESULTS
    arguments.backends = [arguments.backend] if arguments.backend else found
    return arguments


def measure_rows(arguments: argparse.Namespace) -> list[Result]:
    """Measure the rows of the main table, job by job."""
    quick, only, rounds = arguments.quick, arguments.only, arguments.rounds
    rows = {
        backend: {row.name: row for row in make_rows(backend, quick=quick)}
        for backend in arguments.backends
    }
    names = dict.fromkeys(name for by_name in rows.values() for name in by_name)
    results = []
    for name in names:
        for backend, by_name in rows.items():
            if name in by_name and only in (None, name):
                tell(f"{name}, {backend}")
                results.append(backends.run(backend, measure, by_name[name], rounds, backend))
    if only in (None, imports.NAME):
        tell(imports.NAME)
        results.append(anyio.run(imports.measure_import, rounds))
    return results


def measure_more(arguments: argparse.Namespace) -> list[Table]:
    """Measure, on asyncio and trio, the parts that have tables of their own."""
    quick, only = arguments.quick, arguments.only
    names = [name for name in arguments.backends if name != backends.UVLOOP]
    tables = []
    if only in (None, imports.NAME):
        tables.append(imports.list_imports())
    if only in (None, growth.NAME):
        tell(growth.NAME)
        alone = only is not None
        tables.append(growth.measure_growth(names, arguments.rounds, quick=quick, alone=alone))
    if only in (None, memory.NAME):
        tell(memory.NAME)
        tables.append(memory.measure_flatness(names, quick=quick))
    if only in (None, fairness.NAME):
        tell(fairness.NAME)
        tables.append(fairness.measure_fairness(names, quick=quick))
    if only in (None, drawing.NAME):
        tell(drawing.NAME)
        tables.append(drawing.measure_drawing(arguments.rounds, quick=quick))
    if only in (None, instruments.NAME):
        tell(instruments.NAME)
        tables.append(instruments.measure_instruments(names, arguments.rounds, quick=quick))
    return tables


def tell(what: str) -> None:
    """Report on standard error what is being measured."""
    print(f"... {what}", file=sys.stderr, flush=True)


def write(folder: Path, tables: list[Table], results: list[Result]) -> None:
    """Write the tables, and the chart if matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "ratios.png" if results and find_spec("matplotlib") else None
    if picture is not None:
        from .picture import draw_ratios  # matplotlib is large, and nothing else needs it

        draw_ratios(picture, results)
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    report.write_markdown(folder / "results.md", command, tables, picture)
    with_targets = report.main_table([result for result in results if result.row.targets])
    without_title = with_targets.as_markdown().partition("\n\n")[2]
    (folder / "targets.md").write_text(without_title, encoding="utf-8")  # part of the README
    print(f"Written to {folder}")


if __name__ == "__main__":
    main()
