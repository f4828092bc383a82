"""Who looks on without touching anything: the operator at the status page, and whoever reads the logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runnerpool.ledger import Ledger
from runnerpool.ports import Entity, Operation
from runnerpool.status import LISTED, report

if TYPE_CHECKING:
    from tests.sim.checks import Checks
    from tests.sim.world import World

LOOKS = 1800.0
"""Seconds between two looks at the status page, while jobs are queued."""


def come(world: World) -> None:
    """A look at the status page now and then, for as long as the world lasts."""
    tasks: set[asyncio.Task[None]] = set()

    def look() -> None:
        world.later(LOOKS, look)
        if any(world.github.queued.values()):
            task = world.loop.create_task(_every_waiting_job_has_a_reason(world))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    world.later(world.chance.uniform(0, LOOKS), look)


class _Still:
    """The table as it stands: reading it takes no time and meets no fault."""

    def __init__(self, world: World) -> None:
        self._rows = world.table.everything()

    async def read(self, partition: str, *, prefix: str = "") -> list[Entity]:
        return [row for row in self._rows if row.partition == partition and row.row.startswith(prefix)]

    async def get(self, partition: str, row: str) -> Entity | None:
        raise AssertionError("the status page reads whole partitions")

    async def transact(self, partition: str, operations: Sequence[Operation]) -> list[str]:
        raise AssertionError("the status page writes nothing")


async def _every_waiting_job_has_a_reason(world: World) -> None:
    """A job that GitHub queues and that we have been told of is on the page, with a sentence that says why it waits."""
    queued = {job_id for jobs in world.github.queued.values() for job_id in jobs}
    table = _Still(world)
    known = {row.row.split(":")[1] for row in world.table.everything() if row.row.startswith(("job:", "fact:"))}
    status, page = await report(world.now(), world.scenario.config, Ledger(table=table, history=table))
    world.checks.secret("the status page", str(page))
    if status != 200:
        world.checks.broken(10, f"the status page answers {status}: {page}")
    failed = sum(row.row.startswith("poison:") for row in world.table.everything())
    if page["counts"]["poisoned"] != failed:
        world.checks.broken(15, f"{failed} messages failed for good, and the status page counts {page['counts']}")
    if any(len(pool["waiting"]) >= LISTED for pool in page["pools"]):
        return  # the page lists no more
    reasons = {waiting["job"]: waiting["reason"] for pool in page["pools"] for waiting in pool["waiting"]}
    for job_id in sorted(queued & known):
        if not reasons.get(job_id):
            world.checks.broken(10, f"job {job_id} is queued, and the status page does not say why it waits")


class _Reader(logging.Handler):
    def __init__(self, checks: Checks) -> None:
        super().__init__(logging.INFO)
        self._checks = checks

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._checks.secret("a log line", f"{record.getMessage()} {error or ''}")


@contextmanager
def watched_logs(checks: Checks) -> Iterator[None]:
    """Every line that the production code logs is searched for secrets, and goes nowhere."""
    log = logging.getLogger("runnerpool")
    before = log.level, log.propagate, logging.root.manager.disable
    reader = _Reader(checks)
    log.addHandler(reader)
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.disable(logging.NOTSET)
    try:
        yield
    finally:
        log.removeHandler(reader)
        log.setLevel(before[0])
        log.propagate = before[1]
        logging.disable(before[2])
