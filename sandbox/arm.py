"""A small Azure Resource Manager on loopback: VMs with inline NICs, asynchronous operations, paging, quotas, throttling, faults.

    PUT GET DELETE  …/Microsoft.Compute/virtualMachines/NAME      GET …/virtualMachines
    GET DELETE      …/Microsoft.Network/networkInterfaces/NAME    GET …/networkInterfaces
    GET             …/virtualNetworks/NAME[/usages], …/subnets/NAME, …/networkSecurityGroups/NAME, …/routeTables/NAME
    GET             …/locations/LOCATION/operations/ID, and what Azure offers: arm_catalog.py

What makes it fail, and what shows its inside (arm_admin.py):

    POST GET DELETE /_admin/faults      see arm_faults.py
    POST            /_admin/settings    {"latency", "boot_delay", "delete_delay" (seconds), "page_size", "quotas": {name: cores},
                                        "surroundings": see arm_surroundings.py}
    POST            /_admin/evict       {"name", "notice"?}: a spot VM is taken away, so many seconds after it was told
    GET             /_admin/state       VMs, NICs, a log of what happened when, and the peak of each pool
    GET             /_admin/calls       how often each operation was asked for
    GET             /_admin/actions     the permissions that these calls took, each with its scope
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from random import Random
from typing import Any

from aiohttp import web

from sandbox import arm_catalog, arm_compute, arm_network
from sandbox.arm_actions import Asked, asked, linked
from sandbox.arm_admin import add_admin_routes
from sandbox.arm_checks import Network, read_body, refusal
from sandbox.arm_errors import ArmError, throttled
from sandbox.arm_faults import Faults, TokenBucket
from sandbox.arm_lifecycle import Lifecycle, Machines
from sandbox.arm_store import POOL_TAG, Estate
from sandbox.arm_surroundings import Surroundings

Handler = Callable[[web.Request], Awaitable[web.Response]]
Route = tuple[str, str, str, Handler]
"""Method, path, the operation's name for faults and counts, handler."""

KINDS = {"GET": "read", "PUT": "write", "DELETE": "delete"}
BUCKETS: Mapping[str, tuple[float, float]] = {"read": (250, 25), "write": (200, 10), "delete": (200, 10)}
"""Size and refill per second, as ARM documents them for a subscription and a principal."""


