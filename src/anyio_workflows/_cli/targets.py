"""Workflows by their place in the code: `package.module:Workflow`, `path/to/file.py:workflow`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs

from .._messages import closest, last_line_of, nearest, shortened
from ..errors import WorkflowValidationError
from ..workflow import Workflow
from .problems import FAILED, CommandError

HOW = "give package.module:Workflow, or path/to/file.py:Workflow"


@attrs.frozen
class Target:
    """A workflow that was named on the command line.

    Attributes:
        name: `module:Name`.
        thing: The class, or an instance.
    """

    name: str
    thing: type[Workflow[Any]] | Workflow[Any]

    def instance(self) -> Workflow[Any]:
        """Return the instance, or make one of the class.

        Raises:
            CommandError: If the class needs arguments, or cannot be made for another reason.
        """
        if isinstance(self.thing, Workflow):
            return self.thing
        try:
            return self.thing()
        except WorkflowValidationError as error:
            raise CommandError(f"{self.name}: {error}", FAILED) from error
        except Exception as error:
            module = self.name.partition(":")[0]
            raise CommandError(
                f"{self.thing.__name__}() cannot be made: {last_line_of(error)}; make an instance in the module, "
                f"workflow = {self.thing.__name__}(...), and give {module}:workflow"
            ) from error


def load(text: str) -> list[Target]:
    """Return the workflow that a text names, or all that its module defines, if it names only a module.

    Those are the workflow objects in the module, and the classes of which there is none.

    Raises:
        CommandError: If there is no such module or workflow, or the module cannot be imported.
    """
    place, colon, attribute = text.partition(":")
    if os.sep in text and os.name == "nt" and place.isalpha() and len(place) == 1:
        place, colon, attribute = text.rpartition(":")  # the drive of a path
    if not place or (colon and not attribute):
        raise CommandError(f"{shortened(text, 200)!r} names no workflow; {HOW}")
    module = _import_file(place) if _is_file(place) else _import_module(place)
    if colon:
        return [_named(module, place, attribute)]
    found = _defined_in(module, place)
    if not found:
        raise CommandError(f"module {place} defines no workflow; {HOW}")
    return found


def load_one(text: str) -> Target:
    """Return the workflow that a text names, or the only one of a module.

    Raises:
        CommandError: As `load()` does, and if the module defines several.
    """
    found = load(text)
    if len(found) > 1:
        names = ", ".join(target.name for target in found)
        raise CommandError(f"module {text} defines {len(found)} workflows; choose one: {names}")
    return found[0]


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place


# --- Modules ----------------------------------------------------------------------------------------


def _import_module(name: str) -> ModuleType:
    _put_on_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _raised_in(name, error) from error  # the module itself lacks another one
        raise CommandError(f"there is no module {name}{_hint(name, error.name)}") from error
    except (Exception, SystemExit) as error:
        raise _raised_in(name, error) from error


def _hint(name: str, missing: str) -> str:
    """Suggest a module with a name like the missing one, next to where it was looked for."""
    above, _, last = missing.rpartition(".")
    folder = Path.cwd() / above.replace(".", os.sep)
    known = (
        path.stem
        for path in sorted(folder.glob("*"))
        if (path.suffix == ".py" and path.stem.isidentifier()) or path.is_dir()
    )
    prefix = f"{above}." if above else ""
    here = "" if "." in name else f" in {Path.cwd()} or among the installed ones"
    hint = closest(last, known)
    return f"{here}; {hint.replace(chr(39), chr(39) + prefix, 1) if hint else HOW}"


def _import_file(place: str) -> ModuleType:
    file = Path(place).resolve()
    if not file.is_file():
        hint = ""
        if file.parent.is_dir():
            hint = closest(file.name, (path.name for path in file.parent.glob("*.py")))
        raise CommandError(f"there is no file {place}; {hint or HOW}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise CommandError(f"{place} is no Python file; {HOW}")
    _put_on_path(file.parent)  # as `python file.py` does
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[file.stem]
        raise _raised_in(place, error) from error
    return module


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _raised_in(place: str, error: BaseException) -> CommandError:
    """Say what a module raised when it was imported, and in which line of it."""
    if isinstance(error, SyntaxError):
        where = f"{error.filename}, line {error.lineno}: "
    else:
        ours = {__file__, importlib.__file__, "<frozen importlib._bootstrap>"}
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename not in ours and not frame.filename.startswith("<frozen ")
        ]
        if isinstance(error, WorkflowValidationError):  # the class statement, not our code for it
            package = str(Path(__file__).parent.parent)
            frames = [frame for frame in frames if not frame.filename.startswith(package)]
        where = f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""
    return CommandError(f"{place} cannot be imported\n  {where}{last_line_of(error)}", FAILED)


# --- What is in them --------------------------------------------------------------------------------


def _named(module: ModuleType, place: str, attribute: str) -> Target:
    thing: Any = module
    for part in attribute.split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            known = [*_workflows_in(module)]
            raise CommandError(
                f"module {place} has no {attribute}; {nearest(part, known)}"
            ) from None
    is_class = isinstance(thing, type) and issubclass(thing, Workflow) and thing is not Workflow
    if is_class or isinstance(thing, Workflow):
        return Target(f"{place}:{attribute}", thing)
    known = [*_workflows_in(module)]
    raise CommandError(
        f"{place}:{attribute} is no workflow, but a {type(thing).__name__}; {nearest(attribute, known)}"
    )


def _defined_in(module: ModuleType, place: str) -> list[Target]:
    """Return the workflows that a module offers: its instances, and the classes of which there is none."""
    found = _workflows_in(module)
    made = {type(value) for value in found.values()}
    return [Target(f"{place}:{name}", value) for name, value in found.items() if value not in made]


def _workflows_in(module: ModuleType) -> dict[str, Any]:
    """Return the public workflows in a module: instances, and classes with steps that it defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        if isinstance(value, Workflow)
        or (
            isinstance(value, type)
            and issubclass(value, Workflow)
            and value.__module__ == module.__name__
            and value._specs  # else a base of others
        )
    }
