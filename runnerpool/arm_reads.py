"""What is read from ARM without an SDK of its own: the resource group, and what the caller may do in a scope."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from azure.core import AsyncPipelineClient
from azure.core.exceptions import HttpResponseError
from azure.core.rest import AsyncHttpResponse, HttpRequest
from azure.mgmt.core.exceptions import ARMErrorFormat

from runnerpool.arm import arm_call, client_options
from runnerpool.config import AzureConfig

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

GROUPS_VERSION = "2021-04-01"
PERMISSIONS_VERSION = "2022-04-01"

GROUP_ACTIONS = (
    "Microsoft.Compute/virtualMachines/read",
    "Microsoft.Compute/virtualMachines/write",
    "Microsoft.Compute/virtualMachines/delete",
    "Microsoft.Network/networkInterfaces/read",
    "Microsoft.Network/networkInterfaces/write",
    "Microsoft.Network/networkInterfaces/delete",
    "Microsoft.Network/networkInterfaces/join/action",
)
"""What the app does in the runners' resource group: `compute.py` and `network.py`, and what Azure asks for in their wake (a
VM with an inline NIC writes the NIC and joins it)."""

DISK_ACTIONS = ("Microsoft.Compute/disks/write", "Microsoft.Compute/disks/delete")
"""Beside them, for pools whose OS disks are managed ones."""

SUBNET_ACTIONS = ("Microsoft.Network/virtualNetworks/subnets/read", "Microsoft.Network/virtualNetworks/subnets/join/action")
SECURITY_GROUP_ACTIONS = ("Microsoft.Network/networkSecurityGroups/join/action",)


@dataclass(frozen=True, slots=True)
class Grant:
    """One role's part in what the caller may do: patterns, of which `*` stands for anything."""

    actions: Sequence[str]
    excepted: Sequence[str]

    def allows(self, action: str) -> bool:
        return _any_fits(self.actions, action) and not _any_fits(self.excepted, action)


def lacking(grants: Iterable[Grant], actions: Iterable[str]) -> list[str]:
    """The actions that no role grants."""
    held = list(grants)
    return [action for action in actions if not any(grant.allows(action) for grant in held)]


def _any_fits(patterns: Iterable[str], action: str) -> bool:
    return any(re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), action, re.IGNORECASE) for pattern in patterns)


class ArmReads:
    """Raises what `arm_call` makes of ARM's answers."""

    def __init__(self, *, subscription_id: str, azure: AzureConfig, endpoint: str, credential: AsyncTokenCredential | None) -> None:
        self.group = f"/subscriptions/{subscription_id}/resourceGroups/{azure.resource_group}"
        network = f"{self.group}/providers/Microsoft.Network"
        self.subnet = f"{network}/virtualNetworks/{azure.virtual_network}/subnets/{azure.subnet}"
        self.security_group = f"{network}/networkSecurityGroups/{azure.network_security_group}"
        options = client_options(endpoint, credential)
        self._client: AsyncPipelineClient[HttpRequest, AsyncHttpResponse] = AsyncPipelineClient(
            base_url=options["base_url"],
            policies=options["policies"],
            connection_timeout=options["connection_timeout"],
            read_timeout=options["read_timeout"],
        )

    async def close(self) -> None:
        await self._client.close()

    async def group_location(self) -> str:
        """Where the resource group is. Raises Misconfigured for one that is not there."""
        answer = await self._get(self.group, GROUPS_VERSION, "read the resource group")
        return str(answer.get("location", ""))

    async def grants(self, scope: str) -> list[Grant]:
        """What the caller may do in `scope` (`group`, `subnet` or `security_group`), role by role."""
        path = f"{scope}/providers/Microsoft.Authorization/permissions"
        answer = await self._get(path, PERMISSIONS_VERSION, "read our own permissions")
        return [Grant(list(role.get("actions") or ()), list(role.get("notActions") or ())) for role in answer.get("value", [])]

    async def _get(self, path: str, version: str, what: str) -> Mapping[str, Any]:
        async with arm_call(what, write=False):
            request = HttpRequest("GET", path, params={"api-version": version})
            request.url = self._client.format_url(request.url)
            response = await self._client.send_request(request)
            await response.read()
            if response.status_code != 200:
                raise HttpResponseError(response=response, error_format=ARMErrorFormat)
            body: Mapping[str, Any] = response.json()
            return body
