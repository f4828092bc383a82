"""The sandbox's GitHub REST API: runners, runner groups, jobs, runs, the App's tokens."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

from aiohttp import web

from sandbox import github_shapes as shapes
from sandbox.github_faults import Calls, Faults
from sandbox.github_gate import Credentials, Gate, Refusal, answer, page_of
from sandbox.github_world import Group, Job, NameTaken, Runner, StillRunning, World

SCOPES = {"/orgs/{org}": "org", "/repos/{owner}/{repo}": "repo", "/enterprises/{enterprise}": "enterprise"}


class Api:
    """`root` is the sandbox's own URL, which a JIT config tells the runner; `place.api` adds the prefix of a GHES."""

    def __init__(
        self,
        *,
        world: World,
        place: shapes.Place,
        root: str,
        enterprise: str | None,
        credentials: Credentials,
        calls: Calls,
        faults: Faults,
    ) -> None:
        self._world = world
        self._place = place
        self._root = root
        self._enterprise = enterprise
        self._credentials = credentials
        self._calls = calls
        self._faults = faults

    def add_routes(self, app: web.Application, gate: Gate) -> None:
        for scope, kind in SCOPES.items():
            runners = f"{scope}/actions/runners"
            gate.add(app, "GET", runners, self.list_runners)
            gate.add(app, "POST", f"{runners}/generate-jitconfig", self.mint)
            gate.add(app, "GET", f"{runners}/downloads", self.downloads)
            gate.add(app, "GET", runners + r"/{runner_id:\d+}", self.get_runner)
            gate.add(app, "DELETE", runners + r"/{runner_id:\d+}", self.delete_runner)
            if kind != "repo":
                gate.add(app, "GET", f"{scope}/actions/runner-groups", self.groups)
        gate.add(app, "GET", r"/repos/{owner}/{repo}/actions/jobs/{job_id:\d+}", self.get_job)
        gate.add(app, "POST", r"/repos/{owner}/{repo}/actions/jobs/{job_id:\d+}/rerun", self.rerun_job)
        gate.add(app, "GET", r"/repos/{owner}/{repo}/actions/runs/{run_id:\d+}", self.get_run)
        gate.add(app, "GET", r"/repos/{owner}/{repo}/actions/runs/{run_id:\d+}/jobs", self.run_jobs)
        gate.add(app, "GET", "/rate_limit", self.rate_limit)
        gate.add(app, "POST", r"/app/installations/{installation_id:\d+}/access_tokens", self.installation_token)

    # ------------------------------------------------------------------------------------------ runners

    async def list_runners(self, request: web.Request) -> web.Response:
        runners = self._of(request)
        if name := request.query.get("name"):
            runners = [runner for runner in runners if runner.name == name]
        page, link = page_of(request, runners, self._root)
        if request.query.get("page", "1") != "1" and page and self._faults.take("shift", method="GET", path=request.path):
            self._world.shift(page[0])
            page, link = page_of(request, self._of(request), self._root)
        return answer({"total_count": len(runners), "runners": [self._shown(runner) for runner in page]}, link=link)

    async def mint(self, request: web.Request) -> web.Response:
        target = self._target(request)
        body = await _body(request)
        name, labels, group_id = body.get("name"), body.get("labels"), body.get("runner_group_id")
        if not isinstance(name, str) or not 0 < len(name) <= 64:
            raise Refusal(422, "Invalid request.\n\nThe runner name must have between 1 and 64 characters.")
        if not isinstance(labels, list) or not 0 < len(labels) <= 100 or not all(isinstance(label, str) for label in labels):
            raise Refusal(422, "Invalid request.\n\nlabels must hold 1 to 100 strings.")
        group = self._group(target, group_id)
        try:
            runner = self._world.register(target, name, labels, group)
        except NameTaken:
            raise Refusal(409, f"Already exists - A runner with the name {name} already exists.") from None
        if fault := self._faults.take("reap", path=name):
            asyncio.get_running_loop().call_later(fault.seconds, self._reap, runner)
        config = json.dumps({"url": self._root, "runner_id": runner.id, "token": runner.token})
        encoded = base64.b64encode(config.encode()).decode()
        return answer({"runner": self._shown(runner), "encoded_jit_config": encoded}, status=201)

    async def get_runner(self, request: web.Request) -> web.Response:
        return answer(self._shown(self._runner(request)))

    async def delete_runner(self, request: web.Request) -> web.Response:
        runner = self._runner(request)
        if runner.job is not None and not self._faults.take("removed_although_busy", method="DELETE", path=runner.name):
            raise Refusal(422, f'Bad request - Runner "{runner.name}" is still running a job"')
        self._world.remove(runner)
        return answer(None, status=204)

    async def downloads(self, request: web.Request) -> web.Response:
        self._target(request)
        return answer(shapes.downloads())

    async def groups(self, request: web.Request) -> web.Response:
        target = self._target(request)
        url = f"{self._place.api}/orgs/{self._place.owner}/actions/runner-groups"
        groups = [_group(group, f"{url}/{group.id}") for group in self._world.groups.values()]
        if target.startswith("enterprise:"):
            groups = [{key: value for key, value in group.items() if key != "inherited"} for group in groups]
        page, link = page_of(request, groups, self._root)
        return answer({"total_count": len(groups), "runner_groups": page}, link=link)

    def _reap(self, runner: Runner) -> None:
        if runner.job is None:
            self._world.remove(runner)

    def _shown(self, runner: Runner) -> dict[str, Any]:
        lag = self._faults.take("busy_lag", path=runner.name) if runner.job else None
        busy = runner.job is not None and (lag is None or time.monotonic() - runner.job_since >= lag.seconds)
        return shapes.runner(runner, busy=busy)

    def _of(self, request: web.Request) -> list[Runner]:
        target = self._target(request)
        return [runner for runner in self._world.runners.values() if runner.target == target]

    def _runner(self, request: web.Request) -> Runner:
        runner = self._world.runners.get(int(request.match_info["runner_id"]))
        if runner is None or runner.target != self._target(request):
            raise Refusal(404, "Not Found")
        return runner

    def _group(self, target: str, group_id: object) -> Group:
        """A repository has no groups, whatever id is sent; a group that is not there is 404."""
        if target.startswith("repo:"):
            return self._world.groups[1]
        group = self._world.groups.get(group_id) if isinstance(group_id, int) else None
        if group is None:
            raise Refusal(404, "Not Found")
        return group

    def _target(self, request: web.Request) -> str:
        """The scope of this call; what does not exist, or is not ours to see, is 404."""
        match = request.match_info
        if "org" in match:
            known = self._place.owner_kind == "Organization" and match["org"].lower() == self._place.owner.lower()
            target = f"org:{self._place.owner}"
        elif "enterprise" in match:
            known, target = match["enterprise"] == self._enterprise, f"enterprise:{match['enterprise']}"
        else:
            name = f"{match['owner']}/{match['repo']}"
            known, target = name in self._world.repositories, f"repo:{name}"
        if not known:
            raise Refusal(404, "Not Found")
        return target

    # ------------------------------------------------------------------------------------------ jobs

    async def get_job(self, request: web.Request) -> web.Response:
        return answer(shapes.job(self._place, self._job(request)))

    async def rerun_job(self, request: web.Request) -> web.Response:
        try:
            self._world.rerun(self._job(request))
        except StillRunning:
            raise Refusal(403, "The workflow run containing this job is already running") from None
        return answer({}, status=201)

    def _job(self, request: web.Request) -> Job:
        job = self._world.jobs.get(int(request.match_info["job_id"]))
        if job is None or f"repo:{job.repository.name}" != self._target(request):
            raise Refusal(404, "Not Found")
        return job

    async def get_run(self, request: web.Request) -> web.Response:
        return answer(shapes.workflow_run(self._place, self._run(request)))

    async def run_jobs(self, request: web.Request) -> web.Response:
        jobs = self._run(request)
        page, link = page_of(request, jobs, self._root)
        return answer({"total_count": len(jobs), "jobs": [shapes.job(self._place, job) for job in page]}, link=link)

    def _run(self, request: web.Request) -> list[Job]:
        target, run_id = self._target(request), int(request.match_info["run_id"])
        jobs = [job for job in self._world.jobs.values() if job.run_id == run_id and f"repo:{job.repository.name}" == target]
        if not jobs:
            raise Refusal(404, "Not Found")
        return jobs

    # ------------------------------------------------------------------------------------------ the rest

    async def rate_limit(self, request: web.Request) -> web.Response:
        shown = self._calls.headers()
        core = {name: int(shown[f"X-RateLimit-{name.title()}"]) for name in ("limit", "remaining", "reset", "used")}
        return answer({"resources": {"core": core, "search": core}, "rate": core})

    async def installation_token(self, request: web.Request) -> web.Response:
        app = self._credentials.app
        if app is None or int(request.match_info["installation_id"]) != app.installation_id:
            raise Refusal(404, "Not Found")
        token, until = self._credentials.installation_token()
        body = {"token": token, "expires_at": shapes.stamp(until), "permissions": app.permissions, "repository_selection": "all"}
        return answer(body, status=201)


def _group(group: Group, url: str) -> dict[str, Any]:
    return {
        "id": group.id,
        "name": group.name,
        "visibility": "all" if group.repositories is None else "selected",
        "default": group.id == 1,
        "runners_url": f"{url}/runners",
        "inherited": False,
        "allows_public_repositories": group.public,
        "restricted_to_workflows": False,
        "selected_workflows": [],
        "workflow_restrictions_read_only": False,
    }


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        raise Refusal(400, "Problems parsing JSON") from None
    if not isinstance(body, dict):
        raise Refusal(422, "Invalid request.\n\nan object is expected")
    return body
