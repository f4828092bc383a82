"""`ports.Table` in memory, exact in its conditions, limits and order; the contract suite holds it against Azurite.

Faults come in through two hooks, each awaited once a request: what `before` raises happens to a request that never arrived;
what `after` raises happens to one that was carried out and whose answer was lost. Both may also wait.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from runnerpool.errors import Conflict
from runnerpool.ports import Entity, Insert, Operation, Remove, Replace, Value

_LAST = "\U0010ffff"
"""Sorts behind every character of a key."""
_FORBIDDEN_IN_KEYS = re.compile(r"[/\\#?\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the table. `key` is the row or the prefix asked for; a read of more than one page is several requests."""

    kind: Literal["read", "get", "transact"]
    partition: str
    key: str = ""
    operations: tuple[Operation, ...] = ()


T = TypeVar("T")
Hook = Callable[[Request], Awaitable[None]]


async def _nothing(_request: Request) -> None: ...


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing, as this table's methods where no hook waits."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")


class MemoryTable:
    """One table. `operations` counts requests; ETags are `W/"1"`, `W/"2"`, … in the order of the writes. `clock` is the service's
    own; without one it does not tell the time."""

    def __init__(
        self,
        *,
        before: Hook = _nothing,
        after: Hook = _nothing,
        page_rows: int = 1_000,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.before = before
        self.after = after
        self.operations = 0
        self._page_rows = page_rows
        self._clock = clock
        self._partitions: dict[str, dict[str, Entity]] = {}
        self._order: dict[str, list[str]] = {}  # the keys of each partition in order, where they were read since they changed
        self._writes = 0

    async def read(self, partition: str, *, prefix: str = "") -> list[Entity]:
        """As in Azure no snapshot: rows written between two pages may or may not be seen."""
        request = Request("read", partition, prefix)
        entities: list[Entity] = []
        while True:
            await self._arrive(request)
            last = entities[-1].row if entities else None
            rows = self._partitions.get(partition, {})
            order = self._keys(partition)
            begin = bisect_left(order, prefix) if last is None else bisect_right(order, last)
            end = bisect_left(order, prefix + _LAST) if prefix else len(order)
            entities += [rows[row] for row in order[begin : min(end, begin + self._page_rows)]]
            await self.after(request)
            if end - begin <= self._page_rows:
                return entities

    async def get(self, partition: str, row: str) -> Entity | None:
        request = Request("get", partition, row)
        await self._arrive(request)
        entity = self._partitions.get(partition, {}).get(row)
        await self.after(request)
        if entity is not None and self._clock is not None:
            return replace(entity, read_at=self._clock().replace(microsecond=0))
        return entity

    async def transact(self, partition: str, operations: Sequence[Operation]) -> list[str]:
        _check(partition, operations)
        written = {op.row: _stored(op.columns) for op in operations if not isinstance(op, Remove)}
        request = Request("transact", partition, operations=tuple(operations))
        await self._arrive(request)
        # From here to the last row without an await: nobody sees half of it.
        rows = self._partitions.setdefault(partition, {})
        for operation in operations:
            _demand(operation, rows.get(operation.row))
        etags = []
        for operation in operations:
            if isinstance(operation, Remove):
                del rows[operation.row]
                self._order.pop(partition, None)
                etags.append("")
            else:
                if operation.row not in rows:
                    self._order.pop(partition, None)
                self._writes += 1
                entity = Entity(partition, operation.row, written[operation.row], etag=f'W/"{self._writes}"')
                rows[operation.row] = entity
                etags.append(entity.etag)
        await self.after(request)
        return etags

    def everything(self) -> list[Entity]:
        """Every row of every partition, for invariants; counts as no request and meets no fault."""
        return [rows[row] for _, rows in sorted(self._partitions.items()) for row in sorted(rows)]

    def _keys(self, partition: str) -> list[str]:
        if partition not in self._order:
            self._order[partition] = sorted(self._partitions.get(partition, ()))
        return self._order[partition]

    async def _arrive(self, request: Request) -> None:
        self.operations += 1
        await self.before(request)


def _demand(operation: Operation, present: Entity | None) -> None:
    match operation:
        case Insert() if present is not None:
            raise Conflict(f"row {operation.row} exists")
        case Replace() | Remove() if present is None:
            raise Conflict(f"row {operation.row} is gone")
        case Replace(etag=etag) | Remove(etag=etag) if present is not None and etag not in ("*", present.etag):
            raise Conflict(f"row {operation.row} has another ETag")


def _check(partition: str, operations: Sequence[Operation]) -> None:
    rows = [operation.row for operation in operations]
    if not 1 <= len(rows) <= 100:
        raise ValueError(f"{len(rows)} operations in one transaction")
    if len(set(rows)) < len(rows):
        raise ValueError("two operations on one row")
    if any(_FORBIDDEN_IN_KEYS.search(key) for key in (partition, *rows)):
        raise ValueError("a key holds a character that is not allowed")
    if any(isinstance(operation, Replace | Remove) and not operation.etag for operation in operations):
        raise ValueError("a condition without an ETag")


def _stored(columns: Mapping[str, Value]) -> Mapping[str, Value]:
    """The columns as the service gives them back: plain types, times in UTC, no None. Nobody can change them."""
    return MappingProxyType({name: _plain(name, value) for name, value in columns.items() if value is not None})


def _plain(name: str, value: Value) -> Value:
    match value:
        case bool() | float():
            return value
        case int() if -(2**63) <= value < 2**63:
            return value
        case str():
            return str(value)
        case datetime() if value.tzinfo is not None:
            return value.astimezone(UTC)
    raise ValueError(f"column {name} cannot hold {value!r}")
