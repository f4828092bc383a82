"""One list of settings: what the code reads, what Bicep sets, what the sandbox writes and what the docs name are the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runnerpool.front import WEBHOOK_SETTINGS
from runnerpool.settings import Settings
from sandbox.__main__ import POOL_FILE
from sandbox.azurite import Azurite
from sandbox.stack import NOT_OURS, Stack
from tests.bicep_files import INFRA, resources, template, variable

ROOT = INFRA.parent

SECRETS = (
    "GITHUB_WEBHOOK_SECRET",
    "GITHUB_WEBHOOK_SECRET_PREVIOUS",
    "GITHUB_TOKEN",
    "GITHUB_APP_PRIVATE_KEY",
    "AZURE_CLIENT_SECRET",
    "RUNNER_STATUS_TOKEN",
    "RUNNER_AGENT_KEY",
    "RUNNER_AGENT_KEY_PREVIOUS",
    "SMTP_PASSWORD",
    "ALERT_WEBHOOK_URL",
)
PLAIN = (
    "POOL_CONFIG",
    "GITHUB_APP_ID",
    "GITHUB_APP_INSTALLATION_ID",
    "GITHUB_API_URL",
    "AZURE_SUBSCRIPTION_ID",
    "AZURE_TENANT_ID",
    "AZURE_CLIENT_ID",
    "ARM_ENDPOINT",
    "SMTP_HOST",
    "SMTP_PORT",
    "SMTP_USERNAME",
    "SMTP_STARTTLS",
    "ALERT_FROM",
    "ALERT_TO",
)
STORAGE = "AzureWebJobsStorage"
BY_IDENTITY = ("accountName", "credential", "clientId")
"""What follows `AzureWebJobsStorage__` where an identity is used."""
BY_ADDRESS = ("tableServiceUri", "queueServiceUri")
"""What the code understands instead of an account's name; the templates have no use for them."""

OF_THE_HOST = ("APPLICATIONINSIGHTS_CONNECTION_STRING", "APPLICATIONINSIGHTS_AUTHENTICATION_STRING")
FORBIDDEN_ON_FLEX = (
    "ENABLE_ORYX_BUILD",
    "FUNCTIONS_EXTENSION_VERSION",
    "FUNCTIONS_WORKER_RUNTIME",
    "FUNCTIONS_WORKER_RUNTIME_VERSION",
    "SCM_DO_BUILD_DURING_DEPLOYMENT",
    "WEBSITE_CONTENTAZUREFILECONNECTIONSTRING",
    "WEBSITE_CONTENTSHARE",
    "WEBSITE_MAX_DYNAMIC_APPLICATION_SCALE_OUT",
    "WEBSITE_RUN_FROM_PACKAGE",
    "WEBSITE_VNET_ROUTE_ALL",
)
"""https://learn.microsoft.com/azure/azure-functions/functions-app-settings#flex-consumption-plan-deprecations"""


