"""Jobs that were lost because Azure took a spot VM away, and their second chance on a regular one. Pure.

A job is lost to an eviction when its spot VM is gone while it ran, or when it did not succeed on a VM whose agent had read an
eviction notice: GitHub then tells of it as failed or cancelled, like any other. It is re-run once, where the pool file says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from runnerpool.config import PoolConfig
from runnerpool.model import Job, JobState, Runner, RunnerState

LOST = ("failure", "cancelled")
"""How GitHub tells of a job whose runner was killed: https://github.com/actions/runner/pull/1792 and
https://github.com/runs-on/runs-on/issues/249."""
AGAIN = timedelta(minutes=5)
"""GitHub re-runs no job of a run of which another job is still running, so it is asked until it does."""
PATIENCE = timedelta(hours=24)
"""How long after the job's end GitHub is asked to re-run it."""


def lost(jobs: Mapping[str, Job], runners: Mapping[str, Runner]) -> dict[str, Job]:
    """The jobs that are now known to have been lost to an eviction, with the reason on them."""
    found: dict[str, Job] = {}
    for job in jobs.values():
        runner = runners.get(job.runner_name or "")
        if runner is None or not runner.spot or job.evicted is not None:
            continue
        # A runner whose job is over is deleted, and then it is absent, too: but by our doing.
        vanished = runner.absent_since is not None and runner.busy_at is not None and runner.state is not RunnerState.DELETING
        failed = job.state is JobState.COMPLETED and job.conclusion in LOST
        if vanished and (failed or job.state is JobState.IN_PROGRESS):
            found[job.job_id] = replace(job, evicted=f"its spot VM {runner.name} was taken away")
        elif runner.eviction_at is not None and failed:
            found[job.job_id] = replace(job, evicted=f"Azure gave notice to its spot VM {runner.name}")
    return found


def second_attempts(jobs: Mapping[str, Job]) -> dict[str, Job]:
    """The jobs that are the second attempt at one that was lost: a new job of the same run and name, with a higher attempt."""
    asked = [job for job in jobs.values() if job.rerun_at is not None and job.run_id]
    found: dict[str, Job] = {}
    for job in jobs.values():
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
