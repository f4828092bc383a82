"""Facts, jobs, runners, the head of a pool: what the ledger holds, and every rule by which one of them may change.

Everything that affects a state lives in this file: `merge` for jobs (commutative and idempotent, so that duplicated,
reordered and late deliveries change nothing) and `TRANSITIONS` for runners (an illegal one raises, and nothing happens).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

Target = str
"""Where a registration lives: `org:NAME`, `repo:OWNER/NAME` or `enterprise:SLUG`."""

LATE = timedelta(minutes=30)
"""A queued fact that reaches us this long after its job was created is a redelivery or a replay: GitHub is asked first."""

SKEW = timedelta(minutes=4)
"""How far apart the clocks of two workers may be: each is right to 2 minutes."""


# ---------------------------------------------------------------------------------------------- facts and jobs


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that GitHub said about one job: a delivery, or an answer of its API. Immutable.

    `pool` is the pool that serves the job, "" when none does; a fact that lies in another pool's partition is there for
    the sake of the runner that it names. `queued` with `status` "waiting" waits for somebody's approval.
    """

    job_id: str
    action: str  # queued | waiting | in_progress | completed
    status: str
    pool: str
    repository: str  # OWNER/NAME
    target: Target
    labels: tuple[str, ...]
    created_at: datetime
    received_at: datetime
    delivery: str
    started_at: datetime | None = None
    completed_at: datetime | None = None
    conclusion: str | None = None
    runner_name: str | None = None
    runner_id: int | None = None
    run_id: str = ""
    run_attempt: int = 1
    workflow: str = ""
    job_name: str = ""
    demand: bool = True  # False: a filter keeps it from being demand (foreign or public repository); its runner still counts


class JobState(StrEnum):
    WAITING = "waiting"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Job:
    """The facts of one job, merged, and (below the line) what planning passes keep about it."""

    job_id: str
    pool: str
    repository: str
    target: Target
    labels: tuple[str, ...]
    created_at: datetime
    received_at: datetime
    queued: bool = False  # a queued fact whose status was queued
    waiting: bool = False  # any sign that it waits, or waited, for an approval
    trusted: bool = False  # a queued fact came in time, or GitHub, asked, said queued
    demand: bool = True
    started_at: datetime | None = None
    completed_at: datetime | None = None
    conclusion: str | None = None
    runner_name: str | None = None
    runner_id: int | None = None
    run_id: str = ""
    run_attempt: int = 1
    workflow: str = ""
    job_name: str = ""
    # -- planning passes only
    vms_made: int = 0
    last_vm_at: datetime | None = None
    checked_at: datetime | None = None  # when GitHub was last asked about it
    missing_since: datetime | None = None  # GitHub, asked, has answered 404 since then, and showed other jobs of its repository
    unseen_since: datetime | None = None  # the same, and shows no job of its repository: a lost permission, as far as we know
    evicted: str | None = None  # how it was lost to an eviction
    rerun_at: datetime | None = None  # written BEFORE GitHub is asked to run it again
    rerun: str | None = None  # what GitHub answered to that, once it is final
    rerun_of: str | None = None  # the lost job of which this is the second attempt: it gets a regular VM
    etag: str = field(default="", compare=False)

    @property
    def state(self) -> JobState:
        """Completed beats in progress beats queued beats waiting, in whatever order the facts came."""
        if self.completed_at is not None:
            return JobState.COMPLETED
        if self.started_at is not None:
            return JobState.IN_PROGRESS
        return JobState.QUEUED if self.queued else JobState.WAITING

    @property
    def wants_runner(self) -> bool:
        """Whether this job is demand: queued, believed, and not known to be missing at GitHub."""
        return self.state is JobState.QUEUED and self.demand and self.trusted and self.missing_since is None


