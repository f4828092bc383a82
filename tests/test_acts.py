"""What creating leaves in the row, in Azure and at GitHub, when all goes well and when anything does not; many acts at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from runnerpool.acts import act
from runnerpool.budget import LIMITS
from runnerpool.capacity import POOL
from runnerpool.errors import Busy, Gone, Misconfigured, NoCapacity, RetryLater
from runnerpool.launch import PUT_HORIZON, QUICK_BOOT
from runnerpool.model import Head, Runner, RunnerState
from runnerpool.ports import Registration, Vm, VmState
from tests.made_rows import MINUTE, NOW, ORG, claimed, clock, config, pool, virtual
from tests.stand_ins import Scene

S = RunnerState
NAME = "hw-linux-aaaaaaaaaa"
TWO_SIZES = ["Standard_D4ads_v5", "Standard_D4as_v5"]


WANTED = {"target": ORG, "job_id": "1"}

# ---------------------------------------------------------------------------------------------- creating


@virtual
async def test_a_vm_for_a_job_is_registered_at_birth_and_carries_its_runner_id() -> None:
    scene = Scene()
    row = (await scene.act(claimed(S.REQUESTED, **WANTED)))[NAME]
    assert (row.state, row.github_id, row.target, row.minted_at, row.put_until) == (S.BOOTING, 100, ORG, NOW, None)
    assert (row.claimed_by, row.attempts, row.accepted_at) == (None, 0, NOW)
    (spec,) = scene.azure.specs
    assert spec.tags == {"runnerpool": "hw", "runnerpool-pool": "linux", "runnerpool-runner-id": "100"}
    assert spec.custom_data == f"{NAME} secret of 100"


@pytest.mark.parametrize(
    ("row", "head"),
    [
        (claimed(S.REQUESTED), Head("linux")),  # for the warm minimum
        (claimed(S.REQUESTED, **WANTED), Head("linux", boot_seconds=QUICK_BOOT + 1)),  # GitHub would reap it while it boots
    ],
)
@virtual
async def test_a_vm_for_nobody_yet_or_in_a_slow_pool_boots_unregistered(row: Runner, head: Head) -> None:
    scene = Scene()
    after = (await scene.act(row, head=head))[NAME]
    assert (after.state, after.github_id, after.minted_at, after.target) == (S.BOOTING, None, None, None)
    assert "runnerpool-runner-id" not in scene.azure.specs[0].tags
    assert not scene.hub.count("mint")


@virtual
async def test_no_secret_of_a_registration_comes_into_the_ledger_or_a_tag() -> None:
    scene = Scene()
    await scene.act(claimed(S.REQUESTED, **WANTED))
    await scene.act(replace(claimed(S.BINDING, target=ORG), name="hw-linux-bbbbbbbbbb"))
    assert "secret" not in repr(scene.rows())
    assert "secret" not in repr(scene.azure.vms)
    assert "secret" not in repr(scene.azure.specs)


@virtual
async def test_a_refused_offer_rests_and_the_next_one_is_tried_at_once_under_the_same_name() -> None:
    scene = Scene(config(pool(vm={"sizes": TWO_SIZES})))
    scene.azure.fails("create_vm", NoCapacity("AllocationFailed", "full"))
    row = (await scene.act(claimed(S.REQUESTED, **WANTED)))[NAME]
    assert (row.state, row.size) == (S.BOOTING, TWO_SIZES[1])
    assert [spec.size for spec in scene.azure.specs] == [TWO_SIZES[1]]
    assert scene.hub.count("mint") == 1
    assert len((await scene.ledger.read_pool("linux")).head.rests) == 1


@virtual
async def test_a_refusal_that_one_act_met_spares_the_others_theirs() -> None:
    scene = Scene(config(pool(vm={"sizes": TWO_SIZES})))
    scene.azure.fails("create_vm", NoCapacity("AllocationFailed", "full"))
    first, *others = (replace(claimed(S.REQUESTED), name=f"hw-linux-{n:010d}") for n in range(30))
    await scene.act(first, *others)
    assert scene.azure.count("create_vm") == 31
    assert (await scene.ledger.read_pool("linux")).head.revision == 1


@pytest.mark.parametrize(
    ("online", "busy", "spot", "state"),
    [
        (False, False, True, S.BOOTING),  # no runner program ever came with it
        (True, False, True, S.FAILED),
        (False, True, False, S.FAILED),
        (None, None, True, S.FAILED),  # used up, as far as anybody knows
        (None, None, False, S.BOOTING),  # GitHub has dropped it
    ],
)
@virtual
async def test_the_name_of_a_vm_that_has_been_there_and_was_evicted_unseen_is_not_used_again(
    online: bool | None, busy: bool | None, spot: bool, state: RunnerState
) -> None:
    scene = Scene()
    known: dict[str, Any] = {"minted_at": NOW, "github_id": 7, "put_until": NOW + PUT_HORIZON, "attempts": 1, "spot": spot}
    cut_short = claimed(S.CREATING, **WANTED, **known)
    await scene.hold(cut_short)
    scene.hub.registered[ORG].clear()
    if online is not None and busy is not None:
        scene.hub.registered[ORG][NAME] = Registration(7, NAME, online=online, busy=busy)
    await act(scene.acting(), [(await scene.runners())[NAME]], [])
    row = await scene.only()
    assert (row.state, scene.azure.count("create_vm")) == (state, int(state is S.BOOTING))


@virtual
async def test_when_no_offer_is_left_the_intent_fails_and_no_put_can_arrive() -> None:
    scene = Scene()
    scene.azure.fails("create_vm", NoCapacity("AllocationFailed", "full"))
    row = (await scene.act(claimed(S.REQUESTED, **WANTED)))[NAME]
    assert (row.state, row.put_until) == (S.FAILED, None)
    assert "AllocationFailed" in row.reason
    assert row.minted_at is not None  # its registration has yet to be withdrawn


# What the row says after the first call of a kind met this error. A PUT that got no answer may still arrive.
UNSURE = RetryLater("no answer", uncertain=True)
HORIZON = NOW + PUT_HORIZON


@dataclass(frozen=True)
class Left:
    """What is left behind: the row's state, and whether it may hold a registration or a VM."""

    state: RunnerState
    minted: bool
    github_id: bool = False
    put_until: bool = False
    put_off: bool = False


