"""The JSON of the network: VNet, subnets, security group, route table."""

from __future__ import annotations

from typing import Any

from sandbox.arm_checks import Network
from sandbox.arm_store import SUBNET
from sandbox.arm_surroundings import FUNCTION_PREFIX, Surroundings

KEPT_BY_AZURE = 5
ROUTES = "runners-routes"


def _sibling(network: Network, kind: str, name: str) -> str:
    """The id of another resource of the network's group."""
    return f"{network.subnet_id.partition('/virtualNetworks/')[0]}/{kind}/{name}"


def subnet_json(network: Network, around: Surroundings) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "addressPrefix": str(SUBNET),
        "networkSecurityGroup": {"id": network.security_group_id},
        "delegations": [],
        "privateEndpointNetworkPolicies": "Disabled",
        "privateLinkServiceNetworkPolicies": "Enabled",
        "defaultOutboundAccess": around.default_outbound,
        "provisioningState": "Succeeded",
    }
    if around.nat_gateway:
        properties["natGateway"] = {"id": _sibling(network, "natGateways", "runners-nat")}
    if around.next_hop:
        properties["routeTable"] = {"id": _sibling(network, "routeTables", ROUTES)}
    return {"name": network.subnet_id.rsplit("/", 1)[-1], "id": network.subnet_id, "properties": properties}


def _function_subnet(network: Network) -> dict[str, Any]:
    delegation = {"name": "functions", "properties": {"serviceName": "Microsoft.App/environments", "actions": []}}
    properties = {"addressPrefix": FUNCTION_PREFIX, "delegations": [delegation], "provisioningState": "Succeeded"}
    name = "functions"
    return {"name": name, "id": f"{network.subnet_id.rsplit('/', 1)[0]}/{name}", "properties": properties}


def vnet_json(network: Network, location: str, around: Surroundings) -> dict[str, Any]:
    vnet_id = network.subnet_id.partition("/subnets/")[0]
    subnets = [subnet_json(network, around), *([_function_subnet(network)] if around.function_subnet else [])]
    properties = {
        "addressSpace": {"addressPrefixes": [str(SUBNET), "10.10.0.0/16"]},
        "subnets": subnets,
        "dhcpOptions": {"dnsServers": list(around.dns_servers)},
        "provisioningState": "Succeeded",
    }
    kind = "Microsoft.Network/virtualNetworks"
    return {"name": vnet_id.rsplit("/", 1)[-1], "id": vnet_id, "type": kind, "location": location, "properties": properties}


def subnet_usage_json(subnet_id: str, used: int) -> dict[str, Any]:
    return {
        "currentValue": float(used),
        "id": subnet_id,
        "limit": float(SUBNET.num_addresses - KEPT_BY_AZURE),
        "name": {"localizedValue": "Subnet size and usage", "value": "SubnetSpace"},
        "unit": "Count",
    }


def route_table_json(network: Network, location: str, next_hop: str) -> dict[str, Any]:
    own = _sibling(network, "routeTables", ROUTES)
    hop: dict[str, Any] = {"addressPrefix": "0.0.0.0/0", "nextHopType": next_hop, "provisioningState": "Succeeded"}
    if next_hop == "VirtualAppliance":
        hop["nextHopIpAddress"] = "10.10.2.4"
    properties = {"routes": [{"name": "everything", "id": f"{own}/routes/everything", "properties": hop}]}
    return {"name": ROUTES, "id": own, "type": "Microsoft.Network/routeTables", "location": location, "properties": properties}


def security_group_json(group_id: str, location: str, around: Surroundings) -> dict[str, Any]:
    rules = []
    if around.agent_port_open:
        rules.append(_rule(group_id, "agent", 100, "Inbound", "Allow", source=FUNCTION_PREFIX, port="8437", protocol="Tcp"))
    if around.runners_apart:
        rules.append(_rule(group_id, "nothing-else", 4000, "Inbound", "Deny", source="*"))
    if not around.web_open:
        rules.append(_rule(group_id, "no-web", 200, "Outbound", "Deny", destination="Internet", port="443"))
    if not around.names_open:
        rules.append(_rule(group_id, "no-names", 210, "Outbound", "Deny", port="53"))
    properties = {"securityRules": rules, "defaultSecurityRules": _default_rules(group_id), "provisioningState": "Succeeded"}
    kind = "Microsoft.Network/networkSecurityGroups"
    name = group_id.rsplit("/", 1)[-1]
    return {"name": name, "id": group_id, "type": kind, "location": location, "properties": properties}


def _default_rules(group_id: str) -> list[dict[str, Any]]:
    """The six that every security group has."""
    vnet = "VirtualNetwork"
    return [
        _rule(group_id, "AllowVnetInBound", 65000, "Inbound", "Allow", source=vnet, destination=vnet),
        _rule(group_id, "AllowAzureLoadBalancerInBound", 65001, "Inbound", "Allow", source="AzureLoadBalancer"),
        _rule(group_id, "DenyAllInBound", 65500, "Inbound", "Deny"),
        _rule(group_id, "AllowVnetOutBound", 65000, "Outbound", "Allow", source=vnet, destination=vnet),
        _rule(group_id, "AllowInternetOutBound", 65001, "Outbound", "Allow", destination="Internet"),
        _rule(group_id, "DenyAllOutBound", 65500, "Outbound", "Deny"),
    ]


def _rule(
    group_id: str,
    name: str,
    priority: int,
    direction: str,
    access: str,
    *,
    source: str = "*",
    destination: str = "*",
    port: str = "*",
    protocol: str = "*",
) -> dict[str, Any]:
    properties = {
        "provisioningState": "Succeeded",
        "protocol": protocol,
        "sourcePortRange": "*",
        "destinationPortRange": port,
        "sourceAddressPrefix": source,
        "destinationAddressPrefix": destination,
        "access": access,
        "priority": priority,
        "direction": direction,
        "sourceAddressPrefixes": [],
        "destinationAddressPrefixes": [],
        "sourcePortRanges": [],
        "destinationPortRanges": [],
    }
    kind = "defaultSecurityRules" if priority >= 65000 else "securityRules"
    return {"name": name, "id": f"{group_id}/{kind}/{name}", "properties": properties}
