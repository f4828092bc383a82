"""Which queued jobs lie in the wrong place because the pool file has changed, and what brings them to the right one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from runnerpool.config import Config, PoolConfig
from runnerpool.delivery import Delivery
from runnerpool.intake import why_no_demand
from runnerpool.labels import lacking, match
from runnerpool.model import LATE, Fact, Job, JobState, Snapshot, fact_about
from runnerpool.ports import Entity
from runnerpool.rows import fact_from_columns


def moves(name: str, snapshot: Snapshot, pools: Sequence[PoolConfig]) -> list[tuple[Job, Fact]]:
    """The jobs that wait in the pool `name` although it has left the file, or has their labels no more; each with the fact that
    brings it to the pool that serves it now. A job that none serves stays, and so does one of which there is news: a fact that
    nobody has taken up yet."""
    own = next((pool for pool in pools if pool.name == name), None)
    news = {fact.job_id for fact in snapshot.facts.values()}
    found: list[tuple[Job, Fact]] = []
    for job in snapshot.jobs.values():
        if not job.wants_runner or job.job_id in news or (own is not None and not lacking(job.labels, own)):
            continue
        serving = match(job.labels, pools)
        if serving is not None:
            found.append((job, fact_about(job, action="queued", delivery="moved", pool=serving.name)))
    return found


def left_behind(snapshot: Snapshot) -> list[Job]:
    """The rows of jobs that have left this pool for another: earlier versions marked them as no demand and kept them. A job that
    a filter keeps from being demand has a runner, or is over: no fact makes it queued."""
    return [job for job in snapshot.jobs.values() if job.state is JobState.QUEUED and not job.demand]


def adoptions(now: datetime, config: Config, unserved: Iterable[Entity]) -> list[tuple[str, Fact | None]]:
    """The keys of those `unserved` rows whose labels a pool has now, the newest job first: of old ones more are over. Each with the
    fact that brings its job to that pool, None where it is no demand. A row that cannot be read is left alone."""
    found: list[tuple[datetime, str, Fact | None]] = []
    for entity in unserved:
        try:
            fact = fact_from_columns(entity.columns)
        except ValueError:
            continue
        pool = match(fact.labels, config.pools)
        if pool is not None:
            found.append((fact.created_at, entity.row, _adopted(now, fact, pool, config)))
    found.sort(key=lambda one: one[:2], reverse=True)
    return [(row, fact) for _, row, fact in found]


def _adopted(now: datetime, fact: Fact, pool: PoolConfig, config: Config) -> Fact | None:
    """The fact as one that comes late: nobody recorded whether its job has got a runner elsewhere, so GitHub is asked first.

    Owner and allow-list are those of the file now. Whether the repository is public, or belongs to the enterprise, the row does not
    say: there the answer stands that the filters gave when it came.
    """
    if not fact.demand or fact.action not in ("queued", "waiting"):
        return None
    if why_no_demand(Delivery(fact, public=False, enterprise=config.github.owner), config.github):
        return None
    late = max(now, fact.created_at + LATE + timedelta(seconds=1))
    return replace(fact, pool=pool.name, target=config.github.target(fact.repository), received_at=late)
