"""Between two ticks: the agents of VMs that waiting jobs need are polled every few seconds while they boot.

A VM that was born without a JIT config is bound when its agent is first seen waiting. Left to the timer that would cost a job
up to 30 s. Nothing is followed where no job waits, so an idle deployment pays nothing for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from runnerpool.config import PoolConfig
from runnerpool.demand import waits_for
from runnerpool.gather import Gathering
from runnerpool.ledger import Ledger
from runnerpool.model import RunnerState, Snapshot
from runnerpool.ports import AgentTrouble
from runnerpool.provision import Engine
from runnerpool.retry import Clock

log = logging.getLogger(__name__)

PAUSE = timedelta(seconds=5)
"""Between two looks. A VM takes half a minute or more to boot; one look is one list of NICs and one call per booting agent."""
SPAN = timedelta(seconds=25)
"""How long after the tick's beginning: the next tick comes after 30 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """Looks again at the pools whose waiting jobs wait for a boot."""

    engine: Engine
    ledger: Ledger
    clock: Clock

    async def run(self, gathering: Gathering, pools: Collection[str], begun: datetime) -> None:
        """`gathering` is that of the tick: its adapters serve, its witnesses do not."""
        end = min(begun + SPAN, gathering.deadline)
        # What comes up after the tick's own reading has a wake-up of its own.
        read = gathering.gathered.pools
        watched = {pool for pool in pools if pool in read and has_demand(self.engine.pool(pool), read[pool])}
        while watched and self.clock() + PAUSE < end:
            await asyncio.sleep(PAUSE.total_seconds())
            watched = await self._look(gathering, watched)

    async def _look(self, gathering: Gathering, pools: Collection[str]) -> set[str]:
        """One look; returns the pools that are worth another."""
        snapshots = {pool: await self.ledger.read_pool(pool) for pool in sorted(pools)}
        awaited = {pool: snapshot for pool, snapshot in snapshots.items() if awaits_boot(self.engine.pool(pool), snapshot)}
        if not awaited:
            return set()
        look = Gathering(outside=gathering.outside, network=gathering.network, clock=self.clock, deadline=gathering.deadline)
        look.gathered.pools = awaited
        await look.addresses()
        await look.agents(only=RunnerState.BOOTING)
        said = {name for name, word in look.gathered.agents.items() if word is not AgentTrouble.SILENT}
        for pool, snapshot in awaited.items():
            if not said & snapshot.runners.keys():
                continue  # nobody has come up yet, and whatever else happens has a wake-up of its own
            try:
                await self.engine.run(pool, deadline=gathering.deadline, seen=look.gathered.seen())
            except Exception:
                log.exception("pool %s: a look at its booting VMs failed, the next tick goes on", pool)
        return set(awaited)


def has_demand(pool: PoolConfig, snapshot: Snapshot) -> bool:
    """Whether a job waits, or a fact may be about one that does."""
    return bool(snapshot.facts) or any(waits_for(pool, job) for job in snapshot.jobs.values())


def awaits_boot(pool: PoolConfig, snapshot: Snapshot) -> bool:
    """Whether a job waits and a VM that no registration binds yet is booting."""
    runners = snapshot.runners.values()
    booting = any(r.state is RunnerState.BOOTING and r.minted_at is None and not r.elsewhere for r in runners)
    return booting and any(waits_for(pool, job) for job in snapshot.jobs.values())
