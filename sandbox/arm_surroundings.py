"""What there is in the sandbox's Azure around VMs, as `POST /_admin/settings {"surroundings": {…}}` may change it.

With its defaults everything is as a deployment needs it; each field is something that a deployment can get wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

FUNCTION_PREFIX = "10.10.1.0/26"
"""The function app's subnet. VMs live on loopback addresses; nothing has to be reachable from here."""

CANONICAL = "Canonical:ubuntu-24_04-lts"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Sizes that are not offered, and zones closed to this subscription by size; actions that the caller lacks (patterns as in
    a role); images by `publisher:offer:sku` or gallery image id with their architecture."""

    not_offered: Sequence[str] = ()
    closed_zones: Mapping[str, Sequence[str]] = field(default_factory=dict)
    denied: Sequence[str] = ()
    images: Mapping[str, str] = field(default_factory=lambda: {f"{CANONICAL}:server": "x64", f"{CANONICAL}:server-arm64": "Arm64"})
    agent_port_open: bool = True  # from the function subnet
    runners_apart: bool = True  # no runner reaches another one
    web_open: bool = True  # outbound, port 443
    names_open: bool = True  # outbound, port 53
    dns_servers: Sequence[str] = ()  # of the VNet; none: Azure's own
    nat_gateway: bool = True
    default_outbound: bool = False
    next_hop: str = ""  # of 0.0.0.0/0 in a route table on the subnet; "" is no table
    addresses_taken: int = 0  # by others
    function_subnet: bool = True

    def changed(self, wish: Mapping[str, Any]) -> Surroundings:
        """Raises ValueError for what is not here."""
        unknown = set(wish) - {each.name for each in fields(self)}
        if unknown:
            raise ValueError(f"the surroundings have no {', '.join(sorted(unknown))}")
        return replace(self, **wish)
