"""The 30-second pass: what it reads and in which order, and what one service's trouble leaves alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from runnerpool.config import Config
from runnerpool.errors import Misconfigured, PoolError, RetryLater
from runnerpool.gather import LOOKS, list_interval
from runnerpool.lifecycle import LIST_LAG
from runnerpool.model import Head, RunnerState, Target
from runnerpool.ports import AgentPhase, AgentTrouble, JobReport, Registration, Upsert, VmSpec, VmState
from runnerpool.status import report
from tests.made_rows import MINUTE, NOW, ORG, clock, config, fact, job, later, pool, runner, status, virtual
from tests.memory_table import Request
from tests.stand_ins import Scene

S = RunnerState


def two_pools(**changes: Any) -> Config:
    return config(pool(**changes), pool(labels=["windows"], name="windows"))


# ---------------------------------------------------------------------------------------------- an unchanged world


@virtual
async def test_a_second_pass_over_an_unchanged_world_writes_nothing_but_the_heartbeat() -> None:
    scene = Scene(config(pool(minimum_warm_vms=2)))
    done = job("9", completed_at=NOW, runner_name="hw-linux-gone")
    await scene.at_rest(runner(S.READY), runner(S.READY, "silent"), runner(S.BUSY, "busy"), done, fact("waiting", "5"))
    scene.crew.words["hw-linux-silent"] = AgentTrouble.SILENT
    scene.hub.jobs["5"] = JobReport("5", "waiting", None, None, None, None, None)
    await scene.reconcile()
    before = scene.rows(without="heartbeat")
    written: list[str] = []

    async def note(request: Request) -> None:
        written.extend(operation.row for operation in request.operations)

    scene.table.before = note
    for _ in range(8):
        await later(seconds=30)
        await scene.reconcile()
    assert set(written) == {"heartbeat"}
    assert scene.rows(without="heartbeat") == before


@virtual
async def test_a_pool_fills_up_to_its_warm_minimum_and_stays_there() -> None:
    scene = Scene(config(pool(minimum_warm_vms=3)))
    for _ in range(100):
        await scene.reconcile()
        await later(seconds=30)
    assert [row.state for row in (await scene.runners()).values()] == [S.READY] * 3
    assert len(scene.azure.specs) == 3
    assert not scene.hub.count("mint")


@virtual
async def test_idle_vms_of_another_shape_are_replaced_one_after_the_other_and_the_pool_stays_warm() -> None:
    changed = pool(minimum_warm_vms=3, vm={"sizes": ["Standard_D4ads_v5"], "runner_version": "2.330.0"})
    scene = Scene(config(changed))
    await scene.at_rest(*(runner(S.READY, str(n), shape="made before") for n in range(3)))
    for _ in range(20):
        await scene.reconcile()
        idle = [row for row in (await scene.runners()).values() if row.state is S.READY]
        assert len(idle) >= 2
        await later(seconds=30)
    assert {row.shape for row in (await scene.runners()).values()} == {changed.vm.shape}
    assert len(scene.azure.specs) == len(scene.azure.vms) == 3


@virtual
async def test_with_keep_registered_a_reaped_registration_is_renewed_and_its_vm_stays() -> None:
    scene = Scene(config(pool(minimum_warm_vms=1, keep_registered=True)))
    for turn in range(20):
        await scene.reconcile()
        await later(seconds=30)
        if turn == 10:  # GitHub drops it, its runner exits
            (name,) = scene.hub.registered[ORG]
            del scene.hub.registered[ORG][name]
            scene.crew.words[name] = status(AgentPhase.EXITED, binding=100)
    row = await scene.only()
    assert (row.state, row.github_id) == (S.REGISTERED, 101)
    assert len(scene.azure.specs) == 1


@virtual
async def test_a_vm_beyond_the_warm_minimum_goes_by_way_of_github_and_its_agent() -> None:
    scene = Scene()
    await scene.at_rest(runner(S.REGISTERED))
    seen: list[str] = []
    while await scene.runners():
        await scene.reconcile()
        await later(seconds=30)
        seen += [str(row.state) for row in (await scene.runners()).values() if str(row.state) not in seen[-1:]]
        assert clock() - NOW < timedelta(hours=1)
    assert seen == ["registered", "retiring", "deleting"]
    assert (scene.azure.vms, dict(scene.hub.registered[ORG])) == ({}, {})


# ---------------------------------------------------------------------------------------------- what is read


@virtual
async def test_azure_is_read_before_the_ledger_and_github_and_the_agents_after_it() -> None:
    scene = Scene(config(pool(minimum_warm_vms=1)))
    await scene.at_rest(runner(S.READY))
    order: list[str] = []

    async def note(request: Request) -> None:
        order.append(f"{request.kind} {request.partition}")

    scene.table.before = note
    scene.azure.step = lambda: order.append(scene.azure.calls[-1][0])
    scene.hub.step = lambda: order.append(scene.hub.calls[-1][0])
    scene.crew.step = lambda: order.append(scene.crew.calls[-1][0])
    await scene.reconcile()
    first = {step: order.index(step) for step in ("list_vms", "list_nics", "read _app", "read linux", "list", "status")}
    assert max(first["list_vms"], first["list_nics"]) < first["read _app"] < first["read linux"] < first["list"] < first["status"]


@virtual
async def test_calls_do_not_grow_with_idle_vms_but_for_each_ones_own_agent() -> None:
    counts = []
    for size in (1, 30):
        scene = Scene(config(pool(minimum_warm_vms=size)))
        await scene.at_rest(*(runner(S.READY, f"{n:010d}") for n in range(size)))
        await scene.reconcile()
        counts.append((len(scene.azure.calls), len(scene.hub.calls)))
        assert scene.crew.count("status") == size
    assert counts[0] == counts[1]


@virtual
async def test_a_service_that_hangs_while_it_is_read_keeps_no_other_from_its_acts() -> None:
    scene = Scene()
    await scene.at_rest(runner(S.FINISHED, completed_job="1"))

    async def hangs(target: Target) -> list[Registration]:
        await later(seconds=95)  # which is more than the pass has
        raise RetryLater("GitHub gave no answer")

    scene.hub.list_runners = hangs  # type: ignore[method-assign]
    await scene.reconcile()
    assert scene.azure.vms == {}


@pytest.mark.parametrize(("pages", "seconds"), [(0, 25), (1, 25), (10, 25), (50, 108), (500, 1080)])
def test_whole_github_lists_take_at_most_a_third_of_the_hourly_budget(pages: int, seconds: int) -> None:
    assert list_interval(pages).total_seconds() == seconds
    assert pages * 3600 / list_interval(pages).total_seconds() <= 5000 / 3


@virtual
async def test_a_vm_that_the_list_leaves_out_is_asked_about_directly_and_kept_when_it_is_there() -> None:
    scene = Scene(config(pool(minimum_warm_vms=2)))
    young, old = runner(S.READY, "young", accepted_at=NOW - LIST_LAG + MINUTE), runner(S.READY, "old")
    await scene.at_rest(young, old)
    scene.azure.hidden = {young.name, old.name}
    await scene.reconcile()
    assert [what for call, what in scene.azure.calls if call == "get_vm"] == [old.name]
    assert {row.state for row in (await scene.runners()).values()} == {S.READY}


@virtual
async def test_vms_that_somebody_deleted_are_replaced_a_few_questions_at_a_time() -> None:
    some = LOOKS + 10
    scene = Scene(config(pool(minimum_warm_vms=some, maximum_pool_size=2 * some)))
    await scene.at_rest(*(runner(S.READY, f"gone{n:06d}") for n in range(some)))
    scene.azure.vms.clear()
    await scene.reconcile()
    assert scene.azure.count("get_vm") == LOOKS
    for _ in range(6):
        await later(seconds=30)
        await scene.reconcile()
    rows = (await scene.runners()).values()
    assert len(rows) == len(scene.azure.vms) == some
    assert {row.state for row in rows} == {S.READY}


# ---------------------------------------------------------------------------------------------- trouble


@pytest.mark.parametrize("error", [RetryLater("503"), Misconfigured("403 no permission", area="auth")])
@pytest.mark.parametrize(("service", "method"), [("azure", "list_vms"), ("azure", "list_nics"), ("hub", "list")])
@virtual
async def test_what_cannot_be_read_removes_nothing_and_stops_nothing_else(service: str, method: str, error: PoolError) -> None:
    scene = Scene(config(pool(minimum_warm_vms=2)))
    await scene.at_rest(runner(S.READY), runner(S.REGISTERED, "bound"), runner(S.BUSY, "busy"))
    getattr(scene, service).fails(method, *[error] * 999)
    for _ in range(60):
        await scene.reconcile()
        await later(seconds=30)
    states = {row.name: row.state for row in (await scene.runners()).values()}
    assert states == {"hw-linux-aaaaaaaaaa": S.READY, "hw-linux-bound": S.REGISTERED, "hw-linux-busy": S.BUSY}
    assert str(error) in (await scene.heartbeat())["trouble"]["github" if service == "hub" else "azure"]
    assert not scene.azure.count("delete_vm")

    await scene.hold(*(fact(job_id=job_id, created_at=clock(), received_at=clock()) for job_id in "89"))
    await scene.reconcile()
    assert (await scene.runners())["hw-linux-aaaaaaaaaa"].state is S.REGISTERED  # jobs are served all the same


@virtual
async def test_a_vm_of_a_repository_that_is_gone_is_kept_and_told_and_its_row_goes_once_somebody_has_deleted_the_vm() -> None:
    scene = Scene(config(pool(maximum_pool_size=1), scope="repo", repositories=["hello"]))
    hello, old = "repo:octo-org/hello", "repo:octo-org/old"
    bound = runner(S.REGISTERED, target=old)
    await scene.at_rest(bound, job(target=hello))
    del scene.hub.registered[old]  # DELETE answers 404
    scene.hub.jobs["1"] = JobReport("1", "queued", None, None, None, None, None)

    async def listed(target: Target) -> list[Registration]:
        if target == old:
            raise Misconfigured("404: no repo 'octo-org/old', or the credential lacks a permission", area="auth")
        return list(scene.hub.registered[target].values())

    scene.hub.list_runners = listed  # type: ignore[method-assign]
    await scene.passes(timedelta(hours=2))
    assert (await scene.only()).state is S.RETIRING
    assert not scene.azure.count("delete_vm")
    (alert,) = [alert for alert in scene.mail.sent if alert.id.startswith("retiring-")]
    assert bound.name in alert.text

    del scene.azure.vms[bound.name]
    del scene.azure.nics[f"{bound.name}-nic"]
    await scene.passes(timedelta(minutes=25))
    assert (await scene.only()).target == hello  # the one job that waited at the maximum has its VM
    assert scene.mail.sent[-1].title.startswith("over: ")


@virtual
async def test_agents_that_all_fall_silent_cost_no_busy_vm() -> None:
    scene = Scene()
    await scene.at_rest(runner(S.BUSY))
    scene.crew.words["hw-linux-aaaaaaaaaa"] = AgentTrouble.SILENT
    for _ in range(120):
        await scene.reconcile()
        await later(seconds=30)
    assert (await scene.only()).state is S.BUSY
    assert scene.azure.vms


@virtual
async def test_a_pool_whose_pass_fails_stops_no_other_and_is_told_in_the_heartbeat() -> None:
    scene = Scene(two_pools(minimum_warm_vms=1))
    await scene.hold(job(pool="windows", labels=("windows",)))

    async def fails(request: Request) -> None:
        if request.kind == "transact" and request.partition == "windows":
            raise ValueError("a defect")

    scene.table.before = fails
    await scene.reconcile()
    assert (await scene.only()).state is S.BOOTING
    assert (await scene.heartbeat())["failures"] == {"windows": "ValueError: a defect"}


@virtual
async def test_a_pool_that_azure_refuses_rests_and_its_neighbour_goes_on() -> None:
    scene = Scene(two_pools(minimum_warm_vms=1))
    await scene.hold(job(pool="windows", labels=("windows",)))
    scene.azure.fails("create_vm", Misconfigured("no such image", area="provisioning"))
    for _ in range(3):
        await scene.reconcile()
        await later(seconds=30)
    heads = [(await scene.ledger.read_pool(name)).head.rests for name in ("linux", "windows")]
    assert sorted(map(len, heads)) == [0, 1]
    assert len(scene.azure.vms) == 1


@virtual
async def test_a_damaged_heartbeat_is_written_anew() -> None:
    scene = Scene()
    await scene.table.transact("_app", [Upsert("heartbeat", {"body": "{"})])
    await scene.reconcile()
    assert (await scene.heartbeat())["trouble"] == {}


@virtual
async def test_a_damaged_job_row_does_not_keep_its_pool_from_planning() -> None:
    scene = Scene()
    await scene.table.transact("linux", [Upsert("job:1", {"queued": "perhaps"})])
    await scene.hold(fact(), fact(job_id="2"))
    await scene.reconcile()
    assert (await scene.only()).job_id == "2"


@virtual
async def test_two_timers_at_once_do_no_harm() -> None:
    scene = Scene(config(pool(minimum_warm_vms=2, maximum_pool_size=3)))

    async def takes_time(_request: Request) -> None:
        await later(seconds=0.01)

    await scene.at_rest(*(fact(job_id=str(n)) for n in range(4)), runner(S.FAILED))
    scene.table.before = takes_time
    for _ in range(4):
        await asyncio.gather(scene.reconcile(), scene.reconcile())
        assert len(scene.azure.vms) <= 3
        await later(seconds=30)
    assert len(scene.azure.vms) == 3


# ---------------------------------------------------------------------------------------------- a refusal that comes late


@virtual
async def test_an_offer_that_azure_took_and_could_not_keep_rests_its_vm_and_nic_go_and_the_job_is_told() -> None:
    zones = {"sizes": ["Standard_D4ads_v5"], "zones": ["2", "3"]}
    scene = Scene(config(pool(vm=zones)))
    await scene.hold(fact(), Head("linux", boot_seconds=600.0))  # it boots unregistered

    def refuse_zone_2(spec: VmSpec) -> None:
        if spec.zone == "2":
            vm = scene.azure.vms[spec.name]
            scene.azure.put(replace(vm, state=VmState.FAILED, power=None, error_code="AllocationFailed", error="no room"))
            scene.crew.words[spec.name] = AgentTrouble.SILENT
        else:
            scene.crew.words[spec.name] = status(AgentPhase.SETUP)

    scene.azure.boots = refuse_zone_2
    await scene.reconcile()
    await later(seconds=30)
    await scene.reconcile()
    assert [spec.zone for spec in scene.azure.specs] == ["2", "3"]
    assert [vm.zone for vm in scene.azure.vms.values()] == ["3"]
    assert len(scene.azure.nics) == 1
    _, document = await report(clock(), scene.config, scene.ledger)
    ((told,),) = (one["waiting"] for one in document["pools"])
    assert "no capacity for Standard_D4ads_v5 in zone 2 until 01:00, trying zone 3" in told["reason"]
