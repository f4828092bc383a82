"""Facts in any order and multiplicity: a machine that tells several readers of the ledger the same things, each in another
order, each some of them twice, and compares what they make of it.

`HYPOTHESIS_EXAMPLES=5000 pytest tests/test_model_machine.py` looks longer, at other examples than the usual run.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runnerpool import rows
from runnerpool.lifecycle import fold
from runnerpool.model import TRANSITIONS, Fact, Head, Job, JobState, Runner, RunnerState, Snapshot
from runnerpool.ports import Entity
from tests.machine_settings import PATIENCE, examples
from tests.made_rows import MINUTE, NOW, ORG, runner

S = RunnerState

HERE, THERE = "linux", "gpu"
POOL_OF = {"1": HERE, "2": HERE, "3": THERE}
"""The pool of the runner that each job has at GitHub. All jobs belong to HERE: GitHub gave the third one to a runner of THERE."""
RUNS = {job_id: f"hw-{pool}-{job_id:a>10}" for job_id, pool in POOL_OF.items()}
SINCE_WAITING = [JobState.WAITING, JobState.QUEUED, JobState.IN_PROGRESS, JobState.COMPLETED]
OF_PASSES = {"vms_made", "last_vm_at", "checked_at", "missing_since", "unseen_since", "evicted", "rerun_at", "rerun", "rerun_of"}
"""The columns of a job that planning passes write: no fact may change them."""

Row = Job | Runner
Rows = tuple[dict[str, Job], dict[str, Runner]]

ids = st.sampled_from(sorted(RUNS))
moments = st.integers(0, 90).map(lambda minutes: NOW + minutes * MINUTE)


@st.composite
def facts(draw: st.DrawFn) -> Fact:
    """As webhooks of GitHub and of GHES, which leaves keys out, and the API's answers tell of one of the three jobs."""
    job_id = draw(ids)
    action = draw(st.sampled_from(["queued", "queued", "waiting", "in_progress", "completed"]))
    waits = action == "queued" and draw(st.booleans())
    named = action in ("in_progress", "completed") and draw(st.sampled_from([True, True, False]))
    usual = draw(st.booleans())  # whether it says the same of the job's start as others do
    created = NOW + draw(st.integers(0, 2)) * MINUTE
    return Fact(
        job_id=job_id,
        action=action,
        status=draw(st.sampled_from(["waiting", "requested", "pending"])) if waits else action,
        pool=HERE,
        repository=draw(st.sampled_from(["octo-org/hello", "Octo-Org/Hello"])),
        target=draw(st.sampled_from([ORG, "org:Octo-Org"])),
        labels=draw(st.sampled_from([("linux",), ("Linux",), ()])),
        created_at=created,
        received_at=created + draw(st.sampled_from([timedelta(seconds=1), 30 * MINUTE, 31 * MINUTE])),
        delivery=draw(st.sampled_from(["guid", "api"])),
        started_at=NOW + 5 * MINUTE if usual else draw(st.none() | moments),
        completed_at=draw(st.none() | moments) if action == "completed" else None,
        conclusion=draw(st.sampled_from([None, "success", "cancelled"])) if action == "completed" else None,
        runner_name=RUNS[job_id] if named else None,
        runner_id=draw(st.sampled_from([None, int(job_id)])) if named else draw(st.sampled_from([None, 0])),
        run_id=draw(st.sampled_from(["", "5"])),
        run_attempt=draw(st.integers(1, 2)),
        workflow=draw(st.sampled_from(["", "CI", "ci"])),
        job_name=draw(st.sampled_from(["", "build"])),
        demand=draw(st.sampled_from([True, True, False])),
    )


@dataclass
class Reader:
    """Two pools' rows, as one history of deliveries and passes made them."""

    runners: dict[str, Runner]
    jobs: dict[str, Job] = field(default_factory=dict)
    backlog: list[tuple[str, Fact]] = field(default_factory=list)  # told at GitHub, not taken up here
    taken: dict[str, Fact] = field(default_factory=dict)

    def take(self, batch: dict[str, Fact], now: datetime) -> None:
        """One pass over the job's pool, then one over the pool to which it forwarded what names a runner there."""
        world = fold(self._snapshot(HERE, batch), now, prefix="hw")
        assert world.consumed == batch
        elsewhere = fold(self._snapshot(THERE, world.foreign.get(THERE, {})), now, prefix="hw")
        assert not elsewhere.jobs
        assert set(world.foreign) <= {THERE}
        self.jobs = world.jobs
        self.runners = {**world.runners, **elsewhere.runners}
        self.taken.update(batch)

    def _snapshot(self, pool: str, batch: dict[str, Fact]) -> Snapshot:
        mine = {name: row for name, row in self.runners.items() if row.pool == pool}
        return Snapshot(Head(pool), self.jobs if pool == HERE else {}, mine, batch)


