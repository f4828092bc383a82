"""AzureCompute against the ARM sandbox, over real HTTP through the real SDK."""

from __future__ import annotations

import asyncio
import base64
import logging
import traceback
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from runnerpool import arm
from runnerpool.compute import AzureCompute
from runnerpool.errors import Conflict, Misconfigured, NoCapacity, PoolError, RetryLater
from runnerpool.ports import Compute, VmSpec, VmState
from tests.azure_sandbox import AZURE, SCOPE, SPEC, SUBSCRIPTION, WINDOWS, Azure, named, running_azure


@pytest.fixture
async def azure() -> AsyncIterator[Azure]:
    async with running_azure() as azure:
        yield azure


# ---------------------------------------------------------------------------------------------- creation


async def test_a_created_vm_boots_with_its_user_data_and_runs(azure: Azure) -> None:
    compute: Compute = azure.compute
    await compute.create_vm(SPEC)
    creating = await compute.get_vm(SPEC.name)
    await azure.settle()
    vm = await compute.get_vm(SPEC.name)
    assert creating is not None
    assert vm is not None
    assert (creating.state, creating.power) in [(VmState.CREATING, None), (VmState.SUCCEEDED, "running")]
    assert (vm.state, vm.power, vm.size, vm.zone) == (VmState.SUCCEEDED, "running", "Standard_D4ads_v5", "2")
    assert vm.tags == {**SPEC.tags, "team": "ci"}
    assert vm.created_at is not None
    assert vm.created_at.utcoffset() == timedelta()
    assert azure.machines.running[SPEC.name][1] == SPEC.custom_data


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        named("spot", spot=True, zone=None),
        named("disk", ephemeral_disk=False, ssh_public_key="ssh-rsa AAAAB3 someone"),
        named("mine", image="/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/galleries/g/images/i/versions/1.0.0"),
        WINDOWS,
    ],
    ids=lambda spec: spec.name,
)
async def test_azure_takes_every_kind_of_vm(azure: Azure, spec: VmSpec) -> None:
    await azure.compute.create_vm(spec)
    await azure.settle()
    assert spec.name in azure.machines.running


async def test_a_name_is_given_to_one_vm_only(azure: Azure) -> None:
    await azure.compute.create_vm(SPEC)
    with pytest.raises(Conflict):
        await azure.compute.create_vm(replace(SPEC, custom_data="other"))
    await azure.settle()
    assert azure.machines.running[SPEC.name][1] == SPEC.custom_data


