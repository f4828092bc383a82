"""Evictions in the whole app over real processes: with notice, and on another pool's VM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runnerpool.model import Job
from tests.e2e_fixture import Deployment, deployed, fast_clock, pool

RATE = 30.0
"""The reconcile pass comes every second."""
LOST_AFTER = 4.0
"""Real seconds after which GitHub gives up a job whose runner has gone."""


@pytest.fixture(autouse=True)
def hurry() -> Iterator[None]:
    with fast_clock(RATE):
        yield


@pytest.fixture
async def app(hurry: None, tmp_path: Path) -> AsyncIterator[Deployment]:
    spot = {"sizes": ["Standard_D4ads_v5"], "os_disk": {"ephemeral": True}, "priority": "spot"}
    rich = {"labels": ["self-hosted", "plain", "big"], "vm": spot, "keep_registered": True, "minimum_warm_vms": 1}
    pools = [pool("plain", rerun_evicted=True), pool("rich", **rich), pool("spot", vm=spot, rerun_evicted=True)]
    async with deployed(tmp_path, pools, lost_after=LOST_AFTER) as deployment:
        yield deployment


async def row(app: Deployment, name: str, job_id: int) -> Job | None:
    return (await app.ledger.read_pool(name)).jobs.get(str(job_id))


async def evict(app: Deployment, vm: str, notice: float = 0.0) -> None:
    async with app.http.post(f"{app.stack.arm_url}/_admin/evict", json={"name": vm, "notice": notice}) as answer:
        assert answer.status == 204


@pytest.mark.timeout(180)
async def test_a_job_is_run_again_that_was_lost_with_another_pools_vm(app: Deployment) -> None:
    world = app.stack.github.world
    await app.until(lambda: any(runner.online for runner in world.runners.values()))
    [job_id] = app.queue("plain", seconds=6.0)
    await app.until(lambda: world.jobs[job_id].status == "in_progress")
    vm = app.ran_on(job_id)
    assert vm in app.vms("rich")  # GitHub gives a job to whoever has its labels and is idle
    await evict(app, vm)

    async def marked() -> bool:
        found = await row(app, "plain", job_id)
        return found is not None and found.evicted == f"its spot VM {vm} was taken away"

    await app.until(marked)
    run = world.jobs[job_id].run_id
    await app.until(lambda: [job.attempt for job in world.jobs.values() if job.run_id == run] == [1, 2])
    await app.until(lambda: all(job.status == "completed" for job in world.jobs.values()))
    assert [job.conclusion for job in world.jobs.values() if job.run_id == run] == ["failure", "success"]


@pytest.mark.timeout(180)
async def test_a_job_that_fails_after_its_vm_was_given_notice_is_run_again_once(app: Deployment) -> None:
    world = app.stack.github.world
    [job] = world.queue(app.stack.repositories[0], ["self-hosted", "spot"], seconds=8.0, outcome="failure")
    await app.until(lambda: job.status == "in_progress")
    noticed = asyncio.create_task(evict(app, job.runner_name or "", notice=120.0))
    await app.until(lambda: job.status == "completed")

    async def marked() -> bool:
        found = await row(app, "spot", job.id)
        return found is not None and found.evicted == f"Azure gave notice to its spot VM {job.runner_name}"

    await app.until(marked)
    await app.until(lambda: [one.status for one in world.jobs.values()] == ["completed", "completed"])
    [_, again] = world.jobs.values()
    assert (again.attempt, again.conclusion) == (2, "failure")  # which it fails by itself, and so for good
    await noticed  # the VM was deleted first
    entries = {entry["vm"]: entry for entry in app.stack.arm.estate.log if entry["event"] == "accepted"}
    assert [entries[one.runner_name or ""].get("detail", "") for one in (job, again)] == ["spot", ""]
    assert not app.events("evicted")
    await app.until(lambda: not app.vms("spot"))
    assert len(world.jobs) == 2
