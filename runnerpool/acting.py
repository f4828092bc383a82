"""What every act shares: the ports, the claim, the pause after trouble, the budgets, the lists read in this pass.

An act begins with a claimed row, writes what it is about to do before it does it, and revises the row under its ETag
afterwards. Whoever takes the row over after a crash finds in it everything that may have happened.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

from runnerpool.budget import GOOD_FOR
from runnerpool.capacity import POOL, TARGET_REST, TROUBLE_REST, resting_targets, target_key
from runnerpool.config import PoolConfig
from runnerpool.decide import rest_pool
from runnerpool.errors import Misconfigured, PoolError, RetryLater
from runnerpool.ledger import Ledger
from runnerpool.model import Head, Rest, Runner, RunnerState, Target
from runnerpool.ports import Agents, Compute, GitHub, JitConfig, Registration, RunnerPackage
from runnerpool.retry import Clock, attempt, delay_after

log = logging.getLogger(__name__)
S = RunnerState
T = TypeVar("T")

CHUNK = 16
"""Tokens taken from a shared bucket at a time, where as many acts wait for one: one read and one write of its row serve them."""

UserData = Callable[[PoolConfig, str, RunnerPackage | None, JitConfig | None], str]
"""Renders a VM's user-data from its pool, its name, the runner to download (None: the image's own) and its JIT config at birth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Everything beyond the ledger that an act may touch, and the deployment's constants that go with it.

    `group` is the runner group's name, `anchor` the target through which questions about the whole deployment are asked,
    `others` those that are asked where it refuses, `tags` what every VM of ours carries, `place` the subscription and group that
    `compute` asks (`AzureConfig.place`).
    """

    compute: Compute
    github: GitHub
    agents: Agents
    user_data: UserData
    group: str
    anchor: Target
    tags: dict[str, str]
    others: Sequence[Target] = ()
    place: str = ""
    packages: dict[tuple[str, str], tuple[datetime, RunnerPackage]] = field(default_factory=dict)
    """The runner releases that GitHub offered, by system and architecture, and when it was asked."""


@dataclass(slots=True, kw_only=True)
class Acting:
    """The acts of one pass on one pool, by one worker, until `deadline`."""

    ledger: Ledger
    outside: Outside
    clock: Clock
    deadline: datetime
    worker: str
    pool: PoolConfig
    head: Head
    lists: dict[Target, dict[str, Registration]] = field(default_factory=dict)
    """Whole runner lists, read during this pass with this pass's credential, by runner name."""
    no_packages: dict[tuple[str, str], PoolError] = field(default_factory=dict)
    """What GitHub answered in this pass instead of a runner release, by system and architecture."""
    purse: dict[str, list[datetime]] = field(default_factory=dict)
    """Tokens of the shared buckets that nobody has taken yet, each as the moment at which it was asked for."""
    doubtful: set[str] = field(default_factory=set)
    """Runners of which a PUT of this pass got no answer: it may still arrive, whatever a later one was answered."""
    _wanted: Counter[str] = field(default_factory=Counter)
    _locks: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def call(self, call: Callable[[], Awaitable[T]], *, within: timedelta = timedelta.max) -> T:
        """A call of a port that may be repeated, under the rule of `retry.py`, and begins for the last time `within` so long."""
        now = self.clock()
        return await attempt(call, clock=self.clock, deadline=now + min(within, self.deadline - now))

    async def write_github(self, call: Callable[[], Awaitable[T]]) -> T:
        """A write to GitHub that may be repeated."""
        return await self.paid("github-writes", call)

    async def ask_github(self, call: Callable[[], Awaitable[T]]) -> T:
        """A read that no write is waiting for, out of a budget of its own: however many passes a minute have how many questions."""
        return await self.paid("github-reads", call)

    async def paid(
        self, scope: str, call: Callable[[], Awaitable[T]], *, within: timedelta = timedelta.max, prepaid: datetime | None = None
    ) -> T:
        """As `call`; each attempt takes a token: the services count those that fail, too. `prepaid` is the first one's."""
        bought = prepaid

        async def once() -> T:
            nonlocal bought
            await self.spend(scope, bought)
            bought = None
            return await call()

        return await self.call(once, within=within)

    async def revise(self, runner: Runner, change: Callable[[Runner], Runner]) -> Runner | None:
        """Applies `change` while the row is claimed by this worker. None: it no longer is, and the act must end."""

        def mine(row: Runner) -> Runner | None:
            return change(row) if row.claimed_by == self.worker else None

        return await self.ledger.revise_runner(runner, mine)

    async def fail(self, runner: Runner, reason: str, *, refused: bool = False) -> None:
        """Gives the runner up. `refused`: Azure said no for certain; at the first attempt then no PUT can still arrive."""
        now = self.clock()

        def failed(row: Runner) -> Runner | None:
            if row.state not in (S.CREATING, S.BINDING):
                return None
            sure = refused and row.attempts <= 1 and runner.name not in self.doubtful
            return row.move(S.FAILED, now, reason[:500], put_until=None if sure else row.put_until)

        log.warning("runner %s: %s", runner.name, reason)
        await self.ledger.revise_runner(runner, failed)

    async def put_off(self, runner: Runner, reason: str, after: timedelta | None) -> None:
        """Lets go of the row until a later time; its reason says why."""
        log.warning("runner %s: %s", runner.name, reason)
        now = self.clock()

        def later(row: Runner) -> Runner:
            pause = now + delay_after(row.attempts + 1, after)
            changed = replace(row, claimed_by=None, claimed_until=None, not_before=pause)
            return replace(changed, attempts=row.attempts + 1, reason=reason[:500])

        await self.revise(runner, later)

    async def rest(self, key: str, rest: Rest) -> None:
        """Puts an offer, or all of the pool, to rest in the pool's head."""
        now = self.clock()
        known = self.head.rests.get(key)
        if known is None or known.until < rest.until - timedelta(minutes=1):  # one act of many writes it
            self.head = await self.ledger.revise_head(self.pool.name, lambda head: rest_pool(head, key, rest, now))

    async def rest_whole_pool(self, reason: str) -> None:
        await self.rest(POOL, Rest(self.clock() + TROUBLE_REST, reason[:300]))

    async def rest_refused(self, target: Target, error: Misconfigured) -> None:
        """After GitHub refused a registration: a repository's own trouble rests that repository, any other the whole pool."""
        if not target.startswith("repo:") or error.everywhere:
            await self.rest_whole_pool(str(error))
        elif target not in resting_targets(self.head.rests, self.clock()):  # where it rests, another act has just been refused
            await self.rest(target_key(target), Rest(self.clock() + TARGET_REST, str(error)[:300]))

    async def token(self, scope: str) -> datetime:
        """Waits for one token of a bucket that all processes share, and says when it was asked for: whoever does something else
        before he spends it shows it to `spend`. RetryLater when none comes before the deadline."""
        self._wanted[scope] += 1
        try:
            async with self._locks[scope]:
                while (token := await self._take(scope)) is None:
                    if self.clock() + timedelta(seconds=2) >= self.deadline:
                        raise RetryLater(f"the shared budget {scope} is used up for now", after=timedelta(seconds=10))
                    await asyncio.sleep(1.0)
                return token
        finally:
            self._wanted[scope] -= 1

    async def spend(self, scope: str, token: datetime | None) -> None:
        """Pays for a call that leaves now: with this token, or with another one where it is none or was held for too long."""
        if token is None or not self._good(token):
            await self.token(scope)

    async def _take(self, scope: str) -> datetime | None:
        """A good token, of those that were taken for all acts of this pass, or else out of the shared bucket; None: it is empty."""
        purse = list(filter(self._good, self.purse.get(scope, ())))
        if not purse:
            now = self.clock()
            taken = await self.ledger.take(scope, min(CHUNK, self._wanted[scope]), now)
            purse = list(filter(self._good, [now] * taken))
        token = purse.pop() if purse else None
        self.purse[scope] = purse
        return token

    def _good(self, token: datetime) -> bool:
        return self.clock() - token <= GOOD_FOR

    def alone(self, question: str) -> asyncio.Lock:
        """Held by the one act of this pass that asks: what it hears is for all of them."""
        return self._locks[question]

    async def runner_list(self, target: Target) -> dict[str, Registration]:
        """The scope's whole runner list, read once a pass: what confirms a 404."""
        async with self._locks[target]:
            if target not in self.lists:
                found = await self.call(lambda: self.outside.github.list_runners(target))
                self.lists[target] = {registration.name: registration for registration in found}
            return self.lists[target]
