"""What `doctor` finds: one line each, of what was checked, what was found, and what mends it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `mend` is a command, a page, or what to change; empty where all is well."""

    level: Level
    what: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<4}  {self.what}: {self.text}"
        return f"{line} → {self.mend}" if self.mend else line


def ok(what: str, text: str) -> Finding:
    return Finding(Level.OK, what, text)


def warn(what: str, text: str, mend: str) -> Finding:
    return Finding(Level.WARN, what, text, mend)


def fail(what: str, text: str, mend: str) -> Finding:
    return Finding(Level.FAIL, what, text, mend)


@dataclass(frozen=True, slots=True)
class Check:
    """`mend` goes with whatever error ends the check."""

    what: str
    run: Callable[[], Awaitable[Sequence[Finding]]]
    mend: str
