"""Why a job waits, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from runnerpool.capacity import POOL
from runnerpool.demand import FREE_TRIES, IGNORED
from runnerpool.explain import reasons
from runnerpool.model import Head, Job, Rest, Runner, RunnerState
from tests.made_rows import MINUTE, NOW, ORG, job, pool, runner, world

S = RunnerState
HOUR = timedelta(hours=1)
FOR_1: dict[str, Any] = {"target": ORG, "job_id": "1"}
IDLE: dict[str, Any] = {"online_at": NOW - IGNORED, "ready_at": NOW - IGNORED}
REFUSED = Head("linux", rests={POOL: Rest(NOW + 5 * MINUTE, "no runner group CI")})
FULL = Head("linux", rests={"regular": Rest(NOW + 10 * MINUTE, "QuotaExceeded")})


@pytest.mark.parametrize(
    ("rows", "head", "part"),
    [
        ([job()], None, "the next planning pass makes a VM for it"),
        ([job(), runner(S.REQUESTED, **FOR_1)], None, "is being created since 60 s"),
        ([job(), runner(S.CREATING, **FOR_1, not_before=NOW + MINUTE, reason="ARM: 503")], None, "(ARM: 503)"),
        ([job(), runner(S.BOOTING, **FOR_1)], None, "has been booting since 60 s"),
        ([job(), runner(S.BINDING, **FOR_1)], None, "is being registered"),
        ([job(), runner(S.REGISTERED, **FOR_1)], None, "is online since 60 s"),
        ([job(), runner(S.READY)], None, "a runner that fits is on its way or idle"),
        ([job(), runner(S.BOOTING)], None, "a runner that fits is on its way or idle"),
        ([job(), runner(S.READY)], REFUSED, "no runner group CI"),
        ([job()], Head("linux", paused=True), "paused"),
        ([job()], FULL, "until 00:10 UTC, when it is tried again: QuotaExceeded"),
        ([job(), *(runner(S.BUSY, str(n)) for n in range(3))], None, "at its maximum of 3 VMs; 0 jobs are ahead"),
        ([job(age=HOUR), runner(S.REGISTERED, **IDLE)], None, "does the runner group admit this repository?"),
        ([job(age=HOUR), runner(S.REGISTERED, **{**FOR_1, **IDLE})], None, "does the runner group admit this repository?"),
        ([job(vms_made=FREE_TRIES, last_vm_at=NOW)], None, "3 VMs were made for it in vain"),
        ([job(queued=False, waiting=True)], None, "it waits for an approval"),
        ([job(trusted=False)], None, "more than 30 minutes late"),
        ([job(missing_since=NOW)], None, "404"),
    ],
)
def test_the_reason_names_what_is_in_the_way(rows: Sequence[Job | Runner], head: Head | None, part: str) -> None:
    assert part in reasons(NOW, pool(maximum_pool_size=3), head or Head("linux"), world(*rows))["1"]


def test_at_the_maximum_each_job_is_told_how_many_are_ahead() -> None:
    waiting = [job(str(n), age=timedelta(seconds=100 - n)) for n in range(3)]
    told = reasons(NOW, pool(maximum_pool_size=1), Head("linux"), world(*waiting, runner(S.BUSY)))
    assert [sentence[-16:] for sentence in told.values()] == ["0 jobs are ahead", "1 jobs are ahead", "2 jobs are ahead"]


def test_only_jobs_without_a_runner_are_explained_the_oldest_first() -> None:
    rows = [job("2"), job("1", age=HOUR), job("3", started_at=NOW), job("4", completed_at=NOW), job("5", demand=False)]
    assert list(reasons(NOW, pool(), Head("linux"), world(*rows))) == ["1", "2"]


def test_a_damaged_row_that_keeps_the_pool_from_adding_is_named() -> None:
    told = reasons(NOW, pool(), Head("linux"), world(job()), ["job:9", "runner:hw-linux-broken"])
    assert "runner:hw-linux-broken" in told["1"]
