"""The sandbox's VMs: each is a process group on this machine, with a folder for its disk and a loopback address of its own.

What cloud-init would do is done here in small: the files that the user-data names are laid out under the VM's folder, and the
real agent is started among them. The bootstrap is not run (it installs things): its log and its last act, the `ready` file,
are written in its place. `sandbox/runner.py` is what the agent finds as `run.sh`.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import yaml

from runnerpool.vm import agent

PYTHON = (sys.executable, "-I", "-S", "-E")
"""No site-packages: what runs on a VM has the standard library only, and starts in half the time."""

ON_LIFELINE = (
    "import _thread, os, runpy, sys;"
    "_thread.start_new_thread(lambda: os.read(0, 1) or os.killpg(0, 9), ());"
    "sys.argv = sys.argv[1:];"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Runs a script for as long as standard input stays open. All machines share one pipe of which only the sandbox holds the other
end: however the sandbox ends, the pipe closes, and each machine ends its own process group."""


@dataclass(slots=True)
class Machine:
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    setup: asyncio.Task[None] | None = field(default=None, repr=False)


class Machines:
    """Boots and stops VMs. `root` holds their folders; `setup_seconds` (real ones) and `dead_agents` may be set at any time
    and hold for the boots that follow: how long the bootstrap seems to take, and whether VMs run without an agent."""

    def __init__(self, *, root: Path) -> None:
        self.root = root
        self.setup_seconds = 0.0
        self.dead_agents = False
        self._machines: dict[str, Machine] = {}
        self._lifeline, self._held = os.pipe()

    async def boot(self, name: str, address: str, user_data: str, *, setup_error: str = "") -> None:
        """Starts the VM's agent on `address`. With a `setup_error` its set-up ends in these words. Raises FileExistsError for a
        name that exists, ValueError for user-data that cloud-init would not read."""
        folder = self.root / name
        folder.mkdir(parents=True)
        machine = self._machines[name] = Machine(folder)
        lay_out(user_data, folder)
        adapt(folder, address)
        if self.dead_agents:
            return
        machine.setup = asyncio.create_task(set_up(folder, self.setup_seconds, setup_error))
        await asyncio.sleep(0)  # a set-up without delay is over before the agent looks
        machine.process = self._start(folder)

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        command = [*PYTHON, "-c", ON_LIFELINE, str(folder / AGENT), "--root", str(folder)]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        with (folder / "agent.log").open("wb") as log:
            return subprocess.Popen(
                command, cwd=folder, env=environment, stdin=self._lifeline, stdout=log, stderr=log, start_new_session=True
            )

    def running(self, name: str) -> bool:
        """Whether the VM is there and, unless it was booted without one, its agent lives."""
        machine = self._machines.get(name)
        return machine is not None and (machine.process is None or machine.process.poll() is None)

    def warn(self, name: str, at: datetime) -> None:
        """Announces in the VM's scheduled events that it is taken away `at`; nothing where it has no VM of that name."""
        if machine := self._machines.get(name):
            announce(machine.folder, name, at)

    def mute(self, name: str) -> bool:
        """Ends the VM's agent and nothing else: a job goes on. Says whether there was one to be ended."""
        machine = self._machines.get(name)
        if machine is None or machine.process is None or machine.process.poll() is not None:
            return False
        machine.process.kill()
        return True

    async def stop(self, name: str) -> None:
        """Kills everything that runs on the VM and removes its disk. An unknown name is fine."""
        machine = self._machines.pop(name, None)
        if machine is None:
            return
        if machine.setup is not None:
            machine.setup.cancel()
            await asyncio.wait([machine.setup])
        if machine.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(machine.process.pid, signal.SIGKILL)
            await asyncio.to_thread(machine.process.wait)
        await asyncio.to_thread(shutil.rmtree, machine.folder)

    async def stop_all(self) -> None:
        """Stops every VM; no more can be booted after it."""
        await asyncio.gather(*(self.stop(name) for name in list(self._machines)))
        for end in (self._held, self._lifeline):
            with suppress(OSError):
                os.close(end)


AGENT = Path("opt/runnerpool/agent.py")
EVENTS = "scheduled-events.json"
"""In a VM's folder: its agent reads this file where a VM in Azure asks the metadata service."""


def lay_out(user_data: str, folder: Path) -> None:
    """Writes the files that the user-data names, as cloud-init's write_files does; owners are not kept."""
    for path, content, mode in files_of(user_data):
        file = folder / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)


def files_of(user_data: str) -> Iterator[tuple[str, bytes, int]]:
    """Path, content and mode of every file. Raises ValueError for what is no cloud-config."""
    if not user_data.startswith("#cloud-config\n"):
        raise ValueError("the user-data does not begin with #cloud-config")
    document = yaml.load(user_data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for entry in document["write_files"]:
        yield entry["path"], decoded(entry), int(entry.get("permissions", "0644"), 8)


def decoded(entry: dict[str, Any]) -> bytes:
    content: str = entry.get("content", "")
    match entry.get("encoding", "text/plain"):
        case "text/plain":
            return content.encode()
        case "b64" | "base64":
            return base64.b64decode(content)
        case "gz+b64" | "gz+base64" | "gzip+b64" | "gzip+base64":
            return gzip.decompress(base64.b64decode(content))
        case other:
            raise ValueError(f"cloud-init knows no encoding {other!r}")


def adapt(folder: Path, address: str) -> None:
    """What differs from a VM in Azure: the address, no user of the runner's own, a file in place of the metadata service, a
    runner of ours."""
    file = folder / agent.CONFIG
    config = json.loads(file.read_text())
    events = (folder / EVENTS).as_uri() if config["scheduled_events"] else ""
    announce(folder, "", None)
    file.write_text(json.dumps(config | {"address": address, "user": "", "scheduled_events": events}))
    runner = folder / config["runner_directory"].lstrip("/") / "run.sh"
    runner.parent.mkdir(parents=True, exist_ok=True)
    program = shlex.join([*PYTHON, str(Path(__file__).with_name("runner.py"))])
    runner.write_text(f"#!/bin/sh\nexec {program}\n")
    runner.chmod(0o755)


def announce(folder: Path, name: str, at: datetime | None) -> None:
    """What the metadata service tells of scheduled events: one that takes the VM away `at`, or none. See
    https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events"""
    event = {
        "EventId": "A123BC45-1234-5678-AB90-ABCDEF123456",
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": [name],
        "EventStatus": "Scheduled",
        "NotBefore": format_datetime(at, usegmt=True) if at else "",
        "EventSource": "Platform",
    }
    draft = folder / f"{EVENTS}.new"
    draft.write_text(json.dumps({"DocumentIncarnation": 1, "Events": [event] if at else []}))
    draft.replace(folder / EVENTS)


async def set_up(folder: Path, seconds: float, error: str = "") -> None:
    """The bootstrap's traces: a log from the beginning, and at its end the `ready` file, or the `error` in which it ends."""
    log = folder / agent.SETUP_LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("sandbox: the set-up begins\n")
    if seconds:
        await asyncio.sleep(seconds)
    with log.open("a") as file:
        file.write(f"{error or 'sandbox: the set-up is through'}\n")
    if error:
        return
    settings, ready = folder / "etc/runnerpool/bootstrap.env", folder / agent.READY
    ready.parent.mkdir(parents=True, exist_ok=True)
    ready.write_text(dict(line.split("=") for line in settings.read_text().split())["RUNNER_VERSION"])
