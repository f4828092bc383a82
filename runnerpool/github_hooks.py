"""The deliveries of our webhook, wherever it hangs: on the App, the organisation or the repositories.

GitHub never repeats a failed delivery by itself, but lists it for some days and repeats it on request
(https://docs.github.com/webhooks/using-webhooks/handling-failed-webhook-deliveries).

Its list is only read from the newest delivery backwards, and days of it are hundreds of pages. So each hook has a `_Log` of
what was read of it: a look reads what is new, and goes on where the last one stopped, a few pages at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from runnerpool.errors import Gone, PoolError, RetryLater
from runnerpool.github_client import GitHubClient
from runnerpool.github_errors import Call, Forbidden, understood
from runnerpool.ports import Delivery

log = logging.getLogger(__name__)

PERMISSIONS = {
    "org": "the organisation permission 'Webhooks: write' (classic token: admin:org_hook)",
    "repo": "the repository permission 'Webhooks: write' (classic token: admin:repo_hook)",
    "app": "the App's own key",
}

PAGES = 12
"""Pages of deliveries read in one look, of all hooks together: at two looks a minute less than a third of GitHub's smallest
budget, 5,000 an hour."""
GOES_ON = timedelta(seconds=25)
"""After a look that did not come to the end: longer than anybody waits within a pass, and the next pass goes on."""
OVERLAP = timedelta(minutes=5)
"""Read once more: an attempt is listed under the time of its beginning, when it has ended."""


@dataclass(frozen=True, slots=True)
class Hook:
    """`path` is where its deliveries hang, `…/hooks/1` or `/app/hook`."""

    path: str
    permission: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HookDelivery(Delivery):
    """A delivery that knows what its redelivery needs; `hook` is the hook's path."""

    permission: str


@dataclass(slots=True)
class _Reading:
    """One list of a hook's attempts. Up to `read_to` all of it has been read; `cursor` is where an unfinished reading goes on,
    and `top` the newest attempt that it began with."""

    read_to: datetime | None = None
    cursor: str | None = None
    top: datetime | None = None


Status = Literal["failure", "success"]


@dataclass(slots=True)
class _Log:
    """What is known of a hook's failed deliveries, by guid: the newest failed attempt at each one that is `open`, and when
    those that are `done` got their 2xx. `missed`: the last look did not find the hook."""

    open: dict[str, HookDelivery] = field(default_factory=dict)
    done: dict[str, datetime] = field(default_factory=dict)
    readings: dict[Status, _Reading] = field(default_factory=lambda: {"failure": _Reading(), "success": _Reading()})
    missed: bool = False

    def note(self, attempt: HookDelivery) -> None:
        """In any order. Success matters only for what is known to have failed: failures are read first, to their end."""
        if attempt.ok:
            if self.open.pop(attempt.guid, None) is not None:
                self.done[attempt.guid] = attempt.delivered_at
        elif attempt.guid not in self.done:
            known = self.open.get(attempt.guid, attempt)
            self.open[attempt.guid] = max(known, attempt, key=lambda one: (one.delivered_at, one.id))

    def forget(self, before: datetime) -> None:
        self.open = {guid: attempt for guid, attempt in self.open.items() if attempt.delivered_at >= before}
        self.done = {guid: at for guid, at in self.done.items() if at >= before}


