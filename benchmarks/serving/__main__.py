"""`python -m benchmarks.serving`: measure servers, print tables, and write them."""

from __future__ import annotations

import argparse
import asyncio
import functools
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs

from .. import environments, machine
from ..comparing import Measurement, Results, measure_in_turn, problems_table, tell, write_markdown
from ..environments import MissingError
from ..tables import Table
from . import report
from .jobs import JOBS
from .load import FULL, LOADS, QUICK, Load, allow_files, bear, fitting
from .servers import Server, started
from .sides import REFERENCE, Side, our_sides
from .starts import measure_starts
from .works import WORKS, Work

OUTPUT = Path(__file__).parent.parent / "results" / "serving.md"


@attrs.frozen
class Bench:
    """Where servers are measured.

    Attributes:
        python: The interpreter of the reference's environment; `None` if it is not installed.
        quick: Whether the sizes are small.
        patience: After how many seconds a measurement counts as failed.
    """

    python: Path | None
    quick: bool
    patience: float = 600.0

    def measure(self, work: Work, side: Side) -> Measurement:
        """Do a job once, with a new server.

        Raises:
            FailedError: The server failed, or took too long.
        """
        sizes = work.sizes_of(side, quick=self.quick)
        return self._ask(side, work.options_of(side), lambda server: JOBS[work.job](server, sizes))

    def bear(self, name: str, load: Load, side: Side) -> Measurement:
        """Put a load on a new server."""
        return self._ask(side, {}, lambda server: bear(name, server, load))

    def _ask(
        self,
        side: Side,
        options: dict[str, object],
        ask: Callable[[Server], Awaitable[Measurement]],
    ) -> Measurement:
        async def run(server: Server) -> Measurement:
            return await ask(server)

        python = self.python if side is REFERENCE else None
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            given = {
                key: value.format(folder=folder) if isinstance(value, str) else value
                for key, value in options.items()
            }
            with started(side, python, given, Path(folder), self.patience) as server:
                return asyncio.run(run(server))


def main() -> int:
    """Measure what the command line asks for; the result is an exit code."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and so end the servers
    results = Results()
    described = machine.describe()
    works = [work for work in WORKS if not arguments.only or work.name in arguments.only]
    loads = [name for name in LOADS if not arguments.only or name in arguments.only]
    if arguments.load:
        works = []
    ours = [side for side in our_sides() if is_wanted(side, arguments)]
    sides, python = list(ours), None
    if works and not arguments.quick and is_wanted(REFERENCE, arguments):
        python = install(arguments.cache, results, described)
        sides += [REFERENCE] if python else []
    bench = Bench(python, arguments.quick)
    load = fitting(QUICK if arguments.quick else FULL, allow_files())
    for work in works:
        rounds = min(arguments.rounds, work.most_rounds)
        keep(results, work.name, sides, rounds, functools.partial(bench.measure, work))
    for name in loads:
        keep(results, name, ours, 1, functools.partial(bench.bear, name, load))
    if not (arguments.load or arguments.only or arguments.side):
        tell("starts")
        starts = [measure_starts(python, 1 if arguments.quick else 10)]
    else:
        starts = []
    tables = [
        report.targets_table(results, sides),
        report.figures_table(results, works, sides),
        report.load_table(results, ours, load),
        *starts,
        problems_table(results),
        described,
    ]
    show(arguments, [table for table in tables if table.lines])
    return int(any(not what.startswith(REFERENCE.name) for what in results.problems))


def is_wanted(side: Side, arguments: argparse.Namespace) -> bool:
    """Return whether a server is to be measured."""
    return not arguments.side or any(text in side.name for text in arguments.side)


def keep(
    results: Results,
    name: str,
    sides: list[Side],
    rounds: int,
    measure: Callable[[Side], Measurement],
) -> None:
    """Measure sides in turn, and keep the figures, or why there are none."""
    tell(name)
    measured, failed = measure_in_turn(sides, rounds, measure)
    results.values |= {(name, side): values for side, values in measured.items()}
    results.problems |= {f"{side.name}, {name}": why for side, why in failed.items()}


def show(arguments: argparse.Namespace, tables: list[Table]) -> None:
    """Print tables, and write them if that was asked for."""
    for table in tables:
        print(table.as_text(), flush=True)
    if arguments.output is not None:
        command = " ".join(["python -m benchmarks.serving", *sys.argv[1:]])
        write_markdown(arguments.output, "Servers", command, tables)
        print(f"Written to {arguments.output}")


def install(cache: Path, results: Results, described: Table) -> Path | None:
    """Install the reference's server, and return its interpreter; `None` if that is not possible."""
    peer = REFERENCE.peer
    assert peer is not None
    tell(f"installing {peer.name}")
    try:
        python = environments.python_of(peer, cache)
        versions = environments.versions_of(peer, python)
    except MissingError as error:
        results.problems[REFERENCE.name] = str(error)
        return None
    described.add("environment of the reference", " ".join(map(" ".join, versions.items())))
    return python


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    names = [*(work.name for work in WORKS), *LOADS]
    parser.add_argument("--rounds", type=int, help="how often (default: 5, or 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="ours alone, and little of everything")
    parser.add_argument("--load", action="store_true", help="the load test alone")
    parser.add_argument("--only", nargs="+", choices=names, metavar="WORK", help=", ".join(names))
    parser.add_argument(
        "--side",
        nargs="+",
        metavar="TEXT",
        help="only the servers whose names contain one of these",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=environments.default_cache(),
        help="where the reference's server is installed (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write the tables (default: benchmarks/results/serving.md if everything is "
        "measured in full, otherwise nowhere)",
    )
    arguments = parser.parse_args()
    if arguments.rounds is None:
        arguments.rounds = 1 if arguments.quick else 5
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if not (
        arguments.output or arguments.quick or arguments.load or arguments.only or arguments.side
    ):
        arguments.output = OUTPUT
    return arguments


if __name__ == "__main__":
    sys.exit(main())
