"""The commands in the docs: our own are parsed by our own parser, those of `az` and `azd` are held against a table of options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from runnerpool.__main__ import _parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "infra/image/README.md"]

EVERYWHERE = ("--output", "--query")

AZ: Mapping[str, Collection[str]] = {
    "account show": (),
    "ad app create": ("--display-name",),
    "ad app credential reset": ("--id", "--append"),
    "ad app federated-credential create": ("--id", "--parameters"),
    "ad signed-in-user show": (),
    "ad sp create": ("--id",),
    "ad sp create-for-rbac": ("--name", "--years"),
    "ad sp show": ("--id",),
    "bicep build": ("--file", "--stdout"),
    "bicep upgrade": (),
    "deployment group create": ("--name", "--resource-group", "--parameters"),
    "deployment group what-if": ("--resource-group", "--parameters"),
    "functionapp deployment source config-zip": ("--resource-group", "--name", "--src", "--build-remote"),
    "functionapp log deployment show": ("--resource-group", "--name"),
    "functionapp show": ("--resource-group", "--name"),
    "group create": ("--name", "--location"),
    "group delete": ("--name", "--yes"),
    "identity show": ("--resource-group", "--name"),
    "keyvault purge": ("--name",),
    "keyvault secret set": ("--vault-name", "--name", "--value", "--file"),
    "keyvault secret set-attributes": ("--vault-name", "--name", "--enabled"),
    "keyvault secret show": ("--vault-name", "--name"),
    "login": (),
    "monitor app-insights query": ("--resource-group", "--app", "--analytics-query"),
    "monitor log-analytics workspace delete": ("--resource-group", "--workspace-name", "--force", "--yes"),
    "network nsg rule create": (
        *("--resource-group", "--nsg-name", "--name", "--priority", "--direction", "--access", "--protocol"),
        *("--source-address-prefixes", "--destination-port-ranges"),
    ),
    "network vnet subnet create": ("--resource-group", "--vnet-name", "--name", "--address-prefixes", "--delegations"),
    "network vnet subnet delete": ("--resource-group", "--vnet-name", "--name"),
    "provider register": ("--namespace",),
    "resource list": ("--resource-group",),
    "rest": ("--method", "--url"),
    "role assignment create": ("--assignee", "--role", "--scope"),
    "role assignment delete": ("--ids",),
    "role assignment list": ("--all", "--assignee"),
    "role definition delete": ("--name", "--scope"),
    "role definition list": ("--custom-role-only", "--resource-group"),
    "sig image-version create": (),
    "sig create": ("--resource-group", "--gallery-name"),
    "sig image-definition create": (
        *("--resource-group", "--gallery-name", "--gallery-image-definition", "--publisher", "--offer", "--sku"),
        *("--os-type", "--os-state", "--hyper-v-generation", "--architecture", "--features"),
    ),
    "vm deallocate": (),
    "vm generalize": (),
}
"""By the `--help` of Azure CLI 2.91: what the docs use of each command. Its extension application-insights has the query."""

AZD: Mapping[str, Collection[str]] = {
    "auth login": (),
    "deploy": (),
    "down": ("--purge",),
    "env new": ("--location",),
    "env set": (),
    "provision": (),
    "up": (),
}
"""https://learn.microsoft.com/azure/developer/azure-developer-cli/reference"""


def code(page: Path) -> str:
    """What stands in blocks and between backticks, a piece a line."""
    text = page.read_text().replace("\\\n", " ")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4,}(.*)$", rest, re.MULTILINE)
    return "\n".join([*fenced, *indented, *(span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", rest))])


def commands(page: Path, program: str) -> list[str]:
    """Each call of the program, with a word for whatever stood in quotes, up to where the shell goes on."""
    text = re.sub(r"\"[^\"\n]*\"|(?<=[ =])'[^'\n]*'(?![a-z])|\$\((?!az )[^()\n]*\)", "QUOTED", code(page))
    calls = re.split(rf"(?<![\w/.-]){program} (?=[a-z])", text)[1:]
    return [re.split(r"[|;()\n]|&&| # ", call)[0].strip() for call in calls]


@pytest.mark.parametrize(("program", "table"), [("az", AZ), ("azd", AZD)])
def test_a_command_of_azure_s_is_one_that_there_is_with_options_that_it_has(
    program: str, table: Mapping[str, Collection[str]]
) -> None:
    used: set[tuple[str, str]] = set()
    for page in PAGES:
        for call in commands(page, program):
            name = max((name for name in table if f"{call} ".startswith(f"{name} ")), key=len, default=None)
            assert name is not None, f"{page.name}: {program} {call}"
            options = re.findall(r"(?<!\S)--[a-z-]+", call)
            assert set(options) <= {*table[name], *EVERYWHERE}, f"{page.name}: {program} {call}"
            used |= {(name, ""), *((name, option) for option in options if option not in EVERYWHERE)}
    assert used == {(name, option) for name, options in table.items() for option in ("", *options)}  # no row without its use


def test_a_command_of_ours_is_one_that_there_is() -> None:
    calls: list[str] = []
    for page in PAGES:
        for line in code(page).splitlines():
            calls += re.findall(r"python -m runnerpool ([^;|#]*)", line)
    assert len(calls) > 10
    for call in calls:
        _parser().parse_args(shlex.split(call))
