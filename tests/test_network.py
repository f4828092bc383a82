"""AzureNetwork against the ARM sandbox, over real HTTP through the real SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from ipaddress import ip_address, ip_network

import pytest

from runnerpool.config import AzureConfig
from runnerpool.errors import Misconfigured, RetryLater
from runnerpool.network import AzureNetwork
from runnerpool.ports import Network
from tests.azure_sandbox import SPEC, SUBSCRIPTION, Azure, named, running_azure


@pytest.fixture
async def azure() -> AsyncIterator[Azure]:
    async with running_azure() as azure:
        yield azure


async def left_behind(azure: Azure) -> str:
    """The name of a NIC whose VM is gone."""
    await azure.fault("nic_left", times=1)
    await azure.compute.create_vm(SPEC)
    await azure.settle()
    await azure.compute.delete_vm(SPEC.name)
    await azure.settle()
    (nic,) = await azure.network.list_nics()
    return nic.name


async def test_a_nic_shows_its_vm_its_tags_and_an_address_in_the_subnet(azure: Azure) -> None:
    network: Network = azure.network
    await azure.compute.create_vm(SPEC)
    await azure.settle()
    (nic,) = await network.list_nics()
    (prefix,) = await network.subnet_prefixes()
    assert nic.vm == SPEC.name
    assert nic.tags == {**SPEC.tags, "team": "ci"}
    assert nic.address == azure.machines.running[SPEC.name][0]
    assert ip_address(nic.address) in ip_network(prefix)


async def test_a_list_follows_its_pages_and_no_address_is_given_twice() -> None:
    async with running_azure(page_size=2) as azure:
        for suffix in "abcde":
            await azure.compute.create_vm(named(suffix))
        nics = await azure.network.list_nics()
        assert [nic.vm for nic in nics] == [f"hw-linux-x64-{suffix}" for suffix in "abcde"]
        assert len({nic.address for nic in nics}) == 5
        assert azure.arm.calls["nic.list"] == 3


async def test_half_a_list_is_never_returned() -> None:
    async with running_azure(page_size=1) as azure:
        for suffix in "ab":
            await azure.compute.create_vm(named(suffix))
        await azure.fault("error", operation="nic.list", status=500, skip=1)
        with pytest.raises(RetryLater) as caught:
            await azure.network.list_nics()
    assert not caught.value.uncertain


async def test_a_nic_left_behind_is_free_and_can_be_removed_more_than_once(azure: Azure) -> None:
    name = await left_behind(azure)
    (nic,) = await azure.network.list_nics()
    assert nic.vm is None
    for _ in range(2):
        await azure.network.delete_nic(name)
    assert await azure.network.list_nics() == []


async def test_a_nic_in_use_stays(azure: Azure) -> None:
    await azure.compute.create_vm(SPEC)
    (nic,) = await azure.network.list_nics()
    with pytest.raises(RetryLater, match="NicInUse"):
        await azure.network.delete_nic(nic.name)
    assert len(await azure.network.list_nics()) == 1


async def test_a_nic_that_azure_still_holds_is_to_be_tried_again_when_azure_lets_go(azure: Azure) -> None:
    name = await left_behind(azure)
    await azure.fault("error", operation="nic.delete", status=400, code="NicReservedForAnotherVm", times=1)
    with pytest.raises(RetryLater) as caught:
        await azure.network.delete_nic(name)
    assert caught.value.after == timedelta(seconds=180)


async def test_a_refused_deletion_for_lack_of_permission_is_a_matter_of_credentials(azure: Azure) -> None:
    await azure.fault("error", operation="nic.delete", status=403, code="AuthorizationFailed")
    with pytest.raises(Misconfigured) as caught:
        await azure.network.delete_nic("hw-nic")
    assert caught.value.area == "auth"


@pytest.mark.parametrize("wrong", [{"subnet": "other"}, {"virtual_network": "other"}])
async def test_a_missing_subnet_is_a_matter_of_the_network(azure: Azure, wrong: dict[str, str]) -> None:
    config = AzureConfig(name_prefix="hw").model_copy(update=wrong)
    network = AzureNetwork(subscription_id=SUBSCRIPTION, azure=config, endpoint=azure.url, credential=None)
    try:
        with pytest.raises(Misconfigured) as caught:
            await network.subnet_prefixes()
    finally:
        await network.close()
    assert caught.value.area == "network"
    assert "other" in str(caught.value)


async def test_a_missing_resource_group_is_an_error_and_no_empty_list(azure: Azure) -> None:
    config = AzureConfig(name_prefix="hw", resource_group="other-rg")
    network = AzureNetwork(subscription_id=SUBSCRIPTION, azure=config, endpoint=azure.url, credential=None)
    try:
        with pytest.raises(Misconfigured):
            await network.list_nics()
    finally:
        await network.close()
