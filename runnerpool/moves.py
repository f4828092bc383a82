"""Which queued jobs lie in the wrong place because the pool file has changed, and what brings them to the right one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from runnerpool.config import PoolConfig
from runnerpool.labels import lacking, match
from runnerpool.model import Fact, Job, JobState, Snapshot, fact_about


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


def left_behind(name: str, snapshot: Snapshot, pools: Sequence[PoolConfig]) -> list[Job]:
    """The rows of jobs that have left the pool `name` for another: earlier versions marked them as no demand and kept them. A job
    that a filter keeps from being demand has a runner, or is over: no fact makes it queued."""
    if any(pool.name == name for pool in pools):
        return []
    return [job for job in snapshot.jobs.values() if job.state is JobState.QUEUED and not job.demand]
