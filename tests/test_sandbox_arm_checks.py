"""What the ARM sandbox asks of a request, as Azure does."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sandbox.arm_checks import cores, family
from tests.azure_sandbox import (
    COMPUTE_VERSION,
    NETWORK,
    NETWORK_VERSION,
    SUBSCRIPTION,
    VMS,
    Azure,
    body_of,
    call,
    named,
    put,
    running_azure,
)


@pytest.fixture
async def azure() -> AsyncIterator[Azure]:
    async with running_azure() as azure:
        yield azure


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"{VMS}/x", 400, "MissingApiVersionParameter"),
        (f"{VMS}/x?api-version=2019-13-01", 400, "InvalidApiVersionParameter"),
        (f"{NETWORK}/networkInterfaces?api-version=2019-13-01", 400, "InvalidApiVersionParameter"),
        (f"{VMS.replace(SUBSCRIPTION, 'other')}/x?{COMPUTE_VERSION}", 404, "SubscriptionNotFound"),
        (f"{VMS.replace('hw-rg', 'other')}/x?{COMPUTE_VERSION}", 404, "ResourceGroupNotFound"),
        (f"{VMS}/x?{COMPUTE_VERSION}", 404, "ResourceNotFound"),
        (f"{NETWORK}/networkInterfaces/x?{NETWORK_VERSION}", 404, "ResourceNotFound"),
        (f"{NETWORK}/virtualNetworks/x?{NETWORK_VERSION}", 404, "ResourceNotFound"),
        (f"{NETWORK}/virtualNetworks/hw-vnet/subnets/x?{NETWORK_VERSION}", 404, "NotFound"),
        (f"{NETWORK}/networkSecurityGroups/x?{NETWORK_VERSION}", 404, "ResourceNotFound"),
        (f"{VMS}?$expand=instanceView&{COMPUTE_VERSION}", 400, "BadRequest"),
    ],
)
async def test_a_read_of_what_is_not_there_is_refused_as_azure_does(azure: Azure, path: str, status: int, code: str) -> None:
    reply = await call(azure, "GET", path)
    assert (reply.status, reply.code) == (status, code)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"{NETWORK}/virtualNetworks/HW-vnet", "hw-vnet"),
        (f"{NETWORK}/virtualNetworks/hw-vnet/subnets/hw-subnet", "hw-subnet"),
        (f"{NETWORK}/networkSecurityGroups/hw-nsg", "hw-nsg"),
    ],
)
async def test_the_network_can_be_read(azure: Azure, path: str, name: str) -> None:
    reply = await call(azure, "GET", f"{path}?{NETWORK_VERSION}")
    assert (reply.status, reply.body["name"]) == (200, name)


def drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        for key in path[:-1]:
            body = body[key]
        del body[path[-1]]

    return change


def change(value: Any, *path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(body: Any) -> None:
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = value

    return change


NIC = ("properties", "networkProfile", "networkInterfaceConfigurations", 0)
BAD_BODIES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (drop("location"), "LocationRequired"),
    (drop("properties"), "InvalidParameter"),
    (drop("properties", "hardwareProfile"), "InvalidParameter"),
    (change("D4", "properties", "hardwareProfile", "vmSize"), "InvalidParameter"),
    (change(["9"], "zones"), "InvalidAvailabilityZone"),
    (drop("properties", "storageProfile", "imageReference"), "InvalidParameter"),
    (drop("properties", "storageProfile", "imageReference", "sku"), "InvalidParameter"),
    (drop("properties", "storageProfile", "osDisk", "createOption"), "InvalidParameter"),
    (change("ReadWrite", "properties", "storageProfile", "osDisk", "caching"), "InvalidParameter"),
    (change("Detach", "properties", "storageProfile", "osDisk", "deleteOption"), "InvalidParameter"),
    (drop("properties", "osProfile", "computerName"), "InvalidParameter"),
    (drop("properties", "osProfile", "adminUsername"), "InvalidParameter"),
    (drop("properties", "osProfile", "linuxConfiguration"), "InvalidParameter"),
    (drop("properties", "osProfile", "linuxConfiguration", "ssh"), "InvalidParameter"),
    (change([{"keyData": "x"}], "properties", "osProfile", "linuxConfiguration", "ssh", "publicKeys"), "InvalidParameter"),
    (change("not base64", "properties", "osProfile", "customData"), "InvalidParameter"),
    (change("A" * 87384, "properties", "osProfile", "customData"), "InvalidParameter"),
    (change([], *NIC[:-1]), "InvalidParameter"),
    (drop("properties", "networkProfile", "networkApiVersion"), "InvalidParameter"),
    (change("2020-11-01", "properties", "networkProfile", "networkApiVersion"), "InvalidParameter"),
    (change("", *NIC, "name"), "InvalidParameter"),
    (change([], *NIC, "properties", "ipConfigurations"), "InvalidParameter"),
    (change({"id": "/other"}, *NIC, "properties", "networkSecurityGroup"), "InvalidResourceReference"),
    (change({"id": "/other"}, *NIC, "properties", "ipConfigurations", 0, "properties", "subnet"), "InvalidResourceReference"),
    (change("Delete", "properties", "evictionPolicy"), "EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines"),
    (change({"maxPrice": -1}, "properties", "billingProfile"), "MaxPriceIsSupportedOnlyForAzureSpotVirtualMachines"),
]


@pytest.mark.parametrize(("spoil", "code"), BAD_BODIES)
async def test_a_vm_that_azure_would_not_take_is_refused(azure: Azure, spoil: Callable[[dict[str, Any]], None], code: str) -> None:
    body = copy.deepcopy(body_of())
    spoil(body)
    reply = await put(azure, body=body)
    assert (reply.status, reply.code) == (400, code)
    assert (await azure.state())["vms"] == []


async def test_a_body_that_is_not_json_is_refused(azure: Azure) -> None:
    reply = await call(azure, "PUT", f"{VMS}/x?{COMPUTE_VERSION}", data="{")
    assert (reply.status, reply.code) == (400, "InvalidRequestContent")


async def test_a_windows_name_of_more_than_15_characters_is_refused(azure: Azure) -> None:
    body = body_of(named("a", os="windows"))
    body["properties"]["osProfile"]["computerName"] = "x" * 16
    assert (await put(azure, body=body)).code == "InvalidParameter"


@pytest.mark.parametrize(
    ("size", "vcpus", "name"),
    [
        ("Standard_D4ads_v5", 4, "standardDADSv5Family"),
        ("Standard_D16as_v5", 16, "standardDASv5Family"),
        ("Standard_B2s", 2, "standardBSFamily"),
        ("Standard_E8-4s_v5", 8, "standardESv5Family"),
        ("Standard_NC24ads_A100_v4", 24, "standardNCADSA100v4Family"),
    ],
)
def test_cores_and_family_are_read_from_the_sizes_name(size: str, vcpus: int, name: str) -> None:
    assert (cores(size), family(size)) == (vcpus, name)
