"""A research assistant that asks a person before it publishes: a workflow to look at while it runs.

    anyio-workflows serve examples.research:Research                 # with a page, in the browser
    anyio-workflows run examples.research:Research topic="green tea"  # in the terminal

It plans which sources to search, searches three at a time, writes a report word by word, and asks for a review: a
report that is not approved is written again. One source is down for a moment and is tried again; another one wants
a subscription, and an error handler replaces what it would have found. The sources are made up, and slow, so it needs no
account, key or network. A run takes about 15 seconds, and the time that the person takes.
"""

from __future__ import annotations

import anyio
import attrs

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from anyio_workflows.retry_policy import (
    retry_if_exception_type,
    retry_policy,
    stop_after_attempt,
    wait_fixed,
)


@attrs.frozen
class Source:
    """A place to look, which takes its time.

    Attributes:
        name: What it is called in the report.
        seconds: How long it takes to answer.
        finding: What it knows about any topic.
    """

    name: str
    seconds: float
    finding: str


SOURCES = {
    source.name: source
    for source in [
        Source("the encyclopedia", 1.2, "{topic} has been known for longer than most people think"),
        Source("the newspaper archive", 2.4, "interest in {topic} has doubled in ten years"),
        Source("the weather service", 0.8, "{topic} does best in mild and rainy places"),
        Source("the science journal", 1.6, "a study of 2,000 people found no harm in {topic}"),
        Source("the market report", 2.0, "prices of {topic} rise in autumn"),
        Source("the travel guide", 1.0, "the best places for {topic} are off the main road"),
        Source("the forum", 2.8, "people argue about {topic} mostly at night"),
        Source("the cookbook", 1.4, "{topic} goes well with lemon"),
    ]
}
DOWN_FOR_A_MOMENT = "the newspaper archive"
WANTS_A_SUBSCRIPTION = "the science journal"

SECONDS_PER_WORD = 0.06


# The events. The docstrings and descriptions are what the page shows in its forms.


class Topic(StartEvent):
    """What to find out about."""

    topic: str = attrs.field(
        default="green tea", metadata={"description": "Anything that can be looked up"}
    )
    sources: int = attrs.field(
        default=len(SOURCES),
        metadata={"description": f"How many sources to search, at most {len(SOURCES)}"},
    )


class Plan(Event):
    """One source to search."""

    topic: str
    source: str


class Finding(Event):
    """What a source said; nothing, if it did not answer."""

    topic: str
    source: str
    text: str | None = None


class Draft(Event):
    """A report that waits for its review."""

    topic: str
    text: str
    findings: list[Finding]


class Remarks(Event):
    """What a person did not like about a draft."""

    draft: Draft
    comment: str


class Progress(Event):
    """How far the search is."""

    message: str
    done: int
    total: int


class Token(Event):
    """A word of the report, as it is written."""

    text: str


class ReviewNeeded(InputRequiredEvent):
    """Shall this report be published?"""

    question: str
    report: str


class Review(HumanResponseEvent):
    """The decision of a person about a report."""

    approved: bool = attrs.field(metadata={"description": "Publish it, or have it written again"})
    comment: str = attrs.field(
        default="", metadata={"description": "What to write differently, if it is not approved"}
    )


class Report(StopEvent):
    """The report that was approved."""

    text: str
    sources: list[str]
    silent: list[str]


# The workflow. Which step comes next is said by the annotations: `plan` returns several `Plan` events, each is taken by
# an execution of `search`, and `write` gets all that these found.


class Research(Workflow[Report]):
    """Searches several sources at once, writes a report, and asks a person to approve it."""

    def __init__(self) -> None:
        super().__init__(timeout=None)  # a person may take a weekend

    @step
    async def plan(self, ctx: Context, ev: Topic) -> list[Plan]:
        """Choose the sources."""
        await anyio.sleep(0.5)
        number = max(1, min(ev.sources, len(SOURCES)))
        chosen = list(SOURCES)[:number]
        await ctx.store.set("total", number)
        message = f"searching {number} sources for {ev.topic}"
        ctx.write_event_to_stream(Progress(message=message, done=0, total=number))
        return [Plan(topic=ev.topic, source=name) for name in chosen]

    @step(
        num_workers=3,
        retry_policy=retry_policy(
            retry=retry_if_exception_type(ConnectionError),
            wait=wait_fixed(0.5),
            stop=stop_after_attempt(3),
        ),
    )
    async def search(self, ctx: Context, ev: Plan) -> Finding:
        """Ask one source; three of them are asked at the same time."""
        source = SOURCES[ev.source]
        await anyio.sleep(source.seconds)
        if source.name == DOWN_FOR_A_MOMENT and ctx.retry_info().retry_number == 0:
            raise ConnectionError(f"{source.name} does not answer")
        if source.name == WANTS_A_SUBSCRIPTION:
            raise PermissionError(f"{source.name} wants a subscription")
        await self._report_progress(ctx, f"{source.name} has answered")
        return Finding(
            topic=ev.topic, source=source.name, text=source.finding.format(topic=ev.topic)
        )

    @catch_error(for_steps=["search"], max_recoveries=len(SOURCES))
    async def do_without(self, ctx: Context, ev: StepFailedEvent) -> Finding:
        """Note that a source gave nothing, instead of failing the run."""
        plan = ev.input_event
        assert isinstance(plan, Plan)
        await self._report_progress(ctx, f"without {plan.source}: {ev.exception}")
        return Finding(topic=plan.topic, source=plan.source)

    @step
    async def write(self, ctx: Context, findings: list[Finding]) -> Draft:
        """Write the report, word by word, when all sources have answered or failed."""
        topic = findings[0].topic
        sentences = [f"{found.source} says that {found.text}" for found in findings if found.text]
        text = await self._write_slowly(ctx, f"On {topic}: {'; '.join(sentences)}.")
        return Draft(topic=topic, text=text, findings=findings)

    @step
    async def review(self, ctx: Context, ev: Draft) -> Report | Remarks:
        """Ask a person whether the report may be published."""
        question = ReviewNeeded(question=f"Publish the report on {ev.topic}?", report=ev.text)
        review = await ctx.wait_for_event(Review, question, timeout=None)
        if not review.approved:
            return Remarks(draft=ev, comment=review.comment)
        return Report(
            text=ev.text,
            sources=[found.source for found in ev.findings if found.text],
            silent=[found.source for found in ev.findings if not found.text],
        )

    @step
    async def revise(self, ctx: Context, ev: Remarks) -> Draft:
        """Write the report again, with what the person said about it."""
        comment = ev.comment or "say it differently"
        text = await self._write_slowly(ctx, f"{ev.draft.text} (On request: {comment}.)")
        return ev.draft.replace(text=text)

    # What is published has to be named in the code of the class: then a database can keep it.

    async def _report_progress(self, ctx: Context, message: str) -> None:
        """Publish that one more source is done with."""
        async with ctx.store.edit_state() as state:
            state.done = done = state.get("done", 0) + 1
            total = state.total
        ctx.write_event_to_stream(Progress(message=message, done=done, total=total))

    async def _write_slowly(self, ctx: Context, text: str) -> str:
        """Publish a text word by word, as a language model would; returns the text."""
        for word in text.split():
            await anyio.sleep(SECONDS_PER_WORD)
            ctx.write_event_to_stream(Token(text=f"{word} "))
        return text
