"""The templates: parsed whole, and what they name held against tables. `bicep build` in CI checks their types."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import pytest

from runnerpool.config import AzureConfig
from runnerpool.vm import AGENT_PORT
from tests.bicep_files import FILES, INFRA, body, constants, properties, resources, template, variable

COMMON = ("name", "location", "tags", "parent", "scope", "dependsOn")

NETWORK = "2024-05-01"
STORAGE = "2024-01-01"
WEB = "2025-05-01"  # the first whose published description has siteUpdateStrategy

TYPES: Mapping[str, tuple[str, Collection[str]]] = {
    "Microsoft.Authorization/roleAssignments": ("2022-04-01", ("principalId", "principalType", "roleDefinitionId")),
    "Microsoft.Authorization/roleDefinitions": (
        "2022-04-01",
        ("roleName", "description", "type", "permissions", "permissions.actions", "assignableScopes"),
    ),
    "Microsoft.Insights/components": ("2020-02-02", ("Application_Type", "WorkspaceResourceId", "DisableLocalAuth")),
    "Microsoft.KeyVault/vaults": (
        "2024-11-01",
        (
            "tenantId",
            "sku",
            "sku.family",
            "sku.name",
            "enableRbacAuthorization",
            "enableSoftDelete",
            "enablePurgeProtection",
        ),
    ),
    "Microsoft.KeyVault/vaults/secrets": ("2024-11-01", ("value",)),
    "Microsoft.ManagedIdentity/userAssignedIdentities": ("2023-01-31", ()),
    "Microsoft.Network/natGateways": (NETWORK, ("idleTimeoutInMinutes", "publicIpAddresses", "publicIpAddresses.id")),
    "Microsoft.Network/networkSecurityGroups": (NETWORK, ("securityRules",)),
    "Microsoft.Network/publicIPAddresses": (NETWORK, ("publicIPAllocationMethod", "publicIPAddressVersion")),
    "Microsoft.Network/virtualNetworks": (
        NETWORK,
        ("addressSpace", "addressSpace.addressPrefixes", "subnets", "subnets.name", "subnets.properties"),
    ),
    "Microsoft.Network/virtualNetworks/subnets": (NETWORK, ()),  # made of variables, see SUBNET
    "Microsoft.OperationalInsights/workspaces": (
        "2023-09-01",
        ("sku", "sku.name", "retentionInDays", "workspaceCapping", "workspaceCapping.dailyQuotaGb"),
    ),
    "Microsoft.Storage/storageAccounts": (
        STORAGE,
        (
            "allowSharedKeyAccess",
            "allowBlobPublicAccess",
            "defaultToOAuthAuthentication",
            "minimumTlsVersion",
            "supportsHttpsTrafficOnly",
        ),
    ),
    "Microsoft.Storage/storageAccounts/blobServices": (STORAGE, ()),
    "Microsoft.Storage/storageAccounts/blobServices/containers": (STORAGE, ("publicAccess",)),
    "Microsoft.Storage/storageAccounts/queueServices": (STORAGE, ()),
    "Microsoft.Storage/storageAccounts/queueServices/queues": (STORAGE, ()),
    "Microsoft.Storage/storageAccounts/tableServices": (STORAGE, ()),
    "Microsoft.Storage/storageAccounts/tableServices/tables": (STORAGE, ()),
    "Microsoft.Web/serverfarms": (WEB, ("reserved",)),
    "Microsoft.Web/sites": (
        WEB,
        (
            "serverFarmId",
            "httpsOnly",
            "publicNetworkAccess",
            "virtualNetworkSubnetId",
            "keyVaultReferenceIdentity",
            "siteConfig",
            "siteConfig.minTlsVersion",
            *(
                f"functionAppConfig{rest}"
                for rest in (
                    "",
                    ".deployment",
                    ".deployment.storage",
                    ".deployment.storage.type",
                    ".deployment.storage.value",
                    ".deployment.storage.authentication",
                    ".deployment.storage.authentication.type",
                    ".deployment.storage.authentication.userAssignedIdentityResourceId",
                    ".runtime",
                    ".runtime.name",
                    ".runtime.version",
                    ".scaleAndConcurrency",
                    ".scaleAndConcurrency.instanceMemoryMB",
                    ".scaleAndConcurrency.maximumInstanceCount",
                    ".scaleAndConcurrency.alwaysReady",
                    ".scaleAndConcurrency.triggers",
                    ".scaleAndConcurrency.triggers.http",
                    ".scaleAndConcurrency.triggers.http.perInstanceConcurrency",
                    ".siteUpdateStrategy",
                    ".siteUpdateStrategy.type",
                )
            ),
        ),
    ),
    "Microsoft.Web/sites/basicPublishingCredentialsPolicies": (WEB, ("allow",)),
    "Microsoft.Web/sites/config": (WEB, ()),  # the settings: tests/test_infra_settings.py
}
"""API version and the names below `properties`, as the ARM reference and Microsoft's clients of that version spell them:
https://learn.microsoft.com/azure/templates/"""

