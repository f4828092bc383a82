"""Which act belongs to which row, and all of a pass's acts at once. One runner's trouble never stops another's act."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from datetime import datetime

from runnerpool.acting import Acting
from runnerpool.capacity import TROUBLE_REST
from runnerpool.errors import Gone, Misconfigured, PoolError, RetryLater
from runnerpool.launch import births, create
from runnerpool.model import Fact, Job, Runner, RunnerState, fact_about
from runnerpool.ports import JobReport
from runnerpool.register import bind
from runnerpool.withdraw import delete, retire

log = logging.getLogger(__name__)
S = RunnerState

AT_ONCE = 24
"""Acts under way at one time in one process; GitHub allows 100 concurrent requests to all processes together."""


async def act(acting: Acting, runners: Sequence[Runner], asks: Sequence[Job], reruns: Sequence[Job] = ()) -> None:
    """Does what these claimed rows ask for, asks GitHub about some jobs and to run others again. Returns when all is done,
    refused or put off."""
    born = await births(acting, list(runners))
    gate = asyncio.Semaphore(AT_ONCE)

    async def gated(one: Awaitable[None]) -> None:
        async with gate:
            await one

    again = [gated(_rerun(acting, job)) for job in reruns]
    acts = [gated(_guarded(acting, runner, born=born.get(runner.name))) for runner in runners]
    results = await asyncio.gather(*acts, *(gated(_ask(acting, job)) for job in asks), *again, return_exceptions=True)
    defects = [result for result in results if isinstance(result, Exception)]
    if defects:
        raise ExceptionGroup(f"pool {acting.pool.name}: {len(defects)} of {len(results)} acts failed unexpectedly", defects)


async def _guarded(acting: Acting, runner: Runner, *, born: datetime | None) -> None:
    """One act. Its runner's trouble becomes the row's reason and its not-before time."""
    try:
        await _act(acting, runner, born=born)
    except RetryLater as error:
        await acting.put_off(runner, str(error), error.after)
    except Misconfigured as error:
        await acting.put_off(runner, str(error), TROUBLE_REST)
    except PoolError as error:
        await acting.put_off(runner, f"{type(error).__name__}: {error}", None)


async def _act(acting: Acting, runner: Runner, *, born: datetime | None) -> None:
    match runner.state:
        case S.REQUESTED | S.CREATING:
            await create(acting, runner, born=born)
        case S.BINDING:
            await bind(acting, runner)
        case S.RETIRING:
            await retire(acting, runner)
        case S.DELETING:
            await delete(acting, runner)
        case _:
            raise AssertionError(f"runner {runner.name}: no act belongs to the state {runner.state}")


async def _ask(acting: Acting, job: Job) -> None:
    """Asks GitHub how a job stands, and believes the answer. An answer that does not come changes nothing, and a 404 is an
    answer only where other jobs of the repository can be read: a narrower permission is answered with 404, a lost one with 403."""
    github = acting.outside.github
    try:
        report = await acting.ask_github(lambda: github.get_job(job.repository, job.job_id))
        gone = report is None and await acting.ask_github(lambda: github.reads_jobs(job.repository))
    except PoolError as error:
        log.warning("job %s of %s: GitHub, asked how it stands, gave no answer: %s", job.job_id, job.repository, error)
        if not isinstance(error, Misconfigured) or error.everywhere:
            return
        report, gone = None, False
    now = acting.clock()
    unseen = report is None and not gone
    if unseen:
        log.warning("job %s: GitHub shows no job of %s, so the job is kept as it is", job.job_id, job.repository)

    def noted(row: Job) -> Job:
        missing_since, unseen_since = row.missing_since or now, row.unseen_since or now
        return replace(row, missing_since=missing_since if gone else None, unseen_since=unseen_since if unseen else None)

    await acting.ledger.revise_job(job, noted)
    if report is None:
        return
    if report.status == "queued" and job.queued and job.trusted:
        return
    if report.status not in ("queued", "in_progress", "completed"):
        return  # it still waits for its approval
    fact = told(job, report)
    await acting.ledger.add_fact(job.pool, f"api-{int(now.timestamp())}", fact)


async def _rerun(acting: Acting, job: Job) -> None:
    """Asks once. Its row says since when, so whatever becomes of the answer, nobody asks again before some minutes are over."""
    try:
        answer = await _why_not_again(acting, job)
        if not answer:
            await acting.token("github-writes")
            await acting.outside.github.rerun_job(job.repository, job.job_id)
            answer = "GitHub runs it again"
    except Gone as error:
        answer = f"GitHub does not run it again: {error}"
    except PoolError as error:
        log.warning("job %s of %s was lost to an eviction and is not run again yet: %s", job.job_id, job.repository, error)
        return
    log.info("job %s of %s, lost to an eviction: %s", job.job_id, job.repository, answer)
    await acting.ledger.revise_job(job, lambda row: replace(row, rerun=answer[:300]))


async def _why_not_again(acting: Acting, job: Job) -> str:
    """Why its loss is not news, "" when it is: it was known when the job's row went to the history. A delivery that is sent once
    more makes such a job a new one, and the name of its VM is kept for longer than its row."""
    try:
        earlier = await acting.ledger.archived(job.pool, (job.completed_at or job.received_at).date(), job.job_id)
    except ValueError as error:
        return f"it is not run again: whether it was before is in its row in the history, which cannot be read: {error}"
    known = earlier is not None and earlier.evicted is not None
    return (
        "it is not run again: that it was lost was known before its row went to the history, and this is told once more"
        if known
        else ""
    )


def told(job: Job, report: JobReport) -> Fact:
    """What the API said of a job, as a fact beside those that the webhooks bring. It is believed, so it counts as in time."""
    return fact_about(
        job,
        action=report.status,
        delivery="api",
        received_at=job.created_at if report.status == "queued" else job.received_at,
        started_at=report.started_at,
        completed_at=report.completed_at,
        conclusion=report.conclusion,
        runner_name=report.runner_name,
        runner_id=report.runner_id,
    )
