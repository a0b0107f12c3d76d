"""What an event class says in the words of other libraries: translated, or refused when it is defined (E6)."""

# A `Field(...)` of pydantic that attrs can mean becomes the attrs field that means the same. Everything else
# that pydantic or `dataclasses` would have read from the body of the class is refused, since here it would do
# nothing: a constraint, a validator, a setting. What is theirs is recognised by the names of its type and module;
# nothing is imported.

from __future__ import annotations

import dataclasses
import inspect
import re
import reprlib
import sys
import typing
from collections.abc import Iterator, Mapping
from types import FunctionType, GetSetDescriptorType, NoneType
from typing import Any, NoReturn

import attrs

from ._annotations import Unresolved, is_record, resolve_field, strip
from ._messages import shortened
from ._pydantic import is_model, value_type
from .errors import EventValidationError

DESCRIPTIVE = ("title", "description", "examples", "deprecated", "json_schema_extra")
"""Arguments of `Field()` that say nothing about the values."""

_MEANT_ANYWAY = {"frozen": True, "kw_only": True, "validate_default": True}
"""Arguments of `Field()` that say what holds for every event."""

_WITHOUT_MEANING = (
    "discriminator",
    "exclude",
    "exclude_if",
    "field_title_generator",
    "init",
    "init_var",
    *_MEANT_ANYWAY,
)
"""Arguments of `Field()` that attrs cannot mean."""

_HARMLESS_MARKS = {"InstanceOf", "SerializeAsAny", "DocInfo", "Unit"}
"""What may stand in `Annotated`: it says what holds for every event, or nothing about the values."""

_VALIDATORS = {
    "gt": "gt({!r})",
    "ge": "ge({!r})",
    "lt": "lt({!r})",
    "le": "le({!r})",
    "min_length": "min_len({!r})",
    "max_length": "max_len({!r})",
    "pattern": "matches_re({!r}, func=re.search)",
}
"""Constraint -> the validator in `attrs.validators`."""

_CONSTRAINTS = _VALIDATORS.keys() | {
    "allow_inf_nan",
    "ascii_only",
    "coerce_numbers_to_str",
    "decimal_places",
    "fail_fast",
    "max_digits",
    "multiple_of",
    "strict",
    "strip_whitespace",
    "to_lower",
    "to_upper",
    "union_mode",
}
"""The constraints that are arguments of `Field()`, `StringConstraints()` and the like."""

_VALIDATOR = (
    "'attrs.field(validator=check)' checks a value, where check(event, field, value) raises, and "
    "'attrs.field(converter=...)' converts it"
)
_INIT_VAR = "declare a field, or pass the value to a classmethod that makes the event"
_TOGETHER = "check the fields together in __attrs_post_init__(self)"
_COMPUTED = "write a property, or a functools.cached_property, in the attrs class"
_WRITTEN = "for another text form, give the class of the value a hook in Workflow(converter=...)"
_SETTINGS = (
    "leave it out: an event is frozen, takes values of any type, converts none, and takes unknown keywords "
    "only if it declares no field"
)

_MARKS = {
    "Discriminator": "leave it out: in a union, a field annotated with Literal tells the members apart",
    "Tag": "leave it out: in a union, a field annotated with Literal tells the members apart",
    "SkipValidation": "leave it out, or write Any for a field that takes any value",
    "WithJsonSchema": "leave it out",
    "SkipJsonSchema": "leave it out",
    "PlainSerializer": _WRITTEN,
    "WrapSerializer": _WRITTEN,
}
"""What may stand in `Annotated` and checks nothing -> what to do instead."""

_DECORATORS = {
    "FieldValidatorDecoratorInfo": ("@field_validator", _VALIDATOR),
    "ValidatorDecoratorInfo": ("@validator", _VALIDATOR),
    "ModelValidatorDecoratorInfo": ("@model_validator", _TOGETHER),
    "RootValidatorDecoratorInfo": ("@root_validator", _TOGETHER),
    "ComputedFieldInfo": ("@computed_field", _COMPUTED),
    "FieldSerializerDecoratorInfo": ("@field_serializer", _WRITTEN),
    "ModelSerializerDecoratorInfo": ("@model_serializer", _WRITTEN),
}
"""What a decorator of pydantic leaves in the class -> its name, and what to do instead."""

