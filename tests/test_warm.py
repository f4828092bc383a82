"""Warm VMs from end to end: registered or not, bound again, shared by repositories, kept by the clock."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from runnerpool.actions import Bind, Delete, Forget
from runnerpool.config import Config, warm_minimum
from runnerpool.model import Fact, Runner, RunnerState
from runnerpool.ports import AgentPhase
from tests.made_rows import NOW, ORG, clock, config, fact, later, of, planned, pool, runner, status, virtual
from tests.stand_ins import Scene

S = RunnerState
REPO_A, REPO_B = "repo:octo-org/a", "repo:octo-org/b"


def repositories(**changes: object) -> Config:
    """Scope repo: one pool for two repositories, each a target of its own."""
    return config(pool(**changes), scope="repo", repositories=["a", "b"])


def queued(job_id: str, target: str) -> Fact:
    return fact("queued", job_id, target=target, repository=target.removeprefix("repo:"), created_at=clock(), received_at=clock())


async def passes(scene: Scene, count: int = 2) -> dict[str, Runner]:
    for _ in range(count):
        await scene.reconcile()
        await later(seconds=30)
    return await scene.runners()


def dropped(scene: Scene, row: Runner) -> None:
    """GitHub drops an idle registration: its runner exits without a job."""
    assert row.target is not None
    assert scene.hub.registered[row.target].pop(row.name).runner_id == row.github_id
    scene.crew.words[row.name] = status(AgentPhase.EXITED, binding=row.github_id)


# ---------------------------------------------------------------------------------------------- keep_registered


@virtual
async def test_without_keep_registered_a_warm_vm_is_registered_when_a_job_comes_and_not_before() -> None:
    scene = Scene(config(pool(minimum_warm_vms=1)))
    (row,) = (await passes(scene, 4)).values()
    assert (row.state, row.minted_at, scene.hub.count("mint")) == (S.READY, None, 0)
    await scene.hold(fact())
    await scene.wake()
    assert (await scene.runners())[row.name].state is S.REGISTERED
    assert len(scene.crew.handed[row.name]) == 1


@virtual
async def test_with_keep_registered_a_job_finds_its_runner_online() -> None:
    scene = Scene(config(pool(minimum_warm_vms=2, keep_registered=True)))
    rows = (await passes(scene, 3)).values()
    assert {(row.state, row.target) for row in rows} == {(S.REGISTERED, ORG)}
    minted = scene.hub.count("mint")
    await scene.hold(fact())
    await scene.wake()
    assert len(await scene.runners()) == 3  # the waiting job has one of the two, so a third is on its way
    assert scene.hub.count("mint") == minted


# ---------------------------------------------------------------------------------------------- binding again


@virtual
async def test_a_vm_whose_idle_registration_github_dropped_is_bound_again_to_the_same_target_for_the_next_job() -> None:
    scene = Scene(repositories(minimum_warm_vms=1))
    (row,) = (await passes(scene)).values()
    await scene.hold(queued("1", REPO_A))
    await scene.wake()
    bound = (await scene.runners())[row.name]
    assert (bound.state, bound.target) == (S.REGISTERED, REPO_A)

    cancelled = fact("completed", "1", target=REPO_A, runner_name=None, runner_id=0, conclusion="cancelled")
    await scene.hold(cancelled)
    dropped(scene, bound)
    lost = (await passes(scene))[row.name]
    assert (lost.state, lost.target, lost.ready_at) == (S.READY, REPO_A, row.ready_at)

    await scene.hold(queued("2", REPO_A))
    await scene.wake()
    again = (await scene.runners())[row.name]
    assert (again.state, again.target) == (S.REGISTERED, REPO_A)
    assert again.github_id not in (None, bound.github_id)
    assert list(scene.hub.registered[REPO_A]) == [row.name]
    assert len(scene.crew.handed[row.name]) == 2


def test_with_keep_registered_a_repositorys_vm_is_bound_again_and_a_free_one_stays_free() -> None:
    lost, free = runner(S.READY, "lost", target=REPO_A, minted_at=NOW), runner(S.READY, "free")
    binds = of(Bind, planned([lost, free], keep_registered=True, minimum_warm_vms=2, home=None))
    assert [(bind.runner, bind.target) for bind in binds] == [(lost.name, REPO_A)]


# ---------------------------------------------------------------------------------------------- repositories share a pool


@virtual
async def test_each_warm_vm_serves_the_repository_that_needs_it_first_and_no_other() -> None:
    scene = Scene(repositories(minimum_warm_vms=2))
    warm = set(await passes(scene, 3))
    await scene.hold(queued("1", REPO_A))
    await scene.wake()
    await scene.hold(queued("2", REPO_B))
    await scene.wake()
    rows = await scene.runners()
    assert {rows[name].target for name in warm} == {REPO_A, REPO_B}
    assert [len(scene.hub.registered[target]) for target in (REPO_A, REPO_B)] == [1, 1]
    assert all(row.target is None for name, row in rows.items() if name not in warm)  # what takes their place is for anybody


@virtual
async def test_an_idle_vm_of_one_repository_is_no_runner_for_another_also_when_its_registration_is_gone() -> None:
    scene = Scene(repositories())
    idle = runner(S.REGISTERED, target=REPO_A)
    await scene.at_rest(idle)
    await scene.hold(queued("1", REPO_B))
    dropped(scene, idle)
    rows = await passes(scene)
    assert (rows[idle.name].state, rows[idle.name].target) == (S.READY, REPO_A)
    (made,) = (row for name, row in rows.items() if name != idle.name)
    assert (made.target, made.job_id) == (REPO_B, "1")


# ---------------------------------------------------------------------------------------------- by the clock


@virtual
async def test_a_window_warms_the_pool_on_the_clock_of_its_time_zone_and_lets_it_cool_afterwards() -> None:
    """The tests' epoch is midnight UTC, a morning in Auckland and the afternoon before in Los Angeles."""
    hour = (NOW + timedelta(hours=13)).hour  # in March Auckland is 13 hours ahead
    window = {"cron": f"0-29 {hour} * * *", "timezone": "Pacific/Auckland", "minimum_warm_vms": 2}
    elsewhere = {**window, "timezone": "America/Los_Angeles", "minimum_warm_vms": 5}
    scene = Scene(config(pool(warm_schedule=[window, elsewhere], minimum_warm_vms=1, idle_timeout="5m")))
    assert len(await passes(scene, 20)) == 2
    assert len(await passes(scene, 60)) == 1
    assert len(scene.azure.specs) == 2


