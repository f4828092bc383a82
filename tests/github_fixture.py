"""What the tests about GitHub share: a receiver of webhooks, a runner program, the names in use."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
from aiohttp import web

from runnerpool.github import App, GitHubApi, Token
from sandbox.github import GitHubSandbox, Group, Repository
from sandbox.github_faults import Fault
from sandbox.github_world import Job

ORG, ENTERPRISE = "octo-org", "octo-corp"
REPOSITORY, OTHER, PUBLIC = f"{ORG}/widgets", f"{ORG}/gadgets", f"{ORG}/website"
TOKEN, SECRET = "ghp_" + "t" * 36, "it's a secret"
TARGETS = [f"org:{ORG}", f"repo:{REPOSITORY}", f"enterprise:{ENTERPRISE}"]
TARGET = TARGETS[0]
LABELS = ["self-hosted", "linux", "x64"]
DEADLINE = 30.0


@dataclass
class Received:
    headers: dict[str, str]
    body: bytes

    @property
    def payload(self) -> dict[str, Any]:
        payload: dict[str, Any] = json.loads(self.body)
        return payload

    @property
    def action(self) -> str:
        return str(self.payload.get("action", ""))


@dataclass
class Receiver:
    """An app that takes webhooks. `answers` are the statuses of the next ones, 202 after them; `release` lets held ones go."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    got: list[Received] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    hold: bool = False
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/github/webhook", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/github/webhook"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        async with self._changed:
            self.got.append(Received(dict(request.headers), body))
            self._changed.notify_all()
        if self.hold:
            await self.release.wait()
        return web.Response(status=self.answers.pop(0) if self.answers else 202)

    async def wait_for(self, count: int) -> list[Received]:
        async with asyncio.timeout(DEADLINE), self._changed:
            await self._changed.wait_for(lambda: len(self.got) >= count)
        return self.got

    @property
    def actions(self) -> list[str]:
        return [received.action for received in self.got]


class RunnerProgram:
    """Stands in for `run.sh`, one request at a time."""

    def __init__(self, encoded: str, http: aiohttp.ClientSession) -> None:
        self.config: dict[str, Any] = json.loads(base64.b64decode(encoded))
        self._http = http
        self.session = ""

    async def connect(self) -> int:
        who = {"runner_id": self.config["runner_id"], "token": self.config["token"]}
        async with self._http.post(f"{self.config['url']}/_runner/session", json=who) as response:
            if response.status == 200:
                self.session = (await response.json())["session"]
            return response.status

    async def poll(self) -> tuple[int, dict[str, Any]]:
        async with self._http.get(f"{self.config['url']}/_runner/message", params={"session": self.session}) as response:
            return response.status, await response.json() if response.status != 204 else {}

    async def finish(self, job_id: str, conclusion: str = "success") -> int:
        url = f"{self.config['url']}/_runner/jobs/{job_id}/finished"
        async with self._http.post(url, params={"session": self.session}, json={"conclusion": conclusion}) as response:
            return response.status

    async def run_one_job(self) -> str:
        """Connects, takes one job and reports it; returns its id."""
        assert await self.connect() == 200
        status, job = await self.poll()
        assert status == 200
        assert await self.finish(job["job_id"], job["conclusion"]) == 200
        return str(job["job_id"])


