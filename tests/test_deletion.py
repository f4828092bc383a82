"""Rule 1: a VM is not deleted while its runner runs a job."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from runnerpool.deletion import SETTLE, SILENCE, AgentWord, basis, silent_for
from runnerpool.model import SKEW, Basis, Runner, RunnerState
from runnerpool.ports import AgentPhase, AgentTrouble
from tests.made_rows import MINUTE, NOW, runner, status

S = RunnerState
GONE = NOW - SETTLE - SKEW
CLEAR, WORKER = status(AgentPhase.LISTENING, binding=7), status(AgentPhase.BUSY, worker=True)
SILENT, REFUSED = AgentTrouble.SILENT, AgentTrouble.REFUSED


@pytest.mark.parametrize(
    ("row", "word", "polled_at", "expected"),
    [
        # a completed fact named it: nothing else is asked
        (runner(S.FINISHED, completed_job="1"), None, None, Basis.COMPLETED),
        (runner(S.FINISHED, completed_job="1"), WORKER, NOW, Basis.COMPLETED),
        # never minted
        (runner(S.READY), None, None, Basis.NEVER_MINTED),
        (runner(S.FAILED), SILENT, NOW, Basis.NEVER_MINTED),
        (runner(S.BUSY, minted_at=None), CLEAR, NOW, None),
        # minted, and the registration may be there
        (runner(S.RETIRING), CLEAR, NOW, None),
        (runner(S.BUSY), CLEAR, NOW, None),
        (runner(S.FAILED, minted_at=NOW, silent_since=NOW - SILENCE), SILENT, NOW, None),
        # the registration is gone, and then the agent was asked
        (runner(S.RETIRING, deregistered_at=GONE), CLEAR, NOW, Basis.CLEAR),
        (runner(S.RETIRING, deregistered_at=GONE), WORKER, NOW, None),
        (runner(S.RETIRING, deregistered_at=GONE), None, NOW, None),
        (runner(S.RETIRING, deregistered_at=GONE), CLEAR, None, None),
        (runner(S.RETIRING, deregistered_at=GONE), REFUSED, NOW, None),
        # asked too early: a job that GitHub gave away a moment before its 204 has no worker yet; clocks may be 2 minutes apart
        (runner(S.RETIRING, deregistered_at=NOW), CLEAR, NOW, None),
        (runner(S.RETIRING, deregistered_at=NOW + MINUTE), CLEAR, NOW, None),
        (runner(S.RETIRING, deregistered_at=GONE + timedelta(seconds=1)), CLEAR, NOW, None),
        # silence
        (runner(S.RETIRING, deregistered_at=GONE, silent_since=NOW - SILENCE), SILENT, NOW, Basis.SILENT),
        (runner(S.RETIRING, deregistered_at=GONE, silent_since=NOW - SILENCE + MINUTE), SILENT, NOW, None),
        (runner(S.RETIRING, deregistered_at=GONE, silent_since=NOW - SILENCE), REFUSED, NOW, None),
        (runner(S.RETIRING, deregistered_at=GONE, silent_since=NOW - SILENCE), None, None, None),
    ],
)
def test_what_allows_a_vm_to_be_deleted(row: Runner, word: AgentWord, polled_at: datetime | None, expected: Basis | None) -> None:
    assert basis(NOW, row, word, polled_at) is expected


@pytest.mark.parametrize(("word", "expected"), [(SILENT, None), (CLEAR, Basis.CLEAR)])
def test_silence_does_not_end_a_job_that_github_has_named(word: AgentWord, expected: Basis | None) -> None:
    row = runner(S.BUSY, busy_job="1", deregistered_at=GONE, silent_since=NOW - 4 * SILENCE)
    assert basis(NOW, row, word, NOW, unfinished=True) is expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (runner(S.READY, silent_since=NOW - 3 * MINUTE), 3 * MINUTE),
        (runner(S.READY), timedelta(0)),
        (runner(S.BOOTING, accepted_at=NOW - 9 * MINUTE), 9 * MINUTE),
        (runner(S.FAILED, answered_at=None, accepted_at=None, created_at=NOW - 8 * MINUTE), 8 * MINUTE),
        # its PUT's end was not seen: its VM can be younger than its row by hours
        (
            runner(S.FAILED, answered_at=None, accepted_at=None, created_at=NOW - 99 * MINUTE, put_until=NOW - 2 * MINUTE),
            2 * MINUTE,
        ),
    ],
)
def test_silence_is_counted_from_the_last_answer_or_where_there_was_none_from_the_beginning(
    row: Runner, expected: timedelta
) -> None:
    assert silent_for(NOW, row) == expected
