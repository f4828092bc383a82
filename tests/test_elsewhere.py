"""The pool file, or the subscription, names another resource group while VMs of the one before still run."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from runnerpool.config import AzureConfig
from runnerpool.decide import decide
from runnerpool.lifecycle import NOTHING_SEEN, Seen, located
from runnerpool.model import Head, Job, Runner, RunnerState, Snapshot
from runnerpool.planner import Planner
from runnerpool.ports import AgentTrouble, Vm, VmSpec, VmState
from runnerpool.settings import Settings
from tests.made_rows import MINUTE, NOW, clock, config, fact, job, pool, runner, setting, virtual
from tests.stand_ins import Scene

S = RunnerState
OLD, NEW = "sub/old-rg", "sub/new-rg"
SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"


# ---------------------------------------------------------------------------------------------- where a VM is


def shown(row: Runner) -> Seen:
    return Seen(vms={row.name: Vm(row.name, VmState.SUCCEEDED, {}, NOW)})


ROW = runner(S.READY)


@pytest.mark.parametrize(
    ("row", "seen", "place", "where"),
    [
        (replace(ROW, place=OLD), NOTHING_SEEN, OLD, (OLD, None)),
        (replace(ROW, place=OLD), NOTHING_SEEN, "SUB/Old-RG", (OLD, None)),  # Azure's names are the same in capitals
        (replace(ROW, place=OLD), NOTHING_SEEN, NEW, (OLD, True)),
        (replace(ROW, place=OLD, elsewhere=True), NOTHING_SEEN, OLD, (OLD, None)),  # somebody went back
        (replace(ROW, place=OLD, elsewhere=True), shown(ROW), NEW, (NEW, None)),  # it was moved
        (ROW, NOTHING_SEEN, NEW, (None, None)),  # from before places were written
        (ROW, shown(ROW), NEW, (NEW, None)),
        (replace(ROW, place=OLD, elsewhere=True), NOTHING_SEEN, "", (OLD, True)),  # nobody says where we look
    ],
)
def test_a_vm_is_where_it_was_asked_for_or_last_shown(
    row: Runner, seen: Seen, place: str, where: tuple[str | None, bool | None]
) -> None:
    after = located(row, seen, place)
    assert (after.place, after.elsewhere) == where


def test_a_place_is_the_subscription_and_the_group() -> None:
    assert AzureConfig(name_prefix="ci").place("0000") == "0000/ci-rg"


# ---------------------------------------------------------------------------------------------- what is done about it


def decided(*rows: Job | Runner, **changes: Any) -> tuple[dict[str, Runner], list[str]]:
    """The rows after one decision in the new group, and those that it acts on."""
    jobs = {row.job_id: row for row in rows if isinstance(row, Job)}
    runners = {row.name: row for row in rows if isinstance(row, Runner)}
    made = decide(NOW, setting(pool(**changes), place=NEW), Snapshot(Head("linux"), jobs, runners, {}))
    return dict(made.runners), list(made.mine)


@pytest.mark.parametrize(
    ("row", "acted"),
    [
        (runner(S.CREATING, place=OLD), False),  # its VM may be there
        (runner(S.BINDING, place=OLD), False),  # its address is one of another network
        (runner(S.DELETING, place=OLD), False),  # the new group would answer that there is no such VM
        (runner(S.DELETING, place=OLD, delete_accepted_at=NOW - MINUTE), False),
        (runner(S.RETIRING, place=OLD), True),  # GitHub is where it was
        (runner(S.DELETING, place=NEW), True),
        (runner(S.DELETING), True),
    ],
)
def test_nothing_is_asked_of_azure_or_an_agent_for_a_vm_that_is_elsewhere(row: Runner, acted: bool) -> None:
    after, mine = decided(row)
    assert mine == ([row.name] if acted else [])
    assert after.keys() == {row.name}


def test_a_vm_that_is_elsewhere_serves_no_job_and_counts_against_the_maximum() -> None:
    idle = runner(S.READY, place=OLD, age=9 * 60 * MINUTE)
    after, mine = decided(job(), idle, maximum_pool_size=2)
    assert after[idle.name].state is S.READY
    assert len(after) == 2
    assert mine != [idle.name]
    after, _ = decided(job(), idle, maximum_pool_size=1)
    assert after.keys() == {idle.name}


@virtual
async def test_the_row_says_where_its_vm_was_asked_for_before_it_is() -> None:
    scene = at(Scene(), OLD)
    await scene.hold(fact())
    places: list[str | None] = []

    async def note(spec: VmSpec) -> None:
        places.extend([row.place for row in (await scene.runners()).values()])

    scene.azure.create_vm = note  # type: ignore[method-assign]
    await scene.wake()
    assert places == [OLD]


# ---------------------------------------------------------------------------------------------- the whole


def at(scene: Scene, place: str) -> Scene:
    """The scene as an app that was deployed with this place."""
    scene.outside = replace(scene.outside, place=place)
    return scene


@virtual
async def test_while_nothing_changes_vms_that_are_elsewhere_cost_no_writes_and_no_calls() -> None:
    scene = at(Scene(), NEW)
    away: dict[str, Any] = {"place": OLD}
    deleting = runner(S.DELETING, "deleting", delete_accepted_at=NOW, not_before=NOW, **away)
    await scene.hold(runner(S.READY, **away), runner(S.BUSY, "busy", **away), runner(S.BOOTING, "boots", **away), deleting)
    scene.azure.vms, scene.azure.nics = {}, {}
    await scene.passes(MINUTE)  # the second pass tells of them
    before = scene.rows(without="heartbeat")
    await scene.passes(timedelta(minutes=30))
    assert scene.rows(without="heartbeat") == before
    assert not scene.crew.calls
    assert {call for call, _ in scene.azure.calls} == {"list_vms", "list_nics"}


@virtual
async def test_rows_from_before_places_were_written_learn_theirs_from_azures_list() -> None:
    scene = at(Scene(config(pool(minimum_warm_vms=1))), OLD)
    await scene.at_rest(runner(S.READY))
    await scene.reconcile()
    assert (await scene.only()).place == OLD


@virtual
async def test_the_app_takes_the_place_from_its_settings_and_its_pool_file() -> None:
    env = {
        "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
        "ARM_ENDPOINT": "http://127.0.0.1:1",
        "GITHUB_TOKEN": "a token",
        "RUNNER_AGENT_KEY": "k" * 32,
        "AzureWebJobsStorage": "UseDevelopmentStorage=true",
    }
    planner = Planner.open(Settings.from_env(env), config(), Scene().ledger, clock)
    assert planner.reconciler.outside.place == planner.passes.engine.outside.place == f"{SUBSCRIPTION}/hw-rg"
    await planner.close()


@virtual
async def test_a_group_that_was_changed_loses_no_vm_and_going_back_finds_them_all() -> None:
    scene = at(Scene(config(pool(minimum_warm_vms=1, maximum_pool_size=9))), OLD)
    free, bound, busy, ends = (
        runner(S.READY, "free"),
        runner(S.REGISTERED, "bound"),
        runner(S.BUSY, "busy", github_id=8),
        runner(S.BUSY, "ends", github_id=9, busy_job="2"),
    )
    await scene.at_rest(free, bound, busy, ends)
    await scene.reconcile()
    before = dict(scene.azure.vms), dict(scene.azure.nics)
    old = set(before[0])

    at(scene, NEW)
    scene.azure.vms, scene.azure.nics = {}, {}
    over = fact("completed", "2", runner_name=ends.name, runner_id=9, created_at=clock(), received_at=clock())
    await scene.hold(over)
    scene.crew.words = dict.fromkeys(old, AgentTrouble.SILENT)
    asked = len(scene.azure.calls)
    await scene.passes(timedelta(hours=2))
    rows = await scene.runners()
    assert old <= rows.keys()
    assert not [row.name for row in rows.values() if row.name in old and (row.absent_since or row.delete_accepted_at)]
    assert rows[busy.name].state is S.BUSY
    assert old.isdisjoint(what for call, what in scene.azure.calls[asked:] if call in ("get_vm", "delete_vm"))
    assert set(scene.azure.vms) == rows.keys() - old  # the warm minimum is kept in the new group
    (alert,) = scene.mail.sent
    assert alert.title.startswith("4 VMs")
    assert [part for part in (*old, OLD, NEW, "drain --all") if part not in alert.text] == []

    scene.azure.vms, scene.azure.nics = {**before[0], **scene.azure.vms}, {**before[1], **scene.azure.nics}
    scene.crew.words.update(dict.fromkeys(old, AgentTrouble.SILENT))
    at(scene, OLD)
    await scene.passes(timedelta(minutes=5))
    assert ends.name not in scene.azure.vms
    assert scene.azure.vms[busy.name]
    assert "over: " in "".join(alert.title for alert in scene.mail.sent)
