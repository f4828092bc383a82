"""The life of a runner under the real agent.py, with the sandbox's runner program in place of run.sh."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from runnerpool.vm import agent
from tests.agent_vm import Vm
from tests.agent_vm import github as github
from tests.agent_vm import machine as machine
from tests.agent_vm import vm as vm
from tests.tiny_github import TinyGitHub
from tests.waiting import eventually

# ---------------------------------------------------------------------------------------------- the life of a runner


async def test_a_machine_says_that_it_waits_once_its_set_up_is_through(machine: Vm) -> None:
    await machine.start()
    assert (await machine.status())["phase"] == "setup"
    machine.ready()
    status = await machine.until(phase="waiting")
    assert status["runner_version"] == "2.330.0"
    assert (status["binding"], status["exit_code"], status["eviction_at"]) == (None, None, None)
    assert (status["worker"], status["job_seen"]) == (False, False)
    assert status["disk"]["total"] > status["disk"]["free"] > 0
    assert status["memory"]["total"] > status["memory"]["free"] > 0
    assert status["log"] == [f"line {number}" for number in range(150, 200)]
    assert datetime.fromisoformat(status["phases"]["setup"]) <= datetime.fromisoformat(status["since"])


async def test_a_configuration_given_at_birth_starts_the_runner_when_the_set_up_is_through(machine: Vm, github: TinyGitHub) -> None:
    machine.born_with(github.register(7))
    await machine.start()
    status = await machine.status()
    assert (status["phase"], status["binding"], github.sessions) == ("setup", 7, [])
    machine.ready()
    await machine.until(phase="listening", binding=7)
    assert github.sessions == [7]


async def test_a_late_binding_runs_one_job_and_shows_it(vm: Vm, github: TinyGitHub) -> None:
    answer = await vm.bind(github.register(8))
    assert (answer.status_code, answer.json()["binding"]) == (200, 8)
    await vm.until(phase="listening")
    github.offer("501", seconds=60)
    status = await vm.until(phase="busy", worker=True)
    assert status["job_seen"]
    assert datetime.fromisoformat(status["phases"]["busy"])
    [worker] = vm.processes("Runner.Worker")
    os.kill(worker, signal.SIGKILL)  # as with the real runner a lost worker fails the job
    status = await vm.until(phase="exited")
    assert github.finished == {"501": "failure"}
    assert (status["worker"], status["job_seen"], status["exit_code"]) == (False, True, 0)
    assert "completed" in status["phases"]


async def test_a_job_too_quick_to_be_seen_is_known_by_its_traces(vm: Vm, github: TinyGitHub) -> None:
    github.offer("502", seconds=0)
    await vm.bind(github.register(9))
    status = await vm.until(phase="exited")
    assert status["job_seen"]
    assert github.finished == {"502": "success"}


async def test_a_worker_log_alone_is_a_sign_of_a_job(vm: Vm, github: TinyGitHub) -> None:
    await vm.bind(github.register(9))
    await vm.until(phase="listening")
    vm.put("opt/actions-runner/_diag/Worker_20260101-000000-utc.log", "")
    assert (await vm.status())["phase"] == "busy"


# ---------------------------------------------------------------------------------------------- bindings


async def test_repeating_a_binding_starts_nothing(vm: Vm, github: TinyGitHub) -> None:
    config = github.register(10)
    await vm.bind(config)
    await vm.until(phase="listening")
    before = vm.processes("runner.py")
    answer = await vm.bind(config)
    assert (answer.status_code, answer.json()["binding"]) == (200, 10)
    assert (vm.processes("runner.py"), github.sessions) == (before, [10])


async def test_another_binding_is_refused_while_a_runner_listens(vm: Vm, github: TinyGitHub) -> None:
    await vm.bind(github.register(11))
    await vm.until(phase="listening")
    answer = await vm.bind(github.register(12))
    assert (answer.status_code, answer.json()["binding"]) == (409, 11)
    assert github.sessions == [11]


async def test_a_runner_that_left_without_a_job_may_be_replaced_but_not_repeated(vm: Vm, github: TinyGitHub) -> None:
    config = github.register(13)
    await vm.bind(config)
    await vm.until(phase="listening")
    github.registered.clear()
    await vm.until(phase="exited", job_seen=False, exit_code=0)
    assert (await vm.bind(config)).json()["phase"] == "exited"  # a configuration is good for one session
    assert (await vm.bind(github.register(14))).status_code == 200
    await vm.until(phase="listening", binding=14)
    assert github.sessions == [13, 14]


async def test_no_binding_is_taken_any_more_after_a_job(vm: Vm, github: TinyGitHub) -> None:
    github.offer("503", seconds=0)
    await vm.bind(github.register(15))
    await vm.until(phase="exited")
    for _ in range(2):
        answer = await vm.bind(github.register(16))
        assert (answer.status_code, answer.json()["binding"]) == (409, 15)
    vm.terminate()
    await vm.start()
    assert (await vm.bind(github.register(17))).status_code == 409


async def test_a_binding_given_at_birth_refuses_another_one_before_it_has_started(machine: Vm, github: TinyGitHub) -> None:
    machine.born_with(github.register(18))
    await machine.start()
    assert (await machine.bind(github.register(19))).status_code == 409


async def test_a_binding_during_the_set_up_is_asked_to_come_back(machine: Vm, github: TinyGitHub) -> None:
    await machine.start()
    answer = await machine.bind(github.register(20))
    assert answer.status_code == 503
    assert "set-up" in answer.json()["error"]


async def test_a_runner_that_cannot_be_started_shows_as_exited(vm: Vm, github: TinyGitHub) -> None:
    program = vm.root / "opt/actions-runner/run.sh"
    sound = program.read_text()
    program.unlink()
    await vm.bind(github.register(21))
    await vm.until(phase="exited", exit_code=127, job_seen=False)
    vm.put("opt/actions-runner/run.sh", sound).chmod(0o755)
    await vm.bind(github.register(22))
    await vm.until(phase="listening", binding=22)


# ---------------------------------------------------------------------------------------------- restarts


async def test_the_runner_outlives_the_agent_and_the_next_agent_finds_it_again(vm: Vm, github: TinyGitHub) -> None:
    config = github.register(23)
    await vm.bind(config)
    await vm.until(phase="listening")
    runners = vm.processes("runner.py")
    assert vm.terminate() == 0
    assert vm.processes("runner.py") == runners
    await vm.start()
    status = await vm.status()
    assert (status["phase"], status["binding"]) == ("listening", 23)
    assert (await vm.bind(config)).status_code == 200
    assert (await vm.bind(github.register(24))).status_code == 409
    github.offer("504", seconds=60)
    await vm.until(phase="busy", worker=True)
    assert (vm.processes("runner.py"), github.sessions) == (runners, [23])


async def test_a_runner_that_ended_while_no_agent_looked_is_exited_and_its_job_known(vm: Vm, github: TinyGitHub) -> None:
    await vm.bind(github.register(25))
    await vm.until(phase="listening")
    vm.terminate()
    github.offer("505", seconds=0)

    async def finished() -> bool:
        return bool(github.finished) and not vm.processes("runner.py")

    await eventually(finished)
    await vm.start()
    status = await vm.status()
    assert (status["phase"], status["job_seen"], status["exit_code"]) == ("exited", True, None)


async def test_a_recycled_process_id_is_not_taken_for_the_runner(vm: Vm, github: TinyGitHub) -> None:
    await vm.bind(github.register(26))
    await vm.until(phase="listening")
    vm.terminate()
    state = vm.root / agent.STATE
    content = json.loads(state.read_text())
    state.write_text(json.dumps(content | {"start": content["start"] - 1}))
    await vm.start()
    assert (await vm.status())["phase"] == "exited"


async def test_a_birth_configuration_is_not_used_twice_when_the_agent_died_before_erasing_it(
    machine: Vm, github: TinyGitHub
) -> None:
    config = github.register(27)
    machine.born_with(config)
    machine.ready()
    await machine.start()
    await machine.until(phase="listening")
    machine.terminate()
    machine.born_with(config)
    await machine.start()
    await machine.until(phase="listening", binding=27)

    async def erased() -> bool:
        return not (machine.root / agent.BIRTH).exists()

    await eventually(erased)
    assert github.sessions == [27]


# ---------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize("at_birth", [True, False])
async def test_no_trace_of_a_used_configuration_stays(machine: Vm, github: TinyGitHub, at_birth: bool) -> None:
    config = github.register(28)
    if at_birth:
        machine.born_with(config)
    machine.ready()
    await machine.start()
    if not at_birth:
        await machine.bind(config)
    await machine.until(phase="listening")
    assert not any(config.encoded.encode() in command for command in machine.processes("").values())
    github.offer("506", seconds=0)
    await machine.until(phase="exited")
    assert [path for path, text in machine.texts() if config.encoded in text or "token-of-28" in text] == []
    assert config.encoded not in json.dumps(await machine.status())


async def test_a_request_that_fails_is_logged_without_its_content(vm: Vm, github: TinyGitHub) -> None:
    config = github.register(29)
    (vm.root / "opt/actions-runner/run.sh").unlink()
    (vm.root / "opt/actions-runner").rmdir()
    await vm.bind(config)
    await vm.until(phase="exited", exit_code=127)
    assert [path for path, text in vm.texts() if config.encoded in text] == []


def test_the_state_file_is_for_root_alone(tmp_path: Path) -> None:
    agent.write(tmp_path / "state.json", "{}", 0o600)
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


# ---------------------------------------------------------------------------------------------- the file itself


def test_the_agent_is_written_in_python_3_10_and_needs_the_standard_library_only() -> None:
    tree = ast.parse(Path(agent.__file__).read_text(), feature_version=(3, 10))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


async def test_a_full_disk_silences_nobody(vm: Vm, github: TinyGitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from inside: the state cannot be saved, and the status is given all the same."""
    machine = agent.Agent(vm.root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agent, "write", full)
    (vm.root / agent.READY).unlink()
    assert machine.status()["phase"] == "setup"
    (vm.root / agent.READY).write_text("2.330.0")
    machine.launch(30, github.register(30).encoded)  # what cannot be written down is not started
    assert machine.child is not None
    machine.child.wait(10)
    assert (machine.status()["phase"], github.sessions) == ("exited", [])


