"""Workflows with every form that a picture can have, and the pictures that are kept of them.

    python -m tests.drawn        # after a change of the pictures: writes them again, to be looked at

writes `tests/drawings/`, and the pictures of the page `docs/drawing.md`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    catch_error,
    step,
)
from anyio_workflows._drawing.picture import Picture
from anyio_workflows._drawing.svg import svg
from anyio_workflows.collect import Collect, Opener, Take
from anyio_workflows.drawing import DrawingFormat, draw
from anyio_workflows.resource import Resource
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .pictures import EVERY_FORM
from .running import run_virtually

HERE = Path(__file__).parent / "drawings"
SUFFIXES: dict[DrawingFormat, str] = {"mermaid": "mmd", "dot": "dot", "text": "txt"}


# --- A survey: lists, joins, retries, error handlers, questions -----------------------------------


class Topic(StartEvent):
    """What to look for."""

    words: str = "tides"


class Page(Event):
    n: int


class Notes(Event):
    n: int


class Links(Event):
    n: int


class Linked(Event):
    n: int


class Draft(Event):
    text: str


class Approve(InputRequiredEvent):
    text: str


class Approval(HumanResponseEvent):
    ok: bool


class Tone(HumanResponseEvent):
    name: str


class WhichTone(InputRequiredEvent): ...


class Survey(StopEvent):
    text: str


def library() -> str:
    return "books"


class Searching(Workflow):
    @step(timeout=5)
    async def search(self, ev: Topic) -> list[Page]:
        """Find the pages about a topic.

        The rest of a docstring is not drawn.
        """
        return [Page(n=n) for n in range(5)]


class Surveying(Searching):
    """Reads what it finds, and has a person approve the result."""

    @step(num_workers=2, retry_policy=retry_policy(stop=stop_after_attempt(2), wait=wait_fixed(1)))
    async def read(self, ctx: Context, ev: Page, books: Annotated[str, Resource(library)]) -> Notes:
        await anyio.sleep(0.25)
        if ev.n == 2 or (ev.n == 1 and ctx.retry_info().retry_number == 0):
            raise ValueError("it cannot be read")
        return Notes(n=ev.n)

    @step
    def follow(self, ev: Page) -> Links | None:
        return Links(n=ev.n) if ev.n == 0 else None

    @catch_error(for_steps=["read"], max_recoveries=3)
    async def skip(self, ev: StepFailedEvent) -> Notes:
        return Notes(n=0)

    @step
    async def pair(self, notes: Notes, links: Links) -> Linked:
        return Linked(n=links.n)

    @step
    async def merge(
        self,
        notes: Annotated[list[Notes | Linked], Collect(Take(6, cancel=True))],
        about: Annotated[Topic, Opener()],
    ) -> Draft | WhichTone:
        return Draft(text=f"{len(notes)} notes on {about.words}")

    @step
    async def adjust(self, ev: Tone) -> Draft:
        return Draft(text=ev.name)

    @step
    async def approve(self, ctx: Context, ev: Draft) -> Survey | Draft:
        approval = await self.ask(ctx, ev.text)
        return Survey(text=ev.text) if approval.ok else ev

    async def ask(self, ctx: Context, text: str) -> Approval:
        return await ctx.wait_for_event(Approval, Approve(text=text))

    @catch_error
    async def give_up(self, ev: StepFailedEvent) -> Survey:
        return Survey(text="")


# --- A workflow that `validate()` refuses ---------------------------------------------------------


class Lost(Event): ...


class Wanted(Event): ...


class Faulty(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Lost | StopEvent: ...

    @step
    async def hope(self, ev: Wanted) -> StopEvent | None: ...

    @step
    async def dream(self, ev: NotDefined) -> StopEvent: ...  # type: ignore[name-defined]  # noqa: F821


# --- Runs -------------------------------------------------------------------------------------------


async def waiting() -> WorkflowHandler[Any]:
    """Return a run that waits for an answer."""
    handler = Surveying().run()
    async for event in handler.stream_events():
        if isinstance(event, Approve):
            break
    return handler


async def completed() -> WorkflowHandler[Any]:
    handler = await waiting()
    await handler.send_event(Approval(ok=True))
    await handler
    return handler


class Failing(Workflow):
    @step
    async def start(self, ev: StartEvent) -> list[Page]:
        return [Page(n=1), Page(n=2)]

    @step(num_workers=1)
    async def read(self, ev: Page) -> StopEvent:
        raise ValueError(ev.n)


async def failed() -> WorkflowHandler[Any]:
    handler = Failing().run()
    assert isinstance((await anyio_failure(handler)), ValueError)
    return handler


class Slow(Workflow):
    @step(num_workers=1)
    async def start(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep(10)
        return StopEvent()


async def timed_out() -> WorkflowHandler[Any]:
    handler = Slow(timeout=2).run()
    await anyio_failure(handler)
    return handler


async def anyio_failure(handler: WorkflowHandler[Any]) -> BaseException:
    """Wait until a run has failed."""
    try:
        await handler
    except Exception as exc:
        return exc
    raise AssertionError("it did not fail")


GRAPHS: dict[str, type[Workflow]] = {"survey": Surveying, "faulty": Faulty}
RUNS: dict[str, tuple[type[Workflow], Callable[[], Awaitable[WorkflowHandler[Any]]]]] = {
    "waiting": (Surveying, waiting),
    "completed": (Surveying, completed),
    "failed": (Failing, failed),
    "timed_out": (Slow, timed_out),
}


def draw_run(name: str, format: DrawingFormat, backend: str = "asyncio") -> str:  # noqa: A002
    """Return the picture of one of the runs."""
    workflow, begin = RUNS[name]

    async def main() -> str:
        handler = await begin()
        try:
            return draw(workflow, format, run=handler)
        finally:
            await handler.cancel_run()

    return run_virtually(backend, main)


PICTURES: dict[Path, Callable[[], str]] = {}
"""The files that are kept, and how each is made."""

for _kind, _suffix in SUFFIXES.items():
    for _name, _workflow in GRAPHS.items():
        PICTURES[HERE / f"{_name}.{_suffix}"] = partial(draw, _workflow, _kind)
    for _name in RUNS:
        PICTURES[HERE / f"{_name}.{_suffix}"] = partial(draw_run, _name, _kind)
PICTURES[HERE / "forms.svg"] = partial(svg, EVERY_FORM)
PICTURES[HERE / "empty.svg"] = partial(svg, Picture("Empty", (), ()))


# --- The page ---------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "drawing.md"
PAGE_PICTURES = [PAGE.parent / "pictures" / f"{name}.svg" for name in ("review", "review-run")]


def draw_page(backend: str = "asyncio") -> None:
    """Run the programs of the page, under virtual time; they write its pictures to the working directory."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    code = code.replace("anyio.run(main)", f"run_virtually({backend!r}, main)")
    exec(
        compile(code, str(PAGE), "exec", dont_inherit=True),
        {"__name__": "page", "run_virtually": run_virtually},
    )


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for _path, _draw in PICTURES.items():
        _path.write_text(_draw(), "utf-8")
    os.chdir(PAGE.parent / "pictures")
    draw_page()
