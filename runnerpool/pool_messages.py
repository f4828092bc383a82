"""What pydantic found wrong with the pool file, said so that the reader knows what to write instead."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable
from difflib import get_close_matches

from pydantic_core import ErrorDetails

from runnerpool.config import Config
from runnerpool.pool_values import Section

Loc = tuple[str | int, ...]


def explain(error: ErrorDetails) -> str:
    """One sentence without the path; "" for an error that only follows from another one."""
    kind, value, limits = error["type"], error["input"], error.get("ctx", {})
    if kind == "default_factory_not_called" or (kind == "too_short" and value):  # its entries are wrong, not their number
        return ""
    if kind == "missing":
        return _missing(error["loc"])
    if kind == "extra_forbidden":
        return _unknown(error["loc"])
    if value is None and kind != "clash":
        return "has no value: write one, or remove the line"
    match kind:
        case "value_error":
            return str(limits["error"])
        case "literal_error":
            choices = re.findall(r"'([^']*)'", limits["expected"])
            return f"{_short(value)} is none of {', '.join(choices)}{_nearest(str(value), choices)}"
        case "string_type":
            return f'must be text: write "{value}" in quotes' if _is_scalar(value) else "must be text, not a list or a mapping"
        case "int_type" | "int_from_float":
            return f"must be a whole number, not {_short(value)}"
        case "bool_type":
            return f"must be true or false, not {_short(value)}"
        case "tuple_type":
            return (
                f"must be a list, as in [{value}]"
                if _is_scalar(value)
                else "must be a list: one line each, beginning with a hyphen"
            )
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"must be a mapping{_keys(error['loc'])}, not {'a list' if isinstance(value, list) else _short(value)}"
        case "too_short":
            return "needs at least one entry"
        case "string_too_short":
            return "must not be empty"
        case "greater_than_equal":
            return f"must be at least {limits['ge']}, not {_short(value)}"
        case "less_than_equal":
            return f"must be at most {limits['le']}, not {_short(value)}"
    return error["msg"]


def _missing(loc: Loc) -> str:
    section = section_at(loc[:-1])
    description = section.model_fields[str(loc[-1])].description if section else None
    return f"is required: {description}" if description else "is required"


def _unknown(loc: Loc) -> str:
    section, key = section_at(loc[:-1]), str(loc[-1])
    if section is None:
        return "unknown key"
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).replace("-", "_").lower()
    if near := get_close_matches(plain, section.model_fields, 1):
        return f"unknown key: did you mean {near[0]}?"
    for name in section.model_fields:
        inner = section_at((*loc[:-1], name))
        if inner and plain in inner.model_fields:
            return f"unknown key: {plain} belongs under {name}"
    return f"unknown key: the keys here are {', '.join(section.model_fields)}"


def section_at(loc: Iterable[str | int]) -> type[Section] | None:
    """The section of the schema at this path, None where a plain value stands or nothing is known."""
    section: type[Section] | None = Config
    for part in loc:
        if isinstance(part, str):
            known = section.model_fields.get(part) if section else None
            section = _section_in(known.annotation) if known else None
    return section


def _section_in(annotation: object) -> type[Section] | None:
    """The section that an annotation is, or is a tuple of."""
    candidates = (annotation, *typing.get_args(annotation))
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Section)), None)


def _keys(loc: Loc) -> str:
    section = section_at(loc)
    return f" of {', '.join(section.model_fields)}" if section else " (key: value)"


def _nearest(value: str, choices: Iterable[str]) -> str:
    near = get_close_matches(value.lower(), choices, 1)
    return f": did you mean {near[0]}?" if near else ""


def _is_scalar(value: object) -> bool:
    return not isinstance(value, (list, dict))


def _short(value: object) -> str:
    return f"{value!r:.80}" if _is_scalar(value) else "a list" if isinstance(value, list) else "a mapping"
