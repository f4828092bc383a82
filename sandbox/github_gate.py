"""What every call to the sandbox's GitHub API passes through: credentials, rate limits, faults; then its handler."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import jwt
from aiohttp import web

from sandbox import github_shapes as shapes
from sandbox.clock import now
from sandbox.github_faults import Calls, Fault, Faults

Handler = Callable[[web.Request], Awaitable[web.Response]]

SECONDARY_LIMIT = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
LIMITS_PAGE = "https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api"


class Refusal(Exception):
    """An error answer of the API."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class AppIdentity:
    """A GitHub App with one installation; `public_key` (PEM) checks the JWTs that it signs."""

    app_id: int
    installation_id: int
    public_key: str
    permissions: dict[str, str] = field(
        default_factory=lambda: {
            "actions": "read",
            "administration": "write",
            "metadata": "read",
            "organization_self_hosted_runners": "write",
        }
    )
    events: tuple[str, ...] = ("workflow_job",)


@dataclass(slots=True)
class Credentials:
    """Who may call: the tokens given, and the installation tokens handed out to the App."""

    tokens: frozenset[str]
    app: AppIdentity | None = None
    _installation_tokens: dict[str, datetime] = field(default_factory=dict)

    def accepts(self, authorization: str, *, as_app: bool) -> bool:
        """`as_app`: an endpoint that only the App itself may call, with a JWT."""
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "basic":
            value = base64.b64decode(value).decode(errors="replace").partition(":")[2]
        if as_app:
            return self._is_app(value)
        until = self._installation_tokens.get(value)
        return value in self.tokens or (until is not None and now() < until)

    def installation_token(self) -> tuple[str, datetime]:
        token, until = "ghs_" + secrets.token_hex(18), now() + timedelta(hours=1)
        self._installation_tokens[token] = until
        return token, until

    def _is_app(self, value: str) -> bool:
        if self.app is None:
            return False
        try:
            claims = jwt.decode(
                value, self.app.public_key, algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
            )
        except jwt.PyJWTError:
            return False
        return str(claims.get("iss")) == str(self.app.app_id)


async def not_found(_: web.Request) -> web.Response:
    raise Refusal(404, "Not Found")


class Gate:
    """Adds API routes to an application and stands before each of them."""

    def __init__(self, *, credentials: Credentials, calls: Calls, faults: Faults, prefix: str) -> None:
        self._credentials = credentials
        self._calls = calls
        self._faults = faults
        self._prefix = prefix

    def add(self, app: web.Application, method: str, endpoint: str, handler: Handler) -> None:
        async def passed(request: web.Request) -> web.Response:
            self._calls.note(request.method, endpoint)
            response = self._barred(request, as_app=endpoint == "/app" or endpoint.startswith("/app/"))
            if response is None:
                response = await self._faulty(request, handler)
            response.headers.update({"Date": shapes.http_date(), "X-GitHub-Request-Id": secrets.token_hex(8).upper()})
            for name, value in self._calls.headers().items():
                response.headers.setdefault(name, value)
            return response

        app.router.add_route(method, self._prefix + endpoint, passed)

    def _barred(self, request: web.Request, *, as_app: bool) -> web.Response | None:
        if not self._credentials.accepts(request.headers.get("Authorization", ""), as_app=as_app):
            return refuse(401, "Bad credentials")
        if self._calls.exhausted:
            return self._primary()
        if self._calls.too_fast:
            return self._secondary(60)
        return None

    async def _faulty(self, request: web.Request, handler: Handler) -> web.Response:
        fault = self._take(request, "answer", "hang", "secondary_limit", "primary_limit")
        if fault is None:
            return await self._right(request, handler)
        if fault.kind == "secondary_limit":
            return self._secondary(fault.retry_after)
        if fault.kind == "primary_limit":
            return self._primary()
        if fault.kind == "hang":
            response = await self._right(request, handler) if fault.applied else None
            await asyncio.sleep(fault.seconds)
            return response or await self._right(request, handler)
        if fault.applied:
            await self._right(request, handler)
        return refuse(fault.status, fault.message)

    def _take(self, request: web.Request, *kinds: str) -> Fault | None:
        return self._faults.take(*kinds, method=request.method, path=request.path_qs)

    async def _right(self, request: web.Request, handler: Handler) -> web.Response:
        try:
            return await handler(request)
        except Refusal as refusal:
            return refuse(refusal.status, refusal.message)

    def _primary(self) -> web.Response:
        response = refuse(403, "API rate limit exceeded for user ID 1.", LIMITS_PAGE)
        response.headers.update(self._calls.headers(nothing_left=True))
        return response

    def _secondary(self, retry_after: int | None) -> web.Response:
        response = refuse(403, SECONDARY_LIMIT, LIMITS_PAGE)
        if retry_after is not None:
            response.headers["Retry-After"] = str(retry_after)
        return response


def refuse(status: int, message: str, documentation: str = "https://docs.github.com/rest") -> web.Response:
    return answer(shapes.error(status, message, documentation), status=status)


def answer(body: Any, *, status: int = 200, link: str = "") -> web.Response:
    response = web.json_response(body, status=status) if status != 204 else web.Response(status=204)
    response.headers["X-GitHub-Media-Type"] = "github.v3; format=json"
    if link:
        response.headers["Link"] = link
    return response


def page_of(request: web.Request, items: list[Any], base: str) -> tuple[list[Any], str]:
    """The page that `page` and `per_page` (30, at most 100) ask for, and its Link header. `base` is this GitHub's own URL."""
    size = _number(request, "per_page", 30, 100)
    page = _number(request, "page", 1, 1_000_000)
    last = max(1, -(-len(items) // size))
    links = {"next": page + 1, "last": last} if page < last else {}
    if page > 1:
        links |= {"prev": page - 1, "first": 1}
    return items[(page - 1) * size : page * size], link_header(request, base, {rel: {"page": str(n)} for rel, n in links.items()})


def link_header(request: web.Request, base: str, links: dict[str, dict[str, str]]) -> str:
    url = request.rel_url
    return ", ".join(f'<{base}{url.update_query(query)}>; rel="{rel}"' for rel, query in links.items())


def _number(request: web.Request, name: str, default: int, highest: int) -> int:
    text = request.query.get(name, "")
    return min(max(int(text), 1), highest) if text.isdecimal() else default