BESIDE_PROPERTIES: Mapping[str, Collection[str]] = {
    "Microsoft.Insights/components": ("kind",),
    "Microsoft.Network/natGateways": ("sku", "sku.name"),
    "Microsoft.Network/publicIPAddresses": ("sku", "sku.name"),
    "Microsoft.Storage/storageAccounts": ("kind", "sku", "sku.name"),
    "Microsoft.Web/serverfarms": ("kind", "sku", "sku.name", "sku.tier"),
    "Microsoft.Web/sites": ("kind", "identity"),
}

IN_VARIABLES: Mapping[str, Collection[str]] = {
    "runnerSubnet": ("addressPrefix", "defaultOutboundAccess", "networkSecurityGroup", "networkSecurityGroup.id"),
    "functionSubnet": (
        "addressPrefix",
        "delegations",
        "delegations.name",
        "delegations.properties",
        "delegations.properties.serviceName",
    ),
    "ownRules": (
        "name",
        "properties",
        *(
            f"properties.{name}"
            for name in (
                *("priority", "direction", "access", "protocol"),
                *("sourceAddressPrefix", "sourcePortRange"),
                *("destinationAddressPrefix", "destinationPortRange", "destinationPortRanges"),
            )
        ),
    ),
    "dnsRules": (
        "name",
        "properties",
        *(
            f"properties.{name}"
            for name in (
                *("priority", "direction", "access", "protocol"),
                *("sourceAddressPrefix", "sourcePortRange"),
                *("destinationAddressPrefixes", "destinationPortRange"),
            )
        ),
    ),
}
"""Properties that network.bicep puts together beforehand: those of a subnet, and its list of securityRules."""

WORDS: Mapping[tuple[str, str], Collection[str]] = {
    ("Microsoft.Authorization/roleAssignments", "principalType"): ("ServicePrincipal", "operatorPrincipalType"),
    ("Microsoft.Authorization/roleDefinitions", "type"): ("CustomRole",),
    ("Microsoft.Insights/components", "Application_Type"): ("web",),
    ("Microsoft.Insights/components", "kind"): ("web",),
    ("Microsoft.KeyVault/vaults", "sku.family"): ("A",),
    ("Microsoft.KeyVault/vaults", "sku.name"): ("standard",),
    ("Microsoft.Network/natGateways", "sku.name"): ("Standard",),
    ("Microsoft.Network/publicIPAddresses", "sku.name"): ("Standard",),
    ("Microsoft.Network/publicIPAddresses", "publicIPAllocationMethod"): ("Static",),
    ("Microsoft.Network/publicIPAddresses", "publicIPAddressVersion"): ("IPv4",),
    ("Microsoft.OperationalInsights/workspaces", "sku.name"): ("PerGB2018",),
    ("Microsoft.Storage/storageAccounts", "kind"): ("StorageV2",),
    ("Microsoft.Storage/storageAccounts", "sku.name"): ("Standard_LRS",),
    ("Microsoft.Storage/storageAccounts", "minimumTlsVersion"): ("TLS1_2",),
    ("Microsoft.Storage/storageAccounts/blobServices/containers", "publicAccess"): ("None",),
    ("Microsoft.Web/serverfarms", "kind"): ("functionapp",),
    ("Microsoft.Web/serverfarms", "sku.name"): ("FC1",),
    ("Microsoft.Web/serverfarms", "sku.tier"): ("FlexConsumption",),
    ("Microsoft.Web/sites", "kind"): ("functionapp,linux",),
    ("Microsoft.Web/sites", "identity.type"): ("UserAssigned",),
    ("Microsoft.Web/sites", "publicNetworkAccess"): ("Enabled",),
    ("Microsoft.Web/sites", "siteConfig.minTlsVersion"): ("1.2",),
    ("Microsoft.Web/sites", "functionAppConfig.deployment.storage.type"): ("blobContainer",),
    ("Microsoft.Web/sites", "functionAppConfig.deployment.storage.authentication.type"): ("UserAssignedIdentity",),
    ("Microsoft.Web/sites", "functionAppConfig.runtime.name"): ("python",),
}
"""What a property may be where the service takes only certain words; the path without `properties`."""

