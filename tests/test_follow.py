"""Between two ticks: VMs that waiting jobs need are watched while they boot; and what a whole pass concludes from silence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runnerpool.follow import awaits_boot
from runnerpool.model import Head, RunnerState, Snapshot
from runnerpool.ports import AgentTrouble, VmSpec
from tests.made_rows import MINUTE, NOW, config, fact, job, later, pool, runner, status, virtual
from tests.stand_ins import Scene

S = RunnerState


@pytest.mark.parametrize(
    ("runners", "jobs", "expected"),
    [
        ([runner(S.BOOTING)], [job()], True),
        ([runner(S.BOOTING)], [], False),
        ([runner(S.BOOTING)], [job(demand=False)], False),
        ([runner(S.BOOTING, minted_at=NOW, github_id=7)], [job()], False),
        ([runner(S.READY)], [job()], False),
    ],
    ids=["a job waits for a boot", "no job", "no demand", "born registered: GitHub will tell", "booted already"],
)
def test_only_boots_that_a_waiting_job_needs_are_followed(runners: list, jobs: list, expected: bool) -> None:  # type: ignore[type-arg]
    snapshot = Snapshot(Head("linux"), {one.job_id: one for one in jobs}, {one.name: one for one in runners}, {})
    assert awaits_boot(pool(), snapshot) is expected


@virtual
async def test_a_vm_that_boots_between_two_ticks_is_bound_within_seconds_of_answering() -> None:
    scene = Scene()
    name = "hw-linux-aaaaaaaaaa"
    await scene.hold(replace(runner(S.BOOTING), name=name), job())
    scene.crew.words[name] = AgentTrouble.SILENT
    begun = scene.engine().clock()

    def boots_at_the_third_poll() -> None:
        if scene.crew.count("status") == 3:
            scene.crew.words[name] = status()

    scene.crew.step = boots_at_the_third_poll
    await scene.reconcile()
    assert [config.encoded for config in scene.crew.handed[name]], "it was bound within the tick"
    assert scene.engine().clock() - begun < MINUTE / 2


@virtual
async def test_an_idle_deployment_is_not_followed() -> None:
    scene = Scene()
    await scene.hold(runner(S.READY))
    await scene.reconcile()
    assert scene.azure.count("list_nics") == 1


@virtual
async def test_agents_that_fall_silent_all_at_once_are_no_witnesses_and_one_alert_says_so() -> None:
    scene = Scene(config=config(pool(minimum_warm_vms=3)))
    idle = [runner(S.READY, f"{letter}aaaaaaaaa") for letter in "abc"]
    await scene.hold(*idle)
    for one in idle:
        scene.crew.words[one.name] = AgentTrouble.SILENT
    for _ in range(45):
        await scene.reconcile()
        await later(seconds=30)
    assert scene.azure.count("delete_vm") == 0
    assert [alert.id for alert in scene.mail.sent] == ["silence"]


@virtual
async def test_one_dead_agent_among_others_is_retired_in_its_time() -> None:
    scene = Scene(config=config(pool(minimum_warm_vms=3)))
    idle = [runner(S.READY, f"{letter}aaaaaaaaa") for letter in "abc"]
    await scene.hold(*idle)
    scene.crew.words[idle[0].name] = AgentTrouble.SILENT
    for _ in range(45):
        await scene.reconcile()
        await later(seconds=30)
    assert scene.azure.calls.count(("delete_vm", idle[0].name)) == 1


@virtual
async def test_a_job_whose_pool_left_the_file_moves_to_the_pool_that_serves_its_labels_now() -> None:
    scene = Scene(config=config(pool(name="new")))
    made: list[VmSpec] = []
    scene.azure.boots = made.append
    await scene.ledger.put_app_row("pool:linux", {"since": NOW.isoformat()})
    await scene.hold(fact())
    await scene.reconcile()
    await scene.reconcile()
    assert [spec.tags["runnerpool-pool"] for spec in made] == ["new"]
    assert not (await scene.ledger.read_pool("linux")).jobs
