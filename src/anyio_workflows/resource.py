"""Markers for parameters that are resources: what a step is given besides its event.

`db: Annotated[Database, Resource(connect)]` injects the result of `connect()`, once per run. A factory
may be a function, sync or async, and may ask for resources itself; a generator function is entered
before the first step that asks for it, and closed when the run ends. With `scope="workflow"` all runs
of a workflow instance share one.
`settings: Annotated[Settings, ResourceConfig("app.toml")]` injects the contents of a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from ._absent import absent_names
from .errors import WorkflowConfigurationError

__all__ = ["Resource", "ResourceConfig"]

if not TYPE_CHECKING:
    __getattr__ = absent_names(__name__)


@attrs.frozen
class Resource:
    """Say which factory makes the value of a parameter; goes inside `Annotated`.

    Args:
        factory: Any callable. Its parameters may be resources themselves. A generator function, sync
            or async, bare or with a decorator of `contextlib`, is entered and closed. Any other
            callable is called, its result awaited if it is awaitable, and passed on as it is. Sync
            factories are called in the thread of the event loop.
        cache: Whether to keep the resource until the run ends. Otherwise each attempt of a step gets
            its own, shared within the attempt and closed when that ends. An uncached resource that a
            cached one depends on belongs to it alone, and is closed after it.
        scope: `"run"`: each run has its own. `"workflow"`: the runs of a workflow instance share it.
            It is made when the first of them asks for it, and kept as long as the instance. If it has
            to be closed, or depends on one that has, the runs are started inside
            `async with workflow:`, and it is closed when that block is left. It may depend on other
            resources of the workflow and on uncached ones, but on none of a run.

    Raises:
        WorkflowConfigurationError: If `factory` cannot be called, `cache` is not a bool, `scope` is
            neither of those, or an uncached resource is to have the scope `"workflow"`.
    """

    factory: Callable[..., Any]
    cache: bool = True
    scope: Literal["run", "workflow"] = "run"

    def __attrs_post_init__(self) -> None:
        if not callable(self.factory):
            raise WorkflowConfigurationError(
                f"Resource() takes a function that makes the resource, not {self.factory!r}"
            )
        if type(self.cache) is not bool:
            raise WorkflowConfigurationError(f"Resource(cache=) is a bool, not {self.cache!r}")
        if self.scope not in ("run", "workflow"):
            raise WorkflowConfigurationError(
                f"Resource(scope=) is 'run' or 'workflow', not {self.scope!r}"
            )
        if self.scope == "workflow" and not self.cache:
            raise WorkflowConfigurationError(
                "Resource(scope='workflow') is kept for all runs, and cache=False keeps it for none; "
                "leave out one of them"
            )


def _path_text(file: object) -> str:
    text = os.fspath(file) if isinstance(file, str | os.PathLike) else None
    if not isinstance(text, str) or Path(text).suffix.lower() not in (".json", ".toml"):
        raise WorkflowConfigurationError(
            f"ResourceConfig() takes the name of a .json or .toml file, not {file!r}"
        )
    return text


@attrs.frozen
class ResourceConfig:
    """Say which file the value of a parameter is read from, once per run; goes inside `Annotated`.

    A resource with `scope="workflow"` that asks for it has it read when it is made.

    The annotated type is an attrs class, a dataclass, a pydantic model, or a type of JSON. Values are
    not converted, except for those that JSON has no form for: dates, paths, UUIDs and enums are read
    from text.

    Args:
        config_file: A `.json` or `.toml` file; relative to the working directory of the run.
        path_selector: Dotted keys of the part of the file to use; without them, the whole file.
        label: A short name for people, as in a picture of the workflow.
        description: What the file contains, for people.

    Raises:
        WorkflowConfigurationError: If `config_file` is neither, a key is empty, or the label or
            description is not text. When the file is read, if it does not have what the annotation says.
    """

    config_file: str = attrs.field(converter=_path_text)
    path_selector: str | None = None
    label: str | None = None
    description: str | None = None

    def __attrs_post_init__(self) -> None:
        selector = self.path_selector
        if selector is not None and not (isinstance(selector, str) and all(selector.split("."))):
            raise WorkflowConfigurationError(
                f"ResourceConfig(path_selector=) is text like 'server.limits', not {selector!r}"
            )
        for name in ("label", "description"):
            if not isinstance(text := getattr(self, name), str | None):
                raise WorkflowConfigurationError(f"ResourceConfig({name}=) is text, not {text!r}")
