"""The ARM sandbox by itself: what it asks of a request, and how it misbehaves when told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest

from sandbox import clock
from sandbox.arm_faults import KINDS, Faults, TokenBucket
from sandbox.arm_store import SUBNET, Estate
from tests.azure_sandbox import COMPUTE_VERSION, SPEC, SUBSCRIPTION, VMS, Azure, call, named, put, running_azure


@pytest.fixture
async def azure() -> AsyncIterator[Azure]:
    async with running_azure() as azure:
        yield azure


# ---------------------------------------------------------------------------------------------- asynchronous operations


async def test_a_creation_is_accepted_first_and_followed_by_its_operation() -> None:
    async with running_azure(boot_delay=0.05) as azure:
        accepted = await put(azure)
        tracking = accepted.headers["Azure-AsyncOperation"]
        early = await call(azure, "GET", tracking)
        assert accepted.status == 201
        assert accepted.body["properties"]["provisioningState"] == "Creating"
        assert accepted.headers["Retry-After"] == "10"
        assert early.body["status"] == "InProgress"
        assert (await call(azure, "GET", accepted.headers["Location"])).status == 202
        await azure.settle()
        done = await call(azure, "GET", tracking)
        assert done.body["status"] == "Succeeded"
        assert done.body["endTime"] >= done.body["startTime"]
        assert (await call(azure, "GET", accepted.headers["Location"])).status == 200


async def test_an_unknown_operation_is_not_found(azure: Azure) -> None:
    path = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/locations/westus/operations/x?{COMPUTE_VERSION}"
    assert (await call(azure, "GET", path)).status == 404


async def test_a_second_put_is_a_failed_precondition_or_a_forbidden_change(azure: Azure) -> None:
    await put(azure)
    again = await put(azure)
    assert (again.status, again.code) == (412, "PreconditionFailed")
    update = await put(azure, new=False)
    assert (update.status, update.code) == (409, "PropertyChangeNotAllowed")


async def test_names_are_one_whatever_their_case(azure: Azure) -> None:
    await put(azure)
    assert (await call(azure, "GET", f"{VMS}/{SPEC.name.upper()}?{COMPUTE_VERSION}")).body["name"] == SPEC.name


async def test_a_deletion_is_accepted_then_done_and_unknown_names_are_answered_204(azure: Azure) -> None:
    await put(azure)
    accepted = await call(azure, "DELETE", f"{VMS}/{SPEC.name}?forceDeletion=true&{COMPUTE_VERSION}")
    await azure.settle()
    assert accepted.status == 202
    assert (await call(azure, "GET", accepted.headers["Azure-AsyncOperation"])).body["status"] == "Succeeded"
    assert (await call(azure, "DELETE", f"{VMS}/{SPEC.name}?{COMPUTE_VERSION}")).status == 204


async def test_a_vm_deleted_before_it_booted_never_boots() -> None:
    async with running_azure(boot_delay=30) as azure:
        accepted = await put(azure)
        await call(azure, "DELETE", f"{VMS}/{SPEC.name}?{COMPUTE_VERSION}")
        await asyncio.wait_for(azure.settle(), 30)
        assert azure.machines.running == {}
        operation = await call(azure, "GET", accepted.headers["Azure-AsyncOperation"])
        assert operation.body["error"]["code"] == "OperationPreempted"


async def test_a_vm_whose_machine_does_not_start_fails_as_one_whose_system_does_not(azure: Azure) -> None:
    azure.machines.refuse = RuntimeError("no room")
    await put(azure)
    await azure.settle()
    (vm,) = (await azure.state())["vms"]
    assert (vm["state"], vm["code"]) == ("Failed", "OSProvisioningClientError")


# ---------------------------------------------------------------------------------------------- quota and throttling


async def test_quota_counts_cores_of_what_exists_and_frees_them_with_the_vm() -> None:
    async with running_azure(quotas={"standardDADSv5Family": 8}) as azure:
        statuses = [(await put(azure, named(suffix))).status for suffix in "abc"]
        other = await put(azure, named("d", size="Standard_D8as_v5"))
        spot = await put(azure, named("e", spot=True))
        await call(azure, "DELETE", f"{VMS}/{named('a').name}?{COMPUTE_VERSION}")
        await azure.settle()
        after = await put(azure, named("f"))
    assert statuses == [201, 201, 409]
    assert (other.status, spot.status, after.status) == (201, 201, 201)


async def test_writes_deletes_and_reads_have_a_bucket_each() -> None:
    buckets = {"write": (2, 0.001), "delete": (1, 0.001)}
    async with running_azure(buckets=buckets) as azure:
        first, second, third = [await put(azure, named(suffix)) for suffix in "abc"]
        delete = await call(azure, "DELETE", f"{VMS}/none?{COMPUTE_VERSION}")
        read = await call(azure, "GET", f"{VMS}?{COMPUTE_VERSION}")
    assert [first.headers["x-ms-ratelimit-remaining-subscription-writes"], second.status, third.status] == ["1", 201, 429]
    assert third.code == "SubscriptionRequestsThrottled"
    assert int(third.headers["Retry-After"]) >= 1
    assert delete.headers["x-ms-ratelimit-remaining-subscription-deletes"] == "0"
    assert read.headers["x-ms-ratelimit-remaining-subscription-reads"] == "249"


def test_a_bucket_refills_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sandbox.arm_faults.time.monotonic", lambda: now)
    bucket = TokenBucket(size=2, refill=0.5)
    assert [bucket.take(), bucket.take(), bucket.take()] == [1, 0, None]
    assert bucket.wait() == 2
    now += 2
    assert [bucket.take(), bucket.take()] == [0, None]


# ---------------------------------------------------------------------------------------------- faults


async def test_a_fault_strikes_what_it_matches_as_often_as_it_says(azure: Azure) -> None:
    await azure.fault("put_409", code="ZonalAllocationFailed", times=1, match={"zone": "2", "size": "Standard_D4*", "spot": False})
    elsewhere = await put(azure, named("a", zone="1"))
    struck = await put(azure, named("b"))
    again = await put(azure, named("b"))
    assert (elsewhere.status, struck.status, struck.code, again.status) == (201, 409, "ZonalAllocationFailed", 201)


async def test_a_failed_vm_stays_with_its_nic_until_it_is_deleted(azure: Azure) -> None:
    await azure.fault("async_failure", code="OverconstrainedAllocationRequest", times=1)
    accepted = await put(azure)
    await azure.settle()
    operation = await call(azure, "GET", accepted.headers["Azure-AsyncOperation"])
    state = await azure.state()
    assert (operation.body["status"], operation.body["error"]["code"]) == ("Failed", "OverconstrainedAllocationRequest")
    assert (state["vms"][0]["state"], state["nics"][0]["vm"]) == ("Failed", SPEC.name)
    assert azure.machines.running == {}


async def test_a_dead_agent_is_a_running_vm_in_which_nothing_boots(azure: Azure) -> None:
    await azure.fault("dead_agent", times=1)
    await put(azure)
    await azure.settle()
    assert (await azure.state())["vms"][0]["power"] == "running"
    assert azure.machines.running == {}


async def test_a_slow_boot_holds_back_one_vm_only(azure: Azure) -> None:
    await azure.fault("slow_boot", seconds=30, match={"name": "*-slow"}, times=1)
    slow = await put(azure, named("slow"))
    fast = await put(azure, named("fast"))
    await asyncio.wait_for(azure.machines.booted(named("fast").name), 30)
    assert (await call(azure, "GET", fast.headers["Azure-AsyncOperation"])).body["status"] == "Succeeded"
    assert (await call(azure, "GET", slow.headers["Azure-AsyncOperation"])).body["status"] == "InProgress"


async def test_a_deletion_that_fails_leaves_the_vm_and_the_next_one_may_succeed(azure: Azure) -> None:
    await put(azure)
    await azure.settle()
    await azure.fault("delete_fails", times=1)
    accepted = await call(azure, "DELETE", f"{VMS}/{SPEC.name}?{COMPUTE_VERSION}")
    await azure.settle()
    assert accepted.status == 202
    assert (await call(azure, "GET", accepted.headers["Azure-AsyncOperation"])).body["status"] == "Failed"
    assert SPEC.name in azure.machines.running
    await call(azure, "DELETE", f"{VMS}/{SPEC.name}?{COMPUTE_VERSION}")
    await azure.settle()
    assert (await azure.state())["vms"] == []


async def test_a_request_that_hangs_unapplied_changes_nothing(azure: Azure) -> None:
    await azure.fault("hang", operation="vm.put", seconds=0, applied=False, times=1)
    assert (await put(azure)).status == 504
    assert (await azure.state())["vms"] == []


async def test_an_eviction_takes_the_vm_with_all_it_has(azure: Azure) -> None:
    await put(azure, named("spot", spot=True))
    await azure.settle()
    assert (await call(azure, "POST", "/_admin/evict", json={"name": named("spot").name})).status == 204
    assert (await call(azure, "POST", "/_admin/evict", json={"name": "none"})).status == 404
    state = await azure.state()
    assert (state["vms"], state["nics"], azure.machines.running) == ([], [], {})
    assert state["log"][-1]["event"] == "evicted"


@pytest.mark.parametrize("wish", [{"kind": "nonsense"}, {}, {"kind": "hang", "secnds": 1}])
async def test_a_fault_that_cannot_be_read_is_refused_with_the_reason(azure: Azure, wish: dict[str, Any]) -> None:
    reply = await call(azure, "POST", "/_admin/faults", json=wish)
    assert reply.status == 400
    assert reply.body["error"]


async def test_faults_can_be_listed_and_cleared(azure: Azure) -> None:
    for kind in KINDS:
        await azure.fault(kind)
    assert [fault["kind"] for fault in (await call(azure, "GET", "/_admin/faults")).body] == list(KINDS)
    await call(azure, "DELETE", "/_admin/faults")
    assert (await put(azure)).status == 201


def test_a_fault_lets_pass_first_what_it_is_told_to() -> None:
    faults = Faults()
    faults.add({"kind": "error", "skip": 1, "times": 1})
    assert [faults.take("error", "vm.get", {}) is not None for _ in range(3)] == [False, True, False]


def test_a_fault_strikes_as_often_as_its_probability_says_and_the_same_ones_with_the_same_seed() -> None:
    def struck(seed: int) -> list[bool]:
        faults = Faults(Random(seed))
        faults.add({"kind": "error", "probability": 0.3})
        return [faults.take("error", "vm.get", {}) is not None for _ in range(1000)]

    assert 250 < sum(struck(1)) < 350
    assert struck(1) == struck(1) != struck(2)


def test_a_fault_that_chance_spares_leaves_its_turn_to_the_next_one_and_is_not_used_up() -> None:
    faults = Faults()
    faults.add({"kind": "error", "probability": 0.0, "times": 1})
    second = faults.add({"kind": "error", "times": 1})
    assert faults.take("error", "vm.get", {}) is second
    assert [fault["probability"] for fault in faults.as_json()] == [0.0]
    assert faults.struck == {"error": 1}


async def test_an_error_may_be_answered_for_what_was_done_all_the_same(azure: Azure) -> None:
    await azure.fault("error", operation="vm.put", status=502, code="BadGateway", applied=True, times=1)
    assert (await put(azure)).status == 502
    await azure.fault("error", operation="vm.put", status=502, code="BadGateway", times=1)
    assert (await put(azure, named("b"))).status == 502
    assert [vm["name"] for vm in (await azure.state())["vms"]] == [SPEC.name]


async def test_a_spot_vm_can_be_taken_away_some_time_after_it_runs(azure: Azure) -> None:
    await azure.fault("evict", seconds=0.01)
    for name in ("spot", "failed"):
        await put(azure, named(name, spot=True))
        await azure.fault("async_failure", times=1)
    await put(azure, named("regular"))
    await azure.settle()
    state = await azure.state()
    assert [vm["name"][-7:] for vm in state["vms"]] == ["-failed", "regular"]
    assert [entry["event"] for entry in state["log"] if entry["vm"].endswith("spot")] == ["accepted", "running", "evicted"]


async def test_a_spot_vm_that_is_deleted_first_is_not_evicted_any_more(azure: Azure) -> None:
    await azure.fault("evict", seconds=60)
    await put(azure, named("spot", spot=True))
    await azure.machines.booted(named("spot").name)
    await call(azure, "DELETE", f"{VMS}/{named('spot').name}?{COMPUTE_VERSION}")
    await asyncio.wait_for(azure.settle(), 30)
    assert [entry["event"] for entry in (await azure.state())["log"]][-1] == "deleted"


# ---------------------------------------------------------------------------------------------- what it shows


async def test_the_state_tells_what_existed_when_and_how_many_at_most(azure: Azure) -> None:
    for suffix in "ab":
        await put(azure, named(suffix))
    await azure.settle()
    await call(azure, "DELETE", f"{VMS}/{named('a').name}?{COMPUTE_VERSION}")
    await azure.settle()
    await put(azure, named("c"))
    await azure.settle()
    state = await azure.state()
    assert state["peaks"] == {"linux-x64": 2}
    assert [(e["event"], e["vm"][-1]) for e in state["log"] if e["vm"].endswith("a")] == [
        ("accepted", "a"),
        ("running", "a"),
        ("delete accepted", "a"),
        ("deleted", "a"),
    ]
    assert all(datetime.fromisoformat(entry["at"]).tzinfo for entry in state["log"])


async def test_calls_are_counted_by_what_was_asked_for(azure: Azure) -> None:
    await put(azure)
    await put(azure)
    await call(azure, "GET", f"{VMS}?{COMPUTE_VERSION}")
    assert (await call(azure, "GET", "/_admin/calls")).body == {"vm.put": 2, "vm.list": 1}


async def test_settings_change_while_it_runs_and_unknown_ones_are_refused(azure: Azure) -> None:
    settings = {"latency": 0.001, "page_size": 1, "boot_delay": 0.001, "delete_delay": 0.001, "quotas": {"Total Regional Cores": 4}}
    assert (await call(azure, "POST", "/_admin/settings", json=settings)).status == 204
    assert (await call(azure, "POST", "/_admin/settings", json={"speed": 1})).status == 400
    assert [(await put(azure, named(suffix))).status for suffix in "ab"] == [201, 409]


async def test_pages_are_linked_by_the_last_name_so_that_none_is_lost_when_one_goes() -> None:
    async with running_azure(page_size=2) as azure:
        for suffix in "abcd":
            await put(azure, named(suffix))
        first = await call(azure, "GET", f"{VMS}?{COMPUTE_VERSION}")
        await call(azure, "DELETE", f"{VMS}/{named('a').name}?{COMPUTE_VERSION}")
        await azure.settle()
        second = await call(azure, "GET", first.body["nextLink"])
    assert [vm["name"][-1] for vm in first.body["value"] + second.body["value"]] == ["a", "b", "c", "d"]
    assert "nextLink" not in second.body


def test_addresses_are_unique_and_never_look_like_a_network_or_a_broadcast() -> None:
    estate = Estate()
    addresses = [estate.new_address() for _ in range(1000)]
    assert len(set(addresses)) == 1000
    assert not [a for a in addresses if a.endswith((".0", ".255"))]
    assert all(a.startswith("127.") and 64 <= int(a.split(".")[1]) < 128 for a in addresses)
    assert str(SUBNET) == "127.64.0.0/10"


# ---------------------------------------------------------------------------------------------- the clock


@pytest.mark.parametrize(
    ("setting", "real", "shown"),
    [("", 1000.0, 1000.0), ("1000:60", 1000.0, 1000.0), ("1000:60", 1002.0, 1120.0), ("1000:0.5", 1002.0, 1001.0)],
)
def test_the_clock_runs_at_the_rate_that_is_set(setting: str, real: float, shown: float) -> None:
    assert clock.scaled(real, {"SANDBOX_CLOCK": setting}) == shown


@pytest.mark.parametrize("setting", ["60", "a:b", "1000:"])
def test_a_clock_that_cannot_be_read_says_so(setting: str) -> None:
    with pytest.raises(ValueError, match="SANDBOX_CLOCK"):
        clock.scaled(0.0, {"SANDBOX_CLOCK": setting})


def test_the_clock_is_aware_and_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANDBOX_CLOCK", raising=False)
    assert abs(clock.now() - datetime.now(UTC)).total_seconds() < 5