OFFICE = "* 8-18 * * mon-fri"


@pytest.mark.parametrize(
    ("cron", "moment", "holds"),
    [
        (OFFICE, "2026-03-06T15:59Z", False),  # a Friday before the clocks go forward
        (OFFICE, "2026-03-06T16:00Z", True),
        (OFFICE, "2026-03-09T14:59Z", False),  # the Monday after it: an hour sooner by UTC
        (OFFICE, "2026-03-09T15:00Z", True),
        (OFFICE, "2026-03-10T01:59Z", True),
        (OFFICE, "2026-03-10T02:00Z", False),
        (OFFICE, "2026-10-30T15:00Z", True),  # a Friday before they go back
        (OFFICE, "2026-11-02T15:59Z", False),  # the Monday after it
        (OFFICE, "2026-11-02T16:00Z", True),
        ("* 2 * * *", "2026-03-08T09:59Z", False),  # on that night there is no such hour: 01:59 is followed by 03:00
        ("* 2 * * *", "2026-03-08T10:00Z", False),
        ("* 2 * * *", "2026-03-09T09:00Z", True),
        ("30 1 * * *", "2026-11-01T08:30Z", True),  # on this one there are two
        ("30 1 * * *", "2026-11-01T09:30Z", True),
        ("30 1 * * sun", "2026-11-01T06:30Z", False),  # half past one in New York, still Saturday's evening here
    ],
)
def test_a_window_follows_its_wall_clock_when_the_clocks_change(cron: str, moment: str, holds: bool) -> None:
    window = {"cron": cron, "timezone": "America/Los_Angeles", "minimum_warm_vms": 3}
    assert warm_minimum(pool(warm_schedule=[window], minimum_warm_vms=1), datetime.fromisoformat(moment)) == (3 if holds else 1)


@pytest.mark.parametrize(
    ("cron", "kept"),
    [
        ("3-59 0 * * *", True),  # begins in three minutes
        ("6-59 0 * * *", False),
        ("30-59 23 * * *", True),  # has just ended
        ("0-55 23 * * *", False),
    ],
)
def test_what_a_window_wants_by_any_processs_clock_is_neither_called_back_nor_deleted(cron: str, kept: bool) -> None:
    asked_for, idle = runner(S.REQUESTED, "new"), runner(S.READY, "old")
    window = [{"cron": cron, "minimum_warm_vms": 2}]
    actions = planned([asked_for, idle], warm_schedule=window, idle_timeout="10s")
    assert {type(action) for action in actions} == (set() if kept else {Forget, Delete})
