"""Why a job waits, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from runnerpool.capacity import POOL, Rung, rest_after, target_key
from runnerpool.config import departed
from runnerpool.demand import FREE_TRIES, IGNORED
from runnerpool.explain import reasons
from runnerpool.model import Failure, Head, Job, Rest, Runner, RunnerState
from tests.made_rows import MINUTE, NOW, ORG, job, pool, runner, world

S = RunnerState
HOUR = timedelta(hours=1)
FOR_1: dict[str, Any] = {"target": ORG, "job_id": "1"}
IDLE: dict[str, Any] = {"online_at": NOW - IGNORED, "ready_at": NOW - IGNORED}
REFUSED = Head("linux", rests={POOL: Rest(NOW + 5 * MINUTE, "no runner group CI")})
BROKEN = Head("linux", failures=tuple(Failure(NOW, f"hw-linux-{n}", "its agent did not answer", "1") for n in "ab"))
CLOSED = Head("linux", rests={target_key(ORG): Rest(NOW + 5 * MINUTE, "GitHub answered 403")})
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
        ([job()], CLOSED, "no runner for octo-org/hello, and is asked again at 00:05: GitHub answered 403"),
        ([job(), runner(S.READY)], CLOSED, "GitHub answered 403"),
        ([job(), runner(S.BOOTING, job_id="1")], CLOSED, "GitHub answered 403"),
        ([job(vms_made=FREE_TRIES, last_vm_at=NOW)], CLOSED, "GitHub answered 403"),
        ([job(), runner(S.REGISTERED, **FOR_1)], CLOSED, "is online since 60 s"),  # registered before
        ([job(target="repo:octo-org/a")], CLOSED, "the next planning pass makes a VM for it"),
        ([job()], Head("linux", paused=True), "paused"),
        ([job()], FULL, "no capacity for Standard_D4ads_v5 until 00:10, when it is tried again"),
        ([job(), *(runner(S.BUSY, str(n)) for n in range(3))], None, "at its maximum of 3 VMs; 0 jobs are ahead"),
        ([job(age=HOUR), runner(S.REGISTERED, **IDLE)], None, "does the runner group admit this repository?"),
        ([job(age=HOUR), runner(S.REGISTERED, **{**FOR_1, **IDLE})], None, "does the runner group admit this repository?"),
        ([job(vms_made=FREE_TRIES, last_vm_at=NOW)], None, "3 VMs were made for it in vain"),
        ([job(vms_made=FREE_TRIES, last_vm_at=NOW)], BROKEN, "(of the last one hw-linux-b: its agent did not answer)"),
        ([job(queued=False, waiting=True)], None, "it waits for an approval"),
        ([job(trusted=False)], None, "more than 30 minutes late"),
        ([job(missing_since=NOW)], None, "404"),
        ([job(labels=("Linux", "gpu", "Big"))], None, "pool linux lacks [big, gpu] now; the job moves to a pool that has all"),
        ([job(labels=("gpu",)), runner(S.BOOTING, **FOR_1)], None, "pool linux lacks [gpu] now"),
        ([job(labels=("gpu",)), runner(S.REGISTERED, **IDLE)], None, "pool linux lacks [gpu] now"),
        ([job(unseen_since=NOW)], None, "the next planning pass makes a VM for it; GitHub has shown no job of octo-org/hello"),
        ([job(unseen_since=NOW, trusted=False)], None, "still queued; GitHub has shown no job of octo-org/hello since 00:00 UTC"),
        ([job(unseen_since=NOW, queued=False)], None, "at GitHub; GitHub has shown no job of octo-org/hello"),
        ([job(unseen_since=NOW), runner(S.BOOTING, **FOR_1)], None, "the credential lacks 'Actions: read' there"),
    ],
)
def test_the_reason_names_what_is_in_the_way(rows: Sequence[Job | Runner], head: Head | None, part: str) -> None:
    assert part in reasons(NOW, pool(maximum_pool_size=3), head or Head("linux"), world(*rows))["1"]


def test_a_job_of_a_pool_that_has_left_the_file_is_told_so_unless_an_idle_vm_of_it_still_serves() -> None:
    gone = departed("linux")
    assert "pool linux has left the pool file; the job moves" in reasons(NOW, gone, Head("linux"), world(job()))["1"]
    assert "a runner that fits" in reasons(NOW, gone, Head("linux"), world(job(), runner(S.READY)))["1"]


A, B = "Standard_D4ads_v5", "Standard_D4as_v5"
ROOM: dict[str, Any] = {"vm": {"sizes": [A, B], "zones": ["2", "3"], "priority": "spot-then-regular"}}


def refused(*rungs: Rung, code: str = "ZonalAllocationFailed") -> Head:
    return Head("linux", rests=dict(rest_after(rung, code, "", NOW) for rung in rungs))


@pytest.mark.parametrize(
    ("head", "tried", "sentence"),
    [
        (refused(), Rung(A, "2", True), ""),
        (refused(Rung(A, "2", True)), Rung(A, "3", True), f"no capacity for spot {A} in zone 2 until 01:00, trying zone 3 "),
        (
            refused(Rung(A, "2", True), Rung(A, "3", True)),
            Rung(B, "2", True),
            f"no capacity for spot {A} in zone 3 until 01:00, trying spot {B} in zone 2 ",
        ),
        (
            refused(*(Rung(size, zone, True) for size in (A, B) for zone in "23")),
            Rung(A, "2", False),
            f"no capacity for spot {B} in zone 3 until 01:00, trying regular {A} in zone 2 ",
        ),
        (refused(Rung(A, "2", False)), Rung(A, "3", False), f"no capacity for {A} in zone 2 until 01:00, trying zone 3 "),
        (refused(Rung(A, "3", True)), Rung(A, "2", True), ""),  # what is refused comes later
        (refused(Rung(A, "2", True)), Rung("Standard_gone", None, False), ""),  # the pool file has changed
    ],
)
def test_the_reason_says_what_azure_has_no_room_for_and_what_is_tried_instead(head: Head, tried: Rung, sentence: str) -> None:
    on_it: dict[str, Any] = {"size": tried.size, "zone": tried.zone, "spot": tried.spot}
    for state in (S.REQUESTED, S.CREATING, S.BOOTING):
        told = reasons(NOW, pool(**ROOM), head, world(job(), runner(state, **FOR_1, **on_it)))["1"]
        assert told.startswith(sentence or "its VM")
    online = runner(S.REGISTERED, **FOR_1, **on_it)
    assert "no capacity" not in reasons(NOW, pool(**ROOM), head, world(job(), online))["1"]


def test_a_second_attempt_waits_for_a_regular_vm_whatever_spot_vms_are_idle() -> None:
    rows: list[Job | Runner] = [job(rerun_of="0"), runner(S.READY, spot=True)]
    assert "the next planning pass" in reasons(NOW, pool(**ROOM), Head("linux"), world(*rows))["1"]
    full = refused(*(Rung(size, zone, False) for size in (A, B) for zone in "23"))
    assert f"no capacity for {A} in zone 2 until 01:00" in reasons(NOW, pool(**ROOM), full, world(*rows))["1"]


def test_a_job_for_which_no_vm_is_being_made_yet_is_told_what_will_be_tried() -> None:
    told = reasons(NOW, pool(**ROOM), refused(Rung(A, "2", True)), world(job()))["1"]
    assert told == (
        f"no capacity for spot {A} in zone 2 until 01:00, trying zone 3 (ZonalAllocationFailed); "
        "the next planning pass makes a VM for it"
    )


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
