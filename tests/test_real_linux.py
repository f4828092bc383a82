"""The rendered user-data on a real Linux: cloud-init lays it out, the bootstrap runs as root, the runner as its own user.

What stands in: systemctl, the runner package and the archive of Debian packages. The rest is Debian's own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from runnerpool.config import PoolConfig
from runnerpool.ports import JitConfig, RunnerPackage
from runnerpool.vm import agent
from runnerpool.vm.token import agent_token
from runnerpool.vm.userdata import render
from tests.real_linux import FABRIC, METADATA, Machine, fake_runner, fill_archive, package_of, serving
from tests.real_linux import debian as debian
from tests.real_linux import machine as machine
from tests.tiny_github import TinyGitHub, tiny_github

pytestmark = pytest.mark.timeout(600)  # the first of them makes the Debian root

NAME = "hw-linux-abc"
TOKEN = agent_token("a key", NAME)
PACKAGE = package_of(fake_runner("2.330.0"))
SHA256 = hashlib.sha256(PACKAGE).hexdigest()
PROXY = {"http_proxy": "http://proxy.example.com:3128", "no_proxy": ".corp.example.com"}
VM_FOLDER = Path(agent.__file__).parent


def user_data(*, package: RunnerPackage | None, jit: JitConfig | None = None, **vm: Any) -> str:
    pool = PoolConfig.model_validate({"labels": ["linux", "x64"], "vm": {"sizes": ["Standard_D4ads_v5"], **vm}})
    return render(pool=pool, name=NAME, agent_token=TOKEN, package=package, jit=jit)


@pytest.fixture
async def github(machine: Machine) -> AsyncIterator[TinyGitHub]:
    async with tiny_github(await machine.listener("127.0.0.1")) as server:
        yield server


@pytest.fixture
async def package(machine: Machine) -> AsyncIterator[RunnerPackage]:
    async def download(_: web.Request) -> web.Response:
        return web.Response(body=PACKAGE)

    async with serving(await machine.listener("127.0.0.1"), ("/runner.tar.gz", download)) as url:
        yield RunnerPackage("2.330.0", f"{url}/runner.tar.gz", SHA256)


@pytest.fixture
async def platform(machine: Machine) -> AsyncIterator[None]:
    """Azure's two addresses, as the machine sees them."""

    async def events(request: web.Request) -> web.Response:
        assert request.headers["Metadata"] == "true"
        event = {"EventType": "Preempt", "Resources": [NAME], "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT"}
        return web.json_response({"DocumentIncarnation": 1, "Events": [event]})

    async def goal_state(_: web.Request) -> web.Response:
        return web.Response(text="goal state")

    metadata, fabric, dns = [await machine.listener(*address) for address in ((METADATA, 80), (FABRIC, 80), (FABRIC, 53))]
    with dns:
        async with serving(metadata, ("/metadata/scheduledevents", events)), serving(fabric, ("/", goal_state)):
            yield


async def traces(machine: Machine, *secrets: str) -> list[str]:
    """The files in which one of these texts stands, plain or encoded as in the user-data."""
    texts = [text for secret in secrets for text in (secret, base64.b64encode(secret.encode()).decode()[4:-4])]
    patterns = [word for text in texts for word in ("-e", text)]
    folders = ("/etc", "/home", "/opt", "/root", "/run", "/tmp", "/var")
    found = await machine.run("grep", "-rlF", "--devices=skip", *patterns, *folders, code=None)
    return [path for path in found.split() if not path.startswith("/var/lib/cloud/seed/")]  # the test's own way in


async def reaches(machine: Machine, user: str, address: str, port: int) -> bool:
    program = f"import socket; socket.create_connection(({address!r}, {port}), 5)"
    return "Error" not in await machine.run("python3", "-c", program, user=user, code=None)


def in_order(log: list[str], *words: str) -> bool:
    """Whether these lines are there, in this order, each beginning so."""
    lines = iter(log)
    return all(any(line.startswith(word) for line in lines) for word in words)


# ---------------------------------------------------------------------------------------------- the life of a VM


