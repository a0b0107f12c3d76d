"""Pictures for tests of the drawing: random ones, and one in which every form occurs."""

from __future__ import annotations

from itertools import pairwise, product
from typing import get_args

from hypothesis import strategies as st

from anyio_workflows._drawing.picture import Edge, EdgeKind, Node, NodeKind, NodeState, Picture

NODE_KINDS: tuple[NodeKind, ...] = get_args(NodeKind)
EDGE_KINDS: tuple[EdgeKind, ...] = get_args(EdgeKind)
STATES: tuple[NodeState, ...] = get_args(NodeState)

names = st.one_of(
    st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
    st.text(max_size=20),
    st.sampled_from(
        ["処理する", "x" * 200, "<script>", '"]]>&amp;', "e\u0301" * 5, "\x00\ud800\n"]
    ),
)


@st.composite
def pictures(draw: st.DrawFn, most: int = 8) -> Picture:
    """Return any picture: connected or not, with cycles, loops and several edges between two nodes."""
    count = draw(st.integers(0, most))
    nodes = tuple(
        Node(
            f"{n}",
            draw(names),
            draw(st.sampled_from(NODE_KINDS)),
            tuple(draw(st.lists(names, max_size=7))),
            draw(st.sampled_from(STATES)),
            draw(names),
        )
        for n in range(count)
    )
    ends = [node.id for node in nodes]
    edge = st.builds(
        Edge,
        st.sampled_from(ends or [""]),
        st.sampled_from(ends or [""]),
        st.sampled_from(EDGE_KINDS),
        st.lists(names, max_size=7).map(tuple),
    )
    edges = draw(
        st.lists(edge, max_size=2 * count, unique_by=lambda e: (e.source, e.target, e.kind))
    )
    return Picture(draw(names), nodes, tuple(edges))


def ladder(steps: int) -> Picture:
    """Return a picture with edges as real ones have: ahead, back, over several steps, to a handler."""
    nodes = [Node("(StartEvent)", "StartEvent", "start")]
    nodes += [Node(f"step_{n}", f"step_{n}", "step", ("4 workers",)) for n in range(steps)]
    nodes += [
        Node("on_error", "on_error", "error_handler"),
        Node("(StopEvent)", "StopEvent", "stop"),
    ]
    edges = [Edge("(StartEvent)", "step_0"), Edge("on_error", "(StopEvent)")]
    for n in range(steps):
        ways = (n // 2, n // 2 + 5, n - 1) if n % 7 == 0 else (n // 2,)
        for way in ways:
            if way != n and 0 <= way < steps:
                edges.append(Edge(f"step_{way}", f"step_{n}", labels=(f"Event{n}",)))
        edges.append(Edge(f"step_{n}", "on_error", "failure"))
    edges.append(Edge(f"step_{steps - 1}", "(StopEvent)"))
    return Picture("Ladder", tuple(nodes), tuple(edges))


def asking(steps: int) -> Picture:
    """Return a chain in which every step may also stop the run, ask a question, wait for an answer."""
    names = [f"step_{n}" for n in range(steps)]
    nodes = (
        Node("(StartEvent)", "StartEvent", "start"),
        *(Node(name, name, "step") for name in names),
        Node("(StopEvent)", "StopEvent", "stop"),
        Node("(Question)", "Question", "question"),
        Node("(Answer)", "Answer", "answer"),
    )
    edges = [Edge("(StartEvent)", names[0])]
    edges += [Edge(one, other, labels=("Next",)) for one, other in pairwise(names)]
    for name in names:
        edges.append(Edge(name, "(StopEvent)"))
        edges.append(Edge(name, "(Question)", "wait"))
        edges.append(Edge("(Answer)", name, "wait"))
    return Picture("Asking", nodes, tuple(edges))


EVERY_FORM = Picture(
    "Every <form>",
    (
        *(Node(f"({kind})", kind.title(), kind) for kind in NODE_KINDS if kind != "step"),
        *(
            Node(state or "step", state or "step", "step", ("4 workers",), state)
            for state in STATES
        ),
        Node("long", "a_very_long_name_" * 4, "step", ("one", "two"), doc="<b>bold</b> & more ]]>"),
    ),
    (
        Edge("(start)", "step", labels=("Begun",)),
        Edge("step", "running", "list", ("Item", "Other")),
        Edge("running", "(join)", labels=("Done",)),
        Edge("running", "step", labels=("Again",)),
        Edge("step", "step", labels=("Tick",)),
        Edge("step", "step", "failure"),
        Edge("running", "(error_handler)", "failure"),
        Edge("waiting", "(error_handler)", "failure"),
        Edge("(join)", "waiting"),
        Edge("(answer)", "waiting", "wait"),
        Edge("waiting", "(question)", "wait"),
        Edge("(outside)", "done"),
        Edge("waiting", "done", labels=("Answered",)),
        Edge("waiting", "done", "list", ("Part",)),
        Edge("done", "(unhandled)"),
        Edge("done", "(stop)"),
        Edge("failed", "(error_handler)", "failure"),
        Edge("done", "failed", labels=("Wrong",)),
        Edge("(error_handler)", "(stop)"),
    ),
)

PAIRS = Picture(
    "Pairs",
    tuple(Node(kind, kind, kind) for kind in NODE_KINDS),
    tuple(Edge(source, target) for source, target in product(NODE_KINDS, NODE_KINDS)),
)
"""An edge from every kind of node to every other, and itself."""
