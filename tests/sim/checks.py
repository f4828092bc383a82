"""The safety invariants, checked at every step against what really is in Azure and at GitHub.

Nothing here asks the code that it judges: the rules are written down once more, from the design's text. The numbers are
those of the list of invariants that the simulation is to prove; 0 is an error that nobody meant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from runnerpool.errors import PoolError
from runnerpool.intake import Receipt
from runnerpool.ports import Alert, Insert, Operation, Remove, VmState
from tests.sim.evidence import Evidence
from tests.sim.github import SECRET, SimJob, SimRunner
from tests.sim.limits import Limits
from tests.sim.scenario import PREFIX

if TYPE_CHECKING:
    from tests.sim.azure import SimNic, SimVm
    from tests.sim.deliveries import Sent
    from tests.sim.machines import Machine
    from tests.sim.world import World

OURS = re.compile(rf"{PREFIX}-[a-z0-9-]+-[a-z0-9]{{10}}")

_LATER = {"ready", "binding", "registered", "busy", "finished", "retiring", "failed", "deleting"}
MAY_BECOME: Mapping[str, Collection[str]] = {
    "requested": {"creating"},
    "creating": {"booting", *_LATER},
    "booting": _LATER,
    "ready": _LATER,
    "binding": _LATER,
    "registered": _LATER,
    "busy": {"retiring", "failed", "finished", "deleting"},
    "retiring": {"busy", "failed", "finished", "deleting"},
    "failed": {"busy", "retiring", "finished", "deleting"},
    "finished": {"deleting"},
    "deleting": set(),
}
"""What one write may make of a runner's state: one pass may take several steps at once."""
NEVER_GOES = {"creating", "finished"}
"""States in which a row may not be removed; from the others a single write may lead through `failed` to the end."""


@dataclass(frozen=True, slots=True)
class Violation:
    invariant: int
    text: str
    at: float

    def __str__(self) -> str:
        return f"invariant {self.invariant} at {self.at:.1f} s: {self.text}"


