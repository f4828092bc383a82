"""GitHub as this deployment sees it: jobs, registrations, who gets which job, deliveries and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from runnerpool.errors import Conflict, Gone, Misconfigured
from runnerpool.ports import Delivery, JitConfig, JobReport, Registration, Removal, RunnerPackage
from tests.sim.process import Process
from tests.sim.scenario import JobPlan

if TYPE_CHECKING:
    from tests.sim.machines import Machine
    from tests.sim.world import World

BUSY_LAG = 60.0
"""Seconds by which the list's `busy` lags."""
NOTICES = 600.0
"""Seconds until GitHub ends a job whose runner is gone."""
OFFLINE_LATE = 60.0
"""Seconds for which GitHub may take a runner that is gone for an idle one."""
CANCELS = 24 * 3600.0
"""Seconds for which GitHub queues a job before it cancels it."""
RERUNS = 95_000
"""Ids of jobs that are run again begin here."""
SECRET = "s3cr3t"
"""Part of everything in this world that must appear in no log, row, tag, message or error."""


@dataclass(slots=True)
class SimJob:
    """`lost` when Azure took its VM from under it, or we did in what rule 1 leaves."""

    plan: JobPlan
    target: str
    created_at: datetime
    status: str = "queued"
    conclusion: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    runner: SimRunner | None = None
    lost: bool = False

    @property
    def excused(self) -> bool:
        """Whether it need not end well: people cancelled it, or its VM was taken away."""
        return self.lost or self.plan.cancelled_after is not None


@dataclass(slots=True)
class SimRunner:
    """One registration. Its machine is known once its JIT config is used there."""

    runner_id: int
    name: str
    target: str
    labels: frozenset[str]
    encoded: str
    registered: bool = True
    machine: Machine | None = None
    online: bool = False
    job: SimJob | None = None
    busy_since: float = 0.0
    foreign: bool = False


