"""`doctor` on the network: the subnet and its free addresses, the agent's port, the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, ip_network

from runnerpool.check import KEPT_BY_AZURE
from runnerpool.doctor_azure import Azure
from runnerpool.errors import Gone
from runnerpool.findings import Check, Finding, fail, ok, warn
from runnerpool.network_view import Subnet, VirtualNetwork
from runnerpool.security_rules import INTERNET, Rule, deciding
from runnerpool.sweep import TAG
from runnerpool.vm import AGENT_PORT

NETWORK_PAGE = "docs/deploy.md#network"

AZURE_RESOLVER = "168.63.129.16"
"""Azure's own, to which no security rule applies."""

FIRST_DEFAULT = 65_000
"""The rules that every security group has begin with this priority."""


def checks(azure: Azure) -> list[Check]:
    return [
        Check("subnet", lambda: subnet(azure), NETWORK_PAGE),
        Check("agent's port", lambda: agent_port(azure), NETWORK_PAGE),
        Check("outbound route", lambda: outbound(azure), NETWORK_PAGE),
        Check("name servers", lambda: name_servers(azure), NETWORK_PAGE),
    ]


def _where(azure: Azure) -> str:
    it = azure.config.azure
    return f"--resource-group {it.resource_group} --vnet-name {it.virtual_network}"


def networks(prefixes: Sequence[str]) -> list[IPv4Network]:
    read = (ip_network(prefix, strict=False) for prefix in prefixes)
    return [network for network in read if isinstance(network, IPv4Network)]


# ---------------------------------------------------------------------------------------------- addresses


async def subnet(azure: Azure) -> Sequence[Finding]:
    what, it = "subnet", azure.config.azure
    try:
        found = await azure.view.subnet()
    except Gone:
        mend = f"az network vnet subnet create {_where(azure)} --name {it.subnet} --address-prefixes 10.0.0.0/22"
        return [fail(what, f"there is no {it.virtual_network}/{it.subnet} in {it.resource_group}", f"{mend} ({NETWORK_PAGE})")]
    if found.delegations:
        told = f"{it.subnet} is delegated to {', '.join(found.delegations)}, so no VM can be in it"
        return [fail(what, told, f"take a subnet of the runners' own: {NETWORK_PAGE}")]
    counted = await azure.view.addresses()
    ours = [nic for nic in await azure.network.list_nics() if nic.tags.get(TAG) == it.name_prefix and nic.vm]
    usable = counted.usable if counted else sum(net.num_addresses - KEPT_BY_AZURE for net in networks(found.prefixes))
    room = usable - max((counted.taken if counted else 0) - len(ours), 0)
    wanted = sum(pool.maximum_pool_size for pool in azure.config.pools)
    told = f"{it.virtual_network}/{it.subnet} ({', '.join(found.prefixes)}) has room for {max(room, 0):,} VMs"
    if room < wanted:
        fitting = 32 - (wanted + KEPT_BY_AZURE - 1).bit_length()
        mend = f"az network vnet subnet update {_where(azure)} --name {it.subnet} --address-prefixes A_/{fitting}_OR_LARGER"
        return [fail(what, f"{told}, the pools may hold {wanted:,}", f"{mend}, or lower maximum_pool_size")]
    return [ok(what, f"{told}, the pools may hold {wanted:,}")]


# ---------------------------------------------------------------------------------------------- the agent's port


@dataclass(frozen=True, slots=True)
class Guard:
    """The security groups that stand before a runner: its NIC's own and its subnet's. All of them have to let a connection in."""

    groups: dict[str, list[Rule]]
    space: list[IPv4Network]

    def refusing(
        self, *, inbound: bool, source: IPv4Network | None, destination: IPv4Network | None, port: int, protocol: str = "tcp"
    ) -> tuple[str, str] | None:
        """The first group that does not let it through, with its rule; None where all do."""
        for name, rules in self.groups.items():
            rule = deciding(
                rules,
                inbound=inbound,
                source=source,
                destination=destination,
                port=port,
                network=self.space,
                protocol=protocol,
            )
            if rule is None or not rule.allow:
                return name, rule.name if rule else "no rule"
        return None


async def guard(azure: Azure, runners: Subnet, space: Sequence[str]) -> Guard:
    """Raises Gone where the configured security group is missing."""
    it = azure.config.azure
    groups = {it.network_security_group: await azure.view.rules()}
    if runners.security_group and runners.security_group.lower() != azure.reads.security_group.lower():
        groups[runners.security_group.rsplit("/", 1)[-1]] = await azure.view.rules(runners.security_group)
    return Guard(groups, networks(space))


async def agent_port(azure: Azure) -> Sequence[Finding]:
    what, it = "agent's port", azure.config.azure
    network, runners = await azure.view.virtual_network(), await azure.view.subnet()
    try:
        stands = await guard(azure, runners, network.prefixes)
    except Gone:
        create = f"az network nsg create --resource-group {it.resource_group} --name {it.network_security_group}"
        told = f"there is no security group {it.network_security_group} in {it.resource_group}"
        return [fail(what, told, f"{create} --location {it.location} ({NETWORK_PAGE})")]
    return judge_port(azure, stands, network, runners)


