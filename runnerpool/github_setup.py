"""How GitHub is set up for us: permissions, runner groups, webhooks and their deliveries; and the making of a webhook.

What `doctor` and `webhook install` need beyond `github.py`, over the same client and with the same errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from runnerpool.errors import Gone, Misconfigured
from runnerpool.github import PERMISSIONS, READ_JOBS, ROOTS, WRITE_JOBS
from runnerpool.github_client import GitHubClient
from runnerpool.github_errors import Call, understood
from runnerpool.github_hooks import PERMISSIONS as HOOK_PERMISSIONS
from runnerpool.model import Target

APP_HOOK = "/app/hook"
EVENT = "workflow_job"


@dataclass(frozen=True, slots=True)
class Webhook:
    """One webhook; `path` is its API path. The App's hook tells neither events nor whether it is active: those are the App's."""

    path: str
    url: str
    events: tuple[str, ...] = (EVENT,)
    active: bool = True
    content_type: str = "json"
    secret: bool = True
    verifies_tls: bool = True


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to deliver an event; `status_code` 0 where there was no answer."""

    event: str
    delivered_at: datetime
    status_code: int
    status: str

    @property
    def ok(self) -> bool:
        return 200 <= self.status_code < 300


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    everybody: bool  # open to every repository
    public: bool  # open to public repositories
    some_workflows: bool  # open to chosen workflows only


@dataclass(frozen=True, slots=True)
class AppGrant:
    """What an App's installation may do, and which events it is sent. `page` is where that is changed."""

    permissions: Mapping[str, str]
    events: tuple[str, ...]
    page: str


class GitHubSetup:
    """On a client inside its `async with`."""

    def __init__(self, client: GitHubClient) -> None:
        self._client = client

    # ------------------------------------------------------------------------------------------ the credential

    async def calls_left(self) -> tuple[int, int] | None:
        """Of how many calls an hour how many are left; None where this GitHub sets no limit. Costs none itself."""
        call = Call("GET", "/rate_limit", "see whether the credential is accepted", "one that is valid")
        try:
            answer = await self._client.send(call, expect=200)
        except Gone:
            return None
        with understood(call):
            core = answer.data["resources"]["core"]
            return int(core["remaining"]), int(core["limit"])

    async def app_grant(self, installation_id: int) -> AppGrant:
        call = Call("GET", f"/app/installations/{installation_id}", "read the App's installation", "the App's own key")
        answer = await self._client.send(call, expect=200)
        with understood(call):
            data = answer.data
            return AppGrant(dict(data["permissions"]), tuple(data["events"]), str(data["html_url"]))

    async def may_register(self, target: Target) -> None:
        """Raises Misconfigured where the credential may not register runners.

        Only a write shows that, so one is asked for that GitHub must refuse: without name, labels or group. It checks the
        permission (403, 404) before the request (422), and nothing is registered.
        """
        kind, _, name = target.partition(":")
        path = f"{ROOTS[kind]}/{quote(name)}/actions/runners/generate-jitconfig"
        call = Call("POST", path, f"see whether runners of {target} may be registered", PERMISSIONS[kind])
        try:
            await self._client.send(call, expect=201, body={"name": "", "labels": [], "runner_group_id": 0})
        except Gone as gone:
            raise Misconfigured(f"{gone}; it needs {PERMISSIONS[kind]}", area="auth") from None
        except Misconfigured as refused:
            if refused.area == "auth":
                raise

    async def some_repository(self, owner: str) -> str | None:
        """A repository of the organisation that takes jobs, OWNER/NAME; None where the credential sees none. An archived one
        refuses every write, and would be mistaken for a lacking permission."""
        call = Call("GET", f"/orgs/{quote(owner)}/repos", f"list repositories of {owner}", "the repository permission 'Metadata'")
        answer = await self._client.send(call, expect=200, params={"per_page": 100, "type": "private"})
        with understood(call):
            return next((str(item["full_name"]) for item in answer.data if not item.get("archived")), None)

    async def may_read_jobs(self, repository: str) -> None:
        """Raises Misconfigured where the credential may not."""
        call = Call("GET", f"/repos/{quote(repository)}/actions/runs", f"read jobs of {repository}", READ_JOBS)
        try:
            await self._client.send(call, expect=200, params={"per_page": 1})
        except Gone as gone:
            told = f"{gone}: no such repository, or the credential lacks {READ_JOBS}"
            raise Misconfigured(told, area="auth") from None

    async def may_rerun_jobs(self, repository: str) -> None:
        """Raises Misconfigured where the credential may not; on a repository whose jobs it may read.

        Only a write shows that, so job 0, which no repository has, is asked for: GitHub checks the permission (403) before it
        looks for the job (404).
        """
        call = Call(
            "POST",
            f"/repos/{quote(repository)}/actions/jobs/0/rerun",
            f"see whether jobs of {repository} may be run again",
            WRITE_JOBS,
        )
        try:
            await self._client.send(call, expect=201)
        except Gone:
            return

    async def group(self, target: Target, name: str) -> Group | None:
        """The runner group of that name, None where there is none."""
        kind, _, place = target.partition(":")
        path = f"{ROOTS[kind]}/{quote(place)}/actions/runner-groups"
        call = Call("GET", path, f"find the runner group {name!r} of {target}", PERMISSIONS[kind])
        page = 1
        while True:
            answer = await self._client.send(call, expect=200, params={"per_page": 100, "page": page})
            with understood(call):
                for item in answer.data["runner_groups"]:
                    if str(item["name"]).casefold() == name.casefold():
                        return _group(item)
                if len(answer.data["runner_groups"]) < 100:
                    return None
            page += 1

    # ------------------------------------------------------------------------------------------ webhooks

    async def webhooks(self, target: Target) -> list[Webhook]:
        """Every webhook of an organisation or repository, or the App's for "app:" (one without a URL is none)."""
        call = _hooks(target, "GET", f"list the webhooks of {_named(target)}")
        if target == "app:":
            answer = await self._client.send(call, expect=200)
            with understood(call):
                return [_webhook(APP_HOOK, {"config": answer.data})] if answer.data.get("url") else []
        found: list[Webhook] = []
        page = 1
        while True:
            answer = await self._client.send(call, expect=200, params={"per_page": 100, "page": page})
            with understood(call):
                found += [_webhook(f"{call.path}/{item['id']}", item) for item in answer.data]
            if len(answer.data) < 100:
                return found
            page += 1

    async def create_webhook(self, target: Target, url: str, secret: str) -> Webhook:
        call = _hooks(target, "POST", f"make a webhook on {_named(target)}")
        body = {"name": "web", "active": True, "events": [EVENT], "config": _config(url, secret)}
        answer = await self._client.send(call, expect=201, body=body)
        with understood(call):
            return _webhook(f"{call.path}/{answer.data['id']}", answer.data)

    async def set_webhook(self, target: Target, webhook: Webhook, url: str, secret: str) -> None:
        """Sets everything that can be set; the App's events and whether its hook is active can only be set on its page."""
        call = _hooks(target, "PATCH", f"change the webhook of {_named(target)}", path=webhook.path)
        config = _config(url, secret)
        body = config if target == "app:" else {"active": True, "events": [EVENT], "config": config}
        await self._client.send(call, expect=200, body=body)

    async def attempts(self, webhook: Webhook, count: int) -> list[Attempt]:
        """The newest deliveries of a webhook, newest first."""
        call = Call("GET", f"{webhook.path}/deliveries", "list webhook deliveries", "'Webhooks: read'")
        answer = await self._client.send(call, expect=200, params={"per_page": count})
        with understood(call):
            return [_attempt(item) for item in answer.data]