class Recording(Mapping[str, str]):
    """An environment with these values that remembers what it was asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.asked: set[str] = set()
        self._values = values

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Unstarted(Azurite):
    """Says where it would be."""

    connection_string = "UseDevelopmentStorage=true"


def sandbox_settings(folder: Path) -> Mapping[str, str]:
    """What `make sandbox` writes into local.settings.json."""
    return Stack(folder=folder, pool_file=POOL_FILE, storage=Unstarted()).settings


def bicep_settings() -> dict[str, Any]:
    """Every setting that main.bicep can set, by name, with its value."""
    found: dict[str, Any] = {}
    for name, declared in template("main.bicep")["variables"].items():
        if name.endswith("Settings") and name != "previousSettings":
            found |= declared["value"]
    rotated = template("main.bicep")["parameters"]["rotating"]["decorators"]
    allowed = next(decorator["argument"] for decorator in rotated if decorator["type"] == "allowed")
    text = (INFRA / "main.bicep").read_text()
    value = re.search(r"toObject\(rotating, name => '\$\{name\}_PREVIOUS', name => '(.*)'\)\n", text)
    assert value is not None
    for name in allowed:
        found[f"{name}_PREVIOUS"] = value[1].replace("${replace(name, '_', '-')}", name.replace("_", "-"))
    return found


# ---------------------------------------------------------------------------------------------- the code


def test_the_code_reads_exactly_these_settings() -> None:
    environment = Recording({f"{STORAGE}__accountName": "hwabcdefghijklm"})
    Settings.from_env(environment)
    read_elsewhere = {f"{STORAGE}__credential"}  # by the Functions host; the code's own credential needs no such word
    connection = {STORAGE, *(f"{STORAGE}__{part}" for part in (*BY_IDENTITY, *BY_ADDRESS))}
    assert environment.asked == {*SECRETS, *PLAIN, *connection} - read_elsewhere
    assert {*WEBHOOK_SETTINGS} <= {*SECRETS, *PLAIN}


# ---------------------------------------------------------------------------------------------- bicep


def test_bicep_sets_every_setting_and_no_other() -> None:
    assert set(bicep_settings()) == {*SECRETS, *PLAIN}
    used = str(template("main.bicep")["modules"]["app"]["config"]["params"]["settings"])
    unused = [name for name in template("main.bicep")["variables"] if name.endswith("Settings") and f"'{name}'" not in used]
    assert unused == []


def test_a_secret_is_a_reference_to_the_vault_and_nothing_else_is() -> None:
    for name, value in bicep_settings().items():
        reference = "@Microsoft.KeyVault(VaultName=${vaultName};SecretName=" + name.replace("_", "-") + ")"
        assert (value == reference) == (name in SECRETS), name


def test_each_reference_is_to_a_secret_that_something_puts_there() -> None:
    kept = {name.replace("-", "_") for name in variable("modules/vault.bicep", "givenNames")}
    assert kept == {name for name in SECRETS if not name.endswith("_PREVIOUS")}
    # what must exist before the first deployment has ended is made by it
    always = {name.replace("_", "-") for name in variable("main.bicep", "secretSettings")}
    assert always == set(variable("modules/vault.bicep", "freshNames"))


def test_the_storage_connection_is_the_identity_s_and_there_is_no_other() -> None:
    host = variable("modules/app.bicep", "hostSettings")
    assert set(host) == {*(f"{STORAGE}__{part}" for part in BY_IDENTITY), *OF_THE_HOST}
    assert host[f"{STORAGE}__credential"] == "managedidentity"


def test_no_setting_is_one_that_flex_consumption_refuses() -> None:
    assert not {*bicep_settings(), *variable("modules/app.bicep", "hostSettings")} & {*FORBIDDEN_ON_FLEX}


def test_what_bicep_sets_with_an_identity_is_what_the_code_takes() -> None:
    deployed = {
        f"{STORAGE}__accountName": "hwabcdefghijklm",
        f"{STORAGE}__credential": "managedidentity",
        f"{STORAGE}__clientId": "11111111-1111-4111-8111-111111111111",
        "AZURE_CLIENT_ID": "11111111-1111-4111-8111-111111111111",
        "AZURE_SUBSCRIPTION_ID": "00000000-0000-4000-8000-000000000001",
        "ARM_ENDPOINT": "https://management.azure.com/",
        "SMTP_STARTTLS": "True",  # how ARM spells it
        "SMTP_PORT": "587",
        "SMTP_HOST": "",
        "GITHUB_TOKEN": "token",
        "RUNNER_AGENT_KEY": "key",
    }
    settings = Settings.from_env(deployed)
    assert settings.lacking == ()
    assert settings.storage is not None
    assert settings.storage.client_id == deployed["AZURE_CLIENT_ID"]
    assert settings.arm_endpoint == "https://management.azure.com"


# ---------------------------------------------------------------------------------------------- sandbox and docs


def test_the_sandbox_writes_only_settings_that_there_are(tmp_path: Path) -> None:
    written = sandbox_settings(tmp_path)
    of_core_tools = {"FUNCTIONS_WORKER_RUNTIME", "NO_PROXY"}
    assert set(written) - of_core_tools <= {*SECRETS, *PLAIN, STORAGE}
    assert set(NOT_OURS) <= {*SECRETS, *PLAIN, *(f"{STORAGE}__{part}" for part in BY_IDENTITY)}
    assert STORAGE in written  # the same connection, as a string


def test_the_docs_have_a_row_for_every_setting() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \|", text[text.index("## Settings") : text.index("## Parameters")], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert named == {*SECRETS, *PLAIN, STORAGE, *(f"{STORAGE}__{part}" for part in BY_IDENTITY)}


def test_the_docs_say_which_parameters_there_are() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    variables = set(re.findall(r"RUNNERPOOL_[A-Z_]*[A-Z]", text))
    known = set(re.findall(r"RUNNERPOOL_[A-Z_]+", (INFRA / "main.bicepparam").read_text()))
    assert variables <= known


def test_a_page_that_the_code_names_is_there() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    named = {
        anchor
        for file in [*(ROOT / "runnerpool").rglob("*.py"), ROOT / "docs/deploy.md"]
        for anchor in re.findall(r"(?:docs/deploy\.md|\]\()#([a-z0-9-]+)", file.read_text())
    }
    assert named <= headings


def test_every_function_app_setting_is_set_on_the_function_app() -> None:
    assert resources("modules/app.bicep")["appSettings"]["config"]["name"] == "appsettings"