@pytest.mark.parametrize(
    ("service", "method", "errors", "left"),
    [
        ("hub", "mint", [RetryLater("429")], Left(S.BOOTING, minted=False)),  # throttled: it boots unregistered
        ("hub", "mint", [UNSURE], Left(S.CREATING, minted=True, put_off=True)),
        ("hub", "mint", [Misconfigured("no such group", area="setup")], Left(S.FAILED, minted=False)),
        ("hub", "mint", [Gone("404")], Left(S.CREATING, minted=True, put_off=True)),
        ("hub", "package", [Misconfigured("no such version", area="setup")], Left(S.FAILED, minted=True)),
        ("hub", "package", [RetryLater("502", after=MINUTE)], Left(S.CREATING, minted=True, put_off=True)),
        ("azure", "create_vm", [RetryLater("429")], Left(S.BOOTING, minted=True, github_id=True)),
        (
            "azure",
            "create_vm",
            [RetryLater("429", after=MINUTE)],
            Left(S.CREATING, minted=True, github_id=True, put_until=True, put_off=True),
        ),
        ("azure", "create_vm", [UNSURE], Left(S.BOOTING, minted=True, github_id=True, put_until=True)),
        (
            "azure",
            "create_vm",
            [UNSURE] * 5,
            Left(S.CREATING, minted=True, github_id=True, put_until=True, put_off=True),
        ),
        (
            "azure",
            "create_vm",
            [UNSURE, Misconfigured("403", area="auth")],
            Left(S.FAILED, minted=True, github_id=True, put_until=True),
        ),
        ("azure", "create_vm", [Misconfigured("no such image", area="provisioning")], Left(S.FAILED, minted=True, github_id=True)),
        ("azure", "create_vm", [Gone("404")], Left(S.CREATING, minted=True, github_id=True, put_until=True, put_off=True)),
        ("azure", "create_vm", [Busy("?")], Left(S.CREATING, minted=True, github_id=True, put_until=True, put_off=True)),
    ],
)
@virtual
async def test_what_a_row_says_after_a_call_of_its_creation_failed(
    service: str, method: str, errors: Sequence[Exception], left: Left
) -> None:
    scene = Scene()
    getattr(scene, service).fails(method, *errors)
    row = (await scene.act(claimed(S.REQUESTED, **WANTED)))[NAME]
    found = Left(
        row.state,
        minted=row.minted_at is not None,
        github_id=row.github_id is not None,
        put_until=row.put_until is not None,
        put_off=row.not_before is not None,
    )
    assert found == left
    assert row.claimed_by is None
    if left.put_off:
        assert row.reason == str(errors[0]) or type(errors[0]).__name__ in row.reason
    misconfigured = any(isinstance(error, Misconfigured) for error in errors)
    assert (POOL in (await scene.ledger.read_pool("linux")).head.rests) is misconfigured


