"""What the sandbox's GitHub knows: repositories, runner groups, registrations, jobs; and which runner gets which job.

No HTTP here. Every change of a job is told to `emit(job, action)`, which makes a webhook delivery of it. Durations are real
seconds, timestamps are the sandbox clock's.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random

from sandbox.clock import now

OFFLINE_AFTER = 30.0
"""Seconds without a poll after which a runner that runs no job counts as offline."""


class NotRegistered(Exception):
    """The registration, or its session, is not there (any more)."""


class StillRunning(Exception):
    """A job of a run is not run again while one of the run's jobs is not over."""


class NameTaken(Exception):
    """A runner of that name is registered in that scope."""


@dataclass(frozen=True, slots=True)
class Repository:
    """`name` is OWNER/NAME."""

    name: str
    private: bool = True


@dataclass(frozen=True, slots=True)
class Group:
    """A runner group. `repositories` None admits every one of the organisation; public ones only where `public` says so."""

    id: int
    name: str
    repositories: frozenset[str] | None = None
    public: bool = False

    def admits(self, repository: Repository) -> bool:
        listed = self.repositories is None or repository.name in self.repositories
        return listed and (repository.private or self.public)


@dataclass(slots=True, eq=False)
class Job:
    """One workflow job. `seconds` is how long it runs, `outcome` what its runner is told to conclude."""

    id: int
    run_id: int
    repository: Repository
    name: str
    labels: tuple[str, ...]
    seconds: float
    outcome: str
    created_at: datetime
    environment: str | None = None
    attempt: int = 1
    status: str = "queued"
    conclusion: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    runner_id: int | None = None
    runner_name: str | None = None
    group: Group | None = None
    cancelled: bool = False
    deregistered_at: datetime | None = None  # its runner's registration was removed while it ran
    timeline: list[tuple[str, datetime]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Runner:
    """One registration, and the runner program that uses it. `target` is written as `model.Target`."""

    id: int
    name: str
    target: str
    group: Group
    labels: tuple[str, ...]
    token: str
    registered: bool = True
    session: str | None = None
    sessions: int = 0  # how often a runner program came with this JIT config: more than once is a defect of ours
    job: Job | None = None
    job_since: float = 0.0  # of time.monotonic(), as `seen`
    seen: float = 0.0
    poll: asyncio.Future[Job] | None = None

    @property
    def online(self) -> bool:
        return self.session is not None and (
            self.poll is not None or self.job is not None or time.monotonic() - self.seen < OFFLINE_AFTER
        )

    def takes(self, job: Job) -> bool:
        """Whether GitHub would give it this job: listening, of a scope and group that admit the repository, with every label."""
        if self.poll is None or self.poll.done():
            return False
        if self.target.startswith("repo:"):
            admitted = self.target == f"repo:{job.repository.name}"
        else:
            admitted = self.group.admits(job.repository)
        return admitted and {label.lower() for label in job.labels} <= {label.lower() for label in self.labels}


class World:
    """Change it only through its methods. `lost_after`: seconds beyond a job's length after which its runner counts as lost."""

    def __init__(
        self,
        *,
        repositories: Iterable[Repository],
        groups: Iterable[Group],
        random: Random,
        lost_after: float,
        emit: Callable[[Job, str], None],
    ) -> None:
        self.repositories = {repository.name: repository for repository in repositories}
        self.groups = {group.id: group for group in groups}
        self.jobs: dict[int, Job] = {}
        self.runners: dict[int, Runner] = {}  # registrations, in the order in which the API lists them
        self.sessions: dict[str, Runner] = {}
        self.registrations = 0
        self._random = random
        self._lost_after = lost_after
        self._emit = emit
        self._queue: dict[int, Job] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._job_id = random.randrange(50_000_000_000, 90_000_000_000)
        self._run_id = random.randrange(15_000_000_000, 20_000_000_000)
        self._runner_id = random.randrange(1_000, 90_000)

    # ------------------------------------------------------------------------------------------ jobs

    def queue(
        self,
        repository: str,
        labels: Sequence[str],
        *,
        count: int = 1,
        seconds: float = 1.0,
        outcome: str = "success",
        environment: str | None = None,
        announce: str = "waiting",
    ) -> list[Job]:
        """One run of `count` jobs. With an `environment` they wait for `approve`, which GitHub announces either as action
        `waiting` or as action `queued` with status `waiting`. KeyError: no such repository."""
        self._run_id += self._random.randrange(1, 1000)
        jobs = []
        for index in range(count):
            self._job_id += self._random.randrange(1, 1000)
            job = Job(
                id=self._job_id,
                run_id=self._run_id,
                repository=self.repositories[repository],
                name=f"build ({index + 1})" if count > 1 else "build",
                labels=tuple(labels),
                seconds=seconds,
                outcome=outcome,
                created_at=now(),
                environment=environment,
                status="waiting" if environment else "queued",
            )
            self.jobs[job.id] = job
            jobs.append(job)
            if not environment:
                self._queue[job.id] = job
            self._tell(job, announce if environment else "queued")
        self._route()
        return jobs

    def approve(self, job: Job) -> None:
        if job.status == "waiting":
            job.status = "queued"
            self._queue[job.id] = job
            self._tell(job, "queued")
            self._route()

    def cancel(self, job: Job) -> None:
        """A job that has no runner completes at once, with a runner id of 0 or null as GitHub has it; one that runs is
        cancelled when its runner reports."""
        job.cancelled = True
        if job.status in ("queued", "waiting"):
            self._queue.pop(job.id, None)
            zero = self._random.random() < 0.5
            job.runner_id, job.runner_name = (0, "") if zero else (None, None)
            self._complete(job, "cancelled")

    def rerun(self, job: Job) -> Job:
        """The same job as a new one of its run's next attempt. Raises StillRunning."""
        run = [other for other in self.jobs.values() if other.run_id == job.run_id]
        if any(other.status != "completed" for other in run):
            raise StillRunning(str(job.run_id))
        self._job_id += self._random.randrange(1, 1000)
        again = Job(
            id=self._job_id,
            run_id=job.run_id,
            repository=job.repository,
            name=job.name,
            labels=job.labels,
            seconds=job.seconds,
            outcome=job.outcome,
            created_at=now(),
            attempt=max(other.attempt for other in run) + 1,
        )
        self.jobs[again.id] = self._queue[again.id] = again
        self._tell(again, "queued")
        self._route()
        return again

    def _complete(self, job: Job, conclusion: str) -> None:
        job.status, job.conclusion, job.completed_at = "completed", conclusion, now()
        if timer := self._timers.pop(job.id, None):
            timer.cancel()
        self._tell(job, "completed")

    def _tell(self, job: Job, action: str) -> None:
        job.timeline.append((action, now()))
        self._emit(job, action)

    # ------------------------------------------------------------------------------------------ routing

    def _route(self) -> None:
        """Oldest job first; any runner that matches may get it."""
        listening = [runner for runner in self.runners.values() if runner.poll is not None]
        for job in list(self._queue.values()):
            if not listening:
                return
            if candidates := [runner for runner in listening if runner.takes(job)]:
                runner = self._random.choice(candidates)
                listening.remove(runner)
                self._start(job, runner)

    def _start(self, job: Job, runner: Runner) -> None:
        assert runner.poll is not None
        del self._queue[job.id]
        job.status, job.started_at = "in_progress", now()
        job.runner_id, job.runner_name, job.group = runner.id, runner.name, runner.group
        runner.job, runner.job_since = job, time.monotonic()
        loop = asyncio.get_running_loop()
        self._timers[job.id] = loop.call_later(job.seconds + self._lost_after, self._lose, runner, job)
        runner.poll.set_result(job)
        self._tell(job, "in_progress")

    def _lose(self, runner: Runner, job: Job) -> None:
        """The runner never reported: GitHub fails the job, "the self-hosted runner lost communication with the server"."""
        self._release(runner)
        self._complete(job, "failure")

    # ------------------------------------------------------------------------------------------ registrations

    def register(self, target: str, name: str, labels: Sequence[str], group: Group) -> Runner:
        if any(runner.target == target and runner.name.lower() == name.lower() for runner in self.runners.values()):
            raise NameTaken(name)
        self._runner_id += 1
        self.registrations += 1
        runner = Runner(
            id=self._runner_id, name=name, target=target, group=group, labels=tuple(labels), token=secrets.token_urlsafe(24)
        )
        self.runners[runner.id] = runner
        return runner

    def remove(self, runner: Runner) -> None:
        """Drops the registration. A job that runs on it goes on and may still be reported."""
        runner.registered = False
        self.runners.pop(runner.id, None)
        if runner.job is not None:
            runner.job.deregistered_at = now()
        if runner.poll is not None and not runner.poll.done():
            runner.poll.set_exception(NotRegistered(runner.name))

    def shift(self, runner: Runner) -> None:
        """Moves it to the front of the list that the API gives."""
        self.runners = {runner.id: runner, **self.runners}

    def _release(self, runner: Runner) -> None:
        """The end of an ephemeral runner."""
        if runner.session is not None:
            self.sessions.pop(runner.session, None)
        runner.session = runner.job = None
        self.remove(runner)

    # ------------------------------------------------------------------------------------------ the runner program

    def connect(self, runner_id: int, token: str) -> str:
        """A session for the runner that holds this JIT config; it replaces one that has gone silent.

        Raises NotRegistered, PermissionError (wrong token), NameTaken (the registration is in use).
        """
        runner = self.runners.get(runner_id)
        if runner is None:
            raise NotRegistered(str(runner_id))
        if not secrets.compare_digest(runner.token, token):
            raise PermissionError(runner.name)
        if runner.poll is not None or runner.job is not None:
            raise NameTaken(runner.name)
        if runner.session is not None:
            self.sessions.pop(runner.session, None)
        runner.session, runner.sessions, runner.seen = secrets.token_hex(16), runner.sessions + 1, time.monotonic()
        self.sessions[runner.session] = runner
        return runner.session

    async def next_job(self, session: str, timeout: float) -> Job | None:
        """Waits for a job. None: ask again. Raises NotRegistered when the registration is gone, or goes."""
        runner = self.sessions.get(session)
        if runner is None or not runner.registered or runner.poll is not None or runner.job is not None:
            raise NotRegistered(session)
        runner.poll = poll = asyncio.get_running_loop().create_future()
        try:
            self._route()
            done, _ = await asyncio.wait({poll}, timeout=timeout)
            return poll.result() if done else None
        except asyncio.CancelledError:  # the runner program hung up
            if runner.job is None:
                runner.session = None
                self.sessions.pop(session, None)
            raise
        finally:
            runner.poll = None
            runner.seen = time.monotonic()
            poll.cancel()

    def finish(self, session: str, job_id: int, conclusion: str) -> None:
        """The runner's report. Ephemeral: its registration goes with it. Raises NotRegistered."""
        runner = self.sessions.get(session)
        if runner is None or runner.job is None or runner.job.id != job_id:
            raise NotRegistered(session)
        job = runner.job
        self._release(runner)
        self._complete(job, "cancelled" if job.cancelled else conclusion)

    def close(self) -> None:
        """Ends every timer."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
