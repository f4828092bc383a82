"""What a pool should do next: each rule of scaling with its cases, then the plan as a whole."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from runnerpool.actions import Bind, Create, Delete, Forget, Park, Retire
from runnerpool.capacity import POOL, target_key
from runnerpool.config import PoolConfig
from runnerpool.demand import FREE_TRIES, IGNORED, SPACING, WITHDRAWN, demand
from runnerpool.model import Head, Job, Rest, Runner, RunnerState
from runnerpool.plan import INTERVAL, plan
from tests.made_rows import MINUTE, NOW, ORG, job, jobs, of, planned, pool, runner, runners, world

S = RunnerState
REPO_A, REPO_B = "repo:octo-org/a", "repo:octo-org/b"
HOUR = timedelta(hours=1)


# ---------------------------------------------------------------------------------------------- creating


@pytest.mark.parametrize(
    ("waiting", "there", "warm", "maximum", "wanted"),
    [
        (0, [], 0, 10, 0),
        (0, [], 2, 10, 2),
        (3, [], 0, 10, 3),
        (3, [], 2, 10, 5),
        (3, [], 2, 4, 4),
        (12, [], 0, 10, 10),
        (3, runners(S.READY, 3), 0, 10, 0),
        (3, runners(S.READY, 1), 0, 10, 2),
        (3, runners(S.READY, 3), 2, 10, 2),  # the warm ones are as good as taken
        (3, runners(S.BOOTING, 1) + runners(S.REQUESTED, 1) + runners(S.CREATING, 1), 0, 10, 0),
        (3, runners(S.REGISTERED, 2), 0, 10, 1),
        (0, runners(S.REGISTERED, 2), 2, 10, 0),
        (2, runners(S.BUSY, 9), 0, 10, 1),  # busy VMs serve nobody and count
        (2, runners(S.BUSY, 10), 0, 10, 0),
        (2, runners(S.FAILED, 9), 0, 10, 1),
        (2, runners(S.DELETING, 9), 0, 10, 1),
        (2, runners(S.DELETING, 9, delete_accepted_at=NOW), 0, 10, 2),  # accepted: blocks nothing any more
        (2, runners(S.RETIRING, 10), 0, 10, 0),
        (1, runners(S.BOOTING, 1, accepted_at=NOW - timedelta(minutes=11)), 0, 10, 1),  # overdue: no longer counted on
    ],
)
def test_as_many_vms_are_made_as_jobs_and_warm_minimum_lack_and_the_maximum_allows(
    waiting: int, there: list[Runner], warm: int, maximum: int, wanted: int
) -> None:
    made = of(Create, planned([*jobs(waiting), *there], minimum_warm_vms=warm, maximum_pool_size=maximum))
    assert len(made) == wanted


def test_a_job_whose_labels_its_pool_has_lost_gets_no_vm_and_no_registration_and_github_is_still_asked_about_it() -> None:
    lost = job("1", age=HOUR, labels=("linux", "gpu"))
    actions = planned([lost, job("2"), *runners(S.READY, 1)], minimum_warm_vms=0)
    assert [type(action) for action in actions] == [Park, Bind]
    assert not of(Create, planned([lost]))
    assert "job 2 waits" in of(Bind, actions)[0].reason


def test_at_the_maximum_the_oldest_jobs_come_first_and_before_the_warm_minimum() -> None:
    made = of(Create, planned([*reversed(jobs(5))], minimum_warm_vms=2, maximum_pool_size=3))
    assert [create.job_id for create in made] == ["1", "2", "3"]


def test_a_job_that_has_no_runner_comes_before_one_that_has() -> None:
    born = runner(S.BOOTING, target=ORG, job_id="1")
    made = of(Create, planned([*jobs(2), born]))
    assert [create.job_id for create in made] == ["2"]


@pytest.mark.parametrize(
    ("waiting", "age", "warm", "made"),
    [
        (2, timedelta(seconds=5), 0, 0),
        (3, timedelta(seconds=5), 0, 3),
        (2, INTERVAL, 0, 2),  # one of them has waited a reconcile interval
        (2, timedelta(seconds=5), 2, 2),  # the warm minimum waits for nothing
    ],
)
def test_fewer_jobs_than_the_threshold_wait_a_reconcile_interval(waiting: int, age: timedelta, warm: int, made: int) -> None:
    some = [job(str(n), age=age) for n in range(waiting)]
    assert len(of(Create, planned(some, scale_up_trigger_threshold=3, minimum_warm_vms=warm))) == made


def test_nothing_is_made_while_the_pool_is_paused_or_every_offer_rests() -> None:
    assert not of(Create, planned(jobs(1), head=Head("linux", paused=True)))
    assert not of(Create, planned(jobs(1), head=Head("linux", rests={POOL: Rest(NOW + MINUTE, "no such image")})))
    assert of(Create, planned(jobs(1), head=Head("linux", rests={POOL: Rest(NOW, "no such image")})))


B_IS_REFUSED = Head("linux", rests={target_key(REPO_B): Rest(NOW + MINUTE, "GitHub answered 403")})
OF_B = [job(str(n), target=REPO_B, age=5 * MINUTE) for n in range(1, 4)]


@pytest.mark.parametrize(
    ("rows", "made", "bound"),
    [
        (OF_B, [], []),
        ([*OF_B, job("9", target=REPO_A)], ["9"], []),
        ([*OF_B, job("9", target=REPO_A), *runners(S.READY, 1)], [], [REPO_A]),  # it is kept for none of the older jobs
        ([*OF_B, job("9", target=REPO_A), *runners(S.BOOTING, 1, job_id="1")], [], []),
        ([*OF_B, runner(S.READY, target=REPO_B, minted_at=NOW)], [], []),
        ([job("1", target=REPO_B, rerun_of="0"), job("9", target=REPO_A, rerun_of="8")], ["9"], []),
        ([job("1", target=REPO_B, rerun_of="0"), runner(S.READY, regular=True, job_id="1")], [], []),
    ],
)
def test_where_github_refuses_runners_nothing_is_made_or_bound_and_others_go_on(
    rows: list[Job | Runner], made: list[str], bound: list[str]
) -> None:
    actions = planned(rows, head=B_IS_REFUSED, home=None)
    assert [create.job_id for create in of(Create, actions)] == made
    assert [bind.target for bind in of(Bind, actions)] == bound


def test_where_github_refuses_runners_nobody_is_registered_ahead_of_need() -> None:
    rows = [runner(S.READY), runner(S.READY, "b", target=REPO_B, minted_at=NOW)]
    keeps: dict[str, Any] = {"keep_registered": True, "minimum_warm_vms": 2}
    assert not planned(rows, head=B_IS_REFUSED, home=REPO_B, **keeps)
    assert len(of(Bind, planned(rows, home=REPO_B, **keeps))) == 2


def test_what_registered_before_github_refused_it_waits_for_its_job() -> None:
    rows: list[Job | Runner] = [*OF_B[:1], runner(S.REGISTERED, target=REPO_B, age=HOUR, online_at=NOW), job("9", target=REPO_A)]
    assert not planned(rows, head=B_IS_REFUSED, home=None, maximum_pool_size=1)


@pytest.mark.parametrize(
    ("made", "last", "again"),
    [
        (FREE_TRIES - 1, MINUTE, True),
        (FREE_TRIES, MINUTE, False),
        (FREE_TRIES, SPACING, True),
        (99, SPACING - MINUTE, False),
    ],
)
def test_three_vms_are_made_for_one_job_then_one_every_ten_minutes(made: int, last: timedelta, again: bool) -> None:
    tired = job(vms_made=made, last_vm_at=NOW - last)
    assert bool(of(Create, planned([tired]))) is again


def test_a_job_whose_own_vm_boots_unbound_is_asked_for_no_more_while_older_ones_lack_theirs() -> None:
    waiting = [job("1", age=3 * MINUTE), job("2", age=2 * MINUTE), job("3", age=MINUTE)]
    booting = [runner(S.BOOTING, f"for{n}", job_id=n) for n in ("2", "3")]
    assert [create.job_id for create in of(Create, planned([*waiting, *booting]))] == ["1"]


def test_a_job_that_had_its_tries_makes_no_vms_for_the_jobs_beside_it() -> None:
    hopeless = job("1", vms_made=FREE_TRIES, last_vm_at=NOW)
    served: list[Job | Runner] = [job("2"), runner(S.BOOTING, target=ORG, job_id="2")]
    assert not of(Create, planned([hopeless, *served]))


def test_the_last_vm_of_a_job_that_had_its_tries_is_not_counted_on_for_another() -> None:
    tired: list[Job | Runner] = [job("1", vms_made=FREE_TRIES, last_vm_at=NOW), runner(S.BOOTING, target=ORG, job_id="1")]
    assert [create.job_id for create in of(Create, planned([*tired, job("2")]))] == ["2"]


# ---------------------------------------------------------------------------------------------- targets


def test_a_vm_bound_for_one_repository_does_not_serve_another() -> None:
    made = of(Create, planned([job(target=REPO_B), runner(S.REGISTERED, target=REPO_A)], home=None))
    assert [create.target for create in made] == [REPO_B]


def test_at_the_maximum_an_idle_vm_of_another_repository_makes_room_one_for_each_job_that_waits() -> None:
    idle = runners(S.REGISTERED, 3, target=REPO_A)
    actions = planned([job(target=REPO_B), *idle], home=None, maximum_pool_size=3)
    assert [retire.runner for retire in of(Retire, actions)] == [idle[0].name]
    assert not of(Create, actions)

    going = replace(idle[0], state=S.RETIRING)
    assert not of(Retire, planned([job(target=REPO_B), going, *idle[1:]], home=None, maximum_pool_size=3))


def test_free_vms_go_to_the_oldest_jobs_of_all_repositories() -> None:
    first, second, third = (
        job(str(n), age=timedelta(seconds=100 - n), target=target) for n, target in enumerate([REPO_A, REPO_B, REPO_A])
    )
    binds = of(Bind, planned([first, second, third, *runners(S.READY, 2)], home=None))
    assert [bind.target for bind in binds] == [REPO_A, REPO_B]


# ---------------------------------------------------------------------------------------------- binding


def test_no_vm_is_registered_without_a_job_and_each_job_gets_one() -> None:
    ready = runners(S.READY, 3)
    assert not of(Bind, planned(ready, minimum_warm_vms=3))
    binds = of(Bind, planned([*jobs(2), *ready], minimum_warm_vms=3))
    assert [bind.runner for bind in binds] == [ready[0].name, ready[1].name]


@pytest.mark.parametrize("state", [S.BINDING, S.REGISTERED, S.BOOTING])
def test_a_job_whose_runner_is_on_its_way_binds_no_other(state: RunnerState) -> None:
    assert not of(Bind, planned([job(), runner(state, target=ORG), *runners(S.READY, 1)]))


def test_a_vm_that_lost_its_registration_is_bound_again_for_the_same_repository_before_a_free_one() -> None:
    lost = runner(S.READY, target=REPO_A, minted_at=NOW)
    actions = planned([job(target=REPO_A), lost, *runners(S.READY, 1)], home=None)
    assert [(bind.runner, bind.target) for bind in of(Bind, actions)] == [(lost.name, REPO_A)]
    assert not of(Bind, planned([job(target=REPO_B), lost], home=None))


def test_a_vm_whose_last_binding_failed_is_left_alone_until_its_time() -> None:
    assert not of(Bind, planned([job(), runner(S.READY, not_before=NOW + MINUTE)]))
    assert of(Bind, planned([job(), runner(S.READY, not_before=NOW)]))


@pytest.mark.parametrize(("home", "registered"), [(ORG, 2), (None, 0)])
def test_with_keep_registered_idle_vms_are_bound_ahead_of_need_where_there_is_one_target(home: str | None, registered: int) -> None:
    actions = planned(runners(S.READY, 2), keep_registered=True, minimum_warm_vms=2, home=home)
    assert len(of(Bind, actions)) == registered


def test_with_keep_registered_a_dropped_registration_is_renewed_and_only_then() -> None:
    lost = runner(S.READY, target=ORG, minted_at=NOW)
    assert of(Bind, planned([lost], keep_registered=True, minimum_warm_vms=1))
    assert not of(Bind, planned([lost], minimum_warm_vms=1))


# ---------------------------------------------------------------------------------------------- runners that GitHub ignores


def ignored(name: str = "ignored", idle: timedelta = IGNORED) -> Runner:
    return runner(S.REGISTERED, name, online_at=NOW - idle, ready_at=NOW - idle)


def test_a_runner_idle_beside_a_waiting_job_for_120_s_does_not_serve_it() -> None:
    waits = job(age=HOUR)
    assert not of(Create, planned([waits, ignored(idle=IGNORED - timedelta(seconds=1))]))
    assert of(Create, planned([waits, ignored()]))
    assert not of(Create, planned([job(age=MINUTE), ignored(idle=HOUR)]))  # the job has not waited so long


def test_a_job_that_no_runner_may_take_does_not_fill_the_pool_nor_empty_the_warm_minimum() -> None:
    hopeless = job(age=HOUR, vms_made=FREE_TRIES, last_vm_at=NOW)
    vain = [ignored(f"vain{n}", idle=HOUR) for n in range(4)]
    actions = planned([hopeless, *vain], idle_timeout="10m", minimum_warm_vms=1)
    assert len(of(Retire, actions)) == 2  # of four, one is warm and one may yet get the job
    assert not of(Create, actions)


# ---------------------------------------------------------------------------------------------- as a whole


def test_a_pool_at_rest_plans_nothing() -> None:
    at_rest: list[Job | Runner] = [
        *runners(S.READY, 2),
        job("1", age=HOUR, completed_at=NOW),
        job("2", age=HOUR, started_at=NOW - 50 * MINUTE, runner_name="hw-linux-busy"),
        runner(S.BUSY, "busy"),
    ]
    assert planned(at_rest, minimum_warm_vms=2) == []


def test_every_action_says_why() -> None:
    rows: list[Job | Runner] = [
        *jobs(3),
        *runners(S.READY, 1),
        runner(S.FAILED, reason="broken"),
        job("9", trusted=False),
        runner(S.DELETING, "gone", absent_since=NOW),
    ]
    actions = planned(rows)
    assert {type(action) for action in actions} == {Create, Bind, Delete, Forget, Park}
    assert all(action.reason for action in actions)


def test_counting_is_by_what_exists_and_serving_by_what_can_be_relied_on() -> None:
    need = demand(NOW, world(*jobs(2), *runners(S.READY, 1), *runners(S.BUSY, 2), *runners(S.RETIRING, 1)), pool())
    assert (need.counting, need.leaving, need.serving, need.spare) == (4, 1, 1, 0)


@pytest.mark.parametrize(
    ("row", "leaving"),
    [
        (runner(S.DELETING, age=MINUTE), 1),
        (runner(S.RETIRING, age=WITHDRAWN), 1),
        (runner(S.RETIRING, age=WITHDRAWN + MINUTE), 0),
        (runner(S.DELETING, age=MINUTE, elsewhere=True), 0),
    ],
)
def test_on_the_room_of_what_is_stuck_nobody_counts(row: Runner, leaving: int) -> None:
    need = demand(NOW, world(row), pool())
    assert (need.counting, need.leaving) == (1, leaving)


def test_a_warm_schedule_is_followed() -> None:
    at_noon: PoolConfig = pool(warm_schedule=[{"cron": "* 0 * * *", "minimum_warm_vms": 3}])
    assert len(of(Create, plan(NOW, at_noon, Head("linux"), world()))) == 3
    assert not of(Create, plan(NOW + 2 * HOUR, at_noon, Head("linux"), world()))
