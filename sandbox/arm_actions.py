"""Which Azure permissions a request asks for: its own action, and those that Azure checks on the things which it refers to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_VERBS = {"GET": "read", "PUT": "write", "PATCH": "write", "DELETE": "delete"}


class Asked(NamedTuple):
    """One action on one scope, as a role has to allow it."""

    action: str
    scope: str


def asked(method: str, path: str) -> Asked:
    """A list asks for `read` on what it is listed in; POST /thing/NAME/verb for `thing/verb/action`."""
    path = path.rstrip("/")
    outside, provider, inside = path.rpartition("/providers/")
    if not provider:  # a subscription or a resource group
        kind = "subscriptions/resourceGroups" if path.count("/") == 4 else "subscriptions"
        return Asked(f"Microsoft.Resources/{kind}/{_VERBS[method]}", path)
    namespace, *segments = inside.split("/")
    kind = "/".join((namespace, *segments[::2]))
    names_one = len(segments) % 2 == 0
    parent = f"{outside}/providers/{'/'.join((namespace, *segments[:-1]))}" if len(segments) > 1 else outside
    return Asked(f"{kind}/{'action' if method == 'POST' else _VERBS[method]}", path if names_one else parent)


def linked(body: Mapping[str, Any], scope: str) -> set[Asked]:
    """What Azure checks beside `virtualMachines/write` for this body of a PUT; `scope` is the resource group's id.

    It answers LinkedAuthorizationFailed where one is missing, as in https://github.com/Azure/azure-cli/issues/28742.
    """
    properties = body["properties"]
    storage = properties["storageProfile"]
    found = set(_of_disk(storage["osDisk"], scope)) | set(_of_image(storage.get("imageReference") or {}))
    for nic in properties["networkProfile"].get("networkInterfaceConfigurations") or []:
        found |= set(_of_nic(nic, scope))
    return found


def _of_disk(disk: Mapping[str, Any], scope: str) -> list[Asked]:
    name = f"{scope}/providers/Microsoft.Compute/disks/{disk['name']}"
    wanted = ["write", "delete"] if disk.get("deleteOption") == "Delete" else ["write"]
    return [Asked(f"Microsoft.Compute/disks/{verb}", name) for verb in wanted]


def _of_image(image: Mapping[str, Any]) -> list[Asked]:
    """A marketplace's image is anybody's."""
    return [asked("GET", image["id"])] if "id" in image else []


def _of_nic(nic: Mapping[str, Any], scope: str) -> list[Asked]:
    own = f"{scope}/providers/Microsoft.Network/networkInterfaces/{nic['name']}"
    properties = nic["properties"]
    found = [Asked("Microsoft.Network/networkInterfaces/write", own), Asked("Microsoft.Network/networkInterfaces/join/action", own)]
    if properties.get("deleteOption") == "Delete":
        found.append(Asked("Microsoft.Network/networkInterfaces/delete", own))
    if group := properties.get("networkSecurityGroup"):
        found.append(Asked("Microsoft.Network/networkSecurityGroups/join/action", group["id"]))
    subnets = [address["properties"]["subnet"]["id"] for address in properties["ipConfigurations"]]
    return found + [Asked("Microsoft.Network/virtualNetworks/subnets/join/action", subnet) for subnet in subnets]
