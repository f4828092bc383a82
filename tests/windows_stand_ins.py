"""What the Windows agent asks of Windows, answered by this Linux: `kernel32`, `powershell.exe`, `tasklist.exe`, `run.cmd`.

Standard library only: an agent process of its own loads it by path, in place of the real ones.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

FAR = 1 << 40
"""Added to a process id to make a handle: one that is cut to 32 bits is noticed."""
STILL_ACTIVE, ENDED = 259, 1


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


class OpenProcess:
    """A function of a library as ctypes shows it: what it returns is cut to an int unless told otherwise."""

    restype: Any = ctypes.c_int

    def __init__(self, handles: list[int]) -> None:
        self.handles = handles

    def __call__(self, access: int, inherited: bool, pid: int) -> int | None:
        if stat(pid) is None:
            return None
        self.handles.append(pid + FAR)
        return pid + FAR if self.restype is ctypes.c_void_p else ctypes.c_int(pid + FAR).value


class Kernel32:
    """`handles` are those that are open."""

    def __init__(self, name: str = "kernel32") -> None:
        assert name == "kernel32"
        self.handles: list[int] = []
        self.OpenProcess = OpenProcess(self.handles)

    def _fields(self, handle: ctypes.c_void_p) -> list[str] | None:
        assert handle.value in self.handles, "no such handle is open"
        return stat(handle.value - FAR)

    def GetExitCodeProcess(self, handle: ctypes.c_void_p, code: Any) -> int:
        fields = self._fields(handle)
        code._obj.value = STILL_ACTIVE if fields and fields[0] not in "ZX" else ENDED
        return 1

    def GetProcessTimes(self, handle: ctypes.c_void_p, created: Any, *others: Any) -> int:
        assert len(others) == 3
        fields = self._fields(handle)
        created._obj.value = int(fields[19]) if fields else 0
        return 1

    def CloseHandle(self, handle: ctypes.c_void_p) -> int:
        assert handle.value is not None
        self.handles.remove(handle.value)
        return 1

    def GlobalMemoryStatusEx(self, status: Any) -> int:
        assert status._obj.length == 64
        status._obj.total, status._obj.free = 16 << 30, 9 << 30
        return 1


# As the real one it takes the first line of its standard input for itself, unless told that there is none for it.
POWERSHELL = f"""#!{sys.executable} -ISE
import os, sys
options = dict(zip(sys.argv[1:], sys.argv[2:]))
if options.get("-InputFormat") != "None":
    sys.stdin.readline()
os.environ["ACTIONS_RUNNER_INPUT_JITCONFIG"] = sys.stdin.readline().rstrip("\\n")
if not os.environ["ACTIONS_RUNNER_INPUT_JITCONFIG"]:
    sys.exit(127)
os.execv("./run.cmd", ["run.cmd"])
"""

TASKLIST = """#!/bin/sh
for process in /proc/[0-9]*; do
    if [ "$(readlink "$process/cwd")" = "$RUNNER" ] && grep -qsa Runner.Worker "$process/cmdline"; then
        echo '"Runner.Worker.exe","4711","Services","0","61,000 K"'
        exit
    fi
done
echo 'INFO: No tasks are running which match the specified criteria.'
"""

# The hooks are PowerShell; what they do is done here: each leaves a mark of its own name.
RUN_CMD = """#!/bin/sh
for hook in "$ACTIONS_RUNNER_HOOK_JOB_STARTED" "$ACTIONS_RUNNER_HOOK_JOB_COMPLETED"; do
    [ -f "$hook" ] || exit 1
    echo "touch '${hook%/*}/../marks/${hook##*/}'" >"$hook.sh"
done
export ACTIONS_RUNNER_HOOK_JOB_STARTED="$ACTIONS_RUNNER_HOOK_JOB_STARTED.sh"
export ACTIONS_RUNNER_HOOK_JOB_COMPLETED="$ACTIONS_RUNNER_HOOK_JOB_COMPLETED.sh"
exec ./run.sh
"""

LAUNCHER = """
import ctypes, runpy, sys
stand_ins, program, *arguments = sys.argv[1:]
sys.path.insert(0, program.rpartition("/")[0])
ctypes.WinDLL = runpy.run_path(stand_ins)["Kernel32"]
sys.argv = [program, *arguments]
runpy.run_path(program, run_name="__main__")
"""
"""Runs a program as Windows would, as far as its `ctypes` goes."""
