"""What the sandbox's Azure and GitHub have on record of a demo, and whether that is as it should be. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from runnerpool.config import PoolConfig

State = Mapping[str, Any]
"""What `GET /_admin/state` answers."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the demo asked for. `pool_of` maps a job's id to the pool that has to run it; `replayed` are job ids with the action
    whose delivery was to be sent twice and late."""

    pool_of: Mapping[int, str]
    cancelled: frozenset[int]
    replayed: Mapping[int, str]
    evicted: frozenset[int] = frozenset()  # jobs whose VM was taken away: each has to be run again, on a regular one


@dataclass(frozen=True, slots=True)
class Tally:
    """One pool in numbers. `waits` are the seconds from a job's creation to its start, in ascending order."""

    pool: str
    completed: int
    cancelled: int
    vms_made: int
    peak: int
    left: int
    waits: Sequence[float]


class Records:
    """The two states, read."""

    def __init__(self, *, arm: State, github: State) -> None:
        self.jobs: dict[int, State] = {job["id"]: job for job in github["jobs"]}
        self.runners: Sequence[State] = github["runners"]
        self.deliveries: Sequence[State] = github.get("deliveries", ())
        self.vms: Sequence[State] = arm["vms"]
        self.peaks: Mapping[str, int] = arm["peaks"]
        self.log: Sequence[State] = arm["log"]
        self.spot = {entry["vm"] for entry in self.log if entry["event"] == "accepted" and entry.get("detail") == "spot"}
        self.pool_of_vm = {entry["vm"]: entry["pool"] for entry in arm["log"] if entry["event"] == "accepted"}

    @property
    def replays(self) -> int:
        return sum(attempt["redelivery"] for attempt in self.deliveries)

    def second_attempt(self, job_id: int) -> State | None:
        """The job that GitHub made when it was asked to run this one again."""
        first = self.jobs[job_id]
        for job in self.jobs.values():
            if (job["run_id"], job["name"]) == (first["run_id"], first["name"]) and job["attempt"] > first["attempt"]:
                return job
        return None

    def _last_attempt(self, job: State, order: Order) -> State:
        again = self.second_attempt(job["id"]) if job["id"] in order.evicted else None
        return again or job

    def told(self, job_id: int) -> bool:
        """Whether a delivery said that this job is over."""
        said = [one for one in self.deliveries if (one["job"], one["action"]) == (job_id, "completed")]
        return any(one["status"] != "dropped" for one in said)

    def registered_again(self, name: str, runner_id: int) -> bool:
        """Whether this name has, or ran a job with, another registration than this one."""
        now = [(runner["name"], runner["id"]) for runner in self.runners]
        then = [(job["runner_name"], job["runner_id"]) for job in self.jobs.values()]
        return any(known == name and other != runner_id for known, other in now + then)

    def left(self, pool: str) -> int:
        """VMs of the pool that Azure still has, those that are being deleted included."""
        return sum(vm["pool"] == pool for vm in self.vms)

    def tally(self, pool: str, order: Order) -> Tally:
        jobs = [self.jobs[job_id] for job_id, wanted in order.pool_of.items() if wanted == pool]
        waits = [_moment(job["started_at"]) - _moment(job["created_at"]) for job in jobs if job["started_at"]]
        return Tally(
            pool=pool,
            completed=sum(self._last_attempt(job, order)["conclusion"] == "success" for job in jobs),
            cancelled=sum(job["conclusion"] == "cancelled" for job in jobs),
            vms_made=sum(made_for == pool for made_for in self.pool_of_vm.values()),
            peak=self.peaks.get(pool, 0),
            left=self.left(pool),
            waits=sorted(waits),
        )

    def settled(self, order: Order, pools: Sequence[PoolConfig]) -> bool:
        """Whether every job is over, and every pool has exactly its warm minimum with nothing under way."""
        over = all(self.jobs[job_id]["status"] == "completed" for job_id in order.pool_of)
        over = over and not any(self._faults_of_evicted(job_id, order.pool_of[job_id]) for job_id in order.evicted)
        calm = all(vm["power"] == "running" and not vm["delete_accepted"] for vm in self.vms)
        return over and calm and all(self.left(pool.name) == pool.minimum_warm_vms for pool in pools)

    def faults(self, order: Order, pools: Sequence[PoolConfig]) -> list[str]:
        """Everything that is not as it should be; nothing is what a demo hopes for."""
        found = [fault for job_id in order.pool_of for fault in self._faults_of_job(job_id, order)]
        used = Counter(job["runner_name"] for job in self.jobs.values() if job["runner_name"])
        found += [f"VM {name} ran {times} jobs" for name, times in used.items() if times > 1]
        for pool in pools:
            if self.peaks.get(pool.name, 0) > pool.maximum_pool_size:
                found.append(f"pool {pool.name} had {self.peaks[pool.name]} VMs, its maximum is {pool.maximum_pool_size}")
            if self.left(pool.name) != pool.minimum_warm_vms:
                found.append(f"pool {pool.name} has {self.left(pool.name)} VMs, its warm minimum is {pool.minimum_warm_vms}")
        known = {vm["name"] for vm in self.vms}
        found += [f"registration {runner['name']} has no VM" for runner in self.runners if runner["name"] not in known]
        found += [f"job {job_id}: its {action} was not sent twice, late" for job_id, action in self._not_replayed(order)]
        return found

    def _faults_of_job(self, job_id: int, order: Order) -> list[str]:
        job, pool = self.jobs[job_id], order.pool_of[job_id]
        if job["status"] != "completed":
            return [f"job {job_id} of {pool} is {job['status']}"]
        if job_id in order.cancelled:
            return [] if job["conclusion"] == "cancelled" else [f"job {job_id} was cancelled and ended as {job['conclusion']}"]
        if job_id in order.evicted:
            return self._faults_of_evicted(job_id, pool)
        ran_in = self.pool_of_vm.get(job["runner_name"])
        if job["conclusion"] != "success":
            return [f"job {job_id} of {pool} ended as {job['conclusion']}"]
        return [] if ran_in == pool else [f"job {job_id} of {pool} ran on {job['runner_name']}, a VM of {ran_in}"]

    def _faults_of_evicted(self, job_id: int, pool: str) -> list[str]:
        again = self.second_attempt(job_id)
        if again is None or again["conclusion"] != "success":
            return [f"job {job_id} of {pool} was lost to an eviction and not run again to its end"]
        runner = again["runner_name"]
        right = self.pool_of_vm.get(runner) == pool and runner not in self.spot
        return [] if right else [f"job {job_id} of {pool} was run again on {runner}, which is no regular VM of its pool"]

    def _not_replayed(self, order: Order) -> list[tuple[int, str]]:
        """Those of which fewer than two attempts were made, or none after the job's last event."""
        missing = []
        for job_id, action in order.replayed.items():
            actions = [attempt["action"] for attempt in self.deliveries if attempt["job"] == job_id]
            late = "completed" in actions and action in actions[actions.index("completed") :]
            if actions.count(action) < 2 or not late:
                missing.append((job_id, action))
        return missing


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
