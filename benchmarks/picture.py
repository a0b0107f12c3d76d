"""The ratios of the main table on a log scale, with the targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .backends import ASYNCIO, TRIO, UVLOOP
from .measuring import HAND, REFERENCE, TUNED, Result

COLOURS = {ASYNCIO: "#1f77b4", TRIO: "#d95f02", UVLOOP: "#7570b3", "-": "#444444"}
OFFSETS = {ASYNCIO: -0.22, TRIO: 0.0, UVLOOP: 0.22, "-": 0.0}
TARGET = "#2ca02c"


def draw_ratios(path: Path, results: Sequence[Result]) -> None:
    """Draw our cost as a multiple of the reference's and of hand-written AnyIO's."""
    shown = [result for result in results if result.row.compares]
    works = list(dict.fromkeys(result.row.work for result in shown))
    figure = Figure(figsize=(12, 1.8 + 0.42 * len(works)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _prepare(left, works, "against llama-index-workflows")
    _prepare(right, works, "against hand-written AnyIO (hollow: tuned)")
    for result in shown:
        line = works.index(result.row.work)
        _mark(left, result, REFERENCE, line, filled=True)
        _mark(right, result, TUNED, line, filled=False)
        _mark(right, result, HAND, line, filled=True)
    figure.suptitle("Our cost as a multiple of theirs: left of 1 is cheaper")
    figure.legend(handles=_legend(shown), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _prepare(axes: Axes, works: list[str], title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(works)), works, fontsize=9)
    axes.set_ylim(len(works) - 0.5, -0.5)
    for border in range(1, len(works)):
        axes.axhline(border - 0.5, color="#eeeeee", linewidth=0.6)


def _mark(axes: Axes, result: Result, side: str, line: int, *, filled: bool) -> None:
    """Draw one ratio with its quartiles, and the target as a bar."""
    found = result.ratio(side)
    if found is None:
        return
    colour = COLOURS[result.backend]
    axes.errorbar(
        found.median,
        line + OFFSETS[result.backend],
        xerr=[[found.median - found.low], [found.high - found.median]],
        fmt="o",
        markersize=5,
        color=colour,
        markerfacecolor=colour if filled else "white",
        elinewidth=1,
    )
    if side in result.row.targets:
        target = result.row.targets[side]
        most = 1 / target if side == REFERENCE else target
        axes.vlines(most, line - 0.42, line + 0.42, color=TARGET, linewidth=2.5)


def _legend(shown: Sequence[Result]) -> list[Line2D]:
    names = dict.fromkeys(result.backend for result in shown if result.backend != "-")
    handles = [
        Line2D([], [], color=COLOURS[name], marker="o", linestyle="", label=name) for name in names
    ]
    handles.append(Line2D([], [], color=TARGET, linewidth=2.5, label="target: at most"))
    return handles
