"""The sandbox's GitHub REST API for whoever looks a deployment over: repositories, runs, the App and its installation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from sandbox import github_shapes as shapes
from sandbox.github_gate import AppIdentity, Credentials, Gate, Refusal, answer, page_of
from sandbox.github_world import World

SINCE = "2026-01-02T03:04:05Z"


class ReadsApi:
    def __init__(self, *, world: World, place: shapes.Place, root: str, credentials: Credentials) -> None:
        self._world = world
        self._place = place
        self._root = root
        self._credentials = credentials

    def add_routes(self, app: web.Application, gate: Gate) -> None:
        gate.add(app, "GET", "/orgs/{org}/repos", self.repositories)
        gate.add(app, "GET", "/repos/{owner}/{repo}/actions/runs", self.runs)
        gate.add(app, "GET", "/app", self.app)
        gate.add(app, "GET", r"/app/installations/{installation_id:\d+}", self.installation)

    async def repositories(self, request: web.Request) -> web.Response:
        if request.match_info["org"].lower() != self._place.owner.lower():
            raise Refusal(404, "Not Found")
        shown = [shapes.minimal_repository(self._place, repository) for repository in self._world.repositories.values()]
        page, link = page_of(request, shown, self._root)
        return answer(page, link=link)

    async def runs(self, request: web.Request) -> web.Response:
        """Newest first."""
        name = f"{request.match_info['owner']}/{request.match_info['repo']}"
        if name not in self._world.repositories:
            raise Refusal(404, "Not Found")
        of_run: dict[int, list[Any]] = {}
        for job in self._world.jobs.values():
            if job.repository.name == name:
                of_run.setdefault(job.run_id, []).append(job)
        page, link = page_of(request, list(reversed(of_run.values())), self._root)
        shown = [shapes.workflow_run(self._place, jobs) for jobs in page]
        return answer({"total_count": len(of_run), "workflow_runs": shown}, link=link)

    async def app(self, request: web.Request) -> web.Response:
        it = self._identity()
        return answer(
            {
                "id": it.app_id,
                "slug": "runnerpool",
                "client_id": f"Iv1.{it.app_id:016x}",
                "node_id": f"A_{it.app_id}",
                "owner": self._owner(),
                "name": "runnerpool",
                "description": None,
                "external_url": "https://github.example/runnerpool",
                "html_url": f"{self._place.web}/apps/runnerpool",
                "created_at": SINCE,
                "updated_at": SINCE,
                "permissions": dict(it.permissions),
                "events": list(it.events),
                "installations_count": 1,
            }
        )

    async def installation(self, request: web.Request) -> web.Response:
        it = self._identity()
        if int(request.match_info["installation_id"]) != it.installation_id:
            raise Refusal(404, "Not Found")
        return answer(
            {
                "id": it.installation_id,
                "account": self._owner(),
                "access_tokens_url": f"{self._place.api}/app/installations/{it.installation_id}/access_tokens",
                "repositories_url": f"{self._place.api}/installation/repositories",
                "html_url": f"{self._place.web}/settings/installations/{it.installation_id}",
                "app_id": it.app_id,
                "app_slug": "runnerpool",
                "target_id": shapes.identifier(self._place.owner),
                "target_type": self._place.owner_kind,
                "permissions": dict(it.permissions),
                "events": list(it.events),
                "created_at": SINCE,
                "updated_at": SINCE,
                "single_file_name": None,
                "repository_selection": "all",
                "suspended_by": None,
                "suspended_at": None,
            }
        )

    def _identity(self) -> AppIdentity:
        if self._credentials.app is None:
            raise Refusal(404, "Not Found")
        return self._credentials.app

    def _owner(self) -> Mapping[str, Any]:
        return shapes.user(self._place, self._place.owner, self._place.owner_kind)
