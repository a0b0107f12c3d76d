"""Nodes in layers from left to right, ordered so that few edges cross."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence

import attrs

from .picture import EdgeKind


@attrs.define(eq=False)
class Item:
    """What stands in a layer: the box of a node, the labels of an edge, or a point that edges pass.

    Attributes:
        width: Its width.
        above: How far it extends above its line, the height at which edges meet it.
        below: How far it extends below its line.
        gap: Half of the room to another item of its kind, above or below.
        is_box: Whether it is a box.
        is_start: Whether edges are followed from here first.
        layer: The number of its layer.
        position: Its place in the layer, from the top.
        x: Its left border.
        y: Its line.
        ahead: The links to the next layer.
        behind: The links to the layer before.
    """

    width: int = 0
    above: int = 0
    below: int = 0
    gap: int = 6
    is_box: bool = False
    is_start: bool = False
    layer: int = 0
    position: int = 0
    x: int = 0
    y: int = 0
    ahead: list[Link] = attrs.field(factory=list, repr=False)
    behind: list[Link] = attrs.field(factory=list, repr=False)

    def ahead_positions(self) -> list[int]:
        return [link.right.position for link in self.ahead]

    def behind_positions(self) -> list[int]:
        return [link.left.position for link in self.behind]


@attrs.define(eq=False)
class Link:
    """A piece of an edge, or of several that have joined: from one layer to the next.

    Attributes:
        left: Where it begins.
        right: Where it ends.
        is_main: Whether its way is a main one, which should be straight.
        left_port: How far below the line of `left`.
        right_port: How far below the line of `right`.
    """

    left: Item
    right: Item
    is_main: bool = True
    left_port: int = 0
    right_port: int = 0

    @property
    def left_y(self) -> int:
        return self.left.y + self.left_port

    @property
    def right_y(self) -> int:
        return self.right.y + self.right_port


Line = tuple[Item, EdgeKind, bool]
"""What ways may share: the box that they leave or lead to, their kind, whether they are backwards."""


@attrs.define(eq=False)
class Way:
    """An edge on its way through the layers.

    Attributes:
        source: The box it comes from.
        target: The box it leads to, another one.
        kind: That of the edge.
        label: The place of its labels, if it has any.
        backwards: Whether it leads from right to left: it closes a cycle.
        is_main: Whether it shows where the work goes if nothing fails, from left to right; not what
            others may do as well, such as to stop the run.
        leaves: The way of which it is part from the source to a point that both pass.
        joins: The way of which it is part from a point that both pass to the target.
        links: Its own pieces, from the source or where it leaves to the target or where it joins.
    """

    source: Item
    target: Item
    kind: EdgeKind
    label: Item | None = None
    backwards: bool = False
    is_main: bool = False
    leaves: Way | None = attrs.field(default=None, repr=False)
    joins: Way | None = attrs.field(default=None, repr=False)
    links: list[Link] = attrs.field(factory=list, repr=False)

    @property
    def onwards(self) -> int:
        return -1 if self.backwards else 1

    @property
    def leaving(self) -> Line:
        return self.source, self.kind, self.backwards

    @property
    def joining(self) -> Line:
        return self.target, self.kind, self.backwards

    @property
    def left(self) -> Item:
        return self.target if self.backwards else self.source

    @property
    def right(self) -> Item:
        return self.source if self.backwards else self.target

    def lead(self, here: Item, there: Item) -> Item:
        """Lead it on to an item of the next layer on its way; return that."""
        left, right = (there, here) if self.backwards else (here, there)
        link = Link(left, right, self.is_main)
        left.ahead.append(link)
        right.behind.append(link)
        self.links.append(link)
        return there


def arrange(boxes: Sequence[Item], ways: Sequence[Way]) -> list[list[Item]]:
    """Put the boxes, the labels and the points that edges pass into layers; return them.

    Sets what the ways do not know yet, and everything but the coordinates and ports of items.
    """
    ordered = _break_cycles(boxes, ways)
    _choose_layers(ordered, ways)
    layers = _link(ordered, ways)
    _order(layers)
    return layers


def _by_end(boxes: Sequence[Item], ways: Sequence[Way], end: str) -> dict[Item, list[Way]]:
    found: dict[Item, list[Way]] = {box: [] for box in boxes}
    for way in ways:
        found[getattr(way, end)].append(way)
    return found


def _break_cycles(boxes: Sequence[Item], ways: Sequence[Way]) -> list[Item]:
    """Mark the ways that close a cycle as `backwards`; return the boxes from left to right.

    The search is depth first: a way to a box that is still being searched closes a cycle.
    """
    out = _by_end(boxes, ways, "source")
    opened: dict[Item, bool] = {}  # whether it is still being searched
    closed: list[Item] = []
    for root in sorted(boxes, key=lambda box: not box.is_start):
        if root in opened:
            continue
        opened[root] = True
        stack = [(root, iter(out[root]))]
        while stack:
            box, rest = stack[-1]
            for way in rest:
                if way.target not in opened:
                    opened[way.target] = True
                    stack.append((way.target, iter(out[way.target])))
                    break
                way.backwards = opened[way.target]
            else:
                stack.pop()
                opened[box] = False
                closed.append(box)
    return closed[::-1]


def _choose_layers(ordered: Sequence[Item], ways: Sequence[Way]) -> None:
    """Choose an even layer for each box: to the right of all that leads to it, as far left as that allows.

    Then move those boxes to the right whose ways become shorter by it in total, as with an event
    that comes from outside. The layers between are for labels.
    """
    ahead = _by_end(ordered, ways, "left")
    behind = _by_end(ordered, ways, "right")
    for box in ordered:
        for way in ahead[box]:
            way.right.layer = max(way.right.layer, box.layer + 2)
    for box in reversed(ordered):
        if len(ahead[box]) > len(behind[box]) and not box.is_start:
            box.layer = min(way.right.layer for way in ahead[box]) - 2


def _link(ordered: Sequence[Item], ways: Sequence[Way]) -> list[list[Item]]:
    """Lead each way through all layers between its ends; return the layers, those without use omitted.

    The labels stand next to the source. From there on, ways of one kind to one target are one; and
    without labels, those from one source are, where that is more of them. So the number of points
    does not grow with the square of the number of boxes if a few of these have most of the ways.
    """
    for way in ways:
        if way.label is not None:
            way.label.layer = way.source.layer + way.onwards
    labels = [way.label for way in ways if way.label is not None]
    used = sorted({item.layer for item in (*ordered, *labels)})
    number = {layer: n for n, layer in enumerate(used)}
    layers: list[list[Item]] = [[] for _ in used]
    for item in (*ordered, *labels):
        item.layer = number[item.layer]
        layers[item.layer].append(item)
    leaving = Counter(way.leaving for way in ways if way.label is None)
    joining = Counter(way.joining for way in ways)
    lines: dict[Line, dict[int, tuple[Item, Way]]] = {line: {} for line in (*leaving, *joining)}
    for way in ways:
        leaves = way.label is None and leaving[way.leaving] > joining[way.joining]
        line = lines[way.leaving if leaves else way.joining]
        alone = way.label is not None or leaving[way.leaving] == joining[way.joining] == 1
        way.is_main = alone and way.kind in ("event", "list") and not way.backwards
        here = way.source
        for layer in range(way.source.layer + way.onwards, way.target.layer, way.onwards):
            if way.label is not None and way.label.layer == layer:
                here = way.lead(here, way.label)
            elif layer not in line:
                point = Item(layer=layer)
                layers[layer].append(point)
                line[layer] = point, way
                here = way.lead(here, point)
            elif leaves:
                here, way.leaves = line[layer]
            else:
                point, way.joins = line[layer]
                way.lead(here, point)
                break
        else:
            way.lead(here, way.target)
    return layers


def _order(layers: list[list[Item]]) -> None:
    """Order each layer: by the mean position of the neighbours, back and forth; keep the best order."""
    for layer in layers:
        _number(layer)
    best = count_crossings(layers)
    kept = [list(layer) for layer in layers]
    links = sum(len(item.ahead) for layer in layers for item in layer)
    for sweep in range(max(4, min(24, 60_000 // (links + 1)))):
        if not best:
            break
        forward = sweep % 2 == 0
        for layer in layers if forward else reversed(layers):
            _sort(layer, forward)
        crossings = count_crossings(layers)
        if crossings < best:
            best = crossings
            kept = [list(layer) for layer in layers]
    for layer, order in zip(layers, kept, strict=True):
        layer[:] = order
        _number(layer)
    changed = set(range(len(layers)))  # those that are new, or next to a new order
    for _ in range(max(4, 60_000 // (links + 1))):
        for n, layer in enumerate(layers):
            if n in changed:
                changed.discard(n)
                if _switch(layer):
                    changed.update(range(max(0, n - 1), min(n + 2, len(layers))))
        if not changed:
            break


def _number(layer: Sequence[Item]) -> None:
    for position, item in enumerate(layer):
        item.position = position


def _sort(layer: list[Item], forward: bool) -> None:
    """Sort by the neighbours on one side; what has none there keeps its place."""
    means: dict[Item, float] = {}
    for item in layer:
        near = item.behind_positions() if forward else item.ahead_positions()
        if near:
            means[item] = sum(near) / len(near)
    moved = iter(sorted(means, key=means.__getitem__))
    layer[:] = [next(moved) if item in means else item for item in layer]
    _number(layer)


def _switch(layer: list[Item]) -> bool:
    """Exchange two items, one below the other, wherever fewer links cross then; return whether any did."""
    switched = False
    near = [(sorted(item.ahead_positions()), sorted(item.behind_positions())) for item in layer]
    for n in range(len(layer) - 1):
        (ahead, behind), (next_ahead, next_behind) = near[n : n + 2]
        if _compare(ahead, next_ahead) + _compare(behind, next_behind) > 0:
            layer[n], layer[n + 1] = layer[n + 1], layer[n]
            near[n], near[n + 1] = near[n + 1], near[n]
            switched = True
    _number(layer)
    return switched


def _compare(upper: Sequence[int], lower: Sequence[int]) -> int:
    """Return how many links cross, less how many would if the items were exchanged.

    Args:
        upper: The positions in the other layer that the links of the upper item lead to, in order.
        lower: Those of the lower item.
    """
    if len(upper) == len(lower) == 1:
        return (upper[0] > lower[0]) - (upper[0] < lower[0])
    end = len(lower)
    return sum(bisect_left(lower, at) - (end - bisect_right(lower, at)) for at in upper)


def count_crossings(layers: Sequence[Sequence[Item]]) -> int:
    """Return how many pairs of links cross."""
    return sum(map(_crossings_ahead, layers))


def _crossings_ahead(layer: Sequence[Item]) -> int:
    crossings = 0
    seen: list[int] = []  # where the links of the items above lead to, in order
    for item in layer:
        for end in sorted([link.right.position for link in item.ahead]):
            at = bisect_right(seen, end)
            crossings += len(seen) - at
            seen.insert(at, end)
    return crossings
