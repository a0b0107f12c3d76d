"""Programs as they are written for llama-index-workflows: with the root of the import changed, they do the same.

Each is executed as it stands with the reference, and with `anyio_workflows` for `workflows`; `main()` returns
plain data, which has to be equal. `nox -s reference` installs the reference.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from .running import run_virtually

pytest.importorskip(
    "workflows", reason="llama-index-workflows is not installed; 'nox -s reference' does so"
)

HEAD = """
import asyncio, json
from typing import Annotated, Any
from pydantic import BaseModel, Field
from workflows import Context, Workflow, catch_error, step
from workflows.events import Event, StartEvent, StopEvent, InputRequiredEvent, HumanResponseEvent
"""

PROGRAMS = {
    "a loop with a branch": """
        class Again(Event):
            n: int = 0

        class Loop(Workflow):
            @step
            async def begin(self, ev: StartEvent) -> Again:
                return Again()

            @step
            async def turn(self, ctx: Context, ev: Again) -> Again | StopEvent:
                ctx.write_event_to_stream(ev)
                if ev.n == 3:
                    return StopEvent(result=f"{ev.n} turns")
                return Again(n=ev.n + 1)

        async def main():
            handler = Loop(timeout=10, verbose=False).run()
            seen = [type(ev).__name__ async for ev in handler.stream_events()]
            return seen, await handler, str(await handler), handler.is_done()
    """,
    "several events at once, collected": """
        class Query(Event):
            text: str

        class Found(Event):
            text: str

        class Search(Workflow):
            @step
            async def begin(self, ctx: Context, ev: StartEvent) -> Query | None:
                for text in ev.texts:
                    ctx.send_event(message=Query(text=text))
                await ctx.store.set("expected", len(ev.texts))

            @step(num_workers=2)
            async def search(self, ev: Query) -> Found:
                await asyncio.sleep(0)
                return Found(text=ev.text.upper())

            @step
            async def gather(self, ctx: Context, ev: Found) -> StopEvent | None:
                expected = await ctx.store.get("expected")
                found = ctx.collect_events(ev, [Found] * expected)
                if found is None:
                    return None
                return StopEvent(result=sorted(each.text for each in found))

        async def main():
            return await Search().run(texts=["a", "b", "c"])
    """,
    "lists of events, with joins": """
        from workflows.collect import All, Collect, Take

        class Item(Event):
            n: int

        class Done(Event):
            n: int

        class Sums(Workflow):
            @step
            async def split(self, ev: StartEvent) -> list[Item]:
                return [Item(n=n) for n in range(ev.count)]

            @step
            async def work(self, ev: Item) -> Done:
                return Done(n=ev.n * 2)

            @step
            async def join(self, events: Annotated[list[Done], Collect(cardinality=All())]) -> StopEvent:
                return StopEvent(result=sum(each.n for each in events))

        class First(Sums):
            @step
            async def join(self, events: Annotated[list[Done], Collect(Take(n=1))]) -> StopEvent:
                return StopEvent(result=len(events))

        async def main():
            return [await Sums().run(count=4), await Sums().run(count=0), await First().run(count=3)]
    """,
    "a person answers over the stream": """
        class Ask(Workflow):
            @step
            async def ask(self, ev: StartEvent) -> InputRequiredEvent:
                return InputRequiredEvent(prefix="your name? ")

            @step
            async def answered(self, ev: HumanResponseEvent) -> StopEvent:
                return StopEvent(result=f"hello {ev.response}")

        async def main():
            workflow = Ask()
            handler = workflow.run()
            async for ev in handler.stream_events():
                if isinstance(ev, InputRequiredEvent):
                    prefix = ev.prefix
                    handler.ctx.send_event(HumanResponseEvent(response="Ada"))
            return prefix, await handler, workflow.validate()
    """,
    "a step waits for a person": """
        class Confirm(Workflow):
            @step
            async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
                answer = await ctx.wait_for_event(
                    HumanResponseEvent,
                    waiter_event=InputRequiredEvent(prefix="sure?", user="Ada"),
                    waiter_id="sure",
                    requirements={"user": "Ada"},
                    timeout=60,
                )
                return StopEvent(result=answer.response.strip().lower() == "yes")

        async def main():
            handler = Confirm().run()
            async for ev in handler.stream_events():
                if isinstance(ev, InputRequiredEvent):
                    handler.ctx.send_event(HumanResponseEvent(response="no", user="Bob"))
                    await handler.send_event(event=HumanResponseEvent(response="Yes ", user=ev.user))
            return await handler
    """,
    "retries, and an error handler": """
        from workflows.decorators import catch_error, step
        from workflows.events import StepFailedEvent
        from workflows.retry_policy import (
            ConstantDelayRetryPolicy, ExponentialBackoffRetryPolicy, retry_always, retry_any,
            retry_if_exception_message, retry_if_exception_type, retry_policy, stop_after_attempt,
            stop_after_delay, stop_never, wait_exponential, wait_fixed, wait_none,
        )

        attempts = []

        class Mine:
            def next(self, elapsed_time, attempts, error, *, seed=None):
                return ConstantDelayRetryPolicy(2, 0).next(
                    elapsed_time=elapsed_time, attempts=attempts, error=error, seed=seed
                )

        POLICIES = [
            ConstantDelayRetryPolicy(maximum_attempts=4, delay=0),
            ExponentialBackoffRetryPolicy(initial_delay=0, maximum_attempts=3),
            retry_policy(
                retry=retry_any(
                    retry_if_exception_type(OSError), retry_if_exception_message(match="limit")
                ),
                wait=wait_none() + wait_fixed(0),
                stop=stop_after_attempt(2) | stop_after_delay(60),
            ),
            retry_policy(retry=retry_if_exception_message(match="rate"), wait=wait_none()),
            retry_policy(retry=retry_if_exception_message(match="^limit"), wait=wait_none()),
            Mine(),
        ]

        def workflow_with(policy):
            class Flaky(Workflow):
                @step(retry_policy=policy)
                async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
                    attempts.append(ctx.retry_info().retry_number)
                    raise ValueError("503: rate limit")

                @catch_error(for_steps=["work"], max_recoveries=1)
                async def rescue(self, ev: StepFailedEvent) -> StopEvent:
                    return StopEvent(result=[ev.step_name, ev.attempts, str(ev.exception)])

            return Flaky()

        async def main():
            long = retry_policy(retry=retry_always(), wait=wait_exponential(), stop=stop_never())
            delays = [long.next(0.0, n, ValueError()) for n in range(1, 10)]
            return [await workflow_with(policy).run() for policy in POLICIES], attempts, delays
    """,
    "typed state": """
        class Counts(BaseModel):
            runs: int = 0
            names: list[str] = Field(default_factory=list)

        class Counter(Workflow):
            @step
            async def only(self, ctx: Context[Counts], ev: StartEvent) -> StopEvent:
                async with ctx.store.edit_state() as state:
                    state.runs += 1
                    state.names = [*state.names, ev.name]
                found = await ctx.store.get_state()
                return StopEvent(result=[found.runs, found.names, await ctx.store.get("runs")])

        async def main():
            workflow = Counter()
            ctx = Context(workflow)
            await workflow.run(ctx=ctx, name="a")
            result = await workflow.run(ctx=ctx, name="b")
            restored = Context.from_dict(workflow, json.loads(json.dumps(ctx.to_dict())))
            return result, await workflow.run(ctx=restored, name="c")
    """,
    "untyped state, kept between runs": """
        class Chat(Workflow):
            @step
            async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
                history = await ctx.store.get("history", default=[])
                await ctx.store.set("history", [*history, ev.get("say", "nothing")])
                async with ctx.store.edit_state() as state:
                    state.turns = state.get("turns", 0) + 1
                    state["last"] = ev.say
                return StopEvent(result=await ctx.store.get("turns"))

        async def main():
            workflow = Chat()
            ctx = Context(workflow)
            await ctx.store.set("history", ["before"])
            await workflow.run(ctx=ctx, say="a")
            handler = workflow.run(ctx=ctx, say="b")
            turns = await handler
            restored = Context.from_dict(workflow, handler.ctx.to_dict())
            state = await restored.store.get_state()
            try:
                await restored.store.get("missing")
            except ValueError:
                missing = True
            found = [turns, state.turns, state["last"], "last" in state, await ctx.store.get("history")]
            await restored.store.clear()
            return found, missing, await restored.store.get("turns", default=None)
    """,
    "resources and configuration": """
        from workflows.resource import Resource, ResourceConfig

        class Limits(BaseModel):
            most: int
            names: list[str]

        class Memory:
            def __init__(self):
                self.items = []

        def get_memory(**kwargs) -> Memory:
            return Memory()

        async def get_client(memory: Annotated[Memory, Resource(get_memory)]) -> Memory:
            memory.items.append("client")
            return memory

        class Next(Event):
            pass

        class Uses(Workflow):
            @step
            async def one(self, ev: StartEvent, client: Annotated[Memory, Resource(get_client)]) -> Next:
                client.items.append("one")
                return Next()

            @step
            async def two(
                self,
                ev: Next,
                memory: Annotated[Memory, Resource(get_memory)],
                limits: Annotated[
                    Limits,
                    ResourceConfig("config.json", "server.limits", label="Limits", description="few"),
                ],
            ) -> StopEvent:
                return StopEvent(result=[memory.items, limits.most, limits.names])

        async def main():
            workflow = Uses()
            return workflow.validate(), await workflow.run()
    """,
    "events with fields, started and stopped": """
        class Begin(StartEvent):
            topic: str
            model: Any = None

        class End(StopEvent):
            answer: str

        class Typed(Workflow):
            @step
            async def only(self, ev: Begin) -> End:
                return End(answer=ev.topic)

        async def main():
            workflow = Typed(timeout=None, num_concurrent_runs=2, workflow_name="typed")
            one = await workflow.run(topic="tea")
            two = await workflow.run(start_event=Begin(topic="coffee"))
            event = StopEvent(result=3, more=4)
            return (
                [type(one).__name__, one.answer, two.answer, workflow.workflow_name],
                [workflow.start_event_class.__name__, workflow.stop_event_class.__name__],
                [event.result, event.more, event["more"], event.get("more"), event.get(key="none")],
                ["more" in event, "none" in event, bool(event)],
            )
    """,
    "functions as steps, and a run in a step": """
        class Free(Workflow):
            pass

        @step(workflow=Free)
        async def only(ev: StartEvent) -> StopEvent:
            return StopEvent(result=ev.get("n", 5))

        class Outer(Workflow):
            def __init__(self, *args, inner, **kwargs):
                super().__init__(*args, **kwargs)
                self.inner = inner

            @step
            async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
                return StopEvent(result=await self.inner.run(n=7))

        async def main():
            free = Free()
            return await asyncio.gather(free.run(), free.run(n=6), Outer(inner=free).run())
    """,
    "handlers": """
        from workflows.errors import WorkflowCancelledByUser, WorkflowRuntimeError, WorkflowTimeoutError

        class Ends(Workflow):
            @step
            async def only(self, ev: StartEvent) -> StopEvent:
                if ev.how == "fail":
                    raise ValueError("no luck")
                if ev.how == "sleep":
                    await asyncio.sleep(1000)
                return StopEvent(result=ev.how)

        async def end_of(handler):
            try:
                end = await handler
            except (ValueError, WorkflowTimeoutError, WorkflowCancelledByUser) as error:
                end = type(error).__name__
            return end, handler.done(), handler.cancelled(), handler.is_done()

        async def main():
            found = []
            for how in ("well", "fail"):
                handler = Ends().run(how=how)
                events = [type(ev).__name__ async for ev in handler.stream_events()]
                found.append((events, await end_of(handler), repr(handler.exception())))
                try:
                    async for ev in handler.stream_events():
                        pass
                except WorkflowRuntimeError as error:
                    found.append(str(error))
            handler = Ends().run(how="sleep")
            await handler.cancel_run()
            found.append(await end_of(handler))
            found.append(await asyncio.wait_for(Ends().run(how="in time"), timeout=50))
            try:
                await Ends(timeout=0.01).run(how="sleep")
            except WorkflowTimeoutError:
                found.append("timeout")
            return found
    """,
    "a workflow under test": """
        from workflows.testing import WorkflowTestRunner
        from workflows.events import StepStateChanged

        class Short(Workflow):
            @step
            async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
                ctx.write_event_to_stream(Event(msg="hello"))
                return StopEvent(result=ev.n)

        async def main():
            runner = WorkflowTestRunner(Short())
            result = await runner.run(
                start_event=StartEvent(n=1), expose_internal=True, exclude_events=[StepStateChanged]
            )
            names = {type(ev).__name__ for ev in result.collected}
            return result.result, {"Event", "StopEvent"} <= names, result.event_types.get(StopEvent)
    """,
}


def outcome_of(program: str, package: str) -> Any:
    source = re.sub(r"\bfrom workflows\b", f"from {package}", HEAD + textwrap.dedent(program))
    module: Any = ModuleType(f"program_for_{package}")
    with mock.patch.dict(sys.modules, {module.__name__: module}):
        exec(compile(source, f"<{package}>", "exec", dont_inherit=True), module.__dict__)
        return run_virtually("asyncio", lambda: _on_virtual_clock(module.main))


async def _on_virtual_clock(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a program of the reference, which reads the wall clock, in virtual time."""
    with mock.patch.object(time, "time", asyncio.get_running_loop().time):
        return await main()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("program", PROGRAMS)
def test_it_does_the_same(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"server": {"limits": {"most": 3, "names": ["a"]}}}
    Path("config.json").write_text(json.dumps(config), "utf-8")
    theirs, ours = (
        outcome_of(PROGRAMS[program], root) for root in ("workflows", "anyio_workflows")
    )
    assert ours == theirs
