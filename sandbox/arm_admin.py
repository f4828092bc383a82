"""The sandbox's own endpoints beside ARM's: faults in, state out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from sandbox.arm import ArmSandbox


def add_admin_routes(app: web.Application, arm: ArmSandbox) -> None:
    async def add_fault(request: web.Request) -> web.Response:
        try:
            fault = arm.faults.add(await request.json())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"id": fault.id})

    async def list_faults(request: web.Request) -> web.Response:
        return web.json_response(arm.faults.as_json())

    async def clear_faults(request: web.Request) -> web.Response:
        arm.faults.clear()
        return web.Response(status=204)

    async def change_settings(request: web.Request) -> web.Response:
        wish: dict[str, Any] = await request.json()
        try:
            arm.surroundings = arm.surroundings.changed(wish.pop("surroundings", {}))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        for owner, names in ((arm, ("latency", "page_size", "quotas")), (arm.lifecycle, ("boot_delay", "delete_delay"))):
            for name in names:
                setattr(owner, name, wish.pop(name, getattr(owner, name)))
        if wish:
            return web.json_response({"error": f"no such settings: {', '.join(sorted(wish))}"}, status=400)
        return web.Response(status=204)

    async def evict(request: web.Request) -> web.Response:
        wish: dict[str, Any] = await request.json()
        vm = arm.estate.vms.get(str(wish.get("name", "")).lower())
        if vm is None:
            return web.json_response({"error": "no such VM"}, status=404)
        await arm.lifecycle.evict(vm, float(wish.get("notice", 0.0)))
        return web.Response(status=204)

    async def show_state(request: web.Request) -> web.Response:
        return web.json_response(arm.estate.as_json())

    async def show_calls(request: web.Request) -> web.Response:
        return web.json_response(dict(arm.calls))

    async def show_actions(request: web.Request) -> web.Response:
        return web.json_response([asked._asdict() for asked in sorted(arm.actions)])

    app.router.add_post("/_admin/faults", add_fault)
    app.router.add_get("/_admin/faults", list_faults)
    app.router.add_delete("/_admin/faults", clear_faults)
    app.router.add_post("/_admin/settings", change_settings)
    app.router.add_post("/_admin/evict", evict)
    app.router.add_get("/_admin/state", show_state)
    app.router.add_get("/_admin/calls", show_calls)
    app.router.add_get("/_admin/actions", show_actions)
