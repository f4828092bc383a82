"""The sandbox's GitHub REST API for webhooks: where they hang, how their deliveries went, redelivery."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from sandbox import github_shapes as shapes
from sandbox.github_deliveries import Deliveries, Delivery, Hook
from sandbox.github_gate import Gate, Refusal, answer, link_header


class HooksApi:
    def __init__(self, *, deliveries: Deliveries, place: shapes.Place, root: str) -> None:
        self._deliveries = deliveries
        self._place = place
        self._root = root

    def add_routes(self, app: web.Application, gate: Gate) -> None:
        for scope in ("/orgs/{org}", "/repos/{owner}/{repo}"):
            gate.add(app, "GET", f"{scope}/hooks", self.list_hooks)
            gate.add(app, "POST", scope + r"/hooks/{hook_id:\d+}/pings", self.ping)
            self._add_deliveries(app, gate, scope + r"/hooks/{hook_id:\d+}")
        gate.add(app, "GET", "/app/hook/config", self.app_config)
        self._add_deliveries(app, gate, "/app/hook")

    def _add_deliveries(self, app: web.Application, gate: Gate, hook: str) -> None:
        gate.add(app, "GET", f"{hook}/deliveries", self.list_deliveries)
        gate.add(app, "GET", hook + r"/deliveries/{delivery_id:\d+}", self.get_delivery)
        gate.add(app, "POST", hook + r"/deliveries/{delivery_id:\d+}/attempts", self.redeliver)

    async def list_hooks(self, request: web.Request) -> web.Response:
        if "org" in request.match_info and request.match_info["org"].lower() != self._place.owner.lower():
            raise Refusal(404, "Not Found")
        scope = _scope(request)
        return answer([self._described(hook) for hook in self._deliveries.hooks if hook.path.startswith(f"{scope}/hooks/")])

    async def app_config(self, request: web.Request) -> web.Response:
        url = self._deliveries.url if any(hook.path == "/app/hook" for hook in self._deliveries.hooks) else ""
        return answer({"content_type": "json", "insecure_ssl": "0", "secret": "********", "url": url})

    async def ping(self, request: web.Request) -> web.Response:
        hook = self._hook(request)
        self._deliveries.ping(hook, shapes.ping(self._place, self._described(hook)))
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
        return answer({**delivery.told(self._deliveries.installation), "url": self._deliveries.url, **exchange})

    async def redeliver(self, request: web.Request) -> web.Response:
        self._deliveries.redeliver(self._delivery(request))
        return answer({}, status=202)

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

    def _described(self, hook: Hook) -> dict[str, Any]:
        kind = "Organization" if hook.repository is None else "Repository"
        return shapes.hook(self._place.api + hook.path, hook.id, self._deliveries.url, kind)


def _key(delivery: Delivery) -> str:
    """Sorts as the list does."""
    return f"v1_{delivery.delivered_at.timestamp():017.6f}_{delivery.id:020d}"


def _scope(request: web.Request) -> str:
    match = request.match_info
    return f"/orgs/{match['org']}" if "org" in match else f"/repos/{match['owner']}/{match['repo']}"
