"""Where everything in a picture goes: nothing overlaps, and every edge leads from border to border."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_workflows._drawing.layers import Item, Link, Way, arrange, count_crossings
from anyio_workflows._drawing.layout import TIP, Box, Layout, Place, Point, Route, layout
from anyio_workflows._drawing.measure import columns, prose_width, shorten, shorten_list, text_width
from anyio_workflows._drawing.picture import Edge, Node, Picture
from anyio_workflows._drawing.svg import svg

from .pictures import EDGE_KINDS, EVERY_FORM, PAIRS, asking, ladder, pictures
from .running import run_script


def chain(*names: str) -> Picture:
    edges = (Edge(one, other) for one, other in pairwise(names))
    return Picture("Chain", tuple(Node(name, name, "step") for name in names), tuple(edges))


def joined(*edges: tuple[str, str]) -> Picture:
    """Return a picture of steps with these edges."""
    names = dict.fromkeys(name for edge in edges for name in edge)
    nodes = tuple(Node(name, name, "step") for name in names)
    return Picture("Joined", nodes, tuple(Edge(*edge) for edge in edges))


def boxes(made: Layout) -> dict[str, Box]:
    return {place.node.id: place.box for place in made.places}


def overlap(one: Box, other: Box) -> bool:
    return (
        one.x < other.right
        and other.x < one.right
        and one.y < other.bottom
        and other.y < one.bottom
    )


def on_border(place: Place, point: Point) -> bool:
    """Return whether the outline of a node passes the point; pills and tips are inside the box."""
    x, y = point
    box = place.box
    if place.node.kind in ("step", "join", "error_handler") and x in (box.x, box.right):
        return box.y < y < box.bottom
    if y == box.y:
        return box.x < x < box.right
    side = min(x - box.x, box.right - x)
    middle = abs(y - box.y - box.height / 2)
    half = box.height / 2
    if place.node.kind in ("start", "stop", "unhandled"):
        return abs((half - side) ** 2 + middle**2 - half**2) <= half
    slope = TIP * middle / half
    left = x - box.x < box.right - x
    depth = {
        "outside": slope,
        "question": 0 if left else slope,
        "answer": TIP - slope if left else 0,
    }[place.node.kind]
    return abs(side - depth) <= 1


def last_piece(made: Layout, route: Route) -> tuple[Point, ...]:
    """Return the points to the target, those on other routes that it joins included."""
    piece = route.pieces[-1]
    while route.joins is not None:
        joined = made.routes[route.joins]
        assert (joined.edge.target, joined.edge.kind) == (route.edge.target, route.edge.kind)
        [common] = [other for other in joined.pieces if piece[-1] in other]
        assert common is joined.pieces[-1]
        piece += common[common.index(piece[-1]) + 1 :]
        route = joined
    return piece


def first_piece(made: Layout, route: Route) -> tuple[Point, ...]:
    """Return the points from the source, those on other routes that it leaves included."""
    piece = route.pieces[0]
    while route.leaves is not None:
        left = made.routes[route.leaves]
        assert (left.edge.source, left.edge.kind) == (route.edge.source, route.edge.kind)
        [common] = [other for other in left.pieces if piece[0] in other]
        assert common is left.pieces[0]
        piece = common[: common.index(piece[0])] + piece
        route = left
    return piece


def passed(route: Route) -> Iterator[tuple[float, float]]:
    """Yield points all along an edge, curves as they are drawn."""
    for piece in route.pieces:
        for (x0, y0), (x1, y1) in pairwise(piece):
            for n in range(17):
                t = n / 16
                bend = 3 * t * (1 - t)
                middle = (x0 + x1) / 2
                straight = x0 == x1 or y0 == y1
                x = x0 + (x1 - x0) * t
                if not straight:
                    x = x0 * (1 - t) ** 3 + bend * middle + x1 * t**3
                y = y0 + (y1 - y0) * t if straight else y0 + (y1 - y0) * (bend * t + t**3)
                yield x, y


def inside(box: Box, x: float, y: float) -> bool:
    return box.x < x < box.right and box.y < y < box.bottom


@given(pictures())
@example(EVERY_FORM)
@example(PAIRS)
def test_nothing_overlaps_and_everything_is_inside(picture: Picture) -> None:
    made = layout(picture)
    labels = [route.label_box for route in made.routes if route.label_box is not None]
    placed = [place.box for place in made.places] + labels
    assert not [pair for pair in combinations(placed, 2) if overlap(*pair)]
    points = [point for route in made.routes for piece in route.pieces for point in piece]
    points += [(box.x, box.y) for box in placed] + [(box.right, box.bottom) for box in placed]
    assert all(0 < x < made.width and 0 < y < made.height for x, y in points)


@given(pictures())
@example(EVERY_FORM)
@example(PAIRS)
def test_every_edge_leads_from_border_to_border(picture: Picture) -> None:
    made = layout(picture)
    places = {place.node.id: place for place in made.places}
    assert [place.node for place in made.places] == list(picture.nodes)
    assert [route.edge for route in made.routes] == list(picture.edges)
    for route in made.routes:
        assert on_border(places[route.edge.source], first_piece(made, route)[0])
        assert on_border(places[route.edge.target], last_piece(made, route)[-1])
        assert (route.label_box is not None) == bool(route.edge.labels)
        assert len(route.pieces) == 1 + bool(route.edge.labels)
        if route.label_box is not None:
            ends = {route.pieces[0][-1][0], route.pieces[1][0][0]}
            assert ends == {route.label_box.x, route.label_box.right}


@given(pictures())
@example(EVERY_FORM)
def test_no_edge_crosses_a_box_or_labels(picture: Picture) -> None:
    made = layout(picture)
    labels = [route.label_box for route in made.routes if route.label_box is not None]
    placed = [place.box for place in made.places] + labels
    own = {place.node.id: place for place in made.places}
    for route in made.routes:
        ends = [own[route.edge.source].box, own[route.edge.target].box]
        for x, y in passed(route):
            assert not [box for box in placed if inside(box, x, y) and box not in ends]


@given(pictures())
def test_parallel_edges_have_ways_of_their_own(picture: Picture) -> None:
    made = layout(picture)
    for one, other in combinations(made.routes, 2):
        between = {one.edge.source, one.edge.target}
        if between == {other.edge.source, other.edge.target} and len(between) == 2:
            assert set(one.pieces) != set(other.pieces)


def test_four_kinds_of_edges_between_two_steps_begin_and_end_apart() -> None:
    nodes = (Node("a", "a", "step"), Node("b", "b", "step"))
    made = layout(Picture("Pair", nodes, tuple(Edge("a", "b", kind) for kind in EDGE_KINDS)))
    assert len({route.pieces[0][0] for route in made.routes}) == len(EDGE_KINDS)
    assert len({route.pieces[-1][-1] for route in made.routes}) == len(EDGE_KINDS)


def test_a_chain_goes_straight_from_left_to_right() -> None:
    made = layout(chain("a", "bb", "ccc", "dddd"))
    places = [place.box for place in made.places]
    assert all(one.right < other.x for one, other in pairwise(places))
    assert len({y for route in made.routes for piece in route.pieces for _, y in piece}) == 1


def test_a_failure_does_not_bend_the_main_way() -> None:
    main = chain("a", "b", "c")
    handler = Node("on_error", "on_error", "error_handler")
    failures = tuple(Edge(node.id, "on_error", "failure") for node in main.nodes)
    made = layout(Picture("Failing", (*main.nodes, handler), (*main.edges, *failures)))
    heights = {y for route in made.routes[:2] for piece in route.pieces for _, y in piece}
    assert len(heights) == 1


def test_what_every_step_may_do_as_well_does_not_bend_the_main_way() -> None:
    made = layout(asking(9))
    steps = [place.box for place in made.places if place.node.kind == "step"]
    labels = [route.label_box for route in made.routes if route.label_box is not None]
    assert len({box.y + box.height // 2 for box in steps + labels}) == 1


def test_a_cycle_is_drawn_with_one_edge_back() -> None:
    made = layout(joined(("a", "b"), ("b", "c"), ("c", "a"), ("b", "a")))
    back = [route.pieces[0][0][0] > route.pieces[-1][-1][0] for route in made.routes]
    assert back == [False, False, True, True]


def test_the_start_event_is_at_the_left_end_of_a_cycle() -> None:
    nodes = (
        Node("a", "a", "step"),
        Node("b", "b", "step"),
        Node("(StartEvent)", "StartEvent", "start"),
    )
    edges = (Edge("a", "b"), Edge("b", "a"), Edge("(StartEvent)", "b"))
    found = boxes(layout(Picture("Cycle", nodes, edges)))
    assert found["(StartEvent)"].x < found["b"].x < found["a"].x


def test_what_comes_from_outside_is_next_to_what_takes_it() -> None:
    main = chain("a", "b", "c", "d")
    answer = Node("(Answer)", "Answer", "answer")
    picture = Picture("Asks", (answer, *main.nodes), (*main.edges, Edge("(Answer)", "d", "wait")))
    found = boxes(layout(picture))
    assert found["b"].right < found["(Answer)"].x < found["d"].x


def test_failures_from_everywhere_join_one_line() -> None:
    names = [f"step_{n}" for n in range(9)]
    main = chain(*names)
    handler = Node("on_error", "on_error", "error_handler")
    failures = tuple(Edge(name, "on_error", "failure") for name in names)
    made = layout(Picture("Failing", (*main.nodes, handler), (*main.edges, *failures)))
    ends = {last_piece(made, r)[-2:] for r in made.routes if r.edge.kind == "failure"}
    assert len(ends) == 2  # that of the last step, and the line of all others


def test_an_answer_that_steps_everywhere_wait_for_leads_to_them_by_one_line() -> None:
    picture = asking(9)
    made = layout(picture)
    answers = [route for route in made.routes if route.edge.source == "(Answer)"]
    starts = {first_piece(made, route)[:2] for route in answers}
    assert len(starts) == 2  # that to the first step, and the line of all others
    places = {place.node.id: place for place in made.places}
    assert all(on_border(places[r.edge.target], r.pieces[-1][-1]) for r in answers)


def test_parts_that_are_not_connected_are_apart() -> None:
    made = layout(joined(*((f"a{n}", f"b{n}") for n in range(30))))
    assert made.height < 3 * made.width
    assert made.width < 3 * made.height


@pytest.mark.parametrize("picture", [Picture("", (), ()), chain("alone")], ids=["empty", "one"])
def test_a_picture_of_next_to_nothing(picture: Picture) -> None:
    made = layout(picture)
    assert made.width > 0
    assert made.height > 0


def test_the_order_of_hashes_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""
    import sys
    sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
    from anyio_workflows._drawing.svg import svg
    from tests.pictures import EVERY_FORM, ladder
    print(svg(EVERY_FORM) + svg(ladder(60)))
    """
    found = set()
    for seed in "12":
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        found.add(run_script(program).stdout)
    assert found == {svg(EVERY_FORM) + svg(ladder(60)) + "\n"}


