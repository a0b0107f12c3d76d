"""What tests of the page share: a server in a process of its own, and a real browser that looks at it.

`python -m tests.browsing` serves these workflows, to look at the page by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import anyio
import anyio.lowlevel
import attrs
import pytest

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from anyio_workflows.runtime import Runtime
from anyio_workflows.wire import to_data

from .running import PATIENCE

T = TypeVar("T")

TOKENS = "Token \N{MULTIPLICATION SIGN} 20"
"""How the page shows the tokens of a `Survey`, in one row."""


# --- What is served. A gate is a file: a step waits until a test makes it. ----------------------------


async def passed(gate: str) -> None:
    """Wait until there is such a file."""
    while gate and not await anyio.Path(gate).exists():  # noqa: ASYNC110 - it is another process that makes it
        await anyio.sleep(0.01)


class Topic(StartEvent):
    topic: str = attrs.field(metadata={"description": "What the report is about"})
    sources: int = 4
    gate: str = ""


class Look(Event):
    source: int
    gate: str


class Found(Event):
    source: int


class Token(Event):
    text: str


class Draft(Event):
    text: str


class Publish(InputRequiredEvent):
    question: str


class Approval(HumanResponseEvent):
    approved: bool
    comment: str = ""


class Survey(Workflow[str]):
    """Looks at several sources, writes a report, and asks a person.

    The first half is done by three at a time.
    """

    @step
    async def plan(self, ctx: Context, ev: Topic) -> list[Look]:
        await ctx.store.set("topic", ev.topic)
        return [Look(source=n, gate=ev.gate if n else "") for n in range(ev.sources)]

    @step(num_workers=3)
    async def look(self, ctx: Context, ev: Look) -> Found:
        await passed(ev.gate)
        return Found(source=ev.source)

    @step
    async def write(self, ctx: Context, found: list[Found]) -> Draft:
        topic = await ctx.store.get("topic")
        for n in range(20):
            ctx.write_event_to_stream(Token(text=f"word{n} "))
        return Draft(text=topic)

    @step
    async def review(self, ctx: Context, ev: Draft) -> StopEvent:
        answer = await ctx.wait_for_event(
            Approval, Publish(question=f"Publish the report on {ev.text}?"), timeout=None
        )
        if not answer.approved:
            raise ValueError(f"not approved: {answer.comment}")
        return StopEvent(result=f"published {ev.text}")


class Gate(StartEvent):
    gate: str


class Fragile(Workflow[str]):
    """Fails until the gate is open."""

    @step(retry_policy=retry_policy(wait=wait_fixed(0), stop=stop_after_attempt(2)))
    async def fetch(self, ctx: Context, ev: Gate) -> StopEvent:
        if not await anyio.Path(ev.gate).exists():
            raise ConnectionError("the host cannot be reached")
        return StopEvent(result="fetched")


class Held(Workflow[str]):
    """Runs until the gate is open."""

    @step
    async def hold(self, ctx: Context, ev: Gate) -> StopEvent:
        await passed(ev.gate)
        return StopEvent(result="released")


class Note(Event):
    number: int
    text: str


class Volume(StartEvent):
    events: int = 10_000
    text: str = "a note that is too long to be one of many small ones, as there are "


class Loud(Workflow[int]):
    """Publishes events, many of them."""

    @step
    async def shout(self, ctx: Context, ev: Volume) -> StopEvent:
        for number in range(ev.events):
            ctx.write_event_to_stream(Note(number=number, text=ev.text))
            if number % 100 == 0:
                await anyio.lowlevel.checkpoint()
        return StopEvent(result=ev.events)


@attrs.frozen
class Address:
    street: str
    number: int


class Booking(StartEvent):
    name: str = attrs.field(metadata={"description": "Who comes"})
    day: datetime.date
    at: datetime.datetime
    wishes: list[str]
    address: Address
    either: int | str
    size: Literal["small", "large"] = "large"
    nights: int = 2
    price: float | None = None
    breakfast: bool = True
    notice: datetime.timedelta = datetime.timedelta(hours=2)


class Book(Workflow[dict[str, Any]]):
    """Takes what forms can ask for."""

    @step
    async def book(self, ctx: Context, ev: Booking) -> StopEvent:
        return StopEvent(result=to_data(ev))


class Open(Workflow[dict[str, Any]]):
    """Takes whatever it is given, and asks for whatever may be answered."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent, timeout=None)
        return StopEvent(result={**to_data(ev), **to_data(answer)})


