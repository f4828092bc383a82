"""The templates in infra/ as pycep reads them: plain dictionaries, in which an expression is a dictionary with one key."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pycep import BicepParser

INFRA = Path(__file__).resolve().parent.parent / "infra"
FILES = sorted(str(file.relative_to(INFRA)) for file in INFRA.rglob("*.bicep"))


@cache
def _parser() -> BicepParser:
    return BicepParser()


@cache
def template(name: str) -> dict[str, Any]:
    """`name` is the path below infra/."""
    return dict(_parser().parse(file_path=INFRA / name))


def variable(file: str, name: str) -> Any:
    return template(file)["variables"][name]["value"]


def resources(file: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = template(file).get("resources", {})
    return found


def body(resource: dict[str, Any]) -> dict[str, Any]:
    """What stands between the braces, whether or not a condition or a loop stands before them."""
    config: dict[str, Any] = resource["config"]
    return dict(config["config"]) if "config" in config else config


def properties(value: Any, before: str = "") -> Iterator[str]:
    """The dotted names of all that is written out below `value`; what an expression adds is not seen."""
    if isinstance(value, dict) and not set(value) <= {"function", "operator"}:
        for key, inner in value.items():
            yield f"{before}{key}"
            yield from properties(inner, f"{before}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from properties(inner, before)


def constants(value: Any) -> Iterator[Any]:
    """Every string, number and truth value below `value`, names of variables among them: pycep does not tell them apart."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from constants(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from constants(inner)
    else:
        yield value


def network_rules() -> dict[str, dict[str, Any]]:
    """Properties of each rule of the security group, by its name."""
    return {rule["name"]: rule["properties"] for rule in variable("modules/network.bicep", "ownRules")}
