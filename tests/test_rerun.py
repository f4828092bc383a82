"""Jobs lost with a spot VM: that GitHub is asked once to run them again, and on what they run then."""

from __future__ import annotations

from typing import Any

import pytest

from runnerpool.actions import Bind, Create, Delete, Retire
from runnerpool.decide import decide
from runnerpool.errors import Gone, Misconfigured, PoolError, RetryLater
from runnerpool.eviction import AGAIN, PATIENCE, second_attempts, why_rerun
from runnerpool.model import Head, Job, Rest, Runner, RunnerState, Snapshot
from runnerpool.ports import Insert, JobReport
from runnerpool.status import report
from tests.evicted import EVICTED, FAILED, NAME, RAN, SPOT, spot
from tests.made_rows import (
    MINUTE,
    NOW,
    ORG,
    clock,
    config,
    fact,
    job,
    later,
    of,
    planned,
    pool,
    runner,
    setting,
    virtual,
)
from tests.stand_ins import Scene

S = RunnerState


# ---------------------------------------------------------------------------------------------- asking once


@pytest.mark.parametrize(
    ("its_job", "due"),
    [
        (job(**EVICTED), True),
        (job(**FAILED), False),
        (job(**{**EVICTED, "completed_at": None}), False),  # GitHub has not noticed yet
        (job(**EVICTED, rerun_at=NOW - AGAIN + MINUTE), False),
        (job(**EVICTED, rerun_at=NOW - AGAIN), True),  # the answer was lost, or its run was still running
        (job(**EVICTED, rerun_at=NOW - AGAIN, rerun="GitHub runs it again"), False),
        (job(**EVICTED, rerun_of="0"), False),  # no third attempt
        (job(**{**EVICTED, "completed_at": NOW - PATIENCE}), False),
        (job(**EVICTED, demand=False), False),
    ],
)
def test_github_is_asked_once_to_run_a_lost_job_again(its_job: Job, due: bool) -> None:
    assert bool(why_rerun(NOW, pool(**SPOT), its_job, {})) is due
    assert not why_rerun(NOW, pool(), its_job, {})


def test_a_job_whose_second_attempt_is_there_is_not_asked_for_again() -> None:
    first = job(**EVICTED, rerun_at=NOW - AGAIN)
    again = job("2", run_id="77", job_name="build", run_attempt=2)
    jobs = {"1": first, "2": again, "3": job("3", run_id="77", job_name="test", run_attempt=2)}
    found = second_attempts(jobs)
    assert {job_id: one.rerun_of for job_id, one in found.items()} == {"2": "1"}
    assert why_rerun(NOW, pool(**SPOT), first, jobs)
    assert not why_rerun(NOW, pool(**SPOT), first, {**jobs, **found})
    assert not second_attempts({**jobs, **found})


def test_that_github_is_about_to_be_asked_is_in_the_jobs_row_first() -> None:
    rows = Snapshot(Head("linux"), {"1": job(**EVICTED)}, {}, {})
    decision = decide(NOW, setting(pool(**SPOT)), rows)
    assert decision.jobs["1"].rerun_at == NOW
    assert [one.job_id for one in decision.reruns] == ["1"]


@pytest.mark.parametrize(
    ("error", "final"),
    [(None, True), (Gone("404"), True), (RetryLater("its run goes on"), False), (Misconfigured("403", area="auth"), False)],
)
@virtual
async def test_what_github_answers_is_kept_and_what_is_not_final_is_asked_again(error: PoolError | None, final: bool) -> None:
    scene = Scene(config(pool(**SPOT)))
    await scene.hold(job(**EVICTED))
    scene.hub.fails("rerun", error)
    await scene.wake()
    assert ((await scene.jobs())["1"].rerun is not None) is final
    await scene.wake()
    assert scene.hub.count("rerun") == 1
    await later(minutes=6)
    await scene.wake()
    assert scene.hub.count("rerun") == (1 if final else 2)


# ---------------------------------------------------------------------------------------------- on a regular VM

SECOND: dict[str, Any] = {"rerun_of": "0", "run_id": "77", "job_name": "build"}


def test_a_second_attempt_gets_a_regular_vm_whatever_spot_vms_are_idle() -> None:
    idle = [runner(S.READY, "a", spot=True), runner(S.REGISTERED, "b", spot=True)]
    (made,) = of(Create, planned([job(**SECOND), *idle], **{**SPOT, "minimum_warm_vms": 2}))
    assert (made.rung.spot, made.regular, made.job_id) == (False, True, "1")
    assert not of(Bind, planned([job(**SECOND), *idle], **SPOT))


def test_its_vm_is_kept_for_it_and_bound_to_it() -> None:
    kept = runner(S.READY, "kept", regular=True, job_id="1")
    actions = planned([job(**SECOND), kept, job("2", age=2 * MINUTE)], **{**SPOT, "idle_timeout": "10s"})
    assert [(bind.runner, bind.target) for bind in of(Bind, actions)] == [(kept.name, ORG)]
    assert [create.job_id for create in of(Create, actions)] == ["2"]
    free = planned([kept, job("2")], **SPOT)  # GitHub gave the second attempt to another runner
    assert [bind.runner for bind in of(Bind, free)] == [kept.name]


