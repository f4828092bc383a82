"""What a VM is given at birth: the rendered user-data, read back as cloud-init reads it."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from runnerpool.config import PoolConfig
from runnerpool.ports import JitConfig, RunnerPackage
from runnerpool.vm import AGENT_PORT, agent, userdata
from runnerpool.vm.token import agent_token
from runnerpool.vm.userdata import LARGEST, UserDataTooLarge, render
from sandbox.vms import files_of

PACKAGE = RunnerPackage("2.330.0", "https://github.com/actions/runner/releases/download/v2.330.0/runner-x64.tar.gz", "ab" * 32)
TOKEN = agent_token("a key", "hw-linux-abc")
ROOT = Path(__file__).parents[1]


def pool(**vm: Any) -> PoolConfig:
    return PoolConfig.model_validate({"labels": ["linux", "x64"], "vm": {"sizes": ["Standard_D4ads_v5"], **vm}})


def rendered(shape: PoolConfig, *, package: RunnerPackage | None = PACKAGE, jit: JitConfig | None = None) -> str:
    return render(pool=shape, name="hw-linux-abc", agent_token=TOKEN, package=package, jit=jit)


def files(text: str) -> dict[str, bytes]:
    return {path: content for path, content, _ in files_of(text)}


def assignments(content: bytes) -> Mapping[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(content.decode()))


def test_the_agent_and_its_service_arrive_as_they_are_in_the_repository() -> None:
    here, laid_out = Path(agent.__file__).parent, files(rendered(pool()))
    assert laid_out["/opt/runnerpool/agent.py"] == (here / "agent.py").read_bytes()
    assert laid_out["/opt/runnerpool/bootstrap.sh"] == (here / "bootstrap.sh").read_bytes()
    assert laid_out["/etc/systemd/system/runnerpool-agent.service"] == (here / "runnerpool-agent.service").read_bytes()


def test_the_agent_is_told_who_it_is() -> None:
    config = json.loads(files(rendered(pool()))[f"/{agent.CONFIG}"])
    assert config == {
        "name": "hw-linux-abc",
        "token": TOKEN,
        "address": "",
        "port": AGENT_PORT,
        "user": "runner",
        "runner_directory": "/opt/actions-runner",
        "scheduled_events": "",
    }


@pytest.mark.parametrize(("priority", "watched"), [("regular", False), ("spot", True), ("spot-then-regular", True)])
def test_evictions_are_watched_for_where_they_can_happen(priority: str, watched: bool) -> None:
    config = json.loads(files(rendered(pool(priority=priority)))[f"/{agent.CONFIG}"])
    assert bool(config["scheduled_events"]) is watched


def test_secrets_are_for_root_alone() -> None:
    modes = {path: mode for path, _, mode in files_of(rendered(pool(), jit=JitConfig(7, "c2VjcmV0")))}
    secret = {f"/{agent.CONFIG}", f"/{agent.BIRTH}", "/etc/runnerpool/environment", "/etc/runnerpool/bootstrap.env"}
    assert {path for path, mode in modes.items() if not mode & 0o077} == secret | {"/opt/runnerpool/setup.sh"}


def test_a_configuration_at_birth_is_handed_over_and_its_absence_is_an_empty_file() -> None:
    birth = files(rendered(pool(), jit=JitConfig(7, "c2VjcmV0")))[f"/{agent.BIRTH}"]
    assert json.loads(birth) == {"runner_id": 7, "jit_config": "c2VjcmV0"}
    assert files(rendered(pool()))[f"/{agent.BIRTH}"] == b""


def test_the_bootstrap_learns_which_runner_to_install_and_what_jobs_may() -> None:
    settings = assignments(files(rendered(pool(job_sudo=False)))["/etc/runnerpool/bootstrap.env"])
    assert settings == {
        "RUNNER_VERSION": PACKAGE.version,
        "RUNNER_URL": PACKAGE.url,
        "RUNNER_SHA256": PACKAGE.sha256,
        "JOB_SUDO": "false",
    }
    from_image = assignments(files(rendered(pool(), package=None))["/etc/runnerpool/bootstrap.env"])
    assert from_image == {"RUNNER_VERSION": "", "RUNNER_URL": "", "RUNNER_SHA256": "", "JOB_SUDO": "true"}


def test_the_pools_own_files_travel_inside(tmp_path: Path) -> None:
    script, bundle = tmp_path / "setup.sh", tmp_path / "ca.pem"
    script.write_bytes(b"#!/bin/bash\r\necho 'any $bytes' \xff\n")
    bundle.write_text("-----BEGIN CERTIFICATE-----\n")
    laid_out = files(rendered(pool(setup_script=str(script), proxy={"ca_bundle": str(bundle)})))
    assert laid_out["/opt/runnerpool/setup.sh"] == script.read_bytes()
    assert laid_out["/etc/runnerpool/authorities.pem"] == bundle.read_bytes()
    assert assignments(laid_out["/etc/runnerpool/environment"]) == {"NODE_EXTRA_CA_CERTS": "/etc/runnerpool/authorities.pem"}


def test_a_proxy_is_set_in_both_spellings_and_never_for_azures_own_addresses() -> None:
    proxy = {"http_proxy": "http://user:p$w'@proxy.example.com:3128", "no_proxy": ".corp.example.com"}
    environment = assignments(files(rendered(pool(proxy=proxy)))["/etc/runnerpool/environment"])
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        assert environment[name] == environment[name.upper()]
    assert environment["https_proxy"] == proxy["http_proxy"]
    assert environment["no_proxy"] == "localhost,127.0.0.1,169.254.169.254,168.63.129.16,.corp.example.com"
    assert files(rendered(pool()))["/etc/runnerpool/environment"] == b""


def test_a_whole_vm_fits_many_times_into_what_azure_takes() -> None:
    jit = JitConfig(7, base64.b64encode(os.urandom(5000)).decode())
    text = rendered(pool(), jit=jit)
    assert len(text.encode()) == len(text) < LARGEST / 2


def test_a_script_that_does_not_fit_is_refused_by_name_and_size(tmp_path: Path) -> None:
    script = tmp_path / "setup.sh"
    script.write_bytes(os.urandom(60_000))
    with pytest.raises(UserDataTooLarge, match=r"pool linux-x64 has \d+ bytes .* 65535: setup_script"):
        rendered(pool(setup_script=str(script)))


def test_the_same_vm_gives_the_same_text() -> None:
    assert rendered(pool()) == rendered(pool())


def test_the_document_is_cloud_config_and_nothing_in_it_is_left_to_fill_in() -> None:
    text = rendered(pool(), jit=JitConfig(7, "c2VjcmV0"))
    assert text.startswith("#cloud-config\n")
    assert "$" not in text
    document = yaml.safe_load(text)
    assert set(document) == {"write_files", "runcmd"}
    assert all(set(entry) == {"path", "permissions", "encoding", "content"} for entry in document["write_files"])
    assert document["runcmd"] == [["/opt/runnerpool/bootstrap.sh"]]


def test_the_bootstrap_knows_the_same_user_directory_and_files() -> None:
    here = Path(agent.__file__).parent
    bootstrap = (here / "bootstrap.sh").read_text()
    assert f"runner_user={userdata.RUNNER_USER}\n" in bootstrap
    assert f"runner_directory={userdata.RUNNER_DIRECTORY}\n" in bootstrap
    assert f"state=/{Path(agent.READY).parent}\n" in bootstrap
    assert f"log=/{agent.SETUP_LOG}\n" in bootstrap
    readers = (
        bootstrap,
        agent.CONFIG,
        agent.BIRTH,
        (here / "runnerpool-agent.service").read_text(),
        rendered(pool()).split("runcmd")[1],
    )
    for path in files(rendered(pool())):
        assert any(path.lstrip("/") in reader or Path(path).name in reader for reader in readers), f"nobody reads {path}"
    subprocess.run(["bash", "-n", str(here / "bootstrap.sh")], check=True)


# ---------------------------------------------------------------------------------------------- Windows


GALLERY_IMAGE = "/subscriptions/s/resourceGroups/hw-rg/providers/Microsoft.Compute/galleries/hw_gallery/images/runner-windows"


def windows(jit: JitConfig | None = None, package: RunnerPackage | None = PACKAGE, **vm: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(rendered(pool(os="windows", image=GALLERY_IMAGE, **vm), package=package, jit=jit))
    document["files"] = {path: gzip.decompress(base64.b64decode(content)) for path, content in document["files"].items()}
    return document


def test_windows_gets_json_with_the_same_agent_in_the_same_places(tmp_path: Path) -> None:
    script = tmp_path / "setup.ps1"
    script.write_text("exit 0\r\n")
    here, document = Path(agent.__file__).parent, windows(JitConfig(7, "c2VjcmV0"), setup_script=str(script))
    assert document["files"]["opt/runnerpool/agent.py"] == (here / "agent.py").read_bytes()
    assert document["files"]["opt/runnerpool/agent_windows.py"] == (here / "agent_windows.py").read_bytes()
    assert document["files"]["opt/runnerpool/setup.ps1"] == b"exit 0\r\n"
    assert json.loads(document["files"][agent.BIRTH]) == {"runner_id": 7, "jit_config": "c2VjcmV0"}
    own = json.loads(document["files"][agent.CONFIG])
    assert (own["name"], own["token"], own["user"], own["port"]) == ("hw-linux-abc", TOKEN, "", AGENT_PORT)
    assert document["runner"] == {"version": PACKAGE.version, "url": PACKAGE.url, "sha256": PACKAGE.sha256}
    assert windows(package=None)["runner"]["url"] == ""
    assert windows()["environment"] == {}


def test_the_start_up_task_reads_every_file_that_windows_is_given() -> None:
    task = (ROOT / "infra/image/windows/start.ps1").read_text().replace("\\", "/")
    for path in windows()["files"]:
        assert path in task or Path(path).name in (Path(agent.CONFIG).name, Path(agent.BIRTH).name, "agent.py"), path
    assert f"LocalPort {AGENT_PORT}" in task
    assert f"/{Path(agent.READY).parent}" in task
    assert f"/{agent.SETUP_LOG}" in task


def test_a_proxys_authorities_are_found_where_windows_puts_them(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\n")
    environment = windows(proxy={"ca_bundle": str(bundle)})["environment"]
    assert environment == {"NODE_EXTRA_CA_CERTS": "C:/runnerpool/etc/runnerpool/authorities.pem"}


@pytest.mark.parametrize(
    ("vm", "words"),
    [
        ({"image": "MicrosoftWindowsServer:WindowsServer:2022-datacenter:latest"}, "gallery image that has our start-up task"),
        ({"image": GALLERY_IMAGE.replace("galleries/hw_gallery/", "")}, "gallery image that has our start-up task"),
        ({}, "gallery image that has our start-up task"),  # the default is Ubuntu's
        ({"image": GALLERY_IMAGE, "job_sudo": False}, "cannot be refused on windows"),
    ],
)
def test_windows_is_refused_where_the_preview_could_not_work(vm: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        pool(os="windows", **vm)


WINDOWS_AGENT = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
import agent, agent_windows
from pathlib import Path
assert ctypes.sizeof(agent_windows.MemoryStatus) == 64
assert agent.memory is agent_windows.memory and agent.process is agent_windows.process
agent.process = lambda pid: (pid, 1)  # these three ask Windows itself
agent.worker_runs = lambda session: False
agent.memory = lambda: {"total": 2, "free": 1}
machine = agent.Agent(Path(sys.argv[2]))
(machine.root / agent.MARKS / "job-started.ps1").touch()
machine.observe()
assert machine.state["job_seen"]
assert machine.identity()["env"]["ACTIONS_RUNNER_HOOK_JOB_STARTED"].endswith("job-started.ps1")
assert machine.status()["memory"] == {"total": 2, "free": 1}
"""


def test_the_windows_agent_is_the_same_one_with_other_answers(tmp_path: Path) -> None:
    for path, content in windows()["files"].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    command = [sys.executable, "-S", "-c", WINDOWS_AGENT, str(tmp_path / "opt/runnerpool"), str(tmp_path)]
    subprocess.run(command, check=True)


# ---------------------------------------------------------------------------------------------- tokens


def test_a_token_opens_one_machine_only() -> None:
    assert agent_token("key", "hw-linux-a") == agent_token("key", "hw-linux-a")
    assert len({agent_token(key, name) for key in ("key", "other") for name in ("hw-linux-a", "hw-linux-b")}) == 4
    with pytest.raises(ValueError, match="empty"):
        agent_token("", "hw-linux-a")
