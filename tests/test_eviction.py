"""Jobs lost with a spot VM: how that is known, that GitHub is asked once to run them again, and on what they run then."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from runnerpool.actions import Bind, Create
from runnerpool.acts import act
from runnerpool.decide import decide
from runnerpool.errors import Gone, Misconfigured, PoolError, RetryLater
from runnerpool.eviction import AGAIN, PATIENCE, TAKEN, TAKEN_KEPT, lost, lost_elsewhere, remembered, second_attempts, why_rerun
from runnerpool.lifecycle import NOTICE, Seen, advance, serves
from runnerpool.model import Head, Job, Runner, RunnerState, Snapshot
from runnerpool.ports import AgentPhase, AgentTrouble, JobReport, Vm, VmState
from runnerpool.status import report
from runnerpool.withdraw import FRESH
from tests.made_rows import (
    MINUTE,
    NOW,
    ORG,
    claimed,
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
    status,
    virtual,
)
from tests.stand_ins import Scene

S = RunnerState
NAME = "hw-linux-aaaaaaaaaa"
SPOT: dict[str, Any] = {"vm": {"sizes": ["Standard_D4ads_v5"], "priority": "spot"}, "rerun_evicted": True}
RAN: dict[str, Any] = {"runner_name": NAME, "started_at": NOW - 5 * MINUTE, "run_id": "77", "job_name": "build"}
FAILED: dict[str, Any] = {**RAN, "completed_at": NOW, "conclusion": "failure"}
EVICTED: dict[str, Any] = {**FAILED, "evicted": "its spot VM was taken away"}


def spot(state: RunnerState = S.BUSY, **changes: Any) -> Runner:
    return runner(state, spot=True, busy_at=NOW - 5 * MINUTE, **changes)


# ---------------------------------------------------------------------------------------------- what counts as lost


@pytest.mark.parametrize(
    ("its_job", "its_runner", "known"),
    [
        (job(**RAN), spot(S.FAILED, absent_since=NOW), True),  # gone in mid-job
        (job(**FAILED), spot(S.FINISHED, absent_since=NOW, completed_job="1"), True),
        (job(**{**FAILED, "conclusion": "cancelled"}), spot(eviction_at=NOW), True),
        (job(**FAILED), spot(S.FINISHED, eviction_at=NOW, completed_job="1"), True),
        (job(**FAILED), spot(S.FINISHED, eviction_at=NOW - NOTICE + MINUTE, completed_job="1"), True),
        (job(**FAILED), spot(S.FINISHED, eviction_at=NOW - NOTICE, completed_job="1"), False),  # spared, and failed by itself
        (job(**FAILED), spot(S.FINISHED, completed_job="1"), False),  # it failed by itself
        (job(**FAILED), spot(S.DELETING, absent_since=NOW, completed_job="1"), False),  # gone by our doing
        (job(**{**FAILED, "conclusion": "success"}), spot(S.FINISHED, eviction_at=NOW), False),  # it was quicker
        (job(**RAN), spot(eviction_at=NOW), False),  # it may still be quicker
        (job(**RAN), replace(spot(S.FAILED, absent_since=NOW), spot=False), False),  # somebody deleted it
        (job(), spot(S.FAILED, absent_since=NOW), False),  # not given to it
    ],
)
def test_a_job_is_lost_when_its_spot_vm_is_gone_or_was_given_notice_and_it_did_not_succeed(
    its_job: Job, its_runner: Runner, known: bool
) -> None:
    found = lost({"1": its_job}, {its_runner.name: its_runner}, {})
    assert bool(found) is known
    if known:
        assert NAME in (found["1"].evicted or "")
        assert not lost(found, {its_runner.name: its_runner}, {})  # it is said once


@pytest.mark.parametrize(
    ("its_job", "known"),
    [
        (job(**RAN), True),
        (job(**FAILED), True),
        (job(**{**FAILED, "conclusion": "success"}), False),  # it was quicker
        (job(**{**FAILED, "runner_name": "hw-linux-cccccccccc"}), False),
        (job(), False),
    ],
)
def test_a_job_of_which_the_word_came_after_its_spot_vms_row_had_gone_is_known_as_lost_by_the_vms_name(
    its_job: Job, known: bool
) -> None:
    taken = {NAME: NOW}
    assert bool(lost({"1": its_job}, {}, taken)) is known
    heads = {"linux": Snapshot(Head("linux"), {"1": its_job}, {}, {}), "big": Snapshot(Head("big", taken=taken), {}, {}, {})}
    assert bool(lost_elsewhere(NOW, heads, {})) is known


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        (spot(S.FAILED, absent_since=NOW, minted_at=NOW), True),
        (runner(S.FAILED, spot=True, absent_since=NOW, minted_at=NOW), True),  # no poll has seen it busy: it may have been
        (spot(S.FAILED, absent_since=NOW, minted_at=None), False),  # no job was ever given to it
        (spot(S.DELETING, absent_since=NOW, minted_at=NOW), False),  # gone by our doing
        (replace(spot(S.FAILED, absent_since=NOW, minted_at=NOW), spot=False), False),
    ],
)
def test_of_a_spot_vm_that_was_taken_away_the_name_is_kept_when_its_row_goes(row: Runner, kept: bool) -> None:
    assert remembered(NOW, Head("linux"), [row]).taken == ({row.name: NOW} if kept else {})


def test_the_names_of_vms_taken_away_are_kept_for_a_while_and_are_never_many() -> None:
    row = spot(S.FAILED, absent_since=NOW, minted_at=NOW)
    old = Head("linux", taken={"old": NOW - TAKEN_KEPT, "new": NOW - TAKEN_KEPT + MINUTE})
    assert list(remembered(NOW, old, [row]).taken) == ["new", NAME]
    assert remembered(NOW, old, []) is old
    many = remembered(NOW, old, [replace(row, name=f"hw-linux-{number}") for number in range(TAKEN)]).taken
    assert (len(many), "new" in many) == (TAKEN, False)


def test_a_notice_is_kept_as_it_was_first_read_and_its_vm_serves_nobody_until_it_was_spared() -> None:
    row = spot(S.READY)
    word = status(AgentPhase.WAITING, eviction_at=NOW + timedelta(seconds=30))
    warned = advance(NOW, row, Seen(NOW, {row.name: row.since}, agents={row.name: word}))
    assert warned.eviction_at == word.eviction_at
    assert advance(NOW, warned, Seen(NOW, {row.name: row.since}, agents={row.name: replace(word, eviction_at=NOW)})) == warned
    assert not serves(NOW, warned)
    assert serves(NOW + NOTICE + MINUTE, warned)
    for odd in (replace(row, spot=False), row):
        liar = replace(word, eviction_at=NOW + timedelta(days=9000))
        told = advance(NOW, odd, Seen(NOW, {row.name: row.since}, agents={row.name: liar}))
        assert serves(NOW + 3 * NOTICE, told)


# ---------------------------------------------------------------------------------------------- on another pool's VM


def abroad(row: Runner) -> Runner:
    """The same, as a runner of the pool `big`."""
    return replace(row, name=ELSEWHERE, pool="big")


def snapshots(its_job: Job, its_runner: Runner) -> dict[str, Snapshot]:
    return {
        "linux": Snapshot(Head("linux"), {"1": its_job}, {}, {}),
        its_runner.pool: Snapshot(Head(its_runner.pool), {}, {its_runner.name: its_runner}, {}),
    }


ELSEWHERE = "hw-big-bbbbbbbbbb"
THERE = {"runner_name": ELSEWHERE}
MISSING: dict[str, Vm | None] = {ELSEWHERE: None}
FOUND: dict[str, Vm | None] = {ELSEWHERE: Vm(ELSEWHERE, VmState.SUCCEEDED, {}, NOW)}


@pytest.mark.parametrize(
    ("its_job", "its_runner", "direct", "known"),
    [
        (job(**{**RAN, **THERE}), spot(S.FAILED, absent_since=NOW), {}, True),
        (job(**{**RAN, **THERE}), spot(), MISSING, True),  # found missing in this very pass
        (job(**{**RAN, **THERE}), spot(), FOUND, False),
        (job(**{**RAN, **THERE}), spot(), {}, False),  # not looked for
        (job(**{**RAN, **THERE}), spot(put_until=NOW + MINUTE), MISSING, False),
        (job(**{**RAN, **THERE}), replace(spot(), spot=False), MISSING, False),
        (job(**{**FAILED, **THERE}), spot(S.DELETING, eviction_at=NOW, completed_job="1"), {}, True),
        (job(**{**FAILED, **THERE}), spot(S.DELETING, completed_job="1"), MISSING, False),  # gone by our doing
        (job(**{**FAILED, **THERE}, evicted="said already"), spot(S.FAILED, absent_since=NOW), {}, False),
    ],
)
def test_a_job_is_lost_with_another_pools_vm_as_with_one_of_its_own(
    its_job: Job, its_runner: Runner, direct: dict[str, Vm | None], known: bool
) -> None:
    found = lost_elsewhere(NOW, snapshots(its_job, abroad(its_runner)), direct)
    assert [(one, ELSEWHERE in how) for one, how in found] == [(its_job, True)] * known


def test_what_happens_to_a_pools_own_vm_is_left_to_its_own_pass() -> None:
    mine = spot(S.FAILED, absent_since=NOW)
    assert not lost_elsewhere(NOW, {"linux": Snapshot(Head("linux"), {"1": job(**RAN)}, {NAME: mine}, {})}, {})


@virtual
async def test_a_job_lost_with_another_pools_spot_vm_is_run_again_by_its_own_pool() -> None:
    big = pool(name="big", labels=["linux", "big"], vm={"sizes": ["Standard_D4ads_v5"], "priority": "spot"})
    scene = Scene(config(pool(rerun_evicted=True), big))
    row = abroad(spot(busy_job="1"))
    await scene.at_rest(row)
    await scene.hold(job(**{**RAN, **THERE, "started_at": NOW}))
    await scene.azure.delete_vm(row.name)
    del scene.hub.registered[ORG][row.name]
    await scene.reconcile()  # which first finds it missing; the next one might find no row of it
    assert (await scene.jobs())["1"].evicted == f"its spot VM {ELSEWHERE} was taken away"

    failed = fact("completed", "1", conclusion="failure", completed_at=clock(), run_id="77", job_name="build", **THERE)
    await scene.hold(failed)
    assert await scene.wake() == {"big"}
    assert [what for called, what in scene.hub.calls if called == "rerun"] == ["1"]
    before = scene.rows(without="heartbeat")
    for _ in range(2):
        await scene.reconcile()
    assert scene.hub.count("rerun") == 1
    assert [row for row in scene.rows(without="heartbeat") if row[1] == "job:1"] == [row for row in before if row[1] == "job:1"]


@virtual
async def test_a_job_of_which_every_delivery_came_after_its_vms_row_had_gone_is_run_again_all_the_same() -> None:
    scene = Scene(config(pool(**SPOT)))
    await scene.at_rest(runner(S.REGISTERED, spot=True, minted_at=NOW - MINUTE))
    await scene.azure.delete_vm(NAME)
    del scene.hub.registered[ORG][NAME]
    for _ in range(3):
        await scene.reconcile()
        await later(seconds=30)
    assert NAME not in await scene.runners()

    told = {"run_id": "77", "job_name": "build", "runner_name": NAME}
    scene.hub.jobs["1"] = JobReport("1", "completed", "failure", NAME, 7, NOW, clock())
    await scene.hold(fact("completed", "1", conclusion="failure", completed_at=clock(), **told))
    await scene.wake()
    assert (await scene.jobs())["1"].evicted == f"its spot VM {NAME} was taken away"
    assert scene.hub.count("rerun") == 1


# ---------------------------------------------------------------------------------------------- noticed at the last moment

WARNED = status(AgentPhase.EXITED, job_seen=True, eviction_at=NOW + timedelta(seconds=20))
ENDED: dict[str, Any] = {"age": timedelta(0), "spot": True, "busy_at": NOW - MINUTE, "completed_job": "1"}
UNWARNED = replace(WARNED, eviction_at=None)


@pytest.mark.parametrize(
    ("changes", "word", "vm", "at"),
    [
        ({}, WARNED, VmState.SUCCEEDED, WARNED.eviction_at),
        ({}, replace(WARNED, eviction_at=NOW + timedelta(days=9000)), VmState.SUCCEEDED, NOW + NOTICE),
        ({}, UNWARNED, VmState.SUCCEEDED, None),
        ({}, AgentTrouble.SILENT, VmState.SUCCEEDED, None),
        ({}, AgentTrouble.SILENT, VmState.DELETING, NOW),  # on its way out, and not by our doing
        ({}, AgentTrouble.SILENT, None, NOW),
        ({"address": None}, WARNED, None, NOW),
        ({"attempts": 1}, AgentTrouble.SILENT, None, None),  # our own first try may have done it
        ({"age": FRESH + MINUTE}, AgentTrouble.SILENT, None, None),  # or that of a worker that died
        ({"spot": False}, WARNED, None, None),
        ({"completed_job": None}, WARNED, None, None),
        ({"eviction_at": NOW - MINUTE}, WARNED, None, NOW - MINUTE),
    ],
)
@virtual
async def test_a_spot_vm_is_asked_for_its_notice_before_it_is_deleted(
    changes: dict[str, Any], word: Any, vm: VmState | None, at: Any
) -> None:
    scene = Scene()
    row = claimed(S.DELETING, **{**ENDED, "address": "10.0.0.4", **changes})
    scene.crew.words[NAME] = word
    await scene.hold(row)
    scene.azure.vms = {NAME: Vm(NAME, vm, {}, NOW)} if vm else {}
    await act(scene.acting(), list((await scene.runners()).values()), [])
    after = await scene.only()
    assert (after.eviction_at, after.delete_accepted_at) == (at, NOW)


@virtual
async def test_azure_that_cannot_be_asked_keeps_no_vm_from_being_deleted() -> None:
    scene = Scene()
    scene.crew.words[NAME] = AgentTrouble.SILENT
    scene.azure.fails("get_vm", RetryLater("500"))
    row = (await scene.act(claimed(S.DELETING, **ENDED)))[NAME]
    assert (row.eviction_at, row.delete_accepted_at) == (None, NOW)


@virtual
async def test_a_failure_reported_within_the_notice_that_no_poll_has_read_is_an_eviction_all_the_same() -> None:
    scene = Scene(config(pool(**SPOT)))
    await scene.at_rest(spot(busy_job="1"))
    await scene.hold(job(**{**RAN, "started_at": NOW}))
    scene.crew.words[NAME] = WARNED
    await scene.hold(fact("completed", "1", conclusion="failure", completed_at=clock(), run_id="77", job_name="build"))
    await scene.wake()
    assert (await scene.runners())[NAME].state is S.DELETING
    await scene.reconcile()
    assert (await scene.jobs())["1"].evicted == f"Azure gave notice to its spot VM {NAME}"
    assert scene.hub.count("rerun") == 1


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