@dataclass(slots=True)
class GitHubState:
    """The service itself, shared by all processes."""

    world: World
    jobs: dict[str, SimJob] = field(default_factory=dict)
    runners: dict[int, SimRunner] = field(default_factory=dict)
    by_jit: dict[str, SimRunner] = field(default_factory=dict)
    queued: dict[str, dict[str, SimJob]] = field(default_factory=dict)
    rerun: set[str] = field(default_factory=set)
    _kicked: set[str] = field(default_factory=set)
    _next_id: int = 1000

    # ------------------------------------------------------------------------------------------ jobs

    def start(self, plan: JobPlan) -> None:
        """A workflow's job comes to be."""
        world = self.world
        job = SimJob(plan, world.scenario.config.github.target(plan.repository), world.now().replace(microsecond=0))
        self.jobs[plan.job_id] = job
        if plan.approved_after is not None:
            job.status = "waiting"
            world.host.deliver(job, "queued" if world.chance.random() < 0.5 else "waiting")
            if plan.approved_after > 0:
                world.later(plan.approved_after, self._approve, job)
        else:
            self._queue(job)
            world.host.deliver(job, "queued")
        if plan.cancelled_after is not None:
            world.later(plan.cancelled_after, self._cancel, job)

    def _approve(self, job: SimJob) -> None:
        """No event tells of it."""
        if job.status == "waiting":
            job.status = "queued"
            self._queue(job)

    def _queue(self, job: SimJob) -> None:
        self.queued.setdefault(job.target, {})[job.plan.job_id] = job
        self.world.later(CANCELS, self._give_up, job)
        self.kick(job.target)

    def _give_up(self, job: SimJob) -> None:
        if job.status == "queued":
            self.world.checks.broken(10, f"job {job.plan.job_id} was queued for a day, and nobody took it")
            self.complete(job, "cancelled")

    def _cancel(self, job: SimJob) -> None:
        if job.status != "completed":
            self.complete(job, "cancelled")

    def kick(self, target: str) -> None:
        """Somebody new waits or listens: GitHub assigns within seconds."""
        if target not in self._kicked and self.queued.get(target):
            self._kicked.add(target)
            slow = self.world.faults.roll("slow to assign")
            self.world.later(self.world.life.uniform(20, 100) if slow else self.world.life.uniform(0.5, 4), self._assign, target)

    def _elsewhere(self, waiting: dict[str, SimJob], job: SimJob) -> None:
        """A runner that is none of ours takes a job that we have made a VM for."""
        self._next_id += 1
        del waiting[job.plan.job_id]
        job.runner = SimRunner(self._next_id, f"elsewhere-{self._next_id}", job.target, frozenset(), "", foreign=True)
        job.status, job.started_at, job.runner.job = "in_progress", self.world.now(), job
        self.world.host.deliver(job, "in_progress")
        self.world.later(job.plan.seconds, self.complete, job, "success")

    def _assign(self, target: str) -> None:
        self._kicked.discard(target)
        waiting = self.queued.get(target, {})
        idle = [r for r in self.runners.values() if r.online and r.job is None and r.target == target and not r.foreign]
        refused = self.world.scenario.refused_repository if self.world.faults.during("group refuses") else ""
        if any(job.plan.repository == refused for job in waiting.values()):
            self.world.later(30.0, self.kick, target)  # until somebody mends the runner group
        for job in list(waiting.values()):
            if job.plan.repository == refused:
                continue
            if self.world.faults.roll("taken elsewhere"):
                self._elsewhere(waiting, job)
                continue
            wanted = {label.lower() for label in job.plan.labels}
            runner = next((runner for runner in idle if wanted <= runner.labels), None)
            if runner is None or runner.machine is None:
                continue
            idle.remove(runner)
            del waiting[job.plan.job_id]
            job.status, job.runner, job.started_at = "in_progress", runner, self.world.now()
            runner.job, runner.busy_since = job, self.world.loop.time()
            self.world.note(f"GitHub gives job {job.plan.job_id} to {runner.name} ({runner.runner_id})")
            self.world.host.deliver(job, "in_progress")
            if runner.machine.running:
                runner.machine.take(job)
            else:
                job.lost = True

    def complete(self, job: SimJob, conclusion: str) -> None:
        if job.status == "completed":
            return
        self.queued.get(job.target, {}).pop(job.plan.job_id, None)
        job.status, job.conclusion, job.completed_at = "completed", conclusion, self.world.now()
        self.world.note(f"job {job.plan.job_id} completes: {conclusion}")
        self.world.host.deliver(job, "completed")
        if job.runner is not None:
            runner, job.runner.job = job.runner, None
            runner.online = False
            self.drop(runner)
            if runner.machine is not None:
                runner.machine.job_over()

    def run_again(self, repository: str, job_id: str) -> None:
        """One job of a run that is over: it comes again under a new id, with the next attempt's number."""
        self.authorised()
        job = self.jobs.get(job_id)
        if job is None or job.plan.repository != repository or job.status != "completed":
            raise Misconfigured("GitHub answers 403: the job cannot be run again", area="setup")
        if job_id in self.rerun:
            raise Gone("GitHub answers 404: the run has a newer attempt")
        self.world.checks.run_again(job)
        self.rerun.add(job_id)
        again = replace(
            job.plan,
            job_id=str(RERUNS + len(self.rerun)),
            at=self.world.loop.time(),
            attempt=job.plan.attempt + 1,
            cancelled_after=None,
            approved_after=None,
        )
        self.world.later(self.world.life.uniform(1, 5), self.start, again)

    # ------------------------------------------------------------------------------------------ registrations

    def drop(self, runner: SimRunner) -> None:
        """The registration is gone; a runner that listens for it is told so and ends, one in mid-job goes on."""
        runner.registered = False
        self.runners.pop(runner.runner_id, None)
        if runner.online and runner.job is None:
            runner.online = False
            if runner.machine is not None:
                runner.machine.exit_soon()

    def connect(self, encoded: str, machine: Machine) -> SimRunner | None:
        """A runner program comes with its JIT config; None when GitHub does not know it (any more)."""
        runner = self.by_jit[encoded]
        if not runner.registered or runner.machine is not None:
            return None
        runner.machine, runner.online = machine, True
        self.kick(runner.target)
        faults, world = self.world.faults, self.world
        if faults.roll("reaped while idle"):
            world.later(world.scenario.reap_idle_after, self._reap, runner)
        return runner

    def lost(self, runner: SimRunner) -> None:
        """Its machine is gone. Of an idle one GitHub notices that within a minute, in which it may still give it a job."""
        if runner.job is None:
            self.world.later(self.world.life.uniform(0, OFFLINE_LATE), self._offline, runner)
        else:
            self._offline(runner)

    def _offline(self, runner: SimRunner) -> None:
        runner.online = False
        if runner.job is not None:
            self.world.later(self.world.life.uniform(0.5, 1.0) * NOTICES, self.complete, runner.job, "failure")

    def _reap(self, runner: SimRunner) -> None:
        if runner.registered and runner.job is None and not self.world.faults.healed:
            self.world.note(f"GitHub drops the idle registration {runner.runner_id} of {runner.name}")
            self.drop(runner)

    def mint(self, target: str, name: str, labels: Sequence[str]) -> JitConfig:
        self.authorised()
        return self.register(target, name, labels)

    def register(self, target: str, name: str, labels: Sequence[str]) -> JitConfig:
        """A new registration, offline until somebody uses its JIT config."""
        if any(r.name == name for r in self.runners.values() if r.target == target):
            raise Conflict(f"a runner {name} exists")
        self._next_id += 1
        encoded = f"{SECRET}-jit-{self._next_id}"
        runner = SimRunner(self._next_id, name, target, frozenset(map(str.lower, labels)), encoded)
        self.runners[runner.runner_id] = self.by_jit[encoded] = runner
        self.world.checks.minted(runner)
        if self.world.faults.roll("reaped while booting"):
            self.world.later(self.world.life.uniform(20, 240), self._reap, runner)
        return JitConfig(runner.runner_id, encoded)

    def remove(self, target: str, runner_id: int) -> Removal:
        runner = self.runners.get(runner_id)
        if self.world.faults.during("permission lost") or runner is None or runner.target != target:
            return Removal.ABSENT
        self.world.checks.removing(runner)
        if runner.job is not None:
            if not self.world.faults.roll("removed in mid-job"):
                return Removal.BUSY
            self.world.note(f"GitHub answers 204 in mid-job for {runner.name}")
        self.drop(runner)
        self.world.note(f"GitHub removes {runner.name} ({runner_id})")
        self.world.checks.evidence.deregistered(runner.name)
        return Removal.REMOVED

    def authorised(self) -> None:
        if self.world.faults.during("permission lost"):
            raise Misconfigured("GitHub answers 404: a permission is missing", area="auth")

    def seen(self, runner: SimRunner) -> Registration:
        busy = runner.job is not None and self.world.loop.time() - runner.busy_since >= BUSY_LAG
        return Registration(runner.runner_id, runner.name, runner.online, busy)


