"""The custom roles, held against what the adapters ask of the sandbox's Azure: nothing missing, nothing unused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from runnerpool.arm_reads import DISK_ACTIONS, GROUP_ACTIONS, SECURITY_GROUP_ACTIONS, SUBNET_ACTIONS
from runnerpool.ports import Compute, Network
from sandbox.arm_actions import Asked, asked, linked
from tests.azure_sandbox import AZURE, SCOPE, SPEC, VMS, Azure, body_of, call, named, running_azure
from tests.bicep_files import INFRA, body, resources, variable
from tests.e2e_fixture import deployed, fast_clock, pool

ACCESS = "modules/access.bicep"
SUBNET = f"{SCOPE}/providers/Microsoft.Network/virtualNetworks/{AZURE.virtual_network}/subnets/{AZURE.subnet}"
SECURITY_GROUP = f"{SCOPE}/providers/Microsoft.Network/networkSecurityGroups/{AZURE.network_security_group}"
GALLERY = f"{SCOPE}/providers/Microsoft.Compute/galleries/images/images/ubuntu"

MACHINES: list[str] = variable(ACCESS, "machineActions")
NETWORK: list[str] = variable(ACCESS, "networkActions")
ASSIGNED: Mapping[str, tuple[list[str], str]] = {
    "machines": (MACHINES, SCOPE),
    "onSubnet": (NETWORK, SUBNET),
    "onSecurityGroup": (NETWORK, SECURITY_GROUP),
}
"""As access.bicep assigns them: by the assignment's name, the role's actions and the scope."""

OF_IMAGES = {action for action in MACHINES if "/images/" in action}
"""For images of one's own; a marketplace's are anybody's."""

VIRTUAL_MACHINE_CONTRIBUTOR = (
    "Microsoft.Compute/virtualMachines/*",
    "Microsoft.Compute/disks/write",
    "Microsoft.Compute/disks/read",
    "Microsoft.Compute/disks/delete",
    "Microsoft.Network/networkInterfaces/*",
    "Microsoft.Network/networkSecurityGroups/join/action",
    "Microsoft.Network/networkSecurityGroups/read",
    "Microsoft.Network/virtualNetworks/read",
    "Microsoft.Network/virtualNetworks/subnets/join/action",
)
"""Its part that matters here: https://learn.microsoft.com/azure/role-based-access-control/built-in-roles/compute"""

READER = ("*/read",)


class Noting:
    """Stands before an adapter and notes which of its methods are used."""

    def __init__(self, adapter: object, used: set[str]) -> None:
        self._adapter, self._used = adapter, used

    def __getattr__(self, name: str) -> Any:
        self._used.add(name)
        return getattr(self._adapter, name)


async def everything(azure: Azure) -> set[str]:
    """What the app does with Azure, over VMs from each kind of image; returns the names of the ports' methods that it used."""
    used: set[str] = set()
    compute, network = Noting(azure.compute, used), Noting(azure.network, used)
    images = {"mktplace": SPEC.image, "gallery": GALLERY, "version": f"{GALLERY}/versions/1.0.0"}
    images["own"] = f"{SCOPE}/providers/Microsoft.Compute/images/mine"
    await azure.fault("nic_left", operation="vm.delete", times=1)
    for suffix, image in images.items():
        await compute.create_vm(named(suffix, image=image))
    await azure.settle()
    for vm in await compute.list_vms():
        assert await compute.get_vm(vm.name)
        await compute.delete_vm(vm.name)
    await azure.settle()
    for nic in await network.list_nics():
        await network.delete_nic(nic.name)
    await network.subnet_prefixes()
    return used


async def taken() -> set[Asked]:
    async with running_azure() as azure:
        await everything(azure)
        return azure.arm.actions


def allows(actions: tuple[str, ...] | list[str], action: str) -> bool:
    return any(fnmatchcase(action, pattern) for pattern in actions)


# ---------------------------------------------------------------------------------------------- the roles


async def test_what_is_judged_here_uses_every_method_that_the_ports_have() -> None:
    async with running_azure() as azure:
        called = await everything(azure)
    declared = {name for port in (Compute, Network) for name, _ in inspect.getmembers(port, inspect.isfunction) if name[0] != "_"}
    assert called == declared


async def test_the_roles_allow_all_that_the_app_asks_for_where_it_asks_for_it() -> None:
    refused = [
        request
        for request in await taken()
        if not any(request.action in actions and request.scope.startswith(scope) for actions, scope in ASSIGNED.values())
    ]
    assert refused == []


async def test_a_whole_deployment_at_work_asks_for_all_of_the_roles_but_other_people_s_images_and_for_no_more(
    tmp_path: Path,
) -> None:
    with fast_clock(30.0):
        async with deployed(tmp_path, [pool("warm", minimum_warm_vms=1), pool("cold")]) as app:
            ids = [*app.queue("warm", count=2), *app.queue("cold", count=2)]
            await app.settles()
            assert app.done(ids)
            seen = set(app.stack.arm.actions)
    assert {request.action for request in seen} == {*MACHINES, *NETWORK} - OF_IMAGES
    assert not [request for request in seen if not request.scope.startswith(app.stack.arm.scope)]


