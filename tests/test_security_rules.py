"""Which security rule decides, case by case."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

import pytest

from runnerpool.security_rules import INTERNET, Rule, deciding

RUNNERS, FUNCTIONS = IPv4Network("10.0.0.0/22"), IPv4Network("10.0.8.0/26")
SPACE = [IPv4Network("10.0.0.0/16")]


def rule(name: str, priority: int, **changes: Any) -> Rule:
    usual: dict[str, Any] = {
        "inbound": True,
        "allow": True,
        "protocol": "*",
        "sources": ("*",),
        "destinations": ("*",),
        "ports": ("*",),
    }
    return Rule(name, priority, **{**usual, **changes})


DEFAULTS = [
    rule("vnet", 65000, sources=("VirtualNetwork",), destinations=("VirtualNetwork",)),
    rule("balancer", 65001, sources=("AzureLoadBalancer",)),
    rule("nothing", 65500, allow=False),
]


@pytest.mark.parametrize(
    ("rules", "source", "expected"),
    [
        ([], FUNCTIONS, "vnet"),
        ([], INTERNET, "nothing"),
        ([rule("no", 200, allow=False), rule("agent", 100, ports=("8437",), protocol="tcp")], FUNCTIONS, "agent"),
        ([rule("no", 100, allow=False), rule("agent", 200, ports=("8437",))], FUNCTIONS, "no"),
        ([rule("udp", 100, allow=False, protocol="udp")], FUNCTIONS, "vnet"),
        ([rule("out", 100, allow=False, inbound=False)], FUNCTIONS, "vnet"),
        ([rule("range", 100, ports=("22", "8000-9000"))], FUNCTIONS, "range"),
        ([rule("other", 100, ports=("443", "8438-9000"))], FUNCTIONS, "vnet"),
        ([rule("whole", 100, sources=("10.0.8.0/24",))], FUNCTIONS, "whole"),
        ([rule("part", 100, sources=("10.0.8.0/27",))], FUNCTIONS, "vnet"),
        ([rule("part", 100, sources=("10.0.8.0/27",), allow=False)], FUNCTIONS, "part"),
        ([rule("elsewhere", 100, destinations=("10.0.9.0/24",))], FUNCTIONS, "vnet"),
        ([rule("tag", 100, sources=("AzureCloud",), allow=False)], FUNCTIONS, "vnet"),
        ([rule("groups", 100, sources=(), allow=False)], FUNCTIONS, "vnet"),
        ([rule("open", 100, sources=("Internet",))], INTERNET, "open"),
    ],
)
def test_the_first_rule_by_priority_that_covers_the_connection_decides(
    rules: list[Rule], source: IPv4Network | None, expected: str
) -> None:
    found = deciding([*DEFAULTS, *rules], inbound=True, source=source, destination=RUNNERS, port=8437, network=SPACE)
    assert found is not None
    assert found.name == expected


def test_where_no_rule_fits_there_is_none() -> None:
    assert deciding([], inbound=True, source=FUNCTIONS, destination=RUNNERS, port=8437, network=SPACE) is None
