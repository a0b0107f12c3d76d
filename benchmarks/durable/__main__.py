"""`python -m benchmarks.durable`: measure runs that are kept, print tables, and write them."""

from __future__ import annotations

import argparse
import functools
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .. import environments, machine
from ..comparing import Results, measure_in_turn, problems_table, tell, write_markdown
from ..environments import MissingError
from ..tables import Table
from . import disk, postgres, report
from .rounds import Bench
from .sides import PEER_SIDES, Side, our_sides
from .works import WORKS, Work

OUTPUT = Path(__file__).parent.parent / "results" / "durable.md"


def main() -> int:
    """Measure what the command line asks for; the result is an exit code."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and so end the database server
    works = [work for work in WORKS if not arguments.only or work.name in arguments.only]
    sides = our_sides(quick=arguments.quick) + ([] if arguments.quick else PEER_SIDES)
    if arguments.side:
        sides = [side for side in sides if any(text in side.label for text in arguments.side)]
    results = Results()
    described = machine.describe()
    ours_failed = False
    with prepared(arguments, sides, results, described) as (bench, sides):
        for work in works:
            tell(work.name)
            measured, failed = measure_in_turn(
                [side for side in sides if work.suits(side)],
                min(arguments.rounds, work.most_rounds),
                functools.partial(bench.measure, work),
            )
            results.values |= {(work.name, side): values for side, values in measured.items()}
            for side, why in failed.items():
                results.problems[f"{work.name}, {side.label}"] = why
                ours_failed |= side.peer is None
    tables = make_tables(results, works, sides, described, quick=arguments.quick)
    for table in tables:
        print(table.as_text(), flush=True)
    if arguments.output is not None:
        command = " ".join(["python -m benchmarks.durable", *sys.argv[1:]])
        write_markdown(arguments.output, "Durable runs", command, tables)
        print(f"Written to {arguments.output}")
    return int(ours_failed)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durable", description=__doc__)
    names = [work.name for work in WORKS]
    parser.add_argument("--rounds", type=int, help="how often (default: 3, or 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="ours alone, and few runs")
    parser.add_argument("--only", nargs="+", choices=names, metavar="WORK", help=", ".join(names))
    parser.add_argument(
        "--side", nargs="+", metavar="TEXT", help="only the sides whose names contain one of these"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=disk.default_folder(),
        help="where databases go (default: %(default)s); figures from a RAM disk mean nothing",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=environments.default_cache(),
        help="where the peers are installed (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write the tables (default: benchmarks/results/durable.md if everything is "
        "measured in full, otherwise nowhere)",
    )
    arguments = parser.parse_args()
    if arguments.rounds is None:
        arguments.rounds = 1 if arguments.quick else 3
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if not (arguments.output or arguments.quick or arguments.only or arguments.side):
        arguments.output = OUTPUT
    return arguments


@contextmanager
def prepared(
    arguments: argparse.Namespace, sides: list[Side], results: Results, described: Table
) -> Iterator[tuple[Bench, list[Side]]]:
    """Prepare what the sides need, and yield those that can be measured here."""
    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(dir=arguments.folder, prefix="benchmark-")
        folder = Path(stack.enter_context(made))
        folder.chmod(0o755)  # the database server may run as another user
        counting = disk.count_syncs(folder)
        if not counting:
            results.problems["syncs"] = "no C compiler that builds what counts them"
        described.add("file system", disk.file_system(folder))
        syncs = [disk.sync_cost(folder)]
        described.add("SQLite", sqlite3.sqlite_version)
        pythons = install(sides, arguments.cache, results, described)
        sides = [side for side in sides if side.peer is None or side.peer.name in pythons]
        server = None
        if any(side.database == "postgresql" for side in sides):
            try:
                server = stack.enter_context(postgres.server(folder / "postgres", counting))
                described.add("PostgreSQL", server.version)
            except MissingError as error:
                results.problems["PostgreSQL"] = str(error)
                sides = [side for side in sides if side.database != "postgresql"]
        yield Bench(folder, pythons, server, counting, arguments.quick), sides
        syncs.append(disk.sync_cost(folder))
        before, after = (f"{cost * 1e3:.2f} ms" for cost in syncs)
        described.add("a write of 4 KB and fdatasync", f"{before} before, {after} after")


def install(sides: list[Side], cache: Path, results: Results, described: Table) -> dict[str, Path]:
    """Install the peers, and return the interpreters of those that can be, by name."""
    pythons = {}
    for peer in dict.fromkeys(side.peer for side in sides if side.peer is not None):
        tell(f"installing {peer.name}")
        try:
            python = environments.python_of(peer, cache)
            versions = environments.versions_of(peer, python)
        except MissingError as error:
            results.problems[peer.name] = str(error)
        else:
            pythons[peer.name] = python
            described.add(f"environment {peer.name}", " ".join(map(" ".join, versions.items())))
    return pythons


def make_tables(
    results: Results, works: list[Work], sides: list[Side], described: Table, *, quick: bool
) -> list[Table]:
    """Return the tables that have lines."""
    stepping = [work for work in works if work.counts_steps]
    others = {work.name: work for work in works if not work.counts_steps}
    tables = [
        *([] if quick else [report.targets_table(results, sides)]),
        report.steps_table(results, stepping, sides, quick=quick),
        report.other_table(results, others, sides, quick=quick),
        problems_table(results),
        described,
    ]
    return [table for table in tables if table.lines]


if __name__ == "__main__":
    sys.exit(main())
