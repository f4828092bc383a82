"""The sandbox's webhooks: signed deliveries as GitHub sends them, and the record of how they went.

Deliveries about one job are sent in order, those about different jobs at the same time; faults change that.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any
from uuid import UUID

import aiohttp

from sandbox import github_shapes as shapes
from sandbox.clock import now
from sandbox.github_faults import DELIVERY_KINDS, Fault, Faults
from sandbox.github_world import Job

CONCURRENT = 64
"""Deliveries under way at once."""


@dataclass(slots=True)
class Hook:
    """`path` is its API path (`/orgs/octo-org/hooks/1`, `/app/hook`), `target` the installation-target headers' (id, type)."""

    id: int
    path: str
    target: tuple[int, str]
    repository: str | None = None  # None: events of every repository
    url: str = ""
    secret: str = field(default="", repr=False)
    content_type: str = "json"
    insecure_ssl: str = "0"
    events: tuple[str, ...] = ("workflow_job",)
    active: bool = True

    @property
    def hears_of_jobs(self) -> bool:
        return bool(self.url) and self.active and bool({"workflow_job", "*"} & {*self.events})


@dataclass(slots=True, eq=False)
class Delivery:
    """One attempt. `status_code` 0: under way, or dropped."""

    id: int
    guid: str
    hook: Hook
    event: str
    action: str | None
    job: Job | None
    body: bytes = field(repr=False)
    redelivery: bool = False
    delivered_at: datetime = field(default_factory=now)
    duration: float = 0.0
    status: str = "pending"
    status_code: int = 0

    def told(self, installation: int | None) -> dict[str, Any]:
        """As GitHub's list of deliveries has it."""
        return {
            "id": self.id,
            "guid": self.guid,
            "delivered_at": shapes.stamp(self.delivered_at),
            "redelivery": self.redelivery,
            "duration": self.duration,
            "status": self.status,
            "status_code": self.status_code,
            "event": self.event,
            "action": self.action,
            "installation_id": installation,
            "repository_id": shapes.identifier(self.job.repository.name) if self.job else None,
            "throttled_at": None,
        }


