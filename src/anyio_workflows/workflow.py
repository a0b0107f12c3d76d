"""The `Workflow` base class: configure, validate and start runs."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import attrs

from ._absent import absent_names, refuse_arguments
from ._annotations import is_enum, is_positive_number, is_record, read_names
from ._backend import find_loop
from ._engine.block import SharedResources, WorkflowBlock
from ._engine.limiter import RunLimiter
from ._engine.run import Run, RunSettings
from ._ledger.pending import SavedState
from ._messages import namesakes
from ._signatures import read_steps, step_members
from ._validation import find_faults
from .context import Context, _current_step
from .errors import (
    ContextStateError,
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowValidationError,
)
from .events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent
from .graph import Graph, StepSpec
from .handler import ResultT, WorkflowHandler
from .instrument import Instrument, LoggingInstrument
from .steps import GraphCheck, StepConfig

if TYPE_CHECKING:
    from cattrs import BaseConverter

    from ._json.hooks import Hooks  # only snapshots need it

__all__ = ["Workflow"]

RunT = TypeVar("RunT", bound=Run)

if not TYPE_CHECKING:
    __getattr__ = absent_names(__name__)


@attrs.frozen
class _Config:
    """The arguments of `Workflow()` that do not concern single runs."""

    name: str | None = None
    disable_validation: bool = False
    skip_graph_checks: frozenset[str] = frozenset()
    limiter: RunLimiter | None = None
    hooks: Hooks | None = None
    instruments: list[Instrument] = attrs.field(factory=list)


class Workflow(Generic[ResultT]):
    """Base of workflows: a class whose `@step` methods accept events and return events.

    `class Joke(Workflow[JokeEvent])` tells type checkers what `await workflow.run()` returns.

    `async with workflow:` owns the runs that are started meanwhile, and closes the resources that they
    share, those with `scope="workflow"`, when the last run has ended.

    Attributes:
        types: Types that snapshots of the runs may hold, besides those that the annotations and the
            code of the methods name; of other classes too, if the converter has hooks for them. Set it in the class body, as in `types = (Draft, Color)`; the
            types of base classes are included.

    Args:
        timeout: Seconds that a run may take; `None` for no limit.
        disable_validation: Run without checking the graph of the steps.
        verbose: Report each step to the logger `anyio_workflows.verbose` if that is enabled for INFO,
            else on standard output.
        workflow_name: A name for messages, instead of the class's.
        skip_graph_checks: Checks of the graph to leave out: `"reachability"`, `"terminal_event"`,
            `"dead_end"`.
        num_concurrent_runs: How many runs of this instance may be in progress at once in one event
            loop; further ones queue for a slot, and their timeout starts when they get it. A run that
            was started, at any depth, by a run of the same instance needs no slot.
        cleanup_timeout: Seconds that cancelled steps have for their cleanup before the run ends
            without them.
        stall_check: Fail a run with `WorkflowStalledError` when no step is queued, running or waiting,
            no event from outside is accepted, and no input has been asked for.
        slow_step_warning: Seconds for which an async step may hold the event loop, without an `await`
            that suspends it, before a WARNING names it; once per step and process. `None` for none.
        converter: A `cattrs.Converter` with hooks for the classes whose values snapshots may hold,
            besides those that they know anyway (P7).
        instruments: Told what happens in each run (I1); see `anyio_workflows.instrument`.

    Raises:
        WorkflowConfigurationError: If an argument has an invalid value.
        WorkflowValidationError: If the annotation of a step contains a name that is not defined.
            (Other faults of a signature are raised when the class is defined.)
    """

    types: ClassVar[Collection[type]] = ()

    _config = _Config()
    _settings: RunSettings | None = None
    _shared: SharedResources | None = None
    _free_steps: ClassVar[dict[str, Any]] = {}
    _specs: ClassVar[dict[str, StepSpec]] = {}
    _graph: ClassVar[Graph | None] = None

    @refuse_arguments("Workflow()")
    def __init__(
        self,
        timeout: float | None = 45.0,
        disable_validation: bool = False,
        verbose: bool = False,
        *,
        workflow_name: str | None = None,
        skip_graph_checks: Collection[GraphCheck] | None = None,
        num_concurrent_runs: int | None = None,
        cleanup_timeout: float = 5.0,
        stall_check: bool = True,
        slow_step_warning: float | None = 0.5,
        converter: BaseConverter | None = None,
        instruments: Iterable[Instrument] = (),
    ) -> None:
        skipped, faults = read_names("skip_graph_checks", skip_graph_checks, GraphCheck)
        if faults:
            raise WorkflowConfigurationError("; ".join(faults))
        if timeout is not None and not is_positive_number(timeout):
            raise WorkflowConfigurationError(
                f"timeout must be a positive number of seconds, or None for no limit; not {timeout!r}"
            )
        if not is_positive_number(cleanup_timeout, or_zero=True):
            raise WorkflowConfigurationError(
                f"cleanup_timeout must be a number of seconds, 0 or more; not {cleanup_timeout!r}"
            )
        if slow_step_warning is not None and not is_positive_number(slow_step_warning):
            raise WorkflowConfigurationError(
                "slow_step_warning must be a positive number of seconds, or None for no warning; not "
                f"{slow_step_warning!r}"
            )
        if num_concurrent_runs is not None and (
            type(num_concurrent_runs) is not int or num_concurrent_runs < 1
        ):
            raise WorkflowConfigurationError(
                "num_concurrent_runs must be a positive int, or None for no limit; not "
                f"{num_concurrent_runs!r}"
            )
        self._config = _Config(
            name=workflow_name,
            disable_validation=disable_validation,
            skip_graph_checks=skipped,
            limiter=None if num_concurrent_runs is None else RunLimiter(num_concurrent_runs),
            hooks=self._read_hooks(converter),
            instruments=_check_instruments(instruments),
        )
        if verbose:
            self._config.instruments.append(LoggingInstrument())
        self._settings = RunSettings(
            name=workflow_name or type(self).__name__,
            timeout=timeout,
            cleanup_timeout=cleanup_timeout,
            stall_check=stall_check,
            slow_step_warning=slow_step_warning,
        )
        self._compiled()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._free_steps = {}
        cls._graph = None
        inherited = {name for base in cls.__mro__ for name in step_members(base)}
        if taken := sorted(inherited & vars(Workflow).keys()):
            faults = [f"a step cannot be called {name!r}, Workflow needs it" for name in taken]
            raise WorkflowValidationError(cls.__name__, faults)
        cls._check_types()
        cls._specs, _ = read_steps(cls, Context)

    @classmethod
    def _check_types(cls) -> None:
        given = vars(cls).get("types", ())
        if not isinstance(given, tuple | list | set | frozenset):
            fault = f"types must be a tuple of classes, not {reprlib.repr(given)}"
            raise WorkflowValidationError(cls.__name__, [fault])
        others = [one for one in given if not is_record(one) and not is_enum(one)]
        if others:
            from ._json.fields import NO_TYPE, is_foreign  # takes a while, and is rare

            # The converter of an instance may have hooks for the foreign ones.
            if wrong := [one for one in others if not is_foreign(one)]:
                faults = [f"{one!r} in types {NO_TYPE}" for one in wrong]
                raise WorkflowValidationError(cls.__name__, faults)

    @classmethod
    def _read_hooks(cls, converter: object) -> Hooks | None:
        """Return the hooks of a converter, which has to have those for `types`."""
        types = [one for base in cls.__mro__ for one in vars(base).get("types", ())]
        foreign = [one for one in types if not is_record(one) and not is_enum(one)]
        if converter is None and not foreign:
            return None
        from ._json.fields import NO_TYPE
        from ._json.hooks import Hooks, no_hooks

        hooks = None if converter is None else Hooks(converter)
        for one in foreign:
            if hooks is None or hooks.missing(one):
                problem = f"{one!r} in the types of {cls.__name__} {NO_TYPE}"
                raise WorkflowConfigurationError(f"{problem}; {no_hooks(one, hooks)}")
        return hooks

    @classmethod
    def add_step(cls, func: Callable[..., Any]) -> None:
        """Add a free function that is marked with `@step` as a step of this workflow.

        Raises:
            WorkflowValidationError: If the function is not marked, its signature has a fault, or the
                workflow already has a step of that name.
        """
        name = getattr(func, "__name__", repr(func))
        if cls is Workflow:
            fault = "add it to a workflow class of yours, not to Workflow itself"
            raise WorkflowValidationError(f"step {name}", [fault])
        if StepConfig.of(func) is None:
            raise WorkflowValidationError(f"step {name}", ["mark it with @step before adding it"])
        if name in step_members(cls):
            fault = f"it has a step {name!r} already; give the function another name"
            raise WorkflowValidationError(cls.__name__, [fault])
        cls._free_steps[name] = staticmethod(func)
        try:
            cls._forget_graph()
            cls._specs, _ = read_steps(cls, Context)
        except WorkflowValidationError:
            del cls._free_steps[name]
            raise

    @classmethod
    def _forget_graph(cls) -> None:
        cls._graph = None
        for subclass in cls.__subclasses__():
            subclass._forget_graph()

    @classmethod
    def _compiled(cls) -> Graph:
        if cls._graph is None:
            cls._specs, unresolved = read_steps(cls, Context)
            if unresolved:
                raise WorkflowValidationError(cls.__name__, unresolved)
            cls._graph = Graph(cls.__name__, cls._specs, cls)
        return cls._graph

    @classmethod
    def _readable_graph(cls) -> Graph:
        """Return the graph, for pictures: without the steps whose annotations cannot be resolved."""
        try:
            return cls._compiled()
        except WorkflowValidationError:
            specs, _ = read_steps(cls, Context)
            unread = tuple(name for name in step_members(cls) if name not in specs)
            return Graph(cls.__name__, specs, cls, unread)

    @property
    def workflow_name(self) -> str:
        """The name that messages use."""
        return self._settings.name if self._settings else type(self).__name__

    @property
    def graph(self) -> Graph:
        """The steps, and which events lead from one to another."""
        return self._compiled()

    @property
    def events(self) -> list[type[Event]]:
        """All event types that the steps accept or return."""
        return self.graph.events

    @property
    def start_event_class(self) -> type[Event]:
        """The type of the event that starts a run.

        Raises:
            WorkflowValidationError: If no step accepts a start event.
        """
        return self._start_class(self.graph)

    @property
    def stop_event_class(self) -> type[Event]:
        """The type of the event that ends a successful run.

        Raises:
            WorkflowValidationError: If no step returns a stop event.
        """
        return self._only(self.graph.stop_event_types, "no step returns a StopEvent")

    def _start_class(self, graph: Graph) -> type[Event]:
        return self._only(graph.start_event_types, "no step accepts a StartEvent")

    def _only(self, types: list[type[Event]], fault: str) -> type[Event]:
        if not types:
            raise WorkflowValidationError(self.workflow_name, [fault])
        return types[0]

    def validate(
        self, *, validate_resource_configs: bool = True, validate_resources: bool = False
    ) -> bool:
        """Check the graph of the steps, as `run()` does, and the files that resources are read from.

        Args:
            validate_resource_configs: Whether to read the file of each `ResourceConfig` now.
            validate_resources: Taken for compatibility. What the factories of resources ask for is
                always checked, when the class is defined; they are called in a run only.

        Returns:
            Whether the workflow asks people: a step returns an `InputRequiredEvent` or accepts a
            `HumanResponseEvent`.

        Raises:
            WorkflowValidationError: With every fault of the graph and of the files.
        """
        graph = self._compiled()
        self._check(graph, *(_file_faults(graph) if validate_resource_configs else ()))
        steps = graph.steps.values()
        asked = (event for spec in steps for event in spec.returns)
        answers = (event for spec in steps for event in spec.accepts)
        return any(issubclass(event, InputRequiredEvent) for event in asked) or any(
            issubclass(event, HumanResponseEvent) for event in answers
        )

    def _check(self, graph: Graph, *more_faults: str) -> None:
        faults = [*find_faults(graph, self._config.skip_graph_checks), *more_faults]
        if faults:
            raise WorkflowValidationError(self.workflow_name, faults)

    def run(
        self,
        /,
        ctx: Context[Any] | None = None,
        start_event: StartEvent | None = None,
        run_id: str | None = None,
        *,
        instruments: Iterable[Instrument] = (),
        **kwargs: Any,
    ) -> WorkflowHandler[ResultT]:
        """Start a run in the background and return the handler to await and to stream from.

        This is a plain function: no step begins before the caller's next `await`. The run belongs to
        the event loop; `async with workflow.run(...) as handler:` binds it to a block.

        Args:
            ctx: The context to continue from, with its state and its pending work. There is pending work
                after a timeout, a cancellation or `ctx.retry_failed()`, and in restored snapshots; then
                the run takes no start event.
            start_event: The event to start with, instead of keywords.
            run_id: Identifies the run in logs; generated if not given.
            instruments: Told what happens in this run, after those of the workflow (I1).
            **kwargs: The fields of the start event.

        Raises:
            WorkflowValidationError: If the graph of the steps is faulty.
            WorkflowConfigurationError: If both `start_event` and keywords are given, no step accepts
                the event as a start event, or a step uses a resource that is closed with the workflow
                and this is not inside `async with workflow:`.
            ContextStateError: If the run of `ctx` is still in progress, `ctx` is of another workflow, or
                it has pending work and a start event is given.
            EventValidationError: If the keywords do not fit the start event.
            WorkflowRuntimeError: If there is no running asyncio or trio event loop.
        """
        own_instruments = _check_instruments(instruments) if instruments else ()
        run, event = self._new_run(Run, ctx, start_event, kwargs, run_id)
        handler: WorkflowHandler[ResultT] = WorkflowHandler(run)
        run.start(event, self._config.limiter, own_instruments)
        return handler

    def _new_run(
        self,
        kind: Callable[..., RunT],
        ctx: Context[Any] | None,
        start_event: StartEvent | None,
        fields: dict[str, Any],
        run_id: str | None,
    ) -> tuple[RunT, Event | None]:
        """Make a run, to be started; `run()` says what is checked.

        Args:
            kind: The class of the run, or what makes one with the same arguments.
            ctx: The context to continue from.
            start_event: The event to start with, instead of `fields`.
            fields: The fields of the start event.
            run_id: Identifies the run.

        Returns:
            The run, and the event to start it with, if it does not continue from a context.
        """
        graph = self._compiled()
        if not self._config.disable_validation:
            self._check(graph)
        hooks = self._config.hooks
        saved = SavedState(graph) if ctx is None else _saved_state(ctx, graph)
        if hooks is not None:
            saved.hooks = hooks
        event = None
        if saved.pending is None:
            event = self._start_event(graph, start_event, fields)
        elif start_event is not None or fields:
            raise ContextStateError(
                "the context has work left to do; call run(ctx=...) without a start event to continue "
                "it, or ctx.discard_work() to drop it"
            )
        loop = find_loop()
        if loop is None:
            raise WorkflowRuntimeError(
                f"{type(self).__name__}.run() needs a running event loop: call it in an async "
                "function under asyncio or trio, or, from a worker thread, through "
                "anyio.from_thread.run_sync()"
            )
        shared = block = None
        if self._shared is not None or graph.workflow_resources:
            shared = self._shared_resources()
            block = shared.block
            if block is not None and not block.takes_runs:
                block = None
            if block is None and graph.closed_with_workflow is not None:
                raise self._needs_block(*graph.closed_with_workflow, shared.block)
        context = _current_step()
        parent = None if context is None or context._run.ended else context._run
        run = kind(
            self,
            saved,
            loop,
            self._settings or RunSettings(self.workflow_name),
            run_id,
            parent if parent is not None and parent.loop.is_here() else None,
            None if shared is None else shared.values,
            self._config.instruments,
            block,
        )
        return run, event

    async def __aenter__(self) -> Self:
        """Own the runs that are started from now on, and the resources that they share.

        Nothing is opened yet. Factories see the context variables as they are now.

        Raises:
            WorkflowRuntimeError: If the instance is in use in such a block already, or there is no running
                asyncio or trio event loop.
        """
        loop = find_loop()
        if loop is None:
            raise WorkflowRuntimeError(
                f"{type(self).__name__} can be entered in a running event loop only, of asyncio or trio"
            )
        settings = self._settings or RunSettings(self.workflow_name)
        await self._shared_resources().enter(settings.name, loop, settings.cleanup_timeout)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the runs, or cancel them if the block raises; then close what they shared.

        Closing is bounded by `cleanup_timeout`, and begins with what was opened last.

        Raises:
            BaseException: The first failure of one of these resources; it is logged if the block
                raises, as are further ones. Failures of runs are raised by their handlers alone.
        """
        await self._shared_resources().leave(self.workflow_name, exc_type is not None)

    def __getstate__(self) -> Any:
        """Share nothing with a copy of the workflow, which is another instance (P5)."""
        state: Any = super().__getstate__()
        if "_shared" not in self.__dict__:
            return state
        own = {name: value for name, value in self.__dict__.items() if name != "_shared"}
        return (
            (own, state[1]) if isinstance(state, tuple) else own
        )  # a tuple if it has slots as well

    def _repr_svg_(self) -> str | None:
        """Show the graph of the steps in notebooks."""
        with suppress(Exception):  # they show the plain repr instead
            from ._drawing.picture import picture_of
            from ._drawing.svg import svg

            return svg(picture_of(self._readable_graph()))
        return None

    def _repr_html_(self) -> str | None:
        """Show the graph of the steps, and its faults, in notebooks."""
        with suppress(Exception):
            from ._drawing.page import notebook_part

            if (picture := self._repr_svg_()) is not None:
                return notebook_part(picture, [("Fault", fault) for fault in self._faults()[:20]])
        return None

    def _faults(self) -> Sequence[str]:
        """Return what `run()` would refuse."""
        if self._config.disable_validation:
            return ()
        try:
            return find_faults(self._compiled(), self._config.skip_graph_checks)
        except WorkflowValidationError as error:
            return error.faults

    def _shared_resources(self) -> SharedResources:
        # Atomic, since threads may be first at the same time.
        shared: SharedResources = self.__dict__.setdefault("_shared", SharedResources())
        return shared

    def _needs_block(
        self, step: str, resource: str, block: WorkflowBlock | None
    ) -> WorkflowConfigurationError:
        """Say why a run cannot be started outside the block of the workflow."""
        remedy = "use 'async with workflow:', and start its runs inside that block"
        state = None
        if block is not None and block.loop.is_here():
            state = "has ended: its task was cancelled" if block.ended else "is being left"
        elif block is not None and not block.ended:
            state = "belongs to another event loop"
        if state is not None:
            remedy = f"its 'async with' block takes no run here, because it {state}"
        return WorkflowConfigurationError(
            f"{self.workflow_name}: resource {resource} of step {step} is closed with its workflow; "
            f"{remedy}"
        )

    def _start_event(self, graph: Graph, given: StartEvent | None, fields: dict[str, Any]) -> Event:
        if given is None:
            return self._start_class(graph)(**fields)
        if fields:
            raise WorkflowConfigurationError(
                f"run() takes a start_event or its fields, not both; got {', '.join(fields)} as well"
            )
        if not isinstance(given, StartEvent) or not graph.takers(type(given)):
            start_class = self._start_class(graph)
            text = f"{self.workflow_name} starts with {start_class.__name__}, not with "
            remark = namesakes([type(given)], [start_class])
            raise WorkflowConfigurationError(f"{text}{given!r}{remark and f'; {remark}'}")
        return given


