"""Decisions about one pool whose world never stands still: jobs come and go, VMs boot and break, acts stop half way, witnesses
lie by being old or missing. After every step the rules of `plan_rules.py` hold.

`HYPOTHESIS_EXAMPLES=5000 pytest tests/test_plan_machine.py` looks longer, at other examples than the usual run.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runnerpool.actions import Bind, Create
from runnerpool.acts import told
from runnerpool.config import PoolConfig
from runnerpool.decide import Decision, Setting, decide
from runnerpool.errors import Conflict
from runnerpool.lifecycle import NOTHING_SEEN, Seen
from runnerpool.model import Fact, Runner, RunnerState, Snapshot
from runnerpool.ports import AgentPhase, JobReport, VmState
from tests import plan_rules
from tests.machine_settings import PATIENCE, examples
from tests.made_rows import NOW, ORG, pool
from tests.memory_table import Request, at_once
from tests.small_world import SmallWorld

S = RunnerState

LINUX = "linux"
REPOSITORIES = ("octo-org/a", "octo-org/b")
FATES = ("well", "well", "well", "unborn", "unanswered", "refused", "in mid-job")
INVOCATION = timedelta(minutes=4)
"""No act outlives it: an invocation ends after 5 minutes, and acting stops a minute before."""
MOST_JOBS = 6


@dataclass
class Work:
    """One job as it really stands at GitHub."""

    job_id: str
    repository: str
    target: str
    created_at: datetime
    state: str = "queued"
    runner: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    conclusion: str | None = None

    def fact(self, action: str, now: datetime, late: timedelta = timedelta(0)) -> Fact:
        return Fact(
            self.job_id,
            action,
            action,
            LINUX,
            self.repository,
            self.target,
            ("linux",),
            self.created_at,
            now + late,
            "guid",
            started_at=self.started_at,
            completed_at=self.completed_at,
            conclusion=self.conclusion,
            runner_name=self.runner,
            runner_id=None,
            run_id=self.job_id,
        )


@dataclass
class Act:
    """What a worker is doing about a row that it claimed; `steps` are those that lie ahead, None before the first."""

    begun: datetime
    row: Runner
    steps: Iterator[None] | None = None


@st.composite
def pools(draw: st.DrawFn) -> PoolConfig:
    maximum = draw(st.integers(1, 4))
    return pool(
        maximum_pool_size=maximum,
        minimum_warm_vms=draw(st.integers(0, min(maximum, 2))),
        scale_up_trigger_threshold=draw(st.sampled_from([1, 1, 2])),
        keep_registered=draw(st.booleans()),
        idle_timeout=draw(st.sampled_from(["30s", "10m"])),
        rerun_evicted=draw(st.booleans()),
        vm={
            "sizes": draw(st.sampled_from([["Standard_D4ads_v5"], ["Standard_D4ads_v5", "Standard_D4as_v5"]])),
            "zones": draw(st.sampled_from([[], ["1", "2"]])),
            "priority": draw(st.sampled_from(["regular", "spot", "spot-then-regular"])),
        },
    )


class PlanMachine(RuleBasedStateMachine):
    @initialize(chosen=pools(), several=st.booleans(), jobs=st.integers(0, 3), ticks=st.integers(0, 4))
    def begin(self, chosen: PoolConfig, several: bool, jobs: int, ticks: int) -> None:
        """With some VMs already on their way, registered or busy."""
        self.pool = chosen
        self.highest = chosen.maximum_pool_size  # a maximum that is lowered takes no VM away at once
        self.home = None if several else ORG
        self.world = SmallWorld(NOW, shape=chosen.vm.shape)
        self.evidence = plan_rules.Evidence()
        self.work: dict[str, Work] = {}
        self.mail: list[Fact] = []
        self.looks = [NOTHING_SEEN]
        self.acts: list[Act] = []
        self.keys, self.suffixes = itertools.count(), itertools.count()
        for number in range(jobs):
            self.a_job_comes(REPOSITORIES[number % 2], 0, True)
        for _ in range(ticks):
            self._tick("w1", 31, "well" if jobs % 2 else "unborn", jobs_end=False, jobs_start=ticks % 2 == 0)

    # -------------------------------------------------------------------------------------- GitHub and its jobs

    @precondition(lambda self: len(self.work) < MOST_JOBS)
    @rule(repository=st.sampled_from(REPOSITORIES), late=st.sampled_from([0, 0, 0, 31]), told_of=st.booleans())
    def a_job_comes(self, repository: str, late: int, told_of: bool) -> None:
        target = self.home or f"repo:{repository}"
        one = Work(str(len(self.work) + 1), repository, target, self.world.now - timedelta(minutes=late))
        self.work[one.job_id] = one
        if told_of:
            self._file(one.fact("queued", self.world.now))
        else:
            self.mail.append(one.fact("queued", self.world.now))

    @precondition(lambda self: self._in("queued"))
    @rule(data=st.data())
    def a_job_is_cancelled_before_it_starts(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self._in("queued")))
        one.state, one.completed_at, one.conclusion = "completed", self.world.now, "cancelled"
        self.mail.append(one.fact("completed", self.world.now))

    @precondition(lambda self: self._in("queued") and self._free())
    @rule(data=st.data())
    def github_gives_a_job_to_a_runner(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._free()))
        fit = [one for one in self._in("queued") if one.target == self.world.entries[name].target]
        if fit:
            self._give(data.draw(st.sampled_from(fit)), name)

    def _give(self, one: Work, name: str) -> None:
        entry, box = self.world.entries[name], self.world.boxes[name]
        one.state, one.started_at, one.runner = "in_progress", self.world.now, name
        entry.job, box.job, box.job_seen, box.phase = one.job_id, one.job_id, True, AgentPhase.BUSY
        self.mail.append(one.fact("in_progress", self.world.now))

    @precondition(lambda self: self._in("in_progress"))
    @rule(data=st.data(), conclusion=st.sampled_from(["success", "failure", "cancelled"]))
    def a_job_ends(self, data: st.DataObject, conclusion: str) -> None:
        self._end(data.draw(st.sampled_from(self._in("in_progress"))), conclusion)

    def _end(self, one: Work, conclusion: str) -> None:
        one.state, one.completed_at, one.conclusion = "completed", self.world.now, conclusion
        self.world.entries.pop(one.runner or "", None)
        box = self.world.boxes.get(one.runner or "")
        if box is not None:
            box.job, box.phase = None, AgentPhase.EXITED
        self.mail.append(one.fact("completed", self.world.now))

    @precondition(lambda self: self.mail)
    @rule(data=st.data(), copies=st.sampled_from([0, 1, 1, 1, 2]))
    def a_delivery_arrives(self, data: st.DataObject, copies: int) -> None:
        """Or is lost for ever, or comes twice."""
        fact = self.mail.pop(data.draw(st.integers(0, len(self.mail) - 1)))
        for _ in range(copies):
            self._file(replace(fact, received_at=max(fact.received_at, self.world.now)))

    @precondition(lambda self: self.work)
    @rule(data=st.data(), lost=st.sampled_from([False, False, False, True]))
    def github_is_asked_about_a_job(self, data: st.DataObject, lost: bool) -> None:
        one = self.work[data.draw(st.sampled_from(sorted(self.work)))]
        row = self._read().jobs.get(one.job_id)
        if row is None or row.checked_at is None:
            return
        if lost:
            at_once(self.world.ledger.revise_job(row, lambda job: replace(job, missing_since=self.world.now)))
            return
        if row.missing_since is not None:
            at_once(self.world.ledger.revise_job(row, lambda job: replace(job, missing_since=None)))
        report = JobReport(one.job_id, one.state, one.conclusion, one.runner, None, one.started_at, one.completed_at)
        self._file(told(row, report))

    @precondition(lambda self: self._free())
    @rule(data=st.data())
    def github_drops_an_idle_registration(self, data: st.DataObject) -> None:
        del self.world.entries[data.draw(st.sampled_from(self._free()))]

    def _in(self, state: str) -> list[Work]:
        return [one for one in self.work.values() if one.state == state]

    def _free(self) -> list[str]:
        """Runners that listen, and whose registration is the one that GitHub knows."""
        return [
            name
            for name, entry in sorted(self.world.entries.items())
            if entry.job is None
            and (box := self.world.boxes.get(name)) is not None
            and (box.phase, box.binding) == (AgentPhase.LISTENING, entry.runner_id)
        ]

    def _file(self, fact: Fact) -> None:
        if fact.action == "completed" and fact.runner_name:
            self.evidence.completed.add(fact.runner_name)
        at_once(self.world.ledger.add_fact(LINUX, str(next(self.keys)), fact))

    # -------------------------------------------------------------------------------------- Azure and its VMs

    @precondition(lambda self: self.world.boxes)
    @rule(data=st.data(), steps=st.integers(1, 5))
    def a_vm_goes_on(self, data: st.DataObject, steps: int) -> None:
        box = self.world.boxes[data.draw(st.sampled_from(sorted(self.world.boxes)))]
        for _ in range(steps):
            box.step(self.world.entries)

    @precondition(lambda self: self.world.boxes)
    @rule(data=st.data(), what=st.sampled_from(["mute", "speaks", "speaks", "stopped", "failed", "gone", "notice"]))
    def a_vm_has_trouble(self, data: st.DataObject, what: str) -> None:
        box = self.world.boxes[data.draw(st.sampled_from(sorted(self.world.boxes)))]
        if what in ("mute", "speaks"):
            box.mute = what == "mute"
        elif what == "notice" and box.made_by.spot:
            box.notice = self.world.now + timedelta(seconds=30)
        elif what == "gone":
            del self.world.boxes[box.name]
        elif what == "failed" and box.state is VmState.CREATING:
            box.state, box.error_code = VmState.FAILED, "AllocationFailed"
        elif what == "stopped" and box.power == "running":
            box.power, box.job, box.phase = "stopped", None, None

    @precondition(lambda self: self.world.in_flight)
    @rule()
    def a_put_that_nobody_saw_answered_arrives(self) -> None:
        until, box = self.world.in_flight.pop(0)
        if until > self.world.now and box.name not in self.world.boxes:
            self.world.boxes[box.name] = box
            self.world.deleted.discard(box.name)

    @rule(seconds=st.sampled_from([1, 20, 31, 121, 301, 601, 1_201, 3_601]))
    def time_passes(self, seconds: int) -> None:
        self.world.now += timedelta(seconds=seconds)
        self.acts = [act for act in self.acts if self.world.now - act.begun <= INVOCATION]

    # -------------------------------------------------------------------------------------- people

    @rule(maximum=st.integers(1, 4), warm=st.integers(0, 2), image=st.sampled_from(["latest", "24.04.1"]))
    def somebody_edits_the_pool_file(self, maximum: int, warm: int, image: str) -> None:
        shape = self.pool.vm.model_copy(update={"image": f"Canonical:ubuntu-24_04-lts:server:{image}"})
        changes = {"maximum_pool_size": maximum, "minimum_warm_vms": min(warm, maximum), "vm": shape}
        self.pool = self.pool.model_copy(update=changes)
        self.highest = max(self.highest, maximum)
        self.world.shape = shape.shape

    @rule(paused=st.sampled_from([False, False, True]), draining=st.sampled_from([False, False, True]))
    def somebody_pauses_or_drains(self, paused: bool, draining: bool) -> None:
        at_once(self.world.ledger.revise_head(LINUX, lambda head: replace(head, paused=paused, draining=draining)))

    # -------------------------------------------------------------------------------------- passes

    @rule(data=st.data(), lagging=st.booleans())
    def reconcile_looks(self, data: st.DataObject, lagging: bool) -> None:
        hidden = data.draw(st.sets(st.sampled_from(sorted(self.world.boxes)))) if self.world.boxes else set()
        self._look(hidden, lagging=lagging)

    def _look(self, hidden: Collection[str], *, lagging: bool) -> None:
        runners = dict(self._read().runners)
        targets = [ORG, *(f"repo:{name}" for name in REPOSITORIES)]
        seen = self.world.look(runners, targets, hidden, lagging=lagging)
        self.evidence.hear(seen, runners)
        self.looks = [*self.looks[-1:], seen]

    @rule(
        look=st.sampled_from(["last", "last", "the one before", "none"]),
        without=st.sampled_from(["", "", "vms", "direct", "agents", "registrations", "everything"]),
        worker=st.sampled_from(["w1", "w2"]),
        cut=st.sampled_from([None, None, None, 0, 1, 2]),
    )
    def a_pass_decides(self, look: str, without: str, worker: str, cut: int | None) -> None:
        """On the last look, the one before, or none (a wake-up); with `cut`, its commit meets a conflict after so many
        transactions."""
        seen = {"last": self.looks[-1], "the one before": self.looks[0]}.get(look, NOTHING_SEEN)
        known = _less(seen, without)
        before = self._read()
        decision = self._decide(before, known, worker)
        self.evidence.check_rule_1(decision, known, self.world)
        plan_rules.check_rows(before.runners, decision.runners)
        plan_rules.check_that_ignorance_removes_nothing(decision, self._decide(before, seen, worker, trial=True))
        whole = self._commit(decision, cut)
        after = self._read()
        plan_rules.check_rows(before.runners, after.runners)
        if after.runners.keys() - before.runners.keys():
            count = plan_rules.counting(after.runners.values(), self.world.now)
            assert count <= self.pool.maximum_pool_size, f"{count} rows count, the maximum is {self.pool.maximum_pool_size}"
        if whole:
            self._settled(decision, after, known, worker)
            self.acts += [Act(self.world.now, after.runners[name]) for name in decision.mine]

    def _settled(self, decision: Decision, after: Snapshot, seen: Seen, worker: str) -> None:
        """A decision on what this one produced changes nothing, whoever makes it, and this one has taken nothing back at once."""
        bound = {action.runner for action in decision.actions if isinstance(action, Bind)}
        assert all(after.runners[name].state is S.BINDING for name in bound), "bound and given up in one decision"
        made = sum(isinstance(action, Create) for action in decision.actions)
        assert made == len(after.runners.keys() - decision.before.runners.keys()), "asked for and called back in one decision"
        for whose in (worker, "somebody else"):
            again = self._decide(after, seen, whose, trial=True)
            assert not again.actions, f"still more is wanted: {[str(action) for action in again.actions]}"
            assert not again.changes, f"rows still change: {_changed(again)}"
        plan_rules.check_reasons(self.world.now, self.pool, after)

    def _decide(self, rows: Snapshot, seen: Seen, worker: str, *, trial: bool = False) -> Decision:
        names = itertools.count(10**6) if trial else self.suffixes
        return decide(self.world.now, Setting(self.pool, "hw", self.home, worker, lambda: f"{next(names):010d}"), rows, seen)

    def _commit(self, decision: Decision, cut: int | None) -> bool:
        """Whether all of it was written."""
        left = itertools.count()

        async def conflict(request: Request) -> None:
            if cut is not None and next(left) >= cut:
                raise Conflict("somebody else planned")

        table = self.world.table
        usual, table.before = table.before, conflict
        try:
            if decision.changes:
                at_once(self.world.ledger.commit(decision))
        except Conflict:
            return False
        finally:
            table.before = usual
        return True

    @rule(
        worker=st.sampled_from(["w1", "w2"]),
        seconds=st.sampled_from([20, 31, 301, 1_201]),
        ticks=st.integers(1, 3),
        jobs_end=st.booleans(),
        jobs_start=st.booleans(),
        fate=st.sampled_from(["well", "unborn", "in mid-job"]),
    )
    def some_ticks_in_which_all_goes_well(
        self, worker: str, seconds: int, ticks: int, jobs_end: bool, jobs_start: bool, fate: str
    ) -> None:
        """Without these nothing would ever get far."""
        for _ in range(ticks):
            self._tick(worker, seconds, fate, jobs_end=jobs_end, jobs_start=jobs_start)

    def _tick(self, worker: str, seconds: int, fate: str, *, jobs_end: bool, jobs_start: bool) -> None:
        self.time_passes(seconds)
        for one in self._in("in_progress") if jobs_end else []:
            self._end(one, "success")
        for box in self.world.boxes.values():
            for _ in range(5):
                box.step(self.world.entries)
        for name in self._free() if jobs_start else []:
            fit = [one for one in self._in("queued") if one.target == self.world.entries[name].target]
            if fit:
                self._give(fit[0], name)
        for fact in self.mail:
            self._file(fact)
        self.mail = []
        self._look(hidden=(), lagging=False)
        self.a_pass_decides("last", "", worker, None)
        for act in self.acts:
            for _ in act.steps or self.world.act(act.row, fate):
                pass
        self.acts = []

    @precondition(lambda self: self.acts)
    @rule(data=st.data(), fate=st.sampled_from(FATES), steps=st.sampled_from([1, 2, 3, 4, 99, 99, 99]))
    def an_act_goes_on(self, data: st.DataObject, fate: str, steps: int) -> None:
        """All the way, or some steps: then others come in between, or it never goes on."""
        act = self.acts.pop(data.draw(st.integers(0, len(self.acts) - 1)))
        act.steps = act.steps or self.world.act(act.row, fate)
        for _ in range(steps):
            if next(act.steps, "over") == "over":
                return
        self.acts.append(act)

    def _read(self) -> Snapshot:
        return at_once(self.world.ledger.read_pool(LINUX))

    # -------------------------------------------------------------------------------------- what always holds

    @invariant()
    def azure_keeps_to_the_maximum_and_no_job_is_killed(self) -> None:
        if hasattr(self, "world"):
            assert self.world.counting() <= self.highest
            assert not self.world.killed


def _less(seen: Seen, without: str) -> Seen:
    match without:
        case "":
            return seen
        case "vms":
            return replace(seen, vms=None)
        case "direct":
            return replace(seen, direct={})
        case "agents":
            return replace(seen, agents={})
        case "registrations":
            return replace(seen, registrations={})
        case _:
            return NOTHING_SEEN


def _changed(decision: Decision) -> list[str]:
    """Which rows, and how."""
    before = decision.before
    kinds: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
        (before.jobs, decision.jobs),
        (before.runners, decision.runners),
        ({"head": before.head}, {"head": decision.head}),
    ]
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}" for old, new in kinds for key in {**old, **new} if old.get(key) != new.get(key)
    ]


TestPlans = pytest.mark.timeout(PATIENCE)(PlanMachine.TestCase)
TestPlans.settings = examples(100, steps=40)
