"""Reads the pool file: YAML into `Config`, or into every problem at once, each with its line and what would be right.

The file is read as a tree of nodes first, since only nodes know their lines; the values that pydantic then judges are made
from that tree, and its errors, which carry a path, find their line again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from runnerpool.config import AzureConfig, Config, PoolConfig, pool_clashes
from runnerpool.pool_messages import explain
from runnerpool.pool_values import Section

S = TypeVar("S", bound=Section)

Loc = tuple[str | int, ...]
"""A path in the file: ("pools", 0, "vm")."""

LARGEST_FILE = 1_000_000  # bytes
MOST_VALUES = 50_000
"""Aliases of aliases can make a short file mean billions of values."""

_MAPPING = "tag:yaml.org,2002:map"
_LIST = "tag:yaml.org,2002:seq"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """`line` counts from 1; 0 stands for the file as a whole."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


class ConfigError(Exception):
    """Everything that is wrong with the pool file, in the order of its lines."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class PoolFile:
    """A file that was read, and where in it things stand."""

    file: str
    config: Config
    lines: Mapping[Loc, int]

    def line(self, loc: Loc) -> int:
        return _line(self.lines, loc)


def load_config(path: Path) -> Config:
    """Raises ConfigError, and nothing else, whatever the file holds."""
    return read_pool_file(path).config


def read_pool_file(path: Path) -> PoolFile:
    """As `load_config`, with the lines. Paths inside the file are relative to its folder."""
    tree = _Tree(str(path))
    raw = tree.read(path)
    try:
        config = Config.model_validate(raw, context={"folder": path.parent})
    except ValidationError as error:
        for found in (*error.errors(include_url=False), *_clashes_of_sound_pools(raw)):
            tree.add(found)
        raise ConfigError(tree.sorted_problems()) from None
    if tree.problems:
        raise ConfigError(tree.sorted_problems())
    return PoolFile(str(path), config, tree.lines)


def _clashes_of_sound_pools(raw: Any) -> list[ErrorDetails]:
    """`Config` compares its pools only when each is right by itself; this compares those that are, beside one that is not."""
    pools = raw.get("pools") if isinstance(raw, dict) else None
    sound = [
        (index, pool) for index, value in enumerate(pools if isinstance(pools, list) else []) if (pool := _sound(PoolConfig, value))
    ]
    azure = _sound(AzureConfig, raw.get("azure")) if sound else None
    clashes = pool_clashes(sound, azure.name_prefix if azure else "")
    if not clashes:
        return []
    errors = ValidationError.from_exception_data("pools", clashes).errors(include_url=False)
    return [{**error, "loc": ("pools", *error["loc"])} for error in errors]


def _sound(section: type[S], value: Any) -> S | None:
    try:
        return section.model_validate(value)
    except ValidationError:
        return None  # already reported, with its line, by the validation of the whole


def _line(lines: Mapping[Loc, int], loc: Loc) -> int:
    """The line of the innermost part of the path that stands in the file."""
    while loc and loc not in lines:
        loc = loc[:-1]
    return lines.get(loc, 1)


def spell(loc: Loc) -> str:
    """("pools", 0, "vm") as pools[0].vm."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


# ---------------------------------------------------------------------------------------------- YAML


