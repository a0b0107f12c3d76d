"""Counts for the programs that watch the server, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from starlette.requests import Request
from starlette.responses import Response

from ..runtime import RunStatus
from ._context import ServerContext

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Samples = Iterable[tuple[Mapping[str, object], int]]


async def get_metrics(server: ServerContext, request: Request) -> Response:
    """Answer with counts of runs, readers and requests, in the text format of Prometheus."""
    return Response("".join(_lines(server)), media_type=MEDIA_TYPE)


def _lines(server: ServerContext) -> Iterator[str]:
    here = server.runtime.statistics()
    statuses = ({"status": one} for one in get_args(RunStatus))
    yield from _metric(
        "runs",
        "gauge",
        "Runs that this process keeps, by status.",
        [(labels, here.runs.get(labels["status"], 0)) for labels in statuses],
    )
    yield from _metric("runs_in_progress", "gauge", "Runs that have not ended.", here.in_progress)
    yield from _metric(
        "runs_removed_total",
        "counter",
        "Ended runs that retention or DELETE has removed.",
        here.removed,
    )
    yield from _metric("log_events", "gauge", "Events of runs in memory.", here.log_events)
    yield from _metric("log_bytes", "gauge", "Bytes that these take.", here.log_bytes)
    yield from _metric("readers", "gauge", "Requests that read events now.", server.streams.readers)
    yield from _metric(
        "events_sent_total", "counter", "Events sent to readers.", server.streams.events_sent
    )
    requests = server.requests.counts.items()
    yield from _metric(
        "http_requests_total",
        "counter",
        "Requests that were answered, by route and status.",
        [
            ({"method": method, "route": route, "status": status}, number)
            for (method, route, status), number in sorted(requests)
        ],
    )


def _metric(name: str, kind: str, description: str, samples: int | _Samples) -> Iterator[str]:
    name = f"anyio_workflows_{name}"
    yield f"# HELP {name} {description}\n# TYPE {name} {kind}\n"
    for labels, number in [({}, samples)] if isinstance(samples, int) else samples:
        # Neither routes nor statuses have anything that would have to be escaped.
        text = ",".join(f'{label}="{value}"' for label, value in labels.items())
        yield f"{name}{text and f'{{{text}}}'} {number}\n"