class Deliveries:
    """`timeout`: the seconds after which GitHub records a failure, 10 on github.com."""

    def __init__(self, *, random: Random, faults: Faults, timeout: float) -> None:
        self.hooks: list[Hook] = []
        self.sent: list[Delivery] = []  # every attempt, oldest first
        self.installation: int | None = None
        self._random = random
        self._faults = faults
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None
        self._places = asyncio.Semaphore(CONCURRENT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: dict[int, asyncio.Task[None]] = {}  # by job: the newest of those that keep their order
        self._held: dict[int, asyncio.Event] = {}  # by job: set when a delivery of it went out
        self._next_id = random.randrange(10_000_000_000, 90_000_000_000)

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(timeout=self._timeout, connector=aiohttp.TCPConnector(limit=CONCURRENT))

    async def stop(self) -> None:
        """Abandons what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def settled(self) -> None:
        """Returns when no delivery is under way or held back."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    # ------------------------------------------------------------------------------------------ what is sent

    def announce(self, job: Job, action: str, payload: Mapping[str, Any]) -> None:
        """Sends one `workflow_job` event to every hook that covers its repository. (A form's body is not made one: an app
        that takes JSON refuses it for its content type.)"""
        guid = str(UUID(int=self._random.getrandbits(128), version=4))
        for hook in self.hooks:
            if hook.hears_of_jobs and hook.repository in (None, job.repository.name):
                self._send(self._attempt(hook, guid, "workflow_job", action, job, _encode(payload)))

    def ping(self, hook: Hook, payload: Mapping[str, Any]) -> None:
        guid = str(UUID(int=self._random.getrandbits(128), version=4))
        self._spawn(self._post(self._attempt(hook, guid, "ping", None, None, _encode(payload))))

    def redeliver(self, earlier: Delivery) -> Delivery:
        """The same body under the same guid, now."""
        again = self._attempt(earlier.hook, earlier.guid, earlier.event, earlier.action, earlier.job, earlier.body)
        again.redelivery = True
        self._spawn(self._post(again))
        return again

    def _attempt(self, hook: Hook, guid: str, event: str, action: str | None, job: Job | None, body: bytes) -> Delivery:
        self._next_id += self._random.randrange(1, 1000)
        delivery = Delivery(id=self._next_id, guid=guid, hook=hook, event=event, action=action, job=job, body=body)
        self.sent.append(delivery)
        return delivery

    # ------------------------------------------------------------------------------------------ when it is sent

    def _send(self, delivery: Delivery) -> None:
        assert delivery.job is not None
        fault = self._faults.take(*DELIVERY_KINDS, path=delivery.job.repository.name, action=delivery.action or "")
        if fault is None:
            self._in_order(delivery.job.id, lambda: self._post(delivery))
        elif fault.kind == "drop":
            delivery.status = "dropped"
        elif fault.kind == "fail":
            delivery.status_code, delivery.status = 502, "failed to connect to host"
        elif fault.kind == "late":
            self._spawn(self._after(asyncio.sleep(fault.seconds), delivery))
        elif fault.kind == "reorder":
            self._spawn(self._after(self._overtaken(delivery.job.id, fault), delivery))
        else:
            twin = self._attempt(delivery.hook, delivery.guid, delivery.event, delivery.action, delivery.job, delivery.body)
            self._in_order(delivery.job.id, lambda: self._both(delivery, twin))

    def _in_order(self, job_id: int, send: Callable[[], Awaitable[None]]) -> None:
        before = self._last.get(job_id)

        async def run() -> None:
            if before is not None:
                await asyncio.wait({before})
            await send()
            if held := self._held.pop(job_id, None):
                held.set()

        self._last[job_id] = task = self._spawn(run())
        task.add_done_callback(lambda _: self._last.pop(job_id) if self._last.get(job_id) is task else None)

    async def _after(self, wait: Awaitable[object], delivery: Delivery) -> None:
        await wait
        await self._post(delivery)

    async def _overtaken(self, job_id: int, fault: Fault) -> None:
        event = self._held.setdefault(job_id, asyncio.Event())
        try:
            await asyncio.wait_for(event.wait(), fault.seconds)
        except TimeoutError:
            self._held.pop(job_id, None)  # nothing came after it

    async def _both(self, one: Delivery, other: Delivery) -> None:
        await asyncio.gather(self._post(one), self._post(other))

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ------------------------------------------------------------------------------------------ one attempt

    async def _post(self, delivery: Delivery) -> None:
        assert self._session is not None
        async with self._places:
            delivery.delivered_at, began = now(), time.monotonic()
            try:
                async with self._session.post(
                    delivery.hook.url, data=delivery.body, headers=self._headers(delivery), allow_redirects=False
                ) as response:
                    await response.read()
                    delivery.status_code = response.status
                    good = 200 <= response.status < 300
                    delivery.status = "OK" if good else f"Invalid HTTP Response: {response.status}"
            except TimeoutError:
                delivery.status_code, delivery.status = 504, "timed out"
            except aiohttp.ClientError:
                delivery.status_code, delivery.status = 502, "failed to connect to host"
            delivery.duration = round(time.monotonic() - began, 2)

    def _headers(self, delivery: Delivery) -> dict[str, str]:
        target_id, target_type = delivery.hook.target
        headers = {
            "Accept": "*/*",
            "Content-Type": "application/json" if delivery.hook.content_type == "json" else "application/x-www-form-urlencoded",
            "User-Agent": "GitHub-Hookshot/044aadd",
            "X-GitHub-Delivery": delivery.guid,
            "X-GitHub-Event": delivery.event,
            "X-GitHub-Hook-ID": str(delivery.hook.id),
            "X-GitHub-Hook-Installation-Target-ID": str(target_id),
            "X-GitHub-Hook-Installation-Target-Type": target_type,
        }
        if secret := delivery.hook.secret:
            headers["X-Hub-Signature"] = "sha1=" + _sign(secret, delivery.body, "sha1")
            headers["X-Hub-Signature-256"] = "sha256=" + _sign(secret, delivery.body, "sha256")
        return headers


def _sign(secret: str, body: bytes, algorithm: str) -> str:
    return hmac.new(secret.encode(), body, getattr(hashlib, algorithm)).hexdigest()


def _encode(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, separators=(",", ":")).encode()
