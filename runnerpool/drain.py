"""`drain`, `pause` and `resume`: a mark in a pool's head, which the deployed app goes by from its next pass on.

Nothing here touches a VM. `drain` sets the mark and watches the rows until none is left; the mark stays, whatever becomes of
the command, until `resume` takes it away.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TextIO

from runnerpool.console import Deployment
from runnerpool.heartbeat import read_heartbeat
from runnerpool.ledger import Ledger
from runnerpool.model import Head, RunnerState
from runnerpool.retry import Clock
from runnerpool.status import STALE

S = RunnerState

BAR = 24
"""Characters."""
LOOK = timedelta(seconds=2)
LEAVING = frozenset({S.FINISHED, S.RETIRING, S.FAILED, S.DELETING})
COMING = frozenset({S.REQUESTED, S.CREATING, S.BOOTING})


class UnknownPool(Exception):
    """There is no such pool; the text names those that there are."""


async def chosen(deployment: Deployment, pool: str | None) -> list[str]:
    """The pool asked for, or all of them. Raises UnknownPool."""
    known = await deployment.pools()
    if pool is not None and pool not in known:
        raise UnknownPool(f"there is no pool {pool}; there are {', '.join(known)}")
    return [pool] if pool is not None else known


async def pause(deployment: Deployment, pools: Sequence[str], out: TextIO) -> int:
    await _mark(deployment.ledger, pools, lambda head: replace(head, paused=True))
    print(f"paused: {', '.join(pools)}. VMs that are there go on; no new one is made until python -m runnerpool resume", file=out)
    return 0


async def resume(deployment: Deployment, pools: Sequence[str], out: TextIO) -> int:
    """Takes away both marks."""
    await _mark(deployment.ledger, pools, lambda head: replace(head, paused=False, draining=False))
    print(f"resumed: {', '.join(pools)}. The app makes VMs again from its next pass on", file=out)
    return 0


async def _mark(ledger: Ledger, pools: Sequence[str], change: Callable[[Head], Head]) -> None:
    for pool in pools:
        await ledger.revise_head(pool, change)


# ---------------------------------------------------------------------------------------------- drain


@dataclass(frozen=True, slots=True)
class Left:
    """Runners by what they are about."""

    busy: int = 0
    leaving: int = 0
    idle: int = 0
    coming: int = 0
    unreadable: int = 0  # rows that somebody damaged: whoever counts must not take them for absent

    @property
    def total(self) -> int:
        return self.busy + self.leaving + self.idle + self.coming + self.unreadable

    def __str__(self) -> str:
        parts = {"busy": self.busy, "leaving": self.leaving, "idle": self.idle, "on their way": self.coming}
        parts["in rows that cannot be read"] = self.unreadable
        return ", ".join(f"{count} {name}" for name, count in parts.items() if count) or "nothing left"


@dataclass(slots=True, kw_only=True)
class Drain:
    """`sleep` lets the time between two looks pass."""

    deployment: Deployment
    pools: Sequence[str]
    clock: Clock
    out: TextIO = field(default_factory=lambda: sys.stdout)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _most: int = 0
    _told: str = ""

    async def run(self, timeout: timedelta) -> int:
        """Returns 0 when nothing is left, 1 when something is after `timeout`."""
        begun = self.clock()
        await _mark(self.deployment.ledger, self.pools, lambda head: replace(head, draining=True))
        print(
            f"draining {', '.join(self.pools)}: idle VMs go, busy ones finish their job, waiting jobs wait",
            file=self.out,
            flush=True,
        )
        warned = False
        while True:
            left = await self.left()
            self._show(left)
            if not left.total:
                self._end("drained: nothing is left. New jobs wait until python -m runnerpool resume")
                return 0
            if self.clock() - begun >= timeout:
                self._end(f"not drained in time: {left}. The app goes on with it: python -m runnerpool status")
                return 1
            if not warned and await self._app_is_silent(begun):
                warned = True
                told = f"no reconcile pass for {int(STALE.total_seconds() // 60)} minutes: does the app run? It does the work"
                self._end(told)
            await self.sleep(LOOK.total_seconds())

    async def left(self) -> Left:
        snapshots = await asyncio.gather(*map(self.deployment.ledger.read_pool, self.pools))
        states = [runner.state for snapshot in snapshots for runner in snapshot.runners.values()]
        damaged = sum(row.startswith("runner:") for snapshot in snapshots for row in snapshot.unreadable)
        busy, leaving, coming = states.count(S.BUSY), sum(s in LEAVING for s in states), sum(s in COMING for s in states)
        return Left(busy, leaving, len(states) - busy - leaving - coming, coming, damaged)

    async def _app_is_silent(self, begun: datetime) -> bool:
        beat = await read_heartbeat(self.deployment.ledger)
        return self.clock() - (beat.at if beat else begun) > STALE

    def _show(self, left: Left) -> None:
        """One line that is drawn anew on a terminal; elsewhere a line whenever something has changed."""
        self._most = max(self._most, left.total)
        gone = self._most - left.total
        done = BAR * gone // self._most if self._most else BAR
        line = f"[{'#' * done}{'.' * (BAR - done)}] {gone} of {self._most} VMs gone; {left}"
        if self.out.isatty():
            print(f"\r\x1b[K{line}", end="", file=self.out, flush=True)
        elif line != self._told:
            print(line, file=self.out, flush=True)
        self._told = line

    def _end(self, text: str) -> None:
        """Leaves the line that is being redrawn."""
        print(f"\n{text}" if self.out.isatty() else text, file=self.out, flush=True)
