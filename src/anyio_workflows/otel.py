"""OpenTelemetry: runs and attempts as spans and metrics; needs the extra `otel`.

`docs/tracing.md` lists the spans, links, attributes and metrics.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextvars import Token
from weakref import WeakKeyDictionary

import attrs

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import (
        Context,
        attach,
        create_key,
        detach,
        get_current,
        get_value,
    )
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import (
        Link,
        Span,
        SpanContext,
        Status,
        StatusCode,
        TracerProvider,
        get_current_span,
        set_span_in_context,
    )
except ImportError as exc:
    exc.add_note("anyio_workflows.otel needs OpenTelemetry: pip install 'anyio-workflows[otel]'")
    raise

from . import __version__
from ._messages import short_repr, shortened, text_of
from .errors import WorkflowConfigurationError
from .events import Event
from .handler import OpenWait
from .instrument import (
    ExecutionRecord,
    ExecutionResult,
    Instrument,
    RunRecord,
    RunResult,
    SentRecord,
    WaitResult,
)

__all__ = ["OpenTelemetryInstrument"]

_SCOPE = "anyio_workflows"
"""Name of the tracer and of the meter."""

# --- Attributes ------------------------------------------------------------------------------------
#
# The semantic conventions have an attribute for the class of an error, and none for workflows. (Those for
# generative AI call a run of agents a workflow. The steps here may do anything.)

_ERROR = "error.type"
_WORKFLOW = "anyio_workflows.workflow.name"
_RUN = "anyio_workflows.run.id"
_RUN_OUTCOME = "anyio_workflows.run.outcome"
_STEP = "anyio_workflows.step.name"
_EXECUTION = "anyio_workflows.execution.id"
_ATTEMPT = "anyio_workflows.attempt.number"
_ATTEMPT_OUTCOME = "anyio_workflows.attempt.outcome"
_QUEUED = "anyio_workflows.queue.duration"
_EVENT = "anyio_workflows.event.type"
_RETURNED = "anyio_workflows.returned.types"
_RETURNED_COUNT = "anyio_workflows.returned.count"
_STOP = "anyio_workflows.terminal_event.type"
_WAIT = "anyio_workflows.wait.id"
_WAIT_OUTCOME = "anyio_workflows.wait.outcome"
_QUESTION = "anyio_workflows.question.type"
_TAKEN_BY = "anyio_workflows.taken_by"
_IDLE = "anyio_workflows.idle"

_SOURCE = {"anyio_workflows.link": "source"}
_RETRIED = {"anyio_workflows.link": "retried"}
_SENDER = {"anyio_workflows.link": "sender"}

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
"""Buckets of the histograms: those that OpenTelemetry assumes are made for milliseconds."""

_REMEMBERED = 1000
"""How many ended executions of a run can still be linked to: 0.3 KB each."""

_LONGEST_MESSAGE = 1000

_INNERMOST = create_key("anyio-workflows-innermost-attempt")
"""In the context of a step: the span that the last of the instruments has made current."""


@attrs.define(eq=False)
class _Attempt:
    """An attempt that is queued or in progress.

    Attributes:
        labels: What its spans and its measurements have in common.
        links: What its span is to be linked to.
        span: `None` until it begins, and if nothing is traced.
        token: What takes its span out of the current context of its task.
        resumed: When it began, or got its worker back; `None` while it has none.
        ran: For how many seconds it had a worker before that.
        waits: The spans of its open waits, by their id.
    """

    labels: dict[str, str]
    links: tuple[Link, ...] = ()
    span: Span | None = None
    token: Token[Context] | None = None
    resumed: float | None = None
    ran: float = 0.0
    waits: dict[str, Span] = attrs.field(factory=dict)


@attrs.define(eq=False)
class _Run:
    """A run that has not ended.

    Attributes:
        span: Its span.
        parent: What the span's parent is; invalid if there is none.
        context: Where the spans of its attempts begin: the caller's, with `span` as the current one.
        traced: Whether `span` is a span of its own. It is none without a tracer provider.
        attempts: Those that are queued or in progress, by the id of the execution.
        labels: What the spans and the measurements of a step have in common, by its name.
        ended: Links to the last attempts of executions that have ended, by their id.
        failure: The error of a step that failed the run, recorded on the span of the attempt.
    """

    span: Span
    parent: SpanContext
    context: Context
    traced: bool
    attempts: dict[int, _Attempt] = attrs.field(factory=dict)
    labels: dict[str, dict[str, str]] = attrs.field(factory=dict)
    ended: OrderedDict[int, Link] = attrs.field(factory=OrderedDict)
    failure: BaseException | None = None

    def labels_of(self, execution: ExecutionRecord) -> dict[str, str]:
        """Return what tells the step of an execution: the same object for each, since they are many."""
        if (labels := self.labels.get(execution.step)) is None:
            labels = {_WORKFLOW: execution.run.workflow, _STEP: execution.step}
            self.labels[execution.step] = labels
        return labels

    def link_to(self, execution_id: int) -> Link | None:
        """Return a link to the span of an execution, if that is known."""
        attempt = self.attempts.get(execution_id)
        if attempt is not None and attempt.span is not None:
            return Link(attempt.span.get_span_context(), _SOURCE)
        return self.ended.get(execution_id)

    def keep(self, execution_id: int, context: SpanContext) -> None:
        """Remember the span of an execution that has ended, and forget that of the oldest one."""
        self.ended[execution_id] = Link(context, _SOURCE)
        if len(self.ended) > _REMEMBERED:
            self.ended.popitem(last=False)


class OpenTelemetryInstrument(Instrument):
    """Makes a trace of each run, and metrics of all, with OpenTelemetry.

    A run is a span, whose parent is the span that is current in `run()`: of the caller, or of the step that
    starts a child run. The attempts to execute its steps are the children of that span, and the waits for
    events are children of theirs. An attempt is linked to what it follows from: the attempts that returned
    or sent its events, the attempt that it repeats, and the span in which an event was sent from outside.
    While a step is executed the span of the attempt is the current one, for spans of your own.

    One instrument serves any number of workflows, event loops and threads.

    Args:
        tracer_provider: Makes the spans; the global one if not given, as it is set when a run starts.
        meter_provider: Keeps the metrics; the global one if not given.

    Raises:
        WorkflowConfigurationError: If one of them is none; an exporter, say.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        _check_provider(
            tracer_provider, "tracer", "provider.add_span_processor(BatchSpanProcessor(exporter))"
        )
        _check_provider(
            meter_provider, "meter", "MeterProvider([PeriodicExportingMetricReader(exporter)])"
        )
        self._tracer = trace.get_tracer(_SCOPE, __version__, tracer_provider)
        # Weakly: no end is told to an instrument that was taken off for an error of a sampler.
        self._runs: WeakKeyDictionary[RunRecord, _Run] = WeakKeyDictionary()
        self._key = create_key("anyio-workflows-attempt")
        meter = metrics.get_meter(_SCOPE, __version__, meter_provider)
        self._active_runs = meter.create_up_down_counter(
            "anyio_workflows.run.active", "{run}", "Number of runs in progress."
        )
        self._run_duration = meter.create_histogram(
            "anyio_workflows.run.duration",
            "s",
            "Duration of runs.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._queue_length = meter.create_up_down_counter(
            "anyio_workflows.queue.length",
            "{attempt}",
            "Number of attempts that wait for a worker.",
        )
        self._queue_duration = meter.create_histogram(
            "anyio_workflows.queue.duration",
            "s",
            "Time that attempts waited for a worker before they began.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._attempt_duration = meter.create_histogram(
            "anyio_workflows.attempt.duration",
            "s",
            "Time that attempts had a worker: without the waits for events.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )

    # --- Runs -------------------------------------------------------------------------------------

    def run_started(self, run: RunRecord) -> None:
        """Begin the span of a run."""
        self._active_runs.add(1, {_WORKFLOW: run.workflow})
        attributes = {_WORKFLOW: run.workflow, _RUN: run.run_id}
        if run.start_event is not None:
            attributes[_EVENT] = type(run.start_event).__name__
        here = self._here()
        parent = get_current_span(here).get_span_context()
        span = self._tracer.start_span(f"run {run.workflow}", here, attributes=attributes)
        own = span.get_span_context()
        traced = own.is_valid and own.span_id != parent.span_id
        self._runs[run] = _Run(span, parent, set_span_in_context(span, here), traced)

    def run_ended(self, run: RunRecord, result: RunResult) -> None:
        """End the span of a run."""
        self._active_runs.add(-1, {_WORKFLOW: run.workflow})
        attributes = {_WORKFLOW: run.workflow, _RUN_OUTCOME: result.outcome}
        failed = result.outcome in ("failed", "timed_out")
        if failed and result.error is not None:
            attributes[_ERROR] = _class_name(result.error)
        self._run_duration.record(result.time - run.started, attributes)
        if (state := self._runs.pop(run, None)) is None:
            return
        span = state.span
        if span.is_recording():
            span.set_attributes({_RUN_OUTCOME: result.outcome, _STOP: type(result.event).__name__})
            if failed and result.error is not None:
                _set_error(span, result.error, recorded=result.error is state.failure)
        span.end()

    def event_sent(self, run: RunRecord, sent: SentRecord) -> None:
        """Note an event that was sent, on the span of the run or of the attempt that sent it."""
        if (state := self._runs.get(run)) is None:
            return
        span = state.span
        if sent.sender is not None and (attempt := state.attempts.get(sent.sender)) is not None:
            span = attempt.span or span
        if span.is_recording():
            attributes: dict[str, str | list[str]] = {_EVENT: type(sent.event).__name__}
            attributes[_TAKEN_BY] = list(sent.taken_by)
            if sent.step is not None:
                attributes[_STEP] = sent.step
            if sent.wait is not None:
                attributes[_WAIT] = sent.wait
            span.add_event("event sent", attributes)

    def event_unhandled(self, run: RunRecord, event: Event, idle: bool, time: float) -> None:
        """Note on the span of the run that no step takes an event."""
        if (state := self._runs.get(run)) is not None and state.span.is_recording():
            attributes: dict[str, str | bool] = {_EVENT: type(event).__name__, _IDLE: idle}
            state.span.add_event("event unhandled", attributes)

    # --- Attempts ---------------------------------------------------------------------------------

    def execution_queued(self, execution: ExecutionRecord) -> None:
        """Find out what an attempt follows from, while it can be told."""
        if (state := self._runs.get(execution.run)) is not None:
            labels = state.labels_of(execution)
            self._queue_length.add(1, labels)
            links = tuple(self._links(state, execution)) if state.traced else ()
            state.attempts[execution.id] = _Attempt(labels, links)

    def _links(self, state: _Run, execution: ExecutionRecord) -> Iterator[Link]:
        # SDKs keep a limited number of links, the last ones: those that matter most come last.
        for source in execution.sources:
            if (link := state.link_to(source)) is not None:
                yield link
        if execution.attempt > 1:
            if (link := state.ended.pop(execution.id, None)) is not None:
                yield Link(link.context, _RETRIED)
        elif not execution.sources and (sender := self._sender(state)) is not None:
            yield Link(sender, _SENDER)

    def execution_started(self, execution: ExecutionRecord, time: float) -> None:
        """Begin the span of an attempt, and make it the current one of the task."""
        state = self._runs.get(execution.run)
        if state is None or (attempt := state.attempts.get(execution.id)) is None:
            return
        attempt.resumed = time
        labels = attempt.labels
        self._queue_length.add(-1, labels)
        queued = time - execution.queued
        self._queue_duration.record(queued, labels)
        if not state.traced:
            return
        attempt.span = span = self._tracer.start_span(
            f"execute {execution.step}",
            state.context,
            attributes={
                **labels,
                _RUN: execution.run.run_id,
                _EXECUTION: execution.id,
                _ATTEMPT: execution.attempt,
                _EVENT: execution.event_name,
                _QUEUED: queued,
            },
            links=attempt.links,
        )
        attempt.links = ()
        here = Context({**get_current(), self._key: span, _INNERMOST: span})
        attempt.token = attach(set_span_in_context(span, here))

    def execution_suspended(self, execution: ExecutionRecord, time: float) -> None:
        """Stop the clock of an attempt."""
        attempt = self._attempt(execution)
        if attempt is not None and attempt.resumed is not None:
            attempt.ran += time - attempt.resumed
            attempt.resumed = None

    def execution_resumed(self, execution: ExecutionRecord, time: float) -> None:
        """Start the clock of an attempt again."""
        if (attempt := self._attempt(execution)) is not None:
            attempt.resumed = time

    def execution_ended(self, execution: ExecutionRecord, result: ExecutionResult) -> None:
        """End the span of an attempt, and make the one before it current again."""
        state = self._runs.get(execution.run)
        if state is None or (attempt := state.attempts.pop(execution.id, None)) is None:
            return
        self._measure(attempt, result)
        if (span := attempt.span) is None:
            return
        # It is not there in another task, which ends an attempt that the run gave up, nor if another
        # instrument has reset the context already. What the step left there is gone after that.
        if attempt.token is not None and self._own_span() is span:
            detach(attempt.token)
        state.keep(execution.id, span.get_span_context())
        if span.is_recording():
            span.set_attributes({_ATTEMPT_OUTCOME: result.outcome, **_returned(result.returned)})
            if result.error is not None:
                _set_error(span, result.error)
                if result.outcome == "failed":
                    state.failure = result.error
        span.end()

    def _attempt(self, execution: ExecutionRecord) -> _Attempt | None:
        state = self._runs.get(execution.run)
        return None if state is None else state.attempts.get(execution.id)

    def _measure(self, attempt: _Attempt, result: ExecutionResult) -> None:
        if result.started is None:
            self._queue_length.add(-1, attempt.labels)
            return
        labels = {**attempt.labels, _ATTEMPT_OUTCOME: result.outcome}
        if result.error is not None:
            labels[_ERROR] = _class_name(result.error)
        ran = attempt.ran
        if attempt.resumed is not None:
            ran += result.time - attempt.resumed
        self._attempt_duration.record(ran, labels)

    # --- Waits ------------------------------------------------------------------------------------

    def wait_started(self, execution: ExecutionRecord, wait: OpenWait, time: float) -> None:
        """Begin the span of a wait: it may last for days, and there may be several at once."""
        state = self._runs.get(execution.run)
        if state is None or (attempt := state.attempts.get(execution.id)) is None:
            return
        if attempt.span is None:
            return
        here = self._here()
        if self._own_span() is not attempt.span:
            here = set_span_in_context(attempt.span, state.context)
        attributes = {**attempt.labels, _RUN: execution.run.run_id, _WAIT: wait.id}
        attributes[_EVENT] = wait.event_type.__name__
        if wait.question is not None:
            attributes[_QUESTION] = type(wait.question).__name__
        name = f"wait for {wait.event_type.__name__}"
        attempt.waits[wait.id] = self._tracer.start_span(name, here, attributes=attributes)

    def wait_ended(self, execution: ExecutionRecord, wait: OpenWait, result: WaitResult) -> None:
        """End the span of a wait, with a link to the span in which it was answered."""
        state = self._runs.get(execution.run)
        if state is None or (attempt := state.attempts.get(execution.id)) is None:
            return
        if (span := attempt.waits.pop(wait.id, None)) is None:
            return
        span.set_attribute(_WAIT_OUTCOME, result.outcome)
        if result.source is not None:
            if (link := state.link_to(result.source)) is not None:
                span.add_link(link.context, _SOURCE)
        elif result.outcome == "answered" and (sender := self._sender(state)) is not None:
            span.add_link(sender, _SENDER)
        span.end()

    # --- The current span -------------------------------------------------------------------------

    def _own_span(self) -> Span | None:
        """Return the span that this instrument has put into the current context, in a step."""
        span = get_value(self._key)
        return span if isinstance(span, Span) else None

    def _here(self) -> Context:
        """Return the current context, with the span of the attempt that this instrument has made.

        In a step, the current span is one that the step has begun, or else that of the last instrument.
        """
        here = get_current()
        own = self._own_span()
        if own is not None and get_current_span(here) is get_value(_INNERMOST, here):
            return set_span_in_context(own, here)
        return here

    def _sender(self, state: _Run) -> SpanContext | None:
        """Return the current span, if it is more than where the run was started."""
        sender = get_current_span(self._here()).get_span_context()
        return sender if sender.is_valid and sender != state.parent else None


def _returned(returned: Event | list[Event] | None) -> dict[str, list[str] | int]:
    if returned is None:
        return {}
    if not isinstance(returned, list):
        return {_RETURNED: [type(returned).__name__]}
    names = list(dict.fromkeys(type(event).__name__ for event in returned))
    return {_RETURNED: names, _RETURNED_COUNT: len(returned)}


def _check_provider(given: object, kind: str, remedy: str) -> None:
    """Refuse what makes no tracers or meters, such as an exporter."""
    if given is not None and not hasattr(given, f"get_{kind}"):
        raise WorkflowConfigurationError(
            f"OpenTelemetryInstrument({kind}_provider=...) takes a {kind.title()}Provider, not "
            f"{short_repr(given)}; an exporter belongs to the provider: {remedy}"
        )


def _set_error(span: Span, error: BaseException, recorded: bool = False) -> None:
    """Mark a span as failed, and record the exception unless that was done elsewhere."""
    message = shortened(text_of(error), _LONGEST_MESSAGE)
    span.set_attribute(_ERROR, _class_name(error))
    span.set_status(Status(StatusCode.ERROR, message))
    if not recorded:
        try:
            span.record_exception(error)
        except Exception:  # its `__str__` raises
            described = {"exception.type": _class_name(error), "exception.message": message}
            span.add_event("exception", described)


def _class_name(error: BaseException) -> str:
    cls = type(error)
    module = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    return module + cls.__qualname__
