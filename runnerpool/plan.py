"""What a pool should do next: `plan(now, pool, world, …) -> list[Action]`. Pure: no clock, no I/O, no logging.

Each rule of scaling is a function of its own. Every action carries the reason that people will read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta

from runnerpool.actions import Action, Bind, Create, Delete, Forget, Park, Rerun, Retire
from runnerpool.capacity import next_rung, resting_targets
from runnerpool.config import PoolConfig, warm_minimum
from runnerpool.deletion import basis
from runnerpool.demand import LEAVING, Demand, demand, is_there, may_make
from runnerpool.eviction import why_rerun
from runnerpool.lifecycle import NOTHING_SEEN, STUCK, Seen, World
from runnerpool.model import SKEW, Basis, Head, Job, JobState, Runner, RunnerState, Target
from runnerpool.ports import AgentStatus, AgentTrouble

S = RunnerState

INTERVAL = timedelta(seconds=30)
"""The reconcile interval: fewer waiting jobs than the threshold get their VMs once one of them has waited this long."""
OLD = timedelta(days=20)
"""GitHub gives no jobs to a runner whose version is 30 days behind; a VM's runner is as old as the VM, or older where its
image has it."""
RENEWED = 0.1
"""Of the warm minimum, how many idle VMs are replaced at once: the others are there for the jobs that come meanwhile."""
ASKS = 10
"""Jobs that one pass may ask GitHub about: 10 every 30 s is 1,200 calls an hour of at least 5,000."""
EXIT_GRACE = timedelta(minutes=1)
"""How long after its runner program ended a busy row waits for GitHub's word before GitHub is asked."""
ASKED_AGAIN = timedelta(minutes=5)
"""GitHub is asked about one job no more often than this, and ever more rarely about one that it leaves as it is."""

ABANDONED = timedelta(minutes=15) + SKEW
"""How long Azure must not have had a VM before its row goes without GitHub's word, where nobody can ask GitHub any more."""


# ---------------------------------------------------------------------------------------------- the plan


def plan(
    now: datetime,
    pool: PoolConfig,
    head: Head,
    world: World,
    *,
    seen: Seen = NOTHING_SEEN,
    home: Target | None = None,
    targets: Collection[Target] | None = None,
) -> list[Action]:
    """Everything that this pool should do now, in the order in which it is to be committed.

    `home` is the only target that the pool file allows, None where there are several: registering ahead of need wants one.
    `targets` are all that it allows, None where that is not known.
    """
    need = demand(now, world, pool, resting_targets(head.rests, now))
    binds = list(bindings(now, pool, need, home))
    taken = {bind.runner for bind in binds}
    second = [] if head.paused else _second_attempts(now, pool, head, need)
    leaving = surplus(now, pool, need, taken, len(second))
    return [
        *parks(now, pool, world),
        *reruns(now, pool, world),
        *withdrawals(now, world, seen, targets),
        *forgets(now, world, targets),
        *binds,
        *leaving,
        *renewals(now, pool, head, need, taken | _names(leaving)),
        *creates(now, pool, head, need, second),
    ]


def withdrawals(now: datetime, world: World, seen: Seen, targets: Collection[Target] | None = None) -> Iterable[Action]:
    """What finished, failed or ended is deleted where rule 1 allows it, and retired where it does not yet."""
    for runner in world.runners.values():
        overdue = runner.state is S.BUSY and _over_without_word(now, runner, world, seen)
        if runner.state not in (S.FINISHED, S.FAILED, S.RETIRING) and not overdue:
            continue
        if _nothing_left(now, runner, targets):
            continue  # forgets() drops the row
        allowed = basis(now, runner, seen.agents.get(runner.name), seen.at, unfinished=_unfinished(runner, world))
        if allowed is not None:
            yield Delete(runner.name, allowed, runner.reason if runner.state is S.FAILED else f"{allowed}: {runner.reason}")
        elif runner.state is not S.RETIRING and runner.deregistered_at is None:
            reason = "its runner has ended and GitHub has not said how" if overdue else runner.reason
            yield Retire(runner.name, reason)


def _unfinished(runner: Runner, world: World) -> bool:
    """Whether GitHub has named a job that runs there and has not said since that it is over, or that it knows no such job."""
    job = world.jobs.get(runner.busy_job or "")  # a job of another pool's is not here: that pool asks, and forwards its end
    return runner.busy_job is not None and (job is None or job.missing_since is None)


