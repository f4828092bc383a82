"""Which rule of a network security group decides about a connection. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network


@dataclass(frozen=True, slots=True)
class Rule:
    """`sources` and `destinations` hold prefixes, service tags or `*`; `ports` numbers, ranges or `*`, of the destination."""

    name: str
    priority: int
    inbound: bool
    allow: bool
    protocol: str
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    ports: tuple[str, ...]


INTERNET = None
"""Stands for an address outside of every network of ours."""


def deciding(
    rules: Iterable[Rule],
    *,
    inbound: bool,
    source: IPv4Network | None,
    destination: IPv4Network | None,
    port: int,
    network: Sequence[IPv4Network],
    protocol: str = "tcp",
) -> Rule | None:
    """The rule that decides about a connection from `source` to `destination`; None where no rule fits, which Azure takes for
    a denial.

    `network` is the VNet's address space. A rule that allows a part of a range only does not allow it; one that denies a
    part of it denies it.
    """
    fitting = (
        rule
        for rule in rules
        if rule.inbound is inbound
        and rule.protocol in ("*", protocol)
        and any(_port_fits(each, port) for each in rule.ports)
        and any(_fits(each, source, network, part=not rule.allow) for each in rule.sources)
        and any(_fits(each, destination, network, part=not rule.allow) for each in rule.destinations)
    )
    return min(fitting, key=lambda rule: rule.priority, default=None)


def _port_fits(ports: str, port: int) -> bool:
    low, _, high = ports.partition("-")
    return ports == "*" or (low.isdecimal() and int(low) <= port <= int(high or low))


def _fits(prefix: str, place: IPv4Network | None, network: Sequence[IPv4Network], *, part: bool) -> bool:
    """Whether a rule's prefix or service tag covers a place. Tags other than the network's and the Internet's cover parts of the
    Internet or Azure's own services: never all of a place."""
    tag = prefix.lower()
    if tag in ("*", "any", "0.0.0.0/0"):
        return True
    if tag == "virtualnetwork":
        return place is not None and any(_covers(space, place, part=part) for space in network)
    if tag == "internet":
        return place is None
    try:
        covered = ip_network(prefix, strict=False)
    except ValueError:
        return False
    return isinstance(covered, IPv4Network) and place is not None and _covers(covered, place, part=part)


def _covers(space: IPv4Network, place: IPv4Network, *, part: bool) -> bool:
    return space.overlaps(place) if part else place.subnet_of(space)