class FactsMachine(RuleBasedStateMachine):
    """The first reader takes facts one by one, the second in batches, the third in batches with its rows written and read
    again in between."""

    @initialize(states=st.lists(st.sampled_from([state for state in S if state is not S.DELETING]), min_size=3, max_size=3))
    def begin(self, states: list[RunnerState]) -> None:
        self.now = NOW + 10 * MINUTE
        self.number = 0
        self.moved: set[str] = set()  # runners on which passes have acted since
        rows_of = [
            replace(runner(state, busy_job=None), name=RUNS[job_id], pool=POOL_OF[job_id], completed_job=_ended(state, job_id))
            for (job_id, state) in zip(RUNS, states, strict=True)
        ]
        self.readers = [Reader({row.name: row for row in rows_of}) for _ in range(3)]

    # -------------------------------------------------------------------------------------- what happens

    @rule(fact=facts())
    def github_tells(self, fact: Fact) -> None:
        self.number += 1
        for reader in self.readers:
            reader.backlog.append((f"fact:{fact.job_id}:{self.number}", fact))

    @rule(data=st.data(), which=st.integers(0, 2))
    def a_reader_takes_some_up(self, data: st.DataObject, which: int) -> None:
        backlog = self.readers[which].backlog
        if backlog:
            some = data.draw(st.lists(st.sampled_from(range(len(backlog))), min_size=1, max_size=4, unique=True))
            self._take(which, [backlog[index] for index in some])
            self.readers[which].backlog = [told for index, told in enumerate(backlog) if index not in some]

    @precondition(lambda self: any(reader.taken for reader in self.readers))
    @rule(data=st.data(), which=st.integers(0, 2))
    def a_delivery_comes_again(self, data: st.DataObject, which: int) -> None:
        """It changes neither a job nor a runner, unless a pass has moved the runner since."""
        reader = self.readers[which]
        if reader.taken:
            key, fact = data.draw(st.sampled_from(sorted(reader.taken.items(), key=lambda told: told[0])))
            before = self._rows(reader)
            self._take(which, [(f"{key}-again{self.number}", fact)])
            del reader.taken[f"{key}-again{self.number}"]
            assert reader.jobs == before[0]
            still = {name: row for name, row in reader.runners.items() if name not in self.moved}
            assert still == {name: before[1][name] for name in still}

    @rule(which=ids, data=st.data())
    def passes_move_a_runner(self, which: str, data: st.DataObject) -> None:
        """In every reader's rows in which there is such an arrow, as a witness or an act would."""
        state = data.draw(st.sampled_from([S.RETIRING, S.FAILED, S.BUSY, S.READY, S.DELETING]))
        self.moved.add(RUNS[which])
        for reader in self.readers:
            row = reader.runners[RUNS[which]]
            if state in TRANSITIONS[row.state]:
                reader.runners[row.name] = row.move(state, self.now, "a pass said so")

    @rule(which=ids, made=st.integers(0, 3))
    def passes_write_about_a_job(self, which: str, made: int) -> None:
        """All of them the same: the readers are to differ in nothing but the order of facts."""
        missing = self.now if made == 2 else None
        if all(which in reader.jobs for reader in self.readers):
            for reader in self.readers:
                reader.jobs[which] = replace(reader.jobs[which], vms_made=made, checked_at=self.now, missing_since=missing)

    @rule(seconds=st.sampled_from([1, 600]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    def _take(self, which: int, told: list[tuple[str, Fact]]) -> None:
        reader = self.readers[which]
        for batch in [dict([one]) for one in told] if which == 0 else [dict(told)]:
            before = self._rows(reader)
            reader.take(batch, self.now)
            self._no_step_back(before, self._rows(reader), arrows=which == 0)
        if which == 2:
            reader.jobs, reader.runners = written_and_read(reader, told)

    @staticmethod
    def _rows(reader: Reader) -> Rows:
        return dict(reader.jobs), dict(reader.runners)

    # -------------------------------------------------------------------------------------- what always holds

    @staticmethod
    def _no_step_back(before: Rows, after: Rows, *, arrows: bool) -> None:
        """`arrows`: only one fact lies between the two, so that every step is to be an arrow of the table."""
        for job_id, old in before[0].items():
            new = after[0][job_id]
            assert SINCE_WAITING.index(new.state) >= SINCE_WAITING.index(old.state)
            assert (new.trusted, not new.demand) >= (old.trusted, not old.demand)
            assert new.runner_name or not old.runner_name
            assert {name: getattr(new, name) for name in OF_PASSES} == {name: getattr(old, name) for name in OF_PASSES}
        for name, row in before[1].items():
            became = after[1][name]
            if became.state is not row.state and arrows:
                assert became.state in TRANSITIONS[row.state]
            if row.state in (S.REQUESTED, S.DELETING):
                assert became == row
            if row.state is S.FINISHED:
                assert (became.state, became.completed_job) == (S.FINISHED, row.completed_job)
            if row.state is S.BUSY:
                assert became.state in (S.BUSY, S.FINISHED)

    @invariant()
    def a_jobs_state_follows_from_its_facts_alone(self) -> None:
        for reader in self.readers:
            for job_id, job in reader.jobs.items():
                some = [fact for fact in reader.taken.values() if fact.job_id == job_id]
                assert job.state is strongest(some)
                assert job.demand is all(fact.demand for fact in some)
                assert job.trusted is any(in_time(fact) for fact in some)
                assert job.runner_name == (RUNS[job_id] if any(fact.runner_name for fact in some) else None)

    @invariant()
    def readers_who_know_the_same_say_the_same(self) -> None:
        for job_id, name in RUNS.items():
            known: dict[frozenset[str], list[Reader]] = defaultdict(list)
            for reader in self.readers:
                known[frozenset(key for key, fact in reader.taken.items() if fact.job_id == job_id)].append(reader)
            for keys, readers in known.items():
                assert len({repr(reader.jobs.get(job_id)) for reader in readers}) == 1
                starts = {readers[0].taken[key].started_at for key in keys if readers[0].taken[key].runner_name}
                if name not in self.moved:
                    assert (
                        len({_promised(reader.runners[name], when=len(starts) == 1 and None not in starts) for reader in readers})
                        == 1
                    )

    @invariant()
    def a_runner_whose_job_is_over_is_finished_whatever_else_was_said(self) -> None:
        for reader in self.readers:
            for fact in reader.taken.values():
                row = reader.runners[RUNS[fact.job_id]]
                if fact.action == "completed" and fact.runner_name and row.state is not S.REQUESTED:
                    assert row.state in (S.FINISHED, S.DELETING)

    def teardown(self) -> None:
        """Whoever lagged behind catches up: then all know the same."""
        if hasattr(self, "readers"):
            for which, reader in enumerate(self.readers):
                if reader.backlog:
                    self._take(which, reader.backlog[::-1] if which == 1 else reader.backlog)
                    reader.backlog = []
            assert len({frozenset(reader.taken) for reader in self.readers}) == 1
            self.a_jobs_state_follows_from_its_facts_alone()
            self.readers_who_know_the_same_say_the_same()
            self.a_runner_whose_job_is_over_is_finished_whatever_else_was_said()


def _ended(state: RunnerState, job_id: str) -> str | None:
    return job_id if state is S.FINISHED else None


def _promised(row: Runner, *, when: bool) -> tuple[object, ...]:
    """What the order of facts must not touch. When a job began is told apart by the first fact alone, where they differ."""
    return row.state, row.completed_job, row.busy_job, row.busy_at if when else None


def strongest(some: list[Fact]) -> JobState:
    """Completed over in progress over queued: the rule, written once more."""
    if any(fact.action == "completed" for fact in some):
        return JobState.COMPLETED
    if any(fact.action == "in_progress" for fact in some):
        return JobState.IN_PROGRESS
    return JobState.QUEUED if any(fact.action == "queued" and fact.status == "queued" for fact in some) else JobState.WAITING


def in_time(fact: Fact) -> bool:
    """A queued fact about a job that was created at most 30 minutes before it came."""
    return fact.action == "queued" and fact.status == "queued" and fact.received_at - fact.created_at <= timedelta(minutes=30)


def written_and_read(reader: Reader, told: list[tuple[str, Fact]]) -> Rows:
    """The rows and these facts through the columns of the table and back. Nothing gets lost."""
    entities = [Entity(HERE, rows.job_key(job.job_id), rows.job_to_columns(job), "e") for job in reader.jobs.values()]
    entities += [Entity(row.pool, rows.runner_key(row.name), rows.runner_to_columns(row), "e") for row in reader.runners.values()]
    entities += [Entity(HERE, key, rows.fact_to_columns(fact)) for key, fact in told]
    read, unreadable = rows.snapshot(entities, HERE)
    assert not unreadable
    assert (read.jobs, read.runners, read.facts) == (reader.jobs, reader.runners, dict(told))
    return {key: replace(job, etag="") for key, job in read.jobs.items()}, dict(read.runners)


TestFacts = pytest.mark.timeout(PATIENCE)(FactsMachine.TestCase)
TestFacts.settings = examples(60, steps=30)


def test_the_columns_of_planning_passes_are_those_that_the_model_says() -> None:
    told = {field.name for field in dataclasses.fields(Fact)} | {"queued", "waiting", "trusted", "etag"}
    assert {field.name for field in dataclasses.fields(Job)} - told == OF_PASSES
