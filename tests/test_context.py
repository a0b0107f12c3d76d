"""What a step may do through its context."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import WorkflowConfigurationError, WorkflowRuntimeError

from .running import read, texts
from .samples import Next, Note, OneStep

pytestmark = pytest.mark.anyio


async def deep() -> Context:
    return Context.get_step_context()


def test_get_step_context_outside_a_step_raises() -> None:
    with pytest.raises(WorkflowRuntimeError, match="outside a step"):
        Context.get_step_context()


async def test_get_step_context_after_a_run_raises() -> None:
    await OneStep(lambda ctx: deep()).run()
    with pytest.raises(WorkflowRuntimeError, match="outside a step"):
        Context.get_step_context()


async def test_get_step_context_is_the_one_of_the_step() -> None:
    async def act(ctx: Context) -> bool:
        return await deep() is ctx

    assert await OneStep(act).run() is True


async def test_get_step_context_in_a_task_of_the_step() -> None:
    async def act(ctx: Context) -> bool:
        async def child() -> None:
            found.append(await deep())

        async with anyio.create_task_group() as group:
            group.start_soon(child)
        return found == [ctx]

    found: list[Context] = []
    assert await OneStep(act).run() is True


async def test_each_execution_has_a_context_of_its_own() -> None:
    class Pool(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Next | None:
            for n in range(4):
                ctx.send_event(Next(n=n))

        @step
        async def work(self, ctx: Context, ev: Next) -> StopEvent | None:
            seen.append(ctx)
            await anyio.sleep(1)
            assert Context.get_step_context() is ctx
            return StopEvent() if ev.n == 3 else None

    seen: list[Context] = []
    await Pool().run()
    assert len({id(ctx) for ctx in seen}) == 4


async def test_step_without_a_context_parameter_has_one() -> None:
    class Plain(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            Context.get_step_context().write_event_to_stream(Note(text="found"))
            return StopEvent()

    assert texts(await read(Plain().run())) == ["found"]


async def test_context_parameter_may_stand_anywhere() -> None:
    class Late(Workflow):
        @step
        async def work(self, ev: StartEvent, *, context: Context) -> StopEvent:
            return StopEvent(result=await deep() is context)

    assert await Late().run() is True


async def test_is_running_until_the_outcome_is_decided() -> None:
    async def act(ctx: Context) -> None:
        seen.append(ctx.is_running)
        try:
            await anyio.sleep(1000)
        finally:
            seen.append(ctx.is_running)

    seen: list[bool] = []
    handler = OneStep(act).run()
    assert handler.ctx.is_running
    await anyio.sleep(1)
    await handler.cancel_run()
    assert seen == [True, False]
    assert not handler.ctx.is_running


async def test_running_steps_names_those_in_progress() -> None:
    class Pool(Workflow):
        @step
        async def zeta(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
            alone = await ctx.running_steps()
            for n in range(6):
                ctx.send_event(Next(n=n))
            await anyio.sleep(1)
            both = await ctx.running_steps()
            await anyio.sleep(100)
            return StopEvent(result=(alone, both, await ctx.running_steps()))

        @step(num_workers=2)
        async def alpha(self, ev: Next) -> None:
            await anyio.sleep(10)

    handler = Pool(timeout=None).run()
    assert await handler == (["zeta"], ["alpha", "zeta"], ["zeta"])
    assert await handler.ctx.running_steps() == []


async def test_context_of_the_handler_reaches_the_run() -> None:
    class Wait(Workflow):
        @step
        async def start(self, ev: StartEvent) -> Next | None:
            return None

        @step
        async def work(self, ev: Next) -> StopEvent:
            return StopEvent(result=ev.n)

    handler = Wait().run()
    handler.ctx.send_event(Next(n=7))
    assert await handler == 7
    assert handler.ctx is handler.ctx


async def test_context_of_one_run_does_not_reach_another() -> None:
    async def act(ctx: Context) -> None:
        ctx.write_event_to_stream(Note(text=id(ctx)))
        await anyio.sleep(1)

    workflow = OneStep(act)
    one, two = workflow.run(), workflow.run()
    notes = [texts(await read(one)), texts(await read(two))]
    assert [len(found) for found in notes] == [1, 1]
    assert notes[0] != notes[1]


@pytest.mark.parametrize("wrong", [OneStep, 5, None, {"graph": {}}])
def test_a_context_is_made_for_a_workflow_only(wrong: Any) -> None:
    with pytest.raises(WorkflowConfigurationError, match=r"^Context\(\) takes a workflow, not "):
        Context(wrong)
    with pytest.raises(
        WorkflowConfigurationError, match=r"^Context.from_dict\(\) takes a workflow"
    ):
        Context.from_dict(wrong, {})


@pytest.mark.parametrize("wrong", [3, "child", anyio.sleep])
async def test_only_the_events_of_a_handler_are_relayed(wrong: Any) -> None:
    async def relays(ctx: Context) -> None:
        await ctx.relay_events(wrong)

    with pytest.raises(WorkflowRuntimeError, match=r"relay_events\(\) takes a handler, not "):
        await OneStep(relays).run()