def _check_instruments(given: Iterable[Instrument]) -> list[Instrument]:
    if isinstance(given, Instrument) or not isinstance(given, Iterable):
        raise WorkflowConfigurationError(
            f"instruments must be a list of instruments, not {reprlib.repr(given)}"
        )
    instruments = list(given)
    for one in instruments:
        if not isinstance(one, Instrument):
            remedy = "an instance of a subclass of Instrument"
            if isinstance(one, type) and issubclass(one, Instrument):
                remedy = f"an instance, {one.__name__}()"
            raise WorkflowConfigurationError(f"{reprlib.repr(one)} is no instrument; give {remedy}")
    return instruments


def _file_faults(graph: Graph) -> Iterator[str]:
    for spec in graph.steps.values():
        for param, dependency in spec.dependencies.items():
            for fault in dict.fromkeys(dependency.file_faults()):
                yield f"step {spec.name}: parameter {param!r}: {fault}"


def _saved_state(ctx: Context[Any], graph: Graph) -> SavedState:
    """Return what a run with this context continues from."""
    if not isinstance(ctx, Context):
        raise WorkflowConfigurationError(
            f"run(ctx=...) takes a Context, not {ctx!r}; give the fields of the start event by keyword"
        )
    saved = ctx._saved
    saved.check_free()
    if saved.graph is graph:
        return saved
    text = f"the context is for runs of {saved.graph.name}, not of {graph.name}"
    if saved.graph.name == graph.name:
        text = (
            f"the context is for runs of another class {graph.name}, from before it was defined again; "
            "Context.from_dict(workflow, ctx.to_dict()) makes one for this class"
        )
    raise ContextStateError(text)
