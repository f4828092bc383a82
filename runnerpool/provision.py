"""The engine: read, decide, commit, act; and again until nothing is left to do. What a wake-up does, and reconcile with it.

Concurrent wake-ups for one pool in one process share a planning pass, as group commit does: one that arrives after a pass
has begun to read joins the next. Acting does not hold the next pass up.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from runnerpool.acting import Acting, Outside
from runnerpool.acts import act
from runnerpool.config import Config, PoolConfig, departed
from runnerpool.decide import Decision, Setting, decide
from runnerpool.errors import Conflict, RetryLater
from runnerpool.ledger import Ledger
from runnerpool.lifecycle import NOTHING_SEEN, Seen
from runnerpool.model import Job, Runner, Target
from runnerpool.retry import Clock

log = logging.getLogger(__name__)

ROUNDS = 5
"""Plan and act so many times in one invocation: an act that failed may ask for another one at once, but not for ever."""
CONTEST = 12
"""Times that a pass plans anew because somebody else planned first, before it leaves the pool to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What one pass wrote: its decision, and the rows that this worker is to act on."""

    decision: Decision
    runners: list[Runner]
    asks: list[Job]
    reruns: list[Job]


@dataclass(slots=True, kw_only=True)
class Engine:
    """Passes over any pool. `worker` names the process; each run, of which a process may have several at once, claims rows in
    a name of its own."""

    config: Config
    ledger: Ledger
    outside: Outside
    clock: Clock
    worker: str
    suffix: Callable[[], str]
    rng: random.Random = field(default_factory=random.Random)
    _runs: Iterator[int] = field(default_factory=itertools.count)

    def pool(self, name: str) -> PoolConfig:
        """The pool as the file has it. One that has left the file is drained: no labels match it, and its maximum is 0."""
        found = next((pool for pool in self.config.pools if pool.name == name), None)
        return found or departed(name)

    @property
    def home(self) -> Target | None:
        targets = self.config.github.targets
        return targets[0] if len(targets) == 1 else None

    async def run(
        self,
        name: str,
        *,
        deadline: datetime,
        seen: Seen = NOTHING_SEEN,
        planned: asyncio.Future[None] | None = None,
    ) -> set[str]:
        """Plans and acts until nothing is left to do or the deadline is near. Returns the pools whose runners its facts named.

        `planned`, where given, is resolved once the first plan is committed: whoever waits for the plan need not wait for the acts.
        """
        named: set[str] = set()
        worker = f"{self.worker}.{next(self._runs)}"
        for turn in range(ROUNDS):
            if turn and self.clock() >= deadline:
                return named  # a plan claims rows: one that nobody acts on would keep others from them
            committed = await self.plan_once(name, seen, worker)
            if planned is not None and not planned.done():
                planned.set_result(None)
            if committed is None:
                return named
            named |= set(committed.decision.forwards)
            acts = committed.runners or committed.asks or committed.reruns
            if not acts or self.clock() >= deadline:
                return named  # a plan on what the last plan wrote is empty: only what an act did can ask for another one
            await self._act(committed, name, worker, deadline, seen)
            seen = NOTHING_SEEN  # what was read before the acts says nothing about after them
        return named

    async def _act(self, committed: Committed, name: str, worker: str, deadline: datetime, seen: Seen) -> None:
        acting = Acting(
            ledger=self.ledger,
            outside=self.outside,
            clock=self.clock,
            deadline=deadline,
            worker=worker,
            pool=self.pool(name),
            head=committed.decision.head,
            lists={target: dict(found) for target, found in seen.registrations.items()},
        )
        await act(acting, committed.runners, committed.asks, committed.reruns)

    async def plan_once(self, name: str, seen: Seen, worker: str) -> Committed | None:
        """One plan, committed. None where others kept planning this pool: they saw the same rows."""
        setting = Setting(
            pool=self.pool(name),
            prefix=self.config.azure.name_prefix,
            home=self.home,
            worker=worker,
            suffix=self.suffix,
            targets=self.config.github.targets,
            place=self.outside.place,
        )
        for attempt in range(CONTEST):
            snapshot = await self.ledger.read_pool(name)
            decision = decide(self.clock(), setting, snapshot, seen)
            if not decision.changes:
                return Committed(decision=decision, runners=[], asks=[], reruns=[])
            try:
                runners, jobs = await self.ledger.commit(decision)
            except (Conflict, RetryLater) as error:
                if isinstance(error, RetryLater) and attempt == CONTEST - 1:
                    raise
                await asyncio.sleep(self.rng.uniform(0.02, 0.1) * 2 ** min(attempt, 6))
                continue
            for action in decision.actions:
                log.info("pool %s: %s", name, action)
            return Committed(
                decision=decision,
                runners=[runners[mine] for mine in decision.mine],
                asks=[jobs[job.job_id] for job in decision.asks],
                reruns=[jobs[job.job_id] for job in decision.reruns],
            )
        log.info("pool %s: others planned it %d times meanwhile; left to them", name, CONTEST)
        return None


@dataclass(slots=True)
class SharedPasses:
    """Wake-ups of one process that come while a pool is being planned share the pass that follows."""

    engine: Engine
    _planning: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    _waiting: dict[str, asyncio.Future[None]] = field(default_factory=dict)

    async def wake(self, name: str, *, deadline: datetime) -> set[str]:
        """Returns when a pass that began to read after this call has committed its plan; the one that led it acts, too."""
        if name in self._waiting:
            await asyncio.shield(self._waiting[name])
            return set()
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            await self._turn(name, mine)
            return await self.engine.run(name, deadline=deadline, planned=mine)
        except BaseException as error:
            if not mine.done():
                # Whoever shares the pass must come again, also where it was only this call that was cancelled.
                mine.set_exception(error if isinstance(error, Exception) else RetryLater("the shared pass was cut short"))
                mine.exception()  # nobody may share it
            raise
        finally:
            if self._planning.get(name) is mine:
                del self._planning[name]

    async def _turn(self, name: str, mine: asyncio.Future[None]) -> None:
        """Waits until the plan that is being made is committed. Wake-ups that come meanwhile share the pass of `mine`."""
        before = self._planning.get(name)
        if before is not None:
            self._waiting[name] = mine
            try:
                await asyncio.wait([before])
            finally:
                del self._waiting[name]
        self._planning[name] = mine
