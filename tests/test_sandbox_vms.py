"""The sandbox's VMs: the real user-data boots into the real agent, and nothing outlives its VM or the sandbox."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from runnerpool.agent_client import HttpAgents
from runnerpool.config import PoolConfig
from runnerpool.ports import AgentPhase, AgentStatus, AgentTrouble, JitConfig, RunnerPackage
from runnerpool.vm.token import agent_token
from runnerpool.vm.userdata import render
from sandbox.vms import Machines, decoded, files_of
from tests.agent_vm import github as github
from tests.tiny_github import TinyGitHub
from tests.waiting import eventually

KEY = "the sandbox's agent key"
POOL = PoolConfig.model_validate({"labels": ["linux"], "vm": {"sizes": ["Standard_D4ads_v5"], "priority": "spot"}})


def an_address() -> str:
    """Every VM listens on the same port: what keeps two test runs apart is the address."""
    return f"127.{random.randint(64, 127)}.{random.randint(0, 255)}.{random.randint(1, 254)}"


def user_data(name: str, jit: JitConfig | None = None) -> str:
    package = RunnerPackage("2.330.0", "https://example.com/runner.tar.gz", "ab" * 32)
    return render(pool=POOL, name=name, agent_token=agent_token(KEY, name), package=package, jit=jit)


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[Machines]:
    sandbox = Machines(root=tmp_path / "vms")
    yield sandbox
    await sandbox.stop_all()


@pytest.fixture
async def agents() -> AsyncIterator[HttpAgents]:
    async def subnet() -> list[str]:
        return ["127.64.0.0/10"]

    async with HttpAgents(keys=(KEY,), subnet_prefixes=subnet) as client:
        yield client


async def phase(agents: HttpAgents, name: str, address: str, wanted: AgentPhase) -> AgentStatus:
    seen: AgentStatus | AgentTrouble = AgentTrouble.SILENT

    async def reached() -> bool:
        nonlocal seen
        seen = await agents.status(name, address)
        return isinstance(seen, AgentStatus) and seen.phase is wanted

    await eventually(reached)
    assert isinstance(seen, AgentStatus)
    return seen


def processes_under(folder: Path) -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if (entry / "cwd").readlink().is_relative_to(folder):
                found.add(int(entry.name))
    return found


async def run_under(folder: Path, count: int) -> bool:
    return len(processes_under(folder)) == count


async def test_a_vm_boots_its_real_agent_and_can_be_bound_late(machines: Machines, agents: HttpAgents, github: TinyGitHub) -> None:
    address = an_address()
    await machines.boot("hw-linux-a", address, user_data("hw-linux-a"))
    assert machines.running("hw-linux-a")
    status = await phase(agents, "hw-linux-a", address, AgentPhase.WAITING)
    assert (status.runner_version, status.binding, status.eviction_at) == ("2.330.0", None, None)
    assert status.log
    config = github.register(1)
    assert (await agents.start("hw-linux-a", address, config)).binding == 1
    assert (await agents.start("hw-linux-a", address, config)).binding == 1
    await phase(agents, "hw-linux-a", address, AgentPhase.LISTENING)
    github.offer("601", seconds=0.1)
    status = await phase(agents, "hw-linux-a", address, AgentPhase.EXITED)
    assert (status.job_seen, status.worker, github.finished) == (True, False, {"601": "success"})


async def test_a_vm_with_a_configuration_at_birth_registers_by_itself_after_its_set_up(
    machines: Machines, agents: HttpAgents, github: TinyGitHub
) -> None:
    address, machines.setup_seconds = an_address(), 1.0
    await machines.boot("hw-linux-b", address, user_data("hw-linux-b", github.register(2)))
    assert (await phase(agents, "hw-linux-b", address, AgentPhase.SETUP)).binding == 2
    assert github.sessions == []
    await phase(agents, "hw-linux-b", address, AgentPhase.LISTENING)
    assert github.sessions == [2]


async def test_stopping_a_vm_ends_all_that_ran_on_it_in_mid_job(machines: Machines, agents: HttpAgents, github: TinyGitHub) -> None:
    address = an_address()
    await machines.boot("hw-linux-c", address, user_data("hw-linux-c", github.register(3)))
    github.offer("602", seconds=60)
    await phase(agents, "hw-linux-c", address, AgentPhase.BUSY)

    async def seen_at_work() -> bool:
        status = await agents.status("hw-linux-c", address)
        return isinstance(status, AgentStatus) and status.worker

    await eventually(seen_at_work)  # the agent looks for the worker first and for its log then: in between it may have begun
    folder = machines.root / "hw-linux-c"
    await eventually(partial(run_under, folder, 3))  # agent, runner, worker; the job's first hook is soon over
    await machines.stop("hw-linux-c")
    assert not machines.running("hw-linux-c")

    async def gone() -> bool:
        return not processes_under(folder)

    await eventually(gone)
    assert not folder.exists()
    assert await agents.status("hw-linux-c", address) is AgentTrouble.SILENT
    await machines.stop("hw-linux-c")  # once more is fine


async def test_two_vms_do_not_take_each_others_worker_for_their_own(
    machines: Machines, agents: HttpAgents, github: TinyGitHub
) -> None:
    first, second = an_address(), an_address()
    await machines.boot("hw-linux-d", first, user_data("hw-linux-d", github.register(4)))
    await phase(agents, "hw-linux-d", first, AgentPhase.LISTENING)
    github.offer("603", seconds=60)
    await phase(agents, "hw-linux-d", first, AgentPhase.BUSY)
    await machines.boot("hw-linux-e", second, user_data("hw-linux-e", github.register(5)))
    idle = await phase(agents, "hw-linux-e", second, AgentPhase.LISTENING)
    assert (idle.worker, idle.job_seen) == (False, False)


async def test_a_vm_with_a_dead_agent_runs_and_says_nothing(machines: Machines, agents: HttpAgents) -> None:
    address, machines.dead_agents = an_address(), True
    await machines.boot("hw-linux-f", address, user_data("hw-linux-f"))
    assert machines.running("hw-linux-f")
    assert await agents.status("hw-linux-f", address) is AgentTrouble.SILENT


async def test_an_agent_can_be_ended_in_mid_job_and_the_job_goes_on_until_the_vm_is_stopped(
    machines: Machines, agents: HttpAgents, github: TinyGitHub
) -> None:
    address = an_address()
    await machines.boot("hw-linux-m", address, user_data("hw-linux-m", github.register(8)))
    github.offer("605", seconds=60)
    await phase(agents, "hw-linux-m", address, AgentPhase.BUSY)
    assert machines.mute("hw-linux-m")

    async def silent() -> bool:
        return await agents.status("hw-linux-m", address) is AgentTrouble.SILENT

    await eventually(silent)
    await eventually(partial(run_under, machines.root, 2))  # runner, worker
    assert not machines.mute("hw-linux-m")
    await machines.stop("hw-linux-m")
    assert not processes_under(machines.root)


async def test_a_name_is_booted_once(machines: Machines) -> None:
    machines.dead_agents = True
    await machines.boot("hw-linux-g", an_address(), user_data("hw-linux-g"))
    with pytest.raises(FileExistsError):
        await machines.boot("hw-linux-g", an_address(), user_data("hw-linux-g"))


SANDBOX = """
import asyncio, sys
from pathlib import Path
from sandbox.vms import Machines
from tests.test_sandbox_vms import user_data