def _over_without_word(now: datetime, runner: Runner, world: World, seen: Seen) -> bool:
    """Busy, but for long now neither GitHub nor the agent has shown a job. An agent that was not asked shows nothing either way."""
    word = seen.agents.get(runner.name)
    if not (word is AgentTrouble.SILENT or (isinstance(word, AgentStatus) and not word.worker)):
        return False
    if runner.exited_at is not None:
        return now - runner.exited_at > 5 * EXIT_GRACE
    quiet = not _unfinished(runner, world) or runner.deregistered_at is not None
    return quiet and now - runner.since > STUCK


def parks(now: datetime, pool: PoolConfig, world: World) -> list[Park]:
    """The jobs that GitHub should be asked about now, those not asked for longest first."""
    taken = {runner.job_id for runner in world.runners.values() if runner.state is S.BUSY and runner.busy_job is None}
    going_on = (job for job in world.jobs.values() if job.completed_at is None)  # most rows are of jobs that are over
    due = [(job, reason) for job in going_on if (reason := _why_ask(now, pool, job, world, taken))]
    due.sort(key=lambda pair: (pair[0].checked_at or pair[0].created_at, pair[0].job_id))
    return [Park(job.job_id, reason) for job, reason in due[:ASKS]]


def reruns(now: datetime, pool: PoolConfig, world: World) -> list[Rerun]:
    due = ((job, why_rerun(now, pool, job, world.jobs)) for job in world.jobs.values() if job.evicted is not None)
    return [Rerun(job.job_id, reason) for job, reason in due if reason][:ASKS]


def _why_ask(now: datetime, pool: PoolConfig, job: Job, world: World, taken: Collection[str | None]) -> str:
    """Why GitHub should be asked about this job now, "" when it should not. `taken` are the jobs whose own runners are busy
    with nobody knows what."""
    state = job.state
    unserved = not job.demand and state is not JobState.IN_PROGRESS  # a foreign job counts once a runner of ours has it
    if state is JobState.COMPLETED or unserved:
        return ""
    quiet = now - (job.checked_at or job.received_at)
    age = now - job.received_at
    if state is JobState.WAITING:
        return "it waits for an approval" if quiet >= ASKED_AGAIN and quiet >= age / 10 else ""
    if state is JobState.QUEUED:
        if not job.trusted:
            return "its delivery came late" if job.checked_at is None or quiet >= ASKED_AGAIN else ""
        if job.job_id in taken and quiet >= EXIT_GRACE:
            return "the runner that was made for it is busy, and GitHub has not said with what"
        return "it has been queued for long" if quiet >= 2 * ASKED_AGAIN and quiet >= age / 10 else ""
    runner = world.runners.get(job.runner_name or "")
    ended = runner is not None and runner.exited_at is not None and now - runner.exited_at >= EXIT_GRACE
    silent = runner is not None and runner.silent_since is not None and now - runner.silent_since >= STUCK / 2
    lost = runner is None or runner.state in (S.FAILED, S.RETIRING, S.DELETING)
    if ended or silent or lost:
        first = job.checked_at is None and (ended or age >= 5 * EXIT_GRACE)
        return "its runner has ended" if first or quiet >= ASKED_AGAIN else ""
    overdue = job.started_at is not None and now - job.started_at > pool.job_timeout
    return "it runs beyond the pool's job_timeout" if overdue and quiet >= 2 * ASKED_AGAIN else ""


def bindings(now: datetime, pool: PoolConfig, need: Demand, home: Target | None) -> Iterable[Bind]:
    """Which ready VMs are registered now: for waiting jobs; with `keep_registered`, ahead of need where there is one target."""
    for job, runner in need.second:
        if runner is not None and _ready(now, [runner]):
            yield Bind(runner.name, job.target, f"job {job.job_id} is the second attempt at one that was lost to an eviction")
    lacking: list[Job] = []
    for target, jobs in need.waiting.items():
        if target in need.refused:
            continue
        mine = need.bound.get(target, [])
        missing = max(len(jobs) - sum(runner.state is not S.READY for runner in mine), 0)
        lost = _ready(now, mine)[:missing]
        for runner in lost:
            yield Bind(runner.name, target, f"{len(jobs)} jobs wait for {target}, and GitHub dropped its registration")
        lacking += jobs[len(jobs) - missing + len(lost) :]  # the older ones take the runners that are there
    lacking.sort(key=lambda job: (job.created_at, job.job_id))
    free = _ready(now, need.unbound)
    for runner, job in zip(free, lacking, strict=False):
        yield Bind(runner.name, job.target, f"job {job.job_id} waits for {job.target}")
    if pool.keep_registered:
        yield from _ahead_of_need(now, need, free[len(lacking) :], home)


def _ready(now: datetime, runners: Iterable[Runner]) -> list[Runner]:
    """Those that can be bound now, the longest idle first."""
    ready = [r for r in runners if r.state is S.READY and (r.not_before is None or now >= r.not_before)]
    return sorted(ready, key=_idle_since)


