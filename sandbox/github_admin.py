"""The sandbox's own controls, which GitHub has no counterpart of: `/_admin/…`.

POST   /_admin/jobs                {"repository", "labels", "count"?, "seconds"?, "conclusion"?, "environment"?, "announce"?}
                                   → 201 {"ids"}; see `World.queue`
POST   /_admin/jobs/{id}/cancel    → 202
POST   /_admin/jobs/{id}/approve   ends the wait that an `environment` asked for → 202
POST   /_admin/redeliver           {"guid"} or {"job", "action"}: sends that delivery again → 202 {"ids"}
POST   /_admin/runners/{name}/reap drops a registration that runs no job → 202
POST   /_admin/webhook             {"url", "secret"} → 200
GET    /_admin/faults · POST (a fault of `github_faults.Fault`) → 201 · DELETE → 204
GET    /_admin/state               jobs with their timelines, runners, deliveries; ?parts=jobs,runners leaves the rest out
GET    /_admin/calls               calls by endpoint; points of the last minute and of the highest one
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from sandbox import github_shapes as shapes
from sandbox.github_deliveries import Deliveries, Delivery
from sandbox.github_faults import Calls, Fault, Faults
from sandbox.github_world import Job, Runner, World


class Admin:
    def __init__(
        self, *, world: World, deliveries: Deliveries, faults: Faults, calls: Calls, set_webhook: Callable[[str, str], None]
    ) -> None:
        self._world = world
        self._deliveries = deliveries
        self._faults = faults
        self._calls = calls
        self._set_webhook = set_webhook

    def add_routes(self, app: web.Application) -> None:
        for method, path, handler in (
            ("POST", "/jobs", self.jobs),
            ("POST", r"/jobs/{job_id:\d+}/cancel", self.cancel),
            ("POST", r"/jobs/{job_id:\d+}/approve", self.approve),
            ("POST", "/redeliver", self.redeliver),
            ("POST", "/runners/{name}/reap", self.reap),
            ("POST", "/webhook", self.webhook),
            ("GET", "/faults", self.list_faults),
            ("POST", "/faults", self.add_fault),
            ("DELETE", "/faults", self.clear_faults),
            ("GET", "/state", self.state),
            ("GET", "/calls", self.calls),
        ):
            app.router.add_route(method, f"/_admin{path}", _told(handler))

    async def jobs(self, request: web.Request) -> web.Response:
        body = await request.json()
        jobs = self._world.queue(
            body["repository"],
            [str(label) for label in body["labels"]],
            count=int(body.get("count", 1)),
            seconds=float(body.get("seconds", 1.0)),
            outcome=str(body.get("conclusion", "success")),
            environment=body.get("environment"),
            announce=str(body.get("announce", "waiting")),
        )
        return web.json_response({"ids": [job.id for job in jobs]}, status=201)

    async def cancel(self, request: web.Request) -> web.Response:
        self._world.cancel(self._job(request))
        return web.json_response({}, status=202)

    async def approve(self, request: web.Request) -> web.Response:
        self._world.approve(self._job(request))
        return web.json_response({}, status=202)

    async def redeliver(self, request: web.Request) -> web.Response:
        body = await request.json()
        originals = [sent for sent in self._deliveries.sent if not sent.redelivery and _is_asked_for(sent, body)]
        if not originals:
            raise KeyError("no such delivery")
        again = [self._deliveries.redeliver(delivery) for delivery in originals]
        return web.json_response({"ids": [delivery.id for delivery in again]}, status=202)

    async def reap(self, request: web.Request) -> web.Response:
        for runner in list(self._world.runners.values()):
            if runner.name == request.match_info["name"] and runner.job is None:
                self._world.remove(runner)
                return web.json_response({}, status=202)
        raise KeyError("no idle runner of that name")

    async def webhook(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._set_webhook(str(body["url"]), str(body["secret"]))
        return web.json_response({})

    async def list_faults(self, request: web.Request) -> web.Response:
        return web.json_response(self._faults.told())

    async def add_fault(self, request: web.Request) -> web.Response:
        self._faults.add(Fault(**await request.json()))
        return web.json_response(self._faults.told(), status=201)

    async def clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return web.Response(status=204)

    async def state(self, request: web.Request) -> web.Response:
        parts = request.query.get("parts", "jobs,runners,deliveries").split(",")
        told: dict[str, Any] = {"registrations": self._world.registrations}
        if "jobs" in parts:
            told["jobs"] = [_job(job) for job in self._world.jobs.values()]
        if "runners" in parts:
            told["runners"] = [_runner(runner) for runner in self._world.runners.values()]
        if "deliveries" in parts:
            told["deliveries"] = [_delivery(delivery) for delivery in self._deliveries.sent]
        return web.json_response(told)

    async def calls(self, request: web.Request) -> web.Response:
        return web.json_response(self._calls.told())

    def _job(self, request: web.Request) -> Job:
        return self._world.jobs[int(request.match_info["job_id"])]


def _told(handler: Callable[[web.Request], Awaitable[web.Response]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A request that cannot be understood is the caller's mistake: 400 that names it."""

    async def handle(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except KeyError as error:
            return web.json_response({"message": f"not known, or missing: {error.args[0]}"}, status=404)
        except (TypeError, ValueError) as error:
            return web.json_response({"message": str(error)}, status=400)

    return handle


def _is_asked_for(delivery: Delivery, body: dict[str, Any]) -> bool:
    if "guid" in body:
        return bool(delivery.guid == body["guid"])
    return delivery.job is not None and delivery.job.id == int(body["job"]) and delivery.action == body["action"]


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "run_id": job.run_id,
        "attempt": job.attempt,
        "name": job.name,
        "repository": job.repository.name,
        "labels": list(job.labels),
        "seconds": job.seconds,
        "status": job.status,
        "conclusion": job.conclusion,
        "created_at": job.created_at.isoformat(),
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "completed_at": job.completed_at.isoformat() if job.completed_at else None,
        "runner_id": job.runner_id,
        "runner_name": job.runner_name,
        "deregistered_at": job.deregistered_at.isoformat() if job.deregistered_at else None,
        "timeline": [{"action": action, "at": at.isoformat()} for action, at in job.timeline],
    }


def _runner(runner: Runner) -> dict[str, Any]:
    return {
        "id": runner.id,
        "name": runner.name,
        "target": runner.target,
        "labels": list(runner.labels),
        "online": runner.online,
        "job": runner.job.id if runner.job else None,
        "sessions": runner.sessions,
    }


def _delivery(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "guid": delivery.guid,
        "event": delivery.event,
        "action": delivery.action,
        "job": delivery.job.id if delivery.job else None,
        "redelivery": delivery.redelivery,
        "delivered_at": shapes.stamp(delivery.delivered_at),
        "duration": delivery.duration,
        "status": delivery.status,
        "status_code": delivery.status_code,
    }
