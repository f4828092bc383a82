"""The sandbox's GitHub REST API for webhooks: where they hang, making and changing them, their deliveries, redelivery."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from sandbox import github_shapes as shapes
from sandbox.github_deliveries import Deliveries, Delivery, Hook
from sandbox.github_gate import Gate, Refusal, answer, link_header
from sandbox.github_world import World


def app_hook(url: str, secret: str) -> Hook:
    return Hook(id=1, path="/app/hook", target=(1, "integration"), url=url, secret=secret)


def organization_hook(owner: str, number: int, url: str, secret: str) -> Hook:
    target = (shapes.identifier(owner), "organization")
    return Hook(id=number, path=f"/orgs/{owner}/hooks/{number}", target=target, url=url, secret=secret)


def repository_hook(name: str, number: int, url: str, secret: str) -> Hook:
    target = (shapes.identifier(name), "repository")
    return Hook(id=number, path=f"/repos/{name}/hooks/{number}", target=target, repository=name, url=url, secret=secret)


def hook_config(it: Hook) -> dict[str, Any]:
    """GitHub shows no secret; that there is one it does show."""
    shown = {"content_type": it.content_type, "insecure_ssl": it.insecure_ssl, "url": it.url}
    return shown | ({"secret": "********"} if it.secret else {})


def described(place: shapes.Place, it: Hook) -> dict[str, Any]:
    """The hook of an organisation or a repository."""
    kind = "Organization" if it.repository is None else "Repository"
    path = place.api + it.path
    shown = {
        "type": kind,
        "id": it.id,
        "name": "web",
        "active": it.active,
        "events": list(it.events),
        "config": hook_config(it),
        "updated_at": "2026-01-02T03:04:05Z",
        "created_at": "2026-01-02T03:04:05Z",
        "url": path,
        "ping_url": f"{path}/pings",
        "deliveries_url": f"{path}/deliveries",
    }
    if kind == "Repository":
        shown |= {"test_url": f"{path}/test", "last_response": {"code": None, "status": "unused", "message": None}}
    return shown


class HooksApi:
    def __init__(self, *, deliveries: Deliveries, place: shapes.Place, root: str, world: World) -> None:
        self._deliveries = deliveries
        self._place = place
        self._root = root
        self._world = world

    def add_routes(self, app: web.Application, gate: Gate) -> None:
        for scope in ("/orgs/{org}", "/repos/{owner}/{repo}"):
            gate.add(app, "GET", f"{scope}/hooks", self.list_hooks)
            gate.add(app, "POST", f"{scope}/hooks", self.create)
            gate.add(app, "PATCH", scope + r"/hooks/{hook_id:\d+}", self.change)
            gate.add(app, "POST", scope + r"/hooks/{hook_id:\d+}/pings", self.ping)
            self._add_deliveries(app, gate, scope + r"/hooks/{hook_id:\d+}")
        gate.add(app, "GET", "/app/hook/config", self.app_config)
        gate.add(app, "PATCH", "/app/hook/config", self.change_app_config)
        self._add_deliveries(app, gate, "/app/hook")

    def _add_deliveries(self, app: web.Application, gate: Gate, hook: str) -> None:
        gate.add(app, "GET", f"{hook}/deliveries", self.list_deliveries)
        gate.add(app, "GET", hook + r"/deliveries/{delivery_id:\d+}", self.get_delivery)
        gate.add(app, "POST", hook + r"/deliveries/{delivery_id:\d+}/attempts", self.redeliver)

    async def list_hooks(self, request: web.Request) -> web.Response:
        return answer([described(self._place, hook) for hook in self._at(request)])

    async def create(self, request: web.Request) -> web.Response:
        there, body = self._at(request), await _body(request)
        if "url" not in body.get("config", {}):
            raise Refusal(422, "Validation Failed")
        number = 501 + len(self._deliveries.hooks)
        match = request.match_info
        if "org" in match:
            hook = organization_hook(self._place.owner, number, "", "")
        else:
            hook = repository_hook(f"{match['owner']}/{match['repo']}", number, "", "")
        _change(hook, body, events=("push",))
        if any(other.url == hook.url for other in there):
            raise Refusal(422, "Validation Failed: Hook already exists")
        self._deliveries.hooks.append(hook)
        self._deliveries.ping(hook, shapes.ping(self._place, described(self._place, hook)))
        return answer(described(self._place, hook), status=201)

    async def change(self, request: web.Request) -> web.Response:
        hook = self._hook(request)
        _change(hook, await _body(request), events=hook.events)
        return answer(described(self._place, hook))

    async def app_config(self, request: web.Request) -> web.Response:
        found = [hook for hook in self._deliveries.hooks if hook.path == "/app/hook"]
        return answer(hook_config(found[0] if found else app_hook("", "")))

    async def change_app_config(self, request: web.Request) -> web.Response:
        """Unlike a hook's own `config`, this one keeps what is not named."""
        if not any(hook.path == "/app/hook" for hook in self._deliveries.hooks):
            self._deliveries.hooks.append(app_hook("", ""))
        hook = self._hook(request)
        for key in ("url", "secret", "content_type", "insecure_ssl"):
            setattr(hook, key, (await _body(request)).get(key, getattr(hook, key)))
        return answer(hook_config(hook))

    async def ping(self, request: web.Request) -> web.Response:
        hook = self._hook(request)
        self._deliveries.ping(hook, shapes.ping(self._place, described(self._place, hook)))
        return answer(None, status=204)

    async def list_deliveries(self, request: web.Request) -> web.Response:
        """Newest first; `cursor` is the position after the last one given."""
        hook = self._hook(request)
        wanted = {"success": (True,), "failure": (False,)}.get(request.query.get("status", ""), (True, False))
        listed = [
            delivery
            for delivery in sorted(self._deliveries.sent, key=lambda delivery: (delivery.delivered_at, delivery.id), reverse=True)
            if delivery.hook is hook and delivery.status_code and (200 <= delivery.status_code < 300) in wanted
        ]
        per_page, cursor = request.query.get("per_page", "30"), request.query.get("cursor", "")
        if not per_page.isdecimal() or (cursor and not cursor.startswith("v1_")):
            raise Refusal(400, "Bad Request")
        if cursor:
            listed = [delivery for delivery in listed if _key(delivery) < cursor]
        size = min(max(int(per_page), 1), 100)
        link = ""
        if len(listed) > size:
            link = link_header(request, self._root, {"next": {"cursor": _key(listed[size - 1])}})
        return answer([delivery.told(self._deliveries.installation) for delivery in listed[:size]], link=link)

    async def get_delivery(self, request: web.Request) -> web.Response:
        delivery = self._delivery(request)
        exchange = {"request": {"headers": {}, "payload": {}}, "response": {"headers": {}, "payload": None}}
        return answer({**delivery.told(self._deliveries.installation), "url": delivery.hook.url, **exchange})

    async def redeliver(self, request: web.Request) -> web.Response:
        self._deliveries.redeliver(self._delivery(request))
        return answer({}, status=202)

    def _at(self, request: web.Request) -> list[Hook]:
        """The hooks of this call's organisation or repository; what is not ours to see is 404."""
        match = request.match_info
        if "org" in match:
            known = self._place.owner_kind == "Organization" and match["org"].lower() == self._place.owner.lower()
        else:
            known = f"{match['owner']}/{match['repo']}" in self._world.repositories
        if not known:
            raise Refusal(404, "Not Found")
        return [hook for hook in self._deliveries.hooks if hook.path.startswith(f"{_scope(request)}/hooks/")]

    def _hook(self, request: web.Request) -> Hook:
        hook_id = request.match_info.get("hook_id")
        path = f"{_scope(request)}/hooks/{hook_id}" if hook_id else "/app/hook"
        for hook in self._deliveries.hooks:
            if hook.path == path:
                return hook
        raise Refusal(404, "Not Found")

    def _delivery(self, request: web.Request) -> Delivery:
        hook, delivery_id = self._hook(request), int(request.match_info["delivery_id"])
        for delivery in self._deliveries.sent:
            if delivery.id == delivery_id and delivery.hook is hook:
                return delivery
        raise Refusal(404, "Not Found")


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        raise Refusal(400, "Problems parsing JSON") from None
    if not isinstance(body, dict):
        raise Refusal(422, "Validation Failed")
    return body


def _change(hook: Hook, body: dict[str, Any], *, events: tuple[str, ...]) -> None:
    """What a request says; `config` replaces the whole of it, as GitHub has it: a secret that is left out is gone."""
    if "config" in body:
        config = body["config"]
        hook.url, hook.secret = str(config.get("url", hook.url)), str(config.get("secret", ""))
        hook.content_type = str(config.get("content_type", "form"))
        hook.insecure_ssl = str(config.get("insecure_ssl", "0"))
    hook.events = tuple(body.get("events", events))
    hook.active = bool(body.get("active", hook.active))


def _key(delivery: Delivery) -> str:
    """Sorts as the list does."""
    return f"v1_{delivery.delivered_at.timestamp():017.6f}_{delivery.id:020d}"


def _scope(request: web.Request) -> str:
    match = request.match_info
    return f"/orgs/{match['org']}" if "org" in match else f"/repos/{match['owner']}/{match['repo']}"
