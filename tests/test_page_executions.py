"""What the page makes of the internal events: executions, whoever began to listen when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from .browsing import browsing, serving

_TAKE = """
const [frames, ended, done] = arguments;
import("./run.js").then(({Run}) => {
  const time = second => new Date(second * 1000).toISOString();
  const doc = {id: "run-1", status: "running", created: time(0), ended: null, steps: {}};
  const run = new Run(doc);
  for (const frame of frames) {
    if (frame === null) { run.reopened(run.events.findLast(event => !event.internal)?.seq ?? 0); continue; }
    run.take({time: time(frame.second), bases: [], data: {}, ...frame}, "");
  }
  if (ended !== null) run.close(ended * 1000);
  done({
    events: run.events.length,
    light: run.light("work", Infinity),
    executions: run.executions.map(one => [
      one.worker, one.attempt, one.states.map(({state, time}) => [state, time / 1000]), one.outcome,
      one.end === null ? null : one.end / 1000]),
  });
});
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browsing() as driver, serving("asyncio") as server:
        driver.get(server.url)
        yield driver


def change(second: float, state: str, worker: str = "1", attempt: int = 1, **data: Any) -> Any:
    """Return an internal event as it comes."""
    known = {"name": "work", "worker_id": worker, "attempt": attempt, "step_state": state}
    data = {"input_event_name": "StartEvent", **known, **data}
    kind = {"type": "StepStateChanged", "bases": ["InternalDispatchEvent"], "internal": True}
    return {"seq": 0, "second": second, **kind, "data": data}


def taken(driver: Any, *frames: Any, ended: float | None = None) -> Any:
    """Return what the page knows after these events; `None` is a connection that was opened again."""
    return driver.execute_async_script(_TAKE, list(frames), ended)


def test_an_execution_goes_from_the_queue_over_its_waits_to_its_end(driver: Any):
    states = ["preparing", "running", "waiting", "running"]
    frames = [change(second, state) for second, state in enumerate(states)]
    seen = taken(driver, *frames)
    assert seen["light"] == "running"
    seen = taken(driver, *frames, change(4, "not_running", outcome="returned"))
    wanted = [[state, second] for second, state in enumerate(states)]
    assert seen["executions"] == [["1", 1, wanted, "returned", 4]]


def test_each_attempt_is_an_execution_of_its_own(driver: Any):
    seen = taken(
        driver,
        change(0, "running"),
        change(1, "not_running", outcome="retrying", error="ValueError: no"),
        change(2, "preparing", attempt=2),
        change(3, "running", attempt=2),
        change(4, "not_running", attempt=2, outcome="failed"),
    )
    assert [one[1:2] + one[3:] for one in seen["executions"]] == [
        [1, "retrying", 1],
        [2, "failed", 4],
    ]


def test_the_present_states_that_a_late_listener_gets_first_are_executions_too(driver: Any):
    seen = taken(driver, change(5, "waiting"), change(6, "running", "2"), change(7, "running"))
    assert seen["executions"] == [
        ["1", 1, [["waiting", 5], ["running", 7]], "", None],
        ["2", 1, [["running", 6]], "", None],
    ]


def test_what_is_repeated_behind_the_cursor_is_known(driver: Any):
    frames = [change(0, "running"), change(1, "waiting"), change(2, "running")]
    seen = taken(driver, *frames, None, *frames[1:], change(3, "running", "2"))
    assert seen["events"] == 4
    assert len(seen["executions"]) == 2
    assert len(seen["executions"][0][2]) == 3
    # The same state at another time is another event.
    seen = taken(driver, *frames, None, change(2, "running"), change(4, "waiting"))
    assert [state for state, _ in seen["executions"][0][2]][-1] == "waiting"


def test_an_execution_whose_process_died_is_interrupted_where_it_begins_anew(driver: Any):
    seen = taken(driver, change(0, "running"), None, change(5, "preparing"), change(6, "running"))
    assert [one[3:] for one in seen["executions"]] == [["interrupted", 5], ["", None]]


def test_nothing_is_in_progress_when_the_run_has_ended(driver: Any):
    seen = taken(driver, change(0, "running"), change(0, "running", "2"), ended=3)
    assert [one[3:] for one in seen["executions"]] == [["cancelled", 3]] * 2
    assert seen["light"] == ""
