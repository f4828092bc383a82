"""The demo's story: which jobs are queued when, which of them are cancelled, which deliveries come again, and who watches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import aiohttp

from sandbox.demo_faults import SPOT, Mishaps
from sandbox.demo_records import Order, Records
from sandbox.live_table import LiveTable, View
from sandbox.stack import Stack

JOB_SECONDS = (2.0, 6.0)
LOOK_SECONDS = 1.0


class Story:
    """One run of the story. `order` grows as jobs are queued."""

    def __init__(
        self, *, stack: Stack, app_url: str, http: aiohttp.ClientSession, table: LiveTable, jobs: int, faults: bool = False
    ) -> None:
        self._stack = stack
        self._app_url = app_url
        self._http = http
        self._table = table
        self._count = jobs
        self._random = Random(jobs)
        self._began = time.monotonic()
        self._stage = "starting"
        self._pool_of: dict[int, str] = {}
        self._cancelled: set[int] = set()
        self._replayed: dict[int, str] = {}
        self.pools = stack.config.pools
        self.mishaps = Mishaps(stack, http, self.records) if faults else None

    @property
    def order(self) -> Order:
        evicted = frozenset(self.mishaps.evicted) if self.mishaps else frozenset()
        return Order(pool_of=self._pool_of, cancelled=frozenset(self._cancelled), replayed=self._replayed, evicted=evicted)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    async def play(self) -> None:
        """Returns when the world has settled, raises TimeoutError when it does not."""
        watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(120):
                self._tell("the warm VMs are made, before any job is there")
                await self._until_settled()
            async with asyncio.timeout(180 + 3 * self._count):
                if self.mishaps:
                    self._tell("a zone is full, an agent dead, a delivery lost, an idle registration dropped")
                    await self.mishaps.before_jobs()
                await self._queue_jobs()
                if self.mishaps:
                    self._tell("a spot VM is taken away from a job")
                    await self.mishaps.evict(await self._queue(self.pools[SPOT].name, self.pools[SPOT].labels, 1))
                self._tell("every job is queued")
                await self._replay()
                self._tell("waiting for the last jobs, and for the fleet to be the warm minimum again")
                await self._until_settled()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def records(self) -> Records:
        async with self._http.get(f"{self._stack.arm_url}/_admin/state") as answer:
            arm = await answer.json()
        async with self._http.get(f"{self._stack.github_url}/_admin/state") as answer:
            return Records(arm=arm, github=await answer.json())

    # ------------------------------------------------------------------------------------------ the story

    async def _queue_jobs(self) -> None:
        """A third comes one by one, half in one burst for the other pool, the rest in pairs."""
        steady, burst = self._count // 3, self._count // 2
        first, second = self.pools[0], self.pools[1]
        self._tell(f"{steady} jobs one by one for {first.name}")
        for number in range(steady):
            await self._queue(first.name, first.labels, 1)
            await asyncio.sleep(0.3)
            if number == steady // 2:
                self._tell(f"a burst of {burst} jobs for {second.name}, some cancelled at once")
                await self._cancel(await self._queue(second.name, second.labels, burst), max(2, self._count // 10))
        rest = self._count - steady - burst
        self._tell(f"{rest} more for {first.name}, two at a time")
        while rest > 0:
            await self._queue(first.name, first.labels, min(2, rest))
            rest -= 2
            await asyncio.sleep(0.5)

    async def _queue(self, pool: str, labels: Sequence[str], count: int) -> list[int]:
        """One workflow run of `count` jobs."""
        body = {
            "repository": self._random.choice(self._stack.repositories),
            "labels": list(labels),
            "count": count,
            "seconds": round(self._random.uniform(*JOB_SECONDS), 1),
        }
        async with self._http.post(f"{self._stack.github_url}/_admin/jobs", json=body) as answer:
            answer.raise_for_status()
            ids: list[int] = (await answer.json())["ids"]
        self._pool_of.update(dict.fromkeys(ids, pool))
        return ids

    async def _cancel(self, ids: Sequence[int], count: int) -> None:
        """Cancels the youngest of these jobs, none of which has a runner yet."""
        for job_id in ids[-count:]:
            async with self._http.post(f"{self._stack.github_url}/_admin/jobs/{job_id}/cancel") as answer:
                answer.raise_for_status()
            self._cancelled.add(job_id)

    async def _replay(self) -> None:
        """Two deliveries again, long after what came after them: a `queued` and an `in_progress` of jobs that are over."""
        while True:
            records = await self.records()
            over = [job_id for job_id in self._pool_of if records.jobs[job_id]["conclusion"] == "success"]
            if len(over) >= 2:
                break
            await asyncio.sleep(LOOK_SECONDS)
        self._tell("two deliveries of jobs that are over are sent once more")
        for job_id, action in zip(over, ("queued", "in_progress"), strict=False):
            async with self._http.post(
                f"{self._stack.github_url}/_admin/redeliver", json={"job": job_id, "action": action}
            ) as answer:
                answer.raise_for_status()
            self._replayed[job_id] = action

    async def _until_settled(self) -> None:
        """Settled twice in a row: a VM may be about to be made, or deleted, when it looks so once."""
        calm = 0
        while calm < 2:
            records = await self.records()
            over = self.mishaps is None or self.mishaps.over(records)
            calm = calm + 1 if over and records.settled(self.order, self.pools) else 0
            await asyncio.sleep(LOOK_SECONDS)

    # ------------------------------------------------------------------------------------------ what a person sees

    def _tell(self, stage: str) -> None:
        self._stage = stage
        self._table.say(stage)

    async def _watch(self) -> None:
        while True:
            records, status = await self.records(), await self._status()
            jobs = {pool.name: Counter[str]() for pool in self.pools}
            for job_id, pool in self._pool_of.items():
                job = records.jobs.get(job_id)
                if job is not None:
                    jobs[pool][job["conclusion"] or job["status"]] += 1
            known = Order({i: pool for i, pool in self._pool_of.items() if i in records.jobs}, frozenset(), {})
            waits = {pool.name: records.tally(pool.name, known).waits for pool in self.pools}
            self._table.show(View(stage=self._stage, status=status, jobs=jobs, waits=waits))
            await asyncio.sleep(LOOK_SECONDS)

    async def _status(self) -> dict[str, Any]:
        """The app's own `/runner/status`; empty while it gives none."""
        headers = {"Authorization": f"Bearer {self._stack.status_token}"}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._http.get(f"{self._app_url}/runner/status", headers=headers) as answer:
                if answer.content_type == "application/json":
                    document: dict[str, Any] = await answer.json()
                    return document
        return {}
