"""The least of a GitHub that the sandbox's runner program can register with: no routing, no deliveries, one queue of jobs."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from runnerpool.ports import JitConfig


class TinyGitHub:
    """`sessions` has the ids of every runner that came online, in order; `finished` the conclusion of every job."""

    def __init__(self) -> None:
        self.url = ""
        self.registered: set[int] = set()
        self.sessions: list[int] = []
        self.finished: dict[str, str] = {}
        self._jobs: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def register(self, runner_id: int) -> JitConfig:
        self.registered.add(runner_id)
        content = json.dumps({"url": self.url, "runner_id": runner_id, "token": f"token-of-{runner_id}"})
        return JitConfig(runner_id, base64.b64encode(content.encode()).decode())

    def offer(self, job_id: str, *, seconds: float, conclusion: str = "success") -> None:
        self._jobs.put_nowait({"job_id": job_id, "seconds": seconds, "conclusion": conclusion})

    async def session(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["runner_id"] not in self.registered or body["token"] != f"token-of-{body['runner_id']}":
            return web.json_response({"message": "no such registration"}, status=404)
        self.sessions.append(body["runner_id"])
        return web.json_response({"session": str(body["runner_id"])})

    async def message(self, request: web.Request) -> web.Response:
        """Answers soon, so that a registration that goes is noticed soon."""
        if int(request.query["session"]) not in self.registered:
            return web.Response(status=404)
        try:
            return web.json_response(await asyncio.wait_for(self._jobs.get(), 0.2))
        except TimeoutError:
            return web.Response(status=204)

    async def finish(self, request: web.Request) -> web.Response:
        self.finished[request.match_info["job"]] = (await request.json())["conclusion"]
        self.registered.discard(int(request.query["session"]))
        return web.json_response({})


@asynccontextmanager
async def tiny_github(listener: socket.socket | None = None) -> AsyncIterator[TinyGitHub]:
    """On a port of its own, or on a socket that listens in another network namespace."""
    github, app = TinyGitHub(), web.Application()
    app.router.add_post("/_runner/session", github.session)
    app.router.add_get("/_runner/message", github.message)
    app.router.add_post("/_runner/jobs/{job}/finished", github.finish)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await (web.SockSite(runner, listener) if listener else web.TCPSite(runner, "127.0.0.1", 0)).start()
    host, port = runner.addresses[0][:2]
    github.url = f"http://{host}:{port}"
    try:
        yield github
    finally:
        await runner.cleanup()
