"""Jobs that were lost because Azure took a spot VM away, and their second chance on a regular one. Pure.

A job is lost to an eviction when its spot VM is gone while it ran, or when it did not succeed on a VM that Azure gave notice to:
GitHub then tells of it as failed or cancelled, like any other. The notice is read by the VM's agent; a runner that ends its job
between the notice and the next poll is found out as its VM is deleted (`withdraw.py`). A delivery may come long after the VM's
row has gone, so its name is kept in the pool's head for a while. The job is re-run once, where the pool file says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from runnerpool.config import PoolConfig
from runnerpool.lifecycle import NOTICE
from runnerpool.model import Head, Job, JobState, Runner, RunnerState, Snapshot
from runnerpool.ports import Vm

LOST = ("failure", "cancelled")
"""How GitHub tells of a job whose runner was killed: https://github.com/actions/runner/pull/1792 and
https://github.com/runs-on/runs-on/issues/249."""
AGAIN = timedelta(minutes=5)
"""GitHub re-runs no job of a run of which another job is still running, so it is asked until it does."""
PATIENCE = timedelta(hours=24)
"""How long after the job's end GitHub is asked to re-run it."""
TAKEN_KEPT = PATIENCE
"""How long the name of a spot VM outlives its row: a delivery that names it comes as late as our webhook is out of reach, and
after that nothing is run again."""
TAKEN = 100
"""Names kept at most: the head of a pool is read and written often, and must stay small."""


def lost(jobs: Mapping[str, Job], runners: Mapping[str, Runner], taken: Mapping[str, datetime]) -> dict[str, Job]:
    """The jobs that are now known to have been lost to an eviction, with the reason on them. `taken` are the names of spot VMs
    that were taken away and have no row any more."""
    found: dict[str, Job] = {}
    for job in jobs.values():
        if job.runner_name is None or job.evicted is not None:
            continue
        runner = runners.get(job.runner_name)
        vanished = job.runner_name in taken if runner is None else _taken_away(runner) and runner.busy_at is not None
        failed = job.state is JobState.COMPLETED and job.conclusion in LOST
        if vanished and (failed or job.state is JobState.IN_PROGRESS):
            found[job.job_id] = replace(job, evicted=f"its spot VM {job.runner_name} was taken away")
        elif failed and runner is not None and _within_notice(job, runner):
            found[job.job_id] = replace(job, evicted=f"Azure gave notice to its spot VM {job.runner_name}")
    return found


def _taken_away(runner: Runner) -> bool:
    """A runner whose job is over is deleted, and then its VM is absent, too: but by our doing."""
    return runner.spot and runner.absent_since is not None and runner.state is not RunnerState.DELETING


def remembered(now: datetime, head: Head, forgotten: Iterable[Runner]) -> Head:
    """The head with the names of those forgotten that were taken away and may have been given a job that nobody has told of yet."""
    names = [runner.name for runner in forgotten if _taken_away(runner) and runner.minted_at is not None]
    if not names:
        return head
    fresh = {name: at for name, at in head.taken.items() if now - at < TAKEN_KEPT} | dict.fromkeys(names, now)
    return replace(head, taken=dict(list(fresh.items())[-TAKEN:]))


def _within_notice(job: Job, runner: Runner) -> bool:
    """Whether the job ended about when Azure was to take its VM. What runs on for longer was spared, and fails by itself."""
    if not runner.spot or runner.eviction_at is None or job.completed_at is None:
        return False
    return job.completed_at - runner.eviction_at < NOTICE


def lost_elsewhere(now: datetime, pools: Mapping[str, Snapshot], direct: Mapping[str, Vm | None]) -> list[tuple[Job, str]]:
    """The jobs, as their rows are, that are now known to have been lost on another pool's VM; and how each of them was.

    GitHub gives a job to any runner that has its labels, and a pool's own pass reads its own rows only. `direct` are the answers
    to direct GETs, None for a 404: a VM first found missing in this pass may have no row any more in the next one.
    """
    runners = {name: _as_found(now, runner, direct) for pool in pools.values() for name, runner in pool.runners.items()}
    taken = {name: at for pool in pools.values() for name, at in pool.head.taken.items()}
    found: list[tuple[Job, str]] = []
    for pool in pools.values():
        abroad = {job_id: job for job_id, job in pool.jobs.items() if job.runner_name and job.runner_name not in pool.runners}
        found += [(pool.jobs[job_id], job.evicted or "") for job_id, job in lost(abroad, runners, taken).items()]
    return found


def _as_found(now: datetime, runner: Runner, direct: Mapping[str, Vm | None]) -> Runner:
    """With its VM's absence, where a direct GET has just proved it: no PUT can bring it any more."""
    missing = runner.name in direct and direct[runner.name] is None and (runner.put_until is None or now >= runner.put_until)
    return replace(runner, absent_since=now) if missing and runner.absent_since is None else runner


def second_attempts(jobs: Mapping[str, Job]) -> dict[str, Job]:
    """The jobs that are the second attempt at one that was lost: a new job of the same run and name, with a higher attempt."""
    asked = [job for job in jobs.values() if job.rerun_at is not None and job.run_id]
    found: dict[str, Job] = {}
    for job in jobs.values() if asked else ():
        for first in asked:
            same = (job.run_id, job.job_name, job.repository) == (first.run_id, first.job_name, first.repository)
            if same and job.run_attempt > first.run_attempt and job.rerun_of is None:
                found[job.job_id] = replace(job, rerun_of=first.job_id)
    return found


def why_rerun(now: datetime, pool: PoolConfig, job: Job, jobs: Mapping[str, Job]) -> str:
    """Why GitHub should be asked now to run this job again, "" when it should not. A second attempt gets no third."""
    if not pool.rerun_evicted or not waits_for_rerun(now, job) or not job.demand:
        return ""
    if any(other.rerun_of == job.job_id for other in jobs.values()):
        return ""  # the answer was lost, the effect was not
    due = job.rerun_at is None or now - job.rerun_at >= AGAIN
    return f"{job.evicted}: it is run again on a regular VM" if due else ""


def waits_for_rerun(now: datetime, job: Job) -> bool:
    """Whether this job was lost, could be run again, and GitHub has not yet said yes or no."""
    if job.evicted is None or job.rerun_of is not None or job.rerun is not None or job.completed_at is None:
        return False
    return job.conclusion in LOST and now - job.completed_at < PATIENCE