_OF_DATACLASSES = re.compile("InitVar|KW_ONLY")

_METHODS = {
    "model_post_init": "name it __attrs_post_init__(self)",
    "__post_init__": "name it __attrs_post_init__(self)",
    "__pydantic_init_subclass__": "name it __init_subclass__(cls)",
    "_get_result": (
        "'await handler' returns the event itself, to read its fields; for another result return "
        "StopEvent(result=...)"
    ),
}
"""Method that other libraries call -> what to do instead."""

_TELLING_NAMES = _METHODS.keys() | {"model_config", "Config"}

_PLAIN_TYPES = {FunctionType, GetSetDescriptorType, NoneType, bool, dict, float, int, str, tuple}
"""The types of what most members are, which need no closer look."""

_CONFIG_NAMES = frozenset(
    """
    alias_generator allow_inf_nan arbitrary_types_allowed cache_strings coerce_numbers_to_str defer_build
    extra field_title_generator from_attributes frozen hide_input_in_errors ignored_types json_encoders
    json_schema_extra json_schema_mode_override json_schema_serialization_defaults_required loc_by_alias
    model_title_generator plugin_settings populate_by_name protected_namespaces regex_engine
    revalidate_instances schema_generator ser_json_bytes ser_json_inf_nan ser_json_temporal
    ser_json_timedelta serialize_by_alias str_max_length str_min_length str_strip_whitespace str_to_lower
    str_to_upper strict title use_attribute_docstrings use_enum_values val_json_bytes val_temporal_unit
    validate_assignment validate_by_alias validate_by_name validate_default validate_return
    validation_error_cause

    allow_mutation allow_population_by_field_name anystr_lower anystr_strip_whitespace anystr_upper
    copy_on_model_validation error_msg_templates fields getter_dict json_dumps json_loads keep_untouched
    max_anystr_length min_anystr_length orm_mode schema_extra smart_union underscore_attrs_are_private
    validate_all
    """.split()  # noqa: SIM905 - a list would take a line for each
)
"""The settings of a model, of version 2 and of version 1."""


def translated(cls: type, fields: list[attrs.Attribute[Any]]) -> Iterator[attrs.Attribute[Any]]:
    """Yield the fields of an event class that is being defined, as attrs means them.

    Raises:
        EventValidationError: If the class says what attrs cannot mean.
    """
    own = {field.name for field in fields} & inspect.get_annotations(cls).keys()
    _check_body(cls, own)
    # An annotation can hold objects of these only if they have been imported.
    may_be_marked = "pydantic" in sys.modules or "annotated_types" in sys.modules
    for field in fields:
        if field.name in own and (may_be_marked or _OF_DATACLASSES.search(str(field.type))):
            annotation = resolve_field(cls, field.name, field.type)
            check_marks(cls, field.name, annotation, field.default)
            field = _translated(cls, field, annotation)
        yield field


def check_keywords(cls: type, keywords: Mapping[str, Any]) -> None:
    """Refuse settings of pydantic among the keywords of a class: `class Asked(Event, extra="allow")`."""
    bases = [base for base in cls.__mro__[:-1] if not attrs.has(base)]
    if any("__init_subclass__" in vars(base) for base in bases):
        return  # they may be meant for that base
    for name in sorted(keywords.keys() & _CONFIG_NAMES):
        _refuse(cls, name, "the setting of a model", _SETTINGS)


