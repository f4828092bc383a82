"""One process of the Functions host: it runs one group of an app's functions until it is told to stop or its parent ends.

python -m sandbox.host_worker --root FOLDER --group NAME [--socket FILE_DESCRIPTOR]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from sandbox import clock
from sandbox.host_app import HTTP_GROUP, Function, HostSettings, read_functions, read_host_json
from sandbox.host_invoke import Storage, http_request, http_response, invoke
from sandbox.host_queue import QueueListener
from sandbox.host_timer import run_timer

log = logging.getLogger("host")

LARGEST_BODY = 100 * 1024 * 1024
"""What Functions accepts in one HTTP request, in bytes."""

DRAIN_SECONDS = 2.0
"""What HTTP requests in flight get when the process is told to stop."""

CLOCKS = ("runnerpool.front", "runnerpool.app")
"""The app's modules whose `clock` is the sandbox's when SANDBOX_CLOCK is set."""


class Worker:
    """Runs functions of one app. `environment` holds the app settings."""

    def __init__(self, *, settings: HostSettings, storage: Storage, environment: Mapping[str, str]) -> None:
        self._settings = settings
        self._storage = storage
        self.rate = clock.rate(environment)

    async def call(self, function: Function, argument: object) -> Any:
        """One invocation; see `invoke` for what it raises."""
        timeout = self._settings.function_timeout / self.rate
        return await invoke(function, argument, storage=self._storage, settings=self._settings, timeout=timeout)

    async def serve(self, functions: list[Function], listening: socket.socket) -> None:
        """Serves HTTP functions on a listening socket until cancelled."""
        app = web.Application(client_max_size=LARGEST_BODY)
        for function in functions:
            route = "/".join(part for part in (self._settings.route_prefix, function.trigger["route"]) if part)
            for method in function.trigger.get("methods") or ["*"]:
                app.router.add_route(method, f"/{route}", self._handler(function))
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            await web.SockSite(runner, listening, shutdown_timeout=DRAIN_SECONDS).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    def _handler(self, function: Function) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            argument = http_request(
                method=request.method,
                url=str(request.url),
                headers=request.headers,
                query=request.query,
                route=request.match_info,
                body=await request.read(),
            )
            try:
                status, headers, body = http_response(await self.call(function, argument))
            except Exception:
                log.exception("%s failed", function.name)
                return web.Response(status=500)
            return web.Response(status=status, headers=headers, body=body)

        return handle

    async def consume(self, function: Function) -> None:
        """Runs a queue function until cancelled."""
        connection, name = function.trigger["connection"], function.trigger["queueName"]
        listener = QueueListener(
            queue=await self._storage.queue(connection, name),
            poison=await self._storage.queue(connection, f"{name}-poison"),
            settings=self._settings.queues,
            call=lambda message: self.call(function, message),
            rate=self.rate,
        )
        await listener.run()

    async def tick(self, function: Function) -> None:
        """Runs a timer function until cancelled."""
        schedule = function.trigger["schedule"]
        await run_timer(schedule=schedule, call=lambda timer: self.call(function, timer), now=clock.now, rate=self.rate)


async def run(*, root: Path, group: str, listening: socket.socket | None, environment: Mapping[str, str]) -> None:
    """Runs one group of the app in `root` until SIGTERM. Raises IndexingError when the app cannot be read."""
    settings = read_host_json(root)
    functions = [function for function in read_functions(root) if function.group == group]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Storage(environment) as storage:
        worker = Worker(settings=settings, storage=storage, environment=environment)
        if group == HTTP_GROUP:
            assert listening is not None
            work = asyncio.create_task(worker.serve(functions, listening))
        elif functions[0].trigger["type"] == "queueTrigger":
            work = asyncio.create_task(worker.consume(functions[0]))
        else:
            work = asyncio.create_task(worker.tick(functions[0]))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if stop.is_set():
            work.cancel()
        await asyncio.gather(work, return_exceptions=stop.is_set())
        if close := getattr(sys.modules.get("runnerpool.app"), "close", None):
            await close()


def _die_with_the_parent() -> None:
    """The parent holds the other end of our standard input: however it ends, that ends too. A thread, lest a busy loop delay it."""

    def watch() -> None:
        while os.read(0, 1):  # nobody writes: it returns when the pipe closes
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _set_clocks() -> None:
    """With SANDBOX_CLOCK the app tells the time by it, and its pauses shrink by its rate. Time-outs of calls stay real: what
    answers them is no faster than otherwise."""
    if "SANDBOX_CLOCK" not in os.environ:
        return
    for name in CLOCKS:
        vars(importlib.import_module(name))["clock"] = clock.now
    # Azurite runs on this machine, so its clock is ours; by the real one the app's budgets would refill too slowly.
    vars(importlib.import_module("runnerpool.tables"))["answered_at"] = lambda _date: clock.now()
    rate, real_sleep = clock.rate(os.environ), asyncio.sleep
    vars(asyncio)["sleep"] = lambda delay, result=None: real_sleep(delay / rate, result)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--socket", type=int)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {options.group} %(levelname)s %(name)s: %(message)s")
    logging.getLogger("azure").setLevel(logging.WARNING)  # this host polls with the SDK, which would log every request
    _die_with_the_parent()
    os.chdir(options.root)
    sys.path.insert(0, str(options.root))
    _set_clocks()
    listening = socket.socket(fileno=options.socket) if options.socket is not None else None
    asyncio.run(run(root=options.root, group=options.group, listening=listening, environment=os.environ))


if __name__ == "__main__":
    main()