class Client:
    """Calls the sandbox as anybody with a token could."""

    def __init__(self, base: str, http: aiohttp.ClientSession, token: str = TOKEN) -> None:
        self.base, self.http = base, http
        self._headers = {"Authorization": f"token {token}", "Accept": "application/vnd.github+json"}

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any, dict[str, str]]:
        headers = {} if path.startswith("/_admin") else self._headers
        async with self.http.request(method, self.base + path, json=body, headers=headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None, dict(response.headers)

    async def mint(self, name: str, *, scope: str = f"/orgs/{ORG}", labels: list[str] | None = None) -> RunnerProgram:
        body = {"name": name, "labels": labels or LABELS, "runner_group_id": 1}
        status, answer, _ = await self.call("POST", f"{scope}/actions/runners/generate-jitconfig", body)
        assert status == 201, answer
        return RunnerProgram(answer["encoded_jit_config"], self.http)


def runner_of(sandbox: GitHubSandbox, name: str) -> Any:
    """The sandbox's own record of a registration."""
    return next(runner for runner in sandbox.world.runners.values() if runner.name == name)


class Place:
    """A running sandbox, the adapter and a plain client on it, and an app that takes its webhooks."""

    def __init__(self, sandbox: GitHubSandbox, base: str, receiver: Receiver, http: aiohttp.ClientSession) -> None:
        self.sandbox, self.base, self.receiver, self.http = sandbox, base, receiver, http
        self.client = Client(base, http)
        self.github = self.api()

    def api(self, credential: Token | App | None = None, **how: Any) -> GitHubApi:
        targets = {"hook_targets": [*TARGETS, f"repo:{OTHER}"]}
        return GitHubApi(api_url=self.base, credential=credential or Token(TOKEN), **{**targets, **how})

    def fail(self, kind: str, **how: Any) -> None:
        self.sandbox.faults.add(Fault(kind, **how))

    def queue(self, *labels: str, repository: str = REPOSITORY, **how: Any) -> Job:
        return self.sandbox.world.queue(repository, labels or LABELS, **how)[0]

    async def mint(self, name: str, target: str = TARGET, group: str = "Default") -> RunnerProgram:
        """Through the adapter."""
        config = await self.github.mint_jit_config(target, name, LABELS, group)
        program = RunnerProgram(config.encoded, self.http)
        assert program.config["runner_id"] == config.runner_id
        return program

    async def busy(self, name: str) -> RunnerProgram:
        """A runner that runs a job of its own."""
        self.queue()
        program = await self.client.mint(name)
        assert await program.connect() == 200
        assert (await program.poll())[0] == 200
        return program

    async def polling(self, name: str, **how: Any) -> tuple[RunnerProgram, asyncio.Task[tuple[int, dict[str, Any]]]]:
        """A runner that is connected and waits for a job; its answer is the task's result."""
        program = await self.client.mint(name, **how)
        assert await program.connect() == 200
        poll = asyncio.create_task(program.poll())
        async with asyncio.timeout(DEADLINE):
            while runner_of(self.sandbox, name).poll is None:
                await asyncio.sleep(0)
        return program, poll

    async def deliver(self, *answers: int) -> None:
        """Queues one job for each answer that the app is to give to its delivery."""
        for answer in answers:
            self.receiver.answers = [answer]
            self.queue()
            await self.sandbox.deliveries.settled()

    def calls(self) -> dict[str, int]:
        counted: dict[str, int] = self.sandbox.calls.told()["by_endpoint"]
        return counted


Start = Callable[..., Coroutine[Any, Any, Place]]


@asynccontextmanager
async def places() -> AsyncIterator[Start]:
    """Starts sandboxes, with what a test wants otherwise than usual, and stops them at the end."""
    async with Receiver() as receiver, aiohttp.ClientSession() as http:
        sandboxes: list[GitHubSandbox] = []

        async def begin(**how: Any) -> Place:
            usual: dict[str, Any] = {
                "owner": ORG,
                "enterprise": ENTERPRISE,
                "repositories": [REPOSITORY, OTHER, Repository(PUBLIC, private=False)],
                "tokens": [TOKEN],
                "groups": [Group(1, "Default"), Group(7, "GPU machines")],
                "webhook_url": receiver.url,
                "webhook_secret": SECRET,
                "runner_poll": 5.0,
                "points_per_minute": 100_000,
            }
            sandbox = GitHubSandbox(**{**usual, **how})
            sandboxes.append(sandbox)
            return Place(sandbox, await sandbox.start(), receiver, http)

        try:
            yield begin
        finally:
            for sandbox in sandboxes:
                await sandbox.stop()