def check_marks(cls: type, name: str, annotation: Any, default: Any = attrs.NOTHING) -> None:
    """Refuse what pydantic reads in an annotation, at any depth: `list[Annotated[int, Field(gt=0)]]`."""
    if isinstance(annotation, Unresolved):
        if re.search(
            r"\bInitVar\b", str(annotation.annotation)
        ):  # no type for `typing`, where it stands as text
            _refuse(cls, name, "InitVar", _INIT_VAR, "dataclasses")
        return
    constraints = _constraints_of(default) if _is_field_info(default) else {}
    for one, marks in _parts_of(annotation):
        if type(one) is dataclasses.InitVar:
            _refuse(cls, name, "InitVar", _INIT_VAR, "dataclasses")
        if one is dataclasses.KW_ONLY:
            _refuse(cls, name, "KW_ONLY", "leave it out: events take keywords only", "dataclasses")
        if value_type(one) is not None:
            plain = _shown(value_type(one))
            _refuse(cls, name, one.__name__, f"write {plain} instead; {_VALIDATOR}")
        for mark in marks:
            if _is_field_info(mark):
                _check_is_plain(cls, name, mark)
            constraints |= _constraints_of(mark)
    if not constraints:
        return
    for key in constraints:
        if key in _MARKS:
            _refuse(cls, name, key, _MARKS[key])
    told = {key: value for key, value in constraints.items() if value is not None}
    shown = ", ".join(
        f"{key}={reprlib.repr(told[key])}" if key in told else key for key in constraints
    )
    way = _with_validators(name, annotation, default, told) if told == constraints else _VALIDATOR
    _refuse(cls, name, shortened(shown, 200), way)


def _refuse(cls: type, name: str, what: str, way: str, whose: str = "pydantic") -> NoReturn:
    if whose == "dataclasses":
        problem = f"{what} means nothing here, since an event is an attrs class and no dataclass"
    else:
        problem = (
            f"{what} means nothing here, since an event is an attrs class and no pydantic model"
        )
    raise EventValidationError(cls.__name__, name, f"{problem}; {way}")


# --- The body of the class ----------------------------------------------------------------------------


def _check_body(cls: type, own: set[str]) -> None:
    """Refuse what stands in a class, or in a base that is no event, and is neither field nor method of ours."""
    if is_model(cls):
        model = next(base for base in cls.__bases__ if is_model(base))
        way = "leave it out, or let the event have a field for a model"
        _refuse(cls, "", f"the base {model.__name__}", way)
    for base in cls.__mro__[:-1]:  # `object` is the last one
        if base is cls or not attrs.has(base):  # other events have been checked
            for name, value in vars(base).items():
                is_field = name in own and base is cls
                if name in _TELLING_NAMES:
                    _check_name(cls, name, value, is_field)
                if type(value) not in _PLAIN_TYPES:
                    _check_value(cls, name, value, is_field)


def _check_name(cls: type, name: str, value: Any, is_field: bool) -> None:
    if name in _METHODS and not is_field:
        raise EventValidationError(cls.__name__, name, f"nothing calls it: {_METHODS[name]}")
    annotation = str(inspect.get_annotations(cls).get(name, ""))
    if name == "model_config" and (not is_field or "ConfigDict" in annotation):
        _refuse(cls, name, "model_config", _SETTINGS)
    if name == "Config" and not is_field and _is_config(value):
        _refuse(cls, name, "class Config", _SETTINGS)


def _check_value(cls: type, name: str, value: Any, is_field: bool) -> None:
    attributes = getattr(value, "__dict__", ())
    if type(value) is dataclasses.Field:
        way = f"write '{name}: ... = {_attrs_field(value)}'"
        _refuse(cls, name, "dataclasses.field(...)", way, "dataclasses")
    if _is_field_info(value):
        if not is_field:
            _refuse(cls, name, "Field(...) without an annotation", f"write '{name}: T = ...'")
        _check_is_plain(cls, name, value)
    elif _is_from(value, "pydantic"):
        left = type(getattr(value, "decorator_info", None)).__name__
        if type(value).__name__ == "ModelPrivateAttr":
            way = f"{_attrs_field(value, init=False, repr=False, eq=False)} makes a field that is no keyword"
            _refuse(cls, name, "PrivateAttr(...)", way)
        if left in _DECORATORS:
            _refuse(cls, name, *_DECORATORS[left])
    # A validator of version 1 is an attribute of a class method.
    elif "__validator_config__" in attributes:
        _refuse(cls, name, *_DECORATORS["ValidatorDecoratorInfo"])
    elif "__root_validator_config__" in attributes:
        _refuse(cls, name, *_DECORATORS["RootValidatorDecoratorInfo"])