BUILT_IN_ROLES = {
    "blobDataOwner": "b7e6dc6d-f1e8-4753-8033-0f276bb0955b",
    "queueDataContributor": "974c5e8b-45b9-4653-ba55-5f855dd0fb88",
    "tableDataContributor": "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3",
    "secretsUser": "4633458b-17de-408a-b874-0445c86b69e6",
    "secretsOfficer": "b86a8fe4-44ce-4948-aee5-eccb2c155cd7",
    "metricsPublisher": "3913510d-42f4-4e42-8a64-420c390055eb",
    "virtualMachineContributor": "9980e02c-c2be-4d73-94e8-173b1dc7cf3c",
    "reader": "acdd72a7-3385-48ef-bd42-f606fba81ae7",
}
"""https://learn.microsoft.com/azure/role-based-access-control/built-in-roles"""

RESOURCES = [(file, name, resource) for file in FILES for name, resource in resources(file).items()]


# ---------------------------------------------------------------------------------------------- every resource


@pytest.mark.parametrize(("file", "name", "resource"), RESOURCES, ids=[f"{file}:{name}" for file, name, _ in RESOURCES])
def test_a_resource_is_of_a_known_type_and_has_no_property_that_its_type_lacks(
    file: str, name: str, resource: dict[str, Any]
) -> None:
    version, below_properties = TYPES[resource["type"]]
    assert resource["api_version"] == version
    written = {path for path in properties(body(resource)) if path != "properties" and not path.startswith("identity.")}
    allowed = {*COMMON, *BESIDE_PROPERTIES.get(resource["type"], ()), *(f"properties.{path}" for path in below_properties)}
    assert written <= allowed


def test_no_row_of_these_tables_is_without_its_resource() -> None:
    used = {resource["type"] for _, _, resource in RESOURCES}
    assert used == set(TYPES)
    assert set(BESIDE_PROPERTIES) <= used
    written = {
        (resource["type"], path.removeprefix("properties.")) for _, _, resource in RESOURCES for path in properties(body(resource))
    }
    assert {(kind, path) for kind, (_, paths) in TYPES.items() for path in paths} <= written
    assert set(WORDS) <= written


@pytest.mark.parametrize("name", IN_VARIABLES)
def test_what_is_put_together_beforehand_is_spelt_as_azure_spells_it(name: str) -> None:
    assert set(properties(variable("modules/network.bicep", name))) == set(IN_VARIABLES[name])


@pytest.mark.parametrize(("file", "name", "resource"), RESOURCES, ids=[f"{file}:{name}" for file, name, _ in RESOURCES])
def test_a_property_that_takes_certain_words_has_one_of_them(file: str, name: str, resource: dict[str, Any]) -> None:
    whole = body(resource)
    for (kind, path), words in WORDS.items():
        if kind == resource["type"] and not resource["existing"]:
            value = at(whole if path.split(".")[0] in whole else whole["properties"], path)
            assert value in words, path


def at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value[part]
    return value


def test_a_rule_s_words_are_those_that_azure_knows() -> None:
    for rule in _rules().values():
        assert rule["direction"] in ("Inbound", "Outbound")
        assert rule["access"] in ("Allow", "Deny")
        assert rule["protocol"] in ("Tcp", "Udp", "Icmp", "*")
        assert 100 <= int(rule["priority"]) <= 4096


def test_a_role_is_named_by_its_published_id() -> None:
    guid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
    named = {
        name: value["value"]
        for file in FILES
        for name, value in template(file).get("variables", {}).items()
        if isinstance(value["value"], str) and guid.fullmatch(value["value"])
    }
    assert named == BUILT_IN_ROLES


def test_what_is_made_can_be_told_from_other_things_by_its_tags() -> None:
    untagged = {resource["type"] for _, _, resource in RESOURCES if not resource["existing"] and "location" in body(resource)} - {
        resource["type"] for _, _, resource in RESOURCES if "tags" in body(resource)
    }
    assert not untagged


# ---------------------------------------------------------------------------------------------- the parts fit


def test_a_module_is_given_exactly_the_parameters_that_it_takes() -> None:
    for name, module in template("main.bicep")["modules"].items():
        taken = template(module["detail"]["path"])["parameters"]
        given = module["config"]["params"]
        needed = {parameter for parameter, declared in taken.items() if declared.get("default") is None}
        assert needed <= set(given) <= set(taken), name


