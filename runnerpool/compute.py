"""Azure VMs. One PUT makes a VM with its NIC and disk, one DELETE takes all three away; nothing here waits for either."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.mgmt.compute.aio import ComputeManagementClient
from azure.mgmt.compute.models import InstanceViewStatus, VirtualMachine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runnerpool.arm import arm_call, client_options
from runnerpool.config import AzureConfig
from runnerpool.errors import Gone, Misconfigured
from runnerpool.ports import Vm, VmSpec, VmState

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

NETWORK_API_VERSION = "2022-11-01"
"""The newest that Compute offers for NICs made with the VM; the older one cannot put tags on them."""


class AzureCompute:
    """`ports.Compute` on azure-mgmt-compute.

    aiohttp repeats an idempotent request once when a kept-alive connection turns out to be closed, so a PUT may reach Azure
    twice; `If-None-Match: *` makes the second one a Conflict, which callers have to expect anyway.
    """

    def __init__(
        self,
        *,
        subscription_id: str,
        azure: AzureConfig,
        endpoint: str,
        credential: AsyncTokenCredential | None,
    ) -> None:
        self._azure = azure
        self._scope = f"/subscriptions/{subscription_id}/resourceGroups/{azure.resource_group}"
        options = client_options(endpoint, credential)
        self._client = ComputeManagementClient(subscription_id=subscription_id, **options)

    async def close(self) -> None:
        """Closes the connections; the credential is its owner's."""
        await self._client.close()

    async def create_vm(self, spec: VmSpec) -> None:
        """See `ports.Compute`."""
        login = throwaway_login(spec)
        body = vm_body(spec, azure=self._azure, scope=self._scope, login=login)
        hidden = (spec.custom_data, body["properties"]["osProfile"]["customData"], login.get("adminPassword", ""))
        try:
            async with arm_call(f"create VM {spec.name}", write=True, secrets=hidden):
                await self._client.virtual_machines.begin_create_or_update(
                    self._azure.resource_group,
                    spec.name,
                    VirtualMachine(body),
                    match_condition=MatchConditions.IfMissing,
                    polling=False,
                )
        except Gone as error:  # something that the VM refers to is not there
            raise Misconfigured(str(error), area="provisioning") from None

    async def get_vm(self, name: str) -> Vm | None:
        """See `ports.Compute`. Only ARM's own "no such VM" is None: a missing group or subscription is an error."""
        try:
            async with arm_call(f"read VM {name}", write=False):
                return _vm(await self._client.virtual_machines.get(self._azure.resource_group, name, expand="instanceView"))
        except Gone:
            return None

    async def list_vms(self) -> list[Vm]:
        """See `ports.Compute`. Answered by Azure Resource Graph, which alone lists power states; seconds stale."""
        group = self._azure.resource_group
        async with arm_call("list VMs", write=False):
            try:
                pages = self._client.virtual_machines.list(group, expand="instanceView", params={"useResourceGraph": "true"})
                return [_vm(vm) async for vm in pages]
            except HttpResponseError as error:
                # Resource Graph's word for "I hold something here that I cannot show"; Compute itself can, without power states.
                if error.status_code != HTTPStatus.UNPROCESSABLE_ENTITY:
                    raise
                return [_vm(vm) async for vm in self._client.virtual_machines.list(group)]

    async def delete_vm(self, name: str) -> None:
        """See `ports.Compute`."""
        try:
            async with arm_call(f"delete VM {name}", write=True):
                await self._client.virtual_machines.begin_delete(
                    self._azure.resource_group, name, force_deletion=True, polling=False
                )
        except Gone:
            return


# ---------------------------------------------------------------------------------------------- the body of a PUT


