"""The JSON that ARM answers with. Secrets of a request (custom data, passwords) are never among it, as in Azure."""

from __future__ import annotations

import base64
import copy
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aiohttp import web

from sandbox.arm_store import NicRecord, Operation, VmRecord

PROVIDERS = {"virtualMachines": "Microsoft.Compute", "networkInterfaces": "Microsoft.Network"}


def timestamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def resource_id(scope: str, kind: str, name: str) -> str:
    return f"{scope}/providers/{PROVIDERS[kind]}/{kind}/{name}"


def without_secrets(body: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a VM's request body as a later GET may show it."""
    kept = copy.deepcopy(dict(body))
    for secret in ("customData", "adminPassword"):
        kept["properties"]["osProfile"].pop(secret, None)
    return kept


def page(request: web.Request, items: Mapping[str, Any], size: int) -> web.Response:
    """A list's answer by name, from the one after `$skipToken` on, with a link to the next page where there is one."""
    token = request.query.get("$skipToken")
    after = base64.urlsafe_b64decode(token).decode() if token else ""
    names = [name for name in sorted(items) if name > after]
    shown = names[:size]
    answer: dict[str, Any] = {"value": [items[name] for name in shown]}
    if len(names) > len(shown):
        last = base64.urlsafe_b64encode(shown[-1].encode()).decode()
        answer["nextLink"] = str(request.url.update_query({"$skipToken": last}))
    return web.json_response(answer)


def vm_json(vm: VmRecord, scope: str, *, view: bool) -> dict[str, Any]:
    """`view`: with the instance view, which is where power states and failures are."""
    kept = vm.body["properties"]
    nic = {"id": resource_id(scope, "networkInterfaces", vm.nic), "properties": {"primary": True, "deleteOption": "Delete"}}
    properties = {
        **{key: kept[key] for key in kept if key != "networkProfile"},
        "vmId": vm.id,
        "networkProfile": {"networkInterfaces": [nic]},
        "provisioningState": vm.state,
        "timeCreated": timestamp(vm.created_at),
    }
    if view:
        properties["instanceView"] = {"statuses": _statuses(vm)}
    answer = {
        "name": vm.name,
        "id": resource_id(scope, "virtualMachines", vm.name),
        "type": "Microsoft.Compute/virtualMachines",
        "location": vm.body["location"],
        "tags": vm.tags,
        "etag": '"1"',
        "properties": properties,
    }
    return answer | ({"zones": [vm.zone]} if vm.zone else {})


def _statuses(vm: VmRecord) -> list[dict[str, str]]:
    if vm.state == "Failed":
        code = f"ProvisioningState/failed/{vm.code}"
        statuses = [{"code": code, "level": "Error", "displayStatus": "Provisioning failed", "message": vm.message}]
    else:
        shown = "Provisioning succeeded" if vm.state == "Succeeded" else vm.state
        statuses = [{"code": f"ProvisioningState/{vm.state.lower()}", "level": "Info", "displayStatus": shown}]
    if vm.power:
        statuses.append({"code": f"PowerState/{vm.power}", "level": "Info", "displayStatus": f"VM {vm.power}"})
    return statuses


def nic_json(nic: NicRecord, scope: str, location: str) -> dict[str, Any]:
    own = resource_id(scope, "networkInterfaces", nic.name)
    address = {
        "privateIPAddress": nic.address,
        "privateIPAllocationMethod": "Dynamic",
        "privateIPAddressVersion": "IPv4",
        "primary": True,
        "subnet": {"id": nic.subnet},
        "provisioningState": "Succeeded",
    }
    properties: dict[str, Any] = {
        "provisioningState": "Succeeded",
        "ipConfigurations": [{"name": "primary", "id": f"{own}/ipConfigurations/primary", "properties": address}],
        "networkSecurityGroup": {"id": nic.security_group},
        "primary": True,
    }
    if nic.vm:
        properties["virtualMachine"] = {"id": resource_id(scope, "virtualMachines", nic.vm)}
    kind = "Microsoft.Network/networkInterfaces"
    return {"name": nic.name, "id": own, "type": kind, "location": location, "tags": nic.tags, "properties": properties}


def operation_json(operation: Operation) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "name": operation.id,
        "startTime": timestamp(operation.started_at),
        "status": operation.status,
    }
    if operation.ended_at:
        answer["endTime"] = timestamp(operation.ended_at)
    if operation.code:
        answer["error"] = {"code": operation.code, "message": operation.message}
    return answer