def _check_is_plain(cls: type, name: str, info: Any) -> None:
    """Refuse a `Field(...)` that says more than that of pydantic: of SQLModel, FastAPI, version 1."""
    module = type(info).__module__
    if module != "pydantic.fields" or not hasattr(info, "is_required"):
        way = f"write '{name}: ... = {_attrs_field(info)}'"
        _refuse(cls, name, f"Field(...) of {module.partition('.fields')[0]}", way)


def _is_config(value: Any) -> bool:
    """Return whether a class in the body has nothing but settings of a model."""
    if not isinstance(value, type) or is_record(value):
        return False
    names = {name for name in vars(value) if not name.startswith("__")}
    return bool(names) and names <= _CONFIG_NAMES


def _is_from(value: Any, *roots: str) -> bool:
    cls = value if isinstance(value, type) else type(value)
    return cls.__module__.partition(".")[0] in roots


def _is_field_info(value: Any) -> bool:
    """Return whether a value is a `Field(...)` of pydantic or of a library that derives from it."""
    return any(
        base.__name__ == "FieldInfo" and base.__module__.partition(".")[0] == "pydantic"
        for base in type(value).__mro__
    )


# --- Fields and annotations ----------------------------------------------------------------------


def _translated(cls: type, field: attrs.Attribute[Any], annotation: Any) -> attrs.Attribute[Any]:
    """Return the attrs field that means what `Field(...)`, as default or in the annotation, says."""
    default = field.default
    infos: list[Any] = [default] if _is_field_info(default) else []
    infos += [mark for mark in _outer_marks(annotation) if _is_field_info(mark)]
    if not infos:
        return field
    for info in infos:
        _check_info(cls, field.name, info)
    changes: dict[str, Any] = {}
    if default is attrs.NOTHING or default is infos[0]:
        changes["default"] = next(
            (_default_of(info) for info in infos if not info.is_required()), attrs.NOTHING
        )
    alias = next((info.alias for info in infos if info.alias is not None), None)
    if alias is not None:
        changes["alias"] = alias
    if not all(info.repr for info in infos):
        changes["repr"] = False
    described = {
        name: value
        for info in reversed(infos)  # the first one counts
        for name in DESCRIPTIVE
        if (value := getattr(info, name)) is not None
    }
    return field.evolve(**changes, metadata={**described, **field.metadata})


def _default_of(info: Any) -> Any:
    return info.default if info.default_factory is None else attrs.Factory(info.default_factory)


def _check_info(cls: type, name: str, info: Any) -> None:
    """Refuse arguments of `Field(...)` that attrs cannot mean."""
    for argument in _WITHOUT_MEANING:
        given = getattr(info, argument, None)
        if given is not None and given is not _MEANT_ANYWAY.get(argument):
            _refuse(cls, name, f"Field({argument}={reprlib.repr(given)})", "leave it out")
    if info.default_factory is not None and info.default_factory_takes_validated_data:
        way = "make the value in a functools.cached_property, or in a classmethod that makes the event"
        _refuse(cls, name, "a default_factory that takes the other values", way)
    for argument in ("alias", "validation_alias", "serialization_alias"):
        given = getattr(info, argument)
        if given is not None and (given != info.alias or not given.isidentifier()):
            way = "attrs.field(alias=...) takes one Python name, as keyword and in JSON"
            _refuse(cls, name, f"Field({argument}={reprlib.repr(given)})", way)


