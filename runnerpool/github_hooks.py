"""The deliveries of our webhook, wherever it hangs: on the App, the organisation or the repositories.

GitHub never repeats a failed delivery by itself, but lists it for some days and repeats it on request
(https://docs.github.com/webhooks/using-webhooks/handling-failed-webhook-deliveries).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from runnerpool.errors import Gone, RetryLater
from runnerpool.github_client import GitHubClient
from runnerpool.github_errors import Call, Forbidden, understood
from runnerpool.ports import Delivery

PERMISSIONS = {
    "org": "the organisation permission 'Webhooks: write' (classic token: admin:org_hook)",
    "repo": "the repository permission 'Webhooks: write' (classic token: admin:repo_hook)",
    "app": "the App's own key",
}


@dataclass(frozen=True, slots=True)
class Hook:
    """`path` is where its deliveries hang, `…/hooks/1` or `/app/hook`."""

    path: str
    permission: str


@dataclass(frozen=True, slots=True)
class HookDelivery(Delivery):
    """A delivery that knows its hook, which a redelivery is asked of."""

    hook: Hook


class Hooks:
    """`targets` are the scopes that may carry our hook (GitHub offers no such list for enterprises); `webhook` is the end of
    our hook's URL: a path, or host and path where several deployments share a scope."""

    def __init__(self, *, client: GitHubClient, targets: Sequence[str], webhook: str) -> None:
        self._client = client
        self._targets = tuple(targets)
        self._webhook = webhook.rstrip("/")
        self._found: tuple[Hook, ...] = ()

    async def failed(self, since: datetime) -> list[Delivery]:
        """What `ports.GitHub.failed_deliveries` promises. One call a hook when nothing failed."""
        if not self._found:
            self._found = tuple([hook for target in self._places() for hook in await self._ours(target)])
        failed: list[Delivery] = []
        for hook in self._found:
            try:
                failed += await self._failed_on(hook, since)
            except (Gone, Forbidden):
                self._found = ()  # deleted, replaced, or out of our reach: look for it again next time
        return sorted(failed, key=lambda delivery: delivery.delivered_at, reverse=True)

    async def redeliver(self, delivery: Delivery) -> None:
        if not isinstance(delivery, HookDelivery):
            raise TypeError("only what failed_deliveries returned can be redelivered: it names the hook")
        path = f"{delivery.hook.path}/deliveries/{delivery.id}/attempts"
        await self._client.send(Call("POST", path, "redeliver a webhook delivery", delivery.hook.permission), expect=202)

    def _places(self) -> list[str]:
        listed = [target for target in self._targets if not target.startswith("enterprise:")]
        return ["app:", *listed] if self._client.is_app else listed

    async def _ours(self, target: str) -> list[Hook]:
        kind, _, name = target.partition(":")
        permission = PERMISSIONS[kind]
        path = {"app": "/app/hook", "org": f"/orgs/{name}/hooks", "repo": f"/repos/{name}/hooks"}[kind]
        call = Call("GET", f"{path}/config" if kind == "app" else path, f"find our webhook on {name or 'the App'}", permission)
        try:
            answer = await self._client.send(call, expect=200, params=None if kind == "app" else {"per_page": 100})
        except (Gone, Forbidden):
            return []
        with understood(call):
            if kind == "app":
                return [Hook(path, permission)] if self._is_ours(answer.data.get("url")) else []
            ours = [item["id"] for item in answer.data if self._is_ours(item["config"].get("url"))]
            return [Hook(f"{path}/{hook_id}", permission) for hook_id in ours]

    def _is_ours(self, url: object) -> bool:
        return isinstance(url, str) and url.partition("?")[0].rstrip("/").endswith(self._webhook)

    async def _failed_on(self, hook: Hook, since: datetime) -> list[Delivery]:
        attempts = [attempt for attempt in await self._attempts(hook, since, "failure") if not attempt.ok]
        if not attempts:
            return []
        # A redelivery is younger than what it repeats, so what succeeded before the oldest failure does not matter.
        oldest = min(attempt.delivered_at for attempt in attempts)
        done = {attempt.guid for attempt in await self._attempts(hook, oldest, "success") if attempt.ok}
        newest: dict[str, Delivery] = {}
        for attempt in sorted(attempts, key=lambda attempt: (attempt.delivered_at, attempt.id)):
            if attempt.guid not in done:
                newest[attempt.guid] = attempt
        return list(newest.values())

    async def _attempts(self, hook: Hook, since: datetime, status: str) -> list[Delivery]:
        """Attempts to deliver `workflow_job` events, newest first as GitHub lists them. A GHES that does not know `status`
        lists them all: hence `ok` is read from each attempt."""
        call = Call("GET", f"{hook.path}/deliveries", "list webhook deliveries", hook.permission)
        attempts: list[Delivery] = []
        params: dict[str, str | int] = {"per_page": 100, "status": status}
        while True:
            answer = await self._client.send(call, expect=200, params=params)
            with understood(call):
                page = [_attempt(hook, item) for item in answer.data if item.get("event") == "workflow_job"]
                past = bool(answer.data) and _delivered_at(answer.data[-1]) < since
            attempts += [attempt for attempt in page if attempt.delivered_at >= since]
            if past or answer.next_cursor is None:
                return attempts
            if params.get("cursor") == answer.next_cursor:
                raise RetryLater("GitHub's list of deliveries repeats its cursor")
            params["cursor"] = answer.next_cursor


def _attempt(hook: Hook, item: dict[str, Any]) -> HookDelivery:
    return HookDelivery(
        id=int(item["id"]),
        guid=str(item["guid"]),
        delivered_at=_delivered_at(item),
        ok=200 <= int(item.get("status_code") or 0) < 300,
        hook=hook,
    )


def _delivered_at(item: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(item["delivered_at"])
