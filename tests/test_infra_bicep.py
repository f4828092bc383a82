"""The templates: parsed whole, and what they name held against tables. `bicep build` in CI checks their types."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import pytest

from tests.bicep_files import FILES, body, network_rules, properties, resources, template, variable

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
    for rule in network_rules().values():
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
