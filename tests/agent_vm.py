"""A folder that looks like a VM's disk, with the real agent.py on it as a process of its own, for the tests of the agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from runnerpool.ports import JitConfig
from runnerpool.vm import agent
from sandbox import runner
from tests.tiny_github import TinyGitHub, tiny_github
from tests.waiting import eventually

TOKEN = "the-token-of-this-machine"


class Vm:
    """A folder that looks like a VM's disk, and the agents that were started on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = ""
        self.agents: list[subprocess.Popen[bytes]] = []
        config = {"name": "hw-linux-a", "token": TOKEN, "address": "127.0.0.1", "port": 0, "user": ""}
        self.put(agent.CONFIG, json.dumps(config | {"runner_directory": "/opt/actions-runner", "scheduled_events": ""}))
        self.put("opt/actions-runner/run.sh", f"#!/bin/sh\nexec {sys.executable} -ISE {runner.__file__}\n").chmod(0o755)
        self.put(agent.SETUP_LOG, "".join(f"line {number}\n" for number in range(200)))

    def put(self, relative: str, text: str) -> Path:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def ready(self) -> None:
        self.put(agent.READY, "2.330.0\n")

    def born_with(self, config: JitConfig) -> None:
        self.put(agent.BIRTH, json.dumps({"runner_id": config.runner_id, "jit_config": config.encoded}))

    def launch(self) -> Path:
        """Starts an agent; returns its log."""
        log = self.root / f"agent-{len(self.agents)}.log"
        command = [sys.executable, "-I", "-S", "-E", agent.__file__, "--root", str(self.root)]
        with log.open("wb") as output:
            self.agents.append(subprocess.Popen(command, stderr=output, start_new_session=True))
        return log

    async def start(self) -> None:
        log = self.launch()

        async def listening() -> bool:
            return "listening on " in log.read_text()

        await eventually(listening)
        self.url = "http://" + log.read_text().partition("listening on ")[2].split()[0]

    def terminate(self) -> int:
        self.agents[-1].terminate()
        return self.agents[-1].wait(10)

    def stop(self) -> None:
        for one in self.agents:
            with suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.wait(10)

    async def call(self, method: str, path: str, *, token: str | None = TOKEN, **more: Any) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(trust_env=False) as client:
            return await client.request(method, self.url + path, headers=headers, **more)

    async def status(self) -> dict[str, Any]:
        answer = await self.call("GET", "/runner/status")
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    async def bind(self, config: JitConfig) -> httpx.Response:
        order = {"runner_id": config.runner_id, "jit_config": config.encoded}
        return await self.call("POST", "/runner/start", json=order)

    async def until(self, **wanted: Any) -> dict[str, Any]:
        async def holds() -> bool:
            status = await self.status()
            return all(status[key] == value for key, value in wanted.items())

        await eventually(holds)
        return await self.status()

    def processes(self, program: str) -> dict[int, bytes]:
        """The command lines of this VM's processes that name `program`, by process id."""
        here = str(self.root / "opt/actions-runner")
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                command = (entry / "cmdline").read_bytes()
                if str((entry / "cwd").readlink()) == here and program.encode() in command:
                    found[int(entry.name)] = command
        return found

    def texts(self) -> Iterator[tuple[Path, str]]:
        for path in self.root.rglob("*"):
            if path.is_file():
                yield path, path.read_text(errors="replace")


@pytest.fixture
async def github() -> AsyncIterator[TinyGitHub]:
    async with tiny_github() as server:
        yield server


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Vm]:
    vm = Vm(tmp_path)
    yield vm
    vm.stop()


@pytest.fixture
async def vm(machine: Vm) -> Vm:
    """Set up, unregistered, with a running agent."""
    machine.ready()
    await machine.start()
    return machine
