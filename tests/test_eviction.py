"""Jobs lost with a spot VM: how that is known."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from runnerpool.acts import act
from runnerpool.errors import RetryLater
from runnerpool.eviction import TAKEN, TAKEN_KEPT, lost, lost_elsewhere, remembered
from runnerpool.lifecycle import NOTICE, Seen, advance, serves
from runnerpool.model import Head, Job, Runner, RunnerState, Snapshot
from runnerpool.ports import AgentPhase, AgentTrouble, JobReport, Vm, VmState
from tests.evicted import FAILED, NAME, RAN, SPOT, spot
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
    pool,
    runner,
    status,
    virtual,
)
from tests.memory_table import Request
from tests.stand_ins import Scene

S = RunnerState


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
        ({"attempts": 1, "age": 10 * MINUTE}, AgentTrouble.SILENT, None, NOW),  # none of our tries came as far as Azure
        ({"looked_at": NOW - MINUTE}, AgentTrouble.SILENT, None, None),  # our own deletion may have done it
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


async def delete_anew(scene: Scene) -> Runner:
    """The next attempt, by a worker that has claimed the row anew; the row after it."""
    await later(seconds=30)
    row = await scene.ledger.revise_runner(await scene.only(), lambda row: replace(row, claimed_by="worker"))
    assert row is not None
    await act(scene.acting(), [row], [])
    return await scene.only()


@pytest.mark.parametrize("lost", [False, True], ids=["a PUT in doubt", "its answer lost"])
@virtual
async def test_a_vm_that_our_own_first_deletion_took_was_not_evicted(lost: bool) -> None:
    scene = Scene()
    scene.crew.words[NAME] = AgentTrouble.SILENT
    doubt = {} if lost else {"accepted_at": NOW - MINUTE, "put_until": NOW + timedelta(seconds=20)}
    await scene.hold(claimed(S.DELETING, **ENDED, **doubt))
    if lost:
        scene.azure.fails("delete_vm", RetryLater("no answer", after=MINUTE), applied=True)
    await act(scene.acting(), [await scene.only()], [])
    assert NAME not in scene.azure.vms
    after = await delete_anew(scene)
    assert (after.eviction_at, after.delete_accepted_at) == (None, clock())


@virtual
async def test_a_vm_that_azure_took_counts_as_evicted_also_where_our_first_attempt_at_its_deletion_came_to_nothing() -> None:
    scene = Scene()
    scene.crew.words[NAME] = AgentTrouble.SILENT
    await scene.hold(claimed(S.DELETING, **ENDED))
    scene.azure.vms.clear()

    async def no_tokens(request: Request) -> None:
        if request.key.startswith("budget:"):
            raise RetryLater("storage answers 503")

    works, scene.table.before = scene.table.before, no_tokens
    await act(scene.acting(), [await scene.only()], [])
    assert ((await scene.only()).attempts, scene.azure.count("delete_vm")) == (1, 0)
    scene.table.before = works
    after = await delete_anew(scene)
    assert (after.eviction_at, after.delete_accepted_at) == (clock(), clock())


@pytest.mark.parametrize(("failures", "seen"), [(1, True), (99, False)])
@virtual
async def test_azure_that_cannot_be_asked_at_once_is_asked_again_and_then_keeps_no_vm_from_being_deleted(
    failures: int, seen: bool
) -> None:
    scene = Scene()
    scene.crew.words[NAME] = AgentTrouble.SILENT
    await scene.hold(claimed(S.DELETING, **ENDED))
    scene.azure.vms.clear()
    scene.azure.fails("get_vm", *[RetryLater("500")] * failures)
    await act(scene.acting(), list((await scene.runners()).values()), [])
    after = await scene.only()
    assert (after.eviction_at is not None, after.delete_accepted_at is not None) == (seen, True)


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