def merge(job: Job | None, fact: Fact) -> Job:
    """The job with one more fact. Any order and any number of the same facts gives the same job.

    Where two facts differ in what should be one value, the smaller one stands, so that order cannot matter.
    """
    if job is None:
        job = Job(
            job_id=fact.job_id,
            pool=fact.pool,
            repository=fact.repository,
            target=fact.target,
            labels=fact.labels,
            created_at=fact.created_at,
            received_at=fact.received_at,
            run_attempt=fact.run_attempt,
        )
    waits = fact.action == "waiting" or (fact.action == "queued" and fact.status in ("waiting", "requested", "pending"))
    queued = fact.action == "queued" and not waits
    job = replace(
        job,
        repository=min(job.repository, fact.repository),
        target=min(job.target, fact.target),
        labels=min(job.labels, fact.labels),
        created_at=min(job.created_at, fact.created_at),
        received_at=min(job.received_at, fact.received_at),
        queued=job.queued or queued,
        waiting=job.waiting or waits,
        trusted=job.trusted or (queued and fact.received_at - fact.created_at <= LATE),
        demand=job.demand and fact.demand,
        run_id=_least(job.run_id, fact.run_id) or "",
        run_attempt=min(job.run_attempt, fact.run_attempt),
        workflow=_least(job.workflow, fact.workflow) or "",
        job_name=_least(job.job_name, fact.job_name) or "",
    )
    if fact.action == "in_progress":
        job = replace(job, started_at=_least(job.started_at, fact.started_at or fact.received_at))
    if fact.action == "completed":
        # GitHub gives a job that never had a runner a started_at, too.
        started = fact.started_at if fact.runner_name else None
        job = replace(
            job,
            started_at=_least(job.started_at, started),
            completed_at=_least(job.completed_at, fact.completed_at or fact.received_at),
            conclusion=_least(job.conclusion, fact.conclusion),
        )
    if fact.action in ("in_progress", "completed") and fact.runner_name:
        told = (fact.runner_name, fact.runner_id or None)
        name, runner_id = min((job.runner_name, job.runner_id), told, key=_runner_order)
        job = replace(job, runner_name=name, runner_id=runner_id)
    return job


def _least(a: Any, b: Any) -> Any:
    """The smaller of two values, of which one or both may be absent."""
    return min((value for value in (a, b) if value), default=None)


def _runner_order(runner: tuple[str | None, int | None]) -> tuple[bool, str, bool, int]:
    """Any runner before none, and of one runner the fact with its id (GHES leaves keys out) before the one without."""
    name, runner_id = runner
    return not name, name or "", not runner_id, runner_id or 0


_OF_JOB = ("job_id", "repository", "target", "labels", "created_at", "received_at", "run_id", "run_attempt", "workflow", "job_name")


def fact_about(job: Job, *, action: str, delivery: str, **changes: Any) -> Fact:
    """A fact about a known job that no webhook brought. `delivery` says where it comes from."""
    same = {name: getattr(job, name) for name in (*_OF_JOB, "pool", "demand")}
    return Fact(**{**same, "action": action, "status": action, "delivery": delivery, **changes})


# ---------------------------------------------------------------------------------------------- runners


class RunnerState(StrEnum):
    REQUESTED = "requested"  # an intent; no VM can exist yet
    CREATING = "creating"  # claimed: a JIT config may be minted, a VM may exist
    BOOTING = "booting"  # Azure accepted the VM
    READY = "ready"  # its agent waits for a binding
    BINDING = "binding"  # claimed for a target: a JIT config may be minted and handed over
    REGISTERED = "registered"  # the runner was given a JIT config and may take a job
    BUSY = "busy"
    FINISHED = "finished"  # GitHub said that its job is over
    RETIRING = "retiring"  # its registration is being withdrawn
    FAILED = "failed"  # of no more use; to be withdrawn by rule 1
    DELETING = "deleting"  # rule 1 was met; only absence follows


S = RunnerState

