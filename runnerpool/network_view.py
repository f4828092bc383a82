"""The network around the runners as Azure holds it: subnet, security groups, routes. Reads, for `doctor`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from azure.mgmt.network.aio import NetworkManagementClient
from azure.mgmt.network.models import NetworkSecurityGroup, SecurityRule
from azure.mgmt.network.models import Subnet as AzureSubnet

from runnerpool.arm import arm_call, client_options, word
from runnerpool.config import AzureConfig
from runnerpool.errors import Gone, Misconfigured
from runnerpool.security_rules import Rule

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

FUNCTION_DELEGATIONS = ("Microsoft.App/environments", "Microsoft.Web/serverFarms")
"""To whom a function app's subnet is delegated: on Flex Consumption, and on the other plans."""


@dataclass(frozen=True, slots=True)
class Subnet:
    """`security_group`, `nat_gateway` and `route_table` are ids, "" for none. `default_outbound` None: Azure did not say, as
    for subnets from before there was a choice."""

    name: str
    prefixes: tuple[str, ...]
    security_group: str
    nat_gateway: str
    route_table: str
    default_outbound: bool | None
    delegations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VirtualNetwork:
    """`dns_servers` are the VNet's own; none where Azure's resolver serves it."""

    prefixes: tuple[str, ...]
    subnets: tuple[Subnet, ...]
    dns_servers: tuple[str, ...] = ()

    @property
    def function_subnets(self) -> list[Subnet]:
        return [subnet for subnet in self.subnets if set(subnet.delegations) & set(FUNCTION_DELEGATIONS)]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Of the subnet: how many it has for use, and how many are taken."""

    usable: int
    taken: int


class NetworkView:
    def __init__(self, *, subscription_id: str, azure: AzureConfig, endpoint: str, credential: AsyncTokenCredential | None) -> None:
        self._azure = azure
        self._client = NetworkManagementClient(subscription_id=subscription_id, **client_options(endpoint, credential))

    async def close(self) -> None:
        await self._client.close()

    async def subnet(self) -> Subnet:
        """The runners'. Raises Gone."""
        azure = self._azure
        async with _read(f"read subnet {azure.virtual_network}/{azure.subnet}"):
            return _subnet(await self._client.subnets.get(azure.resource_group, azure.virtual_network, azure.subnet))

    async def virtual_network(self) -> VirtualNetwork:
        azure = self._azure
        async with _read(f"read VNet {azure.virtual_network}"):
            found = await self._client.virtual_networks.get(azure.resource_group, azure.virtual_network)
        properties = found.properties
        space = properties.address_space if properties else None
        subnets = (properties.subnets if properties else None) or []
        options = properties.dhcp_options if properties else None
        return VirtualNetwork(
            prefixes=tuple((space.address_prefixes if space else None) or ()),
            subnets=tuple(map(_subnet, subnets)),
            dns_servers=tuple((options.dns_servers if options else None) or ()),
        )

    async def addresses(self) -> Addresses | None:
        """None where Azure does not count them."""
        azure = self._azure
        async with _read(f"count the addresses of {azure.virtual_network}"):
            listed = self._client.virtual_networks.list_usage(azure.resource_group, azure.virtual_network)
            async for usage in listed:
                mine = (usage.id or "").lower().endswith(f"/subnets/{azure.subnet}".lower())
                if mine and usage.limit is not None and usage.limit > 0 and usage.current_value is not None:
                    return Addresses(int(usage.limit), int(usage.current_value))
        return None

    async def rules(self, group_id: str = "") -> list[Rule]:
        """Of a security group, the configured one by default. Raises Gone."""
        group, name = self._azure.resource_group, self._azure.network_security_group
        if group_id:
            group, name = _named(group_id)
        async with _read(f"read security group {name}"):
            return _rules(await self._client.network_security_groups.get(group, name))

    async def next_hop(self, table_id: str) -> tuple[str, str]:
        """The kind and the address of the next hop for everything outside, as a route table has it; ("", "") for none."""
        group, name = _named(table_id)
        async with _read(f"read route table {name}"):
            table = await self._client.route_tables.get(group, name)
        for route in (table.properties.routes if table.properties else None) or []:
            properties = route.properties
            if properties is not None and properties.address_prefix == "0.0.0.0/0":
                return word(properties.next_hop_type), properties.next_hop_ip_address or ""
        return "", ""


@asynccontextmanager
async def _read(what: str) -> AsyncIterator[None]:
    """As `arm_call`; what is not there is Gone, also where its absence would be the fault of a VM's request."""
    try:
        async with arm_call(what, write=False):
            yield
    except Misconfigured as error:
        if error.area == "network":
            raise Gone(str(error)) from None
        raise


def _named(resource_id: str) -> tuple[str, str]:
    """Resource group and name of an id."""
    match = re.search(r"/resourceGroups/([^/]+)/.*/([^/]+)$", resource_id, re.IGNORECASE)
    if match is None:
        raise Misconfigured(f"{resource_id!r} is not the id of a resource", area="network")
    return match[1], match[2]


def _subnet(found: AzureSubnet) -> Subnet:
    properties = found.properties
    if properties is None:
        return Subnet(found.name or "", (), "", "", "", None, ())
    # Azure fills the list only where there are several.
    prefixes = properties.address_prefixes or ([properties.address_prefix] if properties.address_prefix else [])
    group, nat, table = properties.network_security_group, properties.nat_gateway, properties.route_table
    delegated = [each.properties.service_name for each in properties.delegations or [] if each.properties]
    return Subnet(
        name=found.name or "",
        prefixes=tuple(prefixes),
        security_group=(group.id if group else None) or "",
        nat_gateway=(nat.id if nat else None) or "",
        route_table=(table.id if table else None) or "",
        default_outbound=properties.default_outbound_access,
        delegations=tuple(filter(None, delegated)),
    )


def _rules(group: NetworkSecurityGroup) -> list[Rule]:
    properties = group.properties
    if properties is None:
        return []
    return [_rule(rule) for rule in [*(properties.security_rules or []), *(properties.default_security_rules or [])]]


def _rule(rule: SecurityRule) -> Rule:
    it = rule.properties
    assert it is not None  # Azure sends no rule without
    return Rule(
        name=rule.name or "",
        priority=it.priority,
        inbound=word(it.direction).lower() == "inbound",
        allow=word(it.access).lower() == "allow",
        protocol=word(it.protocol).lower(),
        sources=_either(it.source_address_prefixes, it.source_address_prefix),
        destinations=_either(it.destination_address_prefixes, it.destination_address_prefix),
        ports=_either(it.destination_port_ranges, it.destination_port_range),
    )


def _either(several: list[str] | None, one: str | None) -> tuple[str, ...]:
    """Nothing at all where the rule speaks of application security groups, in which our VMs are not."""
    return tuple(several or ([one] if one else []))
