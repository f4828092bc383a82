"""Rule 4: what is ours and has no row goes after a grace period, and what only looks so stays."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from runnerpool.budget import GOOD_FOR, LIMITS
from runnerpool.errors import RetryLater
from runnerpool.gather import Gathered
from runnerpool.model import RunnerState
from runnerpool.ports import AgentPhase, Nic, Registration, Vm, VmState
from runnerpool.sweep import GRACE, adopted, orphaned_nics, orphaned_registrations, orphaned_vms
from tests.made_rows import MINUTE, NOW, ORG, clock, fact, job, later, runner, status, virtual
from tests.memory_table import Request
from tests.stand_ins import Scene

S = RunnerState
ORPHAN = "hw-linux-0rphan0000"
TAGS = {"runnerpool": "hw"}


def vm(name: str = ORPHAN, *, tags: dict[str, str] | None = None, age: timedelta = GRACE, **changes: Any) -> Vm:
    return replace(Vm(name, VmState.SUCCEEDED, TAGS if tags is None else tags, NOW - age, power="running"), **changes)


@pytest.mark.parametrize(
    ("found", "orphan"),
    [
        (vm(), True),
        (vm(age=GRACE - MINUTE), False),
        (vm(created_at=None), False),
        (vm(tags={}), False),  # our name, somebody else's VM
        (vm(tags={"runnerpool": "hw2"}), False),  # another deployment's
        (vm("hw-linux-x"), False),  # a name that we would not have made
        (vm("hw2-linux-0rphan0000"), False),
        (vm("hwlinux-0rphan0000"), False),
        (vm("hw-0rphan0000"), False),
        (vm(state=VmState.DELETING), False),
        (vm("hw-linux-known00000"), False),
    ],
)
def test_a_vm_is_an_orphan_only_with_our_name_our_tag_no_row_and_some_age(found: Vm, orphan: bool) -> None:
    assert bool(orphaned_vms(NOW, {found.name: found}, {"hw-linux-known00000"}, "hw")) is orphan


@pytest.mark.parametrize(
    ("nic", "orphan"),
    [
        (Nic(f"{ORPHAN}-nic", None, "10.0.0.9", TAGS), True),
        (Nic(f"{ORPHAN}-nic", ORPHAN, "10.0.0.9", TAGS), False),
        (Nic(f"{ORPHAN}-nic", None, "10.0.0.9", {}), False),
        (Nic("hw-linux-x-nic", None, "10.0.0.9", TAGS), False),
        (Nic("hw-linux-known00000-nic", None, "10.0.0.9", TAGS), False),
        (Nic("hw-linux-alive00000-nic", None, "10.0.0.9", TAGS), False),
    ],
)
def test_a_nic_is_an_orphan_only_without_vm_and_row(nic: Nic, orphan: bool) -> None:
    assert bool(orphaned_nics([nic], {"hw-linux-alive00000"}, {"hw-linux-known00000"}, "hw")) is orphan


@pytest.mark.parametrize(
    ("registration", "orphan"),
    [
        (Registration(5, ORPHAN, False, False), True),
        (Registration(5, ORPHAN, True, False), False),
        (Registration(5, ORPHAN, False, True), False),
        (Registration(5, "hw-linux-known00000", False, False), False),
        (Registration(5, "hw-linux-alive00000", False, False), False),
        (Registration(5, "hw-other-0rphan0000", False, False), False),  # no pool of ours
        (Registration(5, "hw-linux-laptop", False, False), False),
        (Registration(5, "build-machine", False, False), False),
    ],
)
def test_a_registration_is_an_orphan_only_offline_idle_and_without_vm_and_row(registration: Registration, orphan: bool) -> None:
    found = orphaned_registrations(
        {ORG: {registration.name: registration}}, {"hw-linux-alive00000"}, {"hw-linux-known00000"}, ["linux"], "hw"
    )
    assert bool(found) is orphan


def test_an_adopted_vm_counts_as_registered_until_every_list_was_read_without_its_name() -> None:
    tagged = vm(tags={**TAGS, "runnerpool-runner-id": "55"})
    listed = Gathered(registrations={ORG: {ORPHAN: Registration(55, ORPHAN, True, False)}})
    row = adopted(NOW, tagged, "linux", listed, [ORG])
    assert row is not None
    assert (row.state, row.target, row.github_id, row.deregistered_at) == (S.FAILED, ORG, 55, None)
    gone = adopted(NOW, tagged, "linux", Gathered(registrations={ORG: {}}), [ORG])
    assert gone is not None
    assert gone.deregistered_at == NOW
    assert adopted(NOW, tagged, "linux", Gathered(), [ORG]) is None
    assert adopted(NOW, tagged, "linux", Gathered(registrations={ORG: {}}), [ORG, "org:other"]) is None


@pytest.mark.parametrize("name", [ORPHAN, "hw-forgotten-0rphan0000"])
@virtual
async def test_an_orphaned_vm_is_adopted_and_goes_by_rule_1_also_one_of_a_pool_that_nobody_remembers(name: str) -> None:
    scene = Scene()
    scene.azure.put(vm(name))
    scene.crew.words[name] = status(AgentPhase.LISTENING, binding=55)
    scene.hub.registered[ORG][name] = Registration(55, name, online=True, busy=False)
    for _ in range(60):
        await scene.reconcile()
        await later(seconds=30)
    assert (scene.azure.vms, dict(scene.hub.registered[ORG]), await scene.runners()) == ({}, {}, {})
    assert scene.hub.count("remove") == 1


@virtual
async def test_an_orphaned_vm_whose_runner_runs_a_job_is_left_until_the_job_is_over() -> None:
    scene = Scene()
    scene.azure.put(vm())
    scene.crew.words[ORPHAN] = status(AgentPhase.BUSY, worker=True, binding=55)
    scene.hub.registered[ORG][ORPHAN] = Registration(55, ORPHAN, online=True, busy=True)
    for _ in range(120):
        await scene.reconcile()
        await later(seconds=30)
    assert scene.azure.vms
    await scene.hold(fact("completed", runner_name=ORPHAN))
    await scene.reconcile()
    assert not scene.azure.vms


@virtual
async def test_left_behind_nics_and_registrations_go_and_look_alikes_stay() -> None:
    scene = Scene()
    scene.azure.nics = {name: Nic(name, None, "10.0.0.9", TAGS) for name in (f"{ORPHAN}-nic", "hw-linux-printer-nic")}
    scene.hub.registered[ORG] = {name: Registration(n, name, False, False) for n, name in enumerate([ORPHAN, "hw-linux-laptop"])}
    await scene.reconcile()
    assert list(scene.azure.nics) == ["hw-linux-printer-nic"]
    assert list(scene.hub.registered[ORG]) == ["hw-linux-laptop"]


@virtual
async def test_nics_left_behind_go_as_far_as_the_budget_of_deletions_allows() -> None:
    scene = Scene()
    scene.azure.nics = {name: Nic(name, None, "10.0.0.9", TAGS) for name in (f"hw-linux-{n:010d}-nic" for n in range(5))}
    await scene.ledger.take("arm-deletes", int(LIMITS["arm-deletes"].capacity) - 2, clock())
    await scene.reconcile()
    assert len(scene.azure.nics) == 3
    await later(seconds=30)
    await scene.reconcile()
    assert not scene.azure.nics


@virtual
async def test_a_service_that_hangs_is_not_asked_to_remove_more_than_one_orphan_a_pass() -> None:
    """The tokens for the others are void by then: the bucket has granted new ones meanwhile."""
    scene = Scene()
    names = [f"hw-linux-{n:010d}" for n in range(3)]
    scene.azure.nics = {f"{name}-nic": Nic(f"{name}-nic", None, "10.0.0.9", TAGS) for name in names}
    scene.hub.registered[ORG] = {name: Registration(n, name, False, False) for n, name in enumerate(names)}
    for service, port in ((scene.azure, "delete_nic"), (scene.hub, "remove_runner")):
        service.slow(port, GOOD_FOR + timedelta(seconds=1))
    for left in (2, 1, 0):
        await scene.reconcile()
        assert (len(scene.azure.nics), len(scene.hub.registered[ORG])) == (left, left)
        await later(seconds=30)


@virtual
async def test_a_deletion_that_fails_is_repeated_by_the_next_pass_out_of_its_budget() -> None:
    scene = Scene()
    scene.azure.nics = {f"{ORPHAN}-nic": Nic(f"{ORPHAN}-nic", None, "10.0.0.9", TAGS)}
    scene.azure.fails("delete_nic", RetryLater("503"))
    await scene.reconcile()
    assert (scene.azure.count("delete_nic"), len(scene.azure.nics)) == (1, 1)
    await later(seconds=30)
    await scene.reconcile()
    assert (scene.azure.count("delete_nic"), len(scene.azure.nics)) == (2, 0)


@virtual
async def test_a_registration_made_while_the_pass_was_reading_is_no_orphan() -> None:
    """Its row was written after the ledger was read, and before GitHub's list was."""
    scene = Scene()
    new = runner(S.CREATING, "0rphan0000", target=ORG, minted_at=NOW, claimed_by="other", claimed_until=NOW + 2 * MINUTE)

    async def provision_comes_between(request: Request) -> None:
        if request.kind == "read" and request.partition == "linux":
            scene.table.after = _nothing
            await scene.hold(new)
            scene.hub.registered[ORG][new.name] = Registration(5, new.name, False, False)

    scene.table.after = provision_comes_between
    await scene.reconcile()
    assert new.name in scene.hub.registered[ORG]


async def _nothing(_request: Request) -> None: ...


@virtual
async def test_finished_jobs_become_history_and_old_notes_go() -> None:
    scene = Scene()
    await scene.hold(job("1", completed_at=NOW - 2 * timedelta(hours=1), age=timedelta(hours=3)), job("2", completed_at=NOW))
    for name, days in (("unserved:1:x", 2), ("unserved:2:x", 0), ("poison:a", 20), ("poison:b", 5)):
        await scene.ledger.put_app_row(name, {"received_at": (NOW - timedelta(days=days)).isoformat(), "body": "{}"})
    await scene.reconcile()
    assert list(await scene.jobs()) == ["2"]
    assert [entity.row for entity in scene.history.everything()] == ["1"]
    kept = {row for _, row, _ in scene.rows() if row.startswith(("unserved", "poison"))}
    assert kept == {"unserved:2:x", "poison:b"}