def judge_port(azure: Azure, stands: Guard, network: VirtualNetwork, runners: Subnet) -> list[Finding]:
    """From the function app's subnet the port has to be open, from everywhere else closed."""
    what, it = "agent's port", azure.config.azure
    here = networks(runners.prefixes)[0]
    found: list[Finding] = []
    for subnet in network.function_subnets:
        for source in networks(subnet.prefixes):
            refused = stands.refusing(inbound=True, source=source, destination=here, port=AGENT_PORT)
            if refused is None:
                found.append(ok(what, f"{AGENT_PORT} is open to {subnet.name} ({source})"))
                continue
            told = f"{refused[0]} ({refused[1]}) keeps {subnet.name} ({source}) from {AGENT_PORT}: no agent can be polled"
            rule = f"--name agent --priority 100 --protocol Tcp --source-address-prefixes {source}"
            found.append(fail(what, told, _new_rule(azure, refused[0], f"{rule} --destination-port-ranges {AGENT_PORT}")))
    if not found:
        told = f"{it.virtual_network} has no subnet delegated to a function app, so who may reach {AGENT_PORT} is unknown"
        found.append(warn(what, told, f"integrate the app with a subnet of this VNet, or let its own in: {NETWORK_PAGE}"))
    if stands.refusing(inbound=True, source=here, destination=here, port=AGENT_PORT) is None:
        told = f"{it.network_security_group} lets runners reach each other's {AGENT_PORT} and every other port"
        rule = "--name nothing-else --priority 4000 --access Deny --protocol '*' --destination-port-ranges '*'"
        found.append(warn(what, told, _new_rule(azure, it.network_security_group, rule)))
    return found


def _new_rule(azure: Azure, group: str, rule: str) -> str:
    return f"az network nsg rule create --resource-group {azure.config.azure.resource_group} --nsg-name {group} {rule}"


# ---------------------------------------------------------------------------------------------- the way out


async def outbound(azure: Azure) -> Sequence[Finding]:
    what, it = "outbound route", azure.config.azure
    runners = await azure.view.subnet()
    by_proxy = all(pool.vm.proxy.http_proxy for pool in azure.config.pools)
    nat = f"az network vnet subnet update {_where(azure)} --name {it.subnet} --nat-gateway NAT_GATEWAY ({NETWORK_PAGE})"
    hop, address = await azure.view.next_hop(runners.route_table) if runners.route_table else ("", "")
    if hop == "None":
        return [fail(what, f"the route table of {it.subnet} drops what goes to the Internet", nat)]
    if hop in ("VirtualAppliance", "VirtualNetworkGateway"):
        found = ok(what, f"{it.subnet} sends everything to {address or 'a VPN gateway'} ({hop})")
    elif runners.nat_gateway:
        found = ok(what, f"{it.subnet} goes out through {runners.nat_gateway.rsplit('/', 1)[-1]}")
    elif by_proxy:
        found = ok(what, "every pool has its http_proxy")
    elif runners.default_outbound is False:
        return [fail(what, f"{it.subnet} has neither NAT gateway nor route, and no default outbound access", nat)]
    else:
        told = f"{it.subnet} relies on Azure's default outbound access, whose addresses change, and which new VNets do not have"
        found = warn(what, told, nat)
    return [found, *await _shut(azure, runners)]


async def _shut(azure: Azure, runners: Subnet) -> list[Finding]:
    """Whether a security group keeps runners from GitHub."""
    network = await azure.view.virtual_network()
    try:
        stands = await guard(azure, runners, network.prefixes)
    except Gone:
        return []  # the check of the agent's port says so
    here = networks(runners.prefixes)[0]
    refused = stands.refusing(inbound=False, source=here, destination=INTERNET, port=443)
    if refused is None:
        return []
    what, page = "outbound route", "https://docs.github.com/actions/reference/runners/self-hosted-runners"
    told = f"{refused[0]} ({refused[1]}) denies 443 to the Internet"
    mend = f"allow what GitHub's runners need: {page}"
    if any(rule.allow and not rule.inbound and rule.priority < FIRST_DEFAULT for rule in stands.groups[refused[0]]):
        return [warn(what, f"{told}; its rules for single addresses or tags may let GitHub through", mend)]
    return [fail(what, told, mend)]


# ---------------------------------------------------------------------------------------------- names


async def name_servers(azure: Azure) -> Sequence[Finding]:
    """A VM that cannot resolve names reaches nothing, whatever else is open."""
    what = "name servers"
    network = await azure.view.virtual_network()
    own = networks([server for server in network.dns_servers if server != AZURE_RESOLVER])
    if not own:
        return [ok(what, "Azure resolves names, which no security rule keeps from it")]
    runners = await azure.view.subnet()
    try:
        stands = await guard(azure, runners, network.prefixes)
    except Gone:
        return []  # the check of the agent's port says so
    here = networks(runners.prefixes)[0]
    refused = {server.network_address: by for server in own if (by := _unasked(stands, here, server)) is not None}
    if not refused:
        return [ok(what, f"{', '.join(str(server.network_address) for server in own)} may be asked")]
    told = ", ".join(f"{group} ({rule}) keeps runners from {server}" for server, (group, rule) in refused.items())
    servers = " ".join(map(str, refused))
    rule = f"--name dns --priority 1010 --direction Outbound --protocol '*' --destination-address-prefixes {servers}"
    mend = _new_rule(azure, next(iter(refused.values()))[0], f"{rule} --destination-port-ranges 53")
    return [fail(what, told, f"{mend}, or RUNNERPOOL_DNS_SERVERS: {NETWORK_PAGE}")]


def _unasked(stands: Guard, here: IPv4Network, server: IPv4Network) -> tuple[str, str] | None:
    """What keeps runners from a server. The tag VirtualNetwork means peered networks, too, where such servers often are."""
    near = replace(stands, space=[*stands.space, server])
    return near.refusing(inbound=False, source=here, destination=server, port=53, protocol="udp")
