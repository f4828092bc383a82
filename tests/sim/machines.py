"""The inside of a VM: an agent, and a runner program that takes one job, or none."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from runnerpool.errors import Conflict, RetryLater
from runnerpool.ports import AgentPhase, AgentStatus, AgentTrouble, JitConfig
from tests.sim.github import SimJob, SimRunner
from tests.sim.process import Process

if TYPE_CHECKING:
    from tests.sim.world import World


class Machine:
    """`boot` seconds after it was made its agent answers; with a JIT config at birth it starts the runner by itself."""

    def __init__(self, world: World, name: str, address: str, encoded: str | None, boot: float) -> None:
        self.world = world
        self.name = name
        self.address = address
        self.running = True
        self.evicted = False  # or told that it will be
        self.taken = False  # its spot capacity was taken back
        self.notice: datetime | None = None
        self.up = False
        self.phase = AgentPhase.SETUP
        self.encoded = encoded
        self.binding: int | None = None
        self.runner: SimRunner | None = None
        self.job_seen = False
        self.worker = False
        self.jobs: list[str] = []
        self.silent_from = float("inf")
        self.silent_until = float("inf")
        self.broken = world.faults.roll("dead agent")
        if self.broken and world.life.random() < 0.5:
            self.broken, self.silent_from = False, 0.0  # it works, and nobody can ask it
        if world.faults.roll("agent dies"):
            self.silent_from = world.loop.time() + boot + world.life.uniform(0, 1800)
        world.later(boot, self._boot)

    def _boot(self) -> None:
        if not self.running or self.broken:
            return
        self.up = True
        self.phase = AgentPhase.WAITING
        if self.encoded is not None:
            self._launch(self.encoded)

    # ------------------------------------------------------------------------------------------ the runner program

    def _launch(self, encoded: str) -> None:
        self.phase = AgentPhase.STARTING
        self.world.checks.used(encoded, self.name)
        self.binding = self.world.github.by_jit[encoded].runner_id
        self.world.later(self.world.life.uniform(2, 6), self._connect, encoded)

    def _connect(self, encoded: str) -> None:
        if not self.running or self.phase is not AgentPhase.STARTING:
            return
        faults = self.world.faults
        if faults.during("version refused"):
            self.phase = AgentPhase.EXITED
            return
        self.runner = self.world.github.connect(encoded, self)
        self.phase = AgentPhase.LISTENING if self.runner else AgentPhase.EXITED
        if self.runner and faults.roll("exits without a job"):
            self.world.later(self.world.life.uniform(3, 60), self._exit_jobless, self.runner)

    def _exit_jobless(self, runner: SimRunner) -> None:
        """run.sh ends with 0, and its registration stays behind, offline."""
        if self.running and self.runner is runner and self.phase is AgentPhase.LISTENING and runner.job is None:
            runner.online = False
            self.phase = AgentPhase.EXITED

    def exit_soon(self) -> None:
        self.world.later(self.world.life.uniform(0.5, 8), self._exit)

    def _exit(self) -> None:
        if self.running and self.phase is AgentPhase.LISTENING and self.runner is not None and not self.runner.registered:
            self.phase = AgentPhase.EXITED

    def take(self, job: SimJob) -> None:
        """GitHub gave it this job. The worker process needs a moment to start."""
        self.jobs.append(job.plan.job_id)
        self.world.checks.job_begins(self, job)
        self.world.later(self.world.life.uniform(0.5, 4), self._work, job)
        self.world.later(job.plan.seconds, self._done, job)

    def _work(self, job: SimJob) -> None:
        if self.running and job.status == "in_progress":
            self.phase, self.worker, self.job_seen = AgentPhase.BUSY, True, True

    def _done(self, job: SimJob) -> None:
        if self.running and job.status == "in_progress":
            self.world.github.complete(job, "success")

    def job_over(self) -> None:
        self.phase, self.worker, self.job_seen = AgentPhase.EXITED, False, True

    def die(self, *, ours: bool) -> None:
        """Its VM is deleted by us, or Azure takes it: only then need its job not succeed."""
        self.running = False
        if self.runner is not None and self.runner.job is not None and not ours:
            self.runner.job.lost = True
        if self.runner is not None:
            self.world.github.lost(self.runner)

    # ------------------------------------------------------------------------------------------ the agent

    @property
    def answers(self) -> bool:
        now = self.world.loop.time()
        if self.world.faults.roll("agent mute"):
            self.silent_from, self.silent_until = now, now + self.world.life.uniform(60, 1500)
        if self.silent_from <= now and now >= self.silent_until:
            self.silent_from = self.silent_until = float("inf")
        return self.running and self.up and now < self.silent_from

    def status(self) -> AgentStatus:
        return AgentStatus(
            phase=self.phase,
            worker=self.worker,
            job_seen=self.job_seen,
            binding=self.binding,
            exit_code=0 if self.phase is AgentPhase.EXITED else None,
            runner_version="2.330.0",
            eviction_at=self.notice,
        )

    def start(self, config: JitConfig) -> AgentStatus:
        if self.binding != config.runner_id:
            free = self.phase is AgentPhase.WAITING or (self.phase is AgentPhase.EXITED and not self.job_seen)
            if not free:
                raise Conflict(f"the agent of {self.name} holds the binding {self.binding}")
            self._launch(config.encoded)
        return self.status()


class AgentsPort:
    """`ports.Agents` for one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world

    async def status(self, name: str, address: str) -> AgentStatus | AgentTrouble:
        world = self._world

        def effect() -> AgentStatus | AgentTrouble:
            machine = world.azure.at(address)
            if machine is None or not machine.answers:
                world.checks.evidence.unheard(name)
                return AgentTrouble.SILENT
            if world.faults.during("keys rotated wrongly") or machine.name != name:
                return AgentTrouble.REFUSED
            status = machine.status()
            world.checks.evidence.spoke(name)
            if not status.worker:
                world.checks.evidence.clear(name)
            return status

        try:
            return await self._process.call("agent", effect)
        except RetryLater:
            world.checks.evidence.unheard(name)
            return AgentTrouble.SILENT

    async def start(self, name: str, address: str, config: JitConfig) -> AgentStatus:
        world = self._world

        def effect() -> AgentStatus:
            machine = world.azure.at(address)
            if machine is None or not machine.answers or machine.name != name:
                raise RetryLater(f"the agent of {name} gives no answer", uncertain=True)
            if world.faults.during("keys rotated wrongly"):
                raise RetryLater(f"the agent of {name} refuses our token")
            world.checks.evidence.spoke(name)
            return machine.start(config)

        return await self._process.call("agent", effect, write=True)
