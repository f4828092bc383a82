"""One decision: from rows as they are to rows as they should be, and which of them this worker claims."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnerpool.decide import CLAIM, FAILURES_KEPT, GAVE_UP, KEEP_FINISHED, RUN_LIMIT, decide, is_over, jobs_over
from runnerpool.lifecycle import Seen
from runnerpool.model import SKEW, TRANSITIONS, Basis, Fact, Head, Job, Runner, RunnerState, Snapshot
from runnerpool.plan import ASKS
from runnerpool.ports import AgentPhase, AgentStatus, AgentTrouble, Registration, Vm, VmState
from tests.made_rows import MINUTE, NOW, ORG, fact, job, pool, runner, setting, status

S = RunnerState


def snapshot(*rows: Job | Runner | Fact, head: Head | None = None, unreadable: tuple[str, ...] = ()) -> Snapshot:
    return Snapshot(
        head or Head("linux"),
        {row.job_id: row for row in rows if isinstance(row, Job)},
        {row.name: row for row in rows if isinstance(row, Runner)},
        {f"fact:{n}": row for n, row in enumerate(rows) if isinstance(row, Fact)},
        unreadable,
    )


# ---------------------------------------------------------------------------------------------- intents


def test_a_queued_fact_becomes_a_job_and_an_intent_that_this_worker_claims() -> None:
    decision = decide(NOW, setting(), snapshot(fact()))
    (name,) = decision.mine
    made = decision.runners[name]
    assert name == "hw-linux-0000000001"
    assert (made.state, made.target, made.job_id, made.size) == (S.REQUESTED, ORG, "1", "Standard_D4ads_v5")
    assert (made.claimed_by, made.claimed_until) == ("worker", NOW + CLAIM)
    assert (decision.jobs["1"].vms_made, decision.jobs["1"].last_vm_at) == (1, NOW)
    assert decision.changes


def test_a_job_that_came_and_went_before_anybody_looked_makes_nothing() -> None:
    cancelled = fact("completed", runner_name=None, runner_id=0, conclusion="cancelled")
    decision = decide(NOW, setting(), snapshot(cancelled, fact()))
    assert not decision.runners
    assert len(decision.consumed) == 2


@pytest.mark.parametrize(
    ("row", "unreadable"), [("runner:hw-linux-x", True), ("fact:1:x", False), ("job:7", False), ("pool", False)]
)
def test_with_a_runners_row_damaged_a_pool_does_everything_but_add(row: str, unreadable: bool) -> None:
    """What cannot be counted cannot be limited."""
    rows = snapshot(job(), runner(S.FINISHED, completed_job="2"), unreadable=(row,))
    decision = decide(NOW, setting(), rows)
    made = set(decision.runners) - set(rows.runners)
    assert bool(made) is not unreadable
    assert decision.runners["hw-linux-aaaaaaaaaa"].state is S.DELETING
    assert not decision.head.paused


def test_a_facts_effects_and_the_plan_on_top_of_them_are_one_decision() -> None:
    row = runner(S.BUSY)
    after = decide(NOW, setting(), snapshot(row, fact("in_progress"), fact("completed"))).runners[row.name]
    assert (after.state, after.basis) == (S.DELETING, Basis.COMPLETED)


# ---------------------------------------------------------------------------------------------- claims


@pytest.mark.parametrize(
    ("row", "mine"),
    [
        (runner(S.REQUESTED, target=ORG), True),
        (runner(S.CREATING, target=ORG), True),
        (runner(S.BINDING, target=ORG), True),
        (runner(S.RETIRING), True),
        (runner(S.RETIRING, deregistered_at=NOW), False),  # waits for its agent's word
        (runner(S.DELETING), True),
        (runner(S.DELETING, delete_accepted_at=NOW, not_before=NOW + MINUTE), False),
        (runner(S.DELETING, delete_accepted_at=NOW - 5 * MINUTE, not_before=NOW), True),  # Azure may have failed later
        (runner(S.BOOTING), False),
        (runner(S.BUSY), False),
        (runner(S.BINDING, target=ORG, claimed_by="other", claimed_until=NOW + MINUTE), False),
        (runner(S.BINDING, target=ORG, claimed_by="other", claimed_until=NOW - SKEW + MINUTE), False),  # by its own clock
        (runner(S.BINDING, target=ORG, claimed_by="other", claimed_until=NOW - SKEW), True),
        (runner(S.BINDING, target=ORG, not_before=NOW + MINUTE), False),
        (runner(S.BINDING, target=ORG, not_before=NOW), True),
    ],
)
def test_a_worker_claims_what_asks_for_an_act_that_nobody_is_at_and_whose_time_has_come(row: Runner, mine: bool) -> None:
    warm = pool(minimum_warm_vms=1)
    decision = decide(NOW, setting(warm), snapshot(row))
    assert (row.name in decision.mine) is mine
    assert (decision.runners[row.name].claimed_by == "worker") is mine


# ---------------------------------------------------------------------------------------------- what passes teach a pool


def booted(row: Runner) -> Seen:
    return Seen(at=NOW, since={row.name: row.since}, agents={row.name: status(AgentPhase.WAITING)})


def test_the_usual_boot_time_follows_the_new_ones_slowly() -> None:
    row = runner(S.BOOTING, accepted_at=NOW - timedelta(seconds=100), ready_at=None)
    first = decide(NOW, setting(pool(minimum_warm_vms=1)), snapshot(row), booted(row)).head
    assert first.boot_seconds == 100
    known = snapshot(row, head=Head("linux", boot_seconds=200))
    assert decide(NOW, setting(pool(minimum_warm_vms=1)), known, booted(row)).head.boot_seconds == 170


def test_the_usual_time_of_each_phase_is_learned_as_it_ends_and_a_pass_without_an_end_changes_no_head() -> None:
    warm = setting(pool(minimum_warm_vms=1))
    row = runner(S.BOOTING, accepted_at=NOW - timedelta(seconds=40))
    running = Seen(NOW, {row.name: row.since}, vms={row.name: Vm(row.name, VmState.SUCCEEDED, {}, NOW, power="running")})
    first = decide(NOW, warm, snapshot(row), running)
    assert first.head.usual == {"running": 40}
    after = snapshot(*first.runners.values(), head=first.head)
    assert decide(NOW + MINUTE, warm, after, running).head == first.head
    last = decide(NOW + MINUTE, warm, after, booted(row)).head
    assert last.usual == {"running": 40, "answering": 60, "ready": 0}


def test_why_vms_never_became_useful_is_kept_in_the_head_the_newest_few() -> None:
    rows = [runner(S.BOOTING, str(n), accepted_at=NOW - 21 * MINUTE, job_id=str(n)) for n in range(FAILURES_KEPT + 1)]
    silent = Seen(NOW, {row.name: row.since for row in rows}, agents=dict.fromkeys((row.name for row in rows), AgentTrouble.SILENT))
    head = decide(NOW, setting(), snapshot(*rows), silent).head
    assert [failure.name for failure in head.failures] == [row.name for row in rows[1:]]
    assert {failure.reason for failure in head.failures} == {"Azure did not have it running within 20 minutes"}
    idle = runner(S.READY, silent_since=NOW - 16 * MINUTE)
    word = Seen(NOW, {idle.name: idle.since}, agents={idle.name: AgentTrouble.SILENT})
    assert decide(NOW, setting(), snapshot(idle), word).runners[idle.name].state is not S.READY
    assert not decide(NOW, setting(), snapshot(idle), word).head.failures


def test_a_vm_that_takes_longer_than_the_pool_is_used_to_is_replaced_and_welcome_when_it_comes() -> None:
    row = runner(S.BOOTING, running_at=NOW - 9 * MINUTE, target=ORG, job_id="1")
    waits = job(vms_made=1, last_vm_at=NOW)
    assert len(decide(NOW, setting(), snapshot(waits, row)).runners) == 2
    slow = Head("linux", usual={"answering": 240.0})  # a pool that boots slowly waits longer
    assert len(decide(NOW, setting(), snapshot(waits, row, head=slow)).runners) == 1
    assert decide(NOW, setting(pool(minimum_warm_vms=1)), snapshot(row), booted(row)).runners[row.name].state is S.READY


@pytest.mark.parametrize(("code", "rests"), [("AllocationFailed", 1), ("OSProvisioningTimedOut", 0)])
def test_an_offer_that_azure_took_and_could_not_keep_rests_and_a_vm_that_broke_does_not_make_it_rest(code: str, rests: int) -> None:
    row = runner(S.BOOTING)
    failed = Vm(row.name, VmState.FAILED, {}, NOW, error_code=code)
    decision = decide(NOW, setting(), snapshot(row), Seen(vms={row.name: failed}))
    assert len(decision.head.rests) == rests
    assert decision.runners[row.name].state is S.DELETING  # it was never registered
    assert code in decision.runners[row.name].reason


# ---------------------------------------------------------------------------------------------- jobs whose rows are over


@pytest.mark.parametrize(
    ("row", "over"),
    [
        (job(age=timedelta(hours=9), completed_at=NOW - KEEP_FINISHED), True),
        (job(age=timedelta(hours=9), completed_at=NOW - KEEP_FINISHED + MINUTE), False),
        (job(age=timedelta(minutes=30), completed_at=NOW - timedelta(hours=9)), False),  # heard of only lately
        (job(age=timedelta(days=9)), False),
        (job(age=timedelta(days=9), missing_since=NOW - GAVE_UP), True),
        (job(age=timedelta(days=9), missing_since=NOW - GAVE_UP + MINUTE), False),
        # GitHub shows no job of its repository: it is over when GitHub itself has ended it
        (job(age=timedelta(days=9), unseen_since=NOW - GAVE_UP), True),
        (job(age=timedelta(days=9), unseen_since=NOW - GAVE_UP + MINUTE), False),
        (job(age=GAVE_UP + MINUTE, unseen_since=NOW - GAVE_UP), False),  # approved a moment later, for all we know
        (job(age=timedelta(days=9), unseen_since=NOW - GAVE_UP, trusted=False), False),
        (job(age=timedelta(days=9), unseen_since=NOW - GAVE_UP, queued=False, waiting=True), False),
        (job(age=timedelta(days=9), unseen_since=NOW - GAVE_UP, started_at=NOW - GAVE_UP), False),
        (job(age=RUN_LIMIT, unseen_since=NOW - MINUTE, queued=False, waiting=True), True),
    ],
)
def test_a_jobs_row_is_over_an_hour_after_its_end_or_when_github_can_queue_it_no_longer(row: Job, over: bool) -> None:
    assert is_over(NOW, row) is over


def test_a_job_that_a_runner_is_judged_by_keeps_its_row() -> None:
    ended = job("1", completed_at=NOW - KEEP_FINISHED, age=timedelta(hours=9))
    rows = snapshot(ended, replace(ended, job_id="2"), runner(S.BUSY, busy_job="1"))
    assert [row.job_id for row in jobs_over(NOW, rows)] == ["2"]


# ---------------------------------------------------------------------------------------------- no world breaks it

moments = st.sampled_from([None, NOW - timedelta(hours=2), NOW - 12 * MINUTE, NOW - 3 * MINUTE, NOW, NOW + 5 * MINUTE])
states = st.sampled_from(list(RunnerState))


@st.composite
def anything(draw: st.DrawFn) -> tuple[Snapshot, Seen]:
    """Rows that need not make sense together, and witnesses that contradict them."""
    rows: list[Job | Runner | Fact] = []
    words: dict[str, AgentStatus | AgentTrouble] = {}
    vms: dict[str, Vm] = {}
    direct: dict[str, Vm | None] = {}
    registered: dict[str, Registration] = {}
    for number in range(draw(st.integers(0, 4))):
        state = draw(states)
        changes = {
            field: draw(moments)
            for field in ("online_at", "deregistered_at", "put_until", "silent_since", "absent_since", "exited_at", "not_before")
        }
        if draw(st.booleans()) and state not in (S.REQUESTED, S.CREATING):
            changes["minted_at"] = NOW - timedelta(hours=1)
        target = draw(st.sampled_from([ORG, "repo:octo-org/a"])) if changes.get("minted_at") or state is S.BINDING else None
        finished = state in (S.FINISHED,) or None
        age = draw(st.sampled_from([MINUTE, 12 * MINUTE, 30 * MINUTE]))
        row = runner(state, f"{number:010d}", age=age, target=target, completed_job="1" if finished else None, **changes)
        rows.append(row)
        if draw(st.booleans()):
            word = status(
                draw(st.sampled_from(list(AgentPhase))),
                worker=draw(st.booleans()),
                job_seen=draw(st.booleans()),
                binding=draw(st.sampled_from([None, 7, 8])),
            )
            words[row.name] = draw(st.sampled_from([word, *AgentTrouble]))
        if draw(st.booleans()):
            vms[row.name] = Vm(row.name, draw(st.sampled_from(list(VmState))), {}, NOW, power="running", error_code="X")
        elif draw(st.booleans()):
            direct[row.name] = None
        if draw(st.booleans()):
            registered[row.name] = Registration(7, row.name, draw(st.booleans()), draw(st.booleans()))
        if draw(st.booleans()):
            rows.append(fact(draw(st.sampled_from(["in_progress", "completed"])), str(number), runner_name=row.name))
    rows += [job(f"q{n}", age=draw(st.sampled_from([MINUTE, 30 * MINUTE]))) for n in range(draw(st.integers(0, 3)))]
    since = {row.name: row.since for row in rows if isinstance(row, Runner) and draw(st.booleans())}
    return snapshot(*rows), Seen(NOW, since, vms, direct, {}, words, {ORG: registered})


@given(anything())
@settings(max_examples=400, deadline=None)
def test_no_rows_and_no_witnesses_make_a_decision_that_breaks_a_rule(case: tuple[Snapshot, Seen]) -> None:
    rows, seen = case
    for maximum, keep in itertools.product((1, 3), (False, True)):
        limited = pool(maximum_pool_size=maximum, minimum_warm_vms=1, keep_registered=keep)
        decision = decide(NOW, setting(limited), rows, seen)  # an illegal transition raises
        after = decision.runners
        added = set(after) - set(rows.runners)
        assert not added or sum(row.exists for row in after.values()) <= maximum
        for name in set(rows.runners) & set(after):
            assert after[name].state not in (S.READY, S.REGISTERED, S.BINDING) or reachable(rows.runners[name].state)
            if after[name].state is S.DELETING and rows.runners[name].state is not S.DELETING:
                assert rule_1(after[name], seen)
        for name in set(rows.runners) - set(after):
            assert rows.runners[name].state is S.REQUESTED or name in seen.direct or rows.runners[name].absent_since


def reachable(state: RunnerState) -> bool:
    return state in (S.READY, S.REGISTERED, S.BINDING) or bool(TRANSITIONS[state] & {S.READY, S.REGISTERED, S.BINDING})


def rule_1(row: Runner, seen: Seen) -> bool:
    if row.completed_job is not None or row.minted_at is None:
        return True
    word = seen.agents.get(row.name)
    silent = word is AgentTrouble.SILENT
    return row.deregistered_at is not None and (silent or (word is not None and getattr(word, "worker", True) is False))


@given(anything())
@settings(max_examples=150, deadline=None)
def test_decisions_on_a_world_that_does_not_change_come_to_an_end(case: tuple[Snapshot, Seen]) -> None:
    """Rule 10, for the decision alone: with every act claimed by somebody else, one after the other finds less to do."""
    rows, _ = case
    one, other = setting(), setting(worker="other")
    for turn in range(6):
        decision = decide(NOW, replace(one if turn == 0 else other, suffix=one.suffix), rows)
        if not decision.changes:
            return
        rows = replace(rows, head=decision.head, jobs=decision.jobs, runners=decision.runners, facts={})
    raise AssertionError(f"still at it: {decision.actions}")


def test_what_this_very_worker_claimed_and_did_not_act_on_is_its_own_still() -> None:
    """A commit whose later transaction met a conflict leaves such rows behind."""
    once = decide(NOW, setting(), snapshot(job()))
    left = replace(snapshot(job()), jobs=once.jobs, runners=once.runners)
    assert decide(NOW, setting(), left).mine == once.mine
    assert not decide(NOW, setting(worker="other"), left).mine


def test_one_decision_asks_about_a_few_jobs_however_often_it_plans() -> None:
    late = [job(str(n), age=timedelta(hours=1), checked_at=NOW - timedelta(minutes=20)) for n in range(3 * ASKS)]
    assert len(decide(NOW, setting(pool(maximum_pool_size=1)), snapshot(*late)).asks) == ASKS
