"""How runs, events and questions are written for people: all of it on one line, and nothing that steers a terminal."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from .._messages import shortened

Data = dict[str, Any]

_LONGEST = 2_000
_LONGEST_VALUE = 100


def printable(text: object, longest: int = _LONGEST) -> str:
    """Return a text without line breaks and control characters: it comes from a run, and may hold anything."""
    found = str(text)
    short = shortened(found, longest)
    if short.isprintable():
        return short
    return "".join(
        one if one.isprintable() else " " if one in "\n\r\t" else "\N{REPLACEMENT CHARACTER}"
        for one in short
    )


def value_text(value: object) -> str:
    """Return a value in a short form: a text in quotes, if it is not a plain word."""
    if isinstance(value, str) and value.isalnum():
        return value
    return printable(json.dumps(value, ensure_ascii=False), _LONGEST_VALUE)


def only_text(event: Data) -> str | None:
    """Return the text of an event that has nothing else in it, and does not end the run: a token, for example."""
    values = list(event["data"].values())
    if "internal" in event or "StopEvent" in (event["type"], *event["bases"]):
        return None
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None


def is_token(text: str) -> bool:
    """Return whether a text is a piece of a longer one: no more than a word, with space around it or not."""
    return len(text.split()) < 2


def event_text(event: Data) -> str:
    """Return what is in an event: first its longest text, and then the other fields."""
    text = only_text(event)
    if text is not None:
        return printable(text.strip())
    data = {key: value for key, value in event["data"].items() if value is not None}
    return "  ".join(f"{printable(key, 100)}={value_text(value)}" for key, value in data.items())


def state_text(event: Data) -> str | None:
    """Return what an event about the execution of a step says; `None` if it is another event."""
    data = event["data"]
    if event["type"] != "StepStateChanged":
        return None
    outcome, error = data.get("outcome"), printable(data.get("error") or "")
    attempt = f" (attempt {data['attempt']})" if data.get("attempt", 1) > 1 else ""
    match outcome:
        case "retrying":
            return f"failed, and is tried again: {error}"
        case "recovered":
            return f"failed, and its error handler takes over: {error}"
        case "failed":
            return f"failed: {error}"
        case "returned":
            return f"returned {data.get('output_event_name') or 'None'}"
        case "cancelled":
            return "was cancelled"
    state = "queued" if data["step_state"] == "preparing" else data["step_state"]
    return f"{state}{attempt} on {data['input_event_name']}"


def gap_text(gap: Data) -> str:
    """Return which events cannot be shown."""
    return f"events {gap['first']} to {gap['last']} are not kept any more"


def is_trouble(event: Data) -> bool:
    """Return whether an event says that a step has failed."""
    return event["data"].get("outcome") in ("retrying", "recovered", "failed")


def seconds_between(begin: str | None, end: str | None) -> float:
    """Return the seconds between two times of the wire."""
    if begin is None or end is None:
        return 0.0
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def duration(seconds: float) -> str:
    """Return a duration as people read it: `3.1 s`, `2:05`, `1:00:00`."""
    if seconds < 60:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ending_lines(run: Data) -> list[str]:
    """Return how a run stands at its end, and why."""
    took = (
        f" after {duration(seconds_between(run['created'], run['ended']))}" if run["ended"] else ""
    )
    status = str(run["status"]).replace("_", " ")
    error = run["error"]
    if error is None:
        return [f"{status}{took}"]
    what = printable(f"{error['type']}: {error['message']}")
    if status == "cancelled":  # is not said again
        what = what.removeprefix("WorkflowCancelledByUser: the run was cancelled: ")
    lines = [f"{status}{took}: {what}"]
    if error["step"] is not None:
        tries = error["attempts"]
        lines.append(f"  in step {error['step']}, attempt {tries}")
    return lines + [f"  {printable(note)}" for note in error["notes"]]


def question_text(question: Data) -> str:
    """Return what a step asks."""
    asked = question["question"]
    if asked is None:
        return f"step {question['step']} waits for {question['answer_type']}"
    fields = asked["data"]
    texts = [value for value in fields.values() if isinstance(value, str)]
    first = texts[0] if texts else asked["type"]
    rest = (
        f"  {printable(key, 100)}: {printable(value) if isinstance(value, str) else value_text(value)}"
        for key, value in fields.items()
        if value != first
    )
    return f"{printable(first)}{''.join(rest)}"


def result_text(result: object) -> str | None:
    """Return the result of a run for standard output; `None` if there is nothing to say."""
    if result is None or isinstance(result, str):
        return result
    return json.dumps(result, ensure_ascii=False, indent=2)
