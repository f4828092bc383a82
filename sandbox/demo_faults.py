"""`make demo FAULTS=1`: what goes wrong while the demo runs, and by whose records it is seen that the pool came through.

Everything here happens on the sandbox's clock, many times as fast as the real one: deadlines of minutes are seconds to watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from sandbox.demo_records import Records
from sandbox.stack import Stack

RATE = 30.0
"""The reconcile pass comes every second; a VM whose agent never answers is late after 16 s and given up after 40, one whose set-up
does not end after 20 and 60."""
LOST_AFTER = 8.0
"""Real seconds after which GitHub gives up a job whose runner has gone: four minutes of its clock."""
REFUSALS = 1000
"""How often the full zone could refuse a VM: what is left of it tells how often it did."""

SETUP_ERROR = "what came from https://example.com is not runner 2.330.0: its sha256 is 00 and should be 11"

SPOT, KEPT = 0, 1
"""Which of the demo's two pools takes spot VMs, and which keeps idle VMs registered."""


def with_faults(document: dict[str, Any]) -> dict[str, Any]:
    """The pool file's document as this demo wants it: spot VMs, a re-run after an eviction, registrations that can be dropped."""
    spot, kept = document["pools"][SPOT], document["pools"][KEPT]
    spot["vm"]["priority"] = "spot-then-regular"
    spot["rerun_evicted"] = True
    kept["keep_registered"] = True
    kept["vm"]["zones"] = ["1", "2"]  # an offer that failed rests for an hour: there has to be another
    for pool in (spot, kept):
        pool["idle_timeout"] = "4m"
    return document


@dataclass(slots=True)
class Mishaps:
    """Makes things go wrong. `shown` says of each what was done and how it ended."""

    stack: Stack
    http: aiohttp.ClientSession
    look: Callable[[], Awaitable[Records]]
    evicted: set[int] = field(default_factory=set)
    _reaped: tuple[str, int] = ("", 0)
    _refused_id: int = 0
    _dead_id: int = 0
    _broken_id: int = 0

    async def before_jobs(self) -> None:
        """Faults that wait for what the jobs bring about."""
        pools = self.stack.config.pools
        full = {"zone": "1", "pool": pools[SPOT].name}
        refused = await self._arm("faults", {"kind": "put_409", "code": "ZonalAllocationFailed", "match": full, "times": REFUSALS})
        self._refused_id = int(refused["id"])
        await self._arm("faults", {"kind": "async_failure", "match": {"pool": pools[KEPT].name}, "times": 1})
        broken = {"kind": "setup_fails", "message": SETUP_ERROR, "match": {"pool": pools[KEPT].name, "zone": "2"}, "times": 1}
        self._broken_id = int((await self._arm("faults", broken))["id"])
        dead = await self._arm("faults", {"kind": "dead_agent", "match": {"pool": pools[SPOT].name, "zone": "2"}, "times": 1})
        self._dead_id = int(dead["id"])
        await self._github("faults", {"kind": "drop", "action": "completed", "times": 1})
        await self._reap(pools[KEPT].name)

    async def _reap(self, pool: str) -> None:
        """GitHub drops the registration of an idle warm VM."""
        while True:
            records = await self.look()
            idle = [one for one in records.runners if one["online"] and one["job"] is None and f"-{pool}-" in one["name"]]
            if idle:
                break
            await asyncio.sleep(0.5)
        self._reaped = idle[0]["name"], idle[0]["id"]
        await self._github(f"runners/{idle[0]['name']}/reap", {})

    async def evict(self, ids: Sequence[int]) -> None:
        """Takes away the spot VM of the first of these jobs that runs on one."""
        while True:
            records = await self.look()
            running = [records.jobs[job_id] for job_id in ids if records.jobs[job_id]["status"] == "in_progress"]
            victim = next((job for job in running if job["runner_name"] in records.spot), None)
            if victim is not None:
                break
            if all(records.jobs[job_id]["status"] == "completed" for job_id in ids):
                raise TimeoutError("none of these jobs ran on a spot VM")
            await asyncio.sleep(0.2)
        await self._arm("evict", {"name": victim["runner_name"]})
        self.evicted.add(victim["id"])

    def over(self, records: Records) -> bool:
        """Whether no VM is left on which nothing runs."""
        return all(self.stack.machines.running(vm["name"]) for vm in records.vms if vm["power"] == "running")

    async def shown(self) -> list[tuple[str, bool]]:
        """Each mishap in a sentence, and whether the records show that it happened and was come through."""
        records = await self.look()
        async with self.http.get(f"{self.stack.arm_url}/_admin/faults") as answer:
            left = {fault["id"]: fault["times"] for fault in await answer.json()}
        refusals = REFUSALS - left.get(self._refused_id, REFUSALS)
        failed = [entry for entry in records.log if entry["event"] == "failed"]
        deleted = {entry["vm"] for entry in records.log if entry["event"] == "delete accepted"}
        untold = [job_id for job_id, job in records.jobs.items() if job["status"] == "completed" and not records.told(job_id)]
        again = [records.second_attempt(job_id) for job_id in self.evicted]
        return [
            (f"zone 1 had no room: Azure refused {refusals} VMs there, and other zones took them", refusals > 0),
            (
                f"Azure took {len(failed)} VM and failed it later; it was deleted, another one made",
                bool(failed) and all(one["vm"] in deleted for one in failed),
            ),
            ("a VM's agent never answered: it was given up and deleted", self._dead_id not in left and self.over(records)),
            ("a VM's set-up failed, its runner's checksum was wrong: it was given up and deleted", self._broken_id not in left),
            ("the delivery of a `completed` was lost: GitHub was asked, and the VM deleted", bool(untold)),
            ("GitHub dropped an idle registration: its VM was bound again", records.registered_again(*self._reaped)),
            ("a spot VM was evicted in mid-job: GitHub ran the job again, on a regular VM", bool(again) and all(again)),
        ]

    async def _arm(self, path: str, body: dict[str, Any]) -> Any:
        async with self.http.post(f"{self.stack.arm_url}/_admin/{path}", json=body) as answer:
            answer.raise_for_status()
            return await answer.json() if answer.content_type == "application/json" else None

    async def _github(self, path: str, body: dict[str, Any]) -> None:
        async with self.http.post(f"{self.stack.github_url}/_admin/{path}", json=body) as answer:
            answer.raise_for_status()