class Hooks:
    """`targets` are the scopes that may carry our hook (GitHub offers no such list for enterprises); `webhook` is the end of
    our hook's URL: a path, or host and path where several deployments share a scope."""

    def __init__(self, *, client: GitHubClient, targets: Sequence[str], webhook: str) -> None:
        self._client = client
        self._targets = tuple(targets)
        self._webhook = webhook.rstrip("/")
        self._found: tuple[Hook, ...] = ()
        self._logs: dict[str, _Log] = {}
        self._pages = 0  # that this look may still read
        self._looking = asyncio.Lock()

    async def failed(self, since: datetime) -> list[Delivery]:
        """What `ports.GitHub.failed_deliveries` promises. One call a hook when nothing failed, one more when something did.

        Raises RetryLater when PAGES did not suffice: what they held is remembered, and the next look reads on from there.
        """
        async with self._looking:
            self._pages = PAGES
            if not self._found:
                self._found = tuple([hook for target in self._places() for hook in await self._ours(target)])
                for path in self._logs.keys() - {hook.path for hook in self._found}:
                    self._lose(path)
            failed = [delivery for hook in self._found for delivery in await self._failed_on(hook, since)]
            return sorted(failed, key=lambda delivery: delivery.delivered_at, reverse=True)

    async def redeliver(self, delivery: Delivery) -> None:
        if not isinstance(delivery, HookDelivery):
            raise TypeError("only what failed_deliveries returned can be redelivered: it names the hook")
        path = f"{delivery.hook}/deliveries/{delivery.id}/attempts"
        await self._client.send(Call("POST", path, "redeliver a webhook delivery", delivery.permission), expect=202)

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

    async def _failed_on(self, hook: Hook, since: datetime) -> list[HookDelivery]:
        known = self._logs.setdefault(hook.path, _Log())
        try:
            await self._read(hook, known, "failure", since)
            known.forget(since)
            if known.open:
                # A redelivery is younger than what it repeats, so what succeeded before the oldest failure does not matter.
                await self._read(hook, known, "success", min(attempt.delivered_at for attempt in known.open.values()))
        except RetryLater:
            raise
        except (Gone, Forbidden) as error:  # deleted, replaced, or out of our reach: look for it again next time
            self._found = ()
            if known.open and not known.missed:  # or what failed would seem to be delivered
                known.missed = True
                raise RetryLater(f"the webhook {hook.path} is looked for again: {error}", after=GOES_ON) from None
            self._lose(hook.path)
            return []
        except PoolError:
            del self._logs[hook.path]  # it may be the cursor that GitHub refuses: begin anew
            raise
        known.missed = False
        return list(known.open.values())

    def _lose(self, path: str) -> None:
        """Forgets a hook that is gone, or that no permission shows any more."""
        if count := len(self._logs.pop(path).open):
            log.warning("the webhook %s cannot be seen any more: %d failed deliveries of it are not sent again", path, count)

    async def _read(self, hook: Hook, known: _Log, status: Status, since: datetime) -> None:
        """Notes the attempts since then that have not been read yet."""
        reading = known.readings[status]
        begun_earlier = reading.cursor is not None
        floor = max(since, reading.read_to - OVERLAP) if reading.read_to else since
        while not await self._page(hook, known, status, floor):
            pass
        if begun_earlier:  # and what came meanwhile
            await self._read(hook, known, status, since)

    async def _page(self, hook: Hook, known: _Log, status: Status, floor: datetime) -> bool:
        """Notes the attempts of one page, newest first as GitHub lists them; whether it was the last page. A GHES that does not
        know `status` lists them all: hence `ok` is read from each attempt."""
        reading = known.readings[status]
        if not self._pages:
            told = f"the list of {hook.path}'s deliveries is long: {PAGES} pages were read and kept, the next look reads on"
            raise RetryLater(told, after=GOES_ON)
        self._pages -= 1
        call = Call("GET", f"{hook.path}/deliveries", "list webhook deliveries", hook.permission)
        params: dict[str, str | int] = {"per_page": 100, "status": status}
        answer = await self._client.send(call, expect=200, params=params | ({"cursor": reading.cursor} if reading.cursor else {}))
        with understood(call):
            page = [_attempt(hook, item) for item in answer.data if item.get("event") == "workflow_job"]
            times = [_delivered_at(item) for item in answer.data]
        for attempt in page:
            if attempt.delivered_at >= floor:
                known.note(attempt)
        if reading.cursor is None:
            reading.top = times[0] if times else reading.read_to
        if answer.next_cursor is None or (times and times[-1] < floor):
            reading.read_to, reading.cursor = reading.top, None
            return True
        if reading.cursor == answer.next_cursor:
            reading.cursor = None
            raise RetryLater("GitHub's list of deliveries repeats its cursor")
        reading.cursor = answer.next_cursor
        return False


def _attempt(hook: Hook, item: dict[str, Any]) -> HookDelivery:
    return HookDelivery(
        id=int(item["id"]),
        guid=str(item["guid"]),
        delivered_at=_delivered_at(item),
        ok=200 <= int(item.get("status_code") or 0) < 300,
        hook=hook.path,
        permission=hook.permission,
    )


def _delivered_at(item: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(item["delivered_at"])