def _named(target: Target) -> str:
    return "the App" if target == "app:" else target.partition(":")[2]


def _hooks(target: Target, method: str, purpose: str, path: str = "") -> Call:
    kind, _, name = target.partition(":")
    if kind == "app":
        return Call(method, f"{APP_HOOK}/config", purpose, HOOK_PERMISSIONS["app"])
    return Call(method, path or f"{ROOTS[kind]}/{quote(name)}/hooks", purpose, HOOK_PERMISSIONS[kind])


def _config(url: str, secret: str) -> dict[str, str]:
    return {"url": url, "content_type": "json", "insecure_ssl": "0", "secret": secret}


def _webhook(path: str, item: Mapping[str, Any]) -> Webhook:
    config = item["config"]
    return Webhook(
        path=path,
        url=str(config.get("url") or ""),
        events=tuple(item.get("events", (EVENT,))),
        active=bool(item.get("active", True)),
        content_type=str(config.get("content_type", "form")),
        secret=bool(config.get("secret")),
        verifies_tls=str(config.get("insecure_ssl", "0")) == "0",
    )


def _attempt(item: Mapping[str, Any]) -> Attempt:
    return Attempt(
        event=str(item.get("event")),
        delivered_at=datetime.fromisoformat(item["delivered_at"]),
        status_code=int(item.get("status_code") or 0),
        status=str(item.get("status", "")),
    )


def _group(item: Mapping[str, Any]) -> Group:
    return Group(
        name=str(item["name"]),
        everybody=item.get("visibility") == "all",
        public=bool(item.get("allows_public_repositories")),
        some_workflows=bool(item.get("restricted_to_workflows")),
    )
