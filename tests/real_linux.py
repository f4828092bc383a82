"""A real Debian, in namespaces of its own, for what only a real Linux can show: users, sudo, the firewall, cloud-init, apt.

Its root is made once and kept under `.cache/`; what a machine writes stays in memory. A machine has processes, mounts, a host
name and a network of its own, in which 169.254.169.254 and 168.63.129.16 answer as Azure's do. All this takes root, and is
skipped elsewhere.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import hashlib
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web

from runnerpool.vm import AGENT_PORT
from tests.waiting import eventually

T = TypeVar("T")

CACHE = Path(__file__).parents[1] / ".cache"
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "cloud-init", "curl", "nftables", "python3", "sudo", "systemd")
UNREAD = ("doc", "info", "locale", "man")
"""Folders of /usr/share that nothing here reads: without them the root is made, and copied, sooner."""

PRIVATE, METADATA, FABRIC = "10.0.0.4", "169.254.169.254", "168.63.129.16"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

BOOT = f"""
set -e
mount -t tmpfs tmpfs "$2"
mkdir "$2/changes" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/changes,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs dev
for device in null zero random urandom; do touch "dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
hostname hw-linux-abc
ip link set lo up
ip address add {PRIVATE}/24 dev lo
ip route add local {METADATA} dev lo src {PRIVATE}
ip route add local {FABRIC} dev lo src {PRIVATE}
exec chroot . sh -c "echo up && exec cat"
"""
"""The machine's first process is `cat`: when its input closes it ends, and the kernel ends everything else in there with it."""

SYSTEMCTL = """#!/bin/sh
# Stands in for systemd, which cannot run here: starts the agent as its unit says, once, with no environment but the unit's.
echo "$*" >>/var/log/systemctl
unit=/etc/systemd/system/runnerpool-agent.service
if [ "$*" = "enable --now runnerpool-agent.service" ] && ! kill -0 "$(cat /run/agent.pid 2>/dev/null)" 2>/dev/null; then
    env -i PATH="$PATH" LANG=C.UTF-8 setsid sh -c '
        set -a
        for file in $(sed -n s/^EnvironmentFile=-//p "$0"); do [ ! -f "$file" ] || . "$file"; done
        exec $(sed -n s/^ExecStart=//p "$0")
    ' "$unit" </dev/null >/var/log/agent.log 2>&1 &
    echo $! >/run/agent.pid
fi
"""

# What cloud-init does on a VM of ours, and nothing that would reach for this machine's disks or network.
CLOUD_CONFIG = {
    "datasource_list": ["NoCloud"],
    "datasource": {"NoCloud": {"fs_label": None}},
    "network": {"config": "disabled"},
    "cloud_init_modules": ["write-files"],
    "cloud_config_modules": ["runcmd"],
    "cloud_final_modules": ["scripts-user"],
}
STAGES = (("init", "--local"), ("init",), ("modules", "--mode=config"), ("modules", "--mode=final"))
SEED = "var/lib/cloud/seed/nocloud"


def obstacle() -> str:
    """Why there can be no machine here, or nothing."""
    if os.geteuid() != 0:
        return "only root can make a Debian root and namespaces"
    if missing := [tool for tool in ("mmdebstrap", "unshare", "nsenter", "ip") if shutil.which(tool) is None]:
        return f"this machine has no {', no '.join(missing)}: on Debian, apt-get install mmdebstrap iproute2"
    probe = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, text=True, check=False)
    return f"this machine gives no namespaces: {probe.stderr.strip()}" if probe.returncode else ""


def debian_root() -> Path:
    """The root to copy, made where there is none. Another list of packages makes another one."""
    recipe = json.dumps([SUITE, PACKAGES, UNREAD])
    root = CACHE / f"debian-{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            draft = root.with_suffix(".new")
            shutil.rmtree(draft, ignore_errors=True)
            command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory"]
            command += [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in UNREAD]
            subprocess.run([*command, f"--include={','.join(PACKAGES)}", SUITE, str(draft)], check=True, stdin=subprocess.DEVNULL)
            draft.rename(root)
    return root


