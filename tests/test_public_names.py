"""The public names: sorted, documented, typed, and cheap to import."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import tenacity

import anyio_workflows
from anyio_workflows import Context, Runtime, Workflow, WorkflowHandler
from anyio_workflows.runtime import RunHandle
from anyio_workflows.state import StateStore

PACKAGE = Path(anyio_workflows.__file__).parent
FOLDERS = ["client", "runtime", "server", "testing"]
"""Public packages: their names come from their own private modules."""

NAMES = sorted([*(path.stem for path in PACKAGE.glob("*.py")), *FOLDERS])
EXTRAS = {"client": "httpx2", "otel": "opentelemetry", "server": "starlette"}
WITHOUT_EXTRA = {
    module for module, extra in EXTRAS.items() if importlib.util.find_spec(extra) is None
}
IMPORTABLE = [name for name in NAMES if name not in {"__init__", "__main__", *WITHOUT_EXTRA}]
PUBLIC = [name for name in IMPORTABLE if not name.startswith("_")]


def load(name: str):
    return importlib.import_module(f"anyio_workflows.{name}")


def test_the_face_of_the_package():
    assert anyio_workflows.__all__ == [
        "Context",
        "Event",
        "HumanResponseEvent",
        "InputRequiredEvent",
        "Runtime",
        "StartEvent",
        "StepFailedEvent",
        "StopEvent",
        "Workflow",
        "WorkflowCancelledEvent",
        "WorkflowFailedEvent",
        "WorkflowHandler",
        "WorkflowTimedOutEvent",
        "catch_error",
        "step",
    ]


def test_the_package_knows_its_version():
    assert anyio_workflows.__version__ == importlib.metadata.version("anyio-workflows")


@pytest.mark.parametrize("name", ["__init__", *PUBLIC])
def test_all_is_sorted_and_every_name_is_there(name: str):
    module = anyio_workflows if name == "__init__" else load(name)
    names = module.__all__
    assert names == sorted(set(names))
    assert [n for n in names if not hasattr(module, n)] == []


def documented_objects():
    for name in PUBLIC:
        for public in load(name).__all__:
            thing = getattr(load(name), public)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield f"{name}.{public}", thing


@pytest.mark.parametrize("name", [name for name, _ in documented_objects()])
def test_every_public_name_is_documented(name: str):
    thing = dict(documented_objects())[name]
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert own
    assert own.strip()
    if not inspect.isclass(thing):
        return
    for member, value in vars(thing).items():
        function = inspect.unwrap(getattr(value, "__func__", value))
        function = value.fget if isinstance(value, property) else function
        if not member.startswith("_") and inspect.isfunction(function):
            assert function.__doc__, f"{name}.{member}"


@pytest.mark.parametrize("name", ["__init__", *IMPORTABLE])
def test_every_module_says_what_it_is_for(name: str):
    module = anyio_workflows if name == "__init__" else load(name)
    assert module.__doc__


def test_the_reference_names_are_where_users_look_for_them():
    wanted = {
        "errors": "WorkflowError WorkflowValidationError WorkflowConfigurationError "
        "WorkflowRuntimeError WorkflowTimeoutError WorkflowCancelledByUser EventValidationError "
        "WorkflowStalledError ContextSerdeError ContextStateError",
        "events": "Event StartEvent StopEvent InputRequiredEvent HumanResponseEvent "
        "WorkflowTimedOutEvent WorkflowCancelledEvent WorkflowFailedEvent StepFailedEvent "
        "InternalDispatchEvent "
        "StepStateChanged StepState UnhandledEvent WorkflowIdleEvent",
        "collect": "All Collect Take",
        "decorators": "catch_error step",
        "retry_policy": "ConstantDelayRetryPolicy ExponentialBackoffRetryPolicy retry_policy RetryPolicy RetryInfo retry_if_exception_type wait_fixed "
        "wait_exponential stop_after_attempt stop_after_delay",
        "handler": "WorkflowHandler",
        "state": "DictState StateStore",
        "testing": "WorkflowTestRunner WorkflowTestResult",
    }
    for module, names in wanted.items():
        assert set(names.split()) <= set(load(module).__all__)


MEMBERS = {
    Context: "collect_events discard_work drain from_dict get_step_context has_work_left idempotency_key is_running "
    "open_waits relay_events retry_failed retry_info run_id running_steps send_event store to_dict "
    "wait_for_event write_event_to_stream",
    Workflow: "add_step events graph run start_event_class stop_event_class types validate "
    "workflow_name",
    WorkflowHandler: "cancel_run cancelled ctx done exception get_stop_event is_done open_waits result run_id "
    "send_event statistics "
    "stop_event_result stream_events",
    Runtime: "delete get info retry runs start state statistics workflows",
    RunHandle: "cancel id info open_waits records send_event statistics stream_events wait workflow",
    StateStore: "clear edit_state get get_state set set_state statistics",
}
if "client" in PUBLIC:
    from anyio_workflows.client import RemoteEvents, RemoteRun, WorkflowClient

    MEMBERS |= {
        WorkflowClient: "run runs start workflow workflows",
        RemoteRun: "answer cancel delete events id info known questions result retry send",
        RemoteEvents: "aclose cursor status",
    }
"""What users find on the objects that they hold. A method for the library itself has an underscore."""


@pytest.mark.parametrize("cls", MEMBERS, ids=lambda cls: cls.__name__)
def test_users_find_only_what_is_for_them(cls: type):
    found = [name for name in dir(cls) if name[0] != "_" and hasattr(cls, name)]
    assert found == MEMBERS[cls].split()


@pytest.mark.parametrize("name", PUBLIC)
def test_what_a_public_module_defines_is_public_or_has_an_underscore(name: str):
    module = load(name)
    defined = [
        one
        for one, value in vars(module).items()
        if inspect.isclass(value) or inspect.isfunction(value)
        if (value.__module__, value.__name__) == (module.__name__, one)
    ]
    assert [one for one in defined if one[0] != "_" and one not in module.__all__] == []


def is_private(path: Path) -> bool:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return any(part.startswith("_") and part != "__init__" for part in parts)


PRIVATE = [path for path in sorted(PACKAGE.rglob("*.py")) if is_private(path)]


@pytest.mark.parametrize("path", PRIVATE, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_private_modules_list_no_public_names(path: Path):
    assert not re.search(r"^__all__\b", path.read_text("utf-8"), re.MULTILINE)


PASSED_ON = {
    "client.Gap": "anyio_workflows.runtime",
    "client.RemoteRunError": "anyio_workflows.errors",
    "client.ServerUnreachableError": "anyio_workflows.errors",
    "client.WorkflowServerError": "anyio_workflows.errors",
    "decorators.catch_error": "anyio_workflows.steps",
    "decorators.step": "anyio_workflows.steps",
    "handler.OpenWait": "anyio_workflows._ledger.work",
    "retry_policy.RetryInfo": "anyio_workflows.steps",
    "retry_policy.RetryPolicy": "anyio_workflows.steps",
}
"""Names that a public module takes from another one."""


def test_no_name_pretends_to_come_from_elsewhere():
    for name, thing in documented_objects():
        module, _, public = name.partition(".")
        if module == "retry_policy" and getattr(tenacity, public, None) is thing:
            continue
        home = thing.__module__
        if module in FOLDERS:
            home = home.partition("._")[0]
        assert home == PASSED_ON.get(name, f"anyio_workflows.{module}")


def test_the_package_says_that_it_is_typed():
    assert files(anyio_workflows).joinpath("py.typed").is_file()


def test_importing_needs_neither_trio_nor_pydantic_nor_the_test_tools():
    code = (
        "import sys, anyio_workflows\n"
        "unwanted = {'trio', 'pytest', 'hypothesis', 'pydantic', 'pydantic_core'}\n"
        "print(sorted(unwanted & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