def _ahead_of_need(now: datetime, need: Demand, free: Sequence[Runner], home: Target | None) -> Iterable[Bind]:
    for target, runners in need.bound.items():
        if target not in need.waiting and target not in need.refused:
            for runner in _ready(now, runners):
                yield Bind(runner.name, target, "keep_registered: GitHub dropped its registration")
    if home is not None and home not in need.refused:
        for runner in free:
            yield Bind(runner.name, home, "keep_registered")


def creates(now: datetime, pool: PoolConfig, head: Head, need: Demand, second: Sequence[Create]) -> list[Create]:
    """New VMs: wanted serving = min(waiting + warm minimum, maximum − everything else that counts), `second` attempts first."""
    room = pool.maximum_pool_size - need.counting
    if head.paused or room <= 0:
        return []
    rung = next_rung(pool.vm, head.rests, now)
    if rung is None:
        return list(second)[:room]
    warm = warm_minimum(pool, now)
    jobs = need.uncovered if _triggers(now, pool, need.uncovered) else []
    wanted = [Create(rung, job.target, job.job_id, f"job {job.job_id} waits for a runner") for job in jobs]
    wanted += [Create(rung, None, None, f"the warm minimum is {warm}")] * max(warm - need.spare, 0)
    return [*second, *wanted][:room]


def _second_attempts(now: datetime, pool: PoolConfig, head: Head, need: Demand) -> list[Create]:
    """A regular VM for each job that was lost with a spot VM; idle spot VMs are not counted on for it."""
    rung = next_rung(pool.vm, head.rests, now, regular=True)
    if rung is None:
        return []
    jobs = [job for job, runner in need.second if runner is None and may_make(now, job)]
    return [Create(rung, job.target, job.job_id, f"job {job.job_id} was lost to an eviction", regular=True) for job in jobs]


def _triggers(now: datetime, pool: PoolConfig, uncovered: Sequence[Job]) -> bool:
    """Enough jobs wait, or one of them has waited a reconcile interval."""
    if len(uncovered) >= pool.scale_up_trigger_threshold:
        return True
    return any(now - job.received_at >= INTERVAL for job in uncovered)


def surplus(now: datetime, pool: PoolConfig, need: Demand, taken: Collection[str] = (), stranded: int = 0) -> list[Action]:
    """VMs that nobody needs: intents that nobody is at, and idle VMs beyond the maximum, in the way of another target at the
    maximum or of the regular VMs that so many `stranded` second attempts are to get now, or idle beyond `idle_timeout`. Not those
    in `taken`: they are being bound."""
    kept = _kept_warm(now, pool)
    beyond = need.serving - sum(map(len, need.waiting.values())) - kept
    there = need.settled.spare - kept
    over = need.counting - need.leaving - pool.maximum_pool_size
    full = need.counting >= pool.maximum_pool_size
    blocked = need.uncovered[max(need.leaving - stranded, 0) :] if full else []  # what is leaving makes room for the others
    stranded = max(stranded - need.leaving, 0) if full else 0
    actions: list[Action] = []
    for runner in _spare(need, taken):
        idle = now - _idle_since(runner)
        if runner.state is S.REQUESTED and (over > 0 or (beyond > 0 and not _in_hand(now, runner))):
            actions.append(Forget(runner.name, "no job waits for it any more"))
            over -= 1
        elif runner.state is S.REQUESTED:
            continue
        elif over > 0:
            actions.append(_go(runner, f"the pool is {over} over its maximum"))
            over -= 1
        elif runner.target is not None and any(job.target != runner.target for job in blocked):
            actions.append(_go(runner, f"idle for {runner.target} while jobs of another target wait and the pool is full"))
            blocked = blocked[1:]
        elif stranded > 0:
            actions.append(_go(runner, "idle while a job lost to an eviction needs a regular VM and the pool is full"))
            stranded -= 1
        elif min(beyond, there) > 0 and idle >= pool.idle_timeout:
            actions.append(_go(runner, f"idle for {int(idle.total_seconds())} s beyond the warm minimum"))
        else:
            continue
        beyond -= 1
        there -= is_there(runner)
    return actions


def _in_hand(now: datetime, runner: Runner) -> bool:
    """Whether somebody is at this intent just now. By their clock it was needed a moment ago: called back because a clock that is
    minutes behind disagrees, it would be asked for again at once, and so on to and fro."""
    return runner.claimed_until is not None and now < runner.claimed_until + SKEW


