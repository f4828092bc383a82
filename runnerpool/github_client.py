"""One GitHub credential and its connections: every call that we make goes through `GitHubClient.send`.

githubkit signs the requests (and turns an App's key into installation tokens, an hour each, cached here); its own retry and
HTTP cache stay off: the cache drops timeouts, and the retry sleeps until a limit resets and repeats POSTs. Answers are taken
as plain JSON, because its models are strict about enums that GitHub and GHES extend.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
from githubkit import AppInstallationAuthStrategy, GitHub, TokenAuthStrategy
from githubkit.cache import MemCacheStrategy
from githubkit.exception import GitHubException
from githubkit.throttling import LocalThrottler

from runnerpool.errors import RetryLater
from runnerpool.github_errors import UNNAMED_WAIT, Call, refusal, translate, until_reset

API_VERSION = "2022-11-28"
"""The REST version that both api.github.com and every supported GHES speak."""

TIMEOUT = httpx.Timeout(15.0, connect=5.0)
"""GitHub ends a request of its own accord after 10 s."""

CONCURRENCY = 30
"""GitHub allows a credential 100 requests at a time; provision and reconcile run in several processes."""


@dataclass(frozen=True, slots=True)
class Token:
    """A personal access token, classic or fine-grained."""

    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class App:
    """A GitHub App installed on the organisation or account: calls are made as its installation, `/app/…` as the App itself."""

    app_id: str
    installation_id: int
    private_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer: its JSON (None for 204), and the `cursor` that its Link header gives for the next page."""

    data: Any
    next_cursor: str | None = None


class _Connections(GitHub[Any]):
    """githubkit's client, kept open while anybody is inside. githubkit would keep one for each task context: a task that
    outlives the `async with` in which it began would go on with a closed one, and passes that overlap would share nothing."""

    inside = 0
    open: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def get_async_client(self) -> AsyncGenerator[httpx.AsyncClient, None]:
        if not self.inside:
            async with super().get_async_client() as client:
                yield client
            return
        if self.open is None:
            self.open = await self._create_async_client()
        yield self.open

    async def leave(self) -> None:
        self.inside -= 1
        if not self.inside and self.open is not None:
            client, self.open = self.open, None
            await client.aclose()


class GitHubClient:
    """Long-lived: it remembers the installation token and the rate limit. `async with` it around each pass: calls made
    meanwhile share connections, whichever task makes them; at other times each call opens and closes its own. Passes of
    one event loop may overlap.
    """

    def __init__(self, *, api_url: str, credential: Token | App, timeout: httpx.Timeout = TIMEOUT) -> None:
        self.is_app = isinstance(credential, App)
        self._remaining: int | None = None
        self._reset_at = 0.0  # of time.monotonic()
        self._github = _Connections(
            _strategy(credential),
            base_url=api_url,
            user_agent="runnerpool",
            timeout=timeout,
            ssl_verify=httpx.create_ssl_context(),  # loaded once, not once a connection
            cache_strategy=MemCacheStrategy(),
            http_cache=False,
            throttler=LocalThrottler(CONCURRENCY),
            auto_retry=False,
        )

    async def __aenter__(self) -> Self:
        self._github.inside += 1
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._github.leave()

    async def send(
        self, call: Call, *, expect: int, params: Mapping[str, str | int] | None = None, body: Mapping[str, Any] | None = None
    ) -> Answer:
        """Makes the call; anything but the status `expect` raises what `github_errors` makes of it."""
        try:
            response = await self._github.arequest(
                call.method, call.path, params=params, json=body, headers={"X-GitHub-Api-Version": API_VERSION}
            )
            raw = response.raw_response
        except GitHubException as error:
            answered = getattr(error, "response", None)
            if answered is not None:
                self._note_limit(answered.headers)
            raise translate(error, call) from None
        except ValueError:  # githubkit's own reading of a limit: a Retry-After that is a date, as a proxy may send
            raise RetryLater(f"refused for now when asked to {call.purpose}", after=UNNAMED_WAIT) from None
        self._note_limit(raw.headers)
        if raw.status_code >= 300:
            raise refusal(raw.status_code, raw.headers, raw.content, call)
        if raw.status_code != expect:
            told = f"GitHub answered {raw.status_code}, not {expect}, when asked to {call.purpose}"
            raise RetryLater(told, uncertain=call.writes)
        return Answer(_json(raw, call), _next_cursor(raw))

    def calls_left(self) -> int | None:
        """`x-ratelimit-remaining` of the newest answer; None before the first, after its window, and where GHES sets no limit."""
        return self._remaining if time.monotonic() < self._reset_at else None

    def _note_limit(self, headers: Mapping[str, str]) -> None:
        remaining, reset = headers.get("x-ratelimit-remaining", ""), until_reset(headers)
        if remaining.isdecimal() and reset is not None and headers.get("x-ratelimit-resource", "core") == "core":
            self._remaining = int(remaining)
            self._reset_at = time.monotonic() + reset.total_seconds()


def _strategy(credential: Token | App) -> TokenAuthStrategy | AppInstallationAuthStrategy:
    if isinstance(credential, Token):
        return TokenAuthStrategy(credential.value)
    return AppInstallationAuthStrategy(credential.app_id, credential.private_key, credential.installation_id)


def _json(raw: httpx.Response, call: Call) -> Any:
    if raw.status_code == 204 or not raw.content:
        return None
    try:
        return raw.json()
    except ValueError:
        raise RetryLater(f"GitHub's answer was not JSON when asked to {call.purpose}", uncertain=call.writes) from None


def _next_cursor(raw: httpx.Response) -> str | None:
    """Only the cursor is taken from the link, so that no answer can send our credential to another host."""
    link = raw.links.get("next", {}).get("url")
    return httpx.URL(link).params.get("cursor") if link else None
