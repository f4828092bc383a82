"""The user-data of a runner VM: the agent, the bootstrap and what this one VM has to know.

For Linux it is `cloud-init.yaml`, filled in. Windows has no cloud-init, and runs nothing of what it is given: there it is JSON for
the start-up task that the image brings (infra/image/windows/start.ps1).
"""

from __future__ import annotations

import base64
import gzip
import json
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Template

from runnerpool.config import PoolConfig
from runnerpool.ports import JitConfig, RunnerPackage
from runnerpool.vm import AGENT_PORT
from runnerpool.vm_config import Proxy, VmConfig

LARGEST = 64 * 1024 - 1
"""Bytes of user-data that Azure takes, before base64."""

SCHEDULED_EVENTS = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01"
RUNNER_USER = "runner"
RUNNER_DIRECTORY = "/opt/actions-runner"
"""Both are the bootstrap's too. An image that has a runner in this directory saves its VMs the download."""

AUTHORITIES = "/etc/runnerpool/authorities.pem"
NEVER_PROXIED = ("localhost", "127.0.0.1", "169.254.169.254", "168.63.129.16")
"""This machine, and the two addresses at which Azure's platform answers from the VM's own host."""


class UserDataTooLarge(ValueError):
    """The pool's setup_script or ca_bundle makes the user-data larger than Azure takes."""


def render(*, pool: PoolConfig, name: str, agent_token: str, package: RunnerPackage | None, jit: JitConfig | None) -> str:
    """The text for one VM. Without a `package` the image must have the runner; with a `jit` the VM registers
    by itself once it is set up. Reads the files that the pool names (OSError), and raises UserDataTooLarge."""
    vm = pool.vm
    config = {
        "name": name,
        "token": agent_token,
        "address": "",  # its own private one, which nobody knows yet
        "port": AGENT_PORT,
        "user": RUNNER_USER if vm.os == "linux" else "",
        "runner_directory": RUNNER_DIRECTORY,
        "scheduled_events": "" if vm.priority == "regular" else SCHEDULED_EVENTS,
    }
    own = json.dumps(config).encode()
    birth = json.dumps({"runner_id": jit.runner_id, "jit_config": jit.encoded}).encode() if jit else b""
    text = (_linux if vm.os == "linux" else _windows)(vm, package or RunnerPackage("", "", ""), own, birth)
    if len(text) > LARGEST:
        raise UserDataTooLarge(
            f"the user-data of pool {pool.name} has {len(text)} bytes and may have {LARGEST}: setup_script (or ca_bundle) is too "
            "long; let it download its larger part"
        )
    return text


def _linux(vm: VmConfig, package: RunnerPackage, config: bytes, birth: bytes) -> str:
    settings = {
        "RUNNER_VERSION": package.version,
        "RUNNER_URL": package.url,
        "RUNNER_SHA256": package.sha256,
        "JOB_SUDO": "true" if vm.job_sudo else "false",
    }
    return _template().substitute(
        agent=_part("agent.py"),
        bootstrap=_part("bootstrap.sh"),
        unit=_part("runnerpool-agent.service"),
        setup=_packed(_file(vm.setup_script)),
        authorities=_packed(_file(vm.proxy.ca_bundle)),
        config=_encoded(config),
        jit=_encoded(birth),
        settings=_encoded(_assignments(settings)),
        environment=_encoded(_assignments(_environment(vm.proxy))),
    )


def _windows(vm: VmConfig, package: RunnerPackage, config: bytes, birth: bytes) -> str:
    """Files (packed) by their paths under C:\\runnerpool, which are those of Linux, and what else its bootstrap would be told."""
    files = {
        "opt/runnerpool/agent.py": _part("agent.py"),
        "opt/runnerpool/agent_windows.py": _part("agent_windows.py"),
        "opt/runnerpool/setup.ps1": _packed(_file(vm.setup_script)),
        AUTHORITIES.lstrip("/"): _packed(_file(vm.proxy.ca_bundle)),
        "etc/runnerpool/agent.json": _packed(config),
        "etc/runnerpool/jit.json": _packed(birth),
    }
    environment = _environment(vm.proxy)
    if vm.proxy.ca_bundle:
        environment["NODE_EXTRA_CA_CERTS"] = f"C:/runnerpool{AUTHORITIES}"
    runner = {"version": package.version, "url": package.url, "sha256": package.sha256}
    return json.dumps(
        {"files": {path: json.loads(text) for path, text in files.items()}, "environment": environment, "runner": runner}
    )


def _environment(proxy: Proxy) -> dict[str, str]:
    """Both spellings: curl and git heed the lower-case names, much else the upper-case ones."""
    environment: dict[str, str] = {}
    if proxy.http_proxy:
        direct = ",".join((*NEVER_PROXIED, *filter(None, [proxy.no_proxy])))
        for key, value in (("http_proxy", proxy.http_proxy), ("https_proxy", proxy.http_proxy), ("no_proxy", direct)):
            environment |= {key: value, key.upper(): value}
    if proxy.ca_bundle:
        environment["NODE_EXTRA_CA_CERTS"] = AUTHORITIES  # Node alone does not read the system's store
    return environment


def _assignments(values: Mapping[str, str]) -> bytes:
    """Lines that a shell and systemd's EnvironmentFile read alike."""
    return "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items()).encode()


def _file(path: str) -> bytes:
    return Path(path).read_bytes() if path else b""


def _encoded(content: bytes) -> str:
    """As a YAML string; quoted, since an empty one would be null."""
    return json.dumps(base64.b64encode(content).decode())


def _packed(content: bytes) -> str:
    """Without a timestamp, so that the same input gives the same text."""
    return _encoded(gzip.compress(content, mtime=0))


@cache
def _part(name: str) -> str:
    return _packed(Path(__file__).with_name(name).read_bytes())


@cache
def _template() -> Template:
    """Its comments are for its readers, and stay here."""
    lines = Path(__file__).with_name("cloud-init.yaml").read_text(encoding="utf-8").splitlines()
    return Template("\n".join([lines[0], *(line.partition("  # ")[0] for line in lines[1:] if not line.startswith("#"))]) + "\n")