# --- Crossings --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=25))
def test_crossings_are_counted_as_by_comparing_all_pairs(pairs: list[tuple[int, int]]) -> None:
    left, right = ([Item(position=n) for n in range(9)] for _ in range(2))
    for one, other in pairs:
        left[one].ahead.append(Link(left[one], right[other]))
    crossing = [
        1 for (a, b), (c, d) in combinations(pairs, 2) if (a < c and b > d) or (a > c and b < d)
    ]
    assert count_crossings([left, right]) == len(crossing)


@given(st.permutations(range(8)))
def test_what_can_be_drawn_without_crossings_is(order: list[int]) -> None:
    picture = joined(
        *((f"a{n}", f"b{m}") for n, m in enumerate(order)), *(("s", f"a{n}") for n in range(8))
    )
    made = layout(picture)
    found = boxes(made)
    downwards = sorted(range(8), key=lambda n: found[f"a{n}"].y)
    ends = [found[f"b{order[n]}"].y for n in downwards]
    assert ends == sorted(ends)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_no_two_neighbours_would_cross_less_if_exchanged(pairs: list[tuple[int, int]]) -> None:
    items = [Item() for _ in range(10)]
    ways = [Way(items[one], items[other], "event") for one, other in pairs if one != other]
    made = arrange(items, ways)
    least = count_crossings(made)
    for layer in made:
        for one, other in pairwise(layer):
            one.position, other.position = other.position, one.position
            layers = [sorted(each, key=lambda item: item.position) for each in made]
            assert count_crossings(layers) >= least
            one.position, other.position = other.position, one.position


