"""The adapters on a running ARM sandbox, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import aiohttp

from runnerpool.compute import AzureCompute, throwaway_login, vm_body
from runnerpool.config import AzureConfig
from runnerpool.network import AzureNetwork
from runnerpool.ports import VmSpec
from sandbox.arm import ArmSandbox

SUBSCRIPTION = "00000000-1111-2222-3333-444444444444"
SCOPE = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/hw-rg"
VMS = f"{SCOPE}/providers/Microsoft.Compute/virtualMachines"
NETWORK = f"{SCOPE}/providers/Microsoft.Network"
COMPUTE_VERSION = "api-version=2026-04-01"
NETWORK_VERSION = "api-version=2026-03-01"
AZURE = AzureConfig(name_prefix="hw", location="westus", tags={"team": "ci"})

SPEC = VmSpec(
    name="hw-linux-x64-aaaa",
    size="Standard_D4ads_v5",
    zone="2",
    spot=False,
    image="Canonical:ubuntu-24_04-lts:server:latest",
    ephemeral_disk=True,
    disk_gb=64,
    admin_username="runneradmin",
    ssh_public_key="",
    os="linux",
    custom_data="#cloud-config\nwrite_files: [{path: /run/jit, content: s3cr3t-jit-config}]\n",
    tags={"runnerpool": "hw", "runnerpool-pool": "linux-x64", "runnerpool-runner-id": "17"},
)


def named(suffix: str, **changes: Any) -> VmSpec:
    return replace(SPEC, name=f"hw-linux-x64-{suffix}", **changes)


WINDOWS = named("bbbb", os="windows", image="/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/galleries/g/images/w")


def body_of(spec: VmSpec = SPEC) -> dict[str, Any]:
    """What AzureCompute sends for it."""
    return vm_body(spec, azure=AZURE, scope=SCOPE, login=throwaway_login(spec))


class RecordingMachines:
    """Boots nothing; remembers what was to be booted and what was stopped."""

    def __init__(self) -> None:
        self.running: dict[str, tuple[str, str]] = {}
        self.setup_errors: dict[str, str] = {}
        self.warned: dict[str, datetime] = {}
        self.stopped: list[str] = []
        self.refuse: Exception | None = None
        self._changed = asyncio.Condition()

    async def boot(self, name: str, address: str, user_data: str, *, setup_error: str = "") -> None:
        if self.refuse is not None:
            raise self.refuse
        self.setup_errors[name] = setup_error
        async with self._changed:
            self.running[name] = (address, user_data)
            self._changed.notify_all()

    def warn(self, name: str, at: datetime) -> None:
        self.warned[name] = at

    async def booted(self, name: str) -> None:
        """Returns once that machine runs."""
        async with self._changed:
            await self._changed.wait_for(lambda: name in self.running)

    async def stop(self, name: str) -> None:
        self.running.pop(name, None)
        self.stopped.append(name)


@dataclass
class Azure:
    """A sandbox with everything that talks to it."""

    url: str
    arm: ArmSandbox
    machines: RecordingMachines
    compute: AzureCompute
    network: AzureNetwork
    http: aiohttp.ClientSession

    async def fault(self, kind: str, **fault: Any) -> None:
        async with self.http.post(f"{self.url}/_admin/faults", json={"kind": kind, **fault}) as response:
            assert response.status == 200, await response.text()

    async def state(self) -> dict[str, Any]:
        async with self.http.get(f"{self.url}/_admin/state") as response:
            return dict(await response.json())

    async def settle(self) -> None:
        await self.arm.lifecycle.settle()


@asynccontextmanager
async def running_azure(**options: Any) -> AsyncIterator[Azure]:
    """`options` go to the sandbox's constructor."""
    machines = RecordingMachines()
    arm = ArmSandbox(subscription_id=SUBSCRIPTION, resource_group=AZURE.resource_group, machines=machines, **options)
    url = await arm.start()
    compute = AzureCompute(subscription_id=SUBSCRIPTION, azure=AZURE, endpoint=url, credential=None)
    network = AzureNetwork(subscription_id=SUBSCRIPTION, azure=AZURE, endpoint=url, credential=None)
    try:
        async with aiohttp.ClientSession() as http:
            yield Azure(url, arm, machines, compute, network, http)
    finally:
        await compute.close()
        await network.close()
        await arm.stop()


# ---------------------------------------------------------------------------------------------- plain requests


class Reply:
    def __init__(self, response: aiohttp.ClientResponse, body: Any) -> None:
        self.status, self.headers, self.body = response.status, response.headers, body

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])


async def call(azure: Azure, method: str, path: str, **options: Any) -> Reply:
    url = path if path.startswith("http") else azure.url + path
    async with azure.http.request(method, url, **options) as response:
        return Reply(response, await response.json() if response.content_type == "application/json" else None)


async def put(azure: Azure, spec: VmSpec = SPEC, *, body: dict[str, Any] | None = None, new: bool = True) -> Reply:
    """`new`: only where no VM of this name exists."""
    path = f"{VMS}/{spec.name}?{COMPUTE_VERSION}"
    return await call(azure, "PUT", path, json=body or body_of(spec), headers={"If-None-Match": "*"} if new else {})