class Machine:
    """A layer of changes over the kept root `debian`, and what runs on it. `root` is its disk as it sees it itself."""

    def __init__(self, debian: Path, folder: Path) -> None:
        command = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork"]
        command += ["sh", "-c", BOOT, "sh", str(debian), str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n", "the machine did not come up"
        self.first = int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())
        self.root = Path(f"/proc/{self.first}/root")
        self.put("etc/hosts", "127.0.0.1 localhost hw-linux-abc\n")
        self.put("usr/local/bin/systemctl", SYSTEMCTL, 0o755)
        self.put("etc/cloud/cloud.cfg.d/99_machine.cfg", json.dumps(CLOUD_CONFIG))
        self.inside = ThreadPoolExecutor(1, "in the machine's network", self._enter_network)

    def stop(self) -> None:
        self.inside.shutdown()
        self.process.communicate(timeout=20)

    def put(self, path: str, content: str | bytes, mode: int = 0o644) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
        return file

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    async def run(self, *command: str, user: str = "root", code: int | None = 0, **environment: str) -> str:
        """What the command said, on both streams. It has to end with this code, if one is given."""
        enter = ["nsenter", f"--target={self.first}", "--mount", "--net", "--pid", "--uts", "--ipc", "--root", "--wd"]
        become = [] if user == "root" else ["runuser", "-u", user, "--"]
        process = await asyncio.create_subprocess_exec(
            *enter,
            *become,
            *command,
            env={"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
        assert code is None or process.returncode == code, f"{command} ended with {process.returncode}: {output}"
        return output

    async def first_boot(self, user_data: str) -> None:
        """All that cloud-init does. A failing bootstrap is in its log, not here."""
        self.put(f"{SEED}/meta-data", json.dumps({"instance-id": "i-1"}))
        self.put(f"{SEED}/user-data", user_data)
        for stage in STAGES:
            await self.run("cloud-init", *stage, code=None)

    async def bootstrap(self, *, code: int | None = 0) -> list[str]:
        """Once more, by hand; returns what it added to the set-up's log, without the times."""
        before = len(self.setup_log())
        await self.run("/opt/runnerpool/bootstrap.sh", code=code)
        return self.setup_log()[before:]

    def owners(self, word: str) -> set[int]:
        """The user ids of its processes that have this word in their command lines."""
        found = set()
        for entry in (self.root / "proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and word.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.add(entry.stat().st_uid)
        return found

    def environment(self, word: str) -> dict[str, str]:
        """That of the one of its processes that has this word in its command line."""
        for entry in (self.root / "proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and word.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    return dict(one.split("=", 1) for one in (entry / "environ").read_text().split("\0") if one)
        raise LookupError(f"no process of this machine has {word!r} in its command line")

    def setup_log(self) -> list[str]:
        """Without the times."""
        log = self.root / "var/log/runnerpool/setup.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.partition("Z ")[2] or line for line in lines]

    # -------------------------------------------------------------------------------------- its network

    def _enter_network(self) -> None:
        """A thread of ours that lives in the machine's network: its sockets do too, whoever uses them later."""
        with Path(f"/proc/{self.first}/ns/net").open() as namespace:
            assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) == 0, os.strerror(ctypes.get_errno())

    async def from_inside(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.inside, function)

    async def listener(self, address: str, port: int = 0) -> socket.socket:
        return await self.from_inside(lambda: socket.create_server((address, port)))

    async def agent(self, method: str, path: str, token: str, body: object = None) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            connection = http.client.HTTPConnection(PRIVATE, AGENT_PORT, timeout=10)
            connection.request(method, path, json.dumps(body) if body else None, {"Authorization": f"Bearer {token}"})
            reply = connection.getresponse()
            content: dict[str, Any] = json.load(reply)
            assert reply.status == 200, content
            return content

        return await self.from_inside(ask)

    async def until(self, token: str, **wanted: Any) -> dict[str, Any]:
        """The agent's status, once these of its values are there."""
        status: dict[str, Any] = {}

        async def holds() -> bool:
            nonlocal status
            try:
                status = await self.agent("GET", "/runner/status", token)
            except ConnectionRefusedError:  # it has just been started
                return False
            return all(status[key] == value for key, value in wanted.items())

        await eventually(holds, within=30)
        return status


@asynccontextmanager
async def serving(
    listener: socket.socket, *routes: tuple[str, Callable[[web.Request], Awaitable[web.Response]]]
) -> AsyncIterator[str]:
    """The base URL of a server with these GET routes."""
    app = web.Application()
    app.add_routes([web.get(path, handler) for path, handler in routes])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    host, port = listener.getsockname()[:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@pytest.fixture(scope="session")
def debian() -> Path:
    if reason := obstacle():
        pytest.skip(reason)
    try:
        return debian_root()
    except subprocess.CalledProcessError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no Debian root could be made here, where it takes a package archive: {error}")


@pytest.fixture
def machine(debian: Path, tmp_path: Path) -> Iterator[Machine]:
    folder = tmp_path / "machine"
    folder.mkdir()
    one = Machine(debian, folder)
    yield one
    one.stop()


# ---------------------------------------------------------------------------------------------- what machines install


def fake_runner(version: str) -> dict[str, tuple[str, int]]:
    """The files of a runner package: the sandbox's runner program in the real one's clothes, by path, with their modes."""
    program = (Path(__file__).parents[1] / "sandbox/runner.py").read_text()
    return {
        "run.sh": ("#!/bin/sh\necho runner >>/var/log/order\nexec python3 ./runner.py\n", 0o755),
        "runner.py": (program, 0o644),
        "bin/Runner.Listener": (f"#!/bin/sh\necho {version}\n", 0o755),
        "bin/installdependencies.sh": ("#!/bin/sh\ntouch /var/lib/dependencies-installed\n", 0o755),
    }


def package_of(files: dict[str, tuple[str, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, (content, mode) in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content.encode()), mode
            archive.addfile(entry, io.BytesIO(content.encode()))
    return buffer.getvalue()


async def fill_archive(machine: Machine) -> None:
    """Makes an archive of packages on the machine's own disk the only one that its apt knows."""
    programs = {
        "git": ["git"],
        "docker.io": ["docker", "dockerd"],
        "docker-buildx": ["docker-buildx"],
        "jq": ["jq"],
        "unzip": ["unzip"],
    }
    index = ""
    for name, commands in programs.items():
        control = (
            f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: {name}\n"
        )
        machine.put(f"packages/{name}/DEBIAN/control", control)
        for command in commands:
            machine.put(f"packages/{name}/usr/bin/{command}", f"#!/bin/sh\necho {command} 1.0\n", 0o755)
        if name == "docker.io":
            machine.put(f"packages/{name}/DEBIAN/postinst", "#!/bin/sh\nset -e\ngroupadd --force --system docker\n", 0o755)
        await machine.run("dpkg-deb", "--build", f"/packages/{name}", f"/packages/{name}.deb")
        content = (machine.root / f"packages/{name}.deb").read_bytes()
        index += f"{control}Filename: ./{name}.deb\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n\n"
    machine.put("packages/Packages", index)
    for known in (machine.root / "etc/apt").glob("sources.list*"):
        shutil.rmtree(known) if known.is_dir() else known.unlink()
    machine.put("etc/apt/sources.list", "deb [trusted=yes] file:/packages ./\n")
