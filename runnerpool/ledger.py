"""The ledger: the only truth. Reads a pool's partition, commits a decision on the head's ETag, revises single rows on theirs.

A commit is a chain of transactions, each of at most 99 rows plus the head. Each one replaces the head under the ETag that
the one before left, so whoever else plans this pool meanwhile loses, reads again and decides again. Every prefix of the
chain is valid by itself: facts disappear together with the job that took them up, and intents that add capacity come last.

A partition is read in the order of its keys, and `pool` (the head) sorts before `runner:`. So a runner that was committed
before the head was read is seen, and one committed later makes this pass's own commit fail.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime

from runnerpool import budget, rows
from runnerpool.decide import Decision
from runnerpool.errors import Conflict
from runnerpool.model import Fact, Head, Job, Runner, Snapshot
from runnerpool.ports import Entity, Insert, Operation, Remove, Replace, Table, Upsert, Value

log = logging.getLogger(__name__)

APP = "_app"
"""The partition of what belongs to no pool."""
CHAIN = 99
"""Rows in one transaction beside the head: Table Storage allows 100 operations."""
TRIES = 20
"""Attempts at a single contended row before the contention itself is the error."""


class Ledger:
    """The rows of all pools, as the model knows them. Raises what `ports.Table` raises."""

    def __init__(self, *, table: Table, history: Table) -> None:
        self._table = table
        self._history = history

    # ------------------------------------------------------------------------------------------ a pool

    async def read_pool(self, pool: str) -> Snapshot:
        """The whole partition. A row that cannot be read is logged and named in `unreadable`; it stops no other."""
        snapshot, unreadable = rows.snapshot(await self._table.read(pool), pool)
        for problem in unreadable:
            log.error("pool %s: %s", pool, problem)
        return replace(snapshot, unreadable=tuple(problem.row for problem in unreadable)) if unreadable else snapshot

    async def commit(self, decision: Decision) -> tuple[dict[str, Runner], dict[str, Job]]:
        """Writes what the decision changed; returns its runners and jobs with their new ETags.

        Raises Conflict when somebody else planned meanwhile; what a prefix of the chain has written then stands.
        """
        before, head = decision.before, decision.head
        await self._forward(decision.forwards)
        etags: dict[str, str] = {}
        for batch in _pack(_units(decision)):
            head = replace(head, revision=head.revision + 1)
            columns = rows.head_to_columns(head)
            first = Replace(rows.HEAD_KEY, columns, head.etag) if head.etag else Insert(rows.HEAD_KEY, columns)
            written = await self._table.transact(before.head.pool, [first, *batch])
            head = replace(head, etag=written[0])
            etags.update({operation.row: etag for operation, etag in zip(batch, written[1:], strict=True)})
        runners, jobs = dict(decision.runners), dict(decision.jobs)
        for row, etag in etags.items():
            if (name := row.removeprefix(rows.RUNNER_PREFIX)) in runners and name != row:
                runners[name] = replace(runners[name], etag=etag)
            elif (job_id := row.removeprefix(rows.JOB_PREFIX)) in jobs and job_id != row:
                jobs[job_id] = replace(jobs[job_id], etag=etag)
        return runners, jobs

    async def _forward(self, forwards: Mapping[str, Mapping[str, Fact]]) -> None:
        """Puts facts into the partitions of the pools whose runners they name. Repeating it changes nothing."""
        for pool, facts in forwards.items():
            operations: list[Operation] = [Upsert(key, rows.fact_to_columns(fact)) for key, fact in facts.items()]
            for start in range(0, len(operations), CHAIN):
                await self._table.transact(pool, operations[start : start + CHAIN])

    async def add_fact(self, pool: str, unique: str, fact: Fact) -> None:
        """Puts a fact that GitHub's API told beside those that its webhooks bring. Repeating it changes nothing."""
        await self._table.transact(pool, [Upsert(rows.fact_key(fact.job_id, unique), rows.fact_to_columns(fact))])

    # ------------------------------------------------------------------------------------------ single rows

    async def revise_runner(self, runner: Runner, change: Callable[[Runner], Runner | None]) -> Runner | None:
        """Applies `change` to the row as it now is, under its ETag; again on a conflict, with the row read anew.

        None when the row is gone, or when `change`, seeing the row, returns None: then nothing was written.
        """
        key = rows.runner_key(runner.name)
        current: Runner | None = runner
        for _ in range(TRIES):
            changed = change(current) if current is not None else None
            if current is None or changed is None:
                return None
            if changed == current:
                return current
            try:
                (etag,) = await self._table.transact(current.pool, [Replace(key, rows.runner_to_columns(changed), current.etag)])
                return replace(changed, etag=etag)
            except Conflict:
                entity = await self._table.get(current.pool, key)
                current = rows.runner_from_columns(entity.columns, entity.etag) if entity else None
        raise Conflict(f"runner {runner.name}: its row changed {TRIES} times while it was being written")

    async def revise_job(self, job: Job, change: Callable[[Job], Job | None]) -> Job | None:
        """As `revise_runner`, for a job."""
        key = rows.job_key(job.job_id)
        current: Job | None = job
        for _ in range(TRIES):
            changed = change(current) if current is not None else None
            if current is None or changed is None or changed == current:
                return changed
            try:
                (etag,) = await self._table.transact(current.pool, [Replace(key, rows.job_to_columns(changed), current.etag)])
                return replace(changed, etag=etag)
            except Conflict:
                entity = await self._table.get(current.pool, key)
                current = rows.job_from_columns(entity.columns, entity.etag) if entity else None
        raise Conflict(f"job {job.job_id}: its row changed {TRIES} times while it was being written")

    async def remove_job(self, job: Job) -> bool:
        """Removes the row as it was read; False where it has changed meanwhile, or is gone."""
        try:
            await self._table.transact(job.pool, [Remove(rows.job_key(job.job_id), job.etag)])
        except Conflict:
            return False
        return True

    async def revise_head(self, pool: str, change: Callable[[Head], Head]) -> Head:
        """Applies `change` to the pool's head under its ETag, and raises its revision: no older plan commits after it."""
        for _ in range(TRIES):
            entity = await self._table.get(pool, rows.HEAD_KEY)
            head = rows.head_from_columns({**entity.columns, "pool": pool}, entity.etag) if entity else Head(pool=pool)
            changed = change(head)
            if changed == head:
                return head
            columns = rows.head_to_columns(replace(changed, revision=head.revision + 1))
            try:
                operation = Replace(rows.HEAD_KEY, columns, head.etag) if head.etag else Insert(rows.HEAD_KEY, columns)
                (etag,) = await self._table.transact(pool, [operation])
                return replace(changed, revision=head.revision + 1, etag=etag)
            except Conflict:
                continue
        raise Conflict(f"pool {pool}: its head changed {TRIES} times while it was being written")

    async def has_runner(self, pool: str, name: str) -> bool:
        """Whether there is a row of this name now, one that can be read or not."""
        return await self._table.get(pool, rows.runner_key(name)) is not None

    async def adopt(self, runner: Runner) -> bool:
        """Gives a VM or registration without a row one of its own; False where it has one after all."""
        try:
            await self._table.transact(runner.pool, [Insert(rows.runner_key(runner.name), rows.runner_to_columns(runner))])
        except Conflict:
            return False
        return True

    async def archive(self, jobs: Iterable[Job]) -> None:
        """Moves finished jobs to the history table: written there first, by id, then deleted here with their ETags.

        The first row that history gets of a job stays: a delivery that comes again a day later knows less than it.
        """
        for job in jobs:
            day = f"{(job.completed_at or job.received_at):%Y-%m-%d}"
            try:
                await self._history.transact(f"{job.pool}:{day}", [Insert(job.job_id, rows.job_to_columns(job))])
            except Conflict:
                log.info("job %s is in the history already", job.job_id)
            if not await self.remove_job(job):
                log.info("job %s changed while it was being archived; the next pass does it", job.job_id)

    async def archived(self, pool: str, day: date, job_id: str) -> Job | None:
        """A job that was over on that day. Raises ValueError where its row cannot be read."""
        entity = await self._history.get(f"{pool}:{day:%Y-%m-%d}", job_id)
        return rows.job_from_columns(entity.columns, entity.etag) if entity else None

    # ------------------------------------------------------------------------------------------ what belongs to no pool

    async def app_rows(self, prefix: str = "") -> list[Entity]:
        return await self._table.read(APP, prefix=prefix)

    async def put_app_row(self, row: str, columns: Mapping[str, Value]) -> None:
        await self._table.transact(APP, [Upsert(row, columns)])

    async def remove_app_rows(self, names: Sequence[str]) -> None:
        """Rows that are gone already are as good as removed: two timers may be at it."""
        for start in range(0, len(names), CHAIN):
            batch = names[start : start + CHAIN]
            try:
                await self._table.transact(APP, [Remove(row, "*") for row in batch])
            except Conflict:
                for row in batch:
                    with suppress(Conflict):
                        await self._table.transact(APP, [Remove(row, "*")])

    async def take(self, scope: str, want: int, now: datetime) -> int:
        """Takes up to `want` tokens from a bucket that all processes share; how many were granted, 0 where contention won.

        The bucket refills by the storage service's clock: by their own, a process two minutes ahead would fill it for all the
        others. `now` is for the bucket that is not there yet, and for a service that does not tell the time.
        """
        row = f"budget:{scope}"
        for _ in range(TRIES):
            entity = await self._table.get(APP, row)
            moment = (entity and entity.read_at) or now
            granted, bucket = budget.take(_bucket(entity), budget.LIMITS[scope], want, moment)
            if granted == 0:
                return 0
            columns: dict[str, Value] = {"tokens": float(bucket.tokens), "at": bucket.at.isoformat()}
            try:
                await self._table.transact(APP, [Replace(row, columns, bucket.etag) if bucket.etag else Insert(row, columns)])
                return granted
            except Conflict:
                continue
        return 0


