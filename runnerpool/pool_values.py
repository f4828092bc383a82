"""The kinds of values in the pool file: durations, names, labels, paths. `config.py` composes them into its schema."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationInfo, model_validator

from runnerpool.labels import POOL_NAME

LONGEST_DURATION = timedelta(days=30)


def like(pattern: str, what: str) -> AfterValidator:
    def check(text: str) -> str:
        if re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE) is None:
            raise ValueError(f"{text!r} is not {what}")
        return text

    return AfterValidator(check)


def _duration(value: object) -> object:
    """Text such as 90s, 10m or 1h30m as a timedelta."""
    if isinstance(value, timedelta):
        return value
    parts = (
        re.fullmatch(r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?", value)
        if isinstance(value, str)
        else None
    )
    if not value or parts is None:
        raise ValueError(f"{value!r} is not a duration: write a number with its unit, as in 90s, 10m, 6h or 1h30m")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _bounded(value: timedelta) -> timedelta:
    if not timedelta(0) < value <= LONGEST_DURATION:
        raise ValueError("a duration must be longer than 0s and at most 30d")
    return value


def _zone(value: object) -> object:
    return str(value) if type(value) is int else value


def unique(values: tuple[str, ...]) -> tuple[str, ...]:
    seen: set[str] = set()
    for value in values:
        if value.lower() in seen:
            raise ValueError(f"{value!r} stands here twice (case does not count)")
        seen.add(value.lower())
    return values


def _file(value: str, info: ValidationInfo) -> str:
    """A path, absolute once the pool file's folder is known (`context={"folder": Path}`), and then of a file that exists."""
    folder = (info.context or {}).get("folder")
    if not value or folder is None:
        return value
    path: Path = folder / value
    try:
        exists = path.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL character in it
        exists = False
    if not exists:
        raise ValueError(f"there is no file {value!r}; a path is relative to the folder of the pool file")
    return str(path.absolute())


Duration = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_bounded)]
PoolName = Annotated[str, like(rf"(?-i:{POOL_NAME.pattern})", "a name: lower-case letters, digits and inner hyphens only")]
Count = Annotated[StrictInt, Field(ge=0)]
FilePath = Annotated[str, AfterValidator(_file)]
ResourceName = Annotated[str, like(r"[a-z0-9](?:[\w.-]{0,78}\w)?", "a name of an Azure resource")]
Label = Annotated[
    str, like(r"[^,\s]([^,\r\n\t]{0,254}[^,\s])?", "a label: 1 to 256 characters, no comma, no white space at its ends")
]
VmSize = Annotated[str, like(r"(?:Standard|Basic)_\w[\w-]*", "a VM size, as in Standard_D4ads_v5")]
Zone = Annotated[str, BeforeValidator(_zone), like(r"[1-9]", 'an availability zone, as in "1"')]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty_is_all_defaults(cls, value: object) -> object:
        return {} if value is None else value
