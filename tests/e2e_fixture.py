"""A deployment under test: the real function_app.py in real processes, Azurite, the sandbox's Azure, GitHub and VMs.

Everything runs on the sandbox's clock, many times as fast as the real one, so that a claim's four minutes pass in seconds; what
is awaited here is awaited in real seconds, as a condition with a deadline. What came out is read from the sandbox's own
records and from the ledger.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from azure.storage.queue.aio import QueueClient

from runnerpool.ledger import Ledger
from runnerpool.model import Runner, RunnerState
from runnerpool.settings import StorageConnection
from runnerpool.tables import AzureTable
from sandbox.azurite import Azurite
from sandbox.demo_records import Order, Records
from sandbox.host import SOURCE, Host
from sandbox.stack import Stack
from tests.waiting import eventually

SETTLING = 80.0
"""Real seconds within which a world settles after whatever was done to it: 12 minutes of its clock are the longest wait."""

IDLE = (RunnerState.READY, RunnerState.REGISTERED)

Pool = Mapping[str, Any]


def pool(name: str, **changes: Any) -> Pool:
    """A pool of the pool file, with the label of its name. A VM beyond the warm minimum idles for two minutes."""
    shape = {"sizes": ["Standard_D4ads_v5"], "os_disk": {"ephemeral": True}}
    small = {"maximum_pool_size": 4, "idle_timeout": "2m"}
    return {"name": name, "labels": ["self-hosted", name], **small, "vm": shape, **changes}


@contextmanager
def fast_clock(rate: float) -> Iterator[None]:
    """One clock for the sandbox's servers, which run in this process, and for the app's processes, which inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANDBOX_CLOCK", f"{time.time()}:{rate}")
        yield


@asynccontextmanager
async def deployed(
    folder: Path, pools: Sequence[Pool], *, seed: int = 0, lost_after: float = 600.0, forked: bool = False, **github: Any
) -> AsyncIterator[Deployment]:
    """Runs the app with these pools until the end of the block; `github` is that section of the pool file beyond its owner,
    `seed` and `lost_after` are as for `Stack`, `forked` as for `Host`."""
    file = folder / "pool-config.yaml"
    document = {"azure": {"name_prefix": "hw"}, "github": {"owner": "octo-org", **github}, "pools": [*pools]}
    file.write_text(yaml.safe_dump(document))
    storage = Azurite(folder=folder / "storage")
    stack = Stack(folder=folder, pool_file=file, storage=storage, seed=seed, lost_after=lost_after)
    with (folder / "host.log").open("w") as log:
        async with (
            stack,
            Host(root=SOURCE, settings=stack.environment, log=log, forked=forked) as host,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http,
        ):
            stack.deliver_to(host.url)
            async with Deployment(stack=stack, host=host, http=http, storage=storage) as deployment:
                await deployment.until(deployment.answers)
                yield deployment


