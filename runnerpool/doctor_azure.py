"""`doctor` on Azure: the credential, the resource group, and what the credential may do there."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runnerpool.arm import arm_call, azure_credential, is_loopback
from runnerpool.arm_reads import DISK_ACTIONS, GROUP_ACTIONS, SECURITY_GROUP_ACTIONS, SUBNET_ACTIONS, ArmReads, lacking
from runnerpool.compute import AzureCompute
from runnerpool.compute_catalog import ComputeCatalog
from runnerpool.config import Config
from runnerpool.errors import Gone, Misconfigured
from runnerpool.findings import Check, Finding, fail, ok, warn
from runnerpool.network import AzureNetwork
from runnerpool.network_view import NetworkView
from runnerpool.settings import Settings

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

CREDENTIAL_PAGE = "az login, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET: docs/deploy.md#identity"


@dataclass(frozen=True, slots=True)
class Azure:
    """The adapters that the checks read through."""

    settings: Settings
    config: Config
    credential: AsyncTokenCredential | None
    reads: ArmReads
    catalog: ComputeCatalog
    view: NetworkView
    compute: AzureCompute
    network: AzureNetwork

    @classmethod
    def open(cls, settings: Settings, config: Config, closing: AsyncExitStack) -> Azure:
        """Connects nothing yet. Raises Misconfigured for an endpoint that cannot be used."""
        credential = azure_credential(settings.arm_endpoint)
        if credential is not None:
            closing.push_async_callback(credential.close)
        how: dict[str, Any] = {
            "subscription_id": settings.azure_subscription_id,
            "azure": config.azure,
            "endpoint": settings.arm_endpoint,
            "credential": credential,
        }
        parts = ArmReads(**how), ComputeCatalog(**how), NetworkView(**how), AzureCompute(**how), AzureNetwork(**how)
        for part in parts:
            closing.push_async_callback(part.close)
        return cls(settings, config, credential, *parts)


def checks(azure: Azure) -> list[Check]:
    group, location = azure.config.azure.resource_group, azure.config.azure.location
    return [
        Check("Azure credential", lambda: credential(azure), CREDENTIAL_PAGE),
        Check("resource group", lambda: resource_group(azure), f"az group create --name {group} --location {location}"),
        Check("Azure permissions", lambda: permissions(azure), f"give the identity its role: {_role(azure)}"),
    ]


def _role(azure: Azure) -> str:
    """Both roles are made by infra/modules/access.bicep, under names that end in the group's own mark."""
    assign = f"az role assignment create --assignee PRINCIPAL --scope {azure.reads.group} --role"
    return f"{assign} 'runnerpool machines (…)', and with 'runnerpool network (…)': docs/deploy.md#identity"


async def credential(azure: Azure) -> Sequence[Finding]:
    what = "Azure credential"
    endpoint = azure.settings.arm_endpoint
    if azure.credential is None or is_loopback(endpoint):
        return [ok(what, f"none is asked for at {endpoint}")]
    async with arm_call("get a token", write=False):
        token = await azure.credential.get_token(f"{endpoint.rstrip('/')}/.default")
    return [ok(what, f"Entra gave a token to {whose(token.token)}")]


def whose(token: str) -> str:
    """The principal that an access token speaks for, as far as the token can be read."""
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, IndexError):
        return "a principal that it does not name"
    names = (claims.get(key) for key in ("upn", "unique_name", "app_displayname", "appid", "oid"))
    return str(next(filter(None, names), "a principal that it does not name"))


async def resource_group(azure: Azure) -> Sequence[Finding]:
    what, name = "resource group", azure.config.azure.resource_group
    mend = f"az group create --name {name} --location {azure.config.azure.location}"
    try:
        location = await azure.reads.group_location()
    except Gone:
        return [fail(what, f"there is no {name} in this subscription", mend)]
    except Misconfigured as error:
        denied = error.area == "auth"
        return [fail(what, str(error), f"give the identity its role: {_role(azure)}" if denied else mend)]
    return [ok(what, f"{name} in {location}")]


async def permissions(azure: Azure) -> Sequence[Finding]:
    """Reads are tried; what only a write could show is read from the roles that the credential holds."""
    what = "Azure permissions"
    await azure.compute.list_vms()
    await azure.network.list_nics()
    disks = any(not pool.vm.os_disk.ephemeral for pool in azure.config.pools)
    wanted = {
        azure.reads.group: (*GROUP_ACTIONS, *(DISK_ACTIONS if disks else ())),
        azure.reads.subnet: SUBNET_ACTIONS,
        azure.reads.security_group: SECURITY_GROUP_ACTIONS,
    }
    missing: list[str] = []
    for scope, actions in wanted.items():
        try:
            missing += lacking(await azure.reads.grants(scope), actions)
        except Misconfigured as error:
            if error.area != "auth":
                raise
            told = "may list VMs and NICs; what else it may do cannot be seen without Microsoft.Authorization/permissions/read"
            return [warn(what, told, f"allow that action, or run doctor as an owner: {_role(azure)}")]
    if missing:
        return [fail(what, f"this credential lacks {', '.join(missing)}", f"give it to the identity: {_role(azure)}")]
    return [ok(what, "this credential may read, make and delete VMs with their NICs, and join the subnet and its security group")]
