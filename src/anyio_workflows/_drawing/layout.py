"""Where everything in a picture goes, in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from math import isqrt, sqrt

import attrs

from .layers import Item, Link, Way, arrange
from .measure import prose_width, shorten, shorten_list, text_width
from .picture import Edge, Node, NodeKind, Picture

NAME_SIZE, EVENT_SIZE, SMALL_SIZE = 13, 12, 11
"""Sizes of the fonts: names of steps, events in boxes, everything else."""

LINE = 16
"""Height of a line of small text."""

TIP = 10
"""Depth of the points and notches of events that enter or leave the workflow."""

EVENTS = ("start", "stop", "question", "answer", "outside", "unhandled")
"""The kinds of nodes that are events."""

MARGIN = 16
"""Room around the picture."""

PAD = 9
"""Room above the first and below the last line of a box."""

_PAD_X = 14
_BADGE = 8
_COLUMN_GAP = 36
_PORT_GAP = 12
_STIFF = 1000
"""Weight of what should stay straight: what else wants to be there moves it by less than a pixel."""

Point = tuple[int, int]


@attrs.frozen
class Box:
    """A rectangle: its left upper corner and its size."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height


@attrs.frozen
class Place:
    """Where a node goes.

    Attributes:
        node: The node.
        box: Its outline.
        label: Its label, shortened to fit.
        notes: Its notes, shortened to fit.
    """

    node: Node
    box: Box
    label: str
    notes: tuple[str, ...]


@attrs.frozen
class Route:
    """Where an edge goes.

    Attributes:
        edge: The edge.
        pieces: Points from the border of its source, or from where it leaves another edge, to the
            border of its target, or to where it joins another edge; one list, or two with the labels
            in between. Two points of one height or one column are joined by a straight line, all
            others by a curve that is horizontal at both.
        label_box: The place of the labels.
        labels: The labels, shortened to fit.
        leaves: The number of the route, of one kind and from one source, that it is part of up to its
            first point, which is a point of that one too.
        joins: The number of the route, of one kind and to one target, that it is part of from its last
            point on, which is a point of that one too.
    """

    edge: Edge
    pieces: tuple[tuple[Point, ...], ...]
    label_box: Box | None = None
    labels: tuple[str, ...] = ()
    leaves: int | None = None
    joins: int | None = None


@attrs.frozen
class Layout:
    """Where everything goes.

    Attributes:
        width: The width of the whole.
        height: The height of the whole.
        places: Those of the nodes, in the order of the picture.
        routes: Those of the edges, in the order of the picture.
    """

    width: int
    height: int
    places: tuple[Place, ...]
    routes: tuple[Route, ...]


def layout(picture: Picture) -> Layout:
    """Lay out a picture from left to right; parts that are not connected go below each other.

    Nothing overlaps: neither boxes nor labels, and no edge crosses a box or the labels of another.
    The same picture has the same layout everywhere: all coordinates are whole numbers.
    """
    loops: dict[str, list[Edge]] = {node.id: [] for node in picture.nodes}
    for edge in picture.edges:
        if edge.source == edge.target:
            loops[edge.source].append(edge)
    drafts = {node.id: _Draft.of(node, loops[node.id]) for node in picture.nodes}
    routes = [_RouteDraft.of(edge, drafts) for edge in picture.edges]
    numbers: dict[Way | None, int | None] = {route.way: n for n, route in enumerate(routes)}
    numbers[None] = None
    width, height = _pack([_Part.of(*part) for part in _parts(list(drafts.values()), routes)])
    return Layout(
        width,
        height,
        tuple(draft.place() for draft in drafts.values()),
        tuple(route.route(numbers) for route in routes),
    )