def workflows() -> dict[str, Workflow[Any]]:
    """Return the workflows, by name; the first is what the page shows first."""
    return {
        "survey": Survey(timeout=None),
        "fragile": Fragile(timeout=None),
        "held": Held(timeout=None),
        "loud": Loud(timeout=None),
        "book": Book(),
        "open": Open(timeout=None),
    }


async def _serve(options: argparse.Namespace) -> None:
    from anyio_workflows.server import WorkflowServer

    runtime = Runtime(
        options.database,
        workflows=workflows(),
        log_events=options.log_events,
        log_bytes=2**28,
    )
    server = WorkflowServer(runtime, token=options.token)
    if options.mount:
        await _serve_mounted(server)
        return
    async with anyio.create_task_group() as group:
        print(await group.start(server.serve, "127.0.0.1", options.port), flush=True)


async def _serve_mounted(server: Any) -> None:
    """Serve it as a part of another application, under `/workflows/`."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Mount

    app = Starlette(routes=[Mount("/workflows", server.app)], lifespan=server.lifespan)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/workflows/", flush=True)
        await uvicorn.Server(uvicorn.Config(app, log_level="warning")).serve([listener])


# --- The server, from outside --------------------------------------------------------------------------


@attrs.define
class ServerProcess:
    """A server in a process of its own.

    Attributes:
        options: What it is started with, besides the port.
        url: Where it is.
    """

    options: list[str]
    url: str = ""
    _process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it; at its old address, if it had one."""
        port = self.url.rstrip("/").rpartition(":")[2] or "0"
        command = [sys.executable, "-m", __spec__.name, "--port", port, *self.options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the server has not started"

    def kill(self) -> None:
        """End it without a chance to do anything about it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@contextlib.contextmanager
def serving(backend: str, **options: Any) -> Iterator[ServerProcess]:
    """Serve for the time of a block, with options as of `python -m tests.browsing`."""
    pytest.importorskip("hypercorn" if backend == "trio" else "uvicorn")
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    server = ServerProcess([f"--backend={backend}", *given])
    try:
        server.start()
        yield server
    finally:
        server.kill()


# --- The browser -----------------------------------------------------------------------------------------


def find_browser() -> tuple[str, str]:
    """Return where the browser and its driver are; skip the test if they are not."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed")
    return browser, driver