TRANSITIONS: Mapping[RunnerState, frozenset[RunnerState]] = {
    S.REQUESTED: frozenset({S.CREATING}),
    S.CREATING: frozenset({S.BOOTING, S.READY, S.REGISTERED, S.BUSY, S.FINISHED, S.RETIRING, S.FAILED, S.DELETING}),
    S.BOOTING: frozenset({S.READY, S.REGISTERED, S.BUSY, S.FINISHED, S.RETIRING, S.FAILED, S.DELETING}),
    S.READY: frozenset({S.BINDING, S.REGISTERED, S.BUSY, S.FINISHED, S.RETIRING, S.FAILED, S.DELETING}),
    S.BINDING: frozenset({S.READY, S.REGISTERED, S.BUSY, S.FINISHED, S.RETIRING, S.FAILED, S.DELETING}),
    S.REGISTERED: frozenset({S.READY, S.BUSY, S.FINISHED, S.RETIRING, S.FAILED, S.DELETING}),
    S.BUSY: frozenset({S.FINISHED, S.RETIRING, S.FAILED, S.DELETING}),
    S.RETIRING: frozenset({S.BUSY, S.FINISHED, S.FAILED, S.DELETING}),
    S.FAILED: frozenset({S.BUSY, S.FINISHED, S.RETIRING, S.DELETING}),
    S.FINISHED: frozenset({S.DELETING}),
    S.DELETING: frozenset(),
}
"""Every transition there is. A row begins as REQUESTED (an adopted VM as FAILED), and ends by being removed."""

ALIVE = frozenset({S.REQUESTED, S.CREATING, S.BOOTING, S.READY, S.BINDING, S.REGISTERED})
"""States in which a runner may still take a job that has not been given to one."""


class Basis(StrEnum):
    """Which sentence of rule 1 allows a VM to be deleted."""

    COMPLETED = "completed"  # a completed fact named this runner
    NEVER_MINTED = "never minted"  # no JIT config was ever minted for it
    CLEAR = "agent clear"  # registration gone, and after that its agent saw no job worker
    SILENT = "agent silent"  # registration gone, and its agent silent for 15 minutes


class IllegalTransition(Exception):
    """A defect of ours: the table of transitions has no such arrow."""


@dataclass(frozen=True, slots=True)
class Runner:
    """One VM with its registration, under one name that is never used twice."""

    name: str
    pool: str
    state: RunnerState
    since: datetime  # when it came into this state
    created_at: datetime  # when the intent was written
    reason: str = ""  # why it is in this state, for people
    size: str = ""
    zone: str | None = None
    spot: bool = False
    regular: bool | None = None  # True: made for a job lost to an eviction, never to become a spot VM
    target: Target | None = None  # once minted for a target, a VM serves that target only
    job_id: str | None = None  # the job that it was made for; GitHub may give it another
    shape: str | None = None  # `VmConfig.shape` of the pool file that its VM was made from
    runner_version: str | None = None  # as its agent last told it
    address: str | None = None
    place: str | None = None  # SUBSCRIPTION/GROUP in which its VM was asked for, or last shown; None in rows from before this
    elsewhere: bool | None = None  # True: that is not where we look now, so that Azure's not knowing it proves nothing
    # -- registration
    minted_at: datetime | None = None  # written BEFORE the first JIT call: from here on a registration may exist
    github_id: int | None = None
    online_at: datetime | None = None  # when its runner was first seen listening for this registration
    refused: int = 0  # registrations in a row whose runner ended at once without a job
    deregistered_at: datetime | None = None  # the registration is proved gone; cleared by nothing
    # -- phases
    put_until: datetime | None = None  # until when a PUT for this name may still reach Azure; None when none may
    accepted_at: datetime | None = None  # Azure accepted the PUT
    running_at: datetime | None = None  # when it was first known to run: by Azure's power state, or by its agent's answer
    answered_at: datetime | None = None  # when its agent first answered
    ready_at: datetime | None = None  # when it first could have taken a job; idling runs from here
    busy_at: datetime | None = None
    busy_job: str | None = None
    exited_at: datetime | None = None  # its agent said that the runner program has ended after a job
    completed_job: str | None = None  # the job whose completed fact named this runner
    basis: Basis | None = None  # why it may be deleted; set with DELETING
    looked_at: datetime | None = None  # when it was last seen whether Azure took it: written BEFORE its first DELETE leaves
    delete_accepted_at: datetime | None = None  # Azure accepted the deletion: it counts against no maximum any more
    # -- what the last polls said, written only when it changes
    silent_since: datetime | None = None
    absent_since: datetime | None = None  # a direct GET has answered 404 since then
    eviction_at: datetime | None = None  # when Azure will take the spot VM away, as its agent first read it
    log_tail: str | None = None  # the end of its setup log, written only as it is given up
    # -- claim
    claimed_by: str | None = None
    claimed_until: datetime | None = None
    not_before: datetime | None = None  # the next attempt at what its state asks for
    attempts: int = 0  # of what its state asks for, since the last one that worked
    etag: str = field(default="", compare=False)

    def move(self, state: RunnerState, now: datetime, reason: str, **changes: Any) -> Runner:
        """The runner in another state. Claim, back-off and attempts end with the state that they were about.

        Raises IllegalTransition; a move to the present state only applies the changes.
        """
        if state is self.state:
            return replace(self, **changes)
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"runner {self.name}: {self.state} -> {state} ({reason})")
        settled: dict[str, Any] = {"claimed_by": None, "claimed_until": None, "not_before": None, "attempts": 0}
        return replace(self, **{**settled, "state": state, "since": now, "reason": reason, **changes})

    @property
    def exists(self) -> bool:
        """Whether its VM may exist and Azure has not accepted its deletion: what the pool's maximum counts."""
        return self.delete_accepted_at is None


