"""The app in a Functions host: Azure's own Core Tools where they are installed, otherwise the sandbox's host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import IO

from sandbox.host import SOURCE, Host

START_SECONDS = 120.0
"""The first start of Core Tools downloads the extension bundle."""

STOP_SECONDS = 10.0


@asynccontextmanager
async def app_host(name: str, *, settings: Mapping[str, str], log: IO[str]) -> AsyncIterator[str]:
    """Runs this project's app and yields its base URL. `name` is func, sandbox, or auto: func where it is on the PATH.

    Raises RuntimeError when Core Tools do not start.
    """
    if name == "func" or (name == "auto" and shutil.which("func")):
        async with _core_tools(settings, log) as url:
            yield url
    else:
        async with Host(root=SOURCE, settings=settings, log=log) as host:
            yield host.url


@asynccontextmanager
async def _core_tools(settings: Mapping[str, str], log: IO[str]) -> AsyncIterator[str]:
    port = _free_port()
    process = await asyncio.create_subprocess_exec(
        "func",
        "start",
        "--port",
        str(port),
        cwd=SOURCE,
        env={**os.environ, **settings},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        await _listening(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        await _end_group(process)


async def _listening(process: asyncio.subprocess.Process, port: int) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            while process.returncode is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return
                await asyncio.sleep(0.2)
    raise RuntimeError("func start does not answer; its log says why; with --host sandbox it is not needed")


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """Core Tools start workers of their own, in the process group that they were given."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