@contextlib.contextmanager
def browsing() -> Iterator[Any]:
    """Yield a driver of a browser without a window."""
    binary, driver_path = find_browser()
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--window-size=1600,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        driver = webdriver.Chrome(options=options, service=Service(driver_path))
    except WebDriverException as error:
        pytest.skip(f"the browser does not start: {str(error)[:200]}")
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page in a browser, as a person sees it.

    Attributes:
        driver: The browser.
        url: The address of the page.
        refusals_expected: Whether the browser may report requests that were refused or failed.
    """

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url
        self.refusals_expected = False
        self._requests: list[str] = []
        driver.get("about:blank")  # ends the page of the test before
        for log in ("browser", "performance"):
            driver.get_log(log)

    def open(self, rest: str = "", width: int = 1600, scheme: str = "light") -> None:
        """Open the page, as if for the first time, in a window of this width."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.driver.get("about:blank")  # a new fragment alone would not load the page again
        self.driver.get(self.url + rest)

    def one(self, selector: str) -> Any:
        """Return the element, once there is one that is shown."""
        return until(lambda: next((one for one in self.all(selector) if one.is_displayed()), None))

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        """Return the text of an element at this moment."""
        script = "return document.querySelector(arguments[0])?.textContent ?? ''"
        return self.driver.execute_script(script, selector)

    def wait_for_text(self, selector: str, wanted: str) -> None:
        """Wait until the text of an element has a certain part."""
        until(lambda: wanted in self.text(selector), lambda: f"{selector}: {self.text(selector)!r}")

    def gone(self, selector: str) -> None:
        """Wait until there is no such element that is shown."""
        script = "return [...document.querySelectorAll(arguments[0])].every(one => !one.checkVisibility())"
        until(lambda: self.driver.execute_script(script, selector))

    def choose_workflow(self, name: str) -> None:
        until(lambda: name in self.text("#workflow"))
        self.driver.execute_script(
            "const list = document.getElementById('workflow'); list.value = arguments[0];"
            "list.dispatchEvent(new Event('change'))",
            name,
        )
        self.one(f"#input[data-workflow={name}]")

    def fill(self, **fields: Any) -> None:
        """Write into the fields of the form that starts runs."""
        for name, value in fields.items():
            field = self.one(f"#input [name={name}]")
            field.clear()
            field.send_keys(str(value))

    def start(self, workflow: str, **fields: Any) -> str:
        """Start a run by the form; return its id."""
        before = self.text("#run-id")
        self.choose_workflow(workflow)
        self.fill(**fields)
        self.one("#run-button").click()
        until(lambda: self.text("#run-id") not in ("", before))
        return self.text("#run-id")

    def wait_for_status(self, status: str) -> None:
        self.wait_for_text("#status", status)

    def step(self, name: str) -> Any:
        return self.one(f"[data-step={name}]")

    def wait_for_step(self, name: str, state: str, counts: str) -> None:
        """Wait until a step is lit in a certain way, with these counts."""

        def now() -> tuple[str | None, str]:
            found = self.step(name)
            return found.get_dom_attribute("data-state"), found.get_dom_attribute("aria-label")

        wanted = (state, f"Step {name}: {counts}")
        until(lambda: now() == wanted, lambda: f"{now()}, not {wanted}")
        assert self.text(f"[data-step={name}] .counts") == counts

    def fetch(self, path: str) -> Any:
        """Return what the server says, asked by the page."""
        script = "const [path, done] = arguments; fetch(path).then(r => r.json()).then(done)"
        return self.driver.execute_async_script(script, path)

    def rows(self) -> list[str]:
        """Return the types of the events that are in view."""
        script = (
            "return [...document.querySelectorAll('.row')].filter(row => !row.hidden)"
            ".sort((a, b) => a.index - b.index).map(row => row.querySelector('.type').textContent)"
        )
        return self.driver.execute_script(script)

    def check_console(self) -> None:
        """There is no message in the console, and no request has left the origin."""
        messages = self.driver.get_log("browser")
        if self.refusals_expected:  # the browser says so itself, whatever the page does about it
            messages = [one for one in messages if one["source"] != "network"]
        assert messages == [], messages
        for address in self.requests():
            assert address.startswith((self.url, "data:", "about:")), address

    def requests(self) -> list[str]:
        """Return the addresses of all requests so far."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requests.append(message["params"]["request"]["url"])
        return self._requests


def until(
    check: Callable[[], T | None], describe: Callable[[], object] = lambda: "it has not happened"
) -> T:
    """Wait until something is so; return it. An element may have been replaced in between."""
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(StaleElementReferenceException):
            if found := check():
                return found
        time.sleep(0.03)
    raise AssertionError(describe())


def main() -> None:
    """Serve the workflows of the tests."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--backend", default="asyncio")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--database")
    parser.add_argument("--token")
    parser.add_argument("--mount", type=bool, help="as a part of another application")
    parser.add_argument("--log-events", type=int, default=200_000)
    options = parser.parse_args()
    anyio.run(_serve, options, backend=options.backend)


if __name__ == "__main__":
    main()