@virtual
async def test_a_put_whose_answer_was_lost_is_recognised_by_its_tag() -> None:
    scene = Scene()
    scene.azure.fails("create_vm", UNSURE, applied=True)
    row = (await scene.act(claimed(S.REQUESTED, **WANTED)))[NAME]
    assert (row.state, row.github_id) == (S.BOOTING, 100)
    assert scene.azure.count("create_vm") == 2  # the second was answered 412


@virtual
async def test_no_put_leaves_later_than_its_row_says() -> None:
    scene = Scene()
    scene.azure.fails("create_vm", *[RetryLater("busy", after=timedelta(seconds=19), uncertain=True)] * 99)
    sent: list[Any] = []
    scene.azure.step = lambda: sent.append(clock())
    row = (await scene.act(claimed(S.REQUESTED, **WANTED), time=timedelta(hours=1)))[NAME]
    assert row.put_until is not None
    assert row.put_until - max(sent) >= PUT_HORIZON


@virtual
async def test_one_act_of_a_pass_asks_for_the_runner_package_and_registers_nobody_where_there_is_none() -> None:
    scene = Scene()
    scene.hub.fails("package", *[RetryLater("503")] * 99)
    rows = [claimed(S.REQUESTED, name=str(n) * 10, **WANTED) for n in range(6)]
    after = (await scene.act(*rows)).values()
    assert {(row.state, row.reason, row.github_id) for row in after} == {(S.CREATING, "503", None)}
    assert (scene.hub.count("package"), scene.hub.count("mint")) == (5, 0)


@pytest.mark.parametrize(
    ("service", "method", "scope", "state"),
    [("azure", "create_vm", "arm-writes", S.REQUESTED), ("azure", "delete_vm", "arm-deletes", S.DELETING)],
)
@virtual
async def test_each_attempt_at_a_write_to_azure_takes_a_token(service: str, method: str, scope: str, state: RunnerState) -> None:
    scene = Scene()
    await scene.ledger.take(scope, int(LIMITS[scope].capacity), NOW)
    getattr(scene, service).fails(method, *[RetryLater("503")] * 3)
    await scene.act(claimed(state, **WANTED))
    assert scene.azure.count(method) == 4
    refilled = (clock() - NOW).total_seconds() * LIMITS[scope].per_second
    assert await scene.ledger.take(scope, 1000, clock()) == int(refilled - 4)


@virtual
async def test_no_put_leaves_once_its_row_has_moved_on() -> None:
    scene = Scene()
    scene.azure.fails("create_vm", RetryLater("no answer", after=timedelta(seconds=10), uncertain=True), applied=True)

    async def in_the_meantime() -> None:
        """The VM of the first PUT has its job, and is gone before the second one is due."""
        await asyncio.sleep(5)
        await scene.ledger.revise_runner(await scene.only(), lambda row: row.move(S.BUSY, clock(), "runs job 1"))
        scene.azure.vms.clear()

    await asyncio.gather(scene.act(claimed(S.REQUESTED, **WANTED)), in_the_meantime())
    assert ((await scene.only()).state, scene.azure.count("create_vm")) == (S.BUSY, 1)


@pytest.mark.parametrize(
    ("known", "tag", "state"),
    [
        (100, "100", S.BOOTING),
        (None, "", S.BOOTING),
        (100, "99", S.FAILED),  # another worker's JIT config
        (100, "", S.FAILED),
        (None, "99", S.FAILED),
    ],
)
@virtual
async def test_a_vm_found_after_an_attempt_cut_short_is_adopted_only_with_the_right_tag(
    known: int | None, tag: str, state: RunnerState
) -> None:
    scene = Scene()
    tags = {"runnerpool": "hw"} | ({"runnerpool-runner-id": tag} if tag else {})
    scene.azure.put(Vm(NAME, VmState.SUCCEEDED, tags, NOW))
    row = claimed(S.CREATING, **WANTED, github_id=known, minted_at=NOW, attempts=1, put_until=HORIZON)
    assert (await scene.act(row))[NAME].state is state
    assert not scene.azure.specs