@attrs.frozen(eq=False)
class _Draft:
    """A node, whose item gets its coordinates later.

    Attributes:
        item: Its item in the layers.
        height: The height of its box.
        loops: The edges from the node to itself, from the inside out, with their labels.
        reach: How far each of the loops extends to both sides, and above the box.
    """

    node: Node
    item: Item
    height: int
    label: str
    notes: tuple[str, ...]
    loops: tuple[tuple[Edge, tuple[str, ...]], ...]
    reach: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, node: Node, own: Sequence[Edge]) -> _Draft:
        size = EVENT_SIZE if node.kind in EVENTS else NAME_SIZE
        label = shorten(node.label, 32)
        notes = shorten_list(node.notes, 6, 40)
        widths = [text_width(label, size)]
        widths += [prose_width(note, SMALL_SIZE) for note in notes]
        width = (
            (max(widths) + 1) // 2 * 2 + 2 * _PAD_X + TIP * (node.kind in ("question", "answer"))
        )
        width += TIP * 2 * (node.kind == "outside") + 8 * (node.kind == "join")
        height = 2 * PAD + name_height(node.kind) + LINE * len(notes)
        loops = tuple((edge, _shown(edge)) for edge in own)
        reach: list[tuple[int, int]] = []
        side, top = 8, 14 if any(edge.kind == "list" for edge in own) else 6  # room for the heads
        for _, labels in loops:
            side = max(side + 10, _labels_width(labels) // 2 + 14)
            rows = max(12, LINE * len(labels))
            reach.append((side, top + rows // 2))
            top += rows + 4
        if reach:
            width = max(width, 2 * (side + _BADGE + 14))
        above = max(height // 2 + _BADGE * bool(node.state), height // 2 + top * bool(reach))
        item = Item(width, above, height // 2, gap=10, is_box=True, is_start=node.kind == "start")
        return cls(node, item, height, label, notes, loops, tuple(reach))

    @property
    def box(self) -> Box:
        return Box(self.item.x, self.item.y - self.height // 2, self.item.width, self.height)

    def place(self) -> Place:
        return Place(self.node, self.box, self.label, self.notes)

    def border(self, y: int, *, right: bool) -> Point:
        """Return the point of the border at a height, on one side."""
        depth = _inset(self.node.kind, self.height / 2, abs(y - self.item.y), right=right)
        x = self.item.x + self.item.width - depth if right else self.item.x + depth
        return x, y

    def loop(self, edge: Edge) -> Route:
        """Return the way from the node over itself back to it, from the right to the left."""
        n = next(n for n, (loop, _) in enumerate(self.loops) if loop is edge)
        labels = self.loops[n][1]
        side, up = self.reach[n]
        middle, top = self.item.x + self.item.width // 2, self.box.y
        rise = ((middle + side, top), (middle + side, top - up))
        fall = ((middle - side, top - up), (middle - side, top))
        if not labels:
            return Route(edge, ((*rise, *fall),))
        width, height = _labels_width(labels), LINE * len(labels)
        box = Box(middle - width // 2, top - up - height // 2, width, height)
        pieces = ((*rise, (box.right, top - up)), ((box.x, top - up), *fall))
        return Route(edge, pieces, box, labels)


def name_height(kind: NodeKind) -> int:
    """Return the height of the line of a node's name."""
    return 12 if kind in EVENTS else LINE


def _shown(edge: Edge) -> tuple[str, ...]:
    return shorten_list(edge.labels, 6, 32)


def _labels_width(labels: Sequence[str]) -> int:
    return max((text_width(label, SMALL_SIZE) for label in labels), default=0) + 8


def _inset(kind: NodeKind, half: float, port: int, *, right: bool) -> int:
    """Return how far the outline is from the box at a height off the middle."""
    if kind in ("start", "stop", "unhandled"):
        return round(half - sqrt(half * half - port * port))
    if kind == "outside" or (kind == "question" and right):
        return round(TIP * port / half)
    if kind == "answer" and not right:
        return round(TIP * (1 - port / half))
    return 0


@attrs.define(eq=False)
class _RouteDraft:
    """An edge, whose way gets its coordinates later; a loop has no way.

    Attributes:
        columns: Left and right border of each layer, once they are known.
    """

    edge: Edge
    source: _Draft
    target: _Draft
    labels: tuple[str, ...]
    way: Way | None
    columns: list[tuple[int, int]] = attrs.field(factory=list)

    @classmethod
    def of(cls, edge: Edge, drafts: dict[str, _Draft]) -> _RouteDraft:
        source, target = drafts[edge.source], drafts[edge.target]
        labels = _shown(edge)
        way = None
        if source is not target:
            half = LINE * len(labels) // 2
            label = Item(_labels_width(labels), half, half, gap=3) if labels else None
            way = Way(source.item, target.item, edge.kind, label)
        return cls(edge, source, target, labels, way)

    def route(self, numbers: Mapping[Way | None, int | None]) -> Route:
        """Return where the edge goes, given the numbers of all ways."""
        way = self.way
        if way is None:
            return self.source.loop(self.edge)
        back = way.backwards
        points = [point for link in way.links for point in self._ends(link, back=back)]
        if way.leaves is None:
            points.insert(0, self.source.border(points[0][1], right=not back))
        if way.joins is None:
            points.append(self.target.border(points[-1][1], right=back))
        pieces = [points]
        box = None
        if (item := way.label) is not None:  # the first item on the way
            sides = (item.x, item.y), (item.x + item.width, item.y)
            pieces = [[*points[:3], sides[back]], [sides[not back], *points[3:]]]
            box = Box(item.x, item.y - item.above, item.width, item.above + item.below)
        return Route(
            self.edge,
            tuple(tuple(dict.fromkeys(piece)) for piece in pieces),
            box,
            self.labels,
            leaves=numbers[way.leaves],
            joins=numbers[way.joins],
        )

    def _ends(self, link: Link, *, back: bool) -> tuple[Point, Point]:
        """Return where the link leaves one column, and where it reaches the next."""
        left = self.columns[link.left.layer][1], link.left_y
        right = self.columns[link.right.layer][0], link.right_y
        return (right, left) if back else (left, right)


def _parts(
    drafts: Sequence[_Draft], routes: Sequence[_RouteDraft]
) -> list[tuple[list[_Draft], list[_RouteDraft]]]:
    """Return the connected parts of a picture, in the order of their first nodes."""
    near: dict[_Draft, list[_Draft]] = {draft: [] for draft in drafts}
    for route in routes:
        near[route.source].append(route.target)
        near[route.target].append(route.source)
    number: dict[_Draft, int] = {}
    parts: list[tuple[list[_Draft], list[_RouteDraft]]] = []
    for root in drafts:
        if root not in number:
            stack = [root]
            number[root] = len(parts)
            while stack:
                for other in near[stack.pop()]:
                    if other not in number:
                        number[other] = len(parts)
                        stack.append(other)
            parts.append(([], []))
        parts[number[root]][0].append(root)
    for route in routes:
        parts[number[route.source]][1].append(route)
    return parts


@attrs.define(eq=False)
class _Part:
    """A connected part of the picture, laid out from (0, 0)."""

    items: list[Item]
    columns: list[tuple[int, int]]
    width: int
    height: int

    @classmethod
    def of(cls, drafts: Sequence[_Draft], routes: Sequence[_RouteDraft]) -> _Part:
        layers = arrange(
            [draft.item for draft in drafts],
            [route.way for route in routes if route.way is not None],
        )
        for draft in drafts:
            _spread_ports(draft.item)
        _choose_heights(layers)
        columns = _choose_columns(layers)
        for route in routes:
            route.columns = columns
        items = [item for layer in layers for item in layer]
        top = min(item.y - item.above for item in items)
        for item in items:
            item.y -= top
        bottom = max(item.y + item.below for item in items)
        return cls(items, columns, columns[-1][1], bottom)

    def move(self, x: int, y: int) -> None:
        """Move everything to the right and down."""
        for item in self.items:
            item.x += x
            item.y += y
        self.columns[:] = [(left + x, right + x) for left, right in self.columns]


def _pack(parts: Sequence[_Part]) -> tuple[int, int]:
    """Put the parts below each other, small ones side by side; return the size of the whole."""
    gap = 24
    area = sum((part.width + gap) * (part.height + gap) for part in parts)
    most = max([part.width for part in parts] + [isqrt(3 * area)])
    x = y = MARGIN
    width = row = 0
    for part in parts:
        if x > MARGIN and x + part.width > MARGIN + most:
            x = MARGIN
            y += row + gap
            row = 0
        part.move(x, y)
        width = max(width, x + part.width)
        row = max(row, part.height)
        x += part.width + gap
    return width + MARGIN, y + row + MARGIN


def _spread_ports(item: Item) -> None:
    """Let the links of a box begin and end at some distance, in the order of where they lead."""
    ahead = sorted(item.ahead, key=lambda link: link.right.position)
    behind = sorted(item.behind, key=lambda link: link.left.position)
    for link, port in zip(ahead, _ports(ahead, item.below), strict=True):
        link.left_port = port
    for link, port in zip(behind, _ports(behind, item.below), strict=True):
        link.right_port = port


def _ports(links: Sequence[Link], half: int) -> list[int]:
    """Return evenly spread heights, those of the main links around the middle of the box."""
    main = [n for n, link in enumerate(links) if link.is_main] or range(len(links))
    if len(links) < 2:
        return [0] * len(links)
    middle = main[len(main) // 2] + main[~(len(main) // 2)]  # times two, as the farthest
    farthest = max(middle, 2 * len(links) - 2 - middle)
    step = min(_PORT_GAP, (half - 5) // farthest * 2)
    return [step * (2 * n - middle) // 2 for n in range(len(links))]


_Pull = tuple[list[tuple[Item, int]], int]
"""What decides where an item is wanted: how far below which others, and how much that matters."""


def _choose_heights(layers: Sequence[Sequence[Item]]) -> None:
    """Let items be as straight ahead of their neighbours as the order within the layers allows.

    First all of them, back and forth; then what is between the boxes.
    """
    stacks = [_Stack.of(layer) for layer in layers]
    for stack in stacks:
        stack.settle([([(item, 0)], 1) for item in stack.items])
    _sweep(stacks)
    _sweep([stack.between() for stack in stacks])


def _sweep(stacks: Sequence[_Stack]) -> None:
    """Go back and forth twice: more often, the boxes would only move all together."""
    for _ in range(2):
        for stack in stacks:
            stack.settle(stack.forth)
        for stack in reversed(stacks):
            stack.settle(stack.back)


@attrs.frozen(eq=False)
class _Stack:
    """A layer, and what decides the heights of its items.

    Attributes:
        items: The items, in order.
        offsets: How far each of them is below the first, at least.
        forth: What decides where each is wanted, seen from the layer before.
        back: The same, seen from the next layer.
    """

    items: Sequence[Item]
    offsets: Sequence[int]
    forth: Sequence[_Pull]
    back: Sequence[_Pull]

    @classmethod
    def of(cls, items: Sequence[Item]) -> _Stack:
        offsets = [0]
        for above, item in pairwise(items):
            offsets.append(offsets[-1] + above.below + above.gap + item.gap + item.above)
        forth = [_pull(item, forward=True) for item in items]
        back = [_pull(item, forward=False) for item in items]
        return cls(items, offsets, forth, back)

    def between(self) -> _Stack:
        """Return it with boxes at rest, labels and points straight ahead of the less crowded side."""
        forth, back = list(self.forth), list(self.back)
        for n, item in enumerate(self.items):
            if item.is_box:
                forth[n] = back[n] = [(item, 0)], _STIFF
                continue
            left = min([len(link.left.ahead) for link in item.behind])
            right = min([len(link.right.behind) for link in item.ahead])
            before, after = (forth[n][0], 1), (back[n][0], 1)
            forth[n] = before if left <= right else after
            back[n] = after if right <= left else before
        return _Stack(self.items, self.offsets, forth, back)

    def settle(self, pulls: Sequence[_Pull]) -> None:
        """Place the items as near as possible to where they are wanted, without overlap.

        This minimises the weighted sum of the squares of the distances. Items that would overlap
        are joined to blocks: a block is where its items are wanted on average.
        """
        blocks: list[tuple[float, int, int]] = []  # height of the first by weight, weight, number
        for offset, (ends, weight) in zip(self.offsets, pulls, strict=True):
            if len(ends) == 1:
                [(other, shift)] = ends
                height: float = other.y + shift
            else:  # the middle one of the links is straight
                heights = sorted([other.y + shift for other, shift in ends])
                half = len(heights) // 2
                height = (heights[half] + heights[~half]) / 2
            total, count = (height - offset) * weight, 1
            while blocks and blocks[-1][0] * weight >= total * blocks[-1][1]:
                more = blocks.pop()
                total, weight, count = total + more[0], weight + more[1], count + more[2]
            blocks.append((total, weight, count))
        placed = zip(self.items, self.offsets, strict=True)
        for total, weight, count in blocks:
            start = round(total / weight)
            for item, offset in islice(placed, count):
                item.y = start + offset


def _pull(item: Item, *, forward: bool) -> _Pull:
    """Return where the main links on one side would be straight, and how much it matters."""
    links = item.behind if forward else item.ahead
    if not links:
        return [(item, 0)], 1
    main = [link for link in links if link.is_main]
    weight = _STIFF if main else 1
    if forward:
        return [(link.left, link.left_port - link.right_port) for link in main or links], weight
    return [(link.right, link.right_port - link.left_port) for link in main or links], weight


def _choose_columns(layers: Sequence[Sequence[Item]]) -> list[tuple[int, int]]:
    """Give each layer a column, wider apart where edges are steep; return left and right of each."""
    columns: list[tuple[int, int]] = []
    x = 0
    for layer in layers:
        width = max(item.width for item in layer)
        for item in layer:
            item.x = x + (width - item.width) // 2
        columns.append((x, x + width))
        steepest = max(
            (abs(link.right_y - link.left_y) for item in layer for link in item.ahead),
            default=0,
        )
        x += width + min(_COLUMN_GAP + steepest // 6, 4 * _COLUMN_GAP)
    return columns
