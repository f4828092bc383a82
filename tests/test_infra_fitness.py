"""What Azure gets: host.json, bindings, requirements, package and templates, held against each other."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from runnerpool.app import LAST_ATTEMPT, PROVISION_TIME
from sandbox.host_app import HTTP_GROUP, Function, read_functions, read_host_json
from tests.bicep_files import INFRA, body, resources, template, variable
from tests.test_infra_settings import BY_IDENTITY, sandbox_settings

ROOT = INFRA.parent
HOST: dict[str, Any] = json.loads((ROOT / "host.json").read_text())

PACKAGE = {"function_app.py", "host.json", "pool-config.yaml", "requirements.txt", "runnerpool"}
"""What is deployed, and nothing beside it."""


@pytest.fixture(scope="module")
def functions() -> list[Function]:
    return read_functions(ROOT)


def bindings(functions: list[Function]) -> list[dict[str, Any]]:
    return [dict(binding) for function in functions for binding in (function.trigger, *function.outputs)]


# ---------------------------------------------------------------------------------------------- connections, queues, tables


def test_every_connection_that_a_binding_names_is_set_for_an_identity_and_as_a_string(
    functions: list[Function], tmp_path: Path
) -> None:
    connections = {binding["connection"] for binding in bindings(functions) if "connection" in binding}
    by_identity = variable("modules/app.bicep", "hostSettings")
    by_string = sandbox_settings(tmp_path)
    for connection in connections:
        assert {f"{connection}__{part}" for part in BY_IDENTITY} <= set(by_identity)
        assert connection in by_string
    # the timer's lock lies there too
    assert connections == {"AzureWebJobsStorage"}


def test_the_queues_and_tables_of_the_bindings_are_made(functions: list[Function]) -> None:
    queues = {binding["queueName"] for binding in bindings(functions) if binding["type"] in ("queueTrigger", "queue")}
    tables = {binding["tableName"] for binding in bindings(functions) if binding["type"] == "table"}
    poison = {f"{name}-poison" for name in queues}
    assert set(variable("modules/storage.bicep", "queueNames")) == queues | poison
    assert set(variable("modules/storage.bicep", "tableNames")) == tables | {"history"}


def test_the_addresses_in_the_outputs_are_the_functions_routes(functions: list[Function]) -> None:
    prefix = read_host_json(ROOT).route_prefix
    routes = {"/".join(filter(None, (prefix, function.trigger["route"]))) for function in functions if function.group == HTTP_GROUP}
    outputs = template("main.bicep")["outputs"]
    told = {re.sub(r"^https://.*?\}/", "", outputs[name]["value"]) for name in ("WEBHOOK_URL", "STATUS_URL")}
    assert told == routes


# ---------------------------------------------------------------------------------------------- scale and time


def test_instances_are_kept_for_groups_that_the_app_has(functions: list[Function]) -> None:
    groups = {function.group if function.group == HTTP_GROUP else f"function:{function.group}" for function in functions}
    for profile in variable("main.bicep", "profiles").values():
        assert {ready["name"] for ready in profile["alwaysReady"]} <= groups
        assert profile["instanceMemoryMB"] in (512, 2048, 4096)
        assert 1 <= profile["perInstanceConcurrency"] <= 1000


def test_the_frugal_profile_keeps_nothing_running() -> None:
    profiles = variable("main.bicep", "profiles")
    assert profiles["frugal"]["alwaysReady"] == []
    assert template("main.bicep")["parameters"]["profile"]["default"] == "frugal"


def test_the_host_s_limits_are_those_that_the_app_reckons_with() -> None:
    host = read_host_json(ROOT)
    assert host.queues.max_dequeue_count == LAST_ATTEMPT
    assert host.function_timeout - PROVISION_TIME.total_seconds() >= 60
    assert host.queues.base64


def test_the_extension_bundle_is_one_that_has_tables_and_runs_on_flex_consumption() -> None:
    assert HOST["version"] == "2.0"
    assert HOST["extensionBundle"] == {"id": "Microsoft.Azure.Functions.ExtensionBundle", "version": "[4.*, 5.0.0)"}


def test_the_python_in_azure_is_one_that_the_project_supports() -> None:
    declared = template("main.bicep")["parameters"]["pythonVersion"]
    allowed = next(decorator["argument"] for decorator in declared["decorators"] if decorator["type"] == "allowed")
    assert declared["default"] == allowed[-1]
    assert f'requires-python = ">={allowed[0]}"' in (ROOT / "pyproject.toml").read_text()
    runtime = body(resources("modules/app.bicep")["app"])["properties"]["functionAppConfig"]["runtime"]
    assert runtime == {"name": "python", "version": "pythonVersion"}


# ---------------------------------------------------------------------------------------------- the package


def tracked() -> set[str]:
    """What git would hand to a fresh clone, by its first part."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {line.split("/")[0] for line in listed.stdout.splitlines()}


def test_the_package_holds_the_app_and_nothing_else() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("only a clone knows what belongs to the project")
    ignored = (ROOT / ".funcignore").read_text().split()
    assert {name for name in tracked() if not any(fnmatch(name, pattern) for pattern in ignored)} == PACKAGE


def test_the_zip_that_the_docs_make_holds_the_same() -> None:
    found = re.search(r"git archive --format=zip --output=\S+ HEAD (.*)", (ROOT / "docs/deploy.md").read_text())
    assert found is not None
    assert set(found[1].split()) == PACKAGE


def test_the_app_imports_nothing_that_is_not_in_the_package() -> None:
    distributions = metadata.packages_distributions()
    required = {_plain(name) for name, _ in requirements("requirements.txt")}
    for file in [ROOT / "function_app.py", *(ROOT / "runnerpool").rglob("*.py")]:
        for module in _imports(file):
            if module not in sys.stdlib_module_names and module != "runnerpool":
                assert {_plain(name) for name in distributions[module]} & required, f"{file.name} imports {module}"


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def requirements(name: str) -> list[tuple[str, str]]:
    """Name and version of each line that holds for this Python."""
    from packaging.requirements import Requirement

    lines = (line.split(" #")[0].strip() for line in (ROOT / name).read_text().splitlines())
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [(found.name, str(found.specifier)) for found in parsed if found.marker is None or found.marker.evaluate()]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_is_pinned() -> None:
    assert not [name for name, version in requirements("requirements.txt") if not re.fullmatch(r"==[\w.]+", version)]


def test_nothing_in_the_package_is_for_development_only() -> None:
    deployed = {name for name, _ in requirements("requirements.txt")}
    declared = (ROOT / "pyproject.toml").read_text()
    development = declared[declared.index("[dependency-groups]") : declared.index("[tool.ruff]")]
    named = set(re.findall(r'^\s+"([\w-]+)', development, re.MULTILINE))
    assert named
    assert not deployed & named


def test_nothing_in_the_package_needs_a_compiler() -> None:
    """A wheel from PyPI says manylinux or any; one that pip had to compile here says linux."""
    for name, _ in requirements("requirements.txt"):
        wheel = metadata.distribution(name).read_text("WHEEL") or ""
        tags = re.findall(r"^Tag: (\S+)$", wheel, re.MULTILINE)
        assert tags, name
        assert not [tag for tag in tags if tag.rsplit("-", 1)[-1].startswith("linux_")], f"{name} was compiled on this machine"
