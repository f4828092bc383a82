"""What the sandbox's Azure does to one VM on request: a set-up that fails, an eviction with its notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from runnerpool.agent_client import HttpAgents
from runnerpool.ports import AgentPhase, AgentStatus
from sandbox import clock
from sandbox.vms import Machines
from tests.azure_sandbox import COMPUTE_VERSION, VMS, Azure, call, named, put, running_azure
from tests.github_fixture import LABELS, TARGET, places, runner_of
from tests.test_sandbox_vms import agents as agents
from tests.test_sandbox_vms import an_address, phase, user_data
from tests.test_sandbox_vms import machines as machines
from tests.waiting import eventually

SPOT = named("spot", spot=True)


@pytest.fixture
async def azure() -> AsyncIterator[Azure]:
    async with running_azure() as sandbox:
        yield sandbox


# ---------------------------------------------------------------------------------------------- on the VM


async def test_a_set_up_that_fails_says_so_in_its_log_and_the_vm_is_never_ready(machines: Machines, agents: HttpAgents) -> None:
    address, words = an_address(), "what came from https://example.com is not runner 2.330.0"
    await machines.boot("hw-linux-n", address, user_data("hw-linux-n"), setup_error=words)

    async def told() -> bool:
        status = await agents.status("hw-linux-n", address)
        return isinstance(status, AgentStatus) and status.phase is AgentPhase.SETUP and status.log[-1] == words

    await eventually(told)
    assert not (machines.root / "hw-linux-n/var/lib/runnerpool/ready").exists()


async def test_a_spot_vms_agent_reads_the_notice_that_it_was_given(machines: Machines, agents: HttpAgents) -> None:
    address, at = an_address(), clock.now().replace(microsecond=0) + timedelta(seconds=30)
    await machines.boot("hw-linux-o", address, user_data("hw-linux-o"))
    machines.warn("hw-linux-o", at)
    machines.warn("hw-linux-none", at)
    assert (await phase(agents, "hw-linux-o", address, AgentPhase.WAITING)).binding is None

    async def warned() -> bool:
        status = await agents.status("hw-linux-o", address)
        return isinstance(status, AgentStatus) and status.eviction_at == at

    await eventually(warned)


async def test_a_runner_whose_version_github_refuses_ends_at_once_without_a_job(machines: Machines, agents: HttpAgents) -> None:
    address, name = an_address(), "hw-linux-p"
    async with places() as start:
        place = await start()
        place.fail("refuse_version", path=name)
        job = place.queue()
        config = await place.github.mint_jit_config(TARGET, name, LABELS, "Default")
        await machines.boot(name, address, user_data(name, config))
        status = await phase(agents, name, address, AgentPhase.EXITED)
        assert (status.job_seen, status.exit_code, status.binding) == (False, 0, config.runner_id)
        assert "is deprecated and cannot receive messages" in (machines.root / name / "var/log/runnerpool/runner.log").read_text()
        assert (job.status, runner_of(place.sandbox, name).registered) == ("queued", True)


# ---------------------------------------------------------------------------------------------- by Azure


async def test_a_set_up_fails_on_the_vms_that_the_fault_matches(azure: Azure) -> None:
    await azure.fault("setup_fails", message="no space left", match={"name": "*-bad"}, times=1)
    for name in ("good", "bad"):
        await put(azure, named(name))
    await azure.settle()
    assert azure.machines.setup_errors == {named("good").name: "", named("bad").name: "no space left"}
    assert {vm["state"] for vm in (await azure.state())["vms"]} == {"Succeeded"}


async def test_an_eviction_with_notice_comes_after_it(azure: Azure) -> None:
    await azure.fault("evict", seconds=0.01, notice=0.05)
    before = clock.now()
    await put(azure, SPOT)
    await azure.settle()
    log = (await azure.state())["log"]
    assert [entry["event"] for entry in log] == ["accepted", "running", "evicted"]
    assert before < azure.machines.warned[SPOT.name] <= clock.now()


async def test_a_vm_that_is_deleted_within_its_notice_is_not_evicted(azure: Azure) -> None:
    await put(azure, SPOT)
    await azure.settle()
    asked = asyncio.create_task(call(azure, "POST", "/_admin/evict", json={"name": SPOT.name, "notice": 60}))

    async def warned() -> bool:
        return SPOT.name in azure.machines.warned

    await eventually(warned)
    await call(azure, "DELETE", f"{VMS}/{SPOT.name}?{COMPUTE_VERSION}")
    assert (await asyncio.wait_for(asked, 30)).status == 204
    await azure.settle()
    assert [entry["event"] for entry in (await azure.state())["log"]][-1] == "deleted"
