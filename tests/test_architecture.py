"""The house: which module may import which, where each SDK lives, and how large a module may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "runnerpool"

FLOORS: tuple[tuple[str, str], ...] = (
    (
        "what things are",
        "errors model ports labels pool_values vm_config config settings findings vm vm.token vm.agent vm.agent_windows",
    ),
    (
        "what follows from them",
        "budget capacity watchdog eviction lifecycle demand deletion actions plan decide explain retry rows delivery pool_messages "
        "pool_file check security_rules redelivery vm.userdata",
    ),
    (
        "one service each",
        "ledger tables queues arm arm_reads compute compute_catalog network network_view github github_client github_errors "
        "github_hooks github_setup agent_client alerts",
    ),
    (
        "what happens when",
        "intake acting register launch withdraw acts provision gather watch sweep follow moves reconcile status",
    ),
    (
        "the app put together, and the command line",
        "planner app front heartbeat console overview story drain webhook doctor doctor_azure doctor_compute doctor_network "
        "doctor_github doctor_webhook doctor_storage doctor_alerts __main__",
    ),
)
FLOOR_OF = {module: floor for floor, (_, modules) in enumerate(FLOORS) for module in modules.split()}

SDKS = {
    "azure.mgmt.compute": {"compute", "compute_catalog"},
    "azure.mgmt.network": {"network", "network_view"},
    "azure.mgmt": {"compute", "compute_catalog", "network", "network_view", "arm", "arm_reads"},
    "azure.data.tables": {"tables"},
    "azure.storage.queue": {"queues"},
    "azure.identity": {"arm", "app"},
    "azure.core": {"arm", "arm_reads", "compute", "network", "tables", "queues", "app"},  # app: the name of a credential's type
    "azure.functions": set(),
    "githubkit": {"github_client", "github_errors"},
    "httpx": {"github", "github_client", "github_errors", "agent_client"},
    "aiohttp": {"arm", "tables", "alerts"},
    "smtplib": {"alerts"},
    "tenacity": {"retry"},
    "yaml": {"pool_file"},
    "pydantic": {"config", "vm_config", "pool_values", "pool_file", "github_errors"},
    "cronsim": {"config"},
}
"""Each service's SDK and each library with a manner of its own, and the only modules that import it."""

LONGEST = {"vm.agent": 400, "model": 380}
"""Lines. The agent is copied to the VM as one file; all that affects a state stands in `model`."""

PURE = [
    "budget",
    "capacity",
    "watchdog",
    "eviction",
    "lifecycle",
    "demand",
    "deletion",
    "plan",
    "decide",
    "explain",
    "redelivery",
    "watch",
    "moves",
    "model",
    "labels",
]


@cache
def modules() -> dict[str, Path]:
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    names = [".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return dict(zip(names, paths, strict=True))


@cache
def imports(module: str) -> frozenset[str]:
    """Everything that a module imports at run time, at its top or inside a function, by whole names."""
    return frozenset(_imported(ast.parse(modules()[module].read_text())))


def _imported(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(package), names=names):
                yield from (f"{package}.{alias.name}" for alias in names)
            case _:
                yield from _imported(child)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def own(module: str) -> set[str]:
    """The modules of ours that a module imports."""
    found = set()
    for name in imports(module):
        if within(name, "runnerpool"):
            path = name.removeprefix("runnerpool").removeprefix(".")
            found.add(next(one for one in (path, path.rpartition(".")[0], path.split(".")[0]) if one in modules()))
    return found - {module}


def test_every_module_has_its_floor() -> None:
    assert set(FLOOR_OF) == set(modules())


@pytest.mark.parametrize("module", sorted(FLOOR_OF))
def test_imports_point_down_only(module: str) -> None:
    above = {other for other in own(module) if FLOOR_OF[other] > FLOOR_OF[module]}
    assert not above


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {module: own(module) for module in modules()}
    while left:
        free = [module for module, needs in left.items() if not needs & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for module in free:
            del left[module]


@pytest.mark.parametrize("module", ["errors", "model", "ports"])
def test_the_contract_between_the_parts_imports_nothing_of_ours(module: str) -> None:
    assert not own(module)


@pytest.mark.parametrize("sdk", sorted(SDKS))
def test_an_sdk_is_imported_in_its_place_only(sdk: str) -> None:
    users = {module for module in modules() if any(within(name, sdk) for name in imports(module))}
    assert users <= SDKS[sdk]


def test_what_is_delivered_imports_nothing_that_is_not() -> None:
    strangers = {
        module: name
        for module in modules()
        for name in imports(module)
        if within(name, "sandbox") or within(name, "tests") or within(name, "function_app")
    }
    assert not strangers


def test_the_agent_needs_the_standard_library_alone() -> None:
    assert {name.split(".")[0] for name in imports("vm.agent")} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", PURE)
def test_decisions_read_no_clock_draw_no_lots_and_wait_for_nothing(module: str) -> None:
    forbidden = ("asyncio", "logging", "time", "random", "secrets", "os", "socket")
    assert not {name for name in imports(module) if name.split(".")[0] in forbidden}
    source = modules()[module].read_text()
    assert ".now(" not in source
    assert "async def" not in source


@pytest.mark.parametrize("module", sorted(FLOOR_OF))
def test_no_module_is_longer_than_a_reader_can_hold(module: str) -> None:
    assert len(modules()[module].read_text().splitlines()) <= LONGEST.get(module, 350)


WEBHOOK = """
import asyncio, hashlib, hmac, json, os, sys
os.environ["GITHUB_WEBHOOK_SECRET"] = "s3cret"
import function_app
from runnerpool import front

job = {"id": 1, "labels": ["self-hosted", "linux", "x64"], "created_at": "2026-03-02T00:00:00Z"}
repository = {"full_name": "octo-org/hello", "private": True}
body = json.dumps({"action": "queued", "workflow_job": job, "repository": repository}).encode()
signature = "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
headers = {"X-Hub-Signature-256": signature, "X-GitHub-Event": "workflow_job", "Content-Type": "application/json"}
print(json.dumps([front.receive(body, headers).status, sorted(sys.modules)]))
"""


def test_a_delivery_is_answered_without_importing_what_only_planning_needs() -> None:
    """A cold start is mostly imports, and GitHub waits 10 seconds."""
    ran = subprocess.run([sys.executable, "-c", WEBHOOK], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    status, loaded = json.loads(ran.stdout)
    heavy = ("azure.mgmt", "azure.data", "azure.identity", "azure.core", "githubkit", "httpx", "aiohttp", "tenacity")
    assert status == 202
    assert not [name for name in loaded if any(within(name, package) for package in heavy)]
    assert not [name for name in loaded if within(name, "runnerpool.ledger") or within(name, "runnerpool.planner")]
