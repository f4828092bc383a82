"""Everything at once, at the outer skin: real processes killed at random for a minute while GitHub and Azure misbehave at random.

Then all of that stops, and the world must come to rest as if it had never been: see `judged` and `Deployment.left_over`. A
seed is played by `CHAOS_SEED=7 python -m pytest tests/test_chaos.py`; `-s` shows what it did.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ResourceNotFoundError

from runnerpool.app import LAST_ATTEMPT
from sandbox import clock
from sandbox.demo_records import Order, Records
from tests.e2e_fixture import Deployment, deployed, fast_clock
from tests.storm import Storm, pools

RATE = 30.0
MINUTE = 60.0
REST = 150.0
"""Real seconds within which all is at rest again, 75 minutes of its clock: an agent that fell silent in the last second is
given up after 19 minutes, a VM that never came after 20, and the jobs that waited for them begin anew. On a slow machine a pass
takes long by that clock."""
LOST_AFTER = 15.0
"""Real seconds after which GitHub gives up a job whose runner has gone."""

SEED = int(os.environ.get("CHAOS_SEED", "1"))


@pytest.fixture(autouse=True)
def hurry() -> Iterator[None]:
    with fast_clock(RATE):
        yield


@pytest.fixture
async def app(hurry: None, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path, pools(), seed=SEED, lost_after=LOST_AFTER, forked=True) as deployment:
        yield deployment


@pytest.mark.timeout(300)
async def test_after_a_minute_of_faults_and_kills_every_job_is_over_and_nothing_is_left_behind(
    app: Deployment, tmp_path: Path
) -> None:
    storm, log = Storm(app, SEED), tmp_path / "host.log"
    await storm.rage(MINUTE)

    async def settled() -> bool:
        return not await unsettled(app, storm, log)

    with contextlib.suppress(TimeoutError):  # what is wrong then is told below
        await app.until(settled, within=REST, pause=0.5)
        await another_pass(app)
    records = await app.records("jobs,runners,deliveries")
    broken, remainder = deleted_in_mid_job(records, storm.muted)
    wrong = list(broken.values()) + await unsettled(app, storm, log)
    story = f"{storm}, {len(lost_to_evictions(records))} jobs lost to evictions, rule 1's remainder: {len(remainder)} jobs"
    print(f"\n{story}")
    assert not wrong, f"{story}; not at rest within {REST:.0f} s: {wrong}; the app's log is {log}"


async def another_pass(app: Deployment) -> None:
    """Waits until a pass that began after this call has ended: rest has to last."""
    begun = clock.now()

    async def looked_at() -> bool:
        [beat] = [entity for entity in await app.ledger.app_rows() if entity.row == "heartbeat"]
        told = json.loads(str(beat.columns["body"]))
        return datetime.fromisoformat(told["at"]) - timedelta(seconds=told["seconds"]) > begun

    await app.until(looked_at)


# ---------------------------------------------------------------------------------------------- what is at rest


async def unsettled(app: Deployment, storm: Storm, log: Path) -> list[str]:
    """What keeps the world from being at rest."""
    records = await app.records("jobs,runners,deliveries")
    nobody = Order(pool_of={}, cancelled=frozenset(), replayed={})
    _, remainder = deleted_in_mid_job(records, storm.muted)
    owed = {job_id: pool for job_id, pool in app.pool_of.items() if job_id not in remainder}
    found = [*jobs_not_over(records, owed, app.cancelled), *records.faults(nobody, app.stack.config.pools)]
    return found + await app.left_over(records) + await messages_left(app, storm, log)


def jobs_not_over(records: Records, pool_of: Mapping[int, str], cancelled: Collection[int]) -> Iterator[str]:
    """Jobs that still go on, ended as they should not, or were lost. What an eviction took is run again, once, where GitHub's
    word on which VM it ran on came through."""
    for job in records.jobs.values():
        if job["status"] != "completed":
            yield f"job {job['id']} is {job['status']}"
    gone = lost_to_evictions(records)
    for job_id, pool in pool_of.items():
        job = records.jobs[job_id]
        if job_id in gone:
            job = records.second_attempt(job_id) or job
            if job["id"] == job_id and told_of_runner(records, job_id):
                yield f"job {job_id} of {pool} was lost with {job['runner_name']} and is not run again"
        elif job_id in cancelled:
            if job["conclusion"] != "cancelled":
                yield f"job {job_id} was cancelled and ended as {job['conclusion']}"
            continue
        if job["id"] in gone:
            continue
        if job["conclusion"] != "success" or records.pool_of_vm.get(job["runner_name"]) != pool:
            yield f"job {job['id']} of {pool} ended as {job['conclusion']} on {job['runner_name']}"


def lost_to_evictions(records: Records) -> set[int]:
    """The jobs whose spot VM was taken away while they ran."""
    evicted = [(entry["vm"], entry["at"]) for entry in records.log if entry["event"] == "evicted"]
    return {job["id"] for job in records.jobs.values() for name, at in evicted if job["runner_name"] == name and runs_at(job, at)}


def runs_at(job: Mapping[str, Any], at: str) -> bool:
    moment = datetime.fromisoformat(at)
    begun, over = (datetime.fromisoformat(job[name]) if job[name] else None for name in ("started_at", "completed_at"))
    return begun is not None and begun <= moment and (over is None or moment < over)


def told_of_runner(records: Records, job_id: int, before: datetime | None = None) -> bool:
    """Whether a delivery that names the job's runner got through, before a moment where one is given."""
    return any(
        one["job"] == job_id and one["action"] in ("in_progress", "completed") and 200 <= one["status_code"] < 300
        for one in records.deliveries
        if before is None or datetime.fromisoformat(one["delivered_at"]) < before
    )


