"""What retiring and deleting leave behind, and what becomes of questions about jobs."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from runnerpool.acts import act
from runnerpool.budget import LIMITS
from runnerpool.errors import Conflict, Misconfigured, PoolError, RetryLater
from runnerpool.launch import PUT_HORIZON
from runnerpool.model import Job, RunnerState
from runnerpool.ports import JobReport, Registration
from runnerpool.withdraw import DELETE_AGAIN
from tests.made_rows import MINUTE, NOW, ORG, claimed, config, job, later, pool, virtual
from tests.stand_ins import Scene

S = RunnerState
NAME = "hw-linux-aaaaaaaaaa"
HORIZON = NOW + PUT_HORIZON


# ---------------------------------------------------------------------------------------------- retiring and deleting


@virtual
async def test_a_registration_that_github_removed_is_gone_and_the_agent_is_asked_later() -> None:
    scene = Scene()
    row = (await scene.act(claimed(S.RETIRING)))[NAME]
    assert (row.state, row.deregistered_at, row.claimed_by) == (S.RETIRING, NOW, None)
    assert not scene.hub.registered[ORG]
    assert scene.azure.vms


@virtual
async def test_a_runner_that_github_calls_busy_is_busy() -> None:
    scene = Scene()
    await scene.hold(claimed(S.RETIRING))
    scene.hub.registered[ORG][NAME] = Registration(7, NAME, online=True, busy=True)
    await act(scene.acting(), list((await scene.runners()).values()), [])
    row = await scene.only()
    assert (row.state, row.deregistered_at) == (S.BUSY, None)


@virtual
async def test_while_github_calls_a_vanished_vm_busy_nothing_is_believed() -> None:
    scene = Scene()
    await scene.hold(claimed(S.RETIRING, absent_since=NOW - MINUTE))
    scene.hub.registered[ORG][NAME] = Registration(7, NAME, online=True, busy=True)
    await act(scene.acting(), list((await scene.runners()).values()), [])
    row = await scene.only()
    assert (row.state, row.deregistered_at) == (S.RETIRING, None)
    assert row.not_before is not None


@virtual
async def test_a_404_counts_only_beside_a_whole_list_without_the_name() -> None:
    scene = Scene()
    scene.hub.blind = True  # a lost permission
    row = (await scene.act(claimed(S.RETIRING)))[NAME]
    assert row.deregistered_at is None
    assert row.not_before is not None

    gone = Scene()
    row = (await gone.act(claimed(S.RETIRING, github_id=None)))[NAME]
    assert row.deregistered_at is not None
    assert gone.hub.calls == [("list", ORG)]


@pytest.mark.parametrize("error", [RetryLater("502", after=MINUTE), Misconfigured("403", area="auth")])
@virtual
async def test_a_list_that_cannot_be_read_proves_nothing(error: PoolError) -> None:
    scene = Scene()
    scene.hub.fails("list", error)
    row = (await scene.act(claimed(S.RETIRING, github_id=None)))[NAME]
    assert row.deregistered_at is None
    assert str(error) in row.reason


@virtual
async def test_a_registration_under_its_name_with_another_id_is_removed_too() -> None:
    """A worker died between the JIT call and the row's update."""
    scene = Scene()
    scene.hub.registered[ORG][NAME] = Registration(55, NAME, online=False, busy=False)
    row = (await scene.act(claimed(S.RETIRING, github_id=None)))[NAME]
    assert row.deregistered_at is not None
    assert not scene.hub.registered[ORG]


@virtual
async def test_however_many_registrations_are_unknown_to_github_the_whole_list_is_read_once() -> None:
    scene = Scene()
    rows = [replace(claimed(S.RETIRING, github_id=None), name=f"hw-linux-{n:010d}") for n in range(20)]
    after = await scene.act(*rows)
    assert all(row.deregistered_at for row in after.values())
    assert scene.hub.count("list") == 1


@virtual
async def test_what_was_never_registered_needs_no_word_from_github() -> None:
    scene = Scene()
    row = (await scene.act(claimed(S.RETIRING, minted_at=None, github_id=None, target=None)))[NAME]
    assert row.deregistered_at is not None
    assert not scene.hub.calls


@virtual
async def test_a_deletion_that_azure_accepted_counts_no_more_and_is_asked_for_again_later() -> None:
    scene = Scene()
    row = (await scene.act(claimed(S.DELETING)))[NAME]
    assert (row.exists, row.not_before, row.claimed_by) == (False, NOW + DELETE_AGAIN, None)
    assert not scene.azure.vms


@virtual
async def test_as_long_as_a_put_may_still_arrive_a_deleted_vm_counts_on() -> None:
    scene = Scene()
    row = (await scene.act(claimed(S.DELETING, put_until=HORIZON, accepted_at=None)))[NAME]
    assert (row.exists, row.not_before) == (True, HORIZON)


@pytest.mark.parametrize("error", [RetryLater("500", after=MINUTE), Misconfigured("403", area="auth"), Conflict("409")])
@virtual
async def test_a_deletion_that_azure_refused_is_tried_again_later(error: PoolError) -> None:
    scene = Scene()
    scene.azure.fails("delete_vm", error)
    row = (await scene.act(claimed(S.DELETING)))[NAME]
    assert row.exists
    assert row.not_before is not None
    assert str(error) in row.reason


# ---------------------------------------------------------------------------------------------- asking about jobs

