"""A document pipeline: documents into pages, pages into summaries, and one digest per document.

    OPENAI_API_KEY=... python document_pipeline.py ../../docs/*.md
    OPENAI_API_KEY=none OPENAI_BASE_URL=http://localhost:11434/v1 OPENAI_MODEL=llama3.2 python ...

It needs `pip install ".[trio]" openai` in the checkout.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import anyio
from openai import APIConnectionError, AsyncOpenAI, InternalServerError, RateLimitError

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from anyio_workflows.collect import Opener
from anyio_workflows.resource import Resource
from anyio_workflows.retry_policy import (
    retry_if_exception_type,
    retry_policy,
    stop_after_attempt,
    wait_random_exponential,
)

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
PAGE = 4000  # characters


class Job(StartEvent):
    paths: list[Path]


class Document(Event):
    path: Path


class Page(Event):
    path: Path
    number: int
    text: str


class Summary(Event):
    number: int
    text: str


class Digest(Event):
    path: Path
    text: str


class Progress(Event):
    """For the stream: a page is done."""

    path: Path
    number: int


async def open_client() -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(max_retries=0) as client:  # the steps retry
        yield client  # closed when the run ends


async def ask(llm: AsyncOpenAI, task: str, text: str) -> str:
    answer = await llm.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": task}, {"role": "user", "content": text}],
    )
    return answer.choices[0].message.content or ""


LLM = Annotated[AsyncOpenAI, Resource(open_client)]
RETRY = retry_policy(
    retry=retry_if_exception_type((APIConnectionError, InternalServerError, RateLimitError)),
    wait=wait_random_exponential(multiplier=0.2, max=30),
    stop=stop_after_attempt(4),
)


class Pipeline(Workflow[dict[Path, str]]):
    @step
    async def open(self, ev: Job) -> list[Document]:
        return [Document(path=path) for path in ev.paths]

    @step
    async def split(self, ev: Document) -> list[Page]:
        text = (await anyio.Path(ev.path).read_text("utf-8")).strip()
        pages = [text[start : start + PAGE] for start in range(0, len(text), PAGE)]
        return [Page(path=ev.path, number=n, text=page) for n, page in enumerate(pages, 1)]

    @step(num_workers=8, retry_policy=RETRY, timeout=60)  # eight pages at a time, of all documents
    async def summarise(self, ctx: Context, ev: Page, llm: LLM) -> Summary:
        text = await ask(llm, "Summarise this page in two sentences.", ev.text)
        ctx.write_event_to_stream(Progress(path=ev.path, number=ev.number))
        return Summary(number=ev.number, text=text)

    @catch_error(for_steps=["summarise"])
    async def leave_out(self, ev: StepFailedEvent) -> Summary:
        page = ev.input_event
        assert isinstance(page, Page)
        return Summary(number=page.number, text=f"(no summary: {ev.exception})")

    @step(num_workers=4, retry_policy=RETRY)
    async def digest(
        self, summaries: list[Summary], document: Annotated[Document, Opener()], llm: LLM
    ) -> Digest:
        # Once per document, when all its pages are done, in whatever order; `split()` took `document`.
        if not summaries:
            return Digest(path=document.path, text="(empty)")
        ordered = sorted(summaries, key=lambda summary: summary.number)
        text = "\n".join(summary.text for summary in ordered)
        return Digest(path=document.path, text=await ask(llm, "Make one paragraph of this.", text))

    @step
    async def report(self, digests: list[Digest]) -> StopEvent:
        return StopEvent({digest.path: digest.text for digest in digests})


async def main(paths: list[Path]) -> None:
    async with Pipeline(timeout=None).run(paths=paths) as handler:
        async for ev in handler.stream_events():
            if isinstance(ev, Progress):
                print(f"{ev.path}, page {ev.number}")
        for path, text in (await handler).items():
            print(f"\n{path}\n{text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Summarise text files.")
    parser.add_argument("path", nargs="+", type=Path)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    args = parser.parse_args()
    anyio.run(main, args.path, backend=args.backend)
