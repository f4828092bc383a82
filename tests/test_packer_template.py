"""The Packer template, held by Packer itself as far as Debian's goes, and by what today's azure-arm builder takes.

Debian's Packer is 1.6.6. It knows no `required_plugins` (its azure-arm builder is built in), and its builder wants a managed
image on the way into a gallery. A copy of the template that differs in these two points goes through `packer validate`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_golden_image import IMAGE, ROOT, builds, variables
from tests.test_golden_image import template as template


def obstacle() -> str:
    """Why Packer cannot be asked here, or nothing. From 1.7 on it has to fetch the azure plugin first."""
    if shutil.which("packer") is None:
        return "this machine has no Packer: on Debian, apt-get install packer"
    told = subprocess.run(
        ["packer", "version"], env={"CHECKPOINT_DISABLE": "1"} | os.environ, capture_output=True, text=True, check=True
    )
    version = re.search(r"v(\d+)\.(\d+)", told.stdout)
    return "" if version and (int(version[1]), int(version[2])) < (1, 7) else f"{told.stdout.strip()} has no azure-arm built in"


OBSTACLE = obstacle()
PACKER = pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)
GIVEN = {"subscription_id": "s", "image_version": "2026.1123.1", "runner_version": "2.330.0"}
BOTH = '{x64 = "a", arm64 = "b"}'

# ---------------------------------------------------------------------------------------------- by Packer


def as_older_packer_wants_it(text: str) -> str:
    text, blocks = re.subn(r"(?ms)^packer \{.*?^\}\n", "", text)
    managed = 'managed_image_name = "x"\n  managed_image_resource_group_name = var.resource_group\n  ssh_username'
    text, names = re.subn(r"ssh_username", managed, text, count=1)
    assert (blocks, names) == (1, 1)
    return text


def validate(folder: Path, *arguments: str, sums: str = BOTH, change: tuple[str, str] = ("", "")) -> str:
    """What Packer has to say about the template, with one `change` made to it; nothing where it finds it right."""
    image = folder / "infra/image"
    shutil.copytree(IMAGE, image)
    (folder / "runnerpool/vm").mkdir(parents=True)
    shutil.copy(ROOT / "runnerpool/vm/bootstrap.sh", folder / "runnerpool/vm")
    text = as_older_packer_wants_it((image / "runner.pkr.hcl").read_text())
    assert change[0] in text
    (image / "runner.pkr.hcl").write_text(text.replace(*change) if change[0] else text)
    settings = [f"-var={name}={value}" for name, value in {**GIVEN, "runner_sha256": sums}.items()]
    alone = {"CHECKPOINT_DISABLE": "1", "HOME": str(folder), "PATH": os.environ["PATH"]}  # it would ask for newer versions
    command = ["packer", "validate", *arguments, *settings, "infra/image"]
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is not ("Error: " in done.stdout + done.stderr)
    return " ".join((done.stdout + done.stderr).split())


@PACKER
def test_packer_finds_nothing_wrong_with_the_template(tmp_path: Path) -> None:
    assert validate(tmp_path) == ""


@PACKER
@pytest.mark.parametrize("arch", ["x64", "arm64"])
def test_one_architecture_is_built_with_the_checksum_of_its_own_runner_alone(tmp_path: Path, arch: str) -> None:
    """As the README and the workflow call it. Without that checksum it is refused, so `-only` names a build that is there."""
    assert validate(tmp_path / "with", f"-only=azure-arm.{arch}", sums=f'{{{arch} = "a"}}') == ""
    assert "Error: " in validate(tmp_path / "without", f"-only=azure-arm.{arch}", sums="{}")


@PACKER
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("vm_size ", "vm_sise "), 'An argument named "vm_sise" is not expected here'),
        (("use_azure_cli_auth = true", 'use_azure_cli_auth = "yes"'), "a bool is required"),
        (("image_offer  ", "image_version "), "image_offer must be specified"),
        (("gallery_name ", "gallery "), 'An argument named "gallery" is not expected here'),
        (("skip_clean ", "skip_cleaning "), 'An argument named "skip_cleaning" is not expected here'),
        (("/clean.sh", "/cleen.sh"), "no such file"),
        (("var.gallery\n", "var.galery\n"), 'does not have an attribute named "galery"'),
    ],
)
def test_a_slip_in_the_template_would_not_get_past_packer(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    assert words in validate(tmp_path, change=change)


# ---------------------------------------------------------------------------------------------- by today's builder

TEXT, TRUTH, LIST, MAP = "string", "bool", "list(string)", "map(string)"
OPTIONS = {
    "name": TEXT,  # Packer's own: what the build of this source is called
    "use_azure_cli_auth": TRUTH,
    "subscription_id": TEXT,
    "tenant_id": TEXT,
    "client_id": TEXT,
    "client_jwt": TEXT,
    "build_resource_group_name": TEXT,
    "temp_resource_group_name": TEXT,
    "location": TEXT,
    "os_type": TEXT,
    "os_disk_size_gb": "number",
    "vm_size": TEXT,
    "image_publisher": TEXT,
    "image_offer": TEXT,
    "image_sku": TEXT,
    "image_version": TEXT,
    "ssh_username": TEXT,
    "azure_tags": MAP,
    "security_type": TEXT,
    "secure_boot_enabled": TRUTH,
    "vtpm_enabled": TRUTH,
    "virtual_network_name": TEXT,
    "virtual_network_subnet_name": TEXT,
    "virtual_network_resource_group_name": TEXT,
    "allowed_inbound_ip_addresses": LIST,
}
"""Of the options of azure-arm in version 2 of the azure plugin those that an image made from a marketplace image could want:
https://developer.hashicorp.com/packer/integrations/hashicorp/azure/latest/components/builder/arm"""
DESTINATION = {
    "subscription": TEXT,
    "resource_group": TEXT,
    "gallery_name": TEXT,
    "image_name": TEXT,
    "image_version": TEXT,
    "replication_regions": LIST,
    "storage_account_type": TEXT,
    "use_shallow_replication": TRUTH,
}
REQUIRED = {"subscription_id", "os_type", "vm_size", "image_publisher", "image_offer", "image_sku", "ssh_username"}
"""Without a `vm_size` it would take a Standard_A1, which Azure has retired."""
OPTIONAL = {"storage_account_type", "use_shallow_replication"}