async def test_of_two_simultaneous_creations_of_one_name_one_wins(azure: Azure) -> None:
    results = await asyncio.gather(*(azure.compute.create_vm(SPEC) for _ in range(2)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "NoneType"]


REFUSALS: list[tuple[int, str, type[PoolError], str]] = [
    (409, "SkuNotAvailable", NoCapacity, ""),
    (409, "AllocationFailed", NoCapacity, ""),
    (409, "ZonalAllocationFailed", NoCapacity, ""),
    (409, "OverconstrainedAllocationRequest", NoCapacity, ""),
    (409, "OverconstrainedZonalAllocationRequest", NoCapacity, ""),
    (409, "QuotaExceeded", NoCapacity, ""),
    (409, "SpotPriceGreaterThanProvidedMaxPrice", NoCapacity, ""),
    (409, "Conflict", RetryLater, ""),
    (409, "OperationPreempted", RetryLater, ""),
    (409, "NotSupported", Misconfigured, "provisioning"),
    (404, "PlatformImageNotFound", Misconfigured, "provisioning"),
    (404, "ResourceNotFound", Misconfigured, "provisioning"),
    (400, "InvalidParameter", Misconfigured, "provisioning"),
    (400, "SubnetIsFull", Misconfigured, "network"),
    (401, "InvalidAuthenticationToken", Misconfigured, "auth"),
    (403, "AuthorizationFailed", Misconfigured, "auth"),
    (500, "InternalServerError", RetryLater, ""),
    (503, "ServiceUnavailable", RetryLater, ""),
]


@pytest.mark.parametrize(("status", "code", "kind", "area"), REFUSALS)
async def test_a_refused_creation_says_what_to_do_next(
    azure: Azure, status: int, code: str, kind: type[PoolError], area: str
) -> None:
    await azure.fault("error", operation="vm.put", status=status, code=code, times=1)
    with pytest.raises(PoolError) as caught:
        await azure.compute.create_vm(SPEC)
    assert type(caught.value) is kind
    assert getattr(caught.value, "area", "") == area
    assert getattr(caught.value, "uncertain", False) is (status >= 500)
    assert code in str(caught.value)
    assert await azure.compute.get_vm(SPEC.name) is None


@pytest.mark.parametrize(
    ("quota", "spec"),
    [
        ("Total Regional Cores", SPEC),
        ("standardDADSv5Family", SPEC),
        ("LowPriorityCores", named("spot", spot=True)),
    ],
)
async def test_a_used_up_quota_is_no_capacity_and_says_which(quota: str, spec: VmSpec) -> None:
    async with running_azure(quotas={quota: 7}) as azure:
        await azure.compute.create_vm(spec)
        with pytest.raises(NoCapacity) as caught:
            await azure.compute.create_vm(replace(spec, name=spec.name + "2"))
    assert caught.value.code == "OperationNotAllowed"
    assert quota in caught.value.detail
    assert "Current Limit: 7, Current Usage: 4, Additional Required: 4" in caught.value.detail


async def test_throttling_brings_azures_own_waiting_time(azure: Azure) -> None:
    await azure.fault("throttle", operation="vm.put", retry_after=23, times=1)
    with pytest.raises(RetryLater) as caught:
        await azure.compute.create_vm(SPEC)
    assert caught.value.after == timedelta(seconds=23)
    assert not caught.value.uncertain


async def test_no_call_is_repeated_by_the_sdk(azure: Azure) -> None:
    await azure.fault("error", status=503, code="ServiceUnavailable", retry_after=0)
    for call in (azure.compute.create_vm(SPEC), azure.compute.list_vms(), azure.compute.get_vm("x"), azure.compute.delete_vm("x")):
        with pytest.raises(RetryLater):
            await call
    assert azure.arm.calls == {"vm.put": 1, "vm.list": 1, "vm.get": 1, "vm.delete": 1}


async def test_a_vm_that_fails_after_acceptance_shows_why(azure: Azure) -> None:
    await azure.fault("async_failure", code="ZonalAllocationFailed", times=1)
    await azure.compute.create_vm(SPEC)
    await azure.settle()
    vm = await azure.compute.get_vm(SPEC.name)
    assert vm is not None
    assert (vm.state, vm.error_code, vm.power) == (VmState.FAILED, "ZonalAllocationFailed", None)
    assert "sufficient capacity for the requested VM size in this zone" in vm.error


# ---------------------------------------------------------------------------------------------- when no answer comes


async def test_a_creation_that_azure_applies_but_never_answers_is_uncertain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm, "READ_SECONDS", 0.2)
    async with running_azure() as azure:
        await azure.fault("hang", operation="vm.put", seconds=30, times=1)
        with pytest.raises(RetryLater) as caught:
            await azure.compute.create_vm(SPEC)
        assert caught.value.uncertain
        assert await azure.compute.get_vm(SPEC.name) is not None


async def test_a_call_ends_with_its_deadline_and_a_read_is_never_uncertain(monkeypatch: pytest.MonkeyPatch, azure: Azure) -> None:
    monkeypatch.setattr(arm, "CALL_SECONDS", 0.2)
    await azure.fault("hang", operation="vm.list", seconds=30, times=1)
    with pytest.raises(RetryLater) as caught:
        await azure.compute.list_vms()
    assert not caught.value.uncertain


async def test_a_connection_that_never_comes_about_has_changed_nothing() -> None:
    async with running_azure() as azure:
        await azure.arm.stop()
        with pytest.raises(RetryLater) as caught:
            await azure.compute.create_vm(SPEC)
    assert not caught.value.uncertain


async def test_a_connection_that_breaks_in_mid_call_is_uncertain() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    compute = AzureCompute(subscription_id=SUBSCRIPTION, azure=AZURE, endpoint=url, credential=None)
    try:
        with pytest.raises(RetryLater) as caught:
            await compute.create_vm(SPEC)
        assert caught.value.uncertain
    finally:
        await compute.close()
        server.close()
        await server.wait_closed()


# ---------------------------------------------------------------------------------------------- reading


async def test_a_list_follows_its_pages_to_the_end() -> None:
    async with running_azure(page_size=2) as azure:
        names = [f"hw-linux-x64-{i}" for i in range(5)]
        for name in names:
            await azure.compute.create_vm(replace(SPEC, name=name))
        await azure.settle()
        vms = await azure.compute.list_vms()
        assert [vm.name for vm in vms] == names
        assert {vm.power for vm in vms} == {"running"}
        assert azure.arm.calls["vm.list"] == 3


