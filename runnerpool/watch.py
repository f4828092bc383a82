"""What a person should know: conditions found in one pass become alerts, each told once and told again when it is over. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta

from runnerpool.capacity import POOL, ladder, next_rung, offers_resting, resting_targets
from runnerpool.config import Config, PoolConfig
from runnerpool.demand import WITHDRAWN
from runnerpool.gather import Gathered
from runnerpool.model import Job, JobState, Runner, RunnerState, Snapshot, Target
from runnerpool.plan import has_left
from runnerpool.ports import AgentTrouble, Alert

RECHECK = timedelta(minutes=2)
"""How long after a rest has ended its condition still stands: the offer is being tried again, and may be refused again."""

NAMED = 20
"""VMs that one alert names."""


def conditions(now: datetime, config: Config, gathered: Gathered) -> list[Alert]:
    """Everything that is wrong now and that a person can do something about."""
    found = [*_services(gathered), *_elsewhere(gathered)]
    pools = {pool.name: pool for pool in config.pools}
    for name, snapshot in gathered.pools.items():
        found += _pool(now, name, snapshot, pools.get(name))
        found += _runners(name, snapshot, gathered)
        found += _withdrawn_in_vain(now, name, snapshot, config.github.targets)
        found += _jobs(now, name, snapshot, pools.get(name))
        found += _unseen(name, snapshot)
    return found


def _services(gathered: Gathered) -> Iterable[Alert]:
    if "agents" in gathered.trouble:
        yield Alert("silence", "network", "no agent answers any more", f"{gathered.trouble['agents']}\nNothing is deleted for it.")
    for service, error in gathered.misconfigured.items():
        area = error.area
        yield Alert(f"service-{service}", area, f"{service} refuses runnerpool", f"{error}\nNothing is deleted meanwhile.")


def _elsewhere(gathered: Gathered) -> Iterable[Alert]:
    """VMs that run on where nobody looks any more."""
    away = [runner for runner in gathered.runners.values() if runner.elsewhere]
    if away:
        places = " and ".join(sorted({runner.place or "" for runner in away}))
        count = "a VM is" if len(away) == 1 else f"{len(away)} VMs are"
        text = (
            f"{_named(runner.name for runner in away)}: made in {places}. The app looks in {gathered.place} now, where it can "
            "neither see nor delete them: they are kept, count against their pools' maximum and cost money.\n"
            f"Set azure.resource_group (which follows name_prefix) and AZURE_SUBSCRIPTION_ID back to {places}, drain the pools "
            "(python -m runnerpool drain --all) until none of these VMs is left, and only then change them. If they are gone for "
            "good, with their group: delete their rows, runner:NAME in the table runnerpool."
        )
        yield Alert("elsewhere", "setup", f"{count} in another resource group", text)


def _named(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:NAMED]) + (" …" if len(listed) > NAMED else "")


def _pool(now: datetime, name: str, snapshot: Snapshot, pool: PoolConfig | None) -> Iterable[Alert]:
    rest = snapshot.head.rests.get(POOL)
    lately = now - RECHECK
    if rest is not None and rest.until > lately:
        text = f"{rest.code}\nIt is tried again at {rest.until:%H:%M} UTC."
        yield Alert(f"pool-{name}", "setup", f"pool {name} makes no VMs", text)
    elif pool is not None and ladder(pool.vm) and next_rung(pool.vm, snapshot.head.rests, lately) is None:
        codes = ", ".join(sorted({rest.code for rest in offers_resting(snapshot.head.rests, lately)}))
        text = f"Azure refused every size and zone of the pool ({codes}). Its jobs wait; other pools go on."
        yield Alert(f"capacity-{name}", "provisioning", f"pool {name} finds no capacity", text)
    for target, refusal in sorted(resting_targets(snapshot.head.rests, lately).items()):
        repository = target.removeprefix("repo:")
        text = f"{refusal.code}\nOnly its jobs wait; the pool's others go on. It is tried again at {refusal.until:%H:%M} UTC."
        title = f"GitHub registers no runner of pool {name} for {repository}"
        yield Alert(f"target-{name}-{repository.replace('/', '-')}", "auth", title, text)
    for row in snapshot.unreadable:
        text = "It was edited by hand or damaged. While it is a runner's row, its pool adds no VMs. Mend or delete it."
        yield Alert(f"row-{name}-{row.replace(':', '-')}", "safety", f"row {row} of pool {name} cannot be read", text)


def _runners(name: str, snapshot: Snapshot, gathered: Gathered) -> Iterable[Alert]:
    refused = sorted(runner for runner in snapshot.runners if gathered.agents.get(runner) is AgentTrouble.REFUSED)
    if refused:
        names = ", ".join(refused[:5]) + (" …" if len(refused) > 5 else "")
        text = f"{names}: was RUNNER_AGENT_KEY changed without RUNNER_AGENT_KEY_PREVIOUS?"
        yield Alert(f"agents-{name}", "auth", f"{len(refused)} agents of pool {name} refuse our token", text)


def _withdrawn_in_vain(now: datetime, name: str, snapshot: Snapshot, targets: Collection[Target]) -> Iterable[Alert]:
    """VMs that nobody may delete, one alert a target: as a rule the target is what has gone."""
    stuck: dict[str, list[Runner]] = defaultdict(list)
    for runner in snapshot.runners.values():
        if runner.state is RunnerState.RETIRING and now - runner.since > WITHDRAWN and not runner.elsewhere:
            stuck[runner.target or "no target"].append(runner)
    for target, runners in stuck.items():
        names = _named(runner.name for runner in runners)
        count = "a VM" if len(runners) == 1 else f"{len(runners)} VMs"
        text = f"{names}: {runners[0].reason}\n{_way_out(target, runners, targets)}"
        title = f"{count} of pool {name}, registered at {target}, cannot be withdrawn"
        yield Alert(f"retiring-{name}-{re.sub('[^A-Za-z0-9._-]', '-', target)}", "safety", title, text)


def _way_out(target: Target, runners: Collection[Runner], targets: Collection[Target]) -> str:
    """What a person can do about VMs of one target that have been retiring for long. Only they can know that no job runs there."""
    delete = "Where you are sure that no job runs on a VM, delete the VM in Azure."
    if all(runner.deregistered_at is not None for runner in runners):
        why = "and its agent, which does not take our token or was not asked, has not said that no job runs"
        return f"The registration is removed, {why}. {delete}"
    row = "The row of a VM that is gone goes by itself 20 minutes later."
    there = f"{delete} {row}" if any(runner.absent_since is None for runner in runners) else row
    if has_left(target, targets):
        return f"{target} has left the pool file, and GitHub cannot be asked about it; no VM is deleted for that. {there}"
    gone = f"If {target} is gone for good, take it out of the pool file (github) and deploy; else mend what GitHub says."
    return f"GitHub has not removed the registration, and before that no VM is deleted. {gone} {there}"


def _jobs(now: datetime, name: str, snapshot: Snapshot, pool: PoolConfig | None) -> Iterable[Alert]:
    for job in snapshot.jobs.values():
        if job.runner_name in snapshot.runners and not job.demand and job.state is not JobState.COMPLETED:
            text = f"{job.repository} is not among the repositories that this deployment serves. Check the runner group's access."
            yield Alert(f"foreign-{job.job_id}", "safety", f"a foreign job runs on {job.runner_name}", text)
        running = job.state is JobState.IN_PROGRESS and job.started_at is not None and _busy(snapshot, job)
        if running and pool is not None and job.started_at is not None and now - job.started_at > pool.job_timeout:
            text = (
                f"{job.repository}'s job {job.job_id} on {job.runner_name} is beyond its pool's job_timeout. Cancel it at GitHub."
            )
            yield Alert(f"overdue-{job.job_id}", "safety", f"a job of pool {name} runs too long", text)


def _unseen(name: str, snapshot: Snapshot) -> Iterable[Alert]:
    """A running job is not asked about; what GitHub answered before it started says nothing about now."""
    unseen = [job for job in snapshot.jobs.values() if job.unseen_since is not None and job.demand and not _busy(snapshot, job)]
    repositories = sorted({job.repository for job in unseen if job.state is not JobState.COMPLETED})
    if repositories:
        names = ", ".join(repositories[:5]) + (" …" if len(repositories) > 5 else "")
        text = (
            f"{names}: GitHub does not show waiting jobs, nor any others: the credential lacks 'Actions: read' there (is it "
            "limited to selected repositories?), or the repository was deleted.\nA job whose delivery came in time gets its VM all "
            "the same; one whose delivery came late, or that waited for an approval, gets none until GitHub can be asked about it."
        )
        yield Alert(f"unseen-{name}", "auth", f"pool {name} cannot ask GitHub about jobs of {names}", text)


def _busy(snapshot: Snapshot, job: Job) -> bool:
    runner = snapshot.runners.get(job.runner_name or "")
    return runner is not None and runner.state is RunnerState.BUSY


def changed(found: Iterable[Alert], told: Mapping[str, str], unread: Iterable[str] = ()) -> tuple[list[Alert], list[str]]:
    """The alerts to send now, and the ids of those that are over. `told` maps the ids already told to their titles; what
    begins with one of `unread` could not be looked at in this pass, and so is not over."""
    current = {alert.id: alert for alert in found}
    over = [gone for gone in told if gone not in current and not gone.startswith(tuple(unread))]
    return [alert for alert in current.values() if alert.id not in told], over


def unread(gathered: Gathered) -> list[str]:
    """The beginnings of the alert ids about which this pass knows nothing."""
    agents = ["agents-"] if gathered.nics is None or "agents" in gathered.trouble else []
    return agents + [f"service-{service}" for service in gathered.trouble if service not in gathered.misconfigured]
