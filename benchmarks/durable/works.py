"""What is measured, and with how many runs on each side."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from .sides import DBOS, LANGGRAPH, REFERENCE, Side

Sizes = Mapping[str, int]


@attrs.frozen
class Work:
    """One job of the programs.

    Attributes:
        name: What the command line calls it.
        job: The job of the programs.
        ours: Its sizes on our sides.
        fewer: The sizes of peers, by their name, which would take minutes for ours.
        quick: The sizes with `--quick`.
        killed: Whether a process is killed first, and another one measured.
        most_rounds: The number of rounds that suffices.
    """

    name: str
    job: str
    ours: Sizes
    fewer: Mapping[str, Sizes]
    quick: Sizes
    killed: bool = False
    most_rounds: int = 1000

    def suits(self, side: Side) -> bool:
        """Return whether there is anything to measure: without a database, nothing is recovered."""
        takes_part = side.works is None or self.name in side.works
        return takes_part and (side.database != "none" or not self.killed)

    def sizes(self, side: Side, *, quick: bool) -> Sizes:
        if quick:
            return self.quick
        return self.ours if side.peer is None else self.fewer[side.peer.name]

    @property
    def counts_steps(self) -> bool:
        """Whether it belongs to the table about steps."""
        return self.job in ("steps", "fan_out")

    def title(self, side: Side, *, quick: bool) -> str:
        """Return what the table about steps calls it."""
        sizes = self.sizes(side, quick=quick)
        if self.job == "fan_out":
            return f"fan-out of {sizes['items']:,}"
        return "1 run" if sizes["runs"] == 1 else f"{sizes['runs']:,} runs at once"


def _fewer(dbos: Sizes, langgraph: Sizes, reference: Sizes) -> Mapping[str, Sizes]:
    return {DBOS.name: dbos, LANGGRAPH.name: langgraph, REFERENCE.name: reference}


def _steps(runs: int, steps: int) -> Sizes:
    return {"runs": runs, "steps": steps}


def _runs(runs: int) -> Sizes:
    return {"runs": runs}


WORKS = [
    Work(
        "steps-1",
        "steps",
        _steps(1, 1000),
        _fewer(_steps(1, 200), _steps(1, 300), _steps(1, 30)),
        _steps(1, 50),
    ),
    Work(
        "steps-20",
        "steps",
        _steps(20, 200),
        _fewer(_steps(20, 20), _steps(20, 40), _steps(20, 5)),
        _steps(20, 10),
    ),
    Work(
        "steps-1000",
        "steps",
        _steps(1000, 20),
        _fewer(_steps(1000, 3), _steps(1000, 5), _steps(200, 2)),
        _steps(100, 5),
    ),
    Work(
        "fan-out",
        "fan_out",
        {"items": 1000},
        _fewer({"items": 500}, {"items": 1000}, {"items": 100}),
        {"items": 50},
    ),
    Work(
        "start",
        "start",
        {"runs": 300, "together": 1000},
        _fewer({"runs": 50, "together": 200}, _runs(100), _runs(10)),
        {"runs": 5, "together": 20},
    ),
    Work("answer", "answers", _runs(200), _fewer(_runs(50), _runs(100), _runs(20)), _runs(5)),
    Work(
        "wait",
        "wait",
        _runs(10_000),
        _fewer(_runs(500), _runs(1000), _runs(100)),
        _runs(50),
        most_rounds=1,
    ),
    Work(
        "recovery",
        "recover",
        _runs(10_000),
        _fewer(_runs(500), _runs(1000), _runs(100)),
        _runs(50),
        killed=True,
        most_rounds=1,
    ),
]