async def test_a_plain_image_becomes_a_runner_that_takes_a_job(
    machine: Machine, github: TinyGitHub, package: RunnerPackage, platform: None, tmp_path: Path
) -> None:
    script = tmp_path / "setup.sh"
    script.write_text("#!/bin/sh\nset -e\n[ $(id -u) = 0 ]\necho setup >/var/log/order\nchmod 666 /var/log/order\n")
    jit = github.register(7)
    await fill_archive(machine)
    await machine.first_boot(user_data(package=package, jit=jit, priority="spot", setup_script=str(script)))
    status = await machine.until(TOKEN, phase="listening")

    assert in_order(
        machine.setup_log(),
        "the set-up begins",
        "the image has: curl sudo",
        "installing: git docker",
        "installed: git docker.io docker-buildx",
        "downloading runner 2.330.0",
        "installing what the runner depends on",
        "the runner is 2.330.0",
        "running the pool's setup_script",
        "the set-up is through",
    ), machine.setup_log()
    assert [line.partition("Z ")[2] for line in status["log"]][-1] == "the set-up is through"
    assert (status["runner_version"], status["binding"]) == ("2.330.0", 7)
    assert machine.read("var/log/order").split() == ["setup", "runner"]
    assert (machine.root / "var/lib/dependencies-installed").exists()

    # Who runs as whom, and who may what.
    runner = (await machine.run("id", "-u", "runner")).strip()
    assert (machine.owners("/opt/runnerpool/agent.py"), machine.owners("./runner.py")) == ({0}, {int(runner)})
    assert (await machine.run("sudo", "-n", "id", "-u", user="runner")).strip() == "0"
    assert "docker" in (await machine.run("id", "-nG", "runner")).split()

    # The metadata service is there, and the agent hears from it; jobs do not.
    assert (await machine.until(TOKEN, eviction_at="2016-09-19T18:29:47.000Z"))["phase"] == "listening"
    seen = {who: [await reaches(machine, who, *there) for there in PLATFORM] for who in ("root", "runner")}
    assert seen == {"root": [True, True, True], "runner": [False, False, True]}

    # Used up, the JIT configuration is nowhere any more; the agent's token is where only root reads it.
    assert await traces(machine, jit.encoded) == []
    assert await traces(machine, TOKEN) == ["/etc/runnerpool/agent.json"]
    assert "Permission denied" in await machine.run("cat", "/etc/runnerpool/agent.json", user="runner", code=1)

    # Running the bootstrap again, even now, changes nothing.
    rules = await machine.run("nft", "list", "ruleset")
    assert (await machine.bootstrap())[-1] == "the set-up is through"
    assert await machine.run("nft", "list", "ruleset") == rules
    github.offer("501", seconds=60)
    await machine.until(TOKEN, phase="busy", worker=True)
    assert machine.owners("Runner.Worker") == {int(runner)}
    await machine.run("sh", "-c", "kill -KILL $(pgrep --uid runner --full Runner.Worker)")  # which fails its job
    status = await machine.until(TOKEN, phase="exited")
    assert (status["job_seen"], status["exit_code"], github.sessions, github.finished) == (True, 0, [7], {"501": "failure"})
    assert (await machine.agent("GET", "/runner/status", TOKEN))["memory"]["free"] > 0
    assert jit.encoded not in machine.read("var/log/agent.log")


PLATFORM = ((METADATA, 80), (FABRIC, 80), (FABRIC, 53))


async def test_an_image_that_has_it_all_needs_no_network_and_its_jobs_may_be_refused_root(
    machine: Machine, github: TinyGitHub
) -> None:
    for path, (content, mode) in fake_runner("2.331.0").items():
        machine.put(f"opt/actions-runner/{path}", content, mode)
    for command in ("git", "docker"):
        machine.put(f"usr/bin/{command}", "#!/bin/sh\n", 0o755)
    machine.put("var/log/order", "", 0o666)
    await machine.run("useradd", "--create-home", "runner")
    await machine.run("groupadd", "docker")
    await machine.run("usermod", "--append", "--groups", "docker,sudo", "runner")
    unreachable = RunnerPackage("2.330.0", "http://127.0.0.1:9/runner.tar.gz", SHA256)
    await machine.first_boot(user_data(package=unreachable, job_sudo=False))

    status = await machine.until(TOKEN, phase="waiting")
    assert (status["runner_version"], status["binding"], status["eviction_at"]) == ("2.331.0", None, None)
    assert in_order(
        machine.setup_log(), "the image has: curl git", "the image has a runner", "the image's runner 2.331.0 is newer than 2.330.0"
    )
    assert "password is required" in await machine.run("sudo", "-n", "true", user="runner", code=1)
    assert (await machine.run("id", "-nG", "runner")).split() == ["runner"]

    config = github.register(8)
    await machine.agent("POST", "/runner/start", TOKEN, {"runner_id": 8, "jit_config": config.encoded})
    await machine.until(TOKEN, phase="listening", binding=8)
    assert await traces(machine, config.encoded) == []

    machine.put("opt/actions-runner/bin/Runner.Listener", "#!/bin/sh\necho 2.99.0\n", 0o755)
    warning = "the image's runner 2.99.0 is older than 2.330.0: build the image anew before GitHub gives it no more jobs"
    assert warning in await machine.bootstrap()