@pytest.mark.parametrize(
    ("rows", "rests", "gone"),
    [
        ([runner(S.READY, name, spot=True) for name in "abc"], {}, 1),
        ([runner(S.READY, "a"), runner(S.REGISTERED, "b", target=ORG, online_at=NOW), runner(S.READY, "c", spot=True)], {}, 1),
        ([*[runner(S.READY, name) for name in "ab"], runner(S.RETIRING, "c")], {}, 0),  # that one makes room
        ([runner(S.READY, name) for name in "ab"], {}, 0),  # there is room
        ([runner(S.READY, name) for name in "abc"], {"regular": Rest(NOW + MINUTE, "QuotaExceeded")}, 0),  # none can be made
        ([runner(S.BUSY, name) for name in "abc"], {}, 0),
    ],
)
def test_of_a_full_pool_whose_warm_vms_idle_one_makes_room_for_a_second_attempts_vm(
    rows: list[Runner], rests: dict[str, Rest], gone: int
) -> None:
    """Where the warm minimum fills the maximum, the second attempt would wait without end."""
    settings = {**SPOT, "minimum_warm_vms": 3, "maximum_pool_size": 3}
    actions = planned([job(**SECOND), *rows], head=Head("linux", rests=rests), **settings)
    assert sum(isinstance(action, Retire | Delete) and "regular VM" in action.reason for action in actions) == gone


# ---------------------------------------------------------------------------------------------- from end to end


@virtual
async def test_a_job_lost_to_an_eviction_is_run_again_once_on_a_regular_vm_and_the_status_says_so() -> None:
    scene = Scene(config(pool(**SPOT)))
    busy = spot(busy_job="1")
    await scene.at_rest(busy)
    await scene.hold(job(**{**RAN, "started_at": NOW}))
    await scene.azure.delete_vm(busy.name)
    del scene.hub.registered[ORG][busy.name]
    for _ in range(3):
        await scene.reconcile()
        await later(seconds=30)
    assert (await scene.jobs())["1"].evicted == f"its spot VM {NAME} was taken away"
    assert not scene.hub.count("rerun")  # GitHub has not given it up yet

    scene.hub.jobs["1"] = JobReport("1", "completed", "failure", NAME, 7, NOW, clock())
    await scene.hold(fact("completed", "1", conclusion="failure", completed_at=clock(), run_id="77", job_name="build"))
    await scene.wake()
    assert [what for called, what in scene.hub.calls if called == "rerun"] == ["1"]

    again = {"run_id": "77", "job_name": "build", "run_attempt": 2, "created_at": clock(), "received_at": clock()}
    await scene.hold(fact("queued", "2", **again))
    await scene.wake()
    (spec,) = scene.azure.specs
    assert not spec.spot
    assert (await scene.jobs())["2"].rerun_of == "1"
    for _ in range(20):
        await scene.reconcile()
        await later(seconds=30)
    assert scene.hub.count("rerun") == 1
    assert not any(one.spot for one in scene.azure.specs)
    _, document = await report(clock(), scene.config, scene.ledger)
    (told,) = document["pools"]
    assert [(one["job"], one["rerun"]) for one in told["evicted"]] == [("1", "GitHub runs it again")]


@pytest.mark.parametrize(
    ("then", "asked"),
    [
        ({"rerun_of": "0"}, 0),  # it was a second attempt itself
        ({"rerun_at": NOW, "rerun": "GitHub runs it again"}, 0),
        ({"evicted": None}, 1),  # nobody knew then that its VM had been taken away
    ],
)
@virtual
async def test_a_lost_job_that_is_told_of_again_when_its_row_has_gone_gets_no_further_attempt(
    then: dict[str, Any], asked: int
) -> None:
    scene = Scene(config(pool(**SPOT)))
    await scene.hold(job(**{**EVICTED, **then}))
    await scene.ledger.archive((await scene.jobs()).values())
    assert not await scene.jobs()

    await later(hours=20)
    again = fact("completed", "1", conclusion="failure", completed_at=NOW, received_at=clock(), run_id="77", runner_name=NAME)
    await scene.hold(Head("linux", taken={NAME: NOW}), again)
    await scene.wake()
    assert scene.hub.count("rerun") == asked
    told = (await scene.jobs())["1"]
    assert told.evicted and ("known before" in (told.rerun or "")) is (asked == 0)


@virtual
async def test_a_lost_job_whose_history_is_damaged_is_not_run_again() -> None:
    scene = Scene(config(pool(**SPOT)))
    await scene.history.transact(f"linux:{NOW:%Y-%m-%d}", [Insert("1", {"created_at": "damaged"})])
    await scene.hold(job(**EVICTED))
    await scene.wake()
    assert not scene.hub.count("rerun")
    assert "cannot be read" in ((await scene.jobs())["1"].rerun or "")
