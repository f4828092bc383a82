"""What every decision is held to, written down once more from the design's text: nothing here asks the code that it judges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from runnerpool.actions import Create, Delete, Forget
from runnerpool.capacity import ladder, resting, resting_targets
from runnerpool.config import PoolConfig
from runnerpool.decide import Decision
from runnerpool.explain import reasons
from runnerpool.lifecycle import Seen, World
from runnerpool.model import TRANSITIONS, Job, JobState, Runner, RunnerState, Snapshot
from runnerpool.ports import AgentStatus, AgentTrouble
from tests.small_world import SmallWorld

S = RunnerState
UNDER_WAY = {S.REQUESTED, S.CREATING, S.BOOTING, S.READY, S.BINDING, S.REGISTERED}


def _reachable() -> Mapping[RunnerState, set[RunnerState]]:
    """From each state, where any number of arrows leads: one decision may take several."""
    found = {state: {state, *TRANSITIONS[state]} for state in RunnerState}
    for _ in RunnerState:
        found = {state: {end for step in found[state] for end in found[step]} for state in RunnerState}
    return found


REACHABLE = _reachable()


def counting(rows: Iterable[Runner], now: datetime) -> int:
    """Rows whose VM may exist and whose deletion Azure has not accepted, or whose PUT may still arrive."""
    return sum(row.delete_accepted_at is None or (row.put_until is not None and now < row.put_until) for row in rows)


def check_rows(before: Mapping[str, Runner], after: Mapping[str, Runner], new: RunnerState | None = S.REQUESTED) -> None:
    """Every step of every row is in the table, and none is dropped of which a VM may be left."""
    for name, row in after.items():
        if name in before:
            assert row.state in REACHABLE[before[name].state], f"{name}: {before[name].state} -> {row.state}"
        else:
            assert row.state is new
    for name in before.keys() - after.keys():
        assert before[name].state not in (S.CREATING, S.FINISHED), f"{name} was dropped as {before[name].state}"


@dataclass
class Evidence:
    """What rule 1 may rest on, beside what the world knows: who was told to have completed, and how long agents were silent."""

    completed: set[str] = field(default_factory=set)
    silent_since: dict[str, datetime] = field(default_factory=dict)

    def hear(self, seen: Seen, rows: Mapping[str, Runner]) -> None:
        """The agents' words of one look, in the order of the looks."""
        for name, word in seen.agents.items():
            if word is not AgentTrouble.SILENT:
                self.silent_since.pop(name, None)
            elif seen.at is not None and name in rows:
                accepted = rows[name].accepted_at or rows[name].created_at
                self.silent_since.setdefault(name, seen.at if rows[name].answered_at else accepted)

    def check_rule_1(self, decision: Decision, seen: Seen, world: SmallWorld) -> None:
        """Before any VM delete: a `completed` fact named this runner; or no JIT config was ever minted for it; or GitHub's
        DELETE was answered 204 (or a confirmed 404) and after that the agent saw no job worker running, or has been silent
        for 15 minutes."""
        for name, row in decision.runners.items():
            old = decision.before.runners.get(name)
            if row.state is not S.DELETING or (old is not None and old.state is S.DELETING):
                continue
            if name in self.completed or name not in world.minted:
                continue
            word, gone = seen.agents.get(name), world.proved_gone.get(name)
            assert gone is not None, f"{name} is deleted ({row.basis}) while it may be registered"
            if isinstance(word, AgentStatus):
                assert seen.at is not None
                assert seen.at > gone, f"{name}: its agent was asked before its registration was gone"
                assert not word.worker, f"{name}: its agent saw a job worker"
            else:
                assert word is AgentTrouble.SILENT, f"{name}: its agent was not asked"
                assert world.now - self.silent_since[name] >= timedelta(minutes=15), f"{name}: its agent answered lately"


def removed(decision: Decision) -> set[str]:
    return {action.runner for action in decision.actions if isinstance(action, Delete | Forget)}


def check_that_ignorance_removes_nothing(less: Decision, full: Decision) -> None:
    """`less` knew less than `full`. What it alone removes is what the ledger itself says that nobody needs: an intent, or an
    idle VM that was never registered, whose need the witnesses would have changed."""
    for name in removed(less) - removed(full):
        row = less.before.runners[name]
        idle = row.state is S.REQUESTED or (row.state is S.READY and row.minted_at is None)
        assert idle, f"{name}, {row.state}, goes only where less is known: {[str(action) for action in less.actions]}"


def adds(decision: Decision) -> bool:
    return any(isinstance(action, Create) for action in decision.actions)


# ---------------------------------------------------------------------------------------------- reasons


def check_reasons(now: datetime, pool: PoolConfig, rows: Snapshot) -> None:
    """Every job that waits for a runner has a sentence, and the sentence is true of the rows."""
    world = World(dict(rows.jobs), dict(rows.runners), {}, {}, rows.head.usual)
    told = reasons(now, pool, rows.head, world)
    for job in rows.jobs.values():
        if job.state in (JobState.QUEUED, JobState.WAITING) and job.demand:
            assert job.job_id in told, f"nobody says why job {job.job_id} waits"
            assert _true(now, pool, rows, job, told[job.job_id]), f"job {job.job_id} is told: {told[job.job_id]}"


def _true(now: datetime, pool: PoolConfig, rows: Snapshot, job: Job, sentence: str) -> bool:
    head, runners = rows.head, list(rows.runners.values())
    alive = [row for row in runners if row.state in UNDER_WAY]
    fit = [row for row in alive if row.target in (None, job.target)]
    waiting = [other for other in rows.jobs.values() if other.wants_runner]
    full = counting(runners, now) >= pool.maximum_pool_size
    regular = job.rerun_of is not None
    claims = {
        "GitHub has answered 404": job.missing_since is not None,
        "GitHub has shown no job": job.unseen_since is not None,
        "GitHub registers no runner": job.target in resting_targets(head.rests, now),
        "approval": job.state is JobState.WAITING,
        "minutes late": not job.trusted,
        "being drained": head.draining,
        "is paused": head.paused,
        "at its maximum": full,
        "until": any(resting(rung, head.rests, now) for rung in ladder(pool.vm, regular=regular)),
        "in vain": job.vms_made >= 3,
        "GitHub does not use them": any(row.state is S.REGISTERED and row.online_at for row in fit),
        "GitHub has not given it the job yet": bool(fit),
        "its VM": any(row.job_id == job.job_id for row in fit),
        "the next planning pass": len(waiting) < pool.scale_up_trigger_threshold and now - job.received_at < timedelta(seconds=30),
    }
    said = [holds for words, holds in claims.items() if words in sentence]
    return bool(said) and all(said)
