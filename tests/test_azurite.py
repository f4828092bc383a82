from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runnerpool.errors import RetryLater
from runnerpool.ports import Insert
from runnerpool.settings import StorageConnection
from runnerpool.tables import AzureTable
from sandbox import azurite
from sandbox.azurite import Azurite


def table(connection_string: str) -> AzureTable:
    return AzureTable(storage=StorageConnection(connection_string=connection_string), name="runnerpool")


async def test_it_answers_once_started_and_no_more_once_stopped() -> None:
    emulator = Azurite()
    ledger = table(await emulator.start())
    await ledger.create_if_missing()
    await ledger.create_if_missing()
    assert await ledger.read("p") == []
    await emulator.stop()
    with pytest.raises(RetryLater):
        await ledger.read("p")
    await ledger.close()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = emulator.connection_string
    await emulator.stop()


async def test_with_a_folder_its_rows_outlive_it(tmp_path: Path) -> None:
    for rows in (0, 1):
        emulator = Azurite(folder=tmp_path / "data")
        ledger = table(await emulator.start())
        await ledger.create_if_missing()
        assert len(await ledger.read("p")) == rows
        await ledger.transact("p", [Insert(f"row {rows}", {})])
        await ledger.close()
        await emulator.stop()


async def test_a_port_that_is_taken_is_an_error_with_azurites_own_words() -> None:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RuntimeError, match="EADDRINUSE"):
            await Azurite(table_port=port).start()


def test_a_missing_installation_says_what_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(azurite, "PROGRAM", tmp_path / "azurite.js")
    with pytest.raises(RuntimeError, match="make setup"):
        Azurite().launch()


def test_it_dies_with_a_process_that_is_killed() -> None:
    program = "from sandbox.azurite import Azurite; a = Azurite(); a.launch(); print(a.pid, flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < deadline, "Azurite has outlived its parent"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
