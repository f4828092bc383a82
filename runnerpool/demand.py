"""Who waits, who serves, and which jobs have nobody to serve them, per target. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from runnerpool.config import PoolConfig, has_departed
from runnerpool.labels import lacking
from runnerpool.lifecycle import World, serves
from runnerpool.model import Job, Runner, RunnerState, Target

S = RunnerState

IGNORED = timedelta(seconds=120)
"""A runner online and idle for this long while a matching job waits does not serve that job: GitHub assigns within seconds."""
FREE_TRIES = 3
"""VMs made for one job without more ado; after that one more every `SPACING`."""
SPACING = timedelta(minutes=10)
WITHDRAWN = timedelta(hours=1)
"""A registration is removed and its VM deleted within minutes, twenty where its agent is silent. Whatever takes longer is stuck."""
LEAVING = frozenset({S.FINISHED, S.RETIRING, S.FAILED, S.DELETING})
"""On their way out. They count against the maximum until Azure has accepted their deletion, and make room without our doing."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Waiting jobs and serving runners. A READY runner keeps the target that it once had. An `ignored` runner serves none of
    the jobs that wait, and is as good as any for the next one."""

    waiting: dict[Target, list[Job]]
    bound: dict[Target, list[Runner]]
    ignored: dict[Target, list[Runner]]
    unbound: list[Runner]
    counting: int  # runners that the maximum counts
    leaving: int  # those of them that are on their way out
    short: list[Job] = field(default_factory=list)  # waiting jobs beyond what serves their target, oldest first
    refused: Collection[Target] = ()  # where nobody is to be registered now: their jobs wait, and are short of nothing
    second: list[tuple[Job, Runner | None]] = field(default_factory=list)
    """Second attempts at jobs lost to an eviction, each with the regular VM that is kept for it, None while it has none. Neither
    of the two is counted anywhere above but in `counting`."""

    @property
    def uncovered(self) -> list[Job]:
        """The jobs for which a VM is lacking. VMs that belong to no target yet are for the jobs that they were made for, the others
        for the oldest: a job that is asked for again and again while its own VM boots would use up its tries."""
        own = {runner.job_id for runner in self.unbound}
        return sorted(self.short, key=lambda job: job.job_id not in own)[len(self.unbound) :]

    @property
    def serving(self) -> int:
        return len(self.unbound) + sum(map(len, self.bound.values())) + sum(map(len, self.ignored.values()))

    @property
    def spare(self) -> int:
        """Runners that no waiting job needs: what the warm minimum is held against."""
        free = max(len(self.unbound) - len(self.short), 0)
        return free + sum(map(self.surplus, self.bound)) + sum(map(len, self.ignored.values()))

    @property
    def settled(self) -> Demand:
        """The same with only those runners that are there by any clock. One that is on its way or silent serves by one clock and is
        late or mute by another, and by its own a moment later: what goes on its account is asked for again at once."""

        def there(runners: Mapping[Target, Sequence[Runner]]) -> dict[Target, list[Runner]]:
            return {target: list(filter(is_there, mine)) for target, mine in runners.items()}

        return replace(self, bound=there(self.bound), ignored=there(self.ignored), unbound=list(filter(is_there, self.unbound)))

    def surplus(self, target: Target) -> int:
        return max(len(self.bound.get(target, [])) - len(self.waiting.get(target, [])), 0)


def is_there(runner: Runner) -> bool:
    """Whether it idles and answers: no clock makes that late."""
    online = runner.state is S.REGISTERED and runner.online_at is not None
    return (online or runner.state is S.READY) and runner.silent_since is None


def waits_for(pool: PoolConfig, job: Job) -> bool:
    """Whether this pool owes the job a runner. GitHub gives its runners no job with labels that it has lost since the job came: VMs
    would be made for it in vain until it has moved, or for ever where no pool has them. A pool that has left the file makes none,
    and its idle VMs still have the labels that they had."""
    return job.completed_at is None and job.wants_runner and (has_departed(pool) or not lacking(job.labels, pool))


def demand(now: datetime, world: World, pool: PoolConfig, refused: Collection[Target] = ()) -> Demand:
    """Counts waiting jobs and serving runners, and picks the jobs for which something is still to be done: none of those of
    `refused` targets, so that no VM is kept for them from the others."""
    waiting: dict[Target, list[Job]] = defaultdict(list)
    wanting = [job for job in world.jobs.values() if waits_for(pool, job)]
    for job in sorted(wanting, key=lambda job: (job.created_at, job.job_id)):
        if job.rerun_of is None:
            waiting[job.target].append(job)
    second = _second_attempts(now, world, [job for job in wanting if job.rerun_of])
    kept = {runner.name for _, runner in second if runner is not None}
    bound: dict[Target, list[Runner]] = defaultdict(list)
    ignored: dict[Target, list[Runner]] = defaultdict(list)
    unbound: list[Runner] = []
    for runner in world.runners.values():
        if runner.name in kept or not serves(now, runner, world.usual):
            continue
        if runner.target is None:
            unbound.append(runner)
        elif ignored_by_github(now, runner, waiting):
            ignored[runner.target].append(runner)
        else:
            bound[runner.target].append(runner)
    existing = [runner for runner in world.runners.values() if runner.exists or _may_come(now, runner)]
    leaving = sum(runner.state in LEAVING and not _stuck(now, runner) for runner in existing)
    short = [job for target in waiting if target not in refused for job in _short_of(now, waiting[target], bound.get(target, []))]
    short.sort(key=lambda job: (job.created_at, job.job_id))
    second = [(job, runner) for job, runner in second if job.target not in refused]
    return Demand(dict(waiting), dict(bound), dict(ignored), unbound, len(existing), leaving, short, refused, second)


def _second_attempts(now: datetime, world: World, waiting: Sequence[Job]) -> list[tuple[Job, Runner | None]]:
    """Each waiting second attempt with the regular VM that was made for it, where that still serves."""
    jobs = sorted(waiting, key=lambda job: job.created_at)
    mine = {runner.job_id: runner for runner in world.runners.values() if runner.regular and serves(now, runner, world.usual)}
    pairs = [(job, mine.get(job.job_id)) for job in jobs]
    return [(job, None if runner and ignored_by_github(now, runner, {job.target: [job]}) else runner) for job, runner in pairs]


def _stuck(now: datetime, runner: Runner) -> bool:
    """Whether it should have gone long ago: nobody may count on the room that it will make."""
    return bool(runner.elsewhere) or now - runner.since > WITHDRAWN


def _may_come(now: datetime, runner: Runner) -> bool:
    """Whether a PUT that nobody saw answered may still bring its VM, even after Azure accepted its deletion."""
    return runner.put_until is not None and now < runner.put_until


def ignored_by_github(now: datetime, runner: Runner, waiting: Mapping[Target, Sequence[Job]]) -> bool:
    """Online and idle beside a job of its target for 120 s: its runner group may not admit the job's repository."""
    if runner.state is not S.REGISTERED or runner.online_at is None or runner.target is None:
        return False
    oldest = next(iter(waiting.get(runner.target, [])), None)
    return oldest is not None and now - max(runner.online_at, oldest.received_at) >= IGNORED


def _short_of(now: datetime, waiting: Sequence[Job], bound: Sequence[Runner]) -> list[Job]:
    """Which of one target's waiting jobs need something: as many as serving runners are missing, those for which no
    runner was made yet first. A job that had its tries for now needs nothing but the runner that was made for it."""
    tired = {job.job_id for job in waiting if not may_make(now, job)}
    missing = len(waiting) - len(tired) - sum(runner.job_id not in tired for runner in bound)
    covered = {runner.job_id for runner in bound}
    queue = sorted((job for job in waiting if job.job_id not in tired), key=lambda job: job.job_id in covered)
    return queue[: max(missing, 0)]


def may_make(now: datetime, job: Job) -> bool:
    """Three VMs for one job at once, then one more every ten minutes."""
    return job.vms_made < FREE_TRIES or job.last_vm_at is None or now - job.last_vm_at >= SPACING
