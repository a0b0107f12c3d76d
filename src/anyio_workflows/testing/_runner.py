"""Run a workflow in a test and look at what it published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import attrs

from ..context import Context
from ..events import Event, StartEvent, StopEvent
from ..workflow import Workflow


@attrs.frozen(eq=False)
class WorkflowTestResult:
    """What a run did.

    Attributes:
        collected: The events that it published, in order.
        event_types: How many of each type are among them; 0 for a type that is not there.
        result: What `await handler` returned; `None` if the run failed.
        ctx: The context of the run.
        terminal_event: Its stop event, also if that was excluded from `collected`.
        exception: What `await handler` raised; `None` if the run succeeded.
    """

    collected: list[Event]
    event_types: Counter[type[Event]]
    result: Any
    ctx: Context
    terminal_event: StopEvent
    exception: BaseException | None = None


class WorkflowTestRunner:
    """Runs a workflow from its start to its end.

    Args:
        workflow: The workflow.
    """

    def __init__(self, workflow: Workflow[Any]) -> None:
        self._workflow = workflow

    async def run(
        self,
        start_event: StartEvent | None = None,
        ctx: Context | None = None,
        expose_internal: bool = True,
        exclude_events: Collection[type[Event]] | None = None,
        *,
        check: bool = True,
    ) -> WorkflowTestResult:
        """Run the workflow and collect its events. The run is cancelled if this call is.

        Args:
            start_event: The start event; `None` for one without fields.
            ctx: A context to continue with, of an earlier run or a restored one.
            expose_internal: Also collect the events about the run itself.
            exclude_events: Types of which nothing is collected; exactly these, not subclasses.
            check: Raise if the run fails. Otherwise the result says how it ended.

        Raises:
            BaseException: As `await handler` does, if `check` is true.
        """
        given: dict[str, Any] = {} if ctx is None else {"ctx": ctx}
        excluded = set(exclude_events or ())
        collected: list[Event] = []
        result: Any = None
        exception: BaseException | None = None
        async with self._workflow.run(start_event=start_event, **given) as handler:
            async for event in handler.stream_events(expose_internal=expose_internal):
                if type(event) not in excluded:
                    collected.append(event)
            try:
                result = await handler  # has ended: nothing but its failure is raised here
            except BaseException as exc:
                if check:
                    raise
                exception = exc
        terminal_event = handler.get_stop_event()
        assert terminal_event is not None
        return WorkflowTestResult(
            collected=collected,
            event_types=Counter(map(type, collected)),
            result=result,
            ctx=handler.ctx,
            terminal_event=terminal_event,
            exception=exception,
        )
