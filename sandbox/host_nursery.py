"""Workers of the Functions host that start at once: one process imports what they need, and each of them is forked from it.

For tests that kill many: a start of its own costs a worker seconds of imports. The host asks for a worker and is told of its end
in lines of JSON on a socket; whatever ends the host closes that socket and the workers' standard input, which ends all of them.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

MODULES = ("sandbox.host_worker", "runnerpool.front", "runnerpool.app", "runnerpool.planner")
"""What the workers of this project's app import."""


class Nursling:
    """One forked worker, with what the host uses of an `asyncio.subprocess.Process`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    def end(self, code: int) -> None:
        self.returncode = code
        self._ended.set()

    async def wait(self) -> int | None:
        await self._ended.wait()
        return self.returncode

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError(self.pid)
        os.kill(self.pid, number)


class Nursery:
    """The host's side. `stop` ends the workers that are left, too."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._born: asyncio.Queue[Nursling] = asyncio.Queue()
        self._alive: dict[int, Nursling] = {}

    async def start(self, *, cwd: Path, env: Mapping[str, str], log: IO[str] | None, passed: Sequence[int] = ()) -> None:
        """`passed` are the file descriptors that the workers inherit."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sandbox.host_nursery", str(theirs.fileno())),
                cwd=cwd,
                env=env,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(*passed, theirs.fileno()),
                start_new_session=True,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._listening = asyncio.create_task(self._listen(reader))

    async def spawn(self, arguments: Sequence[str]) -> Nursling:
        """A worker with these arguments of `sandbox.host_worker`. RuntimeError: the process that forks them has ended."""
        assert self._writer is not None and self._listening is not None
        self._writer.write(json.dumps(arguments).encode() + b"\n")
        born = asyncio.ensure_future(self._born.get())
        await asyncio.wait({born, self._listening}, return_when=asyncio.FIRST_COMPLETED)
        if not born.done():
            born.cancel()
            raise RuntimeError("the process that workers are forked from has ended: its log says why")
        return born.result()

    async def stop(self) -> None:
        if self._process is None or self._writer is None or self._listening is None:
            return
        self._writer.close()
        await self._process.wait()
        await self._listening
        self._process = None

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            told: dict[str, Any] = json.loads(line)
            if "code" in told:
                self._alive.pop(told["pid"]).end(told["code"])
            else:
                self._alive[told["pid"]] = Nursling(told["pid"])
                self._born.put_nowait(self._alive[told["pid"]])
        for nursling in self._alive.values():  # the nursery itself has ended
            nursling.end(-signal.SIGKILL)


# ---------------------------------------------------------------------------------------------- the process itself


def _bear(arguments: list[str], host: socket.socket) -> int:
    """Forks a worker; returns its process id, in the worker never."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        host.close()
        os.setsid()
        sys.argv = ["sandbox.host_worker", *arguments]
        importlib.import_module("sandbox.host_worker").main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    host = socket.socket(fileno=int(sys.argv[1]))
    for module in MODULES:
        importlib.import_module(module)
    children: dict[int, int] = {}  # process ids by the descriptors that tell of their end
    with host, selectors.DefaultSelector() as watched:
        watched.register(host, selectors.EVENT_READ)
        while True:
            for key, _ in watched.select():
                if key.fileobj is not host:
                    watched.unregister(key.fileobj)
                    os.close(key.fd)
                    pid, status = os.waitpid(children.pop(key.fd), 0)
                    _tell(host, pid=pid, code=os.waitstatus_to_exitcode(status))
                    continue
                orders = _read(host)
                if not orders:
                    return _end_all(children.values())
                for arguments in orders:
                    pid = _bear(arguments, host)
                    children[ended := os.pidfd_open(pid)] = pid
                    watched.register(ended, selectors.EVENT_READ)
                    _tell(host, pid=pid)


def _read(host: socket.socket) -> list[list[str]]:
    """Whole lines, nothing when the host has gone."""
    lines = b""
    while not lines.endswith(b"\n"):
        if not (part := host.recv(65536)):
            return []
        lines += part
    return [json.loads(line) for line in lines.splitlines()]


def _tell(host: socket.socket, **what: int) -> None:
    with suppress(BrokenPipeError):  # the host has gone, which the next reading shows
        host.sendall(json.dumps(what).encode() + b"\n")


def _end_all(pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