def _kept_warm(now: datetime, pool: PoolConfig) -> int:
    """The warm minimum by any process's clock: what one has just made for a window that begins, another whose clock is behind
    would call back, and so on to and fro. Nor is a VM deleted minutes before the window that wants it."""
    shifts = (-SKEW, timedelta(0), SKEW) if pool.warm_schedule else (timedelta(0),)
    return max(warm_minimum(pool, now + shift) for shift in shifts)


def renewals(now: datetime, pool: PoolConfig, head: Head, need: Demand, taken: Collection[str] = ()) -> list[Action]:
    """Idle VMs that are no longer what the pool file asks for, or too old for GitHub: a few at a time, each round once what
    replaces the last one is there, and none while the pool could not make another. Not those in `taken`."""
    if head.paused or next_rung(pool.vm, head.rests, now) is None:
        return []
    warm = warm_minimum(pool, now)
    coming = sum(runner.state not in _IDLE for runner in need.unbound)
    few = max(1, int(warm * RENEWED)) - need.leaving - coming - max(warm - need.spare, 0)
    shape = pool.vm.shape
    idle = [runner for runner in _spare(need, taken) if runner.state in _IDLE]
    stale = [(runner, why) for runner in idle if (why := _stale(now, pool, runner, shape))]
    return [_go(runner, why) for runner, why in stale[: max(few, 0)]]


def _stale(now: datetime, pool: PoolConfig, runner: Runner, shape: str) -> str:
    """Why this VM is to be replaced, "" when it is not. A row from before shapes were written keeps its VM."""
    if runner.shape is not None and runner.shape != shape:
        return "the pool's image, disk, script or settings have changed since it was made"
    if runner.shape is not None and runner.size not in pool.vm.sizes:
        return f"the pool has no {runner.size} any more"
    age = now - (runner.accepted_at or runner.created_at)
    return f"its runner is {age.days} days old, and GitHub gives no jobs to one 30 days behind" if age >= OLD else ""


def _names(actions: Iterable[Action]) -> set[str]:
    return {action.runner for action in actions if not isinstance(action, Create | Park | Rerun)}


def _spare(need: Demand, taken: Collection[str]) -> list[Runner]:
    """Runners that no waiting job of their own target needs. Those bound for a target go before those bound for none."""

    def leave(runners: Iterable[Runner]) -> list[Runner]:
        return sorted((r for r in runners if r.state in _LEAVES and r.name not in taken), key=_first_to_go)

    bound = [runner for target, runners in need.bound.items() for runner in leave(runners)[: need.surplus(target)]]
    ignored = [runner for runners in need.ignored.values() for runner in runners]
    free = max(len(need.unbound) - len(need.short), 0)
    return [*leave([*bound, *ignored]), *leave(need.unbound)[:free]]


_IDLE = frozenset({S.READY, S.REGISTERED})
_LEAVES = frozenset({S.REQUESTED, S.READY, S.REGISTERED})
"""States that are left without waste; a VM on its way is let arrive."""


def _first_to_go(runner: Runner) -> tuple[bool, datetime]:
    """Intents before VMs, then whoever has idled longest."""
    return runner.state is not S.REQUESTED, _idle_since(runner)


def _idle_since(runner: Runner) -> datetime:
    """Idling runs from becoming ready; losing a registration does not reset it."""
    return runner.ready_at or runner.since


def _go(runner: Runner, reason: str) -> Action:
    if runner.minted_at is None:
        return Delete(runner.name, Basis.NEVER_MINTED, reason)
    return Retire(runner.name, reason)


def forgets(now: datetime, world: World, targets: Collection[Target] | None = None) -> Iterable[Forget]:
    """Rows with nothing behind them: no VM is there, none can come any more, and no registration is left that anybody could use."""
    for runner in world.runners.values():
        if runner.state in LEAVING and _nothing_left(now, runner, targets):
            yield Forget(runner.name, f"{runner.reason}; Azure no longer knows it")


def _nothing_left(now: datetime, runner: Runner, targets: Collection[Target] | None) -> bool:
    """Azure has answered 404 since no PUT could bring it any more, and no registration of it can be left, or none that we could
    still ask for: where a repository was deleted GitHub answers 404 for ever, and GitHub itself drops what stays offline."""
    if runner.absent_since is None:
        return False
    settled = runner.minted_at is None or runner.completed_job is not None or runner.deregistered_at is not None
    return settled or (now - runner.absent_since >= ABANDONED and has_left(runner.target, targets))


def has_left(target: Target | None, targets: Collection[Target] | None) -> bool:
    """Whether the pool file does not allow this target any more. GitHub's names are the same in capitals."""
    return target is not None and targets is not None and target.lower() not in {allowed.lower() for allowed in targets}
