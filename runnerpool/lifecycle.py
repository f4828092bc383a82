"""What observations make of rows: facts folded into jobs and runners, and a runner held against Azure, its agent and GitHub.

Pure. Each handler looks at one witness and returns the runner as that witness leaves it; a witness that said nothing
(an API error, a list that was not read) changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from runnerpool.labels import pool_of_runner
from runnerpool.model import ALIVE, Fact, Job, Runner, RunnerState, Snapshot, Target, apply_to_runner, merge
from runnerpool.ports import AgentPhase, AgentStatus, AgentTrouble, Registration, Vm, VmState
from runnerpool.watchdog import late, lost

S = RunnerState

SLOW_ACT = timedelta(minutes=10)
"""Past this a runner whose PUT or binding gets nowhere no longer counts as serving: a healthy act takes seconds."""
MUTE = timedelta(minutes=5)
"""A runner whose agent has been silent for this long no longer counts as serving."""
DELETED_LATE = timedelta(minutes=5)
"""A VM that is still there, and not on its way out, this long after Azure accepted its deletion is deleted again."""
LIST_LAG = timedelta(minutes=2)
"""The list of VMs may leave out a new one for a minute; only after this is its absence worth a direct GET."""
STUCK = timedelta(minutes=10)
"""How long a runner may be called busy without a worker before it is given up."""
SHORT = timedelta(minutes=2)
"""A runner program that ends so soon without a job was refused, as where its version is too old: GitHub drops an idle registration
after some minutes."""
REFUSALS = 3
"""Registrations in a row that ended so, after which the VM is given up: another one may have a newer runner."""
NOTICE = timedelta(minutes=10)
"""Azure gives 30 s of notice, and no agent's word keeps its VM out of use for longer than this. A VM that is there so long
after its time was spared, and serves again."""
LOG_KEPT = 2_000
"""Characters of a setup log that are kept: some twenty lines, of which the last ones as a rule name the trouble."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one reconcile pass read. None, or a missing key, means "not read"; it never means "not there"."""

    at: datetime | None = None  # when the agents were polled
    since: Mapping[str, datetime] = field(default_factory=dict)  # `Runner.since`, of the rows that were read before all this
    vms: Mapping[str, Vm] | None = None  # Azure's list
    direct: Mapping[str, Vm | None] = field(default_factory=dict)  # direct GETs; None is a 404
    addresses: Mapping[str, str] | None = None  # by VM name, from the NICs
    agents: Mapping[str, AgentStatus | AgentTrouble] = field(default_factory=dict)
    registrations: Mapping[Target, Mapping[str, Registration]] = field(default_factory=dict)  # whole lists, by runner name

    def vm(self, name: str) -> Vm | None:
        """The VM where anything showed it; a direct GET knows better than the list."""
        if name in self.direct:
            return self.direct[name]
        return (self.vms or {}).get(name)


NOTHING_SEEN = Seen()
NOTHING_USUAL: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class World:
    """A pool's rows with every fact folded in. `consumed` are the keys of the facts that need no row any more, `foreign`
    those whose runner belongs to another pool, by that pool's name."""

    jobs: dict[str, Job]
    runners: dict[str, Runner]
    consumed: dict[str, Fact]
    foreign: dict[str, dict[str, Fact]]
    usual: Mapping[str, float] = field(default_factory=dict)  # seconds that a phase of a boot usually takes: `watchdog.py`


def fold(snapshot: Snapshot, now: datetime, *, prefix: str) -> World:
    """Merges every fact of the partition into its job and the runner that it names. `prefix` begins our runners' names."""
    pool = snapshot.head.pool
    world = World(dict(snapshot.jobs), dict(snapshot.runners), dict(snapshot.facts), {}, snapshot.head.usual)
    for key, fact in snapshot.facts.items():
        if f"job:{fact.job_id}" in snapshot.unreadable:
            del world.consumed[key]  # it waits until somebody has mended the row; the runner need not
        elif fact.pool == pool:
            world.jobs[fact.job_id] = merge(world.jobs.get(fact.job_id), fact)
        if not fact.runner_name:
            continue
        if fact.runner_name in world.runners:
            world.runners[fact.runner_name] = apply_to_runner(world.runners[fact.runner_name], fact, now)
            continue
        owner = pool_of_runner(fact.runner_name, prefix)
        if owner is not None and owner != pool and fact.pool == pool:
            world.foreign.setdefault(owner, {})[key] = fact
    return world


def advance(now: datetime, runner: Runner, seen: Seen, usual: Mapping[str, float] = NOTHING_USUAL) -> Runner:
    """The runner as this pass's witnesses leave it. `usual` is what its pool has learned of boots: `watchdog.py`."""
    after = _witnessed(now, runner, seen, usual)
    word = seen.agents.get(runner.name)
    if after.state is S.FAILED and runner.state is not S.FAILED and isinstance(word, AgentStatus) and word.log:
        return replace(after, log_tail="\n".join(word.log)[-LOG_KEPT:])
    return after


