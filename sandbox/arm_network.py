"""Microsoft.Network in the sandbox: NICs, which come with VMs, and the one network that there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sandbox import arm_network_wire as network_wire
from sandbox import arm_wire as wire
from sandbox.arm_errors import ArmError, not_found

if TYPE_CHECKING:
    from sandbox.arm import ArmSandbox, Route

API_VERSIONS = ("2023-11-01", "2024-05-01", "2024-10-01", "2025-01-01", "2025-05-01", "2026-03-01")


class NetworkProvider:
    def __init__(self, arm: ArmSandbox) -> None:
        self._arm = arm

    def routes(self) -> list[Route]:
        network = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network"
        return [
            ("GET", network + "/networkInterfaces/{name}", "nic.get", self._get_nic),
            ("DELETE", network + "/networkInterfaces/{name}", "nic.delete", self._delete_nic),
            ("GET", network + "/networkInterfaces", "nic.list", self._list_nics),
            ("GET", network + "/virtualNetworks/{vnet}", "vnet.get", self._get_vnet),
            ("GET", network + "/virtualNetworks/{vnet}/usages", "vnet.usages", self._list_usages),
            ("GET", network + "/routeTables/{name}", "route.get", self._get_route_table),
            ("GET", network + "/virtualNetworks/{vnet}/subnets/{name}", "subnet.get", self._get_subnet),
            ("GET", network + "/networkSecurityGroups/{name}", "nsg.get", self._get_security_group),
        ]

    async def _get_nic(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        nic = self._arm.estate.nics.get(name.lower())
        if nic is None:
            raise not_found("Microsoft.Network/networkInterfaces", name, self._arm.resource_group)
        return web.json_response(wire.nic_json(nic, self._arm.scope, self._arm.location))

    async def _list_nics(self, request: web.Request) -> web.Response:
        nics = self._arm.estate.nics.items()
        items = {name: wire.nic_json(nic, self._arm.scope, self._arm.location) for name, nic in nics}
        return wire.page(request, items, self._arm.page_size)

    async def _delete_nic(self, request: web.Request) -> web.Response:
        nic = self._arm.estate.nics.get(request.match_info["name"].lower())
        if nic is None:
            return web.Response(status=204)
        if nic.vm is not None:
            user = wire.resource_id(self._arm.scope, "virtualMachines", nic.vm)
            text = f"Network Interface {nic.name} is used by existing resource {user}."
            raise ArmError(400, "NicInUse", text)
        del self._arm.estate.nics[nic.name.lower()]
        return web.Response(status=200)

    async def _get_vnet(self, request: web.Request) -> web.Response:
        answer = network_wire.vnet_json(self._arm.network, self._arm.location, self._arm.surroundings)
        return self._if_named(answer, request.match_info["vnet"], "Microsoft.Network/virtualNetworks")

    async def _get_subnet(self, request: web.Request) -> web.Response:
        await self._get_vnet(request)
        answer = network_wire.subnet_json(self._arm.network, self._arm.surroundings)
        return self._if_named(answer, request.match_info["name"], request.path)

    async def _list_usages(self, request: web.Request) -> web.Response:
        await self._get_vnet(request)
        used = len(self._arm.estate.nics) + self._arm.surroundings.addresses_taken
        return web.json_response({"value": [network_wire.subnet_usage_json(self._arm.network.subnet_id, used)]})

    async def _get_route_table(self, request: web.Request) -> web.Response:
        hop = self._arm.surroundings.next_hop
        answer = network_wire.route_table_json(self._arm.network, self._arm.location, hop) if hop else {"name": ""}
        return self._if_named(answer, request.match_info["name"], "Microsoft.Network/routeTables")

    async def _get_security_group(self, request: web.Request) -> web.Response:
        answer = network_wire.security_group_json(self._arm.network.security_group_id, self._arm.location, self._arm.surroundings)
        return self._if_named(answer, request.match_info["name"], "Microsoft.Network/networkSecurityGroups")

    def _if_named(self, answer: Mapping[str, Any], name: str, kind: str) -> web.Response:
        if answer["name"].lower() == name.lower():
            return web.json_response(answer)
        if "/subnets/" in kind:  # a child's absence reads differently
            raise ArmError(404, "NotFound", f"Resource {kind} not found.")
        raise not_found(kind, name, self._arm.resource_group)