class GitHubPort:
    """`ports.GitHub` for one process."""

    def __init__(self, process: Process, state: GitHubState) -> None:
        self._process = process
        self._state = state

    async def __aenter__(self) -> GitHubPort:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def mint_jit_config(self, target: str, name: str, labels: Sequence[str], group: str) -> JitConfig:
        return await self._process.call("github", lambda: self._state.mint(target, name, labels), write=True, what="mint")

    async def remove_runner(self, target: str, runner_id: int) -> Removal:
        return await self._process.call("github", lambda: self._state.remove(target, runner_id), write=True, what="remove")

    async def list_runners(self, target: str) -> list[Registration]:
        state = self._state

        def effect() -> list[Registration]:
            state.authorised()
            found = [state.seen(runner) for runner in state.runners.values() if runner.target == target]
            if found and state.world.faults.roll("list shifts"):
                found.remove(state.world.chance.choice(found))  # between two pages another one went, and this one moved up
            state.world.checks.evidence.listed(target, {registration.name for registration in found})
            return found

        return await self._process.call("github", effect)

    async def find_runner(self, target: str, name: str) -> Registration | None:
        state = self._state

        def effect() -> Registration | None:
            state.authorised()
            return next((state.seen(r) for r in state.runners.values() if r.target == target and r.name == name), None)

        return await self._process.call("github", effect)

    async def get_job(self, repository: str, job_id: str) -> JobReport | None:
        state = self._state

        def effect() -> JobReport | None:
            job = state.jobs.get(job_id)
            if job is None or state.world.faults.during("permission lost"):
                return None
            runner = job.runner
            if job.status == "completed" and runner is not None:
                state.world.checks.evidence.completed.add(runner.name)
            return JobReport(
                job_id=job_id,
                status=job.status,
                conclusion=job.conclusion,
                runner_name=runner.name if runner else None,
                runner_id=runner.runner_id if runner else None,
                started_at=job.started_at,
                completed_at=job.completed_at,
            )

        return await self._process.call("github", effect)

    async def reads_jobs(self, repository: str) -> bool:
        def effect() -> bool:
            return not self._state.world.faults.during("permission lost")

        return await self._process.call("github", effect)

    async def rerun_job(self, repository: str, job_id: str) -> None:
        await self._process.call("github", lambda: self._state.run_again(repository, job_id), write=True)

    async def runner_package(self, target: str, os: str, arch: str) -> RunnerPackage:
        def effect() -> RunnerPackage:
            return RunnerPackage(version="2.330.0", url="https://example.invalid/runner-2.330.0.tar.gz", sha256="0" * 64)

        return await self._process.call("github", effect)

    async def failed_deliveries(self, since: datetime) -> list[Delivery]:
        def effect() -> list[Delivery]:
            return self._state.world.host.failed(since)

        return await self._process.call("github", effect)

    async def redeliver(self, delivery: Delivery) -> None:
        def effect() -> None:
            self._state.world.host.redeliver(delivery)

        await self._process.call("github", effect, write=True)

    def calls_left(self) -> int | None:
        return 4_000
