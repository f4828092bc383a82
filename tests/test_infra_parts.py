"""The templates: their parts fit, nothing comes in that should not, and no secret is in the open."""

from __future__ import annotations

import json
import re

from runnerpool.config import AzureConfig
from runnerpool.vm import AGENT_PORT
from tests.bicep_files import FILES, INFRA, body, constants, network_rules, resources, template, variable

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


def test_nothing_comes_in_but_the_functions_to_the_agents() -> None:
    rules = sorted(
        (rule for rule in network_rules().values() if rule["direction"] == "Inbound"), key=lambda rule: int(rule["priority"])
    )
    assert [rule["access"] for rule in rules] == ["Allow", "Deny"]
    assert rules[0]["sourceAddressPrefix"] == "functionSubnetPrefix"
    assert rules[0]["destinationPortRange"] == "agentPort"
    assert variable("modules/network.bicep", "agentPort") == str(AGENT_PORT)
    assert {rules[1][key] for key in rules[1] if key.endswith(("Prefix", "Range"))} == {"*"}


def test_runners_reach_the_internet_and_not_each_other() -> None:
    rules = sorted(
        (rule for rule in network_rules().values() if rule["direction"] == "Outbound"), key=lambda rule: int(rule["priority"])
    )
    assert [(rule["access"], rule["destinationAddressPrefix"]) for rule in rules] == [("Allow", "Internet"), ("Deny", "*")]
    assert "443" in template("main.bicep")["parameters"]["outboundPorts"]["default"]


def test_runners_ask_the_network_s_own_dns_servers_and_nobody_else_in_it() -> None:
    [rule] = (rule["properties"] for rule in variable("modules/network.bicep", "dnsRules"))
    assert (rule["direction"], rule["access"], rule["destinationAddressPrefixes"]) == ("Outbound", "Allow", "dnsServers")
    assert rule["destinationPortRange"] == "53"
    last = max(int(other["priority"]) for other in network_rules().values() if other["direction"] == "Outbound")
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