GONE_RUNNER = {"runner_name": None, "runner_id": None, "started_at": None, "completed_at": None}


@pytest.mark.parametrize(
    ("held", "answered", "state"),
    [
        (job(trusted=False), "queued", "queued"),
        (job(queued=False, waiting=True), "queued", "queued"),  # approved
        (job(queued=False, waiting=True), "waiting", "waiting"),
        (job(), "completed", "completed"),
        (job(), "in_progress", "in_progress"),
    ],
)
@virtual
async def test_githubs_answer_about_a_job_is_believed(held: Any, answered: str, state: str) -> None:
    scene = Scene(config(pool(maximum_pool_size=1)))
    scene.hub.jobs["1"] = JobReport("1", answered, None, **GONE_RUNNER)
    await scene.hold(held)
    await act(scene.acting(), [], list((await scene.jobs()).values()))
    await scene.wake()
    after = (await scene.jobs())["1"]
    assert after.state == state
    assert after.trusted is (state == "queued" or held.trusted)


@virtual
async def test_a_404_about_a_job_is_noted_and_taken_back_when_github_knows_it_again() -> None:
    scene = Scene()
    await scene.hold(job())
    await act(scene.acting(), [], list((await scene.jobs()).values()))
    missing = (await scene.jobs())["1"]
    assert (missing.missing_since, missing.wants_runner) == (NOW, False)

    scene.hub.jobs["1"] = JobReport("1", "queued", None, **GONE_RUNNER)
    await act(scene.acting(), [], [missing])
    assert (await scene.jobs())["1"].wants_runner


@pytest.mark.parametrize(
    ("held", "wants"),
    [
        (job(), True),
        (job(trusted=False), False),  # its delivery came late: it stays unknown
        (job(queued=False, waiting=True), False),
        (job(missing_since=NOW - MINUTE), True),  # an earlier 404 was believed
    ],
)
@virtual
async def test_a_404_about_a_job_whose_repository_cannot_be_read_removes_nothing(held: Job, wants: bool) -> None:
    scene = Scene()
    scene.hub.hidden.add(held.repository)
    await scene.hold(held)
    await act(scene.acting(), [], list((await scene.jobs()).values()))
    unseen = (await scene.jobs())["1"]
    assert (unseen.unseen_since, unseen.missing_since, unseen.wants_runner) == (NOW, None, wants)

    await later(seconds=60)
    await act(scene.acting(), [], [unseen])
    assert (await scene.jobs())["1"] == unseen  # asked again, it is written once

    scene.hub.hidden.clear()
    scene.hub.jobs["1"] = JobReport("1", "queued", None, **GONE_RUNNER)
    await act(scene.acting(), [], [unseen])
    assert (await scene.jobs())["1"].unseen_since is None


@pytest.mark.parametrize(
    ("error", "unseen"),
    [
        (Misconfigured("GitHub answered 403: Resource not accessible by integration", area="auth"), NOW),
        (Misconfigured("GitHub answered 401", area="auth", everywhere=True), None),  # that says nothing about the job
        (RetryLater("GitHub answered 502"), None),
    ],
)
@virtual
async def test_a_lost_permission_is_told_from_an_answer_that_did_not_come(error: PoolError, unseen: datetime | None) -> None:
    scene = Scene()
    scene.hub.fails("get_job", *[error] * 5)
    await scene.hold(job())
    await act(scene.acting(), [], list((await scene.jobs()).values()))
    assert ((await scene.jobs())["1"].unseen_since, (await scene.jobs())["1"].wants_runner) == (unseen, True)


@virtual
async def test_only_a_404_costs_a_look_at_the_repository() -> None:
    scene = Scene()
    scene.hub.jobs["1"] = JobReport("1", "queued", None, **GONE_RUNNER)
    await scene.hold(job())
    held = list((await scene.jobs()).values())
    await act(scene.acting(), [], held)
    assert not scene.hub.count("reads_jobs")

    scene.hub.jobs.clear()
    scene.hub.fails("reads_jobs", Misconfigured("401", area="auth", everywhere=True))
    await act(scene.acting(), [], held)
    assert list((await scene.jobs()).values()) == held


@virtual
async def test_a_repository_that_can_be_read_again_makes_the_404_of_its_job_final() -> None:
    scene = Scene()
    await scene.hold(job(unseen_since=NOW - MINUTE))
    await act(scene.acting(), [], list((await scene.jobs()).values()))
    missing = (await scene.jobs())["1"]
    assert (missing.unseen_since, missing.missing_since, missing.wants_runner) == (None, NOW, False)


@virtual
async def test_an_answer_that_does_not_come_changes_nothing() -> None:
    scene = Scene()
    await scene.hold(job())
    before = await scene.jobs()
    scene.hub.fails("get_job", Misconfigured("401", area="auth", everywhere=True))
    await act(scene.acting(), [], list(before.values()))
    assert await scene.jobs() == before


@virtual
async def test_questions_about_jobs_come_out_of_a_budget_that_all_passes_share() -> None:
    """A wake-up's pass asks as well as the timer's, and a busy minute has a hundred of them."""
    scene = Scene()
    await scene.hold(*(job(str(n)) for n in range(30)))
    held = list((await scene.jobs()).values())
    for _ in range(3):
        await act(scene.acting(time=timedelta(seconds=1)), [], held)
    assert scene.hub.count("get_job") <= LIMITS["github-reads"].capacity + 3 * LIMITS["github-reads"].per_second
