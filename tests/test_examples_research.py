"""The example of the command line and the server: all that it shows happens, on both backends."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_workflows import Event, Runtime
from anyio_workflows.events import StepStateChanged
from anyio_workflows.wire import json_schema

ROOT = Path(__file__).parent.parent


@pytest.fixture
def research(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("examples.research")


async def answer_each_question(run: Any, *reviews: Event) -> list[Event]:
    """Read a run to its end, and answer its questions in turn; returns all events."""
    ahead = list(reviews)
    events = []
    async for event in run.stream_events(internal=True):
        events.append(event)
        if type(event).__name__ == "ReviewNeeded":
            [wait] = await run.open_waits()
            assert await run.send_event(ahead.pop(0), wait=wait.id) == ("review",)
    assert not ahead
    return events


async def test_sources_fail_and_a_person_decides(research: Any, anyio_backend: Any):
    begin = anyio.current_time()
    async with Runtime(workflows=[research.Research()]) as runtime:
        run = await runtime.start("research", topic="rain")
        no = research.Review(approved=False, comment="more weather")
        events = await answer_each_question(run, no, research.Review(approved=True))
        report = await run
    assert anyio.current_time() - begin < 30

    progress = [event for event in events if type(event) is research.Progress]
    assert [event.done for event in progress] == list(range(9))
    assert {event.total for event in progress} == {8}
    assert report.silent == ["the science journal"]
    assert sorted([*report.sources, *report.silent]) == sorted(research.SOURCES)
    assert report.text.startswith("On rain: the weather service says that rain does best")
    assert report.text.endswith("(On request: more weather.)")

    tokens = "".join(event.text for event in events if type(event) is research.Token)
    first = next(event.report for event in events if type(event) is research.ReviewNeeded)
    assert tokens.split() == f"{first} {report.text}".split()

    states = [event for event in events if isinstance(event, StepStateChanged)]
    assert [(one.name, one.error) for one in states if one.outcome == "retrying"] == [
        ("search", "ConnectionError: the newspaper archive does not answer")
    ]
    assert [(one.name, one.error) for one in states if one.outcome == "recovered"] == [
        ("search", "PermissionError: the science journal wants a subscription")
    ]
    running = most = 0
    for one in states:
        if one.name == "search":
            running += {"running": 1, "not_running": -1}.get(one.step_state.value, 0)
            most = max(most, running)
    assert most == 3


@pytest.mark.parametrize(("asked", "searched"), [(2, 2), (0, 1), (99, 8)])
async def test_the_number_of_sources_is_bounded(
    research: Any, anyio_backend: Any, asked: int, searched: int
):
    async with Runtime(workflows=[research.Research()]) as runtime:
        run = await runtime.start("research", sources=asked)
        await answer_each_question(run, research.Review(approved=True))
        report = await run
    assert len(report.sources) + len(report.silent) == searched


async def test_it_continues_from_a_database(
    research: Any, anyio_backend: Any, no_threads: None, tmp_path: Path
):
    database = f"sqlite:///{tmp_path / 'runs.db'}"
    async with Runtime(database, workflows=[research.Research()]) as runtime:
        run = await runtime.start("research", run_id="tea")
        async for event in run.stream_events():
            if type(event) is research.ReviewNeeded:
                break
    async with Runtime(database, workflows=[research.Research()]) as runtime:
        run = await runtime.get("tea")
        await answer_each_question(run, research.Review(approved=True))
        assert len((await run).sources) == 7


def test_its_forms_say_what_to_fill_in(research: Any):
    for cls in (research.Topic, research.Review):
        schema = json_schema(cls)
        assert schema["description"]
        assert all(field["description"] for field in schema["properties"].values())