def kind(value: Any, template: dict[str, Any]) -> str:
    """The type of a value, or of the variable that it stands for."""
    if variable := re.fullmatch(r"\$\{var\.(\w+)\}", value) if isinstance(value, str) else None:
        declared: str = variables(template)[variable[1]]["type"]
        return declared.removeprefix("${").removesuffix("}")
    return {bool: TRUTH, int: "number", str: TEXT, list: LIST, dict: MAP}[type(value)]


def sources(template: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the builder is given for each image: the common source with what its build adds."""
    [source] = template["source"]
    for body in builds(template).values():
        yield {**source["azure-arm"]["ubuntu"], **body}


def test_every_option_of_the_builder_exists_and_has_its_type_and_none_that_it_needs_is_left_out(template: dict[str, Any]) -> None:
    for source in sources(template):
        [destination] = source.pop("shared_image_gallery_destination")
        assert {name: kind(value, template) for name, value in source.items()} == {name: OPTIONS[name] for name in source}
        assert {name: kind(value, template) for name, value in destination.items()} == {
            name: DESTINATION[name] for name in destination
        }
        assert source.keys() >= REQUIRED
        assert destination.keys() >= DESTINATION.keys() - OPTIONAL


def test_a_build_in_a_resource_group_that_exists_names_no_location(template: dict[str, Any]) -> None:
    """The builder refuses both together: it takes the group's."""
    for source in sources(template):
        assert len({"build_resource_group_name", "location"} & source.keys()) == 1


def test_the_plugin_that_brings_the_builder_is_named(template: dict[str, Any]) -> None:
    [packer] = template["packer"]
    [plugins] = packer["required_plugins"]
    assert plugins["azure"] == {"source": "github.com/hashicorp/azure", "version": "~> 2"}
