"""How long a picture takes: the layout of a graph and its SVG."""

from __future__ import annotations

from time import perf_counter

from anyio_workflows._drawing.picture import Edge, Node, Picture
from anyio_workflows._drawing.svg import svg

from .measuring import Spread
from .tables import Table

NAME = "drawing"

SIZES = (50, 200, 1000)
AIM = 500
"""Milliseconds for 200 steps, at most."""


def measure_drawing(rounds: int, *, quick: bool) -> Table:
    """Return a table of the time that pictures of some shapes take.

    Args:
        rounds: How often to draw each.
        quick: Whether to omit the largest.
    """
    sizes = SIZES[:-1] if quick else SIZES
    table = Table(
        "Drawing",
        ["graph", *(f"{size:,} steps" for size in sizes)],
        note=f"Milliseconds for the layout and the SVG of a graph; at most {AIM} are aimed at for 200 steps.",
    )
    for name, make in GRAPHS.items():
        table.add(name, *(f"{_milliseconds(make(size), rounds):.0f}" for size in sizes))
    return table


def _milliseconds(picture: Picture, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun = perf_counter()
        svg(picture)
        times.append((perf_counter() - begun) * 1e3)
    return Spread.of(times).median


def chain(steps: int) -> Picture:
    """Return steps one after the other, each of which may also end the run or fail."""
    ways = [(n, n + 1) for n in range(steps - 1)]
    return _picture(steps, ways)


def asking(steps: int) -> Picture:
    """Return a chain each of whose steps may also ask a question and wait for its answer."""
    made = chain(steps)
    nodes = (Node("(Question)", "Question", "question"), Node("(Answer)", "Answer", "answer"))
    names = [node.id for node in made.nodes if node.kind == "step"]
    edges = (
        *(Edge(name, "(Question)", "wait") for name in names),
        *(Edge("(Answer)", name, "wait") for name in names),
    )
    return Picture(made.title, made.nodes + nodes, made.edges + edges)


def parallel(steps: int) -> Picture:
    """Return steps between a first and a last one."""
    inner = range(1, steps - 1)
    return _picture(steps, [(0, n) for n in inner] + [(n, steps - 1) for n in inner])


def tree(steps: int) -> Picture:
    """Return a tree of steps with some edges back, and across."""
    ways = [(n // 2, n) for n in range(1, steps)]
    ways += [(n, n // 4) for n in range(7, steps, 7)]
    ways += [(n, min(steps - 1, n * 3 // 2 + 2)) for n in range(5, steps - 1, 5)]
    return _picture(steps, ways)


def _picture(steps: int, ways: list[tuple[int, int]]) -> Picture:
    nodes = [
        Node("(StartEvent)", "StartEvent", "start"),
        *(Node(f"step_{n}", f"step_{n}", "step", ("4 workers",)) for n in range(steps)),
        Node("on_error", "on_error", "error_handler"),
        Node("(StopEvent)", "StopEvent", "stop"),
    ]
    edges = [
        Edge("(StartEvent)", "step_0"),
        *(Edge(f"step_{n}", f"step_{m}", labels=(f"Event{m}",)) for n, m in ways),
        *(Edge(f"step_{n}", "(StopEvent)") for n in range(steps)),
        *(Edge(f"step_{n}", "on_error", "failure") for n in range(steps)),
        Edge("on_error", "(StopEvent)"),
    ]
    return Picture("Measured", tuple(nodes), tuple(edges))


GRAPHS = {
    "a chain": chain,
    "a chain that asks everywhere": asking,
    "in parallel": parallel,
    "a tree with loops": tree,
}
