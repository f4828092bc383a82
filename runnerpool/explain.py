"""Why a job waits, in one sentence for the developer who asks. Derived from the rows at the time of asking. Pure.

Times of day are UTC."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from runnerpool.capacity import POOL, Rung, ladder, next_rung, resting, resting_targets
from runnerpool.config import PoolConfig, has_departed
from runnerpool.demand import FREE_TRIES, SPACING, demand, ignored_by_github, may_make, waits_for
from runnerpool.labels import lacking
from runnerpool.lifecycle import World, serves
from runnerpool.model import Head, Job, JobState, Rest, Runner, RunnerState

S = RunnerState


def reasons(now: datetime, pool: PoolConfig, head: Head, world: World, unreadable: Sequence[str] = ()) -> dict[str, str]:
    """A sentence for every job that has no runner yet, by job id, oldest first. `unreadable` are the keys of damaged rows."""
    waiting = sorted(
        (job for job in world.jobs.values() if job.state in (JobState.QUEUED, JobState.WAITING) and job.demand),
        key=lambda job: (job.created_at, job.job_id),
    )
    refusals = resting_targets(head.rests, now)
    need = demand(now, world, pool, refusals)
    made = {
        runner.job_id: runner
        for runner in world.runners.values()
        if runner.job_id and serves(now, runner, world.usual) and not ignored_by_github(now, runner, need.waiting)
        if runner.target in (None, world.jobs[runner.job_id].target if runner.job_id in world.jobs else None)
    }
    full = need.counting >= pool.maximum_pool_size
    short = {job.job_id for job in need.uncovered} | {job.job_id for job, made_for_it in need.second if made_for_it is None}
    refused = POOL in head.rests and head.rests[POOL].until > now  # which stops registrations, too
    damaged = next((row for row in unreadable if row.startswith("runner:")), None)
    ahead = 0
    sentences: dict[str, str] = {}
    for job in waiting:
        aside = _aside(pool, job) or (f"pool {pool.name} is being drained" if head.draining else "")
        if aside:
            sentences[job.job_id] = aside
            continue
        refusal = refusals.get(job.target)
        mine = made.get(job.job_id)
        if refusal is not None and (mine is None or mine.minted_at is None):
            sentences[job.job_id] = _refused_there(job, refusal)
        elif mine is not None:
            sentences[job.job_id] = _on_its_way(now, pool, head, mine)
        elif job.job_id not in short and may_make(now, job) and not refused:
            sentences[job.job_id] = "a runner that fits is on its way or idle; GitHub has not given it the job yet"
        elif damaged:
            sentences[job.job_id] = f"the row {damaged} cannot be read, so nobody can count the VMs: mend or delete it"
        else:
            sentences[job.job_id] = _held_up(now, pool, head, job, world, full=full, ahead=ahead)
            ahead += 1
    return {job_id: f"{sentence}{_unseen(world.jobs[job_id])}" for job_id, sentence in sentences.items()}


def _aside(pool: PoolConfig, job: Job) -> str:
    """Why a job is no demand at all, "" when it is."""
    if job.missing_since is not None:
        return f"GitHub has answered 404 for it since {job.missing_since:%H:%M} UTC: it was deleted"
    if job.state is JobState.WAITING:
        return "it waits for an approval at GitHub"
    if not job.trusted:
        return "its delivery came more than 30 minutes late; GitHub is asked whether it is still queued"
    if not waits_for(pool, job):
        return f"pool {pool.name} lacks [{', '.join(lacking(job.labels, pool))}] now; {_moves(job)}"
    return ""


def _moves(job: Job) -> str:
    return f"the job moves to a pool that has all of [{', '.join(job.labels)}] as soon as there is one"


def _unseen(job: Job) -> str:
    """What keeps GitHub's word about a job from us, "" when nothing does. The job is kept as it is meanwhile."""
    if job.unseen_since is None:
        return ""
    since = f"{job.unseen_since:%H:%M} UTC"
    return f"; GitHub has shown no job of {job.repository} since {since}: the credential lacks 'Actions: read' there"


