"""A small GitHub on loopback: REST API, webhooks, and the service that gives jobs to runners.

`github_world.py` holds what it knows, `github_api.py` and `github_hooks_api.py` its REST API behind `github_gate.py`,
`github_deliveries.py` its webhooks, `github_runner_api.py` its side of the runner program, `github_admin.py` its controls.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from random import Random
from typing import Literal

from aiohttp import web

from sandbox import github_shapes as shapes
from sandbox.github_admin import Admin
from sandbox.github_api import Api
from sandbox.github_deliveries import Deliveries, Hook
from sandbox.github_faults import Calls, Faults
from sandbox.github_gate import AppIdentity, Credentials, Gate, not_found
from sandbox.github_hooks_api import HooksApi, app_hook, organization_hook, repository_hook
from sandbox.github_reads_api import ReadsApi
from sandbox.github_runner_api import RunnerApi
from sandbox.github_world import Group, Job, Repository, World

__all__ = ["AppIdentity", "GitHubSandbox", "Group", "Repository"]

HookPlace = Literal["org", "repo", "app"]


class GitHubSandbox:
    """`owner` owns `repositories` (OWNER/NAME, private unless a `Repository` says otherwise). `tokens` are what the API
    accepts; `prefix` stands before its paths (`/api/v3` makes it a GHES). `hook_on` says where the webhook hangs.

    `runner_poll`, `delivery_timeout` and `lost_after` are GitHub's own waits, in real seconds.
    """

    def __init__(
        self,
        *,
        owner: str,
        repositories: Sequence[str | Repository],
        tokens: Iterable[str],
        webhook_url: str = "",
        webhook_secret: str = "",
        hook_on: HookPlace = "org",
        owner_kind: Literal["Organization", "User"] = "Organization",
        enterprise: str | None = None,
        app: AppIdentity | None = None,
        groups: Sequence[Group] = (Group(1, "Default"),),
        prefix: str = "",
        seed: int = 0,
        hourly_limit: int = 5000,
        points_per_minute: int = 900,
        delivery_timeout: float = 10.0,
        runner_poll: float = 20.0,
        lost_after: float = 600.0,
    ) -> None:
        self._owner, self._owner_kind, self._enterprise, self._prefix = owner, owner_kind, enterprise, prefix
        self._hook_on, self._runner_poll = hook_on, runner_poll
        random = Random(seed)
        self.faults = Faults(random)
        self.calls = Calls(hourly=hourly_limit, points_per_minute=points_per_minute)
        self.credentials = Credentials(tokens=frozenset(tokens), app=app)
        self.deliveries = Deliveries(random=random, faults=self.faults, timeout=delivery_timeout)
        self.deliveries.installation = app.installation_id if app and hook_on == "app" else None
        self.world = World(
            repositories=[Repository(item) if isinstance(item, str) else item for item in repositories],
            groups=groups,
            random=random,
            lost_after=lost_after,
            emit=self._announce,
        )
        self.set_webhook(webhook_url, webhook_secret)
        self._place = shapes.Place(api="", owner=owner, owner_kind=owner_kind)
        self._runner: web.AppRunner | None = None

    def set_webhook(self, url: str, secret: str) -> None:
        """Hangs the webhook where `hook_on` says; an empty `url` takes it down."""
        self.deliveries.hooks = self._hooks(url, secret) if url else []

    async def start(self, port: int = 0) -> str:
        """Listens on 127.0.0.1 (`port` 0: any free one) and returns the API's base URL, what `GITHUB_API_URL` is set to."""
        listening = socket.create_server(("127.0.0.1", port))
        root = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self._place = shapes.Place(api=root + self._prefix, owner=self._owner, owner_kind=self._owner_kind)
        await self.deliveries.start()
        # A poll must end when its runner program dies, and `stop` must not wait for polls.
        self._runner = web.AppRunner(self._app(root), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()
        return self._place.api

    async def stop(self) -> None:
        """Ends every connection, timer and delivery."""
        self.world.close()
        await self.deliveries.stop()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _app(self, root: str) -> web.Application:
        app = web.Application()
        gate = Gate(credentials=self.credentials, calls=self.calls, faults=self.faults, prefix=self._prefix)
        Api(
            world=self.world,
            place=self._place,
            root=root,
            enterprise=self._enterprise,
            credentials=self.credentials,
            calls=self.calls,
            faults=self.faults,
        ).add_routes(app, gate)
        HooksApi(deliveries=self.deliveries, place=self._place, root=root, world=self.world).add_routes(app, gate)
        ReadsApi(world=self.world, place=self._place, root=root, credentials=self.credentials).add_routes(app, gate)
        RunnerApi(world=self.world, faults=self.faults, poll=self._runner_poll).add_routes(app)
        Admin(
            world=self.world, deliveries=self.deliveries, faults=self.faults, calls=self.calls, set_webhook=self.set_webhook
        ).add_routes(app)
        gate.add(app, "*", "/{path:.*}", not_found)
        return app

    def _announce(self, job: Job, action: str) -> None:
        payload = shapes.event(self._place, job, action, installation=self.deliveries.installation)
        self.deliveries.announce(job, action, payload)

    def _hooks(self, url: str, secret: str) -> list[Hook]:
        if self._hook_on == "app":
            return [app_hook(url, secret)]
        if self._hook_on == "org":
            return [organization_hook(self._owner, 501, url, secret)]
        return [repository_hook(name, 501 + number, url, secret) for number, name in enumerate(self.world.repositories)]
