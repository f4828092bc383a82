"""One decision about one pool: facts folded, witnesses heard, the plan made, its actions turned into rows. Pure.

`decide` reads a snapshot and returns the rows as they should be; `ledger.py` commits the difference, `acts.py` does what
the committed rows ask for. An act is asked for by a row's state alone, so whatever process comes next can go on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from runnerpool.actions import Action, Bind, Create, Delete, Forget, Park, Rerun, Retire
from runnerpool.capacity import Rung, is_capacity, live_rests, rest_after
from runnerpool.config import PoolConfig
from runnerpool.eviction import lost, remembered, second_attempts, waits_for_rerun
from runnerpool.lifecycle import NOTHING_SEEN, Seen, World, advance, fold, located
from runnerpool.model import LATE, SKEW, Fact, Failure, Head, Job, JobState, Rest, Runner, RunnerState, Snapshot, Target
from runnerpool.plan import plan
from runnerpool.ports import VmState
from runnerpool.watchdog import learned, phase, smoothed

S = RunnerState

CLAIM = timedelta(minutes=2)
"""How long a worker keeps a row to itself: longer than any one act takes. It is taken over when it is over by every clock."""
KEEP_FINISHED = timedelta(hours=1)
"""A finished job's row stays this long for the status page, then it is history."""
GAVE_UP = timedelta(hours=48)
"""GitHub cancels a job that has been queued for 24 hours, at the latest after 48 (its usage limits for self-hosted runners): one
that it has not known, or not shown, for so long is over."""
RUN_LIMIT = timedelta(days=35)
"""GitHub ends every run at this age, its waits for approvals included (the same limits)."""
PLANS = 5
"""Plans of one decision, of which the last is empty: the longest chain that was seen is a row forgotten, a VM renewed, one made."""
FAILURES_KEPT = 5
"""Of the VMs that were given up before they were of use: the head of a pool is read and written often, and must stay small."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a decision depends on besides the snapshot. `suffix` makes a new name's last part (no `-` in it), `targets` are
    all that the pool file allows, None where that is not known, `place` is where its VMs are looked for, "" the same."""

    pool: PoolConfig
    prefix: str
    home: Target | None
    worker: str
    suffix: Callable[[], str]
    targets: Collection[Target] | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The rows as they should be after this pass. `forwards` are facts for other pools' partitions, by pool and row key:
    they are written before `consumed` facts are deleted."""

    before: Snapshot
    head: Head
    jobs: Mapping[str, Job]
    runners: Mapping[str, Runner]
    consumed: Mapping[str, Fact]
    forwards: Mapping[str, Mapping[str, Fact]]
    actions: Sequence[Action]
    asks: Sequence[Job]
    reruns: Sequence[Job]
    mine: Sequence[str]  # runners whose act this worker claims

    @property
    def changes(self) -> bool:
        return bool(
            self.consumed or self.head != self.before.head or self.jobs != self.before.jobs or self.runners != self.before.runners
        )


def decide(now: datetime, setting: Setting, snapshot: Snapshot, seen: Seen = NOTHING_SEEN) -> Decision:
    """One pass, from the rows as they are to the rows as they should be."""
    world = fold(snapshot, now, prefix=setting.prefix)
    head = snapshot.head
    for name, before in list(world.runners.items()):
        after = located(advance(now, before, seen, snapshot.head.usual), seen, setting.place)
        head = _learn(now, head, before, after, seen)
        world.runners[name] = after
    world.jobs.update(lost(world.jobs, world.runners, head.taken))
    world.jobs.update(second_attempts(world.jobs))
    world = replace(world, usual=head.usual)  # as the next pass will know it: what this one asks for it must not call back
    known = dict(world.runners)
    actions = _settle(now, setting, snapshot, head, world, seen)
    head = remembered(now, head, [runner for name, runner in known.items() if name not in world.runners])
    mine = [name for name, runner in world.runners.items() if _acts_now(now, runner, setting.worker)]
    for name in mine:
        world.runners[name] = replace(world.runners[name], claimed_by=setting.worker, claimed_until=now + CLAIM)
    return Decision(
        before=snapshot,
        head=head,
        jobs=world.jobs,
        runners=world.runners,
        consumed=world.consumed,
        forwards=world.foreign,
        actions=actions,
        asks=[world.jobs[action.job_id] for action in actions if isinstance(action, Park)],
        reruns=[world.jobs[action.job_id] for action in actions if isinstance(action, Rerun)],
        mine=mine,
    )


def _settle(now: datetime, setting: Setting, snapshot: Snapshot, head: Head, world: World, seen: Seen) -> list[Action]:
    """Plans and applies until the plan is empty: what is forgotten makes room, what is renewed wants a successor. `world` is
    left as the actions make it."""
    # What cannot be counted cannot be limited: with a runner's row damaged, the plan may do everything but add.
    uncounted = any(row.startswith("runner:") for row in snapshot.unreadable)
    known = replace(head, paused=True) if uncounted else head
    actions: list[Action] = []
    for _ in range(PLANS):
        if head.draining:
            more = plan(now, drained(setting.pool), known, without_demand(world), seen=seen, targets=setting.targets)
        else:
            more = plan(now, setting.pool, known, world, seen=seen, home=setting.home, targets=setting.targets)
        if actions:  # the few questions of a pass have been chosen; nothing that is planned depends on them
            more = [action for action in more if not isinstance(action, Park | Rerun)]
        for action in more:
            _apply(now, setting, world, action)
        actions += more
        if not more:
            break
    return actions


def drained(pool: PoolConfig) -> PoolConfig:
    """The pool as it is planned while it is drained."""
    nothing = {"minimum_warm_vms": 0, "warm_schedule": (), "maximum_pool_size": 0, "keep_registered": False}
    return pool.model_copy(update=nothing)


def without_demand(world: World) -> World:
    """The same world with nobody waiting, so that no VM is held back for a job that will not get it."""
    return replace(world, jobs={job_id: replace(job, demand=False) for job_id, job in world.jobs.items()})


def _learn(now: datetime, head: Head, before: Runner, after: Runner, seen: Seen) -> Head:
    """What a runner's step teaches the pool: an offer that Azure took and could not keep rests, the time that a phase took
    moves the usual one, and why a VM never became useful is kept."""
    vm = seen.vm(before.name)
    failed = after.state is S.FAILED and before.state is not S.FAILED
    if failed and vm is not None and vm.state is VmState.FAILED and is_capacity(vm.error_code, vm.error):
        key, rest = rest_after(Rung(before.size, before.zone, before.spot), vm.error_code, vm.error, now)
        head = rest_pool(head, key, rest, now)
    if failed and before.online_at is None and phase(before) is not None:
        failure = Failure(now, after.name, after.reason, after.job_id, after.log_tail or "")
        return replace(head, failures=(*head.failures, failure)[-FAILURES_KEPT:])
    if before.ready_at is None and after.ready_at is not None and before.accepted_at is not None:
        took = max((after.ready_at - before.accepted_at).total_seconds(), 0.0)
        head = replace(head, boot_seconds=smoothed(head.boot_seconds, took))
    usual = learned(head.usual, before, after)
    return head if usual is head.usual else replace(head, usual=usual)


def _apply(now: datetime, setting: Setting, world: World, action: Action) -> None:
    match action:
        case Create():
            _create(now, setting, world, action)
        case Bind(name, target, reason):
            world.runners[name] = world.runners[name].move(S.BINDING, now, reason, target=target)
        case Retire(name, reason):
            world.runners[name] = world.runners[name].move(S.RETIRING, now, reason)
        case Delete(name, basis, reason):
            world.runners[name] = world.runners[name].move(S.DELETING, now, reason, basis=basis)
        case Forget(name, _):
            del world.runners[name]
        case Park(job_id, _):
            world.jobs[job_id] = replace(world.jobs[job_id], checked_at=now)
        case Rerun(job_id, _):
            world.jobs[job_id] = replace(world.jobs[job_id], rerun_at=now)


def _create(now: datetime, setting: Setting, world: World, action: Create) -> None:
    name = f"{setting.prefix}-{setting.pool.name}-{setting.suffix()}"
    world.runners[name] = Runner(
        name=name,
        pool=setting.pool.name,
        state=S.REQUESTED,
        since=now,
        created_at=now,
        reason=action.reason,
        size=action.rung.size,
        zone=action.rung.zone,
        spot=action.rung.spot,
        regular=action.regular or None,
        target=action.target,
        job_id=action.job_id,
    )
    if action.job_id is not None:
        job = world.jobs[action.job_id]
        world.jobs[action.job_id] = replace(job, vms_made=job.vms_made + 1, last_vm_at=now)


def _acts_now(now: datetime, runner: Runner, worker: str) -> bool:
    """Whether the row's state asks for an act that nobody else is at, and whose time has come. What this very pass claimed
    and did not act on is its own still: a commit whose later transaction conflicted leaves such rows."""
    others = runner.claimed_by is not None and runner.claimed_by != worker
    if others and runner.claimed_until is not None and now < runner.claimed_until + SKEW:
        return False
    if runner.not_before is not None and now < runner.not_before:
        return False
    if runner.elsewhere and runner.state is not S.RETIRING:
        return False  # Azure, asked in the wrong place, would say that it is not there, or that it is deleted
    match runner.state:
        case S.REQUESTED | S.CREATING | S.BINDING:
            return True
        case S.RETIRING:
            return runner.deregistered_at is None
        case S.DELETING:
            return True  # a deletion that Azure accepted can fail later: it is asked for again, now and then
        case _:
            return False


def jobs_over(now: datetime, snapshot: Snapshot) -> list[Job]:
    """The jobs that nothing needs any more. What a runner's row still names is needed to judge that runner."""
    named = {runner.busy_job for runner in snapshot.runners.values()}
    return [job for job in snapshot.jobs.values() if is_over(now, job) and job.job_id not in named]


def is_over(now: datetime, job: Job) -> bool:
    if waits_for_rerun(now, job) and job.rerun_at is not None:
        return False
    if job.rerun_at is not None and now - job.rerun_at < KEEP_FINISHED:
        return False  # its second attempt is known by it
    if job.state is JobState.COMPLETED and job.completed_at is not None:
        return now - max(job.completed_at, job.received_at) >= KEEP_FINISHED
    if job.missing_since is not None:
        return now - job.missing_since >= GAVE_UP
    if job.unseen_since is None:
        return False
    if job.wants_runner:  # as far as anybody knows it has been queued all the time, and no longer than GitHub queues any job
        return now - max(job.unseen_since, job.created_at + LATE) >= GAVE_UP
    return now - job.created_at >= RUN_LIMIT


def rest_pool(head: Head, key: str, rest: Rest, now: datetime) -> Head:
    """The head with one more rest, and without those that are over."""
    return replace(head, rests={**live_rests(head.rests, now), key: rest})
