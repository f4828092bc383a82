"""`make demo`: the app's main job from end to end on this machine, watched, and then judged by the sandbox's own records.

Jobs are queued at the sandbox's GitHub, which sends signed deliveries to the real app in a Functions host, which makes VMs at
the sandbox's Azure, on which the real agent starts runners that take the jobs. Exit code 0 only if all of that came out right.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import aiohttp
import yaml
from rich.console import Console

from sandbox.core_tools import app_host
from sandbox.demo_faults import LOST_AFTER, RATE, with_faults
from sandbox.demo_story import Story
from sandbox.host import SOURCE
from sandbox.live_table import LiveTable, make_console, summary
from sandbox.stack import Stack, write_local_settings

POOL_FILE = Path(__file__).parent / "pool-config.yaml"
BOOT_SECONDS = 3.0
FEWEST_JOBS = 20


def scaled_pool_file(folder: Path, jobs: int, *, faults: bool = False) -> Path:
    """The demo's pool file, in `folder`, with maxima that suit this many jobs."""
    document = yaml.safe_load(POOL_FILE.read_text())
    if faults:
        document = with_faults(document)
    for pool in document["pools"]:
        pool["maximum_pool_size"] = max(pool["maximum_pool_size"], math.ceil(jobs / 5))
    file = folder / "pool-config.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file


async def run(options: argparse.Namespace) -> int:
    """Returns the exit code. Everything that it starts is stopped when it returns, or is cancelled."""
    folder: Path = options.folder
    console = make_console()
    console.print(f"the app's log: {folder / 'host.log'}", markup=False, soft_wrap=True)
    with (folder / "host.log").open("w") as log:
        async with (
            Stack(
                folder=folder,
                pool_file=scaled_pool_file(folder, options.jobs, faults=options.faults),
                boot_seconds=BOOT_SECONDS,
                lost_after=LOST_AFTER if options.faults else 600.0,
            ) as stack,
            app_host("sandbox" if options.faults else options.host, settings=stack.environment, log=log) as app_url,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http,
        ):
            stack.deliver_to(app_url)
            faults = []
            with LiveTable(console) as table:
                story = Story(stack=stack, app_url=app_url, http=http, table=table, jobs=options.jobs, faults=options.faults)
                try:
                    await story.play()
                except TimeoutError:
                    faults.append("the world did not settle in time; the app's log may say why")
            if options.keep:
                file = folder / "local.settings.json"
                write_local_settings(file, stack)
                print(f"left running until Ctrl-C: {addresses(stack, app_url)}")
                print(f"the command line on it: python -m runnerpool doctor --settings {file} (status, explain, drain likewise)")
            faults += await judge(story, console)
            if options.keep:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
    return 1 if faults else 0


async def judge(story: Story, console: Console) -> list[str]:
    """Prints the summary and the last line, by the sandbox's records; returns what is wrong."""
    records = await story.records()
    tallies = [records.tally(pool.name, story.order) for pool in story.pools]
    console.print(summary(tallies))
    console.print(
        f"{len(records.deliveries)} deliveries, {records.replays} of them sent again out of order; {story.seconds:.0f} s in all"
    )
    faults = records.faults(story.order, story.pools)
    for sentence, right in await story.mishaps.shown() if story.mishaps else ():
        console.print(f"fault: {sentence}", markup=False, soft_wrap=True)
        faults += [] if right else [f"not shown, or not come through: {sentence}"]
    for fault in faults:
        console.print(f"WRONG: {fault}", markup=False, soft_wrap=True)
    completed, cancelled = sum(tally.completed for tally in tallies), sum(tally.cancelled for tally in tallies)
    left, wanted = sum(tally.left for tally in tallies), sum(pool.minimum_warm_vms for pool in story.pools)
    print(f"demo: {completed} jobs completed, {cancelled} cancelled, {left} VMs left ({wanted} warm wanted)", flush=True)
    return faults


def addresses(stack: Stack, app_url: str) -> str:
    return (
        f"app {app_url}/runner/status (header Authorization: Bearer {stack.status_token}), "
        f"GitHub {stack.github_url}/_admin/state, Azure {stack.arm_url}/_admin/state"
    )


async def _until_told_to_stop(options: argparse.Namespace) -> int:
    """The first Ctrl-C or SIGTERM ends the run, which stops what it started on its way out; further ones change nothing."""
    loop = asyncio.get_running_loop()
    demo = asyncio.create_task(run(options))

    def stop() -> None:
        if not demo.cancelling():
            demo.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await demo
    except asyncio.CancelledError:
        print("demo: interrupted; everything that it started is stopped", file=sys.stderr)
        return 130


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.demo", description="Runs the app's main job from end to end.")
    parser.add_argument("--jobs", type=int, default=24, help=f"how many jobs to queue, at least {FEWEST_JOBS}")
    parser.add_argument("--keep", action="store_true", help="leave everything running afterwards, until Ctrl-C")
    parser.add_argument(
        "--host", choices=("auto", "func", "sandbox"), default="auto", help="what runs the app (auto: func if installed)"
    )
    parser.add_argument("--folder", type=Path, default=SOURCE / ".demo", help="logs, pool file and VMs' disks; emptied first")
    parser.add_argument(
        "--faults", action="store_true", help="let things go wrong meanwhile, on a fast clock and the sandbox's host"
    )
    options = parser.parse_args()
    if options.faults:
        os.environ["SANDBOX_CLOCK"] = f"{time.time()}:{RATE}"  # for the sandbox in this process, and the app's, which inherit it
    if options.jobs < FEWEST_JOBS:
        parser.error(f"the story takes at least {FEWEST_JOBS} jobs")
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    try:
        sys.exit(asyncio.run(_until_told_to_stop(options)))
    except (OSError, RuntimeError) as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
