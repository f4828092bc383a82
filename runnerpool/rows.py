"""Rows: how the ledger's facts, jobs, runners and heads lie in Table Storage, and how a partition is read back.

One column a field, so that a person who browses the table can read it. `None` is an absent column, tuples and mappings are
JSON text, and a datetime is ISO 8601 text in UTC with six decimals: exact to the microsecond, in the order of time when
sorted as text, and some fifty times faster to decode than the SDK's reading of a native `Edm.DateTime`. A fact is never
edited, only folded into a job: it lies in one column, `body`.

A deployment replaces one instance after another, so versions meet at the same rows: an unknown column is ignored, a
missing one takes the field's default. The webhook imports this module; it must not import a service's SDK.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Generic, TypeVar

from runnerpool.model import Fact, Head, Job, Runner, Snapshot
from runnerpool.ports import Entity, Value

HEAD_KEY = "pool"
FACT_PREFIX = "fact:"
JOB_PREFIX = "job:"
RUNNER_PREFIX = "runner:"

LONGEST_TEXT = 4_000
"""Characters of one text that are kept. No name is as long; an endless error text must not fail the whole transaction
(Table Storage takes 32 Ki characters a column and 1 MiB a row)."""


def fact_key(job_id: str, unique: str) -> str:
    return f"{FACT_PREFIX}{job_id}:{unique}"


def job_key(job_id: str) -> str:
    return f"{JOB_PREFIX}{job_id}"


def runner_key(name: str) -> str:
    return f"{RUNNER_PREFIX}{name}"


# ---------------------------------------------------------------------------------------------- one value


@dataclass(frozen=True, slots=True)
class _Codec:
    """How values of one type are written and read. `decode` raises ValueError for what cannot be one."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


