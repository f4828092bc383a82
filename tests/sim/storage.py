"""Table Storage for one process: the shared in-memory table behind calls that take time and go wrong."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Sequence
from typing import Any, TypeVar

from runnerpool import rows
from runnerpool.errors import Conflict
from runnerpool.model import Head, Snapshot
from runnerpool.ports import Entity, Operation
from tests.memory_table import MemoryTable, Request, at_once
from tests.sim.process import Process

T = TypeVar("T")

PAGE_PAUSE = 0.05
"""Seconds between two pages of one reading: others write meanwhile."""


async def between_pages(request: Request) -> None:
    """The table's hook. Only readings of several pages wait, in their reader's own task."""
    if request.kind == "read" and request.key == "":
        await asyncio.sleep(PAGE_PAUSE)


def remember_rows() -> None:
    """Decodes each version of a row once a world: decoding is pure, an ETag names one version, and a day reads each a
    thousand times. Whatever is not whole is decoded each time. A pool of which no row has changed is the snapshot it was."""
    known: dict[str, tuple[str, str, Any]] = {}
    newest: dict[str, tuple[list[Entity], Snapshot]] = {}

    def snapshot(entities: list[Entity], pool: str) -> tuple[Snapshot, list[rows.Unreadable]]:
        before = newest.get(pool)
        if before is not None and len(entities) == len(before[0]) and all(map(operator.is_, entities, before[0])):
            return before[1], []
        head = Head(pool=pool)
        found: dict[str, dict[str, Any]] = {"jobs": {}, "runners": {}, "facts": {}, "none": {}}
        unreadable: list[rows.Unreadable] = []
        for entity in entities:
            version = known.get(entity.etag)
            if version is None:
                version, problems = _decoded(entity, pool)
                if problems:
                    unreadable += problems
                else:
                    known[entity.etag] = version
            kind, key, row = version
            if kind == "head":
                head = row
            else:
                found[kind][key] = row
        read = Snapshot(head=head, jobs=found["jobs"], runners=found["runners"], facts=found["facts"])
        if not unreadable:
            newest[pool] = (entities, read)
        return read, unreadable

    rows.snapshot = snapshot  # type: ignore[assignment]


def _decoded(entity: Entity, pool: str) -> tuple[tuple[str, str, Any], list[rows.Unreadable]]:
    """One row as the production code reads it: its kind, its key, and what it holds."""
    alone, problems = _SNAPSHOT([entity], pool)
    if entity.row == rows.HEAD_KEY:
        return ("head", "", alone.head), problems
    for kind, mapping in (("jobs", alone.jobs), ("runners", alone.runners), ("facts", alone.facts)):
        for key, row in mapping.items():
            return (kind, key, row), problems
    return ("none", "", None), problems


def forget_rows() -> None:
    rows.snapshot = _SNAPSHOT


_SNAPSHOT = rows.snapshot


class TablePort:
    """`ports.Table` for one process."""

    def __init__(self, process: Process, table: MemoryTable, *, paged: bool) -> None:
        self._process = process
        self._table = table
        self._paged = paged

    async def read(self, partition: str, *, prefix: str = "") -> list[Entity]:
        if not self._paged:
            return await self._process.call("storage", lambda: at_once(self._table.read(partition, prefix=prefix)))
        await self._process.call("storage", lambda: None)
        return await self._table.read(partition, prefix=prefix)

    async def get(self, partition: str, row: str) -> Entity | None:
        return await self._process.call("storage", lambda: at_once(self._table.get(partition, row)))

    async def transact(self, partition: str, operations: Sequence[Operation]) -> list[str]:
        checks = self._process.world.checks

        def effect() -> list[str]:
            try:
                etags = at_once(self._table.transact(partition, operations))
            except Conflict:
                checks.conflicted(operations)
                raise
            checks.written(partition, operations)
            return etags

        return await self._process.call("storage", effect, write=True)
