"""A decision leaves nothing for the next one to find on the very rows that it produced, at the same time and with the same
witnesses: the smallest worlds in which what one plan does gives the next one something to do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from runnerpool.decide import decide
from runnerpool.explain import reasons
from runnerpool.lifecycle import NOTHING_SEEN, Seen
from runnerpool.model import Head, Job, Runner, RunnerState, Snapshot
from runnerpool.ports import Vm, VmState
from tests.made_rows import MINUTE, NOW, ORG, job, pool, runner, setting, world

S = RunnerState
HOUR = timedelta(hours=1)

ARRIVES = runner(S.BOOTING, "arrives", accepted_at=NOW - 20 * MINUTE, target=ORG)
LATE = runner(S.BOOTING, "late", accepted_at=NOW - 6 * MINUTE, target=ORG, job_id="1")
ARRIVED = Seen(NOW, vms={ARRIVES.name: Vm(ARRIVES.name, VmState.SUCCEEDED, {}, NOW, power="running")})


@pytest.mark.parametrize(
    ("limits", "rows", "seen"),
    [
        pytest.param(
            {"maximum_pool_size": 1},
            [job(), runner(S.FAILED, absent_since=NOW)],
            NOTHING_SEEN,
            id="a forgotten row makes room for a VM",
        ),
        pytest.param(
            {"minimum_warm_vms": 1},
            [runner(S.READY, shape="made before")],
            NOTHING_SEEN,
            id="what replaces an outdated VM comes a plan later",
        ),
        pytest.param(
            {},
            [job(), runner(S.READY, target=ORG, minted_at=NOW), runner(S.REQUESTED, "intent", target=ORG)],
            NOTHING_SEEN,
            id="a ready VM is bound only after the intent beside it was forgotten",
        ),
        pytest.param(
            {},
            [job(age=HOUR), runner(S.REGISTERED, age=HOUR)],
            NOTHING_SEEN,
            id="a runner that GitHub ignores goes only after another was asked for",
        ),
        pytest.param({"minimum_warm_vms": 1}, [job(), runner(S.READY)], NOTHING_SEEN, id="a bound VM is replaced at once"),
    ],
)
def test_a_decision_leaves_nothing_for_the_next_one(limits: dict[str, Any], rows: list[Job | Runner], seen: Seen) -> None:
    jobs = {row.job_id: row for row in rows if isinstance(row, Job)}
    runners = {row.name: row for row in rows if isinstance(row, Runner)}
    of_pool = setting(pool(**limits))
    first = decide(NOW, of_pool, Snapshot(Head("linux"), jobs, runners, {}), seen)
    assert first.actions
    second = decide(NOW, of_pool, Snapshot(first.head, first.jobs, first.runners, {}), seen)
    assert [str(action) for action in second.actions] == []
    assert not second.changes


def test_no_vm_is_replaced_as_late_by_the_very_pass_that_learns_how_slowly_the_pool_boots() -> None:
    rows = {row.name: row for row in (ARRIVES, LATE)}
    jobs = {row.job_id: row for row in (job("1", vms_made=1, last_vm_at=NOW - 6 * MINUTE), job("2"))}
    assert not decide(NOW, setting(pool()), Snapshot(Head("linux"), jobs, rows, {}), ARRIVED).actions


def test_no_job_is_told_of_a_vm_that_is_bound_for_another_target() -> None:
    waits = job("2", target="repo:octo-org/a")
    taken = runner(S.BINDING, target="repo:octo-org/b", job_id="2")
    told = reasons(NOW, pool(maximum_pool_size=1), Head("linux"), world(waits, taken))
    assert taken.name not in told["2"]