def _refused_there(job: Job, refusal: Rest) -> str:
    return f"GitHub registers no runner for {job.repository}, and is asked again at {refusal.until:%H:%M}: {refusal.code}"


def _on_its_way(now: datetime, pool: PoolConfig, head: Head, runner: Runner) -> str:
    refused = _refused(now, pool, head, Rung(runner.size, runner.zone, runner.spot), regular=bool(runner.regular))
    since = f"since {int((now - runner.since).total_seconds())} s"
    trouble = f" ({runner.reason})" if runner.not_before is not None and runner.not_before > now else ""
    match runner.state:
        case S.REQUESTED | S.CREATING:
            return f"{refused}its VM {runner.name} is being created {since}{trouble}"
        case S.BOOTING:
            return f"{refused}its VM {runner.name} has been booting {since}"
        case S.READY | S.BINDING:
            return f"its VM {runner.name} is being registered {since}{trouble}"
        case _:
            return f"its runner {runner.name} is online {since}; GitHub has not given it the job yet"


def _refused(now: datetime, pool: PoolConfig, head: Head, tried: Rung, *, regular: bool) -> str:
    """What Azure has no room for among the offers before the one that is tried now, the last of them; "" where nothing."""
    offers = ladder(pool.vm, regular=regular)
    before = offers[: offers.index(tried)] if tried in offers else []
    resting_now = [(offer, rest) for offer in before if (rest := resting(offer, head.rests, now))]
    if not resting_now:
        return ""
    offer, rest = resting_now[-1]
    same = (offer.size, offer.spot) == (tried.size, tried.spot)
    other = f"zone {tried.zone}" if same else f"{'regular ' if offer.spot > tried.spot else ''}{tried}"
    return f"no capacity for {offer} until {rest.until:%H:%M}, trying {other} ({rest.code}); "


def _no_room(now: datetime, pool: PoolConfig, head: Head, *, regular: bool) -> str:
    """Why no offer may be tried now."""
    rests = [(rest.until, rung, rest.code) for rung in ladder(pool.vm, regular=regular) if (rest := resting(rung, head.rests, now))]
    until, rung, _ = min(rests, key=lambda rest: rest[0])
    codes = ", ".join(sorted({code for _, _, code in rests}))
    if POOL in head.rests and head.rests[POOL].until > now:
        return f"pool {pool.name} gets no VM until {until:%H:%M}, when it is tried again: {codes}"
    return f"no capacity for {rung} until {until:%H:%M}, when it is tried again; nothing else in the pool's order is left: {codes}"


def _last_failure(head: Head, job: Job) -> str:
    mine = [failure for failure in head.failures if failure.job_id == job.job_id]
    return f" (of the last one {mine[-1].name}: {mine[-1].reason})" if mine else ""


def _held_up(now: datetime, pool: PoolConfig, head: Head, job: Job, world: World, *, full: bool, ahead: int) -> str:
    if has_departed(pool):
        return f"pool {pool.name} has left the pool file; {_moves(job)}"
    if head.paused:
        return f"pool {pool.name} is paused"
    regular = job.rerun_of is not None
    rung = next_rung(pool.vm, head.rests, now, regular=regular)
    if rung is None:
        return _no_room(now, pool, head, regular=regular)
    if full:
        return f"pool {pool.name} is at its maximum of {pool.maximum_pool_size} VMs; {ahead} jobs are ahead"
    if any(ignored_by_github(now, runner, {job.target: [job]}) for runner in world.runners.values()):
        return "runners that fit are online and idle, and GitHub does not use them: does the runner group admit this repository?"
    if not may_make(now, job):
        minutes = int(SPACING.total_seconds() // 60)
        vain = f"{job.vms_made} VMs were made for it in vain{_last_failure(head, job)}"
        return f"{vain}; after {FREE_TRIES} comes one more every {minutes} minutes"
    return f"{_refused(now, pool, head, rung, regular=regular)}the next planning pass makes a VM for it"