async def messages_left(app: Deployment, storm: Storm, log: Path) -> list[str]:
    """Messages that wait, and poison without a row, beyond what was killed in its last attempt before it could write one."""
    async with app.messages("job-demand") as queue, app.messages("job-demand-poison") as poison:
        waiting = (await queue.get_queue_properties()).approximate_message_count
        buried: list[bytes] = []
        with contextlib.suppress(ResourceNotFoundError):  # the queue comes with its first message
            buried = [base64.b64decode(message.content) for message in await poison.peek_messages(max_messages=32)]
    entities = await app.ledger.app_rows()
    rows = Counter(str(entity.columns["message"]).encode() for entity in entities if entity.row.startswith("poison:"))
    found = [f"{waiting} messages wait"] if waiting else []
    untold = list((Counter(buried) - rows).elements())
    found += [f"no row tells of the poison {body!r}" for body in untold] if len(untold) > cut_short(log) else []
    return found + [f"{body!r} was not buried" for body in storm.spoiled if body not in buried]


def cut_short(log: Path) -> int:
    """How many messages the host buried unread, as they came back once too often: the end of their last attempt was not seen."""
    return sum(int(times) > LAST_ATTEMPT for times in re.findall(r"failed (\d+) times: to ", log.read_text()))


# ---------------------------------------------------------------------------------------------- what must never have been


def deleted_in_mid_job(records: Records, muted: Collection[str]) -> tuple[dict[int, str], dict[int, str]]:
    """The jobs during which Azure accepted the deletion of their VM, by id: those that break rule 1, and those that it knowingly
    leaves, where GitHub had dropped the registration in mid-job, no delivery told of the job, and the agent was silent."""
    broken: dict[int, str] = {}
    remainder: dict[int, str] = {}
    for entry in records.log:
        if entry["event"] != "delete accepted":
            continue
        for job in records.jobs.values():
            if job["runner_name"] == entry["vm"] and runs_at(job, entry["at"]):
                moment, dropped = datetime.fromisoformat(entry["at"]), job["deregistered_at"]
                left = dropped and entry["vm"] in muted and not told_of_runner(records, job["id"], before=moment)
                (remainder if left else broken)[job["id"]] = f"VM {entry['vm']} was deleted while it ran job {job['id']}"
    return broken, remainder


# ---------------------------------------------------------------------------------------------- the judgement itself

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def one_job(*, dropped: bool = True, told: int = 0, ended: int | None = None, event: str = "delete accepted") -> Records:
    """A job that began at noon on `vm`, to which the event happened a minute later. `told`: the status of its delivery."""

    def at(minutes: int) -> str:
        return (NOON + timedelta(minutes=minutes)).isoformat()

    job = {"id": 7, "run_id": 1, "attempt": 1, "name": "build", "runner_name": "vm", "status": "completed", "conclusion": "failure"}
    times = {
        "started_at": at(0),
        "completed_at": None if ended is None else at(ended),
        "deregistered_at": at(0) if dropped else None,
    }
    delivery = {"job": 7, "action": "in_progress", "status_code": told, "delivered_at": at(0)}
    log = [{"event": name, "vm": "vm", "pool": "warm", "at": at(minute)} for name, minute in (("accepted", -5), (event, 1))]
    return Records(
        arm={"vms": [], "peaks": {}, "log": log}, github={"jobs": [job | times], "runners": [], "deliveries": [delivery]}
    )


@pytest.mark.parametrize(
    ("records", "muted", "found"),
    [
        (one_job(), ["vm"], "remainder"),
        (one_job(told=202), ["vm"], "broken"),
        (one_job(dropped=False), ["vm"], "broken"),
        (one_job(), [], "broken"),
        (one_job(ended=1), [], "nothing"),
        (one_job(ended=2), [], "broken"),
        (one_job(event="evicted"), [], "nothing"),
    ],
)
def test_a_deletion_in_mid_job_breaks_rule_1_unless_it_is_the_one_that_rule_1_leaves(
    records: Records, muted: list[str], found: str
) -> None:
    broken, remainder = deleted_in_mid_job(records, muted)
    assert (set(broken), set(remainder)) == {"broken": ({7}, set()), "remainder": (set(), {7}), "nothing": (set(), set())}[found]


@pytest.mark.parametrize(
    ("records", "cancelled", "complaints"),
    [
        (one_job(), [], ["ended as failure"]),
        (one_job(), [7], ["was cancelled and ended as failure"]),
        (one_job(event="evicted", told=202, ended=9), [], ["is not run again"]),
        (one_job(event="evicted"), [], []),
    ],
)
def test_a_job_that_failed_is_lost_unless_nobody_could_know_with_which_vm_it_went(
    records: Records, cancelled: list[int], complaints: list[str]
) -> None:
    found = list(jobs_not_over(records, {7: "warm"}, cancelled))
    assert len(found) == len(complaints)
    assert all(complaint in text for complaint, text in zip(complaints, found, strict=True))
