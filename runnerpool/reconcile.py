"""The 30-second pass: gather, compare, repair, plan, act, sweep, tell. The same engine as a wake-up's, with witnesses."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from runnerpool import redelivery, watch
from runnerpool.acting import Outside
from runnerpool.budget import GOOD_FOR
from runnerpool.decide import jobs_over
from runnerpool.errors import Misconfigured, PoolError, RetryLater
from runnerpool.eviction import lost_elsewhere
from runnerpool.follow import Follow
from runnerpool.gather import Gathered, Gathering
from runnerpool.ledger import Ledger
from runnerpool.lifecycle import NOTHING_SEEN, Seen
from runnerpool.model import Job
from runnerpool.moves import adoptions, left_behind, moves
from runnerpool.ports import Alert, Alerts, Delivery, Entity, Network
from runnerpool.provision import Engine
from runnerpool.retry import Clock, attempt
from runnerpool.rows import RUNNER_PREFIX
from runnerpool.sweep import Sweep

log = logging.getLogger(__name__)

ACTING = timedelta(minutes=1)
"""What the acts have at least, however long the reading took: services that hang must not keep what needs none of them waiting."""
UNSERVED_KEPT = timedelta(days=1)
ADOPTED = 10
"""Jobs that no pool served before, taken up in one pass: as many as one asks GitHub about."""
POISON_KEPT = timedelta(days=14)
REDELIVERING = timedelta(seconds=20)
"""What the list of failed deliveries has, and what asking for them again has: whatever hangs, the heartbeat is written."""
TELLING = timedelta(seconds=20)
"""After this no further alert is begun: one that meets a mail server that hangs takes half a minute."""


@dataclass(slots=True, kw_only=True)
class Reconcile:
    """One pass over everything. One pool's, runner's or service's trouble never stops the others."""

    engine: Engine
    ledger: Ledger
    outside: Outside
    network: Network
    alerts: Alerts
    clock: Clock

    async def run(self, *, deadline: datetime) -> None:
        """Raises only when the ledger itself cannot be read or written."""
        begun = self.clock()
        gathering = Gathering(outside=self.outside, network=self.network, clock=self.clock, deadline=deadline)
        gathered = gathering.gathered
        await gathering.azure()
        app = {entity.row: entity for entity in await self.ledger.app_rows()}
        pools = await self._pools(app)
        gathered.pools = dict(zip(pools, await asyncio.gather(*(self.ledger.read_pool(pool) for pool in pools)), strict=True))
        beat = _document(app.get("heartbeat"))
        targets = self.engine.config.github.targets
        await gathering.github(targets, _when(beat.get("listed_at")), int(beat.get("list_pages") or 1))
        await asyncio.gather(gathering.suspects(), gathering.agents())
        deadline = max(deadline, self.clock() + ACTING)
        await self._move_jobs(gathered)
        await self._adopt(app)
        await self._mark_evicted(gathered)
        failures = await self._plan(pools, gathered, deadline)
        await self._sweep(gathered, pools, deadline)
        await self._tidy(app)
        deliveries = await self._redeliver(beat.get("deliveries") or {}, deadline)
        await self._beat(begun, {**beat, "deliveries": deliveries}, gathered, failures)
        await self._tell(app, gathered, redelivery.read(deliveries))
        await Follow(engine=self.engine, ledger=self.ledger, clock=self.clock).run(gathering, pools, begun)

    async def _pools(self, app: Mapping[str, Entity]) -> list[str]:
        """Every pool of the file, and every one that was ever planned; those new in the file are put on record."""
        recorded = [row.removeprefix("pool:") for row in app if row.startswith("pool:")]
        configured = [pool.name for pool in self.engine.config.pools]
        for name in configured:
            if name not in recorded:
                await self.ledger.put_app_row(f"pool:{name}", {"since": self.clock().isoformat()})
        return [*configured, *(name for name in recorded if name not in configured)]

    async def _move_jobs(self, gathered: Gathered) -> None:
        """Jobs that wait in a pool that does not serve them any more go to the one that does, if there is one.

        The old row goes once the new pool has the job's fact, so that the job can move back by a fact if the file does. A row that
        changed meanwhile stays for the next pass.
        """
        pools = self.engine.config.pools
        for name, snapshot in gathered.pools.items():
            for job, fact in moves(name, snapshot, pools):
                await self.ledger.add_fact(fact.pool, f"from-{name}", fact)
                if await self.ledger.remove_job(job):
                    log.info("job %s moved from pool %s, which does not serve it any more, to %s", job.job_id, name, fact.pool)
            for job in left_behind(snapshot):
                await self.ledger.remove_job(job)

    async def _adopt(self, app: dict[str, Entity]) -> None:
        """Jobs that no pool served when they came, and that one serves now, become facts; what was noted of them goes, here and in
        the table, and so do notes about what is no demand."""
        notes = [entity for row, entity in app.items() if row.startswith("unserved:")]
        due = adoptions(self.clock(), self.engine.config, notes)[:ADOPTED]
        for row, fact in due:
            if fact is not None:
                await self.ledger.add_fact(fact.pool, f"unserved-{row.rpartition(':')[2]}", fact)
                log.info("job %s, which no pool served when it came, goes to pool %s", fact.job_id, fact.pool)
            del app[row]
        await self.ledger.remove_app_rows([row for row, _ in due])

    async def _mark_evicted(self, gathered: Gathered) -> None:
        """A job may run on another pool's VM: only where all pools are read together does anybody see that it was lost with it."""

        async def mark(job: Job, how: str) -> None:
            await self.ledger.revise_job(job, lambda row: replace(row, evicted=row.evicted or how))
            log.info("job %s of pool %s: %s", job.job_id, job.pool, how)

        await asyncio.gather(*(mark(job, how) for job, how in lost_elsewhere(self.clock(), gathered.pools, gathered.direct)))

    async def _plan(self, pools: Collection[str], gathered: Gathered, deadline: datetime) -> dict[str, str]:
        """One pass of the engine per pool, side by side. What a pool's pass died of is logged whole and returned by pool."""
        seen = gathered.seen()
        failures: dict[str, str] = {}

        async def one(pool: str, seen: Seen) -> set[str]:
            try:
                return await self.engine.run(pool, deadline=deadline, seen=seen)
            except Exception as error:
                log.exception("pool %s: its pass failed", pool)
                failures[pool] = f"{type(error).__name__}: {error}"[:500]
                return set()

        named = set[str]().union(*await asyncio.gather(*(one(pool, seen) for pool in pools)))
        await asyncio.gather(*(one(pool, NOTHING_SEEN) for pool in named & set(pools)))
        return failures

    async def _sweep(self, gathered: Gathered, pools: Collection[str], deadline: datetime) -> None:
        damaged = {row.removeprefix(RUNNER_PREFIX) for snapshot in gathered.pools.values() for row in snapshot.unreadable}
        sweep = Sweep(
            ledger=self.ledger,
            outside=self.outside,
            network=self.network,
            clock=self.clock,
            deadline=deadline,
            prefix=self.engine.config.azure.name_prefix,
            targets=self.engine.config.github.targets,
        )
        await sweep.run(gathered, pools, {*gathered.runners, *damaged})
        now = self.clock()
        await self.ledger.archive(job for snapshot in gathered.pools.values() for job in jobs_over(now, snapshot))

    async def _tidy(self, app: Mapping[str, Entity]) -> None:
        """Drops what was kept for people to read, when its time is over."""
        now = self.clock()
        kept = {"unserved:": UNSERVED_KEPT, "poison:": POISON_KEPT}
        over = [
            row
            for row, entity in app.items()
            for prefix, period in kept.items()
            if row.startswith(prefix) and now - (_when(entity.columns.get("received_at")) or now) > period
        ]
        await self.ledger.remove_app_rows(over)

    async def _redeliver(self, document: Mapping[str, Any], deadline: datetime) -> Mapping[str, Any]:
        """Asks GitHub to send again what the webhook could not take. Takes and returns the heartbeat's memory of that."""
        now = self.clock()
        cursor = redelivery.read(document)
        if not cursor.is_due(now):
            return document
        github = self.outside.github
        end = min(deadline, now + REDELIVERING)
        try:
            async with asyncio.timeout(REDELIVERING.total_seconds()):
                begin = now - redelivery.REDELIVERABLE
                failed = await attempt(lambda: github.failed_deliveries(begin), clock=self.clock, deadline=end)
        except (PoolError, TimeoutError) as error:
            log.warning(
                "GitHub's failed deliveries could not be listed: %s", str(error) or "it took too long, the next pass reads on"
            )
            # What a person has to mend is not asked for twice a minute.
            return replace(cursor, at=now, again=False).document() if isinstance(error, Misconfigured) else document
        for delivery in redelivery.lapsing(now, failed, cursor):
            log.warning("delivery %s was never taken, and GitHub drops it soon: if its job waits, run it again", delivery.guid)
        wanted = redelivery.choose(now, failed, cursor) if self.clock() < deadline else []
        bought = self.clock()
        granted = await self.ledger.take("github-writes", len(wanted), bought)
        asked = await self._ask_again(wanted[:granted], cursor, min(deadline, bought + GOOD_FOR))
        return redelivery.after(now, failed, cursor, asked).document()

    async def _ask_again(self, wanted: Sequence[Delivery], cursor: redelivery.Cursor, deadline: datetime) -> list[Delivery]:
        """Those that were asked for: each counts, whatever GitHub answered, or one that it always refuses would be asked for
        for ever, before all others."""
        asked: list[Delivery] = []
        try:
            async with asyncio.timeout(REDELIVERING.total_seconds()):
                for delivery in wanted:
                    if self.clock() >= deadline:
                        break
                    asked.append(delivery)
                    if not await self._ask_for(delivery, cursor.times(delivery.guid) + 1, deadline):
                        break
        except TimeoutError:
            log.warning("GitHub was slow to redeliver: %d of %d deliveries were asked for, the rest later", len(asked), len(wanted))
        return asked

    async def _ask_for(self, delivery: Delivery, times: int, deadline: datetime) -> bool:
        """Whether GitHub can be asked for another one now."""
        left = "" if times < redelivery.ATTEMPTS else ": the last time, what fails again is left to a person"
        log.info("delivery %s had failed: asking GitHub for it again (%d%s)", delivery.guid, times, left)
        try:
            await attempt(lambda: self.outside.github.redeliver(delivery), clock=self.clock, deadline=deadline)
        except PoolError as error:
            log.warning("delivery %s could not be asked for again: %s", delivery.guid, error)
            return not isinstance(error, RetryLater)
        return True

    async def _tell(self, app: Mapping[str, Entity], gathered: Gathered, deliveries: redelivery.Cursor) -> None:
        """Sends each new condition once. One that could not be sent is not recorded, so the next pass sends it; so it does what
        is left when the time for it is over."""
        begun = self.clock()
        end = begun + TELLING
        told = {row.removeprefix("alert:"): str(e.columns.get("title", "")) for row, e in app.items() if row.startswith("alert:")}
        found = [*watch.conditions(begun, self.engine.config, gathered), *redelivery.alerts(begun, deliveries)]
        new, over = watch.changed(found, told, watch.unread(gathered))
        for alert in new:
            if self.clock() < end and await self._send(alert):
                columns = {"title": alert.title, "area": alert.area, "text": alert.text, "since": self.clock().isoformat()}
                await self.ledger.put_app_row(f"alert:{alert.id}", columns)
        for gone in over:
            word = Alert(gone, "resolved", f"over: {told[gone]}", "This condition is no longer found.")
            if self.clock() < end and await self._send(word):
                await self.ledger.remove_app_rows([f"alert:{gone}"])

    async def _send(self, alert: Alert) -> bool:
        try:
            await self.alerts.send(alert)
        except PoolError as error:
            log.warning("alert %s could not be sent: %s", alert.id, error)
            return False
        return True

    async def _beat(self, begun: datetime, before: Mapping[str, Any], gathered: Gathered, failures: Mapping[str, str]) -> None:
        listed = bool(gathered.registrations)
        body = {
            "at": self.clock().isoformat(),
            "seconds": round((self.clock() - begun).total_seconds(), 2),
            "listed_at": begun.isoformat() if listed else before.get("listed_at"),
            "list_pages": gathered.list_pages if listed else before.get("list_pages"),
            "trouble": gathered.trouble,
            "failures": failures,
            "deliveries": before.get("deliveries"),
            "calls_left": self.outside.github.calls_left(),
        }
        await self.ledger.put_app_row("heartbeat", {"body": json.dumps(body)})


def _document(entity: Entity | None) -> dict[str, Any]:
    """The JSON document in a row's `body`; {} where there is none, or one that somebody damaged: it is written anew."""
    try:
        found = json.loads(str(entity.columns.get("body", "{}"))) if entity else {}
    except ValueError:
        log.error("row %s holds no JSON; written anew", entity.row if entity else "")
        return {}
    return found if isinstance(found, dict) else {}


def _when(text: object) -> datetime | None:
    if not isinstance(text, str):
        return text if isinstance(text, datetime) else None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
