"""Programs that run with llama-index-workflows and here, and do not do the same: what `docs/moving-over.md` says of them.

Each is executed with both, as in `test_reference_programs.py`; it is listed with both outcomes.
"""

from __future__ import annotations

import attrs
import pytest

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import ContextSerdeError

from .test_reference_programs import outcome_of


@attrs.frozen
class Difference:
    theirs: object
    ours: object
    program: str


DIFFERENCES = {
    "awaiting in the cleanup of a cancelled step": Difference(
        ["began", "ended"],
        ["began"],
        """
        class Slow(Workflow):
            @step
            async def only(self, ev: StartEvent) -> StopEvent:
                try:
                    started.set()
                    await asyncio.sleep(1000)
                finally:
                    log.append("began")
                    await asyncio.sleep(0)
                    log.append("ended")

        log = []

        async def main():
            global started
            started = asyncio.Event()
            handler = Slow().run()
            await started.wait()
            await handler.cancel_run()
            return log
        """,
    ),
    "the end of the stream and the cleanup": Difference(
        ["stream is over", "cleaned up"],
        ["cleaned up", "stream is over"],
        """
        class Never(Event):
            pass

        class Fails(Workflow):
            @step
            async def fail(self, ev: StartEvent) -> Never | StopEvent:
                await started.wait()
                raise ValueError

            @step
            async def sleep(self, ev: StartEvent) -> Never:
                try:
                    started.set()
                    await asyncio.sleep(1000)
                finally:
                    log.append("cleaned up")

            @step
            async def join(self, ev: Never) -> StopEvent:
                return StopEvent()

        log = []

        async def main():
            global started
            started = asyncio.Event()
            handler = Fails().run()
            async for ev in handler.stream_events():
                pass
            log.append("stream is over")
            try:
                await handler
            except ValueError:
                while len(log) < 2:
                    await asyncio.sleep(0.01)
                return log
        """,
    ),
    "how long a resource lives": Difference(
        1,
        2,
        """
        from workflows.resource import Resource

        built = []

        def connect():
            built.append(1)
            return object()

        class Uses(Workflow):
            @step
            async def only(self, ev: StartEvent, db: Annotated[object, Resource(connect)]) -> StopEvent:
                return StopEvent()

        async def main():
            workflow = Uses()
            await workflow.run()
            await workflow.run()
            return len(built)
        """,
    ),
    "a generator as the factory of a resource": Difference(
        "async_generator",
        "int",
        """
        from workflows.resource import Resource

        async def number():
            yield 5

        class Uses(Workflow):
            @step
            async def only(self, ev: StartEvent, n: Annotated[Any, Resource(number)]) -> StopEvent:
                return StopEvent(result=type(n).__name__)

        async def main():
            return await Uses().run()
        """,
    ),
    "a list in an event": Difference(
        1,
        2,
        """
        class History(Event):
            messages: list[str]

        async def main():
            memory = ["hello"]
            event = History(messages=memory)
            memory.append("again")
            return len(event.messages)
        """,
    ),
    "an edit of the state that raises": Difference(
        {"pages": []},
        {"pages": ["one"]},
        """
        class Edits(Workflow):
            @step
            async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
                await ctx.store.set("pages", [])
                try:
                    async with ctx.store.edit_state() as state:
                        state["title"] = "draft"
                        state["pages"].append("one")
                        raise ConnectionError
                except ConnectionError:
                    return StopEvent(result=dict(await ctx.store.get_state()))

        async def main():
            return await Edits().run()
        """,
    ),
    "assigning to untyped state": Difference(
        1,
        None,
        """
        class Edits(Workflow):
            @step
            async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
                state = await ctx.store.get_state()
                state["count"] = 1
                return StopEvent(result=await ctx.store.get("count", default=None))

        async def main():
            return await Edits().run()
        """,
    ),
    "an answer that comes before the question": Difference(
        "early",
        "no answer",
        """
        class Asks(Workflow):
            @step
            async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
                answer = await ctx.wait_for_event(HumanResponseEvent)
                return StopEvent(result=answer.response)

        async def main():
            handler = Asks(timeout=0.3).run()
            handler.ctx.send_event(HumanResponseEvent(response="early"))
            try:
                return await handler
            except Exception:
                return "no answer"
        """,
    ),
    "the code before a wait": Difference(
        ["before", "WaitingForEvent", "before", "after"],
        ["before", "after"],
        """
        log = []

        class Asks(Workflow):
            @step
            async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
                log.append("before")
                try:
                    await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent())
                except Exception as error:
                    log.append(type(error).__name__)
                    raise
                log.append("after")
                return StopEvent(result=log)

        async def main():
            handler = Asks().run()
            async for ev in handler.stream_events():
                if isinstance(ev, InputRequiredEvent):
                    await handler.send_event(HumanResponseEvent())
            return await handler
        """,
    ),
    "two waits without an id": Difference(
        [1, 1],
        [1, 2],
        """
        class Asks(Workflow):
            @step
            async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
                first = await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent())
                second = await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent())
                return StopEvent(result=[first.n, second.n])

        async def main():
            handler = Asks().run()
            n = 0
            async for ev in handler.stream_events():
                if isinstance(ev, InputRequiredEvent):
                    n += 1
                    await handler.send_event(HumanResponseEvent(n=n))
            return await handler
        """,
    ),
    "a run in a step that is cancelled": Difference(
        [],
        ["cancelled"],
        """
        log = []

        class Inner(Workflow):
            @step
            async def only(self, ev: StartEvent) -> StopEvent:
                try:
                    started.set()
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    log.append("cancelled")
                    raise
                return StopEvent()

        class Outer(Workflow):
            @step
            async def only(self, ev: StartEvent) -> StopEvent:
                return StopEvent(result=await Inner().run())

        async def main():
            global started
            started = asyncio.Event()
            handler = Outer().run()
            await started.wait()
            await handler.cancel_run()
            return list(log)
        """,
    ),
    "a caller that gives up": Difference(
        "CancelledError",
        "the result",
        """
        class Slow(Workflow):
            @step
            async def only(self, ev: StartEvent) -> StopEvent:
                await asyncio.sleep(0.1)
                return StopEvent(result="the result")

        async def main():
            handler = Slow().run()
            try:
                await asyncio.wait_for(handler, 0.02)
            except TimeoutError:
                pass
            try:
                return await handler
            except asyncio.CancelledError as error:
                return type(error).__name__
        """,
    ),
    "continuing after a cancellation": Difference(
        ["begin", "work", "work", "begin", "work"],
        ["begin", "work", "work"],
        """
        log = []

        class Piece(Event):
            pass

        class Works(Workflow):
            @step
            async def begin(self, ev: StartEvent) -> Piece:
                log.append("begin")
                return Piece()

            @step
            async def work(self, ev: Piece) -> StopEvent:
                log.append("work")
                await asyncio.sleep(0.1)
                return StopEvent()

        async def main():
            workflow = Works()
            handler = workflow.run()
            while len(log) < 2:
                await asyncio.sleep(0.01)
            await handler.cancel_run()
            await workflow.run(ctx=handler.ctx)
            return log
        """,
    ),
    "the timeout of a restored run": Difference(
        "WorkflowTimeoutError",
        "in time",
        """
        class Piece(Event):
            pass

        class Works(Workflow):
            @step
            async def begin(self, ev: StartEvent) -> Piece:
                await asyncio.sleep(1.2)
                return Piece()

            @step
            async def work(self, ev: Piece) -> StopEvent:
                started.set()
                await asyncio.sleep(0.4)
                return StopEvent(result="in time")

        async def main():
            global started
            started = asyncio.Event()
            handler = Works(timeout=1.5).run()
            await started.wait()
            saved = handler.ctx.to_dict()
            await handler.cancel_run()
            workflow = Works(timeout=1.5)
            try:
                return await workflow.run(ctx=Context.from_dict(workflow, saved))
            except Exception as error:
                return type(error).__name__
        """,
    ),
    "a run that can never end": Difference(
        "WorkflowTimeoutError",
        "WorkflowStalledError",
        """
        class Forgets(Workflow):
            @step
            async def only(self, ev: StartEvent) -> StopEvent | None:
                return None

        async def main():
            try:
                await Forgets(timeout=0.3).run()
            except Exception as error:
                return type(error).__name__
        """,
    ),
    "sending a stop event": Difference(
        "returned",
        "sent",
        """
        class Piece(Event):
            pass

        class Stops(Workflow):
            @step
            async def begin(self, ctx: Context, ev: StartEvent) -> Piece | StopEvent:
                ctx.send_event(StopEvent(result="sent"))
                return Piece()

            @step
            async def end(self, ev: Piece) -> StopEvent:
                return StopEvent(result="returned")

        async def main():
            return await Stops().run()
        """,
    ),
    "an event as a mapping, and as text": Difference(
        [None, False, [], 0, "5"],
        [1, True, ["n"], 1, "StopEvent(result=5)"],
        """
        class Numbered(Event):
            n: int

        async def main():
            ev = Numbered(n=1)
            return [ev.get("n"), "n" in ev, list(dict(ev)), len(ev), str(StopEvent(result=5))]
        """,
    ),
    "an event that the annotation does not mention": Difference(
        "Other",
        "WorkflowRuntimeError",
        """
        class Piece(Event):
            pass

        class Other(Event):
            pass

        class Returns(Workflow):
            @step
            async def begin(self, ev: StartEvent) -> Piece:
                return Other()

            @step
            async def end(self, ev: Piece) -> Other | StopEvent:
                return StopEvent(result="Piece")

            @step
            async def other(self, ev: Other) -> StopEvent:
                return StopEvent(result="Other")

        async def main():
            try:
                return await Returns().run()
            except Exception as error:
                return type(error).__name__
        """,
    ),
    "the context in a plain function": Difference(
        "no running event loop",
        "written",
        """
        class Plain(Workflow):
            @step
            def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
                try:
                    ctx.write_event_to_stream(Event())
                except RuntimeError as error:
                    return StopEvent(result=str(error))
                return StopEvent(result="written")

        async def main():
            return await Plain().run()
        """,
    ),
    "the input of a join that failed": Difference(
        "CollectionReleaseEvent",
        "list",
        """
        from workflows.events import StepFailedEvent

        class Piece(Event):
            pass

        class Joins(Workflow):
            @step
            async def begin(self, ev: StartEvent) -> list[Piece]:
                return [Piece(), Piece()]

            @step
            async def join(self, pieces: list[Piece]) -> StopEvent:
                raise ValueError

            @catch_error
            async def recover(self, ev: StepFailedEvent) -> StopEvent:
                return StopEvent(result=type(ev.input_event).__name__)

        async def main():
            return await Joins().run()
        """,
    ),
    "a step that raises a cancellation": Difference(
        "WorkflowTimeoutError",
        "WorkflowRuntimeError",
        """
        class Raises(Workflow):
            @step
            async def only(self, ev: StartEvent) -> StopEvent:
                raise asyncio.CancelledError

        async def main():
            try:
                await Raises(timeout=0.3).run()
            except Exception as error:
                return type(error).__name__
        """,
    ),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", DIFFERENCES)
def test_it_differs_as_the_page_says(name: str) -> None:
    found = DIFFERENCES[name]
    assert outcome_of(found.program, "workflows") == found.theirs
    assert outcome_of(found.program, "anyio_workflows") == found.ours


def test_a_snapshot_of_theirs_is_recognised() -> None:
    program = """
    class Only(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.store.set("pages", ["one"])
            return StopEvent()

    async def main():
        handler = Only().run()
        await handler
        return handler.ctx.to_dict()
    """
    snapshot = outcome_of(program, "workflows")
    with pytest.raises(ContextSerdeError, match="this is a snapshot of llama-index-workflows"):
        Context.from_dict(Only(), snapshot)


class Only(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent()