def _clean(text: str) -> str:
    """Text that every service takes: GitHub's JSON may spell half a surrogate pair, which is not valid in UTF-8."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text[:LONGEST_TEXT]


def _only(kind: type[Any], what: str) -> Callable[[Any], Any]:
    """A decoder that takes values of exactly this type: neither does a flag pass for a number, nor a text for a list."""

    def decode(value: Any) -> Any:
        if type(value) is kind:
            return value
        raise ValueError(f"{value!r:.80} is not {what}")

    return decode


_text = _only(str, "text")
_whole = _only(int, "a whole number")
_flag = _only(bool, "true or false")
_list = _only(list, "a list")
_object = _only(dict, "an object")


def _number(value: Any) -> float:
    return value if type(value) is float else float(_whole(value))


def _moment(text: Any) -> datetime:
    moment = text if isinstance(text, datetime) else datetime.fromisoformat(_text(text))
    if moment.tzinfo is None:
        raise ValueError(f"{text!s} has no offset from UTC")
    return moment


_SCALARS: Mapping[Any, _Codec] = {
    str: _Codec(_clean, _text),
    int: _Codec(int, _whole),
    float: _Codec(float, _number),
    bool: _Codec(bool, _flag),
    datetime: _Codec(lambda moment: moment.astimezone(UTC).isoformat(timespec="microseconds"), _moment),
}


def _listed(item: _Codec) -> _Codec:
    def decode(values: Any) -> tuple[Any, ...]:
        return tuple(item.decode(value) for value in _list(values))

    return _Codec(lambda values: [item.encode(value) for value in values], decode)


def _mapped(item: _Codec) -> _Codec:
    def decode(values: Any) -> dict[str, Any]:
        return {key: item.decode(value) for key, value in _object(values).items()}

    return _Codec(lambda values: {key: item.encode(value) for key, value in values.items()}, decode)


_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _json_text(plain: _Codec) -> _Codec:
    return _Codec(
        lambda value: _JSON.encode(plain.encode(value)),
        lambda text: plain.decode(json.loads(_text(text))),
    )


def _codec(hint: Any) -> _Codec:
    """The codec of a type hint, in terms of what JSON can hold. `X | None` is X: None never reaches a codec."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        (present,) = (argument for argument in arguments if argument is not types.NoneType)
        return _codec(present)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return _listed(_codec(arguments[0]))
    if origin is Mapping and arguments[0] is str:
        return _mapped(_codec(arguments[1]))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _Codec(lambda member: member.value, hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        shape: _Shape[Any] = _Shape(hint, _codec)
        return _Codec(shape.encode, lambda value: shape.decode(_object(value)))
    raise TypeError(f"no column can hold {hint!r}")


def _column_codec(hint: Any) -> _Codec:
    """The codec of one column: as `_codec`, with what a column cannot hold as it is turned into JSON text."""
    codec = _codec(hint)
    arguments = [argument for argument in typing.get_args(hint) if argument is not types.NoneType]
    compound = any(typing.get_origin(part) in (tuple, Mapping) or dataclasses.is_dataclass(part) for part in (hint, *arguments))
    return _json_text(codec) if compound else codec


# ---------------------------------------------------------------------------------------------- one dataclass

T = TypeVar("T")


class _Shape(Generic[T]):
    """A dataclass resolved once: its fields, each with its codec. `etag` is not a field but the row's version."""

    def __init__(self, cls: type[T], codec_of: Callable[[Any], _Codec]) -> None:
        hints = typing.get_type_hints(cls)
        fields = [field for field in dataclasses.fields(cls) if field.name != "etag"]  # type: ignore[arg-type]
        self._cls = cls
        self._codecs = {field.name: codec_of(hints[field.name]) for field in fields}
        self._encoders = [(name, codec.encode) for name, codec in self._codecs.items()]
        self._values = operator.attrgetter(*self._codecs)  # a tuple: no dataclass here has a single field
        self._required = frozenset(
            field.name for field in fields if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        for field in fields:
            if types.NoneType in typing.get_args(hints[field.name]) and field.default is not None:
                raise TypeError(f"{cls.__name__}.{field.name} may be None, so None must be its default")

    def encode(self, row: T) -> dict[str, Any]:
        values = zip(self._encoders, self._values(row), strict=True)
        return {name: encode(value) for (name, encode), value in values if value is not None}

    def decode(self, columns: Mapping[str, Any], **given: Any) -> T:
        """The row, with `given` for fields that are not read. Raises ValueError where a column is missing or cannot be read."""
        row, problems = self.decode_what_can(columns, **given)
        if row is None or problems:
            raise ValueError("; ".join(problems))
        return row

    def decode_what_can(self, columns: Mapping[str, Any], **given: Any) -> tuple[T | None, list[str]]:
        """The row with the default in place of what cannot be read, and what that was; no row where there is no default."""
        values: dict[str, Any] = {}
        problems: dict[str, str] = {}
        codecs = self._codecs
        for name, value in columns.items():
            codec = codecs.get(name)
            if codec is not None and value is not None:
                try:
                    values[name] = codec.decode(value)
                except ValueError as error:
                    problems[name] = str(error)
        values.update(given)
        for name in sorted(self._required - values.keys() - problems.keys()):
            problems[name] = "missing"
        texts = [f"{name}: {problem}" for name, problem in problems.items()]
        return (self._cls(**values) if self._required <= values.keys() else None), texts


_FACT = _json_text(_codec(Fact))
_JOB = _Shape(Job, _column_codec)
_RUNNER = _Shape(Runner, _column_codec)
_HEAD = _Shape(Head, _column_codec)


def fact_to_columns(fact: Fact) -> dict[str, str]:
    return {"body": _FACT.encode(fact)}


def fact_from_columns(columns: Mapping[str, Value]) -> Fact:
    """Raises ValueError, saying why, where these columns hold no fact."""
    fact: Fact = _FACT.decode(columns.get("body"))
    return fact


def job_to_columns(job: Job) -> dict[str, Value]:
    return _JOB.encode(job)


def job_from_columns(columns: Mapping[str, Value], etag: str) -> Job:
    """Raises ValueError, saying why, where these columns hold no job."""
    return _JOB.decode(columns, etag=etag)


def runner_to_columns(runner: Runner) -> dict[str, Value]:
    return _RUNNER.encode(runner)


def runner_from_columns(columns: Mapping[str, Value], etag: str) -> Runner:
    """Raises ValueError, saying why, where these columns hold no runner."""
    return _RUNNER.decode(columns, etag=etag)


def head_to_columns(head: Head) -> dict[str, Value]:
    return _HEAD.encode(head)


def head_from_columns(columns: Mapping[str, Value], etag: str) -> Head:
    """Raises ValueError, saying why, where these columns hold no head."""
    return _HEAD.decode(columns, etag=etag)


# ---------------------------------------------------------------------------------------------- one partition


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that could not be read, as a rule because somebody edited it. An unreadable `runner:` row still stands for a
    VM: whoever counts or sweeps must not take it for absent."""

    row: str
    why: str

    def __str__(self) -> str:
        return f"row {self.row} cannot be read: {self.why}"


def snapshot(entities: Iterable[Entity], pool: str) -> tuple[Snapshot, list[Unreadable]]:
    """One pool's rows as the model knows them: jobs by id, runners by name, facts by row key; and the rows that cannot be read.

    A pool without a head gets an empty one with no ETag (its first commit inserts it). A head whose columns cannot all be
    read keeps the others, with defaults for these. Rows of any other kind are left out.
    """
    head = Head(pool=pool)
    jobs: dict[str, Job] = {}
    runners: dict[str, Runner] = {}
    facts: dict[str, Fact] = {}
    unreadable: list[Unreadable] = []
    for entity in entities:
        row = entity.row
        try:
            if row.startswith(FACT_PREFIX):
                facts[row] = fact_from_columns(entity.columns)
            elif row.startswith(JOB_PREFIX):
                job = job_from_columns(entity.columns, entity.etag)
                jobs[_same(job.job_id, row, JOB_PREFIX)] = job
            elif row.startswith(RUNNER_PREFIX):
                runner = runner_from_columns(entity.columns, entity.etag)
                runners[_same(runner.name, row, RUNNER_PREFIX)] = runner
            elif row == HEAD_KEY:
                read, problems = _HEAD.decode_what_can(entity.columns, pool=pool, etag=entity.etag)
                head = read or head
                unreadable += [Unreadable(row, problem) for problem in problems]
        except ValueError as error:
            unreadable.append(Unreadable(row, str(error)))
    return Snapshot(head=head, jobs=jobs, runners=runners, facts=facts), unreadable


def _same(identity: str, row: str, prefix: str) -> str:
    if prefix + identity != row:
        raise ValueError(f"it describes {identity!r:.80}")
    return identity
