"""What is over is withdrawn, and GitHub is asked about jobs that ought to have moved on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from runnerpool.actions import Action, Delete, Forget, Park, Retire
from runnerpool.lifecycle import STUCK, Seen
from runnerpool.model import Job, Runner, RunnerState
from runnerpool.plan import ABANDONED, ASKS
from runnerpool.ports import AgentPhase, AgentStatus, AgentTrouble
from tests.made_rows import MINUTE, NOW, job, of, planned, runner, status

S = RunnerState
REPO_A, REPO_B = "repo:octo-org/a", "repo:octo-org/b"
HOUR = timedelta(hours=1)


# ---------------------------------------------------------------------------------------------- withdrawing


def polled(row: Runner, word: AgentStatus | AgentTrouble) -> Seen:
    return Seen(at=NOW, agents={row.name: word})


CLEAR, WORKER = status(AgentPhase.EXITED, binding=7), status(AgentPhase.BUSY, worker=True, binding=7)
GONE: dict[str, Any] = {"deregistered_at": NOW - 10 * MINUTE}
QUIET: dict[str, Any] = {**GONE, "answered_at": NOW - HOUR, "silent_since": NOW - HOUR}


@pytest.mark.parametrize(
    ("row", "word", "kind"),
    [
        (runner(S.FINISHED, completed_job="1"), None, Delete),
        (runner(S.FAILED), None, Delete),  # never minted
        (runner(S.FAILED, minted_at=NOW), CLEAR, Retire),
        (runner(S.RETIRING), CLEAR, None),  # the registration is still there
        (runner(S.RETIRING, **GONE), CLEAR, Delete),
        (runner(S.RETIRING, **GONE), WORKER, None),
        (runner(S.RETIRING, **GONE), None, None),  # nobody asked the agent
        (runner(S.FAILED, minted_at=NOW, **GONE), None, None),
        (runner(S.FAILED, absent_since=NOW), None, Forget),
        (runner(S.FAILED, absent_since=NOW, minted_at=NOW), None, Retire),
        (runner(S.RETIRING, absent_since=NOW), None, None),
        (runner(S.RETIRING, absent_since=NOW, **GONE), None, Forget),
        (runner(S.FINISHED, absent_since=NOW, completed_job="1"), None, Forget),  # evicted, and then GitHub noticed
        (runner(S.DELETING), None, None),
        (runner(S.DELETING, absent_since=NOW), None, Forget),
        # busy, and for long now nobody has shown a job
        (runner(S.BUSY, age=HOUR), CLEAR, None),
        (runner(S.BUSY, age=HOUR, exited_at=NOW - 4 * MINUTE), CLEAR, None),
        (runner(S.BUSY, age=HOUR, exited_at=NOW - 6 * MINUTE), CLEAR, Retire),
        (runner(S.BUSY, age=HOUR, exited_at=NOW - 6 * MINUTE), None, None),
        (runner(S.BUSY, age=HOUR, busy_job=None), CLEAR, Retire),
        (runner(S.BUSY, age=STUCK, busy_job=None), CLEAR, None),
        (runner(S.BUSY, age=HOUR, busy_job=None), WORKER, None),  # its in_progress was lost, its job was not
        (runner(S.BUSY, age=HOUR, busy_job=None), AgentTrouble.REFUSED, None),
        (runner(S.BUSY, age=HOUR, **GONE), CLEAR, Delete),
        (runner(S.BUSY, age=HOUR, **GONE), WORKER, None),
        (runner(S.BUSY, age=10 * HOUR), AgentTrouble.SILENT, None),  # GitHub named a job and nobody said that it is over
        (runner(S.BUSY, age=10 * HOUR, **QUIET), AgentTrouble.SILENT, None),  # nor when its registration went in mid-job
        (runner(S.RETIRING, age=10 * HOUR, busy_job="1", **QUIET), AgentTrouble.SILENT, None),
        (runner(S.BUSY, age=10 * HOUR, busy_job=None, **QUIET), AgentTrouble.SILENT, Delete),
    ],
)
def test_what_is_over_is_deleted_where_rule_1_allows_it_and_retired_where_it_does_not_yet(
    row: Runner, word: AgentStatus | AgentTrouble | None, kind: type[Action] | None
) -> None:
    actions = planned([row], seen=polled(row, word) if word else Seen())
    assert [type(action) for action in actions] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("known", "kind"),
    [
        (job("1", started_at=NOW - HOUR), None),
        (job("1", started_at=NOW - HOUR, missing_since=NOW), Delete),  # its run was deleted: nobody will say that it is over
    ],
)
def test_a_silent_vm_is_kept_as_long_as_github_knows_the_job_that_it_named(known: Job, kind: type[Action] | None) -> None:
    row = runner(S.BUSY, age=10 * HOUR, busy_job="1", **QUIET)
    actions = planned([row, known], seen=polled(row, AgentTrouble.SILENT))
    assert [type(action) for action in actions if not isinstance(action, Park)] == ([kind] if kind else [])


LONG_GONE = NOW - ABANDONED


@pytest.mark.parametrize(
    ("row", "targets", "forgotten"),
    [
        (runner(S.RETIRING, target=REPO_A, absent_since=LONG_GONE), [REPO_B], True),
        (runner(S.FAILED, target=REPO_A, absent_since=LONG_GONE, minted_at=NOW), [REPO_B], True),
        (runner(S.RETIRING, target=REPO_A, absent_since=LONG_GONE), [REPO_A, REPO_B], False),  # GitHub can still be asked
        (runner(S.RETIRING, target=REPO_A, absent_since=LONG_GONE), ["repo:Octo-Org/A"], False),  # GitHub takes it for the same
        (runner(S.RETIRING, target=REPO_A, absent_since=LONG_GONE + MINUTE), [REPO_B], False),
        (runner(S.RETIRING, target=REPO_A), [REPO_B], False),  # its VM is there, and a job may run on it
        (runner(S.RETIRING, target=REPO_A, absent_since=LONG_GONE), None, False),  # nobody says what the file allows
    ],
)
def test_what_azure_has_not_had_for_long_is_forgotten_where_its_target_has_left_the_file(
    row: Runner, targets: list[str] | None, forgotten: bool
) -> None:
    assert bool(of(Forget, planned([row], targets=targets, home=None))) is forgotten


@pytest.mark.parametrize("word", [None, CLEAR, AgentTrouble.SILENT, AgentTrouble.REFUSED])
def test_a_vm_whose_target_has_left_the_file_is_not_deleted_for_that(word: AgentStatus | AgentTrouble | None) -> None:
    row = runner(S.RETIRING, target=REPO_A, age=9 * HOUR, silent_since=NOW - 9 * HOUR)
    assert not planned([row], targets=[REPO_B], home=None, seen=polled(row, word) if word else Seen())


def test_a_silent_vm_whose_job_github_does_not_know_is_withdrawn() -> None:
    row = runner(S.BUSY, age=HOUR, busy_job="1", answered_at=NOW - HOUR, silent_since=NOW - HOUR)
    known = job("1", started_at=NOW - HOUR, missing_since=NOW - MINUTE)
    assert of(Retire, planned([row, known], seen=polled(row, AgentTrouble.SILENT)))
    assert not of(Retire, planned([row, replace(known, missing_since=None)], seen=polled(row, AgentTrouble.SILENT)))


# ---------------------------------------------------------------------------------------------- asking GitHub

RUNS: dict[str, Any] = {"started_at": NOW - 50 * MINUTE, "runner_name": "hw-linux-aaaaaaaaaa"}


@pytest.mark.parametrize(
    ("asked_about", "row", "due"),
    [
        (job(age=9 * MINUTE), None, False),
        (job(age=10 * MINUTE), None, True),
        (job(age=HOUR, checked_at=NOW - 9 * MINUTE), None, False),
        (job(age=20 * HOUR, checked_at=NOW - HOUR), None, False),  # seldomer the longer it waits
        (job(trusted=False), None, True),
        (job(trusted=False, checked_at=NOW - 4 * MINUTE), None, False),
        (job(age=HOUR, queued=False, waiting=True), None, True),
        (job(age=4 * MINUTE, queued=False, waiting=True), None, False),
        (job(age=HOUR, demand=False), None, False),
        (job(age=HOUR, completed_at=NOW), None, False),
        (job(age=HOUR, **RUNS), runner(S.BUSY), False),
        (job(age=HOUR, **RUNS), runner(S.BUSY, exited_at=NOW - MINUTE), True),
        (job(age=HOUR, **RUNS), runner(S.BUSY, silent_since=NOW - 5 * MINUTE), True),
        (job(age=HOUR, **RUNS), runner(S.RETIRING), True),
        (job(age=HOUR, **RUNS), None, True),
        (job(age=HOUR, demand=False, **RUNS), None, True),  # a foreign job that ended unheard must not stay for ever
        (job(age=HOUR, checked_at=NOW - 4 * MINUTE, **RUNS), None, False),
        (job(age=9 * HOUR, **{**RUNS, "started_at": NOW - 7 * HOUR}), runner(S.BUSY), True),  # beyond job_timeout
    ],
)
def test_github_is_asked_about_a_job_that_ought_to_have_moved_on(asked_about: Job, row: Runner | None, due: bool) -> None:
    assert bool(of(Park, planned([asked_about, *([row] if row else [])], maximum_pool_size=1))) is due


def test_one_pass_asks_about_a_few_jobs_those_not_asked_about_for_longest() -> None:
    late = [job(str(n), age=HOUR, checked_at=NOW - timedelta(minutes=20 + n)) for n in range(ASKS + 5)]
    assert [park.job_id for park in of(Park, planned(late))] == [str(n) for n in range(ASKS + 4, 4, -1)]
