"""Pictures as SVG: self-contained, readable in light and dark, safe on a page, and a form for everything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import attrs
import pytest
from hypothesis import example, given

from anyio_workflows._drawing.layout import layout
from anyio_workflows._drawing.picture import Edge, Node, Picture
from anyio_workflows._drawing.svg import COLOURS, svg

from .pictures import EDGE_KINDS, EVERY_FORM, NODE_KINDS, PAIRS, STATES, pictures

SVG = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> Element:
    return ElementTree.fromstring(text)


def with_class(root: Element, name: str) -> list[Element]:
    return [found for found in root.iter() if name in found.get("class", "").split()]


def text_of(element: Element) -> list[str]:
    return [text.text or "" for text in element.iter(f"{SVG}text")]


def rules(text: str) -> Iterator[tuple[str, str]]:
    """Yield each selector of the style sheet with its declarations."""
    [style] = parsed(text).iter(f"{SVG}style")
    sheet = (style.text or "").replace("@media (prefers-color-scheme:dark){", "").replace("}}", "}")
    for selectors, declarations in re.findall(r"([^{}]+)\{([^{}]*)\}", sheet):
        for selector in selectors.split(","):
            yield selector.strip(), declarations


@given(pictures())
@example(EVERY_FORM)
@example(PAIRS)
def test_everything_is_drawn(picture: Picture) -> None:
    root = parsed(svg(picture))
    nodes = [
        found
        for found in with_class(root, "aw-node")
        if found.get("class") and found.find(f"{SVG}title") is not None
    ]
    assert len(nodes) == len(picture.nodes)
    edges = [found for found in with_class(root, "aw-edge") if found.get("data-source")]
    assert sorted(
        (e.get("data-source"), e.get("data-target"), e.get("class")) for e in edges
    ) == sorted((edge.source, edge.target, f"aw-edge aw-{edge.kind}") for edge in picture.edges)
    assert all(edge.find(f"{SVG}path") is not None for edge in edges)
    shown = [(route.edge.kind, len(route.labels)) for route in layout(picture).routes]
    assert [(e.get("class", "").split("aw-")[-1], len(text_of(e))) for e in edges] == shown


@given(pictures())
def test_every_target_has_an_arrow_head_for_each_kind_of_edge(picture: Picture) -> None:
    root = parsed(svg(picture))
    heads = {
        (edge.get("data-target"), edge.get("class"))
        for edge in with_class(root, "aw-edge")
        if any(path.get("class") == "aw-tip" for path in edge.iter(f"{SVG}path"))
    }
    assert {(e.target, f"aw-edge aw-{e.kind}") for e in picture.edges} <= heads


@given(pictures())
@example(EVERY_FORM)
def test_where_an_edge_joins_another_there_is_no_arrow_head(picture: Picture) -> None:
    edges = [e for e in with_class(parsed(svg(picture)), "aw-edge") if e.get("data-source")]
    heads = [bool(with_class(edge, "aw-tip")) for edge in edges]
    assert heads == [route.joins is None for route in layout(picture).routes]


@given(pictures())
@example(EVERY_FORM)
def test_nothing_leaks_to_the_page_or_collides_with_another_picture(picture: Picture) -> None:
    text = svg(picture)
    root = parsed(text)
    assert not [element for element in root.iter() if element.get("id") or element.get("href")]
    assert {element.tag for element in root.iter()} <= {
        SVG + name
        for name in ("svg", "title", "desc", "style", "rect", "g", "path", "text", "circle")
    }
    classes = {name for element in root.iter() for name in element.get("class", "").split()}
    assert all(name.startswith("aw-") for name in classes)
    assert all(selector.startswith(".aw-picture") for selector, _ in rules(text))
    assert "url(" not in text.partition("</style>")[0]
    assert "@import" not in text.partition("</style>")[0]


@given(pictures())
@example(EVERY_FORM)
def test_all_text_is_inside(picture: Picture) -> None:
    root = parsed(svg(picture))
    width, height = (int(root.get(name, "")) for name in ("width", "height"))
    assert root.get("viewBox") == f"0 0 {width} {height}"

    def check(element: Element, x: int, y: int) -> None:
        if found := re.fullmatch(r"translate\((\d+) (-?\d+)\)", element.get("transform", "")):
            x, y = x + int(found[1]), y + int(found[2])
        for child in element:
            if child.tag == f"{SVG}text":
                assert 0 < x + int(child.get("x", "")) < width
                assert 8 < y + int(child.get("y", "")) < height - 3
            check(child, x, y)

    check(root, 0, 0)


HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><b onclick=x",
    "]]> --> <!--",
    "a\x00\x1b\ud800\uffffb",
    "&amp;",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_only_text(name: str) -> None:
    node = Node(name, name, "step", (name,), "running", name)
    root = parsed(svg(Picture(name, (node,), (Edge(name, name, labels=(name,)),))))
    shown = re.sub("[\x00\x1b\ud800\uffff]", "\ufffd", name)
    assert text_of(root).count(shown) == 4  # heading, label of the edge, name, note
    [box] = [found for found in with_class(root, "aw-node") if found.get("data-step")]
    assert box.get("data-step") == shown
    assert not [
        key for element in root.iter() for key in dict(element.items()) if key.startswith("on")
    ]


def test_the_full_name_and_the_docstring_are_in_the_tooltip() -> None:
    name = "very_long_name_" * 9
    node = Node(name, name, "step", ("4 workers",), "failed", "What it does.")
    root = parsed(svg(Picture("Long", (node,), ())))
    [box] = [found for found in with_class(root, "aw-node") if found.get("data-step")]
    assert box.findtext(f"{SVG}title") == f"{name}\nfailed\n4 workers\nWhat it does."
    assert "…" in text_of(box)[0]


def test_boxes_say_what_they_are() -> None:
    nodes = (Node("a", "a", "step", state="done"), Node("(Done)", "Done", "stop"))
    root = parsed(svg(Picture("Data", nodes, (Edge("a", "(Done)"),))))
    [step] = [found for found in root.iter() if found.get("data-step")]
    assert (step.get("data-step"), step.get("data-state")) == ("a", "done")
    [event] = [found for found in root.iter() if found.get("data-event")]
    assert (event.get("data-event"), event.get("data-state")) == ("Done", None)


def test_screen_readers_are_told_what_is_shown() -> None:
    root = parsed(svg(EVERY_FORM))
    assert root.get("role") == "img"
    title, description = list(root)[:2]
    assert (title.tag, title.text) == (f"{SVG}title", "Every <form>")
    assert description.tag == f"{SVG}desc"
    assert "Workflow of 8 steps. Start to step (Begun); " in (description.text or "")


def test_a_long_description_is_cut() -> None:
    nodes = tuple(Node(f"{n}", f"{n}", "step") for n in range(60))
    picture = Picture("Long", nodes, tuple(Edge(f"{n}", f"{n + 1}") for n in range(59)))
    assert (parsed(svg(picture)).findtext(f"{SVG}desc") or "").endswith("; and 19 more")


def legend(picture: Picture) -> list[str]:
    return [
        text for group in with_class(parsed(svg(picture)), "aw-legend") for text in text_of(group)
    ]


def test_the_legend_shows_the_forms_that_occur() -> None:
    assert legend(Picture("", (), ())) == []
    one = Picture("One", (Node("a", "a", "step", state="done"),), (Edge("a", "a", "wait"),))
    assert legend(one) == ["step", "asked or awaited inside a step", "done"]
    assert len(legend(EVERY_FORM)) == len(NODE_KINDS) + len(EDGE_KINDS) + len(STATES) - 1


def test_the_legend_of_a_small_picture_has_several_rows() -> None:
    nodes = tuple(Node(kind, "a", kind) for kind in NODE_KINDS[:3])
    edges = tuple(Edge("step", "step", kind) for kind in EDGE_KINDS)
    assert int(parsed(svg(Picture("Small", nodes, edges))).get("width", "")) <= 480


def heading(picture: Picture) -> list[str]:
    return [found.text or "" for found in with_class(parsed(svg(picture)), "aw-heading")]


def test_only_a_run_has_a_heading() -> None:
    node = Node("a", "a", "step")
    assert heading(Picture("Job", (node,), ())) == []
    assert heading(Picture("Job: done", (attrs.evolve(node, state="done"),), ())) == ["Job: done"]


# --- Forms ------------------------------------------------------------------------------------------


def colourless(name: str, text: str) -> list[tuple[str, list[str]]]:
    """Return the declarations for a class that would be seen in a picture without colours."""
    return [
        (selector, re.findall(r"stroke-\w+:[^;]+|fill:none", declarations))
        for selector, declarations in rules(text)
        if f".{name}" in selector.split()[-1] or f".{name} " in selector
    ]


def forms(picture: Picture, selector: str) -> dict[str, str]:
    """Return what is drawn for each sample in the legend, except for colours."""
    text = svg(picture)
    [found] = with_class(parsed(text), "aw-legend")
    shapes = {}
    for group in with_class(found, selector):
        kind = group.get("class", "").split()[-1]
        style = "".join(part for _, parts in colourless(kind, text) for part in parts)
        shape = "".join(ElementTree.tostring(child, "unicode") for child in group)
        shapes[kind] = shape + style
    return shapes


def test_every_kind_of_node_and_state_has_a_form_of_its_own() -> None:
    shapes = forms(EVERY_FORM, "aw-node")
    assert set(shapes) == {f"aw-{kind}" for kind in (*NODE_KINDS, *STATES) if kind}
    same = [pair for pair in combinations(shapes, 2) if shapes[pair[0]] == shapes[pair[1]]]
    assert same == []


def test_every_kind_of_edge_has_a_form_of_its_own() -> None:
    shapes = forms(EVERY_FORM, "aw-edge")
    assert set(shapes) == {f"aw-{kind}" for kind in EDGE_KINDS}
    assert len(set(shapes.values())) == len(EDGE_KINDS)


def test_dashes_that_join_are_drawn_once() -> None:
    nodes = tuple(Node(name, name, "step") for name in "abcdef")
    main = tuple(Edge(one, other) for one, other in zip("abcd", "bcde", strict=True))
    failures = tuple(Edge(name, "f", "failure") for name in "abcde")
    root = parsed(svg(Picture("Failing", nodes, main + failures)))
    drawn = [
        path.get("d", "")
        for edge in with_class(root, "aw-failure")
        if edge.get("data-source")
        for path in edge.iter(f"{SVG}path")
        if path.get("class") == "aw-way"
    ]
    assert len(drawn) == len(failures)
    assert sum("H" in way for way in drawn) == 1


# --- Colours ----------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


FILLS = ["background", "step", *(name for name in COLOURS if name.endswith("-fill"))]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_aa_asks_for(mode: int) -> None:
    pairs = [(text, fill) for text in ("text", "muted") for fill in FILLS]
    pairs += [("start-text", "start"), ("failure", "background")]
    low = {
        pair: contrast(*(COLOURS[name][mode] for name in pair))
        for pair in pairs
        if contrast(*(COLOURS[name][mode] for name in pair)) < 4.5
    }
    assert low == {}


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_lines_have_the_contrast_that_wcag_aa_asks_for(mode: int) -> None:
    lines = ["line", "list", "failure", "wait", "outside", "running", "waiting", "done", "failed"]
    pairs = [(line, "background") for line in lines] + [("line", "step")]
    pairs += [("mark", line) for line in lines[-4:]]
    assert [pair for pair in pairs if contrast(*(COLOURS[n][mode] for n in pair)) < 3] == []


def test_a_page_may_set_every_colour_and_its_own_are_for_both_modes() -> None:
    text = svg(EVERY_FORM)
    [light, dark] = [declared for selector, declared in rules(text) if selector == ".aw-picture"]
    for name, colours in COLOURS.items():
        for mode, declared in enumerate((light, dark)):
            assert f"--_{name}:var(--aw-{name},{colours[mode]})" in declared
    used = set(re.findall(r"var\(--_([a-z-]+)\)", text))
    assert used == set(COLOURS)