@dataclass(slots=True)
class Checks:
    """Told of every step by the stand-ins."""

    world: World
    violations: list[Violation] = field(default_factory=list)
    remainder: int = 0  # deletions in mid-job that rule 1 knowingly leaves: see evidence.py
    defects: dict[str, int] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)  # how many VMs there were of each
    states: dict[str, str] = field(default_factory=dict)
    watching: list[str] | None = None
    alerts: list[Alert] = field(default_factory=list)
    lost_plans: int = 0  # commits that lost the pool's head to another worker
    for_jobs: Counter[str] = field(default_factory=Counter)  # VMs that a plan asked for, by job
    for_warmth: int = 0  # the same for the warm minimum, without those that Azure had no room for
    taken_back: set[str] = field(default_factory=set)  # rows of wake-ups that went well at their last attempt
    changed_at: float = 0.0  # when something last happened: a fact came or a runner's state changed
    evidence: Evidence = field(init=False)
    limits: Limits = field(init=False)
    _reached: dict[str, str] = field(default_factory=dict)
    _run_again: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.evidence = Evidence(self.world)
        self.limits = Limits(partial(self.broken, 9))

    def broken(self, invariant: int, text: str) -> None:
        violation = Violation(invariant, text, self.world.loop.time())
        self.world.note(f"VIOLATION {violation}")
        self.violations.append(violation)
        self.world.stop()

    # ------------------------------------------------------------------------------------------ 1, 2, 7: deletions

    def vm_deleting(self, name: str, vm: SimVm | None) -> None:
        if vm is None:
            return
        if vm.tags.get("runnerpool") != PREFIX or OURS.fullmatch(name) is None:
            self.broken(7, f"VM {name} is not ours and is deleted")
        machine = vm.machine
        job = machine.runner.job if machine is not None and machine.runner is not None else None
        if machine is not None and machine.running and job is not None and job.status == "in_progress":
            if self.evidence.lost_for_good(machine):
                self.remainder += 1
                job.lost = True
            else:
                self.broken(1, f"VM {name} is deleted while it runs job {job.plan.job_id}")
        if why_not := self.evidence.forbids(name, vm):
            self.broken(2, f"VM {name} is deleted, and {why_not}")

    def nic_deleting(self, nic: SimNic) -> None:
        owner = nic.name.removesuffix("-nic")
        if nic.tags.get("runnerpool") != PREFIX or OURS.fullmatch(owner) is None or owner not in self.names:
            self.broken(7, f"NIC {nic.name} is not ours and is deleted")
        if nic.vm is not None:
            self.broken(7, f"NIC {nic.name} is deleted while {nic.vm} holds it")

    def removing(self, runner: SimRunner) -> None:
        if runner.foreign or OURS.fullmatch(runner.name) is None:
            self.broken(7, f"runner {runner.name} is not ours and is removed")

    # ------------------------------------------------------------------------------------------ 3, 4, 5

    def vm_created(self, vm: SimVm, encoded: str | None) -> None:
        pool = vm.tags["runnerpool-pool"]
        self.names[vm.name] += 1
        self.secret(f"a tag of {vm.name}", str(vm.tags))
        if encoded is not None:
            self._reach(encoded, vm.name)
        alive = sum(
            other.tags.get("runnerpool-pool") == pool and not other.deletion_accepted for other in self.world.azure.vms.values()
        )
        maximum = next((p.maximum_pool_size for p in self.world.scenario.config.pools if p.name == pool), 0)
        if alive > maximum:
            self.broken(3, f"pool {pool} has {alive} VMs, its maximum is {maximum}")

    def vm_requested(self, name: str) -> None:
        """A PUT leaves for Azure. One that left earlier may arrive when its VM has come and gone; none may leave once the
        ledger knows that it came."""
        if name in self.names and self.states.get(name) != "creating" and name not in self.world.azure.vms:
            self.broken(4, f"the name {name} is used again")

    def _reach(self, encoded: str, name: str) -> None:
        if self._reached.setdefault(encoded, name) != name:
            self.broken(4, f"one JIT config reaches {self._reached[encoded]} and {name}")

    def used(self, encoded: str, name: str) -> None:
        self._reach(encoded, name)

    def minted(self, runner: SimRunner) -> None:
        others = [other for other in self.evidence.mints.get(runner.name, []) if other.registered]
        if others:
            self.broken(4, f"{runner.name} is registered at {others[0].target} and at {runner.target}")
        vm = self.world.azure.vms.get(runner.name)
        if vm is not None and vm.machine is not None and vm.machine.jobs:
            self.broken(5, f"VM {runner.name} is registered again after job {vm.machine.jobs[0]}")
        self.evidence.minted(runner)

    def job_begins(self, machine: Machine, job: SimJob) -> None:
        if len(machine.jobs) > 1:
            self.broken(5, f"VM {machine.name} runs a second job, {job.plan.job_id}, after {machine.jobs[0]}")

    def run_again(self, job: SimJob) -> None:
        """Only what was lost to an eviction, and no job's second attempt."""
        machine = job.runner.machine if job.runner is not None else None
        if machine is None or not machine.evicted or job.plan.job_id in self._run_again:
            self.broken(14, f"job {job.plan.job_id} is run again, and no eviction took it")
        self._run_again.add(job.plan.job_id)

    # ------------------------------------------------------------------------------------------ 6: nothing comes in, nothing leaks

    def received(self, sent: Sent, receipt: Receipt) -> None:
        if sent.forged in ("unsigned", "wrongly signed") and (receipt.row or receipt.wakeup or receipt.status < 400):
            self.broken(6, f"a delivery that is {sent.forged} was accepted: {receipt.body}")
        if sent.forged in ("foreign", "public", "unlisted") and (receipt.wakeup or receipt.row):
            self.broken(6, f"the delivery of a repository that is {sent.forged} is demand: {receipt.body}")
        self.secret("an answer", str(receipt.body))
        if receipt.row is None:
            return
        self.secret("a delivery's row", str(receipt.row))
        name = re.search(r'"runner_name":"([^"]+)"', str(receipt.row))
        if receipt.status < 300 and name and '"completed"' in str(receipt.row):
            self.evidence.completed.add(name[1])
        if receipt.status < 300 and name and '"in_progress"' in str(receipt.row):
            self.evidence.running(name[1])

    def secret(self, where: str, text: str) -> None:
        if SECRET in text:
            self.broken(6, f"{where} holds a secret: {text[:200]}")

    def message(self, body: bytes) -> None:
        self.secret("a queue message", body.decode())

    def told(self, alert: Alert) -> None:
        self.secret("an alert", f"{alert.title} {alert.text}")
        self.alerts.append(alert)

    def invocation_failed(self, what: str, error: BaseException) -> None:
        """The trouble of services is expected, our own is not."""
        errors = list(_leaves(error))
        for one in errors:
            self.secret("an error", str(one))
            if not isinstance(one, PoolError):
                self.broken(0, f"{what}: {type(one).__name__}: {one}")
        self.defects[what] = self.defects.get(what, 0) + 1

    # ------------------------------------------------------------------------------------------ 8: rows

    def written(self, partition: str, operations: Sequence[Operation]) -> None:
        for operation in operations:
            row = operation.row
            if row != "heartbeat" and self.watching is not None:
                self.watching.append(f"{partition}/{row}")
            if row.startswith("fact:"):
                self.changed_at = self.world.loop.time()
            if isinstance(operation, Remove):
                self.taken_back.add(row)
            else:
                self.secret(f"row {row}", "\n".join(map(str, operation.columns.values())))
            if row.startswith("runner:"):
                self._runner_written(row.removeprefix("runner:"), operation)

    def _runner_written(self, name: str, operation: Operation) -> None:
        before = self.states.get(name)
        if isinstance(operation, Remove) or operation.columns["state"] != before:
            self.changed_at = self.world.loop.time()
        if isinstance(operation, Remove):
            vm = self.world.azure.vms.get(name)
            if before in NEVER_GOES or (vm is not None and vm.state is not VmState.DELETING):
                self.broken(8, f"the row of {name} is removed while it is {before}, its VM {vm.state if vm else 'gone'}")
            self.states[name] = "gone"
            self.world.note(f"{name}: {before} -> gone")
            return
        after = str(operation.columns["state"])
        if isinstance(operation, Insert):
            job_id = operation.columns.get("job_id")
            if after == "requested" and job_id is not None:
                self.for_jobs[str(job_id)] += 1
            self.for_warmth += after == "requested" and job_id is None
            if after != "failed" and (before is not None or after != "requested"):
                self.broken(8, f"{name} comes as {after} after it was {before or 'nothing'}")
        elif after != before and after not in MAY_BECOME.get(before or "", ()):
            self.broken(8, f"{name} goes from {before} to {after}")
        if after == "deleting":
            self.evidence.decided(name)
        if operation.columns.get("busy_job"):
            self.evidence.running(name)
        if after != before:
            reason = str(operation.columns.get("reason", ""))
            self.for_warmth -= "job_id" not in operation.columns and reason.startswith("no offer is left") and after == "failed"
            self.world.note(f"{name}: {before} -> {after}: {reason}")
        self.states[name] = after

    def conflicted(self, operations: Sequence[Operation]) -> None:
        """A write that lost to another worker's; on the head when it was a plan's."""
        self.lost_plans += operations[0].row == "pool"

    # ------------------------------------------------------------------------------------------ 9: limits

    def called(self, service: str, *, write: bool, what: str) -> None:
        """A call has reached its service, and is counted there whatever becomes of it."""
        self.limits.count(self.world.loop.time(), service, write=write, what=what)
        if self.watching is not None and write and service in ("github", "azure"):
            self.watching.append(f"{service} {what}")


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