def test_every_parameter_can_be_set_from_the_environment_under_its_own_name() -> None:
    of_azd = {
        "location": "AZURE_LOCATION",
        "environmentName": "AZURE_ENV_NAME",
        "operatorPrincipalId": "AZURE_PRINCIPAL_ID",
        "operatorPrincipalType": "AZURE_PRINCIPAL_TYPE",
    }
    # A variable of our own prefix cannot be set by accident, as a workflow's GITHUB_TOKEN or AZURE_CLIENT_ID is.
    for name, (environment, _) in _parameter_file().items():
        assert environment == of_azd.get(name, "RUNNERPOOL_" + _screaming(name))
    made_by_azure = {"freshWebhookSecret", "freshStatusToken", "freshAgentKey", "servicePrincipalTenantId"}
    assert set(_parameter_file()) == set(template("main.bicep")["parameters"]) - made_by_azure


def _parameter_file() -> dict[str, tuple[str, str]]:
    """Each parameter's variable in the environment, and what it is without one."""
    text = (INFRA / "main.bicepparam").read_text().replace("${prefix}", "${namePrefix}")
    pattern = r"^(?:param|var) (\w+) = .*?readEnvironmentVariable\('(\w+)', '(.*?)'\)\)?$"
    found = {name: (variable, default) for name, variable, default in re.findall(pattern, text, re.MULTILINE)}
    return found | {"namePrefix": found.pop("prefix")}


