"""Table Storage for one process: the shared in-memory table behind calls that take time and go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TypeVar

from runnerpool import rows
from runnerpool.errors import Conflict
from runnerpool.model import Fact, Head, Job, Runner
from runnerpool.ports import Entity, Operation, Value
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
    thousand times."""
    jobs: dict[str, Job] = {}
    runners: dict[str, Runner] = {}
    facts: dict[object, Fact] = {}

    def fact(columns: Mapping[str, Value]) -> Fact:
        body = columns.get("body")
        if body not in facts:
            facts[body] = _FACT(columns)
        return facts[body]

    def job(columns: Mapping[str, Value], etag: str) -> Job:
        if etag not in jobs:
            jobs[etag] = _JOB(columns, etag)
        return jobs[etag]

    def runner(columns: Mapping[str, Value], etag: str) -> Runner:
        if etag not in runners:
            runners[etag] = _RUNNER(columns, etag)
        return runners[etag]

    rows.job_from_columns, rows.runner_from_columns, rows.fact_from_columns = job, runner, fact
    rows._HEAD = _RememberedHead()  # type: ignore[assignment]


class _RememberedHead:
    """`rows._HEAD`, which decodes each version once."""

    encode = staticmethod(rows._HEAD.encode)
    decode = staticmethod(rows._HEAD.decode)
    _whole = staticmethod(rows._HEAD.decode_what_can)

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[Head | None, list[str]]] = {}

    def decode_what_can(self, columns: Mapping[str, Value], *, pool: str, etag: str) -> tuple[Head | None, list[str]]:
        if (pool, etag) not in self._known:
            self._known[pool, etag] = self._whole(columns, pool=pool, etag=etag)
        return self._known[pool, etag]


def forget_rows() -> None:
    rows.job_from_columns, rows.runner_from_columns, rows.fact_from_columns = _JOB, _RUNNER, _FACT
    rows._HEAD = _HEAD


_HEAD = rows._HEAD
_JOB, _RUNNER, _FACT = rows.job_from_columns, rows.runner_from_columns, rows.fact_from_columns


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