def elsewhere(runner: Runner, place: str) -> bool:
    """Whether its VM was made in another group or subscription than `place`, where we look; "" is nowhere in particular."""
    return bool(place) and runner.place is not None and runner.place.lower() != place.lower()


def located(runner: Runner, seen: Seen, place: str) -> Runner:
    """The runner with whether its VM is where we look. What Azure shows here is here: a VM can be moved, and a row may be from
    before places were written."""
    if not place:
        return runner
    if seen.vm(runner.name) is not None and (runner.place is None or elsewhere(runner, place)):
        runner = replace(runner, place=place)
    away = elsewhere(runner, place) or None
    return runner if away is runner.elsewhere else replace(runner, elsewhere=away)


def _witnessed(now: datetime, runner: Runner, seen: Seen, usual: Mapping[str, float]) -> Runner:
    if runner.state in (S.REQUESTED, S.FINISHED, S.DELETING):
        return _deletion_undone(now, _absence(now, runner, seen), seen.vm(runner.name))
    runner = _absence(now, runner, seen)
    if runner.absent_since is not None:
        return runner  # what GitHub still says of it lags behind
    stale = seen.since.get(runner.name, runner.since) != runner.since  # it has moved since the witnesses were asked
    runner = _azure(now, runner, seen.vm(runner.name))
    runner = _address(runner, seen.addresses)
    word = seen.agents.get(runner.name)
    if not stale or (isinstance(word, AgentStatus) and word.worker):
        runner = _agent(now, runner, word)
    if runner.target is not None and not stale:
        runner = _github(now, runner, seen.registrations.get(runner.target))
    # Given up only where its agent was asked in this very pass: a wake-up has asked nobody, and could not keep the log's end.
    return runner if word is None else _deadlines(now, runner, usual)


def _absence(now: datetime, runner: Runner, seen: Seen) -> Runner:
    """Only a direct GET's 404 proves that a VM is not there, and only once no PUT can bring it any more."""
    if seen.vm(runner.name) is not None:
        return replace(runner, absent_since=None) if runner.absent_since else runner
    if runner.name not in seen.direct or (runner.put_until is not None and now < runner.put_until):
        return runner
    runner = runner if runner.absent_since else replace(runner, absent_since=now)
    if runner.state is S.BUSY or runner.state in ALIVE - {S.REQUESTED, S.CREATING}:
        return runner.move(S.FAILED, now, "its VM is gone: evicted, or deleted by somebody else")
    return runner


def _deletion_undone(now: datetime, runner: Runner, vm: Vm | None) -> Runner:
    """Azure accepted its deletion and did not carry it out, or a PUT arrived after it: it is to be deleted again."""
    accepted = runner.delete_accepted_at
    if accepted is None or vm is None or vm.state is VmState.DELETING or now - accepted < DELETED_LATE:
        return runner
    return replace(runner, delete_accepted_at=None)


def _azure(now: datetime, runner: Runner, vm: Vm | None) -> Runner:
    if vm is None or runner.state not in ALIVE:
        return runner
    accepted = runner.accepted_at or vm.created_at  # the worker that was to write it down may have died
    if vm.state is VmState.FAILED:
        why = f"Azure could not provision it: {vm.error_code or 'no code'} {vm.error}".strip()[:500]
        return runner.move(S.FAILED, now, why, accepted_at=accepted)
    if vm.power in ("stopped", "deallocated") and vm.state is VmState.SUCCEEDED:
        return runner.move(S.FAILED, now, f"its VM is {vm.power}", accepted_at=accepted)
    if vm.power == "running" and runner.state is S.BOOTING and runner.running_at is None:
        return replace(runner, running_at=now)
    return runner


def _address(runner: Runner, addresses: Mapping[str, str] | None) -> Runner:
    found = (addresses or {}).get(runner.name)
    return replace(runner, address=found) if found and found != runner.address else runner


def _agent(now: datetime, runner: Runner, word: AgentStatus | AgentTrouble | None) -> Runner:
    if word is None or runner.state is S.CREATING:
        return runner
    if word is AgentTrouble.SILENT:
        return replace(runner, silent_since=now) if runner.answered_at and not runner.silent_since else runner
    if runner.silent_since is not None or runner.answered_at is None:
        runner = replace(runner, silent_since=None, answered_at=runner.answered_at or now)
    if runner.running_at is None and runner.state is S.BOOTING:
        runner = replace(runner, running_at=now)
    if isinstance(word, AgentStatus) and word.eviction_at is not None and runner.spot and runner.eviction_at is None:
        runner = replace(runner, eviction_at=min(word.eviction_at, now + NOTICE))
    if not isinstance(word, AgentStatus):
        return runner  # a 401 is not its death, and says nothing else
    if runner.state in (S.BUSY, S.RETIRING, S.FAILED):
        return _agent_of_withdrawn(now, runner, word)
    if word.worker or word.phase is AgentPhase.BUSY or word.job_seen:
        ended = now if word.phase is AgentPhase.EXITED and not word.worker else None
        return runner.move(S.BUSY, now, "its agent saw a job", busy_at=runner.busy_at or now, exited_at=ended)
    return _agent_without_job(now, runner, word)


