"""The Windows preview, as far as it goes without Windows: its PowerShell parsed, its agent run over stand-ins for Windows."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tree_sitter
import tree_sitter_powershell

from runnerpool.vm import agent
from tests import windows_stand_ins
from tests.agent_vm import Vm
from tests.agent_vm import github as github
from tests.tiny_github import TinyGitHub
from tests.windows_stand_ins import LAUNCHER, POWERSHELL, RUN_CMD, TASKLIST, Kernel32

SCRIPTS = sorted((Path(__file__).parents[1] / "infra/image/windows").glob("*.ps1"))
HERE = Path(agent.__file__).parent

# ---------------------------------------------------------------------------------------------- PowerShell


def slips(script: str) -> list[str]:
    """What the grammar cannot make sense of, and what it misses."""
    language = tree_sitter.Language(tree_sitter_powershell.language())
    found: list[str] = []

    def walk(node: tree_sitter.Node) -> None:
        if node.is_error or node.is_missing:
            found.append(f"line {node.start_point.row + 1}: {node.type} {(node.text or b'').decode()[:80]}")
        for child in node.children:
            walk(child)

    walk(tree_sitter.Parser(language).parse(script.encode()).root_node)
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_images_scripts_are_powershell(script: Path) -> None:
    assert {script.name for script in SCRIPTS} == {"install.ps1", "start.ps1"}
    assert slips(script.read_text()) == []


@pytest.mark.parametrize(
    "slip", [("try {", "try ("), ("')", "'"), ("($LASTEXITCODE -ne 0)", "$LASTEXITCODE -ne 0"), (" | ", " | | ")]
)
def test_a_slip_in_them_would_be_noticed(slip: tuple[str, str]) -> None:
    text = next(script for script in SCRIPTS if script.name == "start.ps1").read_text()
    assert slips(text.replace(*slip, 1))


def test_what_the_agent_says_to_powershell_is_powershell(windows: Any) -> None:
    for text in (windows.RUN, windows.agent.HOOK):
        assert slips(text) == []
        assert slips(f"{text} }}")


# ---------------------------------------------------------------------------------------------- what Windows is asked


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """agent_windows.py over an agent module of its own, which it changes."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    load("agent")
    return load("agent_windows")


@pytest.fixture
def kernel(windows: Any, monkeypatch: pytest.MonkeyPatch) -> Kernel32:
    library = Kernel32()
    monkeypatch.setitem(windows.ctypes.__dict__, "WinDLL", lambda name: library)
    return library


def test_a_process_is_known_by_its_id_and_birth_while_it_lives_and_no_handle_is_left_open(windows: Any, kernel: Kernel32) -> None:
    child = subprocess.Popen(["sleep", "60"])
    found = windows.process(child.pid)
    assert found is not None
    assert found[0] == child.pid
    assert windows.process(str(child.pid)) == found
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert windows.process(child.pid) is None  # ended, and still there for whoever holds a handle of it
    child.wait()
    assert windows.process(child.pid) is None
    assert kernel.handles == []


def test_memory_is_read_from_the_whole_structure(windows: Any, kernel: Kernel32) -> None:
    assert windows.memory() == {"total": 16 << 30, "free": 9 << 30}


# ---------------------------------------------------------------------------------------------- the agent as a process


class WindowsVm(Vm):
    """The folder C:\\runnerpool of a Windows VM, with programs of Windows on the search path."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for name in ("agent.py", "agent_windows.py"):
            self.put(f"opt/runnerpool/{name}", (HERE / name).read_text())
        self.put("opt/actions-runner/run.cmd", RUN_CMD).chmod(0o755)
        for name, text in (("powershell.exe", POWERSHELL), ("tasklist.exe", TASKLIST)):
            self.put(f"windows/{name}", text).chmod(0o755)

    def launch(self) -> Path:
        log = self.root / f"agent-{len(self.agents)}.log"
        program = str(self.root / "opt/runnerpool/agent_windows.py")
        arguments = [windows_stand_ins.__file__, program, "--root", str(self.root)]
        here = {"PATH": f"{self.root}/windows:{os.environ['PATH']}", "RUNNER": str(self.root / "opt/actions-runner")}
        with log.open("wb") as output:
            command = [sys.executable, "-I", "-S", "-E", "-c", LAUNCHER, *arguments]
            self.agents.append(subprocess.Popen(command, stderr=output, start_new_session=True, env=here))
        return log


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[WindowsVm]:
    vm = WindowsVm(tmp_path)
    yield vm
    vm.stop()


async def test_it_runs_one_job_as_on_linux_and_finds_its_runner_again(machine: WindowsVm, github: TinyGitHub) -> None:
    machine.ready()
    await machine.start()
    waiting = await machine.until(phase="waiting")
    assert waiting["memory"] == {"total": 16 << 30, "free": 9 << 30}
    config = github.register(7)
    assert (await machine.bind(config)).status_code == 200
    await machine.until(phase="listening", binding=7)
    github.offer("501", seconds=3)
    await machine.until(phase="busy", worker=True)
    machine.terminate()
    await machine.start()
    status = await machine.until(phase="exited", worker=False)
    assert (status["binding"], status["job_seen"]) == (7, True)
    assert {"busy", "completed"} <= status["phases"].keys()
    assert (github.sessions, github.finished) == ([7], {"501": "success"})
    assert not [path for path, text in machine.texts() if config.encoded in text]


async def test_a_configuration_given_at_birth_starts_the_runner_and_is_erased(machine: WindowsVm, github: TinyGitHub) -> None:
    machine.born_with(github.register(8))
    await machine.start()
    machine.ready()
    await machine.until(phase="listening", binding=8)
    assert not (machine.root / agent.BIRTH).exists()
