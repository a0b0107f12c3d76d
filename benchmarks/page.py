"""How fast the page of a server is in a browser: its first paint, and scrolling through many events.

`python -m benchmarks.page` needs chromium and chromedriver, and selenium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import anyio
import anyio.lowlevel

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.runtime import Runtime

from .measuring import Spread
from .tables import Table

SIZES = (10_000, 100_000)
LOADS = 9
FRAMES = 300
PIXELS = 400
"""How far each frame scrolls: some 16 events."""


class Volume(StartEvent):
    events: int


class Note(Event):
    number: int
    text: str


class Loud(Workflow[int]):
    """Publishes many events."""

    @step
    async def shout(self, ctx: Context, ev: Volume) -> StopEvent:
        for number in range(ev.events):
            text = (
                "a note that is not one of many small ones, which would be shown as one "
                + "x" * (number % 30)
            )
            ctx.write_event_to_stream(Note(number=number, text=text))
            if number % 100 == 0:
                await anyio.lowlevel.checkpoint()
        return StopEvent(result=ev.events)


async def serve() -> None:
    """Serve the workflow, and print where."""
    from anyio_workflows.server import WorkflowServer

    runtime = Runtime(workflows={"loud": Loud()}, log_events=max(SIZES) + 1, log_bytes=2**30)
    async with anyio.create_task_group() as group:
        print(await group.start(WorkflowServer(runtime).serve, "127.0.0.1", 0), flush=True)


@contextmanager
def serving() -> Iterator[str]:
    """Yield the address of a server in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.page", "--serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with closing(process.stdout):
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()
            process.wait()


@contextmanager
def browsing() -> Iterator[Any]:
    """Yield the driver of a browser."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,900"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or ""))
    driver.set_script_timeout(600)
    try:
        yield driver
    finally:
        driver.quit()


def start_run(url: str, events: int) -> str:
    """Have a run publish events; return its id when it has ended."""
    request = urllib.request.Request(
        f"{url}v1/workflows/loud/runs?wait=60",
        json.dumps({"input": {"events": events}}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)["id"]


_PAINTED = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"

_LAST_ROW = (
    "return [...document.querySelectorAll('.row .type')].some(e => e.textContent === 'StopEvent')"
)

_SCROLL = """
const [frames, pixels, done] = arguments, list = document.getElementById("events"), took = [];
list.scrollTop = 0;
let before = null;
requestAnimationFrame(function frame(now) {
  if (before !== null) took.push(now - before);
  before = now;
  list.scrollTop += pixels;
  if (took.length < frames) requestAnimationFrame(frame); else done(took.slice(10));
});
"""


def until_true(driver: Any, script: str) -> Any:
    """Wait until a script returns something; return that."""
    while not (found := driver.execute_script(script)):
        time.sleep(0.005)
    return found


def work_done(driver: Any) -> float:
    """Return how many milliseconds the main thread of the page has worked."""
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    [seconds] = [one["value"] for one in metrics if one["name"] == "TaskDuration"]
    return seconds * 1e3


def measure_page() -> list[Table]:
    """Return tables of how long it takes until something is seen, and of how even scrolling is."""
    with serving() as url, browsing() as driver:
        paints = []
        for _ in range(LOADS):
            driver.get("about:blank")
            driver.get(url)
            paints.append(until_true(driver, _PAINTED))
        first = Table("First paint", ["median ms", "slowest ms"], note="Aim: under 200 ms.")
        first.add(f"{Spread.of(paints).median:.0f}", f"{max(paints):.0f}")
        many = Table(
            "Many events",
            ["events", "opened after s", "frame: median ms", "99 of 100 ms", "work ms"],
            note=f"{FRAMES} frames, each of which scrolls by {PIXELS} pixels. 16.7 ms is the rate of the screen; work is "
            "what the page itself does in each frame, at most 16.7 ms without a stutter.",
        )
        for size in SIZES:
            run_id = start_run(url, size)
            driver.get("about:blank")
            driver.execute_cdp_cmd("Performance.enable", {})
            begun = time.perf_counter()
            driver.get(f"{url}#run/{run_id}")
            until_true(driver, _LAST_ROW)
            opened = time.perf_counter() - begun
            before = work_done(driver)
            frames = sorted(driver.execute_async_script(_SCROLL, FRAMES, PIXELS))
            work = (work_done(driver) - before) / FRAMES
            many.add(
                f"{size:,}",
                f"{opened:.1f}",
                f"{Spread.of(frames).median:.1f}",
                f"{frames[len(frames) * 99 // 100]:.1f}",
                f"{work:.1f}",
            )
    return [first, many]


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--serve", action="store_true", help="only serve what is looked at")
    if parser.parse_args().serve:
        anyio.run(serve)
        return
    for table in measure_page():
        print(table.as_text())


if __name__ == "__main__":
    main()