async def test_the_roles_allow_nothing_that_the_app_does_not_ask_for() -> None:
    asked_for = {request.action for request in await taken()}
    assert sorted({*MACHINES, *NETWORK} - asked_for) == []
    assert len({*MACHINES, *NETWORK}) == len([*MACHINES, *NETWORK])


async def test_nothing_is_asked_of_the_subscription() -> None:
    assert not [request for request in await taken() if not request.scope.startswith(SCOPE)]


async def test_the_built_in_roles_that_stand_in_for_them_suffice() -> None:
    fallback = VIRTUAL_MACHINE_CONTRIBUTOR + READER
    assert not [request for request in await taken() if not allows(fallback, request.action)]
    assert variable(ACCESS, "builtInRoles")["operator"]["operands"]["false_value"] == ["virtualMachineContributor", "reader"]


def test_doctor_looks_for_every_action_of_the_roles_where_they_are_assigned() -> None:
    """But for those on images, which are read where they are, in a gallery anywhere: see its check of images."""
    assert {*GROUP_ACTIONS, *DISK_ACTIONS} == {*MACHINES} - OF_IMAGES
    assert {*SUBNET_ACTIONS, *SECURITY_GROUP_ACTIONS} == {*NETWORK}


async def test_a_linked_action_says_what_needs_it() -> None:
    linked_only = {request.action for request in await taken()} - {asked(*request).action for request in DIRECT}
    lines = (INFRA / ACCESS).read_text().splitlines()
    commented = {line.split("'")[1] for line in lines if "' // linked: " in line}
    assert commented == linked_only


DIRECT = (
    ("PUT", f"{VMS}/one"),
    ("GET", f"{VMS}/one"),
    ("DELETE", f"{VMS}/one"),
    ("GET", f"{SCOPE}/providers/Microsoft.Network/networkInterfaces"),
    ("DELETE", f"{SCOPE}/providers/Microsoft.Network/networkInterfaces/one"),
    ("GET", SUBNET),
)
"""What the app itself calls."""


def test_each_role_is_assigned_where_it_is_needed_and_nowhere_else() -> None:
    found = resources(ACCESS)
    assert body(found["machineRole"])["properties"]["permissions"] == [{"actions": "machineActions"}]
    assert body(found["networkRole"])["properties"]["permissions"] == [{"actions": "networkActions"}]
    scopes = {name: body(found[name]).get("scope", "the resource group") for name in ASSIGNED}
    assert scopes == {"machines": "the resource group", "onSubnet": "subnet", "onSecurityGroup": "securityGroup"}
    assignments = {name for name, resource in found.items() if resource["type"].endswith("/roleAssignments")}
    assert assignments == {*ASSIGNED, "builtIn"}


# ---------------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("method", "path", "action", "scope"),
    [
        ("GET", VMS, "Microsoft.Compute/virtualMachines/read", SCOPE),
        ("GET", f"{VMS}/one", "Microsoft.Compute/virtualMachines/read", f"{VMS}/one"),
        ("PATCH", f"{VMS}/one", "Microsoft.Compute/virtualMachines/write", f"{VMS}/one"),
        ("POST", f"{VMS}/one/restart", "Microsoft.Compute/virtualMachines/restart/action", f"{VMS}/one"),
        ("GET", SUBNET, "Microsoft.Network/virtualNetworks/subnets/read", SUBNET),
        ("GET", SUBNET.rpartition("/")[0], "Microsoft.Network/virtualNetworks/subnets/read", SUBNET.rpartition("/subnets")[0]),
        ("GET", SCOPE, "Microsoft.Resources/subscriptions/resourceGroups/read", SCOPE),
        ("GET", "/subscriptions/s", "Microsoft.Resources/subscriptions/read", "/subscriptions/s"),
        ("GET", "/subscriptions/s/providers/Microsoft.Compute/skus", "Microsoft.Compute/skus/read", "/subscriptions/s"),
        (
            "GET",
            f"{VMS}/one/providers/Microsoft.Authorization/permissions",
            "Microsoft.Authorization/permissions/read",
            f"{VMS}/one",
        ),
    ],
)
def test_a_request_asks_for_the_action_of_its_resource_type(method: str, path: str, action: str, scope: str) -> None:
    assert asked(method, path) == Asked(action, scope)


def test_a_vm_that_keeps_its_disk_asks_for_no_permission_to_delete_it() -> None:
    vm = body_of()
    assert "Microsoft.Compute/disks/delete" in {request.action for request in linked(vm, SCOPE)}
    vm["properties"]["storageProfile"]["osDisk"]["deleteOption"] = "Detach"
    assert "Microsoft.Compute/disks/delete" not in {request.action for request in linked(vm, SCOPE)}


async def test_the_sandbox_tells_what_was_asked_of_it() -> None:
    async with running_azure() as azure:
        await azure.network.subnet_prefixes()
        told = (await call(azure, "GET", "/_admin/actions")).body
    assert told == [{"action": "Microsoft.Network/virtualNetworks/subnets/read", "scope": SUBNET}]
