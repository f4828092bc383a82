"""Microsoft.Compute in the sandbox: VMs and the operations that make and delete them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sandbox import arm_wire as wire
from sandbox import clock
from sandbox.arm_checks import check_body, check_quota, cores, read_body, refusal
from sandbox.arm_errors import ArmError, not_found
from sandbox.arm_lifecycle import Fate
from sandbox.arm_store import NicRecord, Operation, VmRecord

if TYPE_CHECKING:
    from sandbox.arm import ArmSandbox, Route

API_VERSIONS = ("2023-09-01", "2024-03-01", "2024-07-01", "2024-11-01", "2025-04-01", "2025-11-01", "2026-04-01")
RETRY_AFTER = "10"  # what Compute usually proposes between two looks at an operation


class ComputeProvider:
    def __init__(self, arm: ArmSandbox) -> None:
        self._arm = arm

    def routes(self) -> list[Route]:
        vms = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Compute/virtualMachines"
        operation = "/subscriptions/{subscription}/providers/Microsoft.Compute/locations/{location}/operations/{name}"
        return [
            ("PUT", vms + "/{name}", "vm.put", self._put_vm),
            ("GET", vms + "/{name}", "vm.get", self._get_vm),
            ("DELETE", vms + "/{name}", "vm.delete", self._delete_vm),
            ("GET", vms, "vm.list", self._list_vms),
            ("GET", operation, "operation.get", self._get_operation),
        ]

    async def _put_vm(self, request: web.Request) -> web.Response:
        arm = self._arm
        name = request.match_info["name"]
        facts = await arm.facts(request)
        body = read_body(await request.read())
        custom_data = check_body(name, body, arm.network)
        # No await from here on: of two requests for one name the second must find the first one's VM.
        self._check_new(name, request)
        if fault := arm.faults.take("put_409", "vm.put", facts):
            raise refusal(fault.code, fault.status, fault.message, facts)
        vm = self._record(name, body, custom_data)
        check_quota(
            vm.size,
            spot=vm.spot,
            location=arm.location,
            subscription=arm.subscription_id,
            vms=arm.estate.vms.values(),
            limits=arm.quotas,
        )
        arm.estate.add(vm, self._nic(vm, body))
        operation = arm.estate.begin()
        self._boot(vm, operation, facts)
        answer = wire.vm_json(vm, arm.scope, view=False)
        return web.json_response(answer, status=201, headers=self._tracking(request, operation))

    def _check_new(self, name: str, request: web.Request) -> None:
        if name.lower() not in self._arm.estate.vms:
            return
        if request.headers.get("If-None-Match") == "*":
            text = 'Etag provided in if-none-match header "*" matches etag "1" of resource.'
            raise ArmError(412, "PreconditionFailed", text)
        text = "Changing property 'osProfile.customData' is not allowed."
        raise ArmError(409, "PropertyChangeNotAllowed", text, target="osProfile.customData")

    def _record(self, name: str, body: dict[str, Any], custom_data: str) -> VmRecord:
        properties = body["properties"]
        size = properties["hardwareProfile"]["vmSize"]
        return VmRecord(
            name=name,
            body=wire.without_secrets(body),
            custom_data=custom_data,
            size=size,
            cores=cores(size),
            zone=(body.get("zones") or [None])[0],
            spot=properties.get("priority") == "Spot",
            nic=properties["networkProfile"]["networkInterfaceConfigurations"][0]["name"],
            address=self._arm.estate.new_address(),
            created_at=clock.now(),
        )

    def _nic(self, vm: VmRecord, body: dict[str, Any]) -> NicRecord:
        inline = body["properties"]["networkProfile"]["networkInterfaceConfigurations"][0]
        group = (inline["properties"].get("networkSecurityGroup") or {}).get("id", "")
        return NicRecord(vm.nic, vm.address, dict(inline.get("tags") or {}), group, self._arm.network.subnet_id, vm.name)

    def _boot(self, vm: VmRecord, operation: Operation, facts: dict[str, str]) -> None:
        failure = ("", "")
        if fault := self._arm.faults.take("async_failure", "vm.put", facts):
            error = refusal(fault.code, 409, fault.message, facts)
            failure = (error.code, error.message)
        dead = self._arm.faults.take("dead_agent", "vm.put", facts) is not None
        broken = self._arm.faults.take("setup_fails", "vm.put", facts)
        slow = self._arm.faults.take("slow_boot", "vm.put", facts)
        if fault := self._arm.faults.take("list_omits", "vm.put", facts):
            vm.hidden_until = asyncio.get_running_loop().time() + fault.seconds
        evict = self._arm.faults.take("evict", "vm.put", facts) if vm.spot else None
        fate = Fate(
            failure=failure,
            dead=dead,
            delay=slow.seconds if slow else 0.0,
            setup_error=broken.message if broken else "",
            evicted_after=evict.seconds if evict else None,
            notice=evict.notice if evict else 0.0,
        )
        self._arm.lifecycle.boot(vm, operation, fate)

    async def _get_vm(self, request: web.Request) -> web.Response:
        vm = self._vm(request)
        return web.json_response(wire.vm_json(vm, self._arm.scope, view=request.query.get("$expand") == "instanceView"))

    async def _list_vms(self, request: web.Request) -> web.Response:
        graph = request.query.get("useResourceGraph") == "true"
        view = request.query.get("$expand") == "instanceView"
        if view and not graph and "$filter" not in request.query:
            text = "The $expand option instanceView can only be specified if a valid $filter option is specified."
            raise ArmError(400, "BadRequest", text)
        now = asyncio.get_running_loop().time()
        shown = {name: vm for name, vm in self._arm.estate.vms.items() if vm.hidden_until <= now}
        items = {name: wire.vm_json(vm, self._arm.scope, view=view) for name, vm in shown.items()}
        if graph:  # Resource Graph says so which version of the API it speaks
            items = {name: {**item, "apiVersion": API_VERSIONS[-1]} for name, item in items.items()}
        return wire.page(request, items, self._arm.page_size)

    async def _delete_vm(self, request: web.Request) -> web.Response:
        vm = self._arm.estate.vms.get(request.match_info["name"].lower())
        if vm is None:
            return web.Response(status=204)
        if vm.state != "Deleting" or vm.deletion is None:
            failure = ("", "")
            if fault := self._arm.faults.take("delete_fails", "vm.delete", vm.facts):
                error = refusal(fault.code, 409, fault.message, vm.facts)
                failure = (error.code, error.message)
            keep_nic = self._arm.faults.take("nic_left", "vm.delete", vm.facts) is not None
            vm.deletion = self._arm.estate.begin()
            self._arm.lifecycle.delete(vm, vm.deletion, failure=failure, keep_nic=keep_nic)
        return web.Response(status=202, headers=self._tracking(request, vm.deletion))

    def _vm(self, request: web.Request) -> VmRecord:
        name = request.match_info["name"]
        vm = self._arm.estate.vms.get(name.lower())
        if vm is None:
            raise not_found("Microsoft.Compute/virtualMachines", name, self._arm.resource_group)
        return vm

    def _tracking(self, request: web.Request, operation: Operation) -> dict[str, str]:
        provider = f"/subscriptions/{self._arm.subscription_id}/providers/Microsoft.Compute"
        path = f"{provider}/locations/{self._arm.location}/operations/{operation.id}"
        url = request.url.with_path(path).with_query({"api-version": request.query["api-version"]})
        location = url.update_query({"monitor": "true"})
        return {"Azure-AsyncOperation": str(url), "Location": str(location), "Retry-After": RETRY_AFTER}

    async def _get_operation(self, request: web.Request) -> web.Response:
        operation = self._arm.estate.operations.get(request.match_info["name"])
        if operation is None:
            raise ArmError(404, "NotFound", "The entity was not found.")
        if request.query.get("monitor") != "true":
            return web.json_response(wire.operation_json(operation))
        waiting = operation.status == "InProgress"
        return web.Response(status=202, headers=self._tracking(request, operation)) if waiting else web.Response(status=200)
