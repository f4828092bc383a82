"""What must hold once everything is healed: the liveness invariants, read off the services and the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from runnerpool import rows
from runnerpool.model import RunnerState
from runnerpool.ports import VmState
from tests.sim.checks import OURS
from tests.sim.loop import EPOCH
from tests.sim.scenario import HOUR, MINUTE, PREFIX, warm_wanted

if TYPE_CHECKING:
    from runnerpool.config import PoolConfig
    from tests.sim.github import SimJob
    from tests.sim.world import World

WASTE = 1.25
"""What faults may add: VMs that boot in vain, are evicted, or wait for a silent service."""
IDLE = {RunnerState.READY, RunnerState.REGISTERED}


def unsettled(world: World) -> list[tuple[int, str]]:
    """What is not yet as it should be, with the invariant that it would break."""
    return [*_jobs(world), *_fleet(world), *_registrations(world), *_messages(world)]


def _jobs(world: World) -> Iterable[tuple[int, str]]:
    for job in world.github.jobs.values():
        if job.status != "completed":
            yield 10, f"job {job.plan.job_id} is {job.status}, made at {job.plan.at:.0f} s"


def _fleet(world: World) -> Iterable[tuple[int, str]]:
    runners = {}
    jobs = Counter[str]()
    for entity in world.table.everything():
        if entity.row.startswith("runner:"):
            runner = rows.runner_from_columns(entity.columns, entity.etag)
            runners[runner.name] = runner
        elif entity.row.startswith(("job:", "fact:")):
            jobs[entity.partition] += 1
    ours = {name: vm for name, vm in world.azure.vms.items() if vm.tags.get("runnerpool") == PREFIX and OURS.fullmatch(name)}
    for name in ours.keys() - runners.keys():
        yield 11, f"VM {name} has no row"
    for name in runners.keys() - ours.keys():
        yield 11, f"row {name} ({runners[name].state}: {runners[name].reason}) has no VM"
    for nic in world.azure.nics.values():
        owner = nic.name.removesuffix("-nic")
        if owner in world.checks.names and owner not in ours:
            yield 11, f"NIC {nic.name} has no VM"
    for pool in world.scenario.config.pools:
        mine = [runner for runner in runners.values() if runner.pool == pool.name]
        wanted = warm_wanted(pool, world.now())
        states = Counter(str(runner.state) for runner in mine)
        if len(mine) != wanted or any(runner.state not in IDLE for runner in mine):
            yield 13, f"pool {pool.name} has {dict(states)}, wanted are {wanted} warm"
        if jobs[pool.name]:
            yield 13, f"pool {pool.name} keeps {jobs[pool.name]} rows of jobs or facts"
    for name, vm in ours.items():
        if name in runners and vm.state is not VmState.SUCCEEDED:
            yield 13, f"VM {name} is {vm.state}"
        elif vm.machine is not None and not vm.machine.answers:
            yield 13, f"the agent of {name} is silent, and it is kept"


def _registrations(world: World) -> Iterable[tuple[int, str]]:
    for runner in world.github.runners.values():
        if not runner.foreign and not runner.online and runner.name not in world.azure.vms:
            yield 12, f"registration {runner.name} is offline and has no VM"


def _messages(world: World) -> Iterable[tuple[int, str]]:
    if world.host.queue:
        yield 15, f"{len(world.host.queue)} messages are still in the queue"


def allowed_hours(world: World) -> float:
    """VM-hours that the day may cost: each job's time with a boot and an idle VM's end, the warm minimum, and an hour a pool;
    and the VMs that are made in vain for a job that a runner group does not admit, as the design has it."""
    config = world.scenario.config
    slowest = max(world.scenario.boot.values()) * 1.3
    idle = max(pool.idle_timeout.total_seconds() for pool in config.pools)
    jobs = sum(job.plan.seconds + (1 + _in_vain(world, job)) * (slowest + idle + 300) for job in world.github.jobs.values())
    minutes = range(0, int(world.loop.time() / 60), 10)
    warm = sum(warm_wanted(pool, EPOCH + timedelta(minutes=minute)) / 6 for pool in config.pools for minute in minutes)
    return jobs / 3600 + 1.1 * warm + len(config.pools)


def _most_vms(world: World) -> int:
    """One for each job that came to be queued, one more for each that another pool's VM took, and those that are kept warm
    each time that a pool begins to keep more."""
    pools = world.scenario.config.pools
    hours = range(int(world.loop.time() / HOUR) + 1)
    levels = [[warm_wanted(pool, EPOCH + timedelta(hours=hour)) for hour in hours] for pool in pools]
    rises = sum(max(b - a, 0) for level in levels for a, b in pairwise([0, *level]))
    jobs = world.github.jobs.values()
    return len(jobs) + sum(_taken_by_another_pool(pools, job) for job in jobs) + rises


def _taken_by_another_pool(pools: Sequence[PoolConfig], job: SimJob) -> bool:
    """GitHub may give a job to a VM with more labels than it asks for. The one that was made for it then waits in vain, and
    the job that the other VM was made for needs a further one."""
    wanted = {label.lower() for label in job.plan.labels} - {"self-hosted"}
    serving = [pool for pool in pools if wanted <= {label.lower() for label in pool.labels}]
    its_own = min(serving, key=lambda pool: len({*pool.labels} - {"self-hosted"}))
    return job.runner is not None and job.runner.name.rpartition("-")[0] != f"{PREFIX}-{its_own.name}"


def _in_vain(world: World, job: SimJob) -> float:
    """How many VMs may be made for a job while its repository is not admitted: three, and one more every ten minutes."""
    if job.plan.repository != world.scenario.refused_repository:
        return 0.0
    queued = (job.created_at - EPOCH).total_seconds()
    over = job.started_at or job.completed_at or world.now()
    spans = [(start, min(end, (over - EPOCH).total_seconds())) for start, end in world.faults.windows["group refuses"]]
    waited = sum(max(end - max(start, queued), 0.0) for start, end in spans)
    return 3 + waited / 600 if waited else 0.0


def _owed_a_run(world: World) -> Iterable[SimJob]:
    """The jobs that spot VMs took with them, where every pool runs such jobs again, and that nobody ran again.

    Not where nobody could see that the VM was gone before it was to be deleted: where a PUT that was long on its way made it
    anew at once, or where Azure did not answer as the job came to its end.
    """
    if not all(pool.rerun_evicted for pool in world.scenario.config.pools):
        return
    runs = Counter(job.plan.run_id for job in world.github.jobs.values())
    for job in world.github.jobs.values():
        machine = job.runner.machine if job.runner is not None else None
        if machine is None or not machine.taken or not job.lost or job.plan.cancelled_after is not None:
            continue
        again = runs[job.plan.run_id] > 1 or job.plan.job_id in world.github.rerun
        if not again and world.checks.names[machine.name] == 1 and not _ended_unseen(world, job):
            yield job


def _ended_unseen(world: World, job: SimJob) -> bool:
    ended = ((job.completed_at or world.now()) - EPOCH).total_seconds()
    outages = world.faults.windows["azure down"] + world.faults.windows["azure silent"]
    return any(start < ended + 2 * MINUTE and ended < end for start, end in outages)


def reckoning(world: World) -> Iterable[tuple[int, str]]:
    """What is judged once, at the end."""
    hours, allowed = world.vm_hours(), allowed_hours(world)
    if hours > allowed * (WASTE if world.faulty else 1.0):
        yield 14, f"{hours:.1f} VM-hours for what may cost {allowed:.1f}"
    if not world.faulty and world.azure.made > (most := _most_vms(world)):
        yield 14, f"{world.azure.made} VMs were made where {most} would do"
    for job in _owed_a_run(world):
        yield 10, f"job {job.plan.job_id} was lost with {job.runner.name if job.runner else ''} and is not run again"
    poisoned = {entity.row: entity.columns for entity in world.table.everything() if entity.row.startswith("poison:")}
    for message in world.host.poisoned:
        row = f"poison:m{message.number}"
        if not message.began or row in world.checks.taken_back:
            continue  # it died before its first call was answered, or after it had done its work
        said = poisoned.get(row, {})
        if not (said.get("error") and said.get("message") == message.body.decode()):
            yield 15, f"message {message.number} failed for good without a row that says so: {said}"