@virtual
async def test_an_attempt_cut_short_before_its_put_goes_on_with_a_fresh_registration() -> None:
    scene = Scene()
    scene.hub.registered[ORG][NAME] = Registration(55, NAME, online=False, busy=False)  # its JIT config is lost
    row = (await scene.act(claimed(S.CREATING, **WANTED, minted_at=NOW, attempts=1)))[NAME]
    assert (row.state, row.github_id) == (S.BOOTING, 100)
    assert [one.runner_id for one in scene.hub.registered[ORG].values()] == [100]


@virtual
async def test_a_registration_that_is_known_to_be_left_behind_costs_a_look_a_removal_and_a_mint() -> None:
    scene = Scene()
    await scene.hold(claimed(S.CREATING, **WANTED, minted_at=NOW, github_id=7, put_until=NOW + PUT_HORIZON, attempts=1))
    scene.hub.registered[ORG][NAME] = Registration(7, NAME, online=False, busy=False)
    await act(scene.acting(), [(await scene.runners())[NAME]], [])
    row = await scene.only()
    assert (row.state, row.github_id) == (S.BOOTING, 100)
    assert [scene.hub.count(method) for method in ("find", "remove", "mint")] == [1, 1, 1]
    (bucket,) = await scene.ledger.app_rows("budget:github-writes")
    assert bucket.columns["tokens"] == LIMITS["github-writes"].capacity - 2


@virtual
async def test_a_registration_that_nobody_can_ask_about_any_more_gives_its_row_up() -> None:
    """Put off, it would count against the maximum for ever: a repository that has gone answers 404 every time."""
    scene = Scene()
    scene.hub.fails("find", Misconfigured("GitHub answered 404: no such repository", area="auth"))
    begun: dict[str, Any] = {"minted_at": NOW, "github_id": 7, "put_until": NOW + PUT_HORIZON, "attempts": 1}
    row = (await scene.act(claimed(S.CREATING, **WANTED, **begun)))[NAME]
    assert (row.state, row.reason) == (S.FAILED, "GitHub answered 404: no such repository")
    assert row.minted_at is not None  # so that its registration is still withdrawn, or proved gone
    assert row.put_until is not None  # and its VM may still come


@virtual
async def test_while_the_budget_is_used_up_github_is_not_even_asked() -> None:
    """Reads are not rationed: an act that asked first would ask again each time that it comes back for a token."""
    scene = Scene()
    scene.hub.registered[ORG][NAME] = Registration(7, NAME, online=False, busy=False)
    await scene.hold(claimed(S.CREATING, **WANTED, minted_at=NOW, github_id=7, put_until=NOW + PUT_HORIZON, attempts=1))
    await scene.ledger.take("github-writes", 1000, clock())
    await act(scene.acting(time=timedelta(seconds=0.5)), [(await scene.runners())[NAME]], [])
    assert "github-writes is used up" in (await scene.only()).reason
    assert scene.hub.count("find") == 0


@virtual
async def test_a_row_that_another_worker_took_over_is_left_alone() -> None:
    scene = Scene()
    taken = replace(claimed(S.REQUESTED, **WANTED), claimed_by="other")
    assert (await scene.act(taken))[NAME] == taken
    assert not scene.azure.specs


# ---------------------------------------------------------------------------------------------- many at once


@virtual
async def test_one_runners_trouble_stops_no_other_and_a_defect_is_told_after_all_are_done() -> None:
    scene = Scene()
    names = [f"hw-linux-{n:010d}" for n in range(3)]
    scene.azure.fails("create_vm", RetryLater("429", after=MINUTE), ValueError("a defect"))
    with pytest.raises(ExceptionGroup, match="1 of 3"):
        await scene.act(*(replace(claimed(S.REQUESTED), name=name) for name in names))
    states = sorted(str(row.state) for row in (await scene.runners()).values())
    assert states == ["booting", "creating", "creating"]