@asynccontextmanager
async def metadata(*answers: web.Response) -> AsyncIterator[str]:
    """The address of a service that gives these answers, and then the last one again."""
    left = list(answers)

    async def events(request: web.Request) -> web.Response:
        assert request.headers["Metadata"] == "true"
        answer = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type)

    app = web.Application()
    app.router.add_get("/events", events)
    server = web.AppRunner(app)
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{server.addresses[0][1]}/events"
    finally:
        await server.cleanup()


def announced(*events: dict[str, Any]) -> web.Response:
    return web.json_response({"DocumentIncarnation": 1, "Events": list(events)})


async def test_an_eviction_that_azure_announces_shows_in_the_status(machine: Vm) -> None:
    preempt = {"EventType": "Preempt", "Resources": ["hw-linux-a"], "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT"}
    async with metadata(announced({"EventType": "Reboot"}, preempt)) as address:
        config = json.loads((machine.root / agent.CONFIG).read_text())
        machine.put(agent.CONFIG, json.dumps(config | {"scheduled_events": address}))
        await machine.start()
        await machine.until(eviction_at="2016-09-19T18:29:47.000Z")


async def test_the_watch_for_evictions_outlives_whatever_the_service_answers(
    machine: Vm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Enough(Exception):
        pass

    def no_sleep(_: float) -> None:
        if one.eviction_at:
            raise Enough

    one = agent.Agent(machine.root)
    monkeypatch.setattr("runnerpool.vm.agent.time.sleep", no_sleep)
    nonsense = [web.Response(status=503), web.Response(text="<html>"), web.json_response([]), web.json_response({"Events": None})]
    begun = {"EventType": "Preempt", "NotBefore": ""}
    async with metadata(*nonsense, announced(), announced({"EventType": "Preempt", "NotBefore": "soon"}), announced(begun)) as url:
        with pytest.raises(Enough):
            await asyncio.to_thread(agent.watch_evictions, one, url)
    assert one.eviction_at is not None
    assert capsys.readouterr().err.count("scheduled events: ") == len(nonsense) + 1
