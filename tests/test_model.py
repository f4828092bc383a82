"""Facts merged into jobs, and the transitions of runners."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnerpool.model import ALIVE, TRANSITIONS, Fact, IllegalTransition, Job, JobState, Runner, RunnerState, apply_to_runner, merge
from tests.made_rows import MINUTE, NOW, fact, runner

S = RunnerState


def merged(facts: Sequence[Fact]) -> Job:
    job = None
    for one in facts:
        job = merge(job, one)
    assert job is not None
    return job


# ---------------------------------------------------------------------------------------------- merging facts into jobs

times = st.integers(0, 4000).map(lambda seconds: NOW + timedelta(seconds=seconds))
named = st.sampled_from([(None, None), (None, 0), ("hw-linux-a", 7), ("hw-linux-a", None), ("hw-linux-b", 8)])
facts = st.builds(
    lambda name, **rest: Fact(job_id="1", pool="linux", runner_name=name[0], runner_id=name[1], **rest),
    name=named,
    action=st.sampled_from(["queued", "waiting", "in_progress", "completed"]),
    status=st.sampled_from(["queued", "waiting", "in_progress", "completed"]),
    repository=st.sampled_from(["octo-org/hello", "Octo-Org/Hello"]),
    target=st.just("org:octo-org"),
    labels=st.sampled_from([("linux",), ("Linux",)]),
    created_at=times,
    received_at=times,
    delivery=st.just("guid"),
    started_at=st.none() | times,
    completed_at=st.none() | times,
    conclusion=st.sampled_from([None, "success", "cancelled"]),
    workflow=st.sampled_from(["", "CI", "ci"]),
    job_name=st.sampled_from(["", "build"]),
    run_id=st.sampled_from(["", "5"]),
    run_attempt=st.integers(1, 2),
    demand=st.booleans(),
)


@given(st.lists(facts, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_order_of_the_same_facts_makes_the_same_job(some: list[Fact]) -> None:
    assert len({repr(merged(order)) for order in itertools.permutations(some)}) == 1


def test_a_runner_without_an_id_is_the_same_whether_its_key_is_left_out_or_0() -> None:
    some = [fact("in_progress", runner_id=None), fact("in_progress", runner_id=0)]
    there, back = (functools.reduce(merge, order, None) for order in (some, some[::-1]))
    assert there == back


@given(st.lists(facts, min_size=1, max_size=5), st.data())
@settings(max_examples=100, deadline=None)
def test_a_fact_that_comes_again_changes_nothing(some: list[Fact], data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(some)))
    assert merged([*some, *again]) == merged(some)


WAITS = fact("queued", status="waiting")


@pytest.mark.parametrize(
    ("given_facts", "state", "wants"),
    [
        ([fact("queued")], JobState.QUEUED, True),
        ([fact("waiting")], JobState.WAITING, False),
        ([WAITS], JobState.WAITING, False),
        ([WAITS, fact("queued")], JobState.QUEUED, True),  # approved
        ([fact("queued"), fact("in_progress")], JobState.IN_PROGRESS, False),
        ([fact("completed"), fact("queued")], JobState.COMPLETED, False),
        ([fact("queued"), fact("completed", runner_name=None, runner_id=0)], JobState.COMPLETED, False),  # cancelled before start
        ([fact("queued", received_at=NOW + timedelta(minutes=30))], JobState.QUEUED, True),
        ([fact("queued", received_at=NOW + timedelta(minutes=31))], JobState.QUEUED, False),  # a replay: GitHub is asked first
        ([fact("queued", received_at=NOW + timedelta(minutes=31)), fact("queued")], JobState.QUEUED, True),
        ([fact("queued", demand=False)], JobState.QUEUED, False),
    ],
)
def test_the_state_of_a_job_and_whether_it_wants_a_runner_follow_from_its_facts(
    given_facts: list[Fact], state: JobState, wants: bool
) -> None:
    for order in itertools.permutations(given_facts):
        assert merged(order).state is state
        assert merged(order).wants_runner is wants


def test_a_job_that_github_does_not_know_any_more_wants_no_runner() -> None:
    assert not replace(merge(None, fact()), missing_since=NOW).wants_runner


def test_a_job_of_which_github_shows_not_even_the_repository_wants_one_still() -> None:
    assert replace(merge(None, fact()), unseen_since=NOW).wants_runner


def test_a_job_cancelled_before_it_started_has_no_runner_and_never_started() -> None:
    cancelled = fact("completed", runner_name=None, runner_id=0, started_at=NOW, conclusion="cancelled")
    job = merged([fact(), cancelled])
    assert (job.runner_name, job.started_at, job.conclusion) == (None, None, "cancelled")


# ---------------------------------------------------------------------------------------------- runners


def test_every_state_has_its_row_of_transitions_and_every_one_but_requested_leads_to_the_end() -> None:
    assert set(TRANSITIONS) == set(RunnerState)
    for state in set(RunnerState) - {S.REQUESTED, S.DELETING}:
        assert S.DELETING in TRANSITIONS[state]
    assert TRANSITIONS[S.REQUESTED] == {S.CREATING}  # only an intent on which nobody has acted may simply be forgotten


def test_what_is_finished_or_being_deleted_never_revives() -> None:
    assert TRANSITIONS[S.FINISHED] == {S.DELETING}
    assert not TRANSITIONS[S.DELETING]
    assert not any(TRANSITIONS[state] & ALIVE for state in set(RunnerState) - ALIVE)


def test_an_illegal_transition_raises_and_a_legal_one_ends_claim_and_back_off() -> None:
    ready = runner(S.READY, claimed_by="w", claimed_until=NOW, not_before=NOW, attempts=3)
    with pytest.raises(IllegalTransition):
        ready.move(S.REQUESTED, NOW, "no way back")
    moved = ready.move(S.BINDING, NOW, "why")
    assert (moved.claimed_by, moved.claimed_until, moved.not_before, moved.attempts) == (None, None, None, 0)
    assert (moved.since, moved.reason) == (NOW, "why")


def test_a_move_to_the_present_state_keeps_since_and_reason() -> None:
    busy = runner(S.BUSY, reason="runs")
    assert busy.move(S.BUSY, NOW, "again", exited_at=NOW) == replace(busy, exited_at=NOW)


HAPPENED = [fact("in_progress"), fact("completed")]


@pytest.mark.parametrize("state", [state for state in RunnerState if state not in (S.REQUESTED, S.DELETING)])
def test_facts_about_a_runner_leave_it_finished_in_whatever_order_and_state_they_meet_it(state: RunnerState) -> None:
    def after(order: Sequence[Fact]) -> Runner:
        row = runner(state, busy_job=None, completed_job="1" if state is S.FINISHED else None)
        for one in order:
            row = apply_to_runner(row, one, NOW)
        return row

    orders = [order for size in (2, 3) for order in itertools.product(HAPPENED, repeat=size) if set(order) == set(HAPPENED)]
    rows = [after(order) for order in orders]
    assert {row.state for row in rows} == {S.FINISHED}
    assert {row.completed_job for row in rows} == {"1"}
    assert len({(row.busy_job, row.busy_at) for row in rows}) == 1


@pytest.mark.parametrize("state", [S.READY, S.REGISTERED, S.BOOTING, S.RETIRING, S.FAILED])
def test_an_in_progress_fact_makes_its_runner_busy_since_the_job_began(state: RunnerState) -> None:
    row = apply_to_runner(runner(state), fact("in_progress"), NOW + 5 * MINUTE)
    assert (row.state, row.busy_job, row.busy_at) == (S.BUSY, "1", NOW + MINUTE)


def test_facts_that_name_another_runner_or_none_change_nothing() -> None:
    row = runner(S.REGISTERED)
    for one in (fact(), fact("completed", runner_name=None, runner_id=0), fact("in_progress", runner_name="hw-linux-other")):
        assert apply_to_runner(row, one, NOW) is row


@pytest.mark.parametrize("state", [S.REQUESTED, S.DELETING])
def test_no_fact_moves_an_intent_or_what_is_being_deleted(state: RunnerState) -> None:
    row = runner(state)
    assert [apply_to_runner(row, one, NOW) for one in HAPPENED] == [row, row]