async def test_every_failure_is_the_last_thing_in_the_agents_log_and_a_second_run_goes_on(
    machine: Machine, package: RunnerPackage, tmp_path: Path
) -> None:
    script = tmp_path / "setup.sh"
    script.write_text("#!/bin/sh\necho 'no licence server' >&2\nexit 3\n")
    machine.put("etc/apt/sources.list", "deb [trusted=yes] file:/packages ./\n")
    wrong = RunnerPackage(package.version, package.url, "ab" * 32)
    await machine.first_boot(user_data(package=wrong, setup_script=str(script)))

    async def told() -> list[str]:
        status = await machine.until(TOKEN, phase="setup", runner_version="")
        return [line.partition("Z ")[2] or line for line in status["log"]]

    assert any("packages" in line for line in (await told())[-5:-1])  # what apt said
    assert (await told())[-1].startswith("the set-up failed in line ")

    await fill_archive(machine)
    await machine.bootstrap(code=1)
    [refused, failed] = (await told())[-2:]
    assert refused == f"what came from {package.url} is not runner 2.330.0: its sha256 is {SHA256} and should be {'ab' * 32}"
    assert failed.startswith("the set-up failed in line ")
    assert not (machine.root / "opt/actions-runner").exists()

    settings = machine.root / "etc/runnerpool/bootstrap.env"
    settings.write_text(settings.read_text().replace("ab" * 32, SHA256))
    await machine.bootstrap(code=3)
    [heard, failed] = (await told())[-2:]
    assert heard == "no licence server"
    assert failed.endswith(": /opt/runnerpool/setup.sh")

    machine.put("opt/runnerpool/setup.sh", "")
    await machine.bootstrap()
    await machine.until(TOKEN, phase="waiting", runner_version="2.330.0")


async def test_a_proxy_reaches_apt_docker_sudo_the_agent_and_the_runner(
    machine: Machine, github: TinyGitHub, tmp_path: Path
) -> None:
    for path, (content, mode) in fake_runner("2.330.0").items():
        machine.put(f"opt/actions-runner/{path}", content, mode)
    for command in ("git", "docker"):
        machine.put(f"usr/bin/{command}", "#!/bin/sh\n", 0o755)
    bundle = tmp_path / "ca.pem"
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null", "-days", "1"]
    made = [
        await machine.run(*certificate, "-subj", f"/CN={name}.example.com", "-out", f"/tmp/{name}.pem") for name in ("one", "two")
    ]
    assert len(made) == 2
    bundle.write_text(machine.read("tmp/one.pem") + machine.read("tmp/two.pem"))
    await machine.first_boot(user_data(package=None, proxy=PROXY | {"ca_bundle": str(bundle)}))
    await machine.until(TOKEN, phase="waiting")
    assert PROXY["http_proxy"] in await machine.run("apt-config", "dump", "Acquire::https::Proxy")
    assert "EnvironmentFile=/etc/runnerpool/environment" in machine.read("etc/systemd/system/docker.service.d/runnerpool.conf")
    assert PROXY["http_proxy"] in await machine.run(
        "sudo", "printenv", "https_proxy", user="runner", https_proxy=PROXY["http_proxy"]
    )
    config = github.register(9)
    await machine.agent("POST", "/runner/start", TOKEN, {"runner_id": 9, "jit_config": config.encoded})
    await machine.until(TOKEN, phase="listening", binding=9)
    for process in ("/opt/runnerpool/agent.py", "./runner.py"):
        given = machine.environment(process)
        assert given["https_proxy"] == given["HTTP_PROXY"] == PROXY["http_proxy"]
        assert given["no_proxy"] == given["NO_PROXY"] == "localhost,127.0.0.1,169.254.169.254,168.63.129.16,.corp.example.com"
        assert given["NODE_EXTRA_CA_CERTS"] == "/etc/runnerpool/authorities.pem"
    trusted = machine.read("etc/ssl/certs/ca-certificates.crt")
    assert all(machine.read(f"tmp/{name}.pem") in trusted for name in ("one", "two"))


# ---------------------------------------------------------------------------------------------- what Debian's own tools say


JIT = JitConfig(7, base64.b64encode(json.dumps({"some": "secret"}).encode()).decode())
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "spot": {"priority": "spot", "zones": ["1"]},
    "no sudo, at birth": {"job_sudo": False, "jit": JIT},
    "runner from the image": {"package": None},
    "proxy": {"proxy": PROXY},
    "script": {"setup_script": str(VM_FOLDER / "bootstrap.sh"), "jit": JIT},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_cloud_init_accepts_the_user_data(machine: Machine, shape: dict[str, Any]) -> None:
    package = RunnerPackage("2.330.0", "https://example.com/runner.tar.gz", SHA256)
    machine.put("tmp/user-data", user_data(**({"package": package} | shape)))
    assert "Valid" in await machine.run("cloud-init", "schema", "--config-file", "/tmp/user-data")


async def test_systemd_accepts_the_unit(machine: Machine) -> None:
    machine.put("etc/systemd/system/runnerpool-agent.service", (VM_FOLDER / "runnerpool-agent.service").read_text())
    machine.put("opt/runnerpool/agent.py", "")
    assert await machine.run("systemd-analyze", "verify", "runnerpool-agent.service") == ""


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="this machine has no shellcheck: on Debian, apt-get install shellcheck"
)
def test_shellcheck_has_nothing_to_say_about_the_bootstrap() -> None:
    checked = subprocess.run(["shellcheck", str(VM_FOLDER / "bootstrap.sh")], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")