class Deployment:
    """`order` grows as jobs are queued. `storage` may be stopped and started: it keeps its rows and its ports."""

    def __init__(self, *, stack: Stack, host: Host, http: aiohttp.ClientSession, storage: Azurite) -> None:
        self.stack = stack
        self.host = host
        self.http = http
        self.storage = storage
        connection = StorageConnection(connection_string=storage.connection_string)
        self._tables = [AzureTable(storage=connection, name=name) for name in ("runnerpool", "history")]
        self.ledger = Ledger(table=self._tables[0], history=self._tables[1])
        self.pool_of: dict[int, str] = {}  # every job that was queued here
        self.cancelled: set[int] = set()

    async def __aenter__(self) -> Deployment:
        return self

    async def __aexit__(self, *_: object) -> None:
        for table in self._tables:
            await table.close()

    # ------------------------------------------------------------------------------------------ what is done to it

    def queue(self, name: str, *, count: int = 1, seconds: float = 0.5, repository: int = 0) -> list[int]:
        """Queues jobs for a pool at GitHub; returns their ids."""
        wanted = next(pool for pool in self.stack.config.pools if pool.name == name)
        jobs = self.stack.github.world.queue(self.stack.repositories[repository], wanted.labels, count=count, seconds=seconds)
        ids = [job.id for job in jobs]
        self.pool_of.update(dict.fromkeys(ids, name))
        return ids

    def cancel(self, job_id: int) -> None:
        self.stack.github.world.cancel(self.stack.github.world.jobs[job_id])
        self.cancelled.add(job_id)

    def kill(self, group: str) -> None:
        """SIGKILL, as a machine that goes away; the host starts the process again a second later."""
        os.kill(self.host.pid(group), signal.SIGKILL)

    @contextmanager
    def frozen(self, group: str) -> Iterator[None]:
        """A process of the app stands still for as long as this lasts."""
        pid = self.host.pid(group)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def messages(self, queue: str) -> QueueClient:
        return QueueClient.from_connection_string(self.storage.connection_string, queue)

    # ------------------------------------------------------------------------------------------ what is seen of it

    async def status(self, token: str | None = None) -> tuple[int, Any]:
        """Status code and JSON of /runner/status, asked with the right token unless another is given ("": none)."""
        token = self.stack.status_token if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.http.get(f"{self.host.url}/runner/status", headers=headers) as answer:
            return answer.status, await answer.json()

    async def answers(self) -> bool:
        return (await self.status())[0] == 200

    async def told(self) -> Any:
        """The document of /runner/status."""
        code, document = await self.status()
        assert code == 200, document
        return document

    async def reason(self, job_id: int) -> str:
        """What the status page says of a waiting job, "" when it is not among those that wait."""
        waiting = [job for pool in (await self.told())["pools"] for job in pool["waiting"]]
        return next((str(job["reason"]) for job in waiting if job["job"] == str(job_id)), "")

    async def records(self, parts: str = "jobs,runners") -> Records:
        """What Azure has on record, and these parts of what GitHub has."""
        async with self.http.get(f"{self.stack.github_url}/_admin/state?parts={parts}") as answer:
            return Records(arm=self.stack.arm.estate.as_json(), github=await answer.json())

    def vms(self, name: str) -> list[str]:
        """The pool's VMs that Azure has, those on their way out included."""
        return [vm.name for vm in self.stack.arm.estate.vms.values() if vm.pool == name]

    def made(self, name: str) -> list[str]:
        """Every VM that Azure ever accepted for the pool, in order."""
        return [entry["vm"] for entry in self.stack.arm.estate.log if (entry["event"], entry["pool"]) == ("accepted", name)]

    def done(self, ids: Sequence[int]) -> bool:
        return all(self.stack.github.world.jobs[job_id].conclusion == "success" for job_id in ids)

    def ran_on(self, job_id: int) -> str:
        return self.stack.github.world.jobs[job_id].runner_name or ""

    def events(self, event: str) -> list[str]:
        """The VMs to which this happened in Azure, in order."""
        return [entry["vm"] for entry in self.stack.arm.estate.log if entry["event"] == event]

    async def rows(self, name: str) -> Mapping[str, Runner]:
        """The pool's runner rows, by name."""
        return (await self.ledger.read_pool(name)).runners

    # ------------------------------------------------------------------------------------------ what it comes to

    async def until(
        self, check: Callable[[], bool] | Callable[[], Awaitable[bool]], *, within: float = 30.0, pause: float = 0.05
    ) -> None:
        """Waits for a condition of this process or of another one."""

        async def holds() -> bool:
            found = check()
            return found if isinstance(found, bool) else await found

        await eventually(holds, within=within, pause=pause)

    async def settles(self, *, within: float = SETTLING) -> None:
        """Waits until every job is over as it should be, and exactly the warm minimum is left of everything."""

        async def settled() -> bool:
            return not await self.unsettled()

        try:
            await self.until(settled, within=within)
        except TimeoutError:
            raise AssertionError(f"not settled after {within:.0f} s: {await self.unsettled()}") from None

    async def unsettled(self) -> list[str]:
        """What keeps the world from being at rest: jobs that are not over, or not as they should be; pools beyond their
        limits; VMs, NICs, registrations and rows beyond the warm minimum."""
        order = Order(pool_of=self.pool_of, cancelled=frozenset(self.cancelled), replayed={})
        records = await self.records()
        return records.faults(order, self.stack.config.pools) + await self.left_over(records)

    async def left_over(self, records: Records) -> list[str]:
        """VMs, NICs and rows that do not belong to an idle fleet, or of which one is there without the other."""
        vms = {vm["name"]: vm for vm in records.vms}
        found = [f"VM {vm['name']} is {vm['state']}" for vm in vms.values() if vm["power"] != "running" or vm["delete_accepted"]]
        found += [f"NIC {nic.name} has no VM" for nic in self.stack.arm.estate.nics.values() if nic.vm not in vms]
        for name in (pool.name for pool in self.stack.config.pools):
            snapshot = await self.ledger.read_pool(name)
            found += [f"{key} is left" for key in (*snapshot.facts, *snapshot.unreadable)]
            found += [f"VM {vm} has no row" for vm in self.vms(name) if vm not in snapshot.runners]
            for row in snapshot.runners.values():
                if row.name not in vms or row.state not in IDLE:
                    found.append(f"runner {row.name} is {row.state}: {row.reason}")
        return found