def _constraints_of(mark: Any) -> dict[str, Any]:
    """Return what a mark in `Annotated`, or a `Field(...)`, has pydantic check or change.

    Returns:
        The constraints by name, or the name of the mark with `None`.
    """
    if _is_field_info(mark):
        inside = [_constraints_of(one) for one in getattr(mark, "metadata", ())]
        return {name: value for found in inside for name, value in found.items()}
    cls = mark if isinstance(mark, type) else type(mark)
    if not _is_from(mark, "pydantic", "annotated_types"):
        # Anything may tell pydantic how to check values, which is all that this method is for.
        return {cls.__name__: None} if hasattr(cls, "__get_pydantic_core_schema__") else {}
    if cls.__name__ in _HARMLESS_MARKS:
        return {}
    names = (
        cls.__dataclass_fields__ if dataclasses.is_dataclass(cls) else getattr(mark, "__dict__", {})
    )
    values = {name: getattr(mark, name, None) for name in names}
    given = {name: value for name, value in values.items() if value is not None}
    if cls.__name__ == "Strict" and isinstance(mark, type):
        return {}
    if not given or not given.keys() <= _CONSTRAINTS:
        return {cls.__name__: None}
    # Events are strict, and every length is 0 or more.
    nothing = (("strict", True), ("min_length", 0))
    return {name: value for name, value in given.items() if (name, value) not in nothing}


def _parts_of(annotation: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield everything that an annotation consists of, with the marks that `Annotated` gives it."""
    seen, ahead = set(), [annotation]
    while ahead:
        one, marks = ahead.pop(), ()
        if id(one) in seen:  # an alias may contain itself
            continue
        seen.add(id(one))
        if typing.get_origin(one) is typing.Annotated:
            one, marks = one.__origin__, one.__metadata__
            ahead.append(one)
        elif isinstance(one, typing.NewType):
            ahead.append(one.__supertype__)
        elif hasattr(one, "__value__"):  # `type X = ...`, Python 3.12
            ahead.append(one.__value__)
        else:
            ahead += one if isinstance(one, list) else typing.get_args(one)
        yield one, marks


def _outer_marks(annotation: Any) -> tuple[Any, ...]:
    while hasattr(annotation, "__value__"):
        annotation = annotation.__value__
    is_marked = typing.get_origin(annotation) is typing.Annotated
    return annotation.__metadata__ if is_marked else ()


# --- The attrs way ------------------------------------------------------------------------------------


def _with_validators(
    name: str, annotation: Any, default: Any, constraints: Mapping[str, Any]
) -> str:
    """Say how a field has these constraints in attrs."""
    plain = strip(annotation)
    is_nested = any(marks for _, marks in _parts_of(plain))
    if is_nested or not constraints.keys() <= _VALIDATORS.keys():
        return _VALIDATOR
    validators = [
        f"attrs.validators.{_VALIDATORS[key].format(value)}" for key, value in constraints.items()
    ]
    validator = validators[0] if len(validators) == 1 else f"[{', '.join(validators)}]"
    return f"write '{name}: {_shown(plain)} = {_attrs_field(default, validator=validator)}'"


def _attrs_field(default: Any, **arguments: Any) -> str:
    """Return the call that declares a field, as an object of another library does, or with a default."""
    factory = getattr(default, "default_factory", getattr(default, "factory", None))
    value = getattr(default, "default", default)
    given: dict[str, Any] = {}
    if callable(factory):
        given["factory"] = getattr(factory, "__name__", "...")
    elif not _is_missing(value):
        given["default"] = reprlib.repr(value)
    given |= arguments
    return f"attrs.field({', '.join(f'{key}={value}' for key, value in given.items())})"


def _is_missing(value: Any) -> bool:
    missing = (attrs.NOTHING, dataclasses.MISSING, ...)
    return any(value is one for one in missing) or type(value).__name__.endswith("UndefinedType")


def _shown(annotation: Any) -> str:
    return inspect.formatannotation(annotation)