def apply_to_runner(runner: Runner, fact: Fact, now: datetime) -> Runner:
    """What an `in_progress` or `completed` fact that names this runner makes of it. Any order, any number of times."""
    if fact.runner_name != runner.name or runner.state is S.DELETING:
        return runner
    if fact.action == "completed":
        if runner.state is S.FINISHED:
            return runner
        if runner.state is S.REQUESTED:
            return runner
        known = {"busy_job": runner.busy_job or fact.job_id, "busy_at": runner.busy_at or fact.started_at}
        return runner.move(S.FINISHED, now, f"job {fact.job_id} completed", completed_job=fact.job_id, **known)
    if fact.action == "in_progress" and runner.state not in (S.FINISHED, S.REQUESTED):
        if runner.state is S.BUSY:
            return runner if runner.busy_job else replace(runner, busy_job=fact.job_id, reason=f"runs job {fact.job_id}")
        return runner.move(S.BUSY, now, f"runs job {fact.job_id}", busy_job=fact.job_id, busy_at=fact.started_at or now)
    return runner


# ---------------------------------------------------------------------------------------------- the head


@dataclass(frozen=True, slots=True)
class Rest:
    """An offer (or a family, or all spot) that Azure refused and that is left alone until `until`."""

    until: datetime
    code: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A VM that was given up before it was of any use. `log` is the end of its setup log, "" where its agent gave none."""

    at: datetime
    name: str
    reason: str
    job_id: str | None = None
    log: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a pool. Its ETag serialises every decision that adds capacity."""

    pool: str
    revision: int = 0
    rests: Mapping[str, Rest] = field(default_factory=dict)  # keyed as capacity.py names them
    paused: bool = False  # no VM is made
    draining: bool = False  # no VM is made, and what idles goes: as if no job waited and the maximum were 0
    boot_seconds: float | None = None  # how long this pool's VMs usually take from PUT to a listening agent; None: unknown
    usual: Mapping[str, float] = field(default_factory=dict)  # the same in seconds for each `watchdog.Phase`
    failures: tuple[Failure, ...] = ()  # the newest ones, the newest last: their rows are gone within minutes
    taken: Mapping[str, datetime] = field(default_factory=dict)  # spot VMs that Azure took away, by name: when their rows went
    etag: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One reading of a pool's partition. `facts` maps row keys to facts not yet folded into jobs; `unreadable` are the keys
    of rows that somebody has damaged: they stand for whatever they stood for."""

    head: Head
    jobs: Mapping[str, Job]
    runners: Mapping[str, Runner]
    facts: Mapping[str, Fact]
    unreadable: tuple[str, ...] = ()
