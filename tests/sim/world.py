"""One world: a seed's scenario, its faults, the services, the host, and a day in two phases."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any, TypeVar

from runnerpool import app
from tests.memory_table import MemoryTable
from tests.sim import converged, onlookers, scenario, strangers
from tests.sim.azure import AzureState
from tests.sim.checks import Checks, Violation
from tests.sim.faults import FAMILIES, Faults
from tests.sim.github import GitHubState
from tests.sim.host import Host
from tests.sim.loop import EPOCH, VirtualLoop, run
from tests.sim.onlookers import watched_logs
from tests.sim.process import current_clock
from tests.sim.storage import between_pages, forget_rows, remember_rows

T = TypeVar("T")

DAY = 24 * 3600.0
STEP = 300.0
"""Seconds between two looks at whether the healed world has settled."""
PATIENCE = 4 * 3600.0
"""Within so many seconds after everything is healed the world must have settled, beside what the jobs of a whole day need on the
smallest pool."""
IN_TIME = timedelta(minutes=30)
"""A `queued` delivery is believed so long; after that its job waits only if GitHub says so."""
WATCHED = 600.0
"""For so long the settled world must stay as it is."""
LATENCIES = {"storage": (0.004, 0.03), "azure": (0.05, 0.6), "github": (0.05, 0.5), "agent": (0.005, 0.05), "mail": (0.01, 0.5)}


@dataclass(slots=True)
class Outcome:
    """What became of one seed."""

    seed: int
    jobs: int
    succeeded: frozenset[str]
    excused: frozenset[str]  # jobs that may end otherwise: people cancelled them, or what they ran on was taken away
    violations: list[Violation]
    remainder: int
    settled_after: float
    vm_hours: float
    vm_hours_allowed: float
    trace: list[str]
    happened: Counter[str]  # how often each fault was met
    notes: dict[str, float] = field(default_factory=dict)


class World:
    """Built from a seed; `run` lets its day pass. `families` are the faults that may happen, `jobs` what a day usually has."""

    def __init__(
        self,
        seed: int,
        *,
        families: Collection[str] = FAMILIES,
        day: float = DAY,
        jobs: int = scenario.JOBS,
        trace: int = 400,
        given: scenario.Scenario | None = None,
    ) -> None:
        self.seed = seed
        self.scenario = given or scenario.draw(str(seed), day=day, jobs=jobs)
        self.loop = VirtualLoop()
        busy = [plan.at for plan in self.scenario.jobs]
        self.faults = Faults(str(seed), families=families, day=day, busy=busy, clock=self.loop.time)
        self.life = Random(f"{seed} life")
        self.chance = Random(f"{seed} world's chance")
        self.faulty = bool(families)
        self.clock_skew = 120.0 if "functions" in families else 0.0
        self.trace: deque[str] = deque(maxlen=trace)
        self.table = MemoryTable(
            before=between_pages if self.scenario.page_rows < 1000 else _no_wait,
            page_rows=self.scenario.page_rows,
            clock=self.now,
        )
        self.history = MemoryTable()
        self.github = GitHubState(self)
        self.azure = AzureState(self)
        self.host = Host(self)
        self.checks = Checks(self)
        self.patience = PATIENCE + scenario.work(self.scenario)
        self._refills = 0  # VMs that the warm minimum may still need when the last job is over
        self._stopped: asyncio.Event = asyncio.Event()

    # ------------------------------------------------------------------------------------------ for the stand-ins

    def now(self) -> datetime:
        return self.loop.moment()

    def later(self, seconds: float, callback: Callable[..., object], *args: Any) -> None:
        self.loop.call_later(max(seconds, 0.0), callback, *args)

    def latency(self, service: str) -> float:
        low, high = LATENCIES[service]
        return self.life.uniform(low, high)

    def boot_time(self, pool: str) -> float:
        return self.scenario.boot[pool] * self.life.uniform(0.8, 1.3)

    def vm_hours(self) -> float:
        """Without the time in which an outage kept them, or kept jobs from them."""
        alive = [(vm.made, self.loop.time()) for vm in self.azure.vms.values() if vm.machine is not None]
        return sum(end - made - self.faults.tied(made, end) for made, end in [*self.azure.lives, *alive]) / 3600

    def note(self, text: str) -> None:
        at = timedelta(seconds=round(self.loop.time(), 2))
        self.trace.append(f"{at} {text}")

    def stop(self) -> None:
        self._stopped.set()

    # ------------------------------------------------------------------------------------------ the day

    def run(self) -> Outcome:
        remember_rows()
        try:
            with watched_logs(self.checks):
                settled_after = self._play(self._day())
        finally:
            forget_rows()
        return Outcome(
            seed=self.seed,
            jobs=len(self.github.jobs),
            succeeded=frozenset(i for i, job in self.github.jobs.items() if job.conclusion == "success"),
            excused=frozenset(i for i, job in self.github.jobs.items() if job.excused),
            violations=self.checks.violations,
            remainder=self.checks.remainder,
            settled_after=settled_after,
            vm_hours=self.vm_hours(),
            vm_hours_allowed=converged.allowed_hours(self),
            trace=list(self.trace),
            happened=self.faults.happened,
        )

    def run_day(self) -> None:
        """The day alone: nothing heals, nobody waits until it settles."""
        self._play(self._until_evening())

    def _play(self, main: Coroutine[Any, Any, T]) -> T:
        random.seed(self.seed)  # tenacity draws its jitter from the module's generator
        self.loop.set_exception_handler(self._unheard)
        clock, app.clock = app.clock, current_clock
        try:
            return run(self.loop, main)
        finally:
            app.clock = clock

    async def _day(self) -> float:
        strangers.arrive(self)
        onlookers.come(self)
        await self._until_evening()
        self._heal()
        return await self._settle()

    async def _until_evening(self) -> None:
        self.host.start()
        for plan in self.scenario.jobs:
            self.later(plan.at, self.github.start, plan)
        for start, _ in self.faults.windows.get("deploy", []):
            self.later(start, self.host.deploy)
        await self._pass(self.scenario.day)

    def _heal(self) -> None:
        self.note("everything heals")
        self.faults.healed = True
        for job in list(self.github.jobs.values()):
            if job.status == "waiting":
                self.github.complete(job, "cancelled")  # nobody will approve it any more

    async def _settle(self) -> float:
        """Seconds until the world was as it should be. Then it is watched for a while."""
        healed = self.loop.time()
        while not self._stopped.is_set() and any(i == 10 for i, _ in converged.unsettled(self)):
            if self.loop.time() - healed > self.patience:
                break
            await self._pass(STEP)
        for_jobs, for_warmth, known = self.checks.for_jobs.copy(), self.checks.for_warmth, self._known_to_wait()
        self._replay()
        while unsettled := converged.unsettled(self):
            if self._stopped.is_set():
                return -1.0
            if self.loop.time() - healed > self.patience:
                for invariant, text in unsettled[:5]:
                    self.checks.broken(invariant, text)
                return -1.0
            await self._pass(STEP)
        after = self.loop.time() - healed
        if again := (self.checks.for_jobs - for_jobs).keys() - known:
            self.checks.broken(14, f"VMs were asked for by replayed deliveries of the jobs {sorted(again)}")
        if self.checks.for_warmth > for_warmth + self._refills:
            self.checks.broken(14, f"{self.checks.for_warmth - for_warmth} VMs were asked for to keep at most {self._refills} warm")
        while self._warm_changes():
            await self._pass(STEP)
        self.checks.watching = []
        await self._pass(WATCHED)
        if self.checks.watching:
            self.checks.broken(13, f"an unchanged world is written to: {sorted(set(self.checks.watching))[:10]}")
        for invariant, text in converged.unsettled(self):
            self.checks.broken(invariant, text)
        for invariant, text in converged.reckoning(self):
            self.checks.broken(invariant, text)
        return after

    def _known_to_wait(self) -> set[str]:
        """The jobs that the ledger still thinks are not over: when nobody could deliver their ends, VMs may be made for them."""
        ours = [entity for entity in self.table.everything() if entity.row.startswith(("job:", "fact:"))]
        over = {entity.row for entity in ours if "completed_at" in entity.columns}
        return {job_id for entity in ours if f"job:{(job_id := entity.row.split(':')[1])}" not in over}

    def _replay(self) -> None:
        """Somebody sends old deliveries again. They are signed, and they are no demand."""
        queued = [sent for sent in self.host.sent.values() if b'"action": "queued"' in sent.body]
        for sent in self.chance.sample(queued, min(len(queued), 20)):
            if sent.ok or self.now() - sent.at > IN_TIME + timedelta(seconds=self.clock_skew):
                self.host.attempt(sent)  # any other one comes in time, and for the first time: its job may be waiting
        warm = sum(pool.maximum_pool_size for pool in self.scenario.config.pools if pool.warm_schedule)
        self._refills = warm + sum(pool.minimum_warm_vms for pool in self.scenario.config.pools)

    def _warm_changes(self) -> bool:
        """Whether a window of some pool's schedule begins or ends while the world would be watched, or ended just now."""
        moments = [self.now() + timedelta(minutes=m) for m in (-45, -30, -20, -10, 0, 11)]
        return any(len({scenario.warm_wanted(pool, moment) for moment in moments}) > 1 for pool in self.scenario.config.pools)

    async def _pass(self, seconds: float) -> None:
        """Time passes, unless an invariant breaks."""
        if self._stopped.is_set():
            return
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return

    def _unheard(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback's error, or a task's that nobody asked after."""
        error = context.get("exception")
        if type(error).__name__ != "Killed":
            self.checks.broken(0, f"{context.get('message')}: {error!r}")


async def _no_wait(_request: object) -> None: ...


def play(seed: int, **options: Any) -> Outcome:
    return World(seed, **options).run()


__all__ = ["EPOCH", "Outcome", "World", "play"]
