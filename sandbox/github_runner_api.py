"""What the sandbox's GitHub says to runner programs: `/_runner/…`, in place of the Actions service that `run.sh` talks to.

POST /_runner/session {"runner_id", "token"}            200 {"session"} · 401 · 404 registration gone · 409 in use
GET  /_runner/message?session=S                         200 {"job_id", "seconds", "conclusion"} · 204 ask again · 404 gone ·
                                                        403 its version is too old
POST /_runner/jobs/{id}/finished?session=S {"conclusion"}  200 · 404
"""

from __future__ import annotations

from aiohttp import web

from sandbox.github_faults import Faults
from sandbox.github_shapes import RUNNER_VERSION
from sandbox.github_world import NameTaken, NotRegistered, World


class RunnerApi:
    """`poll`: the longest that a request for a job is kept waiting, in seconds."""

    def __init__(self, *, world: World, faults: Faults, poll: float) -> None:
        self._world = world
        self._faults = faults
        self._poll = poll

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/_runner/session", self.session)
        app.router.add_get("/_runner/message", self.message)
        app.router.add_post(r"/_runner/jobs/{job_id:\d+}/finished", self.finished)

    async def session(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            session = self._world.connect(int(body["runner_id"]), str(body["token"]))
        except NotRegistered:
            return web.json_response({"message": "the runner registration has been deleted"}, status=404)
        except PermissionError:
            return web.json_response({"message": "this token is not the registration's"}, status=401)
        except NameTaken:
            return web.json_response({"message": "a session for this runner exists already"}, status=409)
        return web.json_response({"session": session})

    async def message(self, request: web.Request) -> web.Response:
        session = request.query.get("session", "")
        runner = self._world.sessions.get(session)
        if runner is not None and self._faults.take("refuse_version", path=runner.name):
            text = f"Runner version v{RUNNER_VERSION} is deprecated and cannot receive messages."
            return web.json_response({"message": text}, status=403)
        try:
            job = await self._world.next_job(session, self._poll)
        except NotRegistered:
            return web.json_response({"message": "the runner registration has been deleted"}, status=404)
        if job is None:
            return web.Response(status=204)
        return web.json_response({"job_id": str(job.id), "seconds": job.seconds, "conclusion": job.outcome})

    async def finished(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            self._world.finish(request.query.get("session", ""), int(request.match_info["job_id"]), str(body["conclusion"]))
        except NotRegistered:
            return web.json_response({"message": "no such job in this session"}, status=404)
        return web.json_response({})
