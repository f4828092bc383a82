"""`python -m runnerpool explain JOB`: why a job waits, or what happened to it, from the ledger and its history."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from runnerpool.console import Deployment
from runnerpool.explain import reasons
from runnerpool.lifecycle import fold
from runnerpool.model import Job, JobState, Runner
from runnerpool.rows import fact_from_columns

DAYS = 14
"""How far back history is looked through, unless told otherwise: one read a pool and day."""
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger holds about one job. `runner` is the VM that ran it, or that was made for it; None once it is gone."""

    job: Job
    reason: str = ""
    runner: Runner | None = None


def job_id_of(text: str) -> str:
    """The id, from itself or from a job's address at GitHub. Raises ValueError."""
    match = re.fullmatch(r"(?:.*/job/)?(\d+)(?:[?#].*)?", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is neither a job's id nor its address (https://github.com/OWNER/NAME/actions/runs/1/job/2)")
    return match[1]


async def tell(deployment: Deployment, job_id: str, now: datetime, days: int = DAYS) -> tuple[int, list[str]]:
    """Exit code and lines."""
    known = await _living(deployment, job_id, now) or await _archived(deployment, job_id, now, days)
    if known is not None:
        return 0, list(_told(known, now))
    unserved = await _unserved(deployment, job_id)
    if unserved:
        return 0, unserved
    return 1, [
        f"job {job_id}: nothing is known of it, neither in the ledger nor in the history of the last {days} days",
        "its delivery may not have come (python -m runnerpool doctor), or been filtered: GitHub shows the app's answer to each",
    ]


async def _living(deployment: Deployment, job_id: str, now: datetime) -> Known | None:
    config, ledger = deployment.config, deployment.ledger
    configured = {pool.name: pool for pool in config.pools}
    for name in await deployment.pools():
        snapshot = await ledger.read_pool(name)
        world = fold(snapshot, now, prefix=config.azure.name_prefix)
        job = world.jobs.get(job_id)
        if job is None:
            continue
        reason = f"pool {name} has left the pool file"
        if name in configured:
            reason = reasons(now, configured[name], snapshot.head, world, snapshot.unreadable).get(job_id, "")
        made = next((runner for runner in world.runners.values() if runner.job_id == job_id), None)
        return Known(job, reason, world.runners.get(job.runner_name or "") or made)
    return None


async def _archived(deployment: Deployment, job_id: str, now: datetime, days: int) -> Known | None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def look(pool: str, back: int) -> Job | None:
        async with gate:
            return await deployment.ledger.archived(pool, (now - timedelta(days=back)).date(), job_id)

    pools = await deployment.pools()
    found = await asyncio.gather(*(look(pool, back) for back in range(days) for pool in pools))
    return next((Known(job) for job in found if job is not None), None)


async def _unserved(deployment: Deployment, job_id: str) -> list[str]:
    told: list[str] = []
    for entity in await deployment.ledger.app_rows(f"unserved:{job_id}:"):
        try:
            fact = fact_from_columns(entity.columns)
        except ValueError as error:
            told.append(f"row {entity.row} cannot be read: {error}")
            continue
        nearest, missing = entity.columns.get("nearest_pool"), entity.columns.get("missing_label")
        told += [
            f"job {job_id} ({fact.job_name}) of {fact.repository}: no pool serves it",
            f"  it asks for [{', '.join(fact.labels)}]"
            + (f"; the nearest pool, {nearest}, lacks {missing}" if nearest else ": name the labels of a pool in its runs-on"),
            f"  received {_moment(fact.received_at)}",
        ]
        return told  # further deliveries say the same
    return told


# ---------------------------------------------------------------------------------------------- in words


def _told(known: Known, now: datetime) -> Iterator[str]:
    job = known.job
    title = " / ".join(filter(None, (job.workflow, job.job_name)))
    yield f"job {job.job_id} ({title}) of {job.repository}, pool {job.pool}, labels [{', '.join(job.labels)}]"
    yield f"  {_state(job, now)}" + (f": {known.reason}" if known.reason else "")
    if not job.demand:
        yield "  it is no demand: its repository is filtered out (github.owner, repositories, allow_public_repositories)"
    yield ""
    before: datetime | None = None
    for at, text in sorted(_events(known), key=lambda event: event[0]):
        after = f"+{max((at - before).total_seconds(), 0):,.0f} s" if before else ""
        yield f"  {_moment(at)}  {after:>9}  {text}"
        before = at


def _state(job: Job, now: datetime) -> str:
    match job.state:
        case JobState.COMPLETED:
            return f"completed, {job.conclusion or 'without a conclusion'}"
        case JobState.IN_PROGRESS:
            return f"in progress on {job.runner_name or 'a runner that GitHub has not named'}"
        case state:
            return f"{state} for {int((now - job.created_at).total_seconds()):,} s"


def _events(known: Known) -> Iterator[tuple[datetime, str]]:
    job, runner = known.job, known.runner
    happened: list[tuple[datetime | None, str]] = [
        (job.created_at, "created at GitHub"),
        (job.received_at, "first delivery received"),
        (job.checked_at, "GitHub was last asked about it"),
        (job.missing_since, "GitHub answered 404 for the first time"),
        (job.unseen_since, f"GitHub answered 404 for the first time, and showed no job of {job.repository} either"),
        (job.last_vm_at, f"the last of {job.vms_made} VMs was asked for"),
        (job.started_at, f"started on {job.runner_name}" if job.runner_name else "started"),
        (job.completed_at, f"completed: {job.conclusion}"),
    ]
    if runner is not None:
        name = runner.name
        happened += [
            (runner.created_at, f"VM {name} planned: {runner.size}{f', zone {runner.zone}' if runner.zone else ''}"),
            (runner.accepted_at, f"VM {name} accepted by Azure"),
            (runner.answered_at, f"VM {name}: its agent answered"),
            (runner.ready_at, f"VM {name} ready"),
            (runner.minted_at, f"VM {name}: registration at {runner.target} begun"),
            (runner.online_at, f"VM {name}: its runner was online"),
            (runner.exited_at, f"VM {name}: its runner program ended"),
            (runner.deregistered_at, f"VM {name}: its registration was gone"),
            (runner.delete_accepted_at, f"VM {name}: Azure accepted its deletion"),
            (runner.since, f"VM {name} is {runner.state}: {runner.reason}"),
        ]
    yield from ((at, text) for at, text in happened if at is not None)


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"