def _agent_of_withdrawn(now: datetime, runner: Runner, word: AgentStatus) -> Runner:
    if word.worker:
        if runner.state is S.BUSY:
            return replace(runner, exited_at=None) if runner.exited_at else runner
        return runner.move(S.BUSY, now, "its agent sees a job worker", busy_at=runner.busy_at or now)
    if runner.state is S.BUSY and word.phase is AgentPhase.EXITED and runner.exited_at is None:
        return replace(runner, exited_at=now)
    return runner


def _agent_without_job(now: datetime, runner: Runner, word: AgentStatus) -> Runner:
    """BOOTING, READY, BINDING or REGISTERED, and no sign of a job."""
    if word.runner_version and word.runner_version != runner.runner_version:
        runner = replace(runner, runner_version=word.runner_version)
    ready = runner.ready_at or now
    if word.phase is AgentPhase.LISTENING:
        if word.binding is None or word.binding != runner.github_id:
            return _strange_binding(now, runner, word)
        if runner.state is not S.REGISTERED:
            return runner.move(S.REGISTERED, now, "its runner listens", ready_at=ready, online_at=now)
        return runner if runner.online_at else replace(runner, online_at=now, ready_at=ready)
    if word.phase is AgentPhase.WAITING and runner.state is S.BOOTING and runner.minted_at is None:
        return runner.move(S.READY, now, "its agent waits for a binding", ready_at=ready)
    if word.phase is AgentPhase.WAITING and runner.state is S.BOOTING:
        return runner.move(S.FAILED, now, "it was created with a JIT config, and its agent has none")
    if word.phase is AgentPhase.WAITING and runner.state is S.REGISTERED:
        return runner.move(S.FAILED, now, "its agent has lost the JIT config that it was given")
    if word.phase is AgentPhase.EXITED and runner.state in (S.BOOTING, S.REGISTERED):
        if runner.target is None:
            return runner.move(S.FAILED, now, "its runner ended without ever being bound")
        return _ended_without_job(now, runner, ready)
    return runner


def _ended_without_job(now: datetime, runner: Runner, ready: datetime) -> Runner:
    """Its VM can be bound again: at once where an idle registration was dropped, later and later where none lasted."""
    if now - runner.since >= SHORT:
        return runner.move(S.READY, now, "GitHub dropped its idle registration", ready_at=ready, online_at=None, refused=0)
    refused = runner.refused + 1
    version = runner.runner_version or "of its image"
    why = f"its runner ended at once without a job, {refused} times: does GitHub still take the version {version}?"
    if refused >= REFUSALS:
        return runner.move(S.FAILED, now, why, refused=refused)
    pause = now + (refused - 1) * SHORT
    return runner.move(S.READY, now, why, ready_at=ready, online_at=None, refused=refused, not_before=pause)


def _strange_binding(now: datetime, runner: Runner, word: AgentStatus) -> Runner:
    """It listens under a registration that its row does not know: an act in flight may be about to write it."""
    if runner.state is S.BINDING or (runner.claimed_until and now < runner.claimed_until):
        return runner
    return runner.move(S.FAILED, now, f"it listens as GitHub runner {word.binding}, its row knows {runner.github_id}")


def _github(now: datetime, runner: Runner, registrations: Mapping[str, Registration] | None) -> Runner:
    if registrations is None:
        return runner
    found = registrations.get(runner.name)
    if found is None:
        return runner
    if found.busy and runner.state in (S.BOOTING, S.BINDING, S.REGISTERED, S.RETIRING, S.FAILED):
        return runner.move(S.BUSY, now, "GitHub lists it as busy", busy_at=runner.busy_at or now)
    if found.online and runner.state is S.REGISTERED and runner.online_at is None:
        return replace(runner, online_at=now, ready_at=runner.ready_at or now)
    return runner


def _deadlines(now: datetime, runner: Runner, usual: Mapping[str, float]) -> Runner:
    if why := lost(now, runner, usual):
        return runner.move(S.FAILED, now, why)
    silent = runner.silent_since is not None and now - runner.silent_since > 3 * MUTE
    if runner.state in (S.READY, S.BINDING, S.REGISTERED) and silent:
        return runner.move(S.FAILED, now, f"its agent has been silent for {3 * MUTE.seconds // 60} minutes")
    return runner


def serves(now: datetime, runner: Runner, usual: Mapping[str, float] = NOTHING_USUAL) -> bool:
    """Whether this runner can be counted on for a waiting job: alive, within reach, not mute, not late."""
    if runner.state not in ALIVE or runner.elsewhere or (runner.eviction_at is not None and now < runner.eviction_at + NOTICE):
        return False
    if runner.silent_since is not None and now - runner.silent_since > MUTE:
        return False
    stuck = runner.state in (S.CREATING, S.BINDING) and now - runner.since > SLOW_ACT
    return not stuck and not late(now, runner, usual)