def _screaming(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


def test_every_parameter_has_a_value_of_its_own_where_nothing_is_set() -> None:
    """None of them null: how azd hands a null on has differed between its versions."""
    for file_default in (beside for _, beside in _parameter_file().values()):
        assert file_default != "null"
    assert all(declared.get("default") is not None for declared in template("main.bicep")["parameters"].values())


def test_a_default_is_the_same_with_and_without_the_parameter_file() -> None:
    for name, (_, beside) in _parameter_file().items():
        if name != "location":  # the parameter file's is the pool file's, the template's the resource group's
            default = template("main.bicep")["parameters"][name].get("default")
            assert (beside if isinstance(default, str) else json.loads(beside)) == default, name


def test_the_names_are_those_that_the_pool_file_has_by_default() -> None:
    azure = AzureConfig()
    parameters = template("main.bicep")["parameters"]
    made = {
        name: parameters[name]["default"].replace("${namePrefix}", parameters["namePrefix"]["default"])
        for name in ("virtualNetworkName", "runnerSubnetName", "securityGroupName")
    }
    assert parameters["namePrefix"]["default"] == azure.name_prefix
    assert made == {
        "virtualNetworkName": azure.virtual_network,
        "runnerSubnetName": azure.subnet,
        "securityGroupName": azure.network_security_group,
    }
    assert f"readEnvironmentVariable('AZURE_LOCATION', '{azure.location}')" in (INFRA / "main.bicepparam").read_text()


def test_names_stay_within_what_azure_allows() -> None:
    unique, prefix = 13, 7  # uniqueString() gives 13 characters; main.bicep takes 7 of the prefix
    assert f", {prefix})" in (INFRA / "main.bicep").read_text()
    assert len("kv-") + prefix + len("-") + unique <= 24  # a vault
    assert prefix + unique <= 24  # a storage account
    assert 20 + len("-runnerpool-") + unique <= 60  # a function app


# ---------------------------------------------------------------------------------------------- the network


def _rules() -> dict[str, dict[str, Any]]:
    return {rule["name"]: rule["properties"] for rule in variable("modules/network.bicep", "ownRules")}


def test_nothing_comes_in_but_the_functions_to_the_agents() -> None:
    rules = sorted((rule for rule in _rules().values() if rule["direction"] == "Inbound"), key=lambda rule: int(rule["priority"]))
    assert [rule["access"] for rule in rules] == ["Allow", "Deny"]
    assert rules[0]["sourceAddressPrefix"] == "functionSubnetPrefix"
    assert rules[0]["destinationPortRange"] == "agentPort"
    assert variable("modules/network.bicep", "agentPort") == str(AGENT_PORT)
    assert {rules[1][key] for key in rules[1] if key.endswith(("Prefix", "Range"))} == {"*"}


def test_runners_reach_the_internet_and_not_each_other() -> None:
    rules = sorted((rule for rule in _rules().values() if rule["direction"] == "Outbound"), key=lambda rule: int(rule["priority"]))
    assert [(rule["access"], rule["destinationAddressPrefix"]) for rule in rules] == [("Allow", "Internet"), ("Deny", "*")]
    assert "443" in template("main.bicep")["parameters"]["outboundPorts"]["default"]


def test_runners_ask_the_network_s_own_dns_servers_and_nobody_else_in_it() -> None:
    [rule] = (rule["properties"] for rule in variable("modules/network.bicep", "dnsRules"))
    assert (rule["direction"], rule["access"], rule["destinationAddressPrefixes"]) == ("Outbound", "Allow", "dnsServers")
    assert rule["destinationPortRange"] == "53"
    last = max(int(other["priority"]) for other in _rules().values() if other["direction"] == "Outbound")
    assert int(rule["priority"]) < last
    assert template("main.bicep")["parameters"]["dnsServers"]["default"] == []
    given = body(resources("modules/network.bicep")["securityGroup"])["properties"]["securityRules"]
    assert {"ownRules", "dnsRules", "securityRules"} <= set(constants(given))


def test_the_subnets_are_written_as_azure_spells_them() -> None:
    runners, functions = (variable("modules/network.bicep", name) for name in ("runnerSubnet", "functionSubnet"))
    assert functions["delegations"][0]["properties"]["serviceName"] == "Microsoft.App/environments"
    assert runners["defaultOutboundAccess"] is False


# ---------------------------------------------------------------------------------------------- storage and secrets


def test_nobody_gets_in_with_a_key_or_a_password() -> None:
    account = body(resources("modules/storage.bicep")["account"])["properties"]
    assert account["allowSharedKeyAccess"] is False
    assert account["allowBlobPublicAccess"] is False
    assert body(resources("modules/vault.bicep")["vault"])["properties"]["enableRbacAuthorization"] is True
    assert body(resources("modules/monitoring.bicep")["insights"])["properties"]["DisableLocalAuth"] is True
    assert body(resources("modules/app.bicep")["passwords"])["properties"]["allow"] is False
    assert not [file for file in FILES if re.search(r"\blist(Keys|AccountSas|Secrets)\(", (INFRA / file).read_text())]


def test_the_host_has_the_roles_that_its_connection_by_identity_needs() -> None:
    """Blob Data Owner for the timer's lock and the keys, queues for the trigger, tables for the output binding:
    https://learn.microsoft.com/azure/azure-functions/functions-reference#connecting-to-host-storage-with-an-identity"""
    file = "modules/storage.bicep"
    assert variable(file, "hostRoles") == ["blobDataOwner", "queueDataContributor", "tableDataContributor"]
    given = template("main.bicep")["modules"]["storage"]["config"]["params"]
    assert set(constants(given["principalId"])) == {"property_accessor", "identity", "properties", "principalId"}


def test_whoever_deploys_may_do_what_the_command_line_does() -> None:
    """`doctor` reads tables and queue, `drain` writes rows: an owner of the account may neither, its keys being off."""
    operator = variable("modules/storage.bicep", "operatorRoles")["operator"]["operands"]
    assert operator["true_value"] == []
    assert {"queueDataContributor", "tableDataContributor"} <= set(constants(operator["false_value"]))


def test_every_secret_parameter_is_secure() -> None:
    for file in FILES:
        for name, declared in template(file).get("parameters", {}).items():
            secret = re.search(r"(Secret|Token|Key|Password|WebhookUrl)$", name) or name in ("given", "fresh")
            secure = {"type": "secure"} in declared["decorators"]
            assert bool(secret) == secure, f"{file}: {name}"


def test_a_secret_that_is_made_is_made_once() -> None:
    made = resources("modules/vault.bicep")["freshSecrets"]
    assert {"type": "onlyIfNotExists"} in made["decorators"]
    assert {"type": "onlyIfNotExists"} not in resources("modules/vault.bicep")["givenSecrets"]["decorators"]
    parameters = template("main.bicep")["parameters"]
    assert all("newGuid()" in parameters[name]["default"] for name in parameters if name.startswith("fresh"))


def test_every_secret_reaches_the_vault() -> None:
    given = template("main.bicep")["modules"]["vault"]["config"]["params"]
    names = {kind: [name.strip("'") for name in given[kind]] for kind in ("given", "fresh")}
    assert names == {kind: variable("modules/vault.bicep", f"{kind}Names") for kind in names}
    assert set(given["fresh"]) <= set(given["given"])
    secure = {
        name for name, declared in template("main.bicep")["parameters"].items() if {"type": "secure"} in declared["decorators"]
    }
    assert set(constants([given["given"], given["fresh"]])) == secure


def test_no_output_is_a_secret() -> None:
    named = {name for file in FILES for name in template(file).get("outputs", {})}
    assert not [name for name in named if re.search(r"secret|token|password|connection", name, re.IGNORECASE)]
