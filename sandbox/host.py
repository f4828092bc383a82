"""A small Functions host, for machines without Core Tools: `python -m sandbox.host [--root FOLDER] [--port N]`.

It reads an app's functions and bindings from its `FunctionApp` object and from host.json, and runs the HTTP functions in one
process and every queue and timer function in a process of its own, as Flex Consumption does; a process that ends is started
again. It knows HTTP, queue and timer triggers, and table and queue outputs, which it stores before it answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from sandbox.host_app import HTTP_GROUP, IndexingError, read_functions, read_host_json
from sandbox.host_nursery import Nursery, Nursling

SOURCE = Path(__file__).resolve().parent.parent

RESTART_SECONDS = 1.0
"""The pause before a process that ended by itself is started again."""

STOP_SECONDS = 5.0


class Host:
    """Runs the app in `root` with `settings` as its app settings, on loopback. `port` 0 takes a free one; `log` gets all output.
    `forked`: the processes are forked from one that has imported this project's app, and so start within milliseconds."""

    def __init__(
        self, *, root: Path, settings: Mapping[str, str], port: int = 0, log: IO[str] | None = None, forked: bool = False
    ) -> None:
        self._root = root.resolve()
        self._settings = dict(settings)
        self._port = port
        self._log = log
        self._socket: socket.socket | None = None
        self._nursery = Nursery() if forked else None
        self._processes: dict[str, asyncio.subprocess.Process | Nursling] = {}
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """Where the HTTP functions are. The port is open from `start` on, whichever process serves it."""
        if self._socket is None:
            raise RuntimeError("the host does not run")
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def pid(self, group: str) -> int:
        """The process that runs a group: "http", or the name of a queue or timer function."""
        return self._processes[group].pid

    def running(self) -> list[str]:
        """The groups whose process runs now; one that ended is started again a moment later."""
        return [group for group, process in self._processes.items() if process.returncode is None]

    async def start(self) -> None:
        """Starts one process a group. Raises IndexingError when the app cannot be run, OSError when the port is taken; what runs
        by then is ended."""
        read_host_json(self._root)
        groups = sorted({function.group for function in read_functions(self._root)})
        async with contextlib.AsyncExitStack() as started:
            started.push_async_callback(self.stop)
            self._socket = socket.create_server(("127.0.0.1", self._port), backlog=512)
            if self._nursery is not None:
                await self._nursery.start(cwd=SOURCE, env=self._environment, log=self._log, passed=(self._socket.fileno(),))
            for group in groups:
                self._processes[group] = await self._spawn(group)
                self._keepers.append(asyncio.create_task(self._keep(group)))
            started.pop_all()

    async def stop(self) -> None:
        """Ends every process; one that does not within seconds is killed. Fine to call twice."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers.clear()
        await asyncio.gather(*(_end(process) for process in self._processes.values()))
        self._processes.clear()
        if self._nursery is not None:
            await self._nursery.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def __aenter__(self) -> Host:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._settings}

    async def _spawn(self, group: str) -> asyncio.subprocess.Process | Nursling:
        arguments = ["--root", str(self._root), "--group", group]
        passed: tuple[int, ...] = ()
        if group == HTTP_GROUP:
            assert self._socket is not None
            passed = (self._socket.fileno(),)
            arguments += ["--socket", str(self._socket.fileno())]
        if self._nursery is not None:
            return await self._nursery.spawn(arguments)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sandbox.host_worker", *arguments),
            cwd=SOURCE,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=passed,
            # A terminal's Ctrl-C is for the host, which then ends its processes in order.
            start_new_session=True,
        )

    async def _keep(self, group: str) -> None:
        while True:
            code = await self._processes[group].wait()
            print(f"host: the process of {group} ended ({code}); starting it again", file=self._log or sys.stderr, flush=True)
            await asyncio.sleep(RESTART_SECONDS)
            self._processes[group] = await self._spawn(group)


async def _end(process: asyncio.subprocess.Process | Nursling) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


def local_settings(root: Path) -> dict[str, str]:
    """`Values` of local.settings.json, for those settings that the environment does not hold already, as Core Tools has it.

    Raises IndexingError when the file cannot be read; none is fine.
    """
    file = root / "local.settings.json"
    if not file.exists():
        return {}
    try:
        values = json.loads(file.read_text()).get("Values", {})
    except (OSError, ValueError, AttributeError) as error:
        raise IndexingError(f"{file}: {error}") from error
    return {name: str(value) for name, value in values.items() if name not in os.environ}


async def _run(root: Path, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Host(root=root, settings=local_settings(root), port=port) as host:
        print(f"host: {host.url}", flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.host", description="Runs a Functions app without Core Tools.")
    parser.add_argument("--root", type=Path, default=SOURCE, help="the app's folder (default: this project)")
    parser.add_argument("--port", type=int, default=7071)
    options = parser.parse_args()
    try:
        asyncio.run(_run(options.root, options.port))
    except (IndexingError, OSError) as error:
        sys.exit(f"host: {error}")


if __name__ == "__main__":
    main()
