"""The project's own workflows, azure.yaml and the GitHub App's manifest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from runnerpool.github import PERMISSIONS, READ_JOBS
from sandbox.host_app import read_functions, read_host_json
from tests.bicep_files import INFRA, body, resources, template, variable

ROOT = INFRA.parent
WORKFLOWS = [ROOT / f".github/workflows/{name}.yml" for name in ("ci", "deploy", "golden-image")]


def workflow(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(file.read_text(), Loader=yaml.BaseLoader)  # all strings: `on` stays `on`
    return loaded


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in workflow(file)["jobs"].values() for step in job.get("steps", [])]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_an_action_is_pinned_to_one_release(file: Path) -> None:
    used = [step["uses"] for step in steps(file) if "uses" in step]
    assert used
    assert not [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", action)]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_job_has_a_time_limit_and_only_the_permissions_that_it_needs(file: Path) -> None:
    whole = workflow(file)
    assert whole["permissions"] in ({}, {"contents": "read"})
    for name, job in whole["jobs"].items():
        signs_in = any(step.get("uses", "").startswith("Azure/login@") for step in job.get("steps", []))
        allowed = {"contents": "read"} | ({"id-token": "write"} if signs_in else {})
        assert job.get("permissions", whole["permissions"]).items() <= allowed.items(), name
        assert "uses" in job or "timeout-minutes" in job


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_no_script_is_put_together_from_an_expression(file: Path) -> None:
    assert not [step["run"] for step in steps(file) if "${{" in step.get("run", "")]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_checkout_leaves_no_token_behind(file: Path) -> None:
    checkouts = [step for step in steps(file) if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] == "false" for step in checkouts)


def test_ci_runs_on_the_oldest_and_the_newest_python_of_the_app() -> None:
    declared = template("main.bicep")["parameters"]["pythonVersion"]["decorators"]
    allowed = next(decorator["argument"] for decorator in declared if decorator["type"] == "allowed")
    matrix = workflow(WORKFLOWS[0])["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert (matrix[0], matrix[-1]) == (allowed[0], allowed[-1])


def test_no_workflow_is_left_out_of_these_rules() -> None:
    assert sorted((ROOT / ".github/workflows").iterdir()) == WORKFLOWS


def test_ci_fetches_wheels_for_every_python_that_azure_may_run_the_app_on() -> None:
    declared = template("main.bicep")["parameters"]["pythonVersion"]["decorators"]
    allowed = next(decorator["argument"] for decorator in declared if decorator["type"] == "allowed")
    [script] = [step["run"] for step in workflow(WORKFLOWS[0])["jobs"]["package"]["steps"] if "uv pip" in step.get("run", "")]
    assert f"for python in {' '.join(allowed)}; do" in script
    assert "--only-binary :all:" in script


def test_no_stored_secret_signs_in_to_azure() -> None:
    for file in WORKFLOWS:
        assert "secrets." not in file.read_text(), file.name
        for step in steps(file):
            if step.get("uses", "").startswith("Azure/login@"):
                assert set(step["with"]) == {"client-id", "tenant-id", "subscription-id"}


def test_a_deployment_waits_for_the_tests_and_uses_no_stored_password() -> None:
    deploy = workflow(WORKFLOWS[1])["jobs"]["deploy"]
    assert deploy["needs"] == "test"
    assert "secrets." not in WORKFLOWS[1].read_text()
    package = next(step["with"] for step in deploy["steps"] if step.get("uses", "").startswith("Azure/functions-action@"))
    assert package["sku"] == "flexconsumption"
    assert package["remote-build"] == package["respect-funcignore"] == "true"


def test_azd_finds_the_template_and_the_function_app() -> None:
    azure = yaml.safe_load((ROOT / "azure.yaml").read_text())
    assert (ROOT / azure["infra"]["path"] / f"{azure['infra']['module']}.bicep").exists()
    [(name, service)] = azure["services"].items()
    assert service == {"project": ".", "language": "python", "host": "function", "remoteBuild": True}
    tags = body(resources("modules/app.bicep")["app"])["tags"]["function"]["parameters"]
    assert {"'azd-service-name'": name} in tags.values()
    assert "azd-env-name" in str(variable("main.bicep", "allTags"))


def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((INFRA / "github-app-manifest.json").read_text())
    return loaded


def test_the_app_s_manifest_asks_for_what_the_code_needs() -> None:
    asked = manifest()["default_permissions"]
    assert "Self-hosted runners: write" in PERMISSIONS["org"]
    assert "Actions: read" in READ_JOBS
    assert asked == {"organization_self_hosted_runners": "write", "actions": "read", "metadata": "read"}
    assert manifest()["default_events"] == ["workflow_job"]
    assert manifest()["public"] is False


def test_the_manifest_s_webhook_is_the_function_s_route() -> None:
    prefix = read_host_json(ROOT).route_prefix
    routes = {f"/{prefix}{function.trigger['route']}" for function in read_functions(ROOT) if function.name == "webhook"}
    assert {urlsplit(manifest()["hook_attributes"]["url"]).path} == routes


def test_the_link_in_the_docs_asks_for_the_same_as_the_manifest() -> None:
    link = re.search(r"https://github\.com/organizations/\S+/settings/apps/new\?\S+", (ROOT / "docs/deploy.md").read_text())
    assert link is not None
    query = {name: values[0] for name, values in parse_qs(urlsplit(link[0]).query).items()}
    permissions = manifest()["default_permissions"]
    assert {name: query.get(name) for name in permissions} == permissions
    assert query["events[]"] == manifest()["default_events"][0]
    assert query["public"] == "false"