class ArmSandbox:
    """One subscription with one resource group, one network and one location.

    `machines` stays its caller's: `stop()` ends the server and what goes on in it, not the machines that run.
    """

    def __init__(
        self,
        *,
        subscription_id: str,
        resource_group: str,
        machines: Machines,
        location: str = "westus",
        virtual_network: str = "hw-vnet",
        subnet: str = "hw-subnet",
        network_security_group: str = "hw-nsg",
        quotas: Mapping[str, int] | None = None,
        buckets: Mapping[str, tuple[float, float]] = BUCKETS,
        page_size: int = 100,
        boot_delay: float = 0.0,
        delete_delay: float = 0.0,
        latency: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.subscription_id = subscription_id
        self.resource_group = resource_group
        self.location = location
        self.scope = f"/subscriptions/{subscription_id}/resourceGroups/{resource_group}"
        network = f"{self.scope}/providers/Microsoft.Network"
        self.network = Network(
            subnet_id=f"{network}/virtualNetworks/{virtual_network}/subnets/{subnet}",
            security_group_id=f"{network}/networkSecurityGroups/{network_security_group}",
        )
        self.quotas = dict(quotas or {})
        self.page_size = page_size
        self.latency = latency
        self.estate = Estate()
        self.surroundings = Surroundings()
        self.faults = Faults(Random(seed))
        self.calls: Counter[str] = Counter()
        self.actions: set[Asked] = set()
        self.lifecycle = Lifecycle(estate=self.estate, machines=machines, boot_delay=boot_delay, delete_delay=delete_delay)
        self._buckets = {kind: TokenBucket(size=size, refill=refill) for kind, (size, refill) in {**BUCKETS, **buckets}.items()}
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> str:
        """Serves on loopback, port 0: any free one. Returns the base URL."""
        app = web.Application(client_max_size=4 * 1024 * 1024)
        providers = (arm_compute.ComputeProvider(self), arm_network.NetworkProvider(self), arm_catalog.CatalogProvider(self))
        for method, path, operation, handler in (route for provider in providers for route in provider.routes()):
            app.router.add_route(method, path, partial(self._serve, operation, handler))
        add_admin_routes(app, self)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self.lifecycle.close()

    # ------------------------------------------------------------------------------------------ every request

    async def _serve(self, operation: str, handler: Handler, request: web.Request) -> web.Response:
        self.calls[operation] += 1
        self.actions.add(asked(request.method, request.path))
        identifier = str(uuid.uuid4())
        headers = {"x-ms-request-id": identifier, "x-ms-correlation-request-id": identifier}
        try:
            await asyncio.sleep(self.latency)
            self._check_address(request)
            headers |= self._take_token(KINDS[request.method])
            response = await self._with_faults(operation, handler, request)
            if operation == "vm.put":
                self.actions |= linked(read_body(await request.read()), self.scope)
        except ArmError as error:
            response = error.response()
        response.headers.update(headers)
        return response

    def _check_address(self, request: web.Request) -> None:
        given = request.match_info
        if given["subscription"].lower() != self.subscription_id.lower():
            raise ArmError(404, "SubscriptionNotFound", f"The subscription '{given['subscription']}' could not be found.")
        if given.get("group", self.resource_group).lower() != self.resource_group.lower():
            raise ArmError(404, "ResourceGroupNotFound", f"Resource group '{given['group']}' could not be found.")
        version = request.query.get("api-version")
        if not version:
            text = "The api-version query parameter (?api-version=) is required for all requests."
            raise ArmError(400, "MissingApiVersionParameter", text)
        known = _versions(request.path)
        if version not in known:
            text = f"The api-version '{version}' is invalid. The supported versions are '{','.join(known)}'."
            raise ArmError(400, "InvalidApiVersionParameter", text)

    def _take_token(self, kind: str) -> dict[str, str]:
        bucket = self._buckets[kind]
        left = bucket.take()
        if left is None:
            raise throttled(kind, self.subscription_id, bucket.wait())
        return {f"x-ms-ratelimit-remaining-subscription-{kind}s": str(left)}

    async def _with_faults(self, operation: str, handler: Handler, request: web.Request) -> web.Response:
        facts = await self.facts(request)
        if fault := self.faults.take("throttle", operation, facts):
            raise throttled(KINDS[request.method], self.subscription_id, fault.retry_after or 5)
        if fault := self.faults.take("error", operation, facts):
            error = refusal(fault.code, fault.status, fault.message, facts)
            error.headers |= {"Retry-After": str(fault.retry_after)} if fault.retry_after is not None else {}
            if fault.applied:
                await handler(request)
            raise error
        if fault := self.faults.take("hang", operation, facts):
            response = await handler(request) if fault.applied else None
            await asyncio.sleep(fault.seconds)
            if response is None:
                raise ArmError(504, "GatewayTimeout", "The gateway did not receive a response within the specified time period.")
            return response
        return await handler(request)

    async def facts(self, request: web.Request) -> dict[str, str]:
        """What faults may match on, of whatever the request is about."""
        name = request.match_info.get("name", "")
        common = {
            "name": name,
            "location": self.location,
            "scope": self.scope,
            "action": request.method,
            "subnet": "",
            "prefix": "",
        }
        if request.method == "PUT":
            return common | _facts_of_body(read_body(await request.read()))
        vm = self.estate.vms.get(name.lower())
        return common | (vm.facts if vm else {})


def _versions(path: str) -> tuple[str, ...]:
    """The API versions that this resource type has."""
    if "/Microsoft.Authorization/" in path:
        return arm_catalog.API_VERSIONS
    if "/Microsoft.Network/" in path:
        return arm_network.API_VERSIONS
    machines = any(part in path for part in ("/virtualMachines", "/operations/"))
    return arm_compute.API_VERSIONS if machines else arm_catalog.API_VERSIONS


def _facts_of_body(body: Mapping[str, Any]) -> dict[str, str]:
    """Read leniently: the checks come later."""
    properties = body.get("properties") or {}
    image = ((properties.get("storageProfile") or {}).get("imageReference")) or {}
    return {
        "size": str((properties.get("hardwareProfile") or {}).get("vmSize") or ""),
        "zone": str((body.get("zones") or [""])[0]),
        "pool": str((body.get("tags") or {}).get(POOL_TAG) or ""),
        "spot": "true" if properties.get("priority") == "Spot" else "false",
        "image": ":".join(str(part) for part in image.values()),
    }
