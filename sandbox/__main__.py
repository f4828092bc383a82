"""`make sandbox`: Azurite, an Azure and a GitHub of our own in the foreground, and a local.settings.json that points at them."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from sandbox.host import SOURCE
from sandbox.stack import Stack, write_local_settings

PORT = 7071  # where Core Tools serve an app
LOCAL_SETTINGS = SOURCE / "local.settings.json"
POOL_FILE = Path(__file__).parent / "pool-config.yaml"

GUIDE = """\
The sandbox runs: Azurite, Azure at {arm}, GitHub at {github}.
local.settings.json points the app at it. In other terminals, in this folder:

  start the app      func start
                     (without Core Tools: .venv/bin/python -m sandbox.host)
  queue three jobs   curl -s {github}/_admin/jobs -d {job}
  look at the app    curl -s -H 'Authorization: Bearer {token}' http://127.0.0.1:{port}/runner/status
  look at GitHub     curl -s {github}/_admin/state
  look at Azure      curl -s {arm}/_admin/state
  look it all over   .venv/bin/python -m runnerpool doctor

Ctrl-C ends the sandbox with all its VMs, and forgets everything."""


async def run() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="runnerpool-") as folder:
        async with Stack(folder=Path(folder), pool_file=POOL_FILE, boot_seconds=3.0) as stack:
            write_local_settings(LOCAL_SETTINGS, stack)
            stack.deliver_to(f"http://127.0.0.1:{PORT}")
            labels = list(stack.config.pools[0].labels)
            job = json.dumps({"repository": stack.repositories[0], "labels": labels, "count": 3, "seconds": 5})
            print(
                GUIDE.format(arm=stack.arm_url, github=stack.github_url, job=shlex.quote(job), token=stack.status_token, port=PORT),
                flush=True,
            )
            await stop.wait()


def main() -> None:
    try:
        asyncio.run(run())
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"sandbox: {error}")


if __name__ == "__main__":
    main()