def _bucket(entity: Entity | None) -> budget.Bucket | None:
    if entity is None:
        return None
    return budget.Bucket(float(str(entity.columns["tokens"])), datetime.fromisoformat(str(entity.columns["at"])), entity.etag)


# ---------------------------------------------------------------------------------------------- a decision as transactions


def _units(decision: Decision) -> list[list[Operation]]:
    """Groups of operations that belong together, those that add capacity last."""
    before = decision.before
    units: list[list[Operation]] = []
    adding: list[list[Operation]] = []
    touched: dict[str, list[Operation]] = {}
    named = {fact.runner_name: fact.job_id for fact in decision.consumed.values() if fact.runner_name}
    facts: dict[str, list[Operation]] = {}
    for key, fact in decision.consumed.items():
        touched.setdefault(fact.job_id, [])
        facts.setdefault(fact.job_id, []).append(Remove(key, "*"))
    made_for = {runner.job_id for name, runner in decision.runners.items() if name not in before.runners}
    counted: dict[str, Operation] = {}
    for job_id, job in decision.jobs.items():
        old = before.jobs.get(job_id)
        # A VM counts against its job's tries in the transaction that makes it: one that was lost to a conflict is none.
        folded = _uncounted(job, old) if job_id in made_for else job
        key = rows.job_key(job_id)
        if folded is not old and folded != old:
            columns = rows.job_to_columns(folded)
            touched.setdefault(job_id, []).append(Replace(key, columns, old.etag) if old else Insert(key, columns))
        if folded is not job and folded != job:
            columns = rows.job_to_columns(job)
            counted[job_id] = Replace(key, columns, old.etag) if old and folded == old else Upsert(key, columns)
    for name, runner in decision.runners.items():
        old_runner = before.runners.get(name)
        if runner is old_runner or runner == old_runner:
            continue
        key, columns = rows.runner_key(name), rows.runner_to_columns(runner)
        if old_runner is None:
            tally = [counted[runner.job_id]] if runner.job_id in counted else []
            adding.append([Insert(key, columns), *tally])
            continue
        operation = Replace(key, columns, old_runner.etag)
        if name in named:  # the facts that named it and what they made of it change in one transaction
            touched[named[name]].append(operation)
        else:
            units.append([operation])
    for job_id, removals in facts.items():
        touched[job_id] += removals
    gone = [Remove(rows.runner_key(name), old.etag) for name, old in before.runners.items() if name not in decision.runners]
    units += [[operation] for operation in gone]
    if decision.head != before.head and not (touched or units or adding):
        units.append([])
    return [*touched.values(), *units, *adding]


def _uncounted(job: Job, old: Job | None) -> Job:
    """The job as its facts make it, before the VM that this decision makes for it."""
    return replace(job, vms_made=old.vms_made if old else 0, last_vm_at=old.last_vm_at if old else None)


def _pack(units: Sequence[Sequence[Operation]]) -> Iterable[list[Operation]]:
    """Units packed into transactions, none torn apart; capacity never shares one with what a fact can touch.

    A unit is small (one job, one runner, their few facts), unless one job has more than 97 facts: then it is cut, which is
    harmless, since what was made of the facts comes first, and taking up a fact twice changes nothing.
    """
    batch: list[Operation] = []
    adding = False
    for unit in units:
        adds = bool(unit) and isinstance(unit[0], Insert) and unit[0].row.startswith(rows.RUNNER_PREFIX)
        if batch and (len(batch) + len(unit) > CHAIN or adds != adding):
            yield batch
            batch = []
        adding = adds
        for operation in unit:
            if len(batch) == CHAIN:
                yield batch
                batch = []
            batch.append(operation)
    if batch or (units and not any(units)):
        yield batch