async def test_half_a_list_is_never_returned() -> None:
    async with running_azure(page_size=1) as azure:
        for suffix in ("a", "b"):
            await azure.compute.create_vm(named(suffix))
        await azure.fault("error", operation="vm.list", status=500, skip=1)
        with pytest.raises(RetryLater):
            await azure.compute.list_vms()


async def test_a_list_that_resource_graph_cannot_show_comes_from_compute_without_power_states(azure: Azure) -> None:
    await azure.compute.create_vm(SPEC)
    await azure.settle()
    await azure.fault("error", operation="vm.list", status=422, code="UnprocessableResource", times=1)
    (vm,) = await azure.compute.list_vms()
    assert (vm.name, vm.state, vm.power) == (SPEC.name, VmState.SUCCEEDED, None)


async def test_a_vm_too_new_for_the_list_is_found_by_name(azure: Azure) -> None:
    await azure.fault("list_omits", seconds=60, times=1)
    await azure.compute.create_vm(SPEC)
    assert await azure.compute.list_vms() == []
    assert await azure.compute.get_vm(SPEC.name) is not None


async def test_a_vm_that_azure_does_not_know_is_none(azure: Azure) -> None:
    assert await azure.compute.get_vm("hw-linux-x64-none") is None


@pytest.mark.parametrize(
    ("status", "code"), [(404, "ResourceGroupNotFound"), (404, "SubscriptionNotFound"), (404, "SomethingElse")]
)
async def test_another_404_is_no_proof_that_a_vm_is_gone(azure: Azure, status: int, code: str) -> None:
    await azure.fault("error", status=status, code=code)
    for call in (azure.compute.get_vm(SPEC.name), azure.compute.list_vms(), azure.compute.delete_vm(SPEC.name)):
        with pytest.raises(Misconfigured):
            await call


# ---------------------------------------------------------------------------------------------- deletion


async def test_a_deletion_takes_machine_nic_and_vm_and_can_be_repeated(azure: Azure) -> None:
    await azure.compute.create_vm(SPEC)
    await azure.settle()
    for _ in range(3):
        await azure.compute.delete_vm(SPEC.name)
    await azure.settle()
    await azure.compute.delete_vm(SPEC.name)
    assert await azure.compute.get_vm(SPEC.name) is None
    assert await azure.network.list_nics() == []
    assert azure.machines.stopped == [SPEC.name]


async def test_a_vm_is_seen_deleting_until_it_is_gone() -> None:
    async with running_azure(delete_delay=30) as azure:
        await azure.compute.create_vm(SPEC)
        await azure.compute.delete_vm(SPEC.name)
        vm = await azure.compute.get_vm(SPEC.name)
        assert vm is not None
        assert vm.state is VmState.DELETING


# ---------------------------------------------------------------------------------------------- secrets


async def test_no_error_and_no_log_holds_the_user_data(azure: Azure, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    encoded = base64.b64encode(SPEC.custom_data.encode()).decode()
    echo = f"The value '{encoded}' ({SPEC.custom_data}) of parameter customData is invalid."
    texts = []
    for status, code in ((400, "InvalidParameter"), (409, "AllocationFailed"), (500, "InternalServerError"), (409, "Conflict")):
        await azure.fault("error", operation="vm.put", status=status, code=code, message=echo, times=1)
        with pytest.raises(PoolError) as caught:
            await azure.compute.create_vm(SPEC)
        texts += [str(caught.value), repr(caught.value), getattr(caught.value, "detail", "")]
        texts += traceback.format_exception(caught.value)
    texts += [repr(SPEC), caplog.text, *(str(record.__dict__) for record in caplog.records)]
    assert not [text for text in texts if encoded in text or "s3cr3t-jit-config" in text]


async def test_azure_shows_neither_user_data_nor_password_again(azure: Azure) -> None:
    await azure.compute.create_vm(SPEC)
    url = f"{azure.url}{SCOPE}/providers/Microsoft.Compute/virtualMachines/{SPEC.name}?api-version=2026-04-01"
    async with azure.http.get(url) as response:
        os_profile = (await response.json())["properties"]["osProfile"]
    assert set(os_profile) == {"computerName", "adminUsername", "linuxConfiguration"}