@dataclass(slots=True)
class _Tree:
    """One reading: the values, the line of each, and what was wrong on the way."""

    file: str
    lines: dict[Loc, int] = field(default_factory=dict)
    problems: dict[tuple[Loc, str], Problem] = field(default_factory=dict)
    broken: set[Loc] = field(default_factory=set)
    values: int = 0

    def sorted_problems(self) -> tuple[Problem, ...]:
        return tuple(sorted(self.problems.values()))

    def add(self, error: ErrorDetails) -> None:
        """An error of pydantic's, unless it only follows from one that is known."""
        loc, message = error["loc"], explain(error)
        if message and not any(loc[:depth] in self.broken for depth in range(len(loc) + 1)):
            self.note(loc, message)

    def note(self, loc: Loc, message: str, line: int | None = None) -> None:
        text = f"{spell(loc)}: {message}" if loc else message
        self.problems[loc, message] = Problem(self.file, _line(self.lines, loc) if line is None else line, text)

    def fail(self, message: str, line: int) -> ConfigError:
        """Nothing more can be said of a file that is no YAML."""
        return ConfigError((Problem(self.file, line, message),))

    def read(self, path: Path) -> Any:
        text = self._text(path)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise self.fail("the file is empty; it needs the sections azure, github and pools", 1)
            return self._value(loader, node, (), ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self.fail(_yaml_trouble(error), mark.line + 1 if mark else 1) from None
        except RecursionError:
            raise self.fail("the values are nested too deeply", 1) from None
        finally:
            loader.dispose()

    def _text(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                content = file.read(LARGEST_FILE + 1)
        except FileNotFoundError:
            raise self.fail("there is no such file; POOL_CONFIG names the pool file", 0) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            raise self.fail(f"cannot be read: {getattr(error, 'strerror', None) or error}", 0) from None
        if len(content) > LARGEST_FILE:
            raise self.fail(f"is larger than {LARGEST_FILE} bytes: this is no pool file", 0)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.fail("this is not UTF-8 text", content.count(b"\n", 0, error.start) + 1) from None
        if unprintable := yaml.SafeLoader.NON_PRINTABLE.search(text):
            line = text.count("\n", 0, unprintable.start()) + 1
            raise self.fail(f"the character U+{ord(unprintable.group()):04X} is not allowed in YAML", line)
        return text

    def _value(self, loader: yaml.SafeLoader, node: yaml.Node, loc: Loc, above: tuple[yaml.Node, ...]) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            raise self.fail("aliases make this file mean too many values", node.start_mark.line + 1)
        if node in above:
            return self._break(loc, node, "an alias refers to what it is part of")
        if isinstance(node, yaml.MappingNode) and node.tag == _MAPPING:
            entries = self._entries(loader, node, loc)
            return {key: self._value(loader, value, (*loc, key), (*above, node)) for key, value in entries}
        if isinstance(node, yaml.SequenceNode) and node.tag == _LIST:
            for index, item in enumerate(node.value):
                self.lines[(*loc, index)] = item.start_mark.line + 1
            return [self._value(loader, item, (*loc, index), (*above, node)) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode):
            return self._break(loc, node, f"the tag {node.tag!r} means nothing here: remove it")
        try:
            return loader.construct_object(node)
        except Exception as error:  # what a scalar's constructor raises depends on the tag: 2024-13-45 is a ValueError
            trouble = error.problem if isinstance(error, yaml.MarkedYAMLError) else "it does not fit its YAML type"
            return self._break(loc, node, f"{node.value[:80]!r} cannot be read: {trouble}; write text in quotes")

    def _entries(self, loader: yaml.SafeLoader, node: yaml.MappingNode, loc: Loc) -> Iterator[tuple[str, yaml.Node]]:
        """The entries with `<<` resolved; a later one replaces an earlier one, as YAML has it for merged keys."""
        own: dict[str, int] = {}
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.note(loc, "a key must be a plain word", line)
            elif name in own:
                self.note((*loc, name), f"stands here twice; the first is in line {own[name]}", line)
            own.setdefault(name, line)
        loader.flatten_mapping(node)
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                self.lines[(*loc, key.value)] = key.start_mark.line + 1
                yield key.value, value

    def _break(self, loc: Loc, node: yaml.Node, message: str) -> None:
        self.note(loc, message, node.start_mark.line + 1)
        self.broken.add(loc)


def _yaml_trouble(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it cannot be parsed"
    if r"\t" in problem:
        return "a tab stands where YAML wants spaces: indent with spaces"
    return f"this is not valid YAML: {', '.join(filter(None, (error.context, problem)))}"
