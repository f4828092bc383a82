"""NICs and the runners' subnet. NICs come and go with their VMs; here are the reads, and the removal of one that stayed behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from azure.mgmt.network.aio import NetworkManagementClient
from azure.mgmt.network.models import NetworkInterface

from runnerpool.arm import arm_call, client_options
from runnerpool.config import AzureConfig
from runnerpool.errors import Gone, Misconfigured
from runnerpool.ports import Nic

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential


class AzureNetwork:
    """`ports.Network` on azure-mgmt-network."""

    def __init__(
        self,
        *,
        subscription_id: str,
        azure: AzureConfig,
        endpoint: str,
        credential: AsyncTokenCredential | None,
    ) -> None:
        self._azure = azure
        options = client_options(endpoint, credential)
        self._client = NetworkManagementClient(subscription_id=subscription_id, **options)

    async def close(self) -> None:
        """Closes the connections; the credential is its owner's."""
        await self._client.close()

    async def list_nics(self) -> list[Nic]:
        """See `ports.Network`."""
        async with arm_call("list NICs", write=False):
            return [_nic(nic) async for nic in self._client.network_interfaces.list(self._azure.resource_group)]

    async def delete_nic(self, name: str) -> None:
        """See `ports.Network`."""
        try:
            async with arm_call(f"delete NIC {name}", write=True):
                await self._client.network_interfaces.begin_delete(self._azure.resource_group, name, polling=False)
        except Gone:
            return

    async def subnet_prefixes(self) -> list[str]:
        """See `ports.Network`. Raises Misconfigured(area="network") where the subnet does not exist."""
        azure = self._azure
        try:
            async with arm_call(f"read subnet {azure.virtual_network}/{azure.subnet}", write=False):
                subnet = await self._client.subnets.get(azure.resource_group, azure.virtual_network, azure.subnet)
        except Gone as error:
            raise Misconfigured(str(error), area="network") from None
        properties = subnet.properties
        if properties is None:
            return []
        # Azure fills the list only where there are several.
        return list(properties.address_prefixes or ([properties.address_prefix] if properties.address_prefix else []))


def _nic(nic: NetworkInterface) -> Nic:
    properties = nic.properties
    vm = properties.virtual_machine if properties else None
    configurations = (properties.ip_configurations if properties else None) or []
    own = [c.properties for c in configurations if c.properties and c.properties.private_ip_address_version != "IPv6"]
    primary = sorted(own, key=lambda properties: not properties.primary)
    return Nic(
        name=nic.name or "",
        vm=vm.id.rsplit("/", 1)[-1] if vm and vm.id else None,
        address=primary[0].private_ip_address if primary else None,
        tags=dict(nic.tags or {}),
    )
