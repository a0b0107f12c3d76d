"""Draws the picture of `docs/tracing.md`: `python -m tests.tracing_picture` runs the workflow of the page.

The trace is a real one, of OpenTelemetry's SDK; only the clock is virtual, so that the picture is
the same each time. A test draws it again and compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import anyio
import attrs
from opentelemetry.sdk.trace import SpanProcessor

from anyio_workflows.testing import run_virtually

from .tracing import Telemetry, about, links, span_id

DOCS = Path(__file__).parent.parent / "docs"
PAGE, PICTURE = DOCS / "tracing.md", DOCS / "tracing.svg"

LABELS, WIDTH, LINE, TOP = 150, 800, 24, 34
BAR = 12

STYLE = """
svg { color-scheme: light dark; font: 12px system-ui, sans-serif; }
.paper { fill: #fff; } .text { fill: #1f2328; } .grid { stroke: #eaeef2; }
.quiet { fill: #59636e; } .run { fill: #afb8c1; } .attempt { fill: #4c78c8; } .bad { fill: #cf4a3e; }
.link { fill: none; stroke: #59636e; } .queue { stroke: #4c78c8; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117; } .text { fill: #e6edf3; } .grid { stroke: #21262d; }
.quiet { fill: #9198a1; } .run { fill: #6e7681; } .attempt { fill: #6c98e8; } .bad { fill: #f0766a; }
.link { stroke: #9198a1; } .queue { stroke: #6c98e8; }
}
""".strip()


@attrs.define
class Times(SpanProcessor):
    """When each span began and ended on the clock of the event loop, by its id."""

    began: dict[int, float] = attrs.field(factory=dict)
    ended: dict[int, float] = attrs.field(factory=dict)

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.began[span.context.span_id] = anyio.current_time()

    def on_end(self, span: Any) -> None:
        self.ended[span.context.span_id] = anyio.current_time()


def trace() -> tuple[Telemetry, Times]:
    """Run the workflow of the page under virtual time."""
    names: dict[str, Any] = {"__name__": "research"}
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    exec(compile(code[0], PAGE.name, "exec", dont_inherit=True), names)
    telemetry, times = Telemetry(), Times()
    telemetry.provider.add_span_processor(times)

    async def main() -> None:
        await names["Research"](instruments=[telemetry.instrument]).run()

    run_virtually("asyncio", main)
    return telemetry, times


def draw(telemetry: Telemetry, times: Times) -> str:
    """Return the trace as a waterfall: a line for each span, and lines for the links."""
    spans = telemetry.spans
    began, ended = times.began[span_id(spans[0])], times.ended[span_id(spans[0])]

    def at(time: float) -> float:
        return LABELS + 10 + (time - began) / (ended - began) * (WIDTH - LABELS - 90)

    def middle(line: int) -> float:
        return TOP + LINE * line + LINE / 2

    line_of = {span_id(span): line for line, span in enumerate(spans)}
    height = TOP + LINE * len(spans) + 8

    def parts() -> Iterator[str]:
        for tenths in range(0, round((ended - began) * 10) + 1, 2):
            x = at(began + tenths / 10)
            yield f'<path class="grid" d="M{x:.1f} {TOP - 8}V{height - 6}"/>'
            yield f'<text class="quiet" x="{x:.1f}" y="18" text-anchor="middle">{tenths / 10:g} s</text>'
        for line, span in enumerate(spans):
            y = middle(line)
            for _, source in links(span):
                x1, y1 = at(times.ended[source]), middle(line_of[source])
                x2 = at(times.began[span_id(span)])
                yield f'<path class="link" d="M{x1:.1f} {y1:.1f}V{y:.1f}H{x2:.1f}"/>'
        for line, span in enumerate(spans):
            y, x1, x2 = middle(line), at(times.began[span_id(span)]), at(times.ended[span_id(span)])
            outcome = about(span, "attempt.outcome")
            kind = "run" if span.parent is None else "attempt" if outcome == "returned" else "bad"
            indent = 8 if span.parent is None else 22
            yield f'<text class="text" x="{indent}" y="{y + 4:.1f}">{escape(span.name)}</text>'
            if queued := about(span, "queue.duration"):
                waited = at(times.began[span_id(span)] - queued)
                yield f'<path class="queue" d="M{waited:.1f} {y:.1f}H{x1:.1f}"/>'
            yield (
                f'<rect class="{kind}" x="{x1:.1f}" y="{y - BAR / 2:.1f}" rx="2" '
                f'width="{max(x2 - x1, 1):.1f}" height="{BAR}"/>'
            )
            if kind == "bad":
                said = f"{outcome}: {(span.attributes or {})['error.type']}"
                yield f'<text class="quiet" x="{x2 + 6:.1f}" y="{y + 4:.1f}">{escape(said)}</text>'

    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">',
            f"<title>{escape(spans[0].name)}</title>",
            f"<style>\n{STYLE}\n</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
            *parts(),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(*trace()), "utf-8")
