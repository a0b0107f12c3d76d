"""A picture as SVG: one self-contained element, for a file, a page or a notebook."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from html import escape

import attrs

from .layout import (
    EVENT_SIZE,
    EVENTS,
    LINE,
    MARGIN,
    NAME_SIZE,
    PAD,
    SMALL_SIZE,
    TIP,
    Box,
    Place,
    Point,
    Route,
    layout,
    name_height,
)
from .measure import prose_width, shorten, text_width
from .picture import Edge, EdgeKind, Node, NodeKind, NodeState, Picture, edge_legend, node_legend

COLOURS = {
    "background": ("#ffffff", "#0d1117"),
    "text": ("#1f2328", "#e6edf3"),
    "muted": ("#59636e", "#9aa4af"),
    "line": ("#6e7781", "#8b949e"),
    "step": ("#f6f8fa", "#1a2028"),
    "start": ("#424a53", "#c9d1d9"),
    "start-text": ("#ffffff", "#0d1117"),
    "list": ("#7a3fd1", "#b794f6"),
    "failure": ("#c4202c", "#ff7b72"),
    "failure-fill": ("#fff3f2", "#2b1618"),
    "wait": ("#8a5a00", "#e3b341"),
    "wait-fill": ("#fff8e5", "#282113"),
    "outside": ("#0b6b75", "#56d4dd"),
    "outside-fill": ("#eaf7f8", "#10282c"),
    "mark": ("#ffffff", "#0d1117"),
    "running": ("#0860ca", "#58a6ff"),
    "running-fill": ("#dff0ff", "#10253f"),
    "waiting": ("#8a5a00", "#e3b341"),
    "waiting-fill": ("#fff4cc", "#33290f"),
    "done": ("#1a7f37", "#4ac266"),
    "done-fill": ("#e3f9e7", "#12291a"),
    "failed": ("#c4202c", "#ff7b72"),
    "failed-fill": ("#ffe5e3", "#3a181a"),
}
"""Each colour in light and in dark mode. A page sets others with the CSS variables `--aw-NAME`."""

_RULES = """
.aw-picture path,.aw-picture rect,.aw-picture circle{fill:inherit;stroke:inherit;stroke-width:inherit;stroke-dasharray:inherit}
.aw-picture text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;text-anchor:middle;fill:$text;stroke:none}
.aw-picture .aw-name{font-size:%(name)spx;font-weight:600}
.aw-picture .aw-event .aw-name{font-size:%(event)spx;font-weight:400}
.aw-picture .aw-label{font-size:%(small)spx}
.aw-picture .aw-note,.aw-picture .aw-legend text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;font-size:%(small)spx;fill:$muted}
.aw-picture .aw-heading{font-size:%(event)spx;font-weight:600}
.aw-picture .aw-heading,.aw-picture .aw-legend text{text-anchor:start}
.aw-picture .aw-background{fill:$background}
.aw-picture .aw-rule{fill:none;stroke:$line;stroke-opacity:.35}
.aw-picture .aw-node{fill:$step;stroke:$line;stroke-width:1.4;stroke-linejoin:round}
.aw-picture .aw-inner,.aw-picture .aw-way{fill:none}
.aw-picture .aw-start{fill:$start;stroke:$start}
.aw-picture .aw-start .aw-name{fill:$start-text}
.aw-picture .aw-stop{fill:$background;stroke:$text}
.aw-picture .aw-join .aw-bar{fill:$list;stroke:none}
.aw-picture .aw-error_handler{fill:$failure-fill;stroke:$failure}
.aw-picture .aw-question,.aw-picture .aw-answer{fill:$wait-fill;stroke:$wait}
.aw-picture .aw-outside{fill:$outside-fill;stroke:$outside}
.aw-picture .aw-unhandled{fill:$background;stroke-dasharray:4 3}
.aw-picture .aw-unhandled .aw-name{fill:$muted}
.aw-picture .aw-edge{fill:$line;stroke:$line;stroke-width:1.4;stroke-linejoin:round}
.aw-picture .aw-list{fill:$list;stroke:$list}
.aw-picture .aw-list .aw-way{stroke-width:3}
.aw-picture .aw-failure{fill:$failure;stroke:$failure}
.aw-picture .aw-failure .aw-way{stroke-dasharray:6 4}
.aw-picture .aw-failure .aw-label{fill:$failure}
.aw-picture .aw-wait{fill:$wait;stroke:$wait}
.aw-picture .aw-wait .aw-way{stroke-width:2;stroke-dasharray:0 4.5;stroke-linecap:round}
.aw-picture .aw-wait .aw-tip{fill:$background}
.aw-picture .aw-running{fill:$running-fill;stroke:$running;stroke-width:2}
.aw-picture .aw-waiting{fill:$waiting-fill;stroke:$waiting;stroke-width:2}
.aw-picture .aw-done{fill:$done-fill;stroke:$done;stroke-width:2}
.aw-picture .aw-failed{fill:$failed-fill;stroke:$failed;stroke-width:2}
.aw-picture [data-state] .aw-name{fill:$text}
.aw-picture .aw-badge{stroke:$background;stroke-width:1.5;stroke-dasharray:none}
.aw-picture .aw-running .aw-badge{fill:$running}
.aw-picture .aw-waiting .aw-badge{fill:$waiting}
.aw-picture .aw-done .aw-badge{fill:$done}
.aw-picture .aw-failed .aw-badge{fill:$failed}
.aw-picture .aw-mark{fill:none;stroke:$mark;stroke-width:2;stroke-linecap:round;stroke-dasharray:none}
"""

_STATES: tuple[NodeState, ...] = ("running", "waiting", "done", "failed")

_MARKS: dict[NodeState, str] = {
    "running": "M-2-3.5L3.5 0L-2 3.5Z",
    "waiting": "M-2-3V3M2-3V3",
    "done": "M-3.5 0L-1 2.8L3.5-2.5",
    "failed": "M-2.7-2.7L2.7 2.7M2.7-2.7L-2.7 2.7",
}

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def svg(picture: Picture) -> str:
    """Return the picture as an SVG element that needs nothing else.

    It follows the light or dark mode of the page or program that shows it. Its classes and CSS variables begin
    with `aw-`; it has no ids, so that any number of pictures may be on one page.
    """
    made = layout(picture)
    # Alone the name of a workflow is said around the picture; how a run stands is said nowhere else.
    heading = picture.title if any(node.state for node in picture.nodes) else ""
    legend = _Legend.of(picture, max(made.width, 480) - 2 * MARGIN)
    width = max(made.width, legend.width + 2 * MARGIN, 120)
    top = 24 if heading else 0
    height = top + made.height + legend.height
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="aw-picture" role="img" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'style="max-width:max(100%,{width * 7 // 10}px);height:auto">',
        f"<title>{_text(picture.title)}</title>",
        f"<desc>{_text(describe(picture))}</desc>",
        f"<style>{_style()}</style>",
        f'<rect class="aw-background" width="{width}" height="{height}" rx="8"/>',
    ]
    if heading:
        most = int((width - 2 * MARGIN) / text_width("m" * 10, EVENT_SIZE) * 10)
        out.append(_line("aw-heading", MARGIN, 26, shorten(heading, most)))
    if not picture.nodes:
        out.append(_line("aw-note", width // 2, MARGIN + 4, "no steps"))
    out.append(f'<g transform="translate({(width - made.width) // 2} {top})">')
    out += [_edge(route) for route in made.routes]
    out += [_node(place) for place in made.places]
    out.append("</g>")
    out += legend.draw(width, top + made.height)
    out.append("</svg>")
    return "\n".join(out) + "\n"


def describe(picture: Picture) -> str:
    """Return what the picture shows, in words, for those who cannot see it."""
    labels = {node.id: node.label for node in picture.nodes}
    told = []
    for edge in picture.edges[:40]:
        by = f" ({', '.join(edge.labels[:6])})" if edge.labels else ""
        told.append(f"{labels[edge.source]} to {labels[edge.target]}{by}")
    if len(picture.edges) > 40:
        told.append(f"and {len(picture.edges) - 40} more")
    steps = sum(node.kind not in EVENTS for node in picture.nodes)
    return f"Workflow of {steps} step{'s' * (steps != 1)}. {'; '.join(told)}"


def _text(text: str, most: int = 4000) -> str:
    """Return the text for XML: escaped, without characters that XML does not know."""
    if len(text) > most:
        text = text[: most - 1] + "…"
    return escape(_FORBIDDEN.sub("\ufffd", text))


@functools.cache
def _style() -> str:
    """Return the style sheet; each colour once more by itself, for programs that know no variables."""
    light, dark = (
        "".join(f"--_{name}:var(--aw-{name},{pair[mode]});" for name, pair in COLOURS.items())
        for mode in (0, 1)
    )
    rules = _RULES % {"name": NAME_SIZE, "event": EVENT_SIZE, "small": SMALL_SIZE}
    rules = re.sub(
        r"(fill|stroke):\$([a-z-]+)",
        lambda found: f"{found[1]}:{COLOURS[found[2]][0]};{found[1]}:var(--_{found[2]})",
        rules,
    )
    return f"\n.aw-picture{{{light}}}\n@media (prefers-color-scheme:dark){{.aw-picture{{{dark}}}}}{rules}"


# Nodes


def _node(place: Place) -> str:
    node, box = place.node, place.box
    middle = box.x + box.width // 2
    if node.kind in ("question", "answer"):
        middle += TIP // 2 * (-1 if node.kind == "question" else 1)
    if node.kind == "join":
        middle += 4
    corner = box.right - TIP * (node.kind in ("question", "outside"))
    is_event = node.kind in EVENTS
    y = box.y + PAD + name_height(node.kind)
    texts = [_line("aw-name", middle, y - (2 if is_event else 4), place.label)]
    for n, note in enumerate(place.notes):
        texts.append(_line("aw-note", middle, y + LINE * n + 12, note))
    attribute = f'data-event="{_text(node.label)}"' if is_event else f'data-step="{_text(node.id)}"'
    state = f' data-state="{node.state}"' if node.state else ""
    classes = f"aw-node aw-{node.kind}" + " aw-event" * is_event
    classes += f" aw-{node.state}" if node.state else ""
    return (
        f'<g class="{classes}" {attribute}{state}><title>{_text(_tooltip(node), 1000)}</title>'
        f"{_shape(node.kind, box)}{''.join(texts)}"
        f"{_badge(node.state, corner - 4, box.y + 1)}</g>"
    )


def _tooltip(node: Node) -> str:
    return "\n".join(filter(None, [node.label, node.state, *node.notes, node.doc]))


def _line(kind: str, x: int, y: int, text: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{_text(text)}</text>'


def _badge(state: NodeState, x: int, y: int) -> str:
    if not state:
        return ""
    return (
        f'<g transform="translate({x} {y})"><circle class="aw-badge" r="8"/>'
        f'<path class="aw-mark" d="{_MARKS[state]}"/></g>'
    )


def _shape(kind: NodeKind, box: Box) -> str:
    """Return the outline of a node, and what else tells its kind."""
    x, y, right, bottom = box.x, box.y, box.right, box.bottom
    width, height = box.width, box.height
    middle = y + height // 2
    if kind == "error_handler":
        cut = min(7, height // 4)
        return (
            f'<path d="M{x + cut} {y}H{right - cut}l{cut} {cut}V{bottom - cut}l-{cut} {cut}'
            f'H{x + cut}l-{cut}-{cut}V{y + cut}Z"/>'
        )
    if kind == "question":
        return f'<path d="M{x} {y}H{right - TIP}L{right} {middle}L{right - TIP} {bottom}H{x}Z"/>'
    if kind == "answer":
        return f'<path d="M{x} {y}H{right}V{bottom}H{x}L{x + TIP} {middle}Z"/>'
    if kind == "outside":
        return (
            f'<path d="M{x + TIP} {y}H{right - TIP}L{right} {middle}L{right - TIP} {bottom}'
            f'H{x + TIP}L{x} {middle}Z"/>'
        )
    radius = 6 if kind in ("step", "join") else height // 2
    shape = _rect("", box, radius)
    if kind == "stop":
        inner = Box(x + 3, y + 3, width - 6, height - 6)
        return shape + _rect("aw-inner", inner, radius - 3)
    if kind == "join":
        return (
            shape
            + f'<path class="aw-bar" d="M{x + 6} {y}h2v{height}h-2a6 6 0 0 1-6-6v{12 - height}a6 6 0 0 1 6-6Z"/>'
        )
    return shape


def _rect(kind: str, box: Box, radius: int) -> str:
    kind = f' class="{kind}"' if kind else ""
    return (
        f'<rect{kind} x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" '
        f'rx="{radius}"/>'
    )


# Edges


def _edge(route: Route) -> str:
    edge = route.edge
    pieces = [list(piece) for piece in route.pieces]
    tip = "" if route.joins is not None else _cut_for_tip(edge.kind, pieces[-1])
    draw = _loop_path if edge.source == edge.target else _path
    way = "".join(draw(piece) for piece in pieces if len(piece) > 1)
    texts = ""
    if (box := route.label_box) is not None:
        texts = "".join(
            _line("aw-label", box.x + box.width // 2, box.y + LINE * n + 12, label)
            for n, label in enumerate(route.labels)
        )
    return (
        f'<g class="aw-edge aw-{edge.kind}" data-source="{_text(edge.source)}" '
        f'data-target="{_text(edge.target)}"><title>{_text(_edge_tooltip(edge), 1000)}</title>'
        + (f'<path class="aw-way" d="{way}"/>' if way else "")
        + f"{tip}{texts}</g>"
    )


def _edge_tooltip(edge: Edge) -> str:
    return f"{edge.source} \N{RIGHTWARDS ARROW} {edge.target}" + "".join(
        f"\n{label}" for label in edge.labels
    )


def _cut_for_tip(kind: EdgeKind, piece: list[Point]) -> str:
    """Shorten a piece by the length of its arrow head; return the head, for a list a double one."""
    (before, _), (x, y) = piece[-2:]
    to_x = (x > before) - (x < before)
    to_y = 1 - abs(to_x)  # a loop comes from above
    head = ""
    for _ in range(2 if kind == "list" else 1):
        back_x, back_y = x - 8 * to_x, y - 8 * to_y
        head += (
            f"M{back_x - 4 * to_y} {back_y - 4 * to_x}L{x} {y}"
            f"L{back_x + 4 * to_y} {back_y + 4 * to_x}Z"
        )
        x, y = x - 7 * to_x, y - 7 * to_y
    piece[-1] = (x - to_x, y - to_y)
    return f'<path class="aw-tip" d="{head}"/>'


def _path(points: Sequence[Point]) -> str:
    (x, y), *rest = points
    path = f"M{x} {y}"
    level = False
    for to_x, to_y in rest:
        if to_y == y:
            if level:
                path = path[: path.rindex("H")]
            path += f"H{to_x}"
        else:
            middle = (x + to_x) // 2
            path += f"C{middle} {y} {middle} {to_y} {to_x} {to_y}"
        level = to_y == y
        x, y = to_x, to_y
    return path


def _loop_path(points: Sequence[Point]) -> str:
    """Return a path of straight lines with round corners: up, to the left, down."""
    path = f"M{points[0][0]} {points[0][1]}"
    for (before, _), (x, y), (after, _) in zip(points, points[1:], points[2:], strict=False):
        if before == x:
            path += f"V{y + 6}a6 6 0 0 0-6-6"
        elif after == x:
            path += f"H{x + 6}a6 6 0 0 0-6 6"
    (before, _), (x, y) = points[-2:]
    return path + (f"V{y}" if before == x else f"H{x}")


# Legend


@attrs.frozen
class _Entry:
    """A form, drawn small, and what it means."""

    sample: str
    text: str
    width: int


@attrs.frozen
class _Legend:
    """The forms that occur, in rows.

    Attributes:
        entries: Each with the place of its upper left corner.
        width: The width of the widest row.
        height: The height of all rows.
    """

    entries: tuple[tuple[int, int, _Entry], ...]
    width: int
    height: int

    @classmethod
    def of(cls, picture: Picture, most: int) -> _Legend:
        entries = []
        x = y = width = 0
        for entry in _entries(picture):
            if x and x + entry.width > most:
                x = 0
                y += 22
            entries.append((x, y, entry))
            width = max(width, x + entry.width)
            x += entry.width + 18
        return cls(tuple(entries), width, y + 38 if entries else 0)

    def draw(self, width: int, top: int) -> Iterator[str]:
        if not self.entries:
            return
        yield f'<g class="aw-legend" transform="translate({MARGIN} {top})">'
        yield f'<path class="aw-rule" d="M0 0H{width - 2 * MARGIN}"/>'
        for x, y, entry in self.entries:
            yield (
                f'<g transform="translate({x} {y + 12})">{entry.sample}'
                f'<text x="34" y="11">{_text(entry.text)}</text></g>'
            )
        yield "</g>"


def _entries(picture: Picture) -> Iterator[_Entry]:
    for node_kind, text in node_legend(picture).items():
        shape = _shape(node_kind, Box(0, 0, 28, 14))
        yield _entry(f'<g class="aw-node aw-{node_kind}">{shape}</g>', text)
    for edge_kind, text in edge_legend(picture).items():
        line = [(0, 7), (28, 7)]
        tip = _cut_for_tip(edge_kind, line)
        way = f'<path class="aw-way" d="{_path(line)}"/>'
        yield _entry(f'<g class="aw-edge aw-{edge_kind}">{way}{tip}</g>', text)
    states = {node.state for node in picture.nodes}
    for state in _STATES:
        if state in states:
            yield _entry(f'<g class="aw-node aw-{state}">{_badge(state, 14, 7)}</g>', state)


def _entry(sample: str, text: str) -> _Entry:
    return _Entry(sample, text, 34 + prose_width(text, SMALL_SIZE))