async def main():
    machines = Machines(root=Path(sys.argv[1]))
    await machines.boot("hw-linux-h", sys.argv[2], sys.stdin.read())
    print("booted", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_no_vm_outlives_a_sandbox_that_is_killed(tmp_path: Path, agents: HttpAgents, github: TinyGitHub) -> None:
    address = an_address()
    sandbox = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SANDBOX, str(tmp_path), address, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert sandbox.stdin is not None
    sandbox.stdin.write(user_data("hw-linux-h", github.register(6)).encode())
    sandbox.stdin.close()
    try:
        github.offer("604", seconds=60)
        await phase(agents, "hw-linux-h", address, AgentPhase.BUSY)
        assert len(processes_under(tmp_path)) == 3
    finally:
        os.kill(sandbox.pid, signal.SIGKILL)
        await sandbox.wait()

    async def gone() -> bool:
        return not processes_under(tmp_path)

    await eventually(gone)


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        ({"content": "plain"}, b"plain"),
        ({"content": "cGxhaW4=", "encoding": "b64"}, b"plain"),
        ({}, b""),
    ],
)
def test_files_are_decoded_as_cloud_init_does(entry: dict[str, str], content: bytes) -> None:
    assert decoded(entry) == content


def test_user_data_that_cloud_init_would_not_read_is_refused() -> None:
    with pytest.raises(ValueError, match="#cloud-config"):
        list(files_of("#!/bin/sh\n"))
    with pytest.raises(ValueError, match="encoding"):
        decoded({"content": "x", "encoding": "rot13"})