def vm_body(spec: VmSpec, *, azure: AzureConfig, scope: str, login: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a VM without an identity and without a public address. `scope` is the resource group's id.

    Raises Misconfigured(area="provisioning") for an image that cannot be read.
    """
    tags = {**azure.tags, **spec.tags}
    properties: dict[str, Any] = {
        "hardwareProfile": {"vmSize": spec.size},
        "storageProfile": {"imageReference": image_reference(spec.image), "osDisk": _os_disk(spec)},
        "osProfile": {
            "computerName": computer_name(spec),
            "adminUsername": spec.admin_username,
            "customData": base64.b64encode(spec.custom_data.encode()).decode(),
            **login,
        },
        "networkProfile": {
            "networkApiVersion": NETWORK_API_VERSION,
            "networkInterfaceConfigurations": [_nic(spec.name, azure=azure, scope=scope, tags=tags)],
        },
        "priority": "Spot" if spec.spot else "Regular",
    }
    if spec.spot:
        # -1: never evicted for its price, which is at most the regular one.
        properties |= {"evictionPolicy": "Delete", "billingProfile": {"maxPrice": -1}}
    body: dict[str, Any] = {"location": azure.location, "tags": tags, "properties": properties}
    return body | ({"zones": [spec.zone]} if spec.zone else {})


def image_reference(image: str) -> dict[str, str]:
    """`publisher:offer:sku:version`, or the id of an image in a gallery: one's own, shared with the tenant, or a community's."""
    if image.startswith("/"):
        kind = image.split("/")[1].lower()
        keys = {"sharedgalleries": "sharedGalleryImageId", "communitygalleries": "communityGalleryImageId"}
        return {keys.get(kind, "id"): image}
    parts = image.split(":")
    if len(parts) != 4 or not all(parts):
        raise Misconfigured(f"image {image!r} is neither publisher:offer:sku:version nor a gallery image id", area="provisioning")
    return dict(zip(("publisher", "offer", "sku", "version"), parts, strict=True))


def computer_name(spec: VmSpec) -> str:
    """The host's name: the VM's, on Windows its suffix, because Windows allows 15 characters."""
    return spec.name.rsplit("-", 1)[-1][:15] if spec.os == "windows" else spec.name


def throwaway_login(spec: VmSpec) -> dict[str, Any]:
    """The part of osProfile about logging in.

    Azure refuses a Linux VM with neither password nor key and a Windows VM without a password. Where no login is wanted it gets
    one that nobody knows: the private half of the key, or the password, is dropped here.
    """
    if spec.os == "windows":
        # token_urlsafe may lack a kind of character; Azure wants three of four kinds.
        return {
            "adminPassword": secrets.token_urlsafe(32) + "aA1!",
            "windowsConfiguration": {"provisionVMAgent": True, "enableAutomaticUpdates": False},
        }
    key = spec.ssh_public_key
    if not key:
        key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    path = f"/home/{spec.admin_username}/.ssh/authorized_keys"
    return {
        "linuxConfiguration": {
            "disablePasswordAuthentication": True,
            "provisionVMAgent": True,
            "ssh": {"publicKeys": [{"path": path, "keyData": key}]},
        }
    }


def _os_disk(spec: VmSpec) -> dict[str, Any]:
    disk: dict[str, Any] = {
        "name": f"{spec.name}-os",
        "createOption": "FromImage",
        "deleteOption": "Delete",
        "diskSizeGB": spec.disk_gb,
    }
    if spec.ephemeral_disk:
        # No placement: Azure takes the cache disk where the size has one, else the temporary or NVMe disk. Any fixed choice
        # is wrong for some size.
        return disk | {"caching": "ReadOnly", "diffDiskSettings": {"option": "Local"}}
    # Every size takes a standard SSD; premium ones only those with an "s" in their name.
    return disk | {"caching": "ReadWrite", "managedDisk": {"storageAccountType": "StandardSSD_LRS"}}


def _nic(name: str, *, azure: AzureConfig, scope: str, tags: Mapping[str, str]) -> dict[str, Any]:
    network = f"{scope}/providers/Microsoft.Network"
    subnet = f"{network}/virtualNetworks/{azure.virtual_network}/subnets/{azure.subnet}"
    address = {"subnet": {"id": subnet}, "primary": True, "privateIPAddressVersion": "IPv4"}
    properties = {
        "primary": True,
        "deleteOption": "Delete",
        "networkSecurityGroup": {"id": f"{network}/networkSecurityGroups/{azure.network_security_group}"},
        "ipConfigurations": [{"name": "primary", "properties": address}],
    }
    return {"name": f"{name}-nic", "tags": dict(tags), "properties": properties}


# ---------------------------------------------------------------------------------------------- what Azure answers


_STATES = {"creating": VmState.CREATING, "failed": VmState.FAILED, "canceled": VmState.FAILED, "deleting": VmState.DELETING}
"""Any other provisioning state (Succeeded, Updating, Migrating) is that of a VM which has once been made."""


def _vm(vm: VirtualMachine) -> Vm:
    properties = vm.properties
    view = properties.instance_view if properties else None
    statuses = (view.statuses if view else None) or []
    error_code, error = _failure(statuses)
    hardware = properties.hardware_profile if properties else None
    return Vm(
        name=vm.name or "",
        state=_STATES.get(((properties.provisioning_state if properties else None) or "").lower(), VmState.SUCCEEDED),
        tags=dict(vm.tags or {}),
        created_at=properties.time_created if properties else None,
        size=str((hardware.vm_size if hardware else None) or ""),
        zone=vm.zones[0] if vm.zones else None,
        power=_power(statuses),
        error_code=error_code,
        error=error,
    )


def _power(statuses: list[InstanceViewStatus]) -> str | None:
    codes = ((status.code or "").partition("/") for status in statuses)
    return next((state for kind, _, state in codes if kind.lower() == "powerstate"), None)


def _failure(statuses: list[InstanceViewStatus]) -> tuple[str, str]:
    """`ProvisioningState/failed/<code>` with its message, or two empty strings."""
    for status in statuses:
        kind, _, rest = (status.code or "").partition("/")
        state, _, code = rest.partition("/")
        if kind.lower() == "provisioningstate" and state.lower() == "failed":
            return code or "ProvisioningFailed", " ".join((status.message or "").split())
    return "", ""
