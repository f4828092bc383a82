"""The agent on a Windows VM (preview): `agent.py` beside it, with Windows' answers to what that asks Linux.

Its `--root` is C:\\runnerpool, below which everything has the place that it has on Linux. The runner runs as the agent does.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from importlib import import_module
from typing import Any

agent: Any = import_module("agent")  # from the folder of this script, which is no package there

QUERY, STILL_ACTIVE = 0x1000, 259  # PROCESS_QUERY_LIMITED_INFORMATION, and what GetExitCodeProcess says of the living

agent.STARTED, agent.COMPLETED = "job-started.ps1", "job-completed.ps1"
agent.HOOK = 'New-Item -ItemType File -Force "$PSScriptRoot\\..\\marks\\$($MyInvocation.MyCommand.Name)" | Out-Null; exit 0\n'

# As on Linux: nothing runs before the configuration has come through the pipe, and nothing ever if the agent dies first.
# PowerShell itself reads a redirected standard input, for `$input`, and would take the line away: `-InputFormat None` forbids it.
READ = "$env:ACTIONS_RUNNER_INPUT_JITCONFIG = [Console]::In.ReadLine(); if (-not $env:ACTIONS_RUNNER_INPUT_JITCONFIG) { exit 127 }"
RUN = f"{READ}; & .\\run.cmd; exit $LASTEXITCODE"
POWERSHELL = ["powershell.exe", "-NoProfile", "-NonInteractive", "-InputFormat", "None", "-ExecutionPolicy", "Bypass"]
agent.LAUNCH = [*POWERSHELL, "-Command", RUN]


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX: two 32-bit numbers, then seven of 64 bits."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("free", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 5),
    )


def kernel() -> Any:
    """kernel32. A handle is a pointer: left alone, ctypes would cut it to 32 bits."""
    library = ctypes.__dict__["WinDLL"]("kernel32")  # by a name that Windows alone has
    library.OpenProcess.restype = ctypes.c_void_p
    return library


def memory() -> dict[str, int]:
    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    kernel().GlobalMemoryStatusEx(ctypes.byref(status))
    return {"total": status.total, "free": status.free}


def process(pid: int | str) -> tuple[int, int] | None:
    """Its own id, in place of a session's, and when it was created, in 100 ns since 1601; None for one that has ended."""
    library, code, times = kernel(), ctypes.c_uint32(), [ctypes.c_uint64() for _ in range(4)]
    handle = ctypes.c_void_p(library.OpenProcess(QUERY, False, int(pid)))
    if not handle:
        return None
    try:
        library.GetExitCodeProcess(handle, ctypes.byref(code))
        library.GetProcessTimes(handle, *map(ctypes.byref, times))
    finally:
        library.CloseHandle(handle)
    return (int(pid), times[0].value) if code.value == STILL_ACTIVE else None


def worker_runs(session: int | None) -> bool:
    """Whether a job worker runs now, whoever started it: there is one runner on this machine."""
    command = ["tasklist.exe", "/NH", "/FO", "CSV", "/FI", "IMAGENAME eq Runner.Worker.exe"]
    return session is not None and b"Runner.Worker" in subprocess.run(command, capture_output=True, check=True).stdout


agent.memory, agent.process, agent.worker_runs = memory, process, worker_runs

if __name__ == "__main__":
    agent.main(sys.argv[1:])
