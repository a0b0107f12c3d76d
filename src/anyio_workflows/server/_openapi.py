"""The description of a server as OpenAPI 3.1, made from the table of routes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ..runtime._records import NAME_PATTERN
from ..wire import json_schema
from ..workflow import Workflow
from ._problems import MEDIA_TYPE, title_of
from ._route import Content, Parameter, Route
from ._schemas import SCHEMAS

_NAMES = {
    "id": ("The id of the run.", {"type": "string", "pattern": f"^{NAME_PATTERN}$"}),
    "name": ("The name of the workflow.", {"type": "string"}),
    "question": ("The id of the question.", {"type": "string"}),
}
"""What stands in paths."""


def describe_api(
    routes: Sequence[Route],
    workflows: Mapping[str, Workflow[Any]],
    has_token: bool,
    root_path: str = "",
) -> dict[str, Any]:
    """Return the OpenAPI document of a server.

    The schema of the input of a workflow named `research` is `#/components/schemas/research.input`, with that of its output
    beside it.

    Args:
        routes: The table.
        workflows: The workflows that are served, by name.
        has_token: Whether requests have to show one.
        root_path: Where the application is mounted.
    """
    components: dict[str, Any] = {"schemas": _schemas(workflows)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "anyio-workflows",
            "version": version("anyio-workflows"),
            "description": "Runs of workflows: start, follow, answer, cancel and retry them.",
        },
        "servers": [{"url": root_path or "/"}],
        "paths": {},
        "components": components,
    }
    if has_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for route in routes:
        if route.is_page:
            continue
        operations = document["paths"].setdefault(route.template, {})
        operations[route.method.lower()] = _operation(route, has_token)
    return document


# --- Operations -----------------------------------------------------------------------------------------


def _operation(route: Route, has_token: bool) -> dict[str, Any]:
    doc = inspect.getdoc(route.handler) or ""
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": doc.partition("\n")[0].rstrip("."),
        "description": doc,
        "parameters": [
            *(_path_parameter(name) for name in re.findall(r"{(\w+)}", route.template)),
            *map(_parameter, route.parameters),
        ],
        "responses": _responses(route, has_token),
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": False,
            "content": {"application/json": {"schema": _reference(route.body)}},
        }
    if has_token and route.verb is not None:
        operation["security"] = [{"token": []}]
    return operation


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "schema": dict(parameter.schema),
    }


def _path_parameter(name: str) -> dict[str, Any]:
    description, schema = _NAMES[name]
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": schema,
    }


def _responses(route: Route, has_token: bool) -> dict[str, Any]:
    responses = {str(status): _response(one) for status, one in route.answers.items()}
    problems = route.all_problems - (set() if has_token else {401})
    for status in sorted(problems):
        responses[str(status)] = {
            "description": title_of(status),
            "content": {MEDIA_TYPE: {"schema": _reference("Problem")}},
        }
    return responses


def _response(content: Content) -> dict[str, Any]:
    response: dict[str, Any] = {"description": content.description}
    if content.media:
        response["content"] = {
            media: {"schema": _reference(schema) if isinstance(schema, str) else dict(schema)}
            for media, schema in content.media.items()
        }
    if content.headers:
        response["headers"] = {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in content.headers.items()
        }
    return response


# --- Schemas --------------------------------------------------------------------------------------------


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas(workflows: Mapping[str, Workflow[Any]]) -> dict[str, Any]:
    found: dict[str, Any] = dict(SCHEMAS)
    for name, workflow in workflows.items():
        for what, cls in (
            ("input", workflow.start_event_class),
            ("output", workflow.stop_event_class),
        ):
            found |= _components(f"{name}.{what}", json_schema(cls))
    return found


def _components(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema as a component of that name, with components for what it defines itself."""
    definitions = {
        f"#/$defs/{key}": f"{name}.{re.sub(r'[^A-Za-z0-9._-]', '_', key)}"
        for key in schema.get("$defs", {})
    }

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {
            key: _reference(definitions[one])["$ref"]
            if key == "$ref" and one in definitions
            else moved(one)
            for key, one in value.items()
            if key != "$defs"
        }

    parts = {name: schema} | {
        definitions[f"#/$defs/{key}"]: one for key, one in schema.get("$defs", {}).items()
    }
    # Generators name classes by titles, and those of events are the same in many workflows.
    return {key: {**moved(one), "title": key} for key, one in parts.items()}
