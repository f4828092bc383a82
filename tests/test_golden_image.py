"""Golden images, as far as they can be checked without Azure: the template, the workflow, and the scripts run for real."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from aiohttp import web

from runnerpool.config import AzureConfig
from runnerpool.ports import RunnerPackage
from runnerpool.vm_config import VmConfig
from tests.real_linux import Machine, fill_archive, serving
from tests.real_linux import debian as debian
from tests.real_linux import machine as machine
from tests.test_real_linux import PACKAGE, SHA256, TOKEN, user_data

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "infra/image"
WORKFLOW = ROOT / ".github/workflows/golden-image.yml"


# ---------------------------------------------------------------------------------------------- the template


def plain(node: Any) -> Any:
    """What the parser gives, without the quotes that it leaves around strings, and without its own keys."""
    if isinstance(node, dict):
        return {plain(key): plain(value) for key, value in node.items() if not key.startswith("__")}
    if isinstance(node, list):
        return [plain(item) for item in node]
    return json.loads(node) if isinstance(node, str) and re.fullmatch(r'"[^"\\]*"', node) else node


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    parsed: dict[str, Any] = plain(hcl2.loads((IMAGE / "runner.pkr.hcl").read_text()))
    return parsed


def variables(template: dict[str, Any]) -> dict[str, Any]:
    return {name: body for entry in template["variable"] for name, body in entry.items()}


def builds(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    [build] = template["build"]
    bodies = [entry["azure-arm.ubuntu"] for entry in build["source"]]
    return {body["name"]: body for body in bodies}


def strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from strings(child)


def test_the_template_uses_every_variable_that_it_declares_and_no_other(template: dict[str, Any]) -> None:
    used = {name for text in strings(template) for name in re.findall(r"\bvar\.(\w+)", text)}
    assert used == set(variables(template))


def test_the_template_and_the_pool_file_have_the_same_defaults(template: dict[str, Any]) -> None:
    azure, vm = AzureConfig(), VmConfig(sizes=("Standard_D4ads_v5",))
    assert variables(template)["resource_group"]["default"] == azure.resource_group
    assert variables(template)["replication_regions"]["default"] == [azure.location]
    assert variables(template)["gallery"]["default"] == f"{azure.name_prefix}_gallery"
    [source] = template["source"]
    ubuntu = source["azure-arm"]["ubuntu"]
    image = [ubuntu["image_publisher"], ubuntu["image_offer"], builds(template)["x64"]["image_sku"], "latest"]
    assert ":".join(image) == vm.image


def test_each_architecture_has_an_image_of_its_own_that_the_readme_makes_and_a_pool_may_name(template: dict[str, Any]) -> None:
    readme = (IMAGE / "README.md").read_text()
    for arch, body in builds(template).items():
        [destination] = body["shared_image_gallery_destination"]
        name = destination["image_name"]
        assert name.endswith(f"-{arch}")
        assert name in readme
        image = f"/subscriptions/s/resourceGroups/hw-rg/providers/Microsoft.Compute/galleries/hw_gallery/images/{name}"
        assert VmConfig(sizes=(body["vm_size"],), image=image).image == image
    assert set(builds(template)) == {"x64", "arm64"}


def test_the_files_that_the_template_takes_along_are_there(template: dict[str, Any]) -> None:
    named = [text for text in strings(template) if text.startswith("${path.root}/")]
    assert len(named) == 3
    assert all((IMAGE / text.removeprefix("${path.root}/")).is_file() for text in named)


def test_the_workflow_builds_what_the_template_has_and_gives_it_every_variable_that_has_no_default(
    template: dict[str, Any],
) -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert set(workflow[True]) == {"schedule", "workflow_dispatch"}  # YAML reads `on` as a truth
    assert workflow["jobs"]["build"]["permissions"] == {"contents": "read", "id-token": "write"}
    job = workflow["jobs"]["build"]
    assert set(job["strategy"]["matrix"]["arch"]) == set(builds(template))
    text = WORKFLOW.read_text()
    given = set(re.findall(r'-var "(\w+)=', text))
    needed = {name for name, body in variables(template).items() if "default" not in body}
    assert needed <= given <= set(variables(template))
    assert "client-secret" not in text


SHELLCHECK = pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="this machine has no shellcheck: apt-get install shellcheck"
)


@SHELLCHECK
def test_shellcheck_has_nothing_to_say_about_the_images_scripts(tmp_path: Path) -> None:
    steps = [step["run"] for step in yaml.safe_load(WORKFLOW.read_text())["jobs"]["build"]["steps"] if "run" in step]
    scripts = sorted(IMAGE.glob("*.sh"))
    for number, step in enumerate(steps):
        script = tmp_path / f"step-{number}.sh"
        script.write_text(f"#!/bin/bash\n{step}")
        scripts.append(script)
    checked = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


# ---------------------------------------------------------------------------------------------- the scripts


@pytest.mark.timeout(600)  # it may be the one that makes the Debian root
async def test_a_vm_from_a_provisioned_image_installs_nothing_more(machine: Machine) -> None:
    async def download(_: web.Request) -> web.Response:
        return web.Response(body=PACKAGE)

    await fill_archive(machine)
    machine.put("usr/local/bin/waagent", '#!/bin/sh\necho "$*" >/var/lib/waagent-was-asked\n', 0o755)
    machine.put("tmp/bootstrap.sh", (ROOT / "runnerpool/vm/bootstrap.sh").read_text())
    for script in ("provision.sh", "clean.sh"):
        machine.put(f"tmp/{script}", (IMAGE / script).read_text())
    async with serving(await machine.listener("127.0.0.1"), ("/runner.tar.gz", download)) as url:
        package = ["env", "RUNNER_VERSION=2.330.0", f"RUNNER_URL={url}/runner.tar.gz", f"RUNNER_SHA256={SHA256}"]
        assert "runner 2.330.0" in await machine.run(*package, "bash", "/tmp/provision.sh")
        assert "the image has a runner" in await machine.run(*package, "bash", "/tmp/provision.sh")
    await machine.run("bash", "/tmp/clean.sh")
    assert machine.read("var/lib/waagent-was-asked") == "-force -deprovision+user\n"
    assert machine.read("etc/machine-id") == ""
    for file in (machine.root / "packages").glob("*"):  # nothing can be installed any more
        file.unlink() if file.is_file() else shutil.rmtree(file)

    machine.put("var/log/order", "", 0o666)
    gone = RunnerPackage("2.330.0", "http://127.0.0.1:9/runner.tar.gz", SHA256)
    await machine.first_boot(user_data(package=gone))
    await machine.until(TOKEN, phase="waiting", runner_version="2.330.0")
    log = machine.setup_log()
    assert {"the image has: curl git sudo docker", "the image has a runner", "the runner is 2.330.0"} <= set(log)
    assert not any(line.startswith(("installing: ", "downloading ")) for line in log)