@given(pictures())
@example(PAIRS)
def test_a_line_never_both_gathers_and_spreads(picture: Picture) -> None:
    """Else it would show ways that are none: from each that joins it to each that leaves it."""
    boxes = {node.id: Item(is_box=True) for node in picture.nodes}
    ways = [
        Way(boxes[edge.source], boxes[edge.target], edge.kind, Item() if edge.labels else None)
        for edge in picture.edges
        if edge.source != edge.target
    ]
    for layer in arrange(list(boxes.values()), ways):
        for item in layer:
            assert item.is_box or 1 in (len(item.ahead), len(item.behind))


# --- Text ------------------------------------------------------------------------------------------


@given(st.text(), st.integers(4, 40))
def test_a_shortened_text_is_one_line_and_fits(text: str, most: int) -> None:
    short = shorten(text, most)
    assert columns(short) <= most
    assert len(short.splitlines()) <= 1
    assert short == " ".join(text.split()) or "…" in short


def test_a_shortened_text_keeps_both_ends() -> None:
    assert shorten("a_name_that_is_far_too_long_to_show", 20) == "a_name_that_i…o_show"
    assert shorten("処理する" * 9, 20) == "処理する処理す…理する"


def test_wide_characters_take_more_room() -> None:
    assert text_width("処理する", 10) > 1.5 * text_width("step", 10)
    assert prose_width("処理する", 10) > prose_width("step", 10)
    assert text_width("e\u0301" * 5, 10) == text_width("e" * 5, 10)


def test_a_list_that_is_too_long_says_how_much_is_omitted() -> None:
    assert shorten_list(("a", "b", "c"), 3, 9) == ("a", "b", "c")
    assert shorten_list(("a", "b", "c", "d"), 3, 10) == ("a", "b", "and 2 more")


# --- Cost ------------------------------------------------------------------------------------------


def lines_executed(picture: Picture) -> int:
    """Lay out a picture and count the lines that are executed meanwhile."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        layout(picture)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("make", [ladder, asking])
def test_the_cost_hardly_grows_faster_than_the_picture(make: Callable[[int], Picture]) -> None:
    few, many = lines_executed(make(100)), lines_executed(make(400))
    assert many < 4 * 1.5 * few
